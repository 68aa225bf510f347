//! What the dear tests (`bake`, `vm`) share: when they run, the programs that they run.

use std::path::Path;
use std::process::{Command, Output};

/// Whether dear tests were asked for; says so when not.
pub fn full(test: &str) -> bool {
    let full = std::env::var("KILN_TEST_LEVEL").as_deref() == Ok("full");
    if !full {
        eprintln!("{test}: not run, it bakes real packages or boots machines: scripts/test runs it");
    }
    full
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The release build, in the tree.
pub fn kiln() -> Command {
    let mut command = Command::new(root().join("target/release/kiln"));
    command.current_dir(root());
    command
}

/// Locks a role where it has no lock, and bakes it (from the cache where it can).
pub fn bake(role: &str) {
    if !root().join(format!("recipes/{role}.lock")).exists() {
        succeed(kiln().args(["lock", role]));
    }
    succeed(kiln().args(["build", role]));
}

/// All that was printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs to the end; a failure shows everything that was printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    text(&output)
}
