//! Documents into a collection of MongoDB.
//!
//! Documents are inserted in no order, so that one that is refused holds no other up. The `_id` is the identity of the
//! row: the server says which ones it has, and those were brought before.

mod config;
mod document;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch, Reject};
use mongodb::bson::{RawDocumentBuf, doc};
use mongodb::error::{Error, ErrorKind, InsertManyError};
use mongodb::options::IndexOptions;
use mongodb::{Client, Collection, IndexModel};
use prometheus::IntCounter;

pub use self::config::{Granularity, Mongodb, MongodbBatch, MongodbTls, TimeSeries};
use self::document::Maker;
use super::http_rejects::{Refused, excerpt, merge};
use super::pending::{Parts, Pending};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// The server's words for a document that is there.
const DUPLICATE_KEY: i32 = 11_000;
/// A document, or a request, that is too large for it.
const TOO_LARGE: i32 = 10_334;
/// The collection is there already.
const NAMESPACE_EXISTS: i32 = 48;
/// Errors of a document that say nothing about the document: stepping down, shutting down, a network within the
/// cluster, too much at a time.
const PASSING: &[i32] = &[
    6, 7, 50, 64, 89, 91, 112, 133, 134, 189, 262, 317, 462, 9001, 10_058, 10_107, 11_600, 11_602, 13_435,
    13_436, 16_500,
];
/// Who we are, or what we may do.
const REFUSALS: &[i32] = &[13, 18, 33, 8000];

impl Component for Mongodb {
    const NAME: &'static str = "mongodb";
    const EXAMPLE: &'static str = r#"
type: mongodb
from: [events]
endpoint: "mongodb://localhost:27017"
database: logs
collection: events
expire_after: 30d
"#;
}

impl SinkConfig for Mongodb {
    fn guarantee(&self) -> Guarantee {
        match self.time_series {
            None => Guarantee::ExactlyOnce,
            Some(_) => Guarantee::AtLeastOnce,
        }
    }

    /// The document, and the types of all columns.
    fn reads(&self) -> Reads {
        Reads::AllColumns
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        self.check()?;
        let labels = &[&*cx.name];
        Ok(Box::new(MongodbSink {
            max_bytes: usize::try_from(self.batch.max_bytes).unwrap_or(usize::MAX),
            cx: cx.clone(),
            client: None,
            was_let_in: false,
            pending: Pending::default(),
            rejects: Vec::new(),
            name: Arc::clone(&cx.name),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            duplicates: cx.metrics.sink_duplicates.with_label_values(labels),
            metrics: Arc::clone(&cx.metrics),
            config: self,
        }))
    }
}

struct MongodbSink {
    config: Mongodb,
    max_bytes: usize,
    cx: ConnectorContext,
    /// It has connections of its own, and looks after them. Given up when a request has had no answer.
    client: Option<Client>,
    /// Whether the server let us in before: what it refuses now may pass.
    was_let_in: bool,
    pending: Pending<RawDocumentBuf>,
    /// Since the last flush; bounded by its policy.
    rejects: Refused,
    name: Arc<str>,
    rows: IntCounter,
    bytes: IntCounter,
    duplicates: IntCounter,
    metrics: Arc<Metrics>,
}

/// What became of a request.
enum Outcome {
    /// The server has everything but these: the place in the request, and why.
    Done { refused: Vec<(usize, String)>, n_duplicates: usize },
    /// It takes no such request; one document alone is refused for this reason.
    Halve(String),
}

impl MongodbSink {
    fn count_error(&self, kind: &str) {
        self.metrics.sink_errors.with_label_values(&[&*self.name, kind]).inc();
    }

    /// Something that took no longer than it may.
    async fn in_time<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, (Option<Box<Error>>, ConnectorError)> {
        let endpoint = self.config.endpoint.clone();
        match tokio::time::timeout(self.config.timeout, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let failed = self.failed(&error);
                Err((Some(Box::new(error)), failed))
            }
            Err(_) => {
                self.count_error("timeout");
                // Its connections may be of no use.
                self.client = None;
                Err((None, ConnectorError::disconnected(endpoint, "no answer in time")))
            }
        }
    }

    /// What the runtime is to do about an error that is not about documents.
    fn failed(&self, error: &Error) -> ConnectorError {
        let endpoint = self.config.endpoint.as_str();
        let said = excerpt(&error.kind.to_string());
        let code = match &*error.kind {
            ErrorKind::Command(error) => Some(error.code),
            ErrorKind::InsertMany(InsertManyError { write_concern_error: Some(error), .. }) => {
                Some(error.code)
            }
            _ => None,
        };
        let is_refusal = matches!(
            &*error.kind,
            ErrorKind::Authentication { .. }
                | ErrorKind::IncompatibleServer { .. }
                | ErrorKind::InvalidTlsConfig { .. }
        );
        match code {
            _ if is_refusal && !self.was_let_in => ConnectorError::refused(endpoint, said),
            Some(code) if REFUSALS.contains(&code) && !self.was_let_in => {
                ConnectorError::refused(endpoint, said)
            }
            Some(code) if PASSING.contains(&code) => {
                tracing::warn!(endpoint, error = said, "MongoDB asks for time.");
                ConnectorError::Busy { endpoint: endpoint.to_owned(), after: None }
            }
            _ => ConnectorError::disconnected(endpoint, said),
        }
    }

    fn collection(&self) -> Result<Collection<RawDocumentBuf>, ConnectorError> {
        let client = self.client.as_ref();
        let client =
            client.ok_or_else(|| ConnectorError::disconnected(&self.config.endpoint, "not connected"))?;
        Ok(client.database(&self.config.database).collection(&self.config.collection))
    }

    /// Makes the collection or its index, if one is asked for.
    async fn prepare(&mut self) -> Result<(), ConnectorError> {
        let collection = self.collection()?;
        let expire_after = self.config.expire_after;
        if let Some(series) = self.config.series() {
            let database = collection.client().database(&self.config.database);
            let mut making = database.create_collection(&self.config.collection).timeseries(series);
            if let Some(after) = expire_after {
                making = making.expire_after_seconds(after);
            }
            return match self.in_time(async { making.await }).await {
                Err((Some(error), _)) if is_there(&error) => Ok(()),
                Err((_, failed)) => Err(failed),
                Ok(()) => Ok(()),
            };
        }
        if let Some(after) = expire_after {
            let mut keys = doc! {};
            keys.insert(&self.config.time_field, 1);
            let options = IndexOptions::builder().expire_after(after).build();
            let index = IndexModel::builder().keys(keys).options(options).build();
            self.in_time(async { collection.create_index(index).await })
                .await
                .map_err(|(_, failed)| failed)?;
        }
        Ok(())
    }

    /// Sends what waits, in halves if a request is not taken.
    async fn send(&mut self, next: Option<&Batch>) -> Result<(), ConnectorError> {
        let pending = self.pending.take(next);
        let mut parts = Parts::of(&pending);
        while let Some(items) = parts.next() {
            match self.insert(&pending.items[items.clone()]).await? {
                Outcome::Done { refused, n_duplicates } => {
                    let n_new = items.len().saturating_sub(refused.len() + n_duplicates);
                    self.rows.inc_by(n_new as u64);
                    self.duplicates.inc_by(n_duplicates as u64);
                    for (place, reason) in refused {
                        let at = items.start + place;
                        self.rejects.extend(pending.rejects(at..at + 1, &reason));
                    }
                }
                Outcome::Halve(_) if parts.halve(items.clone()) => {}
                Outcome::Halve(reason) => self.rejects.extend(pending.rejects(items, &reason)),
            }
        }
        Ok(())
    }

    async fn insert(&mut self, documents: &[RawDocumentBuf]) -> Result<Outcome, ConnectorError> {
        let collection = self.collection()?;
        let n_bytes: usize = documents.iter().map(|document| document.as_bytes().len()).sum();
        self.bytes.inc_by(n_bytes as u64);
        let inserting = async { collection.insert_many(documents).ordered(false).await };
        let Err((error, failed)) = self.in_time(inserting).await else {
            return Ok(Outcome::Done { refused: Vec::new(), n_duplicates: 0 });
        };
        match error.as_ref().map(|error| &*error.kind) {
            Some(ErrorKind::InsertMany(InsertManyError {
                write_errors: Some(errors),
                write_concern_error: None,
                ..
            })) => {
                if errors.iter().any(|error| PASSING.contains(&error.code)) {
                    self.count_error("busy");
                    let endpoint = self.config.endpoint.clone();
                    return Err(ConnectorError::Busy { endpoint, after: None });
                }
                let is_known =
                    |code: i32, message: &str| code == DUPLICATE_KEY && message.contains("index: _id_");
                let n_duplicates = errors.iter().filter(|error| is_known(error.code, &error.message)).count();
                let others = errors.iter().filter(|error| !is_known(error.code, &error.message));
                let refused = others
                    .map(|error| {
                        (error.index, format!("mongodb_{}: {}", error.code, excerpt(&error.message)))
                    })
                    .filter(|(place, _)| *place < documents.len())
                    .collect();
                Ok(Outcome::Done { refused, n_duplicates })
            }
            Some(ErrorKind::Command(error)) if error.code == TOO_LARGE => {
                Ok(Outcome::Halve(format!("mongodb_{}: {}", error.code, excerpt(&error.message))))
            }
            Some(ErrorKind::InvalidArgument { message, .. }) => {
                Ok(Outcome::Halve(format!("mongodb_invalid: {}", excerpt(message))))
            }
            _ => Err(failed),
        }
    }

    /// What each row becomes; the rows that cannot become anything are noted.
    fn documents(&mut self, batch: &Batch, rows: Range<usize>) -> Vec<(usize, RawDocumentBuf)> {
        let time_field = self.config.time_series.as_ref().map(|_| self.config.time_field.as_str());
        let mut maker = Maker::new(batch);
        let (mut made, mut rejects) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            match maker.make(row, time_field) {
                Ok(document) => made.push((row, document)),
                Err(reason) => rejects.push(Reject { idx: row, reason }),
            }
        }
        if !rejects.is_empty() {
            self.rejects.push((batch.clone(), rejects));
        }
        made
    }
}

fn is_there(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(error) if error.code == NAMESPACE_EXISTS)
}

#[async_trait]
impl Sink for MongodbSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.pending = Pending::default();
        self.rejects.clear();
        let refused = |reason: String| ConnectorError::refused(&self.config.endpoint, reason);
        let client = match self.client.clone() {
            Some(client) => client,
            None => {
                let options = self.config.options(&self.cx).await.map_err(refused)?;
                Client::with_options(options).map_err(|error| refused(error.kind.to_string()))?
            }
        };
        self.client = Some(client.clone());
        let database = client.database(&self.config.database);
        let ping = async { database.run_command(doc! { "ping": 1 }).await };
        self.in_time(ping).await.map_err(|(_, failed)| failed)?;
        self.prepare().await?;
        self.was_let_in = true;
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        /// So many documents are made before it is looked whether they are enough for a request.
        const AT_ONCE: usize = 256;
        self.pending.begin(batch);
        for first in (0..batch.num_rows()).step_by(AT_ONCE) {
            let rows = first..(first + AT_ONCE).min(batch.num_rows());
            for (row, document) in self.documents(batch, rows) {
                let n_bytes = document.as_bytes().len();
                self.pending.push(row, document, n_bytes);
                if self.max_bytes <= self.pending.bytes {
                    self.send(Some(batch)).await?;
                }
            }
        }
        // Rejects leave with the flush: if that fails, these rows come again.
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        self.send(None).await?;
        Ok(merge(&self.name, &std::mem::take(&mut self.rejects)))
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: self.max_bytes, age_max: self.config.batch.timeout }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        if let Some(client) = self.client.take() {
            client.shutdown().immediate(true).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::context;
    use super::*;
    use logdrive_schemas::component::{Limits, Node, parse};

    fn build(yaml: &str) -> Result<Guarantee, String> {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).map_err(|e| format!("{e:?}"))?;
        let mut errors = Vec::new();
        let config: Mongodb = parse(&node, &mut errors).ok_or_else(|| format!("{errors:?}"))?;
        let guarantee = config.guarantee();
        config.build(&context("unused".as_ref())).map(|_| guarantee).map_err(|error| error.message)
    }

    #[test]
    fn what_cannot_work_is_an_error_before_anything_runs() {
        let with =
            |endpoint: &str, rest: &str| build(&format!("endpoint: \"{endpoint}\"\ndatabase: d\n{rest}"));
        let servers = "mongodb://a:27017,b/?replicaSet=r";
        assert_eq!(with(servers, "collection: c"), Ok(Guarantee::ExactlyOnce));
        assert_eq!(with(servers, "collection: c\ntime_series: {}"), Ok(Guarantee::AtLeastOnce));
        for (endpoint, rest, named) in [
            ("http://localhost", "collection: c", "http://localhost"),
            ("mongodb+srv://localhost", "collection: c", "mongodb+srv"),
            ("mongodb://u:p@localhost", "collection: c", "credentials"),
            (servers, "collection: system.x", "system.x"),
            (servers, "collection: c\nusername: u", "password"),
            (servers, "collection: c\nexpire_after: 0s", "expire_after"),
            (servers, "collection: c\nbatch: { max_bytes: 17MiB }", "max_bytes"),
            (servers, "collection: c\ntime_field: a.b", "time_field"),
            (servers, "collection: c\ntls: { ca: none.pem }", "tls.ca"),
        ] {
            let error = with(endpoint, rest).unwrap_err();
            assert!(error.contains(named), "{endpoint} {rest}: {error}");
        }
    }
}
