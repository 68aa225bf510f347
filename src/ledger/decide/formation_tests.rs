//! A row for each rule of forming, joining, the dark and a ledger that is not the newest.

use super::*;
use crate::ledger::message::{
    Ask, Data, PeerTask, Phase, REPORT_INTERVAL_SECS, RunningStep, SystemReport, SystemState, Verdict,
};
use crate::recipe::system::{Clustered, Dark, Formation, FormationKind};
use crate::site::{Cluster, Network, Node, StateDisk};

/// Three members of two seeded systems, in memory.
struct World {
    state: State,
    live: Live,
    now: u64,
    seq: u64,
}

fn clustered(name: &str, dark: Dark, steps: &[&str], peers: &[&str]) -> Clustered {
    Clustered {
        name: name.into(),
        formation: Some(Formation { kind: FormationKind::Seeded, dark: Some(dark) }),
        cluster_steps: steps.iter().map(|s| (s.to_string(), name.to_string())).collect(),
        peer_steps: peers.iter().map(|s| s.to_string()).collect(),
        removed_steps: vec![],
        keeps: None,
    }
}

fn holds(lineage: &str, rank: i64) -> Data {
    Data::Holds { lineage: lineage.into(), rank }
}

impl World {
    fn empty() -> World {
        let node = |i: u8| Node {
            name: format!("n{i}"),
            role: "infra".into(),
            macs: vec![Mac([2, 0, 0, 0, 0, i])],
            uuid: None,
            address: [10, 0, 0, i].into(),
            external_mac: None,
            state: StateDisk::Volatile,
            cmdline: vec![],
        };
        let management = Network {
            subnet: Some("10.0.0.0/24".parse().unwrap()),
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
            nodes: (1..=3).map(node).collect(),
        };
        let image = UsedImage {
            id: Digest([1; 32]),
            reference: "zed/infra".into(),
            kernel: Digest([2; 32]),
            initramfs: Digest([3; 32]),
            cmdline: vec![],
            architecture: "amd64".into(),
            controller: true,
            clustered: vec![
                clustered("db", Dark::Rank, &["accounts"], &[]),
                clustered("mq", Dark::Reset, &[], &["room"]),
            ],
            secrets: vec![],
            certificates: vec![],
        };
        let mut world = World { state: State::default(), live: Live::new(0), now: 1_000_000, seq: 0 };
        world.fold(Event::SiteApplied { site: Box::new(site), site_id: "s".into() });
        world.fold(Event::ImageUsed { role: "infra".into(), image });
        world
    }

    /// All three have registered, and the cluster may form.
    fn new() -> World {
        let mut world = World::empty();
        ["n1", "n2", "n3"].iter().for_each(|n| world.boot(n));
        world.run(Command::Form).unwrap();
        world
    }

    fn fold(&mut self, event: Event) {
        self.state.apply(&event);
    }

    fn fingerprint(&self, node: &str) -> Digest {
        Digest::of(format!("{node} {}", self.state.node(node).generation).as_bytes())
    }

    /// A register from a new boot, as `register::register` would let it in.
    fn boot(&mut self, node: &str) {
        self.register(node, self.state.node(node).generation + 1);
    }

    fn register(&mut self, node: &str, generation: u64) {
        self.fold(Event::Registered {
            node: node.into(),
            generation,
            boot_id: format!("{node}-{generation}"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address: [10, 0, 0, 1].into(),
            key: "k".into(),
            fingerprint: Digest::of(format!("{node} {generation}").as_bytes()),
            image: Digest([1; 32]),
            version: "1".into(),
            by_credential: false,
        });
    }

    /// All agents register again, in the same boot: what the old certificates said may be late.
    fn again(&mut self) {
        let before = self.fingerprint("n1");
        assert!(self.ask_as(before, "db", Ask::Start { data: Data::Blank }).is_err());
        for node in ["n1", "n2", "n3"] {
            let generation = self.state.node(node).generation;
            self.register(node, generation);
        }
    }

    fn run(&mut self, command: Command) -> Result<Vec<Event>, Refusal> {
        let events = decide(&self.state, &self.live, &command, self.now)?;
        events.iter().for_each(|e| self.state.apply(e));
        self.live.note(&command, &self.state, self.now);
        Ok(events)
    }

    fn ask_as(&mut self, fingerprint: Digest, system: &str, ask: Ask) -> Result<Verdict, Refusal> {
        self.seq += 1;
        let request = ClaimRequest { system: system.into(), seq: self.seq, ask };
        self.run(Command::Claim { fingerprint, request: request.clone() })?;
        let (again, verdict) = claim(&self.state, &self.live, &fingerprint, &request, self.now)?;
        assert!(again.is_empty(), "the same question again causes {again:?}");
        Ok(verdict)
    }

    fn start(&mut self, node: &str, system: &str, data: Data) -> Verdict {
        self.ask_as(self.fingerprint(node), system, Ask::Start { data }).unwrap()
    }

    /// The same as one word, with the reason of a wait.
    fn word(&mut self, node: &str, system: &str, data: Data) -> String {
        match self.start(node, system, data) {
            Verdict::Seed => "seed".into(),
            Verdict::Join { members, set_aside, .. } => {
                format!("join {}{}", members.join(" "), if set_aside { ", aside" } else { "" })
            }
            Verdict::Wait { reason } => format!("wait: {reason}"),
            Verdict::Quarantined { reason } => format!("quarantined: {reason}"),
            other => format!("{other:?}"),
        }
    }

    fn report(&mut self, node: &str, serves: &[(&str, &str)], running: &[&str]) -> Vec<Event> {
        self.seq += 1;
        let report = Report {
            phase: Phase::Join,
            detail: String::new(),
            systems: serves
                .iter()
                .map(|(name, lineage)| SystemReport {
                    name: name.to_string(),
                    state: SystemState::Healthy,
                    reason: String::new(),
                    lineage: Some(lineage.to_string()),
                    stranded: false,
                    guests: vec![],
                    stopped: vec![],
                })
                .collect(),
            leaving: false,
            seq: self.seq,
            running: running.iter().map(|s| RunningStep { system: "db".into(), step: s.to_string() }).collect(),
            order: None,
            drain: None,
            moves: false,
        };
        self.run(Command::Report { fingerprint: self.fingerprint(node), report }).unwrap()
    }

    fn step(&mut self, node: &str) -> Verdict {
        self.ask_as(self.fingerprint(node), "db", Ask::Step { step: "accounts".into() }).unwrap()
    }

    fn step_done(&mut self, node: &str, seq: u64, ok: bool) {
        let request =
            DoneRequest { system: "db".into(), step: "accounts".into(), seq, peer: None, ok, detail: String::new() };
        self.run(Command::Done { fingerprint: self.fingerprint(node), request }).unwrap();
    }

    /// All three serve `L`.
    fn formed() -> World {
        let mut world = World::new();
        assert_eq!(world.word("n1", "db", Data::Blank), "seed");
        world.report("n1", &[("db", "L")], &[]);
        for node in ["n2", "n3"] {
            assert!(world.word(node, "db", Data::Blank).starts_with("join n1"));
            world.report(node, &[("db", "L")], &[]);
        }
        world
    }

    fn refused(&mut self, command: Command) -> String {
        self.run(command).expect_err("this must be refused").reason
    }

    fn pass(&mut self, secs: u64) {
        self.now += secs * 1000;
    }
}

fn recover(system: &str, from: &str, accept_loss: bool) -> Command {
    Command::Recover { system: system.into(), from: from.into(), accept_loss }
}

fn fence(node: &str) -> Command {
    Command::Fence { node: node.into() }
}

#[test]
fn nothing_forms_before_the_operator_says_so_and_then_only_once() {
    let mut w = World::empty();
    w.boot("n1");
    w.boot("n2");
    assert!(w.word("n1", "db", Data::Blank).contains("kiln cluster form"));
    assert_eq!(w.run(Command::Form).unwrap().len(), 1);
    assert_eq!(w.run(Command::Form).unwrap(), []);
    assert_eq!(w.word("n2", "db", Data::Blank), "seed");
    assert!(w.word("n1", "db", Data::Blank).starts_with("wait: n2 seeds it"));
    // The holder's next generation is granted again; nobody else, however long it is silent.
    w.pass(3600);
    assert!(w.word("n1", "db", Data::Blank).starts_with("wait: n2 seeds it"));
    w.boot("n2");
    assert_eq!(w.word("n2", "db", holds("L", 3)), "seed");
    w.report("n2", &[("db", "L")], &[]);
    assert_eq!(w.word("n1", "db", Data::Blank), "join n2");
}

#[test]
fn a_holder_that_is_fenced_frees_the_seed_and_is_heard_no_more() {
    let mut w = World::new();
    assert_eq!(w.word("n1", "db", Data::Blank), "seed");
    assert!(w.refused(fence("n1")).contains("lives or may live"));
    w.pass(31);
    assert_eq!(w.run(fence("n1")).unwrap().len(), 1);
    let fingerprint = w.fingerprint("n1");
    assert_eq!(w.word("n2", "db", Data::Blank), "seed");
    let late = w.ask_as(fingerprint, "db", Ask::Start { data: Data::Blank });
    assert!(late.unwrap_err().reason.contains("fenced"));
    // Its next boot is another generation, but what it seeded is another cluster's.
    w.report("n2", &[("db", "M")], &[]);
    w.boot("n1");
    assert!(w.word("n1", "db", holds("L", 9)).starts_with("quarantined"));
}

#[test]
fn an_old_generation_changes_nothing() {
    let mut w = World::new();
    let old = w.fingerprint("n1");
    w.boot("n1");
    assert!(w.ask_as(old, "db", Ask::Start { data: Data::Blank }).is_err());
    assert_eq!(w.word("n2", "db", Data::Blank), "seed");
}

#[test]
fn data_where_there_should_be_none_stops_everything_until_adopted() {
    let mut w = World::new();
    assert!(w.word("n2", "db", holds("L", 7)).contains("kiln cluster adopt"));
    assert!(w.word("n1", "db", Data::Blank).contains("kiln cluster adopt"));
    assert!(w.refused(Command::Form).contains("behind"));
    assert!(w.refused(Command::Adopt).contains("n3 has not said"));
    // n3 is off for good; the broker was never asked for.
    for node in ["n1", "n2"] {
        w.start(node, "mq", Data::Blank);
    }
    w.pass(31);
    w.run(fence("n3")).unwrap();
    w.run(Command::Adopt).unwrap();
    assert!(w.word("n1", "db", Data::Blank).starts_with("wait: n2 brings it back"));
    assert_eq!(w.word("n2", "db", holds("L", 7)), "seed");
}

#[test]
fn the_most_advanced_comes_back_from_the_dark_and_only_when_all_are_known() {
    let mut w = World::formed();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    assert!(w.word("n1", "db", holds("L", 5)).contains("waits for n2"));
    assert!(w.word("n2", "db", holds("L", 9)).contains("waits for n3"));
    w.pass(3600);
    assert!(w.word("n2", "db", holds("L", 9)).contains("waits for n3"), "silence is no evidence");
    assert_eq!(w.word("n3", "db", holds("L", 9)), "wait: n2 brings it back (rank 9)");
    assert_eq!(w.word("n2", "db", holds("L", 9)), "seed");
    assert!(w.word("n3", "db", holds("L", 9)).contains("n2 brings it back"));
    w.report("n2", &[("db", "L")], &[]);
    assert_eq!(w.word("n1", "db", holds("L", 5)), "join n2");
}

#[test]
fn a_node_that_was_let_in_no_longer_counts_as_stopped() {
    let mut w = World::formed();
    w.boot("n3");
    assert_eq!(w.word("n3", "db", holds("L", 5)), "join n1 n2");
    w.boot("n1");
    w.boot("n2");
    assert!(w.word("n1", "db", holds("L", 5)).contains("waits for n2"));
    assert!(w.word("n2", "db", holds("L", 5)).contains("waits for n3"), "n3 may run");
}

#[test]
fn a_late_message_from_before_it_was_let_in_does_not_make_it_stopped() {
    let mut w = World::formed();
    w.boot("n3");
    let late = ClaimRequest { system: "db".into(), seq: w.seq, ask: Ask::Start { data: holds("L", 5) } };
    w.seq += 10;
    assert_eq!(w.word("n3", "db", holds("L", 5)), "join n1 n2");
    let fingerprint = w.fingerprint("n3");
    assert_eq!(w.run(Command::Claim { fingerprint, request: late }).unwrap(), []);
    assert!(!w.state.cluster.formation("db").stopped.contains_key("n3"));
}

#[test]
fn a_member_that_serves_without_having_been_let_in_is_known_to_run() {
    let mut w = World::formed();
    w.boot("n3");
    w.pass(60); // nobody is heard: n3 is told to wait
    assert!(w.word("n3", "db", holds("L", 5)).contains("waits for n1"));
    w.report("n3", &[("db", "L")], &[]);
    assert!(!w.state.cluster.formation("db").stopped.contains_key("n3"));
}

#[test]
fn blank_disks_never_seed_a_formed_cluster() {
    let mut w = World::formed();
    for node in ["n1", "n2", "n3"] {
        w.boot(node);
    }
    for node in ["n1", "n2", "n3", "n1"] {
        assert!(w.word(node, "db", Data::Blank).starts_with("wait"), "{node}");
    }
    assert!(w.word("n1", "db", Data::Blank).contains("--accept-loss"));
    assert!(w.refused(recover("db", "n1", false)).contains("begin anew"));
    w.run(recover("db", "n1", true)).unwrap();
    assert!(w.word("n2", "db", Data::Blank).contains("operator's word"));
    assert_eq!(w.word("n1", "db", Data::Blank), "seed");
    w.report("n1", &[("db", "M")], &[]);
    assert_eq!(w.word("n2", "db", Data::Blank), "join n1");
}

#[test]
fn a_fenced_member_may_hold_more_and_its_data_are_moved_aside() {
    let mut w = World::formed();
    w.boot("n1");
    w.boot("n2");
    w.pass(60);
    w.word("n1", "db", holds("L", 5));
    assert!(w.word("n2", "db", holds("L", 6)).contains("waits for n3"));
    w.run(fence("n3")).unwrap();
    assert_eq!(w.word("n2", "db", holds("L", 6)), "seed");
    w.report("n2", &[("db", "L")], &[]);
    w.boot("n3");
    assert_eq!(w.word("n3", "db", holds("L", 8)), "join n2, aside");
    // It was killed before it moved them: the same data are still to be moved, others are not.
    w.boot("n3");
    assert_eq!(w.word("n3", "db", holds("L", 8)), "join n2, aside");
    w.boot("n3");
    assert_eq!(w.word("n3", "db", holds("L", 11)), "join n2");
}

#[test]
fn a_foreign_disk_is_left_alone_until_the_operator_decides() {
    let mut w = World::formed();
    w.boot("n3");
    assert!(w.word("n3", "db", holds("X", 99)).contains("kiln cluster recover db"));
    assert!(w.refused(recover("db", "n3", false)).contains("served by n1"));
    w.run(recover("db", "n1", false)).unwrap();
    assert_eq!(w.word("n3", "db", holds("X", 99)), "join n1 n2, aside");
}

#[test]
fn a_recovery_that_loses_something_says_what() {
    let mut w = World::formed();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    for (node, rank) in [("n1", 5), ("n2", 9), ("n3", 7)] {
        w.word(node, "db", holds("L", rank));
    }
    let reason = w.refused(recover("db", "n3", false));
    assert!(reason.contains("what n2 holds") && reason.contains("n1: stopped, L rank 5"), "{reason}");
    w.run(recover("db", "n3", true)).unwrap();
    assert_eq!(w.word("n3", "db", holds("L", 7)), "seed");
    w.report("n3", &[("db", "L")], &[]);
    assert_eq!(w.word("n2", "db", holds("L", 9)), "join n3, aside");
    assert_eq!(w.word("n1", "db", holds("L", 5)), "join n3");
}

#[test]
fn disposable_data_begin_anew_with_the_first_by_name_and_members_make_room() {
    let mut w = World::new();
    assert_eq!(w.word("n2", "mq", Data::Blank), "seed");
    w.report("n2", &[("mq", "A")], &[]);
    assert!(w.word("n3", "mq", Data::Blank).contains("n2 makes room"));
    let task = PeerTask { system: "mq".into(), step: "room".into(), node: "n3".into(), generation: 1 };
    assert_eq!(peers(&w.state, &w.live, "n2", w.now), std::slice::from_ref(&task));
    assert_eq!(peers(&w.state, &w.live, "n1", w.now), []);
    let request = DoneRequest {
        system: "mq".into(),
        step: "room".into(),
        seq: 0,
        peer: Some(task),
        ok: true,
        detail: String::new(),
    };
    w.run(Command::Done { fingerprint: w.fingerprint("n2"), request }).unwrap();
    assert_eq!(w.word("n3", "mq", Data::Blank), "join n2");
    w.report("n3", &[("mq", "A")], &[]);
    // The dark: all members stopped.
    w.boot("n2");
    assert!(w.word("n2", "mq", holds("A", 0)).starts_with("join n3"));
    w.boot("n2");
    w.boot("n3");
    assert!(w.word("n3", "mq", holds("A", 0)).contains("waits for n2"));
    assert_eq!(w.word("n2", "mq", holds("A", 0)), "seed");
    w.report("n2", &[("mq", "B")], &[]);
    assert_eq!(w.state.cluster.formation("mq").lineage.as_deref(), Some("B"));
    assert!(w.word("n3", "mq", holds("A", 0)).contains("makes room"), "old data join as if blank");
}

#[test]
fn a_cluster_step_runs_on_one_node_and_never_again() {
    let mut w = World::new();
    assert!(matches!(w.step("n1"), Verdict::Wait { .. }), "not formed yet");
    let mut w = World::formed();
    assert_eq!(w.step("n1"), Verdict::Run);
    let seq = w.seq;
    assert!(matches!(w.step("n2"), Verdict::Wait { .. }));
    w.pass(3600);
    assert!(matches!(w.step("n2"), Verdict::Wait { .. }), "no time-out moves a claim");
    w.step_done("n1", seq, false);
    assert_eq!(w.step("n2"), Verdict::Run);
    w.step_done("n1", seq, true); // late: no longer its own
    assert!(matches!(w.step("n3"), Verdict::Wait { .. }));
    let seq = w.seq - 1;
    w.step_done("n2", seq, true);
    assert_eq!(w.step("n3"), Verdict::Done);
    assert_eq!(w.step("n1"), Verdict::Done);
}

#[test]
fn a_step_is_free_when_its_holder_rebooted_was_fenced_or_no_longer_runs_it() {
    let mut w = World::formed();
    assert_eq!(w.step("n1"), Verdict::Run);
    w.boot("n1");
    assert_eq!(w.step("n2"), Verdict::Run);
    w.report("n2", &[("db", "L")], &["accounts"]);
    assert!(matches!(w.step("n3"), Verdict::Wait { .. }));
    w.report("n2", &[("db", "L")], &[]); // its agent was restarted
    assert_eq!(w.step("n3"), Verdict::Run);
    w.pass(31);
    w.run(fence("n3")).unwrap();
    assert_eq!(w.step("n2"), Verdict::Run);
}

#[test]
fn a_ledger_that_cannot_be_vouched_for_waits_for_every_node() {
    let doubt = || Command::Start { doubt: Some("put back".into()) };
    // Before the formation: one blank node is not enough, all three are.
    let mut w = World::new();
    w.run(doubt()).unwrap();
    w.again();
    assert!(w.word("n1", "db", Data::Blank).contains("waits for a word of n2"));
    assert!(w.word("n2", "db", Data::Blank).contains("n3"));
    assert_eq!(w.word("n3", "db", Data::Blank), "seed");
    // One that holds data says more than the ledger knows.
    let mut w = World::new();
    w.run(doubt()).unwrap();
    w.again();
    w.start("n1", "db", Data::Blank);
    w.start("n2", "db", holds("L", 3));
    assert!(w.word("n3", "db", Data::Blank).contains("behind"));
    // What was stopped before the doubt may run now.
    let mut w = World::formed();
    for node in ["n1", "n2", "n3"] {
        w.boot(node);
        w.word(node, "db", holds("L", 5));
    }
    w.run(doubt()).unwrap();
    w.again();
    assert!(w.word("n1", "db", holds("L", 5)).contains("waits for a word of n2"));
    // Steps wait too, until every node has reported and nothing contradicts.
    let mut w = World::formed();
    for node in ["n1", "n2", "n3"] {
        w.start(node, "mq", Data::Blank);
    }
    w.run(doubt()).unwrap();
    w.again();
    w.live = Live::new(w.now);
    assert!(matches!(w.step("n1"), Verdict::Wait { .. }));
    for node in ["n1", "n2", "n3"] {
        w.start(node, "mq", Data::Blank);
    }
    w.report("n1", &[("db", "L")], &["accounts"]);
    w.report("n2", &[("db", "L")], &[]);
    assert!(matches!(w.step("n2"), Verdict::Wait { .. }));
    assert!(w.report("n3", &[("db", "L")], &[]).contains(&Event::Vouched {}));
    assert!(matches!(w.step("n2"), Verdict::Wait { .. }), "n1 said that it runs it");
}

#[test]
fn a_lost_ledger_is_adopted_from_what_the_living_show() {
    let mut w = World::empty();
    w.run(Command::Start { doubt: Some("lost".into()) }).unwrap();
    for node in ["n1", "n2"] {
        w.boot(node);
        w.report(node, &[("db", "L"), ("mq", "A")], &[]);
    }
    w.boot("n3");
    assert!(w.word("n3", "db", Data::Blank).contains("adopt"));
    assert!(w.refused(Command::Form).contains("adopt"));
    w.start("n3", "mq", Data::Blank);
    w.run(Command::Adopt).unwrap();
    assert_eq!(w.word("n3", "db", Data::Blank), "join n1 n2");
    assert_eq!(w.state.cluster.formation("db").lineage.as_deref(), Some("L"));
    // Two clusters of the same system are not adopted.
    let mut w = World::empty();
    for (node, lineage) in [("n1", "L"), ("n2", "M"), ("n3", "L")] {
        w.boot(node);
        w.start(node, "db", holds(lineage, 1));
        w.start(node, "mq", Data::Blank);
    }
    assert!(w.refused(Command::Adopt).contains("several clusters"));
}

#[test]
fn a_silent_member_serves_nobody() {
    let mut w = World::formed();
    w.pass(REPORT_INTERVAL_SECS * 4);
    w.boot("n3");
    assert!(w.word("n3", "db", Data::Blank).contains("waits for n1"));
    w.report("n1", &[("db", "L")], &[]);
    assert_eq!(w.word("n3", "db", Data::Blank), "join n1");
}

#[test]
fn a_report_of_who_serves_counts_as_often_as_it_comes() {
    // Let in by what the ledger no longer knows, or started without the server.
    let mut w = World::new();
    assert_eq!(w.word("n1", "db", Data::Blank), "seed");
    w.report("n1", &[("db", "L")], &[]);
    assert!(matches!(w.report("n3", &[("db", "L")], &[])[0], Event::Serves { .. }));
    assert_eq!(w.live.serves(&w.state, "n3", "db", w.now).as_deref(), Some("L"));
}

#[test]
fn a_holder_that_stopped_again_does_not_keep_a_better_one_waiting() {
    let mut w = World::formed();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    w.word("n2", "db", holds("L", 4));
    w.word("n3", "db", holds("L", 4));
    assert_eq!(w.word("n1", "db", holds("L", 5)), "seed");
    // Its disk is lost before it seeds.
    w.boot("n1");
    assert!(w.word("n3", "db", holds("L", 4)).starts_with("wait: n1 brings it back"), "it may be at it");
    assert!(w.word("n1", "db", Data::Blank).starts_with("wait: n2 brings it back"));
    assert!(w.word("n3", "db", holds("L", 4)).starts_with("wait: n2 brings it back"));
    assert_eq!(w.word("n2", "db", holds("L", 4)), "seed");
}

#[test]
fn a_seed_that_came_back_without_the_server_has_formed_all_the_same() {
    let mut w = World::new();
    assert_eq!(w.word("n1", "db", Data::Blank), "seed");
    w.boot("n1");
    w.report("n1", &[("db", "L")], &[]);
    assert_eq!(w.word("n2", "db", Data::Blank), "join n1");
    // The same after the dark.
    ["n1", "n2"].iter().for_each(|n| w.boot(n));
    w.word("n2", "db", holds("L", 4));
    assert_eq!(w.word("n1", "db", holds("L", 5)), "seed");
    w.boot("n1");
    w.report("n1", &[("db", "L")], &[]);
    assert_eq!(w.word("n2", "db", holds("L", 4)), "join n1");
}

#[test]
fn a_holder_that_the_ledger_forgot_the_seed_of_does_not_seed_over_newer_data() {
    // Put back to when n1 was let seed: since then n2 and n3 have joined and gone further.
    let mut w = World::new();
    assert_eq!(w.word("n1", "db", Data::Blank), "seed");
    w.run(Command::Start { doubt: Some("put back".into()) }).unwrap();
    w.again();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    w.word("n1", "db", holds("L", 4));
    assert!(w.word("n2", "db", holds("L", 5)).contains("behind"));
    assert!(w.word("n1", "db", holds("L", 4)).contains("behind"));
}

#[test]
fn a_step_whose_lineage_was_not_known_runs_on_one_node_all_the_same() {
    let mut w = World::empty();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    w.run(Command::Start { doubt: Some("put back".into()) }).unwrap();
    w.again();
    w.report("n1", &[("db", "L")], &["accounts"]);
    w.report("n2", &[("db", "L")], &[]);
    w.start("n3", "db", Data::Blank);
    ["n1", "n2", "n3"].iter().for_each(|n| assert!(w.word(n, "mq", Data::Blank).contains("adopt")));
    w.report("n1", &[("db", "L")], &["accounts"]);
    w.run(Command::Adopt).unwrap();
    assert!(matches!(w.step("n2"), Verdict::Wait { .. }), "n1 runs it");
    w.report("n1", &[("db", "L")], &[]);
    assert_eq!(w.step("n2"), Verdict::Run);
}

#[test]
fn what_others_said_meanwhile_grants_nothing_that_is_not_in_the_ledger() {
    let mut w = World::formed();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    w.word("n3", "db", holds("L", 4));
    // n1 is the best, but n2 had not spoken when its question was decided.
    let fingerprint = w.fingerprint("n1");
    let request = ClaimRequest { system: "db".into(), seq: w.seq + 1, ask: Ask::Start { data: holds("L", 5) } };
    w.run(Command::Claim { fingerprint, request: request.clone() }).unwrap();
    w.seq += 1;
    w.word("n2", "db", holds("L", 4));
    let answer = verdict(&w.state, &w.live, &fingerprint, &request, w.now).unwrap();
    assert!(matches!(answer, Verdict::Wait { .. }), "{answer:?}");
    assert_eq!(w.word("n1", "db", holds("L", 5)), "seed");
}

#[test]
fn who_is_cut_off_stands_down_so_that_the_dark_can_end() {
    let mut w = World::formed();
    w.boot("n1");
    w.boot("n2");
    assert!(w.word("n1", "db", holds("L", 5)).starts_with("join n3"), "it was heard a moment ago");
    let stranded = |w: &mut World, node: &str| {
        w.seq += 1;
        let system = SystemReport {
            name: "db".into(),
            state: SystemState::Unhealthy,
            reason: "the others are missing".into(),
            lineage: None,
            stranded: true,
            guests: vec![],
            stopped: vec![],
        };
        let report = Report {
            phase: Phase::Join,
            detail: String::new(),
            systems: vec![system],
            leaving: false,
            seq: w.seq,
            running: vec![],
            drain: None,
            moves: false,
            order: None,
        };
        w.run(Command::Report { fingerprint: w.fingerprint(node), report }).unwrap();
        stand_down(&w.state, &w.live, node, w.now)
    };
    assert!(stranded(&mut w, "n3").is_empty(), "n1 was let in and may run, n2 was not heard");
    assert!(w.word("n1", "db", holds("L", 5)).contains("waits for n2"));
    assert!(w.word("n2", "db", holds("L", 5)).contains("waits for n3"));
    assert_eq!(stranded(&mut w, "n3"), ["db"]);
    assert_eq!(w.word("n3", "db", holds("L", 6)), "seed");
    assert!(stand_down(&w.state, &w.live, "n3", w.now).is_empty());
    // Where somebody serves it is to join that.
    w.report("n3", &[("db", "L")], &[]);
    assert!(w.word("n2", "db", holds("L", 5)).starts_with("join n3"));
    assert_eq!(stranded(&mut w, "n2"), ["db"]);
}

#[test]
fn the_operators_choice_does_not_outlive_a_doubt_nor_other_data() {
    let dark = || {
        let mut w = World::formed();
        ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
        w.word("n1", "db", holds("L", 4));
        w.word("n2", "db", holds("L", 5));
        w.word("n3", "db", holds("L", 5));
        w.run(recover("db", "n1", true)).unwrap();
        w
    };
    // Put back to this moment: meanwhile the others have formed and run.
    let mut w = dark();
    w.run(Command::Start { doubt: Some("put back".into()) }).unwrap();
    w.again();
    w.report("n2", &[("db", "L")], &[]);
    assert!(w.word("n1", "db", holds("L", 4)).starts_with("join n2"));
    // While somebody serves nothing is seeded beside it, whatever was chosen.
    let mut w = dark();
    w.report("n2", &[("db", "L")], &[]);
    assert!(w.word("n1", "db", holds("L", 4)).contains("n2 serves it"));
    // Chosen was what it held.
    let mut w = dark();
    w.boot("n1");
    assert!(!w.word("n1", "db", Data::Blank).starts_with("seed"));
    assert_eq!(w.word("n2", "db", holds("L", 5)), "seed");
    let mut w = dark();
    w.boot("n1");
    assert_eq!(w.word("n1", "db", holds("L", 4)), "seed");
}

#[test]
fn who_was_fenced_before_a_doubt_is_waited_for() {
    let mut w = World::formed();
    w.now += 31_000;
    ["n1", "n2"].iter().for_each(|n| w.boot(n));
    w.run(fence("n3")).unwrap();
    // Put back to this moment: n3 was repaired meanwhile, and wrote last.
    w.run(Command::Start { doubt: Some("put back".into()) }).unwrap();
    ["n1", "n2"].iter().for_each(|n| w.boot(n));
    w.word("n1", "db", holds("L", 4));
    assert!(w.word("n2", "db", holds("L", 4)).contains("waits for a word of n3"));
    w.run(fence("n3")).unwrap();
    assert_eq!(w.word("n1", "db", holds("L", 4)), "seed");
}

#[test]
fn a_ledger_that_was_behind_and_is_put_back_forgets_what_was_stopped() {
    let mut w = World::formed();
    ["n1", "n2", "n3"].iter().for_each(|n| w.boot(n));
    w.word("n1", "db", holds("L", 4));
    w.fold(Event::Behind { node: "n2".into(), reason: "more".into() });
    w.run(Command::Start { doubt: Some("put back".into()) }).unwrap();
    ["n2", "n3"].iter().for_each(|n| w.boot(n));
    w.word("n2", "db", holds("L", 5));
    w.word("n3", "db", holds("L", 5));
    assert!(w.refused(Command::Adopt).contains("n1 has not said"));
}

#[test]
fn without_an_image_nobody_vouches() {
    let mut w = World::new();
    w.run(Command::Start { doubt: Some("lost".into()) }).unwrap();
    w.state.images.clear();
    w.register("n1", 1);
    w.report("n1", &[], &[]);
    assert!(w.state.cluster.unvouched.is_some());
}

#[test]
fn a_join_that_failed_half_way_gets_room_again() {
    let mut w = World::new();
    assert_eq!(w.word("n1", "mq", Data::Blank), "seed");
    w.report("n1", &[("mq", "M")], &[]);
    for _ in 0..2 {
        assert!(w.word("n2", "mq", Data::Blank).contains("makes room"));
        let room = Event::RoomMade {
            system: "mq".into(),
            step: "room".into(),
            node: "n2".into(),
            generation: 1,
            by: "n1".into(),
        };
        w.fold(room);
        assert!(w.word("n2", "mq", Data::Blank).starts_with("join n1"));
    }
}

#[test]
fn what_was_to_be_set_aside_and_is_gone_needs_no_setting_aside() {
    let mut w = World::formed();
    w.fold(Event::SetAside { system: "db".into(), nodes: vec!["n3".into()] });
    w.boot("n3");
    assert_eq!(w.word("n3", "db", Data::Blank), "join n1 n2");
    w.report("n3", &[("db", "L")], &[]);
    w.boot("n3");
    assert_eq!(w.word("n3", "db", holds("L", 9)), "join n1 n2");
}

#[test]
fn a_report_that_was_overtaken_says_nothing_new() {
    let mut w = World::formed();
    w.report("n1", &[("db", "L")], &[]);
    let left = |seq, leaving| Report {
        phase: Phase::Join,
        detail: String::new(),
        systems: vec![],
        leaving,
        seq,
        running: vec![],
        drain: None,
        moves: false,
        order: None,
    };
    let fingerprint = w.fingerprint("n1");
    let of = |report| Command::Report { fingerprint, report };
    w.run(of(left(w.seq + 2, true))).unwrap();
    assert!(w.run(of(left(w.seq + 1, false))).unwrap().is_empty());
    assert!(w.state.node("n1").session.as_ref().unwrap().left);
}
