//! The way to the server with the generation's certificate: claims, ends of steps, reports. The
//! certificate may be another from one message to the next.

use super::Event;
use super::register::Registration;
use crate::join::node::{Action, Job, Outcome, peer_told};
use crate::ledger::message::{DoneAnswer, Handover, PeerTask, Verdict};
use crate::sys::files;
use crate::sys::http::{Client, Timeouts, status_of};
use crate::sys::json;
use anyhow::{Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(5), idle: Duration::from_secs(10) };

/// Clone it freely.
#[derive(Clone)]
pub struct Link {
    handover: Arc<Handover>,
    /// None until this boot has registered.
    client: Arc<Mutex<Option<Client>>>,
    events: Sender<Event>,
}

impl Link {
    pub(super) fn new(handover: &Handover, events: Sender<Event>) -> Link {
        Link { handover: Arc::new(handover.clone()), client: Arc::default(), events }
    }

    /// Goes on with this registration's certificate.
    pub(super) fn renew(&self, registration: &Registration) -> Result<()> {
        let client = registration.client(&self.handover, TIMEOUTS)?;
        *self.client.lock().unwrap_or_else(|e| e.into_inner()) = Some(client);
        Ok(())
    }

    /// Posts to a route of the TLS side; an answer that says that this certificate is no longer
    /// known also becomes an event.
    pub fn post<Answer: DeserializeOwned>(
        &self,
        route: &str,
        body: &impl Serialize,
        timeouts: Option<Timeouts>,
    ) -> Result<Answer> {
        let client = self.client.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let client = client.ok_or_else(|| anyhow!("this boot has not registered yet"))?;
        let client = timeouts.map_or(client.clone(), |t| client.timeouts(t));
        let result = json::post(&client, &format!("https://{}/v1/{route}", self.handover.tls), body);
        if let Err(e) = &result
            && matches!(status_of(e), Some(401 | 403))
        {
            let _ = self.events.send(Event::Refused(format!("{e:#}")));
        }
        result
    }

    /// Does a job that is a message to the server; `None`: it is not one.
    pub fn perform(&self, action: &Action) -> Option<Outcome> {
        if let Some(request) = action.job.claim(&action.system) {
            let starts = matches!(action.job, Job::AskStart { .. });
            // From here on the server may count on this system being stopped, until it lets it start.
            if starts && let Err(e) = self.note_asked(&action.system) {
                return Some(Outcome::Failed(format!("noting the question on the state disk: {e:#}")));
            }
            let answer = self.post::<Verdict>("claim", &request, None);
            if starts && matches!(answer, Ok(Verdict::Seed | Verdict::Join { .. })) {
                self.forget_asked(&action.system);
            }
            return Some(answer.map_or_else(|e| Outcome::Failed(format!("{e:#}")), Outcome::Answered));
        }
        let request = action.job.told(&action.system)?;
        let told = self.post::<DoneAnswer>("done", &request, None);
        Some(told.map_or_else(|e| Outcome::Failed(format!("{e:#}")), |_| Outcome::Done("told".into())))
    }

    /// Tells that a peer step ended here; a lost word is made good by running the step again.
    pub fn tell_peer(&self, task: &PeerTask, outcome: &Outcome) {
        if let Err(e) = self.post::<DoneAnswer>("done", &peer_told(task, outcome), None) {
            eprintln!("{}/{} for {}: telling the server: {e:#}", task.system, task.step, task.node);
        }
    }

    fn asked(&self) -> Option<PathBuf> {
        self.handover.state_dir.as_ref().map(|dir| Path::new(dir).join("kiln/asked"))
    }

    fn note_asked(&self, system: &str) -> Result<()> {
        let Some(dir) = self.asked() else { return Ok(()) };
        let path = dir.join(system);
        if path.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&dir)?;
        files::write_atomic(&path, b"", 0o600)?;
        files::sync_dir(&dir)
    }

    fn forget_asked(&self, system: &str) {
        // A note that stays only makes a boot without the server wait for it.
        let _ = self.asked().map(|dir| std::fs::remove_file(dir.join(system)));
    }

    /// Systems of `all` that the server was not left waiting for: they may start without it.
    pub fn may_start(&self, all: impl Iterator<Item = String>) -> BTreeSet<String> {
        let asked = self.asked();
        all.filter(|system| asked.as_ref().is_some_and(|dir| !dir.join(system).exists())).collect()
    }
}
