//! A small world around the production protocol: the server is `ledger::decide` and `State::apply`,
//! the nodes are `join::node::Node`. Only what those talk to is made up here: disks, processes of
//! clustered systems, a network. `explore.rs` takes every path through it, `simulate.rs` long random
//! ones.
//!
//! A clustered system is what Galera is, no more: data are blank or (lineage, seqno); running
//! members form components, one of which may be primary (a majority of its last view); a change of
//! the view is a write; a crashed member's data stay behind; a plain start joins running members or
//! brings the last view back once all of it is started, and never makes a cluster.
#![allow(dead_code, reason = "each of the two tests uses its part")]

pub mod machine;
pub mod process;
pub mod server;

use kiln::image::id::Digest;
use kiln::join::node::{Action, Job, Outcome, peer_told};
use kiln::ledger::answer;
use kiln::ledger::decide::Boot;
use kiln::ledger::decide::breaker::PAUSE_MAX_SECS;
use kiln::ledger::event::UsedImage;
use kiln::ledger::message::{
    BLANK, BootRequest, Data, Disk, DiskRequest, Disks, Phase, PhaseReport, Report, SESSION_DEAD_SECS, Verdict,
};
use kiln::ledger::state::State;
use kiln::ledger::{Command, Event, Refusal};
use kiln::recipe::System;
use kiln::recipe::system::{Formation, FormationKind, Health, Scope, Step};
use kiln::site::{Cluster, DiskMatch, Mac, Network, Node as SiteNode, Site, StateDisk};
use machine::Machine;
use process::Process;
use server::Server;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A role: its name, its systems, how many nodes have it.
pub struct Role {
    pub name: &'static str,
    pub systems: Vec<System>,
    pub nodes: usize,
}

pub fn system(name: &str, after: &[&str], dark: Option<kiln::recipe::system::Dark>, steps: Vec<Step>) -> System {
    System {
        name: name.into(),
        after: after.iter().map(|a| a.to_string()).collect(),
        packages: vec![],
        units: vec![format!("{name}.service")],
        ports: vec![],
        secrets: vec![],
        certificates: vec![],
        state: vec![],
        keeps: None,
        formation: dark.map(|dark| Formation { kind: FormationKind::Seeded, dark: Some(dark) }),
        steps,
        health: Health::default(),
    }
}

pub fn step(name: &str, scope: Scope, needs: &[&str], writes: Option<&str>) -> Step {
    Step {
        name: name.into(),
        scope,
        writes: writes.map(String::from),
        needs: needs.iter().map(|n| n.to_string()).collect(),
        timeout: None,
    }
}

/// All that exists. Cheap to clone: its parts are shared.
#[derive(Clone)]
pub struct World {
    pub server: Server,
    /// By the order of `names`.
    pub machines: Vec<Arc<Machine>>,
    /// The processes of each seeded system, by the order of `seeded`.
    pub processes: Arc<Vec<Process>>,
    pub fixed: Arc<Fixed>,
    /// Cluster steps done in what no lineage is known of: `system/step`.
    pub done: Arc<BTreeSet<String>>,
    /// A message on its way: (sender, its generation, what it says).
    pub late: Vec<Late>,
    /// How often each order has wiped a disk.
    pub wiped: Vec<(String, u8)>,
    /// Old messages may change something: what comes of it is to be seen.
    pub lax: bool,
    /// What must never happen, happened.
    pub violation: Option<String>,
}

#[derive(Clone)]
pub struct Late {
    pub node: usize,
    pub generation: u64,
    pub command: Arc<Command>,
}

/// What never changes.
pub struct Fixed {
    pub names: Vec<String>,
    pub roles: Vec<usize>,
    pub systems: Vec<Vec<System>>,
    /// Names of the systems that one node seeds.
    pub seeded: Vec<String>,
}

impl Fixed {
    pub fn seeded(&self, system: &str) -> Option<usize> {
        self.seeded.iter().position(|s| s == system)
    }

    pub fn systems_of(&self, node: usize) -> &[System] {
        &self.systems[self.roles[node]]
    }

    pub fn index(&self, name: &str) -> usize {
        self.names.iter().position(|n| n == name).expect("a node of the world")
    }
}

/// Where the power goes during a boot by an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// The wipe was let through, and did not begin.
    Granted,
    /// The disk is made and marked, and nothing has registered.
    Wiped,
}

/// How a message fares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Fate {
    Good,
    /// It arrives, its answer does not.
    AnswerLost,
    /// It arrives later, if ever; the sender gives up.
    Delayed,
    /// It arrives now, and once more later.
    Twice,
    /// It never arrives.
    Lost,
}

impl World {
    pub fn new(roles: &[Role], now: u64) -> World {
        let (mut names, mut of, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        for (role, r) in roles.iter().enumerate() {
            for i in 0..r.nodes {
                let number = names.len() as u16 + 1;
                let [high, low] = number.to_be_bytes();
                let name = format!("{}{:04}", r.name, i + 1);
                nodes.push(SiteNode {
                    name: name.clone(),
                    role: r.name.into(),
                    macs: vec![Mac([0x52, 0x54, 0, 0, high, low])],
                    uuid: None,
                    address: Ipv4Addr::new(10, 0, high, low),
                    external_mac: None,
                    state: StateDisk::Disk(DiskMatch { serial: Some("S".into()), wwn: None, size: None }),
                    cmdline: vec![],
                });
                names.push(name);
                of.push(role);
            }
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let images = roles.iter().map(|r| (r.name.to_string(), image(r))).collect();
        let mut seeded: Vec<String> = Vec::new();
        for system in roles.iter().flat_map(|r| &r.systems).filter(|s| s.is_seeded()) {
            if !seeded.contains(&system.name) {
                seeded.push(system.name.clone());
            }
        }
        let fixed = Fixed { names, roles: of, systems: roles.iter().map(|r| r.systems.clone()).collect(), seeded };
        let mut server = Server::new();
        let site = Box::new(site(nodes, roles));
        server.command(&Command::ApplySite { site, site_id: "id".into(), images }, now).expect("a site");
        let machines = (0..fixed.names.len()).map(|_| Arc::new(Machine::new(fixed.seeded.len()))).collect();
        let processes = Arc::new(fixed.seeded.iter().map(|_| Process::default()).collect());
        World {
            server,
            machines,
            processes,
            fixed: Arc::new(fixed),
            done: Arc::default(),
            late: vec![],
            wiped: vec![],
            lax: false,
            violation: None,
        }
    }

    /// The ledger is empty, but for its site.
    pub fn lose(&mut self) {
        let mut state = State::default();
        let before = &self.server.state;
        if let Some(site) = &before.site {
            let site = Box::new((**site).clone());
            state.apply(&Event::SiteApplied { site, site_id: before.site_id.clone() });
        }
        for (role, image) in &before.images {
            state.apply(&Event::ImageUsed { role: role.clone(), image: image.current.clone() });
        }
        self.server.state = Arc::new(state);
    }

    pub fn violate(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert(what.into());
    }

    pub fn machine(&mut self, n: usize) -> &mut Machine {
        Arc::make_mut(&mut self.machines[n])
    }

    pub fn process(&mut self, s: usize) -> &mut Process {
        &mut Arc::make_mut(&mut self.processes)[s]
    }

    /// As time goes by, nodes whose boots came to nothing may boot again.
    pub fn wait_out_pauses(&mut self, now: u64) {
        for later in [0, PAUSE_MAX_SECS * 1000] {
            if !self.server.state.paused.is_empty() {
                let _ = self.server.command(&Command::Tick { wall_ms: 0 }, now + later);
            }
        }
    }

    /// The machine is powered on and asks for its boot; `false`: it is held, as good as off.
    pub fn boot(&mut self, n: usize, cut: Option<Cut>, now: u64) -> bool {
        self.machine(n).boot();
        let ordered = self.server.state.node(&self.fixed.names[n]).open_order().is_some();
        if self.machines[n].cut || !ordered {
            return cut.is_none();
        }
        let goes = self.boot_by_order(n, cut, now);
        if !goes {
            self.power_off(n, false);
        }
        goes
    }

    /// What the initramfs does when an order is open: `/v1/boot`, and for a wipe
    /// `/v1/orders/<id>/begin`, unless the disk bears the order's mark.
    fn boot_by_order(&mut self, n: usize, cut: Option<Cut>, now: u64) -> bool {
        let name = self.fixed.names[n].clone();
        let Some(entry) = self.server.state.site_node(&name).cloned() else { return false };
        let boot_id = Machine::boot_id(n, self.machines[n].boots);
        let (source, credential) = (entry.address, format!("secret of {boot_id}"));
        let request = BootRequest {
            mac: entry.macs[0],
            uuid: None,
            boot_id: boot_id.clone(),
            image: Digest([7; 32]),
            version: String::new(),
            disks: vec![],
        };
        let asked = Boot {
            request: request.clone(),
            source,
            leased: None,
            authoritative: true,
            credential: credential.clone(),
        };
        if self.server.command(&Command::Boot(Box::new(asked)), now).is_err() {
            return false;
        }
        let Some(go) = answer::boot(&self.server.state, &name, &request, &credential, 0) else { return false };
        let Some(order) = go.order else { return cut.is_none() };
        self.machine(n).order = Some(order.id.clone());
        if order.disks == Disks::Keep || self.machines[n].mark.as_ref() == Some(&order.id) {
            return cut.is_none();
        }
        let found = if self.machines[n].blank { BLANK } else { "a state disk" };
        let request = DiskRequest {
            node: name,
            boot_id: boot_id.clone(),
            credential: go.credential,
            disk: Disk { name: "vda".into(), serial: Some("S".into()), wwn: None, size: 1 },
            found: found.into(),
        };
        let begin = Command::Begin { order: order.id.clone(), request, source };
        if let Err(refusal) = self.server.command(&begin, now) {
            // It shows why and asks again in the same boot; here the next try is another one.
            let (phase, detail) = (Phase::Held, refusal.reason);
            let report = PhaseReport { mac: entry.macs[0], uuid: None, boot_id, image: Digest([7; 32]), phase, detail };
            let _ = self.server.command(&Command::Phase { report }, now);
            return false;
        }
        if cut == Some(Cut::Granted) {
            self.power_off(n, false);
            return true;
        }
        self.wipe_by_order(n, &order.id);
        if cut == Some(Cut::Wiped) {
            self.power_off(n, false);
        }
        true
    }

    /// The order takes what the disk holds, and leaves its mark.
    fn wipe_by_order(&mut self, n: usize, id: &str) {
        let me = self.fixed.names[n].clone();
        for s in 0..self.fixed.seeded.len() {
            let held = self.machines[n].stores[s].clone();
            let as_new = |m: &Arc<Machine>| m.stores[s].lineage == held.lineage && m.stores[s].seqno >= held.seqno;
            let copied = self.machines.iter().enumerate().any(|(other, m)| other != n && as_new(m));
            // What the operator has given up is nobody's any more.
            let lineage = self.server.state.cluster.formation(&self.fixed.seeded[s]).lineage.clone();
            let counts = lineage == Some(process::name(held.lineage)) && !self.is_given_up(n, s);
            if !held.is_blank() && !copied && !self.is_reset(s) && counts {
                let what =
                    format!("order {id} wipes {} on {me}, of which there is no other copy", self.fixed.seeded[s]);
                self.violate(what);
            }
        }
        if !self.machines[n].blank {
            match self.wiped.iter_mut().find(|(order, _)| order == id) {
                Some((_, times)) => *times += 1,
                None => self.wiped.push((id.into(), 1)),
            }
            if self.wiped.iter().any(|(_, times)| *times > 1) {
                self.violate(format!("order {id} wipes the disk of {me} a second time"));
            }
        }
        let marks = self.server.mutation != server::Mutation::NoMark;
        let machine = self.machine(n);
        machine.wipe();
        (machine.mark, machine.blank) = (marks.then(|| id.to_string()), false);
    }

    /// The agent was told that an order waits: the node leaves in order, and is off until it boots.
    fn restart(&mut self, n: usize, now: u64) {
        let me = self.fixed.names[n].clone();
        for s in 0..self.fixed.seeded.len() {
            let system = self.fixed.seeded[s].clone();
            let members = self.server.state.cluster.formation(&system).members.clone();
            if !members.contains(&me) {
                continue;
            }
            // Of one that said a moment ago that it serves nobody can know that it is gone.
            let said = |m: &String| {
                let left = self.server.state.node(m).session.as_ref().is_none_or(|s| s.left);
                let lately = |at_ms: u64| now.saturating_sub(at_ms) < SESSION_DEAD_SECS * 1000;
                let report = self.server.live.heard.get(m).filter(|h| lately(h.at_ms) && !left);
                report.and_then(|h| h.report.as_ref()).is_some_and(|r| r.lineages.contains_key(&system))
            };
            let counts = |m: &String| *m != me && (self.processes[s].serves(self.fixed.index(m)) || said(m));
            let (left, majority) = (members.iter().filter(|m| counts(m)).count(), members.len() / 2 + 1);
            if left < majority {
                let all = members.len();
                self.violate(format!("{me} restarts by order, which leaves {left} of {all} members of {system}"));
            }
        }
        for s in 0..self.fixed.seeded.len() {
            self.stop(s, n, true);
        }
        if let (Some(report), Some(cert)) = (self.report_of(n), self.machines[n].cert.clone()) {
            let report = Report { leaving: true, seq: report.seq + 1, ..report };
            let _ = self.send(n, Command::Report { fingerprint: cert.print, report }, Fate::Good, now);
        }
        self.power_off(n, false);
    }

    /// The power goes; a wiped one has a blank disk from then on.
    pub fn power_off(&mut self, n: usize, wiped: bool) {
        for s in 0..self.fixed.seeded.len() {
            self.stop(s, n, false);
        }
        let machine = self.machine(n);
        machine.power_off();
        if wiped {
            machine.wipe();
        }
    }

    /// The power of all goes at one instant.
    pub fn dark(&mut self) {
        let all: Vec<usize> = (0..self.machines.len()).collect();
        for s in 0..self.fixed.seeded.len() {
            let touched = self.process(s).crash_together(&all);
            self.save(s, &touched);
        }
        all.into_iter().for_each(|n| self.machine(n).power_off());
    }

    /// A process ends: with a word to the others, or without.
    pub fn stop(&mut self, s: usize, n: usize, cleanly: bool) {
        let touched = self.process(s).stop(n, cleanly);
        self.save(s, &touched);
    }

    /// Running members write what they hold to their disks.
    fn save(&mut self, s: usize, touched: &[process::Saved]) {
        for (n, store) in touched {
            self.machine(*n).stores[s] = store.clone();
        }
    }

    /// Sends to the server, as the node's certificate allows; the server's answer, if it comes.
    pub fn send(&mut self, n: usize, command: Command, fate: Fate, now: u64) -> Result<(), Option<Refusal>> {
        let generation = self.machines[n].cert.as_ref().map_or(0, |c| c.generation);
        if matches!(fate, Fate::Delayed | Fate::Twice) {
            self.late.push(Late { node: n, generation, command: Arc::new(command.clone()) });
        }
        if matches!(fate, Fate::Delayed | Fate::Lost) {
            return Err(None);
        }
        let result = self.server.command(&command, now);
        if fate == Fate::AnswerLost {
            return Err(None);
        }
        if let Err(refusal) = &result {
            let refused = refusal.why == kiln::ledger::decide::Why::Refused;
            self.machine(n).refused |= refused;
        }
        result.map(|_| ()).map_err(Some)
    }

    /// A message arrives at last.
    pub fn deliver_late(&mut self, which: usize, now: u64) {
        let late = self.late.remove(which);
        let before = (self.server.state.clone(), self.server.live.clone());
        let current = self.server.state.node(&self.fixed.names[late.node]).generation;
        let _ = self.server.command(&late.command, now);
        if !self.lax && late.generation != current && (self.server.state != before.0 || self.server.live != before.1) {
            self.violate(format!(
                "a message of generation {} of a node at {current} changed something",
                late.generation
            ));
        }
    }

    /// Asks for the verdict of a claim that was decided before.
    pub fn verdict(&mut self, n: usize, action: &Action, now: u64) -> Outcome {
        let (Some(request), Some(cert)) = (action.job.claim(&action.system), &self.machines[n].cert) else {
            return Outcome::Failed("no claim".into());
        };
        match self.server.verdict(&cert.print, &request, now) {
            Ok(verdict) => Outcome::Answered(verdict),
            Err(refusal) => Outcome::Failed(refusal.reason),
        }
    }

    /// Does a job that is a question to the server or a word to it; `None`: it is not one.
    pub fn exchange(&mut self, n: usize, action: &Action, fate: Fate, now: u64) -> Option<Outcome> {
        match self.ask(n, action, fate, now)? {
            Ok(()) => Some(self.answered(n, action, now)),
            Err(outcome) => Some(outcome),
        }
    }

    /// The first half of an exchange: the server decides.
    pub fn ask(&mut self, n: usize, action: &Action, fate: Fate, now: u64) -> Option<Result<(), Outcome>> {
        let print = self.machines[n].cert.as_ref().map(|c| c.print);
        let failed = |why: &str| Outcome::Failed(why.into());
        let claim = action.job.claim(&action.system);
        if claim.is_none() && action.job.told(&action.system).is_none() {
            return None;
        }
        if let (Job::AskStart { .. }, Some(s)) = (&action.job, self.fixed.seeded(&action.system))
            && !self.machines[n].asked[s]
        {
            self.machine(n).asked[s] = true;
        }
        let Some(fingerprint) = print else { return Some(Err(failed("this boot has not registered yet"))) };
        let command = match (claim, action.job.told(&action.system)) {
            (Some(request), _) => Command::Claim { fingerprint, request },
            (None, Some(request)) => Command::Done { fingerprint, request },
            (None, None) => return None,
        };
        let fate = if self.machines[n].cut { Fate::Lost } else { fate };
        Some(self.send(n, command, fate, now).map_err(|refusal| match refusal {
            Some(refusal) => Outcome::Failed(refusal.reason),
            None => failed("no answer"),
        }))
    }

    /// The second half: the answer, from what the server knows by then.
    pub fn answered(&mut self, n: usize, action: &Action, now: u64) -> Outcome {
        if action.job.claim(&action.system).is_none() {
            return Outcome::Done("told".into());
        }
        let outcome = self.verdict(n, action, now);
        if let (Job::AskStart { .. }, Outcome::Answered(Verdict::Seed | Verdict::Join { .. })) = (&action.job, &outcome)
            && let Some(s) = self.fixed.seeded(&action.system)
        {
            self.machine(n).asked[s] = false;
        }
        if matches!(outcome, Outcome::Answered(Verdict::Seed)) {
            let fenced = (0..self.machines.len()).filter(|m| self.server.truly_fenced(&self.fixed.names[*m]));
            let fenced = fenced.collect();
            self.machine(n).excused = fenced;
        }
        outcome
    }

    /// Does a job that is a script or a unit, at once and successfully if it can be; `None`: it is
    /// a message. A cluster step is only begun: [`World::end_step`] ends it.
    pub fn perform(&mut self, n: usize, action: &Action) -> Option<Outcome> {
        let done = || Outcome::Done("done".into());
        let s = self.fixed.seeded(&action.system);
        Some(match &action.job {
            Job::AskStart { .. } | Job::AskStep { .. } | Job::Tell { .. } => return None,
            Job::Look { .. } => match s {
                Some(s) if self.processes[s].runs(n) => done(),
                _ => Outcome::Down("inactive".into()),
            },
            Job::Rank { .. } => {
                let Some(s) = s else { return Some(Outcome::Missing("rank".into())) };
                self.stop(s, n, true);
                Outcome::Ranked(self.machines[n].stores[s].data())
            }
            Job::Seed { .. } => s.map_or_else(done, |s| self.seed(s, n)),
            Job::Join { members, set_aside, .. } => {
                let members: Vec<usize> = members.iter().map(|m| self.fixed.index(m)).collect();
                s.map_or_else(done, |s| self.join(s, n, &members, *set_aside))
            }
            Job::Start { .. } => {
                match s {
                    Some(s) if !self.processes[s].runs(n) => self.plain_start(s, n),
                    _ => {}
                }
                done()
            }
            Job::Health { .. } => match s {
                None => done(),
                Some(s) if !self.processes[s].runs(n) => Outcome::Down("inactive".into()),
                Some(s) if self.processes[s].serves(n) => done(),
                Some(_) => Outcome::Later("not in the primary component".into()),
            },
            Job::Lineage { .. } => match s.and_then(|s| self.processes[s].of(n)) {
                Some(component) => Outcome::Done(process::name(component.lineage)),
                None => Outcome::Failed("down".into()),
            },
            Job::Check { step, .. } | Job::Step { step, .. } if self.is_marked(n, &action.system, step) => done(),
            Job::Check { .. } => Outcome::Failed("not so".into()),
            Job::Step { .. } => done(),
            Job::Peer { .. } => done(),
        })
    }

    /// The system into whose data this cluster step writes, and which it is if that is seeded.
    fn written(&self, n: usize, system: &str, step: &str) -> Option<(&str, Option<usize>)> {
        let system = self.fixed.systems_of(n).iter().find(|s| s.name == system)?;
        let step = system.steps.iter().find(|s| s.name == step && s.scope == Scope::Cluster)?;
        let writes = step.writes.as_ref().unwrap_or(&system.name);
        Some((writes, self.fixed.seeded(writes)))
    }

    /// Whether this job changes what the others share, and so must not run twice.
    pub fn is_cluster_step(&self, n: usize, action: &Action) -> bool {
        let Job::Step { step, .. } = &action.job else { return false };
        self.written(n, &action.system, step).is_some() && !self.is_marked(n, &action.system, step)
    }

    fn is_marked(&self, n: usize, system: &str, step: &str) -> bool {
        let mark = format!("{system}/{step}");
        match self.written(n, system, step) {
            Some((_, Some(s))) => self.processes[s].of(n).is_some_and(|c| c.has_mark(&mark)),
            Some((_, None)) => self.done.contains(&mark),
            None => false,
        }
    }

    /// A cluster step that is not done yet begins.
    pub fn begin_step(&mut self, n: usize, action: &Action) {
        let others: Vec<usize> =
            (0..self.machines.len()).filter(|m| *m != n && self.machines[*m].steps.contains(action)).collect();
        if let Some(other) = others.first() {
            let (a, b) = (self.fixed.names[*other].clone(), self.fixed.names[n].clone());
            self.violate(format!("{a} and {b} run {}'s cluster step at once", action.system));
        }
        self.machine(n).steps.push(action.clone());
    }

    /// It ends, well if what it writes to serves.
    pub fn end_step(&mut self, n: usize, action: &Action) -> Outcome {
        self.machine(n).steps.retain(|a| a != action);
        let Job::Step { step, .. } = &action.job else { return Outcome::Failed("no step".into()) };
        let mark = format!("{}/{step}", action.system);
        let Some((_, Some(s))) = self.written(n, &action.system, step) else {
            Arc::make_mut(&mut self.done).insert(mark);
            return Outcome::Done("done".into());
        };
        if !self.processes[s].serves(n) {
            return Outcome::Failed("the database is gone".into());
        }
        if self.processes[s].of(n).is_some_and(|c| c.has_mark(&mark)) {
            self.violate(format!("{mark} was done twice in one lineage"));
        }
        let touched = self.process(s).mark(n, &mark);
        self.save(s, &touched);
        Outcome::Done("done".into())
    }

    /// Whether the operator's word let this node's data, or its life, count as gone.
    fn is_given_up(&self, n: usize, s: usize) -> bool {
        let name = &self.fixed.names[n];
        let formation = self.server.state.cluster.formation(&self.fixed.seeded[s]);
        self.server.truly_fenced(name) || formation.aside.contains_key(name)
    }

    fn is_reset(&self, s: usize) -> bool {
        let seeded = self.server.state.seeded();
        seeded.get(self.fixed.seeded[s].as_str()).and_then(|c| c.dark()) == Some(kiln::recipe::system::Dark::Reset)
    }

    fn seed(&mut self, s: usize, n: usize) -> Outcome {
        let (system, me) = (self.fixed.seeded[s].clone(), self.fixed.names[n].clone());
        let (reset, own) = (self.is_reset(s), self.machines[n].stores[s].clone());
        for other in (0..self.machines.len()).filter(|other| *other != n) {
            let name = self.fixed.names[other].clone();
            if self.is_given_up(other, s) || self.machines[n].excused.contains(&other) {
                continue;
            }
            if self.processes[s].runs(other) {
                self.violate(format!("{me} seeds {system} while {name} runs it"));
            }
            let held = &self.machines[other].stores[s];
            let loses = match (&own.data(), held.data()) {
                (_, Data::Blank) => false,
                (Data::Blank, _) => true,
                (Data::Holds { lineage: a, rank: x }, Data::Holds { lineage: b, rank: y }) => *a == b && y > *x,
            };
            if loses && !reset {
                let (mine, theirs) = (own.data(), held.data());
                self.violate(format!("{me} seeds {system} from {mine:?} while {name} holds {theirs:?}"));
            }
        }
        if self.processes[s].runs(n) {
            return Outcome::Done("runs already".into());
        }
        let touched = self.process(s).seed(n, if reset { None } else { Some(&own) });
        self.save(s, &touched);
        Outcome::Done("alone".into())
    }

    fn join(&mut self, s: usize, n: usize, members: &[usize], set_aside: bool) -> Outcome {
        if self.processes[s].runs(n) {
            return Outcome::Done("runs already".into());
        }
        let Some(to) = members.iter().copied().find(|m| self.processes[s].serves(*m)) else {
            return Outcome::Failed("none of the members answers".into());
        };
        let own = &self.machines[n].stores[s];
        let component = self.processes[s].of(to).expect("it serves");
        if !set_aside && !self.is_reset(s) && !own.is_blank() {
            if own.lineage != component.lineage {
                return Outcome::Failed("another cluster's data".into());
            }
            if own.seqno > component.seqno {
                let (a, b, name) = (own.seqno, component.seqno, self.fixed.names[n].clone());
                self.violate(format!("{name} joins with data at {a} a cluster at {b}: what it alone holds is lost"));
            }
        }
        let touched = self.process(s).join(n, to);
        self.save(s, &touched);
        Outcome::Done("joins".into())
    }

    fn plain_start(&mut self, s: usize, n: usize) {
        let own = self.machines[n].stores[s].clone();
        let touched = self.process(s).plain_start(n, &own);
        self.save(s, &touched);
    }

    /// Tells the server that a peer step ended here.
    pub fn tell_peer(&mut self, n: usize, task: &kiln::ledger::message::PeerTask, now: u64) {
        let Some(fingerprint) = self.machines[n].cert.as_ref().map(|c| c.print) else { return };
        let request = peer_told(task, &Outcome::Done(String::new()));
        if !self.machines[n].cut {
            let _ = self.send(n, Command::Done { fingerprint, request }, Fate::Good, now);
        }
    }

    /// The operator looks, and follows what the ledger asks for: adopts; where data of two clusters
    /// are there, says whose counts; where nobody's are left, lets it begin anew. Whether something
    /// was said.
    pub fn operator(&mut self, now: u64) -> bool {
        let before = self.server.state.rev;
        // An order that gets nowhere is taken back.
        for (id, node) in self.server.state.open_orders.clone() {
            let failed = self.server.state.node(&node).open_order().is_some_and(|o| o.begun.is_some());
            let _ = self.server.command(&Command::Cancel { order: id, failed }, now);
        }
        let cluster = &self.server.state.cluster;
        if !cluster.genesis || cluster.behind.is_some() || cluster.unvouched.is_some() {
            let _ = self.server.command(&Command::Adopt, now);
        }
        for s in 0..self.fixed.seeded.len() {
            if self.server.state.rev != before {
                return true;
            }
            self.recover(s, now);
        }
        self.server.state.rev != before
    }

    fn recover(&mut self, s: usize, now: u64) {
        let system = self.fixed.seeded[s].clone();
        let names = self.fixed.names.clone();
        let (state, live) = (&self.server.state, &self.server.live);
        let serves = |n: &usize| live.serves(state, &names[*n], &system, now).is_some();
        let stores: Vec<&process::Store> = self.machines.iter().map(|m| &m.stores[s]).collect();
        let mut shown: Vec<u32> = stores.iter().map(|s| s.lineage).filter(|l| *l != 0).collect();
        shown.sort_unstable();
        shown.dedup();
        let formed = state.cluster.formation(&system).lineage.is_some();
        let newest = (0..names.len()).filter(|n| !stores[*n].is_blank()).max_by_key(|n| stores[*n].seqno);
        let carrier = state.carriers(&system).next().map(|n| n.name.clone());
        let nobody = !(0..names.len()).any(|n| serves(&n));
        let held = state.cluster.formation(&system).lineage.clone();
        let lost = formed && nobody && !shown.iter().any(|l| Some(process::name(*l)) == held);
        let from = match shown.len() {
            0 if formed => carrier,
            2.. => (0..names.len()).find(serves).or(newest).map(|n| names[n].clone()),
            _ if lost => newest.map(|n| names[n].clone()),
            _ => None,
        };
        if let Some(from) = from {
            let _ = self.server.command(&Command::Recover { system, from, accept_loss: true }, now);
        }
    }

    /// What must hold between any two steps.
    pub fn check(&mut self) {
        for s in 0..self.fixed.seeded.len() {
            let mut lineages: Vec<u32> = self.processes[s].components.iter().map(|c| c.lineage).collect();
            lineages.sort_unstable();
            lineages.dedup();
            let system = &self.fixed.seeded[s];
            if lineages.len() > 1 {
                let all: Vec<String> = lineages.into_iter().map(process::name).collect();
                let what = format!("{system} runs as several clusters: {}", all.join(", "));
                self.violate(what);
            } else if self.processes[s].components.iter().filter(|c| c.primary).count() > 1 {
                let what = format!("two parts of {system} take writes");
                self.violate(what);
            }
        }
    }

    /// The report that the node's agent would send now; one that says nothing new keeps its number.
    pub fn report_of(&mut self, n: usize) -> Option<Report> {
        self.machine(n).report()
    }

    /// Sends the node's report and follows the answer.
    pub fn report(&mut self, n: usize, fate: Fate, now: u64) {
        let Some(report) = self.report_of(n) else { return };
        let Some(fingerprint) = self.machines[n].cert.as_ref().map(|c| c.print) else { return };
        let fate = if self.machines[n].cut { Fate::Lost } else { fate };
        if self.send(n, Command::Report { fingerprint, report }, fate, now).is_ok() {
            let peers = self.server.peers(&self.fixed.names[n], now);
            let stand_down = self.server.stand_down(&self.fixed.names[n], now);
            let clock = self.machines[n].clock;
            let restart = self.server.restart_for(&self.fixed.names[n], now);
            if let Some(run) = &mut self.machine(n).run {
                run.node.set_peers(&peers);
                run.node.stand_down(&stand_down, clock);
            }
            if restart.is_some() && restart != self.machines[n].order {
                self.restart(n, now);
            }
        }
    }

    /// Registers this boot (or again); whether it was let in.
    pub fn register(&mut self, n: usize, now: u64) -> bool {
        if self.machines[n].cut || !self.machines[n].on {
            return false;
        }
        let name = self.fixed.names[n].clone();
        let asked = self.machines[n].asks_register(n, &name);
        let Some(generation) = self.server.register(&asked, now) else { return false };
        let systems = self.fixed.systems_of(n).to_vec();
        self.machine(n).registered(&systems, generation, asked.print(generation));
        true
    }

    /// Whether the node may go on without the server, and it does.
    pub fn go_offline(&mut self, n: usize) -> bool {
        let fixed = self.fixed.clone();
        self.machine(n).go_offline(fixed.systems_of(n), &fixed.seeded)
    }
}

fn image(role: &Role) -> UsedImage {
    UsedImage {
        id: Digest([7; 32]),
        reference: "zed/test:1".into(),
        kernel: Digest([1; 32]),
        initramfs: Digest([2; 32]),
        cmdline: vec![],
        architecture: "amd64".into(),
        controller: false,
        clustered: role.systems.iter().filter_map(|s| s.clustered()).collect(),
        secrets: vec![],
        certificates: vec![],
    }
}

fn site(nodes: Vec<SiteNode>, roles: &[Role]) -> Site {
    let management = Network {
        subnet: Some("10.0.0.0/16".parse().expect("a subnet")),
        gateway: None,
        dns: vec![],
        ntp: vec![],
        mtu: None,
        pool: None,
        physical: None,
    };
    Site {
        cluster: Cluster { name: "c".into(), release: "zed".into(), vip: None, unknown: None },
        ssh_keys: vec![],
        role_images: roles.iter().map(|r| (r.name.to_string(), "zed/test:1".to_string())).collect(),
        management,
        networks: Default::default(),
        nodes,
    }
}
