//! Where kiln-node speaks before there is a journal: every console of the kernel, and the kernel's
//! log, which the role's journal reads later.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

/// A console that takes no byte for this long misses the rest of the line.
const STALLED_MS: u16 = 1000;
/// The kernel cuts longer records.
const KMSG_MAX_BYTES: usize = 900;

/// The open consoles.
pub struct Console {
    ttys: Vec<File>,
    kmsg: Option<File>,
}

impl Console {
    /// Opens every console that `/sys` lists; without that list `/dev/console`.
    pub fn open() -> Console {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut ttys: Vec<File> =
            active.split_whitespace().filter_map(|name| open(&format!("/dev/{name}")).ok()).collect();
        if ttys.is_empty() {
            ttys.extend(open("/dev/console").ok());
        }
        // The kernel drops quick writers' lines unless told not to (absent before 4.8).
        let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
        Console { ttys, kmsg: open("/dev/kmsg").ok() }
    }

    /// Shows one message, each of its lines marked as ours.
    pub fn say(&self, text: &str) {
        for line in text.lines() {
            for mut tty in &self.ttys {
                write_patiently(&mut tty, format!("kiln: {line}\r\n").as_bytes());
            }
            if let Some(mut kmsg) = self.kmsg.as_ref() {
                let cut = (0..=line.len().min(KMSG_MAX_BYTES)).rev().find(|i| line.is_char_boundary(*i)).unwrap_or(0);
                // Level 7: in the log, but not a second time on the console.
                let _ = kmsg.write_all(format!("<7>kiln: {}\n", &line[..cut]).as_bytes());
            }
        }
    }
}

fn open(path: &str) -> std::io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

/// Writes all of it unless the console stops taking bytes: a console must not stop a boot.
fn write_patiently(tty: &mut &File, mut bytes: &[u8]) {
    use nix::poll::{PollFd, PollFlags, poll};
    while !bytes.is_empty() {
        match tty.write(bytes) {
            Ok(0) => return,
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let mut wait = [PollFd::new(tty.as_fd(), PollFlags::POLLOUT)];
                if !matches!(poll(&mut wait, STALLED_MS), Ok(1..)) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
