//! Takes in repositories as users have them: a tarball or a folder, signed or not, with an index or
//! without. What comes out lies under a name, whole and pinned, or not at all.

use super::finding::{Report, short};
use super::pin::{self, Import, Pinned};
use super::place::Place;
use super::{digest, index, layout, unpack, verify};
use crate::sys::files;
use anyhow::{Context, Result};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Files and folders of one import.
const ENTRIES_MAX: u64 = 2_000_000;
const FILE_MAX_BYTES: u64 = 64 << 30;
/// What of an archive is read between two files: headers and long names.
const HEADERS_MAX_BYTES: u64 = 1 << 20;
/// Is left free on the disk, whatever an archive unpacks to.
const FREE_MIN_BYTES: u64 = 1 << 30;
const BUFFER_BYTES: usize = 256 << 10;

/// What was taken in, or why not.
pub enum Outcome {
    Done {
        folder: PathBuf,
        import: Import,
        /// It lay there already, with the same metadata.
        known: bool,
        warnings: Vec<Report>,
    },
    /// Something under this name has other metadata.
    Taken(PathBuf),
    /// The packages or the index are damaged.
    Damaged(Vec<Report>),
    /// The archive or folder is not what can be imported: why, and what to do.
    Unfit(String),
}

/// An archive that cannot be taken. Told apart from failures by its type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unfit(String);

fn unfit<T>(why: impl Into<String>) -> Result<T> {
    Err(Unfit(why.into()).into())
}

/// Imports `source` as `into/name`.
pub fn import(source: &Path, name: &str, into: &Path, say: &dyn Fn(&str)) -> Result<Outcome> {
    fs::create_dir_all(into).with_context(|| format!("creating {}", into.display()))?;
    let _lock = files::lock(&into.join(".kiln.lock"))?;
    sweep(into)?;
    let stage = tempfile::Builder::new().prefix(files::TMP_PREFIX).tempdir_in(into)?;
    let prepared = take(source, stage.path(), into, say).and_then(|()| {
        let taken = top(stage.path())?;
        Ok((pin_all(&taken, say)?, taken))
    });
    let (pins, taken) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => match error.downcast_ref::<Unfit>() {
            Some(why) => return Ok(Outcome::Unfit(format!("{}: {why}", source.display()))),
            None => return Err(error.context(format!("importing {}", source.display()))),
        },
    };
    let (import, warnings) = match pins {
        Ok(found) => found,
        Err(damaged) => return Ok(Outcome::Damaged(damaged)),
    };
    if import.repositories.is_empty() {
        let why = "neither a yum repository nor an RPM package is in it";
        return Ok(Outcome::Unfit(format!("{}: {why}", source.display())));
    }
    let folder = into.join(name);
    if folder.symlink_metadata().is_ok() {
        let known = pinned(&folder)?.is_some_and(|there| there == import);
        return Ok(if known {
            Outcome::Done { folder, import, known: true, warnings }
        } else {
            Outcome::Taken(folder)
        });
    }
    files::write_atomic(&taken.join(pin::FILE), import.to_text().as_bytes(), 0o644)?;
    // One flush for a hundred thousand files, before the name that says that they are there.
    let dir = File::open(into).with_context(|| format!("opening {}", into.display()))?;
    nix::unistd::syncfs(&dir).context("flushing what was imported")?;
    fs::set_permissions(&taken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(&taken, &folder).with_context(|| format!("moving an import to {}", folder.display()))?;
    files::sync_dir(into)?;
    Ok(Outcome::Done { folder, import, known: false, warnings })
}

/// The pin of an imported folder, if it is one.
pub fn pinned(folder: &Path) -> Result<Option<Import>> {
    let file = folder.join(pin::FILE);
    if !file.exists() {
        return Ok(None);
    }
    let import = Import::parse(&files::read_bounded(&file, pin::MAX_BYTES)?).map_err(anyhow::Error::msg);
    import.map(Some).with_context(|| format!("reading {}", file.display()))
}

/// What an import that died left behind; the lock says that none is running.
fn sweep(into: &Path) -> Result<()> {
    for entry in fs::read_dir(into).with_context(|| format!("listing {}", into.display()))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(files::TMP_PREFIX) {
            files::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// A tarball's only folder is what was meant.
fn top(stage: &Path) -> Result<PathBuf> {
    let mut at = stage.to_path_buf();
    loop {
        let entries: Vec<_> = fs::read_dir(&at)?.collect::<std::io::Result<_>>()?;
        match &entries[..] {
            [only] if only.file_type()?.is_dir() && !layout::is_part(&only.file_name().to_string_lossy()) => {
                at = only.path();
            }
            _ => return Ok(at),
        }
    }
}

fn take(source: &Path, stage: &Path, into: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let meta = fs::metadata(source).with_context(|| format!("looking at {}", source.display()))?;
    let mut target = Target { stage: stage.to_path_buf(), entries: 0, packed: meta.is_file() };
    if meta.is_dir() {
        let (from, to) = (source.canonicalize()?, into.canonicalize()?);
        if to.starts_with(&from) || from.starts_with(&to) {
            return unfit(format!("one of it and {} lies in the other; name a folder beside it", into.display()));
        }
        say("copying");
        return folder(source, &mut Vec::new(), &mut target);
    }
    if !meta.is_file() {
        return unfit("is neither a file nor a folder");
    }
    say("unpacking");
    archive(source, &mut target)
}

/// Where files are put. Links are never made in it, so no path in it leads out.
struct Target {
    stage: PathBuf,
    entries: u64,
    /// From an archive: what cannot be read is the archive's fault, not the disk's.
    packed: bool,
}

impl Target {
    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            unfit(format!("has more than {ENTRIES_MAX} files and folders"))
        } else {
            Ok(())
        }
    }

    fn path(&self, parts: &[&str]) -> PathBuf {
        parts.iter().fold(self.stage.clone(), |path, part| path.join(part))
    }

    fn folder(&mut self, parts: &[&str]) -> Result<()> {
        let path = self.path(parts);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .with_context(|| format!("creating {}", parts.join("/")))
    }

    fn file(&mut self, parts: &[&str], size: u64, from: &mut dyn Read) -> Result<()> {
        let name = short(&parts.join("/"));
        if size > FILE_MAX_BYTES {
            return unfit(format!("{name} has {size} bytes; at most {FILE_MAX_BYTES} are taken"));
        }
        let disk = nix::sys::statvfs::statvfs(&self.stage).context("asking how much disk is free")?;
        let free = disk.blocks_available() * disk.fragment_size();
        if size.saturating_add(FREE_MIN_BYTES) > free {
            return unfit(format!(
                "{name} has {size} bytes, the disk {free} free, of which {FREE_MIN_BYTES} stay free"
            ));
        }
        let Some((_, folders)) = parts.split_last() else { return unfit("has a file without a name") };
        self.folder(folders)?;
        let options = OpenOptions::new().write(true).create_new(true).mode(0o644).open(self.path(parts));
        let mut to = match options {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return unfit(format!("has {name} twice")),
            opened => opened.with_context(|| format!("creating {name}"))?,
        };
        let mut buffer = vec![0u8; BUFFER_BYTES.min(usize::try_from(size).unwrap_or(BUFFER_BYTES).max(1))];
        let mut left = size;
        while left > 0 {
            let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match from.read(&mut buffer[..room]) {
                Err(e) if self.packed => return unfit(format!("{name} cannot be read from the archive: {e}")),
                read => read.with_context(|| format!("reading {name}"))?,
            };
            if n == 0 {
                return unfit(format!("{name} ends {left} bytes early"));
            }
            std::io::Write::write_all(&mut to, &buffer[..n]).with_context(|| format!("writing {name}"))?;
            left -= n as u64;
        }
        Ok(())
    }
}

fn folder(from: &Path, parts: &mut Vec<String>, target: &mut Target) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("listing {}", from.display()))?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        target.count()?;
        let name = entry.file_name();
        let path = entry.path();
        let whole: Vec<u8> =
            parts.iter().flat_map(|p| [p.as_bytes(), b"/"].concat()).chain(name.as_encoded_bytes().to_vec()).collect();
        let own = layout::parts(&whole).or_else(unfit)?;
        let kind = entry.file_type().with_context(|| format!("looking at {}", path.display()))?;
        if kind.is_dir() {
            target.folder(&own)?;
            parts.push(own.last().copied().unwrap_or_default().to_string());
            folder(&path, parts, target)?;
            parts.pop();
        } else if kind.is_file() {
            if parts.is_empty() && name == pin::FILE {
                continue; // of an earlier import; this one is pinned anew
            }
            let mut file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            let size = file.metadata()?.len();
            target.file(&own, size, &mut file)?;
        } else {
            let what = if kind.is_symlink() { "a link" } else { "a device, socket or pipe" };
            return unfit(format!(
                "{} is {what}; only files and folders are taken (cp -rL makes such a copy)",
                own.join("/")
            ));
        }
    }
    Ok(())
}

/// A stream of which only so much may be read until more is granted.
struct Granted<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Granted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(std::io::Error::other(format!("a header has more than {HEADERS_MAX_BYTES} bytes")));
        }
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.inner.read(&mut buffer[..room])?;
        self.left.set(left - n as u64);
        Ok(n)
    }
}

fn archive(source: &Path, target: &mut Target) -> Result<()> {
    let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let broken = |e: std::io::Error| Unfit(format!("is no readable tar archive (plain, gz, xz, bz2 or zst): {e}"));
    let unpacked = unpack::open(BufReader::with_capacity(BUFFER_BYTES, file), u64::MAX).map_err(broken)?;
    let left = Rc::new(Cell::new(HEADERS_MAX_BYTES));
    let mut archive = tar::Archive::new(Granted { inner: unpacked, left: left.clone() });
    let mut entries = archive.entries().map_err(broken)?;
    loop {
        // The reader of names and headers keeps what it reads; a hostile one has gigabytes of them.
        left.set(HEADERS_MAX_BYTES);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(broken)?;
        target.count()?;
        let path = entry.path_bytes().into_owned();
        let parts = layout::parts(&path).or_else(unfit)?;
        let (kind, size) = (entry.header().entry_type(), entry.size());
        left.set(size.saturating_add(HEADERS_MAX_BYTES));
        match kind {
            _ if parts == [pin::FILE] => {
                std::io::copy(&mut entry, &mut std::io::sink()).map_err(broken)?;
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                target.file(&parts, size, &mut entry)?;
            }
            tar::EntryType::Directory => target.folder(&parts)?,
            // tar makes these by itself for files that are the same; one that came before may be meant.
            tar::EntryType::Link => {
                let to = entry.link_name_bytes().unwrap_or_default().into_owned();
                let to =
                    layout::parts(&to).or_else(|why| unfit(format!("{}: link out of it: {why}", parts.join("/"))))?;
                let original = target.path(&to);
                if !original.is_file() {
                    return unfit(format!(
                        "{} is a link to {}, which did not come before it",
                        parts.join("/"),
                        to.join("/")
                    ));
                }
                let mut file = File::open(&original)?;
                let size = file.metadata()?.len();
                target.file(&parts, size, &mut file)?;
            }
            tar::EntryType::XGlobalHeader => {}
            _ => {
                let what = if kind.is_symlink() { "a link" } else { "a device or pipe" };
                let name = parts.join("/");
                return unfit(format!(
                    "{name} is {what}; only files and folders are taken (tar --dereference packs files)"
                ));
            }
        }
    }
}

type Pins = (Import, Vec<Report>);

/// Finds the repositories below `top`, makes the indexes that are missing, checks the others.
fn pin_all(top: &Path, say: &dyn Fn(&str)) -> Result<Result<Pins, Vec<Report>>> {
    let (mut indexed, mut packages) = (BTreeSet::new(), BTreeSet::new());
    look(top, top, false, &mut indexed, &mut packages)?;
    let (mut pins, mut warnings, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for path in indexed {
        say(&format!("verifying {}", if path.is_empty() { "the repository" } else { &path }));
        let report = verify::yum::verify(&Place::Folder(top.join(&path)), None)?;
        let (metadata, packages, bytes) = (format!("sha256:{}", report.metadata), report.packages, report.bytes);
        pins.push(Pinned { path: path.clone(), metadata, made: false, packages, bytes });
        let mut report = report;
        report.place = path;
        if report.problem_count() > 0 { damaged.push(report) } else { warnings.push(report) }
    }
    for (path, hrefs) in layout::cut(&packages) {
        say(&format!("making the index of {} packages", hrefs.len()));
        let dir = top.join(&path);
        // Of a repository whose repomd.xml is gone: its other files would be taken for metadata.
        if dir.join("repodata").exists() {
            return unfit(format!("{path}/repodata has no repomd.xml; remove that folder, or fetch it again"));
        }
        match index::make(&dir, &hrefs)? {
            Ok(made) => {
                let metadata = format!("sha256:{}", made.metadata);
                pins.push(Pinned { path, metadata, made: true, packages: made.packages, bytes: made.bytes });
            }
            Err(bad) => {
                let mut report = Report::new(path, "yum");
                for (href, why) in bad {
                    report.problem("package", href, why);
                }
                damaged.push(report);
            }
        }
    }
    pins.sort_by(|a, b| a.path.cmp(&b.path));
    let import = Import { version: pin::VERSION, repositories: pins };
    Ok(if damaged.is_empty() { Ok((import, warnings)) } else { Err(damaged) })
}

/// Folders with an index, and packages outside of them.
fn look(
    top: &Path,
    dir: &Path,
    inside: bool,
    indexed: &mut BTreeSet<String>,
    packages: &mut BTreeSet<String>,
) -> Result<()> {
    let below = |path: &Path| path.strip_prefix(top).ok().and_then(|p| p.to_str()).unwrap_or_default().to_string();
    let has_index = dir.join(verify::yum::REPOMD).is_file();
    if has_index {
        indexed.insert(below(dir));
    }
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            look(top, &path, inside || has_index, indexed, packages)?;
        } else if !inside && !has_index && path.extension().is_some_and(|e| e == "rpm") {
            packages.insert(below(&path));
        }
    }
    Ok(())
}

/// The digest of a repository's repomd.xml now.
pub fn metadata_of(folder: &Path) -> Result<String> {
    Ok(format!("sha256:{}", digest::hex(&files::hash_file(&folder.join(verify::yum::REPOMD))?)))
}
