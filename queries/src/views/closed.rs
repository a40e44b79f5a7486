//! Windows that have closed and can still be read.

use std::collections::{BTreeMap, VecDeque};

use arrow::array::RecordBatch;
use logdrive_operators::flow::n_bytes;
use logdrive_schemas::Batch;

/// A window, or all sessions that closed at a moment.
#[derive(Debug)]
struct Window {
    start: i64,
    rows: Vec<RecordBatch>,
    /// How many of the batches are in the checkpoint.
    n_saved: usize,
}

/// Windows that have closed. Their rows have left.
#[derive(Debug, Default)]
pub(super) struct Closed {
    /// The oldest first.
    windows: VecDeque<Window>,
    n_bytes: usize,
    /// Windows that the checkpoint has, and that cannot be read any more.
    gone: Vec<i64>,
}

impl Closed {
    pub(super) fn push(&mut self, start: i64, rows: &[Batch]) {
        let rows: Vec<RecordBatch> = rows.iter().map(|batch| batch.rows().clone()).collect();
        if rows.is_empty() {
            return;
        }
        self.n_bytes += bytes_of(&rows);
        match self.windows.back_mut() {
            Some(window) if window.start == start => window.rows.extend(rows),
            _ => self.windows.push_back(Window { start, rows, n_saved: 0 }),
        }
    }

    /// Lets go of windows that started before `oldest`, and of more if they take more than `max_bytes`.
    pub(super) fn trim(&mut self, oldest: i64, max_bytes: usize) {
        while let Some(window) =
            self.windows.pop_front_if(|window| window.start < oldest || self.n_bytes > max_bytes)
        {
            self.n_bytes -= bytes_of(&window.rows);
            self.gone.extend((window.n_saved > 0).then_some(window.start));
        }
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = RecordBatch> {
        self.windows.iter().flat_map(|window| &window.rows).cloned()
    }

    /// About how many bytes they take.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Windows that the checkpoint is to forget, and the rows that are not in it, which they will be from now on.
    pub(super) fn take_changed(&mut self) -> (Vec<i64>, Vec<(i64, RecordBatch)>) {
        let mut rows = Vec::new();
        // Windows are added behind those that were.
        for window in self.windows.iter_mut().rev().take_while(|window| window.n_saved < window.rows.len()) {
            rows.extend(window.rows[window.n_saved..].iter().map(|batch| (window.start, batch.clone())));
            window.n_saved = window.rows.len();
        }
        (std::mem::take(&mut self.gone), rows)
    }

    /// Brings back windows of the checkpoint.
    pub(super) fn restore(&mut self, windows: BTreeMap<i64, Vec<RecordBatch>>) {
        for (start, rows) in windows {
            let n_saved = rows.len();
            self.n_bytes += bytes_of(&rows);
            self.windows.push_back(Window { start, rows, n_saved });
        }
    }
}

fn bytes_of(rows: &[RecordBatch]) -> usize {
    rows.iter().map(n_bytes).sum()
}
