//! Which script or unit of which system is due: a pure state machine over the role's systems, with
//! time passed in. One job a system at a time; [`super::agent`] does the jobs.
//!
//! ```text
//! waiting ─► node steps ─► formation ─► units, in order ─► health ─► healthy ─► late steps ─► complete
//!    ▲ `after` complete       (seam)        ▲                │ unit down
//!    └── growing pause after a failure ─────┴────────────────┘
//! ```
//! A step that needs its own system is *late*: it runs when the system is healthy for the first
//! time. A system whose health script is missing is never healthy.

use crate::ledger::message::{Phase, SystemReport, SystemState};
use crate::recipe::System;
use crate::recipe::system::{STEP_TIMEOUT_DEFAULT_SECS, Scope, Step, seconds};
use std::collections::BTreeSet;

/// Pause after the first failure of a system; doubled with each further one …
pub const RETRY_FIRST_MS: u64 = 2_000;
/// … up to this.
pub const RETRY_MAX_MS: u64 = 60_000;
/// Until a system is healthy for the first time it is asked this soon, then ever slower up to its
/// interval: what comes up must not wait for the next look.
pub const LOOK_FIRST_MS: u64 = 1_000;
/// A health script that takes longer is ended; systems in emulation are slow.
pub const HEALTH_TIMEOUT_SECS: u64 = 60;
/// Of a reason in a report.
const REASON_MAX_CHARS: usize = 300;

/// Something to do for a system; its end comes back as [`Node::done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub system: String,
    pub job: Job,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Run `<step>.check`, and the step itself unless that ends with 0; no check: the step.
    Step { step: String, timeout_secs: u64 },
    /// Start these units, each after the one before is active.
    Start { units: Vec<String> },
    /// Look whether the units are still active, then run `health`.
    Health { units: Vec<String>, timeout_secs: u64 },
}

/// How a job ended; the text is one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(String),
    /// Exit status 75: try again later.
    Later(String),
    Failed(String),
    /// There is no such script.
    Missing(String),
    /// A unit is not active (any more).
    Down(String),
}

/// All systems of this node.
#[derive(Clone, Debug)]
pub struct Node {
    systems: Vec<Tracked>,
}

#[derive(Clone, Debug)]
struct Tracked {
    system: System,
    state: SystemState,
    reason: String,
    /// Steps done in this boot.
    steps_done: BTreeSet<String>,
    started: bool,
    /// Health's last word.
    healthy: bool,
    running: Option<Job>,
    /// Nothing is due before.
    due_ms: u64,
    /// In a row.
    failures: u32,
    looks: u32,
}

impl Node {
    /// `done`: (system, step) pairs that an earlier agent of this boot has finished.
    pub fn new(systems: &[System], done: &BTreeSet<(String, String)>, now_ms: u64) -> Node {
        let track = |system: &System| Tracked {
            system: system.clone(),
            state: SystemState::Waiting,
            reason: "not started yet".into(),
            steps_done: done.iter().filter(|(s, _)| *s == system.name).map(|(_, step)| step.clone()).collect(),
            started: false,
            healthy: false,
            running: None,
            due_ms: now_ms,
            failures: 0,
            looks: 0,
        };
        Node { systems: systems.iter().map(track).collect() }
    }

    /// Every job that is due now; each is running from then on.
    pub fn due(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for i in 0..self.systems.len() {
            if self.systems[i].running.is_some() || now_ms < self.systems[i].due_ms {
                continue;
            }
            match self.next(i) {
                Ok(job) => {
                    let tracked = &mut self.systems[i];
                    if tracked.state == SystemState::Waiting {
                        tracked.state = SystemState::Starting;
                        tracked.reason = "starting".into();
                    }
                    tracked.running = Some(job.clone());
                    actions.push(Action { system: tracked.system.name.clone(), job });
                }
                Err(reason) => {
                    let tracked = &mut self.systems[i];
                    tracked.state = SystemState::Waiting;
                    tracked.reason = reason;
                }
            }
        }
        actions
    }

    /// When, after now, [`Node::due`] may have something to do although no job ended.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        self.systems.iter().filter(|t| t.running.is_none() && t.due_ms > now_ms).map(|t| t.due_ms).min()
    }

    /// The running job of `system` ended. An unexpected end is ignored.
    pub fn done(&mut self, system: &str, outcome: Outcome, now_ms: u64) {
        let Some(tracked) = self.systems.iter_mut().find(|t| t.system.name == system) else { return };
        let Some(job) = tracked.running.take() else { return };
        match job {
            Job::Step { step, .. } => tracked.step_done(step, outcome, now_ms),
            Job::Start { .. } => tracked.start_done(outcome, now_ms),
            Job::Health { .. } => tracked.looked(outcome, now_ms),
        }
    }

    /// Ready, or on the way; with one line of detail and every system's state.
    pub fn report(&self) -> (Phase, String, Vec<SystemReport>) {
        let ready = self.systems.iter().filter(|t| t.complete()).count();
        let phase = if ready == self.systems.len() { Phase::Ready } else { Phase::Join };
        let detail = match self.systems.iter().find(|t| !t.complete()) {
            None => format!("{ready} systems healthy"),
            Some(t) => format!("{ready} of {} systems healthy; {}: {}", self.systems.len(), t.system.name, t.reason),
        };
        let systems = self.systems.iter().map(|t| SystemReport {
            name: t.system.name.clone(),
            // A late step is a part of the system: without it the system is not there yet.
            state: if t.state == SystemState::Healthy && !t.complete() { SystemState::Starting } else { t.state },
            reason: t.reason.chars().take(REASON_MAX_CHARS).collect(),
        });
        (phase, detail, systems.collect())
    }

    /// The next job of a system, or what it waits for.
    fn next(&self, i: usize) -> Result<Job, String> {
        let tracked = &self.systems[i];
        if !tracked.started {
            for name in &tracked.system.after {
                self.require(name, Tracked::complete)?;
            }
            if let Some(step) = tracked.open_steps(false).next() {
                return self.step(step);
            }
            self.formed(tracked)?;
            return Ok(Job::Start { units: tracked.system.units.clone() });
        }
        if tracked.healthy
            && let Some(step) = tracked.open_steps(true).next()
            && let Ok(job) = self.step(step)
        {
            return Ok(job);
        }
        Ok(Job::Health { units: tracked.system.units.clone(), timeout_secs: HEALTH_TIMEOUT_SECS })
    }

    /// The seam of formation: a clustered system will here ask the ledger whether it seeds, joins
    /// or rejoins (`claim`), before its units start. Until then each node's is alone, and the
    /// system's own health says so.
    fn formed(&self, _tracked: &Tracked) -> Result<(), String> {
        Ok(())
    }

    fn step(&self, step: &Step) -> Result<Job, String> {
        for need in &step.needs {
            match need.split_once('/') {
                None => self.require(need, |t| t.healthy)?,
                Some((system, name)) => self
                    .require(system, |t| t.steps_done.contains(name))
                    .map_err(|_| format!("step {} waits for step {need}", step.name))?,
            }
        }
        let timeout = step.timeout.as_deref().and_then(seconds);
        Ok(Job::Step { step: step.name.clone(), timeout_secs: timeout.unwrap_or(STEP_TIMEOUT_DEFAULT_SECS) })
    }

    fn require(&self, name: &str, holds: impl Fn(&Tracked) -> bool) -> Result<(), String> {
        match self.systems.iter().find(|t| t.system.name == name) {
            Some(found) if holds(found) => Ok(()),
            Some(_) => Err(format!("waits for {name}")),
            None => Err(format!("waits for {name}, which this role does not have")),
        }
    }
}

impl Tracked {
    /// Steps of this node that are not done. Late ones need this very system. Cluster and peer
    /// steps are tasks of the ledger, not of one node's boot.
    fn open_steps(&self, late: bool) -> impl Iterator<Item = &Step> {
        let is_late = |step: &Step| step.needs.contains(&self.system.name);
        let open = |step: &&Step| step.scope == Scope::Node && !self.steps_done.contains(&step.name);
        self.system.steps.iter().filter(open).filter(move |s| is_late(s) == late)
    }

    /// Healthy, with everything done that belongs to it.
    fn complete(&self) -> bool {
        self.healthy && self.started && self.open_steps(true).next().is_none()
    }

    fn interval_ms(&self) -> u64 {
        seconds(&self.system.health.interval).unwrap_or(10) * 1000
    }

    fn step_done(&mut self, step: String, outcome: Outcome, now_ms: u64) {
        match outcome {
            Outcome::Done(_) => {
                self.steps_done.insert(step);
                self.failures = 0;
                if self.healthy {
                    self.state = SystemState::Healthy; // a late step that had failed before
                }
                self.due_ms = if self.complete() { now_ms + self.interval_ms() } else { now_ms };
            }
            Outcome::Later(why) => self.again(SystemState::Starting, format!("step {step}: {why}"), now_ms),
            Outcome::Failed(why) | Outcome::Missing(why) | Outcome::Down(why) => {
                self.again(SystemState::Failed, format!("step {step}: {why}"), now_ms);
            }
        }
    }

    fn start_done(&mut self, outcome: Outcome, now_ms: u64) {
        match outcome {
            Outcome::Done(_) => {
                self.started = true;
                (self.looks, self.due_ms) = (0, now_ms);
            }
            Outcome::Later(why) => self.again(SystemState::Starting, why, now_ms),
            Outcome::Failed(why) | Outcome::Missing(why) | Outcome::Down(why) => {
                self.again(SystemState::Failed, why, now_ms);
            }
        }
    }

    fn looked(&mut self, outcome: Outcome, now_ms: u64) {
        let interval = self.interval_ms();
        let was_healthy = self.state == SystemState::Healthy || self.state == SystemState::Unhealthy;
        match outcome {
            Outcome::Done(reason) => {
                let first = !self.healthy;
                (self.healthy, self.failures, self.looks) = (true, 0, 0);
                (self.state, self.reason) = (SystemState::Healthy, reason);
                // A late step is due at once.
                let open = first && self.open_steps(true).next().is_some();
                self.due_ms = if open { now_ms } else { now_ms + interval };
            }
            Outcome::Later(why) | Outcome::Failed(why) => {
                self.healthy = false;
                self.state = if was_healthy { SystemState::Unhealthy } else { SystemState::Starting };
                self.reason = why;
                self.due_ms = now_ms + (LOOK_FIRST_MS << self.looks.min(16)).min(interval);
                self.looks += 1;
            }
            Outcome::Missing(why) => {
                self.healthy = false;
                (self.state, self.reason) = (SystemState::Failed, why);
                self.due_ms = now_ms + interval;
            }
            Outcome::Down(why) => {
                (self.started, self.healthy) = (false, false);
                self.again(SystemState::Failed, why, now_ms);
            }
        }
    }

    fn again(&mut self, state: SystemState, reason: String, now_ms: u64) {
        (self.state, self.reason) = (state, reason);
        self.due_ms = now_ms + (RETRY_FIRST_MS << self.failures.min(16)).min(RETRY_MAX_MS);
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests;
