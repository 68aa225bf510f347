//! Which script or unit of which system is due: a pure state machine over the role's systems, with
//! time passed in. One job a system at a time; [`super::agent`] does the jobs.
//!
//! ```text
//! waiting ─► early steps ─► formation ─► units, in order ─► health ─► healthy ─► late steps ─► complete
//!    ▲ `after` complete      (seeded)        ▲                │ unit down
//!    └── growing pause after a failure ──────┴────────────────┘
//!
//! formation:  look ─► rank ─► ask the server ─► seed | join      (wait: asked again)
//! a cluster step:  check ─► ask the server ─► run ─► tell the server   (wait: checked again)
//! ```
//! A step that needs its own system is *late*: it runs when the system is healthy for the first
//! time. A system whose health script is missing is never healthy. Without the server (*offline*) a
//! seeded system is only started plainly, which cannot make a cluster, and no cluster step runs.

use crate::ledger::message::{
    Ask, ClaimRequest, Data, DoneRequest, PeerTask, Phase, RunningStep, SystemReport, SystemState, Verdict,
};
use crate::recipe::System;
use crate::recipe::system::{STEP_TIMEOUT_DEFAULT_SECS, Scope, Step, seconds};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Pause after the first failure of a system; doubled with each further one …
pub const RETRY_FIRST_MS: u64 = 2_000;
/// … up to this.
pub const RETRY_MAX_MS: u64 = 60_000;
/// The same between two questions to the server: what others do is waited for.
pub const ASK_FIRST_MS: u64 = 500;
pub const ASK_MAX_MS: u64 = 4_000;
/// Until a system is healthy for the first time it is asked this soon, then ever slower up to its
/// interval: what comes up must not wait for the next look.
pub const LOOK_FIRST_MS: u64 = 1_000;
/// A system whose health says so often in a row that others are missing is stranded: a split that
/// heals by itself is waited for.
pub const STRANDED_LOOKS: u32 = 6;
/// A start that is not through after the agent's patience counts for so many of them.
pub const STRANDED_START: u32 = 3;
/// A health script that takes longer is ended; systems in emulation are slow.
pub const HEALTH_TIMEOUT_SECS: u64 = 60;
/// Reading a stopped system's data: a database may have to replay its log.
pub const RANK_TIMEOUT_SECS: u64 = 600;
/// A seed or a join may copy all data.
pub const FORM_TIMEOUT_SECS: u64 = 3600;
/// Of a reason in a report.
const REASON_MAX_CHARS: usize = 300;

/// Something to do for a system; its end comes back as [`Node::done`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    pub system: String,
    pub job: Job,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// Run `<step>.check`, and the step itself unless that ends with 0; no check: the step.
    Step { step: String, timeout_secs: u64 },
    /// Run `<step>.check` only.
    Check { step: String, timeout_secs: u64 },
    /// Whether this unit runs or is on its way ([`Outcome::Done`]), or not ([`Outcome::Down`]).
    Look { unit: String },
    /// Make sure that these units are stopped, then run `rank`.
    Rank { units: Vec<String>, timeout_secs: u64 },
    /// Ask the server whether the system may start.
    AskStart { seq: u64, data: Data },
    /// Ask the server whether this cluster step may run here.
    AskStep { seq: u64, step: String },
    /// Tell the server how a cluster step ended.
    Tell { seq: u64, step: String, ok: bool, detail: String },
    /// Run `seed`.
    Seed { timeout_secs: u64 },
    /// Run `join`, where there is one.
    Join { members: Vec<String>, lineage: String, set_aside: bool, timeout_secs: u64 },
    /// Start these units, each after the one before is active.
    Start { units: Vec<String> },
    /// Look whether the units are still active, then run `health`.
    Health { units: Vec<String>, timeout_secs: u64 },
    /// Run `lineage`.
    Lineage { timeout_secs: u64 },
    /// Run a peer step for another node, then tell the server.
    Peer { task: PeerTask, timeout_secs: u64 },
}

/// How a job ended; the text is one line for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done(String),
    /// Exit status 75: try again later.
    Later(String),
    /// A unit is on its way and waits for nobody.
    Working(String),
    Failed(String),
    /// There is no such script.
    Missing(String),
    /// A unit is not active (any more).
    Down(String),
    /// What `rank` found.
    Ranked(Data),
    /// What the server said.
    Answered(Verdict),
}

impl Job {
    /// The message that a job sends to the server; `None`: it sends none.
    pub fn claim(&self, system: &str) -> Option<ClaimRequest> {
        let (seq, ask) = match self {
            Job::AskStart { seq, data } => (*seq, Ask::Start { data: data.clone() }),
            Job::AskStep { seq, step } => (*seq, Ask::Step { step: step.clone() }),
            _ => return None,
        };
        Some(ClaimRequest { system: system.into(), seq, ask })
    }

    /// The same for what is told.
    pub fn told(&self, system: &str) -> Option<DoneRequest> {
        let Job::Tell { seq, step, ok, detail } = self else { return None };
        let (step, detail) = (step.clone(), detail.clone());
        Some(DoneRequest { system: system.into(), step, seq: *seq, peer: None, ok: *ok, detail })
    }
}

/// How a step for another node ended.
pub fn peer_told(task: &PeerTask, outcome: &Outcome) -> DoneRequest {
    DoneRequest {
        system: task.system.clone(),
        step: task.step.clone(),
        seq: 0,
        peer: Some(task.clone()),
        ok: matches!(outcome, Outcome::Done(_)),
        detail: words(outcome),
    }
}

/// All systems of this node.
#[derive(Clone, Debug)]
pub struct Node {
    systems: Vec<Tracked>,
    /// Peer steps: which run, which are due.
    peers: BTreeMap<PeerTask, bool>,
    /// The number of the last message to the server.
    seq: u64,
    /// Without the server: the seeded systems that may start plainly.
    offline: Option<BTreeSet<String>>,
}

/// How far a seeded system is on its way to its units.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Forming {
    Look,
    Rank,
    Ask(Data),
    Seed,
    Join {
        members: Vec<String>,
        lineage: String,
        set_aside: bool,
    },
    /// Its units may be started.
    Free,
}

/// How far a cluster step is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Check,
    Ask,
    Run { seq: u64 },
    Tell { seq: u64, ok: bool, detail: String },
}

#[derive(Clone, Debug)]
struct Tracked {
    /// Shared, so that a node is cheap to copy.
    system: Arc<System>,
    state: SystemState,
    reason: String,
    /// Steps done in this boot; a cluster step also when another node did it.
    steps_done: BTreeSet<String>,
    forming: Forming,
    /// The cluster step that is under way.
    stage: Option<(String, Stage)>,
    /// That step began in another lineage than there is now: its end says nothing of this one.
    stale: bool,
    started: bool,
    /// Health's last word.
    healthy: bool,
    /// Health's last words: it runs, but others are missing.
    strandings: u32,
    /// The server wants it stopped, if that is still so.
    stands_down: bool,
    /// A late step did not get done: health comes before its next try, or a system that fell
    /// meanwhile would go on as healthy for as long as the step fails.
    look_first: bool,
    /// Which cluster a seeded system serves since it was started …
    lineage: Option<String>,
    /// … and in which one its cluster steps are done.
    steps_lineage: Option<String>,
    running: Option<Job>,
    /// Nothing is due before.
    due_ms: u64,
    /// In a row.
    failures: u32,
    looks: u32,
    asks: u32,
}

impl Node {
    /// `done`: (system, step) pairs that an earlier agent of this boot has finished. `last_seq`:
    /// no message before carried a higher number; a clock that only goes forward will do.
    pub fn new(systems: &[System], done: &BTreeSet<(String, String)>, now_ms: u64) -> Node {
        let track = |system: &System| {
            let finished = |step: &Step| {
                let pair = (system.name.clone(), step.name.clone());
                step.scope == Scope::Node && done.contains(&pair)
            };
            Tracked {
                system: Arc::new(system.clone()),
                state: SystemState::Waiting,
                reason: "not started yet".into(),
                steps_done: system.steps.iter().filter(|s| finished(s)).map(|s| s.name.clone()).collect(),
                forming: if system.is_seeded() { Forming::Look } else { Forming::Free },
                stage: None,
                stale: false,
                started: false,
                healthy: false,
                strandings: 0,
                stands_down: false,
                look_first: false,
                lineage: None,
                steps_lineage: None,
                running: None,
                due_ms: now_ms,
                failures: 0,
                looks: 0,
                asks: 0,
            }
        };
        Node { systems: systems.iter().map(track).collect(), peers: BTreeMap::new(), seq: now_ms, offline: None }
    }

    /// The server is not there: of the seeded systems only these may be started, plainly.
    pub fn go_offline(&mut self, may_start: BTreeSet<String>) {
        self.offline = Some(may_start);
    }

    pub fn is_offline(&self) -> bool {
        self.offline.is_some()
    }

    /// The server is there.
    pub fn go_online(&mut self, now_ms: u64) {
        if self.offline.take().is_some() {
            self.systems.iter_mut().filter(|t| !t.complete(false)).for_each(|t| t.due_ms = now_ms);
        }
    }

    /// The next number for a message: never the same twice, and growing with the clock so that an
    /// agent that is restarted goes on above it.
    pub fn next_seq(&mut self, now_ms: u64) -> u64 {
        self.seq = now_ms.max(self.seq + 1);
        self.seq
    }

    /// Peer steps that the server wants from this node; one that runs goes on.
    pub fn set_peers(&mut self, tasks: &[PeerTask]) {
        self.peers.retain(|task, running| *running || tasks.contains(task));
        for task in tasks {
            self.peers.entry(task.clone()).or_insert(false);
        }
    }

    /// These systems run nowhere as they should, and the server waits for what this node holds: one
    /// that is still stranded at its next look is stopped, and asks again.
    pub fn stand_down(&mut self, systems: &[String], now_ms: u64) {
        let told = |t: &&mut Tracked| systems.contains(&t.system.name) && t.is_stranded();
        for tracked in self.systems.iter_mut().filter(told) {
            (tracked.stands_down, tracked.due_ms) = (true, now_ms);
            // A start that hangs has nothing more to say.
            if !tracked.started && tracked.running.is_none() {
                tracked.steps_down(now_ms);
            }
        }
    }

    /// Every job that is due now; each is running from then on.
    pub fn due(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for i in 0..self.systems.len() {
            if self.systems[i].running.is_some() || now_ms < self.systems[i].due_ms {
                continue;
            }
            match self.next(i, now_ms) {
                Ok(job) => {
                    let tracked = &mut self.systems[i];
                    if tracked.state == SystemState::Waiting && tracked.asks == 0 {
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
        for (task, running) in self.peers.iter_mut().filter(|(_, running)| !**running) {
            let Some(tracked) = self.systems.iter().find(|t| t.system.name == task.system && t.healthy) else {
                continue;
            };
            *running = true;
            let step = tracked.system.steps.iter().find(|s| s.name == task.step);
            let job = Job::Peer { task: task.clone(), timeout_secs: timeout(step) };
            actions.push(Action { system: task.system.clone(), job });
        }
        actions
    }

    /// When, after now, [`Node::due`] may have something to do although no job ended.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        self.systems.iter().filter(|t| t.running.is_none() && t.due_ms > now_ms).map(|t| t.due_ms).min()
    }

    /// A job of `system` ended. An unexpected end is ignored.
    pub fn done(&mut self, system: &str, job: &Job, outcome: Outcome, now_ms: u64) {
        if let Job::Peer { task, .. } = job {
            self.peers.remove(task); // the server names it again where that is needed
            return;
        }
        let Some(i) = self.systems.iter().position(|t| t.system.name == system) else { return };
        let tracked = &mut self.systems[i];
        if tracked.running.as_ref() != Some(job) {
            return;
        }
        tracked.running = None;
        match job {
            Job::Step { step, .. } if tracked.stage.as_ref().is_some_and(|(s, _)| s == step) => {
                tracked.cluster_step_ran(outcome, now_ms);
            }
            Job::Step { step, .. } => tracked.step_done(step.clone(), outcome, now_ms),
            Job::Check { .. } => tracked.checked(outcome, now_ms),
            Job::AskStep { seq, .. } => tracked.step_answered(*seq, outcome, now_ms),
            Job::Tell { ok, .. } => tracked.told(*ok, outcome, now_ms),
            Job::Look { .. } | Job::Rank { .. } | Job::AskStart { .. } | Job::Seed { .. } | Job::Join { .. } => {
                tracked.formed(outcome, now_ms);
            }
            Job::Start { .. } => tracked.start_done(outcome, now_ms),
            Job::Health { .. } => tracked.looked(outcome, now_ms),
            Job::Lineage { .. } => self.lineage_read(i, outcome, now_ms),
            Job::Peer { .. } => {}
        }
    }

    /// Ready, or on the way; with one line of detail and every system's state.
    pub fn report(&self) -> (Phase, String, Vec<SystemReport>) {
        let online = self.offline.is_none();
        let ready = self.systems.iter().filter(|t| t.complete(online)).count();
        let phase = if ready == self.systems.len() { Phase::Ready } else { Phase::Join };
        let detail = match self.systems.iter().find(|t| !t.complete(online)) {
            None => format!("{ready} systems healthy"),
            Some(t) => format!("{ready} of {} systems healthy; {}: {}", self.systems.len(), t.system.name, t.reason),
        };
        let systems = self.systems.iter().map(|t| SystemReport {
            name: t.system.name.clone(),
            // A late step is a part of the system: without it the system is not there yet.
            state: if t.state == SystemState::Healthy && !t.complete(online) { SystemState::Starting } else { t.state },
            reason: t.reason.chars().take(REASON_MAX_CHARS).collect(),
            lineage: t.lineage.clone().filter(|_| t.started && t.healthy),
            stranded: t.is_stranded(),
            guests: vec![], // the agent's part
            stopped: vec![],
        });
        (phase, detail, systems.collect())
    }

    /// Cluster steps that run here or that the server may have let run here.
    pub fn running_steps(&self) -> Vec<RunningStep> {
        let of = |t: &Tracked| {
            let (step, stage) = t.stage.as_ref()?;
            let asks = *stage == Stage::Ask && t.running.is_some();
            let runs = matches!(stage, Stage::Run { .. } | Stage::Tell { .. });
            (asks || runs).then(|| RunningStep { system: t.system.name.clone(), step: step.clone() })
        };
        self.systems.iter().filter_map(of).collect()
    }

    /// All that the coming jobs depend on, times and counts aside, with numbers of messages put
    /// through `seq`: two nodes of the same shape go the same ways (`tests/explore.rs`).
    pub fn shape(&self, mut seq: impl FnMut(u64) -> u64, hasher: &mut impl Hasher) {
        (&self.peers, &self.offline).hash(hasher);
        for t in &self.systems {
            (&t.steps_done, &t.forming, t.started, t.healthy, &t.lineage, &t.steps_lineage).hash(hasher);
            (t.is_stranded(), t.stands_down, t.look_first, t.stale).hash(hasher);
            match &t.stage {
                Some((step, Stage::Run { seq: of })) => (step, 1, seq(*of)).hash(hasher),
                Some((step, Stage::Tell { seq: of, ok, .. })) => (step, 2, seq(*of), ok).hash(hasher),
                Some((step, Stage::Ask)) => (step, 3).hash(hasher),
                Some((step, Stage::Check)) => (step, 4).hash(hasher),
                None => 5.hash(hasher),
            }
            t.running.as_ref().map(std::mem::discriminant).hash(hasher);
        }
    }

    /// The next job of a system, or what it waits for.
    fn next(&mut self, i: usize, now_ms: u64) -> Result<Job, String> {
        let online = self.offline.is_none();
        let tracked = &self.systems[i];
        if !tracked.started {
            for name in &tracked.system.after {
                self.require(name, |t| t.complete(online))?;
            }
            let early = tracked.open_steps(false, online).next().cloned();
            if let Some(step) = early {
                return self.step(i, step, now_ms);
            }
            let tracked = &self.systems[i];
            let free = match (&tracked.forming, &self.offline) {
                (Forming::Free, _) => true,
                (Forming::Look, _) => return Ok(Job::Look { unit: tracked.main_unit() }),
                (_, Some(may)) if may.contains(&tracked.system.name) => true,
                (_, Some(_)) => return Err("waits for the server: it was asked before and did not answer".into()),
                (_, None) => false,
            };
            if !free {
                return Ok(self.forming(i, now_ms));
            }
            return Ok(Job::Start { units: self.systems[i].system.units.clone() });
        }
        let may = tracked.healthy && !tracked.look_first;
        if may && tracked.system.is_seeded() && tracked.lineage.is_none() {
            return Ok(Job::Lineage { timeout_secs: HEALTH_TIMEOUT_SECS });
        }
        let late = tracked.open_steps(true, online).next().cloned().filter(|_| may);
        if let Some(step) = late
            && let Ok(job) = self.step(i, step, now_ms)
        {
            return Ok(job);
        }
        let tracked = &self.systems[i];
        Ok(Job::Health { units: tracked.system.units.clone(), timeout_secs: HEALTH_TIMEOUT_SECS })
    }

    fn forming(&mut self, i: usize, now_ms: u64) -> Job {
        let tracked = &self.systems[i];
        let timeout_secs = FORM_TIMEOUT_SECS;
        match tracked.forming.clone() {
            Forming::Ask(data) => Job::AskStart { seq: self.next_seq(now_ms), data },
            Forming::Seed => Job::Seed { timeout_secs },
            Forming::Join { members, lineage, set_aside } => Job::Join { members, lineage, set_aside, timeout_secs },
            Forming::Look | Forming::Rank | Forming::Free => {
                Job::Rank { units: tracked.system.units.clone(), timeout_secs: RANK_TIMEOUT_SECS }
            }
        }
    }

    fn step(&mut self, i: usize, step: Step, now_ms: u64) -> Result<Job, String> {
        for need in &step.needs {
            match need.split_once('/') {
                None => self.require(need, |t| t.healthy)?,
                Some((system, name)) => self
                    .require(system, |t| t.steps_done.contains(name))
                    .map_err(|_| format!("step {} waits for step {need}", step.name))?,
            }
        }
        let (timeout_secs, name) = (timeout(Some(&step)), step.name);
        if step.scope == Scope::Node {
            return Ok(Job::Step { step: name, timeout_secs });
        }
        let tracked = &mut self.systems[i];
        if tracked.stage.as_ref().is_none_or(|(under_way, _)| *under_way != name) {
            tracked.stage = Some((name.clone(), Stage::Check));
        }
        let stage = tracked.stage.as_ref().map_or(Stage::Check, |(_, stage)| stage.clone());
        Ok(match stage {
            Stage::Check => Job::Check { step: name, timeout_secs },
            Stage::Ask => Job::AskStep { seq: self.next_seq(now_ms), step: name },
            Stage::Run { .. } => Job::Step { step: name, timeout_secs },
            Stage::Tell { seq, ok, detail } => Job::Tell { seq, step: name, ok, detail },
        })
    }

    fn require(&self, name: &str, holds: impl Fn(&Tracked) -> bool) -> Result<(), String> {
        match self.systems.iter().find(|t| t.system.name == name) {
            Some(found) if holds(found) => Ok(()),
            Some(_) => Err(format!("waits for {name}")),
            None => Err(format!("waits for {name}, which this role does not have")),
        }
    }

    /// Another lineage than before: what was done in the old one is to be done again.
    fn lineage_read(&mut self, i: usize, outcome: Outcome, now_ms: u64) {
        let tracked = &mut self.systems[i];
        let word = match outcome {
            Outcome::Done(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text,
            Outcome::Done(text) => {
                return tracked.again(SystemState::Starting, format!("lineage printed {text:?}, not one word"), now_ms);
            }
            other => return tracked.again(SystemState::Starting, format!("lineage: {}", words(&other)), now_ms),
        };
        (tracked.lineage, tracked.due_ms, tracked.failures) = (Some(word), now_ms, 0);
        if tracked.steps_lineage == tracked.lineage {
            return;
        }
        tracked.steps_lineage = tracked.lineage.clone();
        let name = tracked.system.name.clone();
        for tracked in &mut self.systems {
            let own = tracked.system.name.clone();
            let lives_in = |s: &&Step| s.scope == Scope::Cluster && *s.writes.as_ref().unwrap_or(&own) == name;
            for step in tracked.system.steps.iter().filter(lives_in) {
                tracked.steps_done.remove(&step.name);
                tracked.stale |= tracked.stage.as_ref().is_some_and(|(under_way, _)| *under_way == step.name);
            }
        }
    }
}

fn timeout(step: Option<&Step>) -> u64 {
    step.and_then(|s| s.timeout.as_deref()).and_then(seconds).unwrap_or(STEP_TIMEOUT_DEFAULT_SECS)
}

/// An outcome that is not the wanted one, for people.
pub(super) fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(t) | Outcome::Later(t) | Outcome::Working(t) => t.clone(),
        Outcome::Failed(t) | Outcome::Missing(t) | Outcome::Down(t) => t.clone(),
        Outcome::Ranked(data) => format!("{data:?}"),
        Outcome::Answered(verdict) => format!("{verdict:?}"),
    }
}

impl Tracked {
    /// Steps of this node that are not done. Late ones need this very system. Cluster steps need
    /// the server; peer steps are other nodes' business.
    fn open_steps(&self, late: bool, online: bool) -> impl Iterator<Item = &Step> {
        let is_late = |step: &Step| step.needs.contains(&self.system.name);
        let ours = move |step: &&Step| step.scope == Scope::Node || (step.scope == Scope::Cluster && online);
        let open = |step: &&Step| !self.steps_done.contains(&step.name);
        self.system.steps.iter().filter(ours).filter(open).filter(move |s| is_late(s) == late)
    }

    /// Healthy, with everything done that belongs to it.
    fn complete(&self, online: bool) -> bool {
        let known = self.lineage.is_some() || !self.system.is_seeded();
        self.healthy && self.started && known && self.open_steps(true, online).next().is_none()
    }

    fn is_stranded(&self) -> bool {
        let runs = self.started || self.forming == Forming::Free;
        runs && self.system.is_seeded() && self.strandings >= STRANDED_LOOKS
    }

    fn interval_ms(&self) -> u64 {
        seconds(&self.system.health.interval).unwrap_or(10) * 1000
    }

    /// The unit that tells whether the system runs: its first service.
    fn main_unit(&self) -> String {
        let service = self.system.units.iter().find(|u| u.ends_with(".service"));
        service.or(self.system.units.first()).cloned().unwrap_or_default()
    }

    fn step_done(&mut self, step: String, outcome: Outcome, now_ms: u64) {
        match outcome {
            Outcome::Done(_) => self.step_is_done(step, now_ms),
            Outcome::Later(why) => self.again(SystemState::Starting, format!("step {step}: {why}"), now_ms),
            other => self.again(SystemState::Failed, format!("step {step}: {}", words(&other)), now_ms),
        }
    }

    fn step_is_done(&mut self, step: String, now_ms: u64) {
        if !std::mem::take(&mut self.stale) {
            self.steps_done.insert(step);
        }
        (self.stage, self.failures, self.asks) = (None, 0, 0);
        if self.healthy {
            self.state = SystemState::Healthy; // a late step that had failed before
        }
        self.due_ms = if self.complete(true) { now_ms + self.interval_ms() } else { now_ms };
    }

    fn checked(&mut self, outcome: Outcome, now_ms: u64) {
        let Some((step, stage)) = &mut self.stage else { return };
        match outcome {
            Outcome::Done(_) => {
                let step = step.clone();
                self.step_is_done(step, now_ms);
            }
            Outcome::Later(why) => {
                let reason = format!("step {step}: {why}");
                self.again(SystemState::Starting, reason, now_ms);
            }
            _ => (*stage, self.due_ms) = (Stage::Ask, now_ms),
        }
    }

    fn step_answered(&mut self, seq: u64, outcome: Outcome, now_ms: u64) {
        let Some((step, stage)) = &mut self.stage else { return };
        match outcome {
            Outcome::Answered(Verdict::Run) => {
                (*stage, self.due_ms, self.asks) = (Stage::Run { seq }, now_ms, 0);
            }
            Outcome::Answered(Verdict::Done) => {
                let step = step.clone();
                self.step_is_done(step, now_ms);
            }
            other => {
                *stage = Stage::Check;
                let reason = format!("step {step} waits: {}", reason_of(&other));
                self.ask_again(reason, now_ms);
            }
        }
    }

    fn cluster_step_ran(&mut self, outcome: Outcome, now_ms: u64) {
        let Some((_, stage)) = &mut self.stage else { return };
        let Stage::Run { seq } = *stage else { return };
        let ok = matches!(outcome, Outcome::Done(_));
        let detail = words(&outcome).chars().take(REASON_MAX_CHARS).collect();
        (*stage, self.due_ms) = (Stage::Tell { seq, ok, detail }, now_ms);
    }

    fn told(&mut self, ok: bool, outcome: Outcome, now_ms: u64) {
        let Some((step, stage)) = &mut self.stage else { return };
        let step = step.clone();
        match (outcome, ok) {
            (Outcome::Done(_), true) => self.step_is_done(step, now_ms),
            (Outcome::Done(_), false) => {
                let Stage::Tell { detail, .. } = stage else { return };
                let reason = format!("step {step}: {detail}");
                self.stage = None;
                self.again(SystemState::Failed, reason, now_ms);
            }
            (other, _) => self.ask_again(format!("step {step}: telling the server: {}", words(&other)), now_ms),
        }
    }

    /// A part of the way to the units ended.
    fn formed(&mut self, outcome: Outcome, now_ms: u64) {
        let next = match (&self.forming, outcome) {
            (Forming::Look, Outcome::Done(_)) => Forming::Free,
            (Forming::Look, Outcome::Down(_)) => Forming::Rank,
            (Forming::Rank, Outcome::Ranked(data)) => Forming::Ask(data),
            (Forming::Ask(_), Outcome::Answered(Verdict::Seed)) => Forming::Seed,
            (Forming::Ask(_), Outcome::Answered(Verdict::Join { members, lineage, set_aside })) => {
                Forming::Join { members, lineage, set_aside }
            }
            (Forming::Ask(_), outcome) => {
                let quarantined = matches!(outcome, Outcome::Answered(Verdict::Quarantined { .. }));
                self.ask_again(reason_of(&outcome), now_ms);
                if quarantined {
                    self.state = SystemState::Failed;
                }
                return;
            }
            (Forming::Seed, Outcome::Done(_)) | (Forming::Join { .. }, Outcome::Done(_) | Outcome::Missing(_)) => {
                Forming::Free
            }
            (Forming::Rank, Outcome::Missing(why)) => {
                return self.again(SystemState::Failed, why, now_ms);
            }
            (forming, outcome) => {
                let what = match forming {
                    Forming::Seed => "seed",
                    Forming::Join { .. } => "join",
                    Forming::Rank => "rank",
                    _ => "unit",
                };
                let (later, reason) = (matches!(outcome, Outcome::Later(_)), format!("{what}: {}", words(&outcome)));
                // What it holds may be another by now, and so may the others' state.
                self.forming = Forming::Look;
                let state = if later { SystemState::Starting } else { SystemState::Failed };
                return self.again(state, reason, now_ms);
            }
        };
        (self.forming, self.due_ms, self.asks) = (next, now_ms, 0);
        (self.state, self.reason) = (SystemState::Starting, self.forming_word());
    }

    fn forming_word(&self) -> String {
        match &self.forming {
            Forming::Look | Forming::Free => "starting".into(),
            Forming::Rank => "reading what it holds".into(),
            Forming::Ask(Data::Blank) => "blank; asks the server".into(),
            Forming::Ask(Data::Holds { lineage, rank }) => format!("holds {lineage} rank {rank}; asks the server"),
            Forming::Seed => "seeds the cluster".into(),
            Forming::Join { members, .. } => format!("joins {}", members.join(" ")),
        }
    }

    fn start_done(&mut self, outcome: Outcome, now_ms: u64) {
        match outcome {
            Outcome::Done(_) => {
                (self.started, self.looks, self.due_ms) = (true, 0, now_ms);
                self.strandings = 0;
            }
            Outcome::Working(why) => {
                // Who falls and starts anew for want of others works in between: something stays counted.
                (self.strandings, self.failures) = (self.strandings.min(STRANDED_START), 0);
                self.again(SystemState::Starting, why, now_ms);
            }
            Outcome::Later(why) => {
                // It hangs: those that it was to join are gone.
                self.strandings = self.strandings.saturating_add(STRANDED_START);
                if !self.steps_down(now_ms) {
                    self.failures = 0;
                    self.again(SystemState::Starting, why, now_ms);
                }
            }
            other => {
                self.fall();
                self.again(SystemState::Failed, words(&other), now_ms);
            }
        }
    }

    /// It does not run: a seeded one must ask again before it may.
    fn fall(&mut self) {
        (self.started, self.healthy, self.lineage) = (false, false, None);
        (self.strandings, self.stands_down, self.look_first) = (0, false, false);
        if self.system.is_seeded() {
            self.forming = Forming::Look;
        }
    }

    /// Whether it is stopped because it was told so and is still stranded.
    fn steps_down(&mut self, now_ms: u64) -> bool {
        if !std::mem::take(&mut self.stands_down) || !self.is_stranded() {
            return false;
        }
        self.fall();
        (self.forming, self.due_ms) = (Forming::Rank, now_ms);
        (self.state, self.reason) = (SystemState::Starting, "stops: it was cut off from the others".into());
        true
    }

    fn looked(&mut self, outcome: Outcome, now_ms: u64) {
        let interval = self.interval_ms();
        self.strandings = if matches!(outcome, Outcome::Later(_)) { self.strandings.saturating_add(1) } else { 0 };
        if self.steps_down(now_ms) {
            return;
        }
        let was_healthy = self.state == SystemState::Healthy || self.state == SystemState::Unhealthy;
        match outcome {
            Outcome::Done(reason) => {
                let (first, again) = (!self.healthy, std::mem::take(&mut self.look_first));
                (self.healthy, self.looks) = (true, 0);
                if first || !again {
                    (self.state, self.reason, self.failures) = (SystemState::Healthy, reason, 0);
                }
                // A late step is due at once.
                self.due_ms = if (first || again) && !self.complete(true) { now_ms } else { now_ms + interval };
            }
            Outcome::Missing(why) => {
                self.healthy = false;
                (self.state, self.reason) = (SystemState::Failed, why);
                self.due_ms = now_ms + interval;
            }
            Outcome::Down(why) => {
                self.fall();
                self.again(SystemState::Failed, why, now_ms);
            }
            other => {
                self.healthy = false;
                self.state = if was_healthy { SystemState::Unhealthy } else { SystemState::Starting };
                self.reason = words(&other);
                self.due_ms = now_ms + (LOOK_FIRST_MS << self.looks.min(16)).min(interval);
                self.looks += 1;
            }
        }
    }

    fn again(&mut self, state: SystemState, reason: String, now_ms: u64) {
        (self.state, self.reason, self.look_first) = (state, reason, self.started);
        self.due_ms = now_ms + (RETRY_FIRST_MS << self.failures.min(16)).min(RETRY_MAX_MS);
        self.failures = self.failures.saturating_add(1);
    }

    fn ask_again(&mut self, reason: String, now_ms: u64) {
        if !self.healthy {
            self.state = SystemState::Waiting;
        }
        (self.reason, self.look_first) = (reason, self.started);
        self.due_ms = now_ms + (ASK_FIRST_MS << self.asks.min(16)).min(ASK_MAX_MS);
        self.asks = self.asks.saturating_add(1);
    }
}

/// Why the server let nothing start.
fn reason_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered(Verdict::Wait { reason }) => reason.clone(),
        Outcome::Answered(Verdict::Quarantined { reason }) => format!("quarantined: {reason}"),
        other => format!("asking the server: {}", words(other)),
    }
}

#[cfg(test)]
mod tests;
