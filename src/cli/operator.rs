//! The way to a running `kiln serve`: its socket, its answers, its refusals as exit statuses.

use super::exit::{Exit, error};
use super::places;
use crate::ledger::message::Refusal;
use crate::pxe::admin::message::{Done, Request};
use crate::sys::http::{Body, Client};
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// Arguments of every verb that asks the server.
#[derive(clap::Args, Clone, Debug)]
pub struct SocketArg {
    /// The server's socket [default: KILN_SOCKET, else /run/kiln/kiln.sock]
    #[arg(long, value_name = "FILE", global = true)]
    socket: Option<PathBuf>,
}

impl SocketArg {
    /// Asks for a document.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask("GET", path, Body::Empty)
    }

    /// Gives an order.
    pub fn order(&self, order: &Request) -> Result<Done> {
        self.ask("POST", "/api/command", Body::Bytes(serde_json::to_vec(order).context("writing the order")?))
    }

    /// Gives an order and prints what changed.
    pub fn order_and_say(&self, order: &Request) -> Result<()> {
        let done = self.order(order)?;
        match done.changes.is_empty() {
            true => super::output::text("nothing changed\n"),
            false => super::output::text(&(done.changes.join("\n") + "\n")),
        }
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: Body) -> Result<T> {
        let socket = places::socket(self.socket.clone());
        let response = Client::unix(&socket)
            .request(method, path, &[("content-type", "application/json")], body)
            .with_context(|| format!("asking the server at {}; does kiln serve run?", socket.display()))?;
        if (200..300).contains(&response.status) {
            return serde_json::from_slice(&response.body).context("reading the server's answer");
        }
        let refusal: Option<Refusal> = serde_json::from_slice(&response.body).ok();
        let reason = refusal.map(|r| r.error).unwrap_or_else(|| format!("the server answered {}", response.status));
        Err(match response.status {
            400 | 404 => error(Exit::Usage, reason),
            403 | 409 => error(Exit::Refused, reason),
            _ => anyhow::anyhow!(reason),
        })
    }
}

/// A name as part of a path: nothing that a URL would read as its own.
pub fn segment(name: &str) -> Result<&str> {
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    if good { Ok(name) } else { Err(error(Exit::Usage, format!("{name:?} is no node's name"))) }
}
