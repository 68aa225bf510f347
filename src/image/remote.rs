//! Names in a registry, and what a registry's challenge asks for. Pure text; the talking is
//! [`super::registry`]'s.
//!
//! OCI distribution: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>

use super::id::Digest;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Of a repository's name and of a tag.
const NAME_MAX_BYTES: usize = 255;
const TAG_MAX_BYTES: usize = 128;

/// `[http://]host[:port]/repository[:tag|@digest]`. Without a scheme it is https, or http for a loopback address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub tls: bool,
    /// With the port where one is given.
    pub host: String,
    pub repository: String,
    pub pick: Pick,
}

/// Which manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    Tag(String),
    Digest(Digest),
}

impl Remote {
    /// `https://host/v2/repository`: the start of every request.
    pub fn base(&self) -> String {
        format!("{}://{}/v2/{}", if self.tls { "https" } else { "http" }, self.host, self.repository)
    }
}

impl FromStr for Remote {
    type Err = String;
    fn from_str(text: &str) -> Result<Remote, String> {
        let bad =
            |what: &str| format!("{text:?} is no name in a registry (host[:port]/repository[:tag|@digest]): {what}");
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (host, path) = rest.split_once('/').ok_or_else(|| bad("it has no '/'"))?;
        let host_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_');
        if host.is_empty() || !host.bytes().all(host_ok) {
            return Err(bad("its host is not one"));
        }
        if !host.contains(['.', ':']) && host != "localhost" {
            return Err(bad("name the registry's host first, e.g. registry.example.org/zed/test"));
        }
        let tls = match scheme {
            "" => !is_loopback(host),
            "https" | "docker" | "oci" => true,
            "http" => false,
            other => return Err(bad(&format!("scheme {other:?} is neither http nor https"))),
        };
        let (repository, pick) = match path.split_once('@') {
            Some((path, digest)) if digest.starts_with("sha256:") => {
                let path = path.split_once(':').map_or(path, |(p, _)| p); // as docker: the digest wins
                (path, Pick::Digest(digest.parse().map_err(|e: String| bad(&e))?))
            }
            Some(_) => return Err(bad("only sha256 digests are known")),
            None => {
                let (path, tag) = path.split_once(':').unwrap_or((path, super::reference::TAG_DEFAULT));
                (path, Pick::Tag(tag.to_string()))
            }
        };
        let part = |p: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            p.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
                && p.bytes().next().is_some_and(plain)
                && p.bytes().last().is_some_and(plain)
        };
        if repository.len() > NAME_MAX_BYTES || !repository.split('/').all(part) {
            return Err(bad("a repository is lower-case letters, digits, '.', '_', '-' between '/'"));
        }
        if let Pick::Tag(tag) = &pick {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let plain = tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
            if !plain || tag.len() > TAG_MAX_BYTES || !tag.bytes().next().is_some_and(word) {
                return Err(bad("a tag is letters, digits, '.', '_', '-'"));
            }
        }
        Ok(Remote { tls, host: host.into(), repository: repository.into(), pick })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        match &self.pick {
            Pick::Tag(tag) => write!(f, ":{tag}"),
            Pick::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pick::Tag(tag) => f.write_str(tag),
            Pick::Digest(digest) => digest.fmt(f),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What a 401 asks for (`WWW-Authenticate`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    /// A token from `realm`, asked with those query parameters.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// `None`: a scheme that is not known.
    pub fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        let mut take = |name: &str| parameters.iter().position(|(n, _)| n == name).map(|at| parameters.remove(at).1);
        Some(Challenge::Bearer { realm: take("realm")?, service: take("service"), scope: take("scope") })
    }

    /// The URL that gives the token; nothing for [`Challenge::Basic`].
    pub fn token_url(&self) -> Option<String> {
        let Challenge::Bearer { realm, service, scope } = self else { return None };
        let mut url = realm.clone();
        for (name, value) in [("service", service), ("scope", scope)] {
            let Some(value) = value else { continue };
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", percent(value)));
        }
        Some(url)
    }
}

/// `name="value", name=value`: a comma within quotes belongs to the value.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.push((name.trim_matches([' ', ',']).to_ascii_lowercase(), value.trim().to_string()));
        rest = tail;
    }
    found
}

fn percent(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b',');
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_in_a_registry() {
        let hex = "ab".repeat(32);
        let digest = format!("registry.example.org/zed/test@sha256:{hex}");
        let rows = [
            ("localhost:5000/zed/test", Some("http://localhost:5000/v2/zed/test latest")),
            ("127.0.0.1:5000/test:v1", Some("http://127.0.0.1:5000/v2/test v1")),
            ("[::1]:5000/test:v1", Some("http://[::1]:5000/v2/test v1")),
            ("https://localhost/test", Some("https://localhost/v2/test latest")),
            ("http://registry.lan/a/b/c:T.1", Some("http://registry.lan/v2/a/b/c T.1")),
            ("docker://registry.example.org/a", Some("https://registry.example.org/v2/a latest")),
            ("zed/test", None),
            ("registry.example.org", None),
            ("registry.example.org/", None),
            ("registry.example.org/UPPER", None),
            ("registry.example.org/a/../b", None),
            ("registry.example.org/a//b", None),
            ("registry.example.org/a:-x", None),
            ("registry.example.org/a:", None),
            ("registry.example.org/a?x=1", None),
            ("user:pw@registry.example.org/a", None),
            ("ftp://registry.example.org/a", None),
            ("registry.example.org/a@md5:00", None),
            ("registry.example.org/a@sha256:00", None),
        ];
        for (text, expected) in rows {
            let shown = text.parse::<Remote>().ok().map(|r| format!("{} {}", r.base(), r.pick));
            assert_eq!(shown.as_deref(), expected, "{text}");
        }
        assert_eq!(digest.parse::<Remote>().unwrap().pick, Pick::Digest(hex.parse().unwrap()));
    }

    #[test]
    fn challenges() {
        let bearer =
            r#"Bearer realm="https://auth.example.org/token",service="registry",scope="repository:a/b:pull,push""#;
        let rows = [
            ("Basic realm=\"x\"", Some(None)),
            ("basic", Some(None)),
            (bearer, Some(Some("https://auth.example.org/token?service=registry&scope=repository:a/b:pull,push"))),
            ("Bearer realm=https://a/t?x=1, service=a b", Some(Some("https://a/t?x=1&service=a%20b"))),
            ("Bearer service=\"x\"", None),
            ("Negotiate", None),
            ("", None),
        ];
        for (header, expected) in rows {
            let parsed = Challenge::parse(header).map(|c| c.token_url());
            assert_eq!(parsed.as_ref().map(|u| u.as_deref()), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in ".*", header in "(Bearer|Basic|) ?[a-z=\", ]{0,40}") {
            let _ = (text.parse::<Remote>(), Challenge::parse(&text), Challenge::parse(&header).map(|c| c.token_url()));
        }
    }
}
