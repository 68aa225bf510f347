//! From a locked recipe to an image: planned as values, executed in private mounts, linted before
//! the image gets its id.

pub mod chroot;
pub mod compare;
pub mod diff;
pub mod drivers;
pub mod execute;
pub mod family;
pub mod initramfs;
pub mod lint;
pub mod modinfo;
pub mod normalise;
pub mod plan;
pub mod preload;
pub mod report;
pub mod role;
pub mod squash;
pub mod subids;
pub mod tree;
pub mod user_namespace;
pub mod users;
