//! A stream of XML tokens with bounded memory: no token, no depth and no element's list of
//! attributes grows beyond a limit, whatever a document holds. No document type, hence no entities
//! but XML's own five.

use quick_xml::events::{BytesStart, Event};
use std::io::{BufRead, Read};

/// One tag or one run of text. The longest texts are descriptions and changelog entries.
pub const TOKEN_MAX_BYTES: u64 = 4 << 20;
/// Metadata is five deep.
const DEPTH_MAX: usize = 16;
const ATTRIBUTES_MAX: usize = 64;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Open(Element),
    Close,
    /// Entities resolved.
    Text(String),
    End,
}

/// A start tag. Prefixes are left off: each name has one meaning at its place in this metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
}

impl Element {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Fails when more bytes are asked for than a token may have.
struct Metered<R> {
    inner: R,
    left: u64,
}

impl<R: BufRead> Metered<R> {
    fn refuse<T>() -> std::io::Result<T> {
        Err(std::io::Error::other(format!("a tag or text is longer than {TOKEN_MAX_BYTES} bytes")))
    }
}

impl<R: BufRead> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Metered<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.left == 0 { Self::refuse() } else { self.inner.fill_buf() }
    }

    fn consume(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n as u64);
        self.inner.consume(n);
    }
}

/// Reads tokens.
pub struct Tokens<R: BufRead> {
    reader: quick_xml::Reader<Metered<R>>,
    buffer: Vec<u8>,
    depth: usize,
}

impl<R: BufRead> Tokens<R> {
    pub fn new(inner: R) -> Tokens<R> {
        let mut reader = quick_xml::Reader::from_reader(Metered { inner, left: TOKEN_MAX_BYTES });
        reader.config_mut().expand_empty_elements = true;
        Tokens { reader, buffer: Vec::new(), depth: 0 }
    }

    /// How many elements are open.
    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn next_token(&mut self) -> Result<Token, String> {
        loop {
            self.reader.get_mut().left = TOKEN_MAX_BYTES;
            self.buffer.clear();
            let at = self.reader.buffer_position();
            let wrong = |why: String| format!("{why} (at byte {at})");
            let token = match self.reader.read_event_into(&mut self.buffer).map_err(|e| wrong(e.to_string()))? {
                Event::Start(start) => {
                    self.depth += 1;
                    if self.depth > DEPTH_MAX {
                        return Err(wrong(format!("elements lie more than {DEPTH_MAX} deep")));
                    }
                    Token::Open(element(&start).map_err(wrong)?)
                }
                Event::End(_) => {
                    self.depth = self.depth.saturating_sub(1);
                    Token::Close
                }
                Event::Text(text) => Token::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Token::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(name) => Token::Text(entity(&name).map_err(wrong)?),
                Event::DocType(_) => return Err(wrong("has a document type, which metadata has not".into())),
                Event::Eof if self.depth > 0 => return Err(wrong("ends inside an element".into())),
                Event::Eof => Token::End,
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) | Event::Empty(_) => continue,
            };
            return Ok(token);
        }
    }

    /// The text up to the end of the element that was just opened; elements inside are skipped.
    pub fn text(&mut self) -> Result<String, String> {
        let (depth, mut all) = (self.depth, String::new());
        loop {
            match self.next_token()? {
                Token::Text(text) if self.depth == depth => all += &text,
                Token::Close if self.depth < depth => return Ok(all),
                Token::End => return Err("ends inside an element".into()),
                _ => {}
            }
            if all.len() as u64 > TOKEN_MAX_BYTES {
                return Err(format!("a text is longer than {TOKEN_MAX_BYTES} bytes"));
            }
        }
    }

    /// The root element, which must have this name.
    pub fn root(&mut self, name: &str) -> Result<Element, String> {
        loop {
            match self.next_token()? {
                Token::Open(element) if element.name == name => return Ok(element),
                Token::Open(element) => return Err(format!("is a <{}> where a <{name}> is expected", element.name)),
                Token::Text(text) if text.trim().is_empty() => {}
                _ => return Err(format!("has no <{name}>")),
            }
        }
    }
}

fn element(start: &BytesStart) -> Result<Element, String> {
    let mut attributes = Vec::new();
    // Without quick-xml's own look for duplicates: the first of two wins, as everywhere.
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|e| e.to_string())?;
        if attributes.len() == ATTRIBUTES_MAX {
            return Err(format!("an element has more than {ATTRIBUTES_MAX} attributes"));
        }
        let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).map_err(|e| e.to_string())?;
        attributes.push((local(attribute.key.as_ref()), value.into_owned()));
    }
    Ok(Element { name: local(start.name().as_ref()), attributes })
}

fn local(name: &str) -> String {
    name.rsplit(':').next().unwrap_or_default().to_string()
}

fn entity(name: &quick_xml::events::BytesRef) -> Result<String, String> {
    if let Some(c) = name.resolve_char_ref().map_err(|e| e.to_string())? {
        return Ok(c.to_string());
    }
    let name = name.xml10_content();
    let known = match name.as_ref() {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        _ => return Err(format!("entity &{}; is not one of XML's own", name.chars().take(40).collect::<String>())),
    };
    Ok(known.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Result<Vec<Token>, String> {
        let mut tokens = Tokens::new(text);
        let mut found = Vec::new();
        loop {
            match tokens.next_token()? {
                Token::End => return Ok(found),
                token => found.push(token),
            }
        }
    }

    #[test]
    fn tokens_come_without_prefixes_and_with_entities_resolved() {
        let text = b"<?xml version=\"1.0\"?>\n<a xmlns:r=\"x\"><r:b k=\"&lt;1&#x41;\"/>x&amp;y<![CDATA[<z>]]></a>";
        let mut tokens = Tokens::new(&text[..]);
        tokens.root("a").unwrap();
        let Token::Open(b) = tokens.next_token().unwrap() else { panic!() };
        assert_eq!((b.name.as_str(), b.attribute("k")), ("b", Some("<1A")));
        assert_eq!(tokens.next_token(), Ok(Token::Close));
        let mut tokens = Tokens::new(&text[..]);
        tokens.root("a").unwrap();
        assert_eq!(tokens.text().unwrap(), "x&y<z>");
    }

    #[test]
    fn hostile_documents_are_refused_in_bounded_memory() {
        let long = TOKEN_MAX_BYTES as usize + 10;
        for (label, text, want) in [
            ("entities", b"<!DOCTYPE a [<!ENTITY b \"x\">]><a>&b;</a>".to_vec(), "document type"),
            ("own entity", b"<a>&boom;</a>".to_vec(), "&boom; is not one of XML's own"),
            ("deep", b"<a>".repeat(20), "more than 16 deep"),
            ("long text", [b"<a>".to_vec(), vec![b'x'; long]].concat(), "longer than"),
            ("long tag", [b"<a ".to_vec(), vec![b'x'; long]].concat(), "longer than"),
            ("long comment", [b"<!--".to_vec(), vec![b'x'; long]].concat(), "longer than"),
            ("cut", b"<a><b>".to_vec(), "at byte"),
            ("crossed", b"<a></b>".to_vec(), "at byte"),
            (
                "attributes",
                [b"<a ".to_vec(), b"x=\"1\" ".repeat(70), b"/>".to_vec()].concat(),
                "more than 64 attributes",
            ),
        ] {
            let error = all(&text).unwrap_err();
            assert!(error.contains(want), "{label}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "[<>&;/a-c=\"' !\\[\\]\\-?x#0-9]{0,80}", bytes in proptest::collection::vec(0u8.., 0..80)) {
            let _ = (all(text.as_bytes()), all(&bytes), Tokens::new(&bytes[..]).text());
        }
    }
}
