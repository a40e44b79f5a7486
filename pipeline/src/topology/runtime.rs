//! What all workers and tasks of a running pipeline share.

use std::sync::{Arc, Mutex, PoisonError};

use logdrive_connectors::Metrics;
use logdrive_operators::Checkpoint;
use logdrive_operators::detector::DetectorCounters;
use tokio::sync::mpsc;

use super::egress::{FromSink, ToSink};
use super::queue::QueueReceiver;
use super::taps::{RejectCounter, Taps};
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
        let n_workers = self.plan.workers;
        Arc::new(Counters { metrics: Arc::clone(&self.metrics), state_rows: Mutex::new(vec![0; n_workers]) })
    }

    pub(super) fn reject_counter(&self, component: &Arc<str>) -> RejectCounter {
        RejectCounter::new(Arc::clone(&self.metrics), component)
    }
}

/// Detectors' counts as metrics.
#[derive(Debug)]
struct Counters {
    metrics: Arc<Metrics>,
    state_rows: Mutex<Vec<i64>>,
}

impl DetectorCounters for Counters {
    fn finding(&self, detector: &str, severity: &str) {
        self.metrics.findings.with_label_values(&[detector, severity]).inc();
    }

    fn late(&self, detector: &str, n_rows: usize) {
        self.metrics.late_rows.with_label_values(&[detector]).inc_by(n_rows as u64);
    }

    fn state_rows(&self, detector: &str, worker: usize, n_rows: usize) {
        let mut rows = self.state_rows.lock().unwrap_or_else(PoisonError::into_inner);
        let n_rows = i64::try_from(n_rows).unwrap_or(i64::MAX);
        let change = n_rows - std::mem::replace(&mut rows[worker], n_rows);
        self.metrics.detector_rows.with_label_values(&[detector]).add(change);
    }
}
