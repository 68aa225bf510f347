//! Puts verified layers together: loop devices, squashfs mounts, one overlay with its writable
//! part in memory; and the moves of mounts at the end of the initramfs.

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The role's root while the initramfs still runs.
pub const NEWROOT: &str = "/newroot";
/// Layers, their mounts and the writable part live below it; it goes on as the role's `/run/kiln`.
pub const RUN: &str = "/run/kiln";

/// Mounts a file system; the folder is made if it is missing.
pub fn mount_at(source: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("making {}", target.display()))?;
    mount(Some(source), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mounting {kind} {source} at {} ({options})", target.display()))
}

/// A tmpfs of at most `bytes`.
pub fn memory(target: &Path, bytes: u64, mode: u32) -> Result<()> {
    let options = format!("size={}k,mode={mode:o}", bytes.div_ceil(1024));
    mount_at("tmpfs", target, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &options)
}

/// The same folder at a second place.
pub fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

/// Moves a mount.
pub fn shift(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .with_context(|| format!("moving {} to {}", from.display(), to.display()))
}

/// Unmounts everything at and below `top`, the last mount first. What will not go is detached.
pub fn unmount_below(top: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts.lines().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from);
    let below: Vec<PathBuf> = targets.filter(|t| t.starts_with(top)).collect();
    for target in below.iter().rev() {
        if umount2(target, MntFlags::empty()).is_err() {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
}

/// Mounts `layers` (lowest first) and lays an overlay over them at [`NEWROOT`], whose writable
/// part takes at most `upper_bytes` of memory.
pub fn assemble(layers: &[PathBuf], upper_bytes: u64) -> Result<()> {
    let mut lower = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let target = Path::new(RUN).join(format!("layer{i}"));
        squashfs(layer, &target)?;
        lower.push(target.display().to_string());
    }
    lower.reverse(); // overlayfs wants the topmost first
    let writable = Path::new(RUN).join("writable");
    // The role's root is in here: devices and setuid must work as they do on any root.
    mount_at("tmpfs", &writable, "tmpfs", MsFlags::empty(), &format!("size={}k,mode=755", upper_bytes / 1024))?;
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    mount_at("overlay", Path::new(NEWROOT), "overlay", MsFlags::empty(), &options)
}

/// Takes apart what [`assemble`] and its users have mounted.
pub fn disassemble() {
    unmount_below(Path::new(NEWROOT));
    unmount_below(&Path::new(RUN).join("writable"));
    for i in (0..).map(|i| Path::new(RUN).join(format!("layer{i}"))).take_while(|p| p.exists()) {
        unmount_below(&i);
    }
}

/// Mounts a squashfs file through a read-only loop device that goes away with the mount.
pub fn squashfs(file: &Path, target: &Path) -> Result<()> {
    let backing = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let (device, _held) = attach(&backing).with_context(|| format!("attaching {}", file.display()))?;
    mount_at(&device, target, "squashfs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")
}

/// linux/loop.h
const LOOP_SET_FD: u64 = 0x4C00;
const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_SET_STATUS64: u64 = 0x4C04;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Another program may take the free device between question and answer.
const ATTACH_TRIES: usize = 64;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// A loop device over `backing`; it is cleared when the returned handle and all mounts are gone.
/// The old pair of ioctls: LOOP_CONFIGURE exists from 5.8 on only.
fn attach(backing: &File) -> Result<(String, File)> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .context("opening /dev/loop-control (is the loop module in the initramfs?)")?;
    for _ in 0..ATTACH_TRIES {
        let number = ioctl(&control, LOOP_CTL_GET_FREE, 0).context("asking for a free loop device")?;
        let path = format!("/dev/loop{number}");
        let device = File::open(&path).with_context(|| format!("opening {path}"))?;
        match ioctl(&device, LOOP_SET_FD, backing.as_raw_fd() as usize) {
            Err(nix::errno::Errno::EBUSY) => continue,
            result => result.with_context(|| format!("setting the file of {path}"))?,
        };
        // SAFETY: all zero is a valid status.
        let mut info: LoopInfo64 = unsafe { std::mem::zeroed() };
        info.flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
        if let Err(e) = ioctl(&device, LOOP_SET_STATUS64, &raw const info as usize) {
            let _ = ioctl(&device, LOOP_CLR_FD, 0);
            return Err(e).with_context(|| format!("setting {path} up"));
        }
        return Ok((path, device));
    }
    anyhow::bail!("no loop device stayed free in {ATTACH_TRIES} tries")
}

fn ioctl(file: &File, code: u64, argument: usize) -> nix::Result<i32> {
    // SAFETY: callers pass what linux/loop.h asks for: a number, a descriptor or a LoopInfo64.
    nix::errno::Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), code as _, argument) })
}

/// Removes the initramfs' own files: their memory is not given back otherwise. Other file systems
/// are not entered.
pub fn empty_initramfs() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let kind = nix::sys::statfs::statfs("/").context("asking what the root is")?.filesystem_type();
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    if kind != nix::sys::statfs::TMPFS_MAGIC && kind.0 as i64 != RAMFS_MAGIC {
        return Ok(()); // not an initramfs: never remove anything
    }
    let device = fs::symlink_metadata("/")?.dev();
    remove_on(Path::new("/"), device);
    Ok(())
}

fn remove_on(dir: &Path, device: u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            remove_on(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}
