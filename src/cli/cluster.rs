//! `kiln cluster`: what the nodes form together.

use super::operator::SocketArg;
use super::output;
use crate::ledger::chain;
use crate::ledger::event::Recorded;
use crate::ledger::message::SystemState;
use crate::pxe::admin::message::{Cluster, Request};
use anyhow::Result;

/// What the nodes form together: databases, brokers, the VIP
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Let the cluster come into being; said once, at the beginning
    Form,
    /// Show systems by nodes: what is healthy, who seeds, what waits for what
    Status {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show how the cluster formed, and its longest chain of causes
    Timeline,
    /// After the ledger was lost or put back: take what the nodes show for the truth
    Adopt,
    /// Bring a system back from one node's data, when it cannot come back by itself (one whose data are
    /// disposable begins anew there)
    Recover {
        system: String,
        #[arg(long, value_name = "NODE")]
        from: String,
        /// What others hold and NODE does not is moved aside and lost to the cluster
        #[arg(long)]
        accept_loss: bool,
    },
}

/// Events in one question.
const EVENTS: usize = 1000;

pub fn run(arguments: Arguments) -> Result<()> {
    let socket = arguments.socket;
    match arguments.verb {
        Verb::Form => socket.order_and_say(&Request::Form),
        Verb::Adopt => socket.order_and_say(&Request::Adopt),
        Verb::Recover { system, from, accept_loss } => {
            let cluster: Cluster = socket.get("/api/cluster")?;
            let ranks = cluster.systems.iter().filter(|s| s.name == system).flat_map(|s| &s.ranks);
            output::text(&ranks.map(|line| format!("{line}\n")).collect::<String>())?;
            socket.order_and_say(&Request::Recover { system, from, accept_loss })
        }
        Verb::Status { json } => {
            let cluster: Cluster = socket.get("/api/cluster")?;
            if json { output::json(&cluster) } else { output::text(&shown(&cluster)) }
        }
        Verb::Timeline => {
            let mut events: Vec<Recorded> = Vec::new();
            loop {
                let from = events.last().map_or(0, |r| r.rev);
                let more: Vec<Recorded> = socket.get(&format!("/api/events?from={from}"))?;
                let last = more.len() < EVENTS;
                events.extend(more);
                if last {
                    break;
                }
            }
            output::text(&chain::timeline(&events).iter().map(|line| format!("{line}\n")).collect::<String>())
        }
    }
}

fn shown(cluster: &Cluster) -> String {
    let word = |state: SystemState| format!("{state:?}").to_lowercase();
    let mut text = match (cluster.genesis, &cluster.behind, &cluster.unvouched) {
        (_, Some(reason), _) => format!("the ledger is behind: {reason}; next: kiln cluster adopt\n\n"),
        (false, ..) => "no cluster yet; next: kiln cluster form, or adopt if there is one\n\n".into(),
        (true, None, Some(reason)) => format!("the ledger may not be the newest: {reason}\n\n"),
        (true, None, None) => String::new(),
    };
    let head: Vec<&str> = ["SYSTEM", "CLUSTER"].into_iter().chain(cluster.nodes.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = cluster
        .systems
        .iter()
        .map(|system| {
            let formation = match (&system.seeding, &system.lineage) {
                (Some(node), _) => format!("{node} seeds"),
                (None, Some(lineage)) => lineage.chars().take(12).collect(),
                (None, None) if system.kind == "seeded" => "not formed".into(),
                (None, None) => "-".into(),
            };
            let states = system.states.iter().map(|s| s.as_ref().map_or("-".into(), |s| word(s.state)));
            [system.name.clone(), formation].into_iter().chain(states).collect()
        })
        .collect();
    text += &output::table(&head, &rows);
    let mut notes = Vec::new();
    for system in &cluster.systems {
        for (node, state) in cluster.nodes.iter().zip(&system.states) {
            if let Some(state) = state.as_ref().filter(|s| s.state != SystemState::Healthy) {
                notes.push(format!("{} on {node}: {}", system.name, state.reason));
            }
        }
        if system.states.iter().flatten().any(|s| s.state != SystemState::Healthy) {
            notes.extend(system.ranks.iter().map(|rank| format!("{} data on {rank}", system.name)));
        }
    }
    notes.extend(
        cluster
            .steps
            .iter()
            .filter(|s| s.state != "done")
            .map(|s| format!("step {}/{}: {}", s.system, s.step, s.state)),
    );
    notes.extend(cluster.orders.iter().chain(&cluster.forgetting).cloned());
    if !notes.is_empty() {
        text += &format!("\n{}\n", notes.join("\n"));
    }
    text
}
