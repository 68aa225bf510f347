//! Orders to reimage a node: given through the gate, served to that node only, asked about once
//! more before a disk is wiped, ended when the boot under it is ready. And the operator's word that a
//! node has other hardware, or is no more.

use super::disk::Asked;
use super::drain;
use super::gate::{self, Judged, Loss};
use super::operator::{must_exist, of_role};
use super::step;
use super::{Refusal, Reimage, Replace, Risk, Why};
use crate::image::id::ImageId;
use crate::ledger::event::Event;
use crate::ledger::live::Live;
use crate::ledger::message::{BLANK, DiskRequest, Disks, Drain, Phase, Report, SESSION_DEAD_SECS};
use crate::ledger::order::{End, Order, OrderState};
use crate::ledger::state::{Keeps, NodeState, State};
use crate::ledger::text;
use crate::site::{Node, Site, StateDisk};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new(Why::Refused, reason)
}

/// `kiln node reimage`.
pub(super) fn give(state: &State, live: &Live, asked: &Reimage, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    must_exist(state, &asked.node)?;
    let Some(node) = state.site_node(&asked.node) else { return Err(refused("no such node")) };
    let wanted = format!("reimage, disks {}", asked.disks.word());
    let risk = &asked.risk;
    let no = |judged: &Judged| refuse(&asked.node, &wanted, &risk.giver, judged);
    let simple = |rule, reason| no(&Judged { facts: BTreeMap::new(), against: vec![(rule, reason)] });
    if !is_id(&asked.id) || state.open_orders.contains_key(&asked.id) {
        return Err(Refusal::new(Why::Invalid, "an order's id is 8 hexadecimal digits that no other one has"));
    }
    if let Some(open) = state.node(&asked.node).open_order() {
        let (id, giver) = (&open.order.id, &open.order.giver);
        return Err(simple("open-order", format!("order {id} of {giver} is open; next: kiln node cancel {id}")));
    }
    if let Some(reason) = &state.node(&asked.node).held {
        return Err(simple("held", format!("it is held: {reason}; next: kiln node unhold {}", asked.node)));
    }
    let image = match &asked.image {
        Some(chosen) => {
            of_role(state, &node.role, &chosen.image, &chosen.release, &chosen.role)?;
            chosen.image.clone()
        }
        None => match state.image_for(node) {
            Some(image) => image.clone(),
            None => {
                let next = format!("next: kiln image use {} IMAGE", node.role);
                return Err(simple("no-image", format!("role {} has no image; {next}", node.role)));
            }
        },
    };
    state.keeps(node).map_err(|reason| simple("no-state-disk", reason))?;
    let destroy = checked(state, node, risk)?;
    let order = Order {
        id: asked.id.clone(),
        node: asked.node.clone(),
        image,
        disks: asked.disks,
        via: asked.via,
        expires_ms: asked.expires_ms,
        giver: text::word(&risk.giver),
        force: risk.force.as_deref().map(|f| text::clean(f, 200)),
        destroy,
        lose_guests: risk.lose_guests,
        stop_guests: risk.stop_guests,
        migrate_guests: risk.migrate_guests,
        rollout: None,
    };
    let judged = gate::gate(state, live, &Loss { guests: true, ..loss(state, &order) }, now_ms)?;
    if !judged.against.is_empty() {
        return Err(no(&judged));
    }
    Ok(vec![Event::OrderGiven { order: Box::new(order), facts: judged.facts }])
}

/// What a reimage of a node that may live takes from the cluster.
pub(super) fn loss_of<'a>(state: &State, node: &'a str, disks: Disks) -> Loss<'a> {
    let keeps = state.site_node(node).map(|n| state.keeps(n));
    let wipes = disks == Disks::Wipe || matches!(keeps, Some(Ok(Keeps::Volatile)));
    Loss {
        node,
        wipes,
        guests: true,
        forced: false,
        destroy: &[],
        lose_guests: false,
        stop_guests: false,
        migrate_guests: false,
    }
}

/// What following an order takes from the cluster. A node whose state is in memory keeps nothing.
fn loss<'a>(state: &State, order: &'a Order) -> Loss<'a> {
    Loss {
        guests: false,
        forced: order.force.is_some(),
        destroy: &order.destroy,
        lose_guests: order.lose_guests,
        stop_guests: order.stop_guests,
        migrate_guests: order.migrate_guests,
        ..loss_of(state, &order.node, order.disks)
    }
}

/// The systems whose last copy may go, which the node's role must share with others. A force has a reason.
fn checked(state: &State, node: &Node, risk: &Risk) -> Result<Vec<String>, Refusal> {
    if risk.force.as_ref().is_some_and(|reason| reason.trim().is_empty()) {
        return Err(Refusal::new(Why::Invalid, "--force needs a reason: it stays in the log"));
    }
    for name in &risk.destroy {
        if state.clustered(&node.role, name).is_none() {
            let reason = format!("role {} has no shared system {:?}", node.role, text::word(name));
            return Err(Refusal::new(Why::NotFound, reason));
        }
    }
    Ok(risk.destroy.clone())
}

fn refuse(node: &str, wanted: &str, giver: &str, judged: &Judged) -> Refusal {
    let event = Event::OrderRefused {
        node: node.into(),
        wanted: wanted.into(),
        giver: text::word(giver),
        facts: judged.facts.clone(),
        rule: judged.rule().into(),
        reason: judged.reason(),
    };
    gate::refusal(&format!("{wanted} of {node}"), judged).with(Some(event))
}

fn is_id(id: &str) -> bool {
    id.len() == 8 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `kiln node cancel`. Once a disk was touched only its failure can be stated.
pub(super) fn cancel(state: &State, id: &str, failed: bool) -> Result<Vec<Event>, Refusal> {
    let Some((node, order)) = state.order(id) else {
        return Err(Refusal::new(Why::NotFound, format!("no open order {:?}; see kiln node ls", text::word(id))));
    };
    let end = match (&order.begun, failed) {
        (Some(begun), false) => {
            let next = format!("next: wait until {node} is ready, or kiln node cancel {id} --failed");
            return Err(refused(format!("order {id} has touched disk {} of {node}; {next}", begun.disk.name)));
        }
        (Some(_), true) => End::Failed,
        (None, _) => End::Cancelled,
    };
    Ok(vec![Event::OrderEnded { order: id.into(), node: node.clone(), end, reason: String::new() }])
}

/// Ends the orders whose time is over, unless they are under way.
pub(super) fn expire(state: &State, wall_ms: u64) -> Vec<Event> {
    let over = |id: &&String| state.order(id).is_some_and(|(_, o)| !o.is_under_way() && o.order.expires_ms <= wall_ms);
    let ended = |id: &String| Event::OrderEnded {
        order: id.clone(),
        node: state.open_orders[id].clone(),
        end: End::Expired,
        reason: String::new(),
    };
    state.open_orders.keys().filter(over).map(ended).collect()
}

/// The order that a boot of this image goes by.
pub(super) fn of_boot(known: &NodeState, image: ImageId) -> Option<&OrderState> {
    known.open_order().filter(|o| o.order.image.id == image)
}

/// A boot goes by the order: said once a boot.
pub(super) fn booted(order: &OrderState, boot_id: &str) -> Option<Event> {
    let (id, node) = (order.order.id.clone(), order.order.node.clone());
    (!order.is_of(boot_id)).then(|| Event::OrderBooted { order: id, node, boot_id: boot_id.into() })
}

/// `POST /v1/orders/<id>/begin`: may the order wipe this disk now? What holds nothing may always be
/// made. Anything else is asked of the gate again: hours may have gone by since the order was given.
pub(super) fn begin(
    state: &State,
    live: &Live,
    id: &str,
    request: &DiskRequest,
    source: Ipv4Addr,
    now_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let asked = Asked::by(state, request, source)?;
    let node = &asked.node.name;
    let Some(order) = asked.known.open_order().filter(|o| o.order.id == id) else {
        return Err(asked.refused(format!("order {} of node {node} is not open", text::word(id))));
    };
    if order.order.disks != Disks::Wipe {
        return Err(asked.refused(format!("order {id} keeps the disks")));
    }
    if !order.is_of(&request.boot_id) {
        return Err(asked.refused(format!("order {id} is another boot's; restart the machine")));
    }
    asked.is_named()?;
    let found = text::clean(&request.found, 200);
    if found != BLANK {
        may_wipe(state, live, order, now_ms).map_err(|reason| asked.refused(reason))?;
    }
    let same = order.begun.as_ref().is_some_and(|b| b.boot_id == request.boot_id && b.disk == asked.disk);
    let (order, node, boot_id) = (id.to_string(), node.clone(), request.boot_id.clone());
    Ok(if same { vec![] } else { vec![Event::OrderBegun { order, node, boot_id, disk: asked.disk, found }] })
}

/// What speaks against wiping a disk that holds something and does not bear the order's mark.
pub(super) fn may_wipe(state: &State, live: &Live, order: &OrderState, now_ms: u64) -> Result<(), String> {
    let id = &order.order.id;
    if order.made {
        return Err(format!("order {id} has wiped this node's disk already; next: kiln node cancel {id} --failed"));
    }
    if order.doubted {
        let next = format!("next: kiln node cancel {id}, and give it anew");
        return Err(format!("the ledger was not the newest since order {id} was given; {next}"));
    }
    // Who was to be moved and was still there when it was last heard has his disk here: it was restarted too early.
    let loss = Loss { guests: order.order.migrate_guests, migrate_guests: false, ..loss(state, &order.order) };
    let judged = gate::gate(state, live, &loss, now_ms).map_err(|r| r.reason)?;
    if judged.against.is_empty() {
        return Ok(());
    }
    Err(format!("order {id} waits: {}; or kiln node cancel {id}", judged.reason()))
}

/// Whether the node's running system is to restart into its open order, and if not, why.
pub fn restart(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<Result<String, String>> {
    let known = state.nodes.get(name)?;
    let order = known.open_order()?;
    let session = known.session.as_ref().filter(|_| live.session_lives(state, name, now_ms))?;
    // This very boot goes by it already.
    if order.is_of(&session.boot_id) || order.begun.is_some() {
        return None;
    }
    let id = order.order.id.clone();
    Some(match gate::gate(state, live, &Loss { guests: true, ..loss(state, &order.order) }, now_ms) {
        Ok(judged) if judged.against.is_empty() => match drain::progress(state, live, name, now_ms) {
            Some((Drain::Stop | Drain::Migrate, Err(left))) => Err(format!("guests: draining: {left}")),
            _ => Ok(id),
        },
        Ok(judged) => Err(judged.reason()),
        Err(refusal) => Err(refusal.reason),
    })
}

/// The node booted under its order says that it is ready.
pub(super) fn reported(name: &str, node: &NodeState, report: &Report) -> Option<Event> {
    let order = node.open_order()?;
    let named = report.order.as_deref() == Some(order.order.id.as_str());
    let spent = named && report.phase == Phase::Ready && order.registered == Some(node.generation);
    let (order, reason) = (order.order.id.clone(), String::new());
    spent.then(|| Event::OrderEnded { order, node: name.into(), end: End::Ready, reason })
}

/// A node says that a guest cannot be moved: its order has failed before it restarted.
pub(super) fn unmoved(name: &str, node: &NodeState, report: &Report) -> Option<Event> {
    let order = node.open_order().filter(|o| o.order.migrate_guests && !o.is_under_way())?;
    let drain = report.drain.as_ref().filter(|d| d.failed && Some(d.number) == node.drain)?;
    let (order, reason) = (order.order.id.clone(), text::clean(&drain.detail, 300));
    Some(Event::OrderEnded { order, node: name.into(), end: End::Failed, reason })
}

/// `kiln node replace`: other hardware under the old name. A new disk means that what the old one
/// held is gone; the old disk in a new chassis brings its key along.
pub(super) fn replace(state: &State, live: &Live, asked: &Replace, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    let (mut site, at) = edited(state, live, &asked.node, "replaced", now_ms)?;
    if asked.macs.is_empty() && asked.disk.is_none() {
        return Err(Refusal::new(Why::Invalid, "replace needs --mac, --disk or both"));
    }
    if let Some((owner, mac)) = asked.macs.iter().find_map(|mac| {
        let owner = site.nodes.iter().find(|n| n.name != asked.node && n.macs.contains(mac))?;
        Some((owner.name.clone(), mac))
    }) {
        return Err(refused(format!("MAC {mac} is node {owner}'s in the site")));
    }
    let fresh = asked.disk.is_some();
    leave(state, live, &site.nodes[at], "replace", fresh, &asked.risk, now_ms)?;
    let node = &mut site.nodes[at];
    if !asked.macs.is_empty() {
        // The UUID is the old chassis's.
        (node.macs, node.uuid) = (asked.macs.clone(), None);
    }
    if let Some(disk) = &asked.disk {
        node.state = StateDisk::Disk(disk.clone());
    }
    let macs = node.macs.clone();
    Ok(vec![
        Event::SiteApplied { site: Box::new(site), site_id: state.site_id.clone() },
        Event::NodeReplaced { node: asked.node.clone(), macs, fresh },
    ])
}

/// `kiln node rm`: the node is no more, with all that it held.
pub(super) fn remove(state: &State, live: &Live, node: &str, risk: &Risk, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    let (mut site, at) = edited(state, live, node, "removed", now_ms)?;
    leave(state, live, &site.nodes[at], "removal", true, risk, now_ms)?;
    site.nodes.remove(at);
    Ok(vec![
        Event::SiteApplied { site: Box::new(site), site_id: state.site_id.clone() },
        Event::NodeRemoved { node: node.into(), forget: step::to_forget(state, node) },
    ])
}

/// The site, to be changed at this node, which must be off and have no open order.
fn edited(state: &State, live: &Live, node: &str, what: &str, now_ms: u64) -> Result<(Site, usize), Refusal> {
    must_exist(state, node)?;
    let site = state.site.as_ref().ok_or_else(|| refused("the ledger has no site yet"))?;
    let at = site.nodes.iter().position(|n| n.name == node).ok_or_else(|| refused("no such node"))?;
    if let Some(open) = state.node(node).open_order() {
        let id = &open.order.id;
        return Err(refused(format!("node {node} has the open order {id}; next: kiln node cancel {id}")));
    }
    if live.session_lives(state, node, now_ms) {
        let reason = format!("node {node} cannot be {what} while its session lives or may live");
        return Err(refused(format!("{reason}; switch it off and wait {SESSION_DEAD_SECS} s")));
    }
    Ok(((**site).clone(), at))
}

/// Whether the node, off as it is, may go.
fn leave(
    state: &State,
    live: &Live,
    node: &Node,
    what: &str,
    wipes: bool,
    risk: &Risk,
    now_ms: u64,
) -> Result<(), Refusal> {
    if risk.stop_guests || risk.migrate_guests {
        let reason = "a node that is off has no guests to shut down or to move; next: --guests lose";
        return Err(Refusal::new(Why::Invalid, reason));
    }
    let destroy = checked(state, node, risk)?;
    let (forced, lose_guests) = (risk.force.is_some(), risk.lose_guests);
    let node_loss = loss_of(state, &node.name, Disks::Keep);
    let loss = Loss { wipes, guests: wipes, forced, destroy: &destroy, lose_guests, ..node_loss };
    let judged = gate::gate(state, live, &loss, now_ms)?;
    if judged.against.is_empty() { Ok(()) } else { Err(refuse(&node.name, what, &risk.giver, &judged)) }
}
