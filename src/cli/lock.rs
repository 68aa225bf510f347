//! `kiln lock`: pins every package of a recipe by name, version, architecture and sha256.

use super::exit::{self, Exit};
use super::{places, recipes};
use crate::recipe::lock::{Lock, LockedRecipe};
use crate::repo::changes;
use crate::repo::family::{self, Sources};
use crate::sys::files;
use anyhow::{Context, Result};

/// Pins every package of a recipe in `<role>.lock` beside it.
#[derive(clap::Args)]
pub struct Arguments {
    /// `release/role`, or a recipe's file.
    #[arg(required = true, value_name = "RECIPE")]
    names: Vec<String>,
    /// Locks what the repositories carry now, and says what that changes.
    #[arg(long, conflicts_with = "check")]
    update: bool,
    /// Writes nothing; exits 4 when the lock is not what the recipe and the repositories say now.
    #[arg(long)]
    check: bool,
    /// Takes a repository's packages from there instead.
    #[arg(long, value_name = "ID=URL")]
    mirror: Vec<String>,
    #[command(flatten)]
    recipes: recipes::RecipesArgs,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.names {
        one(arguments, &recipes::resolve(name, &arguments.recipes)?)?;
    }
    Ok(())
}

fn one(arguments: &Arguments, named: &recipes::Chosen) -> Result<()> {
    let recipe = named.recipe()?;
    let file = &named.lock;
    let shown = file.display();
    let old = if arguments.update { named.lock().ok().flatten() } else { named.lock()? };
    let answers = |lock: &Lock| LockedRecipe::new(recipe.clone(), lock.clone());
    if let Some(lock) = old.as_ref().filter(|_| !arguments.update && !arguments.check)
        && answers(lock).is_ok()
    {
        println!("{shown}: locked ({} packages); --update looks for newer ones", lock.packages.len());
        return Ok(());
    }
    if arguments.check {
        let lock = old.as_ref().ok_or_else(|| exit::error(Exit::Check, format!("{shown}: there is no lock")))?;
        answers(lock).map_err(|problems| exit::error(Exit::Check, problems))?;
    }
    let mirrors = recipes::mirrors(&arguments.mirror, &recipe)?;
    let sources = Sources::of(&recipe, &mirrors, &|key| named.key(key))
        .map_err(|error| exit::error(Exit::Usage, format!("{error:#}")))?;
    let say = |what: &str| eprintln!("{}/{}: {what}", recipe.release, recipe.role);
    let new = sources
        .resolve(&recipe, &places::cache(), &say)
        .with_context(|| format!("locking {}/{}", recipe.release, recipe.role))?;
    let differences = old.as_ref().map(|old| changes::changes(old, &new, &family::pinned(&recipe)));
    for line in differences.iter().flatten() {
        println!("{line}");
    }
    if arguments.check {
        return match differences.as_deref() {
            Some([]) => Ok(()),
            _ => Err(exit::error(Exit::Check, format!("{shown}: the repositories carry something else now"))),
        };
    }
    files::write_atomic(file, new.to_text().as_bytes(), 0o644)?;
    let bytes: u64 = new.packages.iter().map(|p| p.size).sum();
    println!("{shown}: {} packages, {} MiB", new.packages.len(), bytes >> 20);
    Ok(())
}
