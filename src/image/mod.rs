//! What a bake makes and what every other part meets in: ids, manifests, signatures, the store.

pub mod archive;
pub mod fetch;
pub mod id;
pub mod index;
pub mod key;
pub mod kmod;
pub mod manifest;
pub mod reference;
pub mod registry;
pub mod remote;
pub mod repository;
pub mod role;
pub mod sign;
pub mod signature;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
