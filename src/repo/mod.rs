//! Package repositories: what their indexes and packages say (pure), the host's apt and dnf that
//! resolve, signatures and digests that are verified, packages that are fetched into the cache,
//! repositories that are taken in.

pub mod apt;
pub mod changes;
pub mod deb;
pub mod deb822;
pub mod digest;
pub mod dnf;
pub mod family;
pub mod fetch;
pub mod finding;
pub mod gpgv;
pub mod href;
pub mod import;
pub mod index;
pub mod layout;
pub mod openpgp;
pub mod packages;
pub mod pin;
pub mod place;
pub mod release;
pub mod rpm;
pub mod sources;
pub mod unpack;
pub mod verify;
pub mod yum;
