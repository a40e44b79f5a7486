//! A connection to the server, and what its errors mean.

use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt as _;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Error, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{BoxError, ConnectorError};
use crate::sinks::http_rejects::excerpt;

/// How much is sent at once.
const PIECE: usize = 64 << 10;

/// A value of a statement, and its type.
pub(super) type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// How to reach the server.
pub(super) struct Address {
    /// Without credentials.
    pub(super) endpoint: Arc<str>,
    pub(super) config: Config,
    pub(super) tls: Option<MakeRustlsConnect>,
    /// How long an answer may take.
    pub(super) answer_max: Duration,
}

/// What went wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Rows are refused, and would be again: the reason of a reject.
    Rows(String),
    /// The server does not do what the configuration asks for.
    Refused(String),
    /// The server asks for time.
    Busy(BoxError),
    /// The connection is of no use any more.
    Lost(BoxError),
}

impl Trouble {
    /// What the runtime is to do. `has_worked`: a refusal may pass.
    pub(super) fn into_error(self, endpoint: &str, has_worked: bool) -> ConnectorError {
        match self {
            Self::Busy(error) => {
                tracing::warn!(endpoint, %error, "PostgreSQL asks for time.");
                ConnectorError::Busy { endpoint: endpoint.to_owned(), after: None }
            }
            Self::Refused(reason) if !has_worked => ConnectorError::refused(endpoint, reason),
            Self::Refused(reason) | Self::Rows(reason) => ConnectorError::disconnected(endpoint, reason),
            Self::Lost(error) => ConnectorError::disconnected(endpoint, error),
        }
    }
}

/// A connection. It ends when dropped, and with it what it has begun.
pub(super) struct Link {
    client: Client,
    task: JoinHandle<()>,
    answer_max: Duration,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    pub(super) async fn open(address: &Address) -> Result<Self, Trouble> {
        let opening = async {
            match &address.tls {
                None => {
                    let (client, connection) = address.config.connect(NoTls).await?;
                    Ok::<_, Error>((client, tokio::spawn(async move { ended(connection.await) })))
                }
                Some(tls) => {
                    let (client, connection) = address.config.connect(tls.clone()).await?;
                    Ok((client, tokio::spawn(async move { ended(connection.await) })))
                }
            }
        };
        let (client, task) = in_time(address.answer_max, opening).await?;
        Ok(Self { client, task, answer_max: address.answer_max })
    }

    /// Runs statements that return nothing of interest.
    pub(super) async fn run(&self, statements: &str) -> Result<(), Trouble> {
        in_time(self.answer_max, self.client.batch_execute(statements)).await
    }

    pub(super) async fn query(&self, statement: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Trouble> {
        in_time(self.answer_max, self.client.query_typed(statement, values)).await
    }

    pub(super) async fn prepare(&self, statement: &str) -> Result<Statement, Trouble> {
        in_time(self.answer_max, self.client.prepare(statement)).await
    }

    /// COPY, of everything in `parts`.
    pub(super) async fn copy(&self, statement: &Statement, parts: [Bytes; 3]) -> Result<(), Trouble> {
        let copying = async {
            let mut copy = pin!(self.client.copy_in::<_, Bytes>(statement).await?);
            for mut part in parts {
                while !part.is_empty() {
                    copy.send(part.split_to(part.len().min(PIECE))).await?;
                }
            }
            copy.finish().await
        };
        in_time(self.answer_max, copying).await.map(drop)
    }
}

fn ended(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::debug!(error = words(&error), "A connection to PostgreSQL has ended.");
    }
}

async fn in_time<T>(
    answer_max: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(answer_max, work).await {
        Ok(done) => done.map_err(|error| trouble(&error)),
        Err(_) => Err(Trouble::Lost("no answer in time".into())),
    }
}

/// What an error means.
fn trouble(error: &Error) -> Trouble {
    let said = words(error);
    let Some(code) = error.code().map(|code| code.code().to_ascii_lowercase()) else {
        return Trouble::Lost(said.into());
    };
    match (code.get(..2).unwrap_or_default(), code.as_str()) {
        // Data, integrity, a view's check option, an exception of a trigger, a row that an index cannot hold.
        ("22" | "23" | "44" | "54" | "p0", _) => Trouble::Rows(format!("postgres_{code}: {said}")),
        // Not supported, who we are, which database, which schema, rights and names.
        ("0a" | "28" | "3d" | "3f" | "42", _) => Trouble::Refused(said),
        // Serialisation and deadlocks, resources, locks and cancelled statements, starting up.
        ("40" | "53" | "55", _) | (_, "57014" | "57p03") => Trouble::Busy(said.into()),
        _ => Trouble::Lost(said.into()),
    }
}

/// An error with its causes, on one line.
fn words(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        let detail = error.detail().map(|detail| format!("; {detail}")).unwrap_or_default();
        return excerpt(&format!("{}{detail}", error.message()));
    }
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    excerpt(&said)
}
