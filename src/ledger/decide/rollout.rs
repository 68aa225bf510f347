//! Rollouts: started against the rules of what may differ in one cluster, led on one order at a time
//! as the gate lets it, stopped at the first order that did not end in *ready*.

use super::operator::of_role;
use super::{Refusal, StartRollout, Why};
use super::{gate, orders};
use crate::image::id::Digest;
use crate::ledger::event::Event;
use crate::ledger::live::Live;
use crate::ledger::message::{Disks, Via};
use crate::ledger::order::{End, Order};
use crate::ledger::rollout::{PackageChange, Rollout, RolloutState};
use crate::ledger::state::State;
use crate::ledger::text;
use std::collections::BTreeMap;

/// An order of a rollout that was not followed is over after this.
const ORDER_MS: u64 = 2 * 3600 * 1000;
/// A node counts as away until it has been ready for so long: then its services have settled, and the image is kept
/// on its disk.
pub(super) const SETTLE_MS: u64 = 30_000;

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new(Why::Refused, reason)
}

/// The rollout that has not come to its end.
fn open(state: &State) -> Result<&RolloutState, Refusal> {
    let open = state.rollout.as_deref().filter(|r| r.ended.is_none());
    open.ok_or_else(|| Refusal::new(Why::NotFound, "no rollout is open; next: kiln rollout start"))
}

pub(super) fn start(state: &State, asked: &StartRollout) -> Result<Vec<Event>, Refusal> {
    if let Ok(open) = open(state) {
        let role = &open.rollout.role;
        return Err(refused(format!("a rollout of role {role} is open; next: kiln rollout status, or abort")));
    }
    let role = &asked.role;
    let Some(site) = &state.site else { return Err(refused("the ledger has no site yet")) };
    let nodes: Vec<String> = site.nodes.iter().filter(|n| n.role == *role).map(|n| n.name.clone()).collect();
    if nodes.is_empty() {
        return Err(Refusal::new(Why::NotFound, format!("no node of this site has role {:?}", text::word(role))));
    }
    of_role(state, role, &asked.image.image, &asked.image.release, &asked.image.role)?;
    let Some(before) = state.image_of(role) else {
        return Err(refused(format!("role {role} has no image; next: kiln image use {role} IMAGE")));
    };
    if let Some((id, node)) = state.open_orders.iter().find(|(_, node)| nodes.contains(node)) {
        return Err(refused(format!("order {id} of node {node} is open; next: kiln node cancel {id}")));
    }
    let risky: Vec<String> = asked.changes.iter().filter(|c| c.is_risky()).map(PackageChange::line).collect();
    if !risky.is_empty() && !asked.allow_upgrade {
        let reason = "members of one cluster would have different minor versions";
        return Err(refused(format!(
            "{reason}: {}; next: --allow-upgrade, if they can serve together",
            risky.join(", ")
        )));
    }
    let rollout = Rollout {
        id: asked.id.clone(),
        role: role.clone(),
        image: asked.image.image.clone(),
        before: before.clone(),
        nodes,
        max_unavailable: asked.max_unavailable.max(1),
        giver: text::word(&asked.giver),
        risky,
    };
    Ok(vec![Event::RolloutStarted { rollout: Box::new(rollout) }])
}

pub(super) fn pause(state: &State, reason: &str) -> Result<Vec<Event>, Refusal> {
    let known = open(state)?;
    let reason = text::clean(reason, 200);
    Ok(if known.paused.is_some() { vec![] } else { vec![Event::RolloutPaused { reason }] })
}

pub(super) fn resume(state: &State) -> Result<Vec<Event>, Refusal> {
    let known = open(state)?;
    Ok(if known.paused.is_none() { vec![] } else { vec![Event::RolloutResumed {}] })
}

/// No further node gets the image; those that have it keep it.
pub(super) fn abort(state: &State) -> Result<Vec<Event>, Refusal> {
    let known = open(state)?;
    let waits = |id: &str| state.order(id).is_some_and(|(_, o)| !o.is_under_way());
    let orders = known.given.iter().filter(|(_, id)| waits(id)).map(|(node, id)| Event::OrderEnded {
        order: id.clone(),
        node: node.clone(),
        end: End::Cancelled,
        reason: String::new(),
    });
    Ok(orders.chain([Event::RolloutEnded { done: false }]).collect())
}

/// What is to happen next, or what is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// All nodes have the image.
    Done,
    /// This node's turn, with what the gate saw.
    Node(String, BTreeMap<String, String>),
    Waits(String),
    /// An order did not end in *ready*.
    Stops(String),
}

/// Where a rollout goes from here.
pub fn next(state: &State, live: &Live, known: &RolloutState, now_ms: u64) -> Next {
    let rollout = &known.rollout;
    let mut away = BTreeMap::new();
    // Of each node its last order counts: after a failure and `resume` it gets another one.
    for (i, (node, id)) in known.given.iter().enumerate() {
        let last = known.given.iter().skip(i + 1).all(|(n, _)| n != node);
        let Some(order) = state.nodes.get(node).and_then(|n| n.order.as_ref()).filter(|o| o.order.id == *id && last)
        else {
            continue;
        };
        match order.ended {
            None => drop(away.insert(node, format!("{node} to be ready"))),
            Some(End::Ready) => {
                if let Some(ready) = live.ready_for(state, node, now_ms).filter(|ready| *ready < SETTLE_MS) {
                    let (ready, settle) = (ready / 1000, SETTLE_MS / 1000);
                    away.insert(node, format!("{node}, ready for {ready} s, to be so for {settle} s"));
                }
            }
            Some(end) if !known.forgiven.contains(id) => {
                return Next::Stops(format!("order {id} of {node} ended: {}", end.word()));
            }
            Some(_) => {}
        }
    }
    let lacks = |name: &&String| {
        let session = state.nodes.get(*name).and_then(|n| n.session.as_ref());
        session.is_none_or(|s| s.image != rollout.image.id) && state.site_node(name).is_some()
    };
    let mut open = rollout.nodes.iter().filter(lacks).filter(|n| !away.contains_key(n));
    let waits = || Next::Waits(away.values().map(String::as_str).collect::<Vec<_>>().join("; "));
    match open.next() {
        None if away.is_empty() => Next::Done,
        None => waits(),
        Some(_) if away.len() >= rollout.max_unavailable as usize => waits(),
        Some(node) => match gate::gate(state, live, &orders::loss_of(state, node, Disks::Keep), now_ms) {
            Ok(judged) if judged.against.is_empty() => Next::Node(node.clone(), judged.facts),
            Ok(judged) => Next::Waits(format!("{node}'s turn: {}", judged.reason())),
            Err(refusal) => Next::Waits(refusal.reason),
        },
    }
}

/// One step on, if there is one: the next order, the stop at a failure, the end.
pub(super) fn advance(state: &State, live: &Live, wall_ms: u64, now_ms: u64) -> Vec<Event> {
    let Some(known) = state.rollout.as_deref().filter(|r| r.is_running()) else { return vec![] };
    let rollout = &known.rollout;
    match next(state, live, known, now_ms) {
        Next::Waits(_) => vec![],
        Next::Stops(reason) => vec![Event::RolloutPaused { reason }],
        Next::Done => {
            let used = Event::ImageUsed { role: rollout.role.clone(), image: rollout.image.clone() };
            vec![Event::RolloutEnded { done: true }, used]
        }
        Next::Node(node, facts) => {
            // The revision makes it another id for another try.
            let id = Digest::of(format!("{} {node} {}", rollout.id, state.rev).as_bytes()).hex()[..8].to_string();
            if state.open_orders.contains_key(&id) {
                return vec![];
            }
            let order = Order {
                id,
                node,
                image: rollout.image.clone(),
                disks: Disks::Keep,
                via: Via::Reboot,
                expires_ms: wall_ms.saturating_add(ORDER_MS),
                giver: format!("rollout {} of {}", rollout.id, rollout.giver),
                force: None,
                destroy: vec![],
                lose_guests: false,
                stop_guests: false,
                migrate_guests: false,
                rollout: Some(rollout.id.clone()),
            };
            vec![Event::OrderGiven { order: Box::new(order), facts }]
        }
    }
}
