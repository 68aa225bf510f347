//! What a booting machine is answered: DHCP, TFTP, HTTP. Who gets what is decided outside of the
//! protocols; the protocols only carry it.

pub mod admin;
pub mod api;
pub mod choose;
pub mod counters;
pub mod http;
pub mod loaders;
pub mod script;
