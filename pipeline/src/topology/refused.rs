//! The rows that failed or came too late last, for readers: the tables `_errors` and `_late`.
//!
//! Everything that was rejected is on the `rejects` stream; this is what a person looks at first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use logdrive_schemas::Batch;

use super::now_micros;

/// How many rows each of the two tables has at most.
const N_ROWS: usize = 1_000;
/// How many bytes of a row are kept.
const ROW_BYTES: usize = 4 << 10;

/// The rows that failed, and those that came too late.
#[derive(Debug, Default)]
pub struct Refused {
    errors: Mutex<VecDeque<Row>>,
    late: Mutex<VecDeque<Row>>,
}

#[derive(Debug)]
struct Row {
    time: i64,
    component: Arc<str>,
    reason: String,
    source: String,
    position: String,
    received_at: Option<i64>,
    row: String,
}

impl Refused {
    /// The names of the tables. No view can have them: names begin with a letter.
    pub const TABLES: [&'static str; 2] = ["_errors", "_late"];

    /// The columns of the tables.
    #[must_use]
    pub fn schema() -> SchemaRef {
        let utc = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let text = |name: &str| Field::new(name, DataType::Utf8View, false);
        Arc::new(Schema::new(vec![
            Field::new("time", utc(), false),
            text("component"),
            text("code"),
            text("reason"),
            text("source"),
            text("position"),
            Field::new("received_at", utc(), true),
            text("row"),
        ]))
    }

    /// Keeps rows of the `rejects` stream.
    pub(super) fn add(&self, component: &Arc<str>, rejects: &Batch) {
        let rows = rejects.rows();
        let text = |name: &str| rows.column_by_name(name)?.as_string_view_opt();
        let (Some(reason), Some(source), Some(position), Some(row)) =
            (text("reason"), text("source"), text("position"), text("original"))
        else {
            return;
        };
        let received_at = rows.column_by_name("received_at");
        let received_at =
            received_at.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        let time = now_micros();
        // Of many only the last could stay.
        let (mut errors, mut late) = (Vec::new(), Vec::new());
        for idx in rows.num_rows().saturating_sub(N_ROWS)..rows.num_rows() {
            let value = |column: &StringViewArray| column.value(idx).to_owned();
            let kept = Row {
                time,
                component: Arc::clone(component),
                reason: value(reason),
                source: value(source),
                position: value(position),
                received_at: received_at
                    .filter(|column| column.is_valid(idx))
                    .map(|column| column.value(idx)),
                row: cut(row.value(idx)).to_owned(),
            };
            if code(&kept.reason) == "late" { late.push(kept) } else { errors.push(kept) }
        }
        for (ring, rows) in [(&self.errors, errors), (&self.late, late)] {
            if rows.is_empty() {
                continue;
            }
            let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.extend(rows);
            let surplus = ring.len().saturating_sub(N_ROWS);
            ring.drain(..surplus);
        }
    }

    /// The rows of a table, the oldest first; nothing if there is no such table.
    #[must_use]
    pub fn read(&self, table: &str) -> Option<RecordBatch> {
        let ring = match table {
            "_errors" => &self.errors,
            "_late" => &self.late,
            _ => return None,
        };
        let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |of: fn(&Row) -> &str| -> ArrayRef {
            Arc::new(StringViewArray::from_iter_values(ring.iter().map(of)))
        };
        let times = |times: TimestampMicrosecondArray| -> ArrayRef { Arc::new(times.with_timezone("UTC")) };
        let columns = vec![
            times(ring.iter().map(|row| Some(row.time)).collect()),
            text(|row| &row.component),
            text(|row| code(&row.reason)),
            text(|row| &row.reason),
            text(|row| &row.source),
            text(|row| &row.position),
            times(ring.iter().map(|row| row.received_at).collect()),
            text(|row| &row.row),
        ];
        Some(
            RecordBatch::try_new(Self::schema(), columns).expect("the columns are those of the schema above"),
        )
    }
}

/// The stable part of a reason.
fn code(reason: &str) -> &str {
    reason.split(':').next().unwrap_or(reason)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(ROW_BYTES)]
}

#[cfg(test)]
mod tests {
    use logdrive_schemas::{Layout, Origin, Partition, Reject, reject};

    use super::*;

    fn batch(n_rows: usize) -> Batch {
        let rows: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..n_rows).map(|n| n.to_string())));
        let rows = RecordBatch::try_from_iter([("n", rows)]).unwrap();
        let original = (0..n_rows).map(|n| format!("row {n}")).collect::<Vec<_>>();
        let original = arrow::array::BinaryViewArray::from_iter_values(original.iter().map(String::as_bytes));
        let origin = Origin {
            source: "in".into(),
            partition: Partition(0),
            ordered: true,
            received_at: 7,
            peer: None,
        };
        let offsets = (0..n_rows as u64).collect::<Vec<_>>().into();
        Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns)).unwrap()
    }

    #[test]
    fn only_the_last_rows_stay_and_late_ones_by_themselves() {
        let refused = Refused::default();
        let of = |reason: &str, n_rows: usize| {
            let rejects =
                (0..n_rows).map(|idx| Reject { idx, reason: reason.to_owned() }).collect::<Vec<_>>();
            reject::of_batch(&batch(n_rows), &rejects).unwrap()
        };
        refused.add(&"a".into(), &of("bad_cast: no number", 3));
        refused.add(&"b".into(), &of("late: of a window that has closed", 2));
        let errors = refused.read("_errors").unwrap();
        assert_eq!(errors.num_rows(), 3);
        assert_eq!(errors.column(2).as_string_view().value(0), "bad_cast");
        assert_eq!(errors.column(7).as_string_view().value(2), "row 2");
        assert_eq!(refused.read("_late").unwrap().num_rows(), 2);
        refused.add(&"a".into(), &of("other", 2 * N_ROWS));
        let errors = refused.read("_errors").unwrap();
        assert_eq!(errors.num_rows(), N_ROWS);
        assert_eq!(errors.column(7).as_string_view().value(0), format!("row {N_ROWS}"));
        assert!(refused.read("_others").is_none());
    }
}
