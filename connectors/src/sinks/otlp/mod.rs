//! The `otlp` sink: rows as log records of OpenTelemetry.

mod far_end;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{Batch, Epoch, Reject};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use prometheus::IntCounter;
use prost::Message as _;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use url::Url;

use super::http::HttpBatch;
use super::http_auth::{Auth, Secret, Tls, add_headers, client, invalid, parse_url};
use super::http_rejects::{Refused, merge};
use super::pending::{Answer, Parts, Pending, objects};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};
use far_end::{FarEnd, TIMEOUT};
use record::Record;

/// How OTLP travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// gRPC.
    #[default]
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// Sends rows as log records by OTLP, to the OpenTelemetry Collector or whatever takes what it takes.
///
/// `message` becomes the body, `@timestamp` the time, `level` the severity, `trace_id` and `span_id` what they are;
/// `service`, `host` and `env` become attributes of the resource. What the source `otlp` made of a log record becomes that
/// again, but for bytes, which stay base64. Everything else becomes attributes.
///
/// A row that is refused when it is sent alone becomes a reject. A request that was refused in part is sent again in
/// halves, and one without an answer is sent again, so the far end may see rows twice.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// Where to send to, such as `http://localhost:4317`. With `protocol: http` and without a path, `/v1/logs` is added.
    /// Proxies of the environment are not used.
    pub endpoint: String,
    /// `grpc` or `http`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Headers to send besides. Their values are not shown in logs.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificate of an `https` address is checked. With `protocol: grpc` such an address needs `tls.ca`.
    #[serde(default)]
    pub tls: Tls,
    /// Whether requests are compressed.
    #[serde(default)]
    pub gzip: bool,
    /// How much goes into one request.
    #[serde(default)]
    pub batch: HttpBatch,
    /// How long one request may take.
    #[serde(default = "Otlp::request_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
}

impl Otlp {
    fn request_timeout_default() -> Duration {
        Duration::from_secs(30)
    }

    fn far_end(&self, mut url: Url) -> Result<FarEnd, ConfigError> {
        let mut headers = HeaderMap::new();
        if self.protocol == Protocol::Http {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if self.gzip {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            add_headers(&self.headers, self.auth.as_ref(), &mut headers)?;
            if url.path() == "/" {
                url.set_path("/v1/logs");
            }
            let client = client(headers, &self.tls, url.scheme() == "http", self.request_timeout)?;
            return Ok(FarEnd::Http { client, url, gzip: self.gzip });
        }
        add_headers(&self.headers, self.auth.as_ref(), &mut headers)?;
        let endpoint = Endpoint::from_shared(url.to_string());
        let endpoint = endpoint.map_err(|error| invalid(format!("`endpoint` is no address: {error}")))?;
        let mut endpoint =
            endpoint.timeout(self.request_timeout).connect_timeout(self.request_timeout).tcp_nodelay(true);
        if url.scheme() == "https" {
            if !self.tls.verify {
                return Err(invalid("`tls.verify: false` is not possible with `protocol: grpc`"));
            }
            let Some(pem) = self.tls.ca_pem()? else {
                return Err(invalid("an `https` address needs `tls.ca` with `protocol: grpc`"));
            };
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            let with_tls = endpoint.tls_config(tls);
            endpoint = with_tls.map_err(|error| invalid(format!("cannot set up TLS: {error}")))?;
        }
        // The Collector answers as it was asked.
        let client = LogsServiceClient::new(endpoint.connect_lazy());
        let mut client = client.accept_compressed(CompressionEncoding::Gzip);
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        Ok(FarEnd::Grpc { client: Box::new(client), headers })
    }
}

impl Component for Otlp {
    const NAME: &'static str = "otlp";
    const EXAMPLE: &'static str = "type: otlp\nfrom: [events]\nendpoint: \"http://localhost:4317\"\n";
}

impl SinkConfig for Otlp {
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
        Ok(Box::new(OtlpSink {
            endpoint: url.to_string(),
            url,
            far_end: None,
            name: Arc::clone(&cx.name),
            max_bytes: usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX),
            pending: Pending::default(),
            rejects: Vec::new(),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config: self.checked()?,
        }))
    }
}

impl Otlp {
    /// What can be known to be wrong before anything runs.
    fn checked(self) -> Result<Self, ConfigError> {
        if self.protocol == Protocol::Grpc && self.endpoint.starts_with("https") {
            if !self.tls.verify {
                return Err(invalid("`tls.verify: false` is not possible with `protocol: grpc`"));
            }
            if self.tls.ca_pem()?.is_none() {
                return Err(invalid("an `https` address needs `tls.ca` with `protocol: grpc`"));
            }
        }
        add_headers(&self.headers, self.auth.as_ref(), &mut HeaderMap::new())?;
        Ok(self)
    }
}

struct OtlpSink {
    config: Otlp,
    endpoint: String,
    url: Url,
    /// Made by `connect`: a channel needs the runtime.
    far_end: Option<FarEnd>,
    name: Arc<str>,
    max_bytes: usize,
    pending: Pending<Record>,
    /// Since the last flush; bounded by its policy.
    rejects: Refused,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

impl OtlpSink {
    /// Sends what waits, in halves if not all of it is taken.
    async fn send(&mut self, next: Option<&Batch>) -> Result<(), ConnectorError> {
        let pending = self.pending.take(next);
        let mut parts = Parts::of(&pending);
        while let Some(items) = parts.next() {
            match self.export(&pending.items[items.clone()]).await? {
                Answer::Done => self.rows.inc_by(items.len() as u64),
                Answer::Halve(_) if parts.halve(items.clone()) => {}
                Answer::Halve(reason) => self.rejects.extend(pending.rejects(items, &reason)),
            }
        }
        Ok(())
    }

    async fn export(&mut self, records: &[Record]) -> Result<Answer, ConnectorError> {
        let request = request(records);
        self.bytes.inc_by(request.encoded_len() as u64);
        let Some(far_end) = &mut self.far_end else {
            return Err(ConnectorError::disconnected(self.endpoint.as_str(), "not connected"));
        };
        let answer = far_end.send(request, records.len(), &self.endpoint).await;
        answer.map_err(|trouble| {
            self.metrics.sink_errors.with_label_values(&[&*self.name, trouble.kind]).inc();
            if trouble.kind == TIMEOUT {
                // A channel goes on with a connection whose far end is gone without a word.
                self.far_end = None;
            }
            trouble.error
        })
    }
}

/// One request of these records, grouped by where they come from.
fn request(records: &[Record]) -> ExportLogsServiceRequest {
    let mut resource_logs: Vec<ResourceLogs> = Vec::new();
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    for Record { resource, scope, record } in records {
        let mut key = resource.encode_length_delimited_to_vec();
        key.extend_from_slice(&scope.encode_to_vec());
        let idx = *known.entry(key).or_insert_with(|| {
            let scope_logs = vec![ScopeLogs { scope: Some(scope.clone()), ..ScopeLogs::default() }];
            let resource = Some(resource.clone());
            resource_logs.push(ResourceLogs { resource, scope_logs, ..ResourceLogs::default() });
            resource_logs.len() - 1
        });
        resource_logs[idx].scope_logs[0].log_records.push(record.clone());
    }
    ExportLogsServiceRequest { resource_logs }
}

#[async_trait]
impl Sink for OtlpSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.pending = Pending::default();
        self.rejects.clear();
        if self.far_end.is_none() {
            let made = self.config.far_end(self.url.clone());
            let refused = |error: ConfigError| ConnectorError::refused(self.endpoint.as_str(), error.message);
            self.far_end = Some(made.map_err(refused)?);
        }
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        self.pending.begin(batch);
        let received_at = batch.origin().received_at;
        let records = objects(batch, |found| Some(record::of_document(found?, received_at)));
        for (row, (n_bytes, record)) in records.into_iter().enumerate() {
            match record {
                Some(record) => self.pending.push(row, record, n_bytes),
                None => {
                    let reason = "otlp_no_object: the row is no JSON object".into();
                    self.rejects.push((batch.clone(), vec![Reject { idx: row, reason }]));
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
        Ok(merge(&self.name, &std::mem::take(&mut self.rejects)))
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: self.max_bytes, age_max: self.config.batch.timeout }
    }
}
