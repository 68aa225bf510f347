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
        state: vec![],
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
