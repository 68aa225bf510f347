//! Method and target of a request to the nodes' plain side -> what is asked. Names map to known
//! things, never to files: there is no path to traverse.

use crate::image::id::{Digest, ImageId};
use crate::pxe::script::ARCHITECTURES;
use crate::site::{Mac, Uuid};

/// Longest request target, bytes.
pub const TARGET_MAX_BYTES: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Script(ScriptQuery),
    Blob(Digest),
    Manifest(ImageId),
    /// A file of a preloaded repository: the repository's blob, the path in it.
    Repository(Digest, String),
    /// A boot loader by its name.
    Loader(String),
    Phase,
}

/// `/boot/script?mac=…&uuid=…&arch=…`; further keys are tolerated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptQuery {
    pub mac: Mac,
    /// Placeholders of vendors count as absent.
    pub uuid: Option<Uuid>,
    /// iPXE's `${buildarch}`.
    pub arch: Option<&'static str>,
    /// iPXE's `${platform}`.
    pub platform: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// 400, with what is wrong.
    #[error("{0}")]
    Bad(String),
    #[error("nothing of that name here")]
    NotFound,
    /// 405, with what is allowed.
    #[error("this can be asked with {0}")]
    Method(&'static str),
}

/// `target` in origin or absolute form.
pub fn route(method: &str, target: &str) -> Result<Route, RouteError> {
    if target.len() > TARGET_MAX_BYTES || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(RouteError::Bad("request target is too long or not printable ASCII".into()));
    }
    // Firmware sends what the URI said; proxies send the absolute form.
    let origin = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    if !path.starts_with('/') {
        return Err(RouteError::Bad("request target is not a path".into()));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let route = match parts[..] {
        ["boot", "script"] => Route::Script(script_query(query)?),
        ["blobs", "sha256", hex] => Route::Blob(digest(hex)?),
        ["images", id, "manifest"] => Route::Manifest(digest(id)?),
        ["repos", id, .., _] => {
            let path = decode(&parts[2..].join("/")).ok_or(RouteError::NotFound)?;
            Route::Repository(digest(id)?, path)
        }
        ["loaders", name] => Route::Loader(name.to_string()),
        ["v1", "phase"] => Route::Phase,
        _ => return Err(RouteError::NotFound),
    };
    match (&route, method) {
        (Route::Phase, "POST") => Ok(route),
        (Route::Phase, _) => Err(RouteError::Method("POST")),
        (_, "GET" | "HEAD") => Ok(route),
        _ => Err(RouteError::Method("GET, HEAD")),
    }
}

/// A name that is no digest is simply not here.
fn digest(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(|_| RouteError::NotFound)
}

fn script_query(query: &str) -> Result<ScriptQuery, RouteError> {
    let (mut mac, mut uuid, mut arch, mut platform) = (None, None, None, None);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| RouteError::Bad(format!("value of {key:?} is not percent-encoded")))?;
        match key {
            "mac" => mac = Some(value.parse::<Mac>().map_err(RouteError::Bad)?),
            "uuid" if value.is_empty() => {}
            "uuid" => uuid = Some(value.parse::<Uuid>().map_err(RouteError::Bad)?),
            "arch" => arch = ARCHITECTURES.into_iter().find(|a| *a == value),
            "platform" => platform = ["pcbios", "efi"].into_iter().find(|p| *p == value),
            _ => {}
        }
    }
    let mac = mac.ok_or_else(|| RouteError::Bad("boot script asked without mac=".into()))?;
    Ok(ScriptQuery { mac, uuid: uuid.filter(|u| !u.is_junk()), arch, platform })
}

/// Percent-decoding to printable ASCII; `None` for anything else.
fn decode(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (String::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let (high, low) = (hex_digit(bytes.next()?)?, hex_digit(bytes.next()?)?);
            high * 16 + low
        } else {
            byte
        };
        if !(byte.is_ascii_graphic() || byte == b' ') {
            return None;
        }
        out.push(char::from(byte));
    }
    Some(out)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn targets_name_known_things() {
        let hex = "ab".repeat(32);
        let blob = Route::Blob(hex.parse().unwrap());
        let bad = |e: &Result<Route, RouteError>| matches!(e, Err(RouteError::Bad(_)));
        assert_eq!(route("GET", &format!("/blobs/sha256/{hex}")), Ok(blob.clone()));
        assert_eq!(route("HEAD", &format!("//blobs//sha256/{hex}")), Ok(blob.clone()));
        assert_eq!(route("GET", &format!("http://10.0.0.1:8080/blobs/sha256/{hex}")), Ok(blob));
        assert_eq!(route("GET", &format!("/images/sha256:{hex}/manifest")), Ok(Route::Manifest(hex.parse().unwrap())));
        assert_eq!(route("GET", "/loaders/snponly.efi"), Ok(Route::Loader("snponly.efi".into())));
        let file = |path: &str| Ok(Route::Repository(hex.parse().unwrap(), path.into()));
        assert_eq!(route("GET", &format!("/repos/{hex}/repodata/repomd.xml")), file("repodata/repomd.xml"));
        assert_eq!(route("HEAD", &format!("/repos/{hex}//Packages/a%2b%2B-1.rpm")), file("Packages/a++-1.rpm"));
        assert_eq!(route("GET", &format!("/repos/{hex}/")), Err(RouteError::NotFound));
        assert_eq!(route("GET", &format!("/repos/{hex}/a%0a")), Err(RouteError::NotFound));
        assert_eq!(route("POST", "/v1/phase"), Ok(Route::Phase));
        assert_eq!(route("GET", "/v1/phase"), Err(RouteError::Method("POST")));
        assert_eq!(route("PUT", &format!("/blobs/sha256/{hex}")), Err(RouteError::Method("GET, HEAD")));
        for nothing in ["/", "/blobs/sha256/../../etc/passwd", "/blobs/sha256/xyz", "/blobs/%2e%2e/x", "/v1/register"] {
            assert_eq!(route("GET", nothing), Err(RouteError::NotFound), "{nothing}");
        }
        for wrong in ["boot", "/boot/script", "/boot/script?mac=1", "/boot/script?mac=01:00:00:00:00:00", "*"] {
            assert!(bad(&route("GET", wrong)), "{wrong}");
        }
    }

    #[test]
    fn a_script_is_asked_for_by_mac_and_uuid() {
        let want = |uuid: Option<&str>, arch| {
            Ok(Route::Script(ScriptQuery {
                mac: "52:54:00:00:00:01".parse().unwrap(),
                uuid: uuid.map(|u| u.parse().unwrap()),
                arch,
                platform: None,
            }))
        };
        let uuid = "4c4c4544-0039-4a10-8052-b4c04f4d3332";
        assert_eq!(route("GET", "/boot/script?mac=52-54-00-00-00-01"), want(None, None));
        assert_eq!(route("GET", "/boot/script?mac=52%3A54%3a00:00:00:01&uuid="), want(None, None));
        let full = format!("/boot/script?serial=%20x&uuid={uuid}&arch=x86_64&mac=52:54:00:00:00:01");
        assert_eq!(route("GET", &full), want(Some(uuid), Some("x86_64")));
        let junk = "/boot/script?mac=52:54:00:00:00:01&uuid=ffffffff-ffff-ffff-ffff-ffffffffffff";
        assert_eq!(route("GET", junk), want(None, None));
        for wrong in ["uuid=1", "uuid=%zz", "uuid=%0a", "mac=%"] {
            let target = format!("/boot/script?mac=52:54:00:00:00:01&{wrong}");
            assert!(matches!(route("GET", &target), Err(RouteError::Bad(_))), "{target}");
        }
    }

    proptest! {
        #[test]
        fn no_target_is_a_panic(method in "[A-Z]{0,8}", target in "\\PC{0,80}|/boot/script\\?[%&=a-f0-9:-]{0,60}") {
            let _ = route(&method, &target);
        }
    }
}
