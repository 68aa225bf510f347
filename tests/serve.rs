//! `kiln serve` as a whole: the real program on loopback, asked by curl and by a small node of our
//! own over TLS, edited by the operator's verbs, and killed at any moment.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer, SigningKey};
use kiln::image::id::{Digest, ImageId};
use kiln::image::manifest::*;
use kiln::image::repository::Writer;
use kiln::image::sign;
use kiln::image::store::Store;
use kiln::ledger::message::*;
use kiln::ledger::{Event, Recorded};
use kiln::sys::http::{Body, Client};
use kiln::sys::tls;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "serve/backup.rs"]
mod backup;
#[path = "serve/orders.rs"]
mod orders;

const MAC: &str = "52:54:00:00:00:01";
const SITE: &str = r#"
[cluster]
name = "test"
release = "zed"
[access]
ssh_keys = []
[role.test]
image = "zed/test"
[network.management]
subnet = "127.0.0.0/24"
[[node]]
name = "test1"
role = "test"
mac = ["52:54:00:00:00:01"]
management = { address = "127.0.0.1" }
state = { disk = { serial = "S1" } }
[[node]]
name = "test2"
role = "test"
mac = ["52:54:00:00:00:02"]
management = { address = "127.0.0.2" }
state = { volatile = true }
"#;

/// A folder with a site, its secrets and a store with one image.
struct Place {
    dir: tempfile::TempDir,
    id: ImageId,
    kernel: Vec<u8>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("site.toml"), SITE).unwrap();
        let secrets = dir.path().join("secrets.toml");
        std::fs::write(&secrets, "[site]\nid = \"s1\"\n[galera]\nsst = \"hush\"\n[other]\nsecret = \"no\"\n").unwrap();
        std::fs::set_permissions(&secrets, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let kernel: Vec<u8> = (0..900_000u32).map(|i| (i % 251) as u8).collect();
        let id = store_image(&dir.path().join("store"), &kernel, "latest");
        Place { dir, id, kernel }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kiln(&self, verb: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(verb)
            .env("KILN_SOCKET", self.path("kiln.sock"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    }

    fn events(&self) -> Vec<Recorded> {
        let (code, text) = self.kiln(&["events", "--json"]);
        assert_eq!(code, Some(0), "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Puts a signed image of role `test` into a store.
fn store_image(path: &Path, kernel: &[u8], tag: &str) -> ImageId {
    store_image_with(path, kernel, tag, None)
}

/// The same with a preloaded repository.
fn store_image_with(path: &Path, kernel: &[u8], tag: &str, repository: Option<&[u8]>) -> ImageId {
    store_clustered(path, kernel, tag, repository, vec![])
}

/// The same with systems that several nodes share.
fn store_clustered(
    path: &Path,
    kernel: &[u8],
    tag: &str,
    repository: Option<&[u8]>,
    clustered: Vec<kiln::recipe::system::Clustered>,
) -> ImageId {
    let builder = SigningKey::from_bytes(&[7; 32]);
    let config = Config {
        kiln: "0".into(),
        release: "zed".into(),
        role: "test".into(),
        distribution: "debian12".into(),
        architecture: "amd64".into(),
        kernel: "6.1".into(),
        cmdline: vec!["console=ttyS0".into()],
        systems: vec![],
        secrets: vec!["galera.sst".into()],
        certificates: vec!["peers".into()],
        controller: false,
        clustered,
        epoch: 1,
        lock: String::new(),
        squashfs_tools: String::new(),
        builders: vec![sign::public_text(&builder.verifying_key())],
        memory_min_mib: 512,
        unpacked_bytes: 1,
        packages: vec![],
        preloaded: vec![],
        pinned_repositories: vec![],
        warnings: vec![],
    };
    let store = Store::open(path).unwrap();
    let blob = |media: &str, bytes: &[u8]| {
        let (digest, size) = store.import_bytes(bytes).unwrap();
        Descriptor { media_type: media.into(), digest, size, annotations: BTreeMap::new() }
    };
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.into(),
        artifact_type: MEDIA_IMAGE.into(),
        config: blob(MEDIA_CONFIG, &serde_json::to_vec(&config).unwrap()),
        layers: vec![blob(MEDIA_KERNEL, kernel), blob(MEDIA_INITRAMFS, b"initramfs"), blob(MEDIA_LAYER, b"layer")],
        annotations: BTreeMap::new(),
    };
    if let Some(repository) = repository {
        manifest = manifest.with_repositories(&[("base", store.import_bytes(repository).unwrap())]);
    }
    let bytes = serde_json::to_vec(&manifest).unwrap();
    store.commit(&bytes, &sign::sign(&bytes, &builder), Some(tag)).unwrap()
}

/// A running server; killed when dropped.
struct Server {
    child: Child,
    http: String,
    tls: String,
    admin: String,
    pin: Digest,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(place: &Place) -> Server {
        Server::start_on(place, &place.path("site.toml"), &place.path("state"))
    }

    fn start_on(place: &Place, site: &Path, state: &Path) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("serve").arg("--site").arg(site);
        command.arg("--state").arg(state).arg("--store").arg(place.path("store"));
        command.arg("--socket").arg(place.path("kiln.sock"));
        command.args(["--listen", "127.0.0.1:0", "--tls-port", "0", "--admin-listen", "127.0.0.1:0"]);
        kiln::sys::command::die_with_parent(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = BTreeMap::new();
        for line in lines.map_while(Result::ok) {
            let (what, value) = line.split_once(' ').unwrap_or((&line, ""));
            said.insert(what.to_string(), value.to_string());
            if what == "ready" {
                break;
            }
        }
        assert!(said.contains_key("ready"), "{said:?}");
        let (tls, pin) = said["tls"].split_once(" pin ").unwrap();
        let (tls, pin) = (tls.to_string(), pin.parse().unwrap());
        Server { child, http: said["http"].clone(), tls, admin: said["admin"].clone(), pin }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let response = Client::new().request("GET", &format!("http://{}{path}", self.http), &[], Body::Empty).unwrap();
        (response.status, String::from_utf8_lossy(&response.body).into_owned())
    }

    fn script(&self) -> (u16, String) {
        self.get(&format!("/boot/script?mac={MAC}&arch=x86_64"))
    }

    /// Raw bytes out, everything back until the server closes.
    fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    }

    fn say<T: DeserializeOwned>(
        &self,
        path: &str,
        message: &impl Serialize,
        identity: Option<&tls::Identity>,
    ) -> Result<T, (u16, String)> {
        let client = Client::with_tls(tls::pinned(self.pin.0, identity).unwrap());
        let body = Body::Bytes(serde_json::to_vec(message).unwrap());
        let url = format!("https://{}{path}", self.tls);
        let response = client.request("POST", &url, &[], body).map_err(|e| (0, format!("{e:#}")))?;
        if response.status != 200 {
            return Err((response.status, String::from_utf8_lossy(&response.body).into_owned()));
        }
        Ok(serde_json::from_slice(&response.body).unwrap())
    }
}

#[test]
fn a_script_leads_to_blobs_that_curl_reads_in_pieces() {
    let place = Place::new();
    let server = Server::start(&place);
    let (status, script) = server.script();
    assert_eq!(status, 200, "{script}");
    let word = |key: &str| script.split_whitespace().find_map(|w| w.strip_prefix(key)).unwrap().to_string();
    assert_eq!(word("kiln.image="), place.id.to_string());
    assert_eq!(word("kiln.pin="), server.pin.hex());
    assert_eq!(word("kiln.ip="), format!("127.0.0.1/24,,{MAC}"));
    assert_eq!(format!("{}:{}", "127.0.0.1", word("kiln.tls=")), server.tls);
    let kernel = script.split_whitespace().find(|w| w.contains("/blobs/")).unwrap().to_string();
    assert_eq!(server.get("/boot/script?mac=52:54:00:00:00:99").0, 503, "parked");
    assert_eq!(server.get("/boot/script").0, 400);
    assert_eq!(server.get(&format!("/images/{}/manifest", place.id)).0, 200);
    assert_eq!(server.get(&format!("/blobs/sha256/{}", "00".repeat(32))).0, 404);
    // The store's own files have no name here.
    assert_eq!(server.get("/blobs/sha256/../../index.json").0, 404);

    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: curl is not installed");
        return;
    }
    let out = place.path("kernel");
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl").args(["-sS", "-m", "60"]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let size = place.kernel.len();
    for cut in [0, size / 3, 2 * size / 3, size - 1] {
        std::fs::write(&out, &place.kernel[..cut]).unwrap();
        assert_eq!(curl(&["-C", "-", "-o", out.to_str().unwrap(), &kernel]).0, Some(0), "cut at {cut}");
        assert!(std::fs::read(&out).unwrap() == place.kernel, "cut at {cut}");
    }
    let (_, head) = curl(&["-I", &kernel.replace("/blobs/", "//blobs//")]);
    let head = head.to_lowercase();
    for want in
        ["http/1.1 200", &format!("content-length: {size}"), "accept-ranges: bytes", "immutable", "etag: \"sha256:"]
    {
        assert!(head.contains(want), "{want} in {head}");
    }
    assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", "-r", &format!("{size}-"), &kernel]).1, "416");
    let twice = curl(&["-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", &kernel, &kernel]).1;
    assert_eq!(twice.trim(), "1 0", "one connection for both");
    let etag = format!("If-Range: \"{}\"", Digest::of(&place.kernel));
    let code =
        |if_range: &str| curl(&["-o", "/dev/null", "-w", "%{http_code}", "-r", "5-9", "-H", if_range, &kernel]).1;
    assert_eq!((code(&etag).as_str(), code("If-Range: \"x\"").as_str()), ("206", "200"));
}

#[test]
fn a_preloaded_repository_is_read_file_by_file() {
    let place = Place::new();
    let mut packed = Writer::new(Vec::new());
    let files = [("repodata/repomd.xml", "<repomd/>"), ("Packages/libstdc++-4.8.rpm", "a package")];
    for (path, text) in files {
        packed.add(path, text.len() as u64, text.as_bytes()).unwrap();
    }
    let packed = packed.finish().unwrap();
    let repository = Digest::of(&packed);
    store_image_with(&place.path("store"), b"kernel", "preloaded", Some(&packed));
    let server = Server::start(&place);
    let get = |path: &str| server.get(&format!("/repos/{}/{path}", repository.hex()));
    assert_eq!(get("repodata/repomd.xml"), (200, "<repomd/>".into()));
    assert_eq!(get("Packages/libstdc%2b%2b-4.8.rpm"), (200, "a package".into()));
    assert_eq!(get("/Packages/libstdc++-4.8.rpm"), (200, "a package".into()));
    for nothing in ["", "Packages", "repodata/../repodata/repomd.xml", "%2e%2e/%2e%2e/index.json", "repodata/repomd.xm"]
    {
        assert_eq!(get(nothing).0, 404, "{nothing}");
    }
    // Of other blobs nothing is read as a repository, whatever they hold.
    let layer = Digest::of(b"layer").hex();
    assert_eq!(server.get(&format!("/repos/{layer}/repodata/repomd.xml")).0, 404);
    let part = server.raw(&format!(
        "GET /repos/{}/Packages/libstdc++-4.8.rpm HTTP/1.0\r\nRange: bytes=2-4\r\n\r\n",
        repository.hex()
    ));
    assert!(part.starts_with("HTTP/1.1 206") && part.contains("bytes 2-4/9") && part.ends_with("pac"), "{part}");
}

#[test]
fn what_is_no_request_is_refused_and_a_truncated_blob_ends_only_its_connection() {
    let place = Place::new();
    let server = Server::start(&place);
    let status = |request: &str| server.raw(request).split(' ').nth(1).unwrap_or("none").to_string();
    assert_eq!(status("nonsense\r\n\r\n"), "400");
    assert_eq!(status(&format!("GET /x HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000))), "400");
    assert_eq!(status("POST /v1/phase HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"), "413");
    assert_eq!(status("POST /v1/phase HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), "411");
    assert_eq!(status("POST /v1/phase HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"), "400");
    assert_eq!(status("GET /boot/script?mac=%0a HTTP/1.0\r\n\r\n"), "400");
    assert_eq!(status("DELETE /v1/phase HTTP/1.0\r\n\r\n"), "405");
    let two = server.raw("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.0\r\n\r\n");
    assert_eq!(two.matches("HTTP/1.1 404").count(), 2, "pipelined: {two}");

    // Longer than what socket buffers hold, and the reader stops after the head.
    let big = vec![7u8; 40_000_000];
    store_image(&place.path("store"), &big, "big");
    let digest = Digest::of(&big);
    let mut stream = TcpStream::connect(&server.http).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET /blobs/sha256/{} HTTP/1.1\r\n\r\n", digest.hex()).unwrap();
    let mut first = [0u8; 1000];
    stream.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
    let file = place.path("store/blobs/sha256").join(digest.hex());
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1000).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < big.len() - 1000, "{} bytes", rest.len());
    assert_eq!(server.get(&format!("/blobs/sha256/{}", digest.hex())).0, 500, "damaged");
    assert_eq!(server.script().0, 200, "the server goes on");
    let metrics = Client::new().request("GET", &format!("http://{}/metrics", server.admin), &[], Body::Empty).unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("kiln_http_errors_total{reason=\"truncated-blob\"} 1"), "{metrics}");
}

/// A node of our own: keys, boot id and where it is in the protocol.
struct Node {
    name: &'static str,
    mac: &'static str,
    key: SigningKey,
    tls_key: rcgen::KeyPair,
    boot_id: String,
}

impl Node {
    fn new(number: u8) -> Node {
        let boot_id = format!("00000000-0000-4000-8000-0000000000{number:02x}");
        let (name, mac) = ("test1", MAC);
        Node {
            name,
            mac,
            key: SigningKey::from_bytes(&[number; 32]),
            tls_key: rcgen::KeyPair::generate().unwrap(),
            boot_id,
        }
    }

    fn boot(&self, server: &Server, image: ImageId) -> BootAnswer {
        let request = BootRequest {
            mac: self.mac.parse().unwrap(),
            uuid: None,
            boot_id: self.boot_id.clone(),
            image,
            version: "1".into(),
            disks: vec![],
        };
        server.say("/v1/boot", &request, None).unwrap()
    }

    fn register(
        &self,
        server: &Server,
        image: ImageId,
        credential: Option<String>,
    ) -> Result<RegisterAnswer, (u16, String)> {
        let csr = rcgen::CertificateParams::default().serialize_request(&self.tls_key).unwrap().pem().unwrap();
        let statement = register_statement(self.name, &self.boot_id, &csr);
        let request = RegisterRequest {
            node: self.name.into(),
            mac: self.mac.parse().unwrap(),
            boot_id: self.boot_id.clone(),
            image,
            version: "1".into(),
            credential,
            key: sign::public_text(&self.key.verifying_key()),
            signature: BASE64.encode(self.key.sign(&statement).to_bytes()),
            certificates: ["peers", "others"].map(|name| (name.to_string(), csr.clone())).into(),
            csr,
            last_generation: 0,
        };
        server.say("/v1/register", &request, None)
    }

    fn identity(&self, certificate: &str) -> tls::Identity {
        tls::Identity { certificate: certificate.into(), key: self.tls_key.serialize_pem() }
    }
}

fn report(phase: Phase) -> Report {
    Report {
        phase,
        detail: String::new(),
        systems: vec![],
        leaving: false,
        seq: 0,
        running: vec![],
        order: None,
        drain: None,
        moves: false,
    }
}

#[test]
fn a_node_boots_registers_and_reports_over_pinned_tls() {
    let place = Place::new();
    let server = Server::start(&place);
    let node = Node::new(1);
    assert!(matches!(node.boot(&server, place.id), BootAnswer::Hold { .. }), "it never asked for a script");
    assert_eq!(server.script().0, 200);
    let BootAnswer::Go(go) = node.boot(&server, place.id) else { panic!("held") };
    assert_eq!((go.node.as_str(), go.cluster.as_str(), go.site_id.as_str()), ("test1", "test", "s1"));
    assert!(matches!(go.state, StateOrder::Disk { .. }));

    let disk = |serial: &str| DiskRequest {
        node: "test1".into(),
        boot_id: node.boot_id.clone(),
        credential: go.credential.clone(),
        disk: Disk { name: "vda".into(), serial: Some(serial.into()), wwn: None, size: 9 },
        found: "blank".into(),
    };
    assert!(!server.say::<DiskAnswer>("/v1/disk", &disk("S2"), None).unwrap().format);
    assert!(server.say::<DiskAnswer>("/v1/disk", &disk("S1"), None).unwrap().format);

    assert_eq!(node.register(&server, place.id, Some("guess".into())).unwrap_err().0, 403);
    let answer = node.register(&server, place.id, go.credential.clone()).unwrap();
    assert_eq!(answer.certificates.keys().collect::<Vec<_>>(), ["peers"], "those that the image names");
    assert_eq!((answer.generation, answer.view.node.name.as_str()), (1, "test1"));
    assert_eq!(answer.secrets, [("galera.sst".to_string(), "hush".to_string())].into(), "its systems' only");
    let identity = node.identity(&answer.certificate);
    server.say::<ReportAnswer>("/v1/report", &report(Phase::Ready), Some(&identity)).unwrap();
    let (code, text) = place.kiln(&["node", "ls"]);
    assert!(code == Some(0) && text.contains("ready"), "{text}");

    // Without a certificate, or with one of an older generation: nothing.
    assert_eq!(server.say::<ReportAnswer>("/v1/report", &report(Phase::Failed), None).unwrap_err().0, 403);
    let again = Node { boot_id: Node::new(2).boot_id, ..Node::new(1) };
    assert_eq!(again.register(&server, place.id, None).unwrap().generation, 2);
    assert_eq!(server.say::<ReportAnswer>("/v1/report", &report(Phase::Failed), Some(&identity)).unwrap_err().0, 403);
    // A self-made certificate does not get through the handshake.
    let own = rcgen::CertificateParams::default().self_signed(&node.tls_key).unwrap().pem();
    assert!(server.say::<ReportAnswer>("/v1/report", &report(Phase::Ready), Some(&node.identity(&own))).is_err());
    // Somebody else with a fresh key: refused, and the operator hears of it.
    let thief = Node { boot_id: Node::new(3).boot_id, ..Node::new(9) };
    assert_eq!(thief.register(&server, place.id, go.credential).unwrap_err().0, 403);
    assert!(place.events().iter().any(|r| matches!(r.event, Event::RegisterRefused { alarm: true, .. })));
    // Nothing secret is in the log.
    let log = std::fs::read(place.path("state/ledger.sqlite-wal")).unwrap_or_default();
    assert!(!log.windows(4).any(|w| w == b"hush"));
}

#[test]
fn the_operator_edits_the_site_and_sees_why() {
    let place = Place::new();
    let server = Server::start(&place);
    let is = |verb: &[&str], code: i32, word: &str| {
        let (got, text) = place.kiln(verb);
        assert!(got == Some(code) && text.contains(word), "kiln {verb:?}: {got:?} {text}");
    };
    let site = place.path("site.toml");
    let site = site.to_str().unwrap();
    is(&["site", "apply", site], 0, "nothing changed");
    is(&["node", "hold", "test1", "disk swap"], 0, "held: disk swap");
    let (status, script) = server.script();
    assert!(status == 200 && script.contains("echo kiln: node test1 is held: disk swap"), "{script}");
    is(&["explain", "test1"], 0, "rule held");
    is(&["node", "unhold", "test1"], 0, "let go");
    is(&["node", "hold", "nobody"], 2, "no node");
    is(&["node", "show", "nobody"], 2, "no node");
    is(&["node", "show", "test1"], 0, "held: disk swap");
    is(&["image", "use", "test", "zed/nope"], 2, "nope");
    let next = store_image(&place.path("store"), b"another kernel", "next");
    is(&["image", "use", "test", "zed/test:next"], 0, &next.short());
    assert!(server.script().1.contains(&format!("kiln.image={next}")));
    let in_use = std::fs::read_to_string(place.path("state/images-in-use.json")).unwrap();
    assert!(in_use.contains(&next.hex()) && in_use.contains(&place.id.hex()), "{in_use}");
    // A re-tag changes nothing; the same words in the site do not either.
    std::fs::write(site, SITE.replace("127.0.0.2", "127.0.0.3")).unwrap();
    is(&["site", "diff", site], 0, "nodes.test2.address");
    is(&["site", "apply", site], 0, "applied");
    assert!(server.script().1.contains(&format!("kiln.image={next}")));
    std::fs::write(site, SITE.replace("role = \"test\"", "rolle = 1")).unwrap();
    is(&["site", "apply", site], 2, "rolle");
    // A machine that nobody knows becomes a node.
    assert_eq!(server.get("/boot/script?mac=52:54:00:00:00:77&arch=x86_64").0, 503);
    is(&["node", "ls"], 0, "52:54:00:00:00:77");
    is(&["node", "approve", "52:54:00:00:00:78", "--node", "test1"], 2, "never seen");
    is(&["node", "approve", "52:54:00:00:00:77", "--node", "test1"], 0, "approved");
    assert_eq!(server.get("/boot/script?mac=52:54:00:00:00:77&arch=x86_64").0, 200);
    let arm = server.get(&format!("/boot/script?mac={MAC}&arch=arm64")).1;
    assert!(arm.contains("is for amd64"), "{arm}");
}

#[test]
fn a_second_server_with_the_same_state_is_refused_and_sigterm_is_clean() {
    let place = Place::new();
    let mut server = Server::start(&place);
    let mut second = Command::new(env!("CARGO_BIN_EXE_kiln"));
    second.arg("serve").arg("--site").arg(place.path("site.toml")).arg("--state").arg(place.path("state"));
    let output = second.arg("--store").arg(place.path("store")).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let start = Instant::now();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(!place.path("kiln.sock").exists());
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_answered() {
    let place = Place::new();
    let mut answered = Vec::new();
    for round in 0..6u64 {
        let mut server = Server::start(&place);
        let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60 + 70 * round));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
        });
        let client = Client::unix(place.path("kiln.sock"));
        for i in 0.. {
            let reason = format!("round {round} hold {i}");
            let order = serde_json::json!({"verb": "hold", "node": "test1", "reason": reason});
            let body = Body::Bytes(serde_json::to_vec(&order).unwrap());
            match client.request("POST", "/api/command", &[], body) {
                Ok(response) if response.status == 200 => answered.push(reason),
                _ => break,
            }
        }
        killer.join().unwrap().unwrap();
        server.child.wait().unwrap();
    }
    let _server = Server::start(&place);
    let held: Vec<String> = place
        .events()
        .into_iter()
        .filter_map(|r| match r.event {
            Event::NodeHeld { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    assert!(answered.len() > 10, "only {} answers", answered.len());
    let missing: Vec<&String> = answered.iter().filter(|a| !held.contains(a)).collect();
    assert!(missing.is_empty(), "{missing:?} of {}", answered.len());
    let revs: Vec<u64> = place.events().iter().map(|r| r.rev).collect();
    assert_eq!(revs, (1..=revs.len() as u64).collect::<Vec<_>>(), "no gaps");
}
