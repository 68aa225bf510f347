//! `kiln image`: what lies in the store, and the ways in and out of it.

pub mod diff;
mod gc;
mod show;
mod transfer;

use super::exit::{self, Exit};
use super::operator::SocketArg;
use super::{output, places};
use crate::build::execute;
use crate::build::lint::Finding;
use crate::image::id::ImageId;
use crate::image::reference::{Name, Reference};
use crate::image::store::Store;
use crate::pxe::admin::message::Request;
use anyhow::Result;
use std::path::PathBuf;

/// The images in the store.
#[derive(clap::Args)]
pub struct Arguments {
    /// The store [default: KILN_STORE, else below XDG_DATA_HOME; for root /var/lib/kiln/store]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// List the images
    Ls {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show what an image is made of and what it needs
    Show {
        /// release/role[:tag], an id or a unique prefix of one
        image: String,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Hash every blob of an image again and check its signature; exit status 4 when something does not hold
    Verify {
        image: String,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Check an image's tree for identity, secrets and the like; exit status 4 when a check does not hold
    Lint {
        image: String,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    Diff(diff::Arguments),
    /// Give an image a further name, taking it from the image that has it
    Tag {
        image: String,
        /// A tag, or the whole name release/role:tag
        tag: String,
    },
    /// Take a name away; the image stays, by its id, until `gc`
    Untag {
        /// release/role[:tag]
        name: String,
    },
    Save(transfer::Save),
    Load(transfer::Load),
    Push(transfer::Push),
    Pull(transfer::Pull),
    Gc(gc::Arguments),
    /// Say what a role boots from now on; the digest is pinned, a later re-tag changes nothing
    Use {
        role: String,
        /// release/role[:tag], an id or a unique prefix of one, in the server's store
        image: String,
        #[command(flatten)]
        socket: SocketArg,
    },
}

pub fn run(arguments: Arguments) -> Result<()> {
    let place = places::store(arguments.store);
    let store = || Store::open_existing(&place);
    match arguments.verb {
        // No store is no image: what a fresh machine answers.
        Verb::Ls { json } if !place.exists() => show::list(&[], json),
        Verb::Ls { json } => show::list(&store()?.list()?, json),
        Verb::Show { image, json } => show::one(&store()?, &image, json),
        Verb::Verify { image, json } => verify(&store()?, &image, json),
        Verb::Lint { image, json } => lint(&store()?, &image, json),
        Verb::Diff(arguments) => diff::run(&store()?, &arguments),
        Verb::Tag { image, tag } => {
            let store = store()?;
            let id = resolve(&store, &image)?;
            let config = store.config(&id)?;
            Name::of(&config.release, &config.role, &tag).map_err(|e| exit::error(Exit::Usage, e))?;
            store.tag(&id, &tag)
        }
        Verb::Untag { name } => {
            let parsed: Name = name.parse().map_err(|e| exit::error(Exit::Usage, e))?;
            store()?.untag(&parsed.to_string()).map(drop)
        }
        Verb::Save(arguments) => transfer::save(&store()?, &arguments),
        Verb::Load(arguments) => transfer::load(&Store::open(&place)?, &arguments),
        Verb::Push(arguments) => transfer::push(&store()?, &arguments),
        Verb::Pull(arguments) => transfer::pull(&Store::open(&place)?, &arguments),
        Verb::Gc(arguments) => gc::run(&store()?, arguments),
        Verb::Use { role, image, socket } => socket.order_and_say(&Request::ImageUse { role, image }),
    }
}

/// The image that an argument means; text that can be no image is a wrong call.
pub(super) fn resolve(store: &Store, image: &str) -> Result<ImageId> {
    let parsed: Result<Reference, String> = image.parse();
    store.resolve(&parsed.map_err(|e| exit::error(Exit::Usage, e))?.to_string())
}

fn verify(store: &Store, image: &str, json: bool) -> Result<()> {
    let id = resolve(store, image)?;
    let problems = store.verify(&id)?;
    if json {
        output::json(&serde_json::json!({ "id": id, "problems": problems }))?;
    } else if problems.is_empty() {
        output::text(&format!("{id} holds: every blob and the signature\n"))?;
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(exit::error(Exit::Check, format!("image {id} does not hold:\n{}", problems.join("\n")))),
    }
}

fn lint(store: &Store, image: &str, json: bool) -> Result<()> {
    let id = resolve(store, image)?;
    super::build::isolate()?;
    let findings = execute::lint_image(store, &id, &places::cache())?;
    let (faults, warnings): (Vec<_>, Vec<_>) = findings.iter().partition(|f| f.fatal);
    let lines = |findings: &[&Finding]| findings.iter().map(|f| f.to_string()).collect::<Vec<_>>();
    if json {
        output::json(&serde_json::json!({ "id": id, "faults": lines(&faults), "warnings": lines(&warnings) }))?;
    } else {
        let warnings: String = lines(&warnings).iter().map(|w| format!("warning: {w}\n")).collect();
        let summary = if faults.is_empty() { format!("{id} holds: every check\n") } else { String::new() };
        output::text(&(warnings + &summary))?;
    }
    match faults.is_empty() {
        true => Ok(()),
        false => Err(exit::error(Exit::Check, format!("image {id} has faults:\n{}", lines(&faults).join("\n")))),
    }
}
