//! The YAML of the sink.

use std::time::Duration;

use logdrive_schemas::component::{ConfigError, bytes, duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::link::Address;
use super::table::{NAME_BYTES_MAX, TableName};
use crate::client_tls::Tls;
use crate::context::ConnectorContext;
use crate::sinks::Secret;
use crate::sinks::http_auth::invalid;

/// A server that does not answer a connection for so long is not there.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// After so long without an answer to anything the system takes a connection for lost.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// Writes rows into a table of PostgreSQL, by COPY, exactly once.
///
/// Each column goes into the column of its name. Objects and lists become `jsonb` (or arrays, where the table has some);
/// with types that binary COPY does not convert, PostgreSQL reads text. In the transaction that brings rows, the sink
/// notes in `logdrive_positions` how far each partition of its sources has come, and in `logdrive_identities` which rows
/// without an order (findings) it has brought, so that what is repeated after a crash is known there, whichever process
/// repeats it. Both tables are made beside the rows' table. Processes with one configuration may write at the same time:
/// rows of one partition wait for each other.
///
/// A row that the server refuses (a constraint, a type, a NUL character) is a reject, and no other row with it. A server
/// that is away, full, starting or a standby is tried again.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// The server and the database, such as `postgresql://localhost:5432/logs`. With several (`postgresql://a,b/logs`) the
    /// first one that takes writes is used.
    pub endpoint: String,
    /// The user's name. By default that of the user who runs Logdrive.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Encrypts the connection, and checks the server's certificate and name (`verify-full`). Not if not given.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// The table, as `name` or `schema.name`.
    pub table: String,
    /// Makes the table if it is not there, and adds columns that it lacks: `boolean`, `bigint`, `double precision`,
    /// `numeric(p, s)`, `text`, `inet` (for `ip`), `timestamptz`, `jsonb` and so on, all of which may be null.
    #[serde(default)]
    pub create_table: bool,
    /// Whether a table that is made becomes a hypertable by `@timestamp` if the server has TimescaleDB.
    #[serde(default = "yes")]
    pub hypertable: bool,
    /// The columns to write. All by default.
    #[serde(default)]
    pub columns: Vec<String>,
    /// A column for the whole document, as `jsonb` or text.
    #[serde(default)]
    pub document: Option<String>,
    /// Whose positions these are: one name for all processes that share their work, and another for each pipeline that
    /// writes other rows of sources with the same names into the same table. By default the sink's name.
    #[serde(default)]
    pub writer: Option<String>,
    /// How long positions and identities are kept. What is repeated after a longer time is written again.
    #[serde(default = "Postgres::remember_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub remember: Duration,
    /// How much goes into one transaction.
    #[serde(default)]
    pub batch: PostgresBatch,
    /// How long one statement may take.
    #[serde(default = "Postgres::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

/// How much goes into one transaction.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresBatch {
    /// Bytes of rows.
    #[serde(default = "PostgresBatch::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// How long a row waits for others.
    #[serde(default = "PostgresBatch::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl PostgresBatch {
    fn max_bytes_default() -> u64 {
        8 << 20
    }

    fn timeout_default() -> Duration {
        Duration::from_millis(500)
    }
}

impl Default for PostgresBatch {
    fn default() -> Self {
        Self { max_bytes: Self::max_bytes_default(), timeout: Self::timeout_default() }
    }
}

fn yes() -> bool {
    true
}

impl Postgres {
    fn remember_default() -> Duration {
        Duration::from_hours(30 * 24)
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(30)
    }

    /// What cannot work.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.batch.max_bytes == 0 {
            return Err(invalid("`batch.max_bytes` must not be zero"));
        }
        if !(1..=3600).contains(&self.timeout.as_secs()) {
            return Err(invalid("`timeout` must be from one second to one hour"));
        }
        if self.remember < Duration::from_hours(1) {
            return Err(invalid("`remember` must be one hour at least"));
        }
        if self.writer.as_ref().is_some_and(String::is_empty) {
            return Err(invalid("`writer` must not be empty"));
        }
        let names = self.columns.iter().chain(&self.document);
        if let Some(name) = names.into_iter().find(|name| name.is_empty() || NAME_BYTES_MAX < name.len()) {
            return Err(invalid(format!("`{name}` is no name of a column: those have up to 63 bytes")));
        }
        Ok(())
    }

    /// The table's name.
    pub(super) fn table(&self) -> Result<TableName, ConfigError> {
        TableName::parse(&self.table)
            .ok_or_else(|| invalid(format!("`{}` is no table, write `name` or `schema.name`", self.table)))
    }

    /// How to reach the server; connects to nothing.
    pub(super) fn address(&self, cx: &ConnectorContext) -> Result<Address, ConfigError> {
        let wrong = || {
            let said = "is no address of a server, write it like `postgresql://localhost:5432/logs`";
            invalid(format!("`{}` {said}", self.endpoint))
        };
        let credentials =
            || invalid("`endpoint` holds credentials, which belong under `username` and `password`");
        if self.endpoint.contains('@') || self.endpoint.contains("password=") {
            return Err(credentials());
        }
        if !["postgres://", "postgresql://"].iter().any(|scheme| self.endpoint.starts_with(scheme)) {
            return Err(wrong());
        }
        let mut config: Config = self.endpoint.parse().map_err(|_| wrong())?;
        if config.get_user().is_some() || config.get_password().is_some() {
            return Err(credentials());
        }
        if config.get_hosts().is_empty() {
            return Err(wrong());
        }
        if config.get_ssl_mode() == SslMode::Require && self.tls.is_none() {
            return Err(invalid("`sslmode` is said by `tls`").with_help("add `tls: {}`"));
        }
        if let Some(username) = &self.username {
            config.user(username);
        }
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        config
            .application_name(format!("logdrive-{}", cx.name))
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(if self.tls.is_some() { SslMode::Require } else { SslMode::Disable })
            .connect_timeout(self.timeout.min(CONNECT_MAX))
            .tcp_user_timeout(SILENT_MAX)
            .keepalives_idle(SILENT_MAX / 2);
        let tls = self.tls.as_ref().map(Tls::client).transpose()?;
        Ok(Address {
            endpoint: self.endpoint.as_str().into(),
            config,
            tls: tls.map(|tls| MakeRustlsConnect::new((*tls).clone())),
            answer_max: self.timeout,
        })
    }
}
