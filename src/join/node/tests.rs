//! The systems of one node, driven by hand and at random.

use super::*;
use crate::recipe::system::Health;
use proptest::prelude::*;

fn step(name: &str, needs: &[&str]) -> Step {
    Step {
        name: name.into(),
        scope: Scope::Node,
        writes: None,
        needs: needs.iter().map(|n| n.to_string()).collect(),
        timeout: Some("7s".into()),
    }
}

fn system(name: &str, after: &[&str], steps: Vec<Step>) -> System {
    System {
        name: name.into(),
        after: after.iter().map(|n| n.to_string()).collect(),
        packages: vec![],
        units: vec![format!("{name}.service")],
        ports: vec![],
        secrets: vec![],
        certificates: vec![],
        state: vec![],
        keeps: None,
        formation: None,
        steps,
        health: Health { interval: "10s".into() },
    }
}

fn ok() -> Outcome {
    Outcome::Done("fine".into())
}

fn failed() -> Outcome {
    Outcome::Failed("no luck".into())
}

/// What is due, as short text.
fn due(node: &mut Node, now: u64) -> Vec<String> {
    let show = |a: Action| match a.job {
        Job::Step { step, timeout_secs } => format!("{}/{step} {timeout_secs}", a.system),
        Job::Check { step, .. } => format!("{}/{step} check", a.system),
        Job::Look { unit } => format!("{} look {unit}", a.system),
        Job::Rank { .. } => format!("{} rank", a.system),
        Job::AskStart { data, .. } => format!("{} ask {data:?}", a.system),
        Job::AskStep { step, .. } => format!("{}/{step} ask", a.system),
        Job::Tell { step, ok, .. } => format!("{}/{step} tell {ok}", a.system),
        Job::Seed { .. } => format!("{} seed", a.system),
        Job::Join { members, .. } => format!("{} join {}", a.system, members.join(" ")),
        Job::Start { units } => format!("{} start {}", a.system, units.join(" ")),
        Job::Health { .. } => format!("{} health", a.system),
        Job::Lineage { .. } => format!("{} lineage", a.system),
        Job::Peer { task, .. } => format!("{}/{} for {}", a.system, task.step, task.node),
    };
    node.due(now).into_iter().map(show).collect()
}

/// The running job of `system` ended.
fn end(node: &mut Node, system: &str, outcome: Outcome, now: u64) {
    let job = node.systems.iter().find(|t| t.system.name == system).and_then(|t| t.running.clone());
    node.done(system, &job.expect("a job runs"), outcome, now);
}

fn state(node: &Node, name: &str) -> SystemState {
    node.report().2.into_iter().find(|s| s.name == name).unwrap().state
}

#[test]
fn a_role_without_systems_is_ready() {
    assert_eq!(Node::new(&[], &BTreeSet::new(), 0).report().0, Phase::Ready);
}

#[test]
fn steps_then_units_then_health_then_late_steps_then_the_next_system() {
    let systems = [
        system("a", &[], vec![step("prepare", &[]), step("accounts", &["a", "a/prepare"])]),
        system("b", &["a"], vec![]),
    ];
    let mut node = Node::new(&systems, &BTreeSet::new(), 0);
    let mut order = Vec::new();
    while node.report().0 != Phase::Ready {
        let now = order.len() as u64;
        let actions = due(&mut node, now);
        assert_eq!(actions.len(), 1, "{order:?} {actions:?}");
        assert!(due(&mut node, now).is_empty(), "one job at a time");
        order.push(actions[0].clone());
        end(&mut node, actions[0].split([' ', '/']).next().unwrap(), ok(), now);
    }
    assert_eq!(
        order,
        ["a/prepare 7", "a start a.service", "a health", "a/accounts 7", "b start b.service", "b health"]
    );
}

#[test]
fn failures_pause_ever_longer_and_one_success_forgets_them() {
    let mut node = Node::new(&[system("a", &[], vec![])], &BTreeSet::new(), 0);
    let mut now = 0;
    for pause in [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        assert_eq!(due(&mut node, now), ["a start a.service"]);
        end(&mut node, "a", failed(), now);
        assert_eq!(state(&node, "a"), SystemState::Failed);
        assert!(due(&mut node, now + pause - 1).is_empty());
        assert_eq!(node.next_ms(now), Some(now + pause));
        now += pause;
    }
    due(&mut node, now);
    end(&mut node, "a", ok(), now);
    assert_eq!(due(&mut node, now), ["a health"]);
    end(&mut node, "a", ok(), now);
    assert_eq!(node.report().0, Phase::Ready);
    assert_eq!(node.next_ms(now), Some(now + 10_000));
}

#[test]
fn a_missing_health_script_is_never_healthy() {
    let mut node = Node::new(&[system("a", &[], vec![])], &BTreeSet::new(), 0);
    due(&mut node, 0);
    end(&mut node, "a", ok(), 0);
    for round in 0..5 {
        assert_eq!(due(&mut node, round * 10_000), ["a health"]);
        end(&mut node, "a", Outcome::Missing("no script health".into()), round * 10_000);
        assert_eq!((node.report().0, state(&node, "a")), (Phase::Join, SystemState::Failed));
    }
}

#[test]
fn a_system_that_was_healthy_is_watched_and_started_again_when_its_unit_is_gone() {
    let mut node = Node::new(&[system("a", &[], vec![]), system("b", &["a"], vec![])], &BTreeSet::new(), 0);
    for _ in 0..4 {
        for action in node.due(0) {
            node.done(&action.system, &action.job, ok(), 0);
        }
    }
    assert_eq!(node.report().0, Phase::Ready);
    assert_eq!(due(&mut node, 10_000), ["a health", "b health"]);
    end(&mut node, "a", failed(), 10_000);
    end(&mut node, "b", ok(), 10_000);
    assert_eq!((node.report().0, state(&node, "a")), (Phase::Join, SystemState::Unhealthy));
    // b goes on: what has started is not torn down because of what it came after.
    assert_eq!(due(&mut node, 11_000), ["a health"]);
    end(&mut node, "a", Outcome::Down("a.service is failed".into()), 11_000);
    assert_eq!(due(&mut node, 13_000), ["a start a.service"]);
    end(&mut node, "a", ok(), 13_000);
    due(&mut node, 13_000);
    end(&mut node, "a", ok(), 13_000);
    assert_eq!(node.report().0, Phase::Ready);
}

#[test]
fn what_an_earlier_agent_of_this_boot_did_is_not_done_again() {
    let done = BTreeSet::from([("a".to_string(), "prepare".to_string())]);
    let mut node = Node::new(&[system("a", &[], vec![step("prepare", &[])])], &done, 0);
    assert_eq!(due(&mut node, 0), ["a start a.service"]);
}

#[test]
fn what_can_never_come_is_said() {
    let systems = [system("a", &["z"], vec![]), system("b", &[], vec![step("s", &["a/never"])])];
    let mut node = Node::new(&systems, &BTreeSet::new(), 0);
    assert!(due(&mut node, 0).is_empty());
    let reasons: Vec<String> = node.report().2.into_iter().map(|s| s.reason).collect();
    assert_eq!(reasons, ["waits for z, which this role does not have", "step s waits for step a/never"]);
}

/// A seeded system with one unit.
fn alone(name: &str, steps: Vec<Step>) -> System {
    System { formation: seeded().formation, ..system(name, &[], steps) }
}

#[test]
fn a_late_step_that_fails_does_not_hide_that_its_system_fell() {
    let mut node = Node::new(&[system("a", &[], vec![step("accounts", &["a"])])], &BTreeSet::new(), 0);
    for _ in ["start", "health"] {
        due(&mut node, 0);
        end(&mut node, "a", ok(), 0);
    }
    assert_eq!(due(&mut node, 0), ["a/accounts 7"]);
    end(&mut node, "a", failed(), 0);
    assert_eq!(due(&mut node, 2_000), ["a health"], "before the step is tried again");
    end(&mut node, "a", ok(), 2_000);
    assert_eq!(state(&node, "a"), SystemState::Failed, "the step");
    assert_eq!(due(&mut node, 2_000), ["a/accounts 7"]);
    end(&mut node, "a", failed(), 2_000);
    assert!(due(&mut node, 5_999).is_empty(), "pauses grow all the same");
    assert_eq!(due(&mut node, 6_000), ["a health"]);
    end(&mut node, "a", Outcome::Down("gone".into()), 6_000);
    assert_eq!(state(&node, "a"), SystemState::Failed);
    assert_eq!(due(&mut node, 14_000), ["a start a.service"]);
}

#[test]
fn a_member_that_is_cut_off_stops_when_told_and_asks_again() {
    let mut node = Node::new(&[alone("db", vec![])], &BTreeSet::new(), 0);
    for outcome in [ok(), ok(), ok(), Outcome::Done("L".into())] {
        due(&mut node, 0);
        end(&mut node, "db", outcome, 0);
    }
    let mut now = 0;
    let mut look = |node: &mut Node, outcome: Outcome| {
        now += 10_000;
        assert_eq!(due(node, now), ["db health"]);
        end(node, "db", outcome, now);
        now
    };
    look(&mut node, failed());
    let mut at = 0;
    for _ in 0..STRANDED_LOOKS {
        assert!(!node.report().2[0].stranded, "a short split heals by itself");
        node.stand_down(&["db".into()], at);
        at = look(&mut node, Outcome::Later("alone".into()));
    }
    assert!(node.report().2[0].stranded);
    // It looks once more: meanwhile it may serve again.
    let mut lucky = node.clone();
    lucky.stand_down(&["db".into()], at);
    assert_eq!(due(&mut lucky, at), ["db health"]);
    end(&mut lucky, "db", ok(), at);
    assert_eq!(lucky.report().0, Phase::Ready);
    node.stand_down(&["db".into()], at);
    assert_eq!(due(&mut node, at), ["db health"]);
    end(&mut node, "db", Outcome::Later("alone".into()), at);
    assert_eq!(due(&mut node, at), ["db rank"], "the units are stopped, then the data are read");
}

#[test]
fn the_end_of_a_cluster_step_says_nothing_of_a_lineage_that_came_meanwhile() {
    let policy = Step { scope: Scope::Cluster, needs: vec!["db".into()], ..step("policy", &[]) };
    let mut node = Node::new(&[alone("db", vec![policy])], &BTreeSet::new(), 0);
    for outcome in [ok(), ok(), ok(), Outcome::Done("L".into())] {
        due(&mut node, 0);
        end(&mut node, "db", outcome, 0);
    }
    for (word, outcome) in [
        ("db/policy check", failed()),
        ("db/policy ask", Outcome::Answered(Verdict::Run)),
        ("db/policy 7", ok()),
        ("db/policy tell true", failed()),
    ] {
        assert_eq!(due(&mut node, 0), [word]);
        end(&mut node, "db", outcome, 0);
    }
    // Nobody heard of it, and it comes back as another cluster.
    for (word, outcome) in [
        ("db health", Outcome::Down("gone".into())),
        ("db look db.service", ok()),
        ("db start db.service", ok()),
        ("db health", ok()),
        ("db lineage", Outcome::Done("M".into())),
        ("db/policy tell true", ok()),
    ] {
        assert_eq!(due(&mut node, 100_000), [word]);
        end(&mut node, "db", outcome, 90_000);
    }
    assert_eq!(due(&mut node, 100_000), ["db/policy check"]);
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(ok()),
        1 => Just(failed()),
        1 => Just(Outcome::Later("later".into())),
        1 => Just(Outcome::Down("down".into())),
    ]
}

proptest! {
    /// Whatever fails meanwhile: one job a system, nothing starts before what it comes after was
    /// complete, `ready` exactly when every system is healthy; and once nothing fails any more the
    /// node becomes ready in bounded time.
    #[test]
    fn every_history_keeps_the_order_and_ends_ready(
        links in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 4), 4),
        late in proptest::collection::vec(any::<bool>(), 4),
        outcomes in proptest::collection::vec(outcome(), 0..60),
    ) {
        let names = ["a", "b", "c", "d"];
        let systems: Vec<System> = (0..4).map(|i| {
            let after: Vec<&str> = (0..i).filter(|j| links[i][*j]).map(|j| names[j]).collect();
            system(names[i], &after, vec![step("one", &[]), step("two", if late[i] { &names[i..i + 1] } else { &[] })])
        }).collect();
        let mut node = Node::new(&systems, &BTreeSet::new(), 0);
        let mut ever_complete = BTreeSet::new();
        let mut outcomes = outcomes.into_iter();
        let mut now = 0;
        for _ in 0..400 {
            let actions = node.due(now);
            for action in &actions {
                let found = systems.iter().find(|s| s.name == action.system).unwrap();
                prop_assert!(found.after.iter().all(|n| ever_complete.contains(n)), "{action:?} before {:?}", found.after);
            }
            prop_assert!(node.due(now).is_empty());
            for action in actions {
                node.done(&action.system, &action.job, outcomes.next().unwrap_or_else(ok), now);
            }
            let (phase, _, reports) = node.report();
            ever_complete.extend(reports.iter().filter(|r| r.state == SystemState::Healthy).map(|r| r.name.clone()));
            prop_assert_eq!(phase == Phase::Ready, reports.iter().all(|r| r.state == SystemState::Healthy));
            if outcomes.len() == 0 && phase == Phase::Ready {
                return Ok(());
            }
            now = node.next_ms(now).unwrap_or(now);
        }
        prop_assert!(false, "not ready after all failures ended: {:?}", node.report());
    }
}

/// A seeded system with a late cluster step.
fn seeded() -> System {
    let cluster_step = Step { scope: Scope::Cluster, ..step("accounts", &["db"]) };
    let formation = Some(crate::recipe::system::Formation {
        kind: crate::recipe::system::FormationKind::Seeded,
        dark: Some(crate::recipe::system::Dark::Rank),
    });
    System {
        formation,
        units: vec!["helper.socket".into(), "db.service".into()],
        ..system("db", &[], vec![cluster_step])
    }
}

fn holds() -> Data {
    Data::Holds { lineage: "L".into(), rank: 4 }
}

fn wait() -> Outcome {
    Outcome::Answered(Verdict::Wait { reason: "not yet".into() })
}

/// What is due, one job, ended so.
fn does(node: &mut Node, what: &str, outcome: Outcome, now: u64) {
    assert_eq!(due(node, now), [what]);
    end(node, "db", outcome, now);
}

/// Asks until it may run, and serves `lineage`.
fn serve(node: &mut Node, verdict: Verdict, job: &str, lineage: &str, now: u64) {
    does(node, "db look db.service", Outcome::Down("inactive".into()), now);
    does(node, "db rank", Outcome::Ranked(holds()), now);
    does(node, "db ask Holds { lineage: \"L\", rank: 4 }", Outcome::Answered(verdict), now);
    does(node, job, ok(), now);
    does(node, "db start helper.socket db.service", ok(), now);
    does(node, "db health", ok(), now);
    does(node, "db lineage", Outcome::Done(lineage.into()), now);
}

fn join() -> Verdict {
    Verdict::Join { members: vec!["n2".into()], lineage: "L".into(), set_aside: false }
}

#[test]
fn a_seeded_system_starts_only_with_the_servers_leave() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
    serve(&mut node, Verdict::Seed, "db seed", "L", 0);
    let report = node.report().2.remove(0);
    assert_eq!((report.state, report.lineage.as_deref()), (SystemState::Starting, Some("L")), "a step is open");
    does(&mut node, "db/accounts check", failed(), 0);
    assert_eq!(due(&mut node, 0), ["db/accounts ask"]);
    let running = RunningStep { system: "db".into(), step: "accounts".into() };
    assert_eq!(node.running_steps(), [running], "the server may have said yes already");
    end(&mut node, "db", Outcome::Answered(Verdict::Run), 0);
    does(&mut node, "db/accounts 7", ok(), 0);
    does(&mut node, "db/accounts tell true", failed(), 0);
    assert_eq!(node.running_steps().len(), 1, "until the server knows");
    does(&mut node, "db health", ok(), 500); // it may have fallen meanwhile
    does(&mut node, "db/accounts tell true", ok(), 500);
    assert!(node.running_steps().is_empty());
    assert_eq!(node.report().0, Phase::Ready);
}

#[test]
fn a_wait_is_asked_again_with_a_higher_number_and_soon() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 100);
    does(&mut node, "db look db.service", Outcome::Down("inactive".into()), 100);
    does(&mut node, "db rank", Outcome::Ranked(Data::Blank), 100);
    let (mut now, mut last) = (100, 0);
    for pause in [500, 1_000, 2_000, 4_000, 4_000] {
        let actions = node.due(now);
        let [Action { job: Job::AskStart { seq, data: Data::Blank }, .. }] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert!(*seq > last && *seq >= now);
        last = *seq;
        end(&mut node, "db", wait(), now);
        assert_eq!(node.report().2[0].reason, "not yet");
        assert!(node.due(now + pause - 1).is_empty());
        now += pause;
    }
    // A server that is away is one more reason to wait.
    does(&mut node, "db ask Blank", failed(), now);
    assert_eq!(state(&node, "db"), SystemState::Waiting);
}

#[test]
fn what_runs_already_goes_on_after_a_restart_of_the_agent() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
    does(&mut node, "db look db.service", ok(), 0);
    does(&mut node, "db start helper.socket db.service", ok(), 0);
}

#[test]
fn a_unit_that_fell_is_asked_for_again_and_steps_are_kept_within_a_lineage() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
    serve(&mut node, join(), "db join n2", "L", 0);
    does(&mut node, "db/accounts check", ok(), 0);
    assert_eq!(node.report().0, Phase::Ready);
    for (lineage, open, at) in [("L", false, 20_000), ("M", true, 40_000)] {
        does(&mut node, "db health", Outcome::Down("failed".into()), at);
        assert_eq!(node.report().2[0].lineage, None);
        serve(&mut node, join(), "db join n2", lineage, at + 5_000);
        assert_eq!(node.report().0 != Phase::Ready, open, "{lineage}");
    }
}

#[test]
fn a_seed_that_fails_begins_with_a_look() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
    does(&mut node, "db look db.service", Outcome::Down("inactive".into()), 0);
    does(&mut node, "db rank", Outcome::Ranked(Data::Blank), 0);
    does(&mut node, "db ask Blank", Outcome::Answered(Verdict::Seed), 0);
    does(&mut node, "db seed", failed(), 0);
    assert_eq!(due(&mut node, 2_000), ["db look db.service"]);
}

#[test]
fn without_the_server_it_is_started_plainly_unless_the_server_was_left_waiting() {
    for (may, want) in [(BTreeSet::from(["db".to_string()]), true), (BTreeSet::new(), false)] {
        let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
        node.go_offline(may);
        does(&mut node, "db look db.service", Outcome::Down("inactive".into()), 0);
        if want {
            does(&mut node, "db start helper.socket db.service", ok(), 0);
            does(&mut node, "db health", ok(), 0);
            does(&mut node, "db lineage", Outcome::Done("L".into()), 0);
            assert_eq!(node.report().0, Phase::Ready, "no cluster step is asked for");
            node.go_online(0);
            assert_eq!(node.report().0, Phase::Join);
            assert_eq!(due(&mut node, 0), ["db/accounts check"]);
        } else {
            assert!(due(&mut node, 0).is_empty());
            assert!(node.report().2[0].reason.contains("waits for the server"));
            node.go_online(0);
            assert_eq!(due(&mut node, 0), ["db rank"]);
        }
    }
}

#[test]
fn peer_steps_run_beside_the_systems_own_work() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
    let task = PeerTask { system: "db".into(), step: "room".into(), node: "n3".into(), generation: 2 };
    serve(&mut node, Verdict::Seed, "db seed", "L", 0);
    node.set_peers(std::slice::from_ref(&task));
    assert_eq!(due(&mut node, 0), ["db/accounts check", "db/room for n3"]);
    node.set_peers(&[]); // the one that runs goes on
    assert!(due(&mut node, 0).is_empty());
    node.done("db", &Job::Peer { task, timeout_secs: 300 }, ok(), 0);
    assert!(node.peers.is_empty());
}

#[test]
fn what_another_node_s_step_said_reaches_the_server() {
    let task = PeerTask { system: "api".into(), step: "forget".into(), node: "n3".into(), generation: 0 };
    for outcome in [Outcome::Failed("guests are left".into()), Outcome::Later("guests are left".into())] {
        let request = peer_told(&task, &outcome);
        assert_eq!(
            (request.ok, request.detail.as_str(), request.peer.as_ref()),
            (false, "guests are left", Some(&task))
        );
    }
    assert!(peer_told(&task, &ok()).ok);
}

#[test]
fn a_start_that_hangs_because_all_others_are_gone_stands_down_when_the_server_says_so() {
    let mut node = Node::new(&[seeded()], &BTreeSet::new(), 0);
    does(&mut node, "db look db.service", Outcome::Down("inactive".into()), 0);
    does(&mut node, "db rank", Outcome::Ranked(holds()), 0);
    does(&mut node, "db ask Holds { lineage: \"L\", rank: 4 }", Outcome::Answered(join()), 0);
    does(&mut node, "db join n2", ok(), 0);
    let hangs = || Outcome::Later("still activating".into());
    does(&mut node, "db start helper.socket db.service", hangs(), 20_000);
    for round in 1..100 {
        let transfers = Outcome::Working("it receives a state transfer".into());
        does(&mut node, "db start helper.socket db.service", transfers, round * 22_000);
        node.stand_down(&["db".to_string()], round * 22_000);
        assert!(!node.report().2[0].stranded, "a state transfer may take hours");
    }
    does(&mut node, "db start helper.socket db.service", hangs(), 3_042_000);
    assert!(node.report().2[0].stranded);
    node.stand_down(&["db".to_string()], 3_042_000);
    assert_eq!(due(&mut node, 3_042_000), ["db rank"]);
    assert!(!node.report().2[0].stranded);
}
