//! What the answer to a bulk request says about each of its items.

use std::fmt;

use memchr::memmem;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::sinks::http_rejects::excerpt;

/// What became of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Stored.
    Done,
    /// A document of that id is there already: an earlier attempt was stored although we never heard of it.
    Duplicate,
    /// Stored, but in the failure store.
    Redirect,
    /// It will never be stored.
    Reject(String),
    /// It may be stored later.
    Retry {
        /// The server has too much to do.
        busy: bool,
        /// The status and what it says.
        reason: String,
    },
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Every item is stored.
    AllDone,
    /// One verdict per item, in their order.
    Items(Vec<Verdict>),
    /// It cannot be told what became of which item.
    Unclear(String),
}

/// What was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// How many items were sent.
    pub(super) n_items: usize,
    /// Whether a conflict means that the same document is there: `create` with ids of ours.
    pub(super) idempotent: bool,
}

/// Reads the body of an answer with status 200.
pub(super) fn read(body: &[u8], asked: Asked) -> Answer {
    if is_all_done(body, asked.n_items) {
        return Answer::AllDone;
    }
    let answer: Body = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => return Answer::Unclear(format!("the answer is no bulk answer: {error}")),
    };
    if answer.items.len() != asked.n_items {
        return Answer::Unclear(format!("{} items sent, {} answered", asked.n_items, answer.items.len()));
    }
    let verdicts = answer.items.into_iter().map(|Item(outcome)| match outcome {
        Some(outcome) => verdict(outcome, asked.idempotent),
        None => Verdict::Retry { busy: false, reason: "an item without an outcome".into() },
    });
    Answer::Items(verdicts.collect())
}

/// Whether the answer is whole, says that nothing failed, and has as many items as were sent, without parsing them.
/// Escaped text cannot look like `"status":`, and what is not written this way is parsed.
fn is_all_done(body: &[u8], n_items: usize) -> bool {
    let body = body.trim_ascii();
    body.starts_with(b"{\"errors\":false,\"items\":[")
        && body.ends_with(b"}}]}")
        && memmem::find(body, b"failure_store").is_none()
        && memmem::find(body, b"\"error\"").is_none()
        && memmem::find_iter(body, b"\"status\":").count() == n_items
        && memmem::find_iter(body, b"\"status\":20").count() == n_items
}

#[derive(serde::Deserialize)]
struct Body {
    #[serde(default)]
    items: Vec<Item>,
}

/// The outcome of the item's one operation, whatever that is called.
struct Item(Option<Outcome>);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstValue;

        impl<'de> Visitor<'de> for FirstValue {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an operation and its outcome")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Item, M::Error> {
                let mut first = None;
                while map.next_key::<IgnoredAny>()?.is_some() {
                    if first.is_none() {
                        first = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Item(first))
            }
        }

        deserializer.deserialize_map(FirstValue)
    }
}

#[derive(serde::Deserialize)]
struct Outcome {
    status: u16,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    failure_store: Option<String>,
}

fn verdict(outcome: Outcome, idempotent: bool) -> Verdict {
    let reason = || format!("es_{}: {}", outcome.status, explain(outcome.error.as_ref()));
    match outcome.status {
        200..=299 if outcome.failure_store.as_deref() == Some("used") => Verdict::Redirect,
        200..=299 => Verdict::Done,
        409 if idempotent => Verdict::Duplicate,
        429 => Verdict::Retry { busy: true, reason: reason() },
        // Nothing can be written at all. A block on, or no right to, the one index that a row asks for concerns that
        // row: whoever sends events chooses days and values, and must not be able to hold up everybody's.
        403 if is_cluster_block(outcome.error.as_ref()) => Verdict::Retry { busy: false, reason: reason() },
        408 | 500..=599 => Verdict::Retry { busy: false, reason: reason() },
        400..=499 => Verdict::Reject(reason()),
        _ => Verdict::Retry { busy: false, reason: reason() },
    }
}

/// Whether an error is about the whole cluster. One about an index begins with its name.
fn is_cluster_block(error: Option<&Value>) -> bool {
    let part = |key| error.and_then(|e| e.get(key)).and_then(Value::as_str).unwrap_or_default();
    part("type") == "cluster_block_exception" && part("reason").starts_with("blocked by:")
}

/// `type: reason` of an error, of whichever shape.
pub(super) fn explain(error: Option<&Value>) -> String {
    let text = match error {
        Some(Value::Object(error)) => {
            let part = |key| error.get(key).and_then(Value::as_str).unwrap_or("unknown");
            format!("{}: {}", part("type"), part("reason"))
        }
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "no reason given".into(),
    };
    excerpt(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, n_items: usize) -> Answer {
        read(body.as_bytes(), Asked { n_items, idempotent: true })
    }

    fn retry(busy: bool, reason: &str) -> Verdict {
        Verdict::Retry { busy, reason: reason.into() }
    }

    #[test]
    fn all_done_is_seen_without_parsing_and_with() {
        let done = r#"{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":200}}]}"#;
        assert_eq!(check(done, 2), Answer::AllDone);
        let verbose = r#"{"took":3,"errors":false,"items":[{"create":{"_id":"x","status":201}}]}"#;
        assert_eq!(check(verbose, 1), Answer::Items(vec![Verdict::Done]));
    }

    #[test]
    fn every_status_has_its_verdict() {
        let body = r#"{"errors":true,"items":[
            {"create":{"status":201}},
            {"create":{"status":201,"failure_store":"used"}},
            {"create":{"status":201,"failure_store":"not_enabled"}},
            {"create":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"r"}}},
            {"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"full"}}},
            {"create":{"status":503,"error":{"type":"unavailable","reason":"no\nshard"}}},
            {"create":{"status":400,"error":{"type":"document_parsing_exception","reason":"bad ip"}}},
            {"create":{"status":404,"error":"gone"}},
            {"create":{"status":403,"error":{"type":"cluster_block_exception","reason":"blocked by: [x]"}}},
            {"create":{"status":403,"error":{"type":"cluster_block_exception","reason":"index [a] blocked by: [x]"}}}]}"#;
        let expect = vec![
            Verdict::Done,
            Verdict::Redirect,
            Verdict::Done,
            Verdict::Duplicate,
            retry(true, "es_429: es_rejected_execution_exception: full"),
            retry(false, "es_503: unavailable: no shard"),
            Verdict::Reject("es_400: document_parsing_exception: bad ip".into()),
            Verdict::Reject("es_404: gone".into()),
            retry(false, "es_403: cluster_block_exception: blocked by: [x]"),
            Verdict::Reject("es_403: cluster_block_exception: index [a] blocked by: [x]".into()),
        ];
        assert_eq!(check(body, 10), Answer::Items(expect));
    }

    #[test]
    fn a_conflict_without_ids_of_ours_is_no_delivery() {
        let body = br#"{"errors":true,"items":[{"index":{"status":409}}]}"#;
        let answer = read(body, Asked { n_items: 1, idempotent: false });
        assert_eq!(answer, Answer::Items(vec![Verdict::Reject("es_409: no reason given".into())]));
    }

    #[test]
    fn what_is_not_whole_is_unclear() {
        let whole = r#"{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":201}}]}"#;
        assert!(matches!(check(whole, 3), Answer::Unclear(_)));
        assert!(matches!(check(whole, 1), Answer::Unclear(_)));
        for cut in 0..whole.len() {
            assert!(matches!(check(&whole[..cut], 2), Answer::Unclear(_)), "cut at {cut}");
        }
        assert!(matches!(check(r#"{"errors":false}"#, 1), Answer::Unclear(_)));
        assert!(matches!(check(r#"{"errors":true,"items":[{"create":{}}]}"#, 1), Answer::Unclear(_)));
        assert!(matches!(check("<html>", 1), Answer::Unclear(_)));
    }
}
