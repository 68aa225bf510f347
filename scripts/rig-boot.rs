//! Firmware and initramfs of a container machine, for `scripts/rig`: asks the server as a netbooted
//! machine does (`/boot/script`, `/v1/boot`, `/v1/disk`, `/v1/phase`), puts root and state disk
//! together as kiln-node in the initramfs does, and becomes systemd-nspawn.
//!
//! Stand-ins: the server's address is an argument (no DHCP), layers come from the store's files
//! (no download, no signature check), disk, serial and boot id are
//! arguments.
//!
//! Runs in the machine's network namespace; everything that it mounts lies in a mount namespace of
//! its own and is gone with the machine's last process.

use anyhow::{Context, Result, bail};
use clap::Parser;
use gpt::disk::LogicalBlockSize;
use kiln::image::store::Store;
use kiln::ledger::message::{
    BLANK, BootAnswer, BootGo, BootRequest, Disk, DiskAnswer, DiskRequest, Handover, Phase, PhaseReport, STATE_DIR,
    StateOrder,
};
use kiln::netroot::cmdline::{self, Cmdline};
use kiln::netroot::disk_choice::{self, Sight, Stamp, Todo};
use kiln::netroot::{Held, disk, mount, state};
use kiln::site::{DiskMatch, Mac, Uuid};
use kiln::sys::http::{Body, Client, Timeouts};
use kiln::sys::{command, files, json, tls};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Of the state disk: it is a file, and this machine's tools read 512.
const SECTOR: LogicalBlockSize = LogicalBlockSize::Lb512;
/// One `mount`, `mke2fs` or `losetup`.
const TOOL_TIMEOUT: Duration = Duration::from_secs(120);
/// For the kernel to let go of a disk whose machine has just been cut off.
const RELEASE_WAIT: Duration = Duration::from_secs(30);
const ASK: Timeouts = Timeouts { connect: Duration::from_secs(3), idle: Duration::from_secs(30) };
/// After a failure, and at most after a server's `retry_secs`: a rig's user waits at the screen.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX_SECS: u64 = 5;
const HANDOVER_MAX_BYTES: u64 = 1 << 20;

/// One machine from power-on to its role's init
#[derive(Parser)]
struct Machine {
    #[arg(long)]
    mac: Mac,
    #[arg(long)]
    uuid: Uuid,
    /// Of this power-on.
    #[arg(long)]
    boot_id: String,
    #[arg(long)]
    server: SocketAddrV4,
    #[arg(long)]
    store: PathBuf,
    /// File of the state disk.
    #[arg(long)]
    disk: PathBuf,
    #[arg(long)]
    serial: String,
    /// Empty folder for the mounts.
    #[arg(long)]
    dir: PathBuf,
    /// Held while layers are attached: one loop device a layer for all machines.
    #[arg(long)]
    lock: PathBuf,
    /// Name of the container.
    #[arg(long)]
    name: String,
    /// A program to run with the node's name and the root before the role's init starts, if it exists: for faults.
    #[arg(long)]
    patch: PathBuf,
    /// Most that the root's writable part takes of the memory, MiB.
    #[arg(long, default_value_t = 4096)]
    upper: u64,
    /// Seconds without a server after which an earlier boot's handover on the state disk is used.
    #[arg(long, default_value_t = 15)]
    patience: u64,
}

/// What one power-on has reached.
struct Boot {
    machine: Machine,
    since: Instant,
    /// First failure in a row to reach the server.
    unreached: Option<Instant>,
    cmdline: Option<Cmdline>,
    said: String,
}

fn main() -> Result<()> {
    let machine = Machine::parse();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("making namespaces")?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("keeping mounts here")?;
    let since = Instant::now();
    let mut boot = Boot { machine, since, unreached: None, cmdline: None, said: String::new() };
    println!("{}: power on, boot id {}", boot.machine.name, boot.machine.boot_id);
    loop {
        let error = match boot.advance() {
            Ok(never) => match never {},
            Err(e) => e,
        };
        let pause = boot.tell(&error);
        mount::unmount_below(&boot.machine.dir);
        std::thread::sleep(pause);
    }
}

impl Boot {
    fn advance(&mut self) -> Result<Infallible> {
        let asked = self.script().and_then(|cmdline| {
            self.cmdline = Some(cmdline.clone());
            let go = self.ask(&cmdline)?;
            Ok((cmdline, go))
        });
        match asked {
            Ok((cmdline, go)) => {
                self.unreached = None;
                self.report(Phase::Init, "container");
                self.report(Phase::Network, &format!("{}/{}", cmdline.ip.address, cmdline.ip.prefix));
                let handover = self.handover(&cmdline, go);
                self.start(handover, true)
            }
            Err(e) if answered(&e) => {
                self.unreached = None;
                Err(e)
            }
            Err(e) => {
                let since = *self.unreached.get_or_insert_with(Instant::now);
                if since.elapsed() < Duration::from_secs(self.machine.patience) {
                    return Err(e);
                }
                let handover = self.saved().with_context(|| format!("booting without the server ({e:#})"))?;
                println!("{}: no server; goes on with the handover of an earlier boot", self.machine.name);
                self.start(handover, false)
            }
        }
    }

    /// What firmware and iPXE do: the machine's script, and the kernel's arguments in it.
    fn script(&self) -> Result<Cmdline> {
        let Machine { server, mac, uuid, .. } = &self.machine;
        let url = format!("http://{server}/boot/script?mac={mac}&uuid={uuid}&arch=x86_64");
        let response = Client::new().timeouts(ASK).request("GET", &url, &[], Body::Empty)?;
        if response.status != 200 {
            let after = response.headers.get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
            return Err(held(&format!("{url} is answered {}", response.status), after.unwrap_or(PAUSE_MAX_SECS)));
        }
        let text = String::from_utf8_lossy(&response.body);
        match text.lines().find(|l| l.starts_with("kernel ")) {
            Some(line) => cmdline::parse(line).map_err(|p| anyhow::anyhow!(p.join("\n"))),
            None => {
                let shown: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("echo ")).collect();
                Err(held(&shown.join("; "), PAUSE_MAX_SECS))
            }
        }
    }

    fn ask(&self, cmdline: &Cmdline) -> Result<BootGo> {
        let request = BootRequest {
            mac: self.machine.mac,
            uuid: Some(self.machine.uuid),
            boot_id: self.machine.boot_id.clone(),
            image: cmdline.image,
            version: env!("CARGO_PKG_VERSION").into(),
            disks: vec![self.disk()?],
        };
        match json::post(&pinned(cmdline)?, &format!("https://{}/v1/boot", cmdline.tls()), &request)? {
            // Every try begins with the script: that is the restart that the server may want.
            BootAnswer::Hold { reason, retry_secs, .. } => Err(held(&reason, retry_secs)),
            BootAnswer::Go(go) => Ok(*go),
        }
    }

    fn disk(&self) -> Result<Disk> {
        let size = fs::metadata(&self.machine.disk).context("looking at the state disk")?.len();
        Ok(Disk { name: "vda".into(), serial: Some(self.machine.serial.clone()), wwn: None, size })
    }

    fn handover(&self, cmdline: &Cmdline, go: BootGo) -> Handover {
        Handover {
            server: cmdline.server.to_string(),
            tls: cmdline.tls().to_string(),
            pin: cmdline.pin.hex(),
            mac: cmdline.ip.mac,
            boot_id: self.machine.boot_id.clone(),
            image: cmdline.image,
            state_dir: matches!(go.state, StateOrder::Disk { .. }).then(|| STATE_DIR.to_string()),
            boot_disk: None, // a container has no firmware that could read it
            plain: false,
            go,
        }
    }

    /// The handover of an earlier boot of this disk, as this boot's.
    fn saved(&self) -> Result<Handover> {
        let at = self.machine.dir.join("peek");
        self.mount_disk(&at, "ro")?;
        let bytes = files::read_bounded(&at.join("kiln/handover.json"), HANDOVER_MAX_BYTES);
        mount::unmount_below(&at);
        let mut handover: Handover = serde_json::from_slice(&bytes.context("no earlier boot left its handover")?)?;
        handover.boot_id = self.machine.boot_id.clone();
        Ok(handover)
    }

    /// Root, state disk, `/run/kiln`, and the role's init.
    fn start(&mut self, handover: Handover, online: bool) -> Result<Infallible> {
        let root = self.machine.dir.join("root");
        let layers = self.assemble(&handover, &root)?;
        self.report(Phase::Fetch, &format!("{layers} layers, shared"));
        let role = state::read_role(&root)?;
        let folders: Vec<String> = role.systems.iter().flat_map(|s| s.state.clone()).collect();
        let mut kept = None;
        if let StateOrder::Disk { disk: want } = &handover.go.state {
            let target = state::inside(&root, Path::new(STATE_DIR))?;
            self.attach(&handover, want, &target, online)?;
            state::bind_folders(&root, &target, &folders)?;
            kept = Some(target);
        } else {
            state::make_folders(&root, &folders)?;
        }
        state::identify(&root, kept.as_deref(), &handover.go.node)?;
        self.report(Phase::Mount, if kept.is_some() { "state on its disk" } else { "state in memory" });
        if let Some(target) = &kept {
            let mut saved = handover.clone();
            (saved.go.credential, saved.go.order) = (None, None); // of one boot
            files::write_atomic(&target.join("kiln/handover.json"), &serde_json::to_vec(&saved)?, 0o600)?;
        }
        without_clock(&root)?;
        if self.machine.patch.exists() {
            tool(&self.machine.patch.display().to_string(), &[&handover.go.node], &[&root])?;
        }
        let run = self.machine.dir.join("run");
        mount::memory(&run, 64 << 20, 0o755)?;
        files::write_atomic(&run.join("boot.json"), &serde_json::to_vec(&handover)?, 0o600)?;
        self.report(Phase::Switch, "systemd-nspawn takes over");
        println!(
            "{}: {} starts after {:.1} s",
            self.machine.name,
            handover.go.node,
            self.since.elapsed().as_secs_f32()
        );
        let error = nspawn(&self.machine.name, &handover.go.node, &root, &run).exec();
        Err(error).context("starting systemd-nspawn")
    }

    /// The image's layers under a writable part in memory; returns how many layers.
    fn assemble(&self, handover: &Handover, root: &Path) -> Result<usize> {
        let store = Store::open_existing(&self.machine.store)?;
        let image = store.image(&handover.image)?;
        let mut lower = Vec::new();
        {
            let _one_at_a_time = files::lock(&self.machine.lock)?;
            for (i, layer) in image.layers().iter().enumerate() {
                let at = self.machine.dir.join(format!("layer{i}"));
                fs::create_dir_all(&at)?;
                // mount(8) takes the loop device that the file already has, and the kernel then the
                // file system: layers are in memory once, however many machines there are.
                tool("mount", &["-t", "squashfs", "-o", "loop,ro,nodev"], &[&store.blob_path(&layer.digest), &at])?;
                lower.push(at.display().to_string());
            }
        }
        lower.reverse();
        let writable = self.machine.dir.join("writable");
        mount::mount_at(
            "tmpfs",
            &writable,
            "tmpfs",
            MsFlags::empty(),
            &format!("size={}m,mode=755", self.machine.upper),
        )?;
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        mount::mount_at("overlay", root, "overlay", MsFlags::empty(), &options)?;
        Ok(lower.len())
    }

    /// As `netroot::disk::attach` does it, over a file: look, ask, make, check the stamp, mount.
    fn attach(&self, handover: &Handover, want: &DiskMatch, target: &Path, online: bool) -> Result<()> {
        let (disk, go) = (self.disk()?, &handover.go);
        disk_choice::choose(std::slice::from_ref(&disk), want).map_err(|why| held(&why, PAUSE_MAX_SECS))?;
        self.wait_released()?;
        let seen = disk::look(&self.machine.disk, SECTOR)?;
        let mut todo = disk_choice::todo(&seen, go);
        if todo == Todo::Finish {
            todo = if self.finish(go)? { Todo::Use } else { disk_choice::todo(&Sight::Blank, go) };
        }
        let ask = match &todo {
            Todo::Use | Todo::Finish => None,
            Todo::Hold(why) => return Err(held(&format!("state disk {why}"), PAUSE_MAX_SECS)),
            _ if !online => bail!("state disk is blank"),
            Todo::Ask => Some(("disk".to_string(), BLANK)),
            Todo::Begin(found) => {
                if matches!(seen, Sight::State(_))
                    && let Ok(Some(stamp)) = self.stamp()
                {
                    disk_choice::judge_stamp(&stamp, go).map_err(|why| held(&why, PAUSE_MAX_SECS))?;
                }
                let id = go.order.as_ref().map(|o| o.id.as_str()).unwrap_or_default();
                Some((format!("orders/{id}/begin"), found.as_str()))
            }
        };
        if let Some((route, found)) = ask {
            let request = DiskRequest {
                node: go.node.clone(),
                boot_id: self.machine.boot_id.clone(),
                credential: go.credential.clone(),
                disk,
                found: found.into(),
            };
            let client = pinned(self.cmdline.as_ref().context("asking the server")?)?;
            let answer: DiskAnswer = json::post(&client, &format!("https://{}/v1/{route}", handover.tls), &request)?;
            if !answer.format {
                return Err(held(&format!("state disk may not be made: {}", answer.reason), PAUSE_MAX_SECS));
            }
            if matches!(todo, Todo::Begin(_)) {
                let id = go.order.as_ref().map(|o| o.id.as_str()).unwrap_or_default();
                disk_choice::judge_answer(&answer, id).map_err(|why| held(&why, PAUSE_MAX_SECS))?;
            }
            println!("{}: making the state disk ({seen:?}, {})", self.machine.name, answer.reason);
            self.make(go)?;
        }
        let stamp =
            self.stamp()?.ok_or_else(|| held("state disk has no stamp that tells whose it is", PAUSE_MAX_SECS))?;
        disk_choice::judge_stamp(&stamp, go).map_err(|why| held(&why, PAUSE_MAX_SECS))?;
        self.mount_disk(target, "errors=remount-ro")
    }

    /// Whose state the disk holds, read without changing it.
    fn stamp(&self) -> Result<Option<Stamp>> {
        let peek = self.machine.dir.join("peek");
        self.mount_disk(&peek, "ro,noload")?;
        let stamp = disk::read_stamp(&peek);
        mount::unmount_below(&peek);
        self.wait_released()?;
        stamp
    }

    /// Whether an unfinished disk lacked only its name, which it has now.
    fn finish(&self, go: &BootGo) -> Result<bool> {
        let Ok(Some(stamp)) = self.stamp() else { return Ok(false) };
        disk_choice::judge_stamp(&stamp, go).map_err(|why| held(&why, PAUSE_MAX_SECS))?;
        if !disk_choice::is_made(&stamp, go) {
            return Ok(false);
        }
        disk::rename_partition(&self.machine.disk, SECTOR, &disk_choice::names(go).1)?;
        Ok(true)
    }

    fn make(&self, go: &BootGo) -> Result<()> {
        disk::write_table(&self.machine.disk, SECTOR, &disk_choice::names(go).0)?;
        let (start, length) = self.partition()?;
        let line = ["-q", "-F", "-t", "ext4", "-L", "kiln-state", "-E", &format!("offset={start}")];
        tool("mke2fs", &line, &[&self.machine.disk, Path::new(&format!("{}k", length / 1024))])?;
        let at = self.machine.dir.join("peek");
        self.mount_disk(&at, "errors=remount-ro")?;
        let stamped = disk::stamp(&at, go);
        mount::unmount_below(&at);
        stamped?;
        self.wait_released()?;
        disk::rename_partition(&self.machine.disk, SECTOR, &disk_choice::names(go).1)
    }

    /// Start and length of the one partition, bytes.
    fn partition(&self) -> Result<(u64, u64)> {
        let table = gpt::GptConfig::new().logical_block_size(SECTOR).open(&self.machine.disk)?;
        let first = table.partitions().get(&1).context("state disk has no partition 1")?;
        Ok((first.bytes_start(SECTOR)?, first.bytes_len(SECTOR)?))
    }

    fn mount_disk(&self, at: &Path, options: &str) -> Result<()> {
        let (start, length) = self.partition()?;
        fs::create_dir_all(at)?;
        let options = format!("loop,offset={start},sizelimit={length},nodev,{options}");
        tool("mount", &["-t", "ext4", "-o", &options], &[&self.machine.disk, at])
    }

    /// Until no earlier boot's mount holds the disk: a namespace goes a moment after its processes.
    fn wait_released(&self) -> Result<()> {
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            let mut line = Command::new("losetup");
            line.arg("-j").arg(&self.machine.disk);
            let loops = command::run_ok(&mut line, b"", TOOL_TIMEOUT)?.text();
            if loops.trim().is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("state disk is still in use: {}", loops.trim());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Says and reports what went wrong; returns how long to wait.
    fn tell(&mut self, error: &anyhow::Error) -> Duration {
        let held = error.chain().find_map(|e| e.downcast_ref::<Held>());
        let (phase, text, pause) = match held {
            Some(held) => {
                let secs = held.retry_secs.clamp(1, PAUSE_MAX_SECS);
                (Phase::Held, held.reason.clone(), Duration::from_secs(secs))
            }
            None => (Phase::Failed, format!("{error:#}"), PAUSE),
        };
        if self.said != text {
            println!("{}: {}: {text}", self.machine.name, format!("{phase:?}").to_lowercase());
            self.report(phase, &text);
            self.said = text;
        }
        pause
    }

    /// Best effort, as in the initramfs.
    fn report(&self, phase: Phase, detail: &str) {
        let (Some(cmdline), None) = (&self.cmdline, self.unreached) else { return };
        let report = PhaseReport {
            mac: self.machine.mac,
            uuid: Some(self.machine.uuid),
            boot_id: self.machine.boot_id.clone(),
            image: cmdline.image,
            phase,
            detail: format!("{detail}; at {:.1} s", self.since.elapsed().as_secs_f32()),
        };
        let _ = json::tell(&Client::new().timeouts(ASK), &format!("http://{}/v1/phase", cmdline.server), &report);
    }
}

/// Whether the server is there, whatever it said.
fn answered(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<Held>().is_some()) || kiln::sys::http::status_of(error).is_some()
}

fn held(reason: &str, retry_secs: u64) -> anyhow::Error {
    Held { reason: reason.into(), retry_secs }.into()
}

fn pinned(cmdline: &Cmdline) -> Result<Client> {
    Ok(Client::with_tls(tls::pinned(cmdline.pin.0, None)?).timeouts(ASK))
}

fn tool(program: &str, options: &[&str], paths: &[&Path]) -> Result<()> {
    command::run_ok(Command::new(program).args(options).args(paths), b"", TOOL_TIMEOUT).map(|_| ())
}

/// chrony runs, and leaves the clock alone: its unit asks for a capability that no container is given.
fn without_clock(root: &Path) -> Result<()> {
    let debian = ("chrony", "ExecStart=\nExecStart=!/usr/sbin/chronyd $DAEMON_OPTS -x\n");
    let el7 = ("chronyd", "EnvironmentFile=\nEnvironment=OPTIONS=-x\n");
    for (unit, service) in [debian, el7] {
        let dir = state::inside(root, &Path::new("/etc/systemd/system").join(format!("{unit}.service.d")))?;
        fs::create_dir_all(&dir)?;
        let text = format!("[Unit]\nConditionCapability=\n[Service]\n{service}");
        files::write_atomic(&dir.join("rig.conf"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// systemd in the role's root. `SYS_TIME` is not given: there is one clock, the host's.
fn nspawn(name: &str, node: &str, root: &Path, run: &Path) -> Command {
    let mut line = Command::new("systemd-nspawn");
    // Otherwise /proc/sys/net is read-only, and systemd-sysctl sets nothing.
    line.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
    // One tree of control groups, as machines have it, whatever this host has: of several, a container gets most to
    // read only, and libvirt makes groups for its guests.
    line.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    line.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--console=read-only"]);
    line.args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
    line.arg("--network-namespace-path=/proc/self/ns/net");
    line.arg("--capability=CAP_NET_ADMIN,CAP_IPC_LOCK,CAP_SYS_NICE");
    line.arg(format!("--machine={name}")).arg(format!("--hostname={node}"));
    // For networks of guests, and for file systems of processes.
    for device in ["/dev/net/tun", "/dev/fuse"].iter().filter(|d| Path::new(d).exists()) {
        line.arg(format!("--bind={device}"));
    }
    line.arg(format!("--bind={}:/run/kiln", run.display())).arg("--directory").arg(root);
    line
}
