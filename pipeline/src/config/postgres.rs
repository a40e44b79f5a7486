//! `postgres:`: where clients of PostgreSQL are listened to, and who they may be.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use logdrive_connectors::server_tls::{Security, Tls};
use logdrive_schemas::component::{ConfigError, Node, NodeKind, duration, parse_as};
use serde::Deserialize;

/// The keys of `postgres`.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Where to listen. An address that others can reach needs `users` and `tls`.
    #[serde(default = "listen_default")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Who may connect: passwords by name, or what PostgreSQL keeps of a password (`SCRAM-SHA-256$…`). Everybody who
    /// reaches the address may, if not given.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub users: BTreeMap<String, Password>,
    /// Secures connections; then none are taken that are not secured.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// How many may be connected at a time.
    #[serde(default = "max_connections_default")]
    pub max_connections: usize,
    /// How long a statement may take. Clients may set less (`SET statement_timeout`). Subscriptions do not end.
    #[serde(default = "statement_timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub statement_timeout: Duration,
}

/// A password, or what PostgreSQL keeps of one.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// As it was given.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A listener that can be opened.
#[derive(Clone, Debug)]
pub struct PostgresPlan {
    /// What was configured.
    pub config: PostgresConfig,
    /// The certificates, read.
    pub security: Security,
}

fn listen_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5433))
}

fn max_connections_default() -> usize {
    64
}

fn statement_timeout_default() -> Duration {
    crate::reading::TIMEOUT
}

/// Reads the section; nothing if it is off, or has an error.
pub(super) fn read(node: &Node, errors: &mut Vec<ConfigError>) -> Option<PostgresPlan> {
    if matches!(&node.kind, NodeKind::Scalar(s) if s.text == "off" || s.text == "false") {
        return None;
    }
    let config: PostgresConfig = parse_as(node, "`postgres`", errors)?;
    let mut invalid = |key: &str, message: &str, help: &str| {
        let span = node.get(key).unwrap_or(node).span;
        errors.push(ConfigError::new("config::invalid_value", span, message).with_help(help));
    };
    let (is_public, has_users) = (!config.listen.ip().is_loopback(), !config.users.is_empty());
    let is_secured = has_users && config.tls.is_some();
    if is_public && !is_secured {
        let message = "others can reach this address, and could read everything";
        invalid("listen", message, "declare `users` and `tls`, or listen on 127.0.0.1");
    }
    let is_verifier = |text: &str| crate::postgres::Verifier::parse(text).is_some();
    for (name, password) in &config.users {
        let text = password.text();
        if text.is_empty() || text.starts_with("SCRAM-SHA-256$") && !is_verifier(text) {
            invalid(
                "users",
                &format!("`{name}` has no password"),
                "write one, or what `pg_authid` has of it",
            );
        }
    }
    if config.max_connections == 0 {
        invalid("max_connections", "nobody could connect", "allow one at least");
    }
    if config.statement_timeout.is_zero() {
        invalid("statement_timeout", "no statement could end in time", "allow some seconds");
    }
    match Security::load_for(config.tls.as_ref(), &[b"postgresql"]) {
        Ok(security) => Some(PostgresPlan { config, security }),
        Err(error) => {
            errors.push(ConfigError { span: node.get("tls").unwrap_or(node).span, ..error });
            None
        }
    }
}
