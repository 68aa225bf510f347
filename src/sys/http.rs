//! An HTTP/1.1 client with a blocking face: TCP, TLS and unix sockets, time-outs on every wait,
//! bounded heads, bounded or streamed bodies. It keeps no connection and no cookie, follows a
//! redirect only for GET and HEAD, and never retries: whoever calls knows what may be repeated.
//!
//! Every call runs a small runtime of its own on the calling thread; call it from plain threads
//! (inside a tokio runtime: from `spawn_blocking`).

use anyhow::{Context as _, Result, anyhow, bail};
use http_body_util::{BodyExt, Either, Empty, Full};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A response's status line and headers may take about this much.
const HEAD_MAX_BYTES: usize = 64 * 1024;
/// Header lines of a response.
const HEADERS_MAX: usize = 100;
/// Redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// The body that [`Client::request`] keeps; a longer one is an error.
pub const BODY_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// What an error shows of a refusing server's body.
const EXCERPT_MAX_BYTES: usize = 300;
/// File reads of an upload.
const UPLOAD_CHUNK_BYTES: usize = 256 * 1024;
/// The first that exists is the system's bundle (Debian, Red Hat); `SSL_CERT_FILE` goes before.
const CA_BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// How long a call waits. `idle` is the longest silence once connected: no byte in or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Name, connection and TLS handshake together.
    pub connect: Duration,
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(15), idle: Duration::from_secs(60) }
    }
}

/// Where requests go and how. Cheap to clone.
#[derive(Clone, Default)]
pub struct Client {
    tls: Option<Arc<rustls::ClientConfig>>,
    unix: Option<PathBuf>,
    timeouts: Timeouts,
    no_redirects: bool,
}

/// What a request carries.
pub enum Body<'a> {
    Empty,
    Bytes(Vec<u8>),
    /// A file's first `u64` bytes, streamed with that Content-Length.
    File(&'a Path, u64),
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// A server's answer that is not a success; in the error chain of what asked.
#[derive(Debug, thiserror::Error)]
#[error("{method} {url} was answered {status}{}{excerpt}", if excerpt.is_empty() { "" } else { ": " })]
pub struct StatusError {
    pub method: String,
    pub url: String,
    pub status: u16,
    /// Of a `Retry-After` in seconds.
    pub retry_after_secs: Option<u64>,
    pub excerpt: String,
}

/// The status of the refusing answer in an error's chain.
pub fn status_of(error: &anyhow::Error) -> Option<u16> {
    error.chain().find_map(|e| e.downcast_ref::<StatusError>()).map(|e| e.status)
}

/// Whether an error says that nobody answered, or that the server cannot, rather than that the answer
/// was no.
pub fn is_silence(error: &anyhow::Error) -> bool {
    status_of(error).is_none_or(|status| status >= 500)
}

/// What [`Client::download`] fetches.
pub struct Get<'a> {
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// Bytes that the caller has already; a server that ignores Range sends them again and they are dropped.
    pub from: u64,
    /// The whole may be this long; more is an error.
    pub max: u64,
}

/// What a download was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Length of the whole: `from` and what was written.
    pub total: u64,
    pub headers: HeaderMap,
}

impl Client {
    /// http, and https judged by the system's CA bundle (read when first needed).
    pub fn new() -> Client {
        Client::default()
    }

    /// https judged by `config`: a pinned key, a client certificate.
    pub fn with_tls(config: Arc<rustls::ClientConfig>) -> Client {
        Client { tls: Some(config), ..Client::default() }
    }

    /// HTTP over a unix socket; URLs are then bare paths.
    pub fn unix(path: impl Into<PathBuf>) -> Client {
        Client { unix: Some(path.into()), ..Client::default() }
    }

    pub fn timeouts(self, timeouts: Timeouts) -> Client {
        Client { timeouts, ..self }
    }

    /// A redirect is then an answer like any other.
    pub fn without_redirects(self) -> Client {
        Client { no_redirects: true, ..self }
    }

    /// One request, the answer's body kept (at most [`BODY_MAX_BYTES`]). Any status is an answer.
    pub fn request(&self, method: &str, url: &str, headers: &[(&str, &str)], body: Body) -> Result<Response> {
        self.block_on(method, url, async {
            let (parts, incoming, _) = self.send(method, url, headers, body).await?;
            let mut body = Vec::new();
            drain(incoming, BODY_MAX_BYTES, |chunk| {
                body.extend_from_slice(chunk);
                Ok(())
            })
            .await?;
            Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body })
        })
    }

    /// Streams the body of a GET to `to`, which sees the bytes from `from` on; `progress` sees how
    /// many bytes of the whole are there and, where known, how many there will be. A truncated
    /// answer is an error; what was written until then stays written.
    pub fn download(
        &self,
        get: &Get,
        to: &mut dyn Write,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Download> {
        let range = format!("bytes={}-", get.from);
        let mut headers = get.headers.to_vec();
        if get.from > 0 {
            headers.push(("range", &range));
        }
        self.block_on("GET", get.url, async {
            let (parts, incoming, url) = self.send("GET", get.url, &headers, Body::Empty).await?;
            let status = parts.status.as_u16();
            let range = parts.headers.get("content-range").and_then(|v| v.to_str().ok()).and_then(parse_content_range);
            let (start, total) = match (status, range) {
                (200, _) => (0, incoming.size_hint().exact()),
                (206, Some((Some(start), total))) if start <= get.from => (start, total),
                (206, _) => bail!("server sent another range than {}- that was asked for", get.from),
                (416, Some((None, Some(total)))) if total == get.from => {
                    return Ok(Download { total, headers: parts.headers });
                }
                _ => return Err(refusal("GET", &url, &parts, incoming).await),
            };
            if let Some(total) = total.filter(|t| *t > get.max) {
                bail!("body of {total} bytes is larger than the {} expected", get.max);
            }
            let mut skip = get.from - start;
            let mut have = get.from;
            drain(incoming, get.max.saturating_sub(start), |chunk| {
                let fresh = &chunk[(skip.min(chunk.len() as u64)) as usize..];
                skip -= (chunk.len() - fresh.len()) as u64;
                to.write_all(fresh).context("writing the body")?;
                have += fresh.len() as u64;
                progress(have, total);
                Ok(())
            })
            .await?;
            if skip > 0 || total.is_some_and(|t| t != have) {
                bail!("body ended after {} of {} bytes", have - skip, total.unwrap_or(get.from));
            }
            Ok(Download { total: have, headers: parts.headers })
        })
    }

    /// [`Client::download`] without further headers or bound.
    pub fn get_to_writer(
        &self,
        url: &str,
        from: u64,
        to: &mut dyn Write,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Download> {
        self.download(&Get { url, headers: &[], from, max: u64::MAX }, to, progress)
    }

    fn block_on<T>(&self, method: &str, url: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
        let result = runtime.block_on(work);
        runtime.shutdown_background(); // a name look-up may still hang in a thread
        result.map_err(|e| match e.downcast_ref::<StatusError>() {
            Some(_) => e,
            None => e.context(format!("{method} {}", self.shown(url))),
        })
    }

    fn shown(&self, url: &str) -> String {
        match &self.unix {
            Some(path) => format!("{url} at {}", path.display()),
            None => url.to_string(),
        }
    }

    /// Sends and follows redirects; the URL returned is the one that answered.
    async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> Result<(hyper::http::response::Parts, Incoming, String)> {
        let method = Method::from_bytes(method.as_bytes()).context("parsing the method")?;
        let mut target = Target::parse(url, self.unix.as_deref())?;
        let mut headers = parse_headers(headers)?;
        if !(method == Method::GET || method == Method::HEAD) || self.no_redirects || self.unix.is_some() {
            let (parts, incoming) = self.send_once(&method, &target, headers, body).await?;
            return Ok((parts, incoming, target.url()));
        }
        for _ in 0..=REDIRECTS_MAX {
            let (parts, incoming) = self.send_once(&method, &target, headers.clone(), Body::Empty).await?;
            let location = match parts.status.as_u16() {
                301 | 302 | 303 | 307 | 308 => parts.headers.get("location"),
                _ => None,
            };
            let Some(location) = location else { return Ok((parts, incoming, target.url())) };
            let next = target.join(location.to_str().context("reading a redirect's Location")?)?;
            if target.tls && !next.tls {
                bail!("redirect from https to plain {}", next.url());
            }
            if (&next.host, next.port, next.tls) != (&target.host, target.port, target.tls) {
                headers.remove("authorization"); // meant for the first server only
            }
            target = next;
        }
        bail!("more than {REDIRECTS_MAX} redirects, the last to {}", target.url())
    }

    async fn send_once(
        &self,
        method: &Method,
        target: &Target,
        headers: HeaderMap,
        body: Body<'_>,
    ) -> Result<(hyper::http::response::Parts, Incoming)> {
        let mut request = hyper::Request::new(open_body(body)?);
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.path.parse().with_context(|| format!("parsing path {:?}", target.path))?;
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(&target.authority()).context("building the Host header")?;
        request.headers_mut().insert("host", host);
        let agent = HeaderValue::from_static(concat!("kiln/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry("user-agent").or_insert(agent);
        request.headers_mut().insert("connection", HeaderValue::from_static("close"));

        let stream = tokio::time::timeout(self.timeouts.connect, self.connect(target))
            .await
            .map_err(|_| anyhow!("no connection within {} s", self.timeouts.connect.as_secs()))??;
        let stream = IdleLimit::new(stream, self.timeouts.idle);
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_MAX_BYTES)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .context("opening the connection")?;
        tokio::spawn(connection); // its error also reaches the request or the body
        let response = sender.send_request(request).await.context("waiting for the answer")?;
        Ok(response.into_parts())
    }

    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>> {
        if let Some(path) = &self.unix {
            let stream = tokio::net::UnixStream::connect(path)
                .await
                .with_context(|| format!("connecting to {}", path.display()))?;
            return Ok(Box::new(stream));
        }
        let address = || format!("connecting to {}:{}", target.host, target.port);
        let stream = tokio::net::TcpStream::connect((target.host.as_str(), target.port)).await.with_context(address)?;
        stream.set_nodelay(true)?;
        if !target.tls {
            return Ok(Box::new(stream));
        }
        let config = match &self.tls {
            Some(config) => config.clone(),
            None => system_tls()?,
        };
        let name = ServerName::try_from(target.host.clone()).with_context(|| format!("reading {:?}", target.host))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.with_context(address)?;
        Ok(Box::new(stream))
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The answer itself when its status is 2xx, else a [`StatusError`].
    pub fn success(self, method: &str, url: &str) -> Result<Response> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        Err(status_error(method, url, self.status, &self.headers, &self.body).into())
    }
}

/// The URL that a `Location` means, seen from `base`.
pub fn join(base: &str, location: &str) -> Result<String> {
    Ok(Target::parse(base, None)?.join(location)?.url())
}

/// Whether two URLs lead to the same server: scheme, host and port.
pub fn same_origin(a: &str, b: &str) -> bool {
    match (Target::parse(a, None), Target::parse(b, None)) {
        (Ok(a), Ok(b)) => (a.tls, a.host, a.port) == (b.tls, b.host, b.port),
        _ => false,
    }
}

/// Trust in the system's CA bundle, read once a process.
pub fn system_tls() -> Result<Arc<rustls::ClientConfig>> {
    static SYSTEM: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = SYSTEM.get() {
        return Ok(config.clone());
    }
    let path = std::env::var_os("SSL_CERT_FILE")
        .map(PathBuf::from)
        .or_else(|| CA_BUNDLES.iter().map(PathBuf::from).find(|p| p.exists()))
        .ok_or_else(|| anyhow!("no CA bundle for https at {CA_BUNDLES:?}; install ca-certificates"))?;
    let mut roots = rustls::RootCertStore::empty();
    let reading = || format!("reading CA bundle {}", path.display());
    for certificate in CertificateDer::pem_file_iter(&path).with_context(reading)? {
        // One certificate that this library cannot read must not take the others away.
        let _ = roots.add(certificate.with_context(reading)?);
    }
    if roots.is_empty() {
        bail!("CA bundle {} holds no usable certificate", path.display());
    }
    let config = tls_builder()?.with_root_certificates(roots).with_no_client_auth();
    Ok(SYSTEM.get_or_init(|| Arc::new(config)).clone())
}

/// The start of every TLS client configuration: our provider, TLS 1.2 and 1.3.
pub fn tls_builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

/// Where a request goes, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    tls: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl Target {
    fn parse(url: &str, unix: Option<&Path>) -> Result<Target> {
        let uri: Uri = url.parse().with_context(|| format!("parsing URL {url:?}"))?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
        if unix.is_some() {
            return Ok(Target { tls: false, host: "localhost".into(), port: 80, path });
        }
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("URL {url:?} is neither http nor https"),
        };
        let authority =
            uri.authority().filter(|a| !a.host().is_empty()).ok_or_else(|| anyhow!("{url:?} has no host"))?;
        if authority.as_str().contains('@') {
            bail!("URL for host {} carries a user or password; none may stand in a URL", authority.host());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Target { tls, host, port, path })
    }

    /// A `Location`: a whole URL, `//host/…`, `/path` or relative.
    fn join(&self, location: &str) -> Result<Target> {
        let scheme = if self.tls { "https" } else { "http" };
        let location = location.split('#').next().unwrap_or_default();
        let url = if location.contains("://") {
            location.to_string()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", self.authority())
        } else {
            let folder = self.path.split('?').next().and_then(|p| p.rsplit_once('/')).map_or("", |(f, _)| f);
            format!("{scheme}://{}{folder}/{location}", self.authority())
        };
        Target::parse(&url, None)
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// `bytes START-END/TOTAL`, `bytes */TOTAL`: start and total.
fn parse_content_range(value: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    if range == "*" {
        return Some((None, total));
    }
    let (start, _) = range.split_once('-')?;
    Some((Some(start.trim().parse().ok()?), total))
}

fn parse_headers(headers: &[(&str, &str)]) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let parsed = HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("parsing header {name:?}"))?;
        // The value may be a credential: name only.
        let mut value = HeaderValue::from_str(value).with_context(|| format!("parsing the value of {name:?}"))?;
        value.set_sensitive(parsed == "authorization");
        map.append(parsed, value);
    }
    Ok(map)
}

async fn drain(mut body: Incoming, max: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut total = 0u64;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("reading the body")?.into_data() {
            total += data.len() as u64;
            if total > max {
                bail!("body is larger than {max} bytes");
            }
            each(&data)?;
        }
    }
    Ok(())
}

async fn refusal(method: &str, url: &str, parts: &hyper::http::response::Parts, body: Incoming) -> anyhow::Error {
    let mut kept = Vec::new();
    let _ = drain(body, HEAD_MAX_BYTES as u64, |chunk| {
        kept.extend_from_slice(chunk);
        Ok(())
    })
    .await; // the status is the error; its text is a help
    status_error(method, url, parts.status.as_u16(), &parts.headers, &kept).into()
}

fn status_error(method: &str, url: &str, status: u16, headers: &HeaderMap, body: &[u8]) -> StatusError {
    let text = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_MAX_BYTES)]);
    let excerpt = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let retry_after_secs = headers.get("retry-after").and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
    StatusError { method: method.into(), url: url.into(), status, retry_after_secs, excerpt }
}

type UploadBody = Either<Empty<Bytes>, Either<Full<Bytes>, FileBody>>;

fn open_body(body: Body) -> Result<UploadBody> {
    Ok(match body {
        Body::Empty => Either::Left(Empty::new()),
        Body::Bytes(bytes) => Either::Right(Either::Left(Full::new(bytes.into()))),
        Body::File(path, length) => {
            let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            Either::Right(Either::Right(FileBody { file, left: length }))
        }
    })
}

/// A file as a request body. It reads on the only thread of the call's own runtime.
struct FileBody {
    file: File,
    left: u64,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = vec![0; UPLOAD_CHUNK_BYTES.min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        Poll::Ready(Some(match self.file.read(&mut chunk) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file became shorter while it was sent")),
            Ok(n) => {
                chunk.truncate(n);
                self.left -= n as u64;
                Ok(Frame::data(chunk.into()))
            }
            Err(e) => Err(e),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Fails a stream on which no byte moved for `limit`.
struct IdleLimit {
    inner: Box<dyn Stream>,
    limit: Duration,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl IdleLimit {
    fn new(inner: Box<dyn Stream>, limit: Duration) -> IdleLimit {
        IdleLimit { inner, limit, timer: Box::pin(tokio::time::sleep(limit)) }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            let next = tokio::time::Instant::now() + self.limit;
            self.timer.as_mut().reset(next);
            return polled;
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let message = format!("nothing moved for {:?}", self.limit);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
            }
        }
    }
}

impl AsyncRead for IdleLimit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.judge(cx, polled)
    }
}

impl AsyncWrite for IdleLimit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
