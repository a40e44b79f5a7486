//! A query over the files, by Logdrive or by DataFusion, in a process of its own, as the peers run theirs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow_json::LineDelimitedWriter;
use datafusion::prelude::{JsonReadOptions, SessionConfig, SessionContext};
use futures::StreamExt;
use logdrive_compare::error::Result;
use logdrive_operators::Batches;

use crate::events::{TABLES, schema};
use crate::files::{self, Feed};
use crate::queries::Query;
use crate::run;

type Output = LineDelimitedWriter<BufWriter<File>>;

fn create(path: &Path) -> Result<Output> {
    Ok(LineDelimitedWriter::new(BufWriter::new(File::create(path)?)))
}

fn close(mut output: Output) -> Result<()> {
    output.finish()?;
    Ok(output.into_inner().flush()?)
}

/// The query as a view: lines are decoded epoch by epoch, and every change is written as a line.
///
/// # Errors
/// If a file cannot be read or written, or the view stops.
///
/// # Panics
/// If a worker does.
pub fn view(query: &Query, data: &Path, per_epoch: usize, output: &Path) -> Result<()> {
    let (view, tables) = run::plan(query).map_err(|error| error.message)?;
    let feeds = tables.iter().zip(view.reads());
    let feeds = feeds
        .map(|(table, columns)| Feed::open(data, *table, &columns, per_epoch))
        .collect::<Result<Vec<_>>>()?;
    let feeds = Arc::new(Mutex::new(feeds));
    let (writer, problem) = (Arc::new(Mutex::new(create(output)?)), Arc::new(Mutex::new(None)));
    let (of_feed, of_take) = (Arc::clone(&problem), Arc::clone(&problem));
    let feed = move || {
        let (feeds, problem) = (Arc::clone(&feeds), Arc::clone(&of_feed));
        let mut last = 0;
        std::iter::from_fn(move || {
            let mut feeds = feeds.lock().unwrap_or_else(PoisonError::into_inner);
            let rows = note(&problem, feeds.iter_mut().map(Feed::next_epoch).collect::<Result<Vec<_>>>())?;
            rows.iter().any(Option::is_some).then(|| {
                last = run::newest(rows.iter().flatten()).max(last + 1);
                (last, rows.into_iter().map(|rows| Batches(rows.into_iter().collect())).collect())
            })
        })
    };
    let of_rows = Arc::clone(&writer);
    let take = move |rows: &RecordBatch| {
        let mut writer = of_rows.lock().unwrap_or_else(PoisonError::into_inner);
        note(&of_take, writer.write(rows).map_err(Into::into));
    };
    if let Some(reason) = run::drive(&view, tables.len(), 1, feed, take) {
        return Err(reason.into());
    }
    if let Some(problem) = problem.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(problem);
    }
    let writer = Arc::into_inner(writer).ok_or("the dataflow still holds the file")?;
    close(writer.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps the first error of a dataflow, which cannot return it.
fn note<T>(problem: &Mutex<Option<logdrive_compare::error::Problem>>, result: Result<T>) -> Option<T> {
    result
        .map_err(|error| {
            problem.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        })
        .ok()
}

/// The query over the files, with DataFusion, on one thread.
///
/// # Errors
/// If DataFusion fails, or the file cannot be written.
pub fn batch(query: &Query, data: &Path, output: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        for table in TABLES {
            let schema = of_file(table);
            let options = JsonReadOptions::default().schema(&schema).file_extension(".jsonl");
            let path = files::path(data, table);
            context.register_json(table, path.to_string_lossy(), options).await?;
        }
        let mut rows = context.sql(query.over_tables()).await?.execute_stream().await?;
        let mut writer = create(output)?;
        while let Some(rows) = rows.next().await {
            writer.write(&rows?)?;
        }
        close(writer)
    })
}

/// The columns as they are in the file.
fn of_file(table: &str) -> Schema {
    let schema = schema(table);
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Timestamp(_, zone) => {
            Field::new(field.name(), DataType::Timestamp(TimeUnit::Millisecond, zone.clone()), true)
        }
        _ => field.as_ref().clone(),
    });
    Schema::new(fields.collect::<Vec<_>>())
}
