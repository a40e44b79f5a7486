//! `GET /v1/views/NAME/changes`: a snapshot of a view, then its changes, as NDJSON or as server-sent events.
//!
//! Rows have `_change` (`insert` or `delete`) and `_epoch`. A progress message says that everything before its `_epoch`
//! was told; with its `_token` a reader goes on after it was disconnected (`?token=…`, or `Last-Event-ID`). A message
//! with `_resync` says that what was told before must be forgotten; a snapshot follows.

use std::collections::HashMap;
use std::convert::Infallible;

use arrow::json::{LineDelimitedWriter, WriterBuilder, writer::LineDelimited};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde_json::json;

use super::sql::{described, refused};
use crate::following::{Ended, Follower, Wanted};
use crate::topology::{Event, View};

/// What a reader is told, as it is written.
#[derive(Clone, Copy)]
enum Form {
    Lines,
    Events,
}

pub(super) async fn answer(
    State(view): State<View>,
    Path(name): Path<String>,
    Query(parameters): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let header = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let form = match header(header::ACCEPT) {
        Some(accept) if accept.contains("event-stream") => Form::Events,
        _ => Form::Lines,
    };
    let token = parameters.get("token").map(String::as_str);
    let token = token.or_else(|| header(header::HeaderName::from_static("last-event-id")));
    let follower = match Wanted::view(&view, &name) {
        Ok(wanted) => Follower::open(&view, wanted.clone(), token).await.map(|follower| (wanted, follower)),
        Err(error) => return refused(StatusCode::NOT_FOUND, &described(&error)),
    };
    let (wanted, follower) = match follower {
        Ok(opened) => opened,
        Err(error) => return refused(StatusCode::CONFLICT, &described(&error)),
    };
    let told = Told { view, wanted, follower: Some(follower), form };
    let messages = stream::unfold(told, |mut told| async move {
        let message = told.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(message)), told))
    });
    let kind = match form {
        Form::Lines => "application/x-ndjson",
        Form::Events => "text/event-stream",
    };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], Body::from_stream(messages))
        .into_response()
}

struct Told {
    view: View,
    wanted: Wanted,
    /// `None` when nothing more comes.
    follower: Option<Follower>,
    form: Form,
}

impl Told {
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match self.follower.as_mut()?.next().await {
            Ok(Some(event)) => self.write(event, &mut out),
            Ok(None) => {
                self.follower = None;
                return None;
            }
            Err(Ended::Lost(why)) => {
                // The old one is let go of first: what it held back is not needed any more.
                self.follower = None;
                self.write(Event::Resync(why), &mut out);
                match Follower::open(&self.view, self.wanted.clone(), None).await {
                    Ok(follower) => self.follower = Some(follower),
                    Err(error) => self.message("error", None, &described(&error), &mut out),
                }
            }
            Err(Ended::Failed(error)) => {
                self.follower = None;
                self.message("error", None, &json!({ "_error": described(&error) }), &mut out);
            }
        }
        Some(out)
    }

    fn write(&self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Resync(why) => self.message("resync", None, &json!({ "_resync": why }), out),
            Event::Progress { epoch, token } => {
                let progress = json!({ "_progress": true, "_epoch": epoch, "_token": token });
                self.message("progress", Some(&token), &progress, out);
            }
            Event::Rows(batches) => {
                let builder = WriterBuilder::new().with_explicit_nulls(true);
                let mut lines: LineDelimitedWriter<Vec<u8>> = builder.build::<_, LineDelimited>(Vec::new());
                let written =
                    batches.iter().try_for_each(|rows| lines.write(rows)).and_then(|()| lines.finish());
                if let Err(error) = written {
                    self.message("error", None, &json!({ "_error": error.to_string() }), out);
                    return;
                }
                let lines = lines.into_inner();
                match self.form {
                    Form::Lines => out.extend(lines),
                    Form::Events => {
                        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                            event_of("change", None, line, out);
                        }
                    }
                }
            }
        }
    }

    fn message(&self, kind: &str, id: Option<&str>, message: &serde_json::Value, out: &mut Vec<u8>) {
        let message = message.to_string();
        match self.form {
            Form::Lines => {
                out.extend(message.into_bytes());
                out.push(b'\n');
            }
            Form::Events => event_of(kind, id, message.as_bytes(), out),
        }
    }
}

fn event_of(kind: &str, id: Option<&str>, data: &[u8], out: &mut Vec<u8>) {
    if let Some(id) = id {
        out.extend(format!("id: {id}\n").into_bytes());
    }
    out.extend(format!("event: {kind}\ndata: ").into_bytes());
    out.extend(data);
    out.extend(b"\n\n");
}
