//! A preloaded repository's blob: a plain tar whose members are the files of one package repository.
//! Where each lies is read from the headers once; then any of them is a range of the blob, to the
//! server and to a node alike.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};

/// Where a node keeps its image's repositories, each below its blob's hex digest: on the state disk.
pub const NODE_DIR: &str = "/var/lib/kiln-state/repositories";
/// yum's variable `$kilnrepos`, the URL below which they are: this folder, or the server's `/repos`.
/// yum and dnf both read it here.
pub const PLACE_VARIABLE: &str = "/etc/yum/vars/kilnrepos";

/// CentOS 7's largest repository has some 20,000 packages.
const MEMBERS_MAX: usize = 100_000;
/// Bytes; the blob's own size bounds what its headers claim.
const PATH_MAX_BYTES: usize = 1024;

/// A file's range in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the blob's first.
    pub start: u64,
    pub size: u64,
}

/// The members by their path. Errors: what is not as [`Writer`] makes it.
pub fn members<R: Read + Seek>(blob: R) -> Result<BTreeMap<String, Member>, String> {
    let mut archive = tar::Archive::new(blob);
    let broken = |e: std::io::Error| format!("repository is no plain tar: {e}");
    let mut members = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let path = String::from_utf8(entry.path_bytes().into_owned()).map_err(|e| format!("repository: {e}"))?;
        let plain = path.len() <= PATH_MAX_BYTES
            && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !path.chars().any(char::is_control);
        if !plain || !entry.header().entry_type().is_file() {
            return Err(format!("repository has a member {path:?} that is no file of it"));
        }
        let member = Member { start: entry.raw_file_position(), size: entry.size() };
        if members.insert(path.clone(), member).is_some() {
            return Err(format!("repository has {path:?} twice"));
        }
        if members.len() > MEMBERS_MAX {
            return Err(format!("repository has more than {MEMBERS_MAX} files"));
        }
    }
    Ok(members)
}

/// Writes the blob: the same files in the same order give the same bytes.
pub struct Writer<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Writer<W> {
        Writer { tar: tar::Builder::new(to) }
    }

    pub fn add(&mut self, path: &str, size: u64, content: impl Read) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0); // nobody asks, and a repository is shared by images of any date
        self.tar.append_data(&mut header, path, content)
    }

    pub fn finish(self) -> std::io::Result<W> {
        self.tar.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (path, bytes) in files {
            writer.add(path, bytes.len() as u64, *bytes).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn each_file_is_a_range_of_the_blob() {
        let long = format!("Packages/{}.rpm", "n".repeat(200)); // beyond what a header's own field holds
        let files = [("repodata/repomd.xml", &b"<repomd/>"[..]), (&long, &[7; 1500]), ("Packages/empty.rpm", b"")];
        let blob = packed(&files);
        let members = members(Cursor::new(&blob)).unwrap();
        assert_eq!(members.len(), 3);
        for (path, bytes) in files {
            let Member { start, size } = members[path];
            assert_eq!(&blob[start as usize..(start + size) as usize], bytes, "{path}");
        }
        assert_eq!(packed(&files), blob);
    }

    #[test]
    fn what_no_repository_has_is_refused() {
        let with = |path: &[u8], kind: tar::EntryType| {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path);
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            let mut blob = header.as_bytes().to_vec();
            blob.extend([0; 1024]);
            members(Cursor::new(blob)).map(|m| m.len())
        };
        assert_eq!(with(b"a/b", tar::EntryType::Regular), Ok(1));
        for path in [&b"../x"[..], b"/etc/passwd", b"a/../b", b"./a", b"a//b", b"a\n", b"\xff"] {
            assert!(with(path, tar::EntryType::Regular).is_err(), "{path:?}");
        }
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Char, tar::EntryType::Directory] {
            assert!(with(b"a", kind).is_err(), "{kind:?}");
        }
        let twice = packed(&[("a", b"1"), ("a", b"2")]);
        assert!(members(Cursor::new(twice)).unwrap_err().contains("twice"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0usize..600, byte: u8) {
            let _ = members(Cursor::new(&bytes));
            let mut blob = packed(&[("a/b", b"some"), ("c", b"more")]);
            blob[at] = byte;
            for member in members(Cursor::new(&blob)).unwrap_or_default().values() {
                let _ = member.start.checked_add(member.size);
            }
        }
    }
}
