//! Arrow values as JSON text.
//!
//! What there is to know of a column (its type, its buffers, its keys as JSON) is found out once per batch; writing a
//! row then allocates nothing, except for the types that logs hardly have.

use std::io::Write as _;

use arrow::array::types::{
    Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::array::{Array, AsArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, StringViewArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use logdrive_schemas::schema::TYPE_KEY;
use serde::Serialize;

use super::JSON_TEXT;

const SECONDS_PER_DAY: i64 = 86_400;

/// Writes the values of one column.
pub(super) struct ValueWriter<'a> {
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
    Struct(Vec<(Vec<u8>, ValueWriter<'a>)>),
    /// Ticks, and how many of them a second has.
    Timestamp(&'a [i64], i64),
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
    write_json(name, &mut prefix);
    prefix.push(b':');
    prefix
}

/// Appends an object of `members` (see [`member_prefix`]) at row `idx`, without those that are null.
pub(super) fn write_object(members: &[(Vec<u8>, ValueWriter<'_>)], idx: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    let start = out.len();
    for (prefix, writer) in members {
        if writer.is_null(idx) {
            continue;
        }
        if out.len() > start {
            out.push(b',');
        }
        out.extend_from_slice(prefix);
        writer.write(idx, out);
    }
    out.push(b'}');
}

impl<'a> ValueWriter<'a> {
    /// Finds out how to write the values of `array`.
    pub(super) fn new(array: &'a dyn Array) -> Self {
        Self { nulls: array.logical_nulls(), kind: Kind::new(array) }
    }

    /// The same for the column of a field, which may be marked as JSON text.
    pub(super) fn of_field(field: &Field, array: &'a dyn Array) -> Self {
        match (field.metadata().get(TYPE_KEY), array.as_string_view_opt()) {
            (Some(marked), Some(texts)) if marked == JSON_TEXT => {
                Self { nulls: array.logical_nulls(), kind: Kind::Json(texts) }
            }
            _ => Self::new(array),
        }
    }

    /// Whether row `idx` is null.
    pub(super) fn is_null(&self, idx: usize) -> bool {
        matches!(self.kind, Kind::Null) || self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(idx))
    }

    /// Appends the value at row `idx`.
    pub(super) fn write(&self, idx: usize, out: &mut Vec<u8>) {
        if self.is_null(idx) {
            out.extend_from_slice(b"null");
            return;
        }
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
            Kind::Int8(values) => write_json(&values[idx], out),
            Kind::Int16(values) => write_json(&values[idx], out),
            Kind::Int32(values) => write_json(&values[idx], out),
            Kind::Int64(values) => write_json(&values[idx], out),
            Kind::Json(array) => out.extend_from_slice(array.value(idx).as_bytes()),
            Kind::LargeBinary(offsets, bytes) => {
                write_base64(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::LargeList(offsets, items) => {
                write_list(items, offsets[idx] as usize..offsets[idx + 1] as usize, out);
            }
            Kind::LargeUtf8(offsets, bytes) => {
                write_text(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::List(offsets, items) => {
                write_list(items, offsets[idx] as usize..offsets[idx + 1] as usize, out);
            }
            Kind::Null => out.extend_from_slice(b"null"),
            Kind::Struct(members) => write_object(members, idx, out),
            Kind::Timestamp(ticks, per_second) => write_timestamp(ticks[idx], *per_second, out),
            Kind::UInt8(values) => write_json(&values[idx], out),
            Kind::UInt16(values) => write_json(&values[idx], out),
            Kind::UInt32(values) => write_json(&values[idx], out),
            Kind::UInt64(values) => write_json(&values[idx], out),
            Kind::Utf8(offsets, bytes) => {
                write_text(&bytes[offsets[idx] as usize..offsets[idx + 1] as usize], out);
            }
            Kind::Utf8View(array) => write_json(array.value(idx), out),
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
                    .map(|(field, column)| {
                        (member_prefix(field.name()), ValueWriter::of_field(field, column.as_ref()))
                    })
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
        match unit {
            TimeUnit::Second => Self::Timestamp(array.as_primitive::<TimestampSecondType>().values(), 1),
            TimeUnit::Millisecond => {
                Self::Timestamp(array.as_primitive::<TimestampMillisecondType>().values(), 1_000)
            }
            TimeUnit::Microsecond => {
                Self::Timestamp(array.as_primitive::<TimestampMicrosecondType>().values(), 1_000_000)
            }
            TimeUnit::Nanosecond => {
                Self::Timestamp(array.as_primitive::<TimestampNanosecondType>().values(), 1_000_000_000)
            }
        }
    }
}

/// Appends what serde makes of `value`.
fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("scalars serialise, and writing to memory cannot fail");
}

/// Appends text of an Arrow string array.
fn write_text(bytes: &[u8], out: &mut Vec<u8>) {
    write_json(std::str::from_utf8(bytes).expect("Arrow strings are UTF-8"), out);
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

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let n = STANDARD.encode_slice(bytes, &mut out[start..]).expect("four bytes for every three");
    out.truncate(start + n);
    out.push(b'"');
}

/// Appends `value × 10^-scale` with all digits of the scale.
fn write_decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    let mut digits = [b'0'; 40];
    let mut begin = digits.len();
    let mut rest = value.unsigned_abs();
    while rest > 0 {
        begin -= 1;
        digits[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let digits = &digits[begin..];
    let n_fraction = usize::try_from(scale).unwrap_or(0);
    let n_whole = digits.len().saturating_sub(n_fraction);
    out.extend_from_slice(if n_whole == 0 { b"0" } else { &digits[..n_whole] });
    if n_fraction > 0 {
        out.push(b'.');
        out.extend(std::iter::repeat_n(b'0', n_fraction - (digits.len() - n_whole)));
        out.extend_from_slice(&digits[n_whole..]);
    } else if value != 0 {
        out.extend(std::iter::repeat_n(b'0', usize::from(scale.unsigned_abs())));
    }
}

/// Appends `"2024-01-02T03:04:05.25Z"`.
fn write_timestamp(ticks: i64, per_second: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (ticks.div_euclid(per_second), ticks.rem_euclid(per_second));
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    out.push(b'"');
    write_civil(days, out);
    out.push(b'T');
    write_digits(second / 3600, 2, out);
    out.push(b':');
    write_digits(second / 60 % 60, 2, out);
    out.push(b':');
    write_digits(second % 60, 2, out);
    if fraction > 0 {
        out.push(b'.');
        write_digits(fraction, per_second.ilog10() as usize, out);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    out.extend_from_slice(b"Z\"");
}

fn write_date(days: i64, out: &mut Vec<u8>) {
    out.push(b'"');
    write_civil(days, out);
    out.push(b'"');
}

/// Appends the day of the proleptic Gregorian calendar; years outside 0 to 9999 have a sign and at least six digits,
/// as ISO 8601 wants it.
fn write_civil(days: i64, out: &mut Vec<u8>) {
    // Years begin in March, so that the leap day is a year's last; an era is 400 of them.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    if (0..=9999).contains(&year) {
        write_digits(year, 4, out);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        write_digits(year.abs(), 6, out);
    }
    out.push(b'-');
    write_digits(month, 2, out);
    out.push(b'-');
    write_digits(day, 2, out);
}

/// Appends a number that is not negative with at least `n_digits` digits.
fn write_digits(value: i64, n_digits: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut begin = digits.len();
    let mut rest = value;
    while rest > 0 || digits.len() - begin < n_digits {
        begin -= 1;
        digits[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits[begin..]);
}
