//! The rows of a leaf, on the worker that keeps them: what comes, goes on into the view, leaves again when its time is
//! over, and is written into checkpoints as it changes.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt16Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::Result;
use differential_dataflow::AsCollection;
use logdrive_operators::flow::{
    Changes, Cuts, OpenEpochs, TableChange, frontier, restored, shard_of, shards_of, worker_of,
};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::health::Health;
use super::super::past::Past;
use super::DeltaView;
use super::arranged::SEED;
use super::codec::{Codec, Row};
use super::kept::{Changed, Kept, NEVER, Place, Update};
use super::render::Rows;

/// The table of the rows that are kept.
const ROWS: &str = "rows";
/// How many columns are before those of the row.
const N_BEFORE: usize = 4;

/// A row on its way to the worker that keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Coming {
    pub(super) row: Row,
    pub(super) place: Place,
    pub(super) diff: i64,
}

/// The shard of a row.
fn shard(row: &[u8]) -> u16 {
    shard_of(xxh3_64_with_seed(row, SEED))
}

/// Keeps the rows of a leaf on one worker.
pub(super) struct Keeper {
    operator: String,
    codec: Codec,
    kept: Kept,
    /// The columns of the table: shard, partition, place, the row's, its count. All but the last are the key, if rows
    /// may be taken back.
    schema: SchemaRef,
    n_keys: usize,
    /// What an earlier view has in the checkpoint does not count any more.
    clears: bool,
    /// Every epoch up to this one is part of the state.
    passed: u64,
    restored: Vec<Update>,
    /// The epoch at whose end event time had come to a watermark that nothing has left for yet.
    due: Option<(u64, i64)>,
    fingerprint: u64,
    max_bytes: u64,
    health: Health,
}

impl Keeper {
    /// For the leaf `idx` of `view`, which goes on with the rows of the checkpoint or begins without them.
    pub(super) fn new(view: &DeltaView, idx: usize, goes_on: bool, health: &Health) -> Result<Self> {
        let leaf = &view.leaves[idx];
        let schema = table_schema(&leaf.schema);
        let n_keys = if leaf.takes_back() { schema.fields().len() - 1 } else { 0 };
        let mut keeper = Self {
            operator: view.operator("leaf", idx),
            codec: Codec::new(&leaf.schema)?,
            kept: Kept::new(leaf.rows_leave(), leaf.takes_back()),
            schema,
            n_keys,
            clears: !goes_on,
            passed: 0,
            restored: Vec::new(),
            due: None,
            fingerprint: view.fingerprint,
            max_bytes: view.options.max_bytes,
            health: health.clone(),
        };
        if goes_on {
            keeper.restore()?;
        }
        Ok(keeper)
    }

    fn restore(&mut self) -> Result<()> {
        let checkpoint = Arc::clone(&self.health.cx.checkpoint);
        for (_, _, mut state) in restored(&checkpoint.restored(&self.operator), self.fingerprint) {
            // Whether the view had stopped, and its limit: it had not.
            let _ = (state.u64(), state.u64());
            self.passed = self.passed.max(state.u64().unwrap_or(0));
        }
        let shards = shards_of(self.health.cx.index, self.health.cx.peers);
        for rows in checkpoint.restored_rows(&self.operator, self.fingerprint, ROWS, shards) {
            let last = rows.num_columns() - 1;
            let encoded = self.codec.encode(&rows.columns()[N_BEFORE..last], rows.num_rows())?;
            let number = |idx: usize| rows.column(idx).as_primitive::<Int64Type>().values();
            let places = number(2).iter().zip(number(3));
            for ((row, (from, end)), count) in encoded.into_iter().zip(places).zip(number(last)) {
                let place = Place { from: from.cast_unsigned(), end: *end };
                if self.kept.restore(place, row.clone(), *count, self.passed) {
                    self.restored.push((row, 0, *count as isize));
                }
            }
        }
        Ok(())
    }

    /// What leaves up to `epoch` since event time has gone on: after the epoch in which it did, for what came in that one is
    /// told before it leaves. What the checkpoint says of event time counts from `now` on.
    fn pass_watermark(&mut self, epoch: u64, now: u64, out: &mut Vec<Update>) {
        if let Some((reached_in, bar)) = self.due.take_if(|(reached_in, _)| *reached_in < epoch) {
            let at = if reached_in == 0 { now } else { reached_in + 1 };
            self.kept.pass_watermark(at, bar, out);
        }
    }

    /// What changed since the last cut. A view that has stopped has no rows, and stays so after a restart.
    fn changes(&mut self) -> Changes {
        if !self.health.is_stopped() {
            let changed = self.kept.take_changed();
            match self.table(&changed) {
                Ok(mut table) => {
                    table.cleared = std::mem::take(&mut self.clears);
                    let tables = if table.is_empty() { Vec::new() } else { vec![table] };
                    return Changes { tables, ..self.nothing() };
                }
                Err(error) => self.health.stop(&crate::compiler::readable(&error)),
            }
        }
        let table = TableChange::new(ROWS, &self.schema, self.n_keys);
        Changes { tables: vec![TableChange { cleared: true, ..table }], ..self.nothing() }
    }

    fn nothing(&self) -> Changes {
        let Health { cx, .. } = &self.health;
        let mut writer = Past::write(self.fingerprint, self.health.is_stopped(), self.max_bytes, cx);
        writer.u64(self.passed);
        Changes {
            fingerprint: self.fingerprint,
            shards: shards_of(self.health.cx.index, self.health.cx.peers),
            state: writer.finish(),
            tables: Vec::new(),
        }
    }

    fn table(&self, changed: &Changed) -> Result<TableChange> {
        let mut table = TableChange::new(ROWS, &self.schema, self.n_keys);
        table.dropped.clone_from(&changed.dropped);
        if !changed.removed.is_empty() {
            let keys = self.keys(changed.removed.iter().map(|(place, row)| (*place, row)))?;
            let schema = Arc::new(self.schema.project(&(0..self.n_keys).collect::<Vec<_>>())?);
            table.removed.push(RecordBatch::try_new(schema, keys)?);
        }
        if !changed.rows.is_empty() {
            let mut columns = self.keys(changed.rows.iter().map(|(place, row, _)| (*place, row)))?;
            columns.push(Arc::new(changed.rows.iter().map(|(.., count)| *count).collect::<Int64Array>()));
            table.rows.push(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        }
        Ok(table)
    }

    /// The columns of the table but the last.
    fn keys<'a>(
        &self,
        rows: impl ExactSizeIterator<Item = (Place, &'a Row)> + Clone,
    ) -> Result<Vec<ArrayRef>> {
        let numbers = |number: fn(Place) -> i64| -> ArrayRef {
            Arc::new(rows.clone().map(|(place, _)| number(place)).collect::<Int64Array>())
        };
        let leaves = self.kept.leaves();
        let partitions = rows.clone().map(|(place, _)| leaves.partition(place.end));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(rows.clone().map(|(_, row)| shard(row)).collect::<UInt16Array>()),
            Arc::new(partitions.collect::<Int64Array>()),
            numbers(|place| i64::try_from(place.from).unwrap_or(NEVER)),
            numbers(|place| place.end),
        ];
        columns.extend_from_slice(self.codec.decode(rows.map(|(_, row)| row.as_slice()))?.columns());
        Ok(columns)
    }
}

fn table_schema(row: &Schema) -> SchemaRef {
    let number = |name: &str| Arc::new(Field::new(name, DataType::Int64, false));
    let mut fields = vec![
        Arc::new(Field::new("shard", DataType::UInt16, false)),
        number("slice"),
        number("_from"),
        number("_end"),
    ];
    // A view's columns may have any name.
    fields.extend(
        row.fields().iter().map(|field| {
            Arc::new(Field::new(format!("row.{}", field.name()), field.data_type().clone(), true))
        }),
    );
    fields.push(number("_count"));
    Arc::new(Schema::new(fields))
}

/// An epoch that is not complete.
#[derive(Default)]
struct Open {
    rows: Vec<Coming>,
    bar: Option<i64>,
}

type UpdateOutput = OutputBuilder<u64, CapacityContainerBuilder<Vec<Update>>>;

/// Attaches a keeper behind a leaf; `bars` say how far event time has come. Rows of the checkpoint come at time zero.
pub(super) fn attach<'scope>(
    mut keeper: Keeper,
    rows: StreamVec<'scope, u64, Coming>,
    bars: StreamVec<'scope, u64, i64>,
) -> Rows<'scope, u64> {
    let health = keeper.health.clone();
    let peers = health.cx.peers;
    let mut cuts = Cuts::new(keeper.operator.clone(), &health.cx);
    let mut next_cut = None;

    let mut builder = OperatorBuilder::new(keeper.operator.clone(), rows.scope());
    let slot = health.slot(builder.operator_info().global_id);
    let by_shard = Exchange::new(move |coming: &Coming| worker_of(shard(&coming.row), peers) as u64);
    let mut input = builder.new_input(rows, by_shard);
    let mut bars = builder.new_input(bars, Pipeline);
    let (output, updates) = builder.new_output::<Vec<Update>>();
    let mut output = UpdateOutput::from(output);
    builder.build(move |mut capabilities| {
        let mut clock = capabilities.pop();
        let mut open = OpenEpochs::<Open>::default();
        move |frontiers| {
            let Some(clock_now) = &mut clock else { return };
            let mut output = output.activate();
            let mut out = std::mem::take(&mut keeper.restored);
            input.for_each(|capability, rows| {
                open.at(*capability.time(), Open::default).rows.append(rows);
            });
            bars.for_each(|capability, bars| {
                let open = open.at(*capability.time(), Open::default);
                open.bar = bars.drain(..).max().max(open.bar);
            });
            let frontier = frontier(frontiers);
            let floor = *clock_now.time();
            let mut advance = |keeper: &mut Keeper, to: u64, out: &mut Vec<Update>| {
                // Before anything is known the frontier is at zero; from there it jumps to the present.
                if to == 0 {
                    return;
                }
                let checkpoint = &keeper.health.cx.checkpoint;
                let mut next = *next_cut.get_or_insert_with(|| checkpoint.next_cut(to));
                while next <= to && next < u64::MAX {
                    keeper.pass_watermark(next - 1, to, out);
                    keeper.passed = next - 1;
                    keeper.kept.pass_time(next - 1, floor, out);
                    cuts.pass_changes(next, |_| keeper.changes());
                    next = keeper.health.cx.checkpoint.next_cut(next + 1).max(next + 1);
                }
                next_cut = Some(next);
                keeper.kept.pass_time(to - 1, floor, out);
                keeper.pass_watermark(to, to, out);
            };
            while let Some((epoch, Open { rows, bar })) = open.pop_complete(frontier) {
                advance(&mut keeper, epoch, &mut out);
                keeper.kept.pass_time(epoch, floor, &mut out);
                if !health.is_stopped() {
                    for Coming { row, place, diff } in rows {
                        keeper.kept.take(epoch, place, row, diff, &mut out);
                    }
                }
                if let Some(bar) = bar {
                    keeper.due = Some((epoch, bar));
                }
            }
            if let Some(frontier) = frontier {
                advance(&mut keeper, frontier, &mut out);
            }
            if !out.is_empty() {
                output.session(&*clock_now).give_iterator(out.into_iter());
            }
            if health.is_stopped() {
                keeper.kept.clear();
            }
            health.charge(slot, keeper.kept.n_rows(), keeper.kept.n_bytes());
            match frontier {
                Some(frontier) if *clock_now.time() < frontier => clock_now.downgrade(&frontier),
                Some(_) => {}
                None => clock = None,
            }
        }
    });
    updates.as_collection()
}
