//! How a cluster formed: its events in order, and the longest chain of causes that ended in the
//! last system to be healthy. A system on a node was caused by whatever ended last before it began:
//! another system of that node, the seed of the same system elsewhere, or the node's register.

use super::event::{Event, Recorded};
use super::message::SystemState;
use super::timeline::full;
use std::collections::BTreeMap;

/// One piece of work: a system on a node, or a node's boot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    node: String,
    what: String,
    from_ms: u64,
    to_ms: u64,
}

/// Lines for `kiln cluster timeline`.
pub fn timeline(events: &[Recorded]) -> Vec<String> {
    let mut lines: Vec<String> = events.iter().filter(|r| tells(&r.event)).map(full).collect();
    let start = events.iter().find(|r| matches!(r.event, Event::Genesis {})).or(events.first()).map_or(0, |r| r.at_ms);
    let (works, seeds) = works(events);
    let chain = longest(&works, &seeds);
    if let Some(last) = chain.last() {
        lines.push(String::new());
        lines.push(format!("longest chain, {:.1} s after the cluster was let form:", seconds(start, last.to_ms)));
    }
    let mut before = start;
    for work in chain {
        let waited = seconds(before, work.from_ms.max(before));
        let took = seconds(work.from_ms, work.to_ms);
        lines.push(format!("  {:>6.1} s  {} {} (after {waited:.1} s)", took, work.node, work.what));
        before = work.to_ms;
    }
    lines
}

fn seconds(from_ms: u64, to_ms: u64) -> f64 {
    to_ms.saturating_sub(from_ms) as f64 / 1000.0
}

fn tells(event: &Event) -> bool {
    matches!(
        event,
        Event::Genesis {}
            | Event::Unvouched { .. }
            | Event::Vouched {}
            | Event::Behind { .. }
            | Event::Adopted { .. }
            | Event::SeedGranted { .. }
            | Event::JoinGranted { .. }
            | Event::Formed { .. }
            | Event::Serves { .. }
            | Event::Recovering { .. }
            | Event::SetAside { .. }
            | Event::StepEnded { .. }
            | Event::RoomMade { .. }
            | Event::NodeFenced { .. }
            | Event::Registered { .. }
            | Event::Reported { .. }
    )
}

/// From when to when each system came up, the first time it did since its node's last register;
/// and which node seeded which system.
fn works(events: &[Recorded]) -> (Vec<Work>, BTreeMap<String, String>) {
    let mut seeds = BTreeMap::new();
    let mut open: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut generations: BTreeMap<&String, u64> = BTreeMap::new();
    let mut works = Vec::new();
    for recorded in events {
        let at = recorded.at_ms;
        match &recorded.event {
            // A renewal is no boot.
            Event::Registered { node, generation, .. }
                if generations.insert(node, *generation) != Some(*generation) =>
            {
                open.retain(|(n, _), _| n != node);
                works.retain(|w: &Work| w.node != *node);
                works.push(Work { node: node.clone(), what: "boots and registers".into(), from_ms: at, to_ms: at });
            }
            Event::Reported { node, systems, .. } => {
                for system in systems {
                    let key = (node.clone(), system.name.clone());
                    match system.state {
                        // What it did before it had to wait was not what took the time.
                        SystemState::Waiting => drop(open.remove(&key)),
                        SystemState::Healthy => {
                            let seen = works.iter().any(|w| w.node == *node && w.what == system.name);
                            if !seen {
                                let from_ms = open.remove(&key).unwrap_or(at);
                                works.push(Work { node: key.0, what: key.1, from_ms, to_ms: at });
                            }
                        }
                        _ => drop(open.entry(key).or_insert(at)),
                    }
                }
            }
            Event::Formed { system, node, .. } => drop(seeds.insert(system.clone(), node.clone())),
            _ => {}
        }
    }
    (works, seeds)
}

fn longest<'a>(works: &'a [Work], seeds: &BTreeMap<String, String>) -> Vec<&'a Work> {
    let mut chain: Vec<&Work> = Vec::new();
    let mut next = works.iter().max_by_key(|w| w.to_ms);
    while let Some(work) = next {
        chain.push(work);
        let seed = |w: &Work| w.what == work.what && seeds.get(&w.what) == Some(&w.node);
        let causes = works.iter().filter(|w| w.node == work.node || seed(w));
        let before = causes.filter(|w| w.to_ms <= work.from_ms && !chain.contains(w));
        next = before.max_by_key(|w| w.to_ms);
    }
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::event::VERSION;
    use crate::ledger::message::{Phase, SystemReport};

    #[test]
    fn the_chain_goes_back_from_the_last_system_over_the_seed_to_a_boot() {
        let mut events = Vec::new();
        let mut at = |at_ms: u64, event| {
            let rev = events.len() as u64 + 1;
            events.push(Recorded { rev, at_ms, v: VERSION, event });
        };
        let registered = |node: &str| Event::Registered {
            node: node.into(),
            generation: 1,
            boot_id: node.into(),
            mac: crate::site::Mac([0; 6]),
            address: [10, 0, 0, 1].into(),
            key: String::new(),
            fingerprint: crate::image::id::Digest([0; 32]),
            image: crate::image::id::Digest([0; 32]),
            version: String::new(),
            by_credential: false,
        };
        let says = |node: &str, states: &[(&str, SystemState)]| Event::Reported {
            node: node.into(),
            generation: 1,
            phase: Phase::Join,
            detail: String::new(),
            systems: states
                .iter()
                .map(|(name, state)| SystemReport {
                    name: name.to_string(),
                    state: *state,
                    reason: String::new(),
                    lineage: None,
                    stranded: false,
                    guests: vec![],
                    stopped: vec![],
                })
                .collect(),
            leaving: false,
        };
        use SystemState::{Healthy, Starting, Waiting};
        at(0, Event::Genesis {});
        at(2_000, registered("n1"));
        at(3_000, registered("n2"));
        at(4_000, says("n1", &[("env", Healthy), ("db", Starting)]));
        at(5_000, says("n2", &[("env", Healthy), ("db", Waiting)]));
        at(9_000, says("n1", &[("env", Healthy), ("db", Healthy)]));
        let formed = Event::Formed { system: "db".into(), node: "n1".into(), generation: 1, lineage: "L".into() };
        at(9_000, formed);
        at(10_000, says("n2", &[("env", Healthy), ("db", Starting)]));
        at(20_000, says("n2", &[("env", Healthy), ("db", Healthy)]));
        at(30_000, registered("n1")); // a renewal
        let lines = timeline(&events);
        let chain = &lines[lines.iter().position(|l| l.starts_with("longest")).unwrap()..];
        assert!(chain[0].contains("20.0 s after"), "{chain:?}");
        assert!(chain[1].contains("n1 boots"), "{chain:?}");
        assert!(chain[2].contains("0.0 s  n1 env (after 2.0 s)"), "{chain:?}");
        assert!(chain[3].contains("5.0 s  n1 db (after 0.0 s)"), "{chain:?}");
        assert!(chain[4].contains("10.0 s  n2 db (after 1.0 s)"), "{chain:?}");
    }
}
