//! Named checks over a built tree before it gets an id. Pure: an index, a way to read small files,
//! and what the tree should be.

use super::role::{NODE_FILE, SELINUX_FILE, UNIT_LINK};
use super::tree::{Kind, Tree};
use super::users;
use crate::image::role::{RoleFile, SYSTEMS_DIR};
use crate::overlay::render;
use crate::repo::packages;
use crate::site::view::{ClusterView, MemberView, NetworkView, NodeView, View};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name.
    pub check: &'static str,
    pub message: String,
    /// Fails the build; otherwise a warning that is kept in the image's config.
    pub fatal: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.message)
    }
}

/// A tree and what it should be.
pub struct Subject<'a> {
    /// All layers, the role's included.
    pub tree: Tree<'a>,
    pub role: &'a RoleFile,
    /// `name version arch`, sorted.
    pub packages: &'a [String],
    /// `uname -r` of the image's kernel.
    pub kernel: &'a str,
    /// Pinned users; an image in the store does not say them.
    pub users: Option<&'a BTreeMap<String, u32>>,
    /// The recipe's mode; an image in the store does not say it.
    pub selinux: Option<&'a str>,
    /// The bytes of kiln-node in the tree.
    pub kiln_node: &'a [u8],
}

type Check = fn(&Subject, &mut dyn FnMut(String));

/// Every check by its name.
const CHECKS: &[(&str, Check)] = &[
    ("identity", identity),
    ("host-keys", host_keys),
    ("secrets", secrets),
    ("passwords", passwords),
    ("setuid", setuid),
    ("devices", devices),
    ("kernel", kernel),
    ("init", init),
    ("units", units),
    ("enabled", enabled),
    ("scripts", scripts),
    ("templates", templates),
    ("packages", package_list),
    ("selinux", selinux),
    ("users", pinned_users),
    ("state", state_owners),
    ("kiln-node", kiln_node),
];

/// Runs every check.
pub fn lint(subject: &Subject) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (check, run) in CHECKS {
        run(subject, &mut |message| findings.push(Finding { check, message, fatal: true }));
    }
    findings
}

fn size(kind: &Kind) -> u64 {
    if let Kind::File(size) = kind { *size } else { 0 }
}

/// Files that tell one machine from another must be absent or empty.
fn identity(subject: &Subject, found: &mut dyn FnMut(String)) {
    const FILES: [&str; 9] = [
        "etc/machine-id",
        "etc/hostname",
        "etc/machine-info",
        "etc/iscsi/initiatorname.iscsi",
        "etc/nvme/hostid",
        "etc/nvme/hostnqn",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
    ];
    for file in FILES {
        if subject.tree.index.get(file).is_some_and(|n| size(&n.kind) > 0) {
            found(format!("/{file} would be the same on every node"));
        }
    }
}

fn host_keys(subject: &Subject, found: &mut dyn FnMut(String)) {
    for (path, _) in subject.tree.below("etc/ssh").filter(|(path, _)| path.contains("ssh_host_")) {
        found(format!("/{path} would be the same on every node"));
    }
}

/// Private keys and the like where configuration and state lie.
fn secrets(subject: &Subject, found: &mut dyn FnMut(String)) {
    const NAMES: [&str; 9] = [
        ".erlang.cookie",
        "authkey",
        ".netrc",
        ".pgpass",
        "id_rsa",
        "id_ed25519",
        "id_ecdsa",
        ".git-credentials",
        ".my.cnf",
    ];
    const FOLDERS: [&str; 7] = ["etc", "root", "home", "srv", "opt", "var", "usr/lib/kiln"];
    /// A key file is a few kB.
    const LOOK_MAX_BYTES: u64 = 64 * 1024;
    for folder in FOLDERS {
        for (path, node) in subject.tree.below(folder) {
            let Kind::File(size) = node.kind else { continue };
            let name = path.rsplit('/').next().unwrap_or_default();
            if size > 0 && NAMES.contains(&name) {
                found(format!("/{path} is a secret by its name"));
            } else if (1..=LOOK_MAX_BYTES).contains(&size) && !path.starts_with("var/lib/dpkg/info/") {
                let text = (subject.tree.read)(path).unwrap_or_default();
                if holds_private_key(&text) {
                    found(format!("/{path} holds a private key"));
                }
            }
        }
    }
}

fn holds_private_key(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.lines().any(|line| {
        let line = line.trim_end();
        line.starts_with("-----BEGIN ") && line.ends_with("PRIVATE KEY-----")
    })
}

fn passwords(subject: &Subject, found: &mut dyn FnMut(String)) {
    for line in subject.tree.text("etc/shadow").unwrap_or_default().lines() {
        let mut fields = line.split(':');
        let (name, password) = (fields.next().unwrap_or_default(), fields.next().unwrap_or("*"));
        if password.is_empty() || password.contains('$') {
            found(format!("user {name} has a password in /etc/shadow"));
        }
    }
    for line in subject.tree.text("etc/passwd").unwrap_or_default().lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some("")) = (fields.next(), fields.next()) {
            found(format!("user {name} needs no password (/etc/passwd)"));
        }
    }
}

/// Programs that may run with another's rights: those of Debian's and CentOS's packages.
fn setuid(subject: &Subject, found: &mut dyn FnMut(String)) {
    const KNOWN: [&str; 36] = [
        "auth_pam_tool",
        "chage",
        "chfn",
        "chsh",
        "crontab",
        "dbus-daemon-launch-helper",
        "dotlockfile",
        "expiry",
        "fusermount3",
        "gpasswd",
        "mount",
        "mount.cifs",
        "lockdev",
        "mount.nfs",
        "netreport",
        "newgrp",
        "ntfs-3g",
        "pam_timestamp_check",
        "passwd",
        "ping",
        "pkexec",
        "polkit-agent-helper-1",
        "postdrop",
        "postqueue",
        "qemu-bridge-helper",
        "ssh-agent",
        "ssh-keysign",
        "su",
        "sudo",
        "umount",
        "unix_chkpwd",
        "usernetctl",
        "utempter",
        "wall",
        "write",
        "write.ul",
    ];
    for (path, node) in subject.tree.index.iter().filter(|(_, n)| matches!(n.kind, Kind::File(_))) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let special = node.mode & 0o6000 != 0;
        let known = KNOWN.contains(&name) && path.starts_with("usr/");
        if special && !known {
            found(format!(
                "/{path} runs with another's rights (mode {:04o}) and is not one that kiln knows",
                node.mode
            ));
        }
        if node.mode & 0o002 != 0 {
            found(format!("/{path} can be written by everybody (mode {:04o})", node.mode));
        }
        if node.capable && !known && !is_capable(name) {
            found(format!("/{path} has file capabilities and is not one that kiln knows"));
        }
    }
}

/// Programs to which Debian's packages give file capabilities.
fn is_capable(name: &str) -> bool {
    const KNOWN: [&str; 7] = ["arping", "clockdiff", "dumpcap", "fping", "gst-ptp-helper", "mtr-packet", "ping"];
    KNOWN.contains(&name)
}

fn devices(subject: &Subject, found: &mut dyn FnMut(String)) {
    for (path, _) in subject.tree.index.iter().filter(|(_, n)| n.kind == Kind::Device) {
        found(format!("/{path} is a device"));
    }
}

/// One kernel, its own modules, nobody else's.
fn kernel(subject: &Subject, found: &mut dyn FnMut(String)) {
    let tree = &subject.tree;
    let below = format!("usr/lib/modules/{}", subject.kernel);
    if tree.node(&format!("{below}/modules.dep")).is_none() {
        found(format!("/{below}/modules.dep is missing: kernel {} would have no modules", subject.kernel));
    }
    let versions: BTreeSet<&str> =
        tree.below("usr/lib/modules").filter_map(|(path, _)| path.split('/').nth(3)).collect();
    for other in versions.iter().filter(|v| **v != subject.kernel) {
        found(format!("modules of {other} are there, the kernel is {}", subject.kernel));
    }
    let kernels = tree.below("boot").filter_map(|(path, _)| path.strip_prefix("boot/vmlinuz-"));
    for other in kernels.filter(|v| *v != subject.kernel) {
        found(format!("kernel {other} is there beside {}", subject.kernel));
    }
}

fn init(subject: &Subject, found: &mut dyn FnMut(String)) {
    let runs = |n: &super::tree::Node| matches!(n.kind, Kind::File(_)) && n.mode & 0o111 != 0;
    if !subject.tree.node("sbin/init").is_some_and(runs) {
        found("/sbin/init leads to no program: add systemd-sysv to the recipe".into());
    }
}

/// A unit's file, itself or its template's.
fn unit_exists(tree: &Tree, unit: &str) -> bool {
    let template = unit.split_once('@').and_then(|(stem, rest)| Some(format!("{stem}@.{}", rest.rsplit_once('.')?.1)));
    let names = std::iter::once(unit.to_string()).chain(template);
    names.into_iter().any(|name| {
        ["etc/systemd/system", "usr/lib/systemd/system"]
            .iter()
            .any(|folder| tree.node(&format!("{folder}/{name}")).is_some())
    })
}

fn units(subject: &Subject, found: &mut dyn FnMut(String)) {
    for system in &subject.role.systems {
        for unit in system.units.iter().filter(|u| !unit_exists(&subject.tree, u)) {
            found(format!("system {}: there is no unit {unit}", system.name));
        }
    }
}

/// Nothing starts by itself but kiln-node.
fn enabled(subject: &Subject, found: &mut dyn FnMut(String)) {
    let is_link = |path: &str| {
        let folder = path.split('/').nth(3).unwrap_or_default();
        let ends = [".wants", ".requires", ".upholds"].iter().any(|e| folder.ends_with(e));
        ends && path.split('/').count() == 5
    };
    for (path, node) in subject.tree.below("etc/systemd/system") {
        if is_link(path) && path != UNIT_LINK && node.kind != Kind::Dir {
            found(format!("/{path} starts a service before kiln-node does"));
        }
    }
    if !subject.tree.index.contains_key(UNIT_LINK) {
        found("kiln-node.service is not enabled".into());
    }
}

fn scripts(subject: &Subject, found: &mut dyn FnMut(String)) {
    for system in &subject.role.systems {
        let mut names = vec!["health".to_string()];
        for step in &system.steps {
            names.push(step.name.clone());
            if step.scope == crate::recipe::system::Scope::Cluster {
                names.push(format!("{}.check", step.name));
            }
        }
        for name in names {
            let path = format!("{SYSTEMS_DIR}/{}/{name}", system.name);
            match subject.tree.node(&path) {
                None => found(format!("system {}: there is no script {path}", system.name)),
                Some(n) if n.mode & 0o111 == 0 => found(format!("system {}: {path} is not executable", system.name)),
                Some(n) if size(&n.kind) == 0 => found(format!("system {}: {path} is empty", system.name)),
                Some(_) => {}
            }
        }
    }
}

/// Every template renders with a sample site of three nodes and its own system's secrets.
fn templates(subject: &Subject, found: &mut dyn FnMut(String)) {
    let view = sample_view(subject.role);
    for template in &subject.role.templates {
        let system = subject.role.systems.iter().find(|s| Some(&s.name) == template.system.as_ref());
        let names = system.map(|s| s.secrets.as_slice()).unwrap_or_default();
        let secrets: BTreeMap<String, String> = names.iter().map(|n| (n.clone(), "sample".to_string())).collect();
        match (subject.tree.read)(template.path.trim_start_matches('/')).map(String::from_utf8) {
            Some(Ok(text)) => {
                if let Err(error) = render::render(&template.path, &text, &view, &secrets) {
                    found(error);
                }
            }
            Some(Err(_)) => found(format!("template {} is not UTF-8", template.path)),
            None => found(format!("template {} is not there", template.path)),
        }
    }
}

/// A site that has everything that a site can say.
pub fn sample_view(role: &RoleFile) -> View {
    let address = |last: u8| Ipv4Addr::new(192, 0, 2, last);
    let member = |i: u32| MemberView { name: format!("node{i}"), address: address(10 + i as u8), index: i };
    let network = |physical: Option<&str>| NetworkView {
        subnet: Some("192.0.2.0/24".into()),
        gateway: Some(address(1)),
        dns: vec![address(1)],
        ntp: vec![address(1).to_string()],
        mtu: Some(1500),
        physical: physical.map(String::from),
    };
    let mut roles: BTreeSet<String> = ["controller", "infra", "compute", "storage"].map(String::from).into();
    roles.insert(role.role.clone());
    View {
        cluster: ClusterView { name: "sample".into(), release: role.release.clone(), vip: Some(address(100)) },
        node: NodeView {
            name: "node1".into(),
            role: role.role.clone(),
            index: 1,
            address: address(11),
            prefix: 24,
            mac: "52:54:00:00:00:01".into(),
            external_mac: Some("52:54:00:00:01:01".into()),
        },
        network: BTreeMap::from([("management".into(), network(None)), ("external".into(), network(Some("provider")))]),
        members: roles.into_iter().map(|role| (role, (1..=3).map(member).collect())).collect(),
        ssh_keys: vec!["ssh-ed25519 AAAA sample".into()],
    }
}

/// What dpkg says is installed is what the image says it is made of. An rpm database only rpm can
/// read: its content was held against the lock by the image's own at the bake, its files are here.
fn package_list(subject: &Subject, found: &mut dyn FnMut(String)) {
    if is_rpm(&subject.tree) {
        return rpm_database(subject, found);
    }
    let Some(status) = subject.tree.text("var/lib/dpkg/status") else {
        return found("/var/lib/dpkg/status cannot be read".into());
    };
    let installed: BTreeSet<String> =
        packages::installed(&status).iter().map(|p| format!("{} {} {}", p.name, p.version, p.arch)).collect();
    let wanted: BTreeSet<String> = subject.packages.iter().cloned().collect();
    for package in installed.symmetric_difference(&wanted) {
        let which =
            if installed.contains(package) { "is installed and not locked" } else { "is locked and not installed" };
        found(format!("package {package} {which}"));
    }
}

fn is_rpm(tree: &Tree) -> bool {
    tree.index.contains_key(RPM_DATABASE) && !tree.index.contains_key("var/lib/dpkg/status")
}

const RPM_DATABASE: &str = "var/lib/rpm";

fn rpm_database(subject: &Subject, found: &mut dyn FnMut(String)) {
    let there =
        |name: &str| subject.tree.index.get(&format!("{RPM_DATABASE}/{name}")).is_some_and(|n| size(&n.kind) > 0);
    match (there("Packages"), there("rpmdb.sqlite")) {
        (false, false) => found(format!("/{RPM_DATABASE} holds no database: yum would see an empty system")),
        // An rpm that knows only the one would rebuild from it and lose the other.
        (true, true) => found(format!("/{RPM_DATABASE} holds two databases, Packages and rpmdb.sqlite")),
        _ => {}
    }
    for (path, _) in subject.tree.below(RPM_DATABASE) {
        if ["/__db.", "-wal", "-shm", "-journal"].iter().any(|piece| path.contains(piece)) {
            found(format!("/{path} is of a process that is gone"));
        }
    }
}

/// A distribution with SELinux says its mode, and the one of the recipe. No layer has labels.
fn selinux(subject: &Subject, found: &mut dyn FnMut(String)) {
    if !is_rpm(&subject.tree) {
        return;
    }
    let text = subject.tree.text(SELINUX_FILE).unwrap_or_default();
    let said = text.lines().filter_map(|l| l.trim().strip_prefix("SELINUX=")).next_back().map(str::trim);
    match (said, subject.selinux) {
        (None, _) => found(format!("/{SELINUX_FILE} does not say SELINUX=")),
        (Some("enforcing"), _) => found(format!("/{SELINUX_FILE} says enforcing, and layers carry no labels")),
        (Some(said), Some(wanted)) if said != wanted => {
            found(format!("/{SELINUX_FILE} says {said}, the recipe {wanted}"));
        }
        _ => {}
    }
}

fn pinned_users(subject: &Subject, found: &mut dyn FnMut(String)) {
    let Some(users) = subject.users else { return };
    let text = |path: &str| subject.tree.text(path).unwrap_or_default();
    users::broken_pins(&text("etc/passwd"), &text("etc/group"), users).into_iter().for_each(found);
}

/// What outlives a reboot belongs to somebody whose number every image has.
fn state_owners(subject: &Subject, found: &mut dyn FnMut(String)) {
    let Some(users) = subject.users else { return };
    for system in &subject.role.systems {
        for folder in &system.state {
            let Some(node) = subject.tree.node(folder) else { continue };
            for (what, id) in [("user", node.uid), ("group", node.gid)] {
                // Debian's static range (base-passwd) is the same in every image.
                const STATIC_MAX: u32 = 99;
                if id > STATIC_MAX && id != 65534 && !users.values().any(|pinned| *pinned == id) {
                    found(format!(
                        "system {}: {folder} belongs to {what} {id}, which no [users] of the recipe pins",
                        system.name
                    ));
                }
            }
        }
    }
}

fn kiln_node(subject: &Subject, found: &mut dyn FnMut(String)) {
    if let Err(why) = check_static(subject.kiln_node) {
        found(format!("/{NODE_FILE} {why}"));
    }
}

/// Whether a program runs without any library: it must, as `/init` of the initramfs.
pub fn check_static(elf: &[u8]) -> Result<(), String> {
    /// ELF-64: program header type of an interpreter.
    const PT_INTERP: u64 = 3;
    let number = |at: usize, width: usize| {
        let field = elf.get(at..at + width)?;
        Some(field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Err("is no 64-bit Linux program".into());
    }
    let (Some(table), Some(width), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Err("is no whole program".into());
    };
    for i in 0..count {
        let at = usize::try_from(table.saturating_add(i * width)).unwrap_or(usize::MAX - 8);
        match number(at, 4) {
            None => return Err("is no whole program".into()),
            Some(PT_INTERP) => {
                return Err("needs a loader: build it static (cargo rustc --release --bin kiln-node -- -C target-feature=+crt-static)".into());
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tree::testing::{index, node};
    use super::super::tree::{Index, Node};
    use super::*;
    use crate::image::role::Template;
    use crate::recipe::System;

    const KERNEL: &str = "6.1.0-1-amd64";
    const STATUS: &str = "Package: bash\nStatus: install ok installed\nVersion: 5\nArchitecture: amd64\n";

    /// A tree in which every check is content.
    struct Good {
        index: Index,
        content: BTreeMap<String, Vec<u8>>,
        role: RoleFile,
        packages: Vec<String>,
        users: BTreeMap<String, u32>,
        kiln_node: Vec<u8>,
    }

    fn good() -> Good {
        let (mut index, content) = index(&[
            ("usr/lib/systemd/systemd", "elf"),
            ("usr/lib/systemd/system/web.service", "[Service]"),
            ("usr/lib/systemd/system/kiln-node.service", "[Service]"),
            ("usr/lib/modules/6.1.0-1-amd64/modules.dep", ""),
            ("boot/vmlinuz-6.1.0-1-amd64", "kernel"),
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:401:401::/:/bin/false\n"),
            ("etc/group", "root:x:0:\nweb:x:401:\n"),
            ("etc/shadow", "root:*:1::::::\n"),
            ("etc/machine-id", ""),
            ("etc/web.conf.j2", "bind {{ node.address }} {{ secrets.web.key }} {{ members.infra[2].name }}\n"),
            ("usr/bin/su", "elf"),
            ("usr/lib/kiln/kiln-node", "elf"),
            ("usr/lib/kiln/systems/web/health", "#!/bin/sh\n"),
            ("var/lib/dpkg/status", STATUS),
        ]);
        index.insert("usr/sbin/init".into(), node(Kind::Symlink("../lib/systemd/systemd".into())));
        index.insert("usr/sbin".into(), node(Kind::Dir));
        index.insert("sbin".into(), node(Kind::Symlink("usr/sbin".into())));
        index.insert(UNIT_LINK.into(), node(Kind::Symlink("/usr/lib/systemd/system/kiln-node.service".into())));
        index.insert("var/lib/web".into(), Node { uid: 401, gid: 401, ..node(Kind::Dir) });
        for program in ["usr/lib/systemd/systemd", "usr/lib/kiln/systems/web/health"] {
            index.entry(program.into()).and_modify(|n| n.mode = 0o755);
        }
        index.entry("usr/bin/su".into()).and_modify(|n| n.mode = 0o4755);
        let web: System = serde_json::from_value(serde_json::json!({
            "name": "web", "units": ["web.service"], "secrets": ["web.key"], "state": ["/var/lib/web"]
        }))
        .unwrap();
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        Good {
            index,
            content,
            role: RoleFile {
                release: "zed".into(),
                role: "infra".into(),
                systems: vec![web],
                templates: vec![Template { path: "/etc/web.conf.j2".into(), system: Some("web".into()) }],
                memory_min_mib: 512,
                repositories: Vec::new(),
            },
            packages: vec!["bash 5 amd64".into()],
            users: BTreeMap::from([("web".to_string(), 401)]),
            kiln_node: elf,
        }
    }

    impl Good {
        fn put(&mut self, path: &str, text: &str, mode: u32) {
            self.index.insert(path.into(), Node { mode, ..node(Kind::File(text.len() as u64)) });
            self.content.insert(path.into(), text.into());
        }

        /// The same with an rpm database instead of dpkg's.
        fn turn_rpm(&mut self, database: &str) {
            self.index.remove("var/lib/dpkg/status");
            for folder in [RPM_DATABASE, "etc/selinux"] {
                self.index.insert(folder.into(), node(Kind::Dir));
            }
            self.put(database, "x", 0o644);
            self.put(SELINUX_FILE, "# SELINUX= can be\nSELINUX=permissive\n", 0o644);
        }

        fn lint(&self) -> Vec<String> {
            let read = |path: &str| self.content.get(path).cloned();
            let subject = Subject {
                tree: Tree { index: &self.index, read: &read },
                role: &self.role,
                packages: &self.packages,
                kernel: KERNEL,
                users: Some(&self.users),
                selinux: Some("permissive"),
                kiln_node: &self.kiln_node,
            };
            lint(&subject).iter().map(Finding::to_string).collect()
        }
    }

    #[test]
    fn a_good_tree_has_no_findings() {
        assert_eq!(good().lint(), Vec::<String>::new());
        let mut rpm = good();
        rpm.turn_rpm("var/lib/rpm/Packages");
        assert_eq!(rpm.lint(), Vec::<String>::new());
    }

    /// A name, what is broken, a piece of the one finding.
    type Case = (&'static str, fn(&mut Good), &'static str);

    #[test]
    fn every_check_finds_what_it_is_for() {
        let cases: &[Case] = &[
            ("identity", |g| g.put("etc/machine-id", "abc", 0o444), "/etc/machine-id"),
            ("host-keys", |g| g.put("etc/ssh/ssh_host_rsa_key.pub", "x", 0o644), "ssh_host_rsa_key.pub"),
            (
                "secrets",
                |g| g.put("etc/ssl/private/x.key", "a\n-----BEGIN EC PRIVATE KEY-----\n", 0o600),
                "/etc/ssl/private/x.key holds a private key",
            ),
            ("secrets", |g| g.put("var/lib/rabbitmq/.erlang.cookie", "x", 0o400), ".erlang.cookie"),
            ("passwords", |g| g.put("etc/shadow", "root:$y$abc:1::::::\n", 0o640), "user root"),
            ("passwords", |g| g.put("etc/shadow", "root::1::::::\n", 0o640), "user root"),
            ("setuid", |g| g.put("usr/bin/mine", "x", 0o4755), "/usr/bin/mine"),
            ("setuid", |g| g.put("opt/su", "x", 0o4755), "/opt/su"),
            ("setuid", |g| g.put("usr/share/open", "x", 0o666), "written by everybody"),
            ("devices", |g| drop(g.index.insert("usr/sda".into(), node(Kind::Device))), "/usr/sda"),
            ("kernel", |g| g.put("usr/lib/modules/5.10/modules.dep", "", 0o644), "modules of 5.10"),
            ("kernel", |g| drop(g.index.remove("usr/lib/modules/6.1.0-1-amd64/modules.dep")), "modules.dep is missing"),
            ("kernel", |g| g.put("boot/vmlinuz-5.10", "x", 0o644), "kernel 5.10"),
            ("init", |g| drop(g.index.remove("usr/sbin/init")), "systemd-sysv"),
            ("units", |g| g.role.systems[0].units.push("gone@1.service".into()), "gone@1.service"),
            (
                "enabled",
                |g| {
                    drop(g.index.insert("etc/systemd/system/a.target.wants/x".into(), node(Kind::Symlink("/x".into()))))
                },
                "a.target.wants/x",
            ),
            ("enabled", |g| drop(g.index.remove(UNIT_LINK)), "not enabled"),
            ("scripts", |g| drop(g.index.remove("usr/lib/kiln/systems/web/health")), "no script"),
            ("scripts", |g| g.put("usr/lib/kiln/systems/web/health", "#!", 0o644), "not executable"),
            ("templates", |g| g.put("etc/web.conf.j2", "{{ nosuch }}", 0o644), "/etc/web.conf.j2"),
            ("templates", |g| g.put("etc/web.conf.j2", "{{ secrets.galera.sst }}", 0o644), "/etc/web.conf.j2"),
            ("packages", |g| g.packages.push("vim 9 amd64".into()), "vim 9 amd64 is locked and not installed"),
            ("packages", |g| g.packages.clear(), "bash 5 amd64 is installed and not locked"),
            ("packages", |g| g.turn_rpm("var/lib/rpm/x"), "holds no database"),
            (
                "packages",
                |g| (g.turn_rpm("var/lib/rpm/Packages"), g.put("var/lib/rpm/rpmdb.sqlite", "x", 0o644)).1,
                "two databases",
            ),
            (
                "packages",
                |g| (g.turn_rpm("var/lib/rpm/Packages"), g.put("var/lib/rpm/__db.001", "x", 0o644)).1,
                "__db.001",
            ),
            ("selinux", |g| (g.turn_rpm("var/lib/rpm/Packages"), g.put(SELINUX_FILE, "x", 0o644)).1, "does not say"),
            (
                "selinux",
                |g| (g.turn_rpm("var/lib/rpm/Packages"), g.put(SELINUX_FILE, "SELINUX=enforcing\n", 0o644)).1,
                "no labels",
            ),
            (
                "selinux",
                |g| (g.turn_rpm("var/lib/rpm/Packages"), g.put(SELINUX_FILE, "SELINUX=disabled\n", 0o644)).1,
                "the recipe permissive",
            ),
            ("users", |g| g.users.extend([("root".to_string(), 7)]), "user root is 0, pinned is 7"),
            ("state", |g| g.index.get_mut("var/lib/web").unwrap().uid = 998, "belongs to user 998"),
            ("kiln-node", |g| g.kiln_node.truncate(3), "is no 64-bit Linux program"),
        ];
        for (check, spoil, piece) in cases {
            let mut tree = good();
            spoil(&mut tree);
            let found = tree.lint();
            let named = found.iter().any(|f| f.starts_with(&format!("{check}: ")) && f.contains(piece));
            assert!(named, "{check} must find {piece:?}, found {found:?}");
            assert!(
                found.iter().all(|f| f.starts_with(&format!("{check}: ")) || *check == "users"),
                "{check}: {found:?}"
            );
        }
        let tested: BTreeSet<&str> = cases.iter().map(|(check, ..)| *check).collect();
        let all: BTreeSet<&str> = CHECKS.iter().map(|(check, _)| *check).collect();
        assert_eq!(tested, all, "every check has a case");
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let mut elf = good().kiln_node;
        assert_eq!(check_static(&elf), Ok(()));
        elf[32] = 64; // program headers' place, width, count
        elf[54] = 56;
        elf[56] = 1;
        elf.extend([0; 56]);
        assert_eq!(check_static(&elf), Ok(()));
        elf[64] = 3;
        assert!(check_static(&elf).unwrap_err().contains("+crt-static"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_no_program_or_judged(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.extend(&bytes);
            let _ = (check_static(&bytes), check_static(&elf));
        }
    }
}
