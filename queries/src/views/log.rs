//! An open window whose groups leave once, when it closes: parts pile up, and are merged when there are too many.

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::common::Result;
use logdrive_operators::flow::n_bytes;
use std::sync::Arc;

use super::container::tidy;
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
    /// How many of the parts are in the checkpoint.
    n_saved: usize,
    /// Whether the checkpoint has parts that were merged since.
    is_outdated: bool,
}

impl Log {
    /// Adds a part of the window that starts at `window`.
    pub(super) fn push(&mut self, part: RecordBatch, window: i64, grouping: &mut Grouping) -> Result<()> {
        self.n_rows += part.num_rows();
        self.n_bytes += n_bytes(&part);
        self.parts.push(part);
        if self.n_rows > 2 * self.n_groups + SLACK {
            self.merge(window, grouping)?;
        }
        Ok(())
    }

    /// Makes one part of all. There are so many that writing it once more is in proportion to what came.
    fn merge(&mut self, window: i64, grouping: &mut Grouping) -> Result<()> {
        add(&self.parts, window, grouping)?;
        let part = grouping.take_part()?;
        (self.n_rows, self.n_groups) = (part.num_rows(), part.num_rows());
        let part = tidy(&part)?;
        self.n_bytes = n_bytes(&part);
        self.parts = vec![part];
        self.is_outdated |= self.n_saved > 0;
        self.n_saved = 0;
        Ok(())
    }

    /// The groups' keys and values.
    pub(super) fn values(
        &self,
        window: i64,
        grouping: &mut Grouping,
    ) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
        add(&self.parts, window, grouping)?;
        grouping.take_values()
    }

    /// The parts that are not in the checkpoint, which they will be from now on; and whether what it has of this window
    /// is to be dropped before.
    pub(super) fn take_changed(&mut self, window: i64) -> Result<(bool, Vec<RecordBatch>)> {
        let with_window = |part: &RecordBatch| {
            let mut columns = part.columns().to_vec();
            columns[0] = pane_column(window, part.num_rows());
            Ok(RecordBatch::try_new(part.schema(), columns)?)
        };
        let parts = self.parts[self.n_saved..].iter().map(with_window).collect::<Result<_>>()?;
        self.n_saved = self.parts.len();
        Ok((std::mem::take(&mut self.is_outdated), parts))
    }

    /// Whether the checkpoint has some of it.
    pub(super) fn is_saved(&self) -> bool {
        self.n_saved > 0 || self.is_outdated
    }

    /// Brings back a part of the checkpoint.
    pub(super) fn restore(&mut self, part: RecordBatch) {
        self.n_rows += part.num_rows();
        self.n_bytes += n_bytes(&part);
        self.parts.push(part);
        self.n_saved = self.parts.len();
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
