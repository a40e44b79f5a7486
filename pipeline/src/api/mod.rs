//! The HTTP API of a running pipeline: metrics, health, and a look inside.

pub mod status;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::stream;
use prometheus::TextEncoder;
use tokio::net::TcpListener;

use crate::topology::View;
use status::Status;

/// Serves the API until the pipeline's process ends; returns the bound address.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(listen: SocketAddr, view: View) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let bound = listener.local_addr()?;
    let app = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/tap/{name}", get(tap))
        .with_state(view);
    let limits = logdrive_connectors::sources::net::serve::Limits {
        header_timeout: Duration::from_secs(10),
        max_connections: 256,
    };
    tokio::spawn(logdrive_connectors::sources::net::serve::serve(listener, app, limits));
    Ok(bound)
}

async fn ready(State(view): State<View>) -> Response {
    if view.ready.load(Ordering::Acquire) && !view.shutdown.is_cancelled() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn metrics(State(view): State<View>) -> Response {
    match TextEncoder::new().encode_to_string(&view.metrics.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

async fn status(State(view): State<View>) -> Response {
    let status = Status::read(&view.metrics, &view.names);
    match serde_json::to_vec(&status) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

/// Samples of a stream as NDJSON, until the reader goes away.
async fn tap(State(view): State<View>, Path(name): Path<String>) -> Response {
    let Some(tap) = view.taps.get(&name) else {
        let mut names: Vec<_> = view.taps.keys().map(String::as_str).collect();
        names.sort_unstable();
        let message = match logdrive_schemas::component::nearest(&name, &names) {
            Some(near) => format!("unknown stream `{name}`, did you mean `{near}`?\n"),
            None => format!("unknown stream `{name}`, valid: {}\n", names.join(", ")),
        };
        return (StatusCode::NOT_FOUND, message).into_response();
    };
    let samples = stream::unfold(tap.open(), |mut reader| async move {
        let mut line = reader.next().await?.to_vec();
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), reader))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(samples)).into_response()
}
