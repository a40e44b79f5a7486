//! Files of rows: Parquet, or Arrow IPC for the few types that Parquet does not have.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, IntervalUnit, Schema, SchemaRef, UInt16Type};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::row::{RowConverter, SortField};
use logdrive_operators::flow::{SHARDS, TableChange};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;

use super::folder::Folder;
use super::manifest::{FileRef, Run};

/// Whether a row is one that removes its key.
const REMOVED: &str = "_removed";
/// How many rows are read or merged at once.
pub(super) const BATCH_ROWS: usize = 8192;
/// How many rows make a row group: what a worker that wants a part of the shards may have to read in vain.
const GROUP_ROWS: usize = 65_536;
/// Of how many partitions a manifest says how many rows they have.
const PARTITIONS_SHOWN: usize = 100;

pub(super) type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

/// The columns as files have them: all nullable, since a row that removes its key has nothing else; and with a mark
/// for such rows if there are keys.
pub(super) fn file_schema(schema: &Schema, n_keys: usize) -> SchemaRef {
    let nullable = |field: &Arc<Field>| Arc::new(field.as_ref().clone().with_nullable(true));
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().map(nullable).collect();
    if n_keys > 0 {
        fields.push(Arc::new(Field::new(REMOVED, DataType::Boolean, true)));
    }
    Arc::new(Schema::new(fields))
}

/// Compares keys.
pub(super) fn key_converter(schema: &Schema, n_keys: usize) -> Result<RowConverter, ArrowError> {
    let fields = schema.fields()[..n_keys].iter();
    RowConverter::new(fields.map(|field| SortField::new(field.data_type().clone())).collect())
}

/// Which rows of a file remove their keys.
pub(super) fn removed(rows: &RecordBatch, n_keys: usize) -> Option<&BooleanArray> {
    (n_keys > 0).then(|| rows.columns().last().map(|column| column.as_boolean())).flatten()
}

/// The rows of a change as a file has them: in the order of their keys, each once.
pub(super) fn file_rows(change: &TableChange) -> Result<Option<RecordBatch>, ArrowError> {
    let schema = file_schema(&change.schema, change.n_keys);
    let rows = concat_batches(&change.schema, &change.rows)?;
    if change.n_keys == 0 {
        let rows = RecordBatch::try_new(schema, rows.columns().to_vec())?;
        return Ok((rows.num_rows() > 0).then_some(rows));
    }
    let n_removed: usize = change.removed.iter().map(RecordBatch::num_rows).sum();
    let n_rows = n_removed + rows.num_rows();
    if n_rows == 0 {
        return Ok(None);
    }
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (idx, column) in rows.columns().iter().enumerate() {
        // Rows come behind: one with a key that was removed before is there.
        let nulls = new_null_array(column.data_type(), if idx < change.n_keys { 0 } else { n_removed });
        let keys =
            change.removed.iter().filter(|_| idx < change.n_keys).map(|batch| batch.column(idx).as_ref());
        let parts: Vec<&dyn Array> = keys.chain([nulls.as_ref(), column.as_ref()]).collect();
        columns.push(concat(&parts)?);
    }
    columns.push(Arc::new((0..n_rows).map(|row| Some(row < n_removed)).collect::<BooleanArray>()));
    let keys = key_converter(&schema, change.n_keys)?.convert_columns(&columns[..change.n_keys])?;
    let all = RecordBatch::try_new(schema, columns)?;
    let mut order: Vec<u32> = (0..n_rows as u32).collect();
    order.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
    // Of those with one key the last counts.
    let mut kept: Vec<u32> = Vec::with_capacity(n_rows);
    for row in order {
        if kept.last().is_some_and(|last| keys.row(*last as usize) == keys.row(row as usize)) {
            kept.pop();
        }
        kept.push(row);
    }
    take_record_batch(&all, &UInt32Array::from(kept)).map(Some)
}

/// Whether Parquet can hold this.
fn fits_parquet(data_type: &DataType) -> bool {
    match data_type {
        DataType::Interval(unit) => *unit != IntervalUnit::MonthDayNano,
        DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => false,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            fits_parquet(item.data_type())
        }
        DataType::Map(entries, _) => fits_parquet(entries.data_type()),
        DataType::Struct(fields) => {
            !fields.is_empty() && fields.iter().all(|field| fits_parquet(field.data_type()))
        }
        DataType::Dictionary(_, value) => fits_parquet(value),
        _ => true,
    }
}

enum Writer {
    Parquet(Box<ArrowWriter<super::folder::NewFile>>),
    Ipc(Box<StreamWriter<super::folder::NewFile>>),
}

impl Writer {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), ArrowError> {
        match self {
            Self::Parquet(writer) => Ok(writer.write(rows)?),
            Self::Ipc(writer) => writer.write(rows),
        }
    }

    fn finish(self) -> Result<FileRef, ArrowError> {
        let file = match self {
            Self::Parquet(writer) => writer.into_inner()?,
            Self::Ipc(writer) => writer.into_inner()?,
        };
        let name = file.name().to_owned();
        Ok(FileRef::new(&name, file.finish()?))
    }
}

/// Writes rows, which are in order and in the form of files, into a new file called `stem` and what its format is
/// called. Nothing is written if there are none. Nothing of older runs is cleared or dropped by the run.
pub(super) fn write(
    folder: &Arc<Folder>,
    stem: &str,
    number: u64,
    n_keys: usize,
    rows: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
) -> Result<Run, ArrowError> {
    let mut run = Run { number, partitions: Some(BTreeMap::new()), ..Run::default() };
    let mut writer = None;
    for rows in rows {
        let rows = rows?;
        if rows.num_rows() == 0 {
            continue;
        }
        count(&mut run, &rows, n_keys);
        if writer.is_none() {
            writer = Some(open_writer(folder, stem, &rows.schema())?);
        }
        if let Some(writer) = &mut writer {
            writer.write(&rows)?;
        }
    }
    run.file = writer.map(Writer::finish).transpose()?;
    Ok(run)
}

fn open_writer(folder: &Arc<Folder>, stem: &str, schema: &SchemaRef) -> Result<Writer, ArrowError> {
    if !schema.fields().iter().all(|field| fits_parquet(field.data_type())) {
        let file = folder.create(&format!("{stem}.arrow"))?;
        return Ok(Writer::Ipc(Box::new(StreamWriter::try_new(file, schema)?)));
    }
    let file = folder.create(&format!("{stem}.parquet"))?;
    let level = ZstdLevel::try_new(1)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    Ok(Writer::Parquet(Box::new(ArrowWriter::try_new(file, SchemaRef::clone(schema), Some(properties))?)))
}

fn count(run: &mut Run, rows: &RecordBatch, n_keys: usize) {
    let partitions = rows.column(1).as_primitive::<Int64Type>().values();
    let removed = removed(rows, n_keys);
    for (row, partition) in partitions.iter().enumerate() {
        if removed.is_some_and(|removed| removed.value(row)) {
            run.removed += 1;
            continue;
        }
        run.rows += 1;
        if let Some(counts) = &mut run.partitions {
            *counts.entry(*partition).or_default() += 1;
        }
    }
    if run.partitions.as_ref().is_some_and(|counts| counts.len() > PARTITIONS_SHOWN) {
        run.partitions = None;
    }
}

/// The rows of a file in these shards, in their order.
pub(super) fn read(folder: &Path, file: &FileRef, shards: Range<u16>) -> Result<Batches, ArrowError> {
    let path = folder.join(&file.name);
    let reader: Batches = if file.name.ends_with(".arrow") {
        Box::new(StreamReader::try_new(BufReader::new(File::open(path)?), None)?)
    } else {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
        let groups = builder.metadata().row_groups().iter().enumerate();
        let groups = groups.filter(|(_, group)| may_have(group, &shards)).map(|(idx, _)| idx).collect();
        Box::new(builder.with_row_groups(groups).with_batch_size(BATCH_ROWS).build()?)
    };
    if shards == (0..SHARDS) {
        return Ok(reader);
    }
    let only_those = move |rows: RecordBatch| {
        let of_rows = rows.column(0).as_primitive::<UInt16Type>().values();
        let mask: BooleanArray = of_rows.iter().map(|shard| Some(shards.contains(shard))).collect();
        filter_record_batch(&rows, &mask)
    };
    Ok(Box::new(reader.map(move |rows| only_those(rows?))))
}

fn may_have(group: &RowGroupMetaData, shards: &Range<u16>) -> bool {
    match group.column(0).statistics() {
        Some(Statistics::Int32(values)) => match (values.min_opt(), values.max_opt()) {
            (Some(least), Some(most)) => *least < i32::from(shards.end) && i32::from(shards.start) <= *most,
            _ => true,
        },
        _ => true,
    }
}
