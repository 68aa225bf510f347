//! What a baked image says about its role to kiln-node: `/usr/lib/kiln/role.json`.

use super::id::Digest;
use crate::recipe::System;
use serde::{Deserialize, Serialize};

/// Where the file lies in the image.
pub const ROLE_FILE: &str = "/usr/lib/kiln/role.json";
/// Folder of a system's scripts in the image: `<this>/<system>/health` and so on.
pub const SYSTEMS_DIR: &str = "/usr/lib/kiln/systems";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleFile {
    pub release: String,
    pub role: String,
    /// In start order.
    pub systems: Vec<System>,
    /// Files ending in `.j2` that are rendered on the node, in overlay order.
    pub templates: Vec<Template>,
    /// Least memory of a node, MiB.
    pub memory_min_mib: u64,
    /// Blobs of the preloaded repositories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<Digest>,
}

/// A template and the system whose secrets it may use (`None`: a recipe's overlay, no secrets).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Absolute path in the image, ending in `.j2`; the result lies beside it without that ending.
    pub path: String,
    pub system: Option<String>,
}
