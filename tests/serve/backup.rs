//! `kiln backup` beside a server that works, and `kiln restore` to one that goes on.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Gives orders until told to stop; what was answered is in the list.
fn keep_writing(
    place: &Place,
    stop: &Arc<AtomicBool>,
    answered: &Arc<Mutex<Vec<String>>>,
) -> std::thread::JoinHandle<()> {
    let client = Client::unix(place.path("kiln.sock"));
    let (stop, answered) = (stop.clone(), answered.clone());
    std::thread::spawn(move || {
        for i in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let reason = format!("hold {i}");
            let order = serde_json::json!({"verb": "hold", "node": "test2", "reason": reason});
            let response =
                client.request("POST", "/api/command", &[], Body::Bytes(serde_json::to_vec(&order).unwrap())).unwrap();
            assert_eq!(response.status, 200);
            answered.lock().unwrap().push(reason);
        }
    })
}

#[test]
fn a_backup_of_a_working_server_is_a_server_again() {
    let place = Place::new();
    let mut server = Server::start(&place);
    let node = Node::new(1);
    assert_eq!(server.script().0, 200);
    let BootAnswer::Go(go) = node.boot(&server, place.id) else { panic!("held") };
    let identity = node.identity(&node.register(&server, place.id, go.credential).unwrap().certificate);

    let text = |name: &str| place.path(name).display().to_string();
    let (site, state) = (text("site.toml"), text("state"));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let writer = keep_writing(&place, &stop, &answered);
    let mut taken = Vec::new();
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(200));
        let before = answered.lock().unwrap().len();
        let file = text(&format!("backup{round}"));
        let (code, said) = place.kiln(&["backup", &file, "--site", &site, "--state", &state]);
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("hush"), "{said}");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        taken.push((file, before));
    }
    let refused = place.kiln(&["restore", &taken[0].0, "--to", &state]);
    assert!(refused.0 == Some(3) && refused.1.contains("another kiln serve"), "{refused:?}");
    // After a kill the journal lies beside the ledger: a backup of it holds all that was answered.
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let all = answered.lock().unwrap().len();
    let last = text("after");
    let (code, said) = place.kiln(&["backup", &last, "--site", &site, "--state", &state]);
    assert_eq!(code, Some(0), "{said}");
    taken.push((last, all));
    assert!(all > 20, "only {all} answers");

    let mut heads = Vec::new();
    for (round, (file, before)) in taken.iter().enumerate() {
        let dir = place.path(&format!("restored{round}"));
        let (code, said) = place.kiln(&["restore", file, "--to", dir.to_str().unwrap()]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("kiln cluster adopt") && !said.contains("hush"), "{said}");
        let again = Server::start_on(&place, &dir.join("site.toml"), &dir);
        assert_eq!(again.pin, server.pin, "nodes know it");
        let events = place.events();
        let revs: Vec<u64> = events.iter().map(|r| r.rev).collect();
        assert_eq!(revs, (1..=revs.len() as u64).collect::<Vec<_>>(), "no gaps");
        // A ledger that was put back is doubted at once.
        assert!(matches!(events.last().map(|r| &r.event), Some(Event::Unvouched { .. })), "{events:?}");
        assert!(said.contains(&format!("ledger at revision {}", revs.len() - 1)), "{said}");
        heads.push(revs.len());
        let held = |reason: &String| {
            events.iter().any(|r| matches!(&r.event, Event::NodeHeld { reason: found, .. } if found == reason))
        };
        let missing: Vec<String> = answered.lock().unwrap()[..*before].iter().filter(|r| !held(r)).cloned().collect();
        assert!(missing.is_empty(), "round {round}: {missing:?}");
        // The certificate that the lost server gave is no longer enough; the node's key is.
        assert!(again.say::<ReportAnswer>("/v1/report", &report(Phase::Ready), Some(&identity)).is_err());
        let renewed = node.identity(&node.register(&again, place.id, None).unwrap().certificate);
        again.say::<ReportAnswer>("/v1/report", &report(Phase::Ready), Some(&renewed)).unwrap();
        // Its next boot is let in by its key, and gets the secrets.
        let next = Node { boot_id: Node::new(20 + round as u8).boot_id, ..Node::new(1) };
        let answer = next.register(&again, place.id, None).unwrap();
        assert_eq!((answer.generation, answer.secrets["galera.sst"].as_str()), (2, "hush"));
    }
    assert!(heads.windows(2).all(|w| w[0] < w[1]), "orders came in between: {heads:?}");
}

#[test]
fn no_server_starts_on_half_a_restore() {
    let place = Place::new();
    std::fs::create_dir(place.path("state")).unwrap();
    std::fs::write(place.path("state/restore.unfinished"), "").unwrap();
    let text = |name: &str| place.path(name).display().to_string();
    let (code, said) = place.kiln(&["serve", "--site", &text("site.toml"), "--state", &text("state")]);
    assert!(code == Some(3) && said.contains("restore"), "{said}");
    assert!(!place.path("state/tls.key").exists());
}
