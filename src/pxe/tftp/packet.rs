//! TFTP packets: bytes to values and back (RFC 1350 §5, 2347). Knows no policy.
//!
//! ```text
//! RRQ, WRQ  1, 2 | name 0 mode 0 [option 0 value 0]…
//! DATA      3    | block | up to blksize bytes
//! ACK       4    | block
//! ERROR     5    | code  | text 0
//! OACK      6    | [option 0 value 0]…
//! ```

/// Opcodes.
pub mod op {
    pub const RRQ: u16 = 1;
    pub const WRQ: u16 = 2;
    pub const DATA: u16 = 3;
    pub const ACK: u16 = 4;
    pub const ERROR: u16 = 5;
    pub const OACK: u16 = 6;
}

/// Error codes (RFC 1350 §5, 2347).
pub mod error {
    pub const UNDEFINED: u16 = 0;
    pub const NOT_FOUND: u16 = 1;
    pub const ACCESS: u16 = 2;
    /// The client does not want the transfer with these options.
    pub const OPTIONS: u16 = 8;
}

/// Opcode and block number before the data.
pub const DATA_HEADER_BYTES: usize = 4;
/// Longer names are nobody's.
const NAME_MAX_BYTES: usize = 255;

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Read(Request),
    Write,
    Ack(u16),
    Error { code: u16, text: String },
    Data { block: u16, length: usize },
    Oack(Vec<(String, String)>),
}

/// A read request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Normalised by [`name`].
    pub name: String,
    /// `octet` transfers bytes; others are refused.
    pub octet: bool,
    /// Options in the order of the packet, names in lower case.
    pub options: Vec<(String, String)>,
}

/// Why bytes are no TFTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("shorter than a TFTP header")]
    Short,
    #[error("an unknown opcode")]
    Opcode,
    #[error("a string without its end")]
    Unterminated,
    #[error("an option without a value")]
    Option,
    #[error("a name that is empty, too long or no text")]
    Name,
}

impl Packet {
    /// Reads one datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let [high, low, rest @ ..] = bytes else { return Err(Malformed::Short) };
        let number = || match rest {
            [high, low, ..] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(Malformed::Short),
        };
        match u16::from_be_bytes([*high, *low]) {
            op::RRQ => request(rest).map(Packet::Read),
            op::WRQ => Ok(Packet::Write),
            op::DATA => Ok(Packet::Data { block: number()?, length: bytes.len() - DATA_HEADER_BYTES }),
            op::ACK => Ok(Packet::Ack(number()?)),
            op::ERROR => {
                // Several ROMs send no end of the text, or no text.
                let text = rest.get(2..).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
                Ok(Packet::Error { code: number()?, text: String::from_utf8_lossy(text).into_owned() })
            }
            op::OACK => Ok(Packet::Oack(options(rest)?)),
            _ => Err(Malformed::Opcode),
        }
    }
}

/// An ERROR packet.
pub fn encode_error(code: u16, text: &str) -> Vec<u8> {
    let mut bytes = head(op::ERROR, code);
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

/// An OACK packet.
pub fn encode_oack(options: &[(String, String)]) -> Vec<u8> {
    let mut bytes = op::OACK.to_be_bytes().to_vec();
    push_options(&mut bytes, options);
    bytes
}

/// The header of a DATA packet.
pub fn data_header(block: u16) -> [u8; DATA_HEADER_BYTES] {
    let ([a, b], [c, d]) = (op::DATA.to_be_bytes(), block.to_be_bytes());
    [a, b, c, d]
}

/// An ACK packet (what a client sends; for tests and probes).
pub fn encode_ack(block: u16) -> Vec<u8> {
    head(op::ACK, block)
}

/// A read request (what a client sends; for tests and probes).
pub fn encode_read(name: &str, mode: &str, options: &[(String, String)]) -> Vec<u8> {
    let mut bytes = op::RRQ.to_be_bytes().to_vec();
    push_options(&mut bytes, &[(name.to_string(), mode.to_string())]);
    push_options(&mut bytes, options);
    bytes
}

fn head(opcode: u16, number: u16) -> Vec<u8> {
    [opcode.to_be_bytes(), number.to_be_bytes()].concat()
}

fn push_options(bytes: &mut Vec<u8>, options: &[(String, String)]) {
    for (name, value) in options {
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.extend(value.as_bytes());
        bytes.push(0);
    }
}

fn request(bytes: &[u8]) -> Result<Request, Malformed> {
    let (raw, rest) = string(bytes)?;
    let (mode, rest) = string(rest)?;
    Ok(Request {
        name: name(raw).ok_or(Malformed::Name)?,
        octet: mode.eq_ignore_ascii_case(b"octet"),
        options: options(rest)?,
    })
}

/// Pairs of strings. Zero bytes after the last pair are padding of some ROMs.
fn options(mut bytes: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut options = Vec::new();
    while bytes.iter().any(|b| *b != 0) {
        let (name, rest) = string(bytes)?;
        let (value, rest) = string(rest).map_err(|_| Malformed::Option)?;
        options.push((String::from_utf8_lossy(name).to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned()));
        bytes = rest;
    }
    Ok(options)
}

fn string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = bytes.iter().position(|b| *b == 0).ok_or(Malformed::Unterminated)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

/// A file's name as firmware means it: `\` is `/`, slashes are single and none leads, and the
/// END byte of option 67 that old ROMs take for a part of the name is gone. It names a known
/// artefact, not a path, so `..` has no meaning here and finds nothing.
pub fn name(raw: &[u8]) -> Option<String> {
    let end = raw.iter().rposition(|b| *b != 0xff).map_or(0, |at| at + 1);
    let text = std::str::from_utf8(&raw[..end]).ok()?.replace('\\', "/");
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    let name = parts.join("/");
    let clean = !name.is_empty() && name.len() <= NAME_MAX_BYTES && !name.chars().any(char::is_control);
    clean.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_normalised() {
        for (raw, expected) in [
            (&b"undionly.kpxe"[..], Some("undionly.kpxe")),
            (b"/undionly.kpxe\xff", Some("undionly.kpxe")),
            (b"\\Boot\\\\x64//a.efi", Some("Boot/x64/a.efi")),
            (b"../../etc/passwd", Some("../../etc/passwd")),
            (b"", None),
            (b"/", None),
            (b"\xff\xff", None),
            (b"a\xffb", None),
            (b"a\nb", None),
            (&[b'a'; 256], None),
        ] {
            assert_eq!(name(raw).as_deref(), expected, "{raw:?}");
        }
    }

    #[test]
    fn requests_are_read_as_firmware_sends_them() {
        let read = |bytes: &[u8]| match Packet::parse(bytes) {
            Ok(Packet::Read(request)) => Ok((request.name, request.octet, request.options.len())),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(read(b"\0\x01a\0octet\0"), Ok(("a".into(), true, 0)));
        assert_eq!(read(b"\0\x01a\0OCTET\0BlkSize\x001468\0tsize\x000\0"), Ok(("a".into(), true, 2)));
        assert_eq!(read(b"\0\x01a\0netascii\0"), Ok(("a".into(), false, 0)));
        assert_eq!(read(b"\0\x01a\0octet\0\0\0\0"), Ok(("a".into(), true, 0)), "padding");
        assert_eq!(read(b"\0\x01a\0octet"), Err(Malformed::Unterminated));
        assert_eq!(read(b"\0\x01a\0octet\0tsize\0"), Err(Malformed::Option));
        assert_eq!(read(b"\0\x01\0octet\0"), Err(Malformed::Name));
        assert_eq!(Packet::parse(b"\0\x01").err(), Some(Malformed::Unterminated));
        assert_eq!(Packet::parse(b"\0\x09aaaa").err(), Some(Malformed::Opcode));
        assert_eq!(Packet::parse(b"\0\x04\0").err(), Some(Malformed::Short));
        assert_eq!(Packet::parse(b"\0").err(), Some(Malformed::Short));
        assert_eq!(
            Packet::parse(b"\0\x05\0\x08User aborted\0"),
            Ok(Packet::Error { code: 8, text: "User aborted".into() })
        );
        assert_eq!(Packet::parse(b"\0\x05\0\x00"), Ok(Packet::Error { code: 0, text: String::new() }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn any_request_survives_a_round_trip(
            file in "[a-z0-9._-]{1,20}(/[a-z0-9._-]{1,20}){0,3}",
            options in proptest::collection::vec(("[a-z]{1,12}", "[0-9a-z]{0,12}"), 0..6),
        ) {
            let bytes = encode_read(&file, "octet", &options);
            prop_assert_eq!(Packet::parse(&bytes), Ok(Packet::Read(Request { name: file, octet: true, options })));
        }
    }
}
