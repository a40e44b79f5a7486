//! The body of an Elasticsearch `_bulk` request: pairs of an action line and a document line.
//!
//! Documents are never looked into: what they are is the decoder's to say. A line is an action or a document by its
//! place alone, so nothing inside a document can become an action, and no action but `index` and `create` does
//! anything.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use logdrive_schemas::MessageRange;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// The most items that one request may have.
pub const ITEMS_MAX: usize = 100_000;

/// A request that was understood.
#[derive(Debug, Default)]
pub struct Bulk {
    /// The body.
    pub data: Bytes,
    /// The documents to take, byte for byte.
    pub messages: Vec<MessageRange>,
    /// The answer's `items`: JSON, separated by commas.
    pub items: Vec<u8>,
    /// Whether any item failed.
    pub errors: bool,
    /// How many items there are.
    pub n_items: usize,
    /// How many documents were refused because they are too long.
    pub n_too_long: u64,
}

/// A request that is refused as a whole, in Elasticsearch's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BulkError {
    /// The HTTP status.
    pub status: u16,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.reason`.
    pub reason: String,
}

impl BulkError {
    fn illegal(reason: impl Into<String>) -> Self {
        Self { status: 400, kind: "illegal_argument_exception", reason: reason.into() }
    }
}

/// What the answer and the limits depend on.
#[derive(Clone, Copy, Debug)]
pub struct BulkOptions<'a> {
    /// The index in the request's path.
    pub index: Option<&'a str>,
    /// A longer document is refused with status 413.
    pub document_bytes_max: usize,
    /// Whether items carry `_index`, `_id` and `result`, or `status` and `error` only.
    pub full_items: bool,
}

/// Reads a body.
///
/// # Errors
/// If the body is not made of action and document lines, each ended by a newline: nothing is taken then.
pub fn parse(body: BytesMut, options: BulkOptions<'_>) -> Result<Bulk, BulkError> {
    let mut bulk = Bulk { data: body.freeze(), ..Bulk::default() };
    let data = bulk.data.clone();
    if data.is_empty() {
        return Err(BulkError {
            status: 400,
            kind: "parse_exception",
            reason: "request body is required".into(),
        });
    }
    if data.last() != Some(&b'\n') {
        return Err(BulkError::illegal("The bulk request must be terminated by a newline [\\n]"));
    }
    let mut lines = Numbered { text: &data, start: 0, number: 0 };
    while let Some(line) = lines.next() {
        if line.text.is_empty() {
            continue;
        }
        let action = read_action(&line)?;
        let Some(index) = action.index.as_deref().or(options.index).filter(|index| !index.is_empty()) else {
            let reason = "Validation Failed: 1: index is missing;".into();
            return Err(BulkError { status: 400, kind: "action_request_validation_exception", reason });
        };
        bulk.n_items += 1;
        if bulk.n_items > ITEMS_MAX {
            let reason = format!("the request has more than {ITEMS_MAX} items");
            return Err(BulkError { status: 413, kind: "content_too_long_exception", reason });
        }
        let document = match action.operation {
            Operation::Delete => None,
            Operation::Create | Operation::Index | Operation::Update => {
                let missing =
                    || BulkError::illegal(format!("no document behind the action of line [{}]", line.number));
                Some(lines.next().ok_or_else(missing)?)
            }
        };
        let refusal = bulk.take(&action, document.as_ref(), options.document_bytes_max);
        if !bulk.items.is_empty() {
            bulk.items.push(b',');
        }
        write_item(&mut bulk.items, &action, index, refusal.as_ref(), options.full_items);
        bulk.errors |= refusal.is_some();
    }
    if bulk.n_items == 0 {
        let reason = "Validation Failed: 1: no requests added;".into();
        return Err(BulkError { status: 400, kind: "action_request_validation_exception", reason });
    }
    Ok(bulk)
}

/// Why one item is not taken.
struct Refusal {
    status: u16,
    kind: &'static str,
    reason: String,
}

impl Bulk {
    /// Takes an item's document, or says why not.
    fn take(
        &mut self,
        action: &Action<'_>,
        document: Option<&Line<'_>>,
        bytes_max: usize,
    ) -> Option<Refusal> {
        let refusal = |status, kind, reason: &str| Some(Refusal { status, kind, reason: reason.into() });
        let document = match (action.operation, document) {
            (Operation::Create | Operation::Index, Some(document)) => document,
            (operation, _) => {
                let reason = format!("a log is only added to: [{}] is not possible", operation.name());
                return refusal(400, "illegal_argument_exception", &reason);
            }
        };
        if document.text.is_empty() {
            return refusal(400, "document_parsing_exception", "the document is empty");
        }
        if document.text.len() > bytes_max {
            self.n_too_long += 1;
            return refusal(
                413,
                "document_too_large_exception",
                "the document is longer than max_line_bytes",
            );
        }
        self.messages.push(MessageRange { start: document.start as u32, len: document.text.len() as u32 });
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Delete,
    Index,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Index => "index",
            Self::Update => "update",
        }
    }
}

struct Line<'a> {
    text: &'a [u8],
    /// Where it begins in the body.
    start: usize,
    /// Counted from 1, as Elasticsearch does.
    number: usize,
}

/// The lines of a text whose last byte is a newline.
struct Numbered<'a> {
    text: &'a [u8],
    start: usize,
    number: usize,
}

impl<'a> Iterator for Numbered<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = &self.text[self.start..];
        let newline = memchr::memchr(b'\n', rest)?;
        let text = rest[..newline].strip_suffix(b"\r").unwrap_or(&rest[..newline]);
        let line = Line { text, start: self.start, number: self.number + 1 };
        self.start += newline + 1;
        self.number += 1;
        Some(line)
    }
}

struct Action<'a> {
    operation: Operation,
    index: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
}

fn read_action<'a>(line: &Line<'a>) -> Result<Action<'a>, BulkError> {
    let malformed = |detail: &str| {
        BulkError::illegal(format!("Malformed action/metadata line [{}], {detail}", line.number))
    };
    let ActionLine(entries) = serde_json::from_slice(line.text).map_err(|e| malformed(&e.to_string()))?;
    let Some((name, target)) = entries else {
        return Err(malformed("expected FIELD_NAME but found [END_OBJECT]"));
    };
    let operation = match &*name {
        "create" => Operation::Create,
        "delete" => Operation::Delete,
        "index" => Operation::Index,
        "update" => Operation::Update,
        other => {
            let found: String = other.chars().take(40).collect();
            return Err(malformed(&format!(
                "expected field [create], [delete], [index] or [update] but found [{found}]"
            )));
        }
    };
    Ok(Action { operation, index: target.index.map(|t| t.0), id: target.id.map(|t| t.0) })
}

/// The one entry of an action line.
struct ActionLine<'a>(Option<(Cow<'a, str>, Target<'a>)>);

impl<'de> Deserialize<'de> for ActionLine<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneEntry;
        impl<'de> Visitor<'de> for OneEntry {
            type Value = ActionLine<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("START_OBJECT")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let Some(name) = map.next_key::<Text<'de>>()? else { return Ok(ActionLine(None)) };
                let target = map.next_value()?;
                if map.next_key::<IgnoredAny>()?.is_some() {
                    return Err(serde::de::Error::custom("expected END_OBJECT but found [FIELD_NAME]"));
                }
                Ok(ActionLine(Some((name.0, target))))
            }
        }
        from.deserialize_map(OneEntry)
    }
}

/// What an action says about its document; the rest (`routing`, `pipeline`, `version` …) has no meaning here.
#[derive(Deserialize)]
struct Target<'a> {
    #[serde(rename = "_index", borrow, default)]
    index: Option<Text<'a>>,
    #[serde(rename = "_id", borrow, default)]
    id: Option<Text<'a>>,
}

/// Text that is borrowed unless it was escaped. A number is accepted as the text of it, as Elasticsearch does.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl<'de> Visitor<'de> for TextOrNumber {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.into())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(number.to_string())))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(number.to_string())))
            }
        }
        from.deserialize_any(TextOrNumber)
    }
}

fn write_item(out: &mut Vec<u8>, action: &Action<'_>, index: &str, refusal: Option<&Refusal>, full: bool) {
    out.extend_from_slice(b"{\"");
    out.extend_from_slice(action.operation.name().as_bytes());
    out.extend_from_slice(b"\":{");
    if full {
        out.extend_from_slice(b"\"_index\":");
        write_text(out, index);
        out.extend_from_slice(b",\"_id\":");
        match &action.id {
            Some(id) => write_text(out, id),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b',');
    }
    let status = match refusal {
        Some(refusal) => {
            out.extend_from_slice(b"\"error\":{\"type\":");
            write_text(out, refusal.kind);
            out.extend_from_slice(b",\"reason\":");
            write_text(out, &refusal.reason);
            out.extend_from_slice(b"},");
            refusal.status
        }
        None => {
            if full {
                out.extend_from_slice(b"\"result\":\"created\",");
            }
            201
        }
    };
    out.extend_from_slice(b"\"status\":");
    out.extend_from_slice(status.to_string().as_bytes());
    out.extend_from_slice(b"}}");
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always fits a vector");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const OPTIONS: BulkOptions<'static> =
        BulkOptions { index: None, document_bytes_max: 1000, full_items: true };

    fn run(body: &str) -> Result<(Vec<String>, Vec<Value>, bool), BulkError> {
        let bulk = parse(BytesMut::from(body), OPTIONS)?;
        let text = |m: &MessageRange| {
            String::from_utf8(bulk.data[m.start as usize..(m.start + m.len) as usize].to_vec()).unwrap()
        };
        let items = serde_json::from_slice(&[b"[", &bulk.items[..], b"]"].concat()).unwrap();
        Ok((bulk.messages.iter().map(text).collect(), items, bulk.errors))
    }

    #[test]
    fn documents_are_taken_byte_for_byte() {
        let (documents, items, errors) = run(concat!(
            "{\"index\":{\"_index\":\"a\",\"_id\":\"1\",\"routing\":\"x\"}}\n{\"m\": 1 }\r\n",
            "\n{\"create\":{\"_index\":\"b\\u0041\",\"_id\":7}}\nnot json\n",
        ))
        .unwrap();
        assert_eq!(documents, ["{\"m\": 1 }", "not json"]);
        assert!(!errors);
        assert_eq!(items[0]["index"]["_index"], "a");
        assert_eq!(items[0]["index"]["status"], 201);
        assert_eq!(items[1]["create"]["_index"], "bA");
        assert_eq!(items[1]["create"]["_id"], "7");
    }

    #[test]
    fn only_additions_are_possible() {
        let (documents, items, errors) = run(concat!(
            "{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}\n",
            "{\"update\":{\"_index\":\"a\",\"_id\":\"1\"}}\n{\"doc\":{}}\n",
            "{\"index\":{\"_index\":\"a\"}}\n{}\n",
        ))
        .unwrap();
        assert_eq!(documents, ["{}"]);
        assert!(errors);
        let statuses: Vec<_> =
            items.iter().map(|i| &i.as_object().unwrap().values().next().unwrap()["status"]).collect();
        assert_eq!(statuses, [400, 400, 201]);
    }

    #[test]
    fn malformed_requests_are_refused_whole() {
        for (body, says) in [
            ("", "body is required"),
            ("{\"index\":{\"_index\":\"a\"}}\n{}", "terminated by a newline"),
            ("{\"index\":{\"_index\":\"a\"}}\n", "no document behind"),
            ("{\"index\":{}}\n{}\n", "index is missing"),
            ("{\"drop\":{\"_index\":\"a\"}}\n{}\n", "but found [drop]"),
            ("{}\n{}\n", "but found [END_OBJECT]"),
            ("[]\n{}\n", "line [1]"),
            ("\u{feff}{\"index\":{\"_index\":\"a\"}}\n{}\n", "line [1]"),
            ("{\"index\":{\"_index\":\"a\"},\"delete\":{\"_index\":\"a\"}}\n{}\n", "END_OBJECT"),
            ("\n\n", "no requests added"),
        ] {
            let error = run(body).expect_err(body);
            assert!(error.reason.contains(says), "{body:?}: {error}");
            assert_eq!(error.status, 400);
        }
    }

    #[test]
    fn a_document_over_the_limit_fails_alone() {
        let long = "x".repeat(1001);
        let body =
            format!("{{\"index\":{{\"_index\":\"a\"}}}}\n{long}\n{{\"index\":{{\"_index\":\"a\"}}}}\nok\n");
        let (documents, items, errors) = run(&body).unwrap();
        assert_eq!(documents, ["ok"]);
        assert!(errors);
        assert_eq!(items[0]["index"]["status"], 413);
    }

    #[test]
    fn an_injected_action_is_never_more_than_a_document() {
        let (documents, items, _) = run(concat!(
            "{\"index\":{\"_index\":\"a\"}}\n{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}\n",
            "{\"index\":{\"_index\":\"a\",\"_id\":\"x\\n{\\\"delete\\\":{}}\"}}\n{}\n",
        ))
        .unwrap();
        assert_eq!(documents, ["{\"delete\":{\"_index\":\"a\",\"_id\":\"1\"}}", "{}"]);
        assert_eq!(items[1]["index"]["_id"], "x\n{\"delete\":{}}");
    }

    proptest! {
        #[test]
        fn as_many_documents_as_additions(
            documents in proptest::collection::vec("[^\r\n]{1,40}", 1..20),
            ids in proptest::collection::vec(proptest::option::of(".{0,10}"), 20),
        ) {
            let mut body = String::new();
            for (document, id) in documents.iter().zip(&ids) {
                let action = serde_json::json!({ "index": { "_index": "logs", "_id": id } });
                body.push_str(&format!("{action}\n{document}\n"));
            }
            let (taken, items, errors) = run(&body).unwrap();
            prop_assert_eq!(&taken, &documents);
            prop_assert!(!errors);
            prop_assert_eq!(items.len(), documents.len());
            for (item, id) in items.iter().zip(&ids) {
                prop_assert_eq!(item["index"]["_id"].as_str(), id.as_deref());
            }
        }

        #[test]
        fn never_panics(body in proptest::collection::vec(prop_oneof![
            Just("{\"index\":{\"_index\":\"a\"}}".to_owned()), Just("{\"delete\":{\"_index\":\"a\"}}".to_owned()),
            Just("\n".to_owned()), Just("{}".to_owned()), ".{0,8}",
        ], 0..20)) {
            if let Ok(bulk) = parse(BytesMut::from(body.concat().as_str()), OPTIONS) {
                let items: Vec<Value> = serde_json::from_slice(&[b"[", &bulk.items[..], b"]"].concat()).unwrap();
                prop_assert_eq!(items.len(), bulk.n_items);
                prop_assert!(bulk.messages.len() <= bulk.n_items);
            }
        }
    }
}
