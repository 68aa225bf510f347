//! TFTP, read only: RFC 1350 with options (2347, 2348, 2349, 7440). Bytes are [`packet`]'s, one
//! transfer's course is [`transfer`]'s, sockets and threads are [`server`]'s.

pub mod packet;
pub mod server;
pub mod transfer;
