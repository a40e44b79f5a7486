//! Rows that wait to be sent, in the form of the far end, and which row of which batch each of them is.

use std::ops::Range;

use logdrive_schemas::{Batch, Reject};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_128;

use super::http_rejects::Refused;
use crate::document::Documents;

/// What a far end says about the rows of a request.
pub(super) enum Answer {
    /// It has them.
    Done,
    /// Some of them cannot be taken, or not in one request; a row that is alone is a reject, for this reason.
    Halve(String),
}

/// Rows that wait.
pub(super) struct Pending<T> {
    pub(super) items: Vec<T>,
    /// Which row of which batch each item is.
    rows: Vec<(usize, usize)>,
    batches: Vec<Batch>,
    /// What they take on the wire, roughly.
    pub(super) bytes: usize,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { items: Vec::new(), rows: Vec::new(), batches: Vec::new(), bytes: 0 }
    }
}

impl<T> Pending<T> {
    /// The rows that are pushed next are of this batch.
    pub(super) fn begin(&mut self, batch: &Batch) {
        self.batches.push(batch.clone());
    }

    /// Adds what `row` of the batch became.
    pub(super) fn push(&mut self, row: usize, item: T, bytes: usize) {
        self.rows.push((self.batches.len() - 1, row));
        self.items.push(item);
        self.bytes += bytes;
    }

    /// Takes all rows; those that are pushed next are of `batch`.
    pub(super) fn take(&mut self, batch: Option<&Batch>) -> Self {
        let next = Self { batches: batch.cloned().into_iter().collect(), ..Self::default() };
        std::mem::replace(self, next)
    }

    /// What tells these rows from all others.
    pub(super) fn identities(&self, items: Range<usize>) -> impl Iterator<Item = u128> {
        self.rows[items].iter().map(|(batch, row)| identity(&self.batches[*batch], *row))
    }

    /// These rows as rejects.
    pub(super) fn rejects(&self, items: Range<usize>, reason: &str) -> Refused {
        let mut groups: Vec<(usize, Vec<Reject>)> = Vec::new();
        for (batch, row) in &self.rows[items] {
            let reject = Reject { idx: *row, reason: reason.into() };
            match groups.last_mut() {
                Some((last, group)) if last == batch => group.push(reject),
                _ => groups.push((*batch, vec![reject])),
            }
        }
        groups.into_iter().map(|(batch, group)| (self.batches[batch].clone(), group)).collect()
    }
}

/// The parts of a request that are still to be sent, in order: all at once at first.
pub(super) struct Parts(Vec<Range<usize>>);

impl Parts {
    pub(super) fn of<T>(pending: &Pending<T>) -> Self {
        let all = 0..pending.items.len();
        Self(vec![all])
    }

    /// The part that is sent next; none is empty.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        self.0.pop().filter(|items| !items.is_empty())
    }

    /// Sends a part again as two halves; false if it is one row.
    pub(super) fn halve(&mut self, Range { start, end }: Range<usize>) -> bool {
        let middle = start + (end - start) / 2;
        if middle > start {
            self.0.extend([middle..end, start..middle]);
        }
        middle > start
    }
}

/// What tells a row from all others, also when it comes again.
pub(super) fn identity(batch: &Batch, row: usize) -> u128 {
    let mut id = String::new();
    batch.write_id(row, &mut id);
    xxh3_128(id.as_bytes())
}

/// What each row's document becomes, `None` if it is no JSON object, and how long it is in bytes.
pub(super) fn objects<T>(
    batch: &Batch,
    mut of: impl FnMut(Option<Map<String, Value>>) -> T,
) -> Vec<(usize, T)> {
    let documents = Documents::new(batch);
    let mut text = Vec::new();
    let each = |row| {
        text.clear();
        documents.write(row, &mut text);
        (text.len(), of(serde_json::from_slice(&text).ok()))
    };
    (0..batch.num_rows()).map(each).collect()
}
