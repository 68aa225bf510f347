//! Machines that ask, what they were answered, how far their boots came. All of it can be said by
//! anyone on the network: bounded, deduplicated, and never a ground for a credential.

use super::{Answer, Refusal, Why};
use crate::ledger::event::Event;
use crate::ledger::identify::{Identity, identify};
use crate::ledger::live::Live;
use crate::ledger::message::PhaseReport;
use crate::ledger::state::{Progress, State};
use crate::ledger::text;
use crate::site::{Mac, Uuid};

/// Machines that are remembered; more on one provisioning network are somebody's noise.
pub const MACHINES_MAX: usize = 8192;

fn has_room(state: &State, live: &Live, mac: Mac, now_ms: u64) -> bool {
    let stranger = is_stranger(state, mac);
    (!stranger || state.machines.contains_key(&mac) || state.machines.len() < MACHINES_MAX)
        && live.may_speak(mac, stranger, now_ms)
}

/// Whether this card is no node's.
pub(super) fn is_stranger(state: &State, mac: Mac) -> bool {
    !matches!(identify(state, mac, None), Identity::Node { .. })
}

pub(super) fn saw(state: &State, live: &Live, mac: Mac, uuid: Option<Uuid>, firmware: &str, now_ms: u64) -> Vec<Event> {
    let firmware = text::word(firmware);
    let known = state.machines.get(&mac);
    // iPXE and the initramfs do not always repeat the UUID: silence takes nothing back.
    let uuid = uuid.filter(|u| !u.is_junk()).or(known.and_then(|m| m.uuid));
    let same = known.is_some_and(|m| m.uuid == uuid && (firmware.is_empty() || m.firmware == firmware));
    if same || !has_room(state, live, mac, now_ms) {
        return Vec::new();
    }
    let firmware = if firmware.is_empty() { known.map(|m| m.firmware.clone()).unwrap_or_default() } else { firmware };
    vec![Event::MachineSeen { mac, uuid, firmware }]
}

/// The event of an answer, unless the same was answered to the same question last time. Once the
/// node has registered since, it is another boot's.
pub(super) fn answered(state: &State, live: &Live, answer: &Answer, now_ms: u64) -> Option<Event> {
    if !has_room(state, live, answer.mac, now_ms) {
        return None;
    }
    let facts = answer.facts.iter().map(|(k, v)| (text::word(k), text::clean(v, 512))).collect();
    let last = state.machines.get(&answer.mac).and_then(|m| m.answers.get(&answer.asked));
    let registered = answer.node.as_ref().and_then(|n| state.nodes.get(n)?.session.as_ref()).map_or(0, |s| s.rev);
    let same = last.is_some_and(|l| {
        l.rev > registered
            && l.node == answer.node
            && l.address == answer.address
            && l.facts == facts
            && l.rule == answer.rule
            && l.answer == answer.answer
            && l.image == answer.image
    });
    (!same).then(|| Event::Answered {
        mac: answer.mac,
        node: answer.node.clone(),
        asked: answer.asked,
        address: answer.address,
        facts,
        rule: answer.rule.clone(),
        answer: text::detail(&answer.answer),
        image: answer.image,
    })
}

pub(super) fn phase(state: &State, live: &Live, report: &PhaseReport, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    if !text::is_boot_id(&report.boot_id) {
        return Err(Refusal::new(Why::Invalid, "boot id is not one that a kernel makes"));
    }
    let node = match identify(state, report.mac, report.uuid) {
        Identity::Node { name, .. } => Some(name),
        _ if state.machines.contains_key(&report.mac) => None,
        _ => {
            return Err(Refusal::new(Why::NotFound, format!("machine {} never asked this server to boot", report.mac)));
        }
    };
    let detail = text::detail(&report.detail);
    let last = match &node {
        Some(node) => state.nodes.get(node).and_then(|n| n.progress.as_ref()),
        None => state.machines.get(&report.mac).and_then(|m| m.progress.as_ref()),
    };
    let same = |p: &Progress| p.boot_id == report.boot_id && p.phase == report.phase && p.detail == detail;
    if last.is_some_and(same) {
        return Ok(Vec::new());
    }
    if !has_room(state, live, report.mac, now_ms) {
        return Err(Refusal::new(Why::Refused, format!("machine {} says too much", report.mac)));
    }
    let (boot_id, phase) = (report.boot_id.clone(), report.phase);
    Ok(vec![Event::PhaseReached { mac: report.mac, node, boot_id, phase, detail }])
}
