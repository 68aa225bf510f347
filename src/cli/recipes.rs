//! Finds recipes, their locks and overlays on disk: `RECIPE` is a file or `release/role`.

use crate::cli::exit::{Exit, error};
use crate::recipe::file::Source;
use crate::recipe::lock::{Lock, LockedRecipe};
use crate::recipe::{Recipe, file, name};
use crate::sys::files::read_bounded;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of every verb that reads recipes.
#[derive(clap::Args, Clone, Debug)]
pub struct RecipesArgs {
    /// Folder of recipes: <DIR>/<release>/<role>.toml
    #[arg(long, value_name = "DIR", env = "KILN_RECIPES", default_value = "recipes")]
    pub recipes: PathBuf,
    /// Folder of overlays [default: overlays beside the recipes]
    #[arg(long, value_name = "DIR", env = "KILN_OVERLAYS")]
    pub overlays: Option<PathBuf>,
}

/// Folders of recipes. A file is taken from the first that has it, so a recipe outside the tree may
/// extend those inside.
#[derive(Clone, Debug)]
pub struct Folder(pub Vec<PathBuf>);

/// Where a recipe and what belongs to it lie.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub release: String,
    pub role: String,
    pub folder: Folder,
    /// `<release>/<role>.lock` beside the recipe; it may not exist.
    pub lock: PathBuf,
    /// Folders of overlays, for `overlay::load`.
    pub overlays: Vec<PathBuf>,
}

impl Folder {
    fn find(&self, path: &str) -> Option<PathBuf> {
        self.0.iter().map(|folder| folder.join(path)).find(|file| file.exists())
    }

    fn text(&self, path: &str) -> Option<Result<String>> {
        let file = self.find(path)?;
        let bytes = read_bounded(&file, crate::recipe::reader::FILE_MAX_BYTES as u64);
        Some(bytes.and_then(|b| String::from_utf8(b).with_context(|| format!("reading {} as UTF-8", file.display()))))
    }
}

impl Source for Folder {
    fn read(&self, path: &str) -> Option<String> {
        self.text(path)?.ok()
    }

    fn shown(&self, path: &str) -> String {
        let first = || self.0.first().map(|folder| folder.join(path)).unwrap_or_else(|| path.into());
        self.find(path).unwrap_or_else(first).display().to_string()
    }

    fn absent(&self, path: &str) -> String {
        match self.text(path) {
            Some(Err(error)) => format!("{error:#}"),
            _ => format!("no file {}", self.shown(path)),
        }
    }
}

/// Resolves `RECIPE`. What is there but is no recipe is [`crate::recipe::file::parse`]'s to say.
pub fn resolve(recipe: &str, args: &RecipesArgs) -> Result<Chosen> {
    let path = Path::new(recipe);
    if path.extension().is_some_and(|e| e == "toml") {
        return of_file(path, args);
    }
    let parts: Vec<&str> = recipe.split('/').collect();
    let [release, role] = parts.as_slice() else {
        return Err(not_a_recipe(recipe));
    };
    if name::word(release).is_err() || name::word(role).is_err() {
        return Err(not_a_recipe(recipe));
    }
    if !args.recipes.is_dir() {
        let message =
            format!("no folder {} of recipes: name one with --recipes DIR or KILN_RECIPES", args.recipes.display());
        return Err(error(Exit::Usage, message));
    }
    Ok(chosen(release, role, vec![args.recipes.clone()], args))
}

fn not_a_recipe(recipe: &str) -> anyhow::Error {
    error(
        Exit::Usage,
        format!("{recipe:?} is not a recipe: name release/role (such as zed/infra) or a file DIR/release/role.toml"),
    )
}

/// `DIR/<release>/<role>.toml`: its own folder of recipes first, `--recipes` after.
fn of_file(path: &Path, args: &RecipesArgs) -> Result<Chosen> {
    if !path.is_file() {
        return Err(error(Exit::Usage, format!("no file {}", path.display())));
    }
    let whole = std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))?;
    let name = |p: Option<&std::ffi::OsStr>| p.and_then(|n| n.to_str()).map(str::to_string);
    let (role, release) = (name(whole.file_stem()), name(whole.parent().and_then(Path::file_name)));
    let (Some(role), Some(release)) = (role, release) else { return Err(not_a_recipe(&path.display().to_string())) };
    // Shown as the user wrote it where that says enough.
    let own = match path.parent().map(|p| (p, p.parent())) {
        Some((parent, Some(folder))) if parent.file_name().is_some_and(|n| n != "..") => folder.to_path_buf(),
        _ => whole.parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_else(|| "/".into()),
    };
    let own = if own.as_os_str().is_empty() { PathBuf::from(".") } else { own };
    let mut folders = vec![own];
    if args.recipes.is_dir() && !same(&folders[0], &args.recipes) {
        folders.push(args.recipes.clone());
    }
    Ok(chosen(&release, &role, folders, args))
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn chosen(release: &str, role: &str, folders: Vec<PathBuf>, args: &RecipesArgs) -> Chosen {
    let overlays = match &args.overlays {
        Some(overlays) => vec![overlays.clone()],
        None => folders.iter().map(|folder| beside(folder)).collect(),
    };
    let folder = Folder(folders);
    let lock = folder.shown(&format!("{release}/{role}.toml"));
    let lock = Path::new(&lock).with_extension("lock");
    Chosen { release: release.to_string(), role: role.to_string(), folder, lock, overlays }
}

/// The folder `overlays` beside a folder of recipes.
fn beside(recipes: &Path) -> PathBuf {
    match recipes.file_name() {
        Some(_) => recipes.with_file_name("overlays"),
        None => recipes.join("..").join("overlays"),
    }
}

impl Chosen {
    /// The file of a recipe's `gpgkey`: below the folder of its release.
    pub fn key(&self, file: &str) -> Result<PathBuf> {
        let below = format!("{}/{file}", self.release);
        self.folder
            .find(&below)
            .with_context(|| format!("no file {}: put the distribution's public key there", self.folder.shown(&below)))
    }

    /// The recipe's own file, as problems name it.
    pub fn file(&self) -> String {
        self.folder.shown(&format!("{}/{}.toml", self.release, self.role))
    }

    pub fn exists(&self) -> bool {
        self.folder.find(&format!("{}/{}.toml", self.release, self.role)).is_some()
    }

    /// The folder of the release's option lists; it may not exist.
    pub fn options(&self) -> PathBuf {
        PathBuf::from(self.folder.shown(&format!("{}/options", self.release)))
    }

    /// The recipe, with every problem of its files.
    pub fn recipe(&self) -> Result<Recipe> {
        Ok(file::parse(&self.folder, &self.release, &self.role)?)
    }

    /// The lock beside the recipe, if there is one.
    pub fn lock(&self) -> Result<Option<Lock>> {
        if !self.lock.exists() {
            return Ok(None);
        }
        let bytes = read_bounded(&self.lock, crate::recipe::reader::FILE_MAX_BYTES as u64)?;
        let text = String::from_utf8(bytes).with_context(|| format!("reading {} as UTF-8", self.lock.display()))?;
        Ok(Some(Lock::parse(&text, &self.lock.display().to_string())?))
    }

    /// The recipe with its lock; without one, or with one that answers something else, exit status 2.
    pub fn locked(&self) -> Result<LockedRecipe> {
        let recipe = self.recipe()?;
        let lock = self.lock()?.ok_or_else(|| {
            let name = format!("{}/{}", self.release, self.role);
            error(Exit::Usage, format!("recipe {name} is not locked: run `kiln lock {name}` first"))
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
            .ok_or_else(|| error(Exit::Usage, format!("--mirror {flag:?} is not of the form ID=URL")))?;
        if !recipe.repositories.iter().any(|r| r.id == id) {
            return Err(error(Exit::Usage, format!("--mirror {flag:?}: the recipe has no repository {id:?}")));
        }
        mirrors.insert(id.to_string(), url.to_string());
    }
    let known = |url: &str| ["http://", "https://", "file://"].iter().any(|s| url.starts_with(s));
    match mirrors.iter().find(|(_, url)| !known(url) || url.contains(char::is_whitespace)) {
        Some((id, url)) => Err(error(Exit::Usage, format!("mirror {id}={url} is no http, https or file URL"))),
        None => Ok(mirrors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::file;

    const BASE: &str = "role = \"base\"\n[distribution]\nfamily = \"apt\"\nname = \"debian12\"\n[[repository]]\nid = \"d\"\nurl = \"host\"\nsuites = [\"x\"]\ncomponents = [\"main\"]\n";

    #[test]
    fn a_recipe_is_a_file_or_a_release_and_a_role() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for (path, text) in [
            ("tree/recipes/zed/base.toml", BASE),
            ("tree/recipes/zed/test.toml", "role = \"test\"\nextends = [\"base\"]\n"),
            ("own/zed/test.toml", "role = \"test\"\nextends = [\"base\"]\npackages = [\"vim\"]\n"),
        ] {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), text).unwrap();
        }
        let args = RecipesArgs { recipes: at("tree/recipes"), overlays: None };
        let inside = resolve("zed/test", &args).unwrap();
        assert_eq!((inside.release.as_str(), inside.role.as_str()), ("zed", "test"));
        assert_eq!(inside.lock, at("tree/recipes/zed/test.lock"));
        assert_eq!(inside.overlays, [at("tree/overlays")]);
        assert!(file::parse(&inside.folder, "zed", "test").is_ok());

        let own = resolve(at("own/zed/test.toml").to_str().unwrap(), &args).unwrap();
        assert_eq!(own.lock, at("own/zed/test.lock"));
        assert_eq!(own.overlays, [at("overlays"), at("tree/overlays")]);
        let recipe = file::parse(&own.folder, "zed", "test").unwrap();
        assert_eq!(recipe.stages[1].packages, ["vim"], "its own file, with a base from --recipes");

        for wrong in ["zed", "zed/test/x", "../zed", "zed/", "", "no/file.toml"] {
            let error = resolve(wrong, &args).unwrap_err();
            assert_eq!(crate::cli::exit::status(&error), 2, "{wrong}: {error}");
        }
    }
}
