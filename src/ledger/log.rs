//! What a backend of the event log offers: append if the head is still the expected one, read
//! from a revision, wake on growth. The embedded default is [`super::sqlite`].

use super::event::{Event, Recorded};

/// Why an append did not happen. Nothing of it is stored then.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else appended.
    #[error("the log's head is {0}, not the expected one")]
    Moved(u64),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Called with the new head after each append.
pub type Wake = Box<dyn Fn(u64) + Send>;

pub trait Log: Send {
    /// Appends all of `events` durably or none of them, if the log's last revision is `head`.
    /// Returns the new head.
    fn append_if(&mut self, head: u64, at_ms: u64, events: &[Event]) -> Result<u64, AppendError>;

    /// At most `limit` events after revision `rev`, in order.
    fn read_after(&self, rev: u64, limit: usize) -> anyhow::Result<Vec<Recorded>>;

    /// Registers `wake` to be called after each append by anyone.
    fn watch(&mut self, wake: Wake);
}
