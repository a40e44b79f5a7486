//! The timely glue: the container that streams carry, and what operators keep over crashes.

mod changes;
mod counted;
mod memory;
mod open;
mod shards;
mod state;

use logdrive_schemas::Batch;
use timely::Accountable;
use timely::dataflow::Stream;

pub use self::changes::{Changes, TableChange, n_bytes};
pub use self::counted::Counted;
pub use self::memory::TablesInMemory;
pub use self::open::{OpenEpochs, frontier};
pub use self::shards::{SHARDS, shard_of, shards_of, worker_of};
pub use self::state::{Cuts, StateReader, StateWriter, fingerprint_of, restored};

/// What a channel carries. The record count is the number of **rows**, so that splitting a batch by key preserves the
/// count that progress tracking relies on.
#[derive(Clone, Debug, Default)]
pub struct Batches(pub Vec<Batch>);

impl Accountable for Batches {
    fn record_count(&self) -> i64 {
        self.0.iter().map(|batch| batch.num_rows() as i64).sum()
    }
}

/// A stream of batches, stamped with [`logdrive_schemas::Epoch`] as a plain number.
pub type BatchStream<'scope> = Stream<'scope, u64, Batches>;
