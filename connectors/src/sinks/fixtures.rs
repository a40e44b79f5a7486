//! Batches and contexts for the tests of sinks.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{BinaryViewArray, RecordBatch, StringViewArray, TimestampMicrosecondArray, UInt64Array};
use arrow::datatypes::Schema;
use logdrive_schemas::{Batch, FieldType, Layout, Origin, Partition};
use tokio_util::sync::CancellationToken;

use crate::context::ConnectorContext;
use crate::metrics::Metrics;

/// A context whose state lies in `folder`.
pub(crate) fn context(folder: &Path) -> ConnectorContext {
    ConnectorContext {
        name: "sink".into(),
        state_dir: folder.join("state"),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    }
}

/// Rows of `(offset, tenant, original)`; the event time is the offset in seconds since the epoch.
pub(crate) fn events(rows: &[(u64, Option<&str>, &str)]) -> Batch {
    let time = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.0 as i64 * 1_000_000));
    let schema =
        Schema::new(vec![FieldType::Timestamp.field("@timestamp"), FieldType::String.field("tenant")]);
    let columns = RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(time.with_timezone("UTC")),
            Arc::new(rows.iter().map(|r| r.1).collect::<StringViewArray>()),
        ],
    )
    .unwrap();
    let origin = Origin {
        source: "shop".into(),
        partition: Partition(7),
        ordered: true,
        received_at: 86_400_000_000,
        peer: None,
    };
    let original = BinaryViewArray::from_iter_values(rows.iter().map(|r| r.2.as_bytes()));
    let offsets = UInt64Array::from_iter_values(rows.iter().map(|r| r.0));
    Batch::new(columns, original, offsets, Arc::new(origin), Arc::new(Layout::Original(Vec::new()))).unwrap()
}

/// Runs a future to its end.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
