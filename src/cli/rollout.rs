//! `kiln rollout`: another image for all nodes of a role, one after the other.

use super::node::giver;
use super::operator::SocketArg;
use super::output;
use crate::pxe::admin::message::{Request, RolloutView};
use anyhow::Result;

/// Another image for all nodes of a role, one after the other, each by an order
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Begin; the role has the image when the last node is ready with it
    Start {
        #[arg(long)]
        role: String,
        #[arg(long)]
        image: String,
        /// Say what would change and stop there
        #[arg(long)]
        plan: bool,
        /// Although members of one cluster will have different minor versions for a while
        #[arg(long)]
        allow_upgrade: bool,
        /// So many nodes may be away at once, where quorums and copies allow it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        max_unavailable: u32,
    },
    /// Show how far it is and what it waits for
    Status {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Give no further order; what is under way goes on
    Pause,
    /// Go on, also after a node that did not get ready
    Resume,
    /// Give it up: nodes that have the image keep it
    Abort,
    /// Give it up, and lead the nodes that have the image back to the one before
    Rollback {
        /// Although members of one cluster will have different minor versions for a while
        #[arg(long)]
        allow_upgrade: bool,
    },
}

pub fn run(arguments: Arguments) -> Result<()> {
    let socket = arguments.socket;
    match arguments.verb {
        Verb::Start { role, image, plan, allow_upgrade, max_unavailable } => {
            let giver = giver();
            socket.order_and_say(&Request::RolloutStart { role, image, allow_upgrade, max_unavailable, giver, plan })
        }
        Verb::Status { json } => {
            let view: RolloutView = socket.get("/api/rollout")?;
            if json { output::json(&view) } else { output::text(&shown(&view)) }
        }
        Verb::Pause => socket.order_and_say(&Request::RolloutPause { reason: format!("by {}", giver()) }),
        Verb::Resume => socket.order_and_say(&Request::RolloutResume),
        Verb::Abort => socket.order_and_say(&Request::RolloutAbort),
        Verb::Rollback { allow_upgrade } => {
            let view: RolloutView = socket.get("/api/rollout")?;
            if !matches!(view.state.as_str(), "done" | "aborted") {
                socket.order_and_say(&Request::RolloutAbort)?;
            }
            let (role, image, giver) = (view.role, view.before, giver());
            let (max_unavailable, plan) = (1, false);
            socket.order_and_say(&Request::RolloutStart { role, image, allow_upgrade, max_unavailable, giver, plan })
        }
    }
}

fn shown(view: &RolloutView) -> String {
    let RolloutView { id, role, image, giver, state, next, .. } = view;
    let mut text = format!("rollout {id} of role {role} to {image}, by {giver}: {state}\n");
    if !next.is_empty() {
        text += &format!("{next}\n");
    }
    let rows: Vec<Vec<String>> = view.nodes.iter().map(|(node, word)| vec![node.clone(), word.clone()]).collect();
    text + &format!("\n{}", output::table(&["NODE", ""], &rows))
}
