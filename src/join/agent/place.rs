//! Puts what the register's answer brought in its place: names, resolvers, interfaces, the view,
//! the secrets, the rendered templates. Idempotent: an agent that is restarted does it again.

use super::register::Registration;
use crate::image::role::{RoleFile, Template};
use crate::join::settings;
use crate::ledger::message::RegisterAnswer;
use crate::overlay::render::render;
use crate::recipe::System;
use crate::sys::{command, files, netdev};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// On tmpfs; all that must not outlive a boot.
pub const RUN: &str = "/run/kiln";
/// Templates are configuration files.
const TEMPLATE_MAX_BYTES: u64 = 4 * 1024 * 1024;
const RELOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The file that `KILN_SITE` names.
pub fn site_file() -> PathBuf {
    Path::new(RUN).join("site.json")
}

/// The folder that `KILN_SECRETS` names for a system.
pub fn secrets_dir(system: &str) -> PathBuf {
    Path::new(RUN).join("secrets").join(system)
}

/// Everything, in the order in which the later parts need the earlier ones.
pub fn place(role: &RoleFile, registration: &Registration, say: &mut dyn FnMut(&str)) -> Result<()> {
    let answer = &registration.answer;
    let view = &answer.view;
    name_node(&view.node.name)?;
    write_changed(Path::new("/etc/hosts"), settings::hosts(view).as_bytes(), 0, 0, 0o644)?;
    if let Some(text) = settings::resolvers(view) {
        write_changed(Path::new("/etc/resolv.conf"), text.as_bytes(), 0, 0, 0o644)?;
    }
    // What an interface lacks shows in the health of the systems that need it.
    for problem in interfaces(answer) {
        say(&problem);
    }
    files::write_atomic(&site_file(), &serde_json::to_vec_pretty(view)?, 0o644)?;
    for system in &role.systems {
        write_secrets(system, &answer.secrets)?;
    }
    certificates(role, registration)?;
    let mut units = false;
    for template in &role.templates {
        units |= render_one(role, template, answer)? && settings::is_unit(&template.path);
    }
    if units {
        command::run_ok(Command::new("systemctl").arg("daemon-reload"), b"", RELOAD_TIMEOUT)?;
    }
    Ok(())
}

fn name_node(name: &str) -> Result<()> {
    let now = nix::unistd::gethostname().context("reading the host name")?;
    if now.to_str() != Some(name) {
        nix::unistd::sethostname(name).with_context(|| format!("setting the host name {name}"))?;
    }
    write_changed(Path::new("/etc/hostname"), format!("{name}\n").as_bytes(), 0, 0, 0o644).map(|_| ())
}

/// Sets MTUs and brings the external card up. The management address stands since the initramfs.
fn interfaces(answer: &RegisterAnswer) -> Vec<String> {
    let (view, mut problems) = (&answer.view, Vec::new());
    let cards = [("management", Some(&view.node.mac)), ("external", view.node.external_mac.as_ref())];
    for (network, mac) in cards {
        let Some(mac) = mac else { continue };
        let mtu = view.network.get(network).and_then(|n| n.mtu);
        if let Err(e) = interface(network, mac, mtu) {
            problems.push(format!("network {network}: {e:#}"));
        }
    }
    problems
}

fn interface(network: &str, mac: &str, mtu: Option<u32>) -> Result<()> {
    let parsed: crate::site::Mac = mac.parse().map_err(|e: String| anyhow!(e))?;
    let Some(name) = netdev::by_mac(parsed.0)? else { return Err(anyhow!("no card has MAC {mac}")) };
    let interfaces = netdev::Interfaces::open()?;
    if let Some(mtu) = mtu {
        interfaces.set_mtu(&name, mtu)?;
    }
    if network != "management" {
        interfaces.up(&name)?;
    }
    Ok(())
}

/// One file a secret, for this system's scripts only. A secret that it may have and the site does
/// not hold is an error here, not a riddle later.
fn write_secrets(system: &System, secrets: &BTreeMap<String, String>) -> Result<()> {
    let dir = make_secrets_dir(system)?;
    for name in &system.secrets {
        let secret =
            secrets.get(name).ok_or_else(|| anyhow!("server sent no secret {name} of system {}", system.name))?;
        if !settings::is_secret_name(name) {
            return Err(anyhow!("secret name {name:?} is not a file name"));
        }
        files::write_atomic(&dir.join(name), secret.as_bytes(), 0o600)?;
    }
    Ok(())
}

fn make_secrets_dir(system: &System) -> Result<PathBuf> {
    let dir = secrets_dir(&system.name);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Beside the secrets, a file a name: the key, the certificate, who signs those of that name. Written whole,
/// so that they always belong together; a renewed one is followed by the system's own health.
pub fn certificates(role: &RoleFile, registration: &Registration) -> Result<()> {
    for system in &role.systems {
        for name in &system.certificates {
            let (key, peer) = (registration.peer_keys.get(name), registration.answer.certificates.get(name));
            let (Some(key), Some(peer)) = (key, peer) else {
                return Err(anyhow!("server sent no certificate {name} of system {}", system.name));
            };
            let path = make_secrets_dir(system)?.join(format!("{name}.pem"));
            let text = [key, &peer.certificate, &peer.authority].map(|pem| pem.trim().to_string() + "\n").concat();
            files::write_atomic(&path, text.as_bytes(), 0o600)?;
        }
    }
    Ok(())
}

/// Renders one template with the secrets of its system; `true` if the result is new.
fn render_one(role: &RoleFile, template: &Template, answer: &RegisterAnswer) -> Result<bool> {
    let target = settings::target(&template.path).map_err(|e| anyhow!(e))?;
    let source = Path::new(&template.path);
    let meta = fs::metadata(source).with_context(|| format!("reading template {}", template.path))?;
    let text = String::from_utf8(files::read_bounded(source, TEMPLATE_MAX_BYTES)?)
        .with_context(|| format!("reading template {}", template.path))?;
    let owner = role.systems.iter().find(|s| Some(&s.name) == template.system.as_ref());
    let may = |name: &String| owner.is_some_and(|s| s.secrets.contains(name));
    let secrets = answer.secrets.iter().filter(|(n, _)| may(n)).map(|(n, s)| (n.clone(), s.clone())).collect();
    let rendered = render(&template.path, &text, &answer.view, &secrets).map_err(|e| anyhow!(e))?;
    write_changed(Path::new(target), rendered.as_bytes(), meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// Writes a file whole with its owner and mode, unless it is there just so; `true` if written.
fn write_changed(path: &Path, bytes: &[u8], uid: u32, gid: u32, mode: u32) -> Result<bool> {
    let writing = || format!("writing {}", path.display());
    if let Ok(meta) = fs::symlink_metadata(path) {
        let same = meta.is_file() && (meta.uid(), meta.gid(), meta.mode() & 0o7777) == (uid, gid, mode);
        if same && fs::read(path).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
    }
    let dir = path.parent().context("file has no folder")?;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut file = tempfile::Builder::new().prefix(".kiln-tmp-").tempfile_in(dir).with_context(writing)?;
    std::os::unix::fs::fchown(file.as_file(), Some(uid), Some(gid)).with_context(writing)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).with_context(writing)?;
    file.write_all(bytes).with_context(writing)?;
    file.persist(path).with_context(writing)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_its_mode_and_is_written_only_when_something_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/file");
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        assert!(write_changed(&path, b"one", uid, gid, 0o640).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(!write_changed(&path, b"one", uid, gid, 0o640).unwrap());
        assert!(write_changed(&path, b"one", uid, gid, 0o600).unwrap());
        assert!(write_changed(&path, b"two", uid, gid, 0o600).unwrap());
        // A symlink is replaced, not written through.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(write_changed(&link, b"three", uid, gid, 0o600).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
