//! Recipes in three stages: [`file`] (raw TOML, every problem with its line) -> [`Recipe`] (valid)
//! -> [`lock::LockedRecipe`] (every package pinned). Pure: files reach it as text through
//! [`file::Source`].

pub mod file;
pub mod lock;
mod merge;
pub mod name;
pub mod problem;
pub mod reader;
pub mod system;
pub mod system_file;
mod waits;

use std::collections::BTreeMap;
pub use system::System;

/// A valid recipe with all that it extends merged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// `zed`, `mitaka`: the folder below `recipes/`.
    pub release: String,
    pub role: String,
    pub distribution: Distribution,
    /// One package stage for each recipe of the `extends` chain, the distribution's first.
    pub stages: Vec<Stage>,
    /// Every system of the chain in start order (an order that respects `after`; ties by name).
    pub systems: Vec<System>,
    /// Overlay names in the order in which they are laid: those of the chain's recipes first,
    /// then one for each system. Later ones win; two that bring the same file are a problem.
    pub overlays: Vec<String>,
    pub repositories: Vec<Repository>,
    /// Kernel arguments of the role.
    pub cmdline: Vec<String>,
    /// Modules of the initramfs; `None`: all network and storage drivers.
    pub initramfs_modules: Option<Vec<String>>,
    /// Pinned uids (and gids of the same name and number) of owners of kept state.
    pub users: BTreeMap<String, u32>,
    pub compression: Compression,
    /// `enforcing`, `permissive` or `disabled`, where the distribution has SELinux.
    pub selinux: Option<String>,
}

/// The packages that one recipe of the chain adds (its systems' packages included), sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The role name of that recipe, e.g. `base`, `infra`.
    pub name: String,
    pub packages: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    pub family: Family,
    /// `debian12`, `centos7`.
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Apt,
    Yum,
}

/// Where packages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    pub id: String,
    pub url: RepositoryUrl,
    /// apt only.
    pub suites: Vec<String>,
    /// apt only.
    pub components: Vec<String>,
    /// apt only: a keyring file on the building host; `None` with `url = "host"`: the host's own.
    pub keyring: Option<String>,
    pub trust: Trust,
    pub preload: Preload,
    /// Lower wins (yum).
    pub priority: u32,
    /// Names of packages that are not taken from it, sorted; `*` and `?` match (yum).
    pub exclude: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepositoryUrl {
    /// The building host's own apt sources that carry one of the suites.
    Host,
    /// `file://`, `http://` or `https://`, without a trailing slash.
    Url(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Signed by a key of the keyring (apt default) or of this file beside the recipe.
    Signed { gpgkey: Option<String> },
    /// The metadata's digest stands in the lock.
    Pinned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preload {
    None,
    Closure,
    Full,
}

/// squashfs compressor and level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compression {
    pub kind: CompressionKind,
    pub level: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionKind {
    Gzip,
    Xz,
    Zstd,
}
