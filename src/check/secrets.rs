//! Who reads which secret. A node gets what its role's systems name; a system's templates and
//! scripts see what that system names. Certificates lie beside secrets, for scripts.

use super::{Found, Output, Role, fits};
use crate::overlay::render;
use crate::overlay::tags::{self, Kind};
use crate::recipe::file::Loaded;
use crate::recipe::problem::Problem;
use crate::recipe::reader::At;
use crate::site::sample::sample_secrets;
use crate::site::view::View;
use std::collections::BTreeSet;

/// Of a name with more parts that are made as it runs nothing is known.
const STARS_MAX: usize = 4;

/// One place that reads a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    /// `*` stands for what is only known when it runs.
    name: String,
    /// Of the source, from 1.
    line: usize,
}

impl Read {
    /// Whether that secret may be meant, alone or among others.
    fn means(&self, secret: &str) -> bool {
        let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        fits(&self.name, secret) || below(&self.name, secret) || below(secret, &self.name)
    }

    /// Nothing is known of the name.
    fn is_any(&self) -> bool {
        self.name.chars().all(|c| c == '*')
    }
}

/// What the template of `output` gets in a sample: also what it must not read, which is told apart.
pub(super) fn seen_by(output: &Output) -> Vec<String> {
    let read = output.template.map(of_template).unwrap_or_default();
    let read = read.into_iter().map(|r| r.name).filter(|n| !n.contains('*'));
    declared(output.system).map(|s| s.value.clone()).chain(read).collect()
}

fn declared(system: Option<&Loaded>) -> impl Iterator<Item = &At<String>> {
    system.into_iter().flat_map(|s| &s.places.secrets)
}

pub(super) fn check(role: &Role, outputs: &[Output], view: &View, found: &mut Found) {
    let users: Vec<(&Loaded, Vec<&Output>)> = role.systems.values().map(|l| (l, used_by(l, outputs))).collect();
    for output in outputs {
        undeclared(output, &users, found);
        open_to_all(output, found);
    }
    for (loaded, files) in &users {
        let certificates = loaded.places.certificates.iter().map(|c| c.clone().map(|name| file_of(&name)));
        for secret in loaded.places.secrets.iter().cloned().chain(certificates) {
            if let Some(message) = unread(role, files, &secret, view) {
                let (file, line, key) = (loaded.file.clone(), secret.line, secret.key.clone());
                found.problem(Problem { file, line, key, message });
            }
        }
    }
}

/// A certificate's name among the secrets.
fn file_of(certificate: &str) -> String {
    format!("{certificate}.pem")
}

/// The files of a system's overlay, and scripts of overlays without a system whose path one of them
/// names: they run with the secrets of who calls them.
fn used_by<'o>(loaded: &Loaded, outputs: &'o [Output<'o>]) -> Vec<&'o Output<'o>> {
    let (mut used, mut shared): (Vec<&Output>, Vec<&Output>) = (Vec::new(), Vec::new());
    for output in outputs {
        if output.entry.overlay == loaded.system.name {
            used.push(output);
        } else if output.system.is_none() && output.template.is_none() {
            shared.push(output);
        }
    }
    let mut at = 0;
    while let Some(caller) = used.get(at) {
        let (called, rest) = shared.into_iter().partition(|s| caller.text.contains(&s.path));
        used.extend::<Vec<&Output>>(called);
        shared = rest;
        at += 1;
    }
    used
}

/// A secret that the system does not name: either it never comes, or another role gets it.
fn undeclared(output: &Output, users: &[(&Loaded, Vec<&Output>)], found: &mut Found) {
    let uses = |files: &[&Output]| files.iter().any(|f| std::ptr::eq(*f, output));
    let own: Vec<&Loaded> = users.iter().filter(|(_, files)| uses(files)).map(|(loaded, _)| *loaded).collect();
    for read in reads(output).into_iter().filter(|r| !r.is_any()) {
        let certified = |l: &&Loaded| l.system.certificates.iter().any(|c| read.means(&file_of(c)));
        if own.iter().any(|l| l.system.secrets.iter().any(|s| read.means(s)) || certified(l)) {
            continue;
        }
        let names = |loaded: &[&Loaded]| {
            let names: Vec<&str> = loaded.iter().map(|l| l.system.name.as_str()).collect();
            names.join(" and ")
        };
        let others: Vec<&Loaded> =
            users.iter().map(|(l, _)| *l).filter(|l| l.system.secrets.iter().any(|s| read.means(s))).collect();
        let message = match (own.as_slice(), others.as_slice()) {
            ([], _) if output.template.is_none() => continue, // nobody calls it
            ([], _) => "an overlay that belongs to no system gets no secrets: give the file to a system".to_string(),
            (own, []) => format!("{} does not name it in its secrets", names(own)),
            (own, others) => {
                let (own, others) = (names(own), names(others));
                format!("{own} does not name it in its secrets; {others} does, and only its files see it")
            }
        };
        found.problem(output.problem_at(read.line, &read.name, message));
    }
}

/// A secret in a file that every account of the node can read.
fn open_to_all(output: &Output, found: &mut Found) {
    let mode = output.entry.mode;
    if output.template.is_none() || mode & 0o004 == 0 {
        return;
    }
    for (name, value) in sample_secrets(&seen_by(output)) {
        if let Some(index) = output.text.split('\n').position(|line| line.contains(&value)) {
            let message = format!("the result can be read by everybody (mode {mode:04o}): close it in overlay.toml");
            found.problem(output.problem(index, &name, message));
        }
    }
}

/// Why nobody of this role needs a secret that a system names.
fn unread(role: &Role, own: &[&Output], secret: &At<String>, view: &View) -> Option<String> {
    let name = &secret.value;
    let scripts = own.iter().filter(|o| o.is_script());
    let lines = scripts.flat_map(|o| o.text.lines()).filter(|line| !line.trim_start().starts_with('#'));
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let words: BTreeSet<&str> = lines.flat_map(|l| l.split(|c| !part(c))).filter(|w| !w.is_empty()).collect();
    let may_be = |output: &Output, read: &Read| {
        read.means(name)
            && (!output.is_script() || read.is_any() || !read.name.contains('*') || spells(&read.name, name, &words))
    };
    let readers: Vec<&&Output> = own.iter().filter(|o| reads(o).iter().any(|r| may_be(o, r))).collect();
    if readers.is_empty() {
        return Some(format!("{name:?} is read by no template and no script of the system"));
    }
    let used = readers.iter().any(|output| {
        let Some(template) = output.template else { return true };
        let seen = seen_by(output);
        let others = sample_secrets(seen.iter().filter(|s| *s != name));
        // With failures the text is not the template's own: nothing can be said.
        !output.failed.is_empty() || render::attempt(template, view, &others).as_ref() != Ok(&output.text)
    });
    let role = &role.recipe.role;
    (!used).then(|| {
        format!("role {role} gets {name:?}, but no template and no script reads it there: it is another role's")
    })
}

/// Whether a name that is made as a script runs may become that secret's: what a `*` stands for is
/// a word that the scripts say, else `$user.password` would be every password there is.
fn spells(name: &str, secret: &str, words: &BTreeSet<&str>) -> bool {
    if name.matches('*').count() > STARS_MAX {
        return true;
    }
    let Some((head, rest)) = name.split_once('*') else { return name == secret };
    let Some(left) = secret.strip_prefix(head) else { return false };
    let after = |word: &&str| left.strip_prefix(word).is_some_and(|left| spells(rest, left, words));
    spells(rest, left, words) || words.iter().any(after)
}

fn reads(output: &Output) -> Vec<Read> {
    match output.template {
        Some(template) => {
            let mut all = of_template(template);
            all.extend(of_script(template));
            all
        }
        None => of_script(&output.text),
    }
}

/// `secrets.a.b`, `secrets["a.b"]`.
fn of_template(template: &str) -> Vec<Read> {
    let mut found = Vec::new();
    for piece in tags::pieces(template).into_iter().filter(|p| matches!(p.kind, Kind::Value | Kind::Block)) {
        for (at, word) in piece.text.match_indices("secrets") {
            let inside = |c: char| c.is_alphanumeric() || "_.\"'".contains(c);
            let rest = &piece.text[at + word.len()..];
            let more = |c: char| c.is_alphanumeric() || c == '_';
            if !piece.text[..at].ends_with(inside) && !rest.starts_with(more) {
                let line = tags::line_of(template, piece.start + at);
                found.push(Read { name: path(rest), line });
            }
        }
    }
    found
}

/// The names that follow, joined: `.a["b.c"]` is `a.b.c`, `.a[x]` is `a.*`.
fn path(mut rest: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    loop {
        if rest.starts_with('[') && !rest[1..].trim_start().starts_with(['"', '\'']) {
            names.push("*");
            break;
        }
        let (name, after) = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        } else if let Some(after) = rest.strip_prefix('[') {
            let after = after.trim_start();
            let Some(quote) = after.chars().next().filter(|c| matches!(c, '"' | '\'')) else { break };
            let Some((name, after)) = after[1..].split_once(quote) else { break };
            let Some(after) = after.trim_start().strip_prefix(']') else { break };
            (name, after)
        } else {
            break;
        };
        names.push(name);
        rest = after;
    }
    if names.is_empty() { "*".to_string() } else { names.join(".") }
}

/// `$KILN_SECRETS/a.b`, `"$KILN_SECRETS"/a.b`, `${KILN_SECRETS}/a.$x`.
fn of_script(text: &str) -> Vec<Read> {
    let mut found = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        for (at, variable) in line.match_indices("KILN_SECRETS") {
            let rest = line[at + variable.len()..].trim_start_matches(['}', '"', '\'']);
            let name = rest.strip_prefix('/').map(shell_word).filter(|n| !n.is_empty());
            found.push(Read { name: name.unwrap_or_else(|| "*".to_string()), line: index + 1 });
        }
    }
    found
}

/// A file's name in a shell script; what the shell puts in is `*`.
fn shell_word(text: &str) -> String {
    let mut name = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let after = &rest[c.len_utf8()..];
        match c {
            '$' => {
                name.push('*');
                rest = match after.strip_prefix('{') {
                    Some(inside) => inside.split_once('}').map_or("", |(_, after)| after),
                    None => after.trim_start_matches(plain),
                };
                continue;
            }
            '*' | '?' => name.push('*'),
            c if plain(c) || c == '.' || c == '-' => name.push(c),
            _ => break,
        }
        rest = after;
    }
    name.trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(reads: Vec<Read>) -> String {
        reads.iter().map(|r| format!("{}:{} ", r.line, r.name)).collect::<String>().trim_end().to_string()
    }

    #[test]
    fn templates_tell_what_they_read() {
        for (template, want) in [
            ("{{ secrets.galera.sst }}\n{{ secrets['a.b'] | upper }}", "1:galera.sst 2:a.b"),
            ("{% if\n secrets[\"a\"][ 'b' ] %}", "2:a.b"),
            ("secrets.no {# {{ secrets.no }} #}{{ my.secrets.no }}{{ secretsx }}{{ 'secrets.no' }}", ""),
            ("{{ secrets[name] }}{{ secrets }}{{ secrets.a[b] }}", "1:* 1:* 1:a.*"),
        ] {
            assert_eq!(shown(of_template(template)), want, "{template}");
        }
    }

    #[test]
    fn scripts_tell_what_they_read() {
        let text = "cat \"$KILN_SECRETS/a.b\"\n# $KILN_SECRETS/no\nx=${KILN_SECRETS}/c \"$KILN_SECRETS\"/d.\nls $KILN_SECRETS\n\
                    cat $KILN_SECRETS/k.$x${y:-0} <$KILN_SECRETS/$user.password";
        assert_eq!(shown(of_script(text)), "1:a.b 3:c 3:d 4:* 5:k.** 5:*.password");
    }

    #[test]
    fn a_name_means_a_secret_or_all_below_it() {
        let means = |name: &str, secret: &str| Read { name: name.into(), line: 1 }.means(secret);
        for (name, secret, want) in [
            ("a.b", "a.b", true),
            ("a.b.c", "a.b", true),
            ("a", "a.b", true),
            ("a", "ab.c", false),
            ("*.password", "nova.password", true),
            ("k.**", "k.fernet0", true),
            ("k.*", "l.x", false),
        ] {
            assert_eq!(means(name, secret), want, "{name} {secret}");
        }
    }

    #[test]
    fn a_name_that_is_made_as_it_runs_is_made_of_words_that_are_there() {
        let words = BTreeSet::from(["neutron", "fernet", "credential", "0", "1"]);
        for (name, secret, want) in [
            ("*.password", "neutron.password", true),
            ("*.password", "database.password", false),
            ("keystone.**", "keystone.fernet0", true),
            ("keystone.**", "keystone.fernet2", false),
            ("keystone.*", "keystone.fernet0", false),
            ("a.*****", "a.b", true),
            ("plain", "plain", true),
        ] {
            assert_eq!(spells(name, secret, &words), want, "{name} {secret}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,80}", near in "[{}%s.\\[\\]'\"é ]{0,10}secrets[{}%s.\\[\\]'\"é ]{0,20}") {
            for text in [&text, &near, &format!("{{{{{near}}}}}"), &near.replace("secrets", "KILN_SECRETS")] {
                let _ = (of_template(text), of_script(text));
            }
        }
    }
}
