//! The nodes' TLS side: `/v1/boot`, `/v1/disk`, `/v1/register`, `/v1/report`. What is decided there
//! is the ledger's; this carries it, issues certificates and knows who is at the other end.

pub mod certificate;
pub mod csr;
pub mod server;
