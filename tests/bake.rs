//! Bakes of real packages: the same id wherever and whenever, nothing left by a killed build,
//! nothing baked that is not locked. Dear: run by `scripts/test` (KILN_TEST_LEVEL=full, root,
//! target/release built); quick runs only say so.

mod dear;

use dear::{full, root, succeed, text};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A folder with recipes, overlays, cache and store of its own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `packages`: start with what the user's cache has of those, so that mirrors are not asked again.
    fn new(packages: bool) -> Place {
        let place = Place { dir: tempfile::tempdir().expect("a temporary folder") };
        for folder in ["recipes", "overlays"] {
            succeed(Command::new("cp").arg("-r").arg(root().join(folder)).arg(place.path("")));
        }
        std::fs::create_dir(place.path("cache")).expect("the cache");
        if packages {
            succeed(Command::new("cp").arg("-r").arg(cache().join("packages")).arg(place.path("cache")));
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `kiln` in this place, run through `wrapper` (such as `taskset`, `-c`, `0`).
    fn kiln(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let kiln = root().join("target/release/kiln");
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(kiln);
                command
            }
            None => Command::new(kiln),
        };
        command.args(args).current_dir(self.dir.path()).env("KILN_CACHE", self.path("cache"));
        command.env("KILN_STORE", self.path("store")).env("KILN_KEY", self.path("builder.key"));
        command
    }

    fn build(&self, wrapper: &[&str]) -> Output {
        self.kiln(wrapper, &["build", "zed/test"]).output().expect("running kiln build")
    }

    fn images(&self) -> String {
        succeed(&mut self.kiln(&[], &["image", "ls", "--json"]))
    }

    /// Mounts and loop devices that name this place.
    fn leftovers(&self) -> Vec<String> {
        let name = self.dir.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/mounts").expect("reading mounts");
        let loops = succeed(Command::new("losetup").arg("--all"));
        mounts.lines().chain(loops.lines()).filter(|l| l.contains(&name)).map(str::to_string).collect()
    }
}

fn cache() -> PathBuf {
    let set = std::env::var_os("KILN_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/kiln");
    set.unwrap_or_else(home)
}

fn id(output: &Output) -> String {
    let text = text(output);
    assert!(output.status.success(), "{text}");
    let at = text.find("sha256:").unwrap_or_else(|| panic!("no id in: {text}"));
    text[at..at + 71].to_string()
}

#[test]
fn the_same_inputs_give_the_same_id_anywhere_at_any_time() {
    if !full("same id") {
        return;
    }
    dear::bake("zed/test");
    let (here, there) = (Place::new(true), Place::new(true));
    succeed(&mut here.kiln(&[], &["key", "new", "builder.key"]));
    std::fs::copy(here.path("builder.key"), there.path("builder.key")).expect("the same builder");
    let one = id(&here.build(&["sh", "-c", "umask 022; exec \"$@\"", "sh"]));
    let other = "umask 077; hostname elsewhere; exec taskset -c 0 faketime '+400 days' \"$@\"";
    let two = id(&there.build(&["unshare", "--uts", "sh", "-c", other, "sh"]));
    assert_eq!(one, two);
}

#[test]
fn a_killed_build_leaves_no_image_and_no_mount() {
    if !full("killed build") {
        return;
    }
    dear::bake("zed/test");
    let place = Place::new(true);
    let seed = std::env::var("KILN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(std::process::id);
    println!("replay with KILN_SEED={seed}");
    let mut random = u64::from(seed);
    for _ in 0..5 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut command = place.kiln(&[], &["build", "zed/test"]);
        let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting");
        std::thread::sleep(Duration::from_millis((random >> 33) % 20_000));
        child.kill().expect("killing");
        child.wait().expect("waiting");
        // What the killed process held is let go when its children are gone.
        std::thread::sleep(Duration::from_millis(1000));
        assert_eq!(place.leftovers(), Vec::<String>::new());
        let images = place.images();
        assert!(!images.contains("zed/test") || images.contains("sha256:"), "half an image: {images}");
    }
    id(&place.build(&[]));
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn what_is_not_locked_is_not_baked() {
    if !full("fails closed") {
        return;
    }
    dear::bake("zed/test");
    let place = Place::new(false);
    let lock = place.path("recipes/zed/test.lock");
    let good = std::fs::read_to_string(&lock).expect("the lock");
    let first = good.find("sha256 = \"").expect("a digest") + 10;
    let wrong_digest = format!("{}{}{}", &good[..first], "0".repeat(64), &good[first + 64..]);
    for (what, bytes, status, says) in [
        ("no lock", None, 2, "kiln lock"),
        ("another request", Some(good.replacen("request = \"", "request = \"0", 1)), 2, "lock"),
        ("a digest that no mirror has", Some(wrong_digest), 1, "--update"),
    ] {
        match bytes {
            Some(bytes) => std::fs::write(&lock, bytes).expect("writing the lock"),
            None => std::fs::remove_file(&lock).expect("removing the lock"),
        }
        let output = place.build(&[]);
        assert_eq!(output.status.code(), Some(status), "{what}: {}", text(&output));
        assert!(text(&output).contains(says), "{what}: {}", text(&output));
        assert!(!place.images().contains("zed/test"), "{what}");
    }
}

const CENTOS: [(&str, &str); 2] =
    [("base", "centos/7/os/x86_64"), ("mitaka", "centos/7/cloud/x86_64/openstack-mitaka")];

/// The stand-in mirror (made once, kept in the cache) as `--mirror` flags, its key beside the recipes.
fn standin(place: &Place, repositories: &[(&str, &str)]) -> Vec<String> {
    let dir = cache().join("standin");
    succeed(Command::new(root().join("tests/standin/make")).arg(&dir));
    std::fs::create_dir_all(place.path("recipes/mitaka/keys")).expect("a folder of keys");
    let mut flags = Vec::new();
    for (id, path) in repositories {
        let key = place.path(&format!("recipes/mitaka/keys/{id}.asc"));
        std::fs::copy(dir.join("RPM-GPG-KEY-standin"), key).expect("the key");
        flags.extend(["--mirror".into(), format!("{id}=file://{}", dir.join(path).display())]);
    }
    flags
}

#[test]
fn each_mariadb_comes_from_one_source() {
    if !full("sources of MariaDB") {
        return;
    }
    for (recipe, source, server) in [
        ("base-mariadb", Some("mariadb/10.1/centos7-amd64"), "MariaDB-server 0:10.1.48-1.el7.centos mariadb"),
        ("base-mariadb-rdo", None, "mariadb-server 3:10.1.20-1.el7 mitaka"),
        (
            "base-mariadb-10-0",
            Some("mariadb/10.0/centos7-amd64"),
            "MariaDB-Galera-server 0:10.0.38-1.el7.centos mariadb",
        ),
    ] {
        let place = Place::new(false);
        let infra = place.path("recipes/mitaka/infra.toml");
        let text = std::fs::read_to_string(&infra).expect("the recipe");
        assert!(text.contains("extends = [\"base-mariadb\"]"), "{text}");
        let text = text.replace("extends = [\"base-mariadb\"]", &format!("extends = [\"{recipe}\"]"));
        std::fs::write(&infra, text).expect("writing the recipe");
        let repositories: Vec<_> = CENTOS.into_iter().chain(source.map(|path| ("mariadb", path))).collect();
        let mirrors = standin(&place, &repositories);
        let arguments: Vec<&str> =
            ["lock", "mitaka/infra"].into_iter().chain(mirrors.iter().map(String::as_str)).collect();
        succeed(&mut place.kiln(&["unshare", "--net"], &arguments));
        let lock = std::fs::read_to_string(place.path("recipes/mitaka/infra.lock")).expect("the lock");
        let lock = kiln::recipe::lock::Lock::parse(&lock, "infra.lock").expect("a lock");
        let theirs = |name: &str| name == "galera" || name.to_lowercase().starts_with("mariadb");
        let found: Vec<_> = lock.packages.iter().filter(|p| theirs(&p.name)).collect();
        let one = &found.first().expect("a MariaDB").repository;
        assert!(found.iter().all(|p| p.repository == *one), "{recipe}: {found:?}");
        let shown: Vec<String> = found.iter().map(|p| format!("{} {} {}", p.name, p.version, p.repository)).collect();
        assert!(shown.iter().any(|s| s == server), "{recipe}: {shown:?}");
    }
}

#[test]
fn a_yum_role_is_locked_and_baked_without_a_network_the_same_twice() {
    if !full("yum role") {
        return;
    }
    let (here, there) = (Place::new(false), Place::new(false));
    succeed(&mut here.kiln(&[], &["key", "new", "builder.key"]));
    std::fs::copy(here.path("builder.key"), there.path("builder.key")).expect("the same builder");
    let mirrors = standin(&here, &CENTOS);
    let with =
        |args: &[&'static str]| args.iter().copied().chain(mirrors.iter().map(String::as_str)).collect::<Vec<_>>();
    let home = std::env::var("HOME").unwrap_or_default();
    let places = ["/var/lib/dnf", "/var/lib/rpm", "/var/log/dnf.log", &format!("{home}/.rpmdb")].map(PathBuf::from);
    let host = || places.each_ref().map(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok());
    let before = host();
    succeed(&mut here.kiln(&["unshare", "--net"], &with(&["lock", "mitaka/test"])));
    let one = id(&here.kiln(&["unshare", "--net"], &with(&["build", "mitaka/test"])).output().expect("building"));
    assert_eq!(host(), before, "the host's dnf and rpm stay as they were");

    // What it was made from is preloaded; a second role with the same packages shares it.
    let repositories = |role: &str| -> Vec<String> {
        let shown = succeed(&mut here.kiln(&[], &["image", "show", role, "--json"]));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(shown["preloaded"][0]["preload"], "closure");
        let blobs = shown["blobs"].as_array().expect("blobs");
        let of =
            |b: &serde_json::Value| b["name"].as_str()?.starts_with("repository ").then(|| b["digest"].to_string());
        blobs.iter().filter_map(of).collect()
    };
    let first = repositories("mitaka/test");
    let second = "role = \"other\"\nextends = [\"test\"]\n[kernel]\ncmdline = [\"other\"]\n";
    std::fs::write(here.path("recipes/mitaka/other.toml"), second).expect("a second role");
    succeed(&mut here.kiln(&["unshare", "--net"], &with(&["lock", "mitaka/other"])));
    succeed(&mut here.kiln(&["unshare", "--net"], &with(&["build", "mitaka/other"])));
    assert_eq!((first.len(), repositories("mitaka/other")), (1, first));

    // From the cache alone: no mirror; another time, umask and processor count.
    std::fs::copy(here.path("recipes/mitaka/test.lock"), there.path("recipes/mitaka/test.lock")).expect("the lock");
    succeed(Command::new("cp").arg("-r").arg(here.path("recipes/mitaka/keys")).arg(there.path("recipes/mitaka")));
    succeed(Command::new("cp").arg("-r").arg(here.path("cache/packages")).arg(there.path("cache")));
    let other = "umask 077; exec taskset -c 0 faketime '+400 days' \"$@\"";
    let wrapper = ["unshare", "--net", "sh", "-c", other, "sh"];
    let two = id(&there.kiln(&wrapper, &["build", "mitaka/test"]).output().expect("building"));
    assert_eq!(one, two);
}
