//! Package repositories: what their indexes say (pure), the host's apt that resolves, signatures
//! and digests that are verified, packages that are fetched into the cache.

pub mod apt;
pub mod changes;
pub mod deb822;
pub mod fetch;
pub mod packages;
pub mod release;
pub mod sources;
pub mod verify;
