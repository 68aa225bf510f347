//! Which disk may carry a node's state, what lies on it, and what may be done with it. Reads and
//! writes nothing: [`super::disk`] does.
//!
//! A state disk of ours is a GPT whose partition 1 is named [`PARTITION`] and holds an ext4 with a
//! [`Stamp`]; alone, or with the two partitions of [`layout`] that the machine boots from. While it is made the partition is named [`PARTITION_UNFINISHED`]: such a disk never
//! held state and may be made again. A disk that an order wiped bears the order's id behind that
//! name, from the first byte that is written on: what bears it is not wiped by that order again.
//! Labels of file systems are never looked at: two disks may carry the same.

use crate::ledger::message::{BLANK, BootGo, BootOrder, Disk, DiskAnswer, Disks};
use crate::site::DiskMatch;
use serde::{Deserialize, Serialize};

/// Name of the partition of a finished state disk.
pub const PARTITION: &str = "kiln-state";
/// Its name until the stamp is durable.
pub const PARTITION_UNFINISHED: &str = "kiln-state-new";
/// Name of the partition that firmware and boot loader read: a FAT.
pub const PARTITION_EFI: &str = "kiln-efi";
/// Name of the partition that holds the BIOS's boot loader.
pub const PARTITION_BIOS: &str = "kiln-bios";
/// Longest id that goes into a partition's name: a GPT has 36 characters for it.
const ORDER_MAX_CHARS: usize = 16;
/// So much at the start and at the end of a disk must be zero for it to be blank.
pub const PROBE_BYTES: usize = 1 << 20;
/// A smaller disk is no state disk.
pub const DISK_MIN_BYTES: u64 = 64 << 20;
/// A smaller disk is all state: the machine does not boot from it.
pub const BOOT_DISK_MIN_BYTES: u64 = 8 << 30;
/// Kernel and initramfs of two images, with all drivers and firmware.
pub const EFI_BYTES: u64 = 512 << 20;
/// GRUB's core takes a few hundred KiB.
pub const BIOS_BYTES: u64 = 1 << 20;
/// Partitions start and end on multiples of it.
pub const ALIGNMENT_BYTES: u64 = 1 << 20;

/// `/kiln/stamp.json` on the state disk: whose state it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub cluster: String,
    pub site_id: String,
    pub node: String,
    /// The order that the disk was made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
}

impl Stamp {
    pub fn of(go: &BootGo) -> Stamp {
        let order = wipe_of(go).map(|o| o.id.clone());
        Stamp { cluster: go.cluster.clone(), site_id: go.site_id.clone(), node: go.node.clone(), order }
    }
}

/// The order of this boot, if it wipes.
fn wipe_of(go: &BootGo) -> Option<&BootOrder> {
    go.order.as_ref().filter(|o| o.disks == Disks::Wipe)
}

/// The partition's name while a disk is made, and when it is finished, by this boot.
pub fn names(go: &BootGo) -> (String, String) {
    let mark = wipe_of(go).map(|o| format!(" {}", o.id)).unwrap_or_default();
    (format!("{PARTITION_UNFINISHED}{mark}"), format!("{PARTITION}{mark}"))
}

/// A partition to be made; start and length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub number: u32,
    pub name: String,
    pub kind: PartKind,
    pub start: u64,
    pub length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    Bios,
    Efi,
    State,
}

/// The partitions of a state disk of `bytes`, in the order of their places; `end`: first byte that none may take.
/// State is number 1 wherever it lies: disks without the others are read the same way.
pub fn layout(bytes: u64, end: u64, state: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut start = ALIGNMENT_BYTES;
    if bytes >= BOOT_DISK_MIN_BYTES {
        for (number, name, kind, length) in
            [(3, PARTITION_BIOS, PartKind::Bios, BIOS_BYTES), (2, PARTITION_EFI, PartKind::Efi, EFI_BYTES)]
        {
            parts.push(Part { number, name: name.into(), kind, start, length });
            start += length;
        }
    }
    let length = (end / ALIGNMENT_BYTES * ALIGNMENT_BYTES).checked_sub(start).filter(|l| *l > 0);
    let length = length.ok_or("disk is too small for a partition")?;
    parts.push(Part { number: 1, name: state.into(), kind: PartKind::State, start, length });
    Ok(parts)
}

/// The one disk that every given field matches; else what is wrong, with the disks there are.
pub fn choose<'a>(disks: &'a [Disk], want: &DiskMatch) -> Result<&'a Disk, String> {
    let asked = describe(want);
    if asked.is_empty() {
        return Err("site names no serial, WWN or size of this node's state disk".into());
    }
    let found: Vec<&Disk> = disks.iter().filter(|d| fits(d, want)).collect();
    match found[..] {
        [disk] if disk.size < DISK_MIN_BYTES => {
            Err(format!("state disk {} is smaller than {DISK_MIN_BYTES} bytes; disks: {}", disk.name, list(disks)))
        }
        [disk] => Ok(disk),
        [] => Err(format!("no disk has {asked}; disks: {}", list(disks))),
        _ => Err(format!("{} disks have {asked}; disks: {}", found.len(), list(disks))),
    }
}

fn fits(disk: &Disk, want: &DiskMatch) -> bool {
    want.fits(disk.serial.as_deref(), disk.wwn.as_deref(), disk.size)
}

fn describe(want: &DiskMatch) -> String {
    let serial = want.serial.as_ref().map(|s| format!("serial {s:?}"));
    let wwn = want.wwn.as_ref().map(|w| format!("WWN {w:?}"));
    let size = want.size.map(|s| format!("size {s}"));
    [serial, wwn, size].into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

/// Disks in one line, for people.
pub fn list(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "none".into();
    }
    let or_none = |text: &Option<String>| text.as_deref().map_or("none".into(), |t| format!("{t:?}"));
    let show =
        |d: &Disk| format!("{} (serial {}, WWN {}, {} bytes)", d.name, or_none(&d.serial), or_none(&d.wwn), d.size);
    disks.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// What lies on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    Blank,
    /// Making it was granted once and not finished; with the mark of the order that made it.
    Unfinished(Option<String>),
    /// A finished state disk; its stamp says whose.
    State(Option<String>),
    /// Somebody's data, named.
    Other(String),
}

/// Judges a disk by its first and last [`PROBE_BYTES`] and by the names in its partition table by
/// number, where one could be read.
pub fn sight(head: &[u8], tail: &[u8], partitions: Option<&[String]>) -> Sight {
    if let Some(names) = partitions {
        let state = match names {
            [only] => Some(only),
            [state, efi, bios] if efi == PARTITION_EFI && bios == PARTITION_BIOS => Some(state),
            _ => None,
        };
        let marked = |name: &str| state.and_then(|state| marked(state, name));
        return match (marked(PARTITION), marked(PARTITION_UNFINISHED)) {
            (Some(mark), _) => Sight::State(mark),
            (_, Some(mark)) => Sight::Unfinished(mark),
            (None, None) => Sight::Other(format!("a GPT with partitions {names:?}")),
        };
    }
    if head.iter().chain(tail).all(|b| *b == 0) {
        return Sight::Blank;
    }
    let found: Vec<&str> = SIGNATURES.iter().filter(|s| s.on(head, tail)).map(|s| s.what).collect();
    Sight::Other(if found.is_empty() { "data of an unknown kind".into() } else { found.join(", ") })
}

/// The mark behind a partition's name; the outer `None`: it has another name.
fn marked(partition: &str, name: &str) -> Option<Option<String>> {
    match partition.strip_prefix(name)? {
        "" => Some(None),
        rest => {
            let mark = rest.strip_prefix(' ')?;
            let good = (1..=ORDER_MAX_CHARS).contains(&mark.len()) && mark.bytes().all(|b| b.is_ascii_alphanumeric());
            good.then(|| Some(mark.to_string()))
        }
    }
}

/// What is to be done with the disk that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Todo {
    /// It holds this node's state, or another's: its stamp tells.
    Use,
    /// It was not finished: only its name may be missing; else it is made again, as [`Todo::Ask`] or
    /// [`Todo::Begin`] would.
    Finish,
    /// Make it, if the server says so.
    Ask,
    /// The order wipes it, if the server says so once more; told what lies on it.
    Begin(String),
    Hold(String),
}

/// Judges what was seen on the disk by what this boot may do.
pub fn todo(seen: &Sight, go: &BootGo) -> Todo {
    let Some(order) = wipe_of(go) else {
        return match seen {
            Sight::State(_) => Todo::Use,
            Sight::Unfinished(_) => Todo::Finish,
            Sight::Blank => Todo::Ask,
            Sight::Other(found) => Todo::Hold(format!("holds {found}; it is left as it is")),
        };
    };
    let ours = |mark: &Option<String>| mark.as_ref() == Some(&order.id);
    match seen {
        Sight::State(mark) if ours(mark) => Todo::Use,
        Sight::Unfinished(mark) if ours(mark) => Todo::Finish,
        Sight::State(_) => Todo::Begin("a state disk".into()),
        // Such a disk never held state.
        Sight::Unfinished(_) | Sight::Blank => Todo::Begin(BLANK.into()),
        Sight::Other(found) => Todo::Begin(found.clone()),
    }
}

/// Whether the server's leave to wipe is for this boot's order.
pub fn judge_answer(answer: &DiskAnswer, order: &str) -> Result<(), String> {
    match &answer.order {
        Some(of) if of == order => Ok(()),
        of => Err(format!("the server's answer is about order {of:?}, this boot goes by {order}")),
    }
}

/// Whether an unfinished disk lacks only its name: what was made under this boot's order has its
/// stamp; an older stamp is what the wipe was to take away.
pub fn is_made(stamp: &Stamp, go: &BootGo) -> bool {
    stamp.order == wipe_of(go).map(|o| o.id.clone())
}

/// Bytes that a format always has at one place.
struct Signature {
    what: &'static str,
    /// From the start or, when negative, from the end.
    at: i64,
    bytes: &'static [u8],
}

impl Signature {
    fn on(&self, head: &[u8], tail: &[u8]) -> bool {
        let (region, at) = match usize::try_from(self.at) {
            Ok(at) => (head, Some(at)),
            Err(_) => (tail, tail.len().checked_sub(self.at.unsigned_abs() as usize)),
        };
        at.and_then(|at| region.get(at..at + self.bytes.len())) == Some(self.bytes)
    }
}

const fn signature(what: &'static str, at: i64, bytes: &'static [u8]) -> Signature {
    Signature { what, at, bytes }
}

/// Offsets as in libblkid's superblock probes.
const SIGNATURES: &[Signature] = &[
    signature("a damaged GPT", 512, b"EFI PART"),
    signature("a damaged GPT", 4096, b"EFI PART"),
    signature("a damaged GPT (its backup)", -512, b"EFI PART"),
    signature("a damaged GPT (its backup)", -4096, b"EFI PART"),
    signature("an ext2, ext3 or ext4 file system", 1080, &[0x53, 0xef]),
    signature("an xfs file system", 0, b"XFSB"),
    signature("a btrfs file system", 65600, b"_BHRfS_M"),
    signature("an LVM2 volume", 512, b"LABELONE"),
    signature("an LVM2 volume", 0, b"LABELONE"),
    signature("an LVM2 volume", 1024, b"LABELONE"),
    signature("an LVM2 volume", 1536, b"LABELONE"),
    signature("a LUKS volume", 0, b"LUKS\xba\xbe"),
    signature("swap space", 4086, b"SWAPSPACE2"),
    signature("a member of an MD array", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    signature("a member of an MD array", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    signature("a member of an MD array", -8192, &[0xfc, 0x4e, 0x2b, 0xa9]),
    signature("a member of an MD array", -65536, &[0xfc, 0x4e, 0x2b, 0xa9]),
    signature("an NTFS file system", 3, b"NTFS    "),
    signature("an ISO 9660 file system", 32769, b"CD001"),
    signature("a squashfs", 0, b"hsqs"),
    signature("an MBR or a boot sector", 510, &[0x55, 0xaa]),
];

/// Whether the state on a disk is this node's. Errors say whose it is.
pub fn judge_stamp(stamp: &Stamp, go: &BootGo) -> Result<(), String> {
    let ours = Stamp::of(go);
    if stamp.site_id != ours.site_id {
        return Err(format!(
            "disk carries the state of node {} of another cluster, {} (site {}), not of {} (site {})",
            stamp.node, stamp.cluster, stamp.site_id, ours.cluster, ours.site_id
        ));
    }
    if stamp.node != ours.node {
        return Err(format!("disk carries the state of node {}, not of {}", stamp.node, ours.node));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::message::StateOrder;
    use proptest::prelude::*;

    fn disk(name: &str, serial: &str, wwn: &str, size: u64) -> Disk {
        let some = |t: &str| (!t.is_empty()).then(|| t.to_string());
        Disk { name: name.into(), serial: some(serial), wwn: some(wwn), size }
    }

    fn want(serial: &str, wwn: &str, size: u64) -> DiskMatch {
        let some = |t: &str| (!t.is_empty()).then(|| t.to_string());
        DiskMatch { serial: some(serial), wwn: some(wwn), size: (size > 0).then_some(size) }
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn exactly_one_disk_or_none() {
        let disks = [
            disk("sda", "S1", "naa.5000C500A1B2C3D4", 10 * GIB),
            disk("sdb", "S2 ", "", 10 * GIB),
            disk("sdc", "", "", 20 * GIB),
            disk("sdd", "S4", "", 1 << 20),
        ];
        for (serial, wwn, size, name) in [
            ("S1", "", 0, Some("sda")),
            ("S2", "", 0, Some("sdb")),
            ("s1", "", 0, None),
            ("", "0x5000c500a1b2c3d4", 0, Some("sda")),
            ("", "wwn-0x5000c500a1b2c3d4", 0, Some("sda")),
            ("", "", 10 * GIB, None),
            ("", "", 20 * GIB, Some("sdc")),
            ("S1", "", 10 * GIB, Some("sda")),
            ("S1", "", 20 * GIB, None),
            ("S4", "", 0, None),
            ("S9", "", 0, None),
            ("", "", 0, None),
        ] {
            let got = choose(&disks, &want(serial, wwn, size));
            assert_eq!(got.as_ref().ok().map(|d| d.name.as_str()), name, "{serial} {wwn} {size}: {got:?}");
        }
        let error = choose(&disks, &want("", "", 10 * GIB)).unwrap_err();
        assert!(error.contains("2 disks have size") && error.contains("sdd"), "{error}");
    }

    #[test]
    fn what_lies_on_a_disk_is_named() {
        let names = |n: &[&str]| Some(n.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        for (at, bytes, partitions, want) in [
            (0, &b""[..], None, "Blank"),
            (1080, &[0x53, 0xef][..], None, "an ext2, ext3 or ext4 file system"),
            (0, b"XFSB", None, "an xfs file system"),
            (512, b"LABELONE", None, "an LVM2 volume"),
            (512, b"EFI PART", None, "a damaged GPT"),
            (510, &[0x55, 0xaa], None, "an MBR or a boot sector"),
            (777, b"x", None, "data of an unknown kind"),
            (0, b"", names(&["kiln-state"]), "State(None)"),
            (0, b"", names(&["kiln-state-new"]), "Unfinished(None)"),
            (0, b"", names(&["kiln-state 0a1b2c3d"]), "State(Some(\"0a1b2c3d\"))"),
            (0, b"", names(&["kiln-state-new 0a1b2c3d"]), "Unfinished(Some(\"0a1b2c3d\"))"),
            (0, b"", names(&["kiln-state a b"]), "a GPT with partitions"),
            (0, b"", names(&["kiln-state "]), "a GPT with partitions"),
            (0, b"", names(&["kiln-stately"]), "a GPT with partitions"),
            (0, b"", names(&["kiln-state", "data"]), "a GPT with partitions"),
            (0, b"", names(&["kiln-state 0a1b2c3d", "kiln-efi", "kiln-bios"]), "State(Some(\"0a1b2c3d\"))"),
            (0, b"", names(&["kiln-state-new", "kiln-efi", "kiln-bios"]), "Unfinished(None)"),
            (0, b"", names(&["kiln-state", "kiln-bios", "kiln-efi"]), "a GPT with partitions"),
            (0, b"", names(&["kiln-state", "kiln-efi"]), "a GPT with partitions"),
            (0, b"", names(&["kiln-state", "kiln-efi", "kiln-bios", "data"]), "a GPT with partitions"),
            (0, b"", names(&["data", "kiln-efi", "kiln-bios"]), "a GPT with partitions"),
            (0, b"", names(&[]), "a GPT with partitions []"),
        ] {
            let mut head = vec![0; PROBE_BYTES];
            head[at..at + bytes.len()].copy_from_slice(bytes);
            let got = format!("{:?}", sight(&head, &[0; 512], partitions.as_deref()));
            assert!(got.contains(want), "{want}: {got}");
        }
    }

    #[test]
    fn a_large_disk_has_room_to_boot_from_and_nothing_overlaps() {
        for (bytes, want) in [
            (DISK_MIN_BYTES, vec![(1, 1, 62)]),
            (BOOT_DISK_MIN_BYTES - (1 << 20), vec![(1, 1, 8189)]),
            (BOOT_DISK_MIN_BYTES, vec![(3, 1, 1), (2, 2, 512), (1, 514, 7677)]),
        ] {
            let parts = layout(bytes, bytes - 33 * 512, "kiln-state").unwrap();
            let got: Vec<_> = parts.iter().map(|p| (p.number, p.start >> 20, p.length >> 20)).collect();
            assert_eq!(got, want, "{bytes}");
            assert!(parts.iter().all(|p| (p.kind == PartKind::State) == (p.number == 1)));
        }
        assert!(layout(1 << 20, (1 << 20) - 33 * 512, "kiln-state").is_err());
    }

    fn go(site_id: &str, node: &str) -> BootGo {
        BootGo {
            node: node.into(),
            role: "infra".into(),
            cluster: "prod".into(),
            site_id: site_id.into(),
            credential: None,
            state: StateOrder::Volatile,
            order: None,
            now_ms: 0,
        }
    }

    #[test]
    fn only_a_wipe_order_that_left_no_mark_yet_begins() {
        let (none, mark) = (None, Some("0a1b2c3d".to_string()));
        let other = Some("ffffffff".to_string());
        let seen = [
            Sight::Blank,
            Sight::Unfinished(none.clone()),
            Sight::Unfinished(mark.clone()),
            Sight::Unfinished(other.clone()),
            Sight::State(none),
            Sight::State(mark),
            Sight::State(other),
            Sight::Other("xfs".into()),
        ];
        let words = |order: Option<Disks>| -> Vec<String> {
            let order = order.map(|disks| BootOrder { id: "0a1b2c3d".into(), disks });
            let go = BootGo { order, ..go("a", "n1") };
            seen.iter().map(|s| format!("{:?}", todo(s, &go))).collect()
        };
        let as_ever =
            ["Ask", "Finish", "Finish", "Finish", "Use", "Use", "Use", "Hold(\"holds xfs; it is left as it is\")"];
        assert_eq!(words(None), as_ever);
        assert_eq!(words(Some(Disks::Keep)), as_ever);
        let (blank, state) = ("Begin(\"blank\")", "Begin(\"a state disk\")");
        let wipes = [blank, blank, "Finish", blank, state, "Use", state, "Begin(\"xfs\")"];
        assert_eq!(words(Some(Disks::Wipe)), wipes);
    }

    #[test]
    fn an_old_stamp_on_a_disk_that_is_being_wiped_finishes_nothing() {
        let order = |id: &str, disks| BootGo { order: Some(BootOrder { id: id.into(), disks }), ..go("a", "n1") };
        let (wiping, keeping, plain) = (order("0a1b2c3d", Disks::Wipe), order("0a1b2c3d", Disks::Keep), go("a", "n1"));
        let (old, new) = (Stamp::of(&plain), Stamp::of(&wiping));
        assert!(!is_made(&old, &wiping) && is_made(&new, &wiping));
        assert!(!is_made(&Stamp::of(&order("ffffffff", Disks::Wipe)), &wiping));
        assert!(is_made(&old, &keeping) && is_made(&old, &plain));
        assert_eq!(names(&plain), ("kiln-state-new".into(), "kiln-state".into()));
        assert_eq!(names(&keeping).1, "kiln-state");
        assert_eq!(names(&wiping), ("kiln-state-new 0a1b2c3d".into(), "kiln-state 0a1b2c3d".into()));
        assert!(names(&wiping).0.len() <= 36);
    }

    #[test]
    fn only_this_nodes_own_stamp_is_ours() {
        let stamp = Stamp::of(&go("a", "n1"));
        assert!(judge_stamp(&stamp, &go("a", "n1")).is_ok());
        assert!(judge_stamp(&stamp, &go("b", "n1")).unwrap_err().contains("another cluster"));
        assert!(judge_stamp(&stamp, &go("a", "n2")).unwrap_err().contains("node n1"));
        // No order changes that: disks that were mixed up are neither used nor wiped.
        for disks in [Disks::Keep, Disks::Wipe] {
            let order = Some(BootOrder { id: "0a1b2c3d".into(), disks });
            let other = BootGo { order: order.clone(), ..go("b", "n1") };
            assert!(judge_stamp(&stamp, &other).unwrap_err().contains("another cluster"), "{disks:?}");
            assert!(judge_stamp(&stamp, &BootGo { order, ..go("a", "n1") }).is_ok(), "{disks:?}");
        }
    }

    proptest! {
        /// One byte anywhere in what is looked at, and the disk is not blank.
        #[test]
        fn a_disk_with_any_byte_is_not_blank(at in 0usize..2 * 4096, byte in 1u8..) {
            let mut bytes = vec![0u8; 2 * 4096];
            bytes[at] = byte;
            let (head, tail) = bytes.split_at(4096);
            prop_assert!(matches!(sight(head, tail, None), Sight::Other(_)));
        }

        /// Whatever four disks there are: what is chosen fits, and nothing else does.
        #[test]
        fn the_chosen_disk_is_the_only_one_that_fits(
            disks in proptest::collection::vec(("[ab]{0,2}", "[cd]{0,2}", 1u64..4), 4),
            wanted in ("[ab]{0,2}", "[cd]{0,2}", 0u64..4),
        ) {
            let disks: Vec<Disk> =
                disks.iter().enumerate().map(|(i, (s, w, n))| disk(&format!("vd{i}"), s, w, n * GIB)).collect();
            let want = want(&wanted.0, &wanted.1, wanted.2 * GIB);
            let count = disks.iter().filter(|d| {
                (want.serial.is_none() || d.serial == want.serial)
                    && (want.wwn.is_none() || d.wwn == want.wwn)
                    && (want.size.is_none() || Some(d.size) == want.size)
            }).count();
            let nothing_asked = want.serial.is_none() && want.wwn.is_none() && want.size.is_none();
            match choose(&disks, &want) {
                Ok(disk) => prop_assert!(count == 1 && !nothing_asked && fits(disk, &want)),
                Err(_) => prop_assert!(count != 1 || nothing_asked),
            }
        }

        #[test]
        fn no_bytes_panic(head in proptest::collection::vec(any::<u8>(), 0..600), tail in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = sight(&head, &tail, None);
        }
    }
}
