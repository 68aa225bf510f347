//! The lock: every package of a role pinned to name, version, architecture and sha256.
//! One format for apt and yum. URLs and mirrors never enter it; digests do.

use super::Recipe;
use serde::{Deserialize, Serialize};

/// `<role>.lock` beside the recipe, TOML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Format version, 1.
    pub version: u32,
    pub release: String,
    pub role: String,
    /// SOURCE_DATE_EPOCH of every bake from this lock: the newest date in the repositories'
    /// signed metadata, Unix seconds.
    pub epoch: u64,
    /// sha256 (hex) of the canonical text of what was asked for (stages with their packages,
    /// repositories' ids, suites, components): a recipe that asks for something else is not locked.
    pub request: String,
    #[serde(default, rename = "repository")]
    pub repositories: Vec<LockedRepository>,
    /// Sorted by stage (in chain order), then name, then architecture.
    #[serde(default, rename = "package")]
    pub packages: Vec<LockedPackage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedRepository {
    pub id: String,
    /// sha256 (hex) of its signed metadata, one for each suite (InRelease) or one (repomd.xml).
    pub metadata: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    pub name: String,
    /// Full version: Debian's, or epoch:version-release.
    pub version: String,
    pub arch: String,
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Path of the package file inside its repository, e.g. `pool/main/b/bash/bash_5.2_amd64.deb`.
    pub path: String,
    /// Id of the repository.
    pub repository: String,
    /// Name of the stage that installs it.
    pub stage: String,
}

/// A recipe together with a lock that answers exactly what the recipe asks for.
#[derive(Clone, Debug)]
pub struct LockedRecipe {
    pub recipe: Recipe,
    pub lock: Lock,
}
