//! What the tests of sinks share: rows, a runtime in small, and an HTTP server that misbehaves as told.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod bulk;
pub(crate) mod component;
pub(crate) mod proxy;
pub(crate) mod server;
pub(crate) mod weather;

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow::datatypes::{Field, Schema};
use logdrive_connectors::{ConnectorContext, ConnectorError, Metrics, SINKS, Sink};
use logdrive_schemas::component::{Limits, Node};
use logdrive_schemas::{Batch, Epoch, Layout, Origin, Partition};
use tokio_util::sync::CancellationToken;

/// 2026-11-21T11:00:00Z.
pub(crate) const RECEIVED_AT: i64 = 1_795_258_800_000_000;

/// Rows that leave as they came, of one partition.
pub(crate) fn batch(
    partition: u64,
    offset: u64,
    documents: &[String],
    columns: &[(&str, ArrayRef)],
) -> Batch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, values)| Field::new(*name, values.data_type().clone(), true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(documents.len()));
    let values = columns.iter().map(|(_, values)| Arc::clone(values)).collect();
    let rows = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), values, &options).unwrap();
    let origin = Origin {
        source: "shop".into(),
        partition: Partition(partition),
        ordered: true,
        received_at: RECEIVED_AT,
        peer: None,
    };
    let original = BinaryViewArray::from_iter_values(documents);
    let offsets = UInt64Array::from_iter_values(offset..offset + documents.len() as u64);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Original(Vec::new()))).unwrap()
}

/// A sink called `out`, as a pipeline would build it.
pub(crate) fn sink(kind: &str, yaml: &str) -> (Box<dyn Sink>, ConnectorContext) {
    let cx = ConnectorContext {
        name: "out".into(),
        state_dir: "unused".into(),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    };
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SINKS.iter().find(|entry| entry.name == kind).unwrap();
    (entry.build_or_panic(&node, &cx), cx)
}

trait BuildOrPanic {
    fn build_or_panic(&self, node: &Node, cx: &ConnectorContext) -> Box<dyn Sink>;
}

impl BuildOrPanic for logdrive_connectors::SinkEntry {
    fn build_or_panic(&self, node: &Node, cx: &ConnectorContext) -> Box<dyn Sink> {
        match (self.build)(node, cx) {
            Ok(sink) => sink,
            Err(errors) => panic!("{errors:?}"),
        }
    }
}

/// Writes `batches` and flushes, once.
pub(crate) async fn deliver(sink: &mut dyn Sink, batches: &[Batch]) -> Result<Vec<Batch>, ConnectorError> {
    let mut rejects = Vec::new();
    for batch in batches {
        rejects.extend(sink.write(batch).await?);
    }
    rejects.extend(sink.flush(Epoch(1)).await?);
    Ok(rejects)
}

/// As the runtime does it: connects again after an error and writes everything again. Returns the rejects and the
/// number of errors.
pub(crate) async fn deliver_at_last(sink: &mut dyn Sink, batches: &[Batch]) -> (Vec<Batch>, usize) {
    let mut n_errors = 0;
    loop {
        let result = match sink.connect().await {
            Ok(()) => deliver(sink, batches).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(rejects) => return (rejects, n_errors),
            Err(_) => n_errors += 1,
        }
        assert!(n_errors < 1000, "the sink never delivers");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The column of a batch of rejects.
pub(crate) fn texts(rejects: &[Batch], column: &str) -> Vec<String> {
    use arrow::array::AsArray as _;
    let texts = rejects.iter().flat_map(|batch| {
        let values = batch.rows().column_by_name(column).unwrap().as_string_view();
        values.iter().map(|v| v.unwrap().to_owned()).collect::<Vec<_>>()
    });
    texts.collect()
}

/// A counter of the sink `out`.
pub(crate) fn count(counter: &prometheus::IntCounterVec) -> u64 {
    counter.with_label_values(&["out"]).get()
}

/// The sink's errors of one kind.
pub(crate) fn errors(cx: &ConnectorContext, kind: &str) -> u64 {
    cx.metrics.sink_errors.with_label_values(&["out", kind]).get()
}
