//! Checksums as indexes and packages state them: their kinds, their text, and a hasher for each.

pub use crate::recipe::lock::hex;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// What a checksum was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Proves nothing against intent; an el7 package has no other digest of its payload.
    Md5,
    /// `sha` in metadata of the el5 era.
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Kind {
    /// The kind that a yum index means by `name`.
    pub fn parse(name: &str) -> Option<Kind> {
        match name {
            "md5" => Some(Kind::Md5),
            "sha" | "sha1" => Some(Kind::Sha1),
            "sha256" => Some(Kind::Sha256),
            "sha384" => Some(Kind::Sha384),
            "sha512" => Some(Kind::Sha512),
            _ => None,
        }
    }

    /// The kind of an OpenPGP (RFC 4880 §9.4) or RPM digest number.
    pub fn of_number(number: u32) -> Option<Kind> {
        match number {
            1 => Some(Kind::Md5),
            2 => Some(Kind::Sha1),
            8 => Some(Kind::Sha256),
            9 => Some(Kind::Sha384),
            10 => Some(Kind::Sha512),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Md5 => "md5",
            Kind::Sha1 => "sha1",
            Kind::Sha256 => "sha256",
            Kind::Sha384 => "sha384",
            Kind::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Kind::Md5 => 32,
            Kind::Sha1 => 40,
            Kind::Sha256 => 64,
            Kind::Sha384 => 96,
            Kind::Sha512 => 128,
        }
    }
}

/// A stated checksum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checksum {
    pub kind: Kind,
    /// Lower case, as long as the kind's are.
    pub hex: String,
}

impl Checksum {
    /// A checksum of a yum index. MD5 is refused there: nothing that can still be had needs it.
    pub fn parse(kind: &str, hex: &str) -> Result<Checksum, String> {
        let known = Kind::parse(kind).filter(|k| *k != Kind::Md5);
        let known = known.ok_or_else(|| format!("checksum of kind {kind:?} is not accepted"))?;
        Checksum::new(known, hex)
    }

    /// Checks the digits.
    pub fn new(kind: Kind, hex: &str) -> Result<Checksum, String> {
        let hex = hex.trim().to_ascii_lowercase();
        if hex.len() != kind.hex_digits() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("malformed {} checksum {hex:?}", kind.name()));
        }
        Ok(Checksum { kind, hex })
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.hex)
    }
}

/// A running checksum.
#[derive(Clone)]
pub enum Hasher {
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(kind: Kind) -> Hasher {
        match kind {
            Kind::Md5 => Hasher::Md5(Md5::new()),
            Kind::Sha1 => Hasher::Sha1(Sha1::new()),
            Kind::Sha256 => Hasher::Sha256(Sha256::new()),
            Kind::Sha384 => Hasher::Sha384(Sha384::new()),
            Kind::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Md5(h) => h.update(bytes),
            Hasher::Sha1(h) => h.update(bytes),
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha384(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Checksum {
        let (kind, hex) = match self {
            Hasher::Md5(h) => (Kind::Md5, hex(&h.finalize())),
            Hasher::Sha1(h) => (Kind::Sha1, hex(&h.finalize())),
            Hasher::Sha256(h) => (Kind::Sha256, hex(&h.finalize())),
            Hasher::Sha384(h) => (Kind::Sha384, hex(&h.finalize())),
            Hasher::Sha512(h) => (Kind::Sha512, hex(&h.finalize())),
        };
        Checksum { kind, hex }
    }
}

/// The checksum of bytes.
pub fn of(kind: Kind, bytes: &[u8]) -> Checksum {
    let mut hasher = Hasher::new(kind);
    hasher.update(bytes);
    hasher.finish()
}

/// A stream whose bytes are counted and hashed as they are read.
pub struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    pub bytes: u64,
}

impl<R> Hashed<R> {
    pub fn new(inner: R, kind: Kind) -> Hashed<R> {
        Hashed { inner, hasher: Hasher::new(kind), bytes: 0 }
    }

    pub fn finish(self) -> (Checksum, u64) {
        (self.hasher.finish(), self.bytes)
    }

    /// The stream itself, too.
    pub fn into_parts(self) -> (R, Checksum, u64) {
        (self.inner, self.hasher.finish(), self.bytes)
    }
}

impl<R: std::io::Read> std::io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<W: std::io::Write> std::io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_names_and_values() {
        for (name, kind, want) in [
            ("md5", Kind::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            ("sha", Kind::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("sha256", Kind::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ] {
            assert_eq!(Kind::parse(name), Some(kind));
            assert_eq!(of(kind, b"abc").hex, want, "{name}");
        }
        for kind in [Kind::Md5, Kind::Sha1, Kind::Sha256, Kind::Sha384, Kind::Sha512] {
            assert_eq!(of(kind, b"").hex.len(), kind.hex_digits());
        }
        assert!(Checksum::parse("sha256", &"A".repeat(64)).is_ok());
        for (kind, hex) in [("md5", "0".repeat(32)), ("sha256", "0".repeat(63)), ("sha1", "g".repeat(40))] {
            assert!(Checksum::parse(kind, &hex).is_err(), "{kind} {hex}");
        }
    }
}
