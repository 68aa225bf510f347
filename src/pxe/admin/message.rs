//! What the verbs ask over the socket and what they are answered (JSON).

use crate::ledger::decide::{self, MachineId, Risk};
use crate::ledger::event::Asked;
use crate::ledger::message::{Disks, Phase, SystemReport, Via};
use crate::ledger::order::End;
use crate::ledger::state::{Keeps, State};
use crate::ledger::{Live, breaker, timeline};
use crate::site::{DiskMatch, Mac, Site, Uuid};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// `POST /api/command`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    SiteApply {
        site: Box<Site>,
    },
    SiteDiff {
        site: Box<Site>,
    },
    ImageUse {
        role: String,
        image: String,
    },
    Approve {
        machine: MachineId,
        node: String,
    },
    Hold {
        node: String,
        reason: String,
    },
    Unhold {
        node: String,
    },
    Fence {
        node: String,
    },
    Drain {
        node: String,
        giver: String,
        #[serde(default)]
        migrate: bool,
    },
    Undrain {
        node: String,
    },
    Form,
    Adopt,
    Recover {
        system: String,
        from: String,
        accept_loss: bool,
    },
    Reimage {
        node: String,
        image: Option<String>,
        disks: Disks,
        via: Via,
        expires_secs: u64,
        risk: Risk,
    },
    Cancel {
        order: String,
        failed: bool,
    },
    Replace {
        node: String,
        macs: Vec<Mac>,
        disk: Option<DiskMatch>,
        risk: Risk,
    },
    Remove {
        node: String,
        risk: Risk,
    },
    RolloutStart {
        role: String,
        image: String,
        allow_upgrade: bool,
        max_unavailable: u32,
        giver: String,
        plan: bool,
    },
    RolloutPause {
        reason: String,
    },
    RolloutResume,
    RolloutAbort,
}

/// `GET /api/rollout`: the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    pub id: String,
    pub role: String,
    pub image: String,
    /// Full id of what the role had.
    pub before: String,
    pub giver: String,
    /// `running`, `paused: …`, `done`, `aborted`.
    pub state: String,
    /// What it does or waits for.
    pub next: String,
    /// Each node: `has the image`, an order's state, or `to come`.
    pub nodes: Vec<(String, String)>,
}

pub fn rollout(state: &State, live: &Live, now_ms: u64) -> Option<RolloutView> {
    use crate::ledger::decide::Next;
    let known = state.rollout.as_ref()?;
    let rollout = &known.rollout;
    let node = |name: &String| {
        let session = state.node(name).session.as_ref().map(|s| s.image);
        let order = order_line(state, live, name, now_ms);
        let ours = order.filter(|o| o.end.is_none() && known.given.iter().any(|(_, id)| *id == o.id));
        let word = match ours {
            Some(order) => format!("order {}: {}", order.id, order.state),
            None if session == Some(rollout.image.id) => "has the image".into(),
            None => "to come".into(),
        };
        (name.clone(), word)
    };
    let state_word = match (&known.paused, known.ended) {
        (_, Some(true)) => "done".to_string(),
        (_, Some(false)) => "aborted".into(),
        (Some(reason), None) => format!("paused: {reason}"),
        (None, None) => "running".into(),
    };
    let next = match decide::next_in_rollout(state, live, known, now_ms) {
        _ if known.ended.is_some() => String::new(),
        Next::Done => "done".into(),
        Next::Node(node, _) => format!("{node} is next"),
        Next::Waits(why) => format!("waits for {why}"),
        Next::Stops(why) => format!("stops: {why}"),
    };
    Some(RolloutView {
        id: rollout.id.clone(),
        role: rollout.role.clone(),
        image: rollout.image.id.short(),
        before: rollout.before.id.to_string(),
        giver: rollout.giver.clone(),
        state: state_word,
        next,
        nodes: rollout.nodes.iter().map(node).collect(),
    })
}

/// A machine that an order waits for and that has not asked to boot for so long boots from elsewhere.
pub const BOOT_PATIENCE_SECS: u64 = 300;

/// What a command did: a line for each event, none if nothing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub changes: Vec<String>,
    /// The order that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
}

/// `GET /api/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    pub nodes: Vec<NodeLine>,
    /// Machines that asked and are no node.
    pub machines: Vec<MachineLine>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    pub name: String,
    pub role: String,
    pub address: Ipv4Addr,
    pub macs: Vec<Mac>,
    /// Where it is: a phase, `new` (never heard of), `held`, `silent` (session dead) or `left`.
    pub status: String,
    /// The last phase that it reached.
    #[serde(default)]
    pub phase: Option<Phase>,
    #[serde(default)]
    pub detail: String,
    pub generation: u64,
    /// What it runs.
    #[serde(default)]
    pub image: Option<String>,
    /// What its role boots.
    #[serde(default)]
    pub wanted: Option<String>,
    /// Seconds since its session was last heard; `None`: not since the server started.
    #[serde(default)]
    pub heard_secs: Option<u64>,
    pub alarms: u64,
    /// What is to be said of boots that came to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<String>,
    /// The last order that was given for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderLine>,
    /// `drained`, or how far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
}

/// An order and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    pub id: String,
    pub image: String,
    pub disks: Disks,
    #[serde(default)]
    pub via: Via,
    pub giver: String,
    /// UTC; void from then on, unless it is under way.
    pub until: String,
    #[serde(default)]
    pub force: Option<String>,
    /// How it ended; `None`: it is open.
    #[serde(default)]
    pub end: Option<End>,
    /// For people.
    pub state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineLine {
    pub mac: Mac,
    #[serde(default)]
    pub uuid: Option<Uuid>,
    pub firmware: String,
    /// Its last answer.
    pub answer: String,
}

/// `GET /api/node/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    #[serde(flatten)]
    pub line: NodeLine,
    #[serde(default)]
    pub held: Option<String>,
    /// `disk …` or `memory`.
    pub state: String,
    #[serde(default)]
    pub boot_id: Option<String>,
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    pub systems: Vec<SystemReport>,
    pub timeline: Vec<String>,
}

/// `GET /api/cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// `kiln cluster form` or `adopt` was said.
    pub genesis: bool,
    /// Why the ledger may not be the newest.
    #[serde(default)]
    pub unvouched: Option<String>,
    /// What a node knows that the ledger does not.
    #[serde(default)]
    pub behind: Option<String>,
    /// Nodes that have a system which needs agreement, by name.
    pub nodes: Vec<String>,
    pub systems: Vec<SystemLine>,
    pub steps: Vec<StepLine>,
    /// One line for each open order.
    #[serde(default)]
    pub orders: Vec<String>,
    /// What members have not forgotten yet of nodes that were removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forgetting: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemLine {
    pub name: String,
    /// `seeded`, `static`, or empty: each node's own.
    pub kind: String,
    #[serde(default)]
    pub lineage: Option<String>,
    /// Who makes it now, or brings it back.
    #[serde(default)]
    pub seeding: Option<String>,
    /// One line a node: what it holds.
    pub ranks: Vec<String>,
    /// One a node, in the order of [`Cluster::nodes`]; `None`: it has none, or has not said.
    pub states: Vec<Option<SystemReport>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLine {
    pub system: String,
    pub step: String,
    /// `done`, `runs on NODE`, `failed: …`.
    pub state: String,
}

/// What the systems are at, on every node that shares one.
pub fn cluster(state: &State, live: &Live, now_ms: u64) -> Cluster {
    let known = state.images.values().flat_map(|i| &i.current.clustered);
    let clustered: std::collections::BTreeMap<&str, _> = known.map(|c| (c.name.as_str(), c)).collect();
    let mut nodes: Vec<&crate::site::Node> = state.site.iter().flat_map(|s| &s.nodes).collect();
    nodes.retain(|n| clustered.keys().any(|system| state.clustered(&n.role, system).is_some()));
    let reports: Vec<Vec<SystemReport>> = nodes
        .iter()
        .map(|n| state.node(&n.name).report.as_ref().map(|r| r.systems.clone()).unwrap_or_default())
        .collect();
    // In the order in which nodes start them.
    let mut names: Vec<&str> = Vec::new();
    for name in reports.iter().flatten().map(|s| s.name.as_str()).chain(clustered.keys().copied()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let system = |name: &&str| {
        let formation = state.cluster.formation(name);
        let kind = match clustered.get(name).and_then(|c| c.formation.as_ref()).map(|f| f.kind) {
            Some(crate::recipe::system::FormationKind::Seeded) => "seeded",
            Some(crate::recipe::system::FormationKind::Static) => "static",
            None => "",
        };
        SystemLine {
            name: name.to_string(),
            kind: kind.into(),
            lineage: formation.lineage.clone(),
            seeding: formation.seeding.as_ref().map(|h| h.node.clone()),
            ranks: if kind == "seeded" { decide::ranks(state, live, name, now_ms) } else { vec![] },
            states: reports.iter().map(|r| r.iter().find(|s| s.name == *name).cloned()).collect(),
        }
    };
    let step = |((system, step), known): (&(String, String), &crate::ledger::cluster::Step)| StepLine {
        system: system.clone(),
        step: step.clone(),
        state: match (&known.holder, known.done, &known.failed) {
            (Some((holder, _)), ..) => format!("runs on {}", holder.node),
            (None, true, _) => "done".into(),
            (None, false, failed) => format!("failed: {}", failed.as_deref().unwrap_or("no reason")),
        },
    };
    Cluster {
        genesis: state.cluster.genesis,
        unvouched: state.cluster.unvouched.clone(),
        behind: state.cluster.behind.clone(),
        nodes: nodes.iter().map(|n| n.name.clone()).collect(),
        systems: names.iter().map(system).collect(),
        steps: state.cluster.steps.iter().map(step).collect(),
        orders: state
            .open_orders
            .values()
            .filter_map(|node| Some((node, order_line(state, live, node, now_ms)?)))
            .map(|(node, o)| format!("order {} of {node} (disks {}): {}", o.id, o.disks.word(), o.state))
            .collect(),
        forgetting: decide::forgetting(state, live, now_ms),
    }
}

/// The last order of a node and how far it is.
pub fn order_line(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<OrderLine> {
    let known = state.node(name);
    let order = known.order.as_ref()?;
    let given = &order.order;
    let silent = live.silent_ms(name, now_ms) / 1000;
    let macs = state.site_node(name).map(|n| n.macs.iter().map(|m| m.to_string()).collect::<Vec<_>>().join(" "));
    let word = match (order.ended, order.registered, &order.begun, &order.booted) {
        (Some(end), ..) if order.reason.is_empty() => end.word().to_string(),
        (Some(end), ..) => format!("{}: {}", end.word(), order.reason),
        (_, Some(generation), ..) => format!("registered as generation {generation}, not ready yet"),
        _ if breaker::held(state, name).is_some() => "the node is held".into(),
        (_, _, Some(begun), _) => format!("disk {} is being made", begun.disk.name),
        (_, _, _, Some(_)) => "boots by it".into(),
        _ => match decide::restart(state, live, name, now_ms) {
            Some(Ok(_)) => "the node restarts".into(),
            Some(Err(why)) => format!("the node is not restarted: {why}"),
            None if live.session_lives(state, name, now_ms) => "waits for the node's session to end".into(),
            None if silent >= BOOT_PATIENCE_SECS => format!(
                "order open, MAC {} not seen for {} minutes: check the boot order",
                macs.unwrap_or_default(),
                silent / 60
            ),
            None => "waits for the machine to boot".into(),
        },
    };
    Some(OrderLine {
        id: given.id.clone(),
        image: given.image.id.short(),
        disks: given.disks,
        via: given.via,
        giver: given.giver.clone(),
        until: timeline::utc(given.expires_ms),
        force: given.force.clone(),
        end: order.ended,
        state: if order.doubted && order.is_open() {
            format!("{word} (the ledger was put back since: it wipes nothing any more)")
        } else {
            word
        },
    })
}

/// `GET /api/explain/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub lines: Vec<String>,
}

/// One node in a line.
pub fn node_line(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<NodeLine> {
    let node = state.site_node(name)?;
    let known = state.node(name);
    let phase = phase(state, name);
    Some(NodeLine {
        name: name.to_string(),
        role: node.role.clone(),
        address: node.address,
        macs: node.macs.clone(),
        status: status(state, live, name, now_ms),
        phase: phase.as_ref().map(|(phase, _)| *phase),
        detail: phase.map(|(_, detail)| detail).unwrap_or_default(),
        generation: known.generation,
        image: known.session.as_ref().map(|s| s.image.short()),
        wanted: state.image_for(node).map(|i| i.id.short()),
        heard_secs: live.heard_ms(state, name).map(|ms| now_ms.saturating_sub(ms) / 1000),
        alarms: known.alarms,
        attempts: decide::breaker::words(state, name),
        order: order_line(state, live, name, now_ms),
        drain: decide::drain_line(state, live, name, now_ms),
    })
}

/// The last phase that a node reached, with its detail: whatever the log says latest. What it says
/// before its register anyone could have said.
pub fn phase(state: &State, name: &str) -> Option<(Phase, String)> {
    let node = state.node(name);
    let mut steps: Vec<(u64, Phase, String)> = Vec::new();
    steps.extend(node.session.as_ref().map(|s| (s.rev, Phase::Register, format!("generation {}", node.generation))));
    steps.extend(node.report.as_ref().map(|r| (r.rev, r.phase, r.detail.clone())));
    steps.extend(
        node.progress.as_ref().filter(|p| !node.boots.contains(&p.boot_id)).map(|p| (p.rev, p.phase, p.detail.clone())),
    );
    for answer in state.machines.values().flat_map(|m| &m.answers).filter(|(_, a)| a.node.as_deref() == Some(name)) {
        steps.extend(match answer {
            // The running system's own renewals are no boot.
            (Asked::Dhcp, a) if a.facts.get("stage").is_some_and(|s| s == "os") => None,
            (Asked::Dhcp, a) => Some((a.rev, Phase::Dhcp, a.answer.clone())),
            (_, a) if a.answer.starts_with("hold") => Some((a.rev, Phase::Held, a.answer.clone())),
            (Asked::Script, a) => Some((a.rev, Phase::Script, a.answer.clone())),
            (Asked::Boot | Asked::Kexec, _) => None,
        });
    }
    steps.into_iter().max_by_key(|(rev, ..)| *rev).map(|(_, phase, detail)| (phase, detail))
}

/// Where a node is, in one word.
pub fn status(state: &State, live: &Live, name: &str, now_ms: u64) -> String {
    let node = state.node(name);
    if node.held.is_some() || breaker::held(state, name).is_some() {
        return "held".into();
    }
    match (phase(state, name), &node.session) {
        (None, _) => "new".into(),
        (Some((Phase::Register | Phase::Join | Phase::Ready, _)), Some(session)) if session.left => "left".into(),
        (Some((Phase::Register | Phase::Join | Phase::Ready, _)), Some(_))
            if !live.session_lives(state, name, now_ms) =>
        {
            "silent".into()
        }
        (Some((phase, _)), _) => timeline::word(&phase),
    }
}

/// All nodes and the machines that are none.
pub fn nodes(state: &State, live: &Live, now_ms: u64) -> Nodes {
    let names = state.site.iter().flat_map(|s| &s.nodes).map(|n| &n.name);
    let nodes = names.filter_map(|name| node_line(state, live, name, now_ms)).collect();
    let is_node = |mac: &Mac, machine: &crate::ledger::state::MachineState| {
        let by_site = state.site.iter().flat_map(|s| &s.nodes).any(|n| n.macs.contains(mac));
        let approved = machine.approved.as_ref().is_some_and(|name| state.site_node(name).is_some());
        by_site || approved
    };
    let machines = state.machines.iter().filter(|(mac, machine)| !is_node(mac, machine));
    let line = |(mac, machine): (&Mac, &std::sync::Arc<crate::ledger::state::MachineState>)| MachineLine {
        mac: *mac,
        uuid: machine.uuid,
        firmware: machine.firmware.clone(),
        answer: machine.answers.values().max_by_key(|a| a.rev).map(|a| a.answer.clone()).unwrap_or_default(),
    };
    Nodes { nodes, machines: machines.map(line).collect() }
}

/// One node with all that is known of it; `timeline` is made from its events.
pub fn detail(state: &State, live: &Live, name: &str, timeline: Vec<String>, now_ms: u64) -> Option<NodeDetail> {
    let line = node_line(state, live, name, now_ms)?;
    let known = state.node(name);
    let keeps = match state.keeps(state.site_node(name)?) {
        Ok(Keeps::Volatile) => "memory".to_string(),
        Ok(Keeps::Disk(disk)) => {
            let parts = [
                disk.serial.as_ref().map(|s| format!("serial {s}")),
                disk.wwn.as_ref().map(|w| format!("wwn {w}")),
                disk.size.map(|s| format!("{s} bytes")),
            ];
            format!("disk {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
        }
        Err(reason) => reason,
    };
    Some(NodeDetail {
        line,
        held: known.held.clone(),
        state: keeps,
        boot_id: known.session.as_ref().map(|s| s.boot_id.clone()),
        version: known.session.as_ref().map(|s| s.version.clone()),
        systems: known.report.as_ref().map(|r| r.systems.clone()).unwrap_or_default(),
        timeline,
    })
}
