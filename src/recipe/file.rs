//! From raw TOML to a valid [`Recipe`]: the recipe, all that it extends and their systems, every
//! problem at once with file, line and key. Files are asked for through [`Source`]; nothing is
//! resolved here (no version, no digest: that is the lock's).
//!
//! # `<release>/<role>.toml`
//!
//! | key | what | along the `extends` chain |
//! |---|---|---|
//! | `role` | the name, also the file's | |
//! | `extends` | recipes of the same release, laid below this one in this order, each once | |
//! | `systems` | names of `systems/<name>.toml` of the same release | appended |
//! | `packages` | beside those of its systems; one stage for each recipe | appended; a package stays in the first stage that asks for it |
//! | `overlays` | file trees; a system brings the one of its own name | appended |
//! | `[distribution] family, name` | `apt` or `yum`; `debian12` | said once (or the same again) |
//! | `[[repository]] id, url, suites, components, keyring, trust, preload, priority` | see [`super::Repository`] | appended; an id is defined once |
//! | `[exclude] id = [name]` | packages not taken from that repository (yum); `*` and `?` match | appended |
//! | `[kernel] cmdline` | arguments of the role | appended |
//! | `[initramfs] modules` | absent: all network and storage drivers | appended |
//! | `[users] name = uid` | pinned uids (and gids) of owners of kept state | merged; another number for a name is a problem |
//! | `[image] compression = { kind, level }` | default: zstd 3 (apt), gzip 4 (yum) | the last one wins |
//! | `[security] selinux` | `enforcing`, `permissive`, `disabled`; yum must say it | the last one wins |
//!
//! A role without a system can be ready only if it is `test`; a recipe that exists to be extended
//! is called `base` or `base-…`. Systems are in [`super::system_file`].

use super::merge;
use super::name;
use super::problem::{Problem, Problems};
use super::reader::{self, At, Table};
use super::system_file::{self, Places};
use super::{
    Compression, CompressionKind, Distribution, Family, Preload, Recipe, Repository, RepositoryUrl, System, Trust,
};
use std::collections::BTreeMap;

/// Longer chains of `extends` are a mistake, not a design.
pub const EXTENDS_DEPTH_MAX: usize = 8;

/// The recipes' folder as text.
pub trait Source {
    /// The text of a file by its path below the recipes' folder, such as `zed/infra.toml`.
    fn read(&self, path: &str) -> Option<String>;

    /// How problems name that file.
    fn shown(&self, path: &str) -> String {
        path.to_string()
    }

    /// Why `read` gave nothing.
    fn absent(&self, path: &str) -> String {
        format!("no file {}", self.shown(path))
    }
}

/// One file of the chain, as far as it could be read.
pub(super) struct Part {
    /// As problems name it.
    pub file: String,
    pub role: String,
    pub systems: Vec<(At<String>, Option<Loaded>)>,
    pub packages: Vec<At<String>>,
    pub overlays: Vec<At<String>>,
    pub distribution: Option<At<Distribution>>,
    pub repositories: Vec<At<Repository>>,
    /// By repository.
    pub excludes: Vec<(At<String>, Vec<At<String>>)>,
    pub cmdline: Vec<At<String>>,
    pub modules: Option<Vec<At<String>>>,
    pub users: Vec<(At<String>, u32)>,
    pub compression: Option<At<Compression>>,
    pub selinux: Option<At<String>>,
}

/// A system with the places that later checks name.
pub struct Loaded {
    /// As problems name it.
    pub file: String,
    pub system: System,
    pub places: Places,
}

/// Reads and checks the recipe of `role` with all that it extends.
pub fn parse(source: &dyn Source, release: &str, role: &str) -> Result<Recipe, Problems> {
    match parse_all(source, release, role) {
        (Some(recipe), problems) if problems.is_empty() => Ok(recipe),
        (_, problems) => Err(Problems(problems)),
    }
}

/// Like [`parse`], for callers that go on in spite of problems: what could be read, and every problem.
pub fn parse_all(source: &dyn Source, release: &str, role: &str) -> (Option<Recipe>, Vec<Problem>) {
    let mut chain = Chain { source, release, parts: Vec::new(), path: Vec::new(), problems: Vec::new() };
    let place = At { value: (), line: 0, key: String::new() };
    let names = [name::word(release), name::word(role)];
    match names.iter().find_map(|n| n.as_ref().err()) {
        Some(message) => chain.add(&format!("{release}/{role}"), &place, message.clone()),
        None => chain.load(role, &source.shown(&format!("{release}/{role}.toml")), &place),
    }
    let Chain { parts, mut problems, .. } = chain;
    let recipe = merge::merge(release, role, parts, &mut problems);
    problems.sort();
    problems.dedup();
    (recipe, problems)
}

/// One system of a release by itself, and every problem of its file alone.
pub fn system(source: &dyn Source, release: &str, name: &str) -> (Option<Loaded>, Vec<Problem>) {
    let path = format!("{release}/systems/{name}.toml");
    let file = source.shown(&path);
    let Some(text) = source.read(&path) else {
        return (None, vec![Problem { file, line: 0, key: String::new(), message: source.absent(&path) }]);
    };
    let (read, problems) = system_file::read(&text, &file, name);
    (read.map(|(system, places)| Loaded { file, system, places }), problems)
}

struct Chain<'s> {
    source: &'s dyn Source,
    release: &'s str,
    /// Finished files, what is extended first.
    parts: Vec<Part>,
    /// Roles from the asked one down to the one that is being read.
    path: Vec<String>,
    problems: Vec<Problem>,
}

impl Chain<'_> {
    fn add<T>(&mut self, file: &str, at: &At<T>, message: String) {
        self.problems.push(Problem { file: file.to_string(), line: at.line, key: at.key.clone(), message });
    }

    /// Reads `role` and, before it, all that it extends. `asked_in`, `at`: who names it.
    fn load<T>(&mut self, role: &str, asked_in: &str, at: &At<T>) {
        if self.path.iter().any(|r| r == role) {
            let circle = self.path.join(" extends ");
            return self.add(asked_in, at, format!("recipes extend each other in a circle: {circle} extends {role}"));
        }
        if self.parts.iter().any(|part| part.role == role) {
            return; // two recipes may extend the same one
        }
        if self.path.len() >= EXTENDS_DEPTH_MAX {
            return self.add(asked_in, at, format!("more than {EXTENDS_DEPTH_MAX} recipes extend each other"));
        }
        let path = format!("{}/{role}.toml", self.release);
        let Some(text) = self.source.read(&path) else {
            return self.add(asked_in, at, self.source.absent(&path));
        };
        let file = self.source.shown(&path);
        let (read, problems) = reader::read_all(&text, &file, |table| Some(read_recipe(table, role)));
        self.problems.extend(problems);
        let Some((extends, mut part)) = read else { return };
        part.file = file.clone();
        self.path.push(role.to_string());
        for parent in &extends {
            self.load(&parent.value, &file, parent);
        }
        self.path.pop();
        for (name, system) in &mut part.systems {
            *system = self.load_system(name, &file);
        }
        self.parts.push(part);
    }

    fn load_system(&mut self, name: &At<String>, asked_in: &str) -> Option<Loaded> {
        let path = format!("{}/systems/{}.toml", self.release, name.value);
        if self.source.read(&path).is_none() {
            self.add(asked_in, name, self.source.absent(&path));
            return None;
        }
        let (loaded, problems) = system(self.source, self.release, &name.value);
        self.problems.extend(problems);
        loaded
    }
}

fn read_recipe(table: &Table<'_>, role: &str) -> (Vec<At<String>>, Part) {
    if let Some(named) = table.required("role", name::word)
        && named.value != role
    {
        table.problem_at(&named, format!("the file is called {role}.toml, so the role must be {role:?}"));
    }
    let extends = table.list("extends", name::word);
    let distribution = table.table("distribution").and_then(|t| read_distribution(&t));
    let part = Part {
        file: String::new(),
        role: role.to_string(),
        systems: table.list("systems", name::word).into_iter().map(|name| (name, None)).collect(),
        packages: table.list("packages", name::package),
        overlays: table.list("overlays", name::word),
        distribution,
        repositories: table.tables("repository").iter().filter_map(read_repository).collect(),
        excludes: table.table("exclude").map(|t| t.named_lists(name::package_pattern)).unwrap_or_default(),
        cmdline: table.table("kernel").map(|t| arguments(&t)).unwrap_or_default(),
        modules: table.table("initramfs").map(|t| t.list("modules", name::module)),
        users: table.table("users").map(|t| read_users(&t)).unwrap_or_default(),
        compression: table.table("image").and_then(|t| t.table("compression")).and_then(|t| read_compression(&t)),
        selinux: table.table("security").and_then(|t| {
            let words = ["enforcing", "permissive", "disabled"].map(|w| (w, w));
            t.word("selinux", &words).map(|at| at.map(str::to_string))
        }),
    };
    (extends, part)
}

/// `[kernel] cmdline`: the same argument may stand twice (`console=`).
fn arguments(table: &Table<'_>) -> Vec<At<String>> {
    let given = table.strings("cmdline");
    for argument in &given {
        if let Err(message) = name::kernel_argument(&argument.value) {
            table.problem_at(argument, message);
        }
    }
    given
}

const FAMILIES: [(&str, Family); 2] = [("apt", Family::Apt), ("yum", Family::Yum)];

fn read_distribution(table: &Table<'_>) -> Option<At<Distribution>> {
    if !table.has("family") {
        table.problem("family is missing: \"apt\" or \"yum\"");
    }
    let family = table.word("family", &FAMILIES);
    let name = table.required("name", name::word);
    let (family, name) = (family?, name?);
    Some(At { value: Distribution { family: family.value, name: name.value }, line: family.line, key: family.key })
}

/// What only one family knows is checked when the chain's family is known, in `merge`.
fn read_repository(table: &Table<'_>) -> Option<At<Repository>> {
    let id = table.required("id", name::word);
    let url = table.required("url", repository_url);
    let suites = values(table.list("suites", name::apt_word));
    let components = values(table.list("components", name::apt_word));
    let keyring = table.parsed("keyring", |text| {
        if text.starts_with('/') { name::state_folder(text) } else { name::relative_path(text) }
    });
    let trust = match table.string_or_table("trust") {
        None => Some(Trust::Signed { gpgkey: None }),
        Some(Ok(text)) if text.value == "pinned" => Some(Trust::Pinned),
        Some(Ok(text)) => {
            table.problem_at(&text, format!("{:?} is neither \"pinned\" nor {{ gpgkey = FILE }}", text.value));
            None
        }
        Some(Err(t)) => t.required("gpgkey", name::relative_path).map(|key| Trust::Signed { gpgkey: Some(key.value) }),
    };
    let preload =
        table.word("preload", &[("none", Preload::None), ("closure", Preload::Closure), ("full", Preload::Full)]);
    let priority = table.number("priority", 1..=PRIORITY_DEFAULT as u64);
    let (id, url, trust) = (id?, url?, trust?);
    let repository = Repository {
        id: id.value,
        url: url.value,
        suites,
        components,
        keyring: keyring.map(|k| k.value),
        trust,
        preload: preload.map(|p| p.value).unwrap_or(Preload::None),
        priority: priority.map(|p| p.value as u32).unwrap_or(PRIORITY_DEFAULT),
        exclude: Vec::new(), // merged from all files
    };
    Some(At { value: repository, line: id.line, key: id.key })
}

/// yum's own default, and its largest.
pub const PRIORITY_DEFAULT: u32 = 99;

fn repository_url(text: &str) -> Result<RepositoryUrl, String> {
    if text == "host" {
        return Ok(RepositoryUrl::Host);
    }
    let rest = ["file://", "http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest.filter(|r| !r.trim_matches('/').is_empty()) else {
        return Err(format!("{text:?} is neither \"host\" nor a file://, http:// or https:// address"));
    };
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{text:?} holds a space or a character that is not ASCII"));
    }
    if rest.split('/').next().is_some_and(|host| host.contains('@')) {
        return Err("an address must not carry a password: addresses are logged".to_string());
    }
    Ok(RepositoryUrl::Url(text.trim_end_matches('/').to_string()))
}

/// Above lie nobody and what systemd hands out.
const UID_MAX: u64 = 65_533;

fn read_users(table: &Table<'_>) -> Vec<(At<String>, u32)> {
    let mut owners: BTreeMap<u64, String> = BTreeMap::new();
    let mut users = Vec::new();
    for (user, uid) in table.named_numbers(1..=UID_MAX) {
        if let Err(message) = name::owner(&user.value) {
            table.problem_at(&user, message);
        }
        if let Some(other) = owners.insert(uid, user.value.clone()) {
            table.problem_at(&user, format!("uid {uid} is already {other}'s"));
        }
        users.push((user, uid as u32));
    }
    users
}

const COMPRESSIONS: [(&str, CompressionKind); 3] =
    [("gzip", CompressionKind::Gzip), ("xz", CompressionKind::Xz), ("zstd", CompressionKind::Zstd)];

fn read_compression(table: &Table<'_>) -> Option<At<Compression>> {
    if !table.has("kind") {
        table.problem("kind is missing: \"gzip\", \"xz\" or \"zstd\"");
    }
    let kind = table.word("kind", &COMPRESSIONS);
    let (range, default) = match kind.as_ref().map(|k| k.value) {
        Some(CompressionKind::Gzip) => (1..=9, 4),
        Some(CompressionKind::Xz) => (0..=9, 6),
        Some(CompressionKind::Zstd) | None => (1..=22, 3),
    };
    let given = table.has("level");
    let level = table.number("level", range);
    if given && level.is_none() {
        return None;
    }
    let level = level.map(|l| l.value as u32).unwrap_or(default);
    kind.map(|at| at.map(|kind| Compression { kind, level }))
}

/// The bare values of a list.
pub(super) fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

#[cfg(test)]
mod tests;
