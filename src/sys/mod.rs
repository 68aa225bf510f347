//! The narrow doors to the machine. Every file here may do I/O; nothing here decides anything.

pub mod clock;
pub mod command;
pub mod files;
pub mod udp;
