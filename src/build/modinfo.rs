//! The `.modinfo` section of a kernel module: `key=value` strings, each ended by a zero.
//!
//! ELF-64, little endian (System V ABI, chapter 4). Anything malformed yields nothing.

/// Values of `key` in a module's bytes, such as the names of `firmware`.
pub fn values(module: &[u8], key: &str) -> Vec<String> {
    let Some(section) = section(module, ".modinfo") else { return Vec::new() };
    let strings = section.split(|b| *b == 0).filter_map(|s| std::str::from_utf8(s).ok());
    let pairs = strings.filter_map(|s| s.split_once('='));
    pairs.filter(|(k, _)| *k == key).map(|(_, value)| value.to_string()).collect()
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    let value = field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    usize::try_from(value).ok()
}

/// The bytes of the section with this name.
fn section<'a>(elf: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    // \x7fELF, 64 bit, little endian
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, width, count, names) =
        (number(elf, 40, 8)?, number(elf, 58, 2)?, number(elf, 60, 2)?, number(elf, 62, 2)?);
    let header = |i: usize| table.checked_add(i.checked_mul(width)?);
    let content = |i: usize| {
        let at = header(i)?;
        let (offset, size) = (number(elf, at.checked_add(24)?, 8)?, number(elf, at.checked_add(32)?, 8)?);
        elf.get(offset..offset.checked_add(size)?)
    };
    let names = content(names)?;
    (0..count).find_map(|i| {
        let name = names.get(number(elf, header(i)?, 4)?..)?;
        let name = name.split(|b| *b == 0).next()?;
        if name == wanted.as_bytes() { content(i) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of three sections: none, names, .modinfo.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (names_at, info_at) = (64, 64 + names.len());
        let table = info_at + info.len();
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        for (at, value) in [(58, 64u16), (60, 3), (62, 1)] {
            elf[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        elf.extend_from_slice(names);
        elf.extend_from_slice(info);
        for (name, offset, size) in [(0u32, 0, 0), (10, names_at, names.len()), (1, info_at, info.len())] {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    #[test]
    fn firmware_names_are_found() {
        let elf = module(b"license=GPL\0firmware=a/b.fw\0firmware=c.bin\0vermagic=6.1\0");
        assert_eq!(values(&elf, "firmware"), ["a/b.fw", "c.bin"]);
        assert_eq!(values(&elf, "vermagic"), ["6.1"]);
        assert!(values(&elf, "alias").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(0u8..=255, 0..200), at in 0usize..300, cut in 0usize..400) {
            let mut elf = module(b"firmware=x\0");
            let at = at.min(elf.len() - 1);
            for (to, from) in elf[at..].iter_mut().zip(&noise) {
                *to = *from;
            }
            let _ = values(&elf, "firmware");
            let _ = values(&elf[..cut.min(elf.len())], "firmware");
            let _ = values(&noise, "firmware");
        }
    }
}
