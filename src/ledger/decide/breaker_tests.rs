//! What counts as a boot that came to nothing, who is held for how long, and who never is.

use super::breaker::*;
use super::*;
use crate::ledger::breaker::held;
use crate::ledger::message::Phase;
use crate::recipe::system::{Clustered, Formation, FormationKind};
use crate::site::{Cluster, Network, Node, StateDisk};
use proptest::prelude::*;

fn node(role: &str, i: u8) -> Node {
    Node {
        name: format!("{role}{i}"),
        role: role.into(),
        macs: vec![mac(role, i)],
        uuid: None,
        address: address(role, i),
        external_mac: None,
        state: StateDisk::Disk(DiskMatch { serial: Some("S".into()), wwn: None, size: None }),
        cmdline: vec![],
    }
}

fn mac(role: &str, i: u8) -> Mac {
    Mac([2, 0, 0, 0, role.as_bytes()[0], i])
}

fn address(role: &str, i: u8) -> Ipv4Addr {
    [10, 0, role.as_bytes()[0], i].into()
}

fn image(clustered: bool) -> UsedImage {
    let formation = Some(Formation { kind: FormationKind::Static, dark: None });
    let (cluster_steps, peer_steps, removed_steps) = (BTreeMap::new(), vec![], vec![]);
    let vote = Clustered { name: "vote".into(), formation, cluster_steps, peer_steps, removed_steps, keeps: None };
    UsedImage {
        id: Digest([1; 32]),
        reference: "zed/infra:1".into(),
        kernel: Digest([2; 32]),
        initramfs: Digest([3; 32]),
        cmdline: vec![],
        architecture: "amd64".into(),
        controller: clustered,
        clustered: if clustered { vec![vote] } else { vec![] },
        secrets: vec![],
        certificates: vec![],
    }
}

/// Members of a system that counts votes, and computes.
struct World {
    state: State,
    live: Live,
    now: u64,
    boots: u32,
}

impl World {
    fn new(members: u8, computes: u8) -> World {
        let mut world = World { state: State::default(), live: Live::new(0), now: 1_000_000, boots: 0 };
        world.site(members, computes);
        for (role, clustered) in [("compute", false), ("infra", true)] {
            world.state.apply(&Event::ImageUsed { role: role.into(), image: image(clustered) });
        }
        world
    }

    fn site(&mut self, members: u8, computes: u8) {
        let nodes = (1..=computes).map(|i| node("compute", i)).chain((1..=members).map(|i| node("infra", i)));
        let management = Network {
            subnet: Some("10.0.0.0/16".parse().unwrap()),
            gateway: None,
            dns: vec![],
            ntp: vec![],
            mtu: None,
            pool: None,
            physical: None,
        };
        let site = Site {
            cluster: Cluster { name: "c".into(), release: "zed".into(), vip: None, unknown: None },
            ssh_keys: vec![],
            role_images: BTreeMap::new(),
            management,
            networks: BTreeMap::new(),
            nodes: nodes.collect(),
        };
        self.state.apply(&Event::SiteApplied { site: Box::new(site), site_id: "s".into() });
    }

    fn run(&mut self, command: Command) -> Result<Vec<Event>, Refusal> {
        let result = decide(&self.state, &self.live, &command, self.now);
        let caused = match &result {
            Ok(events) => events.clone(),
            Err(refusal) => refusal.events.clone(),
        };
        caused.iter().for_each(|e| self.state.apply(e));
        if result.is_ok() {
            self.live.note(&command, &self.state, self.now);
        }
        result
    }

    fn boot_as(&mut self, role: &str, i: u8, boot_id: &str) -> Result<Vec<Event>, String> {
        let request = BootRequest {
            mac: mac(role, i),
            uuid: None,
            boot_id: boot_id.into(),
            image: Digest([1; 32]),
            version: "1".into(),
            disks: vec![],
        };
        let boot = Boot {
            request,
            source: address(role, i),
            leased: None,
            authoritative: true,
            credential: format!("secret of {boot_id}"),
        };
        self.run(Command::Boot(Box::new(boot))).map_err(|refusal| refusal.reason)
    }

    /// A new boot gets to its initramfs; its id, or why it is held.
    fn boot(&mut self, role: &str, i: u8) -> Result<String, String> {
        self.boots += 1;
        let boot_id = format!("{:08x}-0000", self.boots);
        self.boot_as(role, i, &boot_id).map(|_| boot_id)
    }

    /// What `count` boots say before they end; the machine asks for its script after each.
    fn loops(&mut self, role: &str, i: u8, count: u32, says: &str) {
        for _ in 0..count {
            let boot_id = self.boot(role, i).unwrap();
            self.phase(role, i, &boot_id, Phase::Failed, says);
            self.now += 200_000;
        }
        self.script(role, i);
    }

    fn phase(&mut self, role: &str, i: u8, boot_id: &str, phase: Phase, detail: &str) {
        let (boot_id, image) = (boot_id.into(), Digest([1; 32]));
        let report = PhaseReport { mac: mac(role, i), uuid: None, boot_id, image, phase, detail: detail.into() };
        self.run(Command::Phase { report }).unwrap();
    }

    fn script(&mut self, role: &str, i: u8) {
        self.run(Command::BootOver { node: format!("{role}{i}") }).unwrap();
    }

    fn registers(&mut self, role: &str, i: u8) {
        let name = format!("{role}{i}");
        let generation = self.state.node(&name).generation + 1;
        self.state.apply(&Event::Registered {
            node: name.clone(),
            generation,
            boot_id: format!("{name}-{generation}"),
            mac: mac(role, i),
            address: address(role, i),
            key: "k".into(),
            fingerprint: Digest::of(format!("{name} {generation}").as_bytes()),
            image: Digest([1; 32]),
            version: "1".into(),
            by_credential: false,
        });
    }

    fn tick(&mut self, secs: u64) {
        self.run(Command::Tick { wall_ms: 0 }).unwrap();
        self.now += secs * 1000;
        self.run(Command::Tick { wall_ms: 0 }).unwrap();
    }

    fn held(&self, name: &str) -> String {
        crate::ledger::breaker::why_held(&self.state, name).unwrap_or_default()
    }
}

#[test]
fn three_boots_that_come_to_nothing_hold_a_node_with_growing_pauses() {
    let mut w = World::new(0, 2);
    w.loops("compute", 1, 2, "mount: no such disk");
    assert_eq!(w.held("compute1"), "");
    w.loops("compute", 1, 1, "mount: no such disk");
    let why = "node compute1 is held for 1 min: 3 boots in a row did not register; \
               the last 3 said: mount: no such disk; next: kiln node unhold compute1";
    assert_eq!(w.held("compute1"), why);
    assert_eq!(w.boot("compute", 1).unwrap_err(), why);
    // The one that is under way is not stopped: a server or a stranger may be wrong about its end.
    let last = w.state.node("compute1").attempts.boot_id.clone();
    assert!(w.boot_as("compute", 1, &last).is_ok());
    let mut pauses = vec![];
    for _ in 0..7 {
        let secs = held(&w.state, "compute1").unwrap().secs;
        pauses.push(secs / 60);
        w.tick(secs - 1);
        assert!(w.boot("compute", 1).is_err());
        w.tick(1);
        assert_eq!(w.held("compute1"), "");
        w.script("compute", 1);
        assert_eq!(w.held("compute1"), "", "one more may try, however often its firmware asks");
        w.loops("compute", 1, 1, "fetch: no route");
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert!(w.held("compute1").contains("10 boots in a row did not register; the last 7 said: fetch: no route"));
    assert!(words(&w.state, "compute1").unwrap().starts_with("held for 30 min: 10 boots"));
    w.registers("compute", 1);
    assert_eq!((w.held("compute1"), words(&w.state, "compute1"), w.state.paused.len()), (String::new(), None, 0));
    assert!(w.boot("compute", 2).is_ok(), "nobody else is touched");
}

#[test]
fn a_boot_that_no_script_came_before_is_held_as_well() {
    let mut w = World::new(0, 1);
    for _ in 0..3 {
        w.boot("compute", 1).unwrap();
        w.now += 200_000;
    }
    let events = w.state.rev;
    assert!(w.boot("compute", 1).unwrap_err().contains("the last one said nothing"));
    assert_eq!(w.state.rev, events + 2, "the pause and the answer");
    w.boot("compute", 1).unwrap_err();
    let last = w.state.node("compute1").attempts.boot_id.clone();
    w.phase("compute", 1, &last, Phase::Switch, "");
    assert!(held(&w.state, "compute1").is_some());
    // From elsewhere anyone can ask: it neither counts nor holds.
    let mut w = World::new(0, 2);
    for n in 0..9 {
        let request = BootRequest {
            mac: mac("compute", 1),
            uuid: None,
            boot_id: format!("{n:08x}-0001"),
            image: Digest([1; 32]),
            version: "1".into(),
            disks: vec![],
        };
        let (source, credential) = (address("compute", 2), "c".into());
        let _ = w.run(Command::Boot(Box::new(Boot { request, source, leased: None, authoritative: true, credential })));
        w.script("compute", 1);
    }
    assert_eq!(w.state.node("compute1").attempts.count, 0);
}

#[test]
fn the_operators_word_lets_a_node_boot_at_once() {
    let reimage = |w: &mut World| {
        let risk = Risk { giver: "ada".into(), ..Risk::default() };
        let (id, node, expires_ms) = ("0a1b2c3d".into(), "compute1".into(), 9);
        let asked = Reimage { id, node, image: None, disks: Disks::Keep, via: Via::Reboot, expires_ms, risk };
        w.run(Command::Reimage(Box::new(asked))).unwrap();
    };
    type Word = Box<dyn Fn(&mut World)>;
    let rows: [(&str, Word); 4] = [
        ("unhold", Box::new(|w| drop(w.run(Command::Unhold { node: "compute1".into() }).unwrap()))),
        ("an order", Box::new(reimage)),
        (
            "an approval",
            Box::new(|w| {
                let machine = MachineId::Mac(mac("compute", 1));
                w.run(Command::Approve { machine, node: "compute1".into() }).unwrap();
            }),
        ),
        (
            "another image",
            Box::new(|w| w.state.apply(&Event::ImageUsed { role: "compute".into(), image: image(false) })),
        ),
    ];
    for (name, word) in rows {
        let mut w = World::new(0, 1);
        w.loops("compute", 1, 3, "mount: x");
        assert!(held(&w.state, "compute1").is_some(), "{name}");
        word(&mut w);
        assert!(held(&w.state, "compute1").is_none() && w.state.paused.is_empty(), "{name}");
        w.loops("compute", 1, 2, "mount: x");
        assert!(held(&w.state, "compute1").is_none(), "{name}: counted anew");
        w.loops("compute", 1, 1, "mount: x");
        assert!(held(&w.state, "compute1").is_some(), "{name}: counted anew");
    }
}

#[test]
fn what_is_not_the_nodes_failure_does_not_count() {
    type End = fn(&mut World, &str);
    let rows: [(&str, End, bool); 5] = [
        ("it crashed", |_, _| (), true),
        ("it was held", |w, boot| w.phase("compute", 1, boot, Phase::Held, "disk vda is not blank"), false),
        (
            "a blob was not served",
            |w, _| drop(w.run(Command::Failed { source: address("compute", 1) }).unwrap()),
            false,
        ),
        ("another's was not", |w, _| drop(w.run(Command::Failed { source: address("compute", 2) }).unwrap()), true),
        ("the server was away", |w, _| w.live = Live::new(w.now), false),
    ];
    for (name, end, counts) in rows {
        let mut w = World::new(0, 4);
        (2..=4).for_each(|i| w.registers("compute", i));
        for _ in 0..4 {
            // Nothing holds a node that did not fail itself.
            let boot = w.boot("compute", 1);
            let Ok(boot) = boot else { break };
            end(&mut w, &boot);
            w.now += 10_000;
            w.script("compute", 1);
        }
        assert_eq!(held(&w.state, "compute1").is_some(), counts, "{name}: {:?}", w.state.node("compute1").attempts);
    }
}

#[test]
fn counts_outlive_the_server() {
    let mut w = World::new(0, 3);
    w.loops("compute", 1, 2, "mount: x");
    // The boot under way does not count; those before it do.
    w.live = Live::new(w.now);
    w.loops("compute", 1, 1, "mount: x");
    assert_eq!(w.state.node("compute1").attempts.count, 2);
    w.loops("compute", 1, 1, "mount: x");
    assert!(held(&w.state, "compute1").is_some());
    // The pause is counted anew from the server's start, and is as long as it was.
    w.tick(50);
    w.live = Live::new(w.now);
    w.tick(50);
    assert!(held(&w.state, "compute1").is_some());
    w.tick(10);
    assert!(held(&w.state, "compute1").is_none());
}

#[test]
fn a_power_cut_of_all_holds_nobody_for_long() {
    let mut w = World::new(0, 5);
    for flap in 1..9 {
        let mut waiting = vec![];
        for i in 1..=5 {
            w.script("compute", i);
            waiting.extend(w.boot("compute", i).is_err().then_some(i));
            w.tick(3);
        }
        w.tick(1);
        assert!(w.state.paused.is_empty(), "flap {flap}: {:?}", w.state.paused);
        waiting.into_iter().for_each(|i| drop(w.boot("compute", i).unwrap()));
        w.now += 40_000;
    }
    // One alone that goes on like that is held as ever.
    for _ in 0..3 {
        w.now += 200_000;
        w.script("compute", 1);
        let _ = w.boot("compute", 1);
    }
    assert!(held(&w.state, "compute1").is_some());
}

#[test]
fn a_quorum_keeps_its_majority() {
    let looping = |w: &mut World, i: u8| w.loops("infra", i, 3, "mount: x");
    for (members, most) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)] {
        let mut w = World::new(members, 0);
        (1..=members).for_each(|i| looping(&mut w, i));
        let count = (1..=members).filter(|i| held(&w.state, &format!("infra{i}")).is_some()).count();
        assert_eq!(count, most, "of {members}");
        if most < members as usize {
            let last = words(&w.state, &format!("infra{members}")).unwrap();
            assert_eq!(last, "3 in a row did not register yet; not held, vote needs it");
        }
    }
    // Who the operator holds is lost to it too.
    let mut w = World::new(3, 0);
    w.run(Command::Hold { node: "infra3".into(), reason: "swap".into() }).unwrap();
    looping(&mut w, 1);
    assert_eq!(w.held("infra1"), "");
    // The site shrinks around a node that is held: it is let go.
    let mut w = World::new(3, 0);
    looping(&mut w, 1);
    assert!(w.held("infra1").contains("held for 1 min"));
    w.site(2, 0);
    assert_eq!(w.held("infra1"), "");
    assert!(words(&w.state, "infra1").unwrap().starts_with("not held, vote needs it: 3 boots"));
    assert!(w.boot("infra", 1).is_ok());
}

#[derive(Clone, Debug)]
enum Happens {
    Boot(u8),
    Script(u8),
    Registers(u8),
    Holds(u8, bool),
    Time(u64),
    Restart,
    Site(u8),
    Joins(u8),
}

fn happens() -> impl Strategy<Value = Happens> {
    let infra = 1..=5u8;
    prop_oneof![
        8 => infra.clone().prop_map(Happens::Boot),
        8 => infra.clone().prop_map(Happens::Script),
        1 => infra.clone().prop_map(Happens::Registers),
        1 => (infra.clone(), any::<bool>()).prop_map(|(i, held)| Happens::Holds(i, held)),
        2 => (1..4000u64).prop_map(Happens::Time),
        1 => Just(Happens::Restart),
        1 => infra.clone().prop_map(Happens::Site),
        1 => infra.prop_map(Happens::Joins),
    ]
}

proptest! {
    #[test]
    fn never_more_than_a_minority_is_held_and_progress_always_clears(all in proptest::collection::vec(happens(), 1..120)) {
        let mut w = World::new(5, 0);
        let name = |i: u8| format!("infra{i}");
        for one in all {
            match one {
                Happens::Boot(i) => drop(w.boot("infra", i)),
                Happens::Script(i) => w.script("infra", i),
                Happens::Registers(i) => {
                    w.registers("infra", i);
                    prop_assert!(held(&w.state, &name(i)).is_none() && !w.state.paused.contains(&name(i)));
                    prop_assert_eq!(w.state.node(&name(i)).attempts.count, 0);
                }
                Happens::Holds(node, true) => drop(w.run(Command::Hold { node: name(node), reason: "x".into() })),
                Happens::Holds(node, false) => drop(w.run(Command::Unhold { node: name(node) })),
                Happens::Time(secs) => w.tick(secs),
                Happens::Restart => w.live = Live::new(w.now),
                Happens::Site(members) => w.site(members, 0),
                Happens::Joins(i) => w.state.apply(&Event::JoinGranted {
                    system: "vote".into(), node: name(i), generation: 1, seq: 1, set_aside: false,
                }),
            }
            let count = w.state.site.as_ref().unwrap().nodes.len();
            let pauses: Vec<u64> = (1..=5).filter_map(|i| held(&w.state, &name(i))).map(|p| p.secs).collect();
            prop_assert!(pauses.iter().all(|secs| (PAUSE_FIRST_SECS..=PAUSE_MAX_SECS).contains(secs)));
            prop_assert!(pauses.len() * 2 < count, "{} of {count}", pauses.len());
            let of_members = w.state.cluster.formation("vote").members.iter().filter(|m| held(&w.state, m).is_some()).count();
            let members = w.state.cluster.formation("vote").members.len();
            prop_assert!(of_members == 0 || of_members * 2 < members, "{of_members} of {members} members");
            // Whoever is held gets its turn.
            let mut later = World { state: w.state.clone(), live: w.live.clone(), now: w.now, boots: 0 };
            later.tick(PAUSE_MAX_SECS);
            prop_assert!(later.state.paused.is_empty());
        }
    }
}
