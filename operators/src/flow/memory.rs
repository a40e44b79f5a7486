//! Tables in memory: what a checkpoint amounts to, said as simply as can be, for tests of operators and of stores.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, SchemaRef, UInt16Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use super::changes::{Changes, TableChange};

/// Where a row is: shard, partition, key, and a number that tells rows without a key apart.
type Place = (u16, i64, Box<[u8]>, u64);

/// The tables of one operator, of all its instances.
#[derive(Clone, Debug, Default)]
pub struct TablesInMemory {
    tables: BTreeMap<String, (SchemaRef, BTreeMap<Place, RecordBatch>)>,
    n_added: u64,
    /// What they were handed in with.
    pub fingerprint: u64,
    /// How many rows were handed in, with those whose keys were removed.
    pub n_changes: usize,
}

impl TablesInMemory {
    /// Takes in what an instance handed in.
    ///
    /// # Errors
    /// If a batch does not have its table's columns.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), ArrowError> {
        self.fingerprint = changes.fingerprint;
        changes.tables.iter().try_for_each(|change| self.change(change, &changes.shards))
    }

    fn change(&mut self, change: &TableChange, shards: &Range<u16>) -> Result<(), ArrowError> {
        let entry = self.tables.entry(change.table.to_owned());
        let (_, rows) = entry.or_insert_with(|| (SchemaRef::clone(&change.schema), BTreeMap::new()));
        rows.retain(|(shard, partition, ..), _| {
            !shards.contains(shard) || !(change.cleared || change.dropped.contains(partition))
        });
        for batch in &change.removed {
            for (place, _) in places(batch, change.n_keys)? {
                rows.remove(&place);
            }
            self.n_changes += batch.num_rows();
        }
        for batch in &change.rows {
            for (mut place, row) in places(batch, change.n_keys)? {
                if change.n_keys == 0 {
                    self.n_added += 1;
                    place.3 = self.n_added;
                }
                rows.insert(place, batch.slice(row, 1));
            }
            self.n_changes += batch.num_rows();
        }
        Ok(())
    }

    /// The rows of a table in these shards.
    ///
    /// # Errors
    /// If batches of one table do not have the same columns.
    pub fn rows(&self, table: &str, shards: &Range<u16>) -> Result<Option<RecordBatch>, ArrowError> {
        let Some((schema, rows)) = self.tables.get(table) else { return Ok(None) };
        let mine = rows.iter().filter(|((shard, ..), _)| shards.contains(shard)).map(|(_, row)| row);
        concat_batches(schema, mine).map(Some)
    }
}

fn places(rows: &RecordBatch, n_keys: usize) -> Result<Vec<(Place, usize)>, ArrowError> {
    let columns = &rows.columns()[..n_keys];
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let keys = RowConverter::new(fields)?.convert_columns(columns)?;
    let shards = rows.column(0).as_primitive::<UInt16Type>().values();
    let partitions = rows.column(1).as_primitive::<Int64Type>().values();
    let key = |row: usize| if n_keys == 0 { Box::default() } else { keys.row(row).as_ref().into() };
    Ok((0..rows.num_rows()).map(|row| ((shards[row], partitions[row], key(row), 0), row)).collect())
}
