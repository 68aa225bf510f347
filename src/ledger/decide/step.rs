//! Cluster steps, which one node runs for all, and peer steps, which a member runs for a node that
//! wants to join. A step moves to another node only when its holder said that it ended, has a newer
//! generation, or is fenced: never because time went by.

use super::claim::unknown;
use super::{Refusal, Why, current};
use crate::image::id::Digest;
use crate::ledger::cluster::Formation;
use crate::ledger::event::Event;
use crate::ledger::live::{Live, Stuck};
use crate::ledger::message::{Data, DoneRequest, PeerTask, RunningStep, Verdict};
use crate::ledger::state::{NodeState, State};
use crate::ledger::text;
use crate::recipe::system::{Clustered, Dark};
use std::collections::BTreeSet;

fn wait(reason: impl Into<String>) -> Verdict {
    Verdict::Wait { reason: reason.into() }
}

/// Whether this cluster step may run on this node now.
pub(super) fn claim(
    state: &State,
    system: &Clustered,
    name: &str,
    generation: u64,
    step: &str,
    seq: u64,
) -> Result<(Vec<Event>, Verdict), Refusal> {
    let Some(writes) = system.cluster_steps.get(step) else {
        let reason = format!("system {} has no cluster step {:?}", system.name, text::word(step));
        return Err(Refusal::new(Why::NotFound, reason));
    };
    let cluster = &state.cluster;
    if !cluster.genesis {
        return Ok((vec![], wait("the ledger knows of no cluster: kiln cluster form, or adopt if there is one")));
    }
    if let Some(reason) = cluster.behind.as_ref().or(cluster.unvouched.as_ref()) {
        return Ok((vec![], wait(format!("the ledger may not be the newest: {reason}"))));
    }
    // Where the state has no lineage nothing is remembered: the step's check decides each time.
    let seeded = state.seeded().contains_key(writes.as_str());
    let lineage = match (seeded, &cluster.formation(writes).lineage) {
        (false, _) => None,
        (true, Some(lineage)) => Some(lineage.clone()),
        (true, None) => return Ok((vec![], wait(format!("{writes} is not formed yet")))),
    };
    let known = cluster.step(&system.name, step);
    if seeded && known.is_some_and(|s| s.done && s.lineage == lineage) {
        return Ok((vec![], Verdict::Done));
    }
    // Whoever runs it runs it, also if the ledger knew another lineage, or none, when it heard of that.
    if let Some((holder, claimed)) = known.and_then(|s| s.holder.as_ref()) {
        if holder.node == name && holder.generation == generation {
            match seq.cmp(claimed) {
                std::cmp::Ordering::Less => {
                    return Ok((vec![], wait("this question is older than the last answer")));
                }
                std::cmp::Ordering::Equal => return Ok((vec![], Verdict::Run)),
                std::cmp::Ordering::Greater => {}
            }
        } else if holds(state, &holder.node, holder.generation) {
            return Ok((vec![], wait(format!("{} runs it", holder.node))));
        }
    }
    let event = Event::StepClaimed {
        system: system.name.clone(),
        step: step.into(),
        node: name.into(),
        generation,
        seq,
        lineage,
    };
    Ok((vec![event], Verdict::Run))
}

/// Whether that generation of the node may still be at work.
fn holds(state: &State, node: &str, generation: u64) -> bool {
    state.nodes.get(node).is_some_and(|n| n.generation == generation && !n.is_fenced())
}

/// `POST /v1/done`.
pub(super) fn done(state: &State, fingerprint: &Digest, request: &DoneRequest) -> Result<Vec<Event>, Refusal> {
    let (name, node) = current(state, fingerprint)?;
    let system = request.system.clone();
    if let Some(task) = &request.peer {
        if state.is_remembered(&task.node, &system, &request.step) {
            let role = state.site_node(name).map(|n| n.role.as_str()).unwrap_or_default();
            let ours = state.clustered(role, &system).is_some_and(|c| c.removed_steps.contains(&request.step));
            let (node, step, by) = (task.node.clone(), request.step.clone(), name.clone());
            let event = Event::Forgotten { node, system, step, by };
            return Ok(if ours && request.ok { vec![event] } else { vec![] });
        }
        let formation = state.cluster.formation(&system);
        let wanted = state.node(&task.node).generation == task.generation
            && formation.stopped.get(&task.node).is_some_and(|s| s.generation == task.generation);
        let role = state.site_node(name).map(|n| n.role.as_str()).unwrap_or_default();
        let exists = state.clustered(role, &system).is_some_and(|c| c.peer_steps.contains(&request.step));
        let (step, by) = (request.step.clone(), name.clone());
        let event = Event::RoomMade { system, step, node: task.node.clone(), generation: task.generation, by };
        return Ok(if wanted && exists && request.ok { vec![event] } else { vec![] });
    }
    let step = state.cluster.step(&system, &request.step);
    let ours = step.and_then(|s| s.holder.as_ref()).is_some_and(|(holder, seq)| {
        holder.node == *name && holder.generation == node.generation && *seq == request.seq
    });
    let event = Event::StepEnded {
        system,
        step: request.step.clone(),
        node: name.clone(),
        generation: node.generation,
        ok: request.ok,
        detail: text::clean(&request.detail, 300),
    };
    Ok(if ours { vec![event] } else { vec![] })
}

/// What a report says of running steps: one that the ledger does not know of is its node's; one
/// that its holder no longer runs is free.
pub(super) fn reported(state: &State, name: &str, node: &NodeState, seq: u64, running: &[RunningStep]) -> Vec<Event> {
    let generation = node.generation;
    let mut events = Vec::new();
    for ((system, step), known) in &state.cluster.steps {
        let Some((holder, claimed)) = &known.holder else { continue };
        let ours = holder.node == name && holder.generation == generation && seq > *claimed;
        if ours && !running.iter().any(|r| r.system == *system && r.step == *step) {
            events.push(Event::StepEnded {
                system: system.clone(),
                step: step.clone(),
                node: name.into(),
                generation,
                ok: false,
                detail: "its node no longer runs it".into(),
            });
        }
    }
    let role = state.site_node(name).map(|n| n.role.as_str()).unwrap_or_default();
    for RunningStep { system, step } in running {
        let Some(writes) = state.clustered(role, system).and_then(|c| c.cluster_steps.get(step)) else { continue };
        let known = state.cluster.step(system, step);
        let held = known.and_then(|s| s.holder.as_ref()).is_some_and(|(h, _)| holds(state, &h.node, h.generation));
        if state.cluster.unvouched.is_some() && !held && !known.is_some_and(|s| s.done) {
            let lineage = state.cluster.formation(writes).lineage.clone();
            let (system, step, node) = (system.clone(), step.clone(), name.to_string());
            events.push(Event::StepClaimed { system, step, node, generation, seq: 0, lineage });
        }
    }
    events
}

/// The next peer step that must be run before this generation of the node may join.
pub(super) fn open_room<'a>(
    system: &'a Clustered,
    formation: &Formation,
    node: &str,
    generation: u64,
) -> Option<&'a String> {
    let made = |step: &String| formation.room.get(&(step.clone(), node.to_string())) == Some(&generation);
    system.peer_steps.iter().find(|step| !made(step))
}

/// What members must do so that their systems forget a node that is removed: (system, step). Where
/// nobody else has a system nobody remembers.
pub(super) fn to_forget(state: &State, node: &str) -> Vec<(String, String)> {
    let all = state.images.values().flat_map(|i| &i.current.clustered).filter(|c| !c.removed_steps.is_empty());
    let shared = all.filter(|c| state.carriers(&c.name).any(|n| n.name != node));
    let steps: BTreeSet<(String, String)> =
        shared.flat_map(|c| c.removed_steps.iter().map(|step| (c.name.clone(), step.clone()))).collect();
    steps.into_iter().collect()
}

/// Who forgets a removed node: the first of the system's healthy members, by name.
fn forgets<'a>(state: &'a State, live: &Live, system: &str, now_ms: u64) -> Option<&'a str> {
    let healthy = |n: &str| live.fresh(state, n, now_ms).is_some_and(|r| r.healthy.contains(system));
    state.carriers(system).map(|n| n.name.as_str()).find(|n| healthy(n))
}

fn stuck<'a>(live: &'a Live, node: &str, system: &str, step: &str) -> Option<&'a Stuck> {
    live.stuck.get(&(node.to_string(), system.to_string(), step.to_string()))
}

/// What is still to be forgotten, a line each.
pub fn forgetting(state: &State, live: &Live, now_ms: u64) -> Vec<String> {
    let line = |node: &String, system: &String, step: &String| {
        let who = match forgets(state, live, system, now_ms) {
            Some(member) => format!("{member} does it"),
            None => "waits for a healthy member".into(),
        };
        let stuck = stuck(live, node, system, step);
        let why = stuck.map(|s| format!("; it failed: {}", s.reason)).unwrap_or_default();
        format!("removed {node}: {system}/{step}: {who}{why}")
    };
    state.removed.iter().flat_map(|(node, left)| left.iter().map(move |(s, step)| line(node, s, step))).collect()
}

/// What this node is to do now for others that want to join or were removed: the first of the
/// healthy members, by name, does it.
pub fn peers(state: &State, live: &Live, name: &str, now_ms: u64) -> Vec<PeerTask> {
    let mut tasks = Vec::new();
    for (node, left) in &state.removed {
        let generation = state.node(node).generation;
        let due = |system: &str, step: &str| stuck(live, node, system, step).is_none_or(|s| s.due_ms <= now_ms);
        let ours = |(system, step): &&(String, String)| {
            forgets(state, live, system, now_ms) == Some(name) && due(system, step)
        };
        for (system, step) in left.iter().filter(ours) {
            let (system, step, node) = (system.clone(), step.clone(), node.clone());
            tasks.push(PeerTask { system, step, node, generation });
        }
    }
    for (system_name, system) in state.seeded().into_iter().filter(|(_, c)| !c.peer_steps.is_empty()) {
        let Some(formation) = state.cluster.formations.get(system_name) else { continue };
        let Some(lineage) = &formation.lineage else { continue };
        for (node, stopped) in formation.stopped.iter().filter(|(n, _)| n.as_str() != name) {
            let generation = stopped.generation;
            let known = state.node(node);
            let joins = match &stopped.data {
                Data::Blank => true,
                data if formation.sets_aside(node, data) => true,
                Data::Holds { lineage: own, .. } => own != lineage && system.dark() == Some(Dark::Reset),
            };
            if !joins || generation != known.generation || known.is_fenced() {
                continue;
            }
            let mut healthy = state.carriers(system_name).map(|n| n.name.as_str()).filter(|n| n != node);
            let first =
                healthy.find(|n| live.serves(state, n, system_name, now_ms).as_deref() == Some(lineage.as_str()));
            if first == Some(name)
                && let Some(step) = open_room(system, formation, node, generation)
            {
                let (system, node) = (system_name.to_string(), node.clone());
                tasks.push(PeerTask { system, step: step.clone(), node, generation });
            }
        }
    }
    tasks
}

/// Whether every node has spoken since the doubt and nothing contradicts the ledger.
pub(super) fn vouched(state: &State, live: &Live, now_ms: u64) -> bool {
    let cluster = &state.cluster;
    if cluster.unvouched.is_none() || cluster.behind.is_some() || !cluster.genesis {
        return false;
    }
    let seeded = state.seeded();
    // Where no image says which systems a role has, nobody can have spoken for them.
    let described =
        !seeded.is_empty() || state.site.iter().flat_map(|s| &s.nodes).all(|n| state.image_of(&n.role).is_some());
    let reported = |system: &&str| {
        state.carriers(system).all(|n| state.node(&n.name).is_fenced() || live.has_reported(state, &n.name))
    };
    described && seeded.keys().all(|system| reported(system) && unknown(state, live, system, now_ms).is_empty())
}
