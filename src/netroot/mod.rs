//! kiln-node in the initramfs: modules, network, fetch, verify, mount, state disk, switch to the role.

pub mod cmdline;
pub mod disk_choice;
