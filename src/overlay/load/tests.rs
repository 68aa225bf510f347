use super::*;
use std::os::unix::fs::symlink;

/// A folder of overlays: (path, content) pairs.
fn overlays(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn check(root: &tempfile::TempDir, names: &[&str]) -> Result<Tree, String> {
    let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
    load(&[root.path().to_path_buf()], "zed", &names)
        .map_err(|e| e.to_string().replace(&root.path().display().to_string(), "ROOT"))
}

#[test]
fn the_release_wins_over_common_and_modes_ignore_the_checkout() {
    let root = overlays(&[
        ("common/a/rootfs/etc/one", "common"),
        ("common/a/rootfs/etc/two", "common"),
        ("zed/a/rootfs/etc/one", "zed"),
        ("zed/a/overlay.toml", "[file.\"etc/one\"]\nmode = \"0640\"\ngroup = \"mysql\"\n"),
        ("zed/b/rootfs/usr/bin/tool", "#!"),
        ("zed/b/rootfs/var/lib/empty/.gitkeep", ""),
    ]);
    fs::set_permissions(root.path().join("zed/b/rootfs/usr/bin/tool"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(root.path().join("common/a/rootfs/etc/two"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(root.path().join("zed/b/rootfs/var"), fs::Permissions::from_mode(0o700)).unwrap();
    let tree = check(&root, &["a", "b"]).unwrap();
    let shown: Vec<String> = tree
        .entries
        .iter()
        .map(|(path, e)| format!("{path} {:o} {}:{} {}", e.mode, e.owner, e.group, e.overlay))
        .collect();
    assert_eq!(
        shown,
        [
            "etc 755 root:root a",
            "etc/one 640 root:mysql a",
            "etc/two 644 root:root a",
            "usr 755 root:root b",
            "usr/bin 755 root:root b",
            "usr/bin/tool 755 root:root b",
            "var 755 root:root b",
            "var/lib 755 root:root b",
            "var/lib/empty 755 root:root b",
        ]
    );
    assert_eq!(tree.entries["etc/one"].kind, Kind::File(b"zed".to_vec()));
}

#[test]
fn every_problem_of_a_folder_is_told_at_once() {
    use std::os::unix::ffi::OsStrExt;
    let root = overlays(&[
        ("zed/a/rootfs/etc/fine", ""),
        ("zed/a/rootfs/lib/x", ""),
        ("zed/a/rootfs/etc/new\nline", ""),
        ("zed/a/overlay.toml", "[file.\"etc/gone\"]\nmode = \"0640\"\n[file.\"etc/fine\"]\nmode = \"4755\"\n"),
        ("zed/b/rootfs/etc/fine", ""),
    ]);
    let etc = root.path().join("zed/a/rootfs/etc");
    symlink("../../../secret", etc.join("out")).unwrap();
    symlink("/../secret", etc.join("out2")).unwrap();
    nix::unistd::mkfifo(&etc.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(etc.join("socket")).unwrap();
    fs::write(etc.join(std::ffi::OsStr::from_bytes(b"bad\xff")), "").unwrap();
    let problems = check(&root, &["a", "b", "missing"]).unwrap_err();
    for part in [
        "fifo: is a fifo",
        "socket: is a socket",
        "name is not UTF-8",
        "control character",
        "out: its target \"../../../secret\" leads out",
        "out2: its target \"/../secret\" leads out",
        "lib: /lib is a symlink",
        "overlay.toml:1: file.\"etc/gone\": rootfs has no",
        "overlay.toml:4: file.\"etc/fine\".mode: an overlay brings no setuid",
        "ROOT/zed/b/rootfs/etc/fine: /etc/fine comes from overlay a too",
        "ROOT: no folder common/missing/rootfs or zed/missing/rootfs",
    ] {
        assert!(problems.contains(part), "{part}\n{problems}");
    }
    assert!(!problems.contains("new\nline"), "a name must not forge a line of the report\n{problems}");
}

#[test]
fn an_overlay_is_taken_from_the_first_root_that_has_it() {
    let own = overlays(&[("zed/a/rootfs/etc/own", "")]);
    let shipped = overlays(&[("zed/a/rootfs/etc/shipped", ""), ("zed/b/rootfs/etc/b", "")]);
    let roots = [own.path().to_path_buf(), shipped.path().to_path_buf()];
    let tree = load(&roots, "zed", &["a".into(), "b".into()]).unwrap();
    assert_eq!(tree.entries.keys().collect::<Vec<_>>(), ["etc", "etc/b", "etc/own"]);
}
