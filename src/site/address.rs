//! Addresses that parse at the door.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A MAC address; shown in lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// An SMBIOS UUID in its usual text order; lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub [u8; 16]);

/// An IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    /// Host bits are zero.
    pub network: Ipv4Addr,
    /// 1 to 30.
    pub prefix: u8,
}

impl FromStr for Mac {
    type Err = String;
    /// Accepts `52:54:00:00:00:01` and `52-54-00-00-00-01`; refuses group and all-zero addresses.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a MAC address such as 52:54:00:00:00:01");
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let mut mac = [0u8; 6];
        if parts.len() != 6 {
            return Err(bad());
        }
        for (byte, part) in mac.iter_mut().zip(parts) {
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if mac == [0; 6] || mac[0] & 1 != 0 {
            return Err(format!("{text:?} is a group or zero address, not one card's"));
        }
        Ok(Mac(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a UUID");
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|g| g.len()).collect::<Vec<_>>() != [8, 4, 4, 4, 12] {
            return Err(bad());
        }
        let hex: String = groups.concat();
        let mut uuid = [0u8; 16];
        for (i, byte) in uuid.iter_mut().enumerate() {
            let pair = hex.get(i * 2..i * 2 + 2).ok_or_else(bad)?;
            if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Uuid(uuid))
    }
}

impl Uuid {
    /// Vendors ship boards with placeholder UUIDs; such a one identifies nothing.
    pub fn is_junk(&self) -> bool {
        const JUNK: [&str; 2] = ["03000200-0400-0500-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc"];
        self.0.iter().all(|b| *b == self.0[0]) || JUNK.contains(&self.to_string().as_str())
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                write!(f, "-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a network such as 192.168.10.0/24 (prefix 1 to 30)");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let network: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(1..=30).contains(&prefix) {
            return Err(bad());
        }
        let subnet = Subnet { network, prefix };
        if u32::from(network) & !u32::from(subnet.mask()) != 0 {
            return Err(format!(
                "{text:?} has host bits set; the network is {}/{prefix}",
                Ipv4Addr::from(u32::from(network) & u32::from(subnet.mask()))
            ));
        }
        Ok(subnet)
    }
}

impl Subnet {
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - self.prefix))
    }

    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !u32::from(self.mask()))
    }

    /// Whether `address` can be a host's here (network and broadcast address cannot).
    pub fn has_host(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.network)
            && address != self.network
            && address != self.broadcast()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}
as_text!(Mac);
as_text!(Uuid);
as_text!(Subnet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_at_the_door() {
        for (text, good) in [
            ("52:54:00:00:00:01", true),
            ("52-54-00-AB-cd-01", true),
            ("52:54:00:00:00", false),
            ("01:00:5e:00:00:01", false),
            ("00:00:00:00:00:00", false),
            ("+1:54:00:00:00:01", false),
        ] {
            assert_eq!(text.parse::<Mac>().is_ok(), good, "{text}");
        }
        for (text, good) in [("10.0.0.0/24", true), ("10.0.0.1/24", false), ("10.0.0.0/31", false), ("10.0.0.0", false)]
        {
            assert_eq!(text.parse::<Subnet>().is_ok(), good, "{text}");
        }
        assert!("ffffffff-ffff-ffff-ffff-ffffffffffff".parse::<Uuid>().unwrap().is_junk());
        assert!(!"4c4c4544-0039-4a10-8052-b4c04f4d3332".parse::<Uuid>().unwrap().is_junk());
        assert!("é4c4544-0039-4a10-8052-b4c04f4d3332".parse::<Uuid>().is_err());
    }
}
