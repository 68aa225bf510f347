//! Which kernel modules the initramfs carries: what the recipe asks for, or all that can reach a
//! boot server and a state disk; always what kiln-node itself needs; each with its dependencies.

use crate::image::kmod::{Index, name_of};
use std::collections::BTreeSet;

/// What kiln-node uses whatever the hardware is (those that are builtin or unknown are no loss).
const ALWAYS: &[&str] = &[
    "squashfs",
    "loop",
    "overlay",
    "ext4",
    "af_packet",
    "virtio_pci",
    "crc32c_generic",
    "crc32c_intel",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "dm_mod",
    "virtio_rng",
];

/// Folders whose modules reach a network or a disk of a server.
const DEFAULT_FOLDERS: &[&str] = &[
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/hyperv/",
    "kernel/drivers/net/vmxnet3/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/mdio/",
    "kernel/drivers/virtio/",
    "kernel/drivers/ata/",
    "kernel/drivers/scsi/",
    "kernel/drivers/nvme/",
    "kernel/drivers/message/",
    "kernel/drivers/usb/host/",
    "kernel/drivers/usb/storage/",
    "kernel/drivers/hv/",
];
/// Single modules beside those folders.
const DEFAULT_MODULES: &[&str] = &[
    "virtio_net",
    "virtio_blk",
    "xen_netfront",
    "xen_blkfront",
    "usbhid",
    "hid_generic",
    "8021q",
    "bonding",
    "pcnet32",
];
/// Below those folders, what no server boots from: laptops' ports, tape, test drivers, targets.
const NEVER: &[&str] = &[
    "kernel/drivers/ata/pata_",
    "kernel/drivers/scsi/pcmcia/",
    "kernel/drivers/scsi/osst",
    "kernel/drivers/scsi/st.ko",
    "kernel/drivers/scsi/scsi_debug",
    "kernel/drivers/scsi/ch.ko",
    "kernel/drivers/net/ethernet/8390/",
    "kernel/drivers/nvme/target/",
];

/// The chosen modules with all that they need. `asked`: the recipe's list; one that the kernel
/// neither has as a module nor built in is an error that names it.
pub fn choose(index: &Index, asked: Option<&[String]>) -> Result<BTreeSet<String>, String> {
    let mut roots: Vec<String> = ALWAYS.iter().map(|m| m.to_string()).collect();
    match asked {
        Some(asked) => {
            let known = |m: &&String| {
                let name = name_of(m);
                index.paths.contains_key(&name) || index.builtin.contains(&name)
            };
            let unknown: Vec<&str> = asked.iter().filter(|m| !known(m)).map(String::as_str).collect();
            if !unknown.is_empty() {
                return Err(format!("the kernel has no module {}", unknown.join(", ")));
            }
            roots.extend(asked.iter().cloned());
        }
        None => {
            roots.extend(DEFAULT_MODULES.iter().map(|m| m.to_string()));
            let wanted = |path: &str| {
                DEFAULT_FOLDERS.iter().any(|f| path.starts_with(f)) && !NEVER.iter().any(|n| path.starts_with(n))
            };
            roots.extend(index.paths.iter().filter(|(_, path)| wanted(path)).map(|(name, _)| name.clone()));
        }
    }
    Ok(roots.iter().flat_map(|m| index.load_order(m)).collect())
}

/// depmod's files for the chosen modules only: (name, text). Paths end in `.ko`, since the
/// initramfs carries modules unpacked.
pub fn trimmed(index: &Index, chosen: &BTreeSet<String>, softdep: &str, builtin: &str) -> Vec<(&'static str, String)> {
    let (mut dep, mut alias) = (String::new(), String::new());
    for name in chosen {
        let needs = index.needs.get(name).into_iter().flatten();
        let needs: Vec<String> = needs.filter_map(|n| index.paths.get(n)).map(|p| plain(p)).collect();
        if let Some(path) = index.paths.get(name) {
            dep += &format!("{}:{}{}\n", plain(path), if needs.is_empty() { "" } else { " " }, needs.join(" "));
        }
    }
    for (glob, module) in index.aliases.iter().filter(|(_, module)| chosen.contains(module)) {
        alias += &format!("alias {glob} {module}\n");
    }
    let of_chosen = |line: &&str| line.split_whitespace().nth(1).is_some_and(|m| chosen.contains(&name_of(m)));
    let softdep: String = softdep.lines().filter(of_chosen).map(|l| format!("{l}\n")).collect();
    vec![
        ("modules.dep", dep),
        ("modules.alias", alias),
        ("modules.softdep", softdep),
        ("modules.builtin", builtin.to_string()),
    ]
}

/// A module's path without the ending of its compression.
pub fn plain(path: &str) -> String {
    path.split_once(".ko").map_or_else(|| path.to_string(), |(stem, _)| format!("{stem}.ko"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/net/virtio_net.ko.xz: kernel/net/core/failover.ko.xz\nkernel/net/core/failover.ko.xz:\nkernel/fs/overlayfs/overlay.ko.xz:\nkernel/drivers/net/ethernet/intel/e1000/e1000.ko.xz:\nkernel/drivers/net/wireless/ath/ath.ko.xz:\n";
    const ALIAS: &str = "alias virtio:d00000001v* virtio_net\nalias pci:v00008086d* e1000\n";

    fn index() -> Index {
        Index::parse(DEP, ALIAS, "", "kernel/drivers/virtio/virtio_pci.ko\n")
    }

    #[test]
    fn what_is_asked_for_comes_with_its_dependencies() {
        let chosen = choose(&index(), Some(&["virtio-net".into(), "virtio_pci".into()])).unwrap();
        assert_eq!(chosen.iter().map(String::as_str).collect::<Vec<_>>(), ["failover", "overlay", "virtio_net"]);
        let files = trimmed(&index(), &chosen, "softdep virtio_net pre: x\nsoftdep e1000 pre: y\n", "b\n");
        assert!(files[0].1.contains("kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko\n"));
        assert_eq!(files[1].1, "alias virtio:d00000001v* virtio_net\n");
        assert_eq!(files[2].1, "softdep virtio_net pre: x\n");
    }

    #[test]
    fn an_unknown_module_is_named() {
        assert!(choose(&index(), Some(&["nosuch".into()])).unwrap_err().contains("nosuch"));
    }

    #[test]
    fn the_default_is_wired_networks_and_disks() {
        let chosen = choose(&index(), None).unwrap();
        assert!(chosen.contains("e1000") && chosen.contains("virtio_net") && !chosen.contains("ath"));
    }
}
