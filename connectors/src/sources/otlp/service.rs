//! What a request becomes.
//!
//! gRPC's framing of one request and one answer is five bytes; it is read here rather than by a gRPC server, so that
//! both transports share the bounds on memory.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, StatusCode};
use jiff::Timestamp;
use logdrive_schemas::MessageRange;
use prometheus::IntCounter;
use tonic::Code;

use super::answer::{self, Answer, Dialect, Failure, Outcome};
use super::rows::Rows;
use super::wire::{self, Encoding, Raw};
use super::{Signal, logs, metrics, traces};
use crate::sources::net::auth::Authorizations;
use crate::sources::net::body::{self, BodyError, BodyLimits, HeldBody};
use crate::sources::net::budget::{ByteBudget, HeldBytes};
use crate::sources::net::delivery::{Delivery, Way};
use crate::sources::net::expand::Expander;

/// Documents are handed over in groups of about this size.
const GROUP_BYTES: usize = 4 << 20;
/// The documents of a request may be so many times its size, or [`DOCUMENTS_BYTES_MIN`]; more is no honest request.
const EXPANSION_MAX: u64 = 100;
const DOCUMENTS_BYTES_MIN: u64 = 64 << 20;
/// The prefix of a message over gRPC: whether it is compressed, and its length.
const FRAME_HEAD: usize = 5;
/// What finding the elements of arrays in JSON takes, for each byte of it.
const JSON_SHARE: usize = 6;

/// What all requests share.
pub(super) struct Service {
    pub(super) limits: BodyLimits,
    pub(super) record_bytes_max: usize,
    pub(super) authorizations: Authorizations,
    pub(super) budget: Arc<ByteBudget>,
    /// Records that were refused while the rest of their request was taken.
    pub(super) refused: IntCounter,
    pub(super) way: Way,
}

impl Service {
    /// Answers a request; records are answered for once they are durable.
    pub(super) async fn answer(&self, request: Request<Incoming>, peer: &Arc<str>) -> Answer {
        let (head, body) = request.into_parts();
        let dialect = dialect(&head.headers);
        match self.try_answer(dialect, &head, body, peer).await {
            Ok((signal, outcome)) => answer::taken(dialect.unwrap_or(DEFAULT), signal, &outcome),
            Err(failure) => answer::failed(dialect.unwrap_or(DEFAULT), &failure),
        }
    }

    async fn try_answer(
        &self,
        dialect: Option<Dialect>,
        head: &hyper::http::request::Parts,
        body: Incoming,
        peer: &Arc<str>,
    ) -> Result<(Signal, Outcome), Failure> {
        if !self.authorizations.let_in(&head.headers) {
            self.way.counts.refused("unauthorized", peer);
            let reason = "missing or wrong credentials";
            return Err(Failure::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, reason));
        }
        let Some(signal) = Signal::at(head.uri.path(), dialect == Some(Dialect::Grpc)) else {
            let reason = "OTLP is taken at /v1/logs, /v1/metrics, /v1/traces and by gRPC's Export";
            return Err(Failure::new(StatusCode::NOT_FOUND, Code::Unimplemented, reason));
        };
        if head.method != Method::POST {
            let reason = "only POST is taken";
            return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, reason));
        }
        let Some(dialect) = dialect else {
            let reason = "the content type is neither application/x-protobuf nor application/json";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::Unimplemented, reason));
        };
        let read = self.read(dialect, &head.headers, body).await;
        let (body, skipped) = read.inspect_err(|error| self.way.counts.refused(error.reason(), peer))?;
        let encoding = match dialect {
            Dialect::Grpc => Encoding::Proto,
            Dialect::Http(encoding) => encoding,
        };
        let taken = self.take(signal, encoding, body, skipped, peer).await;
        let outcome = taken.inspect_err(|failure| {
            if failure.grpc == Code::InvalidArgument {
                self.way.counts.refused("malformed_request", peer);
            }
        })?;
        self.refused.inc_by(outcome.n_refused);
        Ok((signal, outcome))
    }

    /// The request, and how many bytes of what was read lie before it.
    async fn read(
        &self,
        dialect: Dialect,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<(HeldBody, usize), BodyError> {
        let mut limits = self.limits;
        limits.bytes_max += FRAME_HEAD as u64;
        let read = body::read(headers, body, limits, &self.budget).await?;
        if dialect != Dialect::Grpc {
            return Ok((read, 0));
        }
        let Some((head, message)) = read.data.split_at_checked(FRAME_HEAD) else {
            return Err(BodyError::Broken);
        };
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len != message.len() {
            return Err(BodyError::Broken);
        }
        let expander = match (head[0], headers.get("grpc-encoding").map(|value| value.as_bytes())) {
            (0, _) => return Ok((read, FRAME_HEAD)),
            (1, Some(b"gzip")) => Expander::gzip(),
            (1, Some(b"deflate")) => Expander::zlib(),
            (1, Some(b"zstd")) => Expander::zstd(),
            (1, _) => return Err(BodyError::UnknownEncoding),
            _ => return Err(BodyError::Broken),
        };
        Ok((body::expand(message, expander, limits, &self.budget)?, 0))
    }

    /// Returns once all records that can be taken are durable.
    async fn take(
        &self,
        signal: Signal,
        encoding: Encoding,
        body: HeldBody,
        skipped: usize,
        peer: &Arc<str>,
    ) -> Result<Outcome, Failure> {
        let request = Raw { bytes: &body.data[skipped..], encoding };
        let share = if encoding == Encoding::Json { JSON_SHARE } else { 0 };
        let mut taking = Taking {
            service: self,
            signal,
            rows: Rows::new(now()),
            held: body.held,
            body_bytes: body.data.capacity() + share * request.bytes.len(),
            documents_bytes_max: DOCUMENTS_BYTES_MIN.max(EXPANSION_MAX * request.bytes.len() as u64),
            delivery: Delivery::new(&self.way, peer),
            peer,
        };
        taking.hold()?;
        let malformed = |error: wire::Malformed| Failure::malformed(error.to_string());
        for resource in wire::resources(request).map_err(malformed)? {
            let group = wire::group(resource).map_err(malformed)?;
            let known = taking.head_fits(&group).and_then(|()| taking.rows.set_resource(&group));
            for scope in group.parts {
                let group = wire::group(scope).map_err(malformed)?;
                let known = known.clone().and_then(|()| taking.head_fits(&group));
                match known.and_then(|()| taking.rows.set_scope(&group)) {
                    Ok(()) => taking.records(group.parts).await?,
                    Err(error) => {
                        let n = taking.count(group.parts);
                        taking.rows.refuse(n, || error.to_string());
                    }
                }
            }
        }
        taking.finish().await
    }
}

/// A request on its way into the buffer.
struct Taking<'a> {
    service: &'a Service,
    signal: Signal,
    rows: Rows,
    held: HeldBytes,
    /// What the request itself occupies.
    body_bytes: usize,
    documents_bytes_max: u64,
    delivery: Delivery<'a>,
    peer: &'a Arc<str>,
}

impl Taking<'_> {
    /// Takes from the budget what the request and its documents occupy.
    fn hold(&mut self) -> Result<(), Failure> {
        let documents = self.rows.data.capacity() + self.rows.messages.capacity() * size_of::<MessageRange>();
        if self.held.resize(self.body_bytes + documents) {
            return Ok(());
        }
        self.service.way.counts.refused(BodyError::NoMemory.reason(), self.peer);
        Err(BodyError::NoMemory.into())
    }

    /// What is copied into every document has a bound, too.
    fn head_fits(&self, group: &wire::Group<'_>) -> Result<(), wire::Malformed> {
        let n_bytes = group.head.map_or(0, |raw| raw.bytes.len()) + group.schema_url.len();
        if n_bytes <= self.service.record_bytes_max {
            return Ok(());
        }
        Err(wire::Malformed("a resource or scope is longer than `max_record_bytes`".into()))
    }

    /// How many records there are.
    fn count(&self, parts: wire::Parts<'_>) -> u64 {
        if self.signal != Signal::Metrics {
            return parts.count() as u64;
        }
        let points = |raw| match wire::metric(raw, self.service.record_bytes_max) {
            Ok((_, Some((_, points)))) => points.count() as u64,
            _ => 1,
        };
        parts.map(points).sum()
    }

    /// Makes documents of the records of one scope.
    async fn records(&mut self, parts: wire::Parts<'_>) -> Result<(), Failure> {
        for raw in parts {
            if self.signal != Signal::Metrics {
                self.record(raw, |raw, signal, rows| match signal {
                    Signal::Traces => traces::span(raw, rows),
                    _ => logs::record(raw, rows),
                })
                .await?;
                continue;
            }
            match wire::metric(raw, self.service.record_bytes_max) {
                Ok((_, None)) => {}
                Ok((head, Some((kind, points)))) => {
                    for raw in points {
                        self.record(raw, |raw, _, rows| metrics::point(&head, kind, raw, rows)).await?;
                    }
                }
                Err(error) => self.rows.refuse(1, || error.to_string()),
            }
        }
        Ok(())
    }

    /// Makes the documents of one record, and hands over what has come together.
    async fn record(
        &mut self,
        raw: Raw<'_>,
        write: impl FnOnce(Raw<'_>, Signal, &mut Rows) -> Result<(), wire::Malformed>,
    ) -> Result<(), Failure> {
        if raw.bytes.len() > self.service.record_bytes_max {
            self.rows.refuse(1, || "a record is longer than `max_record_bytes`".into());
        } else if self.rows.n_bytes > self.documents_bytes_max {
            self.rows.refuse(1, || "the request expands more than a hundredfold".into());
        } else if let Err(error) = write(raw, self.signal, &mut self.rows) {
            self.rows.refuse(1, || error.to_string());
        }
        self.hold()?;
        if self.rows.data.len() >= GROUP_BYTES { self.hand_over().await } else { Ok(()) }
    }

    async fn hand_over(&mut self) -> Result<(), Failure> {
        let data = std::mem::take(&mut self.rows.data);
        let messages = std::mem::take(&mut self.rows.messages);
        Ok(self.delivery.send(data, messages).await?)
    }

    async fn finish(mut self) -> Result<Outcome, Failure> {
        self.hand_over().await?;
        self.delivery.durable().await?;
        Ok(Outcome { n_refused: self.rows.n_refused, why: self.rows.refused.unwrap_or_default() })
    }
}

/// How who says nothing is answered.
const DEFAULT: Dialect = Dialect::Http(Encoding::Json);

fn dialect(headers: &HeaderMap) -> Option<Dialect> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Some(match kind.as_str() {
        "application/grpc" | "application/grpc+proto" => Dialect::Grpc,
        "application/x-protobuf" | "application/protobuf" => Dialect::Http(Encoding::Proto),
        "application/json" => Dialect::Http(Encoding::Json),
        _ => return None,
    })
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0)
}
