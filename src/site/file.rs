//! `site.toml` -> [`Site`]: every problem at once with its line. What a formed cluster cannot take
//! any more is the ledger's to refuse, what a role needs of a node is in [`super::check`].
//!
//! ```toml
//! [cluster]                            # name, release, vip, unknown = "ignore" | "local" | "park"
//! [access]                             # ssh_keys of root on every node
//! [role.ROLE]                          # image = "release/role[:tag]" or a digest
//! [network.management]                 # subnet, gateway, dns, ntp, mtu, pool = [FIRST, LAST]
//! [network.external]                   # subnet, gateway, dns, ntp, mtu, physical
//! [[node]]                             # name, role, mac = [...], uuid, management = { address },
//!                                      # external = { mac }, state, cmdline
//! ```
//! `state = { disk = { serial, wwn, size } }` (each given field must match) or `{ volatile = true }`.
//! A size is bytes or such as `"32GiB"` (powers of 1024) or `"960GB"` (powers of 1000).

use super::{Cluster, DiskMatch, Mac, Network, Node, Site, StateDisk, Subnet, Unknown, Uuid};
use crate::recipe::name;
use crate::recipe::problem::Problems;
use crate::recipe::reader::{self, At, Table, refuse_twice};
use base64::Engine as _;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// More nodes than one server is meant to boot.
pub const NODES_MAX: usize = 4096;

/// Reads a site; `file` is how problems name it.
pub fn parse(text: &str, file: &str) -> Result<Site, Problems> {
    reader::read(text, file, read_site)
}

fn read_site(table: &Table<'_>) -> Option<Site> {
    let cluster = required_table(table, "cluster").map(|t| read_cluster(&t));
    let ssh_keys = table.table("access").map(|t| t.list("ssh_keys", ssh_key)).unwrap_or_default();
    let roles = table.table("role").map(|t| read_roles(&t)).unwrap_or_default();
    let networks = required_table(table, "network").map(|t| Networks::read(&t)).unwrap_or_default();
    let tables = table.tables("node");
    if tables.len() > NODES_MAX {
        table.problem(format!("{} nodes are more than {NODES_MAX}", tables.len()));
    }
    let mut taken = Taken::new(&cluster, &networks, table);
    let mut nodes: Vec<Node> = tables.iter().filter_map(|t| read_node(t, &roles, &networks, &mut taken)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let (cluster, vip) = cluster?;
    Some(Site {
        cluster: Cluster { vip: vip.map(|v| v.value), ..cluster? },
        ssh_keys: ssh_keys.into_iter().map(|k| k.value).collect(),
        role_images: roles.into_iter().filter_map(|(role, image)| Some((role, image?))).collect(),
        management: networks.management?,
        networks: networks.others,
        nodes,
    })
}

fn required_table<'a>(table: &Table<'a>, key: &'static str) -> Option<Table<'a>> {
    if !table.has(key) {
        table.problem(format!("[{key}] is missing"));
    }
    table.table(key)
}

fn read_cluster(table: &Table<'_>) -> (Option<Cluster>, Option<At<Ipv4Addr>>) {
    let name = table.required("name", name::word);
    let release = table.required("release", name::word);
    let vip = table.parsed("vip", address);
    let unknown =
        table.word("unknown", &[("ignore", Unknown::Ignore), ("local", Unknown::Local), ("park", Unknown::Park)]);
    let cluster = name.zip(release).map(|(name, release)| Cluster {
        name: name.value,
        release: release.value,
        vip: None,
        unknown: unknown.map(|u| u.value),
    });
    (cluster, vip)
}

/// Role -> image, as written; a role may wait for its image.
fn read_roles(table: &Table<'_>) -> BTreeMap<String, Option<String>> {
    let mut roles = BTreeMap::new();
    for (role, entry) in table.named_tables() {
        if let Err(message) = name::word(&role.value) {
            entry.problem(message);
        }
        let image = entry.parsed("image", image_reference);
        roles.insert(role.value, image.map(|i| i.value));
    }
    roles
}

/// `release/role[:tag]`, or an id or its prefix. What it names is the store's to say.
fn image_reference(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:/".contains(&b);
    if !text.is_empty() && text.len() <= 255 && text.bytes().all(good) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is not an image (release/role, release/role:tag, or an id)"))
}

#[derive(Default)]
struct Networks {
    management: Option<Network>,
    /// The place of the pool, for what overlaps it.
    pool: Option<At<(Ipv4Addr, Ipv4Addr)>>,
    others: BTreeMap<String, Network>,
}

impl Networks {
    fn read(table: &Table<'_>) -> Networks {
        let mut networks = Networks::default();
        if !table.has("management") {
            table.problem("[network.management] is missing");
        }
        for (name, entry) in table.named_tables() {
            match name.value.as_str() {
                "management" => {
                    let (network, pool) = read_network(&entry, true);
                    networks.management = Some(network);
                    networks.pool = pool;
                }
                "external" => {
                    networks.others.insert(name.value, read_network(&entry, false).0);
                }
                _ => {
                    entry.problem("networks other than management and external are not built yet");
                    read_network(&entry, false);
                }
            }
        }
        networks
    }

    /// Why a machine of the management network cannot have this address.
    fn objection(&self, address: Ipv4Addr) -> Option<String> {
        let management = self.management.as_ref()?;
        let subnet = management.subnet?;
        if !subnet.has_host(address) {
            return Some(format!("{address} is not a host's address in {subnet}"));
        }
        if management.gateway == Some(address) {
            return Some(format!("{address} is the gateway's"));
        }
        let (first, last) = management.pool?;
        (first..=last).contains(&address).then(|| format!("{address} lies in the pool for parked machines"))
    }
}

/// Below this IPv4 hosts need not reassemble (RFC 791); above it no card goes.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 576..=9216;

fn read_network(table: &Table<'_>, management: bool) -> (Network, Option<At<(Ipv4Addr, Ipv4Addr)>>) {
    for later in ["vlan", "bond", "bridge", "ipv6"] {
        table.not_built(later);
    }
    let subnet = if management {
        // Corosync numbers its members by the last two parts of their addresses.
        table.required("subnet", |text| match text.parse::<Subnet>()? {
            wide if wide.prefix < 16 => Err(format!("{wide} is wider than the /16 that a cluster's members lie in")),
            subnet => Ok(subnet),
        })
    } else {
        table.parsed("subnet", |text| text.parse::<Subnet>())
    };
    let gateway = table.parsed("gateway", address);
    if let (Some(subnet), Some(gateway)) = (&subnet, &gateway)
        && !subnet.value.has_host(gateway.value)
    {
        table.problem_at(gateway, format!("{} is not a host's address in {}", gateway.value, subnet.value));
    }
    let mut pool = None;
    let mut physical = None;
    if management {
        pool = read_pool(table, subnet.as_ref().map(|s| s.value), gateway.as_ref().map(|g| g.value));
    } else {
        physical = table.parsed("physical", name::owner);
    }
    let network = Network {
        subnet: subnet.map(|s| s.value),
        gateway: gateway.map(|g| g.value),
        dns: table.list("dns", address).into_iter().map(|d| d.value).collect(),
        ntp: table.list("ntp", host).into_iter().map(|n| n.value).collect(),
        mtu: table.number("mtu", MTU_RANGE).map(|m| m.value as u32),
        pool: pool.as_ref().map(|p| p.value),
        physical: physical.map(|p| p.value),
    };
    (network, pool)
}

fn read_pool(table: &Table<'_>, subnet: Option<Subnet>, gateway: Option<Ipv4Addr>) -> Option<At<(Ipv4Addr, Ipv4Addr)>> {
    if !table.has("pool") {
        return None;
    }
    let before = table.strings("pool").len();
    let ends = table.list("pool", address);
    let [first, last] = ends.as_slice() else {
        if before != 2 {
            table.problem("pool must be [FIRST, LAST]");
        }
        return None;
    };
    if let Some(subnet) = subnet {
        for end in &ends {
            if !subnet.has_host(end.value) {
                table.problem_at(end, format!("{} is not a host's address in {subnet}", end.value));
            }
        }
    }
    if first.value > last.value {
        table.problem_at(first, format!("the pool's first address {} comes after its last", first.value));
    }
    if gateway.is_some_and(|g| (first.value..=last.value).contains(&g)) {
        table.problem_at(first, "the pool holds the gateway");
    }
    Some(first.clone().map(|_| (first.value, last.value)))
}

/// What only one node may have, with its owner.
struct Taken {
    names: BTreeMap<String, String>,
    macs: BTreeMap<Mac, String>,
    uuids: BTreeMap<Uuid, String>,
    addresses: BTreeMap<Ipv4Addr, String>,
}

impl Taken {
    fn new(cluster: &Option<(Option<Cluster>, Option<At<Ipv4Addr>>)>, networks: &Networks, table: &Table<'_>) -> Taken {
        let mut taken =
            Taken { names: BTreeMap::new(), macs: BTreeMap::new(), uuids: BTreeMap::new(), addresses: BTreeMap::new() };
        if let Some((_, Some(vip))) = cluster {
            if let Some(message) = networks.objection(vip.value) {
                table.problem_at(vip, message);
            }
            taken.addresses.insert(vip.value, "the cluster's VIP".to_string());
        }
        taken
    }
}

fn read_node(
    table: &Table<'_>,
    roles: &BTreeMap<String, Option<String>>,
    networks: &Networks,
    taken: &mut Taken,
) -> Option<Node> {
    for later in ["power", "bond", "vlan", "arch"] {
        table.not_built(later);
    }
    let node_name = table.required("name", name::word);
    let owner = node_name.as_ref().map(|n| n.value.clone()).unwrap_or_else(|| "another node".to_string());
    if let Some(node_name) = &node_name {
        refuse_twice(table, &mut taken.names, node_name, "another node");
    }
    let role = table.required("role", name::word);
    if let Some(role) = role.as_ref().filter(|r| !roles.contains_key(&r.value)) {
        table.problem_at(role, format!("the site has no [role.{}]", role.value));
    }
    let macs = table.list("mac", |text| text.parse::<Mac>());
    if macs.is_empty() {
        table.problem("mac is missing: at least one address of a card on the management side");
    }
    let uuid = table.parsed("uuid", |text| text.parse::<Uuid>()).filter(|u| !u.value.is_junk());
    let management = required_table(table, "management").and_then(|t| {
        let at = t.required("address", address)?;
        if let Some(message) = networks.objection(at.value) {
            t.problem_at(&at, message);
        }
        Some(at)
    });
    let external = table.table("external").and_then(|t| t.required("mac", |text| text.parse::<Mac>()));
    for mac in macs.iter().chain(&external) {
        refuse_twice(table, &mut taken.macs, mac, &owner);
    }
    if let Some(uuid) = &uuid {
        refuse_twice(table, &mut taken.uuids, uuid, &owner);
    }
    if let Some(address) = &management {
        refuse_twice(table, &mut taken.addresses, address, &owner);
    }
    let state = table.table("state").map(|t| read_state(&t)).unwrap_or(StateDisk::Unset);
    let cmdline = table.strings("cmdline");
    for argument in &cmdline {
        if let Err(message) = name::kernel_argument(&argument.value) {
            table.problem_at(argument, message);
        }
    }
    Some(Node {
        name: node_name?.value,
        role: role?.value,
        macs: macs.into_iter().map(|m| m.value).collect(),
        uuid: uuid.map(|u| u.value),
        address: management?.value,
        external_mac: external.map(|e| e.value),
        state,
        cmdline: cmdline.into_iter().map(|c| c.value).collect(),
    })
}

fn read_state(table: &Table<'_>) -> StateDisk {
    let volatile = table.boolean("volatile");
    let Some(disk) = table.table("disk") else {
        return if volatile.is_some_and(|v| v.value) { StateDisk::Volatile } else { StateDisk::Unset };
    };
    if let Some(volatile) = volatile.filter(|v| v.value) {
        table.problem_at(&volatile, "a node's state is either on a disk or volatile");
    }
    let text = |text: &str| {
        let good = !text.trim().is_empty() && text.len() <= 128 && text.bytes().all(|b| matches!(b, b' '..=b'~'));
        if good { Ok(text.trim().to_string()) } else { Err(format!("{text:?} is not what a disk says of itself")) }
    };
    let serial = disk.parsed("serial", text);
    let wwn = disk.parsed("wwn", text);
    let size = disk.string_or_number("size").and_then(|given| match bytes(&given.value) {
        Some(size) => Some(size),
        None => {
            disk.problem_at(&given, format!("{:?} is not a size such as \"32GiB\" or a number of bytes", given.value));
            None
        }
    });
    if !["serial", "wwn", "size"].iter().any(|key| disk.has(key)) {
        disk.problem("says nothing of the disk: give serial, wwn or size");
    }
    StateDisk::Disk(DiskMatch { serial: serial.map(|s| s.value), wwn: wwn.map(|w| w.value), size })
}

/// `34359738368`, `32GiB`, `960GB`: bytes; `None` for anything else or zero.
pub fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let unit = UNITS.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)));
    let (number, factor) = unit.map_or((text, 1), |(number, factor)| (number.trim_end(), factor));
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|n| *n > 0)
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 address"))
}

/// An address or a name of a time server.
fn host(text: &str) -> Result<String, String> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(text.to_string());
    }
    Err(format!("{text:?} is neither an IPv4 address nor a host's name"))
}

/// `TYPE BASE64 [COMMENT]` as in `*.pub`: the type must also be what the key itself says
/// (RFC 4253, section 6.6). Options before it are refused: they belong to one host's own file.
pub fn ssh_key(text: &str) -> Result<String, String> {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let shown: String = text.chars().take(24).collect();
    let bad = |why: &str| Err(format!("{shown:?}… is not an OpenSSH public key ({why})"));
    if text.chars().any(char::is_control) {
        return bad("it holds a control character");
    }
    let mut words = text.split(' ').filter(|w| !w.is_empty());
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return bad("such as \"ssh-ed25519 AAAA… name\"");
    };
    if !TYPES.contains(&kind) {
        return bad("unknown type");
    }
    let Ok(key) = base64::engine::general_purpose::STANDARD.decode(blob) else {
        return bad("its second word is not base64");
    };
    let prefix = [&(kind.len() as u32).to_be_bytes()[..], kind.as_bytes()].concat();
    // The shortest real key is ed25519's: type, length and 32 bytes.
    if !key.starts_with(&prefix) || key.len() < prefix.len() + 36 {
        return bad("the key is cut or of another type");
    }
    Ok(text.trim().to_string())
}

#[cfg(test)]
mod tests;
