//! `POST /v1/sql`: one query over live views and the Parquet files that the pipeline writes.

use arrow::ipc::writer::StreamWriter;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use logdrive_queries::postgres::command;
use logdrive_queries::{Answer, SqlError, query, to_csv, to_json, views};
use serde_json::json;

use crate::explaining::explained;
use crate::reading;
use crate::topology::View;

/// Answers the query in the body. `Accept` chooses between NDJSON (the default), `text/csv` and Arrow IPC
/// (`application/vnd.apache.arrow.stream`). Paths cannot be named: the API is not a way to read files.
pub(super) async fn answer(State(view): State<View>, headers: HeaderMap, sql: String) -> Response {
    let answered = rows(&view, &sql).await;
    count(&view, answered.is_ok());
    let answer = match answered {
        Ok(answer) => answer,
        Err(refusal) => return refusal,
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

/// The rows that a statement asks for, or why there are none.
async fn rows(view: &View, sql: &str) -> Result<Answer, Response> {
    let failed = |error: SqlError| refused(StatusCode::BAD_REQUEST, &described(&error));
    if let Some(explained) = command(sql).ok().and_then(|command| explained(view, &command)) {
        let rows = explained.map_err(failed)?;
        return Ok(Answer { schema: rows.schema(), batches: vec![rows] });
    }
    let options = reading::options(view, &views::tables(sql))
        .await
        .map_err(|why| refused(StatusCode::CONFLICT, &json!({ "code": "sql::view", "message": why })))?;
    query(sql, &options).await.map_err(failed)
}

fn count(view: &View, is_answered: bool) {
    let outcome = if is_answered { "ok" } else { "error" };
    view.metrics.reader_statements.with_label_values(&["http", outcome]).inc();
}

pub(super) fn described(error: &SqlError) -> serde_json::Value {
    let at = error.at.map(|(start, len)| json!({ "start": start, "length": len }));
    json!({ "code": error.code, "message": error.message, "help": error.help, "at": at })
}

pub(super) fn refused(status: StatusCode, error: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{error}\n")).into_response()
}

fn to_ipc(answer: &Answer) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &answer.schema)?;
    answer.batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.into_inner()
}
