//! What is shipped is what users copy: every recipe parses, its overlays load, its templates
//! render with a sample site and only the secrets of their own system, and `kiln init` makes every
//! secret that a system asks for.

use kiln::cli::recipes::{RecipesArgs, resolve};
use kiln::overlay::{self, Kind, TEMPLATE_ENDING};
use kiln::site::sample::{sample_secrets, sample_view};
use std::path::PathBuf;

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `release/role` of every shipped recipe.
fn shipped() -> Vec<String> {
    let mut names = Vec::new();
    for release in std::fs::read_dir(top().join("recipes")).unwrap().map(|e| e.unwrap().path()) {
        for file in std::fs::read_dir(&release).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "toml") {
                let word = |p: &std::ffi::OsStr| p.to_str().unwrap().to_string();
                names.push(format!("{}/{}", word(release.file_name().unwrap()), word(file.file_stem().unwrap())));
            }
        }
    }
    names.sort();
    names
}

#[test]
fn every_shipped_recipe_is_whole() {
    let args = RecipesArgs { recipes: top().join("recipes"), overlays: None };
    let names = shipped();
    for role in ["base", "test", "infra", "controller", "compute"] {
        assert!(names.contains(&format!("zed/{role}")), "zed/{role}");
    }
    for role in ["base", "test", "infra", "controller", "compute", "storage"] {
        assert!(names.contains(&format!("mitaka/{role}")), "mitaka/{role}");
    }
    for name in names {
        let chosen = resolve(&name, &args).unwrap();
        let recipe = kiln::recipe::file::parse(&chosen.folder, &chosen.release, &chosen.role)
            .unwrap_or_else(|p| panic!("{name}:\n{p}"));
        let tree = overlay::load::load(&chosen.overlays, &recipe.release, &recipe.overlays)
            .unwrap_or_else(|e| panic!("{name}: {e:#}"));
        for system in &recipe.systems {
            let script = format!("usr/lib/kiln/systems/{}/health", system.name);
            let entry = tree.entries.get(&script).unwrap_or_else(|| panic!("{name}: no {script}"));
            assert!(matches!(entry.kind, Kind::File(_)) && entry.mode == 0o755, "{name}: {script} cannot run");
            for step in &system.steps {
                let script = format!("usr/lib/kiln/systems/{}/{}", system.name, step.name);
                assert!(tree.entries.get(&script).is_some_and(|e| e.mode == 0o755), "{name}: no {script}");
            }
        }
        // systemd opens no socket whose service lives: a stop and a start of the socket would fail for good.
        for socket in tree.entries.keys().filter(|path| path.ends_with(".socket")) {
            let service = socket.replace(".socket", ".service");
            let Some(Kind::File(text)) = tree.entries.get(&service).map(|e| &e.kind) else {
                panic!("{name}: no {service}")
            };
            let requires = format!("Requires={}", socket.rsplit('/').next().unwrap());
            assert!(String::from_utf8_lossy(text).contains(&requires), "{name}: {service} has no {requires}");
        }
        for (path, overlay, text) in tree.templates() {
            assert!(path.ends_with(TEMPLATE_ENDING));
            let text = std::str::from_utf8(text).unwrap_or_else(|_| panic!("{name}: {path} is not UTF-8"));
            let system = recipe.systems.iter().find(|s| s.name == overlay);
            let secrets = sample_secrets(system.into_iter().flat_map(|s| &s.secrets));
            overlay::render::render(&path, text, &sample_view(&recipe.role), &secrets)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn init_makes_every_secret_that_a_shipped_system_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let args = kiln::cli::init::Args { dir: folder.path().into(), release: "zed".into() };
    kiln::cli::init::run(args).unwrap();
    let secrets = kiln::cli::secrets::read(&folder.path().join("secrets.toml")).unwrap();
    let args = RecipesArgs { recipes: top().join("recipes"), overlays: None };
    let mut asked = 0;
    for name in shipped() {
        let chosen = resolve(&name, &args).unwrap();
        let recipe = kiln::recipe::file::parse(&chosen.folder, &chosen.release, &chosen.role).unwrap();
        for system in recipe.systems {
            asked += system.secrets.len();
            secrets.only(&system.secrets).unwrap_or_else(|e| panic!("{name}: {}: {e}", system.name));
        }
    }
    assert!(asked > 0);
}
