//! The `prometheus_remote_write` sink: rows of the schema `metric` as samples.

mod series;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;
use prost::Message as _;
use reqwest::Client;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::http::{HttpBatch, read_some};
use super::http_auth::{Auth, Secret, Tls, add_headers, client, invalid, parse_url, retry_after};
use super::http_rejects::{Refused, excerpt, merge};
use super::pending::{Answer, Parts, Pending, identity, objects};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::prometheus::remote::{Label, Sample, TimeSeries, WriteRequest};
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};
use series::Point;

const VERSION: HeaderName = HeaderName::from_static("x-prometheus-remote-write-version");

/// Sends rows of the schema `metric` to Prometheus (started with `--web.enable-remote-write-receiver`) or whatever takes
/// its remote write, version 1.
///
/// `name`, `value`, `@timestamp` and `labels` become a sample; `service` and `host` become the labels `job` and `instance`
/// if there are none. What has `count` with `histogram.bounds` and `histogram.counts`, or with `quantiles`, becomes the
/// series of a histogram or a summary, with `_bucket`, `_sum` and `_count`. Characters that names cannot have become `_`.
///
/// A row without a name or a value becomes a reject, and so does one that Prometheus does not take, such as one that is
/// older than what it has of its series. After a crash rows are sent again; those that Prometheus has are then older than
/// others that it has, too, and become rejects although nothing is missing, unless it has an `out_of_order_time_window`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrometheusRemoteWrite {
    /// Where to send to, such as `http://localhost:9090/api/v1/write`. Proxies of the environment are not used.
    pub endpoint: String,
    /// Headers to send besides, such as a tenant. Their values are not shown in logs.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked.
    #[serde(default)]
    pub tls: Tls,
    /// How much goes into one request.
    #[serde(default)]
    pub batch: HttpBatch,
    /// How long one request may take.
    #[serde(default = "PrometheusRemoteWrite::request_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
}

impl PrometheusRemoteWrite {
    fn request_timeout_default() -> Duration {
        Duration::from_secs(30)
    }
}

impl Component for PrometheusRemoteWrite {
    const NAME: &'static str = "prometheus_remote_write";
    const EXAMPLE: &'static str =
        "type: prometheus_remote_write\nfrom: [metrics]\nendpoint: \"http://localhost:9090/api/v1/write\"\n";
}

impl SinkConfig for PrometheusRemoteWrite {
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
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        headers.insert(VERSION, HeaderValue::from_static("0.1.0"));
        add_headers(&self.headers, self.auth.as_ref(), &mut headers)?;
        let labels = &[&*cx.name];
        Ok(Box::new(RemoteWrite {
            client: client(headers, &self.tls, url.scheme() == "http", self.request_timeout)?,
            url,
            name: Arc::clone(&cx.name),
            max_bytes: usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX),
            timeout: self.batch.timeout,
            pending: Pending::default(),
            confirmed: HashSet::new(),
            rejects: Vec::new(),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
        }))
    }
}

struct RemoteWrite {
    client: Client,
    url: Url,
    name: Arc<str>,
    max_bytes: usize,
    timeout: Duration,
    pending: Pending<Vec<Point>>,
    /// Rows that Prometheus has, since the last flush: sent again after an error, they would be out of order.
    confirmed: HashSet<u128>,
    /// Since the last flush; bounded by its policy.
    rejects: Refused,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

impl RemoteWrite {
    /// Sends what waits, in halves if not all of it is taken.
    async fn send(&mut self, next: Option<&Batch>) -> Result<(), ConnectorError> {
        let pending = self.pending.take(next);
        let mut parts = Parts::of(&pending);
        while let Some(items) = parts.next() {
            match self.post(&pending.items[items.clone()]).await? {
                Answer::Done => {
                    self.rows.inc_by(items.len() as u64);
                    self.confirmed.extend(pending.identities(items));
                }
                Answer::Halve(_) if parts.halve(items.clone()) => {}
                Answer::Halve(reason) => self.rejects.extend(pending.rejects(items, &reason)),
            }
        }
        Ok(())
    }

    async fn post(&self, rows: &[Vec<Point>]) -> Result<Answer, ConnectorError> {
        let message = request(rows).encode_to_vec();
        let refused = |reason: String| ConnectorError::disconnected(self.url.to_string(), reason);
        let body = snap::raw::Encoder::new().compress_vec(&message);
        let body = body.map_err(|error| refused(format!("a request that cannot be compressed: {error}")))?;
        self.bytes.inc_by(body.len() as u64);
        let response = self.client.post(self.url.clone()).body(body).send().await;
        let mut response = response.map_err(|error| self.no_answer(error))?;
        let (status, after) = (response.status().as_u16(), retry_after(response.headers()));
        let said = read_some(&mut response).await;
        let said = || excerpt(String::from_utf8_lossy(said.as_deref().unwrap_or_default()).trim());
        match status {
            200..=299 => Ok(Answer::Done),
            400 | 413 | 422 => {
                self.count_error("rejected");
                Ok(Answer::Halve(format!("http_{status}: {}", said())))
            }
            408 | 425 | 429 | 500..=599 => {
                self.count_error(if status == 429 { "busy" } else { "server_error" });
                Err(ConnectorError::Busy { endpoint: self.url.to_string(), after })
            }
            _ => {
                self.count_error("refused");
                Err(refused(format!("status {status}: {}", said())))
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

/// One request of these rows: samples by series, each in the order of time, as Prometheus wants them.
fn request(rows: &[Vec<Point>]) -> WriteRequest {
    let mut timeseries: Vec<TimeSeries> = Vec::new();
    let mut known: HashMap<&[(String, String)], usize> = HashMap::new();
    for Point { labels, value, at } in rows.iter().flatten() {
        let idx = *known.entry(labels).or_insert_with(|| {
            let label = |(name, value): &(String, String)| Label { name: name.clone(), value: value.clone() };
            timeseries
                .push(TimeSeries { labels: labels.iter().map(label).collect(), ..TimeSeries::default() });
            timeseries.len() - 1
        });
        timeseries[idx].samples.push(Sample { value: *value, timestamp: *at });
    }
    for series in &mut timeseries {
        series.samples.sort_by_key(|sample| sample.timestamp);
    }
    WriteRequest { timeseries }
}

#[async_trait]
impl Sink for RemoteWrite {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        // The first request will tell whether anybody is there.
        self.pending = Pending::default();
        self.rejects.clear();
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        self.pending.begin(batch);
        let received_at = batch.origin().received_at;
        let samples = objects(batch, |found| {
            series::points(&found.ok_or("metric_no_object: the row is no JSON object")?, received_at)
        });
        for (row, (n_bytes, points)) in samples.into_iter().enumerate() {
            if !self.confirmed.is_empty() && self.confirmed.contains(&identity(batch, row)) {
                continue;
            }
            match points {
                Ok(points) => self.pending.push(row, points, n_bytes),
                Err(reason) => {
                    let reject = Reject { idx: row, reason: reason.into() };
                    self.rejects.push((batch.clone(), vec![reject]));
                }
            }
            if self.pending.bytes >= self.max_bytes {
                self.send(Some(batch)).await?;
            }
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.send(None).await?;
        self.confirmed.clear();
        Ok(merge(&self.name, &std::mem::take(&mut self.rejects)))
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: self.max_bytes, age_max: self.timeout }
    }
}
