//! What a request becomes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, StatusCode};
use logdrive_schemas::MessageRange;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::answer::{self, Answer};
use super::{bulk, documents};
use crate::source::{Intake, NotDurable, Received};
use crate::sources::net::auth::Authorizations;
use crate::sources::net::body::{self, BodyLimits, HeldBody};
use crate::sources::net::budget::ByteBudget;
use crate::sources::net::counts::Counts;

/// What all requests share.
pub(super) struct Service {
    pub(super) limits: BodyLimits,
    pub(super) line_bytes_max: usize,
    /// How long a request waits for a place in the buffer.
    pub(super) full_timeout: Duration,
    /// How long a request waits until its data is durable.
    pub(super) ack_timeout: Duration,
    /// Where documents are taken, besides `/`.
    pub(super) path: Option<String>,
    pub(super) elasticsearch_version: Option<String>,
    pub(super) authorizations: Authorizations,
    pub(super) budget: Arc<ByteBudget>,
    pub(super) counts: Arc<Counts>,
    pub(super) intake: Intake,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Bulk { index: Option<&'a str> },
    Documents,
    Health,
    License,
    Node,
    NotAllowed,
    Unknown,
}

impl Service {
    /// Answers a request; data is answered for once it is durable.
    pub(super) async fn answer(&self, request: Request<Incoming>, peer: &Arc<str>) -> Answer {
        let (head, body) = request.into_parts();
        let mut answer = if self.authorizations.let_in(&head.headers) {
            match self.route(&head.method, head.uri.path()) {
                Route::Bulk { index } => match self.read(&head.headers, body, peer).await {
                    Ok(body) => self.bulk(body, index, head.uri.query(), peer).await,
                    Err(answer) => answer,
                },
                Route::Documents => match self.read(&head.headers, body, peer).await {
                    Ok(body) => self.documents(body, peer).await,
                    Err(answer) => answer,
                },
                Route::Health => answer::health(),
                Route::License => answer::license(),
                Route::Node => answer::node(self.elasticsearch_version.as_deref()),
                Route::NotAllowed => {
                    let reason = "this path does not take that method";
                    answer::error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", reason)
                }
                Route::Unknown => answer::error(
                    StatusCode::NOT_FOUND,
                    "resource_not_found_exception",
                    "documents are taken at `/`, bulk requests at `/_bulk`",
                ),
            }
        } else {
            self.counts.refused("unauthorized", peer);
            answer::error(StatusCode::UNAUTHORIZED, "security_exception", "missing or wrong credentials")
        };
        if self.elasticsearch_version.is_some() {
            answer::mark_as_elastic(&mut answer);
        }
        answer
    }

    fn route<'a>(&self, method: &Method, path: &'a str) -> Route<'a> {
        let adds = matches!(*method, Method::POST | Method::PUT);
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        let bulk_index = match path.strip_suffix("/_bulk") {
            Some("") => Some(None),
            Some(index) if !index[1..].contains('/') && index.len() > 1 => Some(Some(&index[1..])),
            _ => None,
        };
        let is_documents = path == "/" || self.path.as_deref() == Some(path);
        match (bulk_index, path) {
            (Some(index), _) if adds => Route::Bulk { index },
            (Some(_), _) => Route::NotAllowed,
            _ if is_documents && adds => Route::Documents,
            (_, "/") if reads => Route::Node,
            _ if is_documents => Route::NotAllowed,
            (_, "/_license" | "/_xpack/license") if reads => Route::License,
            (_, "/_cluster/health") if reads => Route::Health,
            _ => Route::Unknown,
        }
    }

    async fn read(&self, headers: &HeaderMap, body: Incoming, peer: &Arc<str>) -> Result<HeldBody, Answer> {
        body::read(headers, body, self.limits, &self.budget).await.map_err(|error| {
            self.counts.refused(error.reason(), peer);
            answer::body_error(error)
        })
    }

    async fn documents(&self, body: HeldBody, peer: &Arc<str>) -> Answer {
        let found = match documents::split(body.data, self.line_bytes_max) {
            Ok(found) => found,
            Err(error) => {
                let status = match error {
                    documents::DocumentsError::Malformed { .. } => StatusCode::BAD_REQUEST,
                    documents::DocumentsError::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
                };
                return answer::error(status, "parse_exception", &error.to_string());
            }
        };
        let n_messages = found.messages.len();
        if let Err(answer) = self.store(found.data, found.messages, peer).await {
            return answer;
        }
        self.counts.rejected("line_too_long", found.n_too_long, peer);
        answer::json(StatusCode::OK, format!("{{\"accepted\":{n_messages}}}"))
    }

    async fn bulk(
        &self,
        body: HeldBody,
        index: Option<&str>,
        query: Option<&str>,
        peer: &Arc<str>,
    ) -> Answer {
        let started = Instant::now();
        let fields = ItemFields::of(query);
        let options = bulk::BulkOptions {
            index,
            document_bytes_max: self.line_bytes_max,
            full_items: fields == ItemFields::All,
        };
        let HeldBody { data, held } = body;
        let found = match bulk::parse(data, options) {
            Ok(found) => found,
            Err(error) => return answer::bulk_error(&error),
        };
        if let Err(answer) = self.store(found.data, found.messages, peer).await {
            return answer;
        }
        drop(held);
        self.counts.rejected("line_too_long", found.n_too_long, peer);
        let took = started.elapsed().as_millis();
        let mut body = BytesMut::with_capacity(found.items.len() + 64);
        body.extend_from_slice(format!("{{\"took\":{took},\"errors\":{}", found.errors).as_bytes());
        if fields != ItemFields::None {
            body.extend_from_slice(b",\"items\":[");
            body.extend_from_slice(&found.items);
            body.extend_from_slice(b"]");
        }
        body.extend_from_slice(b"}");
        answer::json(StatusCode::OK, body.freeze())
    }

    /// Returns once the messages are durable.
    async fn store(&self, data: Bytes, messages: Vec<MessageRange>, peer: &Arc<str>) -> Result<(), Answer> {
        if messages.is_empty() {
            return Ok(());
        }
        let unavailable = |error: &NotDurable| {
            answer::error(StatusCode::SERVICE_UNAVAILABLE, "unavailable_shards_exception", &error.to_string())
        };
        let counted = messages.clone();
        let (ack, acked) = oneshot::channel();
        let received =
            Received { data, messages, peer: Some(Arc::clone(peer)), attributes: None, ack: Some(ack) };
        match timeout(self.full_timeout, self.intake.send(received)).await {
            Ok(Ok(())) => self.counts.received(&counted),
            Ok(Err(error)) => return Err(unavailable(&error)),
            Err(_) => {
                self.counts.refused("buffer_full", peer);
                let reason = "the buffer is full";
                return Err(answer::error(
                    StatusCode::TOO_MANY_REQUESTS,
                    "es_rejected_execution_exception",
                    reason,
                ));
            }
        }
        match timeout(self.ack_timeout, acked).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(unavailable(&error)),
            Ok(Err(_)) => Err(unavailable(&NotDurable("the buffer gave no answer".into()))),
            Err(_) => Err(unavailable(&NotDurable("the buffer takes too long".into()))),
        }
    }
}

/// What `filter_path` leaves of an answer to a bulk request. Only what shippers ask for is understood; anything else
/// gets the whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ItemFields {
    All,
    /// No items at all.
    None,
    /// `status` and `error`.
    Outcome,
}

impl ItemFields {
    fn of(query: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let Some((_, paths)) = pairs.into_iter().find(|(key, _)| key == "filter_path") else {
            return Self::All;
        };
        let mut fields = Self::None;
        for path in paths.split(',') {
            fields = match path {
                "errors" | "took" | "error" | "status" => continue,
                "items.*.status" | "items.*.error" | "items.*.error.type" | "items.*.error.reason" => {
                    Self::Outcome
                }
                _ => return Self::All,
            };
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shippers_filter() {
        assert_eq!(ItemFields::of(None), ItemFields::All);
        assert_eq!(
            ItemFields::of(Some("filter_path=errors%2Citems.*.error,items.*.status")),
            ItemFields::Outcome
        );
        assert_eq!(ItemFields::of(Some("pretty&filter_path=errors")), ItemFields::None);
        assert_eq!(ItemFields::of(Some("filter_path=items")), ItemFields::All);
    }
}
