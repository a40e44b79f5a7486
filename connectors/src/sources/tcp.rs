//! The `tcp` source: lines over TCP.
//!
//! The protocol knows no acknowledgement: what a peer had sent when the process was killed, and what had not yet
//! reached the buffer, is lost. Peers that must know use `http`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::net::accept::Door;
use super::net::budget::{ByteBudget, Gate};
use super::net::counts::Counts;
use super::net::expand::Compression;
use super::net::framing::Framing;
use super::net::listen::Listen;
use super::net::stream::{Shared, StreamLimits, pump};
use super::net::tls::{Security, Tls};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, SourceConfig, SourceKind};

/// Receives messages over TCP: one per line, ended by LF or CRLF, or preceded by its length (`framing`). Empty ones are
/// skipped; a last line without its end is a message when the peer closes the connection in order.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Where to listen, such as `0.0.0.0:5044`.
    pub listen: Listen,
    /// `newline`, or `octet_counting` for messages that follow their length.
    #[serde(default)]
    pub framing: Framing,
    /// Encrypts connections. Not if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A longer line becomes a reject that holds its first `max_line_bytes` bytes; the next line is read as usual.
    #[serde(default = "defaults::line_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_line_bytes: u64,
    /// Connections beyond this many are closed at once.
    #[serde(default = "defaults::connections")]
    pub max_connections: usize,
    /// The same for one address (one /64 network with IPv6).
    #[serde(default = "defaults::connections_per_ip")]
    pub max_connections_per_ip: usize,
    /// A connection on which nothing arrives for this long is closed; `0s` never closes one.
    #[serde(default = "defaults::idle_timeout", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// The memory of one connection, at least twice `max_line_bytes`.
    #[serde(default = "defaults::buffered_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes: u64,
    /// The memory of all connections beyond 16 KiB each. When it is used up, reads become small, and lines for which
    /// even that does not suffice become rejects.
    #[serde(default = "defaults::buffered_bytes_total", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
    /// How the stream is compressed. One that expands more than a hundredfold is cut off.
    #[serde(default)]
    pub compression: Compression,
}

impl Component for Tcp {
    const NAME: &'static str = "tcp";
    const EXAMPLE: &'static str = "type: tcp\nlisten: \"0.0.0.0:5044\"\n";
}

impl SourceConfig for Tcp {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let security = Security::load(self.tls.as_ref())?;
        let limits = StreamLimits::checked(
            self.max_line_bytes,
            self.max_buffered_bytes,
            self.idle_timeout,
            self.compression,
        )?;
        let limits = StreamLimits { framing: self.framing, ..limits };
        let cx = cx.clone();
        Ok(SourceKind::Listener(Box::new(TcpLines { config: self, limits, security, cx, socket: None })))
    }
}

/// Defaults that `tcp` and `unix` have in common.
pub(super) mod defaults {
    use std::time::Duration;

    pub(in super::super) fn line_bytes() -> u64 {
        1 << 20
    }

    pub(in super::super) fn connections() -> usize {
        10_000
    }

    pub(in super::super) fn connections_per_ip() -> usize {
        1_000
    }

    pub(in super::super) fn idle_timeout() -> Duration {
        Duration::from_mins(10)
    }

    pub(in super::super) fn buffered_bytes() -> u64 {
        4 << 20
    }

    pub(in super::super) fn buffered_bytes_total() -> u64 {
        512 << 20
    }
}

struct TcpLines {
    config: Tcp,
    limits: StreamLimits,
    security: Security,
    cx: ConnectorContext,
    socket: Option<TcpListener>,
}

#[async_trait]
impl Listener for TcpLines {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        self.socket = Some(self.config.listen.tcp(&self.cx.name).await?);
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { config, limits, security, cx, socket } = *self;
        let socket = socket.ok_or_else(|| ConnectorError::refused(config.listen.to_string(), "not bound"))?;
        let gate = Gate::new(config.max_connections, config.max_connections_per_ip);
        let counts = Arc::new(Counts::new(&cx));
        let shared = Arc::new(Shared {
            limits,
            budget: ByteBudget::new(config.max_buffered_bytes_total),
            counts: Arc::clone(&counts),
            intake,
            shutdown: cx.shutdown.clone(),
        });
        let door = Door { socket, gate, security, counts, shutdown: cx.shutdown };
        door.serve_all(move |mut connection, peer| {
            let shared = Arc::clone(&shared);
            async move {
                pump(&mut connection, peer, &shared).await;
                connection.close().await;
            }
        })
        .await;
        Ok(())
    }
}
