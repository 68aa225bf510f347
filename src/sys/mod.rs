//! The narrow doors to the machine. Every file here may do I/O; nothing here decides anything.

pub mod clock;
pub mod command;
pub mod console;
pub mod files;
pub mod http;
pub mod json;
pub mod netdev;
pub mod tls;
pub mod udp;
