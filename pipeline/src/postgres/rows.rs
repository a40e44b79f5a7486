//! The rows of an answer on their way to a client: made as the client takes them, and stopped when it asks.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringViewArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use bytes::BytesMut;
use futures::{Stream, stream};
use logdrive_queries::{Rows, SqlError};
use pgwire::api::results::FieldFormat;
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;

use super::connection::Connection;
use super::encode::Cells;
use super::error::{error_with_hint, of_sql};
use crate::following::{Ended, Follower};
use crate::topology::Event;

/// Where rows come from.
pub(super) enum Origin {
    /// A query.
    Query(Rows),
    /// The changes of a view.
    Changes(Box<Follower>),
    /// Rows that are there.
    Fixed(Option<RecordBatch>),
}

/// Rows on their way.
pub(super) struct Sent {
    pub(super) origin: Origin,
    /// The columns that the client was told.
    pub(super) told: SchemaRef,
    pub(super) formats: Vec<FieldFormat>,
    pub(super) connection: Arc<Connection>,
    /// The client's text, and where the statement begins in it: for errors.
    pub(super) text: Arc<str>,
    pub(super) start: usize,
    cells: Option<(Cells, usize)>,
}

impl Sent {
    pub(super) fn new(
        origin: Origin,
        told: SchemaRef,
        formats: Vec<FieldFormat>,
        connection: &Arc<Connection>,
        (text, start): (&Arc<str>, usize),
    ) -> Self {
        let (connection, text) = (Arc::clone(connection), Arc::clone(text));
        Self { origin, told, formats, connection, text, start, cells: None }
    }

    /// The next row.
    async fn next(&mut self) -> PgWireResult<Option<DataRow>> {
        Ok(self.advance().await?.map(|(cells, row)| cells.row(row)))
    }

    /// The next row as `COPY` writes it.
    pub(super) async fn copied(&mut self) -> PgWireResult<Option<BytesMut>> {
        Ok(self.advance().await?.map(|(cells, row)| cells.copied(row)))
    }

    async fn advance(&mut self) -> PgWireResult<Option<(&Cells, usize)>> {
        while self.cells.as_ref().is_none_or(|(cells, row)| *row >= cells.n_rows()) {
            let stopped = self.connection.running();
            let next = tokio::select! {
                biased;
                () = stopped.cancelled() => return Err(PgWireError::QueryCanceled),
                next = self.origin.next(&self.told) => next,
            };
            let batch = match next {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ok(None),
                Err(Ended::Failed(error)) => return Err(of_sql(error, &self.text, self.start)),
                Err(Ended::Lost(why)) => return Err(lost(&why)),
            };
            self.cells = Some((
                Cells::new(&batch, &self.told, &self.formats).map_err(|error| self.failed(&error))?,
                0,
            ));
        }
        let (cells, row) = self.cells.as_mut().expect("the loop ends with a row that is left");
        *row += 1;
        Ok(Some((cells, *row - 1)))
    }

    fn failed(&self, error: &ArrowError) -> PgWireError {
        of_sql(crate::following::failed("sql::failed", &error.to_string()), &self.text, self.start)
    }

    /// As the protocol's library wants it.
    pub(super) fn stream(self) -> impl Stream<Item = PgWireResult<DataRow>> + Send {
        stream::unfold(self, |mut sent| async move {
            let row = sent.next().await.transpose()?;
            Some((row, sent))
        })
    }
}

/// A subscriber must begin anew.
pub(super) fn lost(why: &str) -> PgWireError {
    error_with_hint("72000", why, "forget what was told, and subscribe again without a token")
}

impl Origin {
    /// Dropping the future loses nothing.
    async fn next(&mut self, told: &SchemaRef) -> Result<Option<RecordBatch>, Ended> {
        match self {
            Self::Query(rows) => rows.next().await.map_err(Ended::Failed),
            Self::Fixed(rows) => Ok(rows.take()),
            Self::Changes(follower) => {
                let Some(event) = follower.next().await? else { return Ok(None) };
                let rows = match event {
                    Event::Resync(why) => return Err(Ended::Lost(why)),
                    Event::Progress { epoch, token } => progress(told, epoch, &token),
                    Event::Rows(batches) => changes(told, &batches),
                };
                let failed = |error: ArrowError| SqlError {
                    code: "sql::failed",
                    message: error.to_string(),
                    help: None,
                    at: None,
                };
                rows.map(Some).map_err(|error| Ended::Failed(failed(error)))
            }
        }
    }
}

/// The columns of a subscription: what a row is, and then those of the view.
pub(super) fn subscription_schema(columns: &SchemaRef) -> SchemaRef {
    let mut fields = vec![
        Arc::new(Field::new("_epoch", DataType::Int64, false)),
        Arc::new(Field::new("_progress", DataType::Boolean, false)),
        Arc::new(Field::new("_token", DataType::Utf8View, true)),
        Arc::new(Field::new("_change", DataType::Utf8View, true)),
    ];
    fields.extend(columns.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true))));
    Arc::new(Schema::new(fields))
}

fn progress(schema: &SchemaRef, epoch: u64, token: &str) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![i64::try_from(epoch).unwrap_or(i64::MAX)])),
        Arc::new(BooleanArray::from(vec![true])),
        Arc::new(StringViewArray::from(vec![token])),
    ];
    columns.extend(schema.fields()[3..].iter().map(|field| new_null_array(field.data_type(), 1)));
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn changes(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let one = |rows: &RecordBatch| {
        let n_rows = rows.num_rows();
        let (columns, [change, epoch]) = rows
            .columns()
            .split_last_chunk()
            .ok_or_else(|| ArrowError::SchemaError("changes of a view have no epoch".into()))?;
        let mut all: Vec<ArrayRef> = vec![
            Arc::clone(epoch),
            Arc::new(BooleanArray::from(vec![false; n_rows])),
            new_null_array(&DataType::Utf8View, n_rows),
            Arc::clone(change),
        ];
        all.extend(columns.iter().cloned());
        RecordBatch::try_new(Arc::clone(schema), all)
    };
    let batches: Vec<RecordBatch> = batches.iter().map(one).collect::<Result<_, _>>()?;
    arrow::compute::concat_batches(schema, &batches)
}
