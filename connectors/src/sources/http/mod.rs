//! The `http` source: documents over HTTP, and the bulk requests of Elasticsearch's shippers.
//!
//! A request is answered when its data is durable. The accept loop is ours, with a timer for hyper: without one, its
//! header deadline would never fire.

mod answer;
pub mod bulk;
pub mod documents;
mod service;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::net::DRAIN_MAX;
use super::net::accept::Door;
use super::net::auth::{Auth, Authorizations};
use super::net::body::BodyLimits;
use super::net::budget::{ByteBudget, Gate};
use super::net::counts::Counts;
use super::net::listen::Listen;
use super::net::tls::{Connection, Security, Tls};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, SourceConfig, SourceKind};
use service::Service;

/// A request's head may be this long.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// No body is larger, expanded or not: a group of messages must stay below 64 MiB.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// Receives documents over HTTP. `POST /` (or `path`) takes a JSON array or one document per line and answers
/// `{"accepted":n}`; `POST /_bulk` and `POST /{index}/_bulk` take Elasticsearch's bulk requests, so that shippers
/// made for Elasticsearch can send here. An answer of success means that the data is durable. Bodies may be
/// compressed (`Content-Encoding: gzip`, `deflate` or `zstd`); one that expands more than a hundredfold is refused.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where to listen, such as `0.0.0.0:8080`.
    pub listen: Listen,
    /// A path besides `/` that takes documents, such as `/logs`.
    #[serde(default)]
    pub path: Option<String>,
    /// The version that shippers are told when they ask for an Elasticsearch node, as many do at start-up; `none`
    /// tells them nothing.
    #[serde(default = "Http::elasticsearch_version_default")]
    pub elasticsearch_version: String,
    /// Who may send. Everybody if not given.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Serves HTTPS. Plain HTTP if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A longer line or array element becomes a reject; a longer document of a bulk request is refused with 413.
    #[serde(default = "Http::max_line_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_line_bytes: u64,
    /// A larger body is refused with 413.
    #[serde(default = "Http::max_body_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_body_bytes: u64,
    /// The same for a compressed body after expansion. At most `64MiB`.
    #[serde(default = "Http::max_expanded_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_expanded_bytes: u64,
    /// The memory of all bodies. A request for which there is none is answered with 429.
    #[serde(default = "Http::max_buffered_bytes_total_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
    /// Connections beyond this many are closed at once.
    #[serde(default = "Http::max_connections_default")]
    pub max_connections: usize,
    /// The same for one address (one /64 network with IPv6).
    #[serde(default = "Http::max_connections_per_ip_default")]
    pub max_connections_per_ip: usize,
    /// A connection whose next request head is not complete after this long is closed.
    #[serde(default = "Http::header_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// A body that is not complete after this long is refused with 408.
    #[serde(default = "Http::body_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub body_timeout: Duration,
    /// How long a request waits while the buffer is full, before it is answered with 429.
    #[serde(default = "Http::full_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub full_timeout: Duration,
    /// How long a request waits until its data is durable, before it is answered with 503. The data may still
    /// become durable afterwards.
    #[serde(default = "Http::ack_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub ack_timeout: Duration,
}

impl Http {
    fn elasticsearch_version_default() -> String {
        "8.17.0".into()
    }

    fn max_line_bytes_default() -> u64 {
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
        Duration::from_secs(30)
    }

    fn body_timeout_default() -> Duration {
        Duration::from_mins(1)
    }

    fn full_timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn ack_timeout_default() -> Duration {
        Duration::from_mins(1)
    }

    fn checked(&self) -> Result<(), ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if self.path.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains("/_bulk")) {
            return invalid("`path` does not begin with `/`, or is one of the bulk paths");
        }
        if self.max_body_bytes > BODY_BYTES_MAX || self.max_expanded_bytes > BODY_BYTES_MAX {
            return invalid("`max_body_bytes` or `max_expanded_bytes` is more than 64MiB");
        }
        if self.max_line_bytes == 0 {
            return invalid("`max_line_bytes` is 0");
        }
        Ok(())
    }
}

impl Component for Http {
    const NAME: &'static str = "http";
    const EXAMPLE: &'static str = "type: http\nlisten: \"0.0.0.0:8080\"\n";
}

impl SourceConfig for Http {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        self.checked()?;
        let security = Security::load(self.tls.as_ref())?;
        let authorizations = Authorizations::of(self.auth.as_ref())?;
        Ok(SourceKind::Listener(Box::new(HttpServer {
            config: self,
            authorizations,
            security,
            cx: cx.clone(),
            socket: None,
        })))
    }
}

struct HttpServer {
    config: Http,
    authorizations: Authorizations,
    security: Security,
    cx: ConnectorContext,
    socket: Option<TcpListener>,
}

#[async_trait]
impl Listener for HttpServer {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        self.socket = Some(self.config.listen.tcp(&self.cx.name).await?);
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, authorizations, security, cx, socket } = *self;
        let socket = socket.ok_or_else(|| ConnectorError::refused(config.listen.to_string(), "not bound"))?;
        let gate = Gate::new(config.max_connections, config.max_connections_per_ip);
        let server = server(config.header_timeout);
        let counts = Arc::new(Counts::new(&cx));
        let service = Arc::new(Service {
            limits: BodyLimits {
                bytes_max: config.max_body_bytes,
                expanded_bytes_max: config.max_expanded_bytes,
                timeout: config.body_timeout,
            },
            line_bytes_max: config.max_line_bytes as usize,
            full_timeout: config.full_timeout,
            ack_timeout: config.ack_timeout,
            authorizations,
            path: config.path.map(|path| path.trim_end_matches('/').to_owned()),
            elasticsearch_version: Some(config.elasticsearch_version).filter(|version| version != "none"),
            budget: ByteBudget::new(config.max_buffered_bytes_total),
            counts: Arc::clone(&counts),
            intake,
        });
        let door = Door { socket, gate, security, counts, shutdown: cx.shutdown.clone() };
        door.serve_all(move |stream, peer| {
            let (server, service, shutdown) = (server.clone(), Arc::clone(&service), cx.shutdown.clone());
            async move { serve(&server, stream, &peer, &service, &shutdown).await }
        })
        .await;
        Ok(())
    }
}

fn server(header_timeout: Duration) -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(true);
    server
}

/// Serves one connection. Once the pipeline stops, a request in progress is still answered, for a while.
async fn serve(
    server: &http1::Builder,
    stream: Connection,
    peer: &Arc<str>,
    service: &Arc<Service>,
    shutdown: &CancellationToken,
) {
    let n_in_progress = Arc::new(AtomicUsize::new(0));
    let answer = service_fn(|request| {
        let (service, peer) = (Arc::clone(service), Arc::clone(peer));
        let n_in_progress = Arc::clone(&n_in_progress);
        async move {
            n_in_progress.fetch_add(1, Ordering::Relaxed);
            let answer = service.answer(request, &peer).await;
            n_in_progress.fetch_sub(1, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            // Without a request there is at most an answer that is on its way, or a head that is incomplete.
            let busy = n_in_progress.load(Ordering::Relaxed) > 0;
            connection.as_mut().graceful_shutdown();
            match timeout(if busy { DRAIN_MAX } else { DRAIN_MAX / 20 }, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        if error.is_parse_too_large() || error.is_parse() {
            service.counts.refused("malformed_request", peer);
        } else if error.is_timeout() {
            service.counts.refused("header_timeout", peer);
        } else {
            tracing::debug!(%error, %peer, "A connection was lost.");
        }
    }
}
