//! Why a node was answered so, or was let do so: the recorded chain from facts by a rule to the
//! reply, for each question that the log holds.

use super::event::{Event, Recorded};
use super::timeline::{asked_word, utc};
use std::collections::BTreeMap;

/// One answer or refusal.
struct Chain<'a> {
    /// What was asked, and from where.
    asked: String,
    facts: Vec<(&'a str, String)>,
    rule: &'a str,
    node: Option<&'a str>,
    reply: String,
}

/// The last `count` answers, oldest first: each as a line of question, its facts, its rule, its answer.
pub fn chain(events: &[Recorded], count: usize) -> Vec<String> {
    let answers: Vec<(&Recorded, Chain)> = events.iter().filter_map(|r| Some((r, of(&r.event)?))).collect();
    let mut lines = Vec::new();
    for (recorded, chain) in answers.iter().skip(answers.len().saturating_sub(count)) {
        lines.push(format!("{} {} (answer {})", utc(recorded.at_ms), chain.asked, recorded.rev));
        let facts = chain.facts.iter().filter(|(_, value)| !value.is_empty());
        lines.extend(facts.map(|(key, value)| format!("    {key} = {value}")));
        lines.push(format!("  → rule {}, node {}", chain.rule, chain.node.unwrap_or("none")));
        lines.push(format!("  → {}", chain.reply));
    }
    lines
}

fn of(event: &Event) -> Option<Chain<'_>> {
    Some(match event {
        Event::Answered { mac, node, asked, address, facts, rule, answer, .. } => {
            let from = address.map(|a| format!(" from {a}")).unwrap_or_default();
            Chain {
                asked: format!("{} asked by {mac}{from}", asked_word(*asked)),
                facts: borrowed(facts),
                rule,
                node: node.as_deref(),
                reply: answer.clone(),
            }
        }
        Event::CredentialMinted { node, boot_id, address, rule, .. } => Chain {
            asked: "credential".into(),
            facts: vec![("boot_id", boot_id.clone()), ("address", address.to_string())],
            rule,
            node: Some(node),
            reply: format!("minted to {address}"),
        },
        Event::DiskGranted { node, boot_id, disk } => Chain {
            asked: format!("disk {} to be made", disk.name),
            facts: vec![("boot_id", boot_id.clone()), ("serial", disk.serial.clone().unwrap_or_default())],
            rule: "blank and named by the site",
            node: Some(node),
            reply: "granted".into(),
        },
        Event::DiskRefused { node, boot_id, disk, reason } => Chain {
            asked: format!("disk {} to be made", disk.name),
            facts: vec![("boot_id", boot_id.clone()), ("serial", disk.serial.clone().unwrap_or_default())],
            rule: "not touched",
            node: Some(node),
            reply: format!("refused: {reason}"),
        },
        Event::RegisterRefused { node, mac, boot_id, address, reason, alarm } => Chain {
            asked: format!("register asked by {mac} from {address}"),
            facts: vec![("boot_id", boot_id.clone())],
            rule: if *alarm { "not let in, alarm" } else { "not let in" },
            node: Some(node),
            reply: format!("refused: {reason}"),
        },
        Event::OrderGiven { order, facts } => {
            let mut shown = borrowed(facts);
            shown.extend(order.force.as_ref().map(|f| ("forced", f.clone())));
            if !order.destroy.is_empty() {
                shown.push(("may destroy the last copy of", order.destroy.join(" ")));
            }
            shown.push(("guests may be lost", if order.lose_guests { "yes".into() } else { String::new() }));
            shown.push(("guests are shut down", if order.stop_guests { "yes".into() } else { String::new() }));
            shown.push(("guests are moved", if order.migrate_guests { "yes".into() } else { String::new() }));
            Chain {
                asked: format!("reimage, disks {}, asked by {}", order.disks.word(), order.giver),
                facts: shown,
                rule: if order.force.is_some() { "gate, forced" } else { "gate" },
                node: Some(&order.node),
                reply: format!("order {} with image {}", order.id, order.image.id.short()),
            }
        }
        Event::OrderRefused { node, wanted, giver, facts, rule, reason } => Chain {
            asked: format!("{wanted}, asked by {giver}"),
            facts: borrowed(facts),
            rule,
            node: Some(node),
            reply: format!("refused: {reason}"),
        },
        Event::OrderBegun { order, node, boot_id, disk, found } => Chain {
            asked: format!("disk {} to be wiped by order {order}", disk.name),
            facts: vec![("boot_id", boot_id.clone()), ("found", found.clone())],
            rule: "open order of this boot, gate",
            node: Some(node),
            reply: "granted".into(),
        },
        Event::BootsPaused { node, attempts, secs, reason, facts } => Chain {
            asked: format!("boot {} without a register", attempts + 1),
            facts: borrowed(facts),
            rule: "boot-loop",
            node: Some(node),
            reply: format!("held for {} min: {reason}", secs / 60),
        },
        Event::SeedGranted { system, node, generation, .. } => Chain {
            asked: format!("{system} to start"),
            facts: vec![("generation", generation.to_string())],
            rule: "seed",
            node: Some(node),
            reply: "may be seeded here".into(),
        },
        Event::JoinGranted { system, node, generation, set_aside, .. } => Chain {
            asked: format!("{system} to start"),
            facts: vec![("generation", generation.to_string())],
            rule: "join",
            node: Some(node),
            reply: format!("may join{}", if *set_aside { ", its own data moved aside" } else { "" }),
        },
        _ => return None,
    })
}

fn borrowed(facts: &BTreeMap<String, String>) -> Vec<(&str, String)> {
    facts.iter().map(|(key, value)| (key.as_str(), value.clone())).collect()
}
