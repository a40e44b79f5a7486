//! Columns that a step adds to its input: in the plan, and in each batch.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema};
use logdrive_schemas::{Batch, Edit, Layout};

use crate::step::Stage;

/// The names of a stage's columns.
pub(super) fn column_names(stage: &Stage) -> Vec<&str> {
    stage.schema.fields().iter().map(|field| field.name().as_str()).collect()
}

/// The stage with one more column, or another one in its place.
pub(super) fn with_column(stage: &Stage, name: &str, field: Field) -> Stage {
    let mut fields: Vec<Arc<Field>> = stage.schema.fields().to_vec();
    match fields.iter_mut().find(|known| known.name() == name) {
        Some(known) => *known = Arc::new(field),
        None => fields.push(Arc::new(field)),
    }
    let layout = match &*stage.layout {
        Layout::Columns => Arc::clone(&stage.layout),
        Layout::Original(edits) => {
            let mut edits = edits.clone();
            edits.push(Edit::Set { key: name.to_owned() });
            Arc::new(Layout::Original(edits))
        }
    };
    Stage { schema: Arc::new(Schema::new_with_metadata(fields, stage.schema.metadata().clone())), layout }
}

/// The batch with these columns added or replaced, as [`with_column`] planned it.
///
/// # Panics
/// If `stage` was planned for other columns.
pub(super) fn replace_columns(batch: Batch, new: Vec<(&str, ArrayRef)>, stage: &Stage) -> Batch {
    let column = |field: &Arc<Field>| -> ArrayRef {
        let new = new.iter().find(|(name, _)| name == field.name()).map(|(_, column)| column);
        Arc::clone(
            new.or_else(|| batch.rows().column_by_name(field.name())).expect("the plan names no others"),
        )
    };
    let columns = stage.schema.fields().iter().map(column).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let rows = RecordBatch::try_new_with_options(Arc::clone(&stage.schema), columns, &options)
        .expect("the columns have the types of the plan");
    batch.with_rows(rows, Arc::clone(&stage.layout))
}
