//! What the nodes' plain side and DHCP ask: both go by `pxe::choose`, and each answer is recorded.

use super::images::Blobs;
use crate::image::id::{Digest, ImageId};
use crate::image::repository::Member;
use crate::ledger::decide::{Answer, Command, Why, breaker};
use crate::ledger::event::Asked;
use crate::ledger::identify::{Identity, identify};
use crate::ledger::message::PhaseReport;
use crate::ledger::state::State;
use crate::ledger::writer::Ledger;
use crate::pxe::choose::{Asker, Choice, Chosen, Mode, PARK_RETRY_SECS, choose};
use crate::pxe::counters::Counters;
use crate::pxe::dhcp::server::{DhcpEvent, Handle as DhcpHandle, Outcome};
use crate::pxe::http::route::ScriptQuery;
use crate::pxe::http::server::{Plain, ScriptAsk, ScriptReply};
use crate::pxe::loaders::Loaders;
use crate::pxe::machine::{Firmware, Machine, Stage};
use crate::pxe::script::{self, Place};
use crate::pxe::tftp::server::{Content, Files};
use crate::pxe::{Directory, Link, Offer, Placement, Pool};
use crate::site::Site;
use crate::sys::clock;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

/// Everything that an answer to a machine needs.
pub struct Nodes {
    pub ledger: Ledger,
    pub mode: Mode,
    pub blobs: Blobs,
    pub loaders: Loaders,
    pub counters: Arc<Counters>,
    pub tls_port: u16,
    pub pin: Digest,
    /// This server's address on the machines' network, which no lease may name.
    pub address: Option<Ipv4Addr>,
    /// Set once DHCP runs.
    pub dhcp: Arc<OnceLock<DhcpHandle>>,
}

impl Plain for Nodes {
    async fn script(&self, ask: ScriptAsk) -> ScriptReply {
        let query = &ask.query;
        self.boot_over(query).await;
        let state = self.ledger.snapshot().state;
        let firmware = match query.platform {
            Some("pcbios") => "bios".to_string(),
            Some(_) => "uefi".to_string(),
            None => state.machines.get(&query.mac).map(|m| m.firmware.clone()).unwrap_or_default(),
        };
        // iPXE for BIOS is a 32-bit program on any CPU.
        let architecture = query.arch.filter(|a| *a != "i386");
        let asker = Asker { mac: query.mac, uuid: query.uuid, architecture, firmware };
        let chosen = choose(&state, &asker, self.mode);
        self.ledger.submit_quietly(Command::Saw { mac: asker.mac, uuid: asker.uuid, firmware: asker.firmware.clone() });
        let answer = record(&asker, &chosen, Asked::Script, Some(ask.from));
        let outcome = match self.ledger.submit(Command::Answer(Box::new(answer))).await {
            Ok(outcome) => outcome,
            Err(error) => return ScriptReply::Later { retry_secs: PARK_RETRY_SECS, reason: error.to_string() },
        };
        self.keep_lease(&asker);
        let place = Place { server: ask.to, mac: query.mac, uuid: query.uuid, architecture: query.arch };
        match &chosen.choice {
            Choice::Image(_) => {
                let script = self.boot_script(&outcome.snapshot.state, &place, &chosen, ask.from);
                ScriptReply::Script(script.unwrap_or_else(|reason| script::hold(&place, &reason)))
            }
            Choice::Hold(reason) => ScriptReply::Script(script::hold(&place, reason)),
            Choice::Local => ScriptReply::Script(script::local()),
            Choice::Park => {
                let reason = format!("machine {} waits for: kiln node approve {0} --node NODE", query.mac);
                ScriptReply::Later { retry_secs: PARK_RETRY_SECS, reason }
            }
            Choice::Ignore => ScriptReply::No(format!("machine {} is not ours", query.mac)),
        }
    }

    async fn phase(&self, report: PhaseReport) -> Result<(), (u16, String)> {
        match self.ledger.submit(Command::Phase { report }).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let status = match error.why() {
                    Some(Why::NotFound) => 404,
                    Some(Why::Refused) => 429,
                    Some(_) => 400,
                    None => 503,
                };
                Err((status, error.to_string()))
            }
        }
    }

    fn blob(&self, digest: &Digest) -> Option<(File, u64)> {
        self.blobs.open(digest)
    }

    fn repository(&self, digest: &Digest, path: &str) -> Option<(File, u64, Member)> {
        self.blobs.member(digest, path)
    }

    fn manifest(&self, id: &ImageId) -> Option<Vec<u8>> {
        self.blobs.envelope(id)
    }

    fn loader(&self, name: &str) -> Option<Arc<[u8]>> {
        self.loaders.get(name)
    }

    fn failed(&self, peer: Ipv4Addr) {
        self.ledger.submit_quietly(Command::Failed { source: peer });
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Nodes {
    /// Firmware asks: the boot before is over, and may have been one too many.
    async fn boot_over(&self, query: &ScriptQuery) {
        let now = self.ledger.snapshot();
        let Identity::Node { name: node, .. } = identify(&now.state, query.mac, query.uuid) else { return };
        if breaker::is_looping(&now.state, &now.live, &node, clock::monotonic_ms()) {
            // Not followed: the machine boots once more, and is judged when it asks again.
            let _ = self.ledger.submit(Command::BootOver { node }).await;
        }
    }

    fn boot_script(&self, state: &State, place: &Place, chosen: &Chosen, from: Ipv4Addr) -> Result<String, String> {
        let changed = || "the site was changed meanwhile".to_string();
        let site = state.site.as_ref().ok_or_else(changed)?;
        let node = chosen.node.as_ref().and_then(|n| state.site_node(n)).ok_or_else(changed)?;
        let image = state.image_for(node).ok_or_else(changed)?;
        let last = state.machines.get(&place.mac).and_then(|m| m.answers.get(&Asked::Script));
        let boot = script::Boot {
            node,
            image,
            management: &site.management,
            address: from,
            tls_port: self.tls_port,
            pin: self.pin,
            answer: last.map_or(0, |a| a.rev),
        };
        script::boot(place, &boot)
    }

    /// iPXE never renews its lease: asking for a script counts as being there.
    fn keep_lease(&self, asker: &Asker) {
        if let Some(Err(error)) = self.dhcp.get().map(|dhcp| dhcp.keep(asker.mac)) {
            tracing::warn!("dhcp: keeping the lease of {}: {error:#}", asker.mac);
        }
    }

    /// A DHCP exchange as an event; ordinary clients that are no node leave no trace.
    pub fn note(&self, event: DhcpEvent) {
        if event.machine.stage == Stage::Os && event.node.is_none() {
            return;
        }
        let (outcome, address) = match &event.outcome {
            Outcome::Answered { message, address, boot_file } => {
                let file = boot_file.as_ref().map(|f| format!(", boot file {f}")).unwrap_or_default();
                let address_word = address.map(|a| format!(" {a}")).unwrap_or_default();
                (format!("{}{address_word}{file}", message.word()), *address)
            }
            Outcome::Noted => return,
            Outcome::Ignored(reason) => (format!("no answer: {reason}"), None),
        };
        let asker = asker(&event.machine);
        let chosen = choose(&self.ledger.snapshot().state, &asker, self.mode);
        let mut answer = record(&asker, &chosen, Asked::Dhcp, address);
        answer.facts.insert("message".into(), event.message.word().into());
        answer.facts.insert("stage".into(), event.machine.stage.word().into());
        answer.facts.extend(event.machine.relay.map(|r| ("relay".to_string(), r.to_string())));
        answer.answer = format!("{}; {outcome}", chosen.answer());
        let (mac, uuid) = (asker.mac, asker.uuid);
        let sent = self.ledger.submit_quietly(Command::Saw { mac, uuid, firmware: asker.firmware.clone() })
            && self.ledger.submit_quietly(Command::Answer(Box::new(answer)));
        if !sent {
            self.counters.add("ledger_dropped", "dhcp");
        }
    }
}

impl Directory for Nodes {
    fn lookup(&self, machine: &Machine) -> Placement {
        let state = self.ledger.snapshot().state;
        let chosen = choose(&state, &asker(machine), self.mode);
        let Some(site) = &state.site else { return Placement::Ignore("the ledger has no site".into()) };
        let Some(link) = link(site) else { return Placement::Ignore("network.management has no subnet".into()) };
        let offer = if chosen.choice == Choice::Local { Offer::LocalDisk } else { Offer::Boot };
        match (&chosen.node, &chosen.choice) {
            (_, Choice::Ignore) => Placement::Ignore(format!("unknown machine ({})", chosen.rule)),
            (Some(name), _) => match state.site_node(name) {
                Some(node) => Placement::Node { name: name.clone(), address: node.address, link, offer },
                None => Placement::Ignore("the site was changed meanwhile".into()),
            },
            (None, _) => Placement::Parked { link, pool: self.pool(site), offer },
        }
    }
}

impl Nodes {
    fn pool(&self, site: &Site) -> Option<Pool> {
        let (first, last) = site.management.pool?;
        let taken = site.nodes.iter().map(|n| n.address).chain(site.cluster.vip).chain(self.address);
        Some(Pool { first, last, excluded: taken.chain(site.management.gateway).collect() })
    }
}

impl Files for Nodes {
    fn open(&self, name: &str, _peer: SocketAddr) -> Option<Content> {
        self.loaders.get(name).map(Content::Memory)
    }
}

fn asker(machine: &Machine) -> Asker {
    let architecture = match machine.firmware {
        Some(Firmware::UefiX64 | Firmware::UefiX64Http) => Some("x86_64"),
        Some(Firmware::UefiArm64 | Firmware::UefiArm64Http) => Some("aarch64"),
        _ => None,
    };
    let firmware = machine.firmware.map(|f| f.word()).unwrap_or_default();
    Asker { mac: machine.mac, uuid: machine.uuid, architecture, firmware }
}

fn record(asker: &Asker, chosen: &Chosen, asked: Asked, address: Option<Ipv4Addr>) -> Answer {
    let image = match chosen.choice {
        Choice::Image(id) => Some(id),
        _ => None,
    };
    Answer {
        mac: asker.mac,
        node: chosen.node.clone(),
        asked,
        address,
        facts: chosen.facts.clone(),
        rule: chosen.rule.into(),
        answer: chosen.answer(),
        image,
    }
}

fn link(site: &Site) -> Option<Link> {
    let network = &site.management;
    Some(Link {
        subnet: network.subnet?,
        gateway: network.gateway,
        dns: network.dns.clone(),
        ntp: network.ntp.iter().filter_map(|name| name.parse().ok()).collect(),
        mtu: network.mtu.and_then(|mtu| mtu.try_into().ok()),
    })
}
