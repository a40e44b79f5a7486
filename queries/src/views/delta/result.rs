//! Where rows leave: the changes of each epoch as batches, and the view as a table, for those who read it.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use logdrive_operators::flow::{OpenEpochs, frontier};
use logdrive_operators::{BatchStream, Batches, Beginning, ViewRows};
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::super::health::Health;
use super::super::output::{Shape, Told, identity};
use super::arranged::SEED;
use super::codec::{Codec, ROW_BYTES, Row};
use super::render::Rows;

/// How many rows a batch has at most.
pub(super) const BATCH_ROWS: usize = 8192;

/// The rows of a view that one worker keeps.
struct Table {
    codec: Codec,
    shape: Shape,
    rows: HashMap<Row, isize>,
    n_bytes: usize,
}

impl Table {
    /// Applies the changes of an epoch; each once.
    fn apply(&mut self, mut changes: Vec<(Row, isize)>) -> Vec<(Row, isize)> {
        differential_dataflow::consolidation::consolidate(&mut changes);
        for (row, diff) in &changes {
            let count = self.rows.entry(row.clone()).or_default();
            if *count == 0 {
                self.n_bytes += row.len() + ROW_BYTES;
            }
            *count += diff;
            if *count == 0 {
                self.rows.remove(row);
                self.n_bytes -= row.len() + ROW_BYTES;
            }
        }
        changes
    }

    /// Changes as rows of the view: first what is no longer so.
    fn told(&self, changes: &[(Row, isize)], epoch: u64) -> Result<Batches> {
        let mut batches = Batches::default();
        for (sign, told) in [(-1, Told::Delete(epoch)), (1, Told::Insert(epoch))] {
            let changes = changes.iter().filter(|(_, diff)| diff.signum() == sign);
            let rows: Vec<(&Row, usize)> = changes
                .flat_map(|(row, diff)| (0..diff.unsigned_abs()).map(move |copy| (row, copy)))
                .collect();
            for rows in rows.chunks(BATCH_ROWS) {
                let ids = rows.iter().map(|(row, copy)| identity(xxh3_64(row) ^ *copy as u64, told));
                let ids = ids.collect();
                let rows = self.codec.decode(rows.iter().map(|(row, _)| row.as_slice()))?;
                let rows = self.shape.complete(&rows, told)?;
                batches.0.extend(self.shape.batch(rows, &[], ids, 0, epoch));
            }
        }
        Ok(batches)
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let copies = |count: isize| usize::try_from(count).unwrap_or(0);
        let rows: Vec<&[u8]> = self
            .rows
            .iter()
            .flat_map(|(row, count)| std::iter::repeat_n(row.as_slice(), copies(*count)))
            .collect();
        rows.chunks(BATCH_ROWS).map(|rows| self.codec.decode(rows.iter().copied())).collect()
    }
}

/// Attaches the end of a view. If it `goes_on`, what comes at time zero was told before the crash, and is what views over
/// it begin with.
pub(super) fn attach<'scope>(
    rows: Rows<'scope, u64>,
    codec: Codec,
    shape: Shape,
    goes_on: bool,
    health: &Health,
) -> (BatchStream<'scope>, Beginning<'scope>) {
    let health = health.clone();
    let mut table = Table { codec, shape, rows: HashMap::new(), n_bytes: 0 };
    let mut builder = OperatorBuilder::new(format!("{}.result", health.name), rows.inner.scope());
    let slot = health.slot(builder.operator_info().global_id);
    let by_row = Exchange::new(|(row, ..): &(Row, u64, isize)| xxh3_64_with_seed(row, SEED));
    let mut input = builder.new_input(rows.inner, by_row);
    let (output, stream) = builder.new_output::<Batches>();
    let (beginning_out, beginning) = builder.new_output::<Batches>();
    let mut output = OutputBuilder::<u64, NoopBuilder<Batches>>::from(output);
    let mut beginning_out = OutputBuilder::<u64, NoopBuilder<Batches>>::from(beginning_out);
    let is_wanted = Rc::<Cell<bool>>::default();
    let beginning = Beginning::new(beginning, &is_wanted, !goes_on);
    builder.build(move |mut capabilities| {
        let mut beginning_at = capabilities.pop();
        drop(capabilities);
        let mut open = OpenEpochs::<(Capability<u64>, Vec<(Row, isize)>)>::default();
        move |frontiers| {
            let mut output = output.activate();
            let answer = |table: &Table, before: u64| {
                health.answer(&health.name, before, || table.snapshot().map(ViewRows::from));
            };
            let mut begin = |table: &Table, health: &Health| {
                let Some(at) = beginning_at.take().filter(|_| goes_on && is_wanted.get()) else { return };
                let rows = table.snapshot().and_then(|rows| table.shape.beginning(&rows));
                let mut rows = health.check(rows);
                beginning_out.activate().session_with_builder(&at).give_container(&mut rows);
            };
            input.for_each(|capability, updates| {
                for (row, time, diff) in updates.drain(..) {
                    let at = || (capability.delayed(&time, 0), Vec::new());
                    open.at(time, at).1.push((row, diff));
                }
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, (capability, changes))) = open.pop_complete(frontier) {
                if epoch > 0 {
                    begin(&table, &health);
                }
                answer(&table, epoch);
                let changes = table.apply(changes);
                if health.is_stopped() || changes.is_empty() || (epoch == 0 && goes_on) {
                    continue;
                }
                // Zero is before all time: what is so from the beginning is told as soon as it is known when that is, but
                // leaves before everything else: a checkpoint, whenever it is made, is made after it.
                let epoch = match frontier {
                    Some(frontier) if epoch == 0 => open.first().map_or(frontier, |next| frontier.min(next)),
                    _ => epoch,
                };
                let mut batches = health.check(table.told(&changes, epoch));
                if !batches.0.is_empty() {
                    output.session_with_builder(&capability).give_container(&mut batches);
                }
            }
            if frontier.is_none_or(|frontier| frontier > 0) {
                begin(&table, &health);
            }
            health.charge(slot, table.rows.len(), table.n_bytes);
            answer(&table, frontier.unwrap_or(u64::MAX));
        }
    });
    (stream, beginning)
}
