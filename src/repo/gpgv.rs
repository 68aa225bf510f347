//! gpgv asked about signatures of yum repositories and packages; [`super::openpgp`] judges what it
//! says. One way for yum and apt: the tool that every Debian host trusts its own packages with.

use super::openpgp::{self, Key, Verdict};
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Debian's whole keyring is 150 kB.
pub const KEYRING_MAX_BYTES: u64 = 16 << 20;
/// After its input's end it has one public-key operation left.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Keys that signatures may be made with.
pub struct Keyring {
    folder: tempfile::TempDir,
    pub keys: Vec<Key>,
    /// The files, for messages.
    pub names: String,
}

/// One signature being checked while its data goes by.
pub struct Check {
    gpgv: command::Fed,
    _signature: tempfile::NamedTempFile,
}

impl Keyring {
    /// Reads the keys of these files, armoured or binary.
    pub fn open(paths: &[PathBuf]) -> Result<Keyring> {
        let folder = tempfile::Builder::new().prefix("kiln-keys-").tempdir().context("creating a folder for keys")?;
        let mut all = Vec::new();
        for path in paths {
            let bytes = files::read_bounded(path, KEYRING_MAX_BYTES)?;
            let what = format!("key file {}", path.display());
            let binary = openpgp::binary(&bytes, &what).map_err(anyhow::Error::msg)?;
            if openpgp::keys(&binary).is_empty() {
                bail!("{what} holds no public key; export one with gpg --export --armor");
            }
            all.extend(binary);
        }
        let file = ring(folder.path());
        std::fs::write(&file, &all).with_context(|| format!("writing {}", file.display()))?;
        let names = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Ok(Keyring { keys: openpgp::keys(&all), names, folder })
    }

    /// Begins to check a detached signature in binary form.
    pub fn begin(&self, signature: &[u8]) -> Result<Check> {
        let mut file = tempfile::NamedTempFile::new_in(self.folder.path()).context("writing a signature")?;
        file.write_all(signature).context("writing a signature")?;
        let mut line = Command::new("gpgv");
        line.args(["--status-fd", "1", "--homedir"]).arg(self.folder.path());
        line.arg("--keyring").arg(ring(self.folder.path())).arg(file.path()).arg("-");
        line.env("LC_ALL", "C.UTF-8");
        Ok(Check { gpgv: command::feed(&mut line)?, _signature: file })
    }

    /// Checks a detached signature over these bytes.
    pub fn check(&self, signature: &[u8], data: &[u8]) -> Result<Verdict> {
        let mut check = self.begin(signature)?;
        check.push(data);
        check.finish()
    }

    /// The key with this fingerprint.
    pub fn key(&self, fingerprint: &str) -> Option<&Key> {
        self.keys.iter().find(|k| k.fingerprint.eq_ignore_ascii_case(fingerprint))
    }
}

impl Check {
    pub fn push(&mut self, bytes: &[u8]) {
        self.gpgv.push(bytes);
    }

    pub fn finish(self) -> Result<Verdict> {
        Ok(openpgp::judge(&String::from_utf8_lossy(&self.gpgv.finish(TIMEOUT)?)))
    }
}

fn ring(folder: &Path) -> PathBuf {
    folder.join("keys.gpg")
}
