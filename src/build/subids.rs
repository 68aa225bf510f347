//! Which ids a user's namespace is made of, and what takes such namespaces away: read from the text
//! of the host's files. Pure.

/// So many ids, 0 included, does a distribution's tree use.
pub const IDS: u32 = 65536;

/// The start of the first range of at least [`IDS`] ids that a file (`/etc/subuid`, `/etc/subgid`)
/// gives a user, who stands there by name or number.
pub fn range(text: &str, name: &str, uid: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, start, count] = fields[..] else { return None };
        let (start, count): (u32, u32) = (start.parse().ok()?, count.parse().ok()?);
        let own = who == name || who.parse() == Ok(uid);
        (own && count >= IDS && start.checked_add(count).is_some()).then_some(start)
    })
}

/// Whether a process with this `/proc/<pid>/uid_map` is in no user namespace but the host's.
pub fn is_host(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// How many ids a `/proc/<pid>/uid_map` holds.
pub fn mapped(uid_map: &str) -> u64 {
    uid_map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

/// A switch of the kernel (below `/proc/sys`) that takes user namespaces away from ordinary users.
pub struct Switch {
    pub file: &'static str,
    off: &'static str,
    /// What gives them back.
    next: &'static str,
}

/// Every such switch; a kernel has some of them.
pub const SWITCHES: [Switch; 3] = [
    Switch { file: "user/max_user_namespaces", off: "0", next: "sysctl -w user.max_user_namespaces=10000" },
    // Debian's.
    Switch { file: "kernel/unprivileged_userns_clone", off: "0", next: "sysctl -w kernel.unprivileged_userns_clone=1" },
    // Ubuntu's: a namespace may be made, but nothing be done in it.
    Switch {
        file: "kernel/apparmor_restrict_unprivileged_userns",
        off: "1",
        next: "an AppArmor profile for kiln that allows `userns`, or \
               sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    },
];

/// Why a user namespace could not be made; `read` gives a switch's text.
pub fn refusal(read: &dyn Fn(&str) -> Option<String>) -> String {
    let off = SWITCHES.iter().find(|s| read(s.file).is_some_and(|text| text.trim() == s.off));
    match off {
        Some(s) => format!("/proc/sys/{} is {}; as root: {}", s.file, s.off, s.next),
        None => "the kernel, or the container around this process, allows none: run kiln as root".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_users_own_and_large_enough() {
        let text = "# kept by useradd\nalice:100000:65536\nbob:165536:1000\nbob:200000:65536\n1003:300000:70000\n";
        for (name, uid, want) in [
            ("alice", 1001, Some(100_000)),
            ("bob", 1002, Some(200_000)),
            ("carol", 1003, Some(300_000)),
            ("ali", 1, None),
            ("", 0, None),
        ] {
            assert_eq!(range(text, name, uid), want, "{name}");
        }
        for broken in ["alice:1", "alice:x:65536", "alice:1:65536:2", "alice:4294967295:65536", "alice:-1:65536", ":::"]
        {
            assert_eq!(range(broken, "alice", 1), None, "{broken}");
        }
    }

    #[test]
    fn a_map_tells_the_hosts_namespace_from_others() {
        let host = "         0          0 4294967295\n";
        let own = "         0       1001          1\n         1     100000      65536\n";
        assert!(is_host(host) && !is_host(own) && !is_host(""));
        assert_eq!((mapped(host), mapped(own), mapped("")), (4_294_967_295, 65_537, 0));
    }

    #[test]
    fn a_refusal_names_the_switch_and_what_turns_it() {
        for (file, text, says) in [
            ("user/max_user_namespaces", "0\n", "max_user_namespaces=10000"),
            ("kernel/unprivileged_userns_clone", "0\n", "unprivileged_userns_clone=1"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor profile"),
            ("user/max_user_namespaces", "96365\n", "run kiln as root"),
        ] {
            let said = refusal(&|asked| (asked == file).then(|| text.to_string()));
            assert!(said.contains(says), "{file}: {said}");
        }
    }
}
