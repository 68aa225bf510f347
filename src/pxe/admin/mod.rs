//! The operator's side: a unix socket with the JSON API behind the verbs, and a loopback port with
//! health and metrics. Never reachable where nodes are.

pub mod message;
pub mod metrics;
pub mod server;
