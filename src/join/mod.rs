//! kiln-node in the role: register, render, start systems in order, report.

pub mod agent;
pub mod drain;
pub mod keeping;
mod kexec;
pub mod node;
pub mod renewal;
pub mod settings;
