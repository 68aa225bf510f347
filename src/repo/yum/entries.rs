//! The `<package>` elements of a metadata document, counted; what is in one is its reader's.

use super::xml::{Element, Token, Tokens};
use std::io::BufRead;

/// Packages in one repository. Debian, the largest archive there is, has some 70,000.
pub const PACKAGES_MAX: u64 = 2_000_000;

pub struct Entries<R: BufRead> {
    pub tokens: Tokens<R>,
    /// How many the document says that it has.
    pub stated: Option<u64>,
    pub(super) seen: u64,
}

impl<R: BufRead> Entries<R> {
    /// Of a document whose root element is `root`.
    pub fn new(from: R, root: &str) -> Result<Entries<R>, String> {
        let mut tokens = Tokens::new(from);
        let root = tokens.root(root)?;
        let stated = root.attribute("packages").and_then(|n| n.trim().parse().ok());
        Ok(Entries { tokens, stated, seen: 0 })
    }

    /// The next one, just opened; an error is the document's.
    pub fn next_entry(&mut self) -> Result<Option<Element>, String> {
        loop {
            match self.tokens.next_token()? {
                Token::Open(e) if e.name == "package" => {
                    self.seen += 1;
                    if self.seen > PACKAGES_MAX {
                        return Err(format!("lists more than {PACKAGES_MAX} packages"));
                    }
                    return Ok(Some(e));
                }
                Token::Open(_) => {
                    self.tokens.text()?;
                }
                Token::Text(_) => {}
                Token::Close | Token::End => return Ok(None),
            }
        }
    }
}
