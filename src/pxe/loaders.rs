//! The boot loaders that TFTP and HTTP hand out: a few known names, their bytes in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

/// iPXE for BIOS, on the card's own UNDI driver.
pub const BIOS: &str = "undionly.kpxe";
/// iPXE for UEFI, on the firmware's own network driver.
pub const UEFI: &str = "snponly.efi";
/// iPXE for UEFI with drivers of its own.
pub const UEFI_NATIVE: &str = "ipxe.efi";
/// All names that are served.
pub const NAMES: [&str; 3] = [BIOS, UEFI, UEFI_NATIVE];
/// A loader is smaller than this, bytes.
pub const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Name -> bytes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Loaders(Arc<BTreeMap<String, Arc<[u8]>>>);

impl Loaders {
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Loaders {
        Loaders(Arc::new(files.into_iter().map(|(name, bytes)| (name, bytes.into())).collect()))
    }

    /// A name as a client wrote it: `/`, `\` and doubled slashes before it do not matter, nor does
    /// the 0xFF that old ROMs append (option 67 taken for unterminated).
    pub fn get(&self, name: &str) -> Option<Arc<[u8]>> {
        let bare = name.trim_start_matches(['/', '\\']).trim_end_matches(['\u{ff}', '\u{fffd}', '\0']);
        self.0.get(bare.strip_prefix("loaders/").unwrap_or(bare)).cloned()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// How a loader's bytes are called over HTTP: EDK2 goes by it or by the ending.
pub fn content_type(name: &str) -> &'static str {
    if name.ends_with(".efi") { "application/efi" } else { "application/octet-stream" }
}
