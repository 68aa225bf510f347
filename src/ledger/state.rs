//! What the log folds to. No clock, no health: those are in [`super::live`].

use super::breaker::{Attempts, Pause};
use super::cluster::Cluster;
use super::event::{Asked, Event, UsedImage};
use super::message::{Disk, Phase, SystemReport};
use super::order::{Begun, End, OrderState};
use super::rollout::RolloutState;
use crate::image::id::{Digest, ImageId};
use crate::recipe::system::Clustered;
use crate::site::{Mac, Node, Site, Uuid};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// All that the log says. Cheap to clone: its parts are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Revision of the last event folded; 0: an empty ledger.
    pub rev: u64,
    pub site: Option<Arc<Site>>,
    /// Tells clusters of the same name apart.
    pub site_id: String,
    /// By role.
    pub images: BTreeMap<String, Arc<RoleImage>>,
    /// By name. A node that left the site stays here: its key and its boots must not come back to life.
    pub nodes: BTreeMap<String, Arc<NodeState>>,
    pub machines: BTreeMap<Mac, Arc<MachineState>>,
    /// What the nodes form together.
    pub cluster: Cluster,
    /// Nodes that wait before their next boot.
    pub paused: BTreeSet<String>,
    /// Orders that have not come to their end: id -> node.
    pub open_orders: BTreeMap<String, String>,
    /// Removed nodes that are not forgotten by all yet: (system, step) that a member is to run.
    pub removed: BTreeMap<String, BTreeSet<(String, String)>>,
    /// The last one that was started.
    pub rollout: Option<Arc<RolloutState>>,
    /// Of every node's current certificate.
    fingerprints: BTreeMap<Digest, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleImage {
    pub current: UsedImage,
    /// The one before, which a rollback needs.
    pub previous: Option<UsedImage>,
}

/// What the log says of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Registers from a new boot id so far.
    pub generation: u64,
    /// Public half of the key on its state disk (or of the last volatile boot).
    pub key: Option<String>,
    /// The last register.
    pub session: Option<Session>,
    /// Boot ids that have registered: each does so for one generation only.
    pub boots: BTreeSet<String>,
    pub credential: Option<Credential>,
    /// The operator approved: the next register may bring a new key.
    pub approved: bool,
    /// Why the node must not boot.
    pub held: Option<String>,
    /// The last phase that a boot reported before its register (anyone can say so).
    pub progress: Option<Progress>,
    pub report: Option<LastReport>,
    /// Boots that have not come to a register.
    pub attempts: Attempts,
    /// The last disk that a boot was allowed to format.
    pub disk: Option<GrantedDisk>,
    /// What was last refused to whom, so that repeats are not stored.
    pub refused: Option<String>,
    pub alarms: u64,
    /// The generation that the operator said is off.
    pub fenced: Option<u64>,
    /// The last order that was given for it.
    pub order: Option<OrderState>,
    /// The operator's word: no new guests come.
    pub drained: bool,
    /// And those that run are moved to other nodes.
    pub migrates: bool,
    /// Revision of the last word on its guests; `None`: all is as it was before any.
    pub drain: Option<u64>,
    /// What an order made it boot instead of its role's image; until the role gets another one.
    pub image: Option<UsedImage>,
}

impl NodeState {
    /// The order that has not come to its end.
    pub fn open_order(&self) -> Option<&OrderState> {
        self.order.as_ref().filter(|o| o.is_open())
    }

    /// Whether its current generation is known to be off.
    pub fn is_fenced(&self) -> bool {
        self.fenced == Some(self.generation)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Revision of its register.
    pub rev: u64,
    pub boot_id: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub fingerprint: Digest,
    pub image: ImageId,
    pub version: String,
    /// It said that it shuts down.
    pub left: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub boot_id: String,
    pub hash: Digest,
    /// It is worth something only from here.
    pub address: Ipv4Addr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub rev: u64,
    pub boot_id: String,
    pub phase: Phase,
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReport {
    pub rev: u64,
    pub phase: Phase,
    pub detail: String,
    pub systems: Vec<SystemReport>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedDisk {
    pub boot_id: String,
    pub disk: Disk,
}

/// What the log says of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    pub uuid: Option<Uuid>,
    pub firmware: String,
    /// The node that the operator said it is.
    pub approved: Option<String>,
    /// The last answer to each question.
    pub answers: BTreeMap<Asked, LastAnswer>,
    /// Phases of boots while it is no node.
    pub progress: Option<Progress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// Revision of the event: the answer's id.
    pub rev: u64,
    pub node: Option<String>,
    pub address: Option<Ipv4Addr>,
    pub facts: BTreeMap<String, String>,
    pub rule: String,
    pub answer: String,
    pub image: Option<ImageId>,
}

/// Where a node's state lives, with the site's silence filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps<'a> {
    Volatile,
    Disk(&'a crate::site::DiskMatch),
}

impl State {
    /// The site's entry of a node.
    pub fn site_node(&self, name: &str) -> Option<&Node> {
        let nodes = &self.site.as_ref()?.nodes;
        nodes.binary_search_by(|n| n.name.as_str().cmp(name)).ok().map(|i| &nodes[i])
    }

    /// What the log says of a node; nothing yet is an empty state.
    pub fn node(&self, name: &str) -> Arc<NodeState> {
        self.nodes.get(name).cloned().unwrap_or_default()
    }

    /// The image that a role boots.
    pub fn image_of(&self, role: &str) -> Option<&UsedImage> {
        self.images.get(role).map(|i| &i.current)
    }

    /// The image that a node boots: its open order's, its own, or its role's.
    pub fn image_for(&self, node: &Node) -> Option<&UsedImage> {
        let known = self.nodes.get(&node.name);
        let own = known.and_then(|n| n.open_order().map(|o| &o.order.image).or(n.image.as_ref()));
        own.or_else(|| self.image_of(&node.role))
    }

    /// An open order by its id, with its node's name.
    pub fn order(&self, id: &str) -> Option<(&String, &OrderState)> {
        let node = self.open_orders.get(id)?;
        Some((node, self.nodes.get(node)?.open_order().filter(|o| o.order.id == id)?))
    }

    /// Whether a member is still to run this step because the node was removed.
    pub fn is_remembered(&self, node: &str, system: &str, step: &str) -> bool {
        self.removed.get(node).is_some_and(|left| left.iter().any(|(s, name)| s == system && name == step))
    }

    /// Where this node's state lives; an error is the reason why it must not boot.
    pub fn keeps<'a>(&self, node: &'a Node) -> Result<Keeps<'a>, String> {
        use crate::site::StateDisk::{Disk, Unset, Volatile};
        match &node.state {
            Volatile => Ok(Keeps::Volatile),
            Disk(disk) => Ok(Keeps::Disk(disk)),
            Unset if self.image_of(&node.role).is_some_and(|i| i.controller) => Err(format!(
                "role {} forms a cluster and node {} names no state disk; give it state = {{ disk = … }} or volatile = true",
                node.role, node.name
            )),
            Unset => Ok(Keeps::Volatile),
        }
    }

    /// The node whose current generation carries this certificate.
    pub fn by_fingerprint(&self, fingerprint: &Digest) -> Option<(&String, &Arc<NodeState>)> {
        self.nodes.get_key_value(self.fingerprints.get(fingerprint)?)
    }

    /// A system of a role that needs agreement, as the role's image has it.
    pub fn clustered(&self, role: &str, system: &str) -> Option<&Clustered> {
        self.image_of(role)?.clustered.iter().find(|c| c.name == system)
    }

    /// The site's nodes whose role has this system among those that need agreement, by name.
    pub fn carriers<'a>(&'a self, system: &str) -> impl Iterator<Item = &'a Node> {
        let roles: Vec<&String> = self.images.keys().filter(|role| self.clustered(role, system).is_some()).collect();
        self.site.iter().flat_map(|s| &s.nodes).filter(move |n| roles.contains(&&n.role))
    }

    /// Every system that one node seeds, with its description.
    pub fn seeded(&self) -> BTreeMap<&str, &Clustered> {
        let all = self.images.values().flat_map(|i| &i.current.clustered);
        all.filter(|c| c.dark().is_some()).map(|c| (c.name.as_str(), c)).collect()
    }

    /// Every image that must stay in the store: in use, the one before, running.
    pub fn images_in_use(&self) -> BTreeSet<ImageId> {
        let used = self.images.values().flat_map(|i| [Some(i.current.id), i.previous.as_ref().map(|p| p.id)]);
        let running = self.nodes.values().map(|n| n.session.as_ref().map(|s| s.image));
        let ordered = self.nodes.values().map(|n| n.open_order().map(|o| o.order.image.id));
        let own = self.nodes.values().map(|n| n.image.as_ref().map(|i| i.id));
        let rollout = self.rollout.iter().flat_map(|r| [Some(r.rollout.image.id), Some(r.rollout.before.id)]);
        used.chain(running).chain(ordered).chain(own).chain(rollout).flatten().collect()
    }

    /// Folds one event. Total: an event that names what is not there makes it.
    pub fn apply(&mut self, event: &Event) {
        self.rev += 1;
        match event {
            Event::SiteApplied { site, site_id } => {
                // A name that is in use again must not be forgotten.
                self.removed.retain(|name, _| !site.nodes.iter().any(|n| n.name == *name));
                self.site = Some(Arc::new((**site).clone()));
                self.site_id = site_id.clone();
            }
            Event::ImageUsed { role, image } => {
                let before = self.images.get(role).map(|i| i.current.clone());
                let kept = self.images.get(role).and_then(|i| i.previous.clone());
                let previous = before.filter(|b| b.id != image.id).or(kept);
                self.images.insert(role.clone(), Arc::new(RoleImage { current: image.clone(), previous }));
                self.forget_own_images(role);
                let nodes = self.site.iter().flat_map(|s| &s.nodes).filter(|n| n.role == *role);
                let names: Vec<String> = nodes.map(|n| n.name.clone()).collect();
                names.iter().for_each(|name| self.forget_attempts(name));
            }
            Event::MachineSeen { mac, uuid, firmware } => {
                let machine = self.machine_mut(*mac);
                machine.uuid = *uuid;
                machine.firmware = firmware.clone();
            }
            Event::Answered { mac, node, asked, address, facts, rule, answer, image } => {
                let rev = self.rev;
                let last = LastAnswer {
                    rev,
                    node: node.clone(),
                    address: *address,
                    facts: facts.clone(),
                    rule: rule.clone(),
                    answer: answer.clone(),
                    image: *image,
                };
                self.machine_mut(*mac).answers.insert(*asked, last);
            }
            Event::PhaseReached { mac, node, boot_id, phase, detail } => {
                let (boot_id, detail) = (boot_id.clone(), detail.clone());
                if let (Some(node), Phase::Failed) = (node, phase) {
                    self.node_mut(node).attempts.fail(&boot_id, &detail);
                }
                let progress = Some(Progress { rev: self.rev, boot_id, phase: *phase, detail });
                match node {
                    Some(node) => self.node_mut(node).progress = progress,
                    None => self.machine_mut(*mac).progress = progress,
                }
            }
            Event::NodeApproved { node, mac } => {
                self.machine_mut(*mac).approved = Some(node.clone());
                self.node_mut(node).approved = true;
                self.forget_attempts(node);
            }
            Event::NodeReplaced { node, macs, fresh } => {
                self.forget_cards(node, macs);
                self.node_mut(node).approved |= fresh;
                self.forget_attempts(node);
            }
            Event::Forgotten { node, system, step, .. } => {
                if let Some(left) = self.removed.get_mut(node) {
                    left.remove(&(system.clone(), step.clone()));
                }
                self.removed.retain(|_, left| !left.is_empty());
            }
            Event::NodeRemoved { node, forget } => {
                self.forget_cards(node, &[]);
                self.forget_attempts(node);
                if !forget.is_empty() {
                    self.removed.insert(node.clone(), forget.iter().cloned().collect());
                }
                let state = self.node_mut(node);
                (state.approved, state.credential, state.held, state.image) = (false, None, None, None);
                (state.drained, state.migrates, state.drain) = (false, false, None);
                // Whatever it still says is nobody's word.
                let session = state.session.take();
                session.map(|s| self.fingerprints.remove(&s.fingerprint));
                self.cluster.apply(event);
            }
            Event::OrderGiven { .. } | Event::OrderBooted { .. } | Event::OrderBegun { .. } => self.apply_order(event),
            Event::OrderEnded { .. } => self.apply_order(event),
            Event::RolloutStarted { rollout } => {
                self.rollout = Some(Arc::new(RolloutState::new((**rollout).clone())));
            }
            Event::RolloutPaused { .. } | Event::RolloutResumed {} | Event::RolloutEnded { .. } => {
                self.rollout.iter_mut().for_each(|r| Arc::make_mut(r).apply(event));
            }
            _ => self.apply_to_node(event),
        }
    }

    fn apply_to_node(&mut self, event: &Event) {
        let rev = self.rev;
        match event {
            Event::CredentialMinted { node, boot_id, hash, address, .. } => {
                self.node_mut(node).credential =
                    Some(Credential { boot_id: boot_id.clone(), hash: *hash, address: *address });
            }
            Event::DiskGranted { node, boot_id, disk } => {
                self.node_mut(node).disk = Some(GrantedDisk { boot_id: boot_id.clone(), disk: disk.clone() });
            }
            Event::DiskRefused { node, boot_id, disk, reason } => {
                self.node_mut(node).refused = Some(refused_key(boot_id, &disk.name, reason));
            }
            Event::BootCounted { node, boot_id, attempt, .. } => {
                self.paused.remove(node);
                let attempts = &mut self.node_mut(node).attempts;
                (attempts.count, attempts.boot_id) = (*attempt, boot_id.clone());
                (attempts.pause, attempts.retry) = (None, false);
            }
            Event::BootsPaused { node, secs, reason, .. } => {
                self.paused.insert(node.clone());
                self.node_mut(node).attempts.pause = Some(Pause { rev, secs: *secs, reason: reason.clone() });
            }
            Event::BootsResumed { node, forgiven } => {
                self.paused.remove(node);
                let attempts = &mut self.node_mut(node).attempts;
                (attempts.pause, attempts.retry) = (None, true);
                if *forgiven {
                    attempts.count = attempts.count.saturating_sub(1);
                    attempts.boot_id.clear();
                }
            }
            Event::Registered { node, generation, boot_id, mac, address, key, fingerprint, image, version, .. } => {
                self.forget_attempts(node);
                let state = self.node_mut(node);
                if state.boots.insert(boot_id.clone()) {
                    (state.credential, state.approved, state.report) = (None, false, None);
                }
                let before = state.session.as_ref().map(|s| s.fingerprint);
                if let Some(order) = state.order.as_mut().filter(|o| o.is_of(boot_id)) {
                    order.registered = Some(*generation);
                    order.made |= order.begun.is_some();
                }
                state.generation = *generation;
                state.key = Some(key.clone());
                state.refused = None;
                state.session = Some(Session {
                    rev,
                    boot_id: boot_id.clone(),
                    mac: *mac,
                    address: *address,
                    fingerprint: *fingerprint,
                    image: *image,
                    version: version.clone(),
                    left: false,
                });
                before.map(|old| self.fingerprints.remove(&old));
                self.fingerprints.insert(*fingerprint, node.clone());
            }
            Event::RegisterRefused { node, boot_id, address, reason, alarm, .. } => {
                let state = self.node_mut(node);
                state.refused = Some(refused_key(boot_id, &address.to_string(), reason));
                state.alarms += u64::from(*alarm);
            }
            Event::Reported { node, phase, detail, systems, leaving, .. } => {
                let state = self.node_mut(node);
                state.report =
                    Some(LastReport { rev, phase: *phase, detail: detail.clone(), systems: systems.clone() });
                if let Some(session) = &mut state.session {
                    session.left = *leaving;
                }
            }
            Event::NodeDrained { node, migrate, .. } => {
                let state = self.node_mut(node);
                (state.drained, state.migrates, state.drain) = (true, *migrate, Some(rev));
            }
            Event::NodeUndrained { node } => {
                let state = self.node_mut(node);
                (state.drained, state.migrates, state.drain) = (false, false, Some(rev));
            }
            Event::DrainUndone { node, number } => {
                self.node_mut(node).drain.take_if(|n| n == number);
            }
            Event::NodeHeld { node, reason } => self.node_mut(node).held = Some(reason.clone()),
            Event::NodeUnheld { node } => {
                self.node_mut(node).held = None;
                self.forget_attempts(node);
            }
            Event::NodeFenced { node, generation } => self.node_mut(node).fenced = Some(*generation),
            Event::Unvouched { .. } => {
                // What was sent before this moment may come late, and of what was granted since the
                // backup nothing is known: only who registers again is heard.
                self.fingerprints.clear();
                // Who was off then may have run since: the operator says so again.
                self.nodes.values_mut().filter(|n| n.fenced.is_some()).for_each(|n| Arc::make_mut(n).fenced = None);
                // What was ordered may have been done since: it destroys nothing a second time.
                for order in self.nodes.values_mut().filter(|n| n.open_order().is_some()) {
                    Arc::make_mut(order).order.iter_mut().for_each(|o| o.doubted = true);
                }
                self.cluster.apply(event);
            }
            _ => self.cluster.apply(event),
        }
    }

    fn apply_order(&mut self, event: &Event) {
        let rev = self.rev;
        match event {
            Event::OrderGiven { order, .. } => {
                self.open_orders.insert(order.id.clone(), order.node.clone());
                let ours = self.rollout.iter_mut().filter(|r| order.rollout.as_ref() == Some(&r.rollout.id));
                ours.for_each(|r| Arc::make_mut(r).given.push((order.node.clone(), order.id.clone())));
                self.forget_attempts(&order.node);
                let state = self.node_mut(&order.node);
                let known = OrderState::new((**order).clone(), rev);
                if known.drains() {
                    state.drain = Some(rev);
                }
                state.order = Some(known);
            }
            Event::OrderBooted { order, node, boot_id } => {
                if let Some(known) = self.order_mut(node, order) {
                    known.booted = Some(boot_id.clone());
                }
            }
            Event::OrderBegun { order, node, boot_id, disk, .. } => {
                if let Some(known) = self.order_mut(node, order) {
                    known.begun = Some(Begun { boot_id: boot_id.clone(), disk: disk.clone() });
                }
            }
            Event::OrderEnded { order, node, end, reason } => {
                self.open_orders.remove(order);
                self.forget_attempts(node);
                let role = self.site_node(node).map(|n| n.role.clone()).unwrap_or_default();
                let current = self.image_of(&role).map(|i| i.id);
                let state = self.node_mut(node);
                let Some(known) = state.order.as_mut().filter(|o| o.order.id == *order) else { return };
                (known.ended, known.reason) = (Some(*end), reason.clone());
                if known.drains() {
                    state.drain = Some(rev);
                }
                if *end == End::Ready {
                    let image = Some(known.order.image.clone());
                    state.image = image.filter(|i| Some(i.id) != current);
                }
            }
            _ => {}
        }
    }

    fn order_mut(&mut self, node: &str, id: &str) -> Option<&mut OrderState> {
        self.node_mut(node).order.as_mut().filter(|o| o.order.id == id)
    }

    /// A role's new image is that of all its nodes.
    fn forget_own_images(&mut self, role: &str) {
        let own = self.nodes.iter().filter(|(_, n)| n.image.is_some()).map(|(name, _)| name.clone());
        for name in own.collect::<Vec<_>>() {
            if self.site_node(&name).is_some_and(|n| n.role == role) {
                self.node_mut(&name).image = None;
            }
        }
    }

    /// Its next boot is the first one again.
    fn forget_attempts(&mut self, node: &str) {
        self.paused.remove(node);
        if self.nodes.get(node).is_some_and(|n| n.attempts != Attempts::default()) {
            self.node_mut(node).attempts = Attempts::default();
        }
    }

    /// Of the cards that the operator once said are this node's only `kept` are from now on.
    fn forget_cards(&mut self, node: &str, kept: &[Mac]) {
        let ours =
            |(mac, m): &(&Mac, &mut Arc<MachineState>)| m.approved.as_deref() == Some(node) && !kept.contains(mac);
        self.machines.iter_mut().filter(ours).for_each(|(_, m)| Arc::make_mut(m).approved = None);
    }

    fn node_mut(&mut self, name: &str) -> &mut NodeState {
        Arc::make_mut(self.nodes.entry(name.to_string()).or_default())
    }

    fn machine_mut(&mut self, mac: Mac) -> &mut MachineState {
        Arc::make_mut(self.machines.entry(mac).or_default())
    }
}

/// What tells one refusal from another.
pub fn refused_key(boot_id: &str, where_from: &str, reason: &str) -> String {
    format!("{boot_id} {where_from} {reason}")
}
