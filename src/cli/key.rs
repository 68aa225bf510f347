//! `kiln key`: a builder's signing key.

use super::output;
use crate::image::{key, sign};
use anyhow::Result;
use std::path::PathBuf;

/// A builder's signing key.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make a key and print its public half, for other builders' `--trust`
    New {
        /// Where to write it; an existing file is never replaced
        file: PathBuf,
    },
}

pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Verb::New { file } => {
            let key = key::new(&file)?;
            output::text(&format!("{}\n", sign::public_text(&key.verifying_key())))
        }
    }
}
