//! An apt archive's suite, checked whole: the release file and its signature, every index that it
//! lists, every package that those list.

use super::packages::{self, Identity, Listed, Queue};
use crate::repo::deb822;
use crate::repo::digest::{Checksum, Hashed, Kind};
use crate::repo::finding::{FINDINGS_MAX, Report, short};
use crate::repo::place::Place;
use crate::repo::release::Release;
use crate::repo::{href, packages as index, unpack};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Unpacked, never whole in memory.
const INDEX_MAX_BYTES: u64 = 8 << 30;
/// One paragraph of an index.
const STANZA_MAX_BYTES: u64 = 4 << 20;
const RELEASE_MAX_BYTES: u64 = 16 << 20;
/// The forms in which one index may lie there.
const PACKINGS: [&str; 5] = ["", ".gz", ".xz", ".bz2", ".zst"];

/// A suite: where its release file lies, and where the paths of its packages begin.
pub struct Suite {
    pub place: Place,
    pub archive: Place,
}

/// Whether a release file lies there.
pub fn is_there(place: &Place) -> Result<bool> {
    for name in ["InRelease", "Release"] {
        if place.read(name, RELEASE_MAX_BYTES)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks everything; an error means that the checking itself failed.
pub fn verify(suite: &Suite, keyrings: Option<&[PathBuf]>) -> Result<Report> {
    let mut report = Report::new(suite.place.shown(), "apt");
    let scratch = tempfile::tempdir().context("creating a folder for metadata")?;
    let Some(release) = release(suite, keyrings, scratch.path(), &mut report)? else { return Ok(report) };
    let (own, packages) = packages::check_all(&suite.archive, None, |queue| {
        let mut look = Look {
            suite,
            scratch: scratch.path(),
            queue,
            report: Report::default(),
            seen: HashSet::new(),
            bad: Vec::new(),
        };
        look.all(&release)?;
        Ok(look.report)
    })?;
    report.absorb(own);
    report.absorb(packages);
    Ok(report)
}

/// The release file, checked where there is a key, parsed in any case.
fn release(
    suite: &Suite,
    keyrings: Option<&[PathBuf]>,
    scratch: &Path,
    report: &mut Report,
) -> Result<Option<Release>> {
    let mut names = Vec::new();
    for name in ["InRelease", "Release", "Release.gpg"] {
        if let Some(bytes) = suite.place.read(name, RELEASE_MAX_BYTES)? {
            std::fs::write(scratch.join(name), bytes).with_context(|| format!("keeping {name}"))?;
            names.push(name);
        }
    }
    let file = *names.first().context("finding InRelease or Release")?;
    let stem = format!("{}/", scratch.display());
    let signed = file == "InRelease" || names.contains(&"Release.gpg");
    match keyrings {
        None if signed => report.warn("signature-unchecked", file, "is not checked: no --key is given"),
        Some(_) if !signed => report.problem("unsigned", file, "carries no signature, though a key is given"),
        Some(_) => match super::release(&stem, keyrings, scratch) {
            Ok(_) => report.signed = true,
            Err(error) => {
                let why = error.root_cause().to_string();
                report.problem("signature", file, format!("has no signature that holds: {}", short(&why)));
            }
        },
        None => {}
    }
    match super::release(&stem, None, scratch) {
        Ok(verified) => {
            report.metadata = verified.digest;
            Ok(Some(verified.release))
        }
        Err(error) => {
            report.problem("metadata", file, short(&error.root_cause().to_string()));
            Ok(None)
        }
    }
}

struct Look<'a> {
    suite: &'a Suite,
    scratch: &'a Path,
    queue: &'a Queue<'a>,
    report: Report,
    /// Paths of packages: two indexes (of `all` and of an architecture) list the same ones.
    seen: HashSet<String>,
    /// Entries of the index at hand that cannot be used.
    bad: Vec<String>,
}

impl Look<'_> {
    fn all(&mut self, release: &Release) -> Result<()> {
        // A release file lists indexes in forms that a mirror need not carry: one form of each that
        // any part of its folder is there for.
        let mut forms: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for path in release.sha256.keys() {
            let stem = PACKINGS.iter().skip(1).find_map(|p| path.strip_suffix(p)).unwrap_or(path);
            forms.entry(stem).or_default().push(path);
        }
        for (stem, paths) in forms {
            let is_index = stem == "Packages" || stem.ends_with("/Packages");
            let mut parsed = false;
            for path in &paths {
                let (digest, size) = &release.sha256[*path];
                if let Err(why) = href::inside(path) {
                    self.report.problem("metadata", short(path), why);
                    continue;
                }
                let there = self.suite.place.local(path, size.saturating_add(1), self.scratch)?;
                let Some(file) = there else { continue };
                let checksum = match Checksum::new(Kind::Sha256, digest) {
                    Ok(checksum) => checksum,
                    Err(why) => {
                        self.report.problem("metadata", *path, why);
                        continue;
                    }
                };
                let parse = is_index && !parsed;
                parsed |= self.listed(path, &file, &checksum, *size, parse)?;
            }
            if is_index && !parsed && !paths.iter().any(|p| self.report.problems().any(|f| f.object == **p)) {
                let size = release.sha256[paths[0]].1;
                // Empty indexes and those of other architectures are left out by partial mirrors.
                if size > 0 && self.has_folder(stem) {
                    self.report.problem("missing", stem, "is listed by the release file, but in no form in the suite");
                } else if size > 0 {
                    self.report.warn("index-left-out", stem, "is listed by the release file, but not mirrored");
                }
            }
        }
        Ok(())
    }

    fn has_folder(&self, stem: &str) -> bool {
        match &self.suite.place {
            Place::Folder(dir) => dir.join(stem).parent().is_some_and(Path::is_dir),
            Place::Web(..) => false,
        }
    }

    /// One listed file; true: its packages were handed in.
    fn listed(&mut self, path: &str, file: &Path, checksum: &Checksum, size: u64, parse: bool) -> Result<bool> {
        let opened = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        let mut packed = Hashed::new(opened.take(size.saturating_add(1)), Kind::Sha256);
        let inside = if parse { self.index(&mut packed) } else { Ok(()) };
        std::io::copy(&mut packed, &mut std::io::sink()).with_context(|| format!("reading {}", file.display()))?;
        let (found, bytes) = packed.finish();
        let bad = std::mem::take(&mut self.bad);
        if bytes != size {
            let found = if bytes > size { "more bytes".into() } else { format!("{bytes} bytes") };
            self.report.problem("size", path, format!("has {found}, the release file says {size}"));
        } else if found != *checksum {
            self.report.problem("checksum", path, format!("has {found}, the release file says {}", checksum.hex));
        } else {
            // Of a damaged index nothing more is said: it follows from the damage.
            for why in bad.iter().chain(inside.as_ref().err()) {
                self.report.problem("metadata", path, short(why));
            }
        }
        Ok(parse && inside.is_ok())
    }

    fn index(&mut self, packed: &mut impl Read) -> Result<(), String> {
        let unpacked = unpack::open(BufReader::new(packed), INDEX_MAX_BYTES).map_err(|e| e.to_string())?;
        let mut lines = BufReader::new(unpacked);
        let mut stanza = String::new();
        loop {
            let mut line = Vec::new();
            let left = STANZA_MAX_BYTES.saturating_sub(stanza.len() as u64);
            let n = lines.by_ref().take(left + 1).read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
            if n as u64 > left {
                return Err(format!("has a paragraph of more than {STANZA_MAX_BYTES} bytes"));
            }
            let text = String::from_utf8_lossy(&line);
            if n > 0 && !text.trim().is_empty() {
                stanza += &text;
                continue;
            }
            if !deb822::stanzas(&stanza).is_empty() && !self.package(&stanza)? {
                return Ok(());
            }
            stanza.clear();
            if n == 0 {
                return Ok(());
            }
        }
    }

    /// False: the place failed, and that is the error.
    fn package(&mut self, stanza: &str) -> Result<bool, String> {
        let parsed = index::parse(stanza).and_then(|found| {
            let p = found.into_iter().next().ok_or("is empty")?;
            let href = href::inside(p.path)?.to_string();
            let checksum = Checksum::new(Kind::Sha256, p.sha256)?;
            Ok(Listed {
                href,
                size: p.size,
                checksum,
                is: Identity::Deb([p.name, p.version, p.arch].map(String::from)),
            })
        });
        match parsed {
            Ok(listed) if !self.seen.insert(listed.href.clone()) => Ok(true),
            Ok(listed) => Ok(self.queue.push(listed)),
            Err(why) => {
                if self.bad.len() < FINDINGS_MAX {
                    self.bad.push(short(&why));
                }
                Ok(true)
            }
        }
    }
}
