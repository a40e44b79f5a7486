//! Batches as Arrow IPC streams: a message holds the schema, as many rows as may go into it, and its own end.

use std::collections::HashMap;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use logdrive_schemas::Batch;

use crate::sinks::text::Text;

use super::topic::make_topic;

/// A message.
pub(super) struct Message {
    /// Which rows of the batch it holds.
    pub(super) rows: Vec<usize>,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// How large messages may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// In bytes; only a message of one row may be larger.
    pub(super) bytes: usize,
    /// In rows: less after a message was refused.
    pub(super) rows: usize,
}

/// These rows of a batch as messages: the rows of one topic together, as many as may be.
pub(super) fn messages(
    batch: &Batch,
    rows: &[usize],
    topics: &Text,
    bounds: Bounds,
) -> Result<Vec<Message>, ArrowError> {
    let (bound, mut topic) = (topics.bind(batch), String::new());
    let mut by_topic: Vec<(String, Vec<usize>)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for row in rows {
        bound.write(*row, &mut topic);
        make_topic(&mut topic);
        let place = *known.entry(topic.clone()).or_insert_with(|| {
            by_topic.push((topic.clone(), Vec::new()));
            by_topic.len() - 1
        });
        by_topic[place].1.push(*row);
    }
    let plain = plain(batch.rows())?;
    let mut made = Vec::new();
    for (topic, rows) in by_topic {
        // The last one first, so that they come out in their order.
        let mut open: Vec<Vec<usize>> =
            rows.chunks(bounds.rows.max(1)).rev().map(<[usize]>::to_vec).collect();
        while let Some(rows) = open.pop() {
            let payload = encode(&plain, &rows)?;
            if bounds.bytes < payload.len() && rows.len() > 1 {
                let (first, second) = rows.split_at(rows.len() / 2);
                open.extend([second.to_vec(), first.to_vec()]);
                continue;
            }
            made.push(Message { rows, topic: topic.clone(), payload });
        }
    }
    Ok(made)
}

fn encode(rows: &RecordBatch, wanted: &[usize]) -> Result<Vec<u8>, ArrowError> {
    // A batch has fewer rows than a `u32` counts.
    let places: UInt32Array = wanted.iter().map(|row| Some(*row as u32)).collect();
    let rows = match rows.num_columns() {
        0 => RecordBatch::try_new_with_options(
            rows.schema(),
            Vec::new(),
            &RecordBatchOptions::new().with_row_count(Some(wanted.len())),
        )?,
        _ => take_record_batch(rows, &places)?,
    };
    let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema())?;
    writer.write(&rows)?;
    writer.into_inner()
}

/// The rows in types that every reader of Arrow knows, and that do not hold on to what they are views of.
fn plain(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let fields: Fields = schema.fields().iter().map(|field| plain_field(field)).collect();
    let columns = rows
        .columns()
        .iter()
        .zip(&fields)
        .map(|(column, field)| cast(column, field.data_type()))
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    RecordBatch::try_new_with_options(schema.into(), columns, &options)
}

fn plain_field(field: &Field) -> Field {
    let plain = match field.data_type() {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(item) => DataType::List(plain_field(item).into()),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|field| plain_field(field)).collect()),
        other => other.clone(),
    };
    field.clone().with_data_type(plain)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray as _;
    use arrow::ipc::reader::StreamReader;

    use super::super::super::fixtures::events;
    use super::*;

    #[test]
    fn messages_keep_their_bound_and_rows_their_order() {
        let long = "x".repeat(1000);
        let rows: Vec<(u64, Option<&str>, &str)> =
            (0..100).map(|n| (n, Some([long.as_str(), "b"][n as usize % 2]), "{}")).collect();
        let batch = events(&rows);
        let all: Vec<usize> = (0..100).collect();
        let constant = Text::parse("t").unwrap();
        let bounds = Bounds { bytes: 10_000, rows: usize::MAX };
        let made = messages(&batch, &all, &constant, bounds).unwrap();
        assert!(made.len() > 5 && made.iter().all(|message| message.payload.len() <= bounds.bytes));
        assert_eq!(made.iter().flat_map(|message| message.rows.clone()).collect::<Vec<_>>(), all);
        let read: Vec<RecordBatch> =
            StreamReader::try_new(made[0].payload.as_slice(), None).unwrap().map(Result::unwrap).collect();
        assert_eq!(read[0].column(1).as_string::<i32>().value(0), long);
        // By topic, and where a row alone is larger than the bound.
        let by_tenant = Text::parse("{tenant}").unwrap();
        let made = messages(&batch, &[0, 1, 3], &by_tenant, Bounds { bytes: 10, rows: usize::MAX }).unwrap();
        let shown: Vec<_> = made.iter().map(|m| (m.topic.len(), m.rows.clone())).collect();
        assert_eq!(shown, [(249, vec![0]), (1, vec![1]), (1, vec![3])]);
        let made = messages(&batch, &all, &constant, Bounds { bytes: usize::MAX, rows: 30 }).unwrap();
        assert_eq!(made.iter().map(|message| message.rows.len()).collect::<Vec<_>>(), [30, 30, 30, 10]);
    }
}
