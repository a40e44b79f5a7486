//! Rows of a key in an order, each with how often it is there.

use std::collections::BTreeMap;

use super::codec::{ROW_BYTES, Row};
use super::fold::Kept;

/// Rows by their bytes; see [`super::codec::Codec::ordered`].
#[derive(Debug, Default)]
pub(super) struct Bag {
    rows: BTreeMap<Row, i64>,
    n_bytes: usize,
}

impl Bag {
    /// Adds a row as often as `times` says. Returns 1 if it was not there and is now, -1 if it was and is not, else 0.
    pub(super) fn add(&mut self, row: &[u8], times: i64) -> i64 {
        let Some(count) = self.rows.get_mut(row) else {
            if times == 0 {
                return 0;
            }
            self.rows.insert(row.to_vec(), times);
            self.n_bytes += row.len() + ROW_BYTES;
            return i64::from(times > 0);
        };
        let was_there = *count > 0;
        *count += times;
        let is_there = *count > 0;
        if *count == 0 {
            self.rows.remove(row);
            self.n_bytes -= row.len() + ROW_BYTES;
        }
        i64::from(is_there) - i64::from(was_there)
    }

    /// The rows in their order, each with how often it is there.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], i64)> {
        let rows = self.rows.iter().map(|(row, count)| (row.as_slice(), *count));
        #[cfg(test)]
        let rows = rows.inspect(|_| looked_at::add(1));
        rows.filter(|(_, count)| *count > 0)
    }

    /// How many different rows there are.
    pub(super) fn n_different(&self) -> usize {
        self.rows.len()
    }
}

impl Kept for Bag {
    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

/// How many rows were looked at on this thread: what a change costs.
#[cfg(test)]
pub(super) mod looked_at {
    use std::cell::Cell;

    thread_local!(static ROWS: Cell<usize> = const { Cell::new(0) });

    pub(in super::super) fn add(n_rows: usize) {
        ROWS.set(ROWS.get() + n_rows);
    }

    pub(in super::super) fn take() -> usize {
        ROWS.take()
    }
}
