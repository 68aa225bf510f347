//! The state disk: finds it, looks at what is on it, makes it where the server allows, mounts it.
//! Opens for writing only the one disk that was chosen and granted, and its partition.

use super::Held;
use super::disk_choice::{self as choice, PROBE_BYTES, PartKind, Sight, Stamp, Todo};
use super::mount;
use crate::ledger::message::{BootDisk, BootGo, Disk, DiskAnswer};
use crate::site::DiskMatch;
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use gpt::disk::LogicalBlockSize;
use nix::mount::MsFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The stamp's place on the state disk.
const STAMP_FILE: &str = "kiln/stamp.json";
const STAMP_MAX_BYTES: u64 = 64 * 1024;
/// For slow controllers and spinning disks to show up.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// For the kernel to show a partition that was just written.
const PARTITION_WAIT: Duration = Duration::from_secs(10);
/// mke2fs initialises lazily: even huge disks take seconds.
const MAKE_TIMEOUT: Duration = Duration::from_secs(600);
/// A repair reads all metadata.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(3600);
const POLL: Duration = Duration::from_millis(200);
/// An older boot loader's and FAT's heads lie in it.
const HEAD_BYTES: usize = 1 << 20;

/// Every disk of the machine, by name. Not: memory, optical and floppy drives, volumes on disks.
pub fn list() -> Result<Vec<Disk>> {
    const SKIP: [&str; 10] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock", "drbd"];
    let mut disks = Vec::new();
    for entry in fs::read_dir("/sys/block").context("listing /sys/block")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dir = entry.path();
        let size = text(&dir.join("size")).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0) * 512;
        if size == 0 || SKIP.iter().any(|s| name.starts_with(s)) {
            continue;
        }
        let serial = text(&dir.join("serial"))
            .or_else(|| text(&dir.join("device/serial")))
            .or_else(|| vpd_serial(&dir.join("device/vpd_pg80")));
        let wwn = text(&dir.join("wwid")).or_else(|| text(&dir.join("device/wwid")));
        disks.push(Disk { name, serial, wwn, size });
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

/// A file's trimmed text; `None` when absent or empty.
fn text(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_string();
    (!text.is_empty()).then_some(text)
}

/// SCSI's unit serial number page (SPC-4, 7.8.15): four bytes of head, then text.
fn vpd_serial(path: &Path) -> Option<String> {
    let page = fs::read(path).ok()?;
    let text =
        String::from_utf8_lossy(page.get(4..)?).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_string();
    (!text.is_empty()).then_some(text)
}

/// What the server is asked about a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// May this blank disk be made?
    Make,
    /// May the order wipe it, which holds this?
    Begin { order: &'a str, found: &'a str },
}

/// Mounts this node's state disk at `target`. A blank disk, or any that this boot's order wipes, is
/// made first, when `ask` says so. What must not go on is [`Held`]; nothing was written then. Answers
/// whether the machine can boot from it.
pub fn attach(
    go: &BootGo,
    want: &DiskMatch,
    target: &Path,
    modules: &mut dyn FnMut(),
    ask: &mut dyn FnMut(&Disk, Ask) -> Result<DiskAnswer>,
    say: &mut dyn FnMut(&str),
) -> Result<Option<BootDisk>> {
    let disk = find(want, modules)?;
    let device = Path::new("/dev").join(&disk.name);
    let sector = sector_size(&disk.name);
    let seen = look(&device, sector)?;
    let mut todo = choice::todo(&seen, go);
    if todo == Todo::Finish {
        todo = if finish(&disk, &device, sector, go)? {
            say("finished making the state disk");
            Todo::Use
        } else {
            choice::todo(&Sight::Blank, go)
        };
    }
    match &todo {
        Todo::Use | Todo::Finish => {}
        Todo::Hold(why) => return Err(Held::new(format!("state disk {} {why}", disk.name)).into()),
        Todo::Ask => {
            let answer = ask(&disk, Ask::Make)?;
            allowed(&disk, &answer)?;
            say(&format!("making the state disk on {} ({seen:?}, {})", disk.name, answer.reason));
            make(&disk, &device, sector, go, &seen)?;
        }
        Todo::Begin(found) => {
            not_anothers(&disk, &seen, go)?;
            let id = go.order.as_ref().map(|o| o.id.as_str()).unwrap_or_default();
            let answer = ask(&disk, Ask::Begin { order: id, found })?;
            allowed(&disk, &answer)?;
            choice::judge_answer(&answer, id).map_err(Held::new)?;
            say(&format!("order {id} wipes {} ({found}; {})", disk.name, answer.reason));
            make(&disk, &device, sector, go, &seen)?;
        }
    }
    let partition = wait_partition(&disk.name, STATE)?;
    match peek(&partition) {
        Ok(Some(stamp)) => judge(&disk, &stamp, go)?,
        Ok(None) => {
            return Err(Held::new(format!("state disk {} has no stamp that tells whose it is", disk.name)).into());
        }
        Err(e) => return Err(Held::new(format!("state disk {} cannot be read: {e:#}", disk.name)).into()),
    }
    mount_state(&partition, target)?;
    say(&format!("state of {} from {}", go.node, partition.display()));
    Ok(boot_disk(&disk, sector).unwrap_or_else(|e| {
        say(&format!("no boot files are kept: {e:#}")); // that must not stop a boot
        None
    }))
}

/// This node's state disk as it is, if it is there already and not about to be made anew: for reading.
pub fn own(go: &BootGo, want: &DiskMatch) -> Option<PathBuf> {
    let disks = list().ok()?;
    let disk = choice::choose(&disks, want).ok()?;
    let seen = look(&Path::new("/dev").join(&disk.name), sector_size(&disk.name)).ok()?;
    let partition = (choice::todo(&seen, go) == Todo::Use).then(|| wait_partition(&disk.name, STATE).ok())??;
    let stamp = peek(&partition).ok()??;
    choice::judge_stamp(&stamp, go).is_ok().then_some(partition)
}

/// The one finished state disk whose state partition has this GUID.
pub fn by_id(id: &str, modules: &mut dyn FnMut()) -> Result<(Disk, BootDisk, PathBuf)> {
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        modules();
        let disks = list()?;
        let same = |disk: &&Disk| {
            boot_disk(disk, sector_size(&disk.name)).is_ok_and(|found| found.is_some_and(|found| found.id == id))
        };
        let found: Vec<&Disk> = disks.iter().filter(same).collect();
        if let [disk] = found[..] {
            let sector = sector_size(&disk.name);
            let seen = look(&Path::new("/dev").join(&disk.name), sector)?;
            let boot = boot_disk(disk, sector)?.filter(|_| matches!(seen, Sight::State(_)));
            let boot = boot.ok_or_else(|| Held::new(format!("state disk {} is not finished: {seen:?}", disk.name)))?;
            return Ok((disk.clone(), boot, wait_partition(&disk.name, STATE)?));
        }
        if Instant::now() > deadline {
            let text = format!("{} disks have the partition {id}; disks: {}", found.len(), choice::list(&disks));
            return Err(Held::new(text).into());
        }
        std::thread::sleep(POLL);
    }
}

/// What a machine needs to know to boot from this disk; `None`: it was made without room for that.
fn boot_disk(disk: &Disk, sector: LogicalBlockSize) -> Result<Option<BootDisk>> {
    let device = Path::new("/dev").join(&disk.name);
    let table = gpt::GptConfig::new()
        .logical_block_size(sector)
        .open(&device)
        .with_context(|| format!("reading the partition table of {}", device.display()))?;
    let (Some(state), Some(efi)) = (table.partitions().get(&STATE), table.partitions().get(&EFI)) else {
        return Ok(None);
    };
    if efi.name != choice::PARTITION_EFI {
        return Ok(None);
    }
    let efi = wait_partition(&disk.name, EFI)?;
    Ok(Some(BootDisk {
        device: device.display().to_string(),
        efi: efi.display().to_string(),
        id: state.part_guid.to_string(),
    }))
}

fn allowed(disk: &Disk, answer: &DiskAnswer) -> Result<()> {
    if answer.format {
        return Ok(());
    }
    Err(Held::new(format!("state disk {} may not be made: {}", disk.name, answer.reason)).into())
}

/// Another cluster's or node's state is not this order's to wipe: somebody has mixed up disks. A state
/// disk that cannot be read is what a wipe is for.
fn not_anothers(disk: &Disk, seen: &Sight, go: &BootGo) -> Result<()> {
    if !matches!(seen, Sight::State(_)) {
        return Ok(());
    }
    match wait_partition(&disk.name, STATE).and_then(|partition| peek(&partition)) {
        Ok(Some(stamp)) => judge(disk, &stamp, go),
        Ok(None) | Err(_) => Ok(()),
    }
}

fn judge(disk: &Disk, stamp: &Stamp, go: &BootGo) -> Result<()> {
    choice::judge_stamp(stamp, go).map_err(|why| Held::new(format!("state disk {}: {why}", disk.name)).into())
}

/// The stamp of a partition: it may be another's.
fn peek(partition: &Path) -> Result<Option<Stamp>> {
    peek_with(partition, read_stamp)
}

/// What `read` finds on a partition's file system, without one byte of it changed: what a journal holds
/// back is not seen.
pub fn peek_with<T>(partition: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let target = Path::new(mount::RUN).join("state-new");
    mount::mount_at(&partition.display().to_string(), &target, "ext4", MsFlags::MS_RDONLY, "noload")?;
    let found = read(&target);
    mount::unmount_below(&target);
    found
}

fn find(want: &DiskMatch, modules: &mut dyn FnMut()) -> Result<Disk> {
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        modules();
        let disks = list()?;
        match choice::choose(&disks, want) {
            Ok(disk) => return Ok(disk.clone()),
            Err(reason) if Instant::now() > deadline => return Err(Held::new(reason).into()),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn sector_size(name: &str) -> LogicalBlockSize {
    let size = text(Path::new(&format!("/sys/block/{name}/queue/logical_block_size")));
    if size.as_deref() == Some("4096") { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 }
}

/// What lies on a disk (or an image file of one). Reads only.
pub fn look(device: &Path, sector: LogicalBlockSize) -> Result<Sight> {
    let reading = || format!("reading {}", device.display());
    let mut file = File::open(device).with_context(reading)?;
    let size = file.seek(SeekFrom::End(0)).with_context(reading)?;
    let length = (PROBE_BYTES as u64).min(size) as usize;
    let mut region = |at: u64| -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let head = region(0).with_context(reading)?;
    let tail = region(size - length as u64).with_context(reading)?;
    // A table that the other sector size explains is somebody's too: opening it here fails, and
    // the signature in `head` names it.
    let names =
        gpt::GptConfig::new().logical_block_size(sector).open(device).ok().map(|table| {
            table.partitions().values().filter(|p| p.is_used()).map(|p| p.name.clone()).collect::<Vec<_>>()
        });
    Ok(choice::sight(&head, &tail, names.as_deref()))
}

/// Writes a GPT with the partitions of [`choice::layout`] over the whole disk and syncs it; what an older
/// one had to boot from is gone then.
pub fn write_table(device: &Path, sector: LogicalBlockSize, name: &str) -> Result<()> {
    let writing = || format!("writing a partition table to {}", device.display());
    let mut file = OpenOptions::new().read(true).write(true).open(device).with_context(writing)?;
    let size = file.seek(SeekFrom::End(0)).with_context(writing)?;
    let blocks = size / sector.as_u64();
    let covered = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
    gpt::mbr::ProtectiveMBR::with_lb_size(covered).overwrite_lba0(&mut file).with_context(writing)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector)
        .create_from_device(file, None)
        .with_context(writing)?;
    let end = (table.header().last_usable + 1) * sector.as_u64();
    let parts = choice::layout(size, end, name).map_err(anyhow::Error::msg).with_context(writing)?;
    for part in &parts {
        let (start, length) = (part.start / sector.as_u64(), part.length / sector.as_u64());
        let kind = match part.kind {
            PartKind::Bios => gpt::partition_types::BIOS,
            PartKind::Efi => gpt::partition_types::EFI,
            PartKind::State => gpt::partition_types::LINUX_FS,
        };
        table.add_partition_at(&part.name, part.number, start, length, kind, 0).with_context(writing)?;
    }
    let mut file = table.write().with_context(writing)?;
    file.sync_all().with_context(writing)?;
    for part in parts.iter().filter(|p| p.kind != PartKind::State) {
        file.seek(SeekFrom::Start(part.start)).with_context(writing)?;
        file.write_all(&vec![0; HEAD_BYTES]).with_context(writing)?;
    }
    file.sync_all().with_context(writing)
}

/// Gives the state partition another name, in both copies of the table, and syncs.
pub fn rename_partition(device: &Path, sector: LogicalBlockSize, name: &str) -> Result<()> {
    let renaming = || format!("renaming the state partition of {}", device.display());
    let file = OpenOptions::new().read(true).write(true).open(device).with_context(renaming)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector)
        .open_from_device(file)
        .with_context(renaming)?;
    let mut partitions = table.take_partitions();
    partitions.retain(|_, p| p.is_used());
    match partitions.get_mut(&STATE) {
        Some(partition) => partition.name = name.into(),
        None => bail!("{} has no partition {STATE}", device.display()),
    }
    table.update_partitions(partitions).with_context(renaming)?;
    table.write().with_context(renaming)?.sync_all().with_context(renaming)
}

/// Table, file system, stamp, and only then the name that says "finished". Cut off at any point,
/// the disk is blank or unfinished.
fn make(disk: &Disk, device: &Path, sector: LogicalBlockSize, go: &BootGo, seen: &Sight) -> Result<()> {
    {
        // Exclusive: refused while anything on the disk is mounted or part of a volume.
        let _alone = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(device)
            .with_context(|| format!("opening {} alone", device.display()))?;
        if look(device, sector)? != *seen {
            bail!("{} changed while the server was asked", device.display());
        }
        write_table(device, sector, &choice::names(go).0)?;
    }
    reread_table(device)?;
    let partition = wait_partition(&disk.name, STATE)?;
    make_file_system(&partition)?;
    let target = Path::new(mount::RUN).join("state-new");
    mount_state(&partition, &target)?;
    let stamped = stamp(&target, go);
    mount::unmount_below(&target);
    stamped?;
    rename_partition(device, sector, &choice::names(go).1)?;
    reread_table(device)
}

/// An unfinished disk that carries this node's stamp already lacks only its name. Another's stamp
/// holds the node; no stamp: it may be made again.
fn finish(disk: &Disk, device: &Path, sector: LogicalBlockSize, go: &BootGo) -> Result<bool> {
    let Ok(partition) = wait_partition(&disk.name, STATE) else { return Ok(false) };
    let Ok(Some(stamp)) = peek(&partition) else { return Ok(false) };
    judge(disk, &stamp, go)?;
    if !choice::is_made(&stamp, go) {
        return Ok(false);
    }
    rename_partition(device, sector, &choice::names(go).1)?;
    reread_table(device)?;
    Ok(true)
}

/// Writes whose state this is onto a mounted state disk.
pub fn stamp(target: &Path, go: &BootGo) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = target.join("kiln");
    fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
    let json = serde_json::to_vec_pretty(&Stamp::of(go))?;
    files::write_atomic(&target.join(STAMP_FILE), &json, 0o600)?;
    files::sync_dir(target)
}

/// Whose state a mounted disk says that it holds.
pub fn read_stamp(target: &Path) -> Result<Option<Stamp>> {
    let path = target.join(STAMP_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read_bounded(&path, STAMP_MAX_BYTES)?;
    Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?))
}

/// Mounts a state partition; its journal is replayed.
pub fn mount_plainly(partition: &Path, target: &Path) -> Result<()> {
    mount::mount_at(&partition.display().to_string(), target, "ext4", MsFlags::MS_NODEV, "errors=remount-ro")
}

fn mount_state(partition: &Path, target: &Path) -> Result<()> {
    let source = partition.display().to_string();
    let mount = || mount_plainly(partition, target);
    let Err(first) = mount() else { return Ok(()) };
    // The journal could not bring it back: repair what is safe to repair, then once more.
    let output = in_role("/sbin/e2fsck", &["-p", &source], REPAIR_TIMEOUT)?;
    match output.status.code() {
        Some(0 | 1) => mount(),
        _ => Err(first.context(format!("repairing {source}: {}", output.text().trim()))),
    }
}

fn make_file_system(partition: &Path) -> Result<()> {
    let source = partition.display().to_string();
    let output = in_role("/sbin/mke2fs", &["-q", "-F", "-t", "ext4", "-L", "kiln-state", &source], MAKE_TIMEOUT)?;
    if !output.status.success() || output.timed_out {
        bail!("making an ext4 on {source}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a program of the role's image, which is mounted but not yet the root.
fn in_role(program: &str, arguments: &[&str], timeout: Duration) -> Result<command::Output> {
    let root = Path::new(mount::NEWROOT);
    let binds = ["dev", "proc", "sys"];
    for name in binds {
        fs::create_dir_all(root.join(name))?;
        mount::bind(&Path::new("/").join(name), &root.join(name))?;
    }
    let mut line = Command::new(program);
    line.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    // SAFETY: chroot and chdir are async-signal-safe.
    unsafe {
        line.pre_exec(|| {
            nix::unistd::chroot(mount::NEWROOT)?;
            nix::unistd::chdir("/")?;
            Ok(())
        });
    }
    let output = command::run(&mut line, b"", timeout);
    for name in binds {
        mount::unmount_below(&root.join(name));
    }
    output.with_context(|| format!("running the image's {program}"))
}

/// linux/fs.h: `_IO(0x12, 95)`.
const BLKRRPART: libc::c_ulong = 0x125f;

fn reread_table(device: &Path) -> Result<()> {
    let file = File::open(device)?;
    let deadline = Instant::now() + PARTITION_WAIT;
    loop {
        // SAFETY: BLKRRPART takes no argument.
        match nix::errno::Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), BLKRRPART as _) }) {
            Ok(_) => return Ok(()),
            // The kernel may still be looking at the disk itself.
            Err(nix::errno::Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(e) => return Err(e).with_context(|| format!("re-reading the partition table of {}", device.display())),
        }
    }
}

/// Numbers of partitions.
const STATE: u32 = 1;
const EFI: u32 = 2;

/// The device of a partition of the disk, once the kernel shows it.
fn wait_partition(disk: &str, number: u32) -> Result<PathBuf> {
    let number = number.to_string();
    let deadline = Instant::now() + PARTITION_WAIT;
    loop {
        let entries =
            fs::read_dir(format!("/sys/block/{disk}")).with_context(|| format!("looking for partitions of {disk}"))?;
        for entry in entries.flatten() {
            let device = Path::new("/dev").join(entry.file_name());
            if text(&entry.path().join("partition")).as_ref() == Some(&number) && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() > deadline {
            bail!("the kernel shows no partition {number} of {disk}");
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::choice::{PARTITION, PARTITION_UNFINISHED};
    use super::*;
    use sha2::Digest;
    use std::io::Write;

    fn image(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn a_made_disk_is_blank_then_unfinished_then_a_state_disk() {
        for (sector, bytes) in [(LogicalBlockSize::Lb512, 64 << 20), (LogicalBlockSize::Lb4096, 65 << 20)] {
            let disk = image(bytes);
            assert_eq!(look(disk.path(), sector).unwrap(), Sight::Blank);
            write_table(disk.path(), sector, PARTITION_UNFINISHED).unwrap();
            assert_eq!(look(disk.path(), sector).unwrap(), Sight::Unfinished(None));
            rename_partition(disk.path(), sector, PARTITION).unwrap();
            assert_eq!(look(disk.path(), sector).unwrap(), Sight::State(None));
            rename_partition(disk.path(), sector, &format!("{PARTITION} 0a1b2c3d")).unwrap();
            assert_eq!(look(disk.path(), sector).unwrap(), Sight::State(Some("0a1b2c3d".into())));
            // The table survives the loss of its first copy.
            let mut file = OpenOptions::new().write(true).open(disk.path()).unwrap();
            file.write_all(&vec![0; 64 * 1024]).unwrap();
            assert_eq!(look(disk.path(), sector).unwrap(), Sight::State(Some("0a1b2c3d".into())));
            // And without either copy it is nobody's, but not blank: a file system may be there.
            file.seek(SeekFrom::Start(1080)).unwrap();
            file.write_all(&[0x53, 0xef]).unwrap();
            file.seek(SeekFrom::End(-(64 * 1024))).unwrap();
            file.write_all(&vec![0; 64 * 1024]).unwrap();
            assert!(matches!(look(disk.path(), sector).unwrap(), Sight::Other(_)));
        }
    }

    #[test]
    fn what_an_older_disk_booted_from_is_gone_when_it_is_made_anew() {
        let sector = LogicalBlockSize::Lb512;
        let disk = image(choice::BOOT_DISK_MIN_BYTES);
        write_table(disk.path(), sector, PARTITION).unwrap();
        let parts = choice::layout(choice::BOOT_DISK_MIN_BYTES, choice::BOOT_DISK_MIN_BYTES - 33 * 512, "").unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(disk.path()).unwrap();
        let mut head = [0; 512];
        for part in &parts {
            file.seek(SeekFrom::Start(part.start)).unwrap();
            file.write_all(b"loader").unwrap();
        }
        rename_partition(disk.path(), sector, &format!("{PARTITION} 0a1b2c3d")).unwrap();
        assert_eq!(look(disk.path(), sector).unwrap(), Sight::State(Some("0a1b2c3d".into())));
        write_table(disk.path(), sector, PARTITION_UNFINISHED).unwrap();
        assert_eq!(look(disk.path(), sector).unwrap(), Sight::Unfinished(None));
        for part in parts {
            file.seek(SeekFrom::Start(part.start)).unwrap();
            file.read_exact(&mut head).unwrap();
            assert_eq!(head.starts_with(b"loader"), part.kind == PartKind::State, "{part:?}");
        }
    }

    #[test]
    fn other_tools_read_the_table_that_is_written() {
        for (bytes, start) in [(100 << 20, "start=        2048"), (choice::BOOT_DISK_MIN_BYTES, "start=     1052672")] {
            other_tools_read(bytes, start);
        }
    }

    fn other_tools_read(bytes: u64, start: &str) {
        let disk = image(bytes);
        write_table(disk.path(), LogicalBlockSize::Lb512, PARTITION).unwrap();
        let second = Duration::from_secs(20);
        let Ok(verdict) = command::run(Command::new("sfdisk").arg("-V").arg(disk.path()), b"", second) else {
            eprintln!("skipped: no sfdisk here");
            return;
        };
        let text = verdict.text() + &String::from_utf8_lossy(&verdict.stderr);
        assert!(verdict.status.success() && text.contains("No errors detected"), "{text}");
        let dump = command::run_ok(Command::new("sfdisk").arg("-d").arg(disk.path()), b"", second).unwrap().text();
        assert!(dump.contains(start) && dump.contains("name=\"kiln-state\""), "{dump}");
    }

    #[test]
    fn looking_writes_nothing() {
        let disk = image(8 << 20);
        disk.as_file().set_len(8 << 20).unwrap();
        write_table(disk.path(), LogicalBlockSize::Lb512, "data").unwrap();
        let before = sha2::Sha256::digest(fs::read(disk.path()).unwrap());
        assert_eq!(
            look(disk.path(), LogicalBlockSize::Lb512).unwrap(),
            Sight::Other("a GPT with partitions [\"data\"]".into())
        );
        assert_eq!(sha2::Sha256::digest(fs::read(disk.path()).unwrap()), before);
    }
}
