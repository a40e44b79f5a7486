//! An open window whose groups leave once, when it closes: parts pile up, and are merged when there are too many.

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::common::Result;
use std::sync::Arc;

use super::grouping::Grouping;

/// How many rows beside the groups may pile up before they are merged.
const SLACK: usize = 8192;

/// The parts of one window.
#[derive(Debug, Default)]
pub(super) struct Log {
    parts: Vec<RecordBatch>,
    n_rows: usize,
    /// How many groups there were when parts were merged last.
    n_groups: usize,
    n_bytes: usize,
}

impl Log {
    /// Adds a part of the window that starts at `window`.
    pub(super) fn push(&mut self, part: RecordBatch, window: i64, grouping: &mut Grouping) -> Result<()> {
        self.n_rows += part.num_rows();
        self.n_bytes += part.get_array_memory_size();
        self.parts.push(part);
        if self.n_rows > 2 * self.n_groups + SLACK {
            self.merge(window, grouping)?;
        }
        Ok(())
    }

    /// Makes one part of all.
    pub(super) fn merge(&mut self, window: i64, grouping: &mut Grouping) -> Result<()> {
        add(&self.parts, window, grouping)?;
        let part = grouping.take_part()?;
        (self.n_rows, self.n_groups) = (part.num_rows(), part.num_rows());
        self.n_bytes = part.get_array_memory_size();
        self.parts = vec![part];
        Ok(())
    }

    /// The groups' keys and values.
    pub(super) fn close(
        self,
        window: i64,
        grouping: &mut Grouping,
    ) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
        add(&self.parts, window, grouping)?;
        grouping.take_values()
    }

    pub(super) fn parts(&self) -> &[RecordBatch] {
        &self.parts
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

fn add(parts: &[RecordBatch], window: i64, grouping: &mut Grouping) -> Result<()> {
    for part in parts {
        // Parts of a hopping window have the starts of their panes.
        grouping.merge(part.columns(), Some(pane_column(window, part.num_rows())))?;
    }
    Ok(())
}

/// A constant column.
pub(super) fn pane_column(pane: i64, n_rows: usize) -> ArrayRef {
    Arc::new(Int64Array::from_value(pane, n_rows))
}
