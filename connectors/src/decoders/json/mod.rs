//! The `json` decoder: one JSON object per message.
//!
//! ```text
//! message ─► scan: predicted keys, straight to columns ──────────────────► batch
//!              │ anything that it does not like
//!              └─► parse: simd-json tape ─► level: members to columns ─► column
//!                                            (scalar: exact numbers, times, addresses)
//! ```
//!
//! Both paths see every message in full, so a row that leaves is valid JSON whatever the pipeline reads of it. The
//! general path, with simd-json, decides and gives the reasons; the scan must agree with it on every message and every
//! value, which tests and fuzzing compare.

#[cfg(test)]
mod agreement;
mod column;
mod grammar;
mod keys;
mod lanes;
mod level;
mod parse;
mod scalar;
mod scan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BinaryViewArray, RecordBatch, RecordBatchOptions, UInt64Array, make_view};
use arrow::datatypes::SchemaRef;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Chunk, Layout, Origin, Reject, RowSchema, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use self::grammar::Text;
use self::lanes::Stops;
use self::level::{Level, Row};
use self::parse::Parser;
use self::scan::Strings;
use crate::decoder::{Decoded, Decoder, DecoderConfig, Demand};
use crate::decoders::views::Arena;
use crate::document::scan::skip_space;

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

impl Json {
    /// The decoder without its fast path: what that is compared with.
    #[doc(hidden)]
    #[must_use]
    pub fn general(demand: &Demand) -> Box<dyn Decoder> {
        Box::new(JsonDecoder { scans: false, ..JsonDecoder::new(&demand.schema) })
    }
}

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

/// Working memory above this is given back after the chunk that needed it.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// How many bytes are looked at ahead: enough to make the calls cheap, few enough to be still in the cache when they
/// are scanned.
const AHEAD_BYTES: usize = 32 << 10;

struct JsonDecoder {
    schema: SchemaRef,
    layout: Arc<Layout>,
    parser: Parser,
    root: Level,
    /// Whether messages are scanned before they are parsed.
    scans: bool,
    ahead: Ahead,
    /// Memory for strings without their escapes.
    scratch: String,
}

/// One message, and where it lies in its chunk.
#[derive(Clone, Copy)]
struct Message<'a> {
    chunk: &'a [u8],
    start: usize,
    end: usize,
}

/// What is found out about many messages at once, ahead of the scan: that they are UTF-8, and where strings stop.
#[derive(Default)]
struct Ahead {
    stops: Stops,
    /// Before this message they are looked at one by one, because one of them is not UTF-8.
    single_until: usize,
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
            scans: true,
            ahead: Ahead::default(),
            scratch: String::new(),
        }
    }

    /// Appends a message, which is UTF-8, to the columns, or part of it if the scan does not like it.
    fn scan(&mut self, message: Message<'_>, arena: &mut Arena) -> Option<()> {
        let Message { chunk, start, end } = message;
        let text = Text { bytes: chunk, stops: self.ahead.stops.bits(), end };
        let mut strings = Strings { arena, scratch: &mut self.scratch };
        let behind = self.root.scan(&text, &mut strings, start, 1)?;
        (behind <= end && skip_space(&chunk[..end], behind) == end).then_some(())
    }

    /// Appends a message to the columns, or part of it if it fails.
    fn parse(&mut self, message: Message<'_>, arena: &mut Arena) -> Result<(), Failure> {
        let text = message.text();
        if skip_space(text, 0) == text.len() {
            return Err(Failure::new("empty", "nothing but white space"));
        }
        let root = &mut self.root;
        self.parser.parse(text, |parsed| root.append_message(&mut Row::new(&parsed, message.start, arena)))
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
        self.ahead.single_until = 0;
        self.root.reserve(n_messages);
        for (idx, offset) in chunk.offsets.iter().enumerate() {
            let message = Message::of(chunk, idx);
            let n_rows = accepted.offsets.len();
            let scanned = self.scans
                && self.ahead.is_utf8(chunk, idx, &mut arena)
                && self.scan(message, &mut arena).is_some();
            if !scanned {
                self.root.truncate(n_rows);
                if let Err(failure) = self.parse(message, &mut arena) {
                    self.root.truncate(n_rows);
                    rejects.push(Reject { idx, reason: failure.to_string() });
                    continue;
                }
            }
            accepted.originals.push(make_view(message.text(), 0, message.start as u32));
            accepted.offsets.push(*offset);
        }
        self.parser.shrink();
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_BYTES_MAX);
        self.ahead.stops.shrink(SCRATCH_BYTES_MAX);
        Decoded { rows: self.batch(chunk, accepted, arena), rejects: reject::of_chunk(chunk, &rejects) }
    }
}

impl<'a> Message<'a> {
    /// Message `idx` of `chunk`, without a byte order mark.
    fn of(chunk: &'a Chunk, idx: usize) -> Self {
        let range = chunk.messages[idx];
        let (mut start, end) = (range.start as usize, (range.start + range.len) as usize);
        let data = chunk.data.as_slice();
        if data[start..end].starts_with(BYTE_ORDER_MARK) {
            start += BYTE_ORDER_MARK.len();
        }
        Self { chunk: data, start, end }
    }

    fn text(&self) -> &'a [u8] {
        &self.chunk[self.start..self.end]
    }
}

impl Ahead {
    /// Whether message `idx` is UTF-8, as far as its first and last character are whole.
    #[inline]
    fn is_utf8(&mut self, chunk: &Chunk, idx: usize, arena: &mut Arena) -> bool {
        let range = |idx: usize| {
            let range = chunk.messages[idx];
            range.start as usize..(range.start + range.len) as usize
        };
        let message = range(idx);
        if arena.is_checked(message.clone()) {
            return true;
        }
        if self.single_until <= idx {
            let (mut last, mut end) = (idx, message.end);
            while end < message.start + AHEAD_BYTES && last + 1 < chunk.messages.len() {
                let next = range(last + 1);
                if next.start < end {
                    break;
                }
                (last, end) = (last + 1, next.end);
            }
            if self.look_at(chunk, message.start..end, arena) {
                return true;
            }
            self.single_until = last + 1;
        }
        self.look_at(chunk, message, arena)
    }

    fn look_at(&mut self, chunk: &Chunk, range: Range<usize>, arena: &mut Arena) -> bool {
        let valid = arena.check_utf8(range.clone());
        if valid {
            self.stops.find(chunk.data.as_slice(), range);
        }
        valid
    }
}
