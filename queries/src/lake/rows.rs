//! Answers whose rows go on as they come, and what an answer looks like before there is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::EmptyRecordBatchStream;
use futures::TryStreamExt;
use tokio::sync::{mpsc, oneshot};

use super::error::Failure;
use super::{Options, Prepared, SqlError, apart, broken, execute, on_thread, planned, too_slow, with_values};
use crate::compiler::Positions;

/// The rows of an answer, as they come. Dropping it stops the query.
#[derive(Debug)]
pub struct Rows {
    schema: SchemaRef,
    batches: mpsc::Receiver<Result<RecordBatch, SqlError>>,
    timeout: Duration,
    /// What is left of it. Only the time in which somebody waits for rows counts.
    left: Duration,
}

impl Rows {
    /// The columns.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows; nothing when there are no more.
    ///
    /// # Errors
    /// If the query fails, or takes too long.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, SqlError> {
        let asked = Instant::now();
        let next = tokio::time::timeout(self.left, self.batches.recv()).await;
        self.left = self.left.saturating_sub(asked.elapsed());
        match next {
            Ok(next) => next.transpose(),
            Err(_) => Err(too_slow(self.timeout)),
        }
    }
}

/// Answers one statement like [`super::query`], but gives its rows as they come, however many there are: what `memory`
/// bounds is the sorting, grouping and joining.
///
/// # Errors
/// As for [`super::query`], as far as it is known before the first row.
pub async fn stream(sql: &str, options: &Options) -> Result<Rows, SqlError> {
    let (opened, opening) = oneshot::channel();
    // Waiting rows are one batch, and one that is being made.
    let (sender, batches) = mpsc::channel(1);
    let (runtime, sql, owned) = (tokio::runtime::Handle::current(), sql.to_owned(), options.clone());
    let began = Instant::now();
    on_thread(move || {
        let watched = sender.clone();
        runtime.block_on(async {
            tokio::select! {
                () = run(&sql, &owned, opened, sender) => {}
                // Nobody waits for rows any more.
                () = watched.closed() => {}
            }
        });
    })?;
    let schema = match tokio::time::timeout(options.timeout, opening).await {
        Ok(Ok(schema)) => schema?,
        Ok(Err(_)) => return Err(broken()),
        Err(_) => return Err(too_slow(options.timeout)),
    };
    let left = options.timeout.saturating_sub(began.elapsed());
    Ok(Rows { schema, batches, timeout: options.timeout, left })
}

async fn run(
    sql: &str,
    options: &Options,
    opened: oneshot::Sender<Result<SchemaRef, SqlError>>,
    sender: mpsc::Sender<Result<RecordBatch, SqlError>>,
) {
    let positions = Positions::new(sql);
    // Who does not listen any more wants no rows either.
    let mut rows = match open(sql, options, &positions).await {
        Ok((schema, rows)) => {
            if opened.send(Ok(schema)).is_err() {
                return;
            }
            rows
        }
        Err(error) => return drop(opened.send(Err(error))),
    };
    loop {
        let next = match rows.try_next().await {
            Ok(Some(batch)) if batch.num_rows() == 0 => continue,
            Ok(Some(batch)) => Ok(batch),
            Ok(None) => return,
            Err(error) => Err(Failure::of(&error, &positions).into_error()),
        };
        let is_end = next.is_err();
        if sender.send(next).await.is_err() || is_end {
            return;
        }
    }
}

async fn open(
    sql: &str,
    options: &Options,
    positions: &Positions<'_>,
) -> Result<(SchemaRef, SendableRecordBatchStream), SqlError> {
    let prepared = Prepared::parse(sql, options, positions)?;
    let opened = match execute(&prepared, options, positions).await {
        Err(Failure::Vanished(_)) => execute(&prepared, options, positions).await,
        result => result,
    };
    let rows = match opened.map_err(Failure::into_error) {
        Ok(rows) => rows,
        Err(error) => nothing(&prepared).ok_or(error)?,
    };
    Ok((prepared.named(rows.schema()), rows))
}

/// What a client gets that looks for what never is here, in a way that cannot be planned: nothing.
fn nothing(prepared: &Prepared) -> Option<SendableRecordBatchStream> {
    let schema = nothing_of(prepared)?;
    Some(Box::pin(EmptyRecordBatchStream::new(schema)))
}

fn nothing_of(prepared: &Prepared) -> Option<SchemaRef> {
    let rewritten = &prepared.rewritten;
    if !rewritten.empty || !rewritten.tables.is_empty() || rewritten.columns.is_empty() {
        return None;
    }
    let field = |name: &Option<String>| {
        arrow::datatypes::Field::new(name.as_deref().unwrap_or("?column?"), DataType::Utf8, true)
    };
    Some(Arc::new(Schema::new(rewritten.columns.iter().map(field).collect::<Vec<_>>())))
}

/// What an answer will look like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The columns.
    pub schema: SchemaRef,
    /// The types of `$1`, `$2` and so on, as far as the statement says.
    pub parameters: Vec<Option<DataType>>,
}

/// Plans a statement without running it; tables need no rows, and parameters no values, but their types say which
/// columns come out.
///
/// # Errors
/// As for [`super::query`], as far as it is known before it runs.
pub async fn shape(sql: &str, options: &Options) -> Result<Shape, SqlError> {
    let (sql, owned) = (sql.to_owned(), options.clone());
    apart(options.timeout, async move || shape_here(&sql, &owned).await).await
}

async fn shape_here(sql: &str, options: &Options) -> Result<Shape, SqlError> {
    let positions = Positions::new(sql);
    let prepared = Prepared::parse(sql, options, &positions)?;
    let mut plan = match planned(&prepared, options, &positions).await {
        Ok((_, plan)) => plan,
        Err(failure) => {
            let schema = nothing_of(&prepared).ok_or_else(|| failure.into_error())?;
            return Ok(Shape { schema, parameters: Vec::new() });
        }
    };
    let found = plan.get_parameter_types();
    let found = found.map_err(|error| Failure::of(&error, &positions).into_error())?;
    let mut parameters = Vec::new();
    for (name, data_type) in found {
        let place =
            name.trim_start_matches('$').parse::<usize>().ok().filter(|place| (1..=1000).contains(place));
        let Some(place) = place else {
            return Err(SqlError::new("sql::syntax", format!("`{name}` is no parameter"))
                .help("parameters are $1, $2 and so on"));
        };
        if parameters.len() < place {
            parameters.resize(place, None);
        }
        parameters[place - 1] = data_type;
    }
    plan = with_values(plan, options).map_err(|error| Failure::of(&error, &positions).into_error())?;
    let schema = Arc::new(plan.schema().as_arrow().clone());
    Ok(Shape { schema: prepared.named(schema), parameters })
}
