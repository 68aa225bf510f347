//! A Debian package's control file, taken from the package's bytes as they go by, and the paths of
//! its files.
//!
//! deb(5): an `ar` archive of `debian-binary`, `control.tar[.gz|.xz|.zst]`, `data.tar…`.

use super::{deb822, unpack};
use std::io::{BufRead, Read};

/// Debian's largest is some 2 MB packed.
const CONTROL_MAX_BYTES: usize = 32 << 20;
const UNPACKED_MAX_BYTES: u64 = 256 << 20;
const FIELDS_MAX_BYTES: u64 = 4 << 20;
/// Debian's largest packages unpack to some GB.
const DATA_MAX_BYTES: u64 = 16 << 30;
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
        let (name, size) = member(head)?;
        let size = usize::try_from(size).ok().filter(|n| *n <= CONTROL_MAX_BYTES).ok_or(MALFORMED)?;
        let Some(body) = rest.get(HEAD_BYTES..HEAD_BYTES + size) else { return Ok(None) };
        if name.starts_with("control.tar") {
            return Ok(Some(body));
        }
        let Some(next) = rest.get(HEAD_BYTES + size.next_multiple_of(2)..) else { return Ok(None) };
        rest = next;
    }
    Err("has no control member where it belongs".into())
}

const MALFORMED: &str = "has a malformed archive member";

/// Name and size that an archive member's head says.
fn member(head: &[u8]) -> Result<(&str, u64), String> {
    let text = |from: usize, to: usize| std::str::from_utf8(&head[from..to]).unwrap_or_default().trim();
    let size = text(48, 58).parse::<u64>().ok().filter(|_| &head[58..] == b"`\n");
    Ok((text(0, 16).trim_end_matches('/'), size.ok_or(MALFORMED)?))
}

/// Hands over the path of everything in the package, such as `./usr/bin/x`.
pub fn paths(from: &mut dyn BufRead, to: &mut dyn FnMut(&str)) -> Result<(), String> {
    let wrong = |e: std::io::Error| format!("cannot be read: {e}");
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(wrong)?;
    if magic != MAGIC {
        return Err("is no Debian package".into());
    }
    // As above, and the data.
    for _ in 0..5 {
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head).map_err(wrong)?;
        let (name, size) = member(&head)?;
        let mut body = Read::take(&mut *from, size);
        if !name.starts_with("data.tar") {
            std::io::copy(&mut body, &mut std::io::sink()).map_err(wrong)?;
            std::io::copy(&mut Read::take(&mut *from, size % 2), &mut std::io::sink()).map_err(wrong)?;
            continue;
        }
        let mut archive = tar::Archive::new(unpack::open(body, DATA_MAX_BYTES).map_err(wrong)?);
        for entry in archive.entries().map_err(wrong)? {
            to(&String::from_utf8_lossy(&entry.map_err(wrong)?.path_bytes()));
        }
        return Ok(());
    }
    Err("has no data member where it belongs".into())
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
        package_of(name, version, arch, b"data")
    }

    fn package_of(name: &str, version: &str, arch: &str, data: &[u8]) -> Vec<u8> {
        let text = format!("Package: {name}\nVersion: {version}\nArchitecture: {arch}\n");
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "./control", text.as_bytes()).unwrap();
        let control = zstd::encode_all(&archive.into_inner().unwrap()[..], 1).unwrap();
        let mut all = MAGIC.to_vec();
        for (name, body) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.zst", &control), ("data.tar", data)] {
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

    #[test]
    fn a_package_says_what_is_in_it() {
        let mut archive = tar::Builder::new(Vec::new());
        for path in ["./usr/bin/x", "./lib/systemd/system/x.service"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            archive.append_data(&mut header, path, &b"x"[..]).unwrap();
        }
        let data = archive.into_inner().unwrap();
        let paths_of = |bytes: &[u8]| {
            let mut found = Vec::new();
            paths(&mut &bytes[..], &mut |path| found.push(path.trim_start_matches("./").to_string())).map(|()| found)
        };
        let bytes = package_of("x", "1", "all", &data);
        assert_eq!(paths_of(&bytes).unwrap(), ["usr/bin/x", "lib/systemd/system/x.service"]);
        assert!(paths_of(&bytes[..bytes.len() / 2]).is_err());
        assert!(paths_of(b"\xed\xab\xee\xdb and more").unwrap_err().contains("no Debian package"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(at in 0..300usize, bytes in proptest::collection::vec(0u8.., 0..60)) {
            let mut file = package("bash", "1", "all");
            let at = at.min(file.len());
            let end = (at + bytes.len()).min(file.len());
            file.splice(at..end, bytes);
            let _ = identity(&file, 50);
            let _ = paths(&mut &file[..], &mut |_| {});
        }
    }
}
