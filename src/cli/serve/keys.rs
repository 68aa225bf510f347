//! The server's keys below its state folder: made at the first start, readable by their owner only.

use crate::image::id::hex;
use crate::pxe::api::certificate::{Authority, Identity, new_key};
use crate::sys::files::{read_bounded, write_atomic};
use anyhow::{Context, Result};
use std::path::Path;

/// A PEM key is shorter, bytes.
pub const KEY_MAX_BYTES: u64 = 16 * 1024;

pub struct Keys {
    /// Pinned by every node: losing it means approving them all again.
    pub identity: Identity,
    /// Signs generations' certificates.
    pub authority: Authority,
    /// Makes credentials.
    pub credential: [u8; 32],
}

/// Whether this state folder has served before.
pub fn exist(state: &Path) -> bool {
    state.join("ca.key").exists()
}

/// Reads the keys below `state`, making those that are missing.
pub fn load(state: &Path) -> Result<Keys> {
    let pem = |name: &str| text(&state.join(name), || new_key().map_err(anyhow::Error::msg));
    let identity = Identity::from_key(&pem("tls.key")?).map_err(anyhow::Error::msg).context("reading tls.key")?;
    let authority = Authority::from_key(&pem("ca.key")?).map_err(anyhow::Error::msg).context("reading ca.key")?;
    let secret = text(&state.join("credential.key"), || Ok(hex(&random()?)))?;
    let digest: crate::image::id::Digest =
        secret.trim().parse().map_err(anyhow::Error::msg).context("reading credential.key")?;
    Ok(Keys { identity, authority, credential: digest.0 })
}

fn text(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    if !path.exists() {
        let made = make().with_context(|| format!("making key {}", path.display()))?;
        write_atomic(path, made.as_bytes(), 0o600)?;
    }
    let bytes = read_bounded(path, KEY_MAX_BYTES)?;
    String::from_utf8(bytes).with_context(|| format!("reading key {}", path.display()))
}

/// 32 bytes from the kernel's random source.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("reading random bytes: {e}"))?;
    Ok(bytes)
}
