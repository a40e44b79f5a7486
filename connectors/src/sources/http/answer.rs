//! What the `http` source answers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::bulk::BulkError;
use crate::sources::net::body::BodyError;

/// An answer with a JSON body.
pub(super) type Answer = Response<Full<Bytes>>;

const ELASTIC_PRODUCT: HeaderName = HeaderName::from_static("x-elastic-product");

/// An answer that is JSON.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An error in the form that Elasticsearch's clients read.
pub(super) fn error(status: StatusCode, kind: &str, reason: &str) -> Answer {
    let cause = json!({ "type": kind, "reason": reason });
    let mut body = json!({ "error": { "root_cause": [cause], "type": kind, "reason": reason } });
    body["status"] = status.as_u16().into();
    let mut answer = json(status, body.to_string());
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"logdrive\""));
    }
    answer
}

/// The answer to a body that was not read to its end: the connection ends with it.
pub(super) fn body_error(found: BodyError) -> Answer {
    let (status, kind, reason) = match found {
        BodyError::Broken => {
            (StatusCode::BAD_REQUEST, "parse_exception", "the body is incomplete or malformed")
        }
        BodyError::Expand(error) => {
            let status = match error {
                crate::sources::net::expand::ExpandError::Bomb => StatusCode::PAYLOAD_TOO_LARGE,
                _ => StatusCode::BAD_REQUEST,
            };
            (status, error.reason(), "the body does not decompress within its bounds")
        }
        BodyError::NoMemory => (
            StatusCode::TOO_MANY_REQUESTS,
            "circuit_breaking_exception",
            "other requests hold all the memory",
        ),
        BodyError::Slow => (StatusCode::REQUEST_TIMEOUT, "timeout_exception", "the body took too long"),
        BodyError::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, "content_too_long_exception", "the body is longer than allowed")
        }
        BodyError::UnknownEncoding => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media_type_header_exception",
            "the content encoding is not one of gzip, deflate, zstd, identity",
        ),
    };
    let mut answer = error(status, kind, reason);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The answer to a `_bulk` request that was not understood.
pub(super) fn bulk_error(found: &BulkError) -> Answer {
    let status = StatusCode::from_u16(found.status).unwrap_or(StatusCode::BAD_REQUEST);
    error(status, found.kind, &found.reason)
}

/// What a shipper that takes us for an Elasticsearch node asks at start-up.
pub(super) fn node(version: Option<&str>) -> Answer {
    let mut body = json!({ "name": "logdrive", "cluster_name": "logdrive", "cluster_uuid": "logdrive" });
    if let Some(version) = version {
        body["version"] = json!({
            "number": version,
            "build_flavor": "default",
            "build_type": "logdrive",
            "minimum_wire_compatibility_version": "7.17.0",
            "minimum_index_compatibility_version": "7.0.0",
        });
    }
    body["tagline"] = "Logdrive, which takes Elasticsearch bulk requests".into();
    json(StatusCode::OK, body.to_string())
}

/// The licence that shippers look for.
pub(super) fn license() -> Answer {
    let body =
        json!({ "license": { "status": "active", "uid": "logdrive", "type": "basic", "mode": "basic" } });
    json(StatusCode::OK, body.to_string())
}

/// The health that shippers look for.
pub(super) fn health() -> Answer {
    let body =
        json!({ "cluster_name": "logdrive", "status": "green", "timed_out": false, "number_of_nodes": 1 });
    json(StatusCode::OK, body.to_string())
}

/// Marks an answer as one that Elasticsearch's own clients accept.
pub(super) fn mark_as_elastic(answer: &mut Answer) {
    answer.headers_mut().insert(ELASTIC_PRODUCT, HeaderValue::from_static("Elasticsearch"));
}
