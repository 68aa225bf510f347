use super::*;
use proptest::prelude::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@desk";
const SITE: &str = r#"[cluster]
name = "prod"
release = "zed"
vip = "192.168.10.10"
unknown = "park"
[access]
ssh_keys = ["KEY"]
[role.infra]
image = "zed/infra:1"
[role.compute]
[network.management]
subnet = "192.168.10.0/24"
gateway = "192.168.10.1"
dns = ["192.168.10.1"]
ntp = ["ntp.example"]
mtu = 1500
pool = ["192.168.10.200", "192.168.10.250"]
[network.external]
physical = "provider"
[[node]]
name = "n2"
role = "infra"
mac = ["52:54:00:00:00:02", "52:54:00:00:00:12"]
uuid = "4c4c4544-0039-4a10-8052-b4c04f4d3332"
management = { address = "192.168.10.12" }
external = { mac = "52:54:00:00:01:02" }
state = { disk = { serial = "S1", size = "32GiB" } }
cmdline = ["quiet"]
[[node]]
name = "n1"
role = "infra"
mac = ["52:54:00:00:00:01"]
uuid = "ffffffff-ffff-ffff-ffff-ffffffffffff"
management = { address = "192.168.10.11" }
state = { volatile = true }
"#;

fn text() -> String {
    SITE.replace("KEY", KEY)
}

#[test]
fn a_site_is_read() {
    let site = parse(&text(), "site.toml").unwrap();
    assert_eq!(site.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["n1", "n2"], "sorted");
    assert_eq!(site.ssh_keys, [KEY]);
    assert_eq!(site.role_images, BTreeMap::from([("infra".to_string(), "zed/infra:1".to_string())]));
    assert_eq!(site.cluster.vip, Some(Ipv4Addr::new(192, 168, 10, 10)));
    assert_eq!(site.management.pool.map(|p| p.1), Some(Ipv4Addr::new(192, 168, 10, 250)));
    assert_eq!(site.networks["external"].physical.as_deref(), Some("provider"));
    let (n1, n2) = (&site.nodes[0], &site.nodes[1]);
    assert_eq!((n1.uuid, &n1.state), (None, &StateDisk::Volatile), "a junk UUID counts as absent");
    assert_eq!(n2.macs.len(), 2);
    let disk = DiskMatch { serial: Some("S1".into()), wwn: None, size: Some(32 << 30) };
    assert_eq!(n2.state, StateDisk::Disk(disk));
    let json = serde_json::to_string(&site).unwrap();
    assert_eq!(serde_json::from_str::<Site>(&json).unwrap(), site, "the ledger keeps it as JSON");
}

#[test]
fn a_view_shows_a_node_its_site() {
    let site = parse(&text(), "site.toml").unwrap();
    let view = crate::site::view::view(&site, "n2").unwrap();
    assert_eq!((view.node.index, view.node.prefix, view.node.mac.as_str()), (2, 24, "52:54:00:00:00:02"));
    assert_eq!(view.members["infra"].iter().map(|m| m.index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(view.network.keys().collect::<Vec<_>>(), ["external", "management"]);
    assert_eq!(crate::site::view::view(&site, "n3"), None);
}

#[test]
fn what_does_not_fit_is_refused() {
    for (label, from, to, want) in [
        ("no cluster", "[cluster]\n", "[custer]\n", "site.toml: [cluster] is missing"),
        ("cluster name", "\"prod\"", "\"Prod 1\"", "site.toml:2: cluster.name: \"Prod 1\" is not a name"),
        (
            "unknown word",
            "\"park\"",
            "\"boot\"",
            "site.toml:5: cluster.unknown: \"boot\" is not one of \"ignore\", \"local\", \"park\"",
        ),
        (
            "vip outside",
            "vip = \"192.168.10.10\"",
            "vip = \"192.168.11.10\"",
            "site.toml:4: cluster.vip: 192.168.11.10 is not a host's address in 192.168.10.0/24",
        ),
        (
            "vip of a node",
            "vip = \"192.168.10.10\"",
            "vip = \"192.168.10.12\"",
            "site.toml:25: node[0].management.address: 192.168.10.12 already belongs to the cluster's VIP",
        ),
        (
            "vip in the pool",
            "vip = \"192.168.10.10\"",
            "vip = \"192.168.10.210\"",
            "cluster.vip: 192.168.10.210 lies in the pool",
        ),
        (
            "vip is the gateway",
            "vip = \"192.168.10.10\"",
            "vip = \"192.168.10.1\"",
            "cluster.vip: 192.168.10.1 is the gateway's",
        ),
        ("ssh key cut", "AAAAIAAA", "AAAA", "site.toml:7: access.ssh_keys[0]: "),
        ("ssh key type", "[\"ssh-ed25519", "[\"ssh-dss", "unknown type"),
        ("ssh options", "[\"ssh-ed25519", "[\"no-pty ssh-ed25519", "unknown type"),
        ("ssh two lines", "me@desk", "me\\nssh-ed25519 x", "control character"),
        ("image", "zed/infra:1", "zed/in fra", "role.infra.image: "),
        (
            "subnet",
            "192.168.10.0/24",
            "192.168.10.1/24",
            "network.management.subnet: \"192.168.10.1/24\" has host bits set",
        ),
        (
            "gateway outside",
            "gateway = \"192.168.10.1\"",
            "gateway = \"192.168.9.1\"",
            "network.management.gateway: 192.168.9.1 is not a host's",
        ),
        (
            "dns",
            "dns = [\"192.168.10.1\"]",
            "dns = [\"resolver\"]",
            "network.management.dns[0]: \"resolver\" is not an IPv4 address",
        ),
        ("ntp", "ntp.example", "ntp example", "network.management.ntp[0]: "),
        ("mtu", "1500", "70000", "network.management.mtu: must be from 576 to 9216"),
        ("vlan", "mtu = 1500", "vlan = 12", "site.toml:16: network.management.vlan: not built yet"),
        ("bond", "mtu = 1500", "bond = [\"a\"]", "network.management.bond: not built yet"),
        (
            "third network",
            "[network.external]",
            "[network.storage]",
            "network.storage: networks other than management and external are not built yet",
        ),
        (
            "pool backwards",
            "\"192.168.10.200\", \"192.168.10.250\"",
            "\"192.168.10.250\", \"192.168.10.200\"",
            "comes after its last",
        ),
        ("pool of one", "\"192.168.10.200\", \"192.168.10.250\"", "\"192.168.10.200\"", "pool must be [FIRST, LAST]"),
        ("pool outside", "192.168.10.250", "192.168.11.250", "pool[1]: 192.168.11.250 is not a host's"),
        (
            "pool over a node",
            "192.168.10.200",
            "192.168.10.12",
            "node[0].management.address: 192.168.10.12 lies in the pool",
        ),
        (
            "pool over the gateway",
            "pool = [\"192.168.10.200\"",
            "pool = [\"192.168.10.1\"",
            "the pool holds the gateway",
        ),
        (
            "same name",
            "name = \"n1\"",
            "name = \"n2\"",
            "site.toml:30: node[1].name: n2 already belongs to another node",
        ),
        ("host name", "name = \"n1\"", "name = \"n_1\"", "node[1].name: "),
        (
            "unknown role",
            "name = \"n1\"\nrole = \"infra\"",
            "name = \"n1\"\nrole = \"storage\"",
            "site.toml:31: node[1].role: the site has no [role.storage]",
        ),
        (
            "same mac",
            "mac = [\"52:54:00:00:00:01\"]",
            "mac = [\"52:54:00:00:00:12\"]",
            "site.toml:32: node[1].mac[0]: 52:54:00:00:00:12 already belongs to n2",
        ),
        (
            "mac of a card twice",
            "{ mac = \"52:54:00:00:01:02\" }",
            "{ mac = \"52:54:00:00:00:02\" }",
            "node[0].external.mac: 52:54:00:00:00:02 already belongs to n2",
        ),
        ("group mac", "52:54:00:00:00:01", "01:00:5e:00:00:01", "node[1].mac[0]: \"01:00:5e:00:00:01\" is a group"),
        ("no mac", "mac = [\"52:54:00:00:00:01\"]", "mac = []", "site.toml:29: node[1]: mac is missing"),
        (
            "same uuid",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "4c4c4544-0039-4a10-8052-b4c04f4d3332",
            "node[1].uuid: 4c4c4544-0039-4a10-8052-b4c04f4d3332 already belongs to n2",
        ),
        ("bad uuid", "ffffffff-ffff-ffff-ffff-ffffffffffff", "fff", "node[1].uuid: \"fff\" is not a UUID"),
        (
            "same address",
            "192.168.10.11",
            "192.168.10.12",
            "node[1].management.address: 192.168.10.12 already belongs to n2",
        ),
        ("broadcast", "192.168.10.11", "192.168.10.255", "192.168.10.255 is not a host's"),
        ("no address", "management = { address = \"192.168.10.11\" }\n", "", "node[1]: [management] is missing"),
        ("empty disk", "{ serial = \"S1\", size = \"32GiB\" }", "{}", "node[0].state.disk: says nothing of the disk"),
        (
            "both states",
            "{ volatile = true }",
            "{ volatile = true, disk = { serial = \"x\" } }",
            "node[1].state.volatile: a node's state is either",
        ),
        ("size", "32GiB", "32 gigs", "node[0].state.disk.size: \"32 gigs\" is not a size"),
        ("power", "cmdline = [\"quiet\"]", "power = { kind = \"redfish\" }", "node[0].power: not built yet"),
        ("kiln's argument", "\"quiet\"", "\"kiln.pin=0\"", "node[0].cmdline[0]: \"kiln.pin=0\" is kiln's own"),
        ("unknown key", "cmdline =", "cmd =", "site.toml:28: node[0].cmd: unknown key; known here: "),
        ("wrong type", "[\"quiet\"]", "\"quiet\"", "node[0].cmdline: expected an array, found a string"),
    ] {
        assert!(text().contains(from), "{label}: the sample has no {from:?}");
        let problems = parse(&text().replacen(from, to, 1), "site.toml").expect_err(label).to_string();
        assert!(problems.contains(want), "{label}: wanted {want:?} in\n{problems}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let broken = text().replace("1500", "1").replace("\"park\"", "\"x\"").replace("52:54:00:00:00:01", "zz");
    let problems = parse(&broken, "site.toml").unwrap_err();
    let lines: Vec<usize> = problems.0.iter().map(|p| p.line).collect();
    assert_eq!(lines, [5, 16, 29, 32], "{problems}");
}

#[test]
fn sizes_are_read_with_their_unit() {
    for (text, want) in [
        ("1", Some(1)),
        ("32GiB", Some(32 << 30)),
        ("2 TiB", Some(2 << 40)),
        ("960GB", Some(960_000_000_000)),
        ("0", None),
        ("0GiB", None),
        ("", None),
        ("GiB", None),
        ("-1", None),
        ("1.5GiB", None),
        ("32gb", None),
        ("99999999999TiB", None),
    ] {
        assert_eq!(bytes(text), want, "{text:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), at in 0usize..1000, junk in "[\\[\\]{}\"=a-z0-9\n.,]{0,12}") {
        let _ = parse(&text, "s");
        let mut cut = SITE.to_string();
        cut.insert_str(at.min(cut.len()), &junk);
        let _ = parse(&cut, "s");
        let _ = ssh_key(&text);
        let _ = bytes(&text);
    }
}
