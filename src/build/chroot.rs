//! The place where packages are installed: mounts that no other process sees and that vanish with
//! the build however it ends, and commands that run in the tree without network, with a clean
//! environment and processes of their own.

use super::user_namespace;
use crate::sys::{command, files};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A stage's maintainer scripts end within this, even in emulation.
pub const INSTALL_TIMEOUT: Duration = Duration::from_secs(3 * 3600);
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// A layer of some GiB, unpacked to a slow disk.
const UNPACK_TIMEOUT: Duration = Duration::from_secs(3600);
/// Old package tools walk all possible descriptors: a huge limit makes them crawl.
const OPEN_FILES_MAX: u64 = 1024;
/// What scripts see as the machine's name.
pub const HOSTNAME: &str = "kiln";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Takes this process (and what it starts from now on) out of the host's mounts and name, and fixes
/// what a caller's shell may have set; an ordinary user becomes root of a user namespace. Call it
/// once, before any thread exists and before anything is done: its errors are the machine's.
pub fn isolate() -> Result<()> {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    if nix::unistd::geteuid().is_root() {
        user_namespace::check_ids()?;
        nix::sched::unshare(namespaces).context("leaving the host's mounts (root needs CAP_SYS_ADMIN for it)")?;
    } else {
        user_namespace::enter(namespaces)?;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("making mounts private")?;
    nix::unistd::sethostname(HOSTNAME).context("setting the builds' hostname")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let limit = OPEN_FILES_MAX.min(hard);
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit)
        .context("limiting open files")
}

/// A work folder below `<cache>/work` that is locked while its build lives and removed at its end,
/// or, after a kill, by the next build.
pub struct Work {
    pub path: PathBuf,
    _lock: nix::fcntl::Flock<fs::File>,
}

impl Work {
    pub fn new(cache: &Path) -> Result<Work> {
        let all = cache.join("work");
        fs::create_dir_all(&all).with_context(|| format!("creating {}", all.display()))?;
        let _gate = files::lock(&all.join(".lock"))?;
        for entry in fs::read_dir(&all).context("listing work folders")?.flatten() {
            if entry.path().is_dir() && try_lock(&entry.path())?.is_some() {
                files::remove_tree(&entry.path())?;
            }
        }
        let path = tempfile::Builder::new().prefix("build-").tempdir_in(&all)?.keep();
        let lock = try_lock(&path)?.with_context(|| format!("locking {}", path.display()))?;
        Ok(Work { path, _lock: lock })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = files::remove_tree(&self.path); // the next build would do it
    }
}

/// The lock on a work folder, or `None` while its build lives.
fn try_lock(path: &Path) -> Result<Option<nix::fcntl::Flock<fs::File>>> {
    let dir = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    match nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}

/// `kiln build --verify` lets the second bake run under libfaketime, by the two variables that
/// `faketime` sets, too. What programs of the tree need of it.
const CLOCK: [&str; 3] = ["FAKETIME", "NO_FAKE_STAT", "FAKETIME_DONT_FAKE_MONOTONIC"];
/// Where the tree has the library; below `run`, a tmpfs of the build.
const CLOCK_LIBRARY: &str = "run/libfaketime.so.1";

/// The library that shifts this process's clock.
pub fn clock_library() -> Option<PathBuf> {
    std::env::var_os(CLOCK[0])?;
    let preloaded = std::env::var("LD_PRELOAD").ok()?;
    let is_clock = |path: &&str| path.rsplit('/').next().is_some_and(|name| name.starts_with("libfaketime"));
    preloaded.split([':', ' ']).find(is_clock).map(PathBuf::from)
}

/// Something mounted, unmounted at its end. (What is only unpacked is no mount: the work folder's end
/// takes it.)
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH); // the namespace's end does it too
    }
}

fn made(path: &Path) -> Result<&Path> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(path)
}

/// Shows the tree of a squashfs file at a folder: mounted read-only, or, where no squashfs can be
/// mounted, unpacked (once, if `at` is the same), so that everything has its owner all the same.
pub fn show_layer(file: &Path, at: &Path) -> Result<Mounted> {
    if user_namespace::inside()? {
        unpack(file, at).with_context(|| format!("unpacking {}", file.display()))?;
        return Ok(Mounted(at.to_path_buf()));
    }
    made(at)?;
    let mut line = Command::new("mount");
    line.args(["-t", "squashfs", "-o", "ro,loop"]).arg(file).arg(at);
    command::run_ok(&mut line, b"", MOUNT_TIMEOUT).with_context(|| format!("mounting {}", file.display()))?;
    Ok(Mounted(at.to_path_buf()))
}

/// Strictly: what cannot be set, such as an attribute, is an error.
fn unpack(file: &Path, at: &Path) -> Result<()> {
    if at.exists() {
        return Ok(());
    }
    let part = at.with_extension("part");
    files::remove_tree(&part)?;
    at.parent().map(made).transpose()?;
    let mut line = Command::new("unsquashfs");
    line.args(["-no-progress", "-quiet", "-strict-errors", "-dest"]).arg(&part).arg(file);
    command::run_ok(&mut line, b"", UNPACK_TIMEOUT)?;
    fs::rename(&part, at).with_context(|| format!("renaming to {}", at.display()))
}

/// Mounts `lowers` (lowest first) read-only as one tree.
pub fn mount_layers(lowers: &[&Path], scratch: &Path, at: &Path) -> Result<Mounted> {
    let empty = scratch.join("empty");
    made(&empty)?;
    // overlayfs wants at least two lower folders when nothing is written.
    let option = format!("lowerdir={}:{}", stacked(lowers), escaped(&empty));
    mount_overlay(&option, at)
}

/// Mounts `lowers` (lowest first) with what is written going to `upper`. Nothing is ever synced:
/// what a power cut leaves is thrown away anyway.
pub fn mount_writable(lowers: &[&Path], upper: &Path, scratch: &Path, at: &Path) -> Result<Mounted> {
    let (empty, work) = (scratch.join("empty"), scratch.join("overlay-work"));
    made(&empty)?;
    made(&work)?;
    made(upper)?;
    fs::set_permissions(upper, fs::Permissions::from_mode(0o755)).context("setting the root folder's mode")?;
    let lowers = if lowers.is_empty() { escaped(&empty) } else { stacked(lowers) };
    // The options keep the upper folder free of what only this very overlay could read.
    const PLAIN: &str = "redirect_dir=nofollow,index=off,metacopy=off,volatile";
    mount_overlay(&format!("lowerdir={lowers},upperdir={},workdir={},{PLAIN}", escaped(upper), escaped(&work)), at)
}

fn mount_overlay(options: &str, at: &Path) -> Result<Mounted> {
    made(at)?;
    // In a user namespace nobody sees trusted.*: there overlayfs keeps its marks in user.*.
    let marks = if user_namespace::inside()? { ",userxattr" } else { "" };
    let options = format!("{options}{marks}");
    mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mounting an overlay with {options}"))?;
    Ok(Mounted(at.to_path_buf()))
}

/// overlayfs lists the uppermost first.
fn stacked(lowers: &[&Path]) -> String {
    lowers.iter().rev().map(|p| escaped(p)).collect::<Vec<_>>().join(":")
}

/// A path in overlayfs's options.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('\\', r"\\").replace(':', r"\:").replace(',', r"\,")
}

/// Shows a folder at another place, read-only.
pub fn mount_bound(from: &Path, at: &Path) -> Result<Mounted> {
    made(at)?;
    // A user namespace may not take away what the host's mount forbids: so all of it is forbidden.
    let strict = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | strict;
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .and_then(|()| mount(None::<&str>, at, None::<&str>, again, None::<&str>))
        .with_context(|| format!("binding {} to {}", from.display(), at.display()))?;
    Ok(Mounted(at.to_path_buf()))
}

/// Mounts an empty ext4 of its own, kept in one sparse file. It hashes names with a seed of its own,
/// so its folders list in another order than any other's.
pub fn mount_scratch(file: &Path, bytes: u64, at: &Path) -> Result<Mounted> {
    made(at)?;
    let sparse = fs::File::create(file).and_then(|f| f.set_len(bytes));
    sparse.with_context(|| format!("creating {}", file.display()))?;
    let mut line = Command::new("mke2fs");
    // What a power cut leaves is thrown away: no journal.
    line.args(["-q", "-t", "ext4", "-m", "0", "-O", "^has_journal,dir_index", "-E", "lazy_itable_init=1,nodiscard"]);
    command::run_ok(line.arg(file), b"", MOUNT_TIMEOUT)
        .context("making a file system (Debian: apt-get install e2fsprogs)")?;
    let mut line = Command::new("mount");
    line.args(["-t", "ext4", "-o", "loop,noatime,noinit_itable"]).arg(file).arg(at);
    command::run_ok(&mut line, b"", MOUNT_TIMEOUT).with_context(|| format!("mounting {}", file.display()))?;
    Ok(Mounted(at.to_path_buf()))
}

/// Mounts an empty tmpfs over a folder, for this process and its children.
pub fn mount_tmpfs(at: &Path, options: &str) -> Result<Mounted> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options))
        .with_context(|| format!("mounting {}", at.display()))?;
    Ok(Mounted(at.to_path_buf()))
}

/// A tree with what maintainer scripts expect mounted: /dev, /sys, and empty /run and /tmp that
/// leave nothing in the image.
pub struct Chroot {
    root: PathBuf,
    epoch: u64,
    /// Whether programs of the tree see this process's shifted clock; asked once.
    clock: OnceCell<bool>,
    _mounts: Vec<Mounted>,
}

impl Chroot {
    pub fn new(root: &Path, epoch: u64) -> Result<Chroot> {
        let mut mounts = Vec::new();
        for (name, mode) in [("dev", "755"), ("run", "755"), ("tmp", "1777")] {
            let at = root.join(name);
            mounts.push(mount_tmpfs(made(&at)?, &format!("mode={mode}"))?);
        }
        let sys = root.join("sys");
        made(&sys)?;
        made(&root.join("proc"))?;
        // A sysfs shows the network of who mounts it, and who owns no network may mount none: so from
        // an empty one, as the tree's programs have.
        let mut line = Command::new("unshare");
        line.args(["--net", "mount", "-t", "sysfs", "-o", "ro,nosuid,noexec,nodev", "sysfs"]).arg(&sys);
        command::run_ok(&mut line, b"", MOUNT_TIMEOUT).context("mounting /sys of the tree")?;
        mounts.push(Mounted(sys));
        fill_dev(&root.join("dev"))?;
        if let Some(library) = clock_library() {
            let at = root.join(CLOCK_LIBRARY);
            fs::copy(&library, &at).with_context(|| format!("copying {} to {}", library.display(), at.display()))?;
        }
        Ok(Chroot { root: root.to_path_buf(), epoch, clock: OnceCell::new(), _mounts: mounts })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Shows a folder of the host at a path of the tree, read-only, for as long as the answer lives.
    pub fn bind(&self, from: &Path, at: &str) -> Result<Mounted> {
        mount_bound(from, &self.root.join(at))
    }

    /// Shows a tree with all that is mounted in it, to be written to, for as long as the answer lives.
    pub fn bind_tree(&self, from: &Path, at: &str) -> Result<Mounted> {
        let at = self.root.join(at);
        made(&at)?;
        mount(Some(from), &at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .with_context(|| format!("binding {} to {}", from.display(), at.display()))?;
        Ok(Mounted(at))
    }

    /// Shows a file of the tree in the place of another, for as long as the answer lives.
    pub fn cover(&self, with: &str, at: &str) -> Result<Mounted> {
        let (with, at) = (self.root.join(with), self.root.join(at));
        mount(Some(&with), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("covering {}", at.display()))?;
        Ok(Mounted(at))
    }

    /// Runs a program of the tree in the tree.
    pub fn run(&self, arguments: &[&str]) -> Result<command::Output> {
        let mut line = self.inside();
        line.args(arguments);
        command::run_ok(&mut line, b"", INSTALL_TIMEOUT)
    }

    /// A command line to which a program of the tree is appended.
    pub fn inside(&self) -> Command {
        self.bare(Some("/proc"))
    }

    /// The same, with /proc at another place of the tree: where another root is bound.
    pub fn inside_for(&self, proc: &str) -> Command {
        self.bare(Some(proc))
    }

    /// A command line to which a program of the host is appended: it runs outside of the tree, but
    /// with the tree's /proc, without network, and everything that it starts dies with it.
    pub fn outside(&self) -> Command {
        self.bare(None)
    }

    /// `proc`: inside, where /proc is mounted; `None`: outside.
    fn bare(&self, proc: Option<&str>) -> Command {
        let mut line = Command::new("unshare");
        line.args(["--fork", "--kill-child", "--pid", "--net", "--ipc"]);
        if let Some(proc) = proc {
            line.arg("--root").arg(&self.root).arg("--wd=/").arg(format!("--mount-proc={proc}"));
        } else {
            line.arg(format!("--mount-proc={}", self.root.join("proc").display()));
        }
        line.env_clear().env("PATH", PATH).env("HOME", "/root").env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        line.env("DEBIAN_FRONTEND", "noninteractive").env("DEBCONF_NONINTERACTIVE_SEEN", "true");
        line.env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        // The distribution's own initramfs is never used: it is not even made.
        line.env("INITRD", "No").env("SYSTEMD_OFFLINE", "1");
        if self.sees_clock() && clock_library().is_some() {
            line.args(self.clock_arguments());
        }
        line
    }

    /// False where this process's clock is shifted and the tree's glibc cannot load what shifts it.
    pub fn sees_clock(&self) -> bool {
        *self.clock.get_or_init(|| {
            let mut line = Command::new("unshare");
            line.arg("--root").arg(&self.root).args(self.clock_arguments()).arg("true").env_clear().env("PATH", PATH);
            // ld.so only complains about what it cannot load, or ends.
            let loads = |output: command::Output| output.status.success() && output.stderr.is_empty();
            clock_library().is_none() || command::run(&mut line, b"", MOUNT_TIMEOUT).is_ok_and(loads)
        })
    }

    /// By env: only the tree has the library at that place, and `unshare` is the host's.
    fn clock_arguments(&self) -> Vec<String> {
        let set = |name: &&str| std::env::var(name).ok().map(|value| format!("{name}={value}"));
        let preload = format!("LD_PRELOAD=/{CLOCK_LIBRARY}");
        ["env".to_string(), preload].into_iter().chain(CLOCK.iter().filter_map(set)).collect()
    }
}

/// The devices that any program may expect.
fn fill_dev(dev: &Path) -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        let node = dev.join(name);
        match mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor)) {
            // In a user namespace devices are not made; the host's are shown. (Not to root: a script
            // that changes their mode would change the host's.)
            Err(Errno::EPERM) => show_device(name, &node)?,
            made => {
                made.with_context(|| format!("making device {}", node.display()))?;
                fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).context("opening a device to all")?;
            }
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name)).context("linking a device")?;
    }
    for name in ["shm", "pts"] {
        made(&dev.join(name))?;
    }
    Ok(())
}

/// Gone with the tree's /dev.
fn show_device(name: &str, at: &Path) -> Result<()> {
    fs::write(at, "").with_context(|| format!("creating {}", at.display()))?;
    mount(Some(&Path::new("/dev").join(name)), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("showing /dev/{name} to the tree"))
}
