//! The TFTP server's sockets: one thread listens, one small thread serves each transfer from a
//! connected socket of its own (RFC 1350 §4: a port for each transfer; packets from strangers
//! never reach it). Names are looked up in [`Files`]; no path of the disk is ever made from one.

use super::packet::{DATA_HEADER_BYTES, Packet, Request, data_header, encode_error, error};
use super::transfer::{End, FROM_CLIENT_MAX_BYTES, Send as Now, Transfer};
use crate::sys::clock::now_ms;
use crate::sys::udp;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Transfers at once; further requests get no answer, and their clients ask again.
pub const TRANSFERS_MAX: usize = 256;
/// Of these, from one address: one machine cannot keep out the others.
pub const TRANSFERS_PER_PEER_MAX: usize = 64;
/// A transfer's thread only copies between buffers on the heap.
const STACK_BYTES: usize = 128 * 1024;
/// Read from a file at once, so that small blocks do not mean small reads.
const READ_AHEAD_BYTES: usize = 128 * 1024;
/// The longest wait for a packet, so that a stopped server's transfers end soon.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Requests are shorter (RFC 2347 §2).
const REQUEST_MAX_BYTES: usize = 1024;
/// The most datagrams that the kernel cuts from one buffer (UDP_MAX_SEGMENTS of its first version).
const SEGMENTS_MAX: usize = 64;
/// The most bytes of one UDP send.
const SEND_MAX_BYTES: usize = 65_507;

/// What can be fetched. Called on the listening thread: it must be quick.
pub trait Files {
    /// The content of a known name (normalised: no leading slash, no backslash); `None` is
    /// answered at once with "file not found".
    fn open(&self, name: &str, peer: SocketAddr) -> Option<Content>;
}

/// The bytes of a name.
pub enum Content {
    Memory(Arc<[u8]>),
    /// The first `length` bytes of the file.
    File {
        file: File,
        length: u64,
    },
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File { length, .. } => *length,
        }
    }
}

/// One request and what came of it, for timelines and logs.
#[derive(Clone, Debug)]
pub struct TftpEvent {
    /// Milliseconds since the epoch, at the end.
    pub at: u64,
    pub peer: SocketAddr,
    pub name: String,
    /// Acknowledged by the client.
    pub bytes: u64,
    /// From the request to the end.
    pub millis: u64,
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The client asked for the size only.
    Probe,
    /// The client closed it before the end; code and text are its own.
    Closed {
        code: u16,
        text: String,
    },
    /// The client answered no more.
    Silent,
    NotFound,
    /// Neither `octet` nor a read.
    Refused,
    /// Reading the content or sending failed.
    Failed(String),
}

impl Outcome {
    /// The counter's name.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Probe => "probe",
            Outcome::Closed { .. } => "closed",
            Outcome::Silent => "silent",
            Outcome::NotFound => "not-found",
            Outcome::Refused => "refused",
            Outcome::Failed(_) => "failed",
        }
    }
}

/// The callback for events: called on the server's threads, so it must not wait long.
pub type Events = Arc<dyn Fn(TftpEvent) + Send + Sync>;

/// The TFTP server.
pub struct Server;

/// A running server. Dropping it stops it.
pub struct Handle {
    address: SocketAddr,
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Known by all threads.
struct Shared {
    events: Events,
    counters: Mutex<BTreeMap<&'static str, u64>>,
    active: Mutex<HashMap<u64, Active>>,
    stopping: AtomicBool,
}

/// A running transfer, as the listener knows it.
struct Active {
    peer: SocketAddrV4,
    request: Vec<u8>,
    /// The client has answered: the same request again is a new one.
    answered: Arc<AtomicBool>,
}

struct Listener {
    socket: UdpSocket,
    files: Arc<dyn Files + Send + Sync>,
    shared: Arc<Shared>,
    /// The next transfer's number.
    next: u64,
}

impl Server {
    /// Listens on `bind` (port 69, or 0 for any), on one interface or on all.
    pub fn start(
        bind: SocketAddrV4,
        interface: Option<&str>,
        files: Arc<dyn Files + Send + Sync>,
        events: Events,
    ) -> Result<Handle> {
        let socket = udp::open(bind, udp::Options { interface, ..Default::default() })
            .with_context(|| format!("opening {bind} for TFTP"))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            events,
            counters: Mutex::default(),
            active: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let wake = Arc::new(EventFd::new().context("opening an eventfd")?);
        let (stop, mut listener) = (wake.clone(), Listener { socket, files, shared: shared.clone(), next: 0 });
        let thread = std::thread::Builder::new()
            .name("tftp".into())
            .spawn(move || listener.run(&stop))
            .context("starting the TFTP thread")?;
        Ok(Handle { address, shared, wake, thread: Some(thread) })
    }
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests by what came of them.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.shared.counters).clone()
    }

    /// Transfers that run now.
    pub fn active(&self) -> usize {
        locked(&self.shared.active).len()
    }

    /// Ends the server: it listens no more, and running transfers end within [`WAIT_MAX`].
    pub fn stop(self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn count(&self, word: &'static str) {
        *locked(&self.counters).entry(word).or_default() += 1;
    }

    fn report(&self, peer: SocketAddrV4, name: String, bytes: u64, millis: u64, outcome: Outcome) {
        self.count(outcome.word());
        (self.events)(TftpEvent { at: now_ms(), peer: peer.into(), name, bytes, millis, outcome });
    }
}

impl Listener {
    fn run(&mut self, stop: &EventFd) {
        loop {
            let mut sources =
                [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut sources, PollTimeout::NONE);
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = ready
                && error != nix::errno::Errno::EINTR
            {
                tracing::error!(%error, "TFTP cannot wait for requests");
                std::thread::sleep(WAIT_MAX);
            }
            let mut buffer = [0u8; REQUEST_MAX_BYTES];
            match udp::receive(&self.socket, &mut buffer) {
                Ok(datagram) if datagram.truncated => self.shared.count("malformed"),
                Ok(datagram) => self.request(&buffer[..datagram.length], datagram.from, datagram.local),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Such as an ICMP error of an earlier answer: counted, never the end.
                Err(_) => self.shared.count("receive-error"),
            }
        }
    }

    fn request(&mut self, bytes: &[u8], peer: SocketAddrV4, local: Ipv4Addr) {
        let refuse = |code, text| {
            let _ = udp::send(&self.socket, &encode_error(code, text), local, peer);
        };
        let request = match Packet::parse(bytes) {
            Ok(Packet::Read(request)) if request.octet => request,
            Ok(Packet::Read(request)) => {
                refuse(error::UNDEFINED, "only octet mode");
                return self.shared.report(peer, request.name, 0, 0, Outcome::Refused);
            }
            Ok(Packet::Write) => {
                refuse(error::ACCESS, "read only");
                return self.shared.count("write-refused");
            }
            // A late packet of a transfer that is over, or a port scan.
            Ok(_) => return self.shared.count("stray"),
            Err(_) => return self.shared.count("malformed"),
        };
        if let Some(word) = self.crowded(bytes, peer) {
            return self.shared.count(word);
        }
        match self.files.open(&request.name, peer.into()) {
            Some(content) => self.begin(bytes, request, content, peer, local),
            None => {
                refuse(error::NOT_FOUND, "no such file");
                self.shared.report(peer, request.name, 0, 0, Outcome::NotFound);
            }
        }
    }

    /// Why a request gets no transfer of its own now.
    fn crowded(&self, bytes: &[u8], peer: SocketAddrV4) -> Option<&'static str> {
        let active = locked(&self.shared.active);
        let repeated = |a: &Active| a.peer == peer && a.request == bytes && !a.answered.load(Ordering::Relaxed);
        if active.values().any(repeated) {
            // The running transfer repeats its first packet by itself. Once the client has answered
            // it, the same request is a client that began anew (ROMs use one port for ever).
            return Some("repeated");
        }
        let of_peer = active.values().filter(|a| a.peer.ip() == peer.ip()).count();
        (active.len() >= TRANSFERS_MAX || of_peer >= TRANSFERS_PER_PEER_MAX).then_some("busy")
    }

    fn begin(&mut self, bytes: &[u8], request: Request, content: Content, peer: SocketAddrV4, local: Ipv4Addr) {
        self.next += 1;
        let answered = Arc::new(AtomicBool::new(false));
        let entry = Active { peer, request: bytes.to_vec(), answered: answered.clone() };
        locked(&self.shared.active).insert(self.next, entry);
        let place = Place { shared: self.shared.clone(), number: self.next };
        let name = request.name.clone();
        let work = move || {
            let started = Instant::now();
            let (acknowledged, outcome) = Sender::open(&request, content, peer, local, answered)
                .and_then(|mut sender| sender.run(&place.shared.stopping, started))
                .unwrap_or_else(|error| (0, Outcome::Failed(error.to_string())));
            let millis = started.elapsed().as_millis() as u64;
            place.shared.report(peer, request.name, acknowledged, millis, outcome);
        };
        if let Err(error) = std::thread::Builder::new().name("tftp-file".into()).stack_size(STACK_BYTES).spawn(work) {
            tracing::error!(%error, name, "a TFTP transfer cannot start");
            self.shared.count("no-thread");
        }
    }
}

/// A transfer's entry, given back however its thread ends.
struct Place {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.shared.active).remove(&self.number);
    }
}

/// One transfer's socket and buffers.
struct Sender {
    socket: UdpSocket,
    transfer: Transfer,
    content: Content,
    answered: Arc<AtomicBool>,
    /// Packets of one send, one after the other.
    packets: Vec<u8>,
    /// Bytes of the file from this offset on.
    ahead: (u64, Vec<u8>),
    /// The kernel cuts packets for us; off after its first refusal.
    segments: bool,
    /// The socket's current receive time-out.
    armed: Duration,
}

impl Sender {
    fn open(
        request: &Request,
        content: Content,
        peer: SocketAddrV4,
        local: Ipv4Addr,
        answered: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind((local, 0))?;
        socket.connect(peer)?;
        // A block that does not fit a smaller MTU goes out in fragments instead of failing.
        udp::allow_fragments(&socket)?;
        let transfer = Transfer::new(request, content.len(), 0);
        Ok(Sender {
            socket,
            transfer,
            content,
            answered,
            packets: Vec::new(),
            ahead: (0, Vec::new()),
            segments: true,
            armed: Duration::ZERO,
        })
    }

    /// Serves to the end; the bytes that arrived, and how it ended.
    fn run(&mut self, stopping: &AtomicBool, started: Instant) -> io::Result<(u64, Outcome)> {
        let now = || started.elapsed().as_millis() as u64;
        let mut buffer = [0u8; FROM_CLIENT_MAX_BYTES];
        let outcome = loop {
            if let Err(outcome) = self.send() {
                break outcome;
            }
            let Some(deadline) = self.transfer.next_deadline() else { break Outcome::Silent };
            self.arm(Duration::from_millis(deadline.saturating_sub(now())))?;
            match self.socket.recv(&mut buffer) {
                Ok(length) => self.transfer.on_packet(&buffer[..length], now()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // Its port is closed (ICMP): nobody is there any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break Outcome::Silent,
                Err(error) => break Outcome::Failed(error.to_string()),
            }
            if stopping.load(Ordering::Relaxed) {
                break self.give_up("the server stops".into());
            }
            self.transfer.on_timeout(now());
            if self.transfer.answered() {
                self.answered.store(true, Ordering::Relaxed);
            }
            match self.transfer.end() {
                None => {}
                Some(End::Done) => break Outcome::Done,
                Some(End::Probe) => break Outcome::Probe,
                Some(End::Closed { code, text }) => break Outcome::Closed { code: *code, text: text.clone() },
                Some(End::Silent) => break Outcome::Silent,
            }
        };
        Ok((self.transfer.acknowledged_bytes(), outcome))
    }

    /// Changing the time-out costs a system call, so one that is about right stays.
    fn arm(&mut self, wanted: Duration) -> io::Result<()> {
        let wanted = wanted.clamp(Duration::from_millis(1), WAIT_MAX);
        if wanted > self.armed || wanted < self.armed / 2 {
            self.socket.set_read_timeout(Some(wanted))?;
            self.armed = wanted;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Outcome> {
        match self.transfer.packets_to_send() {
            Now::Nothing => Ok(()),
            Now::Oack(bytes) => tolerated(self.socket.send(&bytes).map(drop)),
            Now::Data { first, count } => {
                let packet = self.transfer.block_bytes() + DATA_HEADER_BYTES;
                let at_once = (SEND_MAX_BYTES / packet).clamp(1, SEGMENTS_MAX) as u64;
                let end = first + count;
                for from in (first..end).step_by(at_once as usize) {
                    self.send_blocks(from, end.min(from + at_once), packet)?;
                }
                Ok(())
            }
        }
    }

    fn send_blocks(&mut self, first: u64, end: u64, packet: usize) -> Result<(), Outcome> {
        self.packets.clear();
        for block in first..end {
            self.packets.extend(data_header(block as u16));
            let (offset, length) = self.transfer.block_range(block);
            if let Err(error) = self.copy(offset, length) {
                return Err(self.give_up(format!("reading the content: {error}")));
            }
        }
        if self.segments && end - first > 1 {
            match udp::send_segments(&self.socket, &self.packets, packet as u16) {
                // An old kernel, a device that cannot, or a block beyond the MTU.
                Err(error) if !lost(&error) && error.kind() != io::ErrorKind::ConnectionRefused => {
                    self.segments = false
                }
                result => return tolerated(result),
            }
        }
        for bytes in self.packets.chunks(packet) {
            tolerated(self.socket.send(bytes).map(drop))?;
        }
        Ok(())
    }

    /// Appends bytes of the content to the packets.
    fn copy(&mut self, offset: u64, length: usize) -> io::Result<()> {
        match &self.content {
            Content::Memory(bytes) => {
                let from = offset as usize;
                let part = bytes.get(from..from + length).ok_or(io::ErrorKind::UnexpectedEof)?;
                self.packets.extend_from_slice(part);
            }
            Content::File { file, length: size } => {
                let (start, ahead) = &mut self.ahead;
                if offset < *start || offset + length as u64 > *start + ahead.len() as u64 {
                    *start = offset;
                    ahead.resize((size - offset).min(READ_AHEAD_BYTES as u64) as usize, 0);
                    // A file that shrank is an error, not silence and not zeros.
                    file.read_exact_at(ahead, offset)?;
                }
                let from = (offset - *start) as usize;
                self.packets.extend_from_slice(&ahead[from..from + length]);
            }
        }
        Ok(())
    }

    /// Tells the client, so that it does not wait.
    fn give_up(&self, why: String) -> Outcome {
        let _ = self.socket.send(&encode_error(error::UNDEFINED, "transfer ended by the server"));
        Outcome::Failed(why)
    }
}

/// The packet did not go out, but the next may: as if lost on the way.
fn lost(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::EPERM | libc::ENOMEM))
}

fn tolerated(result: io::Result<()>) -> Result<(), Outcome> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if lost(&error) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Outcome::Silent),
        Err(error) => Err(Outcome::Failed(format!("sending: {error}"))),
    }
}

/// A panic elsewhere must not silence the server: its data is whole after each statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
