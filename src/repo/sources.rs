//! Which apt sources a repository of a recipe means: its URL, or those of the host's own entries
//! that carry its suites. Other vendors' entries on the host are never taken.

use super::deb822;
use crate::recipe::{Repository, RepositoryUrl, Trust};
use std::collections::BTreeMap;

/// One suite at one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Id of the repository in the recipe.
    pub repository: String,
    /// Without a trailing slash.
    pub uri: String,
    pub suite: String,
    pub components: Vec<String>,
    /// `None`: the keys that the host's apt trusts; or, with `pinned`, none at all.
    pub keyring: Option<String>,
    /// Nobody signs it: the metadata's digest stands in the lock.
    pub pinned: bool,
}

/// An entry of the host's `sources.list` or `.sources` files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEntry {
    pub uris: Vec<String>,
    pub suites: Vec<String>,
    pub components: Vec<String>,
    pub signed_by: Option<String>,
}

/// Entries of a deb822 `.sources` file: `deb` ones that are enabled.
pub fn parse_deb822(text: &str) -> Vec<HostEntry> {
    let stanzas = deb822::stanzas(text);
    let wanted = stanzas.iter().filter(|s| {
        s.words("Types").iter().any(|t| t == "deb") && !matches!(s.get("Enabled"), Some("no" | "false" | "0"))
    });
    let entry = |s: &deb822::Stanza| HostEntry {
        uris: s.words("URIs"),
        suites: s.words("Suites"),
        components: s.words("Components"),
        signed_by: s.get("Signed-By").map(String::from),
    };
    wanted.map(entry).collect()
}

/// Entries of a one-line `.list` file.
pub fn parse_list(text: &str) -> Vec<HostEntry> {
    let one = |line: &str| {
        let line = line.split('#').next()?.trim().strip_prefix("deb")?;
        let rest = line.starts_with(char::is_whitespace).then(|| line.trim_start())?;
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().map(String::from);
        let (uri, suite) = (words.next()?, words.next()?);
        let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(String::from);
        Some(HostEntry { uris: vec![uri], suites: vec![suite], components: words.collect(), signed_by })
    };
    text.lines().filter_map(one).collect()
}

/// What `repository` means on a host with these entries; `mirror` (from `--mirror ID=URL`) takes
/// the URL's place. An empty answer for a suite is an error that says what to do.
pub fn choose(repository: &Repository, host: &[HostEntry], mirror: Option<&str>) -> Result<Vec<Source>, String> {
    let pinned = repository.trust == Trust::Pinned;
    let source = |uri: &str, suite: &str, components: Vec<String>, keyring: Option<String>| Source {
        repository: repository.id.clone(),
        uri: uri.trim_end_matches('/').to_string(),
        suite: suite.to_string(),
        components,
        keyring,
        pinned,
    };
    let own = match (&repository.url, mirror) {
        (_, Some(url)) => Some(url),
        (RepositoryUrl::Url(url), None) => Some(url.as_str()),
        (RepositoryUrl::Host, None) => None,
    };
    if let Some(url) = own {
        let one = |suite: &String| source(url, suite, repository.components.clone(), repository.keyring.clone());
        return Ok(repository.suites.iter().map(one).collect());
    }
    let mut found = Vec::new();
    for suite in &repository.suites {
        let before = found.len();
        for entry in host.iter().filter(|e| is_meant(e, suite, repository)) {
            let keyring = repository.keyring.clone().or_else(|| entry.signed_by.clone());
            for uri in &entry.uris {
                found.push(source(uri, suite, shared(&entry.components, &repository.components), keyring.clone()));
            }
        }
        if found.len() == before {
            return Err(format!(
                "repository {}: none of this host's apt sources carries suite {suite} with component {}; \
                 add one, or name a mirror with --mirror {}=URL",
                repository.id,
                repository.components.join(" or "),
                repository.id
            ));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn is_meant(entry: &HostEntry, suite: &str, repository: &Repository) -> bool {
    let keys_agree = match (&repository.keyring, &entry.signed_by) {
        (Some(wanted), Some(theirs)) => wanted == theirs,
        _ => true,
    };
    entry.suites.iter().any(|s| s == suite)
        && keys_agree
        && !shared(&entry.components, &repository.components).is_empty()
}

/// The wanted components that the entry carries; all of the entry's when none is named.
fn shared(entry: &[String], wanted: &[String]) -> Vec<String> {
    entry.iter().filter(|c| wanted.is_empty() || wanted.contains(c)).cloned().collect()
}

/// The sources as one `.sources` file.
pub fn render(sources: &[Source]) -> String {
    let mut text = String::new();
    for s in sources {
        text += &format!("Types: deb\nURIs: {}\nSuites: {}\n", s.uri, s.suite);
        if !s.components.is_empty() {
            text += &format!("Components: {}\n", s.components.join(" "));
        }
        if let Some(keyring) = s.keyring.as_ref().filter(|_| !s.pinned) {
            text += &format!("Signed-By: {keyring}\n");
        }
        if s.pinned {
            text += "Trusted: yes\n";
        }
        text.push('\n');
    }
    text
}

/// Where packages of each repository may be fetched from, in order.
pub fn bases(sources: &[Source]) -> BTreeMap<String, Vec<String>> {
    let mut bases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources {
        let of = bases.entry(source.repository.clone()).or_default();
        if !of.contains(&source.uri) {
            of.push(source.uri.clone());
        }
    }
    bases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Preload;

    fn debian() -> Repository {
        Repository {
            id: "debian".into(),
            url: RepositoryUrl::Host,
            suites: vec!["bookworm".into(), "bookworm-security".into()],
            components: vec!["main".into()],
            keyring: None,
            trust: Trust::Signed { gpgkey: None },
            preload: Preload::None,
            priority: 10,
            exclude: Vec::new(),
        }
    }

    const HOST: &str = "Types: deb\n# a comment\nURIs: http://m/debian/\nSuites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://m/debian-security\nSuites: bookworm-security\nComponents: main\n\nTypes: deb\nURIs: http://off\nSuites: bookworm\nComponents: main\nEnabled: no\n\nTypes: deb-src\nURIs: http://src\nSuites: bookworm\nComponents: main\n";

    #[test]
    fn only_the_entries_of_the_wanted_suites_are_taken() {
        let mut host = parse_deb822(HOST);
        host.extend(parse_list(
            "# deb http://no bookworm main\ndeb [arch=amd64 signed-by=/d.gpg] http://vendor/debian bookworm stable\ndeb-src http://no bookworm main\ndeb http://node nodistro main\n",
        ));
        let found = choose(&debian(), &host, None).unwrap();
        let short: Vec<_> = found.iter().map(|s| (s.uri.as_str(), s.suite.as_str(), s.components.join(" "))).collect();
        assert_eq!(
            short,
            [
                ("http://m/debian", "bookworm", "main".to_string()),
                ("http://m/debian-security", "bookworm-security", "main".to_string())
            ]
        );
        assert_eq!(found[0].keyring.as_deref(), Some("/k.gpg"));
        assert_eq!(bases(&found)["debian"], ["http://m/debian", "http://m/debian-security"]);
        assert!(render(&found).contains("Signed-By: /k.gpg"));
    }

    #[test]
    fn a_suite_that_nobody_carries_is_an_error_with_the_next_step() {
        let error = choose(&debian(), &parse_list("deb http://m/debian bookworm main"), None).unwrap_err();
        assert!(error.contains("bookworm-security") && error.contains("--mirror debian=URL"), "{error}");
    }

    #[test]
    fn a_mirror_takes_the_place_of_the_host() {
        let found = choose(&debian(), &[], Some("http://mirror/debian/")).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|s| s.uri == "http://mirror/debian" && s.components == ["main"]));
    }
}
