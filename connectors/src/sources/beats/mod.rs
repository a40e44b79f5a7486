//! The `beats` source: what shippers of Elastic's Beats family send to Logstash.
//!
//! ```text
//! connection ─► (TLS) ─► frames ─► groups of events ─► intake
//!      ▲                                                 │ durable
//!      └──────── acknowledgements, in order ◄────────────┘
//! ```

pub mod frames;
mod session;

use std::time::Duration;

use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;

use self::frames::FrameLimits;
use self::session::Shared;
use super::net::listen::Listen;
use super::net::server::{Entrance, TcpServer};
use super::net::tls::Tls;
use super::tcp::defaults;
use crate::context::ConnectorContext;
use crate::source::{SourceConfig, SourceKind};

/// The largest event that can be configured: a group of messages must stay below 64 MiB.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;

/// Receives events from Filebeat and other shippers that speak the Beats protocol (Lumberjack, versions 1 and 2): their
/// `output.logstash`. An event is acknowledged once it is durable, so that the shipper may forget it; one that is not is
/// sent again. While a shipper waits it is told every few seconds that the connection lives. Each event is a JSON object;
/// the pairs of version 1 become an object of strings.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Beats {
    /// Where to listen, such as `0.0.0.0:5044`.
    pub listen: Listen,
    /// Encrypts connections. Not if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A longer event becomes a reject that holds its first `max_message_bytes` bytes; it is acknowledged, since it would
    /// be sent again for ever. At most `16MiB`.
    #[serde(default = "Beats::max_message_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_message_bytes: u64,
    /// A connection that announces more events at once is closed.
    #[serde(default = "Beats::max_window_default")]
    pub max_window: u32,
    /// A connection whose compressed frame expands to more is closed. It is expanded in small pieces.
    #[serde(default = "Beats::max_expanded_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_expanded_bytes: u64,
    /// Bytes of events of one connection that may wait for their acknowledgement. At this bound it is not read.
    #[serde(default = "Beats::max_unacknowledged_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_unacknowledged_bytes: u64,
    /// How often a shipper that waits is told that the connection lives.
    #[serde(default = "Beats::keep_alive_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub keep_alive: Duration,
    /// Connections beyond this many are closed at once.
    #[serde(default = "defaults::connections")]
    pub max_connections: usize,
    /// The same for one address (one /64 network with IPv6).
    #[serde(default = "defaults::connections_per_ip")]
    pub max_connections_per_ip: usize,
    /// A connection on which nothing arrives for this long, and that waits for nothing, is closed; `0s` never closes one.
    #[serde(default = "defaults::idle_timeout", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// The memory of all connections beyond 16 KiB each, not counting TLS. A connection that gets none is closed; its
    /// shipper sends again.
    #[serde(default = "defaults::buffered_bytes_total", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
}

impl Beats {
    fn max_message_bytes_default() -> u64 {
        MESSAGE_BYTES_MAX
    }

    fn max_window_default() -> u32 {
        100_000
    }

    fn max_expanded_bytes_default() -> u64 {
        256 << 20
    }

    fn max_unacknowledged_bytes_default() -> u64 {
        16 << 20
    }

    fn keep_alive_default() -> Duration {
        Duration::from_secs(3)
    }

    fn checked(&self) -> Result<(), ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if self.max_message_bytes == 0 || self.max_message_bytes > MESSAGE_BYTES_MAX {
            return invalid("`max_message_bytes` is not between 1B and 16MiB");
        }
        if self.max_window == 0 || self.max_unacknowledged_bytes == 0 || self.max_expanded_bytes == 0 {
            return invalid("`max_window`, `max_expanded_bytes` or `max_unacknowledged_bytes` is 0");
        }
        if self.keep_alive.is_zero() {
            return invalid("`keep_alive` is 0");
        }
        Ok(())
    }
}

impl Component for Beats {
    const NAME: &'static str = "beats";
    const EXAMPLE: &'static str = "type: beats\nlisten: \"0.0.0.0:5044\"\n";
}

impl SourceConfig for Beats {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        self.checked()?;
        let entrance = Entrance {
            listen: self.listen,
            connections_max: self.max_connections,
            connections_per_ip_max: self.max_connections_per_ip,
            buffered_bytes_max: self.max_buffered_bytes_total,
        };
        let make = move |common| Shared {
            message_bytes_max: self.max_message_bytes as usize,
            limits: FrameLimits { window_max: self.max_window, expanded_bytes_max: self.max_expanded_bytes },
            unanswered_bytes_max: self.max_unacknowledged_bytes,
            idle_timeout: Some(self.idle_timeout).filter(|idle| !idle.is_zero()),
            keep_alive: self.keep_alive,
            common,
        };
        Ok(SourceKind::Listener(Box::new(TcpServer::new(entrance, self.tls.as_ref(), cx, make)?)))
    }
}
