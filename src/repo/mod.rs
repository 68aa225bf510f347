//! Package repositories: what their indexes say (pure), the host's apt that resolves, signatures
//! and digests that are verified, packages that are fetched into the cache.

pub mod apt;
pub mod changes;
pub mod deb822;
pub mod fetch;
pub mod packages;
pub mod release;
pub mod sources;
pub mod verify;

/// sha256 of bytes in hex.
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}

/// Lower-case hex (`image` comes after `repo`, so its twin cannot be used here).
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
