//! The service in the role: registers this boot, puts its answer in place, drives the systems in
//! order, reports. What runs goes on when the server or this program is gone; an agent that is
//! restarted goes on where it was, in the same generation.

mod door;
mod keep;
mod link;
mod place;
mod register;
mod report;
mod repositories;
mod scripts;

use self::door::Door;
use self::link::Link;
use self::register::Registration;
use self::report::Reporter;
use self::scripts::Scripts;
use super::drain::Drains;
use super::kexec;
use super::node::{Action, Job, Node, Outcome};
use super::renewal::Renewal;
use crate::image::role::{ROLE_FILE, RoleFile};
use crate::ledger::message::{
    Drain, DrainTask, HANDOVER_FILE, Handover, KexecBoot, PeerTask, Phase, PhaseReport, Report,
};
use crate::sys::clock::{self, growing_pause, monotonic_ms};
use crate::sys::console::Console;
use crate::sys::http::{Client, Timeouts, is_silence};
use crate::sys::{command, files, json};
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// With nothing due: how long until the loop looks around anyway.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A server that is silent for so long is gone: a node that was here before starts without it.
const OFFLINE_AFTER: Duration = Duration::from_secs(30);
/// Of one system's `leave` at a shutdown.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(60);
/// A restart that did not come off is asked for again after this.
const RESTART_AGAIN: Duration = Duration::from_secs(600);
const PHASE_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(3), idle: Duration::from_secs(3) };

/// What the main loop hears.
enum Event {
    Done {
        action: Action,
        outcome: Outcome,
    },
    /// The server wants these peer steps done here.
    Peers(Vec<PeerTask>),
    /// The server wants these systems stopped, if they do not serve.
    StandDown(Vec<String>),
    /// An order waits for this machine to restart.
    Restart(String, Option<KexecBoot>),
    /// The server's word on this node's guests.
    Drain(Option<DrainTask>),
    Drained(DrainTask, Outcome),
    /// The server no longer knows this generation's certificate.
    Refused(String),
    /// A register that was tried in the background.
    Registered(Result<Box<Registration>>),
    Stop,
}

/// Runs until it is told to stop. Fails only when it cannot even start.
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let (sender, events) = channel();
    watch_signals(sender.clone())?;
    let agent = Agent {
        handover: read_json(HANDOVER_FILE)?,
        role: read_json(ROLE_FILE)?,
        console: Console::open(),
        sender,
        events,
    };
    match agent.enter() {
        Some((registration, online)) => agent.drive(registration, online),
        None => Ok(()),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &str) -> Result<T> {
    let bytes = files::read_bounded(Path::new(path), FILE_MAX_BYTES)?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {path}"))
}

/// SIGTERM and SIGINT become an event. Must run before any other thread is started.
fn watch_signals(sender: Sender<Event>) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if sender.send(Event::Stop).is_err() {
                return;
            }
        }
    });
    Ok(())
}

struct Agent {
    handover: Handover,
    role: RoleFile,
    console: Console,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Agent {
    /// Registers and puts everything in place, however long it takes; a node that registered in an
    /// earlier boot goes on without the server when that is silent. `None`: told to stop.
    fn enter(&self) -> Option<(Registration, bool)> {
        let (mut failures, mut said) = (0, String::new());
        let began = Instant::now();
        loop {
            let error = match self.try_enter(self.handover.plain || began.elapsed() >= OFFLINE_AFTER) {
                Ok(entered) => return Some(entered),
                Err(e) => format!("{e:#}"),
            };
            if error != said {
                self.console.say(&format!("joining failed, trying again: {error}"));
                tell_phase(&self.handover, Phase::Failed, &error);
                said = error;
            }
            failures += 1;
            let pause = growing_pause(failures, PAUSE_FIRST, PAUSE_MAX);
            match self.events.recv_timeout(pause) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                _ => {}
            }
        }
    }

    fn try_enter(&self, patient: bool) -> Result<(Registration, bool)> {
        if let Some(earlier) = register::earlier(&self.handover) {
            self.place(&earlier)?;
            return Ok((earlier, true));
        }
        match register::register(&self.handover, &self.role.systems).context("registering") {
            Ok(new) => {
                self.follow_clock(new.answer.now_ms);
                self.place(&new)?;
                Ok((new, true))
            }
            Err(e) if patient && is_silence(&e) => {
                let Some(kept) = register::kept(&self.handover) else { return Err(e) };
                self.console.say(&format!("the server is silent ({e:#}): going on with what it said before"));
                self.place(&kept)?;
                Ok((kept, false))
            }
            Err(e) => Err(e),
        }
    }

    fn place(&self, registration: &Registration) -> Result<()> {
        // A certificate that cannot be used is found out here, where a register can be repeated.
        registration.client(&self.handover, PHASE_TIMEOUTS)?;
        let generation = registration.answer.generation;
        self.console.say(&format!("{} of generation {generation}", self.handover.go.node));
        if let Err(e) = repositories::place(&self.role, &self.handover) {
            eprintln!("telling yum where its repositories are: {e:#}");
        }
        place::place(&self.role, registration, &mut |text| self.console.say(text))
    }

    fn follow_clock(&self, server_now_ms: u64) {
        match clock::follow(server_now_ms) {
            Ok(false) => {}
            Ok(true) => self.console.say("clock set from the server"),
            Err(e) => eprintln!("clock could not be set: {e}"), // a container may not
        }
    }

    /// The main loop: what is due is done by threads, what they say moves the systems on.
    fn drive(&self, registration: Registration, online: bool) -> Result<()> {
        let scripts = Scripts::new(&self.handover.go.node, &self.role.role);
        let mut node = Node::new(&self.role.systems, &scripts.done(), monotonic_ms());
        let link = Link::new(&self.handover, self.sender.clone());
        let mut registers = Registers { renewal: registration.renewal(), failures: 0, running: false, needed: !online };
        if online {
            link.renew(&registration)?;
        } else {
            let seeded = self.role.systems.iter().filter(|s| s.is_seeded()).map(|s| s.name.clone());
            node.go_offline(link.may_start(seeded));
            self.register_later(&mut registers, Duration::ZERO);
        }
        let reporter = Reporter::start(link.clone(), self.sender.clone());
        let door = Door::default();
        if self.role.systems.iter().any(|s| s.ports.contains(&door::PORT)) {
            door.tell(registration.answer.view.node.address);
        }
        let (mut last_phase, mut said, mut brings) = (Phase::Register, None, false);
        let (mut restarts, mut drains): (Option<Instant>, _) = (None, Drains::default());
        loop {
            for action in node.due(monotonic_ms()) {
                self.start(action, &scripts, &link);
            }
            if let Some(task) = drains.due(monotonic_ms()) {
                self.drain(task, &scripts);
            }
            let report = self.report(&mut node, &scripts, &drains, false, &mut said, &mut last_phase);
            if let Some(report) = report {
                reporter.set(report);
            }
            if last_phase == Phase::Ready && !brings {
                brings = true;
                door.ready();
                repositories::bring_later(&self.role, &self.handover);
                keep::later(&self.handover);
            }
            let now = monotonic_ms();
            if !registers.running && registers.renewal.wait(now).is_zero() {
                self.register_later(&mut registers, Duration::ZERO);
            }
            let next = node.next_ms(now).into_iter().chain(drains.next_ms(now)).min();
            let next = next.map_or(IDLE_MAX, |at| Duration::from_millis(at.saturating_sub(now)));
            let renewal = if registers.running { IDLE_MAX } else { registers.renewal.wait(now) };
            let wait = next.min(renewal).min(IDLE_MAX);
            match self.events.recv_timeout(wait) {
                Ok(Event::Done { action, outcome }) => {
                    show(&action.system, &outcome);
                    if matches!((&action.job, &outcome), (Job::Peer { .. }, Outcome::Done(_))) {
                        reporter.renewed(); // its answer has the next one
                    }
                    node.done(&action.system, &action.job, outcome, monotonic_ms());
                }
                Ok(Event::Peers(tasks)) => node.set_peers(&tasks),
                Ok(Event::StandDown(systems)) => node.stand_down(&systems, monotonic_ms()),
                Ok(Event::Restart(order, kexec)) if self.restarts_for(&order, restarts) => {
                    restarts = Some(Instant::now());
                    self.console.say(&format!("restarts: order {order} is open for this node"));
                    match kexec {
                        Some(boot) => self.kexec_later(boot),
                        None => restart("reboot"),
                    }
                }
                Ok(Event::Restart(..)) => {}
                Ok(Event::Drain(task)) => drains.tell(task, monotonic_ms()),
                Ok(Event::Drained(task, outcome)) => {
                    show("guests", &outcome);
                    drains.ended(&task, outcome, monotonic_ms());
                }
                Ok(Event::Refused(why)) => {
                    registers.needed = true;
                    if !registers.running {
                        eprintln!("registering again: {why}");
                        self.register_later(&mut registers, Duration::ZERO);
                    }
                }
                Ok(Event::Registered(Ok(new))) => {
                    registers = Registers { renewal: new.renewal(), failures: 0, running: false, needed: false };
                    eprintln!("registered, generation {}", new.answer.generation);
                    self.follow_clock(new.answer.now_ms);
                    // What it brought beside certificates counts from the next boot on, except for a boot
                    // that began without the server.
                    let placed = match node.is_offline() {
                        true => place::place(&self.role, &new, &mut |text| self.console.say(text)),
                        false => place::certificates(&self.role, &new),
                    };
                    if let Err(e) = placed {
                        eprintln!("putting the server's answer in place: {e:#}");
                    }
                    link.renew(&new)?;
                    node.go_online(monotonic_ms());
                    said = None;
                    reporter.renewed();
                }
                Ok(Event::Registered(Err(e))) => {
                    (registers.running, registers.failures) = (false, registers.failures + 1);
                    eprintln!("registering: {e:#}; what runs goes on");
                    registers.renewal.failed(monotonic_ms());
                    if registers.needed {
                        let pause = growing_pause(registers.failures, PAUSE_FIRST, PAUSE_MAX);
                        reporter.hush(pause);
                        self.register_later(&mut registers, pause);
                    }
                }
                Ok(Event::Stop) => {
                    let down = shutting_down();
                    if down {
                        leave(&self.role, &scripts);
                    }
                    said = None;
                    if let Some(report) = self.report(&mut node, &scripts, &drains, down, &mut said, &mut last_phase) {
                        reporter.last(&report);
                    }
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn start(&self, action: Action, scripts: &Scripts, link: &Link) {
        let (scripts, link, sender) = (scripts.clone(), link.clone(), self.sender.clone());
        std::thread::spawn(move || {
            let work = AssertUnwindSafe(|| link.perform(&action).unwrap_or_else(|| scripts.perform(&action)));
            let outcome = catch_unwind(work).unwrap_or(Outcome::Failed("kiln-node panicked".into()));
            if let Job::Peer { task, .. } = &action.job {
                link.tell_peer(task, &outcome);
            }
            let _ = sender.send(Event::Done { action, outcome });
        });
    }

    /// Backwards as at a shutdown, and forwards again.
    fn drain(&self, task: DrainTask, scripts: &Scripts) {
        let mut systems: Vec<String> = self.role.systems.iter().map(|s| s.name.clone()).collect();
        if task.guests != Drain::Back {
            systems.reverse();
        }
        let (scripts, sender) = (scripts.clone(), self.sender.clone());
        std::thread::spawn(move || {
            let work = AssertUnwindSafe(|| scripts.drain(systems.iter().map(String::as_str), &task));
            let outcome = catch_unwind(work).unwrap_or(Outcome::Failed("kiln-node panicked".into()));
            let _ = sender.send(Event::Drained(task, outcome));
        });
    }

    /// The report, with a number of its own, if it says something new.
    fn report(
        &self,
        node: &mut Node,
        scripts: &Scripts,
        drains: &Drains,
        leaving: bool,
        said: &mut Option<Report>,
        last: &mut Phase,
    ) -> Option<Report> {
        let (phase, detail, mut systems) = node.report();
        systems.iter_mut().for_each(|s| scripts.add_guests(s));
        if phase != *last {
            self.console.say(&format!("{phase:?}: {detail}").to_lowercase());
            *last = phase;
        }
        let seq = said.as_ref().map_or(0, |r| r.seq);
        let order = self.handover.go.order.as_ref().map(|o| o.id.clone());
        let (running, drain) = (node.running_steps(), drains.report());
        let moves = self.role.systems.iter().any(|s| scripts.has(&s.name, "migrate"));
        let report = Report { phase, detail, systems, leaving, seq, running, order, drain, moves };
        if said.as_ref() == Some(&report) {
            return None;
        }
        let report = Report { seq: node.next_seq(monotonic_ms()), ..report };
        *said = Some(report.clone());
        Some(report)
    }

    /// Whether to restart for this order: not the one that this boot went by, and not twice in a row.
    fn restarts_for(&self, order: &str, before: Option<Instant>) -> bool {
        let own = self.handover.go.order.as_ref().is_some_and(|o| o.id == order);
        !own && before.is_none_or(|at| at.elapsed() >= RESTART_AGAIN)
    }

    /// Loads the order's kernel beside the main loop and goes there; if anything fails, through the firmware.
    fn kexec_later(&self, boot: KexecBoot) {
        let handover = self.handover.clone();
        std::thread::spawn(move || {
            let console = Console::open();
            match kexec::load(&handover.server, &boot, &mut |text| console.say(text)) {
                Ok(()) => {
                    console.say(&format!("kernel of image {} is loaded: goes there", boot.image.short()));
                    restart("kexec");
                }
                Err(e) => {
                    let why = format!("no kexec, restarts through the firmware: {e:#}");
                    console.say(&why);
                    tell_phase(&handover, Phase::Failed, &why);
                    restart("reboot");
                }
            }
        });
    }

    /// Registers after a pause, beside the main loop.
    fn register_later(&self, registers: &mut Registers, pause: Duration) {
        registers.running = true;
        let (handover, sender, systems) = (self.handover.clone(), self.sender.clone(), self.role.systems.clone());
        std::thread::spawn(move || {
            std::thread::sleep(pause);
            let _ = sender.send(Event::Registered(register::register(&handover, &systems).map(Box::new)));
        });
    }
}

/// Best effort: the timeline of what no report says.
fn tell_phase(handover: &Handover, phase: Phase, detail: &str) {
    let report = PhaseReport {
        mac: handover.mac,
        uuid: None,
        boot_id: handover.boot_id.clone(),
        image: handover.image,
        phase,
        detail: detail.chars().take(crate::ledger::message::DETAIL_MAX_BYTES / 4).collect(),
    };
    let client = Client::new().timeouts(PHASE_TIMEOUTS);
    let _ = json::tell(&client, &format!("http://{}/v1/phase", handover.server), &report);
}

/// Registers beside the main loop: one at a time.
struct Registers {
    renewal: Renewal,
    failures: u32,
    running: bool,
    /// Without it nothing is heard of this node.
    needed: bool,
}

/// In reverse order, each bounded: what comes last leans on what came first.
fn leave(role: &RoleFile, scripts: &Scripts) {
    for system in role.systems.iter().rev() {
        match scripts.leave(&system.name, LEAVE_TIMEOUT) {
            Outcome::Missing(_) => {}
            outcome => eprintln!("{}: leave: {outcome:?}", system.name),
        }
    }
}

/// Failures to the journal; health's good news every few seconds is none.
fn show(system: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Done(_) | Outcome::Ranked(_) | Outcome::Answered(_) => {}
        Outcome::Later(why) | Outcome::Working(why) => eprintln!("{system}: later: {why}"),
        Outcome::Failed(why) | Outcome::Missing(why) | Outcome::Down(why) => eprintln!("{system}: {why}"),
    }
}

/// The system's own restart (`reboot` or `kexec`): every unit is stopped in order, and this agent with
/// them. A systemd that cannot go to a loaded kernel reboots.
fn restart(how: &str) {
    let mut line = Command::new("systemctl");
    if let Err(e) = command::run_ok(line.args(["--no-block", how]), b"", Duration::from_secs(30)) {
        eprintln!("restarting: {e:#}");
        if how != "reboot" {
            restart("reboot");
        }
    }
}

/// Whether the machine goes down, or only this service is stopped. Who cannot say so goes down.
fn shutting_down() -> bool {
    let mut line = Command::new("systemctl");
    line.arg("is-system-running");
    match command::run(&mut line, b"", Duration::from_secs(5)) {
        Ok(output) => {
            !matches!(output.text().trim(), "running" | "degraded" | "starting" | "initializing" | "maintenance")
        }
        Err(_) => true,
    }
}
