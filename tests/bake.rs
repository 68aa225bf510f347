//! Bakes of real packages: the same id wherever and whenever, nothing left by a killed build,
//! nothing baked that is not locked. Dear: run by `scripts/test` (KILN_TEST_LEVEL=full, root,
//! target/release built); quick runs only say so.

mod dear;

use dear::{full, root, succeed, text};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
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
        let own = self.path("bin/kiln");
        let kiln = if own.exists() { own } else { root().join("target/release/kiln") };
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

    /// Gives all of it, and programs of its own, to a user who may not look into the tree.
    fn give_to(&self, user: &User) {
        std::fs::create_dir(self.path("bin")).expect("a folder of programs");
        for program in ["kiln", "kiln-node"] {
            std::fs::copy(root().join("target/release").join(program), self.path("bin").join(program)).expect(program);
        }
        succeed(Command::new("chown").arg("-R").arg(format!("{0}:{0}", user.id)).arg(self.dir.path()));
    }

    /// What of cache and store belongs to somebody else.
    fn not_of(&self, user: &User) -> String {
        let mut find = Command::new("find");
        find.args([self.path("cache"), self.path("store")]).args(["!", "-uid", &user.id, "-o", "!", "-gid", &user.id]);
        String::from_utf8_lossy(&find.output().expect("running find").stdout).into_owned()
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

/// A user with subordinate ids, gone at the end.
struct User {
    name: String,
    id: String,
}

impl User {
    fn new() -> User {
        let name = format!("kiln-test-{}", std::process::id());
        succeed(Command::new("useradd").args(["--no-create-home", "--no-log-init", "--shell", "/bin/false", &name]));
        let id = succeed(Command::new("id").args(["--user", &name])).trim().to_string();
        let user = User { name, id };
        for file in ["/etc/subuid", "/etc/subgid"] {
            let ids = std::fs::read_to_string(file).expect("subordinate ids");
            assert!(ids.contains(&user.name), "useradd gave no subordinate ids: {ids}");
        }
        user
    }

    /// Runs what follows as this user, `then` between.
    fn wrapper<'a>(&'a self, then: &[&'a str]) -> Vec<&'a str> {
        [&["setpriv", "--reuid", &self.id, "--regid", &self.id, "--clear-groups"], then].concat()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["--force", &self.name]).output(); // its subordinate ids, too
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
    // What an earlier bake left in the cache is the first of the two.
    verified(dear::kiln().args(["build", "--verify", "zed/test"]), &cache());
    // Said before anything is baked.
    let hide =
        "mount -t tmpfs none /usr/lib/x86_64-linux-gnu/faketime && exec target/release/kiln build --verify zed/test";
    let without = Command::new("unshare").args(["--mount", "sh", "-c", hide]).current_dir(root()).output().expect("sh");
    assert_eq!(without.status.code(), Some(2), "{}", text(&without));
    assert!(text(&without).contains("apt-get install faketime"), "{}", text(&without));
}

/// Runs `kiln build --verify`: it holds, inside the tree too, and leaves no second bake behind.
fn verified(command: &mut Command, cache: &Path) {
    let said = succeed(command);
    assert!(said.contains("verified: baked twice, the same id; the second time with the clock +400d, "), "{said}");
    let work = std::fs::read_dir(cache.join("work")).expect("the work folders").flatten();
    assert_eq!(work.filter(|e| e.path().is_dir()).count(), 0, "nothing is left behind");
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

#[test]
fn an_ordinary_user_bakes_the_same_image_and_leaves_nothing_foreign() {
    if !full("rootless bake") {
        return;
    }
    dear::bake("zed/test");
    let of_root = id(&dear::kiln().args(["build", "zed/test"]).output().expect("building as root"));
    let (user, place) = (User::new(), Place::new(true));
    let key = std::env::var("KILN_KEY").unwrap_or_else(|_| "/var/lib/kiln/builder.key".into());
    std::fs::copy(key, place.path("builder.key")).expect("the same builder");
    place.give_to(&user);
    let build = || place.kiln(&user.wrapper(&[]), &["build", "zed/test"]);

    // Killed in the middle: what belongs to subordinate ids is removed by the next build.
    let mut child = build().process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting");
    for _ in 0..1200 {
        // Several: one may be a file that is about to go.
        if place.not_of(&user).lines().count() > 9 || child.try_wait().expect("looking").is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().expect("killing");
    child.wait().expect("waiting");
    let left = place.not_of(&user);
    assert!(left.contains("work/build-"), "the build was killed before it had unpacked anything: {left}");

    assert_eq!(id(&build().output().expect("building")), of_root);
    assert_eq!(place.not_of(&user), "", "all of cache and store is the user's");
    let work: Vec<_> = std::fs::read_dir(place.path("cache/work")).expect("the work folder").flatten().collect();
    assert!(work.iter().all(|e| e.file_name() == ".lock"), "{work:?}");
    succeed(&mut place.kiln(&user.wrapper(&[]), &["image", "lint", "zed/test"]));
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn who_cannot_have_a_user_namespace_is_told_why_and_nothing_is_done() {
    if !full("rootless refusals") {
        return;
    }
    let (user, place) = (User::new(), Place::new(false));
    std::fs::remove_dir(place.path("cache")).expect("removing the cache");
    place.give_to(&user);
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let map = format!("--map-user={}", user.id);
    let off = ["unshare", "--user", &map, "--keep-caps", "sh", "-c"];
    let off = [&off[..], &["echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"", "sh"]].concat();
    for (wrapper, says) in [
        (nobody.to_vec(), "add the line nobody:100000:65536 to it"),
        (user.wrapper(&["env", "PATH=/nowhere"]), "apt-get install uidmap"),
        (user.wrapper(&off), "sysctl -w user.max_user_namespaces"),
        (user.wrapper(&["unshare", "--user", "--map-root-user"]), "has 1 ids"),
    ] {
        let output = place.kiln(&wrapper, &["build", "zed/test"]).output().expect("running kiln build");
        assert_eq!(output.status.code(), Some(2), "{wrapper:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{wrapper:?}: {}", text(&output));
        assert!(!place.path("cache").exists() && !place.path("store").exists(), "{wrapper:?} left something");
    }
}

/// What lock and bake of a yum role could touch on the host: every file's length, mode and time.
fn host() -> BTreeMap<PathBuf, (u64, u32, i64, i64)> {
    const LOGS: [&str; 5] = ["apt", "dnf", "hawkey", "rpm", "yum"];
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let folders = ["/etc", "/var/lib/dnf", "/var/lib/rpm", "/var/lib/yum", "/var/cache/dnf", "/var/cache/yum"];
    let mut pending: Vec<PathBuf> = folders.iter().map(PathBuf::from).chain([home.join(".rpmdb")]).collect();
    let logs = std::fs::read_dir("/var/log").into_iter().flatten().flatten();
    pending
        .extend(logs.filter(|e| LOGS.iter().any(|l| e.file_name().to_string_lossy().starts_with(l))).map(|e| e.path()));
    let mut found = BTreeMap::new();
    while let Some(path) = pending.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            pending.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
        found.insert(path, (meta.len(), meta.mode(), meta.mtime(), meta.mtime_nsec()));
    }
    found
}

/// Runs to the end; answers what that was and the limits of open files under which rpm ran in `place`.
fn watched(command: &mut Command, place: &Path) -> (Output, Vec<String>) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starting");
    let place = place.display().to_string();
    let ended = std::sync::atomic::AtomicBool::new(false);
    let mut limits = Vec::new();
    let output = std::thread::scope(|scope| {
        let output = scope.spawn(|| {
            let output = child.wait_with_output();
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            output
        });
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            for process in std::fs::read_dir("/proc").expect("listing processes").flatten().map(|e| e.path()) {
                let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
                let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
                if words[0] == "unshare" && words.iter().any(|w| w == "rpm") && words.iter().any(|w| w.contains(&place))
                {
                    let text = std::fs::read_to_string(process.join("limits")).unwrap_or_default();
                    limits.extend(text.lines().filter(|l| l.starts_with("Max open files")).map(str::to_string));
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        output.join().expect("waiting").expect("waiting")
    });
    (output, limits)
}

const CENTOS: [(&str, &str); 2] =
    [("base", "centos/7/os/x86_64"), ("mitaka", "centos/7/cloud/x86_64/openstack-mitaka")];
const MARIADB: (&str, &str) = ("mariadb", "mariadb/10.1/centos7-amd64");

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
        ("base-mariadb", Some(MARIADB.1), "MariaDB-server 0:10.1.48-1.el7.centos mariadb"),
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
    let place = Place::new(false);
    let mirrors = standin(&place, &CENTOS);
    let with = |args: &[&str]| args.iter().map(|a| a.to_string()).chain(mirrors.iter().cloned()).collect::<Vec<_>>();
    let kiln =
        |args: &[String]| place.kiln(&["unshare", "--net"], &args.iter().map(String::as_str).collect::<Vec<_>>());
    let before = host();
    succeed(&mut kiln(&with(&["lock", "mitaka/test"])));
    // As much as a container engine gives: rpm 4.11 would try to close each of them for each scriptlet.
    let many = "ulimit -n 1048576 2>/dev/null || ulimit -n \"$(ulimit -H -n)\"; exec \"$@\"";
    let many = ["sh", "-c", many, "sh", "unshare", "--net"];
    let build = with(&["build", "mitaka/test"]);
    let build: Vec<&str> = build.iter().map(String::as_str).collect();
    let (built, limits) = watched(&mut place.kiln(&many, &build), place.dir.path());
    let one = id(&built);
    assert!(!limits.is_empty(), "no rpm was seen");
    assert!(limits.iter().all(|l| l.split_whitespace().nth(3) == Some("1024")), "{limits:?}");
    let after = host();
    let changed: Vec<_> = before.iter().filter(|(path, was)| after.get(*path) != Some(was)).collect();
    let made: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(changed.is_empty() && made.is_empty(), "on the host, changed: {changed:?}, made: {made:?}");

    // What it was made from is preloaded; a second role with the same packages shares it.
    let repositories = |role: &str| -> Vec<String> {
        let shown = succeed(&mut place.kiln(&[], &["image", "show", role, "--json"]));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(shown["preloaded"][0]["preload"], "closure");
        let blobs = shown["blobs"].as_array().expect("blobs");
        let of =
            |b: &serde_json::Value| b["name"].as_str()?.starts_with("repository ").then(|| b["digest"].to_string());
        blobs.iter().filter_map(of).collect()
    };
    let first = repositories("mitaka/test");
    let second = "role = \"base-other\"\nextends = [\"test\"]\n[kernel]\ncmdline = [\"other\"]\n";
    std::fs::write(place.path("recipes/mitaka/base-other.toml"), second).expect("a second role");
    succeed(&mut kiln(&with(&["lock", "mitaka/base-other"])));
    succeed(&mut kiln(&with(&["build", "mitaka/base-other"])));
    assert_eq!((first.len(), repositories("mitaka/base-other")), (1, first));

    // From the cache alone: no mirror.
    verified(&mut kiln(&["build", "--verify", "mitaka/test"].map(String::from)), &place.path("cache"));

    // From the cache alone, too: an ordinary user.
    let (there, user) = (Place::new(false), User::new());
    for name in ["builder.key", "recipes/mitaka/test.lock"] {
        std::fs::copy(place.path(name), there.path(name)).expect("key and lock");
    }
    for (name, into) in [("recipes/mitaka/keys", "recipes/mitaka"), ("cache/packages", "cache")] {
        succeed(Command::new("cp").arg("-r").arg(place.path(name)).arg(there.path(into)));
    }
    there.give_to(&user);
    let wrapper = [&["unshare", "--net"][..], &user.wrapper(&[])].concat();
    assert_eq!(id(&there.kiln(&wrapper, &["build", "mitaka/test"]).output().expect("building")), one);

    cloud(&place);

    dice(&place);
    succeed(&mut kiln(&with(&["lock", "mitaka/base-dice"])));
    let output = kiln(&with(&["build", "--verify", "mitaka/base-dice"])).output().expect("building");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    let names = said.split("files:\n").nth(1).and_then(|s| s.split("layers:\n").next()).expect("what differs");
    let names: Vec<&str> = names.lines().map(|l| l.split("  line").next().unwrap_or(l)).collect();
    let of_scripts = "  dice (its scripts)";
    let want =
        ["  dice", "    ~ /usr/share/dice/thrown", of_scripts, "    ~ /var/lib/dice-order", "    ~ /var/lib/dice-year"];
    assert_eq!(names, want, "{said}");
    assert!(said.contains("    ~ /var/lib/dice-year  line 1: \"2"), "{said}");
    let both = place.images();
    assert!(both.contains("mitaka/base-dice:latest\"") && both.contains("mitaka/base-dice:latest-again\""), "{both}");
    assert_eq!(place.leftovers(), Vec::<String>::new());

    // It also has an overlay with a file more, another mode and another owner.
    let diff = |more: &[&str]| {
        let args = [&["image", "diff", "mitaka/test", "mitaka/base-dice"], more].concat();
        let output = place.kiln(&[], &args).output().expect("comparing");
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    let said = diff(&[]);
    for line in [
        "packages:\n  + dice 0:1-1\n",
        "  centos-release\n    ~ /etc/issue  mode 0644 -> 0600\n",
        "    ~ /etc/host.conf  owner 0:0 -> 27:27\n",
        "    + /etc/dice.conf  file of 5 B, 0644 0:0\n",
        "units:\n  + dice.service\n",
        "  ~ layer role  ",
        "  + layer base-dice  ",
    ] {
        assert!(said.contains(line), "{line:?} in\n{said}");
    }
    let json: serde_json::Value = serde_json::from_str(&diff(&["--json"])).expect("one document");
    assert_eq!((&json["equal"], &json["difference"]["packages"][0]["name"]), (&false.into(), &"dice".into()));
    succeed(&mut place.kiln(&[], &["image", "diff", "mitaka/test", "mitaka/test"]));
}

/// Mitaka's cloud without a network, on the base that `mitaka/test` has baked: the lints hold, every unit that a system
/// names is there, the base is shared.
fn cloud(place: &Place) {
    let with_mariadb = standin(place, &[CENTOS[0], CENTOS[1], MARIADB]);
    let without = standin(place, &CENTOS);
    let layer = |role: &str| {
        let shown = succeed(&mut place.kiln(&[], &["image", "show", role, "--json"]));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let blobs = shown["blobs"].as_array().expect("blobs");
        blobs.iter().find(|b| b["name"] == "layer base").expect("a base")["digest"].to_string()
    };
    let roles = ["mitaka/controller", "mitaka/compute", "mitaka/storage"];
    for (role, mirrors) in roles.into_iter().zip([&with_mariadb, &without, &without]) {
        // The tree may hold a lock of another mirror.
        for verb in [&["lock", "--update"][..], &["build"]] {
            let mirrors: Vec<&str> = mirrors.iter().map(String::as_str).collect();
            succeed(&mut place.kiln(&["unshare", "--net"], &[verb, &[role], &mirrors].concat()));
        }
        assert_eq!(layer(role), layer("mitaka/test"), "{role}");
    }
    succeed(&mut place.kiln(&[], &[&["check", "--strict"], &roles[..]].concat()));
}

/// A role `mitaka/base-dice`: `mitaka/test` with a package whose scripts make something else each time.
fn dice(place: &Place) {
    const SPEC: &str = "Name: dice
Version: 1
Release: 1
Summary: Chance
License: MIT
BuildArch: noarch
Requires(post): coreutils
%description
Chance.
%install
mkdir -p %{buildroot}/usr/share/dice
touch %{buildroot}/usr/share/dice/thrown
%post
echo $((RANDOM + 100000)) $((RANDOM + 100000)) > /usr/share/dice/thrown
date +%%Y > /var/lib/dice-year
mkdir /var/lib/dice
for i in $(seq 50); do touch /var/lib/dice/$i; done
ls -U /var/lib/dice > /var/lib/dice-order
rm -r /var/lib/dice
%files
%dir /usr/share/dice
%ghost /usr/share/dice/thrown
";
    const RECIPE: &str = "role = \"base-dice\"
extends = [\"test\"]
packages = [\"dice\"]
overlays = [\"dice\"]
[[repository]]
id = \"dice\"
url = \"file://DIR/repos/dice\"
trust = \"pinned\"
";
    const ATTRIBUTES: &str = "[file.\"etc/issue\"]
mode = \"0600\"
[file.\"etc/host.conf\"]
owner = \"mysql\"
group = \"mysql\"
";
    let top = place.path("dice").display().to_string();
    std::fs::create_dir(place.path("dice")).expect("a folder");
    std::fs::write(place.path("dice/dice.spec"), SPEC).expect("the spec");
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet", "--define", &format!("_topdir {top}"), &format!("{top}/dice.spec")]);
    // As old as the stand-in: a newer package would be another epoch.
    build.args(["--define", "use_source_date_epoch_as_buildtime 1"]).env("SOURCE_DATE_EPOCH", "1605139200");
    succeed(build.env("HOME", &top));
    let repos = place.path("repos").display().to_string();
    succeed(&mut place.kiln(&[], &["repo", "import", &format!("{top}/RPMS"), "--as", "dice", "--repos", &repos]));
    let recipe = RECIPE.replace("DIR", place.path("").display().to_string().trim_end_matches('/'));
    let rootfs = place.path("overlays/mitaka/dice/rootfs");
    std::fs::create_dir_all(rootfs.join("usr/lib/systemd/system")).expect("an overlay");
    std::fs::create_dir_all(rootfs.join("etc")).expect("an overlay");
    for (name, text) in [
        ("recipes/mitaka/base-dice.toml", recipe.as_str()),
        ("overlays/mitaka/dice/overlay.toml", ATTRIBUTES),
        ("overlays/mitaka/dice/rootfs/etc/dice.conf", "luck\n"),
        ("overlays/mitaka/dice/rootfs/usr/lib/systemd/system/dice.service", "[Service]\nExecStart=/usr/bin/true\n"),
    ] {
        std::fs::write(place.path(name), text).expect("a file");
    }
    for (package, name) in [("centos-release", "etc/issue"), ("setup", "etc/host.conf")] {
        let file = root().join("tests/standin/files/base").join(package).join(name);
        std::fs::copy(file, rootfs.join(name)).expect("the same content");
    }
}
