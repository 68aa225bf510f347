//! Yum repositories from here: metadata that passed its checks, the host's dnf that solves over
//! exactly those files, packages whose own signatures are checked as they come. The solver never
//! reaches the network, the host's rpm database or dnf's folders.

use super::digest::{Checksum, Hashed, Kind};
use super::finding::Report;
use super::gpgv::Keyring;
use super::place::{Found, Place};
use super::rpm::facts::Nevra;
use super::verify::packages::{self, Identity, Listed};
use super::verify::yum::{self as check, METADATA_MAX_BYTES, REPOMD, REPOMD_MAX_BYTES};
use super::yum::primary::Packages;
use super::yum::repomd::{self, MetadataFile};
use super::yum::solve::{self, Question, Stated};
use super::{digest, fetch, unpack};
use crate::recipe::lock::{Lock, LockedPackage};
use crate::recipe::{Recipe, RepositoryUrl, Trust};
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Read by Debian's own Python: another in PATH lacks the host's modules.
const PYTHON: &str = "/usr/bin/python3";
const SOLVER: &str = include_str!("dnf.py");
/// Of metadata that is kept in the cache, in a folder named by its digest.
const KEPT_REPOMD: &str = "repomd.xml";
/// Loading Fedora's metadata takes half a minute on an old machine.
const SOLVE_TIMEOUT: Duration = Duration::from_secs(600);

/// A repository as it is reached from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its id in the recipe.
    pub repository: String,
    pub url: String,
    pub priority: u32,
    /// Patterns of names that are not taken from it.
    pub exclude: Vec<String>,
    /// The file of the keys that sign it; `None`: pinned, its digest in the lock is all.
    pub key: Option<PathBuf>,
}

/// The sources that a recipe's repositories mean; `key` finds the file of a recipe's `gpgkey`.
pub fn sources_of(
    recipe: &Recipe,
    mirrors: &BTreeMap<String, String>,
    key: &dyn Fn(&str) -> Result<PathBuf>,
) -> Result<Vec<Source>> {
    let one = |r: &crate::recipe::Repository| {
        let url = match (mirrors.get(&r.id), &r.url) {
            (Some(mirror), _) => mirror,
            (None, RepositoryUrl::Url(url)) => url,
            (None, RepositoryUrl::Host) => bail!("repository {}: a yum repository needs an address", r.id),
        };
        let key = match &r.trust {
            Trust::Pinned => None,
            Trust::Signed { gpgkey: Some(file) } => {
                Some(key(file).with_context(|| format!("repository {}: finding its gpgkey", r.id))?)
            }
            Trust::Signed { gpgkey: None } => bail!("repository {}: who signs it? Give trust a gpgkey", r.id),
        };
        let (repository, exclude) = (r.id.clone(), r.exclude.clone());
        Ok(Source { repository, url: url.clone(), priority: r.priority, exclude, key })
    };
    recipe.repositories.iter().map(one).collect()
}

/// Resolves a recipe: reads and checks the metadata, solves once over everything that is asked for.
pub fn resolve(recipe: &Recipe, sources: &[Source], cache: &Path, say: &dyn Fn(&str)) -> Result<Lock> {
    let (folder, _lock) = kept_metadata(cache)?;
    let mut all = Vec::new();
    for source in sources {
        say(&format!("reading repository {}", source.repository));
        let found = metadata(source, &folder, say);
        all.push(found.with_context(|| format!("reading repository {} at {}", source.repository, source.url))?);
    }
    say("solving dependencies");
    let scratch = tempfile::tempdir_in(&folder).context("creating a folder for dnf")?;
    let repositories = sources.iter().zip(&all).map(|(source, m)| solve::Repository {
        id: &source.repository,
        priority: source.priority,
        exclude: &source.exclude,
        repomd: m.repomd.clone(),
        primary: m.primary.clone(),
        filelists: m.filelists.clone(),
    });
    let question = Question {
        cache: scratch.path().to_path_buf(),
        repositories: repositories.collect(),
        stages: recipe.stages.iter().map(|s| s.packages.as_slice()).collect(),
    };
    let stated: Vec<Stated> = all.iter().map(|m| m.stated.clone()).collect();
    solve::lock(recipe, &stated, ask(&question, scratch.path())?).map_err(anyhow::Error::msg)
}

fn ask(question: &Question, home: &Path) -> Result<solve::Answer> {
    let mut line = Command::new(PYTHON);
    // Isolated; nothing compiled is written; hawkey calls itself deprecated since 2019.
    line.args(["-I", "-B", "-W", "ignore", "-c", SOLVER]).env_clear();
    line.env("PATH", "/usr/bin:/bin").env("HOME", home).env("LC_ALL", "C.UTF-8").current_dir(home);
    let output = command::run(&mut line, &serde_json::to_vec(question)?, SOLVE_TIMEOUT).context("asking dnf")?;
    if !output.status.success() || output.timed_out {
        let said = String::from_utf8_lossy(&output.stderr);
        let missing = said.contains("No module named 'hawkey'");
        let next = if missing { " (kiln solves with the host's dnf 4; Debian: apt-get install dnf)" } else { "" };
        bail!("dnf's Python module failed, {}{next}:\n{}", output.status, said.trim());
    }
    serde_json::from_slice(&output.stdout).context("reading dnf's answer")
}

/// Where metadata is kept in the cache; one process at a time.
fn kept_metadata(cache: &Path) -> Result<(PathBuf, files::Lock)> {
    let folder = cache.join("yum");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = files::lock(&folder.join("kiln.lock"))?;
    Ok((folder, lock))
}

/// Every package of a repository, as the metadata (sha256 in hex) that the lock names lists them: from
/// the cache, or from the mirror while that carries the same.
pub fn all(sources: &[Source], repository: &str, locked: &str, cache: &Path) -> Result<Vec<LockedPackage>> {
    let (folder, _lock) = kept_metadata(cache)?;
    let primary = match kept_primary(&folder.join(locked), locked)? {
        Some(primary) => primary,
        None => {
            let source = sources.iter().find(|s| s.repository == repository);
            let source = source.with_context(|| format!("the recipe has no repository {repository}"))?;
            let found = metadata(source, &folder, &|_| {})?;
            if found.stated.digest != locked {
                let now = found.stated.digest;
                bail!(
                    "repository {repository}: its metadata is {now} now, the lock says {locked}; run kiln lock --update"
                );
            }
            found.primary
        }
    };
    let reading = || format!("reading repository {repository}'s primary.xml");
    let packed = BufReader::new(File::open(&primary).with_context(reading)?);
    let xml = unpack::open(packed, METADATA_MAX_BYTES).with_context(reading)?;
    let mut listed = Packages::new(BufReader::new(xml)).map_err(anyhow::Error::msg).with_context(reading)?;
    let mut packages = Vec::new();
    while let Some(entry) = listed.next_package().map_err(anyhow::Error::msg).with_context(reading)? {
        let p = entry.map_err(anyhow::Error::msg).with_context(reading)?;
        if p.checksum.kind != Kind::Sha256 {
            bail!(
                "repository {repository}: its metadata has no SHA-256 of {}: let kiln repo import index it anew",
                p.href
            );
        }
        packages.push(LockedPackage {
            name: p.nevra.name,
            version: format!("{}:{}-{}", p.nevra.epoch, p.nevra.version, p.nevra.release),
            arch: p.nevra.arch,
            sha256: p.checksum.hex,
            size: p.size,
            path: p.href,
            repository: repository.into(),
            stage: String::new(),
        });
    }
    Ok(packages)
}

/// The primary.xml of metadata that passed its checks when it was kept, if it still is whole.
fn kept_primary(kept: &Path, digest: &str) -> Result<Option<PathBuf>> {
    let file = kept.join(KEPT_REPOMD);
    if !file.is_file() {
        return Ok(None);
    }
    let bytes = files::read_bounded(&file, REPOMD_MAX_BYTES)?;
    if digest::of(Kind::Sha256, &bytes).hex != digest {
        return Ok(None);
    }
    let repomd = repomd::parse(&bytes[..]).map_err(anyhow::Error::msg)?;
    let Some(listed) = repomd.file("primary") else { return Ok(None) };
    let primary = kept.join(file_name(listed));
    Ok(if primary.is_file() && is_whole(&primary, listed)? { Some(primary) } else { None })
}

fn file_name(listed: &MetadataFile) -> &str {
    listed.href.rsplit('/').next().unwrap_or_default()
}

fn is_whole(path: &Path, listed: &MetadataFile) -> Result<bool> {
    let mut hashed = Hashed::new(File::open(path)?, listed.checksum.kind);
    std::io::copy(&mut hashed, &mut std::io::sink())?;
    Ok(hashed.finish().0 == listed.checksum)
}

/// Metadata files that passed their checks.
struct Metadata {
    stated: Stated,
    repomd: PathBuf,
    primary: PathBuf,
    filelists: PathBuf,
}

fn metadata(source: &Source, folder: &Path, say: &dyn Fn(&str)) -> Result<Metadata> {
    let place = Place::parse(&source.url)?;
    let bytes = place.read(REPOMD, REPOMD_MAX_BYTES)?.with_context(|| format!("finding {REPOMD}"))?;
    let digest = digest::of(Kind::Sha256, &bytes).hex;
    if let Some(key) = &source.key {
        let keyring = Keyring::open(std::slice::from_ref(key))?;
        let mut report = Report::new(place.shown(), "yum");
        check::check_signature(&place, &bytes, Some(&keyring), &mut report)?;
        refuse(&report)?;
        for warning in report.warnings() {
            say(&format!("warning: {}: {} {} ({})", source.repository, warning.object, warning.text, warning.kind));
        }
    }
    let repomd = repomd::parse(&bytes[..]).map_err(anyhow::Error::msg).with_context(|| format!("reading {REPOMD}"))?;
    let kept = folder.join(&digest);
    fs::create_dir_all(&kept).with_context(|| format!("creating {}", kept.display()))?;
    let file = |kind: &str| {
        let listed = repomd.file(kind).with_context(|| {
            let why = repomd.problems.join("; ");
            format!("finding {kind}.xml in {REPOMD} ({why}); kiln repo import indexes a repository anew")
        })?;
        bring(&place, listed, &kept)
    };
    let (primary, filelists) = (file("primary")?, file("filelists")?);
    let shown = kept.join(KEPT_REPOMD);
    fs::write(&shown, &bytes).with_context(|| format!("writing {}", shown.display()))?;
    let stated = Stated { repository: source.repository.clone(), digest, date: repomd.timestamp() };
    Ok(Metadata { stated, repomd: shown, primary, filelists })
}

fn refuse(report: &Report) -> Result<()> {
    match report.problems().next() {
        Some(problem) => bail!("{} {}", problem.object, problem.text),
        None => Ok(()),
    }
}

/// Brings a metadata file into `folder`, whole; its ending tells how it is packed.
fn bring(place: &Place, listed: &MetadataFile, folder: &Path) -> Result<PathBuf> {
    let to = folder.join(file_name(listed));
    if to.is_file() && is_whole(&to, listed)? {
        return Ok(to);
    }
    let max = listed.size.unwrap_or(METADATA_MAX_BYTES).min(METADATA_MAX_BYTES);
    let mut new = tempfile::NamedTempFile::new_in(folder).context("creating a metadata file")?;
    save(place, &listed.href, max, new.as_file_mut())?;
    if !is_whole(new.path(), listed)? {
        bail!("{} is not what {REPOMD} says ({}): the mirror is changing or damaged", listed.href, listed.checksum);
    }
    new.persist(&to).with_context(|| format!("writing {}", to.display()))?;
    Ok(to)
}

/// Streams a file that must be there; one byte more than it may have shows that it is too long.
fn save(place: &Place, href: &str, max_bytes: u64, to: &mut File) -> Result<()> {
    let mut failed = None;
    let found = place.stream(href, max_bytes.saturating_add(1), &mut |chunk| {
        failed = failed.take().or_else(|| to.write_all(chunk).err());
    })?;
    match (failed, found) {
        (Some(error), _) => Err(error).with_context(|| format!("writing {href}")),
        (None, Found::Whole) => Ok(()),
        (None, Found::Missing) => bail!("{href} is not in {}", place.shown()),
        (None, Found::Unreadable(why)) => bail!("reading {href} of {}: {why}", place.shown()),
    }
}

/// Downloads packages; those of a signed repository only with a good signature of their own, in
/// whose header stands who they are. Answers what was refused; refused files are removed.
pub fn download(sources: &[Source], wanted: &[fetch::Wanted]) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    for source in sources {
        let of: Vec<&fetch::Wanted> = wanted.iter().filter(|w| w.package.repository == source.repository).collect();
        if of.is_empty() {
            continue;
        }
        let place = Place::parse(&source.url)?;
        let (gone, said) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        fetch::parallel(&of, |w| {
            if gone.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut file = File::create(&w.to).with_context(|| format!("creating {}", w.to.display()))?;
            if let Err(error) = save(&place, &w.package.path, w.package.size, &mut file) {
                // A mirror that is gone is gone for the others, too; a file that is missing is only that.
                let missing = error.to_string().contains(" is not in ");
                gone.fetch_or(!missing, Ordering::Relaxed);
                fs::remove_file(&w.to).with_context(|| format!("removing {}", w.to.display()))?;
                said.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?.push(format!("{error:#}"));
            }
            Ok(())
        })?;
        refused.extend(said.into_inner().unwrap_or_default());
        if let Some(key) = &source.key {
            refused.extend(check_signatures(source, key, &of)?);
        }
    }
    Ok(refused)
}

fn check_signatures(source: &Source, key: &Path, wanted: &[&fetch::Wanted]) -> Result<Vec<String>> {
    let there: Vec<&&fetch::Wanted> = wanted.iter().filter(|w| w.to.exists()).collect();
    let Some(folder) = there.first().and_then(|w| w.to.parent()) else { return Ok(Vec::new()) };
    let keyring = Keyring::open(&[key.to_path_buf()])?;
    let ((), report) = packages::check_all(&Place::Folder(folder.to_path_buf()), Some(&keyring), |queue| {
        for w in &there {
            let checksum = Checksum::new(Kind::Sha256, &w.package.sha256).map_err(anyhow::Error::msg)?;
            let is = Identity::Rpm(nevra(w.package).map_err(anyhow::Error::msg)?);
            let href = w.package.sha256.clone();
            if !queue.push(Listed { href, size: w.package.size, checksum, is }) {
                break; // a worker failed, and that is the error
            }
        }
        Ok(())
    })?;
    let mut refused = Vec::new();
    for problem in report.problems() {
        let Some(w) = there.iter().find(|w| w.package.sha256 == problem.object) else { continue };
        let (name, version) = (&w.package.name, &w.package.version);
        refused.push(format!("repository {}: package {name} {version} {}", source.repository, problem.text));
        if w.to.exists() {
            fs::remove_file(&w.to).with_context(|| format!("removing {}", w.to.display()))?;
        }
    }
    Ok(refused)
}

/// The identity that a lock gives a package.
pub fn nevra(p: &LockedPackage) -> Result<Nevra, String> {
    let wrong = || format!("package {}: {:?} is not epoch:version-release", p.name, p.version);
    let (epoch, rest) = p.version.split_once(':').ok_or_else(wrong)?;
    let (version, release) = rest.rsplit_once('-').ok_or_else(wrong)?;
    Ok(Nevra {
        name: p.name.clone(),
        epoch: epoch.parse().map_err(|_| wrong())?,
        version: version.into(),
        release: release.into(),
        arch: p.arch.clone(),
    })
}
