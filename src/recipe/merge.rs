//! Merges the files of an `extends` chain into one [`Recipe`] and checks what only the whole
//! shows: one distribution, no repository or uid twice, systems that fit together, their order.

use super::file::{Loaded, PRIORITY_DEFAULT, Part};
use super::problem::Problem;
use super::reader::At;
use super::system::{Scope, System};
use super::{
    Compression, CompressionKind, Distribution, Family, Recipe, Repository, RepositoryUrl, Stage, Trust, waits,
};
use std::collections::{BTreeMap, BTreeSet};

/// `None` when something is missing without which there is no recipe; a problem says what.
pub(super) fn merge(release: &str, role: &str, parts: Vec<Part>, problems: &mut Vec<Problem>) -> Option<Recipe> {
    let top = parts.last().filter(|part| part.role == role)?.file.clone();
    let mut merger = Merger { problems };
    let distribution = merger.distribution(&parts, &top);
    let mut recipe = Recipe {
        release: release.to_string(),
        role: role.to_string(),
        distribution: distribution.clone().unwrap_or(Distribution { family: Family::Apt, name: String::new() }),
        stages: stages(&parts),
        systems: Vec::new(),
        overlays: unique(parts.iter().flat_map(|p| &p.overlays)),
        repositories: merger.repositories(&parts, distribution.as_ref(), &top),
        cmdline: parts.iter().flat_map(|p| p.cmdline.iter().map(|a| a.value.clone())).collect(),
        initramfs_modules: modules(&parts),
        users: merger.users(&parts),
        compression: Compression { kind: CompressionKind::Zstd, level: 3 },
        selinux: parts.iter().rev().find_map(|p| p.selinux.as_ref()).map(|s| s.value.clone()),
    };
    if recipe.distribution.family == Family::Yum {
        recipe.compression = Compression { kind: CompressionKind::Gzip, level: 4 };
        if recipe.selinux.is_none() {
            merger.file(&top, "security.selinux", "is missing: a yum distribution has SELinux, so say its mode");
        }
    }
    if let Some(given) = parts.iter().rev().find_map(|p| p.compression.as_ref()) {
        recipe.compression = given.value.clone();
    }
    let base = role == "base" || role.starts_with("base-");
    if role != "test" && !base && parts.iter().all(|p| p.systems.is_empty()) {
        merger.file(
            &top,
            "systems",
            "no system: only \"test\" is ready without one (a recipe that is only extended is called base or base-…)",
        );
    }
    recipe.systems = merger.systems(parts);
    for system in &recipe.systems {
        if !recipe.overlays.contains(&system.name) {
            recipe.overlays.push(system.name.clone());
        }
    }
    distribution.map(|_| recipe)
}

/// A package stays in the first stage that asks for it: stages are shared with other roles.
fn stages(parts: &[Part]) -> Vec<Stage> {
    let mut taken = BTreeSet::new();
    let mut stages = Vec::new();
    for part in parts {
        let of_systems = part.systems.iter().filter_map(|(_, loaded)| loaded.as_ref());
        let asked: BTreeSet<String> = part
            .packages
            .iter()
            .map(|p| p.value.clone())
            .chain(of_systems.flat_map(|loaded| loaded.system.packages.clone()))
            .collect();
        let packages: Vec<String> = asked.into_iter().filter(|p| taken.insert(p.clone())).collect();
        stages.push(Stage { name: part.role.clone(), packages });
    }
    stages
}

fn unique<'a>(names: impl Iterator<Item = &'a At<String>>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|n| seen.insert(n.value.clone())).map(|n| n.value.clone()).collect()
}

fn modules(parts: &[Part]) -> Option<Vec<String>> {
    let given: Vec<_> = parts.iter().filter_map(|p| p.modules.as_ref()).collect();
    if given.is_empty() { None } else { Some(unique(given.into_iter().flatten())) }
}

struct Merger<'p> {
    problems: &'p mut Vec<Problem>,
}

impl Merger<'_> {
    fn at<T>(&mut self, file: &str, at: &At<T>, message: impl Into<String>) {
        let (line, key) = (at.line, at.key.clone());
        self.problems.push(Problem { file: file.into(), line, key, message: message.into() });
    }

    fn file(&mut self, file: &str, key: &str, message: &str) {
        self.problems.push(Problem { file: file.into(), line: 0, key: key.into(), message: message.into() });
    }

    /// Whether the lack of `key` follows from a problem that is told already.
    fn known(&self, key: &str) -> bool {
        self.problems.iter().any(|p| p.key.starts_with(key) || p.key.starts_with("extends"))
    }

    fn distribution(&mut self, parts: &[Part], top: &str) -> Option<Distribution> {
        let mut said: Option<(&str, Distribution)> = None;
        for part in parts {
            let Some(here) = &part.distribution else { continue };
            match &said {
                Some((file, first)) if *first != here.value => {
                    let message = format!("{file} already says {} ({:?})", first.name, first.family);
                    self.at(&part.file, here, message);
                }
                Some(_) => {}
                None => said = Some((&part.file, here.value.clone())),
            }
        }
        if said.is_none() && !self.known("distribution") {
            self.file(top, "distribution", "is missing here and in all that it extends");
        }
        said.map(|(_, distribution)| distribution)
    }

    fn repositories(&mut self, parts: &[Part], distribution: Option<&Distribution>, top: &str) -> Vec<Repository> {
        let mut defined: BTreeMap<String, String> = BTreeMap::new();
        let mut repositories = Vec::new();
        for part in parts {
            for repository in &part.repositories {
                if let Some(file) = defined.get(&repository.value.id) {
                    self.at(&part.file, repository, format!("{:?} is already defined in {file}", repository.value.id));
                    continue;
                }
                defined.insert(repository.value.id.clone(), part.file.clone());
                if let Some(distribution) = distribution {
                    for message in misfits(&repository.value, distribution.family) {
                        self.at(&part.file, repository, message);
                    }
                }
                repositories.push(repository.value.clone());
            }
        }
        self.excludes(parts, distribution, &mut repositories);
        if repositories.is_empty() && !self.known("repository") {
            self.file(top, "repository", "is missing here and in all that it extends");
        }
        repositories
    }

    fn excludes(&mut self, parts: &[Part], distribution: Option<&Distribution>, repositories: &mut [Repository]) {
        for part in parts {
            for (id, patterns) in &part.excludes {
                if distribution.is_some_and(|d| d.family != Family::Yum) {
                    self.at(&part.file, id, "exclude is yum's");
                }
                match repositories.iter_mut().find(|r| r.id == id.value) {
                    Some(repository) => repository.exclude.extend(patterns.iter().map(|p| p.value.clone())),
                    None if self.known("repository") => {}
                    None => self.at(&part.file, id, format!("the role has no repository {:?}", id.value)),
                }
            }
        }
        for repository in repositories {
            repository.exclude.sort();
            repository.exclude.dedup();
        }
    }

    fn users(&mut self, parts: &[Part]) -> BTreeMap<String, u32> {
        let mut users: BTreeMap<String, u32> = BTreeMap::new();
        for part in parts {
            for (user, uid) in &part.users {
                if let Some((other, _)) = users.iter().find(|(name, n)| **n == *uid && **name != user.value) {
                    let message = format!("uid {uid} is already {other}'s");
                    self.at(&part.file, user, message);
                }
                match users.get(&user.value) {
                    Some(other) if other != uid => {
                        let message = format!("is {other} in a recipe that this one extends");
                        self.at(&part.file, user, message);
                    }
                    _ => {
                        users.insert(user.value.clone(), *uid);
                    }
                }
            }
        }
        users
    }

    /// Every system once, in start order.
    fn systems(&mut self, parts: Vec<Part>) -> Vec<System> {
        let mut all: BTreeMap<String, Loaded> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for (name, loaded) in parts.into_iter().flat_map(|p| p.systems) {
            named.insert(name.value.clone());
            if let Some(loaded) = loaded {
                all.entry(name.value).or_insert(loaded);
            }
        }
        self.check_ports(&all);
        self.check_state(&all);
        self.check_steps(&all, &named);
        let waits = waits::circles(&all);
        let count = all.len();
        let order = self.start_order(all, &named);
        // Where the systems themselves stand in a circle, every step of theirs does too.
        if order.len() == count {
            self.problems.extend(waits);
        }
        order
    }

    fn check_ports(&mut self, all: &BTreeMap<String, Loaded>) {
        let mut owners: BTreeMap<u16, &str> = BTreeMap::new();
        for (name, loaded) in all {
            for port in &loaded.places.ports {
                match owners.get(&port.value) {
                    Some(owner) if owner != name => {
                        self.at(&loaded.file, port, format!("port {} is already {owner}'s", port.value));
                    }
                    _ => {
                        owners.insert(port.value, name);
                    }
                }
            }
        }
    }

    /// Two systems that keep state in one folder would wipe each other's.
    fn check_state(&mut self, all: &BTreeMap<String, Loaded>) {
        let inside = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        let folders: Vec<(&String, &Loaded, &At<String>)> =
            all.iter().flat_map(|(name, loaded)| loaded.places.state.iter().map(move |s| (name, loaded, s))).collect();
        for (i, (_, loaded, state)) in folders.iter().enumerate() {
            for (owner, _, other) in &folders[..i] {
                if inside(&state.value, &other.value) || inside(&other.value, &state.value) {
                    self.at(&loaded.file, *state, format!("{:?} is already state of {owner}", other.value));
                }
            }
        }
    }

    fn check_steps(&mut self, all: &BTreeMap<String, Loaded>, named: &BTreeSet<String>) {
        for (name, loaded) in all {
            for places in &loaded.places.steps {
                if places.scope.value == Scope::Cluster {
                    let target = places.writes.as_ref().map(|w| &w.value).unwrap_or(name);
                    let place = places.writes.as_ref().map(|w| w.clone().map(|_| ())).unwrap_or(At {
                        value: (),
                        line: places.scope.line,
                        key: places.scope.key.clone(),
                    });
                    match all.get(target) {
                        Some(system) if system.system.state.is_empty() => self.at(
                            &loaded.file,
                            &place,
                            format!(
                                "its result lives in {target}, which keeps no state: name a system that does in writes"
                            ),
                        ),
                        None if !named.contains(target) => {
                            self.at(&loaded.file, &place, format!("writes {target:?}, which the role does not have"));
                        }
                        _ => {}
                    }
                }
                for need in &places.needs {
                    if let Some(message) = missing_need(&need.value, all, named) {
                        self.at(&loaded.file, need, message);
                    }
                }
            }
        }
    }

    /// Topological by `after`; of those that may start, the first by name.
    fn start_order(&mut self, mut all: BTreeMap<String, Loaded>, named: &BTreeSet<String>) -> Vec<System> {
        for (name, loaded) in &all {
            for after in &loaded.places.after {
                if after.value == *name {
                    self.at(&loaded.file, after, "a system cannot start after itself");
                } else if !named.contains(&after.value) {
                    let message = format!("starts after {:?}, which the role does not have", after.value);
                    self.at(&loaded.file, after, message);
                }
            }
        }
        let mut order = Vec::new();
        loop {
            let waits = |l: &Loaded| l.system.after.iter().any(|a| *a != l.system.name && all.contains_key(a));
            let Some(next) = all.iter().find(|(_, loaded)| !waits(loaded)).map(|(name, _)| name.clone()) else { break };
            order.extend(all.remove(&next).map(|loaded| loaded.system));
        }
        // What is left waits for each other, or for those that do.
        let circle: Vec<&str> = all.keys().map(String::as_str).filter(|name| reaches_itself(name, &all)).collect();
        for (name, loaded) in all.iter().filter(|(name, _)| circle.contains(&name.as_str())) {
            for after in loaded.places.after.iter().filter(|a| a.value != *name && circle.contains(&a.value.as_str())) {
                let message = format!("systems wait for each other in a circle: {}", circle.join(", "));
                self.at(&loaded.file, after, message);
            }
        }
        order
    }
}

fn reaches_itself(name: &str, all: &BTreeMap<String, Loaded>) -> bool {
    let (mut seen, mut todo) = (BTreeSet::new(), vec![name]);
    while let Some(at) = todo.pop() {
        for after in all.get(at).iter().flat_map(|loaded| &loaded.system.after) {
            if after == name && at != name {
                return true;
            }
            if seen.insert(after.as_str()) {
                todo.push(after);
            }
        }
    }
    false
}

fn missing_need(need: &str, all: &BTreeMap<String, Loaded>, named: &BTreeSet<String>) -> Option<String> {
    let (system, step) = need.split_once('/').map_or((need, None), |(system, step)| (system, Some(step)));
    if !named.contains(system) {
        return Some(format!("needs {need:?}, but the role has no system {system:?}"));
    }
    let (step, loaded) = (step?, all.get(system)?);
    let found = loaded.system.steps.iter().any(|s| s.name == step);
    (!found).then(|| format!("needs {need:?}, but {system} has no step {step:?}"))
}

/// What does not fit the family.
fn misfits(repository: &Repository, family: Family) -> Vec<String> {
    let Repository { url, suites, components, keyring, trust, priority, .. } = repository;
    let host = *url == RepositoryUrl::Host;
    let mut messages = Vec::new();
    let mut wrong = |yes: bool, message: &str| {
        if yes {
            messages.push(message.to_string());
        }
    };
    match family {
        Family::Apt => {
            wrong(suites.is_empty(), "an apt repository needs suites, such as [\"bookworm\"]");
            wrong(components.is_empty(), "an apt repository needs components, such as [\"main\"]");
            wrong(*priority != PRIORITY_DEFAULT, "priority is yum's");
            wrong(host && keyring.is_some(), "\"host\" brings its own keyring");
            wrong(host && *trust != Trust::Signed { gpgkey: None }, "\"host\" is trusted as the host trusts it");
            wrong(
                !host && keyring.is_none() && *trust == Trust::Signed { gpgkey: None },
                "who signs it? Give a keyring, trust = { gpgkey = FILE } or trust = \"pinned\"",
            );
        }
        Family::Yum => {
            wrong(host, "\"host\" is apt's; a yum repository needs an address");
            wrong(!suites.is_empty() || !components.is_empty(), "suites and components are apt's");
            wrong(keyring.is_some(), "keyring is apt's; give trust = { gpgkey = FILE }");
            wrong(
                *trust == Trust::Signed { gpgkey: None },
                "who signs it? Give trust = { gpgkey = FILE } or trust = \"pinned\"",
            );
        }
    }
    messages
}
