//! From a locked recipe to an image: planned as values, executed in private mounts, linted before
//! the image gets its id.

pub mod chroot;
pub mod family;
pub mod normalise;
pub mod squash;
pub mod users;
