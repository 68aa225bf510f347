//! `kiln check` over a small release in a temporary folder: clean as it is, and each planted mistake
//! is told with file, line and key, and nothing else is. The same with what is shipped: [`planted`].

#[path = "check/planted.rs"]
mod planted;

use kiln::recipe::lock::{Lock, LockedPackage, LockedRepository, hex_digest, request};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Path -> text. What lies below `systems/NAME/` of an overlay can be run.
const FILES: &[(&str, &str)] = &[
    (
        "recipes/zed/base.toml",
        r#"role = "base"
packages = ["systemd"]
overlays = ["base"]
[distribution]
family = "apt"
name = "debian12"
[[repository]]
id = "debian"
url = "host"
suites = ["bookworm"]
components = ["main"]
"#,
    ),
    (
        "recipes/zed/controller.toml",
        "role = \"controller\"\nextends = [\"base\"]\nsystems = [\"environment\", \"galera\", \"haproxy\", \"keystone\"]\n",
    ),
    (
        "recipes/zed/compute.toml",
        "role = \"compute\"\nextends = [\"base\"]\nsystems = [\"environment\", \"nova-compute\"]\n",
    ),
    ("recipes/zed/systems/environment.toml", "name = \"environment\"\nunits = [\"own.service\"]\nports = [22]\n"),
    (
        "recipes/zed/systems/galera.toml",
        r#"name = "galera"
after = ["environment"]
ports = [3306]
secrets = ["galera.sst"]
state = ["/var/lib/mysql"]
[formation]
kind = "seeded"
dark = "rank"
[[step]]
name = "early"
scope = "node"
[[step]]
name = "room"
scope = "peer"
"#,
    ),
    (
        "recipes/zed/systems/haproxy.toml",
        "name = \"haproxy\"\nafter = [\"environment\"]\nports = [8404]\nsecrets = [\"haproxy.stats\", \"haproxy.other\"]\n",
    ),
    (
        "recipes/zed/systems/keystone.toml",
        r#"name = "keystone"
after = ["galera", "haproxy"]
ports = [5000]
secrets = [
    "keystone.password",
    "keystone.admin",
]
[[step]]
name = "sync"
scope = "cluster"
writes = "galera"
needs = ["galera"]
"#,
    ),
    (
        "recipes/zed/systems/nova-compute.toml",
        "name = \"nova-compute\"\nafter = [\"environment\"]\nsecrets = [\"nova.password\"]\n",
    ),
    (
        "recipes/zed/options/files.toml",
        "[keystone]\nfiles = [\"/etc/keystone/*.conf\"]\n[nova]\nfiles = [\"/etc/nova/nova*.conf\"]\nallow = [\"DEFAULT.kept\"]\n",
    ),
    ("recipes/zed/options/keystone.txt", "[DEFAULT]\ndebug\n[cache]\nmemcache_servers\n[database]\nconnection\n"),
    (
        "recipes/zed/options/nova.txt",
        r#"[DEFAULT]
kept deprecated
my_ip
osapi_compute_listen
verbose deprecated
[api_database]
connection
[keystone_authtoken]
auth_uri -> keystone_authtoken.www_authenticate_uri
password
www_authenticate_uri
[vnc]
server_listen
vncserver_listen -> vnc.server_listen
"#,
    ),
    ("overlays/zed/base/rootfs/etc/locale.conf", "LANG=C.UTF-8\n"),
    ("overlays/zed/environment/rootfs/usr/lib/systemd/system/own.service", "[Service]\nExecStart=/bin/true\n"),
    ("overlays/zed/environment/rootfs/usr/lib/kiln/systems/environment/health", HEALTH),
    (
        "overlays/zed/galera/rootfs/etc/mysql/my.cnf.j2",
        "[mysqld]\nbind-address = {{ node.address }}\nwsrep-sst-auth = kiln:{{ secrets[\"galera.sst\"] }}\n",
    ),
    ("overlays/zed/galera/overlay.toml", "[file.\"etc/mysql/my.cnf.j2\"]\nmode = \"0640\"\n"),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/health", HEALTH),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/seed", HEALTH),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/join", HEALTH),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/rank", HEALTH),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/lineage", HEALTH),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/early", HEALTH),
    ("overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/room", HEALTH),
    (
        "overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2",
        r#"frontend health
    bind {{ node.address }}:8404
    stats auth admin:{{ secrets["haproxy.stats"] }}
{% if cluster.vip %}
listen galera
    bind {{ cluster.vip }}:3306
{%- for member in members[node.role] %}
    server {{ member.name }} {{ member.address }}:3306
{%- endfor %}
listen keystone
    bind {{ cluster.vip }}:5000
{% endif %}
"#,
    ),
    ("overlays/zed/haproxy/overlay.toml", "[file.\"etc/haproxy/haproxy.cfg.j2\"]\nmode = \"0600\"\n"),
    (
        "overlays/zed/haproxy/rootfs/usr/lib/kiln/systems/haproxy/health",
        "#!/bin/sh\nexec /usr/lib/kiln/shared haproxy\n",
    ),
    // Runs with the secrets of who calls it.
    (
        "overlays/zed/base/rootfs/usr/lib/kiln/shared",
        "#!/bin/sh\ncat \"$KILN_SECRETS/haproxy.stats\" \"$KILN_SECRETS/$1.other\"\n",
    ),
    (
        "overlays/zed/keystone/rootfs/etc/keystone/keystone.conf.j2",
        r#"[DEFAULT]
debug = false
[cache]
memcache_servers =
{%- for member in members[node.role] %} {{ member.address }}:11211{% if not loop.last %},{% endif %}{% endfor %}
[database]
connection = mysql://keystone:{{ secrets["keystone.password"] }}@{{ cluster.vip }}/keystone
"#,
    ),
    (
        "overlays/zed/keystone/rootfs/etc/default/keystone.j2",
        "DAEMON_ARGS=\"--http-socket {{ node.address }}:5000 --ini /etc/keystone/keystone-uwsgi.ini\"\n",
    ),
    ("overlays/zed/keystone/rootfs/etc/keystone/uwsgi.ini", "[uwsgi]\n# The length of a queue.\nlisten = 100\n"),
    // Its own servers at the balancer bind nothing.
    (
        "overlays/zed/keystone/rootfs/etc/haproxy/conf.d/keystone.cfg.j2",
        "backend keystone\n    server {{ node.name }} {{ node.address }}:5000\n",
    ),
    ("overlays/zed/keystone/overlay.toml", "[file.\"etc/keystone/keystone.conf.j2\"]\nmode = \"0640\"\n"),
    ("overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/health", HEALTH),
    ("overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/sync", ADMIN),
    ("overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/sync.check", HEALTH),
    (
        "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2",
        r#"[DEFAULT]
my_ip = {{ node.address }}
kept = 1
{% if node.role == "controller" %}
[api_database]
connection = nova
{% endif %}
{% for member in members.controller -%}
# {{ member.name }} is a controller
{% endfor -%}
[keystone_authtoken]
password = {{ secrets.nova.password }}
[vnc]
server_listen = {{ node.address }}
"#,
    ),
    ("overlays/zed/nova-compute/overlay.toml", "[file.\"etc/nova/nova.conf.j2\"]\nmode = \"0640\"\n"),
    ("overlays/zed/nova-compute/rootfs/usr/lib/kiln/systems/nova-compute/health", HEALTH),
];
const HEALTH: &str = "#!/bin/sh\nexit 0\n";
const ADMIN: &str = "#!/bin/bash\npassword=$(<\"$KILN_SECRETS/keystone.admin\")\necho \"${#password}\"\n";

const NOVA: &str = "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2";
const KEYSTONE: &str = "overlays/zed/keystone/rootfs/etc/keystone/keystone.conf.j2";
const HAPROXY: &str = "overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2";
const UWSGI: &str = "overlays/zed/keystone/rootfs/etc/default/keystone.j2";
const SYNC: &str = "overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/sync";
const RANK: &str = "overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/rank";
const MYSQL: &str = "overlays/zed/galera/rootfs/etc/mysql/my.cnf.j2";

struct Place {
    dir: tempfile::TempDir,
    /// Without it a check of many scripts takes a tenth of the time.
    shellcheck: bool,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap(), shellcheck: true };
        for (path, text) in FILES {
            place.write(path, text);
        }
        place
    }

    fn write(&self, path: &str, text: &str) {
        let file = self.dir.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    fn plant(&self, path: &str, mistake: &Mistake) {
        match mistake {
            Mistake::Instead(old, new) => {
                let text = self.read(path);
                assert_eq!(text.matches(old).count(), 1, "{path} has one {old:?}");
                self.write(path, &text.replace(old, new));
            }
            Mistake::New(text) => self.write(path, text),
            Mistake::Gone => std::fs::remove_file(self.dir.path().join(path)).unwrap(),
            Mistake::Mode(mode) => {
                std::fs::set_permissions(self.dir.path().join(path), std::fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
    }

    fn kiln(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).current_dir(self.dir.path()).env("KILN_CACHE", self.dir.path().join("cache"));
        if !self.shellcheck {
            command.env("PATH", "/nowhere");
        }
        command.output().unwrap()
    }

    /// Exit status and, one a line, every problem.
    fn check(&self, args: &[&str]) -> (i32, Vec<String>, Vec<String>) {
        let output = self.kiln(&[&["check", "--json"], args].concat());
        let document: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        let list = |name: &str| {
            let line = |p: &serde_json::Value| {
                let text = |key: &str| p[key].as_str().unwrap().to_string();
                format!("{}:{}: {}: {}", text("file"), p["line"], text("key"), text("message"))
            };
            document[name].as_array().unwrap().iter().map(line).collect::<Vec<String>>()
        };
        (output.status.code().unwrap(), list("problems"), list("unchecked"))
    }
}

enum Mistake {
    Instead(&'static str, &'static str),
    New(&'static str),
    Gone,
    Mode(u32),
}

use Mistake::{Gone, Instead, Mode, New};

/// What is done to which file, and the beginning of every problem that this makes.
const MISTAKES: &[(&str, &str, Mistake, &[&str])] = &[
    (
        "an option that nobody registers",
        NOVA,
        Instead("kept = 1", "my_pi = x"),
        &["overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:3: DEFAULT.my_pi: nova has no such option"],
    ),
    (
        "an option behind a loop and a branch",
        NOVA,
        Instead("[vnc]", "[vnc]\nmy_ip = x"),
        &[
            "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:14: vnc.my_ip: nova has no such option; there is one in [DEFAULT]",
        ],
    ),
    (
        "a section that nobody registers",
        NOVA,
        Instead("[vnc]", "[vcn]"),
        &["overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:13: [vcn]: nova has no such section"],
    ),
    (
        "an old name",
        NOVA,
        Instead("server_listen", "vncserver_listen"),
        &[
            "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:14: vnc.vncserver_listen: is an old name: nova calls it vnc.server_listen",
        ],
    ),
    (
        "an option that will go",
        NOVA,
        Instead("kept = 1", "verbose = true"),
        &["overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:3: DEFAULT.verbose: is deprecated"],
    ),
    (
        "an option in a file that is no template",
        "overlays/common/nova-compute/rootfs/etc/nova/nova-extra.conf",
        New("# more\n[DEFAULT]\n\nmy-ip = 1\n"),
        &["overlays/common/nova-compute/rootfs/etc/nova/nova-extra.conf:4: DEFAULT.my-ip: nova has no such option"],
    ),
    (
        "a line that is no option",
        KEYSTONE,
        Instead("debug = false", "debug false"),
        &["overlays/zed/keystone/rootfs/etc/keystone/keystone.conf.j2:2: [DEFAULT]: is no [section], no option"],
    ),
    (
        "a list of options that cannot be read",
        "recipes/zed/options/nova.txt",
        Instead("my_ip\n", "my_ip is here\n"),
        &[
            "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:2: DEFAULT.my_ip: nova has no such option",
            "recipes/zed/options/nova.txt:3: : \"my_ip is here\" is none of",
        ],
    ),
    (
        "a placeholder",
        KEYSTONE,
        Instead("{{ cluster.vip }}", "{VIP}"),
        &["overlays/zed/keystone/rootfs/etc/keystone/keystone.conf.j2:7: {VIP}: is left"],
    ),
    (
        "something to do",
        HAPROXY,
        Instead("listen keystone", "# CHANGEME\nlisten keystone"),
        &["overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2:10: CHANGEME: is left"],
    ),
    (
        "a template without its ending",
        "overlays/zed/base/rootfs/etc/motd",
        New("Welcome\nto {{ node.name }}\n"),
        &["overlays/zed/base/rootfs/etc/motd:2: {{: is left"],
    ),
    (
        "a value that does not exist",
        UWSGI,
        Instead("--ini", "--name {{ node.nmae }} --ini"),
        &["overlays/zed/keystone/rootfs/etc/default/keystone.j2:1: template: a value is undefined or none"],
    ),
    (
        "a template that is none",
        MYSQL,
        Instead("[mysqld]", "{% if %}"),
        &["overlays/zed/galera/rootfs/etc/mysql/my.cnf.j2:1: template: syntax error"],
    ),
    (
        "a port of two systems",
        "recipes/zed/systems/keystone.toml",
        Instead("ports = [5000]", "ports = [5000, 22]"),
        &["recipes/zed/systems/keystone.toml:3: ports[1]: port 22 is already environment's"],
    ),
    (
        "a port of the VIP bound twice",
        HAPROXY,
        Instead("bind {{ cluster.vip }}:5000", "bind {{ cluster.vip }}:5000\n    bind {{ cluster.vip }}:3300-3310"),
        &[
            "overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2:12: bind: 192.0.2.10:3300-3310 is bound already, by 192.0.2.10:3306 in line 6",
        ],
    ),
    (
        "a balancer on all addresses",
        HAPROXY,
        Instead("bind {{ cluster.vip }}:3306", "bind *:3306"),
        &[
            "overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2:6: bind: *:3306 listens on all addresses",
            "overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2:6: bind: *:3306 takes port 3306, which is galera's",
        ],
    ),
    (
        "a balancer at another's port",
        HAPROXY,
        Instead("bind {{ node.address }}:8404", "bind {{ node.address }}:8404,{{ node.address }}:22"),
        &[
            "overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2:2: bind: 192.0.2.11:22 takes port 22, which is environment's",
        ],
    ),
    (
        "an API on all addresses",
        UWSGI,
        Instead("{{ node.address }}:5000", ":5000"),
        &[
            "overlays/zed/keystone/rootfs/etc/default/keystone.j2:1: --http-socket: listens on all addresses, also on the VIP, where /etc/haproxy/haproxy.cfg binds 192.0.2.10:5000",
            "recipes/zed/systems/keystone.toml:3: ports[0]: /etc/haproxy/haproxy.cfg binds 192.0.2.10:5000 at the VIP",
        ],
    ),
    (
        "an option that binds all addresses",
        NOVA,
        Instead("kept = 1", "osapi_compute_listen = 0.0.0.0"),
        &[
            "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:3: osapi_compute_listen: listens on all addresses",
            "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:3: osapi_compute_listen: port 8774 is not among the ports of system nova-compute",
        ],
    ),
    (
        "an API that is bound nowhere",
        UWSGI,
        Gone,
        &[
            "recipes/zed/systems/keystone.toml:3: ports[0]: /etc/haproxy/haproxy.cfg binds 192.0.2.10:5000 at the VIP, and no file of keystone",
        ],
    ),
    (
        "a socket unit at a port of the VIP",
        "overlays/zed/galera/rootfs/usr/lib/systemd/system/check.socket",
        New("[Socket]\nListenStream=5000\n"),
        &[
            "overlays/zed/galera/rootfs/usr/lib/systemd/system/check.socket:2: ListenStream: listens on all addresses, also on the VIP",
            "overlays/zed/galera/rootfs/usr/lib/systemd/system/check.socket:2: ListenStream: takes port 5000, which is keystone's",
        ],
    ),
    (
        "another system's secret in a template",
        KEYSTONE,
        Instead("debug = false", "debug = {{ secrets[\"galera.sst\"] }}"),
        &[
            "overlays/zed/keystone/rootfs/etc/keystone/keystone.conf.j2:2: galera.sst: keystone does not name it in its secrets; galera does",
        ],
    ),
    (
        "another system's secret in a script",
        SYNC,
        Instead("echo", "cat \"${KILN_SECRETS}\"/haproxy.stats\necho"),
        &[
            "overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/sync:3: haproxy.stats: keystone does not name it",
        ],
    ),
    (
        "a secret in an overlay without a system",
        "overlays/zed/base/rootfs/etc/issue.j2",
        New("\n{{ secrets.galera.sst }}\n"),
        &[
            "overlays/zed/base/rootfs/etc/issue.j2:2: galera.sst: an overlay that belongs to no system gets no secrets",
            "overlays/zed/base/rootfs/etc/issue.j2:2: galera.sst: the result can be read by everybody (mode 0644)",
        ],
    ),
    (
        "a secret by a name that is made as it runs",
        SYNC,
        Instead("KILN_SECRETS/keystone.admin", "KILN_SECRETS/glance.$1"),
        &[
            "overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/sync:2: glance.*: keystone does not name it",
            "recipes/zed/systems/keystone.toml:6: secrets[1]: \"keystone.admin\" is read by no template",
        ],
    ),
    (
        "a shared script that reads what no caller names",
        "overlays/zed/base/rootfs/usr/lib/kiln/shared",
        Instead("haproxy.stats", "nova.password"),
        &["overlays/zed/base/rootfs/usr/lib/kiln/shared:2: nova.password: haproxy does not name it in its secrets"],
    ),
    (
        "a shared script that nobody calls any more",
        "overlays/zed/haproxy/rootfs/usr/lib/kiln/systems/haproxy/health",
        New(HEALTH),
        &["recipes/zed/systems/haproxy.toml:4: secrets[1]: \"haproxy.other\" is read by no template"],
    ),
    (
        "a secret that nobody reads",
        SYNC,
        Instead("keystone.admin", "keystone.password"),
        &["recipes/zed/systems/keystone.toml:6: secrets[1]: \"keystone.admin\" is read by no template and no script"],
    ),
    (
        "a controller's secret on a compute",
        NOVA,
        Instead("connection = nova", "connection = {{ secrets[\"database.password\"] }}"),
        &["overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2:6: database.password: nova-compute does not name it"],
    ),
    (
        "a secret that everybody can read",
        "overlays/zed/galera/overlay.toml",
        Instead("0640", "0644"),
        &[
            "overlays/zed/galera/rootfs/etc/mysql/my.cnf.j2:3: galera.sst: the result can be read by everybody (mode 0644)",
        ],
    ),
    (
        "a file that two overlays bring",
        "overlays/zed/keystone/rootfs/etc/locale.conf",
        New("LANG=C\n"),
        &["overlays/zed/keystone/rootfs/etc/locale.conf:0: : /etc/locale.conf comes from overlay base too"],
    ),
    (
        "an attribute of a file that is not there",
        "overlays/zed/galera/overlay.toml",
        Instead("my.cnf.j2", "my.cnf"),
        &[
            "overlays/zed/galera/overlay.toml:1: file.\"etc/mysql/my.cnf\": rootfs has no",
            "overlays/zed/galera/rootfs/etc/mysql/my.cnf.j2:3: galera.sst: the result can be read by everybody",
        ],
    ),
    (
        "systems in a circle",
        "recipes/zed/systems/galera.toml",
        Instead("after = [\"environment\"]", "after = [\"environment\", \"keystone\"]"),
        &[
            "recipes/zed/systems/galera.toml:2: after[1]: systems wait for each other in a circle: galera, keystone",
            "recipes/zed/systems/keystone.toml:2: after[0]: systems wait for each other in a circle: galera, keystone",
        ],
    ),
    (
        "steps in a circle",
        "recipes/zed/systems/galera.toml",
        Instead("scope = \"node\"", "scope = \"node\"\nneeds = [\"keystone/sync\"]"),
        &[
            "recipes/zed/systems/galera.toml:12: step[0].needs[0]: nothing of this would ever start: galera/early waits for keystone/sync",
            "recipes/zed/systems/keystone.toml:12: step[0].needs[0]: nothing of this would ever start: keystone/sync waits for galera",
        ],
    ),
    (
        "a result that nobody keeps",
        "recipes/zed/systems/keystone.toml",
        Instead("writes = \"galera\"", "writes = \"haproxy\""),
        &["recipes/zed/systems/keystone.toml:11: step[0].writes: its result lives in haproxy, which keeps no state"],
    ),
    (
        "a seeded system that cannot say what it holds",
        RANK,
        Gone,
        &[
            "recipes/zed/systems/galera.toml:7: formation.kind: its script /usr/lib/kiln/systems/galera/rank is not in its overlay",
        ],
    ),
    (
        "a step without its script",
        SYNC,
        Gone,
        &[
            "recipes/zed/systems/keystone.toml:6: secrets[1]: \"keystone.admin\" is read by no",
            "recipes/zed/systems/keystone.toml:9: step[0].name: its script /usr/lib/kiln/systems/keystone/sync is not in its overlay",
        ],
    ),
    (
        "a cluster step without its check",
        "overlays/zed/keystone/rootfs/usr/lib/kiln/systems/keystone/sync.check",
        Gone,
        &[
            "recipes/zed/systems/keystone.toml:9: step[0].name: its script /usr/lib/kiln/systems/keystone/sync.check is not",
        ],
    ),
    (
        "a system without health",
        "overlays/zed/haproxy/rootfs/usr/lib/kiln/systems/haproxy/health",
        New("exec /usr/lib/kiln/shared haproxy\n"),
        &["recipes/zed/systems/haproxy.toml:1: health: its script /usr/lib/kiln/systems/haproxy/health is no program"],
    ),
    (
        "a script that cannot be run",
        RANK,
        Mode(0o644),
        &[
            "overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/rank:1: #!: begins with #! but is not executable",
            "recipes/zed/systems/galera.toml:7: formation.kind: its script /usr/lib/kiln/systems/galera/rank is not executable",
        ],
    ),
    (
        "a key that nobody knows",
        "recipes/zed/compute.toml",
        Instead("systems", "system"),
        &["recipes/zed/compute.toml:0: systems: no system", "recipes/zed/compute.toml:3: system: unknown key"],
    ),
    (
        "a mistake in a system that no recipe names",
        "recipes/zed/systems/spare.toml",
        New("name = \"spare\"\nports = [0]\n"),
        &["recipes/zed/systems/spare.toml:2: ports[0]: must be from 1 to 65535"],
    ),
];

fn matches(found: &[String], wanted: &[&str]) -> bool {
    found.len() == wanted.len() && wanted.iter().all(|w| found.iter().any(|f| f.starts_with(w)))
}

#[test]
fn every_planted_mistake_is_told_with_file_line_and_key_and_nothing_else() {
    let clean = Place::new();
    let (status, problems, _) = clean.check(&["recipes/zed"]);
    assert_eq!((status, problems), (0, vec![]), "the release as it is");
    assert!(MISTAKES.len() >= 20);
    for (label, path, mistake, wanted) in MISTAKES {
        let place = Place::new();
        place.plant(path, mistake);
        let (status, problems, _) = place.check(&["recipes/zed"]);
        assert_eq!(status, 4, "{label}: {problems:#?}");
        assert!(matches(&problems, wanted), "{label}: {problems:#?}\nwanted {wanted:#?}");
    }
}

#[test]
fn a_secret_that_only_another_role_reads_is_told() {
    let place = Place::new();
    place.plant(NOVA, &Instead("connection = nova", "connection = {{ secrets[\"database.password\"] }}"));
    let system = "recipes/zed/systems/nova-compute.toml";
    place.plant(system, &Instead("\"nova.password\"", "\"nova.password\", \"database.password\""));
    let (status, problems, _) = place.check(&["zed/compute"]);
    let wanted = "recipes/zed/systems/nova-compute.toml:3: secrets[1]: role compute gets \"database.password\", but no";
    assert!(status == 4 && matches(&problems, &[wanted]), "{problems:#?}");
    // Where the role does read it, it is right.
    place.plant(NOVA, &Instead("node.role == \"controller\"", "node.role == \"compute\""));
    assert_eq!(place.check(&["zed/compute"]).1, Vec::<String>::new());
}

#[test]
fn mistakes_in_many_files_are_told_in_one_go() {
    let place = Place::new();
    place.plant(NOVA, &Instead("kept = 1", "my_pi = x"));
    place.plant(HAPROXY, &Instead("listen keystone", "# CHANGEME\nlisten keystone"));
    place.plant(RANK, &Gone);
    place.plant("recipes/zed/systems/environment.toml", &Instead("ports", "prots"));
    let output = place.kiln(&["check", "recipes"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let told: Vec<&str> = text.lines().filter(|l| !l.starts_with("not checked")).collect();
    assert_eq!(told.len(), 4, "{text}");
    assert!(told[0].starts_with("overlays/zed/haproxy/rootfs/etc/haproxy/haproxy.cfg.j2:10: CHANGEME: "), "{text}");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: 4 problem(s)\n");
}

fn shellcheck_is_there() -> bool {
    let there = Command::new("shellcheck").arg("--version").output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "shellcheck is missing in CI");
        println!("skipped: shellcheck is not installed");
    }
    there
}

#[test]
fn shell_scripts_and_shell_templates_pass_shellcheck() {
    if !shellcheck_is_there() {
        return;
    }
    let place = Place::new();
    place.plant(RANK, &New("#!/bin/sh\nunused=1\necho 0\n"));
    place.write(
        "overlays/zed/base/rootfs/usr/bin/hello.j2",
        "#!/bin/bash\n{% for x in [1, 2] -%}\n{% endfor -%}\ncd {{ node.name }}\n",
    );
    let (status, problems, _) = place.check(&[]);
    let wanted = [
        "overlays/zed/base/rootfs/usr/bin/hello.j2:4: SC2164: ",
        "overlays/zed/galera/rootfs/usr/lib/kiln/systems/galera/rank:2: SC2034: ",
    ];
    assert!(status == 4 && matches(&problems, &wanted), "{problems:#?}");
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["check", "--strict"])
        .current_dir(place.dir.path())
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not checked: scripts: ") && text.contains("shellcheck is not installed"), "{text}");
    assert_eq!(output.status.code(), Some(4), "--strict");
}

/// A Debian package with these files, empty.
fn package(paths: &[&str]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for path in paths {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        archive.append_data(&mut header, path, &b""[..]).unwrap();
    }
    let data = archive.into_inner().unwrap();
    let mut all = b"!<arch>\n".to_vec();
    for (name, body) in [("debian-binary", &b"2.0\n"[..]), ("control.tar", b"odd"), ("data.tar", &data)] {
        all.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len()).bytes());
        all.extend(body);
        all.resize(all.len().next_multiple_of(2), b'\n');
    }
    all
}

#[test]
fn units_come_from_packages_of_the_lock_or_nobody_knows() {
    const SYSTEM: &str = "recipes/zed/systems/nova-compute.toml";
    let place = Place::new();
    place.plant(SYSTEM, &Instead("after", "units = [\"nova-compute.service\", \"other@1.service\"]\nafter"));
    let unknown = |args: &[&str]| {
        let (status, problems, unchecked) = place.check(args);
        assert_eq!(problems, Vec::<String>::new());
        (status, unchecked.join("\n"))
    };
    let (status, said) = unknown(&["zed/compute"]);
    assert_eq!(status, 0);
    assert!(
        said.starts_with("recipes/zed/compute.lock:0: units: whether packages bring 2 units: there is no lock"),
        "{said}"
    );
    assert_eq!(unknown(&["zed/compute", "--strict"]).0, 4);

    let args = kiln::cli::recipes::RecipesArgs { recipes: place.dir.path().join("recipes"), overlays: None };
    let recipe = kiln::cli::recipes::resolve("zed/compute", &args).unwrap().recipe().unwrap();
    let bytes = [package(&["./lib/systemd/system/other@.service"]), package(&["./usr/bin/nova-compute"])];
    let locked = |name: &str, bytes: &[u8]| LockedPackage {
        name: name.into(),
        version: "1".into(),
        arch: "all".into(),
        sha256: hex_digest(bytes),
        size: bytes.len() as u64,
        path: format!("pool/{name}.deb"),
        repository: "debian".into(),
        stage: "base".into(),
    };
    let mut lock = Lock {
        version: 1,
        release: "zed".into(),
        role: "compute".into(),
        epoch: 1,
        request: request(&recipe),
        repositories: vec![LockedRepository { id: "debian".into(), metadata: vec![hex_digest(b"")] }],
        packages: vec![locked("systemd", &bytes[0]), locked("nova", &bytes[1])],
    };
    lock.sort(&recipe);
    place.write("recipes/zed/compute.lock", &lock.to_text());
    let (_, said) = unknown(&["zed/compute"]);
    assert!(
        said.contains("nova-compute.toml:2: units[0]: whether a package brings nova-compute.service: 2 of"),
        "{said}"
    );
    for bytes in &bytes {
        let file = kiln::repo::fetch::place(&place.dir.path().join("cache"), &hex_digest(bytes));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    let (status, problems, unchecked) = place.check(&["zed/compute", "--strict"]);
    let wanted = "recipes/zed/systems/nova-compute.toml:2: units[0]: no overlay and no package of the lock brings nova-compute.service";
    assert_eq!((status, problems, unchecked), (4, vec![wanted.to_string()], vec![]));

    place.plant("recipes/zed/compute.toml", &Instead("extends", "packages = [\"vim\"]\nextends"));
    let (_, said) = unknown(&["zed/compute"]);
    assert!(said.contains("the lock is not this recipe's; next: kiln lock zed/compute"), "{said}");
    place.write("recipes/zed/compute.lock", "version = 1\n");
    assert!(
        place.check(&["zed/compute"]).1.iter().any(|p| p.starts_with("recipes/zed/compute.lock:")),
        "a broken lock"
    );
}

const SITE: &str = r#"[cluster]
name = "prod"
release = "zed"
vip = "192.168.10.10"
[role.controller]
image = "zed/controller"
[network.management]
subnet = "192.168.10.0/24"
[[node]]
name = "controller1"
role = "controller"
mac = ["52:54:00:00:00:01"]
management = { address = "192.168.10.11" }
state = { volatile = true }
"#;
const SECRETS: &str =
    "[galera]\nsst = \"a\"\n[haproxy]\nstats = \"b\"\nother = \"e\"\n[keystone]\npassword = \"c\"\nadmin = \"d\"\n";

#[test]
fn a_site_is_checked_as_serve_would_read_it() {
    for (label, path, mistake, wanted) in [
        ("syntax", "mysite/site.toml", Instead("[[node]]", "[[node]"), "mysite/site.toml:9: : not valid TOML"),
        (
            "vip",
            "mysite/site.toml",
            Instead("10.10\"", "11.10\""),
            "mysite/site.toml:4: cluster.vip: 192.168.11.10 is not",
        ),
        (
            "no state disk",
            "mysite/site.toml",
            Instead("state = { volatile = true }\n", ""),
            "mysite/site.toml:10: node[0].name: node controller1 is a controller (controller) without a state disk",
        ),
        (
            "another role's image",
            "mysite/site.toml",
            Instead("zed/controller", "zed/compute"),
            "mysite/site.toml:6: role.controller.image: \"zed/compute\" is no image of zed/controller",
        ),
        (
            "a secret that is missing",
            "mysite/secrets.toml",
            Instead("stats = \"b\"\n", ""),
            "mysite/secrets.toml:0: haproxy.stats: is missing: system haproxy of role controller needs it",
        ),
        (
            "open secrets",
            "mysite/secrets.toml",
            Mode(0o644),
            "mysite/secrets.toml:0: : mysite/secrets.toml can be read by others",
        ),
    ] {
        let place = Place::new();
        place.write("mysite/site.toml", SITE);
        place.write("mysite/secrets.toml", SECRETS);
        place.plant("mysite/secrets.toml", &Mode(0o600));
        assert_eq!(place.check(&["mysite"]), (0, vec![], vec![]), "the site as it is");
        place.plant(path, &mistake);
        if !matches!(mistake, Mode(_)) {
            place.plant("mysite/secrets.toml", &Mode(0o600));
        }
        let (status, problems, _) = place.check(&["mysite/site.toml"]);
        assert!(status == 4 && matches(&problems, &[wanted]), "{label}: {problems:#?}");
    }
}

#[test]
fn a_call_that_is_wrong_ends_with_2() {
    let place = Place::new();
    std::fs::create_dir(place.dir.path().join("empty")).unwrap();
    for target in ["zed/nobody", "empty", "no/file.toml", "x", "../zed"] {
        let output = place.kiln(&["check", target]);
        assert_eq!(output.status.code(), Some(2), "{target}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn what_is_shipped_is_clean() {
    let mut line = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let output = line.args(["check", "recipes/zed", "recipes/mitaka"]).current_dir(top()).output().unwrap();
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{said}");
    for list in ["keystone", "glance", "placement", "nova", "neutron"] {
        assert!(top().join(format!("recipes/zed/options/{list}.txt")).exists(), "{list}");
    }
}
