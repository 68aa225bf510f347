//! The command line: one file a verb, each with its arguments and a `run`. No rule of its own lives here.

pub mod backup;
pub mod boot;
pub mod build;
pub mod check;
pub mod cluster;
pub mod events;
pub mod exit;
pub mod explain;
pub mod image;
pub mod init;
pub mod key;
pub mod lock;
pub mod node;
pub mod operator;
pub mod output;
pub mod places;
pub mod recipes;
pub mod repo;
pub mod restore;
pub mod rollout;
pub mod secrets;
pub mod serve;
pub mod site;

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
    /// Boots an image in virtual machines with real firmware, until a phase or a time-out.
    Boot(boot::Args),
    Image(image::Arguments),
    Key(key::Arguments),
    Init(init::Args),
    Lock(lock::Arguments),
    Repo(repo::Arguments),
    Serve(serve::Arguments),
    Site(site::Arguments),
    Node(node::Arguments),
    Cluster(cluster::Arguments),
    Rollout(rollout::Arguments),
    Explain(explain::Arguments),
    Events(events::Arguments),
    Build(build::Arguments),
    Check(check::Arguments),
    Backup(backup::Arguments),
    Restore(restore::Arguments),
}

/// Runs the verb.
pub fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Boot(args) => boot::run(args),
        Verb::Image(arguments) => image::run(arguments),
        Verb::Key(arguments) => key::run(arguments),
        Verb::Init(args) => init::run(args),
        Verb::Lock(arguments) => lock::run(&arguments),
        Verb::Repo(arguments) => repo::run(arguments),
        Verb::Serve(arguments) => serve::run(arguments),
        Verb::Site(arguments) => site::run(arguments),
        Verb::Node(arguments) => node::run(arguments),
        Verb::Cluster(arguments) => cluster::run(arguments),
        Verb::Rollout(arguments) => rollout::run(arguments),
        Verb::Explain(arguments) => explain::run(arguments),
        Verb::Events(arguments) => events::run(arguments),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Backup(arguments) => backup::run(&arguments),
        Verb::Restore(arguments) => restore::run(&arguments),
    }
}
