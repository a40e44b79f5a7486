//! The dataflow of a view on one worker.
//!
//! ```text
//! batches ─ mark ─┬────────────── gather ─ exchange by key ─ keep ─► rows of the view
//!                 └─ broadcast ──►   │ └── watermark ──────►
//!                                    └► rejects
//! ```
//!
//! `mark` says how new the rows of each partition are. `gather` computes the watermark of an epoch from the marks of
//! all workers in the epochs before, so that which rows are late depends on nothing else, and reduces the rows of an
//! epoch to one row per pane and key. `keep` holds the windows that are open.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::{cast, max};
use arrow::datatypes::TimestampMicrosecondType;
use logdrive_operators::flow::{Changes, Counted, Cuts, OpenEpochs, StateWriter, frontier, restored};
use logdrive_operators::{BatchStream, Batches, Beginning, ViewOutput, ViewRows, WorkerContext};
use logdrive_schemas::Batch;
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Capability, Concat, InputCapability};

use super::container::Part;
use super::health::Health;
use super::keep::{Emitted, Keep};
use super::output::{Rows, Told};
use super::scatter::{Bounds, Outcomes, Scatter, pass};
use super::watermark::{Mark, Watermark};
use super::windows::time_type;
use super::{Emit, SqlView};

/// How often `mark` says that time goes on, in epochs.
const CLOCK_EVERY: u64 = 100;

type BatchOutput = OutputBuilder<u64, NoopBuilder<Batches>>;
type VecOutput<D> = OutputBuilder<u64, CapacityContainerBuilder<Vec<D>>>;

/// Attaches a view that aggregates, and says how far event time has come in it after each epoch. `health` is that of the
/// view that it is part of, or its own; `goes_on`: with the rows of the checkpoint.
pub(super) fn attach<'scope>(
    view: &Arc<SqlView>,
    input: BatchStream<'scope>,
    health: &Health,
    goes_on: bool,
) -> (ViewOutput<'scope>, StreamVec<'scope, u64, i64>) {
    let windows = view.spec.aggregation.as_ref().and_then(|aggregation| aggregation.windows);
    let time = windows.map(|(_, idx)| view.spec.reads[idx].clone());
    let (rows, marks) = mark(input, view.operator("mark"), time, view.watermark(&health.cx), &health.cx);
    let (parts, bars, refused) = gather(rows, marks.broadcast(), view, health);
    let mut output = keep(parts, bars.clone(), Keeper::new(view, health, goes_on));
    output.rejects = output.rejects.concat(refused);
    (output, bars)
}

/// Attaches a view that takes each row by itself.
pub(super) fn attach_pass<'scope>(
    view: &Arc<SqlView>,
    input: BatchStream<'scope>,
    health: Health,
) -> (BatchStream<'scope>, BatchStream<'scope>) {
    let view = Arc::clone(view);
    let shape = Rows::new(&view.name, &view.spec, view.options.emit == Emit::Changes);
    let mut builder = OperatorBuilder::new(view.operator("rows"), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let (rows_out, rows) = builder.new_output::<Batches>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let (mut rows_out, mut rejects_out) = (BatchOutput::from(rows_out), BatchOutput::from(rejects_out));
    builder.set_notify_for(0, timely::progress::operate::FrontierInterest::Never);
    builder.build(move |_| {
        move |_| {
            input.for_each(|capability, batches| {
                let (mut passed, mut refused) = (Vec::new(), Vec::new());
                let mut outcomes = Outcomes::default();
                let told = match view.options.emit {
                    Emit::Changes => Told::Insert(*capability.time()),
                    Emit::Final => Told::Final,
                };
                for batch in std::mem::take(&mut batches.0) {
                    if health.is_stopped() {
                        continue;
                    }
                    let done = pass(&batch, &view.spec, &shape, told, &mut outcomes, &mut refused);
                    passed.extend(health.check(done));
                }
                health.count(&outcomes);
                if !passed.is_empty() {
                    let capability = capability.retain(0);
                    rows_out
                        .activate()
                        .session_with_builder(&capability)
                        .give_container(&mut Batches(passed));
                }
                if !refused.is_empty() {
                    let capability = capability.retain(1);
                    let mut refused = Batches(refused);
                    rejects_out.activate().session_with_builder(&capability).give_container(&mut refused);
                }
            });
        }
    });
    (rows, rejects)
}

/// Passes rows on, and says how new they are, if there is a column with their `time`.
pub(super) fn mark<'scope>(
    input: BatchStream<'scope>,
    operator: String,
    time: Option<String>,
    watermark: Watermark,
    cx: &WorkerContext,
) -> (BatchStream<'scope>, StreamVec<'scope, u64, Mark>) {
    let (is_first, lifecycle) = (cx.index == 0, Arc::clone(&cx.lifecycle));
    let mut builder = OperatorBuilder::new(operator, input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let (rows_out, rows) = builder.new_output::<Batches>();
    let (marks_out, marks) = builder.new_output::<Vec<Mark>>();
    let (mut rows_out, mut marks_out) = (BatchOutput::from(rows_out), VecOutput::<Mark>::from(marks_out));
    builder.build(move |mut capabilities| {
        let mut clock = capabilities.pop().filter(|_| time.is_some());
        let (mut told, mut last) = (0, 0);
        move |frontiers| {
            let (mut rows_out, mut marks_out) = (rows_out.activate(), marks_out.activate());
            input.for_each(|capability, batches| {
                last = last.max(*capability.time());
                let marks = time.iter().flat_map(|time| {
                    let latest = watermark.latest(*capability.time());
                    batches.0.iter().filter_map(move |batch| newest(batch, time, latest))
                });
                let marks: Vec<Mark> = marks.collect();
                if !marks.is_empty() {
                    marks_out.session(&capability.retain(1)).give_iterator(marks.into_iter());
                }
                rows_out.session_with_builder(&capability.retain(0)).give_container(batches);
            });
            let Some(capability) = &mut clock else { return };
            match frontiers[0].frontier().first() {
                Some(frontier) if capability.time() < frontier => {
                    capability.downgrade(frontier);
                    // One worker tells the time for all.
                    if is_first && told + CLOCK_EVERY <= *frontier {
                        told = *frontier;
                        marks_out.session(&*capability).give(Mark::Clock);
                    }
                }
                Some(_) => {}
                None => {
                    if !lifecycle.is_stopping() {
                        capability.downgrade(&last.max(*capability.time()));
                        marks_out.session(&*capability).give(Mark::End);
                    }
                    clock = None;
                }
            }
        }
    });
    (rows, marks)
}

fn newest(batch: &Batch, time: &str, latest: i64) -> Option<Mark> {
    let column = cast(batch.rows().column_by_name(time)?, &time_type()).ok()?;
    let column = column.as_primitive::<TimestampMicrosecondType>();
    let mut newest = max(column)?;
    if newest > latest {
        newest = column.iter().flatten().filter(|at| *at <= latest).max()?;
    }
    let origin = batch.origin();
    Some(Mark::Newest(Arc::clone(&origin.source), origin.partition.0, newest))
}

/// An epoch that is not complete.
struct Open {
    parts_at: Capability<u64>,
    bars_at: Capability<u64>,
    rejects_at: Capability<u64>,
    batches: Vec<Batch>,
    marks: Vec<Mark>,
}

impl Open {
    fn at(capability: &InputCapability<u64>) -> Self {
        Self {
            parts_at: capability.retain(0),
            bars_at: capability.retain(1),
            rejects_at: capability.retain(2),
            batches: Vec::new(),
            marks: Vec::new(),
        }
    }
}

/// Reduces the rows of each epoch to parts, and says the watermark at its end.
fn gather<'scope>(
    rows: BatchStream<'scope>,
    marks: StreamVec<'scope, u64, Mark>,
    view: &Arc<SqlView>,
    health: &Health,
) -> (StreamVec<'scope, u64, Part>, StreamVec<'scope, u64, i64>, BatchStream<'scope>) {
    let (cx, fingerprint) = (health.cx.clone(), view.fingerprint);
    let operator = view.operator("gather");
    let (mut counted, mut watermark) = (Counted::default(), view.watermark(&cx));
    for (_, _, mut state) in restored(&cx.checkpoint.restored(&operator), fingerprint) {
        counted.restore(&mut state);
        watermark.restore(&mut state);
    }
    let mut cuts = Cuts::new(operator.clone(), &cx);
    let encode = move |counted: &Counted, watermark: &Watermark, cx: &WorkerContext| {
        let mut writer = StateWriter::new(fingerprint, cx);
        counted.encode(&mut writer);
        watermark.encode(&mut writer);
        writer.finish()
    };
    let mut scatter = Scatter::new(&view.name, &view.spec, cx.peers);
    let health = health.clone();

    let mut builder = OperatorBuilder::new(operator, rows.scope());
    let mut rows = builder.new_input(rows, Pipeline);
    let mut marks = builder.new_input(marks, Pipeline);
    let (parts_out, parts) = builder.new_output::<Vec<Part>>();
    let (bars_out, bars) = builder.new_output::<Vec<i64>>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let (mut parts_out, mut bars_out) =
        (VecOutput::<Part>::from(parts_out), VecOutput::<i64>::from(bars_out));
    let mut rejects_out = BatchOutput::from(rejects_out);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut open: BTreeMap<u64, Open> = BTreeMap::new();
        move |frontiers| {
            let (mut parts_out, mut bars_out) = (parts_out.activate(), bars_out.activate());
            let mut rejects_out = rejects_out.activate();
            rows.for_each(|capability, batches| {
                let open = open.entry(*capability.time()).or_insert_with(|| Open::at(&capability));
                open.batches.append(&mut batches.0);
            });
            marks.for_each(|capability, marks| {
                let open = open.entry(*capability.time()).or_insert_with(|| Open::at(&capability));
                open.marks.append(marks);
            });
            let of_rows = frontiers[0].frontier().first().copied();
            let of_marks = frontiers[1].frontier().first().copied();
            while let Some(mut entry) = open.first_entry() {
                let epoch = *entry.key();
                // Marks of an epoch before may still come, so the watermark is not known.
                if of_marks.is_some_and(|frontier| frontier < epoch) {
                    break;
                }
                let (mut outcomes, mut refused) = (Outcomes::default(), Vec::new());
                let bounds = Bounds { watermark: watermark.at(), latest: watermark.latest(epoch) };
                for batch in entry.get_mut().batches.drain(..) {
                    let Some(batch) = counted.fresh(epoch, batch) else { continue };
                    match &mut scatter {
                        Ok(scatter) if !health.is_stopped() => {
                            health.check(scatter.take(&batch, bounds, &mut outcomes, &mut refused));
                        }
                        Ok(_) => {}
                        Err(error) => health.stop(&crate::compiler::readable(error)),
                    }
                }
                health.count(&outcomes);
                if !refused.is_empty() {
                    let session = &mut rejects_out.session_with_builder(&entry.get().rejects_at);
                    session.give_container(&mut Batches(refused));
                }
                let is_open = |frontier: Option<u64>| frontier.is_some_and(|frontier| frontier <= epoch);
                if is_open(of_rows) || is_open(of_marks) {
                    break;
                }
                cuts.pass(epoch, || encode(&counted, &watermark, &cx));
                let Open { parts_at, bars_at, marks, .. } = entry.remove();
                counted.complete(epoch);
                watermark.advance(epoch, marks);
                if let Ok(scatter) = &mut scatter {
                    let parts = health.check(scatter.parts());
                    if !parts.is_empty() {
                        parts_out.session(&parts_at).give_iterator(parts.into_iter());
                    }
                }
                bars_out.session(&bars_at).give(watermark.at());
                if cx.index == 0 {
                    cx.snapshots.reached(&health.name, watermark.at(), watermark.held_back_by(epoch));
                }
            }
            if let Some(frontier) = frontier(frontiers) {
                cuts.pass(frontier, || encode(&counted, &watermark, &cx));
            }
        }
    });
    (parts, bars, rejects)
}

/// An epoch that is not complete.
struct Pending {
    rows_at: Capability<u64>,
    failed_at: Capability<u64>,
    parts: Vec<Part>,
    bar: Option<i64>,
}

impl Pending {
    fn at(capability: &InputCapability<u64>) -> Self {
        Self { rows_at: capability.retain(0), failed_at: capability.retain(1), parts: Vec::new(), bar: None }
    }
}

/// The open windows, as long as the view has not stopped.
struct Keeper {
    view: Arc<SqlView>,
    health: Health,
    slot: usize,
    /// Whether it has the rows of the checkpoint.
    goes_on: bool,
    /// `None` if it could not be set up.
    keep: Option<Keep>,
}

impl Keeper {
    fn new(view: &Arc<SqlView>, health: &Health, goes_on: bool) -> Self {
        let cx = &health.cx;
        let keep = Keep::new(view, cx).and_then(|mut keep| {
            if goes_on {
                keep.restore(&*cx.checkpoint, &view.operator("keep"))?;
            }
            keep.clears = !goes_on;
            Ok(Some(keep))
        });
        let (view, keep) = (Arc::clone(view), health.check(keep));
        Self { view, health: health.clone(), slot: 0, goes_on, keep }
    }

    /// What the view begins with, for readers of changes.
    fn beginning(&mut self) -> Batches {
        let Self { health, keep: Some(keep), .. } = self else { return Batches::default() };
        let rows = keep.snapshot().and_then(|rows| keep.rows.shape.beginning(&rows.told));
        health.check(rows)
    }

    /// See [`Keep::of_no_rows`].
    fn of_no_rows(&mut self) -> Option<Part> {
        let part = self.keep.as_mut().map(Keep::of_no_rows)?;
        self.health.check(part)
    }

    fn epoch(&mut self, epoch: u64, parts: Vec<Part>, bar: Option<i64>) -> Emitted {
        let Self { health, slot, keep: Some(keep), .. } = self else { return Emitted::default() };
        if health.is_stopped() {
            keep.clear();
            return Emitted::default();
        }
        let emitted = health.check(keep.epoch(epoch, parts, bar));
        health.charge(*slot, keep.n_rows(), keep.n_bytes());
        emitted
    }

    /// What changed since the last checkpoint. A view that has stopped stays so after a restart.
    fn changes(&mut self) -> Changes {
        let Self { view, health, keep, .. } = self;
        let Some(keep) = keep else {
            return Changes {
                fingerprint: view.fingerprint,
                shards: 0..0,
                state: Vec::new(),
                tables: Vec::new(),
            };
        };
        if !health.is_stopped() {
            match keep.changes() {
                Ok(changes) => return changes,
                Err(error) => health.stop(&crate::compiler::readable(&error)),
            }
        }
        keep.stopped()
    }

    /// Answers those who wait for the rows as of the epochs before.
    fn answer(&mut self, before: u64) {
        let Self { view, health, keep, .. } = self;
        // What is within another view is not read. What could not be set up has stopped.
        let rows = || keep.as_mut().map_or_else(|| Ok(ViewRows::default()), Keep::snapshot);
        health.answer(&view.name, before, rows);
    }
}

/// Keeps the open windows of the keys of this worker.
fn keep<'scope>(
    parts: StreamVec<'scope, u64, Part>,
    bars: StreamVec<'scope, u64, i64>,
    mut keeper: Keeper,
) -> ViewOutput<'scope> {
    let operator = keeper.view.operator("keep");
    let mut cuts = Cuts::new(operator.clone(), &keeper.health.cx);
    let (is_wanted, is_new) = (Rc::<Cell<bool>>::default(), !keeper.goes_on);

    let mut builder = OperatorBuilder::new(operator, parts.scope());
    keeper.slot = keeper.health.slot(builder.operator_info().global_id);
    let mut parts = builder.new_input(parts, Exchange::new(|part: &Part| part.worker));
    let mut bars = builder.new_input(bars, Pipeline);
    let (rows_out, rows) = builder.new_output::<Batches>();
    let (failed_out, failed) = builder.new_output::<Batches>();
    let (beginning_out, beginning) = builder.new_output::<Batches>();
    let (mut rows_out, mut failed_out) = (BatchOutput::from(rows_out), BatchOutput::from(failed_out));
    let mut beginning_out = BatchOutput::from(beginning_out);
    let beginning = Beginning::new(beginning, &is_wanted, is_new);
    builder.build(move |mut capabilities| {
        let mut beginning_at = capabilities.pop();
        let mut pending = OpenEpochs::<Pending>::default();
        if let (Some(part), [rows_at, failed_at]) = (keeper.of_no_rows(), capabilities.as_slice()) {
            let (rows_at, failed_at) = (rows_at.clone(), failed_at.clone());
            let epoch = *rows_at.time();
            pending.at(epoch, || Pending { rows_at, failed_at, parts: vec![part], bar: None });
        }
        drop(capabilities);
        move |frontiers| {
            let (mut rows_out, mut failed_out) = (rows_out.activate(), failed_out.activate());
            if let Some(at) = beginning_at.take().filter(|_| is_wanted.get()) {
                let mut rows = keeper.beginning();
                beginning_out.activate().session_with_builder(&at).give_container(&mut rows);
            }
            parts.for_each(|capability, parts| {
                let pending = pending.at(*capability.time(), || Pending::at(&capability));
                pending.parts.append(parts);
            });
            bars.for_each(|capability, bars| {
                let pending = pending.at(*capability.time(), || Pending::at(&capability));
                pending.bar = bars.drain(..).max().max(pending.bar);
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, of_epoch)) = pending.pop_complete(frontier) {
                cuts.pass_changes(epoch, |_| keeper.changes());
                keeper.answer(epoch);
                let Pending { rows_at, failed_at, parts, bar } = of_epoch;
                let Emitted { rows, failed } = keeper.epoch(epoch, parts, bar);
                if !rows.is_empty() {
                    rows_out.session_with_builder(&rows_at).give_container(&mut Batches(rows));
                }
                if !failed.is_empty() {
                    failed_out.session_with_builder(&failed_at).give_container(&mut Batches(failed));
                }
            }
            if let Some(frontier) = frontier {
                cuts.pass_changes(frontier, |_| keeper.changes());
            }
            keeper.answer(frontier.unwrap_or(u64::MAX));
        }
    });
    ViewOutput { rows, rejects: failed, beginning: Some(beginning) }
}
