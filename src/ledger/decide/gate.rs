//! The gate: whether a node may be lost for a while, and what lies on its disk for good. Judged on
//! the ledger and on what nodes said lately; what is not known refuses. The node itself counts as
//! lost already. Which systems have a quorum, and whose data cannot be made again, the image says.

use super::operator::must_exist;
use super::{Refusal, Why};
use crate::ledger::cluster::Formation;
use crate::ledger::live::{Guests, Live};
use crate::ledger::state::State;
use crate::recipe::system::{Clustered, Dark, FormationKind, Keeps};
use crate::site::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names in a reason; more are counted.
const NAMES_MAX: usize = 5;

/// What is about to happen to a node, and what the operator has taken upon himself.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    pub node: &'a str,
    /// What its disk holds is gone for good.
    pub wipes: bool,
    /// It runs its guests until then.
    pub guests: bool,
    /// A quorum may break.
    pub forced: bool,
    /// Systems whose last copy may be destroyed.
    pub destroy: &'a [String],
    pub lose_guests: bool,
    /// They are shut down before, if their disks stay.
    pub stop_guests: bool,
    /// They are moved to other nodes before.
    pub migrate_guests: bool,
}

/// What the gate saw, and what speaks against: (rule, reason), none if it lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub facts: BTreeMap<String, String>,
    pub against: Vec<(&'static str, String)>,
}

impl Judged {
    /// All reasons in one line.
    pub fn reason(&self) -> String {
        self.against.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// The first rule that speaks against.
    pub fn rule(&self) -> &'static str {
        self.against.first().map_or("gate", |(rule, _)| rule)
    }
}

/// How a member is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Healthy,
    /// It said so, the operator did, or it was never there.
    Down,
    /// It will be lost as well.
    Ordered,
    Unknown,
}

/// Judges a loss.
pub fn gate(state: &State, live: &Live, loss: &Loss, now_ms: u64) -> Result<Judged, Refusal> {
    must_exist(state, loss.node)?;
    let mut judged = Judged::default();
    let cluster = &state.cluster;
    if let Some(reason) = cluster.behind.as_ref().or(cluster.unvouched.as_ref()) {
        judged.facts.insert("ledger".into(), format!("may not be the newest: {reason}"));
        if !loss.forced {
            let next = "next: kiln cluster adopt, or --force REASON";
            judged.against.push(("ledger", format!("the ledger may not be the newest: {reason}; {next}")));
        }
    }
    let role = state.site_node(loss.node).map(|n| n.role.as_str()).unwrap_or_default();
    let systems = state.image_of(role).map(|i| i.clustered.as_slice()).unwrap_or_default();
    for system in systems {
        let of = Member { state, live, loss, system, formation: &cluster.formation(&system.name), now_ms };
        if let Some(formation) = &system.formation {
            of.quorum(formation.kind, &mut judged);
        }
        if loss.wipes && system.dark() == Some(Dark::Rank) {
            of.last_copy(&mut judged);
        }
        if let Some(keeps) = system.keeps.filter(|_| loss.wipes) {
            of.kept(keeps, &mut judged);
        }
    }
    if loss.guests {
        let of_guests = guests(state, live, loss, now_ms);
        judged.facts.extend(of_guests.facts);
        judged.against.extend(of_guests.against);
    }
    Ok(judged)
}

/// One system of the node that several nodes share.
struct Member<'a> {
    state: &'a State,
    live: &'a Live,
    loss: &'a Loss<'a>,
    system: &'a Clustered,
    formation: &'a Formation,
    now_ms: u64,
}

impl Member<'_> {
    fn quorum(&self, kind: FormationKind, judged: &mut Judged) {
        let name = &self.system.name;
        let members = self.members(kind);
        let own = self.loss.node;
        if !members.contains(own) {
            judged.facts.insert(name.clone(), format!("{own} is no member of it"));
            return;
        }
        let others: Vec<(&str, Health)> = members.iter().filter(|m| **m != own).map(|m| (*m, self.health(m))).collect();
        let which = |health| others.iter().filter(move |(_, h)| *h == health).map(|(m, _)| *m);
        let leaves = which(Health::Healthy).count();
        let healthy = leaves + usize::from(self.health(own) == Health::Healthy);
        let (all, majority) = (members.len(), members.len() / 2 + 1);
        let sum = format!(
            "{all} member{}, {healthy} healthy, this leaves {leaves}, majority is {majority}",
            if all == 1 { "" } else { "s" }
        );
        let mut fact = sum.clone();
        for (word, health) in [("down", Health::Down), ("ordered", Health::Ordered), ("not known", Health::Unknown)] {
            let names: Vec<&str> = which(health).collect();
            if !names.is_empty() {
                fact += &format!("; {word}: {}", listed(&names));
            }
        }
        judged.facts.insert(name.clone(), fact);
        if self.loss.forced {
            return;
        }
        let unknown: Vec<&str> = which(Health::Unknown).collect();
        if !unknown.is_empty() {
            let next = "next: wait for it, fence it if it is off, or --force REASON";
            let reason = format!("{name}: health of {} is not known; {next}", listed(&unknown));
            judged.against.push(("health-unknown", reason));
        }
        if leaves < majority {
            judged.against.push(("quorum", format!("{name}: {sum}")));
        }
    }

    /// Whose votes count: of a seeded system, who was let in; of a static one, everyone on the list.
    fn members(&self, kind: FormationKind) -> BTreeSet<&str> {
        let seeded = kind == FormationKind::Seeded;
        if seeded {
            return self.formation.members.iter().map(String::as_str).collect();
        }
        let joined = |n: &&Node| n.name != self.loss.node || self.generation(&n.name) > 0;
        self.state.carriers(&self.system.name).filter(joined).map(|n| n.name.as_str()).collect()
    }

    fn generation(&self, node: &str) -> u64 {
        self.state.nodes.get(node).map_or(0, |n| n.generation)
    }

    fn health(&self, node: &str) -> Health {
        let Some(known) = self.state.nodes.get(node).filter(|n| n.generation > 0) else { return Health::Down };
        if node != self.loss.node && known.open_order().is_some() {
            return Health::Ordered;
        }
        let said_off = known.session.as_ref().is_none_or(|s| s.left);
        if known.is_fenced() || said_off {
            return Health::Down;
        }
        if self.live.fresh(self.state, node, self.now_ms).is_none() {
            return Health::Unknown;
        }
        if self.serves(node) { Health::Healthy } else { Health::Down }
    }

    fn serves(&self, node: &str) -> bool {
        match self.system.dark() {
            Some(_) => {
                let lineage = self.live.serves(self.state, node, &self.system.name, self.now_ms);
                lineage.is_some() && lineage == self.formation.lineage
            }
            None => {
                let report = self.live.fresh(self.state, node, self.now_ms);
                report.is_some_and(|r| r.healthy.contains(&self.system.name))
            }
        }
    }

    /// Another node must be seen to serve the same data, and must not be about to lose them too.
    fn last_copy(&self, judged: &mut Judged) {
        let Some(lineage) = &self.formation.lineage else { return };
        if self.doubtful() || self.formation.members.contains(self.loss.node) {
            let reason = format!("no other node is seen to serve {lineage}, this may be its last copy");
            self.copies(self.others(), &reason, "bring another member up, or ", judged);
        }
    }

    /// The same of data without a lineage; a node that never registered holds none.
    fn kept(&self, keeps: Keeps, judged: &mut Judged) {
        if !self.doubtful() && self.generation(self.loss.node) == 0 {
            return;
        }
        match keeps {
            Keeps::Copy => {
                let reason = "no other node is seen to hold a whole copy, this may be the last one";
                self.copies(self.others(), reason, "bring another one up, or ", judged);
            }
            Keeps::Sole => self.copies(vec![], "what lies here lies nowhere else", "", judged),
        }
    }

    /// A ledger that is in doubt does not know who holds what.
    fn doubtful(&self) -> bool {
        self.state.cluster.behind.is_some() || self.state.cluster.unvouched.is_some()
    }

    /// The other nodes on which it is healthy.
    fn others(&self) -> Vec<&str> {
        let other = |n: &&Node| n.name != self.loss.node && self.health(&n.name) == Health::Healthy;
        self.state.carriers(&self.system.name).filter(other).map(|n| n.name.as_str()).collect()
    }

    fn copies(&self, copies: Vec<&str>, without: &str, help: &str, judged: &mut Judged) {
        let name = &self.system.name;
        let fact = if copies.is_empty() { "none is known".into() } else { listed(&copies) };
        judged.facts.insert(format!("{name}'s other copies"), fact);
        if copies.is_empty() && !self.loss.destroy.contains(name) {
            let reason = format!("{name}: {without}; next: {help}--destroy-last-copy {name}");
            judged.against.push(("last-copy", reason));
        }
    }
}

/// Of a node that is silent, what it said last counts. One that is shut down loses nothing as long
/// as its disk stays.
pub(super) fn guests(state: &State, live: &Live, loss: &Loss, now_ms: u64) -> Judged {
    let mut judged = Judged::default();
    let fresh = live.fresh(state, loss.node, now_ms).map(|r| r.guests.clone());
    let silent = fresh.is_none();
    let known = state.node(loss.node);
    let all = fresh.unwrap_or_else(|| Arc::new(Guests::of(known.report.iter().flat_map(|r| &r.systems))));
    let when = if silent { " when it was last heard" } else { "" };
    for (system, guests) in all.iter() {
        let lost: Vec<&str> =
            if loss.wipes { guests.all().collect() } else { guests.running.iter().map(String::as_str).collect() };
        let what = format!("{}{when}: {}", counted(lost.len()), listed(&lost));
        let stopped = match guests.stopped.len() {
            0 => String::new(),
            n => format!("; {n} shut down"),
        };
        judged.facts.insert(format!("{system}'s guests"), format!("{what}{stopped}"));
        if loss.lose_guests || lost.is_empty() {
            continue;
        }
        let next = match (loss.wipes, loss.stop_guests) {
            _ if loss.migrate_guests && silent => "it is silent, so they cannot be moved; next: --guests lose".into(),
            _ if loss.migrate_guests => match targets(state, live, loss, guests, now_ms) {
                Ok(targets) => {
                    judged.facts.insert(format!("{system}'s guests may go to"), targets);
                    continue;
                }
                Err(why) => why,
            },
            (false, true) if !silent => continue,
            (false, true) => "it is silent, so they cannot be shut down; next: --guests lose".into(),
            (true, true) => {
                "a wipe takes the disks of those that are shut down, too; next: --disks keep, or --guests lose".into()
            }
            (false, false) => "next: --guests migrate, stop or lose".into(),
            (true, false) => "next: --guests migrate or lose".into(),
        };
        judged.against.push(("guests", format!("{system}: {what}; {next}")));
    }
    judged
}

/// The nodes that can take a live node's guests, or why none can. How much room they have nova knows.
fn targets(state: &State, live: &Live, loss: &Loss, guests: &Guests, now_ms: u64) -> Result<String, String> {
    let moves = |node: &str| live.fresh(state, node, now_ms).is_some_and(|r| r.moves);
    let otherwise = if loss.wipes { "--guests lose" } else { "--guests stop or lose" };
    if loss.wipes && !guests.stopped.is_empty() {
        let why = "those that are shut down are not moved, and a wipe takes their disks";
        return Err(format!("{why}; next: --disks keep, start them, or --guests lose"));
    }
    if !moves(loss.node) {
        return Err(format!("its image cannot move guests; next: {otherwise}"));
    }
    let role = state.site_node(loss.node).map(|n| n.role.as_str());
    let other = |n: &&Node| n.name != loss.node && (Some(n.role.as_str()) == role || moves(&n.name));
    let (mut free, mut rest) = (Vec::new(), BTreeMap::<&str, Vec<&str>>::new());
    for node in state.site.iter().flat_map(|s| &s.nodes).filter(other) {
        let (name, known) = (node.name.as_str(), state.node(&node.name));
        let systems = known.report.iter().flat_map(|r| &r.systems);
        match live.fresh(state, name, now_ms) {
            _ if known.open_order().is_some() => rest.entry("ordered").or_default().push(name),
            _ if known.drained => rest.entry("drained").or_default().push(name),
            None => rest.entry("not known").or_default().push(name),
            Some(report) if !report.moves => rest.entry("its image cannot take them").or_default().push(name),
            Some(report) if systems.clone().all(|s| report.healthy.contains(&s.name)) => free.push(name),
            Some(_) => rest.entry("not healthy").or_default().push(name),
        }
    }
    if !free.is_empty() {
        return Ok(listed(&free));
    }
    let others = rest.values().map(Vec::len).sum::<usize>();
    let why: String = rest.iter().map(|(why, names)| format!("; {why}: {}", listed(names))).collect();
    Err(format!("{others} other node{}, 0 can take them{why}; next: {otherwise}", if others == 1 { "" } else { "s" }))
}

/// `1 guest`, `2 guests`.
pub(super) fn counted(guests: usize) -> String {
    format!("{guests} guest{}", if guests == 1 { "" } else { "s" })
}

fn listed(names: &[&str]) -> String {
    let mut words = names.iter().take(NAMES_MAX).map(|n| n.to_string()).collect::<Vec<_>>();
    if names.len() > NAMES_MAX {
        words.push(format!("{} more", names.len() - NAMES_MAX));
    }
    words.join(", ")
}

/// The refusal of a loss that the gate does not let through.
pub(super) fn refusal(what: &str, judged: &Judged) -> Refusal {
    let votes = judged.against.iter().any(|(rule, _)| *rule == "quorum");
    let next = if votes { "; next: bring the others back first, or --force REASON" } else { "" };
    Refusal::new(Why::Refused, format!("{what} is refused: {}{next}", judged.reason()))
}
