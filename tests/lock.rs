//! The lock of a yum recipe by the host's dnf, over small repositories written here: what is
//! chosen, from where, in which stage, and that nothing of the host is touched.

use kiln::cli::recipes::{RecipesArgs, resolve};
use kiln::repo::dnf;
use sha2::Digest;
use std::collections::BTreeMap;
use std::path::Path;

/// Name, `version-release`, architecture, what it requires.
type Row<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);

fn hex(text: &str) -> String {
    sha2::Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// Metadata of packages that need no files: nothing is downloaded here.
fn repository(dir: &Path, date: u64, rows: &[Row]) {
    let (mut primary, mut filelists) = (String::new(), String::new());
    for (name, version, arch, requires) in rows {
        let (version, release) = version.split_once('-').unwrap();
        let id = hex(&format!("{name}{version}{release}{arch}"));
        let evr = format!("epoch=\"0\" ver=\"{version}\" rel=\"{release}\"");
        let needs: String = requires.iter().map(|r| format!("<rpm:entry name=\"{r}\"/>")).collect();
        primary += &format!(
            "<package type=\"rpm\"><name>{name}</name><arch>{arch}</arch><version {evr}/>\
             <checksum type=\"sha256\" pkgid=\"YES\">{id}</checksum><size package=\"7\" installed=\"7\" archive=\"7\"/>\
             <location href=\"Packages/{name}-{version}.{arch}.rpm\"/><format>\
             <rpm:provides><rpm:entry name=\"{name}\" flags=\"EQ\" {evr}/></rpm:provides>\
             <rpm:requires>{needs}</rpm:requires></format></package>\n"
        );
        filelists += &format!("<package pkgid=\"{id}\" name=\"{name}\" arch=\"{arch}\"><version {evr}/></package>\n");
    }
    let count = rows.len();
    let names = "xmlns=\"http://linux.duke.edu/metadata/common\" xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\"";
    let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    let primary = format!("{head}<metadata {names} packages=\"{count}\">\n{primary}</metadata>\n");
    let lists = "xmlns=\"http://linux.duke.edu/metadata/filelists\"";
    let filelists = format!("{head}<filelists {lists} packages=\"{count}\">\n{filelists}</filelists>\n");
    std::fs::create_dir_all(dir.join("repodata")).unwrap();
    let mut data = String::new();
    for (kind, text) in [("primary", &primary), ("filelists", &filelists)] {
        std::fs::write(dir.join(format!("repodata/{kind}.xml")), text).unwrap();
        data += &format!(
            "<data type=\"{kind}\"><checksum type=\"sha256\">{}</checksum><location href=\"repodata/{kind}.xml\"/>\
             <timestamp>{date}</timestamp><size>{}</size></data>",
            hex(text),
            text.len()
        );
    }
    let repomd =
        format!("{head}<repomd xmlns=\"http://linux.duke.edu/metadata/repo\"><revision>1</revision>{data}</repomd>");
    std::fs::write(dir.join("repodata/repomd.xml"), repomd).unwrap();
}

const BASE: &str = r#"
role = "base"
packages = ["shell"]
[distribution]
family = "yum"
name = "centos7"
[[repository]]
id = "os"
url = "file:///nowhere/os"
trust = "pinned"
priority = 50
[[repository]]
id = "own"
url = "file:///nowhere/own"
trust = "pinned"
priority = 10
[security]
selinux = "permissive"
"#;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(test: &str) -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        let recipes = world.dir.path().join("recipes/mitaka");
        std::fs::create_dir_all(&recipes).unwrap();
        std::fs::write(recipes.join("base.toml"), BASE).unwrap();
        std::fs::write(recipes.join("test.toml"), test).unwrap();
        repository(
            &world.dir.path().join("os"),
            1000,
            &[
                ("shell", "4.2-1", "x86_64", &["libc"]),
                ("shell", "4.1-9", "x86_64", &["libc"]),
                ("libc", "2.17-3", "x86_64", &[]),
                ("libc", "2.17-3", "i686", &[]),
                ("database", "5.5-1", "x86_64", &["libc"]),
                ("server", "1-1", "noarch", &["libc", "database"]),
                ("broken", "1-1", "noarch", &["nobody-has-this"]),
            ],
        );
        repository(&world.dir.path().join("own"), 2000, &[("database", "5.1-1", "x86_64", &["libc", "shell"])]);
        world
    }

    fn lock(&self) -> anyhow::Result<kiln::recipe::lock::Lock> {
        let args = RecipesArgs { recipes: self.dir.path().join("recipes"), overlays: None };
        let recipe = resolve("mitaka/test", &args)?.recipe()?;
        let url = |id: &str| (id.to_string(), format!("file://{}", self.dir.path().join(id).display()));
        let mirrors = BTreeMap::from([url("os"), url("own")]);
        let sources = dnf::sources_of(&recipe, &mirrors, &|key| anyhow::bail!("no key {key}"))?;
        dnf::resolve(&recipe, &sources, &self.dir.path().join("cache"), &|_| {})
    }
}

/// Without dnf's module there is nothing to test; the full tests need it anyway.
fn no_dnf(test: &str) -> bool {
    let here = std::process::Command::new("/usr/bin/python3").args(["-W", "ignore", "-c", "import hawkey"]).output();
    let no = !here.is_ok_and(|o| o.status.success());
    if no {
        eprintln!("{test}: not run, this host has no dnf");
    }
    no
}

#[test]
fn dnf_chooses_and_each_stage_gets_what_it_first_needs() {
    if no_dnf("lock by dnf") {
        return;
    }
    let world = World::new("role = \"test\"\nextends = [\"base\"]\npackages = [\"server\"]\n");
    let lock = world.lock().unwrap();
    let shown: Vec<String> = lock
        .packages
        .iter()
        .map(|p| format!("{} {} {} {} {} {}", p.stage, p.name, p.version, p.arch, p.repository, p.path))
        .collect();
    assert_eq!(
        shown,
        [
            "base libc 0:2.17-3 x86_64 os Packages/libc-2.17.x86_64.rpm",
            "base shell 0:4.2-1 x86_64 os Packages/shell-4.2.x86_64.rpm",
            // The better repository wins over the newer version.
            "test database 0:5.1-1 x86_64 own Packages/database-5.1.x86_64.rpm",
            "test server 0:1-1 noarch os Packages/server-1.noarch.rpm",
        ]
    );
    assert_eq!(lock.epoch, 2000);
    let repomd = std::fs::read(world.dir.path().join("own/repodata/repomd.xml")).unwrap();
    assert_eq!(lock.repositories[1].metadata, [hex(std::str::from_utf8(&repomd).unwrap())]);
    assert_eq!(world.lock().unwrap(), lock, "the same metadata gives the same lock");
}

#[test]
fn what_is_excluded_from_a_repository_comes_from_another_or_not_at_all() {
    if no_dnf("excludes") {
        return;
    }
    let with = |excludes: &str| {
        let test = "role = \"test\"\nextends = [\"base\"]\npackages = [\"server\"]\n[exclude]\n";
        World::new(&format!("{test}{excludes}\n")).lock()
    };
    let lock = with("own = [\"data*\", \"shell\"]").unwrap();
    let database = lock.packages.iter().find(|p| p.name == "database").unwrap();
    assert_eq!((database.version.as_str(), database.repository.as_str()), ("0:5.5-1", "os"));
    assert!(lock.packages.iter().any(|p| p.name == "shell"), "os's own stays");
    let error = format!("{:#}", with("own = [\"d?tabase\"]\nos = [\"database\"]").unwrap_err());
    assert!(error.contains("database"), "{error}");
}

#[test]
fn what_cannot_be_installed_or_read_is_said() {
    if no_dnf("refusals of dnf") {
        return;
    }
    for (packages, want) in
        [("broken", "nobody-has-this"), ("nothing-of-this", "no repository carries nothing-of-this")]
    {
        let world = World::new(&format!("role = \"test\"\nextends = [\"base\"]\npackages = [\"{packages}\"]\n"));
        let error = format!("{:#}", world.lock().unwrap_err());
        assert!(error.contains(want), "{error}");
    }
    let world = World::new("role = \"test\"\nextends = [\"base\"]\n");
    let file = world.dir.path().join("os/repodata/primary.xml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("4.2", "4.3")).unwrap();
    let error = format!("{:#}", world.lock().unwrap_err());
    assert!(error.contains("repository os") && error.contains("is not what repodata/repomd.xml says"), "{error}");
}
