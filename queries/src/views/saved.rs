//! The open and the closed windows on their way into and out of checkpoints.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt16Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Result;
use logdrive_operators::Checkpoint;
use logdrive_operators::flow::{Changes, TableChange, restored, shard_of, shards_of};

use super::container::tidy;
use super::keep::{Keep, Open, by_pane};
use super::log::pane_column;
use super::output::hashes;
use super::past::Past;
use super::sessions::Sessions;
use super::spec::Aggregation;

/// The windows that are open.
const OPEN: &str = "open";
/// The rows of windows that have closed, for readers.
const CLOSED: &str = "closed";

impl Keep {
    fn shards(&self) -> Range<u16> {
        shards_of(self.cx.index, self.cx.peers)
    }

    /// The tables' columns: those of open windows, and how many of these are the key; those of closed ones.
    fn tables(&self, aggregation: &Aggregation) -> (TableChange, TableChange) {
        let (fields, n_keys) = match &self.open {
            Open::Final(_) => (Arc::clone(&aggregation.part_schema), 0),
            Open::Changes(_, layout) => (Arc::clone(layout.schema()), 1 + layout.n_keys()),
            Open::Sessions(_, layout) => (Sessions::state_schema(layout), 1 + layout.n_keys()),
        };
        let open = TableChange::new(OPEN, &with_shard(fields.fields().iter().cloned()), n_keys);
        // A view's columns may have any name.
        let of_view = self.spec.schema.fields().iter();
        let of_view = of_view.map(|field| {
            Arc::new(Field::new(format!("row.{}", field.name()), field.data_type().clone(), true))
        });
        let window = Arc::new(Field::new("window", DataType::Int64, false));
        let closed = TableChange::new(CLOSED, &with_shard(std::iter::once(window).chain(of_view)), 0);
        (open, closed)
    }

    /// What changed since it was asked last.
    pub(super) fn changes(&mut self) -> Result<Changes> {
        let spec = Arc::clone(&self.spec);
        let Some(aggregation) = &spec.aggregation else { return Ok(self.nothing(false)) };
        let (mut open, mut closed) = self.tables(aggregation);
        open.dropped = std::mem::take(&mut self.gone);
        match &mut self.open {
            Open::Final(logs) => {
                for (window, log) in logs {
                    let (is_outdated, parts) = log.take_changed(*window)?;
                    open.dropped.extend(is_outdated.then_some(*window));
                    for part in parts {
                        open.rows.push(sharded(&part, &open.schema, aggregation)?);
                    }
                }
            }
            Open::Changes(tables, layout) => {
                for table in tables.values_mut() {
                    if let Some(rows) = table.take_changed(layout)? {
                        open.rows.push(sharded(&rows, &open.schema, aggregation)?);
                    }
                }
            }
            Open::Sessions(sessions, layout) => {
                let changed = sessions.take_changed(layout)?;
                open.cleared = changed.is_cleared;
                let of_keys = Arc::new(open.schema.project(&(0..open.n_keys).collect::<Vec<_>>())?);
                for rows in &changed.gone {
                    open.removed.push(sharded(rows, &of_keys, aggregation)?);
                }
                if let Some(rows) = changed.rows {
                    open.rows.push(sharded(&rows, &open.schema, aggregation)?);
                }
            }
        }
        let (gone, rows) = self.closed.take_changed();
        closed.dropped = gone;
        let shard = self.shards().start;
        for (window, rows) in rows {
            let n_rows = rows.num_rows();
            let shard: ArrayRef = Arc::new(UInt16Array::from_value(shard, n_rows));
            let columns = [shard, pane_column(window, n_rows)].into_iter();
            let columns = columns.chain(rows.columns().iter().map(Arc::clone)).collect();
            closed.rows.push(RecordBatch::try_new(Arc::clone(&closed.schema), columns)?);
        }
        if std::mem::take(&mut self.clears) {
            (open.cleared, closed.cleared) = (true, true);
        }
        let tables = [open, closed].into_iter().filter(|table| !table.is_empty()).collect();
        Ok(Changes { tables, ..self.nothing(false) })
    }

    /// The state of a view that has stopped: that, and its limit. It stays so after a restart.
    pub(super) fn stopped(&self) -> Changes {
        let mut changes = self.nothing(true);
        if let Some(aggregation) = &self.spec.aggregation {
            let (open, closed) = self.tables(aggregation);
            changes.tables = [open, closed].map(|table| TableChange { cleared: true, ..table }).into();
        }
        changes
    }

    fn nothing(&self, stopped: bool) -> Changes {
        Changes {
            fingerprint: self.view.fingerprint,
            shards: self.shards(),
            state: self.state(stopped),
            tables: Vec::new(),
        }
    }

    fn state(&self, stopped: bool) -> Vec<u8> {
        let mut writer = Past::write(self.view.fingerprint, stopped, self.view.options.max_bytes, &self.cx);
        writer.i64(self.watermark);
        writer.finish()
    }

    /// Takes from a checkpoint what this worker is responsible for.
    pub(super) fn restore(&mut self, checkpoint: &dyn Checkpoint, operator: &str) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let Some(aggregation) = &spec.aggregation else { return Ok(()) };
        for (_, _, mut state) in restored(&checkpoint.restored(operator), self.view.fingerprint) {
            // Whether it had stopped, and its limit: it had not.
            let _ = (state.u64(), state.u64());
            self.watermark = self.watermark.max(state.i64().unwrap_or(i64::MIN));
        }
        let (fingerprint, shards) = (self.view.fingerprint, self.shards());
        let rows_of = |table| checkpoint.restored_rows(operator, fingerprint, table, shards.clone());
        match &mut self.open {
            Open::Final(logs) => {
                for (window, rows) in by_window(rows_of(OPEN))? {
                    // States of accumulators are never null, but their columns came back as if they could be.
                    let columns = rows.columns()[1..].to_vec();
                    let part = RecordBatch::try_new(Arc::clone(&aggregation.part_schema), columns)?;
                    logs.entry(window).or_default().restore(part);
                }
            }
            Open::Changes(tables, layout) => {
                for (window, rows) in by_window(rows_of(OPEN))? {
                    tables.entry(window).or_default().restore(rows.columns()[1..].to_vec(), layout)?;
                }
            }
            Open::Sessions(sessions, layout) => {
                for rows in rows_of(OPEN) {
                    sessions.restore(&rows.columns()[1..], layout)?;
                }
            }
        }
        let mut closed = BTreeMap::new();
        for (window, rows) in by_window(rows_of(CLOSED))? {
            let rows = RecordBatch::try_new(Arc::clone(&spec.schema), rows.columns()[2..].to_vec())?;
            closed.insert(window, vec![rows]);
        }
        self.closed.restore(closed);
        Ok(())
    }
}

fn with_shard(fields: impl Iterator<Item = Arc<Field>>) -> SchemaRef {
    let shard = Arc::new(Field::new("shard", DataType::UInt16, false));
    Arc::new(Schema::new(std::iter::once(shard).chain(fields).collect::<Vec<_>>()))
}

/// Rows that begin with pane and key, with the shard of the key in front.
fn sharded(rows: &RecordBatch, schema: &SchemaRef, aggregation: &Aggregation) -> Result<RecordBatch> {
    let hashes = hashes(&rows.columns()[1..aggregation.n_keys()], rows.num_rows())?;
    let shards: ArrayRef = Arc::new(UInt16Array::from_iter_values(hashes.into_iter().map(shard_of)));
    let columns = std::iter::once(shards).chain(rows.columns().iter().map(Arc::clone)).collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Rows of a checkpoint by their partition, one batch for each.
fn by_window(rows: impl Iterator<Item = RecordBatch>) -> Result<BTreeMap<i64, RecordBatch>> {
    let mut windows: BTreeMap<i64, Vec<RecordBatch>> = BTreeMap::new();
    for rows in rows {
        for (window, rows) in by_pane(&rows, 1)? {
            windows.entry(window).or_default().push(tidy(&rows)?);
        }
    }
    let one =
        |(window, rows): (i64, Vec<RecordBatch>)| Ok((window, concat_batches(rows[0].schema_ref(), &rows)?));
    windows.into_iter().map(one).collect()
}
