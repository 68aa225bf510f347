//! A network of its own for this process and its children: a network namespace that is gone with
//! the last of them. Works as root, and without where the kernel allows user namespaces and
//! `/dev/net/tun`.

use crate::sys::command::run_ok;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;
use std::time::Duration;

/// The bridge between the server and the machines.
pub const BRIDGE: &str = "kiln0";
/// Time for one `ip` command.
const IP_TIMEOUT: Duration = Duration::from_secs(10);

/// Leaves the host's network for good. Must be called before any thread is started.
pub fn enter() -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .context("making a user and a network namespace (without root the kernel must allow user namespaces)")?;
        std::fs::write("/proc/self/setgroups", "deny").context("denying setgroups")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("mapping this user to root")?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("mapping this group to root")?;
    }
    ip(&["link", "set", "lo", "up"])
}

/// Makes the bridge with `address` (such as `10.0.0.1/24`) and a tap for each machine.
pub fn make_bridge(address: &str, taps: &[String]) -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    // A bridge takes its lowest port's MAC otherwise, and changes it when that port goes.
    ip(&["link", "set", BRIDGE, "address", "52:54:00:ff:ff:01", "up"])?;
    ip(&["address", "add", address, "dev", BRIDGE])?;
    for tap in taps {
        ip(&["tuntap", "add", tap, "mode", "tap"])?;
        ip(&["link", "set", tap, "master", BRIDGE, "up"])?;
    }
    Ok(())
}

/// Runs `ip` with these arguments.
pub fn ip(args: &[&str]) -> Result<()> {
    run_ok(Command::new("ip").args(args), b"", IP_TIMEOUT).map(|_| ())
}
