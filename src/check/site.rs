//! A site file as `kiln serve` would read it, beside the recipes of the roles that its nodes play.

use crate::recipe::problem::{Problem, Problems};
use crate::recipe::reader::{self, At};
use crate::recipe::{Recipe, name};
use crate::site::secrets::Secrets;
use crate::site::{self, Site};

/// What stands beside a site.
pub struct Beside<'a> {
    /// The recipe of a role of the site's release, if there is one that can be read.
    pub recipe: &'a dyn Fn(&str, &str) -> Option<Recipe>,
    /// `secrets.toml` and how problems name it; `None`: there is none, or it is told already.
    pub secrets: Option<(&'a Secrets, &'a str)>,
}

/// Every problem of the site; `file` is how problems name it.
pub fn check(text: &str, file: &str, beside: &Beside) -> Vec<Problem> {
    let site = match site::file::parse(text, file) {
        Ok(site) => site,
        Err(Problems(problems)) => return problems,
    };
    let places = places(text, file);
    let release = &site.cluster.release;
    let mut problems = Vec::new();
    let mut say = |place: Option<&At<String>>, message: String| {
        let (line, key) = place.map(|p| (p.line, p.key.clone())).unwrap_or_default();
        problems.push(Problem { file: file.to_string(), line, key, message });
    };
    let forms = |role: &str| Some((beside.recipe)(release, role)?.systems.iter().any(|s| s.formation.is_some()));
    for node in &site.nodes {
        let alone = Site { nodes: vec![node.clone()], ..site.clone() };
        for message in site::check::check(&alone, &forms) {
            say(places.nodes.iter().find(|n| n.value == node.name), message);
        }
    }
    for image in &places.images {
        if let Some(message) = other_image(&image.value, release, &image.key) {
            say(Some(image), message);
        }
    }
    if let Some((secrets, file)) = beside.secrets {
        let mut roles: Vec<&str> = site.nodes.iter().map(|n| n.role.as_str()).collect();
        roles.sort();
        roles.dedup();
        for role in roles {
            for system in (beside.recipe)(release, role).into_iter().flat_map(|r| r.systems) {
                for secret in system.secrets.iter().filter(|s| secrets.get(s).is_none()) {
                    let message = format!("is missing: system {} of role {role} needs it", system.name);
                    problems.push(Problem { file: file.to_string(), line: 0, key: secret.clone(), message });
                }
            }
        }
    }
    problems
}

#[derive(Default)]
struct Places {
    nodes: Vec<At<String>>,
    images: Vec<At<String>>,
}

/// Where nodes and images stand in a site that was read without a problem.
fn places(text: &str, file: &str) -> Places {
    let (places, _) = reader::read_all(text, file, |table| {
        let roles = table.table("role").map(|t| t.named_tables()).unwrap_or_default();
        Some(Places {
            nodes: table.tables("node").iter().filter_map(|t| t.string("name")).collect(),
            images: roles.iter().filter_map(|(_, t)| t.string("image")).collect(),
        })
    });
    places.unwrap_or_default()
}

/// Why `release/role[:tag]` cannot be the image of the role under `key` (`role.ROLE.image`). Digests
/// and names in registries say nothing.
fn other_image(reference: &str, release: &str, key: &str) -> Option<String> {
    let (named, rest) = reference.split_once('/')?;
    let image = rest.split(':').next()?;
    name::word(named).and(name::word(image)).ok()?;
    let role = key.strip_prefix("role.")?.strip_suffix(".image")?.trim_matches('"');
    (named != release || image != role)
        .then(|| format!("{reference:?} is no image of {release}/{role}: nodes of this role could not boot it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str = "[cluster]\nname = \"c\"\nrelease = \"zed\"\n[role.infra]\nimage = \"zed/compute\"\n[network.management]\nsubnet = \"192.0.2.0/24\"\n[[node]]\nname = \"a\"\nrole = \"infra\"\nmac = [\"52:54:00:00:00:01\"]\nmanagement = { address = \"192.0.2.11\" }\n";

    fn recipe(release: &str, role: &str) -> Option<Recipe> {
        let system = r#"{"name":"galera","secrets":["galera.sst"],"formation":{"kind":"static"}}"#;
        (role == "infra").then(|| Recipe {
            release: release.into(),
            role: role.into(),
            distribution: crate::recipe::Distribution { family: crate::recipe::Family::Apt, name: "d".into() },
            stages: Vec::new(),
            systems: vec![serde_json::from_str(system).unwrap()],
            overlays: Vec::new(),
            repositories: Vec::new(),
            cmdline: Vec::new(),
            initramfs_modules: None,
            users: Default::default(),
            compression: crate::recipe::Compression { kind: crate::recipe::CompressionKind::Zstd, level: 3 },
            selinux: None,
        })
    }

    #[test]
    fn what_serve_would_stumble_over_is_told_with_its_line() {
        let secrets = Secrets::default();
        let beside = Beside { recipe: &recipe, secrets: Some((&secrets, "secrets.toml")) };
        let shown: Vec<String> = check(SITE, "s", &beside).iter().map(|p| p.to_string()).collect();
        assert_eq!(shown.len(), 3, "{shown:?}");
        assert!(shown[0].starts_with("s:9: node[0].name: node a is a controller (infra) without a state disk"));
        assert!(shown[1].starts_with("s:5: role.infra.image: \"zed/compute\" is no image of zed/infra"));
        assert_eq!(shown[2], "secrets.toml: galera.sst: is missing: system galera of role infra needs it");
        let beside = Beside { recipe: &|_, _| None, secrets: None };
        let good = SITE.replace("zed/compute", "zed/infra:v1");
        assert_eq!(check(&good, "s", &beside), Vec::new());
        assert!(
            check(&good.replace("[role.infra]", "[role.x]"), "s", &beside)[0].to_string().contains("no [role.infra]")
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,80}", at in 0..SITE.len(), near in "[a-z\"\\[\\]=/.\n ]{0,12}") {
            let beside = Beside { recipe: &recipe, secrets: None };
            let _ = check(&text, "s", &beside);
            let _ = check(&format!("{}{near}{}", &SITE[..at], &SITE[at..]), "s", &beside);
        }
    }
}
