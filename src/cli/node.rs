//! `kiln node`: the machines of the site.

use super::exit::{Exit, error};
use super::operator::{SocketArg, segment};
use super::output;
use crate::ledger::decide::MachineId;
use crate::pxe::admin::message::{NodeDetail, Nodes, Request};
use crate::recipe::system::seconds;
use anyhow::Result;
use std::time::{Duration, Instant};

/// Nodes, and machines that want to become nodes
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// List nodes, and machines that asked and are no node
    Ls {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show a node: where it is, its systems, its timeline
    Show {
        node: String,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Say that a machine is a node; its next boot may bring a new key
    Approve {
        /// MAC or UUID, as `node ls` shows it
        id: MachineId,
        #[arg(long)]
        node: String,
        /// Return when the node is ready
        #[arg(long)]
        wait: bool,
        /// Longest wait, such as 90s or 15m
        #[arg(long, default_value = "15m", requires = "wait")]
        timeout: String,
    },
    /// Keep a node from booting; its console shows the reason
    Hold {
        node: String,
        #[arg(default_value = "")]
        reason: String,
    },
    /// Let a held node boot
    Unhold { node: String },
    /// Say that a silent node is off: what it held is free, and what it says afterwards counts no more
    Fence { node: String },
}

/// Between two looks at a node that is waited for.
const POLL: Duration = Duration::from_secs(1);

pub fn run(arguments: Arguments) -> Result<()> {
    let socket = arguments.socket;
    match arguments.verb {
        Verb::Ls { json } => list(&socket, json),
        Verb::Show { node, json } => show(&socket, &node, json),
        Verb::Approve { id, node, wait, timeout } => {
            let limit = seconds(&timeout)
                .ok_or_else(|| error(Exit::Usage, format!("--timeout {timeout:?} is not a time such as 90s or 15m")))?;
            let path = format!("/api/node/{}", segment(&node)?);
            let before: u64 = socket.get::<NodeDetail>(&path)?.line.generation;
            socket.order_and_say(&Request::Approve { machine: id, node })?;
            if wait { wait_ready(&socket, &path, before, Duration::from_secs(limit)) } else { Ok(()) }
        }
        Verb::Hold { node, reason } => socket.order_and_say(&Request::Hold { node, reason }),
        Verb::Fence { node } => socket.order_and_say(&Request::Fence { node }),
        Verb::Unhold { node } => socket.order_and_say(&Request::Unhold { node }),
    }
}

fn list(socket: &SocketArg, json: bool) -> Result<()> {
    let all: Nodes = socket.get("/api/nodes")?;
    if json {
        return output::json(&all);
    }
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let row = |n: &crate::pxe::admin::message::NodeLine| {
        let heard = n.heard_secs.map(|s| format!("{s} s")).unwrap_or_else(|| "-".into());
        let mac = n.macs.first().map(|m| m.to_string()).unwrap_or_default();
        let alarms = if n.alarms > 0 { format!("{} ALARMS", n.alarms) } else { String::new() };
        let (image, wanted) = (dash(&n.image), dash(&n.wanted));
        let generation = n.generation.to_string();
        vec![n.name.clone(), n.role.clone(), n.status.clone(), generation, image, wanted, heard, mac, alarms]
    };
    let head = ["NODE", "ROLE", "STATUS", "GENERATION", "RUNS", "BOOTS", "HEARD", "MAC", ""];
    let mut text = output::table(&head, &all.nodes.iter().map(row).collect::<Vec<_>>());
    if !all.machines.is_empty() {
        let row = |m: &crate::pxe::admin::message::MachineLine| {
            let uuid = m.uuid.map(|u| u.to_string()).unwrap_or_else(|| "-".into());
            vec![m.mac.to_string(), uuid, m.firmware.clone(), m.answer.clone()]
        };
        let rows: Vec<_> = all.machines.iter().map(row).collect();
        text += &format!("\n{}", output::table(&["MACHINE", "UUID", "FIRMWARE", "ANSWER"], &rows));
        text += "\nlet one in: kiln node approve MACHINE --node NODE\n";
    }
    output::text(&text)
}

fn show(socket: &SocketArg, node: &str, json: bool) -> Result<()> {
    let node: NodeDetail = socket.get(&format!("/api/node/{}", segment(node)?))?;
    if json {
        return output::json(&node);
    }
    let line = &node.line;
    let macs: Vec<String> = line.macs.iter().map(|m| m.to_string()).collect();
    let mut text = format!("{} ({}): {}\n", line.name, line.role, line.status);
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            text += &format!("  {key:<11} {value}\n");
        }
    };
    add("detail", &line.detail);
    add("held", node.held.as_deref().unwrap_or_default());
    add("address", &line.address.to_string());
    add("mac", &macs.join(" "));
    add("state", &node.state);
    add("generation", &line.generation.to_string());
    add("boot id", node.boot_id.as_deref().unwrap_or_default());
    add("runs", line.image.as_deref().unwrap_or_default());
    add("boots", line.wanted.as_deref().unwrap_or_default());
    add("kiln-node", node.version.as_deref().unwrap_or_default());
    add("alarms", &if line.alarms > 0 { line.alarms.to_string() } else { String::new() });
    if !node.systems.is_empty() {
        let state = |s: &crate::ledger::message::SystemReport| format!("{:?}", s.state).to_lowercase();
        let rows: Vec<_> = node.systems.iter().map(|s| vec![s.name.clone(), state(s), s.reason.clone()]).collect();
        text += &format!("\n{}", output::table(&["SYSTEM", "STATE", "REASON"], &rows));
    }
    text += "\ntimeline\n";
    node.timeline.iter().for_each(|line| text += &format!("  {line}\n"));
    output::text(&text)
}

/// Until a newer generation than `before` says that it is ready.
fn wait_ready(socket: &SocketArg, path: &str, before: u64, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let node: NodeDetail = socket.get(path)?;
        if node.line.generation > before && node.line.status == "ready" {
            return output::text(&format!("{} is ready\n", node.line.name));
        }
        if Instant::now() >= end {
            anyhow::bail!("node {} is {} after {} s", node.line.name, node.line.status, limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}
