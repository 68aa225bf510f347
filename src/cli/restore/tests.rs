//! A backup comes back as it was, or not at all.

use super::*;
use crate::cli::backup::{self as verb, Piece, of_bytes, of_file};
use crate::cli::exit::status;
use crate::cli::serve::keys;
use crate::ledger::log::Log;
use crate::ledger::{Event, sqlite::Sqlite};
use std::collections::BTreeMap;

const SITE: &str = "[cluster]\nname = \"test\"\nrelease = \"zed\"\n[access]\nssh_keys = []\n[role.test]\nimage = \"zed/test\"\n\
                    [network.management]\nsubnet = \"127.0.0.0/24\"\n";
const SECRET: &str = "[galera]\nsst = \"hush\" # a comment stays\n";

/// A server's folder, a site beside it, and the way to a backup.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let state = place.path("state");
        fs::create_dir(&state).unwrap();
        keys::load(&state).unwrap();
        let mut ledger = Sqlite::open(&state.join(backup::LEDGER)).unwrap();
        let events: Vec<Event> = (0..9).map(|i| Event::NodeUnheld { node: format!("n{i}") }).collect();
        ledger.append_if(0, 7, &events).unwrap();
        fs::write(place.path("site.toml"), SITE).unwrap();
        files::write_atomic(&place.path("secrets.toml"), SECRET.as_bytes(), 0o600).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the verb as the command line would.
    fn backup(&self, more: &[&str]) -> Result<PathBuf> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: verb::Arguments,
        }
        let path = |name: &str| self.path(name).display().to_string();
        let line = [
            &["kiln", &path("backup"), "--site", &path("site.toml"), "--state", &path("state")].map(String::from)[..],
            &more.iter().map(|m| m.to_string()).collect::<Vec<_>>(),
        ];
        verb::backup(&<Line as clap::Parser>::parse_from(line.concat()).arguments)?;
        Ok(self.path("backup"))
    }

    fn restore(&self, file: &Path) -> Result<()> {
        restore(file, &self.path("new")).map(drop)
    }

    /// A backup of any pieces, sealed as a real one.
    fn forge(&self, head: u64, change: impl Fn(&str, &mut Vec<u8>)) -> PathBuf {
        let file = self.path("forged");
        let pieces: Vec<Piece> = backup::MEMBERS
            .iter()
            .map(|name| {
                let of_state = self.path("state").join(name);
                let mut bytes = fs::read(if of_state.exists() { of_state } else { self.path(name) }).unwrap();
                change(name, &mut bytes);
                of_bytes(name, bytes)
            })
            .collect();
        let _ = fs::remove_file(&file);
        verb::write(&file, "test", head, pieces).unwrap();
        file
    }
}

/// Names and bytes of all that lies in a folder; `None`: there is none.
fn look(dir: &Path) -> Option<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(dir).ok()?.map(|entry| entry.unwrap());
    Some(
        entries
            .filter(|entry| entry.file_name() != "serve.lock")
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default()))
            .collect(),
    )
}

#[test]
fn a_backup_comes_back_as_it_was_and_nobody_else_can_read_it() {
    let place = Place::new();
    let file = place.backup(&[]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    place.restore(&file).unwrap();
    let new = place.path("new");
    assert_eq!(mode(&new), 0o700);
    let restored = look(&new).unwrap();
    assert_eq!(restored.keys().map(String::as_str).collect::<Vec<_>>(), {
        let mut names = backup::MEMBERS;
        names.sort();
        names
    });
    for name in backup::MEMBERS {
        assert_eq!(mode(&new.join(name)), 0o600, "{name}");
    }
    for name in backup::KEYS {
        assert!(restored[name] == fs::read(place.path("state").join(name)).unwrap(), "{name}");
    }
    assert_eq!((&restored["site.toml"][..], &restored["secrets.toml"][..]), (SITE.as_bytes(), SECRET.as_bytes()));
    let events =
        |state: &str| Sqlite::open(&place.path(state).join(backup::LEDGER)).unwrap().read_after(0, 99).unwrap();
    assert!(events("new").len() == 9 && events("new") == events("state"));
    let left: Vec<String> = look(place.dir.path()).unwrap().into_keys().collect();
    assert_eq!(left, ["backup", "new", "secrets.toml", "site.toml", "state"], "temporary files are gone");
}

#[test]
fn a_backup_holds_every_key_that_the_server_makes() {
    let dir = tempfile::tempdir().unwrap();
    keys::load(dir.path()).unwrap();
    let mut keys = backup::KEYS;
    keys.sort();
    assert_eq!(look(dir.path()).unwrap().into_keys().collect::<Vec<_>>(), keys);
}

#[test]
fn what_cannot_be_a_whole_backup_is_refused() {
    let edit = |name: &'static str, bytes: &'static str| {
        move |place: &Place| files::write_atomic(&place.path(name), bytes.as_bytes(), 0o600).unwrap()
    };
    let remove = |name: &'static str| move |place: &Place| fs::remove_file(place.path(name)).unwrap();
    type Change = Box<dyn Fn(&Place)>;
    let rows: Vec<(&str, Change, Option<i32>)> = vec![
        ("all is there", Box::new(|_| {}), None),
        ("a site without secrets", Box::new(remove("secrets.toml")), None),
        ("the file exists", Box::new(edit("backup", "mine")), Some(3)),
        ("no ledger", Box::new(remove("state/ledger.sqlite")), Some(2)),
        ("no key", Box::new(remove("state/ca.key")), Some(1)),
        ("a wrong site", Box::new(edit("site.toml", "rolle = 1")), Some(2)),
        ("wrong secrets", Box::new(edit("secrets.toml", "x")), Some(2)),
        (
            "secrets that others can read",
            Box::new(|p| fs::set_permissions(p.path("secrets.toml"), fs::Permissions::from_mode(0o644)).unwrap()),
            Some(2),
        ),
        ("a restore that was cut off", Box::new(edit("state/restore.unfinished", "")), Some(3)),
        (
            "a ledger that is none",
            Box::new(edit("state/ledger.sqlite", "no ledger at all, but longer than a head")),
            Some(1),
        ),
    ];
    for (label, change, want) in rows {
        let place = Place::new();
        // The journal would mend the ledger that a row breaks.
        rusqlite::Connection::open(place.path("state/ledger.sqlite"))
            .unwrap()
            .pragma_update(None, "journal_mode", "DELETE")
            .unwrap();
        change(&place);
        let before = look(place.dir.path());
        match (place.backup(&[]), want) {
            (Ok(file), None) => place.restore(&file).unwrap(),
            (Err(error), Some(want)) => {
                assert_eq!(status(&error), want, "{label}: {error:#}");
                assert!(!format!("{error:#}").contains("hush"), "{label}");
                assert_eq!(look(place.dir.path()), before, "{label}");
            }
            (got, want) => panic!("{label}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn a_damaged_archive_restores_nothing() {
    let place = Place::new();
    let whole = fs::read(place.backup(&[]).unwrap()).unwrap();
    let mut damaged: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), vec![]),
        ("no archive".into(), b"hello".repeat(999)),
        ("of zeroes".into(), vec![0; 4096]),
        ("without its head".into(), whole[512..].to_vec()),
        ("twice".into(), [&whole[..whole.len() - 1024], &whole[..]].concat()),
    ];
    let mut archive = tar::Archive::new(&whole[..]);
    let mut spans = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let (head, at, size) = (entry.raw_header_position(), entry.raw_file_position(), entry.size());
        spans.push((name, head as usize, at as usize, size as usize));
    }
    assert_eq!(spans.len(), 2 + backup::MEMBERS.len());
    for (name, head, at, size) in &spans {
        for (what, byte) in [("first", *at), ("middle", at + size / 2), ("last", at + size - 1), ("head", head + 1)] {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1;
            damaged.push((format!("{what} byte of {name} flipped"), bytes));
        }
        for (what, end) in [("before", *head), ("in the head of", head + 100), ("within", at + size / 2)] {
            damaged.push((format!("cut {what} {name}"), whole[..end].to_vec()));
        }
        let next = at + size.div_ceil(512) * 512;
        damaged.push((format!("without {name}"), [&whole[..*head], &whole[next..]].concat()));
        damaged.push((format!("{name} twice"), [&whole[..next], &whole[*head..]].concat()));
        for (what, kind) in [("link", tar::EntryType::Symlink), ("folder", tar::EntryType::Directory)] {
            let mut header = tar::Header::from_byte_slice(&whole[*head..head + 512]).clone();
            header.set_entry_type(kind);
            header.set_cksum();
            damaged.push((format!("{name} as a {what}"), [&whole[..*head], header.as_bytes(), &whole[*at..]].concat()));
        }
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_cksum();
    tar.append_data(&mut header, "index.json", &b"hello"[..]).unwrap();
    damaged.push(("foreign".into(), tar.into_inner().unwrap()));

    let file = place.path("damaged");
    let before = look(place.dir.path()).unwrap();
    for (label, bytes) in damaged {
        fs::write(&file, bytes).unwrap();
        let error = place.restore(&file).expect_err(&label);
        assert_eq!(status(&error), 3, "{label}: {error:#}");
        assert!(!format!("{error:#}").contains("hush"), "{label}");
        fs::remove_file(&file).unwrap();
        assert_eq!(look(place.dir.path()).unwrap(), before, "{label}");
    }
}

/// Whatever one byte says: all of it comes back unchanged, or nothing.
#[test]
fn no_flipped_byte_changes_what_comes_back() {
    let place = Place::new();
    let whole = fs::read(place.backup(&[]).unwrap()).unwrap();
    place.restore(&place.path("backup")).unwrap();
    let good = look(&place.path("new"));
    let (mut refused, mut same) = (0, 0);
    for at in (0..whole.len()).step_by(41) {
        fs::remove_dir_all(place.path("new")).ok();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let file = place.path("flipped");
        fs::write(&file, bytes).unwrap();
        match place.restore(&file) {
            Err(_) => {
                refused += 1;
                assert_eq!(look(&place.path("new")), None, "byte {at}");
            }
            // Padding between members means nothing.
            Ok(()) => {
                same += 1;
                assert_eq!(look(&place.path("new")), good, "byte {at}");
            }
        }
    }
    assert!(refused > same && same > 0, "{refused} refused, {same} the same");
}

#[test]
fn a_ledger_that_this_kiln_cannot_read_is_refused_before_anything_is_placed() {
    let sql = |sql: &'static str| {
        move |name: &str, bytes: &mut Vec<u8>| {
            if name == backup::LEDGER {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("ledger");
                fs::write(&path, &*bytes).unwrap();
                let connection = rusqlite::Connection::open(&path).unwrap();
                connection.execute_batch(sql).unwrap();
                drop(connection);
                *bytes = fs::read(&path).unwrap();
            }
        }
    };
    type Change = Box<dyn Fn(&str, &mut Vec<u8>)>;
    let rows: Vec<(&str, u64, Change, &str)> = vec![
        ("as it is", 9, Box::new(sql("")), ""),
        ("a newer schema", 9, Box::new(sql("PRAGMA user_version = 99")), "newer kiln"),
        ("events of a newer kiln", 9, Box::new(sql("UPDATE event SET v = 99 WHERE rev = 3")), "newer kiln"),
        ("a gap", 9, Box::new(sql("DELETE FROM event WHERE rev = 3")), "damaged"),
        ("another head", 8, Box::new(sql("")), "revision 9"),
        ("another database", 0, Box::new(sql("DROP TABLE event")), "event"),
        (
            "no database",
            9,
            Box::new(|name, bytes| {
                if name == backup::LEDGER {
                    bytes.fill(7)
                }
            }),
            "ledger",
        ),
    ];
    for (label, head, change, want) in rows {
        let place = Place::new();
        rusqlite::Connection::open(place.path("state/ledger.sqlite"))
            .unwrap()
            .pragma_update(None, "journal_mode", "DELETE")
            .unwrap();
        let forged = place.forge(head, change);
        let restored = place.restore(&forged);
        match want {
            "" => restored.unwrap(),
            want => {
                let error = restored.expect_err(label);
                assert!(status(&error) == 3 && format!("{error:#}").contains(want), "{label}: {error:#}");
                assert_eq!(look(&place.path("new")), None, "{label}");
            }
        }
    }
}

#[test]
fn nothing_is_replaced_and_a_running_server_keeps_its_folder() {
    let place = Place::new();
    let file = place.backup(&[]).unwrap();
    let new = place.path("new");
    for name in backup::IN_THE_WAY {
        fs::remove_dir_all(&new).ok();
        fs::create_dir(&new).unwrap();
        fs::write(new.join(name), "mine").unwrap();
        let error = place.restore(&file).expect_err(name);
        assert!(status(&error) == 3 && format!("{error:#}").contains(name), "{name}: {error:#}");
        assert_eq!(look(&new), Some([(name.to_string(), b"mine".to_vec())].into()), "{name}");
    }
    fs::remove_dir_all(&new).unwrap();
    // A store and a builder's key are in nobody's way.
    fs::create_dir_all(new.join("store")).unwrap();
    let lock = serve::lock(&new).unwrap();
    let error = place.restore(&file).unwrap_err();
    assert!(status(&error) == 3 && format!("{error:#}").contains("another kiln serve"), "{error:#}");
    drop(lock);
    place.restore(&file).unwrap();
    assert_eq!(status(&place.restore(&file).unwrap_err()), 3, "a second time");
}

#[test]
fn a_restore_that_was_cut_off_goes_on_and_one_that_fails_leaves_nothing() {
    let place = Place::new();
    let file = place.backup(&[]).unwrap();
    let new = place.path("new");
    place.restore(&file).unwrap();
    let whole = look(&new);
    // As a power cut leaves it.
    fs::write(new.join(UNFINISHED), "").unwrap();
    fs::remove_file(new.join(backup::LEDGER)).unwrap();
    assert_eq!(status(&refuse_unfinished(&new).unwrap_err()), 3, "no server on half of it");
    place.restore(&file).unwrap();
    assert!(look(&new) == whole && refuse_unfinished(&new).is_ok());
    // What somebody changed meanwhile stays.
    fs::write(new.join(UNFINISHED), "").unwrap();
    fs::write(new.join(backup::SITE), "mine").unwrap();
    assert_eq!(status(&place.restore(&file).unwrap_err()), 3);
    assert_eq!(fs::read(new.join(backup::SITE)).unwrap(), b"mine");

    let (staged, target) = (place.path("staged"), place.path("target"));
    fs::create_dir_all(&target).unwrap();
    fs::create_dir_all(staged.join("credential.key")).unwrap(); // a folder cannot be linked
    fs::write(staged.join(backup::LEDGER), "").unwrap();
    fs::write(staged.join("tls.key"), "").unwrap();
    assert!(super::place(&staged, &target).is_err());
    assert_eq!(look(&target), Some(BTreeMap::new()));
}

/// The pieces of a file are what the file is.
#[test]
fn a_piece_of_a_file_is_its_bytes() {
    let place = Place::new();
    let (a, b) = (of_file("x", &place.path("site.toml")).unwrap(), of_bytes("x", SITE.as_bytes().to_vec()));
    assert_eq!(a.member, b.member);
}
