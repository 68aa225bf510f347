//! Three controllers on the rig: they form by themselves and survive what the fault table does to
//! them. Dear: run by `scripts/test` (KILN_TEST_LEVEL=full, root, target/release built). The rows are
//! `scripts/faults`'; the whole table is run by command.

mod dear;

use dear::{bake, full, root, succeed};
use std::path::Path;
use std::process::Command;

/// The rows that CI runs: a seed that is killed, a lost ledger, a lost server, lost power.
const ROWS: [&str; 4] = ["seed-killed-during", "ledger-deleted", "dark", "server-gone"];

/// A schema whose first filling broke off is made anew, one that was filled and one that was there before are not.
const BROKEN_OFF: &str = "
set -eu
export KILN_SECRETS=$(mktemp -d)
printf secret >$KILN_SECRETS/database.password
database=/usr/lib/kiln/openstack/database
$database make try/database try try
$database run try <<<'CREATE TABLE half (a INT)'
$database make try/database try try
if $database run try <<<'SELECT * FROM half'; then echo 'what a first try left is still there'; exit 1; fi
$database run try <<<'CREATE TABLE whole (a INT)'
$database mark try/database bash
$database make try/database try try
$database run try <<<'SELECT * FROM whole'
$database make other/database try try
$database run try <<<'SELECT * FROM whole'
";

/// A rig of our own, taken down however the test ends.
struct Rig(tempfile::TempDir);

impl Rig {
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(root().join("scripts").join(script));
        command.env("KILN_RIG", self.path()).current_dir(root());
        command
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.command("rig").arg("down").status();
        // The rows' log lies beside the rig, so that it outlives one.
        let _ = std::fs::remove_file(format!("{}.faults.log", self.path().display()));
    }
}

#[test]
fn three_controllers_form_and_survive() {
    if !full("cluster") {
        return;
    }
    bake("zed/infra");
    let rig = Rig(tempfile::Builder::new().prefix("kiln-rig-").tempdir().expect("a temporary folder"));
    println!("{}", succeed(rig.command("rig").args(["up", "infra"])));
    let status = succeed(rig.command("rig").args(["kiln", "cluster", "status"]));
    assert_eq!(status.matches("healthy").count(), 18, "six systems on three nodes:\n{status}");
    println!("{}", succeed(rig.command("rig").args(["kiln", "cluster", "timeline"])));
    for row in ROWS {
        let text = succeed(rig.command("faults").arg(row));
        println!("{text}");
        assert!(text.contains("| holds |"), "{row}: {text}");
    }
    drop(rig);

    // OpenStack's first service on the same: its schema is made once, every node gives tokens, so does the VIP.
    bake("zed/identity");
    let rig = Rig(tempfile::Builder::new().prefix("kiln-rig-").tempdir().expect("a temporary folder"));
    println!("{}", succeed(rig.command("rig").args(["up", "identity"])));
    let status = succeed(rig.command("rig").args(["kiln", "cluster", "status"]));
    assert_eq!(status.matches("healthy").count(), 21, "seven systems on three nodes:\n{status}");
    succeed(rig.command("rig").args(["exec", "identity1", "bash", "-c", BROKEN_OFF]));
    let version = succeed(rig.command("rig").args(["client", "curl", "-sSf", "http://10.88.0.10:5000/v3"]));
    assert!(version.contains("\"id\": \"v3."), "{version}");
}
