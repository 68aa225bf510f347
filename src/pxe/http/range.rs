//! `Range` of a GET (RFC 9110 §14): one range of bytes; whatever else is asked gets the whole.

/// What part of a body to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// `start..end` in bytes, not empty.
    Some {
        start: u64,
        end: u64,
    },
    /// 416.
    Unsatisfiable,
}

/// `range` and `if_range` as sent; `etag` with its quotes.
pub fn part(range: Option<&str>, if_range: Option<&str>, etag: &str, size: u64) -> Part {
    let Some(range) = range else { return Part::Whole };
    if if_range.is_some_and(|have| have.trim() != etag) {
        return Part::Whole;
    }
    let Some(spec) = range.trim().strip_prefix("bytes=") else { return Part::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Part::Whole };
    match (number(first), number(last)) {
        (Some(Some(start)), Some(last)) if last.is_none_or(|last| last >= start) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            if start < size { Part::Some { start, end } } else { Part::Unsatisfiable }
        }
        // The last bytes: `-500`.
        (Some(None), Some(Some(0))) => Part::Unsatisfiable,
        (Some(None), Some(Some(_))) if size == 0 => Part::Unsatisfiable,
        (Some(None), Some(Some(count))) => Part::Some { start: size.saturating_sub(count), end: size },
        _ => Part::Whole, // several ranges, or no range at all: ignoring it is allowed
    }
}

/// Outer `None`: not a number; inner `None`: empty.
fn number(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_range_is_cut_out_and_everything_else_is_whole() {
        let some = |start, end| Part::Some { start, end };
        for (range, size, want) in [
            ("bytes=0-9", 100, some(0, 10)),
            ("bytes=90-", 100, some(90, 100)),
            ("bytes=90-1000", 100, some(90, 100)),
            ("bytes=-10", 100, some(90, 100)),
            ("bytes=-1000", 100, some(0, 100)),
            ("bytes=99-99", 100, some(99, 100)),
            ("bytes=100-", 100, Part::Unsatisfiable),
            ("bytes=-0", 100, Part::Unsatisfiable),
            ("bytes=0-", 0, Part::Unsatisfiable),
            ("bytes=18446744073709551616-", 100, Part::Unsatisfiable),
            ("bytes=9-3", 100, Part::Whole),
            ("bytes=0-1,4-5", 100, Part::Whole),
            ("bytes=-", 100, Part::Whole),
            ("bytes=+1-2", 100, Part::Whole),
            ("lines=1-2", 100, Part::Whole),
            ("", 100, Part::Whole),
        ] {
            assert_eq!(part(Some(range), None, "\"x\"", size), want, "{range}");
        }
        assert_eq!(part(Some("bytes=1-"), Some("\"x\""), "\"x\"", 9), some(1, 9));
        assert_eq!(part(Some("bytes=1-"), Some("\"y\""), "\"x\"", 9), Part::Whole);
        assert_eq!(part(Some("bytes=1-"), Some("W/\"x\""), "\"x\"", 9), Part::Whole);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_body(range in "(bytes=)?[0-9 ,-]{0,24}|\\PC{0,30}", size in 0u64..1000) {
            if let Part::Some { start, end } = part(Some(&range), None, "", size) {
                prop_assert!(start < end && end <= size);
            }
        }
    }
}
