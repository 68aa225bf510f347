//! PID 1 of the initramfs. It never exits: what fails is said on every console and to the server,
//! and tried again with a growing pause; a held node shows why, sleeps and asks again. At the end
//! it becomes the role's own init.

use super::cmdline::{self, Cmdline};
use super::modules::Loader;
use super::mount::{self, NEWROOT, RUN};
use super::{Held, disk, kept, memory, network, offline, state};
use crate::image::fetch::Source;
use crate::image::manifest::{Config, Image};
use crate::ledger::message::{
    BLANK, BootAnswer, BootDisk, BootGo, BootRequest, DETAIL_MAX_BYTES, Disk, DiskAnswer, DiskRequest, HANDOVER_FILE,
    Handover, LAYERS_DIR, Phase, PhaseReport, STATE_DIR, StateOrder,
};
use crate::sys::clock::{self, growing_pause};
use crate::sys::console::Console;
use crate::sys::http::{Client, Timeouts, is_silence};
use crate::sys::{files, json, tls};
use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;
use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Folder of the builders' public keys, one base64 key a line, `#` for comments.
const BUILDERS_DIR: &str = "/etc/kiln/builders";
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A server's `retry_secs` is kept between these.
const RETRY_SECS: std::ops::RangeInclusive<u64> = 1..=300;
/// How soon a node held by its own findings (a strange disk) looks again.
const HELD_RETRY_SECS: u64 = 30;
/// A report must not stop a boot.
const REPORT_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(3), idle: Duration::from_secs(3) };
const ASK_TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(10), idle: Duration::from_secs(30) };

/// All that this boot has reached; a retry goes on from here.
struct Boot {
    console: Console,
    phase: Phase,
    since: Instant,
    modules: Option<Loader>,
    cmdline: Option<Cmdline>,
    online: bool,
    go: Option<BootGo>,
    /// Of this boot: given once, kept when the server is asked again.
    credential: Option<String>,
    image: Option<Image>,
    layers: Vec<PathBuf>,
    upper_bytes: u64,
    /// The server has only been silent since.
    silent: Option<Instant>,
    /// This boot goes by what the state disk keeps.
    plain: bool,
    boot_disk: Option<BootDisk>,
    /// Last said trouble, so that a console is not flooded with one line.
    said: String,
}

/// Runs the initramfs stage to its end, which is the role's init. Never returns.
pub fn run() -> ! {
    let mounted = mount_kernel_file_systems();
    let console = Console::open();
    redirect_output();
    std::panic::set_hook(Box::new(|_| {})); // caught and said below, on every console
    let mut boot = Boot {
        console,
        phase: Phase::Init,
        since: Instant::now(),
        modules: None,
        cmdline: None,
        online: false,
        go: None,
        credential: None,
        image: None,
        layers: Vec::new(),
        upper_bytes: 0,
        silent: None,
        plain: false,
        boot_disk: None,
        said: String::new(),
    };
    boot.console.say(&format!("kiln-node {} starts", env!("CARGO_PKG_VERSION")));
    if let Err(e) = mounted {
        boot.console.say(&format!("{e:#}"));
    }
    let mut failures = 0;
    loop {
        let before = boot.phase;
        let error = match catch_unwind(AssertUnwindSafe(|| boot.advance())) {
            Ok(Ok(never)) => match never {},
            Ok(Err(e)) => e,
            Err(panic) => anyhow::anyhow!("kiln-node panicked: {}", panic_text(&*panic)),
        };
        failures = if boot.phase == before { failures + 1 } else { 1 };
        let pause = catch_unwind(AssertUnwindSafe(|| boot.handle(&error, failures))).unwrap_or(PAUSE_MAX);
        reap();
        std::thread::sleep(pause);
        reap();
    }
}

impl Boot {
    /// Goes on from what is reached. Ends only with an error: success becomes another program.
    fn advance(&mut self) -> Result<Infallible> {
        if self.cmdline.is_none() {
            self.enter(Phase::Init);
            let text = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
            self.cmdline = Some(cmdline::parse(&text).map_err(|p| anyhow::anyhow!(p.join("\n")))?);
        }
        let cmdline = self.cmdline.clone().context("reading the command line")?;
        if self.modules.is_none() {
            self.enter(Phase::Init);
            self.modules = Some(Loader::open()?);
        }
        if !self.online {
            self.bring_up_network(&cmdline)?;
        }
        if self.go.is_none() {
            match self.ask(&cmdline) {
                Err(e) if self.may_go_alone(&cmdline, &e) => self.go_alone(&cmdline, &e)?,
                asked => asked?,
            }
        }
        let go = self.go.clone().context("asking the server")?;
        if self.layers.is_empty()
            && let Err(e) = self.fetch(&cmdline, &go)
        {
            if cmdline.disk.is_some() && is_silence(&e) {
                self.go = None; // it answered, and has gone since: it is asked again, then the disk
            }
            return Err(e);
        }
        let assembled = self.assemble(&cmdline, &go);
        if assembled.is_err() {
            mount::disassemble();
            if self.plain {
                // The server is asked first again.
                (self.go, self.plain) = (None, false);
                self.layers.clear();
                kept::close();
            }
        }
        assembled?;
        self.switch(&cmdline, &go)
    }

    fn bring_up_network(&mut self, cmdline: &Cmdline) -> Result<()> {
        self.enter(Phase::Network);
        let modules = self.modules.as_mut().context("loading modules")?;
        let card = network::bring_up(&cmdline.ip, modules)?;
        let init = format!("{} modules; refused: {:?}", modules.loaded.len(), modules.refused);
        self.online = true;
        self.report(Phase::Init, &init);
        self.done(&format!("{} as {}/{} on {card}", cmdline.ip.mac, cmdline.ip.address, cmdline.ip.prefix));
        Ok(())
    }

    /// Asks what this machine is and may do; its answer's time becomes ours.
    fn ask(&mut self, cmdline: &Cmdline) -> Result<()> {
        let request = BootRequest {
            mac: cmdline.ip.mac,
            uuid: machine_uuid(),
            boot_id: boot_id()?,
            image: cmdline.image,
            version: env!("CARGO_PKG_VERSION").into(),
            disks: disk::list().unwrap_or_default(),
        };
        let url = format!("https://{}/v1/boot", cmdline.tls());
        match json::post(&pinned(cmdline)?, &url, &request)? {
            BootAnswer::Hold { reason, restart: true, .. } => {
                self.console.say(&format!("restarts: {reason}"));
                std::thread::sleep(PAUSE_FIRST);
                match nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT) {
                    Ok(never) => match never {},
                    Err(e) => Err(e).context("restarting the machine"),
                }
            }
            BootAnswer::Hold { reason, retry_secs, .. } => Err(Held { reason, retry_secs }.into()),
            BootAnswer::Go(mut go) => {
                go.credential = go.credential.or(self.credential.take());
                self.credential = go.credential.clone();
                if let Err(e) = clock::follow(go.now_ms) {
                    self.console.say(&format!("clock could not be set: {e}"));
                }
                self.console.say(&format!("this machine is {} ({}) of cluster {}", go.node, go.role, go.cluster));
                self.go = Some(*go);
                Ok(())
            }
        }
    }

    fn may_go_alone(&mut self, cmdline: &Cmdline, error: &anyhow::Error) -> bool {
        let silent = is_silence(error) && error.downcast_ref::<Held>().is_none();
        self.silent = if silent { self.silent.or(Some(Instant::now())) } else { None };
        offline::may_boot_plainly(cmdline, silent, self.silent.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// The server is gone: what the disk that this boot came from keeps must do.
    fn go_alone(&mut self, cmdline: &Cmdline, error: &anyhow::Error) -> Result<()> {
        self.console.say(&format!("the server is silent ({error:#}): booting from what the state disk keeps"));
        self.enter(Phase::Fetch);
        let id = cmdline.disk.as_deref().context("looking for the state disk's GUID")?;
        let mut modules = self.modules.as_mut();
        let mut pass = || {
            modules.as_mut().map(|m| m.pass());
        };
        let alone = kept::open(cmdline, id, &builders()?, &mut pass)?;
        // Layers stay on the disk: they take no memory.
        let plan = memory::plan(memory_total()?, alone.config.memory_min_mib, 0).map_err(anyhow::Error::msg)?;
        self.introduce(&alone.image, &alone.config);
        self.console.say(&format!("this machine was {} of cluster {}", alone.go.node, alone.go.cluster));
        self.layers = alone.layers;
        self.upper_bytes = plan.upper_bytes;
        self.image = Some(alone.image);
        (self.go, self.boot_disk, self.plain) = (Some(alone.go), Some(alone.disk), true);
        self.done(&format!("{} layers verified on the state disk", self.layers.len()));
        Ok(())
    }

    fn introduce(&self, image: &Image, config: &Config) {
        let total: u64 = image.layers().iter().map(|l| l.size).sum();
        let (release, role) = (&config.release, &config.role);
        self.console.say(&format!("image {} ({release}/{role}): {} MiB", image.id.short(), total >> 20));
    }

    fn fetch(&mut self, cmdline: &Cmdline, go: &BootGo) -> Result<()> {
        self.enter(Phase::Fetch);
        let source = Source::at(&cmdline.server.to_string());
        let image = source.image(cmdline.image, &builders()?)?;
        let config = source.config(&image)?;
        let total: u64 = image.layers().iter().map(|l| l.size).sum();
        let plan = memory::plan(memory_total()?, config.memory_min_mib, total).map_err(anyhow::Error::msg)?;
        self.introduce(&image, &config);
        let folder = Path::new(LAYERS_DIR);
        if !folder.exists() {
            mount::memory(folder, plan.layers_bytes, 0o700)?;
        }
        let console = &self.console;
        if let StateOrder::Disk { disk: want } = &go.state {
            if let Some(modules) = self.modules.as_mut() {
                modules.pass();
            }
            kept::copy_layers(go, want, &image, folder, &mut |text| console.say(text));
        }
        let mut layers = Vec::new();
        for layer in image.layers() {
            layers.push(source.blob(layer, folder, &mut |text| console.say(text))?);
        }
        self.layers = layers;
        self.upper_bytes = plan.upper_bytes;
        self.image = Some(image);
        self.done(&format!("{} layers, {} MiB", self.layers.len(), total >> 20));
        Ok(())
    }

    /// Layers, state disk and kept folders, all below [`NEWROOT`].
    fn assemble(&mut self, cmdline: &Cmdline, go: &BootGo) -> Result<()> {
        self.enter(Phase::Mount);
        let root = Path::new(NEWROOT);
        mount::assemble(&self.layers, self.upper_bytes)?;
        let role = state::read_role(root)?;
        let folders: Vec<String> = role.systems.iter().flat_map(|s| s.state.clone()).collect();
        let mut kept = None;
        if let StateOrder::Disk { disk: want } = &go.state {
            let target = state::inside(root, Path::new(STATE_DIR))?;
            if self.plain {
                fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
                mount::bind(&kept::place(), &target)?;
            } else {
                self.boot_disk = self.attach(cmdline, go, want, &target)?;
            }
            state::bind_folders(root, &target, &folders)?;
            kept = Some(target);
        } else {
            state::make_folders(root, &folders)?;
        }
        state::identify(root, kept.as_deref(), &go.node)?;
        self.done(if kept.is_some() { "state on its disk" } else { "state in memory" });
        Ok(())
    }

    fn attach(
        &mut self,
        cmdline: &Cmdline,
        go: &BootGo,
        want: &crate::site::DiskMatch,
        target: &Path,
    ) -> Result<Option<BootDisk>> {
        let (console, modules) = (&self.console, self.modules.as_mut());
        let client = pinned(cmdline)?;
        let mut pass = {
            let mut modules = modules;
            move || {
                modules.as_mut().map(|m| m.pass());
            }
        };
        let mut ask = |disk: &Disk, ask: disk::Ask| -> Result<DiskAnswer> {
            let (route, found) = match ask {
                disk::Ask::Make => ("disk".to_string(), BLANK),
                disk::Ask::Begin { order, found } => (format!("orders/{order}/begin"), found),
            };
            let request = DiskRequest {
                node: go.node.clone(),
                boot_id: boot_id()?,
                credential: go.credential.clone(),
                disk: disk.clone(),
                found: found.into(),
            };
            json::post(&client, &format!("https://{}/v1/{route}", cmdline.tls()), &request)
        };
        disk::attach(go, want, target, &mut pass, &mut ask, &mut |text| console.say(text))
    }

    /// The point of no return lies in here: from the first moved mount on, errors cannot go back.
    fn switch(&mut self, cmdline: &Cmdline, go: &BootGo) -> Result<Infallible> {
        self.enter(Phase::Switch);
        let root = Path::new(NEWROOT);
        if !state::inside(root, Path::new("/sbin/init"))?.exists() {
            bail!("image has no /sbin/init");
        }
        let handover = Handover {
            server: cmdline.server.to_string(),
            tls: cmdline.tls().to_string(),
            pin: cmdline.pin.hex(),
            mac: cmdline.ip.mac,
            boot_id: boot_id()?,
            image: cmdline.image,
            go: go.clone(),
            state_dir: matches!(go.state, StateOrder::Disk { .. }).then(|| STATE_DIR.to_string()),
            boot_disk: self.boot_disk.clone(),
            plain: self.plain,
        };
        files::write_atomic(Path::new(HANDOVER_FILE), &serde_json::to_vec(&handover)?, 0o600)?;
        self.done("the role's init takes over");
        for name in ["dev", "proc", "sys", "run"] {
            mount::shift(&Path::new("/").join(name), &root.join(name))?;
        }
        mount::empty_initramfs()?;
        nix::unistd::chdir(root).context("entering the new root")?;
        nix::mount::mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the root")?;
        nix::unistd::chroot(".").context("changing the root")?;
        nix::unistd::chdir("/")?;
        redirect_output();
        loop {
            // With the arguments and the environment that the kernel gave to its init.
            let error = Command::new("/sbin/init").args(std::env::args_os().skip(1)).exec();
            self.console.say(&format!("starting the role's /sbin/init: {error}"));
            std::thread::sleep(PAUSE_MAX);
        }
    }

    /// Says and reports what went wrong; returns how long to wait.
    fn handle(&mut self, error: &anyhow::Error, failures: u32) -> Duration {
        let held = error.chain().find_map(|e| e.downcast_ref::<Held>());
        let (phase, text, pause) = match held {
            Some(held) => {
                self.go = None; // the server may have changed its mind
                let secs = held.retry_secs.clamp(*RETRY_SECS.start(), *RETRY_SECS.end());
                (Phase::Held, held.reason.clone(), Duration::from_secs(secs))
            }
            None => {
                let pause = growing_pause(failures, PAUSE_FIRST, PAUSE_MAX);
                (Phase::Failed, format!("{}: {error:#}", name(self.phase)), pause)
            }
        };
        let word = if held.is_some() { "held" } else { "failed" };
        self.console.say(&format!("{word}: {text}\ntrying again in {} s", pause.as_secs()));
        if self.said != text {
            self.report(phase, &text);
            self.said = text;
        }
        pause
    }

    fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            self.since = Instant::now();
        }
        self.phase = phase;
    }

    /// A phase is through: say and report how it went.
    fn done(&mut self, detail: &str) {
        let detail = format!("{detail}; {:.1} s", self.since.elapsed().as_secs_f32());
        self.console.say(&format!("{}: {detail}", name(self.phase)));
        self.report(self.phase, &detail);
        self.said.clear();
    }

    /// Best effort: the timeline is for people, a boot does not depend on it.
    fn report(&self, phase: Phase, detail: &str) {
        let listens = self.online && !self.plain;
        let (true, Some(cmdline), Ok(boot_id)) = (listens, &self.cmdline, boot_id()) else { return };
        let cut = (0..=detail.len().min(DETAIL_MAX_BYTES)).rev().find(|i| detail.is_char_boundary(*i)).unwrap_or(0);
        let report = PhaseReport {
            mac: cmdline.ip.mac,
            uuid: machine_uuid(),
            boot_id,
            image: cmdline.image,
            phase,
            detail: detail[..cut].into(),
        };
        let client = Client::new().timeouts(REPORT_TIMEOUTS);
        if let Err(e) = json::tell(&client, &format!("http://{}/v1/phase", cmdline.server), &report) {
            self.console.say(&format!("report of {} was not taken: {e:#}", name(phase)));
        }
    }
}

/// The phase as every other place writes it.
fn name(phase: Phase) -> String {
    format!("{phase:?}").to_lowercase()
}

impl Held {
    /// Held by what the node itself found.
    pub(super) fn new(reason: String) -> Held {
        Held { reason, retry_secs: HELD_RETRY_SECS }
    }
}

fn pinned(cmdline: &Cmdline) -> Result<Client> {
    Ok(Client::with_tls(tls::pinned(cmdline.pin.0, None)?).timeouts(ASK_TIMEOUTS))
}

fn mount_kernel_file_systems() -> Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut result = Ok(());
    for (kind, target, flags, options) in [
        ("proc", "/proc", quiet | MsFlags::MS_NOEXEC, ""),
        ("sysfs", "/sys", quiet | MsFlags::MS_NOEXEC, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755"),
        ("tmpfs", "/run", quiet, "mode=755"),
    ] {
        if let Err(e) = mount::mount_at(kind, Path::new(target), kind, flags, options)
            && e.downcast_ref() != Some(&nix::errno::Errno::EBUSY)
        {
            result = Err(e);
        }
    }
    fs::create_dir_all(RUN).context("making the run folder").and(result)
}

/// stdin, stdout and stderr become the console that the kernel prefers.
fn redirect_output() {
    let Ok(console) = fs::OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let _ = nix::unistd::dup2_stdin(&console);
    let _ = nix::unistd::dup2_stdout(&console);
    let _ = nix::unistd::dup2_stderr(&console);
}

/// Children that lost their parent are ours. Called only while no command of ours runs.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|t| t.to_string())).unwrap_or_else(|| "without a word".into())
}

fn boot_id() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
    Ok(text.trim().to_string())
}

fn machine_uuid() -> Option<crate::site::Uuid> {
    fs::read_to_string("/sys/class/dmi/id/product_uuid").ok()?.trim().parse().ok()
}

fn memory_total() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("finding MemTotal in /proc/meminfo")? * 1024)
}

/// The builders' public keys that the initramfs brought along.
fn builders() -> Result<Vec<String>> {
    let path = Path::new(BUILDERS_DIR);
    let mut keys = Vec::new();
    let files: Vec<PathBuf> = if path.is_dir() {
        fs::read_dir(path).with_context(|| format!("listing {BUILDERS_DIR}"))?.flatten().map(|e| e.path()).collect()
    } else {
        vec![path.to_path_buf()]
    };
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(String::from));
    }
    if keys.is_empty() {
        bail!("no builder's public key in {BUILDERS_DIR} of the initramfs");
    }
    Ok(keys)
}
