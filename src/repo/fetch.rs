//! The package cache: `<cache>/packages/sha256/<hex>`, filled by whatever way a family downloads.
//! Nothing enters it without having the digest that the lock states.

use crate::recipe::lock::LockedPackage;
use crate::recipe::lock::hex;
use crate::sys::files;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Arguments of one apt-helper call stay well below the kernel's limit; after as many yum packages
/// what came is safe.
const BATCH_MAX_PACKAGES: usize = 400;

/// Where a package with this digest lies in the cache.
pub fn place(cache: &Path, sha256: &str) -> PathBuf {
    cache.join("packages/sha256").join(sha256)
}

/// The packages whose bytes the cache lacks.
pub fn missing<'a>(packages: &[&'a LockedPackage], cache: &Path) -> Vec<&'a LockedPackage> {
    packages.iter().filter(|p| !place(cache, &p.sha256).exists()).copied().collect()
}

/// Reads every package again and removes those whose bytes have changed since they came.
pub fn scrub(packages: &[&LockedPackage], cache: &Path) -> Result<()> {
    let check = |p: &LockedPackage| -> Result<()> {
        let file = place(cache, &p.sha256);
        if file.exists() && hex(&files::hash_file(&file)?) != p.sha256 {
            fs::remove_file(&file).with_context(|| format!("removing the damaged {}", file.display()))?;
        }
        Ok(())
    };
    parallel(packages, |p| check(p))
}

/// A package that is to be downloaded to a file.
pub struct Wanted<'a> {
    /// Where its repository lies.
    pub base: &'a str,
    pub package: &'a LockedPackage,
    pub to: PathBuf,
}

impl Wanted<'_> {
    pub fn uri(&self) -> String {
        format!("{}/{}", self.base, self.package.path)
    }
}

/// Downloads what it can and says why it refuses some; a file that cannot be had is simply absent.
pub type Download<'a> = dyn Fn(&[Wanted]) -> Result<Vec<String>> + 'a;

/// Fetches what is missing: from each of the repository's places in turn, one batch a place.
pub fn fetch(
    packages: &[&LockedPackage],
    bases: &BTreeMap<String, Vec<String>>,
    cache: &Path,
    download: &Download,
) -> Result<()> {
    let target = cache.join("packages/sha256");
    fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(cache.join("packages"))?;
    let rounds = bases.values().map(Vec::len).max().unwrap_or(0);
    let mut refused = Vec::new();
    for round in 0..rounds {
        let wanted = missing(packages, cache);
        for batch in wanted.chunks(BATCH_MAX_PACKAGES) {
            let wanted = |p: &&'_ LockedPackage| {
                let base = bases.get(&p.repository)?.get(round)?;
                Some((base.as_str(), scratch.path().join(&p.sha256)))
            };
            let files: Vec<Wanted> =
                batch.iter().filter_map(|p| wanted(p).map(|(base, to)| Wanted { base, package: p, to })).collect();
            refused.extend(download(&files)?);
            refused.extend(files.iter().filter_map(|w| take(&w.to, w.package, cache).err()).map(|e| format!("{e:#}")));
        }
    }
    let still = missing(packages, cache);
    if still.is_empty() {
        return Ok(());
    }
    /// More are only counted.
    const NAMES_SHOWN: usize = 10;
    let mut names: Vec<String> = still.iter().take(NAMES_SHOWN).map(|p| format!("{} {}", p.name, p.version)).collect();
    if still.len() > NAMES_SHOWN {
        names.push(format!("{} more", still.len() - NAMES_SHOWN));
    }
    refused.sort(); // several came at once
    refused.truncate(NAMES_SHOWN);
    anyhow::bail!(
        "{} locked package(s) can be had neither from the cache nor from a mirror: {}; \
         `kiln lock --update` locks what the repositories carry now{}",
        still.len(),
        names.join(", "),
        refused.iter().map(|r| format!("\n{r}")).collect::<String>()
    )
}

/// Moves a downloaded file into the cache if it is what the lock says.
fn take(file: &Path, package: &LockedPackage, cache: &Path) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let found = hex(&files::hash_file(file)?);
    if found != package.sha256 {
        anyhow::bail!("package {}: fetched bytes have sha256 {found}, the lock says {}", package.name, package.sha256);
    }
    let place = place(cache, &package.sha256);
    fs::rename(file, &place).with_context(|| format!("moving a package to {}", place.display()))
}

/// Runs `work` over `items` on a few threads; the first error wins.
pub fn parallel<T: Sync, F: Fn(&T) -> Result<()> + Sync>(items: &[T], work: F) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).min(8);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let run = || -> Result<()> {
            while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                work(item)?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
    })
}
