//! Reads `secrets.toml`, if nobody else can.

use crate::cli::exit::{Exit, error};
use crate::site::secrets::{Secrets, parse};
use anyhow::{Context, Result};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// All secrets of a site are small, bytes.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// The flag's file, else `secrets.toml` beside the site, if it exists.
pub fn file_of(flag: Option<&Path>, site: &Path) -> Option<PathBuf> {
    let beside = || site.parent().map(|p| p.join("secrets.toml")).filter(|p| p.exists());
    flag.map(Path::to_path_buf).or_else(beside)
}

/// Reads the secrets at `path`, as [`read_text`] does.
pub fn read(path: &Path) -> Result<Secrets> {
    Ok(parse(&read_text(path)?, &path.display().to_string())?)
}

/// Reads the text of the secrets at `path`. Refused when group or others may read or write the file, or when it
/// belongs to someone else (root's are fine).
pub fn read_text(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("opening secrets {}", path.display()))?;
    // Of the open file, not of the path: it cannot be swapped in between.
    let metadata = file.metadata().with_context(|| format!("reading mode of {}", path.display()))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let message = format!("{} can be read by others (mode {mode:04o}): run chmod 600 {0}", path.display());
        return Err(error(Exit::Usage, message));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(error(Exit::Usage, format!("{} belongs to another user (uid {owner})", path.display())));
    }
    let mut text = String::new();
    let read = file.by_ref().take(FILE_MAX_BYTES + 1).read_to_string(&mut text);
    read.with_context(|| format!("reading secrets {}", path.display()))?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(error(Exit::Usage, format!("{} is longer than {FILE_MAX_BYTES} bytes", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.toml");
        std::fs::write(&path, "[galera]\nsst = \"x\"\n").unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = read(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            if let Err(error) = read {
                assert_eq!(crate::cli::exit::status(&error), 2);
                assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
            }
        }
    }
}
