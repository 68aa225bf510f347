//! The service in the role: registers this boot, puts its answer in place, drives the systems in
//! order, reports. What runs goes on when the server or this program is gone; an agent that is
//! restarted goes on where it was, in the same generation.

mod place;
mod register;
mod report;
mod scripts;

use self::register::Registration;
use self::report::Reporter;
use self::scripts::Scripts;
use super::node::{Node, Outcome};
use crate::image::role::{ROLE_FILE, RoleFile};
use crate::ledger::message::{HANDOVER_FILE, Handover, Phase, PhaseReport, Report};
use crate::sys::clock::{self, growing_pause, monotonic_ms};
use crate::sys::console::Console;
use crate::sys::http::{Client, Timeouts};
use crate::sys::{command, files, json};
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// With nothing due: how long until the loop looks around anyway.
const IDLE_MAX: Duration = Duration::from_secs(60);
const PHASE_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(3), idle: Duration::from_secs(3) };

/// What the main loop hears.
enum Event {
    Done {
        system: String,
        outcome: Outcome,
    },
    /// The server no longer knows this generation's certificate.
    Refused(String),
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
        Some(registration) => agent.drive(registration),
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
    /// Registers and puts everything in place, however long it takes; `None`: told to stop.
    fn enter(&self) -> Option<Registration> {
        let (mut failures, mut said) = (0, String::new());
        let mut registration = register::earlier(&self.handover);
        loop {
            let error = match self.try_enter(&mut registration) {
                Ok(done) => return Some(done),
                Err(e) => format!("{e:#}"),
            };
            if error != said {
                self.console.say(&format!("joining failed, trying again: {error}"));
                self.tell_phase(Phase::Failed, &error);
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

    fn try_enter(&self, kept: &mut Option<Registration>) -> Result<Registration> {
        // An answer that could not be put in place is asked for again: the site may be mended.
        let registration = match kept.take() {
            Some(earlier) => earlier,
            None => {
                let new = register::register(&self.handover).context("registering")?;
                self.follow_clock(new.answer.now_ms);
                new
            }
        };
        let generation = registration.answer.generation;
        // A certificate that cannot be used is found out here, where a register can be repeated.
        registration.client(&self.handover, PHASE_TIMEOUTS)?;
        self.console.say(&format!("registered as {}, generation {generation}", self.handover.go.node));
        place::place(&self.role, &registration.answer, &mut |text| self.console.say(text))?;
        Ok(registration)
    }

    fn follow_clock(&self, server_now_ms: u64) {
        match clock::follow(server_now_ms) {
            Ok(false) => {}
            Ok(true) => self.console.say("clock set from the server"),
            Err(e) => eprintln!("clock could not be set: {e}"), // a container may not
        }
    }

    /// The main loop: what is due is done by threads, what they say moves the systems on.
    fn drive(&self, registration: Registration) -> Result<()> {
        let scripts = Scripts::new(&self.handover.go.node, &self.role.role);
        let mut node = Node::new(&self.role.systems, &scripts.done(), monotonic_ms());
        let reporter = Reporter::start(&self.handover, &registration, self.sender.clone())?;
        let mut last_phase = Phase::Register;
        let mut renew_failures = 0;
        let mut renewal = registration.renewal();
        loop {
            if renewal.wait(monotonic_ms()).is_zero() {
                let new = register::register(&self.handover);
                match new.and_then(|new| reporter.renew(&self.handover, &new).map(|()| new.renewal())) {
                    Ok(next) => renewal = next,
                    Err(e) => {
                        eprintln!("renewing the certificate: {e:#}; the old one is good until it ends");
                        renewal.failed(monotonic_ms());
                    }
                }
            }
            for action in node.due(monotonic_ms()) {
                let (scripts, sender) = (scripts.clone(), self.sender.clone());
                std::thread::spawn(move || {
                    let outcome = catch_unwind(AssertUnwindSafe(|| scripts.perform(&action)))
                        .unwrap_or(Outcome::Failed("kiln-node panicked".into()));
                    let _ = sender.send(Event::Done { system: action.system, outcome });
                });
            }
            let (phase, detail, systems) = node.report();
            if phase != last_phase {
                self.console.say(&format!("{phase:?}: {detail}").to_lowercase());
                last_phase = phase;
            }
            reporter.set(Report { phase, detail, systems, leaving: false });
            let now = monotonic_ms();
            let wait = node
                .next_ms(now)
                .map_or(IDLE_MAX, |at| Duration::from_millis(at - now))
                .min(IDLE_MAX)
                .min(renewal.wait(now));
            match self.events.recv_timeout(wait) {
                Ok(Event::Done { system, outcome }) => {
                    show(&system, &outcome);
                    node.done(&system, outcome, monotonic_ms());
                }
                Ok(Event::Refused(why)) => match register::register(&self.handover) {
                    Ok(new) => {
                        (renew_failures, renewal) = (0, new.renewal());
                        eprintln!("registered again, generation {}: {why}", new.answer.generation);
                        reporter.renew(&self.handover, &new)?;
                    }
                    Err(e) => {
                        renew_failures += 1;
                        eprintln!("registering again: {e:#}; what runs goes on");
                        reporter.hush(growing_pause(renew_failures, PAUSE_FIRST, PAUSE_MAX));
                    }
                },
                Ok(Event::Stop) => {
                    let (phase, detail, systems) = node.report();
                    reporter.last(Report { phase, detail, systems, leaving: shutting_down() });
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Best effort: the timeline of a boot that has not registered.
    fn tell_phase(&self, phase: Phase, detail: &str) {
        let report = PhaseReport {
            mac: self.handover.mac,
            uuid: None,
            boot_id: self.handover.boot_id.clone(),
            image: self.handover.image,
            phase,
            detail: detail.chars().take(crate::ledger::message::DETAIL_MAX_BYTES / 4).collect(),
        };
        let client = Client::new().timeouts(PHASE_TIMEOUTS);
        let _ = json::tell(&client, &format!("http://{}/v1/phase", self.handover.server), &report);
    }
}

/// Failures to the journal; health's good news every few seconds is none.
fn show(system: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Done(_) => {}
        Outcome::Later(why) => eprintln!("{system}: later: {why}"),
        Outcome::Failed(why) | Outcome::Missing(why) | Outcome::Down(why) => eprintln!("{system}: {why}"),
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
