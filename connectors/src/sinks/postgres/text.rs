//! Rows of a COPY in text: values as PostgreSQL reads them from literals, a tab between columns, a line for each row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use logdrive_schemas::Batch;

use super::binary::check_text;
use super::encode::{TextKind, Wrong};
use super::table::{Shape, Way};
use crate::document::{Documents, ValueWriter};
use crate::sinks::template::value_text;

/// Appends a row of a COPY in text.
pub(super) fn write(
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
            let arrival: ArrayRef = Arc::new(arrival.with_timezone("UTC"));
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

    #[test]
    fn text_is_escaped() {
        let mut out = Vec::new();
        escape("a\\N\tb\r\nü".as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a\\\\N\\tb\\r\\nü");
    }
}
