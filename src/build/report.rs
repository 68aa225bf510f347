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

    /// The state of a [`State::word`].
    pub fn of(word: &str) -> Option<State> {
        const ALL: [State; 5] = [State::Start, State::Progress, State::Done, State::Cached, State::Failed];
        ALL.into_iter().find(|state| state.word() == word)
    }
}

/// Takes what a build tells; shown on a terminal or written as events.
pub trait Report {
    /// `stage` names the part (`fetch`, a stage's name, `initramfs`, `role`, `lint`, `commit`).
    fn event(&self, stage: &str, state: State, detail: &str);
}
