//! Groups as rows of the view.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, Int64Array, RecordBatch, StringViewArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::json::LineDelimitedWriter;
use datafusion::common::Result;
use datafusion::common::hash_utils::{QualityRandomState, create_hashes};
use logdrive_operators::Batches;
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::{Batch, Epoch, Layout, Origin, reject};

use super::keep::Emitted;
use super::spec::{Aggregation, Output, Spec, isolate, run};
use super::windows::{self, Windowing};

/// The column that says what a row does to the view.
pub const CHANGE: &str = "_change";
/// The column that says in which epoch.
pub const EPOCH: &str = "_epoch";

/// Not the seed of DataFusion's own tables, which would then fill unevenly.
const SEED: u64 = 0x6c6f_6764_7669_6577;

/// What rows say of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    /// The group as it is when its window closes.
    Final,
    /// The group as it is from this epoch on.
    Insert(u64),
    /// The group as it is no longer from this epoch on.
    Delete(u64),
}

/// The columns of a view that tells changes.
#[must_use]
pub fn with_change(schema: &SchemaRef) -> SchemaRef {
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(Field::new(CHANGE, DataType::Utf8View, false)));
    fields.push(Arc::new(Field::new(EPOCH, DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// Hashes that place groups on workers and identify rows; the same in every process.
pub(super) fn hashes(keys: &[ArrayRef], n_rows: usize) -> Result<Vec<u64>> {
    let state = QualityRandomState::with_seed(SEED);
    let mut hashes = vec![0; n_rows];
    if !keys.is_empty() {
        create_hashes(keys, &state, &mut hashes)?;
    }
    Ok(hashes)
}

/// What rows of a view look like.
#[derive(Debug)]
pub(super) struct Shape {
    view: Arc<str>,
    schema: SchemaRef,
    tells_changes: bool,
}

impl Shape {
    /// The rows of `view`, whose query has the columns `schema`.
    pub(super) fn new(view: &Arc<str>, schema: &SchemaRef, tells_changes: bool) -> Self {
        let schema = if tells_changes { with_change(schema) } else { Arc::clone(schema) };
        Self { view: Arc::clone(view), schema, tells_changes }
    }

    /// Rows that are there when the view begins.
    pub(super) fn beginning(&self, rows: &[RecordBatch]) -> Result<Batches> {
        let told = if self.tells_changes { Told::Insert(0) } else { Told::Final };
        let mut batches = Batches::default();
        for rows in rows {
            let ids = (0..rows.num_rows() as u64).collect();
            batches.0.extend(self.batch(self.complete(rows, told)?, &[], ids, 0, 0));
        }
        Ok(batches)
    }

    /// A batch of rows; `originals` are empty unless given.
    pub(super) fn batch(
        &self,
        rows: RecordBatch,
        originals: &[Vec<u8>],
        ids: Vec<u64>,
        window: i64,
        epoch: u64,
    ) -> Option<Batch> {
        let origin = Origin {
            source: Arc::clone(&self.view),
            partition: Partition(window.cast_unsigned()),
            ordered: false,
            received_at: i64::try_from(epoch).unwrap_or(i64::MAX).saturating_mul(Epoch::UNIT_US),
            peer: None,
        };
        let original = |row: usize| originals.get(row).map_or(&b""[..], Vec::as_slice);
        let original = BinaryViewArray::from_iter_values((0..ids.len()).map(original));
        Batch::new(rows, original, UInt64Array::from(ids), Arc::new(origin), Arc::new(Layout::Columns))
    }

    /// The rows with what is told of them.
    pub(super) fn complete(&self, rows: &RecordBatch, told: Told) -> Result<RecordBatch> {
        let (change, epoch) = match told {
            Told::Final => return Ok(rows.clone()),
            Told::Insert(epoch) => ("insert", epoch),
            Told::Delete(epoch) => ("delete", epoch),
        };
        let n_rows = rows.num_rows();
        let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n(change, n_rows))));
        columns.push(Arc::new(Int64Array::from_value(epoch, n_rows)));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// What turns groups into rows of a view.
#[derive(Debug)]
pub(super) struct Rows {
    spec: Arc<Spec>,
    pub(super) shape: Shape,
}

impl Rows {
    pub(super) fn new(view: &Arc<str>, spec: &Arc<Spec>, tells_changes: bool) -> Self {
        Self { spec: Arc::clone(spec), shape: Shape::new(view, &spec.schema, tells_changes) }
    }

    /// Adds the rows of groups. Keys begin with the start of the window, and `ends` are those of sessions. `window`
    /// stands in the rows' identity.
    #[allow(clippy::too_many_arguments, reason = "what groups are, and what becomes of them")]
    pub(super) fn of_groups(
        &self,
        aggregation: &Aggregation,
        window: i64,
        (keys, values): (&[ArrayRef], &[ArrayRef]),
        ends: Option<&[i64]>,
        told: Told,
        epoch: u64,
        emitted: &mut Emitted,
    ) -> Result<()> {
        let n_groups = keys[0].len();
        let groups = group_rows(aggregation, keys, values, ends)?;
        // Windows of a fixed size are told apart by `window`, those of sessions by the row.
        let told_apart = if ends.is_some() { keys } else { &keys[1..] };
        let ids = hashes(told_apart, n_groups)?;
        let ids: Vec<u64> = ids.into_iter().map(|id| identity(id, told)).collect();
        let (parts, refused) =
            isolate(n_groups, |start, len| run(&self.spec.after, &groups.slice(start, len)));
        for (start, staged) in parts {
            let ids = staged.indices.values().iter().map(|idx| ids[start + *idx as usize]).collect();
            let rows = self.shape.complete(&staged.rows, told)?;
            emitted.rows.extend(self.shape.batch(rows, &[], ids, window, epoch));
        }
        // A group that is taken back failed when it was told.
        if !refused.is_empty() && !matches!(told, Told::Delete(_)) {
            let originals = documents(&groups)?;
            if let Some(batch) = self.shape.batch(groups, &originals, ids, window, epoch) {
                emitted.failed.extend(reject::of_batch(&batch, &refused));
            }
        }
        Ok(())
    }

    /// The rows that a batch of the input becomes, where nothing is aggregated. They keep its messages and identity.
    pub(super) fn of_batch(&self, batch: &Batch, rows: &RecordBatch, told: Told) -> Result<Batch> {
        let rows = self.shape.complete(rows, told)?;
        Ok(batch.clone().with_rows(rows, Arc::new(Layout::Columns)))
    }
}

/// The identity of a row among those of its window. A row that leaves when its window closes is the same row after a
/// restart.
pub(super) fn identity(group: u64, told: Told) -> u64 {
    match told {
        Told::Final => group,
        Told::Insert(epoch) => group ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        Told::Delete(epoch) => !(group ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    }
}

/// Rows as JSON objects.
pub(super) fn documents(rows: &RecordBatch) -> Result<Vec<Vec<u8>>> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    Ok(writer.into_inner().split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect())
}

fn group_rows(
    aggregation: &Aggregation,
    keys: &[ArrayRef],
    values: &[ArrayRef],
    ends: Option<&[i64]>,
) -> Result<RecordBatch> {
    let starts: &[i64] = keys[0].as_primitive::<Int64Type>().values();
    let ends = match (ends, aggregation.windows) {
        (Some(ends), _) => ends.to_vec(),
        (None, Some((Windowing::Fixed(windows), _))) => {
            starts.iter().map(|start| start.saturating_add(windows.size)).collect()
        }
        (None, _) => starts.to_vec(),
    };
    let columns = aggregation.outputs.iter().map(|output| match output {
        Output::Window => Arc::new(windows::column(starts, &ends)),
        Output::Start => windows::times(starts),
        Output::End => windows::times(&ends),
        Output::Key(idx) => Arc::clone(&keys[1 + idx]),
        Output::Aggregate(idx) => Arc::clone(&values[*idx]),
    });
    Ok(RecordBatch::try_new(Arc::clone(&aggregation.schema), columns.collect())?)
}
