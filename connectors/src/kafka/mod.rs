//! What the Kafka source and sink share: addresses, TLS, SASL, options of the client library, and what its errors mean.

pub(crate) mod oauth;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use logdrive_schemas::component::{ConfigError, Span};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use schemars::JsonSchema;
use serde::Deserialize;

pub use self::oauth::OAuth;
use self::oauth::Tokens;
use crate::context::ConnectorContext;
use crate::sinks::Secret;

/// TLS to the brokers. `tls: {}` trusts the authorities of the system.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaTls {
    /// A PEM file of authorities to trust instead of those of the system.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// A PEM file with the certificate that the client shows.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// A PEM file with the key of `cert`.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The password of `key`; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub key_password: Option<Secret>,
    /// Whether the certificates and names of brokers are checked. `false` lets anybody on the way read and change
    /// everything.
    #[serde(default = "yes")]
    pub verify: bool,
}

fn yes() -> bool {
    true
}

/// Who the client says it is. Without `tls` this travels in the clear, or nearly so.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// How the password, or a token, is shown to the broker.
    pub mechanism: Mechanism,
    /// The user's name. Not with `OAUTHBEARER`.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; write it as `${NAME}` and set the environment variable. Not with `OAUTHBEARER`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Where the tokens of `OAUTHBEARER` come from.
    #[serde(default)]
    pub oauth: Option<OAuth>,
}

/// How a password, or a token, is shown to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// A token, as it is.
    #[serde(rename = "OAUTHBEARER")]
    OAuthBearer,
    /// A password, as it is.
    #[serde(rename = "PLAIN")]
    Plain,
    /// By a challenge, SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// By a challenge, SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// Properties of librdkafka by their names.
pub type Options = BTreeMap<String, Secret>;

/// How to reach a cluster.
pub(crate) struct Cluster<'a> {
    pub(crate) endpoint: &'a [String],
    pub(crate) tls: Option<&'a KafkaTls>,
    pub(crate) sasl: Option<&'a Sasl>,
    pub(crate) options: &'a Options,
}

/// The attribute under which a field of an Avro record says what it is called, where Avro's names are too narrow.
pub(crate) const AVRO_NAME: &str = "logdrive.name";

/// Options that have a key of their own, or that delivery rests on; on either side.
const NOT_OPTIONS: &[&str] = &[
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "dr_cb",
    "dr_msg_cb",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "log.queue",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.library.paths",
    "request.required.acks",
    "retries",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.method",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "transactional.id",
];

impl Cluster<'_> {
    /// The configuration of a client: `defaults`, then the options, then `fixed`, which nobody may change.
    ///
    /// # Errors
    /// If the library does not know a property or refuses its value.
    pub(crate) fn client(
        &self,
        cx: &ConnectorContext,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> Result<ClientConfig, ConfigError> {
        if self.endpoint.is_empty() {
            return Err(invalid("`endpoint` names no broker"));
        }
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config.set("client.id", format!("logdrive-{}", cx.name));
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in self.options {
            let managed =
                NOT_OPTIONS.contains(&name.as_str()) || fixed.iter().any(|(fixed, _)| fixed == name);
            if managed || name.ends_with("_cb") {
                return Err(invalid(format!("`options` may not set `{name}`"))
                    .with_help("it has a key of its own, or delivery rests on it"));
            }
            config.set(name, value.expose());
        }
        config.set("bootstrap.servers", self.endpoint.join(","));
        self.secure(&mut config)?;
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config.create_native_config().map_err(|error| invalid(describe(&error)))?;
        Ok(config)
    }

    /// Where tokens come from, if that is how clients log in.
    ///
    /// # Errors
    /// If what is said of tokens does not make sense.
    pub(crate) fn tokens(&self) -> Result<Option<Arc<Tokens>>, ConfigError> {
        match self.sasl {
            Some(Sasl { mechanism: Mechanism::OAuthBearer, oauth: Some(oauth), .. }) => {
                oauth.build().map(Some)
            }
            _ => Ok(None),
        }
    }

    fn secure(&self, config: &mut ClientConfig) -> Result<(), ConfigError> {
        let protocol = match (self.tls, self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = self.tls {
            let files = [
                ("ssl.ca.location", &tls.ca),
                ("ssl.certificate.location", &tls.cert),
                ("ssl.key.location", &tls.key),
            ];
            for (name, path) in files {
                if let Some(path) = path {
                    config.set(name, path.display().to_string());
                }
            }
            if let Some(password) = &tls.key_password {
                config.set("ssl.key.password", password.expose());
            }
            if !tls.verify {
                config.set("enable.ssl.certificate.verification", "false");
            }
        }
        let Some(sasl) = self.sasl else { return Ok(()) };
        let mechanism = match sasl.mechanism {
            Mechanism::OAuthBearer => "OAUTHBEARER",
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config.set("sasl.mechanism", mechanism);
        match (sasl.mechanism, &sasl.username, &sasl.password, &sasl.oauth) {
            (Mechanism::OAuthBearer, None, None, Some(_)) => Ok(()),
            (Mechanism::OAuthBearer, ..) => {
                Err(invalid("`sasl` with `OAUTHBEARER` wants `oauth`, and neither `username` nor `password`"))
            }
            (_, Some(username), Some(password), None) => {
                config.set("sasl.username", username);
                config.set("sasl.password", password.expose());
                Ok(())
            }
            _ => Err(invalid(format!(
                "`sasl` with `{mechanism}` wants `username` and `password`, and no `oauth`"
            ))),
        }
    }
}

/// A value that is wrong in a way serde cannot see.
pub(crate) fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::new("config::invalid_value", Span::default(), message)
}

/// An error of the library, in words and without any value that could be a secret.
fn describe(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, reason, name, _) => {
            format!("the Kafka client does not take `{name}`: {reason}")
        }
        error => error.to_string(),
    }
}

/// Whether the broker does not know us, or does not let us: nothing that time mends.
pub(crate) fn is_refusal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::UnsupportedSASLMechanism
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::InconsistentGroupProtocol
        )
    )
}

/// What the library says, for our log.
pub(crate) fn log(client: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => tracing::warn!(client, facility, "{message}"),
        _ => tracing::debug!(client, facility, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::metrics::Metrics;

    fn client(options: &[(&str, &str)], sasl: bool) -> Result<ClientConfig, ConfigError> {
        let cx = ConnectorContext {
            name: "in".into(),
            state_dir: "unused".into(),
            metrics: Arc::new(Metrics::new()),
            shutdown: CancellationToken::new(),
        };
        let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let tls = KafkaTls { ca: None, cert: None, key: None, key_password: None, verify: false };
        let sasl = sasl.then(|| Sasl {
            mechanism: Mechanism::ScramSha512,
            username: Some("u".into()),
            password: Some("hunter2".into()),
            oauth: None,
        });
        let endpoint = ["one:9092".to_owned(), "two:9092".to_owned()];
        let cluster =
            Cluster { endpoint: &endpoint, tls: Some(&tls), sasl: sasl.as_ref(), options: &options };
        cluster.client(&cx, &[("fetch.min.bytes", "2")], &[("enable.auto.commit", "false")])
    }

    #[test]
    fn options_replace_defaults_but_nothing_that_delivery_rests_on() {
        let config = client(&[("fetch.min.bytes", "7"), ("session.timeout.ms", "6000")], true).unwrap();
        assert_eq!(config.get("fetch.min.bytes"), Some("7"));
        assert_eq!(config.get("bootstrap.servers"), Some("one:9092,two:9092"));
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        assert_eq!(config.get("enable.ssl.certificate.verification"), Some("false"));
        for name in ["enable.auto.commit", "group.id", "acks", "plugin.library.paths", "rebalance_cb"] {
            let error = client(&[(name, "x")], false).unwrap_err();
            assert!(error.message.contains(name), "{error:?}");
        }
    }

    #[test]
    fn what_the_library_does_not_take_is_an_error_without_the_value() {
        let error = client(&[("ssl.no.such.thing", "hunter2")], false).unwrap_err();
        assert!(
            error.message.contains("ssl.no.such.thing") && !error.message.contains("hunter2"),
            "{error:?}"
        );
    }
}
