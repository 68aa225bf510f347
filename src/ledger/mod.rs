//! The event log from which all that the server knows is folded. [`message`] is what nodes and
//! the server say to each other; [`event`] what is stored; [`state`] what it folds to; [`decide`]
//! the only place where a command becomes events; [`live`] what is known only in memory.

pub mod answer;
pub mod backup;
pub mod breaker;
pub mod chain;
pub mod cluster;
pub mod decide;
pub mod event;
pub mod explain;
pub mod identify;
pub mod kept;
pub mod live;
pub mod log;
pub mod message;
pub mod order;
pub mod rollout;
pub mod sqlite;
pub mod state;
#[cfg(test)]
mod tests;
pub mod text;
pub mod timeline;
pub mod witness;
pub mod writer;

pub use decide::{Command, Refusal, decide};
pub use event::{Event, Recorded};
pub use live::Live;
pub use state::State;
