//! Carries out a plan: fetches, installs, packs, lints and commits. What is made and what is taken
//! from the cache was decided by [`super::plan`]; nothing is visible before the store's commit.

use super::chroot::{self, Mounted, Work};
use super::lint::{self, Finding, Subject};
use super::plan::{self, Content, Has, Inputs, PlannedRepository, Step};
use super::report::{Report, State};
use super::tree::{Index, Kind, Node, Tree};
use super::{family, initramfs, preload, role, squash};
use crate::image::id::{Digest, ImageId};
use crate::image::manifest::{Config, Descriptor, Manifest, Preloaded};
use crate::image::role::{ROLE_FILE, RoleFile};
use crate::image::{sign, store::Store};
use crate::overlay;
use crate::recipe::System;
use crate::recipe::lock::{LockedPackage, LockedRecipe};
use crate::repo::family::Sources;
use crate::repo::{self, apt, fetch};
use crate::sys::files;
use anyhow::{Context, Result, bail};
use ed25519_dalek::SigningKey;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that a lint looks into are smaller.
const READ_MAX_BYTES: u64 = 64 << 20;

/// Everything that a build is made from.
pub struct Build<'a> {
    pub locked: &'a LockedRecipe,
    pub overlays: &'a overlay::Tree,
    /// The static kiln-node.
    pub node: &'a [u8],
    /// Public keys whose manifests the initramfs boots, base64.
    pub builders: &'a [String],
    pub cache: &'a Path,
    /// The public keys of preloaded repositories, by the repository's id; a pinned one has none.
    pub keys: &'a BTreeMap<String, Vec<u8>>,
    /// Asked for only when packages must be fetched.
    pub sources: &'a dyn Fn() -> Result<Sources>,
    pub report: &'a dyn Report,
}

/// kiln's release.
pub const KILN: &str = env!("CARGO_PKG_VERSION");

impl Build<'_> {
    /// What the build would do.
    pub fn plan(&self, tag: &str) -> Result<Vec<Step>> {
        let tool = squash::tool_version()?;
        let has = Has {
            package: &|sha256| fetch::place(self.cache, sha256).exists(),
            stage: &|key| self.cached_stage(key).is_some(),
            initramfs: &|key| initramfs::place(self.cache, key).exists(),
            repository: &|key| preload::cached(self.cache, key).is_some(),
        };
        Ok(plan::plan(self.locked, &self.inputs(&tool), tag, &has))
    }

    fn inputs<'s>(&'s self, tool: &'s str) -> Inputs<'s> {
        Inputs { squashfs_tools: tool, node: Digest::of(self.node), builders: self.builders, kiln: KILN }
    }

    /// Bakes the image and commits it under `tag`. The caller has called [`chroot::isolate`].
    pub fn run(&self, store: &Store, key: &SigningKey, tag: &str) -> Result<ImageId> {
        lint::check_static(self.node).map_err(|why| anyhow::anyhow!("the kiln-node binary {why}"))?;
        let tool = squash::tool_version()?;
        let stages = plan::stages(self.locked, &tool);
        let work = Work::new(self.cache)?;
        let repositories = self.contents()?;
        self.part("fetch", || self.fetch(&stages, &repositories))?;
        let mut layers: Vec<Layer> = Vec::new();
        for (i, stage) in stages.iter().enumerate() {
            let layer = match self.cached_stage(&stage.key) {
                Some(layer) => {
                    self.report.event(&stage.name, State::Cached, &stage.key[..12]);
                    layer
                }
                None => self.part(&stage.name, || self.stage(&work, &stages[..=i], &layers))?,
            };
            layers.push(Layer { name: stage.name.clone(), ..layer });
        }
        let (mounts, tree) = mount_all(&layers, &work, "tree")?;
        let (kernel_release, kernel_file) = family::kernel(tree.path())?;
        let key_text = plan::initramfs_key(self.locked, &stages, &self.inputs(&tool));
        let made = self.initramfs(&key_text, tree.path(), &kernel_release)?;

        let repositories = self.repositories(&work, repositories)?;

        self.report.event("role", State::Start, "");
        let index = squash::index(tree.path())?;
        let read_below = |path: &str| read(tree.path(), path);
        let below = Tree { index: &index, read: &read_below };
        let overlay_bytes: u64 = self.overlays.entries.values().map(entry_bytes).sum();
        let stage_bytes: u64 = layers.iter().map(|l| l.size).sum();
        let memory_min_mib = role::memory_min_mib(
            stage_bytes + overlay_bytes + self.node.len() as u64,
            made.unpacked,
            self.locked.recipe.systems.len(),
        );
        let parts = role::Parts {
            recipe: &self.locked.recipe,
            overlays: self.overlays,
            below: &below,
            node: self.node,
            memory_min_mib,
            epoch: self.locked.lock.epoch,
            repositories: &repositories.iter().map(|r| self.source(r)).collect::<Vec<_>>(),
        };
        let items = role::items(&parts).map_err(|problems| {
            crate::recipe::problem::Problems(problems.into_iter().map(overlay_problem).collect())
        })?;
        let role_layer = work.path.join("role.squashfs");
        squash::pack(&items, &self.locked.recipe.compression, self.locked.lock.epoch, &role_layer)?;
        layers.push(Layer::of("role", &role_layer)?);
        self.report.event("role", State::Done, &format!("{} overlays", self.locked.recipe.overlays.len()));
        drop((tree, mounts));

        let (_mounts, whole) = mount_all(&layers, &work, "whole")?;
        let index = merged(index, &items);
        let warnings = self.part("lint", || self.lint(&whole, &index, &kernel_release, &made.warnings))?;
        let kernel_file = whole.path().join(kernel_file.strip_prefix(work.path.join("tree")).unwrap_or(&kernel_file));
        let config = Config {
            kiln: KILN.into(),
            release: self.locked.recipe.release.clone(),
            role: self.locked.recipe.role.clone(),
            distribution: self.locked.recipe.distribution.name.clone(),
            architecture: apt::ARCHITECTURE.into(),
            kernel: kernel_release,
            cmdline: self.locked.recipe.cmdline.clone(),
            systems: self.locked.recipe.systems.iter().map(|s| s.name.clone()).collect(),
            secrets: names(self.locked, |s| &s.secrets),
            certificates: names(self.locked, |s| &s.certificates),
            controller: self.locked.recipe.systems.iter().any(|s| s.formation.is_some()),
            clustered: self.locked.recipe.systems.iter().filter_map(|s| s.clustered()).collect(),
            epoch: self.locked.lock.epoch,
            lock: self.locked.lock.digest(),
            squashfs_tools: tool,
            builders: self.builders.to_vec(),
            memory_min_mib,
            unpacked_bytes: index.values().map(|n| if let Kind::File(size) = n.kind { size } else { 0 }).sum(),
            packages: package_list(self.locked),
            preloaded: repositories.iter().map(Repository::said).collect(),
            pinned_repositories: repo::family::pinned(&self.locked.recipe),
            warnings,
        };
        self.part("commit", || commit(store, &config, &kernel_file, &made.file, (&layers, &repositories), key, tag))
    }

    /// Tells the beginning and the end of a part.
    fn part<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.report.event(name, State::Start, "");
        let result = work();
        match &result {
            Ok(_) => self.report.event(name, State::Done, ""),
            Err(error) => self.report.event(name, State::Failed, &format!("{error:#}")),
        }
        result
    }

    fn stage_file(&self, key: &str) -> PathBuf {
        self.cache.join("stages").join(key)
    }

    fn cached_stage(&self, key: &str) -> Option<Layer> {
        let file = self.stage_file(key);
        let digest = fs::read_to_string(file.with_extension("sha256")).ok()?;
        let size = fs::metadata(&file).ok()?.len();
        Some(Layer { name: String::new(), size, digest: digest.trim().parse().ok()?, file })
    }

    /// What is to be preloaded, with its packages where it must be made.
    fn contents(&self) -> Result<Vec<(PlannedRepository, Vec<LockedPackage>)>> {
        self.contents_without(|planned| preload::cached(self.cache, &planned.key).is_some())
    }

    fn contents_without(
        &self,
        made: impl Fn(&PlannedRepository) -> bool,
    ) -> Result<Vec<(PlannedRepository, Vec<LockedPackage>)>> {
        let content = |planned: PlannedRepository| {
            let packages = match &planned.content {
                _ if made(&planned) => Vec::new(),
                Content::Closure(packages) => packages.clone(),
                Content::Full(metadata) => (self.sources)()?.all(&planned.id, metadata, self.cache)?,
            };
            Ok((planned, packages))
        };
        plan::repositories(self.locked).into_iter().map(content).collect()
    }

    fn repositories(
        &self,
        work: &Work,
        contents: Vec<(PlannedRepository, Vec<LockedPackage>)>,
    ) -> Result<Vec<Repository>> {
        let one = |(planned, packages): (PlannedRepository, Vec<LockedPackage>)| {
            let name = format!("repository {}", planned.id);
            let made = match preload::cached(self.cache, &planned.key) {
                Some(made) => {
                    self.report.event(&name, State::Cached, &planned.key[..12]);
                    made
                }
                None => self.part(&name, || {
                    let scratch = work.path.join(format!("repository-{}", planned.id));
                    let packages: Vec<&LockedPackage> = packages.iter().collect();
                    preload::make(&planned, &packages, self.cache, &scratch)
                        .with_context(|| format!("preloading repository {}", planned.id))
                })?,
            };
            Ok(Repository { planned, made })
        };
        contents.into_iter().map(one).collect()
    }

    /// How a node's yum finds it.
    fn source(&self, repository: &Repository) -> role::Repository {
        let id = &repository.planned.id;
        role::Repository {
            id: id.clone(),
            digest: repository.made.note.digest,
            key: self.keys.get(id).cloned(),
            priority: self.locked.recipe.repositories.iter().find(|r| r.id == *id).map_or(99, |r| r.priority),
        }
    }

    /// Brings the packages of everything that must be made into the cache, whole.
    fn fetch(&self, stages: &[plan::Stage], repositories: &[(PlannedRepository, Vec<LockedPackage>)]) -> Result<()> {
        let of_stages = stages.iter().filter(|s| self.cached_stage(&s.key).is_none()).flat_map(|s| &s.packages);
        let mut wanted: Vec<&LockedPackage> = of_stages.chain(repositories.iter().flat_map(|(_, p)| p)).collect();
        wanted.sort_by_key(|p| &p.sha256);
        wanted.dedup_by_key(|p| &p.sha256);
        self.bring(&wanted)
    }

    /// Brings every package into the cache, also those of stages and repositories that are made already.
    pub fn fetch_all(&self) -> Result<()> {
        let preloaded = self.contents_without(|_| false)?;
        self.bring(&self.locked.lock.packages.iter().chain(preloaded.iter().flat_map(|(_, p)| p)).collect::<Vec<_>>())
    }

    fn bring(&self, wanted: &[&LockedPackage]) -> Result<()> {
        fetch::scrub(wanted, self.cache)?;
        let missing = fetch::missing(wanted, self.cache);
        if missing.is_empty() {
            return Ok(());
        }
        let bytes: u64 = missing.iter().map(|p| p.size).sum();
        self.report.event("fetch", State::Progress, &format!("{} packages, {} MiB", missing.len(), bytes >> 20));
        (self.sources)()?.fetch(&missing, self.cache)
    }

    /// Installs and packs the last of `stages` over the layers of those before it.
    fn stage(&self, work: &Work, stages: &[plan::Stage], below: &[Layer]) -> Result<Layer> {
        let (stage, earlier) = match stages.split_last() {
            Some((stage, earlier)) => (stage, earlier),
            None => bail!("a stage must have a name"),
        };
        let scratch = work.path.join(format!("stage-{}", stage.name));
        let upper = scratch.join("upper");
        let epoch = self.locked.lock.epoch;
        let seconds = || (crate::sys::clock::now_ms() / 1000) as i64;
        let start = seconds();
        let mounts = mount_each(below, work)?;
        let lowers: Vec<&Path> = mounts.iter().map(Mounted::path).collect();
        {
            let root = chroot::mount_writable(&lowers, &upper, &scratch, &scratch.join("root"))?;
            let earlier: Vec<&LockedPackage> = earlier.iter().flat_map(|s| &s.packages).collect();
            let packages: Vec<&LockedPackage> = stage.packages.iter().collect();
            let install = family::Stage {
                family: self.locked.recipe.distribution.family,
                cache: self.cache,
                scratch: &scratch,
                earlier: &earlier,
                packages: &packages,
                users: &self.locked.recipe.users,
                epoch,
            };
            let say = |what: &str| self.report.event(&stage.name, State::Progress, what);
            family::install(root.path(), &install, &say)?;
        }
        self.report.event(&stage.name, State::Progress, "packing");
        let items = {
            let tree = match lowers[..] {
                [] => None,
                _ => Some(chroot::mount_layers(&lowers, &scratch, &scratch.join("below"))?),
            };
            // A second of slack: the kernel's file times come from a coarser clock.
            squash::walk(&upper, tree.as_ref().map(Mounted::path), (start - 1, seconds() + 1), epoch)?
        };
        let packed = scratch.join("layer");
        squash::pack(&items, &self.locked.recipe.compression, epoch, &packed)?;
        let layer = Layer::of(&stage.name, &packed)?;
        let file = self.stage_file(&stage.key);
        fs::create_dir_all(self.cache.join("stages")).context("creating the cache of stages")?;
        fs::rename(&packed, &file).with_context(|| format!("moving a stage to {}", file.display()))?;
        // Last: a stage without its digest is none.
        files::write_atomic(&file.with_extension("sha256"), layer.digest.to_string().as_bytes(), 0o644)?;
        files::remove_tree(&scratch)?;
        Ok(Layer { file, ..layer })
    }

    fn initramfs(&self, key: &str, root: &Path, kernel: &str) -> Result<Initramfs> {
        let file = initramfs::place(self.cache, key);
        let note = file.with_extension("json");
        if let Some((unpacked, warnings)) = fs::read(&note).ok().and_then(|b| serde_json::from_slice(&b).ok())
            && file.exists()
        {
            self.report.event("initramfs", State::Cached, &key[..12]);
            return Ok(Initramfs { file, unpacked, warnings });
        }
        self.part("initramfs", || {
            let made = initramfs::make(&initramfs::Parts {
                root,
                kernel,
                modules: self.locked.recipe.initramfs_modules.as_deref(),
                node: self.node,
                builders: self.builders,
                kiln: KILN,
                epoch: self.locked.lock.epoch,
            })?;
            fs::create_dir_all(self.cache.join("initramfs")).context("creating the cache of initramfs")?;
            files::write_atomic(&file, &made.bytes, 0o644)?;
            files::write_atomic(&note, &serde_json::to_vec(&(made.unpacked, &made.warnings))?, 0o644)?;
            Ok(Initramfs { file, unpacked: made.unpacked, warnings: made.warnings })
        })
    }

    /// Lints the whole tree; errors fail the build, all of them named.
    fn lint(&self, whole: &Mounted, index: &Index, kernel: &str, firmware: &[String]) -> Result<Vec<String>> {
        let role = role_file(whole.path())?;
        let read_file = |path: &str| read(whole.path(), path);
        let findings = lint::lint(&Subject {
            tree: Tree { index, read: &read_file },
            role: &role,
            packages: &package_list(self.locked),
            kernel,
            users: Some(&self.locked.recipe.users),
            selinux: self.locked.recipe.selinux.as_deref(),
            kiln_node: self.node,
        });
        let mut warnings: Vec<String> = firmware.iter().map(|w| format!("firmware: {w}")).collect();
        warnings.extend(findings.iter().filter(|f| !f.fatal).map(Finding::to_string));
        let errors: Vec<String> = findings.iter().filter(|f| f.fatal).map(Finding::to_string).collect();
        if !errors.is_empty() {
            bail!("the built tree has {} fault(s):\n{}", errors.len(), errors.join("\n"));
        }
        Ok(warnings)
    }
}

/// Lints an image of the store. The caller has called [`chroot::isolate`].
pub fn lint_image(store: &Store, id: &ImageId, cache: &Path) -> Result<Vec<Finding>> {
    let (image, config) = (store.image(id)?, store.config(id)?);
    let work = Work::new(cache)?;
    let layer = |(i, d): (usize, &Descriptor)| Layer {
        name: i.to_string(),
        file: store.blob_path(&d.digest),
        digest: d.digest,
        size: d.size,
    };
    let layers: Vec<Layer> = image.layers().iter().enumerate().map(layer).collect();
    let (_mounts, whole) = mount_all(&layers, &work, "whole")?;
    let index = squash::index(whole.path())?;
    let read_file = |path: &str| read(whole.path(), path);
    let role = role_file(whole.path())?;
    let mut findings = lint::lint(&Subject {
        tree: Tree { index: &index, read: &read_file },
        role: &role,
        packages: &config.packages,
        kernel: &config.kernel,
        users: None,
        selinux: None,
        kiln_node: &read(whole.path(), role::NODE_FILE).unwrap_or_default(),
    });
    // Said at bake time; their text begins with the check's name already.
    let said = config.warnings.iter().filter_map(|w| w.strip_prefix("firmware: "));
    findings.extend(said.map(|w| Finding { check: "firmware", message: w.to_string(), fatal: false }));
    Ok(findings)
}

/// A squashfs file with its digest.
#[derive(Clone, Debug)]
struct Layer {
    name: String,
    file: PathBuf,
    digest: Digest,
    size: u64,
}

impl Layer {
    fn of(name: &str, file: &Path) -> Result<Layer> {
        let size = fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?.len();
        Ok(Layer { name: name.into(), file: file.into(), digest: Digest(files::hash_file(file)?), size })
    }
}

/// A preloaded repository that is made.
struct Repository {
    planned: PlannedRepository,
    made: preload::Made,
}

impl Repository {
    fn said(&self) -> Preloaded {
        let Repository { planned, made } = self;
        Preloaded { id: planned.id.clone(), preload: planned.content.word().into(), packages: made.note.packages }
    }
}

struct Initramfs {
    file: PathBuf,
    unpacked: u64,
    warnings: Vec<String>,
}

fn mount_each(layers: &[Layer], work: &Work) -> Result<Vec<Mounted>> {
    // By digest: where layers are unpacked, once is enough for the whole build.
    let at = |layer: &Layer| chroot::show_layer(&layer.file, &work.path.join("layers").join(layer.digest.hex()));
    layers.iter().map(at).collect()
}

/// All layers as one read-only tree; the second is the tree and must go first.
fn mount_all(layers: &[Layer], work: &Work, name: &str) -> Result<(Vec<Mounted>, Mounted)> {
    let scratch = work.path.join(format!("{name}-lowers"));
    let mounts = mount_each(layers, work)?;
    let lowers: Vec<&Path> = mounts.iter().map(Mounted::path).collect();
    let tree = chroot::mount_layers(&lowers, &scratch, &work.path.join(name))?;
    Ok((mounts, tree))
}

fn read(root: &Path, path: &str) -> Option<Vec<u8>> {
    let file = root.join(path);
    let regular = fs::symlink_metadata(&file).is_ok_and(|m| m.is_file());
    if regular { files::read_bounded(&file, READ_MAX_BYTES).ok() } else { None }
}

fn role_file(root: &Path) -> Result<RoleFile> {
    let bytes = read(root, ROLE_FILE.trim_start_matches('/')).with_context(|| format!("finding {ROLE_FILE}"))?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {ROLE_FILE}"))
}

fn entry_bytes(entry: &overlay::Entry) -> u64 {
    if let overlay::Kind::File(bytes) = &entry.kind { bytes.len() as u64 } else { 0 }
}

fn overlay_problem(message: String) -> crate::recipe::problem::Problem {
    let (file, message) = message.split_once(": ").unwrap_or(("overlay", &message));
    crate::recipe::problem::Problem { file: file.into(), line: 0, key: String::new(), message: message.into() }
}

/// The index with a layer's items laid over it.
fn merged(mut index: Index, items: &[squash::Item]) -> Index {
    for item in items {
        let kind = match &item.body {
            squash::Body::Dir => Kind::Dir,
            squash::Body::Bytes(bytes) => Kind::File(bytes.len() as u64),
            squash::Body::File(_, size) => Kind::File(*size),
            squash::Body::Symlink(target) => Kind::Symlink(target.clone()),
            squash::Body::Char(..) | squash::Body::Block(..) => Kind::Device,
            squash::Body::Hardlink(_) | squash::Body::Fifo => Kind::Other,
        };
        let node = Node { kind, mode: item.mode, uid: item.uid, gid: item.gid, capable: false };
        index.insert(item.path.clone(), node);
    }
    index
}

/// What the role's nodes may receive, of one kind.
fn names(locked: &LockedRecipe, of: impl Fn(&System) -> &Vec<String>) -> Vec<String> {
    let names: std::collections::BTreeSet<String> =
        locked.recipe.systems.iter().flat_map(|s| of(s).iter().cloned()).collect();
    names.into_iter().collect()
}

/// `name version arch`, sorted.
fn package_list(locked: &LockedRecipe) -> Vec<String> {
    let one = |p: &LockedPackage| format!("{} {} {}", p.name, p.version, p.arch);
    let mut all: Vec<String> = locked.lock.packages.iter().map(one).collect();
    all.sort();
    all
}

/// Brings the blobs into the store and makes the image visible.
fn commit(
    store: &Store,
    config: &Config,
    kernel: &Path,
    initramfs: &Path,
    (layers, repositories): (&[Layer], &[Repository]),
    key: &SigningKey,
    tag: &str,
) -> Result<ImageId> {
    let config = store.import_bytes(&serde_json::to_vec(config).context("writing the image's config")?)?;
    let kernel = store.import_file(kernel, None)?;
    let initramfs = store.import_file(initramfs, None)?;
    let bring = |name: &str, file: &Path, digest: &Digest| -> Result<(Digest, u64)> {
        if let Some(size) = store.claim(digest)? {
            return Ok((*digest, size));
        }
        let shown = file.display();
        let why = || format!("importing {name} (if it is damaged, remove {shown} and build again)");
        store.import_file(file, Some(digest)).with_context(why)
    };
    let mut blobs = Vec::new();
    for layer in layers {
        let blob = bring(&format!("layer {}", layer.name), &layer.file, &layer.digest)?;
        blobs.push((layer.name.as_str(), blob));
    }
    let mut preloaded = Vec::new();
    for Repository { planned, made } in repositories {
        let blob = bring(&format!("repository {}", planned.id), &made.file, &made.note.digest)?;
        preloaded.push((planned.id.as_str(), blob));
    }
    let manifest = Manifest::new(config, kernel, initramfs, &blobs).with_repositories(&preloaded);
    let manifest = serde_json::to_vec(&manifest).context("writing the manifest")?;
    store.commit(&manifest, &sign::sign(&manifest, key), Some(tag))
}
