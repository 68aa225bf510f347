//! `kiln restore`: what `kiln backup` wrote, back into a folder that a server can run on. Nothing is
//! replaced, and nothing of an archive is placed before all of it was checked.

use super::exit::{Exit, error};
use super::{output, serve};
use crate::image::id::Digest;
use crate::ledger::backup::{self, Manifest};
use crate::ledger::{sqlite, timeline};
use crate::sys::files;
use anyhow::{Context, Result};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Stands in a folder while a restore places its files: a server on half of them would make new keys.
const UNFINISHED: &str = "restore.unfinished";

/// Puts ledger, keys, secrets and site of a backup into a folder
#[derive(clap::Args)]
pub struct Arguments {
    /// A file that `kiln backup` wrote
    file: PathBuf,
    /// The folder for all of it; it may exist, but not with a ledger, keys, secrets or a site in it
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let (file, dir) = (&arguments.file, &arguments.to);
    let manifest = restore(file, dir).with_context(|| format!("restoring {}", file.display()))?;
    let mut text = format!(
        "{}: cluster {} as of {}, ledger at revision {}\n",
        dir.display(),
        manifest.cluster,
        timeline::utc(manifest.made_ms),
        manifest.head
    );
    if !manifest.has_secrets() {
        text += "the backup held no secrets.toml: if the site had one, put it there before the start\n";
    }
    let site = dir.join(backup::SITE);
    text += &format!(
        "the ledger may be behind what the nodes know; next: kiln serve --site {} --state {}, then kiln cluster adopt\n",
        site.display(),
        dir.display()
    );
    output::text(&text)
}

/// A folder that a restore was cut off in is no state to go on with.
pub(super) fn refuse_unfinished(state: &Path) -> Result<()> {
    if !state.join(UNFINISHED).exists() {
        return Ok(());
    }
    Err(error(Exit::Refused, format!("a restore into {} was cut off; next: run it again", state.display())))
}

/// A folder below `parent` that only we can look into; it is gone when dropped.
pub(super) fn private_folder(parent: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(files::TMP_PREFIX)
        .permissions(PermissionsExt::from_mode(0o700))
        .tempdir_in(parent)
        .with_context(|| format!("creating a temporary folder in {}", parent.display()))
}

fn restore(file: &Path, dir: &Path) -> Result<Manifest> {
    let archive = File::open(file).context("opening it")?;
    // On the file system that the files will be on: they get there by a link, not by a copy.
    let beside = || dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = private_folder(if dir.is_dir() { dir } else { beside() })?;
    let manifest = unpack(archive, staged.path())?;
    check_ledger(&staged.path().join(backup::LEDGER), &manifest)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("creating folder {}", dir.display()));
        }
        _ => {}
    }
    let _lock = serve::lock(dir)?;
    place(staged.path(), dir)?;
    Ok(manifest)
}

fn damaged(what: impl std::fmt::Display) -> anyhow::Error {
    error(Exit::Refused, format!("it is no backup, or a damaged one: {what}"))
}

/// Brings the members into `folder`, each as the manifest says and nothing else.
fn unpack(from: impl Read, folder: &Path) -> Result<Manifest> {
    let mut archive = tar::Archive::new(std::io::BufReader::new(from));
    // Raw: the long-name extensions of tar would be read into memory whatever their size.
    let mut entries = archive.entries().map_err(damaged)?.raw(true);
    let mut next = |name: &str| {
        let entry = entries.next().ok_or_else(|| damaged(format!("it ends before {name}")))?.map_err(damaged)?;
        let found = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        match found == name && entry.header().entry_type().is_file() {
            true => Ok(entry),
            false => Err(damaged(format!("{found:?} stands where {name} belongs"))),
        }
    };
    let manifest = read_small(next(backup::MANIFEST)?)?;
    let seal = read_small(next(backup::SEAL)?)?;
    let manifest = Manifest::parse(&manifest, &seal).map_err(damaged)?;
    for member in &manifest.members {
        let mut entry = next(&member.name)?;
        // Before a byte is written: the disk is not filled by what was never meant.
        if entry.size() != member.size {
            return Err(damaged(format!("{} has {} bytes, not {}", member.name, entry.size(), member.size)));
        }
        let path = folder.join(&member.name);
        let writing = || format!("writing {}", path.display());
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(writing)?;
        let (size, sha256) = files::copy_hashed(&mut entry, &out).with_context(writing)?;
        member.check(size, &Digest(sha256)).map_err(damaged)?;
        out.sync_all().with_context(writing)?;
    }
    match entries.next() {
        None => Ok(manifest),
        Some(_) => Err(damaged("something follows its last member")),
    }
}

fn read_small(entry: tar::Entry<impl Read>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(backup::MANIFEST_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() as u64 > backup::MANIFEST_MAX_BYTES {
        return Err(damaged(format!("its manifest is longer than {} bytes", backup::MANIFEST_MAX_BYTES)));
    }
    Ok(bytes)
}

/// A newer kiln's ledger is refused here, not after it is in place.
fn check_ledger(path: &Path, manifest: &Manifest) -> Result<()> {
    let head =
        sqlite::inspect(path).map_err(|e| error(Exit::Refused, format!("{e:#} (it is kiln {}'s)", manifest.kiln)))?;
    if head != manifest.head {
        return Err(damaged(format!("its ledger ends at revision {head}, not {}", manifest.head)));
    }
    Ok(())
}

/// All of the members appear in `dir`, or none. After a power cut in between the marker is left, and
/// the same restore goes on.
fn place(staged: &Path, dir: &Path) -> Result<()> {
    let marker = dir.join(UNFINISHED);
    let going_on = marker.exists();
    let mut missing = Vec::new();
    for name in backup::IN_THE_WAY {
        let (new, old) = (staged.join(name), dir.join(name));
        if old.symlink_metadata().is_err() {
            missing.extend(new.exists().then_some((new, old)));
        } else if !(going_on && new.exists() && files::hash_file(&new)? == files::hash_file(&old)?) {
            return Err(error(Exit::Refused, format!("{} exists; a restore replaces nothing", old.display())));
        }
    }
    files::write_atomic(&marker, b"a restore places its files; if none runs, run it again\n", 0o600)?;
    for (at, (new, old)) in missing.iter().enumerate() {
        // A link never replaces what somebody put there meanwhile.
        if let Err(e) = fs::hard_link(new, old) {
            let undone = missing[..at].iter().try_for_each(|(_, old)| fs::remove_file(old));
            let undone = undone.and_then(|()| fs::remove_file(&marker));
            let context = if undone.is_ok() { "nothing was restored" } else { "some files were left there" };
            return Err(e).with_context(|| format!("placing {}; {context}", old.display()));
        }
    }
    files::sync_dir(dir)?;
    fs::remove_file(&marker).with_context(|| format!("removing {}", marker.display()))?;
    files::sync_dir(dir)
}

#[cfg(test)]
mod tests;
