//! What a bake makes and what every other part meets in: ids, manifests, signatures, the store.

pub mod id;
pub mod kmod;
pub mod manifest;
pub mod role;
pub mod sign;
