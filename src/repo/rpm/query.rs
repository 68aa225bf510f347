//! What the image's own rpm says of its tree: `rpm -qa` in a lock's words, `rpm -Va`.

use std::collections::BTreeSet;

/// For `rpm -qa --queryformat`: as a package stands in a lock. (An absent epoch is 0.)
pub const FORMAT: &str = "%{NAME} %|EPOCH?{%{EPOCH}}:{0}|:%{VERSION}-%{RELEASE} %{ARCH}\n";

/// The packages that `rpm -qa` lists with [`FORMAT`]. Keys that were imported are no packages.
pub fn installed(text: &str) -> BTreeSet<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("gpg-pubkey ")).map(String::from).collect()
}

/// For `rpm -qa --queryformat`, read by [`records`]: which files a package owns.
pub const FILES_FORMAT: &str = "%{NAME}\u{1}[%{FILENAMES}\n]\u{2}";
/// The same: what its scriptlets say.
pub const SCRIPTS_FORMAT: &str = "%{NAME}\u{1}%{PREIN}\n%{POSTIN}\n%{POSTTRANS}\n\u{2}";

/// (package, text), sorted.
pub fn records(text: &str) -> Vec<(String, String)> {
    let one = |record: &str| record.split_once('\u{1}').map(|(name, text)| (name.to_string(), text.to_string()));
    let mut found: Vec<(String, String)> = text.split('\u{2}').filter_map(one).collect();
    found.sort();
    found
}

/// One line of `rpm -Va` that names a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    /// `S.5....T.`, or `missing`.
    pub how: &'a str,
    /// `c` configuration, `g` made at run time, `d` documentation, …
    pub kind: Option<char>,
    pub path: &'a str,
}

/// Parses a line; `None`: it names no file.
fn difference(line: &str) -> Option<Difference<'_>> {
    let (head, path) = line.split_at(line.find(" /")?);
    let mut words = head.split_whitespace();
    let how = words.next()?;
    let kind = words.next().and_then(|w| w.chars().next());
    Some(Difference { how, kind, path: path.trim() })
}

/// The lines of `rpm -Va` that nothing explains. Configuration may be written by scriptlets, what
/// is made at run time is theirs, and on `mounts` (below the root) something else lies meanwhile.
pub fn unexplained<'a>(text: &'a str, mounts: &[&str]) -> Vec<&'a str> {
    let mounted = |path: &str| {
        let path = path.trim_start_matches('/');
        mounts.iter().any(|m| path == *m || path.strip_prefix(m).is_some_and(|rest| rest.starts_with('/')))
    };
    let fine = |line: &str| match difference(line) {
        Some(d) => matches!(d.kind, Some('c' | 'g')) || mounted(d.path),
        None => line.trim().is_empty(),
    };
    text.lines().filter(|line| !fine(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_explained_or_told() {
        let text = "S.5....T.  c /etc/hosts\n.......T.  g /etc/machine-id\n.M.......    /proc\nmissing     /usr/bin/x\n\
                    S.5......    /usr/lib/a b\nmissing   c /etc/gone\nUnsatisfied dependencies for a-1.x86_64:\n\n.M.......    /run/x\n.M.......    /runner\n";
        let told = [
            "missing     /usr/bin/x",
            "S.5......    /usr/lib/a b",
            "Unsatisfied dependencies for a-1.x86_64:",
            ".M.......    /runner",
        ];
        assert_eq!(unexplained(text, &["proc", "run"]), told);
        let one = difference("S.5....T.  c /etc/hosts").unwrap();
        assert_eq!((one.how, one.kind, one.path), ("S.5....T.", Some('c'), "/etc/hosts"));
    }

    #[test]
    fn a_list_is_a_lock_s_words() {
        let list = installed("bash 0:4.2.46-34.el7 x86_64\ngpg-pubkey 0:f4a80eb5-53a7ff4b (none)\n\n");
        assert_eq!(list, BTreeSet::from(["bash 0:4.2.46-34.el7 x86_64".to_string()]));
    }

    #[test]
    fn records_are_by_package() {
        let told = records("setup\u{1}/etc/group\n/etc/hosts\n\u{2}bash\u{1}(none)\n(none)\n(none)\n\u{2}");
        let want = [("bash", "(none)\n(none)\n(none)\n"), ("setup", "/etc/group\n/etc/hosts\n")];
        assert_eq!(told, want.map(|(package, text)| (package.to_string(), text.to_string())));
        assert!(records("rpm: error").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,120}") {
            let _ = (unexplained(&text, &["proc"]), installed(&text));
        }
    }
}
