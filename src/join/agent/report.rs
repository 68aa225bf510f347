//! Reports of this generation: at every change, and every few seconds so that the session lives.
//! A server that does not answer stops nothing: the newest report waits, older ones are dropped.

use super::Event;
use super::link::Link;
use crate::ledger::message::{REPORT_INTERVAL_SECS, Report, ReportAnswer};
use crate::sys::clock::growing_pause;
use crate::sys::http::{Timeouts, status_of};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(REPORT_INTERVAL_SECS);
/// A shutdown waits no longer for its last word.
const LAST_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), idle: Duration::from_secs(2) };
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// Sends reports from a thread of its own.
pub struct Reporter {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    link: Link,
}

#[derive(Default)]
struct State {
    report: Option<Report>,
    /// The report was not sent in this form yet.
    fresh: bool,
    /// Nothing is sent before.
    quiet_until: Option<Instant>,
    ended: bool,
}

impl Reporter {
    /// Peer steps that the server wants done become events.
    pub(super) fn start(link: Link, events: Sender<Event>) -> Reporter {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), link });
        let worker = shared.clone();
        std::thread::spawn(move || worker.run(&events));
        Reporter { shared }
    }

    /// What is to be reported from now on.
    pub fn set(&self, report: Report) {
        let mut state = self.shared.lock();
        (state.report, state.fresh) = (Some(report), true);
        self.shared.changed.notify_all();
    }

    /// Sends again at once, with whatever certificate there is now.
    pub fn renewed(&self) {
        let mut state = self.shared.lock();
        (state.quiet_until, state.fresh) = (None, true);
        self.shared.changed.notify_all();
    }

    /// Sends nothing for a while.
    pub fn hush(&self, pause: Duration) {
        self.shared.lock().quiet_until = Some(Instant::now() + pause);
        self.shared.changed.notify_all();
    }

    /// Sends one more report and ends.
    pub fn last(self, report: &Report) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        if let Err(e) = self.shared.link.post::<ReportAnswer>("report", report, Some(LAST_TIMEOUTS)) {
            eprintln!("last report was not taken: {e:#}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self, events: &Sender<Event>) {
        let (mut failures, mut sent, mut said, mut drain) = (0u32, Instant::now(), false, None);
        loop {
            let Some(report) = self.next(sent) else { return };
            match self.link.post::<ReportAnswer>("report", &report, None) {
                Ok(answer) => {
                    if failures > 0 {
                        eprintln!("server takes reports again");
                    }
                    failures = 0;
                    if !answer.stand_down.is_empty() {
                        let _ = events.send(Event::StandDown(answer.stand_down));
                    }
                    if let Some(order) = answer.restart {
                        let _ = events.send(Event::Restart(order, answer.kexec));
                    }
                    if drain != answer.drain {
                        drain.clone_from(&answer.drain);
                        let _ = events.send(Event::Drain(answer.drain));
                    }
                    // The same one again is one that failed.
                    if !answer.peers.is_empty() || said {
                        said = !answer.peers.is_empty();
                        let _ = events.send(Event::Peers(answer.peers));
                    }
                }
                Err(e) => {
                    failures = failures.saturating_add(1);
                    if failures == 1 {
                        eprintln!("report was not taken, trying again: {e:#}");
                    }
                    let refused = matches!(status_of(&e), Some(401 | 403));
                    let mut state = self.lock();
                    state.fresh = true;
                    // A refused one waits until the main loop has registered again, or hushes.
                    let pause = if refused { INTERVAL } else { growing_pause(failures, PAUSE_FIRST, INTERVAL) };
                    state.quiet_until = Some(Instant::now() + pause);
                }
            }
            sent = Instant::now();
        }
    }

    /// Waits until a report is due; `None`: the end.
    fn next(&self, sent: Instant) -> Option<Report> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            let now = Instant::now();
            let quiet = state.quiet_until.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            let due = if state.fresh { Duration::ZERO } else { (sent + INTERVAL).saturating_duration_since(now) };
            let wait = quiet.max(due);
            if let (true, Some(report)) = (wait.is_zero(), state.report.clone()) {
                (state.fresh, state.quiet_until) = (false, None);
                return Some(report);
            }
            let wait = if state.report.is_none() { INTERVAL } else { wait };
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}
