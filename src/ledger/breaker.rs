//! The circuit breaker's memory: a node's boots since its last register, the last order, the
//! operator's last word; and who is held for them. Folded only; [`super::decide`] decides.

use super::state::State;
use crate::site::Node;
use std::collections::BTreeSet;

/// Boots of one node that have not come to a register.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// How many count, the last one among them.
    pub count: u32,
    /// The last one; empty: none of those that count is under way or was the last.
    pub boot_id: String,
    pub failed: Option<Failed>,
    pub pause: Option<Pause>,
    /// A pause is over: one more may try.
    pub retry: bool,
}

/// What a boot last said of its failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub detail: String,
    pub boot_id: String,
    /// Boots in a row that said the same.
    pub boots: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Revision of its event.
    pub rev: u64,
    pub secs: u64,
    /// What failed.
    pub reason: String,
}

impl Attempts {
    /// The boot under way said that it failed.
    pub fn fail(&mut self, boot_id: &str, detail: &str) {
        if self.boot_id != boot_id {
            return;
        }
        let before = self.failed.take().filter(|f| f.detail == detail);
        let boots = before.map_or(1, |f| f.boots + u32::from(f.boot_id != boot_id));
        self.failed = Some(Failed { detail: detail.into(), boot_id: boot_id.into(), boots });
    }
}

/// Why the node does not boot now: its pause, unless it is one too many for a system that counts
/// votes. Asked anew each time, so that no order of events ever holds a majority.
pub fn held<'a>(state: &'a State, name: &str) -> Option<&'a Pause> {
    state.site_node(name)?;
    let pause = state.nodes.get(name)?.attempts.pause.as_ref()?;
    crowd(state, name, pause.rev).is_none().then_some(pause)
}

/// [`held`] in words.
pub fn why_held(state: &State, name: &str) -> Option<String> {
    let pause = held(state, name)?;
    let (mins, reason) = (pause.secs / 60, &pause.reason);
    Some(format!("node {name} is held for {mins} min: {reason}; next: kiln node unhold {name}"))
}

/// The system of which more than a minority would be held with this node: beside those that the
/// operator holds, and those whose pause began before `rev`.
pub fn crowd(state: &State, name: &str, rev: u64) -> Option<String> {
    let node = state.site_node(name)?;
    let systems = state.image_of(&node.role).map(|i| i.clustered.as_slice()).unwrap_or_default();
    let counts_votes = systems.iter().filter(|s| s.formation.is_some());
    let waits = |other: &str| {
        let known = state.nodes.get(other);
        other != name
            && known.is_some_and(|n| n.held.is_some() || n.attempts.pause.as_ref().is_some_and(|p| p.rev < rev))
    };
    // Both who may vote and, once it has formed, who does.
    let too_many = |voters: &BTreeSet<&str>| {
        voters.contains(name) && (voters.iter().filter(|v| waits(v)).count() + 1) * 2 >= voters.len()
    };
    let full = counts_votes.map(|s| &s.name).find(|system| {
        let may: BTreeSet<&str> = state.carriers(system).map(|n: &Node| n.name.as_str()).collect();
        let formation = state.cluster.formations.get(*system);
        let does = formation.map(|f| f.members.iter().map(String::as_str).collect()).unwrap_or_default();
        too_many(&may) || too_many(&does)
    });
    full.cloned()
}
