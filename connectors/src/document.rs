//! Rows as JSON documents: what every serialising sink writes.

use logdrive_schemas::Batch;

/// Writes the rows of one batch as JSON documents, as the batch's [`logdrive_schemas::Layout`] says.
pub struct Documents<'a> {
    batch: &'a Batch,
}

impl<'a> Documents<'a> {
    /// Prepares the columns of `batch`.
    #[must_use]
    pub fn new(batch: &'a Batch) -> Self {
        Self { batch }
    }

    /// Appends the document of row `idx` to `out`, without a line break behind it and without any inside.
    pub fn write(&self, idx: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.batch.original().value(idx));
    }
}
