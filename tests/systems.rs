//! The shipped scripts that speak to OpenStack's services and to libvirt about guests and about nodes that are
//! gone, run as they are against stand-ins: a nova and a neutron of a few lines on loopback, which answer as the real
//! ones write it, and a virsh of two. No real service takes part: what they refuse is only what is written here.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The later one wins.
const OVERLAYS: [&str; 2] = ["overlays/common", "overlays/zed"];

/// The scripts of some systems with what they need around them, below a folder of the test's own.
struct Scripts {
    dir: tempfile::TempDir,
}

impl Scripts {
    /// `host`: the last two bytes of this test's loopback address, which is VIP and node's at once.
    fn new(host: &str, systems: &[&str]) -> Scripts {
        let dir = tempfile::tempdir().unwrap();
        let scripts = Scripts { dir };
        let env = format!("NODE=compute1\nADDRESS=127.0.{host}\nVIP=127.0.{host}\n");
        std::fs::write(scripts.path("node.env"), env).unwrap();
        std::fs::create_dir_all(scripts.path("secrets")).unwrap();
        for user in ["nova", "neutron"] {
            std::fs::write(scripts.path(&format!("secrets/{user}.password")), "hush").unwrap();
        }
        for overlay in OVERLAYS {
            let top = Path::new(env!("CARGO_MANIFEST_DIR")).join(overlay);
            scripts.install(&top.join("openstack/rootfs/usr/lib/kiln/openstack"), "openstack");
            for system in systems {
                let from = top.join(format!("{system}/rootfs/usr/lib/kiln/systems/{system}"));
                scripts.install(&from, &format!("systems/{system}"));
            }
        }
        scripts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies a folder's scripts; what they name of the machine is this test's.
    fn install(&self, from: &Path, to: &str) {
        if !from.is_dir() {
            return;
        }
        std::fs::create_dir_all(self.path(to)).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let text = text
                .replace("/etc/mysql", self.path("mysql").to_str().unwrap())
                .replace("/etc/haproxy", self.path("haproxy").to_str().unwrap())
                .replace("/etc/kiln/node.env", self.path("node.env").to_str().unwrap())
                .replace("/run/kiln-openstack", self.path("tokens").to_str().unwrap());
            self.write(&format!("{to}/{}", entry.file_name().to_str().unwrap()), &text);
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Exit status and the last line. `guests`: the word, and which one after a blank.
    fn run(&self, script: &str, arguments: &[&str], guests: &str) -> (i32, String) {
        let (guests, word) = guests.split_once(' ').unwrap_or((guests, "7"));
        let path = std::env::var("PATH").unwrap();
        let output = Command::new(self.path("systems").join(script))
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("KILN_SECRETS", self.path("secrets"))
            .env("KILN_GUESTS", guests)
            .env("KILN_WORD", word)
            .env("SEEN", self.path("seen"))
            .env("PKI", self.path("pki"))
            .env("TAKEN", self.path("taken/certificates"))
            .env("NOTED", self.path("noted"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text.lines().last().unwrap_or_default().to_string())
    }

    fn noted(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("noted")).unwrap_or_default();
        text.lines().map(String::from).collect()
    }
}

/// As Python writes it: a blank after each colon and comma.
fn python(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{}: {}", json!(k), python(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

/// Answers (method, path with query, body) with (status, body), for keystone too, until the test's process ends.
fn serve(host: &str, port: u16, mut answer: impl FnMut(&str, &str, &Value) -> (u16, Value) + Send + 'static) {
    let listener = TcpListener::bind(format!("127.0.{host}:{port}")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut length, mut token) = (String::new(), 0, false);
            reader.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let line = line.trim().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                length = line.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap());
                token |= line == "x-auth-token: t";
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let mut words = first.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let (status, text) = match path {
                "/v3/auth/tokens" => (201, "{}".to_string()),
                _ if !token => (401, String::new()),
                _ => {
                    let (status, value) = answer(method, path, &body);
                    (status, if value.is_null() { String::new() } else { python(&value) })
                }
            };
            let head = format!("HTTP/1.1 {status} said\r\nX-Subject-Token: t\r\nConnection: close\r\n");
            write!(stream, "{head}Content-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        }
    });
}

/// A nova with one compute: its service, and guests as (vm_state, task_state).
#[derive(Default)]
struct Nova {
    reason: Option<String>,
    up: bool,
    guests: BTreeMap<String, (&'static str, &'static str)>,
    /// Service ids that were deleted.
    deleted: Vec<String>,
}

impl Nova {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let state = if self.up { "up" } else { "down" };
        let path = path.strip_prefix("/v2.1/").unwrap();
        if let Some(query) = path.strip_prefix("servers?") {
            assert!(query.starts_with("all_tenants=1&host=compute1&status=ACTIVE"), "{query}");
            let active = self.guests.iter().filter(|(_, (state, _))| *state == "active");
            // Names are their owners'.
            let shown: Vec<Value> = active.map(|(id, _)| json!({"id": id, "name": "x\", \"id\": \"0"})).collect();
            return (200, json!({"servers": shown}));
        }
        let parts: Vec<&str> = path.split(['?', '/']).collect();
        match (method, parts.as_slice()) {
            ("GET", ["os-services", _]) => {
                let status = if self.reason.is_some() { "disabled" } else { "enabled" };
                let service = json!({"id": 7, "binary": "nova-compute", "host": "compute1", "status": status,
                    "disabled_reason": self.reason, "state": state});
                (200, json!({"services": [service]}))
            }
            ("PUT", ["os-services", word]) => {
                assert_eq!((&body["host"], &body["binary"]), (&json!("compute1"), &json!("nova-compute")));
                self.reason = (*word == "disable-log-reason").then(|| body["disabled_reason"].as_str().unwrap().into());
                (200, json!({}))
            }
            ("DELETE", ["os-services", id]) => {
                if !self.guests.is_empty() {
                    return (409, json!({"conflictingRequest": {"message": "instances on the host"}}));
                }
                self.deleted.push(id.to_string());
                (204, Value::Null)
            }
            ("GET", ["servers", id]) | ("POST", ["servers", id, "action"]) => {
                let Some(guest) = self.guests.get_mut(*id) else { return (404, json!({})) };
                let task = if guest.1.is_empty() { Value::Null } else { json!(guest.1) };
                if method == "GET" {
                    let server = json!({"id": id, "OS-EXT-STS:task_state": task, "OS-EXT-STS:vm_state": guest.0});
                    return (200, json!({"server": server}));
                }
                match (body.as_object().unwrap().keys().next().unwrap().as_str(), &guest) {
                    ("os-stop", ("active", "")) => guest.1 = "powering-off",
                    ("os-start", ("stopped", "")) => *guest = ("active", ""),
                    _ => return (409, json!({})),
                }
                (202, Value::Null)
            }
            other => panic!("{other:?}"),
        }
    }
}

const A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const B: &str = "bbbbbbbb-0000-4000-8000-000000000002";
const C: &str = "cccccccc-0000-4000-8000-000000000003";

fn compute(host: &'static str) -> (Scripts, Arc<Mutex<Nova>>) {
    let guests = [(A, ("active", "")), (B, ("active", "")), (C, ("stopped", ""))];
    let guests = guests.map(|(id, state)| (id.to_string(), state)).into();
    let nova = Arc::new(Mutex::new(Nova { up: true, guests, ..Nova::default() }));
    let shared = nova.clone();
    serve(host, 5000, |_, _, _| (404, json!({})));
    serve(host, 8774, move |method, path, body| shared.lock().unwrap().answer(method, path, body));
    (Scripts::new(host, &["nova-compute", "nova-controller"]), nova)
}

#[test]
fn a_drained_compute_gets_no_guests_and_an_undrained_one_does() {
    let (scripts, nova) = compute("71.1");
    let reason = || nova.lock().unwrap().reason.clone();
    for _ in 0..2 {
        assert_eq!(scripts.run("nova-compute/drain", &[], "stay"), (0, String::new()));
        assert_eq!(reason().as_deref(), Some("drained by kiln"));
    }
    assert_eq!(scripts.run("nova-compute/undrain", &[], "back"), (0, String::new()));
    assert_eq!(reason(), None);
    // What somebody else disabled stays his.
    nova.lock().unwrap().reason = Some("fans".into());
    for (script, guests) in [("drain", "stay"), ("undrain", "back")] {
        assert_eq!(scripts.run(&format!("nova-compute/{script}"), &[], guests), (0, String::new()));
        assert_eq!(reason().as_deref(), Some("fans"));
    }
    assert!(scripts.noted().is_empty());
    assert_eq!(nova.lock().unwrap().guests[A], ("active", ""), "nobody was touched");
}

#[test]
fn guests_that_ran_are_shut_down_and_started_again_and_no_others() {
    let (scripts, nova) = compute("71.2");
    let set = |id: &str, state| {
        nova.lock().unwrap().guests.insert(id.into(), state);
    };
    let stop = || scripts.run("nova-compute/drain", &[], "stop");
    let back = || scripts.run("nova-compute/undrain", &[], "back");
    assert_eq!(stop(), (75, "guests still to be shut down: 2".into()));
    assert_eq!(scripts.noted(), [A, B]);
    set(A, ("stopped", ""));
    assert_eq!(stop(), (75, "guests still to be shut down: 1".into()), "one that is on its way is told in vain");
    // Taken back in the middle: who is still on his way is waited for.
    assert_eq!(back(), (75, "guests still to be started: 1".into()));
    assert_eq!((scripts.noted(), nova.lock().unwrap().guests[A]), (vec![B.into()], ("active", "")));
    set(B, ("stopped", ""));
    assert_eq!(stop(), (75, "guests still to be shut down: 1".into()));
    set(A, ("stopped", ""));
    assert_eq!(stop(), (0, String::new()));
    assert_eq!(scripts.noted(), [B, A]);
    // Until the compute is back nothing is started; one was deleted meanwhile.
    nova.lock().unwrap().up = false;
    assert_eq!(back(), (75, "guests are started when nova-compute is up".into()));
    nova.lock().unwrap().up = true;
    nova.lock().unwrap().guests.remove(B);
    assert_eq!(back(), (0, String::new()));
    let nova = nova.lock().unwrap();
    assert_eq!((nova.guests[A], nova.guests[C], &nova.reason), (("active", ""), ("stopped", ""), &None));
    assert!(scripts.noted().is_empty());
}

/// A nova of which guests are moved from one compute.
#[derive(Default)]
struct Mover {
    /// Of those that are here: vm_state, task_state, power_state.
    here: BTreeMap<&'static str, (&'static str, &'static str, u8)>,
    /// What it answers to a move.
    answers: u16,
    disabled: bool,
    aborted: u32,
}

impl Mover {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let path = path.strip_prefix("/v2.1/").unwrap();
        if let Some(query) = path.strip_prefix("servers?") {
            let mut filters = query.split('&').filter(|f| !f.starts_with("status="));
            assert_eq!(filters.by_ref().collect::<Vec<_>>(), ["all_tenants=1", "host=compute1", "limit=200"]);
            let all = !query.contains("status=");
            let shown = self.here.iter().filter(|(_, (state, ..))| all || ["stopped", "suspended"].contains(state));
            let shown: Vec<Value> = shown.map(|(id, _)| json!({"id": id, "name": "x\", \"id\": \"0"})).collect();
            return (200, json!({"servers": shown}));
        }
        let parts: Vec<&str> = path.split(['?', '/']).collect();
        match (method, parts.as_slice()) {
            ("GET", ["os-services", _]) => {
                let status = if self.disabled { "disabled" } else { "enabled" };
                (200, json!({"services": [{"binary": "nova-compute", "status": status, "state": "up"}]}))
            }
            ("PUT", ["os-services", "disable-log-reason"]) => {
                self.disabled = true;
                (200, json!({}))
            }
            ("GET", ["servers", id]) => {
                let Some((state, task, power)) = self.here.get(*id) else { return (404, json!({})) };
                let task = if task.is_empty() { Value::Null } else { json!(task) };
                let server = json!({"id": id, "name": &id[..3], "OS-EXT-STS:power_state": power,
                    "OS-EXT-STS:task_state": task, "OS-EXT-STS:vm_state": state});
                (200, json!({"server": server}))
            }
            ("POST", ["servers", id, "action"]) => {
                assert_eq!(*body, json!({"os-migrateLive": {"host": null, "block_migration": "auto"}}));
                let guest = self.here.iter_mut().find(|(known, _)| *known == id).unwrap().1;
                assert_eq!(guest.1, "", "nova would answer 409");
                if self.answers == 202 {
                    guest.1 = "migrating";
                }
                (self.answers, Value::Null)
            }
            ("GET", ["servers", _, "os-instance-actions"]) => {
                (200, json!({"instanceActions": [{"request_id": "req-2"}, {"request_id": "req-1"}]}))
            }
            ("GET", ["servers", _, "os-instance-actions", "req-2"]) => {
                let events = json!([{"details": null}, {"details": "No valid host was found. "}]);
                (200, json!({"instanceAction": {"events": events}}))
            }
            ("GET", ["servers", id, "migrations"]) => (200, json!({"migrations": [{"id": 31, "server_uuid": id}]})),
            ("DELETE", ["servers", _, "migrations", "31"]) => {
                self.aborted += 1;
                (202, Value::Null)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn mover(host: &'static str) -> (Scripts, Arc<Mutex<Mover>>) {
    let here = [(A, ("active", "", 1)), (B, ("paused", "", 3)), (C, ("stopped", "", 4))].into();
    let nova = Arc::new(Mutex::new(Mover { here, answers: 202, ..Mover::default() }));
    let shared = nova.clone();
    serve(host, 5000, |_, _, _| (404, json!({})));
    serve(host, 8774, move |method, path, body| shared.lock().unwrap().answer(method, path, body));
    (Scripts::new(host, &["nova-compute"]), nova)
}

const NEXT: &str = "next: have nova move it, or --guests stop or lose";

#[test]
fn guests_are_moved_one_after_the_other_and_those_that_are_shut_down_stay() {
    let (scripts, nova) = mover("71.6");
    let migrate = || scripts.run("nova-compute/migrate", &[], "migrate");
    let here = |id: &str| nova.lock().unwrap().here[id].1;
    let leaves = |id: &str| nova.lock().unwrap().here.remove(id);
    assert_eq!(migrate(), (75, "guest aaa is told to move, 2 are still here".into()));
    assert!(nova.lock().unwrap().disabled, "else nova would send others");
    assert_eq!(migrate(), (75, "guest aaa is migrating, 2 are still here".into()));
    assert_eq!((here(A), here(B)), ("migrating", ""));
    leaves(A);
    assert_eq!(migrate(), (75, "guest bbb is told to move, 1 are still here".into()));
    // A new one that was on its way here when the word came.
    nova.lock().unwrap().here.insert(A, ("building", "spawning", 0));
    leaves(B);
    assert_eq!(migrate(), (75, "guest aaa is spawning, 1 are still here".into()));
    nova.lock().unwrap().here.insert(A, ("error", "", 0));
    assert_eq!(migrate(), (0, String::new()), "it does not run");
    assert_eq!(nova.lock().unwrap().here.keys().copied().collect::<Vec<_>>(), [A, C]);
}

#[test]
fn a_guest_that_cannot_be_moved_is_named_with_nova_s_reason() {
    let (scripts, nova) = mover("71.7");
    let migrate = |word: &str| scripts.run("nova-compute/migrate", &[], &format!("migrate {word}"));
    let set = |id, state| nova.lock().unwrap().here.insert(id, state);
    for _ in 0..2 {
        assert_eq!(migrate("7").0, 75);
        set(A, ("active", "", 1));
    }
    let failed = (1, format!("guest aaa ({A}) cannot be moved: No valid host was found. ; {NEXT}"));
    assert_eq!(migrate("7"), failed);
    assert_eq!(nova.lock().unwrap().here[B].1, "", "the others stay where they are");
    // A new word tries anew. What nova refuses counts as a try, what it cannot answer does not.
    nova.lock().unwrap().answers = 503;
    for _ in 0..4 {
        assert!(migrate("8").1.ends_with("/action answers 503"));
    }
    nova.lock().unwrap().answers = 400;
    assert_eq!([migrate("8").0, migrate("8").0], [75, 75]);
    assert_eq!(migrate("8"), failed);
    set(A, ("rescued", "", 1));
    assert_eq!(migrate("9"), (1, format!("guest aaa ({A}) is rescued, and nova moves none such; {NEXT}")));
}

#[test]
fn a_guest_has_half_an_hour() {
    let (scripts, nova) = mover("71.8");
    nova.lock().unwrap().here.insert(A, ("active", "migrating", 1));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let since = |minutes: u64| {
        std::fs::create_dir_all(scripts.path("seen")).unwrap();
        std::fs::write(scripts.path("seen/7"), format!("{A} {} here\n{A} {now} told\n", now - minutes * 60)).unwrap();
        scripts.run("nova-compute/migrate", &[], "migrate")
    };
    assert_eq!(since(29), (75, "guest aaa is migrating, 2 are still here".into()));
    assert_eq!(since(30), (1, format!("guest aaa ({A}) is still here after 30 minutes; {NEXT}")));
    assert_eq!(nova.lock().unwrap().aborted, 1);
    nova.lock().unwrap().here.insert(A, ("error", "", 0));
    assert_eq!(since(31), (75, "guest bbb is told to move, 2 are still here".into()), "who does not run has no turn");
}

#[test]
fn certificates_are_put_in_place_and_renewed_ones_are_taken_over() {
    let scripts = Scripts::new("71.9", &["libvirt"]);
    let block = |what: &str, text: &str| format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n");
    let pem = |name: &str, number: u32| {
        let parts = [("PRIVATE KEY", "key"), ("CERTIFICATE", "own"), ("CERTIFICATE", "authority")];
        let text: String = parts.map(|(what, part)| block(what, &format!("{name} {part} {number}"))).concat();
        std::fs::write(scripts.path(&format!("secrets/{name}.pem")), text).unwrap();
    };
    // Owners are root's to set.
    scripts.write("bin/install", "#!/bin/bash\nwhile [ $# -gt 0 ]; do case $1 in -o | -g) shift ;; *) a+=(\"$1\") ;; esac; shift; done\nexec /usr/bin/install \"${a[@]}\"\n");
    let says = |program: &str, status: u32| {
        let log = scripts.path(program).display().to_string();
        scripts.write(&format!("bin/{program}"), &format!("#!/bin/sh\necho $* >>{log}\nexit {status}\n"));
    };
    let run = |script: &str| scripts.run(&format!("libvirt/{script}"), &[], "").0;
    let file = |name: &str| {
        let path = scripts.path("pki").join(name);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        (std::fs::read_to_string(path).unwrap(), mode)
    };
    for name in ["libvirt", "qemu"] {
        pem(name, 1);
    }
    says("systemctl", 3);
    says("virt-admin", 1);
    assert_ne!(run("certificates.check"), 0);
    assert_eq!((run("certificates"), run("certificates.check")), (0, 0), "libvirtd will read them when it starts");
    assert_eq!(file("CA/cacert.pem"), (block("CERTIFICATE", "libvirt authority 1"), 0o644));
    for end in ["server", "client"] {
        assert_eq!(file(&format!("libvirt/{end}cert.pem")), (block("CERTIFICATE", "libvirt own 1"), 0o644));
        assert_eq!(file(&format!("libvirt/private/{end}key.pem")), (block("PRIVATE KEY", "libvirt key 1"), 0o600));
        assert_eq!(file(&format!("qemu/{end}-cert.pem")), (block("CERTIFICATE", "qemu own 1"), 0o640));
        assert_eq!(file(&format!("qemu/{end}-key.pem")), (block("PRIVATE KEY", "qemu key 1"), 0o640));
    }
    assert_eq!(file("qemu/ca-cert.pem"), (block("CERTIFICATE", "qemu authority 1"), 0o640));
    // Renewed while libvirtd runs: not taken over until it says so.
    pem("libvirt", 2);
    says("systemctl", 0);
    assert_ne!(run("certificates.check"), 0);
    assert_eq!((run("certificates"), run("certificates.check")), (1, 1));
    says("virt-admin", 0);
    assert_eq!((run("certificates"), run("certificates.check")), (0, 0));
    assert_eq!(file("libvirt/servercert.pem").0, block("CERTIFICATE", "libvirt own 2"));
    let told = std::fs::read_to_string(scripts.path("virt-admin")).unwrap();
    assert_eq!(told.lines().last(), Some("-q -c libvirtd:///system server-update-tls libvirtd"));
    // Without the file nothing is put in its place.
    std::fs::remove_file(scripts.path("secrets/qemu.pem")).unwrap();
    assert_ne!(run("certificates"), 0);
    assert_eq!(file("qemu/server-key.pem").0, block("PRIVATE KEY", "qemu key 1"));
}

#[test]
fn nova_forgets_a_node_that_is_down_and_has_no_guests() {
    let (scripts, nova) = compute("71.3");
    let forget = || scripts.run("nova-controller/forget", &["compute1"], "");
    assert_eq!(forget(), (75, "services on compute1 are up, says nova".into()));
    nova.lock().unwrap().up = false;
    assert_eq!(forget(), (1, "nova has guests on compute1: evacuate or delete them".into()));
    nova.lock().unwrap().guests.clear();
    assert_eq!(forget(), (0, "forgot 1 services on compute1".into()));
    assert_eq!(nova.lock().unwrap().deleted, ["7"]);
    assert_eq!(scripts.run("nova-controller/forget", &["a/b"], "").0, 1);
}

#[test]
fn neutron_forgets_agents_that_are_dead() {
    let agents = Arc::new(Mutex::new(vec![(A, false), (B, true)]));
    let shared = agents.clone();
    serve("71.4", 5000, |_, _, _| (404, json!({})));
    serve("71.4", 9696, move |method, path, _| {
        let mut agents = shared.lock().unwrap();
        if method == "GET" {
            assert_eq!(path, "/v2.0/agents?host=compute1&fields=id&fields=alive");
            let shown: Vec<Value> = agents.iter().map(|(id, alive)| json!({"id": id, "alive": alive})).collect();
            return (200, json!({"agents": shown}));
        }
        assert_eq!(method, "DELETE");
        agents.retain(|(id, _)| !path.ends_with(id));
        (204, Value::Null)
    });
    let scripts = Scripts::new("71.4", &["neutron-controller"]);
    let forget = || scripts.run("neutron-controller/forget", &["compute1"], "");
    assert_eq!(forget(), (75, "agents on compute1 are alive, says neutron".into()));
    agents.lock().unwrap()[1].1 = false;
    assert_eq!(forget(), (0, "forgot 2 agents on compute1".into()));
    assert_eq!(forget(), (0, "forgot 0 agents on compute1".into()));
}

#[test]
fn guests_are_listed_with_those_that_are_shut_down() {
    let scripts = Scripts::new("71.5", &["libvirt"]);
    let virsh = "#!/bin/sh\ncase $* in\n*--all*) printf 'web\\nmail\\n\\n' ;;\n*) printf 'web\\nnew\\n\\n' ;;\nesac\n";
    scripts.write("bin/virsh", virsh);
    let output = Command::new(scripts.path("systems/libvirt/list-guests"))
        .env("PATH", format!("{}:{}", scripts.path("bin").display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "web\nnew\nmail stopped\n");
    scripts.write("bin/virsh", "#!/bin/sh\necho no libvirtd >&2\nexit 1\n");
    let failed = Command::new(scripts.path("systems/libvirt/list-guests"))
        .env("PATH", format!("{}:{}", scripts.path("bin").display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(!failed.status.success() && failed.stdout.is_empty(), "who cannot say says nothing");
}

#[test]
fn a_node_that_leaves_refuses_new_connections_to_its_own_apis_and_awaits_what_is_under_way() {
    let scripts = Scripts::new("68.1", &["haproxy"]);
    scripts.write("bin/iptables", "#!/bin/sh\necho \"$*\" >>\"$NOTED\"\n");
    let api = TcpListener::bind("127.0.68.1:0").unwrap();
    let port = api.local_addr().unwrap().port();
    let door = format!(
        "listen keystone\n    bind 127.0.68.9:5000\n    server compute1 127.0.68.1:{port} check\n    server compute2 127.0.68.2:{port} check\n"
    );
    scripts.write("haproxy/conf.d/keystone.cfg", &door);
    let client = TcpStream::connect(api.local_addr().unwrap()).unwrap();
    let (served, _) = api.accept().unwrap();
    let ended = Arc::new(Mutex::new(false));
    let mark = ended.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        *mark.lock().unwrap() = true;
        drop((client, served));
    });
    assert_eq!(scripts.run("haproxy/refuse", &[], ""), (0, String::new()));
    assert!(*ended.lock().unwrap(), "a request was under way");
    let rule = format!("-w 5 -I INPUT -d 127.0.68.1 -p tcp --syn --dport {port} -j REJECT --reject-with tcp-reset");
    assert_eq!(scripts.noted(), [rule]);
}

/// What a door answers after the VIP has left its node is sent from an address that is not there.
#[test]
fn doors_at_the_vip_are_transparent() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("overlays");
    let found = Command::new("grep").args(["-rh", "bind {{ cluster.vip }}"]).arg(top).output().unwrap();
    let doors = String::from_utf8(found.stdout).unwrap();
    assert!(doors.lines().count() >= 12, "{doors}");
    for door in doors.lines() {
        assert!(door.ends_with(" transparent"), "{door}");
    }
}

/// Else a node that starts, or whose clients all connect anew, is slow for the users of the others.
#[test]
fn what_all_nodes_wait_for_comes_before_what_a_node_does_for_itself() {
    let overlays = Path::new(env!("CARGO_MANIFEST_DIR")).join("overlays");
    let text = |path: &str| std::fs::read_to_string(overlays.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    for (overlay, unit) in [
        ("common/galera", "mariadb"),
        ("common/haproxy", "haproxy"),
        ("common/memcached", "memcached"),
        ("zed/keystone", "keystone"),
        ("mitaka/keystone", "httpd"),
    ] {
        let path = format!("{overlay}/rootfs/usr/lib/systemd/system/{unit}.service.d/nice.conf");
        assert!(text(&path).contains("\nNice=-10\n"), "{path}");
    }
}

/// An API that answers while its node still starts the rest is slow: its node says when it is to be asked.
#[test]
fn doors_ask_a_node_whether_it_is_ready_and_serve_where_none_is() {
    let overlays = Path::new(env!("CARGO_MANIFEST_DIR")).join("overlays");
    for (release, doors) in [("zed", 6), ("mitaka", 5)] {
        let found = |text: &str| {
            let out = Command::new("grep").args(["-rh", "--", text]).arg(overlays.join(release)).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        let all = |text: &str, holds: &dyn Fn(&str) -> bool| {
            let lines = found(text);
            assert_eq!(lines.lines().count(), doors, "{lines}");
            assert!(lines.lines().all(holds), "{lines}");
        };
        all("default-server", &|l| l.ends_with(" agent-port 8405"));
        // HAProxy 1.5 takes it here only.
        all("^    server {{ member.name }} ", &|l| l.contains(" check agent-check"));
        all("^    server {{ member.name }}-starting ", &|l| {
            l.contains(" check") && l.contains(" backup ") && !l.contains("agent")
        });
        all("option allbackups", &|_| true);
    }
}

#[test]
fn a_statement_that_fails_is_not_shown_with_its_password() {
    let scripts = Scripts::new("9.1", &["galera"]);
    // As MariaDB 10.11.19 does.
    let client = r#"#!/bin/bash
said=$(cat)
[[ $* != *"do 1"* && $said != *IDENTIFIED* ]] && echo 0 && exit
printf -- '--------------\n%s\n--------------\n\nERROR 1047 (08S01) at line 1: WSREP has not yet prepared node\n' "$said" >&2
exit 1
"#;
    scripts.write("bin/mysql", client);
    scripts.write("bin/sleep", "#!/bin/bash\n");
    scripts.write("secrets/database.password", "hush");
    scripts.write("mysql/kiln-accounts.sql", "GRANT USAGE ON *.* TO 'kiln_check'@'%' IDENTIFIED BY 'hush';\n");
    let why = "ERROR 1047 (08S01) at line 1: WSREP has not yet prepared node";
    assert_eq!(scripts.run("galera/accounts", &[], ""), (1, format!("the accounts cannot be made: {why}")));
    let make = ["make", "nova/database", "nova", "nova"];
    let refused = format!("the database refuses nova's account: {why}");
    assert_eq!(scripts.run("../openstack/database", &make, ""), (1, refused));
}
