//! What a backup of a site's server holds, and whether files are one. A manifest names every member
//! with its size and sha256, a seal names the manifest, in the form that `sha256sum -c` reads. What
//! the server makes again (images in use, the witness beside the ledger) does not belong in.

use crate::image::id::Digest;
use serde::{Deserialize, Serialize};

/// The archive begins with these two.
pub const MANIFEST: &str = "manifest.json";
pub const SEAL: &str = "manifest.sha256";
/// Longest manifest and seal that are read, bytes.
pub const MANIFEST_MAX_BYTES: u64 = 64 * 1024;

pub const LEDGER: &str = "ledger.sqlite";
pub const KEYS: [&str; 3] = ["tls.key", "ca.key", "credential.key"];
pub const SECRETS: &str = "secrets.toml";
pub const SITE: &str = "site.toml";
/// The other members, in the archive's order. Secrets may be absent: a site need not have any.
pub const MEMBERS: [&str; 6] = [LEDGER, KEYS[0], KEYS[1], KEYS[2], SECRETS, SITE];
/// What a restore must not find. SQLite would play a journal that lies beside a ledger into it.
pub const IN_THE_WAY: [&str; 9] = [
    LEDGER,
    "ledger.sqlite-wal",
    "ledger.sqlite-shm",
    "ledger.sqlite-journal",
    KEYS[0],
    KEYS[1],
    KEYS[2],
    SECRETS,
    SITE,
];

/// Raised when an older kiln could not restore it any more.
const FORMAT: u32 = 1;

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub name: String,
    pub size: u64,
    pub sha256: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Version of the kiln that made it.
    pub kiln: String,
    pub cluster: String,
    /// Unix milliseconds; for people.
    pub made_ms: u64,
    /// The ledger's last revision.
    pub head: u64,
    pub members: Vec<Member>,
}

impl Manifest {
    pub fn new(cluster: &str, made_ms: u64, head: u64, members: Vec<Member>) -> Manifest {
        let kiln = env!("CARGO_PKG_VERSION").to_string();
        Manifest { format: FORMAT, kiln, cluster: cluster.to_string(), made_ms, head, members }
    }

    /// The bytes of [`MANIFEST`] and of [`SEAL`].
    pub fn encode(&self) -> Result<(Vec<u8>, Vec<u8>), String> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| e.to_string())?;
        bytes.push(b'\n');
        let seal = seal(&bytes);
        Ok((bytes, seal))
    }

    /// Reads a manifest that its seal fits and whose members are those of a backup.
    pub fn parse(bytes: &[u8], sealed: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        if sealed != seal(bytes) {
            return Err(format!("{SEAL} does not fit {MANIFEST}"));
        }
        let found: Format = serde_json::from_slice(bytes).map_err(|e| format!("{MANIFEST}: {e}"))?;
        if found.format != FORMAT {
            return Err(format!("it has format {}, this kiln knows {FORMAT}: use the kiln that made it", found.format));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| format!("{MANIFEST}: {e}"))?;
        let names: Vec<&str> = manifest.members.iter().map(|m| m.name.as_str()).collect();
        let bare: Vec<&str> = MEMBERS.into_iter().filter(|name| *name != SECRETS).collect();
        if names != MEMBERS && names != bare {
            return Err(format!("its members are {names:?}, not {MEMBERS:?}"));
        }
        Ok(manifest)
    }

    pub fn has_secrets(&self) -> bool {
        self.members.iter().any(|m| m.name == SECRETS)
    }
}

impl Member {
    /// Whether what was read under this name is it.
    pub fn check(&self, size: u64, sha256: &Digest) -> Result<(), String> {
        if size != self.size {
            return Err(format!("{} has {size} bytes, not {}", self.name, self.size));
        }
        if *sha256 != self.sha256 {
            return Err(format!("{} does not have the sha256 that the manifest says", self.name));
        }
        Ok(())
    }
}

fn seal(manifest: &[u8]) -> Vec<u8> {
    format!("{}  {MANIFEST}\n", Digest::of(manifest).hex()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(names: &[&str]) -> Manifest {
        let member = |name: &&str| Member { name: name.to_string(), size: 3, sha256: Digest::of(b"abc") };
        Manifest::new("test", 7, 5, names.iter().map(member).collect())
    }

    #[test]
    fn only_a_sealed_manifest_of_these_members_is_one() {
        let with = |index: usize, name: &'static str| {
            let mut names = MEMBERS;
            names[index] = name;
            manifest(&names)
        };
        let newer = Manifest { format: FORMAT + 1, ..manifest(&MEMBERS) };
        for (label, manifest, good) in [
            ("all", manifest(&MEMBERS), true),
            ("a site without secrets", manifest(&["ledger.sqlite", "tls.key", "ca.key", "credential.key", SITE]), true),
            ("none", manifest(&[]), false),
            ("without a key", manifest(&["ledger.sqlite", "tls.key", "ca.key", SECRETS, SITE]), false),
            ("one more", manifest(&[&MEMBERS[..], &["more"]].concat()), false),
            ("one twice", manifest(&[&MEMBERS[..], &[SITE]].concat()), false),
            ("another order", manifest(&[SITE, LEDGER, "tls.key", "ca.key", "credential.key"]), false),
            ("a way out", with(5, "../site.toml"), false),
            ("another name", with(0, "/etc/shadow"), false),
            ("a newer kiln's", newer, false),
        ] {
            let (bytes, seal) = manifest.encode().unwrap();
            let parsed = Manifest::parse(&bytes, &seal);
            assert_eq!(parsed.is_ok(), good, "{label}: {parsed:?}");
            assert!(!good || parsed.unwrap() == manifest, "{label}");
        }
    }

    #[test]
    fn every_flipped_bit_of_manifest_or_seal_is_seen() {
        let (bytes, seal) = manifest(&MEMBERS).encode().unwrap();
        for at in 0..(bytes.len() + seal.len()) * 8 {
            let (mut bytes, mut seal) = (bytes.clone(), seal.clone());
            match at / 8 {
                byte if byte < bytes.len() => bytes[byte] ^= 1 << (at % 8),
                byte => seal[byte - bytes.len()] ^= 1 << (at % 8),
            }
            assert!(Manifest::parse(&bytes, &seal).is_err(), "bit {at}");
        }
        assert!(Manifest::parse(&bytes, &seal[..seal.len() - 1]).is_err());
        assert!(Manifest::parse(b"", b"").is_err());
    }

    #[test]
    fn a_member_is_its_size_and_digest() {
        let member = &manifest(&MEMBERS).members[0];
        assert!(member.check(3, &Digest::of(b"abc")).is_ok());
        assert!(member.check(2, &Digest::of(b"abc")).is_err());
        assert!(member.check(3, &Digest::of(b"abd")).is_err());
        assert!(MEMBERS.iter().all(|name| IN_THE_WAY.contains(name)));
    }
}
