//! The lock: every package of a role pinned to name, version, architecture and sha256.
//! One format for apt and yum. URLs and mirrors never enter it; digests do.

use super::name;
use super::problem::{Problem, Problems};
use super::reader::{self, Table};
use super::{Family, Recipe, Trust};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The format that this kiln writes and reads.
pub const LOCK_VERSION: u32 = 1;

/// `<role>.lock` beside the recipe, TOML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Format version, 1.
    pub version: u32,
    pub release: String,
    pub role: String,
    /// SOURCE_DATE_EPOCH of every bake from this lock: the newest date in the repositories'
    /// signed metadata, Unix seconds.
    pub epoch: u64,
    /// sha256 (hex) of the canonical text of what was asked for (stages with their packages,
    /// repositories' ids, suites, components): a recipe that asks for something else is not locked.
    pub request: String,
    #[serde(default, rename = "repository")]
    pub repositories: Vec<LockedRepository>,
    /// Sorted by stage (in chain order), then name, then architecture.
    #[serde(default, rename = "package")]
    pub packages: Vec<LockedPackage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedRepository {
    pub id: String,
    /// sha256 (hex) of its signed metadata, one for each suite (InRelease) or one (repomd.xml).
    pub metadata: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    pub name: String,
    /// Full version: Debian's, or epoch:version-release.
    pub version: String,
    pub arch: String,
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Path of the package file inside its repository, e.g. `pool/main/b/bash/bash_5.2_amd64.deb`.
    pub path: String,
    /// Id of the repository.
    pub repository: String,
    /// Name of the stage that installs it.
    pub stage: String,
}

/// A recipe together with a lock that answers exactly what the recipe asks for.
#[derive(Clone, Debug)]
pub struct LockedRecipe {
    pub recipe: Recipe,
    pub lock: Lock,
}

/// The canonical text of what a recipe asks its repositories for; its sha256 is [`Lock::request`].
/// Written by hand, line by line: its meaning must not hang on a struct's field order. Addresses
/// stay out (a mirror is as good), digests come in by the lock.
pub fn request_text(recipe: &Recipe) -> String {
    let family = match recipe.distribution.family {
        Family::Apt => "apt",
        Family::Yum => "yum",
    };
    let mut text = format!("kiln-request-v1\ndistribution {family} {}\n", recipe.distribution.name);
    for repository in &recipe.repositories {
        let trust = match repository.trust {
            Trust::Signed { .. } => "signed",
            Trust::Pinned => "pinned",
        };
        let _ = writeln!(text, "repository {} {trust} {}", repository.id, repository.priority);
        for suite in &repository.suites {
            let _ = writeln!(text, "suite {suite}");
        }
        for component in &repository.components {
            let _ = writeln!(text, "component {component}");
        }
        for pattern in &repository.exclude {
            let _ = writeln!(text, "exclude {pattern}");
        }
    }
    for stage in &recipe.stages {
        let _ = writeln!(text, "stage {}", stage.name);
        for package in &stage.packages {
            let _ = writeln!(text, "package {package}");
        }
    }
    text
}

/// sha256 (hex) of [`request_text`].
pub fn request(recipe: &Recipe) -> String {
    hex_digest(request_text(recipe).as_bytes())
}

/// sha256 of bytes in hex.
pub fn hex_digest(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// Lower-case hex of any bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Lock {
    /// Reads a lock; `file` is how problems name it.
    pub fn parse(text: &str, file: &str) -> Result<Lock, Problems> {
        reader::read(text, file, read_lock)
    }

    /// The lock as text: the same lock gives the same bytes.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# Written by kiln lock; edit the recipe instead.\n");
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key} = {value}");
        };
        line("version", self.version.to_string());
        line("release", quoted(&self.release));
        line("role", quoted(&self.role));
        line("epoch", self.epoch.to_string());
        line("request", quoted(&self.request));
        for repository in &self.repositories {
            let digests: Vec<String> = repository.metadata.iter().map(|m| quoted(m)).collect();
            let _ = writeln!(
                text,
                "\n[[repository]]\nid = {}\nmetadata = [{}]",
                quoted(&repository.id),
                digests.join(", ")
            );
        }
        for package in &self.packages {
            let LockedPackage { name, version, arch, sha256, size, path, repository, stage } = package;
            let _ = write!(text, "\n[[package]]\nname = {}\nversion = {}\n", quoted(name), quoted(version));
            let _ = write!(text, "arch = {}\nsha256 = {}\nsize = {size}\n", quoted(arch), quoted(sha256));
            let _ = write!(text, "path = {}\nrepository = {}\n", quoted(path), quoted(repository));
            let _ = writeln!(text, "stage = {}", quoted(stage));
        }
        text
    }

    /// sha256 (hex) of [`Lock::to_text`]: stands in the image's config.
    pub fn digest(&self) -> String {
        hex_digest(self.to_text().as_bytes())
    }

    /// Puts repositories and packages into the order that a lock has for this recipe.
    pub fn sort(&mut self, recipe: &Recipe) {
        let stage = |name: &str| recipe.stages.iter().position(|s| s.name == name);
        self.repositories.sort_by_key(|r| recipe.repositories.iter().position(|known| known.id == r.id));
        self.packages.sort_by(|a, b| {
            (stage(&a.stage), &a.name, &a.arch, &a.version).cmp(&(stage(&b.stage), &b.name, &b.arch, &b.version))
        });
    }
}

/// A TOML basic string. Values of a lock are plain words, so this rarely escapes anything.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn read_lock(table: &Table<'_>) -> Option<Lock> {
    if !table.has("version") {
        table.problem("version is missing: this is no lock");
    }
    let version = table.number("version", 0..=u32::MAX.into());
    if let Some(version) = version.as_ref().filter(|v| v.value != u64::from(LOCK_VERSION)) {
        let message = format!(
            "lock format {} is not this kiln's {LOCK_VERSION}; lock anew with kiln lock --update",
            version.value
        );
        table.problem_at(version, message);
    }
    let release = table.required("release", name::word);
    let role = table.required("role", name::word);
    if !table.has("epoch") {
        table.problem("epoch is missing");
    }
    let epoch = table.number("epoch", 0..=EPOCH_MAX);
    let request = table.required("request", name::sha256);
    let repositories: Vec<LockedRepository> = table.tables("repository").iter().filter_map(read_repository).collect();
    let mut ids = BTreeSet::new();
    for repository in &repositories {
        if !ids.insert(&repository.id) {
            table.problem(format!("repository {:?} stands twice", repository.id));
        }
    }
    let packages = read_packages(table, &ids);
    Some(Lock {
        version: version?.value as u32,
        release: release?.value,
        role: role?.value,
        epoch: epoch?.value,
        request: request?.value,
        packages,
        repositories,
    })
}

/// squashfs and cpio keep times in 32 bits.
const EPOCH_MAX: u64 = u32::MAX as u64;
/// No package file is larger, bytes.
const PACKAGE_MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;

fn read_repository(table: &Table<'_>) -> Option<LockedRepository> {
    let id = table.required("id", name::word);
    let metadata: Vec<String> = table.list("metadata", name::sha256).into_iter().map(|m| m.value).collect();
    if metadata.is_empty() {
        table.problem("metadata is missing: the digests of what was locked");
    }
    Some(LockedRepository { id: id?.value, metadata })
}

/// Every package once, stages together, within a stage by name and architecture.
fn read_packages(table: &Table<'_>, repositories: &BTreeSet<&String>) -> Vec<LockedPackage> {
    let mut packages: Vec<LockedPackage> = Vec::new();
    let mut seen: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut left_stages: BTreeSet<String> = BTreeSet::new();
    for entry in table.tables("package") {
        let Some(package) = read_package(&entry) else { continue };
        if !repositories.contains(&package.repository) {
            entry.problem(format!(
                "{} comes from repository {:?}, which is not in the lock",
                package.name, package.repository
            ));
        }
        let identity = (package.name.clone(), package.arch.clone());
        if let Some(version) = seen.insert(identity, package.version.clone()) {
            entry
                .problem(format!("{} {} stands twice ({version} and {})", package.name, package.arch, package.version));
        }
        if let Some(last) = packages.last() {
            let sorted = last.stage != package.stage || (&last.name, &last.arch) <= (&package.name, &package.arch);
            if last.stage != package.stage {
                left_stages.insert(last.stage.clone());
            }
            if !sorted || left_stages.contains(&package.stage) {
                entry.problem(format!("{} is out of order (by stage, name, architecture)", package.name));
            }
        }
        packages.push(package);
    }
    packages
}

fn read_package(table: &Table<'_>) -> Option<LockedPackage> {
    let plain = |text: &str| {
        let good = !text.is_empty() && text.len() <= 255 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if good { Ok(text.to_string()) } else { Err(format!("{text:?} is not a version or architecture")) }
    };
    let package = table.required("name", name::package);
    let version = table.required("version", plain);
    let arch = table.required("arch", plain);
    let sha256 = table.required("sha256", name::sha256);
    if !table.has("size") {
        table.problem("size is missing");
    }
    let size = table.number("size", 1..=PACKAGE_MAX_BYTES);
    let path = table.required("path", name::relative_path);
    let repository = table.required("repository", name::word);
    let stage = table.required("stage", name::word);
    Some(LockedPackage {
        name: package?.value,
        version: version?.value,
        arch: arch?.value,
        sha256: sha256?.value,
        size: size?.value,
        path: path?.value,
        repository: repository?.value,
        stage: stage?.value,
    })
}

impl LockedRecipe {
    /// Joins a recipe and its lock, or says why the lock does not answer this recipe. Fails closed:
    /// whatever the recipe asks for now must be what was locked.
    pub fn new(recipe: Recipe, lock: Lock) -> Result<LockedRecipe, Problems> {
        let file = format!("{}/{}.lock", recipe.release, recipe.role);
        let mut problems = Vec::new();
        let mut add = |key: &str, message: String| {
            problems.push(Problem { file: file.clone(), line: 0, key: key.to_string(), message });
        };
        let update = format!("run kiln lock --update {}/{}", recipe.release, recipe.role);
        if (&lock.release, &lock.role) != (&recipe.release, &recipe.role) {
            add("role", format!("is the lock of {}/{}", lock.release, lock.role));
        }
        if lock.version != LOCK_VERSION {
            add("version", format!("lock format {} is not this kiln's {LOCK_VERSION}; {update}", lock.version));
        }
        if lock.request != request(&recipe) {
            add("request", format!("the recipe asks for something else than was locked; {update}"));
        }
        for repository in &lock.repositories {
            if !recipe.repositories.iter().any(|r| r.id == repository.id) {
                add("repository", format!("the recipe has no repository {:?}; {update}", repository.id));
            }
        }
        let order = |name: &str| recipe.stages.iter().position(|s| s.name == name);
        let mut last = 0;
        for package in &lock.packages {
            match order(&package.stage) {
                None => {
                    add("package", format!("{}: the recipe has no stage {:?}; {update}", package.name, package.stage))
                }
                Some(stage) if stage < last => {
                    add("package", format!("{}: stage {:?} is out of order; {update}", package.name, package.stage));
                }
                Some(stage) => last = stage,
            }
        }
        problems.dedup();
        if problems.is_empty() { Ok(LockedRecipe { recipe, lock }) } else { Err(Problems(problems)) }
    }
}

#[cfg(test)]
mod tests;
