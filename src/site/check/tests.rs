use super::*;
use crate::site::file::parse;

const SITE: &str = r#"[cluster]
name = "prod"
release = "zed"
[role.infra]
image = "zed/infra:1"
[role.compute]
[network.management]
subnet = "10.0.0.0/24"
[[node]]
name = "n1"
role = "infra"
mac = ["52:54:00:00:00:01"]
management = { address = "10.0.0.11" }
[[node]]
name = "c1"
role = "compute"
mac = ["52:54:00:00:00:02"]
management = { address = "10.0.0.21" }
"#;

fn site(from: &str, to: &str) -> Site {
    assert!(SITE.contains(from), "{from:?}");
    parse(&SITE.replacen(from, to, 1), "site.toml").unwrap_or_else(|p| panic!("{p}"))
}

#[test]
fn a_controller_needs_a_state_disk_or_a_word() {
    let controller = |role: &str| Some(role == "infra");
    let refused = check(&site("", ""), &controller);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].starts_with("node n1 is a controller (infra) without a state disk: "), "{}", refused[0]);
    for state in ["volatile = true", "disk = { size = 1 }"] {
        let given = site("\"10.0.0.11\" }", &format!("\"10.0.0.11\" }}\nstate = {{ {state} }}"));
        assert!(check(&given, &controller).is_empty(), "{state}");
    }
    assert!(check(&site("", ""), &|_| None).is_empty(), "nobody knows yet");
}

#[test]
fn a_difference_is_told_in_the_words_of_the_file() {
    let old = site("", "");
    for (label, from, to, want) in [
        ("nothing", "", "", &[][..]),
        ("vip", "release = \"zed\"\n", "release = \"zed\"\nvip = \"10.0.0.9\"\n", &["cluster.vip: added (10.0.0.9)"]),
        ("image", "zed/infra:1", "zed/infra:2", &["role.infra.image: zed/infra:1 -> zed/infra:2"]),
        ("address", "10.0.0.11", "10.0.0.12", &["node n1.management.address: 10.0.0.11 -> 10.0.0.12"]),
        ("role", "role = \"compute\"", "role = \"infra\"", &["node c1: role compute -> role infra"]),
        (
            "state",
            "\"10.0.0.11\" }",
            "\"10.0.0.11\" }\nstate = { disk = { serial = \"S\", size = 5 } }",
            &["node n1.state: added (disk with serial S, size 5 bytes)"],
        ),
        (
            "renamed",
            "name = \"c1\"",
            "name = \"c2\"",
            &[
                "node c1.mac: removed (was 52:54:00:00:00:02)",
                "node c1.management.address: removed (was 10.0.0.21)",
                "node c1: removed (was role compute)",
                "node c2.mac: added (52:54:00:00:00:02)",
                "node c2.management.address: added (10.0.0.21)",
                "node c2: added (role compute)",
            ],
        ),
    ] {
        assert_eq!(diff(&old, &site(from, to)), want, "{label}");
    }
}
