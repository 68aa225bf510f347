//! The store and `kiln image` against what others use: skopeo, Debian's docker-registry, full disks
//! and kill -9.

use kiln::image::{archive, id, manifest, reference, sign, signature, store};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;

#[path = "../src/image/testing.rs"]
#[allow(dead_code)]
mod testing;
use testing::{TestImage, image, image_of};

fn kiln(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("image").env("KILN_STORE", store).env_remove("REGISTRY_AUTH_FILE").env("HOME", store);
    command
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with that exit status and an error that says so.
fn fail(command: &mut Command, status: i32, expected: &str) {
    let output = command.output().unwrap();
    assert!(
        output.status.code() == Some(status) && shown(&output).contains(expected),
        "{command:?}: {}",
        shown(&output)
    );
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(command: &mut Command) -> serde_json::Value {
    serde_json::from_str(&succeed(command)).unwrap()
}

/// Whether a tool is there; in CI it must be.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    assert!(found || std::env::var("CI").as_deref() != Ok("true"), "CI must have {tool}");
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

fn fresh() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn good(store: &Store, id: &id::ImageId) {
    assert_eq!(store.verify(id).unwrap(), Vec::<String>::new());
}

#[test]
fn the_verbs_say_what_there_is() {
    let (dir, store) = fresh();
    let image = image("zed", "test", 1);
    let id = image.commit(&store, Some("v1"));
    let kiln = || kiln_at(dir.path());

    let list = json(kiln().args(["ls", "--json"]));
    assert_eq!(list["images"][0]["name"], "zed/test:v1");
    assert_eq!(list["images"][0]["id"], id.to_string());
    assert!(succeed(kiln().arg("ls")).contains("zed/test:v1"));
    let shown = succeed(kiln().args(["show", "zed/test:v1"]));
    assert!(shown.contains("at least 512 MiB") && shown.contains("layer role"), "{shown}");
    let shown = json(kiln().args(["show", &id.hex()[..6], "--json"]));
    assert_eq!((&shown["memory_min_mib"], &shown["signers"]), (&512.into(), &shown["builders"]));
    succeed(kiln().args(["verify", "zed/test:v1"]));
    fail(kiln().args(["show", "zed/infra"]), 1, "there are: zed/test:v1");
    fail(kiln().args(["show", "../etc"]), 2, "no image name");
    fail(kiln().args(["show", "zz"]), 2, "no image");

    succeed(kiln().args(["tag", "zed/test:v1", "v2"]));
    fail(kiln().args(["tag", "zed/test:v1", "zed/infra:v2"]), 2, "cannot be named");
    let file = dir.path().join("image.tar");
    succeed(kiln().args(["save", "zed/test:v2"]).arg(&file));
    succeed(kiln().args(["untag", "zed/test:v1"]));
    fail(kiln().args(["untag", "zed/test:v1"]), 1, "no image is named");
    succeed(kiln().args(["untag", "zed/test:v2"]));
    let in_use = dir.path().join("images-in-use.json");
    let gc = || {
        let mut command = kiln();
        command.args(["gc", "--json", "--state"]).arg(dir.path());
        command
    };
    std::fs::write(&in_use, "[oops").unwrap();
    fail(&mut gc(), 1, "images in use");
    std::fs::write(&in_use, serde_json::to_string(&[id]).unwrap()).unwrap();
    drop(store);
    assert_eq!(json(&mut gc())["images"], serde_json::json!([]));
    std::fs::write(&in_use, "[]").unwrap();
    assert_eq!(json(gc().args(["--keep", &id.hex()]))["images"], serde_json::json!([]));
    assert_eq!(json(gc().arg("--dry-run"))["images"], serde_json::json!([id]));
    assert_eq!(json(&mut gc())["images"], serde_json::json!([id]));
    assert_eq!(json(kiln_at(dir.path()).args(["ls", "--json"]))["images"], serde_json::json!([]));

    assert_eq!(
        json(kiln_at(dir.path()).args(["load", "--json"]).arg(&file))["names"],
        serde_json::json!(["zed/test:v2"])
    );
    let layer = id::Digest::of(&image.blobs[3]).hex();
    std::fs::write(dir.path().join("store/blobs/sha256").join(layer), vec![0; image.blobs[3].len()]).unwrap();
    fail(kiln_at(dir.path()).args(["verify", "zed/test:v2"]), 4, "layer role");
}

fn kiln_at(dir: &Path) -> Command {
    kiln(&dir.join("store"))
}

#[test]
fn a_machine_without_a_store_has_no_images_and_gets_none_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(json(kiln_at(dir.path()).args(["ls", "--json"]))["images"], serde_json::json!([]));
    fail(kiln_at(dir.path()).args(["show", "zed/test"]), 1, "there is no store");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_key_is_made_and_its_public_half_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("builder.key");
    let key = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("key").args(arguments).arg(&file);
        command
    };
    let public = succeed(&mut key(&["new"]));
    let made = kiln::image::key::load(&file).unwrap();
    assert_eq!(public.trim(), sign::public_text(&made.verifying_key()));
    fail(&mut key(&["new"]), 1, "exists already");
    assert!(kiln::image::key::load(&file).unwrap() == made);
}

#[test]
fn an_image_goes_through_a_pipe() {
    let (dir, store) = fresh();
    let id = image("zed", "test", 1).commit(&store, Some("v1"));
    let mut save = kiln(store.path()).args(["save", &id.hex(), "-"]).stdout(Stdio::piped()).spawn().unwrap();
    let other = dir.path().join("other");
    succeed(kiln(&other).args(["load", "-"]).stdin(save.stdout.take().unwrap()));
    assert!(save.wait().unwrap().success());
    good(&Store::open(&other).unwrap(), &id);
    // A reader that goes away is an error for `save` only.
    assert!(succeed(kiln(&other).args(["ls"])).contains("zed/test:v1"));
}

#[test]
fn skopeo_reads_the_store() {
    if !has("skopeo") {
        return;
    }
    let (dir, store) = fresh();
    let id = image("zed", "test", 1).commit(&store, Some("latest"));
    image("zed", "infra", 2).commit(&store, Some("latest"));
    let skopeo = |arguments: &[&str]| succeed(Command::new("skopeo").args(arguments).env("HOME", dir.path()));
    let reference = format!("oci:{}:zed/test:latest", store.path().display());
    let plain: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", &reference])).unwrap();
    assert_eq!(plain["Digest"], id.to_string());
    assert_eq!(plain["Layers"].as_array().unwrap().len(), 3);
    let config: serde_json::Value =
        serde_json::from_str(&skopeo(&["inspect", "--config", "--raw", &reference])).unwrap();
    assert_eq!(config["role"], "test");
    assert_eq!(skopeo(&["inspect", "--raw", &reference]).as_bytes(), store.manifest_bytes(&id).unwrap());

    // It may also write: our rows outlive its rewriting of the index.
    let again = format!("oci:{}:theirs", store.path().display());
    skopeo(&["copy", "--quiet", "--insecure-policy", &reference, &again]);
    assert_eq!(store.resolve("zed/test").unwrap(), id);
    assert!(store.resolve("zed/infra").is_ok());
    drop(store);
    let store = Store::open(&dir.path().join("store")).unwrap();
    assert_eq!(store.gc(&[], false).unwrap().images, []);
    good(&store, &id);
    // And an archive of ours is one of its.
    let file = dir.path().join("image.tar");
    succeed(kiln(store.path()).args(["save", "zed/test"]).arg(&file));
    skopeo(&["inspect", &format!("oci-archive:{}:zed/test:latest", file.display())]);
}

/// Debian's docker-registry on a free loopback port, ended with the test.
struct Registry {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start(auth: Option<&str>) -> Option<Registry> {
        if !has("docker-registry") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let auth = auth.map_or(String::new(), |line| {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, line).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        });
        let data = dir.path().join("data");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
            data.display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        let child = command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Registry { child, port, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    fn reference(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_goes_through_a_registry_with_its_signature() {
    let Some(registry) = Registry::start(None) else { return };
    let (dir, store) = fresh();
    let (one, two) = (image("zed", "test", 1), image("zed", "test", 2));
    one.commit(&store, Some("v1"));
    two.commit(&store, Some("v2"));
    let reference = registry.reference("zed/test:v1");
    let events = succeed(kiln(store.path()).args(["push", "zed/test:v1", &reference, "--events", "json"]));
    let states: Vec<serde_json::Value> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(states.iter().all(|s| s["state"] == "done") && states.len() == 6, "{events}");
    let again = succeed(kiln(store.path()).args(["push", "zed/test:v1", &reference, "--events", "json"]));
    assert!(again.lines().all(|l| l.contains("cached")), "{again}");
    let shared = succeed(kiln(store.path()).args([
        "push",
        "zed/test:v2",
        &registry.reference("zed/test:v2"),
        "--events",
        "json",
    ]));
    assert_eq!(shared.matches("\"cached\"").count(), 3, "config, initramfs and the empty blob: {shared}");

    let other = dir.path().join("other");
    let pulled = json(kiln(&other).args(["pull", &reference, "--json"]));
    assert_eq!((&pulled["id"], &pulled["names"][0]), (&one.id.to_string().into(), &"zed/test:v1".into()));
    let other_store = Store::open(&other).unwrap();
    good(&other_store, &one.id);
    assert_eq!(other_store.envelope(&one.id).unwrap(), one.envelope);
    succeed(kiln(&other).args(["pull", &registry.reference(&format!("zed/test@{}", two.id))]));
    good(&other_store, &two.id);
    assert!(other_store.names(&two.id).unwrap().is_empty());
    if has("skopeo") {
        let inspected = succeed(Command::new("skopeo").args([
            "inspect",
            "--tls-verify=false",
            "--raw",
            &format!("docker://{reference}"),
        ]));
        assert_eq!(id::Digest::of(inspected.as_bytes()), one.id);
    }
    fail(kiln(&other).args(["pull", &registry.reference("zed/test:none")]), 1, "404");
    fail(kiln(&other).args(["pull", &registry.reference("zed/none")]), 1, "404");
    fail(kiln(&other).args(["pull", "zed/test"]), 2, "registry's host");
    fail(
        kiln(store.path()).args(["push", "zed/test:v1", &registry.reference(&format!("zed/test@{}", two.id))]),
        1,
        "another",
    );
}

#[test]
fn a_registry_may_ask_for_a_password() {
    // As `htpasswd -Bbn kiln secret` prints it.
    let line = "kiln:$2b$05$HLC8ek4XgnLYydTIT1dZx.DUEaZQeItRjcrIfvjEoYZJYcfCkenUS\n";
    let Some(registry) = Registry::start(Some(line)) else { return };
    let (dir, store) = fresh();
    image("zed", "test", 1).commit(&store, Some("v1"));
    let reference = registry.reference("zed/test:v1");
    fail(kiln(store.path()).args(["push", "zed/test:v1", &reference]), 1, "asks for a password");
    let login = |password: &str| {
        use base64::Engine;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("kiln:{password}"));
        let config = serde_json::json!({ "auths": { format!("127.0.0.1:{}", registry.port): { "auth": auth } } });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    };
    login("wrong");
    fail(kiln(store.path()).env("DOCKER_CONFIG", dir.path()).args(["push", "zed/test:v1", &reference]), 1, "401");
    login("secret");
    succeed(kiln(store.path()).env("DOCKER_CONFIG", dir.path()).args(["push", "zed/test:v1", &reference]));
    succeed(kiln(&dir.path().join("other")).env("DOCKER_CONFIG", dir.path()).args(["pull", &reference]));
}

/// Every file below the store with its size, and the index's bytes.
fn state(store: &Path) -> (BTreeSet<(PathBuf, u64)>, Vec<u8>) {
    let mut files = BTreeSet::new();
    let mut folders = vec![store.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let (path, metadata) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
            match metadata.is_dir() {
                true => folders.push(path),
                false => assert!(files.insert((path, metadata.len()))),
            }
        }
    }
    (files, std::fs::read(store.join("index.json")).unwrap())
}

fn archived(image: &TestImage, tag: &str) -> Vec<u8> {
    let (_dir, store) = fresh();
    let id = image.commit(&store, Some(tag));
    let mut tar = Vec::new();
    archive::save(&store, &id, &store.names(&id).unwrap(), &mut tar).unwrap();
    tar
}

/// A small file system of its own, unmounted with the test. None where mounting is not allowed.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("none"), dir.path(), Some("tmpfs"), flags, Some(options)) {
            Ok(()) => Some(SmallDisk(dir)),
            Err(e) => {
                eprintln!("skipped: mounting a small tmpfs: {e}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_fills_up_at_any_moment_leaves_the_store_as_it_was() {
    const PAGE: u64 = 4096;
    let Some(disk) = SmallDisk::mount("size=1m") else { return };
    let root = disk.0.path().join("store");
    let kept = image("zed", "infra", 9);
    kept.commit(&Store::open(&root).unwrap(), Some("v1"));
    let tar = archived(&image("zed", "test", 1), "v1");
    let big = archived(&image_of("zed", "test", 2, vec![7; 2 << 20]), "v1");
    let before = state(&root);
    let filler = disk.0.path().join("filler");
    let free = || {
        let s = nix::sys::statvfs::statvfs(disk.0.path()).unwrap();
        s.blocks_available() * s.fragment_size()
    };
    let attempt = |tar: &[u8]| {
        let store = Store::open(&root)?;
        archive::load(&store, tar)
    };
    let error = format!("{:#}", attempt(&big).unwrap_err());
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(state(&root), before);
    let mut failed = 0;
    for pages in 0.. {
        let mut file = std::fs::File::create(&filler).unwrap();
        let mut fill = free().saturating_sub(pages * PAGE);
        while fill > 0 && file.write_all(&vec![1; fill.min(PAGE) as usize]).is_ok() {
            fill = fill.saturating_sub(PAGE);
        }
        drop(file);
        let result = attempt(&tar);
        std::fs::remove_file(&filler).unwrap();
        match result {
            Ok(_) => break,
            Err(_) => assert_eq!(state(&root), before, "{pages} pages free"),
        }
        failed += 1;
    }
    assert!(failed > 5, "it ran full at {failed} different moments");
    let store = Store::open(&root).unwrap();
    good(&store, &kept.id);
    good(&store, &store.resolve("zed/test:v1").unwrap());
    let out = disk.0.path().join("out.tar");
    std::fs::write(&filler, vec![1; free() as usize - 2 * PAGE as usize]).unwrap();
    fail(kiln(&root).args(["save", "zed/infra:v1"]).arg(&out), 1, "No space left");
    let names = std::fs::read_dir(disk.0.path()).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        ["filler".into(), "store".into()].into(),
        "no piece of the archive stays"
    );
}

#[test]
fn a_file_size_limit_leaves_the_store_as_it_was() {
    let (dir, store) = fresh();
    image("zed", "infra", 9).commit(&store, Some("v1"));
    let root = store.path().to_path_buf();
    drop(store);
    let before = state(&root);
    let file = dir.path().join("big.tar");
    std::fs::write(&file, archived(&image_of("zed", "test", 2, vec![7; 1 << 20]), "v1")).unwrap();
    let script = r#"trap "" XFSZ; ulimit -f 512; exec "$0" image load "$1""#; // units of 512 bytes or of 1 KiB
    let mut limited = Command::new("sh");
    limited.args(["-c", script, env!("CARGO_BIN_EXE_kiln")]).arg(&file).env("KILN_STORE", &root);
    fail(&mut limited, 1, "File too large");
    assert_eq!(state(&root), before);
}

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_images_only() {
    let (dir, store) = fresh();
    let root = store.path().to_path_buf();
    let kept = image("zed", "infra", 9).commit(&store, Some("v1"));
    drop(store);
    let files: Vec<PathBuf> = (0..4u8)
        .map(|n| {
            let file = dir.path().join(format!("{n}.tar"));
            let layer = (0..1_000_000u32).map(|i| (i as u8).wrapping_mul(n + 1)).collect();
            std::fs::write(&file, archived(&image_of("zed", "test", n, layer), &format!("v{n}"))).unwrap();
            file
        })
        .collect();
    let spawn = |arguments: &[&str], file: Option<&Path>| {
        let mut command = kiln(&root);
        command.args(arguments).args(file).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let started = Instant::now();
    assert!(spawn(&["load"], Some(&files[0])).wait().unwrap().success());
    let whole = started.elapsed();
    succeed(kiln(&root).args(["untag", "zed/test:v0"]));
    let mut interrupted = 0;
    for round in 0..24u32 {
        let mut loader = spawn(&["load"], Some(&files[round as usize % files.len()]));
        let state = dir.path().to_str().unwrap();
        let mut collector = spawn(&["gc", "--state", state], None);
        std::thread::sleep(whole * (round * 7 % 24) / 20);
        let _ = (loader.kill(), collector.kill());
        interrupted += u32::from(!loader.wait().unwrap().success());
        collector.wait().unwrap();
        let store = Store::open(&root).unwrap();
        for entry in store.list().unwrap() {
            good(&store, &entry.id);
        }
        assert!(store.image(&kept).is_ok());
        if round % 5 == 4 {
            for name in store.list().unwrap().iter().flat_map(|e| &e.names).filter(|n| n.starts_with("zed/test")) {
                store.untag(name).unwrap();
            }
        }
    }
    assert!(interrupted > 0, "no kill hit a running writer");
    let store = Store::open(&root).unwrap();
    for file in &files {
        archive::load(&store, std::fs::File::open(file).unwrap()).unwrap();
    }
    store.gc(&[], false).unwrap();
    let images = store.list().unwrap();
    let mut needed = BTreeSet::from([id::Digest::of(b"{}")]);
    for entry in &images {
        good(&store, &entry.id);
        let signature = store.signature_manifest(&entry.id).unwrap();
        let parsed = signature::SignatureManifest::parse(&signature, &entry.id).unwrap();
        needed.extend([entry.id, id::Digest::of(&signature), parsed.envelope().digest]);
        needed.extend(store.image(&entry.id).unwrap().blobs().map(|b| b.digest));
    }
    assert_eq!(images.len(), 5);
    let there = std::fs::read_dir(root.join("blobs/sha256")).unwrap().map(|e| e.unwrap().file_name());
    let there: BTreeSet<id::Digest> = there.map(|n| n.to_str().unwrap().parse().unwrap()).collect();
    assert_eq!(there, needed, "gc left exactly what the images need");
    assert_eq!(std::fs::read_dir(root.join(".kiln/sessions")).unwrap().count(), 0);
    let tmp = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().to_string_lossy().starts_with(".kiln-tmp");
    assert!(!std::fs::read_dir(&root).unwrap().any(tmp));
}

/// What a registry answers to a path: status and body, after at most so many bytes of which it hangs up.
type Paths = BTreeMap<String, (Vec<u8>, usize)>;

/// A registry of our own making, as hostile as `paths` says; it knows Range.
fn fake_registry(paths: Paths) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let paths = Arc::new(paths);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let head: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
            let range =
                head.iter().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_string));
            let from = range.and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
            let path = first.split(' ').nth(1).unwrap_or_default();
            let Some((body, cut)) = paths.get(path) else {
                let _ = stream.write_all(b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n");
                continue;
            };
            let start = from.unwrap_or(0).min(body.len());
            let status = match from {
                None => "200 OK".to_string(),
                Some(_) => format!("206 P\r\nContent-Range: bytes {start}-{}/{}", body.len() - 1, body.len()),
            };
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len() - start);
            let _ = stream.write_all(&body[start..body.len().min(start.saturating_add(*cut))]);
        }
    });
    address
}

fn honest(image: &TestImage) -> Paths {
    let wrapped = signature::wrap(&image.manifest, &image.envelope);
    let blob = |bytes: &Vec<u8>| (format!("/v2/zed/test/blobs/{}", id::Digest::of(bytes)), (bytes.clone(), usize::MAX));
    let manifest = |name: &str, bytes: &[u8]| (format!("/v2/zed/test/manifests/{name}"), (bytes.to_vec(), usize::MAX));
    let mut paths: Paths = image.blobs.iter().chain([&wrapped.envelope]).map(blob).collect();
    paths.extend([manifest("v1", &image.manifest), manifest(&reference::signature_tag(&image.id), &wrapped.manifest)]);
    paths
}

#[test]
fn a_pull_goes_on_where_the_connection_broke() {
    let image = image("zed", "test", 1);
    let mut paths = honest(&image);
    // Every connection breaks after a third.
    for (_, (body, cut)) in paths.iter_mut().filter(|(path, _)| path.contains("/blobs/")) {
        if body.len() > 100 && *body != image.blobs[0] {
            *cut = body.len() / 3 + 1;
        }
    }
    let envelope = signature::wrap(&image.manifest, &image.envelope).envelope;
    paths.insert(format!("/v2/zed/test/blobs/{}", id::Digest::of(&envelope)), (envelope, usize::MAX));
    let (dir, store) = fresh();
    succeed(kiln(store.path()).args(["pull", &format!("{}/zed/test:v1", fake_registry(paths))]));
    good(&store, &image.id);
    drop(dir);
}

#[test]
fn a_hostile_registry_changes_nothing() {
    let image = image("zed", "test", 1);
    let layer = format!("/v2/zed/test/blobs/{}", id::Digest::of(&image.blobs[3]));
    let signature = format!("/v2/zed/test/manifests/{}", reference::signature_tag(&image.id));
    let v1 = "/v2/zed/test/manifests/v1".to_string();
    let stranger = sign::sign(&image.manifest, &ed25519_dalek::SigningKey::from_bytes(&[9; 32]));
    let forged = signature::wrap(&image.manifest, &stranger);
    let forged_blob = format!("/v2/zed/test/blobs/{}", id::Digest::of(&forged.envelope));
    let whole = |bytes: &[u8]| (bytes.to_vec(), usize::MAX);
    let other = testing::image("zed", "infra", 1);
    type Changes = Vec<(String, (Vec<u8>, usize))>;
    let rows: Vec<(&str, Changes, &str)> = vec![
        ("other bytes", vec![(layer.clone(), whole(&vec![0; image.blobs[3].len()]))], "bytes hash to"),
        ("shorter", vec![(layer.clone(), whole(b"short"))], "has 5 bytes"),
        ("longer", vec![(layer.clone(), whole(&vec![0; 99_999]))], "larger than"),
        ("no manifest", vec![(v1.clone(), whole(b"{}"))], "manifest is not valid"),
        ("huge manifest", vec![(v1.clone(), whole(&vec![b' '; 5 << 20]))], "larger than"),
        ("not ours", vec![(v1.clone(), whole(br#"{"schemaVersion":2,"layers":[]}"#))], "manifest is not valid"),
        ("other role", honest(&other).into_iter().chain([(v1.clone(), whole(&other.manifest))]).collect(), ""),
        ("unsigned", vec![(signature.clone(), whole(b"{}"))], "signature's manifest is not valid"),
        (
            "stranger",
            vec![(signature.clone(), whole(&forged.manifest)), (forged_blob, whole(&forged.envelope))],
            "none of which",
        ),
    ];
    for (label, changes, expected) in rows {
        let mut paths = honest(&image);
        paths.extend(changes);
        let (_dir, store) = fresh();
        let before = state(store.path());
        let reference = format!("{}/zed/test:v1", fake_registry(paths));
        if label == "other role" {
            // What its own config says is its name, whatever the repository is called.
            assert!(succeed(kiln(store.path()).args(["pull", &reference])).contains("zed/infra:v1"));
            continue;
        }
        fail(kiln(store.path()).args(["pull", &reference]), 1, expected);
        let after = state(store.path());
        let lock = store.path().join(".kiln/lock");
        let ours =
            |s: &BTreeSet<(PathBuf, u64)>| s.iter().filter(|(p, _)| *p != lock).cloned().collect::<BTreeSet<_>>();
        assert_eq!((ours(&after.0), after.1), (ours(&before.0), before.1), "{label}");
    }
    let paths = honest(&image);
    let (_dir, store) = fresh();
    let digest = format!("{}/zed/test@{}", fake_registry(paths), other.id);
    fail(kiln(store.path()).args(["pull", &digest]), 1, "404");
}
