//! `POST /v1/sql`: one query over live views and the Parquet files that the pipeline writes.

use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::writer::StreamWriter;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use logdrive_queries::{Answer, Options, SqlError, query, to_csv, to_json, views};
use serde_json::json;

use crate::topology::View;

/// What an answer may take, in bytes and seconds: a reader must not hurt the stream.
const MEMORY: usize = 256 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Answers the query in the body. `Accept` chooses between NDJSON (the default), `text/csv` and Arrow IPC
/// (`application/vnd.apache.arrow.stream`). Paths cannot be named: the API is not a way to read files.
pub(super) async fn answer(State(view): State<View>, headers: HeaderMap, sql: String) -> Response {
    let read: Vec<String> = views::tables(&sql).into_iter().filter(|table| view.views.has(table)).collect();
    let rows = match view.views.read(&read).await {
        Ok(rows) => rows,
        Err(why) => return refused(StatusCode::CONFLICT, &json!({ "code": "sql::view", "message": why })),
    };
    // Those that are not read stand beside them for SHOW TABLES, and for errors that know the names.
    let others = view.views.tables().filter(|(name, _)| !read.iter().any(|read| read == name));
    let others: Vec<_> =
        others.map(|(name, schema)| (name.to_owned(), Arc::clone(schema), Vec::new())).collect();
    let memory_tables =
        read.into_iter().zip(rows).map(|(name, (schema, rows))| (name, schema, rows)).chain(others);
    let options = Options {
        tables: view.lakes.to_vec(),
        memory_tables: memory_tables.collect(),
        any_path: false,
        memory: MEMORY,
        timeout: TIMEOUT,
        ..Options::default()
    };
    let answer = match query(&sql, &options).await {
        Ok(answer) => answer,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &described(&error)),
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (kind, body) = if accept.contains("csv") {
        ("text/csv", to_csv(&answer).map(String::into_bytes))
    } else if accept.contains("arrow") {
        ("application/vnd.apache.arrow.stream", to_ipc(&answer))
    } else {
        ("application/x-ndjson", to_json(&answer).map(String::into_bytes))
    };
    match body {
        Ok(body) => ([(header::CONTENT_TYPE, kind)], body).into_response(),
        Err(e) => {
            let error = json!({ "code": "sql::failed", "message": e.to_string() });
            refused(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    }
}

fn described(error: &SqlError) -> serde_json::Value {
    let at = error.at.map(|(start, len)| json!({ "start": start, "length": len }));
    json!({ "code": error.code, "message": error.message, "help": error.help, "at": at })
}

fn refused(status: StatusCode, error: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{error}\n")).into_response()
}

fn to_ipc(answer: &Answer) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &answer.schema)?;
    answer.batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.into_inner()
}
