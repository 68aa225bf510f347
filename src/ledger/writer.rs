//! The one writer: a thread drains a bounded queue, decides, appends the batch, then answers.
//! Whoever got an answer can rely on it: it was synced before. Readers take snapshots.

use super::decide::{Command, Refusal, Why, decide, speaker};
use super::event::Event;
use super::live::Live;
use super::log::{AppendError, Log};
use super::state::State;
use crate::sys::clock;
use anyhow::{Context, Result};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot, watch};

/// Commands that may wait; more are refused with [`Busy`].
pub const QUEUE_MAX: usize = 2048;
/// Commands that share one sync.
const BATCH_MAX: usize = 256;
/// Events replayed in one read at the start.
const REPLAY_CHUNK: usize = 4096;

/// State and memory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub state: Arc<State>,
    pub live: Arc<Live>,
}

/// What a command came to.
#[derive(Debug)]
pub struct Outcome {
    pub events: Vec<Event>,
    /// After them.
    pub snapshot: Snapshot,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("{}", .0.reason)]
    Refused(Refusal),
    /// Nothing was stored; the same may be asked again.
    #[error("the ledger is not available: {0}")]
    Unavailable(String),
}

impl SubmitError {
    /// The refusal's kind, if it is one.
    pub fn why(&self) -> Option<Why> {
        match self {
            SubmitError::Refused(refusal) => Some(refusal.why),
            SubmitError::Unavailable(_) => None,
        }
    }
}

struct Job {
    command: Command,
    reply: oneshot::Sender<Result<Outcome, SubmitError>>,
}

/// A handle to the writer; clone it freely. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Ledger {
    queue: mpsc::Sender<Job>,
    shared: Arc<RwLock<Snapshot>>,
    head: watch::Receiver<u64>,
}

impl Ledger {
    /// Replays the log and starts the writer. Join the handle after the last `Ledger` is gone: its
    /// error is why the ledger could not go on.
    pub fn start(mut log: impl Log + 'static) -> Result<(Ledger, JoinHandle<()>)> {
        let state = replay(&log)?;
        let live = Live::new(clock::monotonic_ms());
        let (tell, head) = watch::channel(state.rev);
        log.watch(Box::new(move |rev| {
            let _ = tell.send(rev);
        }));
        let snapshot = Snapshot { state: Arc::new(state), live: Arc::new(live) };
        let shared = Arc::new(RwLock::new(snapshot.clone()));
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let out = shared.clone();
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || write(log, snapshot, jobs, out))
            .context("starting the ledger's writer")?;
        Ok((Ledger { queue, shared, head }, thread))
    }

    /// What is known now.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Decides a command; returns after its events are durable.
    pub async fn submit(&self, command: Command) -> Result<Outcome, SubmitError> {
        let gone = || SubmitError::Unavailable("its writer ended".into());
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Job { command, reply }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => SubmitError::Unavailable("its queue is full".into()),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Sends a command without waiting; `false`: the queue is full and it was dropped.
    pub fn submit_quietly(&self, command: Command) -> bool {
        let (reply, _) = oneshot::channel();
        self.queue.try_send(Job { command, reply }).is_ok()
    }

    /// The log's head, and a way to wait for it to move.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.head.clone()
    }

    /// Whether the writer has ended: no command will be decided any more.
    pub fn ended(&self) -> bool {
        self.queue.is_closed()
    }
}

fn replay(log: &impl Log) -> Result<State> {
    let mut state = State::default();
    loop {
        let events = log.read_after(state.rev, REPLAY_CHUNK).context("replaying the ledger")?;
        if events.is_empty() {
            return Ok(state);
        }
        for recorded in events {
            anyhow::ensure!(recorded.rev == state.rev + 1, "the ledger has no event {}", state.rev + 1);
            state.apply(&recorded.event);
        }
    }
}

fn write(mut log: impl Log, mut now: Snapshot, mut jobs: mpsc::Receiver<Job>, shared: Arc<RwLock<Snapshot>>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            batch.push(job);
        }
        if let Err(error) = write_batch(&mut log, &mut now, &mut batch, &shared) {
            tracing::error!("ledger stops: {error:#}");
            return; // dropped jobs answer "its writer ended"; the server ends with us
        }
    }
}

type Decided = (oneshot::Sender<Result<Outcome, SubmitError>>, Result<Vec<Event>, Refusal>);

/// An error means that this process no longer knows what the log says.
fn write_batch(
    log: &mut impl Log,
    now: &mut Snapshot,
    batch: &mut Vec<Job>,
    shared: &RwLock<Snapshot>,
) -> Result<(), AppendError> {
    let (before, mut next) = (now.state.rev, now.clone());
    let (mut events, mut decided): (Vec<Event>, Vec<Decided>) = (Vec::new(), Vec::new());
    for Job { command, reply } in batch.drain(..) {
        let result = decide_one(&mut next, &command, clock::monotonic_ms());
        let caused = match &result {
            Ok(events) => events,
            Err(refusal) => &refusal.events,
        };
        events.extend(caused.iter().cloned());
        decided.push((reply, result));
    }
    if !events.is_empty() {
        match log.append_if(before, clock::now_ms(), &events) {
            Ok(_) => {}
            Err(AppendError::Failed(error)) => {
                tracing::error!("ledger cannot write: {error:#}");
                let reason = format!("{error:#}");
                for (reply, _) in decided {
                    let _ = reply.send(Err(SubmitError::Unavailable(reason.clone())));
                }
                return Ok(()); // `now` still says what the log says
            }
            Err(moved) => return Err(moved),
        }
    }
    *now = next;
    *shared.write().unwrap_or_else(|e| e.into_inner()) = now.clone();
    for (reply, result) in decided {
        let outcome = result.map(|events| Outcome { events, snapshot: now.clone() }).map_err(SubmitError::Refused);
        let _ = reply.send(outcome); // whoever asked may be gone
    }
    Ok(())
}

fn decide_one(next: &mut Snapshot, command: &Command, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    let account = speaker(&next.state, command);
    let result = decide(&next.state, &next.live, command, now_ms);
    let caused = match &result {
        Ok(events) => events,
        Err(refusal) => &refusal.events,
    };
    if !caused.is_empty() {
        let state = Arc::make_mut(&mut next.state);
        caused.iter().for_each(|event| state.apply(event));
    }
    let live = Arc::make_mut(&mut next.live);
    // A register that was let in has proved who it is.
    let proved = result.is_ok() && matches!(command, Command::Register { .. });
    if let Some((mac, stranger)) = account.filter(|_| !proved) {
        live.count(mac, stranger, caused.len(), now_ms);
    }
    if result.is_ok() {
        live.note(command, &next.state, now_ms);
    }
    result
}
