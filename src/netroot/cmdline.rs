//! The kernel command line as the boot script writes it: where the server is, which image, which
//! address. Nothing in it is secret. Words of others are left alone.

use crate::image::id::{Digest, ImageId};
use crate::ledger::kept::DISK_ARGUMENT;
use crate::site::Mac;
use std::net::{Ipv4Addr, SocketAddrV4};

/// What this boot is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline {
    /// The nodes' plain HTTP side.
    pub server: SocketAddrV4,
    /// Port of the nodes' TLS side, at the same address.
    pub tls_port: u16,
    pub image: ImageId,
    /// sha256 of the SubjectPublicKeyInfo of the site's TLS key.
    pub pin: Digest,
    pub ip: Ip,
    /// Id of the boot script's answer; empty when absent.
    pub answer: String,
    /// This boot came from the state disk whose partition has this GUID, not from the server.
    pub disk: Option<String>,
}

/// The address that iPXE's lease gave, and the card that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub address: Ipv4Addr,
    /// 1 to 32.
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub mac: Mac,
}

impl Cmdline {
    /// `ADDR:PORT` of the TLS side.
    pub fn tls(&self) -> SocketAddrV4 {
        SocketAddrV4::new(*self.server.ip(), self.tls_port)
    }
}

/// Parses `/proc/cmdline`. Errors name every problem, one a line.
pub fn parse(text: &str) -> Result<Cmdline, Vec<String>> {
    let mut problems = Vec::new();
    let server = field(text, "kiln.server", "ADDR:PORT", &mut problems, |t| {
        t.parse::<SocketAddrV4>().map_err(|_| "is not ADDR:PORT".to_string())
    });
    let tls_port = field(text, "kiln.tls", "PORT", &mut problems, |t| match t.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("is not a port".to_string()),
    });
    let image = field(text, "kiln.image", "sha256:HEX", &mut problems, str::parse::<Digest>);
    let pin = field(text, "kiln.pin", "sha256 HEX", &mut problems, str::parse::<Digest>);
    let ip = field(text, "kiln.ip", "ADDRESS/PREFIX,GATEWAY,MAC", &mut problems, parse_ip);
    let answer = word(text, "kiln.answer").unwrap_or_default().to_string();
    let disk = word(text, DISK_ARGUMENT).map(str::to_ascii_lowercase);
    match (server, tls_port, image, pin, ip) {
        (Some(server), Some(tls_port), Some(image), Some(pin), Some(ip)) => {
            Ok(Cmdline { server, tls_port, image, pin, ip, answer, disk })
        }
        _ => Err(problems),
    }
}

/// The value of the last `key=value` word: later words win, as in the kernel.
fn word<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_ascii_whitespace().filter_map(|w| w.strip_prefix(key)?.strip_prefix('=')).next_back()
}

fn field<T>(
    text: &str,
    key: &str,
    form: &str,
    problems: &mut Vec<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let Some(value) = word(text, key) else {
        problems.push(format!("{key}={form} is missing from the kernel command line"));
        return None;
    };
    parse(value).map_err(|e| problems.push(format!("{key}={value}: {e}"))).ok()
}

fn parse_ip(text: &str) -> Result<Ip, String> {
    let parts: Vec<&str> = text.split(',').collect();
    let [network, gateway, mac] = parts[..] else {
        return Err("is not ADDRESS/PREFIX,GATEWAY,MAC".into());
    };
    let (address, prefix) = network.split_once('/').ok_or("has no /PREFIX after the address")?;
    let address: Ipv4Addr = address.parse().map_err(|_| format!("{address:?} is not an IPv4 address"))?;
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback() {
        return Err(format!("{address} is not a host's address"));
    }
    // iPXE writes a prefix from its netmask setting; some scripts hand the mask itself.
    let prefix = match prefix.parse::<u8>() {
        Ok(prefix @ 1..=32) => prefix,
        _ => prefix_of_mask(prefix).ok_or_else(|| format!("{prefix:?} is not a prefix of 1 to 32"))?,
    };
    let gateway = match gateway {
        "" | "0.0.0.0" => None,
        text => Some(text.parse().map_err(|_| format!("gateway {text:?} is not an IPv4 address"))?),
    };
    Ok(Ip { address, prefix, gateway, mac: mac.parse()? })
}

/// `255.255.255.0` -> 24; `None` for what is no mask.
fn prefix_of_mask(text: &str) -> Option<u8> {
    let mask = u32::from(text.parse::<Ipv4Addr>().ok()?);
    let prefix = mask.leading_ones();
    (prefix > 0 && mask.checked_shl(prefix).unwrap_or(0) == 0).then_some(prefix as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn line(ip: &str) -> String {
        format!(
            "console=ttyS0 kiln.server=10.0.0.1:8080 kiln.tls=8443 kiln.image=sha256:{HEX} kiln.pin={HEX} kiln.ip={ip} kiln.answer=a7 quiet\n"
        )
    }

    #[test]
    fn a_boot_scripts_line_is_read() {
        let got = parse(&line("10.0.0.11/24,10.0.0.1,52:54:00:00:00:01")).unwrap();
        assert_eq!(got.tls().to_string(), "10.0.0.1:8443");
        assert_eq!((got.ip.address.to_string().as_str(), got.ip.prefix), ("10.0.0.11", 24));
        assert_eq!(got.ip.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!((got.image.hex().as_str(), got.answer.as_str()), (HEX, "a7"));
        assert_eq!(got.disk, None);
        let from_disk = line("10.0.0.11/24,,52:54:00:00:00:01").replace("quiet", "quiet kiln.disk=AB-1");
        assert_eq!(parse(&from_disk).unwrap().disk.as_deref(), Some("ab-1"));
    }

    #[test]
    fn addresses_in_their_forms() {
        for (ip, want) in [
            ("10.0.0.11/24,,52:54:00:00:00:01", Some((24, false))),
            ("10.0.0.11/255.255.255.0,0.0.0.0,52-54-00-00-00-01", Some((24, false))),
            ("10.0.0.11/32,10.0.0.1,52:54:00:00:00:01", Some((32, true))),
            ("10.0.0.11/255.255.255.255,10.0.0.1,52:54:00:00:00:01", Some((32, true))),
            ("10.0.0.11/255.0.255.0,10.0.0.1,52:54:00:00:00:01", None),
            ("10.0.0.11/0,10.0.0.1,52:54:00:00:00:01", None),
            ("10.0.0.11/33,10.0.0.1,52:54:00:00:00:01", None),
            ("10.0.0.11,10.0.0.1,52:54:00:00:00:01", None),
            ("127.0.0.1/8,,52:54:00:00:00:01", None),
            ("10.0.0.11/24,10.0.0.1,01:00:5e:00:00:01", None),
            ("10.0.0.11/24,gate,52:54:00:00:00:01", None),
        ] {
            let got = parse(&line(ip)).ok().map(|c| (c.ip.prefix, c.ip.gateway.is_some()));
            assert_eq!(got, want, "{ip}");
        }
    }

    #[test]
    fn every_problem_is_named_and_the_last_word_wins() {
        let problems = parse("kiln.server=host:80 kiln.tls=0").unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
        for key in ["kiln.server", "kiln.tls", "kiln.image", "kiln.pin", "kiln.ip"] {
            assert!(problems.iter().any(|p| p.starts_with(key)), "{key} in {problems:?}");
        }
        let twice = format!("{} kiln.tls=9443", line("10.0.0.11/24,,52:54:00:00:00:01"));
        assert_eq!(parse(&twice).unwrap().tls_port, 9443);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(kiln\\.(server|tls|image|pin|ip|answer)=[ -~]{0,40} ?){0,8}|\\PC{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(a in 1u8..=126, d in 1u8..=254, prefix in 1u8..=32, tail in any::<[u8; 5]>(), port in 1u16..) {
            prop_assume!(a != 127);
            let address = Ipv4Addr::new(a, 0, 0, d);
            let mac = Mac([0x52, tail[0], tail[1], tail[2], tail[3], tail[4]]);
            let text = format!("kiln.server={address}:{port} kiln.tls={port} kiln.image={HEX} kiln.pin={HEX} kiln.ip={address}/{prefix},{address},{mac}");
            let got = parse(&text).unwrap();
            prop_assert_eq!(got.ip, Ip { address, prefix, gateway: Some(address), mac });
            prop_assert_eq!((got.server, got.tls_port), (SocketAddrV4::new(address, port), port));
        }
    }
}
