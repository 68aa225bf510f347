//! Reads overlays from their folders. The umask, owner and times of the checkout do not matter; what
//! an image cannot or must not hold (devices, sockets, names that are not UTF-8, links out of the
//! root) is a problem, and all problems are told at once.

use super::attributes;
use super::{Entry, Kind, Tree, check, path_objection, target_objection};
use crate::recipe::problem::{Problem, Problems};
use crate::sys::files::read_bounded;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Overlays hold configuration and scripts; packages bring the rest. Bytes of one file.
pub const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Entries of one overlay: far more than any configuration.
pub const ENTRIES_MAX: usize = 20_000;
/// Deeper folders are a mistake.
const DEPTH_MAX: usize = 32;

/// Reads the overlays `names` of a release and lays them into one tree. `roots` are folders like the
/// source tree's `overlays`; an overlay is taken whole from the first root that has it.
pub fn load(roots: &[PathBuf], release: &str, names: &[String]) -> Result<Tree> {
    let (tree, problems) = load_all(roots, release, names)?;
    if problems.is_empty() { Ok(tree) } else { Err(Problems(problems).into()) }
}

/// Like [`load`], for callers that go on in spite of problems: what could be read, and every problem.
pub fn load_all(roots: &[PathBuf], release: &str, names: &[String]) -> Result<(Tree, Vec<Problem>)> {
    let mut tree = Tree::default();
    let mut problems = Vec::new();
    for name in names {
        let halves = |root: &PathBuf| [root.join("common").join(name), root.join(release).join(name)];
        let has_rootfs = |half: &Path| half.join("rootfs").is_dir();
        let found = roots.iter().map(halves).find(|halves| halves.iter().any(|half| has_rootfs(half)));
        let Some(halves) = found else {
            let places: Vec<String> = roots.iter().map(|r| r.display().to_string()).collect();
            let message = format!("no folder common/{name}/rootfs or {release}/{name}/rootfs");
            problems.push(Problem { file: places.join(", "), line: 0, key: String::new(), message });
            continue;
        };
        let mut overlay = Tree::default();
        for half in halves.iter().filter(|half| has_rootfs(half)) {
            overlay.replace_with(load_half(half, name, &mut problems)?);
        }
        tree.add(overlay, &mut problems);
    }
    problems.extend(check(&tree));
    problems.sort();
    problems.dedup();
    Ok((tree, problems))
}

/// One folder with `rootfs` and perhaps `overlay.toml`.
fn load_half(folder: &Path, name: &str, problems: &mut Vec<Problem>) -> Result<Tree> {
    let mut walk = Walk { overlay: name, tree: Tree::default(), problems };
    walk.folder(&folder.join("rootfs"), "", 0)?;
    let mut tree = walk.tree;
    let file = folder.join("overlay.toml");
    if file.exists() {
        let shown = file.display().to_string();
        let bytes = read_bounded(&file, FILE_MAX_BYTES)?;
        let parsed = match String::from_utf8(bytes) {
            Ok(text) => attributes::parse(&text, &shown),
            Err(_) => Err(Problems(vec![super::problem(&shown, "is not UTF-8")])),
        };
        match parsed {
            Ok(attributes) => problems.extend(attributes::apply(&mut tree, attributes, &shown)),
            Err(Problems(found)) => problems.extend(found),
        }
    }
    Ok(tree)
}

struct Walk<'a> {
    overlay: &'a str,
    tree: Tree,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, below: &str, depth: usize) -> Result<()> {
        let mut entries: Vec<fs::DirEntry> = fs::read_dir(folder)
            .and_then(|entries| entries.collect())
            .with_context(|| format!("reading overlay folder {}", folder.display()))?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            let shown = format!("{:?}", path.display().to_string()).trim_matches('"').to_string();
            let Some(file_name) = entry.file_name().to_str().map(str::to_string) else {
                self.problems.push(super::problem(&shown, "its name is not UTF-8"));
                continue;
            };
            // Only git needs these: it keeps no empty folders.
            if file_name == ".gitkeep" {
                continue;
            }
            let below = if below.is_empty() { file_name } else { format!("{below}/{file_name}") };
            self.entry(&path, &shown, &below, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, shown: &str, below: &str, depth: usize) -> Result<()> {
        if let Some(message) = path_objection(below) {
            self.problems.push(super::problem(shown, message));
            return Ok(());
        }
        if depth > DEPTH_MAX || self.tree.entries.len() >= ENTRIES_MAX {
            let message = format!("an overlay has at most {ENTRIES_MAX} entries, {DEPTH_MAX} folders deep");
            self.problems.push(super::problem(self.overlay, message));
            return Ok(());
        }
        let metadata = fs::symlink_metadata(path).with_context(|| format!("reading overlay entry {shown}"))?;
        let kind = metadata.file_type();
        let (kind, mode) = if kind.is_dir() {
            (Kind::Dir, 0o755)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).with_context(|| format!("reading overlay link {shown}"))?;
            let Some(target) = target.to_str().map(str::to_string) else {
                self.problems.push(super::problem(shown, "its target is not UTF-8"));
                return Ok(());
            };
            if let Some(message) = target_objection(below, &target) {
                self.problems.push(super::problem(shown, message));
                return Ok(());
            }
            (Kind::Symlink(target), 0o777)
        } else if kind.is_file() {
            if metadata.len() > FILE_MAX_BYTES {
                self.problems.push(super::problem(shown, format!("is longer than {FILE_MAX_BYTES} bytes")));
                return Ok(());
            }
            let mode = if metadata.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
            (Kind::File(read_bounded(path, FILE_MAX_BYTES)?), mode)
        } else {
            let what = match () {
                () if kind.is_fifo() => "a fifo",
                () if kind.is_socket() => "a socket",
                () => "a device node",
            };
            self.problems.push(super::problem(shown, format!("is {what}; overlays hold files, folders and links")));
            return Ok(());
        };
        let folder = kind == Kind::Dir;
        let (owner, group) = ("root".to_string(), "root".to_string());
        let (overlay, source) = (self.overlay.to_string(), shown.to_string());
        self.tree.entries.insert(below.to_string(), Entry { kind, mode, owner, group, overlay, source });
        if folder { self.folder(path, below, depth + 1) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
