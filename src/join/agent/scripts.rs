//! Does one job of a system: its scripts and its units. Time-outs, exit statuses and bounded
//! output as the scripts' contract says; decides nothing.

use super::place::{RUN, secrets_dir, site_file};
use crate::image::role::SYSTEMS_DIR;
use crate::join::node::{Action, HEALTH_TIMEOUT_SECS, Job, Outcome};
use crate::ledger::message::{Data, Drain, DrainTask, GUESTS_MAX, SystemReport};
use crate::sys::command;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Exit status of a script that wants to be asked again later (sysexits' EX_TEMPFAIL).
const EXIT_LATER: i32 = 75;
/// A unit that is still activating after it is looked at again after a pause; it is not stopped.
const UNIT_WAIT: Duration = Duration::from_secs(20);
/// A database writes all that it holds in memory.
const STOP_WAIT: Duration = Duration::from_secs(300);
const UNIT_POLL: Duration = Duration::from_millis(500);
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(60);
const GUESTS_TIMEOUT: Duration = Duration::from_secs(20);
/// Of one try of a system's `drain` or `undrain`; what takes longer says so and is asked again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Of a failing script's output, for the journal.
const LOG_LINES: usize = 20;
/// Of a reason.
const LINE_MAX_CHARS: usize = 300;

/// Who the scripts run for.
#[derive(Clone)]
pub struct Scripts {
    pub node: String,
    pub role: String,
    /// [`SYSTEMS_DIR`] in a role.
    pub dir: PathBuf,
    /// Where finished steps of this boot are marked.
    pub done_dir: PathBuf,
    /// By system, as its `list-guests` said at its last health.
    guests: Arc<Mutex<BTreeMap<String, Vec<Guest>>>>,
}

/// A name, and whether it is shut down.
type Guest = (String, bool);

impl Scripts {
    pub fn new(node: &str, role: &str) -> Scripts {
        let (dir, done_dir) = (SYSTEMS_DIR.into(), Path::new(RUN).join("done"));
        Scripts { node: node.into(), role: role.into(), dir, done_dir, guests: Arc::default() }
    }

    /// (system, step) pairs that were finished in this boot.
    pub fn done(&self) -> BTreeSet<(String, String)> {
        let names = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let of = |system: String| {
            let steps = names(&self.done_dir.join(&system));
            steps.into_iter().map(move |step| (system.clone(), step))
        };
        names(&self.done_dir).into_iter().flat_map(of).collect()
    }

    /// Does the job to its end.
    pub fn perform(&self, action: &Action) -> Outcome {
        match &action.job {
            Job::Step { step, timeout_secs } => self.step(&action.system, step, Duration::from_secs(*timeout_secs)),
            Job::Check { step, timeout_secs } => {
                self.script(&action.system, &format!("{step}.check"), &[], Duration::from_secs(*timeout_secs))
            }
            Job::Look { unit } => runs(unit),
            Job::Rank { units, timeout_secs } => {
                let stopped = units.iter().rev().map(|u| stop(u)).find(|o| !matches!(o, Outcome::Done(_)));
                stopped.unwrap_or_else(|| self.rank(&action.system, Duration::from_secs(*timeout_secs)))
            }
            Job::Seed { timeout_secs } => self.script(&action.system, "seed", &[], Duration::from_secs(*timeout_secs)),
            Job::Join { members, lineage, set_aside, timeout_secs } => {
                let mut line = vec![("KILN_MEMBERS", members.join(" ")), ("KILN_LINEAGE", lineage.clone())];
                if *set_aside {
                    line.push(("KILN_SET_ASIDE", "1".into()));
                }
                self.script(&action.system, "join", &Extra::variables(line), Duration::from_secs(*timeout_secs))
            }
            Job::Lineage { timeout_secs } => {
                self.script(&action.system, "lineage", &[], Duration::from_secs(*timeout_secs))
            }
            Job::Peer { task, timeout_secs } => {
                let extra = [Extra::Argument(task.node.clone())];
                self.script(&action.system, &task.step, &extra, Duration::from_secs(*timeout_secs))
            }
            Job::AskStart { .. } | Job::AskStep { .. } | Job::Tell { .. } => {
                Outcome::Failed("a message to the server is no script".into())
            }
            Job::Start { units } => match units.iter().map(|u| start(u)).find(|o| !matches!(o, Outcome::Done(_))) {
                Some(outcome) => self.starts(&action.system, outcome),
                None => done("units are active"),
            },
            Job::Health { units, timeout_secs } => {
                let outcome = match units.iter().map(|u| look(u)).find(|o| !matches!(o, Outcome::Done(_))) {
                    Some(outcome) => self.starts(&action.system, outcome),
                    None => self.script(&action.system, "health", &[], Duration::from_secs(*timeout_secs)),
                };
                self.look_for_guests(&action.system);
                outcome
            }
        }
    }

    /// Of a seeded system whose unit is not up yet: health knows whether it waits for others or works,
    /// for hours maybe: a state transfer must not pass for a start that hangs.
    fn starts(&self, system: &str, unit: Outcome) -> Outcome {
        let Outcome::Later(why) = unit else { return unit };
        if !self.dir.join(system).join("seed").is_file() {
            return Outcome::Later(why);
        }
        match self.script(system, "health", &[], Duration::from_secs(HEALTH_TIMEOUT_SECS)) {
            Outcome::Later(_) | Outcome::Missing(_) => Outcome::Later(why),
            Outcome::Done(said) | Outcome::Failed(said) => Outcome::Working(one_line(&format!("{why}: {said}"))),
            other => other,
        }
    }

    /// Says in a system's report who lives there, as was last seen.
    pub fn add_guests(&self, report: &mut SystemReport) {
        let known = self.known_guests();
        let guests = known.get(&report.name).into_iter().flatten();
        report.stopped = guests.clone().filter(|(_, stopped)| *stopped).map(|(name, _)| name.clone()).collect();
        report.guests = guests.map(|(name, _)| name.clone()).collect();
    }

    fn known_guests(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Guest>>> {
        self.guests.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Asks a system that can have guests. One that cannot say now is believed its last word: guests
    /// that are not seen are not known to be gone.
    fn look_for_guests(&self, system: &str) {
        let path = self.dir.join(system).join("list-guests");
        if !path.is_file() {
            return;
        }
        match command::run_ok(&mut self.line(system, &path), b"", GUESTS_TIMEOUT) {
            Ok(output) => {
                self.known_guests().insert(system.into(), listed(&output.text()));
            }
            Err(e) => eprintln!("{system}: listing guests: {e:#}"),
        }
    }

    fn step(&self, system: &str, step: &str, timeout: Duration) -> Outcome {
        let outcome = match self.script(system, &format!("{step}.check"), &[], timeout) {
            Outcome::Done(_) => done("already so"),
            Outcome::Later(why) => return Outcome::Later(why),
            _ => self.script(system, step, &[], timeout),
        };
        if matches!(outcome, Outcome::Done(_)) {
            let dir = self.done_dir.join(system);
            // Without the mark the step only runs once more: it is idempotent.
            let _ = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(step), ""));
        }
        outcome
    }

    /// `blank`, or a lineage and a whole number.
    fn rank(&self, system: &str, timeout: Duration) -> Outcome {
        let said = match self.script(system, "rank", &[], timeout) {
            Outcome::Done(said) => said,
            other => return other,
        };
        match said.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["blank"] => Outcome::Ranked(Data::Blank),
            [lineage, rank] => match rank.parse() {
                Ok(rank) => Outcome::Ranked(Data::Holds { lineage: lineage.into(), rank }),
                Err(_) => Outcome::Failed(format!("rank printed {said:?}: {rank:?} is no whole number")),
            },
            _ => Outcome::Failed(format!("rank printed {said:?}, neither `blank` nor `LINEAGE NUMBER`")),
        }
    }

    /// Does with the guests of these systems what the server says. The first that is not through ends
    /// the try: all of them are asked again.
    pub fn drain<'a>(&self, mut systems: impl Iterator<Item = &'a str>, task: &DrainTask) -> Outcome {
        let (name, word) = match task.guests {
            Drain::Stay => ("drain", "stay"),
            Drain::Stop => ("drain", "stop"),
            Drain::Migrate => ("migrate", "migrate"),
            Drain::Back => ("undrain", "back"),
        };
        let extra = Extra::variables(vec![("KILN_GUESTS", word.into()), ("KILN_WORD", task.number.to_string())]);
        let ended = systems.find_map(|system| match self.script(system, name, &extra, DRAIN_TIMEOUT) {
            Outcome::Done(_) | Outcome::Missing(_) => None,
            Outcome::Later(why) => Some(Outcome::Later(format!("{system}: {why}"))),
            Outcome::Failed(why) => Some(Outcome::Failed(format!("{system}: {why}"))),
            other => Some(other),
        });
        ended.unwrap_or_else(|| done("guests are as the server says"))
    }

    pub fn has(&self, system: &str, script: &str) -> bool {
        self.dir.join(system).join(script).is_file()
    }

    /// Leaves the cluster in order before a shutdown, where the system has a script for it.
    pub fn leave(&self, system: &str, timeout: Duration) -> Outcome {
        self.script(system, "leave", &[], timeout)
    }

    /// The clean environment of every script.
    fn line(&self, system: &str, path: &Path) -> Command {
        let mut line = Command::new(path);
        line.env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("KILN_NODE", &self.node)
            .env("KILN_ROLE", &self.role)
            .env("KILN_SITE", site_file())
            .env("KILN_SECRETS", secrets_dir(system))
            .current_dir("/");
        line
    }

    fn script(&self, system: &str, name: &str, extra: &[Extra], timeout: Duration) -> Outcome {
        let path = self.dir.join(system).join(name);
        if !path.is_file() {
            return Outcome::Missing(format!("there is no script {}", path.display()));
        }
        let mut line = self.line(system, &path);
        for extra in extra {
            match extra {
                Extra::Argument(argument) => line.arg(argument),
                Extra::Variable(name, value) => line.env(name, value),
            };
        }
        match command::run(&mut line, b"", timeout) {
            Err(e) => Outcome::Failed(one_line(&format!("{e:#}"))),
            Ok(output) => {
                let outcome = judge(&output, timeout);
                if matches!(outcome, Outcome::Failed(_)) && name != "health" {
                    log(system, name, &output);
                }
                outcome
            }
        }
    }
}

/// What some scripts are told beside the common contract.
enum Extra {
    Argument(String),
    Variable(&'static str, String),
}

impl Extra {
    fn variables(all: Vec<(&'static str, String)>) -> Vec<Extra> {
        all.into_iter().map(|(name, value)| Extra::Variable(name, value)).collect()
    }
}

/// What `list-guests` printed: a name a line, after a blank `stopped` if it is shut down.
fn listed(text: &str) -> Vec<Guest> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let guest = |line: &str| {
        let name = line.strip_suffix("stopped").filter(|name| name.ends_with([' ', '\t']));
        (name.unwrap_or(line).trim().chars().take(LINE_MAX_CHARS).collect(), name.is_some())
    };
    // Who runs must not be cut off by those that do not.
    let mut guests: Vec<Guest> = lines.map(guest).collect();
    guests.sort_by_key(|(_, stopped)| *stopped);
    guests.truncate(GUESTS_MAX);
    guests
}

fn done(text: &str) -> Outcome {
    Outcome::Done(text.into())
}

fn judge(output: &command::Output, timeout: Duration) -> Outcome {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = last_line(&output.text()).or_else(|| last_line(&stderr));
    let said = said.unwrap_or_default();
    if output.timed_out {
        return Outcome::Failed(format!("not done within {} s; {said}", timeout.as_secs()));
    }
    match output.status.code() {
        Some(0) => Outcome::Done(said),
        Some(EXIT_LATER) => Outcome::Later(said),
        _ if said.is_empty() => Outcome::Failed(format!("{} without a word", output.status)),
        _ => Outcome::Failed(said),
    }
}

/// The last line that is not empty, cut for a report.
fn last_line(text: &str) -> Option<String> {
    text.lines().rev().map(str::trim).find(|l| !l.is_empty()).map(one_line)
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ").chars().filter(|c| !c.is_control()).take(LINE_MAX_CHARS).collect()
}

/// The end of a failing script's output goes to the journal (standard error of the service).
fn log(system: &str, name: &str, output: &command::Output) {
    for (stream, text) in [("stdout", output.text()), ("stderr", String::from_utf8_lossy(&output.stderr).into_owned())]
    {
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            eprintln!("{system}/{name} {stream}: {}", one_line(line));
        }
    }
}

/// What systemd says of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    active: String,
    sub: String,
    result: String,
    kind: String,
    queued: bool,
}

impl Unit {
    /// Parses the output of `systemctl show` (`--value` is younger than CentOS 7's systemd).
    fn parse(text: &str) -> Unit {
        let mut unit = Unit::default();
        for (key, value) in text.lines().filter_map(|l| l.split_once('=')) {
            match key {
                "ActiveState" => unit.active = value.into(),
                "SubState" => unit.sub = value.into(),
                "Result" => unit.result = value.into(),
                "Type" => unit.kind = value.into(),
                "Job" => unit.queued = !value.is_empty() && value != "0",
                _ => {}
            }
        }
        unit
    }

    /// Active, or a one-shot that has ended well.
    fn is_up(&self) -> bool {
        let oneshot_done = self.kind == "oneshot" && self.active == "inactive" && self.result == "success";
        matches!(self.active.as_str(), "active" | "reloading") || (oneshot_done && !self.queued)
    }

    /// It failed and systemd pauses before it starts it again: "activating" would hide that.
    fn fell(&self) -> bool {
        self.sub == "auto-restart"
    }

    fn fallen(&self, name: &str) -> String {
        format!("{name} failed ({}), systemd starts it again; see journalctl -u {name}", self.result)
    }
}

fn show(name: &str) -> Result<Unit> {
    let mut line = Command::new("systemctl");
    line.args(["show", "-p", "ActiveState,SubState,Result,Type,Job", "--", name]);
    let output =
        command::run_ok(&mut line, b"", SYSTEMCTL_TIMEOUT).with_context(|| format!("asking for unit {name}"))?;
    Ok(Unit::parse(&output.text()))
}

fn start(name: &str) -> Outcome {
    match try_start(name) {
        Ok(outcome) => outcome,
        Err(e) => Outcome::Failed(one_line(&format!("{e:#}"))),
    }
}

fn try_start(name: &str) -> Result<Outcome> {
    let unit = show(name)?;
    if matches!(unit.active.as_str(), "active" | "reloading") {
        return Ok(done("active already"));
    }
    if unit.active == "failed" {
        // Else systemd's own limit on quick restarts would refuse us.
        let _ = command::run(Command::new("systemctl").args(["reset-failed", "--", name]), b"", SYSTEMCTL_TIMEOUT);
    }
    if unit.active != "activating" {
        let mut line = Command::new("systemctl");
        line.args(["start", "--no-block", "--", name]);
        command::run_ok(&mut line, b"", SYSTEMCTL_TIMEOUT).with_context(|| format!("starting {name}"))?;
    }
    let deadline = Instant::now() + UNIT_WAIT;
    loop {
        let unit = show(name)?;
        if unit.is_up() {
            return Ok(done("active"));
        }
        if !unit.queued && unit.active != "activating" {
            let next = format!("journalctl -u {name}");
            return Ok(Outcome::Failed(format!("{name} is {} ({}); see {next}", unit.active, unit.result)));
        }
        if unit.fell() {
            return Ok(Outcome::Later(unit.fallen(name)));
        }
        if Instant::now() > deadline {
            return Ok(Outcome::Later(format!("{name} is still {}", unit.active)));
        }
        std::thread::sleep(UNIT_POLL);
    }
}

/// Whether a unit runs or is on its way. One that fell and waits for systemd's next try does not.
fn runs(name: &str) -> Outcome {
    match show(name) {
        Ok(unit) if unit.fell() => Outcome::Down(unit.fallen(name)),
        Ok(unit) if unit.is_up() || unit.queued || unit.active == "activating" => done("active"),
        Ok(unit) => Outcome::Down(format!("{name} is {} ({})", unit.active, unit.result)),
        Err(e) => Outcome::Failed(one_line(&format!("{e:#}"))),
    }
}

/// Makes sure that a unit does not run, and that a quick restart is not held against it.
fn stop(name: &str) -> Outcome {
    match show(name) {
        Ok(unit) if unit.active == "inactive" && !unit.queued => done("inactive"),
        Ok(unit) if unit.active == "failed" => {
            let _ = command::run(Command::new("systemctl").args(["reset-failed", "--", name]), b"", SYSTEMCTL_TIMEOUT);
            done("failed")
        }
        Ok(_) => match command::run_ok(Command::new("systemctl").args(["stop", "--", name]), b"", STOP_WAIT) {
            Ok(_) => done("stopped"),
            Err(e) => Outcome::Later(one_line(&format!("{e:#}"))),
        },
        Err(e) => Outcome::Failed(one_line(&format!("{e:#}"))),
    }
}

fn look(name: &str) -> Outcome {
    match show(name) {
        Ok(unit) if unit.is_up() => done("active"),
        Ok(unit) if unit.fell() => Outcome::Later(unit.fallen(name)),
        Ok(unit) if unit.queued || unit.active == "activating" => Outcome::Later(format!("{name} is {}", unit.active)),
        _ => runs(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scripts(dir: &Path, files: &[(&str, &str)]) -> Scripts {
        for (name, text) in files {
            let path = dir.join("systems/s").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (dir, done_dir) = (dir.join("systems"), dir.join("done"));
        Scripts { node: "n1".into(), role: "infra".into(), dir, done_dir, guests: Arc::default() }
    }

    fn perform(scripts: &Scripts, step: &str, timeout_secs: u64) -> Outcome {
        scripts.perform(&Action { system: "s".into(), job: Job::Step { step: step.into(), timeout_secs } })
    }

    #[test]
    fn exit_statuses_mean_what_the_contract_says() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(
            dir.path(),
            &[
                ("good", "echo first; echo last; echo noise >&2"),
                ("later", "echo not yet; exit 75"),
                ("bad", "echo broken >&2; exit 3"),
                ("silent", "exit 4"),
                ("checked.check", "exit 0"),
                ("checked", "exit 1"),
                ("unchecked.check", "exit 1"),
                ("unchecked", "echo ran"),
                ("waits.check", "exit 75"),
                ("waits", "echo ran"),
                ("slow", "echo working; sleep 60"),
            ],
        );
        for (step, want) in [
            ("good", Outcome::Done("last".into())),
            ("later", Outcome::Later("not yet".into())),
            ("bad", Outcome::Failed("broken".into())),
            ("silent", Outcome::Failed("exit status: 4 without a word".into())),
            ("checked", Outcome::Done("already so".into())),
            ("unchecked", Outcome::Done("ran".into())),
            ("waits", Outcome::Later("".into())),
        ] {
            assert_eq!(perform(&scripts, step, 20), want, "{step}");
        }
        assert_eq!(perform(&scripts, "slow", 1), Outcome::Failed("not done within 1 s; working".into()));
        assert!(matches!(perform(&scripts, "absent", 1), Outcome::Missing(_)));
        let done: Vec<String> = scripts.done().into_iter().map(|(_, step)| step).collect();
        assert_eq!(done, ["checked", "good", "unchecked"]);
    }

    #[test]
    fn scripts_see_their_contract_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = scripts(
            dir.path(),
            &[("env", "env | cut -d= -f1 | grep -vE '^(_|PWD|OLDPWD|SHLVL)$' | sort | tr '\\n' ' '; pwd")],
        );
        let Outcome::Done(seen) = perform(&scripts, "env", 20) else { panic!("env failed") };
        assert_eq!(seen, "HOME KILN_NODE KILN_ROLE KILN_SECRETS KILN_SITE PATH /");
    }

    #[test]
    fn guests_are_listed_with_those_that_are_shut_down() {
        let dir = tempfile::tempdir().unwrap();
        let scripts =
            scripts(dir.path(), &[("list-guests", "printf 'web\\n\\nmail\\tstopped\\nstopped\\nnonstopped\\n'")]);
        scripts.look_for_guests("s");
        let (state, reason) = (crate::ledger::message::SystemState::Healthy, String::new());
        let mut report = SystemReport {
            name: "s".into(),
            state,
            reason,
            lineage: None,
            stranded: false,
            guests: vec![],
            stopped: vec![],
        };
        scripts.add_guests(&mut report);
        assert_eq!(report.guests, ["web", "stopped", "nonstopped", "mail"]);
        assert_eq!(report.stopped, ["mail"]);
    }

    #[test]
    fn draining_asks_every_system_and_says_which_is_not_through() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            [("drain", "echo $KILN_GUESTS $KILN_WORD >>said; [ $KILN_GUESTS = stay ] || { echo web runs; exit 75; }")];
        let said = dir.path().join("said");
        let text = files[0].1.replace("said", &said.display().to_string());
        let scripts = scripts(dir.path(), &[("drain", &text), ("undrain", "echo nova is away; exit 1")]);
        let drain = |guests| scripts.drain(["other", "s"].into_iter(), &DrainTask { number: 7, guests });
        assert!(matches!(drain(Drain::Stay), Outcome::Done(_)));
        assert_eq!(drain(Drain::Stop), Outcome::Later("s: web runs".into()));
        assert_eq!(drain(Drain::Back), Outcome::Failed("s: nova is away".into()));
        assert!(matches!(drain(Drain::Migrate), Outcome::Done(_)), "nobody here can");
        assert_eq!(fs::read_to_string(said).unwrap(), "stay 7\nstop 7\n");
        assert_eq!(["drain", "migrate"].map(|script| scripts.has("s", script)), [true, false]);
    }

    #[test]
    fn a_units_state_is_read_as_old_and_new_systemd_write_it() {
        for (text, up, queued) in [
            ("Type=notify\nResult=success\nActiveState=active\n", true, false),
            ("ActiveState=active\nJob=0\n", true, false),
            ("Type=oneshot\nResult=success\nActiveState=inactive\n", true, false),
            ("Type=oneshot\nResult=success\nActiveState=inactive\nJob=12\n", false, true),
            ("Type=notify\nResult=success\nActiveState=inactive\n", false, false),
            ("Type=notify\nResult=exit-code\nActiveState=failed\n", false, false),
            ("ActiveState=activating\nJob=7\n", false, true),
        ] {
            let unit = Unit::parse(text);
            assert_eq!((unit.is_up(), unit.queued), (up, queued), "{text}");
        }
    }

    #[test]
    fn a_unit_that_fell_is_not_called_starting() {
        let unit = Unit::parse("Result=exit-code\nActiveState=activating\nSubState=auto-restart\n");
        assert!(unit.fell() && !unit.is_up());
        assert!(unit.fallen("x.service").contains("x.service failed (exit-code)"));
        assert!(!Unit::parse("Result=success\nActiveState=activating\nSubState=start\n").fell());
    }
}
