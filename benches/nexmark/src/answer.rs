//! Answers of different products, made comparable: the number of rows, and a sum over them that does not depend on their
//! order.
//!
//! Each writes JSON lines in its own way of saying what changed: a row; a row with `_change` (Logdrive), with `diff`
//! (Pathway), or between `before` and `after` (Debezium's format, which Flink writes); or all rows of a key, in place of
//! those before. A row that is taken back is subtracted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType, SchemaRef};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use logdrive_compare::error::{Result, fail};
use serde_json::{Map, Value};

type Row = Map<String, Value>;

/// What is left of all changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How many rows.
    pub n_rows: i64,
    /// The sum of their hashes.
    sum: u64,
}

impl Answer {
    /// Reads what a product wrote into a file or a folder of files; `columns` are those of the query.
    ///
    /// # Errors
    /// If something is not a row.
    pub fn read(path: &Path, columns: &SchemaRef) -> Result<Self> {
        let mut reader = Reader { columns, answer: Self::default(), keyed: HashMap::new() };
        for file in files(path)? {
            for line in BufReader::new(File::open(file)?).lines() {
                let line = line?;
                reader.take(&line).map_err(fail(format_args!("not a row: {line}")))?;
            }
        }
        Ok(reader.answer)
    }

    fn add(&mut self, other: Self, times: i64) {
        self.n_rows += other.n_rows * times;
        self.sum = self.sum.wrapping_add(other.sum.wrapping_mul(times.cast_unsigned()));
    }

    /// How it differs from what it should be; `None` if it does not.
    #[must_use]
    pub fn fault(self, wanted: Self) -> Option<String> {
        match self == wanted {
            true => None,
            false if self.n_rows == wanted.n_rows => {
                Some(format!("{} rows, as many as there should be, but others", self.n_rows))
            }
            false => Some(format!("{} rows instead of {}", self.n_rows, wanted.n_rows)),
        }
    }
}

/// The file, or all files of the folder that are finished: Flink's begin with a dot until then.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        fs::read_dir(path).map_err(fail(format_args!("there is no answer in {}", path.display())))?;
    let names = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().first() == Some(&b'.'));
    Ok(names.into_iter().filter(|path| !is_hidden(path)).collect())
}

struct Reader<'a> {
    columns: &'a SchemaRef,
    answer: Answer,
    /// What counts of each key, where a key's rows are written anew.
    keyed: HashMap<String, Answer>,
}

impl Reader<'_> {
    fn take(&mut self, line: &str) -> Result<()> {
        let mut row: Row = serde_json::from_str(line)?;
        if let (Some(Value::String(key)), Some(Value::Array(rows))) = (row.remove("key"), row.remove("rows"))
        {
            return self.replace(key, rows);
        }
        if let Some(Value::String(op)) = row.get("op") {
            let (side, times) = if op == "d" { ("before", -1) } else { ("after", 1) };
            let Some(Value::Object(row)) = row.remove(side) else { return Err("a change of no row".into()) };
            return self.count(&row, times);
        }
        let times = match (row.get("_change").and_then(Value::as_str), row.get("diff")) {
            (Some("delete"), _) => -1,
            (None, Some(diff)) => diff.as_i64().ok_or("diff is no number")?,
            _ => 1,
        };
        self.count(&row, times)
    }

    fn replace(&mut self, key: String, rows: Vec<Value>) -> Result<()> {
        let mut of_key = Answer::default();
        for row in rows {
            let Value::Object(row) = row else { return Err("not an object".into()) };
            of_key.add(self.one(&row)?, 1);
        }
        self.answer.add(of_key, 1);
        if let Some(former) = self.keyed.insert(key, of_key) {
            self.answer.add(former, -1);
        }
        Ok(())
    }

    fn count(&mut self, row: &Row, times: i64) -> Result<()> {
        let row = self.one(row)?;
        self.answer.add(row, times);
        Ok(())
    }

    fn one(&self, row: &Row) -> Result<Answer> {
        let mut hasher = DefaultHasher::new();
        for field in self.columns.fields() {
            plain(row.get(field.name()).unwrap_or(&Value::Null), field.data_type())
                .ok_or_else(|| format!("{}: not of type {}", field.name(), field.data_type()))?
                .hash(&mut hasher);
        }
        Ok(Answer { n_rows: 1, sum: hasher.finish() })
    }
}

/// A value in the one form that all products' are brought to. Numbers with a fraction have three digits of it: a mean
/// that is taken in another way differs in the last digits.
fn plain(value: &Value, data_type: &DataType) -> Option<String> {
    match (value, data_type) {
        (Value::Null, _) => Some("NULL".to_owned()),
        (value, DataType::Timestamp(..)) => Some(milliseconds(value)?.to_string()),
        (Value::Number(number), t) if t.is_floating() || matches!(t, DataType::Decimal128(..)) => {
            Some(format!("{:.3}", number.as_f64()?))
        }
        (Value::Number(number), _) => Some(number.to_string()),
        (Value::String(text), _) => Some(text.clone()),
        _ => None,
    }
}

/// Since the Unix epoch: of the number itself, or of a date or a point in time, in UTC.
fn milliseconds(value: &Value) -> Option<i64> {
    let text = match value {
        Value::Number(number) => return number.as_i64(),
        Value::String(text) => text.trim_end_matches('Z'),
        _ => return None,
    };
    let time: DateTime = text.parse().ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, Schema, TimeUnit};

    use super::*;

    fn read(lines: &[&str]) -> Answer {
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let fields = [("n", DataType::Int64), ("mean", DataType::Float64), ("at", time)];
        let columns = Arc::new(Schema::new(fields.map(|(name, t)| Field::new(name, t, true)).to_vec()));
        let mut reader = Reader { columns: &columns, answer: Answer::default(), keyed: HashMap::new() };
        for line in lines {
            reader.take(line).expect("a row");
        }
        reader.answer
    }

    const FIRST: &str = r#"{"n":1,"mean":0.5,"at":"2026-01-01T00:00:00.001Z"}"#;
    const SECOND: &str = r#"{"n":2,"mean":null,"at":1767225600002}"#;

    #[test]
    fn the_same_rows_in_any_order_and_form_are_the_same_answer() {
        let wanted = read(&[FIRST, SECOND]);
        assert_eq!(wanted.n_rows, 2);
        let others: [&[&str]; 4] = [
            &[r#"{"at":"2026-01-01 00:00:00.002","n":2}"#, r#"{"n":1,"mean":0.5000001,"at":1767225600001}"#],
            &[
                r#"{"n":9,"_change":"insert","_epoch":1}"#,
                r#"{"n":1,"mean":0.5,"at":1767225600001,"_change":"insert","_epoch":1}"#,
                r#"{"n":2,"at":1767225600002,"_change":"insert","_epoch":1}"#,
                r#"{"n":9,"_change":"delete","_epoch":2}"#,
            ],
            &[
                r#"{"before":null,"after":{"n":9},"op":"c"}"#,
                r#"{"before":{"n":9},"after":null,"op":"d"}"#,
                r#"{"before":null,"after":{"n":1,"mean":0.5,"at":1767225600001},"op":"c"}"#,
                r#"{"n":2,"at":1767225600002,"diff":1,"time":4}"#,
            ],
            &[
                r#"{"key":"a","rows":[{"n":1},{"n":9}]}"#,
                r#"{"key":"b","rows":[{"n":2,"at":1767225600002}]}"#,
                r#"{"key":"a","rows":[{"n":1,"mean":0.5,"at":1767225600001}]}"#,
            ],
        ];
        for other in others {
            assert_eq!(read(other).fault(wanted), None, "{other:?}");
        }
    }

    #[test]
    fn other_rows_are_a_fault() {
        let wanted = read(&[FIRST]);
        assert!(read(&[FIRST, FIRST]).fault(wanted).is_some_and(|fault| fault == "2 rows instead of 1"));
        assert!(read(&[SECOND]).fault(wanted).is_some_and(|fault| fault.contains("but others")));
        assert!(milliseconds(&Value::from("2026-01-01")) == Some(1_767_225_600_000));
    }
}
