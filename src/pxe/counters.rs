//! Counters by reason, for `/metrics`. Reasons are fixed words, never what a client sent.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// What happened how often: (name, reason) -> count.
#[derive(Debug, Default)]
pub struct Counters {
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Counters {
    /// Counts one.
    pub fn add(&self, name: &'static str, reason: &'static str) {
        self.add_many(name, reason, 1);
    }

    pub fn add_many(&self, name: &'static str, reason: &'static str, count: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        *counts.entry((name, reason)).or_default() += count;
    }

    /// All of them, sorted.
    pub fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        counts.iter().map(|((name, reason), count)| (*name, *reason, *count)).collect()
    }
}
