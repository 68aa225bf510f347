//! Texts of the few files that every node needs whatever its role: names and resolvers.

use crate::site::view::View;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// `/etc/hosts`: every member of every role by name.
pub fn hosts(view: &View) -> String {
    let mut text =
        String::from("# Written by kiln-node at each boot.\n127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    let mut known: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
    known.insert(view.node.address, &view.node.name);
    for member in view.members.values().flatten() {
        known.entry(member.address).or_insert(&member.name);
    }
    for (address, name) in known {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}

/// `/etc/resolv.conf`; `None` where the site names no resolver: the image's own then stays.
pub fn resolvers(view: &View) -> Option<String> {
    let dns = view.network.get("management").map(|n| n.dns.as_slice()).unwrap_or_default();
    let lines: String = dns.iter().map(|d| format!("nameserver {d}\n")).collect();
    (!lines.is_empty()).then(|| format!("# Written by kiln-node at each boot.\n{lines}"))
}

/// Where a template's result lies.
pub fn target(template: &str) -> Result<&str, String> {
    let parts: Vec<&str> = template.split('/').collect();
    let plain = template.starts_with('/') && !parts.iter().any(|p| *p == ".." || *p == ".");
    match template.strip_suffix(".j2") {
        Some(target) if plain && !target.ends_with('/') => Ok(target),
        _ => Err(format!("{template:?} is not an absolute path of a template (.j2)")),
    }
}

/// Whether a result is something that systemd must read again.
pub fn is_unit(path: &str) -> bool {
    ["/etc/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"].iter().any(|d| path.starts_with(d))
}

/// A secret's name is the name of its file.
pub fn is_secret_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && name.len() < 128 && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::view::{ClusterView, MemberView, NetworkView, NodeView};

    fn view(dns: Vec<Ipv4Addr>) -> View {
        let at = |n| Ipv4Addr::new(10, 0, 0, n);
        let member = |name: &str, n| MemberView { name: name.into(), address: at(n), index: 1 };
        View {
            cluster: ClusterView { name: "prod".into(), release: "zed".into(), vip: Some(at(10)) },
            node: NodeView {
                name: "n1".into(),
                role: "infra".into(),
                index: 1,
                address: at(11),
                prefix: 24,
                mac: "52:54:00:00:00:01".into(),
                external_mac: None,
            },
            network: BTreeMap::from([(
                "management".to_string(),
                NetworkView { subnet: None, gateway: None, dns, ntp: vec![], mtu: None, physical: None },
            )]),
            members: BTreeMap::from([
                ("infra".to_string(), vec![member("n1", 11), member("n2", 12)]),
                ("compute".to_string(), vec![member("c1", 21)]),
            ]),
            ssh_keys: vec![],
        }
    }

    #[test]
    fn every_member_has_one_line() {
        let text = hosts(&view(vec![]));
        assert!(text.ends_with("10.0.0.11 n1\n10.0.0.12 n2\n10.0.0.21 c1\n"), "{text}");
    }

    #[test]
    fn resolvers_only_where_the_site_names_them() {
        assert_eq!(resolvers(&view(vec![])), None);
        assert!(resolvers(&view(vec![Ipv4Addr::new(10, 0, 0, 1)])).unwrap().ends_with("nameserver 10.0.0.1\n"));
    }

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for (template, want) in [
            ("/etc/my.cnf.j2", Some("/etc/my.cnf")),
            ("/etc/../x.j2", None),
            ("etc/x.j2", None),
            ("/etc/x", None),
            ("/etc/.j2", None),
        ] {
            assert_eq!(target(template).ok(), want, "{template}");
        }
        for (name, good) in [("galera.sst", true), ("../x", false), (".x", false), ("", false), ("a/b", false)] {
            assert_eq!(is_secret_name(name), good, "{name}");
        }
    }
}
