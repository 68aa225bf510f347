//! Child processes: always with an argument vector (never a shell), a time-out, bounded output and
//! an error that shows a line to paste and the end of stderr. A child dies with its parent.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// At most this much of each stream is kept; the rest is read and dropped.
pub const OUTPUT_MAX_BYTES: usize = 16 * 1024 * 1024;
/// How much of stderr an error shows.
const STDERR_TAIL_BYTES: usize = 2000;
/// From SIGTERM to SIGKILL.
pub const KILL_GRACE: Duration = Duration::from_secs(10);

/// What a finished child left behind.
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub timed_out: bool,
}

impl Output {
    /// stdout as text, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs `command` to its end (in a process group of its own) or to the time-out: SIGTERM to the
/// group, SIGKILL after [`KILL_GRACE`]. `input` goes to stdin.
pub fn run(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Output> {
    let line = shown(command);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    die_with_parent(command);
    let mut child = command.spawn().with_context(|| format!("starting {line}"))?;
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            if let Some(pipe) = stdin.as_mut() {
                let _ = pipe.write_all(input); // a child that does not read is not our error
            }
        });
        let out = scope.spawn(move || stdout.map(drain).unwrap_or_default());
        let err = scope.spawn(move || stderr.map(drain).unwrap_or_default());
        let deadline = Instant::now() + timeout;
        let (mut timed_out, mut killed) = (false, false);
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = child.try_wait().with_context(|| format!("waiting for {line}"))? {
                break status;
            }
            let now = Instant::now();
            if now >= deadline && !timed_out {
                timed_out = true;
                let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGTERM);
            }
            if now >= deadline + KILL_GRACE && !killed {
                killed = true;
                let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        if timed_out {
            // Grandchildren that kept the pipes open would hold the readers for ever.
            let _ = nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = writer.join();
        let stdout = out.join().unwrap_or_default();
        let stderr = err.join().unwrap_or_default();
        Ok(Output { status, stdout, stderr, timed_out })
    })
}

/// Like [`run`], but anything except exit status 0 is an error that shows the end of stderr.
pub fn run_ok(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Output> {
    let line = shown(command);
    let output = run(command, input, timeout)?;
    if output.timed_out {
        bail!("time-out of {} s running: {line}{}", timeout.as_secs(), tail(&output.stderr));
    }
    if !output.status.success() {
        bail!("{} from: {line}{}", output.status, tail(&output.stderr));
    }
    Ok(output)
}

/// A child that is fed piece by piece; for one that reads its stdin to the end and says little.
pub struct Fed {
    child: std::process::Child,
    line: String,
}

/// Starts a child to be fed. Its stderr is dropped.
pub fn feed(command: &mut Command) -> Result<Fed> {
    let line = shown(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    die_with_parent(command);
    let child = command.spawn().with_context(|| format!("starting {line}"))?;
    Ok(Fed { child, line })
}

impl Fed {
    /// Hands over the next piece. A child that reads no more is not our error: its end tells.
    pub fn push(&mut self, bytes: &[u8]) {
        if let Some(pipe) = self.child.stdin.as_mut()
            && pipe.write_all(bytes).is_err()
        {
            self.child.stdin = None;
        }
    }

    /// What the child says after its input's end, at most [`OUTPUT_MAX_BYTES`]; killed at the time-out.
    pub fn finish(mut self, timeout: Duration) -> Result<Vec<u8>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        self.child.stdin = None;
        let Some(mut pipe) = self.child.stdout.take() else { bail!("no output of: {}", self.line) };
        let deadline = Instant::now() + timeout;
        let (mut said, mut buffer) = (Vec::new(), [0u8; 4096]);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let ready = poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait);
            if left.is_zero() || matches!(ready, Ok(0)) {
                bail!("time-out of {} s running: {}", timeout.as_secs(), self.line);
            }
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(said),
                Ok(n) => said.extend_from_slice(&buffer[..n.min(OUTPUT_MAX_BYTES.saturating_sub(said.len()))]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).with_context(|| format!("reading the output of {}", self.line)),
            }
        }
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, or it must
        let _ = self.child.wait();
    }
}

/// The command as a line that can be pasted into a shell.
pub fn shown(command: &Command) -> String {
    let quote = |s: &std::ffi::OsStr| {
        let s = s.to_string_lossy().into_owned();
        let plain = !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c));
        if plain { s } else { format!("'{}'", s.replace('\'', r"'\''")) }
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect::<Vec<_>>().join(" ")
}

/// Asks the kernel to kill the child when this thread's process is gone, however it went.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches only the child.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        });
    }
}

fn drain(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0u8; 64 * 1024];
    while let Ok(n) = pipe.read(&mut buffer) {
        if n == 0 {
            break;
        }
        let room = OUTPUT_MAX_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    kept
}

fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(STDERR_TAIL_BYTES)..]).into_owned();
    if text.trim().is_empty() { String::new() } else { format!("\n{}", text.trim_end()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_shows_its_line_and_stderr() {
        let error = run_ok(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]), b"", Duration::from_secs(9))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(error.contains("sh -c 'echo no luck >&2; exit 3'") && error.contains("no luck"), "{error}");
    }

    #[test]
    fn a_hanging_command_ends_at_its_time_out() {
        let output = run(Command::new("sleep").arg("60"), b"", Duration::from_millis(50)).unwrap();
        assert!(output.timed_out && !output.status.success());
    }

    #[test]
    fn a_fed_command_gets_its_pieces_and_ends_at_its_time_out() {
        let mut fed = feed(&mut Command::new("cat")).unwrap();
        fed.push(b"hel");
        fed.push(b"lo");
        assert_eq!(fed.finish(Duration::from_secs(9)).unwrap(), b"hello");
        let mut deaf = feed(Command::new("sh").args(["-c", "exec <&-; sleep 60"])).unwrap();
        deaf.push(&vec![0; 1 << 20]);
        assert!(deaf.finish(Duration::from_millis(50)).unwrap_err().to_string().contains("time-out"));
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(run_ok(&mut Command::new("cat"), b"hello", Duration::from_secs(9)).unwrap().text(), "hello");
    }
}
