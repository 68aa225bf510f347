//! An order: the operator's one-shot instruction to reimage a node, and how far it is. Folded
//! only; [`super::decide`] decides.

use super::event::UsedImage;
use super::message::{Disk, Disks, Via};
use serde::{Deserialize, Serialize};

/// As it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Random: names the order on disks and in messages.
    pub id: String,
    pub node: String,
    /// What the node boots under it, and goes on to boot after it.
    pub image: UsedImage,
    pub disks: Disks,
    /// If the node lives.
    #[serde(default, skip_serializing_if = "Via::is_reboot")]
    pub via: Via,
    /// Wall clock of the server, Unix milliseconds: void from then on, unless it is under way.
    pub expires_ms: u64,
    /// Whose word it is; for people.
    pub giver: String,
    /// Why it stands although a quorum may break.
    #[serde(default)]
    pub force: Option<String>,
    /// Systems whose last copy of data may be destroyed.
    #[serde(default)]
    pub destroy: Vec<String>,
    /// Guests on the node may be lost.
    #[serde(default)]
    pub lose_guests: bool,
    /// They are shut down before the node restarts, and started again after the order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_guests: bool,
    /// They are moved to other nodes before the node restarts; if one cannot be, the order has failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub migrate_guests: bool,
    /// The rollout that gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
}

/// How an order came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The node booted under it is ready.
    Ready,
    Cancelled,
    Expired,
    /// It was under way and will not get ready, by the operator's word; or guests could not be moved.
    Failed,
}

impl End {
    pub fn word(self) -> &'static str {
        match self {
            End::Ready => "ready",
            End::Cancelled => "cancelled",
            End::Expired => "expired",
            End::Failed => "failed",
        }
    }
}

/// An order and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderState {
    pub order: Order,
    /// Revision of the event that gave it.
    pub rev: u64,
    /// The boot that goes by it; a later one takes its place.
    pub booted: Option<String>,
    /// The wipe that was let through. Whether it happened the mark on the disk tells.
    pub begun: Option<Begun>,
    /// The generation that registered from that boot.
    pub registered: Option<u64>,
    /// Some boot has registered after a wipe was let through: it has happened.
    pub made: bool,
    /// The ledger was not the newest since it was given: it wipes nothing any more.
    pub doubted: bool,
    pub ended: Option<End>,
    /// Why it ended so, if that says more.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    pub boot_id: String,
    pub disk: Disk,
}

impl OrderState {
    pub fn new(order: Order, rev: u64) -> OrderState {
        let (booted, begun, registered, ended) = (None, None, None, None);
        let reason = String::new();
        OrderState { order, rev, booted, begun, registered, made: false, doubted: false, ended, reason }
    }

    pub fn is_open(&self) -> bool {
        self.ended.is_none()
    }

    /// It cannot be taken back by time going by: a disk was touched, or its boot has registered.
    pub fn is_under_way(&self) -> bool {
        self.begun.is_some() || self.registered.is_some()
    }

    /// It waits until the node's guests are gone, before its boot.
    pub fn drains(&self) -> bool {
        self.order.stop_guests || self.order.migrate_guests
    }

    /// Whether this boot goes by it.
    pub fn is_of(&self, boot_id: &str) -> bool {
        self.is_open() && self.booted.as_deref() == Some(boot_id)
    }
}
