//! The DHCP server in network namespaces of its own: raw PXE packets, real DHCP clients, and a
//! real dnsmasq beside it. Needs root, `ip` and the clients.

use kiln::pxe::dhcp::lease::{Lease, Leases};
use kiln::pxe::dhcp::packet::{BROADCAST_FLAG, MessageType, Packet, code};
use kiln::pxe::dhcp::reply::{self, Mode};
use kiln::pxe::dhcp::server::{Config, DhcpEvent, Handle, Outcome, Server, probe};
use kiln::pxe::machine::Machine;
use kiln::pxe::{Directory, Link, Offer, Placement, Pool};
use kiln::site::Mac;
use kiln::sys::udp;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const NODE_MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const STRANGER_MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 2]);
const DNSMASQ: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0]), (97, &[0; 17])];
const UEFI: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00007:UNDI:003016"), (93, &[0, 7])];

/// Three machines on one bridge: `server`, `other` (a second DHCP server) and `client`.
struct Net {
    names: Vec<String>,
    children: Mutex<Vec<Child>>,
}

impl Net {
    /// `None`, with the reason printed, where namespaces cannot be made.
    fn new() -> Option<Net> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            return skip("not root");
        }
        if !tool("ip") {
            return None;
        }
        let tag = format!("kd{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let names = ["bridge", "server", "other", "client"].map(|n| format!("{tag}-{n}")).to_vec();
        let net = Net { names, children: Mutex::default() };
        for name in &net.names {
            if !ip(&["netns", "add", name]) {
                return skip("network namespaces cannot be made here");
            }
            assert!(ip(&["-n", name, "link", "set", "lo", "up"]));
        }
        assert!(ip(&["-n", net.bridge(), "link", "add", "br0", "type", "bridge", "forward_delay", "0"]));
        assert!(ip(&["-n", net.bridge(), "link", "set", "br0", "up"]));
        for (port, address) in [("server", "10.77.0.1/24"), ("other", "10.77.0.2/24"), ("client", "")] {
            let name = net.name(port);
            let bridge = net.bridge();
            assert!(ip(&["-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", &name]));
            assert!(ip(&["-n", bridge, "link", "set", port, "master", "br0", "up"]));
            if !address.is_empty() {
                assert!(ip(&["-n", &name, "address", "add", address, "dev", "eth0"]));
            }
            assert!(ip(&["-n", &name, "link", "set", "eth0", "up"]));
        }
        net.client_is(NODE_MAC);
        Some(net)
    }

    fn bridge(&self) -> &str {
        &self.names[0]
    }

    fn name(&self, port: &str) -> String {
        self.names.iter().find(|n| n.ends_with(port)).unwrap().clone()
    }

    fn client_is(&self, mac: Mac) {
        assert!(ip(&["-n", &self.name("client"), "link", "set", "eth0", "address", &mac.to_string()]));
    }

    /// Runs `work` in a namespace; threads that it starts stay there.
    fn within<T: Send + 'static>(&self, port: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.name(port));
        let enter = move || {
            let file = std::fs::File::open(path).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::spawn(enter).join().unwrap()
    }

    /// A command in a namespace.
    fn command(&self, port: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(port), program]).stdin(Stdio::null());
        command
    }

    /// A DHCP server that answers everyone, with its address check by ping.
    fn dnsmasq(&self) {
        let mut command = self.command("other", "dnsmasq");
        command.args(["--no-daemon", "--port=0", "--conf-file=/dev/null", "--interface=eth0", "--user=root"]);
        command.args(["--bind-interfaces", "--dhcp-authoritative", "--dhcp-leasefile=/dev/null"]);
        command.args(["--dhcp-range=10.77.0.100,10.77.0.120,5m", "--pid-file="]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.children.lock().unwrap().push(command.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        let port_67 = ":0043 ";
        while !String::from_utf8_lossy(&self.command("other", "cat").arg("/proc/net/udp").output().unwrap().stdout)
            .contains(port_67)
        {
            assert!(Instant::now() < end, "dnsmasq does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn serve(&self, mode: Mode, place: impl Fn(&Machine) -> Placement + Send + Sync + 'static) -> Running {
        self.serve_storing(mode, place, Table::default())
    }

    fn serve_storing(
        &self,
        mode: Mode,
        place: impl Fn(&Machine) -> Placement + Send + Sync + 'static,
        table: Table,
    ) -> Running {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let rows = table.rows.clone();
        let handle = self.within("server", move || {
            let config =
                Config { interface: "eth0".into(), reply: reply::Config { mode, server: SERVER, http_port: 8080 } };
            let events = Arc::new(move |event| sink.lock().unwrap().push(event));
            Server::start(config, Arc::new(Places(place)), Box::new(table), events).unwrap()
        });
        Running { handle, events, rows }
    }

    fn client(&self) -> Raw {
        let socket = self.within("client", || {
            let options = udp::Options { interface: Some("eth0"), broadcast: true, shared: true };
            udp::open(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), options).unwrap()
        });
        Raw { socket }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in self.children.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.names {
            ip(&["netns", "delete", name]);
        }
    }
}

struct Running {
    handle: Handle,
    events: Arc<Mutex<Vec<DhcpEvent>>>,
    rows: Arc<Mutex<Vec<Lease>>>,
}

struct Places<F>(F);

impl<F: Fn(&Machine) -> Placement> Directory for Places<F> {
    fn lookup(&self, machine: &Machine) -> Placement {
        (self.0)(machine)
    }
}

/// A durable table that may fail.
#[derive(Default)]
struct Table {
    rows: Arc<Mutex<Vec<Lease>>>,
    broken: bool,
}

impl Leases for Table {
    fn load(&mut self) -> Result<Vec<Lease>, String> {
        Ok(self.rows.lock().unwrap().clone())
    }

    fn commit(&mut self, lease: &Lease) -> Result<(), String> {
        if self.broken {
            return Err("the disk is full".into());
        }
        let mut rows = self.rows.lock().unwrap();
        rows.retain(|row| row.address != lease.address);
        rows.push(*lease);
        Ok(())
    }
}

/// PXE firmware by hand.
struct Raw {
    socket: UdpSocket,
}

impl Raw {
    fn packet(mac: Mac, message: MessageType, options: &[(u8, &[u8])]) -> Packet {
        let mut packet = Packet::request(mac, 0x1234_5678);
        packet.flags = BROADCAST_FLAG;
        packet.set(code::MESSAGE_TYPE, vec![message as u8]);
        for (tag, value) in options {
            packet.set(*tag, value.to_vec());
        }
        packet
    }

    fn send(&self, packet: &Packet, to: Ipv4Addr, port: u16) {
        let bytes = packet.encode(usize::MAX);
        udp::send(&self.socket, &bytes, Ipv4Addr::UNSPECIFIED, SocketAddrV4::new(to, port)).unwrap();
    }

    /// Replies until `count` are there or the time is over, and those that come right after.
    fn replies(&self, count: usize, wait: Duration) -> Vec<Packet> {
        let (mut end, mut replies) = (Instant::now() + wait, Vec::new());
        let mut buffer = [0u8; 2000];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return replies;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            if let Ok(datagram) = udp::receive(&self.socket, &mut buffer) {
                replies.push(Packet::parse(&buffer[..datagram.length]).unwrap());
                if replies.len() == count {
                    end = Instant::now() + Duration::from_millis(100);
                }
            }
        }
    }

    /// The reply to a broadcast question; there is exactly one or none.
    fn ask(&self, packet: &Packet) -> Option<Packet> {
        self.send(packet, Ipv4Addr::BROADCAST, 67);
        let mut replies = self.replies(1, Duration::from_secs(3));
        assert!(replies.len() <= 1, "{replies:?}");
        replies.pop()
    }
}

fn ip(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output().unwrap();
    if !output.status.success() {
        eprintln!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// Whether a tool is here; without it the test says so, and fails on CI.
fn tool(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(name).is_file());
    if !found {
        skip::<()>(&format!("{name} is not installed"));
    }
    found
}

fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "on CI nothing is skipped: {why}");
    eprintln!("skipped: {why}");
    None
}

fn link() -> Link {
    Link { subnet: "10.77.0.0/24".parse().unwrap(), gateway: Some(SERVER), dns: vec![SERVER], ntp: vec![], mtu: None }
}

fn pool() -> Pool {
    Pool { first: Ipv4Addr::new(10, 77, 0, 200), last: Ipv4Addr::new(10, 77, 0, 202), excluded: vec![] }
}

/// The node by its MAC, everyone else parked.
fn place(machine: &Machine) -> Placement {
    match machine.mac {
        NODE_MAC => Placement::Node { name: "c1".into(), address: NODE, link: link(), offer: Offer::Boot },
        _ => Placement::Parked { link: link(), pool: Some(pool()), offer: Offer::Boot },
    }
}

/// Runs udhcpc once; the address that it got.
fn udhcpc(net: &Net) -> Option<Ipv4Addr> {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && echo \"got $ip by $router\"\nexit 0\n").unwrap();
    let mut mode = std::fs::metadata(&script).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let mut command = net.command("client", "busybox");
    command.args(["udhcpc", "-f", "-n", "-q", "-t", "3", "-T", "1", "-A", "1", "-i", "eth0", "-s"]).arg(&script);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("got ")?.split(' ').next()?.parse().ok())
}

#[test]
fn udhcpc_of_a_node_gets_its_reservation_and_a_stranger_nothing() {
    let Some(net) = Net::new() else { return };
    if !tool("busybox") {
        return;
    }
    let running = net.serve(Mode::Authoritative, place);
    assert_eq!(udhcpc(&net), Some(NODE));
    net.client_is(STRANGER_MAC);
    assert_eq!(udhcpc(&net), None, "a plain client that nobody knows");
    let counters = running.handle.counters();
    assert_eq!((counters["offer"], counters["ack"]), (1, 1), "{counters:?}");
    assert!(counters["plain-client"] >= 2, "{counters:?}");
    assert!(running.rows.lock().unwrap().is_empty(), "reservations are no leases");
}

#[test]
fn dhclient_of_a_node_gets_its_reservation() {
    let Some(net) = Net::new() else { return };
    if !tool("dhclient") {
        return;
    }
    let _running = net.serve(Mode::Authoritative, place);
    let dir = tempfile::tempdir().unwrap();
    let leases = dir.path().join("leases");
    std::fs::write(&leases, "").unwrap();
    let mut command = net.command("client", "dhclient");
    command.args(["-4", "-1", "-d", "-cf", "/dev/null", "-sf", "/bin/true", "-pf"]).arg(dir.path().join("pid"));
    command.arg("-lf").arg(&leases).arg("eth0").stdout(Stdio::null()).stderr(Stdio::null());
    net.children.lock().unwrap().push(command.spawn().unwrap());
    let end = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&leases).unwrap().contains("fixed-address 10.77.0.11;") {
        assert!(Instant::now() < end, "{}", std::fs::read_to_string(&leases).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = std::fs::read_to_string(&leases).unwrap();
    for line in ["option routers 10.77.0.1;", "option subnet-mask 255.255.255.0;", "option host-name \"c1\";"] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[test]
fn firmware_of_a_stranger_is_leased_an_address_and_keeps_it_over_a_restart() {
    let Some(net) = Net::new() else { return };
    let running = net.serve(Mode::Authoritative, place);
    let client = net.client();
    let offer = client.ask(&Raw::packet(STRANGER_MAC, MessageType::Discover, BIOS)).unwrap();
    assert_eq!((offer.yiaddr, offer.file_text().as_str()), (pool().first, "undionly.kpxe"));
    assert_eq!(offer.get(97), Some(&[0; 17][..]));
    assert!(running.rows.lock().unwrap().is_empty(), "an offer is not durable");
    let mut request = Raw::packet(STRANGER_MAC, MessageType::Request, BIOS);
    request.set(code::SERVER_ID, SERVER.octets().to_vec());
    request.set(code::REQUESTED_ADDRESS, offer.yiaddr.octets().to_vec());
    let ack = client.ask(&request).unwrap();
    assert_eq!((ack.message(), ack.yiaddr), (Some(MessageType::Ack), offer.yiaddr));
    assert_eq!(running.handle.leased(STRANGER_MAC), Some(offer.yiaddr));

    let rows = running.rows.clone();
    assert_eq!(rows.lock().unwrap().len(), 1, "durable before the ACK");
    running.handle.stop();
    let again = net.serve_storing(Mode::Authoritative, place, Table { rows, broken: false });
    let offer = client.ask(&Raw::packet(STRANGER_MAC, MessageType::Discover, UEFI)).unwrap();
    assert_eq!((offer.yiaddr, offer.file_text().as_str()), (ack.yiaddr, "snponly.efi"));
    let other = client.ask(&Raw::packet(Mac([2, 0, 0, 0, 0, 9]), MessageType::Discover, UEFI)).unwrap();
    assert_ne!(other.yiaddr, ack.yiaddr);
    let events = again.events.lock().unwrap();
    assert!(matches!(&events[0].outcome, Outcome::Answered { boot_file: Some(file), .. } if file == "snponly.efi"));
}

#[test]
fn a_lease_that_cannot_be_stored_is_not_acknowledged() {
    let Some(net) = Net::new() else { return };
    let running = net.serve_storing(Mode::Authoritative, place, Table { broken: true, ..Default::default() });
    let client = net.client();
    let offer = client.ask(&Raw::packet(STRANGER_MAC, MessageType::Discover, BIOS)).unwrap();
    let mut request = Raw::packet(STRANGER_MAC, MessageType::Request, BIOS);
    request.set(code::SERVER_ID, SERVER.octets().to_vec());
    request.set(code::REQUESTED_ADDRESS, offer.yiaddr.octets().to_vec());
    assert_eq!(client.ask(&request), None);
    assert_eq!(running.handle.counters()["not-stored"], 1);
}

#[test]
fn malformed_packets_are_counted_and_never_end_the_server() {
    let Some(net) = Net::new() else { return };
    let running = net.serve(Mode::Authoritative, place);
    let client = net.client();
    let good = Raw::packet(NODE_MAC, MessageType::Discover, BIOS);
    let mut cut = good.encode(usize::MAX);
    cut[241] = 255; // option 53 runs past the end
    for junk in [&[][..], &[0; 3], &[1; 300], &cut, &[7; 5000]] {
        for port in [67, 4011] {
            let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, port);
            // 5000 bytes do not fit a broadcast frame; then the kernel keeps it.
            let _ = udp::send(&client.socket, junk, Ipv4Addr::UNSPECIFIED, everyone);
        }
    }
    assert_eq!(client.ask(&good).unwrap().yiaddr, NODE);
    let counters = running.handle.counters();
    assert_eq!((counters["malformed"], counters["offer"]), (8, 1), "{counters:?}");
}

#[test]
fn a_proxy_adds_boot_files_to_a_real_dnsmasq() {
    let Some(net) = Net::new() else { return };
    if !tool("dnsmasq") || !tool("busybox") {
        return;
    }
    net.dnsmasq();
    let running = net.serve(Mode::Proxy, place);
    let address = udhcpc(&net).or_else(|| udhcpc(&net)).expect("dnsmasq's lease for a plain client");
    assert_eq!(address.octets()[..3], [10, 77, 0]);
    assert!(address.octets()[3] >= 100, "{address} is not dnsmasq's");

    let client = net.client();
    for (options, file, vendor) in [(BIOS, "undionly.kpxe", Some(&[6, 1, 8, 255][..])), (UEFI, "snponly.efi", None)] {
        client.send(&Raw::packet(NODE_MAC, MessageType::Discover, options), Ipv4Addr::BROADCAST, 67);
        let offers = client.replies(2, Duration::from_secs(10));
        let (ours, theirs): (Vec<_>, Vec<_>) =
            offers.iter().partition(|o| o.get_address(code::SERVER_ID) == Some(SERVER));
        assert!(ours.len() == 1 && !theirs.is_empty(), "{offers:?}");
        assert!(ours[0].yiaddr.is_unspecified() && !theirs[0].yiaddr.is_unspecified());
        assert_eq!((ours[0].file_text().as_str(), ours[0].get(code::VENDOR)), (file, vendor));
        assert_eq!(ours[0].get(code::VENDOR_CLASS), Some(&b"PXEClient"[..]));
    }
    // What UEFI does next: with its address it asks the proxy on port 4011.
    assert!(ip(&["-n", &net.name("client"), "address", "add", "10.77.0.150/24", "dev", "eth0"]));
    let mut request = Raw::packet(NODE_MAC, MessageType::Request, UEFI);
    request.ciaddr = Ipv4Addr::new(10, 77, 0, 150);
    client.send(&request, SERVER, 4011);
    let replies = client.replies(1, Duration::from_secs(3));
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!((replies[0].message(), replies[0].file_text().as_str()), (Some(MessageType::Ack), "snponly.efi"));
    assert_eq!(running.handle.counters()["ack"], 1);
}

#[test]
fn the_probe_finds_a_dhcp_server_and_no_proxy() {
    let Some(net) = Net::new() else { return };
    if !tool("dnsmasq") {
        return;
    }
    let ask = || probe("eth0", Mac([0x52, 0x54, 0, 0x77, 0, 0x99])).unwrap();
    let proxy = net.serve(Mode::Proxy, place);
    assert_eq!(net.within("client", ask), None, "a proxy gives no addresses");
    proxy.handle.stop();
    net.dnsmasq();
    assert_eq!(net.within("client", ask), Some(DNSMASQ));
}

const SITE: &str = r#"
cluster = { name = "test", release = "zed" }
access = { ssh_keys = [] }
network.management = { subnet = "10.77.0.0/24" }
"#;

/// `kiln serve` in the namespace `server`; its lines come by the channel.
fn kiln_serve(net: &Net, dir: &Path) -> (Child, mpsc::Receiver<String>) {
    std::fs::write(dir.join("site.toml"), SITE).unwrap();
    let mut command = net.command("server", env!("CARGO_BIN_EXE_kiln"));
    command.args(["serve", "--interface", "eth0", "--site", "site.toml", "--state", "state", "--store", "store"]);
    command.args(["--socket", "kiln.sock"]).current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    for stream in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
        let sender = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
    }
    (child, lines)
}

#[test]
fn the_operator_is_answered_while_other_dhcp_servers_are_looked_for() {
    let Some(net) = Net::new() else { return };
    if !tool("dnsmasq") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let wait = |lines: &mpsc::Receiver<String>, start: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        let mut seen = Vec::new();
        loop {
            let line = lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let Ok(line) = line else { panic!("no line {start:?} in {seen:#?}") };
            seen.push(line);
            if seen.last().unwrap().contains(start) {
                return seen;
            }
        }
    };
    // Nobody else is there.
    let (mut child, lines) = kiln_serve(&net, dir.path());
    wait(&lines, "socket ");
    let mut asked = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let asked = asked.args(["node", "ls", "--socket"]).arg(dir.path().join("kiln.sock")).output().unwrap();
    assert!(asked.status.success(), "{asked:?}");
    assert_eq!(
        wait(&lines, "ready").first().map(String::as_str),
        Some("dhcp authoritative on eth0"),
        "after the answer"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    // Somebody is.
    net.dnsmasq();
    let (mut child, lines) = kiln_serve(&net, dir.path());
    let said = wait(&lines, "answers on eth0 already");
    assert!(said.iter().all(|l| l != "ready" && !l.starts_with("dhcp ")), "{said:#?}");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_missing_interface_is_an_error_that_names_it() {
    let Some(net) = Net::new() else { return };
    let error = net.within("server", || {
        let config = Config {
            interface: "nosuch0".into(),
            reply: reply::Config { mode: Mode::Proxy, server: SERVER, http_port: 80 },
        };
        let started = Server::start(config, Arc::new(Places(place)), Box::new(Table::default()), Arc::new(|_| {}));
        started.err().map(|e| format!("{e:#}")).unwrap_or_default()
    });
    assert!(error.contains("nosuch0"), "{error}");
}
