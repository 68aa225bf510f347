//! A rollout: another image for all nodes of a role, one after the other, each by an order that keeps
//! its disk. Folded only, and what is judged of packages; [`super::decide`] decides.

use super::event::{Event, UsedImage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// As it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Eight hexadecimal digits: its orders' ids are made from it.
    pub id: String,
    pub role: String,
    pub image: UsedImage,
    /// What the role had.
    pub before: UsedImage,
    /// In this order.
    pub nodes: Vec<String>,
    /// So many may be away at once, where the gate lets them.
    pub max_unavailable: u32,
    pub giver: String,
    /// Package changes that were let through by the operator's word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub risky: Vec<String>,
}

/// A rollout and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutState {
    pub rollout: Rollout,
    /// Orders that it gave: node and id, the newest last.
    pub given: Vec<(String, String)>,
    /// Of those, what failed before the operator said to go on.
    pub forgiven: BTreeSet<String>,
    /// Why it gives no further order.
    pub paused: Option<String>,
    /// `true`: all nodes have the image; `false`: aborted.
    pub ended: Option<bool>,
}

impl RolloutState {
    pub fn new(rollout: Rollout) -> RolloutState {
        RolloutState { rollout, given: vec![], forgiven: BTreeSet::new(), paused: None, ended: None }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::RolloutPaused { reason } => self.paused = Some(reason.clone()),
            Event::RolloutResumed {} => {
                self.paused = None;
                self.forgiven.extend(self.given.iter().map(|(_, id)| id.clone()));
            }
            Event::RolloutEnded { done } => self.ended = Some(*done),
            _ => {}
        }
    }

    pub fn is_running(&self) -> bool {
        self.paused.is_none() && self.ended.is_none()
    }
}

/// A package that differs between two images; an empty version: absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageChange {
    pub name: String,
    pub from: String,
    pub to: String,
}

/// Packages whose members of one cluster must have the same minor version: while one node after the
/// other gets the image, both versions serve together and share data.
const SHARED: [&str; 5] = ["galera", "mariadb-server", "rabbitmq-server", "erlang", "corosync"];

impl PackageChange {
    /// For people.
    pub fn line(&self) -> String {
        match (self.from.as_str(), self.to.as_str()) {
            ("", to) => format!("+ {} {to}", self.name),
            (from, "") => format!("- {} {from}", self.name),
            (from, to) => format!("~ {} {from} -> {to}", self.name),
        }
    }

    /// Whether the change, or its way back, crosses what members of a cluster or a data format may not
    /// differ in: the first two numbers of the version.
    pub fn is_risky(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        let shared = SHARED.iter().any(|s| name == *s || name.starts_with(&format!("{s}-")));
        shared && minor(&self.from) != minor(&self.to)
    }
}

/// `1:10.6.12-0+deb12u1` -> `10.6`: without epoch, revision and the rest.
fn minor(version: &str) -> String {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let numbers = upstream.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    numbers.take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_minor_of_what_a_cluster_shares_is_risky() {
        for (name, from, to, risky) in [
            ("galera-4", "26.4.13-1", "26.4.14-1", false),
            ("galera-4", "26.4.13-1", "26.5.1-1", true),
            ("mariadb-server", "1:10.11.4-1~deb12u1", "1:10.11.6-0+deb12u1", false),
            ("MariaDB-server", "10.1.48-1.el7", "10.2.44-1.el7", true),
            ("rabbitmq-server", "3.10.8-1.1", "3.9.27-1", true),
            ("erlang-base", "1:25.2.3+dfsg-1", "1:26.0.1+dfsg-1", true),
            ("erlang-base", "1:25.2.3+dfsg-1", "", true),
            ("galerautils", "1.0", "2.0", false),
            ("openssh-server", "1:9.2p1-2", "1:9.4p1-1", false),
        ] {
            let change = PackageChange { name: name.into(), from: from.into(), to: to.into() };
            assert_eq!(change.is_risky(), risky, "{}", change.line());
        }
    }
}
