//! The loop that decoders of text have in common: every message of a chunk is a row or a reject.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{BinaryViewArray, RecordBatch, RecordBatchOptions, UInt64Array, make_view};
use arrow::datatypes::SchemaRef;
use logdrive_schemas::{Batch, Chunk, Layout, Origin, Reject, reject};

use super::columns::Columns;
use super::text::CharsetErrors;
use super::views::Arena;
use crate::decoder::Decoded;

/// A message may be written to the side buffer several times, each time with escapes that lengthen it.
const GROWTH_MAX: usize = 16;

/// Why a message is rejected: `code: explanation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    /// A stable code, and words for a human.
    #[cold]
    pub(crate) fn new(code: &str, explanation: impl AsRef<str>) -> Self {
        Self(format!("{code}: {}", explanation.as_ref()))
    }
}

/// Where the fields of a message go.
pub(crate) struct Row<'a> {
    /// The columns.
    pub(crate) columns: &'a mut Columns,
    /// What views are made with.
    pub(crate) arena: &'a mut Arena,
}

impl Row<'_> {
    /// The row's value of a text column.
    #[inline]
    pub(crate) fn text(&mut self, column: usize, text: &str) {
        let view = self.arena.view_of(text);
        self.columns.texts[column].push(view);
    }
}

/// Decodes a chunk: `parse` pushes what a message has to the row, or says why it cannot.
pub(crate) fn decode(
    chunk: &Chunk,
    schema: &SchemaRef,
    columns: &mut Columns,
    charset_errors: CharsetErrors,
    mut parse: impl FnMut(&str, &mut Row<'_>) -> Result<(), Failure>,
) -> Decoded {
    let n_messages = chunk.messages.len();
    let mut originals = Vec::with_capacity(n_messages);
    let mut offsets = Vec::with_capacity(n_messages);
    let mut rejects = Vec::new();
    let mut arena = Arena::new(chunk.data.clone());
    // One pass over all messages is cheaper than many short ones.
    let whole = simdutf8::basic::from_utf8(chunk.data.as_slice()).ok();
    columns.reserve(n_messages);
    for (idx, range) in chunk.messages.iter().enumerate() {
        let message = chunk.message(idx);
        let (start, end) = (range.start as usize, range.start as usize + message.len());
        let text = match whole.and_then(|whole| whole.get(start..end)) {
            Some(text) => Ok(Cow::Borrowed(text)),
            None => as_text(message, charset_errors),
        };
        let result = text.and_then(|text| {
            if arena.copied() + text.len().saturating_mul(GROWTH_MAX) > u32::MAX as usize {
                return Err(Failure::new("chunk_too_large", "escapes of more than 4 GiB in one chunk"));
            }
            parse(&text, &mut Row { columns, arena: &mut arena })
        });
        match result {
            Ok(()) => {
                columns.end_row();
                originals.push(make_view(message, 0, range.start));
                offsets.push(chunk.offsets[idx]);
            }
            Err(Failure(reason)) => {
                columns.drop_row();
                rejects.push(Reject { idx, reason });
            }
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(offsets.len()));
    let arrays = columns.finish(schema.fields(), &arena.finish(), chunk.received_at);
    let rows = RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
        .expect("the columns are of this schema, with one value per row");
    let original = BinaryViewArray::try_new(originals.into(), vec![chunk.data.clone()], None)
        .expect("the views are ranges of the chunk");
    let origin = Arc::new(Origin::of_chunk(chunk));
    let rows = Batch::new(rows, original, UInt64Array::from(offsets), origin, Arc::new(Layout::Columns));
    Decoded { rows, rejects: reject::of_chunk(chunk, &rejects) }
}

#[cold]
fn as_text(message: &[u8], charset_errors: CharsetErrors) -> Result<Cow<'_, str>, Failure> {
    match (std::str::from_utf8(message), charset_errors) {
        (Ok(text), _) => Ok(Cow::Borrowed(text)),
        (Err(_), CharsetErrors::Replace) => Ok(String::from_utf8_lossy(message)),
        (Err(e), CharsetErrors::Reject) => {
            Err(Failure::new("invalid_utf8", format!("no UTF-8 at byte {}", e.valid_up_to())))
        }
    }
}

/// What the tests of these decoders share.
#[cfg(test)]
pub(crate) mod testing {
    use arrow::array::AsArray;
    use arrow::buffer::Buffer;
    use logdrive_schemas::component::{self, ConfigError, Limits, Node};
    use logdrive_schemas::{FieldType, MessageRange, Partition, RowSchema};
    use serde_json::Value;

    use super::*;
    use crate::decoder::{Decoder, DecoderConfig, Demand};
    use crate::decoders::columns::add_field;
    use crate::document::Documents;

    /// A chunk of these messages, with a line break between them.
    pub(crate) fn chunk(messages: &[impl AsRef<[u8]>]) -> Chunk {
        let mut data = Vec::new();
        let mut ranges = Vec::new();
        for message in messages {
            let message = message.as_ref();
            ranges.push(MessageRange { start: data.len() as u32, len: message.len() as u32 });
            data.extend_from_slice(message);
            data.push(b'\n');
        }
        Chunk {
            source: "test".into(),
            partition: Partition(1),
            data: Buffer::from_vec(data),
            offsets: (0..ranges.len() as u64).collect(),
            next_offset: ranges.len() as u64,
            messages: ranges,
            // 2024-01-02T03:04:05.5Z
            received_at: 1_704_164_645_500_000,
            peer: None,
            attributes: None,
        }
    }

    /// A decoder's configuration.
    pub(crate) fn config<C: DecoderConfig>(yaml: &str) -> C {
        let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
        let mut errors = Vec::new();
        let config = component::parse(&node, &mut errors);
        config.unwrap_or_else(|| panic!("{errors:?}"))
    }

    /// The decoder without a declared schema.
    pub(crate) fn decoder<C: DecoderConfig>(yaml: &str) -> Box<dyn Decoder> {
        let config = config::<C>(yaml);
        let schema = config.default_schema();
        config.build(&Demand { schema, validate: true }).unwrap()
    }

    /// The decoder with these fields, as paths and types.
    pub(crate) fn with_fields<C: DecoderConfig>(
        yaml: &str,
        fields: &[(&str, &str)],
    ) -> Result<Box<dyn Decoder>, ConfigError> {
        let mut declared = Vec::new();
        for (path, field_type) in fields {
            add_field(&mut declared, path, FieldType::parse(field_type).unwrap());
        }
        config::<C>(yaml).build(&Demand { schema: RowSchema::of_fields(declared), validate: true })
    }

    /// For each message its row as a document, or the reason why it is rejected.
    pub(crate) fn decode_all(
        decoder: &mut dyn Decoder,
        messages: &[impl AsRef<[u8]>],
    ) -> Vec<Result<Value, String>> {
        let decoded = decoder.decode(&chunk(messages));
        let mut all = vec![None; messages.len()];
        if let Some(rows) = &decoded.rows {
            for column in rows.rows().columns() {
                column.to_data().validate_full().unwrap();
            }
            let documents = Documents::new(rows);
            for (idx, offset) in rows.offsets().values().iter().enumerate() {
                let mut out = Vec::new();
                documents.write(idx, &mut out);
                assert_eq!(rows.original().value(idx), messages[*offset as usize].as_ref());
                all[*offset as usize] = Some(Ok(serde_json::from_slice(&out).unwrap()));
            }
        }
        if let Some(rejects) = &decoded.rejects {
            let reasons = rejects.rows().column(0).as_string_view();
            for (idx, offset) in rejects.offsets().values().iter().enumerate() {
                let slot = &mut all[*offset as usize];
                assert!(slot.is_none(), "a message is one or the other");
                *slot = Some(Err(reasons.value(idx).to_owned()));
            }
        }
        all.into_iter().map(|result| result.expect("every message is a row or a reject")).collect()
    }
}
