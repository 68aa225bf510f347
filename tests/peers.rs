//! The certificates by which nodes know one another, as QEMU takes them: a disk that one QEMU offers is read by another,
//! over TLS with both ends checked, and by nobody who has another certificate of the same site.

use kiln::pxe::api::certificate::{Authority, new_key};
use kiln::pxe::api::csr;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NODE: Ipv4Addr = Ipv4Addr::new(127, 0, 72, 1);
/// QEMU answers or fails at once; on a busy machine a process may take its time to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder as QEMU reads it: one certificate for both ends.
fn credentials(dir: &Path, authority: &str, certificate: &str, key: &str) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("ca-cert.pem"), authority).unwrap();
    for end in ["server", "client"] {
        std::fs::write(dir.join(format!("{end}-cert.pem")), certificate).unwrap();
        std::fs::write(dir.join(format!("{end}-key.pem")), key).unwrap();
    }
}

/// Kills what it is when it goes.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn daemon(credentials: &Path, endpoint: &str, rest: &[&str]) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    let dir = credentials.display();
    command.arg("--object").arg(format!("tls-creds-x509,id=tls,dir={dir},endpoint={endpoint},verify-peer=yes"));
    command.args(rest).stdin(Stdio::null());
    kiln::sys::command::die_with_parent(&mut command);
    command
}

#[test]
fn qemu_takes_a_peers_certificate_and_no_other() {
    if Command::new("qemu-storage-daemon").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have qemu-storage-daemon");
        eprintln!("skipped: qemu-storage-daemon is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::from_key(&new_key().unwrap()).unwrap();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let request = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        (csr::parse(&csr).unwrap(), key.serialize_pem())
    };
    let peer = |folder: &str, name: &str, address: Ipv4Addr| {
        let (csr, key) = request();
        let peer = authority.issue_peer(&csr, name, folder, address, now_ms).unwrap();
        credentials(&dir.path().join(folder), &peer.authority, &peer.certificate, &key);
        peer.authority
    };
    let trusted = peer("compute1", "qemu", NODE);
    peer("compute2", "qemu", [127, 0, 72, 2].into());
    peer("elsewhere", "qemu", [127, 0, 72, 3].into());
    peer("command", "libvirt", [127, 0, 72, 2].into());
    let (csr, key) = request();
    let generation = authority.issue(&csr, "compute2", 1, now_ms).unwrap();
    credentials(&dir.path().join("generation"), &trusted, &generation.pem, &key);

    let offer = |folder: &str| {
        let port = std::net::TcpListener::bind((NODE, 0)).unwrap().local_addr().unwrap().port();
        let server = format!("addr.type=inet,addr.host={NODE},addr.port={port},tls-creds=tls");
        let disk =
            ["--blockdev", "null-co,node-name=disk,size=1048576", "--export", "nbd,id=e,node-name=disk,name=disk"];
        let mut command = daemon(&dir.path().join(folder), "server", &["--nbd-server", &server]);
        let child = command.args(disk).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect((NODE, port)).is_err() {
            assert!(std::time::Instant::now() < end, "no server");
            std::thread::sleep(Duration::from_millis(20));
        }
        (Daemon(child), port)
    };
    // Whether the disk can be opened: the monitor greets only then.
    let reads = |folder: &str, port: u16| {
        let disk = format!(
            "nbd,node-name=disk,read-only=on,server.type=inet,server.host={NODE},server.port={port},export=disk,tls-creds=tls"
        );
        let monitor = ["--blockdev", &disk, "--chardev", "stdio,id=m", "--monitor", "m"];
        let mut command = daemon(&dir.path().join(folder), "client", &monitor);
        let mut child =
            Daemon(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let mut greeting = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut greeting).unwrap();
        let mut said = String::new();
        if greeting.is_empty() {
            let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
            said = lines.next().and_then(Result::ok).unwrap_or_default();
        }
        (greeting.contains("QMP"), said)
    };
    let (_server, port) = offer("compute1");
    assert_eq!(reads("compute2", port), (true, String::new()));
    for folder in ["command", "generation"] {
        let (read, said) = reads(folder, port);
        assert!(!read && !said.is_empty(), "{folder}: {said}");
    }
    // Who answers at another node's address is not that node.
    drop(_server);
    let (_server, port) = offer("elsewhere");
    let (read, said) = reads("compute2", port);
    assert!(!read && said.contains("127.0.72.1"), "{said}");
}
