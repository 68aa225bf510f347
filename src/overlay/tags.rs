//! Where a template's text ends and its tags begin. No parser: what a tag means is minijinja's to say.

/// What a piece of a template is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What is copied as it is.
    Text,
    /// `{{ … }}`.
    Value,
    /// `{% … %}`.
    Block,
    /// `{# … #}`.
    Comment,
}

/// A piece of a template, with its tags' own braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'t> {
    pub kind: Kind,
    /// Where it begins, bytes.
    pub start: usize,
    pub text: &'t str,
}

/// All pieces in order; together they are the template. A tag without an end reaches to the end.
pub fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut put = |kind, start: usize, end: usize| {
        if start < end {
            pieces.push(Piece { kind, start, text: &template[start..end] });
        }
    };
    let mut at = 0;
    while at < template.len() {
        let (start, kind) = next_tag(template, at);
        put(Kind::Text, at, start);
        let end = start + tag_length(&template[start..], kind);
        put(kind, start, end);
        at = end;
        if kind == Kind::Block && word(&template[start..end]) == "raw" {
            at = raw_end(template, end);
            put(Kind::Text, end, at);
        }
    }
    pieces
}

/// The line of a byte offset, from 1.
pub fn line_of(template: &str, offset: usize) -> usize {
    template.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count() + 1
}

fn next_tag(template: &str, from: usize) -> (usize, Kind) {
    let tags = [("{{", Kind::Value), ("{%", Kind::Block), ("{#", Kind::Comment)];
    let found = tags.iter().filter_map(|(open, kind)| Some((from + template[from..].find(open)?, *kind)));
    found.min_by_key(|(at, _)| *at).unwrap_or((template.len(), Kind::Text))
}

/// How long the tag is that begins here. Brackets and quotes inside may hold its end.
fn tag_length(rest: &str, kind: Kind) -> usize {
    let close = match kind {
        Kind::Text => return rest.len(),
        Kind::Comment => return rest.find("#}").map_or(rest.len(), |end| end + 2),
        Kind::Value => b"}}",
        Kind::Block => b"%}",
    };
    let bytes = rest.as_bytes();
    let (mut quote, mut depth, mut at) = (None, 0usize, 2);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(bytes[at]),
            (None, _) if depth == 0 && bytes[at..].starts_with(close) => return at + close.len(),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        at += 1;
    }
    rest.len()
}

/// A block tag's first word.
fn word(tag: &str) -> &str {
    let inside = tag.trim_start_matches("{%").trim_end_matches("%}");
    inside.trim_matches(['-', '+']).split_whitespace().next().unwrap_or_default()
}

/// Where the tag begins that ends a raw block.
fn raw_end(template: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(start) = template[at..].find("{%").map(|p| at + p) {
        let end = start + tag_length(&template[start..], Kind::Block);
        if word(&template[start..end]) == "endraw" {
            return start;
        }
        at = start + 2;
    }
    template.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_from_text() {
        let rows: [(&str, &[&str]); 7] = [
            ("a {{ b }} c", &["Text a ", "Value {{ b }}", "Text  c"]),
            ("{% if x -%}\n{# {{ no #}", &["Block {% if x -%}", "Text \n", "Comment {# {{ no #}"]),
            ("{{ '}}' }}{{ {'a': {}} }}", &["Value {{ '}}' }}", "Value {{ {'a': {}} }}"]),
            ("{ {{- a -}} }", &["Text { ", "Value {{- a -}}", "Text  }"]),
            ("{%- raw -%}{{ x }}{% endraw %}y", &["Block {%- raw -%}", "Text {{ x }}", "Block {% endraw %}", "Text y"]),
            ("{{ 'it\\'s }}' }}é", &["Value {{ 'it\\'s }}' }}", "Text é"]),
            ("{% open", &["Block {% open"]),
        ];
        for (template, want) in rows {
            let found: Vec<String> = pieces(template).iter().map(|p| format!("{:?} {}", p.kind, p.text)).collect();
            assert_eq!(found, want, "{template}");
        }
        assert_eq!([line_of("a\nb", 0), line_of("a\nb", 2), line_of("a\nb", 3)], [1, 2, 2]);
    }

    proptest::proptest! {
        #[test]
        fn the_pieces_are_the_template(text in "[a-z{}%#|. ()'\"\\[\\]\\\\é\n-]{0,80}", any in "(?s).{0,60}") {
            for text in [text, any] {
                let whole: String = pieces(&text).iter().map(|p| p.text).collect();
                proptest::prop_assert_eq!(whole, text);
            }
        }
    }
}
