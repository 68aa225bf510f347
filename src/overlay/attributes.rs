//! `overlay.toml` beside an overlay's `rootfs`: modes and owners that a folder of a git tree cannot
//! say. What it does not name is root's, 0755 (folders, executables) or 0644.
//!
//! ```toml
//! [file."etc/mysql/credentials.cnf.j2"]
//! mode = "0640"
//! owner = "root"
//! group = "mysql"
//! ```
//! Paths are those of `rootfs` without a leading slash; folders are named the same way.

use super::{Kind, Tree};
use crate::recipe::name;
use crate::recipe::problem::{Problem, Problems};
use crate::recipe::reader::{self, At};

/// What `overlay.toml` says of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The path, with its place.
    pub path: At<String>,
    pub mode: Option<At<u32>>,
    pub owner: Option<String>,
    pub group: Option<String>,
}

/// Reads `overlay.toml`; `file` is how problems name it.
pub fn parse(text: &str, file: &str) -> Result<Vec<Attributes>, Problems> {
    reader::read(text, file, |table| {
        let Some(files) = table.table("file") else { return Some(Vec::new()) };
        let mut all = Vec::new();
        for (path, entry) in files.named_tables() {
            if let Err(message) = name::relative_path(&path.value) {
                entry.problem(message);
            }
            all.push(Attributes {
                path,
                mode: entry.parsed("mode", mode),
                owner: entry.parsed("owner", name::owner).map(|o| o.value),
                group: entry.parsed("group", name::owner).map(|g| g.value),
            });
        }
        Some(all)
    })
}

fn mode(text: &str) -> Result<u32, String> {
    let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| octal);
    mode.ok_or_else(|| format!("{text:?} is not a mode such as \"0640\""))
}

/// Sets what `attributes` says in the tree.
pub fn apply(tree: &mut Tree, attributes: Vec<Attributes>, file: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for Attributes { path, mode, owner, group } in attributes {
        let mut add = |line: usize, key: &str, message: String| {
            problems.push(Problem { file: file.to_string(), line, key: key.to_string(), message });
        };
        let template = format!("{}{}", path.value, super::TEMPLATE_ENDING);
        let hint =
            if tree.entries.contains_key(&template) { format!("; did you mean {template:?}?") } else { String::new() };
        let Some(entry) = tree.entries.get_mut(&path.value) else {
            add(path.line, &path.key, format!("rootfs has no {:?}{hint}", path.value));
            continue;
        };
        if let Some(mode) = mode {
            let special = mode.value & 0o6000 != 0 && entry.kind != Kind::Dir;
            match entry.kind {
                Kind::Symlink(_) => add(mode.line, &mode.key, "a symlink has no mode".to_string()),
                _ if special => add(mode.line, &mode.key, "an overlay brings no setuid or setgid file".to_string()),
                _ => entry.mode = mode.value,
            }
        }
        entry.owner = owner.unwrap_or_else(|| entry.owner.clone());
        entry.group = group.unwrap_or_else(|| entry.group.clone());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_and_mistakes_have_their_line() {
        let read = parse("[file.\"etc/a\"]\nmode = \"0640\"\ngroup = \"mysql\"\n", "overlay.toml").unwrap();
        assert_eq!(read[0].path.value, "etc/a");
        assert_eq!(read[0].mode.as_ref().map(|m| m.value), Some(0o640));
        assert_eq!((read[0].owner.as_deref(), read[0].group.as_deref()), (None, Some("mysql")));
        for (label, text, want) in [
            (
                "decimal",
                "[file.\"etc/a\"]\nmode = 640\n",
                "o:2: file.\"etc/a\".mode: expected a string, found an integer",
            ),
            ("not octal", "[file.\"etc/a\"]\nmode = \"0680\"\n", "\"0680\" is not a mode"),
            ("too long", "[file.\"etc/a\"]\nmode = \"010640\"\n", "is not a mode"),
            ("sign", "[file.\"etc/a\"]\nmode = \"+640\"\n", "is not a mode"),
            ("owner", "[file.\"etc/a\"]\nowner = \"0:0\"\n", "is not a user's name"),
            ("absolute", "[file.\"/etc/a\"]\n", "is not a relative path"),
            ("upwards", "[file.\"../a\"]\n", "is not a relative path"),
            ("unknown key", "[file.\"etc/a\"]\nuser = \"x\"\n", "unknown key; known here: group, mode, owner"),
            ("unknown table", "[files.\"etc/a\"]\n", "files: unknown key; known here: file"),
        ] {
            let problems = parse(text, "o").expect_err(label).to_string();
            assert!(problems.contains(want), "{label}: {problems}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>(), near in "\\[file\\.\"[a-z/.]{0,9}\"\\]\n(mode|owner) = [\"0-7a-z{}]{0,9}\n") {
            for text in [text, near] {
                let _ = parse(&text, "o").map(|attributes| apply(&mut Tree::default(), attributes, "o"));
            }
        }
    }
}
