//! What an update of a lock changes, in words.

use crate::recipe::lock::{Lock, LockedPackage};

/// What is different between two locks, one line each: `+ name version`, `- name version`,
/// `name old -> new`. Empty: the same packages in the same stages, from the same metadata where
/// only its digest vouches for it (`pinned`: those repositories' ids).
pub fn changes(old: &Lock, new: &Lock, pinned: &[String]) -> Vec<String> {
    let key = |p: &LockedPackage| (p.name.clone(), p.arch.clone());
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
    let metadata =
        |lock: &Lock, id: &String| lock.repositories.iter().find(|r| r.id == *id).map(|r| r.metadata.clone());
    for id in pinned {
        match (metadata(old, id), metadata(new, id)) {
            (Some(before), Some(after)) if before != after => {
                lines.push(format!("repository {id}: metadata {} -> {}", before.join(" "), after.join(" ")));
            }
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::lock::LockedRepository;

    fn lock(packages: &[(&str, &str, &str)]) -> Lock {
        let package = |(name, version, stage): &(&str, &str, &str)| LockedPackage {
            name: name.to_string(),
            version: version.to_string(),
            arch: "amd64".into(),
            sha256: format!("{name}{version}"),
            size: 1,
            path: "pool/x".into(),
            repository: "debian".into(),
            stage: stage.to_string(),
        };
        Lock {
            version: 1,
            release: "zed".into(),
            role: "test".into(),
            epoch: 0,
            request: String::new(),
            repositories: Vec::new(),
            packages: packages.iter().map(package).collect(),
        }
    }

    #[test]
    fn changes_are_told_by_package() {
        let old = lock(&[("a", "1", "base"), ("b", "1", "base"), ("c", "1", "base"), ("e", "1", "base")]);
        let new = lock(&[("a", "1", "base"), ("b", "2", "base"), ("d", "1", "base"), ("e", "1", "infra")]);
        assert_eq!(changes(&old, &new, &[]), ["b 1 -> 2", "- c 1", "+ d 1", "e: stage base -> infra"]);
        assert!(changes(&old, &old, &[]).is_empty());
    }

    #[test]
    fn other_metadata_is_a_change_where_nothing_else_vouches() {
        let with = |digest: &str| {
            let mut lock = lock(&[("a", "1", "base")]);
            lock.repositories = vec![LockedRepository { id: "own".into(), metadata: vec![digest.into()] }];
            lock
        };
        let pinned = ["own".to_string()];
        assert_eq!(changes(&with("12"), &with("34"), &pinned), ["repository own: metadata 12 -> 34"]);
        assert!(changes(&with("12"), &with("12"), &pinned).is_empty());
        assert!(changes(&with("12"), &with("34"), &[]).is_empty());
    }
}
