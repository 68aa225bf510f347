//! `/metrics`: Prometheus' text format.

use super::message::status;
use crate::ledger::writer::Snapshot;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Counters by reason, nodes by status, the ledger's head.
pub fn render(counts: &[(&'static str, &'static str, u64)], now: &Snapshot, now_ms: u64) -> String {
    let mut out = String::new();
    let mut last = "";
    for (name, reason, count) in counts {
        if *name != last {
            let _ = writeln!(out, "# TYPE kiln_{name}_total counter");
            last = name;
        }
        let _ = writeln!(out, "kiln_{name}_total{{reason=\"{reason}\"}} {count}");
    }
    let mut by_status: BTreeMap<String, u64> = BTreeMap::new();
    for node in now.state.site.iter().flat_map(|s| &s.nodes) {
        *by_status.entry(status(&now.state, &now.live, &node.name, now_ms)).or_default() += 1;
    }
    let _ = writeln!(out, "# TYPE kiln_nodes gauge");
    for (status, count) in by_status {
        let _ = writeln!(out, "kiln_nodes{{status=\"{status}\"}} {count}");
    }
    let alarms: u64 = now.state.nodes.values().map(|n| n.alarms).sum();
    let _ = writeln!(out, "# TYPE kiln_alarms_total counter\nkiln_alarms_total {alarms}");
    let _ = writeln!(out, "# TYPE kiln_machines gauge\nkiln_machines {}", now.state.machines.len());
    let _ = writeln!(out, "# TYPE kiln_ledger_revision counter\nkiln_ledger_revision {}", now.state.rev);
    out
}
