//! A site that no cluster has: what templates are rendered with when an image is linted, and when
//! a recipe is checked.

use super::view::{ClusterView, MemberView, NetworkView, NodeView, View};
use base64::Engine as _;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Nodes of each role in the sample: three, the smallest number that has a majority.
const NODES: u32 = 3;

/// The first node of `role` in a site of three infra nodes, three computes and three of `role`,
/// with every optional value given. Addresses are of RFC 5737's documentation networks.
pub fn sample_view(role: &str) -> View {
    let member = |role: &str, first: u8, index: u32| MemberView {
        name: format!("{role}{index}"),
        address: Ipv4Addr::new(192, 0, 2, first + index as u8),
        index,
    };
    let mut members: BTreeMap<String, Vec<MemberView>> = BTreeMap::new();
    for (name, first) in [("infra", 20), ("controller", 30), ("compute", 40), ("storage", 50), (role, 10)] {
        members.insert(name.to_string(), (1..=NODES).map(|index| member(name, first, index)).collect());
    }
    let network = |subnet: &str, gateway: Ipv4Addr, physical: Option<&str>| NetworkView {
        subnet: Some(subnet.to_string()),
        gateway: Some(gateway),
        dns: vec![gateway],
        ntp: vec![gateway.to_string()],
        mtu: Some(1500),
        physical: physical.map(str::to_string),
    };
    View {
        cluster: ClusterView {
            name: "sample".to_string(),
            release: "sample".to_string(),
            vip: Some(Ipv4Addr::new(192, 0, 2, 10)),
        },
        node: NodeView {
            name: format!("{role}1"),
            role: role.to_string(),
            index: 1,
            address: Ipv4Addr::new(192, 0, 2, 11),
            prefix: 24,
            mac: "52:54:00:00:00:01".to_string(),
            external_mac: Some("52:54:00:00:01:01".to_string()),
        },
        network: BTreeMap::from([
            ("management".to_string(), network("192.0.2.0/24", Ipv4Addr::new(192, 0, 2, 1), None)),
            ("external".to_string(), network("198.51.100.0/24", Ipv4Addr::new(198, 51, 100, 1), Some("provider"))),
        ]),
        members,
        ssh_keys: vec![
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA sample".to_string(),
        ],
    }
}

/// A value for each of these secrets, no two the same; base64, as some of them must be.
pub fn sample_secrets<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeMap<String, String> {
    let value = |name: &String| base64::engine::general_purpose::STANDARD.encode(format!("a sample of {name}"));
    names.into_iter().map(|name| (name.clone(), value(name))).collect()
}
