//! A yum repository, checked whole: repomd.xml and its signature, every metadata file, every package.

use super::packages::{self, Identity, Listed, Queue};
use crate::repo::digest::{self, Hashed, Kind};
use crate::repo::finding::{Report, short};
use crate::repo::gpgv::Keyring;
use crate::repo::openpgp;
use crate::repo::place::Place;
use crate::repo::unpack;
use crate::repo::yum::filelists::Filelists;
use crate::repo::yum::primary::Packages;
use crate::repo::yum::repomd::{self, MetadataFile, Repomd};
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{BufReader, Read};
use std::path::Path;

pub const REPOMD: &str = "repodata/repomd.xml";
/// CentOS's has 4 kB.
pub const REPOMD_MAX_BYTES: u64 = 4 << 20;
const SIGNATURE_MAX_BYTES: u64 = 1 << 20;
/// A packed metadata file; CentOS 7's largest has 8 MB, Fedora's some 100.
pub const METADATA_MAX_BYTES: u64 = 2 << 30;
/// An unpacked one, whatever repomd.xml says of it. It is never in memory.
const OPEN_MAX_BYTES: u64 = 8 << 30;
const BUFFER_BYTES: usize = 256 << 10;
/// Folders below a repository that are looked through for packages nobody lists.
const FOLDERS_MAX: usize = 100_000;

/// Whether a yum repository lies there.
pub fn is_there(place: &Place) -> Result<bool> {
    Ok(place.read(REPOMD, REPOMD_MAX_BYTES)?.is_some())
}

/// Checks everything; an error means that the checking itself failed.
pub fn verify(place: &Place, keyring: Option<&Keyring>) -> Result<Report> {
    let mut report = Report::new(place.shown(), "yum");
    let bytes = place.read(REPOMD, REPOMD_MAX_BYTES)?.with_context(|| format!("finding {REPOMD}"))?;
    report.metadata = digest::of(Kind::Sha256, &bytes).hex;
    check_signature(place, &bytes, keyring, &mut report)?;
    let repomd = match repomd::parse(&bytes[..]) {
        Ok(repomd) => repomd,
        Err(why) => {
            report.problem("metadata", REPOMD, why);
            return Ok(report);
        }
    };
    for why in &repomd.problems {
        report.problem("metadata", REPOMD, short(why));
    }
    if repomd.file("primary").is_none() {
        report.problem("metadata", REPOMD, "lists no primary.xml, so no package is known");
    }
    let scratch = tempfile::tempdir().context("creating a folder for metadata")?;
    let (own, packages) = packages::check_all(place, keyring, |queue| {
        let mut look = Look { place, scratch: scratch.path(), queue, report: Report::default(), seen: Seen::default() };
        look.all(&repomd)?;
        Ok(look.report)
    })?;
    report.absorb(own);
    report.absorb(packages);
    Ok(report)
}

/// Whether a key of the keyring signed repomd.xml; without its signature the packages' own must do.
pub fn check_signature(place: &Place, bytes: &[u8], keyring: Option<&Keyring>, report: &mut Report) -> Result<()> {
    const FILE: &str = "repodata/repomd.xml.asc";
    let armoured = place.read(FILE, SIGNATURE_MAX_BYTES)?;
    match (armoured, keyring) {
        (None, None) => {}
        (None, Some(_)) => {
            let text = "has no signature (repomd.xml.asc): the packages' own are all that a key vouches for";
            report.warn("metadata-unsigned", REPOMD, text);
        }
        (Some(_), None) => report.warn("signature-unchecked", FILE, "is not checked: no --key is given"),
        (Some(armoured), Some(keyring)) => match openpgp::binary(&armoured, FILE) {
            Ok(packet) => {
                let verdict = keyring.check(&packet, bytes).context("asking gpgv (package gpgv)")?;
                report.signed = packages::say(keyring, REPOMD, &packet, verdict, report);
            }
            Err(why) => report.problem("signature", FILE, why),
        },
    }
    Ok(())
}

/// What primary.xml listed, small: a million packages are some 40 MB.
#[derive(Default)]
struct Seen {
    hrefs: HashSet<u64>,
    /// The first 16 bytes of each checksum.
    ids: HashSet<[u8; 16]>,
    /// primary.xml was read to its end, and every entry of it could be used.
    whole: bool,
}

fn hash(href: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(href)
}

fn id(hex: &str) -> [u8; 16] {
    let digits: Vec<u8> = hex.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
    std::array::from_fn(|i| digits.get(2 * i).unwrap_or(&0) << 4 | digits.get(2 * i + 1).unwrap_or(&0))
}

struct Look<'a> {
    place: &'a Place,
    scratch: &'a Path,
    queue: &'a Queue<'a>,
    report: Report,
    seen: Seen,
}

impl Look<'_> {
    fn all(&mut self, repomd: &Repomd) -> Result<()> {
        let rank = |f: &&MetadataFile| match f.kind.as_str() {
            "primary" => 0,
            _ => 1,
        };
        let mut files: Vec<&MetadataFile> = repomd.files.iter().collect();
        files.sort_by_key(rank); // the others are held against it
        for file in files {
            self.metadata(file)?;
        }
        self.unlisted();
        Ok(())
    }

    /// One metadata file, read once: its checksum and size, packed and unpacked, and what it says.
    fn metadata(&mut self, file: &MetadataFile) -> Result<()> {
        let (name, max) = (file.href.as_str(), file.size.unwrap_or(METADATA_MAX_BYTES).min(METADATA_MAX_BYTES));
        let Some(path) = self.place.local(name, max + 1, self.scratch)? else {
            self.report.problem("missing", name, format!("is {} by repomd.xml, but not in the repository", file.kind));
            return Ok(());
        };
        if file.checksum.kind == Kind::Sha1 {
            let text = "has its checksum by SHA-1 only; a forger could have made another";
            self.report.warn("sha1-checksum", name, text);
        }
        let opened = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut packed = Hashed::new(opened.take(max + 1), file.checksum.kind);
        // Zchunk is read by nothing that el7 has, and stands beside the same data in gzip.
        let inside = if file.kind.ends_with("_zck") { Ok(()) } else { self.inside(&mut packed, file)? };
        std::io::copy(&mut packed, &mut std::io::sink()).with_context(|| format!("reading {}", path.display()))?;
        let (found, bytes) = packed.finish();
        if let Some(size) = file.size.filter(|s| *s != bytes) {
            let found = if bytes > size { "more bytes".into() } else { format!("{bytes} bytes") };
            self.report.problem("size", name, format!("has {found}, repomd.xml says {size}"));
        } else if bytes > METADATA_MAX_BYTES {
            self.report.problem("size", name, format!("has more than {METADATA_MAX_BYTES} bytes"));
        } else if found != file.checksum {
            let text = format!("has {found}, repomd.xml says {}", file.checksum.hex);
            self.report.problem("checksum", name, text);
        } else if let Err(why) = inside {
            self.report.problem("metadata", name, short(&why));
        }
        Ok(())
    }

    /// What is in a metadata file. The inner error is the file's; of a damaged one it is not said.
    fn inside(&mut self, packed: &mut impl Read, file: &MetadataFile) -> Result<Result<(), String>> {
        let max = file.open_size.unwrap_or(OPEN_MAX_BYTES).min(OPEN_MAX_BYTES);
        let unpacked = match unpack::open(BufReader::with_capacity(BUFFER_BYTES, packed), max) {
            Ok(unpacked) => unpacked,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let kind = file.open_checksum.as_ref().map_or(Kind::Sha256, |c| c.kind);
        let mut unpacked = Hashed::new(unpacked, kind);
        let read = match file.kind.as_str() {
            "primary" => self.primary(&mut unpacked, &file.href),
            "filelists" => self.lists(&mut unpacked, file, "filelists"),
            "other" => self.lists(&mut unpacked, file, "otherdata"),
            _ => Ok(()),
        };
        if let Err(why) = read {
            return Ok(Err(why));
        }
        if let Err(e) = std::io::copy(&mut unpacked, &mut std::io::sink()) {
            return Ok(Err(e.to_string()));
        }
        let (found, bytes) = unpacked.finish();
        if let Some(size) = file.open_size.filter(|s| *s != bytes) {
            return Ok(Err(format!("unpacks to {bytes} bytes, repomd.xml says {size}")));
        }
        match &file.open_checksum {
            Some(stated) if found != *stated => Ok(Err(format!("unpacks to {found}, repomd.xml says {}", stated.hex))),
            _ => Ok(Ok(())),
        }
    }

    fn primary(&mut self, from: impl Read, name: &str) -> Result<(), String> {
        let mut packages = Packages::new(BufReader::with_capacity(BUFFER_BYTES, from))?;
        let (mut count, mut usable) = (0, true);
        while let Some(entry) = packages.next_package()? {
            count += 1;
            let package = match entry {
                Ok(package) => package,
                Err(why) => {
                    usable = false;
                    self.report.problem("metadata", name, short(&why));
                    continue;
                }
            };
            self.seen.ids.insert(id(&package.checksum.hex));
            if !self.seen.hrefs.insert(hash(&package.href)) {
                self.report.problem("metadata", name, format!("lists {} twice", short(&package.href)));
                continue;
            }
            if package.checksum.kind == Kind::Sha1 {
                self.report.warn("sha1-checksum", name, "has its packages' checksums by SHA-1 only");
            }
            let (href, size, checksum) = (package.href, package.size, package.checksum);
            if !self.queue.push(Listed { href, size, checksum, is: Identity::Rpm(package.nevra) }) {
                return Ok(()); // the place failed, and that is the error
            }
        }
        if let Some(stated) = packages.stated().filter(|n| *n != count) {
            self.report.problem("metadata", name, format!("lists {count} packages and says that they are {stated}"));
        }
        self.seen.whole = usable;
        Ok(())
    }

    /// filelists.xml and other.xml must be of the packages of primary.xml.
    fn lists(&mut self, from: impl Read, file: &MetadataFile, root: &str) -> Result<(), String> {
        let mut lists = Filelists::new(BufReader::with_capacity(BUFFER_BYTES, from), root)?;
        let mut count = 0;
        while let Some(files) = lists.next_package()? {
            count += 1;
            if self.seen.whole && !self.seen.ids.contains(&id(&files.id)) {
                let text = format!("lists {} {}, which primary.xml does not", short(&files.name), short(&files.id));
                self.report.problem("metadata", &file.href, text);
            }
        }
        let listed = self.seen.ids.len() as u64;
        if self.seen.whole && count != listed {
            self.report.problem("metadata", &file.href, format!("lists {count} packages, primary.xml {listed}"));
        }
        Ok(())
    }

    /// Packages in the folder that nothing vouches for: no problem, but somebody may believe they are served.
    fn unlisted(&mut self) {
        let Place::Folder(top) = self.place else { return };
        if !self.seen.whole {
            return;
        }
        let mut folders = vec![top.clone()];
        let mut looked = 0;
        while let Some(folder) = folders.pop() {
            looked += 1;
            // Another repository further down has an index of its own.
            if looked > FOLDERS_MAX || (folder != *top && folder.join(REPOMD).is_file()) {
                continue;
            }
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let (path, kind) = (entry.path(), entry.file_type());
                if kind.as_ref().is_ok_and(|k| k.is_dir()) {
                    folders.push(path);
                    continue;
                }
                let Some(href) = path.strip_prefix(top).ok().and_then(|p| p.to_str()) else { continue };
                if href.ends_with(".rpm") && !self.seen.hrefs.contains(&hash(href)) {
                    self.report.warn("unlisted", href, "is in the folder, but not in the index");
                }
            }
        }
    }
}
