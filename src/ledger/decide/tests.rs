//! A row for each rule of the threat table, on a small site.

use super::*;
use crate::image::sign::public_text;
use crate::ledger::answer;
use crate::ledger::message::{Disk, Phase, SESSION_DEAD_SECS, SystemReport, SystemState, register_statement};
use crate::site::{Cluster, DiskMatch, Network, Node, StateDisk};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer, SigningKey};

const BOOT_A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const BOOT_B: &str = "bbbbbbbb-0000-4000-8000-000000000002";
const BOOT_C: &str = "cccccccc-0000-4000-8000-000000000003";
/// Long after the server's start.
const LATER: u64 = SESSION_DEAD_SECS * 1000 * 10;

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn image(number: u8) -> UsedImage {
    UsedImage {
        id: Digest([number; 32]),
        reference: format!("zed/test:{number}"),
        kernel: Digest([0xaa; 32]),
        initramfs: Digest([0xbb; 32]),
        cmdline: vec![],
        architecture: "amd64".into(),
        controller: false,
        clustered: vec![],
        secrets: vec!["galera.sst".into()],
        certificates: vec![],
    }
}

fn node(name: &str, last: u8, state: StateDisk) -> Node {
    Node {
        name: name.into(),
        role: "test".into(),
        macs: vec![mac(last)],
        uuid: None,
        address: ip(last + 10),
        external_mac: None,
        state,
        cmdline: vec![],
    }
}

fn site() -> Site {
    let disk = StateDisk::Disk(DiskMatch { serial: Some("S1".into()), wwn: None, size: None });
    let management = Network {
        subnet: Some("10.0.0.0/24".parse().unwrap()),
        gateway: None,
        dns: vec![],
        ntp: vec![],
        mtu: None,
        pool: None,
        physical: None,
    };
    Site {
        cluster: Cluster { name: "c".into(), release: "zed".into(), vip: None, unknown: None },
        ssh_keys: vec![],
        role_images: [("test".to_string(), "zed/test".to_string())].into(),
        management,
        networks: BTreeMap::new(),
        nodes: vec![node("disk1", 1, disk), node("mem1", 2, StateDisk::Volatile), node("unset1", 3, StateDisk::Unset)],
    }
}

/// A server in memory.
struct World {
    state: State,
    live: Live,
    now: u64,
}

impl World {
    fn new() -> World {
        let mut world = World { state: State::default(), live: Live::new(0), now: LATER };
        let images = [("test".to_string(), image(1))].into();
        world.good(Command::ApplySite { site: Box::new(site()), site_id: "id".into(), images });
        world
    }

    fn run(&mut self, command: Command) -> Result<Vec<Event>, Refusal> {
        let result = decide(&self.state, &self.live, &command, self.now);
        let caused = match &result {
            Ok(events) => events.clone(),
            Err(refusal) => refusal.events.clone(),
        };
        caused.iter().for_each(|event| self.state.apply(event));
        if result.is_ok() {
            self.live.note(&command, &self.state, self.now);
        }
        result
    }

    fn good(&mut self, command: Command) -> Vec<Event> {
        self.run(command).unwrap()
    }

    fn boot(&mut self, last: u8, boot_id: &str) -> Result<Option<String>, Refusal> {
        self.boot_from(last, boot_id, ip(last + 10))
    }

    /// The credential that a boot gets, in authoritative mode.
    fn boot_from(&mut self, last: u8, boot_id: &str, source: Ipv4Addr) -> Result<Option<String>, Refusal> {
        self.boot_with(last, boot_id, source, true, None)
    }

    fn boot_with(
        &mut self,
        last: u8,
        boot_id: &str,
        source: Ipv4Addr,
        authoritative: bool,
        leased: Option<Ipv4Addr>,
    ) -> Result<Option<String>, Refusal> {
        let request = BootRequest {
            mac: mac(last),
            uuid: None,
            boot_id: boot_id.into(),
            image: image(1).id,
            version: "1".into(),
            disks: vec![],
        };
        let credential = format!("secret of {boot_id} {source}");
        let boot = Boot { request: request.clone(), source, leased, authoritative, credential: credential.clone() };
        self.run(Command::Boot(Box::new(boot)))?;
        let name = self.state.site.as_ref().unwrap().nodes.iter().find(|n| n.macs.contains(&mac(last))).unwrap();
        Ok(answer::boot(&self.state, &name.name, &request, &credential, 0).unwrap().credential)
    }

    fn register(
        &mut self,
        name: &str,
        boot_id: &str,
        key_number: u8,
        credential: Option<String>,
    ) -> Result<u64, Refusal> {
        self.register_from(name, boot_id, key_number, credential, None)
    }

    fn register_from(
        &mut self,
        name: &str,
        boot_id: &str,
        key_number: u8,
        credential: Option<String>,
        source: Option<Ipv4Addr>,
    ) -> Result<u64, Refusal> {
        let node = self.state.site_node(name).unwrap().clone();
        let request = request(name, node.macs[0], boot_id, key_number, credential);
        self.register_request(request, source.unwrap_or(node.address))
    }

    fn register_request(&mut self, request: RegisterRequest, source: Ipv4Addr) -> Result<u64, Refusal> {
        let admitted = check_register(&self.state, &self.live, &request, source, None, self.now).ok();
        let issued = admitted.map(|a| Issued {
            generation: a.generation,
            fingerprint: Digest::of(format!("{}{}", request.node, a.generation).as_bytes()),
        });
        let node = request.node.clone();
        self.run(Command::Register { request: Box::new(request), source, issued, shown: None })?;
        Ok(self.state.node(&node).generation)
    }

    /// Boots and registers; returns the generation.
    fn in_role(&mut self, name: &str, last: u8, boot_id: &str, key_number: u8) -> u64 {
        let credential = self.boot(last, boot_id).unwrap();
        self.register(name, boot_id, key_number, credential).unwrap()
    }

    fn silence(&mut self) {
        self.now += SESSION_DEAD_SECS * 1000;
    }

    fn alarms(&self, name: &str) -> u64 {
        self.state.node(name).alarms
    }
}

fn request(name: &str, mac: Mac, boot_id: &str, key_number: u8, credential: Option<String>) -> RegisterRequest {
    let key = key(key_number);
    let csr = "csr".to_string();
    let signature = key.sign(&register_statement(name, boot_id, &csr));
    RegisterRequest {
        node: name.into(),
        mac,
        boot_id: boot_id.into(),
        image: image(1).id,
        version: "1".into(),
        credential,
        key: public_text(&key.verifying_key()),
        signature: BASE64.encode(signature.to_bytes()),
        csr,
        last_generation: 0,
        certificates: BTreeMap::new(),
    }
}

fn held(result: Result<Option<String>, Refusal>) -> String {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.why, Why::Hold, "{}", refusal.reason);
    refusal.reason
}

fn refused(result: Result<u64, Refusal>) -> String {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.why, Why::Refused, "{}", refusal.reason);
    refusal.reason
}

#[test]
fn the_first_boot_of_a_named_node_gets_a_credential_once() {
    let mut w = World::new();
    let credential = w.boot(1, BOOT_A).unwrap().unwrap();
    // A lost answer is given again: the same credential, no further event.
    let rev = w.state.rev;
    assert_eq!(w.boot(1, BOOT_A).unwrap(), Some(credential.clone()));
    assert_eq!(w.state.rev, rev);
    assert_eq!(w.register("disk1", BOOT_A, 1, Some(credential.clone())), Ok(1));
    // Spent: neither this boot nor another register gets anything for it.
    assert!(held(w.boot(1, BOOT_A)).contains("registered already"));
    assert!(refused(w.register("disk1", BOOT_B, 2, Some(credential))).contains("spent"));
}

#[test]
fn a_boot_that_never_registered_is_followed_by_a_fresh_credential_and_the_old_one_is_void() {
    let mut w = World::new();
    let old = w.boot(1, BOOT_A).unwrap();
    let new = w.boot(1, BOOT_B).unwrap();
    assert!(new.is_some() && new != old);
    assert!(refused(w.register("disk1", BOOT_A, 1, old)).contains("another boot"));
    assert_eq!(w.register("disk1", BOOT_B, 1, new), Ok(1));
}

#[test]
fn a_credential_goes_only_to_the_address_of_that_card() {
    // authoritative, leased, script asked from, asks from, gets one
    let rows = [
        (true, None, None, ip(11), true),
        (true, None, None, ip(99), false),
        (true, Some(ip(50)), None, ip(50), true),
        // Approved while parked: it may still have the pool's address, or its own already.
        (true, Some(ip(50)), None, ip(11), true),
        (true, Some(ip(50)), None, ip(51), false),
        (true, Some(ip(50)), Some(ip(51)), ip(51), false),
        (true, None, Some(ip(99)), ip(99), false),
        (false, None, Some(ip(77)), ip(77), true),
        (false, None, Some(ip(77)), ip(78), false),
        (false, None, None, ip(11), false),
    ];
    for (authoritative, leased, script, source, good) in rows {
        let mut w = World::new();
        if let Some(address) = script {
            let answer = Answer {
                mac: mac(1),
                node: Some("disk1".into()),
                asked: Asked::Script,
                address: Some(address),
                facts: BTreeMap::new(),
                rule: "role-image".into(),
                answer: "boot".into(),
                image: Some(image(1).id),
            };
            w.good(Command::Answer(Box::new(answer)));
        }
        let got = w.boot_with(1, BOOT_A, source, authoritative, leased);
        assert_eq!(got.is_ok(), good, "{authoritative} {leased:?} {script:?} {source}: {got:?}");
        assert_eq!(w.state.node("disk1").credential.is_some(), good);
    }
}

#[test]
fn a_credential_is_worth_something_only_from_where_it_was_minted_to() {
    let mut w = World::new();
    let credential = w.boot(1, BOOT_A).unwrap();
    let stolen = w.register_from("disk1", BOOT_A, 9, credential.clone(), Some(ip(99)));
    assert!(refused(stolen).contains("minted to"));
    let wrong = w.register("disk1", BOOT_A, 9, Some("guess".into()));
    assert!(refused(wrong).contains("wrong credential"));
    let none = w.register("disk1", BOOT_A, 9, None);
    assert!(refused(none).contains("no credential"));
    assert_eq!(w.state.node("disk1").generation, 0);
    assert_eq!(w.register("disk1", BOOT_A, 1, credential), Ok(1));
}

#[test]
fn a_node_with_a_state_disk_signs_with_its_key_from_then_on() {
    let mut w = World::new();
    assert_eq!(w.in_role("disk1", 1, BOOT_A, 1), 1);
    // Even while the old session lives: it may have been reset.
    assert_eq!(w.boot(1, BOOT_B), Ok(None));
    assert_eq!(w.register("disk1", BOOT_B, 1, None), Ok(2));
    w.silence();
    assert_eq!(w.boot(1, BOOT_C), Ok(None), "no credential, dead session or not");
    let posing = refused(w.register("disk1", BOOT_C, 9, None));
    assert!(posing.contains("not its registered one"), "{posing}");
    assert_eq!(w.alarms("disk1"), 1);
}

#[test]
fn a_fresh_key_needs_an_approval_and_a_dead_session() {
    let mut w = World::new();
    w.in_role("disk1", 1, BOOT_A, 1);
    let approve = Command::Approve { machine: MachineId::Mac(mac(1)), node: "disk1".into() };
    w.good(approve.clone());
    assert!(held(w.boot(1, BOOT_B)).contains("lives"));
    w.silence();
    let credential = w.boot(1, BOOT_B).unwrap();
    assert_eq!(w.register("disk1", BOOT_B, 2, credential), Ok(2));
    // The approval is spent, the old key is worth nothing.
    w.silence();
    assert_eq!(w.boot(1, BOOT_C), Ok(None));
    assert!(w.register("disk1", BOOT_C, 1, None).is_err());
    // An approval that the known key answers is spent too.
    w.good(approve);
    assert_eq!(w.register("disk1", BOOT_C, 2, None), Ok(3));
    assert!(!w.state.node("disk1").approved);
}

#[test]
fn a_register_by_credential_while_the_session_lives_is_refused_and_raises_an_alarm() {
    let mut w = World::new();
    w.in_role("mem1", 2, BOOT_A, 1);
    assert!(held(w.boot(2, BOOT_B)).contains("lives"));
    w.silence();
    let credential = w.boot(2, BOOT_B).unwrap();
    // The old session speaks again before the register comes.
    let fingerprint = w.state.node("mem1").session.as_ref().unwrap().fingerprint;
    let report = Report {
        phase: Phase::Ready,
        detail: String::new(),
        systems: vec![],
        leaving: false,
        seq: 0,
        running: vec![],
        drain: None,
        moves: false,
        order: None,
    };
    w.good(Command::Report { fingerprint, report });
    assert!(refused(w.register("mem1", BOOT_B, 2, credential.clone())).contains("while generation 1 lives"));
    assert_eq!(w.alarms("mem1"), 1);
    // The same again is refused, and not written down again.
    let rev = w.state.rev;
    assert!(w.register("mem1", BOOT_B, 2, credential).is_err());
    assert_eq!(w.state.rev, rev);
}

#[test]
fn a_node_in_memory_gets_a_credential_when_its_session_is_dead() {
    let mut w = World::new();
    assert_eq!(w.in_role("mem1", 2, BOOT_A, 1), 1);
    w.silence();
    assert_eq!(w.in_role("mem1", 2, BOOT_B, 2), 2);
    // A session that said good-bye is dead at once.
    let fingerprint = w.state.node("mem1").session.as_ref().unwrap().fingerprint;
    let report = Report {
        phase: Phase::Ready,
        detail: String::new(),
        systems: vec![],
        leaving: true,
        seq: 0,
        running: vec![],
        drain: None,
        moves: false,
        order: None,
    };
    w.good(Command::Report { fingerprint, report });
    assert_eq!(w.in_role("mem1", 2, BOOT_C, 3), 3);
    // Without a named disk a node that is no controller is one in memory.
    assert_eq!(w.in_role("unset1", 3, BOOT_A, 4), 1);
}

#[test]
fn after_a_restart_of_the_server_no_session_is_dead_before_its_time() {
    let mut w = World::new();
    w.in_role("mem1", 2, BOOT_A, 1);
    w.silence();
    w.live = Live::new(w.now);
    assert!(held(w.boot(2, BOOT_B)).contains("may live"));
    w.silence();
    assert!(w.boot(2, BOOT_B).unwrap().is_some());
}

#[test]
fn a_boot_id_registers_once() {
    let mut w = World::new();
    w.in_role("disk1", 1, BOOT_A, 1);
    // The agent was restarted: same boot, same key, same generation.
    assert_eq!(w.register("disk1", BOOT_A, 1, None), Ok(1));
    assert!(refused(w.register("disk1", BOOT_A, 9, None)).contains("another key"));
    assert_eq!(w.register("disk1", BOOT_B, 1, None), Ok(2));
    assert!(refused(w.register("disk1", BOOT_A, 1, None)).contains("replay"));
    assert!(held(w.boot(1, BOOT_A)).contains("registered already"));
    assert_eq!(w.alarms("disk1"), 2);
}

#[test]
fn what_is_signed_cannot_be_changed() {
    let good = request("disk1", mac(1), BOOT_A, 1, None);
    let changes: [fn(&mut RegisterRequest); 6] = [
        |r| r.node = "mem1".into(),
        |r| r.boot_id = BOOT_B.into(),
        |r| r.csr = "other".into(),
        |r| r.key = public_text(&key(2).verifying_key()),
        |r| r.signature = "AAAA".into(),
        |r| r.boot_id = "../x".into(),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut w = World::new();
        let mut changed = good.clone();
        change(&mut changed);
        assert_eq!(w.register_request(changed, ip(11)).unwrap_err().why, Why::Invalid, "change {i}");
    }
}

#[test]
fn another_nodes_card_or_credential_opens_nothing() {
    let mut w = World::new();
    let credential = w.boot(1, BOOT_A).unwrap();
    assert!(refused(w.register("mem1", BOOT_A, 1, credential.clone())).contains("spent or never minted"));
    let foreign = request("disk1", mac(2), BOOT_A, 1, credential);
    assert!(refused(w.register_request(foreign, ip(11))).contains("is not node"));
    let nobody = request("nobody", mac(1), BOOT_A, 1, None);
    assert_eq!(w.register_request(nobody, ip(11)).unwrap_err().why, Why::NotFound);
}

#[test]
fn a_disk_is_granted_only_blank_named_and_with_the_credential_unspent() {
    let mut w = World::new();
    let credential = w.boot(1, BOOT_A).unwrap();
    let disk = |serial: &str| Disk { name: "vda".into(), serial: Some(serial.into()), wwn: None, size: 1 };
    let ask = |serial: &str, found: &str, credential: &Option<String>| Command::Disk {
        request: DiskRequest {
            node: "disk1".into(),
            boot_id: BOOT_A.into(),
            credential: credential.clone(),
            disk: disk(serial),
            found: found.into(),
        },
        source: ip(11),
    };
    assert!(w.run(ask("S1", "blank", &None)).is_err());
    assert!(w.run(ask("S1", "blank", &Some("guess".into()))).is_err());
    let written = |result: Result<Vec<Event>, Refusal>| result.unwrap_err().events.len();
    assert_eq!(written(w.run(ask("S2", "blank", &credential))), 1);
    assert_eq!(written(w.run(ask("S1", "ext4", &credential))), 1);
    assert_eq!(written(w.run(ask("S1", "ext4", &credential))), 0, "the same again is not written down");
    assert_eq!(w.good(ask("S1", "blank", &credential)).len(), 1);
    assert_eq!(w.good(ask("S1", "blank", &credential)).len(), 0, "an answer that was lost");
    w.register("disk1", BOOT_A, 1, credential.clone()).unwrap();
    assert!(w.run(ask("S1", "blank", &credential)).is_err());
}

#[test]
fn held_unknown_and_unfit_boots_wait_with_a_reason() {
    let mut w = World::new();
    w.good(Command::Hold { node: "disk1".into(), reason: "disk swap".into() });
    assert!(held(w.boot(1, BOOT_A)).contains("disk swap"));
    w.good(Command::Unhold { node: "disk1".into() });
    assert!(w.boot(1, BOOT_A).unwrap().is_some());
    let stranger = Boot {
        request: BootRequest {
            mac: mac(66),
            uuid: None,
            boot_id: BOOT_A.into(),
            image: image(1).id,
            version: "1".into(),
            disks: vec![],
        },
        source: ip(66),
        leased: None,
        authoritative: true,
        credential: "x".into(),
    };
    let refusal = w.run(Command::Boot(Box::new(stranger.clone()))).unwrap_err();
    assert_eq!(refusal.why, Why::Hold);
    let mut other = stranger;
    (other.request.mac, other.request.image, other.source) = (mac(2), image(7).id, ip(12));
    assert!(w.run(Command::Boot(Box::new(other))).unwrap_err().reason.contains("must boot"));
    // A controller without a word about its disk is refused.
    let mut controller = image(1);
    controller.controller = true;
    w.good(Command::UseImage {
        role: "test".into(),
        image: Box::new(UsedImage { id: Digest([2; 32]), ..controller }),
        release: "zed".into(),
        image_role: "test".into(),
    });
    assert!(held(w.boot(3, BOOT_A)).contains("no state disk"));
}

#[test]
fn a_report_is_an_event_only_when_something_changed() {
    let mut w = World::new();
    w.in_role("disk1", 1, BOOT_A, 1);
    let old = w.state.node("disk1").session.as_ref().unwrap().fingerprint;
    let report = |state, reason: &str| Report {
        phase: Phase::Join,
        detail: String::new(),
        systems: vec![SystemReport {
            name: "galera".into(),
            state,
            reason: reason.into(),
            lineage: None,
            stranded: false,
            guests: vec![],
            stopped: vec![],
        }],
        leaving: false,
        seq: 0,
        running: vec![],
        drain: None,
        moves: false,
        order: None,
    };
    let say = |w: &mut World, fingerprint, report| w.run(Command::Report { fingerprint, report }).map(|e| e.len());
    assert_eq!(say(&mut w, old, report(SystemState::Starting, "a")), Ok(1));
    assert_eq!(say(&mut w, old, report(SystemState::Starting, "b")), Ok(0));
    assert_eq!(say(&mut w, old, report(SystemState::Healthy, "b")), Ok(1));
    assert_eq!(w.live.heard_ms(&w.state, "disk1"), Some(w.now));
    // An older generation's word changes nothing.
    w.register("disk1", BOOT_B, 1, None).unwrap();
    assert!(say(&mut w, old, report(SystemState::Failed, "x")).is_err());
    assert!(say(&mut w, Digest([9; 32]), report(SystemState::Failed, "x")).is_err());
}

#[test]
fn a_certificate_of_another_generation_is_not_taken() {
    let mut w = World::new();
    let credential = w.boot(1, BOOT_A).unwrap();
    let request = Box::new(request("disk1", mac(1), BOOT_A, 1, credential));
    let stale = Some(Issued { generation: 2, fingerprint: Digest([1; 32]) });
    let refusal = w.run(Command::Register { request, source: ip(11), issued: stale, shown: None }).unwrap_err();
    assert_eq!((refusal.why, refusal.events.len()), (Why::Raced, 0));
}

#[test]
fn a_site_edit_that_a_cluster_cannot_take_is_refused() {
    let apply = |w: &mut World, change: fn(&mut Site)| {
        let mut site = site();
        change(&mut site);
        w.run(Command::ApplySite { site: Box::new(site), site_id: String::new(), images: BTreeMap::new() })
    };
    let mut w = World::new();
    assert_eq!(apply(&mut w, |_| ()).unwrap().len(), 0);
    assert_eq!(apply(&mut w, |s| s.cluster.name = "d".into()).unwrap().len(), 1);
    assert_eq!(apply(&mut w, |_| ()).unwrap().len(), 1);
    w.in_role("disk1", 1, BOOT_A, 1);
    assert!(apply(&mut w, |s| s.cluster.name = "d".into()).is_err());
    assert!(apply(&mut w, |s| s.cluster.vip = Some(ip(99))).is_err());
    assert!(apply(&mut w, |s| drop(s.nodes.remove(0))).is_err(), "its session lives");
    assert!(apply(&mut w, |s| s.nodes[0].cmdline = vec!["a\nshell".into()]).is_err());
    assert_eq!(apply(&mut w, |s| s.nodes[1].cmdline = vec!["quiet".into()]).unwrap().len(), 1);
    assert_eq!(w.state.site_id, "id", "for life");
    w.silence();
    assert_eq!(apply(&mut w, |s| drop(s.nodes.remove(0))).unwrap().len(), 1);
    // Back again: it is still the node that registered.
    apply(&mut w, |_| ()).unwrap();
    assert_eq!(w.boot(1, BOOT_B), Ok(None));
    let mut edited = site();
    edited.nodes[1].address = ip(42);
    assert_eq!(site_diff(Some(&site()), &edited), ["~ nodes.mem1.address: \"10.0.0.12\" -> \"10.0.0.42\""]);
}

#[test]
fn an_image_must_be_of_the_role_and_release() {
    let mut w = World::new();
    let mut use_image = |role: &str, release: &str, image_role: &str, number| {
        let image = Box::new(image(number));
        let (role, release, image_role) = (role.to_string(), release.to_string(), image_role.to_string());
        w.run(Command::UseImage { role, image, release, image_role }).map(|e| e.len()).map_err(|e| e.why)
    };
    assert_eq!(use_image("test", "zed", "test", 2), Ok(1));
    assert_eq!(use_image("test", "zed", "test", 2), Ok(0));
    assert_eq!(use_image("test", "zed", "infra", 3), Err(Why::Refused));
    assert_eq!(use_image("test", "mitaka", "test", 3), Err(Why::Refused));
    assert_eq!(use_image("nope", "zed", "nope", 3), Err(Why::NotFound));
    let kept: Vec<u8> = w.state.images_in_use().iter().map(|d| d.0[0]).collect();
    assert_eq!(kept, [1, 2], "the one before stays for a rollback");
}

#[test]
fn a_parked_machine_becomes_a_node_by_the_operators_word() {
    let mut w = World::new();
    let uuid: Uuid = "4c4c4544-0039-4a10-8052-b4c04f4d3332".parse().unwrap();
    let approve = |w: &mut World, id: &str, node: &str| {
        w.run(Command::Approve { machine: id.parse().unwrap(), node: node.into() }).map(|e| e.len()).map_err(|e| e.why)
    };
    let saw = Command::Saw { mac: mac(9), uuid: Some(uuid), firmware: "bios".into() };
    assert_eq!(approve(&mut w, "52:54:00:00:00:09", "disk1"), Err(Why::NotFound));
    assert_eq!(w.good(saw.clone()).len(), 1);
    assert_eq!(w.good(saw).len(), 0);
    assert_eq!(approve(&mut w, "52:54:00:00:00:09", "nobody"), Err(Why::NotFound));
    assert_eq!(approve(&mut w, "52:54:00:00:00:02", "disk1"), Err(Why::Refused), "another node's card");
    assert_eq!(approve(&mut w, &uuid.to_string(), "disk1"), Ok(1));
    assert_eq!(approve(&mut w, &uuid.to_string(), "disk1"), Ok(0));
    use crate::ledger::identify::{Identity, identify};
    assert_eq!(identify(&w.state, mac(9), None), Identity::Node { name: "disk1".into(), by: "approved" });
    assert_eq!(identify(&w.state, mac(1), Some(uuid)), Identity::Node { name: "disk1".into(), by: "mac" });
}

#[test]
fn a_uuid_that_contradicts_is_no_node() {
    use crate::ledger::identify::{Identity, identify};
    let [a, b]: [Uuid; 2] =
        ["4c4c4544-0039-4a10-8052-b4c04f4d3332", "5c4c4544-0039-4a10-8052-b4c04f4d3332"].map(|u| u.parse().unwrap());
    let junk: Uuid = "ffffffff-ffff-ffff-ffff-ffffffffffff".parse().unwrap();
    let mut edited = site();
    edited.nodes[0].uuid = Some(a);
    let mut w = World::new();
    w.good(Command::ApplySite { site: Box::new(edited), site_id: String::new(), images: BTreeMap::new() });
    let who = |last, uuid| match identify(&w.state, mac(last), uuid) {
        Identity::Node { name, by } => format!("{name} {by}"),
        Identity::Contradiction { .. } => "contradiction".into(),
        Identity::Unknown => "unknown".into(),
    };
    for (last, uuid, want) in [
        (1, None, "disk1 mac"),
        (1, Some(a), "disk1 mac"),
        (1, Some(junk), "disk1 mac"),
        (1, Some(b), "contradiction"),
        (2, Some(a), "contradiction"),
        (2, Some(b), "mem1 mac"),
        (9, Some(a), "disk1 uuid"),
        (9, Some(b), "unknown"),
        (9, None, "unknown"),
    ] {
        assert_eq!(who(last, uuid), want, "{last} {uuid:?}");
    }
}

#[test]
fn nobody_can_fill_the_log() {
    let mut w = World::new();
    for i in 0..2 * crate::ledger::live::NOISE_MAX {
        let report = PhaseReport {
            mac: mac(1),
            uuid: None,
            boot_id: BOOT_A.into(),
            image: image(1).id,
            phase: Phase::Fetch,
            detail: format!("{i}"),
        };
        let command = Command::Phase { report };
        let events = w.run(command.clone()).unwrap_or_default();
        let (mac, stranger) = speaker(&w.state, &command).unwrap();
        w.live.count(mac, stranger, events.len(), w.now);
    }
    assert!(w.state.rev < u64::from(crate::ledger::live::NOISE_MAX) + 10, "{}", w.state.rev);
    let unknown = PhaseReport {
        mac: mac(77),
        uuid: None,
        boot_id: BOOT_A.into(),
        image: image(1).id,
        phase: Phase::Fetch,
        detail: String::new(),
    };
    assert_eq!(w.run(Command::Phase { report: unknown }).unwrap_err().why, Why::NotFound);
}

#[test]
fn a_node_that_knows_a_later_generation_counts_on_and_a_member_tells_that_the_ledger_is_behind() {
    use crate::recipe::system::{Clustered, Dark, Formation, FormationKind};
    let formation = Some(Formation { kind: FormationKind::Seeded, dark: Some(Dark::Rank) });
    let db = Clustered {
        name: "db".into(),
        formation,
        cluster_steps: BTreeMap::new(),
        peer_steps: vec![],
        removed_steps: vec![],
        keeps: None,
    };
    for (clustered, behind) in [(vec![], false), (vec![db], true)] {
        let mut w = World::new();
        w.state.apply(&Event::ImageUsed { role: "test".into(), image: UsedImage { clustered, ..image(1) } });
        let credential = w.boot(1, BOOT_A).unwrap();
        let node = w.state.site_node("disk1").unwrap().clone();
        let mut later = request("disk1", node.macs[0], BOOT_A, 1, credential);
        later.last_generation = 7;
        assert_eq!(w.register_request(later, node.address), Ok(8));
        assert_eq!(w.state.cluster.behind.is_some(), behind, "a compute's word stops nobody");
    }
}

#[test]
fn after_the_ledger_was_lost_a_certificate_of_ours_tells_who_it_is_and_only_then() {
    let shown = |node: &str| Some(Shown { node: node.into(), generation: 4 });
    for (shown, key, generation) in
        [(shown("disk1"), 1, Some(5)), (shown("mem1"), 1, None), (None, 1, None), (shown("disk1"), 2, Some(5))]
    {
        let w = World::new();
        let node = w.state.site_node("disk1").unwrap();
        let asked = request("disk1", node.macs[0], BOOT_A, key, None);
        let admitted = check_register(&w.state, &w.live, &asked, node.address, shown.as_ref(), w.now);
        assert_eq!(admitted.ok().map(|a| a.generation), generation, "{shown:?}");
    }
    // A node whose key is known is known by its key alone.
    let mut w = World::new();
    w.in_role("disk1", 1, BOOT_A, 1);
    let node = w.state.site_node("disk1").unwrap();
    let asked = request("disk1", node.macs[0], BOOT_B, 2, None);
    assert!(check_register(&w.state, &w.live, &asked, node.address, shown("disk1").as_ref(), w.now).is_err());
}
