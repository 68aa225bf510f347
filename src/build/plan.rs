//! What a build will do, as values: which stages are made and which are taken from the cache, each
//! named by the digest of all that its bytes depend on. Nothing is done here.

use crate::image::id::Digest;
use crate::recipe::lock::{LockedPackage, LockedRecipe};
use crate::recipe::{Compression, CompressionKind};
use std::fmt;

/// Raised whenever the way from packages to a layer's bytes changes.
pub const STAGE_FORMAT: u32 = 1;
/// Raised whenever the way from a tree to an initramfs's bytes changes.
pub const INITRAMFS_FORMAT: u32 = 1;

/// What a plan depends on beside the locked recipe.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Version line of the squashfs tool.
    pub squashfs_tools: &'a str,
    /// Digest of the static kiln-node binary.
    pub node: Digest,
    /// Public keys whose manifests the initramfs boots, base64.
    pub builders: &'a [String],
    /// kiln's release.
    pub kiln: &'a str,
}

/// A package stage: one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub name: String,
    /// sha256 (hex) of everything that its bytes depend on.
    pub key: String,
    pub packages: Vec<LockedPackage>,
}

/// One thing that a build does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Fetch { packages: usize, bytes: u64 },
    Stage { name: String, key: String, packages: usize, cached: bool },
    Initramfs { key: String, cached: bool },
    Role { overlays: Vec<String> },
    Lint,
    Commit { name: String },
}

/// The stages of a locked recipe that install anything, lowest first.
pub fn stages(locked: &LockedRecipe, squashfs_tools: &str) -> Vec<Stage> {
    let recipe = &locked.recipe;
    let mut below = String::new();
    let mut stages = Vec::new();
    for stage in &recipe.stages {
        let packages: Vec<LockedPackage> =
            locked.lock.packages.iter().filter(|p| p.stage == stage.name).cloned().collect();
        if packages.is_empty() {
            continue;
        }
        let mut text = format!("kiln stage {STAGE_FORMAT}\nbelow {below}\ntool {squashfs_tools}\n");
        text += &format!("compression {}\nepoch {}\n", compression(&recipe.compression), locked.lock.epoch);
        for (name, id) in &recipe.users {
            text += &format!("user {name} {id}\n");
        }
        for p in &packages {
            text += &format!("package {} {} {} {}\n", p.name, p.version, p.arch, p.sha256);
        }
        let key = Digest::of(text.as_bytes()).hex();
        below.clone_from(&key);
        stages.push(Stage { name: stage.name.clone(), key, packages });
    }
    stages
}

/// sha256 (hex) of everything that the initramfs depends on.
pub fn initramfs_key(locked: &LockedRecipe, stages: &[Stage], inputs: &Inputs) -> String {
    let mut text = format!("kiln initramfs {INITRAMFS_FORMAT} {}\nnode {}\n", inputs.kiln, inputs.node);
    for stage in stages {
        text += &format!("stage {}\n", stage.key);
    }
    match &locked.recipe.initramfs_modules {
        None => text += "modules default\n",
        Some(modules) => text += &format!("modules {}\n", modules.join(" ")),
    }
    for builder in inputs.builders {
        text += &format!("builder {builder}\n");
    }
    Digest::of(text.as_bytes()).hex()
}

/// Everything that the build will do. `has` tells whether the cache holds a package (by sha256), a
/// stage or an initramfs (by key).
pub fn plan(locked: &LockedRecipe, inputs: &Inputs, tag: &str, has: &Has) -> Vec<Step> {
    let stages = stages(locked, inputs.squashfs_tools);
    let missing: Vec<&LockedPackage> = stages
        .iter()
        .filter(|s| !(has.stage)(&s.key))
        .flat_map(|s| &s.packages)
        .filter(|p| !(has.package)(&p.sha256))
        .collect();
    let mut steps = Vec::new();
    if !missing.is_empty() {
        steps.push(Step::Fetch { packages: missing.len(), bytes: missing.iter().map(|p| p.size).sum() });
    }
    for stage in &stages {
        steps.push(Step::Stage {
            name: stage.name.clone(),
            key: stage.key.clone(),
            packages: stage.packages.len(),
            cached: (has.stage)(&stage.key),
        });
    }
    let key = initramfs_key(locked, &stages, inputs);
    steps.push(Step::Initramfs { cached: (has.initramfs)(&key), key });
    steps.push(Step::Role { overlays: locked.recipe.overlays.clone() });
    steps.push(Step::Lint);
    steps.push(Step::Commit { name: format!("{}/{}:{tag}", locked.recipe.release, locked.recipe.role) });
    steps
}

/// What the cache holds.
pub struct Has<'a> {
    pub package: &'a dyn Fn(&str) -> bool,
    pub stage: &'a dyn Fn(&str) -> bool,
    pub initramfs: &'a dyn Fn(&str) -> bool,
}

fn compression(compression: &Compression) -> String {
    let kind = match compression.kind {
        CompressionKind::Gzip => "gzip",
        CompressionKind::Xz => "xz",
        CompressionKind::Zstd => "zstd",
    };
    format!("{kind} {}", compression.level)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = |cached: &bool| if *cached { "cached" } else { "make" };
        match self {
            Step::Fetch { packages, bytes } => write!(f, "fetch      {packages} packages, {} MiB", bytes >> 20),
            Step::Stage { name, key, packages, cached } => {
                write!(f, "stage      {name}: {packages} packages, {} {}", how(cached), &key[..12.min(key.len())])
            }
            Step::Initramfs { key, cached } => write!(f, "initramfs  {} {}", how(cached), &key[..12.min(key.len())]),
            Step::Role { overlays } => write!(f, "role       {}", overlays.join(" ")),
            Step::Lint => f.write_str("lint"),
            Step::Commit { name } => write!(f, "commit     {name}"),
        }
    }
}
