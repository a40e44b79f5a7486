//! What a sink's task has written, by position: so that a row that comes again is not written again.
//!
//! Within a partition, offsets grow with epochs. So once an epoch is finished, a row of a later epoch at or below the
//! highest offset is a repetition: its source was read again after an interruption, or it waits in the disk queue
//! while its source replays it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::BooleanArray;
use logdrive_schemas::{Batch, Partition};

type Marks = HashMap<(Arc<str>, Partition), u64>;

/// The highest offsets that were written, by how sure it is that they stay written.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Of flushed epochs.
    flushed: Marks,
    /// Of epochs that are written and not flushed: forgotten if the sink fails.
    finished: Marks,
    /// Of the epoch that is being written: says nothing about the rest of it.
    current: Marks,
}

impl Seen {
    /// Which rows are new; `None` if all are, as nearly always.
    pub(super) fn fresh(&self, batch: &Batch) -> Option<BooleanArray> {
        let key = (Arc::clone(&batch.origin().source), batch.origin().partition);
        let mark = self.finished.get(&key).max(self.flushed.get(&key)).filter(|_| batch.origin().ordered)?;
        let offsets = batch.offsets().values();
        let repeated = offsets.iter().any(|offset| offset <= mark);
        repeated.then(|| offsets.iter().map(|offset| Some(offset > mark)).collect())
    }

    /// Takes note of a batch that is written.
    pub(super) fn wrote(&mut self, batch: &Batch) {
        let highest = batch.offsets().values().iter().max();
        if let Some(highest) = highest.filter(|_| batch.origin().ordered) {
            let key = (Arc::clone(&batch.origin().source), batch.origin().partition);
            let mark = self.current.entry(key).or_insert(*highest);
            *mark = (*mark).max(*highest);
        }
    }

    /// The epoch is written.
    pub(super) fn epoch_ended(&mut self) {
        raise(&mut self.finished, &mut self.current);
    }

    /// What is written is durable.
    pub(super) fn flushed(&mut self) {
        self.epoch_ended();
        raise(&mut self.flushed, &mut self.finished);
    }

    /// What is not flushed will be written again.
    pub(super) fn failed(&mut self) {
        self.finished.clear();
        self.current.clear();
    }
}

fn raise(marks: &mut Marks, by: &mut Marks) {
    for (key, offset) in by.drain() {
        let mark = marks.entry(key).or_insert(offset);
        *mark = (*mark).max(offset);
    }
}

#[cfg(test)]
mod tests {
    use arrow::buffer::Buffer;
    use logdrive_schemas::{Chunk, MessageRange, Reject, reject};

    use super::*;

    fn batch(offsets: &[u64]) -> Batch {
        let chunk = Chunk {
            source: "s".into(),
            partition: Partition(1),
            data: Buffer::from(b"x"),
            messages: vec![MessageRange { start: 0, len: 1 }; offsets.len()],
            offsets: offsets.to_vec(),
            received_at: 0,
            peer: None,
            attributes: None,
            next_offset: 0,
        };
        let rejects: Vec<_> = (0..offsets.len()).map(|idx| Reject { idx, reason: "r".into() }).collect();
        reject::of_chunk(&chunk, &rejects).unwrap()
    }

    fn fresh(seen: &Seen, offsets: &[u64]) -> Vec<u64> {
        let batch = batch(offsets);
        match seen.fresh(&batch) {
            None => offsets.to_vec(),
            Some(mask) => {
                offsets.iter().zip(mask.values().iter()).filter(|(_, f)| *f).map(|(o, _)| *o).collect()
            }
        }
    }

    #[test]
    fn an_epoch_may_come_in_any_order_and_a_repetition_is_known_behind_it() {
        let mut seen = Seen::default();
        seen.wrote(&batch(&[10, 11]));
        assert_eq!(fresh(&seen, &[4, 5]), [4, 5], "the same epoch, from another worker");
        seen.wrote(&batch(&[4, 5]));
        seen.epoch_ended();
        assert_eq!(fresh(&seen, &[5, 11, 12]), [12]);
    }

    #[test]
    fn a_failure_forgets_what_was_not_flushed() {
        let mut seen = Seen::default();
        seen.wrote(&batch(&[3]));
        seen.flushed();
        seen.wrote(&batch(&[7]));
        seen.epoch_ended();
        assert_eq!(fresh(&seen, &[3, 7, 8]), [8]);
        seen.failed();
        assert_eq!(fresh(&seen, &[3, 7, 8]), [7, 8]);
    }
}
