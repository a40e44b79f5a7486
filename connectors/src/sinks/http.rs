//! Documents to an HTTP server, as lines of JSON in the body of a POST.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::http_auth::{Auth, Secret, Tls, add_headers, client, gzip, invalid, parse_url, retry_after};
use super::http_rejects::{Refused, excerpt, merge};
use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// What of an answer is read: enough for a reason, and to use the connection again.
const ANSWER_MAX: usize = 64 << 10;

/// Posts documents to a server, one JSON document a line (`application/x-ndjson`).
///
/// A status of 200 to 299 confirms the whole request. After 429, 5xx or no answer it is sent again, so the server
/// may see rows twice. 400, 409, 411, 415, 422 and the like make rejects of all rows of the request; so send little
/// at a time to a server that is hard to please. 401, 403, 404, 405, 407, 410 and redirects, which are not followed,
/// are about the address and not the rows: the sink pauses and keeps its rows until it is mended.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where to post to, such as `https://collector.example/logs`. Proxies of the environment are not used.
    pub endpoint: String,
    /// Headers to send besides. Their values are not shown in logs.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked.
    #[serde(default)]
    pub tls: Tls,
    /// Whether bodies are compressed. The server must understand it.
    #[serde(default)]
    pub gzip: bool,
    /// How much goes into one request.
    #[serde(default)]
    pub batch: HttpBatch,
    /// How long one request may take.
    #[serde(default = "Http::request_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
}

/// How much goes into one request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpBatch {
    /// Bytes before compression.
    #[serde(default = "HttpBatch::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// How long a row waits for others.
    #[serde(default = "HttpBatch::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl HttpBatch {
    fn max_bytes_default() -> u64 {
        1 << 20
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(1)
    }
}

impl Default for HttpBatch {
    fn default() -> Self {
        Self { max_bytes: Self::max_bytes_default(), timeout: Self::timeout_default() }
    }
}

impl Http {
    fn request_timeout_default() -> Duration {
        Duration::from_secs(30)
    }

    fn client(&self, url: &Url) -> Result<Client, ConfigError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        if self.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        add_headers(&self.headers, self.auth.as_ref(), &mut headers)?;
        client(headers, &self.tls, url.scheme() == "http", self.request_timeout)
    }
}

impl Component for Http {
    const NAME: &'static str = "http";
    const EXAMPLE: &'static str = r#"
type: http
from: [events]
endpoint: "http://localhost:8080/logs"
headers: { X-Tenant: shop }
"#;
}

impl SinkConfig for Http {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn reads(&self) -> Reads {
        Reads::Document(Vec::new())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let url = parse_url(&self.endpoint)?;
        if self.batch.max_bytes == 0 || self.request_timeout.is_zero() {
            return Err(invalid("`batch.max_bytes` and `request_timeout` must not be zero"));
        }
        let labels = &[&*cx.name];
        Ok(Box::new(HttpSink {
            client: self.client(&url)?,
            name: Arc::clone(&cx.name),
            gzip: self.gzip,
            max_bytes: usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX),
            timeout: self.batch.timeout,
            open: Body::default(),
            rejects: Vec::new(),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            url,
        }))
    }
}

/// Documents, one a line, and which row each of them is.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    /// Where each line ends, and which row of which batch it is.
    lines: Vec<(usize, usize, usize)>,
    batches: Vec<Batch>,
}

impl Body {
    /// Appends rows of `batch` from `from` on until the body would exceed `max` bytes; returns the first row that is
    /// not in it. An empty body takes one row however large it is.
    fn fill(&mut self, batch: &Batch, from: usize, max: usize) -> usize {
        let documents = Documents::new(batch);
        self.batches.push(batch.clone());
        for row in from..batch.num_rows() {
            let start = self.bytes.len();
            documents.write(row, &mut self.bytes);
            self.bytes.push(b'\n');
            if self.bytes.len() > max && start > 0 {
                self.bytes.truncate(start);
                return row;
            }
            self.lines.push((self.bytes.len(), self.batches.len() - 1, row));
        }
        batch.num_rows()
    }

    fn range(&self, lines: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let start = if lines.start == 0 { 0 } else { self.lines[lines.start - 1].0 };
        start..self.lines[lines.end - 1].0
    }

    /// The rows of `lines` as rejects.
    fn rejects(&self, lines: std::ops::Range<usize>, reason: &str) -> Refused {
        let mut groups: Vec<(usize, Vec<Reject>)> = Vec::new();
        for (_, batch, row) in &self.lines[lines] {
            let reject = Reject { idx: *row, reason: reason.into() };
            match groups.last_mut() {
                Some((last, group)) if last == batch => group.push(reject),
                _ => groups.push((*batch, vec![reject])),
            }
        }
        groups.into_iter().map(|(batch, group)| (self.batches[batch].clone(), group)).collect()
    }
}

/// What a server's answer says about the rows of a request.
enum Answer {
    Done,
    Halve,
    Reject(String),
}

struct HttpSink {
    client: Client,
    url: Url,
    name: Arc<str>,
    gzip: bool,
    max_bytes: usize,
    timeout: Duration,
    open: Body,
    /// Since the last flush; bounded by its policy.
    rejects: Refused,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

impl HttpSink {
    /// Sends what was filled, in halves if the server takes only less.
    async fn send(&mut self) -> Result<(), ConnectorError> {
        let body = std::mem::take(&mut self.open);
        let mut parts = VecDeque::new();
        parts.push_back(0..body.lines.len());
        while let Some(lines) = parts.pop_front() {
            if lines.is_empty() {
                continue;
            }
            let n_lines = lines.len();
            match self.post(&body.bytes[body.range(&lines)]).await? {
                Answer::Done => self.rows.inc_by(n_lines as u64),
                Answer::Halve if n_lines > 1 => {
                    let middle = lines.start + n_lines / 2;
                    parts.push_front(middle..lines.end);
                    parts.push_front(lines.start..middle);
                }
                Answer::Halve => {
                    let reason = "http_413: the server takes no request of this size";
                    self.rejects.extend(body.rejects(lines, reason));
                }
                Answer::Reject(reason) => self.rejects.extend(body.rejects(lines, &reason)),
            }
        }
        Ok(())
    }

    async fn post(&self, lines: &[u8]) -> Result<Answer, ConnectorError> {
        let body = match self.gzip {
            true => Bytes::from(gzip(std::iter::once(lines), lines.len())),
            false => Bytes::copy_from_slice(lines),
        };
        self.bytes.inc_by(body.len() as u64);
        let response = self.client.post(self.url.clone()).body(body).send().await;
        let mut response = response.map_err(|error| self.no_answer(error))?;
        let status = response.status().as_u16();
        let after = retry_after(response.headers());
        match status {
            200..=299 => {
                // What follows is of no interest, but while it is unread the connection cannot be used again.
                read_some(&mut response).await.map_err(|error| self.no_answer(error))?;
                Ok(Answer::Done)
            }
            408 | 425 | 429 | 500..=599 => {
                self.count_error(if status == 429 { "busy" } else { "server_error" });
                Err(ConnectorError::Busy { endpoint: self.url.to_string(), after })
            }
            413 => {
                self.count_error("too_large");
                Ok(Answer::Halve)
            }
            400..=499 if !matches!(status, 401 | 403..=405 | 407 | 410 | 421) => {
                self.count_error("rejected");
                let said = read_some(&mut response).await.unwrap_or_default();
                let said = excerpt(String::from_utf8_lossy(&said).trim());
                Ok(Answer::Reject(format!("http_{status}: {said}")))
            }
            _ => {
                self.count_error("refused");
                let target = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
                let said = match target {
                    Some(target) => format!("redirects to {}, which is not followed", excerpt(target)),
                    None => {
                        let said = read_some(&mut response).await.unwrap_or_default();
                        excerpt(String::from_utf8_lossy(&said).trim())
                    }
                };
                let reason = format!("status {status}: {said}");
                Err(ConnectorError::disconnected(self.url.to_string(), reason))
            }
        }
    }

    fn no_answer(&self, error: reqwest::Error) -> ConnectorError {
        if error.is_timeout() && !error.is_connect() {
            self.count_error("timeout");
            return ConnectorError::Busy { endpoint: self.url.to_string(), after: None };
        }
        self.count_error(if error.is_connect() { "unreachable" } else { "broken" });
        ConnectorError::disconnected(self.url.to_string(), error)
    }

    fn count_error(&self, kind: &str) {
        self.metrics.sink_errors.with_label_values(&[&*self.name, kind]).inc();
    }
}

/// Reads the body of an answer, but no more than [`ANSWER_MAX`] bytes.
pub(super) async fn read_some(response: &mut Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_MAX - body.len())]);
        if body.len() == ANSWER_MAX {
            break;
        }
    }
    Ok(body)
}

#[async_trait]
impl Sink for HttpSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        // The first request will tell whether anybody is there: a probe could be one request too many for a server
        // that counts them.
        self.open = Body::default();
        self.rejects.clear();
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let mut row = 0;
        while row < batch.num_rows() {
            row = self.open.fill(batch, row, self.max_bytes);
            if row < batch.num_rows() {
                self.send().await?;
            }
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.send().await?;
        Ok(merge(&self.name, &std::mem::take(&mut self.rejects)))
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: self.max_bytes, age_max: self.timeout }
    }
}
