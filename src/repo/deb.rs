//! A Debian package's control file, taken from the package's bytes as they go by. Its data is not looked at.
//!
//! deb(5): an `ar` archive of `debian-binary`, `control.tar[.gz|.xz|.zst]`, `data.tar…`.

use super::{deb822, unpack};
use std::io::Read;

/// Debian's largest is some 2 MB packed.
const CONTROL_MAX_BYTES: usize = 32 << 20;
const UNPACKED_MAX_BYTES: u64 = 256 << 20;
const FIELDS_MAX_BYTES: u64 = 4 << 20;
const MAGIC: &[u8] = b"!<arch>\n";
const HEAD_BYTES: usize = 60;

/// Keeps the bytes up to the end of the control member.
#[derive(Default)]
pub struct Collector {
    kept: Vec<u8>,
    done: bool,
}

impl Collector {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.done {
            return;
        }
        self.kept.extend_from_slice(bytes);
        self.done = self.kept.len() > CONTROL_MAX_BYTES || !matches!(control(&self.kept), Ok(None));
    }

    /// Name, version and architecture.
    pub fn identity(&self) -> Result<[String; 3], String> {
        let packed = control(&self.kept)?.ok_or("ends before its control file does")?;
        let text = fields(packed)?;
        let stanza = deb822::stanzas(&text).into_iter().next().ok_or("has an empty control file")?;
        let field =
            |key: &str| stanza.get(key).map(String::from).ok_or_else(|| format!("says no {key} in its control file"));
        Ok([field("Package")?, field("Version")?, field("Architecture")?])
    }
}

/// The control member, if its end is there.
fn control(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    if bytes.len() < MAGIC.len() {
        return Ok(None);
    }
    let mut rest = bytes.strip_prefix(MAGIC).ok_or("is no Debian package")?;
    // debian-binary, perhaps a member whose name begins with an underscore, control.
    for _ in 0..4 {
        let Some(head) = rest.get(..HEAD_BYTES) else { return Ok(None) };
        let text = |from: usize, to: usize| std::str::from_utf8(&head[from..to]).unwrap_or_default().trim();
        let (name, size) = (text(0, 16).trim_end_matches('/'), text(48, 58).parse::<usize>());
        let size = size.ok().filter(|n| *n <= CONTROL_MAX_BYTES && &head[58..] == b"`\n");
        let size = size.ok_or("has a malformed archive member")?;
        let Some(body) = rest.get(HEAD_BYTES..HEAD_BYTES + size) else { return Ok(None) };
        if name.starts_with("control.tar") {
            return Ok(Some(body));
        }
        let Some(next) = rest.get(HEAD_BYTES + size.next_multiple_of(2)..) else { return Ok(None) };
        rest = next;
    }
    Err("has no control member where it belongs".into())
}

/// The text of the file `control` in the packed archive.
fn fields(packed: &[u8]) -> Result<String, String> {
    let wrong = |e: std::io::Error| format!("has an unreadable control archive: {e}");
    let mut archive = tar::Archive::new(unpack::open(packed, UNPACKED_MAX_BYTES).map_err(wrong)?);
    for entry in archive.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        if matches!(&*entry.path_bytes(), b"./control" | b"control") {
            let mut text = Vec::new();
            entry.by_ref().take(FIELDS_MAX_BYTES).read_to_end(&mut text).map_err(wrong)?;
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
    Err("has no control file".into())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A package with nothing in it but its identity.
    pub fn package(name: &str, version: &str, arch: &str) -> Vec<u8> {
        let text = format!("Package: {name}\nVersion: {version}\nArchitecture: {arch}\n");
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "./control", text.as_bytes()).unwrap();
        let control = zstd::encode_all(&archive.into_inner().unwrap()[..], 1).unwrap();
        let mut all = MAGIC.to_vec();
        for (name, body) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.zst", &control), ("data.tar", b"data")] {
            all.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len()).bytes());
            all.extend(body);
            all.resize(all.len().next_multiple_of(2), b'\n');
        }
        all
    }

    fn identity(bytes: &[u8], piece: usize) -> Result<[String; 3], String> {
        let mut collector = Collector::default();
        bytes.chunks(piece).for_each(|chunk| collector.push(chunk));
        collector.identity()
    }

    #[test]
    fn a_package_says_who_it_is() {
        let bytes = package("bash", "1:2-3", "amd64");
        for piece in [1, 61, 10_000] {
            assert_eq!(identity(&bytes, piece).unwrap().join(" "), "bash 1:2-3 amd64");
        }
        assert!(identity(&bytes[..100], 64).unwrap_err().contains("ends before"));
        assert!(identity(b"\xed\xab\xee\xdb and more of it", 64).unwrap_err().contains("no Debian package"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(at in 0..300usize, bytes in proptest::collection::vec(0u8.., 0..60)) {
            let mut file = package("bash", "1", "all");
            let at = at.min(file.len());
            let end = (at + bytes.len()).min(file.len());
            file.splice(at..end, bytes);
            let _ = identity(&file, 50);
        }
    }
}
