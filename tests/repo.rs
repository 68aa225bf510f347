//! `kiln repo verify` and `kiln repo import` on packages of the real tools: planted damages, hostile
//! archives, signatures of the el7 era, what dnf and createrepo_c make of an index of ours.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

#[path = "repo/made.rs"]
mod made;

fn kiln(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("repo").args(arguments);
    command
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, shown(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the tools are there; in CI they must be.
fn has(tools: &[&str]) -> bool {
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let Some(missing) = tools.iter().find(|tool| !there(tool)) else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing} is missing in CI");
    eprintln!("skipped: {missing} is not installed (scripts/install-tools test)");
    false
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn gunzip(file: &Path) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(text).unwrap();
    packer.finish().unwrap()
}

fn flip(file: &Path, at_from_end: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.len() - at_from_end;
    bytes[at] ^= 0x55;
    std::fs::write(file, bytes).unwrap();
}

/// A repository that is whole: `alpha` and `beta`, signed, its index by createrepo_c and signed.
struct Whole {
    folder: tempfile::TempDir,
}

fn whole() -> Option<&'static Whole> {
    static WHOLE: OnceLock<Option<Whole>> = OnceLock::new();
    WHOLE.get_or_init(|| has(&["rpmbuild", "rpmsign", "createrepo_c", "gpg", "gpgv"]).then(Whole::make)).as_ref()
}

impl Whole {
    fn make() -> Whole {
        // gpg's agent listens on a socket in its home, whose path may have a hundred characters.
        let whole = Whole { folder: tempfile::Builder::new().prefix("kiln").tempdir_in("/tmp").unwrap() };
        let top = whole.folder.path();
        for (home, key) in [("gpg", "key.asc"), ("stranger", "stranger.asc")] {
            std::fs::create_dir(top.join(home)).unwrap();
            std::fs::set_permissions(top.join(home), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            let gpg = |arguments: &[&str]| succeed(whole.gpg(home).args(arguments));
            gpg(&["--quick-gen-key", &format!("{home} <{home}@kiln.example>"), "rsa2048", "sign", "never"]);
            gpg(&["--armor", "--output", path(&top.join(key)), "--export"]);
        }
        let good = top.join("good");
        std::fs::create_dir_all(good.join("Packages")).unwrap();
        for name in ["alpha", "beta"] {
            whole.build(name, "1.0", &good.join("Packages"));
        }
        copy(&good, &top.join("unsigned"));
        whole.sign("gpg", &good.join(ALPHA), &["--rpmv3"]);
        whole.sign("gpg", &good.join(BETA), &[]);
        // They are exchanged. The time of signing makes another one; what is signed already is not signed again.
        while made::signature_len(&good.join(ALPHA)) != made::signature_len(&good.join(BETA)) {
            std::thread::sleep(std::time::Duration::from_secs(1));
            std::fs::copy(top.join("unsigned").join(BETA), good.join(BETA)).unwrap();
            whole.sign("gpg", &good.join(BETA), &[]);
        }
        whole.index(&good);
        whole
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn gpg(&self, home: &str) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.env("GNUPGHOME", self.at(home)).args(["--batch", "--yes", "--quiet", "--passphrase", ""]);
        gpg
    }

    /// A package with a bit of everything that an index tells.
    fn build(&self, name: &str, version: &str, to: &Path) {
        let spec = self.at(&format!("{name}.spec"));
        std::fs::write(&spec, include_str!("repo/package.spec").replace("NAME", name).replace("VERSION", version))
            .unwrap();
        let mut build = Command::new("rpmbuild");
        build.args(["-bb", "--quiet", "--define", "use_source_date_epoch_as_buildtime 1"]);
        build.args(["--define", "_buildhost build.example", "--define", "_binary_payload w2.gzdio"]);
        build.args(["--define", &format!("_topdir {}", path(&self.at("build")))]);
        build.args(["--define", &format!("_rpmdir {}", path(to)), "--define", "_rpmfilename %{NVRA}.rpm"]);
        succeed(build.env("SOURCE_DATE_EPOCH", "1420070400").arg(spec));
    }

    fn sign(&self, home: &str, package: &Path, more: &[&str]) {
        let mut sign = Command::new("rpmsign");
        sign.args(["--define", &format!("_gpg_name {home}"), "--define", "__gpg /usr/bin/gpg"]).args(more);
        succeed(sign.env("GNUPGHOME", self.at(home)).arg("--addsign").arg(package));
    }

    fn index(&self, dir: &Path) {
        let _ = std::fs::remove_dir_all(dir.join("repodata"));
        let mut index = Command::new("createrepo_c");
        index.args(["--quiet", "--no-database", "--revision", "1420070400", "--set-timestamp-to-revision"]);
        succeed(index.arg(dir));
        self.sign_index(dir);
    }

    fn sign_index(&self, dir: &Path) {
        succeed(self.gpg("gpg").args(["--armor", "--detach-sign"]).arg(dir.join("repodata/repomd.xml")));
    }

    /// Changes a metadata file and makes repomd.xml, signed, agree with it.
    fn edit(&self, dir: &Path, kind: &str, change: impl Fn(String) -> String) {
        let file = metadata(dir, kind);
        let text = change(gunzip(&file));
        self.replace(dir, kind, &gzip(text.as_bytes()), text.as_bytes());
    }

    /// Puts a metadata file in another's place, with checksums and sizes that are right for it.
    fn replace(&self, dir: &Path, kind: &str, packed: &[u8], open: &[u8]) {
        let (file, repomd) = (metadata(dir, kind), dir.join("repodata/repomd.xml"));
        let old = (std::fs::read(&file).unwrap(), gunzip(&file));
        std::fs::write(&file, packed).unwrap();
        let sum = kiln::recipe::lock::hex_digest;
        let size = |n: usize, open: &str| format!("<{open}size>{n}</{open}size>");
        let mut text = std::fs::read_to_string(&repomd).unwrap();
        for (from, to) in [
            (format!("\"sha256\">{}", sum(&old.0)), format!("\"sha256\">{}", sum(packed))),
            (sum(old.1.as_bytes()), sum(open)),
            (size(old.0.len(), ""), size(packed.len(), "")),
            (size(old.1.len(), "open-"), size(open.len(), "open-")),
        ] {
            assert!(text.contains(&from), "{from}: {text}");
            text = text.replace(&from, &to);
        }
        std::fs::write(&repomd, text).unwrap();
        self.sign_index(dir);
    }
}

fn metadata(dir: &Path, kind: &str) -> PathBuf {
    let files = std::fs::read_dir(dir.join("repodata")).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<_> = files.filter(|f| path(f).contains(&format!("-{kind}."))).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// The verdict on a repository: exit status, and (kind, file, text) of problems and warnings.
struct Verdict {
    status: i32,
    problems: Vec<(String, String, String)>,
    warnings: BTreeSet<String>,
    report: serde_json::Value,
}

fn verify(dir: &str, keys: &[&Path]) -> Verdict {
    let mut command = kiln(&["verify", "--json", dir]);
    for key in keys {
        command.arg("--key").arg(key);
    }
    let output = command.output().unwrap();
    let document: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", shown(&output)));
    let report = document["repositories"][0].clone();
    let text = |f: &serde_json::Value, key: &str| f[key].as_str().unwrap().to_string();
    let all = |key: &str| report[key].as_array().unwrap().clone();
    Verdict {
        status: output.status.code().unwrap(),
        problems: all("problems").iter().map(|f| (text(f, "kind"), text(f, "object"), text(f, "text"))).collect(),
        warnings: all("warnings").iter().map(|f| text(f, "kind")).collect(),
        report,
    }
}

const ALPHA: &str = "Packages/alpha-1.0-2.noarch.rpm";
const BETA: &str = "Packages/beta-1.0-2.noarch.rpm";

/// What was done to a repository, and the only problems that may be named: kind, file, words.
type Damage<'a> = (&'a str, Box<dyn Fn(&Whole, &Path)>, &'a [(&'a str, &'a str, &'a str)]);

fn damages() -> Vec<Damage<'static>> {
    fn named<'a>(
        label: &'a str,
        act: impl Fn(&Whole, &Path) + 'static,
        want: &'a [(&'a str, &'a str, &'a str)],
    ) -> Damage<'a> {
        (label, Box::new(act), want)
    }
    let lie = |from: &'static str, to: &'static str| {
        move |w: &Whole, dir: &Path| w.edit(dir, "primary", |text| text.replacen(from, to, 1))
    };
    vec![
        named(
            "1 a byte of a package is another",
            |_, dir| flip(&dir.join(ALPHA), 20),
            &[("checksum", ALPHA, "the index says")],
        ),
        named(
            "2 a package is cut short",
            |_, dir| {
                let bytes = std::fs::read(dir.join(BETA)).unwrap();
                std::fs::write(dir.join(BETA), &bytes[..bytes.len() - 100]).unwrap();
            },
            &[("size", BETA, "bytes, the index says")],
        ),
        named(
            "3 a package is gone",
            |_, dir| std::fs::remove_file(dir.join(ALPHA)).unwrap(),
            &[("missing", ALPHA, "in the index")],
        ),
        named(
            "4 the index lies about a version",
            lie("ver=\"1.0\"", "ver=\"1.1\""),
            &[("header", ALPHA, "is alpha-7:1.0-2.noarch by its header, the index says alpha-7:1.1-2.noarch")],
        ),
        named(
            "5 the index lies about a name",
            lie("<name>beta<", "<name>better<"),
            &[("header", BETA, "the index says better-7:1.0-2.noarch")],
        ),
        named(
            "6 the index lies about an architecture",
            lie("<arch>noarch<", "<arch>x86_64<"),
            &[("header", ALPHA, "the index says alpha-7:1.0-2.x86_64")],
        ),
        named(
            "7 a package is not signed",
            |w, dir| {
                std::fs::copy(w.at("unsigned").join(BETA), dir.join(BETA)).unwrap();
                w.index(dir);
            },
            &[("unsigned", BETA, "no signature")],
        ),
        named(
            "8 a stranger signed a package",
            |w, dir| {
                std::fs::copy(w.at("unsigned").join(BETA), dir.join(BETA)).unwrap();
                w.sign("stranger", &dir.join(BETA), &[]);
                w.index(dir);
            },
            &[("unknown-key", BETA, "give that key's file")],
        ),
        named(
            "9 a package carries another's signature",
            |w, dir| {
                made::exchange_signature(&dir.join(BETA), &dir.join(ALPHA));
                w.index(dir);
            },
            &[("signature", BETA, "does not hold")],
        ),
        named(
            "10 a payload was damaged before it was indexed",
            |w, dir| {
                flip(&dir.join(BETA), 20);
                w.index(dir);
            },
            &[("package", BETA, "has a payload of sha256")],
        ),
        named(
            "11 primary.xml is damaged",
            |_, dir| flip(&metadata(dir, "primary"), 30),
            &[("checksum", "-primary.xml.gz", "repomd.xml says")],
        ),
        named(
            "12 filelists.xml is gone",
            |_, dir| std::fs::remove_file(metadata(dir, "filelists")).unwrap(),
            &[("missing", "-filelists.xml.gz", "filelists by repomd.xml")],
        ),
        named(
            "13 repomd.xml is not what was signed",
            |_, dir| {
                let file = dir.join("repodata/repomd.xml");
                let text = std::fs::read_to_string(&file).unwrap();
                std::fs::write(&file, text.replace("<revision>14", "<revision>15")).unwrap();
            },
            &[("signature", "repodata/repomd.xml", "does not hold")],
        ),
        named(
            "14 a location leaves the repository",
            lie("href=\"Packages/alpha", "href=\"../../Packages/alpha"),
            &[("metadata", "-primary.xml.gz", "leaves the repository")],
        ),
        named(
            "15 a decompression bomb",
            |w, dir| {
                let bomb = gzip(&vec![b' '; 64 << 20]);
                w.replace(dir, "other", &bomb, b"short");
            },
            &[("metadata", "-other.xml.gz", "unpacks to more than the 5 bytes")],
        ),
        named(
            "16 filelists.xml is of other packages",
            |w, dir| w.edit(dir, "filelists", |text| text.replacen("pkgid=\"", "pkgid=\"0000", 1)),
            &[("metadata", "-filelists.xml.gz", "which primary.xml does not")],
        ),
    ]
}

#[test]
fn each_planted_damage_is_named_and_nothing_else() {
    let Some(whole) = whole() else { return };
    let key = whole.at("key.asc");
    let good = verify(path(&whole.at("good")), &[&key]);
    assert_eq!((good.status, good.problems, good.warnings), (0, vec![], BTreeSet::new()));
    assert_eq!((&good.report["packages_signed"], &good.report["metadata_signed"]), (&2.into(), &true.into()));
    for (label, damage, want) in damages() {
        let dir = whole.at("damaged");
        copy(&whole.at("good"), &dir);
        damage(whole, &dir);
        let found = verify(path(&dir), &[&key]);
        let fits = found.problems.len() == want.len()
            && found.problems.iter().zip(want).all(|((kind, object, text), want)| {
                kind == want.0 && object.ends_with(want.1) && text.contains(want.2)
            });
        assert!(fits && found.status == 4, "{label}: exit {}: {:#?}", found.status, found.problems);
        println!("{label}: {}: {}: {}", found.problems[0].0, found.problems[0].1, found.problems[0].2);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn all_damages_are_named_at_once() {
    let Some(whole) = whole() else { return };
    let dir = whole.at("many");
    copy(&whole.at("good"), &dir);
    flip(&dir.join(ALPHA), 20);
    std::fs::remove_file(dir.join(BETA)).unwrap();
    std::fs::remove_file(metadata(&dir, "other")).unwrap();
    std::fs::copy(whole.at("unsigned").join(BETA), dir.join("stray.rpm")).unwrap();
    let found = verify(path(&dir), &[]);
    let kinds: Vec<&str> = found.problems.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!((found.status, &kinds[..]), (4, &["checksum", "missing", "missing"][..]), "{:?}", found.problems);
    let warnings: Vec<&str> = found.warnings.iter().map(String::as_str).collect();
    assert_eq!(warnings, ["signature-unchecked", "unlisted"]);
}

/// A call that fails: its exit status and words.
fn fails(command: &mut Command, status: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let text = shown(&output);
    assert_eq!(output.status.code(), Some(status), "{command:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn wrong_calls_are_told_from_damaged_repositories() {
    let folder = tempfile::tempdir().unwrap();
    let dir = path(folder.path());
    fails(&mut kiln(&["verify", dir]), 2, &["neither repodata/repomd.xml nor a Release file", "kiln repo import"]);
    fails(&mut kiln(&["verify", &format!("{dir}/absent")]), 2, &["is not a folder"]);
    fails(&mut kiln(&["verify", "ftp://mirror.example/x"]), 2, &["neither a folder nor"]);
    std::fs::write(folder.path().join("key"), "no key").unwrap();
    fails(&mut kiln(&["verify", dir, "--key", &format!("{dir}/key")]), 2, &["holds no OpenPGP data"]);
    std::fs::create_dir(folder.path().join("repodata")).unwrap();
    std::fs::write(folder.path().join("repodata/repomd.xml"), "<repomd><data").unwrap();
    fails(&mut kiln(&["verify", dir]), 4, &["PROBLEM metadata: repodata/repomd.xml"]);
    fails(&mut kiln(&["import", "/absent.tar.gz", "--repos", dir]), 2, &["does not exist"]);
    fails(&mut kiln(&["import", dir, "--as", "a/b", "--repos", dir]), 2, &["--as"]);
}

#[test]
fn an_index_of_ours_is_createrepo_cs_and_dnf_reads_it() {
    let Some(whole) = whole().filter(|_| has(&["dnf", "tar"])) else { return };
    let (repos, tree) = (whole.at("repos"), whole.at("tree"));
    copy(&whole.at("unsigned"), &tree);
    let archive = whole.at("mitaka.tar.gz");
    succeed(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&tree).arg("."));
    let import = |name: &str| {
        let text = succeed(kiln(&["import", path(&archive), "--as", name, "--json"]).arg("--repos").arg(&repos));
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (first, second, again) = (import("one"), import("two"), import("one"));
    let of = |import: &serde_json::Value| import["repositories"][0]["metadata"].as_str().unwrap().to_string();
    assert_eq!(of(&first), of(&second), "the same packages have the same index");
    assert_eq!((&first["known"], &again["known"]), (&false.into(), &true.into()));
    assert_eq!(
        (&first["repositories"][0]["index"], &first["repositories"][0]["packages"]),
        (&"made".into(), &2.into())
    );
    let listed = succeed(kiln(&["ls", "--json"]).arg("--repos").arg(&repos));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let named: Vec<&str> = listed["imports"].as_array().unwrap().iter().filter_map(|i| i["name"].as_str()).collect();
    assert_eq!(named, ["one", "two"]);
    assert_eq!(listed["imports"][0]["repositories"], again["repositories"]);
    assert!(succeed(kiln(&["ls"]).arg("--repos").arg(&repos)).contains(&of(&first)));
    let ours = repos.join("one");
    assert_eq!(verify(path(&ours), &[]).status, 0);

    for package in [ALPHA, BETA] {
        succeed(Command::new("touch").args(["-d", "@1420070400"]).arg(tree.join(package)));
    }
    whole.index(&tree);
    for kind in ["primary", "filelists", "other"] {
        assert_eq!(
            gunzip(&metadata(&tree, kind)),
            gunzip(&metadata(&ours, kind)),
            "{kind}.xml as createrepo_c writes it"
        );
    }

    let mut dnf = Command::new("dnf");
    dnf.args(["--quiet", "--releasever=7", "--disablerepo=*", &format!("--repofrompath=ours,file://{}", path(&ours))]);
    for key in ["cachedir", "persistdir", "logdir", "reposdir"] {
        dnf.arg(format!("--setopt={key}={}", path(&whole.at(key))));
    }
    dnf.args([
        "repoquery",
        "--queryformat",
        "%{name}-%{epoch}:%{version}-%{release} %{requires}",
        "--file",
        "/usr/share/alpha/data",
    ]);
    let said = succeed(&mut dnf);
    assert!(said.contains("alpha-7:1.0-2"), "by a path that only filelists.xml has: {said}");

    // The pin: an index that was replaced is noticed, as whole as it may be.
    whole.index(&ours);
    let found = verify(path(&ours), &[]);
    assert!(
        found.problems.iter().any(|(kind, _, text)| kind == "pin" && text.contains("it was imported as")),
        "{:?}",
        found.problems
    );
    let mut taken = kiln(&["import", path(&whole.at("good")), "--as", "one"]);
    fails(taken.arg("--repos").arg(&repos), 3, &["other metadata", "--as"]);
}

#[test]
fn damaged_repositories_are_not_imported() {
    let Some(whole) = whole() else { return };
    let repos = whole.at("none");
    let import = |dir: &Path, words: &[&str]| {
        fails(kiln(&["import", path(dir), "--as", "x"]).arg("--repos").arg(&repos), 4, words);
        assert!(!repos.join("x").exists());
    };
    let with_index = whole.at("bad-with-index");
    copy(&whole.at("good"), &with_index);
    flip(&with_index.join(ALPHA), 20);
    import(&with_index, &["PROBLEM checksum", ALPHA, "nothing was imported"]);
    let without = whole.at("bad-without-index");
    copy(&whole.at("unsigned"), &without);
    flip(&without.join(BETA), 20);
    std::fs::write(without.join("Packages/text.rpm"), "not a package at all, but long enough to be looked at").unwrap();
    import(&without, &["PROBLEM package", BETA, "has a payload of sha256", "text.rpm"]);
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let repos = folder.path().join("repos");
    let package = made::package("alpha", b"payload", &[]);
    for (label, build, words) in made::hostile_archives(&package) {
        let file = folder.path().join("x.tar.gz");
        std::fs::write(&file, gzip(&build)).unwrap();
        fails(kiln(&["import", path(&file)]).arg("--repos").arg(&repos), 2, &words);
        let left: Vec<_> = std::fs::read_dir(&repos).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".kiln.lock"], "{label}");
    }
    let cut = gzip(&made::archive(&[("a.rpm", &package)]));
    std::fs::write(folder.path().join("x.tar.gz"), &cut[..cut.len() / 2]).unwrap();
    fails(
        kiln(&["import", path(&folder.path().join("x.tar.gz"))]).arg("--repos").arg(&repos),
        2,
        &["a.rpm cannot be read from the archive"],
    );
    // The same in a folder.
    let dir = folder.path().join("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.rpm"), &package).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("link.rpm")).unwrap();
    fails(kiln(&["import", path(&dir)]).arg("--repos").arg(&repos), 2, &["link.rpm is a link", "cp -rL"]);
    assert!(!repos.join("dir").exists());
    // What an import that was killed left is swept away by the next.
    std::fs::create_dir(repos.join(".kiln-tmp-dead")).unwrap();
    std::fs::remove_file(dir.join("link.rpm")).unwrap();
    succeed(kiln(&["import", path(&dir)]).arg("--repos").arg(&repos));
    assert!(!repos.join(".kiln-tmp-dead").exists() && repos.join("dir/repodata/repomd.xml").exists());
}

#[test]
fn nested_repositories_come_out_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let (alpha, beta) = (made::package("alpha", b"payload", &[]), made::package("beta", b"more", &[]));
    let archive = made::archive(&[
        ("el7/mitaka/Packages/a/alpha.rpm", &alpha),
        ("el7/mariadb/beta.rpm", &beta),
        ("el7/mariadb/README", b"x"),
    ]);
    let file = folder.path().join("mirror.tgz");
    std::fs::write(&file, gzip(&archive)).unwrap();
    let text = succeed(kiln(&["import", path(&file), "--json"]).arg("--repos").arg(folder.path().join("repos")));
    let import: serde_json::Value = serde_json::from_str(&text).unwrap();
    let paths: Vec<&str> =
        import["repositories"].as_array().unwrap().iter().map(|r| r["path"].as_str().unwrap()).collect();
    assert_eq!((import["name"].as_str(), &paths[..]), (Some("mirror"), &["mariadb", "mitaka"][..]));
    let report = succeed(&mut kiln(&["verify", path(&folder.path().join("repos/mirror"))]));
    assert_eq!(report.matches(": whole: 1 packages").count(), 2, "{report}");
}

#[test]
fn signatures_of_the_el7_era_hold_with_named_warnings() {
    if !has(&["openssl", "gpgv"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (dir, key) = (folder.path().join("repo"), made::Key::new(folder.path()));
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("old-1-1.noarch.rpm");
    std::fs::write(&file, made::package("old", b"payload", &[&key])).unwrap();
    let keyring = folder.path().join("old.gpg");
    std::fs::write(&keyring, key.public()).unwrap();
    let repos = folder.path().join("repos");
    succeed(kiln(&["import", path(&dir)]).arg("--repos").arg(&repos));
    let ours = repos.join("repo");
    let found = verify(path(&ours), &[&keyring]);
    assert_eq!((found.status, &found.problems[..]), (0, &[][..]));
    assert_eq!(found.report["packages_signed"], 1, "version 3 signatures over header, and header with payload");
    let warnings: Vec<&str> = found.warnings.iter().map(String::as_str).collect();
    assert_eq!(warnings, ["metadata-unsigned", "sha1-key"]);
    // Only the signature over both covers an old package's payload: another payload, indexed anew.
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("old-1-1.noarch.rpm"), &bytes).unwrap();
    succeed(kiln(&["import", path(&other)]).arg("--repos").arg(&repos));
    let found = verify(path(&repos.join("other")), &[&keyring]);
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    assert_eq!((found.problems[0].0.as_str(), found.status), ("signature", 4));
}

#[test]
fn a_mirror_is_verified_over_http_and_may_vanish() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("repo");
    std::fs::create_dir(&dir).unwrap();
    for i in 0..20 {
        let name = format!("p{i}");
        std::fs::write(dir.join(format!("{name}+x.rpm")), made::package(&name, &vec![i; 5000], &[])).unwrap();
    }
    let repos = folder.path().join("repos");
    succeed(kiln(&["import", path(&dir)]).arg("--repos").arg(&repos));
    let served = repos.join("repo");
    let url = made::serve(served.clone(), usize::MAX);
    let found = verify(&url, &[]);
    assert_eq!((found.status, &found.report["packages"]), (0, &20.into()));
    std::fs::remove_file(served.join("p3+x.rpm")).unwrap();
    let found = verify(&url, &[]);
    assert_eq!((found.status, found.problems[0].0.as_str(), found.problems[0].1.as_str()), (4, "missing", "p3+x.rpm"));
    let vanishing = made::serve(served, 12);
    fails(&mut kiln(&["verify", &vanishing]), 1, &["the mirror failed 3 times", "verifying http"]);
}

#[test]
fn apt_archives_are_verified_too() {
    if !has(&["dpkg-deb", "gpgv"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let archive = made::apt_archive(folder.path());
    let found = verify(path(&archive), &[]);
    assert_eq!((found.status, &found.problems[..], &found.report["packages"]), (0, &[][..], &1.into()));
    let deb = archive.join("pool/one_1_all.deb");
    let release = archive.join("dists/stable/Release");
    let packages = archive.join("dists/stable/main/binary-amd64/Packages");
    for (label, damage, want) in [
        ("package", Box::new(|| flip(&deb, 3)) as Box<dyn Fn()>, ("checksum", "pool/one_1_all.deb")),
        ("gone", Box::new(|| std::fs::remove_file(&deb).unwrap()), ("missing", "pool/one_1_all.deb")),
        ("index", Box::new(|| flip(&packages, 3)), ("checksum", "main/binary-amd64/Packages")),
        ("a lie", Box::new(|| made::apt_index(folder.path(), "2")), ("header", "pool/one_1_all.deb")),
        ("release", Box::new(|| std::fs::write(&release, "Origin: x\n").unwrap()), ("metadata", "Release")),
    ] {
        made::apt_archive(folder.path());
        damage();
        let found = verify(path(&archive), &[]);
        let first = found.problems.first().unwrap_or_else(|| panic!("{label}: nothing found"));
        assert_eq!(
            (first.0.as_str(), first.1.as_str(), found.status),
            (want.0, want.1, 4),
            "{label}: {:?}",
            found.problems
        );
    }
}
