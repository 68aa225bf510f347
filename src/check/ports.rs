//! Ports of one node that two would listen on. The VIP lies on a node that has its services at its
//! own address: who listens on all addresses takes the VIP's port, too.

use super::ini::{self, Line};
use super::{Found, Output};
use crate::recipe::file::Loaded;
use crate::recipe::problem::Problem;
use crate::site::view::View;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The load balancer's files.
const BALANCER: &str = "/etc/haproxy/";
/// Where OpenStack's own servers are told to listen: section, option of the address, option of the
/// port, and the port without that (`None`: it differs from service to service).
const SERVERS: [(&str, &str, &str, Option<u16>); 6] = [
    ("DEFAULT", "bind_host", "bind_port", None),
    ("DEFAULT", "osapi_compute_listen", "osapi_compute_listen_port", Some(8774)),
    ("DEFAULT", "metadata_listen", "metadata_listen_port", Some(8775)),
    ("vnc", "novncproxy_host", "novncproxy_port", Some(6080)),
    ("eventlet_server", "public_bind_host", "public_port", Some(5000)),
    ("eventlet_server", "admin_bind_host", "admin_port", Some(35357)),
];
/// Options and arguments with which the field's other daemons are told where to listen; dashes stand
/// for underscores too, leading ones are left out.
const LISTEN: [&str; 10] = [
    "bind-address",
    "bind-ip",
    "bindaddress",
    "http",
    "http-socket",
    "https",
    "listen",
    "listen-address",
    "socket",
    "uwsgi-bind-ip",
];
/// The same with a number behind: rabbitmq's.
const LISTEN_NUMBERED: &str = "listeners.tcp.";
/// Apache's, which takes a port alone.
const APACHE: &str = "Listen";
/// memcached's.
const LISTEN_SHORT: &str = "-l";

/// Where somebody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// `None`: all addresses.
    address: Option<Ipv4Addr>,
    /// First and last; `None`: it stands elsewhere.
    ports: Option<(u16, u16)>,
}

impl Place {
    fn holds(&self, port: u16) -> bool {
        self.ports.is_some_and(|(first, last)| (first..=last).contains(&port))
    }

    fn meets(&self, other: &Place) -> bool {
        let addresses = self.address.is_none() || other.address.is_none() || self.address == other.address;
        let (Some((a, b)), Some((c, d))) = (self.ports, other.ports) else { return false };
        addresses && a <= d && c <= b
    }
}

/// A daemon that is told where to listen.
struct Listener<'o> {
    output: &'o Output<'o>,
    /// The line that says it, from 0.
    index: usize,
    /// The option's name there.
    key: String,
    /// The line that says the port, and the option's name there.
    port_at: (usize, String),
    place: Place,
}

/// A balancer's `bind` with its line of the file, from 0.
struct Bind<'o> {
    output: &'o Output<'o>,
    index: usize,
    text: String,
    place: Place,
}

pub(super) fn check(outputs: &[Output], systems: &BTreeMap<String, Loaded>, view: &View, found: &mut Found) {
    let binds: Vec<Bind> = outputs.iter().filter(|o| o.path.starts_with(BALANCER)).flat_map(binds).collect();
    among_binds(&binds, found);
    for bind in &binds {
        against_systems(bind, systems, view, found);
    }
    let vip = |port| {
        let at = |bind: &&Bind| bind.place.address.is_some() && bind.place.address == view.cluster.vip;
        binds.iter().filter(at).find(|b| b.place.holds(port))
    };
    let listeners: Vec<Listener> =
        outputs.iter().filter(|o| !o.path.starts_with(BALANCER)).flat_map(listeners).collect();
    for Listener { output, index, key, place, .. } in listeners.iter().filter(|l| l.place.address.is_none()) {
        let message = match place.ports.and_then(|(port, _)| vip(port)) {
            Some(bind) => {
                format!("listens on all addresses, also on the VIP, where {} binds {}", bind.output.path, bind.text)
            }
            // A unit cannot be a template: systemd has read it before it is rendered.
            None if key == SOCKET_UNIT => continue,
            None => "listens on all addresses: give the node's own, {{ node.address }}".to_string(),
        };
        found.problem(output.problem(*index, key, message));
    }
    among_listeners(&listeners, systems, view, found);
    for loaded in systems.values() {
        for port in &loaded.places.ports {
            let Some(bind) = vip(port.value) else { continue };
            if is_bound(&loaded.system.name, port.value, outputs, &listeners, view) {
                continue;
            }
            let name = &loaded.system.name;
            let message = format!(
                "{} binds {} at the VIP, and no file of {name} binds the port to the node's address ({{{{ node.address }}}})",
                bind.output.path, bind.text
            );
            let (file, line, key) = (loaded.file.clone(), port.line, port.key.clone());
            found.problem(Problem { file, line, key, message });
        }
    }
}

fn among_binds(binds: &[Bind], found: &mut Found) {
    for (i, bind) in binds.iter().enumerate() {
        if let Some(first) = binds[..i].iter().find(|b| b.place.meets(&bind.place)) {
            let at = first.output.lines.get(first.index).copied().unwrap_or(0);
            let message = format!(
                "{} is bound already, by {} in line {at} of {}",
                bind.text, first.text, first.output.entry.source
            );
            found.problem(bind.output.problem(bind.index, "bind", message));
        }
    }
}

fn against_systems(bind: &Bind, systems: &BTreeMap<String, Loaded>, view: &View, found: &mut Found) {
    let Bind { output, index, text, place } = bind;
    if place.address.is_none() {
        let message =
            format!("{text} listens on all addresses: bind the VIP, {{{{ cluster.vip }}}}, or {{{{ node.address }}}}");
        found.problem(output.problem(*index, "bind", message));
    }
    if place.address.is_some_and(|a| a != view.node.address) {
        return;
    }
    for loaded in systems.values().filter(|l| l.system.name != output.entry.overlay) {
        for port in loaded.system.ports.iter().filter(|p| place.holds(**p)) {
            let message = format!("{text} takes port {port}, which is {}'s at the node's address", loaded.system.name);
            found.problem(output.problem(*index, "bind", message));
        }
    }
}

/// Ports of the node's address that a daemon is told to take, although they are another's, or taken
/// already, or not among those that its system names.
fn among_listeners(listeners: &[Listener], systems: &BTreeMap<String, Loaded>, view: &View, found: &mut Found) {
    for (i, listener) in listeners.iter().enumerate() {
        let Listener { output, port_at: (index, key), place, .. } = listener;
        let here = |place: &Place| place.address.is_none_or(|a| a == view.node.address);
        let Some((port, last)) = place.ports.filter(|_| here(place)) else { continue };
        let own = output.system.map(|l| &l.system);
        if own.is_some_and(|s| (port..=last).all(|p| s.ports.contains(&p))) {
            let same = |l: &&Listener| l.output.entry.overlay == output.entry.overlay && l.place.meets(place);
            if let Some(first) = listeners[..i].iter().find(same) {
                let at = first.output.lines.get(first.index).copied().unwrap_or(0);
                let message = format!(
                    "port {port} is taken already, by {} in line {at} of {}",
                    first.key, first.output.entry.source
                );
                found.problem(output.problem(*index, key, message));
            }
            continue;
        }
        let theirs =
            |l: &&Loaded| l.system.name != output.entry.overlay && l.system.ports.iter().any(|p| place.holds(*p));
        let message = match (systems.values().find(theirs), own) {
            (Some(other), _) => format!("takes port {port}, which is {}'s", other.system.name),
            (None, Some(own)) => format!("port {port} is not among the ports of system {}", own.name),
            (None, None) => continue,
        };
        found.problem(output.problem(*index, key, message));
    }
}

/// Whether some file of the system says that it listens at the node's address.
fn is_bound(system: &str, port: u16, outputs: &[Output], listeners: &[Listener], view: &View) -> bool {
    let address = view.node.address;
    let says_so = |l: &Listener| {
        let place = &l.place;
        l.output.entry.overlay == system
            && place.address == Some(address)
            && (place.ports.is_none() || place.holds(port))
    };
    if listeners.iter().any(says_so) {
        return true;
    }
    let pair = format!("{address}:{port}");
    // A balancer's file names servers, it does not make them.
    let own = |o: &&Output| o.entry.overlay == system && !o.is_script() && !o.path.starts_with(BALANCER);
    outputs.iter().filter(own).any(|output| {
        // In a URL it is where a client asks.
        let server = |at: usize| {
            let (before, after) = (&output.text[..at], &output.text[at + pair.len()..]);
            !after.starts_with(|c: char| c.is_ascii_digit()) && !before.ends_with(['/', '@'])
        };
        // With failures nobody knows.
        !output.failed.is_empty() || output.text.match_indices(&pair).any(|(at, _)| server(at))
    })
}

/// `bind ADDRESS:PORT[-PORT][,…]` lines.
fn binds<'o>(output: &'o Output<'o>) -> Vec<Bind<'o>> {
    let mut binds = Vec::new();
    for (index, line) in output.sound_lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        if words.next() != Some("bind") {
            continue;
        }
        for text in words.next().unwrap_or_default().split(',') {
            let bare = text.trim_start_matches("ipv4@").trim_start_matches("ipv6@");
            if let Some(place) = place(bare, true) {
                binds.push(Bind { output, index, text: text.to_string(), place });
            }
        }
    }
    binds
}

/// A socket unit's option, which is told apart.
const SOCKET_UNIT: &str = "ListenStream";

/// Where a configuration file or a unit says that its daemon listens.
fn listeners<'o>(output: &'o Output<'o>) -> Vec<Listener<'o>> {
    let unit = output.path.ends_with(".socket");
    let configuration = output.path.starts_with("/etc/") && !output.is_script();
    if !unit && !configuration {
        return Vec::new();
    }
    let mut found = servers(output);
    for (index, line) in output.sound_lines() {
        if line.trim_start().starts_with(['#', ';']) {
            continue;
        }
        let words: Vec<&str> =
            line.split(|c: char| c.is_whitespace() || "=\"'".contains(c)).filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            let key = pair[0].trim_end_matches(':');
            let known = if unit { key == SOCKET_UNIT } else { is_listen(key) };
            // uwsgi's `listen = 100` is the length of a queue.
            let bare_port = unit || key == APACHE || key.starts_with(LISTEN_NUMBERED);
            if let Some(place) = place(pair[1], bare_port).filter(|_| known) {
                let key = key.to_string();
                found.push(Listener { output, index, port_at: (index, key.clone()), key, place });
            }
        }
    }
    found
}

/// What an OpenStack service's file says by [`SERVERS`].
fn servers<'o>(output: &'o Output<'o>) -> Vec<Listener<'o>> {
    let mut section = "";
    let mut said: BTreeMap<(&str, &str), (usize, &str)> = BTreeMap::new();
    for (index, line) in ini::lines(&output.text) {
        match line {
            Line::Section(name) => section = name,
            Line::Option { key, value } => {
                said.insert((section, key), (index, value));
            }
            Line::More(_) | Line::Wrong => {}
        }
    }
    let mut found = Vec::new();
    for (section, host, port, default) in SERVERS {
        let Some((index, text)) = said.get(&(section, host)) else { continue };
        let Some(Place { address, .. }) = place(text, false) else { continue };
        let told = said.get(&(section, port)).and_then(|(at, text)| Some((*at, text.parse::<u16>().ok()?)));
        let ports = told.map(|(_, port)| port).or(default).map(|port| (port, port));
        let port_at = told.map_or((*index, host), |(at, _)| (at, port));
        let place = Place { address, ports };
        let port_at = (port_at.0, port_at.1.to_string());
        found.push(Listener { output, index: *index, key: host.to_string(), port_at, place });
    }
    found
}

fn is_listen(key: &str) -> bool {
    let plain = key.trim_start_matches('-').replace('_', "-").to_lowercase();
    key == LISTEN_SHORT || plain.starts_with(LISTEN_NUMBERED) || LISTEN.contains(&plain.as_str())
}

/// `ADDRESS`, `ADDRESS:PORT`, `:PORT`, `*:PORT`, `[::]:PORT`; a bare number is a port where
/// `bare_port`. `None`: a path, or another host.
fn place(text: &str, bare_port: bool) -> Option<Place> {
    let text = text.trim_end_matches([',', ';']);
    let all = |address: &str| matches!(address, "" | "*" | "0.0.0.0" | "::" | "[::]" | "[::]:");
    let ports = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?)).filter(|(first, last)| first <= last)
    };
    if bare_port && let Some(ports) = ports(text) {
        return Some(Place { address: None, ports: Some(ports) });
    }
    let (address, ports) = match text.rsplit_once(':').filter(|_| text != "::") {
        Some((address, port)) => (address, Some(ports(port)?)),
        None => (text, None),
    };
    match address {
        _ if all(address) && !(address.is_empty() && ports.is_none()) => Some(Place { address: None, ports }),
        _ => Some(Place { address: Some(address.parse().ok()?), ports }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        let at = |address: Option<[u8; 4]>, ports| Some(Place { address: address.map(Ipv4Addr::from), ports });
        for (text, bare, want) in [
            ("0.0.0.0", false, at(None, None)),
            ("*:80", false, at(None, Some((80, 80)))),
            (":5000", false, at(None, Some((5000, 5000)))),
            ("[::]:80", false, at(None, Some((80, 80)))),
            ("::", false, at(None, None)),
            ("192.0.2.11:8000-8010", false, at(Some([192, 0, 2, 11]), Some((8000, 8010)))),
            ("192.0.2.11", true, at(Some([192, 0, 2, 11]), None)),
            ("5000", true, at(None, Some((5000, 5000)))),
            ("5000", false, None),
            ("/run/x.sock", true, None),
            ("host:80", true, None),
            ("", true, None),
            ("1.2.3.4:99999", true, None),
        ] {
            assert_eq!(place(text, bare), want, "{text:?}");
        }
    }

    #[test]
    fn servers_say_their_address_and_their_port_on_lines_of_their_own() {
        let text = "[DEFAULT]\nmetadata_listen_port = 1\nmetadata_listen = 192.0.2.11\nosapi_compute_listen = 0.0.0.0\nbind_host = ::\n[vnc]\nnovncproxy_host = host\n";
        let entry = crate::overlay::Entry {
            kind: crate::overlay::Kind::Dir,
            mode: 0,
            owner: String::new(),
            group: String::new(),
            overlay: "nova".into(),
            source: "nova.conf".into(),
        };
        let output = Output {
            path: "/etc/nova/nova.conf".into(),
            entry: &entry,
            system: None,
            template: None,
            text: text.into(),
            lines: Vec::new(),
            failed: Default::default(),
        };
        let shown: Vec<String> = servers(&output)
            .iter()
            .map(|l| format!("{} {} {:?} {:?} {:?}", l.index, l.key, l.port_at, l.place.address, l.place.ports))
            .collect();
        assert_eq!(
            shown,
            [
                "4 bind_host (4, \"bind_host\") None None",
                "3 osapi_compute_listen (3, \"osapi_compute_listen\") None Some((8774, 8774))",
                "2 metadata_listen (1, \"metadata_listen_port\") Some(192.0.2.11) Some((1, 1))",
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,40}", near in "[0-9.:*\\[\\],;-]{0,24}") {
            for text in [&text, &near] {
                let _ = (place(text, true), place(text, false), is_listen(text));
            }
        }
    }
}
