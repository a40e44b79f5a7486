//! A [`Batch`] as bytes and back: an Arrow IPC stream.
//!
//! The originals and the offsets are two more columns at the end; origin and layout are JSON in the schema's
//! metadata. The attributes of messages are a stream of their own. A column of views is compacted first: IPC writes every buffer that a view array refers to, and here that
//! would be whole received chunks, once per column.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, BinaryViewArray, RecordBatch, RecordBatchOptions, StringViewArray,
    StructArray, UInt32Array, UInt64Array, make_array,
};
use arrow::buffer::Buffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use logdrive_schemas::{Batch, Layout, Origin, Partition};
use serde::{Deserialize, Serialize};

const ORIGIN: &str = "logdrive.origin";
const LAYOUT: &str = "logdrive.layout";
const ORIGINAL: &str = "logdrive.original";
const OFFSET: &str = "logdrive.offset";

/// The bytes are no batch, or a column's type cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Arrow cannot read or write it.
    #[error("not an Arrow stream")]
    Arrow(#[from] ArrowError),
    /// It is an Arrow stream, but not one of ours.
    #[error("not a batch: {0}")]
    Foreign(&'static str),
    /// Origin or layout cannot be read or written.
    #[error("origin or layout is not as expected")]
    Metadata(#[from] serde_json::Error),
}

/// [`Origin`] as it is written.
#[derive(Serialize, Deserialize)]
struct StoredOrigin {
    source: String,
    partition: u64,
    ordered: bool,
    received_at: i64,
    peer: Option<String>,
}

/// Writes a batch.
///
/// # Errors
/// If a column has a type that IPC does not know.
pub fn encode(batch: &Batch) -> Result<Vec<u8>, CodecError> {
    let origin = batch.origin();
    let stored = StoredOrigin {
        source: origin.source.to_string(),
        partition: origin.partition.0,
        ordered: origin.ordered,
        received_at: origin.received_at,
        peer: origin.peer.as_deref().map(str::to_owned),
    };
    let schema = batch.schema();
    let mut metadata = schema.metadata().clone();
    metadata.insert(ORIGIN.into(), serde_json::to_string(&stored)?);
    metadata.insert(LAYOUT.into(), serde_json::to_string(&**batch.layout())?);
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(Field::new(ORIGINAL, DataType::BinaryView, true)));
    fields.push(Arc::new(Field::new(OFFSET, DataType::UInt64, false)));
    let mut columns = batch.rows().columns().iter().map(compact).collect::<Result<Vec<_>, _>>()?;
    columns.push(Arc::new(batch.original().gc()));
    columns.push(Arc::new(batch.offsets().clone()));
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&rows)?;
    Ok(writer.into_inner()?)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// If the bytes are anything else.
pub fn decode(bytes: &[u8]) -> Result<Batch, CodecError> {
    // Not the reader of streams: that one makes room for whatever length damaged bytes name.
    let rows = StreamDecoder::new().decode(&mut Buffer::from(bytes))?;
    let rows = rows.ok_or(CodecError::Foreign("it has no rows"))?;
    let n_columns = rows.num_columns().checked_sub(2).ok_or(CodecError::Foreign("columns are missing"))?;
    let mut metadata = rows.schema().metadata().clone();
    let mut member = |key| metadata.remove(key).ok_or(CodecError::Foreign("its schema has no origin"));
    let origin: StoredOrigin = serde_json::from_str(&member(ORIGIN)?)?;
    let layout: Layout = serde_json::from_str(&member(LAYOUT)?)?;
    let original = rows.column(n_columns).as_any().downcast_ref::<BinaryViewArray>();
    let offsets = rows.column(n_columns + 1).as_any().downcast_ref::<UInt64Array>();
    let (Some(original), Some(offsets)) = (original.cloned(), offsets.cloned()) else {
        return Err(CodecError::Foreign("originals or offsets are missing"));
    };
    let schema = Schema::new_with_metadata(rows.schema().fields()[..n_columns].to_vec(), metadata);
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let columns = rows.columns()[..n_columns].to_vec();
    let rows = RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)?;
    let origin = Origin {
        source: origin.source.into(),
        partition: Partition(origin.partition),
        ordered: origin.ordered,
        received_at: origin.received_at,
        peer: origin.peer.map(Into::into),
    };
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(layout))
        .ok_or(CodecError::Foreign("it has no rows"))
}

/// Writes the attributes of messages.
///
/// # Errors
/// If a column has a type that IPC does not know.
pub(super) fn encode_struct(attributes: &StructArray) -> Result<Vec<u8>, CodecError> {
    let columns = attributes.columns().iter().map(compact).collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(Schema::new(attributes.fields().clone()));
    let options = RecordBatchOptions::new().with_row_count(Some(attributes.len()));
    let rows = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&rows)?;
    Ok(writer.into_inner()?)
}

/// Reads what [`encode_struct`] wrote.
///
/// # Errors
/// If the bytes are anything else.
pub(super) fn decode_struct(bytes: Bytes) -> Result<StructArray, CodecError> {
    let rows = StreamDecoder::new().decode(&mut Buffer::from(bytes))?;
    let rows = rows.ok_or(CodecError::Foreign("it has no rows"))?;
    Ok(StructArray::from(rows))
}

/// The same values, with views that refer to nothing but what they show.
fn compact(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let column_type = column.data_type();
    if !has_views(column_type) {
        return Ok(Arc::clone(column));
    }
    if let Some(strings) = column.as_any().downcast_ref::<StringViewArray>() {
        return Ok(Arc::new(strings.gc()));
    }
    if let Some(binary) = column.as_any().downcast_ref::<BinaryViewArray>() {
        return Ok(Arc::new(binary.gc()));
    }
    // A slice of a list keeps all of its values: taking leaves those that are outside.
    let len = u32::try_from(column.len()).map_err(|_| ArrowError::OffsetOverflowError(column.len()))?;
    let taken = take(column, &UInt32Array::from_iter_values(0..len), None)?;
    let data = taken.to_data();
    let children = data.child_data().iter().map(|child| Ok(compact(&make_array(child.clone()))?.to_data()));
    let children = children.collect::<Result<Vec<ArrayData>, ArrowError>>()?;
    Ok(make_array(data.into_builder().child_data(children).build()?))
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        DataType::Dictionary(_, values) => has_views(values),
        DataType::RunEndEncoded(_, values) => has_views(values.data_type()),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_views(field.data_type())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayBuilder, BinaryViewBuilder, BooleanArray, Decimal128Array, Float64Array, Int64Array,
        ListBuilder, StringViewBuilder, StructArray, TimestampMicrosecondArray,
    };
    use logdrive_schemas::{Edit, FieldType};

    use super::*;

    #[test]
    fn lengths_that_damaged_bytes_name_are_not_believed() {
        for bytes in [&b"\n\n++"[..], b"\xff\xff\xff\xff\xf0\xff\xff\x7f....", b"", b"\0\0\0\0"] {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
    }

    /// `n` rows of every column type, their strings views into one large buffer.
    fn batch(n: usize) -> Batch {
        let mut text = vec![b'x'; 1 << 20];
        text.extend_from_slice(b"a string that is longer than twelve bytes");
        let large = Buffer::from_vec(text);
        let strings = |long: bool| {
            let mut builder = StringViewBuilder::new();
            let block = builder.append_block(large.clone());
            for row in 0..n {
                match row % 3 {
                    0 => builder.append_null(),
                    1 if long => builder.try_append_view(block, 1 << 20, 41).unwrap(),
                    _ => builder.append_value("short"),
                }
            }
            builder.finish()
        };
        let mut list = ListBuilder::new(StringViewBuilder::new());
        for row in 0..n {
            list.values().append_value(format!("element {row} of a list of strings"));
            list.append(row % 2 == 0);
        }
        let list = list.finish();
        assert_eq!(list.values().len(), n);
        let object = StructArray::from(vec![
            (Arc::new(Field::new("method", DataType::Utf8View, true)), Arc::new(strings(true)) as ArrayRef),
            (Arc::new(Field::new("list", list.data_type().clone(), true)), Arc::new(list.clone())),
        ]);
        let numbers = || (0..n as i64).map(|i| (i % 4 != 0).then_some(i));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(strings(true)),
            Arc::new(numbers().collect::<Int64Array>()),
            Arc::new(numbers().map(|v| v.map(|v| v as f64 / 3.0)).collect::<Float64Array>()),
            Arc::new(numbers().map(|v| v.map(|v| v % 2 == 0)).collect::<BooleanArray>()),
            Arc::new(
                numbers()
                    .map(|v| v.map(i128::from))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(20, 3)
                    .unwrap(),
            ),
            Arc::new(numbers().collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
            Arc::new(list),
            Arc::new(object),
        ];
        let names = ["s", "i", "f", "b", "d", "t", "l", "o"];
        let mut fields: Vec<Field> = names
            .iter()
            .zip(&columns)
            .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
            .collect();
        fields[0] = FieldType::Ip.field("s");
        let metadata = [("k".to_owned(), "v".to_owned())].into();
        let rows =
            RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, metadata)), columns).unwrap();
        let mut original = BinaryViewBuilder::new();
        let block = original.append_block(large);
        for _ in 0..n {
            original.try_append_view(block, 1 << 20, 41).unwrap();
        }
        assert_eq!(original.len(), n);
        let origin = Origin {
            source: "shop".into(),
            partition: Partition(u64::MAX),
            ordered: true,
            received_at: -7,
            peer: Some("1.2.3.4:5".into()),
        };
        let layout = Layout::Original(vec![Edit::Set { key: "é".into() }, Edit::Keep { keys: vec![] }]);
        let offsets = UInt64Array::from_iter_values((0..n as u64).map(|i| u64::MAX - i));
        Batch::new(rows, original.finish(), offsets, Arc::new(origin), Arc::new(layout)).unwrap()
    }

    fn assert_same(a: &Batch, b: &Batch) {
        assert_eq!(a.rows(), b.rows());
        assert_eq!(a.schema(), b.schema());
        assert_eq!(a.original(), b.original());
        assert_eq!(a.offsets(), b.offsets());
        assert_eq!(a.origin(), b.origin());
        assert_eq!(a.layout(), b.layout());
    }

    #[test]
    fn every_column_type_comes_back() {
        for n in [1, 2, 3, 100] {
            let batch = batch(n);
            let bytes = encode(&batch).unwrap();
            assert_same(&decode(&bytes).unwrap(), &batch);
            assert!(bytes.len() < 6_000 + n * 600, "{n} rows took {} bytes", bytes.len());
        }
    }

    #[test]
    fn a_part_takes_a_part_of_the_space() {
        let all = batch(3_000);
        let few = all.take(&UInt32Array::from(vec![7, 8, 2_999])).unwrap().unwrap();
        assert_same(&decode(&encode(&few).unwrap()).unwrap(), &few);
        let sliced = Batch::new(
            all.rows().slice(1_000, 3),
            all.original().slice(1_000, 3),
            all.offsets().slice(1_000, 3),
            Arc::clone(all.origin()),
            Arc::clone(all.layout()),
        )
        .unwrap();
        let bytes = encode(&sliced).unwrap();
        assert_same(&decode(&bytes).unwrap(), &sliced);
        assert!(bytes.len() < 8_000, "{}", bytes.len());
    }

    #[test]
    fn a_batch_without_columns_comes_back() {
        let some = batch(5);
        let options = RecordBatchOptions::new().with_row_count(Some(5));
        let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
        let empty = some.with_rows(none, Arc::new(Layout::Columns));
        assert_same(&decode(&encode(&empty).unwrap()).unwrap(), &empty);
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        let bytes = encode(&batch(3)).unwrap();
        assert!(decode(b"").is_err());
        for len in (0..bytes.len() - 200).step_by(97) {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
    }
}
