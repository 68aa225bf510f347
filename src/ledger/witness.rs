//! Outside of the ledger, on a file system that a restart of this machine empties (`/run`): which
//! event was the last one. A ledger that was deleted, or put back from a backup, does not hold it;
//! then the server cannot vouch for its ledger, and nothing is decided from silence.

use super::event::Recorded;
use crate::image::id::Digest;
use crate::sys::files;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FILE_MAX_BYTES: u64 = 4096;

/// Where the last event is noted.
#[derive(Clone, Debug)]
pub struct Witness {
    path: PathBuf,
    boot_id: String,
}

#[derive(Serialize, Deserialize)]
struct Last {
    /// Of the machine: a runtime folder that a restart does not empty may be put back with the rest.
    #[serde(default)]
    boot_id: String,
    rev: u64,
    /// Of the event as JSON.
    digest: Digest,
}

impl Witness {
    /// Of the ledger in the folder `state`, below the runtime folder `run`, in this boot.
    pub fn new(run: &Path, state: &Path, boot_id: &str) -> Witness {
        let name = Digest::of(state.as_os_str().as_encoded_bytes()).short();
        Witness { path: run.join(format!("ledger-{name}.json")), boot_id: boot_id.trim().into() }
    }

    /// Notes the last event before anyone is answered for it.
    pub fn note(&self, rev: u64, body: &str) -> Result<()> {
        let last = Last { boot_id: self.boot_id.clone(), rev, digest: Digest::of(body.as_bytes()) };
        let noted = files::write_atomic(&self.path, &serde_json::to_vec(&last)?, 0o600);
        if noted.is_err() {
            let _ = std::fs::remove_file(&self.path); // none is better than an old one
        }
        noted.with_context(|| format!("noting the ledger's last event in {}", self.path.display()))
    }

    /// Why the ledger may not be the newest; `None`: it is. `known`: the site's keys are older than
    /// this start; `at`: reads the event of a revision.
    pub fn doubt(
        &self,
        head: u64,
        known: bool,
        at: impl FnOnce(u64) -> Result<Option<Recorded>>,
    ) -> Result<Option<String>> {
        let last: Option<Last> =
            files::read_bounded(&self.path, FILE_MAX_BYTES).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(last) = last.filter(|l| l.boot_id == self.boot_id) else {
            return Ok(match (head, known) {
                (0, false) => None,
                (0, true) => Some("the ledger is new, the site's keys are not: it was lost".into()),
                _ => Some("nothing on this machine remembers where the ledger ended".into()),
            });
        };
        let event = if last.rev <= head { at(last.rev)? } else { None };
        let same = match event {
            Some(recorded) => Digest::of(serde_json::to_string(&recorded.event)?.as_bytes()) == last.digest,
            None => false,
        };
        Ok((!same).then(|| format!("the ledger ends at event {head}, and event {} was another or is gone", last.rev)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::event::{Event, VERSION};

    #[test]
    fn a_ledger_is_vouched_for_only_while_it_holds_the_last_event() {
        let dir = tempfile::tempdir().unwrap();
        let witness = Witness::new(dir.path(), Path::new("/var/lib/kiln"), "one\n");
        let event = |node: &str| Event::NodeUnheld { node: node.into() };
        let body = |node: &str| serde_json::to_string(&event(node)).unwrap();
        let recorded = |node: &str| Ok(Some(Recorded { rev: 5, at_ms: 1, v: VERSION, event: event(node) }));
        let nothing = |_| Ok(None);
        assert_eq!(witness.doubt(0, false, nothing).unwrap(), None, "a first start");
        assert!(witness.doubt(0, true, nothing).unwrap().unwrap().contains("lost"));
        assert!(witness.doubt(7, true, nothing).unwrap().unwrap().contains("remembers"));
        witness.note(5, &body("a")).unwrap();
        assert_eq!(witness.doubt(5, true, |_| recorded("a")).unwrap(), None);
        assert_eq!(witness.doubt(7, true, |_| recorded("a")).unwrap(), None, "killed before it was noted");
        assert!(witness.doubt(5, true, |_| recorded("b")).unwrap().is_some());
        assert!(witness.doubt(4, true, nothing).unwrap().is_some());
        assert!(witness.doubt(0, true, nothing).unwrap().is_some());
        let later = Witness::new(dir.path(), Path::new("/var/lib/kiln"), "two");
        assert!(later.doubt(5, true, |_| recorded("a")).unwrap().unwrap().contains("remembers"));
        std::fs::write(&witness.path, "junk").unwrap();
        assert!(witness.doubt(5, true, |_| recorded("a")).unwrap().is_some());
    }
}
