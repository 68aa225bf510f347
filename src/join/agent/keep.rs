//! Keeps what this node needs to boot without the server, once it is ready and in no hurry: layers on
//! the state partition, kernel and initramfs where firmware and boot loader find them.

use crate::image::fetch::{self, Source};
use crate::image::id::Digest;
use crate::image::manifest::Descriptor;
use crate::join::keeping::{self, FREE_MIN_BYTES, MENU_FILE};
use crate::ledger::kept::{self, KEPT_DIR, KEPT_FILE, KEPT_MAX_BYTES, Kept, KeptImage};
use crate::ledger::message::{BootDisk, Handover, LAYERS_DIR};
use crate::sys::clock::growing_pause;
use crate::sys::console::Console;
use crate::sys::{command, files};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Makes the EFI system partition ready and mounts it; in the image (overlay `base`).
const BOOT_DISK: &str = "/usr/lib/kiln/boot-disk";
/// Of an emulated machine that makes its boot loader.
const BOOT_DISK_TIMEOUT: Duration = Duration::from_secs(300);
/// Where it is mounted meanwhile.
const EFI_DIR: &str = "/run/kiln/efi";
const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Keeps this boot's image from a thread of its own, and tries until it is done.
pub fn later(handover: &Handover) {
    let Some(state) = handover.state_dir.clone().filter(|_| !handover.plain) else { return };
    let Some(disk) = handover.boot_disk.clone() else {
        eprintln!("the state disk has no room for boot files: this machine boots from the server only");
        return;
    };
    let handover = handover.clone();
    std::thread::spawn(move || {
        unhurried();
        let console = Console::open();
        let (mut failures, mut said) = (0, String::new());
        while let Err(e) = keep(&handover, Path::new(&state), &disk) {
            let text = format!("keeping image {}, trying again: {e:#}", handover.image.short());
            if text != said {
                console.say(&text);
                said = text;
            }
            failures += 1;
            std::thread::sleep(growing_pause(failures, PAUSE_FIRST, PAUSE_MAX));
        }
        console.say(&format!("image {} is kept: this machine boots without the server", handover.image.short()));
    });
}

/// This thread and what it starts come last for processor and disk.
fn unhurried() {
    const THIS_THREAD: libc::c_long = 0;
    const IOPRIO_WHO_PROCESS: libc::c_long = 1;
    const IOPRIO_IDLE: libc::c_long = 3 << 13;
    // SAFETY: plain numbers. A kernel that refuses leaves things as they are.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, THIS_THREAD as _, 19);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, THIS_THREAD, IOPRIO_IDLE);
    }
}

fn keep(handover: &Handover, state: &Path, disk: &BootDisk) -> Result<()> {
    let source = Source::at(&handover.server);
    let (envelope, image) = source.signed(handover.image)?;
    let folder = state.join(KEPT_DIR);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let before = read(&folder);
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    let new = KeptImage::new(handover, envelope, keeping::arguments(&cmdline, &disk.id));
    let after = keeping::with(&before, new);
    let efi = Efi::open(disk)?;

    let staying = keeping::staying(&before, handover.image);
    if staying != before {
        name(&folder, &efi, &staying)?;
    }
    let wanted = keeping::files(&after).map_err(anyhow::Error::msg)?;
    tidy(&folder, &wanted.state)?;
    tidy(&efi.folder(), &wanted.efi)?;

    let blobs: Vec<&Descriptor> = kept::blobs(&image).collect();
    let boot = [image.kernel(), image.initramfs()];
    let say = &mut |text: &str| eprintln!("keeping the image: {text}");
    fits(&folder, &missing(&folder, &blobs)?, FREE_MIN_BYTES).context("keeping layers on the state disk")?;
    fits(&efi.folder(), &missing(&efi.folder(), &boot)?, 0).context("keeping kernel and initramfs")?;
    for blob in blobs {
        fetch::copy(blob, Path::new(LAYERS_DIR), &folder, "in memory")?;
        source.blob(blob, &folder, say)?;
    }
    source.boot_files(&image, &efi.folder(), say)?;
    for place in [&folder, &efi.folder()] {
        nix::unistd::syncfs(File::open(place)?).with_context(|| format!("syncing {}", place.display()))?;
    }
    // All of it is on the disk before anything names it.
    name(&folder, &efi, &after)
}

/// What is named as kept; a file that cannot be read names nothing.
fn read(folder: &Path) -> Kept {
    let bytes = files::read_bounded(&folder.join(KEPT_FILE), KEPT_MAX_BYTES).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// For the initramfs first: the menu names nothing that it would not find.
fn name(folder: &Path, efi: &Efi, kept: &Kept) -> Result<()> {
    files::write_atomic(&folder.join(KEPT_FILE), &serde_json::to_vec(kept)?, 0o600)?;
    let menu = keeping::menu(kept).map_err(anyhow::Error::msg)?;
    files::write_atomic(&efi.folder().join(MENU_FILE), menu.as_bytes(), 0o600)
}

fn tidy(folder: &Path, wanted: &std::collections::BTreeSet<String>) -> Result<()> {
    let listing = || format!("listing {}", folder.display());
    let entries = fs::read_dir(folder).with_context(listing)?.flatten();
    let found = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    for name in keeping::superfluous(found, wanted) {
        let path = folder.join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Those that are not there; one whose bytes have changed is removed.
fn missing<'a>(folder: &Path, blobs: &[&'a Descriptor]) -> Result<Vec<&'a Descriptor>> {
    let mut missing = Vec::new();
    for blob in blobs {
        let path = folder.join(blob.digest.hex());
        if path.exists() && Digest(files::hash_file(&path)?) != blob.digest {
            eprintln!("{} was kept as something else: it is brought anew", blob.label());
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        if !path.exists() {
            missing.push(*blob);
        }
    }
    Ok(missing)
}

fn fits(folder: &Path, missing: &[&Descriptor], least: u64) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(folder).with_context(|| format!("asking {} for room", folder.display()))?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    keeping::room(free, missing.iter().map(|b| b.size).sum(), least).map_err(anyhow::Error::msg)
}

/// The mounted EFI system partition.
struct Efi;

impl Efi {
    fn open(disk: &BootDisk) -> Result<Efi> {
        let mut line = Command::new(BOOT_DISK);
        line.args([&disk.device, &disk.efi]).arg(EFI_DIR);
        command::run_ok(&mut line, b"", BOOT_DISK_TIMEOUT).context("making the disk bootable")?;
        Ok(Efi)
    }

    fn folder(&self) -> PathBuf {
        Path::new(EFI_DIR).join("kiln")
    }
}

impl Drop for Efi {
    fn drop(&mut self) {
        if let Err(e) = umount2(EFI_DIR, MntFlags::empty()) {
            eprintln!("unmounting {EFI_DIR}: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::MEDIA_LAYER;

    #[test]
    fn what_changed_is_brought_anew_and_what_nobody_needs_goes() {
        let dir = tempfile::tempdir().unwrap();
        let blob = Descriptor::new(MEDIA_LAYER, (Digest::of(b"x"), 1));
        let (from, to) = (dir.path().join("memory"), dir.path().join(blob.digest.hex()));
        fs::write(&from, "x").unwrap();
        fs::write(&to, "x").unwrap();
        assert!(missing(dir.path(), &[&blob]).unwrap().is_empty());
        fs::write(&to, "y").unwrap();
        assert_eq!(missing(dir.path(), &[&blob]).unwrap(), [&blob]);
        assert!(!to.exists());
        tidy(dir.path(), &[].into()).unwrap();
        assert!(!from.exists());
        assert_eq!(read(dir.path()), Kept::default());
        assert!(fits(dir.path(), &[&blob], u64::MAX / 2).is_err() && fits(dir.path(), &[], u64::MAX / 2).is_ok());
    }
}
