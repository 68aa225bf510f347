//! Registers this boot: the node's key, fresh TLS keys, the requests, and what is kept of the
//! answer (in memory for a restart of the agent, on the state disk for a boot without the server).

use super::place::RUN;
use crate::image::sign::public_text;
use crate::join::renewal::Renewal;
use crate::ledger::message::{Handover, RegisterAnswer, RegisterRequest, register_statement};
use crate::recipe::System;
use crate::sys::http::{Client, Timeouts, status_of};
use crate::sys::{clock, files, json, tls};
use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Site, secrets and certificate of a large cluster are well below it.
const KEPT_MAX_BYTES: u64 = 16 * 1024 * 1024;
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(10), idle: Duration::from_secs(30) };

/// A register that was granted, with the key of its certificate.
#[derive(Clone, Serialize, Deserialize)]
pub struct Registration {
    pub boot_id: String,
    /// PEM.
    pub tls_key: String,
    /// Of the certificates by which nodes know one another, by name; PEM.
    #[serde(default)]
    pub peer_keys: BTreeMap<String, String>,
    pub answer: RegisterAnswer,
    /// When the answer came, by the clock that nobody sets; an older agent did not keep it.
    #[serde(default)]
    pub got_ms: u64,
}

impl Registration {
    pub fn renewal(&self) -> Renewal {
        Renewal::new(self.answer.now_ms, self.answer.certificate_expires_ms, self.got_ms)
    }

    /// A client that shows the generation's certificate to the pinned server.
    pub fn client(&self, handover: &Handover, timeouts: Timeouts) -> Result<Client> {
        let identity = tls::Identity { certificate: self.answer.certificate.clone(), key: self.tls_key.clone() };
        Ok(Client::with_tls(tls::pinned(pin(handover)?, Some(&identity))?).timeouts(timeouts))
    }
}

/// The registration of this very boot that an earlier agent got; `None`: there is none.
pub fn earlier(handover: &Handover) -> Option<Registration> {
    let bytes = files::read_bounded(&kept_in_memory(), KEPT_MAX_BYTES).ok()?;
    let kept: Registration = serde_json::from_slice(&bytes).ok()?;
    (kept.boot_id == handover.boot_id).then_some(kept)
}

/// What an earlier boot's register brought, kept on the state disk.
pub fn kept(handover: &Handover) -> Option<Registration> {
    let path = on_disk(handover)?;
    serde_json::from_slice(&files::read_bounded(&path, KEPT_MAX_BYTES).ok()?).ok()
}

/// Registers once and keeps the answer. The same boot may do it again: it stays one generation.
pub fn register(handover: &Handover, systems: &[System]) -> Result<Registration> {
    let before = earlier(handover).or_else(|| kept(handover));
    let last_generation = before.as_ref().map_or(0, |r| r.answer.generation);
    let result = register_as(handover, systems, last_generation, None);
    match (&result, before) {
        // A server that lost its ledger still knows a certificate of its own.
        (Err(e), Some(before)) if status_of(e) == Some(403) => {
            register_as(handover, systems, last_generation, Some(&before)).or(result)
        }
        _ => result,
    }
}

fn register_as(
    handover: &Handover,
    systems: &[System],
    last_generation: u64,
    shown: Option<&Registration>,
) -> Result<Registration> {
    let key = node_key(handover.state_dir.as_deref())?;
    let tls_key = rcgen::KeyPair::generate().context("making a TLS key")?;
    let csr = request_for(&handover.go.node, &tls_key)?;
    let (mut peer_keys, mut certificates) = (BTreeMap::new(), BTreeMap::new());
    for name in systems.iter().flat_map(|s| &s.certificates) {
        // Each of its own: who may use one of them is not who may use another.
        let key = rcgen::KeyPair::generate().with_context(|| format!("making a key for certificate {name}"))?;
        certificates.insert(name.clone(), request_for(&handover.go.node, &key)?);
        peer_keys.insert(name.clone(), key.serialize_pem());
    }
    let statement = register_statement(&handover.go.node, &handover.boot_id, &csr);
    let request = RegisterRequest {
        node: handover.go.node.clone(),
        mac: handover.mac,
        boot_id: handover.boot_id.clone(),
        image: handover.image,
        version: env!("CARGO_PKG_VERSION").into(),
        credential: handover.go.credential.clone(),
        key: public_text(&key.verifying_key()),
        signature: base64::engine::general_purpose::STANDARD.encode(key.sign(&statement).to_bytes()),
        csr,
        last_generation,
        certificates,
    };
    let client = match shown {
        Some(shown) => shown.client(handover, TIMEOUTS)?,
        None => Client::with_tls(tls::pinned(pin(handover)?, None)?).timeouts(TIMEOUTS),
    };
    let answer = json::post(&client, &format!("https://{}/v1/register", handover.tls), &request)?;
    let (boot_id, tls_key) = (handover.boot_id.clone(), tls_key.serialize_pem());
    let registration = Registration { boot_id, tls_key, peer_keys, answer, got_ms: clock::monotonic_ms() };
    let bytes = serde_json::to_vec(&registration)?;
    files::write_atomic(&kept_in_memory(), &bytes, 0o600)?;
    // A full disk must not make the server's answer worthless: it is the only valid one by now.
    if let Some(path) = on_disk(handover)
        && let Err(e) = files::write_atomic(&path, &bytes, 0o600)
    {
        eprintln!("keeping the registration on the state disk: {e:#}");
    }
    Ok(registration)
}

fn on_disk(handover: &Handover) -> Option<PathBuf> {
    handover.state_dir.as_ref().map(|dir| Path::new(dir).join("kiln/register.json"))
}

fn kept_in_memory() -> PathBuf {
    Path::new(RUN).join("register.json")
}

fn pin(handover: &Handover) -> Result<tls::Pin> {
    let digest: crate::image::id::Digest = handover.pin.parse().map_err(|e: String| anyhow!(e))?;
    Ok(digest.0)
}

/// The key that says who this node is, from the state disk (or memory); made there if absent, and
/// durable before anyone hears of it.
fn node_key(state_dir: Option<&str>) -> Result<SigningKey> {
    let path = match state_dir {
        Some(dir) => Path::new(dir).join("kiln/node.key"),
        None => Path::new(RUN).join("node.key"),
    };
    let (key, _) = crate::image::key::load_or_new(&path).context("opening the node's key")?;
    Ok(key)
}

/// A PEM certificate request; the server writes node and generation into the certificate itself.
fn request_for(node: &str, key: &rcgen::KeyPair) -> Result<String> {
    let mut params = rcgen::CertificateParams::new(Vec::new()).context("starting a certificate request")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, node);
    params.serialize_request(key).and_then(|r| r.pem()).context("writing a certificate request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_nodes_key_is_made_once_and_nobody_else_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("kiln")).unwrap();
        let state = dir.path().to_str();
        let first = node_key(state).unwrap();
        assert_eq!(node_key(state).unwrap().to_bytes(), first.to_bytes());
        let file = dir.path().join("kiln/node.key");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        std::fs::write(&file, "junk").unwrap();
        assert!(node_key(state).is_err(), "a broken key is not replaced by a new identity");
    }

    #[test]
    fn a_request_names_the_node() {
        let key = rcgen::KeyPair::generate().unwrap();
        assert!(request_for("n1", &key).unwrap().contains("BEGIN CERTIFICATE REQUEST"));
    }
}
