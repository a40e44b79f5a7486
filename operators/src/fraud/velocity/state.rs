//! Rows of events on their way into and out of checkpoints.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt16Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, UInt64Type};
use logdrive_schemas::chunk::Partition;

use super::events::{Key, MessageId, Row, route};
use crate::flow::shard_of;

/// How many columns there are. All of them make up the key: a row is there or it is not.
pub(super) const N_COLUMNS: usize = 10;

/// The columns of live rows.
pub(super) fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let fields: [(&str, DataType, bool); N_COLUMNS] = [
        ("shard", DataType::UInt16, false),
        ("slice", DataType::Int64, false),
        ("key", DataType::Utf8, false),
        ("at", time.clone(), false),
        ("source", DataType::Utf8, false),
        ("partition", DataType::UInt64, false),
        ("offset", DataType::UInt64, false),
        ("value", DataType::FixedSizeBinary(16), false),
        ("tenant", DataType::Utf8, true),
        ("received_at", time, false),
    ];
    let fields = fields.map(|(name, data_type, nullable)| Field::new(name, data_type, nullable));
    Arc::new(Schema::new(fields.to_vec()))
}

/// Rows with their keys as columns. `slice` is how long a slice of event time is.
pub(super) fn to_batch(rows: &[(Key, Row)], slice: i64) -> RecordBatch {
    let texts = |text: fn(&(Key, Row)) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(text)))
    };
    let numbers = |number: fn(&Row) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, row)| number(row))))
    };
    let times = |time: fn(&Row) -> i64| -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(_, row)| time(row)));
        Arc::new(times.with_timezone("UTC"))
    };
    let values = rows.iter().map(|(_, row)| Some(row.value.to_be_bytes()));
    let values = FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, 16).expect("all have 16 bytes");
    let columns: [ArrayRef; N_COLUMNS] = [
        Arc::new(UInt16Array::from_iter_values(rows.iter().map(|(key, _)| shard_of(route(key))))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, row)| row.at.div_euclid(slice)))),
        texts(|(key, _)| key),
        times(|row| row.at),
        texts(|(_, row)| &row.id.source),
        numbers(|row| row.id.partition.0),
        numbers(|row| row.id.offset),
        Arc::new(values),
        Arc::new(rows.iter().map(|(_, row)| row.tenant.as_deref()).collect::<StringArray>()),
        times(|row| row.received_at),
    ];
    RecordBatch::try_new(schema(), columns.to_vec()).expect("the columns are those of the schema")
}

/// The rows of [`to_batch`].
pub(super) fn from_batch(batch: &RecordBatch) -> impl Iterator<Item = (Key, Row)> {
    let text = |column: usize| batch.column(column).as_string::<i32>();
    let number = |column: usize| batch.column(column).as_primitive::<UInt64Type>();
    let time = |column: usize| batch.column(column).as_primitive::<TimestampMicrosecondType>();
    let (keys, sources, tenants) = (text(2), text(4), text(8));
    let (partitions, offsets) = (number(5), number(6));
    let (times, received) = (time(3), time(9));
    let values = batch.column(7).as_fixed_size_binary();
    (0..batch.num_rows()).map(move |row| {
        let id = MessageId {
            source: sources.value(row).into(),
            partition: Partition(partitions.value(row)),
            offset: offsets.value(row),
        };
        let value = i128::from_be_bytes(values.value(row).try_into().expect("all have 16 bytes"));
        let tenant = tenants.is_valid(row).then(|| tenants.value(row).into());
        let (at, received_at) = (times.value(row), received.value(row));
        (keys.value(row).into(), Row { at, id, value, tenant, received_at })
    })
}
