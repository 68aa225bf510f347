//! What a booting machine is answered: DHCP, TFTP, HTTP. Who gets what is decided outside of the
//! protocols, behind [`Directory`]; the protocols only carry it.

pub mod admin;
pub mod api;
pub mod choose;
pub mod counters;
pub mod dhcp;
pub mod http;
pub mod loaders;
pub mod machine;
pub mod script;
pub mod tftp;

use crate::site::Subnet;
use machine::Machine;
use std::net::Ipv4Addr;

/// Says which place a machine has in the site. Called for each DHCP packet that is worth an
/// answer, from the server's thread: it must be quick and must not wait for the network.
pub trait Directory {
    fn lookup(&self, machine: &Machine) -> Placement;
}

/// The place of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// A node of the site, with its reserved address.
    Node { name: String, address: Ipv4Addr, link: Link, offer: Offer },
    /// Not known, but to be shown to the operator: in authoritative mode an address of the pool
    /// (`None`: no pool, no answer), in proxy mode only the boot file.
    Parked { link: Link, pool: Option<Pool>, offer: Offer },
    /// Not ours; the reason is for people.
    Ignore(String),
}

/// What the firmware is told to do. iPXE is always given its script, which can say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Load iPXE, then the script.
    Boot,
    /// No boot file, so that the firmware goes on to its next boot device.
    LocalDisk,
}

/// What a machine must know of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub subnet: Subnet,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    /// Addresses only: DHCP's option 42 carries no names.
    pub ntp: Vec<Ipv4Addr>,
    /// Bytes.
    pub mtu: Option<u16>,
}

/// Addresses that may be leased to parked machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub first: Ipv4Addr,
    /// Inclusive.
    pub last: Ipv4Addr,
    /// Never leased though inside: the server's, the VIP, nodes' addresses.
    pub excluded: Vec<Ipv4Addr>,
}

impl Pool {
    /// Whether `address` may be leased.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address) && !self.excluded.contains(&address)
    }
}
