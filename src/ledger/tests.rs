//! Logs of every release replay, and what nodes send is never a panic.

use super::*;
use crate::site::Mac;
use proptest::prelude::*;

const V1: &str = include_str!("../../tests/fixtures/ledger-v1.jsonl");
/// What version 2 added.
const V2: &str = include_str!("../../tests/fixtures/ledger-v2.jsonl");
/// What version 3 added.
const V3: &str = include_str!("../../tests/fixtures/ledger-v3.jsonl");

/// Folds a golden log; returns the kinds of its events too.
fn folded(log: &str) -> (State, std::collections::BTreeSet<String>) {
    let mut state = State::default();
    let mut kinds = std::collections::BTreeSet::new();
    for line in log.lines() {
        let recorded: Recorded = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(recorded.rev, state.rev + 1, "{line}");
        kinds.insert(serde_json::to_value(&recorded.event).unwrap()["kind"].as_str().unwrap().to_string());
        assert!(!timeline::line(&recorded.event).is_empty());
        state.apply(&recorded.event);
        // What it is written as today is read as the same.
        let again: Recorded = serde_json::from_str(&serde_json::to_string(&recorded).unwrap()).unwrap();
        assert_eq!(again, recorded);
    }
    (state, kinds)
}

#[test]
fn the_golden_log_of_version_1_folds_to_what_it_always_did() {
    let (state, kinds) = folded(V1);
    assert_eq!(kinds.len(), 14, "every kind of event stands in it: {kinds:?}");
    let node = state.node("infra1");
    assert_eq!((state.site_id.as_str(), node.generation, node.boots.len()), ("s1", 2, 2));
    assert_eq!((node.held.as_deref(), node.approved, node.alarms), (None, true, 1));
    let session = node.session.as_ref().unwrap();
    assert!(session.left && session.boot_id.starts_with("bbbb"));
    assert_eq!(node.credential.as_ref().unwrap().boot_id, "cccccccc-0000-4000-8000-000000000003");
    assert_eq!(node.disk.as_ref().unwrap().disk.serial.as_deref(), Some("S1"));
    let machine = &state.machines[&"52:54:00:00:00:09".parse::<Mac>().unwrap()];
    assert_eq!((machine.approved.as_deref(), machine.firmware.as_str()), (Some("infra1"), "bios"));
    assert_eq!(state.images_in_use().len(), 2);
}

#[test]
fn the_golden_log_of_version_2_folds_to_what_it_always_did() {
    let (state, kinds) = folded(V2);
    assert_eq!(kinds.len(), 19, "every kind that version 2 brought stands in it: {kinds:?}");
    let cluster = &state.cluster;
    assert_eq!((cluster.genesis, &cluster.unvouched, &cluster.behind), (true, &None, &None));
    let galera = cluster.formation("galera");
    assert_eq!((galera.lineage.as_deref(), galera.members.len(), galera.stopped.len()), (Some("L"), 3, 0));
    let data = message::Data::Holds { lineage: "X".into(), rank: 7 };
    assert!(galera.sets_aside("infra2", &data) && !galera.sets_aside("infra2", &message::Data::Blank));
    assert_eq!(galera.barrier("infra2", 1), 12);
    let rabbitmq = cluster.formation("rabbitmq");
    assert_eq!(rabbitmq.chosen.as_deref(), Some("infra2"));
    assert_eq!(rabbitmq.room[&("make-room".to_string(), "infra3".to_string())], 1);
    assert!(cluster.step("rabbitmq", "policy").unwrap().done);
    assert_eq!(cluster.step("pacemaker", "cib").unwrap().failed.as_deref(), Some("no quorum"));
    assert!(state.node("infra3").is_fenced() && !state.node("infra1").is_fenced());
}

#[test]
fn the_golden_log_of_version_3_folds_to_what_it_always_did() {
    let (state, kinds) = folded(V3);
    let of_orders = kinds.iter().filter(|k| k.starts_with("order-") || k.starts_with("node-re")).count();
    let of_rollouts = kinds.iter().filter(|k| k.starts_with("rollout-")).count();
    assert_eq!((of_orders, of_rollouts), (7, 4), "every kind that version 3 brought stands in it: {kinds:?}");
    let (one, two) = (state.node("infra1"), state.node("infra2"));
    let spent = one.order.as_ref().unwrap();
    assert_eq!((spent.order.id.as_str(), spent.ended), ("99999999", None));
    let rollout = state.rollout.as_ref().unwrap();
    assert_eq!((rollout.given.len(), rollout.forgiven.len(), rollout.ended), (1, 1, Some(false)));
    assert_eq!(one.image.as_ref().map(|i| i.reference.as_str()), Some("zed/infra:v2"), "not its role's");
    let open = &two.open_order().unwrap().order;
    assert_eq!((open.id.as_str(), open.force.as_deref(), open.lose_guests), ("4e5f6071", Some("the rack burns"), true));
    assert_eq!(state.open_orders.keys().collect::<Vec<_>>(), ["4e5f6071", "99999999"]);
    let old = &state.machines[&"52:54:00:00:00:02".parse::<Mac>().unwrap()];
    assert!(old.approved.is_none() && two.approved);
    assert_eq!(two.report.as_ref().unwrap().systems[0].guests, ["web"]);
    let attempts = &state.node("infra3").attempts;
    assert_eq!((attempts.count, attempts.retry, &attempts.pause, state.paused.len()), (2, true, &None, 0));
    assert!(state.node("infra3").session.is_none() && state.cluster.formation("galera").members.is_empty());
}

#[test]
fn what_the_gate_refused_is_explained_with_its_arithmetic() {
    let events: Vec<Recorded> = V3.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let lines = explain::chain(&events[..10], 1);
    assert_eq!(
        lines,
        [
            "2030-03-17T17:46:50Z reimage, disks wiped, asked by ada (answer 10)",
            "    galera = 3 members, 2 healthy, this leaves 1, majority is 2",
            "  → rule quorum, node infra1",
            "  → refused: galera: 3 members, 2 healthy, this leaves 1, majority is 2",
        ]
    );
    let all = explain::chain(&events, 100).join("\n");
    for words in ["rule gate, forced", "forced = the rack burns", "disk vda to be wiped by order 0a1b2c3d", "may join"]
    {
        assert!(all.contains(words), "{words}: {all}");
    }
}

#[test]
fn an_explanation_is_a_chain_from_facts_to_the_reply() {
    let events: Vec<Recorded> = V1.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let lines = explain::chain(&events[..4], 1);
    assert_eq!(
        lines,
        [
            "2023-11-14T22:13:23Z script asked by 52:54:00:00:00:01 from 10.0.0.11 (answer 4)",
            "    known by = mac",
            "    role = infra",
            "  → rule role-image, node infra1",
            "  → boot image 010101010101",
        ]
    );
    assert_eq!(explain::chain(&events, 0).len(), 0);
}

proptest! {
    #[test]
    fn no_message_is_a_panic(text in "\\PC{0,200}|[\\{\\}\\[\\]\":,a-z0-9_ ]{0,200}") {
        use message::*;
        let _ = serde_json::from_str::<PhaseReport>(&text);
        let _ = serde_json::from_str::<BootRequest>(&text);
        let _ = serde_json::from_str::<DiskRequest>(&text);
        let _ = serde_json::from_str::<RegisterRequest>(&text);
        let _ = serde_json::from_str::<Report>(&text);
        let _ = serde_json::from_str::<Event>(&text);
    }

    #[test]
    fn whatever_nodes_say_is_decided_and_folds(
        says in proptest::collection::vec((0u8..6, 0u8..4, "[a-c]{8}|\\PC{0,12}", "\\PC{0,20}", 0u64..100_000), 0..40)
    ) {
        use crate::image::id::Digest;
        use message::*;
        let mut state = State::default();
        V1.lines().take(3).for_each(|l| state.apply(&serde_json::from_str::<Recorded>(l).unwrap().event));
        let live = Live::new(0);
        for (kind, last, boot_id, text, now) in says {
            let (mac, source) = (Mac([0x52, 0x54, 0, 0, 0, last]), [10, 0, 0, 11].into());
            let (node, image) = ("infra1".to_string(), Digest([1; 32]));
            let disk = Disk { name: text.clone(), serial: None, wwn: Some(text.clone()), size: now };
            let command = match kind {
                0 => Command::Saw { mac, uuid: None, firmware: text },
                1 => Command::Phase {
                    report: PhaseReport { mac, uuid: None, boot_id, image, phase: Phase::Fetch, detail: text },
                },
                2 => Command::Boot(Box::new(decide::Boot {
                    request: BootRequest { mac, uuid: None, boot_id, image, version: text.clone(), disks: vec![disk] },
                    source,
                    leased: None,
                    authoritative: true,
                    credential: text,
                })),
                3 => Command::Disk {
                    request: DiskRequest { node, boot_id, credential: Some(text.clone()), disk, found: text },
                    source,
                },
                4 => Command::Register {
                    request: Box::new(RegisterRequest {
                        node, mac, boot_id, image, version: text.clone(), credential: Some(text.clone()),
                        key: text.clone(), signature: text.clone(), csr: text, last_generation: now, certificates: Default::default(),
                    }),
                    source,
                    issued: None,
                    shown: None,
                },
                _ => Command::Report {
                    fingerprint: Digest([last; 32]),
                    report: Report { phase: Phase::Ready, detail: text, systems: vec![], leaving: false, seq: 0, running: vec![], order: None, drain: None, moves: false },
                },
            };
            let caused = match decide(&state, &live, &command, now) {
                Ok(events) => events,
                Err(refusal) => refusal.events,
            };
            for event in &caused {
                state.apply(event);
                // What is stored can be read again, and steers no terminal.
                let text = serde_json::to_string(event).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Event>(&text).unwrap(), event);
                prop_assert!(!timeline::line(event).chars().any(char::is_control));
            }
        }
        prop_assert_eq!(state.node("infra1").generation, 0);
    }
}
