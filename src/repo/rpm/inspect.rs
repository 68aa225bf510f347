//! A package file looked at as its bytes go by, once: headers kept, checksums taken. Works on
//! pushed pieces, so a file, a download and a tarball's member are the same to it.

use super::header::{self, Header, INTRO_BYTES, tag};
use crate::repo::digest::{self, Checksum, Hasher, Kind};

const LEAD_BYTES: usize = 96;
const LEAD_MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];

/// Lead, signature header and main header of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub signature: Header,
    pub main: Header,
    /// The main header's own bytes, which signatures cover.
    pub main_bytes: Vec<u8>,
    /// Where the main header begins in the file; what goes before is not covered by signatures.
    pub start: u64,
}

impl Head {
    /// Where the payload begins.
    pub fn end(&self) -> u64 {
        self.start + self.main_bytes.len() as u64
    }
}

/// How much is checked beside the headers. Each costs a second pass of a hash over the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Checksum of the whole file.
    pub file: Option<Kind>,
    /// The payload against the header's own digest of it, or against MD5 where that is all there is.
    pub payload: bool,
}

/// What a package's bytes were.
#[derive(Debug)]
pub struct Inspection {
    /// `Err`: why it is no package.
    pub head: Result<Head, String>,
    pub bytes: u64,
    pub checksum: Option<Checksum>,
    /// What does not fit together inside the package.
    pub faults: Vec<String>,
}

/// A package that is going by.
pub struct Inspector {
    want: Want,
    bytes: u64,
    file: Option<Hasher>,
    buffer: Vec<u8>,
    head: Option<Result<Head, String>>,
    payload: Option<(Hasher, Checksum)>,
    md5: Option<(Hasher, Checksum)>,
}

impl Inspector {
    pub fn new(want: Want) -> Inspector {
        let file = want.file.map(Hasher::new);
        Inspector { want, bytes: 0, file, buffer: Vec::new(), head: None, payload: None, md5: None }
    }

    /// The headers, once they have gone by.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()?.as_ref().ok()
    }

    /// Takes the next bytes; returns those of them that belong to the payload.
    pub fn push<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        self.bytes += chunk.len() as u64;
        if let Some(hasher) = &mut self.file {
            hasher.update(chunk);
        }
        let mut rest = chunk;
        while self.head.is_none() && !rest.is_empty() {
            let wanted = match wanted(&self.buffer) {
                Ok(n) => n,
                Err(why) => {
                    self.head = Some(Err(why));
                    return &[];
                }
            };
            let (now, later) = rest.split_at(rest.len().min(wanted - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if let Some(head) = parse(&self.buffer).transpose() {
                self.begin(head);
            }
        }
        for (hasher, _) in self.payload.iter_mut().chain(&mut self.md5) {
            hasher.update(rest);
        }
        rest
    }

    fn begin(&mut self, head: Result<Head, String>) {
        self.buffer = Vec::new();
        if let Ok(head) = &head
            && self.want.payload
        {
            let stated = head.main.string(tag::PAYLOAD_DIGEST);
            let kind = head.main.number(tag::PAYLOAD_DIGEST_KIND).and_then(|n| Kind::of_number(n as u32));
            let stated = stated.and_then(|hex| Checksum::new(kind.unwrap_or(Kind::Sha256), &hex).ok());
            self.payload = stated.map(|checksum| (Hasher::new(checksum.kind), checksum));
            if self.payload.is_none()
                && let Some(md5) = head.signature.bytes(tag::signature::MD5)
            {
                let mut hasher = Hasher::new(Kind::Md5);
                hasher.update(&head.main_bytes);
                self.md5 = Some((hasher, Checksum { kind: Kind::Md5, hex: digest::hex(md5) }));
            }
        }
        self.head = Some(head);
    }

    pub fn finish(self) -> Inspection {
        let head = self.head.unwrap_or_else(|| Err(format!("ends after {} bytes, in its header", self.bytes)));
        let mut faults = Vec::new();
        if let Ok(head) = &head {
            faults.extend(faults_of_header(head));
            let size = head.signature.number(tag::signature::LONG_SIZE);
            let size = size.or_else(|| head.signature.number(tag::signature::SIZE));
            let found = self.bytes - head.start;
            if let Some(size) = size.filter(|size| *size != found) {
                faults.push(format!("has {found} bytes of header and payload, its own header says {size}"));
            }
            let taken = [("payload", self.payload), ("header and payload", self.md5)];
            for (what, (hasher, stated)) in taken.into_iter().filter_map(|(what, t)| Some((what, t?))) {
                let found = hasher.finish();
                if found != stated {
                    faults.push(format!("has a {what} of {found}, its own header says {}", stated.hex));
                }
            }
        }
        Inspection { head, bytes: self.bytes, checksum: self.file.map(Hasher::finish), faults }
    }
}

fn faults_of_header(head: &Head) -> Vec<String> {
    let mut faults = Vec::new();
    for (tag, kind) in [(tag::signature::SHA1_HEADER, Kind::Sha1), (tag::signature::SHA256_HEADER, Kind::Sha256)] {
        let Some(stated) = head.signature.string(tag) else { continue };
        let found = digest::of(kind, &head.main_bytes);
        if !stated.eq_ignore_ascii_case(&found.hex) {
            faults.push(format!("has a main header of {found}, its signature header says {stated}"));
        }
    }
    faults
}

/// How many bytes the buffer must have before more can be said.
fn wanted(buffer: &[u8]) -> Result<usize, String> {
    if buffer.len() < LEAD_BYTES + INTRO_BYTES {
        return Ok(LEAD_BYTES + INTRO_BYTES);
    }
    if buffer[..4] != LEAD_MAGIC {
        return Err("is no RPM package".into());
    }
    let start = start(buffer)?;
    if buffer.len() < start + INTRO_BYTES {
        return Ok(start + INTRO_BYTES);
    }
    Ok(start + header::length(&buffer[start..start + INTRO_BYTES])?)
}

/// Where the main header begins.
fn start(buffer: &[u8]) -> Result<usize, String> {
    let length = header::length(&buffer[LEAD_BYTES..LEAD_BYTES + INTRO_BYTES])?;
    Ok(LEAD_BYTES + length.next_multiple_of(8))
}

/// The headers, if all of them are there.
fn parse(buffer: &[u8]) -> Result<Option<Head>, String> {
    if buffer.len() < LEAD_BYTES + INTRO_BYTES || wanted(buffer)? > buffer.len() {
        return Ok(None);
    }
    let start = start(buffer)?;
    let length = header::length(&buffer[LEAD_BYTES..LEAD_BYTES + INTRO_BYTES])?;
    let signature = Header::parse(&buffer[LEAD_BYTES..LEAD_BYTES + length])?;
    let main_bytes = buffer[start..].to_vec();
    Ok(Some(Head { signature, main: Header::parse(&main_bytes)?, main_bytes, start: start as u64 }))
}

#[cfg(test)]
pub mod tests {
    use super::header::tests::build;
    use super::*;

    /// A package of these tags and this payload, with the digests that rpm would give it.
    pub fn package(tags: &[(u32, u32, u32, &[u8])], payload: &[u8]) -> Vec<u8> {
        let digest = digest::of(Kind::Sha256, payload).hex + "\0";
        let number = 8u32.to_be_bytes();
        let mut tags = tags.to_vec();
        tags.push((tag::PAYLOAD_DIGEST, 8, 1, digest.as_bytes()));
        tags.push((tag::PAYLOAD_DIGEST_KIND, 4, 1, &number));
        let main = build(&tags);
        let sha = digest::of(Kind::Sha256, &main).hex + "\0";
        let size = ((main.len() + payload.len()) as u32).to_be_bytes();
        let mut hasher = Hasher::new(Kind::Md5);
        hasher.update(&main);
        hasher.update(payload);
        let md5: Vec<u8> =
            (0..16).scan(hasher.finish().hex, |hex, i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect();
        let mut signature = build(&[
            (tag::signature::SHA256_HEADER, 6, 1, sha.as_bytes()),
            (tag::signature::SIZE, 4, 1, &size),
            (tag::signature::MD5, 7, 16, &md5),
        ]);
        signature.resize(signature.len().next_multiple_of(8), 0);
        let mut lead = LEAD_MAGIC.to_vec();
        lead.resize(LEAD_BYTES, 0);
        [lead, signature, main, payload.to_vec()].concat()
    }

    fn inspect(bytes: &[u8], piece: usize) -> Inspection {
        let mut inspector = Inspector::new(Want { file: Some(Kind::Sha256), payload: true });
        for chunk in bytes.chunks(piece) {
            inspector.push(chunk);
        }
        inspector.finish()
    }

    #[test]
    fn a_package_is_the_same_in_any_pieces() {
        let bytes = package(&[(tag::NAME, 6, 1, b"bash\0")], b"the payload");
        for piece in [1, 7, 100, 10_000] {
            let found = inspect(&bytes, piece);
            assert_eq!(found.faults, [""; 0], "pieces of {piece}");
            let head = found.head.unwrap();
            assert_eq!(head.main.string(tag::NAME).as_deref(), Some("bash"));
            assert_eq!(&bytes[head.end() as usize..], b"the payload");
            assert_eq!(found.checksum, Some(digest::of(Kind::Sha256, &bytes)));
        }
    }

    #[test]
    fn damage_inside_is_named() {
        let good = package(&[(tag::NAME, 6, 1, b"bash\0")], b"the payload");
        let at = |what: &[u8]| good.windows(what.len()).position(|w| w == what).unwrap();
        for (label, position, want) in [
            ("payload", at(b"the payload"), "has a payload of sha256"),
            ("header", at(b"bash"), "has a main header of sha256"),
            ("lead", 0, "is no RPM package"),
        ] {
            let mut bad = good.clone();
            bad[position] ^= 1;
            let found = inspect(&bad, 64);
            let said = found.head.err().into_iter().chain(found.faults).collect::<Vec<_>>().join("; ");
            assert!(said.contains(want), "{label}: {said}");
        }
        let short = inspect(&good[..good.len() - 3], 64);
        assert!(short.faults[0].contains("its own header says"), "{:?}", short.faults);
        assert!(inspect(&good[..120], 64).head.unwrap_err().contains("ends after 120 bytes"));
        assert!(inspect(b"", 64).head.is_err());
    }

    #[test]
    fn md5_stands_in_where_the_header_has_no_digest_of_the_payload() {
        let good = package(&[], b"the payload");
        // What rpm 4.11 writes has no such tag: give it a number that nothing reads.
        let raw = tag::PAYLOAD_DIGEST.to_be_bytes();
        let at = good.windows(4).position(|w| w == raw).unwrap();
        let mut old = good.clone();
        old[at..at + 4].copy_from_slice(&6000u32.to_be_bytes());
        let found = inspect(&old, 64).faults.join("; ");
        assert!(found.contains("header and payload of md5"), "the header was changed, MD5 covers it: {found}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(at in 0..400usize, bytes in proptest::collection::vec(0u8.., 0..60), piece in 1..90usize) {
            let mut file = package(&[(tag::NAME, 6, 1, b"bash\0"), (tag::BASENAMES, 8, 2, b"a\0b\0")], b"the payload");
            let at = at.min(file.len());
            let end = (at + bytes.len()).min(file.len());
            file.splice(at..end, bytes);
            let _ = inspect(&file, piece);
        }
    }
}
