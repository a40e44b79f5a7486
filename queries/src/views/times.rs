//! How far event time has come in a stream whose rows are not aggregated, and which of its rows are late.
//!
//! ```text
//! batches ─ mark ─┬─────────────── judge ─► rows that are not late
//!                 └─ broadcast ──►   │ ├── watermark
//!                                    └► rejects
//! ```

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::Result;
use logdrive_operators::flow::{Counted, Cuts, OpenEpochs, StateWriter, frontier, restored};
use logdrive_operators::{BatchStream, Batches, ViewOutcome};
use logdrive_schemas::{Batch, Reject, Rejects, reject};
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::vec::{Broadcast, Map};
use timely::dataflow::operators::{Capability, Concatenate, InputCapability};

use super::flow::mark;
use super::health::Health;
use super::scatter::{Bounds, Outcomes, unbelievable};
use super::watermark::{Mark, Watermark};
use super::windows::time_type;

/// Where a stream says what time it is.
pub(super) struct Clock {
    /// The name of the operator.
    pub(super) operator: String,
    /// The column with the time of a row.
    pub(super) column: String,
    pub(super) watermark: Watermark,
    pub(super) fingerprint: u64,
}

/// What becomes of a stream: rows that are not late, what was refused, and how far event time has come after an epoch.
pub(super) struct Timed<'scope> {
    pub(super) rows: BatchStream<'scope>,
    pub(super) rejects: BatchStream<'scope>,
    pub(super) bars: StreamVec<'scope, u64, i64>,
}

/// Judges batches on one worker.
struct Judge {
    column: String,
    watermark: Watermark,
    counted: Counted,
    health: Health,
}

impl Judge {
    /// The rows of a batch that came in time. The others go to `refused`.
    fn judge(&self, epoch: u64, batch: &Batch, refused: &mut Vec<Batch>) -> Result<Option<Batch>> {
        let view = &self.health.name;
        let bounds = Bounds { watermark: self.watermark.at(), latest: self.watermark.latest(epoch) };
        let times = cast(batch.rows().column(batch.rows().schema().index_of(&self.column)?), &time_type())?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let (mut outcomes, mut rejects) = (Outcomes::default(), Rejects::new());
        let late = |at: i64| {
            let late = bounds.watermark.saturating_sub(at) as f64 / 1e6;
            let reason = format!(
                "late: what the view `{view}` would join it with was over {late} s of event time before"
            );
            (ViewOutcome::Late, reason)
        };
        let keep = (0..times.len()).map(|idx| {
            let at = times.is_valid(idx).then(|| times.value(idx));
            let refusal = unbelievable(view, at, bounds.latest)
                .or_else(|| at.filter(|at| *at < bounds.watermark).map(late));
            let Some((outcome, reason)) = refusal else { return Some(true) };
            outcomes.add(ViewOutcome::In, 1);
            outcomes.add(outcome, 1);
            rejects.push(Reject { idx, reason });
            Some(false)
        });
        let keep: BooleanArray = keep.collect();
        if rejects.is_empty() {
            return Ok(Some(batch.clone()));
        }
        self.health.count(&outcomes);
        refused.extend(reject::of_batch(batch, &rejects));
        Ok(batch.filter(&keep)?)
    }

    fn encode(&self, fingerprint: u64) -> Vec<u8> {
        let mut writer = StateWriter::new(fingerprint, &self.health.cx);
        self.counted.encode(&mut writer);
        self.watermark.encode(&mut writer);
        writer.finish()
    }
}

/// An epoch that is not complete.
struct Open {
    rows_at: Capability<u64>,
    bars_at: Capability<u64>,
    rejects_at: Capability<u64>,
    batches: Vec<Batch>,
    marks: Vec<Mark>,
}

impl Open {
    fn at(capability: &InputCapability<u64>) -> Self {
        Self {
            rows_at: capability.retain(0),
            bars_at: capability.retain(1),
            rejects_at: capability.retain(2),
            batches: Vec::new(),
            marks: Vec::new(),
        }
    }
}

/// Attaches a clock behind a stream. What the watermark was in the checkpoint is told at time zero.
pub(super) fn attach<'scope>(clock: Clock, input: BatchStream<'scope>, health: &Health) -> Timed<'scope> {
    let Clock { operator, column, watermark, fingerprint } = clock;
    let name = format!("{operator}.mark");
    let (rows, marks) = mark(input, name, Some(column.clone()), watermark.clone(), &health.cx);
    let mut judge = Judge { column, watermark, counted: Counted::default(), health: health.clone() };
    for (_, _, mut state) in restored(&health.cx.checkpoint.restored(&operator), fingerprint) {
        judge.counted.restore(&mut state);
        judge.watermark.restore(&mut state);
    }
    let mut cuts = Cuts::new(operator.clone(), &health.cx);

    let mut builder = OperatorBuilder::new(operator, rows.scope());
    let mut rows = builder.new_input(rows, Pipeline);
    let mut marks = builder.new_input(marks.broadcast(), Pipeline);
    let (rows_out, timely_rows) = builder.new_output::<Batches>();
    let (bars_out, bars) = builder.new_output::<Vec<i64>>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let mut rows_out = OutputBuilder::<u64, NoopBuilder<Batches>>::from(rows_out);
    let mut bars_out = OutputBuilder::<u64, CapacityContainerBuilder<Vec<i64>>>::from(bars_out);
    let mut rejects_out = OutputBuilder::<u64, NoopBuilder<Batches>>::from(rejects_out);
    builder.build(move |mut capabilities| {
        capabilities.truncate(2);
        let mut at_zero = capabilities.pop();
        drop(capabilities);
        let mut open = OpenEpochs::<Open>::default();
        move |frontiers| {
            let (mut rows_out, mut bars_out) = (rows_out.activate(), bars_out.activate());
            let mut rejects_out = rejects_out.activate();
            if let Some(at_zero) = at_zero.take() {
                bars_out.session(&at_zero).give(judge.watermark.at());
            }
            rows.for_each(|capability, batches| {
                let open = open.at(*capability.time(), || Open::at(&capability));
                open.batches.append(&mut batches.0);
            });
            marks.for_each(|capability, marks| {
                let open = open.at(*capability.time(), || Open::at(&capability));
                open.marks.append(marks);
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, of_epoch)) = open.pop_complete(frontier) {
                let Open { rows_at, bars_at, rejects_at, batches, marks } = of_epoch;
                cuts.pass(epoch, || judge.encode(fingerprint));
                let (mut passed, mut refused) = (Vec::new(), Vec::new());
                for batch in batches {
                    let Some(batch) = judge.counted.fresh(epoch, batch) else { continue };
                    if !judge.health.is_stopped() {
                        passed.extend(judge.health.check(judge.judge(epoch, &batch, &mut refused)));
                    }
                }
                judge.counted.complete(epoch);
                judge.watermark.advance(epoch, marks);
                if !passed.is_empty() {
                    rows_out.session_with_builder(&rows_at).give_container(&mut Batches(passed));
                }
                if !refused.is_empty() {
                    rejects_out.session_with_builder(&rejects_at).give_container(&mut Batches(refused));
                }
                bars_out.session(&bars_at).give(judge.watermark.at());
                let cx = &judge.health.cx;
                if cx.index == 0 {
                    let held_back_by = judge.watermark.held_back_by(epoch);
                    cx.snapshots.reached(&judge.health.name, judge.watermark.at(), held_back_by);
                }
            }
            if let Some(frontier) = frontier {
                cuts.pass(frontier, || judge.encode(fingerprint));
            }
        }
    });
    Timed { rows: timely_rows, rejects, bars }
}

/// The least of several watermarks, after each epoch at which one of them moves; none before all are known.
pub(super) fn least<'scope>(bars: Vec<StreamVec<'scope, u64, i64>>) -> Option<StreamVec<'scope, u64, i64>> {
    let n_clocks = bars.len();
    let scope = bars.first()?.scope();
    let tagged = bars.into_iter().enumerate().map(|(idx, bars)| bars.map(move |bar| (idx, bar)));
    let all = scope.concatenate(tagged.collect::<Vec<_>>());
    let mut builder = OperatorBuilder::new("least watermark".to_owned(), scope);
    let mut input = builder.new_input(all, Pipeline);
    let (output, least) = builder.new_output::<Vec<i64>>();
    let mut output = OutputBuilder::<u64, CapacityContainerBuilder<Vec<i64>>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut reached: BTreeMap<usize, i64> = BTreeMap::new();
        let mut open = OpenEpochs::<(Capability<u64>, Vec<(usize, i64)>)>::default();
        move |frontiers| {
            let mut output = output.activate();
            input.for_each(|capability, bars| {
                let at = || (capability.retain(0), Vec::new());
                open.at(*capability.time(), at).1.append(bars);
            });
            let frontier = frontier(frontiers);
            while let Some((_, (capability, bars))) = open.pop_complete(frontier) {
                for (clock, bar) in bars {
                    let reached = reached.entry(clock).or_insert(bar);
                    *reached = bar.max(*reached);
                }
                if let Some(least) = reached.values().min().filter(|_| reached.len() == n_clocks) {
                    output.session(&capability).give(*least);
                }
            }
        }
    });
    Some(least)
}
