//! What the operator says: the site, images, approvals, holds.

use super::breaker::ATTEMPTS_MAX;
use super::{Refusal, Why};
use crate::ledger::event::{Event, UsedImage};
use crate::ledger::live::Live;
use crate::ledger::state::State;
use crate::ledger::text;
use crate::site::{Mac, Site, Uuid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A machine as `kiln node ls` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MachineId {
    Mac(Mac),
    Uuid(Uuid),
}

impl FromStr for MachineId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mac = text.parse().map(MachineId::Mac);
        mac.or_else(|_| text.parse().map(MachineId::Uuid)).map_err(|_| format!("{text:?} is neither a MAC nor a UUID"))
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MachineId::Mac(mac) => mac.fmt(f),
            MachineId::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

impl TryFrom<String> for MachineId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> String {
        id.to_string()
    }
}

/// `images`: for each role whose image the site now names differently, what that name means today.
pub(super) fn apply_site(
    state: &State,
    live: &Live,
    site: &Site,
    site_id: &str,
    images: &BTreeMap<String, UsedImage>,
    now_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let mut events = Vec::new();
    if let Some(old) = &state.site {
        let registered = state.nodes.iter().find(|(_, n)| n.generation > 0).map(|(name, _)| name);
        if let Some(node) = registered {
            let because = format!("node {node} has registered; a cluster keeps it for life");
            if old.cluster.name != site.cluster.name {
                return Err(Refusal::new(Why::Refused, format!("cluster.name cannot change: {because}")));
            }
            if old.cluster.vip != site.cluster.vip {
                return Err(Refusal::new(Why::Refused, format!("cluster.vip cannot change: {because}")));
            }
        }
        let gone = old.nodes.iter().filter(|o| !site.nodes.iter().any(|n| n.name == o.name));
        if let Some(node) = gone.into_iter().find(|n| live.session_lives(state, &n.name, now_ms)) {
            let reason = format!("node {} cannot leave the site while its session lives or may live", node.name);
            return Err(Refusal::new(Why::Refused, reason));
        }
        let ordered = state.open_orders.iter().find(|(_, node)| !site.nodes.iter().any(|n| n.name == **node));
        if let Some((id, node)) = ordered {
            let reason = format!("node {node} cannot leave the site with the open order {id}");
            return Err(Refusal::new(Why::Refused, format!("{reason}; next: kiln node cancel {id}")));
        }
    }
    arguments(site.nodes.iter().flat_map(|n| &n.cmdline))?;
    if state.site.as_deref() != Some(site) {
        let site_id = if state.site_id.is_empty() { site_id.to_string() } else { state.site_id.clone() };
        events.push(Event::SiteApplied { site: Box::new(site.clone()), site_id });
    }
    for (role, image) in images {
        arguments(&image.cmdline)?;
        if state.image_of(role) != Some(image) {
            events.push(Event::ImageUsed { role: role.clone(), image: image.clone() });
        }
    }
    Ok(events)
}

pub(super) fn use_image(
    state: &State,
    role: &str,
    image: &UsedImage,
    release: &str,
    image_role: &str,
) -> Result<Vec<Event>, Refusal> {
    let Some(site) = &state.site else { return Err(Refusal::new(Why::Refused, "the ledger has no site yet")) };
    let known = site.role_images.contains_key(role) || site.nodes.iter().any(|n| n.role == role);
    if !known {
        return Err(Refusal::new(Why::NotFound, format!("no role {role:?} in this site")));
    }
    of_role(state, role, image, release, image_role)?;
    let own = |name: &String| state.nodes.get(name).is_some_and(|n| n.image.is_some());
    let differs = site.nodes.iter().any(|n| n.role == role && own(&n.name));
    let same = state.image_of(role).is_some_and(|i| i.id == image.id) && !differs;
    Ok(if same { Vec::new() } else { vec![Event::ImageUsed { role: role.into(), image: image.clone() }] })
}

/// Whether an image of that release and role may be booted by nodes of `role`.
pub(super) fn of_role(
    state: &State,
    role: &str,
    image: &UsedImage,
    release: &str,
    image_role: &str,
) -> Result<(), Refusal> {
    let Some(site) = &state.site else { return Err(Refusal::new(Why::Refused, "the ledger has no site yet")) };
    if image_role != role {
        let reason = format!("image {} is for role {image_role}, not {role}", image.reference);
        return Err(Refusal::new(Why::Refused, reason));
    }
    if release != site.cluster.release {
        let reason =
            format!("image {} is of release {release}, the site's is {}", image.reference, site.cluster.release);
        return Err(Refusal::new(Why::Refused, reason));
    }
    arguments(&image.cmdline)
}

/// Kernel arguments end up on a line of a boot script.
fn arguments<'a>(all: impl IntoIterator<Item = &'a String>) -> Result<(), Refusal> {
    match all.into_iter().find(|a| !text::is_kernel_argument(a)) {
        Some(bad) => Err(Refusal::new(Why::Refused, format!("kernel argument {bad:?} cannot stand in a boot script"))),
        None => Ok(()),
    }
}

pub(super) fn must_exist(state: &State, node: &str) -> Result<(), Refusal> {
    match state.site_node(node) {
        Some(_) => Ok(()),
        None => Err(Refusal::new(Why::NotFound, format!("no node {node:?} in this site; see kiln node ls"))),
    }
}

pub(super) fn approve(state: &State, machine: &MachineId, node: &str) -> Result<Vec<Event>, Refusal> {
    must_exist(state, node)?;
    let mac = match machine {
        MachineId::Mac(mac) => *mac,
        MachineId::Uuid(uuid) => {
            let mut having = state.machines.iter().filter(|(_, m)| m.uuid == Some(*uuid)).map(|(mac, _)| *mac);
            match (having.next(), having.next()) {
                (Some(mac), None) => mac,
                (None, _) => return Err(Refusal::new(Why::NotFound, format!("no machine with UUID {uuid} was seen"))),
                (Some(_), Some(_)) => {
                    return Err(Refusal::new(Why::Refused, format!("several cards show UUID {uuid}; give the MAC")));
                }
            }
        }
    };
    let Some(site) = &state.site else { return Err(Refusal::new(Why::Refused, "the ledger has no site yet")) };
    if let Some(owner) = site.nodes.iter().find(|n| n.macs.contains(&mac) && n.name != node) {
        return Err(Refusal::new(Why::Refused, format!("MAC {mac} is node {}'s in the site", owner.name)));
    }
    if !state.machines.contains_key(&mac) && !site.nodes.iter().any(|n| n.macs.contains(&mac)) {
        return Err(Refusal::new(Why::NotFound, format!("machine {mac} was never seen; see kiln node ls")));
    }
    let already = state.machines.get(&mac).is_some_and(|m| m.approved.as_deref() == Some(node));
    if already && state.node(node).approved {
        return Ok(Vec::new());
    }
    Ok(vec![Event::NodeApproved { node: node.into(), mac }])
}

pub(super) fn hold(state: &State, node: &str, reason: &str) -> Result<Vec<Event>, Refusal> {
    must_exist(state, node)?;
    let reason = match text::clean(reason, 200) {
        empty if empty.trim().is_empty() => "held by the operator".to_string(),
        reason => reason,
    };
    let same = state.node(node).held.as_ref() == Some(&reason);
    Ok(if same { Vec::new() } else { vec![Event::NodeHeld { node: node.into(), reason }] })
}

pub(super) fn unhold(state: &State, node: &str) -> Result<Vec<Event>, Refusal> {
    must_exist(state, node)?;
    let known = state.node(node);
    let held = known.held.is_some() || known.attempts.count >= ATTEMPTS_MAX;
    Ok(if held { vec![Event::NodeUnheld { node: node.into() }] } else { Vec::new() })
}

/// What applying `new` would change: `key: old -> new`, one line each.
pub fn site_diff(old: Option<&Site>, new: &Site) -> Vec<String> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    if let Some(old) = old {
        flatten("", &serde_json::to_value(old).unwrap_or_default(), &mut before);
    }
    flatten("", &serde_json::to_value(new).unwrap_or_default(), &mut after);
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let line = |key: &&String| match (before.get(*key), after.get(*key)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) => Some(format!("~ {key}: {a} -> {b}")),
        (Some(a), None) => Some(format!("- {key}: {a}")),
        (None, Some(b)) => Some(format!("+ {key}: {b}")),
        (None, None) => None,
    };
    keys.iter().filter_map(line).collect()
}

/// Dotted key -> value; members of a list of named things go by their name.
fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    let join = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    match value {
        Value::Null => {}
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&join(key), value, out)),
        Value::Array(items) if items.iter().any(|i| i.get("name").is_some()) => {
            for item in items {
                flatten(&join(item.get("name").and_then(Value::as_str).unwrap_or("?")), item, out);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        other => {
            out.insert(prefix.to_string(), other.to_string());
        }
    }
}
