//! Units that a system names, or that an overlay's drop-ins change: each comes from an overlay or from
//! a package of the lock.

use super::Role;
use crate::overlay::Tree;
use crate::recipe::problem::Problem;
use crate::recipe::reader::At;
use std::collections::BTreeSet;

/// Where systemd finds units, as overlays and packages write it.
pub const FOLDERS: [&str; 3] = ["etc/systemd/system/", "usr/lib/systemd/system/", "lib/systemd/system/"];

/// A unit that no overlay of the role brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The system's, or the drop-in's.
    pub file: String,
    pub unit: At<String>,
    /// The system's own packages, which most likely bring it.
    pub packages: Vec<String>,
}

/// What packages of the lock bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provided {
    /// Of the units that were asked for, with their templates.
    pub units: BTreeSet<String>,
    /// Packages whose bytes are not in the cache.
    pub unknown: usize,
}

pub(super) fn wanted(role: &Role) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for loaded in role.systems.values() {
        for unit in loaded.places.units.iter().filter(|u| !brings(role.tree, &u.value)) {
            let (file, packages) = (loaded.file.clone(), loaded.system.packages.clone());
            wanted.push(Wanted { file, unit: unit.clone(), packages });
        }
    }
    // A drop-in for a unit that is not there changes nothing, and nobody says so.
    for (path, entry) in &role.tree.entries {
        let Some(unit) = extended(path).filter(|unit| !brings(role.tree, unit)) else { continue };
        let packages = role.systems.get(&entry.overlay).map(|l| l.system.packages.clone()).unwrap_or_default();
        let unit = At { value: unit.to_string(), line: 0, key: "drop-in".to_string() };
        wanted.push(Wanted { file: entry.source.clone(), unit, packages });
    }
    wanted
}

/// The unit that a drop-in (`UNIT.d/NAME.conf`) is for.
fn extended(path: &str) -> Option<&str> {
    let (folder, name) = FOLDERS.iter().find_map(|f| path.strip_prefix(f))?.split_once('/')?;
    name.ends_with(".conf").then_some(())?;
    folder.strip_suffix(".d")
}

fn brings(tree: &Tree, unit: &str) -> bool {
    names(unit).iter().any(|name| FOLDERS.iter().any(|folder| tree.entries.contains_key(&format!("{folder}{name}"))))
}

/// A unit's file: its own name, or its template's.
pub fn names(unit: &str) -> Vec<String> {
    let template = unit.split_once('@').and_then(|(stem, rest)| Some(format!("{stem}@.{}", rest.rsplit_once('.')?.1)));
    std::iter::once(unit.to_string()).chain(template).collect()
}

/// The unit that a package's file is, if it is one.
pub fn of_path(path: &str) -> Option<&str> {
    let path = path.trim_start_matches("./").trim_start_matches('/');
    let name = FOLDERS.iter().find_map(|folder| path.strip_prefix(folder))?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// A unit that nothing brings. `Err`: nobody knows.
pub fn judge(wanted: &Wanted, provided: &Provided) -> Option<Result<Problem, Problem>> {
    let Wanted { file, unit: At { value: unit, line, key }, .. } = wanted;
    if names(unit).iter().any(|name| provided.units.contains(name)) {
        return None;
    }
    let problem = |message| Problem { file: file.clone(), line: *line, key: key.clone(), message };
    Some(match provided.unknown {
        0 => Ok(problem(format!("no overlay and no package of the lock brings {unit}"))),
        unknown => {
            Err(problem(format!("whether a package brings {unit}: {unknown} of the lock's are not in the cache")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_files_are_told_from_units() {
        for (path, want) in [
            ("./lib/systemd/system/ssh.service", Some("ssh.service")),
            ("/usr/lib/systemd/system/x@.service", Some("x@.service")),
            ("./usr/lib/systemd/system/ssh.service.d/x.conf", None),
            ("./usr/lib/systemd/system/", None),
            ("usr/lib/systemd/user/x.service", None),
        ] {
            assert_eq!(of_path(path), want, "{path}");
        }
        assert_eq!(names("getty@tty1.service"), ["getty@tty1.service", "getty@.service"]);
        for (path, want) in [
            ("usr/lib/systemd/system/ssh.service.d/kiln.conf", Some("ssh.service")),
            ("etc/systemd/system/x@.service.d/kiln.conf", Some("x@.service")),
            ("usr/lib/systemd/system/ssh.service.d/readme", None),
            ("usr/lib/systemd/system/x.service", None),
            ("etc/ssh/sshd_config.d/kiln.conf", None),
        ] {
            assert_eq!(extended(path), want, "{path}");
        }
    }

    #[test]
    fn what_nobody_knows_is_no_problem() {
        let unit = At { value: "x@1.service".to_string(), line: 3, key: "units[0]".to_string() };
        let wanted = Wanted { file: "s.toml".into(), unit, packages: Vec::new() };
        let provided =
            |units: &[&str], unknown| Provided { units: units.iter().map(|u| u.to_string()).collect(), unknown };
        assert_eq!(judge(&wanted, &provided(&["x@.service"], 9)), None);
        let said = |p: Option<Result<Problem, Problem>>| match p {
            Some(Ok(p)) => format!("problem {p}"),
            Some(Err(p)) => format!("unknown {p}"),
            None => String::new(),
        };
        let none = said(judge(&wanted, &provided(&["y.service"], 0)));
        assert_eq!(none, "problem s.toml:3: units[0]: no overlay and no package of the lock brings x@1.service");
        assert!(said(judge(&wanted, &provided(&[], 2))).starts_with("unknown s.toml:3: units[0]: whether"));
    }
}
