//! DHCP packets: bytes to values and back (RFC 2131 §2, 2132, 3396, 3046). Knows no policy.
//!
//! An own codec: kiln needs some twenty options, all of them as plain bytes; the crate for it
//! brings 54 others and can neither set the order of options (ROMs care) nor read overloaded fields.
//!
//! ```text
//!  0      op  htype  hlen  hops          28    chaddr (16)
//!  4      xid                            44    sname (64)
//!  8      secs       flags               108   file (128)
//!  12..27 ciaddr yiaddr siaddr giaddr    236   63 82 53 63, then options until 255
//! ```

use crate::site::Mac;
use std::net::Ipv4Addr;

/// Option codes (RFC 2132, 3046, 4578; 175 is iPXE's).
pub mod code {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const VENDOR: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_SECS: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEW_SECS: u8 = 58;
    pub const REBIND_SECS: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const USER_CLASS: u8 = 77;
    pub const RELAY_AGENT: u8 = 82;
    pub const CLIENT_ARCH: u8 = 93;
    pub const CLIENT_UUID: u8 = 97;
    pub const IPXE: u8 = 175;
    pub const END: u8 = 255;
}

/// `op` of what clients send.
pub const BOOTREQUEST: u8 = 1;
/// `op` of what servers send.
pub const BOOTREPLY: u8 = 2;
/// The bit of `flags` by which a client asks for a broadcast (RFC 2131 §2).
pub const BROADCAST_FLAG: u16 = 0x8000;
/// BOOTP's least length; some relays and ROMs drop shorter packets.
pub const LENGTH_MIN_BYTES: usize = 300;

const MAGIC: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
const HEADER_BYTES: usize = 240;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// The most that one option's length byte can say.
const OPTION_MAX_BYTES: usize = 255;

/// Option 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

impl MessageType {
    fn from_byte(byte: u8) -> Option<Self> {
        use MessageType::*;
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform].into_iter().find(|t| *t as u8 == byte)
    }

    /// A short word for logs and for people.
    pub fn word(self) -> &'static str {
        match self {
            MessageType::Discover => "discover",
            MessageType::Offer => "offer",
            MessageType::Request => "request",
            MessageType::Decline => "decline",
            MessageType::Ack => "ack",
            MessageType::Nak => "nak",
            MessageType::Release => "release",
            MessageType::Inform => "inform",
        }
    }
}

/// Why bytes are no DHCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("shorter than a BOOTP header")]
    Short,
    #[error("no DHCP magic cookie")]
    Magic,
    #[error("neither a request nor a reply")]
    Op,
    #[error("an option runs past the end")]
    Option,
}

/// One DHCP packet. Options keep their order; each code stands once, long ones joined (RFC 3396).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub op: u8,
    pub htype: u8,
    pub hlen: u8,
    pub hops: u8,
    pub xid: u32,
    pub secs: u16,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub chaddr: [u8; 16],
    pub sname: [u8; 64],
    pub file: [u8; 128],
    options: Vec<(u8, Vec<u8>)>,
}

impl Packet {
    /// An empty request of this card (for probes and tests).
    pub fn request(mac: Mac, xid: u32) -> Self {
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&mac.0);
        let none = Ipv4Addr::UNSPECIFIED;
        Packet {
            op: BOOTREQUEST,
            htype: 1,
            hlen: 6,
            hops: 0,
            xid,
            secs: 0,
            flags: 0,
            ciaddr: none,
            yiaddr: none,
            siaddr: none,
            giaddr: none,
            chaddr,
            sname: [0; 64],
            file: [0; 128],
            options: Vec::new(),
        }
    }

    /// A reply to `request`, with the fields that a server must repeat (RFC 2131 §4.3.1 table 3).
    pub fn reply_to(request: &Packet, message: MessageType) -> Self {
        let mut reply = Packet {
            op: BOOTREPLY,
            htype: request.htype,
            hlen: request.hlen,
            flags: request.flags,
            giaddr: request.giaddr,
            chaddr: request.chaddr,
            ..Packet::request(Mac([0; 6]), request.xid)
        };
        reply.set(code::MESSAGE_TYPE, vec![message as u8]);
        reply
    }

    /// Reads one datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER_BYTES {
            return Err(Malformed::Short);
        }
        if bytes[236..240] != MAGIC {
            return Err(Malformed::Magic);
        }
        if !matches!(bytes[0], BOOTREQUEST | BOOTREPLY) {
            return Err(Malformed::Op);
        }
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        let mut packet = Packet {
            op: bytes[0],
            htype: bytes[1],
            hlen: bytes[2],
            hops: bytes[3],
            xid: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            secs: u16::from_be_bytes([bytes[8], bytes[9]]),
            flags: u16::from_be_bytes([bytes[10], bytes[11]]),
            ciaddr: address(12),
            yiaddr: address(16),
            siaddr: address(20),
            giaddr: address(24),
            chaddr: array(&bytes[28..44]),
            sname: array(&bytes[SNAME]),
            file: array(&bytes[FILE]),
            options: Vec::new(),
        };
        packet.read_options(&bytes[HEADER_BYTES..])?;
        packet.read_overload()?;
        Ok(packet)
    }

    /// Options in `file`, then `sname` (RFC 2132 §9.3); the fields are empty afterwards.
    fn read_overload(&mut self) -> Result<(), Malformed> {
        let overload = self.get(code::OVERLOAD).and_then(|v| v.first().copied()).unwrap_or(0);
        self.remove(code::OVERLOAD);
        if overload & 1 != 0 {
            let file = std::mem::replace(&mut self.file, [0; 128]);
            self.read_options(&file)?;
        }
        if overload & 2 != 0 {
            let sname = std::mem::replace(&mut self.sname, [0; 64]);
            self.read_options(&sname)?;
        }
        // An overload inside an overloaded field means nothing.
        self.remove(code::OVERLOAD);
        Ok(())
    }

    fn read_options(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        loop {
            match bytes {
                // A list without its end is tolerated: some clients fill the datagram to the brim.
                [] | [code::END, ..] => return Ok(()),
                [code::PAD, rest @ ..] => bytes = rest,
                [tag, length, rest @ ..] if rest.len() >= usize::from(*length) => {
                    let (value, rest) = rest.split_at(usize::from(*length));
                    match self.options.iter_mut().find(|(c, _)| c == tag) {
                        Some((_, joined)) => joined.extend_from_slice(value),
                        None => self.options.push((*tag, value.to_vec())),
                    }
                    bytes = rest;
                }
                _ => return Err(Malformed::Option),
            }
        }
    }

    /// The packet's bytes, at least [`LENGTH_MIN_BYTES`] and, as far as dropping options from the
    /// end of the list can help, at most `max_bytes`. Option 82 comes last and is never dropped.
    pub fn encode(&self, max_bytes: usize) -> Vec<u8> {
        let mut bytes = self.header();
        let relay = self.get(code::RELAY_AGENT).map(|v| encoded(code::RELAY_AGENT, v)).unwrap_or_default();
        let room = max_bytes.saturating_sub(relay.len() + 1);
        for (tag, value) in self.options.iter().filter(|(tag, _)| *tag != code::RELAY_AGENT) {
            let option = encoded(*tag, value);
            if bytes.len() + option.len() <= room {
                bytes.extend(option);
            }
        }
        bytes.extend(relay);
        bytes.push(code::END);
        bytes.resize(bytes.len().max(LENGTH_MIN_BYTES), code::PAD);
        bytes
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![self.op, self.htype, self.hlen, self.hops];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(self.secs.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.chaddr);
        bytes.extend(self.sname);
        bytes.extend(self.file);
        bytes.extend(MAGIC);
        bytes
    }

    /// The value of an option, joined.
    pub fn get(&self, tag: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == tag).map(|(_, value)| value.as_slice())
    }

    /// The value of an option that holds one address.
    pub fn get_address(&self, tag: u8) -> Option<Ipv4Addr> {
        self.get(tag).and_then(|v| <[u8; 4]>::try_from(v).ok()).map(Ipv4Addr::from)
    }

    /// Sets an option, at its old place or at the end. Pad, end and overload are not options to set.
    pub fn set(&mut self, tag: u8, value: Vec<u8>) {
        if matches!(tag, code::PAD | code::END | code::OVERLOAD) {
            return;
        }
        match self.options.iter_mut().find(|(c, _)| *c == tag) {
            Some((_, old)) => *old = value,
            None => self.options.push((tag, value)),
        }
    }

    /// Takes an option away.
    pub fn remove(&mut self, tag: u8) {
        self.options.retain(|(c, _)| *c != tag);
    }

    /// The codes in their order.
    pub fn codes(&self) -> impl Iterator<Item = u8> + '_ {
        self.options.iter().map(|(c, _)| *c)
    }

    /// Option 53.
    pub fn message(&self) -> Option<MessageType> {
        self.get(code::MESSAGE_TYPE).filter(|v| v.len() == 1).and_then(|v| MessageType::from_byte(v[0]))
    }

    /// The client's card: Ethernet, one card's address.
    pub fn mac(&self) -> Option<Mac> {
        let mac: [u8; 6] = array(&self.chaddr[..6]);
        (self.htype == 1 && self.hlen == 6 && mac != [0; 6] && mac[0] & 1 == 0).then_some(Mac(mac))
    }

    /// Whether the client's list of wanted parameters names `tag`.
    pub fn wants(&self, tag: u8) -> bool {
        self.get(code::PARAMETERS).is_some_and(|list| list.contains(&tag))
    }

    /// `file` as text until its first zero byte.
    pub fn file_text(&self) -> String {
        let end = self.file.iter().position(|b| *b == 0).unwrap_or(self.file.len());
        String::from_utf8_lossy(&self.file[..end]).into_owned()
    }
}

/// One option; longer ones in several pieces (RFC 3396).
fn encoded(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 3);
    if value.is_empty() {
        bytes.extend([tag, 0]);
    }
    for piece in value.chunks(OPTION_MAX_BYTES) {
        bytes.extend([tag, piece.len() as u8]);
        bytes.extend(piece);
    }
    // Old ROMs read the boot file's name on to the next zero byte, past the option's end.
    if tag == code::BOOT_FILE {
        bytes.push(code::PAD);
    }
    bytes
}

/// The caller gives a slice of the right length; anything else leaves zeros.
fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    slice.try_into().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOMY: usize = usize::MAX;

    fn sample() -> Packet {
        let mut packet = Packet::request(Mac([0x52, 0x54, 0, 0, 0, 1]), 0xdead_beef);
        packet.set(code::MESSAGE_TYPE, vec![1]);
        packet
    }

    #[test]
    fn a_short_packet_is_padded_to_bootp_length() {
        let bytes = sample().encode(ROOMY);
        assert_eq!(bytes.len(), LENGTH_MIN_BYTES);
        assert_eq!(Packet::parse(&bytes), Ok(sample()));
    }

    #[test]
    fn long_options_are_split_and_joined() {
        let mut packet = sample();
        let long: Vec<u8> = (0..600u32).map(|i| i as u8).collect();
        packet.set(code::VENDOR, long.clone());
        let bytes = packet.encode(ROOMY);
        assert_eq!(Packet::parse(&bytes).unwrap().get(code::VENDOR), Some(&long[..]));
    }

    #[test]
    fn overloaded_fields_are_read_in_the_order_of_rfc_3396() {
        let mut packet = sample();
        packet.file[..4].copy_from_slice(&[12, 2, b'b', b'c']);
        packet.file[4] = code::END;
        packet.sname[..3].copy_from_slice(&[12, 1, b'd']);
        let mut bytes = packet.header();
        bytes.extend([53, 1, 3, 12, 1, b'a', 52, 1, 3, 255]);
        let parsed = Packet::parse(&bytes).unwrap();
        assert_eq!(parsed.get(code::HOST_NAME), Some(&b"abcd"[..]));
        assert_eq!((parsed.file, parsed.sname, parsed.get(code::OVERLOAD)), ([0; 128], [0; 64], None));
    }

    #[test]
    fn option_82_comes_last_unchanged_and_is_never_dropped() {
        let mut packet = sample();
        packet.set(code::RELAY_AGENT, b"\x01\x03abc".to_vec());
        packet.set(code::BOOT_FILE, vec![b'x'; 100]);
        for max in [ROOMY, LENGTH_MIN_BYTES] {
            let bytes = packet.encode(max);
            let end = bytes.iter().rposition(|b| *b == code::END).unwrap();
            assert_eq!(&bytes[end - 7..end], b"\x52\x05\x01\x03abc", "max {max}");
            assert!(bytes.len() <= max);
            assert_eq!(Packet::parse(&bytes).unwrap().get(code::BOOT_FILE).is_some(), max == ROOMY);
        }
    }

    #[test]
    fn a_zero_byte_follows_the_boot_file() {
        let mut packet = sample();
        packet.set(code::BOOT_FILE, b"undionly.kpxe".to_vec());
        let bytes = packet.encode(ROOMY);
        let at = bytes.windows(13).position(|w| w == b"undionly.kpxe").unwrap();
        assert_eq!(bytes[at + 13], code::PAD);
    }

    #[test]
    fn what_is_no_dhcp_packet_says_why() {
        let good = sample().encode(ROOMY);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Packet::parse(&bytes)
        };
        assert_eq!(Packet::parse(&good[..239]), Err(Malformed::Short));
        assert_eq!(with(236, 0), Err(Malformed::Magic));
        assert_eq!(with(0, 3), Err(Malformed::Op));
        assert_eq!(with(241, 200), Err(Malformed::Option));
        assert!(Packet::parse(&good[..240]).is_ok(), "no options at all is BOOTP");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..800)) {
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn any_options_survive_a_round_trip(tail in proptest::collection::vec(any::<u8>(), 0..600), op in 1u8..3) {
            let mut bytes = sample().header();
            bytes[0] = op;
            bytes.extend(tail);
            if let Ok(mut first) = Packet::parse(&bytes) {
                // The encoder moves option 82 to the end.
                first.options.sort_by_key(|(c, _)| *c == code::RELAY_AGENT);
                let again = Packet::parse(&first.encode(ROOMY));
                prop_assert_eq!(again, Ok(first));
            }
        }

        #[test]
        fn no_reply_grows_past_its_bound(lengths in proptest::collection::vec((1u8..255, 0usize..300), 0..20)) {
            let mut packet = sample();
            for (tag, length) in lengths.into_iter().filter(|(t, _)| *t != code::RELAY_AGENT) {
                packet.set(tag, vec![1; length]);
            }
            prop_assert!(packet.encode(548).len() <= 548);
        }
    }
}
