//! One header structure: a table of tags over a block of values. Every offset and count of a
//! hostile one is checked before it is used.
//!
//! ```text
//! 8e ad e8 01 | 0 0 0 0 | entries u32 | bytes u32 | entries × (tag, type, offset, count) | bytes
//! ```

/// rpm's own limits are 65535 tags and 256 MiB; the largest header of a distribution has some 10 MB.
pub const TAGS_MAX: u32 = 65_535;
pub const DATA_MAX_BYTES: u32 = 64 << 20;
/// Strings of one tag.
const STRINGS_MAX: u32 = 4_000_000;

pub const MAGIC: [u8; 8] = [0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0];
/// Magic and the two counts.
pub const INTRO_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// Tags that are read here (rpmtag.h).
pub mod tag {
    pub const NAME: u32 = 1000;
    pub const VERSION: u32 = 1001;
    pub const RELEASE: u32 = 1002;
    pub const EPOCH: u32 = 1003;
    pub const SUMMARY: u32 = 1004;
    pub const DESCRIPTION: u32 = 1005;
    pub const BUILD_TIME: u32 = 1006;
    pub const BUILD_HOST: u32 = 1007;
    pub const SIZE: u32 = 1009;
    pub const VENDOR: u32 = 1011;
    pub const LICENSE: u32 = 1014;
    pub const PACKAGER: u32 = 1015;
    pub const GROUP: u32 = 1016;
    pub const URL: u32 = 1020;
    pub const ARCH: u32 = 1022;
    pub const OLD_FILENAMES: u32 = 1027;
    pub const FILE_MODES: u32 = 1030;
    pub const FILE_FLAGS: u32 = 1037;
    pub const SOURCE_RPM: u32 = 1044;
    pub const ARCHIVE_SIZE: u32 = 1046;
    pub const CHANGELOG_TIME: u32 = 1080;
    pub const CHANGELOG_NAME: u32 = 1081;
    pub const CHANGELOG_TEXT: u32 = 1082;
    pub const DIR_INDEXES: u32 = 1116;
    pub const BASENAMES: u32 = 1117;
    pub const DIRNAMES: u32 = 1118;
    pub const LONG_SIZE: u32 = 5009;
    pub const PAYLOAD_DIGEST: u32 = 5092;
    pub const PAYLOAD_DIGEST_KIND: u32 = 5093;

    /// Of the signature header, which numbers some things anew.
    pub mod signature {
        pub const DSA_HEADER: u32 = 267;
        pub const RSA_HEADER: u32 = 268;
        pub const SHA1_HEADER: u32 = 269;
        pub const LONG_SIZE: u32 = 270;
        pub const LONG_ARCHIVE_SIZE: u32 = 271;
        pub const SHA256_HEADER: u32 = 273;
        pub const SIZE: u32 = 1000;
        /// RSA over header and payload.
        pub const PGP: u32 = 1002;
        pub const MD5: u32 = 1004;
        /// DSA over header and payload.
        pub const GPG: u32 = 1005;
        pub const PAYLOAD_SIZE: u32 = 1007;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u32,
    kind: u32,
    offset: u32,
    count: u32,
}

/// A parsed header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    entries: Vec<Entry>,
    data: Vec<u8>,
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// How long the header that begins with `intro` (16 bytes) is, intro included.
pub fn length(intro: &[u8]) -> Result<usize, String> {
    if intro.get(..8) != Some(&MAGIC[..]) {
        return Err("has no header where one must be".into());
    }
    let (tags, data) = (be32(intro, 8).unwrap_or(u32::MAX), be32(intro, 12).unwrap_or(u32::MAX));
    if tags == 0 || tags > TAGS_MAX || data > DATA_MAX_BYTES {
        return Err(format!("has a header of {tags} tags and {data} bytes; at most {TAGS_MAX} and {DATA_MAX_BYTES}"));
    }
    Ok(INTRO_BYTES + ENTRY_BYTES * tags as usize + data as usize)
}

impl Header {
    /// Parses a whole header ([`length`] bytes).
    pub fn parse(bytes: &[u8]) -> Result<Header, String> {
        let whole = length(bytes.get(..INTRO_BYTES).unwrap_or(bytes))?;
        if bytes.len() != whole {
            return Err(format!("has a header of {} bytes that says it has {whole}", bytes.len()));
        }
        let tags = be32(bytes, 8).unwrap_or(0) as usize;
        let (table, data) = bytes[INTRO_BYTES..].split_at(ENTRY_BYTES * tags);
        let mut entries = Vec::with_capacity(tags);
        for raw in table.chunks_exact(ENTRY_BYTES) {
            let field = |at| be32(raw, at).unwrap_or(0);
            let entry = Entry { tag: field(0), kind: field(4), offset: field(8), count: field(12) };
            if entry.offset as usize > data.len() || entry.count as usize > data.len() {
                return Err(format!("has a header whose tag {} lies outside of it", entry.tag));
            }
            entries.push(entry);
        }
        // rpm would take one of the two, kiln perhaps the other.
        let mut seen: Vec<u32> = entries.iter().map(|e| e.tag).collect();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("has a header that states tag {} twice", twice[0]));
        }
        Ok(Header { entries, data: data.to_vec() })
    }

    pub fn has(&self, tag: u32) -> bool {
        self.entries.iter().any(|e| e.tag == tag)
    }

    fn entry(&self, tag: u32, kinds: &[u32]) -> Option<(&Entry, &[u8])> {
        let entry = self.entries.iter().find(|e| e.tag == tag && kinds.contains(&e.kind))?;
        Some((entry, self.data.get(entry.offset as usize..)?))
    }

    fn numbers<const N: usize>(&self, tag: u32, kind: u32) -> Option<impl Iterator<Item = [u8; N]>> {
        let (entry, data) = self.entry(tag, &[kind])?;
        let bytes = data.get(..N.checked_mul(entry.count as usize)?)?;
        Some(bytes.chunks_exact(N).map(|c| c.try_into().unwrap_or([0; N])))
    }

    /// A list of 16 bit numbers; empty when absent or of another type.
    pub fn u16s(&self, tag: u32) -> Vec<u16> {
        self.numbers(tag, 3).map(|n| n.map(u16::from_be_bytes).collect()).unwrap_or_default()
    }

    pub fn u32s(&self, tag: u32) -> Vec<u32> {
        self.numbers(tag, 4).map(|n| n.map(u32::from_be_bytes).collect()).unwrap_or_default()
    }

    /// The first number of a 32 or 64 bit list.
    pub fn number(&self, tag: u32) -> Option<u64> {
        if let Some(n) = self.numbers(tag, 5).and_then(|mut n| n.next()) {
            return Some(u64::from_be_bytes(n));
        }
        self.u32s(tag).first().copied().map(u64::from)
    }

    pub fn bytes(&self, tag: u32) -> Option<&[u8]> {
        let (entry, data) = self.entry(tag, &[7])?;
        data.get(..entry.count as usize)
    }

    /// A text, a list of texts or a translated text (the first, C, is the original).
    pub fn strings(&self, tag: u32) -> Vec<String> {
        let Some((entry, data)) = self.entry(tag, &[6, 8, 9]) else { return Vec::new() };
        // The last value needs no more than the header's end behind it; rpm insists on a NUL.
        let values = data.split_inclusive(|b| *b == 0).filter(|v| v.ends_with(&[0]));
        values.take(entry.count.min(STRINGS_MAX) as usize).map(|v| text(&v[..v.len() - 1])).collect()
    }

    pub fn string(&self, tag: u32) -> Option<String> {
        let (_, data) = self.entry(tag, &[6, 8, 9])?;
        Some(text(&data[..data.iter().position(|b| *b == 0)?]))
    }
}

/// Old packages are not UTF-8; Latin-1 is what they nearly always are.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A header of these tags: type and bytes.
    pub fn build(tags: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
        let (mut table, mut data) = (Vec::new(), Vec::new());
        for (tag, kind, count, value) in tags {
            let align = match kind {
                3 => 2,
                4 => 4,
                5 => 8,
                _ => 1,
            };
            while data.len() % align != 0 {
                data.push(0);
            }
            for field in [*tag, *kind, data.len() as u32, *count] {
                table.extend(field.to_be_bytes());
            }
            data.extend_from_slice(value);
        }
        let mut all = MAGIC.to_vec();
        all.extend((tags.len() as u32).to_be_bytes());
        all.extend((data.len() as u32).to_be_bytes());
        [all, table, data].concat()
    }

    #[test]
    fn values_are_read_by_type() {
        let bytes = build(&[
            (tag::NAME, 6, 1, b"bash\0"),
            (tag::EPOCH, 4, 1, &7u32.to_be_bytes()),
            (tag::LONG_SIZE, 5, 1, &(1u64 << 40).to_be_bytes()),
            (tag::FILE_MODES, 3, 2, &[0x81, 0xa4, 0x41, 0xed]),
            (tag::BASENAMES, 8, 2, b"a\0b\0"),
            (tag::SUMMARY, 9, 1, b"caf\xe9\0"),
            (tag::signature::RSA_HEADER, 7, 3, &[1, 2, 3]),
        ]);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.string(tag::NAME).as_deref(), Some("bash"));
        assert_eq!((header.number(tag::EPOCH), header.number(tag::LONG_SIZE)), (Some(7), Some(1 << 40)));
        assert_eq!(header.u16s(tag::FILE_MODES), [0o100644, 0o040755]);
        assert_eq!(header.strings(tag::BASENAMES), ["a", "b"]);
        assert_eq!(header.string(tag::SUMMARY).as_deref(), Some("café"));
        assert_eq!(header.bytes(tag::signature::RSA_HEADER), Some(&[1u8, 2, 3][..]));
        assert_eq!((header.string(tag::EPOCH), header.number(tag::NAME)), (None, None), "types are not mixed");
    }

    #[test]
    fn hostile_headers_are_refused_or_read_as_nothing() {
        let twice = build(&[(tag::NAME, 6, 1, b"a\0"), (tag::NAME, 6, 1, b"b\0")]);
        assert!(Header::parse(&twice).unwrap_err().contains("tag 1000 twice"));
        let mut outside = build(&[(tag::NAME, 6, 1, b"a\0")]);
        outside[INTRO_BYTES + 8..INTRO_BYTES + 12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(Header::parse(&outside).unwrap_err().contains("lies outside"));
        let many = build(&[(tag::EPOCH, 4, 4, &[0; 4])]);
        assert!(Header::parse(&many).unwrap().u32s(tag::EPOCH).is_empty(), "a list longer than its bytes");
        let mut huge = build(&[(tag::NAME, 6, 1, b"a\0")]);
        huge[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(length(&huge).unwrap_err().contains("at most"));
        assert!(Header::parse(b"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(tags in 1u32..5, bytes in proptest::collection::vec(0u8.., 0..200)) {
            let mut all = MAGIC.to_vec();
            all.extend(tags.to_be_bytes());
            all.extend((bytes.len().saturating_sub(16 * tags as usize) as u32).to_be_bytes());
            all.extend(&bytes);
            if let Ok(header) = Header::parse(&all) {
                for entry in &header.entries {
                    let _ = (header.strings(entry.tag), header.u16s(entry.tag), header.u32s(entry.tag));
                    let _ = (header.number(entry.tag), header.bytes(entry.tag), header.string(entry.tag));
                }
            }
            let _ = Header::parse(&bytes);
        }
    }
}
