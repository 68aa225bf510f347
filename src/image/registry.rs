//! Images to and from an OCI distribution registry. A push makes the tag last, a pull commits only
//! what is whole; blobs that are there already are not sent. A pull checks that one of the builders
//! that the image names signed it, not whether anybody should trust that builder: the node's
//! initramfs decides that, and the caller shows the key.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>

use super::id::{Digest, ImageId};
use super::manifest::{Config, Descriptor, Image, MEDIA_MANIFEST};
use super::reference::{Name, signature_tag};
use super::remote::{Challenge, Pick, Remote};
use super::sign::{self, Envelope};
use super::signature::{MEDIA_SIGNATURE, SignatureManifest};
use super::store::{CONFIG_MAX_BYTES, ENVELOPE_MAX_BYTES, MANIFEST_MAX_BYTES, Store};
use crate::sys::files;
use crate::sys::http::{self, Body, Client, Get, Response, StatusError, Timeouts};
use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A registry may hash a whole layer before it answers.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(15), idle: Duration::from_secs(300) };
/// Attempts of one blob's download, each going on where the last one broke.
const PULL_ATTEMPTS_MAX: u32 = 5;
/// Before another attempt, times its number.
const PULL_PAUSE: Duration = Duration::from_millis(500);
/// A `config.json` with credentials.
const AUTH_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// How a blob's transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is on the other side already.
    Cached,
    /// So many bytes of it are over.
    Moved(u64),
    Done,
}

/// Hears of every blob.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Descriptor, Progress);

/// What [`pull`] brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub id: ImageId,
    pub name: Option<Name>,
    /// Public keys that signed it.
    pub signers: Vec<String>,
}

/// User and password for one registry.
#[derive(Clone)]
pub struct Credentials(String);

impl Credentials {
    /// From the first of those files (docker's `config.json` form) that knows the host.
    pub fn find(files: &[PathBuf], host: &str) -> Result<Option<Credentials>> {
        for path in files.iter().filter(|p| p.exists()) {
            let bytes = files::read_bounded(path, AUTH_FILE_MAX_BYTES)?;
            let found = auth_of(&bytes, host).map_err(|e| anyhow!(e));
            if let Some(auth) = found.with_context(|| format!("reading credentials from {}", path.display()))? {
                return Ok(Some(Credentials(auth)));
            }
        }
        Ok(None)
    }
}

/// The `auth` of a host in docker's `config.json`. Errors say nothing of the content.
fn auth_of(bytes: &[u8], host: &str) -> Result<Option<String>, String> {
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: line {}", e.line()))?;
    let keys = [host.to_string(), format!("https://{host}"), format!("http://{host}"), format!("https://{host}/")];
    let Some(auth) = keys.iter().find_map(|k| json["auths"][k]["auth"].as_str()).filter(|a| !a.is_empty()) else {
        return Ok(None);
    };
    match base64::engine::general_purpose::STANDARD.decode(auth) {
        Ok(pair) if pair.contains(&b':') => Ok(Some(auth.to_string())),
        _ => Err(format!("auth of {host} is not base64 of user:password")),
    }
}

/// Pushes an image and its signature to `remote`.
pub fn push(
    store: &Store,
    id: &ImageId,
    remote: &Remote,
    credentials: Option<Credentials>,
    on_progress: OnProgress,
) -> Result<()> {
    let image = store.image(id)?;
    let (manifest, signature) = (store.manifest_bytes(id)?, store.signature_manifest(id)?);
    let parsed = SignatureManifest::parse(&signature, id).map_err(|e| anyhow!(e))?;
    if matches!(remote.pick, Pick::Digest(digest) if digest != *id) {
        bail!("image {id} cannot be pushed as {remote}: that digest is another image's");
    }
    let mut registry = Registry::new(remote, credentials);
    let mut seen = BTreeSet::new();
    for blob in image.blobs().chain(parsed.blobs()).filter(|b| seen.insert(b.digest)) {
        registry
            .push_blob(blob, &store.blob_path(&blob.digest), on_progress)
            .with_context(|| format!("pushing {} of image {id}", blob.label()))?;
    }
    // The tag last: whoever sees it finds everything behind it.
    registry.put_manifest(&id.to_string(), &manifest)?;
    registry.put_manifest(&signature_tag(id), &signature)?;
    if let Pick::Tag(tag) = &remote.pick {
        registry.put_manifest(tag, &manifest)?;
    }
    Ok(())
}

/// Pulls an image; by a tag it gets that tag here too. On any error the store is as it was.
pub fn pull(
    store: &Store,
    remote: &Remote,
    credentials: Option<Credentials>,
    on_progress: OnProgress,
) -> Result<Pulled> {
    let pulled = Registry::new(remote, credentials).pull(store, on_progress);
    let settled = store.settle();
    let pulled = pulled.with_context(|| format!("pulling {remote}"))?;
    settled?;
    Ok(pulled)
}

/// A conversation with one repository.
struct Registry<'a> {
    client: Client,
    remote: &'a Remote,
    base: String,
    credentials: Option<Credentials>,
    /// Value of the Authorization header, once a challenge was met.
    authorization: Option<String>,
}

impl<'a> Registry<'a> {
    fn new(remote: &'a Remote, credentials: Option<Credentials>) -> Self {
        let client = Client::new().timeouts(TIMEOUTS);
        Registry { client, remote, base: remote.base(), credentials, authorization: None }
    }

    fn pull(&mut self, store: &Store, on_progress: OnProgress) -> Result<Pulled> {
        let manifest = self.get_manifest(&self.remote.pick.to_string())?;
        let image = Image::parse(&manifest).map_err(|e| anyhow!(e))?;
        if matches!(self.remote.pick, Pick::Digest(digest) if digest != image.id) {
            bail!("the registry sent another manifest: {}", image.id);
        }
        let envelope = self.get_envelope(&image.id).context("fetching the signature")?;
        // Judged before the large blobs are fetched.
        let config = &image.manifest.config;
        if config.size > CONFIG_MAX_BYTES {
            bail!("config of {} bytes is larger than {CONFIG_MAX_BYTES}", config.size);
        }
        self.pull_blob(store, config, on_progress).context("fetching the config")?;
        let parsed: Config = serde_json::from_slice(&store.read_blob(&config.digest, CONFIG_MAX_BYTES)?)
            .with_context(|| format!("parsing config {}", config.digest))?;
        if sign::open(&envelope, &parsed.builders).map_err(|e| anyhow!(e))? != manifest {
            bail!("the signature is that of another manifest");
        }
        for blob in &image.manifest.layers {
            self.pull_blob(store, blob, on_progress).with_context(|| format!("fetching {}", blob.label()))?;
        }
        let name = match &self.remote.pick {
            Pick::Tag(tag) => Some(Name::of(&parsed.release, &parsed.role, tag).map_err(|e| anyhow!(e))?),
            Pick::Digest(_) => None,
        };
        let id = store.commit(&manifest, &envelope, name.as_ref().map(Name::to_string).as_deref())?;
        Ok(Pulled { id, name, signers: envelope.signatures.into_iter().map(|s| s.keyid).collect() })
    }

    fn get_manifest(&mut self, reference: &str) -> Result<Vec<u8>> {
        let url = format!("{}/manifests/{reference}", self.base);
        let response = self.request("GET", &url, &[("accept", MEDIA_MANIFEST)], &|| Body::Empty)?;
        let body = explained(response, "GET", &url)?.body;
        if body.len() as u64 > MANIFEST_MAX_BYTES {
            bail!("manifest {reference} is larger than {MANIFEST_MAX_BYTES} bytes");
        }
        Ok(body)
    }

    /// By the tag that we push; else by the registry's list of what refers to the image.
    fn get_envelope(&mut self, id: &ImageId) -> Result<Envelope> {
        let manifest = match self.get_manifest(&signature_tag(id)) {
            Err(e) if http::status_of(&e) == Some(404) => match self.referrer(id)? {
                Some(digest) => self.get_manifest(&digest.to_string())?,
                None => bail!("the registry has no signature of image {id}"),
            },
            fetched => fetched?,
        };
        let parsed = SignatureManifest::parse(&manifest, id).map_err(|e| anyhow!(e))?;
        let blob = parsed.envelope();
        if blob.size > ENVELOPE_MAX_BYTES {
            bail!("signature of {} bytes is larger than {ENVELOPE_MAX_BYTES}", blob.size);
        }
        let mut bytes = Vec::new();
        self.download(blob, 0, &mut bytes, &mut |_, _| ())?;
        if Digest::of(&bytes) != blob.digest {
            bail!("the registry sent other bytes for {}", blob.digest);
        }
        serde_json::from_slice(&bytes).context("parsing the signature")
    }

    fn referrer(&mut self, id: &ImageId) -> Result<Option<Digest>> {
        let url = format!("{}/referrers/{id}?artifactType={MEDIA_SIGNATURE}", self.base);
        let response = self.request("GET", &url, &[], &|| Body::Empty)?;
        if response.status == 404 {
            return Ok(None);
        }
        let list: serde_json::Value = serde_json::from_slice(&explained(response, "GET", &url)?.body)?;
        let rows = list["manifests"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|r| r["artifactType"] == MEDIA_SIGNATURE);
        Ok(row.and_then(|r| r["digest"].as_str()).and_then(|d| d.parse().ok()))
    }

    fn pull_blob(&mut self, store: &Store, blob: &Descriptor, on_progress: OnProgress) -> Result<()> {
        if store.claim(&blob.digest)? == Some(blob.size)
            && files::hash_file(&store.blob_path(&blob.digest))? == blob.digest.0
        {
            on_progress(blob, Progress::Cached);
            return Ok(());
        }
        let mut writer = store.writer()?;
        let mut attempt = 1;
        loop {
            let from = writer.written();
            let moved = &mut |done, _: Option<u64>| on_progress(blob, Progress::Moved(done));
            match self.download(blob, from, &mut writer, moved) {
                Ok(()) => break,
                // A broken connection, not a refusal and not our own full disk.
                Err(e) if attempt < PULL_ATTEMPTS_MAX && !writer.failed() && http::status_of(&e).is_none() => {
                    std::thread::sleep(PULL_PAUSE * attempt);
                    attempt = if writer.written() > from { 1 } else { attempt + 1 };
                }
                Err(e) => return Err(e),
            }
        }
        writer.finish(Some(&blob.digest))?;
        on_progress(blob, Progress::Done);
        Ok(())
    }

    fn download(
        &mut self,
        blob: &Descriptor,
        from: u64,
        to: &mut dyn Write,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        for fresh in [false, true] {
            let authorization = self.authorization.clone();
            let headers: Vec<(&str, &str)> = authorization.iter().map(|a| ("authorization", a.as_str())).collect();
            match self.client.download(&Get { url: &url, headers: &headers, from, max: blob.size }, to, progress) {
                Ok(done) if done.total == blob.size => return Ok(()),
                Ok(done) => bail!("blob {} has {} bytes, not {}", blob.digest, done.total, blob.size),
                // The token may have run out during a long pull.
                Err(e) if http::status_of(&e) == Some(401) && !fresh => {
                    let response = self.client.request("HEAD", &url, &[], Body::Empty)?;
                    self.answer_challenge(&response)?;
                }
                Err(e) => return Err(e),
            }
        }
        bail!("{} refuses the credentials that it was given", self.remote.host)
    }

    fn push_blob(&mut self, blob: &Descriptor, path: &Path, on_progress: OnProgress) -> Result<()> {
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let there = self.request("HEAD", &url, &[], &|| Body::Empty)?;
        match there.status {
            200 => {
                on_progress(blob, Progress::Cached);
                return Ok(());
            }
            404 => {}
            _ => drop(explained(there, "HEAD", &url)?),
        }
        let url = format!("{}/blobs/uploads/", self.base);
        let started =
            explained(self.request("POST", &url, &[("content-length", "0")], &|| Body::Empty)?, "POST", &url)?;
        let location = started.header("location").ok_or_else(|| anyhow!("registry named no place for the upload"))?;
        let mut url = http::join(&url, location)?;
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&format!("digest={}", blob.digest));
        let headers = [("content-type", "application/octet-stream")];
        let sent = self.request("PUT", &url, &headers, &|| Body::File(path, blob.size))?;
        explained(sent, "PUT", &url)?;
        on_progress(blob, Progress::Done);
        Ok(())
    }

    fn put_manifest(&mut self, reference: &str, bytes: &[u8]) -> Result<()> {
        let url = format!("{}/manifests/{reference}", self.base);
        let headers = [("content-type", MEDIA_MANIFEST)];
        let sent = self.request("PUT", &url, &headers, &|| Body::Bytes(bytes.to_vec()))?;
        explained(sent, "PUT", &url).map(drop)
    }

    /// One request; a challenge is answered once.
    fn request<'b>(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &dyn Fn() -> Body<'b>,
    ) -> Result<Response> {
        let send = |registry: &Self| {
            let mut headers = headers.to_vec();
            // An upload's place may be another host: the credentials are for this one.
            if let Some(value) = registry.authorization.as_deref().filter(|_| http::same_origin(url, &registry.base)) {
                headers.push(("authorization", value));
            }
            registry.client.request(method, url, &headers, body())
        };
        let response = send(self)?;
        if response.status != 401 {
            return Ok(response);
        }
        self.answer_challenge(&response)?;
        send(self)
    }

    fn answer_challenge(&mut self, response: &Response) -> Result<()> {
        let host = &self.remote.host;
        let header = response.header("www-authenticate").unwrap_or_default();
        let challenge = Challenge::parse(header);
        let basic = self.credentials.as_ref().map(|c| format!("Basic {}", c.0));
        let Some(challenge) = challenge else {
            bail!("{host} asks for an authentication that kiln does not know: {header:?}")
        };
        let Some(url) = challenge.token_url() else {
            let asked = || anyhow!("{host} asks for a password; log in with docker, podman or skopeo login {host}");
            self.authorization = Some(basic.ok_or_else(asked)?);
            return Ok(());
        };
        if self.remote.tls && !url.starts_with("https://") {
            bail!("{host} wants its password sent to a place without TLS: {url}");
        }
        let headers: Vec<(&str, &str)> = basic.iter().map(|b| ("authorization", b.as_str())).collect();
        let answer = self.client.request("GET", &url, &headers, Body::Empty)?;
        let answer = explained(answer, "GET", &url).with_context(|| format!("asking for a token for {host}"))?;
        let json: serde_json::Value = serde_json::from_slice(&answer.body).context("reading the token")?;
        let token = json["token"].as_str().or(json["access_token"].as_str());
        self.authorization = Some(format!("Bearer {}", token.ok_or_else(|| anyhow!("{host} gave no token"))?));
        Ok(())
    }
}

/// A 2xx answer itself; else an error with what the registry says.
fn explained(response: Response, method: &str, url: &str) -> Result<Response> {
    let json: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
    response.success(method, url).map_err(|e| match (e.downcast::<StatusError>(), json) {
        (Ok(mut status), Some(json)) => {
            let first = &json["errors"][0];
            let said: Vec<&str> = ["code", "message"].iter().filter_map(|k| first[*k].as_str()).collect();
            if !said.is_empty() {
                status.excerpt = said.join(": ");
            }
            status.into()
        }
        (Ok(status), None) => status.into(),
        (Err(e), _) => e,
    })
}
