//! Distribution families: how the packages of a stage are installed into a tree.

pub mod apt;
pub mod yum;

use super::chroot::{self, Chroot};
use super::users::{self, Accounts};
use crate::recipe::Family;
use crate::recipe::lock::LockedPackage;
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ACCOUNTS_MAX_BYTES: u64 = 4 << 20;
/// Where the tree sees the package cache during the build.
const PACKAGES: &str = "run/packages";

/// What one stage installs.
pub struct Stage<'a> {
    pub family: Family,
    pub cache: &'a Path,
    /// A folder of this build.
    pub scratch: &'a Path,
    /// Packages of the stages before, which are in the tree.
    pub earlier: &'a [&'a LockedPackage],
    pub packages: &'a [&'a LockedPackage],
    pub users: &'a BTreeMap<String, u32>,
    pub epoch: u64,
}

/// Installs the stage into `root`. Afterwards the tree's package list is exactly the lock's.
pub fn install(root: &Path, stage: &Stage, say: &dyn Fn(&str)) -> Result<()> {
    match stage.family {
        Family::Apt => apt::install(root, stage, say)?,
        Family::Yum => yum::install(root, stage, say)?,
    }
    if chroot::clock_library().is_some() && !Chroot::new(root, stage.epoch)?.sees_clock() {
        say(CLOCK_NOT_SEEN);
    }
    Ok(())
}

/// Said when a bake whose clock is shifted installs into a tree that cannot load what shifts it.
pub const CLOCK_NOT_SEEN: &str = "the tree's glibc cannot load libfaketime: its programs saw this machine's clock";

/// What a failing program says last stands at the end.
const LINES_SHOWN: usize = 40;

/// An error with the end of what `program` said, unless it did its work.
fn succeeded(output: &command::Output, program: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let end = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    bail!("{} from {program}; it ended with:\n{}", output.status, end.join("\n"))
}

/// What the tree's package manager lists (name, version, architecture) must be the lock's: nothing
/// more, nothing less.
fn are_locked(found: &BTreeSet<String>, stage: &Stage) -> Result<()> {
    let all = stage.earlier.iter().chain(stage.packages);
    let wanted: BTreeSet<String> = all.map(|p| format!("{} {} {}", p.name, p.version, p.arch)).collect();
    if *found != wanted {
        let differ: Vec<&String> = found.symmetric_difference(&wanted).collect();
        bail!("installed packages are not the locked ones: {differ:?}");
    }
    Ok(())
}

/// Writes the pinned users into a tree before the packages that would create them with any number.
fn pin_users(root: &Path, stage: &Stage) -> Result<()> {
    let names = ["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"];
    let read = |name: &str| -> Result<String> {
        let file = root.join(name);
        if !file.exists() {
            return Ok(String::new());
        }
        Ok(String::from_utf8(files::read_bounded(&file, ACCOUNTS_MAX_BYTES)?)?)
    };
    let mut accounts =
        Accounts { passwd: read(names[0])?, group: read(names[1])?, shadow: read(names[2])?, gshadow: read(names[3])? };
    let shadowed = !accounts.shadow.is_empty();
    users::add(&mut accounts, stage.users, stage.epoch, stage.family)
        .map_err(anyhow::Error::msg)
        .context("pinning users")?;
    let mut texts = vec![accounts.passwd, accounts.group];
    if shadowed {
        texts.extend([accounts.shadow, accounts.gshadow]);
    }
    for (name, text) in names.iter().zip(texts) {
        let file = root.join(name);
        // Written in place: owner and mode are the distribution's.
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// The one kernel of a tree: its release (`uname -r`) and its file.
pub fn kernel(root: &Path) -> Result<(String, PathBuf)> {
    let boot = root.join("boot");
    let mut found: Vec<String> = fs::read_dir(&boot)
        .with_context(|| format!("listing {}", boot.display()))?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("vmlinuz-").map(String::from))
        .collect();
    found.sort();
    match found.as_slice() {
        [one] => Ok((one.clone(), boot.join(format!("vmlinuz-{one}")))),
        [] => bail!("no kernel in /boot: add one to the recipe, such as linux-image-amd64 or kernel"),
        several => bail!("several kernels in /boot ({}): lock one", several.join(", ")),
    }
}
