//! What the operator says of the cluster as a whole: form, adopt, recover, fence; and what the
//! server knows of its ledger when it starts.

use super::claim::unknown;
use super::operator::must_exist;
use super::{Refusal, Why};
use crate::ledger::event::{Adopted, Event};
use crate::ledger::live::Live;
use crate::ledger::message::{Data, SESSION_DEAD_SECS};
use crate::ledger::state::State;
use crate::ledger::text;
use crate::recipe::system::Dark;
use std::collections::{BTreeMap, BTreeSet};

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new(Why::Refused, reason)
}

pub(super) fn start(doubt: Option<&str>) -> Vec<Event> {
    let reason = doubt.map(|d| text::clean(d, 200));
    // The same doubt again must still make every node speak again: what stopped then may run now.
    reason.map(|reason| Event::Unvouched { reason }).into_iter().collect()
}

pub(super) fn form(state: &State, live: &Live, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    if state.site.is_none() {
        return Err(refused("the ledger has no site yet"));
    }
    if let Some(reason) = &state.cluster.behind {
        return Err(refused(format!("the ledger is behind ({reason}); next: kiln cluster adopt")));
    }
    if state.cluster.genesis {
        return Ok(vec![]);
    }
    for system in state.seeded().keys() {
        let roles: BTreeSet<&String> = state.carriers(system).map(|n| &n.role).collect();
        if roles.len() > 1 {
            return Err(refused(format!("{system} would be one cluster of several roles: {roles:?}")));
        }
        let formation = state.cluster.formation(system);
        let holds = formation.stopped.iter().find_map(|(node, s)| match &s.data {
            Data::Holds { lineage, .. } => Some((node.clone(), lineage.clone())),
            Data::Blank => None,
        });
        let serves =
            state.carriers(system).find_map(|n| Some((n.name.clone(), live.serves(state, &n.name, system, now_ms)?)));
        if let Some((node, lineage)) = holds.or(serves) {
            return Err(refused(format!("{node} holds data of {system} {lineage}; next: kiln cluster adopt")));
        }
    }
    Ok(vec![Event::Genesis {}])
}

/// What every node with a seeded system shows is the truth. A node that has not spoken since this
/// server started must be fenced: it may hold what the others do not.
pub(super) fn adopt(state: &State, live: &Live, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    if state.site.is_none() {
        return Err(refused("the ledger has no site yet"));
    }
    let mut formations = BTreeMap::new();
    for (system, description) in state.seeded() {
        if let Some(node) = unknown(state, live, system, now_ms).first() {
            return Err(refused(format!(
                "{node} has not said what it holds of {system}; start it, or kiln node fence {node} if it is off"
            )));
        }
        let serving: BTreeMap<String, String> = state
            .carriers(system)
            .filter_map(|n| Some((n.name.clone(), live.serves(state, &n.name, system, now_ms)?)))
            .collect();
        let formation = state.cluster.formation(system);
        let current = |node: &String| state.node(node).generation;
        let stopped = formation.stopped.iter().filter(|(n, s)| s.generation == current(n));
        let held: BTreeMap<String, String> = stopped
            .filter_map(|(node, s)| match &s.data {
                Data::Holds { lineage, .. } => Some((node.clone(), lineage.clone())),
                Data::Blank => None,
            })
            .collect();
        let all = if serving.is_empty() { &held } else { &serving };
        let lineages: BTreeSet<&String> = all.values().collect();
        let lineage = match (lineages.len(), description.dark()) {
            (0, _) => continue,
            (1, _) => all.values().next().cloned().unwrap_or_default(),
            // Disposable: what nobody serves may be made anew.
            (_, Some(Dark::Reset)) if serving.is_empty() => continue,
            _ => {
                let shown: Vec<String> = all.iter().map(|(n, l)| format!("{n} {l}")).collect();
                let next = format!("kiln cluster recover {system} --from NODE");
                return Err(refused(format!("{system} shows several clusters: {}; next: {next}", shown.join(", "))));
            }
        };
        let members = serving.into_iter().chain(held).filter(|(_, l)| *l == lineage).map(|(n, _)| n);
        let members: BTreeSet<String> = members.collect();
        formations.insert(system.to_string(), Adopted { lineage, members: members.into_iter().collect() });
    }
    Ok(vec![Event::Adopted { formations }])
}

pub(super) fn fence(state: &State, live: &Live, node: &str, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    must_exist(state, node)?;
    if live.session_lives(state, node, now_ms) {
        let reason = format!("node {node} lives or may live: it was heard, or this server has just started");
        return Err(refused(format!("{reason}; switch it off, wait {SESSION_DEAD_SECS} s, then fence it")));
    }
    let known = state.node(node);
    let event = Event::NodeFenced { node: node.into(), generation: known.generation };
    Ok(if known.is_fenced() { vec![] } else { vec![event] })
}

/// One line for each node that carries the system: what it holds, as far as is known.
pub fn ranks(state: &State, live: &Live, system: &str, now_ms: u64) -> Vec<String> {
    let formation = state.cluster.formation(system);
    let line = |name: &String| {
        let known = state.node(name);
        if let Some(lineage) = live.serves(state, name, system, now_ms) {
            return format!("{name}: serves {lineage}");
        }
        if known.is_fenced() {
            return format!("{name}: fenced");
        }
        match formation.stopped.get(name).filter(|s| s.generation == known.generation).map(|s| &s.data) {
            None => format!("{name}: not known"),
            Some(Data::Blank) => format!("{name}: stopped, blank"),
            Some(Data::Holds { lineage, rank }) => format!("{name}: stopped, {lineage} rank {rank}"),
        }
    };
    state.carriers(system).map(|n| line(&n.name)).collect()
}

pub(super) fn recover(
    state: &State,
    live: &Live,
    system: &str,
    from: &str,
    accept_loss: bool,
    now_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    must_exist(state, from)?;
    let found = state.seeded().contains_key(system) && state.carriers(system).any(|n| n.name == from);
    if !found {
        let reason = format!("node {from} has no system {:?} that is seeded", text::word(system));
        return Err(Refusal::new(Why::NotFound, reason));
    }
    let formation = state.cluster.formation(system);
    let all = ranks(state, live, system, now_ms).join("; ");
    let known: BTreeMap<&str, &Data> = state
        .carriers(system)
        .filter_map(|n| {
            let stopped = formation.stopped.get(&n.name)?;
            let node = state.node(&n.name);
            (stopped.generation == node.generation && !node.is_fenced()).then_some((n.name.as_str(), &stopped.data))
        })
        .collect();
    let serving: Vec<(&str, String)> = state
        .carriers(system)
        .filter_map(|n| Some((n.name.as_str(), live.serves(state, &n.name, system, now_ms)?)))
        .collect();
    let aside = |nodes: Vec<String>| Event::SetAside { system: system.into(), nodes };
    if !serving.is_empty() {
        let Some((_, lineage)) = serving.iter().find(|(n, _)| *n == from) else {
            return Err(refused(format!("{system} is served by {}; recover from one of them ({all})", serving[0].0)));
        };
        let foreign = known.iter().filter(|(_, d)| matches!(d, Data::Holds { lineage: l, .. } if l != lineage));
        let nodes: Vec<String> = foreign.map(|(n, _)| n.to_string()).collect();
        return Ok(if nodes.is_empty() { vec![] } else { vec![aside(nodes)] });
    }
    if let Some(node) = unknown(state, live, system, now_ms).first() {
        return Err(refused(format!("{node} has not said what it holds; start it, or fence it if it is off ({all})")));
    }
    let Some(data) = known.get(from) else {
        return Err(refused(format!("{from} is fenced: its data cannot come back ({all})")));
    };
    // What would be lost: other lineages, higher ranks.
    let loses = |other: &Data| match (data, other) {
        (_, Data::Blank) => false,
        (Data::Blank, _) => true,
        (Data::Holds { lineage, rank }, Data::Holds { lineage: l, rank: r }) => l != lineage || r > rank,
    };
    let lost: Vec<String> = known.iter().filter(|(_, d)| loses(d)).map(|(n, _)| n.to_string()).collect();
    if !lost.is_empty() && !accept_loss {
        let reason = format!("what {} holds and {from} does not would be lost ({all})", lost.join(", "));
        return Err(refused(format!("{reason}; next: --accept-loss, if that is meant")));
    }
    if **data == Data::Blank && formation.lineage.is_some() && !accept_loss {
        return Err(refused(format!("{from} holds nothing: {system} would begin anew ({all}); next: --accept-loss")));
    }
    let off = state.carriers(system).filter(|n| state.node(&n.name).is_fenced()).map(|n| n.name.clone());
    let nodes: Vec<String> = lost.into_iter().chain(off).collect();
    let genesis = (!state.cluster.genesis).then_some(Event::Genesis {});
    let aside = (!nodes.is_empty()).then(|| aside(nodes));
    let recovering = Event::Recovering { system: system.into(), node: from.into() };
    Ok(genesis.into_iter().chain(aside).chain([recovering]).collect())
}
