//! `kiln events`: the ledger, line by line.

use super::operator::SocketArg;
use crate::ledger::{Recorded, timeline};
use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};

/// What happened: every event of the ledger, one a line
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    /// Go on with new events as they happen (starting with the last ten)
    #[arg(short, long)]
    follow: bool,
    /// Only events after this revision
    #[arg(long, value_name = "REV")]
    from: Option<u64>,
    /// Print each event as a JSON line
    #[arg(long)]
    json: bool,
}

/// Shown before the first new event.
const TAIL: u64 = 10;

pub fn run(arguments: Arguments) -> Result<()> {
    let first = match (arguments.from, arguments.follow) {
        (Some(rev), _) => format!("from={rev}"),
        (None, true) => format!("last={TAIL}"),
        (None, false) => "from=0".to_string(),
    };
    let mut events: Vec<Recorded> = arguments.socket.get(&format!("/api/events?{first}"))?;
    let mut rev = arguments.from.unwrap_or(0);
    loop {
        for event in &events {
            rev = event.rev;
            let line = if arguments.json { serde_json::to_string(event)? } else { timeline::full(event) };
            // A reader that went away ends the following.
            match writeln!(std::io::stdout(), "{line}") {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("writing to standard output")?,
            }
        }
        if events.is_empty() && !arguments.follow {
            return Ok(());
        }
        let follow = if arguments.follow { "&follow=1" } else { "" };
        events = arguments.socket.get(&format!("/api/events?from={rev}{follow}"))?;
    }
}
