//! The `kafka` source: a member of a consumer group.
//!
//! The group's committed offsets are the authority on where to go on, not anything kept here. They are committed only
//! from [`Source::commit`]. A thread of its own (`member`) speaks with the client library; what it has received waits
//! in `shared`, where it can still be thrown away if its partition is taken from us.

mod attributes;
mod context;
mod member;
mod pending;
mod registry;
mod shared;
mod start;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use logdrive_schemas::{Chunk, Position, RowSchema};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use schemars::JsonSchema;
use serde::Deserialize;

use self::attributes::Columns;
use self::context::GroupContext;
use self::member::Member;
use self::registry::Registry;
pub use self::registry::SchemaRegistry;
use self::shared::Shared;
use self::start::Start;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::kafka::oauth::{Login, Tokens};
use crate::kafka::{Cluster, KafkaTls, Options, Sasl, invalid, is_refusal};
use crate::source::{Budget, Source, SourceConfig, SourceKind};

/// How long a broker may take to answer when the source connects.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How many events are looked through for the reason of a failure.
const EVENTS_MAX: usize = 100;
/// How long leaving the group may take. Without it the group would wait for `session.timeout.ms`.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// The client library's default, within which a member that is asked to must give partitions up.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// Reads topics as a member of a consumer group; start it several times with one `group` to share the work.
///
/// Offsets are committed to the group when every sink has what came before them. When the group takes partitions
/// away, they are given up once all that was received from them is delivered, so that the next member repeats
/// nothing; after a crash it repeats what was not committed, with the same identities, ten seconds later
/// (`session.timeout.ms`). Messages without a value
/// (tombstones) are empty messages: a row for the `text` decoder, a reject for `json`. A topic that is deleted and
/// made again under its name has the same offsets with other messages: give it to a source with another name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Addresses of brokers to ask first, such as `localhost:9092`.
    pub endpoint: Vec<String>,
    /// Names of topics. What begins with `^` is a regular expression; topics that fit are found as they are made.
    pub topics: Vec<String>,
    /// The name of the consumer group.
    pub group: String,
    /// Where to begin in a partition for which the group has no committed offset: `earliest`, `latest`, or the first
    /// message at or after a time such as `2026-01-31T12:00:00Z`. That place is committed at once, so that it stays
    /// the same whichever member comes next.
    #[serde(default)]
    #[schemars(with = "String")]
    pub start: Start,
    /// Whether messages of transactions that are not committed, or were aborted, are read.
    #[serde(default)]
    pub isolation_level: Isolation,
    /// TLS to the brokers.
    #[serde(default)]
    pub tls: Option<KafkaTls>,
    /// Who the source says it is.
    #[serde(default)]
    pub sasl: Option<Sasl>,
    /// How long partitions that the group takes away are held until what was received from them is delivered; nothing
    /// is fetched meanwhile. What is not delivered by then will be repeated by the next member. Less than five
    /// minutes.
    #[serde(default = "Kafka::drain_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
    /// The memory of messages that are received ahead, by the client library.
    #[serde(default = "Kafka::prefetch_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub prefetch_bytes: u64,
    /// The name of an object field with what is known of a message beside its bytes: `topic`, `partition`, `offset`,
    /// `key` (as text), `timestamp` (of the producer, or of the broker), and `headers` if some are named there. Not
    /// kept by default.
    #[serde(default)]
    pub metadata: Option<String>,
    /// The headers to keep as text under `headers` of `metadata`, by their names.
    #[serde(default)]
    pub headers: Vec<String>,
    /// A registry of schemas: messages in Confluent's wire format (Avro, Protobuf or JSON behind the number of their
    /// schema) become JSON, for `decoder: json`. Times are RFC 3339 text, Avro's decimals text, bytes base64, enums
    /// their names. What is in another format, or of a schema that the registry does not have, stays as it is, and so
    /// becomes a reject; so do Avro types that contain themselves. While the registry does not answer, nothing is read.
    #[serde(default)]
    pub schema_registry: Option<SchemaRegistry>,
    /// Properties of librdkafka, such as `session.timeout.ms: 10000`. Those that delivery rests on, or that have a
    /// key of their own, are refused.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub options: Options,
}

/// Which messages of transactions are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Those of committed transactions.
    #[default]
    ReadCommitted,
    /// All.
    ReadUncommitted,
}

impl Isolation {
    fn property(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

impl Kafka {
    fn drain_timeout_default() -> Duration {
        Duration::from_secs(60)
    }

    fn prefetch_bytes_default() -> u64 {
        32 << 20
    }

    /// The columns of `metadata`.
    fn columns(&self) -> Option<Arc<Columns>> {
        self.metadata.as_ref().map(|_| Columns::new(&self.headers))
    }

    fn cluster(&self) -> Cluster<'_> {
        Cluster {
            endpoint: &self.endpoint,
            tls: self.tls.as_ref(),
            sasl: self.sasl.as_ref(),
            options: &self.options,
        }
    }

    fn client(&self, cx: &ConnectorContext) -> Result<ClientConfig, ConfigError> {
        let prefetch = (self.prefetch_bytes >> 10).to_string();
        let defaults = [
            ("statistics.interval.ms", "5000"),
            ("fetch.wait.max.ms", "100"),
            // How long the partitions of a member that crashed have no owner, also if it is started again at once. The
            // library's default is 45 s; its heartbeats do not depend on how busy we are.
            ("session.timeout.ms", "10000"),
        ];
        let fixed = [
            ("group.id", self.group.as_str()),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", self.isolation_level.property()),
            // For an offset that is gone, because the topic keeps less than we are behind. A partition without a
            // committed offset never comes to that.
            ("auto.offset.reset", "earliest"),
            ("queued.max.messages.kbytes", prefetch.as_str()),
        ];
        self.cluster().client(cx, &defaults, &fixed)
    }
}

impl Component for Kafka {
    const NAME: &'static str = "kafka";
    const EXAMPLE: &'static str = r#"
type: kafka
endpoint: ["localhost:9092"]
topics: [orders, "^audit-.*"]
group: logdrive
decoder: json
schema: ecommerce
"#;
}

impl SourceConfig for Kafka {
    fn attributes(&self) -> Option<(String, RowSchema)> {
        self.metadata.clone().map(|name| (name, attributes::schema(&self.headers)))
    }

    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        if self.topics.is_empty() || self.topics.iter().any(String::is_empty) {
            return Err(invalid("`topics` must name at least one topic, and none may be empty"));
        }
        if self.group.is_empty() {
            return Err(invalid("`group` must not be empty"));
        }
        if MAX_POLL_INTERVAL <= self.drain_timeout {
            return Err(invalid("`drain_timeout` must be less than five minutes"));
        }
        if !(1 << 20..=2 << 30).contains(&self.prefetch_bytes) {
            return Err(invalid("`prefetch_bytes` must be from `1MiB` to `2GiB`"));
        }
        if self.metadata.is_none() && !self.headers.is_empty() {
            return Err(invalid("`headers` are kept under `metadata`").with_help("add `metadata: kafka`"));
        }
        let client = self.client(cx)?;
        let tokens = self.cluster().tokens()?;
        let registry = self.schema_registry.as_ref().map(|registry| registry.build(cx)).transpose()?;
        Ok(SourceKind::Log(Box::new(KafkaSource {
            config: self,
            client,
            tokens,
            cx: cx.clone(),
            registry,
            untranslated: None,
            run: None,
            was_let_in: false,
        })))
    }
}

struct KafkaSource {
    config: Kafka,
    client: ClientConfig,
    tokens: Option<Arc<Tokens>>,
    cx: ConnectorContext,
    registry: Option<Registry>,
    /// Received, but its schemas are not known yet.
    untranslated: Option<Chunk>,
    run: Option<Run>,
    /// Whether the brokers let us in before: what they refuse now may pass.
    was_let_in: bool,
}

/// A membership. Dropping it commits what is delivered and leaves the group.
struct Run {
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.shared.stop();
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(LEAVE_MAX) {
            tracing::warn!("Cannot leave the Kafka group in time; it will notice by itself.");
        }
    }
}

impl KafkaSource {
    fn endpoint(&self) -> String {
        self.config.endpoint.join(",")
    }
}

impl KafkaSource {
    /// The next chunk, read by its schemas if it has some. Cancel-safe: what is received is kept until it is handed
    /// out.
    async fn next(&mut self, shared: &Shared, budget: Budget) -> Result<Chunk, ConnectorError> {
        let chunk = match self.untranslated.take() {
            Some(chunk) => chunk,
            None => {
                let received = shared.recv(budget).await;
                received.map_err(|reason| ConnectorError::disconnected(self.endpoint(), reason))?
            }
        };
        let Some(registry) = &mut self.registry else { return Ok(chunk) };
        let chunk = self.untranslated.insert(chunk);
        if let Err(error) = registry.learn(chunk).await {
            let endpoint =
                self.config.schema_registry.as_ref().map(|of| of.endpoint.clone()).unwrap_or_default();
            return Err(ConnectorError::disconnected(endpoint, error));
        }
        let chunk = self.untranslated.take().map(|chunk| registry.translate(chunk));
        Ok(chunk.expect("it was put there above"))
    }
}

/// Reaches a broker, joins, and starts the thread.
fn join(
    client: &ClientConfig,
    config: &Kafka,
    login: Arc<Login>,
    cx: &ConnectorContext,
) -> Result<Run, ConnectorError> {
    let endpoint = config.endpoint.join(",");
    let shared = Arc::new(Shared::new(cx, config.isolation_level));
    let context = GroupContext::new(cx, Arc::clone(&shared), Arc::clone(&login));
    let consumer: BaseConsumer<GroupContext> = client
        .create_with_context(context)
        .map_err(|error| ConnectorError::refused(&endpoint, error.to_string()))?;
    login.serve(&consumer);
    // A topic that is not there is not made by asking for it.
    let literal = config.topics.iter().find(|topic| !topic.starts_with('^'));
    if let Err(error) = consumer.fetch_metadata(literal.map(String::as_str), CONNECT_MAX) {
        // Why it failed was told meanwhile, as one of several events.
        for _ in 0..EVENTS_MAX {
            if consumer.context().refusal().is_some() {
                break;
            }
            let _served = consumer.poll(Duration::from_millis(1));
        }
        let refusal = consumer.context().refusal();
        consumer.context().close();
        return Err(match (login.failure(), refusal) {
            (Some(reason), _) => ConnectorError::disconnected(endpoint, reason),
            (None, Some(reason)) => ConnectorError::refused(endpoint, reason),
            (None, None) if is_refusal(&error) => ConnectorError::refused(endpoint, error.to_string()),
            (None, None) => ConnectorError::disconnected(endpoint, error),
        });
    }
    let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).map_err(|error| ConnectorError::refused(&endpoint, error.to_string()))?;
    let (told, ended) = channel();
    let member = Member::new(consumer, Arc::clone(&shared), config, cx);
    std::thread::Builder::new()
        .name(format!("kafka:{}", cx.name))
        .spawn(move || {
            member.run();
            // The source may have stopped waiting.
            told.send(()).ok();
        })
        .map_err(|error| ConnectorError::disconnected(endpoint, error))?;
    Ok(Run { shared, ended })
}

#[async_trait]
impl Source for KafkaSource {
    async fn connect(&mut self, _delivered: &[Position]) -> Result<(), ConnectorError> {
        let before = self.run.take();
        self.untranslated = None;
        let (client, config, cx) = (self.client.clone(), self.config.clone(), self.cx.clone());
        let login = Login::new(self.tokens.as_ref());
        let joined = tokio::task::spawn_blocking(move || {
            drop(before);
            join(&client, &config, login, &cx)
        });
        let run = joined.await.map_err(|error| ConnectorError::disconnected(self.endpoint(), error))?;
        match run {
            Ok(run) => self.run = Some(run),
            Err(ConnectorError::Refused { endpoint, reason }) if self.was_let_in => {
                return Err(ConnectorError::disconnected(endpoint, reason));
            }
            Err(error) => return Err(error),
        }
        self.was_let_in = true;
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        let Some(shared) = self.run.as_ref().map(|run| Arc::clone(&run.shared)) else {
            return Err(ConnectorError::disconnected(self.endpoint(), "not connected"));
        };
        let shutdown = self.cx.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                shared.end();
                Err(ConnectorError::End)
            }
            received = self.next(&shared, budget) => received,
        }
    }

    async fn commit(&mut self, upto: Position) -> Result<(), ConnectorError> {
        if let Some(run) = &self.run {
            run.shared.delivered(upto);
        }
        Ok(())
    }

    /// The group keeps them.
    fn wants_positions_kept(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use logdrive_schemas::component::{Limits, Node, parse};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::metrics::Metrics;

    fn build(yaml: &str) -> Result<(), String> {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).map_err(|e| format!("{e:?}"))?;
        let mut errors = Vec::new();
        let config: Kafka = parse(&node, &mut errors).ok_or_else(|| format!("{errors:?}"))?;
        let cx = ConnectorContext {
            name: "in".into(),
            state_dir: "unused".into(),
            metrics: Arc::new(Metrics::new()),
            shutdown: CancellationToken::new(),
        };
        config.build(&cx).map(drop).map_err(|error| error.message)
    }

    #[test]
    fn what_cannot_work_is_an_error_before_anything_runs() {
        let base = "endpoint: [\"localhost:9092\"]\ngroup: g\n";
        let with = |rest: &str| build(&format!("{base}{rest}"));
        assert_eq!(
            with("topics: [a, \"^b.*\"]\nstart: 2026-01-31T12:00:00Z\noptions: { fetch.min.bytes: 7 }"),
            Ok(())
        );
        for (rest, named) in [
            ("topics: []", "topics"),
            ("topics: [a]\nstart: soon", "soon"),
            ("topics: [a]\ndrain_timeout: 5m", "drain_timeout"),
            ("topics: [a]\nprefetch_bytes: 1KB", "prefetch_bytes"),
            ("topics: [a]\noptions: { enable.auto.commit: true }", "enable.auto.commit"),
            ("topics: [a]\noptions: { no.such.property: 1 }", "no.such.property"),
            ("topics: [a]\nheaders: [trace]", "headers"),
            ("topics: [a]\nisolation_level: none", "`none`"),
        ] {
            let error = with(rest).unwrap_err();
            assert!(error.contains(named), "{rest}: {error}");
        }
    }
}
