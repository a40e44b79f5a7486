//! Changes of a view on their way to sinks that write each row once.
//!
//! After a crash a view goes on from a checkpoint, and epochs are cut otherwise: what it tells again are other changes
//! that come to the same. So these sinks get changes only once a checkpoint that has them is on disk. They are in it
//! under the identities by which they leave, until a later one, for which every sink has made durable what came before,
//! has them no longer. A process that ends in between tells the same ones again, and the sinks know them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryViewArray, Int64Array, RecordBatch, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt64Type};
use logdrive_operators::flow::{Changes, Cuts, TableChange, frontier, shards_of};
use logdrive_operators::{BatchStream, Batches, Checkpoint, WorkerContext};
use logdrive_schemas::{Batch, Epoch, Layout, Origin, Partition};
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::ViewPlan;

/// The table of the changes that have not left for certain.
const CHANGES: &str = "changes";
/// How many columns are before those of the row.
const N_BEFORE: usize = 4;
/// So many changes of a worker have numbers between those of two epochs.
const PER_EPOCH_BITS: u32 = 20;

/// The changes of one view on one worker.
#[derive(Debug)]
pub(super) struct Outbox {
    view: Arc<str>,
    operator: String,
    fingerprint: u64,
    rows: SchemaRef,
    /// The columns of the table: shard, cut, partition and offset, the row's.
    table: SchemaRef,
    worker: u64,
    shards: Range<u16>,
    /// Of epochs that are complete, and in no checkpoint.
    complete: Vec<Batch>,
    /// By the cut at which they were handed in.
    handed_in: BTreeMap<u64, Vec<Batch>>,
    /// The cuts whose changes have left, and the epochs at which they did.
    left: Vec<(u64, u64)>,
    next_offset: u64,
}

impl Outbox {
    /// With what the checkpoint has.
    pub(super) fn new(view: &ViewPlan, cx: &WorkerContext) -> Self {
        let mut outbox = Self::empty(&view.name, view.outbox(), view.view.schema(), cx.index, cx.peers);
        outbox.restore(&*cx.checkpoint);
        outbox
    }

    fn empty(view: &Arc<str>, operator: String, rows: SchemaRef, worker: usize, peers: usize) -> Self {
        let table = table_schema(&rows);
        Self {
            view: Arc::clone(view),
            operator,
            fingerprint: xxh3_64(format!("{rows:?}").as_bytes()),
            rows,
            table,
            worker: worker as u64,
            shards: shards_of(worker, peers),
            complete: Vec::new(),
            handed_in: BTreeMap::new(),
            left: Vec::new(),
            next_offset: 0,
        }
    }

    fn restore(&mut self, checkpoint: &dyn Checkpoint) {
        let shards = self.shards.clone();
        for rows in checkpoint.restored_rows(&self.operator, self.fingerprint, CHANGES, shards) {
            let number = |idx: usize| rows.column(idx).as_primitive::<Int64Type>().values();
            let mut places: BTreeMap<(i64, i64), Vec<u32>> = BTreeMap::new();
            for (row, place) in (0..).zip(number(1).iter().copied().zip(number(2).iter().copied())) {
                places.entry(place).or_default().push(row);
            }
            for ((cut, partition), of_place) in places {
                let of_place =
                    take_record_batch(&rows, &UInt32Array::from(of_place)).expect("rows of the batch itself");
                let offsets = of_place.column(3).as_primitive::<UInt64Type>().clone();
                let columns = of_place.columns()[N_BEFORE..].to_vec();
                let rows = RecordBatch::try_new(Arc::clone(&self.rows), columns)
                    .expect("the fingerprint is that of the columns");
                let cut = cut.cast_unsigned();
                let batch = self.batch(rows, offsets, partition.cast_unsigned(), cut);
                self.handed_in.entry(cut).or_default().extend(batch);
            }
        }
    }

    /// Rows under the identities by which they leave. In a partition offsets grow from cut to cut.
    fn batch(&self, rows: RecordBatch, offsets: UInt64Array, partition: u64, cut: u64) -> Option<Batch> {
        let origin = Origin {
            source: Arc::clone(&self.view),
            partition: Partition(partition),
            ordered: true,
            received_at: i64::try_from(cut).unwrap_or(i64::MAX).saturating_mul(Epoch::UNIT_US),
            peer: None,
        };
        let original = BinaryViewArray::from_iter_values(offsets.iter().map(|_| b""));
        Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns))
    }

    /// Gives what is complete its identities, as of a cut.
    fn number(&mut self, cut: u64) -> Vec<Batch> {
        // Also if nothing was restored: sinks remember how far they came.
        self.next_offset = self.next_offset.max(cut << PER_EPOCH_BITS);
        let mut numbered = Vec::with_capacity(self.complete.len());
        for batch in std::mem::take(&mut self.complete) {
            let end = self.next_offset + batch.num_rows() as u64;
            let offsets = UInt64Array::from_iter_values(self.next_offset..end);
            self.next_offset = end;
            numbered.extend(self.batch(batch.rows().clone(), offsets, self.worker, cut));
        }
        numbered
    }

    /// What changed at a cut: new changes, and those that the sinks have.
    fn cut(&mut self, cut: u64) -> Changes {
        let mut table = TableChange::new(CHANGES, &self.table, 0);
        let arrived = self.left.extract_if(.., |(_, at)| *at < cut);
        table.dropped = arrived.map(|(cut, _)| cut.cast_signed()).collect();
        let shards = self.shards.clone();
        let numbered = self.number(cut);
        table.rows = numbered.iter().map(|batch| self.table_rows(batch, cut, shards.start)).collect();
        if !numbered.is_empty() {
            self.handed_in.insert(cut, numbered);
        }
        let tables = if table.is_empty() { Vec::new() } else { vec![table] };
        Changes { fingerprint: self.fingerprint, shards, state: Vec::new(), tables }
    }

    fn table_rows(&self, batch: &Batch, cut: u64, shard: u16) -> RecordBatch {
        let n_rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt16Array::from_value(shard, n_rows)),
            Arc::new(Int64Array::from_value(cut.cast_signed(), n_rows)),
            Arc::new(Int64Array::from_value(batch.origin().partition.0.cast_signed(), n_rows)),
            Arc::new(batch.offsets().clone()),
        ];
        columns.extend(batch.rows().columns().iter().map(Arc::clone));
        RecordBatch::try_new(Arc::clone(&self.table), columns).expect("rows of a view have its columns")
    }

    /// What may leave at `epoch`, since a checkpoint of `written` or before has it.
    fn release(&mut self, written: u64, epoch: u64) -> Vec<Batch> {
        let later = self.handed_in.split_off(&(written + 1));
        let ready = std::mem::replace(&mut self.handed_in, later);
        self.left.extend(ready.keys().map(|cut| (*cut, epoch)));
        ready.into_values().flatten().collect()
    }

    /// Everything: no checkpoint follows.
    fn rest(&mut self, epoch: u64) -> Vec<Batch> {
        let mut rest: Vec<Batch> = std::mem::take(&mut self.handed_in).into_values().flatten().collect();
        rest.append(&mut self.number(epoch));
        rest
    }
}

fn table_schema(rows: &Schema) -> SchemaRef {
    let field = |name: &str, data_type| Arc::new(Field::new(name, data_type, false));
    let mut fields = vec![
        field("shard", DataType::UInt16),
        field("cut", DataType::Int64),
        field("_partition", DataType::Int64),
        field("_offset", DataType::UInt64),
    ];
    // A view's columns may have any name.
    fields.extend(
        rows.fields().iter().map(|field| {
            Arc::new(Field::new(format!("row.{}", field.name()), field.data_type().clone(), true))
        }),
    );
    Arc::new(Schema::new(fields))
}

/// Holds the changes of a view back until they may leave.
pub(super) fn attach<'scope>(
    mut outbox: Outbox,
    input: BatchStream<'scope>,
    cx: &WorkerContext,
) -> BatchStream<'scope> {
    let mut cuts = Cuts::new(outbox.operator.clone(), cx);
    let (checkpoint, lifecycle) = (Arc::clone(&cx.checkpoint), Arc::clone(&cx.lifecycle));
    let mut builder = OperatorBuilder::new(outbox.operator.clone(), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let (output, stream) = builder.new_output::<Batches>();
    let mut output = OutputBuilder::<u64, NoopBuilder<Batches>>::from(output);
    builder.build(move |mut capabilities| {
        let mut clock = capabilities.pop();
        let mut open: BTreeMap<u64, Vec<Batch>> = BTreeMap::new();
        move |frontiers| {
            let Some(now) = &mut clock else { return };
            input.for_each(|time, batches| {
                open.entry(*time.time()).or_default().append(&mut batches.0);
            });
            let frontier = frontier(frontiers);
            let is_over = |epoch: &u64| frontier.is_none_or(|frontier| *epoch < frontier);
            while let Some(entry) = open.first_entry().filter(|entry| is_over(entry.key())) {
                cuts.pass_changes(*entry.key(), |cut| outbox.cut(cut));
                outbox.complete.append(&mut entry.remove());
            }
            let changes = match frontier {
                // Before anything is known the frontier is at zero.
                Some(0) => Vec::new(),
                Some(frontier) => {
                    cuts.pass_changes(frontier, |cut| outbox.cut(cut));
                    now.downgrade(&frontier);
                    outbox.release(checkpoint.written(), frontier)
                }
                // What no checkpoint has comes again, as other changes, at the next start.
                None if lifecycle.is_stopping() => outbox.release(checkpoint.written(), *now.time()),
                None => outbox.rest(*now.time()),
            };
            if !changes.is_empty() {
                output.activate().session_with_builder(&*now).give_container(&mut Batches(changes));
            }
            if frontier.is_none() {
                clock = None;
            }
        }
    });
    stream
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow::array::Int32Array;
    use logdrive_operators::flow::TablesInMemory;

    use super::*;

    #[derive(Debug, Default)]
    struct Tables(Mutex<TablesInMemory>);

    impl Checkpoint for Tables {
        fn next_cut(&self, epoch: u64) -> u64 {
            epoch
        }

        fn put(&self, _: &str, _: usize, _: u64, _: Vec<u8>) {}

        fn put_changes(&self, _: &str, _: usize, _: u64, changes: Changes) {
            self.0.lock().unwrap().apply(&changes).unwrap();
        }

        fn restored_rows(
            &self,
            _: &str,
            _: u64,
            table: &str,
            shards: Range<u16>,
        ) -> Box<dyn Iterator<Item = RecordBatch> + '_> {
            Box::new(self.0.lock().unwrap().rows(table, &shards).unwrap().into_iter())
        }

        fn restored(&self, _: &str) -> Vec<Vec<u8>> {
            Vec::new()
        }
    }

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, true)]))
    }

    fn outbox(tables: &Tables, worker: usize, peers: usize) -> Outbox {
        let mut outbox = Outbox::empty(&"v".into(), "v.outbox".into(), schema(), worker, peers);
        outbox.restore(tables);
        outbox
    }

    /// Rows of a view, as it tells them.
    fn told(numbers: &[i32]) -> Batch {
        let rows =
            RecordBatch::try_new(schema(), vec![Arc::new(Int32Array::from(numbers.to_vec()))]).unwrap();
        let origin = Origin {
            source: "v".into(),
            partition: Partition(0),
            ordered: false,
            received_at: 0,
            peer: None,
        };
        let offsets = UInt64Array::from(vec![7; numbers.len()]);
        let original = BinaryViewArray::from_iter_values(numbers.iter().map(|_| b""));
        Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns)).unwrap()
    }

    fn ids(batches: &[Batch]) -> Vec<String> {
        let mut ids: Vec<String> =
            batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| batch.id(row))).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn changes_leave_once_a_checkpoint_has_them_and_stay_in_it_until_the_sinks_do() {
        let tables = Tables::default();
        let hand_in = |outbox: &mut Outbox, cut| {
            let changes = outbox.cut(cut);
            tables.put_changes("", 0, cut, changes);
        };
        let mut first = outbox(&tables, 0, 1);
        first.complete.push(told(&[1, 2]));
        hand_in(&mut first, 1_000);
        first.complete.push(told(&[3]));
        assert!(first.release(0, 1_100).is_empty(), "no checkpoint is on disk");
        let left = ids(&first.release(1_000, 1_100));
        assert_eq!(left.len(), 2);

        // On other numbers of workers the same leave under the same identities, each on one.
        for peers in [1, 3] {
            let of = |index| outbox(&tables, index, peers).release(1_000, 5_000);
            let again: Vec<Batch> = (0..peers).flat_map(of).collect();
            assert_eq!(ids(&again), left, "{peers} workers");
        }
        // What left before a cut is in no checkpoint from then on; what came behind has higher numbers.
        hand_in(&mut first, 2_000);
        let mut second = outbox(&tables, 0, 1);
        let later = second.release(2_000, 3_000);
        assert_eq!(later.iter().map(Batch::num_rows).sum::<usize>(), 1);
        assert!(left.iter().all(|before| *before < ids(&later)[0]));
    }
}
