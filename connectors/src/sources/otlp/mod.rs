//! The `otlp` source: logs, metrics and traces of OpenTelemetry.
//!
//! One port takes gRPC and HTTP alike: which of them a connection speaks is seen from its first bytes. A request is
//! answered when its data is durable. Every log record, span, event of a span and data point becomes one JSON document.

mod answer;
mod json;
mod logs;
mod metrics;
mod rows;
mod service;
mod traces;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::net::accept::Door;
use super::net::auth::{Auth, Authorizations};
use super::net::body::BodyLimits;
use super::net::budget::{ByteBudget, Gate};
use super::net::counts::Counts;
use super::net::delivery::Way;
use super::net::listen::Listen;
use super::net::tls::{Security, Tls};
use super::net::web::{PROTOCOLS, Web};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, SourceConfig, SourceKind};
use service::Service;

/// No request is larger, expanded or not.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// No record is longer: a document may be several times as long, and a group of them must stay below 64 MiB.
const RECORD_BYTES_MAX: u64 = 8 << 20;

/// Receives logs, metrics and traces of OpenTelemetry, over gRPC and over HTTP (`/v1/logs`, `/v1/metrics`,
/// `/v1/traces`; Protobuf or JSON), both on the same port. An answer of success means that the data is durable; records
/// that cannot be taken are counted in the answer (partial success), and when the buffer is full the answer asks to try
/// again.
///
/// Each log record, span, event of a span and data point becomes one JSON document: `@timestamp`, `signal` (`log`,
/// `span`, `span_event`, `metric`), `message`, `level`, `service`, `host`, `env`, `trace_id` and `span_id` as the
/// catalogue names them, and the whole of `attributes`, `resource` and `scope` as they came (bytes as base64). A body
/// that is not text is under `body`. Data points have the schema `metric`: `name`, `value` (of a distribution the sum),
/// `count`, `min`, `max`, `unit`, `labels`; buckets and quantiles are under `histogram` and `quantiles`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// Where to listen, such as `0.0.0.0:4317`.
    pub listen: Listen,
    /// A second address, for senders that expect HTTP on a port of its own, such as `0.0.0.0:4318`.
    #[serde(default)]
    pub http_listen: Option<Listen>,
    /// Who may send. Everybody if not given.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Takes TLS alone. Plain text if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A log record, span or data point that is longer is refused, the rest of its request is not. At most `8MiB`.
    #[serde(default = "Otlp::max_record_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_record_bytes: u64,
    /// A larger request is refused.
    #[serde(default = "Otlp::max_body_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_body_bytes: u64,
    /// The same for a compressed request after expansion. At most `64MiB`.
    #[serde(default = "Otlp::max_expanded_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_expanded_bytes: u64,
    /// The memory of all requests. One for which there is none is asked to come again.
    #[serde(default = "Otlp::max_buffered_bytes_total_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
    /// Connections beyond this many are closed at once.
    #[serde(default = "Otlp::max_connections_default")]
    pub max_connections: usize,
    /// The same for one address (one /64 network with IPv6).
    #[serde(default = "Otlp::max_connections_per_ip_default")]
    pub max_connections_per_ip: usize,
    /// A connection whose first request does not come within this long is closed, and so is one over HTTP/1.1 that waits
    /// as long for the next.
    #[serde(default = "Otlp::header_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// A request that is not complete after this long is asked to come again.
    #[serde(default = "Otlp::body_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub body_timeout: Duration,
    /// How long a request waits while the buffer is full, before it is asked to come again.
    #[serde(default = "Otlp::full_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub full_timeout: Duration,
    /// How long a request waits until its data is durable, before it is asked to come again. The data may still become
    /// durable afterwards.
    #[serde(default = "Otlp::ack_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub ack_timeout: Duration,
}

impl Otlp {
    fn max_record_bytes_default() -> u64 {
        1 << 20
    }

    fn max_body_bytes_default() -> u64 {
        16 << 20
    }

    fn max_expanded_bytes_default() -> u64 {
        BODY_BYTES_MAX
    }

    fn max_buffered_bytes_total_default() -> u64 {
        512 << 20
    }

    fn max_connections_default() -> usize {
        10_000
    }

    fn max_connections_per_ip_default() -> usize {
        1_000
    }

    fn header_timeout_default() -> Duration {
        Duration::from_mins(1)
    }

    fn body_timeout_default() -> Duration {
        Duration::from_mins(1)
    }

    fn full_timeout_default() -> Duration {
        Duration::from_secs(5)
    }

    fn ack_timeout_default() -> Duration {
        Duration::from_mins(1)
    }

    fn checked(&self) -> Result<(), ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if self.max_body_bytes > BODY_BYTES_MAX || self.max_expanded_bytes > BODY_BYTES_MAX {
            return invalid("`max_body_bytes` or `max_expanded_bytes` is more than 64MiB");
        }
        if self.max_record_bytes == 0 || self.max_record_bytes > RECORD_BYTES_MAX {
            return invalid("`max_record_bytes` is not between 1B and 8MiB");
        }
        Ok(())
    }
}

/// What a request brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Logs,
    Metrics,
    Traces,
}

impl Signal {
    /// What is taken at a path.
    fn at(path: &str, grpc: bool) -> Option<Self> {
        Some(match (path, grpc) {
            ("/opentelemetry.proto.collector.logs.v1.LogsService/Export", true) | ("/v1/logs", false) => {
                Self::Logs
            }
            ("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", true)
            | ("/v1/metrics", false) => Self::Metrics,
            ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", true) | ("/v1/traces", false) => {
                Self::Traces
            }
            _ => return None,
        })
    }

    /// The member of an answer that counts what was refused.
    fn refused_key(self) -> &'static str {
        match self {
            Self::Logs => "rejectedLogRecords",
            Self::Metrics => "rejectedDataPoints",
            Self::Traces => "rejectedSpans",
        }
    }
}

impl Component for Otlp {
    const NAME: &'static str = "otlp";
    const EXAMPLE: &'static str = "type: otlp\nlisten: \"0.0.0.0:4317\"\nhttp_listen: \"0.0.0.0:4318\"\n";
}

impl SourceConfig for Otlp {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        self.checked()?;
        let security = Security::load_for(self.tls.as_ref(), PROTOCOLS)?;
        let authorizations = Authorizations::of(self.auth.as_ref())?;
        Ok(SourceKind::Listener(Box::new(OtlpServer {
            config: self,
            authorizations,
            security,
            cx: cx.clone(),
            sockets: Vec::new(),
        })))
    }
}

struct OtlpServer {
    config: Otlp,
    authorizations: Authorizations,
    security: Security,
    cx: ConnectorContext,
    sockets: Vec<TcpListener>,
}

#[async_trait]
impl Listener for OtlpServer {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        for listen in [Some(&self.config.listen), self.config.http_listen.as_ref()].into_iter().flatten() {
            self.sockets.push(listen.tcp(&self.cx.name).await?);
        }
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, authorizations, security, cx, sockets } = *self;
        let gate = Gate::new(config.max_connections, config.max_connections_per_ip);
        let counts = Arc::new(Counts::new(&cx));
        let service = Arc::new(Service {
            limits: BodyLimits {
                bytes_max: config.max_body_bytes,
                expanded_bytes_max: config.max_expanded_bytes,
                timeout: config.body_timeout,
            },
            record_bytes_max: config.max_record_bytes as usize,
            authorizations,
            budget: ByteBudget::new(config.max_buffered_bytes_total),
            refused: cx.metrics.source_errors.with_label_values(&[&*cx.name, "records_refused"]),
            way: Way {
                intake,
                counts: Arc::clone(&counts),
                full_timeout: config.full_timeout,
                ack_timeout: config.ack_timeout,
            },
        });
        let web = Web::new(config.header_timeout, &counts, &cx.shutdown);
        let doors = sockets.into_iter().map(|socket| {
            let door = Door {
                socket,
                gate: Arc::clone(&gate),
                security: security.clone(),
                counts: Arc::clone(&counts),
                shutdown: cx.shutdown.clone(),
            };
            let (web, service) = (web.clone(), Arc::clone(&service));
            door.serve_all(move |stream, peer| {
                let (web, service) = (web.clone(), Arc::clone(&service));
                async move {
                    let answer = |request| {
                        let (service, peer) = (Arc::clone(&service), Arc::clone(&peer));
                        async move { service.answer(request, &peer).await }
                    };
                    web.serve(stream, &peer, answer).await;
                }
            })
        });
        futures::future::join_all(doors).await;
        Ok(())
    }
}
