//! DHCP for booting machines: authoritative or as a proxy beside another server. Bytes are
//! [`packet`]'s, decisions [`reply`]'s, addresses of parked machines [`lease`]'s, sockets [`server`]'s.

pub mod lease;
pub mod packet;
pub mod reply;
pub mod server;
