//! What the server knows only in memory: when it last heard of whom. After a restart all of it is
//! unknown and counted anew, and what needs it refuses. Times are monotonic milliseconds.

use super::decide::{Boot, Command};
use super::identify::{Identity, identify};
use super::message::{DoneRequest, DrainReport, PeerTask, Phase, Report, SESSION_DEAD_SECS, SystemReport, SystemState};
use super::state::State;
use super::text;
use crate::site::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Events that an unauthenticated machine may cause in [`NOISE_WINDOW_MS`]; the rest is dropped,
/// so that nobody on the network can fill the log.
pub const NOISE_MAX: u32 = 200;
/// The same for all machines together that are no node of the site.
pub const NOISE_STRANGERS_MAX: u32 = 5000;
/// Ten minutes.
pub const NOISE_WINDOW_MS: u64 = 600_000;
/// Addresses that this server failed to serve and that are remembered, for an hour.
const FAILED_MAX: usize = 4096;
const FAILED_MS: u64 = 3_600_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// When this server started.
    pub started_ms: u64,
    /// By node.
    pub heard: BTreeMap<String, Heard>,
    /// When the machine of a node with an open order last asked to boot, or the order was given.
    pub asked: BTreeMap<String, u64>,
    /// What a member did for a removed node and was in vain: by node, system and step.
    pub stuck: BTreeMap<(String, String, String), Stuck>,
    /// The boot of each node that was last let go on.
    pub tried: BTreeMap<String, Tried>,
    /// Since when nodes wait before their next boot, counted from this server's start at most.
    pub paused: BTreeMap<String, u64>,
    /// When this server last failed to serve an address.
    failed: BTreeMap<Ipv4Addr, u64>,
    noise: BTreeMap<Mac, Window>,
    strangers: Window,
}

/// A boot that was let go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub boot_id: String,
    pub source: Ipv4Addr,
    pub at_ms: u64,
}

/// After a step for a removed node failed it is not asked for before this; doubled with each further failure …
pub const STUCK_FIRST_MS: u64 = 5_000;
/// … up to this.
pub const STUCK_MAX_MS: u64 = 300_000;

/// A step that failed, so often in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stuck {
    pub reason: String,
    /// It is asked for again from then on.
    pub due_ms: u64,
    failures: u32,
}

/// Events since a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    start_ms: u64,
    count: u32,
}

impl Window {
    fn old(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.start_ms) >= NOISE_WINDOW_MS
    }

    fn add(&mut self, events: usize, now_ms: u64) {
        if self.count == 0 || self.old(now_ms) {
            *self = Window { start_ms: now_ms, count: 0 };
        }
        self.count = self.count.saturating_add(events as u32);
    }
}

/// The last authenticated word of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub generation: u64,
    pub at_ms: u64,
    /// Its newest report since this server started; `None`: it has only registered.
    pub report: Option<Reported>,
    /// Since when it says that it is ready, without another word between.
    pub ready_ms: Option<u64>,
}

/// What a report says of the systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub seq: u64,
    pub ready: bool,
    /// Systems that serve with a lineage.
    pub lineages: Arc<BTreeMap<String, String>>,
    /// Systems that run but cannot serve.
    pub stranded: Arc<BTreeSet<String>>,
    pub healthy: Arc<BTreeSet<String>>,
    /// By the system that they live in.
    pub guests: Arc<BTreeMap<String, Guests>>,
    pub drain: Option<DrainReport>,
    /// Guests can be moved from it and to it.
    pub moves: bool,
}

/// Others' machines in one system, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guests {
    pub running: Vec<String>,
    pub stopped: Vec<String>,
}

impl Guests {
    /// By system; those without guests are left out.
    pub fn of<'a>(systems: impl IntoIterator<Item = &'a SystemReport>) -> BTreeMap<String, Guests> {
        let of = |s: &SystemReport| {
            let (stopped, running) = s.guests.iter().cloned().partition(|g| s.stopped.contains(g));
            (s.name.clone(), Guests { running, stopped })
        };
        systems.into_iter().filter(|s| !s.guests.is_empty()).map(of).collect()
    }

    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.running.iter().chain(&self.stopped).map(String::as_str)
    }
}

impl Reported {
    pub fn of(report: &Report) -> Reported {
        let lineages = report.systems.iter().filter_map(|s| Some((s.name.clone(), s.lineage.clone()?)));
        let stranded = report.systems.iter().filter(|s| s.stranded && s.lineage.is_none()).map(|s| s.name.clone());
        let healthy = report.systems.iter().filter(|s| s.state == SystemState::Healthy).map(|s| s.name.clone());
        Reported {
            seq: report.seq,
            ready: report.phase == Phase::Ready && !report.leaving,
            lineages: Arc::new(lineages.collect()),
            stranded: Arc::new(stranded.collect()),
            healthy: Arc::new(healthy.collect()),
            guests: Arc::new(Guests::of(&report.systems)),
            drain: report.drain.clone(),
            moves: report.moves,
        }
    }
}

impl Live {
    pub fn new(started_ms: u64) -> Live {
        Live { started_ms, ..Live::default() }
    }

    /// When the node's current session was last heard; `None`: not since this server started.
    pub fn heard_ms(&self, state: &State, node: &str) -> Option<u64> {
        let generation = state.nodes.get(node)?.generation;
        self.heard.get(node).filter(|h| h.generation == generation).map(|h| h.at_ms)
    }

    /// Whether the node's session lives or may live: it is dead only after it said so, or after
    /// [`SESSION_DEAD_SECS`] of silence during which this server listened.
    pub fn session_lives(&self, state: &State, node: &str, now_ms: u64) -> bool {
        match state.nodes.get(node).and_then(|n| n.session.as_ref()) {
            None => false,
            Some(session) if session.left => false,
            Some(_) => {
                let last = self.heard_ms(state, node).unwrap_or(0).max(self.started_ms);
                now_ms.saturating_sub(last) < SESSION_DEAD_SECS * 1000
            }
        }
    }

    /// Whether this machine may still cause an event without proving who it is. Machines of the
    /// site have a budget each, so that strangers cannot use it up.
    pub fn may_speak(&self, mac: Mac, stranger: bool, now_ms: u64) -> bool {
        let room = |w: &Window, max: u32| w.old(now_ms) || w.count < max;
        let own = self.noise.get(&mac).is_none_or(|w| room(w, NOISE_MAX));
        own && (!stranger || room(&self.strangers, NOISE_STRANGERS_MAX))
    }

    /// Takes note of a command that was let through, after its events were folded into `state`.
    pub fn note(&mut self, command: &Command, state: &State, now_ms: u64) {
        match command {
            Command::Register { request, .. } => self.hear(state, &request.node, None, now_ms),
            Command::Report { fingerprint, report } => {
                if let Some((node, _)) = state.by_fingerprint(fingerprint) {
                    self.hear(state, &node.clone(), Some(Reported::of(report)), now_ms);
                }
            }
            Command::Claim { fingerprint, .. } => {
                if let Some((node, _)) = state.by_fingerprint(fingerprint) {
                    self.hear(state, &node.clone(), None, now_ms);
                }
            }
            Command::Done { request, .. } => self.note_removed(state, request, now_ms),
            Command::Reimage(order) => drop(self.asked.insert(order.node.clone(), now_ms)),
            Command::Tick { .. } => {
                for node in state.open_orders.values() {
                    self.asked.entry(node.clone()).or_insert(now_ms);
                }
                self.paused.retain(|node, _| state.paused.contains(node));
                for node in &state.paused {
                    self.paused.entry(node.clone()).or_insert(now_ms);
                }
            }
            Command::Boot(boot) => self.try_boot(state, boot, now_ms),
            Command::Failed { source } => {
                self.failed.retain(|_, at| now_ms.saturating_sub(*at) < FAILED_MS);
                if self.failed.len() < FAILED_MAX || self.failed.contains_key(source) {
                    self.failed.insert(*source, now_ms);
                }
            }
            Command::Saw { mac, .. } => self.ask(state, *mac, now_ms),
            Command::Answer(answer) => self.ask(state, answer.mac, now_ms),
            _ => {}
        }
    }

    /// Only of nodes that are still to be forgotten.
    fn note_removed(&mut self, state: &State, request: &DoneRequest, now_ms: u64) {
        self.stuck.retain(|(node, system, step), _| state.is_remembered(node, system, step));
        let failed = |t: &&PeerTask| !request.ok && state.is_remembered(&t.node, &t.system, &t.step);
        if let Some(task) = request.peer.as_ref().filter(failed) {
            let stuck = self.stuck.entry((task.node.clone(), task.system.clone(), task.step.clone())).or_default();
            stuck.reason = text::clean(&request.detail, 300);
            stuck.due_ms = now_ms + (STUCK_FIRST_MS << stuck.failures.min(16)).min(STUCK_MAX_MS);
            stuck.failures = stuck.failures.saturating_add(1);
        }
    }

    /// A card asked; noted only for nodes that an order waits for, and forgotten with it.
    fn ask(&mut self, state: &State, mac: Mac, now_ms: u64) {
        self.asked.retain(|node, _| state.nodes.get(node).is_some_and(|n| n.open_order().is_some()));
        for name in state.open_orders.values() {
            let approved = state.machines.get(&mac).is_some_and(|m| m.approved.as_ref() == Some(name));
            if approved || state.site_node(name).is_some_and(|n| n.macs.contains(&mac)) {
                self.asked.insert(name.clone(), now_ms);
            }
        }
    }

    fn try_boot(&mut self, state: &State, boot: &Boot, now_ms: u64) {
        let Identity::Node { name, .. } = identify(state, boot.request.mac, boot.request.uuid) else { return };
        let boot_id = &boot.request.boot_id;
        let counts = state.nodes.get(&name).is_some_and(|n| n.attempts.boot_id == *boot_id);
        if counts && self.tried.get(&name).is_none_or(|t| t.boot_id != *boot_id) {
            let tried = Tried { boot_id: boot_id.clone(), source: boot.source, at_ms: now_ms };
            self.tried.insert(name, tried);
        }
    }

    /// Whether this server failed to serve that address since then.
    pub fn failed_since(&self, source: Ipv4Addr, at_ms: u64) -> bool {
        self.failed.get(&source).is_some_and(|failed| *failed >= at_ms)
    }

    /// For how long the machine that an order waits for has not asked to boot.
    pub fn silent_ms(&self, node: &str, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.asked.get(node).copied().unwrap_or(self.started_ms))
    }

    fn hear(&mut self, state: &State, node: &str, report: Option<Reported>, now_ms: u64) {
        let generation = state.node(node).generation;
        let before = self.heard.get(node).filter(|h| h.generation == generation);
        let (before, ready_ms) = before.map_or((None, None), |h| (h.report.clone(), h.ready_ms));
        // Messages may overtake each other: the newest one counts.
        let report = report.filter(|r| before.as_ref().is_none_or(|b| b.seq <= r.seq)).or(before);
        let ready_ms = report.as_ref().filter(|r| r.ready).map(|_| ready_ms.unwrap_or(now_ms));
        self.heard.insert(node.to_string(), Heard { generation, at_ms: now_ms, report, ready_ms });
    }

    /// For how long the node's current session has been ready, as far as this server heard; `None`: it is not.
    pub fn ready_for(&self, state: &State, node: &str, now_ms: u64) -> Option<u64> {
        let generation = state.nodes.get(node)?.generation;
        let since = self.heard.get(node).filter(|h| h.generation == generation)?.ready_ms?;
        Some(now_ms.saturating_sub(since))
    }

    /// The lineage with which a node serves a system, by its newest report: it is the current
    /// generation's, its session lives, and it is newer than what the ledger granted since.
    pub fn serves(&self, state: &State, node: &str, system: &str, now_ms: u64) -> Option<String> {
        self.says(state, node, system, now_ms)?.lineages.get(system).cloned()
    }

    /// Whether the node runs a system that cannot serve, by the same report.
    pub fn is_stranded(&self, state: &State, node: &str, system: &str, now_ms: u64) -> bool {
        self.says(state, node, system, now_ms).is_some_and(|report| report.stranded.contains(system))
    }

    fn says(&self, state: &State, node: &str, system: &str, now_ms: u64) -> Option<&Reported> {
        let known = state.nodes.get(node)?;
        let heard = self.heard.get(node).filter(|h| h.generation == known.generation)?;
        let report = heard.report.as_ref()?;
        let barrier = state.cluster.formations.get(system).map_or(0, |f| f.barrier(node, known.generation));
        let counts = !known.is_fenced() && report.seq > barrier && self.session_lives(state, node, now_ms);
        counts.then_some(report)
    }

    /// The node's newest report, if its session lives and it is not known to be off.
    pub fn fresh(&self, state: &State, node: &str, now_ms: u64) -> Option<&Reported> {
        let known = state.nodes.get(node)?;
        let heard = self.heard.get(node).filter(|h| h.generation == known.generation)?;
        heard.report.as_ref().filter(|_| !known.is_fenced() && self.session_lives(state, node, now_ms))
    }

    /// Whether the node has reported in its current generation since this server started.
    pub fn has_reported(&self, state: &State, node: &str) -> bool {
        let generation = state.nodes.get(node).map_or(0, |n| n.generation);
        self.heard.get(node).is_some_and(|h| h.generation == generation && h.report.is_some())
    }

    /// Counts events that a machine caused without proving who it is.
    pub fn count(&mut self, mac: Mac, stranger: bool, events: usize, now_ms: u64) {
        if events == 0 {
            return;
        }
        self.noise.retain(|_, window| !window.old(now_ms));
        self.noise.entry(mac).or_default().add(events, now_ms);
        if stranger {
            self.strangers.add(events, now_ms);
        }
    }
}
