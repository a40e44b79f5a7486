//! Rows as Avro records, written straight from columns: a union of null and the value for each, in their order.
//!
//! Avro's names are narrower than ours: what they cannot hold becomes `_`, and the name as it was stands beside it as
//! the attribute [`NAME`] of the field, which the `kafka` source knows.

use std::collections::HashSet;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int64Array, RecordBatch, StringViewArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Fields, Float32Type, Float64Type, Int64Type, TimeUnit,
};
use serde_json::{Map, Value as Json, json};

use crate::kafka::AVRO_NAME as NAME;
use crate::sinks::template::value_text;

/// What a column becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Boolean,
    Bytes,
    Date,
    Decimal(u8, i8),
    Double,
    Float,
    List,
    Long,
    /// A value that is always null.
    Null,
    Record,
    /// Text, and whatever has no type in Avro, as it is shown.
    Text,
    /// In microseconds; with a zone, or without.
    Timestamp(bool),
}

impl Kind {
    fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::UInt64 => Self::Decimal(20, 0),
            of if of.is_integer() => Self::Long,
            DataType::Float16 | DataType::Float32 => Self::Float,
            DataType::Float64 => Self::Double,
            DataType::Decimal128(precision, scale) if *scale >= 0 => Self::Decimal(*precision, *scale),
            DataType::Binary
            | DataType::BinaryView
            | DataType::LargeBinary
            | DataType::FixedSizeBinary(_) => Self::Bytes,
            DataType::Timestamp(_, zone) => Self::Timestamp(zone.is_some()),
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Struct(_) => Self::Record,
            DataType::List(_) => Self::List,
            DataType::Dictionary(_, values) => Self::of(values),
            DataType::Null => Self::Null,
            _ => Self::Text,
        }
    }
}

/// The schema of rows with these columns.
pub(super) fn schema(fields: &Fields) -> String {
    record("Row", fields).to_string()
}

fn record(name: &str, fields: &Fields) -> Json {
    let mut taken = HashSet::new();
    let field = |field: &std::sync::Arc<Field>| {
        let mut safe = safe(field.name());
        while !taken.insert(safe.clone()) {
            safe.push('_');
        }
        let of = type_of(field.data_type(), &format!("{name}_{safe}"));
        let mut described = Map::new();
        described.insert("name".into(), safe.clone().into());
        let with_null = if of == "null" { of } else { json!(["null", of]) };
        described.insert("type".into(), with_null);
        described.insert("default".into(), Json::Null);
        if safe != *field.name() {
            described.insert(NAME.into(), field.name().as_str().into());
        }
        Json::Object(described)
    };
    let fields: Vec<Json> = fields.iter().map(field).collect();
    json!({ "type": "record", "name": name, "namespace": "logdrive", "fields": fields })
}

fn type_of(data_type: &DataType, name: &str) -> Json {
    match Kind::of(data_type) {
        Kind::Boolean => "boolean".into(),
        Kind::Bytes => "bytes".into(),
        Kind::Date => json!({ "type": "int", "logicalType": "date" }),
        Kind::Decimal(precision, scale) => {
            json!({ "type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale })
        }
        Kind::Double => "double".into(),
        Kind::Float => "float".into(),
        Kind::List => {
            let item = match data_type {
                DataType::List(item) => type_of(item.data_type(), name),
                _ => "null".into(),
            };
            let items = if item == "null" { item } else { json!(["null", item]) };
            json!({ "type": "array", "items": items })
        }
        Kind::Long => "long".into(),
        Kind::Null => "null".into(),
        Kind::Record => match data_type {
            DataType::Struct(fields) => record(name, fields),
            _ => "null".into(),
        },
        Kind::Text => "string".into(),
        Kind::Timestamp(true) => json!({ "type": "long", "logicalType": "timestamp-micros" }),
        Kind::Timestamp(false) => json!({ "type": "long", "logicalType": "local-timestamp-micros" }),
    }
}

/// A name that Avro takes.
fn safe(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut safe: String = name.chars().map(allowed).collect();
    if safe.is_empty() || safe.starts_with(|c: char| c.is_ascii_digit()) {
        safe.insert(0, '_');
    }
    safe
}

/// The columns of a batch.
pub(super) struct Rows(Vec<Column>);

struct Column {
    nulls: Option<NullBuffer>,
    values: Values,
}

enum Values {
    Boolean(BooleanArray),
    Bytes(BinaryViewArray),
    Date(Date32Array),
    Decimal(Decimal128Array),
    Double(Float64Array),
    Float(Float32Array),
    List(OffsetBuffer<i32>, Box<Column>),
    Long(Int64Array),
    Null,
    Other(ArrayRef),
    Record(Vec<Column>),
    Text(StringViewArray),
}

impl Rows {
    pub(super) fn new(rows: &RecordBatch) -> Self {
        Self(rows.columns().iter().map(Column::new).collect())
    }

    /// Appends a row.
    pub(super) fn write(&self, row: usize, out: &mut Vec<u8>) {
        self.0.iter().for_each(|column| column.write(row, out));
    }
}

impl Column {
    fn new(array: &ArrayRef) -> Self {
        let to = |of: DataType| cast(array, &of).ok();
        let values = match Kind::of(array.data_type()) {
            Kind::Boolean => to(DataType::Boolean).map(|array| Values::Boolean(array.as_boolean().clone())),
            Kind::Bytes => {
                to(DataType::BinaryView).map(|array| Values::Bytes(array.as_binary_view().clone()))
            }
            Kind::Date => {
                to(DataType::Date32).map(|array| Values::Date(array.as_primitive::<Date32Type>().clone()))
            }
            Kind::Decimal(precision, scale) => to(DataType::Decimal128(precision, scale))
                .map(|array| Values::Decimal(array.as_primitive::<Decimal128Type>().clone())),
            Kind::Double => {
                to(DataType::Float64).map(|array| Values::Double(array.as_primitive::<Float64Type>().clone()))
            }
            Kind::Float => {
                to(DataType::Float32).map(|array| Values::Float(array.as_primitive::<Float32Type>().clone()))
            }
            Kind::List => array
                .as_list_opt::<i32>()
                .map(|list| Values::List(list.offsets().clone(), Box::new(Self::new(list.values())))),
            Kind::Long => {
                to(DataType::Int64).map(|array| Values::Long(array.as_primitive::<Int64Type>().clone()))
            }
            Kind::Null => None,
            Kind::Record => array
                .as_struct_opt()
                .map(|array| Values::Record(array.columns().iter().map(Self::new).collect())),
            Kind::Text => match array.data_type() {
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => {
                    to(DataType::Utf8View).map(|array| Values::Text(array.as_string_view().clone()))
                }
                _ => Some(Values::Other(std::sync::Arc::clone(array))),
            },
            Kind::Timestamp(_) => {
                let zone = match array.data_type() {
                    DataType::Timestamp(_, zone) => zone.clone(),
                    _ => None,
                };
                to(DataType::Timestamp(TimeUnit::Microsecond, zone))
                    .and_then(|array| cast(&array, &DataType::Int64).ok())
                    .map(|array| Values::Long(array.as_primitive::<Int64Type>().clone()))
            }
        };
        // What was out of range has become null, too.
        let nulls = match &values {
            Some(Values::Long(array)) => array.nulls().cloned(),
            Some(Values::Decimal(array)) => array.nulls().cloned(),
            _ => array.logical_nulls(),
        };
        Self { nulls, values: values.unwrap_or(Values::Null) }
    }

    /// Appends a value, behind its place in the union with null.
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if matches!(self.values, Values::Null) {
            return;
        }
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return write_long(0, out);
        }
        write_long(1, out);
        match &self.values {
            Values::Boolean(array) => out.push(u8::from(array.value(row))),
            Values::Bytes(array) => write_bytes(array.value(row), out),
            Values::Date(array) => write_long(i64::from(array.value(row)), out),
            Values::Decimal(array) => write_decimal(array.value(row), out),
            Values::Double(array) => out.extend_from_slice(&array.value(row).to_le_bytes()),
            Values::Float(array) => out.extend_from_slice(&array.value(row).to_le_bytes()),
            Values::List(offsets, items) => {
                let (start, end) = (offsets[row], offsets[row + 1]);
                if start < end {
                    write_long(i64::from(end - start), out);
                    (start..end).for_each(|item| items.write(item as usize, out));
                }
                write_long(0, out);
            }
            Values::Long(array) => write_long(array.value(row), out),
            Values::Null => {}
            Values::Other(array) => {
                write_bytes(value_text(array, row).unwrap_or_default().as_bytes(), out);
            }
            Values::Record(columns) => columns.iter().for_each(|column| column.write(row, out)),
            Values::Text(array) => write_bytes(array.value(row).as_bytes(), out),
        }
    }
}

/// Small numbers of either sign take few bytes.
fn write_long(n: i64, out: &mut Vec<u8>) {
    let mut rest = ((n << 1) ^ (n >> 63)).cast_unsigned();
    while rest > 0x7f {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// As few bytes as say the number and its sign.
fn write_decimal(n: i128, out: &mut Vec<u8>) {
    let bytes = n.to_be_bytes();
    let sign = if n < 0 { 0xff } else { 0 };
    let n_signs = bytes.iter().take_while(|byte| **byte == sign).count().min(bytes.len() - 1);
    // The first bit that is written must be the sign's.
    let start = match n_signs > 0 && (bytes[n_signs] ^ sign) & 0x80 != 0 {
        true => n_signs - 1,
        false => n_signs,
    };
    write_bytes(&bytes[start..], out);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apache_avro::Schema as AvroSchema;
    use apache_avro::reader::datum::GenericDatumReader;
    use apache_avro::types::Value;
    use arrow::array::{Int64Builder, ListBuilder, StructArray, TimestampMicrosecondArray, UInt64Array};
    use arrow::datatypes::Schema;

    use super::*;

    #[test]
    fn every_type_is_read_back_by_the_library() {
        let time = TimestampMicrosecondArray::from(vec![Some(-1), None]).with_timezone("UTC");
        let amount = Decimal128Array::from(vec![Some(-128), None]).with_precision_and_scale(10, 2).unwrap();
        let mut list = ListBuilder::new(Int64Builder::new());
        list.append_value([Some(1), None, Some(-300)]);
        list.append_value([]);
        let inner = StructArray::from(vec![(
            Arc::new(Field::new("a b", DataType::Utf8View, true)),
            Arc::new(StringViewArray::from(vec![Some("grüße"), None])) as ArrayRef,
        )]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("@timestamp", Arc::new(time)),
            ("_timestamp", Arc::new(BooleanArray::from(vec![true, false]))),
            ("amount", Arc::new(amount)),
            ("list", Arc::new(list.finish())),
            ("o", Arc::new(inner)),
            ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 128]))),
            ("f", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
        ];
        let fields: Vec<Field> =
            columns.iter().map(|(name, of)| Field::new(*name, of.data_type().clone(), true)).collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        let text = schema(batch.schema().fields());
        let parsed = AvroSchema::parse_str(&text).unwrap();
        assert!(text.contains(r#""logdrive.name":"@timestamp""#), "{text}");
        let rows = Rows::new(&batch);
        let read = |row: usize| {
            let mut out = Vec::new();
            rows.write(row, &mut out);
            let mut rest = out.as_slice();
            let reader = GenericDatumReader::builder(&parsed).build().unwrap();
            let Value::Record(fields) = reader.read_value(&mut rest).unwrap() else { panic!("no record") };
            assert!(rest.is_empty());
            fields.into_iter().map(|(name, value)| (name, format!("{value:?}"))).collect::<Vec<_>>()
        };
        let first = read(0);
        assert_eq!(first[0], ("_timestamp".into(), "Union(1, TimestampMicros(-1))".into()));
        assert_eq!(first[1], ("_timestamp_".into(), "Union(1, Boolean(true))".into()));
        assert_eq!(first[3].1, "Union(1, Array([Union(1, Long(1)), Union(0, Null), Union(1, Long(-300))]))");
        assert!(first[4].1.contains("(\"a_b\", Union(1, String(\"grüße\")))"), "{}", first[4].1);
        let second = read(1);
        assert_eq!((second[0].1.as_str(), second[2].1.as_str()), ("Union(0, Null)", "Union(0, Null)"));
        assert_eq!(second[3].1, "Union(1, Array([]))");
    }

    #[test]
    fn decimals_keep_their_sign_in_few_bytes() {
        let written = |n: i128| {
            let mut out = Vec::new();
            write_decimal(n, &mut out);
            out[1..].to_vec()
        };
        assert_eq!(written(0), [0]);
        assert_eq!(written(127), [0x7f]);
        assert_eq!(written(128), [0, 0x80]);
        assert_eq!(written(-128), [0x80]);
        assert_eq!(written(-129), [0xff, 0x7f]);
        assert_eq!(written(-1), [0xff]);
        assert_eq!(written(i128::MIN).len(), 16);
    }
}
