//! Scripts that a system must have, and that can be run.

use super::{Found, Role};
use crate::image::role::SYSTEMS_DIR;
use crate::overlay::{Entry, Kind};
use crate::recipe::file::Loaded;
use crate::recipe::problem::Problem;
use crate::recipe::reader::At;
use crate::recipe::system::{FormationKind, Scope};

/// What the engine runs of a system that one node seeds.
const SEEDED: [&str; 4] = ["seed", "join", "rank", "lineage"];

pub(super) fn check(role: &Role, found: &mut Found) {
    for loaded in role.systems.values() {
        for (name, line, key) in wanted(loaded) {
            let path = format!("{}/{}/{name}", SYSTEMS_DIR.trim_start_matches('/'), loaded.system.name);
            if let Err(why) = runnable(role.tree.entries.get(&path)) {
                let message = format!("its script /{path} {why}");
                found.problem(Problem { file: loaded.file.clone(), line, key, message });
            }
        }
    }
    for entry in role.tree.entries.values() {
        let script = matches!(&entry.kind, Kind::File(bytes) if bytes.starts_with(b"#!"));
        if script && entry.mode & 0o111 == 0 {
            let message = "begins with #! but is not executable: chmod +x".to_string();
            found.problem(Problem { file: entry.source.clone(), line: 1, key: "#!".into(), message });
        }
    }
}

/// Each script with the place that asks for it.
fn wanted(loaded: &Loaded) -> Vec<(String, usize, String)> {
    let places = &loaded.places;
    let named = places.name.as_ref().map_or(0, |n| n.line);
    let mut wanted = vec![("health".to_string(), named, "health".to_string())];
    let at = |name: String, place: &At<()>| (name, place.line, place.key.clone());
    if let Some(formation) = places.formation.as_ref().filter(|f| f.value == FormationKind::Seeded) {
        let place = formation.clone().map(|_| ());
        wanted.extend(SEEDED.map(|name| at(name.into(), &place)));
    }
    for step in &places.steps {
        let (name, place) = (&step.name.value, step.name.clone().map(|_| ()));
        wanted.push(at(name.clone(), &place));
        if step.scope.value == Scope::Cluster {
            wanted.push(at(format!("{name}.check"), &place));
        }
    }
    wanted
}

fn runnable(entry: Option<&Entry>) -> Result<(), &'static str> {
    let Some(entry) = entry else { return Err("is not in its overlay") };
    match &entry.kind {
        Kind::Dir => Err("is a folder"),
        // What it leads to may be a package's.
        Kind::Symlink(_) => Ok(()),
        Kind::File(bytes) if bytes.is_empty() => Err("is empty"),
        Kind::File(bytes) if !bytes.starts_with(b"#!") && !bytes.starts_with(b"\x7fELF") => {
            Err("is no program: it does not begin with #!")
        }
        Kind::File(_) if entry.mode & 0o111 == 0 => Err("is not executable"),
        Kind::File(_) => Ok(()),
    }
}
