//! JSON requests: a value out, a value back, an error that says what the server's refusal says.

use super::http::{Body, Client};
use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Posts `value` and reads the answer. An answer that is not 2xx is an error with the server's
/// own words (`{"error": "…"}`), and [`super::http::status_of`] tells its status.
pub fn post<Answer: DeserializeOwned>(client: &Client, url: &str, value: &impl Serialize) -> Result<Answer> {
    let body = send(client, url, value)?;
    serde_json::from_slice(&body).with_context(|| format!("reading the answer of POST {url}"))
}

/// Posts `value`; only whether it was taken matters.
pub fn tell(client: &Client, url: &str, value: &impl Serialize) -> Result<()> {
    send(client, url, value).map(|_| ())
}

fn send(client: &Client, url: &str, value: &impl Serialize) -> Result<Vec<u8>> {
    let body = serde_json::to_vec(value).with_context(|| format!("writing the body of POST {url}"))?;
    let response = client.request("POST", url, &[("content-type", "application/json")], Body::Bytes(body))?;
    Ok(response.success("POST", url)?.body)
}
