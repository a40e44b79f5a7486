//! The `json` decoder: one JSON object per message.
//!
//! ```text
//! message ─► parse: simd-json tape ─► level: members to columns ─► column ─► batch
//!                                      (scalar: exact numbers, times, addresses)
//! ```
//!
//! simd-json sees every message in full, so a row that leaves is valid JSON whatever the pipeline reads of it. This is
//! the general path: a faster one that predicts a line's shape may come before it, must agree with it on every
//! message, and hands it what it does not like.

mod column;
mod level;
mod parse;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use arrow::array::{BinaryViewArray, RecordBatch, RecordBatchOptions, UInt64Array, make_view};
use arrow::datatypes::SchemaRef;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Chunk, Layout, Origin, Reject, RowSchema, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use self::level::{Level, Row};
use self::parse::Parser;
use crate::decoder::{Decoded, Decoder, DecoderConfig, Demand};
use crate::decoders::views::Arena;
use crate::document::scan;

/// Decodes one JSON object per message into the fields that the pipeline reads.
///
/// What a field of a type accepts:
///
/// | type | accepted | anything else |
/// |---|---|---|
/// | any | a missing member and `null` are null | |
/// | `string` | every value: a string without its escapes, all else as its JSON text | |
/// | `int64` | a number that is integral (`1`, `1.0`, `1e3`) and fits | `number_out_of_range`, `wrong_type` |
/// | `float64` | a number with a finite nearest float | `number_out_of_range`, `wrong_type` |
/// | `decimal(p,s)` | a number, or a string of one, that needs no rounding | `number_out_of_range`, `wrong_type` |
/// | `boolean` | `true`, `false` | `wrong_type` |
/// | `timestamp` | RFC 3339 or ISO 8601 text (no zone means UTC, a date alone and a space for the `T` are allowed, digits below the microsecond are cut off), or an integral number: milliseconds since the Unix epoch | `number_out_of_range`, `wrong_type` |
/// | `ip` | text of an IPv4 or IPv6 address, kept as it is | `wrong_type` |
/// | `geo_point` | `{"lat": …, "lon": …}`, `[lon, lat]`, `"lat,lon"`, within ±90 and ±180 | `number_out_of_range`, `wrong_type` |
/// | `list<T>` | an array of what `T` accepts; a single such value is a list of one | as `T` |
/// | a map | an object; members that are not declared are passed over | `wrong_type` |
///
/// A message that does not decode is a reject; its reason begins with one of these codes, or those of the table:
///
/// - `empty`: no bytes but white space.
/// - `invalid_utf8`: not UTF-8.
/// - `invalid_json`: not JSON as RFC 8259 defines it, or with a `\u` escape that is half a surrogate pair.
/// - `not_an_object`: JSON, but an array, a string, a number or a literal.
/// - `too_deep`: nested more than 64 deep.
/// - `duplicate_key`: a field that the pipeline reads is there twice. Other duplicates pass.
///
/// A byte order mark at the start of a message is taken off. Numbers in fields that the pipeline does not read may have
/// any size. NUL characters in strings (`\u0000`) pass.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Json {}

impl Component for Json {
    const NAME: &'static str = "json";
    const EXAMPLE: &'static str = "type: json";
}

impl DecoderConfig for Json {
    fn default_schema(&self) -> RowSchema {
        RowSchema::of_fields(Vec::new())
    }

    fn build(self, demand: &Demand) -> Result<Box<dyn Decoder>, ConfigError> {
        Ok(Box::new(JsonDecoder::new(&demand.schema)))
    }
}

/// Why a message is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    /// Stable.
    code: &'static str,
    /// The field at fault, from the top; empty if it is the message.
    path: String,
    /// For a human; with a path, what follows "the field …".
    explanation: String,
}

impl Failure {
    #[cold]
    fn new(code: &'static str, explanation: impl Into<String>) -> Self {
        Self { code, path: String::new(), explanation: explanation.into() }
    }

    /// The same failure, seen from the object that contains `name`.
    #[cold]
    fn within(mut self, name: &str) -> Self {
        self.path = if self.path.is_empty() { name.into() } else { format!("{name}.{}", self.path) };
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}: {}", self.code, self.explanation)
        } else {
            write!(f, "{}: `{}` {}", self.code, self.path, self.explanation)
        }
    }
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

struct JsonDecoder {
    schema: SchemaRef,
    layout: Arc<Layout>,
    parser: Parser,
    root: Level,
}

/// The messages that became rows: the views of their originals, and their offsets.
struct Accepted {
    originals: Vec<u128>,
    offsets: Vec<u64>,
}

impl JsonDecoder {
    fn new(schema: &RowSchema) -> Self {
        Self {
            schema: schema.arrow(),
            layout: Arc::new(Layout::Original(Vec::new())),
            parser: Parser::default(),
            root: Level::new(&schema.fields),
        }
    }

    /// Appends the message at `start` to the columns, or part of it if it fails.
    fn append(&mut self, message: &[u8], start: usize, arena: &mut Arena) -> Result<(), Failure> {
        if scan::skip_space(message, 0) == message.len() {
            return Err(Failure::new("empty", "nothing but white space"));
        }
        let root = &mut self.root;
        self.parser.parse(message, |parsed| root.append_message(&mut Row::new(&parsed, start, arena)))
    }

    /// Makes a batch of what was appended.
    fn batch(&mut self, chunk: &Chunk, accepted: Accepted, arena: Arena) -> Option<Batch> {
        let columns = self.root.finish(self.schema.fields(), &arena.finish());
        let options = RecordBatchOptions::new().with_row_count(Some(accepted.offsets.len()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .expect("the columns are of this schema, with one value per accepted message");
        let original = BinaryViewArray::try_new(accepted.originals.into(), vec![chunk.data.clone()], None)
            .expect("the views are ranges of the chunk");
        let origin = Arc::new(Origin::of_chunk(chunk));
        Batch::new(rows, original, UInt64Array::from(accepted.offsets), origin, Arc::clone(&self.layout))
    }
}

impl Decoder for JsonDecoder {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decode(&mut self, chunk: &Chunk) -> Decoded {
        let n_messages = chunk.messages.len();
        let mut accepted =
            Accepted { originals: Vec::with_capacity(n_messages), offsets: Vec::with_capacity(n_messages) };
        let mut rejects = Vec::new();
        let mut arena = Arena::new(chunk.data.clone());
        for (idx, range) in chunk.messages.iter().enumerate() {
            let (mut message, mut start) = (chunk.message(idx), range.start);
            if let Some(rest) = message.strip_prefix(BYTE_ORDER_MARK) {
                (message, start) = (rest, start + BYTE_ORDER_MARK.len() as u32);
            }
            match self.append(message, start as usize, &mut arena) {
                Ok(()) => {
                    accepted.originals.push(make_view(message, 0, start));
                    accepted.offsets.push(chunk.offsets[idx]);
                }
                Err(failure) => {
                    self.root.truncate(accepted.offsets.len());
                    rejects.push(Reject { idx, reason: failure.to_string() });
                }
            }
        }
        self.parser.shrink();
        Decoded { rows: self.batch(chunk, accepted, arena), rejects: reject::of_chunk(chunk, &rejects) }
    }
}
