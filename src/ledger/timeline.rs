//! Events as lines for people: `kiln events`, and a node's timeline in `kiln node show`.

use super::event::{Asked, Event, Recorded};
use super::message::{Data, SystemReport, SystemState};

/// One event in one line, without its time.
pub fn line(event: &Event) -> String {
    match event {
        Event::SiteApplied { site, .. } => {
            format!("site {} applied: {} nodes", site.cluster.name, site.nodes.len())
        }
        Event::ImageUsed { role, image } => format!("role {role} boots {} ({})", image.reference, image.id.short()),
        Event::MachineSeen { mac, uuid, firmware } => {
            let uuid = uuid.map(|u| format!(", UUID {u}")).unwrap_or_default();
            format!("machine {mac} seen: {firmware}{uuid}")
        }
        Event::Answered { asked, rule, answer, address, .. } => {
            let from = address.map(|a| format!(" from {a}")).unwrap_or_default();
            format!("{}{from}: {answer} ({rule})", asked_word(*asked))
        }
        Event::PhaseReached { phase, detail, .. } => format!("phase {}{}", word(phase), after(detail)),
        Event::CredentialMinted { address, rule, .. } => format!("credential minted to {address} ({rule})"),
        Event::DiskGranted { disk, .. } => format!("disk {} may be formatted ({} bytes)", disk.name, disk.size),
        Event::DiskRefused { disk, reason, .. } => format!("disk {} may not be touched: {reason}", disk.name),
        Event::Registered { generation, address, image, by_credential, .. } => {
            let how = if *by_credential { "by credential" } else { "by its key" };
            format!("registered generation {generation} from {address} {how}, image {}", image.short())
        }
        Event::RegisterRefused { address, reason, alarm, .. } => {
            format!("{}register from {address} refused: {reason}", if *alarm { "ALARM: " } else { "" })
        }
        Event::Reported { phase, detail, systems, leaving, .. } => {
            let leaving = if *leaving { " (shutting down)" } else { "" };
            format!("reports {}{leaving}{}{}", word(phase), after(detail), unwell(systems))
        }
        Event::NodeApproved { mac, node } => format!("machine {mac} approved as node {node}"),
        Event::NodeHeld { reason, .. } => format!("held: {reason}"),
        Event::NodeUnheld { .. } => "let go".into(),
        Event::NodeFenced { generation, .. } => {
            format!("fenced: generation {generation} is off, by the operator's word")
        }
        Event::Genesis {} => "cluster may form".into(),
        Event::Unvouched { reason } => format!("ledger may not be the newest: {reason}"),
        Event::Vouched {} => "ledger vouched for: every node has spoken".into(),
        Event::Behind { reason, .. } => format!("ALARM: ledger is behind: {reason}"),
        Event::Adopted { formations } => {
            let all: Vec<String> =
                formations.iter().map(|(s, a)| format!("{s} {} ({})", a.lineage, a.members.join(" "))).collect();
            format!("cluster adopted: {}", if all.is_empty() { "nothing formed".into() } else { all.join("; ") })
        }
        Event::DataShown { system, data, .. } => match data {
            Data::Blank => format!("{system} stopped, blank"),
            Data::Holds { lineage, rank } => format!("{system} stopped, holds {lineage} rank {rank}"),
        },
        Event::SeedGranted { system, .. } => format!("{system} may be seeded"),
        Event::JoinGranted { system, set_aside, .. } => {
            format!("{system} may join{}", if *set_aside { ", its own data moved aside" } else { "" })
        }
        Event::Formed { system, lineage, .. } => format!("{system} formed: {lineage}"),
        Event::Serves { system, .. } => format!("{system} serves, started without being let in"),
        Event::Recovering { system, .. } => format!("{system} comes back from its data, by the operator's word"),
        Event::SetAside { system, nodes } => format!("{system}: data of {} will be moved aside", nodes.join(" ")),
        Event::StepClaimed { system, step, .. } => format!("{system}/{step} claimed"),
        Event::StepEnded { system, step, ok, detail, .. } => {
            format!("{system}/{step} {}{}", if *ok { "done" } else { "failed" }, after(detail))
        }
        Event::RoomMade { system, step, by, .. } => format!("{system}/{step} made by {by}"),
        Event::OrderGiven { order, .. } => {
            let force = order.force.as_ref().map(|f| format!(", forced: {f}")).unwrap_or_default();
            let (id, node, image, disks) = (&order.id, &order.node, &order.image, order.disks.word());
            let (image, by) = (image.id.short(), if order.giver.is_empty() { "the operator" } else { &order.giver });
            let until = utc(order.expires_ms);
            let via = if order.via.is_reboot() { "" } else { " by kexec" };
            format!("order {id}: {node} is reimaged{via} with {image}, disks {disks}, until {until}, by {by}{force}")
        }
        Event::OrderRefused { wanted, reason, .. } => format!("{wanted} refused: {reason}"),
        Event::OrderBooted { order, .. } => format!("boots by order {order}"),
        Event::OrderBegun { order, disk, found, .. } => format!("order {order} wipes disk {} ({found})", disk.name),
        Event::OrderEnded { order, end, reason, .. } => format!("order {order} ended: {}{}", end.word(), after(reason)),
        Event::BootCounted { attempt, excused, .. } => {
            let before = excused.as_ref().map(|why| format!(" (the one before does not count: {why})"));
            format!("boot {attempt} without a register{}", before.unwrap_or_default())
        }
        Event::BootsPaused { secs, reason, .. } => format!("held for {} min: {reason}", secs / 60),
        Event::BootsResumed { forgiven, .. } => {
            let why = if *forgiven { "most nodes booted anew with it" } else { "the pause is over" };
            format!("may boot again: {why}")
        }
        Event::RolloutStarted { rollout } => {
            let (role, image, nodes) = (&rollout.role, rollout.image.id.short(), rollout.nodes.len());
            format!("rollout {} of role {role} to {image} started: {nodes} nodes, by {}", rollout.id, rollout.giver)
        }
        Event::RolloutPaused { reason } => format!("rollout paused: {reason}"),
        Event::RolloutResumed {} => "rollout goes on".into(),
        Event::RolloutEnded { done } => format!("rollout {}", if *done { "done" } else { "aborted" }),
        Event::NodeReplaced { node, macs, fresh } => {
            let macs: Vec<String> = macs.iter().map(|m| m.to_string()).collect();
            let disk = if *fresh { ", with a new disk" } else { ", with its old disk" };
            format!("node {node} is the machine {} from now on{disk}", macs.join(" "))
        }
        Event::NodeRemoved { node, .. } => format!("node {node} removed"),
        Event::Forgotten { node, system, step, by } => format!("{system}/{step}: {by} has forgotten {node}"),
        Event::NodeDrained { giver, migrate: false, .. } => format!("drained by {giver}: no new guests come"),
        Event::NodeDrained { giver, .. } => format!("drained by {giver}: no new guests come, those that run are moved"),
        Event::NodeUndrained { .. } => "undrained: guests may come".into(),
        Event::DrainUndone { .. } => "guests are as before".into(),
    }
}

/// A line with time and subject: `2026-11-22T14:00:00Z controller1 registered …`.
pub fn full(recorded: &Recorded) -> String {
    let subject = recorded.event.subject().unwrap_or_else(|| "-".into());
    format!("{} {:>5} {subject} {}", utc(recorded.at_ms), recorded.rev, line(&recorded.event))
}

/// A node's timeline: what happened to it, with the time since the line before.
pub fn of_node(events: &[Recorded]) -> Vec<String> {
    let mut before = None;
    let mut lines = Vec::new();
    for recorded in events {
        let gap = before.map_or(0, |b: u64| recorded.at_ms.saturating_sub(b));
        before = Some(recorded.at_ms);
        lines.push(format!("{} {:>+8.1}s {}", utc(recorded.at_ms), gap as f64 / 1000.0, line(&recorded.event)));
    }
    lines
}

pub(super) fn asked_word(asked: Asked) -> &'static str {
    match asked {
        Asked::Dhcp => "dhcp",
        Asked::Script => "script",
        Asked::Boot => "boot",
        Asked::Kexec => "kexec",
    }
}

/// A phase as it is written.
pub fn word(phase: &super::message::Phase) -> String {
    format!("{phase:?}").to_lowercase()
}

fn after(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn unwell(systems: &[SystemReport]) -> String {
    let ill = systems.iter().filter(|s| s.state != SystemState::Healthy);
    let words: Vec<String> =
        ill.map(|s| format!("{} {}{}", s.name, format!("{:?}", s.state).to_lowercase(), after(&s.reason))).collect();
    if words.is_empty() { String::new() } else { format!(" [{}]", words.join("; ")) }
}

/// Unix milliseconds as `YYYY-MM-DDTHH:MM:SSZ`.
pub fn utc(ms: u64) -> String {
    let ((year, month, day), secs) = (civil(ms / 86_400_000), ms / 1000 % 86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", secs / 3600, secs / 60 % 60, secs % 60)
}

/// Unix milliseconds as HTTP writes a date (RFC 9110 §5.6.7).
pub fn http_date(ms: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = ms / 86_400_000;
    let ((year, month, day), secs) = (civil(days), ms / 1000 % 86_400);
    let (name, month) = (DAYS[(days % 7) as usize], MONTHS[(month - 1) as usize]);
    format!("{name}, {day:02} {month} {year:04} {:02}:{:02}:{:02} GMT", secs / 3600, secs / 60 % 60, secs % 60)
}

/// Days since 1970 to (year, month, day): Howard Hinnant's algorithm, eras of 400 years from March.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::{http_date, utc};

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_356_245_999), "2026-11-22T14:04:05Z");
        assert_eq!(http_date(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
