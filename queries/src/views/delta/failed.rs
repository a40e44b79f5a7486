//! Rows within a view that fail an expression.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::DataFusionError;
use differential_dataflow::{AsCollection, VecCollection};
use logdrive_operators::Batches;
use logdrive_schemas::{Batch, Reject, Rejects, reject};
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use xxhash_rust::xxh3::xxh3_64;

use super::super::health::Health;
use super::super::output::{Shape, documents};
use super::codec::Row;
use super::render::Time;
use crate::compiler::readable;

/// Before the bytes of a row, where there may be the reason why there is none instead.
const GOOD: u8 = 0;
const BAD: u8 = 1;

/// A row that was computed.
pub(super) fn good(row: &[u8]) -> Row {
    [&[GOOD], row].concat()
}

/// Why a row could not be computed. It goes away like any other row, when it can.
pub(super) fn bad(error: &DataFusionError) -> Row {
    [&[BAD], readable(error).as_bytes()].concat()
}

/// Makes rejects.
pub(super) struct Failures {
    /// Only what a reject has of a row: its bytes, and where it comes from.
    shape: Shape,
    rows: SchemaRef,
}

impl Failures {
    pub(super) fn new(health: &Health) -> Self {
        let rows = Arc::new(Schema::empty());
        Self { shape: Shape::new(&health.name, &rows, false), rows }
    }

    /// Rejects of rows of which there is a batch.
    pub(super) fn of_rows(&self, rows: &RecordBatch, refused: Rejects, epoch: u64) -> Option<Batch> {
        if refused.is_empty() {
            return None;
        }
        let mut originals = documents(rows).unwrap_or_default();
        originals.resize(rows.num_rows(), Vec::new());
        self.batch(&originals, &refused, epoch)
    }

    fn batch(&self, originals: &[Vec<u8>], refused: &[Reject], epoch: u64) -> Option<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(originals.len()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.rows), Vec::new(), &options).ok()?;
        let ids = originals.iter().map(|original| xxh3_64(original) ^ epoch).collect();
        reject::of_batch(&self.shape.batch(rows, originals, ids, 0, epoch)?, refused)
    }

    /// Parts rows from the reasons why there is none.
    pub(super) fn split<'scope, T: Time>(
        self,
        results: VecCollection<'scope, T, Row, isize>,
    ) -> (VecCollection<'scope, T, Row, isize>, Stream<'scope, T, Batches>) {
        let mut builder = OperatorBuilder::new("results".to_owned(), results.inner.scope());
        let mut input = builder.new_input(results.inner, Pipeline);
        let (rows_out, rows) = builder.new_output::<Vec<(Row, T, isize)>>();
        let (rejects_out, rejects) = builder.new_output::<Batches>();
        let mut rows_out = OutputBuilder::<T, CapacityContainerBuilder<Vec<(Row, T, isize)>>>::from(rows_out);
        let mut rejects_out = OutputBuilder::<T, NoopBuilder<Batches>>::from(rejects_out);
        builder.set_notify_for(0, timely::progress::operate::FrontierInterest::Never);
        builder.build(move |_| {
            move |_| {
                let (mut rows_out, mut rejects_out) = (rows_out.activate(), rejects_out.activate());
                input.for_each(|capability, updates| {
                    let rows_at = capability.retain(0);
                    let mut session = rows_out.session_with_builder(&rows_at);
                    let mut refused = Rejects::new();
                    for (mut row, time, diff) in updates.drain(..) {
                        if row.first() == Some(&GOOD) {
                            row.remove(0);
                            session.give((row, time, diff));
                        } else if diff > 0 {
                            let reason = String::from_utf8_lossy(&row[1..]);
                            let reason = format!("expression_failed: {reason}");
                            refused.push(Reject { idx: refused.len(), reason });
                        }
                    }
                    let originals = vec![b"{}".to_vec(); refused.len()];
                    let refused = self.batch(&originals, &refused, capability.time().epoch());
                    if let Some(refused) = refused.filter(|batch| batch.num_rows() > 0) {
                        let rejects_at = capability.retain(1);
                        let mut refused = Batches(vec![refused]);
                        rejects_out.session_with_builder(&rejects_at).give_container(&mut refused);
                    }
                });
            }
        });
        (rows.as_collection(), rejects)
    }
}
