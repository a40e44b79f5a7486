//! Rows in the forms of COPY: binary where every column has a type whose binary form is known here, else text, which
//! PostgreSQL reads as it reads any literal.

use std::net::IpAddr;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float64Array,
    Int64Array, StringViewArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use logdrive_schemas::schema::TYPE_KEY;
use logdrive_schemas::{Batch, Reject};
use tokio_postgres::types::Type;

use super::table::{Fit, Shape, Way};
use crate::document::{Documents, ValueWriter};
use crate::sinks::http_rejects::Refused;
use crate::sinks::pending::Pending;
use crate::sinks::template::value_text;

/// What a binary COPY begins with: its signature, no flags, no extension.
pub(super) const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub(super) const TAIL: &[u8] = &[0xff, 0xff];
/// From 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// Why a row cannot be written.
type Wrong = String;

/// The binary form of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Bytea,
    Date,
    Float4,
    Float8,
    Inet,
    Int2,
    Int4,
    Int8,
    Json,
    Jsonb,
    Numeric,
    Text,
    Timestamp,
}

/// What a dictionary's values are of.
fn plain(of: &DataType) -> &DataType {
    match of {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

fn is_text(of: &DataType) -> bool {
    matches!(of, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(of: &DataType) -> bool {
    matches!(
        of,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
    )
}

impl Kind {
    /// The binary form of a field in a column of this type; `None` if there is none.
    pub(super) fn of(field: &Field, oid: u32) -> Option<Self> {
        let of = plain(field.data_type());
        let is_ip = field.metadata().get(TYPE_KEY).is_some_and(|of| of == "ip");
        // What is larger than a bigint goes as text, so that the server says so.
        let is_integer = of.is_integer() && *of != DataType::UInt64;
        let kind = match Type::from_oid(oid)? {
            Type::BOOL if *of == DataType::Boolean => Self::Bool,
            Type::INT2 if is_integer => Self::Int2,
            Type::INT4 if is_integer => Self::Int4,
            Type::INT8 if is_integer => Self::Int8,
            Type::FLOAT4 if of.is_floating() => Self::Float4,
            Type::FLOAT8 if of.is_floating() => Self::Float8,
            Type::NUMERIC if matches!(of, DataType::Decimal128(_, _)) || of.is_integer() => Self::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR if is_text(of) => Self::Text,
            Type::BYTEA if is_bytes(of) => Self::Bytea,
            Type::DATE if matches!(of, DataType::Date32 | DataType::Date64) => Self::Date,
            Type::TIMESTAMP | Type::TIMESTAMPTZ if matches!(of, DataType::Timestamp(_, _)) => Self::Timestamp,
            Type::INET if is_ip => Self::Inet,
            Type::JSON => Self::Json,
            Type::JSONB => Self::Jsonb,
            _ => return None,
        };
        Some(kind)
    }

    /// The binary form of JSON text.
    pub(super) fn of_json(oid: u32) -> Option<Self> {
        match Type::from_oid(oid)? {
            Type::JSON | Type::TEXT | Type::VARCHAR => Some(Self::Json),
            Type::JSONB => Some(Self::Jsonb),
            _ => None,
        }
    }
}

/// The text form of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextKind {
    /// A list, for an array.
    Array,
    Bytes,
    /// Objects and lists.
    Json,
    /// As it is shown.
    Plain,
}

impl TextKind {
    pub(super) fn of(field: &Field, is_array: bool) -> Self {
        match plain(field.data_type()) {
            of if is_bytes(of) => Self::Bytes,
            DataType::List(_) if is_array => Self::Array,
            of if of.is_nested() => Self::Json,
            _ => Self::Plain,
        }
    }
}

/// The values of a column, in the one type that each form is made of.
enum Values<'a> {
    Bool(BooleanArray),
    Bytes(BinaryViewArray),
    Days(Date32Array),
    Decimal(Decimal128Array, i8),
    Float(Float64Array),
    Int(Int64Array),
    Json(ValueWriter<'a>),
    Micros(TimestampMicrosecondArray),
    Text(StringViewArray),
}

impl<'a> Values<'a> {
    fn new(field: &Field, array: &'a ArrayRef, kind: Kind) -> Option<Self> {
        let to = |of: DataType| cast(array, &of).ok();
        Some(match kind {
            Kind::Bool => Self::Bool(to(DataType::Boolean)?.as_boolean().clone()),
            Kind::Bytea => Self::Bytes(to(DataType::BinaryView)?.as_binary_view().clone()),
            Kind::Date => Self::Days(to(DataType::Date32)?.as_primitive::<Date32Type>().clone()),
            Kind::Float4 | Kind::Float8 => {
                Self::Float(to(DataType::Float64)?.as_primitive::<Float64Type>().clone())
            }
            Kind::Int2 | Kind::Int4 | Kind::Int8 => {
                Self::Int(to(DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            Kind::Numeric => match plain(array.data_type()) {
                DataType::Decimal128(precision, scale) => {
                    let array = to(DataType::Decimal128(*precision, *scale))?;
                    Self::Decimal(array.as_primitive::<Decimal128Type>().clone(), *scale)
                }
                _ => {
                    let array = to(DataType::Decimal128(20, 0))?;
                    Self::Decimal(array.as_primitive::<Decimal128Type>().clone(), 0)
                }
            },
            Kind::Timestamp => {
                let zone = match array.data_type() {
                    DataType::Timestamp(_, zone) => zone.clone(),
                    _ => None,
                };
                let array = to(DataType::Timestamp(TimeUnit::Microsecond, zone))?;
                Self::Micros(array.as_primitive::<TimestampMicrosecondType>().clone())
            }
            Kind::Inet | Kind::Text => Self::Text(to(DataType::Utf8View)?.as_string_view().clone()),
            Kind::Json | Kind::Jsonb => Self::Json(ValueWriter::of_field(field, array.as_ref())),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Days(array) => array.is_null(row),
            Self::Decimal(array, _) => array.is_null(row),
            Self::Float(array) => array.is_null(row),
            Self::Int(array) => array.is_null(row),
            Self::Json(values) => values.is_null(row),
            Self::Micros(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
        }
    }

    /// Appends the binary form of a value that is not null, without its length.
    fn write(&self, kind: Kind, row: usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
        let too_large = |n: i64| format!("postgres_22003: {n} is out of the column's range");
        match (self, kind) {
            (Self::Bool(array), _) => out.push(u8::from(array.value(row))),
            (Self::Bytes(array), _) => out.extend_from_slice(array.value(row)),
            (Self::Days(array), _) => {
                out.extend_from_slice(&array.value(row).saturating_sub(EPOCH_DAYS).to_be_bytes());
            }
            (Self::Decimal(array, scale), _) => write_numeric(array.value(row), *scale, out),
            (Self::Float(array), Kind::Float4) => {
                let (wide, value) = (array.value(row), array.value(row) as f32);
                if wide.is_finite() && value.is_infinite() {
                    return Err(format!("postgres_22003: {wide} is out of the column's range"));
                }
                out.extend_from_slice(&value.to_be_bytes());
            }
            (Self::Float(array), _) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            (Self::Int(array), Kind::Int2) => {
                let value = i16::try_from(array.value(row)).map_err(|_| too_large(array.value(row)))?;
                out.extend_from_slice(&value.to_be_bytes());
            }
            (Self::Int(array), Kind::Int4) => {
                let value = i32::try_from(array.value(row)).map_err(|_| too_large(array.value(row)))?;
                out.extend_from_slice(&value.to_be_bytes());
            }
            (Self::Int(array), _) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            (Self::Json(values), kind) => {
                if kind == Kind::Jsonb {
                    // Its version.
                    out.push(1);
                }
                let start = out.len();
                values.write(row, out);
                check_json(&out[start..], kind)?;
            }
            (Self::Micros(array), _) => write_micros(array.value(row), out),
            (Self::Text(array), Kind::Inet) => write_inet(array.value(row), out)?,
            (Self::Text(array), _) => {
                check_text(array.value(row).as_bytes())?;
                out.extend_from_slice(array.value(row).as_bytes());
            }
        }
        Ok(())
    }
}

/// PostgreSQL has no text with this character.
fn check_text(text: &[u8]) -> Result<(), Wrong> {
    match memchr::memchr(0, text) {
        None => Ok(()),
        Some(_) => Err("postgres_22021: text holds a NUL character".into()),
    }
}

/// Nor has it JSON values with it, where they are taken apart.
fn check_json(text: &[u8], kind: Kind) -> Result<(), Wrong> {
    if kind != Kind::Jsonb {
        return check_text(text);
    }
    for at in memchr::memmem::find_iter(text, b"\\u0000") {
        let n_before = text[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        if n_before.is_multiple_of(2) {
            return Err("postgres_22p05: text holds a NUL character".into());
        }
    }
    check_text(text)
}

fn write_micros(micros: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&micros.saturating_sub(EPOCH_MICROS).to_be_bytes());
}

fn write_inet(text: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
    const V4: u8 = 2;
    let address: IpAddr = text.parse().map_err(|_| "postgres_22p02: the text is no address".to_owned())?;
    // The family, the bits of the network, that it is no network, the length.
    match address {
        IpAddr::V4(address) => {
            out.extend_from_slice(&[V4, 32, 0, 4]);
            out.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            out.extend_from_slice(&[V4 + 1, 128, 0, 16]);
            out.extend_from_slice(&address.octets());
        }
    }
    Ok(())
}

/// A number as digits to the base of 10,000, around its point.
fn write_numeric(value: i128, scale: i8, out: &mut Vec<u8>) {
    const MINUS: u16 = 0x4000;
    let n_fraction = usize::from(scale.max(0).unsigned_abs());
    let zeros = usize::from(scale.min(0).unsigned_abs());
    let digits = format!("{}{:0>zeros$}", value.unsigned_abs(), "");
    let digits = format!("{digits:0>width$}", width = n_fraction + 1);
    let (whole, fraction) = digits.split_at(digits.len() - n_fraction);
    // To groups of four, from the point in both directions.
    let whole = format!("{whole:0>width$}", width = whole.len().next_multiple_of(4));
    let fraction = format!("{fraction:0<width$}", width = fraction.len().next_multiple_of(4));
    let group = |group: &[u8]| group.iter().fold(0, |n, digit| n * 10 + i16::from(digit - b'0'));
    let mut groups: Vec<i16> =
        whole.as_bytes().chunks(4).chain(fraction.as_bytes().chunks(4)).map(group).collect();
    let mut weight = (whole.len() / 4) as i16 - 1;
    let n_leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..n_leading);
    weight -= n_leading as i16;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let sign = if value < 0 { MINUS } else { 0 };
    let weight = if groups.is_empty() { 0 } else { weight };
    out.extend_from_slice(&(groups.len() as i16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&(n_fraction as i16).to_be_bytes());
    groups.iter().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
}

/// Rows of one shape, as they are copied.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) data: Vec<u8>,
    /// Which row of which batch ends where in `data`.
    pub(super) pending: Pending<usize>,
}

impl Rows {
    /// Adds all rows of a batch but those that cannot be written.
    pub(super) fn add(&mut self, batch: &Batch, shape: &Shape, refused: &mut Refused) {
        let schema = batch.schema();
        let array = |fit: &Fit| batch.rows().column(fit.idx);
        let documents = shape.document.map(|way| (Documents::new(batch), way));
        let mut rejects = Vec::new();
        self.pending.begin(batch);
        let mut add = |row: usize, written: Result<(), Wrong>, data: &mut Vec<u8>, start: usize| match written
        {
            Ok(()) => self.pending.push(row, data.len(), data.len() - start),
            Err(reason) => {
                data.truncate(start);
                rejects.push(Reject { idx: row, reason });
            }
        };
        if shape.is_binary {
            let values: Vec<(&Fit, Option<Values<'_>>)> = shape
                .columns
                .iter()
                .map(|fit| (fit, Values::new(schema.field(fit.idx), array(fit), fit.way.binary)))
                .collect();
            for row in 0..batch.num_rows() {
                let start = self.data.len();
                let written = binary(&values, documents.as_ref(), batch, row, &mut self.data);
                add(row, written, &mut self.data, start);
            }
        } else {
            for row in 0..batch.num_rows() {
                let start = self.data.len();
                let written = text(shape, documents.as_ref(), batch, row, &mut self.data);
                add(row, written, &mut self.data, start);
            }
        }
        if !rejects.is_empty() {
            refused.push((batch.clone(), rejects));
        }
    }
}

/// Appends a row of a binary COPY.
fn binary(
    values: &[(&Fit, Option<Values<'_>>)],
    documents: Option<&(Documents<'_>, Way)>,
    batch: &Batch,
    row: usize,
    out: &mut Vec<u8>,
) -> Result<(), Wrong> {
    let n_columns = values.len() + usize::from(documents.is_some());
    out.extend_from_slice(&i16::try_from(n_columns).unwrap_or(i16::MAX).to_be_bytes());
    for (fit, values) in values {
        let at = begin(out);
        match values {
            Some(values) if !values.is_null(row) => values.write(fit.way.binary, row, out)?,
            _ if fit.else_arrival && fit.way.binary == Kind::Timestamp => {
                write_micros(batch.origin().received_at, out);
            }
            _ => continue,
        }
        end(at, out)?;
    }
    if let Some((documents, way)) = documents {
        let at = begin(out);
        if way.binary == Kind::Jsonb {
            out.push(1);
        }
        let start = out.len();
        documents.write(row, out);
        check_json(&out[start..], way.binary)?;
        end(at, out)?;
    }
    Ok(())
}

/// Makes room for a length; until then it says null.
fn begin(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    out.len()
}

/// Writes the length of what was appended.
fn end(at: usize, out: &mut [u8]) -> Result<(), Wrong> {
    let len = i32::try_from(out.len() - at).map_err(|_| "postgres_54000: a value is too large".to_owned())?;
    out[at - 4..at].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

/// Appends a row of a COPY in text.
fn text(
    shape: &Shape,
    documents: Option<&(Documents<'_>, Way)>,
    batch: &Batch,
    row: usize,
    out: &mut Vec<u8>,
) -> Result<(), Wrong> {
    let mut value = Vec::new();
    for (n, fit) in shape.columns.iter().enumerate() {
        if n > 0 {
            out.push(b'\t');
        }
        let array = batch.rows().column(fit.idx);
        value.clear();
        let is_null = array.logical_nulls().is_some_and(|nulls| nulls.is_null(row));
        if is_null && fit.else_arrival {
            let arrival = TimestampMicrosecondArray::from_value(batch.origin().received_at, 1);
            let arrival: ArrayRef = std::sync::Arc::new(arrival.with_timezone("UTC"));
            value.extend_from_slice(value_text(&arrival, 0).unwrap_or_default().as_bytes());
        } else if is_null {
            out.extend_from_slice(b"\\N");
            continue;
        } else {
            write_value(array, row, fit.way.text, &mut value)?;
        }
        escape(&value, out)?;
    }
    if let Some((documents, _)) = documents {
        if !shape.columns.is_empty() {
            out.push(b'\t');
        }
        value.clear();
        documents.write(row, &mut value);
        escape(&value, out)?;
    }
    out.push(b'\n');
    Ok(())
}

fn write_value(array: &ArrayRef, row: usize, kind: TextKind, out: &mut Vec<u8>) -> Result<(), Wrong> {
    let unreadable = || "postgres_value: a value that has no text".to_owned();
    match kind {
        TextKind::Array => {
            let items = array.as_list::<i32>().value(row);
            out.push(b'{');
            for n in 0..items.len() {
                if n > 0 {
                    out.push(b',');
                }
                let Some(item) = value_text(&items, n) else {
                    out.extend_from_slice(b"NULL");
                    continue;
                };
                out.push(b'"');
                for byte in item.bytes() {
                    if matches!(byte, b'"' | b'\\') {
                        out.push(b'\\');
                    }
                    out.push(byte);
                }
                out.push(b'"');
            }
            out.push(b'}');
        }
        TextKind::Bytes => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            let bytes = cast(&array.slice(row, 1), &DataType::BinaryView).map_err(|_| unreadable())?;
            out.extend_from_slice(b"\\x");
            for byte in bytes.as_binary_view().value(0) {
                out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
        }
        TextKind::Json => ValueWriter::new(array.as_ref()).write(row, out),
        TextKind::Plain => {
            out.extend_from_slice(value_text(array, row).ok_or_else(unreadable)?.as_bytes());
        }
    }
    Ok(())
}

/// Appends text as COPY wants it.
fn escape(text: &[u8], out: &mut Vec<u8>) -> Result<(), Wrong> {
    check_text(text)?;
    for byte in text {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => out.push(*byte),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(value: i128, scale: i8) -> Vec<u16> {
        let mut out = Vec::new();
        write_numeric(value, scale, &mut out);
        out.chunks(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect()
    }

    #[test]
    fn numbers_are_cut_into_groups_around_the_point() {
        // Groups, weight, sign, digits behind the point, then the groups.
        assert_eq!(numeric(0, 2), [0, 0, 0, 2]);
        assert_eq!(numeric(1234, 2), [2, 0, 0, 2, 12, 3400]);
        assert_eq!(numeric(-5, 4), [1, 0xffff, 0x4000, 4, 5]);
        assert_eq!(numeric(120_000_000, 0), [2, 2, 0, 0, 1, 2000]);
        assert_eq!(numeric(7, -4), [1, 1, 0, 0, 7]);
    }

    #[test]
    fn a_nul_is_found_however_it_is_written() {
        assert!(check_text(b"a\0").is_err() && check_text(b"a").is_ok());
        assert!(check_json(br#"{"a":"\u0000"}"#, Kind::Jsonb).is_err());
        assert!(check_json(br#"{"a":"\\\u0000"}"#, Kind::Jsonb).is_err());
        assert!(check_json(br#"{"a":"\\u0000"}"#, Kind::Jsonb).is_ok());
        assert!(check_json(br#"{"a":"\u0000"}"#, Kind::Json).is_ok());
    }

    #[test]
    fn text_is_escaped() {
        let mut out = Vec::new();
        escape("a\\N\tb\r\nü".as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a\\\\N\\tb\\r\\nü");
    }

    #[test]
    fn addresses_have_their_family() {
        let mut out = Vec::new();
        write_inet("10.0.0.1", &mut out).unwrap();
        assert_eq!(out, [2, 32, 0, 4, 10, 0, 0, 1]);
        out.clear();
        write_inet("::1", &mut out).unwrap();
        assert_eq!((&out[..4], out[19]), (&[3, 128, 0, 16][..], 1));
        assert!(write_inet("nowhere", &mut out).is_err());
    }
}
