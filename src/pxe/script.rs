//! Boot scripts for iPXE, filled into the templates of the top-level folder `pxe/`. Nothing that a
//! machine, a site or a recipe says can become a line or a word of the script.

use crate::image::id::{Digest, ImageId};
use crate::ledger::event::UsedImage;
use crate::ledger::text::is_kernel_argument;
use crate::site::{Mac, Network, Node, Uuid};
use std::net::{Ipv4Addr, SocketAddr};

const BOOT: &str = include_str!("../../pxe/boot.ipxe");
const HOLD: &str = include_str!("../../pxe/hold.ipxe");
const LOCAL: &str = include_str!("../../pxe/local.ipxe");

/// What every script of one machine is filled with.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where the machine reached us.
    pub server: SocketAddr,
    pub mac: Mac,
    pub uuid: Option<Uuid>,
    /// As the machine gave it; one of [`ARCHITECTURES`].
    pub architecture: Option<&'static str>,
}

/// iPXE's `${buildarch}` values.
pub const ARCHITECTURES: [&str; 4] = ["i386", "x86_64", "arm32", "arm64"];

/// What the boot script says beside the image.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    pub node: &'a Node,
    pub image: &'a UsedImage,
    pub management: &'a Network,
    /// The machine's own address.
    pub address: Ipv4Addr,
    pub tls_port: u16,
    /// sha256 of the server's TLS public key.
    pub pin: Digest,
    /// Revision of the recorded answer.
    pub answer: u64,
}

/// The kernel's arguments of a boot, or why they cannot be given.
pub fn arguments(place: &Place, boot: &Boot) -> Result<String, String> {
    let subnet = boot.management.subnet.ok_or("network.management has no subnet; add one to the site")?;
    let gateway = boot.management.gateway.map(|g| g.to_string()).unwrap_or_default();
    let mut arguments = vec![
        format!("kiln.server={}", place.server),
        format!("kiln.tls={}", boot.tls_port),
        format!("kiln.image={}", boot.image.id),
        format!("kiln.pin={}", boot.pin.hex()),
        format!("kiln.ip={}/{},{gateway},{}", boot.address, subnet.prefix, place.mac),
        format!("kiln.answer={}", boot.answer),
    ];
    arguments.extend(boot.image.cmdline.iter().chain(&boot.node.cmdline).cloned());
    if let Some(bad) = arguments.iter().find(|a| !is_kernel_argument(a)) {
        return Err(format!("kernel argument {bad:?} cannot stand in a boot script"));
    }
    Ok(arguments.join(" "))
}

/// The script that boots an image, or why there is none.
pub fn boot(place: &Place, boot: &Boot) -> Result<String, String> {
    let arguments = arguments(place, boot)?;
    Ok(fill(
        BOOT,
        &[
            ("node", &shown(&boot.node.name)),
            ("short", &boot.image.id.short()),
            ("base", &format!("http://{}/blobs/sha256", place.server)),
            ("kernel", &boot.image.kernel.hex()),
            ("initramfs", &boot.image.initramfs.hex()),
            ("arguments", &arguments),
            ("script", &url(place)),
        ],
    ))
}

/// The script that shows a reason and asks again.
pub fn hold(place: &Place, reason: &str) -> String {
    fill(HOLD, &[("reason", &shown(reason)), ("script", &url(place))])
}

/// The script that hands the machine back to its firmware.
pub fn local() -> String {
    LOCAL.to_string()
}

/// This machine's script again.
fn url(place: &Place) -> String {
    let mut url = format!("http://{}/boot/script?mac={}", place.server, place.mac);
    place.uuid.iter().for_each(|uuid| url += &format!("&uuid={uuid}"));
    place.architecture.iter().for_each(|architecture| url += &format!("&arch={architecture}"));
    url
}

/// Text that iPXE's parser leaves alone: no settings, quotes, separators or line ends.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || " ._,:/=()-+@".contains(c) { c } else { '_' };
    text.chars().take(200).map(plain).collect()
}

/// Replaces `@name@` in one pass, so that a value is never looked into.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (i, part) in template.split('@').enumerate() {
        match values.iter().find(|(name, _)| i % 2 == 1 && *name == part) {
            Some((_, value)) => out += value,
            None => out += part,
        }
    }
    out
}

/// The image of a boot script, for tests and for `kiln explain`.
pub fn image_in(script: &str) -> Option<ImageId> {
    script.split_whitespace().find_map(|word| word.strip_prefix("kiln.image="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::StateDisk;
    use proptest::prelude::*;

    fn place() -> Place {
        let mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
        Place { server: ([10, 0, 0, 1], 8080).into(), mac, uuid: None, architecture: Some("i386") }
    }

    fn script_with(cmdline: Vec<String>) -> Result<String, String> {
        let node = Node {
            name: "infra1".into(),
            role: "infra".into(),
            macs: vec![place().mac],
            uuid: None,
            address: [10, 0, 0, 11].into(),
            external_mac: None,
            state: StateDisk::Volatile,
            cmdline,
        };
        let image = UsedImage {
            id: Digest([1; 32]),
            reference: "zed/infra".into(),
            kernel: Digest([2; 32]),
            initramfs: Digest([3; 32]),
            cmdline: vec!["console=ttyS0".into()],
            architecture: "x86_64".into(),
            controller: false,
            clustered: vec![],
            secrets: vec![],
            certificates: vec![],
        };
        let management = Network {
            subnet: Some("10.0.0.0/24".parse().unwrap()),
            gateway: None,
            dns: vec![],
            ntp: vec![],
            mtu: None,
            pool: None,
            physical: None,
        };
        let address = [10, 0, 0, 11].into();
        let pin = Digest([4; 32]);
        super::boot(
            &place(),
            &Boot { node: &node, image: &image, management: &management, address, tls_port: 8443, pin, answer: 7 },
        )
    }

    #[test]
    fn the_boot_script_names_everything_by_digest() {
        let script = script_with(vec!["quiet".into()]).unwrap();
        let kernel = script.lines().find(|l| l.starts_with("kernel ")).unwrap();
        assert_eq!(
            kernel,
            format!(
                "kernel --name kernel http://10.0.0.1:8080/blobs/sha256/{k} initrd=initrd kiln.server=10.0.0.1:8080 \
                 kiln.tls=8443 kiln.image=sha256:{i} kiln.pin={p} kiln.ip=10.0.0.11/24,,52:54:00:00:00:01 \
                 kiln.answer=7 console=ttyS0 quiet || goto pause",
                k = "02".repeat(32),
                i = "01".repeat(32),
                p = "04".repeat(32)
            )
        );
        assert!(
            script.contains(
                "chain --replace --autofree http://10.0.0.1:8080/boot/script?mac=52:54:00:00:00:01&arch=i386"
            )
        );
        assert!(!script.contains('@'), "{script}");
    }

    proptest! {
        #[test]
        fn no_text_becomes_a_line_or_a_setting(text in "\\PC{0,60}|[\\n\\r${}|&;@ a]{0,20}") {
            let lines = hold(&place(), "x").lines().count();
            let script = hold(&place(), &text);
            prop_assert_eq!(script.lines().count(), lines);
            prop_assert!(!script.contains('$') && !script.contains("||  ") && !script.contains("&&"));
            let plain = script_with(vec![]).unwrap();
            if let Ok(script) = script_with(vec![text.clone()]) {
                prop_assert_eq!(script.lines().count(), plain.lines().count());
                let words = |s: &str| s.split_whitespace().count();
                prop_assert_eq!(words(&script), words(&plain) + 1);
                prop_assert_eq!(script.matches('$').count(), 0);
            }
        }
    }
}
