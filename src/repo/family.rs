//! Where a recipe's packages come from, whatever the distribution's family: the one door to
//! [`super::apt`] and [`super::dnf`].

use super::{apt, dnf, fetch, sources};
use crate::recipe::lock::{Lock, LockedPackage};
use crate::recipe::{Family, Recipe, Trust};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A recipe's repositories as they are reached from here.
pub enum Sources {
    Apt(Vec<sources::Source>),
    Yum(Vec<dnf::Source>),
}

impl Sources {
    /// `mirrors` take the place of addresses; `key` finds the file of a recipe's `gpgkey`.
    pub fn of(
        recipe: &Recipe,
        mirrors: &BTreeMap<String, String>,
        key: &dyn Fn(&str) -> Result<PathBuf>,
    ) -> Result<Sources> {
        Ok(match recipe.distribution.family {
            Family::Apt => Sources::Apt(apt::sources_of(recipe, mirrors)?),
            Family::Yum => Sources::Yum(dnf::sources_of(recipe, mirrors, key)?),
        })
    }

    /// Pins every package that the recipe needs.
    pub fn resolve(&self, recipe: &Recipe, cache: &Path, say: &dyn Fn(&str)) -> Result<Lock> {
        match self {
            Sources::Apt(sources) => apt::resolve(recipe, sources, cache, say),
            Sources::Yum(sources) => dnf::resolve(recipe, sources, cache, say),
        }
    }

    /// Every package of a repository, as the metadata (sha256 in hex) that the lock names lists them.
    pub fn all(&self, repository: &str, metadata: &str, cache: &Path) -> Result<Vec<LockedPackage>> {
        match self {
            Sources::Apt(_) => bail!("repository {repository}: only yum repositories can be preloaded"),
            Sources::Yum(sources) => dnf::all(sources, repository, metadata, cache),
        }
    }

    /// Brings packages into the cache.
    pub fn fetch(&self, packages: &[&LockedPackage], cache: &Path) -> Result<()> {
        match self {
            Sources::Apt(sources) => {
                let apt = apt::open(cache, sources)?;
                fetch::fetch(packages, &sources::bases(sources), cache, &|wanted| {
                    let uris: Vec<String> = wanted.iter().map(fetch::Wanted::uri).collect();
                    let files = wanted.iter().zip(&uris);
                    apt.download(files.map(|(w, uri)| (uri.as_str(), w.to.as_path(), w.package.sha256.as_str())))?;
                    Ok(Vec::new())
                })
            }
            Sources::Yum(sources) => {
                let bases = sources.iter().map(|s| (s.repository.clone(), vec![s.url.clone()])).collect();
                fetch::fetch(packages, &bases, cache, &|wanted| dnf::download(sources, wanted))
            }
        }
    }
}

/// Ids of repositories that only a digest vouches for.
pub fn pinned(recipe: &Recipe) -> Vec<String> {
    recipe.repositories.iter().filter(|r| r.trust == Trust::Pinned).map(|r| r.id.clone()).collect()
}
