//! Rows into a table of PostgreSQL.
//!
//! What was written since the last flush is one transaction: it locks the positions of the partitions that rows come
//! from, leaves out what is in the table already, copies the rest, notes how far it comes, and commits (`books` says why
//! that is exactly once). COPY takes all rows or none, so one that fails is repeated in halves behind a savepoint, until
//! the rows that are refused are alone.

mod binary;
mod books;
mod config;
mod encode;
mod link;
mod table;
mod text;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::BooleanArray;
use async_trait::async_trait;
use bytes::Bytes;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch, Reject};
use prometheus::IntCounter;

use self::books::Books;
pub use self::config::{Postgres, PostgresBatch};
use self::encode::{HEAD, Rows, TAIL};
use self::link::{Address, Link, Trouble};
use self::table::{Shape, Table, TableName};
use super::http_rejects::{Refused, merge};
use super::pending::{Parts, identity};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// One COPY is not larger, but for the batch that it ends with.
const COPY_BYTES: usize = 4 << 20;
/// How often positions are looked through for old ones.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

impl Component for Postgres {
    const NAME: &'static str = "postgres";
    const EXAMPLE: &'static str = r#"
type: postgres
from: [events]
endpoint: "postgresql://localhost:5432/logs"
username: logdrive
table: events
create_table: true
"#;
}

impl SinkConfig for Postgres {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn reads(&self) -> Reads {
        match self.columns.is_empty() {
            true => Reads::AllColumns,
            false => Reads::Document(self.columns.clone()),
        }
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        self.check()?;
        let labels = &[&*cx.name];
        Ok(Box::new(PostgresSink {
            address: self.address(cx)?,
            table: self.table()?,
            writer: self.writer.clone().unwrap_or_else(|| cx.name.to_string()),
            name: Arc::clone(&cx.name),
            session: None,
            was_let_in: false,
            has_delivered: false,
            batches: Vec::new(),
            pruned_at: Instant::now(),
            rows: cx.metrics.sink_rows.with_label_values(labels),
            bytes: cx.metrics.sink_bytes.with_label_values(labels),
            duplicates: cx.metrics.sink_duplicates.with_label_values(labels),
            retried: cx.metrics.sink_retried_rows.with_label_values(labels),
            config: self,
        }))
    }
}

struct PostgresSink {
    config: Postgres,
    address: Address,
    table: TableName,
    writer: String,
    name: Arc<str>,
    /// `None` until connected, and after every error: what was begun is then undone by the server.
    session: Option<Session>,
    /// What the server refuses now may pass.
    was_let_in: bool,
    has_delivered: bool,
    /// Since the last flush; bounded by its policy.
    batches: Vec<Batch>,
    pruned_at: Instant,
    rows: IntCounter,
    bytes: IntCounter,
    duplicates: IntCounter,
    retried: IntCounter,
}

/// A connection, and what is known of the table.
struct Session {
    link: Link,
    table: Table,
    books: Books,
}

/// What a transaction brought.
#[derive(Default)]
struct Outcome {
    n_rows: u64,
    n_duplicates: u64,
    refused: Refused,
}

impl PostgresSink {
    /// Connects and looks at the table. What went wrong, and whether that has worked before.
    async fn open(&mut self) -> Result<Session, (Trouble, bool)> {
        let link = Link::open(&self.address).await.map_err(|trouble| (trouble, self.was_let_in))?;
        self.was_let_in = true;
        let opened = async {
            let table = Table::open(&link, self.table.clone(), self.config.create_table).await?;
            let books = Books::new(&self.writer, &table.schema, table.quoted());
            books.open(&link).await?;
            Ok((table, books))
        };
        let (table, books) = opened.await.map_err(|trouble| (trouble, self.has_delivered))?;
        Ok(Session { link, table, books })
    }

    /// What every transaction begins with. Settings are of the transaction, so that a pool of connections in between
    /// does not matter.
    fn begin(&self) -> String {
        let millis = self.config.timeout.as_millis();
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {millis}; \
             SET LOCAL idle_in_transaction_session_timeout = {millis}; SET LOCAL client_min_messages = warning; \
             SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET CONSTRAINTS ALL IMMEDIATE; \
             SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )
    }

    /// One transaction with all that was written.
    async fn deliver(&self, session: &mut Session) -> Result<Outcome, Trouble> {
        let mut shapes = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            shapes.push(session.table.shape(&session.link, &batch.schema(), &self.config).await?);
        }
        let Session { link, table, books } = session;
        link.run(&self.begin()).await?;
        table.check(link).await?;
        let marks = books.lock(link, &self.batches).await?;
        let mut new = books.claim(link, &self.batches).await?;
        let mut outcome = Outcome::default();
        let mut skipped: Vec<(usize, usize, u128)> = Vec::new();
        let mut rows = Rows::default();
        let mut last: Option<&Arc<Shape>> = None;
        for (number, (batch, shape)) in self.batches.iter().zip(&shapes).enumerate() {
            let is_fresh = fresh(batch, marks.of(batch.origin()), &mut new);
            let known = (0..batch.num_rows()).filter(|row| !is_fresh.value(*row));
            skipped.extend(known.map(|row| (number, row, identity(batch, row))));
            // No column has a type that cannot be filtered.
            let filtered = batch.filter(&is_fresh).map_err(|error| Trouble::Lost(error.into()))?;
            let Some(batch) = filtered else { continue };
            if let Some(last) = last.filter(|last| COPY_BYTES <= rows.data.len() || !Arc::ptr_eq(last, shape))
            {
                self.copy(link, last, std::mem::take(&mut rows), &mut outcome).await?;
            }
            rows.add(&batch, shape, &mut outcome.refused);
            last = Some(shape);
        }
        if let Some(last) = last {
            self.copy(link, last, rows, &mut outcome).await?;
        }
        books.note(link, &self.batches, &outcome.refused).await?;
        let again = books.refused(link, skipped.iter().map(|(_, _, id)| *id)).await?;
        outcome.n_duplicates = skipped.len() as u64;
        outcome.refused.extend(self.refused_before(&skipped, &again));
        link.run("COMMIT").await?;
        Ok(outcome)
    }

    /// Rejects of an earlier transaction: whether they arrived is not known here, and whoever has them knows them.
    fn refused_before(&self, skipped: &[(usize, usize, u128)], reasons: &HashMap<u128, String>) -> Refused {
        let mut groups: Vec<(usize, Vec<Reject>)> = Vec::new();
        for (number, idx, id) in skipped {
            let Some(reason) = reasons.get(id) else { continue };
            let reject = Reject { idx: *idx, reason: reason.clone() };
            match groups.last_mut() {
                Some((last, group)) if last == number => group.push(reject),
                _ => groups.push((*number, vec![reject])),
            }
        }
        groups.into_iter().map(|(number, group)| (self.batches[number].clone(), group)).collect()
    }

    /// Copies rows, in halves if not all of them are taken.
    async fn copy(
        &self,
        link: &Link,
        shape: &Shape,
        rows: Rows,
        outcome: &mut Outcome,
    ) -> Result<(), Trouble> {
        let Rows { data, pending } = rows;
        let data = Bytes::from(data);
        let mut parts = Parts::of(&pending);
        let mut is_again = false;
        while let Some(items) = parts.next() {
            let start = items.start.checked_sub(1).map_or(0, |before| pending.items[before]);
            let part = data.slice(start..pending.items[items.end - 1]);
            self.bytes.inc_by(part.len() as u64);
            if is_again {
                self.retried.inc_by(items.len() as u64);
            }
            let (head, tail) = if shape.is_binary { (HEAD, TAIL) } else { (&b""[..], &b""[..]) };
            link.run("SAVEPOINT logdrive").await?;
            let parts_of_copy = [Bytes::from_static(head), part, Bytes::from_static(tail)];
            match link.copy(&shape.statement, parts_of_copy).await {
                Ok(()) => {
                    link.run("RELEASE SAVEPOINT logdrive").await?;
                    outcome.n_rows += items.len() as u64;
                }
                Err(Trouble::Rows(reason)) => {
                    link.run("ROLLBACK TO SAVEPOINT logdrive; RELEASE SAVEPOINT logdrive").await?;
                    is_again = true;
                    if !parts.halve(items.clone()) {
                        outcome.refused.extend(pending.rejects(items, &reason));
                    }
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Forgets old positions. That it fails is nobody's loss.
    async fn prune(&mut self) {
        self.pruned_at = Instant::now();
        let Some(Session { link, books, .. }) = &self.session else { return };
        if let Err(trouble) = books.prune(link, self.config.remember).await {
            tracing::warn!(sink = %self.name, ?trouble, "Cannot remove old positions; trying again later.");
        }
    }
}

/// Which rows are not in the table yet. Of those without an order, each is new once.
fn fresh(batch: &Batch, mark: i128, new: &mut HashSet<u128>) -> BooleanArray {
    let offsets = batch.offsets().values();
    match batch.origin().ordered {
        true => offsets.iter().map(|offset| Some(mark < i128::from(*offset))).collect(),
        false => (0..offsets.len()).map(|row| Some(new.remove(&identity(batch, row)))).collect(),
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        self.session = None;
        self.batches.clear();
        let opened = self.open().await;
        self.session = Some(
            opened.map_err(|(trouble, has_worked)| trouble.into_error(&self.address.endpoint, has_worked))?,
        );
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        self.batches.push(batch.clone());
        Ok(None)
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        if self.batches.is_empty() {
            return Ok(None);
        }
        // Taken out while it is not known how far the transaction got: any error ends in `connect`.
        let Some(mut session) = self.session.take() else {
            return Err(ConnectorError::disconnected(&*self.address.endpoint, "not connected"));
        };
        let delivered = self.deliver(&mut session).await;
        let outcome =
            delivered.map_err(|trouble| trouble.into_error(&self.address.endpoint, self.has_delivered))?;
        self.has_delivered = true;
        self.session = Some(session);
        self.batches.clear();
        self.rows.inc_by(outcome.n_rows);
        self.duplicates.inc_by(outcome.n_duplicates);
        // Not at the start: what was not committed before a long rest is repeated first.
        if PRUNE_EVERY <= self.pruned_at.elapsed() {
            self.prune().await;
        }
        Ok(merge(&self.name, &outcome.refused))
    }

    fn flush_policy(&self) -> FlushPolicy {
        let bytes_max = usize::try_from(self.config.batch.max_bytes).unwrap_or(usize::MAX);
        FlushPolicy { bytes_max, age_max: self.config.batch.timeout }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        self.prune().await;
        self.session = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::context;
    use super::*;
    use logdrive_schemas::component::{Limits, Node, parse};

    fn build(yaml: &str) -> Result<Reads, String> {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).map_err(|e| format!("{e:?}"))?;
        let mut errors = Vec::new();
        let config: Postgres = parse(&node, &mut errors).ok_or_else(|| format!("{errors:?}"))?;
        let reads = config.reads();
        config.build(&context("unused".as_ref())).map(|_| reads).map_err(|error| error.message)
    }

    #[test]
    fn what_cannot_work_is_an_error_before_anything_runs() {
        let with = |endpoint: &str, rest: &str| build(&format!("endpoint: \"{endpoint}\"\n{rest}"));
        let server = "postgresql://localhost:5432/logs";
        assert_eq!(with(server, "table: a.b"), Ok(Reads::AllColumns));
        assert_eq!(with("postgresql://a,b:6000/logs", "table: t\ntls: {}"), Ok(Reads::AllColumns));
        let columns = Reads::Document(vec!["a".into()]);
        assert_eq!(with("postgresql://%2Frun%2Fpostgresql/logs", "table: t\ncolumns: [a]"), Ok(columns));
        for (endpoint, rest, named) in [
            ("mysql://localhost", "table: t", "mysql://localhost"),
            ("postgresql://u:p@localhost/x", "table: t", "credentials"),
            ("postgresql://localhost/x?password=p", "table: t", "credentials"),
            ("postgresql:///x", "table: t", "no address"),
            ("postgresql://localhost/x?sslmode=require", "table: t", "tls"),
            (server, "table: a.b.c", "a.b.c"),
            (server, "table: t\nbatch: { max_bytes: 0 }", "max_bytes"),
            (server, "table: t\ntimeout: 1ms", "timeout"),
            (server, "table: t\nremember: 1s", "remember"),
            (server, "table: t\nwriter: \"\"", "writer"),
            (server, "table: t\ncolumns: [\"\"]", "column"),
        ] {
            let error = with(endpoint, rest).unwrap_err();
            assert!(error.contains(named), "{endpoint} {rest}: {error}");
        }
    }
}
