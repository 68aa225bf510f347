//! Where an index says that a file lies: a path below the repository, and nothing else.

/// Longer ones no file system takes.
const HREF_MAX_BYTES: usize = 4096;

/// `href` if it stays inside the repository.
pub fn inside(href: &str) -> Result<&str, String> {
    let short = |why: &str| Err(format!("location {:?} {why}", href.chars().take(200).collect::<String>()));
    if href.is_empty() || href.len() > HREF_MAX_BYTES {
        return short("is empty or too long");
    }
    if href.chars().any(|c| c.is_control() || c == '\\') {
        return short("has a character that no location may have");
    }
    // A server decodes `%2e%2e` before it looks.
    let decoded = decode(href);
    for form in [href.as_bytes(), &decoded] {
        let leaves =
            form.starts_with(b"/") || form.split(|b| *b == b'/').any(|part| part == b".." || part.contains(&0));
        if leaves || form.windows(3).any(|w| w == b"://") {
            return short("leaves the repository");
        }
    }
    Ok(href)
}

/// `href` as a part of a URL: what may not stand there is percent-encoded; `%` stays, it is one already.
pub fn encode(href: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/%+!$&'()*,;=:@".contains(&b);
    href.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let two = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match two.filter(|_| bytes[at] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_are_taken() {
        for (href, fine) in [
            ("Packages/a-1.0-1.x86_64.rpm", true),
            ("repodata/0a..b.xml.gz", true),
            ("a b+c~d^e.rpm", true),
            ("%41.rpm", true),
            ("", false),
            ("/etc/passwd", false),
            ("../../etc/passwd", false),
            ("a/../../b", false),
            ("a/..", false),
            ("%2e%2e/x", false),
            ("a/%2E./x", false),
            ("%2fetc/passwd", false),
            ("a%00b", false),
            ("file:///etc/passwd", false),
            ("a\\..\\b", false),
            ("a\nb", false),
        ] {
            assert_eq!(inside(href).is_ok(), fine, "{href:?}");
        }
        assert!(inside(&"x".repeat(5000)).is_err());
        assert_eq!(encode("a b#c%20é"), "a%20b%23c%20%C3%A9");
    }

    proptest::proptest! {
        #[test]
        fn what_passes_stays_below(href in ".{0,60}") {
            if let Ok(href) = inside(&href) {
                proptest::prop_assert!(!std::path::Path::new(href).components().any(|c| !matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir)));
            }
        }
    }
}
