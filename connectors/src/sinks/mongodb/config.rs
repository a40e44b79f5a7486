//! The YAML of the sink.

use std::path::PathBuf;
use std::time::Duration;

use logdrive_schemas::RowSchema;
use logdrive_schemas::component::{ConfigError, bytes, duration};
use mongodb::options::{
    Acknowledgment, AuthMechanism, ClientOptions, ConnectionString, Credential, TimeseriesGranularity,
    TimeseriesOptions, Tls as DriverTls, TlsOptions, WriteConcern,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::ConnectorContext;
use crate::sinks::Secret;
use crate::sinks::http_auth::invalid;

/// A server that does not answer a connection for so long is not there.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The most that MongoDB takes as one message is three times as much.
const BATCH_BYTES_MAX: u64 = 16 << 20;

/// Writes documents into a collection of MongoDB, each once.
///
/// The `_id` is the identity of the row, which it also has in Elasticsearch: a document that is there already is not
/// written again. Timestamps of the schema become BSON dates (of milliseconds), decimals `Decimal128`, binary values
/// binary; everything else is as in the document. A flush waits for a majority of the replica set, and for its journal.
///
/// A document that the server refuses (larger than 16 MiB, a unique index, a validator) is a reject, and so is one that
/// has an `_id` of its own. A server that is away, or is not the primary any more, is tried again.
///
/// Tried against a stand-in that speaks MongoDB's protocol, never against MongoDB itself: what the driver sends and what it
/// makes of answers is tested, what a real cluster answers is not.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mongodb {
    /// The servers and options, such as `mongodb://localhost:27017` or `mongodb://a,b,c/?replicaSet=logs`.
    pub endpoint: String,
    /// The user's name.
    #[serde(default)]
    pub username: Option<String>,
    /// The password; write it as `${NAME}` and set the environment variable.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The database that knows the user.
    #[serde(default = "Mongodb::auth_source_default")]
    pub auth_source: String,
    /// Encrypts connections, and checks certificates and names. Not if not given.
    #[serde(default)]
    pub tls: Option<MongodbTls>,
    /// The database.
    pub database: String,
    /// The collection. Made by the server when the first document comes, or by the sink if it is of a kind (`time_series`).
    pub collection: String,
    /// Makes a time-series collection. Those have no unique `_id`: what comes again after a crash is there twice.
    #[serde(default)]
    pub time_series: Option<TimeSeries>,
    /// How long documents are kept, by the time in `time_field`; the server removes them about once a minute. For ever by
    /// default.
    #[serde(default, deserialize_with = "maybe_duration")]
    #[schemars(with = "Option<String>")]
    pub expire_after: Option<Duration>,
    /// The field with the time, for `time_series` and `expire_after`. In a time series a document without it gets the
    /// time of its arrival.
    #[serde(default = "Mongodb::time_field_default")]
    pub time_field: String,
    /// How much goes into one request.
    #[serde(default)]
    pub batch: MongodbBatch,
    /// How long a request may take.
    #[serde(default = "Mongodb::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

/// A time-series collection.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeSeries {
    /// The field that says which series a document belongs to.
    #[serde(default)]
    pub meta_field: Option<String>,
    /// How far apart the documents of a series are.
    #[serde(default)]
    pub granularity: Granularity,
}

/// How far apart the documents of a series are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Seconds or less.
    #[default]
    Seconds,
    /// Minutes.
    Minutes,
    /// Hours.
    Hours,
}

/// How servers are checked, and how the client proves who it is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MongodbTls {
    /// A PEM file of authorities to trust instead of those of Mozilla's list.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate and its key. Without a `username`, the server may take it for the user.
    #[serde(default)]
    pub certificate_key: Option<PathBuf>,
}

/// How much goes into one request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MongodbBatch {
    /// Bytes of documents, at most 16 MiB.
    #[serde(default = "MongodbBatch::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
    /// How long a row waits for others.
    #[serde(default = "MongodbBatch::timeout_default", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl MongodbBatch {
    fn max_bytes_default() -> u64 {
        4 << 20
    }

    fn timeout_default() -> Duration {
        Duration::from_millis(500)
    }
}

impl Default for MongodbBatch {
    fn default() -> Self {
        Self { max_bytes: Self::max_bytes_default(), timeout: Self::timeout_default() }
    }
}

fn maybe_duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

impl Mongodb {
    fn auth_source_default() -> String {
        "admin".into()
    }

    fn time_field_default() -> String {
        RowSchema::EVENT_TIME.into()
    }

    fn timeout_default() -> Duration {
        Duration::from_secs(30)
    }

    /// What cannot work.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=BATCH_BYTES_MAX).contains(&self.batch.max_bytes) {
            return Err(invalid("`batch.max_bytes` must be from 1B to 16MiB"));
        }
        if self.timeout.is_zero() || self.expire_after.is_some_and(|after| after.as_secs() == 0) {
            return Err(invalid("`timeout` and `expire_after` must not be zero"));
        }
        let is_name = |name: &str| !name.is_empty() && !name.contains(['\0', '$']);
        if !is_name(&self.database) || self.database.contains(['/', '\\', '.', ' ', '"']) {
            return Err(invalid(format!("`{}` is no name of a database", self.database)));
        }
        if !is_name(&self.collection) || self.collection.starts_with("system.") {
            return Err(invalid(format!("`{}` is no name of a collection", self.collection)));
        }
        if self.time_field.is_empty() || self.time_field.contains(['\0', '.']) {
            return Err(invalid("`time_field` must name a field of the document itself"));
        }
        if self.username.is_some() != self.password.is_some() {
            return Err(invalid("`username` and `password` belong together"));
        }
        if let Some(tls) = &self.tls {
            for (key, path) in [("tls.ca", &tls.ca), ("tls.certificate_key", &tls.certificate_key)] {
                if let Some(error) = path.as_ref().and_then(|path| std::fs::File::open(path).err()) {
                    return Err(invalid(format!("cannot read `{key}`: {error}")));
                }
            }
        }
        self.servers().map(drop)
    }

    /// Reads the endpoint.
    fn servers(&self) -> Result<ConnectionString, ConfigError> {
        if self.endpoint.contains('@') {
            let message = "`endpoint` holds credentials, which belong under `username` and `password`";
            return Err(invalid(message));
        }
        ConnectionString::parse(&self.endpoint).map_err(|error| {
            invalid(format!("`{}` is no address of servers: {}", self.endpoint, error.kind)).with_help(
                "write it like `mongodb://localhost:27017`; `mongodb+srv` is not known here, name the servers",
            )
        })
    }

    /// What the driver is told.
    pub(super) async fn options(&self, cx: &ConnectorContext) -> Result<ClientOptions, String> {
        let servers = self.servers().map_err(|error| error.message)?;
        let mut options = ClientOptions::parse(servers).await.map_err(|error| error.kind.to_string())?;
        options.app_name = Some(format!("logdrive-{}", cx.name));
        options.connect_timeout = Some(self.timeout.min(CONNECT_MAX));
        options.server_selection_timeout = Some(self.timeout.min(CONNECT_MAX));
        options.write_concern = Some(
            WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(self.timeout).build(),
        );
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            let credential = Credential::builder()
                .username(username.clone())
                .password(password.expose().to_owned())
                .source(self.auth_source.clone());
            options.credential = Some(credential.build());
        }
        if let Some(tls) = &self.tls {
            let given = TlsOptions::builder()
                .ca_file_path(tls.ca.clone())
                .cert_key_file_path(tls.certificate_key.clone());
            options.tls = Some(DriverTls::Enabled(given.build()));
            if tls.certificate_key.is_some() && self.username.is_none() {
                let shown = Credential::builder().mechanism(AuthMechanism::MongoDbX509);
                options.credential = Some(shown.build());
            }
        }
        Ok(options)
    }

    /// What a time-series collection is made with.
    pub(super) fn series(&self) -> Option<TimeseriesOptions> {
        let series = self.time_series.as_ref()?;
        let granularity = match series.granularity {
            Granularity::Seconds => TimeseriesGranularity::Seconds,
            Granularity::Minutes => TimeseriesGranularity::Minutes,
            Granularity::Hours => TimeseriesGranularity::Hours,
        };
        let options = TimeseriesOptions::builder()
            .time_field(self.time_field.clone())
            .meta_field(series.meta_field.clone())
            .granularity(granularity);
        Some(options.build())
    }
}
