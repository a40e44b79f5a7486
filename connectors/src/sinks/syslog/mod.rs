//! Rows as syslog messages (RFC 5424) over UDP, TCP or TLS.

mod format;
mod link;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use logdrive_schemas::{Batch, Epoch, Reject, reject};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;

use self::link::{Link, SEND_BYTES};
use super::http_auth::invalid;
use crate::client_tls::Tls;
use crate::context::ConnectorContext;
use crate::error::{BoxError, ConnectorError};
use crate::metrics::Metrics;
use crate::sink::{Computed, FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How much may be written between two flushes.
const FLUSH_BYTES: usize = 16 << 20;

/// How messages travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Over TCP, or TLS.
    #[default]
    Tcp,
    /// Each in a datagram.
    Udp,
}

/// Where a message ends, over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// Its length stands before it (RFC 6587, RFC 5425).
    #[default]
    OctetCounting,
    /// A line feed stands behind it.
    Lf,
}

/// Sends syslog messages (RFC 5424), to rsyslog, syslog-ng and others, over UDP, TCP or TLS.
///
/// Syslog knows no acknowledgement: over TCP a flush returns only when the machine at the far end has confirmed every
/// byte, but what its program has not read when it crashes is lost, and what was under way when the connection broke is
/// sent again. Over UDP anything may be lost.
///
/// The parts of a message are SQL over the columns of the row; by default the message is the whole document, and what is
/// null is `-`. The time is the event time. What a part may not contain becomes `_`, line breaks become spaces.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Syslog {
    /// Where to: `host:port`.
    pub endpoint: String,
    /// `tcp` or `udp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Encrypts the connection, and says how the far end is checked. Not if not given; `tls: {}` trusts the system's
    /// authorities.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Where a message ends, over TCP: `octet_counting` or `lf`.
    #[serde(default)]
    pub framing: Framing,
    /// The facility in SQL: a code from 0 to 23 or a name such as `local0`. By default, and for anything else, `user`.
    #[serde(default)]
    pub facility: Option<String>,
    /// The severity in SQL: a code from 0 to 7, a name such as `err`, or a level such as `ERROR`. By default, and for
    /// anything else, `info`.
    #[serde(default)]
    pub severity: Option<String>,
    /// The host in SQL.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The application in SQL. By default `logdrive`.
    #[serde(default)]
    pub app_name: Option<String>,
    /// The process in SQL.
    #[serde(default)]
    pub procid: Option<String>,
    /// The kind of message in SQL.
    #[serde(default)]
    pub msgid: Option<String>,
    /// Structured data: elements, such as `order@32473`, of parameters in SQL. Those that are null are left out.
    #[serde(default)]
    pub structured_data: BTreeMap<String, BTreeMap<String, String>>,
    /// The message in SQL. By default the document.
    #[serde(default)]
    pub message: Option<String>,
    /// A longer message is a reject; over UDP one of more than 65507 bytes always is. Many receivers cut what is longer
    /// than 8 KiB.
    #[serde(default = "Syslog::max_message_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_message_bytes: u64,
    /// How long connecting may take.
    #[serde(default = "Syslog::connect_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long the far end may take nothing at all before the connection counts as lost.
    #[serde(default = "Syslog::stall_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub stall_timeout: Duration,
    /// How often the far end is asked whether everything has arrived, so that sources may be told.
    #[serde(default = "Syslog::flush_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub flush_interval: Duration,
}

impl Syslog {
    fn max_message_bytes_default() -> u64 {
        64 << 10
    }

    fn connect_timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn stall_timeout_default() -> Duration {
        Duration::from_secs(120)
    }

    fn flush_interval_default() -> Duration {
        Duration::from_millis(500)
    }

    fn host(&self) -> Result<&str, ConfigError> {
        let parts = self
            .endpoint
            .rsplit_once(':')
            .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        let (host, _) = parts.ok_or_else(|| invalid("`endpoint` must be `host:port`"))?;
        Ok(host.trim_start_matches('[').trim_end_matches(']'))
    }

    fn checked(&self) -> Result<(), ConfigError> {
        self.host()?;
        if self.tls.is_some() && self.protocol == Protocol::Udp {
            return Err(invalid("`tls` needs `protocol: tcp`"));
        }
        for (id, params) in &self.structured_data {
            if let Some(name) = std::iter::once(id).chain(params.keys()).find(|name| !format::is_name(name)) {
                return Err(invalid(format!(
                    "`structured_data`: `{name}` is no name of up to 32 characters"
                )));
            }
        }
        if self.max_message_bytes == 0 || self.connect_timeout.is_zero() || self.stall_timeout.is_zero() {
            return Err(invalid(
                "`max_message_bytes`, `connect_timeout` and `stall_timeout` must not be zero",
            ));
        }
        Ok(())
    }
}

impl Component for Syslog {
    const NAME: &'static str = "syslog";
    const EXAMPLE: &'static str = r#"
type: syslog
from: [events]
endpoint: "localhost:514"
severity: level
app_name: service
structured_data: { "event@32473": { tenant: tenant } }
message: message
"#;
}

impl SinkConfig for Syslog {
    fn guarantee(&self) -> Guarantee {
        Guarantee::BestEffort
    }

    fn reads(&self) -> Reads {
        Reads::Document(vec![logdrive_schemas::RowSchema::EVENT_TIME.to_owned()])
    }

    fn computed(&self) -> Vec<Computed> {
        format::computed(self)
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        self.checked()?;
        let tls = self.tls.as_ref().map(Tls::client).transpose()?;
        let labels = &[&*cx.name];
        Ok(Box::new(SyslogSink {
            link: None,
            tls,
            n_rows: 0,
            name: Arc::clone(&cx.name),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config: self,
        }))
    }
}

struct SyslogSink {
    config: Syslog,
    tls: Option<Arc<ClientConfig>>,
    link: Option<Link>,
    /// Rows since the last flush.
    n_rows: u64,
    name: Arc<str>,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

impl SyslogSink {
    fn lost(&self, source: impl Into<BoxError>) -> ConnectorError {
        self.metrics.sink_errors.with_label_values(&[&*self.name, "disconnected"]).inc();
        ConnectorError::disconnected(&self.config.endpoint, source)
    }

    /// The messages of a batch, framed, in pieces that are sent at once; and the rows that make none.
    fn framed(&self, batch: &Batch) -> (Vec<Vec<Vec<u8>>>, Vec<Reject>) {
        let config = &self.config;
        let len_max = match config.protocol {
            Protocol::Tcp => usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX),
            Protocol::Udp => {
                usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX).min(link::DATAGRAM_MAX)
            }
        };
        let (mut pieces, mut rejects) = (vec![Vec::new()], Vec::new());
        let mut n_bytes = 0;
        format::messages(config, batch, |idx, message| {
            if message.len() > len_max {
                let reason = format!("syslog_too_large: {} bytes, at most {len_max} are sent", message.len());
                rejects.push(Reject { idx, reason });
                return;
            }
            let framed = match (config.protocol, config.framing) {
                (Protocol::Udp, _) => message.to_vec(),
                (Protocol::Tcp, Framing::Lf) => [message, b"\n"].concat(),
                (Protocol::Tcp, Framing::OctetCounting) => {
                    [format!("{} ", message.len()).as_bytes(), message].concat()
                }
            };
            if n_bytes >= SEND_BYTES {
                pieces.push(Vec::new());
                n_bytes = 0;
            }
            n_bytes += framed.len();
            if let Some(piece) = pieces.last_mut() {
                piece.push(framed);
            }
        });
        (pieces, rejects)
    }
}

#[async_trait]
impl Sink for SyslogSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        (self.link, self.n_rows) = (None, 0);
        let host =
            self.config.host().map_err(|e| ConnectorError::refused(&self.config.endpoint, e.message))?;
        let opening = Link::open(&self.config, host, self.tls.as_ref());
        let opened = tokio::time::timeout(self.config.connect_timeout, opening).await;
        match opened {
            Ok(Ok(link)) => self.link = Some(link),
            Ok(Err(error)) => return Err(self.lost(error)),
            Err(_) => return Err(self.lost("connecting took too long")),
        }
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let (pieces, rejects) = self.framed(batch);
        for piece in pieces {
            let Some(link) = &mut self.link else { return Err(self.lost("not connected")) };
            let n_bytes: usize = piece.iter().map(Vec::len).sum();
            link.send(&piece, self.config.stall_timeout).await.map_err(|error| self.lost(error))?;
            self.bytes.inc_by(n_bytes as u64);
        }
        self.n_rows += (batch.num_rows() - rejects.len()) as u64;
        Ok(reject::of_batch(batch, &rejects))
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let Some(link) = &mut self.link else { return Err(self.lost("not connected")) };
        link.confirmed(self.config.stall_timeout).await.map_err(|error| self.lost(error))?;
        self.rows.inc_by(std::mem::take(&mut self.n_rows));
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: FLUSH_BYTES, age_max: self.config.flush_interval }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        match self.link.take() {
            Some(link) => link.close().await.map_err(|error| self.lost(error)),
            None => Ok(()),
        }
    }
}
