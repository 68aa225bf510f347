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

struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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
    let _haproxy = Haproxy(command.spawn().unwrap());
    let began = Instant::now();
    while TcpStream::connect(door).is_err() {
        assert!(began.elapsed() < START, "haproxy does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
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
