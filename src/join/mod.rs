//! kiln-node in the role: register, render, start systems in order, report.
pub mod node;
