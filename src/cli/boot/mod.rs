//! `kiln boot IMAGE`: a private network, a throw-away site, a server and virtual machines with
//! real firmware, until a phase or a time-out. What a CI pipeline calls after `kiln build`.

mod network;
mod qemu;
mod site;
mod watch;

use crate::cli::{exit, places};
use crate::image::id::Digest;
use crate::image::store::Store;
use crate::ledger::message::Phase;
use crate::site::Uuid;
use crate::sys::http::{Body, Client};
use anyhow::{Context, Result};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most machines of one call: the private network's addresses and a small host's memory.
const NODES_MAX: u32 = 16;
/// Of the state disk where `--disk` says nothing.
const DISK_BYTES: u64 = 8 << 30;
/// How long the server may take to open its socket.
const SERVER_START: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct Args {
    /// `release/role[:tag]`, an id or a unique prefix of one.
    image: String,
    /// Machines to boot.
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    #[arg(long, value_enum, default_value = "bios")]
    firmware: qemu::Firmware,
    /// The phase that every machine must reach.
    #[arg(long, default_value = "ready", value_parser = parse_phase)]
    until: Phase,
    /// Seconds.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Serial consoles go here (more machines: FILE.1, FILE.2, …).
    #[arg(long)]
    console: Option<PathBuf>,
    /// MiB a machine; default: what the image says that it needs.
    #[arg(long)]
    memory: Option<u64>,
    /// Processors a machine.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Size of the state disk, such as 8GiB; default: 8GiB for a role that keeps state, else none.
    #[arg(long, value_parser = site::parse_size)]
    disk: Option<u64>,
    /// A further raw disk for the first machine: FILE,SERIAL. Nothing may ever write to it.
    #[arg(long, value_parser = parse_attach)]
    attach: Vec<(PathBuf, String)>,
    /// How the server speaks DHCP; `proxy` needs another DHCP server, see --beside.
    #[arg(long, default_value = "authoritative")]
    dhcp: String,
    /// A shell command to run in the private network before the server starts, such as another
    /// DHCP server. Sees KILN_BRIDGE, KILN_BOOT_DIR and the variables of COMMAND.
    #[arg(long)]
    beside: Option<String>,
    /// Keep the work folder (consoles, site, ledger) here.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[arg(long)]
    store: Option<PathBuf>,
    /// `json`: one object a line.
    #[arg(long)]
    events: Option<String>,
    /// Run in the private network when every machine is there; its exit status is the call's.
    /// Sees KILN_SOCKET, KILN_BOOT_DIR, KILN_SSH_KEY and KILN_NODES (`name=address …`).
    #[arg(last = true)]
    command: Vec<String>,
}

/// The `serve` process; asked to end when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(args: Args) -> Result<()> {
    if args.nodes == 0 || args.nodes > NODES_MAX {
        return Err(exit::error(exit::Exit::Usage, format!("--nodes {} is not between 1 and {NODES_MAX}", args.nodes)));
    }
    let store_path = places::store(args.store.clone());
    let store = Store::open(&store_path)?;
    let id = store.resolve(&args.image)?;
    let config = store.config(&id)?;

    let temporary = tempfile::Builder::new().prefix("kiln-boot-").tempdir()?;
    let dir = args.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let plan = site::Plan {
        release: config.release.clone(),
        role: config.role.clone(),
        image: id,
        nodes: args.nodes,
        state_disk: args.disk.is_some() || config.controller || config.systems.iter().any(|s| s != "environment"),
    };

    network::enter()?; // no thread may be running yet
    let key = site::make(&plan, &dir)?;
    let taps: Vec<String> = (1..=args.nodes).map(|i| format!("tap{i}")).collect();
    network::make_bridge(&format!("{}/{}", site::SERVER, site::PREFIX), &taps)?;

    let variables = variables(&dir, &key, &plan);
    let _beside = args.beside.as_deref().map(|line| beside(line, &dir, &variables)).transpose()?;
    let _server = serve(&args, &dir, &store_path)?;
    form(&dir)?;
    let machines = machines(&args, &plan, &dir, config.memory_min_mib)?;
    let mut running = Vec::new();
    for machine in &machines {
        running.push(Killed(qemu::start(machine)?));
    }
    let watch = watch::Watch {
        socket: dir.join("kiln.sock"),
        until: args.until,
        timeout: Duration::from_secs(args.timeout),
        json: args.events.as_deref() == Some("json"),
    };
    let names: Vec<String> = machines.iter().map(|m| m.name.clone()).collect();
    watch.follow(&names, || still_running(&mut running, &machines)).map_err(|e| consoles(e, &machines))?;
    if let Some((program, rest)) = args.command.split_first() {
        let status = Command::new(program)
            .args(rest)
            .envs(variables.iter().map(|(k, v)| (k.as_str(), v.as_str())))
            .status()
            .with_context(|| format!("running {program}"))?;
        if !status.success() {
            return Err(exit::error(exit::Exit::Check, format!("{program} ended with {status}")));
        }
    }
    Ok(())
}

fn parse_phase(text: &str) -> Result<Phase, String> {
    serde_json::from_value(serde_json::Value::String(text.to_string())).map_err(|_| {
        format!(
            "{text:?} is no phase; phases are dhcp loader script init network fetch mount switch register join ready"
        )
    })
}

fn parse_attach(text: &str) -> Result<(PathBuf, String), String> {
    let (file, serial) = text.rsplit_once(',').ok_or_else(|| format!("{text:?} is not FILE,SERIAL"))?;
    Ok((PathBuf::from(file), serial.to_string()))
}

fn variables(dir: &Path, key: &Path, plan: &site::Plan) -> Vec<(String, String)> {
    let nodes: Vec<String> = plan.names().enumerate().map(|(i, name)| format!("{name}={}", site::address(i))).collect();
    vec![
        ("KILN_BOOT_DIR".into(), dir.display().to_string()),
        ("KILN_SOCKET".into(), dir.join("kiln.sock").display().to_string()),
        ("KILN_SSH_KEY".into(), key.display().to_string()),
        ("KILN_BRIDGE".into(), network::BRIDGE.into()),
        ("KILN_NODES".into(), nodes.join(" ")),
    ]
}

fn beside(line: &str, dir: &Path, variables: &[(String, String)]) -> Result<Killed> {
    let log = std::fs::File::create(dir.join("beside.log"))?;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]).envs(variables.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    crate::sys::command::die_with_parent(&mut command);
    let mut child = Killed(command.spawn().with_context(|| format!("starting {line}"))?);
    /// Long enough for a server to fail over its arguments or to open its sockets.
    const SETTLE: Duration = Duration::from_millis(500);
    std::thread::sleep(SETTLE);
    if let Some(status) = child.0.try_wait()? {
        anyhow::bail!("{line} ended with {status}; see {}", dir.join("beside.log").display());
    }
    Ok(child)
}

fn serve(args: &Args, dir: &Path, store: &Path) -> Result<Server> {
    let socket = dir.join("kiln.sock");
    let log_path = dir.join("serve.log");
    let log = std::fs::File::create(&log_path)?;
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("serve").arg("--site").arg(dir.join("site.toml")).arg("--secrets").arg(dir.join("secrets.toml"));
    command.arg("--state").arg(dir.join("state")).arg("--store").arg(store).arg("--socket").arg(&socket);
    command.args(["--interface", network::BRIDGE, "--dhcp", &args.dhcp]);
    command.args(["--listen", &format!("{}:8080", site::SERVER)]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    crate::sys::command::die_with_parent(&mut command);
    let mut server = Server(command.spawn().context("starting kiln serve")?);
    let deadline = Instant::now() + SERVER_START;
    while !socket.exists() {
        if let Some(status) = server.0.try_wait()? {
            anyhow::bail!("kiln serve ended with {status}:\n{}", tail(&log_path));
        }
        if Instant::now() > deadline {
            anyhow::bail!("kiln serve did not open {}:\n{}", socket.display(), tail(&log_path));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// The throw-away site's cluster may form: nobody else will say so.
fn form(dir: &Path) -> Result<()> {
    let order = serde_json::to_vec(&crate::pxe::admin::message::Request::Form)?;
    let client = Client::unix(dir.join("kiln.sock"));
    let answer = client.request("POST", "/api/command", &[("content-type", "application/json")], Body::Bytes(order))?;
    answer.success("POST", "/api/command").context("letting the cluster form").map(|_| ())
}

fn machines(args: &Args, plan: &site::Plan, dir: &Path, memory_min: u64) -> Result<Vec<qemu::Machine>> {
    let mut machines = Vec::new();
    for (i, name) in plan.names().enumerate() {
        let mut disks = Vec::new();
        if plan.state_disk {
            let path = dir.join(format!("{name}.state"));
            let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(args.disk.unwrap_or(DISK_BYTES)).with_context(|| format!("making {}", path.display()))?;
            disks.push((path, site::serial(i)));
        }
        if i == 0 {
            disks.extend(args.attach.iter().cloned());
        }
        let console = match (&args.console, args.nodes) {
            (Some(file), 1) => file.clone(),
            (Some(file), _) => PathBuf::from(format!("{}.{}", file.display(), i + 1)),
            (None, _) => dir.join(format!("{name}.console")),
        };
        machines.push(qemu::Machine {
            name,
            firmware: args.firmware,
            mac: site::mac(i),
            tap: format!("tap{}", i + 1),
            memory_mib: args.memory.unwrap_or(memory_min),
            cpus: args.cpus,
            disks,
            console,
            variables: dir.join(format!("vars{}.fd", i + 1)),
            uuid: uuid(&site::mac(i)),
        });
    }
    Ok(machines)
}

/// The same machine has the same UUID in every call.
fn uuid(mac: &str) -> String {
    let mut uuid = Uuid([0; 16]);
    uuid.0.copy_from_slice(&Digest::of(mac.as_bytes()).0[..16]);
    uuid.to_string()
}

fn still_running(running: &mut [Killed], machines: &[qemu::Machine]) -> Result<()> {
    for (child, machine) in running.iter_mut().zip(machines) {
        if let Some(status) = child.0.try_wait()? {
            let log = machine.console.with_extension("qemu.log");
            anyhow::bail!("machine {} ended with {status}: {}", machine.name, tail(&log));
        }
    }
    Ok(())
}

fn consoles(error: anyhow::Error, machines: &[qemu::Machine]) -> anyhow::Error {
    let mut text = String::new();
    for machine in machines {
        text += &format!("last lines of {}'s console:\n{}\n", machine.name, tail(&machine.console));
    }
    error.context(text)
}

/// The end of a log file.
fn tail(path: &Path) -> String {
    const LINES: usize = 25;
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// An address of the private network.
fn host(last: u8) -> Ipv4Addr {
    let [a, b, c, _] = site::SERVER.octets();
    Ipv4Addr::new(a, b, c, last)
}
