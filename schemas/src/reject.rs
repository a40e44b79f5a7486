//! Messages that failed: data, with a reason.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::builder::{BinaryViewBuilder, StringViewBuilder, UInt64Builder};
use arrow_array::{BinaryViewArray, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::batch::{Batch, Origin};
use crate::chunk::Chunk;
use crate::layout::Layout;

/// Why one message of a chunk, or one row of a batch, failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The index of the message in its chunk, or of the row in its batch.
    pub idx: usize,
    /// `code: explanation`, such as `invalid_json: truncated string at byte 41`. The code is stable.
    pub reason: String,
}

/// The rejects of one chunk or batch, in ascending order of `idx`.
pub type Rejects = Vec<Reject>;

/// The schema of the `rejects` stream: `reason`, `source`, `position`, `received_at`, `original`
/// (as text, with U+FFFD for what is not UTF-8), and `original_base64` where the text would not be the exact bytes.
#[must_use]
pub fn schema() -> SchemaRef {
    let utc = Some("UTC".into());
    Arc::new(Schema::new(vec![
        Field::new("reason", DataType::Utf8View, false),
        Field::new("source", DataType::Utf8View, false),
        Field::new("position", DataType::Utf8View, false),
        Field::new("received_at", DataType::Timestamp(TimeUnit::Microsecond, utc), false),
        Field::new("original", DataType::Utf8View, false),
        Field::new("original_base64", DataType::Utf8View, true),
    ]))
}

/// Rejected messages of a chunk as rows of the `rejects` stream.
#[must_use]
pub fn of_chunk(chunk: &Chunk, rejects: &[Reject]) -> Option<Batch> {
    let origin = Arc::new(Origin::of_chunk(chunk));
    rows(origin, rejects.iter().map(|r| (r, chunk.message(r.idx), chunk.offsets[r.idx])))
}

/// Rejected rows of a batch as rows of the `rejects` stream.
#[must_use]
pub fn of_batch(batch: &Batch, rejects: &[Reject]) -> Option<Batch> {
    let values = rejects.iter().map(|r| (r, batch.original().value(r.idx), batch.offsets().value(r.idx)));
    rows(Arc::clone(batch.origin()), values)
}

fn rows<'a>(origin: Arc<Origin>, values: impl Iterator<Item = (&'a Reject, &'a [u8], u64)>) -> Option<Batch> {
    let (mut reason, mut position) = (StringViewBuilder::new(), StringViewBuilder::new());
    let (mut original, mut text) = (BinaryViewBuilder::new(), StringViewBuilder::new());
    let mut exact = StringViewBuilder::new();
    let mut offsets = UInt64Builder::new();
    for (reject, bytes, offset) in values {
        reason.append_value(&reject.reason);
        position.append_value(format!("{}:{offset}", origin.partition));
        let lossy = String::from_utf8_lossy(bytes);
        exact.append_option(matches!(lossy, Cow::Owned(_)).then(|| STANDARD.encode(bytes)));
        text.append_value(lossy);
        original.append_value(bytes);
        offsets.append_value(offset);
    }
    let offsets = offsets.finish();
    let n_rows = offsets.len();
    let source: StringViewArray = (0..n_rows).map(|_| Some(&*origin.source)).collect();
    let received_at = TimestampMicrosecondArray::from_value(origin.received_at, n_rows).with_timezone("UTC");
    let original: BinaryViewArray = original.finish();
    let rows = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(reason.finish()),
            Arc::new(source),
            Arc::new(position.finish()),
            Arc::new(received_at),
            Arc::new(text.finish()),
            Arc::new(exact.finish()),
        ],
    )
    .expect("the columns are built to the schema above");
    Batch::new(rows, original, offsets, origin, Arc::new(Layout::Columns))
}
