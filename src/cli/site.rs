//! `kiln site`: brings edits of the site file into the server's ledger.

use super::operator::SocketArg;
use super::{output, serve};
use crate::pxe::admin::message::Request;
use anyhow::Result;
use std::path::PathBuf;

/// The site that the server boots
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    socket: SocketArg,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Bring the file into the ledger; changes that a formed cluster cannot take are refused
    Apply(File),
    /// Show what apply would change
    Diff(File),
}

#[derive(clap::Args)]
struct File {
    /// The site file
    #[arg(default_value = "site.toml", value_name = "FILE")]
    file: PathBuf,
}

pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Verb::Apply(File { file }) => {
            let site = Box::new(serve::read_site(&file)?);
            arguments.socket.order_and_say(&Request::SiteApply { site })
        }
        Verb::Diff(File { file }) => {
            let site = Box::new(serve::read_site(&file)?);
            let done = arguments.socket.order(&Request::SiteDiff { site })?;
            output::text(&done.changes.iter().map(|line| format!("{line}\n")).collect::<String>())
        }
    }
}
