//! The doors of the release that runs everywhere, asked through the real haproxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ASKED: usize = 6;
const START: Duration = Duration::from_secs(20);

/// A server that answers with this and counts who asked.
fn server(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    std::thread::spawn(move || {
        for asker in listener.incoming() {
            let (mut asker, mut request) = (asker.unwrap(), Vec::<u8>::new());
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                let mut part = [0; 4096];
                match asker.read(&mut part) {
                    Ok(n) if n > 0 => request.extend(&part[..n]),
                    _ => break,
                }
            }
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = asker.write_all(answer.as_bytes());
        }
    });
    (at, asked)
}

/// A program that ends with the value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        kiln::sys::command::die_with_parent(command);
        Running(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < START, "not yet: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ask(door: SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect(door).unwrap();
    write!(stream, "{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_string()
}

/// As a keystone whose database session has just ended does.
#[test]
fn a_log_in_that_one_keystone_drops_is_answered_by_another_and_a_change_is_asked_for_once() {
    if Command::new("haproxy").arg("-v").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "haproxy is missing in CI");
        eprintln!("skipped: haproxy is not installed (scripts/install-tools test)");
        return;
    }
    let (drops, dropped) = server("");
    let (serves, served) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let door = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = "overlays/zed/keystone/rootfs/etc/haproxy/conf.d/keystone.cfg.j2";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let ours = |line: &&str| !line.contains("{{") && !line.contains("{%") && !line.starts_with("listen");
    let lines: Vec<&str> = text.lines().filter(ours).collect();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("haproxy.cfg");
    let whole = format!(
        "defaults\n    mode http\n    timeout client 1m\n    timeout server 1m\nlisten keystone\n    bind {door}\n{}\n    \
         server drops {drops}\n    server serves {serves}\n",
        lines.join("\n")
    );
    std::fs::write(&config, whole).unwrap();
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(&config).stdout(Stdio::null());
    let _haproxy = Running::start(&mut command);
    until("haproxy listens", || TcpStream::connect(door).is_ok());
    let asked = |counter: &AtomicUsize| counter.swap(0, Ordering::SeqCst);
    for line in ["GET /v3", "POST /v3/auth/tokens"] {
        for _ in 0..ASKED {
            assert_eq!(ask(door, line), "HTTP/1.1 200 OK", "{line}");
        }
        assert_eq!(asked(&served), ASKED, "{line}");
        assert!(asked(&dropped) > 0, "{line}: both take turns");
    }
    let answers: Vec<String> = (0..ASKED).map(|_| ask(door, "POST /v3/users")).collect();
    let lost = answers.iter().filter(|a| a.contains(" 502 ")).count();
    assert_eq!((lost, asked(&dropped), asked(&served)), (ASKED / 2, ASKED / 2, ASKED / 2), "{answers:?}");
}

/// Two machines with one cable; they vanish with the value.
struct Cable([String; 2]);

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.0 {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Between the VIP's going and its coming elsewhere's being known nobody is left out.
#[test]
fn who_asks_as_the_vip_leaves_is_taken_in() {
    let cable = Cable(["node", "client"].map(|end| format!("kv{}-{end}", std::process::id())));
    let [node, client] = &cable.0;
    if !nix::unistd::geteuid().is_root() || !ip(&["netns", "add", node]) || !ip(&["netns", "add", client]) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "network namespaces cannot be made in CI");
        eprintln!("skipped: not root, or network namespaces cannot be made here");
        return;
    }
    assert!(ip(&["-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client]));
    for (name, address) in [(node, "10.79.0.1/24"), (client, "10.79.0.2/24"), (node, "10.79.0.10/24")] {
        assert!(ip(&["-n", name, "address", "add", address, "dev", "eth0"]));
        assert!(ip(&["-n", name, "link", "set", "eth0", "up"]));
    }
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let env = place("node.env", "NODE=n1\nADDRESS=10.79.0.1\nVIP=10.79.0.10\n");
    let refuse = place("refuse", "#!/bin/sh\n");
    place("crm_mon", "#!/bin/sh\necho '<node name=\"n2\" online=\"true\" standby=\"false\">'\n");
    // As the standby has the resource agent do.
    place("crm_attribute", "#!/bin/sh\nip address delete 10.79.0.10/24 dev eth0\n");
    let shipped = "overlays/common/pacemaker/rootfs/usr/lib/kiln/systems/pacemaker/leave";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(shipped)).unwrap();
    let text = text.replace("/etc/kiln/node.env", env.to_str().unwrap());
    let leave = place("leave", &text.replace("/usr/lib/kiln/systems/haproxy/refuse", refuse.to_str().unwrap()));
    let within = |name: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]);
        command
    };
    let mut door = within(node);
    door.args(["socat", "TCP-LISTEN:5000,bind=10.79.0.10,fork", "EXEC:true"]);
    let _door = Running::start(&mut door);
    let asks = || {
        let mut ask = within(client);
        ask.args(["timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/10.79.0.10/5000"]).stderr(Stdio::null());
        ask.status().unwrap().success()
    };
    until("the door listens", asks);
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    assert!(within(node).arg(&leave).env("PATH", path).status().unwrap().success());
    let addresses = Command::new("ip").args(["-n", node, "-4", "-o", "address"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&addresses.stdout).contains("10.79.0.10"), "the VIP is still here");
    assert!(asks(), "a question is dropped");
    // Who does not know where the VIP is learns it from its new holder only.
    assert!(ip(&["-n", client, "neighbour", "flush", "all"]));
    assert!(!asks(), "the one that left says that the VIP is here");
}
