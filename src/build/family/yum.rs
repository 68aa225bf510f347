//! CentOS 7: the packages' exact files, installed by the image's own rpm. The first stage is
//! unpacked plainly into a throw-away tree, only so that there is such an rpm; it makes the
//! database and installs the stage anew into the real root. So the database is in the image's own
//! format (rpm 4.11: Berkeley DB, which Debian's rpm cannot write) and the host's rpm writes none.
//!
//! Nothing is started: no init runs in the tree, there is no bus, and what a scriptlet starts all
//! the same dies with rpm, whose process namespace it shares. What would cost a bake for nothing
//! (dracut: kiln makes its own initramfs) is shadowed by `run/kiln` in the scriptlets' PATH, and
//! covered where it lies while the kernel, which comes last, is installed.

use super::{LINES_SHOWN, PACKAGES, Stage, are_locked, pin_users, succeeded};
use crate::build::chroot::{Chroot, INSTALL_TIMEOUT, Mounted};
use crate::recipe::lock::LockedPackage;
use crate::repo::fetch;
use crate::repo::rpm::query;
use crate::sys::command;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where the throw-away tree sees the real root.
const TARGET: &str = "run/target";
/// Programs that scriptlets find before the distribution's; `run` is a tmpfs of the build.
const SHADOWS: &str = "run/kiln";
const SHADOWED: [&str; 4] = ["dracut", "mkinitrd", "service", "udevadm"];
/// The package database, below the root.
const DATABASE: &str = "var/lib/rpm";
/// They own what everything else stands on; without a scriptlet that needs a program.
const GROUND: [&str; 2] = ["setup", "filesystem"];
/// el7's new-kernel-pkg has a PATH of its own.
const COVERED: [&str; 4] = ["usr/sbin/dracut", "usr/bin/dracut", "usr/sbin/mkinitrd", "usr/bin/mkinitrd"];
/// Its scriptlets call the covered ones.
const KERNEL: &str = "kernel";
/// Large, and no part of what rpm needs to run.
const NOT_UNPACKED: [&str; 2] = [KERNEL, "linux-firmware"];
/// Below them something of the build is mounted.
const MOUNTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
const QUERY_TIMEOUT: Duration = Duration::from_secs(600);

/// Installs the stage into `root`. Afterwards the tree's package list is exactly the lock's.
pub fn install(root: &Path, stage: &Stage, say: &dyn Fn(&str)) -> Result<()> {
    if stage.earlier.is_empty() {
        first(root, stage, say)?
    } else {
        later(root, stage, say)?
    }
    say("verifying packages");
    let chroot = Chroot::new(root, stage.epoch)?;
    check_installed(&chroot, stage)?;
    check_files(&chroot)?;
    drop(chroot);
    settle_database(root).context("settling the package database")
}

/// By an rpm outside of the root.
fn first(root: &Path, stage: &Stage, say: &dyn Fn(&str)) -> Result<()> {
    for name in GROUND.iter().chain(&["rpm"]) {
        if !stage.packages.iter().any(|p| p.name == *name) {
            bail!(
                "{name} is not among the locked packages of the first stage: add it to the recipe's base \
                 (the image's package database is written by the image's own rpm)"
            );
        }
    }
    say("unpacking a throw-away tree");
    let tools = stage.scratch.join("tools");
    prepare(&tools)?;
    for package in stage.packages.iter().filter(|p| !NOT_UNPACKED.contains(&p.name.as_str())) {
        unpack(&fetch::place(stage.cache, &package.sha256), &tools)
            .with_context(|| format!("unpacking {}", package.name))?;
    }
    prepare_mount_points(root)?;
    let chroot = Chroot::new(&tools, stage.epoch)?;
    // Where its libraries lie is in a cache that only a scriptlet makes.
    chroot.run(&["ldconfig"]).context("preparing the throw-away tree")?;
    let _packages = chroot.bind(&stage.cache.join("packages/sha256"), PACKAGES)?;
    let (ground, rest): (Vec<&LockedPackage>, Vec<&LockedPackage>) =
        stage.packages.iter().partition(|p| GROUND.contains(&p.name.as_str()));
    {
        // Before anything is mounted in the root: `filesystem` owns the places.
        let _target = chroot.bind_tree(root, TARGET)?;
        let target = format!("/{TARGET}");
        rpm(chroot.inside(), Some(&target), &["--initdb"]).context("making the package database")?;
        // No dependency is left open in the end: rpm -Va looks. What is put off is about labels.
        let early = ["--nodeps", "--noposttrans"];
        rpm_install(chroot.inside(), Some(&target), &early, &ground)?;
    }
    pin_users(root, stage)?;
    say("installing packages");
    let real = Chroot::new(root, stage.epoch)?;
    shadow(&real)?;
    let target = format!("/{TARGET}");
    let (last, rest): (Vec<&LockedPackage>, Vec<&LockedPackage>) = rest.iter().partition(|p| p.name == KERNEL);
    for packages in [rest, last] {
        let _covers = cover(&real)?;
        // After the covers, which it then shows, too.
        let _target = chroot.bind_tree(root, TARGET)?;
        rpm_install(chroot.inside_for(&format!("{target}/proc")), Some(&target), &[], &packages)?;
    }
    Ok(())
}

/// By the root's own rpm.
fn later(root: &Path, stage: &Stage, say: &dyn Fn(&str)) -> Result<()> {
    say("installing packages");
    lift(&root.join(DATABASE))?;
    let chroot = Chroot::new(root, stage.epoch)?;
    let _packages = chroot.bind(&stage.cache.join("packages/sha256"), PACKAGES)?;
    shadow(&chroot)?;
    let _covers = cover(&chroot)?;
    rpm_install(chroot.inside(), None, &[], stage.packages)
}

/// The merged /usr that el7's `filesystem` brings.
fn prepare(tools: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let folder = tools.join("usr").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        symlink(format!("usr/{name}"), tools.join(name)).with_context(|| format!("linking /{name}"))?;
    }
    Ok(())
}

/// `rpm2cpio FILE | cpio --extract`: reads a file, no database.
fn unpack(file: &Path, into: &Path) -> Result<()> {
    let mut rpm = Command::new("rpm2cpio");
    rpm.arg(file).env("HOME", into).stdin(Stdio::null()).stdout(Stdio::piped());
    command::die_with_parent(&mut rpm);
    let mut rpm = rpm.spawn().context("starting rpm2cpio (Debian: apt-get install rpm2cpio)")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--extract", "--make-directories", "--unconditional", "--preserve-modification-time"]);
    cpio.args(["--no-absolute-filenames", "--quiet"]).current_dir(into);
    cpio.stdin(rpm.stdout.take().map_or_else(Stdio::null, Stdio::from));
    command::die_with_parent(&mut cpio);
    let status = cpio.status().context("starting cpio (Debian: apt-get install cpio)")?;
    let rpm = rpm.wait().context("waiting for rpm2cpio")?;
    if status.success() && rpm.success() { Ok(()) } else { bail!("rpm2cpio: {rpm}, cpio: {status}") }
}

/// What is mounted over later has its own mode below.
fn prepare_mount_points(root: &Path) -> Result<()> {
    for name in MOUNTS {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        let mode = if name == "tmp" { 0o1777 } else { 0o755 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", path.display()))?;
    }
    Ok(())
}

fn shadow(chroot: &Chroot) -> Result<()> {
    let folder = chroot.root().join(SHADOWS);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for name in SHADOWED {
        let file = folder.join(name);
        fs::write(&file, "#!/bin/sh\nexit 0\n").with_context(|| format!("writing {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context("making a program executable")?;
    }
    Ok(())
}

fn cover(chroot: &Chroot) -> Result<Vec<Mounted>> {
    let real = |at: &&&str| fs::symlink_metadata(chroot.root().join(at)).is_ok_and(|m| m.is_file());
    COVERED.iter().filter(real).map(|at| chroot.cover(&format!("{SHADOWS}/{}", SHADOWED[0]), at)).collect()
}

fn rpm(mut line: Command, root: Option<&str>, arguments: &[&str]) -> Result<command::Output> {
    // el7's glibc knows no C.UTF-8.
    line.env("LC_ALL", "C").arg("rpm");
    if let Some(root) = root {
        line.args(["--root", root]);
    }
    line.args(arguments);
    let output = command::run(&mut line, b"", INSTALL_TIMEOUT)?;
    succeeded(&output, &format!("rpm {}", arguments.first().copied().unwrap_or_default()))?;
    Ok(output)
}

/// These very files; rpm orders them. A scriptlet that fails fails the bake where rpm says so.
fn rpm_install(line: Command, root: Option<&str>, options: &[&str], packages: &[&LockedPackage]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let path = format!("_install_script_path /{SHADOWS}:/sbin:/bin:/usr/sbin:/usr/bin");
    // Who signed them was looked at when they came; their digests are the lock's.
    let mut arguments: Vec<String> =
        ["--install", "--nosignature", "--define", &path].iter().chain(options).map(|o| o.to_string()).collect();
    arguments.extend(packages.iter().map(|p| format!("/{PACKAGES}/{}", p.sha256)));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = rpm(line, root, &arguments).context("installing packages")?;
    // rpm ends well although a %post failed.
    let said = String::from_utf8_lossy(&output.stderr);
    let failed: Vec<&str> = said.lines().filter(|l| l.contains("scriptlet failed")).collect();
    if !failed.is_empty() {
        bail!("installing packages: {}\n{}", failed.join("; "), said.trim());
    }
    Ok(())
}

/// The tree's package list must be the lock's: nothing more, nothing less.
fn check_installed(chroot: &Chroot, stage: &Stage) -> Result<()> {
    let output = rpm(chroot.inside(), None, &["-qa", "--queryformat", query::FORMAT])?;
    let found = query::installed(&output.text());
    are_locked(&found, stage)
}

/// Every file is as its package has it, except what scriptlets may write.
fn check_files(chroot: &Chroot) -> Result<()> {
    let mut line = chroot.inside();
    line.env("LC_ALL", "C").args(["rpm", "-Va"]);
    // Its status only says that there are differences.
    let output = command::run(&mut line, b"", QUERY_TIMEOUT)?;
    let text = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
    let told = query::unexplained(&text, &MOUNTS);
    if told.is_empty() && !output.timed_out {
        return Ok(());
    }
    let mut lines = Vec::new();
    for line in told.iter().take(LINES_SHOWN) {
        let owner = line.find(" /").map(|at| line[at..].trim().to_string()).and_then(|path| {
            let output = rpm(chroot.inside(), None, &["-qf", "--queryformat", "%{NAME} ", &path]).ok()?;
            Some(output.text().trim().to_string())
        });
        lines.push(format!("{}: {line}", owner.unwrap_or_else(|| "?".into())));
    }
    bail!("rpm -Va finds {} difference(s) that nothing explains:\n{}", told.len(), lines.join("\n"))
}

/// Copies the database up from the layers below: Berkeley DB opens a file twice, once to read, and
/// an overlay would show it the old one.
fn lift(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_file()) {
            let open = fs::File::options().append(true).open(entry.path());
            open.with_context(|| format!("opening {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Leaves only what is the same in every bake. SQLite: no journal, no free pages. Berkeley DB keeps
/// times and random file ids that cannot be taken out here; see docs/recipes.md.
fn settle_database(root: &Path) -> Result<()> {
    let file = root.join(DATABASE).join("rpmdb.sqlite");
    if !file.exists() {
        return Ok(());
    }
    let database = rusqlite::Connection::open(&file).with_context(|| format!("opening {}", file.display()))?;
    database.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    database.execute_batch("VACUUM")?;
    Ok(())
}
