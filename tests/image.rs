//! The store and `kiln image` against what others use: skopeo, Debian's docker-registry, full disks
//! and kill -9.

use kiln::image::{id, manifest, sign, store};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use store::Store;

#[path = "../src/image/testing.rs"]
#[allow(dead_code)]
mod testing;
use testing::image;

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
