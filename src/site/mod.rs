//! The site: one cluster, its networks, its roles' images and its nodes. `site.toml` is parsed by
//! [`file`] into [`Site`]; [`view`] is what a node's templates and scripts see of it.

pub mod address;
pub mod check;
pub mod file;
pub mod sample;
pub mod secrets;
pub mod view;

pub use address::{Mac, Subnet, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A valid site. Serialized into the ledger's events (JSON), never read from there by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub cluster: Cluster,
    /// OpenSSH public keys for root on every node.
    pub ssh_keys: Vec<String>,
    /// Role name -> image reference, as written in the file.
    pub role_images: BTreeMap<String, String>,
    pub management: Network,
    /// Other networks by name (`external`).
    pub networks: BTreeMap<String, Network>,
    /// Sorted by name.
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    pub release: String,
    pub vip: Option<Ipv4Addr>,
    /// `None`: by the DHCP mode (ignore in proxy mode, park in authoritative).
    pub unknown: Option<Unknown>,
}

/// What an unknown machine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    Ignore,
    Local,
    Park,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub subnet: Option<Subnet>,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<String>,
    pub mtu: Option<u32>,
    /// First and last address for parked machines.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Neutron's name of the physical network (external).
    pub physical: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub role: String,
    /// MACs of the management side, the first one first; at least one.
    pub macs: Vec<Mac>,
    pub uuid: Option<Uuid>,
    pub address: Ipv4Addr,
    pub external_mac: Option<Mac>,
    pub state: StateDisk,
    /// Additional kernel arguments.
    pub cmdline: Vec<String>,
}

/// Where a node's state lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateDisk {
    /// Not said: refused for controllers.
    Unset,
    /// In memory, by the operator's word.
    Volatile,
    Disk(DiskMatch),
}

/// Which disk: every given field must match exactly one disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMatch {
    pub serial: Option<String>,
    pub wwn: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
}

impl DiskMatch {
    /// Whether a disk is the one that is meant: node and server judge by the same rule. A match
    /// that names nothing fits nothing.
    pub fn fits(&self, serial: Option<&str>, wwn: Option<&str>, size: u64) -> bool {
        let names_something = self.serial.is_some() || self.wwn.is_some() || self.size.is_some();
        names_something
            && self.serial.as_ref().is_none_or(|want| serial.map(str::trim) == Some(want.trim()))
            && self.wwn.as_ref().is_none_or(|want| wwn.map(plain_wwn) == Some(plain_wwn(want)))
            && self.size.is_none_or(|want| size == want)
    }
}

/// Kernels and tools write one WWN in several ways: `naa.5000c5…`, `0x5000c5…`, `wwn-0x5000c5…`.
fn plain_wwn(text: &str) -> String {
    let mut text = text.trim().to_ascii_lowercase();
    for prefix in ["wwn-", "naa.", "eui.", "uuid.", "nvme.", "0x"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            text = rest.to_string();
        }
    }
    text
}
