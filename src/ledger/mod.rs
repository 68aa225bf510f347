//! The event log from which all that the server knows is folded. [`message`] is what nodes and
//! the server say to each other.

pub mod message;
