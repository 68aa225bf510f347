//! What a node's templates and scripts see of the site: the JSON of `KILN_SITE`.

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
