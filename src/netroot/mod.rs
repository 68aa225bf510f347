//! kiln-node in the initramfs: modules, network, layers fetched and mounted, state disk, switch to the role.

pub mod cmdline;
pub mod disk;
pub mod disk_choice;
pub mod init;
pub mod kept;
pub mod memory;
pub mod modules;
pub mod mount;
pub mod network;
pub mod offline;
pub mod state;

/// This boot must not go on now: for people to see and the server to know; asked again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("held: {reason}")]
pub struct Held {
    pub reason: String,
    pub retry_secs: u64,
}
