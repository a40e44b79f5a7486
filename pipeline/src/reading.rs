//! What readers see of a running pipeline, whichever way they ask: live views at one epoch, what sinks wrote to Parquet,
//! and the rows that failed last.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use logdrive_queries::Options;

use crate::topology::{Refused, View};

/// What an answer may take, in bytes: a reader must not hurt the stream.
pub(crate) const MEMORY: usize = 256 << 20;
/// How long an answer may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// What a query over these tables needs. All views are read at one epoch; those that are not read stand beside them
/// without rows, for the catalog, and for errors that know the names.
///
/// # Errors
/// If a view keeps nothing, has stopped, or the pipeline ends.
pub(crate) async fn options(view: &View, tables: &[String]) -> Result<Options, String> {
    let read: Vec<String> = tables.iter().filter(|table| view.views.has(table)).cloned().collect();
    let rows = view.views.read(&read).await?;
    let mut memory_tables = names(view);
    for (name, (_, rows)) in read.into_iter().zip(rows) {
        if let Some(table) = memory_tables.iter_mut().find(|table| table.0 == name) {
            table.2 = rows;
        }
    }
    for table in tables {
        if let (Some(rows), Some(known)) =
            (view.refused.read(table), memory_tables.iter_mut().find(|known| known.0 == *table))
        {
            known.2 = vec![rows];
        }
    }
    Ok(with(view, memory_tables))
}

/// The same without any rows: enough to plan.
pub(crate) fn without_rows(view: &View) -> Options {
    with(view, names(view))
}

/// The views and tables in memory, without rows.
fn names(view: &View) -> Vec<(String, SchemaRef, Vec<RecordBatch>)> {
    let views = view.views.tables().map(|(name, schema)| (name.to_owned(), Arc::clone(schema), Vec::new()));
    let refused = Refused::TABLES.map(|name| (name.to_owned(), Refused::schema(), Vec::new()));
    views.chain(refused).collect()
}

fn with(view: &View, memory_tables: Vec<(String, SchemaRef, Vec<RecordBatch>)>) -> Options {
    Options {
        tables: view.lakes.to_vec(),
        memory_tables,
        functions: view.functions.clone(),
        any_path: false,
        memory: MEMORY,
        timeout: TIMEOUT,
        ..Options::default()
    }
}
