//! The YAML of the sink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logdrive_schemas::component::{ConfigError, bytes, duration};
use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Texts;
use super::encode::Encoding;
use super::registry::SchemaRegistry;
use super::topic::make_topic;
use super::transactions::Transactions;
use crate::context::ConnectorContext;
use crate::kafka::oauth::Tokens;
use crate::kafka::{Cluster, KafkaTls, Options, Sasl, invalid};
use crate::sinks::text::Text;

/// librdkafka's default for the largest message,
const MESSAGE_BYTES_MAX: usize = 1_000_000;
/// and what a message has besides its payload, key and headers, at most.
const MESSAGE_HEAD: usize = 512;
/// A broker ends a transaction that takes longer than `transaction.timeout.ms`, which is at least this,
const TRANSACTION_MIN: Duration = Duration::from_secs(60);
/// and at most this, by the brokers' default.
const TRANSACTION_MAX: Duration = Duration::from_secs(900);

/// Sends rows to Kafka, one message a row, as JSON documents or in other encodings.
///
/// Loses nothing: a message counts as delivered when all replicas in sync have it, and a retry by the client library
/// repeats nothing. After a crash, or when a broker did not answer within `delivery_timeout`, rows may be sent again,
/// unless there is a `transactional_id`.
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
    /// What messages are.
    #[serde(default)]
    pub encoding: Encoding,
    /// A registry of schemas, where each topic has the subject `TOPIC-value`: messages are in Confluent's wire format, as
    /// the `kafka` source reads it. While the registry does not answer, nothing is sent.
    #[serde(default)]
    pub schema_registry: Option<SchemaRegistry>,
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
    /// Makes what is written between two flushes a transaction, under this id: readers with `read_committed` (the
    /// default of the `kafka` source) see all of it or nothing. Each process of a cluster needs an id of its own that
    /// stays the same when it is started again; of two with one id the older one stops.
    ///
    /// Rows that come from a `kafka` source on the same cluster are then delivered exactly once: a transaction also
    /// notes, as offsets of the consumer group `<transactional_id>-<source>`, how far it comes, and what a source
    /// repeats after a crash is skipped up to there. That holds as long as a partition stays with its process: if
    /// another member takes over a crashed one's partitions, it repeats what that one had not committed to the source's
    /// group. To rule that out, give every member an identity (`options: { group.instance.id: …, session.timeout.ms:
    /// 300000 }` of the source) and start it again. Rows of other sources, and findings, are delivered at least once.
    #[serde(default)]
    pub transactional_id: Option<String>,
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

impl Kafka {
    fn delivery_timeout_default() -> Duration {
        Duration::from_secs(120)
    }

    /// What cannot work.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.batch.max_bytes == 0 {
            return Err(invalid("`batch.max_bytes` must not be zero"));
        }
        if !(1..=24 * 3600).contains(&self.delivery_timeout.as_secs()) {
            return Err(invalid("`delivery_timeout` must be from one second to one day"));
        }
        if self.transactional_id.is_some() && TRANSACTION_MAX < self.delivery_timeout {
            return Err(invalid("`delivery_timeout` of a transaction must be a quarter of an hour at most"));
        }
        if self.encoding == Encoding::Arrow && self.schema_registry.is_some() {
            return Err(invalid("Arrow messages bring their schema, and have no `schema_registry`"));
        }
        if self.transactional_id.as_ref().is_some_and(String::is_empty) {
            return Err(invalid("`transactional_id` must not be empty"));
        }
        Ok(())
    }

    pub(super) fn texts(&self) -> Result<Texts, ConfigError> {
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
        let of_rows = texts.key.iter().chain(texts.headers.iter().map(|(_, text)| text));
        if self.encoding == Encoding::Arrow && of_rows.into_iter().any(|text| text.constant().is_none()) {
            return Err(invalid("`key` and `headers` of Arrow messages must be the same for all rows"));
        }
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

    fn cluster(&self) -> Cluster<'_> {
        Cluster {
            endpoint: &self.endpoint,
            tls: self.tls.as_ref(),
            sasl: self.sasl.as_ref(),
            options: &self.options,
        }
    }

    /// Where tokens come from, if that is how the sink logs in.
    pub(super) fn tokens(&self) -> Result<Option<Arc<Tokens>>, ConfigError> {
        self.cluster().tokens()
    }

    /// How large a message may be, for the client library: what is in it besides the payload is taken off.
    pub(super) fn payload_bytes_max(&self) -> usize {
        let set = self.options.get("message.max.bytes").and_then(|bytes| bytes.expose().trim().parse().ok());
        let texts = self.key.iter().chain(self.headers.iter().flat_map(|(name, value)| [name, value]));
        let beside: usize = texts.map(|text| text.len() + 16).sum();
        set.unwrap_or(MESSAGE_BYTES_MAX).saturating_sub(MESSAGE_HEAD + beside)
    }

    /// What keeps the books of transactions, if there are any.
    pub(super) fn transactions(&self, cx: &ConnectorContext) -> Result<Option<Transactions>, ConfigError> {
        let Some(id) = &self.transactional_id else { return Ok(None) };
        // The group is named when the source is known.
        let fixed = [
            ("group.id", id.as_str()),
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
        ];
        let client = self.cluster().client(cx, &[], &fixed)?;
        Ok(Some(Transactions::new(id, client, self.tokens()?, self.delivery_timeout)))
    }

    pub(super) fn client(&self, cx: &ConnectorContext) -> Result<ClientConfig, ConfigError> {
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
        let mut fixed = fixed.to_vec();
        let transaction = self.delivery_timeout.max(TRANSACTION_MIN).as_millis().to_string();
        if let Some(id) = &self.transactional_id {
            fixed.push(("transactional.id", id));
            fixed.push(("transaction.timeout.ms", &transaction));
        }
        self.cluster().client(cx, &defaults, &fixed)
    }
}
