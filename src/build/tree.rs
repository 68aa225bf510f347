//! A built tree as seen by those who judge it or lay something over it: an index of what is where,
//! and a way to read small files. Symlinks are followed as the running system would.

use std::collections::BTreeMap;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Has file capabilities.
    pub capable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    /// Bytes.
    File(u64),
    Symlink(String),
    Device,
    Other,
}

/// Paths below the root, without a leading slash -> what stands there.
pub type Index = BTreeMap<String, Node>;

/// An index with the files' content.
pub struct Tree<'a> {
    pub index: &'a Index,
    /// The content of a regular file, or `None` when it cannot be read or is too large for a look.
    pub read: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

/// Linux gives up after as many (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

impl Tree<'_> {
    /// The path that `path` (with or without a leading slash) stands for once every symlink is followed.
    pub fn resolve(&self, path: &str) -> Option<String> {
        let mut pending: Vec<String> = path.split('/').rev().map(String::from).collect();
        let (mut at, mut links): (Vec<String>, usize) = (Vec::new(), 0);
        while let Some(part) = pending.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(part),
            }
            let here = at.join("/");
            if let Some(Node { kind: Kind::Symlink(target), .. }) = self.index.get(&here) {
                links += 1;
                if links > SYMLINKS_MAX {
                    return None;
                }
                at.pop();
                if target.starts_with('/') {
                    at.clear();
                }
                pending.extend(target.split('/').rev().map(String::from));
            } else if !self.index.contains_key(&here) {
                return None;
            }
        }
        Some(at.join("/"))
    }

    /// What stands there once symlinks are followed.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.index.get(&self.resolve(path)?)
    }

    /// The text of a file, symlinks followed; invalid UTF-8 replaced.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&(self.read)(&self.resolve(path)?)?).into_owned())
    }

    /// Everything below a folder.
    pub fn below<'s>(&'s self, folder: &'s str) -> impl Iterator<Item = (&'s String, &'s Node)> {
        let start = format!("{folder}/");
        self.index.range(start.clone()..).take_while(move |(path, _)| path.starts_with(&start))
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// A folder, file or symlink owned by root.
    pub fn node(kind: Kind) -> Node {
        let mode = if matches!(kind, Kind::File(_)) { 0o644 } else { 0o755 };
        Node { kind, mode, uid: 0, gid: 0, capable: false }
    }

    /// An index of files (with their content) and all folders above them.
    pub fn index(files: &[(&str, &str)]) -> (Index, BTreeMap<String, Vec<u8>>) {
        let (mut index, mut content) = (Index::new(), BTreeMap::new());
        for (path, text) in files {
            let mut parent = *path;
            while let Some((above, _)) = parent.rsplit_once('/') {
                index.entry(above.to_string()).or_insert_with(|| node(Kind::Dir));
                parent = above;
            }
            index.insert(path.to_string(), node(Kind::File(text.len() as u64)));
            content.insert(path.to_string(), text.as_bytes().to_vec());
        }
        (index, content)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{index, node};
    use super::*;

    #[test]
    fn symlinks_are_followed_and_cycles_end() {
        let (mut nodes, _) = index(&[("usr/lib/systemd/systemd", "x")]);
        for (path, target) in [
            ("lib", "usr/lib"),
            ("init", "/lib/systemd/systemd"),
            ("up", "../../usr"),
            ("a", "b"),
            ("b", "a"),
            ("gone", "nowhere"),
        ] {
            nodes.insert(path.into(), node(Kind::Symlink(target.into())));
        }
        let tree = Tree { index: &nodes, read: &|_| None };
        assert_eq!(tree.resolve("/init").as_deref(), Some("usr/lib/systemd/systemd"));
        assert_eq!(tree.resolve("up/lib/./systemd").as_deref(), Some("usr/lib/systemd"));
        assert_eq!(tree.resolve("a"), None);
        assert_eq!(tree.resolve("gone"), None);
        assert_eq!(tree.below("usr/lib").count(), 2);
    }
}
