//! `kiln-import.json` beside imported repositories: which metadata each had when it was taken in.

use serde::{Deserialize, Serialize};

pub const FILE: &str = "kiln-import.json";
pub const VERSION: u32 = 1;
/// A thousand repositories have some 200 kB.
pub const MAX_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    pub version: u32,
    pub repositories: Vec<Pinned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Below the import; empty: the import itself.
    pub path: String,
    /// `sha256:` and the digest of its repomd.xml.
    pub metadata: String,
    /// Its index was made by kiln; else it came with it.
    pub made: bool,
    pub packages: u64,
    /// Of the packages.
    pub bytes: u64,
}

impl Import {
    pub fn parse(bytes: &[u8]) -> Result<Import, String> {
        let import: Import = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if import.version != VERSION {
            return Err(format!("is of version {}, this kiln reads {VERSION}", import.version));
        }
        Ok(import)
    }

    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The digest that the repository at `path` was pinned with.
    pub fn metadata(&self, path: &str) -> Option<&str> {
        self.repositories.iter().find(|r| r.path == path).map(|r| r.metadata.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_was_written() {
        let one = Pinned { path: "mitaka".into(), metadata: "sha256:ab".into(), made: true, packages: 1, bytes: 2 };
        let import = Import { version: VERSION, repositories: vec![one] };
        assert_eq!(Import::parse(import.to_text().as_bytes()), Ok(import.clone()));
        assert_eq!((import.metadata("mitaka"), import.metadata("")), (Some("sha256:ab"), None));
        assert!(Import::parse(import.to_text().replace("1,", "2,").as_bytes()).is_err());
        assert!(Import::parse(b"{}").is_err());
    }
}
