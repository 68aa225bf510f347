//! Brings the image's preloaded repositories to the state disk, once the node is ready and in no
//! hurry: until then, and on a node without such a disk, yum asks the server for what it needs.

use crate::image::fetch::Source;
use crate::image::id::Digest;
use crate::image::manifest::Descriptor;
use crate::image::repository::{Member, NODE_DIR, PLACE_VARIABLE, members};
use crate::image::role::RoleFile;
use crate::ledger::message::Handover;
use crate::sys::clock::growing_pause;
use crate::sys::files;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// The disk belongs to the systems: so much stays free, bytes.
const FREE_MIN_BYTES: u64 = 1 << 30;

/// Tells yum where the repositories are now.
pub fn place(role: &RoleFile, handover: &Handover) -> Result<()> {
    if role.repositories.is_empty() {
        return Ok(());
    }
    let here = handover.state_dir.is_some() && are_here(&role.repositories);
    let url = if here { format!("file://{NODE_DIR}") } else { format!("http://{}/repos", handover.server) };
    files::write_atomic(Path::new(PLACE_VARIABLE), format!("{url}\n").as_bytes(), 0o644)
}

fn are_here(repositories: &[Digest]) -> bool {
    repositories.iter().all(|digest| Path::new(NODE_DIR).join(digest.hex()).is_dir())
}

/// Brings them from a thread of its own, and tries until it is done. Those of an earlier image go.
pub fn bring_later(role: &RoleFile, handover: &Handover) {
    if handover.state_dir.is_none() {
        return;
    }
    let (role, handover) = (role.clone(), handover.clone());
    std::thread::spawn(move || {
        let mut failures = 0;
        while let Err(e) = bring(&role, &handover).and_then(|()| place(&role, &handover)) {
            failures += 1;
            eprintln!("preloaded repositories: {e:#}; yum asks the server meanwhile");
            std::thread::sleep(growing_pause(failures, PAUSE_FIRST, PAUSE_MAX));
        }
    });
}

fn bring(role: &RoleFile, handover: &Handover) -> Result<()> {
    let dir = Path::new(NODE_DIR);
    clean(dir, &role.repositories)?;
    if are_here(&role.repositories) {
        return Ok(());
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let source = Source::at(&handover.server);
    for descriptor in source.running(handover.image)?.repositories() {
        let to = dir.join(descriptor.digest.hex());
        if !to.is_dir() {
            one(&source, descriptor, dir, &to).with_context(|| format!("bringing {}", descriptor.label()))?;
            eprintln!("{} is on the state disk", descriptor.label());
        }
    }
    Ok(())
}

/// Removes what an earlier image had, and what a power cut left half done.
fn clean(dir: &Path, wanted: &[Digest]) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if !wanted.iter().any(|digest| entry.file_name().to_str() == Some(&digest.hex())) {
            let path = entry.path();
            if path.is_dir() { files::remove_tree(&path) } else { fs::remove_file(&path).map_err(Into::into) }
                .with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn one(source: &Source, descriptor: &Descriptor, dir: &Path, to: &Path) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(dir).context("asking for the disk's room")?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    let need = 2 * descriptor.size + FREE_MIN_BYTES;
    if free < need {
        bail!("the state disk has {} MiB free, {} are needed", free >> 20, need >> 20);
    }
    let work = to.with_extension("new");
    if work.exists() {
        files::remove_tree(&work)?;
    }
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    let blob = source.blob(descriptor, &work, &mut |text| eprintln!("preloaded repositories: {text}"))?;
    let tree = work.join("tree");
    let file = File::open(&blob).with_context(|| format!("opening {}", blob.display()))?;
    unpack(&file, &members(BufReader::new(&file)).map_err(anyhow::Error::msg)?, &tree)?;
    // Everything is on the disk before it has its name.
    nix::unistd::syncfs(&file).context("syncing the state disk")?;
    fs::rename(&tree, to).with_context(|| format!("naming {}", to.display()))?;
    files::remove_tree(&work)
}

fn unpack(mut blob: &File, members: &BTreeMap<String, Member>, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for (path, member) in members {
        let at = to.join(path);
        if let Some(folder) = at.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let mut file = File::create_new(&at).with_context(|| format!("creating {}", at.display()))?;
        blob.seek(SeekFrom::Start(member.start))?;
        let copied = std::io::copy(&mut blob.take(member.size), &mut file);
        if copied.with_context(|| format!("writing {}", at.display()))? != member.size {
            bail!("{path} ends early");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::repository::Writer;
    use crate::ledger::message::STATE_DIR;

    #[test]
    fn what_is_brought_lies_on_the_state_disk_as_it_was_packed() {
        assert!(Path::new(NODE_DIR).starts_with(STATE_DIR));
        let dir = tempfile::tempdir().unwrap();
        let packed = dir.path().join("blob");
        let mut writer = Writer::new(File::create(&packed).unwrap());
        for (path, text) in [("repodata/repomd.xml", "<repomd/>"), ("Packages/b/bash.rpm", "bash"), ("empty", "")] {
            writer.add(path, text.len() as u64, text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        let (blob, to) = (File::open(&packed).unwrap(), dir.path().join("tree"));
        let mut members = members(BufReader::new(&blob)).unwrap();
        unpack(&blob, &members, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("Packages/b/bash.rpm")).unwrap(), "bash");
        assert_eq!(fs::read_to_string(to.join("empty")).unwrap(), "");
        clean(dir.path(), &[Digest::of(b"wanted")]).unwrap();
        assert!(!to.exists(), "what is not wanted goes");
        members.insert("late".into(), Member { start: blob.metadata().unwrap().len(), size: 1 });
        assert!(unpack(&blob, &members, &dir.path().join("other")).unwrap_err().to_string().contains("ends early"));
    }
}
