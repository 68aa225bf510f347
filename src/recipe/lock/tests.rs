use super::*;
use crate::recipe::file::{Source, parse};
use proptest::prelude::*;

struct One(String);

impl Source for One {
    fn read(&self, path: &str) -> Option<String> {
        (path == "zed/test.toml").then(|| self.0.clone())
    }
}

const RECIPE: &str = r#"role = "test"
packages = ["systemd", "bash"]
[distribution]
family = "apt"
name = "debian12"
[[repository]]
id = "debian"
url = "host"
suites = ["bookworm", "bookworm-security"]
components = ["main"]
"#;

fn recipe(text: &str) -> Recipe {
    parse(&One(text.to_string()), "zed", "test").unwrap()
}

fn package(name: &str, version: &str) -> LockedPackage {
    LockedPackage {
        name: name.into(),
        version: version.into(),
        arch: "amd64".into(),
        sha256: "ab".repeat(32),
        size: 1234,
        path: format!("pool/main/{name}_{version}_amd64.deb"),
        repository: "debian".into(),
        stage: "test".into(),
    }
}

fn lock() -> Lock {
    Lock {
        version: LOCK_VERSION,
        release: "zed".into(),
        role: "test".into(),
        epoch: 1_700_000_000,
        request: request(&recipe(RECIPE)),
        repositories: vec![LockedRepository { id: "debian".into(), metadata: vec!["cd".repeat(32), "ef".repeat(32)] }],
        packages: vec![package("bash", "1:5.2~rc1+b3"), package("systemd", "252.1-1")],
    }
}

#[test]
fn the_request_is_spelt_out() {
    let want = "kiln-request-v1\ndistribution apt debian12\nrepository debian signed 99\nsuite bookworm\n\
                suite bookworm-security\ncomponent main\nstage test\npackage bash\npackage systemd\n";
    assert_eq!(request_text(&recipe(RECIPE)), want);
    assert_eq!(
        request(&recipe(RECIPE)),
        "fe028f5349efc4a4ba45c448b6c6a01d8f11fbdb0d76c80fe836f4191acc7063",
        "a change of this digest makes every lock stale"
    );
}

#[test]
fn the_request_changes_with_what_is_asked_for_and_with_nothing_else() {
    let before = request(&recipe(RECIPE));
    for (label, from, to, same) in [
        ("package", "\"bash\"", "\"dash\"", false),
        ("order of packages", "\"systemd\", \"bash\"", "\"bash\", \"systemd\"", true),
        ("suite", "\"bookworm\",", "\"bullseye\",", false),
        ("component", "[\"main\"]", "[\"main\", \"contrib\"]", false),
        ("distribution", "debian12", "debian13", false),
        ("id", "id = \"debian\"", "id = \"other\"", false),
        ("address", "url = \"host\"", "url = \"http://x/y\"\nkeyring = \"/k\"", true),
        ("trust", "url = \"host\"", "url = \"http://x/y\"\ntrust = \"pinned\"", false),
        ("kernel arguments", "packages", "kernel.cmdline = [\"quiet\"]\npackages", true),
    ] {
        assert!(RECIPE.contains(from), "{label}");
        assert_eq!(request(&recipe(&RECIPE.replace(from, to))) == before, same, "{label}");
    }
}

#[test]
fn a_lock_survives_its_text_and_the_text_is_stable() {
    let text = lock().to_text();
    assert_eq!(Lock::parse(&text, "l"), Ok(lock()));
    assert_eq!(Lock::parse(&text, "l").unwrap().to_text(), text);
    assert!(text.contains("\n[[package]]\nname = \"bash\"\nversion = \"1:5.2~rc1+b3\"\narch = \"amd64\"\n"), "{text}");
    let mut shuffled = lock();
    shuffled.packages.reverse();
    shuffled.sort(&recipe(RECIPE));
    assert_eq!(shuffled, lock());
}

#[test]
fn a_lock_that_was_tampered_with_is_refused() {
    let text = lock().to_text();
    for (label, from, to, want) in [
        ("newer format", "version = 1\n", "version = 2\n", "l:2: version: lock format 2 is not this kiln's 1"),
        ("no format", "version = 1\n", "", "version is missing"),
        ("short digest", "abab\"", "ab\"", "is not a sha256"),
        ("upper case", "ab\"\n", "AB\"\n", "is not a sha256"),
        ("path upwards", "pool/main/bash", "pool/../../bash", "package[0].path: "),
        ("absolute path", "pool/main/bash", "/pool/main/bash", "package[0].path: "),
        ("path of a line", "pool/main/bash", "pool\\n/bash", "package[0].path: "),
        ("twice", "name = \"systemd\"", "name = \"bash\"", "bash amd64 stands twice"),
        ("order", "name = \"systemd\"", "name = \"aaa\"", "aaa is out of order"),
        ("foreign repository", "repository = \"debian\"", "repository = \"other\"", "which is not in the lock"),
        ("size", "size = 1234", "size = 0", "size: must be from 1"),
        ("unknown key", "epoch =", "url = \"x\"\nepoch =", "url: unknown key"),
        ("no digests", "metadata = [", "metadata = [] # [", "metadata is missing"),
    ] {
        assert!(text.contains(from), "{label}");
        let problems = Lock::parse(&text.replacen(from, to, 1), "l").expect_err(label).to_string();
        assert!(problems.contains(want), "{label}: {problems}");
    }
}

#[test]
fn a_lock_answers_exactly_one_request() {
    assert!(LockedRecipe::new(recipe(RECIPE), lock()).is_ok());
    type Change = fn(&mut Lock);
    let rows: [(&str, Change, &str); 5] = [
        (
            "request",
            |l| l.request = "00".repeat(32),
            "request: the recipe asks for something else than was locked; run kiln lock --update zed/test",
        ),
        ("role", |l| l.role = "infra".into(), "role: is the lock of zed/infra"),
        ("stage", |l| l.packages[1].stage = "gone".into(), "systemd: the recipe has no stage \"gone\""),
        ("repository", |l| l.repositories[0].id = "gone".into(), "the recipe has no repository \"gone\""),
        ("format", |l| l.version = 9, "lock format 9"),
    ];
    for (label, change, want) in rows {
        let mut changed = lock();
        change(&mut changed);
        let problems = LockedRecipe::new(recipe(RECIPE), changed).expect_err(label).to_string();
        assert!(problems.contains(want) && problems.starts_with("zed/test.lock: "), "{label}: {problems}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), at in 0usize..400, junk in "[\\[\\]\"=a-z0-9\n.]{0,12}") {
        let _ = Lock::parse(&text, "l");
        let mut cut = lock().to_text();
        cut.insert_str(at.min(cut.len()), &junk);
        let _ = Lock::parse(&cut, "l");
    }
}
