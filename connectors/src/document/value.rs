//! Arrow values as JSON text.
//!
//! What there is to know of a column (its type, its buffers, its keys as JSON) is found out once per batch; writing a
//! row then allocates nothing, except for the types that logs hardly have.

use std::io::Write as _;

use super::JSON_TEXT;
use super::scalar::{
    Piece, SECONDS_PER_DAY, TimestampWriter, write_base64, write_date, write_decimal, write_json,
    write_signed, write_text, write_unsigned, write_view,
};
use arrow::array::types::{
    Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::array::{Array, AsArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, StringViewArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use logdrive_schemas::schema::TYPE_KEY;

/// Writes the values of one column.
pub(crate) struct ValueWriter<'a> {
    nulls: Option<NullBuffer>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Binary(&'a [i32], &'a [u8]),
    BinaryView(&'a BinaryViewArray),
    Boolean(&'a BooleanArray),
    Date32(&'a [i32]),
    Date64(&'a [i64]),
    Decimal128(&'a [i128], i8),
    Dictionary(Vec<usize>, Box<ValueWriter<'a>>),
    FixedSizeBinary(&'a FixedSizeBinaryArray),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    /// What logs hardly have, as Arrow displays it: as a string, or as it is (numbers). Arrow's formatter cannot be
    /// sent to another thread, so one is made for every value.
    Formatted(&'a dyn Array, Quotes),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    /// Text that is JSON.
    Json(&'a StringViewArray),
    LargeBinary(&'a [i64], &'a [u8]),
    LargeList(&'a [i64], Box<ValueWriter<'a>>),
    LargeUtf8(&'a [i64], &'a [u8]),
    List(&'a [i32], Box<ValueWriter<'a>>),
    Null,
    Struct(Vec<MemberWriter<'a>>),
    Timestamp(TimestampWriter<'a>),
    UInt8(&'a [u8]),
    UInt16(&'a [u16]),
    UInt32(&'a [u32]),
    UInt64(&'a [u64]),
    Utf8(&'a [i32], &'a [u8]),
    Utf8View(&'a StringViewArray),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    With,
    Without,
}

/// `"name":`, as it stands before a member's value.
pub(super) fn member_prefix(name: &str) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(name.len() + 3);
    write_text(name, &mut prefix);
    prefix.push(b':');
    prefix
}

/// A member of an object: `,"name":`, and its values.
pub(super) struct MemberWriter<'a> {
    prefix: Piece,
    values: ValueWriter<'a>,
}

impl<'a> MemberWriter<'a> {
    /// Finds out how to write the member that the column `array` of `field` is.
    pub(super) fn new(field: &Field, array: &'a dyn Array) -> Self {
        let mut prefix = vec![b','];
        prefix.extend(member_prefix(field.name()));
        Self { prefix: Piece::new(prefix), values: ValueWriter::of_field(field, array) }
    }
}

/// Appends an object of `members` at row `idx`, without those that are null.
#[inline]
pub(super) fn write_object(members: &[MemberWriter<'_>], idx: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    let mut rest = members.iter().filter(|member| !member.values.is_null(idx));
    if let Some(first) = rest.next() {
        out.extend_from_slice(&first.prefix.as_slice()[1..]);
        first.values.write_valid(idx, out);
    }
    for member in rest {
        member.prefix.write(out);
        member.values.write_valid(idx, out);
    }
    out.push(b'}');
}

impl<'a> ValueWriter<'a> {
    /// Finds out how to write the values of `array`.
    pub(crate) fn new(array: &'a dyn Array) -> Self {
        Self { nulls: array.logical_nulls(), kind: Kind::new(array) }
    }

    /// The same for the column of a field, which may be marked as JSON text.
    pub(crate) fn of_field(field: &Field, array: &'a dyn Array) -> Self {
        match (field.metadata().get(TYPE_KEY), array.as_string_view_opt()) {
            (Some(marked), Some(texts)) if marked == JSON_TEXT => {
                Self { nulls: array.logical_nulls(), kind: Kind::Json(texts) }
            }
            _ => Self::new(array),
        }
    }

    /// Whether row `idx` is null.
    pub(crate) fn is_null(&self, idx: usize) -> bool {
        matches!(self.kind, Kind::Null) || self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(idx))
    }

    /// Appends the value at row `idx`.
    pub(crate) fn write(&self, idx: usize, out: &mut Vec<u8>) {
        if self.is_null(idx) {
            out.extend_from_slice(b"null");
        } else {
            self.write_valid(idx, out);
        }
    }

    /// Appends the value at row `idx`, which is not null.
    #[inline]
    fn write_valid(&self, idx: usize, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Binary(offsets, bytes) => {
                write_base64(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::BinaryView(array) => write_base64(array.value(idx), out),
            Kind::Boolean(array) => write_json(&array.value(idx), out),
            Kind::Date32(days) => write_date(i64::from(days[idx]), out),
            Kind::Date64(millis) => write_date(millis[idx].div_euclid(SECONDS_PER_DAY * 1000), out),
            Kind::Decimal128(values, scale) => write_decimal(values[idx], *scale, out),
            Kind::Dictionary(keys, values) => values.write(keys[idx], out),
            Kind::FixedSizeBinary(array) => write_base64(array.value(idx), out),
            Kind::Float32(values) => write_json(&values[idx], out),
            Kind::Float64(values) => write_json(&values[idx], out),
            Kind::Formatted(array, quotes) => write_formatted(*array, idx, *quotes, out),
            Kind::Int8(values) => write_signed(i64::from(values[idx]), out),
            Kind::Int16(values) => write_signed(i64::from(values[idx]), out),
            Kind::Int32(values) => write_signed(i64::from(values[idx]), out),
            Kind::Int64(values) => write_signed(values[idx], out),
            Kind::Json(array) => out.extend_from_slice(array.value(idx).as_bytes()),
            Kind::LargeBinary(offsets, bytes) => {
                write_base64(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::LargeList(offsets, items) => {
                write_list(items, offsets[idx] as usize..offsets[idx + 1] as usize, out);
            }
            Kind::LargeUtf8(offsets, bytes) => {
                write_bytes(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::List(offsets, items) => {
                write_list(items, offsets[idx] as usize..offsets[idx + 1] as usize, out);
            }
            Kind::Null => out.extend_from_slice(b"null"),
            Kind::Struct(members) => write_object(members, idx, out),
            Kind::Timestamp(writer) => writer.write(idx, out),
            Kind::UInt8(values) => write_unsigned(u64::from(values[idx]), out),
            Kind::UInt16(values) => write_unsigned(u64::from(values[idx]), out),
            Kind::UInt32(values) => write_unsigned(u64::from(values[idx]), out),
            Kind::UInt64(values) => write_unsigned(values[idx], out),
            Kind::Utf8(offsets, bytes) => {
                write_bytes(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::Utf8View(array) => write_view(array, idx, out),
        }
    }
}

impl<'a> Kind<'a> {
    fn new(array: &'a dyn Array) -> Self {
        match array.data_type() {
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Self::Binary(array.value_offsets(), array.value_data())
            }
            DataType::BinaryView => Self::BinaryView(array.as_binary_view()),
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            DataType::Date32 => Self::Date32(array.as_primitive::<Date32Type>().values()),
            DataType::Date64 => Self::Date64(array.as_primitive::<Date64Type>().values()),
            DataType::Decimal128(_, scale) => {
                Self::Decimal128(array.as_primitive::<Decimal128Type>().values(), *scale)
            }
            DataType::Dictionary(_, _) => {
                let array = array.as_any_dictionary();
                // Normalising looks up the largest key, which an empty dictionary has not.
                if array.values().is_empty() {
                    return Self::Null;
                }
                Self::Dictionary(array.normalized_keys(), Box::new(ValueWriter::new(array.values().as_ref())))
            }
            DataType::FixedSizeBinary(_) => Self::FixedSizeBinary(array.as_fixed_size_binary()),
            DataType::Float32 => Self::Float32(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Self::Float64(array.as_primitive::<Float64Type>().values()),
            DataType::Int8 => Self::Int8(array.as_primitive::<Int8Type>().values()),
            DataType::Int16 => Self::Int16(array.as_primitive::<Int16Type>().values()),
            DataType::Int32 => Self::Int32(array.as_primitive::<Int32Type>().values()),
            DataType::Int64 => Self::Int64(array.as_primitive::<Int64Type>().values()),
            DataType::LargeBinary => {
                let array = array.as_binary::<i64>();
                Self::LargeBinary(array.value_offsets(), array.value_data())
            }
            DataType::LargeList(_) => {
                let array = array.as_list::<i64>();
                Self::LargeList(array.value_offsets(), Box::new(ValueWriter::new(array.values().as_ref())))
            }
            DataType::LargeUtf8 => {
                let array = array.as_string::<i64>();
                Self::LargeUtf8(array.value_offsets(), array.value_data())
            }
            DataType::List(_) => {
                let array = array.as_list::<i32>();
                Self::List(array.value_offsets(), Box::new(ValueWriter::new(array.values().as_ref())))
            }
            DataType::Null => Self::Null,
            DataType::Struct(fields) => Self::Struct(
                fields
                    .iter()
                    .zip(array.as_struct().columns())
                    .map(|(field, column)| MemberWriter::new(field, column.as_ref()))
                    .collect(),
            ),
            DataType::Timestamp(unit, _) => Self::timestamp(array, *unit),
            DataType::UInt8 => Self::UInt8(array.as_primitive::<UInt8Type>().values()),
            DataType::UInt16 => Self::UInt16(array.as_primitive::<UInt16Type>().values()),
            DataType::UInt32 => Self::UInt32(array.as_primitive::<UInt32Type>().values()),
            DataType::UInt64 => Self::UInt64(array.as_primitive::<UInt64Type>().values()),
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                Self::Utf8(array.value_offsets(), array.value_data())
            }
            DataType::Utf8View => Self::Utf8View(array.as_string_view()),
            other => {
                let quotes = if other.is_decimal() { Quotes::Without } else { Quotes::With };
                Self::Formatted(array, quotes)
            }
        }
    }

    fn timestamp(array: &'a dyn Array, unit: TimeUnit) -> Self {
        let (ticks, per_second): (&[i64], i64) = match unit {
            TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().values(), 1),
            TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().values(), 1_000),
            TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().values(), 1_000_000),
            TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().values(), 1_000_000_000),
        };
        Self::Timestamp(TimestampWriter::new(ticks, per_second))
    }
}

/// Appends text of an Arrow string array.
fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_text(std::str::from_utf8(bytes).expect("Arrow strings are UTF-8"), out);
}

/// Appends a value as Arrow displays it; null if it cannot.
fn write_formatted(array: &dyn Array, idx: usize, quotes: Quotes, out: &mut Vec<u8>) {
    let options = FormatOptions::default();
    match (ArrayFormatter::try_new(array, &options), quotes) {
        (Ok(formatter), Quotes::With) => write_json(formatter.value(idx).to_string().as_str(), out),
        (Ok(formatter), Quotes::Without) => {
            write!(out, "{}", formatter.value(idx)).expect("writing to memory cannot fail");
        }
        (Err(_), _) => out.extend_from_slice(b"null"),
    }
}

fn write_list(items: &ValueWriter<'_>, range: std::ops::Range<usize>, out: &mut Vec<u8>) {
    out.push(b'[');
    for idx in range.clone() {
        if idx > range.start {
            out.push(b',');
        }
        items.write(idx, out);
    }
    out.push(b']');
}
