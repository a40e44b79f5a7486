//! Rows of one schema, with the messages that they came from.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BinaryViewArray, BooleanArray, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{ArrowError, SchemaRef};
use arrow_select::filter::{FilterBuilder, filter_record_batch};
use arrow_select::take::take;

use crate::chunk::{Chunk, Partition};
use crate::layout::Layout;

/// What all rows of a batch have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The source, or the detector, that the rows come from.
    pub source: Arc<str>,
    /// Which sequence of that source.
    pub partition: Partition,
    /// Whether `(partition, offset)` is a source's own position, so that offsets grow with epochs. False for what a
    /// detector derives: its offsets are identities (a hash), without order.
    pub ordered: bool,
    /// When the messages arrived, in microseconds since the Unix epoch.
    pub received_at: i64,
    /// Who sent them, if known.
    pub peer: Option<Arc<str>>,
}

impl Origin {
    /// What all messages of a chunk have in common.
    #[must_use]
    pub fn of_chunk(chunk: &Chunk) -> Self {
        Self {
            source: Arc::clone(&chunk.source),
            partition: chunk.partition,
            ordered: true,
            received_at: chunk.received_at,
            peer: chunk.peer.clone(),
        }
    }
}

/// Rows of one schema. Never empty: progress tracking counts rows, and a message without rows must not exist.
///
/// Beside its columns every row has its *original* (the bytes of the message, a view into the received chunk) and
/// its *offset*; `(source, partition, offset)` identifies the message for ever, over crashes and replays.
#[derive(Clone, Debug)]
pub struct Batch {
    rows: RecordBatch,
    original: BinaryViewArray,
    offsets: UInt64Array,
    origin: Arc<Origin>,
    layout: Arc<Layout>,
}

impl Batch {
    /// Puts the parts together; `None` if there are no rows.
    ///
    /// # Panics
    /// If the parts differ in length: that is a bug of the caller, never of the input.
    #[must_use]
    pub fn new(
        rows: RecordBatch,
        original: BinaryViewArray,
        offsets: UInt64Array,
        origin: Arc<Origin>,
        layout: Arc<Layout>,
    ) -> Option<Self> {
        assert_eq!(rows.num_rows(), original.len(), "one original per row");
        assert_eq!(rows.num_rows(), offsets.len(), "one offset per row");
        (rows.num_rows() > 0).then_some(Self { rows, original, offsets, origin, layout })
    }

    /// The columns.
    #[must_use]
    pub fn rows(&self) -> &RecordBatch {
        &self.rows
    }

    /// The layout of the columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    /// The number of rows, at least one.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }

    /// The message of each row, as received.
    #[must_use]
    pub fn original(&self) -> &BinaryViewArray {
        &self.original
    }

    /// The offset of each row's message in its partition.
    #[must_use]
    pub fn offsets(&self) -> &UInt64Array {
        &self.offsets
    }

    /// What the rows have in common.
    #[must_use]
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// How a row leaves as a document.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The stable identity of row `idx`'s message: source, partition and offset. At most 512 bytes, URL-safe.
    #[must_use]
    pub fn id(&self, idx: usize) -> String {
        let mut id = String::with_capacity(self.origin.source.len() + 34);
        self.write_id(idx, &mut id);
        id
    }

    /// Appends [`Self::id`] to `out`.
    pub fn write_id(&self, idx: usize, out: &mut String) {
        self.write_id_prefix(out);
        write!(out, "{:x}", self.offsets.value(idx)).expect("writing to a string cannot fail");
    }

    /// Appends what the ids of all rows begin with; the row's offset in lower-case hexadecimal digits follows.
    pub fn write_id_prefix(&self, out: &mut String) {
        write!(out, "{}-{}-", self.origin.source, self.origin.partition)
            .expect("writing to a string cannot fail");
    }

    /// About how many bytes the rows occupy: originals plus columns that are not views of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let originals: usize = self.original.lengths().map(|l| l as usize).sum();
        originals + self.num_rows() * 16 * (self.rows.num_columns() + 1)
    }

    /// The same rows with other columns, as steps make them.
    ///
    /// # Panics
    /// If the number of rows differs.
    #[must_use]
    pub fn with_rows(self, rows: RecordBatch, layout: Arc<Layout>) -> Self {
        assert_eq!(rows.num_rows(), self.num_rows(), "a projection keeps every row");
        Self { rows, layout, ..self }
    }

    /// The rows where `mask` is true (null counts as false); `None` if no row is left.
    ///
    /// # Errors
    /// If Arrow cannot filter a column; that is a bug in a column's type.
    pub fn filter(&self, mask: &BooleanArray) -> Result<Option<Self>, ArrowError> {
        let n_true = mask.true_count();
        if n_true == 0 {
            return Ok(None);
        }
        if n_true == self.num_rows() {
            return Ok(Some(self.clone()));
        }
        let rows = filter_record_batch(&self.rows, mask)?;
        let predicate = FilterBuilder::new(mask).optimize().build();
        let original = downcast::<BinaryViewArray>(&predicate.filter(&self.original)?);
        let offsets = downcast::<UInt64Array>(&predicate.filter(&self.offsets)?);
        Ok(Self::new(rows, original, offsets, Arc::clone(&self.origin), Arc::clone(&self.layout)))
    }

    /// The rows at `indices`, in that order; `None` if there are none.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn take(&self, indices: &UInt32Array) -> Result<Option<Self>, ArrowError> {
        let columns =
            self.rows.columns().iter().map(|c| take(c, indices, None)).collect::<Result<Vec<_>, _>>()?;
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(indices.len()));
        let rows = RecordBatch::try_new_with_options(self.rows.schema(), columns, &options)?;
        let original = downcast::<BinaryViewArray>(&take(&self.original, indices, None)?);
        let offsets = downcast::<UInt64Array>(&take(&self.offsets, indices, None)?);
        Ok(Self::new(rows, original, offsets, Arc::clone(&self.origin), Arc::clone(&self.layout)))
    }
}

fn downcast<T: Array + Clone + 'static>(array: &ArrayRef) -> T {
    array.as_any().downcast_ref::<T>().expect("filter and take keep the type").clone()
}
