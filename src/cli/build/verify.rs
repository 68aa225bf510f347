//! `kiln build --verify`: the second bake, by a process for which everything is different that must
//! not matter, and what its image differs in.

use super::{Arguments, Show};
use crate::build::chroot::{self, Work};
use crate::build::compare;
use crate::build::family::CLOCK_NOT_SEEN;
use crate::build::report::{Report, State};
use crate::cli::exit::{self, Exit};
use crate::cli::{image, output, places};
use crate::image::id::ImageId;
use crate::image::store::Store;
use crate::sys::command;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, CpuSet};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where distributions have it.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];
/// For libfaketime; another day, month and year.
const CLOCK: &str = "+400d";
const HOSTNAME: &str = "elsewhere";
const UMASK: u32 = 0o077;
const LOCALE: &str = "tr_TR.UTF-8";
/// Fourteen hours before UTC: mostly another day. As POSIX writes it, no zoneinfo needed.
const ZONE: &str = "ZZZ-14";
/// The second bake's disk: as large as its file may become, were there so much room.
const DISK_MAX_BYTES: u64 = 64 << 30;
/// Beside what the image itself says of its size: package databases, the initramfs, metadata.
const SLACK_BYTES: u64 = 1 << 30;
/// Of what a failing second bake says on stderr.
const COMPLAINTS_MAX_BYTES: u64 = 64 << 10;
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);
/// The second image's tag has this behind the first one's, when it is another.
const AGAIN: &str = "-again";

/// What the second bake needs beside the first one's tools, looked for before the first.
pub fn tools() -> Result<PathBuf> {
    let missing = |what: &str, package: &str| {
        exit::error(Exit::Usage, format!("--verify needs {what}: apt-get install {package}"))
    };
    command::run(Command::new("mke2fs").arg("-V"), b"", VERSION_TIMEOUT).map_err(|_| missing("mke2fs", "e2fsprogs"))?;
    let library = LIBRARIES.iter().map(PathBuf::from).find(|path| path.exists());
    library.ok_or_else(|| missing("libfaketime, for another clock,", "faketime"))
}

/// A first bake that is done, all of its packages in the cache.
pub struct First<'a> {
    pub arguments: &'a Arguments,
    /// As the call names it.
    pub recipe: &'a str,
    pub key: &'a Path,
    pub store: &'a Store,
    pub id: ImageId,
    /// libfaketime.
    pub clock: &'a Path,
    pub show: &'a Show,
}

/// Bakes again and compares; exit status 4 when the ids differ, and both images stay in the store.
pub fn run(first: &First) -> Result<()> {
    let cache = places::cache();
    let work = Work::new(&cache)?;
    let size = disk_size(first, &cache)?;
    // libfaketime would leave files of a killed process there.
    let shared = Path::new("/dev/shm");
    let _shared = if shared.is_dir() { Some(chroot::mount_tmpfs(shared, "mode=1777")?) } else { None };
    let again = work.path.join("again");
    let _disk = chroot::mount_scratch(&work.path.join("disk"), size, &again)?;
    let (packages, below) = (cache.join("packages/sha256"), again.join("cache/packages/sha256"));
    let _packages = chroot::mount_bound(&packages, &below)?;
    // What a repository that is preloaded in full lists.
    let metadata = cache.join("yum");
    let _metadata = metadata.is_dir().then(|| chroot::mount_bound(&metadata, &again.join("cache/yum"))).transpose()?;

    let varied = bake(first, &again)?;
    let second = Store::open_existing(&again.join("store"))?;
    let id = match second.list()?.as_slice() {
        [one] => one.id,
        other => bail!("the second bake left {} images", other.len()),
    };
    if id == first.id {
        let said = format!("verified: baked twice, the same id; the second time with {varied}");
        match first.show.json {
            true => first.show.event("verify", State::Done, &said),
            false => output::text(&format!("{said}\n"))?,
        }
        return Ok(());
    }
    let difference = compare::compare((first.store, &first.id), (&second, &id), &cache)?;
    if first.show.json {
        first.show.object("verify", State::Failed, serde_json::json!({ "detail": varied, "difference": difference }));
    } else {
        output::text(&image::diff::text(&difference))?;
    }
    let tag = format!("{}{AGAIN}", first.arguments.tag);
    keep(&second, &id, first.store, &tag).context("keeping the second image")?;
    let (a, b) = (first.id.short(), id.short());
    Err(exit::error(
        Exit::Check,
        format!(
            "baked twice, two ids: {a} and {b}, the second time with {varied}; both are kept, the second with the \
             tag {tag}: `kiln image diff {a} {b}`"
        ),
    ))
}

/// The size of the second bake's disk, when there is room for what it will write.
fn disk_size(first: &First, cache: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(cache).with_context(|| format!("looking at {}", cache.display()))?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    let (image, config) = (first.store.image(&first.id)?, first.store.config(&first.id)?);
    // Unpacked once; each layer in the stages' cache and in the store.
    let needed = config.unpacked_bytes + 2 * image.blobs().map(|b| b.size).sum::<u64>() + SLACK_BYTES;
    if free < needed {
        let (free, needed, place) = (output::size(free), output::size(needed), cache.display());
        bail!("the second bake needs {needed}, and {place} has {free} left: make room, or set KILN_CACHE");
    }
    Ok(free.min(DISK_MAX_BYTES))
}

/// Bakes by this same program, its cache and store below `again`. What was different, in words.
fn bake(first: &First, again: &Path) -> Result<String> {
    let arguments = first.arguments;
    let mut line = Command::new(std::env::current_exe().context("finding this program")?);
    line.args(["build", first.recipe, "--events", "json", "--tag", &arguments.tag]);
    line.arg("--key").arg(first.key).arg("--store").arg(again.join("store"));
    line.args(arguments.trust.iter().flat_map(|key| ["--trust", key]));
    line.arg("--recipes").arg(&arguments.recipes.recipes);
    for (flag, value) in [("--overlays", &arguments.recipes.overlays), ("--node-binary", &arguments.node_binary)] {
        if let Some(value) = value {
            line.arg(flag).arg(value);
        }
    }
    line.env("KILN_CACHE", again.join("cache")).env("LC_ALL", LOCALE).env("LANG", LOCALE).env("TZ", ZONE);
    // Times of files are the kernel's all the same; and time-outs are not what is tried here.
    line.env("LD_PRELOAD", first.clock).env("FAKETIME", CLOCK);
    line.env("NO_FAKE_STAT", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let processors = apart(&mut line)?;
    line.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command::die_with_parent(&mut line);

    let mut child = line.spawn().context("starting the second bake")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut pipe) = stderr {
            let _ = pipe.by_ref().take(COMPLAINTS_MAX_BYTES).read_to_string(&mut text);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink()); // else it would wait for us
        }
        text
    });
    let mut clock_seen = true;
    for said in stdout.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(Result::ok) {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&said) else { continue };
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        clock_seen &= text("detail") != CLOCK_NOT_SEEN;
        if let Some(state) = State::of(text("state")) {
            first.show.event(&format!("again/{}", text("stage")), state, text("detail"));
        }
    }
    let status = child.wait().context("waiting for the second bake")?;
    let complaints = complaints.join().unwrap_or_default();
    if !status.success() {
        bail!("the second bake: {status}\n{}", complaints.trim_end());
    }
    let clock =
        if clock_seen { "" } else { " (not for the programs of the tree: its glibc is too old for libfaketime)" };
    let one = if processors > 1 { format!("one processor instead of {processors}") } else { "one processor".into() };
    Ok(format!(
        "the clock {CLOCK}{clock}, another file system, folder and order of directories, no cached layer or \
         initramfs, no network, {one}, umask {UMASK:03o}, LC_ALL={LOCALE}, TZ={ZONE} and another hostname"
    ))
}

/// Gives a child one processor, another hostname and umask, and no network. How many processors this
/// process has.
fn apart(line: &mut Command) -> Result<usize> {
    let all = nix::sched::sched_getaffinity(Pid::from_raw(0)).context("asking for this process's processors")?;
    let ours: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    if let Some(last) = ours.last() {
        one.set(*last).context("choosing a processor")?;
    }
    // SAFETY: plain system calls, nothing is allocated and no lock is taken.
    unsafe {
        line.pre_exec(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET)?;
            nix::unistd::sethostname(HOSTNAME)?;
            nix::sys::stat::umask(Mode::from_bits_truncate(UMASK));
            nix::sched::sched_setaffinity(Pid::from_raw(0), &one)?;
            Ok(())
        });
    }
    Ok(ours.len())
}

/// Brings an image of another store into this one.
fn keep(from: &Store, id: &ImageId, to: &Store, tag: &str) -> Result<()> {
    for blob in from.image(id)?.blobs() {
        to.import_file(&from.blob_path(&blob.digest), Some(&blob.digest))?;
    }
    to.commit(&from.manifest_bytes(id)?, &from.envelope(id)?, Some(tag)).map(drop)
}
