//! What flows between the two halves of a view: partial aggregates, each part for one worker.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::{DataFusionError, Result};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Rows for one worker. Splitting happens before the exchange, so the exchange counts parts.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The worker that keeps these groups.
    pub(super) worker: u64,
    /// One row per pane and key.
    pub(super) rows: RecordBatch,
}

// Between threads parts are moved; only a cluster of processes would write them down.
impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = encode(std::slice::from_ref(&self.rows)).map_err(S::Error::custom)?;
        (self.worker, bytes).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (worker, bytes) = <(u64, Vec<u8>)>::deserialize(deserializer)?;
        let mut rows = decode(&bytes).map_err(D::Error::custom)?;
        let rows = rows.pop().ok_or_else(|| D::Error::custom("no rows"))?;
        Ok(Self { worker, rows })
    }
}

/// Batches of one schema as an Arrow IPC stream; nothing if there are none.
pub(super) fn encode(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let failed = |error| DataFusionError::ArrowError(Box::new(error), None);
    let mut writer = StreamWriter::try_new(Vec::new(), &first.schema()).map_err(failed)?;
    for batch in batches {
        writer.write(batch).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)
}

/// The batches of [`encode`].
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<RecordBatch>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error| DataFusionError::ArrowError(Box::new(error), None);
    StreamReader::try_new(bytes, None).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

/// The same rows without the texts of others: columns of views keep alive all that they were taken from.
pub(super) fn tidy(rows: &RecordBatch) -> Result<RecordBatch> {
    let own = |column: &ArrayRef| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => Arc::clone(column),
        }
    };
    Ok(RecordBatch::try_new(rows.schema(), rows.columns().iter().map(own).collect())?)
}
