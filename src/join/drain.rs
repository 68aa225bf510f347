//! What the server says of this node's guests and how far it is: a pure state machine with time
//! passed in. One try at a time, the next one after a growing pause; [`super::agent`] runs the scripts.
//! Moving guests is not tried again after a failure: the server decides what is to become of the others.

use super::node::{Outcome, words};
use crate::ledger::message::{Drain, DrainReport, DrainTask};

/// Pause after the first try that is not through; doubled with each further one …
pub const RETRY_FIRST_MS: u64 = 2_000;
/// … up to this: an order waits for it.
pub const RETRY_MAX_MS: u64 = 15_000;

#[derive(Debug, Default)]
pub struct Drains {
    task: Option<DrainTask>,
    running: bool,
    done: bool,
    failed: bool,
    detail: String,
    tries: u32,
    due_ms: u64,
}

impl Drains {
    /// The server's word; a new one is followed at once.
    pub fn tell(&mut self, task: Option<DrainTask>, now_ms: u64) {
        if self.task != task {
            *self = Drains { task, running: self.running, due_ms: now_ms, ..Drains::default() };
        }
    }

    /// What is to be tried now; it runs from then on.
    pub fn due(&mut self, now_ms: u64) -> Option<DrainTask> {
        let task = self.task.clone().filter(|_| self.waits() && now_ms >= self.due_ms)?;
        self.running = true;
        Some(task)
    }

    /// When, after now, [`Drains::due`] may have something to do although no try ended.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        (self.waits() && self.due_ms > now_ms).then_some(self.due_ms)
    }

    /// For its next try.
    fn waits(&self) -> bool {
        self.task.is_some() && !self.running && !self.done && !self.failed
    }

    /// A try for this task ended; that of an older one says nothing of this one.
    pub fn ended(&mut self, task: &DrainTask, outcome: Outcome, now_ms: u64) {
        self.running = false;
        if self.task.as_ref() != Some(task) {
            return;
        }
        match outcome {
            Outcome::Done(_) => (self.done, self.detail) = (true, String::new()),
            other => {
                self.failed = task.guests == Drain::Migrate && matches!(other, Outcome::Failed(_));
                self.detail = words(&other);
                self.due_ms = now_ms + (RETRY_FIRST_MS << self.tries.min(16)).min(RETRY_MAX_MS);
                self.tries = self.tries.saturating_add(1);
            }
        }
    }

    pub fn report(&self) -> Option<DrainReport> {
        let task = self.task.as_ref()?;
        let (number, done, failed) = (task.number, self.done, self.failed);
        Some(DrainReport { number, done, failed, detail: self.detail.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u64, guests: Drain) -> DrainTask {
        DrainTask { number, guests }
    }

    #[test]
    fn a_task_is_tried_until_it_is_done_with_growing_pauses() {
        let (mut drains, stop) = (Drains::default(), task(7, Drain::Stop));
        assert_eq!((drains.due(0), drains.report()), (None, None));
        let mut now = 100;
        drains.tell(Some(stop.clone()), now);
        for pause in [2_000, 4_000, 8_000, 15_000, 15_000] {
            assert_eq!(drains.due(now), Some(stop.clone()), "at {now}");
            assert_eq!(drains.due(now), None, "one try at a time");
            drains.tell(Some(stop.clone()), now);
            drains.ended(&stop, Outcome::Later("web still runs".into()), now);
            assert_eq!(drains.report().unwrap().detail, "web still runs");
            assert_eq!((drains.next_ms(now), drains.due(now + pause - 1)), (Some(now + pause), None));
            now += pause;
        }
        drains.due(now);
        drains.ended(&stop, Outcome::Done("ok".into()), now);
        let done = DrainReport { number: 7, done: true, failed: false, detail: String::new() };
        assert_eq!(drains.report(), Some(done));
        assert_eq!((drains.next_ms(now), drains.due(now + 1_000_000)), (None, None));
    }

    #[test]
    fn a_guest_that_cannot_be_moved_ends_it_until_a_new_word() {
        let (mut drains, first, again) = (Drains::default(), task(7, Drain::Migrate), task(9, Drain::Migrate));
        drains.tell(Some(first.clone()), 0);
        drains.due(0);
        drains.ended(&first, Outcome::Later("web is told to move".into()), 0);
        assert_eq!(drains.due(RETRY_FIRST_MS), Some(first.clone()));
        drains.ended(&first, Outcome::Failed("guest web cannot be moved".into()), 3_000);
        let failed = DrainReport { number: 7, done: false, failed: true, detail: "guest web cannot be moved".into() };
        assert_eq!(drains.report(), Some(failed));
        drains.tell(Some(first), 4_000);
        assert_eq!((drains.next_ms(4_000), drains.due(1_000_000)), (None, None));
        drains.tell(Some(again.clone()), 5_000);
        assert_eq!(drains.due(5_000), Some(again));
        assert_eq!(drains.report().map(|r| (r.number, r.failed)), Some((9, false)));
    }

    #[test]
    fn a_new_word_waits_for_the_try_that_runs_and_is_not_ended_by_it() {
        let (mut drains, stop, back) = (Drains::default(), task(7, Drain::Stop), task(9, Drain::Back));
        drains.tell(Some(stop.clone()), 0);
        drains.due(0);
        drains.tell(Some(back.clone()), 1);
        assert_eq!(drains.due(1), None, "two scripts at once would undo one another");
        drains.ended(&stop, Outcome::Done("ok".into()), 2);
        assert_eq!(drains.report().map(|r| (r.number, r.done)), Some((9, false)));
        assert_eq!(drains.due(2), Some(back.clone()));
        drains.ended(&back, Outcome::Failed("nova is away".into()), 3);
        assert_eq!(drains.next_ms(3), Some(3 + RETRY_FIRST_MS));
        drains.tell(None, 4);
        assert_eq!((drains.due(10_000), drains.report()), (None, None));
    }
}
