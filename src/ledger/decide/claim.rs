//! `POST /v1/claim`: whether a stopped system may start on a node, and how. The one place where a
//! cluster is allowed to come into being or back from the dark.
//!
//! ```text
//! unknown ──form──► unformed ──claim──► forming(holder) ──it serves──► formed(lineage, members)
//!    │                                      │ only its own newer generation,      │   ▲
//!    └──────────── adopt ───────────────────│ or another once it is fenced        │   │ it serves
//!                                           ▼                                     ▼   │
//!                                          (wait)                    dark: every member stopped or
//!                                                                    fenced ──► the best is seeded
//! ```
//! Silence is never evidence: a member counts as stopped only by its own word from its current
//! generation, or fenced by the operator's.

use super::{Refusal, Why, current, step};
use crate::image::id::Digest;
use crate::ledger::cluster::{Formation, Holder, Stopped};
use crate::ledger::event::Event;
use crate::ledger::live::Live;
use crate::ledger::message::{Ask, ClaimRequest, Data, Verdict};
use crate::ledger::state::State;
use crate::ledger::text;
use crate::recipe::system::{Clustered, Dark};
use crate::site::Node;
use std::collections::BTreeSet;

/// Names in a reason; more are counted.
const NAMES_MAX: usize = 5;

/// The events that a claim causes and its answer. Asked again after its events were folded it
/// gives the same answer and no event.
pub fn claim(
    state: &State,
    live: &Live,
    fingerprint: &Digest,
    request: &ClaimRequest,
    now_ms: u64,
) -> Result<(Vec<Event>, Verdict), Refusal> {
    let (name, node) = current(state, fingerprint)?;
    let role = state.site_node(name).map(|n| n.role.as_str()).unwrap_or_default();
    let Some(system) = state.clustered(role, &request.system) else {
        let reason = format!("role {role:?} of node {name} has no system {:?} to claim", text::word(&request.system));
        return Err(Refusal::new(Why::NotFound, reason));
    };
    let (generation, seq) = (node.generation, request.seq);
    match &request.ask {
        Ask::Step { step } => step::claim(state, system, name, generation, step, seq),
        Ask::Start { data } => {
            if system.dark().is_none() {
                return Err(Refusal::new(Why::NotFound, format!("system {} needs no claim to start", system.name)));
            }
            let data = match data {
                Data::Blank => Data::Blank,
                Data::Holds { lineage, rank } => Data::Holds { lineage: text::word(lineage), rank: *rank },
            };
            Ok(Start { state, live, system, name, generation, seq, data, now_ms }.judge())
        }
    }
}

/// The answer to a claim that was decided before, from what is known by now. Other commands may have
/// been decided since, with which the same question would be granted something: what is not in the
/// ledger is not granted, so it is to be asked again.
pub fn verdict(
    state: &State,
    live: &Live,
    fingerprint: &Digest,
    request: &ClaimRequest,
    now_ms: u64,
) -> Result<Verdict, Refusal> {
    let (events, verdict) = claim(state, live, fingerprint, request, now_ms)?;
    Ok(if events.is_empty() { verdict } else { wait("asked again at once: others have spoken meanwhile") })
}

struct Start<'a> {
    state: &'a State,
    live: &'a Live,
    system: &'a Clustered,
    name: &'a str,
    generation: u64,
    seq: u64,
    data: Data,
    now_ms: u64,
}

type Judged = (Vec<Event>, Verdict);

fn wait(reason: impl Into<String>) -> Verdict {
    Verdict::Wait { reason: reason.into() }
}

impl Start<'_> {
    fn judge(&self) -> Judged {
        let known = self.state.cluster.formation(&self.system.name);
        let granted = known.granted.get(self.name).filter(|g| g.generation == self.generation);
        if let Some(grant) = granted.filter(|g| self.seq <= g.seq) {
            return match (self.seq == grant.seq, grant.seed) {
                (false, _) => (vec![], wait("this question is older than the last answer")),
                (true, true) => (vec![], Verdict::Seed),
                (true, false) => (vec![], self.join(&known, grant.set_aside)),
            };
        }
        let mut formation = (*known).clone();
        let mut events = Vec::new();
        let same = |s: &&Stopped| s.generation == self.generation && s.data == self.data;
        if known.stopped.get(self.name).filter(same).is_none() {
            let (generation, seq) = (self.generation, self.seq);
            let stopped = Stopped { generation, seq, data: self.data.clone() };
            formation.show(self.name, stopped);
            let (system, node) = (self.system.name.clone(), self.name.to_string());
            events.push(Event::DataShown { system, node, generation, seq, data: self.data.clone() });
        }
        let (more, verdict) = self.decide(&formation);
        events.extend(more);
        (events, verdict)
    }

    fn decide(&self, formation: &Formation) -> Judged {
        let cluster = &self.state.cluster;
        if let Some(chosen) = &formation.chosen {
            return if let Some(other) = self.carriers().find(|n| self.serves(n).is_some()) {
                (vec![], wait(format!("{other} serves it; next: kiln cluster recover {}", self.system.name)))
            } else if chosen == self.name {
                self.seed(vec![])
            } else {
                (vec![], wait(format!("comes back from {chosen}'s data, by the operator's word")))
            };
        }
        if !cluster.genesis {
            return (vec![], wait("the ledger knows of no cluster: kiln cluster form, or adopt if there is one"));
        }
        if let Some(reason) = &cluster.behind {
            return (vec![], wait(format!("the ledger is behind ({reason}): kiln cluster adopt")));
        }
        match &formation.lineage {
            None => self.unformed(formation),
            Some(lineage) => self.formed(formation, lineage),
        }
    }

    /// Nobody has made it yet, as far as the ledger knows.
    fn unformed(&self, formation: &Formation) -> Judged {
        let holder = formation.seeding.as_ref();
        // What a node holds that was let seed is what it made; what anyone else holds is not known here.
        let seeds = holder.is_some_and(|h| h.node == self.name);
        let current = formation.stopped.iter().filter(|(n, s)| self.is_current(n, s) && !self.is_off(n));
        let held = current.filter(|(n, _)| !(seeds && *n == self.name)).find_map(|(node, s)| match &s.data {
            Data::Holds { lineage, .. } => Some((node, lineage)),
            Data::Blank => None,
        });
        if let Some((node, lineage)) = held.filter(|_| self.system.dark() != Some(Dark::Reset)) {
            let what = format!("{node} holds data of {} {lineage}, which was never formed here", self.system.name);
            return self.behind(what);
        }
        if let Some(holder) = holder.filter(|h| h.node != self.name && !self.is_off(&h.node)) {
            return (vec![], wait(format!("{} seeds it (generation {})", holder.node, holder.generation)));
        }
        if let Some(other) = self.carriers().find(|n| self.serves(n).is_some()) {
            return self.behind(format!("{other} serves {}, which was never formed here", self.system.name));
        }
        // Disposable, so it may begin anew; but whoever holds some may run it.
        let missing = self.may_run_on(formation);
        if held.is_some() && !missing.is_empty() {
            return (vec![], wait(format!("nobody serves it; waits for {}", self.states(&missing))));
        }
        if let Some(unknown) = self.unvouched(formation) {
            return (vec![], unknown);
        }
        self.seed(vec![])
    }

    fn formed(&self, formation: &Formation, lineage: &str) -> Judged {
        // A holder that stopped again may not be the best any more: it waits like everyone.
        let seeds = |h: &&Holder| h.node != self.name && !self.is_known(formation, &h.node);
        if let Some(holder) = formation.seeding.as_ref().filter(seeds) {
            return (vec![], wait(format!("{} brings it back (generation {})", holder.node, holder.generation)));
        }
        let foreign = matches!(&self.data, Data::Holds { lineage: own, .. } if own != lineage);
        let aside = formation.sets_aside(self.name, &self.data);
        if foreign && !aside && self.system.dark() == Some(Dark::Rank) {
            let reason = format!(
                "holds data of another cluster than {lineage}: left alone; next: kiln cluster recover {} --from NODE",
                self.system.name
            );
            return (vec![], Verdict::Quarantined { reason });
        }
        if let Some(helper) = self.healthy(lineage).next() {
            let rejoins = !foreign && !aside && self.data != Data::Blank;
            if !rejoins && let Some(step) = step::open_room(self.system, formation, self.name, self.generation) {
                return (vec![], wait(format!("{helper} makes room for it ({step})")));
            }
            let event = Event::JoinGranted {
                system: self.system.name.clone(),
                node: self.name.into(),
                generation: self.generation,
                seq: self.seq,
                set_aside: aside,
            };
            return (vec![event], self.join(formation, aside));
        }
        self.dark(formation, lineage)
    }

    /// Nobody serves. Only when all that may hold its data are known to be stopped is one of them
    /// the one to bring it back.
    fn dark(&self, formation: &Formation, lineage: &str) -> Judged {
        if let Some(unknown) = self.unvouched(formation) {
            return (vec![], unknown);
        }
        let missing: Vec<&str> =
            formation.members.iter().map(String::as_str).filter(|n| !self.is_known(formation, n)).collect();
        if !missing.is_empty() {
            return (vec![], wait(format!("nobody serves it; waits for {}", self.states(&missing))));
        }
        let candidates = formation.stopped.iter().filter(|(n, s)| self.is_current(n, s) && !self.is_off(n));
        let best = match self.system.dark() {
            Some(Dark::Reset) => candidates.map(|(n, _)| (0, n)).min_by_key(|(_, n)| n.as_str()),
            _ => candidates
                .filter_map(|(n, s)| match &s.data {
                    Data::Holds { lineage: own, rank } if own == lineage && *rank >= 0 => Some((*rank, n)),
                    _ => None,
                })
                .max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(a.1))),
        };
        match best {
            Some((_, node)) if node == self.name => {
                // Whoever was fenced may hold what the others never saw.
                let off = formation.members.iter().filter(|n| self.is_off(n)).cloned().collect();
                self.seed(off)
            }
            Some((rank, node)) => (vec![], wait(format!("{node} brings it back (rank {rank})"))),
            None => {
                let next = format!("kiln cluster recover {} --from NODE --accept-loss", self.system.name);
                (vec![], wait(format!("no member holds data of {lineage}; next: {next}")))
            }
        }
    }

    fn seed(&self, aside: Vec<String>) -> Judged {
        let (system, node) = (self.system.name.clone(), self.name.to_string());
        let grant = Event::SeedGranted { system: system.clone(), node, generation: self.generation, seq: self.seq };
        let aside = (!aside.is_empty()).then_some(Event::SetAside { system, nodes: aside });
        ([grant].into_iter().chain(aside).collect(), Verdict::Seed)
    }

    fn join(&self, formation: &Formation, set_aside: bool) -> Verdict {
        let lineage = formation.lineage.clone().unwrap_or_default();
        let members = self.healthy(&lineage).map(String::from).collect();
        Verdict::Join { members, lineage, set_aside }
    }

    fn behind(&self, reason: String) -> Judged {
        let verdict = wait(format!("the ledger is behind ({reason}): kiln cluster adopt"));
        (vec![Event::Behind { node: self.name.into(), reason }], verdict)
    }

    /// A ledger that may not be the newest may not know all members: every node of the site that
    /// carries the system must have said what it holds.
    fn unvouched(&self, formation: &Formation) -> Option<Verdict> {
        let reason = self.state.cluster.unvouched.as_ref()?;
        let missing = self.may_run_on(formation);
        let waits = || wait(format!("{reason}; waits for a word of {}", self.states(&missing)));
        (!missing.is_empty()).then(waits)
    }

    fn carriers(&self) -> impl Iterator<Item = &str> {
        self.state.carriers(&self.system.name).map(|n| n.name.as_str())
    }

    fn serves(&self, node: &str) -> Option<String> {
        self.live.serves(self.state, node, &self.system.name, self.now_ms).filter(|_| node != self.name)
    }

    /// The other nodes that serve this lineage now.
    fn healthy<'b>(&'b self, lineage: &'b str) -> impl Iterator<Item = &'b str> {
        self.carriers().filter(move |n| self.serves(n).as_deref() == Some(lineage))
    }

    fn is_current(&self, node: &str, stopped: &Stopped) -> bool {
        stopped.generation == self.state.nodes.get(node).map_or(0, |n| n.generation)
    }

    fn is_off(&self, node: &str) -> bool {
        self.state.nodes.get(node).is_some_and(|n| n.is_fenced())
    }

    /// Whether it is known not to run there, and what it holds.
    fn is_known(&self, formation: &Formation, node: &str) -> bool {
        self.is_off(node) || formation.stopped.get(node).is_some_and(|s| self.is_current(node, s))
    }

    /// Carriers that may run it.
    fn may_run_on(&self, formation: &Formation) -> Vec<&str> {
        self.carriers().filter(|n| !self.is_known(formation, n)).collect()
    }

    fn states(&self, nodes: &[&str]) -> String {
        let word = |node: &&str| match self.live.heard_ms(self.state, node) {
            Some(ms) => format!("{node} (heard {} s ago)", self.now_ms.saturating_sub(ms) / 1000),
            None => format!("{node} (not heard)"),
        };
        let mut words: Vec<String> = nodes.iter().take(NAMES_MAX).map(word).collect();
        if nodes.len() > NAMES_MAX {
            words.push(format!("{} more", nodes.len() - NAMES_MAX));
        }
        words.join(", ")
    }
}

/// Systems that a node is to stop because they run without serving. Where others serve, it joins them
/// anew; where nobody does, nobody can be let in or seeded before every such node has said what it
/// holds.
pub fn stand_down(state: &State, live: &Live, name: &str, now_ms: u64) -> Vec<String> {
    let cluster = &state.cluster;
    let doubtful = !cluster.genesis || cluster.behind.is_some() || cluster.unvouched.is_some();
    let stuck = |system: &&str| {
        let formation = cluster.formation(system);
        let mut holders: BTreeSet<&str> = unknown(state, live, system, now_ms);
        if !holders.contains(name) || !live.is_stranded(state, name, system, now_ms) {
            return false;
        }
        if !doubtful && formation.lineage.is_some() {
            holders.retain(|n| formation.members.contains(*n));
        }
        let serves = |n: &Node| live.serves(state, &n.name, system, now_ms).is_some();
        state.carriers(system).any(serves) || holders.iter().all(|n| live.is_stranded(state, n, system, now_ms))
    };
    state.seeded().into_keys().filter(stuck).map(String::from).collect()
}

/// The nodes whose data is not known: neither stopped nor serving nor known to be off.
pub(super) fn unknown<'a>(state: &'a State, live: &Live, system: &str, now_ms: u64) -> BTreeSet<&'a str> {
    let formation = state.cluster.formation(system);
    let known = |name: &str| {
        let node = state.node(name);
        let stopped = formation.stopped.get(name).is_some_and(|s| s.generation == node.generation);
        node.is_fenced() || stopped || live.serves(state, name, system, now_ms).is_some()
    };
    state.carriers(system).map(|n| n.name.as_str()).filter(|n| !known(n)).collect()
}
