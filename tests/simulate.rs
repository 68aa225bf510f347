//! Long random lives of whole clusters, on the production protocol: crashes, wipes, lost, late and
//! doubled messages, partitions, server restarts, ledgers lost or put back, fences; then a calm in
//! which every node must get ready, in one lineage. A seed decides all of it:
//! `KILN_SEED=n cargo test --release --test simulate one_seed -- --nocapture` shows one.

mod world;

use kiln::cli::recipes::{RecipesArgs, resolve};
use kiln::join::node::{Action, Job, Outcome};
use kiln::ledger::decide::{Reimage, Risk};
use kiln::ledger::message::{Disks, Phase, SystemState, Via};
use kiln::ledger::state::State;
use kiln::ledger::{Command, decide};
use kiln::recipe::System;
use kiln::recipe::system::{Dark, Formation, FormationKind, Scope};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{Fate, Role, World};

/// The server has listened for long.
const START_MS: u64 = 1_000_000;
const REPORT_MS: u64 = 10_000;
const CALM_MAX_MS: u64 = 3_600_000;
const OPERATOR_MS: u64 = 30_000;

/// SplitMix64: small, and good enough to throw dice.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn to(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.to(high - low + 1)
    }

    fn percent(&mut self, p: u64) -> bool {
        self.to(100) < p
    }
}

fn controller() -> Vec<System> {
    let mut vip =
        world::system("vip", &["environment"], None, vec![world::step("cib", Scope::Cluster, &["vip"], None)]);
    vip.formation = Some(Formation { kind: FormationKind::Static, dark: None });
    vec![
        world::system("environment", &[], None, vec![world::step("accounts", Scope::Node, &[], None)]),
        world::system(
            "db",
            &["environment"],
            Some(Dark::Rank),
            vec![world::step("schema", Scope::Cluster, &["db"], None)],
        ),
        world::system(
            "mq",
            &["environment"],
            Some(Dark::Reset),
            vec![
                world::step("make-room", Scope::Peer, &[], None),
                world::step("policy", Scope::Cluster, &["mq"], None),
            ],
        ),
        vip,
        world::system("api", &["db", "mq", "vip"], None, vec![world::step("tables", Scope::Cluster, &[], Some("db"))]),
    ]
}

fn compute() -> Vec<System> {
    vec![world::system("environment", &[], None, vec![]), world::system("agent", &["environment"], None, vec![])]
}

#[derive(Clone, Debug)]
enum Happens {
    /// Power on.
    Boot(usize),
    /// The agent of this boot tries to register, for the nth time.
    Register(usize, u32, u32),
    Wake(usize, u32),
    /// A script or unit is done.
    End(usize, u32, Action),
    /// A question reaches the server …
    Arrive(usize, u32, Action, Fate),
    /// … and its answer the node.
    Answer(usize, u32, Action, bool),
    Report(usize, u32),
    Late,
    Heal(usize),
    Fault,
    Operator,
    Calm,
}

struct Simulation {
    world: World,
    dice: Dice,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: Vec<Option<Happens>>,
    /// When each node was powered on.
    booted: Vec<u64>,
    calm: bool,
    backup: Option<Arc<State>>,
    log: bool,
    handled: u64,
    /// A report is on its way already.
    reporting: Vec<bool>,
    /// Next wake of each node that is in the queue.
    waking: Vec<u64>,
    /// Orders asked for so far.
    orders: u32,
}

impl Simulation {
    fn new(seed: u64, log: bool) -> Simulation {
        let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let large = seed % 80 == 7;
        let controllers = dice.between(1, 5) as usize;
        let computes = if large { dice.between(100, 140) } else { dice.between(0, 4) } as usize;
        let roles = [
            Role { name: "controller", systems: controller(), nodes: controllers },
            Role { name: "worker", systems: compute(), nodes: computes },
        ];
        let mut s = Simulation::of(&roles, dice, log);
        for n in 0..s.world.machines.len() {
            let late = s.dice.to(20_000);
            s.after(late, Happens::Boot(n));
        }
        let faults = s.dice.between(1, 8);
        let length = s.dice.between(30_000, 240_000);
        for _ in 0..faults {
            let at = s.dice.to(length);
            s.after(at, Happens::Fault);
        }
        s.after(length, Happens::Calm);
        s
    }

    /// Nothing goes wrong: all are powered on, one after the other.
    fn calm(roles: &[Role]) -> Simulation {
        let mut s = Simulation::of(roles, Dice(0), false);
        s.calm = true;
        for n in 0..s.world.machines.len() {
            s.after(n as u64, Happens::Boot(n));
        }
        s
    }

    fn of(roles: &[Role], dice: Dice, log: bool) -> Simulation {
        let mut world = World::new(roles, START_MS);
        world.server.command(&Command::Form, START_MS).expect("form");
        let nodes = world.machines.len();
        Simulation {
            world,
            dice,
            now: START_MS,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            booted: vec![0; nodes],
            calm: false,
            backup: None,
            log,
            handled: 0,
            reporting: vec![false; nodes],
            waking: vec![u64::MAX; nodes],
            orders: 0,
        }
    }

    fn after(&mut self, ms: u64, what: Happens) {
        self.queue.push(Reverse((self.now + ms, self.events.len() as u64)));
        self.events.push(Some(what));
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.log {
            println!("{:>9.3} {}", (self.now - START_MS) as f64 / 1000.0, what());
        }
    }

    fn name(&self, n: usize) -> &str {
        &self.world.fixed.names[n]
    }

    fn is_current(&self, n: usize, boot: u32) -> bool {
        self.world.machines[n].on && self.world.machines[n].boots == boot
    }

    /// Lets one thing happen; whether there was one.
    fn next(&mut self) -> bool {
        let Some(Reverse((at, id))) = self.queue.pop() else { return false };
        let happens = self.events[id as usize].take().expect("each happens once");
        self.now = self.now.max(at);
        self.handled += 1;
        self.handle(happens);
        true
    }

    /// Until all is well; an error says what is not.
    fn run(&mut self) -> Result<(), String> {
        let mut calm_since = None;
        while self.next() {
            self.world.check();
            if let Some(violation) = &self.world.violation {
                return Err(violation.clone());
            }
            if !self.calm {
                continue;
            }
            let since = *calm_since.get_or_insert(self.now);
            if self.handled.is_multiple_of(16) && self.is_ready() {
                return Ok(());
            }
            if self.now - since > CALM_MAX_MS {
                return Err(format!("not all are ready an hour after the last fault:\n{}", self.words()));
            }
        }
        Err("nothing happens any more".into())
    }

    fn is_ready(&self) -> bool {
        let (state, live) = (&self.world.server.state, &self.world.server.live);
        (0..self.world.machines.len()).all(|n| {
            let run = self.world.machines[n].run.as_ref();
            let says = run.is_some_and(|r| !r.node.is_offline() && r.node.report().0 == Phase::Ready);
            let systems = self.world.fixed.systems_of(n).iter().filter(|s| s.is_seeded());
            says && systems.into_iter().all(|s| live.serves(state, self.name(n), &s.name, self.now).is_some())
        })
    }

    fn words(&self) -> String {
        let word = |n: usize| {
            let m = &self.world.machines[n];
            let says = m.run.as_ref().map_or("no agent".into(), |r| r.node.report().1);
            format!("{} (on {}, refused {}): {says}", self.name(n), m.on, m.refused)
        };
        let not_ready = |n: &usize| {
            let run = self.world.machines[*n].run.as_ref();
            run.is_none_or(|r| r.node.report().0 != Phase::Ready)
        };
        let all: Vec<String> = (0..self.world.machines.len()).filter(not_ready).take(6).map(word).collect();
        let c = &self.world.server.state.cluster;
        format!("{}\nunvouched {:?} behind {:?} formations {:?}", all.join("\n"), c.unvouched, c.behind, c.formations)
    }

    /// Monotonic for this boot.
    fn tick(&mut self, n: usize) -> u64 {
        let up = self.now - self.booted[n];
        let base = world::machine::base_ms(self.world.machines[n].boots);
        let machine = self.world.machine(n);
        machine.clock = machine.clock.max(base + up);
        machine.clock
    }

    fn handle(&mut self, happens: Happens) {
        match happens {
            Happens::Boot(n) => self.boot(n),
            Happens::Register(n, boot, tries) if self.is_current(n, boot) => self.register(n, boot, tries),
            Happens::Wake(n, boot) if self.is_current(n, boot) => {
                self.waking[n] = u64::MAX;
                self.wake(n);
            }
            Happens::End(n, boot, action) if self.is_current(n, boot) => {
                let outcome = match self.world.machines[n].steps.contains(&action) {
                    true => self.world.end_step(n, &action),
                    false => self.world.perform(n, &action).expect("no message"),
                };
                if let Job::Peer { task, .. } = &action.job {
                    self.world.tell_peer(n, task, self.now);
                }
                self.done(n, &action, outcome);
            }
            Happens::Arrive(n, boot, action, fate) if self.is_current(n, boot) => {
                let late = self.world.late.len();
                let asked = self.world.ask(n, &action, fate, self.now).expect("a message");
                if self.world.late.len() > late {
                    let ms = self.dice.to(60_000);
                    self.after(ms, Happens::Late);
                }
                let ms = if asked.is_ok() { self.dice.between(1, 50) } else { 5_000 };
                let good = asked.is_ok();
                self.after(ms, Happens::Answer(n, boot, action, good));
                self.again_if_refused(n);
            }
            Happens::Answer(n, boot, action, good) if self.is_current(n, boot) => {
                let outcome = match good && self.world.machines[n].cert.is_some() {
                    true => self.world.answered(n, &action, self.now),
                    false => Outcome::Failed("no answer".into()),
                };
                self.done(n, &action, outcome);
            }
            Happens::Report(n, boot) if self.is_current(n, boot) => {
                self.reporting[n] = false;
                self.report(n, boot);
            }
            Happens::Late if !self.world.late.is_empty() => {
                let which = self.dice.to(self.world.late.len() as u64) as usize;
                self.world.deliver_late(which, self.now);
            }
            Happens::Heal(n) => self.world.machine(n).cut = false,
            Happens::Fault if !self.calm => self.fault(),
            Happens::Operator => {
                let said = self.world.operator(self.now);
                if said {
                    self.say(|| "the operator speaks".into());
                }
                self.after(OPERATOR_MS, Happens::Operator);
            }
            Happens::Calm => self.begin_calm(),
            _ => {}
        }
    }

    fn boot(&mut self, n: usize) {
        if self.world.machines[n].on {
            return;
        }
        self.say(|| format!("{} boots", self.name(n)));
        let _ = self.world.server.command(&Command::Tick { wall_ms: 0 }, self.now);
        if !self.world.boot(n, None, self.now) {
            self.say(|| format!("{} is held", self.name(n)));
            return self.after(10_000, Happens::Boot(n));
        }
        (self.booted[n], self.reporting[n], self.waking[n]) = (self.now, false, u64::MAX);
        let boot = self.world.machines[n].boots;
        let ms = self.dice.between(5_000, 15_000);
        self.after(ms, Happens::Register(n, boot, 0));
    }

    fn register(&mut self, n: usize, boot: u32, tries: u32) {
        let m = &self.world.machines[n];
        if m.cert.is_some() && !m.refused {
            return;
        }
        self.tick(n);
        if self.world.register(n, self.now) {
            self.say(|| {
                let cert = self.world.machines[n].cert.as_ref();
                format!("{} registers, generation {}", self.name(n), cert.map_or(0, |c| c.generation))
            });
            self.wake(n);
            self.report_soon(n, 0);
            return;
        }
        // Silent for half a minute: it goes on without.
        let fenced = self.world.server.truly_fenced(self.name(n));
        if tries >= 3 && self.world.machines[n].cut && !fenced && self.world.go_offline(n) {
            self.say(|| format!("{} goes on without the server", self.name(n)));
            self.wake(n);
        }
        let ms = self.dice.between(5_000, 15_000);
        self.after(ms, Happens::Register(n, boot, tries + 1));
    }

    fn again_if_refused(&mut self, n: usize) {
        if self.world.machines[n].refused {
            let boot = self.world.machines[n].boots;
            self.after(1_000, Happens::Register(n, boot, 0));
        }
    }

    fn wake(&mut self, n: usize) {
        let clock = self.tick(n);
        let boot = self.world.machines[n].boots;
        let Some(run) = &mut self.world.machine(n).run else { return };
        let due = run.node.due(clock);
        let next = run.node.next_ms(clock);
        for action in due {
            self.start(n, boot, action);
        }
        let said = self.world.machines[n].run.as_ref().and_then(|r| r.said.as_ref().map(|r| r.seq));
        let new = self.world.report_of(n).map(|r| r.seq);
        if new != said {
            self.report_soon(n, 20);
        }
        if let Some(next) = next {
            let at = self.now + next.saturating_sub(clock) + 1;
            if at < self.waking[n] {
                self.waking[n] = at;
                self.after(at - self.now, Happens::Wake(n, boot));
            }
        }
    }

    fn start(&mut self, n: usize, boot: u32, action: Action) {
        if action.job.claim(&action.system).is_some() || action.job.told(&action.system).is_some() {
            let fate = match self.dice.to(100) {
                _ if self.calm => Fate::Good,
                0..3 => Fate::AnswerLost,
                3..5 => Fate::Delayed,
                5..7 => Fate::Twice,
                7..10 => Fate::Lost,
                _ => Fate::Good,
            };
            let ms = self.dice.between(1, 50);
            return self.after(ms, Happens::Arrive(n, boot, action, fate));
        }
        if self.world.is_cluster_step(n, &action) {
            self.world.begin_step(n, &action);
        }
        let ms = match &action.job {
            Job::Health { .. } | Job::Look { .. } | Job::Check { .. } | Job::Lineage { .. } => {
                self.dice.between(10, 300)
            }
            Job::Seed { .. } | Job::Join { .. } | Job::Start { .. } => self.dice.between(500, 20_000),
            _ => self.dice.between(100, 5_000),
        };
        self.after(ms, Happens::End(n, boot, action));
    }

    fn done(&mut self, n: usize, action: &Action, outcome: Outcome) {
        let clock = self.tick(n);
        if !matches!(action.job, Job::Health { .. } | Job::Look { .. }) {
            self.say(|| format!("{} {}: {:?} -> {outcome:?}", self.name(n), action.system, action.job));
        }
        if let Some(run) = &mut self.world.machine(n).run {
            run.node.done(&action.system, &action.job, outcome, clock);
        }
        self.wake(n);
    }

    fn report_soon(&mut self, n: usize, ms: u64) {
        let boot = self.world.machines[n].boots;
        if !self.reporting[n] {
            self.reporting[n] = true;
            self.after(ms, Happens::Report(n, boot));
        }
    }

    fn report(&mut self, n: usize, boot: u32) {
        self.tick(n);
        let fate = match self.dice.to(100) {
            _ if self.calm => Fate::Good,
            0..3 => Fate::Lost,
            3..5 => Fate::Delayed,
            5..7 => Fate::Twice,
            _ => Fate::Good,
        };
        let late = self.world.late.len();
        self.world.report(n, fate, self.now);
        if !self.world.machines[n].on {
            self.say(|| format!("{} restarts by its order", self.name(n)));
            let away = self.dice.between(1_000, 60_000);
            return self.after(away, Happens::Boot(n));
        }
        if self.world.late.len() > late {
            let ms = self.dice.to(60_000);
            self.after(ms, Happens::Late);
        }
        self.again_if_refused(n);
        self.wake(n);
        let _ = boot;
        self.report_soon(n, REPORT_MS);
    }

    fn fault(&mut self) {
        let n = self.dice.to(self.world.machines.len() as u64) as usize;
        let away = self.dice.between(3_000, 60_000);
        match self.dice.to(100) {
            kind @ 0..35 => {
                let wiped = kind >= 27;
                self.say(|| format!("{} {}", self.name(n), if wiped { "is wiped" } else { "crashes" }));
                self.world.power_off(n, wiped);
                self.after(away, Happens::Boot(n));
                if self.dice.percent(15) {
                    // It stays off for long, and the operator says so.
                    self.now += 31_000;
                    let node = self.name(n).to_string();
                    let fenced = self.world.server.command(&Command::Fence { node }, self.now);
                    self.say(|| format!("{} is fenced: {}", self.name(n), fenced.is_ok()));
                }
            }
            35..45 => {
                self.say(|| "all lose their power".into());
                self.world.dark();
                for n in 0..self.world.machines.len() {
                    let away = self.dice.between(1_000, 60_000);
                    self.after(away, Happens::Boot(n));
                }
            }
            45..60 => {
                self.say(|| format!("{} cannot reach the server", self.name(n)));
                self.world.machine(n).cut = true;
                self.after(away * 2, Happens::Heal(n));
            }
            60..65 => {
                self.say(|| "nobody can reach the server".into());
                for n in 0..self.world.machines.len() {
                    self.world.machine(n).cut = true;
                    self.after(away * 2, Happens::Heal(n));
                }
            }
            65..75 => {
                self.say(|| "the server restarts".into());
                self.world.server.restart(None, self.now, self.now);
            }
            75..80 => {
                self.say(|| "the ledger is saved".into());
                self.backup = Some(self.world.server.state.clone());
            }
            80..87 => {
                let Some(backup) = self.backup.clone() else { return };
                self.say(|| "the ledger is put back".into());
                self.world.server.state = backup;
                self.world.server.restart(Some("put back"), self.now, self.now);
            }
            87..90 => {
                self.say(|| "the ledger is lost".into());
                self.world.lose();
                self.world.server.restart(Some("lost"), self.now, self.now);
            }
            90..95 => {
                let s = self.dice.to(self.world.fixed.seeded.len() as u64) as usize;
                self.say(|| format!("{}'s {} dies", self.name(n), self.world.fixed.seeded[s]));
                self.world.stop(s, n, false);
            }
            95..98 => {
                let disks = if self.dice.percent(70) { Disks::Wipe } else { Disks::Keep };
                let (id, node) = (format!("{:08x}", self.orders), self.name(n).to_string());
                self.orders += 1;
                let (image, expires_ms, risk) = (None, u64::MAX, Risk::default());
                let order = Box::new(Reimage { id, node, image, disks, via: Via::Reboot, expires_ms, risk });
                let given = self.world.server.command(&Command::Reimage(order), self.now);
                let word = given.map_or_else(|r| r.reason, |_| "given".into());
                self.say(|| format!("{} is ordered to be reimaged, disks {}: {word}", self.name(n), disks.word()));
            }
            _ => {
                if self.world.machines[n].cert.is_none() {
                    return;
                }
                self.say(|| format!("{}'s agent restarts", self.name(n)));
                self.tick(n);
                let systems = self.world.fixed.systems_of(n).to_vec();
                self.world.machine(n).restart_agent(&systems);
                self.wake(n);
            }
        }
    }

    fn begin_calm(&mut self) {
        self.say(|| "calm".into());
        self.calm = true;
        for n in 0..self.world.machines.len() {
            self.world.machine(n).cut = false;
            let ms = self.dice.to(10_000);
            self.after(ms, Happens::Boot(n));
        }
        for _ in 0..self.world.late.len() {
            self.after(1_000, Happens::Late);
        }
        self.after(OPERATOR_MS, Happens::Operator);
    }
}

/// How one seed went: events handled, virtual time.
fn simulate(seed: u64, log: bool) -> Result<(u64, u64), String> {
    let mut simulation = Simulation::new(seed, log);
    simulation.run().map_err(|what| {
        format!(
            "seed {seed}: {what}\nreplay: KILN_SEED={seed} cargo test --release --test simulate one_seed -- --nocapture"
        )
    })?;
    Ok((simulation.handled, simulation.now - START_MS))
}

#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("KILN_SEED") else { return };
    let seed = seed.parse().expect("KILN_SEED is a number");
    println!("{:?}", simulate(seed, true).unwrap_or_else(|e| panic!("{e}")));
}

#[test]
fn every_seed_ends_with_one_cluster() {
    if std::env::var("KILN_SEED").is_ok() {
        return;
    }
    let full = std::env::var("KILN_TEST_LEVEL").as_deref() == Ok("full");
    let seeds: u64 = if full { 10_000 } else { 40 };
    let began = Instant::now();
    let half = |first: u64| {
        move || -> Result<(u64, u64), String> {
            let mut sum = (0, 0);
            for seed in (first..seeds).step_by(2) {
                let (events, ms) = simulate(seed, false)?;
                sum = (sum.0 + events, sum.1 + ms);
            }
            Ok(sum)
        }
    };
    let other = std::thread::spawn(half(1));
    let one = half(0)();
    let two = other.join().expect("no panic");
    let (one, two) = (one.unwrap_or_else(|e| panic!("{e}")), two.unwrap_or_else(|e| panic!("{e}")));
    println!(
        "{seeds} seeds: {} events, {} hours of virtual time, {:.1} s",
        one.0 + two.0,
        (one.1 + two.1) / 3_600_000,
        began.elapsed().as_secs_f64()
    );
    assert!(!full || began.elapsed() < Duration::from_secs(120), "10,000 seeds take longer than two minutes");
}

/// The systems of a shipped role.
fn shipped(name: &str) -> Vec<System> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let args = RecipesArgs { recipes: top.join("recipes"), overlays: None };
    let chosen = resolve(name, &args).expect("a recipe");
    kiln::recipe::file::parse(&chosen.folder, &chosen.release, &chosen.role).unwrap_or_else(|p| panic!("{p}")).systems
}

/// Mitaka's systems as they are shipped, with scripts that all succeed: three controllers, a compute and the storage
/// node get ready, in the order that the systems ask for, and what is the cluster's is done once.
#[test]
fn mitakas_roles_become_a_cloud() {
    let role = |name, nodes| Role { name, systems: shipped(&format!("mitaka/{name}")), nodes };
    let mut s = Simulation::calm(&[role("controller", 3), role("compute", 1), role("storage", 1)]);
    let nodes = s.world.machines.len();
    // Of each node: its systems in the order in which they became healthy, and after how many seconds.
    let mut healthy: Vec<Vec<(String, u64)>> = vec![Vec::new(); nodes];
    while !s.is_ready() {
        assert!(s.next() && s.now < START_MS + CALM_MAX_MS, "{}", s.words());
        s.world.check();
        assert_eq!(s.world.violation, None);
        for (n, found) in healthy.iter_mut().enumerate() {
            let Some(run) = &s.world.machines[n].run else { continue };
            for system in run.node.report().2.into_iter().filter(|r| r.state == SystemState::Healthy) {
                if !found.iter().any(|(name, _)| *name == system.name) {
                    found.push((system.name, (s.now - START_MS) / 1000));
                }
            }
        }
    }
    for (n, found) in healthy.iter().enumerate() {
        let words: Vec<String> = found.iter().map(|(name, secs)| format!("{name} {secs}")).collect();
        println!("{}: {} s", s.name(n), words.join(", "));
        let place = |name: &str| found.iter().position(|(f, _)| f == name).unwrap_or_else(|| panic!("no {name}"));
        let systems = s.world.fixed.systems_of(n);
        assert_eq!(found.len(), systems.len());
        for system in systems {
            for first in &system.after {
                assert!(place(first) < place(&system.name), "{} comes before {first}", system.name);
            }
        }
        if systems.iter().any(|s| s.name == "keystone") {
            for asks in ["glance", "nova-controller", "neutron-controller", "horizon"] {
                assert!(place("keystone") < place(asks), "{asks} comes before keystone");
            }
        }
    }
    let marks = |system: &str| {
        let process = &s.world.processes[s.world.fixed.seeded(system).expect(system)];
        assert_eq!(process.made, 1, "{system} was made once");
        process.of(0).expect("it runs").marks.clone()
    };
    let mut in_galera = marks("galera");
    println!("once: {}", in_galera.join(", "));
    assert_eq!(
        in_galera.iter().find(|m| m.ends_with("/catalogue") || *m == "keystone/database").unwrap(),
        "keystone/database"
    );
    in_galera.sort();
    let once = [
        "glance/catalogue",
        "glance/database",
        "horizon/database",
        "keystone/database",
        "neutron-controller/catalogue",
        "neutron-controller/database",
        "nova-controller/catalogue",
        "nova-controller/database",
    ];
    assert_eq!(in_galera, once);
    assert_eq!(marks("rabbitmq"), ["rabbitmq/policy"]);
    assert_eq!(s.world.done.iter().collect::<Vec<_>>(), ["pacemaker/cib"]);
}

/// A thousand nodes join at once: what it costs in all, and the dearest kind of message.
#[test]
fn a_thousand_nodes_join_in_time() {
    if std::env::var("KILN_TEST_LEVEL").as_deref() != Ok("full") {
        return;
    }
    let roles = [
        Role { name: "controller", systems: controller(), nodes: 3 },
        Role { name: "worker", systems: compute(), nodes: 997 },
    ];
    let mut s = Simulation::calm(&roles);
    let began = Instant::now();
    // Asking a thousand nodes whether all are ready is dear: now and then will do.
    while s.next() {
        if s.handled.is_multiple_of(5_000) && s.is_ready() {
            break;
        }
        assert!(s.now < START_MS + CALM_MAX_MS, "{}", s.words());
    }
    let all = began.elapsed();
    println!("1000 nodes join: {} events, {:.1} s of one core", s.handled, all.as_secs_f64());
    measure(&mut s);
    assert!(all < Duration::from_secs(60), "1000 simulated nodes cost more than a minute");
}

fn measure(s: &mut Simulation) {
    let fingerprint = s.world.machines[0].cert.as_ref().map(|c| c.print).expect("it registered");
    let report = s.world.report_of(0).expect("a report");
    let claim = kiln::ledger::message::ClaimRequest {
        system: "db".into(),
        seq: report.seq + 1,
        ask: kiln::ledger::message::Ask::Start { data: kiln::ledger::message::Data::Blank },
    };
    let (state, live, now) = (s.world.server.state.clone(), s.world.server.live.clone(), s.now);
    let time = |what: &str, run: &mut dyn FnMut()| {
        const TIMES: u32 = 2_000;
        let began = Instant::now();
        (0..TIMES).for_each(|_| run());
        let each = began.elapsed() / TIMES;
        println!("{what:<40} {:>8.1} us", each.as_secs_f64() * 1e6);
        each
    };
    let commands = [
        ("decide a report", Command::Report { fingerprint, report }),
        ("decide a claim", Command::Claim { fingerprint, request: claim }),
    ];
    for (what, command) in &commands {
        let each = time(what, &mut || {
            let _ = std::hint::black_box(decide(&state, &live, command, now));
        });
        assert!(each < Duration::from_micros(50), "{what} takes {each:?}");
    }
    time("peers and stand_down of a report", &mut || {
        let name = &s.world.fixed.names[0];
        std::hint::black_box((s.world.server.peers(name, now), s.world.server.stand_down(name, now)));
    });
    time("a copy of the state", &mut || {
        std::hint::black_box((*state).clone());
    });
    time("a copy of what is live", &mut || {
        std::hint::black_box((*live).clone());
    });
}
