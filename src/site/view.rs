//! What a node's templates and scripts see of the site: the JSON of `KILN_SITE`.

use super::{Network, Site};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Delivered with the register's answer, kept on the state disk, given to templates (as top-level
/// names `cluster`, `node`, `network`, `members`, `ssh_keys`) and to scripts as the file `KILN_SITE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub cluster: ClusterView,
    pub node: NodeView,
    /// By name: `management`, `external`.
    pub network: BTreeMap<String, NetworkView>,
    /// Nodes of each role, sorted by name.
    pub members: BTreeMap<String, Vec<MemberView>>,
    pub ssh_keys: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub name: String,
    pub release: String,
    pub vip: Option<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub name: String,
    pub role: String,
    /// Counts from 1 among the nodes of its role, by name: corosync's nodeid, for example.
    pub index: u32,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub mac: String,
    pub external_mac: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    pub subnet: Option<String>,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<String>,
    pub mtu: Option<u32>,
    pub physical: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub name: String,
    pub address: Ipv4Addr,
    pub index: u32,
}

/// What `node` sees of the site; `None`: the site has no such node.
pub fn view(site: &Site, node: &str) -> Option<View> {
    let own = site.nodes.iter().find(|n| n.name == node)?;
    let subnet = site.management.subnet?;
    let mut members: BTreeMap<String, Vec<MemberView>> = BTreeMap::new();
    // Nodes are sorted by name, so each role's list is too, and an index is a place in it.
    for node in &site.nodes {
        let of_role = members.entry(node.role.clone()).or_default();
        let index = of_role.len() as u32 + 1;
        of_role.push(MemberView { name: node.name.clone(), address: node.address, index });
    }
    let index = members.get(&own.role)?.iter().find(|m| m.name == own.name)?.index;
    let mut network: BTreeMap<String, NetworkView> =
        site.networks.iter().map(|(name, network)| (name.clone(), network_view(network))).collect();
    network.insert("management".to_string(), network_view(&site.management));
    Some(View {
        cluster: ClusterView {
            name: site.cluster.name.clone(),
            release: site.cluster.release.clone(),
            vip: site.cluster.vip,
        },
        node: NodeView {
            name: own.name.clone(),
            role: own.role.clone(),
            index,
            address: own.address,
            prefix: subnet.prefix,
            mac: own.macs.first()?.to_string(),
            external_mac: own.external_mac.map(|mac| mac.to_string()),
        },
        network,
        members,
        ssh_keys: site.ssh_keys.clone(),
    })
}

fn network_view(network: &Network) -> NetworkView {
    NetworkView {
        subnet: network.subnet.map(|s| s.to_string()),
        gateway: network.gateway,
        dns: network.dns.clone(),
        ntp: network.ntp.clone(),
        mtu: network.mtu,
        physical: network.physical.clone(),
    }
}
