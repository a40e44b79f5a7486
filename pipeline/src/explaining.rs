//! `EXPLAIN VIEW`, `EXPLAIN ANALYZE VIEW` and `EXPLAIN WATERMARK`: the same answer over HTTP, the PostgreSQL protocol and
//! `logdrive sql`.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::SchemaRef;
use logdrive_queries::SqlError;
use logdrive_queries::postgres::{Command, Explained};

use crate::following::unknown_view;
use crate::topology::View;
use crate::topology::profile::{Kept, Operator};

/// The answer to a statement that asks how a view is computed; `None` if it asks for something else.
///
/// # Errors
/// If there is no such view.
pub(crate) fn explained(view: &View, command: &Command) -> Option<Result<RecordBatch, SqlError>> {
    let Command::Explain { what, view: name } = command else { return None };
    Some(answer(view, *what, name))
}

/// The columns of such an answer.
///
/// # Errors
/// If there is no such view.
pub(crate) fn columns(view: &View, command: &Command) -> Option<Result<SchemaRef, SqlError>> {
    explained(view, command).map(|answer| answer.map(|rows| rows.schema()))
}

fn answer(view: &View, what: Explained, name: &str) -> Result<RecordBatch, SqlError> {
    let views = &view.views;
    let text = views.explain(name).ok_or_else(|| unknown_view(view, name))?;
    let columns: Vec<(&str, ArrayRef)> = match what {
        Explained::Plan => vec![("plan", Arc::new(text.lines().map(Some).collect::<StringArray>()))],
        Explained::Watermark => {
            let progress = views.progress().remove(name).unwrap_or_default();
            let watermark = TimestampMillisecondArray::from(vec![progress.watermark_ms]).with_timezone("UTC");
            vec![
                ("view", Arc::new(StringArray::from(vec![name]))),
                ("watermark", Arc::new(watermark)),
                ("held_back_by_source", Arc::new(StringArray::from(vec![progress.source]))),
                ("held_back_by_partition", Arc::new(StringArray::from(vec![progress.partition]))),
            ]
        }
        Explained::Analyze => profiled(view, name),
    };
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .map_err(|error| SqlError { code: "sql::failed", message: error.to_string(), help: None, at: None })
}

/// One row for each operator, and one for all that the view keeps.
fn profiled(view: &View, name: &str) -> Vec<(&'static str, ArrayRef)> {
    let operators = view.views.profile().of(name);
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let kept =
        |of: &Operator, what: fn(&Kept) -> usize| of.kept.as_ref().map(|kept| number(what(kept) as u64));
    let of_all = |what| Some(operators.iter().filter_map(|of| kept(of, what)).sum());
    let column = |what: fn(&Kept) -> usize| -> Int64Array {
        operators.iter().map(|of| kept(of, what)).chain([of_all(what)]).collect()
    };
    let indented = operators.iter().map(|of| format!("{:indent$}{}", "", of.name, indent = 2 * of.depth));
    let names: StringArray = indented.chain(["all state".to_owned()]).map(Some).collect();
    let rows: Int64Array = operators.iter().map(|of| Some(number(of.rows))).chain([None]).collect();
    let runs: Int64Array = operators.iter().map(|of| Some(number(of.runs))).chain([None]).collect();
    let time = operators.iter().map(|of| Some(of.time.as_secs_f64() * 1_000.0));
    let time: Float64Array = time.chain([None]).collect();
    vec![
        ("operator", Arc::new(names)),
        ("rows", Arc::new(rows)),
        ("runs", Arc::new(runs)),
        ("time_ms", Arc::new(time)),
        ("kept_rows", Arc::new(column(|kept| kept.rows))),
        ("kept_bytes", Arc::new(column(|kept| kept.bytes))),
    ]
}
