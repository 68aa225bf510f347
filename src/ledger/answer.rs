//! What a node is answered, from the state after its command was decided.

use super::decide::credential_of;
use super::message::{BootGo, BootOrder, BootRequest, StateOrder};
use super::state::{Keeps, State};
use std::collections::BTreeMap;

/// The answer to a boot that was let through as `node`: with the credential if it was minted to this boot.
pub fn boot(state: &State, node: &str, request: &BootRequest, credential: &str, now_ms: u64) -> Option<BootGo> {
    let site = state.site.as_ref()?;
    let entry = state.site_node(node)?;
    let known = state.node(node);
    let minted = known.credential.clone();
    let order = known.order.as_ref().filter(|o| o.is_of(&request.boot_id)).map(|o| &o.order);
    let ours = minted.is_some_and(|c| c.boot_id == request.boot_id && c.hash == credential_of(credential));
    Some(BootGo {
        node: node.to_string(),
        role: entry.role.clone(),
        cluster: site.cluster.name.clone(),
        site_id: state.site_id.clone(),
        credential: ours.then(|| credential.to_string()),
        state: match state.keeps(entry).ok()? {
            Keeps::Volatile => StateOrder::Volatile,
            Keeps::Disk(disk) => StateOrder::Disk { disk: disk.clone() },
        },
        order: order.map(|o| BootOrder { id: o.id.clone(), disks: o.disks }),
        now_ms,
    })
}

/// The names of the certificates that a node's systems may receive.
pub fn certificates<'a>(state: &'a State, node: &str) -> &'a [String] {
    let image = state.site_node(node).and_then(|n| state.image_for(n));
    image.map(|i| i.certificates.as_slice()).unwrap_or_default()
}

/// The secrets that a node's systems may receive, of those that the server has.
pub fn secrets(state: &State, node: &str, all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let Some(image) = state.site_node(node).and_then(|n| state.image_for(n)) else { return BTreeMap::new() };
    image.secrets.iter().filter_map(|name| Some((name.clone(), all.get(name)?.clone()))).collect()
}
