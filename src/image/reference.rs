//! What an operator calls an image: `release/role[:tag]`, an id, or the beginning of one.

use super::id::{Digest, ImageId};
use std::fmt;
use std::str::FromStr;

/// The tag of a name that states none.
pub const TAG_DEFAULT: &str = "latest";
/// Fewer hex digits than this are no prefix of an id.
pub const PREFIX_MIN_DIGITS: usize = 4;
/// Length of each part of a name (a tag's bound in the OCI distribution specification).
const PART_MAX_BYTES: usize = 128;

/// `release/role:tag`: unique in a store, and what a tag's annotation in the index says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub release: String,
    pub role: String,
    pub tag: String,
}

/// An image as a command's argument names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Name(Name),
    Id(ImageId),
    /// At least [`PREFIX_MIN_DIGITS`] hex digits.
    Prefix(String),
}

impl Name {
    /// The name of an image whose config says `release` and `role`; `tag` is a bare tag or that whole name.
    pub fn of(release: &str, role: &str, tag: &str) -> Result<Name, String> {
        let name: Name = if tag.contains('/') { tag.parse()? } else { format!("{release}/{role}:{tag}").parse()? };
        if name.release != release || name.role != role {
            return Err(format!("the image is {release}/{role}: it cannot be named {name}"));
        }
        Ok(name)
    }
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Name, String> {
        let bad = |what: &str| format!("{text:?} is no image name (release/role[:tag]): {what}");
        let (release, rest) = text.split_once('/').ok_or_else(|| bad("it has no '/'"))?;
        let (role, tag) = rest.split_once(':').unwrap_or((rest, TAG_DEFAULT));
        for (what, part) in [("release", release), ("role", role)] {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
            if !is_part(part, plain) || part.starts_with('_') {
                return Err(bad(&format!("{what} {part:?} must be lower-case letters, digits, '.', '_', '-'")));
            }
        }
        if !is_part(tag, |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(bad(&format!("tag {tag:?} must be letters, digits, '.', '_', '-'")));
        }
        Ok(Name { release: release.into(), role: role.into(), tag: tag.into() })
    }
}

fn is_part(part: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let first = part.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && part.len() <= PART_MAX_BYTES
        && part.bytes().all(allowed)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.release, self.role, self.tag)
    }
}

impl FromStr for Reference {
    type Err = String;
    fn from_str(text: &str) -> Result<Reference, String> {
        if text.contains('/') {
            return text.parse().map(Reference::Name);
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match hex.len() {
            64 if digits => hex.parse().map(Reference::Id),
            PREFIX_MIN_DIGITS..64 if digits => Ok(Reference::Prefix(hex.into())),
            _ => Err(format!(
                "{text:?} is no image: say release/role[:tag], an id or at least {PREFIX_MIN_DIGITS} hex digits of one"
            )),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Name(name) => name.fmt(f),
            Reference::Id(id) => id.fmt(f),
            Reference::Prefix(prefix) => f.write_str(prefix),
        }
    }
}

/// The tag under which an image's signature is found where nothing lists referrers.
pub fn signature_tag(id: &Digest) -> String {
    format!("sha256-{}.sig", id.hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_told_apart() {
        let id = "ab".repeat(32);
        let rows = [
            ("zed/test", Some("zed/test:latest".to_string())),
            ("zed/test:2026.11", Some("zed/test:2026.11".to_string())),
            ("abcd", Some("abcd".to_string())),
            ("sha256:abcd", Some("abcd".to_string())),
            (&id, Some(format!("sha256:{id}"))),
            ("abc", None),
            ("ABCD", None),
            ("test", None),
            ("", None),
            ("zed/", None),
            ("/test", None),
            ("zed/test:", None),
            ("zed/../test", None),
            ("zed/..", None),
            ("zed/te st", None),
            ("Zed/test", None),
            ("zed/test:a:b", None),
            ("zed/test@sha256:00", None),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Reference>().ok().map(|r| r.to_string()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_tag_may_be_bare_or_the_images_own_name() {
        assert_eq!(Name::of("zed", "test", "v1").unwrap().to_string(), "zed/test:v1");
        assert_eq!(Name::of("zed", "test", "zed/test:v1").unwrap().to_string(), "zed/test:v1");
        assert!(Name::of("zed", "test", "zed/infra:v1").is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".*") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
