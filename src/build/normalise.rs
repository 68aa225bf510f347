//! What of an installed tree goes into a layer: nothing that tells when, where or by whom it was
//! built, no identity, no secret, no state, nothing that starts by itself.

/// What becomes of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Keep,
    /// The path and what is below it.
    Drop,
    /// The folder stays, what is in it goes.
    Empty,
    /// Folders stay, at every depth: a service that runs as its own user cannot make its own.
    Folders,
}

/// Files and folders that never enter a layer.
const DROPPED: &[&str] = &[
    // Identity and secrets: every node makes or gets its own.
    "etc/machine-id",
    "etc/hostname",
    "etc/machine-info",
    "etc/pacemaker/authkey",
    "etc/corosync/authkey",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/mysql/debian.cnf",
    "etc/rndc.key",
    "etc/bind/rndc.key",
    "etc/iscsi/initiatorname.iscsi",
    "etc/nvme/hostid",
    "etc/nvme/hostnqn",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/rabbitmq/.erlang.cookie",
    "var/cache/debconf/passwords.dat",
    // A cluster of one that would form by itself.
    "etc/corosync/corosync.conf",
    "etc/libvirt/qemu/networks/autostart/default.xml",
    // The build's own.
    "etc/resolv.conf",
    "usr/sbin/policy-rc.d",
    "etc/.pwd.lock",
    "var/cache/ldconfig/aux-cache",
    "var/lib/systemd/catalog/database",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/dpkg/available",
    "var/lib/rpm/.rpm.lock",
    "var/lib/rpm/.dbenv.lock",
    "var/lib/rpm/rpmdb.sqlite-shm",
    "var/lib/rpm/rpmdb.sqlite-wal",
    "var/lib/yum/uuid",
];

/// Folders whose content never enters a layer.
const EMPTIED: &[&str] = &[
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/tmp",
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/cache/yum",
    "var/cache/dnf",
    "var/lib/yum/history",
    "var/lib/yum/yumdb",
    "var/lib/dnf",
    "var/lib/rpm-state",
    "var/cache/man",
    "var/cache/fontconfig",
    "var/lib/mysql",
    "var/lib/rabbitmq/mnesia",
    "var/lib/pacemaker/cib",
    "var/lib/pcsd",
];

/// What to do with `path` (below the root, without a leading slash).
pub fn fate(path: &str) -> Fate {
    if EMPTIED.contains(&path) {
        return Fate::Empty;
    }
    if path == "var/log" || path.starts_with("var/log/") {
        return Fate::Folders;
    }
    if DROPPED.contains(&path)
        || is_backup(path)
        || is_host_key(path)
        || is_enablement(path)
        || is_initrd(path)
        || is_region(path)
    {
        return Fate::Drop;
    }
    Fate::Keep
}

/// What tools leave beside a file that they replace.
fn is_backup(path: &str) -> bool {
    const ACCOUNTS: [&str; 6] = ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"];
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.strip_suffix('-').or_else(|| name.strip_suffix(".org"));
    let account = folder == "etc" && stem.is_some_and(|s| ACCOUNTS.contains(&s));
    let dpkg = path.starts_with("var/lib/dpkg/") && name.ends_with("-old");
    let debconf = path.starts_with("var/cache/debconf/") && name.ends_with("-old");
    account || dpkg || debconf
}

fn is_host_key(path: &str) -> bool {
    path.strip_prefix("etc/ssh/ssh_host_").is_some_and(|rest| rest.ends_with("_key") || rest.ends_with("_key.pub"))
}

/// What a package did to be started at boot. kiln-node starts systems; its own unit is enabled by
/// the role layer. (Aliases such as `sshd.service` start nothing and stay.)
fn is_enablement(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["etc", "systemd", "system" | "user", folder, _] => {
            [".wants", ".requires", ".upholds"].iter().any(|ending| folder.ends_with(ending))
        }
        ["etc", runlevel, script] => {
            let level = runlevel.strip_prefix("rc").and_then(|r| r.strip_suffix(".d"));
            level.is_some_and(|l| l.len() == 1) && script.starts_with(['S', 'K'])
        }
        _ => false,
    }
}

/// The distribution's own initramfs and the links to it: kiln boots with its own.
fn is_initrd(path: &str) -> bool {
    const BEGINNINGS: [&str; 3] = ["boot/initrd.img", "boot/initramfs-", "boot/vmlinuz-0-rescue-"];
    BEGINNINGS.iter().any(|b| path.starts_with(b)) || matches!(path, "initrd.img" | "initrd.img.old" | "vmlinuz.old")
}

/// Berkeley DB's shared memory: of processes that are gone.
fn is_region(path: &str) -> bool {
    path.strip_prefix("var/lib/rpm/").is_some_and(|name| name.starts_with("__db."))
}

/// The time that a file of a stage carries: its package's own, or the epoch for what was made
/// during the build (`window`: its first and last second by the same clock, which may be wrong).
pub fn mtime(mtime: i64, window: (i64, i64), epoch: u64) -> u64 {
    let made_here = (window.0..=window.1).contains(&mtime);
    if made_here { epoch } else { u64::try_from(mtime).unwrap_or(0).min(epoch) }
}

/// Extended attributes that a layer keeps: capabilities, ACLs, labels. Not overlayfs's own marks,
/// which name inodes of the building machine (`trusted.*`; `user.*` where it was mounted without
/// root): what they hide a layer says by whiteouts.
pub fn keeps_xattr(name: &str) -> bool {
    name.starts_with("security.")
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
        || name.starts_with("system.posix_acl_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates() {
        for (path, want) in [
            ("etc/passwd", Fate::Keep),
            ("etc/passwd-", Fate::Drop),
            ("etc/ssh/ssh_host_ed25519_key", Fate::Drop),
            ("etc/ssh/ssh_host_ed25519_key.pub", Fate::Drop),
            ("etc/ssh/ssh_config", Fate::Keep),
            ("etc/machine-id", Fate::Drop),
            ("var/log", Fate::Folders),
            ("var/log/rabbitmq", Fate::Folders),
            ("var/lib/mysql", Fate::Empty),
            ("var/lib/dpkg/status", Fate::Keep),
            ("var/lib/dpkg/status-old", Fate::Drop),
            ("etc/systemd/system/multi-user.target.wants/ssh.service", Fate::Drop),
            ("etc/systemd/system/multi-user.target.wants", Fate::Keep),
            ("etc/systemd/system/sshd.service", Fate::Keep),
            ("etc/systemd/system/ssh.service.d/override.conf", Fate::Keep),
            ("etc/rc3.d/S01ssh", Fate::Drop),
            ("etc/rc3.d/README", Fate::Keep),
            ("etc/rcS.d/S01x", Fate::Drop),
            ("boot/initrd.img-6.1.0-37-amd64", Fate::Drop),
            ("boot/vmlinuz-6.1.0-37-amd64", Fate::Keep),
            ("boot/initramfs-3.10.0-1160.el7.x86_64.img", Fate::Drop),
            ("var/lib/rpm/Packages", Fate::Keep),
            ("var/lib/rpm/__db.001", Fate::Drop),
            ("var/lib/rpm/rpmdb.sqlite-wal", Fate::Drop),
            ("var/lib/yum/history", Fate::Empty),
            ("usr/lib/systemd/system/multi-user.target.wants/getty.target", Fate::Keep),
        ] {
            assert_eq!(fate(path), want, "{path}");
        }
    }

    #[test]
    fn what_was_made_here_has_the_epochs_time_whatever_the_clock_said() {
        let (epoch, package) = (1000, 500);
        for (clock, want_made) in [((2000, 2100), 1000), ((10, 20), 1000), ((900, 1100), 1000)] {
            assert_eq!(mtime(clock.0 + 5, clock, epoch), want_made);
            assert_eq!(mtime(package, clock, epoch), 500);
        }
        assert_eq!(mtime(5000, (2000, 2100), epoch), 1000);
        assert_eq!(mtime(-5, (2000, 2100), epoch), 0);
    }

    #[test]
    fn overlayfs_marks_stay_behind() {
        for (name, want) in [
            ("security.capability", true),
            ("user.mime_type", true),
            ("system.posix_acl_access", true),
            ("trusted.overlay.opaque", false),
            ("trusted.overlay.origin", false),
            ("user.overlay.opaque", false),
            ("user.overlay.impure", false),
        ] {
            assert_eq!(keeps_xattr(name), want, "{name}");
        }
    }
}
