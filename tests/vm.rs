//! Virtual machines with real firmware, from DHCP to *ready*. Dear: run by `scripts/test`
//! (KILN_TEST_LEVEL=full, root, target/release built); quick runs only say so.

mod dear;

use dear::{full, kiln, root, succeed};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Locks and bakes a role once a run (from the cache where it can).
fn baked(role: &'static str) -> &'static str {
    static TEST: OnceLock<()> = OnceLock::new();
    static INFRA: OnceLock<()> = OnceLock::new();
    let once = if role == "zed/test" { &TEST } else { &INFRA };
    once.get_or_init(|| dear::bake(role));
    role
}

fn boot(role: &str) -> Command {
    let mut command = kiln();
    command.args(["boot", role, "--timeout", "900"]);
    command
}

#[test]
fn bios_pxe_boots_to_ready() {
    if full("bios") {
        let text = succeed(boot(baked("zed/test")).args(["--firmware", "bios"]));
        assert!(text.contains("ready"), "{text}");
    }
}

#[test]
fn uefi_pxe_boots_to_ready() {
    if full("uefi") {
        let text = succeed(boot(baked("zed/test")).args(["--firmware", "uefi"]));
        assert!(text.contains("ready"), "{text}");
    }
}

#[test]
fn uefi_http_boot_boots_to_ready() {
    if full("uefi-http") {
        let text = succeed(boot(baked("zed/test")).args(["--firmware", "uefi-http"]));
        assert!(text.contains("ready"), "{text}");
    }
}

/// dnsmasq gives the addresses, kiln only the boot file.
#[test]
fn proxy_dhcp_beside_a_real_server_boots_to_ready() {
    if full("proxy") {
        let dnsmasq = "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --bind-interfaces \
                       --interface=$KILN_BRIDGE --pid-file= --dhcp-leasefile=$KILN_BOOT_DIR/leases --user=root \
                       --dhcp-range=10.77.0.100,10.77.0.120,255.255.255.0,1h";
        let mut command = boot(baked("zed/test"));
        command.args(["--firmware", "uefi", "--dhcp", "proxy", "--beside", dnsmasq]);
        let text = succeed(&mut command);
        assert!(text.contains("ready"), "{text}");
    }
}

/// Kept when it was ready; server and machine off; the network is tried in vain, then the disk: a changed layer
/// boots nothing, the right ones bring the role and its state back.
#[test]
fn without_its_server_a_node_boots_from_its_disk() {
    if full("without server") {
        let mut command = boot(baked("zed/test"));
        command.args(["--disk", "8GiB", "--"]).arg(root().join("tests/vm/without-server"));
        println!("{}", succeed(command.env("KILN", root().join("target/release/kiln"))));
    }
}

/// mariadb, rabbitmq-server, memcached and haproxy answer from outside; ssh with the site's key
/// works, with the same host key after a reboot.
#[test]
fn infra_answers_and_keeps_its_identity_over_a_reboot() {
    if full("infra") {
        let mut command = boot(baked("zed/infra"));
        command.arg("--").arg(root().join("tests/vm/infra-outside")).env("KILN", root().join("target/release/kiln"));
        println!("{}", succeed(&mut command));
    }
}

/// An order through the firmware, then one without it: both times are printed.
#[test]
fn a_live_node_is_reimaged_by_kexec_without_its_firmware() {
    if full("kexec") {
        let mut command = boot(baked("zed/test"));
        command.arg("--").arg(root().join("tests/vm/kexec")).env("KILN", root().join("target/release/kiln"));
        let text = succeed(&mut command);
        assert!(text.contains("s by kexec"), "{text}");
        println!("{text}");
    }
}

/// Another system's disk, LVM, one with a duplicate label and a blank one: only the named disk is
/// ever written to.
#[test]
fn only_the_named_disk_is_touched() {
    if full("disks") {
        let dir = tempfile::tempdir().expect("a temporary folder");
        succeed(Command::new(root().join("tests/vm/make-disks")).arg(dir.path()));
        let disks: Vec<PathBuf> = ["other", "lvm", "twin", "blank"].iter().map(|n| dir.path().join(n)).collect();
        let before: Vec<_> = disks.iter().map(|d| kiln::sys::files::hash_file(d).expect("hashing")).collect();
        let mut command = boot(baked("zed/infra"));
        for (i, disk) in disks.iter().enumerate() {
            command.arg("--attach").arg(format!("{},other-{i}", disk.display()));
        }
        // The state disk is formatted before the switch; what follows is another test's.
        command.args(["--until", "register"]);
        succeed(&mut command);
        for (disk, before) in disks.iter().zip(before) {
            let after = kiln::sys::files::hash_file(disk).expect("hashing");
            assert!(after == before, "{} was written to", disk.display());
        }
    }
}
