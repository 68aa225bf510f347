//! Distribution families: how the packages of a stage are installed into a tree.

pub mod apt;
