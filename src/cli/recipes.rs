//! Which recipes an argument means, and their folder as [`file::Source`].
//!
//! A recipe is named `release/role` (below `--recipes`, else `recipes` in the working folder, else
//! beside the program's own `share`), or by its file `…/<release>/<role>.toml`.

use super::exit::{self, Exit};
use crate::recipe::lock::{Lock, LockedRecipe};
use crate::recipe::{Recipe, file};
use crate::sys::files;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A recipe as named on the command line.
pub struct Named {
    /// The folder that holds `<release>/`.
    pub dir: PathBuf,
    pub release: String,
    pub role: String,
}

struct Folder<'a>(&'a Path);

impl file::Source for Folder<'_> {
    fn read(&self, path: &str) -> Option<String> {
        let bytes = files::read_bounded(&self.0.join(path), crate::recipe::reader::FILE_MAX_BYTES as u64).ok()?;
        String::from_utf8(bytes).ok()
    }

    fn shown(&self, path: &str) -> String {
        self.0.join(path).display().to_string()
    }

    fn absent(&self, path: &str) -> String {
        match std::fs::read(self.0.join(path)) {
            Ok(_) => format!("{} is not UTF-8 text or too large", self.shown(path)),
            Err(error) => format!("cannot read {}: {error}", self.shown(path)),
        }
    }
}

/// Finds the recipe that `argument` means.
pub fn find(argument: &str, dir: Option<&Path>) -> Result<Named> {
    let wrong = |why: &str| exit::error(Exit::Usage, format!("recipe {argument:?}: {why}"));
    let path = Path::new(argument);
    if path.extension().is_some_and(|e| e == "toml") {
        let path = path.canonicalize().map_err(|e| wrong(&e.to_string()))?;
        let text = |p: Option<&std::ffi::OsStr>| p.and_then(|s| s.to_str()).map(String::from);
        let folder = path.parent().and_then(Path::parent);
        return match (text(path.file_stem()), text(path.parent().and_then(Path::file_name)), folder) {
            (Some(role), Some(release), Some(folder)) => Ok(Named { dir: folder.into(), release, role }),
            _ => Err(wrong("is not in a folder named after its release")),
        };
    }
    let (release, role) = argument.split_once('/').ok_or_else(|| wrong("neither release/role nor a .toml file"))?;
    let dir = match dir {
        Some(dir) => dir.to_path_buf(),
        None => home().ok_or_else(|| wrong("no recipes folder here; name one with --recipes DIR"))?,
    };
    let dir = dir.canonicalize().map_err(|e| wrong(&format!("recipes folder {}: {e}", dir.display())))?;
    Ok(Named { dir, release: release.into(), role: role.into() })
}

/// The recipes' folder when no flag names it.
fn home() -> Option<PathBuf> {
    let installed = std::env::current_exe().ok()?.parent()?.parent()?.join("share/kiln/recipes");
    [PathBuf::from("recipes"), installed].into_iter().find(|d| d.is_dir())
}

impl Named {
    /// The overlays that belong to these recipes: `overlays` beside the recipes' folder.
    pub fn overlays(&self) -> PathBuf {
        self.dir.parent().unwrap_or(Path::new(".")).join("overlays")
    }

    /// The recipe, with every problem of its files.
    pub fn recipe(&self) -> Result<Recipe> {
        Ok(file::parse(&Folder(&self.dir), &self.release, &self.role)?)
    }

    pub fn lock_file(&self) -> PathBuf {
        self.dir.join(&self.release).join(format!("{}.lock", self.role))
    }

    /// The lock beside the recipe, if there is one.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let file = self.lock_file();
        if !file.exists() {
            return Ok(None);
        }
        let bytes = files::read_bounded(&file, crate::recipe::reader::FILE_MAX_BYTES as u64)?;
        let text = String::from_utf8(bytes).with_context(|| format!("reading {} as text", file.display()))?;
        Ok(Some(Lock::parse(&text, &file.display().to_string())?))
    }

    /// The recipe with its lock; without one, or with one that answers something else, exit status 2.
    pub fn locked(&self) -> Result<LockedRecipe> {
        let recipe = self.recipe()?;
        let lock = self.lock()?.ok_or_else(|| {
            let name = format!("{}/{}", self.release, self.role);
            exit::error(Exit::Usage, format!("recipe {name} is not locked: run `kiln lock {name}` first"))
        })?;
        Ok(LockedRecipe::new(recipe, lock)?)
    }
}

/// Parses `--mirror ID=URL` and the environment's `KILN_MIRROR_<ID>` (dashes as underscores, any case).
pub fn mirrors(flags: &[String], recipe: &Recipe) -> Result<BTreeMap<String, String>> {
    let mut mirrors = BTreeMap::new();
    for repository in &recipe.repositories {
        let name = format!("KILN_MIRROR_{}", repository.id.replace('-', "_")).to_uppercase();
        let found = std::env::vars().find(|(key, value)| key.to_uppercase() == name && !value.is_empty());
        mirrors.extend(found.map(|(_, url)| (repository.id.clone(), url)));
    }
    for flag in flags {
        let (id, url) = flag
            .split_once('=')
            .ok_or_else(|| exit::error(Exit::Usage, format!("--mirror {flag:?} is not of the form ID=URL")))?;
        if !recipe.repositories.iter().any(|r| r.id == id) {
            return Err(exit::error(Exit::Usage, format!("--mirror {flag:?}: the recipe has no repository {id:?}")));
        }
        mirrors.insert(id.to_string(), url.to_string());
    }
    let known = |url: &str| ["http://", "https://", "file://"].iter().any(|s| url.starts_with(s));
    match mirrors.iter().find(|(_, url)| !known(url) || url.contains(char::is_whitespace)) {
        Some((id, url)) => Err(exit::error(Exit::Usage, format!("mirror {id}={url} is no http, https or file URL"))),
        None => Ok(mirrors),
    }
}
