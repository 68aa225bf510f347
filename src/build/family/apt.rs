//! Debian: packages from the cache, ordered by the host's apt, installed by the tree's own dpkg.
//! The archive's essential packages are unpacked first, so that there is a dpkg to run.

use super::{PACKAGES, Stage, are_locked, pin_users, succeeded};
use crate::build::chroot::{Chroot, HOSTNAME};
use crate::recipe::lock::LockedPackage;
use crate::repo::apt::Apt;
use crate::repo::{apt, deb822, fetch, packages};
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CONTROL_TIMEOUT: Duration = Duration::from_secs(120);
/// dpkg's status of a whole node is some 2 MB.
const STATUS_MAX_BYTES: u64 = 64 << 20;
/// Where apt's repository of these packages lies, reached by the same relative links from the tree and from outside.
const APT: &str = "run/apt";

/// A package whose own scripts fail by chance when they use it as it is: (its file, what to replace, by what).
/// Done when it is unpacked and before anything is configured; the image keeps the change.
const MENDED: (&str, &str, &str) = (
    // The dashboard's scripts compress style sheets in four threads with a parser that bears only one
    // (django-compressor 4.0 with pyScss in python): three of seven bakes failed.
    "/usr/lib/python3/dist-packages/compressor/management/commands/compress.py",
    "max_workers=4",
    "max_workers=1",
);

/// Installs the stage into `root`. Afterwards the tree's package list is exactly the lock's.
pub fn install(root: &Path, stage: &Stage, say: &dyn Fn(&str)) -> Result<()> {
    let controls = controls(stage)?;
    let mut essential = Vec::new();
    if stage.earlier.is_empty() {
        prepare(root)?;
        say("unpacking essential packages");
        essential = self::essential(stage, &controls)?;
        for package in &essential {
            unpack(&fetch::place(stage.cache, &package.sha256), root)
                .with_context(|| format!("unpacking {}", package.name))?;
        }
    }
    let chroot = Chroot::new(root, stage.epoch)?;
    let _packages = chroot.bind(&stage.cache.join("packages/sha256"), PACKAGES)?;
    let policy = root.join("usr/sbin/policy-rc.d");
    forbid_services(&policy)?;
    let hosts = know_host(root)?;
    if stage.earlier.is_empty() {
        say("configuring essential packages");
        bootstrap(&chroot, stage, &essential)?;
    }
    say("installing packages");
    install_rest(&chroot, stage, &controls)?;
    fs::remove_file(&policy).with_context(|| format!("removing {}", policy.display()))?;
    forget_host(root, hosts)?;
    check_installed(root, stage)
}

/// Each package's control paragraph, by sha256; read once and kept in the cache.
fn controls(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let folder = stage.cache.join("packages/control");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let found = std::sync::Mutex::new(BTreeMap::new());
    fetch::parallel(stage.packages, |p| {
        let text = control(p, stage, &folder)?;
        found.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?.insert(p.sha256.clone(), text);
        Ok(())
    })?;
    found.into_inner().map_err(|_| anyhow::anyhow!("a worker panicked"))
}

fn control(p: &LockedPackage, stage: &Stage, folder: &Path) -> Result<String> {
    let kept = folder.join(&p.sha256);
    let is_its_own = |text: &str| {
        let stanzas = deb822::stanzas(text);
        let says = |key| stanzas.first().and_then(|s| s.get(key));
        (says("Package"), says("Version"), says("Architecture"))
            == (Some(p.name.as_str()), Some(p.version.as_str()), Some(p.arch.as_str()))
    };
    if let Some(text) = fs::read_to_string(&kept).ok().filter(|text| is_its_own(text)) {
        return Ok(text);
    }
    let mut line = Command::new("dpkg-deb");
    line.arg("--field").arg(fetch::place(stage.cache, &p.sha256));
    let text =
        command::run_ok(&mut line, b"", CONTROL_TIMEOUT).with_context(|| format!("reading package {}", p.name))?.text();
    if !is_its_own(&text) {
        bail!("the package file of {} {} {} says that it is another:\n{text}", p.name, p.version, p.arch);
    }
    // Not synced: what a power cut leaves is not its own and read again.
    let temporary = stage.scratch.join(format!("control-{}", p.sha256));
    fs::write(&temporary, &text).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, &kept).with_context(|| format!("writing {}", kept.display()))?;
    Ok(text)
}

/// The folders and links that must be there before the first package: merged /usr and dpkg's files.
fn prepare(root: &Path) -> Result<()> {
    for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"] {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name)).with_context(|| format!("linking /{name}"))?;
    }
    for file in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        fs::write(root.join(file), "").with_context(|| format!("creating {file}"))?;
    }
    Ok(())
}

/// Installs the unpacked essential packages properly: accounts first, then the pinned users, then
/// the rest.
fn bootstrap(chroot: &Chroot, stage: &Stage, essential: &[&LockedPackage]) -> Result<()> {
    let inside = |p: &&LockedPackage| format!("/{PACKAGES}/{}", p.sha256);
    let dpkg = |packages: Vec<String>| {
        let mut arguments =
            vec!["dpkg", "--install", "--force-depends", "--force-unsafe-io", "--force-confold", "--force-confdef"];
        arguments.extend(packages.iter().map(String::as_str));
        chroot.run(&arguments).context("installing essential packages")
    };
    let first: Vec<&LockedPackage> = essential.iter().filter(|p| p.name == "base-passwd").copied().collect();
    if first.is_empty() {
        bail!("base-passwd is not among the locked packages: this is no Debian to start from");
    }
    dpkg(first.iter().map(inside).collect())?;
    pin_users(chroot.root(), stage)?;
    dpkg(essential.iter().filter(|p| p.name != "base-passwd").map(inside).collect())?;
    Ok(())
}

/// The essential packages of this stage and what they need, in apt's order.
fn essential<'a>(stage: &Stage<'a>, controls: &BTreeMap<String, String>) -> Result<Vec<&'a LockedPackage>> {
    let apt = flat(&stage.scratch.join("essential"), stage.packages, controls)?;
    let is_essential = |p: &&&LockedPackage| {
        let stanzas = deb822::stanzas(controls.get(&p.sha256).map(String::as_str).unwrap_or_default());
        stanzas.first().and_then(|s| s.get("Essential")) == Some("yes")
    };
    let names: Vec<String> = stage.packages.iter().filter(is_essential).map(|p| p.name.clone()).collect();
    let solved = apt.solve(&names).context("ordering essential packages")?;
    let find = |name: &String| stage.packages.iter().find(|p| p.name == *name).copied();
    solved.iter().map(|(name, _, _)| find(name).with_context(|| format!("finding {name} in the lock"))).collect()
}

/// An apt that knows exactly these packages; their files lie in its repository as `<sha256>.deb`.
fn flat(dir: &Path, packages: &[&LockedPackage], controls: &BTreeMap<String, String>) -> Result<Apt> {
    let mut index = String::new();
    for p in packages {
        let control = controls.get(&p.sha256).map(|c| c.trim_end()).unwrap_or_default();
        index += &format!("{control}\nFilename: {0}.deb\nSize: {1}\nSHA256: {0}\n\n", p.sha256, p.size);
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    apt::flat(dir, &index)
}

/// `dpkg-deb --fsys-tarfile FILE | tar --extract`.
fn unpack(file: &Path, root: &Path) -> Result<()> {
    let mut deb = Command::new("dpkg-deb");
    deb.arg("--fsys-tarfile").arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
    command::die_with_parent(&mut deb);
    let mut deb = deb.spawn().context("starting dpkg-deb")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--preserve-permissions", "--numeric-owner", "--keep-directory-symlink", "--directory"]);
    tar.arg(root).stdin(deb.stdout.take().map_or_else(Stdio::null, Stdio::from));
    command::die_with_parent(&mut tar);
    let status = tar.status().context("starting tar")?;
    let deb = deb.wait().context("waiting for dpkg-deb")?;
    if status.success() && deb.success() { Ok(()) } else { bail!("dpkg-deb: {deb}, tar: {status}") }
}

/// invoke-rc.d and its kin start nothing while this file stands.
fn forbid_services(policy: &Path) -> Result<()> {
    fs::write(policy, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {}", policy.display()))?;
    fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).context("making policy-rc.d executable")
}

const HOSTS: &str = "etc/hosts";

/// Scripts may ask for this machine's address (nova-common's fails without one): it is always the same. Returns what
/// the file was before.
fn know_host(root: &Path) -> Result<Option<Vec<u8>>> {
    let path = root.join(HOSTS);
    let before = path.exists().then(|| fs::read(&path)).transpose().context("reading the tree's hosts")?;
    let mut text = before.clone().unwrap_or_default();
    text.extend_from_slice(format!("127.0.0.1 localhost {HOSTNAME}\n").as_bytes());
    fs::write(&path, text).context("writing the tree's hosts")?;
    Ok(before)
}

fn forget_host(root: &Path, before: Option<Vec<u8>>) -> Result<()> {
    let path = root.join(HOSTS);
    match before {
        Some(text) => fs::write(&path, text),
        None => fs::remove_file(&path),
    }
    .context("putting the tree's hosts back")
}

/// Everything of the stage, by exact version; apt orders, the tree's dpkg installs.
fn install_rest(chroot: &Chroot, stage: &Stage, controls: &BTreeMap<String, String>) -> Result<()> {
    let apt = flat(&chroot.root().join(APT), stage.packages, controls)?;
    for p in stage.packages {
        let link = chroot.root().join(APT).join("flat").join(format!("{}.deb", p.sha256));
        symlink(format!("../../packages/{}", p.sha256), &link)
            .with_context(|| format!("linking package {}", p.name))?;
    }
    let mut line = chroot.outside();
    line.arg("apt-get");
    let root = chroot.root().display().to_string();
    let (file, from, to) = MENDED;
    let mend = format!("--post-invoke=[ ! -e {file} ] || sed -i s/{from}/{to}/ {file}");
    let status = chroot.root().join("var/lib/dpkg/status").display().to_string();
    apt.arguments(
        &mut line,
        &[
            ("Dir::State::status", status.as_str()),
            ("DPkg::Chroot-Directory", root.as_str()),
            ("DPkg::Use-Pty", "false"),
            ("DPkg::Options::", "--force-unsafe-io"),
            ("DPkg::Options::", "--force-confold"),
            ("DPkg::Options::", "--force-confdef"),
            ("DPkg::Options::", mend.as_str()),
            ("APT::Get::AllowUnauthenticated", "true"),
            ("APT::Get::Remove", "false"),
            ("APT::Immediate-Configure", "false"),
        ],
    );
    line.arg("install");
    line.args(stage.packages.iter().map(|p| format!("{}={}", p.name, p.version)));
    let output = command::run(&mut line, b"", crate::build::chroot::INSTALL_TIMEOUT)?;
    succeeded(&output, "apt-get install")
}

/// The tree's package list must be the lock's: nothing more, nothing less, nothing half installed.
fn check_installed(root: &Path, stage: &Stage) -> Result<()> {
    let status = root.join("var/lib/dpkg/status");
    let text = String::from_utf8(files::read_bounded(&status, STATUS_MAX_BYTES)?)?;
    let found: BTreeSet<String> = packages::installed(&text)
        .into_iter()
        .map(|p| {
            format!(
                "{} {} {}{}",
                p.name,
                p.version,
                p.arch,
                if p.status == "install ok installed" { "" } else { " (not whole)" }
            )
        })
        .collect();
    are_locked(&found, stage)
}
