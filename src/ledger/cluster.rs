//! What the log says of the systems that form clusters: who may seed, who was let in, what is
//! stopped where, which cluster steps are done. Folded only; [`super::decide`] decides.

use super::event::Event;
use super::message::Data;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All formations of the site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// `kiln cluster form` or `adopt` was said.
    pub genesis: bool,
    /// Why the ledger may not be the newest; see [`Event::Unvouched`].
    pub unvouched: Option<String>,
    /// What a node knows that the ledger does not; see [`Event::Behind`].
    pub behind: Option<String>,
    /// By system.
    pub formations: BTreeMap<String, Arc<Formation>>,
    /// Cluster steps, by system and name.
    pub steps: BTreeMap<(String, String), Step>,
}

/// One seeded system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formation {
    /// Which cluster it is; `None`: there is none yet.
    pub lineage: Option<String>,
    /// Who makes it, or brings it back from the dark.
    pub seeding: Option<Holder>,
    /// Nodes that were let in since it was made: each may hold its data.
    pub members: BTreeSet<String>,
    /// Nodes on which it is known to be stopped, with what they hold.
    pub stopped: BTreeMap<String, Stopped>,
    /// The last grant to each node: an older message of that generation counts no more.
    pub granted: BTreeMap<String, Grant>,
    /// The operator's choice of whose data it comes back from.
    pub chosen: Option<String>,
    /// Nodes whose own data are moved aside when they join: those very data, or any (`None`).
    pub aside: BTreeMap<String, Option<Data>>,
    /// Peer steps that were run: (step, for whom) -> for which generation.
    pub room: BTreeMap<(String, String), u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub node: String,
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    pub generation: u64,
    /// Of the claim that first said so: older reports are from before it stopped.
    pub seq: u64,
    pub data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub generation: u64,
    pub seq: u64,
    pub seed: bool,
    pub set_aside: bool,
}

/// A cluster step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub lineage: Option<String>,
    /// Who runs it, and which claim let it.
    pub holder: Option<(Holder, u64)>,
    pub done: bool,
    /// Why the last try failed.
    pub failed: Option<String>,
}

impl Cluster {
    /// What is known of a system; nothing yet is an empty formation.
    pub fn formation(&self, system: &str) -> Arc<Formation> {
        self.formations.get(system).cloned().unwrap_or_default()
    }

    pub fn step(&self, system: &str, step: &str) -> Option<&Step> {
        self.steps.get(&(system.to_string(), step.to_string()))
    }

    fn formation_mut(&mut self, system: &str) -> &mut Formation {
        Arc::make_mut(self.formations.entry(system.to_string()).or_default())
    }

    /// What was stopped may run by now, and what the operator chose he chose of what was known then:
    /// a ledger that is not the newest does not know.
    fn forget_stopped(&mut self) {
        for formation in self.formations.values_mut().map(Arc::make_mut) {
            formation.stopped.clear();
            formation.chosen = None;
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Genesis {} => self.genesis = true,
            Event::Unvouched { reason } => {
                self.unvouched = Some(reason.clone());
                self.forget_stopped();
            }
            Event::Vouched {} => self.unvouched = None,
            Event::Behind { reason, .. } => self.behind = Some(reason.clone()),
            Event::Adopted { formations } => {
                (self.genesis, self.unvouched, self.behind) = (true, None, None);
                for (system, adopted) in formations {
                    let formation = self.formation_mut(system);
                    formation.lineage = Some(adopted.lineage.clone());
                    formation.members = adopted.members.iter().cloned().collect();
                    (formation.seeding, formation.chosen) = (None, None);
                }
            }
            Event::DataShown { system, node, generation, seq, data } => {
                let stopped = Stopped { generation: *generation, seq: *seq, data: data.clone() };
                self.formation_mut(system).show(node, stopped);
            }
            Event::SeedGranted { system, node, generation, seq } => {
                let formation = self.formation_mut(system);
                formation.seeding = Some(Holder { node: node.clone(), generation: *generation });
                formation.members.insert(node.clone());
                formation.grant(node, *generation, *seq, true, false);
            }
            Event::JoinGranted { system, node, generation, seq, set_aside } => {
                let formation = self.formation_mut(system);
                formation.members.insert(node.clone());
                let data = formation.stopped.get(node).map(|s| s.data.clone());
                if *set_aside {
                    formation.aside.insert(node.clone(), data);
                } else if data == Some(Data::Blank) {
                    formation.aside.remove(node); // what was to be set aside is gone
                }
                // Should it not become a member, its next try needs room again.
                formation.room.retain(|(_, whom), _| whom != node);
                formation.grant(node, *generation, *seq, false, *set_aside);
            }
            Event::Formed { system, node, lineage, .. } => {
                let formation = self.formation_mut(system);
                if formation.lineage.as_ref() != Some(lineage) {
                    formation.members = BTreeSet::from([node.clone()]);
                    formation.lineage = Some(lineage.clone());
                }
                (formation.seeding, formation.chosen) = (None, None);
            }
            Event::Serves { system, node, generation, seq } => {
                let formation = self.formation_mut(system);
                formation.members.insert(node.clone());
                // The report that says so counts itself, however often it comes.
                formation.grant(node, *generation, seq.saturating_sub(1), false, false);
            }
            Event::Recovering { system, node } => {
                let formation = self.formation_mut(system);
                (formation.chosen, formation.seeding) = (Some(node.clone()), None);
            }
            Event::SetAside { system, nodes } => {
                self.formation_mut(system).aside.extend(nodes.iter().map(|n| (n.clone(), None)));
            }
            Event::StepClaimed { system, step, node, generation, seq, lineage } => {
                let holder = Holder { node: node.clone(), generation: *generation };
                let claimed =
                    Step { lineage: lineage.clone(), holder: Some((holder, *seq)), done: false, failed: None };
                self.steps.insert((system.clone(), step.clone()), claimed);
            }
            Event::StepEnded { system, step, ok, detail, .. } => {
                if let Some(found) = self.steps.get_mut(&(system.clone(), step.clone())) {
                    (found.holder, found.done) = (None, *ok);
                    found.failed = (!ok).then(|| detail.clone());
                }
            }
            Event::RoomMade { system, step, node, generation, .. } => {
                self.formation_mut(system).room.insert((step.clone(), node.clone()), *generation);
            }
            Event::NodeRemoved { node, .. } => {
                self.formations.values_mut().for_each(|f| Arc::make_mut(f).forget(node));
                let held = |s: &&mut Step| s.holder.as_ref().is_some_and(|(h, _)| h.node == *node);
                self.steps.values_mut().filter(held).for_each(|s| s.holder = None);
            }
            _ => {}
        }
    }
}

impl Formation {
    /// Whether this node's data, being these, are moved aside when it joins.
    pub fn sets_aside(&self, node: &str, data: &Data) -> bool {
        *data != Data::Blank && self.aside.get(node).is_some_and(|only| only.as_ref().is_none_or(|d| d == data))
    }

    /// What a message of this generation says of the system counts only if its number is higher.
    pub fn barrier(&self, node: &str, generation: u64) -> u64 {
        let granted = self.granted.get(node).filter(|g| g.generation == generation).map(|g| g.seq);
        let stopped = self.stopped.get(node).filter(|s| s.generation == generation).map(|s| s.seq);
        granted.into_iter().chain(stopped).max().unwrap_or(0)
    }

    /// A node says what it holds. The operator chose a node for the data that it had.
    pub fn show(&mut self, node: &str, stopped: Stopped) {
        let before = self.stopped.insert(node.to_string(), stopped);
        let other = before.is_some_and(|b| self.stopped.get(node).is_some_and(|s| s.data != b.data));
        if other && self.seeding.is_none() && self.chosen.as_deref() == Some(node) {
            self.chosen = None;
        }
    }

    /// The node is no more, and neither is what it held.
    fn forget(&mut self, node: &str) {
        self.members.remove(node);
        self.stopped.remove(node);
        self.granted.remove(node);
        self.aside.remove(node);
        self.room.retain(|(_, whom), _| whom != node);
        self.seeding.take_if(|h| h.node == *node);
        self.chosen.take_if(|c| c == node);
    }

    fn grant(&mut self, node: &str, generation: u64, seq: u64, seed: bool, set_aside: bool) {
        // From here on it may run.
        self.stopped.remove(node);
        self.granted.insert(node.to_string(), Grant { generation, seq, seed, set_aside });
    }
}
