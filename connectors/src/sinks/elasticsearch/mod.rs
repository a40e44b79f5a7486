//! Documents into Elasticsearch or OpenSearch, by `_bulk`.
//!
//! Every row's id is derived from its message, and the operation is `create`: whatever is sent twice, because an
//! answer was lost or after a crash, is stored once. So the sink may always send again when in doubt, and does.

mod answer;
mod bulk;
mod deliver;
mod endpoints;
mod gate;
mod index;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use logdrive_schemas::{Batch, Epoch};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::{JoinError, JoinSet};

use self::bulk::{Action, Bulk};
use self::deliver::{Counters, Delivery, Pause, deliver};
use self::endpoints::Endpoints;
use self::gate::Gate;
use self::index::IndexPattern;
use self::template::Template;
use super::http_auth::{Auth, Tls, invalid, yes};
use super::http_rejects::{Refused, merge};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// Indexes documents in Elasticsearch (8 or later) or OpenSearch (2 or later).
///
/// Delivers exactly once with `id: auto` and `op: create`. Two limits: the server knows an id only within one index,
/// so a retry across a rollover of a data stream can store a document twice; and two streams of one source in one
/// sink give the same id to what they make of one message, so give each a sink of its own.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Elasticsearch {
    /// Addresses of nodes of one cluster, such as `https://localhost:9200`. They take turns; one that fails rests
    /// five seconds. Proxies of the environment are not used.
    pub endpoint: Vec<String>,
    /// The index, or alias, or data stream. `%Y %m %d %H %j %G %V` are of the event time (`@timestamp`, else the time
    /// of receipt) in UTC; `{column}` is a column's value, in lower case with `_` for what a name cannot hold. Whoever
    /// sends events chooses such a value, so a column with many values makes many indices.
    pub index: String,
    /// An event time older than this, or more than a day in the future, does not choose the index; the time of
    /// receipt does. Otherwise a sender could make an index for every day there is.
    #[serde(default = "Elasticsearch::index_age_max_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub index_age_max: Duration,
    /// Whether a document's id is derived from its message.
    #[serde(default)]
    pub id: Id,
    /// The bulk operation. `index` replaces a document of the same id; data streams take only `create`.
    #[serde(default)]
    pub op: Op,
    /// An ingest pipeline of the server to send documents through.
    #[serde(default)]
    pub pipeline: Option<String>,
    /// A column to route by: rows with one value go to one shard.
    #[serde(default)]
    pub routing: Option<String>,
    /// Who the sink says it is.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// How the certificates of `https` addresses are checked.
    #[serde(default)]
    pub tls: Tls,
    /// The index template, which gives fields their types.
    #[serde(default)]
    pub template: TemplateConfig,
    /// How much goes into one request.
    #[serde(default)]
    pub batch: BatchConfig,
    /// How many requests may be under way. Halved when the server has too much to do, then raised again one by one.
    #[serde(default = "Elasticsearch::concurrency_default")]
    pub concurrency: usize,
    /// Whether requests are compressed: a tenth of the bytes on the way, several times the CPU time per event.
    #[serde(default)]
    pub gzip: bool,
    /// How long one request may take before it is sent again.
    #[serde(default = "Elasticsearch::request_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
    /// Pauses before something is sent again.
    #[serde(default)]
    pub retry: RetryConfig,
}

/// Whether a document's id is derived from its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Id {
    /// The id is the message's source, partition and offset: what is sent twice is stored once.
    #[default]
    Auto,
    /// The server makes an id. Indexes faster; what is sent twice is stored twice.
    None,
}

/// The bulk operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Stores a document unless there is one of that id.
    #[default]
    Create,
    /// Stores a document, replacing one of that id.
    Index,
}

/// The index template.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    /// Its name; by default `logdrive-` and the fixed beginning of `index`.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether to replace a template of that name that Logdrive did not make.
    #[serde(default)]
    pub overwrite: bool,
    /// Whether to install one. Needs the right to manage templates.
    #[serde(default = "yes")]
    pub enabled: bool,
}

impl Default for TemplateConfig {
    fn default() -> Self {
        Self { name: None, overwrite: false, enabled: true }
    }
}

/// How much goes into one request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Bytes before compression.
    #[serde(default = "BatchConfig::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// How long a row waits for others.
    #[serde(default = "BatchConfig::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl BatchConfig {
    fn max_bytes_default() -> u64 {
        8 << 20
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(1)
    }
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_bytes: Self::max_bytes_default(), timeout: Self::timeout_default() }
    }
}

/// Pauses before something is sent again.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// The first pause; each doubles the one before.
    #[serde(default = "RetryConfig::first_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub first: Duration,
    /// The longest pause, also where the server asks for a longer one.
    #[serde(default = "RetryConfig::max_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub max: Duration,
}

impl RetryConfig {
    fn first_default() -> Duration {
        Duration::from_secs(2)
    }

    fn max_default() -> Duration {
        Duration::from_secs(64)
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { first: Self::first_default(), max: Self::max_default() }
    }
}

impl Elasticsearch {
    fn index_age_max_default() -> Duration {
        Duration::from_secs(366 * 24 * 3600)
    }

    fn concurrency_default() -> usize {
        4
    }

    fn request_timeout_default() -> Duration {
        Duration::from_secs(60)
    }

    fn pattern(&self) -> Result<IndexPattern, ConfigError> {
        IndexPattern::parse(&self.index, self.index_age_max).map_err(invalid)
    }

    fn action(&self) -> Action {
        let op = match self.op {
            Op::Create => "create",
            Op::Index => "index",
        };
        Action { op, with_id: self.id == Id::Auto, routing: self.routing.clone() }
    }

    fn index_template(&self, index: &IndexPattern) -> Result<Option<Template>, ConfigError> {
        if !self.template.enabled {
            return Ok(None);
        }
        let (pattern, prefix) = (index.wildcard(), index.prefix());
        if prefix.is_empty() {
            let advice = "set `template: { enabled: false }`, or begin the name with fixed text";
            return Err(invalid(
                "`index` begins with a placeholder, so its template would match every index",
            )
            .with_help(advice));
        }
        let name = self.template.name.clone().unwrap_or_else(|| format!("logdrive-{prefix}"));
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(valid) {
            return Err(invalid("`template.name` must be made of a-z, 0-9 and any of - _ ."));
        }
        Ok(Some(Template { name, pattern, overwrite: self.template.overwrite }))
    }
}

impl Component for Elasticsearch {
    const NAME: &'static str = "elasticsearch";
    const EXAMPLE: &'static str = r#"
type: elasticsearch
from: [events]
endpoint: ["http://localhost:9200"]
index: "ecommerce-logs-%Y.%m.%d"
"#;
}

impl SinkConfig for Elasticsearch {
    fn guarantee(&self) -> Guarantee {
        match (self.id, self.op) {
            (Id::Auto, Op::Create) => Guarantee::ExactlyOnce,
            _ => Guarantee::AtLeastOnce,
        }
    }

    fn reads(&self) -> Reads {
        let mut columns = self.pattern().map(|pattern| pattern.columns()).unwrap_or_default();
        columns.extend(self.routing.clone());
        Reads::Document(columns)
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        let index = self.pattern()?;
        let template = self.index_template(&index)?;
        if !(1..=256).contains(&self.concurrency) {
            return Err(invalid("`concurrency` must be from 1 to 256"));
        }
        if self.batch.max_bytes == 0 || self.request_timeout.is_zero() || self.retry.first.is_zero() {
            return Err(invalid("`batch.max_bytes`, `request_timeout` and `retry.first` must not be zero"));
        }
        let max_bytes = usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX);
        let delivery = Delivery {
            endpoints: Endpoints::new(&self.endpoint, self.auth.as_ref(), &self.tls)?,
            gate: Gate::new(self.concurrency),
            bytes_max: AtomicUsize::new(max_bytes),
            pipeline: self.pipeline.clone(),
            idempotent: self.guarantee() == Guarantee::ExactlyOnce,
            gzip: self.gzip,
            timeout: self.request_timeout,
            pause: Pause { first: self.retry.first, max: self.retry.max.max(self.retry.first) },
            counters: Counters::new(cx),
        };
        Ok(Box::new(ElasticsearchSink {
            name: Arc::clone(&cx.name),
            delivery: Arc::new(delivery),
            index,
            action: self.action(),
            template,
            concurrency: self.concurrency,
            policy: FlushPolicy {
                bytes_max: max_bytes.saturating_mul(self.concurrency),
                age_max: self.batch.timeout,
            },
            max_bytes,
            open: Bulk::default(),
            requests: JoinSet::new(),
            rejects: Vec::new(),
        }))
    }
}

struct ElasticsearchSink {
    name: Arc<str>,
    delivery: Arc<Delivery>,
    index: IndexPattern,
    action: Action,
    template: Option<Template>,
    concurrency: usize,
    policy: FlushPolicy,
    max_bytes: usize,
    /// The request that is being filled.
    open: Bulk,
    /// At most `concurrency`, each on its own until its last item is confirmed.
    requests: JoinSet<Result<Refused, ConnectorError>>,
    /// Since the last flush; bounded by its policy.
    rejects: Refused,
}

impl ElasticsearchSink {
    /// Sends what was filled, as soon as fewer than `concurrency` requests are under way.
    async fn start(&mut self) -> Result<(), ConnectorError> {
        if self.open.is_empty() {
            self.open = Bulk::default();
            return Ok(());
        }
        while self.concurrency <= self.requests.len() {
            let Some(ended) = self.requests.join_next().await else { break };
            self.absorb(ended)?;
        }
        self.requests.spawn(deliver(Arc::clone(&self.delivery), std::mem::take(&mut self.open)));
        Ok(())
    }

    fn absorb(
        &mut self,
        ended: Result<Result<Refused, ConnectorError>, JoinError>,
    ) -> Result<(), ConnectorError> {
        match ended {
            Ok(rejects) => self.rejects.extend(rejects?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for ElasticsearchSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.open = Bulk::default();
        self.rejects.clear();
        self.requests.shutdown().await;
        self.delivery.bytes_max.store(self.max_bytes, Ordering::Relaxed);
        self.delivery.endpoints.probe().await?;
        if let Some(template) = &self.template {
            let names = self.delivery.endpoints.names();
            let endpoint = self.delivery.endpoints.pick().await;
            let endpoint =
                endpoint.ok_or_else(|| ConnectorError::disconnected(names, "every endpoint has failed"))?;
            template.install(endpoint).await?;
        }
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        while let Some(ended) = self.requests.try_join_next() {
            self.absorb(ended)?;
        }
        let mut row = 0;
        while row < batch.num_rows() {
            let max = self.delivery.bytes_max.load(Ordering::Relaxed);
            row = self.open.fill(batch, row, max, (&self.index, &self.action));
            if row < batch.num_rows() {
                self.start().await?;
            }
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.start().await?;
        while let Some(ended) = self.requests.join_next().await {
            self.absorb(ended)?;
        }
        Ok(merge(&self.name, &std::mem::take(&mut self.rejects)))
    }

    fn flush_policy(&self) -> FlushPolicy {
        self.policy
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        self.requests.shutdown().await;
        Ok(())
    }
}
