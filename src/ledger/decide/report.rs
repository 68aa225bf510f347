//! `POST /v1/report`: an event only when something changed.

use super::{Refusal, Why};
use crate::image::id::Digest;
use crate::ledger::event::Event;
use crate::ledger::message::{Phase, Report, SystemReport, SystemState};
use crate::ledger::state::State;
use crate::ledger::text;

/// More systems than this no role has.
pub const SYSTEMS_MAX: usize = 64;

pub(super) fn report(state: &State, fingerprint: &Digest, report: &Report) -> Result<Vec<Event>, Refusal> {
    let Some((name, node)) = state.by_fingerprint(fingerprint) else {
        return Err(Refusal::new(Why::Refused, "the certificate is not of a node's current generation"));
    };
    let systems: Vec<SystemReport> = report
        .systems
        .iter()
        .take(SYSTEMS_MAX)
        .map(|s| SystemReport { name: text::word(&s.name), state: s.state, reason: text::clean(&s.reason, 300) })
        .collect();
    let shape = |phase: Phase, systems: &[SystemReport]| -> (Phase, Vec<(String, SystemState)>) {
        (phase, systems.iter().map(|s| (s.name.clone(), s.state)).collect())
    };
    let left = node.session.as_ref().is_some_and(|s| s.left);
    let same = left == report.leaving
        && node.report.as_ref().is_some_and(|r| shape(r.phase, &r.systems) == shape(report.phase, &systems));
    if same {
        return Ok(Vec::new());
    }
    Ok(vec![Event::Reported {
        node: name.clone(),
        generation: node.generation,
        phase: report.phase,
        detail: text::detail(&report.detail),
        systems,
        leaving: report.leaving,
    }])
}
