//! `kiln serve`: DHCP, TFTP, HTTP and TLS for the nodes, a socket and a loopback port for the
//! operator, all over one ledger.

mod images;
pub(super) mod keys;
mod leases;
mod nodes;
mod sockets;

use super::exit::{Exit, error};
use super::{places, restore, secrets};
use crate::image::id::ImageId;
use crate::image::store::Store;
use crate::ledger::decide::{ChosenImage, Command, Reimage, Replace, StartRollout};
use crate::ledger::event::UsedImage;
use crate::ledger::log::Log;
use crate::ledger::rollout::PackageChange;
use crate::ledger::sqlite::{self, Reader, Sqlite};
use crate::ledger::state::State;
use crate::ledger::witness::Witness;
use crate::ledger::writer::{Ledger, SubmitError};
use crate::pxe::admin::message::Request;
use crate::pxe::admin::server::{self as admin, Admin};
use crate::pxe::api::server::{self as api, Api, Secrets};
use crate::pxe::choose::Mode;
use crate::pxe::counters::Counters;
use crate::pxe::dhcp::{reply, server as dhcp};
use crate::pxe::http::server as http;
use crate::pxe::loaders::{self, Loaders};
use crate::pxe::tftp::server as tftp;
use crate::site::{Site, file};
use crate::sys::{clock, files};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Site files are text of people.
const SITE_MAX_BYTES: u64 = 4 * 1024 * 1024;
const HTTP_PORT: u16 = 8080;
const TLS_PORT: u16 = 8443;
const ADMIN_PORT: u16 = 9090;
const TFTP_PORT: u16 = 69;
/// Where distributions put iPXE's binaries.
const IPXE_DIRS: [&str; 3] = ["/usr/lib/ipxe", "/usr/share/ipxe", "/usr/lib/ipxe/qemu"];
/// Threads of the nodes' plain side, whose disk reads may block.
const HTTP_THREADS: usize = 2;
/// Threads of everything else.
const THREADS: usize = 2;

/// Boots the site's machines: DHCP, TFTP, HTTP and the join protocol
#[derive(clap::Args)]
pub struct Arguments {
    /// The site; an empty ledger takes it, later edits come by `kiln site apply` or SIGHUP
    #[arg(long, value_name = "FILE")]
    site: PathBuf,
    /// The interface that DHCP and TFTP answer on
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// How to stand to other DHCP servers [default: authoritative with --interface, else off]
    #[arg(long, value_enum)]
    dhcp: Option<DhcpMode>,
    /// Where nodes reach HTTP [default: the interface's address, port 8080]
    #[arg(long, value_name = "ADDR[:PORT]")]
    listen: Option<String>,
    /// Port of the join protocol (TLS), on the same address
    #[arg(long, value_name = "PORT", default_value_t = TLS_PORT)]
    tls_port: u16,
    /// Where /healthz, /readyz and /metrics are; never where nodes are
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "127.0.0.1:9090")]
    admin_listen: String,
    /// The server's state: ledger and keys
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The store that images are served from
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The operator's socket
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// The site's secrets [default: secrets.toml beside the site, if it exists]
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
    /// Folder of iPXE's binaries [default: the distribution's]
    #[arg(long, value_name = "DIR")]
    ipxe: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DhcpMode {
    Authoritative,
    Proxy,
    Off,
}

impl Arguments {
    fn mode(&self) -> Result<Mode> {
        match (self.dhcp, &self.interface) {
            (Some(DhcpMode::Off), _) | (None, None) => Ok(Mode::Off),
            (Some(_), None) => Err(error(Exit::Usage, "--dhcp needs --interface: DHCP answers on one network only")),
            (Some(DhcpMode::Authoritative) | None, Some(_)) => Ok(Mode::Authoritative),
            (Some(DhcpMode::Proxy), Some(_)) => Ok(Mode::Proxy),
        }
    }
}

pub fn run(arguments: Arguments) -> Result<()> {
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).try_init();
    raise_file_limit();
    let mode = arguments.mode()?;
    let site = read_site(&arguments.site)?;
    let main = runtime("kiln", THREADS)?;
    // Its own threads: a slow disk must not hold up DHCP or TLS.
    let plain = runtime("http", HTTP_THREADS)?;
    let result = main.block_on(serve(arguments, mode, site, plain.handle()));
    // Connections that are still open hold no promise: what was answered is on the disk.
    plain.shutdown_background();
    main.shutdown_timeout(Duration::from_secs(2));
    result
}

fn runtime(name: &str, threads: usize) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .context("starting threads")
}

/// Reads and checks a site file.
pub(super) fn read_site(path: &Path) -> Result<Site> {
    Ok(read_site_text(path)?.0)
}

/// Reads and checks a site file; with its text.
pub(super) fn read_site_text(path: &Path) -> Result<(Site, String)> {
    let bytes = files::read_bounded(path, SITE_MAX_BYTES)?;
    let text = String::from_utf8(bytes).with_context(|| format!("reading {} as UTF-8", path.display()))?;
    Ok((file::parse(&text, &path.display().to_string())?, text))
}

async fn serve(arguments: Arguments, mode: Mode, site: Site, plain: &tokio::runtime::Handle) -> Result<()> {
    let state = places::state(arguments.state.clone());
    std::fs::create_dir_all(&state).with_context(|| format!("creating folder {}", state.display()))?;
    let _lock = lock(&state)?;
    let known = keys::exist(&state);
    restore::refuse_unfinished(&state)?;
    let keys = keys::load(&state)?;
    let store = Arc::new(Store::open(&places::store(arguments.store.clone()))?);
    let secrets_file = secrets::file_of(arguments.secrets.as_deref(), &arguments.site);
    let secrets: Secrets = Arc::new(RwLock::new(read_secrets(secrets_file.as_deref())?));
    let database = state.join("ledger.sqlite");
    let mut log = Sqlite::open(&database)?;
    let runtime = places::socket(arguments.socket.clone());
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
    let witness = Witness::new(runtime.parent().unwrap_or(Path::new("/run")), &state.canonicalize()?, &boot_id);
    let doubt = witness.doubt(log.head()?, known, |rev| Ok(log.read_after(rev - 1, 1)?.pop()))?;
    log.witnessed_by(witness);
    let (ledger, writer) = Ledger::start(log)?;
    if let Some(doubt) = &doubt {
        eprintln!("note: {doubt}; what depends on it waits until every node has spoken, or kiln cluster adopt");
    }
    ledger.submit(Command::Start { doubt }).await.map_err(refused)?;
    ledger.submit(Command::Tick { wall_ms: clock::now_ms() }).await.map_err(refused)?;
    first_site(&ledger, &store, &secrets, &site, &arguments.site).await?;
    let in_use = Arc::new(images::InUse::new(&state));
    in_use.write(ledger.snapshot().state.images_in_use())?;

    let address = match &arguments.interface {
        Some(name) => Some(sockets::interface_address(name, site.management.subnet)?),
        None => None,
    };
    let default = SocketAddr::from((address.unwrap_or(Ipv4Addr::UNSPECIFIED), HTTP_PORT));
    let listen = match &arguments.listen {
        Some(text) => sockets::address(text, HTTP_PORT).map_err(|e| error(Exit::Usage, format!("--listen: {e}")))?,
        None => default,
    };
    let counters = Arc::new(Counters::default());
    let running: Arc<OnceLock<dhcp::Handle>> = Arc::default();

    let tls = sockets::tcp((listen.ip(), arguments.tls_port).into(), "TLS").await?;
    let http_listener = plain.spawn(sockets::tcp(listen, "HTTP")).await.context("opening HTTP")??;
    let http_port = http_listener.local_addr()?.port();
    let pin = keys.identity.pin;
    let nodes = Arc::new(nodes::Nodes {
        ledger: ledger.clone(),
        mode,
        blobs: images::Blobs::new(store.clone()),
        loaders: read_loaders(arguments.ipxe.as_deref())?,
        counters: counters.clone(),
        tls_port: tls.local_addr()?.port(),
        pin,
        address,
        dhcp: running.clone(),
    });
    let acceptor = api::acceptor(keys.identity, &keys.authority)?;
    let leased = running.clone();
    let api = Arc::new(Api {
        ledger: ledger.clone(),
        authority: keys.authority,
        secrets: secrets.clone(),
        leased: Box::new(move |mac| leased.get()?.leased(mac)),
        authoritative: mode == Mode::Authoritative,
        http_port,
        tls_port: nodes.tls_port,
        pin,
        credential_key: keys.credential,
        counters: counters.clone(),
    });
    say(&format!("tls {} pin {}", tls.local_addr()?, pin.hex()));
    tokio::spawn(api::run(tls, acceptor, api));

    say(&format!("http {}", http_listener.local_addr()?));
    plain.spawn(http::run(http_listener, nodes.clone()));

    let netboot = arguments.interface.as_deref().zip(address);
    let tftp = netboot.map(|(interface, address)| start_tftp(interface, address, &nodes)).transpose()?;

    let admin_address = sockets::address(&arguments.admin_listen, ADMIN_PORT)
        .map_err(|e| error(Exit::Usage, format!("--admin-listen: {e}")))?;
    let admin_listener = sockets::tcp(admin_address, "the operator").await?;
    let (socket_listener, socket) = sockets::unix(&places::socket(arguments.socket.clone()))?;
    let operator = Arc::new(operator(&ledger, &database, &counters, &store, &in_use, &running));
    say(&format!("admin {}", admin_listener.local_addr()?));
    say(&format!("socket {}", socket.path.display()));
    tokio::spawn(admin::run_listen(admin_listener, operator.clone()));
    tokio::spawn(admin::run_socket(socket_listener, operator.clone()));
    tokio::spawn(keep_in_use(ledger.clone(), in_use.clone()));

    // Its probe takes seconds: everything else answers meanwhile.
    let dhcp = async {
        if let Some((interface, address)) = netboot {
            start_dhcp(interface, address, http_port, &database, &nodes).await?;
        }
        say("ready");
        Ok(())
    };
    let ended = tokio::select! {
        ended = wait(&ledger, &arguments.site, &operator, &secrets, secrets_file.as_deref()) => ended,
        Err(error) = dhcp => Err(error),
    };
    drop(socket);
    drop(tftp);
    drop(writer); // its thread ends with the last handle; what it answered for is on the disk
    ended
}

/// A line for whoever started us; if nobody listens any more, that is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Connections are files: takes as many as the system gives.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "raising the limit of open files");
    }
}

/// The ledger belongs to one server.
pub(super) fn lock(state: &Path) -> Result<nix::fcntl::Flock<std::fs::File>> {
    let path = state.join("serve.lock");
    let file = std::fs::File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| error(Exit::Refused, format!("another kiln serve runs with the state {}", state.display())))
}

fn read_secrets(path: Option<&Path>) -> Result<BTreeMap<String, String>> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let secrets = secrets::read(path)?;
    Ok(secrets.names().filter_map(|name| Some((name.to_string(), secrets.get(name)?.to_string()))).collect())
}

/// An empty ledger takes the site file; a later edit only by the operator's word.
async fn first_site(ledger: &Ledger, store: &Store, secrets: &Secrets, site: &Site, path: &Path) -> Result<()> {
    let state = ledger.snapshot().state;
    if let Some(known) = &state.site {
        if **known != *site {
            eprintln!("note: {} differs from the ledger's site; next: kiln site diff, kiln site apply", path.display());
        }
        return Ok(());
    }
    let mut images = BTreeMap::new();
    for (role, reference) in &site.role_images {
        match image_for(store, site, role, reference) {
            Ok(image) => drop(images.insert(role.clone(), image)),
            Err(reason) => eprintln!("note: role {role} has no image yet: {reason}; next: kiln image use {role} IMAGE"),
        }
    }
    let own = secrets.read().unwrap_or_else(|e| e.into_inner()).get("site.id").cloned();
    let site_id = match own {
        Some(id) => id,
        None => crate::image::id::hex(&keys::random()?[..16]),
    };
    let command = Command::ApplySite { site: Box::new(site.clone()), site_id, images };
    ledger.submit(command).await.map_err(refused).context("applying the site")?;
    Ok(())
}

fn refused(failed: SubmitError) -> anyhow::Error {
    match failed {
        SubmitError::Refused(refusal) => error(Exit::Refused, refusal.reason),
        other => other.into(),
    }
}

/// What a role's reference means today, if it is an image of that role and release.
fn image_for(store: &Store, site: &Site, role: &str, reference: &str) -> Result<UsedImage, String> {
    let looked = images::look_up(store, reference).map_err(|e| format!("{e:#}"))?;
    if looked.role != role || looked.release != site.cluster.release {
        return Err(format!("image {reference} is {}/{}", looked.release, looked.role));
    }
    Ok(looked.image)
}

/// Orders of the operator that name images by reference.
fn translate(store: &Store, order: Request, ledger: &Ledger) -> Result<Command, (u16, String)> {
    Ok(match order {
        Request::SiteApply { site } | Request::SiteDiff { site } => {
            let state = ledger.snapshot().state;
            let before = state.site.as_ref().map(|s| s.role_images.clone()).unwrap_or_default();
            let mut images = BTreeMap::new();
            for (role, reference) in &site.role_images {
                // The same words mean what they meant: a re-tag changes nothing.
                if before.get(role) == Some(reference) && state.image_of(role).is_some() {
                    continue;
                }
                let image = image_for(store, &site, role, reference);
                images.insert(role.clone(), image.map_err(|reason| (409, format!("role {role}: {reason}")))?);
            }
            Command::ApplySite { site, site_id: String::new(), images }
        }
        Request::ImageUse { role, image } => {
            let looked = images::look_up(store, &image).map_err(|e| (404, format!("{e:#}")))?;
            let image = Box::new(looked.image);
            Command::UseImage { role, image, release: looked.release, image_role: looked.role }
        }
        Request::Approve { machine, node } => Command::Approve { machine, node },
        Request::Hold { node, reason } => Command::Hold { node, reason },
        Request::Unhold { node } => Command::Unhold { node },
        Request::Fence { node } => Command::Fence { node },
        Request::Drain { node, giver, migrate } => Command::Drain { node, giver, migrate },
        Request::Undrain { node } => Command::Undrain { node },
        Request::Form => Command::Form,
        Request::Adopt => Command::Adopt,
        Request::Recover { system, from, accept_loss } => Command::Recover { system, from, accept_loss },
        Request::Reimage { node, image, disks, via, expires_secs, risk } => {
            let looked = image.map(|reference| images::look_up(store, &reference)).transpose();
            let looked = looked.map_err(|e| (404, format!("{e:#}")))?;
            let image = looked.map(|l| ChosenImage { image: l.image, release: l.release, role: l.role });
            let id = short_id()?;
            let expires_ms = clock::now_ms().saturating_add(expires_secs.saturating_mul(1000));
            Command::Reimage(Box::new(Reimage { id, node, image, disks, via, expires_ms, risk }))
        }
        Request::RolloutStart { role, image, allow_upgrade, max_unavailable, giver, plan: _ } => {
            let looked = images::look_up(store, &image).map_err(|e| (404, format!("{e:#}")))?;
            // Against all that its nodes run: of a rollout that was given up some have the one, some the other.
            let mut changes = Vec::new();
            for before in running(&ledger.snapshot().state, &role).iter().filter(|id| **id != looked.image.id) {
                let differ = package_changes(store, before, &looked.image.id);
                changes.extend(differ.map_err(|e| (409, format!("comparing packages: {e:#}")))?);
            }
            let image = ChosenImage { image: looked.image, release: looked.release, role: looked.role };
            let id = short_id()?;
            let asked = StartRollout { id, role, image, changes, allow_upgrade, max_unavailable, giver };
            Command::StartRollout(Box::new(asked))
        }
        Request::RolloutPause { reason } => Command::PauseRollout { reason },
        Request::RolloutResume => Command::ResumeRollout,
        Request::RolloutAbort => Command::AbortRollout,
        Request::Cancel { order, failed } => Command::Cancel { order, failed },
        Request::Replace { node, macs, disk, risk } => Command::Replace(Box::new(Replace { node, macs, disk, risk })),
        Request::Remove { node, risk } => Command::Remove { node, risk },
    })
}

/// Names an order or a rollout.
fn short_id() -> Result<String, (u16, String)> {
    let random = keys::random().map_err(|e| (500, format!("{e:#}")))?;
    Ok(crate::image::id::hex(&random[..4]))
}

/// The role's image, and those that its nodes run.
fn running(state: &State, role: &str) -> BTreeSet<ImageId> {
    let nodes = state.site.iter().flat_map(|s| &s.nodes).filter(|n| n.role == role);
    let run = nodes.filter_map(|n| Some(state.nodes.get(&n.name)?.session.as_ref()?.image));
    run.chain(state.image_of(role).map(|i| i.id)).collect()
}

fn package_changes(store: &Store, from: &ImageId, to: &ImageId) -> Result<Vec<PackageChange>> {
    let changes = crate::build::diff::packages(&store.config(from)?, &store.config(to)?);
    Ok(changes.into_iter().map(|p| PackageChange { name: p.name, from: p.from, to: p.to }).collect())
}

fn read_loaders(folder: Option<&Path>) -> Result<Loaders> {
    let folders: Vec<PathBuf> = match folder {
        Some(folder) => vec![folder.to_path_buf()],
        None => IPXE_DIRS.iter().map(PathBuf::from).collect(),
    };
    let mut found = Vec::new();
    for name in loaders::NAMES {
        if let Some(path) = folders.iter().map(|f| f.join(name)).find(|p| p.is_file()) {
            found.push((name.to_string(), files::read_bounded(&path, loaders::MAX_BYTES)?));
        }
    }
    if found.is_empty() {
        eprintln!("note: no iPXE binaries found; next: install the package ipxe, or name their folder with --ipxe");
    }
    Ok(Loaders::new(found))
}

fn start_tftp(interface: &str, address: Ipv4Addr, nodes: &Arc<nodes::Nodes>) -> Result<tftp::Handle> {
    let counters = nodes.counters.clone();
    let events: tftp::Events = Arc::new(move |event| {
        tracing::debug!(peer = %event.peer, name = %event.name, bytes = event.bytes, "tftp {}", event.outcome.word());
        counters.add_many("tftp_bytes", "loaders", event.bytes);
    });
    let tftp = tftp::Server::start(SocketAddrV4::new(address, TFTP_PORT), Some(interface), nodes.clone(), events)?;
    say(&format!("tftp {}", tftp.address()));
    Ok(tftp)
}

/// Unless another server gives addresses on this interface.
async fn start_dhcp(
    interface: &str,
    server: Ipv4Addr,
    http_port: u16,
    database: &Path,
    nodes: &Arc<nodes::Nodes>,
) -> Result<()> {
    let mode = match nodes.mode {
        Mode::Authoritative => reply::Mode::Authoritative,
        Mode::Proxy => reply::Mode::Proxy,
        Mode::Off => return Ok(()),
    };
    if mode == reply::Mode::Authoritative {
        let (name, mac) = (interface.to_string(), sockets::interface_mac(interface)?);
        let other = tokio::task::spawn_blocking(move || dhcp::probe(&name, mac)).await??;
        if let Some(server) = other {
            let next = "stop it, or use --dhcp proxy";
            return Err(error(Exit::Refused, format!("DHCP server {server} answers on {interface} already; {next}")));
        }
    }
    let config = dhcp::Config { interface: interface.to_string(), reply: reply::Config { mode, server, http_port } };
    let table = Box::new(leases::LeaseTable(sqlite::Leases::open(database)?));
    let noting = nodes.clone();
    let handle = dhcp::Server::start(config, nodes.clone(), table, Arc::new(move |event| noting.note(event)))?;
    let _ = nodes.dhcp.set(handle);
    say(&format!("dhcp {} on {interface}", if nodes.mode == Mode::Proxy { "proxy" } else { "authoritative" }));
    Ok(())
}

fn operator(
    ledger: &Ledger,
    database: &Path,
    counters: &Arc<Counters>,
    store: &Arc<Store>,
    in_use: &Arc<images::InUse>,
    running: &Arc<OnceLock<dhcp::Handle>>,
) -> Admin {
    let (store, in_use, running) = (store.clone(), in_use.clone(), running.clone());
    Admin {
        ledger: ledger.clone(),
        reader: Reader::new(database),
        counters: counters.clone(),
        more: Box::new(move || {
            let dhcp = running.get().map(|d| d.counters()).unwrap_or_default();
            dhcp.into_iter().map(|(word, count)| ("dhcp_packets", word, count)).collect()
        }),
        translate: Box::new(move |order, ledger| translate(&store, order, ledger)),
        changed: Box::new(move |ledger| note_in_use(ledger, &in_use)),
    }
}

fn note_in_use(ledger: &Ledger, in_use: &images::InUse) {
    if let Err(error) = in_use.write(ledger.snapshot().state.images_in_use()) {
        tracing::error!("{error:#}");
    }
}

/// Registers change which images run.
async fn keep_in_use(ledger: Ledger, in_use: Arc<images::InUse>) {
    let mut head = ledger.head();
    while head.changed().await.is_ok() {
        let (ledger, in_use) = (ledger.clone(), in_use.clone());
        let _ = tokio::task::spawn_blocking(move || note_in_use(&ledger, &in_use)).await;
    }
}

/// Until SIGTERM or SIGINT, or until the ledger can go on no more. SIGHUP reads site and secrets again.
async fn wait(
    ledger: &Ledger,
    site: &Path,
    operator: &Admin,
    secrets: &Secrets,
    secrets_file: Option<&Path>,
) -> Result<()> {
    let (mut term, mut int, mut hup) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    let mut pulse = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = hup.recv() => {
                if let Err(error) = reload(ledger, site, operator, secrets, secrets_file).await {
                    tracing::error!("SIGHUP: {error:#}; everything stays as it was");
                }
            }
            _ = pulse.tick() => {
                if ledger.ended() {
                    anyhow::bail!("the ledger's writer ended; see the log above")
                }
                let state = ledger.snapshot().state;
                let led = state.rollout.as_ref().is_some_and(|r| r.is_running());
                if led || !state.open_orders.is_empty() || !state.paused.is_empty() {
                    ledger.submit_quietly(Command::Tick { wall_ms: clock::now_ms() });
                }
            }
        }
    }
}

async fn reload(
    ledger: &Ledger,
    path: &Path,
    operator: &Admin,
    secrets: &Secrets,
    secrets_file: Option<&Path>,
) -> Result<()> {
    let site = Box::new(read_site(path)?);
    let fresh = read_secrets(secrets_file)?;
    let order = Request::SiteApply { site };
    let command = (operator.translate)(order, ledger).map_err(|(_, reason)| anyhow::anyhow!(reason))?;
    let outcome = ledger.submit(command).await?;
    *secrets.write().unwrap_or_else(|e| e.into_inner()) = fresh;
    (operator.changed)(ledger);
    tracing::info!("SIGHUP: {} changes applied", outcome.events.len());
    Ok(())
}
