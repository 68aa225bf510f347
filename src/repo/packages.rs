//! apt's `Packages` indexes and dpkg's `status`: what stands in them. Nothing is resolved here.

use super::deb822::{self, Stanza};

/// One package of a `Packages` index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub arch: &'a str,
    /// Below the repository's root.
    pub path: &'a str,
    /// 64 hex digits.
    pub sha256: &'a str,
    /// Bytes.
    pub size: u64,
    pub essential: bool,
    /// `required`, `important`, …
    pub priority: &'a str,
    pub pre_depends: &'a str,
    pub depends: &'a str,
    pub provides: &'a str,
    /// The paragraph's text.
    pub raw: &'a str,
}

/// Parses an index. A package without a sha256 (older digests alone prove nothing), without a
/// path, or with a path that leaves the repository is an error that names it.
pub fn parse(text: &str) -> Result<Vec<Package<'_>>, String> {
    deb822::stanzas(text).into_iter().map(|s| package(&s)).collect()
}

fn package<'a>(stanza: &Stanza<'a>) -> Result<Package<'a>, String> {
    let name = stanza.get("Package").ok_or_else(|| format!("no package is named by {:?}", head(stanza.raw)))?;
    let need = |key: &str| stanza.get(key).ok_or_else(|| format!("package {name} has no {key}"));
    let sha256 = need("SHA256")?;
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("package {name} has the malformed SHA256 {sha256:?}"));
    }
    let path = need("Filename")?;
    if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains(char::is_whitespace) {
        return Err(format!("package {name} has the path {path:?}, which leaves its repository"));
    }
    let size = need("Size")?.parse().map_err(|_| format!("package {name} has a Size that is no number"))?;
    let text = |key: &str| stanza.get(key).unwrap_or_default();
    Ok(Package {
        name,
        version: need("Version")?,
        arch: need("Architecture")?,
        path: path.trim_start_matches("./"),
        sha256,
        size,
        essential: stanza.get("Essential") == Some("yes"),
        priority: text("Priority"),
        pre_depends: text("Pre-Depends"),
        depends: text("Depends"),
        provides: text("Provides"),
        raw: stanza.raw,
    })
}

fn head(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A package as dpkg's `status` file shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installed {
    pub name: String,
    pub version: String,
    pub arch: String,
    /// Such as `install ok installed`.
    pub status: String,
}

/// Parses dpkg's `status`, sorted by name.
pub fn installed(status: &str) -> Vec<Installed> {
    let text = |s: &Stanza, key: &str| s.get(key).unwrap_or_default().to_string();
    let mut found: Vec<Installed> = deb822::stanzas(status)
        .iter()
        .map(|s| Installed {
            name: text(s, "Package"),
            version: text(s, "Version"),
            arch: text(s, "Architecture"),
            status: text(s, "Status"),
        })
        .collect();
    found.sort();
    found
}

/// `(name, version, architecture)` of each package that `apt-get --simulate install` would unpack:
/// lines such as `Inst bash (5.2.15-2+b7 Debian:12.11/stable [amd64])`.
pub fn simulated(output: &str) -> Vec<(String, String, String)> {
    let one = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let inner = rest.get(rest.find('(')? + 1..rest.rfind(')')?)?;
        let arch = inner.rsplit_once('[')?.1.trim_end_matches(']');
        Some((name.split(':').next()?.into(), inner.split_whitespace().next()?.into(), arch.into()))
    };
    output.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASH: &str = "Package: bash\nVersion: 5.2.15-2+b7\nEssential: yes\nArchitecture: amd64\nPriority: required\nPre-Depends: libc6 (>= 2.36)\nFilename: pool/main/b/bash/bash_5.2.15-2+b7_amd64.deb\nSize: 1491104\nSHA256: 5e6a4dc7a5a8b8a4cd0ba3c1f3aee2c8a8a0a3b6e1f5a1c5e6d2b7d9f3a4b5c6\n";

    #[test]
    fn an_index_entry_is_read() {
        let found = parse(BASH).unwrap();
        assert_eq!((found[0].name, found[0].version, found[0].size), ("bash", "5.2.15-2+b7", 1491104));
        assert!(found[0].essential && found[0].pre_depends.starts_with("libc6"));
    }

    #[test]
    fn weak_or_hostile_entries_are_refused() {
        let line = |key: &str| BASH.lines().find(|l| l.starts_with(key)).unwrap().to_string();
        for (from, to, why) in [
            (line("SHA256"), "SHA1: 0123".to_string(), "has no SHA256"),
            (line("SHA256"), "SHA256: zz".to_string(), "malformed SHA256"),
            (line("Filename"), "Filename: ../../etc/passwd".to_string(), "leaves its repository"),
            (line("Filename"), "Filename: /etc/passwd".to_string(), "leaves its repository"),
            (line("Size"), "Size: many".to_string(), "no number"),
        ] {
            let error = parse(&BASH.replace(&from, &to)).unwrap_err();
            assert!(error.contains(why) && error.contains("bash"), "{error}");
        }
    }

    #[test]
    fn a_simulation_names_what_it_would_install() {
        let text = "NOTE: simulated\nInst gcc-12-base (12.2.0-14+deb12u1 Debian:12.11/oldstable [amd64])\nInst libc6 (2.36-9 Debian:12/x, Debian-Security:12/y [amd64]) []\nConf libc6 (2.36-9 Debian:12/x [amd64])\nInst tzdata [1] (2 Local [all])\n";
        let want =
            [("gcc-12-base", "12.2.0-14+deb12u1", "amd64"), ("libc6", "2.36-9", "amd64"), ("tzdata", "2", "all")];
        let found = simulated(text);
        assert_eq!(found.iter().map(|(a, b, c)| (&a[..], &b[..], &c[..])).collect::<Vec<_>>(), want);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,300}") {
            let _ = (parse(&text), installed(&text), simulated(&text), simulated(&format!("Inst {text}")));
        }
    }
}
