//! Makes preloaded repositories: packages of the cache with an index that el7's yum reads (gz, every
//! time in it from the packages), each repository in one blob. The same packages give the same bytes.

use super::plan::PlannedRepository;
use crate::image::id::Digest;
use crate::image::repository::Writer;
use crate::recipe::lock::LockedPackage;
use crate::repo::{fetch, index};
use crate::sys::files;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A repository's blob in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub file: PathBuf,
    pub note: Note,
}

/// What is known of a blob without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub packages: usize,
}

fn place(cache: &Path, key: &str) -> PathBuf {
    cache.join("repositories").join(key)
}

/// The blob, if an earlier build made it.
pub fn cached(cache: &Path, key: &str) -> Option<Made> {
    let file = place(cache, key);
    let note: Note = serde_json::from_slice(&fs::read(file.with_extension("json")).ok()?).ok()?;
    (fs::metadata(&file).ok()?.len() == note.size).then_some(Made { file, note })
}

/// Makes the blob of `planned` from its packages, which are in the cache and whole. `scratch` is an
/// empty folder on the cache's file system.
pub fn make(planned: &PlannedRepository, packages: &[&LockedPackage], cache: &Path, scratch: &Path) -> Result<Made> {
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
    let paths = files(packages, cache, &tree)?;
    let packed = scratch.join("blob");
    pack(&paths, &tree, &packed)?;
    let digest = Digest(files::hash_file(&packed)?);
    let note = Note { digest, size: fs::metadata(&packed)?.len(), packages: packages.len() };
    let file = place(cache, &planned.key);
    fs::create_dir_all(cache.join("repositories")).context("creating the cache of repositories")?;
    fs::rename(&packed, &file).with_context(|| format!("moving a repository to {}", file.display()))?;
    // Last: a blob without its note is none.
    files::write_atomic(&file.with_extension("json"), &serde_json::to_vec(&note)?, 0o644)?;
    files::remove_tree(scratch)?;
    Ok(Made { file, note })
}

/// Lays the packages out below `tree` with their index; returns every file's path.
fn files(packages: &[&LockedPackage], cache: &Path, tree: &Path) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for p in packages {
        let file = tree.join(&p.path);
        let folder = file.parent().with_context(|| format!("package {}: path {:?}", p.name, p.path))?;
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        // Not hard links: --verify sees the packages through a mount.
        let from = std::path::absolute(fetch::place(cache, &p.sha256))?;
        symlink(&from, &file).with_context(|| format!("linking package {} to {}", p.name, file.display()))?;
        paths.insert(p.path.clone());
    }
    let hrefs: Vec<String> = paths.iter().cloned().collect();
    if let Err(bad) = index::make(tree, &hrefs)? {
        let all: Vec<String> = bad.into_iter().map(|(path, why)| format!("{path}: {why}")).collect();
        bail!("packages that cannot be indexed:\n{}", all.join("\n"));
    }
    let folder = tree.join("repodata");
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let name = entry?.file_name();
        paths.insert(format!("repodata/{}", name.to_str().context("reading an index file's name")?));
    }
    Ok(paths)
}

fn pack(paths: &BTreeSet<String>, tree: &Path, to: &Path) -> Result<()> {
    let file = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let mut writer = Writer::new(BufWriter::new(file));
    for path in paths {
        let from = tree.join(path);
        let file = File::open(&from).with_context(|| format!("opening {}", from.display()))?;
        let size = file.metadata()?.len();
        writer.add(path, size, file).with_context(|| format!("packing {path}"))?;
    }
    writer.finish().and_then(|mut file| file.flush()).with_context(|| format!("writing {}", to.display()))
}
