//! One JSON document for each log record, span, event of a span, and data point.
//!
//! Names are the catalogue's where it has one (`message`, `level`, `service`, `host`, `trace_id`, `duration_ms`, …);
//! everything else stays under `resource`, `scope` and `attributes` as it came. What a resource and a scope say is
//! written once, and copied into each document.

use std::collections::HashMap;

use logdrive_schemas::MessageRange;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::wire::{Group, Malformed};
use crate::document::object::{Object, write_array, write_bytes, write_float};
use crate::document::scalar::{write_signed, write_text};
use crate::source::RECEIVED_MAX;

/// So many attributes are compared with each other; more are looked up.
const COMPARED_MAX: usize = 16;
/// Documents as they are made, and what was refused.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) data: Vec<u8>,
    pub(super) messages: Vec<MessageRange>,
    /// Records that cannot be taken.
    pub(super) n_refused: u64,
    /// Why the first of them was not.
    pub(super) refused: Option<String>,
    /// Members that all documents of the resource have.
    resource: Vec<u8>,
    /// The same of the scope.
    scope: Vec<u8>,
    /// For records that do not say when they happened.
    now: u64,
    /// Bytes of documents that were made, those that were taken away included.
    pub(super) n_bytes: u64,
}

impl Rows {
    /// No documents yet. Records that do not say when they happened get `now`, nanoseconds since the Unix epoch.
    pub(super) fn new(now: u64) -> Self {
        Self { now, ..Self::default() }
    }

    /// Counts records that cannot be taken.
    pub(super) fn refuse(&mut self, n: u64, why: impl FnOnce() -> String) {
        self.n_refused += n;
        if n > 0 {
            self.refused.get_or_insert_with(why);
        }
    }

    /// What follows comes from this resource.
    pub(super) fn set_resource(&mut self, group: &Group<'_>) -> Result<(), Malformed> {
        let resource: Resource = group.head.map_or_else(|| Ok(Resource::default()), |raw| raw.decode())?;
        self.resource.clear();
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        let find = |names: &[&str]| {
            let of = |name: &&str| resource.attributes.iter().find(|kv| kv.key == **name);
            match names.iter().find_map(of)?.value.as_ref()?.value.as_ref()? {
                Value::StringValue(text) => Some(text.as_str()),
                _ => None,
            }
        };
        object.text("service", find(&["service.name"]).unwrap_or_default());
        object.text("host", find(&["host.name"]).unwrap_or_default());
        object.text(
            "env",
            find(&["deployment.environment.name", "deployment.environment"]).unwrap_or_default(),
        );
        let mut inner = object.object("resource");
        attributes("attributes", &resource.attributes, &mut inner);
        inner.count("dropped_attributes_count", resource.dropped_attributes_count.into());
        inner.text("schema_url", &group.schema_url);
        inner.end();
        object.end();
        self.resource.extend_from_slice(&out[1..out.len() - 1]);
        Ok(())
    }

    /// What follows comes from this scope.
    pub(super) fn set_scope(&mut self, group: &Group<'_>) -> Result<(), Malformed> {
        let scope: InstrumentationScope =
            group.head.map_or_else(|| Ok(InstrumentationScope::default()), |raw| raw.decode())?;
        self.scope.clear();
        if scope == InstrumentationScope::default() && group.schema_url.is_empty() {
            return Ok(());
        }
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        let mut inner = object.object("scope");
        inner.text("name", &scope.name);
        inner.text("version", &scope.version);
        attributes("attributes", &scope.attributes, &mut inner);
        inner.count("dropped_attributes_count", scope.dropped_attributes_count.into());
        inner.text("schema_url", &group.schema_url);
        inner.end();
        object.end();
        self.scope.extend_from_slice(&out[1..out.len() - 1]);
        Ok(())
    }

    /// Adds a document: what `write` writes, and what resource and scope say.
    pub(super) fn row(&mut self, signal: &str, nanos: u64, write: impl FnOnce(&mut Object<'_>)) {
        let start = self.data.len();
        let mut object = Object::begin(&mut self.data);
        object.time("@timestamp", if nanos == 0 { self.now } else { nanos });
        object.text("signal", signal);
        write(&mut object);
        object.members(&self.resource);
        object.members(&self.scope);
        object.end();
        if self.data.len() > RECEIVED_MAX {
            self.data.truncate(start);
            return self.refuse(1, || "a span with too many events".into());
        }
        let len = self.data.len() - start;
        self.n_bytes += len as u64;
        self.messages.push(MessageRange { start: start as u32, len: len as u32 });
    }
}

/// Attributes as an object, unless there are none. The last of those with one key counts.
pub(super) fn attributes(key: &str, all: &[KeyValue], object: &mut Object<'_>) {
    if !all.is_empty() {
        write_attributes(all, object.key(key));
    }
}

fn write_attributes(all: &[KeyValue], out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    let write = |kv: &KeyValue, object: &mut Object<'_>| write_value(kv.value.as_ref(), object.key(&kv.key));
    if all.len() <= COMPARED_MAX {
        for (idx, kv) in all.iter().enumerate() {
            if !all[idx + 1..].iter().any(|later| later.key == kv.key) {
                write(kv, &mut object);
            }
        }
    } else {
        let last: HashMap<&str, usize> =
            all.iter().enumerate().map(|(idx, kv)| (kv.key.as_str(), idx)).collect();
        for (idx, kv) in all.iter().enumerate() {
            if last.get(kv.key.as_str()) == Some(&idx) {
                write(kv, &mut object);
            }
        }
    }
    object.end();
}

/// A value as JSON: bytes as base64, integers with all their digits. How deep it may be nested was bounded by whoever
/// decoded it.
pub(super) fn write_value(value: Option<&AnyValue>, out: &mut Vec<u8>) {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => write_text(text, out),
        Some(Value::BoolValue(value)) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Some(Value::IntValue(value)) => write_signed(*value, out),
        Some(Value::DoubleValue(value)) => write_float(*value, out),
        Some(Value::ArrayValue(array)) => {
            write_array(&array.values, out, |value, out| write_value(Some(value), out));
        }
        Some(Value::KvlistValue(list)) => write_attributes(&list.values, out),
        Some(Value::BytesValue(bytes)) => write_bytes(bytes, out),
        // An index belongs to a dictionary that only profiles have.
        Some(Value::StringValueStrindex(_)) | None => out.extend_from_slice(b"null"),
    }
}

/// What the conventions say of exceptions, in the catalogue's names.
pub(super) fn error(all: &[KeyValue], object: &mut Object<'_>) {
    let find = |name: &str| {
        let found = all.iter().rev().find(|kv| kv.key == name)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
            _ => None,
        }
    };
    let [kind, message, trace] = ["exception.type", "exception.message", "exception.stacktrace"].map(find);
    if kind.is_some() || message.is_some() {
        let mut inner = object.object("error");
        inner.text("type", kind.unwrap_or_default());
        inner.text("message", message.unwrap_or_default());
        inner.text("stack_trace", trace.unwrap_or_default());
        inner.end();
    }
}
