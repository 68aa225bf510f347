//! Makes the index of a folder of packages: the same packages give the same bytes. Nothing is there
//! before all of it is.

use super::digest::{Hashed, Kind};
use super::place::{Found, Place};
use super::rpm::inspect::{Inspector, Want};
use super::yum::write::{self, Placed, Record, Written};
use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Packages whose records are in memory at once.
const BATCH_MAX: usize = 512;
/// One package file; rpm's own payload limit is far above any real one.
const PACKAGE_MAX_BYTES: u64 = 64 << 30;

/// An index that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// sha256 (hex) of repomd.xml.
    pub metadata: String,
    pub packages: u64,
    pub bytes: u64,
}

/// A document being written: what goes in is hashed before and after it is packed.
struct Document {
    kind: &'static str,
    file: Hashed<GzEncoder<Hashed<BufWriter<File>>>>,
}

/// Makes `repodata` in `dir` for these packages (paths below it). `Ok(Err)`: which packages are
/// damaged, and why; then nothing was made.
pub fn make(dir: &Path, hrefs: &[String]) -> Result<Result<Made, Vec<(String, String)>>> {
    let mut hrefs = hrefs.to_vec();
    hrefs.sort();
    let work = tempfile::Builder::new().prefix(crate::sys::files::TMP_PREFIX).tempdir_in(dir)?;
    let mut documents = Vec::new();
    for kind in write::DOCUMENTS {
        let path = work.path().join(kind);
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let packed = Hashed::new(BufWriter::new(file), Kind::Sha256);
        let mut file = Hashed::new(GzEncoder::new(packed, flate2::Compression::default()), Kind::Sha256);
        file.write_all(write::opening(kind, hrefs.len()).as_bytes())?;
        documents.push(Document { kind, file });
    }
    let place = Place::Folder(dir.to_path_buf());
    let (mut bad, mut bytes, mut revision) = (Vec::new(), 0, 0);
    for batch in hrefs.chunks(BATCH_MAX) {
        for (href, result) in batch.iter().zip(records(&place, batch)?) {
            match result {
                Ok((record, size)) => {
                    bytes += size;
                    revision = revision.max(record.built);
                    for (document, text) in documents.iter_mut().zip([record.primary, record.filelists, record.other]) {
                        document.file.write_all(text.as_bytes()).context("writing an index")?;
                    }
                }
                Err(why) => bad.push((href.clone(), why)),
            }
        }
    }
    if !bad.is_empty() {
        return Ok(Err(bad));
    }
    let mut written = Vec::new();
    for document in documents {
        written.push(finish(document, work.path())?);
    }
    let repomd = write::repomd(revision, &written);
    fs::write(work.path().join("repomd.xml"), &repomd).context("writing repomd.xml")?;
    let target = dir.join("repodata");
    fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(work.keep(), &target).with_context(|| format!("moving an index to {}", target.display()))?;
    let metadata = super::digest::of(Kind::Sha256, repomd.as_bytes()).hex;
    Ok(Ok(Made { metadata, packages: hrefs.len() as u64, bytes }))
}

fn finish(mut document: Document, work: &Path) -> Result<Written> {
    let kind = document.kind;
    document.file.write_all(write::closing(kind).as_bytes())?;
    let (packer, open, open_size) = document.file.into_parts();
    let packed = packer.finish().with_context(|| format!("packing {kind}.xml"))?;
    let (mut file, packed, size) = packed.into_parts();
    file.flush().with_context(|| format!("writing {kind}.xml.gz"))?;
    let name = format!("{}-{kind}.xml.gz", packed.hex);
    fs::rename(work.join(kind), work.join(&name)).with_context(|| format!("naming {name}"))?;
    let href = format!("repodata/{name}");
    Ok(Written { kind: kind.into(), href, sha256: packed.hex, size, open_sha256: open.hex, open_size })
}

type Outcome = Result<(Record, u64), String>;

/// The packages' records in their order, made on all cores.
fn records(place: &Place, hrefs: &[String]) -> Result<Vec<Outcome>> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(hrefs.len())));
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(href) = hrefs.get(at) else { return Ok(()) };
                let outcome = one(place, href)?;
                results.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?.push((at, outcome));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
    })?;
    let mut results = results.into_inner().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
    results.sort_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, outcome)| outcome).collect())
}

fn one(place: &Place, href: &str) -> Result<Outcome> {
    let mut inspector = Inspector::new(Want { file: Some(Kind::Sha256), payload: true });
    let found = place.stream(href, PACKAGE_MAX_BYTES, &mut |chunk| {
        inspector.push(chunk);
    })?;
    if found != Found::Whole {
        return Ok(Err(format!("cannot be read: {found:?}")));
    }
    let seen = inspector.finish();
    let (Ok(head), Some(checksum), []) = (&seen.head, &seen.checksum, &seen.faults[..]) else {
        return Ok(Err(seen.head.err().into_iter().chain(seen.faults).collect::<Vec<_>>().join("; ")));
    };
    let placed = Placed { href, sha256: &checksum.hex, size: seen.bytes };
    Ok(write::record(head, placed).map(|record| (record, seen.bytes)))
}
