//! When this generation's certificate is renewed: by another register of the same boot once half of
//! its lifetime has passed. A server that is away then has the other half to come back. Time is the
//! caller's: the machine's clock may be set meanwhile, so only a clock that nobody sets is looked at.

use std::time::Duration;

/// The pause after the first failure, doubled by each further one. Nothing is urgent yet.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// However short a lifetime a server gives: it is not asked more often.
const AGE_MIN: Duration = Duration::from_secs(60);

/// The next renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    due_ms: u64,
    failures: u32,
}

impl Renewal {
    /// `now_ms` and `expires_ms` are the answer's, by the server's clock; `got_ms` is when it came, on
    /// the monotonic clock.
    pub fn new(now_ms: u64, expires_ms: u64, got_ms: u64) -> Renewal {
        let half = expires_ms.saturating_sub(now_ms) / 2;
        Renewal { due_ms: got_ms.saturating_add(half.max(AGE_MIN.as_millis() as u64)), failures: 0 }
    }

    /// How long until it is due; zero: register now.
    pub fn wait(&self, monotonic_ms: u64) -> Duration {
        Duration::from_millis(self.due_ms.saturating_sub(monotonic_ms))
    }

    /// It did not work at `monotonic_ms`: due again later.
    pub fn failed(&mut self, monotonic_ms: u64) {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.due_ms = monotonic_ms.saturating_add(pause.as_millis() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    #[test]
    fn it_is_due_at_half_of_the_lifetime_whatever_the_clocks_say() {
        for (label, now, expires, got, due) in [
            ("30 days", 1_000_000, 1_000_000 + 30 * DAY, 5_000, 5_000 + 15 * DAY),
            ("an agent that does not know when it came", 0, 30 * DAY, 0, 15 * DAY),
            ("a short one", 0, 10_000, 7, 60_007),
            ("expired when it came", 9_000, 8_000, 7, 60_007),
            ("no end", 0, u64::MAX, u64::MAX, u64::MAX),
        ] {
            let renewal = Renewal::new(now, expires, got);
            assert_eq!(renewal.wait(due), Duration::ZERO, "{label}");
            assert_eq!(renewal.wait(due - 1), Duration::from_millis(1), "{label}");
            assert_eq!(renewal.wait(u64::MAX), Duration::ZERO, "{label}");
        }
    }

    #[test]
    fn failures_are_tried_again_ever_later_and_often_enough() {
        let mut renewal = Renewal::new(0, 30 * DAY, 0);
        let (mut now, mut tries, mut pauses) = (15 * DAY, 0, Vec::new());
        while now < 30 * DAY {
            assert_eq!(renewal.wait(now), Duration::ZERO);
            renewal.failed(now);
            tries += 1;
            let pause = renewal.wait(now);
            pauses.push(pause.as_secs());
            now += pause.as_millis() as u64;
        }
        assert_eq!(pauses[..9], [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert!((300..400).contains(&tries), "{tries} in the second half");
    }
}
