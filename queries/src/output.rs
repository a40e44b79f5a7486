//! Answers as text: an aligned table for people, CSV and NDJSON for programs.
//!
//! Nested values are JSON in all three. In tables control characters are shown as escapes: log data must not steer
//! a terminal. CSV is plain RFC 4180; a spreadsheet may take a cell that starts with `=` for a formula.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, FieldRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, make_encoder};
use arrow::json::{LineDelimitedWriter, WriterBuilder, writer::LineDelimited};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

use crate::lake::Answer;

/// Columns aligned under their names, numbers to the right, and a last line with the number of rows.
///
/// # Errors
/// If a value has a type that cannot be shown.
pub fn to_table(answer: &Answer) -> Result<String, ArrowError> {
    let fields = answer.schema.fields();
    let mut rows = vec![fields.iter().map(|field| escaped(field.name())).collect::<Vec<_>>()];
    for batch in &answer.batches {
        for row in cells(batch)? {
            rows.push(row.into_iter().map(|cell| escaped(&cell.unwrap_or_default())).collect());
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..fields.len()).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for ((cell, width), field) in row.iter().zip(&widths).zip(fields) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let padding = " ".repeat(width - cell.width());
            if field.data_type().is_numeric() {
                line.extend([padding.as_str(), cell]);
            } else {
                line.extend([cell, padding.as_str()]);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            text.push_str(&rule.join("  "));
            text.push('\n');
        }
    }
    let count = rows.len() - 1;
    text.push_str(&format!("({count} row{})\n", if count == 1 { "" } else { "s" }));
    Ok(text)
}

/// A header line and a line per row, as RFC 4180 has it (lines end in CR LF). Null is an empty cell, the empty text
/// is `""`.
///
/// # Errors
/// If a value has a type that cannot be shown.
pub fn to_csv(answer: &Answer) -> Result<String, ArrowError> {
    let mut text = String::new();
    let header = answer.schema.fields().iter().map(|field| Some(field.name().clone())).collect();
    csv_line(&mut text, header);
    for batch in &answer.batches {
        for row in cells(batch)? {
            csv_line(&mut text, row);
        }
    }
    Ok(text)
}

fn csv_line(text: &mut String, cells: Vec<Option<String>>) {
    for (index, cell) in cells.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        match cell {
            Some(cell) if cell.is_empty() || cell.contains(['"', ',', '\r', '\n']) => {
                text.push('"');
                text.push_str(&cell.replace('"', "\"\""));
                text.push('"');
            }
            Some(cell) => text.push_str(&cell),
            None => {}
        }
    }
    text.push_str("\r\n");
}

/// One JSON object a line; nulls are written.
///
/// # Errors
/// If a value has a type that JSON cannot hold.
pub fn to_json(answer: &Answer) -> Result<String, ArrowError> {
    let mut writer: LineDelimitedWriter<Vec<u8>> =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    for batch in &answer.batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    String::from_utf8(writer.into_inner()).map_err(|error| ArrowError::JsonError(error.to_string()))
}

/// The cells of each row; `None` is null.
fn cells(batch: &RecordBatch) -> Result<Vec<Vec<Option<String>>>, ArrowError> {
    let schema = batch.schema();
    let columns: Vec<Vec<Option<String>>> = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| column_cells(field, column))
        .collect::<Result<_, _>>()?;
    let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
    Ok((0..batch.num_rows())
        .map(|_| columns.iter_mut().map(|cells| cells.next().flatten()).collect())
        .collect())
}

fn column_cells(field: &FieldRef, column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    if column.data_type().is_nested() {
        let options = EncoderOptions::default();
        let mut encoder = make_encoder(field, column, &options)?;
        let mut cell = |row| {
            let mut json = Vec::new();
            encoder.encode(row, &mut json);
            String::from_utf8_lossy(&json).into_owned()
        };
        return Ok((0..column.len()).map(|row| column.is_valid(row).then(|| cell(row))).collect());
    }
    if column.data_type() == &DataType::Null {
        return Ok(vec![None; column.len()]);
    }
    let options = FormatOptions::new();
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    (0..column.len())
        .map(|row| column.is_valid(row).then(|| formatter.value(row).try_to_string()).transpose())
        .collect()
}

/// The text with control characters as escapes, also those that change the direction of writing.
fn escaped(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return text.into();
    }
    text.chars().map(|c| if steers(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// An answer of one batch, for tests and callers that have rows already.
impl From<RecordBatch> for Answer {
    fn from(batch: RecordBatch) -> Self {
        Self { schema: batch.schema(), batches: vec![batch] }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, ListArray, StringViewArray, StructArray};
    use arrow::datatypes::{Field, Int64Type};

    use super::*;

    fn answer() -> Answer {
        let names: ArrayRef =
            Arc::new(StringViewArray::from(vec![Some("a,\"b\""), Some("é\x1b[31m\n"), None, Some("")]));
        let counts: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(-20), None, Some(3)]));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(vec![
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
            Some(vec![Some(2)]),
        ]));
        let structs: ArrayRef = Arc::new(StructArray::from(vec![(
            Arc::new(Field::new("x", DataType::Utf8View, true)),
            Arc::clone(&names),
        )]));
        RecordBatch::try_from_iter_with_nullable([
            ("name", names, true),
            ("n", counts, true),
            ("list", lists, true),
            ("object", structs, true),
        ])
        .unwrap()
        .into()
    }

    #[test]
    fn tables_are_aligned_and_harmless() {
        let table = to_table(&answer()).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0].trim_end(), "name             n  list      object");
        assert!(lines[2].starts_with("a,\"b\"            1  [1,null]  {\"x\":"), "{table}");
        assert!(lines[3].starts_with("é\\u{1b}[31m\\n  -20"), "{table}");
        assert_eq!(lines[6], "(4 rows)");
        assert!(!table.contains('\x1b'));
    }

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        let csv = to_csv(&answer()).unwrap();
        let lines: Vec<&str> = csv.split("\r\n").collect();
        assert_eq!(lines[0], "name,n,list,object");
        assert_eq!(lines[1], r#""a,""b""",1,"[1,null]","{""x"":""a,\""b\""""}""#);
        assert!(lines[2].starts_with("\"é\u{1b}[31m\n\",-20,,"), "{csv}");
        assert!(lines[3].starts_with(",,[],"), "{csv}");
        assert!(lines[4].starts_with("\"\",3,[2],"), "{csv}");
    }

    #[test]
    fn json_lines_are_json() {
        let json = to_json(&answer()).unwrap();
        let lines: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0]["name"], "a,\"b\"");
        assert_eq!(lines[0]["list"], serde_json::json!([1, null]));
        assert_eq!(lines[1]["object"]["x"], "é\x1b[31m\n");
        assert_eq!(lines[2]["n"], serde_json::Value::Null);
    }
}
