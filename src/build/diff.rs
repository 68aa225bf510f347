//! What is different between two images, as values: packages, config, units, files, layers. The
//! layers were listed by [`super::compare`]; nothing is read here.

use crate::image::id::Digest;
use crate::image::manifest::{Config, Descriptor, Image};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What lies at a path of a layer; what a layer removes is there by overlayfs's mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Unix seconds.
    pub mtime: i64,
    /// That is the image's epoch: where it is so in both, it is told once, as a part of the config.
    pub at_epoch: bool,
    /// Names that a file has.
    pub links: u64,
    /// Sorted.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    /// Bytes.
    File(u64),
    Symlink(String),
    Char(u32, u32),
    Block(u32, u32),
    Other,
}

/// Paths below the root, without a leading slash.
pub type Listing = BTreeMap<String, Entry>;

/// A layer with all that is in it.
#[derive(Clone, Debug)]
pub struct Layer {
    pub name: String,
    pub digest: Digest,
    pub files: Rc<Listing>,
}

/// What overlayfs shows: path -> number of the layer that it comes from, what it is.
type Whole<'a> = BTreeMap<&'a str, (usize, &'a Entry)>;

/// Everything that two images differ in; each part sorted. Empty where they agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub packages: Vec<Package>,
    pub config: Vec<Field>,
    pub units: Vec<Unit>,
    pub files: Vec<File>,
    /// Members of the initramfs.
    pub initramfs: Vec<File>,
    pub layers: Vec<Blob>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

/// A package that one has, or both in different versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Package {
    pub name: String,
    pub arch: String,
    pub change: Change,
    /// Version; empty: absent.
    pub from: String,
    pub to: String,
}

/// One thing that is different: `mode`, `0644`, `0600`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    pub what: String,
    pub from: String,
    pub to: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unit {
    pub name: String,
    pub change: Change,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct File {
    /// With a leading slash.
    pub path: String,
    pub change: Change,
    /// The package that owns it, or whose scripts name it.
    pub package: Option<String>,
    /// The layer that it comes from (of the second image where both have it).
    pub layer: String,
    /// A later layer of the image has the path, too: what differs here is not seen on a node.
    pub hidden: bool,
    pub fields: Vec<Field>,
}

impl File {
    /// Differs in nothing but its time.
    pub fn is_time_only(&self) -> bool {
        self.change == Change::Changed && self.fields.iter().all(|f| f.what == "time")
    }
}

/// A blob of the manifest that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blob {
    /// `kernel`, `initramfs`, `layer role`.
    pub name: String,
    pub from: Option<Stored>,
    pub to: Option<Stored>,
    /// Both are there and nothing of what is in them differs: order or packing do.
    pub same_content: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
}

fn field(what: &str, from: impl ToString, to: impl ToString) -> Field {
    Field { what: what.into(), from: from.to_string(), to: to.to_string() }
}

/// Packages by name and architecture.
pub fn packages(a: &Config, b: &Config) -> Vec<Package> {
    fn versions(config: &Config) -> BTreeMap<(&str, &str), Vec<&str>> {
        let mut found: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for line in &config.packages {
            let mut words = line.split(' ');
            let mut next = || words.next().unwrap_or_default();
            let (name, version, arch) = (next(), next(), next());
            found.entry((name, arch)).or_default().push(version);
        }
        found
    }
    let (a, b) = (versions(a), versions(b));
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let of = |side: &BTreeMap<_, Vec<&str>>, key| side.get(key).map(|v| v.join(", ")).unwrap_or_default();
    let differing = keys.into_iter().filter(|key| a.get(key) != b.get(key));
    differing
        .map(|key| {
            let change = change(a.contains_key(key), b.contains_key(key));
            Package { name: key.0.into(), arch: key.1.into(), change, from: of(&a, key), to: of(&b, key) }
        })
        .collect()
}

fn change(in_a: bool, in_b: bool) -> Change {
    match (in_a, in_b) {
        (false, _) => Change::Added,
        (_, false) => Change::Removed,
        _ => Change::Changed,
    }
}

/// Every key of the configs but the packages; of lists only what the other lacks.
pub fn config(a: &Config, b: &Config) -> Vec<Field> {
    let object = |config: &Config| match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Default::default(),
    };
    let (a, b) = (object(a), object(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).filter(|k| *k != "packages").collect();
    let differing = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    differing
        .map(|key| match (a.get(key), b.get(key)) {
            (Some(Value::Array(from)), Some(Value::Array(to))) if is_other_set(from, to) => {
                let only = |of: &[Value], not: &[Value]| words(of.iter().filter(|v| !not.contains(v)));
                field(key, only(from, to), only(to, from))
            }
            (from, to) => field(key, words(from), words(to)),
        })
        .collect()
}

fn is_other_set(a: &[Value], b: &[Value]) -> bool {
    a.iter().any(|v| !b.contains(v)) || b.iter().any(|v| !a.contains(v))
}

fn words<'a>(values: impl IntoIterator<Item = &'a Value>) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => words(list),
        other => other.to_string(),
    };
    values.into_iter().map(word).collect::<Vec<_>>().join(", ")
}

/// Kernel, initramfs and layers that are not the same; layers are paired by their name.
/// `differs` tells whether anything in the blobs of this label was found to differ.
pub fn blobs(a: &Image, b: &Image, differs: &dyn Fn(&str) -> bool) -> Vec<Blob> {
    let labels = |image: &Image| image.manifest.layers.iter().map(Descriptor::label).collect::<Vec<_>>();
    let find = |image: &Image, label: &str| {
        let blob = image.manifest.layers.iter().find(|d| d.label() == label)?;
        Some(Stored { digest: blob.digest, size: blob.size })
    };
    let mut names = labels(a);
    names.extend(labels(b).into_iter().filter(|l| find(a, l).is_none()));
    let pairs = names.into_iter().map(|name| (find(a, &name), find(b, &name), name));
    let differing = pairs.filter(|(from, to, _)| from != to);
    differing
        .map(|(from, to, name)| {
            let same_content = from.is_some() && to.is_some() && name != "kernel" && !differs(&name);
            Blob { name, from, to, same_content }
        })
        .collect()
}

/// What overlayfs shows of layers, the lowest first.
pub fn whole(layers: &[Layer]) -> Whole<'_> {
    let mut whole = Whole::new();
    for (number, layer) in layers.iter().enumerate() {
        // A folder comes before what is in it.
        for (path, entry) in layer.files.iter() {
            if entry.kind != Kind::Dir || is_opaque(entry) {
                let (first, end) = (format!("{path}/"), format!("{path}0"));
                let below: Vec<&str> = whole.range(first.as_str()..end.as_str()).map(|(path, _)| *path).collect();
                for path in below {
                    whole.remove(path);
                }
            }
            if entry.kind == Kind::Char(0, 0) {
                whole.remove(path.as_str());
            } else {
                whole.insert(path, (number, entry));
            }
        }
    }
    whole
}

fn is_opaque(entry: &Entry) -> bool {
    entry.xattrs.iter().any(|(name, value)| name == "trusted.overlay.opaque" && value == b"y")
}

/// Which bytes of a file differ, or `None`: path, number of the layer in the first image and in the second.
pub type Content<'a, E> = dyn FnMut(&str, usize, usize) -> Result<Option<Field>, E> + 'a;

/// The files that differ between two stacks of layers, by path: those that a node would see first,
/// then those that later layers hide. What comes from layers that both have at the same place is
/// neither compared nor read.
pub fn files<E>(a: &[Layer], b: &[Layer], content: &mut Content<E>) -> Result<Vec<File>, E> {
    let shared = |i: usize, j: usize| i == j && a[i].digest == b[j].digest;
    let (seen_a, seen_b) = (whole(a), whole(b));
    let mut found = Vec::new();
    let paths: BTreeSet<&str> = seen_a.keys().chain(seen_b.keys()).copied().collect();
    for path in paths {
        let (from, to) = (seen_a.get(path), seen_b.get(path));
        if !matches!((from, to), (Some((i, _)), Some((j, _))) if shared(*i, *j)) {
            found.extend(file(path, from, to, content)?.map(|file| named(file, from, to, a, b, false)));
        }
    }
    let told: BTreeSet<String> = found.iter().map(|file: &File| file.path[1..].to_string()).collect();
    for (i, (layer_a, layer_b)) in a.iter().zip(b).enumerate() {
        if shared(i, i) || layer_a.name != layer_b.name {
            continue;
        }
        for path in layer_a.files.keys().chain(layer_b.files.keys()).collect::<BTreeSet<_>>() {
            let (from, to) = (layer_a.files.get(path).map(|e| (i, e)), layer_b.files.get(path).map(|e| (i, e)));
            let is_seen = |whole: &Whole, entry: Option<(usize, &Entry)>| {
                entry.is_none_or(|(i, _)| whole.get(path.as_str()).is_some_and(|(j, _)| i == *j))
            };
            if told.contains(path) || (is_seen(&seen_a, from) && is_seen(&seen_b, to)) {
                continue;
            }
            let file = file(path, from.as_ref(), to.as_ref(), content)?;
            found.extend(file.map(|file| named(file, from.as_ref(), to.as_ref(), a, b, true)));
        }
    }
    Ok(found)
}

type At<'a, 'b> = Option<&'b (usize, &'a Entry)>;

fn named(file: File, from: At, to: At, a: &[Layer], b: &[Layer], hidden: bool) -> File {
    let layer = match (from, to) {
        (_, Some((j, _))) => &b[*j],
        (Some((i, _)), None) => &a[*i],
        (None, None) => return file,
    };
    File { layer: layer.name.clone(), hidden, ..file }
}

/// How one path differs.
fn file<E>(path: &str, from: At, to: At, content: &mut Content<E>) -> Result<Option<File>, E> {
    let mut fields = Vec::new();
    match (from, to) {
        (Some((i, a)), Some((j, b))) => {
            fields = attributes(a, b);
            if let (Kind::File(_), Kind::File(_)) = (&a.kind, &b.kind) {
                fields.extend(content(path, *i, *j)?);
            }
            if fields.is_empty() {
                return Ok(None);
            }
        }
        (None, Some((_, entry))) => fields.push(field("is", "", what(entry))),
        (Some((_, entry)), None) => fields.push(field("is", what(entry), "")),
        (None, None) => return Ok(None),
    }
    let change = change(from.is_some(), to.is_some());
    let path = format!("/{path}");
    Ok(Some(File { path, change, package: None, layer: String::new(), hidden: false, fields }))
}

fn attributes(a: &Entry, b: &Entry) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut put = |what: &str, from: String, to: String| {
        if from != to {
            fields.push(field(what, from, to));
        }
    };
    match (&a.kind, &b.kind) {
        (Kind::File(from), Kind::File(to)) => put("size", from.to_string(), to.to_string()),
        (Kind::Symlink(from), Kind::Symlink(to)) => put("target", from.clone(), to.clone()),
        (from, to) => put("is", kind(from), kind(to)),
    }
    let is_link = matches!((&a.kind, &b.kind), (Kind::Symlink(_), Kind::Symlink(_)));
    if !is_link {
        put("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    }
    put("owner", owner(a), owner(b));
    let value = |entry: &Entry, name: &str| entry.xattrs.iter().find(|(n, _)| n == name).map(|(_, v)| shown(v));
    let names: BTreeSet<&String> = a.xattrs.iter().chain(&b.xattrs).map(|(name, _)| name).collect();
    for name in names {
        put(name, value(a, name).unwrap_or_default(), value(b, name).unwrap_or_default());
    }
    if let (Kind::File(_), Kind::File(_)) = (&a.kind, &b.kind) {
        put("links", a.links.to_string(), b.links.to_string());
    }
    if !(a.at_epoch && b.at_epoch) {
        put("time", a.mtime.to_string(), b.mtime.to_string());
    }
    fields
}

fn owner(entry: &Entry) -> String {
    format!("{}:{}", entry.uid, entry.gid)
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Dir => "folder".into(),
        Kind::File(_) => "file".into(),
        Kind::Symlink(target) => format!("link to {target}"),
        Kind::Char(0, 0) => "removal".into(),
        Kind::Char(major, minor) => format!("character device {major}:{minor}"),
        Kind::Block(major, minor) => format!("block device {major}:{minor}"),
        Kind::Other => "pipe or socket".into(),
    }
}

/// What was added or removed.
fn what(entry: &Entry) -> String {
    let size = if let Kind::File(size) = entry.kind { format!(" of {size} B") } else { String::new() };
    format!("{}{size}, {:04o} {}", kind(&entry.kind), entry.mode, owner(entry))
}

/// An attribute's value: text where it is text, else hex.
fn shown(value: &[u8]) -> String {
    let text = std::str::from_utf8(value).ok().map(|t| t.trim_end_matches('\0'));
    match text.filter(|t| !t.is_empty() && t.chars().all(|c| !c.is_control())) {
        Some(text) => text.to_string(),
        None => format!("0x{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// More of a line than this tells nobody more.
const EXCERPT_MAX_CHARS: usize = 80;

/// Where two contents differ first: the line where both are text, else the byte.
pub fn excerpt(a: &[u8], b: &[u8]) -> Option<Field> {
    if a == b {
        return None;
    }
    let at = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (Ok(from), Ok(to)) = (std::str::from_utf8(a), std::str::from_utf8(b)) else { return Some(byte(at as u64)) };
    if from.contains('\0') || to.contains('\0') {
        return Some(byte(at as u64));
    }
    let number = a[..at].iter().filter(|byte| **byte == b'\n').count();
    let line = |text: &str| text.lines().nth(number).unwrap_or_default().to_string();
    let (from, to) = (line(from), line(to));
    // From a few characters before the difference on.
    let same = from.chars().zip(to.chars()).take_while(|(x, y)| x == y).count();
    let skipped = if same > EXCERPT_MAX_CHARS / 2 { same - EXCERPT_MAX_CHARS / 4 } else { 0 };
    let cut = |line: String| line.chars().skip(skipped).take(EXCERPT_MAX_CHARS).collect::<String>();
    Some(field(&format!("line {}", number + 1), cut(from), cut(to)))
}

/// Contents that differ first at this byte.
pub fn byte(at: u64) -> Field {
    field("content", "", format!("from byte {at}"))
}

/// The units that were added, removed, changed, enabled or disabled.
pub fn units(a: &[Layer], b: &[Layer], files: &[File]) -> Vec<Unit> {
    let (a, b) = (unit_states(&whole(a)), unit_states(&whole(b)));
    let mut touched: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for file in files.iter().filter(|f| !f.hidden && !f.is_time_only()) {
        if let Some((name, part)) = unit(file.path.trim_start_matches('/')) {
            let paths = touched.entry(name.to_string()).or_default();
            if part != Part::Enabled {
                paths.push(&file.path);
            }
        }
    }
    let (none, unknown) = (UnitState::default(), Vec::new());
    let names: BTreeSet<&String> = touched.keys().collect();
    let mut found = Vec::new();
    for name in names {
        let (from, to) = (a.get(name).unwrap_or(&none), b.get(name).unwrap_or(&none));
        let mut fields = Vec::new();
        let words = |enabled: &BTreeSet<String>| enabled.iter().cloned().collect::<Vec<_>>().join(", ");
        if from.enabled != to.enabled {
            fields.push(field("wanted by", words(&from.enabled), words(&to.enabled)));
        }
        if from.masked != to.masked {
            fields.push(field("masked", from.masked, to.masked));
        }
        let paths = touched.get(name).unwrap_or(&unknown);
        if from.defined && to.defined && !paths.is_empty() {
            fields.push(field("files", "", paths.join(", ")));
        }
        let change = match (from.defined, to.defined) {
            (false, true) => Change::Added,
            (true, false) => Change::Removed,
            _ => Change::Changed,
        };
        if change != Change::Changed || !fields.is_empty() {
            found.push(Unit { name: name.clone(), change, fields });
        }
    }
    found
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct UnitState {
    defined: bool,
    masked: bool,
    /// By what, such as `multi-user.target`.
    enabled: BTreeSet<String>,
}

fn unit_states(whole: &Whole) -> BTreeMap<String, UnitState> {
    let mut states: BTreeMap<String, UnitState> = BTreeMap::new();
    for (path, (_, entry)) in whole {
        let Some((name, part)) = unit(path) else { continue };
        let state = states.entry(name.to_string()).or_default();
        match part {
            Part::Definition => {
                state.defined = true;
                state.masked |= matches!(&entry.kind, Kind::Symlink(target) if target == "/dev/null");
            }
            Part::DropIn => {}
            Part::Enabled => {
                let folder = path.rsplit('/').nth(1).unwrap_or_default();
                state.enabled.insert(folder.rsplit_once('.').map_or(folder, |(by, _)| by).to_string());
            }
        }
    }
    states
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Definition,
    DropIn,
    Enabled,
}

/// Whose unit a path (without a leading slash) belongs to.
fn unit(path: &str) -> Option<(&str, Part)> {
    const FOLDERS: [&str; 2] = ["usr/lib/systemd/system/", "etc/systemd/system/"];
    const ENDINGS: [&str; 9] =
        [".service", ".socket", ".target", ".timer", ".mount", ".path", ".slice", ".automount", ".swap"];
    let rest = FOLDERS.iter().find_map(|folder| path.strip_prefix(folder))?;
    let is_unit = |name: &str| ENDINGS.iter().any(|ending| name.ends_with(ending));
    match rest.split_once('/') {
        None => is_unit(rest).then_some((rest, Part::Definition)),
        Some((folder, name)) => match folder.rsplit_once('.')? {
            (of, "d") if is_unit(of) => Some((of, Part::DropIn)),
            (_, "wants" | "requires" | "upholds") if is_unit(name) => Some((name, Part::Enabled)),
            _ => None,
        },
    }
}

/// A path of a package's file list as it lies in a tree with a merged /usr, without a leading slash.
pub fn settled(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let merged = ["bin", "sbin", "lib", "lib64"].iter().any(|d| path.split('/').next() == Some(d));
    if merged { format!("usr/{path}") } else { path.to_string() }
}

/// The package whose own note in dpkg's database a path is.
pub fn dpkg_note(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/var/lib/dpkg/info/")?;
    let (stem, _) = name.rsplit_once('.')?;
    Some(stem.split_once(':').map_or(stem, |(name, _)| name))
}

/// Names the packages of files that have none yet. `lists`: package and the paths that it owns, one a
/// line; `scripts`: package and the text of its scripts, for what these make.
pub fn own(files: &mut [File], lists: &[(String, String)], scripts: &[(String, String)]) {
    let mut owners: BTreeMap<String, Option<String>> = BTreeMap::new();
    for file in files.iter().filter(|f| f.package.is_none()) {
        owners.insert(file.path[1..].to_string(), None);
    }
    for (package, paths) in lists {
        for path in paths.lines() {
            if let Some(owner) = owners.get_mut(&settled(path)) {
                owner.get_or_insert_with(|| package.clone());
            }
        }
    }
    for (path, owner) in owners.iter_mut().filter(|(_, owner)| owner.is_none()) {
        let names = |text: &str| text.match_indices(path.as_str()).any(|(at, _)| is_whole(text, at, path.len()));
        let script = scripts.iter().find(|(_, text)| names(text));
        *owner = script.map(|(package, _)| format!("{package} (its scripts)"));
    }
    for file in files.iter_mut().filter(|f| f.package.is_none()) {
        file.package = owners.get(&file.path[1..]).cloned().flatten();
    }
}

/// Whether the path at this place of a script is one of its own: begins with a slash, goes no further.
fn is_whole(text: &str, at: usize, length: usize) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || "/_-.".contains(c);
    text[..at].ends_with('/') && !text[at + length..].starts_with(goes_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn entry(kind: Kind) -> Entry {
        let mode = if kind == Kind::Dir { 0o755 } else { 0o644 };
        Entry { kind, mode, uid: 0, gid: 0, mtime: 1000, at_epoch: false, links: 1, xattrs: Vec::new() }
    }

    fn file(size: u64) -> Entry {
        entry(Kind::File(size))
    }

    fn layer(name: &str, files: &[(&str, Entry)]) -> Layer {
        let files: Listing = files.iter().map(|(path, entry)| (path.to_string(), entry.clone())).collect();
        Layer { name: name.into(), digest: Digest::of(format!("{name}{files:?}").as_bytes()), files: Rc::new(files) }
    }

    /// What differs when contents of equal size are equal; each `path: field from>to`.
    fn told(a: &[Layer], b: &[Layer]) -> Vec<String> {
        let same = |_: &str, _: usize, _: usize| Ok::<_, Infallible>(None);
        files(a, b, &mut { same }).unwrap().iter().map(line).collect()
    }

    fn line(file: &File) -> String {
        let fields: Vec<String> = file.fields.iter().map(|f| format!("{} {}>{}", f.what, f.from, f.to)).collect();
        let hidden = if file.hidden { " hidden" } else { "" };
        format!("{} in {}{hidden}: {}", file.path, file.layer, fields.join("; "))
    }

    fn base() -> Layer {
        let dirs = ["etc", "etc/x"].map(|d| (d, entry(Kind::Dir)));
        layer("base", &[&dirs[..], &[("etc/a", file(1)), ("etc/x/b", file(2)), ("etc/x/c", file(3))]].concat())
    }

    #[test]
    fn overlayfs_hides_and_removes() {
        let mut opaque = entry(Kind::Dir);
        opaque.xattrs.push(("trusted.overlay.opaque".into(), b"y".to_vec()));
        let paths = |upper: &[(&str, Entry)]| {
            whole(&[base(), layer("role", upper)]).into_keys().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(paths(&[("etc/x", entry(Kind::Char(0, 0)))]), ["etc", "etc/a"]);
        assert_eq!(paths(&[("etc/x", opaque), ("etc/x/d", file(1))]), ["etc", "etc/a", "etc/x", "etc/x/d"]);
        assert_eq!(paths(&[("etc/x", file(9))]), ["etc", "etc/a", "etc/x"]);
        assert_eq!(paths(&[("etc/a", entry(Kind::Char(0, 0)))]), ["etc", "etc/x", "etc/x/b", "etc/x/c"]);
    }

    #[test]
    fn each_attribute_is_told() {
        let with = |change: &dyn Fn(&mut Entry)| {
            let mut entry = file(7);
            change(&mut entry);
            [base(), layer("role", &[("etc/f", entry)])]
        };
        let plain = with(&|_| {});
        for (change, want) in [
            (&(|e: &mut Entry| e.mode = 0o4755) as &dyn Fn(&mut Entry), "mode 0644>4755"),
            (&|e| e.gid = 27, "owner 0:0>0:27"),
            (&|e| e.kind = Kind::File(8), "size 7>8"),
            (&|e| e.kind = Kind::Symlink("a".into()), "is file>link to a"),
            (&|e| e.kind = Kind::Block(8, 1), "is file>block device 8:1"),
            (&|e| e.xattrs = vec![("security.capability".into(), vec![1, 0, 2])], "security.capability >0x010002"),
            (&|e| e.xattrs = vec![("user.note".into(), b"x y\0".to_vec())], "user.note >x y"),
            (&|e| e.links = 2, "links 1>2"),
            (&|e| e.mtime = 1001, "time 1000>1001"),
        ] {
            assert_eq!(told(&plain, &with(change)), [format!("/etc/f in role: {want}")]);
        }
        let link = |target: &str| [layer("role", &[("l", entry(Kind::Symlink(target.into())))])];
        assert_eq!(told(&link("a"), &link("b")), ["/l in role: target a>b"]);
        assert_eq!(told(&plain, &[base()]), ["/etc/f in role: is file of 7 B, 0644 0:0>"]);
        assert_eq!(told(&[base()], &plain), ["/etc/f in role: is >file of 7 B, 0644 0:0"]);
        assert_eq!(told(&plain, &plain), Vec::<String>::new());
    }

    #[test]
    fn a_time_that_is_each_images_epoch_is_no_difference_of_the_file() {
        let at = |mtime, at_epoch| [layer("role", &[("f", Entry { mtime, at_epoch, ..file(1) })])];
        assert_eq!(told(&at(1000, true), &at(2000, true)), Vec::<String>::new());
        assert_eq!(told(&at(1000, true), &at(1000, false)), Vec::<String>::new());
        assert_eq!(told(&at(1000, true), &at(2000, false)), ["/f in role: time 1000>2000"]);
    }

    #[test]
    fn only_contents_of_layers_that_differ_are_read() {
        let a = [base(), layer("role", &[("etc/f", file(7)), ("etc/g", file(7))])];
        let b = [base(), layer("role", &[("etc/f", file(7)), ("etc/g", file(7)), ("etc/h", file(7))])];
        let mut read = Vec::new();
        let found = files(&a, &b, &mut |path: &str, i, j| {
            read.push(format!("{path} {i} {j}"));
            Ok::<_, Infallible>((path == "etc/g").then(|| byte(3)))
        });
        assert_eq!(read, ["etc/f 1 1", "etc/g 1 1"]);
        let lines: Vec<String> = found.unwrap().iter().map(line).collect();
        assert_eq!(lines, ["/etc/g in role: content >from byte 3", "/etc/h in role: is >file of 7 B, 0644 0:0"]);
    }

    #[test]
    fn what_a_later_layer_hides_is_told_as_hidden() {
        let stack = |status: u64| {
            let first = layer("base", &[("status", file(status)), ("gone", file(status)), ("seen", file(1))]);
            [first, layer("infra", &[("status", file(9)), ("gone", entry(Kind::Char(0, 0)))])]
        };
        let want = ["/gone in base hidden: size 5>6", "/status in base hidden: size 5>6"];
        assert_eq!(told(&stack(5), &stack(6)), want);
    }

    #[test]
    fn a_file_that_moved_to_another_layer_is_the_same() {
        let role = || layer("role", &[]);
        let a = [layer("base", &[("f", file(1))]), layer("infra", &[("g", file(1))]), role()];
        let b = [layer("base", &[("f", file(1)), ("g", file(1))]), role()];
        assert_eq!(told(&a, &b), Vec::<String>::new());
    }

    #[test]
    fn the_first_difference_is_shown() {
        let show = |a: &[u8], b: &[u8]| excerpt(a, b).map(|f| format!("{}: {:?} {:?}", f.what, f.from, f.to));
        assert_eq!(show(b"same", b"same"), None);
        assert_eq!(show(b"a\nb 1\nc", b"a\nb 2\nc").unwrap(), "line 2: \"b 1\" \"b 2\"");
        assert_eq!(show(b"a\n", b"a\nmore\n").unwrap(), "line 2: \"\" \"more\"");
        assert_eq!(show(b"\x7fELF\xff\x01", b"\x7fELF\xff\x02").unwrap(), "content: \"\" \"from byte 5\"");
        let long = |end: &str| format!("{}{end}", "x".repeat(200)).into_bytes();
        assert!(show(&long("1"), &long("2")).unwrap().ends_with("x1\" \"xxxxxxxxxxxxxxxxxxxx2\""));
    }

    #[test]
    fn units_are_told_by_what_became_of_them() {
        let link = |target: &str| entry(Kind::Symlink(target.into()));
        let a = [layer(
            "role",
            &[
                ("usr/lib/systemd/system/old.service", file(1)),
                ("usr/lib/systemd/system/kept.service", file(1)),
                ("usr/lib/systemd/system/same.service", file(1)),
                ("etc/systemd/system/multi-user.target.wants/kept.service", link("x")),
            ],
        )];
        let b = [layer(
            "role",
            &[
                ("usr/lib/systemd/system/new.timer", file(1)),
                ("usr/lib/systemd/system/kept.service", file(1)),
                ("usr/lib/systemd/system/same.service", file(1)),
                ("etc/systemd/system/same.service", link("/dev/null")),
                ("etc/systemd/system/kept.service.d/more.conf", file(3)),
                ("etc/other", file(3)),
            ],
        )];
        let changed = files(&a, &b, &mut |_: &str, _, _| Ok::<_, Infallible>(None)).unwrap();
        let lines: Vec<String> = units(&a, &b, &changed)
            .iter()
            .map(|u| {
                let fields: Vec<String> = u.fields.iter().map(|f| format!("{} {}>{}", f.what, f.from, f.to)).collect();
                format!("{:?} {}: {}", u.change, u.name, fields.join("; "))
            })
            .collect();
        let want = [
            "Changed kept.service: wanted by multi-user.target>; files >/etc/systemd/system/kept.service.d/more.conf",
            "Added new.timer: ",
            "Removed old.service: ",
            "Changed same.service: masked false>true; files >/etc/systemd/system/same.service",
        ];
        assert_eq!(lines, want);
    }

    #[test]
    fn packages_and_configs_are_told_by_what_is_only_on_one_side() {
        let config = |packages: &[&str], systems: &[&str]| {
            let mut config = crate::image::testing::image("zed", "test", 1).config;
            config.packages = packages.iter().map(|p| p.to_string()).collect();
            config.systems = systems.iter().map(|s| s.to_string()).collect();
            config.memory_min_mib += systems.len() as u64;
            config
        };
        let a = config(&["bash 5 amd64", "gone 1 amd64", "kernel 1 x", "kernel 2 x"], &["environment", "galera"]);
        let b = config(&["bash 6 amd64", "kernel 2 x", "new 1 all"], &["environment"]);
        let told: Vec<String> =
            packages(&a, &b).iter().map(|p| format!("{:?} {} {}>{}", p.change, p.name, p.from, p.to)).collect();
        assert_eq!(told, ["Changed bash 5>6", "Removed gone 1>", "Changed kernel 1, 2>2", "Added new >1"]);
        let told = super::config(&a, &b);
        let keys: Vec<&str> = told.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(keys, ["memory_min_mib", "systems"]);
        assert_eq!((told[1].from.as_str(), told[1].to.as_str()), ("galera", ""));
    }

    #[test]
    fn files_are_named_by_their_package_else_by_whose_scripts_name_them() {
        let changed = ["/usr/bin/a", "/etc/made", "/etc/made-2", "/etc/nobodys"].map(|path| File {
            path: path.into(),
            change: Change::Changed,
            package: None,
            layer: "base".into(),
            hidden: false,
            fields: Vec::new(),
        });
        let pair = |name: &str, text: &str| (name.to_string(), text.to_string());
        let mut files = changed.to_vec();
        let scripts = [pair("far", "echo /etc/made-2"), pair("near", "date > /etc/made\n"), pair("x", "x/usr/bin/a")];
        own(&mut files, &[pair("coreutils", "/.\n/bin/a\n"), pair("zzz", "/usr/bin/a\n")], &scripts);
        let packages: Vec<&str> = files.iter().map(|f| f.package.as_deref().unwrap_or("?")).collect();
        assert_eq!(packages, ["coreutils", "near (its scripts)", "far (its scripts)", "?"]);
    }

    #[test]
    fn paths_of_packages_are_where_they_lie() {
        assert_eq!(settled("/bin/bash"), "usr/bin/bash");
        assert_eq!(settled("/lib64"), "usr/lib64");
        assert_eq!(settled("/etc/lib/x"), "etc/lib/x");
        assert_eq!(dpkg_note("/var/lib/dpkg/info/libc6:amd64.list"), Some("libc6"));
        assert_eq!(dpkg_note("/var/lib/dpkg/status"), None);
    }
}
