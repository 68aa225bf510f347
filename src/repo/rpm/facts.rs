//! What a package says of itself: name, version, files, dependencies.

use super::header::{Header, tag};
use super::inspect::Head;

/// Name, epoch, version, release and architecture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nevra {
    pub name: String,
    pub epoch: u64,
    pub version: String,
    pub release: String,
    /// `src` for a source package, whatever it was built on.
    pub arch: String,
}

impl Nevra {
    /// As a lock and rpm write it: `[epoch:]version-release`.
    pub fn evr(&self) -> String {
        let epoch = if self.epoch == 0 { String::new() } else { format!("{}:", self.epoch) };
        format!("{epoch}{}-{}", self.version, self.release)
    }
}

impl std::fmt::Display for Nevra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}.{}", self.name, self.evr(), self.arch)
    }
}

/// The package's identity by its header.
pub fn nevra(header: &Header) -> Result<Nevra, String> {
    let need = |tag, what: &str| {
        let text = header.string(tag).filter(|t| !t.is_empty() && !t.chars().any(|c| c.is_control() || c == '/'));
        text.ok_or_else(|| format!("has a header without a usable {what}"))
    };
    let source = !header.has(tag::SOURCE_RPM);
    Ok(Nevra {
        name: need(tag::NAME, "name")?,
        epoch: header.number(tag::EPOCH).unwrap_or(0),
        version: need(tag::VERSION, "version")?,
        release: need(tag::RELEASE, "release")?,
        arch: if source { "src".into() } else { need(tag::ARCH, "architecture")? },
    })
}

/// A signature that the package carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub packet: Vec<u8>,
    /// Else the main header alone.
    pub with_payload: bool,
}

/// The OpenPGP signatures of the signature header.
pub fn signatures(head: &Head) -> Vec<Signature> {
    use tag::signature::{DSA_HEADER, GPG, PGP, RSA_HEADER};
    let one = |(tag, with_payload)| {
        let packet = head.signature.bytes(tag)?.to_vec();
        Some(Signature { packet, with_payload })
    };
    [(RSA_HEADER, false), (DSA_HEADER, false), (PGP, true), (GPG, true)].into_iter().filter_map(one).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Folder,
    /// Owned but not shipped.
    Ghost,
}

/// The package's files in the header's order.
pub fn files(header: &Header) -> Vec<(String, FileKind)> {
    const GHOST: u32 = 1 << 6;
    const TYPE_MASK: u16 = 0o170_000;
    const FOLDER: u16 = 0o040_000;
    let (modes, flags) = (header.u16s(tag::FILE_MODES), header.u32s(tag::FILE_FLAGS));
    let folders = header.strings(tag::DIRNAMES);
    let indexes = header.u32s(tag::DIR_INDEXES);
    let old = header.strings(tag::OLD_FILENAMES);
    let split = header.strings(tag::BASENAMES).into_iter().zip(indexes);
    let split = split.filter_map(|(base, i)| Some(format!("{}{base}", folders.get(i as usize)?)));
    let names: Vec<String> = if old.is_empty() { split.collect() } else { old };
    let kind = |i: usize| match (modes.get(i).copied().unwrap_or(0), flags.get(i).copied().unwrap_or(0)) {
        (mode, _) if mode & TYPE_MASK == FOLDER => FileKind::Folder,
        (_, flags) if flags & GHOST != 0 => FileKind::Ghost,
        _ => FileKind::File,
    };
    names.into_iter().enumerate().map(|(i, name)| (name, kind(i))).collect()
}

/// One relation to other packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub name: String,
    /// rpm's sense bits.
    pub flags: u32,
    /// `[epoch:]version[-release]`, or nothing.
    pub version: String,
}

/// Kinds of relations in the order in which yum metadata has them.
pub const RELATIONS: [(&str, [u32; 3]); 8] = [
    ("provides", [1047, 1112, 1113]),
    ("requires", [1049, 1048, 1050]),
    ("conflicts", [1054, 1053, 1055]),
    ("obsoletes", [1090, 1114, 1115]),
    ("suggests", [5049, 5051, 5050]),
    ("enhances", [5055, 5057, 5056]),
    ("recommends", [5046, 5048, 5047]),
    ("supplements", [5052, 5054, 5053]),
];

/// The relations under these three tags: names, flags, versions.
pub fn relations(header: &Header, [names, flags, versions]: [u32; 3]) -> Vec<Relation> {
    let (flags, versions) = (header.u32s(flags), header.strings(versions));
    let names = header.strings(names).into_iter().enumerate();
    let at = |i: usize| (flags.get(i).copied().unwrap_or(0), versions.get(i).cloned().unwrap_or_default());
    names.map(|(i, name)| (name, at(i))).map(|(name, (flags, version))| Relation { name, flags, version }).collect()
}
