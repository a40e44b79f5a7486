//! What all workers and tasks of a running pipeline share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use logdrive_connectors::Metrics;
use logdrive_operators::{Checkpoint, DetectorCounters, Lifecycle, Snapshots, ViewOutcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::egress::{FromSink, ToSink};
use super::queue::QueueReceiver;
use super::refused::Refused;
use super::snapshots::ViewReader;
use super::taps::{RejectCounter, Taps};
use super::watchdog::Pulse;
use crate::checkpoint::Checkpoints;
use crate::config::Plan;

/// What all workers and tasks of a running pipeline share.
pub(super) struct Runtime {
    pub(super) plan: Plan,
    pub(super) metrics: Arc<Metrics>,
    pub(super) taps: Taps,
    pub(super) checkpoints: Arc<Checkpoints>,
    /// Per worker, the queues of all sources; each worker takes its own when it builds.
    pub(super) queues: Mutex<Vec<Option<Vec<QueueReceiver>>>>,
    /// Per sink.
    pub(super) sinks: Vec<(mpsc::UnboundedSender<ToSink>, Arc<FromSink>)>,
    /// Cancelled to stop.
    pub(super) shutdown: CancellationToken,
    /// Who reads views.
    pub(super) views: Arc<ViewReader>,
    /// How far everything is.
    pub(super) pulse: Arc<Pulse>,
    /// The rows that failed last.
    pub(super) refused: Arc<Refused>,
}

/// What the watchdog watches: sinks, then detectors, then views.
pub(super) fn places(plan: &Plan) -> Vec<String> {
    let sinks = plan.sinks.iter().map(|sink| format!("sink {}", sink.name));
    let detectors = plan.detectors.iter().map(|detector| format!("detector {}", detector.name));
    let views = plan.views.iter().map(|view| format!("view {}", view.name));
    sinks.chain(detectors).chain(views).collect()
}

impl Runtime {
    pub(super) fn take_queues(&self, worker: usize) -> Vec<QueueReceiver> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues[worker].take().expect("each worker builds once")
    }

    pub(super) fn sink_channels(&self, idx: usize) -> (mpsc::UnboundedSender<ToSink>, Arc<FromSink>) {
        let (to_sink, from_sink) = &self.sinks[idx];
        (to_sink.clone(), Arc::clone(from_sink))
    }

    pub(super) fn checkpoint(&self) -> Arc<dyn Checkpoint> {
        Arc::<Checkpoints>::clone(&self.checkpoints)
    }

    pub(super) fn detector_counters(&self) -> Arc<dyn DetectorCounters> {
        Arc::new(Counters { metrics: Arc::clone(&self.metrics), state_rows: Mutex::default() })
    }

    pub(super) fn lifecycle(&self) -> Arc<dyn Lifecycle> {
        Arc::new(Stop(self.shutdown.clone()))
    }

    pub(super) fn snapshots(&self) -> Arc<dyn Snapshots> {
        Arc::<ViewReader>::clone(&self.views)
    }

    pub(super) fn reject_counter(&self, component: &Arc<str>) -> RejectCounter {
        RejectCounter::new(Arc::clone(&self.metrics), Arc::clone(&self.refused), component)
    }
}

/// Whether the pipeline is to stop.
#[derive(Debug)]
struct Stop(CancellationToken);

impl Lifecycle for Stop {
    fn is_stopping(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Counts of detectors and views as metrics.
#[derive(Debug)]
struct Counters {
    metrics: Arc<Metrics>,
    /// By operator and worker.
    state_rows: Mutex<HashMap<(String, usize), i64>>,
}

impl DetectorCounters for Counters {
    fn finding(&self, detector: &str, severity: &str) {
        self.metrics.findings.with_label_values(&[detector, severity]).inc();
    }

    fn late(&self, detector: &str, n_rows: usize) {
        self.metrics.late_rows.with_label_values(&[detector]).inc_by(n_rows as u64);
    }

    fn view_rows(&self, view: &str, outcome: ViewOutcome, n_rows: usize) {
        self.metrics.view_rows.with_label_values(&[view, outcome.name()]).inc_by(n_rows as u64);
    }

    fn view_bytes(&self, view: &str, worker: usize, n_bytes: usize) {
        let worker = worker.to_string();
        let n_bytes = i64::try_from(n_bytes).unwrap_or(i64::MAX);
        self.metrics.view_bytes.with_label_values(&[view, &worker]).set(n_bytes);
    }

    fn view_stopped(&self, view: &str, reason: &str) {
        tracing::error!(view, reason, "The view has stopped; the pipeline goes on without it.");
        self.metrics.view_stopped.with_label_values(&[view]).set(1);
    }

    fn state_rows(&self, detector: &str, worker: usize, n_rows: usize) {
        let mut rows = self.state_rows.lock().unwrap_or_else(PoisonError::into_inner);
        let n_rows = i64::try_from(n_rows).unwrap_or(i64::MAX);
        let change = n_rows - rows.insert((detector.to_owned(), worker), n_rows).unwrap_or(0);
        self.metrics.detector_rows.with_label_values(&[detector]).add(change);
    }
}
