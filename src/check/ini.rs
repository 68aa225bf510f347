//! The lines of a configuration file as oslo.config reads them.
//!
//! ```text
//! [section]
//! key = value          # or key: value; a comment stands on a line of its own
//!   and more of it     # a line that begins with a space goes on with the value before
//! ```

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'t> {
    Section(&'t str),
    Option {
        key: &'t str,
        value: &'t str,
    },
    /// More of the value before.
    More(&'t str),
    /// What oslo.config refuses to read.
    Wrong,
}

/// Every line that says something, with its index from 0.
pub fn lines(text: &str) -> Vec<(usize, Line<'_>)> {
    let mut found = Vec::new();
    // Whether a value is there to go on with: not after a blank line, a comment or a section.
    let mut open = false;
    for (index, raw) in text.split('\n').enumerate() {
        let line = raw.trim();
        if line.is_empty() {
            open = false;
        } else if raw.starts_with([' ', '\t']) {
            found.push((index, if open { Line::More(line) } else { Line::Wrong }));
        } else if let Some(name) = line.strip_prefix('[') {
            open = false;
            let name = name.strip_suffix(']').filter(|n| !n.is_empty());
            found.push((index, name.map_or(Line::Wrong, Line::Section)));
        } else if line.starts_with(['#', ';']) {
            open = false;
        } else {
            let pair = line.split_once(['=', ':']).map(|(key, value)| (key.trim(), value.trim()));
            open = pair.is_some_and(|(key, _)| !key.is_empty());
            let said = pair.filter(|_| open).map(|(key, value)| Line::Option { key, value });
            found.push((index, said.unwrap_or(Line::Wrong)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_oslo_config_reads_them() {
        let text = "# c\n[DEFAULT]\na = 1\n  2\n\n  lost\nb: x=y\n;c\n  lost\n[s]\nnothing\n[]\n= 3\n [late]\nurl = http://x:1\n";
        let option = |key, value| Line::Option { key, value };
        let want = [
            (1, Line::Section("DEFAULT")),
            (2, option("a", "1")),
            (3, Line::More("2")),
            (5, Line::Wrong),
            (6, option("b", "x=y")),
            (8, Line::Wrong),
            (9, Line::Section("s")),
            (10, Line::Wrong),
            (11, Line::Wrong),
            (12, Line::Wrong),
            (13, Line::Wrong),
            (14, option("url", "http://x:1")),
        ];
        assert_eq!(lines(text), want);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,200}", near in "[a-z\\[\\]= :#;\n\t]{0,60}") {
            let _ = (lines(&text), lines(&near));
        }
    }
}
