//! `POST /v1/disk`: who may format a blank disk. And what it shares with an order's wipe
//! (`POST /v1/orders/<id>/begin`): whether the node's own boot asks, and about the disk that the site names.

use super::boot::presented;
use super::{Refusal, Why};
use crate::ledger::event::Event;
use crate::ledger::message::{BLANK, Disk, DiskRequest};
use crate::ledger::state::{Keeps, NodeState, State, refused_key};
use crate::ledger::text;
use crate::site::Node;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A question about a disk, from the boot that has the node's credential.
pub(super) struct Asked<'a> {
    state: &'a State,
    request: &'a DiskRequest,
    pub node: &'a Node,
    pub known: Arc<NodeState>,
    /// As it may be written down.
    pub disk: Disk,
}

impl<'a> Asked<'a> {
    pub fn by(state: &'a State, request: &'a DiskRequest, source: Ipv4Addr) -> Result<Asked<'a>, Refusal> {
        let Some(node) = state.site_node(&request.node) else {
            return Err(Refusal::new(Why::NotFound, format!("no node {:?} in this site", text::word(&request.node))));
        };
        let known = state.node(&node.name);
        // Without the credential nothing is written down: anyone could have asked.
        presented(known.credential.as_ref(), &request.boot_id, request.credential.as_deref(), source)
            .map_err(|reason| Refusal::new(Why::Refused, format!("node {} shows {reason}", node.name)))?;
        let disk = Disk {
            name: text::word(&request.disk.name),
            serial: request.disk.serial.as_deref().map(text::word),
            wwn: request.disk.wwn.as_deref().map(text::word),
            size: request.disk.size,
        };
        Ok(Asked { state, request, node, known, disk })
    }

    /// A refusal, written down when this boot has not just heard it.
    pub fn refused(&self, reason: impl Into<String>) -> Refusal {
        let reason = reason.into();
        let new = self.known.refused.as_deref() != Some(&refused_key(&self.request.boot_id, &self.disk.name, &reason));
        let (node, boot_id) = (self.node.name.clone(), self.request.boot_id.clone());
        let event = Event::DiskRefused { node, boot_id, disk: self.disk.clone(), reason: reason.clone() };
        Refusal::new(Why::Refused, reason).with(new.then_some(event))
    }

    /// Whether it is the disk that the site names for the node.
    pub fn is_named(&self) -> Result<(), Refusal> {
        let (node, disk) = (&self.node.name, &self.request.disk);
        match self.state.keeps(self.node) {
            Ok(Keeps::Disk(wanted)) if wanted.fits(disk.serial.as_deref(), disk.wwn.as_deref(), disk.size) => Ok(()),
            Ok(Keeps::Disk(_)) => {
                let reason = format!("disk {} is not the one that the site names for node {node}", self.disk.name);
                Err(self.refused(reason))
            }
            Ok(Keeps::Volatile) => Err(self.refused(format!("node {node} keeps its state in memory"))),
            Err(reason) => Err(self.refused(reason)),
        }
    }
}

pub(super) fn disk(state: &State, request: &DiskRequest, source: Ipv4Addr) -> Result<Vec<Event>, Refusal> {
    let asked = Asked::by(state, request, source)?;
    asked.is_named()?;
    if request.found != BLANK {
        let found = text::clean(&request.found, 200);
        return Err(asked.refused(format!("disk {} is not blank: {found}", asked.disk.name)));
    }
    let Asked { node, known, disk, .. } = asked;
    let granted = known.disk.as_ref().is_some_and(|g| g.boot_id == request.boot_id && g.disk == disk);
    let event = Event::DiskGranted { node: node.name.clone(), boot_id: request.boot_id.clone(), disk };
    Ok(if granted { Vec::new() } else { vec![event] })
}
