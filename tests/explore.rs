//! Every path through the production protocol on a small world: three controllers, one seeded
//! system with a late cluster step, faults. No second model: `ledger::decide`, `State::apply`,
//! `Live` and `join::node::Node` are what runs; `tests/world` makes up what they talk to.
//!
//! Depth first over a set of hashed states, which keeps few of them in memory; a violation is looked
//! for once more breadth first, so that its trace is a shortest one. It is written here because what
//! a library would bring (a loop and a hash set) is small against what it would ask: its own actor or
//! state traits around code that has none, and keys without the times and message numbers that grow
//! for ever. Two states are one if whatever decides their future is equal: times, pauses and retry
//! counts are left out, the numbers of a node's messages are replaced by their order. A key has 64
//! bits: with 10^7 states the odds that any two different ones were taken for one are 3 in a million.
//!
//! What is one step: a node goes on until it has talked to the server once or changed a process
//! that others see; what it does alone in between (look, rank, check, health, lineage) is one with
//! that. A message and its answer are one step too, unless it is lost, late or answered after
//! another node's was decided: each of these is a step of its own.

mod world;

use kiln::join::node::{Action, Job};
use kiln::ledger::decide::{Reimage, Risk};
use kiln::ledger::message::{Data, Disks, Phase, Via};
use kiln::ledger::state::State;
use kiln::ledger::{Command, Live};
use kiln::recipe::system::{Dark, Scope};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use world::server::Mutation;
use world::{Cut, Fate, Role, World};

/// The server's clock stands still: silence is a step ([`Act::Silence`]).
const NOW: u64 = 1_000_000_000;
const NODES: usize = 3;
/// Longer than any pause of a node.
const PAUSE_MS: u64 = 120_000;
/// Names decide only between equals (who of two equal ranks is seeded, which of two members sends
/// data): a state is taken for one with nodes swapped. Whether that hides something is tried by
/// setting this to `false`.
const SYMMETRIC: bool = true;
/// Rounds of the final phase; each is one step of everyone.
const CALM_ROUNDS: usize = 60;

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
struct Faults {
    /// A node's power goes, its disk stays.
    crash: u8,
    /// A node's power goes, its disk is blank from then on.
    wipe: u8,
    /// The power of all goes at once.
    dark: u8,
    /// The process of the system dies.
    die: u8,
    /// The agent is started again.
    agent: u8,
    /// The server is started again.
    restart: u8,
    /// The ledger is empty from then on.
    loss: u8,
    /// The ledger is put back to what it was at some earlier moment.
    rollback: u8,
    /// A node cannot reach the server for a while.
    cut: u8,
    /// No node can.
    deaf: u8,
    /// An answer is lost.
    answer: u8,
    /// A message arrives late.
    late: u8,
    /// A message arrives twice, the second time late.
    twice: u8,
    /// The operator fences a node that is off.
    fence: u8,
    /// A claim is answered after another node's was decided.
    batch: u8,
    /// The operator orders a node to be reimaged, its disk wiped.
    order: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Boot(u8),
    Register(u8),
    Offline(u8),
    Go(u8, Fate),
    Together(u8, u8),
    Report(u8, Fate),
    EndStep(u8),
    Crash(u8),
    Wipe(u8),
    Dark,
    Die(u8),
    Agent(u8),
    Silence(u8),
    Cut(u8),
    Deaf,
    Heal,
    Late(u8),
    Restart,
    Lose,
    Backup,
    Restore,
    Form,
    Adopt,
    Fence(u8),
    Order(u8),
    BootCut(u8, Cut),
}

/// A world with the faults that may still happen to it.
#[derive(Clone)]
struct Place {
    world: World,
    left: Faults,
    /// The ledger that will be put back.
    backup: Option<Arc<State>>,
    /// A ledger was lost or put back: the operator may act.
    doubted: bool,
}

fn roles() -> Vec<Role> {
    let late = world::step("schema", Scope::Cluster, &["db"], None);
    vec![Role { name: "c", systems: vec![world::system("db", &[], Some(Dark::Rank), vec![late])], nodes: NODES }]
}

/// An empty ledger that knows its site.
fn unformed() -> World {
    World::new(&roles(), NOW)
}

/// Where an exploration begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    /// All nodes are off; the operator has said `form`.
    Nothing,
    /// So many nodes are ready, in one cluster; the others never were on.
    Formed(usize),
}

/// The first places. A ledger that will be put back is, from a formed cluster on, each of those that
/// there were while it formed: one place for each.
fn starts(from: From, left: Faults, mutation: Mutation) -> Vec<Place> {
    let mut world = unformed();
    world.server.mutation = mutation;
    world.server.command(&Command::Form, NOW).expect("form");
    let mut place = Place { world, left: Faults::default(), backup: None, doubted: false };
    let mut history = vec![unformed().server.state, place.world.server.state.clone()];
    if let From::Formed(nodes) = from {
        for _ in 0..12 {
            for n in 0..nodes as u8 {
                for act in [Act::Boot(n), Act::EndStep(n), Act::Go(n, Fate::Good), Act::Report(n, Fate::Good)] {
                    let Some(next) = place.after(act) else { continue };
                    place = next;
                    let state = &place.world.server.state;
                    if history.last().is_some_and(|h| h.rev != state.rev) {
                        history.push(state.clone());
                    }
                }
            }
        }
        assert!((0..nodes).all(|n| place.is_ready(n)), "the first places are formed");
    }
    place.left = left;
    if from == From::Nothing || left.rollback == 0 {
        return vec![place];
    }
    history.into_iter().map(|state| Place { backup: Some(state), ..place.clone() }).collect()
}

/// How far a node got in one step.
#[derive(PartialEq, Eq, Debug)]
enum Gone {
    /// It waits.
    Nowhere,
    Alone,
    /// It changed what others see.
    Acted,
    /// It talked to the server.
    Talked,
}

impl Place {
    /// The node's next job that is not its own business only; those before it are done.
    fn next_job(&mut self, n: usize) -> (Gone, Option<Action>) {
        let mut gone = Gone::Nowhere;
        for _ in 0..40 {
            let world = &mut self.world;
            let clock = world.machines[n].clock;
            let Some(run) = &mut world.machine(n).run else { return (gone, None) };
            let mut due = run.node.due(clock);
            if due.is_empty() {
                // Times go by until something is due.
                world.machine(n).clock += PAUSE_MS;
                let clock = world.machines[n].clock;
                let Some(run) = &mut world.machine(n).run else { return (gone, None) };
                due = run.node.due(clock);
            }
            let Some(action) = due.pop() else { return (gone, None) };
            // The agent puts its report together whenever it has started something.
            world.report_of(n);
            if world.is_cluster_step(n, &action) {
                world.begin_step(n, &action);
                return (Gone::Acted, None);
            }
            let sees = matches!(action.job, Job::Seed { .. } | Job::Join { .. });
            let starts = matches!(action.job, Job::Start { .. }) && !world.processes[0].runs(n);
            match world.perform(n, &action) {
                None => return (gone, Some(action)),
                Some(outcome) => {
                    let healthy = matches!(action.job, Job::Health { .. });
                    self.end(n, &action, outcome);
                    gone = Gone::Alone;
                    if sees || starts {
                        return (Gone::Acted, None);
                    }
                    if healthy && self.settled(n) {
                        return (gone, None);
                    }
                }
            }
        }
        (gone, None)
    }

    /// Only a later look at the health would be due.
    fn settled(&mut self, n: usize) -> bool {
        let world = &mut self.world;
        let clock = world.machines[n].clock;
        let run = world.machines[n].run.as_ref().expect("it runs");
        let stranded = run.node.report().2.iter().any(|s| s.stranded);
        (world.processes[0].serves(n) || stranded) && run.node.clone().due(clock).is_empty()
    }

    fn end(&mut self, n: usize, action: &Action, outcome: kiln::join::node::Outcome) {
        let machine = self.world.machine(n);
        let clock = machine.clock;
        if let Some(run) = &mut machine.run {
            run.node.done(&action.system, &action.job, outcome, clock);
        }
    }

    fn go(&mut self, n: usize, fate: Fate) -> Gone {
        let (gone, Some(action)) = self.next_job(n) else {
            return Gone::Alone;
        };
        let _ = gone;
        let outcome = self.world.exchange(n, &action, fate, NOW).expect("a message");
        self.end(n, &action, outcome);
        self.after_answer(n);
        Gone::Talked
    }

    /// Both nodes' messages are decided before either is answered.
    fn together(&mut self, a: usize, b: usize) -> bool {
        let ((_, Some(one)), (_, Some(two))) = (self.next_job(a), self.next_job(b)) else { return false };
        let first = self.world.ask(a, &one, Fate::Good, NOW).expect("a message");
        let second = self.world.ask(b, &two, Fate::Good, NOW).expect("a message");
        for (n, action, asked) in [(a, one, first), (b, two, second)] {
            let outcome = match asked {
                Ok(()) => self.world.answered(n, &action, NOW),
                Err(outcome) => outcome,
            };
            self.end(n, &action, outcome);
            self.after_answer(n);
        }
        true
    }

    /// A cluster step that may run begins at once: that is nobody else's business.
    fn after_answer(&mut self, n: usize) {
        let runs = |p: &Place| p.world.machines[n].run.as_ref().is_some_and(|r| !r.node.running_steps().is_empty());
        if runs(self) && self.world.machines[n].steps.is_empty() {
            let clock = self.world.machines[n].clock;
            let due = self.world.machine(n).run.as_mut().map(|r| r.node.due(clock)).unwrap_or_default();
            self.world.report_of(n);
            for action in due {
                if self.world.is_cluster_step(n, &action) {
                    self.world.begin_step(n, &action);
                } else if let Some(outcome) = self.world.perform(n, &action) {
                    self.end(n, &action, outcome);
                }
            }
        }
    }

    /// The place after an act; `None`: it cannot happen here, or changes nothing.
    fn after(&self, act: Act) -> Option<Place> {
        let mut p = self.clone();
        let w = &mut p.world;
        let take = |left: &mut u8| -> Option<()> {
            *left = left.checked_sub(1)?;
            Some(())
        };
        let on = |n: u8| self.world.machines[n as usize].on;
        match act {
            Act::Boot(n) if !on(n) => {
                w.wait_out_pauses(NOW);
                if !w.boot(n as usize, None, NOW) {
                    return None;
                }
                // Until it registers, a boot is nobody's business.
                w.register(n as usize, NOW);
            }
            Act::Register(n) => {
                let m = &self.world.machines[n as usize];
                let wants = m.on && (m.cert.is_none() || m.refused);
                if !wants || !w.register(n as usize, NOW) {
                    return None;
                }
            }
            Act::Offline(n) => {
                // Who was fenced stays off until it can reach the server: that is the operator's part.
                let fenced = w.server.truly_fenced(&w.fixed.names[n as usize]);
                if fenced || !w.machines[n as usize].cut || !w.go_offline(n as usize) {
                    return None;
                }
            }
            Act::Go(n, fate) if on(n) => {
                w.machines[n as usize].run.as_ref()?;
                spend(&mut p.left, fate)?;
                if p.go(n as usize, fate) != Gone::Talked && fate != Fate::Good {
                    return None;
                }
            }
            Act::Together(a, b) => {
                take(&mut p.left.batch)?;
                w.machines[a as usize].run.as_ref()?;
                w.machines[b as usize].run.as_ref()?;
                if !p.together(a as usize, b as usize) {
                    return None;
                }
            }
            Act::Report(n, fate) if on(n) => {
                let m = &self.world.machines[n as usize];
                if m.run.is_none() || m.cert.is_none() || m.cut || m.refused {
                    return None;
                }
                spend(&mut p.left, fate)?;
                w.report(n as usize, fate, NOW);
            }
            Act::EndStep(n) => {
                let action = w.machines[n as usize].steps.first()?.clone();
                let outcome = w.end_step(n as usize, &action);
                p.end(n as usize, &action, outcome);
            }
            Act::Crash(n) if on(n) => {
                take(&mut p.left.crash)?;
                w.power_off(n as usize, false);
            }
            Act::Wipe(n) if on(n) => {
                take(&mut p.left.wipe)?;
                w.power_off(n as usize, true);
            }
            Act::Dark => {
                take(&mut p.left.dark)?;
                w.dark();
            }
            Act::Die(n) if on(n) && w.processes[0].runs(n as usize) => {
                take(&mut p.left.die)?;
                w.stop(0, n as usize, false);
            }
            Act::Agent(n) if on(n) => {
                take(&mut p.left.agent)?;
                w.machines[n as usize].cert.as_ref()?;
                let systems = w.fixed.systems_of(n as usize).to_vec();
                w.machine(n as usize).restart_agent(&systems);
            }
            Act::Silence(n) => {
                let m = &w.machines[n as usize];
                let name = w.fixed.names[n as usize].clone();
                let heard = w.server.live.heard.get(&name).is_some_and(|h| h.at_ms == NOW);
                if !heard || (m.on && !m.cut && m.cert.is_some()) {
                    return None;
                }
                silence(&mut w.server.live, &name);
            }
            Act::Cut(n) if !w.machines.iter().any(|m| m.cut) => {
                take(&mut p.left.cut)?;
                w.machine(n as usize).cut = true;
            }
            Act::Deaf if !w.machines.iter().any(|m| m.cut) => {
                take(&mut p.left.deaf)?;
                (0..NODES).for_each(|n| w.machine(n).cut = true);
            }
            Act::Heal if w.machines.iter().any(|m| m.cut) => (0..NODES).for_each(|n| w.machine(n).cut = false),
            Act::Late(i) if (i as usize) < w.late.len() => w.deliver_late(i as usize, NOW),
            Act::Restart => {
                take(&mut p.left.restart)?;
                w.server.restart(None, 0, NOW);
            }
            Act::Lose => {
                take(&mut p.left.loss)?;
                w.lose();
                w.server.restart(Some("the ledger was lost"), 0, NOW);
                p.doubted = true;
            }
            Act::Backup if self.backup.is_none() && self.left.rollback > 0 => p.backup = Some(w.server.state.clone()),
            Act::Restore => {
                take(&mut p.left.rollback)?;
                w.server.state = p.backup.take()?;
                w.server.restart(Some("the ledger is from a backup"), 0, NOW);
                p.doubted = true;
            }
            Act::Form | Act::Adopt if self.doubted => {
                let command = if act == Act::Form { Command::Form } else { Command::Adopt };
                let changed = w.server.command(&command, NOW).is_ok_and(|events| !events.is_empty());
                if !changed {
                    return None;
                }
            }
            Act::Fence(n) if !on(n) => {
                take(&mut p.left.fence)?;
                let node = w.fixed.names[n as usize].clone();
                let changed = w.server.command(&Command::Fence { node }, NOW).is_ok_and(|events| !events.is_empty());
                if !changed {
                    return None;
                }
            }
            Act::Order(n) => {
                take(&mut p.left.order)?;
                let node = w.fixed.names[n as usize].clone();
                let id = format!("{:08x}", 0xa0 + u32::from(self.left.order));
                let risk = Risk { giver: "the operator".into(), ..Risk::default() };
                let (image, disks, expires_ms) = (None, Disks::Wipe, u64::MAX);
                let order = Reimage { id, node, image, disks, via: Via::Reboot, expires_ms, risk };
                w.server.command(&Command::Reimage(Box::new(order)), NOW).ok()?;
            }
            Act::BootCut(n, cut) if !on(n) => {
                take(&mut p.left.crash)?;
                if !w.boot(n as usize, Some(cut), NOW) {
                    return None;
                }
            }
            _ => return None,
        }
        p.world.check();
        Some(p)
    }

    fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::with_capacity(64);
        let left = &self.left;
        for n in 0..NODES as u8 {
            acts.extend([Act::Boot(n), Act::Register(n), Act::Offline(n), Act::Go(n, Fate::Good)]);
            acts.extend([Act::Report(n, Fate::Good), Act::EndStep(n), Act::Silence(n)]);
            let fates = [(left.answer, Fate::AnswerLost), (left.late, Fate::Delayed), (left.twice, Fate::Twice)];
            for fate in fates.iter().filter(|(left, _)| *left > 0).map(|(_, fate)| *fate) {
                acts.push(Act::Go(n, fate));
                if fate != Fate::AnswerLost {
                    acts.push(Act::Report(n, fate));
                }
            }
            let faults = [
                (left.crash, Act::Crash(n)),
                (left.wipe, Act::Wipe(n)),
                (left.die, Act::Die(n)),
                (left.agent, Act::Agent(n)),
                (left.cut, Act::Cut(n)),
                (left.fence, Act::Fence(n)),
                (left.order, Act::Order(n)),
            ];
            acts.extend(faults.iter().filter(|(left, _)| *left > 0).map(|(_, act)| *act));
            if left.crash > 0 && !self.world.server.state.open_orders.is_empty() {
                acts.extend([Act::BootCut(n, Cut::Granted), Act::BootCut(n, Cut::Wiped)]);
            }
            if left.batch > 0 {
                acts.extend((0..NODES as u8).filter(|m| *m != n).map(|m| Act::Together(n, m)));
            }
        }
        acts.extend((0..self.world.late.len() as u8).map(Act::Late));
        acts.extend([Act::Heal, Act::Form, Act::Adopt]);
        let faults = [
            (left.dark, Act::Dark),
            (left.deaf, Act::Deaf),
            (left.restart, Act::Restart),
            (left.loss, Act::Lose),
            (left.rollback, Act::Backup),
            (left.rollback, Act::Restore),
        ];
        acts.extend(faults.iter().filter(|(left, _)| *left > 0).map(|(_, act)| *act));
        acts
    }

    /// What decides this place's future, as one number. Nodes are alike, so their order counts only
    /// where all else is equal; see [`SYMMETRIC`].
    fn key(&self) -> u64 {
        let seqs = self.seqs();
        let keying = Keying { w: &self.world, seqs: &seqs };
        // What a node is without its name; then in which order they stand, and who knows whom.
        let mut order: Vec<(u64, usize)> = (0..NODES).map(|n| (keying.node(n, self.backup.as_deref()), n)).collect();
        if SYMMETRIC {
            order.sort_unstable();
        }
        let mut place = [0; NODES];
        order.iter().enumerate().for_each(|(i, (_, n))| place[*n] = i);
        let mut h = Fast::default();
        (self.left, self.doubted).hash(&mut h);
        let mut wiped = self.world.wiped.clone();
        wiped.sort_unstable();
        wiped.hash(&mut h);
        order.iter().for_each(|(sum, _)| sum.hash(&mut h));
        keying.among(&self.world.server.state, &place, &mut h);
        if let Some(backup) = &self.backup {
            keying.among(backup, &place, &mut h);
        }
        let set = |of: &mut dyn Iterator<Item = usize>| of.fold(0u8, |set, n| set | 1 << place[n]);
        for (_, n) in &order {
            let m = &self.world.machines[*n];
            set(&mut m.stores[0].view.iter().copied()).hash(&mut h);
            set(&mut m.excused.iter().copied()).hash(&mut h);
        }
        let component = |c: &world::process::Component| {
            let members = set(&mut c.members.iter().map(|(m, _)| *m));
            (members, c.lineage, c.seqno, c.marks.len(), c.primary)
        };
        let mut components: Vec<_> = self.world.processes[0].components.iter().map(component).collect();
        components.sort_unstable();
        (components, self.world.processes[0].made).hash(&mut h);
        h.finish()
    }

    /// Of every node the numbers of messages that are still compared with others, sorted.
    fn seqs(&self) -> Vec<Vec<u64>> {
        let w = &self.world;
        let mut seqs: Vec<Vec<u64>> = vec![vec![0]; NODES];
        for (n, m) in w.machines.iter().enumerate() {
            if let Some(run) = &m.run {
                seqs[n].extend(run.said.iter().map(|r| r.seq));
                let collect = |seq| {
                    seqs[n].push(seq);
                    0
                };
                run.node.shape(collect, &mut Fast::default());
            }
        }
        let of = |name: &str| w.fixed.index(name);
        for state in [Some(&w.server.state), self.backup.as_ref()].into_iter().flatten() {
            for f in state.cluster.formations.values() {
                f.granted.iter().for_each(|(n, g)| seqs[of(n)].push(g.seq));
                f.stopped.iter().for_each(|(n, s)| seqs[of(n)].push(s.seq));
            }
            let holders = state.cluster.steps.values().filter_map(|s| s.holder.as_ref());
            holders.for_each(|(h, seq)| seqs[of(&h.node)].push(*seq));
        }
        for (n, h) in &w.server.live.heard {
            seqs[of(n)].extend(h.report.iter().map(|r| r.seq));
        }
        w.late.iter().for_each(|l| seqs[l.node].push(seq_of(&l.command)));
        for seqs in &mut seqs {
            seqs.sort_unstable();
            seqs.dedup();
        }
        seqs
    }

    /// It says that it is ready, and the ledger knows.
    fn is_ready(&self, n: usize) -> bool {
        let (run, name) = (&self.world.machines[n].run, &self.world.fixed.names[n]);
        let says = run.as_ref().is_some_and(|r| r.node.report().0 == Phase::Ready && !r.node.is_offline());
        says && self.world.server.live.serves(&self.world.server.state, name, "db", NOW).is_some()
    }

    /// No more faults, everyone gets a turn, the operator does what the ledger asks for: whether
    /// all nodes get ready, and if not, why.
    fn calm(&self, mut log: Option<&mut Vec<Act>>) -> Result<usize, String> {
        let mut p = self.clone();
        p.left = Faults::default();
        p.doubted = true;
        p.backup = None;
        let mut step = |p: &mut Place, act: Act| {
            if let Some(next) = p.after(act) {
                if let Some(log) = &mut log {
                    log.push(act);
                }
                *p = next;
            }
        };
        step(&mut p, Act::Heal);
        for round in 0..CALM_ROUNDS {
            while !p.world.late.is_empty() {
                step(&mut p, Act::Late(0));
            }
            for n in 0..NODES as u8 {
                step(&mut p, Act::Boot(n));
                step(&mut p, Act::Silence(n));
                step(&mut p, Act::Register(n));
                let m = &p.world.machines[n as usize];
                if m.on && (m.cert.is_none() || m.refused) {
                    // A key that the ledger does not know: the operator approves and starts it again.
                    p.world.power_off(n as usize, false);
                    silence(&mut p.world.server.live, &self.world.fixed.names[n as usize].clone());
                    step(&mut p, Act::Boot(n));
                    step(&mut p, Act::Register(n));
                }
                step(&mut p, Act::EndStep(n));
                step(&mut p, Act::Go(n, Fate::Good));
                step(&mut p, Act::Report(n, Fate::Good));
            }
            if let Some(violation) = &p.world.violation {
                return Err(violation.clone());
            }
            if (0..NODES).all(|n| p.is_ready(n)) && p.world.server.state.open_orders.is_empty() {
                return Ok(round + 1);
            }
            if round % 10 == 9 {
                p.world.operator(NOW);
            }
        }
        Err(format!("not all get ready within {CALM_ROUNDS} rounds: {}", p.words()))
    }

    fn words(&self) -> String {
        let state = &self.world.server.state;
        let word = |n: usize| {
            let (m, name) = (&self.world.machines[n], &self.world.fixed.names[n]);
            let says = m.run.as_ref().map_or("no agent".into(), |run| run.node.report().1);
            let generation = state.node(name).generation;
            let heard = self.world.server.live.heard.get(name);
            let barrier = state.cluster.formation("db").barrier(name, generation);
            format!("{name} (on {}, generation {generation}, heard {heard:?}, barrier {barrier}): {says}", m.on)
        };
        let c = &state.cluster;
        let all: Vec<String> = (0..NODES).map(word).collect();
        format!("{}\nunvouched {:?} behind {:?} steps {:?}", all.join("\n"), c.unvouched, c.behind, c.steps)
    }
}

fn spend(left: &mut Faults, fate: Fate) -> Option<()> {
    let budget = match fate {
        Fate::Good | Fate::Lost => return Some(()),
        Fate::AnswerLost => &mut left.answer,
        Fate::Delayed => &mut left.late,
        Fate::Twice => &mut left.twice,
    };
    *budget = budget.checked_sub(1)?;
    Some(())
}

fn silence(live: &mut Arc<Live>, name: &str) {
    if let Some(heard) = Arc::make_mut(live).heard.get_mut(name) {
        heard.at_ms = 0;
    }
}

fn seq_of(command: &Command) -> u64 {
    match command {
        Command::Claim { request, .. } => request.seq,
        Command::Report { report, .. } => report.seq,
        Command::Done { request, .. } => request.seq,
        _ => 0,
    }
}

/// Puts parts of a place into a hash, with messages' numbers ranked.
struct Keying<'a> {
    w: &'a World,
    seqs: &'a [Vec<u64>],
}

impl Keying<'_> {
    fn rank(&self, n: usize, seq: u64) -> usize {
        self.seqs[n].binary_search(&seq).expect("it was put there")
    }

    /// A certificate, without its node's number.
    fn print(print: &kiln::image::id::Digest) -> &[u8] {
        &print.0[8..24]
    }

    /// All of a node but who it is and whom it knows.
    fn node(&self, n: usize, backup: Option<&State>) -> u64 {
        let mut h = Fast::default();
        self.machine(n, &mut h);
        self.in_ledger(n, &self.w.server.state, &mut h);
        if let Some(backup) = backup {
            self.in_ledger(n, backup, &mut h);
        }
        self.heard(n, &mut h);
        self.w.late.iter().filter(|l| l.node == n).for_each(|l| self.late(l, &mut h));
        h.finish()
    }

    fn machine(&self, n: usize, h: &mut Fast) {
        let m = &self.w.machines[n];
        (m.on, m.cut, m.boots, m.key, m.kept, &m.asked, m.refused, m.registers, m.steps.len()).hash(h);
        (&m.mark, m.blank, &m.order).hash(h);
        let store = &m.stores[0];
        (store.lineage, store.seqno, store.marks.len(), store.view.contains(&n), store.view.len()).hash(h);
        m.cert.as_ref().map(|c| (Self::print(&c.print), c.generation)).hash(h);
        let Some(run) = &m.run else { return };
        // With the names in a granted join: there its members are not taken for others.
        run.node.shape(|seq| self.rank(n, seq) as u64, h);
        let Some(r) = &run.said else { return };
        (self.rank(n, r.seq), r.phase).hash(h);
        r.systems.iter().for_each(|s| (&s.lineage, s.stranded).hash(h));
        r.running.len().hash(h);
    }

    fn in_ledger(&self, n: usize, state: &State, h: &mut Fast) {
        let name = &self.w.fixed.names[n];
        let Some(node) = state.nodes.get(name) else { return };
        // A boot id ends with the boot's number.
        let boot = |id: &str| id.as_bytes()[35];
        let key = node.key.as_ref().map(|k| k.as_bytes()[4]);
        (node.generation, key, node.fenced, node.boots.len()).hash(h);
        if let Some(s) = &node.session {
            (boot(&s.boot_id), Self::print(&s.fingerprint), state.by_fingerprint(&s.fingerprint).is_some()).hash(h);
            s.left.hash(h);
        }
        node.boots.iter().for_each(|id| boot(id).hash(h));
        node.credential.as_ref().map(|c| boot(&c.boot_id)).hash(h);
        let attempts = &node.attempts;
        let counts = self.w.server.live.tried.get(name).is_some_and(|t| t.boot_id == attempts.boot_id);
        (attempts.count, attempts.retry, attempts.pause.is_some(), counts).hash(h);
        if let Some(o) = node.open_order() {
            let begun = o.begun.as_ref().map(|b| boot(&b.boot_id));
            (&o.order.id, o.booted.as_ref().map(|b| boot(b)), begun, o.registered, o.made, o.doubted).hash(h);
        }
        for f in state.cluster.formations.values() {
            f.stopped.get(name).map(|s| (s.generation, self.rank(n, s.seq), &s.data)).hash(h);
            f.granted.get(name).map(|g| (g.generation, self.rank(n, g.seq), g.seed, g.set_aside)).hash(h);
            (f.aside.get(name), f.members.contains(name), f.chosen.as_ref() == Some(name)).hash(h);
        }
    }

    /// What the ledger says of the nodes together.
    fn among(&self, state: &State, place: &[usize], h: &mut Fast) {
        let c = &state.cluster;
        let name = |name: &str| place[self.w.fixed.index(name)];
        (c.genesis, c.unvouched.is_some(), c.behind.is_some()).hash(h);
        for f in c.formations.values() {
            let members = f.members.iter().fold(0u8, |set, n| set | 1 << name(n));
            (&f.lineage, members).hash(h);
            f.seeding.as_ref().map(|s| (name(&s.node), s.generation)).hash(h);
        }
        for s in c.steps.values() {
            (&s.lineage, s.done).hash(h);
            let rank = |node: &str, seq| self.rank(self.w.fixed.index(node), seq);
            s.holder.as_ref().map(|(o, seq)| (name(&o.node), o.generation, rank(&o.node, *seq))).hash(h);
        }
    }

    fn heard(&self, n: usize, h: &mut Fast) {
        let Some(heard) = self.w.server.live.heard.get(&self.w.fixed.names[n]) else { return };
        (heard.generation, heard.at_ms == NOW).hash(h);
        heard.report.as_ref().map(|r| (self.rank(n, r.seq), &r.lineages, &r.stranded)).hash(h);
    }

    fn late(&self, late: &world::Late, h: &mut Fast) {
        (late.generation, self.rank(late.node, seq_of(&late.command))).hash(h);
        match &*late.command {
            Command::Claim { fingerprint, request } => (Self::print(fingerprint), &request.ask).hash(h),
            Command::Report { fingerprint, report } => {
                (Self::print(fingerprint), report.phase, report.running.len()).hash(h);
                report.systems.iter().for_each(|s| (&s.lineage, s.stranded).hash(h));
            }
            Command::Done { fingerprint, request } => (Self::print(fingerprint), request.ok).hash(h),
            _ => {}
        }
    }
}

/// A quick hash of good quality: each word is folded in by a multiplication of 128 bits.
#[derive(Default)]
struct Fast(u64);

impl Hasher for Fast {
    fn finish(&self) -> u64 {
        let wide = u128::from(self.0 ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        (wide as u64) ^ ((wide >> 64) as u64)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 56));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let wide = u128::from(self.0.rotate_left(23) ^ word ^ 0xa076_1d64_78bd_642f) * 0xe703_7ed1_a0b4_28db;
        self.0 = (wide as u64) ^ ((wide >> 64) as u64);
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64")
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

struct Found {
    what: String,
    /// Where it began, and what happened.
    first: Place,
    trace: Vec<Act>,
}

struct Explored {
    states: usize,
    transitions: usize,
    /// Of how many places the final phase was tried.
    calmed: usize,
    rounds: usize,
    found: Option<Box<Found>>,
}

/// How each place was reached first.
struct Ways {
    firsts: Vec<Place>,
    /// From which place, by what; the first places from themselves.
    parents: Vec<(u32, Act)>,
}

impl Ways {
    fn to(&self, mut at: u32, last: Option<Act>) -> (Place, Vec<Act>) {
        let mut trace: Vec<Act> = last.into_iter().collect();
        while at as usize >= self.firsts.len() {
            let (parent, act) = self.parents[at as usize];
            trace.push(act);
            at = parent;
        }
        trace.reverse();
        (self.firsts[at as usize].clone(), trace)
    }
}

/// In which order places are visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// The first violation has a shortest trace; all places of one depth are in memory.
    Breadth,
    /// Few places are in memory.
    Depth,
}

/// Every place that can be reached; of one in `sample` the final phase too.
fn explore(firsts: Vec<Place>, sample: u64, order: Order) -> Explored {
    let mut seen: HashSet<u64, BuildHasherDefault<Same>> = HashSet::default();
    let mut out = Explored { states: 0, transitions: 0, calmed: 0, rounds: 0, found: None };
    seen.extend(firsts.iter().map(Place::key));
    let mut open: VecDeque<(Place, u32)> = firsts.iter().cloned().zip(0..).collect();
    let parents = (0..firsts.len() as u32).map(|own| (own, Act::Heal)).collect();
    let mut ways = Ways { firsts, parents };
    'all: while let Some((place, id)) = open.pop_front() {
        for act in place.acts() {
            let Some(after) = place.after(act) else { continue };
            out.transitions += 1;
            let key = after.key();
            let new = seen.insert(key);
            let mut what = after.world.violation.clone();
            if new && what.is_none() && key % sample == 0 {
                out.calmed += 1;
                match after.calm(None) {
                    Ok(rounds) => out.rounds = out.rounds.max(rounds),
                    Err(why) => what = Some(why),
                }
            }
            if let Some(what) = what {
                let (first, trace) = ways.to(id, Some(act));
                out.found = Some(Box::new(Found { what, first, trace }));
                break 'all;
            }
            if new {
                let next = (after, ways.parents.len() as u32);
                ways.parents.push((id, act));
                match order {
                    Order::Breadth => open.push_back(next),
                    Order::Depth => open.push_front(next),
                }
            }
        }
    }
    out.states = seen.len();
    out
}

/// Each act of a trace with what it came to.
fn show(first: &Place, trace: &[Act]) -> String {
    let mut lines = Vec::new();
    let mut place = first.clone();
    for act in trace {
        let before = place.world.server.state.rev;
        let Some(next) = place.after(*act) else { break };
        place = next;
        let c = &place.world.server.state.cluster;
        let f = c.formation("db");
        let stores: Vec<String> = place
            .world
            .machines
            .iter()
            .enumerate()
            .map(|(n, m)| {
                let data = match m.stores[0].data() {
                    Data::Blank => "-".into(),
                    Data::Holds { lineage, rank } => format!("{lineage}:{rank}"),
                };
                let runs = if place.world.processes[0].serves(n) {
                    "*"
                } else if place.world.processes[0].runs(n) {
                    "~"
                } else {
                    ""
                };
                format!("{data}{runs}")
            })
            .collect();
        let stopped: Vec<&String> = f.stopped.keys().collect();
        let members: BTreeSet<&String> = f.members.iter().collect();
        lines.push(format!(
            "  {:<24} rev {before:>3} -> {:<3} disks {:<24} lineage {:?} seeding {:?} members {members:?} stopped {stopped:?}{}{}",
            format!("{act:?}"),
            place.world.server.state.rev,
            stores.join(" "),
            f.lineage.as_deref().unwrap_or("-"),
            f.seeding.as_ref().map(|h| h.node.as_str()).unwrap_or("-"),
            if c.unvouched.is_some() { " unvouched" } else { "" },
            if c.behind.is_some() { " behind" } else { "" },
        ));
    }
    lines.join("\n")
}

fn run(name: &str, from: From, faults: Faults, sample: u64) -> (usize, usize) {
    let began = Instant::now();
    let mut explored = explore(starts(from, faults, Mutation::None), sample, Order::Depth);
    if explored.found.is_some() {
        explored = explore(starts(from, faults, Mutation::None), sample, Order::Breadth);
    }
    let title = format!("{name}, from {from:?}").to_lowercase();
    println!(
        "{title:<52} {:>8} states {:>9} transitions {:>6} final phases (at most {:>2} rounds) {:>6.1} s",
        explored.states,
        explored.transitions,
        explored.calmed,
        explored.rounds,
        began.elapsed().as_secs_f64()
    );
    if let Some(found) = explored.found {
        let mut place = found.first.clone();
        for act in &found.trace {
            place = place.after(*act).expect("a trace can be walked");
        }
        let mut log = Vec::new();
        let _ = place.calm(Some(&mut log));
        log.truncate(30);
        let backup = found.first.backup.as_ref().map(|b| b.rev);
        println!("backup at {backup:?}\n{}\nfinal phase:\n{}", show(&found.first, &found.trace), show(&place, &log));
        panic!("{title}: {}", found.what);
    }
    (explored.states, explored.transitions)
}

/// What may happen, where it begins; together they are what issue 3 asks for, each set of faults in
/// all orders and at all moments.
fn scenarios() -> Vec<(&'static str, From, Faults)> {
    let none = Faults::default();
    let (nothing, formed, two) = (From::Nothing, From::Formed(3), From::Formed(2));
    vec![
        ("no fault", nothing, none),
        ("server restart", nothing, Faults { restart: 1, ..none }),
        ("crash", nothing, Faults { crash: 1, ..none }),
        ("wipe", nothing, Faults { wipe: 1, ..none }),
        ("process dies", nothing, Faults { die: 1, ..none }),
        ("agent restarts", nothing, Faults { agent: 1, ..none }),
        ("cut", nothing, Faults { cut: 1, ..none }),
        ("loss", nothing, Faults { loss: 1, ..none }),
        ("batch", nothing, Faults { batch: 2, ..none }),
        ("answer lost", nothing, Faults { answer: 1, ..none }),
        ("late", nothing, Faults { late: 1, ..none }),
        ("twice", nothing, Faults { twice: 1, ..none }),
        ("two crashes", formed, Faults { crash: 2, ..none }),
        ("crash, wipe", formed, Faults { crash: 1, wipe: 1, ..none }),
        ("crash, restart", formed, Faults { crash: 1, restart: 1, ..none }),
        ("crash, fence", formed, Faults { crash: 1, fence: 1, ..none }),
        ("crash, cut", formed, Faults { crash: 1, cut: 1, ..none }),
        ("crash, late", formed, Faults { crash: 1, late: 1, ..none }),
        ("crash, loss", formed, Faults { crash: 1, loss: 1, ..none }),
        ("crash, rollback", formed, Faults { crash: 1, rollback: 1, ..none }),
        ("wipe, rollback", formed, Faults { wipe: 1, rollback: 1, ..none }),
        ("late, rollback", formed, Faults { late: 1, rollback: 1, ..none }),
        ("dark", formed, Faults { dark: 1, ..none }),
        ("dark, wipe", formed, Faults { dark: 1, wipe: 1, ..none }),
        ("dark, crash", formed, Faults { dark: 1, crash: 1, ..none }),
        ("dark, fence", formed, Faults { dark: 1, fence: 1, ..none }),
        ("dark, batch", formed, Faults { dark: 1, batch: 1, ..none }),
        ("dark, answer lost", formed, Faults { dark: 1, answer: 1, ..none }),
        ("dark, loss", formed, Faults { dark: 1, loss: 1, ..none }),
        ("dark, rollback", formed, Faults { dark: 1, rollback: 1, ..none }),
        ("dark without server", formed, Faults { dark: 1, deaf: 1, ..none }),
        ("order", formed, Faults { order: 1, ..none }),
        ("order, crash", formed, Faults { order: 1, crash: 1, ..none }),
        ("order, wipe", formed, Faults { order: 1, wipe: 1, ..none }),
        ("order, restart", formed, Faults { order: 1, restart: 1, ..none }),
        ("order, rollback", formed, Faults { order: 1, rollback: 1, ..none }),
        ("order, dark", formed, Faults { order: 1, dark: 1, ..none }),
        ("two orders", formed, Faults { order: 2, ..none }),
        ("order, crash", two, Faults { order: 1, crash: 1, ..none }),
        ("two crashes", two, Faults { crash: 2, ..none }),
        ("dark", two, Faults { dark: 1, ..none }),
        ("dark, late", two, Faults { dark: 1, late: 1, ..none }),
        ("dark, twice", two, Faults { dark: 1, twice: 1, ..none }),
    ]
}

/// More at once than fits into the minutes that a run of all tests has: by name only.
fn dear_scenarios() -> Vec<(&'static str, From, Faults)> {
    let none = Faults::default();
    let (formed, two) = (From::Formed(3), From::Formed(2));
    vec![
        ("dark, crash, rollback", formed, Faults { dark: 1, crash: 1, rollback: 1, ..none }),
        ("dark, two crashes, restart", formed, Faults { dark: 1, crash: 2, restart: 1, ..none }),
        ("dark, crash, fence, wipe", two, Faults { dark: 1, crash: 1, fence: 1, wipe: 1, ..none }),
        ("two crashes, cut, fence", two, Faults { crash: 2, cut: 1, fence: 1, ..none }),
        ("dark, late, rollback", formed, Faults { dark: 1, late: 1, rollback: 1, ..none }),
        ("two crashes, loss, cut", formed, Faults { crash: 2, loss: 1, cut: 1, ..none }),
        ("dark, crash, cut", two, Faults { dark: 1, crash: 1, cut: 1, ..none }),
        ("two crashes, process dies, agent restarts", formed, Faults { crash: 2, die: 1, agent: 1, ..none }),
        ("dark, batch, answer lost", two, Faults { dark: 1, batch: 2, answer: 1, ..none }),
        ("two orders, crash", formed, Faults { order: 2, crash: 1, ..none }),
        ("order, two crashes", formed, Faults { order: 1, crash: 2, ..none }),
        ("order, dark, crash", formed, Faults { order: 1, dark: 1, crash: 1, ..none }),
    ]
}

#[test]
fn every_path_is_safe_and_leads_to_a_cluster() {
    let only = std::env::var("KILN_EXPLORE").unwrap_or_default();
    let full = std::env::var("KILN_TEST_LEVEL").as_deref() == Ok("full");
    let began = Instant::now();
    let cheap = scenarios()
        .into_iter()
        .filter(|(name, ..)| if only.is_empty() { full || *name == "no fault" } else { *name == only });
    let dear = dear_scenarios().into_iter().filter(|(name, ..)| *name == only);
    let wanted: Vec<_> = cheap.chain(dear).collect();
    let (next, sum) = (AtomicUsize::new(0), Mutex::new((0, 0)));
    // Two at once: more would only need more memory on CI's machines.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, from, faults)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Where little can happen, more of it is led to its end.
                    let sample = if faults.order > 0 { 5 } else { 50 };
                    let (states, transitions) = run(name, *from, *faults, sample);
                    let mut sum = sum.lock().expect("the other one found nothing");
                    *sum = (sum.0 + states, sum.1 + transitions);
                }
            });
        }
    });
    let (count, sum) = (wanted.len(), sum.into_inner().expect("no violation"));
    assert!(count > 0, "KILN_EXPLORE={only} is none of tests/explore.rs's scenarios");
    println!("{} states, {} transitions, {:.0} s", sum.0, sum.1, began.elapsed().as_secs_f64());
}

/// Too dear without optimisation.
fn full() -> bool {
    let full = std::env::var("KILN_TEST_LEVEL").as_deref() == Ok("full");
    if !full {
        println!("not run: KILN_TEST_LEVEL=full scripts/build test --test explore");
    }
    full
}

/// The explorer must see what happens without a rule: its shortest way there is printed.
fn planted(mutation: Mutation, from: From, faults: Faults) -> String {
    let explored = explore(starts(from, faults, mutation), u64::MAX, Order::Breadth);
    let found = explored.found.unwrap_or_else(|| panic!("{mutation:?}: nothing found in {} states", explored.states));
    println!("{mutation:?}: {} ({} states)\n{}", found.what, explored.states, show(&found.first, &found.trace));
    found.what
}

#[test]
fn without_the_genesis_rule_a_lost_ledger_makes_a_second_cluster() {
    if !full() {
        return;
    }
    planted(Mutation::NoGenesis, From::Formed(2), Faults { loss: 1, ..Faults::default() });
}

#[test]
fn without_the_fence_rule_a_silent_holder_is_seeded_over() {
    if !full() {
        return;
    }
    planted(Mutation::SilentIsOff, From::Nothing, Faults { cut: 1, ..Faults::default() });
}

#[test]
fn without_the_gate_an_order_takes_the_majority() {
    if !full() {
        return;
    }
    let found = planted(Mutation::NoGate, From::Formed(3), Faults { order: 1, crash: 1, ..Faults::default() });
    assert!(found.contains("restarts by order, which leaves"), "{found}");
}

#[test]
fn without_the_gate_an_order_destroys_the_last_copy() {
    if !full() {
        return;
    }
    // All are off when the order is given: no majority is left to be taken.
    let faults = Faults { order: 1, dark: 1, ..Faults::default() };
    let firsts = starts(From::Formed(3), faults, Mutation::NoGate);
    let alone = firsts.into_iter().filter_map(|p| {
        let mut p = p.after(Act::Dark)?.after(Act::Silence(0))?;
        // The others' disks are blank: what the first one holds is all there is.
        (1..NODES).for_each(|n| p.world.machine(n).wipe());
        Some(p)
    });
    let explored = explore(alone.collect(), u64::MAX, Order::Breadth);
    let found = explored.found.expect("a violation");
    println!("{} ({} states)\n{}", found.what, explored.states, show(&found.first, &found.trace));
    assert!(found.what.contains("of which there is no other copy"), "{}", found.what);
}

#[test]
fn without_the_mark_an_order_wipes_twice() {
    if !full() {
        return;
    }
    let found = planted(Mutation::NoMark, From::Formed(3), Faults { order: 1, crash: 1, ..Faults::default() });
    assert!(found.contains("a second time"), "{found}");
}

#[test]
fn without_the_generation_check_an_old_message_changes_something() {
    if !full() {
        return;
    }
    planted(Mutation::AnyGeneration, From::Formed(2), Faults { late: 1, crash: 1, ..Faults::default() });
}

#[test]
fn without_the_generation_check_somebody_is_seeded_over() {
    if !full() {
        return;
    }
    let faults = Faults { late: 1, crash: 2, die: 1, ..Faults::default() };
    let firsts = starts(From::Formed(2), faults, Mutation::AnyGeneration);
    // Begun where it may go wrong: the third node's question is still on its way when it crashes.
    let lax = firsts.into_iter().map(|p| Place { world: World { lax: true, ..p.world.clone() }, ..p });
    let lax = lax.filter_map(|p| p.after(Act::Boot(2))?.after(Act::Go(2, Fate::Delayed))?.after(Act::Crash(2)));
    let lax = lax.collect();
    let explored = explore(lax, u64::MAX, Order::Breadth);
    let found = explored.found.expect("a violation");
    println!("{} ({} states)\n{}", found.what, explored.states, show(&found.first, &found.trace));
    assert!(found.what.contains("seeds"), "{}", found.what);
}
