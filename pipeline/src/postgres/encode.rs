//! Columns as PostgreSQL sends them, as text and in its binary formats.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray,
    StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, IntervalUnit, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, make_encoder};
use bytes::{BufMut as _, BytesMut};
use jiff::Span;
use jiff::civil::{Date, date};
use pgwire::api::Type;
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::messages::data::DataRow;

/// Days from PostgreSQL's epoch, 2000-01-01, back to Unix's.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * DAY_MICROS;
const DAY_MICROS: i64 = 86_400_000_000;

/// The type of a column on the wire.
pub(super) fn type_of(data_type: &DataType) -> Type {
    let oid = u32::try_from(logdrive_queries::postgres::type_oid(data_type)).unwrap_or(25);
    Type::from_oid(oid).unwrap_or(Type::TEXT)
}

/// What a client is told of columns.
pub(super) fn fields(schema: &SchemaRef, format: impl Fn(usize) -> FieldFormat) -> Vec<FieldInfo> {
    let field = |(idx, field): (usize, &Arc<Field>)| {
        let of = type_of(field.data_type());
        let size = logdrive_queries::postgres::type_size(i64::from(of.oid()));
        FieldInfo::new(field.name().clone(), None, None, of, format(idx)).with_type_size(size)
    };
    schema.fields().iter().enumerate().map(field).collect()
}

/// The rows of a batch, ready to be written one by one.
pub(super) struct Cells {
    columns: Vec<(Values, FieldFormat)>,
    n_rows: usize,
}

impl Cells {
    /// Columns of other types than the client was told are cast.
    pub(super) fn new(
        batch: &RecordBatch,
        told: &SchemaRef,
        formats: &[FieldFormat],
    ) -> Result<Self, ArrowError> {
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).zip(told.fields()).zip(formats);
        let column =
            |(((field, column), told), format): (((&Arc<Field>, &ArrayRef), &Arc<Field>), &FieldFormat)| {
                if type_of(field.data_type()) == type_of(told.data_type()) {
                    return Ok((Values::new(field, column)?, *format));
                }
                Ok((Values::new(told, &cast(column, told.data_type())?)?, *format))
            };
        Ok(Self {
            columns: columns.map(column).collect::<Result<_, ArrowError>>()?,
            n_rows: batch.num_rows(),
        })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// A row as a message.
    pub(super) fn row(&self, row: usize) -> DataRow {
        let mut out = BytesMut::with_capacity(16 * self.columns.len());
        for (values, format) in &self.columns {
            framed(&mut out, |out| values.put(row, *format, out));
        }
        DataRow::new(out, i16::try_from(self.columns.len()).unwrap_or(i16::MAX))
    }

    /// A row as `COPY` writes it.
    pub(super) fn copied(&self, row: usize) -> BytesMut {
        let (mut out, mut cell) = (BytesMut::new(), BytesMut::new());
        for (idx, (values, _)) in self.columns.iter().enumerate() {
            if idx > 0 {
                out.put_u8(b'\t');
            }
            cell.clear();
            if !values.put(row, FieldFormat::Text, &mut cell) {
                out.put_slice(b"\\N");
                continue;
            }
            for byte in &cell {
                match byte {
                    b'\\' => out.put_slice(b"\\\\"),
                    b'\n' => out.put_slice(b"\\n"),
                    b'\r' => out.put_slice(b"\\r"),
                    b'\t' => out.put_slice(b"\\t"),
                    other => out.put_u8(*other),
                }
            }
        }
        out.put_u8(b'\n');
        out
    }
}

/// Writes a value behind its length; -1 stands for null.
fn framed(out: &mut BytesMut, put: impl FnOnce(&mut BytesMut) -> bool) {
    let at = out.len();
    out.put_i32(-1);
    if put(out) {
        let length = i32::try_from(out.len() - at - 4).unwrap_or(i32::MAX);
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// A column, as one of the types that are written.
enum Values {
    Bool(BooleanArray),
    Int2(Int16Array),
    Int4(Int32Array),
    Int8(Int64Array),
    Float4(Float32Array),
    Float8(Float64Array),
    Text(StringViewArray),
    Bytes(BinaryViewArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    /// With or without a time zone, which is always UTC.
    Stamp(TimestampMicrosecondArray, bool),
    Interval(IntervalMonthDayNanoArray),
    /// As decimal text.
    Numeric(StringArray),
    /// As JSON text.
    Json(StringArray),
    List(ListArray, Box<Self>, Type),
}

impl Values {
    fn new(field: &Arc<Field>, column: &ArrayRef) -> Result<Self, ArrowError> {
        let to = |data_type: DataType| cast(column, &data_type);
        let micros = TimeUnit::Microsecond;
        Ok(match column.data_type() {
            DataType::Boolean => Self::Bool(column.as_boolean().clone()),
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => {
                Self::Int2(to(DataType::Int16)?.as_primitive().clone())
            }
            DataType::Int32 | DataType::UInt16 => Self::Int4(to(DataType::Int32)?.as_primitive().clone()),
            DataType::Int64 | DataType::UInt32 => Self::Int8(to(DataType::Int64)?.as_primitive().clone()),
            DataType::Float16 | DataType::Float32 => {
                Self::Float4(to(DataType::Float32)?.as_primitive().clone())
            }
            DataType::Float64 => Self::Float8(column.as_primitive().clone()),
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => Self::Bytes(to(DataType::BinaryView)?.as_binary_view().clone()),
            DataType::Date32 | DataType::Date64 => Self::Date(to(DataType::Date32)?.as_primitive().clone()),
            DataType::Time32(_) | DataType::Time64(_) => {
                Self::Time(to(DataType::Time64(micros))?.as_primitive().clone())
            }
            DataType::Timestamp(_, zone) => {
                let of = DataType::Timestamp(micros, zone.clone());
                Self::Stamp(to(of)?.as_primitive().clone(), zone.is_some())
            }
            DataType::Duration(_) | DataType::Interval(_) => {
                Self::Interval(to(DataType::Interval(IntervalUnit::MonthDayNano))?.as_primitive().clone())
            }
            DataType::UInt64
            | DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..) => Self::Numeric(to(DataType::Utf8)?.as_string().clone()),
            DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => Self::Json(json(field, column)?),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::ListView(item)
            | DataType::LargeListView(item) => {
                if type_of(column.data_type()) == Type::JSONB {
                    return Ok(Self::Json(json(field, column)?));
                }
                let list = to(DataType::List(Arc::clone(item)))?.as_list::<i32>().clone();
                let items = Self::new(item, list.values())?;
                let of = type_of(item.data_type());
                Self::List(list, Box::new(items), of)
            }
            DataType::Dictionary(_, values) => {
                let plain = to(values.as_ref().clone())?;
                return Self::new(field, &plain);
            }
            _ => Self::Text(to(DataType::Utf8View)?.as_string_view().clone()),
        })
    }

    /// Writes a value; false if it is null.
    fn put(&self, row: usize, format: FieldFormat, out: &mut BytesMut) -> bool {
        if self.is_null(row) {
            return false;
        }
        match format {
            FieldFormat::Text => self.put_text(row, out),
            FieldFormat::Binary => self.put_binary(row, out),
        }
        true
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(values) => values.is_null(row),
            Self::Int2(values) => values.is_null(row),
            Self::Int4(values) => values.is_null(row),
            Self::Int8(values) => values.is_null(row),
            Self::Float4(values) => values.is_null(row),
            Self::Float8(values) => values.is_null(row),
            Self::Text(values) => values.is_null(row),
            Self::Bytes(values) => values.is_null(row),
            Self::Date(values) => values.is_null(row),
            Self::Time(values) => values.is_null(row),
            Self::Stamp(values, _) => values.is_null(row),
            Self::Interval(values) => values.is_null(row),
            Self::Numeric(values) | Self::Json(values) => values.is_null(row),
            Self::List(values, ..) => values.is_null(row),
        }
    }

    fn put_text(&self, row: usize, out: &mut BytesMut) {
        // Writing into memory cannot fail.
        let written = match self {
            Self::Bool(values) => out.write_str(if values.value(row) { "t" } else { "f" }),
            Self::Int2(values) => write!(out, "{}", values.value(row)),
            Self::Int4(values) => write!(out, "{}", values.value(row)),
            Self::Int8(values) => write!(out, "{}", values.value(row)),
            Self::Float4(values) => float(out, f64::from(values.value(row)), &values.value(row)),
            Self::Float8(values) => float(out, values.value(row), &values.value(row)),
            Self::Text(values) => out.write_str(values.value(row)),
            Self::Bytes(values) => {
                let written = out.write_str("\\x");
                values.value(row).iter().fold(written, |written, byte| written.and(write!(out, "{byte:02x}")))
            }
            Self::Date(values) => day(out, i64::from(values.value(row))),
            Self::Time(values) => time(out, values.value(row)),
            Self::Stamp(values, zoned) => stamp(out, values.value(row), *zoned),
            Self::Interval(values) => interval(out, values.value(row)),
            Self::Numeric(values) | Self::Json(values) => out.write_str(values.value(row)),
            Self::List(values, items, _) => {
                let (start, end) = range(values, row);
                out.put_u8(b'{');
                let mut item = BytesMut::new();
                for idx in start..end {
                    if idx > start {
                        out.put_u8(b',');
                    }
                    item.clear();
                    if !items.put(idx, FieldFormat::Text, &mut item) {
                        out.put_slice(b"NULL");
                    } else if is_plain(&item) {
                        out.put_slice(&item);
                    } else {
                        out.put_u8(b'"');
                        for byte in &item {
                            if matches!(byte, b'"' | b'\\') {
                                out.put_u8(b'\\');
                            }
                            out.put_u8(*byte);
                        }
                        out.put_u8(b'"');
                    }
                }
                out.put_u8(b'}');
                Ok(())
            }
        };
        debug_assert!(written.is_ok(), "writing into memory cannot fail");
    }

    fn put_binary(&self, row: usize, out: &mut BytesMut) {
        match self {
            Self::Bool(values) => out.put_u8(u8::from(values.value(row))),
            Self::Int2(values) => out.put_i16(values.value(row)),
            Self::Int4(values) => out.put_i32(values.value(row)),
            Self::Int8(values) => out.put_i64(values.value(row)),
            Self::Float4(values) => out.put_f32(values.value(row)),
            Self::Float8(values) => out.put_f64(values.value(row)),
            Self::Text(values) => out.put_slice(values.value(row).as_bytes()),
            Self::Bytes(values) => out.put_slice(values.value(row)),
            Self::Date(values) => out.put_i32(values.value(row).saturating_sub(EPOCH_DAYS)),
            Self::Time(values) => out.put_i64(values.value(row)),
            Self::Stamp(values, _) => out.put_i64(values.value(row).saturating_sub(EPOCH_MICROS)),
            Self::Interval(values) => {
                let value = values.value(row);
                out.put_i64(value.nanoseconds / 1_000);
                out.put_i32(value.days);
                out.put_i32(value.months);
            }
            Self::Numeric(values) => numeric(out, values.value(row)),
            Self::Json(values) => {
                // The version of the format.
                out.put_u8(1);
                out.put_slice(values.value(row).as_bytes());
            }
            Self::List(values, items, of) => {
                let (start, end) = range(values, row);
                let has_nulls = (start..end).any(|idx| items.is_null(idx));
                out.put_i32(i32::from(end > start));
                out.put_i32(i32::from(has_nulls));
                out.put_u32(of.oid());
                if end > start {
                    out.put_i32(i32::try_from(end - start).unwrap_or(i32::MAX));
                    out.put_i32(1);
                }
                for idx in start..end {
                    framed(out, |out| items.put(idx, FieldFormat::Binary, out));
                }
            }
        }
    }
}

fn range(lists: &ListArray, row: usize) -> (usize, usize) {
    let offsets = lists.value_offsets();
    let at = |idx: usize| usize::try_from(offsets[idx]).unwrap_or(0);
    (at(row), at(row + 1))
}

/// Whether an item of a list needs no quotes.
fn is_plain(item: &[u8]) -> bool {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',') || byte.is_ascii_whitespace();
    !item.is_empty() && !item.eq_ignore_ascii_case(b"null") && !item.iter().any(special)
}

fn float(out: &mut BytesMut, value: f64, shown: &dyn std::fmt::Display) -> std::fmt::Result {
    if value.is_nan() {
        out.write_str("NaN")
    } else if value.is_infinite() {
        out.write_str(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        write!(out, "{shown}")
    }
}

fn civil(days: i64) -> Option<Date> {
    let span = Span::new().try_days(days).ok()?;
    date(1970, 1, 1).checked_add(span).ok()
}

/// A day; what lies beyond all calendars is endless.
fn day(out: &mut BytesMut, days: i64) -> std::fmt::Result {
    match civil(days) {
        Some(day) if day.year() > 0 => write!(out, "{:04}-{:02}-{:02}", day.year(), day.month(), day.day()),
        Some(day) => write!(out, "{:04}-{:02}-{:02} BC", 1 - day.year(), day.month(), day.day()),
        None => out.write_str(if days > 0 { "infinity" } else { "-infinity" }),
    }
}

fn time(out: &mut BytesMut, micros: i64) -> std::fmt::Result {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    if rest == 0 {
        return Ok(());
    }
    let digits = format!("{rest:06}");
    write!(out, ".{}", digits.trim_end_matches('0'))
}

fn stamp(out: &mut BytesMut, micros: i64, zoned: bool) -> std::fmt::Result {
    let days = micros.div_euclid(DAY_MICROS);
    let Some(on) = civil(days) else {
        return out.write_str(if days > 0 { "infinity" } else { "-infinity" });
    };
    let year = if on.year() > 0 { on.year() } else { 1 - on.year() };
    write!(out, "{year:04}-{:02}-{:02} ", on.month(), on.day())?;
    time(out, micros.rem_euclid(DAY_MICROS))?;
    if zoned {
        out.write_str("+00")?;
    }
    if on.year() > 0 { Ok(()) } else { out.write_str(" BC") }
}

fn interval(out: &mut BytesMut, value: arrow::datatypes::IntervalMonthDayNano) -> std::fmt::Result {
    let mut parts = Vec::new();
    let mut part = |n: i32, one: &str| {
        if n != 0 {
            parts.push(format!("{n} {one}{}", if n == 1 { "" } else { "s" }));
        }
    };
    part(value.months / 12, "year");
    part(value.months % 12, "mon");
    part(value.days, "day");
    let micros = value.nanoseconds / 1_000;
    if micros != 0 || parts.is_empty() {
        let mut text = BytesMut::new();
        if micros < 0 {
            text.put_u8(b'-');
        }
        time(&mut text, micros.saturating_abs())?;
        parts.push(String::from_utf8_lossy(&text).into_owned());
    }
    out.write_str(&parts.join(" "))
}

/// The digits of a decimal number in groups of four.
fn numeric(out: &mut BytesMut, text: &str) {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let group = |digits: &[u8]| digits.iter().fold(0i16, |value, digit| value * 10 + i16::from(digit - b'0'));
    let padding = (4 - whole.len() % 4) % 4;
    let padded = [&b"000"[..padding], whole.as_bytes()].concat();
    let mut groups: Vec<i16> = padded.chunks(4).map(group).collect();
    let mut weight = i16::try_from(groups.len()).unwrap_or(i16::MAX) - 1;
    let behind = [fraction.as_bytes(), &b"000"[..(4 - fraction.len() % 4) % 4]].concat();
    groups.extend(behind.chunks(4).map(group));
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..leading);
    weight -= i16::try_from(leading).unwrap_or(0);
    if groups.is_empty() {
        weight = 0;
    }
    out.put_i16(i16::try_from(groups.len()).unwrap_or(i16::MAX));
    out.put_i16(weight);
    out.put_u16(if is_negative && !groups.is_empty() { 0x4000 } else { 0 });
    out.put_i16(i16::try_from(fraction.len()).unwrap_or(i16::MAX));
    groups.iter().for_each(|group| out.put_i16(*group));
}

fn json(field: &Arc<Field>, column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(field, column, &options)?;
    let mut of = |row: usize| {
        let mut json = Vec::new();
        encoder.encode(row, &mut json);
        String::from_utf8_lossy(&json).into_owned()
    };
    Ok((0..column.len()).map(|row| column.is_valid(row).then(|| of(row))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut BytesMut) -> std::fmt::Result) -> String {
        let mut out = BytesMut::new();
        write(&mut out).unwrap();
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn times_are_written_as_postgresql_does() {
        assert_eq!(text(|out| stamp(out, 1_700_000_000_500_000, true)), "2023-11-14 22:13:20.5+00");
        assert_eq!(text(|out| stamp(out, -1, false)), "1969-12-31 23:59:59.999999");
        assert_eq!(text(|out| stamp(out, i64::MAX, false)), "infinity");
        assert_eq!(text(|out| day(out, 0)), "1970-01-01");
        assert_eq!(text(|out| day(out, -719_529)), "0002-12-31 BC");
        let value = arrow::datatypes::IntervalMonthDayNano::new(14, -1, 3_600_000_000_000);
        assert_eq!(text(|out| interval(out, value)), "1 year 2 mons -1 days 01:00:00");
    }

    #[test]
    fn numbers_are_groups_of_four_digits() {
        let of = |text: &str| {
            let mut out = BytesMut::new();
            numeric(&mut out, text);
            out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect::<Vec<_>>()
        };
        assert_eq!(of("12345.678"), [3, 1, 0, 3, 1, 2345, 6780]);
        assert_eq!(of("-0.00012"), [2, -1, 0x4000, 5, 1, 2000]);
        assert_eq!(of("0.00"), [0, 0, 0, 2]);
        assert_eq!(of("100000000"), [1, 2, 0, 0, 1]);
    }
}
