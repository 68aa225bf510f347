//! The circuit breaker: a node whose boots come to nothing is held with growing pauses.
//!
//! An attempt is a boot that reached the initramfs and was let go on (`/v1/boot`, a new boot id, from
//! the node's own address); a register ends the count. A script that no initramfs follows is none:
//! it looks the same as a power flap, as a kernel that this server did not deliver, and as anybody
//! who asks with that MAC.

use crate::ledger::breaker::{Attempts, crowd};
use crate::ledger::event::Event;
use crate::ledger::live::Live;
use crate::ledger::message::Phase;
use crate::ledger::state::State;
use crate::ledger::text;
use crate::ledger::timeline;
use std::collections::BTreeMap;

/// So many boots may come to nothing before the node is held.
pub const ATTEMPTS_MAX: u32 = 3;
/// The first pause; each further boot that comes to nothing doubles it.
pub const PAUSE_FIRST_SECS: u64 = 60;
pub const PAUSE_MAX_SECS: u64 = 30 * 60;
/// Boots that began so close to each other began together: machines do not take equally long to start.
const TOGETHER_MS: u64 = 120_000;

/// After so many boots that came to nothing.
pub fn pause_secs(failed: u32) -> u64 {
    let doublings = failed.saturating_sub(ATTEMPTS_MAX).min(16);
    (PAUSE_FIRST_SECS << doublings).min(PAUSE_MAX_SECS)
}

/// The machine's firmware, or another boot of it, asks: the last boot is over. The pause that it
/// brings, if it was one too many.
pub(super) fn over(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<Event> {
    let known = state.nodes.get(name)?;
    let attempts = &known.attempts;
    if attempts.count < ATTEMPTS_MAX || attempts.pause.is_some() || attempts.retry {
        return None;
    }
    let failed = attempts.count - u32::from(excuse(state, live, name, now_ms).is_some());
    if failed < ATTEMPTS_MAX || crowd(state, name, u64::MAX).is_some() {
        return None;
    }
    let said = last_words(state, name);
    let order = known.open_order().map(|o| o.order.id.clone()).unwrap_or_default();
    let facts = BTreeMap::from([
        ("generation".to_string(), known.generation.to_string()),
        ("order".to_string(), order),
        ("boots without a register".to_string(), failed.to_string()),
        ("last boot".to_string(), attempts.boot_id.clone()),
    ]);
    let reason = text::clean(&format!("{failed} boots in a row did not register; {said}"), 300);
    Some(Event::BootsPaused { node: name.into(), attempts: failed, secs: pause_secs(failed), reason, facts })
}

/// Whether [`super::Command::BootOver`] would hold the node.
pub fn is_looping(state: &State, live: &Live, name: &str, now_ms: u64) -> bool {
    over(state, live, name, now_ms).is_some()
}

/// What failed last, and how often.
fn last_words(state: &State, name: &str) -> String {
    let known = state.node(name);
    let Attempts { boot_id, failed, .. } = &known.attempts;
    match (failed.as_ref().filter(|f| f.boot_id == *boot_id), known.progress.as_ref()) {
        (Some(f), _) if f.boots > 1 => format!("the last {} said: {}", f.boots, f.detail),
        (Some(f), _) => format!("the last one said: {}", f.detail),
        (None, Some(p)) if p.boot_id == *boot_id => format!("the last one ended after {}", timeline::word(&p.phase)),
        (None, _) => "the last one said nothing".into(),
    }
}

/// This boot was let go on: said once a boot.
pub(super) fn counted(state: &State, live: &Live, name: &str, boot_id: &str, now_ms: u64) -> Option<Event> {
    let known = state.node(name);
    let attempts = &known.attempts;
    if attempts.boot_id == boot_id {
        return None;
    }
    let excused = excuse(state, live, name, now_ms);
    let attempt = attempts.count.saturating_add(1) - u32::from(excused.is_some());
    let excused = excused.map(String::from);
    Some(Event::BootCounted { node: name.into(), boot_id: boot_id.into(), attempt, excused })
}

/// Why the last boot's end is not the node's own failure.
fn excuse(state: &State, live: &Live, name: &str, now_ms: u64) -> Option<&'static str> {
    let known = state.nodes.get(name)?;
    let boot_id = Some(&known.attempts.boot_id).filter(|id| !id.is_empty())?;
    let Some(tried) = live.tried.get(name).filter(|t| t.boot_id == *boot_id) else {
        return Some("the server was started anew meanwhile");
    };
    if known.progress.as_ref().is_some_and(|p| p.boot_id == *boot_id && p.phase == Phase::Held) {
        return Some("it was held, it did not fail");
    }
    if live.failed_since(tried.source, tried.at_ms) {
        return Some("this server failed to serve it");
    }
    together(state, live, name, now_ms).then_some("most nodes booted anew with it")
}

/// Whether most of the other nodes began a boot just now, and after this node's last one: the power
/// of all was gone.
fn together(state: &State, live: &Live, name: &str, now_ms: u64) -> bool {
    let Some(own) = live.tried.get(name) else { return false };
    let all = state.site.iter().flat_map(|s| &s.nodes).map(|n| n.name.as_str());
    let is_on = |n: &&str| live.tried.contains_key(*n) || state.nodes.get(*n).is_some_and(|k| k.generation > 0);
    let others = all.filter(|n| *n != name).filter(is_on);
    let anew = |n: &str| {
        // One that is held was to boot as well.
        let last = live.tried.get(n).map(|t| t.at_ms).max(live.paused.get(n).copied());
        last.is_some_and(|at| at > own.at_ms && now_ms.saturating_sub(at) <= TOGETHER_MS)
    };
    let (mut count, mut booted) = (0, 0);
    others.for_each(|n| (count, booted) = (count + 1, booted + usize::from(anew(n))));
    booted * 2 > count
}

/// Pauses that are over. One that began with a boot of most nodes was none of the node's making.
pub(super) fn resume(state: &State, live: &Live, now_ms: u64) -> Vec<Event> {
    let one = |node: &String| {
        let pause = state.nodes.get(node)?.attempts.pause.as_ref()?;
        // Counted anew from a server's start, like all that is known only in memory.
        let waited = now_ms.saturating_sub(*live.paused.get(node)?);
        let forgiven = waited <= TOGETHER_MS && together(state, live, node, now_ms);
        (forgiven || waited >= pause.secs * 1000).then(|| Event::BootsResumed { node: node.clone(), forgiven })
    };
    state.paused.iter().filter_map(one).collect()
}

/// What `kiln node show` says of boots that came to nothing.
pub fn words(state: &State, name: &str) -> Option<String> {
    let known = state.nodes.get(name)?;
    let Attempts { count, pause, retry, .. } = &known.attempts;
    match pause {
        Some(pause) => {
            let mins = pause.secs / 60;
            Some(match crowd(state, name, pause.rev) {
                None => format!("held for {mins} min: {}; next: kiln node unhold {name}", pause.reason),
                Some(system) => format!("not held, {system} needs it: {}", pause.reason),
            })
        }
        None if *retry => Some(format!("{count} in a row did not register; one more may try")),
        None if *count >= ATTEMPTS_MAX => Some(match crowd(state, name, u64::MAX) {
            Some(system) => format!("{count} in a row did not register yet; not held, {system} needs it"),
            None => format!("{count} in a row did not register yet"),
        }),
        None => None,
    }
}
