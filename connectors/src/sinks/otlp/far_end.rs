//! Sending a request, by gRPC or by HTTP, and what its answer says.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use prost::Message as _;
use reqwest::Client;
use reqwest::header::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use url::Url;

use crate::error::ConnectorError;
use crate::sinks::http::read_some;
use crate::sinks::http_auth::{gzip, retry_after};
use crate::sinks::http_rejects::excerpt;
use crate::sinks::pending::Answer;

/// What gRPC servers say of a request that is larger than they take.
const TOO_LARGE: &str = "larger than max";

/// The kind of trouble that a request without an answer is.
pub(super) const TIMEOUT: &str = "timeout";

/// Where log records go.
pub(super) enum FarEnd {
    Grpc { client: Box<LogsServiceClient<Channel>>, headers: HeaderMap },
    Http { client: Client, url: Url, gzip: bool },
}

/// What went wrong, and the name under which it is counted.
pub(super) struct Trouble {
    pub(super) kind: &'static str,
    pub(super) error: ConnectorError,
}

impl FarEnd {
    /// Sends a request of `n_records`.
    pub(super) async fn send(
        &mut self,
        request: ExportLogsServiceRequest,
        n_records: usize,
        endpoint: &str,
    ) -> Result<Answer, Trouble> {
        match self {
            Self::Grpc { client, headers } => {
                let mut request = Request::new(request);
                *request.metadata_mut() = MetadataMap::from_headers(headers.clone());
                match client.export(request).await {
                    Ok(response) => Ok(partial(response.get_ref(), n_records)),
                    Err(status) => refused(&status, endpoint),
                }
            }
            Self::Http { client, url, gzip: zip } => {
                let message = request.encode_to_vec();
                let body = match zip {
                    true => gzip(std::iter::once(&message[..]), message.len()),
                    false => message,
                };
                post(client, url, body.into(), n_records, endpoint).await
            }
        }
    }
}

/// Rows that the far end does not take are found by sending fewer of them.
fn partial(response: &ExportLogsServiceResponse, n_records: usize) -> Answer {
    match &response.partial_success {
        Some(partial) if partial.rejected_log_records > 0 => {
            let (n, why) = (partial.rejected_log_records, excerpt(&partial.error_message));
            tracing::warn!(n, of = n_records, why, "Log records were refused.");
            Answer::Halve(format!("otlp_rejected: {why}"))
        }
        _ => Answer::Done,
    }
}

fn refused(status: &Status, endpoint: &str) -> Result<Answer, Trouble> {
    let why = || excerpt(status.message());
    let busy = || ConnectorError::Busy { endpoint: endpoint.to_owned(), after: None };
    let (kind, error) = match status.code() {
        Code::InvalidArgument => return Ok(Answer::Halve(format!("otlp_invalid: {}", why()))),
        Code::ResourceExhausted if status.message().contains(TOO_LARGE) => {
            return Ok(Answer::Halve("otlp_too_large: the far end takes no request of this size".into()));
        }
        Code::Unavailable => ("unreachable", ConnectorError::disconnected(endpoint, why())),
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => {
            ("refused", ConnectorError::disconnected(endpoint, format!("{:?}: {}", status.code(), why())))
        }
        // What becomes of a connection that breaks.
        Code::Unknown | Code::Internal => ("broken", ConnectorError::disconnected(endpoint, why())),
        Code::DeadlineExceeded | Code::Cancelled => (TIMEOUT, busy()),
        _ => ("busy", busy()),
    };
    tracing::debug!(code = ?status.code(), message = status.message(), "Log records were not taken.");
    Err(Trouble { kind, error })
}

async fn post(
    client: &Client,
    url: &Url,
    body: Bytes,
    n_records: usize,
    endpoint: &str,
) -> Result<Answer, Trouble> {
    let busy = |after| ConnectorError::Busy { endpoint: endpoint.to_owned(), after };
    let no_answer = |error: reqwest::Error| match error.is_timeout() && !error.is_connect() {
        true => Trouble { kind: TIMEOUT, error: busy(None) },
        false => Trouble { kind: "unreachable", error: ConnectorError::disconnected(endpoint, error) },
    };
    let mut response = client.post(url.clone()).body(body).send().await.map_err(no_answer)?;
    let (status, after) = (response.status().as_u16(), retry_after(response.headers()));
    let said = read_some(&mut response).await;
    match status {
        200..=299 => {
            let said = said.map_err(no_answer)?;
            // Some far ends answer with nothing at all, or with something else.
            let response = ExportLogsServiceResponse::decode(&said[..]).unwrap_or_default();
            Ok(partial(&response, n_records))
        }
        400 | 413 | 422 => {
            let said = said.unwrap_or_default();
            Ok(Answer::Halve(format!("http_{status}: {}", excerpt(&String::from_utf8_lossy(&said)))))
        }
        408 | 425 | 429 | 500..=599 => Err(Trouble { kind: "busy", error: busy(after) }),
        _ => {
            let said = said.unwrap_or_default();
            let reason = format!("status {status}: {}", excerpt(&String::from_utf8_lossy(&said)));
            Err(Trouble { kind: "refused", error: ConnectorError::disconnected(endpoint, reason) })
        }
    }
}
