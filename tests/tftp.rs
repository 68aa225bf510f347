//! The TFTP server on loopback: raw packets for the rules, and the clients that people have.

use kiln::pxe::tftp::packet::{Packet, encode_ack, encode_error, encode_read};
use kiln::pxe::tftp::server::{Content, Files, Handle, Outcome, Server, TftpEvent};
use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// More than 65536 blocks of 512 bytes, so that the counter wraps.
const BIG_BYTES: usize = 40_000_000;

/// What the server knows, by name; `.file` in a name makes it a file on the disk.
struct Known(HashMap<String, Arc<[u8]>>);

impl Files for Known {
    fn open(&self, name: &str, _: SocketAddr) -> Option<Content> {
        let bytes = self.0.get(name)?.clone();
        if !name.ends_with(".file") {
            return Some(Content::Memory(bytes));
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        Some(Content::File { file, length: bytes.len() as u64 })
    }
}

struct Rig {
    handle: Handle,
    events: Arc<Mutex<Vec<TftpEvent>>>,
    files: HashMap<String, Arc<[u8]>>,
}

/// Bytes without a pattern that a wrong offset could hide in; the same ones in each test.
fn bytes(length: usize) -> Arc<[u8]> {
    static ALL: OnceLock<Vec<u8>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as u8
        };
        (0..BIG_BYTES).map(|_| next()).collect()
    });
    all[..length].into()
}

fn rig() -> Rig {
    rig_on(Ipv4Addr::LOCALHOST)
}

fn rig_on(address: Ipv4Addr) -> Rig {
    let sizes = [("empty", 0), ("one", 1), ("block", 512), ("loader", 100_003), ("big", BIG_BYTES)];
    let mut files = HashMap::new();
    for (name, size) in sizes {
        files.insert(name.to_string(), bytes(size));
        files.insert(format!("{name}.file"), bytes(size));
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let handle = Server::start(
        SocketAddrV4::new(address, 0),
        None,
        Arc::new(Known(files.clone())),
        Arc::new(move |event| sink.lock().unwrap().push(event)),
    )
    .unwrap();
    Rig { handle, events, files }
}

impl Rig {
    fn port(&self) -> String {
        self.handle.address().port().to_string()
    }

    /// The event that ends a request, once it is there.
    fn event(&self, number: usize) -> TftpEvent {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(event) = self.events.lock().unwrap().get(number) {
                return event.clone();
            }
            assert!(Instant::now() < end, "event {number} did not come: {:?}", self.events.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn client(&self) -> Client {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(3000))).unwrap();
        Client { socket, server: self.handle.address() }
    }
}

/// A client by hand.
struct Client {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Client {
    fn ask(&self, name: &str, options: &[(&str, &str)]) {
        let options: Vec<_> = options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        self.socket.send_to(&encode_read(name, "octet", &options), self.server).unwrap();
    }

    fn next(&self) -> Option<(Packet, Vec<u8>, SocketAddr)> {
        let mut buffer = [0u8; 2000];
        let (length, from) = self.socket.recv_from(&mut buffer).ok()?;
        Some((Packet::parse(&buffer[..length]).unwrap(), buffer[..length].to_vec(), from))
    }

    fn error(&self) -> u16 {
        match self.next() {
            Some((Packet::Error { code, .. }, ..)) => code,
            other => panic!("an error was expected, not {other:?}"),
        }
    }
}

/// Whether a tool is here; without it the test says so, and fails on CI.
fn tool(name: &str) -> bool {
    let found = std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| Path::new(dir).join(name).is_file());
    if !found {
        skip(&format!("{name} is not installed"));
    }
    found
}

fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "on CI nothing is skipped: {why}");
    eprintln!("skipped: {why}");
}

#[test]
fn unknown_names_and_writes_are_refused_at_once() {
    let rig = rig();
    let client = rig.client();
    let started = Instant::now();
    for name in ["autoexec.ipxe", "../../etc/passwd", "/etc/passwd", "loader/"] {
        client.ask(name, &[("tsize", "0")]);
        if name == "loader/" {
            continue; // the same artefact, said sloppily
        }
        assert_eq!(client.error(), 1, "{name}");
    }
    let (packet, ..) = client.next().unwrap();
    assert!(matches!(packet, Packet::Oack(_)), "{packet:?}");
    let other = rig.client();
    other.socket.send_to(b"\0\x02loader\0octet\0", rig.handle.address()).unwrap();
    assert_eq!(other.error(), 2);
    other.socket.send_to(b"\0\x01loader\0netascii\0", rig.handle.address()).unwrap();
    assert_eq!(other.error(), 0);
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(rig.event(0).outcome, Outcome::NotFound);
}

#[test]
fn garbage_is_counted_and_never_ends_the_server() {
    let rig = rig();
    let client = rig.client();
    for junk in [&b""[..], b"\0", b"\0\x01", b"\0\x01x", b"\0\x09zz", &[0xff; 1500], b"\0\x04\0\x01"] {
        client.socket.send_to(junk, rig.handle.address()).unwrap();
    }
    client.ask("one", &[]);
    assert!(matches!(client.next().unwrap().0, Packet::Data { block: 1, length: 1 }));
    let counters = rig.handle.counters();
    assert_eq!((counters["malformed"], counters["stray"]), (6, 1));
}

#[test]
fn firmware_that_only_asks_the_size_is_a_probe() {
    let rig = rig();
    let client = rig.client();
    client.ask("loader", &[("tsize", "0"), ("blksize", "1468")]);
    let (packet, _, from) = client.next().unwrap();
    assert_eq!(packet, Packet::Oack(vec![("tsize".into(), "100003".into()), ("blksize".into(), "1468".into())]));
    assert_ne!(from, rig.handle.address(), "each transfer has a port of its own");
    client.socket.send_to(&encode_error(8, "User aborted"), from).unwrap();
    assert_eq!(rig.event(0).outcome, Outcome::Probe);
    client.ask("loader", &[("tsize", "0"), ("blksize", "1468")]);
    assert!(matches!(client.next().unwrap().0, Packet::Oack(_)), "the same port asks again");
}

#[test]
fn a_repeated_request_gets_no_second_transfer_until_it_was_answered() {
    let rig = rig();
    let client = rig.client();
    for _ in 0..3 {
        client.ask("loader", &[]);
    }
    let (_, _, first) = client.next().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while rig.handle.counters().get("repeated") != Some(&2) {
        assert!(Instant::now() < end, "{:?}", rig.handle.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    client.socket.send_to(&encode_ack(1), first).unwrap();
    let mut packets = std::iter::from_fn(|| client.next());
    // The first may have been repeated meanwhile.
    let next = packets.find(|(packet, ..)| !matches!(packet, Packet::Data { block: 1, .. })).unwrap();
    assert!(matches!(next, (Packet::Data { block: 2, .. }, _, from) if from == first));
    assert_eq!(rig.handle.active(), 1);
    client.ask("loader", &[]);
    let (packet, _, second) = client.next().unwrap();
    assert!(matches!(packet, Packet::Data { block: 1, .. }) && second != first, "the client began anew");
}

#[test]
fn a_vanished_client_holds_nothing() {
    let rig = rig();
    let client = rig.client();
    client.ask("loader", &[]);
    assert!(client.next().is_some());
    drop(client);
    // The next repetition finds a closed port.
    let event = rig.event(0);
    assert_eq!((event.outcome, event.bytes), (Outcome::Silent, 0));
    let end = Instant::now() + Duration::from_secs(2);
    while rig.handle.active() > 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_crowd_is_bounded_and_everyone_else_waits() {
    let rig = rig();
    let clients: Vec<Client> = (0..80).map(|_| rig.client()).collect();
    for client in &clients {
        client.ask("loader", &[]);
    }
    let end = Instant::now() + Duration::from_secs(5);
    while rig.handle.counters().get("busy") != Some(&16) {
        assert!(Instant::now() < end, "{:?}", rig.handle.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rig.handle.active(), kiln::pxe::tftp::server::TRANSFERS_PER_PEER_MAX);
}

#[test]
fn a_file_that_shrinks_underneath_ends_its_transfer_with_an_error() {
    struct Shrunk;
    impl Files for Shrunk {
        fn open(&self, _: &str, _: SocketAddr) -> Option<Content> {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[1; 600]).unwrap();
            Some(Content::File { file, length: 5000 })
        }
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let bind = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let handle = Server::start(bind, None, Arc::new(Shrunk), Arc::new(move |e| sink.lock().unwrap().push(e))).unwrap();
    let client = Rig { handle, events, files: HashMap::new() };
    let hand = client.client();
    hand.ask("any", &[]);
    assert_eq!(hand.error(), 0);
    assert!(matches!(client.event(0).outcome, Outcome::Failed(_)));
}

/// Runs a client that writes `out` in a folder of its own and compares the bytes.
fn fetch(rig: &Rig, name: &str, command: &mut Command) {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("{command:?}");
    let output = command.current_dir(dir.path()).output().unwrap();
    let got = std::fs::read(dir.path().join("out")).unwrap_or_default();
    let wanted = &rig.files[name];
    assert!(got[..] == wanted[..], "{line}: {} of {} bytes\n{output:?}", got.len(), wanted.len());
}

#[test]
fn real_clients_get_every_byte() {
    let rig = rig();
    let port = rig.port();
    let names = ["one", "block", "loader", "loader.file", "big", "big.file"];
    if tool("atftp") {
        for name in names.into_iter().chain(["empty"]) {
            for options in [&["blksize 1468"][..], &["blksize 1428", "windowsize 16"], &["windowsize 64"]] {
                let mut command = Command::new("atftp");
                for option in options {
                    command.args(["--option", option]);
                }
                command.args(["--get", "-r", name, "-l", "out", "127.0.0.1", &port]);
                fetch(&rig, name, &mut command);
            }
        }
    }
    if tool("tftp") {
        // tftp-hpa
        for name in ["loader", "loader.file", "block", "empty"] {
            let mut command = Command::new("tftp");
            command.args(["-m", "binary", "127.0.0.1", &port, "-c", "get", name, "out"]);
            fetch(&rig, name, &mut command);
        }
    }
    if tool("busybox") {
        for (name, block) in
            [("one", "512"), ("loader", "512"), ("loader", "1468"), ("big.file", "1468"), ("block", "65464")]
        {
            let mut command = Command::new("busybox");
            command.args(["tftp", "-g", "-b", block, "-r", name, "-l", "out", "127.0.0.1", &port]);
            fetch(&rig, name, &mut command);
        }
    }
    if tool("curl") {
        for (name, block) in [("one", "512"), ("empty", "512"), ("loader", "512"), ("big", "1468"), ("big.file", "512")]
        {
            let mut command = Command::new("curl");
            let url = format!("tftp://127.0.0.1:{port}/{name}");
            command.args(["-sS", "-m", "60", "--tftp-blksize", block, "-o", "out", &url]);
            fetch(&rig, name, &mut command);
        }
    }
    let failed: Vec<TftpEvent> =
        rig.events.lock().unwrap().iter().filter(|e| e.outcome != Outcome::Done).cloned().collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_stopped_server_ends_its_transfers() {
    let rig = rig();
    let client = rig.client();
    client.ask("loader", &[]);
    assert!(client.next().is_some());
    let events = rig.events.clone();
    rig.handle.stop();
    let end = Instant::now() + Duration::from_secs(5);
    while events.lock().unwrap().is_empty() {
        assert!(Instant::now() < end, "the transfer outlives its server");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client.error(), 0);
}

/// Two namespaces with one cable; they vanish with the value.
struct Cable([String; 2]);

impl Cable {
    fn new(mtu: u32) -> Option<Cable> {
        if !nix::unistd::geteuid().is_root() {
            skip("not root");
            return None;
        }
        if !tool("ip") {
            return None;
        }
        let cable = Cable(["a", "b"].map(|end| format!("kt{}-{mtu}-{end}", std::process::id())));
        for name in &cable.0 {
            if !ip(&["netns", "add", name]) {
                skip("network namespaces cannot be made here");
                return None;
            }
        }
        let [a, b] = &cable.0;
        assert!(ip(&["-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b]));
        for (name, address) in [(a, "10.78.0.1/24"), (b, "10.78.0.2/24")] {
            assert!(ip(&["-n", name, "address", "add", address, "dev", "eth0"]));
            assert!(ip(&["-n", name, "link", "set", "eth0", "mtu", &mtu.to_string(), "up"]));
        }
        Some(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.0 {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().unwrap().success()
}

#[test]
fn another_machine_gets_every_byte_at_any_mtu() {
    for mtu in [1500, 1400] {
        let Some(cable) = Cable::new(mtu) else { return };
        if !tool("atftp") {
            return;
        }
        let path = format!("/run/netns/{}", cable.0[0]);
        let enter = move || {
            let file = std::fs::File::open(path).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            // The wildcard: answers must come from the address that was asked.
            rig_on(Ipv4Addr::UNSPECIFIED)
        };
        let rig = std::thread::spawn(enter).join().unwrap();
        for window in ["windowsize 1", "windowsize 16", "windowsize 64"] {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &cable.0[1], "atftp", "--option", "blksize 1468", "--option", window]);
            command.args(["--get", "-r", "big.file", "-l", "out", "10.78.0.1", &rig.port()]);
            fetch(&rig, "big.file", &mut command);
        }
    }
}
