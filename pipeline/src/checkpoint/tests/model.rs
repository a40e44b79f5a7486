//! Operators that hand in random changes, and what comes of these in memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, UInt16Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use logdrive_operators::flow::{Changes, TableChange, TablesInMemory, shard_of, shards_of, worker_of};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::super::folder::Folder;
use super::super::manifest::Manifest;
use super::super::rows;
use super::super::store::{Cut, Part};

const FINGERPRINT: u64 = 7;
/// What keys are spread over.
const PARTITIONS: i64 = 5;

/// What happens between two cuts.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    /// Key and value.
    pub(super) rows: Vec<(i64, i64)>,
    pub(super) removed: Vec<i64>,
    pub(super) dropped: Vec<i64>,
    pub(super) cleared: bool,
    /// The size of what is written whole.
    pub(super) blob: usize,
    /// Whether runs are merged before it goes on.
    pub(super) waits: bool,
}

pub(super) fn arb_steps() -> impl Strategy<Value = Vec<Step>> {
    let rows = prop::collection::vec((0..60i64, any::<i64>()), 0..25);
    let removed = prop::collection::vec(0..60i64, 0..8);
    let dropped = prop::collection::vec(0..PARTITIONS, 0..2);
    let step = (rows, removed, dropped, 0..30u8, 0..6_000usize, any::<bool>());
    let step = step.prop_map(|(rows, removed, dropped, cleared, blob, waits)| Step {
        rows,
        removed,
        dropped,
        cleared: cleared == 0,
        blob,
        waits,
    });
    prop::collection::vec(step, 1..40)
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("shard", DataType::UInt16, false),
        Field::new("partition", DataType::Int64, false),
        Field::new("key", DataType::Utf8View, false),
        Field::new("value", DataType::Int64, false),
    ]))
}

fn shard(key: i64) -> u16 {
    shard_of(xxh3_64(&key.to_le_bytes()))
}

fn columns(keys: &[i64], values: Option<&[i64]>) -> RecordBatch {
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(UInt16Array::from_iter_values(keys.iter().map(|key| shard(*key)))),
        Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key % PARTITIONS))),
        Arc::new(StringViewArray::from_iter_values(
            keys.iter().map(|key| format!("the key with number {key}")),
        )),
    ];
    columns.extend(values.map(|values| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef));
    let schema = schema().project(&(0..columns.len()).collect::<Vec<_>>()).unwrap();
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// What there should be.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    tables: TablesInMemory,
    blobs: Vec<Vec<u8>>,
}

impl Model {
    /// What the workers hand in; the model knows it from then on.
    pub(super) fn apply(&mut self, step: &Step, workers: usize) -> Vec<Part> {
        let of = |worker: usize, key: i64| worker_of(shard(key), workers) == worker;
        let parts = (0..workers).map(|worker| {
            let rows: Vec<(i64, i64)> =
                step.rows.iter().filter(|(key, _)| of(worker, *key)).copied().collect();
            let (keys, values): (Vec<i64>, Vec<i64>) = rows.into_iter().unzip();
            let removed: Vec<i64> = step.removed.iter().filter(|key| of(worker, **key)).copied().collect();
            let mut keyed = TableChange::new("keyed", &schema(), 3);
            let mut bag = TableChange::new("bag", &schema(), 0);
            for table in [&mut keyed, &mut bag] {
                table.cleared = step.cleared;
                table.dropped.clone_from(&step.dropped);
            }
            // In two batches, of which the second may have the same keys.
            let half = keys.len() / 2;
            for range in [0..half, half..keys.len()].into_iter().filter(|range| !range.is_empty()) {
                let rows = columns(&keys[range.clone()], Some(&values[range]));
                keyed.rows.push(rows.clone());
                bag.rows.push(rows);
            }
            if !removed.is_empty() {
                keyed.removed.push(columns(&removed, None));
            }
            let state = vec![worker as u8; step.blob / workers];
            let tables = [keyed, bag].into_iter().filter(|table| !table.is_empty()).collect();
            let changes =
                Changes { fingerprint: FINGERPRINT, shards: shards_of(worker, workers), state, tables };
            Part { operator: "view.keep".into(), worker, changes }
        });
        let parts: Vec<Part> = parts.collect();
        self.blobs = parts.iter().map(|part| part.changes.state.clone()).collect();
        parts.iter().for_each(|part| self.tables.apply(&part.changes).unwrap());
        parts
    }

    pub(super) fn cut(&self, cut: u64, parts: Vec<Part>) -> Cut {
        Cut { cut, parts, ..Cut::default() }
    }

    /// Compares it with a checkpoint, as a number of workers read it.
    pub(super) fn check(&self, folder: &Folder, manifest: &Manifest, workers: usize) {
        if manifest.cut == 0 {
            assert!(self.blobs.is_empty());
            return;
        }
        let operator = &manifest.operators["view.keep"];
        assert_eq!(operator.state.parts(folder).unwrap(), self.blobs);
        for table in ["keyed", "bag"] {
            for worker in 0..workers {
                let shards = shards_of(worker, workers);
                let expected = texts(self.tables.rows(table, &shards).unwrap());
                let found = operator.tables.get(table).map(|table| texts(rows(folder, table, &shards)));
                assert_eq!(found.unwrap_or_default(), expected, "{table} of worker {worker} of {workers}");
            }
        }
    }
}

fn texts(batches: impl IntoIterator<Item = RecordBatch>) -> Vec<String> {
    let options = FormatOptions::default();
    let of_batch = |rows: RecordBatch| {
        let formats: Vec<_> =
            rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        let row =
            |row| formats.iter().map(|format| format.value(row).to_string()).collect::<Vec<_>>().join("|");
        (0..rows.num_rows()).map(row).collect::<Vec<_>>()
    };
    let mut texts: Vec<String> = batches.into_iter().flat_map(of_batch).collect();
    texts.sort_unstable();
    texts
}
