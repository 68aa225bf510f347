//! `kiln node`: the machines of the site.

use super::exit::{Exit, error};
use super::operator::{SocketArg, segment};
use super::output;
use crate::ledger::decide::{MachineId, Risk};
use crate::ledger::message::{Disks, Via};
use crate::ledger::order::End;
use crate::pxe::admin::message::{NodeDetail, Nodes, Request};
use crate::recipe::system::seconds;
use crate::site::{DiskMatch, Mac};
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
    /// Let no new guests come to a node, until `undrain`
    Drain {
        node: String,
        /// What happens to guests that run there
        #[arg(long, value_enum, default_value_t = DrainArg::Stay)]
        guests: DrainArg,
    },
    /// Let guests come again
    Undrain { node: String },
    /// Order a node to be booted anew from its image, once; refused where that would hurt
    Reimage {
        node: String,
        /// Another image than what it boots now; it stays with that until `image use`
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
        /// Its state disk: kept, or wiped and made anew
        #[arg(long, value_enum, default_value_t = DisksArg::Keep)]
        disks: DisksArg,
        /// How it gets there if it lives: through its firmware, or straight into the new kernel
        #[arg(long, value_enum, default_value_t = ViaArg::Reboot)]
        via: ViaArg,
        /// The order is void after this, unless it is under way
        #[arg(long, default_value = "2h", value_name = "TIME")]
        expires: String,
        #[command(flatten)]
        risk: RiskArg,
        /// Return when the node is ready
        #[arg(long)]
        wait: bool,
        /// Longest wait, such as 90s or 15m
        #[arg(long, default_value = "30m", requires = "wait")]
        timeout: String,
    },
    /// Take an order back
    Cancel {
        order: String,
        /// It has touched the disk, and the node will not get ready: end it all the same
        #[arg(long)]
        failed: bool,
    },
    /// Give a node's name to other hardware: new cards, a new disk, or both
    Replace {
        node: String,
        /// Its MAC from now on; again for more cards
        #[arg(long, value_name = "MAC")]
        mac: Vec<Mac>,
        /// Its new state disk; left out: the old one moves along
        #[arg(long, value_name = "serial=S|wwn=W|size=BYTES", value_parser = disk_match)]
        disk: Option<DiskMatch>,
        #[command(flatten)]
        risk: RiskArg,
    },
    /// Say that a node is no more, and forget what it held
    Rm {
        node: String,
        #[command(flatten)]
        risk: RiskArg,
    },
}

/// What the operator takes upon himself.
#[derive(clap::Args)]
struct RiskArg {
    /// Do it although a quorum may break; the reason stays in the log
    #[arg(long, value_name = "REASON")]
    force: Option<String>,
    /// The last copy of this system's data may be destroyed; --force does not cover it
    #[arg(long, value_name = "SYSTEM")]
    destroy_last_copy: Vec<String>,
    /// What happens to guests that run there; --force does not cover it
    #[arg(long, value_enum)]
    guests: Option<GuestsArg>,
}

impl RiskArg {
    fn risk(self) -> Risk {
        Risk {
            giver: giver(),
            force: self.force,
            destroy: self.destroy_last_copy,
            lose_guests: matches!(self.guests, Some(GuestsArg::Lose)),
            stop_guests: matches!(self.guests, Some(GuestsArg::Stop)),
            migrate_guests: matches!(self.guests, Some(GuestsArg::Migrate)),
        }
    }
}

/// Who gives an order, as far as the environment says.
pub(super) fn giver() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    let giver = names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    giver.unwrap_or_else(|| "the operator".into())
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DrainArg {
    /// They go on there
    Stay,
    /// They are moved to other nodes, running
    Migrate,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum GuestsArg {
    /// They are moved to other nodes before, running; if one cannot be, the order has failed
    Migrate,
    /// They are shut down before, and started again after; their disks stay
    Stop,
    /// They end with the node
    Lose,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ViaArg {
    Reboot,
    Kexec,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DisksArg {
    Keep,
    Wipe,
}

/// `serial=…`, `wwn=…`, `size=…`, or several with commas between them, as the site file has them.
fn disk_match(text: &str) -> Result<DiskMatch, String> {
    let mut disk = DiskMatch { serial: None, wwn: None, size: None };
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("serial", value)) if !value.is_empty() => disk.serial = Some(value.into()),
            Some(("wwn", value)) if !value.is_empty() => disk.wwn = Some(value.into()),
            Some(("size", value)) => {
                disk.size = Some(value.parse().map_err(|_| format!("size {value:?} is no number of bytes"))?);
            }
            _ => return Err(format!("{part:?} is not serial=…, wwn=… or size=BYTES")),
        }
    }
    Ok(disk)
}

/// Between two looks at a node that is waited for.
const POLL: Duration = Duration::from_secs(1);

pub fn run(arguments: Arguments) -> Result<()> {
    let socket = arguments.socket;
    match arguments.verb {
        Verb::Ls { json } => list(&socket, json),
        Verb::Show { node, json } => show(&socket, &node, json),
        Verb::Approve { id, node, wait, timeout } => {
            let limit = time("--timeout", &timeout)?;
            let path = format!("/api/node/{}", segment(&node)?);
            let before: u64 = socket.get::<NodeDetail>(&path)?.line.generation;
            socket.order_and_say(&Request::Approve { machine: id, node })?;
            if wait { wait_ready(&socket, &path, before, Duration::from_secs(limit)) } else { Ok(()) }
        }
        Verb::Hold { node, reason } => socket.order_and_say(&Request::Hold { node, reason }),
        Verb::Fence { node } => socket.order_and_say(&Request::Fence { node }),
        Verb::Drain { node, guests } => {
            let migrate = matches!(guests, DrainArg::Migrate);
            socket.order_and_say(&Request::Drain { node, giver: giver(), migrate })
        }
        Verb::Undrain { node } => socket.order_and_say(&Request::Undrain { node }),
        Verb::Unhold { node } => socket.order_and_say(&Request::Unhold { node }),
        Verb::Reimage { node, image, disks, via, expires, risk, wait, timeout } => {
            let (expires_secs, limit) = (time("--expires", &expires)?, time("--timeout", &timeout)?);
            let path = format!("/api/node/{}", segment(&node)?);
            let disks = if matches!(disks, DisksArg::Wipe) { Disks::Wipe } else { Disks::Keep };
            let via = if matches!(via, ViaArg::Kexec) { Via::Kexec } else { Via::Reboot };
            let request = Request::Reimage { node, image, disks, via, expires_secs, risk: risk.risk() };
            let done = socket.order(&request)?;
            output::text(&(done.changes.join("\n") + "\n"))?;
            match done.order.filter(|_| wait) {
                Some(order) => wait_order(&socket, &path, &order, Duration::from_secs(limit)),
                None => Ok(()),
            }
        }
        Verb::Cancel { order, failed } => socket.order_and_say(&Request::Cancel { order, failed }),
        Verb::Replace { node, mac, disk, risk } => {
            socket.order_and_say(&Request::Replace { node: node.clone(), macs: mac, disk, risk: risk.risk() })?;
            output::text(&format!("next: write the same of {node} into the site file; kiln site apply would undo it\n"))
        }
        Verb::Rm { node, risk } => {
            socket.order_and_say(&Request::Remove { node: node.clone(), risk: risk.risk() })?;
            output::text(&format!("next: take {node} out of the site file; kiln site apply would bring it back\n"))
        }
    }
}

fn time(option: &str, text: &str) -> Result<u64> {
    seconds(text).ok_or_else(|| error(Exit::Usage, format!("{option} {text:?} is not a time such as 90s or 2h")))
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
        let order = n.order.as_ref().filter(|o| o.end.is_none()).map(|o| format!("order {}: {}", o.id, o.state));
        let notes = [Some(alarms), n.attempts.clone(), order, n.drain.clone()]
            .into_iter()
            .flatten()
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        let (image, wanted) = (dash(&n.image), dash(&n.wanted));
        let generation = n.generation.to_string();
        vec![n.name.clone(), n.role.clone(), n.status.clone(), generation, image, wanted, heard, mac, notes]
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
    add("attempts", line.attempts.as_deref().unwrap_or_default());
    add("address", &line.address.to_string());
    add("mac", &macs.join(" "));
    add("state", &node.state);
    add("generation", &line.generation.to_string());
    add("boot id", node.boot_id.as_deref().unwrap_or_default());
    add("runs", line.image.as_deref().unwrap_or_default());
    add("boots", line.wanted.as_deref().unwrap_or_default());
    add("kiln-node", node.version.as_deref().unwrap_or_default());
    add("guests", line.drain.as_deref().unwrap_or_default());
    add("alarms", &if line.alarms > 0 { line.alarms.to_string() } else { String::new() });
    if let Some(order) = &line.order {
        let disks = order.disks.word().to_string() + if order.via.is_reboot() { "" } else { ", by kexec" };
        add(
            "order",
            &format!("{} by {}: image {}, disks {disks}, until {}", order.id, order.giver, order.image, order.until),
        );
        add("order is", &order.state);
        add("forced", order.force.as_deref().unwrap_or_default());
    }
    if !node.systems.is_empty() {
        let state = |s: &crate::ledger::message::SystemReport| format!("{:?}", s.state).to_lowercase();
        let rows: Vec<_> = node.systems.iter().map(|s| vec![s.name.clone(), state(s), s.reason.clone()]).collect();
        text += &format!("\n{}", output::table(&["SYSTEM", "STATE", "REASON"], &rows));
    }
    text += "\ntimeline\n";
    node.timeline.iter().for_each(|line| text += &format!("  {line}\n"));
    output::text(&text)
}

/// Until the order has come to its end; says each state on the way once.
fn wait_order(socket: &SocketArg, path: &str, id: &str, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let node: NodeDetail = socket.get(path)?;
        let name = &node.line.name;
        let Some(order) = node.line.order.filter(|o| o.id == id) else {
            anyhow::bail!("order {id} of node {name} was followed by another one");
        };
        match order.end {
            Some(End::Ready) => return output::text(&format!("{name} is ready\n")),
            Some(_) => anyhow::bail!("order {id} of node {name} ended: {}", order.state),
            None if Instant::now() >= end => {
                let (state, status) = (order.state, node.line.status);
                anyhow::bail!("order {id} of node {name} after {} s: {state}; the node is {status}", limit.as_secs());
            }
            None => {}
        }
        let state = format!("{name}: {}, {}", node.line.status, order.state);
        if state != said {
            output::text(&format!("{state}\n"))?;
            said = state;
        }
        std::thread::sleep(POLL);
    }
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
