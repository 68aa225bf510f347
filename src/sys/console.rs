//! Where kiln-node speaks before there is a journal: every console of the kernel, and the kernel's
//! log, which the role's journal reads later.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A console that takes no byte for this long misses the rest of the line.
const STALLED_MS: u16 = 1000;
/// The kernel cuts longer records.
const KMSG_MAX_BYTES: usize = 900;

/// The open consoles.
pub struct Console {
    ttys: Vec<Tty>,
    kmsg: Option<File>,
}

impl Console {
    /// Opens every console that `/sys` lists; without that list `/dev/console`.
    pub fn open() -> Console {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut ttys: Vec<Tty> =
            active.split_whitespace().filter_map(|n| Tty::open(&format!("/dev/{n}")).ok()).collect();
        if ttys.is_empty() {
            ttys.extend(Tty::open("/dev/console").ok());
        }
        // The kernel drops quick writers' lines unless told not to (absent before 4.8).
        let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
        Console { ttys, kmsg: open(Path::new("/dev/kmsg")).ok() }
    }

    /// Shows one message, each of its lines marked as ours.
    pub fn say(&self, text: &str) {
        for line in text.lines() {
            for tty in &self.ttys {
                tty.write(format!("kiln: {line}\r\n").as_bytes());
            }
            if let Some(mut kmsg) = self.kmsg.as_ref() {
                let cut = (0..=line.len().min(KMSG_MAX_BYTES)).rev().find(|i| line.is_char_boundary(*i)).unwrap_or(0);
                // Level 7: in the log, but not a second time on the console.
                let _ = kmsg.write_all(format!("<7>kiln: {}\n", &line[..cut]).as_bytes());
            }
        }
    }
}

struct Tty {
    path: PathBuf,
    file: Mutex<File>,
}

impl Tty {
    fn open(path: &str) -> io::Result<Tty> {
        let path = PathBuf::from(path);
        Ok(Tty { file: Mutex::new(open(&path)?), path })
    }

    /// A login that starts hangs the line up for all that have it open (vhangup): it is opened anew then.
    fn write(&self, bytes: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(e) = write_patiently(&file, bytes)
            && e.raw_os_error() == Some(libc::EIO)
            && let Ok(anew) = open(&self.path)
        {
            *file = anew;
            let _ = write_patiently(&file, bytes);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

/// Writes all of it unless the console stops taking bytes: a console must not stop a boot.
fn write_patiently(mut tty: &File, mut bytes: &[u8]) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, poll};
    while !bytes.is_empty() {
        match tty.write(bytes) {
            Ok(0) => break,
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let mut wait = [PollFd::new(tty.as_fd(), PollFlags::POLLOUT)];
                if !matches!(poll(&mut wait, STALLED_MS), Ok(1..)) {
                    break;
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, poll};
    use std::io::Read;

    #[test]
    fn a_login_that_hangs_the_line_up_costs_no_message() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let path = nix::unistd::ttyname(&pty.slave).unwrap();
        let console = Console { ttys: vec![Tty::open(path.to_str().unwrap()).unwrap()], kmsg: None };
        console.say("before");
        // SAFETY: no argument; only root may.
        let hung_up = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&pty.slave), libc::TIOCVHANGUP) };
        assert_eq!(hung_up, 0, "TIOCVHANGUP: {}", io::Error::last_os_error());
        console.say("after");
        let mut seen = String::new();
        let mut terminal = File::from(pty.master);
        while !seen.contains("kiln: after") {
            let mut wait = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut wait, 5000u16), Ok(1), "{seen}");
            let mut bytes = [0; 256];
            let n = terminal.read(&mut bytes).expect(&seen);
            seen += &String::from_utf8_lossy(&bytes[..n]);
        }
    }
}
