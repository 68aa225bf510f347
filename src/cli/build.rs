//! `kiln build`: bakes an image from a locked recipe.

mod verify;

use super::exit::{self, Exit};
use super::{places, recipes};
use crate::build::execute::Build;
use crate::build::report::{Report, State};
use crate::build::{chroot, lint, plan};
use crate::image::store::Store;
use crate::image::{key, sign};
use crate::overlay;
use crate::recipe::{Preload, Recipe, Trust};
use crate::repo::family::Sources;
use crate::sys::{clock, files};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// kiln-node is at most 8 MiB; a debug build is far larger.
const NODE_MAX_BYTES: u64 = 256 << 20;
/// A distribution's public keys.
const KEY_MAX_BYTES: u64 = 1 << 20;

/// Bakes an image from a locked recipe.
#[derive(clap::Args)]
pub struct Arguments {
    /// `release/role`, or a recipe's file.
    #[arg(required = true, value_name = "RECIPE")]
    names: Vec<String>,
    /// The image's tag in the store.
    #[arg(long, default_value = "latest")]
    tag: String,
    /// Prints what would be done, and does nothing.
    #[arg(long)]
    plan: bool,
    /// Bakes a second time with another clock, file system, locale and so on; exits 4 and says what
    /// differs when the ids do.
    #[arg(long, conflicts_with = "plan")]
    verify: bool,
    /// Takes a repository's packages from there instead.
    #[arg(long, value_name = "ID=URL")]
    mirror: Vec<String>,
    /// The builder's key [env: KILN_KEY]; made at the first build.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A further builder's public key whose images the initramfs boots.
    #[arg(long, value_name = "PUBLICKEY")]
    trust: Vec<String>,
    /// Writes progress as one JSON object a line.
    #[arg(long, value_name = "FORMAT", value_parser = ["json"])]
    events: Option<String>,
    /// The store [env: KILN_STORE].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    recipes: recipes::RecipesArgs,
    /// The static kiln-node [default: beside this program].
    #[arg(long, value_name = "FILE")]
    node_binary: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    // Before: afterwards everybody is root, and would have root's places.
    let places =
        Places { store: places::store(arguments.store.clone()), key: places::builder_key(arguments.key.clone()) };
    if arguments.verify && !places::is_root() {
        // It needs a disk of its own for another order of directories, and who is not root mounts none.
        return Err(exit::error(Exit::Usage, "--verify needs root"));
    }
    if !arguments.plan {
        isolate()?;
    }
    let clock = if arguments.verify { Some(verify::tools()?) } else { None };
    let node = node_binary(arguments.node_binary.as_deref())?;
    for name in &arguments.names {
        one(arguments, name, &places, &node, clock.as_deref())?;
    }
    Ok(())
}

/// Leaves the host's mounts; a machine that does not let this user is told what to change.
pub(super) fn isolate() -> Result<()> {
    chroot::isolate().map_err(|e| exit::error(Exit::Usage, format!("{e:#}")))
}

struct Places {
    store: PathBuf,
    key: PathBuf,
}

/// `clock`: libfaketime, when the recipe is to be baked twice.
fn one(arguments: &Arguments, name: &str, places: &Places, node: &[u8], clock: Option<&Path>) -> Result<()> {
    let named = recipes::resolve(name, &arguments.recipes)?;
    let locked = named.locked()?;
    let recipe = &locked.recipe;
    let broken = plan::broken_rules(&locked);
    if !broken.is_empty() {
        let message = format!("recipe {}/{} cannot be baked:\n{}", recipe.release, recipe.role, broken.join("\n"));
        return Err(exit::error(Exit::Usage, message));
    }
    let overlays = overlay::load::load(&named.overlays, &recipe.release, &recipe.overlays)?;
    let mirrors = recipes::mirrors(&arguments.mirror, recipe)?;
    let key_file = &places.key;
    if let Some(folder) = key_file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let (key, made) = key::load_or_new(key_file)?;
    if made {
        eprintln!("made builder's key {}: keep it, images are signed with it", key_file.display());
    }
    let mut builders = vec![sign::public_text(&key.verifying_key())];
    for trusted in &arguments.trust {
        sign::parse_public(trusted).map_err(|e| exit::error(Exit::Usage, format!("--trust: {e}")))?;
        builders.push(trusted.clone());
    }
    builders.sort();
    builders.dedup();
    let show = Show { json: arguments.events.is_some(), start: clock::now_ms() };
    let build = Build {
        locked: &locked,
        overlays: &overlays,
        node,
        builders: &builders,
        cache: &places::cache(),
        keys: &keys(recipe, &named)?,
        sources: &|| {
            Sources::of(recipe, &mirrors, &|key| named.key(key)).map_err(|e| exit::error(Exit::Usage, format!("{e:#}")))
        },
        report: &show,
    };
    if arguments.plan {
        println!("{}/{}:{}", recipe.release, recipe.role, arguments.tag);
        for step in build.plan(&arguments.tag)? {
            println!("  {step}");
        }
        return Ok(());
    }
    let store = Store::open(&places.store)?;
    let id = build
        .run(&store, &key, &arguments.tag)
        .with_context(|| format!("building {}/{}", recipe.release, recipe.role))?;
    for warning in store.config(&id)?.warnings {
        eprintln!("warning: {warning}");
    }
    println!("{}/{}:{} {id}", recipe.release, recipe.role, arguments.tag);
    let Some(clock) = clock else { return Ok(()) };
    build.fetch_all()?;
    let first = verify::First { arguments, recipe: name, key: key_file, store: &store, id, clock, show: &show };
    verify::run(&first).with_context(|| format!("verifying {}/{}", recipe.release, recipe.role))
}

/// The public keys of the repositories that are preloaded.
fn keys(recipe: &Recipe, named: &recipes::Chosen) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut keys = BTreeMap::new();
    for repository in recipe.repositories.iter().filter(|r| r.preload != Preload::None) {
        if let Trust::Signed { gpgkey: Some(file) } = &repository.trust {
            let key = files::read_bounded(&named.key(file)?, KEY_MAX_BYTES);
            keys.insert(repository.id.clone(), key.with_context(|| format!("reading {}'s key", repository.id))?);
        }
    }
    Ok(keys)
}

/// The static kiln-node that goes into the image: the flag's, else the one beside this program.
fn node_binary(flag: Option<&Path>) -> Result<Vec<u8>> {
    let file = match flag {
        Some(file) => file.to_path_buf(),
        None => std::env::current_exe().context("finding this program")?.with_file_name("kiln-node"),
    };
    let shown = file.display();
    let bytes = files::read_bounded(&file, NODE_MAX_BYTES)
        .map_err(|e| exit::error(Exit::Usage, format!("kiln-node {shown}: {e:#}; name it with --node-binary")))?;
    lint::check_static(&bytes).map_err(|why| exit::error(Exit::Usage, format!("kiln-node {shown} {why}")))?;
    Ok(bytes)
}

/// Shows progress: plain lines on stderr, or events on stdout.
struct Show {
    json: bool,
    /// Unix milliseconds.
    start: u64,
}

impl Show {
    /// One event with keys of its own.
    fn object(&self, stage: &str, state: State, mut event: serde_json::Value) {
        event["t"] = clock::now_ms().into();
        event["stage"] = stage.into();
        event["state"] = state.word().into();
        println!("{event}");
    }
}

impl Report for Show {
    fn event(&self, stage: &str, state: State, detail: &str) {
        if self.json {
            return self.object(stage, state, serde_json::json!({ "detail": detail }));
        }
        let now = clock::now_ms();
        let seconds = now.saturating_sub(self.start) / 1000;
        let gap = if detail.is_empty() { "" } else { ": " };
        eprintln!("{seconds:>4}s  {stage} {}{gap}{detail}", state.word());
    }
}
