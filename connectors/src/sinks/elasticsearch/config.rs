//! The YAML of the sink.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logdrive_schemas::component::{ConfigError, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;

use super::bulk::Action;
use super::index::IndexPattern;
use super::lifecycle::Policy;
use super::signing::Aws;
use super::template::Template;
use crate::sinks::http_auth::{Auth, Tls, invalid, yes};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Indexes documents in Elasticsearch (8 or later) or OpenSearch (2 or later).
///
/// Delivers exactly once with `id: auto` and `op: create`, except into data streams: the server knows an id only
/// within one index, so a retry across a rollover can store a document twice. One more limit: two streams of one
/// source in one sink give the same id to what they make of one message, so give each a sink of its own.
///
/// Which server it is, and of what version, is asked and logged; none is refused for its licence or flavour. What a
/// server has not got (lifecycle policies in some) is done without, with a warning.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Elasticsearch {
    /// Addresses of nodes of one cluster, such as `https://localhost:9200`. They take turns. One that cannot be
    /// reached, or fails three times in a row while others work, rests for five seconds, then for ten, and so on up
    /// to a minute, and gets work again when it gives a sign of life. Proxies of the environment are not used.
    #[serde(default)]
    pub endpoint: Vec<String>,
    /// The id of a deployment of Elastic Cloud, instead of `endpoint`.
    #[serde(default)]
    pub cloud_id: Option<String>,
    /// The index, or alias, or data stream. `%Y %m %d %H %j %G %V` are of the event time (`@timestamp`, else the time
    /// of receipt) in UTC; `{column}` is a column's value, in lower case with `_` for what a name cannot hold. Whoever
    /// sends events chooses such a value, so a column with many values makes many indices.
    pub index: String,
    /// Whether `index` names a data stream, which the template then makes: documents go to its newest index, need an
    /// `@timestamp` (without one they are rejects), and are never replaced. The name takes columns but no date.
    #[serde(default)]
    pub data_stream: bool,
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
    /// Who the sink says it is. An `api_key` may be written in the encoded form or as `id:key`.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Signs requests for Amazon's OpenSearch Service, instead of `auth`.
    #[serde(default)]
    pub aws: Option<Aws>,
    /// How the certificates of `https` addresses are checked.
    #[serde(default)]
    pub tls: Tls,
    /// The index template, which gives fields their types.
    #[serde(default)]
    pub template: TemplateConfig,
    /// When indices roll over, are compressed, and are deleted. Without it, none of this is set up.
    #[serde(default)]
    pub lifecycle: Option<LifecycleConfig>,
    /// How much goes into one request.
    #[serde(default)]
    pub batch: BatchConfig,
    /// How many requests may be under way at most. Halved when the server has too much to do, lowered by a quarter
    /// when it becomes slow (more than a second, and three times as long per byte as at its best), and raised by one
    /// after as many good answers as may be under way.
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

/// When indices roll over, are compressed, and are deleted: a policy of ILM (Elasticsearch) or ISM (OpenSearch).
///
/// On OpenSearch, whose policies cannot change how an index is compressed, indices are made with `best_compression`
/// from the start, and merged when it is time to compress. A policy of that name which Logdrive did not make stays as
/// it is, and is used.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LifecycleConfig {
    /// The policy's name; by default `logdrive-` and the fixed beginning of `index`.
    #[serde(default)]
    pub name: Option<String>,
    /// Age at which an index is made read-only, merged to one segment and compressed better; at least three days.
    /// Counted from when it was made, in a data stream from when it rolled over. Late events for such an index would
    /// be refused, so an event time older than this less two days does not choose the index (see `index_age_max`).
    #[serde(default = "LifecycleConfig::compress_after_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub compress_after: Duration,
    /// Age at which an index is deleted.
    #[serde(default = "LifecycleConfig::delete_after_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub delete_after: Duration,
    /// Age at which a data stream gets a new index. Indices that are no data stream have their date in their name.
    #[serde(default = "LifecycleConfig::rollover_age_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub rollover_age: Duration,
    /// Size of a shard at which a data stream gets a new index.
    #[serde(default = "LifecycleConfig::rollover_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub rollover_bytes: u64,
    /// Whether to replace a policy of that name that Logdrive did not make.
    #[serde(default)]
    pub overwrite: bool,
}

impl LifecycleConfig {
    fn compress_after_default() -> Duration {
        DAY * 7
    }

    fn delete_after_default() -> Duration {
        DAY * 90
    }

    fn rollover_age_default() -> Duration {
        DAY
    }

    fn rollover_bytes_default() -> u64 {
        50 << 30
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

    /// The addresses, also those that a cloud id stands for.
    pub(super) fn urls(&self) -> Result<Vec<String>, ConfigError> {
        match &self.cloud_id {
            None => Ok(self.endpoint.clone()),
            Some(_) if !self.endpoint.is_empty() => {
                Err(invalid("`endpoint` and `cloud_id` exclude each other"))
            }
            Some(id) => cloud_url(id).map(|url| vec![url]),
        }
    }

    pub(super) fn pattern(&self) -> Result<IndexPattern, ConfigError> {
        let writable = self.lifecycle.as_ref().map(|l| l.compress_after.saturating_sub(DAY * 2));
        let age_max = writable.map_or(self.index_age_max, |max| max.min(self.index_age_max));
        IndexPattern::parse(&self.index, age_max).map_err(invalid)
    }

    /// What cannot go together.
    pub(super) fn check(&self, index: &IndexPattern) -> Result<(), ConfigError> {
        if self.data_stream {
            if self.op == Op::Index {
                return Err(invalid("a data stream takes only `op: create`"));
            }
            if index.is_timed() {
                return Err(invalid("the name of a data stream takes no date")
                    .with_help("a data stream gets new indices by itself, see `lifecycle`"));
            }
        }
        if self.auth.is_some() && self.aws.is_some() {
            return Err(invalid("`auth` and `aws` exclude each other"));
        }
        if !(1..=256).contains(&self.concurrency) {
            return Err(invalid("`concurrency` must be from 1 to 256"));
        }
        if self.batch.max_bytes == 0 || self.request_timeout.is_zero() || self.retry.first.is_zero() {
            return Err(invalid("`batch.max_bytes`, `request_timeout` and `retry.first` must not be zero"));
        }
        Ok(())
    }

    pub(super) fn action(&self) -> Action {
        let op = match self.op {
            Op::Create => "create",
            Op::Index => "index",
        };
        Action { op, with_id: self.id == Id::Auto, routing: self.routing.clone() }
    }

    pub(super) fn index_template(&self, index: &IndexPattern) -> Result<Option<Template>, ConfigError> {
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
        let name = named(self.template.name.as_deref(), prefix, "template.name")?;
        Ok(Some(Template {
            name,
            pattern,
            overwrite: self.template.overwrite,
            data_stream: self.data_stream,
        }))
    }

    pub(super) fn policy(&self, index: &IndexPattern) -> Result<Option<Policy>, ConfigError> {
        let Some(config) = &self.lifecycle else { return Ok(None) };
        if index.prefix().is_empty() {
            return Err(invalid(
                "`index` begins with a placeholder, so its policy would be about every index",
            ));
        }
        if !self.template.enabled {
            return Err(invalid("`lifecycle` needs the index template, which says what the policy is for"));
        }
        if config.compress_after < DAY * 3 || config.delete_after <= config.compress_after {
            return Err(invalid("`lifecycle.compress_after` must be from three days to `delete_after`"));
        }
        if config.rollover_age < Duration::from_secs(60) || config.rollover_bytes < 1 << 20 {
            return Err(invalid("`lifecycle` rolls over at a minute and 1 MiB at the least"));
        }
        Ok(Some(Policy {
            name: named(config.name.as_deref(), index.prefix(), "lifecycle.name")?,
            pattern: index.wildcard(),
            compress_after: config.compress_after,
            delete_after: config.delete_after,
            rollover: self.data_stream.then_some((config.rollover_age, config.rollover_bytes)),
            overwrite: config.overwrite,
        }))
    }
}

/// A name given, or made from how the indices' names begin.
fn named(given: Option<&str>, prefix: &str, key: &str) -> Result<String, ConfigError> {
    let name = given.map_or_else(|| format!("logdrive-{prefix}"), str::to_owned);
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(valid) {
        return Err(invalid(format!("`{key}` must be made of a-z, 0-9 and any of - _ .")));
    }
    Ok(name)
}

/// The address that a cloud id stands for: `name:` and, in base64, host, Elasticsearch's and Kibana's part.
fn cloud_url(id: &str) -> Result<String, ConfigError> {
    let wrong = || invalid("`cloud_id` is none: it reads `name:` and then base64, as the console shows it");
    let encoded = id.rsplit(':').next().unwrap_or_default();
    let decoded =
        STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    let mut parts = decoded.split('$');
    let (host, cluster) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let valid = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c));
    if host.is_empty() || cluster.is_empty() || !valid(host) || !valid(cluster) {
        return Err(wrong());
    }
    // Either of them may bring a port.
    let (host, port) = host.split_once(':').unwrap_or((host, "443"));
    let (cluster, port) = cluster.split_once(':').unwrap_or((cluster, port));
    Ok(format!("https://{cluster}.{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_id_stands_for_an_address() {
        let id = |text: &str| cloud_url(&format!("shop:{}", STANDARD.encode(text)));
        assert_eq!(id("eu.example.io$abc$def").unwrap(), "https://abc.eu.example.io:443");
        assert_eq!(id("eu.example.io:9243$abc$").unwrap(), "https://abc.eu.example.io:9243");
        assert_eq!(id("eu.example.io:9243$abc:1$d").unwrap(), "https://abc.eu.example.io:1");
        for bad in ["eu.example.io", "$abc$def", "a/b$c$d", "a$b@c$d"] {
            assert!(id(bad).is_err(), "{bad}");
        }
        assert!(cloud_url("shop:!").is_err());
    }
}
