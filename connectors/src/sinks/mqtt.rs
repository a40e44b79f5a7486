//! Documents to the topics of an MQTT broker.
//!
//! A flush waits until the broker has confirmed every message: PUBACK with QoS 1, PUBCOMP with QoS 2. Nothing is
//! confirmed with QoS 0.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::timeout;

use super::Secret;
use super::http_rejects::{Refused, merge};
use super::template::PathTemplate;
use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::mqtt::connection::{Connection, Trouble};
use crate::mqtt::packet::{Incoming, Outgoing, Publish, Refusal};
use crate::mqtt::settings::{Settings, invalid};
use crate::mqtt::{Endpoint, LastWill, Qos, Tls, Version};
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How many rows become messages before the first of them is sent, and of how many bytes.
const AT_ONCE: usize = 256;
const AT_ONCE_BYTES: usize = 256 << 10;
/// How much may be written between two flushes.
const FLUSH_BYTES: usize = 16 << 20;
/// How many messages may wait for the broker.
const IN_FLIGHT_MAX: u16 = 4096;
/// The same with MQTT 3.1.1 and QoS 2: the broker cannot say its limit, and Mosquitto, whose limit this is, closes the
/// connection beyond it.
const IN_FLIGHT_UNTOLD: u16 = 20;
/// The largest packet that the protocol knows, less what its header takes at most.
const PACKET_MAX: usize = (256 << 20) - 64;

/// Publishes documents, each as a message, over MQTT.
///
/// With `qos: 1` and `2` nothing is lost that the broker confirms. A broken connection or a crash can repeat
/// messages, also with `qos: 2`: a row that was not flushed is published anew. MQTT 3.1.1 knows no answer for a
/// message that is not allowed: such messages vanish at the broker.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// The broker, such as `mqtt://broker:1883` or `mqtts://broker:8883`.
    #[schemars(with = "String")]
    pub endpoint: Endpoint,
    /// The topic: text, `{column}` for a value, and strftime (UTC) of the event time. What would change the levels of
    /// the topic (`/`, `+`, `#`) is percent-encoded in values; a value that is null is `_none`.
    pub topic: String,
    /// The quality of service: 0, 1 or 2.
    #[serde(default)]
    pub qos: Qos,
    /// Whether the broker keeps the last message of each topic for later subscribers.
    #[serde(default)]
    pub retain: bool,
    /// The version of the protocol, `3.1.1` or `5`.
    #[serde(default)]
    pub version: Version,
    /// The client's name; no two clients may have the same. By default a random one.
    #[serde(default)]
    pub client_id: Option<String>,
    /// The user's name.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How the broker of an `mqtts` address is checked.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// What the broker publishes when the sink is gone without a word.
    #[serde(default)]
    pub last_will: Option<LastWill>,
    /// The most messages that wait for the broker's confirmation; a broker that speaks MQTT 5 may lower it. By default
    /// 4096, but 20 with MQTT 3.1.1 and `qos: 2`, since many brokers then take no more (Mosquitto:
    /// `max_inflight_messages`).
    #[serde(default)]
    pub max_in_flight: Option<u16>,
    /// How long the broker may confirm nothing before the connection counts as lost.
    #[serde(default = "Mqtt::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// How long a row waits until it is confirmed and its source may be told.
    #[serde(default = "Mqtt::flush_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub flush_interval: Duration,
}

impl Mqtt {
    fn timeout_default() -> Duration {
        Duration::from_secs(30)
    }

    fn in_flight_max(&self) -> u16 {
        let untold = self.version == Version::V311 && self.qos == Qos::ExactlyOnce;
        self.max_in_flight.unwrap_or(if untold { IN_FLIGHT_UNTOLD } else { IN_FLIGHT_MAX })
    }

    fn flush_interval_default() -> Duration {
        Duration::from_millis(500)
    }
}

impl Component for Mqtt {
    const NAME: &'static str = "mqtt";
    const EXAMPLE: &'static str = r#"
type: mqtt
from: [events]
endpoint: "mqtt://localhost:1883"
topic: "events/{tenant}"
"#;
}

impl SinkConfig for Mqtt {
    fn guarantee(&self) -> Guarantee {
        if self.qos == Qos::AtMostOnce { Guarantee::BestEffort } else { Guarantee::AtLeastOnce }
    }

    fn reads(&self) -> Reads {
        let columns = PathTemplate::parse(&self.topic).map(|topic| topic.columns());
        Reads::Document(columns.unwrap_or_default())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let login = (self.username.as_ref(), self.password.as_ref());
        let mut settings = Settings::checked(&self.endpoint, self.version, self.tls.as_ref(), login)?;
        let made_up = || format!("logdrive-{:016x}", rand::random::<u64>());
        settings.client_id = self.client_id.clone().unwrap_or_else(made_up);
        settings.last_will.clone_from(&self.last_will);
        let topic = PathTemplate::parse(&self.topic).map_err(|e| invalid(format!("`topic`: {e}")))?;
        if self.topic.contains(['+', '#']) {
            return Err(invalid("`topic` has a wildcard, under which nothing can be published"));
        }
        if self.max_in_flight == Some(0) {
            return Err(invalid("`max_in_flight` must not be zero"));
        }
        if self.timeout.is_zero() {
            return Err(invalid("`timeout` must not be zero"));
        }
        let root = topic.root().to_str().unwrap_or_default();
        let prefix = if root == "." { String::new() } else { format!("{}/", root.trim_end_matches('/')) };
        let labels = &[&*cx.name];
        Ok(Box::new(MqttSink {
            topic,
            prefix,
            settings,
            link: None,
            n_rows: 0,
            name: Arc::clone(&cx.name),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config: self,
        }))
    }
}

/// The sink over all connections.
struct MqttSink {
    config: Mqtt,
    settings: Settings,
    topic: PathTemplate,
    /// What the template cuts off in front.
    prefix: String,
    link: Option<Link>,
    /// Rows since the last flush.
    n_rows: u64,
    name: Arc<str>,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

/// A row that is not taken, and why.
struct RefusedRow {
    batch: Arc<Batch>,
    row: usize,
    reason: String,
}

/// Why publishing stops.
enum Failed {
    /// The broker may take the same message later.
    Busy,
    Link(Trouble),
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Link(trouble)
    }
}

/// A connection, and what waits for the broker over it.
struct Link {
    connection: Connection,
    patience: Duration,
    /// The row of each message that waits, by packet identifier.
    waiting: HashMap<u16, (Arc<Batch>, usize)>,
    in_flight_max: usize,
    packet_max: usize,
    last_id: u16,
    refused: Vec<RefusedRow>,
}

impl Link {
    /// An identifier that no message has that waits; there are more of them than may wait.
    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.waiting.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Publishes a row, after waiting for the broker if too many wait.
    async fn publish(&mut self, batch: &Arc<Batch>, row: usize, mut message: Publish) -> Result<(), Failed> {
        let n_bytes = message.payload.len() + message.topic.len() + 16;
        let reason = if message.topic.is_empty() || usize::from(u16::MAX) < message.topic.len() {
            Some("mqtt_topic: the topic is empty or too long")
        } else if self.packet_max < n_bytes {
            Some("mqtt_too_large: the broker takes no message of this size")
        } else {
            None
        };
        if let Some(reason) = reason {
            self.refused.push(RefusedRow { batch: Arc::clone(batch), row, reason: reason.into() });
            return Ok(());
        }
        self.wait_until(self.in_flight_max - 1).await?;
        if message.qos != Qos::AtMostOnce {
            message.id = self.next_id();
            self.waiting.insert(message.id, (Arc::clone(batch), row));
        }
        Ok(self.connection.feed(Outgoing::Publish(message)).await?)
    }

    /// Sends everything and waits until no more than `n` messages wait for the broker.
    async fn wait_until(&mut self, n: usize) -> Result<(), Failed> {
        while n < self.waiting.len() {
            self.connection.flush().await?;
            let next = timeout(self.patience, self.connection.next()).await;
            let mut next = Some(next.map_err(|_| Trouble::Silent("confirms nothing"))??);
            while let Some(packet) = next.take() {
                self.handle(packet).await?;
                next = self.connection.next().now_or_never().transpose()?;
            }
        }
        Ok(())
    }

    async fn handle(&mut self, packet: Incoming) -> Result<(), Failed> {
        match packet {
            Incoming::PubAck(id, refusal) => self.settle(id, refusal),
            Incoming::PubRec(id, None) => Ok(self.connection.feed(Outgoing::PubRel(id)).await?),
            Incoming::PubRec(id, refusal) => self.settle(id, refusal),
            Incoming::PubComp(id) => self.settle(id, None),
            _ => Ok(()),
        }
    }

    /// The broker has said what becomes of a message.
    fn settle(&mut self, id: u16, refusal: Option<Refusal>) -> Result<(), Failed> {
        match (self.waiting.remove(&id), refusal) {
            (Some(_), Some(refusal)) if refusal.passes => Err(Failed::Busy),
            (Some((batch, row)), Some(Refusal { reason, .. })) => {
                let reason = format!("mqtt_refused: the broker says {reason}");
                self.refused.push(RefusedRow { batch, row, reason });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The rows that were refused since the last call, by batch.
    fn take_refused(&mut self) -> Refused {
        let mut groups: Vec<(Arc<Batch>, Vec<Reject>)> = Vec::new();
        for RefusedRow { batch, row, reason } in self.refused.drain(..) {
            let reject = Reject { idx: row, reason };
            match groups.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &batch)) {
                Some((_, rejects)) => rejects.push(reject),
                None => groups.push((batch, vec![reject])),
            }
        }
        let sorted = groups.into_iter().map(|(batch, mut rejects)| {
            rejects.sort_by_key(|reject| reject.idx);
            ((*batch).clone(), rejects)
        });
        sorted.collect()
    }
}

impl MqttSink {
    fn failed(&self, failed: Failed) -> ConnectorError {
        let (kind, error) = match failed {
            Failed::Busy => {
                ("busy", ConnectorError::Busy { endpoint: self.config.endpoint.to_string(), after: None })
            }
            Failed::Link(trouble) => {
                (trouble.kind(), ConnectorError::disconnected(self.config.endpoint.to_string(), trouble))
            }
        };
        self.metrics.sink_errors.with_label_values(&[&*self.name, kind]).inc();
        error
    }

    fn not_connected(&self) -> ConnectorError {
        self.failed(Trouble::Closed(String::new()).into())
    }

    /// The messages of rows from `row` on: some of them, but at least one.
    fn messages(&self, batch: &Batch, row: usize) -> Vec<Publish> {
        let documents = Documents::new(batch);
        let topic = self.topic.bind(batch);
        let (mut messages, mut n_bytes) = (Vec::new(), 0);
        let mut rendered = String::new();
        for row in row..batch.num_rows().min(row + AT_ONCE) {
            topic.render(row, &mut rendered);
            // A plus in a value must not be taken for a wildcard.
            let name = format!("{}{rendered}", self.prefix).replace('+', "%2B");
            let mut payload = Vec::new();
            documents.write(row, &mut payload);
            n_bytes += payload.len();
            messages.push(Publish {
                topic: name.into(),
                payload: payload.into(),
                qos: self.config.qos,
                retain: self.config.retain,
                ..Publish::default()
            });
            if AT_ONCE_BYTES <= n_bytes {
                break;
            }
        }
        messages
    }
}

#[async_trait]
impl Sink for MqttSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.link = None;
        self.n_rows = 0;
        let opened = Connection::open(&self.settings).await;
        let (connection, connected) = opened.map_err(|trouble| self.failed(trouble.into()))?;
        self.link = Some(Link {
            connection,
            patience: self.config.timeout,
            waiting: HashMap::new(),
            in_flight_max: usize::from(self.config.in_flight_max().min(connected.receive_max).max(1)),
            packet_max: connected.packet_max.map_or(PACKET_MAX, |max| PACKET_MAX.min(max as usize)),
            last_id: 0,
            refused: Vec::new(),
        });
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let Some(mut link) = self.link.take() else { return Err(self.not_connected()) };
        let shared = Arc::new(batch.clone());
        let mut row = 0;
        while row < batch.num_rows() {
            for message in self.messages(batch, row) {
                self.bytes.inc_by(message.payload.len() as u64);
                // A link that failed is not put back.
                link.publish(&shared, row, message).await.map_err(|failed| self.failed(failed))?;
                row += 1;
            }
        }
        self.n_rows += batch.num_rows() as u64;
        let refused = link.take_refused();
        self.n_rows -= refused.iter().map(|(_, rejects)| rejects.len() as u64).sum::<u64>();
        self.link = Some(link);
        Ok(merge(&self.name, &refused))
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let Some(mut link) = self.link.take() else { return Err(self.not_connected()) };
        let sent = link.connection.flush().await.map_err(|trouble| self.failed(trouble.into()));
        sent?;
        link.wait_until(0).await.map_err(|failed| self.failed(failed))?;
        let refused = link.take_refused();
        self.n_rows -= refused.iter().map(|(_, rejects)| rejects.len() as u64).sum::<u64>();
        self.rows.inc_by(std::mem::take(&mut self.n_rows));
        self.link = Some(link);
        Ok(merge(&self.name, &refused))
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: FLUSH_BYTES, age_max: self.config.flush_interval }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        if let Some(mut link) = self.link.take() {
            // The broker would otherwise publish the last will.
            let left = link.connection.feed(Outgoing::Disconnect).await;
            left.map_err(|trouble| self.failed(trouble.into()))?;
            link.connection.flush().await.map_err(|trouble| self.failed(trouble.into()))?;
        }
        Ok(())
    }
}
