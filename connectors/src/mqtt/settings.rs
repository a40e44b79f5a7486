//! What a user says about a broker and about the client that talks to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use logdrive_schemas::component::{ConfigError, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;
use url::Url;

use crate::client_tls::Tls;
use crate::sinks::Secret;

/// The largest packet that there can be, in bytes.
const PACKET_MAX: u64 = 256 << 20;
/// The smallest `max_packet_bytes`: a topic and its properties must fit.
const PACKET_MIN: u64 = 4 << 10;

/// The version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Version {
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
}

/// How often a message may arrive: `0` at most once, `1` at least once, `2` once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
pub enum Qos {
    /// At most once.
    #[serde(rename = "0")]
    AtMostOnce,
    /// At least once.
    #[default]
    #[serde(rename = "1")]
    AtLeastOnce,
    /// Exactly once, as far as the protocol reaches.
    #[serde(rename = "2")]
    ExactlyOnce,
}

/// The address of a broker.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint {
    text: String,
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address of a broker, write it like `mqtts://broker:8883`");
        let url = Url::parse(&text).map_err(|_| wrong())?;
        let tls = match url.scheme() {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(wrong()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the address holds credentials, which belong under `username` and `password`".into());
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(wrong());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(if tls { 8883 } else { 1883 });
        Ok(Self { text, host, port, tls })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the broker publishes for the client when the connection breaks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastWill {
    /// Under which topic.
    pub topic: String,
    /// What it says.
    #[serde(default)]
    pub payload: String,
    /// With which quality of service: 0, 1 or 2.
    #[serde(default)]
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    #[serde(default)]
    pub retain: bool,
}

/// A value that is wrong in a way serde cannot see.
pub(crate) fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::new("config::invalid_value", Span::default(), message)
}

/// How to connect.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) login: Option<(String, Secret)>,
    /// Only with `mqtts`.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Zero: never.
    pub(crate) keep_alive: Duration,
    pub(crate) last_will: Option<LastWill>,
    /// Whether what the broker remembers of the client is forgotten.
    pub(crate) clean: bool,
    /// How long the broker remembers the client; MQTT 5.
    pub(crate) session_expiry: Duration,
    /// How many messages the broker may send without their being acknowledged; MQTT 5.
    pub(crate) receive_max: u16,
    /// The largest packet that is received, in bytes.
    pub(crate) packet_max: u32,
}

impl Settings {
    /// Checks what the types of single keys cannot.
    pub(crate) fn checked(
        endpoint: &Endpoint,
        version: Version,
        tls: Option<&Tls>,
        login: (Option<&String>, Option<&Secret>),
    ) -> Result<Self, ConfigError> {
        let tls = match (endpoint.tls, tls) {
            (true, tls) => Some(tls.cloned().unwrap_or_default().client()?),
            (false, None) => None,
            (false, Some(_)) => return Err(invalid("`tls` needs an `endpoint` that begins with `mqtts://`")),
        };
        let login = match login {
            (None, None) => None,
            (Some(user), password) => {
                Some((user.clone(), password.cloned().unwrap_or_else(|| Secret::from(""))))
            }
            (None, Some(_)) => return Err(invalid("`password` needs a `username`")),
        };
        Ok(Self {
            endpoint: endpoint.clone(),
            version,
            client_id: String::new(),
            login,
            tls,
            keep_alive: Duration::ZERO,
            last_will: None,
            clean: true,
            session_expiry: Duration::ZERO,
            receive_max: u16::MAX,
            packet_max: 64 << 10,
        })
    }

    /// `keep_alive` in the seconds that the protocol has.
    pub(crate) fn keep_alive_checked(keep_alive: Duration) -> Result<Duration, ConfigError> {
        if keep_alive.as_secs() == 0 || u64::from(u16::MAX) < keep_alive.as_secs() {
            return Err(invalid("`keep_alive` must be from 1 second to 18 hours"));
        }
        Ok(Duration::from_secs(keep_alive.as_secs()))
    }

    /// `max_packet_bytes`.
    pub(crate) fn packet_max_checked(bytes: u64) -> Result<u32, ConfigError> {
        let fits = (PACKET_MIN..PACKET_MAX).contains(&bytes);
        let bytes = u32::try_from(bytes).ok().filter(|_| fits);
        bytes.ok_or_else(|| invalid("`max_packet_bytes` must be from 4KiB to less than 256MiB"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let read = |text: &str| Endpoint::try_from(text.to_owned()).map(|e| (e.host, e.port, e.tls));
        assert_eq!(read("mqtt://broker"), Ok(("broker".into(), 1883, false)));
        assert_eq!(read("mqtts://broker:99/"), Ok(("broker".into(), 99, true)));
        assert_eq!(read("mqtts://[::1]"), Ok(("::1".into(), 8883, true)));
        for wrong in ["broker:1883", "http://broker", "mqtt://", "mqtt://u:p@broker", "mqtt://b/topic"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
