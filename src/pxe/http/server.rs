//! The sockets of the nodes' plain side, written by hand because blobs go out by sendfile(2): no
//! byte of them passes through this process, and no store file is ever mapped, so that one that is
//! truncated underneath ends its connection and nothing else. Runs on a runtime of its own: a slow
//! disk stalls only these threads.

use super::range::{Part, part};
use super::route::{Route, RouteError, ScriptQuery, route};
use crate::image::id::{Digest, ImageId};
use crate::image::repository::Member;
use crate::ledger::message::{PhaseReport, Refusal};
use crate::ledger::timeline;
use crate::pxe::counters::Counters;
use crate::pxe::loaders::content_type;
use crate::sys::clock;
use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A request's head: firmware sends less than 1 KiB.
pub const HEAD_MAX_BYTES: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// A phase report's body.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// From the first byte of a request to its last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// An idle connection; iPXE and EDK2 keep theirs for the next file.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that takes no byte for so long is gone.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The ledger's answer to a script or a phase.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; more wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 2048;
/// Of one address.
pub const CONNECTIONS_PER_PEER_MAX: usize = 64;
/// Given to sendfile in one call, so that connections take turns (nginx's default).
const CHUNK_BYTES: u64 = 2 * 1024 * 1024;
/// Asked to come back after this when the ledger does not answer, seconds.
const BUSY_RETRY_SECS: u64 = 5;

/// What a machine gets for its script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptReply {
    Script(String),
    /// 503: iPXE waits so long and asks again, without a limit.
    Later {
        retry_secs: u64,
        reason: String,
    },
    /// 404: not ours.
    No(String),
}

/// A question for a script with where it came from and which address of ours it reached.
#[derive(Clone, Debug)]
pub struct ScriptAsk {
    pub query: ScriptQuery,
    pub from: Ipv4Addr,
    pub to: SocketAddr,
}

/// What stands behind this side. The look-ups may touch the disk.
pub trait Plain: Send + Sync + 'static {
    /// Recorded before it is answered.
    fn script(&self, ask: ScriptAsk) -> impl Future<Output = ScriptReply> + Send;
    /// Recorded before it is answered; an error is (status, reason).
    fn phase(&self, report: PhaseReport) -> impl Future<Output = Result<(), (u16, String)>> + Send;
    /// A blob of an image, with the length that it must have.
    fn blob(&self, digest: &Digest) -> Option<(File, u64)>;
    /// A file of a preloaded repository: its blob, with the length that it must have, and the file's
    /// place in it.
    fn repository(&self, digest: &Digest, path: &str) -> Option<(File, u64, Member)>;
    /// The signed manifest.
    fn manifest(&self, id: &ImageId) -> Option<Vec<u8>>;
    fn loader(&self, name: &str) -> Option<Arc<[u8]>>;
    /// This server could not serve what it should have to that address.
    fn failed(&self, peer: Ipv4Addr);
    fn counters(&self) -> &Counters;
}

/// Serves until dropped.
pub async fn run<P: Plain>(listener: TcpListener, plain: Arc<P>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let peers: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: wait for connections to end.
                plain.counters().add("http_errors", "accept");
                tracing::warn!("http: accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(guest) = Guest::enter(&peers, peer.ip()) else {
            plain.counters().add("http_errors", "too-many-connections");
            continue;
        };
        let plain = plain.clone();
        tokio::spawn(async move {
            let _held = (slot, guest);
            let _ = stream.set_nodelay(true);
            if let Err(end) = (Connection { stream, peer, plain: plain.clone(), buffer: Vec::new() }).serve().await {
                plain.counters().add("http_errors", end);
            }
        });
    }
}

/// One more connection of an address, until dropped.
struct Guest {
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    ip: IpAddr,
}

impl Guest {
    fn enter(peers: &Arc<Mutex<HashMap<IpAddr, usize>>>, ip: IpAddr) -> Option<Guest> {
        let mut counts = peers.lock().unwrap_or_else(|e| e.into_inner());
        let count = counts.entry(ip).or_default();
        if *count >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Guest { peers: peers.clone(), ip })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.peers.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

/// Why a connection ended early: the counter's reason.
type End = &'static str;

/// What this server reads of a request's head.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    method: String,
    target: String,
    range: Option<String>,
    if_range: Option<String>,
    if_none_match: Option<String>,
    length: Option<u64>,
    chunked: bool,
    expects: bool,
    keep: bool,
    /// HTTP/1.0
    old: bool,
}

enum Body {
    Bytes(Arc<[u8]>),
    File { file: File, start: u64, end: u64 },
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
    /// The connection cannot be used any more.
    close: bool,
}

impl Reply {
    fn text(status: u16, kind: &str, text: impl Into<String>) -> Reply {
        let body = Body::Bytes(text.into().into_bytes().into());
        Reply { status, headers: vec![("Content-Type", kind.into())], body, close: false }
    }

    fn plain(status: u16, text: impl std::fmt::Display) -> Reply {
        Reply::text(status, "text/plain; charset=utf-8", format!("{text}\n"))
    }

    fn refusal(status: u16, reason: String) -> Reply {
        let json = serde_json::to_string(&Refusal { error: reason }).unwrap_or_default();
        Reply::text(status, "application/json", json)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    fn closing(mut self) -> Reply {
        self.close = true;
        self
    }
}

struct Connection<P> {
    stream: TcpStream,
    peer: SocketAddr,
    plain: Arc<P>,
    /// Bytes read and not used yet.
    buffer: Vec<u8>,
}

impl<P: Plain> Connection<P> {
    async fn serve(mut self) -> Result<(), End> {
        loop {
            let (head, reply) = match self.head().await? {
                None => return Ok(()),
                Some(Ok(head)) => {
                    let reply = self.answer(&head).await?;
                    (head, reply)
                }
                Some(Err(reason)) => {
                    self.plain.counters().add("http_errors", "malformed");
                    (Head::default(), Reply::plain(400, reason).closing())
                }
            };
            self.plain.counters().add("http_requests", class(reply.status));
            let keep = head.keep && !reply.close;
            let ours = reply.status >= 500;
            let sent = self.send(&head, reply, keep).await;
            if ours || matches!(sent, Err("truncated-blob" | "disk-error")) {
                self.failed();
            }
            sent?;
            if !keep {
                let _ = self.stream.shutdown().await;
                return Ok(());
            }
        }
    }

    /// The next head: `None` when the client is done, an inner error when it makes no sense.
    async fn head(&mut self) -> Result<Option<Result<Head, String>>, End> {
        let mut begun = !self.buffer.is_empty();
        let mut deadline = tokio::time::Instant::now() + if begun { REQUEST_TIMEOUT } else { IDLE_TIMEOUT };
        loop {
            match parse_head(&self.buffer) {
                Ok(Some((head, used))) => {
                    self.buffer.drain(..used);
                    return Ok(Some(Ok(head)));
                }
                Ok(None) if self.buffer.len() >= HEAD_MAX_BYTES => {
                    return Ok(Some(Err(format!("request head is longer than {HEAD_MAX_BYTES} bytes"))));
                }
                Ok(None) => {}
                Err(reason) => return Ok(Some(Err(reason))),
            }
            let room = HEAD_MAX_BYTES - self.buffer.len();
            let mut limited = (&mut self.stream).take(room as u64);
            let read = tokio::time::timeout_at(deadline, limited.read_buf(&mut self.buffer)).await;
            match read {
                Err(_) if !begun => return Ok(None),
                Err(_) => return Err("request-time-out"),
                Ok(Ok(0)) if self.buffer.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err("truncated-request"),
                // Firmware resets connections that it does not need any more.
                Ok(Err(_)) if self.buffer.is_empty() => return Ok(None),
                Ok(Err(_)) => return Err("reset"),
                Ok(Ok(_)) if !begun => {
                    begun = true;
                    deadline = tokio::time::Instant::now() + REQUEST_TIMEOUT;
                }
                Ok(Ok(_)) => {}
            }
        }
    }

    async fn answer(&mut self, head: &Head) -> Result<Reply, End> {
        let length = head.length.unwrap_or(0);
        if head.chunked {
            return Ok(Reply::plain(411, "send the body with a Content-Length").closing());
        }
        if length > BODY_MAX_BYTES as u64 {
            return Ok(Reply::plain(413, format!("body is longer than {BODY_MAX_BYTES} bytes")).closing());
        }
        let route = match route(&head.method, &head.target) {
            Ok(route) => route,
            Err(error) => {
                let reply = match error {
                    RouteError::Bad(_) => {
                        self.plain.counters().add("http_errors", "malformed");
                        Reply::plain(400, error)
                    }
                    RouteError::NotFound => Reply::plain(404, error),
                    RouteError::Method(allowed) => Reply::plain(405, error).with("Allow", allowed),
                };
                // An unread body would be taken for the next request.
                return Ok(if length > 0 { reply.closing() } else { reply });
            }
        };
        let body = self.body(length as usize, head.expects).await?;
        Ok(match route {
            Route::Script(query) => self.script(query).await,
            Route::Phase => self.phase(&body).await,
            Route::Blob(digest) => match self.plain.blob(&digest) {
                Some((file, size)) => self.blob(head, &digest, file, size, Member { start: 0, size }),
                None => {
                    self.failed(); // an address of it came from us
                    Reply::plain(404, "no such blob here")
                }
            },
            Route::Repository(digest, path) => match self.plain.repository(&digest, &path) {
                Some((file, size, member)) => self.blob(head, &digest, file, size, member),
                None => Reply::plain(404, "no such file of a preloaded repository here"),
            },
            Route::Manifest(id) => match self.plain.manifest(&id) {
                Some(bytes) => whole(bytes.into(), "application/json", head, &format!("\"{id}\"")),
                None => Reply::plain(404, format!("no image {id} here")),
            },
            Route::Loader(name) => match self.plain.loader(&name) {
                Some(bytes) => cut(bytes, content_type(&name), head),
                None => Reply::plain(404, "no boot loader of that name here"),
            },
        })
    }

    fn failed(&self) {
        if let IpAddr::V4(peer) = self.peer.ip().to_canonical() {
            self.plain.failed(peer);
        }
    }

    async fn body(&mut self, length: usize, expects: bool) -> Result<Vec<u8>, End> {
        if expects && self.buffer.len() < length {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let read = async {
            while self.buffer.len() < length {
                let mut limited = (&mut self.stream).take((length - self.buffer.len()) as u64);
                if limited.read_buf(&mut self.buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok::<(), io::Error>(())
        };
        match timeout(REQUEST_TIMEOUT, read).await {
            Err(_) => return Err("request-time-out"),
            Ok(Err(_)) => return Err("truncated-request"),
            Ok(Ok(())) => {}
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn script(&self, query: ScriptQuery) -> Reply {
        let (IpAddr::V4(from), Ok(to)) = (self.peer.ip().to_canonical(), self.stream.local_addr()) else {
            return Reply::plain(400, "boot scripts are for IPv4 machines");
        };
        let busy = || {
            let reason = "the server is busy".to_string();
            ScriptReply::Later { retry_secs: BUSY_RETRY_SECS, reason }
        };
        let reply = timeout(ANSWER_TIMEOUT, self.plain.script(ScriptAsk { query, from, to })).await;
        match reply.unwrap_or_else(|_| busy()) {
            ScriptReply::Script(text) => {
                Reply::text(200, "text/plain; charset=utf-8", text).with("Cache-Control", "no-store")
            }
            ScriptReply::Later { retry_secs, reason } => {
                Reply::plain(503, reason).with("Retry-After", retry_secs.to_string())
            }
            ScriptReply::No(reason) => Reply::plain(404, reason),
        }
    }

    async fn phase(&self, body: &[u8]) -> Reply {
        let report = match serde_json::from_slice(body) {
            Ok(report) => report,
            Err(error) => {
                self.plain.counters().add("http_errors", "malformed");
                return Reply::refusal(400, format!("body is not a phase report: {error}"));
            }
        };
        match timeout(ANSWER_TIMEOUT, self.plain.phase(report)).await {
            Ok(Ok(())) => Reply::text(200, "application/json", "{}"),
            Ok(Err((status, reason))) => Reply::refusal(status, reason),
            Err(_) => Reply::refusal(503, "the server is busy".into()).with("Retry-After", BUSY_RETRY_SECS.to_string()),
        }
    }

    /// A part of a blob that is `whole` bytes long, or a range of that part.
    fn blob(&self, head: &Head, digest: &Digest, file: File, whole: u64, of: Member) -> Reply {
        match file.metadata() {
            Ok(metadata) if metadata.len() == whole && of.start.checked_add(of.size).is_some_and(|e| e <= whole) => {}
            _ => {
                self.plain.counters().add("http_errors", "damaged-blob");
                tracing::warn!("http: blob {digest} is not {whole} bytes long: next: kiln image verify");
                return Reply::plain(500, "this blob is damaged; the server's operator must look");
            }
        }
        let etag = if of.size == whole { format!("\"{digest}\"") } else { format!("\"{digest}+{}\"", of.start) };
        let unchanged = |reply: Reply| {
            reply.with("ETag", etag.clone()).with("Cache-Control", "public, max-age=31536000, immutable")
        };
        if head.if_none_match.as_deref().is_some_and(|have| have == etag || have == "*") {
            return unchanged(Reply { status: 304, headers: vec![], body: Body::Bytes(Arc::default()), close: false });
        }
        let headers = vec![("Content-Type", "application/octet-stream".into()), ("Accept-Ranges", "bytes".into())];
        let size = of.size;
        let body = |start: u64, end: u64| Body::File { file, start: of.start + start, end: of.start + end };
        match part(range_of(head), head.if_range.as_deref(), &etag, size) {
            Part::Whole => unchanged(Reply { status: 200, headers, body: body(0, size), close: false }),
            Part::Some { start, end } => {
                let range = format!("bytes {start}-{}/{size}", end - 1);
                unchanged(Reply { status: 206, headers, body: body(start, end), close: false })
                    .with("Content-Range", range)
            }
            Part::Unsatisfiable => {
                Reply::plain(416, "range lies behind the end").with("Content-Range", format!("bytes */{size}"))
            }
        }
    }

    async fn send(&mut self, head: &Head, reply: Reply, keep: bool) -> Result<(), End> {
        let length = match &reply.body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { start, end, .. } => end - start,
        };
        let mut out = format!("HTTP/1.1 {} {}\r\n", reply.status, phrase(reply.status));
        for (name, value) in &reply.headers {
            out += &format!("{name}: {value}\r\n");
        }
        if reply.status != 304 {
            out += &format!("Content-Length: {length}\r\n");
        }
        if !keep {
            out += "Connection: close\r\n";
        } else if head.old {
            out += "Connection: keep-alive\r\n";
        }
        out += &format!("Date: {}\r\n\r\n", timeline::http_date(clock::now_ms()));
        let mut bytes = out.into_bytes();
        let bodyless = head.method == "HEAD";
        match reply.body {
            _ if bodyless => self.write(&bytes).await,
            Body::Bytes(body) => {
                bytes.extend_from_slice(&body);
                self.write(&bytes).await
            }
            Body::File { file, start, end } => {
                self.write(&bytes).await?;
                self.send_file(&file, start, end).await
            }
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        while !bytes.is_empty() {
            match timeout(STALL_TIMEOUT, self.stream.write(bytes)).await {
                Err(_) => return Err("write-stall"),
                Ok(Ok(0)) | Ok(Err(_)) => return Err("reset"),
                Ok(Ok(sent)) => bytes = &bytes[sent..],
            }
        }
        Ok(())
    }

    async fn send_file(&mut self, file: &File, start: u64, end: u64) -> Result<(), End> {
        let mut offset = start as libc::off64_t;
        while (offset as u64) < end {
            let count = (end - offset as u64).min(CHUNK_BYTES) as usize;
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                nix::sys::sendfile::sendfile64(&self.stream, file, Some(&mut offset), count).map_err(io::Error::from)
            });
            match timeout(STALL_TIMEOUT, sent).await {
                Err(_) => return Err("write-stall"),
                // The file ended early: somebody truncated it. The client sees a broken transfer.
                Ok(Ok(0)) => return Err("truncated-blob"),
                Ok(Ok(sent)) => self.plain.counters().add_many("http_bytes", "blobs", sent as u64),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Err("disk-error"),
                Ok(Err(_)) => return Err("reset"),
            }
        }
        Ok(())
    }
}

/// A range is only of a GET.
fn range_of(head: &Head) -> Option<&str> {
    head.range.as_deref().filter(|_| head.method == "GET")
}

fn whole(body: Arc<[u8]>, kind: &str, head: &Head, etag: &str) -> Reply {
    if head.if_none_match.as_deref() == Some(etag) {
        return Reply {
            status: 304,
            headers: vec![("ETag", etag.into())],
            body: Body::Bytes(Arc::default()),
            close: false,
        };
    }
    let headers = vec![("Content-Type", kind.to_string()), ("ETag", etag.to_string())];
    Reply { status: 200, headers, body: Body::Bytes(body), close: false }
}

/// A loader from memory, or a range of it: some firmware asks for pieces.
fn cut(bytes: Arc<[u8]>, kind: &str, head: &Head) -> Reply {
    let etag = format!("\"{}\"", Digest::of(&bytes));
    let size = bytes.len() as u64;
    let reply = match part(range_of(head), head.if_range.as_deref(), &etag, size) {
        Part::Whole => whole(bytes, kind, head, &etag),
        Part::Some { start, end } => {
            let mut reply = whole(bytes[start as usize..end as usize].into(), kind, head, &etag);
            reply.status = 206;
            reply.with("Content-Range", format!("bytes {start}-{}/{size}", end - 1))
        }
        Part::Unsatisfiable => {
            Reply::plain(416, "range lies behind the end").with("Content-Range", format!("bytes */{size}"))
        }
    };
    reply.with("Accept-Ranges", "bytes")
}

/// A whole head and its length in bytes; `None`: more bytes are needed.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let used = match request.parse(bytes).map_err(|e| format!("request is not HTTP/1: {e}"))? {
        httparse::Status::Complete(used) => used,
        httparse::Status::Partial => return Ok(None),
    };
    let mut head = Head {
        method: request.method.unwrap_or_default().to_string(),
        target: request.path.unwrap_or_default().to_string(),
        old: request.version == Some(0),
        ..Head::default()
    };
    head.keep = !head.old;
    for header in request.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        let known =
            ["range", "if-range", "if-none-match", "content-length", "transfer-encoding", "expect", "connection"];
        if !known.contains(&name.as_str()) {
            continue;
        }
        let value = std::str::from_utf8(header.value).map_err(|_| format!("header {name} is not text"))?.trim();
        match name.as_str() {
            "range" => head.range = Some(value.into()),
            "if-range" => head.if_range = Some(value.into()),
            "if-none-match" => head.if_none_match = Some(value.into()),
            "transfer-encoding" => head.chunked = true,
            "expect" => head.expects = value.eq_ignore_ascii_case("100-continue"),
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let length = value.parse().ok().filter(|_| digits);
                // Two lengths, or one that is no number: where the next request starts is a guess.
                if length.is_none() || head.length.is_some_and(|old| Some(old) != length) {
                    return Err(format!("content-length {value:?} makes no sense"));
                }
                head.length = length;
            }
            _ => {
                for word in value.split(',').map(str::trim) {
                    if word.eq_ignore_ascii_case("close") {
                        head.keep = false;
                    } else if word.eq_ignore_ascii_case("keep-alive") && head.old {
                        head.keep = true;
                    }
                }
            }
        }
    }
    Ok(Some((head, used)))
}

fn class(status: u16) -> &'static str {
    match status {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_are_read_and_ambiguous_ones_refused() {
        let head = |text: &str| parse_head(text.as_bytes()).map(|h| h.map(|(h, _)| h));
        let get = head("GET /x HTTP/1.1\r\nHost: a\r\nRANGE: bytes=1-\r\n\r\n").unwrap().unwrap();
        assert_eq!((get.method.as_str(), get.target.as_str(), get.keep), ("GET", "/x", true));
        assert_eq!(get.range.as_deref(), Some("bytes=1-"));
        assert!(!head("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().keep);
        assert!(head("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().unwrap().keep);
        assert!(!head("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap().unwrap().keep);
        assert_eq!(head("GET / HTTP/1.1\r\nHost"), Ok(None));
        for bad in [
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nRange: \u{1}\r\n\r\n",
            "\u{0}\u{1}\r\n\r\n",
            "GET /\r\n\r\n",
        ] {
            assert!(head(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_head_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes);
        }

        #[test]
        fn no_header_is_a_panic(name in "(?i)(range|content-length|connection|expect|x)", value in "[ -~\\x80-\\xff]{0,40}") {
            let _ = parse_head(format!("GET / HTTP/1.1\r\n{name}: {value}\r\n\r\n").as_bytes());
        }
    }
}
