//! Reads CSV, JSON and Parquet files into one record batch, with the types that rows have.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Rows that are read at a time.
const BATCH_ROWS: usize = 65_536;

/// Reads the table in a file. The column `key` of a CSV file is text whatever it looks like (`007`); columns that
/// `before` has too keep its types.
pub(super) fn read(
    path: &Path,
    key: &str,
    max_bytes: u64,
    before: Option<&SchemaRef>,
) -> Result<RecordBatch, String> {
    let n_bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if n_bytes > max_bytes {
        return Err(format!("it has {n_bytes} bytes, `max_bytes` is {max_bytes}"));
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let bytes = || fs::read(path).map_err(|error| error.to_string());
    let columns = match extension.to_ascii_lowercase().as_str() {
        "csv" => read_csv(&bytes()?, key, before).map_err(|error| error.to_string())?,
        "json" | "jsonl" | "ndjson" => read_json(&bytes()?, before)?,
        "parquet" => read_parquet(path, max_bytes)?,
        _ => return Err("expected a name that ends in `.csv`, `.json`, `.ndjson` or `.parquet`".into()),
    };
    normalise(&columns).map_err(|error| error.to_string())
}

/// Reads CSV with a header, every column as text.
pub(super) fn read_csv_as_text(bytes: &[u8]) -> Result<RecordBatch, ArrowError> {
    let format = arrow::csv::reader::Format::default().with_header(true);
    let (inferred, _) = format.infer_schema(Cursor::new(bytes), Some(0))?;
    let text = |field: &Arc<Field>| Field::new(field.name().trim(), DataType::Utf8View, true);
    let schema = Arc::new(Schema::new(inferred.fields().iter().map(text).collect::<Vec<_>>()));
    read_csv_as(bytes, schema)
}

fn read_csv(bytes: &[u8], key: &str, before: Option<&SchemaRef>) -> Result<RecordBatch, ArrowError> {
    let format = arrow::csv::reader::Format::default().with_header(true);
    let (inferred, _) = format.infer_schema(Cursor::new(bytes), None)?;
    let typed = |field: &Arc<Field>| {
        let known = before.and_then(|before| before.field_with_name(field.name()).ok());
        let data_type = match known {
            _ if field.name() == key => DataType::Utf8View,
            // Text is parsed as a time without a zone.
            Some(known) if known.data_type().is_temporal() => {
                DataType::Timestamp(TimeUnit::Microsecond, None)
            }
            Some(known) => known.data_type().clone(),
            None => field.data_type().clone(),
        };
        Field::new(field.name().trim(), data_type, true)
    };
    let schema = Arc::new(Schema::new(inferred.fields().iter().map(typed).collect::<Vec<_>>()));
    read_csv_as(bytes, schema)
}

fn read_csv_as(bytes: &[u8], schema: SchemaRef) -> Result<RecordBatch, ArrowError> {
    let reader =
        arrow::csv::ReaderBuilder::new(Arc::clone(&schema)).with_header(true).with_batch_size(BATCH_ROWS);
    let batches = reader.build(Cursor::new(bytes))?.collect::<Result<Vec<_>, _>>()?;
    concat_batches(&schema, &batches)
}

fn read_json(bytes: &[u8], before: Option<&SchemaRef>) -> Result<RecordBatch, String> {
    let lines = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => {
            let rows: Vec<serde_json::Map<String, serde_json::Value>> =
                serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            let mut lines = Vec::with_capacity(bytes.len());
            for row in rows {
                serde_json::to_writer(&mut lines, &row).map_err(|error| error.to_string())?;
                lines.push(b'\n');
            }
            lines
        }
        _ => bytes.to_vec(),
    };
    let read = || {
        let (inferred, _) = arrow::json::reader::infer_json_schema(Cursor::new(&lines), None)?;
        let typed = |field: &Arc<Field>| match before.and_then(|b| b.field_with_name(field.name()).ok()) {
            Some(known) => Arc::new(known.clone()),
            None => Arc::clone(field),
        };
        let schema = Arc::new(Schema::new(inferred.fields().iter().map(typed).collect::<Vec<_>>()));
        let reader = arrow::json::ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(BATCH_ROWS);
        let batches = reader.build(Cursor::new(&lines))?.collect::<Result<Vec<_>, _>>()?;
        concat_batches(&schema, &batches)
    };
    read().map_err(|error: ArrowError| error.to_string())
}

fn read_parquet(path: &Path, max_bytes: u64) -> Result<RecordBatch, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())?;
    let n_bytes: i64 = builder.metadata().row_groups().iter().map(|group| group.total_byte_size()).sum();
    if u64::try_from(n_bytes).map_or(true, |n_bytes| n_bytes > max_bytes) {
        return Err(format!("it has {n_bytes} bytes without compression, `max_bytes` is {max_bytes}"));
    }
    let schema = Arc::clone(builder.schema());
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|error| error.to_string())?;
    let (mut batches, mut n_bytes) = (Vec::new(), 0);
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        n_bytes += batch.get_array_memory_size() as u64;
        if n_bytes > max_bytes {
            return Err(format!("it takes more memory than `max_bytes`, which is {max_bytes}"));
        }
        batches.push(batch);
    }
    concat_batches(&schema, &batches).map_err(|error| error.to_string())
}

/// The same rows with the types that Logdrive has; a type that fits none becomes text.
fn normalise(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let fields: Vec<Arc<Field>> = rows.schema().fields().iter().map(normal_field).collect();
    let columns =
        fields.iter().zip(rows.columns()).map(|(field, column)| normal_column(column, field.data_type()));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn normal_column(column: &ArrayRef, normal: &DataType) -> Result<ArrayRef, ArrowError> {
    // Arrow knows no time zone by name: the unit is cast, and the zone, which does not change the instant, is set.
    let zone = match column.data_type() {
        DataType::Date32 | DataType::Date64 => None,
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => return cast(column, normal),
    };
    let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, zone))?;
    let micros = micros.as_primitive::<TimestampMicrosecondType>().clone();
    Ok(Arc::new(micros.with_timezone("UTC")))
}

fn normal_field(field: &Arc<Field>) -> Arc<Field> {
    let data_type = normal_type(field.data_type());
    Arc::new(field.as_ref().clone().with_data_type(data_type).with_nullable(true))
}

fn normal_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Boolean | DataType::Decimal128(..) | DataType::Float64 | DataType::Int64 => {
            data_type.clone()
        }
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        }
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        DataType::List(item) => DataType::List(normal_field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(normal_field).collect::<Fields>()),
        integer if integer.is_integer() => DataType::Int64,
        _ => DataType::Utf8View,
    }
}
