//! Renders a template and tells for each line of the result which line of the template it comes
//! from. Numbers are put before the text of each line, which no white space control can see, and
//! taken out of the result again. It goes on after values that do not exist, to find all of them.

use super::render::{self, Failure};
use super::tags::{self, Kind, Piece};
use crate::site::view::View;
use std::collections::BTreeMap;

/// After so many of one template the rest is noise.
pub const FAILURES_MAX: usize = 20;

/// Around a line's number. No configuration holds them; where one does, lines are guessed.
const OPEN: char = '\u{2}';
const CLOSE: char = '\u{3}';

/// What a template becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    pub text: String,
    /// For each of its lines (split at `\n`) the template's; 0: not known.
    pub lines: Vec<usize>,
}

/// The result and every failure. Where there are failures, values on their lines are left out of the
/// result; `None`: nothing can be said of the result.
pub fn trace(template: &str, view: &View, secrets: &BTreeMap<String, String>) -> (Option<Traced>, Vec<Failure>) {
    let mut template = template.to_string();
    let mut failures = Vec::new();
    loop {
        let failure = match render::attempt(&template, view, secrets) {
            Ok(text) => {
                let marked = render::attempt(&marked(&template), view, secrets);
                let traced = marked.ok().and_then(|m| unmarked(&m)).filter(|traced| traced.text == text);
                return (Some(traced.unwrap_or_else(|| guessed(&template, text))), failures);
            }
            Err(failure) => failure,
        };
        let less = without_values(&template, failure.line);
        failures.push(failure);
        match less {
            Some(less) if failures.len() < FAILURES_MAX => template = less,
            _ => return (None, failures),
        }
    }
}

/// The template with its lines' numbers.
fn marked(template: &str) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut line = 1;
    for Piece { kind, text, .. } in tags::pieces(template) {
        if kind == Kind::Value && !text.starts_with("{{-") {
            out.push_str(&format!("{OPEN}{line}{CLOSE}"));
        }
        for chunk in text.split_inclusive('\n') {
            let words = chunk.trim_start();
            if kind == Kind::Text && !words.is_empty() {
                out.push_str(&chunk[..chunk.len() - words.len()]);
                out.push_str(&format!("{OPEN}{line}{CLOSE}{words}"));
            } else {
                out.push_str(chunk);
            }
            line += usize::from(chunk.ends_with('\n'));
        }
    }
    out
}

/// The result without the numbers; `None`: something else is marked like them.
fn unmarked(marked: &str) -> Option<Traced> {
    let (mut text, mut lines) = (String::with_capacity(marked.len()), Vec::new());
    let mut last = 0;
    for (i, line) in marked.split('\n').enumerate() {
        if i > 0 {
            text.push('\n');
        }
        let mut parts = line.split(OPEN);
        text.push_str(parts.next().unwrap_or_default());
        let mut first = None;
        for part in parts {
            let (number, words) = part.split_once(CLOSE)?;
            last = number.parse().ok()?;
            first = first.or(Some(last));
            text.push_str(words);
        }
        lines.push(first.unwrap_or(last));
    }
    Some(Traced { text, lines })
}

/// Lines by their looks: the template's first one that begins with the same word.
fn guessed(template: &str, text: String) -> Traced {
    let word = |line: &str| line.trim_start().split([' ', '=', ':']).next().unwrap_or_default().to_string();
    let words: Vec<String> = template.lines().map(word).collect();
    let find = |line: &str| {
        let wanted = word(line);
        if wanted.is_empty() { 0 } else { words.iter().position(|w| *w == wanted).map_or(0, |at| at + 1) }
    };
    let lines = text.split('\n').map(find).collect();
    Traced { text, lines }
}

/// The template without the values on this line; `None`: it has none.
fn without_values(template: &str, line: usize) -> Option<String> {
    let (mut out, mut found, mut at) = (String::with_capacity(template.len()), false, 1);
    for piece in tags::pieces(template) {
        let newlines = piece.text.matches('\n').count();
        if piece.kind == Kind::Value && (at..=at + newlines).contains(&line) {
            found = true;
            out.push_str(&"\n".repeat(newlines));
        } else {
            out.push_str(piece.text);
        }
        at += newlines;
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::sample::sample_view;

    fn check(template: &str) -> (Option<Traced>, Vec<Failure>) {
        trace(template, &sample_view("infra"), &BTreeMap::new())
    }

    #[test]
    fn each_line_knows_where_it_comes_from() {
        for (label, template, want) in [
            ("plain", "a\n\nb\n", "1 a|1 |3 b|3 "),
            (
                "a loop",
                "x\n{% for m in members.infra -%}\nm = {{ m.name }}\n{% endfor -%}\ny\n",
                "1 x|3 m = infra1|3 m = infra2|3 m = infra3|5 y|5 ",
            ),
            ("joined lines", "a =\n{%- for m in members.infra %} {{ m.index }}{% endfor %}\nb\n", "1 a = 1 2 3|3 b|3 "),
            ("a branch left out", "{% if not cluster.vip %}\na\n{% endif %}\nb = {{ 1 }}", "0 |4 b = 1"),
            ("a value alone", "a\n{{ node.name }}\n", "1 a|2 infra1|2 "),
            ("raw", "{% raw %}{{ x }}{% endraw %}\nb", "1 {{ x }}|2 b"),
            ("guessed", "{% set a %}x{% endset %}{% if a == 'x' %}\nb = 1\n{% endif %}", "0 |2 b = 1|0 "),
        ] {
            let (traced, failures) = check(template);
            let traced = traced.unwrap_or_else(|| panic!("{label}: {failures:?}"));
            let shown: Vec<String> =
                traced.text.split('\n').zip(&traced.lines).map(|(text, line)| format!("{line} {text}")).collect();
            assert_eq!(shown.join("|"), want, "{label}");
            assert_eq!(traced.text, render::attempt(template, &sample_view("infra"), &BTreeMap::new()).unwrap());
        }
    }

    #[test]
    fn every_value_that_does_not_exist_is_found() {
        let (traced, failures) = check("{{ node.a }}\nb = {{ node.name }}\n{{\n node.c }}{{ node.d }}\n");
        assert_eq!(failures.iter().map(|f| f.line).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(traced.unwrap().text, "\nb = infra1\n\n\n");
        let (traced, failures) = check("{{ node.a }}\n{% if node.b.c %}{% endif %}");
        assert_eq!((traced, failures.iter().map(|f| f.line).collect::<Vec<_>>()), (None, vec![1, 2]));
        assert_eq!(check(&"{{ node.a }}\n".repeat(99)).1.len(), FAILURES_MAX);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "[a-z{}%#|. ()'\"\\[\\]\u{2}\u{3}0-9\n-]{0,80}", any in "(?s).{0,60}") {
            for text in [text, any] {
                let (traced, failures) = check(&text);
                if let Some(traced) = traced {
                    proptest::prop_assert_eq!(traced.text.split('\n').count(), traced.lines.len());
                    let last = text.matches('\n').count() + 1;
                    proptest::prop_assert!(failures.len() <= FAILURES_MAX && traced.lines.iter().all(|l| *l <= last));
                }
            }
        }
    }
}
