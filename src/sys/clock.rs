//! The clocks. Deciding code never calls this: time is passed to it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch (0 when the machine's clock stands before it).
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or(0)
}

/// Milliseconds of a clock that nobody sets: for ages and time-outs.
pub fn monotonic_ms() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map(|t| t.tv_sec() as u64 * 1000 + t.tv_nsec() as u64 / 1_000_000)
        .unwrap_or(0)
}

/// A clock this near to the server's is left alone: the time server does the rest.
const CLOCK_OFF_MAX_MS: u64 = 5_000;

/// Sets the clock to the server's when it is clearly off; says whether it was set.
pub fn follow(server_now_ms: u64) -> nix::Result<bool> {
    if now_ms().abs_diff(server_now_ms) <= CLOCK_OFF_MAX_MS {
        return Ok(false);
    }
    let time = nix::sys::time::TimeSpec::from(Duration::from_millis(server_now_ms));
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)?;
    Ok(true)
}

/// The pause after so many failures in a row: `first`, doubled each time, at most `max`.
pub fn growing_pause(failures: u32, first: Duration, max: Duration) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max)
}
