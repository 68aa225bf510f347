//! The DHCP server's sockets: port 67 and port 4011 on one interface, one thread. Every decision
//! is `reply`'s; here packets are received, leases made durable and replies sent.

use super::lease::{Book, Change, Leases};
use super::packet::{BOOTREPLY, BROADCAST_FLAG, MessageType, Packet, code};
use super::reply::{self, BOOT_PORT, CLIENT_PORT, Decision, Door, Mode, Question, SERVER_PORT, Target};
use crate::pxe::machine::Machine;
use crate::pxe::{Directory, Placement};
use crate::site::Mac;
use crate::sys::clock::now_ms;
use crate::sys::udp;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer datagrams are no DHCP packet of a card with any usual MTU.
const DATAGRAM_MAX_BYTES: usize = 4096;
/// Packets taken from one socket before the other one is looked at.
const BATCH: usize = 64;
/// How long [`probe`] waits: dnsmasq checks an address by ping for 3 s before it offers it, and the
/// first DISCOVER may be lost.
const PROBE_WAIT: Duration = Duration::from_secs(5);
/// The probe repeats its DISCOVER after this.
const PROBE_AGAIN: Duration = Duration::from_millis(1500);

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The only interface that is listened and answered on.
    pub interface: String,
    pub reply: reply::Config,
}

/// One packet of a machine and what came of it, for timelines and logs.
#[derive(Clone, Debug)]
pub struct DhcpEvent {
    /// Milliseconds since the epoch.
    pub at: u64,
    pub machine: Machine,
    /// The node's name, when the machine is one of the site.
    pub node: Option<String>,
    pub message: MessageType,
    pub outcome: Outcome,
}

/// What came of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered {
        message: MessageType,
        /// The address given, in authoritative mode.
        address: Option<Ipv4Addr>,
        /// The name or URI to load next.
        boot_file: Option<String>,
    },
    /// RELEASE and DECLINE have no answer.
    Noted,
    /// The reason, for people.
    Ignored(String),
}

/// The callback for events: called on the server's thread, so it must not wait.
pub type Events = Arc<dyn Fn(DhcpEvent) + Send + Sync>;

/// The DHCP server.
pub struct Server;

/// A running server. Dropping it stops it.
pub struct Handle {
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ledger: Mutex<Ledger>,
    counters: Mutex<BTreeMap<&'static str, u64>>,
}

/// The book and its durable twin, changed together.
struct Ledger {
    book: Book,
    store: Box<dyn Leases + Send>,
}

struct Worker {
    config: Config,
    directory: Arc<dyn Directory + Send + Sync>,
    events: Events,
    shared: Arc<Shared>,
    dhcp: UdpSocket,
    boot: UdpSocket,
}

impl Server {
    /// Opens both ports on the interface and serves until the handle is stopped. An authoritative
    /// server should be started only after [`probe`] found nobody.
    pub fn start(
        config: Config,
        directory: Arc<dyn Directory + Send + Sync>,
        mut leases: Box<dyn Leases + Send>,
        events: Events,
    ) -> Result<Handle> {
        // A proxy may share its machine with the server that gives the addresses.
        let shared = config.reply.mode == Mode::Proxy;
        let open = |port| {
            let options = udp::Options { interface: Some(&config.interface), broadcast: true, shared };
            let socket = udp::open(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), options)
                .with_context(|| format!("opening port {port} for DHCP"))?;
            socket.set_nonblocking(true)?;
            anyhow::Ok(socket)
        };
        let (dhcp, boot) = (open(SERVER_PORT)?, open(BOOT_PORT)?);
        let rows = leases.load().map_err(anyhow::Error::msg).context("reading the leases")?;
        let ledger = Mutex::new(Ledger { book: Book::new(rows), store: leases });
        let shared = Arc::new(Shared { ledger, counters: Mutex::default() });
        let wake = Arc::new(EventFd::new().context("opening an eventfd")?);
        let worker = Worker { config, directory, events, shared: shared.clone(), dhcp, boot };
        let stop = wake.clone();
        let thread = std::thread::Builder::new()
            .name("dhcp".into())
            .spawn(move || worker.run(&stop))
            .context("starting the DHCP thread")?;
        Ok(Handle { shared, wake, thread: Some(thread) })
    }
}

impl Handle {
    /// Packets by what came of them: the reply's type, or the reason for none.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.shared.counters).clone()
    }

    /// Keeps a parked machine's lease while it asks for its script: iPXE never renews. An error is
    /// the store's.
    pub fn keep(&self, mac: Mac) -> Result<()> {
        let mut ledger = locked(&self.shared.ledger);
        match ledger.book.extended(mac, now_ms()) {
            Some(lease) => ledger.bring_in(&Change::Lease(lease)).map_err(anyhow::Error::msg),
            None => Ok(()),
        }
    }

    /// The pool address that a machine holds: only from there may it fetch its credential.
    pub fn leased(&self, mac: Mac) -> Option<Ipv4Addr> {
        locked(&self.shared.ledger).book.held(mac, now_ms())
    }

    /// Ends the server; returns when its thread is gone.
    pub fn stop(self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Ledger {
    /// Durable first: a lease that is not on the disk is not in the book either.
    fn bring_in(&mut self, change: &Change) -> Result<(), String> {
        if let Change::Lease(lease) | Change::Release(lease) = change {
            self.store.commit(lease)?;
        }
        self.book.apply(change);
        Ok(())
    }
}

impl Worker {
    fn run(&self, stop: &EventFd) {
        loop {
            let mut sources = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.dhcp.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.boot.as_fd(), PollFlags::POLLIN),
            ];
            let ready = poll(&mut sources, PollTimeout::NONE);
            if sources[0].any().unwrap_or(false) {
                return;
            }
            if let Err(error) = ready
                && error != nix::errno::Errno::EINTR
            {
                tracing::error!(%error, "DHCP cannot wait for packets");
                std::thread::sleep(Duration::from_secs(1));
            }
            self.drain(&self.dhcp, |_| Door::Dhcp);
            self.drain(&self.boot, |from| Door::Boot { from });
        }
    }

    fn drain(&self, socket: &UdpSocket, door: impl Fn(SocketAddrV4) -> Door) {
        let mut buffer = [0u8; DATAGRAM_MAX_BYTES];
        for _ in 0..BATCH {
            match udp::receive(socket, &mut buffer) {
                Ok(datagram) if datagram.truncated => self.count("too-long"),
                Ok(datagram) => self.serve(&buffer[..datagram.length], door(datagram.from)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // Such as an ICMP error of an earlier reply: counted, never the end.
                Err(_) => return self.count("receive-error"),
            }
        }
    }

    fn serve(&self, bytes: &[u8], door: Door) {
        let packet = match Packet::parse(bytes) {
            Ok(packet) => packet,
            Err(why) => {
                tracing::debug!(%why, "malformed DHCP packet");
                return self.count("malformed");
            }
        };
        let mode = self.config.reply.mode;
        match reply::admit(&packet, mode, door) {
            Ok((machine, message)) => self.answer(&packet, door, machine, message),
            Err(why) => {
                tracing::debug!(%why, "DHCP packet ignored");
                self.count(why.word());
            }
        }
    }

    fn answer(&self, packet: &Packet, door: Door, machine: Machine, message: MessageType) {
        let placement = self.directory.lookup(&machine);
        let config = &self.config.reply;
        let question = Question { config, packet, door, machine: &machine, message, placement: &placement };
        let now = now_ms();
        let outcome = {
            let mut ledger = locked(&self.shared.ledger);
            let decision = reply::reply(&question, &ledger.book, now);
            self.carry_out(decision, packet, door, machine.mac, &mut ledger)
        };
        let node = match placement {
            Placement::Node { name, .. } => Some(name),
            _ => None,
        };
        (self.events)(DhcpEvent { at: now, machine, node, message, outcome });
    }

    fn carry_out(&self, decision: Decision, asked: &Packet, door: Door, mac: Mac, ledger: &mut Ledger) -> Outcome {
        let (reply, to, change) = match decision {
            Decision::Ignore(why) => {
                self.count(why.word());
                return Outcome::Ignored(why.to_string());
            }
            Decision::Record(change) => (None, Target::Broadcast, Some(change)),
            Decision::Send { packet, to, change } => (Some(packet), to, change),
        };
        if let Some(Err(error)) = change.map(|change| ledger.bring_in(&change)) {
            tracing::error!(%mac, %error, "a lease could not be stored, so it is not acknowledged");
            self.count("not-stored");
            return Outcome::Ignored(format!("the lease could not be stored: {error}"));
        }
        let Some(reply) = reply else {
            self.count("noted");
            return Outcome::Noted;
        };
        let message = reply.message().unwrap_or(MessageType::Nak);
        self.count(message.word());
        if let Err(error) = self.send(&reply.encode(reply::size_max(asked)), to, door, mac) {
            tracing::warn!(%mac, %error, "a DHCP reply could not be sent");
            self.count("send-error");
        }
        Outcome::Answered {
            message,
            address: Some(reply.yiaddr).filter(|a| !a.is_unspecified()),
            boot_file: reply.get(code::BOOT_FILE).map(|name| String::from_utf8_lossy(name).into_owned()),
        }
    }

    fn send(&self, bytes: &[u8], to: Target, door: Door, mac: Mac) -> std::io::Result<()> {
        let socket = if door == Door::Dhcp { &self.dhcp } else { &self.boot };
        let from = self.config.reply.server;
        let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
        match to {
            Target::Address(address) => udp::send(socket, bytes, from, address),
            Target::Broadcast => udp::send(socket, bytes, from, everyone),
            Target::Card(address) => udp::set_neighbour(socket, &self.config.interface, address, mac.0)
                .and_then(|()| udp::send(socket, bytes, from, SocketAddrV4::new(address, CLIENT_PORT)))
                // No route, no ARP on this device: everyone hears it, and the client is among them.
                .or_else(|_| udp::send(socket, bytes, from, everyone)),
        }
    }

    fn count(&self, word: &'static str) {
        *locked(&self.shared.counters).entry(word).or_default() += 1;
    }
}

/// Asks as a client whether a DHCP server gives addresses on this interface; returns at the first
/// offer, else after [`PROBE_WAIT`]. `mac`: the interface's own is best. Proxies do not count.
pub fn probe(interface: &str, mac: Mac) -> Result<Option<Ipv4Addr>> {
    let options = udp::Options { interface: Some(interface), broadcast: true, shared: true };
    let socket = udp::open(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT), options)
        .with_context(|| format!("probing {interface} for another DHCP server"))?;
    let mut xid = [0u8; 4];
    getrandom::fill(&mut xid).map_err(|e| anyhow::anyhow!("reading random bytes: {e}"))?;
    let mut discover = Packet::request(mac, u32::from_ne_bytes(xid));
    // We have no such address, so a reply can only reach us as a broadcast.
    discover.flags = BROADCAST_FLAG;
    discover.set(code::MESSAGE_TYPE, vec![MessageType::Discover as u8]);
    discover.set(code::PARAMETERS, vec![code::SUBNET_MASK, code::ROUTER]);
    let bytes = discover.encode(usize::MAX);
    let end = Instant::now() + PROBE_WAIT;
    while Instant::now() < end {
        let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        udp::send(&socket, &bytes, Ipv4Addr::UNSPECIFIED, everyone)
            .with_context(|| format!("sending a DISCOVER on {interface}"))?;
        let until = end.min(Instant::now() + PROBE_AGAIN);
        if let Some(server) = offer(&socket, discover.xid, until)? {
            return Ok(Some(server));
        }
    }
    Ok(None)
}

/// The server of the first offer of an address to `xid` before `until`.
fn offer(socket: &UdpSocket, xid: u32, until: Instant) -> Result<Option<Ipv4Addr>> {
    let mut buffer = [0u8; DATAGRAM_MAX_BYTES];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let datagram = match udp::receive(socket, &mut buffer) {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("waiting for an offer"),
        };
        let Ok(packet) = Packet::parse(&buffer[..datagram.length]) else { continue };
        let ours = packet.op == BOOTREPLY && packet.xid == xid && packet.message() == Some(MessageType::Offer);
        if ours && !packet.yiaddr.is_unspecified() {
            return Ok(Some(packet.get_address(code::SERVER_ID).unwrap_or(*datagram.from.ip())));
        }
    }
}

/// A panic elsewhere must not silence the server: its data is whole after each statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
