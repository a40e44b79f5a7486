//! Spans: a document for each, and one for each of its events.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::Link;

use super::rows::{self, Rows};
use super::wire::{Malformed, Raw};
use crate::document::object::{Object, write_array};

const KINDS: [&str; 6] = ["", "internal", "server", "client", "producer", "consumer"];
/// Nanoseconds of a millisecond.
const MILLISECOND: f64 = 1e6;

/// Adds the documents of a span.
pub(super) fn span(raw: Raw<'_>, rows: &mut Rows) -> Result<(), Malformed> {
    let span: Span = raw.decode()?;
    rows.row("span", span.start_time_unix_nano, |object| {
        object.text("message", &span.name);
        object.hex("trace_id", &span.trace_id);
        object.hex("span_id", &span.span_id);
        object.text("outcome", outcome(&span));
        let took = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
        if span.end_time_unix_nano > 0 {
            object.float("duration_ms", took as f64 / MILLISECOND);
        }
        let mut inner = object.object("span");
        write_span(&span, &mut inner);
        inner.end();
        rows::attributes("attributes", &span.attributes, object);
        object.count("dropped_attributes_count", span.dropped_attributes_count.into());
    });
    for event in &span.events {
        let at = if event.time_unix_nano > 0 { event.time_unix_nano } else { span.start_time_unix_nano };
        rows.row("span_event", at, |object| {
            object.text("message", &event.name);
            object.hex("trace_id", &span.trace_id);
            object.hex("span_id", &span.span_id);
            let mut inner = object.object("span");
            inner.text("name", &span.name);
            inner.end();
            rows::error(&event.attributes, object);
            rows::attributes("attributes", &event.attributes, object);
            object.count("dropped_attributes_count", event.dropped_attributes_count.into());
        });
    }
    Ok(())
}

/// The catalogue's word for how a span ended.
fn outcome(span: &Span) -> &'static str {
    match span.status.as_ref().map_or(0, |status| status.code) {
        1 => "success",
        2 => "failure",
        _ => "unknown",
    }
}

/// What the catalogue has no name for.
fn write_span(span: &Span, object: &mut Object<'_>) {
    object.text("name", &span.name);
    let kind = usize::try_from(span.kind).ok().and_then(|kind| KINDS.get(kind));
    object.text("kind", kind.copied().unwrap_or_default());
    object.hex("parent_id", &span.parent_span_id);
    object.text("trace_state", &span.trace_state);
    object.count("flags", span.flags.into());
    object.time("end", span.end_time_unix_nano);
    object.text("status_message", span.status.as_ref().map_or("", |status| &status.message));
    if !span.links.is_empty() {
        write_array(&span.links, object.key("links"), write_link);
    }
    object.count("events_count", span.events.len() as u64);
    object.count("dropped_events_count", span.dropped_events_count.into());
    object.count("dropped_links_count", span.dropped_links_count.into());
}

fn write_link(link: &Link, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    object.hex("trace_id", &link.trace_id);
    object.hex("span_id", &link.span_id);
    object.text("trace_state", &link.trace_state);
    object.count("flags", link.flags.into());
    rows::attributes("attributes", &link.attributes, &mut object);
    object.count("dropped_attributes_count", link.dropped_attributes_count.into());
    object.end();
}
