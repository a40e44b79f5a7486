//! The `redis` source.
//!
//! Streams are a log: a consumer group reads them, what was received stays pending at the server, and is acknowledged
//! behind the frontier of every sink. Publish and subscribe is none: what nobody listens to is gone.

mod entries;
mod pubsub;
mod reader;
mod streams;

use std::time::Duration;

use logdrive_schemas::component::{Component, ConfigError, duration};
use logdrive_schemas::{FieldType, RowSchema};
use schemars::JsonSchema;
use serde::Deserialize;

use self::pubsub::Subscriber;
use self::streams::Streams;
use crate::context::ConnectorContext;
use crate::redis::{Tls, client, invalid};
use crate::sinks::Secret;
use crate::source::{SourceConfig, SourceKind};

/// What the keys are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// Streams, read in a consumer group.
    #[default]
    Stream,
    /// Channels. What is published while the source is not connected is lost.
    Channel,
    /// Patterns of channels, such as `logs.*`. What is published while the source is not connected is lost.
    PatternChannel,
}

/// Where a new group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With what is there.
    #[default]
    Earliest,
    /// With what comes.
    Latest,
}

/// Reads Redis (or Valkey) streams in a consumer group, or listens to channels.
///
/// An entry of a stream is acknowledged (XACK) when every sink has it; until then it is pending at the server. After a
/// crash the same `consumer` goes on with what it had pending, and recognises what was delivered. What another consumer
/// had pending is taken over once that one has not been heard of for `claim_idle`. What it had delivered without saying so
/// then comes again, under the same identity (an Elasticsearch knows it), unless it had been taken over before.
///
/// Channels keep nothing: what is published while the source is not connected is lost, and so is what a crash finds
/// between the socket and the buffer. Servers close connections of subscribers that are too slow.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// The server, such as `redis://localhost:6379/0`, or `rediss://` for TLS.
    pub endpoint: String,
    /// The streams, channels or patterns. A stream that is not there is made.
    pub keys: Vec<String>,
    /// What the keys are: `stream`, `channel` or `pattern_channel`.
    #[serde(default)]
    pub data_type: DataType,
    /// The consumer group; made if it is not there.
    #[serde(default = "Redis::group_default")]
    pub group: String,
    /// The name in the group; no two processes may have the same. By default one that is made up once and kept in
    /// `<data_dir>/sources/NAME`.
    #[serde(default)]
    pub consumer: Option<String>,
    /// Where a new group begins: `earliest` or `latest`.
    #[serde(default)]
    pub start: Start,
    /// The field of an entry that is the message. By default, and for entries without it, the message is a JSON object
    /// of all fields.
    #[serde(default)]
    pub field: Option<String>,
    /// What is pending with a consumer that was not heard of for so long is taken over.
    #[serde(default = "Redis::claim_idle_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub claim_idle: Duration,
    /// How long an answer may take before the connection counts as lost; at least two seconds, as a read waits for new
    /// entries for one.
    #[serde(default = "Redis::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// The user's name.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How the server of a `rediss` address is checked.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// The name of an object column with what is known of each message beside its bytes: `key` (the stream or channel)
    /// and `id` (of a stream's entry). Without the key there is no such column.
    #[serde(default)]
    pub metadata: Option<String>,
}

impl Redis {
    fn group_default() -> String {
        "logdrive".into()
    }

    fn claim_idle_default() -> Duration {
        Duration::from_mins(1)
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(15)
    }
}

/// The fields of `metadata`.
fn fields() -> Vec<(String, FieldType)> {
    vec![("key".into(), FieldType::String), ("id".into(), FieldType::String)]
}

impl Component for Redis {
    const NAME: &'static str = "redis";
    const EXAMPLE: &'static str = r#"
type: redis
endpoint: "redis://localhost:6379"
keys: [logs]
group: logdrive
field: message
"#;
}

impl SourceConfig for Redis {
    fn attributes(&self) -> Option<(String, RowSchema)> {
        Some((self.metadata.clone()?, RowSchema::of_fields(fields())))
    }

    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let client =
            client(&self.endpoint, self.username.as_deref(), self.password.as_ref(), self.tls.as_ref())?;
        if self.keys.is_empty() {
            return Err(invalid("`keys` names nothing to read"));
        }
        if self.keys.iter().enumerate().any(|(idx, key)| self.keys[..idx].contains(key)) {
            return Err(invalid("`keys` names something twice"));
        }
        if self.claim_idle < Duration::from_secs(1) {
            return Err(invalid("`claim_idle` must be one second at least"));
        }
        if self.timeout < Duration::from_secs(2) {
            return Err(invalid("`timeout` must be two seconds at least"));
        }
        if self.group.is_empty() || self.consumer.as_ref().is_some_and(String::is_empty) {
            return Err(invalid("`group` and `consumer` must not be empty"));
        }
        Ok(match self.data_type {
            DataType::Stream => SourceKind::Log(Box::new(Streams::new(self, client, cx))),
            DataType::Channel | DataType::PatternChannel => {
                SourceKind::Listener(Box::new(Subscriber { config: self, client, cx: cx.clone() }))
            }
        })
    }
}
