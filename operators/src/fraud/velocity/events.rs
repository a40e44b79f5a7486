//! Events: what `velocity` takes of a batch, evaluated for all its rows at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float64Type, Schema, TimeUnit, TimestampMicrosecondType};
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::{Batch, reject};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use super::windows::units;
use super::{Measure, Rules};
use crate::expression::Expression;
use crate::rows;
use crate::steps::r#where::filter;

/// The key's values as text, joined by [`SEPARATOR`].
pub(super) type Key = Arc<str>;

/// Stands between the values of a key. In a value it is escaped, so that no two keys look alike.
const SEPARATOR: char = '\u{1f}';
const ESCAPE: char = '\u{1b}';

/// Longer keys are cut and get a hash instead of their tail.
const MAX_KEY_BYTES: usize = 512;

/// Not the hash that differential uses, whose collisions anybody can compute.
const SEED: u64 = 0x6c6f_6764_7269_7665;

/// Which message a row came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct MessageId {
    pub(super) source: Arc<str>,
    pub(super) partition: Partition,
    pub(super) offset: u64,
}

impl fmt::Display for MessageId {
    /// As [`Batch::id`] writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{:x}", self.source, self.partition, self.offset)
    }
}

/// What is kept of a row. In order of event time; the message decides between rows of the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Row {
    /// Event time in microseconds.
    pub(super) at: i64,
    pub(super) id: MessageId,
    /// What is summed, in units; or the hash of what is told apart.
    pub(super) value: i128,
    pub(super) tenant: Option<Arc<str>>,
    /// When it arrived, in microseconds.
    pub(super) received_at: i64,
}

/// A row on its way to the worker that keeps its key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) key: Key,
    pub(super) row: Row,
}

/// Decides which worker keeps `key`: this, modulo their number.
pub(super) fn route(key: &str) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), SEED)
}

/// The key as findings name it.
pub(super) fn entity(key: &str) -> String {
    key.replace(SEPARATOR, "|")
}

/// Where in a batch everything is. Columns behind those of the input are computed.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) condition: Option<Arc<dyn Expression>>,
    pub(super) computed: Vec<Arc<dyn Expression>>,
    pub(super) by: Vec<usize>,
    pub(super) value: Option<usize>,
    pub(super) event_time: usize,
    pub(super) tenant: Option<usize>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) events: Vec<Event>,
    pub(super) rejects: Vec<Batch>,
    /// Rows without event time.
    pub(super) n_timeless: usize,
}

/// The events of a batch.
pub(super) fn read(rules: &Rules, batch: Batch) -> Read {
    let mut out = Read::default();
    if let Some(batch) = compute(&rules.reader, batch, &mut out.rejects) {
        collect(rules, &batch, &mut out);
    }
    out
}

/// The rows that count, with the computed columns.
fn compute(reader: &Reader, mut batch: Batch, rejects: &mut Vec<Batch>) -> Option<Batch> {
    if let Some(condition) = &reader.condition {
        let (kept, failed, _) = filter(&**condition, &batch);
        rejects.extend(failed);
        batch = kept?;
    }
    for expr in &reader.computed {
        let (good, values, failed) = rows::evaluate(&**expr, &batch);
        rejects.extend(reject::of_batch(&batch, &failed));
        let (good, values) = (good?, values?);
        let mut fields = good.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(
            format!("{SEPARATOR}{}", fields.len()),
            values.data_type().clone(),
            true,
        )));
        let mut columns = good.rows().columns().to_vec();
        columns.push(values);
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
            .expect("an expression has a value for each row");
        let layout = Arc::clone(good.layout());
        batch = good.with_rows(rows, layout);
    }
    Some(batch)
}

fn collect(rules: &Rules, batch: &Batch, out: &mut Read) {
    let (reader, rows) = (&rules.reader, batch.rows());
    let times = times(rows.column(reader.event_time));
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let keys: Vec<StringViewArray> = reader.by.iter().map(|idx| text(rows.column(*idx))).collect();
    let values = Values::of(rules.measure, reader.value.map(|idx| rows.column(idx)));
    let tenants = reader.tenant.map(|idx| text(rows.column(idx)));
    let mut names = Names::default();
    let mut key = String::new();
    for idx in 0..batch.num_rows() {
        let Some(value) = values.get(idx) else { continue };
        if !write_key(&keys, idx, &mut key) {
            continue;
        }
        if times.is_null(idx) {
            out.n_timeless += 1;
            continue;
        }
        let id = MessageId {
            source: Arc::clone(&batch.origin().source),
            partition: batch.origin().partition,
            offset: batch.offsets().value(idx),
        };
        let tenant = tenants.as_ref().filter(|t| t.is_valid(idx)).map(|t| names.get(t.value(idx)));
        let row = Row { at: times.value(idx), id, value, tenant, received_at: batch.origin().received_at };
        out.events.push(Event { key: names.get(&key), row });
    }
}

/// One allocation for each different text of a batch.
#[derive(Default)]
struct Names(HashMap<Box<str>, Arc<str>>);

impl Names {
    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.0.get(text) {
            return Arc::clone(name);
        }
        let name: Arc<str> = text.into();
        self.0.insert(text.into(), Arc::clone(&name));
        name
    }
}

/// Writes the key of row `idx`; false if a part of it is null.
fn write_key(columns: &[StringViewArray], idx: usize, key: &mut String) -> bool {
    key.clear();
    for (n, column) in columns.iter().enumerate() {
        if column.is_null(idx) {
            return false;
        }
        if n > 0 {
            key.push(SEPARATOR);
        }
        let value = column.value(idx);
        if value.contains([SEPARATOR, ESCAPE]) {
            for c in value.chars() {
                if c == SEPARATOR || c == ESCAPE {
                    key.push(ESCAPE);
                    key.push(if c == SEPARATOR { '|' } else { ESCAPE });
                } else {
                    key.push(c);
                }
            }
        } else {
            key.push_str(value);
        }
    }
    if key.len() > MAX_KEY_BYTES {
        let hash = xxh3_128(key.as_bytes());
        key.truncate(key.floor_char_boundary(MAX_KEY_BYTES - 33));
        key.push_str(&format!("#{hash:032x}"));
    }
    true
}

/// What the rows of a batch are worth.
enum Values {
    Count,
    Distinct(StringViewArray),
    Sum(ArrayRef),
}

impl Values {
    fn of(measure: Measure, column: Option<&ArrayRef>) -> Self {
        match (measure, column) {
            (Measure::Distinct, Some(column)) => Self::Distinct(text(column)),
            (Measure::Sum, Some(column)) => {
                Self::Sum(cast(column, &DataType::Float64).expect("planned to be a number"))
            }
            _ => Self::Count,
        }
    }

    /// `None` for rows that do not count.
    fn get(&self, idx: usize) -> Option<i128> {
        match self {
            Self::Count => Some(0),
            Self::Distinct(column) => {
                column.is_valid(idx).then(|| xxh3_128(column.value(idx).as_bytes()).cast_signed())
            }
            Self::Sum(column) => {
                let column = column.as_primitive::<Float64Type>();
                if column.is_valid(idx) { units(column.value(idx)) } else { None }
            }
        }
    }
}

fn times(column: &ArrayRef) -> ArrayRef {
    let zone = match column.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    cast(column, &DataType::Timestamp(TimeUnit::Microsecond, zone)).expect("planned to be a timestamp")
}

fn text(column: &ArrayRef) -> StringViewArray {
    // Times as numbers: Arrow cannot write a zone's name without a database of zones.
    let column = match column.data_type() {
        DataType::Timestamp(_, _) => &cast(column, &DataType::Int64).expect("a time is a number"),
        _ => column,
    };
    cast(column, &DataType::Utf8View).expect("planned to have a text").as_string_view().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str]) -> String {
        let columns: Vec<StringViewArray> = values.iter().map(|v| StringViewArray::from(vec![*v])).collect();
        let mut key = String::new();
        assert!(write_key(&columns, 0, &mut key));
        key
    }

    #[test]
    fn no_two_keys_look_alike() {
        let keys =
            [["a\u{1f}b", "c"], ["a", "b\u{1f}c"], ["a\u{1b}|b", "c"], ["a|b", "c"], ["a\u{1b}", "|b|c"]];
        let keys: std::collections::HashSet<String> = keys.iter().map(|k| key(k)).collect();
        assert_eq!(keys.len(), 5);
        assert_eq!(entity(&key(&["a", "b"])), "a|b");
    }

    #[test]
    fn a_long_key_is_cut_but_stays_itself() {
        let (a, b) = (key(&["é".repeat(5000).as_str()]), key(&[("é".repeat(5000) + "x").as_str()]));
        assert!(a.len() <= MAX_KEY_BYTES && b.len() <= MAX_KEY_BYTES);
        assert_ne!(a, b);
    }
}
