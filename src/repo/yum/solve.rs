//! What the solver of yum repositories (`dnf.py`) is asked, and what its answer means: a lock, or
//! why there is none. Asking is [`crate::repo::dnf`]'s business.

use crate::recipe::Recipe;
use crate::recipe::lock::{self, Lock, LockedPackage, LockedRepository};
use crate::repo::href;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Conflicts that are shown; the first few tell.
const PROBLEMS_SHOWN: usize = 20;

#[derive(Debug, Serialize)]
pub struct Question<'a> {
    pub cache: PathBuf,
    pub repositories: Vec<Repository<'a>>,
    /// Package names, for each stage of the recipe.
    pub stages: Vec<&'a [String]>,
}

/// Verified metadata files on this machine.
#[derive(Debug, Serialize)]
pub struct Repository<'a> {
    pub id: &'a str,
    /// Lower wins.
    pub priority: u32,
    /// Patterns of names that are not taken from it.
    pub exclude: &'a [String],
    pub repomd: PathBuf,
    pub primary: PathBuf,
    pub filelists: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    #[serde(default)]
    packages: Vec<Solved>,
    #[serde(default)]
    problems: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Solved {
    name: String,
    version: String,
    arch: String,
    /// Empty: the metadata states another kind of checksum.
    sha256: String,
    size: u64,
    path: String,
    repository: String,
    stage: usize,
}

/// What a repository's metadata says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    pub repository: String,
    /// sha256 (hex) of repomd.xml.
    pub digest: String,
    /// Unix seconds.
    pub date: u64,
}

/// The lock that an answer means.
pub fn lock(recipe: &Recipe, stated: &[Stated], answer: Answer) -> Result<Lock, String> {
    if !answer.problems.is_empty() {
        let shown: BTreeSet<&String> = answer.problems.iter().take(PROBLEMS_SHOWN).collect();
        let shown: Vec<&str> = shown.into_iter().map(String::as_str).collect();
        return Err(format!("dnf finds no way to install them together:\n{}", shown.join("\n")));
    }
    let mut packages = Vec::new();
    let mut seen = BTreeSet::new();
    for p in answer.packages {
        if p.sha256.is_empty() {
            return Err(format!(
                "repository {}: its metadata has no SHA-256 of {}: let kiln repo import index it anew",
                p.repository, p.name
            ));
        }
        if !seen.insert((p.name.clone(), p.arch.clone())) {
            return Err(format!("package {} {} would be installed in two versions", p.name, p.arch));
        }
        let stage = recipe.stages.get(p.stage).ok_or_else(|| format!("package {}: no stage {}", p.name, p.stage))?;
        let path = href::inside(&p.path).map_err(|why| format!("package {}: {why}", p.name))?.to_string();
        packages.push(LockedPackage {
            name: p.name,
            version: p.version,
            arch: p.arch,
            sha256: p.sha256,
            size: p.size,
            path,
            repository: p.repository,
            stage: stage.name.clone(),
        });
    }
    let one = |s: &Stated| LockedRepository { id: s.repository.clone(), metadata: vec![s.digest.clone()] };
    let mut lock = Lock {
        version: lock::LOCK_VERSION,
        release: recipe.release.clone(),
        role: recipe.role.clone(),
        epoch: stated.iter().map(|s| s.date).max().unwrap_or(0),
        request: lock::request(recipe),
        repositories: stated.iter().map(one).collect(),
        packages,
    };
    lock.sort(recipe);
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Compression, CompressionKind, Distribution, Family, Stage};

    fn recipe() -> Recipe {
        let stage = |name: &str| Stage { name: name.into(), packages: vec![format!("{name}-package")] };
        Recipe {
            release: "mitaka".into(),
            role: "infra".into(),
            distribution: Distribution { family: Family::Yum, name: "centos7".into() },
            stages: vec![stage("base"), stage("infra")],
            systems: Vec::new(),
            overlays: Vec::new(),
            repositories: Vec::new(),
            cmdline: Vec::new(),
            initramfs_modules: None,
            users: Default::default(),
            compression: Compression { kind: CompressionKind::Gzip, level: 4 },
            selinux: None,
        }
    }

    fn solved(name: &str, stage: usize) -> serde_json::Value {
        serde_json::json!({
            "name": name, "version": "0:1-2.el7", "arch": "x86_64", "sha256": "a".repeat(64), "size": 7,
            "path": format!("Packages/{name}.rpm"), "repository": "base", "stage": stage
        })
    }

    fn answer(packages: &[serde_json::Value]) -> Answer {
        serde_json::from_value(serde_json::json!({ "packages": packages })).unwrap()
    }

    #[test]
    fn an_answer_becomes_a_lock_in_order_that_reads_back() {
        let stated = |repository: &str, date| Stated { repository: repository.into(), digest: "b".repeat(64), date };
        let stated = [stated("base", 5), stated("mitaka", 9)];
        let lock = lock(&recipe(), &stated, answer(&[solved("z", 1), solved("b", 0), solved("a", 1)])).unwrap();
        let order: Vec<(&str, &str)> = lock.packages.iter().map(|p| (p.stage.as_str(), p.name.as_str())).collect();
        assert_eq!(order, [("base", "b"), ("infra", "a"), ("infra", "z")]);
        assert_eq!((lock.epoch, lock.packages[0].version.as_str()), (9, "0:1-2.el7"));
        assert_eq!(Lock::parse(&lock.to_text(), "x").unwrap(), lock);
    }

    #[test]
    fn what_cannot_be_locked_is_said() {
        let with = |key: &str, value: serde_json::Value| {
            let mut package = solved("a", 0);
            package[key] = value;
            answer(&[package])
        };
        for (answer, want) in [
            (with("sha256", "".into()), "kiln repo import"),
            (with("path", "../../etc/passwd".into()), "leaves"),
            (with("stage", 7.into()), "no stage 7"),
            (answer(&[solved("a", 0), solved("a", 1)]), "two versions"),
            (
                serde_json::from_str(r#"{"problems": ["nothing provides x needed by y"]}"#).unwrap(),
                "nothing provides x",
            ),
        ] {
            let error = lock(&recipe(), &[], answer).unwrap_err();
            assert!(error.contains(want), "{want}: {error}");
        }
    }
}
