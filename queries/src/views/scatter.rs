//! The first half of a view on one worker: rows to partial aggregates, which leave for the workers that keep their
//! keys at the end of each epoch.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{cast, take, take_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result};
use logdrive_operators::ViewOutcome;
use logdrive_operators::flow::{shard_of, worker_of};
use logdrive_schemas::{Batch, Reject, Rejects, reject};

use super::container::Part;
use super::grouping::Grouping;
use super::keep::ALWAYS;
use super::log::pane_column;
use super::output::{Rows, Told, hashes};
use super::spec::{Aggregation, Arguments, Spec, isolate, run};
use super::windows::{Windowing, time_type};

/// Counts of what became of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes([usize; ViewOutcome::ALL.len()]);

impl Outcomes {
    pub(super) fn add(&mut self, outcome: ViewOutcome, n_rows: usize) {
        self.0[outcome as usize] += n_rows;
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (ViewOutcome, usize)> {
        ViewOutcome::ALL
            .into_iter()
            .map(|outcome| (outcome, self.0[outcome as usize]))
            .filter(|(_, n)| *n > 0)
    }
}

/// When rows are too late, and too early, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) watermark: i64,
    pub(super) latest: i64,
}

/// What is evaluated on a batch before it is grouped.
struct Prepared {
    /// Which rows of the range, ascending.
    indices: UInt32Array,
    arguments: Arguments,
}

/// Rows on their way into groups.
pub(super) struct Scatter {
    view: Arc<str>,
    spec: Arc<Spec>,
    grouping: Option<Grouping>,
    peers: usize,
}

impl Scatter {
    pub(super) fn new(view: &Arc<str>, spec: &Arc<Spec>, peers: usize) -> Result<Self> {
        let grouping = spec.aggregation.as_ref().map(Grouping::new).transpose()?;
        Ok(Self { view: Arc::clone(view), spec: Arc::clone(spec), grouping, peers })
    }

    /// Takes in a batch. Its rejects go to `rejects`.
    pub(super) fn take(
        &mut self,
        batch: &Batch,
        bounds: Bounds,
        outcomes: &mut Outcomes,
        rejects: &mut Vec<Batch>,
    ) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let Some(aggregation) = &spec.aggregation else { return Ok(()) };
        let read = project(batch, &spec.reads)?;
        outcomes.add(ViewOutcome::In, batch.num_rows());
        let (prepared, mut refused) = isolate(batch.num_rows(), |start, len| {
            let staged = run(&spec.before, &read.slice(start, len))?;
            let arguments = aggregation.arguments(&staged.rows)?;
            Ok(Prepared { indices: staged.indices, arguments })
        });
        outcomes.add(ViewOutcome::Failed, refused.len());
        let mut n_staged = refused.len();
        for (start, Prepared { indices, arguments }) in prepared {
            n_staged += indices.len();
            let Some((windowing, time)) = aggregation.windows else {
                outcomes.add(ViewOutcome::Used, indices.len());
                self.group(pane_column(ALWAYS, indices.len()), &arguments)?;
                continue;
            };
            let times = times(read.column(time), start, &indices)?;
            let (keep, n_refused) =
                judge(&self.view, &times, windowing, bounds, start, &indices, &mut refused, outcomes);
            if n_refused == indices.len() {
                continue;
            }
            outcomes.add(ViewOutcome::Used, indices.len() - n_refused);
            let panes = times.values().iter().map(|at| windowing.pane_of(*at));
            if n_refused == 0 {
                self.group(Arc::new(Int64Array::from_iter_values(panes)), &arguments)?;
            } else {
                let panes = panes.zip(keep.values()).filter_map(|(pane, keep)| keep.then_some(pane));
                let panes = Int64Array::from_iter_values(panes);
                self.group(Arc::new(panes), &arguments.filter(&keep)?)?;
            }
        }
        outcomes.add(ViewOutcome::Filtered, batch.num_rows() - n_staged);
        refused.sort_by_key(|reject| reject.idx);
        rejects.extend(reject::of_batch(batch, &refused));
        Ok(())
    }

    fn group(&mut self, panes: ArrayRef, arguments: &Arguments) -> Result<()> {
        match &mut self.grouping {
            Some(grouping) if !panes.is_empty() => grouping.update(panes, arguments),
            _ => Ok(()),
        }
    }

    /// The partial aggregates of an epoch, split by the worker that keeps their keys.
    pub(super) fn parts(&mut self) -> Result<Vec<Part>> {
        let (Some(grouping), Some(aggregation)) = (&mut self.grouping, &self.spec.aggregation) else {
            return Ok(Vec::new());
        };
        if grouping.len() == 0 {
            return Ok(Vec::new());
        }
        split(grouping.take_part()?, aggregation, self.peers)
    }
}

/// Splits rows that begin with pane and key by the worker that keeps the key.
pub(super) fn split(rows: RecordBatch, aggregation: &Aggregation, peers: usize) -> Result<Vec<Part>> {
    if peers == 1 {
        return Ok(vec![Part { worker: 0, rows }]);
    }
    let hashes = hashes(&rows.columns()[1..aggregation.n_keys()], rows.num_rows())?;
    let mut of_workers: Vec<Vec<u32>> = vec![Vec::new(); peers];
    for (hash, row) in hashes.iter().zip(0..) {
        of_workers[worker_of(shard_of(*hash), peers)].push(row);
    }
    let mut parts = Vec::new();
    for (worker, mine) in (0..).zip(of_workers) {
        let mine = UInt32Array::from(mine);
        if !mine.is_empty() {
            parts.push(Part { worker, rows: take_record_batch(&rows, &mine)? });
        }
    }
    Ok(parts)
}

/// The columns that a view reads.
pub(super) fn project(batch: &Batch, reads: &[String]) -> Result<RecordBatch> {
    let schema = batch.rows().schema_ref();
    let indices = reads.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>();
    let indices = indices.map_err(|error| DataFusionError::ArrowError(Box::new(error), None))?;
    Ok(batch.rows().project(&indices)?)
}

/// The times of the rows at `indices` behind `start`, in microseconds.
fn times(column: &ArrayRef, start: usize, indices: &UInt32Array) -> Result<Int64Array> {
    let column = column.slice(start, column.len() - start);
    let column = if indices.len() == column.len() { column } else { take(&column, indices, None)? };
    let column = cast(&column, &time_type())?;
    Ok(column.as_primitive::<TimestampMicrosecondType>().reinterpret_cast::<Int64Type>())
}

/// Which rows are in time, and how many are not.
#[allow(clippy::too_many_arguments, reason = "called once")]
fn judge(
    view: &str,
    times: &Int64Array,
    windowing: Windowing,
    bounds: Bounds,
    start: usize,
    indices: &UInt32Array,
    refused: &mut Rejects,
    outcomes: &mut Outcomes,
) -> (BooleanArray, usize) {
    let mut n_refused = 0;
    let mut refuse = |row: usize, outcome, reason: String| {
        outcomes.add(outcome, 1);
        refused.push(Reject { idx: start + indices.value(row) as usize, reason });
        n_refused += 1;
        false
    };
    let keep = (0..times.len()).map(|row| {
        let at = times.is_valid(row).then(|| times.value(row));
        if let Some((outcome, reason)) = unbelievable(view, at, bounds.latest) {
            return refuse(row, outcome, reason);
        }
        let at = times.value(row);
        if let Some(end) = windowing.closed_before(at, bounds.watermark) {
            let late = bounds.watermark.saturating_sub(end) as f64 / 1e6;
            let reason = format!(
                "late: the last window of the view `{view}` for it closed {late} s of event time before"
            );
            return refuse(row, ViewOutcome::Late, reason);
        }
        true
    });
    let keep: BooleanArray = keep.collect::<Vec<bool>>().into();
    (keep, n_refused)
}

/// Why a row's time says nothing, if it does not.
pub(super) fn unbelievable(view: &str, at: Option<i64>, latest: i64) -> Option<(ViewOutcome, String)> {
    let Some(at) = at else {
        let reason = format!("no_event_time: the view `{view}` needs to know when the row happened");
        return Some((ViewOutcome::Failed, reason));
    };
    let reason =
        || format!("ahead_of_clock: more than an hour from now, which the view `{view}` does not believe");
    (at > latest).then(|| (ViewOutcome::Late, reason()))
}

/// The rows of a view that aggregates nothing.
pub(super) fn pass(
    batch: &Batch,
    spec: &Spec,
    rows: &Rows,
    told: Told,
    outcomes: &mut Outcomes,
    rejects: &mut Vec<Batch>,
) -> Result<Vec<Batch>> {
    let read = project(batch, &spec.reads)?;
    outcomes.add(ViewOutcome::In, batch.num_rows());
    let (parts, refused) = isolate(batch.num_rows(), |start, len| run(&spec.before, &read.slice(start, len)));
    outcomes.add(ViewOutcome::Failed, refused.len());
    let mut passed = Vec::with_capacity(parts.len());
    let mut n_used = 0;
    for (start, staged) in parts {
        n_used += staged.indices.len();
        let indices = UInt32Array::from_iter_values(staged.indices.values().iter().map(|i| i + start as u32));
        if let Some(source) = batch.take(&indices)? {
            passed.push(rows.of_batch(&source, &staged.rows, told)?);
        }
    }
    outcomes.add(ViewOutcome::Used, n_used);
    outcomes.add(ViewOutcome::Filtered, batch.num_rows() - n_used - refused.len());
    rejects.extend(reject::of_batch(batch, &refused));
    Ok(passed)
}
