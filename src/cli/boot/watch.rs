//! Follows the nodes of the throw-away site through the operator's socket until all of them have
//! reached a phase.

use crate::cli::exit::{self, Exit};
use crate::ledger::message::Phase;
use crate::sys::http::{Body, Client};
use anyhow::{Context, Result};
use serde::Deserialize;
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

/// The part of `GET /api/nodes` that matters here.
#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    phase: Option<Phase>,
    #[serde(default)]
    detail: String,
}

impl Watch {
    /// Prints every phase that a node reaches; `alive` fails when a machine or the server is gone.
    pub fn follow(&self, names: &[String], mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let client = Client::unix(&self.socket);
        let start = Instant::now();
        let mut seen: BTreeMap<String, (Phase, String)> = BTreeMap::new();
        loop {
            alive()?;
            for node in self.look(&client)? {
                let Some(phase) = node.phase else { continue };
                let now = (phase, node.detail);
                if seen.get(&node.name) != Some(&now) {
                    self.show(&node.name, &now, start.elapsed());
                    seen.insert(node.name, now);
                }
            }
            if names.iter().all(|n| seen.get(n).is_some_and(|(phase, _)| reached(*phase, self.until))) {
                return Ok(());
            }
            if start.elapsed() > self.timeout {
                return Err(exit::error(Exit::Check, self.late(names, &seen)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn look(&self, client: &Client) -> Result<Vec<Node>> {
        let response =
            client.request("GET", "/api/nodes", &[], Body::Empty).context("asking the server for its nodes")?;
        let nodes: Nodes = serde_json::from_slice(&response.body).context("reading the server's nodes")?;
        Ok(nodes.nodes)
    }

    fn show(&self, node: &str, (phase, detail): &(Phase, String), elapsed: Duration) {
        let seconds = elapsed.as_secs_f32();
        if self.json {
            let state = if *phase == Phase::Failed { "failed" } else { "progress" };
            let line = serde_json::json!({"t": seconds, "stage": name(*phase), "state": state, "node": node, "detail": detail});
            println!("{line}");
        } else {
            println!("{seconds:7.1} s  {node:<14} {:<9} {detail}", name(*phase));
        }
    }

    fn late(&self, names: &[String], seen: &BTreeMap<String, (Phase, String)>) -> String {
        let mut text = format!("not every node reached {} in {} s:", name(self.until), self.timeout.as_secs());
        for node in names {
            match seen.get(node) {
                Some((phase, detail)) => text += &format!(" {node} is at {} {detail};", name(*phase)),
                None => text += &format!(" {node} was never heard of;"),
            }
        }
        text.trim_end_matches(';').to_string()
    }
}

/// Phases are ordered; the two that tell of trouble come after `ready` and reach nothing.
fn reached(phase: Phase, until: Phase) -> bool {
    match phase {
        Phase::Failed | Phase::Held => until == phase,
        phase => phase >= until,
    }
}

fn name(phase: Phase) -> String {
    serde_json::to_value(phase).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}
