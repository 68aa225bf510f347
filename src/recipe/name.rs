//! Words that parse at the door: names of roles, systems, packages, units, secrets, owners; paths
//! and kernel arguments. Each function returns the word or a message that shows what is right.

/// Names become file names, host names and keys: no longer than a DNS label, bytes.
pub const NAME_MAX_BYTES: usize = 63;

fn fits(text: &str, max: usize, first: impl Fn(u8) -> bool, rest: impl Fn(u8) -> bool) -> bool {
    let mut bytes = text.bytes();
    text.len() <= max && bytes.next().is_some_and(first) && bytes.all(rest)
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Roles, releases, systems, steps, overlays, repositories, nodes: `[a-z0-9]` and inner dashes.
pub fn word(text: &str) -> Result<String, String> {
    if fits(text, NAME_MAX_BYTES, lower, |b| lower(b) || b == b'-') && !text.ends_with('-') {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a name (a to z, 0 to 9 and inner dashes, at most {NAME_MAX_BYTES})"))
}

/// A package: `MariaDB-server`, `gcc-c++`, `libc6`.
pub fn package(text: &str) -> Result<String, String> {
    if fits(text, 128, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"+-._".contains(&b)) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a package name (versions belong in the lock, architectures to the release)"))
}

/// Packages by the beginning, the end or any other piece of their names: `mariadb*`.
pub fn package_pattern(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"+-._*?".contains(&b);
    if fits(text, 128, plain, plain) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is neither a package name nor a pattern such as \"mariadb*\""))
}

/// A systemd unit with its type: `mariadb.service`.
pub fn unit(text: &str) -> Result<String, String> {
    const TYPES: [&str; 6] = [".service", ".socket", ".target", ".timer", ".mount", ".path"];
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:\\".contains(&b);
    let known = TYPES.iter().any(|t| text.strip_suffix(t).is_some_and(|stem| !stem.is_empty()));
    if known && fits(text, 255, plain, plain) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a systemd unit such as mariadb.service"))
}

/// A secret's dotted name: `galera.sst`.
pub fn secret(text: &str) -> Result<String, String> {
    let part = |p: &str| fits(p, NAME_MAX_BYTES, lower, |b| lower(b) || b == b'-' || b == b'_');
    if text.split('.').all(part) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a secret's name such as galera.sst (a to z, 0 to 9, dash, underscore, dots between)"))
}

/// A user or group of the image.
pub fn owner(text: &str) -> Result<String, String> {
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    if fits(text, 32, first, |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a user's name"))
}

/// A folder for kept state: absolute, clean, not the root itself.
pub fn state_folder(text: &str) -> Result<String, String> {
    let clean = text.strip_prefix('/').is_some_and(|rest| {
        !rest.is_empty() && rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    });
    if clean && !text.chars().any(char::is_control) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not an absolute folder such as /var/lib/mysql (no \"..\", no slash at the end)"))
}

/// A path below some folder: relative, clean.
pub fn relative_path(text: &str) -> Result<String, String> {
    let clean = text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if clean && !text.chars().any(char::is_control) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a relative path (no \"..\", no slash at either end)"))
}

/// One kernel argument. Those of kiln itself are set by the boot script.
pub fn kernel_argument(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{text:?} is not one kernel argument (printable ASCII, no spaces)"));
    }
    if text.starts_with("kiln.") {
        return Err(format!("{text:?} is kiln's own: the boot script sets it"));
    }
    Ok(text.to_string())
}

/// A kernel module's name.
pub fn module(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if fits(text, NAME_MAX_BYTES, plain, plain) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a kernel module's name"))
}

/// A suite or component of an apt repository: `bookworm-security`, `main`, `stable/updates`.
pub fn apt_word(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/+".contains(&b);
    if fits(text, 128, |b| b.is_ascii_alphanumeric(), plain) && !text.split('/').any(|p| p == "..") {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a suite or component"))
}

/// 64 lower-case hex digits.
pub fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not a sha256 (64 lower-case hex digits)"))
}

/// A duration such as `30s` or `5m`, kept as text.
pub fn duration(text: &str) -> Result<String, String> {
    match super::system::seconds(text) {
        Some(_) => Ok(text.to_string()),
        None => Err(format!("{text:?} is not a duration such as 30s, 5m or 2h (at most a week)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parse = fn(&str) -> Result<String, String>;

    #[test]
    fn words_parse_at_the_door() {
        let rows: &[(&str, Parse, &[&str], &[&str])] = &[
            ("word", word, &["a", "nova-controller", "0"], &["", "-a", "a-", "A", "a_b", "a.b", "é", "a b"]),
            ("package", package, &["MariaDB-server", "gcc-c++", "libc6"], &["", "-y", "a b", "a;b", "a:amd64", "a=1"]),
            ("unit", unit, &["a.service", "getty@tty1.service"], &["a", ".service", "a/b.service", "a.service\n"]),
            ("secret", secret, &["galera.sst", "a"], &["", ".", "a.", "a..b", "../a", "A"]),
            ("owner", owner, &["mysql", "_chrony", "libvirt-qemu"], &["", "-x", "0", "a:b"]),
            ("state", state_folder, &["/var/lib/mysql"], &["", "/", "var", "/a/../b", "/a/", "//a", "/a\n", "/a/./b"]),
            ("path", relative_path, &["keys/a.asc"], &["", "/a", "a/", "../a", "a/../b", "a\0"]),
            ("argument", kernel_argument, &["console=tty0"], &["", "a b", "kiln.server=1", "é", "a\n"]),
            ("module", module, &["virtio_net", "8021q"], &["", "a.ko", "../a"]),
            ("suite", apt_word, &["bookworm-security", "stable/updates"], &["", "../x", "a/../b", "a b"]),
            ("duration", duration, &["10s", "5m"], &["", "1d", "0s"]),
        ];
        for (label, parse, good, bad) in rows {
            for text in *good {
                assert_eq!(parse(text).as_deref(), Ok(*text), "{label} {text:?}");
            }
            for text in *bad {
                assert!(parse(text).is_err(), "{label} {text:?}");
            }
        }
    }
}
