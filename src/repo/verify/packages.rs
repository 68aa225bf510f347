//! Package files against what an index says of them, many at a time. A file is read once: its
//! checksum, its headers and its signatures are taken from the same bytes.

use crate::repo::deb;
use crate::repo::digest::{Checksum, Hasher, Kind};
use crate::repo::finding::{Report, short};
use crate::repo::gpgv::{Check, Keyring};
use crate::repo::openpgp::{self, Verdict};
use crate::repo::place::{Found, Place};
use crate::repo::rpm::facts::{self, Nevra, Signature};
use crate::repo::rpm::header::tag;
use crate::repo::rpm::inspect::{Head, Inspector, Want};
use anyhow::{Context, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

/// Packages that wait for a worker.
const QUEUE_MAX: usize = 256;

/// What an index says of a package file.
pub struct Listed {
    /// Below the repository.
    pub href: String,
    pub size: u64,
    pub checksum: Checksum,
    pub is: Identity,
}

pub enum Identity {
    Rpm(Nevra),
    /// Name, version, architecture.
    Deb([String; 3]),
}

/// Where packages are handed in.
pub struct Queue<'a> {
    sender: std::sync::mpsc::SyncSender<Listed>,
    stopped: &'a AtomicBool,
}

impl Queue<'_> {
    /// Hands in the next; false: the workers have given up.
    pub fn push(&self, listed: Listed) -> bool {
        !self.stopped.load(Ordering::Relaxed) && self.sender.send(listed).is_ok()
    }
}

/// Checks what `feed` hands in on all cores while it goes on finding more.
pub fn check_all<T>(
    place: &Place,
    keyring: Option<&Keyring>,
    feed: impl FnOnce(&Queue) -> Result<T>,
) -> Result<(T, Report)> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let stopped = AtomicBool::new(false);
    let (sender, receiver) = sync_channel(QUEUE_MAX);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        let work = || worker(place, keyring, &receiver, &stopped);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let fed = feed(&Queue { sender, stopped: &stopped });
        let mut report = Report::default();
        for worker in workers {
            report.absorb(worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")))?);
        }
        Ok((fed?, report))
    })
}

fn worker(
    place: &Place,
    keyring: Option<&Keyring>,
    queue: &Mutex<Receiver<Listed>>,
    stopped: &AtomicBool,
) -> Result<Report> {
    let mut report = Report::default();
    loop {
        let next = queue.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?.recv();
        let Ok(listed) = next else { return Ok(report) };
        // The others drain the queue, so that whoever fills it is not left waiting.
        if stopped.load(Ordering::Relaxed) {
            continue;
        }
        if let Err(error) = check(place, keyring, &listed, &mut report) {
            stopped.store(true, Ordering::Relaxed);
            while queue.lock().is_ok_and(|q| q.recv().is_ok()) {}
            return Err(error.context(format!("checking {} of {}", short(&listed.href), place.shown())));
        }
    }
}

fn check(place: &Place, keyring: Option<&Keyring>, listed: &Listed, report: &mut Report) -> Result<()> {
    match &listed.is {
        Identity::Rpm(nevra) => check_rpm(place, keyring, listed, nevra, report),
        Identity::Deb(is) => check_deb(place, listed, is, report),
    }
}

/// Streams a package, one byte more than it may have; false: there is nothing to look at.
fn stream(place: &Place, listed: &Listed, report: &mut Report, to: &mut dyn FnMut(&[u8])) -> Result<bool> {
    report.packages += 1;
    match place.stream(&listed.href, listed.size.saturating_add(1), to)? {
        Found::Whole => return Ok(true),
        Found::Missing => report.problem("missing", &listed.href, "is in the index, but not in the repository"),
        Found::Unreadable(why) => report.problem("unreadable", &listed.href, why),
    }
    Ok(false)
}

/// Whether the bytes are those that the index means.
fn same_bytes(listed: &Listed, bytes: u64, found: &Checksum, report: &mut Report) -> bool {
    report.bytes += bytes;
    if bytes != listed.size {
        let found = if bytes > listed.size { "more bytes".into() } else { format!("{bytes} bytes") };
        report.problem("size", &listed.href, format!("has {found}, the index says {}", listed.size));
        return false;
    }
    if *found != listed.checksum {
        let text = format!("has {found}, the index says {}", listed.checksum.hex);
        report.problem("checksum", &listed.href, text);
        return false;
    }
    true
}

fn check_rpm(
    place: &Place,
    keyring: Option<&Keyring>,
    listed: &Listed,
    nevra: &Nevra,
    report: &mut Report,
) -> Result<()> {
    // A signature covers the header alone, and the header the payload by its digest: without a key
    // nobody vouches for that digest, and the index's checksum covers the same bytes already.
    let payload = keyring.is_some() || listed.checksum.kind < Kind::Sha256;
    let mut inspector = Inspector::new(Want { file: Some(listed.checksum.kind), payload });
    let mut signatures = Signatures { keyring, state: None };
    let there = stream(place, listed, report, &mut |chunk| {
        let payload = inspector.push(chunk);
        signatures.push(inspector.head(), payload);
    })?;
    if !there {
        return Ok(());
    }
    let seen = inspector.finish();
    let found = seen.checksum.unwrap_or_else(|| listed.checksum.clone());
    let same = same_bytes(listed, seen.bytes, &found, report);
    let head = match seen.head {
        Ok(head) => head,
        Err(why) => {
            if same {
                report.problem("package", &listed.href, why);
            }
            return Ok(());
        }
    };
    // A damaged file's header may be whole: what it says of itself still counts.
    match facts::nevra(&head.main) {
        Ok(found) if found != *nevra => {
            report.problem("header", &listed.href, format!("is {found} by its header, the index says {nevra}"));
        }
        Ok(_) => {}
        Err(why) => report.problem("header", &listed.href, why),
    }
    if same {
        for fault in seen.faults {
            report.problem("package", &listed.href, fault);
        }
    }
    signatures.judge(&listed.href, same, report)
}

/// The signatures of a package that is going by.
struct Signatures<'a> {
    keyring: Option<&'a Keyring>,
    /// Once the headers are there: each signature with its check.
    state: Option<Vec<(Signature, Result<Check>)>>,
}

impl Signatures<'_> {
    fn push(&mut self, head: Option<&Head>, payload: &[u8]) {
        let (Some(keyring), Some(head)) = (self.keyring, head) else { return };
        let checks = self.state.get_or_insert_with(|| {
            let begin = |signature: Signature| {
                let check = keyring.begin(&signature.packet).map(|mut check| {
                    check.push(&head.main_bytes);
                    check
                });
                (signature, check)
            };
            needed(head).into_iter().map(begin).collect()
        });
        for (signature, check) in checks {
            if let (true, Ok(check)) = (signature.with_payload, check) {
                check.push(payload);
            }
        }
    }

    fn judge(self, href: &str, same: bool, report: &mut Report) -> Result<()> {
        let (Some(keyring), Some(checks)) = (self.keyring, self.state) else { return Ok(()) };
        if checks.is_empty() {
            let text = "carries no signature, though a key is given; without --key it is checked by its digest alone";
            report.problem("unsigned", href, text);
            return Ok(());
        }
        let mut good = true;
        for (signature, check) in checks {
            let verdict = check.and_then(Check::finish).context("asking gpgv (package gpgv)")?;
            // The damage was named already; that the signature does not fit follows from it.
            good &= same || !matches!(verdict, Verdict::Bad(_));
            let verdict = if !same && matches!(verdict, Verdict::Bad(_)) { continue } else { verdict };
            good &= say(keyring, href, &signature.packet, verdict, report);
        }
        report.packages_signed += u64::from(good);
        Ok(())
    }
}

/// The signatures to check: over the header, which vouches for the payload by its digest; and
/// those over both where the header has no such digest (before rpm 4.14), or has none of its own.
fn needed(head: &Head) -> Vec<Signature> {
    let all = facts::signatures(head);
    let chain = head.main.has(tag::PAYLOAD_DIGEST) && all.iter().any(|s| !s.with_payload);
    all.into_iter().filter(|s| !(chain && s.with_payload)).collect()
}

/// Says what a verdict means for `object`; true: a given key signed it.
pub fn say(keyring: &Keyring, object: &str, packet: &[u8], verdict: Verdict, report: &mut Report) -> bool {
    match verdict {
        Verdict::Good { fingerprint, weak, expired } => {
            let key = keyring.key(&fingerprint);
            let named = key.map_or_else(|| fingerprint.clone(), |k| format!("{} ({})", k.fingerprint, short(&k.user)));
            // Of a key is said once, not for each of ten thousand packages.
            if key.is_some_and(|k| k.weak) {
                let text = format!("key {named} vouches for itself with SHA-1 only, as keys of the el7 era do");
                report.warn("sha1-key", &keyring.names, text);
            }
            if expired {
                report.warn(
                    "expired-key",
                    &keyring.names,
                    format!("key {named} has expired; rpm goes on accepting it"),
                );
            }
            if weak {
                report.warn("sha1-signature", object, "is signed over SHA-1; a forger could have made another");
            }
            true
        }
        Verdict::Unknown(id) => {
            let id = openpgp::signature(packet).and_then(|s| s.key).unwrap_or(id);
            let text = format!("is signed by key {id}, which is not in {}; give that key's file, too", keyring.names);
            report.problem("unknown-key", object, text);
            false
        }
        Verdict::Bad(why) => {
            report.problem("signature", object, format!("has a signature that does not hold: {}", short(&why)));
            false
        }
    }
}

fn check_deb(place: &Place, listed: &Listed, is: &[String; 3], report: &mut Report) -> Result<()> {
    let (mut hasher, mut bytes) = (Hasher::new(listed.checksum.kind), 0u64);
    let mut control = deb::Collector::default();
    let there = stream(place, listed, report, &mut |chunk| {
        hasher.update(chunk);
        bytes += chunk.len() as u64;
        control.push(chunk);
    })?;
    if !there || !same_bytes(listed, bytes, &hasher.finish(), report) {
        return Ok(());
    }
    match control.identity() {
        Ok(found) if found != *is => {
            let text = format!("is {} by its control file, the index says {}", found.join(" "), is.join(" "));
            report.problem("header", &listed.href, short(&text));
        }
        Ok(_) => {}
        Err(why) => report.problem("package", &listed.href, why),
    }
    Ok(())
}
