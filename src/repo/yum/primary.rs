//! `primary.xml`: the packages of a repository, one after another, never all at once.

use super::entries::Entries;
use super::xml::{Element, Token};
use crate::repo::digest::Checksum;
use crate::repo::href;
use crate::repo::rpm::facts::Nevra;
use std::io::BufRead;

/// Tokens of one package: glibc-debuginfo and kernels have tens of thousands of provides.
const PACKAGE_TOKENS_MAX: u64 = 4_000_000;

/// One package as the index has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub nevra: Nevra,
    pub checksum: Checksum,
    /// Below the repository.
    pub href: String,
    /// Bytes of the file.
    pub size: u64,
}

/// A package, or why this entry (named as far as it names itself) cannot be used.
pub type Entry = Result<Package, String>;

/// A stream of packages.
pub struct Packages<R: BufRead> {
    entries: Entries<R>,
}

impl<R: BufRead> Packages<R> {
    pub fn new(from: R) -> Result<Packages<R>, String> {
        Ok(Packages { entries: Entries::new(from, "metadata")? })
    }

    /// How many packages the document says that it has.
    pub fn stated(&self) -> Option<u64> {
        self.entries.stated
    }

    /// The next package; an error is the document's.
    pub fn next_package(&mut self) -> Result<Option<Entry>, String> {
        match self.entries.next_entry()? {
            Some(_) => self.package().map(Some),
            None => Ok(None),
        }
    }

    fn package(&mut self) -> Result<Entry, String> {
        let depth = self.entries.tokens.depth();
        let mut raw = Raw::default();
        for _ in 0..PACKAGE_TOKENS_MAX {
            match self.entries.tokens.next_token()? {
                Token::Open(e) if self.entries.tokens.depth() == depth + 1 => match e.name.as_str() {
                    "name" => raw.name = self.entries.tokens.text()?,
                    "arch" => raw.arch = self.entries.tokens.text()?,
                    "checksum" => raw.checksum = Some((e, self.entries.tokens.text()?)),
                    "version" => raw.version = Some(e),
                    "location" => raw.location = Some(e),
                    "size" => raw.size = e.attribute("package").and_then(|n| n.trim().parse().ok()),
                    _ => {}
                },
                Token::Close if self.entries.tokens.depth() < depth => return Ok(raw.checked()),
                Token::End => return Err("ends inside a package".into()),
                _ => {}
            }
        }
        Err(format!("package {:?} has more than {PACKAGE_TOKENS_MAX} parts", raw.name))
    }
}

#[derive(Default)]
struct Raw {
    name: String,
    arch: String,
    version: Option<Element>,
    checksum: Option<(Element, String)>,
    location: Option<Element>,
    size: Option<u64>,
}

impl Raw {
    fn checked(self) -> Entry {
        let place = self.location.as_ref().and_then(|l| l.attribute("href")).unwrap_or_default().to_string();
        let shown = if place.is_empty() { self.name.clone() } else { place.clone() };
        self.check(&place).map_err(|why| format!("{}: {why}", shown.chars().take(200).collect::<String>()))
    }

    fn check(self, place: &str) -> Result<Package, String> {
        let location = self.location.ok_or("has no location")?;
        // Another base is another repository, which nobody vouched for.
        if let Some(base) = location.attribute("base") {
            return Err(format!("lies in another repository ({})", base.chars().take(200).collect::<String>()));
        }
        let href = href::inside(place)?.to_string();
        let version = self.version.ok_or("has no version")?;
        let part = |name: &str| version.attribute(name).unwrap_or_default().trim().to_string();
        let epoch = match part("epoch").as_str() {
            "" => 0,
            text => text.parse().map_err(|_| format!("has the epoch {text:?}, which is no number"))?,
        };
        let nevra = Nevra {
            name: self.name.trim().into(),
            epoch,
            version: part("ver"),
            release: part("rel"),
            arch: self.arch.trim().into(),
        };
        if nevra.name.is_empty() || nevra.arch.is_empty() || nevra.version.is_empty() {
            return Err("has no name, version or architecture".into());
        }
        let (kind, sum) = self.checksum.ok_or("has no checksum")?;
        let checksum = Checksum::parse(kind.attribute("type").unwrap_or_default(), &sum)?;
        Ok(Package { nevra, checksum, href, size: self.size.ok_or("has no size")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::yum::entries::PACKAGES_MAX;

    pub fn entry(name: &str, href: &str) -> String {
        format!(
            "<package type=\"rpm\">\n<name>{name}</name><arch>noarch</arch><version epoch=\"1\" ver=\"2\" rel=\"3\"/>\
             <checksum type=\"sha256\" pkgid=\"YES\">{}</checksum><summary>a <b>c</b></summary>\
             <size package=\"12\" installed=\"0\" archive=\"0\"/><location href=\"{href}\"/>\
             <format><rpm:provides><rpm:entry name=\"x\"/></rpm:provides><file>/name</file></format></package>",
            "a".repeat(64)
        )
    }

    fn document(entries: &str) -> String {
        format!("<?xml version=\"1.0\"?>\n<metadata xmlns=\"c\" xmlns:rpm=\"r\" packages=\"2\">{entries}</metadata>")
    }

    fn all(text: &str) -> Result<Vec<Entry>, String> {
        let mut packages = Packages::new(text.as_bytes())?;
        let mut found = Vec::new();
        while let Some(entry) = packages.next_package()? {
            found.push(entry);
        }
        Ok(found)
    }

    #[test]
    fn good_and_bad_entries_are_told_apart() {
        let bad = |from: &str, to: &str| entry("b", "b.rpm").replace(from, to);
        let text = document(
            &[
                entry("a", "Packages/a-2-3.noarch.rpm"),
                bad("href=\"b.rpm\"", "href=\"../b.rpm\""),
                bad("href=\"b.rpm\"", "xml:base=\"http://m.example/\" href=\"b.rpm\""),
                bad("package=\"12\"", ""),
                bad("sha256", "md5"),
                bad("epoch=\"1\"", "epoch=\"x\""),
                bad("<version epoch=\"1\" ver=\"2\" rel=\"3\"/>", ""),
            ]
            .concat(),
        );
        let found = all(&text).unwrap();
        let good = found[0].as_ref().unwrap();
        assert_eq!((good.nevra.to_string().as_str(), good.size), ("a-1:2-3.noarch", 12));
        for (entry, want) in
            found[1..].iter().zip(["leaves", "another repository", "no size", "\"md5\"", "epoch", "no version"])
        {
            let error = entry.as_ref().unwrap_err();
            assert!(error.contains("b.rpm") && error.contains(want), "{want}: {error}");
        }
        assert!(all(&text[..text.len() - 20]).is_err(), "a document cut short");
    }

    /// A document that is never whole in memory.
    struct Endless {
        entry: Vec<u8>,
        at: usize,
        left: u64,
    }

    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.left == 0 {
                return Ok(0);
            }
            let n = buffer.len().min(self.entry.len() - self.at);
            buffer[..n].copy_from_slice(&self.entry[self.at..self.at + n]);
            self.at = (self.at + n) % self.entry.len();
            self.left -= u64::from(self.at == 0);
            Ok(n)
        }
    }

    #[test]
    fn more_packages_than_the_limit_are_refused_without_reading_on() {
        let small = "<package><name>a</name></package>";
        let head = document("").replace("</metadata>", "");
        let endless = Endless { entry: small.repeat(100).into_bytes(), at: 0, left: u64::MAX };
        let from = std::io::Read::chain(head.as_bytes(), endless);
        let mut packages = Packages::new(std::io::BufReader::new(from)).unwrap();
        packages.entries.seen = PACKAGES_MAX - 10;
        let error = loop {
            match packages.next_package() {
                Ok(entry) => assert!(entry.is_some()),
                Err(error) => break error,
            }
        };
        assert!(error.contains("more than 2000000 packages"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(at in 0..700usize, text in ".{0,40}") {
            let mut whole = document(&entry("a", "a.rpm"));
            let at = (0..=at.min(whole.len())).rev().find(|i| whole.is_char_boundary(*i)).unwrap_or(0);
            whole.insert_str(at, &text);
            let _ = (all(&whole), all(&whole[..at]));
        }
    }
}
