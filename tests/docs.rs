//! `docs/systems/NAME.md`: one page a system, and `docs/topology.md`. What a system's file says stands in
//! them between two marks and is made here; the rest is written by hand. After a change of a system:
//! `KILN_WRITE_DOCS=1 cargo test --test docs`.

use kiln::cli::recipes::Folder;
use kiln::overlay;
use kiln::recipe::file;
use kiln::recipe::system::{Dark, FormationKind, Keeps, Scope, Step, System};
use kiln::site::sample::{sample_secrets, sample_view};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const WRITE: &str = "KILN_WRITE_DOCS";
const FIRST: &str = "<!-- made from recipes/*/systems by tests/docs.rs -->";
const LAST: &str = "<!-- end -->";
/// What somebody must have written himself.
const HEADINGS: [&str; 3] = ["## Seed, join, rejoin", "## Health", "## What breaks"];
/// A page that is longer is not read.
const LINES_MAX: usize = 60;

/// A system in one release.
struct Described {
    /// What the file's first lines say of it.
    about: String,
    system: System,
    /// Ports that the balancer binds for it at the VIP.
    at_vip: BTreeSet<u16>,
}

/// System -> release -> what it is there; zed first.
type Systems = BTreeMap<String, Vec<(&'static str, Described)>>;

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn systems() -> Systems {
    let mut systems = Systems::new();
    for release in ["zed", "mitaka"] {
        for entry in std::fs::read_dir(top().join(format!("recipes/{release}/systems"))).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            let (loaded, problems) = file::system(&Folder(vec![top().join("recipes")]), release, &name);
            assert!(problems.is_empty(), "{problems:?}");
            let text = std::fs::read_to_string(&path).unwrap();
            let about: Vec<&str> = text.lines().map_while(|l| l.strip_prefix('#')).map(str::trim).collect();
            let described =
                Described { about: about.join(" "), system: loaded.unwrap().system, at_vip: at_vip(release, &name) };
            systems.entry(name).or_default().push((release, described));
        }
    }
    systems
}

/// The ports of the VIP in the balancer's files of a system's overlay.
fn at_vip(release: &str, name: &str) -> BTreeSet<u16> {
    let (tree, _) = overlay::load::load_all(&[top().join("overlays")], release, &[name.to_string()]).unwrap();
    let mut view = sample_view("controller");
    view.cluster.release = release.to_string();
    let vip = format!("bind {}:", view.cluster.vip.unwrap());
    let mut ports = BTreeSet::new();
    for (path, _, text) in tree.templates().filter(|(path, ..)| path.starts_with("/etc/haproxy/")) {
        let secrets = sample_secrets([&"haproxy.stats".to_string()]);
        let text = overlay::render::render(&path, std::str::from_utf8(text).unwrap(), &view, &secrets).unwrap();
        ports.extend(
            text.lines()
                .filter_map(|line| line.trim().strip_prefix(&vip)?.split_whitespace().next()?.parse::<u16>().ok()),
        );
    }
    ports
}

fn code<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| format!("`{i}`")).collect::<Vec<_>>().join(", ")
}

fn numbers<'a>(items: impl IntoIterator<Item = &'a u16>) -> String {
    items.into_iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

fn forms(system: &System) -> String {
    let dark = |dark: &Dark| match dark {
        Dark::Rank => "after a dark time the furthest data come back",
        Dark::Reset => "after a dark time one begins anew",
    };
    match &system.formation {
        None => String::new(),
        Some(f) if f.kind == FormationKind::Static => "static: the site names the members".to_string(),
        Some(f) => format!("seeded: one makes it, the others join; {}", f.dark.as_ref().map(dark).unwrap_or_default()),
    }
}

fn keeps(system: &System) -> String {
    match system.keeps {
        None => String::new(),
        Some(Keeps::Copy) => "a whole copy on each node".to_string(),
        Some(Keeps::Sole) => "what lies nowhere else".to_string(),
    }
}

fn step(step: &Step) -> String {
    let when = match step.scope {
        Scope::Node => "each boot",
        Scope::Cluster => "once",
        Scope::Peer => "on a member, before a blank node joins",
        Scope::Removed => "on a member, after a node was removed",
    };
    let needs = match step.needs.is_empty() {
        true => String::new(),
        false => format!(", when {} is healthy", code(&step.needs)),
    };
    let writes = step.writes.as_ref().map(|w| format!("; the result is `{w}`'s")).unwrap_or_default();
    format!("`{}`: {when}{needs}{writes}", step.name)
}

/// One row a key that any release has, one column a release.
fn block(releases: &[(&str, Described)]) -> String {
    let same = releases.iter().all(|(_, d)| d.about == releases[0].1.about);
    let about = |(release, d): &(&str, Described)| format!("**{release}**: {}\n\n", d.about);
    let mut text = match same {
        true => format!("{}\n\n", releases[0].1.about),
        false => releases.iter().map(about).collect(),
    };
    text += "|";
    text.extend(releases.iter().map(|(release, _)| format!(" | {release}")));
    text += &format!(" |\n|---|{}\n", "---|".repeat(releases.len()));
    type Cell = fn(&Described) -> String;
    let rows: [(&str, Cell); 11] = [
        ("after", |d| code(&d.system.after)),
        ("packages", |d| code(&d.system.packages)),
        ("units, in order", |d| code(&d.system.units)),
        ("ports", |d| numbers(&d.system.ports)),
        ("at the VIP", |d| numbers(&d.at_vip)),
        ("secrets", |d| code(&d.system.secrets)),
        ("certificates", |d| code(&d.system.certificates)),
        ("state", |d| code(&d.system.state)),
        ("keeps", |d| keeps(&d.system)),
        ("forms", |d| forms(&d.system)),
        ("steps", |d| d.system.steps.iter().map(step).collect::<Vec<_>>().join("<br>")),
    ];
    let looks: (&str, Cell) = ("health", |d| format!("every {}", d.system.health.interval));
    for (key, cell) in rows.into_iter().chain([looks]) {
        let cells: Vec<String> = releases.iter().map(|(_, d)| cell(d)).collect();
        if cells.iter().any(|c| !c.is_empty()) {
            text += &format!("| {key} | {} |\n", cells.join(" | "));
        }
    }
    text
}

/// Every port that any system of any release names or has at the VIP.
fn ports(systems: &Systems) -> String {
    let mut found: BTreeMap<(u16, &str), [bool; 2]> = BTreeMap::new();
    for (name, releases) in systems {
        for (_, d) in releases {
            d.system.ports.iter().for_each(|p| found.entry((*p, name)).or_default()[0] = true);
            d.at_vip.iter().for_each(|p| match d.system.ports.contains(p) {
                true => found.entry((*p, name)).or_default()[1] = true,
                // The balancer's own file holds the doors of systems without one.
                false => {
                    let owner = systems.iter().find(|(_, r)| r.iter().any(|(_, d)| d.system.ports.contains(p)));
                    found.entry((*p, owner.map_or(name.as_str(), |(n, _)| n))).or_default()[1] = true;
                }
            });
        }
    }
    let mut text = "| port | system | node's address | VIP |\n|---|---|---|---|\n".to_string();
    for ((port, name), [node, vip]) in found {
        let mark = |is| if is { "x" } else { "" };
        text += &format!("| {port} | [{name}](systems/{name}.md) | {} | {} |\n", mark(node), mark(vip));
    }
    text
}

/// Holds what stands between the marks against `wanted`, or writes it there.
fn settle(path: &Path, title: &str, wanted: &str, stale: &mut Vec<String>) -> String {
    let shown = path.strip_prefix(top()).unwrap().display().to_string();
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| format!("# {title}\n\n{FIRST}\n{LAST}\n"));
    let parts = text.split_once(&format!("{FIRST}\n")).and_then(|(a, rest)| Some((a, rest.split_once(LAST)?)));
    let Some((before, (is, after))) = parts else { panic!("{shown} has no {FIRST} … {LAST}") };
    let new = format!("{before}{FIRST}\n{wanted}{LAST}{after}");
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &new).unwrap();
    } else if is != wanted {
        stale.push(shown);
    }
    new
}

#[test]
fn each_system_has_a_page_that_says_what_its_files_say() {
    let systems = systems();
    let (mut stale, mut missing) = (Vec::new(), Vec::new());
    let guide = std::fs::read_to_string(top().join("docs/systems.md")).unwrap();
    for (name, releases) in &systems {
        let path = top().join(format!("docs/systems/{name}.md"));
        let text = settle(&path, name, &block(releases), &mut stale);
        missing
            .extend(HEADINGS.iter().filter(|h| !text.contains(&format!("\n{h}\n"))).map(|h| format!("{name}.md: {h}")));
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "docs/systems/{name}.md has {lines} lines: nobody reads more than {LINES_MAX}");
        assert!(guide.contains(&format!("(systems/{name}.md)")), "docs/systems.md does not lead to systems/{name}.md");
    }
    settle(&top().join("docs/topology.md"), "Topology", &ports(&systems), &mut stale);
    assert!(stale.is_empty(), "not what the systems' files say: {stale:?}; next: {WRITE}=1 cargo test --test docs");
    assert!(missing.is_empty(), "to be written by hand: {missing:#?}");
    for entry in std::fs::read_dir(top().join("docs/systems")).unwrap() {
        let name = entry.unwrap().file_name().to_str().unwrap().trim_end_matches(".md").to_string();
        assert!(systems.contains_key(&name), "docs/systems/{name}.md is of no system");
    }
}
