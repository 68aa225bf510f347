//! The server: production code, and the ways to damage it that a test plants.

use kiln::image::id::Digest;
use kiln::ledger::decide::{self, decide};
use kiln::ledger::message::{ClaimRequest, PeerTask, RegisterRequest, Verdict};
use kiln::ledger::state::State;
use kiln::ledger::{Command, Event, Live, Refusal};
use kiln::site::Mac;
use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A rule that a test takes out, to see that the explorer notices. None of it is in the product:
/// the rule's input is changed before the product sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    None,
    /// A cluster may be made without `form`, whatever is doubtful about the ledger.
    NoGenesis,
    /// Who is silent counts as fenced.
    SilentIsOff,
    /// A message counts whatever generation it is of.
    AnyGeneration,
    /// Every order is given as if the operator had forced it, and given up all data.
    NoGate,
    /// A disk that an order wiped does not bear its mark.
    NoMark,
}

#[derive(Clone)]
pub struct Server {
    pub state: Arc<State>,
    pub live: Arc<Live>,
    pub mutation: Mutation,
}

/// A register as the server sees it.
pub struct Registering {
    pub node: String,
    pub number: usize,
    pub boot: u32,
    pub key: u32,
    pub last_generation: u64,
    /// The generation of an earlier certificate that the node still has.
    pub shown: Option<u64>,
    pub registers: u32,
}

impl Registering {
    /// Of the certificate that this register brings.
    pub fn print(&self, generation: u64) -> Digest {
        let mut bytes = [0u8; 32];
        bytes[..8].copy_from_slice(&(self.number as u64).to_be_bytes());
        bytes[8..12].copy_from_slice(&self.boot.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.registers.to_be_bytes());
        bytes[16..24].copy_from_slice(&generation.to_be_bytes());
        Digest(bytes)
    }

    fn boot_id(&self) -> String {
        super::machine::Machine::boot_id(self.number, self.boot)
    }

    fn key(&self) -> String {
        format!("key {} of {}", self.key, self.node)
    }

    fn request(&self) -> RegisterRequest {
        RegisterRequest {
            node: self.node.clone(),
            mac: Mac([0; 6]),
            boot_id: self.boot_id(),
            image: Digest([7; 32]),
            version: String::new(),
            credential: None,
            key: self.key(),
            signature: String::new(),
            csr: String::new(),
            last_generation: self.last_generation,
            certificates: Default::default(),
        }
    }
}

impl Server {
    pub fn new() -> Server {
        Server { state: Arc::default(), live: Arc::new(Live::new(0)), mutation: Mutation::None }
    }

    /// What the writer does with a command.
    pub fn command(&mut self, command: &Command, now: u64) -> Result<Vec<Event>, Refusal> {
        let command = self.mutate_command(command);
        let result = decide(&self.fed(&command, now), &self.live, &command, now);
        let caused = match &result {
            Ok(events) => events,
            Err(refusal) => &refusal.events,
        };
        self.fold(caused);
        if result.is_ok() {
            Arc::make_mut(&mut self.live).note(&command, &self.state, now);
        }
        result
    }

    fn fold(&mut self, events: &[Event]) {
        if !events.is_empty() {
            let state = Arc::make_mut(&mut self.state);
            events.iter().for_each(|event| state.apply(event));
        }
    }

    /// What the API answers a claim that was decided.
    pub fn verdict(&self, print: &Digest, request: &ClaimRequest, now: u64) -> Result<Verdict, Refusal> {
        let command = Command::Claim { fingerprint: *print, request: request.clone() };
        decide::verdict(&self.fed(&command, now), &self.live, print, request, now)
    }

    /// What comes with the answer of a report.
    pub fn peers(&self, node: &str, now: u64) -> Vec<PeerTask> {
        decide::peers(&self.state, &self.live, node, now)
    }

    /// The same.
    pub fn stand_down(&self, node: &str, now: u64) -> Vec<String> {
        decide::stand_down(&self.state, &self.live, node, now)
    }

    /// The same.
    pub fn restart_for(&self, node: &str, now: u64) -> Option<String> {
        decide::restart(&self.state, &self.live, node, now).and_then(|r| r.ok())
    }

    /// The server's process is started again.
    pub fn restart(&mut self, doubt: Option<&str>, started: u64, now: u64) {
        self.live = Arc::new(Live::new(started));
        let _ = self.command(&Command::Start { doubt: doubt.map(String::from) }, now);
    }

    pub fn truly_fenced(&self, node: &str) -> bool {
        self.state.node(node).is_fenced()
    }

    /// `decide::register` without its signatures, which are dear: who holds the key or shows a
    /// certificate gets in, anyone else with the operator's approval once the session is dead.
    /// `explore.rs` compares it with the real one.
    pub fn register(&mut self, asked: &Registering, now: u64) -> Option<u64> {
        let known = self.state.node(&asked.node);
        let knows_key = known.key.as_deref() == Some(asked.key().as_str());
        let boot_id = asked.boot_id();
        let generation = if known.boots.contains(&boot_id) {
            let current = known.session.as_ref().is_some_and(|s| s.boot_id == boot_id);
            if !current || known.is_fenced() || !knows_key {
                return None;
            }
            known.generation
        } else {
            let by_shown = known.key.is_none() && asked.shown.is_some();
            if !knows_key && !by_shown && self.live.session_lives(&self.state, &asked.node, now) {
                return None;
            }
            // The certificate itself is shown only to a server that does not know the key.
            let shown = asked.shown.filter(|_| by_shown).unwrap_or(0);
            known.generation.max(asked.last_generation).max(shown) + 1
        };
        let behind = (generation > known.generation + 1).then(|| Event::Behind {
            node: asked.node.clone(),
            reason: format!("its last generation was {}, the ledger knows {}", generation - 1, known.generation),
        });
        let registered = Event::Registered {
            node: asked.node.clone(),
            generation,
            boot_id,
            mac: Mac([0; 6]),
            address: Ipv4Addr::UNSPECIFIED,
            key: asked.key(),
            fingerprint: asked.print(generation),
            image: Digest([7; 32]),
            version: String::new(),
            by_credential: !knows_key && asked.shown.is_none(),
        };
        let behind = behind.filter(|_| self.state.cluster.behind.is_none());
        let events: Vec<Event> = [registered].into_iter().chain(behind).collect();
        self.fold(&events);
        let request = Box::new(asked.request());
        let command = Command::Register { request, source: Ipv4Addr::UNSPECIFIED, issued: None, shown: None };
        Arc::make_mut(&mut self.live).note(&command, &self.state, now);
        Some(generation)
    }

    /// The state that a damaged server would decide on.
    fn fed(&self, command: &Command, now: u64) -> Cow<'_, State> {
        if !matches!(command, Command::Claim { .. }) {
            return Cow::Borrowed(&self.state);
        }
        let mut state = (*self.state).clone();
        match self.mutation {
            Mutation::NoGenesis => {
                let cluster = &mut state.cluster;
                (cluster.genesis, cluster.unvouched, cluster.behind) = (true, None, None);
            }
            Mutation::SilentIsOff => {
                let silent: Vec<String> =
                    state.nodes.keys().filter(|n| !self.live.session_lives(&self.state, n, now)).cloned().collect();
                for name in silent {
                    let node = Arc::make_mut(state.nodes.get_mut(&name).expect("it is there"));
                    node.fenced = Some(node.generation);
                }
            }
            Mutation::None | Mutation::AnyGeneration | Mutation::NoGate | Mutation::NoMark => {
                return Cow::Borrowed(&self.state);
            }
        }
        Cow::Owned(state)
    }

    fn mutate_command<'a>(&self, command: &'a Command) -> Cow<'a, Command> {
        if !matches!(self.mutation, Mutation::AnyGeneration | Mutation::NoGate) {
            return Cow::Borrowed(command);
        }
        let mut command = command.clone();
        if let (Mutation::NoGate, Command::Reimage(order)) = (self.mutation, &mut command) {
            order.risk.force = Some("planted".into());
            order.risk.destroy = self.state.seeded().keys().map(|s| s.to_string()).collect();
        }
        if self.mutation != Mutation::AnyGeneration {
            return Cow::Owned(command);
        }
        if let Command::Claim { fingerprint, .. }
        | Command::Report { fingerprint, .. }
        | Command::Done { fingerprint, .. } = &mut command
            && self.state.by_fingerprint(fingerprint).is_none()
        {
            let number = u64::from_be_bytes(fingerprint.0[..8].try_into().expect("8 bytes"));
            let of_node = |n: &&std::sync::Arc<kiln::ledger::state::NodeState>| {
                n.session.as_ref().is_some_and(|s| s.fingerprint.0[..8] == number.to_be_bytes())
            };
            if let Some(session) = self.state.nodes.values().find(of_node).and_then(|n| n.session.as_ref()) {
                *fingerprint = session.fingerprint;
            }
        }
        Cow::Owned(command)
    }
}
