//! Who is asking: the machine as its DHCP packet shows it. Says nothing about what it gets.

use super::dhcp::packet::{Packet, code};
use crate::site::{Mac, Uuid};
use std::net::Ipv4Addr;

/// The kind of firmware, from option 93 (RFC 4578 §2.1 with erratum 4624, IANA's registry) and
/// option 60.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Firmware {
    Bios,
    UefiX64,
    UefiX64Http,
    UefiIa32,
    UefiArm64,
    UefiArm64Http,
    /// The first type that the packet named.
    Other(u16),
}

/// How far the machine is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The firmware's PXE, loading by TFTP.
    Rom,
    /// The firmware's HTTP boot.
    HttpRom,
    /// iPXE that speaks HTTP, from ROM or loaded by us.
    Ipxe,
    /// An ordinary DHCP client.
    Os,
}

/// A machine that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub mac: Mac,
    /// SMBIOS UUID in text order; placeholders of vendors count as absent.
    pub uuid: Option<Uuid>,
    /// `None`: the packet does not say (ordinary DHCP clients).
    pub firmware: Option<Firmware>,
    pub stage: Stage,
    /// The DHCP relay between us and the machine.
    pub relay: Option<Ipv4Addr>,
}

/// iPXE's encapsulated option: feature "HTTP".
const IPXE_FEATURE_HTTP: u8 = 0x13;
/// iPXE's encapsulated option: the range of features.
const IPXE_FEATURES: std::ops::RangeInclusive<u8> = 0x10..=0x4f;

impl Machine {
    /// `None`: no Ethernet address of a single card, so nothing that we could know.
    pub fn from_packet(packet: &Packet) -> Option<Self> {
        let class = packet.get(code::VENDOR_CLASS).unwrap_or_default();
        let stage = stage(packet, class);
        Some(Machine {
            mac: packet.mac()?,
            uuid: packet.get(code::CLIENT_UUID).and_then(uuid),
            firmware: firmware(packet.get(code::CLIENT_ARCH).unwrap_or_default(), class),
            stage,
            relay: Some(packet.giaddr).filter(|a| !a.is_unspecified()),
        })
    }
}

impl Firmware {
    fn from_type(value: u16) -> Self {
        match value {
            0 => Firmware::Bios,
            6 => Firmware::UefiIa32,
            // RFC 4578 had the two the wrong way round, and firmware followed either reading.
            7 | 9 => Firmware::UefiX64,
            0x0b => Firmware::UefiArm64,
            0x10 => Firmware::UefiX64Http,
            0x13 => Firmware::UefiArm64Http,
            other => Firmware::Other(other),
        }
    }

    /// A short word for logs and for people.
    pub fn word(&self) -> String {
        match self {
            Firmware::Bios => "bios".into(),
            Firmware::UefiX64 => "uefi-x64".into(),
            Firmware::UefiX64Http => "uefi-x64-http".into(),
            Firmware::UefiIa32 => "uefi-ia32".into(),
            Firmware::UefiArm64 => "uefi-arm64".into(),
            Firmware::UefiArm64Http => "uefi-arm64-http".into(),
            Firmware::Other(value) => format!("type-{value}"),
        }
    }

    fn over_http(self) -> Self {
        match self {
            Firmware::UefiX64 => Firmware::UefiX64Http,
            Firmware::UefiArm64 => Firmware::UefiArm64Http,
            other => other,
        }
    }
}

impl Stage {
    /// A short word for logs and for people.
    pub fn word(&self) -> &'static str {
        match self {
            Stage::Rom => "rom",
            Stage::HttpRom => "http-rom",
            Stage::Ipxe => "ipxe",
            Stage::Os => "os",
        }
    }
}

fn stage(packet: &Packet, class: &[u8]) -> Stage {
    // The user class is the bare word from iPXE, length-prefixed by RFC 3004.
    let named = packet.get(code::USER_CLASS).is_some_and(|c| c == b"iPXE" || c == b"\x04iPXE");
    let features = packet.get(code::IPXE);
    if named || features.is_some() {
        // A vendor's iPXE without HTTP cannot read our script: it loads ours first.
        return if features.is_some_and(lacks_http) { Stage::Rom } else { Stage::Ipxe };
    }
    if class.starts_with(b"HTTPClient") {
        Stage::HttpRom
    } else if class.starts_with(b"PXEClient") {
        Stage::Rom
    } else {
        Stage::Os
    }
}

/// True when features are listed and HTTP is not among them.
fn lacks_http(encapsulated: &[u8]) -> bool {
    let (mut any, mut rest) = (false, encapsulated);
    while let [tag, length, tail @ ..] = rest {
        if *tag == IPXE_FEATURE_HTTP {
            return false;
        }
        any |= IPXE_FEATURES.contains(tag);
        rest = tail.get(usize::from(*length)..).unwrap_or_default();
    }
    any
}

/// Option 93 is a list; vendor class repeats one type as text for ROMs that send no option 93.
fn firmware(types: &[u8], class: &[u8]) -> Option<Firmware> {
    let http = class.starts_with(b"HTTPClient");
    let netboot = http || class.starts_with(b"PXEClient");
    let listed = types.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let known: Vec<Firmware> = listed.chain(class_type(class)).map(Firmware::from_type).collect();
    let first = known
        .iter()
        .find(|f| !matches!(f, Firmware::Other(_)))
        .or(known.first())
        .copied()
        // The oldest ROMs say PXEClient and nothing else.
        .or(netboot.then_some(Firmware::Bios))?;
    Some(if http { first.over_http() } else { first })
}

/// The number in `PXEClient:Arch:00007:UNDI:003000`.
fn class_type(class: &[u8]) -> Option<u16> {
    std::str::from_utf8(class).ok()?.split(':').skip_while(|part| *part != "Arch").nth(1)?.parse().ok()
}

/// Option 97: a zero byte, then the UUID with its first three fields little-endian (RFC 4578 §2.3
/// follows EFI). ROMs also send nothing at all.
fn uuid(option: &[u8]) -> Option<Uuid> {
    let [0, bytes @ ..] = option else { return None };
    let b: [u8; 16] = bytes.try_into().ok()?;
    let uuid =
        Uuid([b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]);
    Some(uuid).filter(|u| !u.is_junk())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(options: &[(u8, &[u8])]) -> Packet {
        let mut packet = Packet::request(Mac([0x52, 0x54, 0, 0, 0, 1]), 7);
        for (code, value) in options {
            packet.set(*code, value.to_vec());
        }
        packet
    }

    #[test]
    fn firmware_and_stage_follow_what_the_packet_says() {
        use Firmware::*;
        type Row = (&'static str, &'static [(u8, &'static [u8])], Option<Firmware>, Stage);
        let rows: &[Row] = &[
            ("plain client", &[], None, Stage::Os),
            ("dhclient's class", &[(60, b"anything")], None, Stage::Os),
            ("bare ROM", &[(60, b"PXEClient")], Some(Bios), Stage::Rom),
            ("BIOS", &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])], Some(Bios), Stage::Rom),
            ("UEFI 7", &[(60, b"PXEClient:Arch:00007:UNDI:003000"), (93, &[0, 7])], Some(UefiX64), Stage::Rom),
            ("UEFI 9", &[(60, b"PXEClient"), (93, &[0, 9])], Some(UefiX64), Stage::Rom),
            ("class only", &[(60, b"PXEClient:Arch:00007:UNDI:003000")], Some(UefiX64), Stage::Rom),
            ("list", &[(60, b"PXEClient"), (93, &[0, 99, 0, 7])], Some(UefiX64), Stage::Rom),
            ("odd length", &[(60, b"PXEClient"), (93, &[0, 7, 1])], Some(UefiX64), Stage::Rom),
            ("ia32", &[(60, b"PXEClient"), (93, &[0, 6])], Some(UefiIa32), Stage::Rom),
            ("arm64", &[(60, b"PXEClient"), (93, &[0, 11])], Some(UefiArm64), Stage::Rom),
            ("other", &[(60, b"PXEClient"), (93, &[0, 0x27])], Some(Other(0x27)), Stage::Rom),
            ("HTTP", &[(60, b"HTTPClient:Arch:00016"), (93, &[0, 16])], Some(UefiX64Http), Stage::HttpRom),
            ("HTTP as 7", &[(60, b"HTTPClient"), (93, &[0, 7])], Some(UefiX64Http), Stage::HttpRom),
            ("HTTP arm", &[(60, b"HTTPClient"), (93, &[0, 0x13])], Some(UefiArm64Http), Stage::HttpRom),
            ("iPXE", &[(60, b"PXEClient"), (77, b"iPXE"), (93, &[0, 7])], Some(UefiX64), Stage::Ipxe),
            ("iPXE RFC 3004", &[(60, b"PXEClient"), (77, b"\x04iPXE"), (93, &[0, 0])], Some(Bios), Stage::Ipxe),
            ("iPXE by 175", &[(60, b"PXEClient"), (175, &[0x13, 1, 1]), (93, &[0, 0])], Some(Bios), Stage::Ipxe),
            ("iPXE no HTTP", &[(60, b"PXEClient"), (77, b"iPXE"), (175, &[0x15, 1, 1])], Some(Bios), Stage::Rom),
        ];
        for (name, options, firmware, stage) in rows {
            let machine = Machine::from_packet(&packet(options)).unwrap();
            assert_eq!((machine.firmware, machine.stage), (*firmware, *stage), "{name}");
        }
    }

    #[test]
    fn the_uuid_is_read_in_text_order_and_junk_is_none() {
        let wire = [0, 0x44, 0x45, 0x4c, 0x4c, 0x39, 0x00, 0x10, 0x4a, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4d, 0x33, 0x32];
        let machine = Machine::from_packet(&packet(&[(97, &wire)])).unwrap();
        assert_eq!(machine.uuid.unwrap().to_string(), "4c4c4544-0039-4a10-8052-b4c04f4d3332");
        for bad in [&[][..], &[0u8; 17], &[1u8; 17], &wire[..16]] {
            assert_eq!(Machine::from_packet(&packet(&[(97, bad)])).unwrap().uuid, None, "{bad:?}");
        }
    }
}
