//! How a tree of packages is cut into repositories: those that have an index, and what lies outside
//! of them. Also which names and paths an import takes.

use std::collections::{BTreeMap, BTreeSet};

/// Names of folders that are parts of one repository, never repositories of their own.
const PARTS: [&str; 10] =
    ["packages", "rpms", "srpms", "getpackage", "x86_64", "noarch", "i686", "i386", "aarch64", "src"];
const NAME_MAX_CHARS: usize = 64;
const PATH_MAX_BYTES: usize = 1024;
const DEPTH_MAX: usize = 32;

/// Cuts packages that no index lists into repositories: its root (`""`: the top) -> paths below it.
/// A folder is one repository if a package lies in it, or only parts of one do; else each folder in it is looked at.
pub fn cut(paths: &BTreeSet<String>) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let all: Vec<&str> = paths.iter().map(String::as_str).collect();
    cut_below("", &all, &mut found);
    found
}

/// Whether a folder of this name is a part of the repository around it.
pub fn is_part(name: &str) -> bool {
    name.chars().count() == 1 || name == "repodata" || PARTS.contains(&name.to_lowercase().as_str())
}

fn cut_below(root: &str, paths: &[&str], found: &mut BTreeMap<String, Vec<String>>) {
    let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut whole = false;
    for path in paths {
        match path.split_once('/') {
            Some((folder, rest)) => folders.entry(folder).or_default().push(rest),
            None => whole = true,
        }
    }
    if whole || folders.keys().any(|name| is_part(name)) {
        found.insert(root.to_string(), paths.iter().map(|p| p.to_string()).collect());
        return;
    }
    for (folder, rest) in folders {
        let below = if root.is_empty() { folder.to_string() } else { format!("{root}/{folder}") };
        cut_below(&below, &rest, found);
    }
}

/// The name that an import gets from its file's: `mitaka.tar.gz` -> `mitaka`.
pub fn name_of(file: &str) -> &str {
    let stem = [".gz", ".xz", ".bz2", ".zst"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
    let stem = stem.strip_suffix(".tar").unwrap_or(stem);
    ["tgz", "txz", "tbz"].iter().find_map(|end| stem.strip_suffix(end)?.strip_suffix('.')).unwrap_or(stem)
}

/// Checks an import's name.
pub fn check_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if name.is_empty() || name.len() > NAME_MAX_CHARS || !name.chars().all(fine) || name.starts_with(['.', '-']) {
        return Err(format!(
            "name {name:?} is not 1 to {NAME_MAX_CHARS} letters, digits and . _ + -; give one with --as"
        ));
    }
    Ok(())
}

/// A path of an archive as parts below its root, if it stays there.
pub fn parts(path: &[u8]) -> Result<Vec<&str>, String> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    let text = std::str::from_utf8(path).map_err(|_| format!("path {:?} is not UTF-8", shown()))?;
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err(format!("path {:?} leaves the archive", shown()));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if text.len() > PATH_MAX_BYTES || parts.len() > DEPTH_MAX || text.chars().any(char::is_control) {
        return Err(format!("path {:?} is too long, too deep or not printable", shown()));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_cut_into_repositories() {
        for (label, paths, want) in [
            ("flat", &["a.rpm", "b.rpm"][..], &[("", 2)][..]),
            ("parts", &["Packages/a.rpm", "Packages/b/b.rpm"], &[("", 2)]),
            ("letters", &["a/a.rpm", "b/b.rpm"], &[("", 2)]),
            ("two", &["mitaka/a.rpm", "mariadb/x86_64/b.rpm"], &[("mariadb", 1), ("mitaka", 1)]),
            ("deep", &["el7/mitaka/Packages/a.rpm", "el7/base/Packages/b.rpm"], &[("el7/base", 1), ("el7/mitaka", 1)]),
            ("a package between", &["a.rpm", "mitaka/b.rpm"], &[("", 2)]),
            ("none", &[], &[]),
        ] {
            let paths = paths.iter().map(|p| p.to_string()).collect();
            let found = cut(&paths);
            let found: Vec<(&str, usize)> = found.iter().map(|(root, of)| (root.as_str(), of.len())).collect();
            assert_eq!(found, want, "{label}");
        }
    }

    #[test]
    fn names_and_paths_are_checked() {
        for (file, want) in [
            ("mitaka.tar.gz", "mitaka"),
            ("el7.6.tgz", "el7.6"),
            ("x.tar", "x"),
            ("folder", "folder"),
            ("a.tar.zst", "a"),
        ] {
            assert_eq!(name_of(file), want);
        }
        for (name, fine) in
            [("mitaka-1.0", true), ("", false), ("..", false), ("a/b", false), ("-a", false), ("é", false)]
        {
            assert_eq!(check_name(name).is_ok(), fine, "{name:?}");
        }
        assert_eq!(parts(b"./a//b/").unwrap(), ["a", "b"]);
        for path in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"a\xff", b"a\nb"] {
            assert!(parts(path).is_err(), "{path:?}");
        }
        assert!(parts("x/".repeat(40).as_bytes()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn every_package_ends_in_one_repository(paths in proptest::collection::btree_set("([a-c]{1,2}/){0,3}[x-z]\\.rpm", 0..12)) {
            let found = cut(&paths);
            let join = |root: &str, p: &String| if root.is_empty() { p.clone() } else { format!("{root}/{p}") };
            let all: BTreeSet<String> = found.iter().flat_map(|(root, of)| of.iter().map(|p| join(root, p)).collect::<Vec<_>>()).collect();
            proptest::prop_assert_eq!(all, paths);
        }
    }
}
