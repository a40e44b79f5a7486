//! Counting for the network sources, and logging that a flood cannot turn into a flood.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use logdrive_schemas::MessageRange;
use prometheus::{IntCounter, IntGauge};

use crate::context::ConnectorContext;
use crate::metrics::Metrics;

/// The metrics of one source, looked up once.
#[derive(Debug)]
pub(crate) struct Counts {
    name: Arc<str>,
    metrics: Arc<Metrics>,
    messages: IntCounter,
    bytes: IntCounter,
    pub(crate) connections: IntGauge,
    started: Instant,
    logged_at: AtomicU64,
}

impl Counts {
    pub(crate) fn new(cx: &ConnectorContext) -> Self {
        let metrics = Arc::clone(&cx.metrics);
        Self {
            messages: metrics.source_messages.with_label_values(&[&*cx.name]),
            bytes: metrics.source_bytes.with_label_values(&[&*cx.name]),
            connections: metrics.source_connections.with_label_values(&[&*cx.name]),
            name: Arc::clone(&cx.name),
            metrics,
            started: Instant::now(),
            logged_at: AtomicU64::new(0),
        }
    }

    /// The same, for connections whose messages are counted as what is made of them.
    pub(crate) fn of_connections(cx: &ConnectorContext) -> Self {
        let uncounted = || IntCounter::new("uncounted", "Of no metric.").expect("a name that is well-formed");
        Self { messages: uncounted(), bytes: uncounted(), ..Self::new(cx) }
    }

    /// Messages that were handed over.
    pub(crate) fn received(&self, messages: &[MessageRange]) {
        self.messages.inc_by(messages.len() as u64);
        self.bytes.inc_by(messages.iter().map(|m| u64::from(m.len)).sum());
    }

    /// Messages that are not whole.
    pub(crate) fn rejected(&self, reason: &'static str, n: u64, peer: &str) {
        if n > 0 {
            self.metrics.source_rejects.with_label_values(&[&*self.name, reason]).inc_by(n);
            if self.may_log() {
                tracing::warn!(source = %self.name, peer, reason, n, "A message is not whole; it becomes a reject.");
            }
        }
    }

    /// A connection that was refused or closed because of what the peer did.
    pub(crate) fn refused(&self, reason: &'static str, peer: &str) {
        self.metrics.source_connections_refused.with_label_values(&[&*self.name, reason]).inc();
        if self.may_log() {
            tracing::warn!(source = %self.name, peer, reason, "A connection was refused or closed.");
        }
    }

    /// A connection that could not be set up.
    pub(crate) fn failed(&self, reason: &'static str, peer: &str, error: &dyn std::error::Error) {
        self.metrics.source_connections_refused.with_label_values(&[&*self.name, reason]).inc();
        if self.may_log() {
            tracing::warn!(source = %self.name, peer, reason, %error, "A connection could not be set up.");
        }
    }

    /// At most once a second: peers decide how often there is something to say.
    fn may_log(&self) -> bool {
        let now = self.started.elapsed().as_secs() + 1;
        self.logged_at.fetch_max(now, Ordering::Relaxed) < now
    }
}
