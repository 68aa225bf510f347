//! The nodes' plain HTTP side: scripts, blobs, manifests, loaders, phases. Bytes that anyone on the
//! network may read; nothing secret passes here.

pub mod range;
pub mod route;
pub mod server;
