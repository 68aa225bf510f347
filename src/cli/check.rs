//! `kiln check`: every problem of recipes, their overlays and sites at once.

use super::exit::{self, Exit};
use super::recipes::{self, Chosen, RecipesArgs};
use super::{output, places, secrets};
use crate::check::options::Service;
use crate::check::shell::Script;
use crate::check::{self, Role, gather, units};
use crate::overlay;
use crate::recipe::file;
use crate::recipe::lock::{Lock, LockedRecipe};
use crate::recipe::problem::{Problem, Problems};
use crate::recipe::{Recipe, reader};
use crate::sys::files::read_bounded;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Finds every problem of recipes, overlays and sites: file, line, key.
#[derive(clap::Args)]
pub struct Arguments {
    /// `release/role`, a recipe's file, a folder of recipes, or a site [default: every recipe].
    #[arg(value_name = "RECIPE|DIR|SITE")]
    targets: Vec<String>,
    /// What could not be checked fails, too.
    #[arg(long)]
    strict: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    recipes: RecipesArgs,
}

/// What is to be checked.
#[derive(Default)]
struct Targets {
    roles: Vec<Chosen>,
    /// Folders of whole releases, with a recipe of each: also systems that no recipe names.
    releases: Vec<(PathBuf, Chosen)>,
    sites: Vec<PathBuf>,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    unchecked: Vec<Problem>,
    scripts: BTreeSet<Script>,
    /// Option lists by their folder.
    services: BTreeMap<PathBuf, Vec<Service>>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let targets = targets(arguments)?;
    let mut found = Found::default();
    for chosen in &targets.roles {
        role(chosen, &mut found).with_context(|| format!("checking {}/{}", chosen.release, chosen.role))?;
    }
    for (folder, chosen) in &targets.releases {
        for name in toml_files(&folder.join("systems"))? {
            found.problems.extend(file::system(&chosen.folder, &chosen.release, &name).1);
        }
    }
    for path in &targets.sites {
        site(path, &arguments.recipes, &mut found)?;
    }
    let scripts: Vec<Script> = std::mem::take(&mut found.scripts).into_iter().collect();
    match gather::shellcheck(&scripts)? {
        Some(problems) => found.problems.extend(problems),
        None => {
            let message = format!("{} scripts: shellcheck is not installed", scripts.len());
            found.unchecked.push(problem("scripts", "", message));
        }
    }
    for list in [&mut found.problems, &mut found.unchecked] {
        list.sort();
        list.dedup();
    }
    show(arguments, &targets, &found)
}

fn problem(file: &str, key: &str, message: String) -> Problem {
    Problem { file: file.to_string(), line: 0, key: key.to_string(), message }
}

fn targets(arguments: &Arguments) -> Result<Targets> {
    let args = &arguments.recipes;
    let mut targets = Targets::default();
    let all = [args.recipes.display().to_string()];
    let named = if arguments.targets.is_empty() { &all[..] } else { &arguments.targets[..] };
    for name in named {
        let path = Path::new(name);
        if path.is_dir() {
            folder(path, args, &mut targets)?;
        } else if path.is_file() && is_site(path)? {
            targets.sites.push(path.to_path_buf());
        } else {
            let chosen = recipes::resolve(name, args)?;
            if !chosen.exists() {
                let message = format!("{name:?} is no recipe: no file {}", chosen.file());
                return Err(exit::error(Exit::Usage, message));
            }
            targets.roles.push(chosen);
        }
    }
    Ok(targets)
}

/// A site's folder, a release's, or one of several releases.
fn folder(path: &Path, args: &RecipesArgs, targets: &mut Targets) -> Result<()> {
    if path.join("site.toml").is_file() {
        targets.sites.push(path.join("site.toml"));
        return Ok(());
    }
    let mut releases = vec![path.to_path_buf()];
    if toml_files(path)?.is_empty() {
        releases = sorted(path)?.into_iter().filter(|p| p.is_dir()).collect();
    }
    let before = targets.roles.len();
    for release in releases {
        let first = targets.roles.len();
        for role in toml_files(&release)? {
            let file = release.join(format!("{role}.toml"));
            targets.roles.push(recipes::resolve(&file.display().to_string(), args)?);
        }
        if let Some(chosen) = targets.roles.get(first) {
            targets.releases.push((release, chosen.clone()));
        }
    }
    if targets.roles.len() == before {
        let message = format!("folder {} holds neither recipes (RELEASE/ROLE.toml) nor a site.toml", path.display());
        return Err(exit::error(Exit::Usage, message));
    }
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.with_context(|| format!("reading folder {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// The names of the TOML files in a folder, without their ending; none, where there is no folder.
fn toml_files(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let name = |path: PathBuf| match path.extension() {
        Some(ending) if ending == "toml" => path.file_stem()?.to_str().map(str::to_string),
        _ => None,
    };
    Ok(sorted(folder)?.into_iter().filter_map(name).collect())
}

/// A site has a cluster, a recipe never; one that cannot be read is known by its name.
fn is_site(path: &Path) -> Result<bool> {
    let bytes = read_bounded(path, reader::FILE_MAX_BYTES as u64)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(match text.parse::<toml::Table>() {
        Ok(table) => table.contains_key("cluster"),
        Err(_) => path.file_name().is_some_and(|name| name == "site.toml"),
    })
}

fn role(chosen: &Chosen, found: &mut Found) -> Result<()> {
    let (recipe, problems) = file::parse_all(&chosen.folder, &chosen.release, &chosen.role);
    found.problems.extend(problems);
    let Some(recipe) = recipe else { return Ok(()) };
    let (tree, problems) = overlay::load::load_all(&chosen.overlays, &recipe.release, &recipe.overlays)?;
    found.problems.extend(problems);
    let load = |name: &String| Some((name.clone(), file::system(&chosen.folder, &recipe.release, name).0?));
    let systems = recipe.systems.iter().filter_map(|s| load(&s.name)).collect();
    let options = chosen.options();
    if !found.services.contains_key(&options) {
        let (services, problems) = gather::services(&options)?.unwrap_or_default();
        if services.is_empty() {
            let message = "options of OpenStack's services: the release has no files.toml here".to_string();
            found.unchecked.push(problem(&options.display().to_string(), "", message));
        }
        found.problems.extend(problems);
        found.services.insert(options.clone(), services);
    }
    let of_role =
        check::check(&Role { recipe: &recipe, systems: &systems, tree: &tree, services: &found.services[&options] });
    found.problems.extend(of_role.problems);
    found.unchecked.extend(of_role.unchecked);
    found.scripts.extend(of_role.scripts);
    units_of(chosen, recipe, &of_role.units, found)
}

/// Units that must come from packages, by the lock and the cache.
fn units_of(chosen: &Chosen, recipe: Recipe, wanted: &[units::Wanted], found: &mut Found) -> Result<()> {
    let file = chosen.lock.display().to_string();
    let lock = match chosen.lock().map_err(|e| e.downcast::<Problems>()) {
        Ok(lock) => lock,
        Err(Ok(Problems(problems))) => {
            found.problems.extend(problems);
            return Ok(());
        }
        Err(Err(error)) => return Err(error),
    };
    if wanted.is_empty() {
        return Ok(());
    }
    let (name, family) = (format!("{}/{}", recipe.release, recipe.role), recipe.distribution.family);
    let answers = |lock: &Lock| LockedRecipe::new(recipe.clone(), lock.clone()).is_ok();
    let why = match &lock {
        None => "there is no lock",
        Some(lock) if !answers(lock) => "the lock is not this recipe's",
        Some(lock) => {
            let provided = gather::provided(wanted, lock, family, &places::cache())?;
            for judged in wanted.iter().filter_map(|w| units::judge(w, &provided)) {
                match judged {
                    Ok(problem) => found.problems.push(problem),
                    Err(unchecked) => found.unchecked.push(unchecked),
                }
            }
            return Ok(());
        }
    };
    let message = format!("whether packages bring {} units: {why}; next: kiln lock {name}", wanted.len());
    found.unchecked.push(problem(&file, "units", message));
    Ok(())
}

/// As `kiln serve` reads it, with `secrets.toml` beside it.
fn site(path: &Path, args: &RecipesArgs, found: &mut Found) -> Result<()> {
    let bytes = read_bounded(path, reader::FILE_MAX_BYTES as u64)?;
    let text = String::from_utf8(bytes).with_context(|| format!("reading {} as UTF-8", path.display()))?;
    let recipe = |release: &str, role: &str| recipes::resolve(&format!("{release}/{role}"), args).ok()?.recipe().ok();
    let file = secrets::file_of(None, path);
    let shown = file.as_ref().map(|f| f.display().to_string()).unwrap_or_default();
    let read = match file.as_deref().map(secrets::read) {
        None => {
            let message = "secrets: there is no secrets.toml beside the site".to_string();
            found.unchecked.push(problem(&path.display().to_string(), "", message));
            None
        }
        Some(Ok(secrets)) => Some(secrets),
        Some(Err(error)) => {
            match error.downcast::<Problems>() {
                Ok(Problems(problems)) => found.problems.extend(problems),
                Err(error) => found.problems.push(problem(&shown, "", format!("{error:#}"))),
            }
            None
        }
    };
    let secrets = read.as_ref().map(|secrets| (secrets, shown.as_str()));
    let beside = check::site::Beside { recipe: &recipe, secrets };
    found.problems.extend(check::site::check(&text, &path.display().to_string(), &beside));
    Ok(())
}

#[derive(Serialize)]
struct Document<'a> {
    problems: Vec<Json<'a>>,
    unchecked: Vec<Json<'a>>,
}

#[derive(Serialize)]
struct Json<'a> {
    file: &'a str,
    /// 0: the file as a whole.
    line: usize,
    key: &'a str,
    message: &'a str,
}

fn json(problems: &[Problem]) -> Vec<Json<'_>> {
    problems.iter().map(|p| Json { file: &p.file, line: p.line, key: &p.key, message: &p.message }).collect()
}

fn show(arguments: &Arguments, targets: &Targets, found: &Found) -> Result<()> {
    let Found { problems, unchecked, .. } = found;
    let failed = !problems.is_empty() || (arguments.strict && !unchecked.is_empty());
    if arguments.json {
        output::json(&Document { problems: json(problems), unchecked: json(unchecked) })?;
    } else {
        let mut text: String = problems.iter().map(|p| format!("{p}\n")).collect();
        text.extend(unchecked.iter().map(|p| format!("not checked: {p}\n")));
        if !failed {
            let (roles, sites) = (targets.roles.len(), targets.sites.len());
            text += &format!("no problem in {roles} recipes and {sites} sites\n");
        }
        output::text(&text)?;
    }
    let (problems, unchecked) = (problems.len(), unchecked.len());
    match failed {
        false => Ok(()),
        true if arguments.strict => {
            Err(exit::error(Exit::Check, format!("{problems} problem(s), {unchecked} not checked")))
        }
        true => Err(exit::error(Exit::Check, format!("{problems} problem(s)"))),
    }
}
