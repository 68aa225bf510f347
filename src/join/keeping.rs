//! What a node keeps to boot without the server, and what of it goes: of the present image and the one
//! before. Files are only named here.

use crate::image::id::ImageId;
use crate::ledger::kept::{self, DISK_ARGUMENT, IMAGES_MAX, KEPT_FILE, Kept, KeptImage};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The state disk belongs to the systems: so much of it stays free, bytes.
pub const FREE_MIN_BYTES: u64 = 1 << 30;
/// What lies on the EFI system partition beside kernels and initramfs: [`menu`], and the boot loader's own.
pub const MENU_FILE: &str = "grub.cfg";
const LOADER_FILES: [&str; 4] = [MENU_FILE, "core.img", "boot.img", "loader"];

/// Kernel arguments of a boot from the disk whose state partition is `id`: those of this boot, without the words
/// that boot loaders add.
pub fn arguments(cmdline: &str, id: &str) -> String {
    let theirs = |word: &str| {
        ["initrd=", "BOOT_IMAGE="].iter().any(|w| word.starts_with(w))
            || word.strip_prefix(DISK_ARGUMENT).is_some_and(|rest| rest.starts_with('='))
    };
    // iPXE's name for the kernel, which UEFI hands on as the first word.
    let words = cmdline.split_ascii_whitespace().enumerate().filter(|(i, word)| *i > 0 || *word != "kernel");
    let mut kept: Vec<&str> = words.map(|(_, word)| word).filter(|word| !theirs(word)).collect();
    let disk = format!("{DISK_ARGUMENT}={id}");
    kept.push(&disk);
    kept.join(" ")
}

/// The list once `new` is all there: it comes first.
pub fn with(before: &Kept, new: KeptImage) -> Kept {
    let others = before.images.iter().filter(|k| k.handover.image != new.handover.image).cloned();
    Kept { images: std::iter::once(new.clone()).chain(others).take(IMAGES_MAX).collect() }
}

/// What of the list stays while `image` is brought: what goes must no longer be named when it goes.
pub fn staying(before: &Kept, image: ImageId) -> Kept {
    let mut others = 0;
    let stays = |k: &&KeptImage| {
        others += usize::from(k.handover.image != image);
        k.handover.image == image || others < IMAGES_MAX
    };
    Kept { images: before.images.iter().filter(stays).cloned().collect() }
}

/// Names of files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// On the state partition.
    pub state: BTreeSet<String>,
    /// On the EFI system partition.
    pub efi: BTreeSet<String>,
}

/// All files that these images need.
pub fn files(kept: &Kept) -> Result<Files, String> {
    let mut files = Files { state: [KEPT_FILE.to_string()].into(), efi: LOADER_FILES.map(String::from).into() };
    for image in &kept.images {
        let image = image.image()?;
        files.state.extend(kept::blobs(&image).map(|b| b.digest.hex()));
        files.efi.extend([image.kernel(), image.initramfs()].map(|b| b.digest.hex()));
    }
    Ok(files)
}

/// Of the files that were found, those that nobody needs: an older image's, and what a power cut left half done.
pub fn superfluous(found: Vec<String>, wanted: &BTreeSet<String>) -> Vec<String> {
    found.into_iter().filter(|name| !wanted.contains(name)).collect()
}

/// Whether `need` bytes fit and leave `least` free.
pub fn room(free: u64, need: u64, least: u64) -> Result<(), String> {
    if need > 0 && free < need + least {
        return Err(format!("{} MiB are free, {} are needed", free >> 20, (need + least) >> 20));
    }
    Ok(())
}

/// GRUB's configuration: the newest image, and the one before if that does not load.
pub fn menu(kept: &Kept) -> Result<String, String> {
    let mut text = String::from("# Written by kiln-node.\nset default=0\nset fallback=1\nset timeout=1\n");
    for entry in &kept.images {
        let image = entry.image()?;
        let words: Vec<String> = entry.arguments.split_ascii_whitespace().map(quoted).collect();
        let _ = write!(
            text,
            "menuentry 'kiln {}' {{\n  linux /kiln/{} {}\n  initrd /kiln/{}\n}}\n",
            image.id.short(),
            image.kernel().digest.hex(),
            words.join(" "),
            image.initramfs().digest.hex()
        );
    }
    Ok(text)
}

/// As GRUB's scripts quote a word.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::id::Digest;
    use crate::image::manifest::Manifest;
    use crate::image::sign;
    use crate::ledger::message::{BootGo, BootOrder, Disks, Handover, StateOrder};

    /// An image whose kernel is its own and whose base layer all share.
    fn image(name: &str) -> KeptImage {
        let blob = |text: String| (Digest::of(text.as_bytes()), 1);
        let layers = [("base", blob("base".into())), ("role", blob(format!("role {name}")))];
        let (config, kernel) = (blob(format!("config {name}")), blob(format!("kernel {name}")));
        let manifest = Manifest::new(config, kernel, blob("initramfs".into()), &layers).encode();
        let handover = Handover {
            server: "10.0.0.1:8080".into(),
            tls: "10.0.0.1:8443".into(),
            pin: String::new(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            boot_id: "b".into(),
            image: Digest::of(&manifest),
            go: BootGo {
                node: "n1".into(),
                role: "infra".into(),
                cluster: "prod".into(),
                site_id: "a".into(),
                credential: Some("secret".into()),
                state: StateOrder::Volatile,
                order: Some(BootOrder { id: "order-1".into(), disks: Disks::Wipe }),
                now_ms: 0,
            },
            state_dir: None,
            boot_disk: None,
            plain: false,
        };
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        KeptImage::new(&handover, sign::sign(&manifest, &key), format!("console=ttyS0 it's={name}"))
    }

    fn kept(names: &[&str]) -> Kept {
        Kept { images: names.iter().map(|n| image(n)).collect() }
    }

    #[test]
    fn nothing_of_one_boot_is_kept() {
        let text = serde_json::to_string(&kept(&["a"])).unwrap();
        assert!(!text.contains("secret") && !text.contains("order-1"), "{text}");
        assert_eq!(image("a").image().unwrap().id, image("a").handover.image);
    }

    #[test]
    fn the_present_image_comes_first_and_one_before_it_stays() {
        for (before, new, staying_, after) in [
            (&[][..], "a", &[][..], &["a"][..]),
            (&["a"], "a", &["a"], &["a"]),
            (&["a"], "b", &["a"], &["b", "a"]),
            (&["b", "a"], "c", &["b"], &["c", "b"]),
            (&["b", "a"], "a", &["b", "a"], &["a", "b"]),
            (&["b", "a"], "b", &["b", "a"], &["b", "a"]),
        ] {
            let (before, new) = (kept(before), image(new));
            assert_eq!(staying(&before, new.handover.image), kept(staying_), "{before:?}");
            assert_eq!(with(&before, new), kept(after), "{before:?}");
        }
    }

    #[test]
    fn only_what_neither_image_needs_goes() {
        let wanted = files(&kept(&["b", "a"])).unwrap();
        let hex = |text: &str| Digest::of(text.as_bytes()).hex();
        let found = |names: &[String]| names.to_vec();
        let (gone, part) = (hex("role c"), format!("{}.part", hex("role b")));
        let state = found(&[KEPT_FILE.into(), hex("base"), hex("role a"), hex("config b"), gone.clone(), part.clone()]);
        assert_eq!(superfluous(state, &wanted.state), [gone, part]);
        let efi = found(&["grub.cfg".into(), "loader".into(), hex("kernel a"), hex("initramfs"), hex("kernel c")]);
        assert_eq!(superfluous(efi, &wanted.efi), [hex("kernel c")]);
    }

    #[test]
    fn arguments_are_those_of_the_boot_and_one_marker() {
        for (cmdline, want) in [
            ("initrd=initrd console=ttyS0 kiln.ip=a,b quiet\n", "console=ttyS0 kiln.ip=a,b quiet kiln.disk=G"),
            ("kernel initrd=initrd kernel quiet", "kernel quiet kiln.disk=G"),
            ("BOOT_IMAGE=/kiln/ab quiet kiln.disk=OLD", "quiet kiln.disk=G"),
        ] {
            assert_eq!(arguments(cmdline, "G"), want);
        }
    }

    #[test]
    fn the_menu_quotes_what_a_site_may_write() {
        let menu = menu(&kept(&["b", "a"])).unwrap();
        let at = |text: &str| menu.find(text).unwrap_or_else(|| panic!("{text} in {menu}"));
        assert!(at("set default=0") < at("'it'\\''s=b'") && at("'it'\\''s=b'") < at("'it'\\''s=a'"));
        assert!(at(&format!("  linux /kiln/{} 'console=ttyS0'", Digest::of(b"kernel b").hex())) > 0);
        assert!(at(&format!("  initrd /kiln/{}\n", Digest::of(b"initramfs").hex())) > 0);
    }

    #[test]
    fn a_full_disk_is_left_alone() {
        const MIB: u64 = 1 << 20;
        assert!(room(100 * MIB, 50 * MIB, 50 * MIB).is_ok());
        assert!(room(0, 0, FREE_MIN_BYTES).is_ok(), "nothing is missing");
        assert_eq!(room(99 * MIB, 50 * MIB, 50 * MIB).unwrap_err(), "99 MiB are free, 100 are needed");
    }
}
