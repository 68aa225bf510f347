//! `POST /v1/report`: an event only when something changed.

use super::{Refusal, current, drain, orders, step};
use crate::image::id::Digest;
use crate::ledger::event::Event;
use crate::ledger::live::Live;
use crate::ledger::message::{GUESTS_MAX, Phase, Report, SystemReport};
use crate::ledger::state::{NodeState, State};
use crate::ledger::text;
use crate::recipe::system::{Clustered, Dark};

/// More systems than this no role has.
pub const SYSTEMS_MAX: usize = 64;

pub(super) fn report(
    state: &State,
    live: &Live,
    fingerprint: &Digest,
    report: &Report,
    now_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let (name, node) = current(state, fingerprint)?;
    let systems: Vec<SystemReport> = report
        .systems
        .iter()
        .take(SYSTEMS_MAX)
        .map(|s| SystemReport {
            name: text::word(&s.name),
            state: s.state,
            reason: text::clean(&s.reason, 300),
            lineage: s.lineage.as_deref().map(text::word),
            stranded: s.stranded,
            guests: s.guests.iter().take(GUESTS_MAX).map(|g| text::word(g)).collect(),
            stopped: s.stopped.iter().take(GUESTS_MAX).map(|g| text::word(g)).collect(),
        })
        .collect();
    let mut events = Vec::new();
    // Guests come and go; that there are some, and that some run, must be known of a node that is silent.
    let runs = |s: &SystemReport| s.guests.iter().any(|g| !s.stopped.contains(g));
    let of = |s: &SystemReport| (s.name.clone(), s.state, s.guests.is_empty(), runs(s));
    let shape = |phase: Phase, systems: &[SystemReport]| (phase, systems.iter().map(of).collect::<Vec<_>>());
    // One that was overtaken says nothing new.
    let newest = live.heard.get(name).filter(|h| h.generation == node.generation).and_then(|h| h.report.as_ref());
    let late = newest.is_some_and(|r| report.seq < r.seq);
    let left = node.session.as_ref().is_some_and(|s| s.left);
    let same = left == report.leaving
        && node.report.as_ref().is_some_and(|r| shape(r.phase, &r.systems) == shape(report.phase, &systems));
    let role = state.site_node(name).map(|n| n.role.as_str()).unwrap_or_default();
    for system in &systems {
        if let (Some(known), Some(lineage)) = (state.clustered(role, &system.name), &system.lineage)
            && known.dark().is_some()
        {
            events.extend(serves(state, name, node, known, lineage, report.seq));
        }
    }
    events.extend(step::reported(state, name, node, report.seq, &report.running));
    if !same && !late {
        events.push(Event::Reported {
            node: name.clone(),
            generation: node.generation,
            phase: report.phase,
            detail: text::detail(&report.detail),
            systems,
            leaving: report.leaving,
        });
    }
    events.extend(orders::reported(name, node, report).filter(|_| !late));
    events.extend(orders::unmoved(name, node, report).filter(|_| !late));
    events.extend(drain::reported(name, node, report).filter(|_| !late));
    if state.cluster.unvouched.is_some() {
        events.extend(vouch(state, live, fingerprint, report, &events, now_ms));
    }
    Ok(events)
}

/// Judged on what is known with this report.
fn vouch(
    state: &State,
    live: &Live,
    fingerprint: &Digest,
    report: &Report,
    events: &[Event],
    now_ms: u64,
) -> Option<Event> {
    let (mut state, mut live) = (state.clone(), live.clone());
    events.iter().for_each(|event| state.apply(event));
    let command = super::Command::Report { fingerprint: *fingerprint, report: report.clone() };
    live.note(&command, &state, now_ms);
    step::vouched(&state, &live, now_ms).then_some(Event::Vouched {})
}

/// A node serves a seeded system: what that tells the ledger.
fn serves(state: &State, name: &str, node: &NodeState, system: &Clustered, lineage: &str, seq: u64) -> Vec<Event> {
    let formation = state.cluster.formation(&system.name);
    let generation = node.generation;
    let granted = formation.granted.get(name).filter(|g| g.generation == generation).map_or(0, |g| g.seq);
    if seq <= formation.barrier(name, generation) {
        return vec![]; // said before it stopped or was let in
    }
    let stopped = formation.stopped.get(name).is_some_and(|s| s.generation == generation && s.seq > granted);
    let (system_name, node_name) = (system.name.clone(), name.to_string());
    // In whatever generation: after a crash it may have come back without the server.
    let seeds = formation.seeding.as_ref().is_some_and(|h| h.node == name);
    let same = formation.lineage.as_deref() == Some(lineage);
    let formed =
        Event::Formed { system: system_name.clone(), node: node_name.clone(), generation, lineage: lineage.into() };
    let behind = |reason: String| {
        let event = Event::Behind { node: name.into(), reason };
        if state.cluster.behind.is_none() && state.cluster.genesis { vec![event] } else { vec![] }
    };
    let mut events = match &formation.lineage {
        _ if seeds && (same || formation.lineage.is_none()) => vec![formed],
        _ if seeds && (system.dark() == Some(Dark::Reset) || formation.chosen.as_deref() == Some(name)) => vec![formed],
        Some(_) if same => vec![],
        Some(known) => behind(format!("it serves {} {lineage}, the ledger knows {known}", system.name)),
        None => behind(format!("it serves {} {lineage}, which was never formed here", system.name)),
    };
    // It runs, so it no longer counts as stopped, and it holds data.
    if stopped || (same && !formation.members.contains(name)) {
        events.push(Event::Serves { system: system_name, node: node_name, generation, seq });
    }
    events
}
