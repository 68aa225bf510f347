//! What a build tells while it works.

/// Where a part of the build stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Start,
    Progress,
    Done,
    Cached,
    Failed,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Start => "start",
            State::Progress => "progress",
            State::Done => "done",
            State::Cached => "cached",
            State::Failed => "failed",
        }
    }
}

/// Takes what a build tells; shown on a terminal or written as events.
pub trait Report {
    /// `stage` names the part (`fetch`, a stage's name, `initramfs`, `role`, `lint`, `commit`).
    fn event(&self, stage: &str, state: State, detail: &str);
}
