//! Where rows enter: batches to rows as bytes, each counted once also after a crash.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::filter_record_batch;
use datafusion::common::Result;
use logdrive_operators::flow::{Counted, Cuts, StateWriter, frontier, restored};
use logdrive_operators::{BatchStream, Batches, ViewOutcome};
use logdrive_schemas::{Batch, Reject, Rejects, reject};
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::super::health::Health;
use super::super::output::CHANGE;
use super::super::scatter::Outcomes;
use super::super::spec::{isolate, run, take_rows};
use super::DeltaView;
use super::codec::Codec;
use super::keeper::Coming;
use super::kept::{Leaves, NEVER, Place};
use super::plan::Leaf;

/// A leaf on one worker.
pub(super) struct Entrance {
    operator: String,
    leaves: Arc<Vec<Leaf>>,
    idx: usize,
    codec: Codec,
    rows_leave: Leaves,
    counted: Counted,
    fingerprint: u64,
    health: Health,
}

impl Entrance {
    /// The leaf `idx` of `view`, with what it had counted when the checkpoint was made.
    pub(super) fn new(view: &DeltaView, idx: usize, health: &Health) -> Result<Self> {
        let (leaf, operator) = (&view.leaves[idx], view.operator("in", idx));
        let mut counted = Counted::default();
        for (_, _, mut state) in restored(&health.cx.checkpoint.restored(&operator), view.fingerprint) {
            counted.restore(&mut state);
        }
        Ok(Self {
            operator,
            leaves: Arc::clone(&view.leaves),
            idx,
            codec: Codec::new(&leaf.schema)?,
            rows_leave: leaf.rows_leave(),
            counted,
            fingerprint: view.fingerprint,
            health: health.clone(),
        })
    }

    fn leaf(&self) -> &Leaf {
        &self.leaves[self.idx]
    }

    /// The rows that a batch brings, at `epoch`. What fails goes to `refused`.
    fn take(&self, epoch: u64, batch: &Batch, refused: &mut Vec<Batch>, out: &mut Vec<Coming>) -> Result<()> {
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
        &self,
        epoch: u64,
        rows: &RecordBatch,
        filed_under: i64,
        diff: i64,
        out: &mut Vec<Coming>,
    ) -> Result<(usize, Rejects)> {
        let leaf = self.leaf();
        let (parts, rejects) = isolate(rows.num_rows(), |start, len| {
            let before = run(&leaf.before, &rows.slice(start, len))?;
            let (spans, ends) = (leaf.lifetime.of(&before.rows)?, leaf.lifetime.ends(&before.rows)?);
            let after = run(&leaf.after, &before.rows)?;
            let encoded = self.codec.encode(after.rows.columns(), after.rows.num_rows())?;
            let places = after.indices.values().iter().map(|idx| {
                let end = ends.as_ref().map_or(filed_under, |ends| ends[*idx as usize]);
                (spans[*idx as usize], end)
            });
            let places: Vec<_> = places.collect();
            Ok((encoded, places))
        });
        let mut n_used = 0;
        for (_, (encoded, places)) in parts {
            for (row, (span, filed_under)) in encoded.into_iter().zip(places) {
                let Some((from, until)) = span.filter(|(_, until)| epoch < *until) else { continue };
                n_used += 1;
                let end = match self.rows_leave {
                    Leaves::AtEpoch => i64::try_from(until).unwrap_or(NEVER),
                    Leaves::BehindWatermark(_) | Leaves::Never => filed_under,
                };
                out.push(Coming { row, place: Place { from, end }, diff });
            }
        }
        Ok((n_used, rejects))
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
    let insertions = take_rows(&reads, &coming)?;
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

impl Leaf {
    /// How its rows leave by themselves.
    pub(super) fn rows_leave(&self) -> Leaves {
        match &self.pane {
            _ if self.lifetime.behind.is_some() => Leaves::BehindWatermark(self.slack),
            _ if !self.lifetime.is_endless() => Leaves::AtEpoch,
            Some(pane) => pane.retained().map_or(Leaves::Never, |retained| {
                Leaves::BehindWatermark(retained.saturating_add(self.slack))
            }),
            None => Leaves::Never,
        }
    }

    /// Whether its rows may be taken back.
    pub(super) fn takes_back(&self) -> bool {
        self.changes || self.pane.is_some()
    }
}

type BatchOutput = OutputBuilder<u64, NoopBuilder<Batches>>;
type RowOutput = OutputBuilder<u64, CapacityContainerBuilder<Vec<Coming>>>;

/// Attaches a leaf behind its input. The second stream has the rejects.
pub(super) fn attach<'scope>(
    mut entrance: Entrance,
    input: BatchStream<'scope>,
) -> (StreamVec<'scope, u64, Coming>, BatchStream<'scope>) {
    let (health, fingerprint) = (entrance.health.clone(), entrance.fingerprint);
    let mut cuts = Cuts::new(entrance.operator.clone(), &health.cx);
    let cx = health.cx.clone();
    let encode = move |counted: &Counted| {
        let mut writer = StateWriter::new(fingerprint, &cx);
        counted.encode(&mut writer);
        writer.finish()
    };

    let mut builder = OperatorBuilder::new(entrance.operator.clone(), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let (rows_out, rows) = builder.new_output::<Vec<Coming>>();
    let (rejects_out, rejects) = builder.new_output::<Batches>();
    let (mut rows_out, mut rejects_out) = (RowOutput::from(rows_out), BatchOutput::from(rejects_out));
    builder.build(move |_| {
        move |frontiers| {
            let (mut rows_out, mut rejects_out) = (rows_out.activate(), rejects_out.activate());
            input.for_each(|capability, batches| {
                let epoch = *capability.time();
                let (mut coming, mut refused) = (Vec::new(), Vec::new());
                for batch in std::mem::take(&mut batches.0) {
                    let Some(batch) = entrance.counted.fresh(epoch, batch) else { continue };
                    if !health.is_stopped() {
                        health.check(entrance.take(epoch, &batch, &mut refused, &mut coming));
                    }
                }
                if !coming.is_empty() {
                    rows_out.session(&capability.retain(0)).give_iterator(coming.into_iter());
                }
                if !refused.is_empty() {
                    let rejects_at = capability.retain(1);
                    rejects_out.session_with_builder(&rejects_at).give_container(&mut Batches(refused));
                }
            });
            let frontier = frontier(frontiers);
            let counted = &mut entrance.counted;
            while let Some(epoch) = counted.oldest().filter(|at| frontier.is_none_or(|next| *at < next)) {
                cuts.pass(epoch, || encode(counted));
                counted.complete(epoch);
            }
            if let Some(frontier) = frontier {
                cuts.pass(frontier, || encode(counted));
            }
        }
    });
    (rows, rejects)
}
