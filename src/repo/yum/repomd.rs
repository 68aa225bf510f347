//! `repomd.xml`: which metadata files a repository has, with their checksums.

use super::xml::{Token, Tokens};
use crate::repo::digest::Checksum;
use crate::repo::href;
use std::io::BufRead;

/// CentOS's have a dozen.
const FILES_MAX: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repomd {
    pub revision: String,
    pub files: Vec<MetadataFile>,
    /// What cannot be used, said by its name.
    pub problems: Vec<String>,
}

/// One `<data>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataFile {
    /// `primary`, `filelists`, `other`, `group`, `primary_db`, …
    pub kind: String,
    /// Below the repository.
    pub href: String,
    pub checksum: Checksum,
    /// Of the unpacked file.
    pub open_checksum: Option<Checksum>,
    /// Bytes; metadata of the el5 era does not say.
    pub size: Option<u64>,
    pub open_size: Option<u64>,
    /// Unix seconds.
    pub timestamp: Option<u64>,
}

impl Repomd {
    /// The only file of a kind.
    pub fn file(&self, kind: &str) -> Option<&MetadataFile> {
        self.files.iter().find(|f| f.kind == kind)
    }

    /// Unix seconds of the newest of its files: the date of the repository.
    pub fn timestamp(&self) -> u64 {
        self.files.iter().filter_map(|f| f.timestamp).max().unwrap_or(0)
    }
}

/// Parses the document. Entries that cannot be used become problems, a broken document an error.
pub fn parse(from: impl BufRead) -> Result<Repomd, String> {
    let mut tokens = Tokens::new(from);
    tokens.root("repomd")?;
    let mut found = Repomd::default();
    loop {
        match tokens.next_token()? {
            Token::Open(e) if e.name == "revision" => found.revision = tokens.text()?.trim().to_string(),
            Token::Open(e) if e.name == "data" => {
                if found.files.len() + found.problems.len() == FILES_MAX {
                    return Err(format!("lists more than {FILES_MAX} files"));
                }
                let kind = e.attribute("type").unwrap_or_default().to_string();
                match data(&mut tokens, kind.clone())? {
                    Ok(file) if found.file(&file.kind).is_some() => found.problems.push(format!("lists {kind} twice")),
                    Ok(file) => found.files.push(file),
                    Err(why) => found.problems.push(format!("{kind}: {why}")),
                }
            }
            Token::Open(_) => {
                tokens.text()?;
            }
            Token::Close => return Ok(found),
            Token::Text(_) => {}
            Token::End => return Err("ends before its end".into()),
        }
    }
}

/// One entry: the outer error is the document's.
fn data(tokens: &mut Tokens<impl BufRead>, kind: String) -> Result<Result<MetadataFile, String>, String> {
    let (mut place, mut checksum, mut open_checksum) = (None, None, None);
    let (mut size, mut open_size, mut timestamp) = (None, None, None);
    loop {
        match tokens.next_token()? {
            Token::Open(e) => {
                let text = tokens.text()?;
                let of_kind = || (e.attribute("type").unwrap_or_default().to_string(), text.clone());
                match e.name.as_str() {
                    "location" if e.attribute("base").is_some() => {
                        place = Some(Err("lies in another repository".into()))
                    }
                    "location" => place = e.attribute("href").map(|h| href::inside(h).map(String::from)),
                    "checksum" => checksum = Some(of_kind()),
                    "open-checksum" => open_checksum = Some(of_kind()),
                    "size" => size = text.trim().parse().ok(),
                    "open-size" => open_size = text.trim().parse().ok(),
                    // createrepo of the el6 era writes fractions of seconds.
                    "timestamp" => timestamp = text.trim().split('.').next().and_then(|t| t.parse().ok()),
                    _ => {}
                }
            }
            Token::Close => break,
            Token::Text(_) => {}
            Token::End => return Err("ends before its end".into()),
        }
    }
    let file = || -> Result<MetadataFile, String> {
        let (sum_kind, sum) = checksum.ok_or("has no checksum")?;
        let open = open_checksum.map(|(kind, sum)| Checksum::parse(&kind, &sum)).transpose()?;
        let href = place.ok_or("has no location")??;
        let checksum = Checksum::parse(&sum_kind, &sum)?;
        Ok(MetadataFile { kind, href, checksum, open_checksum: open, size, open_size, timestamp })
    };
    Ok(file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::digest::Kind;

    fn document(data: &str) -> String {
        format!("<?xml version=\"1.0\"?><repomd xmlns=\"r\"><revision>17</revision>{data}</repomd>")
    }

    fn entry(kind: &str, href: &str, checksum: &str, value: &str) -> String {
        format!(
            "<data type=\"{kind}\"><checksum type=\"{checksum}\">{value}</checksum><location href=\"{href}\"/>\
             <timestamp>12.5</timestamp><size>7</size><open-size>9</open-size></data>"
        )
    }

    #[test]
    fn files_and_problems_are_listed_beside_one_another() {
        let sum = "a".repeat(64);
        let text = document(
            &[
                entry("primary", "repodata/p.xml.gz", "sha256", &sum),
                entry("filelists", "repodata/f.xml.gz", "sha", &"b".repeat(40)),
                entry("other", "../../etc/passwd", "sha256", &sum),
                entry("group", "repodata/g.xml", "md5", &"c".repeat(32)),
                entry("primary", "repodata/again.xml.gz", "sha256", &sum),
                "<data type=\"empty\"/><tags><content>x</content></tags>".into(),
            ]
            .concat(),
        );
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!((found.revision.as_str(), found.files.len(), found.timestamp()), ("17", 2, 12));
        let primary = found.file("primary").unwrap();
        assert_eq!((primary.size, primary.open_size, primary.checksum.kind), (Some(7), Some(9), Kind::Sha256));
        assert_eq!(found.file("filelists").unwrap().checksum.kind, Kind::Sha1);
        let problems = found.problems.join("\n");
        for want in [
            "other: location \"../../etc/passwd\" leaves",
            "group: checksum of kind \"md5\"",
            "lists primary twice",
            "empty: has no checksum",
        ] {
            assert!(problems.contains(want), "{want}: {problems}");
        }
        assert!(parse(document(&"<data/>".repeat(300)).as_bytes()).unwrap_err().contains("more than 256"));
        assert!(parse(&b"<html></html>"[..]).unwrap_err().contains("<repomd> is expected"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(at in 0..300usize, text in ".{0,40}") {
            let mut all = document(&entry("primary", "a/b", "sha256", &"a".repeat(64)));
            let at = (0..=at.min(all.len())).rev().find(|i| all.is_char_boundary(*i)).unwrap_or(0);
            all.insert_str(at, &text);
            let _ = (parse(all.as_bytes()), parse(&all.as_bytes()[..at]));
        }
    }
}
