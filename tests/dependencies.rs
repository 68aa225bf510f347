//! Rules for dependencies, read from `cargo metadata`: known licences, one source, no version
//! twice without a reason, and every direct dependency says in Cargo.toml what it is for.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Licences that this project's Apache-2.0 may be shipped with: permissive ones only. MPL-2.0 is
/// not among them: its per-file copyleft would have to be tracked for a statically linked program.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    // libbz2-rs-sys: bzip2's own, BSD in all but name.
    "bzip2-1.0.6",
];

/// The only place that packages come from: no git, no folders outside this one.
const SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that are there twice, and whose doing it is.
const TWICE: &[(&str, &str)] = &[
    ("base64", "pem (below rcgen) is one release ahead of us and everyone else"),
    ("getrandom", "ring stays on 0.2; everything else is on 0.4"),
    ("syn", "half of the derive crates have moved to 3"),
];

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Packages of a build for the one platform that kiln runs on: others' are not even fetched.
fn packages() -> Vec<Value> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(top())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().clone();
    assert!(packages.len() > 50, "only {} packages were listed", packages.len());
    packages
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be met with `LICENCES`: OR needs one side, AND both, and an
/// exception (`WITH`) only gives more rights. `/` is old cargo for OR.
fn fits(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let fits = either(&words, &mut at);
    fits && at == words.len() && !words.is_empty()
}

fn either(words: &[&str], at: &mut usize) -> bool {
    let mut fits = both(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        fits |= both(words, at);
    }
    fits
}

fn both(words: &[&str], at: &mut usize) -> bool {
    let mut fits = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        fits &= one(words, at);
    }
    fits
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let word = words.get(*at).copied().unwrap_or_default();
    *at += 1;
    if word == "(" {
        let fits = either(words, at);
        *at += 1;
        return fits;
    }
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
    }
    LICENCES.contains(&word)
}

#[test]
fn licences_are_permissive() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter(|p| !fits(text(p, "license")))
        .map(|p| format!("{} {}: {:?}", text(p, "name"), text(p, "version"), text(p, "license")))
        .collect();
    assert!(wrong.is_empty(), "licences that LICENCES does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn packages_come_from_one_registry() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter(|p| text(p, "name") != env!("CARGO_PKG_NAME") && text(p, "source") != SOURCE)
        .map(|p| format!("{}: {:?}", text(p, "name"), p["source"]))
        .collect();
    assert!(wrong.is_empty(), "only packages of the registry have a checksum in Cargo.lock:\n{}", wrong.join("\n"));
    // The lock holds the other platforms' packages too.
    let lock = std::fs::read_to_string(top().join("Cargo.lock")).unwrap();
    let strange: Vec<&str> =
        lock.lines().filter(|l| l.starts_with("source = ") && *l != format!("source = \"{SOURCE}\"")).collect();
    assert!(strange.is_empty(), "Cargo.lock: {strange:?}");
}

#[test]
fn no_version_stands_twice_without_a_reason() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(text(&package, "name").into()).or_default().insert(text(&package, "version").into());
    }
    let twice: Vec<&String> = versions.iter().filter(|(_, v)| v.len() > 1).map(|(name, _)| name).collect();
    let known: Vec<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(twice, known, "left: what is there twice; right: what TWICE has a reason for");
    assert!(TWICE.iter().all(|(name, why)| why.len() > 10 && versions[*name].len() == 2));
}

/// Names of direct dependencies whose line carries no comment.
fn uncommented(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            let table = line.trim_matches(['[', ']']);
            inside = table.ends_with("dependencies");
            // `[dependencies.name]` spreads over lines and has no place for its reason.
            if let Some((_, name)) = table.split_once("dependencies.") {
                found.push(name.to_string());
            }
            continue;
        }
        if let Some((name, rest)) = line.split_once(" = ").filter(|_| inside && !line.starts_with('#')) {
            let reason = rest.rsplit_once(" # ").map(|(_, reason)| reason.trim());
            if reason.is_none_or(|r| r.len() < 10) {
                found.push(name.to_string());
            }
        }
    }
    found
}

#[test]
fn every_direct_dependency_says_what_it_is_for() {
    let manifest = std::fs::read_to_string(top().join("Cargo.toml")).unwrap();
    assert_eq!(uncommented(&manifest), Vec::<String>::new(), "a dependency earns its place in one sentence");
    let sample = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\nb = { version = \"2\" } # says what it is for\nc = \"1\" # hm\n[dev-dependencies.d]\nversion = \"1\"\n";
    assert_eq!(uncommented(sample), ["a", "c", "d"], "the check itself");
}

#[test]
fn expressions_of_licences_are_read() {
    for (expression, want) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0", false),
        ("MPL-2.0", false),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("MIT/Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0 WITH Classpath-exception-2.0", false),
        ("", false),
        ("MIT ISC", false),
    ] {
        assert_eq!(fits(expression), want, "{expression:?}");
    }
}
