//! The throw-away site of `kiln boot`.

use crate::image::id::ImageId;
use crate::sys::command::run_ok;
use crate::sys::files::write_atomic;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The server's address in the private network.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const PREFIX: u8 = 24;
const TOOL_TIMEOUT: Duration = Duration::from_secs(60);

/// What the site is about.
pub struct Plan {
    pub release: String,
    pub role: String,
    pub image: ImageId,
    pub nodes: u32,
    pub state_disk: bool,
}

impl Plan {
    /// `infra1`, `infra2`, …
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.nodes).map(|i| format!("{}{i}", self.role))
    }
}

/// Address of machine `i` (from 0).
pub fn address(i: usize) -> Ipv4Addr {
    super::host(11 + i as u8)
}

/// MAC of machine `i` (from 0).
pub fn mac(i: usize) -> String {
    format!("52:54:00:77:00:{:02x}", i + 1)
}

/// Serial number of the state disk of machine `i` (from 0).
pub fn serial(i: usize) -> String {
    format!("kiln-state-{}", i + 1)
}

/// Writes `site.toml`, `secrets.toml` and an ssh key into `dir`; returns the private key's path.
pub fn make(plan: &Plan, dir: &Path) -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    if !dir.join("secrets.toml").exists() {
        run_ok(Command::new(program).arg("init").arg(dir).args(["--release", &plan.release]), b"", TOOL_TIMEOUT)?;
    }
    let key = dir.join("ssh_key");
    if !key.exists() {
        let mut keygen = Command::new("ssh-keygen");
        run_ok(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "kiln-boot", "-f"]).arg(&key), b"", TOOL_TIMEOUT)?;
    }
    let public = std::fs::read_to_string(key.with_extension("pub")).context("reading the ssh key")?;
    write_atomic(&dir.join("site.toml"), text(plan, public.trim()).as_bytes(), 0o644)?;
    Ok(key)
}

fn text(plan: &Plan, ssh_key: &str) -> String {
    let (release, role, image) = (&plan.release, &plan.role, plan.image);
    let mut site = format!(
        "[cluster]\nname = \"boot\"\nrelease = \"{release}\"\nvip = \"{}\"\n\n[access]\nssh_keys = [\"{ssh_key}\"]\n\n\
         [role.{role}]\nimage = \"{image}\"\n\n[network.management]\nsubnet = \"{}/{PREFIX}\"\ngateway = \"{SERVER}\"\n",
        super::host(10),
        super::host(0),
    );
    for (i, name) in plan.names().enumerate() {
        let state = if plan.state_disk {
            format!("{{ disk = {{ serial = \"{}\" }} }}", serial(i))
        } else {
            "{ volatile = true }".into()
        };
        let _ = write!(
            site,
            "\n[[node]]\nname = \"{name}\"\nrole = \"{role}\"\nmac = [\"{}\"]\nmanagement = {{ address = \"{}\" }}\nstate = {state}\n",
            mac(i),
            address(i),
        );
    }
    site
}

/// A size as site files write it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    crate::site::file::bytes(text).ok_or_else(|| format!("{text:?} is not a size such as 8GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_throw_away_site_is_a_valid_site() {
        for state_disk in [true, false] {
            let plan = Plan {
                release: "zed".into(),
                role: "test".into(),
                image: crate::image::id::Digest::of(b""),
                nodes: 3,
                state_disk,
            };
            let text =
                text(&plan, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPg3cuFnW4mGtZ0Y0DC3kW0hLCJ1Zk2mGxVdBdlYVYvp boot");
            let site = crate::site::file::parse(&text, "site.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(site.nodes.len(), 3);
        }
    }
}
