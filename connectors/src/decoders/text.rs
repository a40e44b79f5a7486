//! The `text` decoder: one row per message, with the message in it.

use std::str;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt64Array,
    make_view,
};
use arrow::datatypes::SchemaRef;
use logdrive_schemas::component::{Component, ConfigError, Span};
use logdrive_schemas::{Batch, Chunk, FieldType, Layout, Origin, Reject, RowSchema, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::decoder::{Decoded, Decoder, DecoderConfig, Demand};
use crate::decoders::views::{Arena, View};

/// What to do with a message that is not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CharsetErrors {
    /// It is a reject (`invalid_utf8`).
    #[default]
    Reject,
    /// What is not UTF-8 becomes U+FFFD, the replacement character. The exact bytes are lost to the sinks.
    Replace,
}

/// Takes each message as text, whatever is in it: one row with the text, and when it was received.
///
/// An empty message is a row with an empty text. A message that is not UTF-8 is a reject with the reason
/// `invalid_utf8`, unless `charset_errors` says otherwise.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The field that the text goes to.
    #[serde(default = "Text::field_default")]
    field: String,
    /// What to do with a message that is not UTF-8: `reject` or `replace`.
    #[serde(default)]
    charset_errors: CharsetErrors,
}

impl Text {
    fn field_default() -> String {
        "message".into()
    }
}

impl Component for Text {
    const NAME: &'static str = "text";
    const EXAMPLE: &'static str = "type: text\nfield: message\ncharset_errors: replace";
}

impl DecoderConfig for Text {
    fn default_schema(&self) -> RowSchema {
        RowSchema::of_fields(vec![
            (RowSchema::EVENT_TIME.into(), FieldType::Timestamp),
            (self.field.clone(), FieldType::String),
        ])
    }

    fn build(self, demand: &Demand) -> Result<Box<dyn Decoder>, ConfigError> {
        let columns = demand
            .schema
            .fields
            .iter()
            .map(|(name, field_type)| match field_type {
                FieldType::String if *name == self.field => Ok(TextColumn::Message),
                FieldType::Timestamp if *name == demand.schema.event_time => Ok(TextColumn::ReceivedAt),
                _ => Err(ConfigError::new(
                    "config::schema_mismatch",
                    Span::default(),
                    format!("the `text` decoder cannot fill the field `{name}`"),
                )
                .with_help(format!(
                    "it has `{}: string` and `{}: timestamp`, when the message was received",
                    self.field, demand.schema.event_time
                ))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Box::new(TextDecoder {
            schema: demand.schema.arrow(),
            columns,
            charset_errors: self.charset_errors,
            layout: Arc::new(Layout::Columns),
        }))
    }
}

enum TextColumn {
    Message,
    ReceivedAt,
}

struct TextDecoder {
    schema: SchemaRef,
    columns: Vec<TextColumn>,
    charset_errors: CharsetErrors,
    layout: Arc<Layout>,
}

/// The messages that became rows.
#[derive(Default)]
struct Rows {
    texts: Vec<View>,
    originals: Vec<u128>,
    offsets: Vec<u64>,
}

impl TextDecoder {
    fn batch(&self, chunk: &Chunk, rows: Rows, arena: Arena) -> Option<Batch> {
        let n_rows = rows.offsets.len();
        let texts: ArrayRef = Arc::new(arena.finish().string_view_array(rows.texts, None));
        let columns = self
            .columns
            .iter()
            .map(|column| match column {
                TextColumn::Message => Arc::clone(&texts),
                TextColumn::ReceivedAt => {
                    let times = TimestampMicrosecondArray::from_value(chunk.received_at, n_rows);
                    Arc::new(times.with_timezone("UTC")) as ArrayRef
                }
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .expect("`build` has checked that the columns are of this schema");
        let original = BinaryViewArray::try_new(rows.originals.into(), vec![chunk.data.clone()], None)
            .expect("the views are ranges of the chunk");
        let origin = Arc::new(Origin::of_chunk(chunk));
        Batch::new(batch, original, UInt64Array::from(rows.offsets), origin, Arc::clone(&self.layout))
    }
}

impl Decoder for TextDecoder {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn layout(&self) -> Layout {
        Layout::Columns
    }

    fn decode(&mut self, chunk: &Chunk) -> Decoded {
        let mut arena = Arena::new(chunk.data.clone());
        let mut rows = Rows::default();
        let mut rejects = Vec::new();
        for (idx, range) in chunk.messages.iter().enumerate() {
            let message = chunk.message(idx);
            let text = match (simdutf8::basic::from_utf8(message), self.charset_errors) {
                (Ok(text), _) => arena.view(text, range.start as usize),
                (Err(_), CharsetErrors::Replace) => arena.copy(&String::from_utf8_lossy(message)),
                (Err(_), CharsetErrors::Reject) => {
                    let valid = str::from_utf8(message).map_or_else(|e| e.valid_up_to(), str::len);
                    rejects.push(Reject { idx, reason: format!("invalid_utf8: no UTF-8 at byte {valid}") });
                    continue;
                }
            };
            rows.texts.push(text);
            rows.originals.push(make_view(message, 0, range.start));
            rows.offsets.push(chunk.offsets[idx]);
        }
        Decoded { rows: self.batch(chunk, rows, arena), rejects: reject::of_chunk(chunk, &rejects) }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::buffer::Buffer;
    use arrow::datatypes::TimestampMicrosecondType;
    use logdrive_schemas::{MessageRange, Partition};

    use super::*;

    fn chunk() -> Chunk {
        Chunk {
            source: "test".into(),
            partition: Partition(1),
            data: Buffer::from(&b"a message of some length\nbad \xff byte in a message\n\nlast"[..]),
            messages: [(0, 24), (25, 23), (49, 0), (50, 4)]
                .map(|(start, len)| MessageRange { start, len })
                .to_vec(),
            offsets: vec![10, 20, 30, 40],
            received_at: 1_700_000_000_000_000,
            peer: None,
            attributes: None,
            next_offset: 50,
        }
    }

    fn decoder(charset_errors: CharsetErrors) -> Box<dyn Decoder> {
        let config = Text { field: "line".into(), charset_errors };
        let demand = Demand { schema: config.default_schema(), validate: true };
        config.build(&demand).unwrap()
    }

    fn decode(charset_errors: CharsetErrors) -> Decoded {
        decoder(charset_errors).decode(&chunk())
    }

    fn lines(batch: &Batch) -> Vec<&str> {
        batch.rows().column_by_name("line").unwrap().as_string_view().iter().flatten().collect()
    }

    #[test]
    fn messages_become_rows_with_their_time() {
        let decoded = decode(CharsetErrors::Reject);
        let rows = decoded.rows.unwrap();
        assert_eq!(**rows.layout(), decoder(CharsetErrors::Reject).layout(), "the plan relies on it");
        assert_eq!(lines(&rows), ["a message of some length", "", "last"]);
        assert_eq!(rows.offsets().values(), &[10, 30, 40]);
        let times = rows.rows().column(0).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(times.values(), &[1_700_000_000_000_000; 3]);
        let rejects = decoded.rejects.unwrap();
        assert_eq!(rejects.offsets().values(), &[20]);
        assert_eq!(rejects.rows().column(0).as_string_view().value(0), "invalid_utf8: no UTF-8 at byte 4");
    }

    #[test]
    fn what_is_not_utf8_can_be_replaced() {
        let decoded = decode(CharsetErrors::Replace);
        assert!(decoded.rejects.is_none());
        let rows = decoded.rows.unwrap();
        assert_eq!(lines(&rows)[1], "bad \u{fffd} byte in a message");
        assert_eq!(rows.original().value(1), b"bad \xff byte in a message");
        rows.rows().column(1).to_data().validate_full().unwrap();
    }

    #[test]
    fn a_schema_that_does_not_fit_is_an_error() {
        let config = Text { field: "message".into(), charset_errors: CharsetErrors::Reject };
        let schema = RowSchema::of_fields(vec![("level".into(), FieldType::String)]);
        let error = config.build(&Demand { schema, validate: true }).err().unwrap();
        assert_eq!(error.code, "config::schema_mismatch");
        assert!(error.message.contains("`level`"), "{error}");
    }
}
