//! Follows the nodes of the throw-away site through the operator's socket until all of them have
//! reached a phase.

use crate::cli::exit::{self, Exit};
use crate::ledger::message::Phase;
use crate::pxe::admin::message::NodeDetail;
use crate::sys::http::{Body, Client};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(250);

pub struct Watch {
    pub socket: PathBuf,
    pub until: Phase,
    pub timeout: Duration,
    pub json: bool,
}

/// What was seen of one node.
#[derive(Default)]
struct Seen {
    status: String,
    /// Lines of its timeline that were shown.
    lines: usize,
}

impl Watch {
    /// Prints each node's timeline as it grows; `alive` fails when a machine or the server is gone.
    pub fn follow(&self, names: &[String], mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let client = Client::unix(&self.socket);
        let start = Instant::now();
        let mut seen: BTreeMap<&str, Seen> = names.iter().map(|n| (n.as_str(), Seen::default())).collect();
        loop {
            alive()?;
            for (name, seen) in &mut seen {
                let node = look(&client, name)?;
                for line in node.timeline.iter().skip(seen.lines) {
                    self.show(name, line, start.elapsed());
                }
                *seen = Seen { status: node.line.status, lines: node.timeline.len() };
            }
            if seen.values().all(|s| reached(&s.status, self.until)) {
                return Ok(());
            }
            if start.elapsed() > self.timeout {
                return Err(exit::error(Exit::Check, self.late(&seen)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn show(&self, node: &str, line: &str, elapsed: Duration) {
        let seconds = elapsed.as_secs_f32();
        if self.json {
            println!(
                "{}",
                serde_json::json!({"t": seconds, "stage": "boot", "state": "progress", "node": node, "line": line})
            );
        } else {
            println!("{seconds:7.1} s  {node:<10} {line}");
        }
    }

    fn late(&self, seen: &BTreeMap<&str, Seen>) -> String {
        let missing = seen.iter().filter(|(_, s)| !reached(&s.status, self.until));
        let at: Vec<String> = missing.map(|(name, s)| format!("{name} is at {}", s.status)).collect();
        format!("not reached in {} s: {}; {}", self.timeout.as_secs(), word(self.until), at.join(", "))
    }
}

fn look(client: &Client, name: &str) -> Result<NodeDetail> {
    let response = client.request("GET", &format!("/api/node/{name}"), &[], Body::Empty)?;
    let response = response.success("GET", name).context("asking the server for its node")?;
    serde_json::from_slice(&response.body).context("reading the server's answer")
}

/// Phases are ordered; the two that tell of trouble come after `ready` and reach only themselves.
fn reached(status: &str, until: Phase) -> bool {
    match serde_json::from_value(serde_json::Value::String(status.to_string())) {
        Ok(phase @ (Phase::Failed | Phase::Held)) => until == phase,
        Ok(phase) => phase >= until,
        Err(_) => false,
    }
}

fn word(phase: Phase) -> String {
    crate::ledger::timeline::word(&phase)
}
