//! What a machine is answered: one pure function of state, machine and mode, with the rule and
//! the facts that led there. DHCP and the boot script both go by it; it is recorded and `kiln
//! explain` prints it.

use crate::image::id::ImageId;
use crate::ledger::decide::may_begin;
use crate::ledger::identify::{Identity, identify};
use crate::ledger::state::State;
use crate::site::{Mac, Unknown, Uuid};
use std::collections::BTreeMap;

/// Parked machines ask again after this, seconds.
pub const PARK_RETRY_SECS: u64 = 15;

/// How this server stands to other DHCP servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Authoritative,
    Proxy,
    /// No DHCP: somebody else's server names our script.
    Off,
}

/// A machine that asks, as far as the question shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    pub mac: Mac,
    pub uuid: Option<Uuid>,
    /// Image architecture of its CPU, where the question tells for sure.
    pub architecture: Option<&'static str>,
    /// For people: `bios`, `uefi-x64`, …
    pub firmware: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Image(ImageId),
    /// Its own disk.
    Local,
    /// Known, but must not boot: the console shows why.
    Hold(String),
    /// Not known: wait to be approved.
    Park,
    /// Not ours.
    Ignore,
}

/// A choice and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub choice: Choice,
    pub node: Option<String>,
    pub rule: &'static str,
    pub facts: BTreeMap<String, String>,
}

impl Chosen {
    /// The choice in words, as it is recorded.
    pub fn answer(&self) -> String {
        match &self.choice {
            Choice::Image(id) => format!("boot image {}", id.short()),
            Choice::Local => "boot from its disk".into(),
            Choice::Hold(reason) => format!("hold: {reason}"),
            Choice::Park => "park: ask again".into(),
            Choice::Ignore => "no answer".into(),
        }
    }
}

pub fn choose(state: &State, asker: &Asker, mode: Mode) -> Chosen {
    let mut facts = BTreeMap::from([("firmware".to_string(), asker.firmware.clone())]);
    facts.extend(asker.uuid.map(|u| ("uuid".to_string(), u.to_string())));
    let mut node = None;
    let (choice, rule) = decide(state, asker, mode, &mut node, &mut facts);
    Chosen { choice, node, rule, facts }
}

fn decide(
    state: &State,
    asker: &Asker,
    mode: Mode,
    found: &mut Option<String>,
    facts: &mut BTreeMap<String, String>,
) -> (Choice, &'static str) {
    let Some(site) = &state.site else { return (Choice::Ignore, "no-site") };
    let name = match identify(state, asker.mac, asker.uuid) {
        Identity::Node { name, by } => {
            facts.insert("known by".into(), by.into());
            name
        }
        Identity::Contradiction { reason } => {
            facts.insert("contradiction".into(), reason);
            return (Choice::Park, "contradiction");
        }
        Identity::Unknown => {
            let (unknown, rule) = match (site.cluster.unknown, mode) {
                (Some(unknown), _) => (unknown, "unknown-by-site"),
                (None, Mode::Proxy) => (Unknown::Ignore, "unknown-by-proxy"),
                (None, _) => (Unknown::Park, "unknown-by-default"),
            };
            let choice = match unknown {
                Unknown::Ignore => Choice::Ignore,
                Unknown::Local => Choice::Local,
                Unknown::Park => Choice::Park,
            };
            return (choice, rule);
        }
    };
    *found = Some(name.clone());
    let Some(node) = state.site_node(&name) else { return (Choice::Ignore, "no-site") };
    facts.insert("role".into(), node.role.clone());
    let image = match may_begin(state, node) {
        Ok(image) => image,
        Err((rule, reason)) => return (Choice::Hold(reason), rule),
    };
    facts.insert("image".into(), format!("{} ({})", image.reference, image.id.short()));
    if let Some(machine) = asker.architecture.filter(|a| canonical(a) != canonical(&image.architecture)) {
        let reason = format!("image {} is for {}, this machine is {machine}", image.reference, image.architecture);
        return (Choice::Hold(reason), "other-architecture");
    }
    (Choice::Image(image.id), "role-image")
}

/// Distributions call the same CPU differently.
fn canonical(architecture: &str) -> &str {
    match architecture {
        "amd64" | "x86_64" => "x86_64",
        "arm64" | "aarch64" => "aarch64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::id::Digest;
    use crate::ledger::{Event, Recorded};

    const LOG: &str = include_str!("../../tests/fixtures/ledger-v1.jsonl");

    /// The golden log's site after `events` of its events, and what more happened.
    fn state(events: usize, more: &[Event]) -> State {
        let mut state = State::default();
        for line in LOG.lines().take(events) {
            state.apply(&serde_json::from_str::<Recorded>(line).unwrap().event);
        }
        more.iter().for_each(|event| state.apply(event));
        state
    }

    fn asker(last: u8) -> Asker {
        Asker { mac: Mac([0x52, 0x54, 0, 0, 0, last]), uuid: None, architecture: None, firmware: "bios".into() }
    }

    #[test]
    fn each_rule_leads_to_its_choice() {
        let one = Digest([1; 32]);
        let held = Event::NodeHeld { node: "infra1".into(), reason: "swap".into() };
        let approved = Event::NodeApproved { node: "infra1".into(), mac: asker(9).mac };
        let arm = Asker { architecture: Some("arm64"), ..asker(1) };
        let x64 = Asker { architecture: Some("x86_64"), ..asker(1) };
        let hold = |reason: &str| Choice::Hold(reason.into());
        let rows = [
            (state(0, &[]), asker(1), "no-site", Choice::Ignore),
            (state(1, &[]), asker(1), "no-image", hold("role infra has no image; next: kiln image use infra IMAGE")),
            (state(2, &[]), asker(1), "role-image", Choice::Image(one)),
            (state(2, &[]), x64, "role-image", Choice::Image(one)),
            (state(2, &[]), arm, "other-architecture", hold("image zed/infra:v1 is for amd64, this machine is arm64")),
            (state(2, &[held]), asker(1), "held", hold("node infra1 is held: swap")),
            (state(2, &[]), asker(9), "unknown-by-site", Choice::Park),
            (state(2, &[approved]), asker(9), "role-image", Choice::Image(one)),
            (state(14, &[]), asker(1), "role-image", Choice::Image(Digest([2; 32]))),
        ];
        for (state, asker, rule, choice) in rows {
            let chosen = choose(&state, &asker, Mode::Authoritative);
            assert_eq!((chosen.rule, chosen.choice), (rule, choice), "{asker:?}");
        }
    }

    #[test]
    fn a_machine_that_nobody_named_gets_what_the_site_or_the_mode_says() {
        let with = |unknown: Option<Unknown>| {
            let mut site = (**state(1, &[]).site.as_ref().unwrap()).clone();
            site.cluster.unknown = unknown;
            state(0, &[Event::SiteApplied { site: Box::new(site), site_id: "s".into() }])
        };
        for (unknown, mode, want) in [
            (None, Mode::Authoritative, Choice::Park),
            (None, Mode::Proxy, Choice::Ignore),
            (None, Mode::Off, Choice::Park),
            (Some(Unknown::Local), Mode::Proxy, Choice::Local),
            (Some(Unknown::Park), Mode::Proxy, Choice::Park),
            (Some(Unknown::Ignore), Mode::Authoritative, Choice::Ignore),
        ] {
            assert_eq!(choose(&with(unknown), &asker(9), mode).choice, want, "{unknown:?} {mode:?}");
        }
    }
}
