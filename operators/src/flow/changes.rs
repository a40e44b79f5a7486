//! What changes in the state of an operator between two cuts, as rows of tables.

use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};

/// What an instance of an operator hands in at a cut.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Another one means that old state does not fit any more.
    pub fingerprint: u64,
    /// The shards whose keys the instance keeps.
    pub shards: Range<u16>,
    /// What is small, whole.
    pub state: Vec<u8>,
    /// What changed in its tables since the cut before at which it handed something in.
    pub tables: Vec<TableChange>,
}

/// What changed in a table. In this order: `cleared`, `dropped`, `removed`, `rows`.
///
/// The first two columns of a table are the shard (`UInt16`) and the partition (`Int64`): a slice of event time, or
/// whatever else rows leave together by.
#[derive(Clone, Debug)]
pub struct TableChange {
    /// Its name, unique in the operator.
    pub table: &'static str,
    /// All its columns.
    pub schema: SchemaRef,
    /// How many columns, from the first, make up a row's key. With 0 rows have none: they are only added, and leave by
    /// partition.
    pub n_keys: usize,
    /// Nothing that was in the instance's shards counts any more.
    pub cleared: bool,
    /// Partitions of the instance's shards whose rows are gone.
    pub dropped: Vec<i64>,
    /// Keys whose rows are gone: the columns of the key.
    pub removed: Vec<RecordBatch>,
    /// Rows that are new, or take the place of those with their keys.
    pub rows: Vec<RecordBatch>,
}

impl TableChange {
    /// No change.
    #[must_use]
    pub fn new(table: &'static str, schema: &SchemaRef, n_keys: usize) -> Self {
        Self {
            table,
            schema: SchemaRef::clone(schema),
            n_keys,
            cleared: false,
            dropped: Vec::new(),
            removed: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.cleared && self.dropped.is_empty() && self.removed.is_empty() && self.rows.is_empty()
    }
}

impl Changes {
    /// About how many bytes they take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let batches = self.tables.iter().flat_map(|table| table.removed.iter().chain(&table.rows));
        let dropped: usize = self.tables.iter().map(|table| table.dropped.len() * size_of::<i64>()).sum();
        self.state.len() + dropped + batches.map(n_bytes).sum::<usize>()
    }
}

/// About how many bytes the values of a batch take; not what it shares with others.
#[must_use]
pub fn n_bytes(rows: &RecordBatch) -> usize {
    let of_column = |column: &dyn Array| match column.data_type() {
        DataType::Utf8View => 16 * column.len() + column.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => 16 * column.len() + column.as_binary_view().total_buffer_bytes_used(),
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    };
    rows.columns().iter().map(|column| of_column(column)).sum()
}
