//! The TLS sockets: hyper's HTTP/1.1 over rustls. A node is known by the certificate of its current
//! generation; before it has one, by a credential or by its signature.

use super::certificate::{Authority, Identity};
use super::csr;
use crate::image::id::Digest;
use crate::ledger::answer;
use crate::ledger::decide::{self, Answer, Boot, Command, Issued, Shown, Why};
use crate::ledger::event::Asked;
use crate::ledger::message::{
    BootAnswer, BootRequest, ClaimRequest, DiskAnswer, DiskRequest, DoneAnswer, DoneRequest, KexecBoot, Refusal,
    RegisterAnswer, RegisterRequest, Report, ReportAnswer, Via,
};
use crate::ledger::state::State;
use crate::ledger::writer::{Ledger, SubmitError};
use crate::pxe::counters::Counters;
use crate::pxe::script::{self, Place};
use crate::site::{Mac, view};
use crate::sys::clock;
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::WebPkiClientVerifier;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// The largest message: a boot request with many disks, a report with many systems.
pub const BODY_MAX_BYTES: usize = 256 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Body and answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at once.
pub const CONNECTIONS_MAX: usize = 4096;
/// A held boot asks again after this.
const HOLD_RETRY_SECS: u64 = 5;
/// Registers of one node that overtake each other try so often.
const RACES_MAX: usize = 4;

/// The site's secrets, by dotted name; replaced when the operator's file is read again.
pub type Secrets = Arc<std::sync::RwLock<BTreeMap<String, String>>>;
/// The address that kiln's DHCP leased to a card, if any.
pub type Leased = Box<dyn Fn(Mac) -> Option<Ipv4Addr> + Send + Sync>;

/// What stands behind the TLS side.
pub struct Api {
    pub ledger: Ledger,
    pub authority: Authority,
    pub secrets: Secrets,
    pub leased: Leased,
    /// This server answers DHCP itself.
    pub authoritative: bool,
    /// What a kernel's arguments say of this server.
    pub http_port: u16,
    pub tls_port: u16,
    pub pin: Digest,
    /// Credentials are made from it and from the boot, so that the same boot gets the same one.
    pub credential_key: [u8; 32],
    pub counters: Arc<Counters>,
}

/// TLS with the site's key; clients may show a certificate of our authority.
pub fn acceptor(identity: Identity, authority: &Authority) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate.clone()).context("trusting our own authority")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("preparing the verification of nodes")?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate], identity.key)
        .context("loading the server's TLS key")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until dropped.
pub async fn run(listener: TcpListener, acceptor: TlsAcceptor, api: Arc<Api>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                api.counters.add("tls_errors", "accept");
                tracing::warn!("tls: accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let IpAddr::V4(source) = peer.ip().to_canonical() else { continue };
        let (acceptor, api) = (acceptor.clone(), api.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(end) = connection(stream, acceptor, api.clone(), source).await {
                api.counters.add("tls_errors", end);
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    api: Arc<Api>,
    source: Ipv4Addr,
) -> Result<(), &'static str> {
    let _ = stream.set_nodelay(true);
    let from = Ends { source, reached: stream.local_addr().map_err(|_| "reset")? };
    let tls = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.map_err(|_| "handshake-time-out")?;
    let tls = tls.map_err(|_| "handshake")?;
    // The handshake has checked that our authority signed it.
    let certificate = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
    let peer = certificate.map(|c| Peer { fingerprint: Digest::of(c), shown: certificate_names(c) });
    let service = service_fn(move |request| {
        let api = api.clone();
        let peer = peer.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(&api, from, peer, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(tls), service)
        .await;
    served.map_err(|e| if e.is_timeout() { "time-out" } else { "connection" })
}

type Reply = Response<Full<Bytes>>;

/// Whose certificate a connection came with.
#[derive(Clone)]
struct Peer {
    fingerprint: Digest,
    shown: Option<Shown>,
}

fn certificate_names(der: &[u8]) -> Option<Shown> {
    super::certificate::names(der).map(|(node, generation)| Shown { node, generation })
}

/// Both ends of a connection.
#[derive(Clone, Copy)]
struct Ends {
    source: Ipv4Addr,
    /// The address of ours.
    reached: SocketAddr,
}

async fn respond(api: &Api, from: Ends, peer: Option<Peer>, request: Request<Incoming>) -> Reply {
    let answered = timeout(REQUEST_TIMEOUT, dispatch(api, from, peer, request)).await;
    let reply = answered.unwrap_or_else(|_| Err(Failed(503, "the server is busy".into())));
    reply.unwrap_or_else(|Failed(status, error)| {
        api.counters.add("tls_refused", if status >= 500 { "unavailable" } else { "refused" });
        if status >= 500 {
            api.ledger.submit_quietly(Command::Failed { source: from.source });
        }
        json(status, &Refusal { error })
    })
}

/// An error answer: status and reason.
struct Failed(u16, String);

impl From<SubmitError> for Failed {
    fn from(error: SubmitError) -> Failed {
        let status = match error.why() {
            Some(Why::Invalid) => 400,
            Some(Why::NotFound) => 404,
            Some(Why::Refused) => 403,
            Some(Why::Hold | Why::Restart | Why::Raced) => 409,
            None => 503,
        };
        Failed(status, error.to_string())
    }
}

async fn dispatch(api: &Api, from: Ends, peer: Option<Peer>, request: Request<Incoming>) -> Result<Reply, Failed> {
    let source = from.source;
    let path = format!("/{}", request.uri().path().trim_matches('/'));
    let order = path.strip_prefix("/v1/orders/").and_then(|rest| rest.strip_suffix("/begin"));
    const ROUTES: [&str; 6] = ["/v1/boot", "/v1/disk", "/v1/register", "/v1/report", "/v1/claim", "/v1/done"];
    if !ROUTES.contains(&path.as_str()) && order.is_none() {
        return Err(Failed(404, "nothing of that name here".into()));
    }
    if request.method() != Method::POST {
        return Err(Failed(405, "this can be asked with POST".into()));
    }
    if let Some(order) = order {
        let order = order.to_string();
        return begin(api, source, order, read(request).await?).await;
    }
    match path.as_str() {
        "/v1/boot" => boot(api, source, read(request).await?).await,
        "/v1/disk" => disk(api, source, read(request).await?).await,
        "/v1/register" => register(api, source, peer.and_then(|p| p.shown), read(request).await?).await,
        "/v1/claim" => claim(api, known(peer)?, read(request).await?).await,
        "/v1/done" => done(api, known(peer)?, read(request).await?).await,
        _ => report(api, from, known(peer)?, read(request).await?).await,
    }
}

fn known(peer: Option<Peer>) -> Result<Digest, Failed> {
    peer.map(|p| p.fingerprint).ok_or_else(|| Failed(403, "this needs the generation's certificate".into()))
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failed> {
    let body = Limited::new(request.into_body(), BODY_MAX_BYTES).collect().await;
    let body = body.map_err(|e| Failed(413, format!("reading the body: {e}")))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| Failed(400, format!("body is not such a message: {e}")))
}

fn json(status: u16, body: &impl Serialize) -> Reply {
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

async fn boot(api: &Api, source: Ipv4Addr, request: BootRequest) -> Result<Reply, Failed> {
    let credential = credential(&api.credential_key, &request, source);
    let command = Boot {
        request: request.clone(),
        source,
        leased: (api.leased)(request.mac),
        authoritative: api.authoritative,
        credential: credential.clone(),
    };
    let held = |reason, restart| json(200, &BootAnswer::Hold { reason, retry_secs: HOLD_RETRY_SECS, restart });
    let hold = |reason| held(reason, false);
    let outcome = match api.ledger.submit(Command::Boot(Box::new(command))).await {
        Ok(outcome) => outcome,
        Err(error) if error.why() == Some(Why::Hold) => return Ok(hold(error.to_string())),
        Err(error) if error.why() == Some(Why::Restart) => return Ok(held(error.to_string(), true)),
        Err(error) => return Err(error.into()),
    };
    let state = &outcome.snapshot.state;
    let crate::ledger::identify::Identity::Node { name, .. } =
        crate::ledger::identify::identify(state, request.mac, request.uuid)
    else {
        return Ok(hold("the site was changed meanwhile".into()));
    };
    match answer::boot(state, &name, &request, &credential, clock::now_ms()) {
        Some(go) => Ok(json(200, &BootAnswer::Go(Box::new(go)))),
        None => Ok(hold("the site was changed meanwhile".into())),
    }
}

/// The same boot from the same address gets the same credential, so that an answer that was lost
/// can be given again; nobody else can compute it. Hashed twice: the inner hash cannot be extended.
fn credential(key: &[u8; 32], request: &BootRequest, source: Ipv4Addr) -> String {
    let boot = format!("{}\n{}\n{source}\n", request.mac, request.boot_id);
    let inner = Digest::of(&[key.as_slice(), boot.as_bytes()].concat());
    Digest::of(&[key.as_slice(), inner.0.as_slice()].concat()).hex()
}

async fn disk(api: &Api, source: Ipv4Addr, request: DiskRequest) -> Result<Reply, Failed> {
    let granted = "the site names this disk and it is blank";
    disk_answer(api, Command::Disk { request, source }, granted, None).await
}

async fn begin(api: &Api, source: Ipv4Addr, order: String, request: DiskRequest) -> Result<Reply, Failed> {
    let command = Command::Begin { order: order.clone(), request, source };
    disk_answer(api, command, "the order says so and the site names this disk", Some(order)).await
}

async fn disk_answer(api: &Api, command: Command, granted: &str, order: Option<String>) -> Result<Reply, Failed> {
    let (format, reason) = match api.ledger.submit(command).await {
        Ok(_) => (true, granted.to_string()),
        Err(error) if error.why() == Some(Why::Refused) => (false, error.to_string()),
        Err(error) => return Err(error.into()),
    };
    Ok(json(200, &DiskAnswer { format, reason, order }))
}

async fn register(
    api: &Api,
    source: Ipv4Addr,
    shown: Option<Shown>,
    request: RegisterRequest,
) -> Result<Reply, Failed> {
    let parse = |pem: &str| csr::parse(pem).map_err(|reason| Failed(400, reason));
    let csr = parse(&request.csr)?;
    for _ in 0..RACES_MAX {
        let now = api.ledger.snapshot();
        // A certificate is made only for a register that would be let in; the refused one goes on
        // to the ledger all the same, which may raise an alarm.
        let shown = shown.as_ref();
        let at = clock::monotonic_ms();
        let admitted = decide::check_register(&now.state, &now.live, &request, source, shown, at).ok();
        let issue = |a: decide::Admitted| api.authority.issue(&csr, &request.node, a.generation, clock::now_ms());
        let certificate = admitted.map(issue).transpose().map_err(|e| Failed(500, e))?;
        let issued = admitted
            .zip(certificate.as_ref())
            .map(|(a, c)| Issued { generation: a.generation, fingerprint: c.fingerprint });
        let command = Command::Register { request: Box::new(request.clone()), source, issued, shown: shown.cloned() };
        let outcome = match api.ledger.submit(command).await {
            Ok(outcome) => outcome,
            Err(error) if error.why() == Some(Why::Raced) => continue,
            Err(error) => return Err(error.into()),
        };
        let (Some(admitted), Some(certificate)) = (admitted, certificate) else { continue };
        let state = &outcome.snapshot.state;
        let view = state.site.as_ref().and_then(|site| view::view(site, &request.node));
        let view = view.ok_or_else(|| Failed(404, "the node left the site meanwhile".into()))?;
        let secrets = {
            let all = api.secrets.read().unwrap_or_else(|e| e.into_inner());
            answer::secrets(state, &view.node.name, &all)
        };
        let mut certificates = BTreeMap::new();
        for name in answer::certificates(state, &view.node.name) {
            let Some(pem) = request.certificates.get(name) else { continue };
            let (node, address) = (&view.node.name, view.node.address);
            let peer = api.authority.issue_peer(&parse(pem)?, name, node, address, clock::now_ms());
            certificates.insert(name.clone(), peer.map_err(|e| Failed(500, e))?);
        }
        return Ok(json(
            200,
            &RegisterAnswer {
                generation: admitted.generation,
                certificate: certificate.pem,
                certificate_expires_ms: certificate.expires_ms,
                view,
                secrets,
                certificates,
                now_ms: clock::now_ms(),
            },
        ));
    }
    Err(Failed(409, "registers of this node overtake each other; try again".into()))
}

async fn report(api: &Api, from: Ends, fingerprint: Digest, report: Report) -> Result<Reply, Failed> {
    let outcome = api.ledger.submit(Command::Report { fingerprint, report }).await?;
    let now = &outcome.snapshot;
    let name = now.state.by_fingerprint(&fingerprint).map(|(name, _)| name.as_str()).unwrap_or_default();
    let peers = decide::peers(&now.state, &now.live, name, clock::monotonic_ms());
    let stand_down = decide::stand_down(&now.state, &now.live, name, clock::monotonic_ms());
    let restart = decide::restart(&now.state, &now.live, name, clock::monotonic_ms()).and_then(|r| r.ok());
    let drain = now.state.nodes.get(name).and_then(|known| decide::drain_task(known));
    let kexec = if restart.is_some() { kexec(api, from, &now.state, name).await } else { None };
    Ok(json(200, &ReportAnswer { now_ms: clock::now_ms(), peers, stand_down, restart, kexec, drain }))
}

/// The boot of the node's order, if it goes there without its firmware: recorded like a script's.
async fn kexec(api: &Api, from: Ends, state: &State, name: &str) -> Option<KexecBoot> {
    let known = state.nodes.get(name)?;
    let order = &known.open_order().filter(|o| o.order.via == Via::Kexec)?.order;
    let (mac, image) = (known.session.as_ref()?.mac, &order.image);
    let answer = Answer {
        mac,
        node: Some(name.to_string()),
        asked: Asked::Kexec,
        address: Some(from.source),
        facts: BTreeMap::from([("order".to_string(), order.id.clone())]),
        rule: "order".into(),
        answer: format!("boot image {}", image.id.short()),
        image: Some(image.id),
    };
    let recorded = api.ledger.submit(Command::Answer(Box::new(answer))).await.ok()?;
    let last = recorded.snapshot.state.machines.get(&mac)?.answers.get(&Asked::Kexec)?.rev;
    let server = SocketAddr::new(from.reached.ip().to_canonical(), api.http_port);
    let place = Place { server, mac, uuid: None, architecture: None };
    let boot = script::Boot {
        node: state.site_node(name)?,
        image,
        management: &state.site.as_ref()?.management,
        address: from.source,
        tls_port: api.tls_port,
        pin: api.pin,
        answer: last,
    };
    // A script would hold the node with the reason; a restart through the firmware shows it there.
    let cmdline = script::arguments(&place, &boot).ok()?;
    Some(KexecBoot { image: image.id, cmdline })
}

/// What was decided is folded by now; asked again, the same question gets the same answer.
async fn claim(api: &Api, fingerprint: Digest, request: ClaimRequest) -> Result<Reply, Failed> {
    let outcome = api.ledger.submit(Command::Claim { fingerprint, request: request.clone() }).await?;
    let now = &outcome.snapshot;
    let verdict = decide::verdict(&now.state, &now.live, &fingerprint, &request, clock::monotonic_ms())
        .map_err(|refusal| Failed(409, refusal.reason))?;
    Ok(json(200, &verdict))
}

async fn done(api: &Api, fingerprint: Digest, request: DoneRequest) -> Result<Reply, Failed> {
    api.ledger.submit(Command::Done { fingerprint, request }).await?;
    Ok(json(200, &DoneAnswer { now_ms: clock::now_ms() }))
}
