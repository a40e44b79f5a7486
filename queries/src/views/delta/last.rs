//! The end of a view whose rows are told once: when the watermark has come so far that they cannot change any more.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::Result;
use differential_dataflow::consolidation::consolidate;
use logdrive_operators::flow::{Cuts, OpenEpochs, StateWriter, frontier, restored};
use logdrive_operators::{BatchStream, Batches, Beginning, ViewRows};
use timely::container::NoopBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, InputCapability};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::super::health::Health;
use super::super::output::{Shape, Told, identity};
use super::super::watermark;
use super::arranged::SEED;
use super::codec::{Codec, ROW_BYTES, Row};
use super::render::Rows;
use super::result::BATCH_ROWS;

/// How the rows of a view become final.
pub(super) struct Final {
    /// The name of the operator.
    pub(super) operator: String,
    /// Columns with times, and how far behind them the watermark has to be.
    pub(super) until: Vec<(usize, i64)>,
    pub(super) codec: Codec,
    pub(super) shape: Shape,
    pub(super) fingerprint: u64,
    /// What comes at time zero was so when the checkpoint was made.
    pub(super) goes_on: bool,
}

/// The rows of a view that one worker keeps.
struct Table {
    end: Final,
    /// Rows that may still change, by the watermark that makes them final.
    open: BTreeMap<i64, HashMap<Row, i64>>,
    /// Rows that have left, until their time is over.
    told: HashMap<Row, i64>,
    /// How far event time has come.
    bar: i64,
    n_rows: usize,
    n_bytes: usize,
}

/// Adds a row as often as `times` says; how many rows more there are.
fn add(rows: &mut HashMap<Row, i64>, row: &Row, times: i64) -> isize {
    let Some(count) = rows.get_mut(row) else {
        rows.insert(row.clone(), times);
        return 1;
    };
    *count += times;
    if *count == 0 {
        rows.remove(row);
        return -1;
    }
    0
}

impl Table {
    /// Takes in what changed in an epoch. What is final does not change: if it seems to, rows that it came of have left.
    fn change(&mut self, mut changes: Vec<(Row, isize)>, is_restored: bool) -> Result<()> {
        consolidate(&mut changes);
        for chunk in changes.chunks(BATCH_ROWS) {
            let rows = self.end.codec.decode(chunk.iter().map(|(row, _)| row.as_slice()))?;
            for (idx, (row, diff)) in chunk.iter().enumerate() {
                let (at, diff) = (self.final_at(&rows, idx), *diff as i64);
                let more = if at > self.bar {
                    let of_time = self.open.entry(at).or_default();
                    let more = add(of_time, row, diff);
                    if of_time.is_empty() {
                        self.open.remove(&at);
                    }
                    more
                } else if is_restored || (diff < 0 && self.told.contains_key(row)) {
                    add(&mut self.told, row, diff)
                } else {
                    0
                };
                self.grow(more, row);
            }
        }
        Ok(())
    }

    fn grow(&mut self, n_rows: isize, row: &Row) {
        self.n_rows = self.n_rows.saturating_add_signed(n_rows);
        let n_bytes = n_rows * (row.len() + ROW_BYTES) as isize;
        self.n_bytes = self.n_bytes.saturating_add_signed(n_bytes);
    }

    /// The watermark at which a row becomes final.
    fn final_at(&self, rows: &RecordBatch, idx: usize) -> i64 {
        let at = self.end.until.iter().map(|(column, plus)| {
            let times = rows.column(*column).as_primitive::<TimestampMicrosecondType>();
            if times.is_null(idx) { watermark::END } else { times.value(idx).saturating_add(*plus) }
        });
        at.max().unwrap_or(watermark::END)
    }

    /// What is final when event time has come to `bar`.
    fn pass(&mut self, bar: i64, epoch: u64) -> Result<Batches> {
        self.bar = bar.max(self.bar);
        let mut last = Vec::new();
        while let Some(entry) = self.open.first_entry().filter(|entry| *entry.key() <= self.bar) {
            last.extend(entry.remove().into_iter().filter(|(_, count)| *count > 0));
        }
        last.sort_unstable();
        let copies: Vec<(&Row, u64)> = last
            .iter()
            .flat_map(|(row, count)| (0..count.unsigned_abs()).map(move |copy| (row, copy)))
            .collect();
        let mut batches = Batches::default();
        for rows in copies.chunks(BATCH_ROWS) {
            let ids = rows.iter().map(|(row, copy)| identity(xxh3_64(row) ^ copy, Told::Final)).collect();
            let rows = self.end.codec.decode(rows.iter().map(|(row, _)| row.as_slice()))?;
            batches.0.extend(self.end.shape.batch(rows, &[], ids, 0, epoch));
        }
        self.told.extend(last);
        Ok(batches)
    }

    fn snapshot(&self) -> Result<ViewRows> {
        let batches = |rows: &mut dyn Iterator<Item = (&Row, &i64)>| {
            let copies = |count: i64| usize::try_from(count).unwrap_or(0);
            let rows: Vec<&[u8]> =
                rows.flat_map(|(row, count)| std::iter::repeat_n(row.as_slice(), copies(*count))).collect();
            rows.chunks(BATCH_ROWS)
                .map(|rows| self.end.codec.decode(rows.iter().copied()))
                .collect::<Result<_>>()
        };
        Ok(ViewRows {
            told: batches(&mut self.told.iter())?,
            untold: batches(&mut self.open.values().flatten())?,
        })
    }
}

/// An epoch that is not complete.
struct Open {
    at: Capability<u64>,
    changes: Vec<(Row, isize)>,
    bar: Option<i64>,
}

impl Open {
    fn at(capability: &InputCapability<u64>, time: u64) -> Self {
        Self { at: capability.delayed(&time, 0), changes: Vec::new(), bar: None }
    }
}

/// Attaches the end of a view; `bars` say how far event time has come after an epoch.
pub(super) fn attach<'scope>(
    end: Final,
    rows: Rows<'scope, u64>,
    bars: StreamVec<'scope, u64, i64>,
    health: &Health,
) -> (BatchStream<'scope>, Beginning<'scope>) {
    let health = health.clone();
    let (fingerprint, goes_on) = (end.fingerprint, end.goes_on);
    let mut cuts = Cuts::new(end.operator.clone(), &health.cx);
    let states = health.cx.checkpoint.restored(&end.operator);
    let bar = restored(&states, fingerprint).into_iter().filter_map(|(_, _, mut state)| state.i64()).max();
    let mut builder = OperatorBuilder::new(end.operator.clone(), rows.inner.scope());
    let slot = health.slot(builder.operator_info().global_id);
    let mut table = Table {
        end,
        open: BTreeMap::new(),
        told: HashMap::new(),
        bar: bar.filter(|_| goes_on).unwrap_or(i64::MIN),
        n_rows: 0,
        n_bytes: 0,
    };
    let cx = health.cx.clone();
    let encode = move |table: &Table| {
        let mut writer = StateWriter::new(fingerprint, &cx);
        writer.i64(table.bar);
        writer.finish()
    };
    let by_row = Exchange::new(|(row, ..): &(Row, u64, isize)| xxh3_64_with_seed(row, SEED));
    let mut rows = builder.new_input(rows.inner, by_row);
    let mut bars = builder.new_input(bars, Pipeline);
    let (output, stream) = builder.new_output::<Batches>();
    let (beginning_out, beginning) = builder.new_output::<Batches>();
    let mut output = OutputBuilder::<u64, NoopBuilder<Batches>>::from(output);
    let mut beginning_out = OutputBuilder::<u64, NoopBuilder<Batches>>::from(beginning_out);
    let is_wanted = Rc::<Cell<bool>>::default();
    let beginning = Beginning::new(beginning, &is_wanted, !goes_on);
    builder.build(move |mut capabilities| {
        let mut beginning_at = capabilities.pop();
        drop(capabilities);
        let mut open = OpenEpochs::<Open>::default();
        move |frontiers| {
            let mut output = output.activate();
            let mut begin = |table: &Table| {
                let Some(at) = beginning_at.take().filter(|_| goes_on && is_wanted.get()) else { return };
                let rows = table.snapshot().and_then(|rows| table.end.shape.beginning(&rows.told));
                let mut rows = health.check(rows);
                beginning_out.activate().session_with_builder(&at).give_container(&mut rows);
            };
            rows.for_each(|capability, updates| {
                for (row, time, diff) in updates.drain(..) {
                    let open = open.at(time, || Open::at(&capability, time));
                    open.changes.push((row, diff));
                }
            });
            bars.for_each(|capability, bars| {
                let time = *capability.time();
                let open = open.at(time, || Open::at(&capability, time));
                open.bar = bars.drain(..).max().max(open.bar);
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, of_epoch)) = open.pop_complete(frontier) {
                if epoch > 0 {
                    begin(&table);
                }
                health.answer(&health.name, epoch, || table.snapshot());
                cuts.pass(epoch, || encode(&table));
                let Open { at, changes, bar } = of_epoch;
                if health.is_stopped() {
                    continue;
                }
                health.check(table.change(changes, epoch == 0 && goes_on));
                let Some(bar) = bar.filter(|_| epoch > 0) else { continue };
                let mut batches = health.check(table.pass(bar, epoch));
                if !batches.0.is_empty() {
                    output.session_with_builder(&at).give_container(&mut batches);
                }
            }
            if frontier.is_none_or(|frontier| frontier > 0) {
                begin(&table);
            }
            if health.is_stopped() {
                (table.open, table.told) = (BTreeMap::new(), HashMap::new());
                (table.n_rows, table.n_bytes) = (0, 0);
            }
            health.charge(slot, table.n_rows, table.n_bytes);
            health.answer(&health.name, frontier.unwrap_or(u64::MAX), || table.snapshot());
            if let Some(frontier) = frontier {
                cuts.pass(frontier, || encode(&table));
            }
        }
    });
    (stream, beginning)
}
