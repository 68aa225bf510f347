//! `kiln explain NODE`: why it was answered so.

use super::operator::{SocketArg, segment};
use super::output;
use crate::pxe::admin::message::Explanation;
use anyhow::Result;

/// Why a machine was answered so: the facts, the rule, the reply of its last questions
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    /// A node's name, or a machine's MAC
    node: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    // A MAC may be written in any of its forms.
    let name = arguments.node.parse().map(|mac: crate::site::Mac| mac.to_string()).unwrap_or(arguments.node);
    let answer: Explanation = arguments.socket.get(&format!("/api/explain/{}", segment(&name)?))?;
    if arguments.json {
        return output::json(&answer);
    }
    if answer.lines.is_empty() {
        return output::text(&format!("{name} has not asked for anything yet\n"));
    }
    output::text(&answer.lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}
