//! Entries of streams as the server gives them, and as chunks are made of them.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray, StructArray};
use arrow::datatypes::{DataType, Fields};
use logdrive_schemas::{FieldType, Partition};
use redis::Value;
use serde_json::Map;

/// How many bits of an offset count the entries of one millisecond.
const SEQUENCE_BITS: u32 = 20;

/// The identifier of an entry: milliseconds and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId {
    millis: u64,
    sequence: u64,
}

impl EntryId {
    pub(super) const FIRST: Self = Self { millis: 0, sequence: 0 };

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (millis, sequence) = text.split_once('-')?;
        Some(Self { millis: millis.parse().ok()?, sequence: sequence.parse().ok()? })
    }

    /// As an offset, which grows with identifiers; `None` for those that no server gives by itself.
    pub(super) fn offset(self) -> Option<u64> {
        let fits = self.sequence >> SEQUENCE_BITS == 0 && self.millis >> (64 - SEQUENCE_BITS) == 0;
        fits.then_some(self.millis << SEQUENCE_BITS | self.sequence)
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

/// An entry that is to be a message.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    pub(super) message: Vec<u8>,
}

/// Entries of one stream that were received together, ascending.
#[derive(Debug)]
pub(super) struct Lot {
    /// Which stream.
    pub(super) stream: usize,
    /// They were read for the first time, or again, by the source's own consumer. Otherwise under another name, which is
    /// used once.
    pub(super) claimed_as: Option<Arc<str>>,
    pub(super) partition: Partition,
    pub(super) entries: VecDeque<Entry>,
}

/// What a server says of one stream: entries, and the identifiers of those that are pending and were deleted.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) entries: Vec<Entry>,
    pub(super) deleted: Vec<EntryId>,
}

impl Found {
    /// Reads a list of `[id, [name, value, …]]`. What is none is not there: no server says such a thing.
    pub(super) fn read(entries: Value, field: Option<&str>) -> Self {
        let mut found = Self::default();
        for entry in items(entries) {
            let mut parts = items(entry).into_iter();
            let Some(id) = parts.next().and_then(text).and_then(|id| EntryId::parse(&id)) else { continue };
            match parts.next() {
                None | Some(Value::Nil) => found.deleted.push(id),
                Some(fields) => found.entries.push(Entry { id, message: message(fields, field) }),
            }
        }
        found
    }
}

/// The answer to XREADGROUP: streams and their entries.
pub(super) fn streams(answer: Value) -> Vec<(String, Value)> {
    let pairs = match answer {
        Value::Map(pairs) => pairs,
        other => {
            let pair = |pair| {
                let mut parts = items(pair).into_iter();
                Some((parts.next()?, parts.next()?))
            };
            items(other).into_iter().filter_map(pair).collect()
        }
    };
    pairs.into_iter().filter_map(|(name, entries)| Some((text(name)?, entries))).collect()
}

/// The elements of a list; nothing of anything else.
pub(super) fn items(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
        _ => Vec::new(),
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

/// A value as text.
pub(super) fn text(value: Value) -> Option<String> {
    bytes(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn message(fields: Value, field: Option<&str>) -> Vec<u8> {
    let mut parts = items(fields).into_iter().filter_map(bytes);
    let mut pairs = Vec::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        if field.is_some_and(|field| field.as_bytes() == name) {
            return value;
        }
        pairs.push((name, value));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let object: Map<_, _> = pairs.iter().map(|(name, value)| (text(name), text(value).into())).collect();
    serde_json::Value::Object(object).to_string().into_bytes()
}

/// The rows of `metadata`.
pub(super) fn attributes<'a>(keys: impl Iterator<Item = (&'a str, Option<String>)>) -> StructArray {
    let (keys, ids): (Vec<_>, Vec<_>) = keys.unzip();
    let fields = match FieldType::Object(super::fields()).arrow() {
        DataType::Struct(fields) => fields,
        _ => Fields::empty(),
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from_iter_values(keys)),
        Arc::new(ids.into_iter().collect::<StringViewArray>()),
    ];
    StructArray::new(fields, columns, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn offsets_grow_with_identifiers() {
        let offset = |text: &str| EntryId::parse(text).unwrap().offset();
        assert!(offset("1795258800000-0") < offset("1795258800000-1"));
        assert!(offset("1795258800000-1048575") < offset("1795258800001-0"));
        assert_eq!(offset("1-1048576"), None);
        assert_eq!(offset("18446744073709551615-0"), None);
        assert_eq!(EntryId::parse("12"), None);
    }

    #[test]
    fn an_entry_is_a_field_or_all_of_them() {
        let entry = |id: &str, fields: Value| Value::Array(vec![bulk(id), fields]);
        let fields = Value::Array([bulk("a"), bulk("1"), bulk("b"), bulk("{}")].into());
        let all = || Value::Array(vec![entry("5-1", fields.clone()), entry("5-2", Value::Nil), bulk("x")]);
        let found = Found::read(all(), Some("b"));
        assert_eq!((found.entries.len(), found.deleted.len()), (1, 1));
        assert_eq!(found.entries[0].message, b"{}");
        assert_eq!(Found::read(all(), Some("c")).entries[0].message, br#"{"a":"1","b":"{}"}"#);
    }
}
