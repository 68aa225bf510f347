//! Which node a machine is: by MAC and, where both sides give one, by SMBIOS UUID.

use super::state::State;
use crate::site::{Mac, Uuid};

/// Who a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The node, and what told so: `mac`, `uuid` or `approved`.
    Node {
        name: String,
        by: &'static str,
    },
    /// MAC and UUID contradict each other or the site.
    Contradiction {
        reason: String,
    },
    Unknown,
}

/// Who asks: an approved machine is what the operator said; else the MAC tells, and a UUID that
/// the site gives must not contradict it; a machine with an unknown card is known by its UUID.
pub fn identify(state: &State, mac: Mac, uuid: Option<Uuid>) -> Identity {
    let Some(site) = &state.site else { return Identity::Unknown };
    if let Some(name) = state.machines.get(&mac).and_then(|m| m.approved.clone())
        && site.nodes.iter().any(|n| n.name == name)
    {
        return Identity::Node { name, by: "approved" };
    }
    let uuid = uuid.filter(|u| !u.is_junk());
    let by_mac = site.nodes.iter().find(|n| n.macs.contains(&mac));
    let by_uuid = site.nodes.iter().find(|n| uuid.is_some() && n.uuid == uuid);
    match (by_mac, by_uuid) {
        (Some(a), Some(b)) if a.name != b.name => Identity::Contradiction {
            reason: format!("MAC {mac} is node {}'s and the machine's UUID is node {}'s", a.name, b.name),
        },
        (Some(node), _) => match (node.uuid.filter(|u| !u.is_junk()), uuid) {
            (Some(want), Some(have)) if want != have => Identity::Contradiction {
                reason: format!("MAC {mac} is node {}'s, whose UUID is {want}; the machine says {have}", node.name),
            },
            _ => Identity::Node { name: node.name.clone(), by: "mac" },
        },
        (None, Some(node)) => Identity::Node { name: node.name.clone(), by: "uuid" },
        (None, None) => Identity::Unknown,
    }
}
