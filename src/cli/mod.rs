//! The command line: one file a verb, each with its arguments and a `run`. No rule of its own lives here.

pub mod build;
pub mod exit;
pub mod init;
pub mod lock;
pub mod places;
pub mod recipes;
pub mod secrets;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Bakes immutable images for the roles of an OpenStack cloud and boots bare metal straight into them.
#[derive(Parser)]
#[command(name = "kiln", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    Init(init::Args),
    Lock(lock::Arguments),
    Build(build::Arguments),
}

/// Runs the verb.
pub fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Init(args) => init::run(args),
        Verb::Lock(arguments) => lock::run(&arguments),
        Verb::Build(arguments) => build::run(&arguments),
    }
}
