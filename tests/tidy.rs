//! The house's rules, kept by a test: a file's name tells whether it may do I/O; imports go one
//! way; every file says what it is for; nothing of one developer's machine and nothing half done is
//! committed. `ARCHITECTURE.md` has the reasons in full.
//!
//! The scanner is small on purpose: it blanks comments, strings and what only tests see, then looks
//! at every path (`a::b::{c, d}` expanded). It does not follow re-exports or macros of others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that may do I/O, beside the thin programs: sockets, files, processes, clocks, random bytes.
/// `DIR/` is everything below; `*` stands for any text. A file that is not here gets values and
/// returns values.
const STARRED: &[&str] = &[
    "main.rs",
    "bin/*",
    "sys/*",
    "cli/*",
    "overlay/load.rs",
    // What fetches, checks signatures with the host's tools, and asks apt or dnf.
    "repo/verify.rs",
    "repo/verify/*",
    "repo/gpgv.rs",
    "repo/place.rs",
    "repo/import.rs",
    "repo/index.rs",
    "repo/fetch.rs",
    "repo/apt.rs",
    "repo/dnf.rs",
    "repo/family.rs",
    // The store and the way in and out of it.
    "image/store.rs",
    "image/registry.rs",
    "image/archive.rs",
    "image/key.rs",
    "image/fetch.rs",
    // shellcheck, package files and option lists for `kiln check`.
    "check/gather.rs",
    // The bake.
    "build/execute.rs",
    "build/preload.rs",
    "build/squash.rs",
    "build/initramfs.rs",
    "build/chroot.rs",
    "build/compare.rs",
    "build/user_namespace.rs",
    "build/family/*",
    // The ledger's file and its one writer.
    "ledger/sqlite.rs",
    "ledger/writer.rs",
    "ledger/witness.rs",
    // Sockets towards machines.
    "pxe/*/server.rs",
    "pxe/server.rs",
    // kiln-node before and after the switch.
    "netroot/init.rs",
    "netroot/mount.rs",
    "netroot/network.rs",
    "netroot/modules.rs",
    "netroot/disk.rs",
    "netroot/kept.rs",
    "netroot/state.rs",
    "join/agent.rs",
    "join/agent/*",
    "join/kexec.rs",
];

/// `lib.rs`'s order: a file imports from its own folder and from folders to the left.
const ORDER: [&str; 13] =
    ["sys", "recipe", "site", "overlay", "repo", "image", "check", "build", "ledger", "pxe", "netroot", "join", "cli"];

/// These meet in `image`, `site` and `ledger`, never directly: the bake must not know how it is
/// booted, and what runs in a node must not pull in the builder.
const STRANGERS: [&str; 4] = ["build", "pxe", "netroot", "join"];

/// Paths that mean I/O, a clock or chance.
const IO_PATHS: &[&str] = &[
    "std::fs",
    "std::process",
    "std::os::unix::net",
    "std::os::unix::fs",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::env",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::time::SystemTime::now",
    "std::time::Instant::now",
    "SystemTime::now",
    "Instant::now",
    "crate::sys",
    "getrandom",
    "hyper_util",
    "libc",
    "nix",
    "rusqlite",
    "socket2",
    "tempfile",
    "tokio",
    "tokio_rustls",
];

/// Methods of `Path` that ask the disk, and macros that print.
const IO_WORDS: &[&str] =
    &[".exists()", ".canonicalize()", ".symlink_metadata()", ".read_link()", "println!", "eprintln!", "print!", "dbg!"];

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file below `src`: its path there, and its text without comments, strings and tests.
fn sources() -> Vec<(String, String)> {
    let src = top().join("src");
    let mut raw = Vec::new();
    walk(&src, &mut |path| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_string();
        if name.ends_with(".rs") {
            raw.push((name, std::fs::read_to_string(path).unwrap()));
        }
    });
    raw.sort();
    let mut only_tests = BTreeSet::new();
    let mut sources = Vec::new();
    for (name, text) in raw {
        let (text, test_modules) = without_tests(&blank(&text));
        let folder = module_folder(&name);
        only_tests.extend(test_modules.iter().map(|module| join(&folder, module)));
        sources.push((name, text));
    }
    let is_test =
        |name: &str| only_tests.iter().any(|m| name == format!("{m}.rs") || name.starts_with(&format!("{m}/")));
    sources.retain(|(name, _)| !is_test(name));
    assert!(sources.len() > 20, "only {} files were found", sources.len());
    sources
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, visit) } else { visit(&path) }
    }
}

/// Where the modules that a file declares lie: `a/mod.rs` -> `a`, `a/b.rs` -> `a/b`.
fn module_folder(file: &str) -> String {
    let stem = file.trim_end_matches(".rs");
    match stem {
        "lib" | "main" => String::new(),
        _ => stem.strip_suffix("/mod").unwrap_or(stem).to_string(),
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// Comments, strings and character literals become spaces; lines stay where they are.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at).unwrap_or(at);
        if end == at {
            out.push(bytes[at]);
            at += 1;
        }
        while at < end {
            out.push(if bytes[at] == b'\n' { b'\n' } else { b' ' });
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The end of the comment or literal that begins at `at`, if one does.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        rest[from..].windows(what.len()).position(|w| w == what).map_or(bytes.len(), |p| at + from + p + what.len())
    };
    if rest.starts_with(b"//") {
        return Some(rest.iter().position(|b| *b == b'\n').map_or(bytes.len(), |p| at + p));
    }
    if rest.starts_with(b"/*") {
        return Some(find(2, b"*/"));
    }
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if !after_word && matches!(rest[0], b'r' | b'b') {
        let prefix = rest.iter().take_while(|b| matches!(b, b'r' | b'b')).count();
        let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
        if rest[..prefix].contains(&b'r') && rest.get(prefix + hashes) == Some(&b'"') {
            let close = [&b"\""[..], &vec![b'#'; hashes][..]].concat();
            return Some(find(prefix + hashes + 1, &close));
        }
    }
    let quoted = |quote: u8| {
        let mut escaped = false;
        rest[1..].iter().position(|b| {
            let end = *b == quote && !escaped;
            escaped = *b == b'\\' && !escaped;
            end
        })
    };
    match rest[0] {
        b'"' => Some(quoted(b'"').map_or(bytes.len(), |p| at + p + 2)),
        // A lifetime has no closing quote after one character.
        b'\'' if rest.get(1) == Some(&b'\\') || char_then_quote(&rest[1..]) => quoted(b'\'').map(|p| at + p + 2),
        _ => None,
    }
}

fn char_then_quote(rest: &[u8]) -> bool {
    let head = &rest[..rest.len().min(5)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default(),
    };
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c != '\'') && chars.next() == Some('\'')
}

/// Blanks every item under `#[cfg(test)]`; returns the names of modules that lie in other files.
fn without_tests(text: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let mut out = text.to_string();
    let mut modules = Vec::new();
    while let Some(start) = out.find(MARK) {
        let rest = &out[start..];
        let (semicolon, brace) = (rest.find(';'), rest.find('{'));
        let end = match (semicolon, brace) {
            (Some(s), b) if b.is_none_or(|b| s < b) => {
                let item = &rest[MARK.len()..s];
                modules.extend(item.split_once("mod ").map(|(_, name)| name.trim().to_string()));
                start + s + 1
            }
            (_, Some(b)) => start + closing(&rest[b..]).map_or(rest.len(), |c| b + c + 1),
            _ => out.len(),
        };
        let gone: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &gone);
    }
    (out, modules)
}

/// Offset of the brace that closes the one at the beginning.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })
}

/// Every path of two segments or more with its line, groups expanded.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    while let Some(start) = text[at..].find(word).map(|p| at + p) {
        let end = expand(&text[start..], "", &mut |path| {
            if path.contains("::") {
                found.push((text[..start].matches('\n').count() + 1, path.to_string()));
            }
        });
        at = start + end.max(1);
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    found
}

/// Reads one path (or group) at the beginning of `text`; returns how much of it was read.
fn expand(text: &str, prefix: &str, put: &mut dyn FnMut(&str)) -> usize {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let skip = |at: usize| at + text[at..].find(|c: char| !c.is_whitespace()).unwrap_or(text.len() - at);
    let mut at = skip(0);
    let length = text[at..].find(|c| !word(c)).unwrap_or(text.len() - at);
    let mut path = format!("{prefix}{}", &text[at..at + length]);
    at += length;
    loop {
        let next = skip(at);
        if !text[next..].starts_with("::") {
            break;
        }
        let next = skip(next + 2);
        if text[next..].starts_with('{') {
            let group = closing(&text[next..]).map_or(text.len(), |c| next + c);
            let mut inside = next + 1;
            while inside < group {
                inside += expand(&text[inside..group], &format!("{path}::"), put);
                // Past `as name` and the comma.
                inside += text[inside..group].find(',').map_or(group - inside, |comma| comma + 1);
            }
            return (group + 1).min(text.len());
        }
        let length = text[next..].find(|c| !word(c)).unwrap_or(text.len() - next);
        if length == 0 {
            if text[next..].starts_with('*') {
                path.push_str("::*");
                at = next + 1;
            }
            break;
        }
        path = format!("{path}::{}", &text[next..next + length]);
        at = next + length;
    }
    put(&path);
    at
}

/// `super::…` and `self::…` as `crate::…`, seen from the file.
fn absolute(file: &str, path: &str) -> String {
    let folder = module_folder(file);
    let mut here: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    let mut rest: Vec<&str> = path.split("::").collect();
    if !matches!(rest[0], "super" | "self") {
        return path.to_string();
    }
    while let Some(first) = rest.first() {
        match *first {
            "self" => {}
            "super" => drop(here.pop()),
            _ => break,
        }
        rest.remove(0);
    }
    ["crate"].into_iter().chain(here).chain(rest).collect::<Vec<_>>().join("::")
}

fn starred(file: &str) -> bool {
    STARRED.iter().any(|pattern| match pattern.split_once('*') {
        Some((head, tail)) => file.len() >= head.len() + tail.len() && file.starts_with(head) && file.ends_with(tail),
        None => file == *pattern,
    })
}

fn io_of(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for (line, path) in paths(text) {
        let hit = IO_PATHS.iter().any(|io| path == *io || path.starts_with(&format!("{io}::")));
        // All of std::net, or std::net itself, hides sockets; addresses are named one by one.
        if hit || matches!(path.as_str(), "std::net" | "std::net::*" | "std::net::self" | "std::*") {
            found.push((line, path));
        }
    }
    for (line, text) in text.lines().enumerate() {
        for word in IO_WORDS.iter().filter(|word| text.contains(**word)) {
            found.push((line + 1, word.to_string()));
        }
    }
    found
}

#[test]
fn only_starred_files_do_io() {
    let mut broken = Vec::new();
    for (file, text) in sources().iter().filter(|(file, _)| !starred(file)) {
        broken.extend(io_of(text).into_iter().map(|(line, what)| format!("src/{file}:{line}: {what}")));
    }
    assert!(
        broken.is_empty(),
        "these files decide, so they must not act: pass in the value, or move the act into a file whose name says \
         so (STARRED in tests/tidy.rs). Decisions without I/O are tested without machines.\n{}",
        broken.join("\n")
    );
}

/// Why this import is against the direction.
fn objection(file: &str, path: &str) -> Option<String> {
    let path = absolute(file, path);
    let target = path.strip_prefix("crate::")?.split("::").next()?.to_string();
    let own = file.split('/').next()?.trim_end_matches(".rs");
    let place = |name: &str| ORDER.iter().position(|o| *o == name);
    let (from, to) = (place(own)?, place(&target)?);
    if STRANGERS.contains(&own) && STRANGERS.contains(&target.as_str()) && own != target {
        return Some(format!("{own} and {target} meet only in image, site and ledger"));
    }
    (to > from).then(|| format!("{own} stands before {target} in lib.rs"))
}

#[test]
fn imports_go_one_way() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        for (line, path) in paths(&text) {
            broken.extend(objection(&file, &path).map(|why| format!("src/{file}:{line}: {path}: {why}")));
        }
    }
    assert!(
        broken.is_empty(),
        "a file imports only from its own folder and from folders above it in lib.rs, so that each can be read \
         without those below.\n{}",
        broken.join("\n")
    );
}

#[test]
fn the_order_is_the_librarys() {
    let text = blank(&std::fs::read_to_string(top().join("src/lib.rs")).unwrap());
    let mut modules: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut order = ORDER.to_vec();
    modules.sort();
    order.sort();
    assert_eq!(modules, order, "every module has its place in ORDER (tests/tidy.rs)");
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut silent = Vec::new();
    for (file, _) in sources() {
        let text = std::fs::read_to_string(top().join("src").join(&file)).unwrap();
        let says = text.lines().next().and_then(|l| l.strip_prefix("//! ")).is_some_and(|l| l.len() > 15);
        if !says {
            silent.push(format!("src/{file}"));
        }
    }
    assert!(silent.is_empty(), "a file opens with //! and one sentence what it is for:\n{}", silent.join("\n"));
}

/// Tracked text files: path and text.
fn tracked() -> Vec<(String, String)> {
    let output = std::process::Command::new("git").args(["ls-files", "-z"]).current_dir(top()).output();
    let listed = match output {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        _ => {
            // A source archive has no git: nothing is tracked, and nothing can be committed from it.
            assert!(!top().join(".git").exists(), "git ls-files failed in a git checkout");
            println!("skipped: not a git checkout");
            return Vec::new();
        }
    };
    let read = |name: &str| std::fs::read(top().join(name)).ok().and_then(|b| String::from_utf8(b).ok());
    listed.split('\0').filter(|n| !n.is_empty()).filter_map(|n| Some((n.to_string(), read(n)?))).collect()
}

/// Lines of tracked files that `hit` says something about.
fn lines_with(hit: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in tracked() {
        for (number, line) in text.lines().enumerate() {
            found.extend(hit(&file, line).map(|what| format!("{file}:{}: {what}", number + 1)));
        }
    }
    found
}

/// Whether `word` stands in `line` on its own, not as a part of something longer.
fn alone(line: &str, word: &str, part: impl Fn(char) -> bool) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(&part) && (word.ends_with('/') || !after.is_some_and(&part))
    })
}

/// What only a developer's machine has. Split, so that this file does not find itself.
const MACHINE: [&str; 5] = [
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/ro", "ot/.cargo"),
    concat!("/ro", "ot/.rustup"),
];

#[test]
fn nothing_of_one_machine_is_committed() {
    let checkout = top().display().to_string();
    let of_path = |c: char| c.is_alphanumeric() || "._-/}".contains(c);
    let found = lines_with(|_, line| {
        let machine = MACHINE.iter().find(|path| alone(line, path, of_path)).map(|p| p.to_string());
        machine.or_else(|| (checkout.len() > 5 && line.contains(&checkout)).then(|| checkout.clone()))
    });
    assert!(found.is_empty(), "paths of one machine mean nothing on another:\n{}", found.join("\n"));
}

/// Hosts that may be named: those of documents, standards and examples. A mirror or registry never:
/// it is a flag, or the host's own configuration.
const HOSTS: &[&str] = &[
    "github.com",
    "www.apache.org",
    "www.rfc-editor.org",
    "localhost",
    // The names of yum metadata's XML namespaces begin with it.
    "linux.duke.edu",
];
/// Reserved for examples (RFC 2606), and what tests call their own.
const EXAMPLES: [&str; 5] = [".example", ".example.org", ".example.com", ".invalid", ".lan"];

#[test]
fn no_mirror_or_registry_is_committed() {
    let allowed = |host: &str| {
        let dotted = format!(".{host}");
        HOSTS.contains(&host)
            || !host.contains('.')
            || host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            || EXAMPLES.iter().any(|e| dotted.ends_with(e))
    };
    let found = lines_with(|_, line| {
        line.match_indices("://").find_map(|(at, _)| {
            if !line[..at].ends_with("http") && !line[..at].ends_with("https") {
                return None;
            }
            let rest = &line[at + 3..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-')).unwrap_or(rest.len());
            let host = rest[..end].trim_end_matches('.');
            (!allowed(host)).then(|| host.to_string())
        })
    });
    assert!(
        found.is_empty(),
        "hosts that HOSTS (tests/tidy.rs) does not know; a document's may be added there:\n{}",
        found.join("\n")
    );
}

/// What marks unfinished work. Split, so that this file does not find itself.
const LEFTOVERS: [&str; 8] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("(in ", "work)"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[ign", "ore"),
];

#[test]
fn nothing_half_done_is_committed() {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    let found = lines_with(|file, line| {
        let prose = !file.ends_with(".lock");
        LEFTOVERS.iter().find(|word| prose && alone(line, word, of_word)).map(|w| w.to_string())
    });
    assert!(found.is_empty(), "finish it, or write what is missing into the changelog:\n{}", found.join("\n"));
}

// The scanner itself: a rule that cannot fail is none.

#[test]
fn the_scanner_sees_through_spelling() {
    let text = |source: &str| without_tests(&blank(source)).0;
    for (label, source, want) in [
        ("import", "use std::fs;", &["std::fs"][..]),
        ("group", "use std::{fmt, fs};", &["std::fs"]),
        (
            "deep group",
            "use std::{collections::{BTreeMap, BTreeSet}, fs::{self, File}};",
            &["std::fs::self", "std::fs::File"],
        ),
        ("renamed", "use std::{fs as f, fmt};", &["std::fs"]),
        ("over lines", "use std::{\n    fmt,\n    process::Command,\n};", &["std::process::Command"]),
        ("inline", "fn f() { std :: fs :: read(1); }", &["std::fs::read"]),
        ("in a type", "fn f(x: &mut std::net::UdpSocket) {}", &["std::net::UdpSocket"]),
        ("addresses are fine", "use std::net::{Ipv4Addr, SocketAddr};", &[]),
        ("all of net", "use std::net::*;", &["std::net::*"]),
        ("clock", "let t = Instant::now();", &["Instant::now"]),
        ("clock by path", "let t = std::time::SystemTime::now();", &["std::time::SystemTime::now"]),
        ("durations are fine", "use std::time::Duration;", &[]),
        ("crate", "use tokio::sync::mpsc;", &["tokio::sync::mpsc"]),
        ("own door", "use crate::sys::files;", &["crate::sys::files"]),
        ("method", "if path.exists() {}", &[".exists()"]),
        ("macro", "println!(\"x\");", &["println!"]),
        ("comment", "// use std::fs;\n/* std::fs::read */", &[]),
        ("string", "let x = \"std::fs::read\"; let y = r#\"std::fs::read \"x\" \"#;", &[]),
        ("character", "let q = '\"'; std::fs::read(); let r = '\"';", &["std::fs::read"]),
        ("lifetime", "fn f<'a>(x: &'a str) { std::fs::read(); }", &["std::fs::read"]),
        ("tests", "#[cfg(test)]\nmod tests { use std::fs; fn f() { std::fs::read(); } }", &[]),
        ("after tests", "#[cfg(test)]\nmod tests { fn f() {} }\nuse std::fs;", &["std::fs"]),
        ("one line of tests", "#[cfg(test)]\nuse std::fs;\nuse std::process;", &["std::process"]),
    ] {
        let found: Vec<String> = io_of(&text(source)).into_iter().map(|(_, what)| what).collect();
        assert_eq!(found, want, "{label}");
    }
    assert_eq!(io_of(&text("\n\n'x';\nuse std::fs;"))[0].0, 4, "lines stay where they are");
    assert_eq!(without_tests("#[cfg(test)]\nmod tests;").1, ["tests"]);
}

#[test]
fn the_scanner_knows_the_direction() {
    for (file, path, allowed) in [
        ("recipe/file.rs", "crate::site::Site", false),
        ("site/file.rs", "crate::recipe::name", true),
        ("site/file.rs", "super::Mac", true),
        ("site/file.rs", "super::super::ledger::State", false),
        ("site/mod.rs", "super::ledger::State", false),
        ("ledger/decide/boot.rs", "super::super::state::State", true),
        ("pxe/http/route.rs", "crate::ledger::message", true),
        ("pxe/http/route.rs", "crate::build::plan", false),
        ("join/agent.rs", "crate::netroot::init", false),
        ("cli/build.rs", "crate::build::plan", true),
        ("image/store.rs", "crate::sys::files", true),
        ("sys/files.rs", "crate::recipe::Recipe", false),
        ("main.rs", "kiln::cli::run", true),
    ] {
        assert_eq!(objection(file, path).is_none(), allowed, "{file}: {path}");
    }
    for (file, want) in [
        ("sys/files.rs", true),
        ("cli/init.rs", true),
        ("pxe/tftp/server.rs", true),
        ("pxe/tftp/transfer.rs", false),
        ("build/plan.rs", false),
        ("build/family/apt.rs", true),
        ("overlay/load.rs", true),
        ("overlay/load_more.rs", false),
        ("join/agent.rs", true),
        ("join/node.rs", false),
    ] {
        assert_eq!(starred(file), want, "{file}");
    }
}
