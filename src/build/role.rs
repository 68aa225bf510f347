//! The uppermost layer: overlays, what kiln-node must know of its role, kiln-node and its unit.
//! Pure: items out of values, ready to be packed.

use super::squash::{Body, Item};
use super::tree::{Kind, Tree};
use super::users;
use crate::image::id::Digest;
use crate::image::repository::{NODE_DIR, PLACE_VARIABLE};
use crate::image::role::{ROLE_FILE, RoleFile, Template};
use crate::overlay;
use crate::recipe::Recipe;
use std::collections::BTreeMap;

/// kiln-node in the image.
pub const NODE_FILE: &str = "usr/lib/kiln/kiln-node";
/// Its unit, enabled by the build.
pub const UNIT_FILE: &str = "usr/lib/systemd/system/kiln-node.service";
/// Where a distribution with SELinux says its mode.
pub const SELINUX_FILE: &str = "etc/selinux/config";
/// What enables it.
pub const UNIT_LINK: &str = "etc/systemd/system/multi-user.target.wants/kiln-node.service";

/// What makes it stop before the units of its systems do, so that they can leave their clusters in
/// order. A unit of its own, always active: were kiln-node itself ordered after them, a restart of it
/// would wait for a start among them that hangs, which only it can end.
const ORDER_FILE: &str = "usr/lib/systemd/system/kiln-order.service";

fn order(recipe: &Recipe) -> String {
    let mut units: Vec<String> = recipe.systems.iter().flat_map(|s| &s.units).cloned().collect();
    // And what a socket starts: it answers for its system while that leaves.
    let started: Vec<String> =
        units.iter().filter_map(|u| Some(format!("{}.service", u.strip_suffix(".socket")?))).collect();
    units.extend(started);
    format!(
        "[Unit]
Description=kiln-node stops before its systems do
After={}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
",
        units.join(" ")
    )
}

/// No RuntimeDirectory: `/run/kiln` is the initramfs's, with the root's writable part in it, and systemd
/// before 235 (CentOS 7's is 219) would delete it when kiln-node stops.
const UNIT: &str = "[Unit]
Description=Joins this node to its cluster
Wants=kiln-order.service
After=local-fs.target systemd-tmpfiles-setup.service kiln-order.service
ConditionPathExists=/run/kiln/boot.json

[Service]
ExecStart=/usr/lib/kiln/kiln-node join
Restart=always
RestartSec=1
TimeoutStopSec=5min
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
";

/// What the role layer is made of.
pub struct Parts<'a> {
    pub recipe: &'a Recipe,
    pub overlays: &'a overlay::Tree,
    /// The package stages' tree.
    pub below: &'a Tree<'a>,
    /// The static kiln-node.
    pub node: &'a [u8],
    pub memory_min_mib: u64,
    pub epoch: u64,
    pub repositories: &'a [Repository],
}

/// A preloaded repository as a node's yum finds it.
pub struct Repository {
    /// Its id in the recipe.
    pub id: String,
    /// Of its blob.
    pub digest: Digest,
    /// Who signs its packages; `None`: the digests of the index are all.
    pub key: Option<Vec<u8>>,
    /// Lower wins.
    pub priority: u32,
}

/// What yum knows of the preloaded repositories.
pub const REPOSITORIES_FILE: &str = "etc/yum.repos.d/kiln.repo";

fn key_file(repository: &Repository) -> String {
    format!("etc/pki/rpm-gpg/RPM-GPG-KEY-kiln-{}", repository.id)
}

/// Where they lie is kiln-node's to say: dnf takes a repository with any `file:` address for a local
/// one and asks no other.
fn repositories(repositories: &[Repository]) -> String {
    let mut text = String::from("# The repositories that this image was made from.\n");
    for repository in repositories {
        let Repository { id, digest, key, priority } = repository;
        let hex = digest.hex();
        text += &format!(
            "\n[kiln-{id}]\nname={id}, as this image was made from it\nbaseurl=$kilnrepos/{hex}/\nenabled=1\n\
             priority={priority}\n"
        );
        match key {
            Some(_) => text += &format!("gpgcheck=1\ngpgkey=file:///{}\n", key_file(repository)),
            None => text += "gpgcheck=0\n",
        }
    }
    text
}

/// What the image says about its role.
pub fn role_file(
    recipe: &Recipe,
    overlays: &overlay::Tree,
    memory_min_mib: u64,
    repositories: &[Repository],
) -> RoleFile {
    let system = |overlay: &str| recipe.systems.iter().any(|s| s.name == overlay).then(|| overlay.to_string());
    let mut templates: Vec<(usize, Template)> = overlays
        .templates()
        .map(|(path, overlay, _)| {
            let order = recipe.overlays.iter().position(|o| o == overlay).unwrap_or(usize::MAX);
            (order, Template { path, system: system(overlay) })
        })
        .collect();
    templates.sort_by_key(|(order, _)| *order); // stable: by path within an overlay
    RoleFile {
        release: recipe.release.clone(),
        role: recipe.role.clone(),
        systems: recipe.systems.clone(),
        templates: templates.into_iter().map(|(_, t)| t).collect(),
        memory_min_mib,
        repositories: repositories.iter().map(|r| r.digest).collect(),
    }
}

/// The layer's items, parents first. Errors name the overlay's file.
pub fn items(parts: &Parts) -> Result<Vec<Item>, Vec<String>> {
    let mut layer = Layer { parts, items: BTreeMap::new(), problems: Vec::new() };
    let accounts = Accounts {
        passwd: parts.below.text("etc/passwd").unwrap_or_default(),
        group: parts.below.text("etc/group").unwrap_or_default(),
    };
    for (path, entry) in &parts.overlays.entries {
        layer.overlay(path, entry, &accounts);
    }
    let role = role_file(parts.recipe, parts.overlays, parts.memory_min_mib, parts.repositories);
    let mut json = serde_json::to_vec_pretty(&role).unwrap_or_default();
    json.push(b'\n');
    layer.add(ROLE_FILE.trim_start_matches('/'), 0o644, (0, 0), Body::Bytes(json));
    layer.add(NODE_FILE, 0o755, (0, 0), Body::Bytes(parts.node.to_vec()));
    layer.add(UNIT_FILE, 0o644, (0, 0), Body::Bytes(UNIT.as_bytes().to_vec()));
    layer.add(ORDER_FILE, 0o644, (0, 0), Body::Bytes(order(parts.recipe).into_bytes()));
    layer.add(UNIT_LINK, 0o777, (0, 0), Body::Symlink(format!("/{UNIT_FILE}")));
    if let Some(mode) = parts.recipe.selinux.as_ref().filter(|_| !parts.overlays.entries.contains_key(SELINUX_FILE)) {
        let text = selinux_config(&parts.below.text(SELINUX_FILE).unwrap_or_default(), mode);
        layer.add(SELINUX_FILE, 0o644, (0, 0), Body::Bytes(text.into_bytes()));
    }
    if !parts.repositories.is_empty() {
        let text = repositories(parts.repositories);
        layer.add(REPOSITORIES_FILE, 0o644, (0, 0), Body::Bytes(text.into_bytes()));
        let local = Body::Bytes(format!("file://{NODE_DIR}\n").into_bytes());
        layer.add(PLACE_VARIABLE.trim_start_matches('/'), 0o644, (0, 0), local);
    }
    for repository in parts.repositories {
        if let Some(key) = &repository.key {
            layer.add(&key_file(repository), 0o644, (0, 0), Body::Bytes(key.clone()));
        }
    }
    // Empty: systemd makes no first boot of it (219 knows no other word); the node's own id is bound over it.
    layer.add("etc/machine-id", 0o444, (0, 0), Body::Bytes(Vec::new()));
    if layer.problems.is_empty() { Ok(layer.items.into_values().collect()) } else { Err(layer.problems) }
}

/// The distribution's configuration with the recipe's mode.
fn selinux_config(text: &str, mode: &str) -> String {
    let others = text.lines().filter(|l| !l.trim_start().starts_with("SELINUX="));
    others.map(|l| format!("{l}\n")).chain([format!("SELINUX={mode}\n")]).collect()
}

struct Accounts {
    passwd: String,
    group: String,
}

struct Layer<'a> {
    parts: &'a Parts<'a>,
    /// By path: a folder sorts before what it holds.
    items: BTreeMap<String, Item>,
    problems: Vec<String>,
}

impl Layer<'_> {
    fn overlay(&mut self, path: &str, entry: &overlay::Entry, accounts: &Accounts) {
        let mut number = |file: &str, name: &str, what: &str| match (name, name.parse::<u32>()) {
            ("root", _) => 0,
            (_, Ok(number)) => number,
            (_, Err(_)) => users::number(file, name).unwrap_or_else(|| {
                self.problems.push(format!("{}: /{path}: the image has no {what} {name:?}", entry.source));
                0
            }),
        };
        let owner = (number(&accounts.passwd, &entry.owner, "user"), number(&accounts.group, &entry.group, "group"));
        let below = self.parts.below.index.get(path);
        let (body, (mode, owner)) = match &entry.kind {
            overlay::Kind::File(bytes) => (Body::Bytes(bytes.clone()), (entry.mode, owner)),
            overlay::Kind::Symlink(target) => (Body::Symlink(target.clone()), (0o777, owner)),
            overlay::Kind::Dir => {
                // An overlay's folder that says nothing of itself is the one that is there.
                let silent = entry.mode == 0o755 && owner == (0, 0);
                let there = below.filter(|n| silent && n.kind == Kind::Dir).map(|n| (n.mode, (n.uid, n.gid)));
                (Body::Dir, there.unwrap_or((entry.mode, owner)))
            }
        };
        if let Some(below) = below
            && (below.kind == Kind::Dir) != (body == Body::Dir)
        {
            let (is, brings) = if body == Body::Dir { ("a file", "a folder") } else { ("a folder", "a file") };
            self.problems.push(format!("{}: /{path} is {is} of a package, the overlay brings {brings}", entry.source));
        }
        self.add(path, mode, owner, body);
    }

    /// Adds an item and, as they are in the tree below, the folders above it.
    fn add(&mut self, path: &str, mode: u32, owner: (u32, u32), body: Body) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.items.contains_key(parent)
        {
            let there = self.parts.below.index.get(parent);
            let (mode, owner) = there.map_or((0o755, (0, 0)), |n| (n.mode, (n.uid, n.gid)));
            self.add(parent, mode, owner, Body::Dir);
        }
        let (uid, gid) = owner;
        let (mtime, xattrs) = (self.parts.epoch, Vec::new());
        self.items.insert(path.to_string(), Item { path: path.to_string(), mode, uid, gid, mtime, xattrs, body });
    }
}

/// Least memory of a node, MiB: every layer and the unpacked initramfs lie in memory; beside them
/// the kernel with the basic services, each system's processes, and what they write.
pub fn memory_min_mib(layers_bytes: u64, initramfs_unpacked: u64, systems: usize) -> u64 {
    /// Kernel, page tables, systemd, journal, a shell, and the root's writable part.
    const BASE_MIB: u64 = 384;
    /// What a system's daemon needs to start and answer on an idle node.
    const SYSTEM_MIB: u64 = 96;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let running = mib(layers_bytes) + mib(initramfs_unpacked) + BASE_MIB + SYSTEM_MIB * systems as u64;
    // The kernel gives the initramfs's tmpfs half of the memory.
    let unpacking = 2 * mib(initramfs_unpacked) + BASE_MIB / 2;
    // Rounded up to what machines and virtual machines are built with.
    running.max(unpacking).next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::super::tree::testing::{index, node};
    use super::super::tree::{Index, Node};
    use super::*;
    use crate::recipe::{Compression, CompressionKind, Distribution, Family};

    fn recipe() -> Recipe {
        Recipe {
            release: "zed".into(),
            role: "infra".into(),
            distribution: Distribution { family: Family::Apt, name: "debian12".into() },
            stages: Vec::new(),
            systems: vec![
                serde_json::from_str(r#"{"name":"web","units":["web.service","web-check.socket"]}"#).unwrap(),
            ],
            overlays: vec!["base".into(), "web".into()],
            repositories: Vec::new(),
            cmdline: Vec::new(),
            initramfs_modules: None,
            users: BTreeMap::new(),
            compression: Compression { kind: CompressionKind::Zstd, level: 3 },
            selinux: None,
        }
    }

    fn entry(kind: overlay::Kind, overlay: &str, owner: &str) -> overlay::Entry {
        let (owner, overlay) = (owner.to_string(), overlay.to_string());
        overlay::Entry {
            kind,
            mode: 0o755,
            group: owner.clone(),
            owner,
            source: format!("overlays/{overlay}"),
            overlay,
        }
    }

    fn overlays(entries: Vec<(&str, overlay::Entry)>) -> overlay::Tree {
        overlay::Tree { entries: entries.into_iter().map(|(path, e)| (path.to_string(), e)).collect() }
    }

    fn below() -> (Index, BTreeMap<String, Vec<u8>>) {
        let (mut nodes, content) =
            index(&[("etc/passwd", "web:x:401:402::/:/bin/sh\n"), ("etc/group", "web:x:402:\n"), ("etc/taken", "x")]);
        nodes.insert("var".into(), node(Kind::Dir));
        nodes.insert("var/lib".into(), node(Kind::Dir));
        nodes.insert("var/lib/web".into(), Node { mode: 0o750, uid: 401, gid: 402, ..node(Kind::Dir) });
        (nodes, content)
    }

    fn made(overlays: &overlay::Tree) -> Result<BTreeMap<String, Item>, Vec<String>> {
        let (nodes, content) = below();
        let read = |path: &str| content.get(path).cloned();
        let tree = Tree { index: &nodes, read: &read };
        let recipe = recipe();
        let repository = |id: &str, key: Option<&str>| Repository {
            id: id.into(),
            digest: Digest::of(id.as_bytes()),
            key: key.map(|k| k.into()),
            priority: 10,
        };
        let repositories = [repository("signed", Some("a key")), repository("pinned", None)];
        let parts = Parts {
            recipe: &recipe,
            overlays,
            below: &tree,
            node: b"elf",
            memory_min_mib: 512,
            epoch: 1000,
            repositories: &repositories,
        };
        let items = items(&parts)?;
        for (i, item) in items.iter().enumerate() {
            let parent = item.path.rsplit_once('/').map(|(p, _)| p);
            assert!(
                parent.is_none_or(|p| items[..i].iter().any(|o| o.path == p)),
                "{} comes before its folder",
                item.path
            );
        }
        Ok(items.into_iter().map(|i| (i.path.clone(), i)).collect())
    }

    #[test]
    fn the_layer_holds_overlays_role_and_agent_with_the_trees_own_folders() {
        let file = |text: &str| overlay::Kind::File(text.into());
        let found = made(&overlays(vec![
            ("etc/web.conf.j2", entry(file("{{ x }}"), "web", "root")),
            ("var/lib/web", entry(overlay::Kind::Dir, "web", "root")),
            ("var/lib/web/seed", entry(file("s"), "web", "web")),
            ("etc/a.j2", entry(file("a"), "base", "root")),
        ]));
        // "root" is no user of this small tree: it is always 0.
        let found = found.unwrap();
        let folder = &found["var/lib/web"];
        assert_eq!((folder.mode, folder.uid, folder.gid), (0o750, 401, 402));
        assert_eq!((found["var/lib/web/seed"].uid, found["var/lib/web/seed"].gid), (401, 402));
        assert_eq!(found[NODE_FILE].mode, 0o755);
        let Body::Bytes(order) = &found[ORDER_FILE].body else { panic!("kiln-order.service is no file") };
        let order = String::from_utf8_lossy(order);
        assert!(order.contains("\nAfter=web.service web-check.socket web-check.service\n"), "{order}");
        assert_eq!(found["etc/machine-id"].body, Body::Bytes(Vec::new()));
        let Body::Bytes(json) = &found["usr/lib/kiln/role.json"].body else { panic!("role.json is no file") };
        let role: RoleFile = serde_json::from_slice(json).unwrap();
        let templates: Vec<(&str, Option<&str>)> =
            role.templates.iter().map(|t| (t.path.as_str(), t.system.as_deref())).collect();
        assert_eq!(templates, [("/etc/a.j2", None), ("/etc/web.conf.j2", Some("web"))]);
        assert!(found.values().all(|i| i.mtime == 1000));
        let Body::Bytes(repo) = &found[REPOSITORIES_FILE].body else { panic!("kiln.repo is no file") };
        let (repo, hex) = (String::from_utf8(repo.clone()).unwrap(), Digest::of(b"signed").hex());
        assert!(repo.contains("[kiln-signed]\n") && repo.contains(&format!("baseurl=$kilnrepos/{hex}/\n")));
        assert_eq!(repo.matches("gpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-kiln-signed\n").count(), 1);
        assert_eq!(repo.matches("gpgcheck=0\n").count(), 1);
        assert!(PLACE_VARIABLE.ends_with("/kilnrepos") && found.contains_key(&PLACE_VARIABLE[1..]));
        assert_eq!(role.repositories, [Digest::of(b"signed"), Digest::of(b"pinned")]);
        assert_eq!(found["etc/pki/rpm-gpg/RPM-GPG-KEY-kiln-signed"].body, Body::Bytes(b"a key".to_vec()));
    }

    #[test]
    fn no_systemd_deletes_the_folder_that_the_root_lies_in() {
        assert!(!UNIT.contains("RuntimeDirectory"));
    }

    #[test]
    fn what_does_not_fit_the_tree_is_named_with_its_file() {
        let problems = made(&overlays(vec![
            ("etc/taken", entry(overlay::Kind::Dir, "web", "root")),
            ("var/lib/web", entry(overlay::Kind::File("x".into()), "web", "nobody")),
        ]))
        .unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems.iter().all(|p| p.starts_with("overlays/web: /")), "{problems:?}");
    }

    #[test]
    fn least_memory_counts_layers_systems_and_the_initramfs() {
        const MIB: u64 = 1 << 20;
        assert_eq!(memory_min_mib(160 * MIB, 8 * MIB, 0), 576);
        assert!(memory_min_mib(160 * MIB, 8 * MIB, 5) > memory_min_mib(160 * MIB, 8 * MIB, 0));
        assert!(memory_min_mib(0, 1000 * MIB, 0) >= 2000);
    }
}
