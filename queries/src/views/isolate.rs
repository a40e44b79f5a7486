//! One row that fails must not take the others with it.

use datafusion::common::Result;
use logdrive_schemas::{Reject, Rejects};

use crate::compiler::readable;

/// Does `work` (on the rows from `start`, `len` of them) for all rows but those that make it fail, which it finds by
/// halving. Returns what was done from which row on, ascending, and the rows that failed.
pub(super) fn isolate<T>(
    n_rows: usize,
    mut work: impl FnMut(usize, usize) -> Result<T>,
) -> (Vec<(usize, T)>, Rejects) {
    let (mut done, mut rejects) = (Vec::new(), Vec::new());
    let mut ranges = vec![(0, n_rows)];
    while let Some((start, len)) = ranges.pop() {
        match work(start, len) {
            Ok(result) => done.push((start, result)),
            Err(error) if len <= 1 => {
                rejects
                    .push(Reject { idx: start, reason: format!("expression_failed: {}", readable(&error)) });
            }
            Err(_) => {
                let half = len / 2;
                ranges.push((start + half, len - half));
                ranges.push((start, half));
            }
        }
    }
    (done, rejects)
}
