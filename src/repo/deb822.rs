//! Paragraphs of `Key: value` lines, as apt's indexes, control files and `.sources` use them.
//!
//! deb822(5). Values are slices of the text, continuation lines included; nothing is copied.

/// One paragraph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stanza<'a> {
    /// The paragraph's own text, without the empty line that ends it.
    pub raw: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Stanza<'a> {
    /// The value of `key` (letter case does not matter), trimmed; continuation lines follow as they stand.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.fields.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| *v)
    }

    /// The words of a value, comment lines left out.
    pub fn words(&self, key: &str) -> Vec<String> {
        let lines = self.get(key).unwrap_or_default().lines().filter(|l| !l.starts_with('#'));
        lines.flat_map(str::split_whitespace).map(String::from).collect()
    }

    fn parse(raw: &'a str) -> Stanza<'a> {
        let mut fields: Vec<(&'a str, &'a str)> = Vec::new();
        let mut from: Option<(&'a str, usize)> = None;
        let mut at = 0;
        for line in raw.split_inclusive('\n') {
            let starts_field = !line.starts_with([' ', '\t', '#']) && line.contains(':');
            if starts_field {
                if let Some((key, start)) = from.take() {
                    fields.push((key, raw[start..at].trim()));
                }
                if let Some((key, _)) = line.split_once(':') {
                    from = Some((key.trim(), at + key.len() + 1));
                }
            }
            at += line.len();
        }
        if let Some((key, start)) = from {
            fields.push((key, raw[start..].trim()));
        }
        Stanza { raw, fields }
    }
}

/// The paragraphs of a text; empty ones and ones made of comments only are left out.
pub fn stanzas(text: &str) -> Vec<Stanza<'_>> {
    let mut found = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            found.push(Stanza::parse(&text[start..at]));
            start = at + line.len();
        }
        at += line.len();
    }
    found.push(Stanza::parse(&text[start..]));
    found.retain(|s| !s.fields.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_read_with_continuations_and_comments() {
        let text =
            "# head\nTypes: deb\n# inside\nURIs: http://a\n http://b\n\n\nName: x\nnonsense\n\n# only a comment\n";
        let found = stanzas(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].get("types"), Some("deb\n# inside"));
        assert_eq!(found[0].words("Types"), ["deb"]);
        assert_eq!(found[0].words("URIs"), ["http://a", "http://b"]);
        assert_eq!(found[1].get("Name"), Some("x\nnonsense"));
        assert_eq!(found[1].get("absent"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,400}") {
            for stanza in stanzas(&text) {
                proptest::prop_assert!(text.contains(stanza.raw));
            }
        }
    }
}
