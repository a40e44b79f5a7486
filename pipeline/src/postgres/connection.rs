//! A client's connection: its settings, and how what it runs is stopped from another one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use logdrive_queries::postgres::{SCHEMA, Session, VERSION};
use pgwire::api::cancel::CancelHandler;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use tokio_util::sync::CancellationToken;

/// How many settings a client may make of its own.
const SETTINGS_MAX: usize = 200;

/// The name of the version that clients are told.
pub(super) fn server_version() -> String {
    format!("{VERSION} (Logdrive {})", env!("CARGO_PKG_VERSION"))
}

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    session: Mutex<Session>,
    defaults: BTreeMap<String, String>,
    running: Mutex<CancellationToken>,
}

impl Connection {
    pub(super) fn new(startup: &HashMap<String, String>) -> Arc<Self> {
        let given = |name: &str| startup.get(name).cloned();
        let user = given("user").unwrap_or_default();
        let database =
            given("database").filter(|name| !name.is_empty()).unwrap_or_else(|| "logdrive".to_owned());
        let application = given("application_name").unwrap_or_default();
        let version = server_version();
        let settings = [
            ("application_name", application.as_str()),
            ("bytea_output", "hex"),
            ("client_encoding", "UTF8"),
            ("client_min_messages", "notice"),
            ("datestyle", "ISO, MDY"),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("extra_float_digits", "1"),
            ("idle_in_transaction_session_timeout", "0"),
            ("integer_datetimes", "on"),
            ("intervalstyle", "postgres"),
            ("is_superuser", "off"),
            ("lc_collate", "C"),
            ("lc_ctype", "C"),
            ("lock_timeout", "0"),
            ("max_identifier_length", "63"),
            ("row_security", "on"),
            ("search_path", SCHEMA),
            ("server_encoding", "UTF8"),
            ("server_version", &version),
            ("server_version_num", "150000"),
            ("session_authorization", &user),
            ("standard_conforming_strings", "on"),
            ("statement_timeout", "0"),
            ("timezone", "UTC"),
            ("transaction_isolation", "read committed"),
            ("transaction_read_only", "off"),
        ];
        let defaults: BTreeMap<String, String> =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let session = Session { user, database, settings: defaults.clone() };
        let running = Mutex::new(CancellationToken::new());
        Arc::new(Self { session: Mutex::new(session), defaults, running })
    }

    fn locked(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the functions and the catalog say of this client.
    pub(super) fn session(&self) -> Arc<Session> {
        Arc::new(self.locked().clone())
    }

    /// Remembers a setting; false if there are too many. What is always so (times are in UTC, texts in UTF-8) stays.
    pub(super) fn set(&self, name: &str, value: String) -> bool {
        const FIXED: [&str; 7] = [
            "client_encoding",
            "datestyle",
            "intervalstyle",
            "timezone",
            "server_version",
            "bytea_output",
            "standard_conforming_strings",
        ];
        if FIXED.contains(&name) {
            return true;
        }
        let mut session = self.locked();
        if session.settings.len() >= SETTINGS_MAX && !session.settings.contains_key(name) {
            return false;
        }
        session.settings.insert(name.to_owned(), value);
        true
    }

    /// Takes a setting back; all without a name.
    pub(super) fn reset(&self, name: Option<&str>) {
        let mut session = self.locked();
        match name {
            None => session.settings.clone_from(&self.defaults),
            Some(name) => {
                session.settings.remove(name);
                if let Some(value) = self.defaults.get(name) {
                    session.settings.insert(name.to_owned(), value.clone());
                }
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.locked().settings.get(name).cloned()
    }

    /// All settings, in order of their names.
    pub(super) fn settings(&self) -> BTreeMap<String, String> {
        self.locked().settings.clone()
    }

    /// How long a statement may take, at most `limit`.
    pub(super) fn timeout(&self, limit: Duration) -> Duration {
        let set = self.get("statement_timeout").and_then(|text| span(&text)).filter(|span| !span.is_zero());
        set.map_or(limit, |set| set.min(limit))
    }

    /// A statement begins: this is cancelled when it is to stop.
    pub(super) fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        token
    }

    /// The statement that runs.
    pub(super) fn running(&self) -> CancellationToken {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cancel(&self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }
}

/// `5000` (milliseconds), `5s`, `1min`.
fn span(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(millis) = text.parse() {
        return Some(Duration::from_millis(millis));
    }
    humantime::parse_duration(text).ok()
}

type Key = (i32, Bytes);

/// Everybody who is connected.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<HashMap<Key, Weak<Connection>>>);

/// A place among the connections, as long as it lasts.
#[derive(Debug)]
pub(super) struct Seat {
    key: Key,
    connections: Arc<Connections>,
}

impl Connections {
    fn locked(&self) -> MutexGuard<'_, HashMap<Key, Weak<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seat(self: &Arc<Self>, pid: i32, secret: &SecretKey, connection: &Arc<Connection>) -> Seat {
        let key = (pid, secret.to_bytes());
        self.locked().insert(key.clone(), Arc::downgrade(connection));
        Seat { key, connections: Arc::clone(self) }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.locked().remove(&self.key);
    }
}

/// Stops what others run, if their secret is known.
pub(super) struct Canceller(pub(super) Arc<Connections>);

#[async_trait]
impl CancelHandler for Canceller {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let key = (request.pid, request.secret_key.to_bytes());
        let connection = self.0.locked().get(&key).and_then(Weak::upgrade);
        if let Some(connection) = connection {
            connection.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_and_go() {
        let connection = Connection::new(&HashMap::from([("user".to_owned(), "ada".to_owned())]));
        let limit = Duration::from_secs(60);
        assert_eq!(connection.timeout(limit), limit);
        for (value, expected) in
            [("250", 250), ("2s", 2_000), ("1min", 60_000), ("2h", 60_000), ("0", 60_000)]
        {
            connection.set("statement_timeout", value.to_owned());
            assert_eq!(connection.timeout(limit), Duration::from_millis(expected), "{value}");
        }
        connection.set("timezone", "Europe/Berlin".to_owned());
        assert_eq!(connection.get("timezone").as_deref(), Some("UTC"));
        connection.set("my.setting", "x".to_owned());
        connection.reset(Some("my.setting"));
        assert_eq!(connection.get("my.setting"), None);
        connection.reset(None);
        assert_eq!(connection.get("statement_timeout").as_deref(), Some("0"));
        assert!((0..300).any(|n| !connection.set(&format!("a.b{n}"), String::new())));
    }
}
