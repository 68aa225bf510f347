//! apt's `Release` files: their date and the digests of the indexes that they vouch for. Whether
//! the file itself is to be believed is [`super::verify`]'s business.

use super::deb822;
use std::collections::BTreeMap;

/// A parsed `Release` (or the verified content of an `InRelease`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Unix seconds.
    pub date: u64,
    /// Path below the suite -> (sha256 in hex, bytes).
    pub sha256: BTreeMap<String, (String, u64)>,
}

/// Parses the text. Without SHA256 digests (only MD5 or SHA-1) it is refused.
pub fn parse(text: &str) -> Result<Release, String> {
    let stanzas = deb822::stanzas(text);
    let stanza = stanzas.first().ok_or("release file is empty")?;
    let date = stanza.get("Date").ok_or("release file has no Date")?;
    let date = unix_date(date).ok_or_else(|| format!("release file has the malformed Date {date:?}"))?;
    let digests = stanza.get("SHA256").ok_or("release file has no SHA256 digests; older kinds are not accepted")?;
    let mut sha256 = BTreeMap::new();
    for line in digests.lines().filter(|l| !l.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [digest, size, path] = words[..] else {
            return Err(format!("release file has the malformed line {line:?}"));
        };
        let size = size.parse().map_err(|_| format!("release file has the malformed line {line:?}"))?;
        sha256.insert(path.to_string(), (digest.to_string(), size));
    }
    Ok(Release { date, sha256 })
}

/// Judges gpgv's `--status-fd` lines: at least one good signature made with a digest that still
/// means something, and no bad one. Signatures by keys that the keyring lacks do not count.
pub fn judge_signatures(status: &str) -> Result<(), String> {
    /// RFC 4880 §9.4: MD5, SHA-1, RIPE-MD/160.
    const WEAK_DIGESTS: [&str; 3] = ["1", "2", "3"];
    let (mut good, mut strong, mut reasons) = (false, false, Vec::new());
    for line in status.lines().filter_map(|l| l.strip_prefix("[GNUPG:] ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first().copied().unwrap_or_default() {
            "BADSIG" => return Err(format!("signature does not match: {line}")),
            "GOODSIG" => good = true,
            // VALIDSIG fingerprint date time expiry version reserved key-algorithm digest-algorithm …
            "VALIDSIG" if good => match words.get(8) {
                Some(digest) if !WEAK_DIGESTS.contains(digest) => strong = true,
                _ => reasons.push(format!("weak digest: {line}")),
            },
            "NEWSIG" => good = false,
            "EXPKEYSIG" | "EXPSIG" | "REVKEYSIG" | "ERRSIG" | "NO_PUBKEY" | "NODATA" => reasons.push(line.to_string()),
            _ => {}
        }
    }
    if strong { Ok(()) } else { Err(format!("no good signature by a key of the keyring ({})", reasons.join("; "))) }
}

/// `Sat, 17 May 2025 09:03:45 UTC` as Unix seconds (RFC 5322 §3.3; UTC, GMT and +0000 only, as apt writes it).
pub fn unix_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let words: Vec<&str> = text.split_whitespace().collect();
    let [day, month, year, time, zone] = words[..] else { return None };
    if !matches!(zone, "UTC" | "GMT" | "+0000" | "Z") {
        return None;
    }
    let month = MONTHS.iter().position(|m| *m == month)? as i64 + 1;
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u64> = time.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days(year, month, day) as u64 * 86400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 in the Gregorian calendar (years counted from March, so that the leap day comes last).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_unix_seconds() {
        for (text, want) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", Some(0)),
            ("Sat, 17 May 2025 09:03:45 UTC", Some(1_747_472_625)),
            ("Thu, 29 Feb 2024 23:59:59 +0000", Some(1_709_251_199)),
            ("Sun, 22 Nov 2026 13:58:06 GMT", Some(1_795_355_886)),
            ("Sat, 17 May 2025 09:03:45 CEST", None),
            ("Sat, 17 May 2025", None),
            ("Sat, 99 May 2025 09:03:45 UTC", None),
            ("", None),
        ] {
            assert_eq!(unix_date(text), want, "{text:?}");
        }
    }

    #[test]
    fn one_good_strong_signature_is_needed_and_no_bad_one() {
        let valid = |digest: u32| format!("[GNUPG:] VALIDSIG AB12 2025-05-17 1747472600 0 4 0 1 {digest} 01 AB12\n");
        let good = format!("[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 12 Debian\n{}", valid(8));
        let missing = "[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG 12 1 8 01 17 9 -\n[GNUPG:] NO_PUBKEY 12\n";
        for (status, want) in [
            (good.clone(), true),
            (format!("{missing}{good}"), true),
            (missing.to_string(), false),
            (good.replace(&valid(8), &valid(2)), false),
            (format!("[GNUPG:] NEWSIG\n[GNUPG:] EXPKEYSIG 12 Debian\n{}", valid(8)), false),
            (format!("{good}[GNUPG:] NEWSIG\n[GNUPG:] BADSIG 12 Debian\n"), false),
            (String::new(), false),
        ] {
            assert_eq!(judge_signatures(&status).is_ok(), want, "{status}");
        }
    }

    #[test]
    fn only_sha256_counts() {
        let head = "Origin: Debian\nDate: Sat, 17 May 2025 09:03:45 UTC\n";
        let digest = "a".repeat(64);
        let good = parse(&format!("{head}SHA256:\n {digest} 12 main/binary-amd64/Packages\n")).unwrap();
        assert_eq!(good.sha256["main/binary-amd64/Packages"], (digest, 12));
        let weak = parse(&format!("{head}SHA1:\n {} 12 main/binary-amd64/Packages\n", "a".repeat(40)));
        assert!(weak.unwrap_err().contains("no SHA256"));
        assert!(parse(&format!("{head}SHA256:\n one two\n")).is_err());
    }
}
