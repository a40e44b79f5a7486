//! What is known of a message beside its bytes, as columns: for `metadata: NAME`.

use std::sync::Arc;

use arrow::array::builder::StringViewBuilder;
use arrow::array::{ArrayRef, Int64Array, StringViewArray, StructArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Fields};
use logdrive_schemas::{FieldType, RowSchema};
use rdkafka::Message;
use rdkafka::message::Headers as _;

/// The fields of the object column; `headers` names the headers that are kept, if any are.
pub(super) fn fields(headers: &[String]) -> Vec<(String, FieldType)> {
    let headers: Vec<_> = headers.iter().map(|name| (name.clone(), FieldType::String)).collect();
    let mut fields = vec![
        ("topic".into(), FieldType::String),
        ("partition".into(), FieldType::Int64),
        ("offset".into(), FieldType::Int64),
        ("key".into(), FieldType::String),
        ("timestamp".into(), FieldType::Timestamp),
    ];
    if !headers.is_empty() {
        fields.push(("headers".into(), FieldType::Object(headers)));
    }
    fields
}

/// The columns of all chunks of a source.
#[derive(Debug)]
pub(super) struct Columns {
    fields: Fields,
    header_fields: Fields,
}

impl Columns {
    pub(super) fn new(headers: &[String]) -> Arc<Self> {
        let of = |fields: Vec<(String, FieldType)>| match FieldType::Object(fields).field("").data_type() {
            DataType::Struct(fields) => fields.clone(),
            _ => Fields::empty(),
        };
        let header_fields = of(headers.iter().map(|name| (name.clone(), FieldType::String)).collect());
        Arc::new(Self { fields: of(fields(headers)), header_fields })
    }
}

/// What is known of the messages of one chunk.
pub(super) struct Attributes {
    columns: Arc<Columns>,
    keys: StringViewBuilder,
    timestamps: Vec<Option<i64>>,
    headers: Vec<StringViewBuilder>,
}

impl Attributes {
    pub(super) fn new(columns: &Arc<Columns>) -> Self {
        Self {
            columns: Arc::clone(columns),
            keys: StringViewBuilder::new(),
            timestamps: Vec::new(),
            headers: columns.header_fields.iter().map(|_| StringViewBuilder::new()).collect(),
        }
    }

    /// Takes note of a message; returns how many bytes that took.
    pub(super) fn push(&mut self, message: &impl Message) -> usize {
        let mut n_bytes = 32;
        let mut append = |builder: &mut StringViewBuilder, value: Option<&[u8]>| {
            n_bytes += value.map_or(0, <[u8]>::len);
            builder.append_option(value.map(String::from_utf8_lossy));
        };
        append(&mut self.keys, message.key());
        self.timestamps.push(message.timestamp().to_millis().map(|millis| millis.saturating_mul(1000)));
        for (field, builder) in self.columns.header_fields.iter().zip(&mut self.headers) {
            // Of several with one name the last one counts.
            let last = message.headers().and_then(|headers| {
                headers
                    .iter()
                    .filter(|header| header.key == field.name())
                    .last()
                    .and_then(|header| header.value)
            });
            append(builder, last);
        }
        n_bytes
    }

    /// One row per message; `peer` is `topic/partition`.
    pub(super) fn finish(mut self, peer: &str, offsets: &[u64]) -> StructArray {
        let (topic, partition) = peer.rsplit_once('/').unwrap_or((peer, "0"));
        let (n_rows, partition) = (offsets.len(), partition.parse().unwrap_or(0));
        let topic: StringViewArray = std::iter::repeat_n(Some(topic), n_rows).collect();
        let offsets = offsets.iter().map(|offset| i64::try_from(*offset).ok());
        let timestamps = TimestampMicrosecondArray::from_iter(self.timestamps).with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(topic),
            Arc::new(Int64Array::from_value(partition, n_rows)),
            Arc::new(offsets.collect::<Int64Array>()),
            Arc::new(self.keys.finish()),
            Arc::new(timestamps),
        ];
        if !self.headers.is_empty() {
            let headers = self.headers.iter_mut().map(|builder| Arc::new(builder.finish()) as ArrayRef);
            let headers = StructArray::new(self.columns.header_fields.clone(), headers.collect(), None);
            columns.push(Arc::new(headers));
        }
        StructArray::new(self.columns.fields.clone(), columns, None)
    }
}

/// The schema of the object column.
pub(super) fn schema(headers: &[String]) -> RowSchema {
    RowSchema::of_fields(fields(headers))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

    #[test]
    fn a_row_says_what_the_message_says() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "trace", value: Some("t1") })
            .insert(Header { key: "other", value: Some("x") })
            .insert(Header { key: "trace", value: Some("t2") });
        let message = |key: Option<&[u8]>, time, headers| {
            OwnedMessage::new(None, key.map(<[u8]>::to_vec), "a/b".into(), time, 3, 7, headers)
        };
        let mut attributes = Attributes::new(&Columns::new(&["trace".into(), "none".into()]));
        attributes.push(&message(Some(b"k\xff"), Timestamp::CreateTime(1500), Some(headers)));
        attributes.push(&message(None, Timestamp::NotAvailable, None));
        let rows = attributes.finish("a/b/3", &[7, 9]);
        let text = |name: &str| rows.column_by_name(name).unwrap().as_string_view().clone();
        assert_eq!(text("topic").iter().collect::<Vec<_>>(), [Some("a/b"); 2]);
        assert_eq!(text("key").iter().collect::<Vec<_>>(), [Some("k\u{fffd}"), None]);
        let number =
            |name: &str| rows.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec();
        assert_eq!((number("partition"), number("offset")), (vec![3, 3], vec![7, 9]));
        let times = rows.column_by_name("timestamp").unwrap().as_primitive::<TimestampMicrosecondType>();
        assert_eq!(times.iter().collect::<Vec<_>>(), [Some(1_500_000), None]);
        let headers = rows.column_by_name("headers").unwrap().as_struct();
        assert_eq!(headers.column(0).as_string_view().iter().collect::<Vec<_>>(), [Some("t2"), None]);
        assert_eq!(headers.column(1).null_count(), 2);
        let expected = schema(&["trace".into(), "none".into()]);
        let expected = FieldType::Object(expected.fields).field("kafka");
        assert_eq!(rows.data_type(), expected.data_type(), "what the plan expects");
    }

    #[test]
    fn no_header_need_be_kept() {
        let mut attributes = Attributes::new(&Columns::new(&[]));
        attributes.push(&OwnedMessage::new(None, None, "t".into(), Timestamp::NotAvailable, 0, 0, None));
        assert_eq!(attributes.finish("t/0", &[0]).len(), 1);
    }
}
