//! What a site must have for the roles that its nodes play, and what differs between two sites.

use super::{Network, Node, Site, StateDisk};
use std::collections::BTreeMap;

/// Nodes that must not be served as they stand. `controller_roles` says whether a role has a system
/// that forms a cluster; `None`: it has no image yet, so nobody knows.
pub fn check(site: &Site, controller_roles: &dyn Fn(&str) -> Option<bool>) -> Vec<String> {
    let diskless = |node: &&Node| node.state == StateDisk::Unset && controller_roles(&node.role) == Some(true);
    site.nodes
        .iter()
        .filter(diskless)
        .map(|node| {
            format!(
                "node {} is a controller ({}) without a state disk: give state = {{ disk = … }}, \
                 or state = {{ volatile = true }} if it may lose its data at every boot",
                node.name, node.role
            )
        })
        .collect()
}

/// The changes from `old` to `new`, one a line, for people.
pub fn diff(old: &Site, new: &Site) -> Vec<String> {
    let (old, new) = (facts(old), facts(new));
    let mut lines = Vec::new();
    for key in old.keys().chain(new.keys().filter(|k| !old.contains_key(*k))) {
        match (old.get(key), new.get(key)) {
            (Some(before), Some(after)) if before != after => lines.push(format!("{key}: {before} -> {after}")),
            (Some(before), None) => lines.push(format!("{key}: removed (was {before})")),
            (None, Some(after)) => lines.push(format!("{key}: added ({after})")),
            _ => {}
        }
    }
    lines.sort();
    lines
}

/// Every value of a site under the key that a person would look for.
fn facts(site: &Site) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut put = |key: String, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            facts.insert(key, value);
        }
    };
    put("cluster.name".into(), Some(site.cluster.name.clone()));
    put("cluster.release".into(), Some(site.cluster.release.clone()));
    put("cluster.vip".into(), site.cluster.vip.map(|v| v.to_string()));
    put("cluster.unknown".into(), site.cluster.unknown.map(|u| format!("{u:?}").to_lowercase()));
    for key in &site.ssh_keys {
        put(format!("access.ssh_keys {}", key_name(key)), Some(key.clone()));
    }
    for (role, image) in &site.role_images {
        put(format!("role.{role}.image"), Some(image.clone()));
    }
    let networks = site.networks.iter().map(|(name, network)| (name.as_str(), network));
    for (name, network) in networks.chain([("management", &site.management)]) {
        for (key, value) in network_facts(network) {
            put(format!("network.{name}.{key}"), value);
        }
    }
    for node in &site.nodes {
        for (key, value) in node_facts(node) {
            put(format!("node {}{key}", node.name), value);
        }
    }
    facts
}

/// The comment of a key, else the end of its text: keys begin alike.
fn key_name(key: &str) -> String {
    let mut words = key.split_whitespace().skip(1);
    let blob = words.next().unwrap_or_default();
    let tail: String = blob.chars().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect();
    match words.next() {
        Some(comment) => format!("{comment} (…{tail})"),
        None => format!("…{tail}"),
    }
}

fn list<T: ToString>(items: &[T]) -> Option<String> {
    Some(items.iter().map(T::to_string).collect::<Vec<_>>().join(" "))
}

fn network_facts(network: &Network) -> [(&'static str, Option<String>); 7] {
    [
        ("subnet", network.subnet.map(|s| s.to_string())),
        ("gateway", network.gateway.map(|g| g.to_string())),
        ("dns", list(&network.dns)),
        ("ntp", list(&network.ntp)),
        ("mtu", network.mtu.map(|m| m.to_string())),
        ("pool", network.pool.map(|(first, last)| format!("{first} to {last}"))),
        ("physical", network.physical.clone()),
    ]
}

fn node_facts(node: &Node) -> [(&'static str, Option<String>); 7] {
    [
        ("", Some(format!("role {}", node.role))),
        (".mac", list(&node.macs)),
        (".uuid", node.uuid.map(|u| u.to_string())),
        (".management.address", Some(node.address.to_string())),
        (".external.mac", node.external_mac.map(|m| m.to_string())),
        (".state", state_fact(&node.state)),
        (".cmdline", list(&node.cmdline)),
    ]
}

fn state_fact(state: &StateDisk) -> Option<String> {
    match state {
        StateDisk::Unset => None,
        StateDisk::Volatile => Some("volatile".to_string()),
        StateDisk::Disk(disk) => {
            let size = disk.size.map(|s| format!("{s} bytes"));
            let parts = [("serial", disk.serial.clone()), ("wwn", disk.wwn.clone()), ("size", size)];
            let given: Vec<String> = parts.into_iter().filter_map(|(k, v)| v.map(|v| format!("{k} {v}"))).collect();
            Some(format!("disk with {}", given.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests;
