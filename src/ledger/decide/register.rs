//! `POST /v1/register`: by the key that the node registered with before, or by this boot's credential.

use super::boot::{may_boot, presented};
use super::{Issued, Refusal, Why};
use crate::image::sign::parse_public;
use crate::ledger::event::Event;
use crate::ledger::identify::{Identity, identify};
use crate::ledger::live::Live;
use crate::ledger::message::{RegisterRequest, register_statement};
use crate::ledger::state::{Keeps, NodeState, State, refused_key};
use crate::ledger::text;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::Signature;
use std::net::Ipv4Addr;

/// A node's word for its generation is believed up to here: no count ever overflows.
const GENERATION_MAX: u64 = 1 << 40;

/// A register that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub generation: u64,
    pub by_credential: bool,
}

/// The node and the generation that a certificate of ours names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub node: String,
    pub generation: u64,
}

/// Whether this register would be let in, and as which generation. The server asks it before it
/// issues a certificate; [`super::decide`] asks it again.
pub fn check(
    state: &State,
    live: &Live,
    request: &RegisterRequest,
    source: Ipv4Addr,
    shown: Option<&Shown>,
    now_ms: u64,
) -> Result<Admitted, Refusal> {
    if !text::is_boot_id(&request.boot_id) {
        return Err(Refusal::new(Why::Invalid, "boot id is not one that a kernel makes"));
    }
    let Some(node) = state.site_node(&request.node) else {
        return Err(Refusal::new(Why::NotFound, format!("no node {:?} in this site", text::word(&request.node))));
    };
    verify(request).map_err(|reason| Refusal::new(Why::Invalid, reason))?;
    let known = state.node(&node.name);
    let refused = |alarm: bool, reason: String| refuse(&known, request, source, alarm, reason);
    // A UUID is not sent here: that was judged at the boot.
    match identify(state, request.mac, state.machines.get(&request.mac).and_then(|m| m.uuid)) {
        Identity::Node { name, .. } if name == node.name => {}
        _ => return Err(refused(false, format!("machine {} is not node {}", request.mac, node.name))),
    }
    if let Err((_, reason)) = may_boot(state, node) {
        return Err(refused(false, reason));
    }
    let knows_key = known.key.as_deref() == Some(request.key.as_str());
    if known.boots.contains(&request.boot_id) {
        let current = known.session.as_ref().is_some_and(|s| s.boot_id == request.boot_id);
        if current && known.is_fenced() {
            return Err(refused(true, format!("generation {} was fenced; restart the machine", known.generation)));
        }
        return match (current, knows_key) {
            // The agent was restarted: same boot, same key, same generation.
            (true, true) => Ok(Admitted { generation: known.generation, by_credential: false }),
            (true, false) => Err(refused(true, "this boot registered with another key".into())),
            (false, _) => Err(refused(true, "boot id of an older generation: a replay".into())),
        };
    }
    // A ledger that was lost or taken from a backup counts on from what the node knows.
    let shown = shown.filter(|s| s.node == node.name);
    let last = known.generation.max(request.last_generation.min(GENERATION_MAX));
    let generation = last.max(shown.map_or(0, |s| s.generation)) + 1;
    // Our own authority said who it is before the ledger was lost.
    if knows_key || (known.key.is_none() && shown.is_some()) {
        return Ok(Admitted { generation, by_credential: false });
    }
    presented(known.credential.as_ref(), &request.boot_id, request.credential.as_deref(), source).map_err(|what| {
        let reason = format!("node {} shows a key that is not its registered one, and {what}", node.name);
        refused(known.key.is_some(), reason)
    })?;
    if live.session_lives(state, &node.name, now_ms) {
        return Err(refused(
            true,
            format!("register by credential while generation {} lives or may live", known.generation),
        ));
    }
    let keeps = state.keeps(node).map_err(|reason| refused(false, reason))?;
    let ordered = known.order.as_ref().is_some_and(|o| o.is_of(&request.boot_id));
    if known.key.is_some() && !known.approved && !ordered && matches!(keeps, Keeps::Disk(_)) {
        let next = format!("kiln node approve {} --node {}", request.mac, node.name);
        return Err(refused(true, format!("a new key of a node that registered before; if it is right: {next}")));
    }
    Ok(Admitted { generation, by_credential: true })
}

pub(super) fn register(
    state: &State,
    live: &Live,
    request: &RegisterRequest,
    source: Ipv4Addr,
    issued: Option<Issued>,
    shown: Option<&Shown>,
    now_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let admitted = check(state, live, request, source, shown, now_ms)?;
    let Some(issued) = issued.filter(|i| i.generation == admitted.generation) else {
        return Err(Refusal::new(Why::Raced, "the node's generation moved meanwhile"));
    };
    let known = state.node(&request.node).generation;
    // Only a member's word for it: a compute must not be able to stop the controllers.
    let member = state.seeded().keys().any(|system| state.carriers(system).any(|n| n.name == request.node));
    let behind = (member && admitted.generation > known + 1).then(|| Event::Behind {
        node: request.node.clone(),
        reason: format!("its last generation was {}, the ledger knows {known}", admitted.generation - 1),
    });
    let registered = Event::Registered {
        node: request.node.clone(),
        generation: admitted.generation,
        boot_id: request.boot_id.clone(),
        mac: request.mac,
        address: source,
        key: request.key.clone(),
        fingerprint: issued.fingerprint,
        image: request.image,
        version: text::word(&request.version),
        by_credential: admitted.by_credential,
    };
    Ok([registered].into_iter().chain(behind.filter(|_| state.cluster.behind.is_none())).collect())
}

/// The signature proves that whoever registers holds the private half of `key`.
fn verify(request: &RegisterRequest) -> Result<(), String> {
    let key = parse_public(&request.key)?;
    let bytes = BASE64.decode(&request.signature).map_err(|_| "signature is not base64")?;
    let signature = Signature::from_slice(&bytes).map_err(|_| "signature is not 64 bytes long")?;
    let statement = register_statement(&request.node, &request.boot_id, &request.csr);
    key.verify_strict(&statement, &signature).map_err(|_| "signature does not match the key and this request".into())
}

/// A refusal with its event; the same one again is not stored twice.
fn refuse(known: &NodeState, request: &RegisterRequest, source: Ipv4Addr, alarm: bool, reason: String) -> Refusal {
    let new = known.refused.as_deref() != Some(&refused_key(&request.boot_id, &source.to_string(), &reason));
    let event = Event::RegisterRefused {
        node: request.node.clone(),
        mac: request.mac,
        boot_id: request.boot_id.clone(),
        address: source,
        reason: reason.clone(),
        alarm,
    };
    Refusal::new(Why::Refused, reason).with(new.then_some(event))
}
