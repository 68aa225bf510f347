//! When a machine may boot without the server, and whether what its disk keeps is its own. Nothing is
//! seeded, made or wiped then, and it is no new generation.

use super::cmdline::Cmdline;
use super::disk_choice::{self as choice, Stamp};
use crate::ledger::kept::{Kept, KeptImage};
use crate::ledger::message::{Disk, StateOrder};
use std::time::Duration;

/// A server that is silent for so long is gone.
pub const ASK_MAX: Duration = Duration::from_secs(30);

/// Whether this boot may go on without the server's answer: it came from the disk, and the server has only been silent.
/// `asked`: since the first question.
pub fn may_boot_plainly(cmdline: &Cmdline, silent: bool, asked: Duration) -> bool {
    cmdline.disk.is_some() && silent && asked >= ASK_MAX
}

/// The image that this boot came with, if it, the disk and the machine are one node's. Errors say what is not.
pub fn choose<'a>(
    kept: &'a Kept,
    stamp: Option<&Stamp>,
    cmdline: &Cmdline,
    disk: &Disk,
    disks: &[Disk],
) -> Result<&'a KeptImage, String> {
    let image = kept.images.iter().find(|k| k.handover.image == cmdline.image);
    let image = image.ok_or_else(|| format!("it does not keep image {}, which was booted", cmdline.image))?;
    let stamp = stamp.ok_or("it has no stamp that tells whose it is")?;
    choice::judge_stamp(stamp, &image.handover.go)?;
    if image.handover.mac != cmdline.ip.mac {
        return Err(format!("it was kept by the machine with MAC {}, this is {}", image.handover.mac, cmdline.ip.mac));
    }
    let StateOrder::Disk { disk: want } = &image.handover.go.state else {
        return Err(format!("{} was given no state disk", image.handover.go.node));
    };
    let chosen = choice::choose(disks, want)?;
    if chosen.name != disk.name {
        return Err(format!("the site gave {} the disk {}", image.handover.go.node, chosen.name));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::id::Digest;
    use crate::image::sign::Envelope;
    use crate::ledger::message::{BootGo, Handover};
    use crate::netroot::cmdline;
    use crate::site::DiskMatch;

    fn cmdline(image: &Digest, more: &str) -> Cmdline {
        let hex = "0".repeat(64);
        let text = format!(
            "kiln.server=10.0.0.1:8080 kiln.tls=8443 kiln.image={image} kiln.pin={hex} kiln.ip=10.0.0.11/24,,52:54:00:00:00:01 {more}"
        );
        cmdline::parse(&text).unwrap()
    }

    #[test]
    fn only_silence_and_only_a_boot_from_the_disk_go_on_alone() {
        let image = Digest::of(b"image");
        let short = ASK_MAX - Duration::from_millis(1);
        for (marker, silent, asked, may) in [
            ("kiln.disk=ab", true, ASK_MAX, true),
            ("kiln.disk=ab", true, short, false),
            ("kiln.disk=ab", false, ASK_MAX, false),
            ("", true, ASK_MAX * 9, false),
        ] {
            assert_eq!(may_boot_plainly(&cmdline(&image, marker), silent, asked), may, "{marker} {silent} {asked:?}");
        }
    }

    #[test]
    fn what_is_not_this_nodes_own_is_refused_by_name() {
        let (image, other) = (Digest::of(b"image"), Digest::of(b"other"));
        let disk = |name: &str, serial: &str| Disk {
            name: name.into(),
            serial: Some(serial.into()),
            wwn: None,
            size: 8 << 30,
        };
        let go = BootGo {
            node: "n1".into(),
            role: "infra".into(),
            cluster: "prod".into(),
            site_id: "a".into(),
            credential: None,
            state: StateOrder::Disk { disk: DiskMatch { serial: Some("S1".into()), wwn: None, size: None } },
            order: None,
            now_ms: 0,
        };
        let handover = Handover {
            server: "10.0.0.1:8080".into(),
            tls: "10.0.0.1:8443".into(),
            pin: String::new(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            boot_id: "b".into(),
            image,
            go: go.clone(),
            state_dir: None,
            boot_disk: None,
            plain: false,
        };
        let envelope = Envelope { payload_type: String::new(), payload: String::new(), signatures: Vec::new() };
        let keep = |change: &dyn Fn(&mut Handover)| {
            let mut handover = handover.clone();
            change(&mut handover);
            Kept { images: vec![KeptImage::new(&handover, envelope.clone(), String::new())] }
        };
        let stamp = |node: &str, site: &str| {
            Some(Stamp { cluster: "prod".into(), site_id: site.into(), node: node.into(), order: None })
        };
        let (one, two) = (vec![disk("vda", "S1")], vec![disk("vda", "S2"), disk("vdb", "S1")]);
        let same: &dyn Fn(&mut Handover) = &|_| {};
        for (booted, stamp, disks, change, want) in [
            (image, stamp("n1", "a"), &one, same, ""),
            (other, stamp("n1", "a"), &one, same, "it does not keep image"),
            (image, None, &one, same, "no stamp"),
            (image, stamp("n2", "a"), &one, same, "state of node n2"),
            (image, stamp("n1", "b"), &one, same, "another cluster"),
            (image, stamp("n1", "a"), &two, same, "the disk vdb"),
            (image, stamp("n1", "a"), &vec![disk("vda", "S3")], same, "no disk has serial"),
            (
                image,
                stamp("n1", "a"),
                &one,
                &|h| h.mac = "52:54:00:00:00:02".parse().unwrap(),
                "with MAC 52:54:00:00:00:02",
            ),
            (image, stamp("n1", "a"), &one, &|h| h.go.state = StateOrder::Volatile, "was given no state disk"),
        ] {
            let kept = keep(change);
            let got = choose(&kept, stamp.as_ref(), &cmdline(&booted, "kiln.disk=ab"), &disks[0], disks);
            let said = got.err().unwrap_or_default();
            assert!(if want.is_empty() { said.is_empty() } else { said.contains(want) }, "{want:?}: {said}");
        }
    }
}
