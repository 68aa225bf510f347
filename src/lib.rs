//! kiln bakes immutable images for the roles of a cloud, boots bare metal straight into them and
//! lets the nodes join their cluster by themselves.
//!
//! The modules below are listed in the order of their imports: a file imports only from its own
//! folder and from folders above it; see `ARCHITECTURE.md` for which files may do I/O.

/// From a locked recipe to an image.
pub mod build;
/// What can be wrong with recipes and overlays that can be read.
pub mod check;
/// The command line, one file a verb.
pub mod cli;
/// What a bake makes: ids, manifests, signatures, the store.
pub mod image;
/// kiln-node in the role: register, render, start systems, report.
pub mod join;
/// The event log: messages, state, decisions, storage.
pub mod ledger;
/// kiln-node in the initramfs: network, fetch, verify, mount, switch.
pub mod netroot;
/// File trees laid over installed packages, and their templates.
pub mod overlay;
/// What a booting machine is answered: DHCP, TFTP, HTTP.
pub mod pxe;
/// Recipes: raw TOML, valid recipe, lock; and the definitions of systems.
pub mod recipe;
/// Package repositories.
pub mod repo;
/// The site: one cluster, its networks and nodes.
pub mod site;
/// The narrow doors to the machine: clock, commands, files, network devices, HTTP client.
pub mod sys;
