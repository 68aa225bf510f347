//! What a build will do, as values: which stages are made and which are taken from the cache, each
//! named by the digest of all that its bytes depend on. Nothing is done here.

use crate::image::id::Digest;
use crate::recipe::lock::{LockedPackage, LockedRecipe};
use crate::recipe::{Compression, CompressionKind, Family, Preload};
use std::collections::BTreeMap;
use std::fmt;

/// Raised whenever the way from packages to a layer's bytes changes.
pub const STAGE_FORMAT: u32 = 4;
/// Raised whenever the way from a tree to an initramfs's bytes changes.
pub const INITRAMFS_FORMAT: u32 = 1;

/// Raised whenever the way from packages to a repository's bytes changes.
pub const REPOSITORY_FORMAT: u32 = 1;

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

/// A repository that is preloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRepository {
    /// Its id in the recipe.
    pub id: String,
    /// sha256 (hex) of everything that its bytes depend on: not of the recipe, so that roles share it.
    pub key: String,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The lock's packages of this repository: with them all that a repair of any would install.
    Closure(Vec<LockedPackage>),
    /// All that its locked metadata (sha256 in hex) lists.
    Full(String),
}

impl Content {
    /// The recipe's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Content::Closure(_) => "closure",
            Content::Full(_) => "full",
        }
    }
}

/// One thing that a build does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Fetch { packages: usize, bytes: u64 },
    Stage { name: String, key: String, packages: usize, cached: bool },
    Initramfs { key: String, cached: bool },
    Repository { id: String, word: &'static str, key: String, cached: bool },
    Role { overlays: Vec<String> },
    Lint,
    Commit { name: String },
}

/// Rules between a recipe and what was locked for it that would be broken: each by its name, with
/// the next step. An image that breaks one could be made, and would not boot.
pub fn broken_rules(locked: &LockedRecipe) -> Vec<String> {
    let mut broken = Vec::new();
    let recipe = &locked.recipe;
    if recipe.selinux.as_deref() == Some("enforcing") {
        broken.push(
            "selinux: layers carry no labels, so nothing would be allowed: say \"permissive\" or \"disabled\"".into(),
        );
    }
    if recipe.distribution.family != Family::Yum {
        for repository in recipe.repositories.iter().filter(|r| r.preload != Preload::None) {
            broken.push(format!("preload: repository {}: only yum repositories can be preloaded", repository.id));
        }
    }
    let Some((package, version)) = locked.lock.packages.iter().find_map(|p| Some((p, kernel_version(p)?))) else {
        return broken;
    };
    let kernel = format!("{} {}", package.name, package.version);
    // zstd in squashfs came with Linux 4.14.
    if recipe.compression.kind == CompressionKind::Zstd && version < [4, 14, 0, 0] {
        broken.push(format!("compressor: {kernel} cannot read zstd; say gzip or xz in [image] compression"));
    }
    // Several lower layers came with Linux 4.0, and with 3.10.0-514 of CentOS 7.
    let is_el7 = version[..3] == [3, 10, 0];
    if version < [4, 0, 0, 0] && !(is_el7 && version[3] >= 514) {
        broken.push(format!("layers: {kernel} cannot mount several layers; lock 3.10.0-514 or later"));
    }
    broken
}

/// Version and build of a package that is a kernel: `0:3.10.0-1160.el7` is 3, 10, 0, 1160.
fn kernel_version(package: &LockedPackage) -> Option<[u64; 4]> {
    let debian =
        package.name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if package.name != "kernel" && !debian {
        return None;
    }
    let version = package.version.split_once(':').map_or(package.version.as_str(), |(_, rest)| rest);
    let mut numbers = version.split(['.', '-', '+', '~']).map(|part| part.parse().unwrap_or(0));
    Some(std::array::from_fn(|_| numbers.next().unwrap_or(0)))
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

/// What is preloaded, in the recipe's order. A repository of which the role has nothing is left out.
pub fn repositories(locked: &LockedRecipe) -> Vec<PlannedRepository> {
    let mut planned = Vec::new();
    for repository in &locked.recipe.repositories {
        let mut text = format!("kiln repository {REPOSITORY_FORMAT}\n");
        let content = match repository.preload {
            Preload::None => continue,
            Preload::Closure => {
                let of = |p: &&LockedPackage| p.repository == repository.id;
                let mut packages: Vec<LockedPackage> = locked.lock.packages.iter().filter(of).cloned().collect();
                if packages.is_empty() {
                    continue;
                }
                packages.sort_by(|a, b| a.path.cmp(&b.path)); // stages are a role's own
                for p in &packages {
                    text += &format!("package {} {}\n", p.sha256, p.path);
                }
                Content::Closure(packages)
            }
            Preload::Full => {
                let of = locked.lock.repositories.iter().find(|r| r.id == repository.id);
                let Some(metadata) = of.and_then(|r| r.metadata.first()) else { continue };
                text += &format!("all of {metadata}\n");
                Content::Full(metadata.clone())
            }
        };
        planned.push(PlannedRepository { id: repository.id.clone(), key: Digest::of(text.as_bytes()).hex(), content });
    }
    planned
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
/// stage, an initramfs or a repository (by key). What a full repository lacks is known only when its
/// metadata is read.
pub fn plan(locked: &LockedRecipe, inputs: &Inputs, tag: &str, has: &Has) -> Vec<Step> {
    let stages = stages(locked, inputs.squashfs_tools);
    let repositories = repositories(locked);
    let of_repository = |r: &'_ PlannedRepository| match &r.content {
        Content::Closure(packages) if !(has.repository)(&r.key) => packages.clone(),
        _ => Vec::new(),
    };
    let of_stages = stages.iter().filter(|s| !(has.stage)(&s.key)).flat_map(|s| s.packages.clone());
    let wanted = of_stages.chain(repositories.iter().flat_map(of_repository));
    let missing: BTreeMap<String, u64> =
        wanted.filter(|p| !(has.package)(&p.sha256)).map(|p| (p.sha256, p.size)).collect();
    let mut steps = Vec::new();
    if !missing.is_empty() {
        steps.push(Step::Fetch { packages: missing.len(), bytes: missing.values().sum() });
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
    for PlannedRepository { id, key, content } in repositories {
        steps.push(Step::Repository { cached: (has.repository)(&key), id, word: content.word(), key });
    }
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
    pub repository: &'a dyn Fn(&str) -> bool,
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
            Step::Repository { id, word, key, cached } => {
                write!(f, "repository {id}: {word}, {} {}", how(cached), &key[..12.min(key.len())])
            }
            Step::Role { overlays } => write!(f, "role       {}", overlays.join(" ")),
            Step::Lint => f.write_str("lint"),
            Step::Commit { name } => write!(f, "commit     {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::lock::Lock;
    use crate::recipe::{Distribution, Family, Recipe, Stage as RecipeStage};
    use std::collections::BTreeMap;

    fn locked(compression_level: u32, epoch: u64, infra_version: &str) -> LockedRecipe {
        let package = |name: &str, version: &str, stage: &str| LockedPackage {
            name: name.into(),
            version: version.into(),
            arch: "amd64".into(),
            sha256: format!("{name}-{version}"),
            size: 3 << 20,
            path: "x".into(),
            repository: "debian".into(),
            stage: stage.into(),
        };
        let stage = |name: &str| RecipeStage { name: name.into(), packages: Vec::new() };
        LockedRecipe {
            recipe: Recipe {
                release: "zed".into(),
                role: "infra".into(),
                distribution: Distribution { family: Family::Apt, name: "debian12".into() },
                stages: vec![stage("base"), stage("empty"), stage("infra")],
                systems: Vec::new(),
                overlays: vec!["base".into()],
                repositories: Vec::new(),
                cmdline: Vec::new(),
                initramfs_modules: None,
                users: BTreeMap::from([("mysql".to_string(), 401)]),
                compression: Compression { kind: CompressionKind::Zstd, level: compression_level },
                selinux: None,
            },
            lock: Lock {
                version: 1,
                release: "zed".into(),
                role: "infra".into(),
                epoch,
                request: String::new(),
                repositories: Vec::new(),
                packages: vec![package("bash", "1", "base"), package("mariadb", infra_version, "infra")],
            },
        }
    }

    fn keys(locked: &LockedRecipe) -> Vec<String> {
        stages(locked, "mksquashfs 4.5.1").into_iter().map(|s| s.key).collect()
    }

    #[test]
    fn a_stage_is_named_by_all_that_its_bytes_depend_on_and_nothing_else() {
        let first = keys(&locked(3, 1000, "1"));
        assert_eq!(first.len(), 2, "a stage without packages is no layer");
        let newer = keys(&locked(3, 1000, "2"));
        assert!(newer[0] == first[0] && newer[1] != first[1]);
        for other in [locked(4, 1000, "1"), locked(3, 1001, "1")] {
            let other = keys(&other);
            assert!(other[0] != first[0] && other[1] != first[1]);
        }
        let mut same = locked(3, 1000, "1");
        same.recipe.overlays.push("more".into());
        same.recipe.role = "other".into();
        assert_eq!(keys(&same), first);
    }

    #[test]
    fn what_the_kernel_cannot_read_or_mount_is_refused_by_name() {
        for (name, version, kind, want) in [
            ("kernel", "0:3.10.0-1160.el7", CompressionKind::Zstd, "compressor: kernel 0:3.10.0-1160.el7"),
            ("kernel", "0:3.10.0-1160.el7", CompressionKind::Gzip, ""),
            ("kernel", "0:3.10.0-327.el7", CompressionKind::Xz, "layers: "),
            ("kernel", "0:4.18.0-80.el8", CompressionKind::Zstd, ""),
            ("linux-image-6.1.0-37-amd64", "6.1.140-1", CompressionKind::Zstd, ""),
            ("linux-image-3.16.0-4-amd64", "3.16.7-1", CompressionKind::Gzip, "layers: "),
            ("linux-image-amd64", "3.16+63", CompressionKind::Zstd, ""), // no kernel, but what needs one
        ] {
            let mut locked = locked(3, 1000, "1");
            locked.recipe.compression.kind = kind;
            locked.lock.packages[0].name = name.into();
            locked.lock.packages[0].version = version.into();
            let broken = broken_rules(&locked).join("; ");
            assert!(broken.starts_with(want) && (want.is_empty() == broken.is_empty()), "{name} {version}: {broken:?}");
        }
        let mut enforcing = locked(3, 1000, "1");
        enforcing.recipe.selinux = Some("enforcing".into());
        assert!(broken_rules(&enforcing)[0].starts_with("selinux: "));
    }

    #[test]
    fn a_plan_makes_what_the_cache_lacks() {
        let locked = locked(3, 1000, "1");
        let builders = ["key".to_string()];
        let inputs = Inputs {
            squashfs_tools: "mksquashfs 4.5.1",
            node: Digest::of(b"node"),
            builders: &builders,
            kiln: "0.1.0",
        };
        let base = keys(&locked)[0].clone();
        let has = Has {
            package: &|sha256| sha256 == "bash-1",
            stage: &|key| key == base,
            initramfs: &|_| false,
            repository: &|_| false,
        };
        let steps = plan(&locked, &inputs, "latest", &has);
        assert_eq!(steps[0], Step::Fetch { packages: 1, bytes: 3 << 20 });
        let shown: Vec<String> = steps.iter().map(Step::to_string).collect();
        assert!(shown[1].starts_with("stage      base: 1 packages, cached"), "{shown:?}");
        assert!(shown[2].starts_with("stage      infra: 1 packages, make"), "{shown:?}");
        assert_eq!(shown.last().unwrap(), "commit     zed/infra:latest");
        let all = Has { package: &|_| true, stage: &|_| true, initramfs: &|_| true, repository: &|_| true };
        assert!(!plan(&locked, &inputs, "latest", &all).iter().any(|s| matches!(s, Step::Fetch { .. })));
    }

    #[test]
    fn a_repository_is_named_by_its_packages_whatever_role_and_stage_they_are_of() {
        let mut locked = locked(3, 1000, "1");
        locked.recipe.distribution.family = Family::Yum;
        let repository = |id: &str, preload| crate::recipe::Repository {
            id: id.into(),
            url: crate::recipe::RepositoryUrl::Host,
            suites: Vec::new(),
            components: Vec::new(),
            keyring: None,
            trust: crate::recipe::Trust::Pinned,
            preload,
            exclude: Vec::new(),
            priority: 50,
        };
        locked.recipe.repositories = vec![
            repository("debian", Preload::Closure),
            repository("unused", Preload::Closure),
            repository("none", Preload::None),
            repository("all", Preload::Full),
        ];
        let metadata = |id: &str| crate::recipe::lock::LockedRepository { id: id.into(), metadata: vec![id.into()] };
        locked.lock.repositories = ["debian", "unused", "none", "all"].map(metadata).to_vec();
        let planned = repositories(&locked);
        let shown: Vec<(&str, &str)> = planned.iter().map(|r| (r.id.as_str(), r.content.word())).collect();
        assert_eq!(shown, [("debian", "closure"), ("all", "full")]);
        let mut other = locked.clone();
        other.lock.packages.iter_mut().for_each(|p| p.stage = "base".into());
        (other.lock.epoch, other.recipe.role) = (2000, "other".into());
        assert_eq!(repositories(&other)[0].key, planned[0].key);
        other.lock.packages[0].sha256 = "changed".into();
        assert_ne!(repositories(&other)[0].key, planned[0].key);
        locked.recipe.distribution.family = Family::Apt;
        assert_eq!(broken_rules(&locked).len(), 3, "apt has no preloading");
    }

    #[test]
    fn another_builder_or_agent_is_another_initramfs() {
        let locked = locked(3, 1000, "1");
        let stages = stages(&locked, "tool");
        let key = |builder: &str, node: &[u8]| {
            let builders = [builder.to_string()];
            let inputs = Inputs { squashfs_tools: "tool", node: Digest::of(node), builders: &builders, kiln: "0.1.0" };
            initramfs_key(&locked, &stages, &inputs)
        };
        assert_eq!(key("a", b"n"), key("a", b"n"));
        assert!(key("a", b"n") != key("b", b"n") && key("a", b"n") != key("a", b"m"));
    }
}
