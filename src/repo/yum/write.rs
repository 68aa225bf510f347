//! Yum metadata as text, from packages' headers: what `createrepo_c` would write, byte for byte
//! where it matters to a reader, with no clock in it. Left out: databases (el7's yum makes its own)
//! and the folding of `libc.so.6` requirements, which only saves bytes.

use crate::repo::rpm::facts::{self, FileKind, Relation};
use crate::repo::rpm::header::{Header, tag};
use crate::repo::rpm::inspect::Head;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// As many changelog entries as createrepo_c keeps.
const CHANGELOG_MAX: usize = 10;

/// A package file's place in the repository.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// Below the repository.
    pub href: &'a str,
    /// sha256 in hex.
    pub sha256: &'a str,
    /// Bytes.
    pub size: u64,
}

/// A package's parts of the three documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub primary: String,
    pub filelists: String,
    pub other: String,
    /// Unix seconds; 0 where the package does not say.
    pub built: u64,
}

/// The three documents: kind, and what stands before all packages of a number, and after them.
pub const DOCUMENTS: [&str; 3] = ["primary", "filelists", "other"];

pub fn opening(document: &str, packages: usize) -> String {
    let (root, names) = match document {
        "primary" => (
            "metadata",
            "xmlns=\"http://linux.duke.edu/metadata/common\" xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\"",
        ),
        "filelists" => ("filelists", "xmlns=\"http://linux.duke.edu/metadata/filelists\""),
        _ => ("otherdata", "xmlns=\"http://linux.duke.edu/metadata/other\""),
    };
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} {names} packages=\"{packages}\">\n")
}

pub fn closing(document: &str) -> &'static str {
    match document {
        "primary" => "</metadata>",
        "filelists" => "</filelists>",
        _ => "</otherdata>",
    }
}

/// What stands of one package in the documents. Its file time is its build time: a copy has another.
pub fn record(head: &Head, placed: Placed) -> Result<Record, String> {
    let (main, nevra) = (&head.main, facts::nevra(&head.main)?);
    let text = |tag| escape(&main.string(tag).unwrap_or_default());
    let built = main.number(tag::BUILD_TIME).unwrap_or(0);
    let (name, arch) = (escape(&nevra.name), escape(&nevra.arch));
    let version = format!(
        "<version epoch=\"{}\" ver=\"{}\" rel=\"{}\"/>",
        nevra.epoch,
        attribute(&nevra.version),
        attribute(&nevra.release)
    );
    let size = main.number(tag::LONG_SIZE).or_else(|| main.number(tag::SIZE)).unwrap_or(0);
    let files = facts::files(main);
    let mut p = format!("<package type=\"rpm\">\n  <name>{name}</name>\n  <arch>{arch}</arch>\n  {version}\n");
    let _ = writeln!(p, "  <checksum type=\"sha256\" pkgid=\"YES\">{}</checksum>", placed.sha256);
    for (name, tag) in
        [("summary", tag::SUMMARY), ("description", tag::DESCRIPTION), ("packager", tag::PACKAGER), ("url", tag::URL)]
    {
        let _ = writeln!(p, "  <{name}>{}</{name}>", text(tag));
    }
    let _ = writeln!(p, "  <time file=\"{built}\" build=\"{built}\"/>");
    let _ = writeln!(p, "  <size package=\"{}\" installed=\"{size}\" archive=\"{}\"/>", placed.size, archive(head));
    let _ = writeln!(p, "  <location href=\"{}\"/>\n  <format>", attribute(placed.href));
    for (name, tag) in [
        ("license", tag::LICENSE),
        ("vendor", tag::VENDOR),
        ("group", tag::GROUP),
        ("buildhost", tag::BUILD_HOST),
        ("sourcerpm", tag::SOURCE_RPM),
    ] {
        let _ = writeln!(p, "    <rpm:{name}>{}</rpm:{name}>", text(tag));
    }
    let _ = writeln!(p, "    <rpm:header-range start=\"{}\" end=\"{}\"/>", head.start, head.end());
    p += &relations(main, &files);
    for (path, kind) in files.iter().filter(|(path, _)| is_primary(path)) {
        let _ = writeln!(p, "    {}", file(path, *kind));
    }
    p += "  </format>\n</package>\n";

    let open = format!(
        "<package pkgid=\"{}\" name=\"{}\" arch=\"{}\">\n  {version}\n",
        placed.sha256,
        attribute(&nevra.name),
        attribute(&nevra.arch)
    );
    let mut filelists = open.clone();
    for (path, kind) in &files {
        let _ = writeln!(filelists, "  {}", file(path, *kind));
    }
    let other = open + &changelog(main) + "</package>\n";
    Ok(Record { primary: p, filelists: filelists + "</package>\n", other, built })
}

/// Bytes of the unpacked payload.
fn archive(head: &Head) -> u64 {
    let (signature, main) = (&head.signature, &head.main);
    let stated = signature.number(tag::signature::LONG_ARCHIVE_SIZE);
    let stated = stated.or_else(|| signature.number(tag::signature::PAYLOAD_SIZE));
    stated.or_else(|| main.number(tag::ARCHIVE_SIZE)).unwrap_or(0)
}

/// The files that dependencies may name without the full list being loaded.
fn is_primary(path: &str) -> bool {
    path.starts_with("/etc/") || path == "/usr/lib/sendmail" || path.contains("bin/")
}

fn file(path: &str, kind: FileKind) -> String {
    let kind = match kind {
        FileKind::File => "",
        FileKind::Folder => " type=\"dir\"",
        FileKind::Ghost => " type=\"ghost\"",
    };
    format!("<file{kind}>{}</file>", escape(path))
}

fn relations(main: &Header, files: &[(String, FileKind)]) -> String {
    let mut all = String::new();
    let own: BTreeSet<&str> = files.iter().map(|(path, _)| path.as_str()).filter(|p| is_primary(p)).collect();
    let mut provided: BTreeSet<String> = BTreeSet::new();
    for (kind, tags) in facts::RELATIONS {
        let mut entries = Vec::new();
        for relation in facts::relations(main, tags) {
            let text = relation_text(&relation, kind == "requires");
            let plain = relation_text(&relation, false);
            if kind == "provides" {
                provided.insert(plain);
            } else if kind == "requires" {
                // What rpm itself provides, and what the package brings along.
                let brought = own.contains(relation.name.as_str()) || provided.contains(&plain);
                if relation.name.starts_with("rpmlib(") || brought || entries.contains(&text) {
                    continue;
                }
            }
            entries.push(text);
        }
        if !entries.is_empty() {
            let _ = writeln!(all, "    <rpm:{kind}>\n{}    </rpm:{kind}>", entries.concat());
        }
    }
    all
}

fn relation_text(relation: &Relation, may_be_pre: bool) -> String {
    const PRE: u32 = 1 << 6 | 1 << 9 | 1 << 10;
    let mut text = format!("      <rpm:entry name=\"{}\"", attribute(&relation.name));
    let sense = match relation.flags & 0xe {
        2 => Some("LT"),
        4 => Some("GT"),
        8 => Some("EQ"),
        10 => Some("LE"),
        12 => Some("GE"),
        _ => None,
    };
    if let Some(sense) = sense {
        let _ = write!(text, " flags=\"{sense}\"");
    }
    if !relation.version.is_empty() {
        let (epoch, rest) = relation.version.split_once(':').unwrap_or(("0", &relation.version));
        let (version, release) = rest.split_once('-').map_or((rest, None), |(v, r)| (v, Some(r)));
        let _ = write!(text, " epoch=\"{}\" ver=\"{}\"", attribute(epoch), attribute(version));
        if let Some(release) = release {
            let _ = write!(text, " rel=\"{}\"", attribute(release));
        }
    }
    if may_be_pre && relation.flags & PRE != 0 {
        text += " pre=\"1\"";
    }
    text + "/>\n"
}

/// The newest entries, oldest first. Yum keeps one entry a second: equal times are pushed apart.
fn changelog(main: &Header) -> String {
    let (names, texts) = (main.strings(tag::CHANGELOG_NAME), main.strings(tag::CHANGELOG_TEXT));
    let times = main.u32s(tag::CHANGELOG_TIME);
    let newest = times.iter().zip(names.iter().zip(&texts)).take(CHANGELOG_MAX);
    let mut entries: Vec<(u64, &String, &String)> = newest.map(|(t, (n, x))| (u64::from(*t), n, x)).collect();
    entries.reverse();
    for i in 1..entries.len() {
        if entries[i].0 <= entries[i - 1].0 && entries[i - 1].0 - entries[i].0 < CHANGELOG_MAX as u64 {
            entries[i].0 = entries[i - 1].0 + 1;
        }
    }
    let one = |(time, name, text): &(u64, &String, &String)| {
        format!("  <changelog author=\"{}\" date=\"{time}\">{}</changelog>\n", attribute(name), escape(text))
    };
    entries.iter().map(one).collect()
}

/// A metadata file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub kind: String,
    /// Below the repository.
    pub href: String,
    pub sha256: String,
    pub size: u64,
    pub open_sha256: String,
    pub open_size: u64,
}

/// `repomd.xml`. `revision` (Unix seconds) is every time in it.
pub fn repomd(revision: u64, files: &[Written]) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<repomd xmlns=\"http://linux.duke.edu/metadata/repo\" \
         xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\">\n  <revision>{revision}</revision>\n"
    );
    for f in files {
        let _ = write!(
            text,
            "  <data type=\"{}\">\n    <checksum type=\"sha256\">{}</checksum>\n    \
             <open-checksum type=\"sha256\">{}</open-checksum>\n    <location href=\"{}\"/>\n    \
             <timestamp>{revision}</timestamp>\n    <size>{}</size>\n    <open-size>{}</open-size>\n  </data>\n",
            f.kind,
            f.sha256,
            f.open_sha256,
            attribute(&f.href),
            f.size,
            f.open_size
        );
    }
    text + "</repomd>\n"
}

/// Text between tags. Control characters that XML cannot carry are left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\r' => out += "&#13;",
            '\n' | '\t' => out.push(c),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

fn attribute(text: &str) -> String {
    escape(text).replace('"', "&quot;").replace('\n', "&#10;").replace('\t', "&#9;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::rpm::inspect::tests::package;
    use crate::repo::rpm::inspect::{Inspector, Want};
    use crate::repo::yum::{filelists::Filelists, primary::Packages, repomd};

    fn head(name: &[u8], text: &[u8]) -> Head {
        let name = [name, b"\0"].concat();
        let bytes = package(
            &[
                (tag::NAME, 6, 1, &name),
                (tag::VERSION, 6, 1, b"1\0"),
                (tag::RELEASE, 6, 1, b"2\0"),
                (tag::ARCH, 6, 1, b"noarch\0"),
                (tag::SOURCE_RPM, 6, 1, b"x.src.rpm\0"),
                (tag::SUMMARY, 6, 1, &[text, b"\0"].concat()),
                (1049, 8, 3, b"rpmlib(X)\0a & b\0/etc/own\0"),
                (1048, 4, 3, &[0, 0, 0, 8, 0, 0, 2, 12, 0, 0, 0, 0]),
                (1050, 8, 3, b"1\x001:2-3\0\0"),
                (tag::DIRNAMES, 8, 1, b"/etc/\0"),
                (tag::DIR_INDEXES, 4, 1, &[0; 4]),
                (tag::BASENAMES, 8, 1, b"own\0"),
            ],
            b"payload",
        );
        let mut inspector = Inspector::new(Want::default());
        inspector.push(&bytes);
        inspector.finish().head.unwrap()
    }

    const SUM: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn what_is_written_is_read_again() {
        let record = record(&head(b"a", b"x < y & z\x01"), Placed { href: "p/a.rpm", sha256: SUM, size: 7 }).unwrap();
        assert!(record.primary.contains("<summary>x &lt; y &amp; z</summary>"), "{}", record.primary);
        let want = "<rpm:requires>\n      <rpm:entry name=\"a &amp; b\" flags=\"GE\" epoch=\"1\" ver=\"2\" rel=\"3\" pre=\"1\"/>\n    </rpm:requires>";
        assert!(record.primary.contains(want), "{}", record.primary);
        let text = |document, middle: &str| format!("{}{middle}{}", opening(document, 1), closing(document));
        let primary = text("primary", &record.primary);
        let package = Packages::new(primary.as_bytes()).unwrap().next_package().unwrap().unwrap().unwrap();
        assert_eq!((package.nevra.to_string().as_str(), package.href.as_str()), ("a-1-2.noarch", "p/a.rpm"));
        let files = text("filelists", &record.filelists);
        let files = Filelists::new(files.as_bytes(), "filelists").unwrap().next_package().unwrap().unwrap();
        assert_eq!((files.id.as_str(), files.paths), (SUM, vec!["/etc/own".to_string()]));
        let written = Written {
            kind: "primary".into(),
            href: "repodata/p".into(),
            sha256: SUM.into(),
            size: 1,
            open_sha256: SUM.into(),
            open_size: 2,
        };
        let found = repomd::parse(super::repomd(9, &[written]).as_bytes()).unwrap();
        assert_eq!((found.revision.as_str(), found.files[0].open_size, found.timestamp()), ("9", Some(2), 9));
    }

    proptest::proptest! {
        #[test]
        fn any_name_and_text_stay_well_formed(name in "[ -~]{1,20}", text in proptest::collection::vec(1u8.., 0..60)) {
            if let Ok(record) = record(&head(name.as_bytes(), &text), Placed { href: &name, sha256: SUM, size: 7 }) {
                let primary = format!("{}{}{}", opening("primary", 1), record.primary, closing("primary"));
                let mut packages = Packages::new(primary.as_bytes()).unwrap();
                packages.next_package().unwrap().unwrap().ok();
                proptest::prop_assert!(packages.next_package().unwrap().is_none());
            }
        }
    }
}
