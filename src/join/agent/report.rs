//! Reports of this generation: at every change, and every few seconds so that the session lives.
//! A server that does not answer stops nothing: the newest report waits, older ones are dropped.

use super::Event;
use super::register::Registration;
use crate::ledger::message::{Handover, REPORT_INTERVAL_SECS, Report, ReportAnswer};
use crate::sys::clock::growing_pause;
use crate::sys::http::{Client, Timeouts, status_of};
use crate::sys::json;
use anyhow::Result;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(REPORT_INTERVAL_SECS);
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(5), idle: Duration::from_secs(10) };
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
    url: String,
}

struct State {
    client: Client,
    report: Option<Report>,
    /// The report was not sent in this form yet.
    fresh: bool,
    /// Nothing is sent before.
    quiet_until: Option<Instant>,
    ended: bool,
}

impl Reporter {
    pub(super) fn start(handover: &Handover, registration: &Registration, events: Sender<Event>) -> Result<Reporter> {
        let client = registration.client(handover, TIMEOUTS)?;
        let state = Mutex::new(State { client, report: None, fresh: false, quiet_until: None, ended: false });
        let url = format!("https://{}/v1/report", handover.tls);
        let shared = Arc::new(Shared { state, changed: Condvar::new(), url });
        let worker = shared.clone();
        std::thread::spawn(move || worker.run(&events));
        Ok(Reporter { shared })
    }

    /// What is to be reported from now on; the same again is no change.
    pub fn set(&self, report: Report) {
        let mut state = self.shared.lock();
        if state.report.as_ref() != Some(&report) {
            state.report = Some(report);
            state.fresh = true;
            self.shared.changed.notify_all();
        }
    }

    /// Goes on with the certificate of another register.
    pub fn renew(&self, handover: &Handover, registration: &Registration) -> Result<()> {
        let client = registration.client(handover, TIMEOUTS)?;
        let mut state = self.shared.lock();
        (state.client, state.quiet_until, state.fresh) = (client, None, true);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Sends nothing for a while.
    pub fn hush(&self, pause: Duration) {
        self.shared.lock().quiet_until = Some(Instant::now() + pause);
        self.shared.changed.notify_all();
    }

    /// Sends one more report and ends.
    pub fn last(self, report: Report) {
        let client = {
            let mut state = self.shared.lock();
            state.ended = true;
            self.shared.changed.notify_all();
            state.client.clone().timeouts(LAST_TIMEOUTS)
        };
        if let Err(e) = json::post::<ReportAnswer>(&client, &self.shared.url, &report) {
            eprintln!("last report was not taken: {e:#}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self, events: &Sender<Event>) {
        let (mut failures, mut sent) = (0u32, Instant::now());
        loop {
            let Some((client, report)) = self.next(sent) else { return };
            match json::post::<ReportAnswer>(&client, &self.url, &report) {
                Ok(_) => {
                    if failures > 0 {
                        eprintln!("server takes reports again");
                    }
                    failures = 0;
                }
                Err(e) => {
                    failures = failures.saturating_add(1);
                    if failures == 1 {
                        eprintln!("report was not taken, trying again: {e:#}");
                    }
                    let mut state = self.lock();
                    state.fresh = true;
                    state.quiet_until = Some(Instant::now() + growing_pause(failures, PAUSE_FIRST, INTERVAL));
                    if matches!(status_of(&e), Some(401 | 403)) {
                        // Until the main loop has an answer; it shortens or lengthens this.
                        state.quiet_until = Some(Instant::now() + INTERVAL);
                        let _ = events.send(Event::Refused(format!("{e:#}")));
                    }
                }
            }
            sent = Instant::now();
        }
    }

    /// Waits until a report is due; `None`: the end.
    fn next(&self, sent: Instant) -> Option<(Client, Report)> {
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
                return Some((state.client.clone(), report));
            }
            let wait = if state.report.is_none() { INTERVAL } else { wait };
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}
