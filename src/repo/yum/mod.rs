//! Yum metadata: read as streams of bounded memory, written for repositories that have none.

pub mod entries;
pub mod filelists;
pub mod primary;
pub mod repomd;
pub mod solve;
pub mod write;
pub mod xml;
