//! Orders over the real server: given, refused, followed, ended; by the operator's verbs and a node of
//! our own.

use super::*;
use kiln::ledger::event::Asked;
use kiln::recipe::system::{Clustered, Dark, Formation, FormationKind};

fn says(phase: Phase, order: Option<&str>) -> Report {
    Report { order: order.map(String::from), ..report(phase) }
}

/// Runs a verb; its exit status and what it said.
fn is(place: &Place, verb: &[&str], code: i32, words: &[&str]) -> String {
    let (got, text) = place.kiln(verb);
    assert_eq!(got, Some(code), "kiln {verb:?}: {text}");
    words.iter().for_each(|word| assert!(text.contains(word), "kiln {verb:?}: {word:?} is not in {text}"));
    text
}

/// The id in `order ID: …`.
fn order_in(text: &str) -> String {
    let rest = text.split("order ").nth(1).unwrap_or_else(|| panic!("no order in {text}"));
    let id: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    assert_eq!(id.len(), 8, "{text}");
    id
}

/// The site's first machine, booted and registered.
fn registered(server: &Server, place: &Place) -> tls::Identity {
    server.script();
    let node = Node::new(1);
    let BootAnswer::Go(go) = node.boot(server, place.id) else { panic!("held") };
    node.identity(&node.register(server, place.id, go.credential).unwrap().certificate)
}

#[test]
fn a_node_is_reimaged_by_one_order_and_its_disk_is_wiped_once() {
    let place = Place::new();
    let server = Server::start(&place);
    server.script();
    let node = Node::new(1);
    let BootAnswer::Go(go) = node.boot(&server, place.id) else { panic!("held") };
    assert_eq!(go.order, None);
    let answer = node.register(&server, place.id, go.credential).unwrap();
    let identity = node.identity(&answer.certificate);
    let tell = |server: &Server, identity: &tls::Identity, report: Report| {
        server.say::<ReportAnswer>("/v1/report", &report, Some(identity)).unwrap()
    };
    assert_eq!(tell(&server, &identity, says(Phase::Ready, None)).restart, None);

    let given = is(&place, &["node", "reimage", "test1", "--disks", "wipe"], 0, &["test1 is reimaged", "disks wiped"]);
    let id = order_in(&given);
    is(
        &place,
        &["node", "reimage", "test1"],
        3,
        &[&format!("order {id} of"), "is open", &format!("kiln node cancel {id}")],
    );
    assert_eq!(tell(&server, &identity, says(Phase::Ready, None)).restart, Some(id.clone()), "it is told to restart");
    is(&place, &["node", "ls"], 0, &[&format!("order {id}: the node restarts")]);
    is(&place, &["node", "show", "test1"], 0, &[&id, "disks wiped", "order is", "the node restarts"]);
    let goodbye = Report { leaving: true, ..says(Phase::Ready, None) };
    assert_eq!(tell(&server, &identity, goodbye).restart, None);
    is(&place, &["node", "show", "test1"], 0, &["waits for the machine to boot"]);

    // Another boot of the same machine, which knows nothing of the old key.
    assert_eq!(server.script().0, 200);
    let fresh = Node { boot_id: Node::new(2).boot_id, ..Node::new(9) };
    let BootAnswer::Go(go) = fresh.boot(&server, place.id) else { panic!("held") };
    assert_eq!(go.order, Some(BootOrder { id: id.clone(), disks: Disks::Wipe }));
    is(&place, &["node", "show", "test1"], 0, &["boots by it"]);
    let disk = |credential: &Option<String>, found: &str| DiskRequest {
        node: "test1".into(),
        boot_id: fresh.boot_id.clone(),
        credential: credential.clone(),
        disk: Disk { name: "vda".into(), serial: Some("S1".into()), wwn: None, size: 9 },
        found: found.into(),
    };
    let begin = |server: &Server, id: &str, request: &DiskRequest| {
        server.say::<DiskAnswer>(&format!("/v1/orders/{id}/begin"), request, None)
    };
    let other = begin(&server, "ffffffff", &disk(&go.credential, "a state disk")).unwrap();
    assert!(!other.format && other.reason.contains("ffffffff of node test1 is not open"), "{other:?}");
    assert!(!begin(&server, &id, &disk(&None, "a state disk")).unwrap().format, "without the credential");
    assert_eq!(begin(&server, "a/b", &disk(&None, "x")).unwrap().order.as_deref(), Some("a/b"));
    assert_eq!(server.say::<DiskAnswer>("/v1/orders/begin", &disk(&None, "x"), None).unwrap_err().0, 404);
    let granted = begin(&server, &id, &disk(&go.credential, "a state disk")).unwrap();
    assert_eq!((granted.format, granted.order.as_ref()), (true, Some(&id)));
    is(&place, &["node", "cancel", &id], 3, &["has touched disk vda of test1", "--failed"]);
    is(&place, &["cluster", "status"], 0, &[&format!("order {id} of test1 (disks wiped): disk vda is being made")]);

    // The server is killed; the same boot asks again and goes on.
    drop(server);
    let server = Server::start(&place);
    let BootAnswer::Go(again) = fresh.boot(&server, place.id) else { panic!("held") };
    assert_eq!((again.order, &again.credential), (go.order, &go.credential));
    assert!(begin(&server, &id, &disk(&go.credential, "a state disk")).unwrap().format);
    let answer = fresh.register(&server, place.id, go.credential.clone()).unwrap();
    assert_eq!(answer.generation, 2);
    let identity = fresh.identity(&answer.certificate);
    tell(&server, &identity, says(Phase::Join, Some(&id)));
    tell(&server, &identity, says(Phase::Ready, Some("ffffffff")));
    is(&place, &["node", "show", "test1"], 0, &["registered as generation 2, not ready yet"]);
    assert!(!begin(&server, &id, &disk(&go.credential, "a state disk")).unwrap().format, "a late begin");
    tell(&server, &identity, says(Phase::Ready, Some(&id)));
    is(&place, &["node", "show", "test1"], 0, &["order is    ready"]);
    is(
        &place,
        &["explain", "test1", "--last", "20"],
        0,
        &["reimage, disks wiped, asked by", "rule gate, node test1", "found = a state disk"],
    );
    let refused = place.events().into_iter().find(|r| matches!(r.event, Event::OrderRefused { .. })).unwrap();
    let rev = refused.rev.to_string();
    let text = is(&place, &["explain", "test1", "--answer", &rev], 0, &["rule open-order", &format!("answer {rev}")]);
    assert_eq!(text.matches("(answer ").count(), 1, "{text}");
    is(&place, &["explain", "test1", "--answer", "1"], 2, &["event 1 is no answer to test1"]);
    let begun = place.events().iter().filter(|r| matches!(r.event, Event::OrderBegun { .. })).count();
    assert_eq!(begun, 1);
}

#[test]
fn an_order_is_taken_back_or_ended_by_time_and_waited_for() {
    let place = Place::new();
    let _server = Server::start(&place);
    let given = is(&place, &["node", "reimage", "test1"], 0, &["disks kept"]);
    let id = order_in(&given);
    is(&place, &["node", "cancel", &id], 0, &["ended: cancelled"]);
    is(&place, &["node", "cancel", &id], 2, &["no open order"]);
    let waited = ["node", "reimage", "test1", "--expires", "1s", "--wait", "--timeout", "30s"];
    is(&place, &waited, 1, &["waits for the machine to boot", "ended: expired"]);
    let late = ["node", "reimage", "test1", "--wait", "--timeout", "1s"];
    is(&place, &late, 1, &["after 1 s: waits for the machine to boot; the node is new"]);
    is(&place, &["node", "reimage", "nobody"], 2, &["no node"]);
    is(&place, &["node", "reimage", "test2", "--image", "zed/nope"], 2, &["nope"]);
    is(&place, &["node", "reimage", "test2", "--expires", "soon"], 2, &["--expires \"soon\" is not a time"]);
    is(&place, &["node", "reimage", "test2", "--force", ""], 2, &["--force needs a reason"]);
    is(&place, &["node", "reimage", "test2", "--destroy-last-copy", "nope"], 2, &["no shared system \"nope\""]);
    is(&place, &["node", "reimage", "test2", "--guests", "keep"], 2, &["stop, lose"]);
    is(&place, &["node", "rm", "test2", "--guests", "migrate"], 2, &["a node that is off", "--guests lose"]);
    is(&place, &["node", "rm", "test2", "--guests", "stop"], 2, &["a node that is off", "--guests lose"]);
}

#[test]
fn a_live_node_is_told_the_kernel_that_its_script_would_start() {
    let place = Place::new();
    let server = Server::start(&place);
    let identity = registered(&server, &place);
    let told = || server.say::<ReportAnswer>("/v1/report", &says(Phase::Ready, None), Some(&identity)).unwrap();
    let id = order_in(&is(&place, &["node", "reimage", "test1"], 0, &["test1 is reimaged with"]));
    assert_eq!((told().restart, told().kexec), (Some(id.clone()), None), "through its firmware");
    is(&place, &["node", "cancel", &id], 0, &[]);
    is(&place, &["node", "reimage", "test1", "--via", "kexec"], 0, &["test1 is reimaged by kexec with"]);
    is(&place, &["node", "show", "test1"], 0, &["disks kept, by kexec"]);
    let boot = told().kexec.expect("a kernel");
    assert_eq!((boot.image, told().kexec.as_ref()), (place.id, Some(&boot)), "asked again, the same");
    let answers = place.events().into_iter().filter(|r| matches!(r.event, Event::Answered { asked: Asked::Kexec, .. }));
    let answers: Vec<u64> = answers.map(|r| r.rev).collect();
    assert_eq!(answers.len(), 1);
    assert!(boot.cmdline.contains(&format!("kiln.answer={} ", answers[0])), "{}", boot.cmdline);
    let (_, script) = server.script();
    let line = script.lines().find_map(|l| l.strip_prefix("kernel ")?.strip_suffix(" || goto pause")).unwrap();
    let alike = |text: &str| -> Vec<String> {
        text.split(' ').filter(|a| !a.starts_with("kiln.answer=")).map(String::from).collect()
    };
    assert_eq!(alike(line.split_once("initrd=initrd ").unwrap().1), alike(&boot.cmdline));
    is(&place, &["explain", "test1", "--answer", &answers[0].to_string()], 0, &["kexec asked by", "rule order"]);
}

#[test]
fn a_node_whose_boots_come_to_nothing_is_held_until_it_is_let_go() {
    let place = Place::new();
    let server = Server::start(&place);
    let boots = |server: &Server, n: u8| {
        assert!(server.script().1.contains("kiln.image="), "boot {n}: {}", server.script().1);
        assert!(matches!(Node::new(n).boot(server, place.id), BootAnswer::Go(_)), "boot {n}");
    };
    (1..=3).for_each(|n| boots(&server, n));
    // The boot during which the server was away does not count.
    drop(server);
    let server = Server::start(&place);
    boots(&server, 4);
    let held = server.script().1;
    let why = "node test1 is held for 1 min: 3 boots in a row did not register";
    assert!(held.contains(why) && held.contains("kiln node unhold test1"), "{held}");
    assert!(matches!(Node::new(5).boot(&server, place.id), BootAnswer::Hold { reason, .. } if reason.contains(why)));
    is(&place, &["node", "ls"], 0, &["held for 1 min: 3 boots in a row did not register; the last one said nothing"]);
    is(
        &place,
        &["node", "show", "test1"],
        0,
        &["test1 (test): held", "attempts", "the server was started anew meanwhile"],
    );
    is(&place, &["explain", "test1"], 0, &["rule boot-loop", "boots without a register = 3"]);
    is(&place, &["node", "unhold", "test1"], 0, &["let go"]);
    boots(&server, 6);
}

#[test]
fn another_image_by_order_is_that_nodes_until_the_role_gets_one() {
    let place = Place::new();
    let server = Server::start(&place);
    let next = store_image(&place.path("store"), b"another kernel", "next");
    is(&place, &["node", "reimage", "test1", "--image", "zed/test:next"], 0, &[&next.short()]);
    assert!(server.script().1.contains(&format!("kiln.image={next}")));
    let in_use = std::fs::read_to_string(place.path("state/images-in-use.json")).unwrap();
    assert!(in_use.contains(&next.hex()), "{in_use}");
    let node = Node::new(1);
    assert!(matches!(node.boot(&server, place.id), BootAnswer::Hold { restart: true, .. }), "it booted the role's");
    assert!(matches!(node.boot(&server, next), BootAnswer::Go(_)));
}

#[test]
fn an_orders_image_that_goes_from_the_store_waits_to_be_put_back() {
    let place = Place::new();
    let server = Server::start(&place);
    let id = order_in(&is(&place, &["node", "reimage", "test1", "--disks", "wipe"], 0, &[]));
    let digest = Digest::of(&place.kernel).hex();
    let (blob, away) = (place.path("store/blobs/sha256").join(&digest), place.path("away"));
    let status = || server.get(&format!("/blobs/sha256/{digest}")).0;
    let open = || is(&place, &["node", "show", "test1"], 0, &[&id, "boots by it"]);
    let node = Node::new(1);
    assert_eq!(server.script().0, 200);
    assert!(matches!(node.boot(&server, place.id), BootAnswer::Go(go) if go.order.is_some()));
    std::fs::rename(&blob, &away).unwrap();
    assert_eq!((status(), server.script().0), (404, 200), "deleted");
    open();
    std::fs::write(&blob, &place.kernel[1..]).unwrap();
    assert_eq!((status(), server.script().0), (500, 200), "cut");
    open();
    std::fs::rename(&away, &blob).unwrap();
    assert_eq!(status(), 200, "put back");
    assert!(matches!(node.boot(&server, place.id), BootAnswer::Go(go) if go.order.is_some()));
    open();
}

#[test]
fn hardware_is_replaced_and_nodes_are_removed() {
    let place = Place::new();
    let server = Server::start(&place);
    let replace = ["node", "replace", "test1", "--mac", "52:54:00:00:00:21", "--disk", "serial=S9"];
    is(&place, &replace, 0, &["52:54:00:00:00:21 from now on, with a new disk", "into the site file"]);
    assert_eq!(server.script().0, 503, "the old card is nobody's");
    assert_eq!(server.get("/boot/script?mac=52:54:00:00:00:21&arch=x86_64").0, 200);
    is(&place, &["node", "show", "test1"], 0, &["disk serial S9"]);
    is(&place, &["node", "replace", "test1", "--mac", "52:54:00:00:00:02"], 3, &["is node test2's"]);
    is(&place, &["node", "replace", "test1", "--disk", "colour=red"], 2, &["is not serial="]);
    is(&place, &["node", "rm", "test2"], 0, &["node test2 removed", "out of the site file"]);
    assert!(!place.kiln(&["node", "ls"]).1.contains("test2"));
    is(&place, &["node", "rm", "test2"], 2, &["no node"]);
}

#[test]
fn a_node_is_drained_by_a_word_or_an_order_and_told_until_it_is_done() {
    let place = Place::new();
    let server = Server::start(&place);
    let identity = registered(&server, &place);
    let mut seq = 0;
    let mut told = |running: &[&str], done: Option<u64>| {
        seq += 1;
        let guests = vec!["web".to_string()];
        let stopped = if running.is_empty() { guests.clone() } else { vec![] };
        let (name, state, reason) = ("libvirt".to_string(), SystemState::Healthy, String::new());
        let system = SystemReport { name, state, reason, lineage: None, stranded: false, guests, stopped };
        let drain = done.map(|number| DrainReport { number, done: true, failed: false, detail: String::new() });
        let report = Report { systems: vec![system], seq, drain, ..report(Phase::Ready) };
        server.say::<ReportAnswer>("/v1/report", &report, Some(&identity)).unwrap()
    };
    assert_eq!(told(&["web"], None).drain, None);
    is(&place, &["node", "drain", "test1"], 0, &["drained by"]);
    let task = told(&["web"], None).drain.unwrap();
    assert_eq!(task.guests, Drain::Stay);
    is(&place, &["node", "ls"], 0, &["draining: the node does not know yet"]);
    assert_eq!(told(&["web"], Some(task.number)).drain, Some(task), "until it is undrained");
    is(&place, &["node", "show", "test1"], 0, &["guests      draining: 1 guest left"]);
    is(&place, &["node", "undrain", "test1"], 0, &["guests may come"]);
    let task = told(&["web"], None).drain.unwrap();
    assert_eq!(task.guests, Drain::Back);
    assert_eq!(told(&["web"], Some(task.number)).drain, None);

    is(&place, &["node", "reimage", "test1"], 3, &["libvirt: 1 guest: web; next: --guests migrate, stop or lose"]);
    let cannot = "libvirt: 1 guest: web; its image cannot move guests; next: --guests stop or lose";
    is(&place, &["node", "reimage", "test1", "--guests", "migrate"], 3, &[cannot]);
    is(
        &place,
        &["node", "drain", "test1", "--guests", "migrate"],
        3,
        &["moving the guests of test1 is refused", cannot],
    );
    let wipe = ["node", "reimage", "test1", "--disks", "wipe", "--guests", "stop"];
    is(&place, &wipe, 3, &["a wipe takes the disks of those that are shut down"]);
    let id = order_in(&is(&place, &["node", "reimage", "test1", "--guests", "stop"], 0, &[]));
    let answer = told(&["web"], None);
    assert_eq!((answer.restart, answer.drain.as_ref().map(|d| d.guests)), (None, Some(Drain::Stop)));
    is(&place, &["node", "ls"], 0, &["the node is not restarted: guests: draining: the node does not know yet"]);
    let number = answer.drain.unwrap().number;
    assert_eq!(told(&["web"], Some(number)).restart, None, "one runs still");
    assert_eq!(told(&[], Some(number)).restart, Some(id.clone()));
    is(&place, &["node", "undrain", "test1"], 3, &[&format!("kiln node cancel {id}")]);
    is(&place, &["node", "cancel", &id], 0, &[]);
    let answer = told(&[], Some(number));
    assert_eq!((answer.restart, answer.drain.map(|d| d.guests)), (None, Some(Drain::Back)));
    is(&place, &["node", "show", "test1"], 0, &["undraining: the node does not know yet"]);
}

/// Three members of one database.
struct Cluster {
    place: Place,
    server: Server,
    members: Vec<tls::Identity>,
}

const NAMES: [(&str, &str); 3] = [("test1", MAC), ("test2", "52:54:00:00:00:02"), ("test3", "52:54:00:00:00:03")];

impl Cluster {
    fn new() -> Cluster {
        let place = Place::new();
        let galera = Clustered {
            name: "galera".into(),
            formation: Some(Formation { kind: FormationKind::Seeded, dark: Some(Dark::Rank) }),
            cluster_steps: BTreeMap::new(),
            peer_steps: vec![],
            removed_steps: vec![],
            keeps: None,
        };
        let id = store_clustered(&place.path("store"), b"kernel", "latest", None, vec![galera]);
        let third = SITE.replace("test2", "test3").replace("00:00:02", "00:00:03").replace("127.0.0.2", "127.0.0.3");
        let third = third.rsplit_once("[[node]]").unwrap().1;
        std::fs::write(place.path("site.toml"), format!("{SITE}[[node]]{third}")).unwrap();
        let server = Server::start(&place);
        is(&place, &["cluster", "form"], 0, &[]);
        let mut cluster = Cluster { place, server, members: Vec::new() };
        for (i, (name, mac)) in NAMES.into_iter().enumerate() {
            let server = &cluster.server;
            assert_eq!(server.get(&format!("/boot/script?mac={mac}&arch=x86_64")).0, 200);
            let node = Node { name, mac, ..Node::new(i as u8 + 1) };
            let BootAnswer::Go(go) = node.boot(server, id) else { panic!("held") };
            let answer = node.register(server, id, go.credential).unwrap();
            let identity = node.identity(&answer.certificate);
            let claim = ClaimRequest { system: "galera".into(), seq: 1, ask: Ask::Start { data: Data::Blank } };
            let verdict: Verdict = server.say("/v1/claim", &claim, Some(&identity)).unwrap();
            assert_eq!(matches!(verdict, Verdict::Seed), i == 0, "{verdict:?}");
            cluster.members.push(identity);
            cluster.well(i);
        }
        cluster
    }

    fn well(&self, i: usize) {
        let system = SystemReport {
            name: "galera".into(),
            state: SystemState::Healthy,
            reason: String::new(),
            lineage: Some("L".into()),
            stranded: false,
            guests: vec![],
            stopped: vec![],
        };
        self.say(i, Report { systems: vec![system], seq: 5, ..report(Phase::Ready) });
    }

    fn say(&self, i: usize, report: Report) {
        self.server.say::<ReportAnswer>("/v1/report", &report, Some(&self.members[i])).unwrap();
    }
}

#[test]
fn the_gate_refuses_with_its_arithmetic_and_says_so_later() {
    let cluster = Cluster::new();
    let place = &cluster.place;
    let given = is(place, &["node", "reimage", "test1", "--disks", "wipe"], 0, &["order "]);
    // Two operators at once: the second one would take the majority.
    let one = "galera: 3 members, 2 healthy, this leaves 1, majority is 2";
    is(place, &["node", "reimage", "test2"], 3, &["reimage, disks kept of test2 is refused", one]);
    is(place, &["node", "cancel", &order_in(&given)], 0, &[]);
    cluster.say(2, Report { leaving: true, seq: 6, ..report(Phase::Ready) });
    is(place, &["node", "reimage", "test1"], 3, &[one]);
    is(place, &["explain", "test1", "--last", "1"], 0, &["rule quorum", one, "down: test3"]);
    cluster.say(1, Report { leaving: true, seq: 6, ..report(Phase::Ready) });
    let wipe = ["node", "reimage", "test1", "--disks", "wipe", "--force", "drill"];
    is(place, &wipe, 3, &["galera: no other node is seen to serve L", "--destroy-last-copy galera"]);
    let given = is(place, &[&wipe[..], &["--destroy-last-copy", "galera"]].concat(), 0, &["forced: drill"]);
    is(place, &["explain", "test1", "--last", "1"], 0, &["rule gate, forced", "last copy of = galera"]);
    is(place, &["node", "cancel", &order_in(&given)], 0, &[]);
    is(place, &["node", "rm", "test1"], 3, &["while its session lives"]);
}

#[test]
fn an_order_that_moves_guests_fails_with_the_one_that_stays() {
    let cluster = Cluster::new();
    let place = &cluster.place;
    let says = |i: usize, seq: u64, guests: &[&str], drain: Option<DrainReport>| {
        let system = |name: &str, lineage: Option<&str>, guests: &[&str]| SystemReport {
            name: name.into(),
            state: SystemState::Healthy,
            reason: String::new(),
            lineage: lineage.map(String::from),
            stranded: false,
            guests: guests.iter().map(|g| g.to_string()).collect(),
            stopped: vec![],
        };
        let systems = vec![system("galera", Some("L"), &[]), system("libvirt", None, guests)];
        let report = Report { systems, seq, drain, moves: true, ..report(Phase::Ready) };
        cluster.server.say::<ReportAnswer>("/v1/report", &report, Some(&cluster.members[i])).unwrap()
    };
    let order = ["node", "reimage", "test1", "--guests", "migrate"];
    says(0, 6, &["web"], None);
    let sum = "libvirt: 1 guest: web; 2 other nodes, 0 can take them; its image cannot take them: test2, test3";
    is(place, &order, 3, &[sum]);
    is(place, &["explain", "test1", "--last", "1"], 0, &["rule guests", sum]);
    says(1, 6, &[], None);
    says(2, 6, &[], None);
    let id = order_in(&is(place, &order, 0, &[]));
    is(place, &["explain", "test1", "--last", "1"], 0, &["guests may go to = test2, test3", "guests are moved = yes"]);
    let task = says(0, 7, &["web"], None).drain.unwrap();
    assert_eq!(task.guests, Drain::Migrate);
    let detail = "nova-compute: guest web cannot be moved";
    let failed = DrainReport { number: task.number, done: false, failed: true, detail: detail.into() };
    let answer = says(0, 8, &["web"], Some(failed));
    assert_eq!((answer.restart, answer.drain.map(|d| d.guests)), (None, Some(Drain::Back)));
    let ended = format!("order {id} ended: failed: {detail}");
    is(place, &["node", "show", "test1"], 0, &[&format!("order is    failed: {detail}"), &ended]);
    is(place, &["node", "drain", "test1", "--guests", "migrate"], 0, &["those that run are moved"]);
    let task = says(0, 9, &["web"], None).drain.unwrap();
    assert_eq!(task.guests, Drain::Migrate);
    let done = DrainReport { number: task.number, done: true, failed: false, detail: String::new() };
    says(0, 10, &[], Some(done));
    is(place, &["node", "show", "test1"], 0, &["guests      drained"]);
}

#[test]
fn a_rollout_is_planned_started_and_given_up() {
    let place = Place::new();
    let server = Server::start(&place);
    let next = store_image(&place.path("store"), b"another kernel", "next");
    let start = ["rollout", "start", "--role", "test", "--image", "zed/test:next"];
    is(&place, &["rollout", "status"], 2, &["no rollout was started yet"]);
    is(&place, &["rollout", "pause"], 2, &["no rollout is open"]);
    is(&place, &[&start[..], &["--plan"]].concat(), 0, &["nodes, one after the other: test1 test2"]);
    is(&place, &["rollout", "status"], 2, &["no rollout was started yet"]);
    is(
        &place,
        &["rollout", "start", "--role", "nope", "--image", "zed/test:next"],
        2,
        &["no node of this site has role"],
    );
    is(&place, &start, 0, &[&next.short(), "2 nodes"]);
    is(&place, &start, 3, &["a rollout of role test is open"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.script().1.contains(&format!("kiln.image={next}")) {
        assert!(Instant::now() < deadline, "the first node gets no order: {}", place.kiln(&["rollout", "status"]).1);
        std::thread::sleep(Duration::from_millis(100));
    }
    is(
        &place,
        &["rollout", "status"],
        0,
        &["running", "waits for test1 to be ready", "waits for the machine to boot", "to come"],
    );
    is(&place, &["rollout", "pause"], 0, &["rollout paused"]);
    is(&place, &["rollout", "status"], 0, &["paused: by "]);
    is(&place, &["rollout", "resume"], 0, &["goes on"]);
    is(&place, &["rollout", "abort"], 0, &["ended: cancelled", "rollout aborted"]);
    is(&place, &["rollout", "status"], 0, &["aborted"]);
    assert!(server.script().1.contains(&format!("kiln.image={}", place.id)));
}
