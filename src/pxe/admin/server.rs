//! The operator's sockets.

use super::message::{Done, Explanation, Request as Order, cluster, detail, nodes, rollout};
use super::metrics;
use crate::ledger::decide::{Command, Why, decide, site_diff};
use crate::ledger::message::Refusal;
use crate::ledger::rollout::PackageChange;
use crate::ledger::sqlite::Reader;
use crate::ledger::writer::{Ledger, SubmitError};
use crate::ledger::{Event, Recorded, explain, timeline};
use crate::pxe::counters::Counters;
use crate::sys::clock;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A site of thousands of nodes as JSON.
pub const BODY_MAX_BYTES: usize = 16 * 1024 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Events in one answer.
const EVENTS_MAX: usize = 1000;
/// How long `GET /api/events` waits for the next one.
const FOLLOW: Duration = Duration::from_secs(20);
/// Lines of a node's timeline.
const TIMELINE_MAX: usize = 200;
/// Answers that an explanation goes back to.
const EXPLAIN_ANSWERS: usize = 6;
/// The same at most.
const EXPLAIN_MAX: usize = 200;
/// Of one node's events, to find an old answer.
const HISTORY_MAX: usize = 100_000;

/// What an order for an image or a site becomes: names are looked up in the store. Runs where it
/// may block; an error is (status, reason).
pub type Translate = Box<dyn Fn(Order, &Ledger) -> Result<Command, (u16, String)> + Send + Sync>;

/// What stands behind the operator's side.
pub struct Admin {
    pub ledger: Ledger,
    pub reader: Reader,
    pub counters: Arc<Counters>,
    /// Counters that others keep: (name, reason, count), sorted.
    pub more: Box<dyn Fn() -> Vec<(&'static str, &'static str, u64)> + Send + Sync>,
    pub translate: Translate,
    /// Called after a command that changed something.
    pub changed: Box<dyn Fn(&Ledger) + Send + Sync>,
}

/// Serves the API on the unix socket until dropped.
pub async fn run_socket(listener: UnixListener, admin: Arc<Admin>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, admin.clone(), true),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Serves health and metrics until dropped.
pub async fn run_listen(listener: TcpListener, admin: Arc<Admin>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, admin.clone(), false),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn spawn(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, admin: Arc<Admin>, operator: bool) {
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let admin = admin.clone();
            async move { Ok::<_, std::convert::Infallible>(respond(&admin, operator, request).await) }
        });
        // A client that goes away in the middle is no news.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
}

type Reply = Response<Full<Bytes>>;
type Answer = Result<Reply, (u16, String)>;

async fn respond(admin: &Arc<Admin>, operator: bool, request: Request<Incoming>) -> Reply {
    let answer = dispatch(admin, operator, request).await;
    answer.unwrap_or_else(|(status, error)| reply(status, "application/json", to_json(&Refusal { error })))
}

async fn dispatch(admin: &Arc<Admin>, operator: bool, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_string();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let get = request.method() == Method::GET;
    match parts[..] {
        ["healthz"] if get => Ok(reply(200, "text/plain", b"ok\n".to_vec())),
        ["readyz"] if get => Ok(ready(admin)),
        ["metrics"] if get => {
            let counts = [admin.counters.all(), (admin.more)()].concat();
            let text = metrics::render(&counts, &admin.ledger.snapshot(), clock::monotonic_ms());
            Ok(reply(200, "text/plain; version=0.0.4", text.into_bytes()))
        }
        _ if !operator => Err((404, "nothing of that name here".into())),
        ["api", "nodes"] if get => {
            let now = admin.ledger.snapshot();
            Ok(json(&nodes(&now.state, &now.live, clock::monotonic_ms())))
        }
        ["api", "cluster"] if get => {
            let now = admin.ledger.snapshot();
            Ok(json(&cluster(&now.state, &now.live, clock::monotonic_ms())))
        }
        ["api", "rollout"] if get => {
            let now = admin.ledger.snapshot();
            let view = rollout(&now.state, &now.live, clock::monotonic_ms());
            view.map(|v| json(&v)).ok_or_else(|| (404, "no rollout was started yet".into()))
        }
        ["api", "node", name] if get => {
            let events = history(admin, name, TIMELINE_MAX)?;
            let now = admin.ledger.snapshot();
            let lines = timeline::of_node(&events);
            let found = detail(&now.state, &now.live, name, lines, clock::monotonic_ms());
            found.map(|d| json(&d)).ok_or_else(|| no_node(name))
        }
        ["api", "explain", name] if get => {
            let uri = request.uri().query().unwrap_or_default();
            let query = |key| value(uri, key);
            let events = history(admin, name, if query("answer").is_some() { HISTORY_MAX } else { 10 * TIMELINE_MAX })?;
            if events.is_empty() && admin.ledger.snapshot().state.site_node(name).is_none() {
                return Err(no_node(name));
            }
            let count = query("last").map_or(EXPLAIN_ANSWERS, |n| n as usize).min(EXPLAIN_MAX);
            let only = query("answer");
            let events: Vec<Recorded> = events.into_iter().filter(|r| only.is_none_or(|rev| r.rev == rev)).collect();
            let lines = explain::chain(&events, count);
            match only {
                Some(rev) if lines.is_empty() => Err((404, format!("event {rev} is no answer to {name}"))),
                _ => Ok(json(&Explanation { lines })),
            }
        }
        ["api", "events"] if get => events(admin, request.uri().query().unwrap_or_default()).await,
        ["api", "images-in-use"] if get => {
            let ids: Vec<String> =
                admin.ledger.snapshot().state.images_in_use().iter().map(|id| id.to_string()).collect();
            Ok(json(&ids))
        }
        ["api", "command"] if request.method() == Method::POST => command(admin, request).await,
        _ => Err((404, "nothing of that name here".into())),
    }
}

fn no_node(name: &str) -> (u16, String) {
    (404, format!("no node {name:?}; see kiln node ls"))
}

fn ready(admin: &Admin) -> Reply {
    let site = admin.ledger.snapshot().state.site.is_some();
    match (admin.ledger.ended(), site) {
        (true, _) => reply(503, "text/plain", b"the ledger's writer ended\n".to_vec()),
        (false, false) => reply(503, "text/plain", b"no site applied\n".to_vec()),
        (false, true) => reply(200, "text/plain", b"ok\n".to_vec()),
    }
}

/// A node's events, with those of its cards from before it was known by them.
fn history(admin: &Admin, name: &str, limit: usize) -> Result<Vec<Recorded>, (u16, String)> {
    let state = admin.ledger.snapshot().state;
    let mut subjects = vec![name.to_string()];
    subjects.extend(state.site_node(name).iter().flat_map(|n| &n.macs).map(|m| m.to_string()));
    let approved = state.machines.iter().filter(|(_, m)| m.approved.as_deref() == Some(name));
    subjects.extend(approved.map(|(mac, _)| mac.to_string()));
    subjects.sort();
    subjects.dedup();
    let mut all = Vec::new();
    for subject in subjects {
        all.extend(admin.reader.of(&subject, limit).map_err(|e| (500, format!("{e:#}")))?);
    }
    all.sort_by_key(|r| r.rev);
    let from = all.len().saturating_sub(limit);
    Ok(all.split_off(from))
}

/// A number of a query.
fn value(query: &str, key: &str) -> Option<u64> {
    query.split('&').find_map(|p| p.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// `?from=REV` events after that revision; `&follow=1` waits for one; `&last=N` the newest N.
async fn events(admin: &Admin, query: &str) -> Answer {
    let value = |key| value(query, key);
    let mut head = admin.ledger.head();
    let from = match value("last") {
        Some(last) => head.borrow().saturating_sub(last),
        None => value("from").unwrap_or(0),
    };
    if value("follow").is_some() {
        let _ = tokio::time::timeout(FOLLOW, head.wait_for(|rev| *rev > from)).await;
    }
    let events = admin.reader.after(from, EVENTS_MAX).map_err(|e| (500, format!("{e:#}")))?;
    Ok(json(&events))
}

async fn command(admin: &Arc<Admin>, request: Request<Incoming>) -> Answer {
    let body = Limited::new(request.into_body(), BODY_MAX_BYTES).collect().await;
    let body = body.map_err(|e| (413, format!("reading the body: {e}")))?.to_bytes();
    let order: Order = serde_json::from_slice(&body).map_err(|e| (400, format!("body is not a command: {e}")))?;
    if let Order::SiteDiff { site } = &order {
        let changes = site_diff(admin.ledger.snapshot().state.site.as_deref(), site);
        return Ok(json(&Done { changes, order: None }));
    }
    let plan = matches!(order, Order::RolloutStart { plan: true, .. });
    let translator = admin.clone();
    let command = tokio::task::spawn_blocking(move || (translator.translate)(order, &translator.ledger))
        .await
        .map_err(|_| (500, "looking up the image failed".to_string()))??;
    let failed = |error: SubmitError| {
        let status = match (&error, error.why()) {
            (SubmitError::Unavailable(_), _) => 503,
            (_, Some(Why::NotFound)) => 404,
            (_, Some(Why::Invalid)) => 400,
            _ => 409,
        };
        (status, error.to_string())
    };
    if plan && let Command::StartRollout(asked) = &command {
        // Decided, not done.
        let now = admin.ledger.snapshot();
        let decided = decide(&now.state, &now.live, &command, clock::monotonic_ms());
        let events = decided.map_err(|refusal| failed(SubmitError::Refused(refusal)))?;
        let packages = asked.changes.iter().map(PackageChange::line);
        let nodes = events.iter().find_map(|event| match event {
            Event::RolloutStarted { rollout } => {
                Some(format!("nodes, one after the other: {}", rollout.nodes.join(" ")))
            }
            _ => None,
        });
        return Ok(json(&Done { changes: packages.chain(nodes).collect(), order: None }));
    }
    let outcome = admin.ledger.submit(command).await.map_err(failed)?;
    if !outcome.events.is_empty() {
        let after = admin.clone();
        let _ = tokio::task::spawn_blocking(move || (after.changed)(&after.ledger)).await;
    }
    let order = outcome.events.iter().find_map(|event| match event {
        Event::OrderGiven { order, .. } => Some(order.id.clone()),
        _ => None,
    });
    Ok(json(&Done { changes: outcome.events.iter().map(timeline::line).collect(), order }))
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn json(value: &impl Serialize) -> Reply {
    reply(200, "application/json", to_json(value))
}

fn reply(status: u16, kind: &'static str, body: Vec<u8>) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}
