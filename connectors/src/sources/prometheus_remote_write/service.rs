//! What a request becomes.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};

use super::rows::{self, Rows, Version};
use crate::sources::net::auth::Authorizations;
use crate::sources::net::body::{self, BodyError, BodyLimits, HeldBody};
use crate::sources::net::budget::ByteBudget;
use crate::sources::net::delivery::{Delivery, Undelivered, Way};

/// Documents are handed over in groups of about this size.
const GROUP_BYTES: usize = 4 << 20;
const SAMPLES_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-samples-written");
const HISTOGRAMS_WRITTEN: HeaderName =
    HeaderName::from_static("x-prometheus-remote-write-histograms-written");
const EXEMPLARS_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-exemplars-written");

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// What all requests share.
pub(super) struct Service {
    pub(super) limits: BodyLimits,
    pub(super) path: String,
    pub(super) authorizations: Authorizations,
    pub(super) budget: Arc<ByteBudget>,
    pub(super) way: Way,
}

impl Service {
    /// Answers a request; samples are answered for once they are durable.
    pub(super) async fn answer(&self, request: Request<Incoming>, peer: &Arc<str>) -> Answer {
        let (head, body) = request.into_parts();
        let refused = |reason| self.way.counts.refused(reason, peer);
        if !self.authorizations.let_in(&head.headers) {
            refused("unauthorized");
            return error(StatusCode::UNAUTHORIZED, "missing or wrong credentials");
        }
        if head.uri.path() != self.path {
            return error(StatusCode::NOT_FOUND, "remote write is taken at another path");
        }
        if head.method != Method::POST {
            return error(StatusCode::METHOD_NOT_ALLOWED, "only POST is taken");
        }
        let Some(version) = version(&head.headers) else {
            return error(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "neither prometheus.WriteRequest nor io.prometheus.write.v2.Request, compressed with snappy",
            );
        };
        match self.read(body).await {
            Ok(body) => self.take(version, body, peer).await,
            Err(found) => {
                refused(found.reason());
                match found {
                    BodyError::Broken | BodyError::Expand(_) | BodyError::UnknownEncoding => error(
                        StatusCode::BAD_REQUEST,
                        "the body is incomplete, or is not compressed with snappy",
                    ),
                    BodyError::NoMemory => {
                        error(StatusCode::SERVICE_UNAVAILABLE, "other requests hold all the memory")
                    }
                    // Not 408: Prometheus forgets what is answered with it.
                    BodyError::Slow => error(StatusCode::SERVICE_UNAVAILABLE, "the body took too long"),
                    BodyError::TooLarge => {
                        error(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than allowed")
                    }
                }
            }
        }
    }

    async fn read(&self, body: Incoming) -> Result<HeldBody, BodyError> {
        // Snappy is no encoding of HTTP: the body is read as it is.
        let HeldBody { data, mut held } =
            body::read(&HeaderMap::new(), body, self.limits, &self.budget).await?;
        let len = snap::raw::decompress_len(&data).map_err(|_| BodyError::Broken)?;
        if len as u64 > self.limits.expanded_bytes_max {
            return Err(BodyError::TooLarge);
        }
        if !held.resize(data.capacity() + len) {
            return Err(BodyError::NoMemory);
        }
        let expanded = snap::raw::Decoder::new().decompress_vec(&data).map_err(|_| BodyError::Broken)?;
        Ok(HeldBody { data: bytes::BytesMut::from(Bytes::from(expanded)), held })
    }

    async fn take(&self, version: Version, body: HeldBody, peer: &Arc<str>) -> Answer {
        let HeldBody { data, mut held } = body;
        let malformed = |why: rows::Refused| {
            self.way.counts.refused("malformed_request", peer);
            error(StatusCode::BAD_REQUEST, &why.to_string())
        };
        let mut request = match rows::Request::read(version, &data) {
            Ok(request) => request,
            Err(why) => return malformed(why),
        };
        let mut rows = Rows::new(data.len());
        let mut delivery = Delivery::new(&self.way, peer);
        loop {
            let more = match request.fill(&mut rows, GROUP_BYTES) {
                Ok(more) => more,
                Err(why) => return malformed(why),
            };
            if !held.resize(data.capacity() + rows.data.capacity()) {
                return error(StatusCode::SERVICE_UNAVAILABLE, "other requests hold all the memory");
            }
            let (documents, messages) = (std::mem::take(&mut rows.data), std::mem::take(&mut rows.messages));
            if let Err(why) = delivery.send(documents, messages).await {
                return undelivered(&why);
            }
            if !more {
                break;
            }
        }
        if let Err(why) = delivery.durable().await {
            return undelivered(&why);
        }
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        for (name, n) in [
            (SAMPLES_WRITTEN, rows.n_samples),
            (HISTOGRAMS_WRITTEN, rows.n_histograms),
            (EXEMPLARS_WRITTEN, 0),
        ] {
            answer.headers_mut().insert(name, HeaderValue::from(n));
        }
        answer
    }
}

fn version(headers: &HeaderMap) -> Option<Version> {
    let text = |name| headers.get(name).map_or(Some(""), |value| value.to_str().ok());
    if !matches!(text(CONTENT_ENCODING)?, "" | "snappy") {
        return None;
    }
    let mut parts = text(CONTENT_TYPE)?.split(';').map(str::trim);
    if !matches!(parts.next(), Some("" | "application/x-protobuf")) {
        return None;
    }
    match parts.find_map(|part| part.strip_prefix("proto=")) {
        None | Some("prometheus.WriteRequest") => Some(Version::V1),
        Some("io.prometheus.write.v2.Request") => Some(Version::V2),
        Some(_) => None,
    }
}

/// A status of 5xx is what makes Prometheus send again.
fn undelivered(why: &Undelivered) -> Answer {
    match why {
        Undelivered::Full => error(StatusCode::SERVICE_UNAVAILABLE, "the buffer is full"),
        Undelivered::NotDurable(why) => error(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn error(status: StatusCode, reason: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{reason}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}
