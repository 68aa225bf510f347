//! As much of OpenPGP (RFC 4880) as is needed to name keys and signatures: whose, how old in kind,
//! how weak. Nothing is verified here; gpgv does that, and [`judge`] reads what it says.

use super::digest::{self, Kind};
use base64::Engine as _;

/// Keys in one file.
const KEYS_MAX: usize = 1000;
const ARMOUR: &str = "-----BEGIN PGP ";

/// A public key with what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Hexadecimal, lower case.
    pub fingerprint: String,
    /// The first user id.
    pub user: String,
    /// Each of its own signatures on itself is made with SHA-1 (or MD5): distributions of the el7 era.
    pub weak: bool,
}

/// A signature packet's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub version: u8,
    /// 16 hexadecimal digits, lower case; `None`: it does not say who made it.
    pub key: Option<String>,
    pub digest: Option<Kind>,
    kind: u8,
}

/// Packets in binary form; armour is taken off.
pub fn binary(bytes: &[u8], what: &str) -> Result<Vec<u8>, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(bytes.to_vec()) };
    let mut all = Vec::new();
    for block in text.split(ARMOUR).skip(1) {
        let block = block.split("-----END").next().unwrap_or_default().replace('\r', "");
        // Headers such as `Version:` end at an empty line; Debian's keyrings have none of them.
        let body = block.split_once("\n\n").or_else(|| block.split_once('\n')).map_or("", |(_, body)| body);
        let data: String = body.lines().filter(|l| !l.starts_with('=')).map(str::trim).collect();
        let decoded = base64::engine::general_purpose::STANDARD.decode(data);
        all.extend(decoded.map_err(|e| format!("{what}: armour does not decode: {e}"))?);
    }
    if all.is_empty() { Err(format!("{what} holds no OpenPGP data")) } else { Ok(all) }
}

/// (tag, body) of each packet. Ends at the first that cannot be read.
fn packets(mut rest: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let Some((tag, length, head)) = packet_head(rest) {
        let Some(body) = head.checked_add(length).and_then(|end| rest.get(head..end)) else { break };
        found.push((tag, body));
        rest = &rest[head + length..];
    }
    found
}

/// Tag, length of the body, length of the head (RFC 4880 §4.2). Partial lengths are only for data packets.
fn packet_head(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let number =
        |at: usize, n: usize| Some(bytes.get(at..at + n)?.iter().fold(0usize, |all, b| (all << 8) | usize::from(*b)));
    let first = *bytes.first()?;
    if first & 0x80 == 0 {
        return None;
    }
    if first & 0x40 != 0 {
        let (length, head) = match *bytes.get(1)? {
            n @ 0..=191 => (usize::from(n), 2),
            n @ 192..=223 => (((usize::from(n) - 192) << 8) + usize::from(*bytes.get(2)?) + 192, 3),
            255 => (number(2, 4)?, 6),
            _ => return None,
        };
        return Some((first & 0x3f, length, head));
    }
    let (length, head) = match first & 3 {
        0 => (number(1, 1)?, 2),
        1 => (number(1, 2)?, 3),
        2 => (number(1, 4)?, 5),
        _ => return None,
    };
    Some(((first >> 2) & 0x0f, length, head))
}

/// The primary keys of a binary keyring.
pub fn keys(bytes: &[u8]) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    let mut inside_subkey = false;
    for (tag, body) in packets(bytes) {
        if tag == 6 && keys.len() < KEYS_MAX {
            inside_subkey = false;
            keys.push(Key { fingerprint: fingerprint(body), user: String::new(), weak: true });
            continue;
        }
        match (tag, keys.last_mut()) {
            (14, _) => inside_subkey = true,
            (13, Some(key)) if key.user.is_empty() => key.user = String::from_utf8_lossy(body).into_owned(),
            // Certifications (0x10 to 0x13) by itself; others' do not count.
            (2, Some(key)) if !inside_subkey => {
                let own = signature_body(body).filter(|s| {
                    matches!(s.kind, 0x10..=0x13) && s.key.as_ref().is_none_or(|id| key.fingerprint.ends_with(id))
                });
                if own.is_some_and(|s| !matches!(s.digest, Some(Kind::Md5 | Kind::Sha1))) {
                    key.weak = false;
                }
            }
            _ => {}
        }
    }
    keys
}

/// RFC 4880 §12.2; version 3 keys have no such thing and are named by their modulus' end.
fn fingerprint(body: &[u8]) -> String {
    if body.first() != Some(&4) {
        return digest::hex(&body[body.len().saturating_sub(8)..]);
    }
    let mut all = vec![0x99];
    all.extend((body.len() as u16).to_be_bytes());
    all.extend(body);
    digest::of(Kind::Sha1, &all).hex
}

/// The first signature of a packet stream.
pub fn signature(bytes: &[u8]) -> Option<Signature> {
    packets(bytes).into_iter().find(|(tag, _)| *tag == 2).and_then(|(_, body)| signature_body(body))
}

fn signature_body(body: &[u8]) -> Option<Signature> {
    let version = *body.first()?;
    if version == 3 {
        let key = digest::hex(body.get(7..15)?);
        let digest = Kind::of_number(u32::from(*body.get(16)?));
        return Some(Signature { version, key: Some(key), digest, kind: *body.get(2)? });
    }
    if version != 4 {
        return None;
    }
    let digest = Kind::of_number(u32::from(*body.get(3)?));
    let size = |at: usize| Some(usize::from(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?)));
    let hashed = size(4)?;
    let unhashed = size(6 + hashed)?;
    let key = issuer(body.get(6..6 + hashed)?).or_else(|| issuer(body.get(8 + hashed..8 + hashed + unhashed)?));
    Some(Signature { version, key, digest, kind: *body.get(1)? })
}

/// Who made it, by subpackets 16 (key id) or 33 (fingerprint).
fn issuer(mut area: &[u8]) -> Option<String> {
    while !area.is_empty() {
        let (length, head): (usize, usize) = match area[0] {
            n @ 0..=191 => (usize::from(n), 1),
            n @ 192..=254 => (((usize::from(n) - 192) << 8) + usize::from(*area.get(1)?) + 192, 2),
            255 => (u32::from_be_bytes(area.get(1..5)?.try_into().ok()?) as usize, 5),
        };
        let packet = area.get(head..head.checked_add(length)?)?;
        match packet.split_first() {
            Some((kind, id)) if kind & 0x7f == 16 && id.len() == 8 => return Some(digest::hex(id)),
            Some((kind, id)) if kind & 0x7f == 33 && id.len() == 21 => return Some(digest::hex(&id[13..])),
            _ => area = &area[head + length..],
        }
    }
    None
}

/// What gpgv found of one signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good {
        /// Fingerprint of the primary key, upper case as gpgv writes it.
        fingerprint: String,
        /// The signature is made with SHA-1.
        weak: bool,
        /// The key had an end of life, which has passed.
        expired: bool,
    },
    /// By a key that was not given.
    Unknown(String),
    Bad(String),
}

/// Judges gpgv's `--status-fd` lines for one signature of a yum repository or package. What rpm of
/// the el7 era accepts and time has overtaken (SHA-1, an expired key) is good with a mark; MD5 is not.
pub fn judge(status: &str) -> Verdict {
    let mut why = Vec::new();
    let (mut fingerprint, mut digest, mut expired) = (None, 0, false);
    for line in status.lines().filter_map(|l| l.strip_prefix("[GNUPG:] ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let word = |i: usize| words.get(i).copied().unwrap_or_default();
        match word(0) {
            "BADSIG" | "REVKEYSIG" | "EXPSIG" => return Verdict::Bad(line.to_string()),
            "NO_PUBKEY" => return Verdict::Unknown(word(1).to_ascii_lowercase()),
            "EXPKEYSIG" => expired = true,
            // VALIDSIG fingerprint date time expiry version reserved key-algorithm digest class [primary]
            "VALIDSIG" => {
                digest = word(8).parse().unwrap_or(0);
                fingerprint = Some(if word(10).is_empty() { word(1) } else { word(10) }.to_string());
            }
            "ERRSIG" | "NODATA" | "BADARMOR" | "FAILURE" => why.push(line),
            _ => {}
        }
    }
    match (fingerprint, Kind::of_number(digest)) {
        (Some(fingerprint), Some(kind)) if kind != Kind::Md5 && why.is_empty() => {
            Verdict::Good { fingerprint, weak: kind == Kind::Sha1, expired }
        }
        _ => Verdict::Bad(if why.is_empty() { "no signature that can be checked".into() } else { why.join("; ") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[0x80 | (tag << 2) | 1], &(body.len() as u16).to_be_bytes()[..], body].concat()
    }

    fn v4(kind: u8, digest: u8, issuer: &[u8]) -> Vec<u8> {
        let mut body = vec![4, kind, 1, digest, 0, 0, 0, 10, 9, 16];
        body.extend(issuer);
        body
    }

    #[test]
    fn keys_and_signatures_are_named() {
        let key = [&[4u8, 1, 2, 3, 4, 1][..], &[7; 30]].concat();
        let id = fingerprint(&key);
        let own: Vec<u8> = (24..40).step_by(2).map(|i| u8::from_str_radix(&id[i..i + 2], 16).unwrap()).collect();
        for (label, certifications, weak) in [
            ("sha1 alone", vec![v4(0x13, 2, &own)], true),
            ("sha256", vec![v4(0x13, 2, &own), v4(0x13, 8, &own)], false),
            ("somebody else's sha256", vec![v4(0x13, 2, &own), v4(0x10, 8, &[1; 8])], true),
            ("a revocation's sha256", vec![v4(0x13, 2, &own), v4(0x20, 8, &own)], true),
        ] {
            let mut ring = [packet(6, &key), packet(13, b"kiln <k@kiln.example>")].concat();
            ring.extend(certifications.iter().flat_map(|c| packet(2, c)));
            ring.extend([packet(14, &key), packet(2, &v4(0x18, 8, &own))].concat());
            let want = Key { fingerprint: id.clone(), user: "kiln <k@kiln.example>".into(), weak };
            assert_eq!(keys(&ring), [want], "{label}");
        }
        let old = [&[3u8, 5, 0, 1, 2, 3, 4][..], &[0xab; 8], &[1, 8, 0, 0]].concat();
        let found = signature(&packet(2, &old)).unwrap();
        assert_eq!(
            (found.version, found.key.as_deref(), found.digest),
            (3, Some("abababababababab"), Some(Kind::Sha256))
        );
    }

    #[test]
    fn gpgv_is_understood() {
        let valid = |digest: u32| format!("[GNUPG:] VALIDSIG AB12 2014-05-17 1400000000 0 3 0 1 {digest} 00 CD34\n");
        let good = |weak, expired| Verdict::Good { fingerprint: "CD34".into(), weak, expired };
        for (status, want) in [
            (format!("[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 12 C\n{}", valid(8)), good(false, false)),
            (format!("[GNUPG:] GOODSIG 12 C\n{}", valid(2)), good(true, false)),
            (format!("[GNUPG:] KEYEXPIRED 1\n[GNUPG:] EXPKEYSIG 12 C\n{}", valid(10)), good(false, true)),
            (
                "[GNUPG:] ERRSIG 12 1 8 00 17 9 -\n[GNUPG:] NO_PUBKEY 24C6A8A7F4A80EB5\n".into(),
                Verdict::Unknown("24c6a8a7f4a80eb5".into()),
            ),
        ] {
            assert_eq!(judge(&status), want, "{status}");
        }
        for status in [
            "[GNUPG:] BADSIG 12 C\n".to_string(),
            format!("{}[GNUPG:] BADSIG 12 C\n", valid(8)),
            format!("[GNUPG:] REVKEYSIG 12 C\n{}", valid(8)),
            valid(1),
            "[GNUPG:] NODATA 4\n".into(),
            String::new(),
        ] {
            assert!(matches!(judge(&status), Verdict::Bad(_)), "{status}");
        }
    }

    #[test]
    fn armour_comes_off_with_and_without_headers() {
        for text in [
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: x\n\naGVs\nbG8=\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n",
            "words\r\n-----BEGIN PGP SIGNATURE-----\r\n\r\naGVsbG8=\r\n-----END PGP SIGNATURE-----\r\n",
        ] {
            assert_eq!(binary(text.as_bytes(), "x").unwrap(), b"hello", "{text}");
        }
        assert_eq!(binary(&[0x99, 0xff], "x").unwrap(), [0x99, 0xff]);
        assert!(binary(b"no key at all", "key.asc").unwrap_err().contains("key.asc"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(0u8.., 0..200), tag in 0u8..16) {
            let _ = (keys(&bytes), signature(&bytes), signature(&packet(2, &bytes)), keys(&packet(tag, &bytes)));
            let _ = (binary(&bytes, "x"), judge(&String::from_utf8_lossy(&bytes)));
        }
    }
}
