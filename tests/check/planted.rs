//! Mistakes planted in a copy of what is shipped: real recipes, real overlays, real option lists. Each
//! is told with its file and line, and nothing else is told.

use super::Mistake::{self, Gone, Instead, Mode, New};
use super::{Place, package, top};
use kiln::cli::recipes::{RecipesArgs, resolve};
use kiln::recipe::lock::{Lock, LockedPackage, LockedRepository, hex_digest, request};
use std::process::Command;

/// File, what its line holds (the first that does; empty: the file as a whole), how key and message begin.
type Told = (&'static str, &'static str, &'static str);
/// What it is, what is done to which files, and every problem that this makes.
type Row = (&'static str, &'static [(&'static str, Mistake)], &'static [Told]);

const KEYSTONE: &str = "overlays/zed/keystone/rootfs/etc/keystone/keystone.conf.j2";
const KEYSTONE_UWSGI: &str = "overlays/zed/keystone/rootfs/etc/keystone/kiln-uwsgi.ini.j2";
const GLANCE: &str = "overlays/zed/glance/rootfs/etc/glance/glance-api.conf.j2";
const GLANCE_DOOR: &str = "overlays/zed/glance/rootfs/etc/haproxy/conf.d/glance.cfg.j2";
const KEYSTONE_DOOR: &str = "overlays/zed/keystone/rootfs/etc/haproxy/conf.d/keystone.cfg.j2";
const PLACEMENT: &str = "overlays/zed/placement/rootfs/etc/placement/placement.conf.j2";
const NOVA: &str = "overlays/zed/nova-controller/rootfs/etc/nova/nova.conf.j2";
const NOVA_COMPUTE: &str = "overlays/zed/nova-compute/rootfs/etc/nova/nova.conf.j2";
const NEUTRON: &str = "overlays/zed/neutron-controller/rootfs/etc/neutron/neutron.conf.j2";
const L3: &str = "overlays/zed/neutron-controller/rootfs/etc/neutron/l3_agent.ini";
const DHCP: &str = "overlays/zed/neutron-controller/rootfs/etc/neutron/dhcp_agent.ini";
const BRIDGES: &str = "overlays/zed/linuxbridge/rootfs/etc/neutron/plugins/ml2/linuxbridge_agent.ini.j2";
const DASHBOARD: &str = "overlays/zed/horizon/rootfs/etc/openstack-dashboard/local_settings.d/_9000_kiln.py.j2";
const DASHBOARD_HEALTH: &str = "overlays/zed/horizon/rootfs/usr/lib/kiln/systems/horizon/health";
const COROSYNC_MITAKA: &str = "overlays/mitaka/pacemaker/rootfs/etc/corosync/corosync.conf.j2";
const KEYSTONE_MITAKA: &str = "overlays/mitaka/keystone/rootfs/etc/httpd/conf.d/wsgi-keystone.conf.j2";
const NOVA_MITAKA: &str = "overlays/mitaka/nova-controller/rootfs/etc/nova/nova.conf.j2";
const L3_MITAKA: &str = "overlays/mitaka/neutron-controller/rootfs/etc/neutron/l3_agent.ini";
const MEMCACHED_MITAKA: &str = "overlays/mitaka/memcached/rootfs/etc/sysconfig/memcached.j2";

const ROWS: &[Row] = &[
    // Options.
    (
        "an option that nobody registers",
        &[(KEYSTONE, Instead("expiration = 3600", "expires = 3600"))],
        &[(KEYSTONE, "expires = ", "token.expires: keystone has no such option")],
    ),
    (
        "a section that nobody registers",
        &[(GLANCE, Instead("[paste_deploy]", "[paste]"))],
        &[(GLANCE, "[paste]", "[paste]: glance has no such section")],
    ),
    (
        "an option in another's section",
        &[(NOVA, Instead("[conductor]", "[conductor]\nnovncproxy_port = 6081"))],
        &[(
            NOVA,
            "novncproxy_port = 6081",
            "conductor.novncproxy_port: nova has no such option; there is one in [vnc]",
        )],
    ),
    (
        "an option that will go",
        &[(NOVA_COMPUTE, Instead("endpoint_override", "api_servers"))],
        &[(NOVA_COMPUTE, "api_servers", "glance.api_servers: is deprecated: nova will drop it")],
    ),
    (
        "an old name",
        &[(NOVA_COMPUTE, Instead("state_path", "novncproxy_host = 192.0.2.1\nstate_path"))],
        &[(
            NOVA_COMPUTE,
            "novncproxy_host",
            "DEFAULT.novncproxy_host: is an old name: nova calls it vnc.novncproxy_host",
        )],
    ),
    (
        "another agent's option",
        &[(L3, Instead("agent_mode = legacy", "agent_mode = legacy\nnova_metadata_host = 192.0.2.10"))],
        &[(
            L3,
            "nova_metadata_host",
            "DEFAULT.nova_metadata_host: neutron-l3 has no such option; neutron-metadata has",
        )],
    ),
    (
        "an agent's option where only the server looks",
        &[(NEUTRON, Instead("l3_ha = true", "l3_ha = true\nagent_mode = legacy"))],
        &[(NEUTRON, "agent_mode", "DEFAULT.agent_mode: neutron has no such option; neutron-l3 has")],
    ),
    (
        "the server's section in an agent's file",
        &[(BRIDGES, Instead("[securitygroup]", "[ml2]\nmechanism_drivers = linuxbridge\n[securitygroup]"))],
        &[(BRIDGES, "[ml2]", "[ml2]: neutron-linuxbridge has no such section")],
    ),
    (
        "a name that only later releases have",
        &[(
            "overlays/mitaka/galera/rootfs/etc/nova/nova-planted.conf",
            New(
                "[DEFAULT]\nmy_ip = 192.0.2.1\n\n[keystone_authtoken]\nwww_authenticate_uri = http://192.0.2.10:5000\n",
            ),
        )],
        &[(
            "overlays/mitaka/galera/rootfs/etc/nova/nova-planted.conf",
            "www_authenticate_uri",
            "keystone_authtoken.www_authenticate_uri: nova has no such option",
        )],
    ),
    (
        "a name that mitaka gave up",
        &[(
            "overlays/mitaka/rabbitmq/rootfs/etc/neutron/neutron-planted.conf",
            New("[DEFAULT]\nlock_path = /run/neutron\n"),
        )],
        &[(
            "overlays/mitaka/rabbitmq/rootfs/etc/neutron/neutron-planted.conf",
            "lock_path",
            "DEFAULT.lock_path: is an old name: neutron calls it oslo_concurrency.lock_path",
        )],
    ),
    // Placeholders.
    (
        "a placeholder",
        &[(KEYSTONE, Instead("public_endpoint = http://{{ cluster.vip }}", "public_endpoint = http://{VIP}"))],
        &[(KEYSTONE, "public_endpoint", "{VIP}: is left in the result")],
    ),
    (
        "a password that somebody meant to change",
        &[(PLACEMENT, Instead("password = {{ secrets[\"placement.password\"] }}", "password = CHANGEME"))],
        &[(PLACEMENT, "CHANGEME", "CHANGEME: is left in the result")],
    ),
    (
        "another tool's placeholder",
        &[(COROSYNC_MITAKA, Instead("{{ cluster.name }}", "%CLUSTER_NAME%"))],
        &[(COROSYNC_MITAKA, "cluster_name", "%CLUSTER_NAME%: is left in the result")],
    ),
    (
        "a template without its ending",
        &[(DHCP, Instead("enable_isolated_metadata = true", "dnsmasq_dns_servers = {{ node.address }}"))],
        &[(DHCP, "dnsmasq_dns_servers", "{{: is left in the result")],
    ),
    (
        "a value that does not exist",
        &[(DASHBOARD, Instead("\"{{ node.address }}\"]", "\"{{ node.adress }}\"]"))],
        &[(DASHBOARD, "node.adress", "template: a value is undefined")],
    ),
    // Ports that two take.
    (
        "a port of two systems",
        &[("recipes/zed/systems/placement.toml", Instead("ports = [8778]", "ports = [8778, 9292]"))],
        &[
            ("recipes/zed/systems/placement.toml", "ports", "ports[1]: port 9292 is already glance's"),
            (
                "recipes/zed/systems/placement.toml",
                "ports",
                "ports[1]: /etc/haproxy/conf.d/glance.cfg binds 192.0.2.10:9292",
            ),
        ],
    ),
    (
        "a server told to take another's port",
        &[(GLANCE, Instead("bind_port = 9292", "bind_port = 9696"))],
        &[
            (GLANCE, "bind_port", "bind_port: takes port 9696, which is neutron-controller's"),
            (
                "recipes/zed/systems/glance.toml",
                "ports",
                "ports[0]: /etc/haproxy/conf.d/glance.cfg binds 192.0.2.10:9292",
            ),
        ],
    ),
    (
        "two servers of one system at one port",
        &[(
            NOVA,
            Instead(
                "metadata_listen = {{ node.address }}",
                "metadata_listen = {{ node.address }}\nmetadata_listen_port = 8774",
            ),
        )],
        &[
            (
                NOVA,
                "metadata_listen_port",
                "metadata_listen_port: port 8774 is taken already, by osapi_compute_listen in line",
            ),
            (
                "recipes/zed/systems/nova-controller.toml",
                "ports",
                "ports[2]: /etc/haproxy/conf.d/nova-controller.cfg binds",
            ),
        ],
    ),
    (
        "a port of the VIP bound twice",
        &[(GLANCE_DOOR, Instead("bind {{ cluster.vip }}:9292", "bind {{ cluster.vip }}:5000"))],
        &[(
            KEYSTONE_DOOR,
            "bind",
            "bind: 192.0.2.10:5000 is bound already, by 192.0.2.10:5000 in line 2 of overlays/zed/glance/",
        )],
    ),
    (
        "a balancer at another's port",
        &[(GLANCE_DOOR, Instead("bind {{ cluster.vip }}:9292", "bind {{ node.address }}:24008"))],
        &[(GLANCE_DOOR, "bind", "bind: 192.0.2.11:24008 takes port 24008, which is storage's")],
    ),
    // APIs that are not bound to the node's address.
    (
        "an API on all addresses",
        &[(KEYSTONE_UWSGI, Instead("http-socket = {{ node.address }}:5000", "http-socket = :5000"))],
        &[
            (KEYSTONE_UWSGI, "http-socket", "http-socket: listens on all addresses, also on the VIP"),
            (
                "recipes/zed/systems/keystone.toml",
                "ports",
                "ports[0]: /etc/haproxy/conf.d/keystone.cfg binds 192.0.2.10:5000",
            ),
        ],
    ),
    (
        "an API without an address, beside others that have one",
        &[(NOVA, Instead("metadata_listen = {{ node.address }}\n", ""))],
        &[(
            "recipes/zed/systems/nova-controller.toml",
            "ports",
            "ports[2]: /etc/haproxy/conf.d/nova-controller.cfg binds 192.0.2.10:8775",
        )],
    ),
    (
        "an API at the wildcard",
        &[(NEUTRON, Instead("bind_host = {{ node.address }}", "bind_host = 0.0.0.0"))],
        &[
            (NEUTRON, "bind_host", "bind_host: listens on all addresses, also on the VIP"),
            (
                "recipes/zed/systems/neutron-controller.toml",
                "ports",
                "ports[0]: /etc/haproxy/conf.d/neutron-controller.cfg binds",
            ),
        ],
    ),
    (
        "mitaka's cache on all addresses",
        &[(MEMCACHED_MITAKA, Instead("{{ node.address }}", "0.0.0.0"))],
        &[(MEMCACHED_MITAKA, "OPTIONS", "-l: listens on all addresses")],
    ),
    // Secrets.
    (
        "another system's secret in a template",
        &[(GLANCE, Instead("{{ secrets[\"glance.password\"] }}", "{{ secrets[\"horizon.secret\"] }}"))],
        &[(GLANCE, "horizon.secret", "horizon.secret: glance does not name it in its secrets; horizon does")],
    ),
    (
        "a controller's secret in a compute's script",
        &[(
            "overlays/common/neutron-compute/rootfs/usr/lib/kiln/systems/neutron-compute/health",
            Instead("set -u", "set -u\nadmin=$(<\"$KILN_SECRETS/keystone.password\")"),
        )],
        &[(
            "overlays/common/neutron-compute/rootfs/usr/lib/kiln/systems/neutron-compute/health",
            "keystone.password",
            "keystone.password: neutron-compute does not name it in its secrets",
        )],
    ),
    (
        "a secret that a compute gets and only a controller would read",
        &[
            ("recipes/zed/systems/nova-compute.toml", Instead("secrets = [", "secrets = [\"database.password\", ")),
            (
                NOVA_COMPUTE,
                Instead(
                    "[glance]",
                    "{% if node.role == \"controller\" %}\n[database]\nconnection = {{ secrets[\"database.password\"] }}\n{% endif %}\n[glance]",
                ),
            ),
        ],
        &[(
            "recipes/zed/systems/nova-compute.toml",
            "secrets",
            "secrets[0]: role compute gets \"database.password\", but no",
        )],
    ),
    (
        "a secret that nobody reads",
        &[("recipes/zed/systems/memcached.toml", Instead("ports", "secrets = [\"horizon.secret\"]\nports"))],
        &[("recipes/zed/systems/memcached.toml", "secrets", "secrets[0]: \"horizon.secret\" is read by no template")],
    ),
    (
        "a certificate that nobody reads",
        &[("recipes/zed/systems/libvirt.toml", Instead("\"qemu\"]", "\"qemu\", \"spice\"]"))],
        &[(
            "recipes/zed/systems/libvirt.toml",
            "certificates",
            "certificates[2]: \"spice.pem\" is read by no template",
        )],
    ),
    (
        "a secret that everybody can read",
        &[("overlays/zed/keystone/overlay.toml", Instead("0640", "0644"))],
        &[(KEYSTONE, "connection", "database.password: the result can be read by everybody (mode 0644)")],
    ),
    // Files of two overlays.
    (
        "a file that two overlays bring",
        &[("overlays/zed/nova-compute/rootfs/etc/neutron/neutron.conf.j2", New("[DEFAULT]\n"))],
        &[(
            "overlays/zed/nova-compute/rootfs/etc/neutron/neutron.conf.j2",
            "",
            ": /etc/neutron/neutron.conf.j2 comes from overlay neutron-compute too",
        )],
    ),
    (
        "a template whose result another overlay brings",
        &[("overlays/zed/horizon/rootfs/etc/memcached.conf", New("-m 64\n"))],
        &[(
            "overlays/zed/memcached/rootfs/etc/memcached.conf.j2",
            "",
            ": its result /etc/memcached.conf is also overlays/zed/horizon/rootfs/etc/memcached.conf",
        )],
    ),
    // Circles.
    (
        "systems that wait for each other",
        &[
            (
                "recipes/zed/systems/memcached.toml",
                Instead("after = [\"environment\"]", "after = [\"environment\", \"pacemaker\"]"),
            ),
            (
                "recipes/zed/systems/pacemaker.toml",
                Instead("after = [\"environment\", ", "after = [\"memcached\", \"environment\", "),
            ),
        ],
        &[
            (
                "recipes/zed/systems/memcached.toml",
                "after",
                "after[1]: systems wait for each other in a circle: memcached, pacemaker",
            ),
            (
                "recipes/zed/systems/pacemaker.toml",
                "after",
                "after[0]: systems wait for each other in a circle: memcached, pacemaker",
            ),
        ],
    ),
    (
        "a compute's systems that wait for each other",
        &[("recipes/zed/systems/libvirt.toml", Instead("after = [\"environment\"]", "after = [\"nova-compute\"]"))],
        &[
            (
                "recipes/zed/systems/libvirt.toml",
                "after",
                "after[0]: systems wait for each other in a circle: libvirt, nova-compute",
            ),
            (
                "recipes/zed/systems/nova-compute.toml",
                "after",
                "after[0]: systems wait for each other in a circle: libvirt, nova-compute",
            ),
        ],
    ),
    // Mitaka's OpenStack.
    (
        "an option of a later release",
        &[(NOVA_MITAKA, Instead("vncserver_listen", "server_listen"))],
        &[(NOVA_MITAKA, "server_listen", "vnc.server_listen: nova has no such option")],
    ),
    (
        "an option in a file that the agent does not read",
        &[(L3_MITAKA, Instead("agent_mode = legacy", "l3_ha = true"))],
        &[(L3_MITAKA, "l3_ha", "DEFAULT.l3_ha: ")],
    ),
    (
        "a door at all addresses",
        &[(KEYSTONE_MITAKA, Instead("Listen {{ node.address }}:{{ port }}", "Listen {{ port }}"))],
        &[
            (
                KEYSTONE_MITAKA,
                "Listen ",
                "Listen: listens on all addresses, also on the VIP, where /etc/haproxy/conf.d/keystone.cfg binds 192.0.2.10:5000",
            ),
            (
                KEYSTONE_MITAKA,
                "Listen ",
                "Listen: listens on all addresses, also on the VIP, where /etc/haproxy/conf.d/keystone.cfg binds 192.0.2.10:35357",
            ),
        ],
    ),
    // Scripts.
    (
        "a cluster step without its check",
        &[("overlays/common/glance/rootfs/usr/lib/kiln/systems/glance/catalogue.check", Gone)],
        &[
            (
                "recipes/mitaka/systems/glance.toml",
                "name = \"catalogue\"",
                "step[2].name: its script /usr/lib/kiln/systems/glance/catalogue.check is not in its overlay",
            ),
            (
                "recipes/zed/systems/glance.toml",
                "name = \"catalogue\"",
                "step[2].name: its script /usr/lib/kiln/systems/glance/catalogue.check is not in its overlay",
            ),
        ],
    ),
    (
        "a script that cannot be run",
        &[(DASHBOARD_HEALTH, Mode(0o644))],
        &[
            (DASHBOARD_HEALTH, "#!/bin/bash", "#!: begins with #! but is not executable"),
            (
                "recipes/zed/systems/horizon.toml",
                "name = \"horizon\"",
                "health: its script /usr/lib/kiln/systems/horizon/health is not executable",
            ),
        ],
    ),
];

/// The same, for shellcheck.
const SHELL: &[Row] = &[
    (
        "a folder that may not be there",
        &[(DASHBOARD_HEALTH, Instead("set -u", "set -u\ncd \"$1\""))],
        &[(DASHBOARD_HEALTH, "cd \"$1\"", "SC2164: ")],
    ),
    (
        "a list that is read as one word",
        &[(
            "overlays/common/keystone/rootfs/usr/lib/kiln/systems/keystone/keys",
            Instead("for number in 0 1", "for number in \"0 1\""),
        )],
        &[("overlays/common/keystone/rootfs/usr/lib/kiln/systems/keystone/keys", "for number in", "SC2043: ")],
    ),
];

/// With the lock at hand.
const UNITS: &[Row] = &[
    (
        "a unit that no package has",
        &[("recipes/zed/systems/glance.toml", Instead("glance-api.service", "glance-apid.service"))],
        &[(
            "recipes/zed/systems/glance.toml",
            "units",
            "units[0]: no overlay and no package of the lock brings glance-apid.service",
        )],
    ),
    (
        "a socket that no package has",
        &[("recipes/zed/systems/libvirt.toml", Instead("virtlogd.socket", "virtlog.socket"))],
        &[(
            "recipes/zed/systems/libvirt.toml",
            "units",
            "units[0]: no overlay and no package of the lock brings virtlog.socket",
        )],
    ),
    (
        "a drop-in for nobody",
        &[("overlays/zed/keystone/rootfs/usr/lib/systemd/system/keystoned.service.d/kiln.conf", New("[Service]\n"))],
        &[(
            "overlays/zed/keystone/rootfs/usr/lib/systemd/system/keystoned.service.d/kiln.conf",
            "",
            "drop-in: no overlay and no package of the lock brings keystoned.service",
        )],
    ),
];

/// A copy of what is shipped.
fn shipped() -> Place {
    let place = Place { dir: tempfile::tempdir().unwrap(), shellcheck: false };
    let mut command = Command::new("cp");
    command.args(["-a", "recipes", "overlays"]).arg(place.dir.path()).current_dir(top());
    assert!(command.status().unwrap().success());
    // Whoever has baked here has locks.
    for entry in std::fs::read_dir(place.dir.path().join("recipes/zed")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "lock") {
            std::fs::remove_file(path).unwrap();
        }
    }
    place
}

impl Place {
    /// `FILE:LINE: KEY: MESSAGE` as far as a row tells it.
    fn told(&self, (file, at, rest): &Told) -> String {
        let text = self.read(file);
        let line = if at.is_empty() { Some(0) } else { text.lines().position(|l| l.contains(at)).map(|i| i + 1) };
        format!("{file}:{}: {rest}", line.unwrap_or_else(|| panic!("{file} has no {at:?}")))
    }

    /// `Err`: what is told instead.
    fn is_told(&self, (label, mistakes, told): &Row, args: &[&str]) -> Result<(), String> {
        for (path, mistake) in *mistakes {
            self.plant(path, mistake);
        }
        let wanted: Vec<String> = told.iter().map(|t| self.told(t)).collect();
        let (status, problems, _) = self.check(args);
        let all = problems.iter().all(|p| wanted.iter().any(|w| p.starts_with(w)));
        let each = wanted.iter().all(|w| problems.iter().any(|p| p.starts_with(w)));
        let same = status == 4 && all && each;
        if same { Ok(()) } else { Err(format!("{label}: {problems:#?}\nwanted {wanted:#?}\n")) }
    }
}

const BOTH: [&str; 2] = ["recipes/mitaka", "recipes/zed"];

#[test]
fn what_is_shipped_tells_each_planted_mistake_and_nothing_else() {
    let (status, problems, _) = shipped().check(&BOTH);
    assert_eq!((status, problems), (0, vec![]), "as it is shipped");
    assert!(ROWS.len() >= 20);
    let wrong: String = ROWS.iter().filter_map(|row| shipped().is_told(row, &BOTH).err()).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn shipped_scripts_with_a_mistake_do_not_pass_shellcheck() {
    if !super::shellcheck_is_there() {
        return;
    }
    for row in SHELL {
        let place = Place { shellcheck: true, ..shipped() };
        place.is_told(row, &BOTH).unwrap();
    }
}

/// Writes locks of zed's roles whose one package brings every unit that is shipped without an overlay's.
fn lock(place: &Place) {
    let args = RecipesArgs { recipes: place.dir.path().join("recipes"), overlays: None };
    let recipes: Vec<_> = ["infra", "controller", "compute"]
        .map(|role| resolve(&format!("zed/{role}"), &args).unwrap().recipe().unwrap())
        .into();
    let mut units: Vec<String> = recipes.iter().flat_map(|r| &r.systems).flat_map(|s| s.units.clone()).collect();
    units.sort();
    units.dedup();
    let paths: Vec<String> = units.iter().map(|unit| format!("./lib/systemd/system/{unit}")).collect();
    let bytes = package(&paths.iter().map(String::as_str).collect::<Vec<_>>());
    let sha256 = hex_digest(&bytes);
    let file = kiln::repo::fetch::place(&place.dir.path().join("cache"), &sha256);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, &bytes).unwrap();
    for recipe in &recipes {
        let package = LockedPackage {
            name: "units".into(),
            version: "1".into(),
            arch: "all".into(),
            sha256: sha256.clone(),
            size: bytes.len() as u64,
            path: "pool/units.deb".into(),
            repository: "debian".into(),
            stage: "base".into(),
        };
        let lock = Lock {
            version: 1,
            release: "zed".into(),
            role: recipe.role.clone(),
            epoch: 1,
            request: request(recipe),
            repositories: vec![LockedRepository { id: "debian".into(), metadata: vec![hex_digest(b"")] }],
            packages: vec![package],
        };
        place.write(&format!("recipes/zed/{}.lock", recipe.role), &lock.to_text());
    }
}

#[test]
fn shipped_units_are_held_against_the_lock() {
    let roles = ["zed/infra", "zed/controller", "zed/compute"];
    let place = Place { shellcheck: super::shellcheck_is_there(), ..shipped() };
    let (status, problems, unchecked) = place.check(&roles);
    assert_eq!((status, problems), (0, vec![]));
    assert_eq!(unchecked.iter().filter(|u| u.contains("there is no lock; next: kiln lock zed/")).count(), roles.len());
    assert_eq!(place.check(&[&roles[..], &["--strict"]].concat()).0, 4, "--strict");
    lock(&place);
    if place.shellcheck {
        assert_eq!(
            place.check(&[&roles[..], &["--strict"]].concat()),
            (0, vec![], vec![]),
            "with locks all is checked"
        );
    }
    for row in UNITS {
        let place = shipped();
        lock(&place);
        place.is_told(row, &roles).unwrap();
    }
}

#[test]
fn a_file_with_options_that_no_list_has_is_not_checked() {
    let place = shipped();
    place.write("overlays/zed/glance/rootfs/etc/glance/more.conf", "[DEFAULT]\nworker = 2\n");
    let (status, problems, unchecked) = place.check(&["zed/controller"]);
    assert_eq!((status, problems), (0, vec![]));
    let wanted =
        "overlays/zed/glance/rootfs/etc/glance/more.conf:0: : its options: files.toml does not say whose they are";
    assert!(unchecked.iter().any(|u| u.starts_with(wanted)), "{unchecked:#?}");
}
