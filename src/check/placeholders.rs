//! What somebody meant to fill in and did not.

use super::{Found, Output};

/// Words that mean "later". Split, so that this file is not taken for unfinished itself.
const WORDS: [&str; 5] = [concat!("TO", "DO"), concat!("FIX", "ME"), "CHANGEME", "CHANGE_ME", "REPLACE_ME"];
/// What only a template's source has; `{#` is too common elsewhere.
const TAGS: [&str; 2] = ["{{", "{%"];
/// Around a name in capitals: `{VIP}`, `<VIP>`, and what other tools' templates write.
const FENCES: [(char, char); 4] = [('{', '}'), ('<', '>'), ('%', '%'), ('@', '@')];

/// Results of templates, and configuration that is copied as it is. A script may talk of anything.
pub(super) fn check(output: &Output, found: &mut Found) {
    let copied = output.template.is_none() && (output.is_script() || !output.path.starts_with("/etc/"));
    if copied {
        return;
    }
    for (index, line) in output.sound_lines() {
        if let Some(left) = left(line) {
            found.problem(output.problem(index, left, "is left in the result: a placeholder that nobody filled in"));
        }
    }
}

/// The first placeholder of a line.
fn left(line: &str) -> Option<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let alone = |at: usize, what: &str| !line[..at].ends_with(word) && !line[at + what.len()..].starts_with(word);
    let words = WORDS.iter().filter_map(|w| line.match_indices(w).find(|(at, w)| alone(*at, w)).map(|(_, w)| w));
    let tags = TAGS.iter().filter_map(|t| line.find(t).map(|at| &line[at..at + t.len()]));
    words.chain(tags).next().or_else(|| FENCES.iter().find_map(|(open, close)| fenced(line, *open, *close)))
}

/// `{NAME}` and its like; a shell's `${NAME}` and a server's `%{NAME}` are theirs.
fn fenced(line: &str, open: char, close: char) -> Option<&str> {
    line.match_indices(open).find_map(|(at, _)| {
        let inside = line[at + 1..].split(close).next().filter(|i| at + 1 + i.len() < line.len())?;
        let name = inside.starts_with(|c: char| c.is_ascii_uppercase())
            && inside.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        // A single letter is a date's (`%H%M`), or a mark-up's.
        let long = open == '{' || inside.len() > 1;
        let theirs = line[..at].ends_with(['$', '%', '\\']);
        (name && long && !theirs).then(|| &line[at..at + inside.len() + 2])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_told_from_what_others_mean() {
        for (line, want) in [
            ("host = {VIP}", Some("{VIP}")),
            ("a = {NODE_IP}:5000", Some("{NODE_IP}")),
            (concat!("# TO", "DO: say more"), Some(concat!("TO", "DO"))),
            ("password = CHANGEME", Some("CHANGEME")),
            ("ip = {{ node.address }}", Some("{{")),
            ("{% if x %}", Some("{%")),
            ("CHANGEMES and MY_CHANGEME", None),
            ("a = ${HOME} %{HTTP_HOST}", None),
            ("{ \"A\": 1 } {a} {} {1A}", None),
            ("log-format %{+Q}o {#", None),
            ("{OPEN", None),
            ("user = %SERVICE_USER%", Some("%SERVICE_USER%")),
            ("auth_url = http://<CONTROLLER>:5000", Some("<CONTROLLER>")),
            ("host = @HOST@", Some("@HOST@")),
            ("date +%Y%m%d <a>X</a> <B> a@B@c <IfModule>", None),
        ] {
            assert_eq!(left(line), want, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(line in any_line()) {
            let _ = left(&line);
        }
    }

    fn any_line() -> impl proptest::strategy::Strategy<Value = String> {
        proptest::string::string_regex("[A-Z{}$%é_\" ]{0,40}").expect("a pattern")
    }
}
