//! Whether a view can still be trusted.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::Result;
use logdrive_operators::{ViewOutcome, ViewRows, WorkerContext};

use super::scatter::Outcomes;
use crate::compiler::readable;

/// What an operator keeps.
#[derive(Clone, Copy)]
struct Slot {
    /// Timely's number of it.
    operator: usize,
    n_rows: usize,
    n_bytes: usize,
}

/// Whether a view has stopped, and how to stop it: on all workers, for its rows would be those of some keys only.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) name: Arc<str>,
    pub(super) cx: WorkerContext,
    stopped: Arc<AtomicBool>,
    max_bytes: usize,
    /// What the operators on this worker keep.
    slots: Rc<RefCell<Vec<Slot>>>,
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

    /// A slot for the state of the operator with this number.
    pub(super) fn slot(&self, operator: usize) -> usize {
        let idx = self.slots.borrow().len();
        self.slots.borrow_mut().push(Slot { operator, n_rows: 0, n_bytes: 0 });
        self.tell(idx);
        idx
    }

    /// Says what an operator's state takes; the view stops when all of it on this worker is too much.
    pub(super) fn charge(&self, slot: usize, n_rows: usize, n_bytes: usize) {
        {
            let mut slots = self.slots.borrow_mut();
            let of_operator = &mut slots[slot];
            if (of_operator.n_rows, of_operator.n_bytes) == (n_rows, n_bytes) {
                return;
            }
            (of_operator.n_rows, of_operator.n_bytes) = (n_rows, n_bytes);
        }
        let n_bytes = self.tell(slot);
        if n_bytes > self.max_bytes && !self.is_stopped() {
            let limit = self.max_bytes;
            self.stop(&format!("its state takes more than `max_bytes` ({limit} bytes on each worker)"));
        }
    }

    /// Tells what a slot has now; how many bytes all have.
    fn tell(&self, slot: usize) -> usize {
        let slots = self.slots.borrow();
        let Slot { operator, n_rows, n_bytes } = slots[slot];
        self.cx.snapshots.keeps(self.cx.index, operator, n_rows, n_bytes);
        let add = |all: (usize, usize), slot: &Slot| (all.0 + slot.n_rows, all.1 + slot.n_bytes);
        let (n_rows, n_bytes) = slots.iter().fold((0, 0), add);
        self.cx.counters.state_rows(&self.name, self.cx.index, n_rows);
        self.cx.counters.view_bytes(&self.name, self.cx.index, n_bytes);
        n_bytes
    }

    /// Answers those who wait for the rows of `view`, this one or a part of it, as of the epochs before.
    pub(super) fn answer(&self, view: &str, before: u64, rows: impl FnOnce() -> Result<ViewRows>) {
        let (snapshots, index) = (&self.cx.snapshots, self.cx.index);
        if !snapshots.is_due(view, index, before) {
            return;
        }
        let rows = if self.is_stopped() {
            Err(format!("the view `{view}` has stopped; the log says why"))
        } else {
            rows().map_err(|error| readable(&error))
        };
        snapshots.answer(view, index, before, rows);
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
