//! The `mqtt` source: messages of an MQTT broker.
//!
//! A message is confirmed (PUBACK, PUBREC) only when the write-ahead buffer has it on disk, and the broker keeps the
//! session, so what was not confirmed comes again after a crash.

mod attributes;
mod group;
mod identity;
mod receiver;
#[cfg(test)]
mod tests;
mod topics;

use std::time::Duration;

use async_trait::async_trait;
use logdrive_schemas::RowSchema;
use logdrive_schemas::component::{Component, ConfigError, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;

use self::attributes::{Attributes, FIXED};
use self::identity::Identity;
use self::receiver::Receiver;
use self::topics::Topics;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::mqtt::settings::{Settings, invalid};
use crate::mqtt::{Endpoint, LastWill, Qos, Tls, Version};
use crate::sinks::Secret;
use crate::source::{Intake, Listener, SourceConfig, SourceKind};

pub use self::topics::Filter;

/// Receives the messages of an MQTT broker: the payload is the message.
///
/// The session outlives connections and restarts: with `qos: 1` and `2` the broker keeps what is published meanwhile,
/// for as long as it wants to (Mosquitto: 1000 messages, `max_queued_messages`). A message is confirmed when it is on
/// disk here. A crash between the two lets it come again, also with `qos: 2`. Several sources may share a
/// subscription, `$share/GROUP/FILTER`: the broker gives each message to one of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// The broker, such as `mqtt://broker:1883` or `mqtts://broker:8883`. One that is down is tried again.
    #[schemars(with = "String")]
    pub endpoint: Endpoint,
    /// What to subscribe to: filters such as `plant/+/temperature` and `log/#`.
    #[schemars(with = "Vec<String>")]
    pub topics: Vec<Filter>,
    /// The quality of service: 0 loses what is published while there is no connection, 1 and 2 do not.
    #[serde(default)]
    pub qos: Qos,
    /// The version of the protocol, `3.1.1` or `5`.
    #[serde(default)]
    pub version: Version,
    /// The name under which the broker keeps the session; no two clients may have the same. By default a random one
    /// that is kept in the data directory.
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
    /// How often the broker hears from the source at least; after one and a half times that it counts as gone.
    #[serde(default = "Mqtt::keep_alive_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub keep_alive: Duration,
    /// How long the broker keeps the session of a source that is gone. MQTT 5; otherwise the broker decides.
    #[serde(default = "Mqtt::session_expiry_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub session_expiry: Duration,
    /// What the broker publishes when the source is gone without a word.
    #[serde(default)]
    pub last_will: Option<LastWill>,
    /// The most messages that may be received and not confirmed. The broker may have a lower bound of its own
    /// (Mosquitto: 20, `max_inflight_messages`), which then decides how fast messages come.
    #[serde(default = "Mqtt::max_in_flight_default")]
    pub max_in_flight: u16,
    /// A larger packet becomes a reject that holds its beginning. With MQTT 5 the broker is told and sends none.
    #[serde(default = "Mqtt::max_packet_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_packet_bytes: u64,
    /// The name of an object column with what is known of each message beside its payload: `topic`, `levels`, `qos`,
    /// `retain`, `duplicate`, and with MQTT 5 `content_type` and `user_properties`. `levels` is the list of what the
    /// wildcards of the filter stand for. Without the key there is no such column.
    #[serde(default)]
    pub metadata: Option<String>,
    /// Fields of `metadata`, instead of its `levels`, for what the wildcards of a filter stand for, in order: with
    /// `[site, device]` and the filter `plant/+/sensor/+`, `plant/7/sensor/t4` has the site `7` and the device `t4`.
    /// What `#` stands for is the last level, as a whole.
    #[serde(default)]
    pub levels: Vec<String>,
}

impl Mqtt {
    fn keep_alive_default() -> Duration {
        Duration::from_secs(30)
    }

    fn session_expiry_default() -> Duration {
        Duration::from_hours(24)
    }

    fn max_in_flight_default() -> u16 {
        4096
    }

    fn max_packet_bytes_default() -> u64 {
        1 << 20
    }

    fn object(&self) -> Option<Attributes> {
        self.metadata.as_ref().map(|_| Attributes::new(&self.levels, self.version))
    }
}

impl Component for Mqtt {
    const NAME: &'static str = "mqtt";
    const EXAMPLE: &'static str = r#"
type: mqtt
endpoint: "mqtt://localhost:1883"
topics: ["plant/+/sensor/+"]
metadata: mqtt
levels: [site, device]
"#;
}

impl SourceConfig for Mqtt {
    fn attributes(&self) -> Option<(String, RowSchema)> {
        let fields = self.object()?.fields();
        Some((self.metadata.clone()?, RowSchema::of_fields(fields)))
    }

    fn build(self, cx: &ConnectorContext) -> Result<SourceKind, ConfigError> {
        let login = (self.username.as_ref(), self.password.as_ref());
        let mut settings = Settings::checked(&self.endpoint, self.version, self.tls.as_ref(), login)?;
        if self.topics.is_empty() {
            return Err(invalid("`topics` names nothing to subscribe to"));
        }
        if self.max_in_flight == 0 {
            return Err(invalid("`max_in_flight` must not be zero"));
        }
        if self.metadata.is_none() && !self.levels.is_empty() {
            return Err(invalid("`levels` are fields of `metadata`, which is not there"));
        }
        for (idx, level) in self.levels.iter().enumerate() {
            if FIXED.contains(&level.as_str()) || self.levels[..idx].contains(level) || level.is_empty() {
                return Err(invalid(format!("`levels`: there is a field `{level}` already")));
            }
        }
        settings.keep_alive = Settings::keep_alive_checked(self.keep_alive)?;
        settings.packet_max = Settings::packet_max_checked(self.max_packet_bytes)?;
        settings.receive_max = self.max_in_flight;
        settings.session_expiry = self.session_expiry;
        settings.clean = false;
        settings.last_will.clone_from(&self.last_will);
        Ok(SourceKind::Listener(Box::new(Subscriber {
            attributes: self.object(),
            topics: Topics::new(self.topics, self.qos),
            client_id: self.client_id,
            identity: None,
            settings,
            cx: cx.clone(),
        })))
    }
}

struct Subscriber {
    cx: ConnectorContext,
    settings: Settings,
    topics: Topics,
    client_id: Option<String>,
    attributes: Option<Attributes>,
    identity: Option<Identity>,
}

#[async_trait]
impl Listener for Subscriber {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        let identity = Identity::open(&self.cx, self.client_id.as_deref())?;
        self.settings.client_id = identity.client_id().to_owned();
        self.identity = Some(identity);
        Ok(())
    }

    async fn run(self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        let Self { cx, settings, topics, attributes, identity, .. } = *self;
        let Some(identity) = identity else {
            return Err(ConnectorError::refused(settings.endpoint.to_string(), "not bound"));
        };
        Receiver::new(cx, settings, topics, attributes, identity, intake).run().await;
        Ok(())
    }
}
