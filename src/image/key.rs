//! The builder's key file: an ed25519 private key, PKCS#8 PEM, readable by its owner only.

use crate::sys::files;
use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A PEM file of one key is about 120 bytes.
const KEY_FILE_MAX_BYTES: u64 = 16 * 1024;

/// Makes a key and writes it to `path`, which must not exist.
pub fn new(path: &Path) -> Result<SigningKey> {
    make(path)?.ok_or_else(|| anyhow!("key file {} exists already; it is not replaced", path.display()))
}

/// Reads a key. A file that others can read is refused: whoever read it can sign.
pub fn load(path: &Path) -> Result<SigningKey> {
    let reading = || format!("reading builder's key {}", path.display());
    let mode = fs::metadata(path).with_context(reading)?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("key file {} can be read by others (mode {:03o}); run: chmod 600 {0}", path.display(), mode & 0o777);
    }
    let text = String::from_utf8(files::read_bounded(path, KEY_FILE_MAX_BYTES)?).with_context(reading)?;
    // The parser's error says what is wrong with the form and nothing of the key.
    SigningKey::from_pkcs8_pem(&text).with_context(reading)
}

/// Reads the key at `path`, or makes one there; `true`: it was made.
pub fn load_or_new(path: &Path) -> Result<(SigningKey, bool)> {
    if !path.exists()
        && let Some(key) = make(path)?
    {
        return Ok((key, true));
    }
    Ok((load(path)?, false))
}

/// `None`: there is a file already, perhaps made by another process just now.
fn make(path: &Path) -> Result<Option<SigningKey>> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|e| anyhow!("asking for random bytes: {e}"))?;
    let key = SigningKey::from_bytes(&seed);
    // Without the public half (PKCS#8 version 1): OpenSSL 3.0 cannot read the longer form.
    let pem = KeypairBytes { secret_key: seed, public_key: None }.to_pkcs8_pem(Default::default());
    let pem = pem.context("encoding the key")?;
    let writing = || format!("writing key file {}", path.display());
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(writing)?;
    // tempfile makes it 0600, and the link below never replaces: whole or absent, and never two.
    let mut tmp = tempfile::NamedTempFile::new_in(dir).with_context(writing)?;
    tmp.write_all(pem.as_bytes()).and_then(|()| tmp.as_file().sync_all()).with_context(writing)?;
    match tmp.persist_noclobber(path) {
        Ok(_) => files::sync_dir(dir).map(|()| Some(key)),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
        Err(e) => Err(e.error).with_context(writing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/builder.key");
        let (made, fresh) = load_or_new(&path).unwrap();
        assert!(fresh);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (read, fresh) = load_or_new(&path).unwrap();
        assert!(!fresh && read == made);
        assert!(format!("{:#}", new(&path).unwrap_err()).contains("exists already"));
        assert!(load(&path).unwrap() == made, "the refusal left it alone");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn openssl_reads_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let key = new(&dir.path().join("k")).unwrap();
        let mut command = std::process::Command::new("openssl");
        command.args(["pkey", "-pubout", "-outform", "DER", "-in"]).arg(dir.path().join("k"));
        let Ok(output) = command.output() else {
            eprintln!("skipped: openssl is not installed");
            assert!(std::env::var_os("CI").is_none(), "CI must have openssl");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.ends_with(key.verifying_key().as_bytes()));
    }

    #[test]
    fn bad_key_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let error = |path: &Path| format!("{:#}", load(path).unwrap_err());
        assert!(error(&path).contains("reading builder's key"));
        for content in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "\u{0}\u{1}"] {
            files::write_atomic(&path, content.as_bytes(), 0o600).unwrap();
            assert!(error(&path).contains("reading builder's key"), "{content:?}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(error(&path).contains("can be read by others"));
    }
}
