//! `filelists.xml`: every file of every package, one package after another.

use super::entries::Entries;
use super::xml::{Element, Token};
use std::io::BufRead;

/// Files of one package; the largest known have some 100,000.
const FILES_MAX: usize = 2_000_000;
/// Text of one package's paths.
const PATHS_MAX_BYTES: usize = 512 << 20;

/// One package's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The checksum under which primary.xml has the package.
    pub id: String,
    pub name: String,
    pub arch: String,
    pub paths: Vec<String>,
}

/// A stream of packages with their files.
pub struct Filelists<R: BufRead> {
    entries: Entries<R>,
}

impl<R: BufRead> Filelists<R> {
    /// `root` is `filelists`, or `otherdata` for `other.xml`, whose packages are named alike.
    pub fn new(from: R, root: &str) -> Result<Filelists<R>, String> {
        Ok(Filelists { entries: Entries::new(from, root)? })
    }

    pub fn next_package(&mut self) -> Result<Option<Files>, String> {
        match self.entries.next_entry()? {
            Some(entry) => self.package(&entry).map(Some),
            None => Ok(None),
        }
    }

    fn package(&mut self, element: &Element) -> Result<Files, String> {
        let own = |name: &str| element.attribute(name).unwrap_or_default().to_string();
        let mut files = Files { id: own("pkgid"), name: own("name"), arch: own("arch"), paths: Vec::new() };
        let mut bytes = 0;
        loop {
            match self.entries.tokens.next_token()? {
                Token::Open(e) => {
                    let text = self.entries.tokens.text()?;
                    if e.name == "file" {
                        bytes += text.len();
                        files.paths.push(text);
                    }
                    if files.paths.len() > FILES_MAX || bytes > PATHS_MAX_BYTES {
                        return Err(format!(
                            "package {} has more than {FILES_MAX} files or {PATHS_MAX_BYTES} bytes of paths",
                            files.name
                        ));
                    }
                }
                Token::Close => return Ok(files),
                Token::Text(_) => {}
                Token::End => return Err("ends inside a package".into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "<filelists packages=\"2\"><package pkgid=\"ab\" name=\"a\" arch=\"noarch\"><version ver=\"1\"/>\
        <file>/etc/a&amp;b</file><file type=\"dir\">/etc</file></package><package pkgid=\"cd\" name=\"c\" arch=\"x86_64\"/></filelists>";

    fn all(text: &str) -> Result<Vec<Files>, String> {
        let mut lists = Filelists::new(text.as_bytes(), "filelists")?;
        let mut found = Vec::new();
        while let Some(files) = lists.next_package()? {
            found.push(files);
        }
        Ok(found)
    }

    #[test]
    fn files_are_listed_by_package() {
        let found = all(TEXT).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].id.as_str(), &found[0].paths[..]), ("ab", &["/etc/a&b".to_string(), "/etc".into()][..]));
        assert!(found[1].paths.is_empty());
        assert!(all(&TEXT[..TEXT.len() - 30]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(at in 0..300usize, text in ".{0,40}") {
            let mut whole = TEXT.to_string();
            whole.insert_str(at.min(whole.len()), &text);
            let _ = (all(&whole), all(&whole[..at.min(TEXT.len())]));
        }
    }
}
