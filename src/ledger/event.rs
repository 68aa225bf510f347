//! What the ledger stores. Every event is a fact that was decided or seen; the log is never
//! rewritten. New fields have defaults, so that logs of every release replay (`tests/fixtures`).

use super::message::{Data, Disk, Phase, SystemReport};
use super::order::{End, Order};
use super::rollout::Rollout;
use crate::image::id::{Digest, ImageId};
use crate::recipe::system::Clustered;
use crate::site::{Mac, Site, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Version of the events' shape; stands in each row.
pub const VERSION: u32 = 3;

/// An event with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Counts from 1 without gaps.
    pub rev: u64,
    /// Wall clock of the server, Unix milliseconds; for people, never for a decision.
    pub at_ms: u64,
    /// [`VERSION`] of the writer.
    pub v: u32,
    pub event: Event,
}

/// What a role boots, with all that a boot script and a register need to know of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedImage {
    pub id: ImageId,
    /// As the operator wrote it; for people.
    pub reference: String,
    pub kernel: Digest,
    pub initramfs: Digest,
    /// Kernel arguments of the role.
    #[serde(default)]
    pub cmdline: Vec<String>,
    pub architecture: String,
    /// One of its systems has a formation.
    #[serde(default)]
    pub controller: bool,
    /// Its systems on which several nodes must agree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clustered: Vec<Clustered>,
    /// Names of the site's secrets that its systems may receive.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Names of the certificates that they may receive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
}

/// Which question an answer was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    Dhcp,
    Script,
    Boot,
    /// A running node that its order lets go without the firmware.
    Kexec,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    /// The operator's site became the ledger's.
    SiteApplied {
        site: Box<Site>,
        site_id: String,
    },
    /// `role` boots this image from now on.
    ImageUsed {
        role: String,
        image: UsedImage,
    },
    /// A machine that asked for the first time, or looks different now.
    MachineSeen {
        mac: Mac,
        #[serde(default)]
        uuid: Option<Uuid>,
        firmware: String,
    },
    /// A recorded decision: from facts by a rule to an answer. Identical repeats are not stored.
    Answered {
        mac: Mac,
        #[serde(default)]
        node: Option<String>,
        asked: Asked,
        /// Where the question came from.
        #[serde(default)]
        address: Option<Ipv4Addr>,
        facts: BTreeMap<String, String>,
        rule: String,
        answer: String,
        /// The image that the answer boots.
        #[serde(default)]
        image: Option<ImageId>,
    },
    /// Progress of a boot before its register; anyone on the network can say it: timeline only.
    PhaseReached {
        mac: Mac,
        #[serde(default)]
        node: Option<String>,
        boot_id: String,
        phase: Phase,
        #[serde(default)]
        detail: String,
    },
    /// A one-time credential was made for this boot; an older one of the node is void.
    CredentialMinted {
        node: String,
        boot_id: String,
        /// Of the credential; the credential itself is never stored.
        hash: Digest,
        address: Ipv4Addr,
        /// Why the boot was expected.
        rule: String,
    },
    DiskGranted {
        node: String,
        boot_id: String,
        disk: Disk,
    },
    DiskRefused {
        node: String,
        boot_id: String,
        disk: Disk,
        reason: String,
    },
    /// An authenticated register; spends the node's credential and approval.
    Registered {
        node: String,
        generation: u64,
        boot_id: String,
        mac: Mac,
        address: Ipv4Addr,
        /// The node's ed25519 public key, base64.
        key: String,
        /// sha256 of the generation's certificate (DER).
        fingerprint: Digest,
        image: ImageId,
        version: String,
        /// By credential (a new key) or by the key known before.
        by_credential: bool,
    },
    /// A register that was not let in. `alarm`: someone may be posing as the node.
    RegisterRefused {
        node: String,
        mac: Mac,
        boot_id: String,
        address: Ipv4Addr,
        reason: String,
        alarm: bool,
    },
    /// A session's state changed (not every heartbeat).
    Reported {
        node: String,
        generation: u64,
        phase: Phase,
        #[serde(default)]
        detail: String,
        #[serde(default)]
        systems: Vec<SystemReport>,
        #[serde(default)]
        leaving: bool,
    },
    /// This machine is that node, and its next boot may bring a new key.
    NodeApproved {
        node: String,
        mac: Mac,
    },
    NodeHeld {
        node: String,
        reason: String,
    },
    NodeUnheld {
        node: String,
    },
    /// The operator said that this generation of the node is off: whatever it says from now on
    /// changes nothing, and what it held is free. A newer generation ends it.
    NodeFenced {
        node: String,
        generation: u64,
    },
    /// `kiln cluster form`: this cluster's systems may come into being.
    Genesis {},
    /// The server cannot vouch for its ledger being the newest: it may have been lost or taken
    /// from a backup. Nothing that was known only from silence counts until every node has spoken.
    Unvouched {
        reason: String,
    },
    /// Every node has spoken since, and nothing contradicts the ledger.
    Vouched {},
    /// A node knows more than the ledger: nothing is granted until `kiln cluster adopt`.
    Behind {
        node: String,
        reason: String,
    },
    /// `kiln cluster adopt`: what the living members show is the truth.
    Adopted {
        formations: BTreeMap<String, Adopted>,
    },
    /// A node whose system is stopped says what data it holds.
    DataShown {
        system: String,
        node: String,
        generation: u64,
        seq: u64,
        data: Data,
    },
    /// The node may make the system's cluster (or bring it back from its own data).
    SeedGranted {
        system: String,
        node: String,
        generation: u64,
        seq: u64,
    },
    /// The node may join the living members.
    JoinGranted {
        system: String,
        node: String,
        generation: u64,
        seq: u64,
        /// Its own data are moved aside before.
        #[serde(default)]
        set_aside: bool,
    },
    /// The seeding node serves.
    Formed {
        system: String,
        node: String,
        generation: u64,
        lineage: String,
    },
    /// The node serves, or may, although the ledger did not let it in: it started without the server.
    Serves {
        system: String,
        node: String,
        generation: u64,
        seq: u64,
    },
    /// `kiln cluster recover`: the system comes back from this node's data.
    Recovering {
        system: String,
        node: String,
    },
    /// The data of these nodes are moved aside when they join: they may have diverged.
    SetAside {
        system: String,
        nodes: Vec<String>,
    },
    /// One node runs a cluster step.
    StepClaimed {
        system: String,
        step: String,
        node: String,
        generation: u64,
        seq: u64,
        /// Of the system that the step writes; `None`: of one that is not seeded.
        #[serde(default)]
        lineage: Option<String>,
    },
    /// A cluster step ended; not `ok`: another try may be claimed.
    StepEnded {
        system: String,
        step: String,
        node: String,
        generation: u64,
        ok: bool,
        #[serde(default)]
        detail: String,
    },
    /// A member has run a peer step for the generation of `node` that wants to join.
    RoomMade {
        system: String,
        step: String,
        node: String,
        generation: u64,
        by: String,
    },
    /// The operator ordered a node to be reimaged, and the gate let it through.
    OrderGiven {
        order: Box<Order>,
        /// What the gate saw.
        facts: BTreeMap<String, String>,
    },
    /// What the operator wanted for a node would hurt.
    OrderRefused {
        node: String,
        /// Such as `reimage, disks wiped`.
        wanted: String,
        giver: String,
        facts: BTreeMap<String, String>,
        rule: String,
        reason: String,
    },
    /// This boot of the node goes by the order.
    OrderBooted {
        order: String,
        node: String,
        boot_id: String,
    },
    /// The order may wipe this disk now.
    OrderBegun {
        order: String,
        node: String,
        boot_id: String,
        disk: Disk,
        /// What lies on it.
        found: String,
    },
    OrderEnded {
        order: String,
        node: String,
        end: End,
        /// If there is more to say.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// A boot of the node was let go on; `attempt`: how many have since its last register or order.
    BootCounted {
        node: String,
        boot_id: String,
        attempt: u32,
        /// Why the boot before it does not count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        excused: Option<String>,
    },
    /// So many boots in a row came to nothing: the node waits before the next one.
    BootsPaused {
        node: String,
        attempts: u32,
        secs: u64,
        /// What failed.
        reason: String,
        facts: BTreeMap<String, String>,
    },
    /// The pause is over. `forgiven`: most nodes booted anew with it, so the last boot does not count.
    BootsResumed {
        node: String,
        forgiven: bool,
    },
    /// The operator's word: all nodes of a role get another image, one after the other.
    RolloutStarted {
        rollout: Box<Rollout>,
    },
    /// It gives no further order: the operator said so, or one did not end in *ready*.
    RolloutPaused {
        reason: String,
    },
    RolloutResumed {},
    /// `done`: all nodes have the image; else the operator gave it up.
    RolloutEnded {
        done: bool,
    },
    /// The node's name has other hardware from now on: cards that it was approved on are nobody's.
    NodeReplaced {
        node: String,
        /// Of its new hardware.
        macs: Vec<Mac>,
        /// Its disk is another one too: its next register may bring a new key.
        fresh: bool,
    },
    /// The node is no more: what it held is gone, and who waited for it waits no longer.
    NodeRemoved {
        node: String,
        /// What members are to do so that their systems forget it: (system, step).
        #[serde(default)]
        forget: Vec<(String, String)>,
    },
    /// A member has done so.
    Forgotten {
        node: String,
        system: String,
        step: String,
        by: String,
    },
    /// The operator's word: no new guests come to the node, until it is undrained.
    NodeDrained {
        node: String,
        giver: String,
        /// And those that run are moved to other nodes.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        migrate: bool,
    },
    NodeUndrained {
        node: String,
    },
    /// The node says that all is with its guests as before.
    DrainUndone {
        node: String,
        /// Revision of the word that it followed.
        number: u64,
    },
}

/// One system in [`Event::Adopted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub lineage: String,
    pub members: Vec<String>,
}

impl Event {
    /// Whom a timeline shows this event for: a node's name, else the machine's MAC.
    pub fn subject(&self) -> Option<String> {
        match self {
            Event::SiteApplied { .. }
            | Event::ImageUsed { .. }
            | Event::Genesis {}
            | Event::Unvouched { .. }
            | Event::Vouched {}
            | Event::SetAside { .. }
            | Event::RolloutStarted { .. }
            | Event::RolloutPaused { .. }
            | Event::RolloutResumed {}
            | Event::RolloutEnded { .. }
            | Event::Adopted { .. } => None,
            Event::MachineSeen { mac, .. } => Some(mac.to_string()),
            Event::Answered { node, mac, .. } | Event::PhaseReached { node, mac, .. } => {
                Some(node.clone().unwrap_or_else(|| mac.to_string()))
            }
            Event::CredentialMinted { node, .. }
            | Event::DiskGranted { node, .. }
            | Event::DiskRefused { node, .. }
            | Event::Registered { node, .. }
            | Event::RegisterRefused { node, .. }
            | Event::Reported { node, .. }
            | Event::NodeApproved { node, .. }
            | Event::NodeHeld { node, .. }
            | Event::NodeFenced { node, .. }
            | Event::Behind { node, .. }
            | Event::DataShown { node, .. }
            | Event::SeedGranted { node, .. }
            | Event::JoinGranted { node, .. }
            | Event::Formed { node, .. }
            | Event::Serves { node, .. }
            | Event::Recovering { node, .. }
            | Event::StepClaimed { node, .. }
            | Event::StepEnded { node, .. }
            | Event::RoomMade { node, .. }
            | Event::OrderRefused { node, .. }
            | Event::OrderBooted { node, .. }
            | Event::OrderBegun { node, .. }
            | Event::OrderEnded { node, .. }
            | Event::NodeReplaced { node, .. }
            | Event::NodeRemoved { node, .. }
            | Event::Forgotten { node, .. }
            | Event::NodeDrained { node, .. }
            | Event::NodeUndrained { node }
            | Event::DrainUndone { node, .. }
            | Event::BootCounted { node, .. }
            | Event::BootsPaused { node, .. }
            | Event::BootsResumed { node, .. }
            | Event::NodeUnheld { node } => Some(node.clone()),
            Event::OrderGiven { order, .. } => Some(order.node.clone()),
        }
    }
}
