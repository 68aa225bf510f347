//! Loads the kernel modules that the machine's hardware asks for, from the initramfs' own index.
//! Buses appear as their drivers load, so the walk is repeated by whoever waits for a device.

use crate::image::kmod::Index;
use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Needed to mount the layers and to send packets, asked for by no hardware.
const ALWAYS: [&str; 6] = ["loop", "squashfs", "overlay", "ext4", "af_packet", "crc32c_generic"];
/// Deeper than any real device path.
const DEPTH_MAX: usize = 32;

/// What was loaded and tried since the start.
pub struct Loader {
    dir: PathBuf,
    index: Index,
    seen: BTreeSet<String>,
    tried: BTreeSet<String>,
    /// Names of loaded modules, in order.
    pub loaded: Vec<String>,
    /// `name: why`, of those that the kernel refused.
    pub refused: Vec<String>,
}

impl Loader {
    /// Reads the index of the running kernel and loads what is always needed.
    pub fn open() -> Result<Loader> {
        let release = nix::sys::utsname::uname().context("asking for the kernel's release")?;
        let dir = Path::new("/lib/modules").join(release.release());
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let index = Index::parse(
            &text("modules.dep"),
            &text("modules.alias"),
            &text("modules.softdep"),
            &text("modules.builtin"),
        );
        let (seen, tried) = Default::default();
        let mut loader = Loader { dir, index, seen, tried, loaded: Vec::new(), refused: Vec::new() };
        for module in ALWAYS {
            loader.load(module);
        }
        Ok(loader)
    }

    /// Loads what the devices that are there now ask for; returns how many modules were new.
    pub fn pass(&mut self) -> usize {
        let before = self.loaded.len();
        let mut found = Vec::new();
        find_modaliases(Path::new("/sys/devices"), 0, &mut found);
        for alias in found {
            if !self.seen.contains(&alias) {
                for module in self.index.matching(&alias) {
                    self.load(&module);
                }
                self.seen.insert(alias);
            }
        }
        self.loaded.len() - before
    }

    /// Loads a module and what it needs; a refusal is remembered and does not stop the others.
    fn load(&mut self, module: &str) {
        for name in self.index.load_order(module) {
            if !self.tried.insert(name.clone()) {
                continue;
            }
            let Some(path) = self.index.paths.get(&name).map(|p| self.dir.join(p)) else { continue };
            match insert(&path) {
                Ok(()) => self.loaded.push(name),
                // A driver without its device (ENODEV) is no fault of the machine.
                Err(e) if e.downcast_ref() == Some(&nix::errno::Errno::ENODEV) => {}
                Err(e) => self.refused.push(format!("{name}: {e:#}")),
            }
        }
    }
}

fn insert(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn find_modaliases(dir: &Path, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        // Symlinks lead back to devices that have their own place.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < DEPTH_MAX {
            find_modaliases(&entry.path(), depth + 1, found);
        } else if kind.is_file() && entry.file_name() == "modalias" {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if !text.trim().is_empty() {
                found.push(text.trim().to_string());
            }
        }
    }
}
