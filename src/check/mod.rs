//! What can be wrong with a role although its files can be read: looked for in what a node of a
//! sample site would have on its disk. Pure; [`gather`] asks what only tools and package files know.

pub mod gather;
mod ini;
pub mod options;
mod placeholders;
mod ports;
mod scripts;
mod secrets;
pub mod shell;
pub mod site;
pub mod units;

use crate::overlay::{Entry, Kind, TEMPLATE_ENDING, Tree, trace};
use crate::recipe::Recipe;
use crate::recipe::file::Loaded;
use crate::recipe::problem::Problem;
use crate::site::sample::{sample_secrets, sample_view};
use crate::site::view::View;
use std::collections::{BTreeMap, BTreeSet};

/// A role as far as it could be read.
pub struct Role<'a> {
    pub recipe: &'a Recipe,
    /// Its systems by name, with the places of what they say.
    pub systems: &'a BTreeMap<String, Loaded>,
    pub tree: &'a Tree,
    /// Services whose options are known.
    pub services: &'a [options::Service],
}

/// What was found, and what others are still to be asked for.
#[derive(Debug, Default)]
pub struct Found {
    pub problems: Vec<Problem>,
    pub unchecked: Vec<Problem>,
    /// Units that must come from packages.
    pub units: Vec<units::Wanted>,
    /// For shellcheck.
    pub scripts: Vec<shell::Script>,
}

impl Found {
    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

/// A text file as a node has it.
struct Output<'a> {
    /// Absolute, without a template's ending.
    path: String,
    entry: &'a Entry,
    /// Whose overlay brings it; `None`: one that a recipe names.
    system: Option<&'a Loaded>,
    /// The template's text, if it is one.
    template: Option<&'a str>,
    text: String,
    /// For each line of the text (split at `\n`) the source's.
    lines: Vec<usize>,
    /// Lines of the source that have no result, or spoil all of it: they are told already.
    failed: BTreeSet<usize>,
}

impl Output<'_> {
    /// A problem on a line of the text (from 0).
    fn problem(&self, index: usize, key: &str, message: impl Into<String>) -> Problem {
        let line = self.lines.get(index).copied().unwrap_or(0);
        self.problem_at(line, key, message)
    }

    /// A problem on a line of the source (from 1).
    fn problem_at(&self, line: usize, key: &str, message: impl Into<String>) -> Problem {
        Problem { file: self.entry.source.clone(), line, key: key.to_string(), message: message.into() }
    }

    /// Its lines, from 0, without those that failed.
    fn sound_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let sound = |index: &usize| self.lines.get(*index).is_none_or(|line| !self.failed.contains(line));
        self.text.split('\n').enumerate().filter(move |(index, _)| sound(index))
    }

    fn is_script(&self) -> bool {
        self.text.starts_with("#!")
    }
}

/// `*` stands for any text.
fn fits(pattern: &str, path: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == path };
    let Some(mut path) = path.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The first place that fits leaves the most for what follows.
    for part in middle.split('*') {
        let Some(at) = path.find(part) else { return false };
        path = &path[at + part.len()..];
    }
    path.ends_with(tail)
}

/// Everything that can be said without asking anybody.
pub fn check(role: &Role) -> Found {
    let mut found = Found::default();
    let mut view = sample_view(&role.recipe.role);
    view.cluster.release = role.recipe.release.clone();
    let outputs: Vec<Output> =
        role.tree.entries.iter().filter_map(|(path, entry)| output(role, &view, path, entry, &mut found)).collect();
    for output in &outputs {
        let mut of_file = Found::default();
        options::check(role.services, output, &mut of_file);
        placeholders::check(output, &mut of_file);
        of_file.problems.retain(|p| !output.failed.contains(&p.line));
        found.problems.extend(of_file.problems);
        found.unchecked.extend(of_file.unchecked);
        found.scripts.extend(shell::script(output));
    }
    ports::check(&outputs, role.systems, &view, &mut found);
    secrets::check(role, &outputs, &view, &mut found);
    scripts::check(role, &mut found);
    found.units = units::wanted(role);
    found
}

/// What a node has of an entry, if that is text.
fn output<'a>(role: &Role<'a>, view: &View, path: &str, entry: &'a Entry, found: &mut Found) -> Option<Output<'a>> {
    let Kind::File(bytes) = &entry.kind else { return None };
    let source = std::str::from_utf8(bytes);
    let system = role.systems.get(&entry.overlay);
    let mut output = Output {
        path: format!("/{}", path.strip_suffix(TEMPLATE_ENDING).unwrap_or(path)),
        entry,
        system,
        template: None,
        text: String::new(),
        lines: Vec::new(),
        failed: BTreeSet::new(),
    };
    if !path.ends_with(TEMPLATE_ENDING) {
        output.text = source.ok()?.to_string();
        output.lines = (1..=output.text.split('\n').count()).collect();
        return Some(output);
    }
    let Ok(source) = source else {
        found.problem(output.problem_at(0, "", "is not UTF-8"));
        return None;
    };
    output.template = Some(source);
    let (traced, failures) = trace::trace(source, view, &sample_secrets(&secrets::seen_by(&output)));
    for failure in failures {
        output.failed.insert(failure.line);
        found.problem(output.problem_at(failure.line, "template", failure.message));
    }
    if let Some(traced) = traced {
        (output.text, output.lines) = (traced.text, traced.lines);
    }
    Some(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::file::{self, Source};
    use proptest::prelude::*;

    /// A release in memory: path -> text.
    struct Texts(BTreeMap<String, String>);

    impl Source for Texts {
        fn read(&self, path: &str) -> Option<String> {
            self.0.get(path).cloned()
        }
    }

    const ROLE: &str = "role = \"test\"\nsystems = [\"web\"]\n[distribution]\nfamily = \"apt\"\nname = \"d\"\n[[repository]]\n\
                        id = \"d\"\nurl = \"host\"\nsuites = [\"s\"]\ncomponents = [\"m\"]\n";

    fn check_texts(system: &str, file: &str) -> usize {
        let source = Texts(BTreeMap::from([
            ("zed/test.toml".to_string(), ROLE.to_string()),
            ("zed/systems/web.toml".to_string(), format!("name = \"web\"\n{system}")),
        ]));
        let (recipe, _) = file::parse_all(&source, "zed", "test");
        let Some(recipe) = recipe else { return 0 };
        let loaded = file::system(&source, "zed", "web").0;
        let systems: BTreeMap<String, Loaded> = loaded.into_iter().map(|l| (l.system.name.clone(), l)).collect();
        let entry = |path: &str| Entry {
            kind: Kind::File(file.as_bytes().to_vec()),
            mode: 0o644,
            owner: "root".into(),
            group: "root".into(),
            overlay: "web".into(),
            source: path.into(),
        };
        let paths = [
            "etc/web.conf.j2",
            "etc/web.conf",
            "etc/haproxy/x.cfg.j2",
            "usr/lib/x.socket",
            "usr/lib/kiln/systems/web/health",
        ];
        let entries = paths.iter().map(|path| (path.to_string(), entry(path))).collect();
        let (services, _) = options::files("[web]\nfiles = [\"/etc/*.conf\"]\nallow = [\"DEFAULT.a\"]\n", "files.toml");
        let role = Role { recipe: &recipe, systems: &systems, tree: &Tree { entries }, services: &services };
        check(&role).problems.len()
    }

    #[test]
    fn a_small_role_is_checked() {
        assert_eq!(check_texts("", "#!/bin/sh\n"), 6, "five files that cannot be run, and no health");
        assert!(check_texts("ports = [80]\nsecrets = [\"a.b\"]\n", "[x]\na = 1\nlisten = *:80\n") > 5);
    }

    proptest! {
        #[test]
        fn any_template_and_any_system_is_survived(
            file in "(?s).{0,80}",
            near in "([a-z{}%|. ()'\"\\[\\]0-9:*=\n-]{0,12}|bind |secrets|KILN_SECRETS/|listen = |\\{\\{ |\\[DEFAULT\\]\n|#!/bin/sh\n){0,8}",
            system in "((ports|units|secrets|state|after|needs|name|scope) = |\\[\\[step\\]\\]\n|[a-z0-9\"\\[\\],= ]{0,8}\n?){0,8}",
        ) {
            for file in [&file, &near] {
                let _ = (check_texts("", file), check_texts(&system, file));
            }
        }
    }
}
