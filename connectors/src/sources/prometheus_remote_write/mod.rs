//! The `prometheus_remote_write` source: what Prometheus, and whatever speaks as it does, sends on.

mod rows;
mod service;

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

/// Receives samples by Prometheus' remote write, versions 1 and 2, native histograms included. A request is answered with
/// 204 when its samples are durable, and with 503 while the buffer is full, so that Prometheus sends it again.
///
/// Each sample becomes a row of the schema `metric`: `@timestamp`, `name`, `value`, the other labels under `labels`, the
/// label `job` also as `service`; with version 2 also `unit`. A series that has ended has `stale` instead of a value; one
/// that is not a number has `value_text`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrometheusRemoteWrite {
    /// Where to listen, such as `0.0.0.0:9201`.
    pub listen: Listen,
    /// The path that takes samples.
    #[serde(default = "PrometheusRemoteWrite::path_default")]
    pub path: String,
    /// Who may send. Everybody if not given.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Serves HTTPS. Plain HTTP if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A larger body is refused.
    #[serde(default = "PrometheusRemoteWrite::max_body_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_body_bytes: u64,
    /// The same after expansion. At most `64MiB`.
    #[serde(default = "PrometheusRemoteWrite::max_expanded_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_expanded_bytes: u64,
    /// The memory of all requests. One for which there is none is answered with 503.
    #[serde(default = "PrometheusRemoteWrite::max_buffered_bytes_total_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
    /// Connections beyond this many are closed at once.
    #[serde(default = "PrometheusRemoteWrite::max_connections_default")]
    pub max_connections: usize,
    /// The same for one address (one /64 network with IPv6).
    #[serde(default = "PrometheusRemoteWrite::max_connections_default")]
    pub max_connections_per_ip: usize,
    /// A connection whose next request head is not complete after this long is closed.
    #[serde(default = "PrometheusRemoteWrite::minute", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// A request whose body is not complete after this long is answered with 503.
    #[serde(default = "PrometheusRemoteWrite::minute", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub body_timeout: Duration,
    /// How long a request waits while the buffer is full, before it is answered with 503.
    #[serde(default = "PrometheusRemoteWrite::full_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub full_timeout: Duration,
    /// How long a request waits until its data is durable, before it is answered with 503. The data may still become
    /// durable afterwards.
    #[serde(default = "PrometheusRemoteWrite::minute", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub ack_timeout: Duration,
}

impl PrometheusRemoteWrite {
    fn path_default() -> String {
        "/api/v1/write".into()
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
        1_000
    }

    fn minute() -> Duration {
        Duration::from_mins(1)
    }

    fn full_timeout_default() -> Duration {
        Duration::from_secs(5)
    }
}

impl Component for PrometheusRemoteWrite {
    const NAME: &'static str = "prometheus_remote_write";
    const EXAMPLE: &'static str = "type: prometheus_remote_write\nlisten: \"0.0.0.0:9201\"\nschema: metric\n";
}

impl SourceConfig for PrometheusRemoteWrite {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if self.max_body_bytes > BODY_BYTES_MAX || self.max_expanded_bytes > BODY_BYTES_MAX {
            return invalid("`max_body_bytes` or `max_expanded_bytes` is more than 64MiB");
        }
        if !self.path.starts_with('/') {
            return invalid("`path` does not begin with `/`");
        }
        let security = Security::load_for(self.tls.as_ref(), PROTOCOLS)?;
        let authorizations = Authorizations::of(self.auth.as_ref())?;
        let cx = cx.clone();
        Ok(SourceKind::Listener(Box::new(Server {
            config: self,
            authorizations,
            security,
            cx,
            socket: None,
        })))
    }
}

struct Server {
    config: PrometheusRemoteWrite,
    authorizations: Authorizations,
    security: Security,
    cx: ConnectorContext,
    socket: Option<TcpListener>,
}

#[async_trait]
impl Listener for Server {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        self.socket = Some(self.config.listen.tcp(&self.cx.name).await?);
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, authorizations, security, cx, socket } = *self;
        let socket = socket.ok_or_else(|| ConnectorError::refused(config.listen.to_string(), "not bound"))?;
        let counts = Arc::new(Counts::new(&cx));
        let service = Arc::new(Service {
            limits: BodyLimits {
                bytes_max: config.max_body_bytes,
                expanded_bytes_max: config.max_expanded_bytes,
                timeout: config.body_timeout,
            },
            path: config.path,
            authorizations,
            budget: ByteBudget::new(config.max_buffered_bytes_total),
            way: Way {
                intake,
                counts: Arc::clone(&counts),
                full_timeout: config.full_timeout,
                ack_timeout: config.ack_timeout,
            },
        });
        let web = Web::new(config.header_timeout, &counts, &cx.shutdown);
        let gate = Gate::new(config.max_connections, config.max_connections_per_ip);
        let door = Door { socket, gate, security, counts, shutdown: cx.shutdown.clone() };
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
        .await;
        Ok(())
    }
}
