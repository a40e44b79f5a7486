//! What the `otlp` source answers, over gRPC and over HTTP.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Response, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use prost::Message;
use serde_json::json;
use tonic::{Code, Status};

use super::Signal;
use super::wire::Encoding;
use crate::sources::net::body::BodyError;
use crate::sources::net::delivery::Undelivered;
use crate::sources::net::expand::ExpandError;

/// After how many seconds a sender may try again.
const RETRY_SECONDS: i64 = 1;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The body of an answer: some bytes, and trailers behind them.
#[derive(Debug, Default)]
pub(super) struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = self.data.take().map(Frame::data);
        Poll::Ready(frame.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, Bytes::len) as u64)
    }
}

/// An answer.
pub(super) type Answer = Response<Reply>;

/// How the other side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Grpc,
    Http(Encoding),
}

/// What became of a request whose records are durable.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Records that were not taken, and will not be if they are sent again.
    pub(super) n_refused: u64,
    pub(super) why: String,
}

/// Why a request was not taken.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) http: StatusCode,
    pub(super) grpc: Code,
    pub(super) reason: String,
    /// Trying again helps, later.
    pub(super) retry: bool,
}

impl Failure {
    pub(super) fn new(http: StatusCode, grpc: Code, reason: impl Into<String>) -> Self {
        Self { http, grpc, reason: reason.into(), retry: false }
    }

    /// It may be taken later.
    pub(super) fn later(http: StatusCode, grpc: Code, reason: impl Into<String>) -> Self {
        Self { retry: true, ..Self::new(http, grpc, reason) }
    }

    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, reason)
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Broken => Self::malformed("the body is incomplete or malformed"),
            BodyError::Expand(ExpandError::Bomb) | BodyError::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::ResourceExhausted,
                "the request is larger than allowed",
            ),
            BodyError::Expand(_) => Self::malformed("the body does not decompress"),
            BodyError::NoMemory => Self::later(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::ResourceExhausted,
                "other requests hold all the memory",
            ),
            // Not 408: a sender forgets what is answered with it.
            BodyError::Slow => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "the body took too long")
            }
            BodyError::UnknownEncoding => Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::Unimplemented,
                "the compression is not one of gzip, deflate, zstd, identity",
            ),
        }
    }
}

impl From<Undelivered> for Failure {
    fn from(why: Undelivered) -> Self {
        match why {
            Undelivered::Full => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted, "the buffer is full")
            }
            Undelivered::NotDurable(why) => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, why)
            }
        }
    }
}

/// `google.rpc.Status`, the body of errors over HTTP and the details of those over gRPC.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

/// The answer to a request that was taken.
pub(super) fn taken(dialect: Dialect, signal: Signal, outcome: &Outcome) -> Answer {
    // The three responses have the same fields under the same numbers.
    let partial = (outcome.n_refused > 0).then(|| ExportLogsPartialSuccess {
        rejected_log_records: i64::try_from(outcome.n_refused).unwrap_or(i64::MAX),
        error_message: outcome.why.clone(),
    });
    let message = ExportLogsServiceResponse { partial_success: partial };
    match dialect {
        Dialect::Grpc => {
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(message.encoded_len() as u32);
            frame.put_slice(&message.encode_to_vec());
            let mut trailers = HeaderMap::new();
            trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
            let mut answer = Response::new(Reply { data: Some(frame.freeze()), trailers: Some(trailers) });
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            answer
        }
        Dialect::Http(Encoding::Proto) => http(StatusCode::OK, Encoding::Proto, message.encode_to_vec()),
        Dialect::Http(Encoding::Json) => {
            let body = match message.partial_success {
                None => json!({}),
                Some(partial) => json!({ "partialSuccess": {
                    signal.refused_key(): partial.rejected_log_records.to_string(),
                    "errorMessage": partial.error_message,
                }}),
            };
            http(StatusCode::OK, Encoding::Json, body.to_string())
        }
    }
}

/// The answer to a request that was not taken.
pub(super) fn failed(dialect: Dialect, failure: &Failure) -> Answer {
    let mut status =
        RpcStatus { code: failure.grpc as i32, message: failure.reason.clone(), details: Vec::new() };
    if failure.retry {
        let info = RetryInfo { retry_delay: Some(Delay { seconds: RETRY_SECONDS }) };
        status.details.push(AnyMessage {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: info.encode_to_vec(),
        });
    }
    let mut answer = match dialect {
        Dialect::Grpc => {
            let details = if failure.retry { status.encode_to_vec().into() } else { Bytes::new() };
            let mut answer =
                Status::with_details(failure.grpc, failure.reason.clone(), details).into_http::<Reply>();
            if failure.grpc == Code::Unimplemented {
                let known = HeaderValue::from_static("identity,gzip,deflate,zstd");
                answer.headers_mut().insert(GRPC_ACCEPT_ENCODING, known);
            }
            return answer;
        }
        Dialect::Http(Encoding::Proto) => http(failure.http, Encoding::Proto, status.encode_to_vec()),
        Dialect::Http(Encoding::Json) => {
            let body = json!({ "code": status.code, "message": status.message });
            http(failure.http, Encoding::Json, body.to_string())
        }
    };
    if failure.retry {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
    }
    if failure.http == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"logdrive\""));
    }
    answer
}

fn http(status: StatusCode, encoding: Encoding, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Reply { data: Some(body.into()), trailers: None });
    *answer.status_mut() = status;
    let kind = match encoding {
        Encoding::Json => "application/json",
        Encoding::Proto => "application/x-protobuf",
    };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
