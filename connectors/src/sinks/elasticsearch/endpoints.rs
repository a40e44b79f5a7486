//! The nodes that requests go to, in turn. One that fails rests, and is asked for a sign of life before it gets work
//! again: a circuit breaker each, which opens for longer every time.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use logdrive_schemas::component::ConfigError;
use opensearch::cert::{Certificate, CertificateValidation};
use opensearch::http::headers::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT,
};
use opensearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use opensearch::http::{Method, Url};
use prometheus::IntGauge;

use super::signing::Signer;
use crate::context::ConnectorContext;
use crate::error::{BoxError, ConnectorError};
use crate::sinks::http_auth::{Auth, Tls, invalid, parse_url, retry_after};

/// How long an endpoint rests that failed for the first time; then twice as long, and so on.
const REST: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(60);
/// Failures in a row of an endpoint that can be reached, before it rests.
const FAILURES_MAX: u32 = 3;
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A request, and what is particular about it.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) content_type: &'static str,
    pub(super) gzip: bool,
    pub(super) body: Option<Bytes>,
    pub(super) timeout: Duration,
}

impl<'a> Call<'a> {
    /// A request without a body.
    pub(super) fn get(path: &'a str, timeout: Duration) -> Self {
        let content_type = "application/json";
        Self { method: Method::Get, path, query: &[], content_type, gzip: false, body: None, timeout }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// Whether it says that it is Elastic's product.
    pub(super) is_elastic: bool,
    pub(super) body: Bytes,
}

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoReply {
    /// The request was sent, in part or in full; it may have been carried out.
    #[error("no whole answer: {0}")]
    Broken(String),
    /// The request took too long; it may have been carried out.
    #[error("no answer in time")]
    Timeout,
    /// The request was not sent.
    #[error("unreachable: {0}")]
    Unreachable(String),
}

/// One node.
#[derive(Debug)]
pub(super) struct Endpoint {
    name: String,
    url: Url,
    transport: Transport,
    signer: Option<Signer>,
    resting_until: Mutex<Option<Instant>>,
    /// In a row.
    n_failures: AtomicU32,
    /// In a row, without any work in between that went well.
    n_rests: AtomicU32,
    up: IntGauge,
}

impl Endpoint {
    /// Its address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends a request and waits for the whole answer.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Reply, NoReply> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(call.content_type));
        if call.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(signer) = &self.signer {
            let signed = self.sign(signer, &call).await;
            headers.extend(signed.map_err(|error| NoReply::Unreachable(format!("cannot sign: {error}")))?);
        }
        let query = (!call.query.is_empty()).then_some(call.query);
        let response = self
            .transport
            .send(call.method, call.path, headers, query, call.body, Some(call.timeout))
            .await
            .map_err(no_reply)?;
        if self.url.origin() != response.url().origin() {
            // A redirect would take the data to a place that nobody configured.
            return Err(NoReply::Unreachable(format!(
                "redirects to {}",
                response.url().origin().ascii_serialization()
            )));
        }
        let status = response.status_code().as_u16();
        let retry_after = retry_after(response.headers());
        let product = response.headers().get("x-elastic-product");
        let is_elastic = product.is_some_and(|product| product == "Elasticsearch");
        let body = response.bytes().await.map_err(no_reply)?;
        Ok(Reply { status, retry_after, is_elastic, body })
    }

    /// Signing takes the checksum of the body, for a large one too long for a thread that others wait for.
    async fn sign(&self, signer: &Signer, call: &Call<'_>) -> Result<HeaderMap, BoxError> {
        let mut url = self.url.join(call.path.trim_start_matches('/'))?;
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        let method = match call.method {
            Method::Get => "GET",
            Method::Put => "PUT",
            _ => "POST",
        };
        let (signer, body, content) = (signer.clone(), call.body.clone(), (call.content_type, call.gzip));
        let signing =
            tokio::task::spawn_blocking(move || signer.headers(method, &url, content, body.as_ref()));
        match signing.await {
            Ok(headers) => headers,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Asks for a sign of life. A server that answers but does not tell (some need a right for that) is alive.
    async fn probe(&self) -> Result<(), BoxError> {
        match self.send(Call::get("/", PROBE_TIMEOUT)).await {
            Ok(reply) if reply.status == 401 || reply.status == 429 || 500 <= reply.status => {
                Err(format!("it answers with status {}", reply.status).into())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_rest(&self, until: Option<Instant>) {
        self.up.set(i64::from(until.is_none()));
        *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn rest(&self) -> Option<Instant> {
        *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It failed: it rests, longer than the last time.
    fn begin_rest(&self) {
        let n_rests = self.n_rests.fetch_add(1, Ordering::Relaxed);
        let rest = REST.saturating_mul(1 << n_rests.min(10)).min(REST_MAX);
        self.set_rest(Some(Instant::now() + rest));
    }

    /// It did its work.
    pub(super) fn worked(&self) {
        self.n_failures.store(0, Ordering::Relaxed);
        self.n_rests.store(0, Ordering::Relaxed);
    }
}

fn no_reply(error: opensearch::Error) -> NoReply {
    let http = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<reqwest::Error>());
    // The client's own message is "error sending request"; what happened is at the end of the chain.
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match http {
        Some(http) if http.is_connect() => NoReply::Unreachable(cause.to_string()),
        Some(http) if http.is_timeout() => NoReply::Timeout,
        _ => NoReply::Broken(cause.to_string()),
    }
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    turn: AtomicUsize,
}

impl Endpoints {
    /// Reads certificates; opens no connection.
    pub(super) fn new(
        urls: &[String],
        auth: Option<&Auth>,
        signer: Option<Signer>,
        tls: &Tls,
        cx: &ConnectorContext,
    ) -> Result<Self, ConfigError> {
        if urls.is_empty() {
            return Err(invalid("`endpoint` lists no address"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("logdrive/", env!("CARGO_PKG_VERSION"))));
        if let Some(auth) = auth {
            headers.insert(AUTHORIZATION, encoded(auth).header()?);
        }
        let ca = tls.ca_pem()?;
        let all = urls
            .iter()
            .map(|text| {
                let url = parse_url(text)?;
                let name = url.as_str().to_owned();
                let validation = match &ca {
                    // A machine without any certificates must still be able to speak plain HTTP.
                    _ if !tls.verify || url.scheme() == "http" => CertificateValidation::None,
                    Some(pem) => CertificateValidation::Full(
                        Certificate::from_pem(pem)
                            .map_err(|error| invalid(format!("`tls.ca` is no certificate: {error}")))?,
                    ),
                    None => CertificateValidation::Default,
                };
                let transport = TransportBuilder::new(SingleNodeConnectionPool::new(url.clone()))
                    .cert_validation(validation)
                    .disable_proxy()
                    .headers(headers.clone())
                    .build()
                    .map_err(|error| invalid(format!("cannot set up TLS: {error}")))?;
                let up = cx.metrics.sink_endpoint_up.with_label_values(&[&*cx.name, &name]);
                Ok(Endpoint {
                    name,
                    url,
                    transport,
                    signer: signer.clone(),
                    resting_until: Mutex::new(None),
                    n_failures: AtomicU32::new(0),
                    n_rests: AtomicU32::new(0),
                    up,
                })
            })
            .collect::<Result<_, ConfigError>>()?;
        Ok(Self { all, turn: AtomicUsize::new(0) })
    }

    /// The next node that works; `None` if all of them rest.
    pub(super) async fn pick(&self) -> Option<&Endpoint> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for nth in 0..self.all.len() {
            let endpoint = &self.all[turn.wrapping_add(nth) % self.all.len()];
            match endpoint.rest() {
                None => return Some(endpoint),
                Some(until) if until <= Instant::now() => {
                    // It rests on meanwhile, so that one request asks and not all.
                    endpoint.set_rest(Some(Instant::now() + REST + PROBE_TIMEOUT));
                    if endpoint.probe().await.is_ok() {
                        endpoint.set_rest(None);
                        return Some(endpoint);
                    }
                    endpoint.begin_rest();
                }
                Some(_) => {}
            }
        }
        None
    }

    /// An endpoint that was reached did not do its work: it rests if another works and this is not the first time.
    pub(super) fn failed(&self, endpoint: &Endpoint) {
        let n_failures = endpoint.n_failures.fetch_add(1, Ordering::Relaxed) + 1;
        let others = || self.all.iter().any(|other| other.name != endpoint.name && other.rest().is_none());
        if FAILURES_MAX <= n_failures && others() {
            self.rest(endpoint);
        }
    }

    /// Lets an endpoint rest.
    pub(super) fn rest(&self, endpoint: &Endpoint) {
        tracing::warn!(endpoint = endpoint.name, "An endpoint failed and rests.");
        endpoint.n_failures.store(0, Ordering::Relaxed);
        endpoint.begin_rest();
    }

    /// Asks every node for a sign of life.
    ///
    /// # Errors
    /// If none gives one.
    pub(super) async fn probe(&self) -> Result<(), ConnectorError> {
        let probes = self.all.iter().map(|endpoint| async move {
            let result = endpoint.probe().await;
            match &result {
                Ok(()) => endpoint.set_rest(None),
                Err(_) => endpoint.begin_rest(),
            }
            result.map_err(|error| ConnectorError::disconnected(endpoint.name(), error))
        });
        let results = futures::future::join_all(probes).await;
        let mut failed = None;
        for result in results {
            match result {
                Ok(()) => return Ok(()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The addresses, for messages.
    pub(super) fn names(&self) -> String {
        self.all.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// An API key of the form `id:key` is encoded, as Elasticsearch wants it.
fn encoded(auth: &Auth) -> Auth {
    match auth {
        Auth::ApiKey(key) if key.expose().contains(':') => {
            Auth::ApiKey(STANDARD.encode(key.expose()).as_str().into())
        }
        auth => auth.clone(),
    }
}
