//! Each message counted once, also after a crash: sources replay from before the restored cut.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{BooleanArray, UInt64Array};
use arrow::compute::kernels::cmp::gt;
use logdrive_schemas::Batch;
use logdrive_schemas::chunk::Partition;

use super::state::{StateReader, StateWriter};

/// The highest offset of each partition.
type Offsets = HashMap<(Arc<str>, Partition), u64>;

/// Which messages were counted.
#[derive(Debug, Default)]
pub struct Counted {
    /// What was counted when the state that was restored was taken: replayed rows up to there are skipped.
    before: Offsets,
    /// As of the epochs that are complete.
    complete: Offsets,
    /// What the epochs that are not complete add.
    open: BTreeMap<u64, Offsets>,
}

impl Counted {
    /// Takes in what [`Self::encode`] wrote; once for each worker's state. The end of it is where that is cut short.
    pub fn restore(&mut self, state: &mut StateReader<'_>) {
        for _ in 0..state.u64().unwrap_or(0) {
            let (Some(source), Some(partition), Some(offset)) = (state.text(), state.u64(), state.u64())
            else {
                break;
            };
            let key = (source, Partition(partition));
            raise(&mut self.before, key.clone(), offset);
            raise(&mut self.complete, key, offset);
        }
    }

    /// The rows of `batch` that were not counted before the crash.
    pub fn fresh(&mut self, epoch: u64, batch: Batch) -> Option<Batch> {
        if !batch.origin().ordered {
            return Some(batch);
        }
        let key = (Arc::clone(&batch.origin().source), batch.origin().partition);
        let seen = self.before.get(&key).copied();
        let highest = batch.offsets().values().iter().copied().max().unwrap_or(0);
        raise(self.open.entry(epoch).or_default(), key, highest);
        match seen {
            Some(seen) => {
                let fresh: BooleanArray =
                    gt(batch.offsets(), &UInt64Array::new_scalar(seen)).expect("two columns of one type");
                batch.filter(&fresh).expect("Arrow filters columns of every type that a schema has")
            }
            None => Some(batch),
        }
    }

    /// The oldest epoch that is not complete, if there is one.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.open.first_key_value().map(|(epoch, _)| *epoch)
    }

    /// No more rows of `epoch` or of one before it.
    pub fn complete(&mut self, epoch: u64) {
        while let Some(entry) = self.open.first_entry().filter(|entry| *entry.key() <= epoch) {
            for (key, offset) in entry.remove() {
                raise(&mut self.complete, key, offset);
            }
        }
    }

    /// Appends what is counted of the epochs that are complete.
    pub fn encode(&self, writer: &mut StateWriter) {
        writer.u64(self.complete.len() as u64);
        for ((source, partition), offset) in &self.complete {
            writer.text(source);
            writer.u64(partition.0);
            writer.u64(*offset);
        }
    }
}

fn raise(offsets: &mut Offsets, key: (Arc<str>, Partition), offset: u64) {
    let highest = offsets.entry(key).or_insert(offset);
    *highest = (*highest).max(offset);
}
