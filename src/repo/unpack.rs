//! Streams packed with gzip, xz, bzip2 or zstd, told apart by their first bytes. What a hostile one
//! can take is bounded: the decoder's memory here, the bytes that come out by [`Bounded`].

use std::io::{self, BufRead, Read};

/// xz -9 needs 65 MiB.
const XZ_MEMORY_MAX_BYTES: u64 = 128 << 20;
/// zstd's own limit for streams whose window nobody agreed on (128 MiB).
const ZSTD_WINDOW_MAX_LOG2: u32 = 27;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Xz,
    Bzip2,
    Zstd,
}

/// How a stream that begins with `head` is packed.
pub fn packing(head: &[u8]) -> Packing {
    match head {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        [b'B', b'Z', b'h', ..] => Packing::Bzip2,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// The unpacked stream, at most `max_bytes` long.
pub fn open<'a>(mut from: impl BufRead + 'a, max_bytes: u64) -> io::Result<Bounded<Box<dyn Read + 'a>>> {
    let inner: Box<dyn Read + 'a> = match packing(from.fill_buf()?) {
        Packing::Plain => Box::new(from),
        // Some mirrors' files are several members in a row; all of them are the file.
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        Packing::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_MAX_BYTES, liblzma::stream::CONCATENATED)
                    .map_err(io::Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(from, stream))
        }
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
            decoder.window_log_max(ZSTD_WINDOW_MAX_LOG2)?;
            Box::new(decoder)
        }
    };
    Ok(Bounded { inner, left: max_bytes, max_bytes })
}

/// A stream that fails, rather than ends, when it is longer than allowed.
pub struct Bounded<R> {
    inner: R,
    left: u64,
    max_bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        // One byte more than is left tells an end from a bomb.
        let room = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.inner.read(&mut buffer[..room])?;
        if n as u64 > self.left {
            return Err(io::Error::other(format!("unpacks to more than the {} bytes allowed", self.max_bytes)));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(what: Packing, bytes: &[u8]) -> Vec<u8> {
        match what {
            Packing::Plain => bytes.to_vec(),
            Packing::Gzip => {
                let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                to.write_all(bytes).unwrap();
                to.finish().unwrap()
            }
            Packing::Xz => {
                let mut to = liblzma::write::XzEncoder::new(Vec::new(), 0);
                to.write_all(bytes).unwrap();
                to.finish().unwrap()
            }
            Packing::Bzip2 => {
                let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                to.write_all(bytes).unwrap();
                to.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    const ALL: [Packing; 5] = [Packing::Plain, Packing::Gzip, Packing::Xz, Packing::Bzip2, Packing::Zstd];

    #[test]
    fn every_packing_is_read_and_bounded() {
        let bytes = vec![b'x'; 100_000];
        for what in ALL {
            let file = packed(what, &bytes);
            assert_eq!(packing(&file), what);
            let mut out = Vec::new();
            open(&file[..], 100_000).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, bytes, "{what:?}");
            let error = open(&file[..], 99_999).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("more than the 99999 bytes"), "{what:?}: {error}");
            let cut = open(&file[..file.len() / 2], 100_000).unwrap().read_to_end(&mut Vec::new());
            assert!(cut.is_err() || what == Packing::Plain, "{what:?} cut short");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(which in 0..5usize, at in 0..200usize, bytes in proptest::collection::vec(0u8.., 1..40)) {
            let mut file = packed(ALL[which], b"some text that is packed");
            let at = at.min(file.len());
            file.splice(at..(at + bytes.len()).min(file.len()), bytes);
            let _ = open(&file[..], 10_000).map(|mut r| r.read_to_end(&mut Vec::new()));
        }
    }
}
