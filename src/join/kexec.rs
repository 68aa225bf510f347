//! Starts another image's kernel from the running system, without the firmware between.
//!
//! By the system call kexec_file_load(2) itself: it takes two files and one line of text, which is
//! all that kexec-tools would do here, so no image needs that package. Kernel and initramfs are those
//! of the manifest that the order's image id names, and the id came over the pinned TLS: more than a
//! firmware checks. Whether the image's builder is trusted its own initramfs asks, as at every boot.
//!
//! Loading changes nothing yet; the caller lets systemd stop everything in order and go there.

use crate::image::fetch::Source;
use crate::image::manifest::Image;
use crate::ledger::message::KexecBoot;
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Both files lie in memory here until the kernel has its copies.
const DIR: &str = "/run/kiln/kexec";
/// What the running systems keep while both are in memory twice.
const SPARE_BYTES: u64 = 64 << 20;
/// x86's COMMAND_LINE_SIZE, without the final zero.
const CMDLINE_MAX_BYTES: usize = 2047;

/// Fetches, verifies and loads the kernel; `say` hears of every set-back.
pub fn load(server: &str, boot: &KexecBoot, say: &mut dyn FnMut(&str)) -> Result<()> {
    let cmdline = cmdline(boot).map_err(anyhow::Error::msg)?;
    let source = Source::at(server);
    let image = source.running(boot.image)?;
    let available = meminfo(&fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?);
    let size =
        room(available, image.kernel().size.saturating_add(image.initramfs().size)).map_err(anyhow::Error::msg)?;
    let folder = Path::new(DIR);
    fs::create_dir_all(folder).with_context(|| format!("creating {DIR}"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("size={size},mode=700");
    nix::mount::mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options.as_str()))
        .with_context(|| format!("mounting memory on {DIR}"))?;
    let loaded = load_from(folder, &source, &image, &cmdline, say);
    let _ = nix::mount::umount2(folder, MntFlags::MNT_DETACH);
    loaded
}

fn load_from(
    folder: &Path,
    source: &Source,
    image: &Image,
    cmdline: &CString,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let (kernel, initramfs) = source.boot_files(image, folder, say)?;
    kexec_file_load(&File::open(kernel)?, &File::open(initramfs)?, cmdline)
}

fn kexec_file_load(kernel: &File, initramfs: &File, cmdline: &CString) -> Result<()> {
    let bytes = cmdline.as_bytes_with_nul();
    let flags: libc::c_ulong = 0;
    // SAFETY: two open files and a text with its length, which the kernel copies.
    let status = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            bytes.len(),
            bytes.as_ptr(),
            flags,
        )
    };
    nix::errno::Errno::result(status).map(drop).context("loading the kernel (kexec_file_load)")
}

/// The command line as the system call takes it; a longer one it would refuse without a word.
fn cmdline(boot: &KexecBoot) -> Result<CString, String> {
    let length = boot.cmdline.len();
    if length > CMDLINE_MAX_BYTES {
        return Err(format!("kernel command line has {length} bytes, a kernel takes {CMDLINE_MAX_BYTES}"));
    }
    CString::new(boot.cmdline.as_str()).map_err(|_| "kernel command line has a zero byte".to_string())
}

/// MemAvailable of /proc/meminfo, bytes.
fn meminfo(text: &str) -> u64 {
    let kib =
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The size of the memory file system for these files. The kernel's copies come beside them.
fn room(available: u64, files: u64) -> Result<u64, String> {
    // Pages are whole, and folders take some.
    let size = files.saturating_add(1 << 20);
    let needs = size.saturating_add(files).saturating_add(SPARE_BYTES);
    if needs > available {
        return Err(format!("kernel and initramfs need {} MiB of memory, {} are free", needs >> 20, available >> 20));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::id::Digest;

    #[test]
    fn memory_and_command_line_are_bounded() {
        let text = "MemTotal:  2000000 kB\nMemFree: 1 kB\nMemAvailable:     300000 kB\n";
        assert_eq!(meminfo(text), 300_000 * 1024);
        assert_eq!(meminfo("MemAvailable: much\n"), 0);
        assert_eq!(room(300 << 20, 100 << 20), Ok(101 << 20));
        assert_eq!(room(300 << 20, 120 << 20), Err("kernel and initramfs need 305 MiB of memory, 300 are free".into()));
        assert!(room(u64::MAX, u64::MAX - 1).is_ok() && room(u64::MAX - 1, u64::MAX).is_err());
        let boot = |cmdline: String| KexecBoot { image: Digest([1; 32]), cmdline };
        assert_eq!(cmdline(&boot("a b".into())).unwrap().as_bytes_with_nul(), b"a b\0");
        assert_eq!(cmdline(&boot("x".repeat(2047))).unwrap().as_bytes().len(), 2047);
        let long = cmdline(&boot("x".repeat(2048))).unwrap_err();
        assert_eq!(long, "kernel command line has 2048 bytes, a kernel takes 2047");
        assert!(cmdline(&boot("a\0b".into())).unwrap_err().contains("zero byte"));
    }
}
