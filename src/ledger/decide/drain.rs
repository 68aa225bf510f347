//! Draining: what is to become of a node's guests. That it is drained is the operator's word or that
//! of an order that shuts them down or moves them; the node is told until it says that it is done.

use super::operator::must_exist;
use super::{Refusal, Why, gate, orders};
use crate::ledger::event::Event;
use crate::ledger::live::{Guests, Live};
use crate::ledger::message::{Disks, Drain, DrainTask, Report};
use crate::ledger::state::{NodeState, State};
use crate::ledger::text;

/// `kiln node drain`. Said again, guests that could not be moved are tried again.
pub(super) fn drain(
    state: &State,
    live: &Live,
    node: &str,
    giver: &str,
    migrate: bool,
    now_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    must_exist(state, node)?;
    let known = state.node(node);
    let fresh = live.fresh(state, node, now_ms);
    let gave_up = fresh.and_then(|r| r.drain.as_ref()).is_some_and(|d| d.failed && Some(d.number) == known.drain);
    if known.drained && known.migrates == migrate && !gave_up {
        return Ok(vec![]);
    }
    if migrate {
        let loss = gate::Loss { migrate_guests: true, ..orders::loss_of(state, node, Disks::Keep) };
        let judged = gate::guests(state, live, &loss, now_ms);
        if !judged.against.is_empty() {
            return Err(gate::refusal(&format!("moving the guests of {node}"), &judged));
        }
    }
    Ok(vec![Event::NodeDrained { node: node.into(), giver: text::word(giver), migrate }])
}

/// `kiln node undrain`.
pub(super) fn undrain(state: &State, node: &str) -> Result<Vec<Event>, Refusal> {
    must_exist(state, node)?;
    let known = state.node(node);
    if let Some(open) = known.open_order().filter(|o| o.drains()) {
        let id = &open.order.id;
        let reason = format!("order {id} drains node {node}; next: wait until it is ready, or kiln node cancel {id}");
        return Err(Refusal::new(Why::Refused, reason));
    }
    // A ledger that was lost does not know that it is drained.
    let said = !known.drained && known.drain.is_some();
    Ok(if said { vec![] } else { vec![Event::NodeUndrained { node: node.into() }] })
}

/// What the node is to do with its guests; `None`: nothing was said, or all is as before.
pub fn task(known: &NodeState) -> Option<DrainTask> {
    let number = known.drain?;
    let guests = match known.open_order() {
        Some(open) if open.order.stop_guests => Drain::Stop,
        // Who is still there after the boot stays.
        Some(open) if open.order.migrate_guests && open.is_under_way() => Drain::Stay,
        Some(open) if open.order.migrate_guests => Drain::Migrate,
        _ if known.migrates => Drain::Migrate,
        _ if known.drained => Drain::Stay,
        _ => Drain::Back,
    };
    Some(DrainTask { number, guests })
}

/// How far that is; an error says what is missing.
pub(super) fn progress(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<(Drain, Result<(), String>)> {
    let task = task(state.nodes.get(name)?)?;
    let Some(report) = live.fresh(state, name, now_ms) else {
        return Some((task.guests, Err("the node is silent".into())));
    };
    let left = match task.guests {
        Drain::Stay => report.guests.values().map(|g| g.all().count()).sum(),
        Drain::Stop | Drain::Migrate => report.guests.values().map(|g: &Guests| g.running.len()).sum(),
        Drain::Back => 0,
    };
    let done = match report.drain.as_ref().filter(|d| d.number == task.number) {
        None => Err("the node does not know yet".into()),
        Some(drain) if drain.failed => Err(format!("given up: {}", text::clean(&drain.detail, 300))),
        Some(drain) if !drain.done && drain.detail.is_empty() => Err("the node is at it".into()),
        Some(drain) if !drain.done => Err(text::clean(&drain.detail, 300)),
        Some(_) if left > 0 => Err(format!("{} left", gate::counted(left))),
        Some(_) => Ok(()),
    };
    Some((task.guests, done))
}

/// The same in a line: `drained`, `draining: 2 guests left`.
pub fn line(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<String> {
    Some(match progress(state, live, name, now_ms)? {
        (Drain::Back, Ok(())) => "undraining".into(),
        (Drain::Back, Err(why)) => format!("undraining: {why}"),
        (_, Ok(())) => "drained".into(),
        (_, Err(why)) => format!("draining: {why}"),
    })
}

/// The node says that its guests are as before.
pub(super) fn reported(name: &str, known: &NodeState, report: &Report) -> Option<Event> {
    let task = task(known).filter(|t| t.guests == Drain::Back)?;
    let done = report.drain.as_ref().is_some_and(|d| d.done && d.number == task.number);
    done.then(|| Event::DrainUndone { node: name.into(), number: task.number })
}
