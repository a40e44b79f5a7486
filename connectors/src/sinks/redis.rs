//! Documents to Redis: entries of streams, elements of lists, messages of channels.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;
use redis::aio::MultiplexedConnection;
use redis::{Client, Pipeline, RedisError, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Secret;
use super::http_rejects::{excerpt, merge};
use super::text::Text;
use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::redis::{Tls, client, connect, failed, invalid};
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How much is sent before its answers are waited for.
const AT_ONCE: usize = 1000;
const AT_ONCE_BYTES: usize = 1 << 20;
/// How much may be written between two flushes.
const FLUSH_BYTES: usize = 16 << 20;
/// The most that Redis takes as one value, in bytes.
const VALUE_BYTES_MAX: usize = 512 << 20;

/// What the keys are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// Streams (XADD).
    #[default]
    Stream,
    /// Lists (RPUSH or LPUSH).
    List,
    /// Channels (PUBLISH). Whoever does not listen misses it.
    Channel,
}

/// At which end of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// At the left end.
    Lpush,
    /// At the right end.
    #[default]
    Rpush,
}

/// Writes documents to Redis (or Valkey): to streams, lists or channels.
///
/// A flush waits until the server has answered for every row; whether that survives a crash of the server is up to its
/// `appendfsync`. A broken connection or a crash here can repeat rows. A row whose key holds something else (WRONGTYPE)
/// is a reject; a server that is full, loading or not a master is tried again.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// The server, such as `redis://localhost:6379/0`, or `rediss://` for TLS.
    pub endpoint: String,
    /// The stream, list or channel: text, `{column}` for a value, and strftime (UTC) of the event time. A row whose
    /// columns are all null is a reject.
    pub key: String,
    /// What the keys are: `stream`, `list` or `channel`.
    #[serde(default)]
    pub data_type: DataType,
    /// The field of a stream's entry that holds the document.
    #[serde(default = "Redis::field_default")]
    pub field: String,
    /// About how many entries a stream, or elements a list, may have; the oldest are dropped, whether somebody has read
    /// them or not. Without the key nothing is dropped.
    #[serde(default)]
    pub max_length: Option<u64>,
    /// At which end of a list: `rpush` or `lpush`.
    #[serde(default)]
    pub method: Method,
    /// The user's name.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How the server of a `rediss` address is checked.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// How long an answer may take.
    #[serde(default = "Redis::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// How long a row waits until its source may be told.
    #[serde(default = "Redis::flush_interval_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub flush_interval: Duration,
}

impl Redis {
    fn field_default() -> String {
        "message".into()
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(10)
    }

    fn flush_interval_default() -> Duration {
        Duration::from_millis(500)
    }
}

impl Component for Redis {
    const NAME: &'static str = "redis";
    const EXAMPLE: &'static str = r#"
type: redis
from: [events]
endpoint: "redis://localhost:6379"
key: "events:{tenant}"
max_length: 1000000
"#;
}

impl SinkConfig for Redis {
    fn guarantee(&self) -> Guarantee {
        if self.data_type == DataType::Channel { Guarantee::BestEffort } else { Guarantee::AtLeastOnce }
    }

    fn reads(&self) -> Reads {
        Reads::Document(Text::parse(&self.key).map(|key| key.columns().collect()).unwrap_or_default())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let client =
            client(&self.endpoint, self.username.as_deref(), self.password.as_ref(), self.tls.as_ref())?;
        let key = Text::parse(&self.key).map_err(|e| invalid(format!("`key`: {e}")))?;
        if self.key.is_empty() || self.field.is_empty() {
            return Err(invalid("`key` and `field` must not be empty"));
        }
        if self.max_length == Some(0) || self.timeout.is_zero() {
            return Err(invalid("`max_length` and `timeout` must not be zero"));
        }
        if self.max_length.is_some() && self.data_type == DataType::Channel {
            return Err(invalid("a channel keeps nothing and has no `max_length`"));
        }
        let labels = &[&*cx.name];
        Ok(Box::new(RedisSink {
            client,
            key,
            connection: None,
            n_rows: 0,
            name: Arc::clone(&cx.name),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config: self,
        }))
    }
}

struct RedisSink {
    config: Redis,
    client: Client,
    key: Text,
    connection: Option<MultiplexedConnection>,
    /// Taken by the server since the last flush.
    n_rows: u64,
    name: Arc<str>,
    rows: IntCounter,
    bytes: IntCounter,
    metrics: Arc<Metrics>,
}

/// Commands that are sent together.
#[derive(Default)]
struct Group {
    pipeline: Pipeline,
    /// The row that each command is for; `None` if it only shortens a list.
    rows: Vec<Option<usize>>,
    n_bytes: usize,
}

impl RedisSink {
    fn failed(&self, error: RedisError) -> ConnectorError {
        let failed = failed(&self.config.endpoint, error);
        let kind = if matches!(failed, ConnectorError::Busy { .. }) { "busy" } else { "disconnected" };
        self.metrics.sink_errors.with_label_values(&[&*self.name, kind]).inc();
        failed
    }

    fn add(&self, group: &mut Group, key: &str, document: &[u8], row: usize) {
        let config = &self.config;
        match config.data_type {
            DataType::Stream => {
                let command = group.pipeline.cmd("XADD").arg(key);
                if let Some(max) = config.max_length {
                    command.arg("MAXLEN").arg("~").arg(max);
                }
                command.arg("*").arg(&config.field).arg(document);
            }
            DataType::List => {
                let command = if config.method == Method::Lpush { "LPUSH" } else { "RPUSH" };
                group.pipeline.cmd(command).arg(key).arg(document);
            }
            DataType::Channel => {
                group.pipeline.cmd("PUBLISH").arg(key).arg(document);
            }
        }
        group.rows.push(Some(row));
        group.n_bytes += document.len() + key.len();
    }

    /// Shortens the lists that were written to.
    fn trim(&self, group: &mut Group, keys: &mut Vec<String>) {
        let Some(max) = self.config.max_length.filter(|_| self.config.data_type == DataType::List) else {
            return;
        };
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        keys.sort_unstable();
        keys.dedup();
        for key in keys.drain(..) {
            let (first, last) = if self.config.method == Method::Lpush { (0, max - 1) } else { (-max, -1) };
            group.pipeline.cmd("LTRIM").arg(key).arg(first).arg(last);
            group.rows.push(None);
        }
    }

    /// Sends a group and reads all its answers.
    async fn send(&mut self, group: Group, rejects: &mut Vec<Reject>) -> Result<(), ConnectorError> {
        if group.rows.is_empty() {
            return Ok(());
        }
        let Some(mut connection) = self.connection.take() else {
            return Err(ConnectorError::disconnected(&self.config.endpoint, "not connected"));
        };
        let answers = connection.send_packed_commands(&group.pipeline, 0, group.rows.len()).await;
        let answers = answers.map_err(|error| self.failed(error))?;
        self.bytes.inc_by(group.n_bytes as u64);
        for (row, answer) in group.rows.into_iter().zip(answers) {
            match (row, answer) {
                (Some(idx), Value::ServerError(error)) if error.code() == "WRONGTYPE" => {
                    let said = excerpt(error.details().unwrap_or("the key holds something else"));
                    rejects.push(Reject { idx, reason: format!("redis_wrongtype: {said}") });
                }
                (Some(_), Value::ServerError(error)) => return Err(self.failed(error.into())),
                (Some(_), _) => self.n_rows += 1,
                (None, _) => {}
            }
        }
        // A connection that failed is not put back.
        self.connection = Some(connection);
        Ok(())
    }
}

#[async_trait]
impl Sink for RedisSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        (self.connection, self.n_rows) = (None, 0);
        let connection = connect(&self.client, self.config.timeout).await;
        self.connection = Some(connection.map_err(|error| self.failed(error))?);
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let mut rejects = Vec::new();
        let (mut key, mut document, mut keys) = (String::new(), Vec::new(), Vec::new());
        let mut row = 0;
        while row < batch.num_rows() {
            let mut group = Group::default();
            {
                let (documents, bound) = (Documents::new(batch), self.key.bind(batch));
                while row < batch.num_rows() && group.rows.len() < AT_ONCE && group.n_bytes < AT_ONCE_BYTES {
                    document.clear();
                    documents.write(row, &mut document);
                    if !bound.write(row, &mut key) {
                        let reason = "redis_key: every column that `key` names is null".to_owned();
                        rejects.push(Reject { idx: row, reason });
                    } else if document.len() > VALUE_BYTES_MAX {
                        let reason = "redis_too_large: no value may be larger than 512 MiB".to_owned();
                        rejects.push(Reject { idx: row, reason });
                    } else {
                        self.add(&mut group, &key, &document, row);
                        keys.push(key.clone());
                    }
                    row += 1;
                }
            }
            self.trim(&mut group, &mut keys);
            keys.clear();
            self.send(group, &mut rejects).await?;
        }
        rejects.sort_by_key(|reject| reject.idx);
        Ok(merge(&self.name, &[(batch.clone(), rejects)]))
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        // Every answer was read when it was written.
        self.rows.inc_by(std::mem::take(&mut self.n_rows));
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: FLUSH_BYTES, age_max: self.config.flush_interval }
    }
}
