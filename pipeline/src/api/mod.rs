//! The HTTP API of a running pipeline: metrics, health, and a look inside.

mod changes;
mod sql;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures::stream;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::topology::View;
use status::Status;

const CONNECTIONS_MAX: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

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
        .route("/v1/sql", post(sql::answer))
        .route("/v1/views", get(views))
        .route("/v1/views/{name}/changes", get(changes::answer))
        .with_state(view.clone());
    tokio::spawn(accept(listener, app, view));
    Ok(bound)
}

/// Accepts connections. The loop is ours because hyper needs a timer for its header deadline, which axum's own loop
/// does not give it.
async fn accept(listener: TcpListener, app: Router, view: View) {
    let open = view.metrics.reader_connections.with_label_values(&["http"]);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, as a rule: others must close first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(app.clone());
        let open = open.clone();
        open.inc();
        tokio::spawn(async move {
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            // A client that breaks off is its own business.
            server.serve_connection(TokioIo::new(stream), service).await.ok();
            open.dec();
            drop(permit);
        });
    }
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

/// How far event time has come in each view, and what holds it back.
async fn views(State(view): State<View>) -> Response {
    match serde_json::to_vec(&view.views.progress()) {
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
