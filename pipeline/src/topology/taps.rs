//! What lets a person look into a running pipeline: samples of every stream, and counts of rejects by code.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{AsArray as _, StringViewArray};
use logdrive_connectors::Metrics;
use logdrive_connectors::document::Documents;
use logdrive_schemas::Batch;
use tokio::sync::broadcast;

use super::refused::Refused;
use crate::config::Input;

/// How many samples wait for a slow reader; it misses older ones.
const DEPTH: usize = 256;
/// How many rows of a batch are offered.
const ROWS_PER_BATCH: usize = 16;

/// A tap on every node.
#[derive(Debug)]
pub(super) struct Taps(HashMap<Input, Tap>);

/// A tap on one node: costs nothing while nobody looks.
#[derive(Clone, Debug)]
pub struct Tap {
    readers: Arc<AtomicUsize>,
    samples: broadcast::Sender<Arc<[u8]>>,
}

impl Taps {
    pub(super) fn new(nodes: impl Iterator<Item = Input>) -> Self {
        let tap = || Tap { readers: Arc::default(), samples: broadcast::Sender::new(DEPTH) };
        Self(nodes.map(|node| (node, tap())).collect())
    }

    /// # Panics
    /// If the node is not in the plan.
    pub(super) fn of(&self, node: Input) -> Tap {
        self.0[&node].clone()
    }
}

impl Tap {
    /// Offers rows of a batch to whoever looks.
    pub(super) fn offer(&self, batch: &Batch) {
        if self.readers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let documents = Documents::new(batch);
        for idx in 0..batch.num_rows().min(ROWS_PER_BATCH) {
            let mut document = Vec::new();
            documents.write(idx, &mut document);
            // Nobody listening any more is no trouble.
            self.samples.send(document.into()).ok();
        }
    }

    /// Looks until the reader is dropped.
    #[must_use]
    pub fn open(&self) -> TapReader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        TapReader { readers: Arc::clone(&self.readers), samples: self.samples.subscribe() }
    }
}

/// Samples of a stream, as JSON documents.
#[derive(Debug)]
pub struct TapReader {
    readers: Arc<AtomicUsize>,
    samples: broadcast::Receiver<Arc<[u8]>>,
}

impl TapReader {
    /// The next sample; `None` when the pipeline has ended. Samples that came too fast are left out.
    pub async fn next(&mut self) -> Option<Arc<[u8]>> {
        loop {
            match self.samples.recv().await {
                Ok(sample) => return Some(sample),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for TapReader {
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts rejects of one component by their code, and keeps the last ones for readers.
#[derive(Clone, Debug)]
pub(super) struct RejectCounter {
    metrics: Arc<Metrics>,
    refused: Arc<Refused>,
    component: Arc<str>,
}

impl RejectCounter {
    pub(super) fn new(metrics: Arc<Metrics>, refused: Arc<Refused>, component: &Arc<str>) -> Self {
        Self { metrics, refused, component: Arc::clone(component) }
    }

    pub(super) fn count(&self, rejects: &Batch) {
        self.refused.add(&self.component, rejects);
        let reasons: Option<&StringViewArray> =
            rejects.rows().column_by_name("reason").and_then(|column| column.as_string_view_opt());
        for reason in reasons.into_iter().flatten().flatten() {
            let code = reason.split(':').next().unwrap_or(reason);
            self.metrics.rejects.with_label_values(&[&*self.component, code]).inc();
        }
    }
}
