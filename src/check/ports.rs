//! Ports of one node that two would listen on. The VIP lies on a node that has its services at its
//! own address: who listens on all addresses takes the VIP's port, too.

use super::{Found, Output};
use crate::recipe::file::Loaded;
use crate::recipe::problem::Problem;
use crate::site::view::View;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The load balancer's files.
const BALANCER: &str = "/etc/haproxy/";
/// Options and arguments with which the field's daemons are told where to listen; dashes stand for
/// underscores too, leading ones are left out.
const LISTEN: [&str; 16] = [
    "admin-bind-host",
    "bind-address",
    "bind-host",
    "bind-ip",
    "bindaddress",
    "http",
    "http-socket",
    "https",
    "listen",
    "listen-address",
    "metadata-listen",
    "novncproxy-host",
    "osapi-compute-listen",
    "public-bind-host",
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
    for output in outputs.iter().filter(|o| !o.path.starts_with(BALANCER)) {
        for (index, key, place) in listens(output) {
            if place.address.is_some() {
                continue;
            }
            let taken = place.ports.and_then(|(port, _)| vip(port));
            let message = match taken {
                Some(bind) => {
                    format!("listens on all addresses, also on the VIP, where {} binds {}", bind.output.path, bind.text)
                }
                // A unit cannot be a template: systemd has read it before it is rendered.
                None if key == SOCKET_UNIT => continue,
                None => "listens on all addresses: give the node's own, {{ node.address }}".to_string(),
            };
            found.problem(output.problem(index, &key, message));
        }
    }
    for loaded in systems.values() {
        for port in &loaded.places.ports {
            let Some(bind) = vip(port.value) else { continue };
            if is_bound(&loaded.system.name, port.value, outputs, view) {
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

/// Whether some file of the system says that it listens at the node's address.
fn is_bound(system: &str, port: u16, outputs: &[Output], view: &View) -> bool {
    let address = view.node.address;
    let pair = format!("{address}:{port}");
    // A balancer's file names servers, it does not make them.
    let own = |o: &&Output| o.entry.overlay == system && !o.is_script() && !o.path.starts_with(BALANCER);
    outputs.iter().filter(own).any(|output| {
        if !output.failed.is_empty() {
            return true; // nobody knows
        }
        let says_so = |(_, _, place): (usize, String, Place)| {
            place.address == Some(address) && (place.ports.is_none() || place.holds(port))
        };
        let more = |at: usize| output.text[at + pair.len()..].starts_with(|c: char| c.is_ascii_digit());
        listens(output).into_iter().any(says_so) || output.text.match_indices(&pair).any(|(at, _)| !more(at))
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

/// Where a configuration file or a unit says that its daemon listens: line from 0, option, place.
fn listens(output: &Output) -> Vec<(usize, String, Place)> {
    let unit = output.path.ends_with(".socket");
    let configuration = output.path.starts_with("/etc/") && !output.is_script();
    let mut found = Vec::new();
    if !unit && !configuration {
        return found;
    }
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
                found.push((index, key.to_string(), place));
            }
        }
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

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,40}", near in "[0-9.:*\\[\\],;-]{0,24}") {
            for text in [&text, &near] {
                let _ = (place(text, true), place(text, false), is_listen(text));
            }
        }
    }
}
