//! Kernel modules: the index files that depmod writes, closures of dependencies, aliases.
//! The bake chooses modules with it, the initramfs loads them with it.
//!
//! Formats: modules.dep(5); aliases are shell globs (`*`, `?`, `[…]`) over `_` and `-` alike.

use std::collections::{BTreeMap, BTreeSet};

/// modules.dep, modules.alias, modules.softdep and modules.builtin of one kernel.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Name (underscores) -> path below `/lib/modules/<version>/`.
    pub paths: BTreeMap<String, String>,
    /// Name -> names that must be loaded before it, the deepest last (as depmod lists them).
    pub needs: BTreeMap<String, Vec<String>>,
    /// (glob, name), in file order.
    pub aliases: Vec<(String, String)>,
    /// Name -> names to load before it if they exist.
    pub pre: BTreeMap<String, Vec<String>>,
    pub builtin: BTreeSet<String>,
}

impl Index {
    /// Parses the four files' texts (absent ones may be empty). Lines that make no sense are skipped.
    pub fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Index {
        let mut index = Index::default();
        for line in dep.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let module = name_of(path);
            index.needs.insert(module.clone(), needs.split_whitespace().map(name_of).collect());
            index.paths.insert(module, path.trim().to_string());
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(glob), Some(module)) = (words.next(), words.next(), words.next()) {
                index.aliases.push((glob.to_string(), module.replace('-', "_")));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let mut in_pre = false;
            for word in words {
                match word {
                    "pre:" => in_pre = true,
                    "post:" => in_pre = false,
                    name if in_pre => {
                        index.pre.entry(module.replace('-', "_")).or_default().push(name.replace('-', "_"));
                    }
                    _ => {}
                }
            }
        }
        index.builtin = builtin.lines().map(name_of).collect();
        index
    }

    /// Modules to load for `module`, in order, itself last. Empty: builtin or unknown.
    pub fn load_order(&self, module: &str) -> Vec<String> {
        let mut order = Vec::new();
        self.visit(&module.replace('-', "_"), &mut order, 0);
        order
    }

    fn visit(&self, module: &str, order: &mut Vec<String>, depth: usize) {
        /// Deeper than any real chain: ends a cycle of softdeps.
        const DEPTH_MAX: usize = 32;
        if depth > DEPTH_MAX || order.iter().any(|m| m == module) || !self.paths.contains_key(module) {
            return;
        }
        for pre in self.pre.get(module).into_iter().flatten() {
            self.visit(pre, order, depth + 1);
        }
        // depmod lists the whole closure, what others need last.
        for need in self.needs.get(module).into_iter().flatten().rev() {
            self.visit(need, order, depth + 1);
        }
        if !order.iter().any(|m| m == module) {
            order.push(module.to_string());
        }
    }

    /// Names of the modules that claim `modalias` (such as `pci:v00001AF4d00001041sv…`).
    pub fn matching(&self, modalias: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for (glob, module) in &self.aliases {
            if !found.contains(module) && matches(glob.as_bytes(), modalias.as_bytes()) {
                found.push(module.clone());
            }
        }
        found
    }
}

/// `kernel/fs/ext4/ext4.ko.xz` -> `ext4`; dashes become underscores.
pub fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    let stem = file.split_once(".ko").map(|(stem, _)| stem).unwrap_or(file);
    stem.replace('-', "_")
}

/// Shell glob match with `*`, `?` and `[…]`.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => bracket(&glob[g..], text[t]),
            Some(c) if *c == text[t] => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(width), _) => {
                g += width;
                t += 1;
            }
            (None, Some((at, from))) => {
                g = at + 1;
                t = from + 1;
                star = Some((at, from + 1));
            }
            (None, None) => return false,
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

/// Width of the bracket expression when it holds `c`.
fn bracket(glob: &[u8], c: u8) -> Option<usize> {
    let end = glob.iter().position(|b| *b == b']')?;
    let mut set = &glob[1..end];
    while let [first, rest @ ..] = set {
        if let [b'-', last, tail @ ..] = rest {
            if (*first..=*last).contains(&c) {
                return Some(end + 1);
            }
            set = tail;
        } else {
            if *first == c {
                return Some(end + 1);
            }
            set = rest;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_like_modprobe() {
        for (glob, text, want) in [
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001041sv00001AF4sd0bc02sc00i00", true),
            ("pci:v00008086d*", "pci:v00001AF4d00001041", false),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("usb:v[0-9]*", "usb:v4", true),
            ("usb:v[a-f]*", "usb:v4", false),
            ("a?c", "abc", true),
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
        ] {
            assert_eq!(matches(glob.as_bytes(), text.as_bytes()), want, "{glob} {text}");
        }
    }

    #[test]
    fn dependencies_come_before_their_users() {
        let index = Index::parse(
            "kernel/a/virtio-net.ko: kernel/b/net_failover.ko kernel/c/failover.ko\nkernel/b/net_failover.ko: kernel/c/failover.ko\nkernel/c/failover.ko:\nkernel/x/crc.ko.xz:\n",
            "alias virtio:d00000001v* virtio_net\n",
            "softdep virtio_net pre: crc\n",
            "kernel/lib/built-in.ko\n",
        );
        assert_eq!(index.load_order("virtio-net"), ["crc", "failover", "net_failover", "virtio_net"]);
        assert_eq!(index.matching("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert!(index.load_order("built_in").is_empty() && index.builtin.contains("built_in"));
    }
}
