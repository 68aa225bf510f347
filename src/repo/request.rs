//! What a recipe asks of its repositories, as one digest: a lock answers exactly one such request.

use crate::recipe::lock::Lock;
use crate::recipe::{Recipe, Trust};
use sha2::Digest as _;

/// sha256 (hex) of the canonical text of what is asked for. URLs and mirrors are no part of it.
pub fn digest(recipe: &Recipe) -> String {
    let mut text = format!("kiln lock 1\nrelease {}\n", recipe.release);
    for stage in &recipe.stages {
        text += &format!("stage {} {}\n", stage.name, stage.packages.join(" "));
    }
    for repository in &recipe.repositories {
        let trust = if repository.trust == Trust::Pinned { "pinned" } else { "signed" };
        let (suites, components) = (repository.suites.join(" "), repository.components.join(" "));
        text += &format!("repository {} [{suites}] [{components}] {trust} {}\n", repository.id, repository.priority);
    }
    sha2::Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// What is different between two locks, one line each: `+ name version`, `- name version`,
/// `name old -> new`. Empty: the same packages in the same stages.
pub fn changes(old: &Lock, new: &Lock) -> Vec<String> {
    let key = |p: &crate::recipe::lock::LockedPackage| (p.name.clone(), p.arch.clone());
    let mut lines = Vec::new();
    for p in &old.packages {
        match new.packages.iter().find(|n| key(n) == key(p)) {
            None => lines.push(format!("- {} {}", p.name, p.version)),
            Some(n) if n.version != p.version => lines.push(format!("{} {} -> {}", p.name, p.version, n.version)),
            Some(n) if n.sha256 != p.sha256 => lines.push(format!("{} {}: other bytes", p.name, p.version)),
            Some(n) if n.stage != p.stage => lines.push(format!("{}: stage {} -> {}", p.name, p.stage, n.stage)),
            Some(_) => {}
        }
    }
    for p in new.packages.iter().filter(|n| !old.packages.iter().any(|p| key(n) == key(p))) {
        lines.push(format!("+ {} {}", p.name, p.version));
    }
    lines.sort_by(|a, b| a.trim_start_matches(['+', '-', ' ']).cmp(b.trim_start_matches(['+', '-', ' '])));
    lines
}
