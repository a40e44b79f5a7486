//! Documents into Kafka topics.
//!
//! The client library batches, compresses and sends on threads of its own. A flush waits until the broker has
//! confirmed every message; what it refuses for good becomes a reject.

mod deliveries;
mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use schemars::JsonSchema;
use serde::Deserialize;

use self::deliveries::{Deliveries, Outcome, Reports, Row, is_about_the_message, is_about_the_topic, opaque};
use self::topic::make_topic;
use super::http_rejects::{Refused, merge};
use super::text::Text;
use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::kafka::{Cluster, KafkaTls, Options, Sasl, invalid, is_refusal};
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How long a broker may take to answer when the sink connects.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a full queue is waited for before it is tried again, if nobody says that there is room.
const FULL_WAIT: Duration = Duration::from_millis(20);

/// Sends documents to Kafka, one message a row.
///
/// Loses nothing: a message counts as delivered when all replicas in sync have it, and a retry by the client library
/// repeats nothing. After a crash, or when a broker did not answer within `delivery_timeout`, rows may be sent again.
/// Rows that are too large for the topic, or whose topic cannot be (where its name comes from a column), are rejects.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Addresses of brokers to ask first, such as `localhost:9092`.
    pub endpoint: Vec<String>,
    /// The topic. `%Y %m %d …` (strftime) are of the event time in UTC, `{column}` is a value, with `_` for what a
    /// topic's name cannot hold. Whoever sends events chooses such a value, so a column with many values makes many
    /// topics, where brokers make them by themselves.
    pub topic: String,
    /// The key, such as `{customer}`: messages of one key go to one partition, in order. A row whose value is null has
    /// none.
    #[serde(default)]
    pub key: Option<String>,
    /// Headers, with values such as `{tenant}`. One whose value is null is left out.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How a key chooses a partition.
    #[serde(default)]
    pub partitioner: Partitioner,
    /// How batches are compressed. The default costs little CPU time here, at the broker and at every reader; `zstd`
    /// makes JSON smaller, for several times the CPU time.
    #[serde(default)]
    pub compression: Compression,
    /// How much is sent before it must be confirmed.
    #[serde(default)]
    pub batch: KafkaBatch,
    /// How long the brokers may take to confirm a message, with all retries, before everything since the last
    /// confirmation is sent again.
    #[serde(default = "Kafka::delivery_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub delivery_timeout: Duration,
    /// TLS to the brokers.
    #[serde(default)]
    pub tls: Option<KafkaTls>,
    /// Who the sink says it is.
    #[serde(default)]
    pub sasl: Option<Sasl>,
    /// Properties of librdkafka, such as `message.max.bytes: 4000000`. Those that delivery rests on, or that have a
    /// key of their own, are refused.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub options: Options,
}

/// How a key chooses a partition. Messages without a key are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// By murmur2, as Java's producers do it.
    #[default]
    Murmur2,
    /// By CRC32, as librdkafka and what is built on it do by default.
    Crc32,
    /// By FNV-1a, as Sarama (Go) does by default.
    Fnv1a,
    /// Not at all: every message is spread.
    Random,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// zlib.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    #[default]
    Lz4,
    /// Zstandard; brokers of 2.1 or later.
    Zstd,
}

/// How much is sent before it must be confirmed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaBatch {
    /// Bytes of rows.
    #[serde(default = "KafkaBatch::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// How old the oldest row may become.
    #[serde(default = "KafkaBatch::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl KafkaBatch {
    fn max_bytes_default() -> u64 {
        16 << 20
    }

    fn timeout_default() -> Duration {
        Duration::from_millis(200)
    }
}

impl Default for KafkaBatch {
    fn default() -> Self {
        Self { max_bytes: Self::max_bytes_default(), timeout: Self::timeout_default() }
    }
}

/// What is made of every row besides its document.
#[derive(Debug)]
struct Texts {
    topic: Text,
    key: Option<Text>,
    headers: Vec<(String, Text)>,
}

impl Kafka {
    fn delivery_timeout_default() -> Duration {
        Duration::from_secs(120)
    }

    fn texts(&self) -> Result<Texts, ConfigError> {
        let parse = |text: &String| Text::parse(text).map_err(invalid);
        let texts = Texts {
            topic: parse(&self.topic)?,
            key: self.key.as_ref().map(parse).transpose()?,
            headers: self
                .headers
                .iter()
                .map(|(name, text)| Ok((name.clone(), parse(text)?)))
                .collect::<Result<_, ConfigError>>()?,
        };
        if let Some(constant) = texts.topic.constant() {
            let mut topic = constant.clone();
            make_topic(&mut topic);
            if topic != constant {
                return Err(invalid(format!("`{}` is no name of a topic", self.topic))
                    .with_help("names are up to 249 of a-z, A-Z, 0-9 and any of . _ -"));
            }
        }
        Ok(texts)
    }

    fn client(&self, cx: &ConnectorContext) -> Result<ClientConfig, ConfigError> {
        let cluster = Cluster {
            endpoint: &self.endpoint,
            tls: self.tls.as_ref(),
            sasl: self.sasl.as_ref(),
            options: &self.options,
        };
        let partitioner = match self.partitioner {
            Partitioner::Murmur2 => "murmur2_random",
            Partitioner::Crc32 => "consistent_random",
            Partitioner::Fnv1a => "fnv1a_random",
            Partitioner::Random => "random",
        };
        let compression = match self.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        };
        let timeout = self.delivery_timeout.as_millis().to_string();
        let defaults = [("queue.buffering.max.kbytes", "65536"), ("queue.buffering.max.messages", "1000000")];
        let fixed = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", partitioner),
            ("compression.type", compression),
            ("message.timeout.ms", timeout.as_str()),
        ];
        cluster.client(cx, &defaults, &fixed)
    }
}

impl Component for Kafka {
    const NAME: &'static str = "kafka";
    const EXAMPLE: &'static str = r#"
type: kafka
from: [events]
endpoint: ["localhost:9092"]
topic: "events-{tenant}"
key: "{customer}"
"#;
}

impl SinkConfig for Kafka {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn reads(&self) -> Reads {
        let Ok(texts) = self.texts() else { return Reads::Document(Vec::new()) };
        let of_headers = texts.headers.iter().map(|(_, text)| text);
        let all = [&texts.topic].into_iter().chain(&texts.key).chain(of_headers);
        Reads::Document(all.flat_map(Text::columns).collect())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        if self.batch.max_bytes == 0 {
            return Err(invalid("`batch.max_bytes` must not be zero"));
        }
        if !(1..=24 * 3600).contains(&self.delivery_timeout.as_secs()) {
            return Err(invalid("`delivery_timeout` must be from one second to one day"));
        }
        let labels = &[&*cx.name];
        Ok(Box::new(KafkaSink {
            client: self.client(cx)?,
            texts: self.texts()?,
            endpoint: self.endpoint.join(","),
            name: Arc::clone(&cx.name),
            policy: FlushPolicy {
                bytes_max: usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX),
                age_max: self.batch.timeout,
            },
            link: None,
            was_let_in: false,
            batches: Vec::new(),
            n_rows: 0,
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
        }))
    }
}

/// A producer, and what became of what it was given.
struct Link {
    producer: ThreadedProducer<Reports>,
    deliveries: Arc<Deliveries>,
}

struct KafkaSink {
    client: ClientConfig,
    texts: Texts,
    endpoint: String,
    name: Arc<str>,
    policy: FlushPolicy,
    link: Option<Link>,
    /// Whether the brokers let us in before: what they refuse now may pass.
    was_let_in: bool,
    /// Since the last flush, for rejects; bounded by its policy.
    batches: Vec<Batch>,
    n_rows: u64,
    rows: IntCounter,
    bytes: IntCounter,
}

/// Makes a producer that reaches a broker.
fn open(
    client: &ClientConfig,
    name: &Arc<str>,
    endpoint: &str,
    topic: Option<&str>,
) -> Result<Link, ConnectorError> {
    let deliveries = Arc::new(Deliveries::default());
    let reports = Reports { name: Arc::clone(name), deliveries: Arc::clone(&deliveries) };
    let producer: ThreadedProducer<Reports> = client
        .create_with_context(reports)
        .map_err(|error| ConnectorError::refused(endpoint, error.to_string()))?;
    match producer.client().fetch_metadata(topic, CONNECT_MAX) {
        Ok(_) => Ok(Link { producer, deliveries }),
        Err(error) => Err(match deliveries.refusal() {
            Some(reason) => ConnectorError::refused(endpoint, reason),
            None if is_refusal(&error) => ConnectorError::refused(endpoint, error.to_string()),
            None => ConnectorError::disconnected(endpoint, error),
        }),
    }
}

impl KafkaSink {
    /// The far end cannot take anything now.
    fn lost(&self, error: impl Into<crate::error::BoxError>) -> ConnectorError {
        ConnectorError::disconnected(&self.endpoint, error)
    }

    /// Hands rows of a batch to the library, waiting while its queue is full; `only` one of them, or all.
    async fn send(
        &self,
        number: usize,
        only: Option<usize>,
    ) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let Some(link) = &self.link else { return Err(self.lost("not connected")) };
        let Some(batch) = self.batches.get(number) else { return Ok(Vec::new()) };
        let documents = Documents::new(batch);
        let topics = self.texts.topic.bind(batch);
        let keys = self.texts.key.as_ref().map(|key| key.bind(batch));
        let headers: Vec<_> =
            self.texts.headers.iter().map(|(name, text)| (name, text.bind(batch))).collect();
        let (mut topic, mut key, mut value, mut document) =
            (String::new(), String::new(), String::new(), Vec::new());
        let mut refused = Vec::new();
        let rows = only.map_or(0..batch.num_rows(), |row| row..row + 1);
        for row in rows {
            topics.write(row, &mut topic);
            make_topic(&mut topic);
            document.clear();
            documents.write(row, &mut document);
            let mut record =
                BaseRecord::with_opaque_to(&topic, opaque((number, row))).payload(document.as_slice());
            if keys.as_ref().is_some_and(|keys| keys.write(row, &mut key)) {
                record = record.key(key.as_bytes());
            }
            if !headers.is_empty() {
                let mut given = OwnedHeaders::new_with_capacity(headers.len());
                for (name, text) in &headers {
                    if text.write(row, &mut value) {
                        given = given.insert(Header { key: name, value: Some(value.as_bytes()) });
                    }
                }
                record = record.headers(given);
            }
            loop {
                link.deliveries.sent();
                let Err((error, back)) = link.producer.send(record) else { break };
                link.deliveries.not_sent();
                match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::QueueFull) => {
                        // All of it will be sent again.
                        if let Some(error) = link.deliveries.failure() {
                            return Err(self.lost(error));
                        }
                        record = back;
                        // Which of the two is of no interest.
                        drop(tokio::time::timeout(FULL_WAIT, link.deliveries.changed()).await);
                    }
                    Some(code) if is_about_the_message(code) => {
                        refused.push(((number, row), code));
                        break;
                    }
                    _ => return Err(self.lost(error)),
                }
            }
            self.bytes.inc_by(document.len() as u64);
        }
        Ok(refused)
    }

    /// Waits until everything is confirmed. Returns what is refused for good.
    async fn settle(&self) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let Some(link) = &self.link else { return Err(self.lost("not connected")) };
        let Outcome { refused, failed } = link.deliveries.settled().await;
        match failed {
            Some(error) => Err(self.lost(error)),
            None => Ok(refused),
        }
    }

    /// A broker refuses a whole batch of messages for its size, or for one of them: so each is sent alone.
    async fn one_by_one(
        &self,
        refused: Vec<(Row, RDKafkaErrorCode)>,
    ) -> Result<Vec<(Row, RDKafkaErrorCode)>, ConnectorError> {
        let mut still = Vec::new();
        for ((batch, row), code) in refused {
            if is_about_the_topic(code) {
                if self.texts.topic.constant().is_some() {
                    return Err(self.lost(KafkaError::MessageProduction(code)));
                }
                still.push(((batch, row), code));
                continue;
            }
            still.extend(self.send(batch, Some(row)).await?);
            still.extend(self.settle().await?);
        }
        Ok(still)
    }

    fn rejects(&self, mut refused: Vec<(Row, RDKafkaErrorCode)>) -> Refused {
        refused.sort_unstable_by_key(|(row, _)| *row);
        let mut groups: Vec<(usize, Vec<Reject>)> = Vec::new();
        for ((batch, idx), code) in refused {
            let reject = Reject { idx, reason: reason(code) };
            match groups.last_mut() {
                Some((last, group)) if *last == batch => group.push(reject),
                _ => groups.push((batch, vec![reject])),
            }
        }
        groups.into_iter().map(|(batch, group)| (self.batches[batch].clone(), group)).collect()
    }
}

/// Why a row is refused.
fn reason(code: RDKafkaErrorCode) -> String {
    let name = if is_about_the_topic(code) { "kafka_topic" } else { "kafka_message" };
    format!("{name}: {code}")
}

#[async_trait]
impl Sink for KafkaSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.batches.clear();
        self.n_rows = 0;
        let before = self.link.take();
        let (client, name, endpoint) = (self.client.clone(), Arc::clone(&self.name), self.endpoint.clone());
        let topic = self.texts.topic.constant();
        let opening = tokio::task::spawn_blocking(move || {
            // What it still holds is purged: all of it comes again.
            drop(before);
            open(&client, &name, &endpoint, topic.as_deref())
        });
        match opening.await.map_err(|error| self.lost(error))? {
            Ok(link) => self.link = Some(link),
            Err(ConnectorError::Refused { reason, .. }) if self.was_let_in => return Err(self.lost(reason)),
            Err(error) => return Err(error),
        }
        self.was_let_in = true;
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        self.batches.push(batch.clone());
        self.n_rows += batch.num_rows() as u64;
        let refused = self.send(self.batches.len() - 1, None).await?;
        if let Some(link) = &self.link {
            link.deliveries.refuse(refused);
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let refused = self.settle().await?;
        let refused = self.one_by_one(refused).await?;
        self.rows.inc_by(self.n_rows - refused.len() as u64);
        let rejects = merge(&self.name, &self.rejects(refused));
        self.batches.clear();
        self.n_rows = 0;
        Ok(rejects)
    }

    fn flush_policy(&self) -> FlushPolicy {
        self.policy
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        if let Some(link) = self.link.take() {
            // Dropping it waits for the library's threads.
            drop(tokio::task::spawn_blocking(move || drop(link)).await);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::context;
    use super::*;
    use logdrive_schemas::component::{Limits, Node, parse};

    fn build(yaml: &str) -> Result<Reads, String> {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).map_err(|e| format!("{e:?}"))?;
        let mut errors = Vec::new();
        let config: Kafka = parse(&node, &mut errors).ok_or_else(|| format!("{errors:?}"))?;
        let reads = config.reads();
        config.build(&context("unused".as_ref())).map(|_| reads).map_err(|error| error.message)
    }

    #[test]
    fn it_reads_what_its_texts_name_and_refuses_what_cannot_work() {
        let base = "endpoint: [\"localhost:9092\"]\n";
        let with = |rest: &str| build(&format!("{base}{rest}"));
        let all =
            "topic: \"t-{tenant}-%Y\"\nkey: \"{user}\"\nheaders: { a: \"{b}\", c: d }\ncompression: zstd";
        let columns = ["tenant", "@timestamp", "user", "b"].map(String::from);
        assert_eq!(with(all), Ok(Reads::Document(columns.into())));
        for (rest, named) in [
            ("topic: \"no topic\"", "no topic"),
            ("topic: \"{x\"", "{x"),
            ("topic: t\nkey: \"{}\"", "{}"),
            ("topic: t\noptions: { acks: 1 }", "acks"),
            ("topic: t\ndelivery_timeout: 0s", "delivery_timeout"),
            ("topic: t\nbatch: { max_bytes: 0 }", "max_bytes"),
        ] {
            let error = with(rest).unwrap_err();
            assert!(error.contains(named), "{rest}: {error}");
        }
    }
}
