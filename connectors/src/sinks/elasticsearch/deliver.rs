//! One bulk request until each of its items is stored or rejected.
//!
//! | answer | what follows |
//! |---|---|
//! | 200, nothing failed | done, items not parsed |
//! | item 429, 408, 5xx, 403 for the whole cluster | these items again after a pause that doubles, for ever |
//! | item 409 on `create` with our ids | it was stored by an attempt whose answer was lost: a duplicate, counted |
//! | item 400, 404, any other | reject |
//! | item in the failure store | done, counted |
//! | 413; 400 in the server's own words | both halves, one after the other; a single document is a reject |
//! | 401, 403, 404 and the like | the sink pauses: the runtime keeps the data, and connects again for ever |
//! | other number of items, cut, timeout, 429, 5xx | nobody knows: all again with the same ids, after a pause; the sink pauses after some attempts without any answer |
//! | nobody there | the next endpoint at once; none left: the sink pauses |
//! | 5xx, timeout or a cut answer, three times in a row | that endpoint rests while others work |
//!
//! Items of one request stay in their order. Ids are unique per message, so no two items of different requests
//! concern one document, unless they are the two copies of a replay, which are equal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use logdrive_schemas::Reject;
use opensearch::http::Method;
use prometheus::IntCounter;
use rand::Rng as _;
use serde_json::Value;

use super::answer::{Answer, Asked, Verdict, explain, read};
use super::bulk::{Bulk, Sealed};
use super::endpoints::{Call, Endpoints, NoReply, Reply};
use super::gate::Gate;
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::sinks::http_rejects::{Refused, excerpt};

/// Requests in a row without an answer that tells, before the sink pauses.
const UNCLEAR_MAX: u32 = 5;
/// Requests are not made smaller than this, whatever the server says.
const BYTES_MIN: usize = 64 << 10;
/// What an answer is cut down to.
const FILTER: &str = "errors,items.*.status,items.*.error.type,items.*.error.reason,items.*.failure_store";

/// What all requests of a sink share.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) endpoints: Endpoints,
    pub(super) gate: Gate,
    /// Bytes of a request that the server is known to take; shrinks after a 413.
    pub(super) bytes_max: AtomicUsize,
    pub(super) pipeline: Option<String>,
    pub(super) idempotent: bool,
    pub(super) gzip: bool,
    pub(super) timeout: Duration,
    pub(super) pause: Pause,
    pub(super) counters: Counters,
}

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) first: Duration,
    pub(super) max: Duration,
}

impl Pause {
    /// The pause after `n_failed` attempts, or as long as the server asked for. Between half and all of it, so that
    /// requests that failed together do not come back together.
    fn after(self, n_failed: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1 << n_failed.saturating_sub(1).min(16));
        let full = doubled.max(asked.unwrap_or_default()).min(self.max);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// The sink's counters.
#[derive(Clone, Debug)]
pub(super) struct Counters {
    sink: Arc<str>,
    metrics: Arc<Metrics>,
    rows: IntCounter,
    bytes: IntCounter,
    duplicates: IntCounter,
    retried: IntCounter,
    redirected: IntCounter,
}

impl Counters {
    pub(super) fn new(cx: &ConnectorContext) -> Self {
        let (m, labels) = (&cx.metrics, &[&*cx.name]);
        Self {
            sink: Arc::clone(&cx.name),
            rows: m.sink_rows.with_label_values(labels),
            bytes: m.sink_bytes.with_label_values(labels),
            duplicates: m.sink_duplicates.with_label_values(labels),
            retried: m.sink_retried_rows.with_label_values(labels),
            redirected: m.sink_redirected_rows.with_label_values(labels),
            metrics: Arc::clone(m),
        }
    }

    fn error(&self, kind: &str) {
        self.metrics.sink_errors.with_label_values(&[&*self.sink, kind]).inc();
    }
}

/// What one attempt came to.
enum Outcome {
    Answered(Answer),
    /// All again.
    Again {
        kind: &'static str,
        busy: bool,
        reason: String,
        after: Option<Duration>,
    },
    /// Too large, or wrong as a whole: the parts may fare better.
    Halve(String),
    /// Nobody was there; another endpoint may be.
    Elsewhere,
    Pause(ConnectorError),
}

/// Delivers a request. Returns what was rejected.
///
/// # Errors
/// If the sink must pause. What was stored until then is stored.
pub(super) async fn deliver(delivery: Arc<Delivery>, mut bulk: Bulk) -> Result<Refused, ConnectorError> {
    let mut rejects = bulk.take_unfit();
    let bulk = Arc::new(bulk.seal());
    let mut parts = VecDeque::from([(0..bulk.len()).collect::<Vec<_>>()]);
    let (mut n_failed, mut n_unclear) = (0_u32, 0_u32);
    let mut sent_again = false;
    while let Some(items) = parts.pop_front() {
        if items.is_empty() {
            continue;
        }
        if std::mem::take(&mut sent_again) {
            delivery.counters.retried.inc_by(items.len() as u64);
        }
        let mut wait = None;
        match delivery.attempt(&bulk, &items).await {
            Outcome::Answered(Answer::AllDone) => {
                delivery.counters.rows.inc_by(items.len() as u64);
                (n_failed, n_unclear) = (0, 0);
            }
            Outcome::Answered(Answer::Items(verdicts)) => {
                n_unclear = 0;
                let again = delivery.settle(&bulk, &items, verdicts, &mut rejects);
                n_failed = if again.len() < items.len() { 1 } else { n_failed + 1 };
                if again.is_empty() {
                    n_failed = 0;
                } else {
                    wait = Some((again, None));
                }
            }
            Outcome::Answered(Answer::Unclear(reason)) => {
                delivery.again("unclear_answer", false, &reason);
                (n_failed, n_unclear) = (n_failed + 1, n_unclear + 1);
                wait = Some((items, None));
            }
            Outcome::Again { kind, busy, reason, after } => {
                delivery.again(kind, busy, &reason);
                (n_failed, n_unclear) = (n_failed + 1, n_unclear + 1);
                wait = Some((items, after));
            }
            Outcome::Halve(reason) => match items.as_slice() {
                [only] => rejects.push(bulk.reject(*only, reason)),
                _ => delivery.halve(&bulk, &items, &mut parts),
            },
            Outcome::Elsewhere => parts.push_front(items),
            Outcome::Pause(error) => return Err(error),
        }
        if let Some((items, asked)) = wait {
            let pause = delivery.pause.after(n_failed, asked);
            if UNCLEAR_MAX <= n_unclear {
                let endpoint = delivery.endpoints.names();
                return Err(ConnectorError::Busy { endpoint, after: Some(pause) });
            }
            parts.push_front(items);
            sent_again = true;
            tokio::time::sleep(pause).await;
        }
    }
    Ok(bulk.group(rejects))
}

impl Delivery {
    /// Sends `items` once.
    async fn attempt(&self, bulk: &Arc<Sealed>, items: &[usize]) -> Outcome {
        let _pass = self.gate.enter().await;
        let Some(endpoint) = self.endpoints.pick().await else {
            self.counters.error("unreachable");
            let names = self.endpoints.names();
            return Outcome::Pause(ConnectorError::disconnected(names, "every endpoint has failed"));
        };
        let body = self.encode(bulk, items).await;
        self.counters.bytes.inc_by(body.len() as u64);
        let mut query = vec![("filter_path", FILTER)];
        query.extend(self.pipeline.as_deref().map(|pipeline| ("pipeline", pipeline)));
        let call = Call {
            method: Method::Post,
            path: "_bulk",
            query: &query,
            content_type: "application/x-ndjson",
            gzip: self.gzip,
            body: Some(body),
            timeout: self.timeout,
        };
        let (n_bytes, began) = (bulk.bytes(items), Instant::now());
        match endpoint.send(call).await {
            Ok(reply) => {
                match reply.status {
                    200 => {
                        endpoint.worked();
                        self.gate.answered(n_bytes, began.elapsed());
                    }
                    500.. => self.endpoints.failed(endpoint),
                    _ => {}
                }
                self.judge(endpoint.name(), &reply, items.len())
            }
            Err(NoReply::Unreachable(reason)) => {
                self.counters.error("unreachable");
                tracing::warn!(endpoint = endpoint.name(), reason, "A request could not be sent.");
                self.endpoints.rest(endpoint);
                Outcome::Elsewhere
            }
            Err(error) => {
                self.endpoints.failed(endpoint);
                let busy = matches!(error, NoReply::Timeout);
                let kind = if busy { "timeout" } else { "broken" };
                Outcome::Again { kind, busy, reason: error.to_string(), after: None }
            }
        }
    }

    /// Compression takes tens of milliseconds, too long for a thread that others wait for.
    async fn encode(&self, bulk: &Arc<Sealed>, items: &[usize]) -> Bytes {
        if !self.gzip {
            return bulk.encode(items, false);
        }
        let (bulk, items) = (Arc::clone(bulk), items.to_vec());
        match tokio::task::spawn_blocking(move || bulk.encode(&items, true)).await {
            Ok(body) => body,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn judge(&self, endpoint: &str, reply: &Reply, n_items: usize) -> Outcome {
        let again = |kind, busy| {
            let reason = format!("status {}", reply.status);
            Outcome::Again { kind, busy, reason, after: reply.retry_after }
        };
        match reply.status {
            200 => Outcome::Answered(read(&reply.body, Asked { n_items, idempotent: self.idempotent })),
            400 if own_words(&reply.body).is_some() => {
                self.counters.error("bad_request");
                Outcome::Halve(format!("es_400: {}", own_words(&reply.body).unwrap_or_default()))
            }
            413 => {
                self.counters.error("too_large");
                Outcome::Halve("es_413: the server takes no request of this size".into())
            }
            408 => again("timeout", true),
            429 | 503 => again("busy", true),
            500..=599 => again("server_error", false),
            status => {
                self.counters.error("refused");
                let said =
                    own_words(&reply.body).unwrap_or_else(|| excerpt(&String::from_utf8_lossy(&reply.body)));
                let reason = format!("status {status}: {said}");
                Outcome::Pause(ConnectorError::disconnected(endpoint, reason))
            }
        }
    }

    /// Puts both halves of `items` at the head of the line.
    fn halve(&self, bulk: &Sealed, items: &[usize], parts: &mut VecDeque<Vec<usize>>) {
        // What was too much now is too much the next time.
        self.bytes_max.fetch_min((bulk.bytes(items) / 2).max(BYTES_MIN), Ordering::Relaxed);
        let (left, right) = items.split_at(items.len() / 2);
        parts.push_front(right.to_vec());
        parts.push_front(left.to_vec());
    }

    /// Counts what every item came to; returns those to send again.
    fn settle(
        &self,
        bulk: &Sealed,
        items: &[usize],
        verdicts: Vec<Verdict>,
        rejects: &mut Vec<(usize, Reject)>,
    ) -> Vec<usize> {
        let mut again = Vec::new();
        let mut overloaded = false;
        let mut said = None;
        for (idx, verdict) in items.iter().zip(verdicts) {
            match verdict {
                Verdict::Done => self.counters.rows.inc(),
                Verdict::Duplicate => self.counters.duplicates.inc(),
                Verdict::Redirect => {
                    self.counters.rows.inc();
                    self.counters.redirected.inc();
                }
                Verdict::Reject(reason) => rejects.push(bulk.reject(*idx, reason)),
                Verdict::Retry { busy, reason } => {
                    overloaded |= busy;
                    said.get_or_insert(reason);
                    again.push(*idx);
                }
            }
        }
        if overloaded {
            self.gate.narrow();
        }
        if let Some(reason) = said {
            tracing::warn!(n_rows = again.len(), reason, "Rows will be sent again.");
        }
        again
    }

    fn again(&self, kind: &str, busy: bool, reason: &str) {
        self.counters.error(kind);
        if busy {
            self.gate.narrow();
        }
        tracing::warn!(kind, reason, "A request will be sent again.");
    }
}

/// What an Elasticsearch or OpenSearch server itself says, as opposed to something in front of it.
fn own_words(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error").filter(|error| error.is_object() || error.is_string())?;
    Some(explain(Some(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_bounds() {
        let pause = Pause { first: Duration::from_secs(2), max: Duration::from_secs(64) };
        for (n_failed, full) in [(1, 2), (2, 4), (5, 32), (6, 64), (60, 64)] {
            let got = pause.after(n_failed, None).as_secs_f64();
            let full = f64::from(full);
            assert!((full / 2.0..=full).contains(&got), "{n_failed}: {got}");
        }
        assert!(Duration::from_secs(5) <= pause.after(1, Some(Duration::from_secs(10))));
        assert!(pause.after(1, Some(Duration::from_secs(86_400))) <= Duration::from_secs(64));
    }
}
