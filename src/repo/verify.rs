//! Signatures and digests of repository metadata, checked by kiln itself after apt did so: only
//! bytes that passed here are believed. gpgv checks, [`super::release`] judges its answer.

pub mod apt;
pub mod packages;
pub mod yum;

use super::release::{self, Release};
use super::{gpgv, openpgp};
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const GPGV_TIMEOUT: Duration = Duration::from_secs(60);
/// Debian's own are 150 kB.
const RELEASE_MAX_BYTES: u64 = 16 << 20;
/// A whole distribution's index is some 50 MB.
const INDEX_MAX_BYTES: u64 = 1 << 30;

/// Verified metadata of one suite.
pub struct Verified {
    pub release: Release,
    /// sha256 (hex) of the signed file's bytes.
    pub digest: String,
}

/// Verifies the `InRelease` file (or `Release` with `Release.gpg`) whose path is `stem` plus that
/// name, against `keyrings`; `None`: it is not signed, its digest will stand in the lock.
pub fn release(stem: &str, keyrings: Option<&[PathBuf]>, scratch: &Path) -> Result<Verified> {
    let inline = PathBuf::from(format!("{stem}InRelease"));
    let plain = PathBuf::from(format!("{stem}Release"));
    let file = if inline.exists() { inline.clone() } else { plain };
    let bytes = files::read_bounded(&file, RELEASE_MAX_BYTES)?;
    let text = match keyrings {
        Some(keyrings) => signed_text(&file, file == inline, keyrings, scratch)?,
        None => payload(&bytes),
    };
    let text = String::from_utf8(text).with_context(|| format!("reading {} as text", file.display()))?;
    let release =
        release::parse(&text).map_err(anyhow::Error::msg).with_context(|| format!("reading {}", file.display()))?;
    Ok(Verified { release, digest: crate::recipe::lock::hex_digest(&bytes) })
}

/// The text that a good signature covers.
fn signed_text(file: &Path, inline: bool, keyrings: &[PathBuf], scratch: &Path) -> Result<Vec<u8>> {
    let content = scratch.join("signed-content");
    let mut gpgv = Command::new("gpgv");
    gpgv.args(["--status-fd", "1", "--weak-digest", "SHA1"]);
    for (i, keyring) in keyrings.iter().enumerate() {
        gpgv.arg("--keyring").arg(binary_keyring(keyring, &scratch.join(format!("keyring-{i}.gpg")))?);
    }
    if inline {
        gpgv.arg("--output").arg(&content).arg(file);
    } else {
        let mut detached = file.as_os_str().to_owned();
        detached.push(".gpg");
        gpgv.arg(detached).arg(file);
    }
    let _ = fs::remove_file(&content);
    let output = command::run(&mut gpgv, b"", GPGV_TIMEOUT)?;
    release::judge_signatures(&output.text())
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("verifying the signature of {} with {keyrings:?}", file.display()))?;
    files::read_bounded(if inline { &content } else { file }, RELEASE_MAX_BYTES)
}

/// Without a signature to check: the text inside a clear-signed file, or the file itself.
fn payload(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let Some(rest) = text.strip_prefix("-----BEGIN PGP SIGNED MESSAGE-----") else { return bytes.to_vec() };
    let body = rest.split_once("\n\n").map_or(rest, |(_, body)| body);
    body.split("\n-----BEGIN PGP SIGNATURE-----").next().unwrap_or_default().as_bytes().to_vec()
}

/// gpgv reads binary keyrings only; an armoured one is unwrapped into `to`.
fn binary_keyring(keyring: &Path, to: &Path) -> Result<PathBuf> {
    let bytes = files::read_bounded(keyring, gpgv::KEYRING_MAX_BYTES)?;
    let keys = openpgp::binary(&bytes, &format!("keyring {}", keyring.display())).map_err(anyhow::Error::msg)?;
    if keys == bytes {
        return fs::canonicalize(keyring).context("resolving a keyring");
    }
    fs::write(to, keys).with_context(|| format!("writing {}", to.display()))?;
    Ok(to.to_path_buf())
}

/// Reads an index file that must have the digest and size that `release` states for `path`.
pub fn index(file: &Path, path: &str, release: &Release) -> Result<String> {
    let (digest, size) =
        release.sha256.get(path).with_context(|| format!("finding {path} among the release file's SHA256 digests"))?;
    let bytes = files::read_bounded(file, INDEX_MAX_BYTES)?;
    let found = crate::recipe::lock::hex_digest(&bytes);
    if found != *digest || bytes.len() as u64 != *size {
        bail!("index {} has sha256 {found}, the signed release file says {digest}", file.display());
    }
    String::from_utf8(bytes).with_context(|| format!("reading {} as text", file.display()))
}
