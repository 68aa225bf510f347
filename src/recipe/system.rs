//! A system: one thing that a node runs and that is formed or joined. This type is also the wire
//! twin inside the image (`image::role`): the build writes it, kiln-node reads it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `recipes/<release>/systems/<name>.toml`, parsed and valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Also the name of its overlay and of its scripts' folder.
    pub name: String,
    /// Systems that must be healthy on this node before this one starts.
    #[serde(default)]
    pub after: Vec<String>,
    /// Packages it needs, added to those of the recipe that names it.
    #[serde(default)]
    pub packages: Vec<String>,
    /// systemd units started in this order, and stopped in reverse.
    #[serde(default)]
    pub units: Vec<String>,
    /// TCP ports that it listens on at the node's address.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Names of the site's secrets that its nodes may receive.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Names of certificates: nodes whose systems name the same one know one another by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// Absolute folders that must outlive a reboot.
    #[serde(default)]
    pub state: Vec<String>,
    /// What its state is worth beside the other nodes'; `None`: it is made anew without loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<Keeps>,
    /// Only systems that form a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formation: Option<Formation>,
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    #[serde(default)]
    pub health: Health,
}

/// What data without a lineage are beside the other nodes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeps {
    /// Every node on which it is healthy holds all of them.
    Copy,
    /// What lies here lies nowhere else.
    Sole,
}

/// How a clustered system comes to life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Formation {
    pub kind: FormationKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dark: Option<Dark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FormationKind {
    /// One node seeds, the others join it (galera, rabbitmq).
    Seeded,
    /// Every member has the same static list (corosync).
    Static,
}

/// What happens after every member was down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dark {
    /// The member with the highest rank is seeded.
    Rank,
    /// The data is disposable.
    Reset,
}

/// One piece of a system's set-up; its script is `<name>`, its check `<name>.check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub name: String,
    pub scope: Scope,
    /// Whose lineage the result lives in; default: its own system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<String>,
    /// `system` (healthy here first) or `system/step` (done first).
    #[serde(default)]
    pub needs: Vec<String>,
    /// Such as `30s` or `5m`; default [`STEP_TIMEOUT_DEFAULT_SECS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// Time-out of a step that names none.
pub const STEP_TIMEOUT_DEFAULT_SECS: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every node, every boot; idempotent.
    Node,
    /// Once for a lineage, claimed in the ledger.
    Cluster,
    /// A healthy member does it for a joining one.
    Peer,
    /// A healthy member does it for one that was removed.
    Removed,
}

/// What the ledger must know of a system on whose start or steps several nodes agree. Stands in
/// the image's config; grows only by fields with defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clustered {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formation: Option<Formation>,
    /// Cluster steps: name -> the system whose lineage the result lives in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cluster_steps: BTreeMap<String, String>,
    /// Peer steps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_steps: Vec<String>,
    /// What a member does when a node was removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_steps: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<Keeps>,
}

impl System {
    /// [`Clustered`] of this system; `None`: each node runs it on its own.
    pub fn clustered(&self) -> Option<Clustered> {
        let of = |scope| self.steps.iter().filter(move |s| s.scope == scope);
        let writes = |s: &Step| (s.name.clone(), s.writes.clone().unwrap_or_else(|| self.name.clone()));
        let clustered = Clustered {
            name: self.name.clone(),
            formation: self.formation.clone(),
            cluster_steps: of(Scope::Cluster).map(writes).collect(),
            peer_steps: of(Scope::Peer).map(|s| s.name.clone()).collect(),
            removed_steps: of(Scope::Removed).map(|s| s.name.clone()).collect(),
            keeps: self.keeps,
        };
        let alone =
            self.formation.is_none() && self.keeps.is_none() && self.steps.iter().all(|s| s.scope == Scope::Node);
        (!alone).then_some(clustered)
    }

    /// Whether one node seeds it and the others join.
    pub fn is_seeded(&self) -> bool {
        self.formation.as_ref().is_some_and(|f| f.kind == FormationKind::Seeded)
    }
}

impl Clustered {
    /// What happens after the dark, of a system that one node seeds.
    pub fn dark(&self) -> Option<Dark> {
        self.formation.as_ref().filter(|f| f.kind == FormationKind::Seeded)?.dark
    }
}

/// How often `health` is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Such as `10s`.
    pub interval: String,
}

impl Default for Health {
    fn default() -> Self {
        Health { interval: "10s".into() }
    }
}

/// Parses `90`, `90s`, `5m` or `2h` into seconds; `None` for anything else, zero or more than a week.
pub fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let factor = match unit {
        "m" => 60,
        "h" => 3600,
        _ => 1,
    };
    let secs = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=7 * 24 * 3600).contains(&secs).then_some(secs)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, want) in [
            ("90", Some(90)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("2h", Some(7200)),
            ("", None),
            ("s", None),
            ("0s", None),
            ("-1s", None),
            ("1d", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(seconds(text), want, "{text:?}");
        }
    }
}
