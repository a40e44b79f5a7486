//! The `syslog` source: syslog over UDP, TCP, TLS and RELP.
//!
//! ```text
//! udp ─► datagrams ──────────────────────────► intake
//! tcp ─► (TLS) ─► frames: counted or lines ──► intake
//! relp ─► (TLS) ─► relp: frames, answers ────► intake, answered when durable
//! ```

pub mod relp;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, Span, bytes, duration};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use self::relp::Relp;
use super::net::datagram::Split;
use super::net::expand::Compression;
use super::net::framing::Framing;
use super::net::listen::Listen;
use super::net::server::{Entrance, TcpServer};
use super::net::stream::{Shared, StreamLimits};
use super::net::tls::Tls;
use super::tcp::defaults;
use super::udp::Udp;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Intake, Listener, SourceConfig, SourceKind};

/// How syslog comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RELP: what is answered is durable.
    Relp,
    /// TCP, plain or with TLS.
    Tcp,
    /// UDP.
    Udp,
}

/// One protocol, or a list of them.
fn read_protocols<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Protocol>>, D::Error> {
    struct OneOrMany;

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<Protocol>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`udp`, `tcp` or `relp`, or a list of them")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Protocol::deserialize(text.into_deserializer()).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = from.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }

    from.deserialize_any(OneOrMany).map(Some)
}

/// The JSON Schema of [`read_protocols`].
fn protocols_schema(generator: &mut SchemaGenerator) -> Schema {
    let one = generator.subschema_for::<Protocol>();
    json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
}

/// Receives syslog. Over UDP a datagram is a message. Over TCP each frame may have its length before it (octet counting,
/// RFC 6587, which starts with `<` behind the length) or end with LF, CRLF or NUL; a connection may use both. LF, CR and
/// NUL at the end of a message are left out. Messages are decoded by the `syslog` decoder unless `decoder` names another.
///
/// RELP is the way to lose nothing: a message is answered with `200 OK` once it is durable, in order.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Syslog {
    /// Where to listen, such as `0.0.0.0:514`.
    pub listen: Listen,
    /// `udp`, `tcp` or `relp`, or a list such as `[udp, tcp]`: all on the same port number. `[udp, tcp]` if not given, or
    /// `tcp` with `tls`.
    #[serde(default, deserialize_with = "read_protocols")]
    #[schemars(schema_with = "protocols_schema")]
    pub protocol: Option<Vec<Protocol>>,
    /// Encrypts the connections of TCP and RELP. Not if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A longer message becomes a reject that holds its first `max_message_bytes` bytes; the next one is read as usual.
    /// Datagrams are never longer than `64KiB`.
    #[serde(default = "Syslog::max_message_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_message_bytes: u64,
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
    /// The memory of one connection, at least twice `max_message_bytes`.
    #[serde(default = "defaults::buffered_bytes", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes: u64,
    /// The memory of all connections beyond 16 KiB each, not counting TLS. When it is used up, reads become small;
    /// messages for which even that does not suffice become rejects, and RELP's connections are closed.
    #[serde(default = "defaults::buffered_bytes_total", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_buffered_bytes_total: u64,
    /// RELP: bytes of messages of one connection that may wait for their answer. At this bound it is not read.
    #[serde(default = "Syslog::max_unacknowledged_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_unacknowledged_bytes: u64,
    /// UDP: how much the kernel may hold per socket. Without the right to exceed `net.core.rmem_max`, that is the limit.
    #[serde(default = "Udp::receive_buffer_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub receive_buffer: u64,
    /// UDP: how many sockets share the port, 1 to 64. By default as many as there are cores, 4 at most.
    #[serde(default)]
    pub sockets: Option<usize>,
}

impl Syslog {
    fn max_message_bytes_default() -> u64 {
        64 << 10
    }

    fn max_unacknowledged_bytes_default() -> u64 {
        16 << 20
    }

    fn protocols(&self) -> Result<Vec<Protocol>, ConfigError> {
        let invalid =
            |message: &str| Err(ConfigError::new("config::invalid_value", Span::default(), message));
        let default =
            if self.tls.is_some() { vec![Protocol::Tcp] } else { vec![Protocol::Udp, Protocol::Tcp] };
        let protocols = self.protocol.clone().unwrap_or(default);
        let [relp, tcp, udp] =
            [Protocol::Relp, Protocol::Tcp, Protocol::Udp].map(|one| protocols.contains(&one));
        if relp && tcp {
            return invalid("`protocol` has `tcp` and `relp`, which cannot share a port: use two sources");
        }
        if !relp && !tcp && !udp {
            return invalid("`protocol` names none");
        }
        if self.tls.is_some() && !relp && !tcp {
            return invalid("`tls` needs the protocol `tcp` or `relp`");
        }
        if relp && self.max_unacknowledged_bytes == 0 {
            return invalid("`max_unacknowledged_bytes` is 0");
        }
        Ok(protocols)
    }

    fn udp(&self) -> Udp {
        Udp {
            listen: self.listen.clone(),
            sockets: self.sockets,
            receive_buffer: self.receive_buffer,
            split: Split::Trimmed,
            max_datagram_bytes: self.max_message_bytes.min(64 << 10),
        }
    }
}

impl Component for Syslog {
    const NAME: &'static str = "syslog";
    const EXAMPLE: &'static str = "type: syslog\nlisten: \"0.0.0.0:5514\"\nprotocol: [udp, tcp]\n";
}

impl SourceConfig for Syslog {
    const DECODER: &'static str = "syslog";

    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let protocols = self.protocols()?;
        let limits = StreamLimits::checked(
            self.max_message_bytes,
            self.max_buffered_bytes,
            self.idle_timeout,
            Compression::None,
        )
        .map_err(|mut error| {
            error.message = error.message.replace("max_line_bytes", "max_message_bytes");
            error
        })?;
        let limits = StreamLimits { framing: Framing::Syslog, ..limits };
        let udp = match protocols.contains(&Protocol::Udp).then(|| self.udp().build(cx)).transpose()? {
            Some(SourceKind::Listener(udp)) => Some(udp),
            _ => None,
        };
        let streams = [Protocol::Tcp, Protocol::Relp].into_iter().find(|one| protocols.contains(one));
        let entrance = Entrance {
            listen: self.listen,
            connections_max: self.max_connections,
            connections_per_ip_max: self.max_connections_per_ip,
            buffered_bytes_max: self.max_buffered_bytes_total,
        };
        let tls = self.tls.as_ref();
        let streams: Option<Box<dyn Listener>> = match streams {
            None => None,
            Some(Protocol::Relp) => {
                let make = move |common| Relp {
                    message_bytes_max: limits.line_bytes_max,
                    unanswered_bytes_max: self.max_unacknowledged_bytes,
                    idle_timeout: limits.idle_timeout,
                    common,
                };
                Some(Box::new(TcpServer::new(entrance, tls, cx, make)?))
            }
            Some(Protocol::Tcp | Protocol::Udp) => {
                let make = move |common| Shared { limits, common };
                Some(Box::new(TcpServer::new(entrance, tls, cx, make)?))
            }
        };
        Ok(SourceKind::Listener(Box::new(SyslogServer(udp.into_iter().chain(streams).collect()))))
    }
}

/// What listens for datagrams, for connections, or both.
struct SyslogServer(Vec<Box<dyn Listener>>);

#[async_trait]
impl Listener for SyslogServer {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        for listener in &mut self.0 {
            listener.bind().await?;
        }
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let running = self.0.into_iter().map(|listener| listener.run(intake.clone()));
        futures::future::try_join_all(running).await?;
        Ok(())
    }
}
