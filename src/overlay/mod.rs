//! Overlays: file trees that are laid over the installed packages. This file knows what a tree may
//! hold and how several become one; [`load`] reads them, [`render`] fills in templates, [`trace`] tells
//! which line of a template a line of its result comes from.
//!
//! An overlay `NAME` is `overlays/common/NAME/rootfs/…` and `overlays/<release>/NAME/rootfs/…`: where
//! both have a file, the release's stands. Two overlays of different names must not bring the same
//! file. Beside `rootfs` may lie `overlay.toml`, see [`attributes`].

pub mod attributes;
pub mod load;
pub mod render;
pub mod tags;
pub mod trace;

use crate::recipe::problem::Problem;
use std::collections::BTreeMap;

/// Ending of a template's name; the result lies beside it without that ending.
pub const TEMPLATE_ENDING: &str = ".j2";

/// One path of an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Permission bits, setuid and the like included. Meaningless for symlinks.
    pub mode: u32,
    /// Names, resolved to numbers when laid over an installed tree.
    pub owner: String,
    pub group: String,
    /// Name of the overlay that brings it.
    pub overlay: String,
    /// The file that it was read from, for problems.
    pub source: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(Vec<u8>),
    /// The target's text, as it is.
    Symlink(String),
}

/// Paths below the image's root, without a leading slash -> entries. A folder sorts before what it
/// holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Templates: absolute path in the image (with its ending), overlay, text.
    pub fn templates(&self) -> impl Iterator<Item = (String, &str, &[u8])> {
        self.entries.iter().filter_map(|(path, entry)| match &entry.kind {
            Kind::File(bytes) if path.ends_with(TEMPLATE_ENDING) => {
                Some((format!("/{path}"), entry.overlay.as_str(), bytes.as_slice()))
            }
            _ => None,
        })
    }

    /// Lays the release's half of an overlay over its common half: the release's files stand.
    pub fn replace_with(&mut self, over: Tree) {
        self.entries.extend(over.entries);
    }

    /// Lays another overlay beside what is here. Folders may be shared, files not.
    pub fn add(&mut self, other: Tree, problems: &mut Vec<Problem>) {
        for (path, entry) in other.entries {
            match self.entries.get(&path) {
                None => {
                    self.entries.insert(path, entry);
                }
                Some(first) => problems.extend(clash(&path, first, &entry)),
            }
        }
    }
}

fn clash(path: &str, first: &Entry, second: &Entry) -> Option<Problem> {
    let attributes = |e: &Entry| (e.mode, e.owner.clone(), e.group.clone());
    let both_folders = first.kind == Kind::Dir && second.kind == Kind::Dir;
    let message = if !both_folders {
        format!("/{path} comes from overlay {} too ({})", first.overlay, first.source)
    } else if attributes(first) != attributes(second) {
        format!("/{path} has another mode or owner in overlay {} ({})", first.overlay, first.source)
    } else {
        return None;
    };
    Some(problem(&second.source, message))
}

/// Every problem of a tree as a whole: templates that would overwrite a file, paths through what is
/// no folder.
pub fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, entry) in &tree.entries {
        if let Some(result) = path.strip_suffix(TEMPLATE_ENDING)
            && let Some(other) = tree.entries.get(result)
        {
            problems.push(problem(&entry.source, format!("its result /{result} is also {}", other.source)));
        }
        let parent = path.rsplit_once('/').and_then(|(parent, _)| tree.entries.get(parent));
        if let Some(parent) = parent.filter(|p| p.kind != Kind::Dir) {
            problems.push(problem(&entry.source, format!("lies in {}, which is no folder", parent.source)));
        }
    }
    problems
}

fn problem(file: &str, message: impl Into<String>) -> Problem {
    Problem { file: file.to_string(), line: 0, key: String::new(), message: message.into() }
}

/// Folders that a merged-/usr distribution has as symlinks: an overlay's folder would replace them.
const LINKED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What is mounted over in a running system: a file there would never be seen.
const MOUNTED: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// Why an overlay must not bring this path (relative, as read from the folder).
pub fn path_objection(path: &str) -> Option<String> {
    if path.chars().any(char::is_control) {
        return Some("its name holds a control character".to_string());
    }
    if path.len() > PATH_MAX_BYTES || path.split('/').any(|part| part.len() > NAME_MAX_BYTES) {
        return Some(format!("its path is longer than {PATH_MAX_BYTES} bytes or a name than {NAME_MAX_BYTES}"));
    }
    let mut parts = path.split('/');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if LINKED.contains(&first) {
        return Some(format!("/{first} is a symlink to /usr/{first}: put it into usr/{first}"));
    }
    if MOUNTED.contains(&first) {
        return Some(format!("/{first} is mounted over when the node runs: nobody would see it"));
    }
    if first == "var" && matches!(second, Some("run" | "lock")) {
        return Some("/var/run and /var/lock are symlinks into /run, which is mounted over".to_string());
    }
    None
}

/// PATH_MAX less the terminating zero and some room for the folder that the tree is laid in.
pub const PATH_MAX_BYTES: usize = 3072;
/// NAME_MAX of Linux.
pub const NAME_MAX_BYTES: usize = 255;

/// Why a symlink at `path` must not point to `target`: an absolute target counts from the image's
/// root, a relative one from the link's folder, and neither may climb out.
pub fn target_objection(path: &str, target: &str) -> Option<String> {
    if target.is_empty() || target.chars().any(char::is_control) {
        return Some("its target is empty or holds a control character".to_string());
    }
    let mut depth = if target.starts_with('/') { 0 } else { path.matches('/').count() };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return Some(format!("its target {target:?} leads out of the image's root")),
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(overlay: &str, text: &str) -> Entry {
        Entry {
            kind: Kind::File(text.into()),
            mode: 0o644,
            owner: "root".into(),
            group: "root".into(),
            overlay: overlay.into(),
            source: format!("{overlay}/{text}"),
        }
    }

    fn tree(entries: &[(&str, Entry)]) -> Tree {
        Tree { entries: entries.iter().map(|(path, entry)| (path.to_string(), entry.clone())).collect() }
    }

    #[test]
    fn links_stay_inside_the_image() {
        for (path, target, good) in [
            ("etc/a", "b", true),
            ("etc/a", "../usr/lib/b", true),
            ("etc/a", "/usr/lib/b", true),
            ("etc/a", "/dev/null", true),
            ("etc/a", "../../b", false),
            ("etc/a", "/../b", false),
            ("etc/a", "x/../../../b", false),
            ("etc/a/b", "../../c", true),
            ("a", "..", false),
            ("a", "", false),
            ("a", "b\n", false),
        ] {
            assert_eq!(target_objection(path, target).is_none(), good, "{path} -> {target:?}");
        }
    }

    #[test]
    fn paths_that_nobody_would_see_are_refused() {
        for (path, good) in [
            ("etc/motd", true),
            ("usr/lib/kiln", true),
            ("lib/systemd", false),
            ("bin", false),
            ("run/x", false),
            ("tmp", false),
            ("var/run/x", false),
            ("var/lib/x", true),
            ("etc/a\nb", false),
        ] {
            assert_eq!(path_objection(path).is_none(), good, "{path:?}");
        }
    }

    #[test]
    fn the_release_stands_over_common_and_two_overlays_never_share_a_file() {
        let mut own = tree(&[("etc/a", file("x", "common")), ("etc/b", file("x", "common"))]);
        own.replace_with(tree(&[("etc/a", file("x", "release"))]));
        assert_eq!(own.entries["etc/a"].source, "x/release");
        let mut problems = Vec::new();
        own.add(tree(&[("etc/b", file("y", "other")), ("etc/c", file("y", "other"))]), &mut problems);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].to_string(), "y/other: /etc/b comes from overlay x too (x/common)");
        assert!(own.entries.contains_key("etc/c"));
    }

    #[test]
    fn a_template_never_overwrites_a_file_and_nothing_lies_in_a_file() {
        let problems = check(&tree(&[
            ("etc/a", file("x", "1")),
            ("etc/a.j2", file("x", "2")),
            ("etc/a/b", file("y", "3")),
            ("etc/c.j2", file("x", "4")),
        ]));
        let shown: Vec<String> = problems.iter().map(|p| p.to_string()).collect();
        assert_eq!(shown, ["x/2: its result /etc/a is also x/1", "y/3: lies in x/1, which is no folder"]);
    }
}
