//! What checks must ask for: option lists, shellcheck's word, units in package files of the cache.

use super::options::{self, Service};
use super::shell::{self, Script};
use super::units::{self, Provided, Wanted};
use crate::recipe::Family;
use crate::recipe::lock::{Lock, LockedPackage};
use crate::recipe::problem::Problem;
use crate::repo::rpm::facts;
use crate::repo::rpm::inspect::{Inspector, Want};
use crate::repo::{deb, fetch};
use crate::sys::command;
use crate::sys::files::read_bounded;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// An option list; nova's has some 30 kB.
const LIST_MAX_BYTES: u64 = 4 << 20;
/// Scripts of one call of shellcheck; small calls run side by side.
const SCRIPTS_MAX: usize = 16;
/// It takes some 0.1 s a script.
const SHELLCHECK_TIMEOUT: Duration = Duration::from_secs(120);
const READ_BYTES: usize = 256 << 10;

/// The services of a folder `options`; `None`: there is none.
pub fn services(folder: &Path) -> Result<Option<(Vec<Service>, Vec<Problem>)>> {
    let file = folder.join("files.toml");
    if !file.exists() {
        return Ok(None);
    }
    let (mut services, mut problems) = options::files(&text(&file)?, &file.display().to_string());
    for service in &mut services {
        let list = folder.join(format!("{}.txt", service.name));
        let shown = list.display().to_string();
        match text(&list) {
            Ok(text) => problems.extend(service.read(&text, &shown)),
            Err(error) => {
                let message = format!("{error:#}");
                problems.push(Problem { file: shown, line: 0, key: String::new(), message });
            }
        }
    }
    Ok(Some((services, problems)))
}

fn text(file: &Path) -> Result<String> {
    let bytes = read_bounded(file, LIST_MAX_BYTES)?;
    String::from_utf8(bytes).with_context(|| format!("reading {} as UTF-8", file.display()))
}

/// What shellcheck says of scripts, errors and warnings; `None`: it is not installed.
pub fn shellcheck(scripts: &[Script]) -> Result<Option<Vec<Problem>>> {
    let found = std::sync::Mutex::new(Some(Vec::new()));
    let batches: Vec<&[Script]> = scripts.chunks(SCRIPTS_MAX).collect();
    fetch::parallel(&batches, |batch| {
        let problems = shellcheck_some(batch)?;
        let mut found = found.lock().unwrap_or_else(|e| e.into_inner());
        *found = found.take().zip(problems).map(|(all, some)| [all, some].concat());
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(|e| e.into_inner()))
}

fn shellcheck_some(scripts: &[Script]) -> Result<Option<Vec<Problem>>> {
    // Rendered templates lie nowhere, so that all scripts are written down the same way.
    let folder = tempfile::tempdir().context("making a folder for shellcheck")?;
    let mut command = Command::new("shellcheck");
    command.args(["--norc", "--severity=warning", "--format=json1", "--"]).current_dir(folder.path());
    for (i, script) in scripts.iter().enumerate() {
        std::fs::write(folder.path().join(i.to_string()), &script.text).context("writing a script for shellcheck")?;
        command.arg(i.to_string());
    }
    let output = match command::run(&mut command, b"", SHELLCHECK_TIMEOUT) {
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::NotFound) => {
            return Ok(None);
        }
        output => output?,
    };
    // 1: it found something.
    if output.timed_out || !matches!(output.status.code(), Some(0 | 1)) {
        bail!("{} from {}", output.status, command::shown(&command));
    }
    shell::problems(&output.stdout, scripts).map(Some).map_err(anyhow::Error::msg)
}

/// Which of these units the lock's packages bring, by their files in the cache. The packages that
/// the units' systems name are looked into first, then small ones; what was found ends the search.
pub fn provided(wanted: &[Wanted], lock: &Lock, family: Family, cache: &Path) -> Result<Provided> {
    let mut open: Vec<Vec<String>> = wanted.iter().map(|w| units::names(&w.unit.value)).collect();
    let first: BTreeSet<&String> = wanted.iter().flat_map(|w| &w.packages).collect();
    let (near, mut far): (Vec<&LockedPackage>, Vec<_>) = lock.packages.iter().partition(|p| first.contains(&p.name));
    far.sort_by_key(|p| p.size);
    let mut provided = Provided::default();
    for package in near.into_iter().chain(far) {
        if open.is_empty() {
            break;
        }
        let file = fetch::place(cache, &package.sha256);
        if !file.exists() {
            provided.unknown += 1;
            continue;
        }
        let brought = of_package(&file, family).with_context(|| format!("looking into package {}", package.name))?;
        open.retain(|names| !names.iter().any(|name| brought.contains(name)));
        provided.units.extend(brought);
    }
    Ok(provided)
}

/// The units of a package file.
fn of_package(file: &Path, family: Family) -> Result<BTreeSet<String>> {
    let mut reader = BufReader::with_capacity(READ_BYTES, File::open(file)?);
    let mut found = BTreeSet::new();
    let mut take = |path: &str| found.extend(units::of_path(path).map(str::to_string));
    match family {
        Family::Apt => deb::paths(&mut reader, &mut take).map_err(anyhow::Error::msg)?,
        Family::Yum => {
            let mut inspector = Inspector::new(Want::default());
            let mut buffer = vec![0u8; READ_BYTES];
            while inspector.head().is_none() {
                match reader.read(&mut buffer)? {
                    0 => break,
                    n => drop(inspector.push(&buffer[..n])),
                }
            }
            let head = inspector.head().context("it has no header")?;
            facts::files(&head.main).iter().for_each(|(path, _)| take(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::rpm::header::tag;
    use crate::repo::rpm::inspect::tests::package;

    #[test]
    fn an_rpm_says_its_units_by_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.rpm");
        let indexes = [0u32.to_be_bytes(), 1u32.to_be_bytes()].concat();
        let tags: [(u32, u32, u32, &[u8]); 3] = [
            (tag::DIRNAMES, 8, 2, b"/usr/lib/systemd/system/\0/usr/bin/\0"),
            (tag::BASENAMES, 8, 2, b"openstack-nova-api.service\0x.service\0"),
            (tag::DIR_INDEXES, 4, 2, &indexes),
        ];
        std::fs::write(&file, package(&tags, b"payload")).unwrap();
        let units = of_package(&file, Family::Yum).unwrap();
        assert_eq!(units, BTreeSet::from(["openstack-nova-api.service".to_string()]));
        std::fs::write(&file, b"no package").unwrap();
        assert!(of_package(&file, Family::Yum).is_err() && of_package(&file, Family::Apt).is_err());
    }
}
