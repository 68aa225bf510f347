//! Text from nodes, made fit to be stored and shown.

use super::message::DETAIL_MAX_BYTES;

/// Longest short word from a node that is stored (versions, firmware, serials), bytes.
pub const WORD_MAX_BYTES: usize = 128;

/// `text` without control characters (a terminal would obey them), cut to `max` bytes.
pub fn clean(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

/// [`clean`] for a detail: at most [`DETAIL_MAX_BYTES`].
pub fn detail(text: &str) -> String {
    clean(text, DETAIL_MAX_BYTES)
}

/// [`clean`] for a word: at most [`WORD_MAX_BYTES`].
pub fn word(text: &str) -> String {
    clean(text, WORD_MAX_BYTES)
}

/// Whether `text` can be a kernel boot id: 8 to 64 lower-case hex digits and dashes.
pub fn is_boot_id(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// Whether `argument` can stand as one kernel argument on a boot script's line: printable ASCII
/// without blanks and without what iPXE's or a boot loader's parser would read as its own
/// (settings `${…}`, `&&`, `||`, `;`, quotes, comments, escapes).
pub fn is_kernel_argument(argument: &str) -> bool {
    !argument.is_empty()
        && argument.len() <= 512
        && argument.bytes().all(|b| b.is_ascii_alphanumeric() || b"._,:=/@%+~[]!*()^-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_nodes_cannot_steer_a_terminal_or_a_boot_script() {
        assert_eq!(clean("a\x1b[2Jb\nc", 100), "a [2Jb c");
        assert_eq!(clean("ééé", 5), "éé");
        for (argument, good) in [
            ("console=ttyS0,115200n8", true),
            ("ip=[fe80::1]", true),
            ("", false),
            ("a b", false),
            ("${net0/mac}", false),
            ("x\nshell", false),
            ("||", false),
            ("#x", false),
        ] {
            assert_eq!(is_kernel_argument(argument), good, "{argument:?}");
        }
        assert!(is_boot_id("6a1e0b5e-0d8c-4b55-9c3c-1f6f6a6b1a11") && !is_boot_id("../etc") && !is_boot_id(""));
    }
}
