//! Rows of many batches that a far end refused, as one batch of the `rejects` stream.
//!
//! A sink learns late what was refused, and not in the order of offsets. So its rejects are not *ordered*: each
//! gets an identity derived from the row's own, stable over replays, and the columns keep where the row came from.

use std::sync::Arc;

use arrow::array::{Array, AsArray as _, BinaryViewArray, UInt64Array};
use arrow::compute::{concat, concat_batches};
use logdrive_schemas::{Batch, Layout, Origin, Reject, reject};
use xxhash_rust::xxh3::xxh3_64;

use crate::source::partition_of;

/// Rows that a far end refused, by the batch they belong to.
pub(super) type Refused = Vec<(Batch, Vec<Reject>)>;

/// The rejects of `sink`, each group made of rows of one batch; `None` if there are none.
pub(super) fn merge(sink: &Arc<str>, groups: &[(Batch, Vec<Reject>)]) -> Option<Batch> {
    let batches: Vec<Batch> =
        groups.iter().filter_map(|(batch, rejects)| reject::of_batch(batch, rejects)).collect();
    let first = batches.first()?;
    let origin = Origin {
        source: Arc::clone(sink),
        partition: partition_of(&format!("rejects of sink {sink}")),
        ordered: false,
        received_at: first.origin().received_at,
        peer: None,
    };
    let rows = concat_batches(&reject::schema(), batches.iter().map(Batch::rows))
        .expect("all batches of rejects have one schema");
    let originals: Vec<&dyn Array> = batches.iter().map(|b| b.original() as &dyn Array).collect();
    let original: BinaryViewArray =
        concat(&originals).expect("all originals have one type").as_binary_view().clone();
    let mut id = String::new();
    let identities = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |idx| (batch, idx)));
    let offsets: UInt64Array = identities
        .map(|(batch, idx)| {
            id.clear();
            batch.write_id(idx, &mut id);
            Some(xxh3_64(id.as_bytes()))
        })
        .collect();
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns))
}

/// What a far end said, fit for a reason: one line, at most 1000 characters.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
