//! `POST /v1/boot`: who gets a credential.
//! The rules are the threat table's (`docs/`); `tests.rs` has a row for each.

use super::breaker;
use super::discovery::answered;
use super::orders;
use super::{Answer, Boot, Refusal, Why};
use crate::image::id::Digest;
use crate::ledger::breaker::why_held;
use crate::ledger::event::{Asked, Event, UsedImage};
use crate::ledger::identify::{Identity, identify};
use crate::ledger::live::Live;
use crate::ledger::message::Disks;
use crate::ledger::state::{Credential, Keeps, NodeState, State};
use crate::ledger::text;
use crate::site::Node;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The rule of a node that is held because its boots come to nothing.
const BOOT_LOOP: &str = "boot-loop";

/// What is stored of a credential.
pub fn credential_of(credential: &str) -> Digest {
    Digest::of(credential.as_bytes())
}

/// Whether a node of the site may boot now, and what; an error is the reason that its console shows.
pub fn may_boot<'a>(state: &'a State, node: &Node) -> Result<&'a UsedImage, (&'static str, String)> {
    if let Some(reason) = &state.node(&node.name).held {
        return Err(("held", format!("node {} is held: {reason}", node.name)));
    }
    let Some(image) = state.image_for(node) else {
        let next = format!("kiln image use {} IMAGE", node.role);
        return Err(("no-image", format!("role {} has no image; next: {next}", node.role)));
    };
    state.keeps(node).map_err(|reason| ("no-state-disk", reason))?;
    Ok(image)
}

/// [`may_boot`], and the node's boots before have not come to nothing too often.
pub fn may_begin<'a>(state: &'a State, node: &Node) -> Result<&'a UsedImage, (&'static str, String)> {
    let image = may_boot(state, node)?;
    match why_held(state, &node.name) {
        Some(reason) => Err((BOOT_LOOP, reason)),
        None => Ok(image),
    }
}

pub(super) fn boot(state: &State, live: &Live, boot: &Boot, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    if !text::is_boot_id(&boot.request.boot_id) {
        return Err(Refusal::new(Why::Invalid, "boot id is not one that a kernel makes"));
    }
    // Another boot than the last one: that is over, and may have been one too many.
    if let Some(paused) = looping(state, live, boot, now_ms) {
        let mut after = state.clone();
        after.apply(&paused);
        return match self::boot(&after, live, boot, now_ms) {
            Ok(events) => Ok([vec![paused], events].concat()),
            Err(mut refusal) => {
                refusal.events.insert(0, paused);
                Err(refusal)
            }
        };
    }
    let mut node = None;
    let (rule, minted) = match grant(state, live, boot, &mut node, now_ms) {
        Ok(granted) => granted,
        Err((rule, reason)) => {
            let event = record(state, live, boot, node, rule, &format!("hold: {reason}"), now_ms);
            let why = if rule == "other-order-image" { Why::Restart } else { Why::Hold };
            return Err(Refusal::new(why, reason).with(event));
        }
    };
    let known = node.as_ref().map(|n| state.node(n));
    // The key proves itself at the register; here only the address tells that it is the node's boot.
    let ours = minted.is_some() || node.as_ref().is_some_and(|n| is_from_its_address(state, boot, n));
    let may = ours && live.may_speak(boot.request.mac, false, now_ms);
    let order = known.as_ref().filter(|_| may).and_then(|k| orders::of_boot(k, boot.request.image));
    let how = if minted.is_some() { "go, with a credential" } else { "go, with the key on its state disk" };
    let answer = match order {
        Some(o) => format!("{how}, by order {} (disks {})", o.order.id, o.order.disks.word()),
        None => how.to_string(),
    };
    let answer = answer.as_str();
    let mut events: Vec<Event> = record(state, live, boot, node.clone(), rule, answer, now_ms).into_iter().collect();
    events.extend(order.and_then(|o| orders::booted(o, &boot.request.boot_id)));
    let counts = node.as_ref().filter(|_| may);
    events.extend(counts.and_then(|n| breaker::counted(state, live, n, &boot.request.boot_id, now_ms)));
    let new = minted.filter(|c| node.as_ref().is_none_or(|n| state.node(n).credential.as_ref() != Some(c)));
    if let (Some(Credential { boot_id, hash, address }), Some(node)) = (new, node) {
        events.push(Event::CredentialMinted { node, boot_id, hash, address, rule: rule.into() });
    }
    Ok(events)
}

type Granted = (&'static str, Option<Credential>);

/// The rule that lets this boot go on, with the credential that it gets; or why it is held.
fn grant(
    state: &State,
    live: &Live,
    boot: &Boot,
    found: &mut Option<String>,
    now_ms: u64,
) -> Result<Granted, (&'static str, String)> {
    let request = &boot.request;
    let name = match identify(state, request.mac, request.uuid) {
        Identity::Node { name, .. } => name,
        Identity::Contradiction { reason } => return Err(("contradiction", reason)),
        Identity::Unknown => {
            return Err(("unknown-machine", format!("machine {} is no node of this site", request.mac)));
        }
    };
    *found = Some(name.clone());
    let Some(node) = state.site_node(&name) else { return Err(("unknown-machine", format!("no node {name}"))) };
    let known = state.node(&name);
    // A boot that was let go on may go on.
    let begun = known.attempts.boot_id == request.boot_id;
    let image = if begun { may_boot(state, node)? } else { may_begin(state, node)? };
    if let Some(open) = known.open_order().filter(|_| request.image != image.id) {
        let (id, this) = (&open.order.id, request.image.short());
        let reason = format!("node {name} must boot {} by order {id}, this is {this}: restarts", image.id.short());
        return Err(("other-order-image", reason));
    }
    // The image may have been changed since this machine's script: what it was told to boot is fine.
    let told = state.machines.get(&request.mac).and_then(|m| m.answers.get(&Asked::Script)).and_then(|a| a.image);
    if request.image != image.id && told != Some(request.image) {
        let reason =
            format!("node {name} must boot {}, this is {}; restart it", image.id.short(), request.image.short());
        return Err(("other-image", reason));
    }
    if known.boots.contains(&request.boot_id) {
        return Err((
            "boot-id-seen",
            format!("boot id {} has registered already; restart the machine", request.boot_id),
        ));
    }
    let keeps = state.keeps(node).map_err(|reason| ("no-state-disk", reason))?;
    let rule = match keeps {
        _ if known.generation == 0 => "first-boot",
        // Its own key is as good, and the old session may live.
        Keeps::Disk(_) if keeps_under_order(&known) && live.session_lives(state, &name, now_ms) => {
            return Ok(("state-key", None));
        }
        Keeps::Disk(_) if known.open_order().is_some() => "order",
        _ if known.approved => "approved",
        Keeps::Volatile => "session-dead",
        Keeps::Disk(_) => return Ok(("state-key", None)),
    };
    if live.session_lives(state, &name, now_ms) {
        let reason = format!("session of generation {} of node {name} lives or may live", known.generation);
        return Err(("session-lives", reason));
    }
    let expected = expected_addresses(state, boot, node)?;
    if !expected.contains(&boot.source) {
        let to: Vec<String> = expected.iter().map(|a| a.to_string()).collect();
        let (from, to) = (boot.source, to.join(" or "));
        return Err(("other-address", format!("asked from {from}, but a credential of node {name} goes to {to} only")));
    }
    let address = boot.source;
    let hash = credential_of(&boot.credential);
    Ok((rule, Some(Credential { boot_id: request.boot_id.clone(), hash, address })))
}

/// The pause of a node whose boots before this one came to nothing.
fn looping(state: &State, live: &Live, boot: &Boot, now_ms: u64) -> Option<Event> {
    let request = &boot.request;
    let Identity::Node { name, .. } = identify(state, request.mac, request.uuid) else { return None };
    let other = state.nodes.get(&name)?.attempts.boot_id != request.boot_id;
    breaker::over(state, live, &name, now_ms).filter(|_| other && is_from_its_address(state, boot, &name))
}

fn is_from_its_address(state: &State, boot: &Boot, node: &str) -> bool {
    let expected = state.site_node(node).map(|n| expected_addresses(state, boot, n));
    matches!(expected, Some(Ok(addresses)) if addresses.contains(&boot.source))
}

fn keeps_under_order(known: &NodeState) -> bool {
    known.open_order().is_some_and(|o| o.order.disks == Disks::Keep)
}

/// The addresses that are that card's: leased or reserved to it; where kiln leases none, the one
/// from which it last asked for its script.
fn expected_addresses(state: &State, boot: &Boot, node: &Node) -> Result<Vec<Ipv4Addr>, (&'static str, String)> {
    let reserved = boot.authoritative.then_some(node.address);
    let ours: Vec<Ipv4Addr> = boot.leased.into_iter().chain(reserved).collect();
    if !ours.is_empty() {
        return Ok(ours);
    }
    let script = state.machines.get(&boot.request.mac).and_then(|m| m.answers.get(&Asked::Script));
    let unknown = || ("no-script", format!("machine {} never asked here for its boot script", boot.request.mac));
    script.and_then(|a| a.address).map(|a| vec![a]).ok_or_else(unknown)
}

fn record(
    state: &State,
    live: &Live,
    boot: &Boot,
    node: Option<String>,
    rule: &str,
    answer: &str,
    now_ms: u64,
) -> Option<Event> {
    let request = &boot.request;
    let mut facts = BTreeMap::from([
        ("boot_id".to_string(), request.boot_id.clone()),
        ("image".to_string(), request.image.short()),
        ("version".to_string(), text::word(&request.version)),
    ]);
    let disks = request.disks.iter().take(32).map(|d| format!("{} {}", text::word(&d.name), d.size));
    facts.insert("disks".into(), disks.collect::<Vec<_>>().join(", "));
    facts.extend(request.uuid.map(|u| ("uuid".to_string(), u.to_string())));
    let answer = Answer {
        mac: request.mac,
        node,
        asked: Asked::Boot,
        address: Some(boot.source),
        facts,
        rule: rule.into(),
        answer: answer.into(),
        image: Some(request.image),
    };
    answered(state, live, &answer, now_ms)
}

/// The node's unspent credential, if the message carries it from where it was minted to.
pub(super) fn presented<'a>(
    credential: Option<&'a Credential>,
    boot_id: &str,
    text: Option<&str>,
    source: Ipv4Addr,
) -> Result<&'a Credential, String> {
    let text = text.ok_or("no credential")?;
    let credential = credential.ok_or("a credential that was spent or never minted")?;
    if credential.boot_id != boot_id {
        return Err("a credential of another boot".into());
    }
    if credential.hash != credential_of(text) {
        return Err("a wrong credential".into());
    }
    if credential.address != source {
        return Err(format!("a credential from {source} that was minted to {}", credential.address));
    }
    Ok(credential)
}
