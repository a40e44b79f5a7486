//! From a batch to the rows of each folder: with the lake's own columns, and without views that pin chunks.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, RecordBatch, RecordBatchOptions, StringViewArray, StringViewBuilder,
    StructArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use logdrive_schemas::{Batch, FieldType};

use crate::sinks::template::{EventTimes, encode, format_time, value_text};

/// What Hive calls the folder of null.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

/// Rows of one folder.
pub(super) struct Part {
    /// The folder, such as `tenant=acme/date=2026-11-21/`; empty without partitioning.
    pub(super) folder: String,
    /// The columns that name it, and their values.
    pub(super) values: Vec<(String, Option<String>)>,
    pub(super) rows: Batch,
    /// When each row happened, in microseconds.
    pub(super) times: Vec<i64>,
}

/// Splits a batch by folder; the order of rows is kept.
pub(super) fn split(batch: &Batch, partition_by: &[String]) -> Result<Vec<Part>, ArrowError> {
    let times = EventTimes::of(batch);
    let n_rows = batch.num_rows();
    let mut group_of_row = vec![0_u32; n_rows];
    let mut groups = vec![(String::new(), Vec::new())];
    for name in partition_by {
        let (code_of_row, labels) = codes(batch, name, &times);
        let mut finer = HashMap::new();
        let mut finer_groups: Vec<(String, Vec<(String, Option<String>)>)> = Vec::new();
        for (group, code) in group_of_row.iter_mut().zip(code_of_row) {
            *group = *finer.entry((*group, code)).or_insert_with(|| {
                let (mut folder, mut values) = groups[*group as usize].clone();
                let label = labels[code as usize].clone();
                let text = encode(label.as_deref().unwrap_or_default(), NULL_FOLDER);
                write!(folder, "{}={text}/", encode(name, "_")).expect("writing to a string cannot fail");
                values.push((name.clone(), label));
                finer_groups.push((folder, values));
                (finer_groups.len() - 1) as u32
            });
        }
        groups = finer_groups;
    }
    if let [(folder, values)] = &mut groups[..] {
        let times = (0..n_rows).map(|idx| times.get(idx)).collect();
        let (folder, values) = (std::mem::take(folder), std::mem::take(values));
        return Ok(vec![Part { folder, values, rows: batch.clone(), times }]);
    }
    let mut rows_of_group = vec![Vec::new(); groups.len()];
    for (idx, group) in group_of_row.iter().enumerate() {
        rows_of_group[*group as usize].push(idx as u32);
    }
    let mut parts = Vec::with_capacity(groups.len());
    for ((folder, values), indices) in groups.into_iter().zip(rows_of_group) {
        let times = indices.iter().map(|idx| times.get(*idx as usize)).collect();
        if let Some(rows) = batch.take(&UInt32Array::from(indices))? {
            parts.push(Part { folder, values, rows, times });
        }
    }
    Ok(parts)
}

/// For each row the index of its value, and the values. Empty text counts as null, as in Hive.
fn codes(batch: &Batch, name: &str, times: &EventTimes) -> (Vec<u32>, Vec<Option<String>>) {
    let n_rows = batch.num_rows();
    let mut labels = Vec::new();
    let column = batch.rows().column_by_name(name);
    let derived = match (column, name) {
        (None, "date") => Some(("%Y-%m-%d", 86_400_000_000_i64)),
        (None, "hour") => Some(("%H", 3_600_000_000)),
        _ => None,
    };
    if let Some((format, unit)) = derived {
        let mut code_of_unit = HashMap::new();
        let code = |idx| {
            *code_of_unit.entry(times.get(idx).div_euclid(unit)).or_insert_with(|| {
                labels.push(Some(format_time(format, times.get(idx))));
                (labels.len() - 1) as u32
            })
        };
        return ((0..n_rows).map(code).collect(), labels);
    }
    let mut code_of_text: HashMap<String, u32> = HashMap::new();
    let mut code_of_null = None;
    let mut code = |idx| {
        let text = column.and_then(|column| value_text(column, idx)).filter(|text| !text.is_empty());
        let known = match &text {
            Some(text) => code_of_text.get(&**text).copied(),
            None => code_of_null,
        };
        known.unwrap_or_else(|| {
            let new = labels.len() as u32;
            match &text {
                Some(text) => drop(code_of_text.insert(text.to_string(), new)),
                None => code_of_null = Some(new),
            }
            labels.push(text.map(String::from));
            new
        })
    };
    ((0..n_rows).map(&mut code).collect(), labels)
}

/// The columns of a file for rows of `input`: those of the rows, then the lake's own unless the rows have one of that
/// name. Parquet has no structs without fields; they hold nothing and are left out.
pub(super) fn lake_schema(input: &Schema, original: bool) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = input.fields().iter().filter_map(storable).collect();
    let mut own = vec![
        FieldType::String.field("_source"),
        FieldType::String.field("_position"),
        FieldType::Timestamp.field("_received_at"),
    ];
    if original {
        own.push(Field::new("_original", DataType::BinaryView, true));
    }
    for field in own {
        if input.field_with_name(field.name()).is_err() {
            fields.push(Arc::new(field));
        }
    }
    Arc::new(Schema::new_with_metadata(fields, input.metadata().clone()))
}

/// The field without what Parquet has no type for; `None` if nothing is left.
fn storable(field: &Arc<Field>) -> Option<Arc<Field>> {
    let data_type = match field.data_type() {
        DataType::List(item) => DataType::List(storable(item)?),
        DataType::Struct(fields) => {
            let fields: Fields = fields.iter().filter_map(storable).collect();
            if fields.is_empty() {
                return None;
            }
            DataType::Struct(fields)
        }
        _ => return Some(Arc::clone(field)),
    };
    Some(Arc::new(field.as_ref().clone().with_data_type(data_type)))
}

/// The columns of `batch` as [`lake_schema`] says, copied as far as they are views.
pub(super) fn lake_rows(batch: &Batch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let n_rows = batch.num_rows();
    let origin = batch.origin();
    let column = |field: &Arc<Field>| -> ArrayRef {
        if let Some(column) = batch.rows().column_by_name(field.name()) {
            return compact(column, field.data_type());
        }
        match field.name().as_str() {
            "_original" => Arc::new(batch.original().gc()),
            "_position" => {
                let (mut builder, mut text) = (StringViewBuilder::with_capacity(n_rows), String::new());
                for offset in batch.offsets().values() {
                    text.clear();
                    write!(text, "{}:{offset}", origin.partition).expect("writing to a string cannot fail");
                    builder.append_value(&text);
                }
                Arc::new(builder.finish())
            }
            "_received_at" => Arc::new(
                TimestampMicrosecondArray::from_value(origin.received_at, n_rows).with_timezone("UTC"),
            ),
            _ => Arc::new((0..n_rows).map(|_| Some(&*origin.source)).collect::<StringViewArray>()),
        }
    };
    let columns = schema.fields().iter().map(column).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// A copy that shares no bytes with a received chunk, with only those fields that `stored` has.
fn compact(array: &ArrayRef, stored: &DataType) -> ArrayRef {
    match stored {
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
            Arc::new(ListArray::new(
                Arc::clone(item),
                offsets,
                compact(list.values(), item.data_type()),
                nulls,
            ))
        }
        DataType::Struct(fields) => {
            let all = array.as_struct();
            let of_field = |field: &Arc<Field>| {
                let column = all.column_by_name(field.name()).expect("fields are only ever left out");
                compact(column, field.data_type())
            };
            let columns = fields.iter().map(of_field).collect();
            Arc::new(StructArray::new(fields.clone(), columns, array.nulls().cloned()))
        }
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        _ => Arc::clone(array),
    }
}
