//! Where rows enter: batches to rows as bytes, each counted once also after a crash, with the rows that are in the view
//! kept, so that they can leave again when their time is over, and be written into checkpoints.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::{Result, internal_err};
use differential_dataflow::AsCollection;
use logdrive_operators::flow::{Counted, Cuts, StateReader, StateWriter, restored};
use logdrive_operators::{BatchStream, Batches, ViewOutcome};
use logdrive_schemas::{Batch, Reject, Rejects, reject};
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::super::container::{decode, encode};
use super::super::health::Health;
use super::super::output::CHANGE;
use super::super::scatter::Outcomes;
use super::super::spec::{isolate, run};
use super::super::watermark;
use super::DeltaView;
use super::codec::{Codec, ROW_BYTES, Row};
use super::plan::Leaf;
use super::render::Rows;

/// When a row leaves that never does.
const NEVER: i64 = i64::MAX;

/// A change of a leaf's rows.
type Update = (Row, u64, isize);

/// How rows of one leaf leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Never,
    /// When `now()` passes the epoch that they are filed under.
    AtEpoch,
    /// When the watermark passes the start of the window that they are filed under, and this much more.
    BehindWatermark(i64),
}

/// The rows that are in the view, by when they leave.
#[derive(Debug, Default)]
struct Kept {
    by_end: BTreeMap<i64, HashMap<Row, i64>>,
    /// Rows that come in later: by epoch, with when they leave.
    waiting: BTreeMap<u64, Vec<(i64, Row, i64)>>,
    n_rows: usize,
    n_bytes: usize,
}

impl Kept {
    fn add(&mut self, end: i64, row: Row, diff: i64) {
        let rows = self.by_end.entry(end).or_default();
        let bytes = row.len() + ROW_BYTES;
        match rows.entry(row) {
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                *entry.get_mut() += diff;
                if *entry.get() == 0 {
                    entry.remove();
                    (self.n_rows, self.n_bytes) = (self.n_rows - 1, self.n_bytes - bytes);
                }
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(diff);
                (self.n_rows, self.n_bytes) = (self.n_rows + 1, self.n_bytes + bytes);
            }
        }
        if rows.is_empty() {
            self.by_end.remove(&end);
        }
    }

    /// Takes out what leaves at or before `end`.
    fn leave(&mut self, end: i64) -> Vec<(i64, Row, i64)> {
        let mut left = Vec::new();
        while let Some(entry) = self.by_end.first_entry().filter(|entry| *entry.key() <= end) {
            let (end, rows) = entry.remove_entry();
            for (row, diff) in rows {
                (self.n_rows, self.n_bytes) = (self.n_rows - 1, self.n_bytes - row.len() - ROW_BYTES);
                left.push((end, row, diff));
            }
        }
        left
    }
}

/// A leaf on one worker.
pub(super) struct Entrance {
    operator: String,
    leaves: Arc<Vec<Leaf>>,
    idx: usize,
    codec: Codec,
    rows_leave: Leaves,
    kept: Kept,
    counted: Counted,
    /// The rows that were in when the checkpoint was made; `None` if there was none.
    restored: Option<Vec<Update>>,
    health: Health,
    max_bytes: u64,
    fingerprint: u64,
}

impl Entrance {
    /// The leaf `idx` of `view`, as the checkpoint has it.
    pub(super) fn new(view: &DeltaView, idx: usize, health: &Health) -> Result<Self> {
        let leaf = &view.leaves[idx];
        let rows_leave = match &leaf.pane {
            _ if !leaf.lifetime.is_endless() => Leaves::AtEpoch,
            Some(pane) => pane.retained().map_or(Leaves::Never, Leaves::BehindWatermark),
            None => Leaves::Never,
        };
        let mut entrance = Self {
            operator: view.operator(idx),
            leaves: Arc::clone(&view.leaves),
            idx,
            codec: Codec::new(&leaf.schema)?,
            rows_leave,
            kept: Kept::default(),
            counted: Counted::default(),
            restored: None,
            health: health.clone(),
            max_bytes: view.options.max_bytes,
            fingerprint: view.fingerprint,
        };
        entrance.restore(&health.cx.checkpoint.restored(&entrance.operator))?;
        Ok(entrance)
    }

    /// Whether the view goes on from a checkpoint.
    pub(super) fn is_restored(&self) -> bool {
        self.restored.is_some()
    }

    fn leaf(&self) -> &Leaf {
        &self.leaves[self.idx]
    }

    /// The rows that a batch brings, at `epoch`. What fails goes to `refused`.
    fn take(
        &mut self,
        epoch: u64,
        batch: &Batch,
        refused: &mut Vec<Batch>,
        out: &mut Vec<Update>,
    ) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let n_rows = batch.num_rows();
        if self.leaf().pane.is_none() {
            outcomes.add(ViewOutcome::In, n_rows);
        }
        let parts = split(batch, self.leaf())?;
        let filed_under = match self.rows_leave {
            Leaves::BehindWatermark(_) => batch.origin().partition.0.cast_signed(),
            Leaves::AtEpoch | Leaves::Never => NEVER,
        };
        for Part { rows, indices, diff } in parts {
            let (n_used, rejects) = self.rows(epoch, &rows, filed_under, diff, out)?;
            if self.leaf().pane.is_none() {
                outcomes.add(ViewOutcome::Used, n_used);
                outcomes.add(ViewOutcome::Failed, rejects.len());
                outcomes.add(ViewOutcome::Filtered, rows.num_rows() - n_used - rejects.len());
            }
            // A row that is taken back failed when it came.
            if diff > 0 && !rejects.is_empty() {
                let rejects = of_batch(rejects, indices.as_ref());
                refused.extend(reject::of_batch(batch, &rejects));
            }
        }
        self.health.count(&outcomes);
        Ok(())
    }

    /// Adds rows; how many the stages let through, and which failed.
    fn rows(
        &mut self,
        epoch: u64,
        rows: &RecordBatch,
        filed_under: i64,
        diff: i64,
        out: &mut Vec<Update>,
    ) -> Result<(usize, Rejects)> {
        let leaves = Arc::clone(&self.leaves);
        let leaf = &leaves[self.idx];
        let (parts, rejects) = isolate(rows.num_rows(), |start, len| {
            let before = run(&leaf.before, &rows.slice(start, len))?;
            let spans = leaf.lifetime.of(&before.rows)?;
            let after = run(&leaf.after, &before.rows)?;
            let encoded = self.codec.encode(after.rows.columns(), after.rows.num_rows())?;
            let spans: Vec<_> = after.indices.values().iter().map(|idx| spans[*idx as usize]).collect();
            Ok((encoded, spans))
        });
        let mut n_used = 0;
        for (_, (encoded, spans)) in parts {
            for (row, span) in encoded.into_iter().zip(spans) {
                let Some((from, until)) = span.filter(|(_, until)| epoch < *until) else { continue };
                n_used += 1;
                let end = match self.rows_leave {
                    Leaves::AtEpoch => i64::try_from(until).unwrap_or(NEVER),
                    Leaves::BehindWatermark(_) | Leaves::Never => filed_under,
                };
                if epoch < from {
                    self.kept.waiting.entry(from).or_default().push((end, row, diff));
                } else {
                    out.push((row.clone(), epoch, diff as isize));
                    self.kept.add(end, row, diff);
                }
            }
        }
        Ok((n_used, rejects))
    }

    /// What comes in and leaves up to `epoch`, at the epoch at which it does, but none before `floor`.
    fn pass_time(&mut self, epoch: u64, floor: u64, out: &mut Vec<Update>) {
        while let Some(entry) = self.kept.waiting.first_entry().filter(|entry| *entry.key() <= epoch) {
            let (from, rows) = entry.remove_entry();
            for (end, row, diff) in rows {
                out.push((row.clone(), from.max(floor), diff as isize));
                self.kept.add(end, row, diff);
            }
        }
        if self.rows_leave == Leaves::AtEpoch {
            for (end, row, diff) in self.kept.leave(i64::try_from(epoch).unwrap_or(NEVER - 1)) {
                out.push((row, end.cast_unsigned().max(floor), -diff as isize));
            }
        }
    }

    /// What leaves since event time has come to `bar`, at `epoch`.
    fn pass_watermark(&mut self, epoch: u64, bar: i64, out: &mut Vec<Update>) {
        // At the end of all input nothing leaves: the result stays.
        if let Leaves::BehindWatermark(more) = self.rows_leave
            && bar != watermark::END
        {
            let left = self.kept.leave(bar.saturating_sub(more));
            out.extend(left.into_iter().map(|(_, row, diff)| (row, epoch, -diff as isize)));
        }
    }

    fn schema_of_state(&self) -> SchemaRef {
        let mut fields = self.codec.schema().fields().to_vec();
        for name in ["_from", "_end", "_count"] {
            fields.push(Arc::new(Field::new(name, DataType::Int64, false)));
        }
        Arc::new(Schema::new(fields))
    }

    /// The state as of the epochs that are complete.
    fn encode(&self) -> Result<Vec<u8>> {
        let mut writer = StateWriter::new(self.fingerprint, &self.health.cx);
        writer.u64(u64::from(self.health.is_stopped()));
        writer.u64(self.max_bytes);
        self.counted.encode(&mut writer);
        let kept = self
            .kept
            .by_end
            .iter()
            .flat_map(|(end, rows)| rows.iter().map(|(row, count)| (row.as_slice(), 0, *end, *count)));
        let waiting = self.kept.waiting.iter().flat_map(|(from, rows)| {
            let from = i64::try_from(*from).unwrap_or(NEVER);
            rows.iter().map(move |(end, row, count)| (row.as_slice(), from, *end, *count))
        });
        let all: Vec<(&[u8], i64, i64, i64)> = kept.chain(waiting).collect();
        let rows = self.codec.decode(all.iter().map(|(row, ..)| *row))?;
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(all.iter().map(|(_, from, ..)| *from).collect::<Int64Array>()));
        columns.push(Arc::new(all.iter().map(|(_, _, end, _)| *end).collect::<Int64Array>()));
        columns.push(Arc::new(all.iter().map(|(.., count)| *count).collect::<Int64Array>()));
        writer.bytes(&encode(&[RecordBatch::try_new(self.schema_of_state(), columns)?])?);
        Ok(writer.finish())
    }

    /// Takes in what all workers wrote: what was counted, and this worker's share of the rows. A view that had stopped
    /// has none; it begins anew if it may take more now.
    fn restore(&mut self, states: &[Vec<u8>]) -> Result<()> {
        let (index, peers) = (self.health.cx.index as u64, self.health.cx.peers as u64);
        let mut whole = Vec::new();
        let mut had_stopped = false;
        for (writer, _, mut state) in restored(states, self.fingerprint) {
            let (Some(stopped), Some(limit)) = (state.u64(), state.u64()) else { continue };
            self.counted.restore(&mut state);
            had_stopped |= stopped == 1;
            if stopped == 1 && self.max_bytes <= limit {
                self.health.stop_again();
            }
            whole.push((writer, state));
        }
        // Rows of some workers only are not those of the view.
        for (writer, mut state) in whole.into_iter().filter(|_| !had_stopped) {
            let mut updates = self.restored.take().unwrap_or_default();
            if writer % peers == index {
                self.restore_rows(&mut state, &mut updates)?;
            }
            self.restored = Some(updates);
        }
        Ok(())
    }

    /// Lets go of all rows: nobody trusts the view any more.
    fn clear(&mut self) {
        self.kept = Kept::default();
    }

    fn restore_rows(&mut self, state: &mut StateReader<'_>, updates: &mut Vec<Update>) -> Result<()> {
        let Some(bytes) = state.bytes() else { return internal_err!("a state without rows") };
        let n_columns = self.codec.schema().fields().len();
        for rows in decode(bytes)? {
            let encoded = self.codec.encode(&rows.columns()[..n_columns], rows.num_rows())?;
            let number = |idx: usize| rows.column(n_columns + idx).as_primitive::<Int64Type>().values();
            for (((row, from), end), count) in
                encoded.into_iter().zip(number(0)).zip(number(1)).zip(number(2))
            {
                if *from == 0 {
                    updates.push((row.clone(), 0, *count as isize));
                    self.kept.add(*end, row, *count);
                } else {
                    let waiting = self.kept.waiting.entry(from.cast_unsigned()).or_default();
                    waiting.push((*end, row, *count));
                }
            }
        }
        Ok(())
    }
}

/// Rows that all come, or all are taken back.
struct Part {
    rows: RecordBatch,
    /// Which rows of the batch they are, unless all.
    indices: Option<UInt32Array>,
    diff: i64,
}

/// The columns that the leaf reads, of the rows that are taken back and of those that come.
fn split(batch: &Batch, leaf: &Leaf) -> Result<Vec<Part>> {
    let (rows, schema) = (batch.rows(), batch.rows().schema());
    let columns: Vec<usize> = if leaf.pane.is_some() {
        // Two aggregates may have the same name.
        (0..leaf_columns(leaf)).collect()
    } else {
        leaf.reads.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?
    };
    let reads = rows.project(&columns)?;
    let tells_changes = leaf.changes || leaf.pane.is_some();
    let Some(change) = rows.column_by_name(CHANGE).filter(|_| tells_changes) else {
        return Ok(vec![Part { rows: reads, indices: None, diff: 1 }]);
    };
    let is_deletion: BooleanArray =
        change.as_string_view().iter().map(|change| Some(change == Some("delete"))).collect();
    if is_deletion.true_count() == 0 {
        return Ok(vec![Part { rows: reads, indices: None, diff: 1 }]);
    }
    let coming: UInt32Array =
        (0..).zip(is_deletion.values()).filter(|(_, is_deletion)| !is_deletion).map(|(row, _)| row).collect();
    let deletions = filter_record_batch(&reads, &is_deletion)?;
    let insertions = take_record_batch(&reads, &coming)?;
    Ok(vec![
        Part { rows: deletions, indices: None, diff: -1 },
        Part { rows: insertions, indices: Some(coming), diff: 1 },
    ])
}

fn leaf_columns(leaf: &Leaf) -> usize {
    leaf.pane.as_ref().map_or(0, |pane| pane.spec.schema.fields().len())
}

/// Rejects by the rows of the batch.
fn of_batch(rejects: Rejects, indices: Option<&UInt32Array>) -> Rejects {
    let Some(indices) = indices else { return rejects };
    let of = |reject: Reject| Reject { idx: indices.value(reject.idx) as usize, ..reject };
    rejects.into_iter().map(of).collect()
}

/// An epoch that is not complete.
#[derive(Default)]
struct Open {
    batches: Vec<Batch>,
    rejects_at: Option<Capability<u64>>,
    bar: Option<i64>,
}

type BatchOutput = OutputBuilder<u64, NoopBuilder<Batches>>;
type UpdateOutput = OutputBuilder<u64, CapacityContainerBuilder<Vec<Update>>>;

/// Attaches a leaf behind its input; `bars` say how far event time has come. The second stream has the rejects.
pub(super) fn attach<'scope>(
    mut entrance: Entrance,
    input: BatchStream<'scope>,
    bars: StreamVec<'scope, u64, i64>,
) -> (Rows<'scope, u64>, BatchStream<'scope>) {
    let health = entrance.health.clone();
    let slot = health.slot();
    let mut restored = entrance.restored.take().unwrap_or_default();
    let mut cuts = Cuts::new(entrance.operator.clone(), &health.cx);
    let mut next_cut = None;

    let mut builder = OperatorBuilder::new(entrance.operator.clone(), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let mut bars = builder.new_input(bars, Pipeline);
    let (rows_out, rows) = builder.new_output::<Vec<Update>>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let (mut rows_out, mut rejects_out) = (UpdateOutput::from(rows_out), BatchOutput::from(rejects_out));
    builder.build(move |mut capabilities| {
        capabilities.truncate(1);
        let mut clock = capabilities.pop();
        let mut open: BTreeMap<u64, Open> = BTreeMap::new();
        move |frontiers| {
            let Some(clock_now) = &mut clock else { return };
            let (mut rows_out, mut rejects_out) = (rows_out.activate(), rejects_out.activate());
            let mut out = std::mem::take(&mut restored);
            input.for_each(|capability, batches| {
                let open = open.entry(*capability.time()).or_default();
                open.rejects_at.get_or_insert_with(|| capability.retain(1));
                open.batches.append(&mut batches.0);
            });
            bars.for_each(|capability, bars| {
                let open = open.entry(*capability.time()).or_default();
                open.bar = bars.drain(..).max().max(open.bar);
            });
            let frontier = frontiers.iter().filter_map(|f| f.frontier().first().copied()).min();
            let floor = *clock_now.time();
            let mut advance = |entrance: &mut Entrance, to: u64, out: &mut Vec<Update>| {
                // Before anything is known the frontier is at zero; from there it jumps to the present.
                if to == 0 {
                    return;
                }
                let checkpoint = &entrance.health.cx.checkpoint;
                let mut next = *next_cut.get_or_insert_with(|| checkpoint.next_cut(to));
                while next <= to && next < u64::MAX {
                    entrance.pass_time(next - 1, floor, out);
                    cuts.pass(next, || entrance.health.check(entrance.encode()));
                    next = entrance.health.cx.checkpoint.next_cut(next + 1).max(next + 1);
                }
                next_cut = Some(next);
                entrance.pass_time(to - 1, floor, out);
            };
            while let Some(entry) = open.first_entry() {
                let epoch = *entry.key();
                if frontier.is_some_and(|frontier| frontier <= epoch) {
                    break;
                }
                let Open { batches, rejects_at, bar } = entry.remove();
                advance(&mut entrance, epoch, &mut out);
                entrance.pass_time(epoch, floor, &mut out);
                let mut refused = Vec::new();
                for batch in batches {
                    let Some(batch) = entrance.counted.fresh(epoch, batch) else { continue };
                    if !health.is_stopped() {
                        health.check(entrance.take(epoch, &batch, &mut refused, &mut out));
                    }
                }
                entrance.counted.complete(epoch);
                if let Some(bar) = bar {
                    entrance.pass_watermark(epoch, bar, &mut out);
                }
                if let Some(rejects_at) = rejects_at.filter(|_| !refused.is_empty()) {
                    rejects_out.session_with_builder(&rejects_at).give_container(&mut Batches(refused));
                }
            }
            if let Some(frontier) = frontier {
                advance(&mut entrance, frontier, &mut out);
            }
            if !out.is_empty() {
                rows_out.session(&*clock_now).give_iterator(out.into_iter());
            }
            if health.is_stopped() {
                entrance.clear();
            }
            health.charge(slot, entrance.kept.n_rows, entrance.kept.n_bytes);
            match frontier {
                Some(frontier) if *clock_now.time() < frontier => clock_now.downgrade(&frontier),
                Some(_) => {}
                None => clock = None,
            }
        }
    });
    (rows.as_collection(), rejects)
}
