//! The `tcp` source: lines over TCP.
//!
//! The protocol knows no acknowledgement: what a peer had sent when the process was killed, and what had not yet
//! reached the buffer, is lost. Peers that must know use `http`.

use std::time::Duration;

use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;

use super::net::expand::Compression;
use super::net::framing::Framing;
use super::net::listen::Listen;
use super::net::server::{Entrance, TcpServer};
use super::net::stream::{Shared, StreamLimits};
use super::net::tls::Tls;
use crate::context::ConnectorContext;
use crate::source::{SourceConfig, SourceKind};

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
        let limits = StreamLimits::checked(
            self.max_line_bytes,
            self.max_buffered_bytes,
            self.idle_timeout,
            self.compression,
        )?;
        let limits = StreamLimits { framing: self.framing, ..limits };
        let entrance = Entrance {
            listen: self.listen,
            connections_max: self.max_connections,
            connections_per_ip_max: self.max_connections_per_ip,
            buffered_bytes_max: self.max_buffered_bytes_total,
        };
        let make = move |common| Shared { limits, common };
        Ok(SourceKind::Listener(Box::new(TcpServer::new(entrance, self.tls.as_ref(), cx, make)?)))
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
