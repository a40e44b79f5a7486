//! Values that clients give for `$1`, `$2` and so on: text or binary, as columns of one row.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, ListArray, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options, concat};
use arrow::datatypes::{DataType, Field, TimeUnit};
use pgwire::api::Type;

use super::encode::{EPOCH_DAYS, EPOCH_MICROS};

/// Why a value cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value for a parameter of type {of}: {why}")]
pub(super) struct Invalid {
    of: String,
    why: String,
}

/// The longest list that is taken.
const ITEMS_MAX: usize = 100_000;

/// The column for a parameter of this type.
fn column_type(of: &Type) -> DataType {
    match *of {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::BYTEA => DataType::BinaryView,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ => DataType::Utf8,
    }
}

/// The type of the items of a list.
fn item_of(of: &Type) -> Option<Type> {
    Some(match *of {
        Type::BOOL_ARRAY => Type::BOOL,
        Type::INT2_ARRAY => Type::INT2,
        Type::INT4_ARRAY => Type::INT4,
        Type::INT8_ARRAY => Type::INT8,
        Type::OID_ARRAY => Type::OID,
        Type::FLOAT4_ARRAY => Type::FLOAT4,
        Type::FLOAT8_ARRAY => Type::FLOAT8,
        Type::TEXT_ARRAY => Type::TEXT,
        Type::VARCHAR_ARRAY => Type::VARCHAR,
        Type::NAME_ARRAY => Type::NAME,
        Type::BYTEA_ARRAY => Type::BYTEA,
        Type::DATE_ARRAY => Type::DATE,
        Type::TIMESTAMP_ARRAY => Type::TIMESTAMP,
        Type::TIMESTAMPTZ_ARRAY => Type::TIMESTAMPTZ,
        Type::UUID_ARRAY => Type::UUID,
        _ => return None,
    })
}

/// A value as a column of one row.
pub(super) fn column(of: &Type, value: Option<&[u8]>, is_binary: bool) -> Result<ArrayRef, Invalid> {
    let invalid = |why: String| Invalid { of: of.name().to_owned(), why };
    let Some(item) = item_of(of) else { return one(of, value, is_binary) };
    let field = Arc::new(Field::new("item", column_type(&item), true));
    let Some(value) = value else { return Ok(new_null_array(&DataType::List(field), 1)) };
    let items = if is_binary {
        binary_items(value).ok_or_else(|| invalid("it is cut off".into()))?
    } else {
        text_items(value).ok_or_else(|| invalid("it is no list such as {a,b}".into()))?
    };
    if items.len() > ITEMS_MAX {
        return Err(invalid(format!("it has more than {ITEMS_MAX} items")));
    }
    let columns = items.iter().map(|value| one(&item, value.as_deref(), is_binary));
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let parts: Vec<&dyn Array> = columns.iter().map(AsRef::as_ref).collect();
    let values = if parts.is_empty() {
        new_null_array(field.data_type(), 0)
    } else {
        concat(&parts).map_err(|error| invalid(error.to_string()))?
    };
    let offsets = OffsetBuffer::from_lengths([values.len()]);
    Ok(Arc::new(ListArray::new(field, offsets, values, None)))
}

fn one(of: &Type, value: Option<&[u8]>, is_binary: bool) -> Result<ArrayRef, Invalid> {
    let Some(value) = value else { return Ok(new_null_array(&column_type(of), 1)) };
    let invalid = |why: &str| Invalid { of: of.name().to_owned(), why: why.to_owned() };
    if is_binary && !is_text(of) {
        return binary(of, value)
            .ok_or_else(|| invalid("its length is wrong, or its type has no binary form here"));
    }
    let text = std::str::from_utf8(value).map_err(|_| invalid("it is not UTF-8"))?;
    from_text(of, text).map_err(|why| invalid(&why))
}

/// Types whose binary form is their text.
fn is_text(of: &Type) -> bool {
    matches!(
        *of,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON | Type::CHAR
    )
}

fn from_text(of: &Type, text: &str) -> Result<ArrayRef, String> {
    let trimmed = if is_text(of) { text } else { text.trim() };
    let column: ArrayRef = match *of {
        Type::NUMERIC => return decimal(trimmed),
        Type::BYTEA => {
            let bytes = match trimmed.strip_prefix("\\x") {
                Some(hex) => from_hex(hex).ok_or("it is no hexadecimal text")?,
                None => trimmed.as_bytes().to_vec(),
            };
            return Ok(Arc::new(BinaryViewArray::from_iter_values([bytes])));
        }
        Type::BOOL => {
            let value = match trimmed.to_ascii_lowercase().as_str() {
                "t" | "true" | "y" | "yes" | "on" | "1" => true,
                "f" | "false" | "n" | "no" | "off" | "0" => false,
                _ => return Err("it is neither true nor false".into()),
            };
            return Ok(Arc::new(BooleanArray::from(vec![value])));
        }
        _ => Arc::new(StringArray::from(vec![trimmed])),
    };
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&column, &column_type(of), &strict).map_err(|error| error.to_string())
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        hex.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// A decimal number with as many digits behind the point as it has.
fn decimal(text: &str) -> Result<ArrayRef, String> {
    let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let scale = i8::try_from(scale).ok().filter(|scale| *scale <= 37).ok_or("it has too many digits")?;
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let column = StringArray::from(vec![text]);
    cast_with_options(&column, &DataType::Decimal128(38, scale), &strict).map_err(|error| error.to_string())
}

fn binary(of: &Type, value: &[u8]) -> Option<ArrayRef> {
    let short = || Some(i16::from_be_bytes(value.try_into().ok()?));
    let int = || Some(i32::from_be_bytes(value.try_into().ok()?));
    let long = || Some(i64::from_be_bytes(value.try_into().ok()?));
    Some(match *of {
        Type::BOOL => match value {
            [flag] => Arc::new(BooleanArray::from(vec![*flag != 0])),
            _ => return None,
        },
        Type::INT2 => Arc::new(Int16Array::from(vec![short()?])),
        Type::INT4 => Arc::new(Int32Array::from(vec![int()?])),
        Type::INT8 => Arc::new(Int64Array::from(vec![long()?])),
        Type::OID => Arc::new(Int64Array::from(vec![i64::from(int()?.cast_unsigned())])),
        Type::FLOAT4 => Arc::new(Float32Array::from(vec![f32::from_bits(int()?.cast_unsigned())])),
        Type::FLOAT8 => Arc::new(Float64Array::from(vec![f64::from_bits(long()?.cast_unsigned())])),
        Type::BYTEA => Arc::new(BinaryViewArray::from_iter_values([value])),
        Type::DATE => Arc::new(Date32Array::from(vec![int()?.saturating_add(EPOCH_DAYS)])),
        Type::TIMESTAMP => {
            Arc::new(TimestampMicrosecondArray::from(vec![long()?.saturating_add(EPOCH_MICROS)]))
        }
        Type::TIMESTAMPTZ => {
            let column = TimestampMicrosecondArray::from(vec![long()?.saturating_add(EPOCH_MICROS)]);
            Arc::new(column.with_timezone("UTC"))
        }
        Type::NUMERIC => return decimal(&numeric(value)?).ok(),
        Type::JSONB => {
            let text = std::str::from_utf8(value.strip_prefix(&[1])?).ok()?;
            Arc::new(StringArray::from(vec![text]))
        }
        Type::UUID => {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            if hex.len() != 32 {
                return None;
            }
            let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
            Arc::new(StringArray::from(vec![text]))
        }
        _ => return None,
    })
}

/// A number of groups of four digits as decimal text.
fn numeric(value: &[u8]) -> Option<String> {
    let words: Vec<i16> =
        value.chunks(2).map(|pair| Some(i16::from_be_bytes(pair.try_into().ok()?))).collect::<Option<_>>()?;
    let [n_groups, weight, sign, scale, groups @ ..] = words.as_slice() else { return None };
    let (weight, scale) = (i32::from(*weight), usize::try_from(*scale).ok()?);
    let is_negative = match sign.cast_unsigned() {
        0 => false,
        0x4000 => true,
        // Not a number, or endless.
        _ => return None,
    };
    if usize::try_from(*n_groups).ok()? != groups.len() || !(-20..=20).contains(&weight) || scale > 40 {
        return None;
    }
    let group = |place: i32| {
        usize::try_from(weight - place).ok().and_then(|idx| groups.get(idx)).copied().unwrap_or(0)
    };
    let mut text = if is_negative { "-".to_owned() } else { String::new() };
    let whole: String = (0..=weight.max(0)).rev().map(|place| format!("{:04}", group(place))).collect();
    let whole = whole.trim_start_matches('0');
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        let n_behind = i32::try_from(scale.div_ceil(4)).ok()?;
        let behind: String = (1..=n_behind).map(|place| format!("{:04}", group(-place))).collect();
        text.push('.');
        text.push_str(behind.get(..scale)?);
    }
    Some(text)
}

/// The items of a list in binary form: dimensions, whether there are nulls, the type of the items; each behind its
/// length.
fn binary_items(value: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let mut rest = value;
    let int = |rest: &mut &[u8]| {
        let (four, behind) = rest.split_at_checked(4)?;
        *rest = behind;
        Some(i32::from_be_bytes(four.try_into().ok()?))
    };
    let n_dimensions = int(&mut rest)?;
    let (_has_nulls, _of) = (int(&mut rest)?, int(&mut rest)?);
    if n_dimensions == 0 {
        return Some(Vec::new());
    }
    if n_dimensions != 1 {
        return None;
    }
    let (n_items, _first) = (int(&mut rest)?, int(&mut rest)?);
    let mut items = Vec::new();
    for _ in 0..n_items {
        let length = int(&mut rest)?;
        let Ok(length) = usize::try_from(length) else {
            items.push(None);
            continue;
        };
        let (item, behind) = rest.split_at_checked(length)?;
        rest = behind;
        items.push(Some(item.to_vec()));
    }
    Some(items)
}

/// The items of `{a,"b c",NULL}`.
fn text_items(value: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let inner = value.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}")?;
    let mut items = Vec::new();
    if inner.trim_ascii().is_empty() {
        return Some(items);
    }
    let mut bytes = inner.iter().copied();
    loop {
        let (mut item, mut is_quoted, mut is_last) = (Vec::new(), false, true);
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' if !is_quoted && item.is_empty() => {
                    is_quoted = true;
                    loop {
                        match bytes.next()? {
                            b'"' => break,
                            b'\\' => item.push(bytes.next()?),
                            other => item.push(other),
                        }
                    }
                }
                b',' => {
                    is_last = false;
                    break;
                }
                b'{' | b'}' => return None,
                b'\\' => item.push(bytes.next()?),
                b' ' if is_quoted || item.is_empty() => {}
                other => item.push(other),
            }
        }
        let is_null = !is_quoted && item.eq_ignore_ascii_case(b"null");
        items.push((!is_null).then_some(item));
        if is_last {
            return Some(items);
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Decimal128Type, Int32Type, TimestampMicrosecondType};

    use super::*;

    #[test]
    fn text_and_binary_are_the_same_values() {
        let of = |of: &Type, text: &str, binary: &[u8]| {
            let text = column(of, Some(text.as_bytes()), false).unwrap();
            let binary = column(of, Some(binary), true).unwrap();
            assert_eq!(&text, &binary);
            text
        };
        of(&Type::BOOL, "t", &[1]);
        of(&Type::INT8, "-2", &(-2i64).to_be_bytes());
        of(&Type::FLOAT8, "0.5", &0.5f64.to_be_bytes());
        of(&Type::TEXT, "é", "é".as_bytes());
        of(&Type::DATE, "2000-01-02", &1i32.to_be_bytes());
        let at = of(&Type::TIMESTAMPTZ, "2000-01-01 00:00:01+00", &1_000_000i64.to_be_bytes());
        assert_eq!(at.as_primitive::<TimestampMicrosecondType>().value(0), EPOCH_MICROS + 1_000_000);
        let words: Vec<u8> =
            [3i16, 1, 0x4000, 3, 1, 2345, 6780].iter().flat_map(|word| word.to_be_bytes()).collect();
        let number = of(&Type::NUMERIC, "-12345.678", &words);
        assert_eq!(number.as_primitive::<Decimal128Type>().value(0), -12_345_678);
    }

    #[test]
    fn lists_have_items() {
        let list = column(&Type::INT4_ARRAY, Some(b"{1,NULL,3}"), false).unwrap();
        let list = list.as_list::<i32>();
        assert_eq!(
            list.values().as_primitive::<Int32Type>().iter().collect::<Vec<_>>(),
            [Some(1), None, Some(3)]
        );
        let list = column(&Type::TEXT_ARRAY, Some(br#"{a,"b, \"c\"",NULL,"NULL"}"#), false).unwrap();
        let list = list.as_list::<i32>();
        let items: Vec<_> = list.values().as_string::<i32>().iter().collect();
        assert_eq!(items, [Some("a"), Some("b, \"c\""), None, Some("NULL")]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (of, value, is_binary) in [
            (Type::INT4, &b"x"[..], false),
            (Type::INT4, &b"xyz"[..], true),
            (Type::BOOL, &b"maybe"[..], false),
            (Type::TIMESTAMPTZ, &b"yesterday"[..], false),
            (Type::NUMERIC, &[0, 9][..], true),
            (Type::INT4_ARRAY, &b"1,2"[..], false),
            (Type::INT4_ARRAY, &[0, 0, 0, 1][..], true),
            (Type::TEXT, &[0xff][..], true),
            (Type::POINT, &b""[..], true),
        ] {
            assert!(column(&of, Some(value), is_binary).is_err(), "{of} {value:?}");
        }
    }
}
