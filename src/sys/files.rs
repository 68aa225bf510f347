//! Files that are either whole or absent, and locks between processes.

use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How the temporary files of [`write_atomic`] begin.
pub const TMP_PREFIX: &str = ".kiln-tmp-";

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it over `path`.
/// `mode` is set before the first byte is written, so a secret is never readable by others.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut tmp = tempfile::Builder::new()
        .prefix(TMP_PREFIX)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
        .tempfile_in(dir)
        .with_context(|| format!("creating a temporary file in {}", dir.display()))?;
    // The umask may have taken bits away that the caller asked for.
    nix::sys::stat::fchmod(tmp.as_file(), nix::sys::stat::Mode::from_bits_truncate(mode))?;
    tmp.write_all(bytes).with_context(|| format!("writing {}", path.display()))?;
    tmp.as_file().sync_all()?;
    tmp.persist(path).with_context(|| format!("renaming over {}", path.display()))?;
    sync_dir(dir)
}

/// Makes renames and unlinks in `dir` survive a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).with_context(|| format!("syncing folder {}", dir.display()))
}

/// Reads a file of at most `max_bytes`; a longer one is an error, not a truncation.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > max_bytes {
        anyhow::bail!("{} is larger than {max_bytes} bytes", path.display());
    }
    Ok(bytes)
}

/// An advisory lock on a file, held until dropped (or until the process dies).
pub struct Lock {
    _file: nix::fcntl::Flock<File>,
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening lock {}", path.display()))
}

/// The exclusive lock on `path` if nobody holds it, creating the file if needed.
pub fn try_lock(path: &Path) -> Result<Option<Lock>> {
    match nix::fcntl::Flock::lock(open_lock(path)?, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Some(Lock { _file: file })),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}

/// Waits for the exclusive lock on `path`, creating the file if needed.
pub fn lock(path: &Path) -> Result<Lock> {
    let file = open_lock(path)?;
    let file = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(Lock { _file: file })
}

/// Copies a whole stream, returning the number of bytes and their sha256.
pub fn copy_hashed(mut from: impl Read, mut to: impl Write) -> std::io::Result<(u64, [u8; 32])> {
    use sha2::Digest;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0u8; 256 * 1024];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok((total, hasher.finalize().into())),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        total += n as u64;
    }
}

/// sha256 of a file's bytes.
pub fn hash_file(path: &Path) -> Result<[u8; 32]> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(copy_hashed(file, std::io::sink()).with_context(|| format!("reading {}", path.display()))?.1)
}

/// Removes a folder tree; an absent one is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
