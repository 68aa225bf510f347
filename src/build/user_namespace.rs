//! Makes an ordinary user root over its own subordinate ids: in a user namespace, where packages'
//! files have the owners that they have on a node and mounts can be made, while on the host all of
//! it is the user's or its subordinates'.

use super::subids::{self, IDS};
use crate::sys::{command, files};
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{ForkResult, User, getgid, getuid};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MAP_TIMEOUT: Duration = Duration::from_secs(30);
const SUBIDS_MAX_BYTES: u64 = 4 << 20;
/// What the helper says when it did its work; anything else is why it did not.
const DONE: &str = "done";

/// Whether this process is in a user namespace, its own or that of a container around it: there no
/// squashfs can be mounted, no device be made, and overlayfs keeps its marks in `user.*`.
pub fn inside() -> Result<bool> {
    Ok(!subids::is_host(&uid_map()?))
}

/// Of root: that it has all ids, which root of a container need not have.
pub fn check_ids() -> Result<()> {
    let mapped = subids::mapped(&uid_map()?);
    if mapped < u64::from(IDS) {
        bail!("root of this user namespace has {mapped} ids, packages' files need {IDS}: map more into it");
    }
    Ok(())
}

fn uid_map() -> Result<String> {
    fs::read_to_string("/proc/self/uid_map").context("reading /proc/self/uid_map")
}

/// Moves this process into a user namespace and those of `others`. In it 0 is the caller, so that
/// cache and store are the caller's; 1 and up are the caller's subordinate ids.
pub fn enter(others: CloneFlags) -> Result<()> {
    let (uid, gid) = (getuid(), getgid());
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let (uids, gids) = (start(&name, uid.as_raw(), "/etc/subuid")?, start(&name, uid.as_raw(), "/etc/subgid")?);
    let process = std::process::id();
    let (mut here, there) = UnixStream::pair().context("making a socket to the helper")?;
    // Only the setuid helpers may map ids that are not the caller's own, and only from outside of the
    // namespace: so they are started by a child that stays behind.
    // SAFETY: this process has no other thread yet (see `chroot::isolate`), so its child may do anything.
    let child = match unsafe { nix::unistd::fork() }.context("starting a helper")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(here);
            helper(
                there,
                [map("newuidmap", process, uid.as_raw(), uids), map("newgidmap", process, gid.as_raw(), gids)],
            );
            std::process::exit(0);
        }
    };
    drop(there);
    let mapped = match nix::sched::unshare(CloneFlags::CLONE_NEWUSER | others) {
        Err(error) => Err(refused(error)),
        Ok(()) => ask(&mut here),
    };
    drop(here); // a helper that was never asked sees this, and ends
    let _ = nix::sys::wait::waitpid(child, None);
    mapped
}

fn start(name: &str, uid: u32, file: &str) -> Result<u32> {
    let file = Path::new(file);
    let text = if file.exists() { files::read_bounded(file, SUBIDS_MAX_BYTES)? } else { Vec::new() };
    subids::range(&String::from_utf8_lossy(&text), name, uid).with_context(|| {
        format!(
            "without root {IDS} subordinate ids are needed, and {} has none for {name}: as root, add the line \
             {name}:100000:{IDS} to it (or another start: each range is one user's), or run kiln as root",
            file.display()
        )
    })
}

fn map(program: &str, process: u32, own: u32, start: u32) -> Command {
    let mut line = Command::new(program);
    line.args([process, 0, own, 1, 1, start, IDS].map(|number| number.to_string()));
    line
}

/// Waits until the namespace is there, fills it, says how that went.
fn helper(mut parent: UnixStream, mut lines: [Command; 2]) {
    if parent.read_exact(&mut [0]).is_err() {
        return; // no namespace
    }
    let mut run = || -> Result<()> {
        for line in &mut lines {
            let program = line.get_program().to_string_lossy().into_owned();
            command::run_ok(line, b"", MAP_TIMEOUT)
                .with_context(|| format!("{program} (Debian: apt-get install uidmap)"))?;
        }
        Ok(())
    };
    let answer = run().map_or_else(|error| format!("{error:#}"), |()| DONE.into());
    let _ = parent.write_all(answer.as_bytes()); // nobody there: nobody to tell
}

fn ask(helper: &mut UnixStream) -> Result<()> {
    let mut answer = String::new();
    helper.write_all(&[1]).and_then(|()| helper.read_to_string(&mut answer)).context("asking the helper")?;
    if answer == DONE { Ok(()) } else { Err(anyhow!("mapping subordinate ids: {answer}")) }
}

fn refused(error: Errno) -> anyhow::Error {
    let read = |switch: &str| fs::read_to_string(Path::new("/proc/sys").join(switch)).ok();
    anyhow!("without root a user namespace is needed, and none is given ({error}): {}", subids::refusal(&read))
}
