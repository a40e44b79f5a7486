//! The `forward` source: what Fluentd and Fluent Bit send to each other, protocol version 1.
//!
//! ```text
//! connection ─► (TLS) ─► (handshake) ─► frames ─► groups of messages ─► intake
//!      ▲                                                                  │ durable
//!      └──────────────── acknowledgements of chunks, in order ◄───────────┘
//! ```

pub mod frames;
mod handshake;
pub mod msgpack;
mod session;

use std::collections::BTreeMap;
use std::time::Duration;

use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;

use self::frames::Shape;
use self::handshake::Keys;
use self::session::Shared;
use super::net::listen::Listen;
use super::net::server::{Entrance, TcpServer};
use super::net::tls::Tls;
use super::tcp::defaults;
use crate::context::ConnectorContext;
use crate::sinks::Secret;
use crate::source::{SourceConfig, SourceKind};

/// The largest message that can be configured: a group of messages must stay below 64 MiB.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;

/// Receives events from Fluentd, Fluent Bit and others that speak the forward protocol, version 1: their `forward` output.
/// A chunk that asks for it (`require_ack_response`) is acknowledged once it is durable, so that the sender may forget
/// it. Each event is a JSON object: the record, with the tag and the time as members unless it has such members.
/// Compressed chunks are gzip or zstd.
///
/// Of an event that is none nothing can be known but its bytes: they and what follows them in its chunk become one
/// reject.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Where to listen, such as `0.0.0.0:24224`.
    pub listen: Listen,
    /// Encrypts connections. Not if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// The key that senders must know; write it as `${NAME}` and set the environment variable. Without it everybody may
    /// send.
    #[serde(default)]
    pub shared_key: Option<Secret>,
    /// With `shared_key`, the users who may send and their passwords. By default everybody who knows the key.
    #[serde(default)]
    pub users: BTreeMap<String, Secret>,
    /// With `shared_key`, the name that the source gives itself; a sender must have another (`self_hostname`).
    #[serde(default = "Forward::hostname_default")]
    pub self_hostname: String,
    /// The member that the tag becomes; `""` leaves it out.
    #[serde(default = "Forward::tag_key_default")]
    pub tag_key: String,
    /// The member that the time becomes; `""` leaves it out.
    #[serde(default = "Forward::time_key_default")]
    pub time_key: String,
    /// A longer event becomes a reject that holds its first `max_message_bytes` bytes. At most `16MiB`.
    #[serde(default = "Forward::max_message_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_message_bytes: u64,
    /// A connection that sends a longer chunk is closed.
    #[serde(default = "Forward::max_chunk_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_chunk_bytes: u64,
    /// A connection whose compressed chunk expands to more is closed.
    #[serde(default = "Forward::max_expanded_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_expanded_bytes: u64,
    /// Bytes of events of one connection that may wait for their acknowledgement. At this bound it is not read.
    #[serde(default = "Forward::max_unacknowledged_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_unacknowledged_bytes: u64,
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
    /// sender sends again.
    #[serde(default = "defaults::buffered_bytes_total", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
}

impl Forward {
    fn hostname_default() -> String {
        "logdrive".into()
    }

    fn tag_key_default() -> String {
        "tag".into()
    }

    fn time_key_default() -> String {
        "@timestamp".into()
    }

    fn max_message_bytes_default() -> u64 {
        1 << 20
    }

    fn max_chunk_bytes_default() -> u64 {
        64 << 20
    }

    fn max_expanded_bytes_default() -> u64 {
        64 << 20
    }

    fn max_unacknowledged_bytes_default() -> u64 {
        16 << 20
    }

    fn checked(&self) -> Result<(), ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        if self.max_message_bytes == 0 || self.max_message_bytes > MESSAGE_BYTES_MAX {
            return invalid("`max_message_bytes` is not between 1B and 16MiB");
        }
        if self.max_chunk_bytes == 0 || self.max_chunk_bytes > u64::from(u32::MAX) {
            return invalid("`max_chunk_bytes` is not between 1B and 4GiB");
        }
        if self.max_expanded_bytes == 0 || self.max_unacknowledged_bytes == 0 {
            return invalid("`max_expanded_bytes` or `max_unacknowledged_bytes` is 0");
        }
        if self.shared_key.is_none() && !self.users.is_empty() {
            return invalid("`users` need a `shared_key`");
        }
        Ok(())
    }
}

impl Component for Forward {
    const NAME: &'static str = "forward";
    const EXAMPLE: &'static str = "type: forward\nlisten: \"0.0.0.0:24224\"\n";
}

impl SourceConfig for Forward {
    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        self.checked()?;
        let entrance = Entrance {
            listen: self.listen,
            connections_max: self.max_connections,
            connections_per_ip_max: self.max_connections_per_ip,
            buffered_bytes_max: self.max_buffered_bytes_total,
        };
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (users, hostname) = (self.users, self.self_hostname);
        let make = move |common| Shared {
            shape: Shape {
                tag_key: self.tag_key,
                time_key: self.time_key,
                expanded_bytes_max: size(self.max_expanded_bytes),
            },
            keys: self.shared_key.map(|shared_key| Keys { shared_key, users, hostname }),
            message_bytes_max: size(self.max_message_bytes),
            frame_bytes_max: size(self.max_chunk_bytes),
            unanswered_bytes_max: self.max_unacknowledged_bytes,
            idle_timeout: Some(self.idle_timeout).filter(|idle| !idle.is_zero()),
            common,
        };
        Ok(SourceKind::Listener(Box::new(TcpServer::new(entrance, self.tls.as_ref(), cx, make)?)))
    }
}
