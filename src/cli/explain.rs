//! `kiln explain NODE`: why it was answered so.

use super::operator::{SocketArg, segment};
use super::output;
use crate::pxe::admin::message::Explanation;
use anyhow::Result;

/// Why a machine was answered so, or the operator was refused: the facts, the rule, the reply
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    /// A node's name, or a machine's MAC
    node: String,
    /// How many answers, the newest last
    #[arg(long, default_value_t = 6)]
    last: u64,
    /// Only this answer, by the number that the timeline and `kiln events` show
    #[arg(long, value_name = "NUMBER", conflicts_with = "last")]
    answer: Option<u64>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    // A MAC may be written in any of its forms.
    let name = arguments.node.parse().map(|mac: crate::site::Mac| mac.to_string()).unwrap_or(arguments.node);
    let query = match arguments.answer {
        Some(number) => format!("answer={number}"),
        None => format!("last={}", arguments.last),
    };
    let answer: Explanation = arguments.socket.get(&format!("/api/explain/{}?{query}", segment(&name)?))?;
    if arguments.json {
        return output::json(&answer);
    }
    if answer.lines.is_empty() {
        return output::text(&format!("{name} has not asked for anything yet\n"));
    }
    output::text(&answer.lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}
