//! What all channels over HTTP share.

use std::time::Duration;

use bytes::Bytes;
use logdrive_schemas::component::ConfigError;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};

use super::Undelivered;
use crate::sinks::http_auth::{Tls, invalid, retry_after};
use crate::sinks::http_rejects::excerpt;

/// What of an answer is read.
const ANSWER_MAX: usize = 4 << 10;

/// Reads an address. Its text is not in the error: for some channels it is the secret.
pub(super) fn address(key: &str, text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text).map_err(|error| invalid(format!("`{key}` is no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(invalid(format!("`{key}` must begin with `http://` or `https://` and name a host")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(format!("`{key}` holds credentials, which belong under `auth`")));
    }
    Ok(url)
}

/// A client that posts to one address.
pub(super) struct Poster {
    client: Client,
    url: Url,
}

impl Poster {
    pub(super) fn new(
        url: Url,
        headers: HeaderMap,
        tls: &Tls,
        timeout: Duration,
    ) -> Result<Self, ConfigError> {
        let mut builder = Client::builder()
            .user_agent(concat!("logdrive/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(Policy::none())
            .no_proxy()
            .timeout(timeout);
        // A machine without any certificates must still be able to speak plain HTTP.
        if !tls.verify || url.scheme() == "http" {
            builder = builder.danger_accept_invalid_certs(true);
        } else if let Some(pem) = tls.ca_pem()? {
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| invalid(format!("`tls.ca` is no certificate: {error}")))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| invalid(format!("cannot set up TLS: {error}")))?;
        Ok(Self { client, url })
    }

    /// Posts; only an answer of 200 to 299 confirms. What concerns the address or the credentials is tried again, as
    /// somebody will mend it; what concerns the content is not.
    pub(super) async fn post(&self, headers: HeaderMap, body: impl Into<Bytes>) -> Result<(), Undelivered> {
        let request = self.client.post(self.url.clone()).headers(headers).body(body.into());
        // The address may be a secret.
        let sent = request.send().await.map_err(|error| Undelivered::later(chain(&error.without_url())));
        let mut response = sent?;
        let status = response.status().as_u16();
        let after = retry_after(response.headers());
        let mut said = Vec::new();
        while said.len() < ANSWER_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            said.extend_from_slice(&chunk[..chunk.len().min(ANSWER_MAX - said.len())]);
        }
        let reason = format!("status {status}: {}", excerpt(String::from_utf8_lossy(&said).trim()));
        match status {
            200..=299 => Ok(()),
            400 | 406 | 409 | 411..=420 | 422..=424 | 426..=428 | 430..=499 => {
                Err(Undelivered::Never(reason))
            }
            _ => Err(Undelivered::Later { reason, after }),
        }
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Headers of one entry that says what the body is.
pub(super) fn content_type(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(reqwest::header::CONTENT_TYPE, reqwest::header::HeaderValue::from_static(value))])
}

/// Headers of a body in JSON.
pub(super) fn json() -> HeaderMap {
    content_type("application/json")
}
