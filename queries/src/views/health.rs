//! Whether a view can still be trusted.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::Result;
use logdrive_operators::{ViewOutcome, WorkerContext};

use super::scatter::Outcomes;
use crate::compiler::readable;

/// Whether a view has stopped, and how to stop it: on all workers, for its rows would be those of some keys only.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) name: Arc<str>,
    pub(super) cx: WorkerContext,
    stopped: Arc<AtomicBool>,
    max_bytes: usize,
    /// Rows and bytes that the operators on this worker keep, each in a slot of its own.
    slots: Rc<RefCell<Vec<(usize, usize)>>>,
}

impl Health {
    /// Of a view whose state may take `max_bytes` on all workers together.
    pub(super) fn new(
        name: &Arc<str>,
        stopped: &Arc<AtomicBool>,
        max_bytes: u64,
        cx: &WorkerContext,
    ) -> Self {
        Self {
            name: Arc::clone(name),
            cx: cx.clone(),
            stopped: Arc::clone(stopped),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX) / cx.peers,
            slots: Rc::default(),
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Stops the view for good if this is an error: its state cannot be trusted any more.
    pub(super) fn check<T: Default>(&self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.stop(&readable(&error));
            T::default()
        })
    }

    pub(super) fn stop(&self, reason: &str) {
        if !self.stopped.swap(true, Ordering::AcqRel) {
            self.cx.counters.view_stopped(&self.name, reason);
        }
    }

    /// A slot for one operator's state.
    pub(super) fn slot(&self) -> usize {
        let mut slots = self.slots.borrow_mut();
        slots.push((0, 0));
        slots.len() - 1
    }

    /// Says what an operator's state takes; the view stops when all of it on this worker is too much.
    pub(super) fn charge(&self, slot: usize, n_rows: usize, n_bytes: usize) {
        let mut slots = self.slots.borrow_mut();
        slots[slot] = (n_rows, n_bytes);
        let add = |a: (usize, usize), b: &(usize, usize)| (a.0 + b.0, a.1 + b.1);
        let (n_rows, n_bytes) = slots.iter().fold((0, 0), add);
        self.cx.counters.state_rows(&self.name, self.cx.index, n_rows);
        self.cx.counters.view_bytes(&self.name, self.cx.index, n_bytes);
        if n_bytes > self.max_bytes && !self.is_stopped() {
            let limit = self.max_bytes;
            self.stop(&format!("its state takes more than `max_bytes` ({limit} bytes on each worker)"));
        }
    }

    pub(super) fn count(&self, outcomes: &Outcomes) {
        for (outcome, n_rows) in outcomes.each() {
            self.cx.counters.view_rows(&self.name, outcome, n_rows);
            if outcome == ViewOutcome::Late {
                self.cx.counters.late(&self.name, n_rows);
            }
        }
    }
}
