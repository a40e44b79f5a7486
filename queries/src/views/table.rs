//! An open window whose groups are told at every change: the newest state and value of each group, found by its key.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Result;
use logdrive_operators::flow::n_bytes;

use super::container::tidy;
use super::grouping::Grouping;
use super::log::pane_column;
use super::spec::Aggregation;

/// How many outdated rows beside the groups may pile up before they are dropped.
const SLACK: usize = 8192;

/// The columns of a [`Table`], and how its rows are compared.
pub(super) struct TableLayout {
    schema: SchemaRef,
    n_keys: usize,
    n_part: usize,
    keys: RowConverter,
    values: Option<RowConverter>,
}

impl TableLayout {
    pub(super) fn new(aggregation: &Aggregation) -> Result<Self> {
        let n_keys = aggregation.n_keys();
        let part = aggregation.part_schema.fields();
        let mut fields = part.to_vec();
        for (idx, aggregate) in aggregation.aggregates.iter().enumerate() {
            let data_type = aggregate.function.field().data_type().clone();
            fields.push(Arc::new(Field::new(format!("value{idx}"), data_type, true)));
        }
        let sorted = |fields: &[Arc<Field>]| -> Vec<SortField> {
            fields.iter().map(|field| SortField::new(field.data_type().clone())).collect()
        };
        let values = sorted(&fields[part.len()..]);
        // A change of a value of another type is always told.
        let values = (!values.is_empty() && RowConverter::supports_fields(&values))
            .then(|| RowConverter::new(values))
            .transpose()?;
        let keys = RowConverter::new(sorted(&fields[..n_keys]))?;
        Ok(Self { n_part: part.len(), schema: Arc::new(Schema::new(fields)), n_keys, keys, values })
    }

    /// The types of the columns of the key, the pane's first.
    pub(super) fn key_types(&self) -> impl Iterator<Item = DataType> {
        self.schema.fields()[..self.n_keys].iter().map(|field| field.data_type().clone())
    }

    /// How many columns the key has, with the pane.
    pub(super) fn n_keys(&self) -> usize {
        self.n_keys
    }

    /// The columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many columns a part has.
    pub(super) fn n_part(&self) -> usize {
        self.n_part
    }

    /// Rows of this layout.
    pub(super) fn batch(&self, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// Whether groups can be told apart by this key.
    pub(super) fn supports(keys: impl IntoIterator<Item = DataType>) -> bool {
        RowConverter::supports_fields(&keys.into_iter().map(SortField::new).collect::<Vec<_>>())
    }
}

/// The groups of one window.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// From a key to the number of its group.
    index: HashMap<Box<[u8]>, usize>,
    /// Where the row of each group is: which batch, which row.
    slots: Vec<(usize, usize)>,
    batches: Vec<RecordBatch>,
    n_rows: usize,
    n_bytes: usize,
    /// Groups that are not in the checkpoint as they are, each once.
    changed: Vec<usize>,
    is_changed: Vec<bool>,
    /// Whether the checkpoint has some of it.
    is_saved: bool,
}

/// Rows of a [`Table`]: part, values.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) old: Option<RecordBatch>,
    pub(super) new: RecordBatch,
}

impl Table {
    /// Adds parts; what that changes, if anything.
    pub(super) fn apply(
        &mut self,
        parts: &[RecordBatch],
        window: i64,
        layout: &TableLayout,
        grouping: &mut Grouping,
    ) -> Result<Option<Change>> {
        for part in parts {
            grouping.merge(part.columns(), Some(pane_column(window, part.num_rows())))?;
        }
        let added = grouping.take_part()?;
        let keys = layout.keys.convert_columns(&added.columns()[..layout.n_keys])?;
        let slots: Vec<Option<usize>> =
            keys.iter().map(|key| self.index.get(key.as_ref()).copied()).collect();
        let places: Vec<(usize, usize)> = slots.iter().flatten().map(|slot| self.slots[*slot]).collect();
        let old = self.rows(&places, layout)?;
        // Groups keep their order: that of `added`.
        grouping.merge(added.columns(), None)?;
        if let Some(old) = &old {
            grouping.merge(&old.columns()[..layout.n_part], None)?;
        }
        let (part, values) = grouping.take_both()?;
        let columns = part.columns().iter().cloned().chain(values).collect();
        let new = layout.batch(columns)?;

        let at = self.batches.len();
        for (row, (slot, key)) in slots.iter().zip(keys.iter()).enumerate() {
            let slot = match slot {
                Some(slot) => {
                    self.slots[*slot] = (at, row);
                    *slot
                }
                None => self.insert(key.as_ref(), (at, row)),
            };
            if !std::mem::replace(&mut self.is_changed[slot], true) {
                self.changed.push(slot);
            }
        }
        self.n_rows += new.num_rows();
        self.n_bytes += n_bytes(&new);
        self.batches.push(new.clone());
        if self.n_rows > 2 * self.slots.len() + SLACK {
            self.compact(layout)?;
        }
        changed(old, new, &slots, layout)
    }

    fn insert(&mut self, key: &[u8], place: (usize, usize)) -> usize {
        let slot = self.slots.len();
        self.index.insert(key.into(), slot);
        self.slots.push(place);
        self.is_changed.push(false);
        slot
    }

    /// Drops the rows that are outdated.
    pub(super) fn compact(&mut self, layout: &TableLayout) -> Result<()> {
        let live = self.rows(&self.slots.clone(), layout)?;
        self.n_rows = self.slots.len();
        self.slots = (0..self.n_rows).map(|row| (0, row)).collect();
        self.batches = live.map(|rows| tidy(&rows)).transpose()?.into_iter().collect();
        self.n_bytes = self.batches.iter().map(n_bytes).sum();
        Ok(())
    }

    /// The groups that are not in the checkpoint as they are, which they will be from now on.
    pub(super) fn take_changed(&mut self, layout: &TableLayout) -> Result<Option<RecordBatch>> {
        let places: Vec<(usize, usize)> = self.changed.iter().map(|slot| self.slots[*slot]).collect();
        let rows = self.rows(&places, layout)?;
        for slot in self.changed.drain(..) {
            self.is_changed[slot] = false;
        }
        self.is_saved |= rows.is_some();
        Ok(rows)
    }

    /// Whether the checkpoint has some of it.
    pub(super) fn is_saved(&self) -> bool {
        self.is_saved
    }

    /// Brings back rows of the checkpoint.
    pub(super) fn restore(&mut self, columns: Vec<ArrayRef>, layout: &TableLayout) -> Result<()> {
        let rows = layout.batch(columns)?;
        let keys = layout.keys.convert_columns(&rows.columns()[..layout.n_keys])?;
        let at = self.batches.len();
        for (row, key) in keys.iter().enumerate() {
            self.insert(key.as_ref(), (at, row));
        }
        self.n_rows += rows.num_rows();
        self.n_bytes += n_bytes(&rows);
        self.batches.push(rows);
        self.is_saved = true;
        Ok(())
    }

    pub(super) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    pub(super) fn n_rows(&self) -> usize {
        self.slots.len()
    }

    /// About how many bytes it takes; the index counts by its entries.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes + self.slots.len() * 96
    }

    fn rows(&self, places: &[(usize, usize)], layout: &TableLayout) -> Result<Option<RecordBatch>> {
        if places.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let rows = interleave_record_batch(&batches, places)?;
        debug_assert_eq!(rows.schema(), layout.schema);
        Ok(Some(rows))
    }
}

/// Only the groups whose value is another one now.
fn changed(
    old: Option<RecordBatch>,
    new: RecordBatch,
    slots: &[Option<usize>],
    layout: &TableLayout,
) -> Result<Option<Change>> {
    let Some(old) = old else { return Ok(Some(Change { old: None, new })) };
    let Some(values) = &layout.values else { return Ok(Some(Change { old: Some(old), new })) };
    let of = |rows: &RecordBatch| values.convert_columns(&rows.columns()[layout.n_part..]);
    let (before, after) = (of(&old)?, of(&new)?);
    let (mut old_rows, mut new_rows) = (Vec::new(), Vec::new());
    let mut old_row = 0;
    for (row, slot) in slots.iter().enumerate() {
        let is_new = slot.is_none();
        if is_new || before.row(old_row) != after.row(row) {
            new_rows.push(row as u32);
            old_rows.extend((!is_new).then_some(old_row as u32));
        }
        old_row += usize::from(!is_new);
    }
    if new_rows.is_empty() {
        return Ok(None);
    }
    let old =
        (!old_rows.is_empty()).then(|| take_record_batch(&old, &UInt32Array::from(old_rows))).transpose()?;
    Ok(Some(Change { old, new: take_record_batch(&new, &UInt32Array::from(new_rows))? }))
}

/// The columns of the keys and of the values of rows of a [`Table`].
pub(super) fn keys_and_values(rows: &RecordBatch, layout: &TableLayout) -> (Vec<ArrayRef>, Vec<ArrayRef>) {
    let columns = rows.columns();
    (columns[..layout.n_keys].to_vec(), columns[layout.n_part..].to_vec())
}
