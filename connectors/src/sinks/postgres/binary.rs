//! Rows of a binary COPY: for each column its length and its value, in PostgreSQL's own form.

use std::net::IpAddr;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float64Array,
    Int64Array, StringViewArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use logdrive_schemas::Batch;

use super::encode::{Kind, Wrong, plain};
use super::table::{Fit, Way};
use crate::document::{Documents, ValueWriter};

/// From 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// The values of a column, in the one type that each form is made of.
pub(super) enum Values<'a> {
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
    pub(super) fn new(field: &Field, array: &'a ArrayRef, kind: Kind) -> Option<Self> {
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

    pub(super) fn is_null(&self, row: usize) -> bool {
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
    pub(super) fn write(&self, kind: Kind, row: usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
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
pub(super) fn check_text(text: &[u8]) -> Result<(), Wrong> {
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

/// Appends a row of a binary COPY.
pub(super) fn write(
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
