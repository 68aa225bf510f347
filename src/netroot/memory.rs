//! How a node's memory is shared between the image's layers, the writable part of its root and
//! everything else.

/// Kernel and firmware keep some of a machine's memory for themselves: what the kernel counts may
/// be less than what is built in by this much …
const HIDDEN_MIB: u64 = 96;
/// … and by this share (1/n): page tables and reserved regions grow with the memory.
const HIDDEN_SHARE: u64 = 32;
/// Of the memory that the layers leave free, the writable part may take this share (1/n).
const UPPER_SHARE: u64 = 2;
/// A root that can write less than this does not start.
const UPPER_MIN_BYTES: u64 = 64 << 20;
/// tmpfs counts whole pages; a few more for folders.
const LAYERS_SLACK_BYTES: u64 = 1 << 20;

/// Bounds of the two file systems in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub layers_bytes: u64,
    pub upper_bytes: u64,
}

/// `total`: bytes that the kernel counts; `least_mib`: what the image asks for; `layers`: bytes.
pub fn plan(total: u64, least_mib: u64, layers: u64) -> Result<Plan, String> {
    let built_in = (total >> 20) + (total >> 20) / HIDDEN_SHARE + HIDDEN_MIB;
    if built_in < least_mib {
        return Err(format!("machine has {} MiB of memory, the image needs {least_mib} MiB", total >> 20));
    }
    let upper_bytes = total.saturating_sub(layers) / UPPER_SHARE;
    if upper_bytes < UPPER_MIN_BYTES {
        return Err(format!("machine has {} MiB of memory, the layers take {} MiB of it", total >> 20, layers >> 20));
    }
    Ok(Plan { layers_bytes: layers + LAYERS_SLACK_BYTES, upper_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_refused_before_anything_is_fetched() {
        const MIB: u64 = 1 << 20;
        for (total, least, layers, upper) in [
            (960, 1024, 300, Some(330)),
            (2048, 1024, 300, Some(874)),
            (800, 1024, 300, None),
            (400, 256, 300, None),
            (0, 0, 0, None),
        ] {
            let got = plan(total * MIB, least, layers * MIB).ok().map(|p| p.upper_bytes / MIB);
            assert_eq!(got, upper, "{total} {least} {layers}");
        }
    }
}
