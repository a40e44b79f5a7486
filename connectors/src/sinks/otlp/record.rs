//! From a document to a log record: the way that the source `otlp` goes, backwards.

use jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::{Map, Value};

/// A log record, and where it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record {
    pub(super) resource: Resource,
    pub(super) scope: InstrumentationScope,
    pub(super) record: LogRecord,
}

/// Members that become attributes of the resource, if it does not have them already.
const RESOURCE: [(&str, &str); 3] =
    [("service", "service.name"), ("host", "host.name"), ("env", "deployment.environment.name")];

/// Makes a log record of a document that was received at `received_at` (microseconds since the Unix epoch).
pub(super) fn of_document(mut document: Map<String, Value>, received_at: i64) -> Record {
    let received = u64::try_from(received_at).unwrap_or(0).saturating_mul(1000);
    let mut record = LogRecord {
        time_unix_nano: time(&mut document, "@timestamp").unwrap_or(0),
        observed_time_unix_nano: time(&mut document, "observed_timestamp").unwrap_or(received),
        trace_id: id(&mut document, "trace_id", 16),
        span_id: id(&mut document, "span_id", 8),
        event_name: text(&mut document, "event_name").unwrap_or_default(),
        flags: number(&mut document, "flags"),
        dropped_attributes_count: number(&mut document, "dropped_attributes_count"),
        ..LogRecord::default()
    };
    let level = text(&mut document, "level").unwrap_or_default();
    let given: u32 = number(&mut document, "severity_number");
    record.severity_number =
        i32::try_from(given).ok().filter(|n| (1..=24).contains(n)).unwrap_or_else(|| severity(&level));
    record.severity_text = text(&mut document, "severity_text").unwrap_or(level);
    record.body = match document.shift_remove("message") {
        Some(message) => Some(any(message)),
        None => document.shift_remove("body").map(any),
    };
    if document.get("signal").is_some_and(|signal| signal == "log") {
        document.shift_remove("signal");
    }
    let (resource, scope) = (resource(&mut document), scope(&mut document));
    if let Some(Value::Object(attributes)) = take_object(&mut document, "attributes") {
        record.attributes = pairs(attributes);
    }
    record.attributes.extend(pairs(document));
    Record { resource, scope, record }
}

fn resource(document: &mut Map<String, Value>) -> Resource {
    let mut resource = Resource::default();
    if let Some(Value::Object(mut members)) = take_object(document, "resource") {
        if let Some(Value::Object(attributes)) = take_object(&mut members, "attributes") {
            resource.attributes = pairs(attributes);
        }
        resource.dropped_attributes_count = number(&mut members, "dropped_attributes_count");
        members.shift_remove("schema_url");
        resource.attributes.extend(pairs(members));
    }
    for (name, key) in RESOURCE {
        if let Some(value) = text(document, name)
            && !resource.attributes.iter().any(|kv| kv.key == key)
        {
            let value = Some(AnyValue { value: Some(Any::StringValue(value)) });
            resource.attributes.push(KeyValue { key: key.into(), value, ..KeyValue::default() });
        }
    }
    resource
}

fn scope(document: &mut Map<String, Value>) -> InstrumentationScope {
    let Some(Value::Object(mut members)) = take_object(document, "scope") else {
        return InstrumentationScope::default();
    };
    let attributes = match take_object(&mut members, "attributes") {
        Some(Value::Object(attributes)) => pairs(attributes),
        _ => Vec::new(),
    };
    InstrumentationScope {
        name: text(&mut members, "name").unwrap_or_default(),
        version: text(&mut members, "version").unwrap_or_default(),
        attributes,
        dropped_attributes_count: number(&mut members, "dropped_attributes_count"),
    }
}

/// Takes a member away if it is an object.
fn take_object(of: &mut Map<String, Value>, key: &str) -> Option<Value> {
    if of.get(key)?.is_object() { of.shift_remove(key) } else { None }
}

/// Takes a member away if it is text.
fn text(of: &mut Map<String, Value>, key: &str) -> Option<String> {
    if !of.get(key)?.is_string() {
        return None;
    }
    match of.shift_remove(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Takes a member away if it is a number that fits; else 0.
fn number(of: &mut Map<String, Value>, key: &str) -> u32 {
    let found = of.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    if found.is_some() {
        of.shift_remove(key);
    }
    found.unwrap_or(0)
}

/// Takes a member away if it is a time.
fn time(of: &mut Map<String, Value>, key: &str) -> Option<u64> {
    let time: Timestamp = of.get(key)?.as_str()?.parse().ok()?;
    let nanos = u64::try_from(time.as_nanosecond()).ok()?;
    of.shift_remove(key);
    Some(nanos)
}

/// Takes a member away if it is an identifier of so many bytes.
fn id(of: &mut Map<String, Value>, key: &str, n_bytes: usize) -> Vec<u8> {
    let digits = of.get(key).and_then(Value::as_str).filter(|digits| digits.len() == 2 * n_bytes);
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> = digits.and_then(|text| {
        text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
    });
    if bytes.is_some() {
        of.shift_remove(key);
    }
    bytes.unwrap_or_default()
}

fn severity(level: &str) -> i32 {
    match level.to_ascii_uppercase().as_str() {
        "TRACE" => 1,
        "DEBUG" => 5,
        "INFO" | "NOTICE" => 9,
        "WARN" | "WARNING" => 13,
        "ERROR" | "ERR" => 17,
        "FATAL" | "CRITICAL" | "EMERGENCY" | "ALERT" => 21,
        _ => 0,
    }
}

fn pairs(members: Map<String, Value>) -> Vec<KeyValue> {
    members
        .into_iter()
        .map(|(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() })
        .collect()
}

fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(value) => Some(Any::BoolValue(value)),
        Value::Number(n) => Some(match n.as_i64() {
            Some(n) => Any::IntValue(n),
            // A number that no integer of OTLP holds keeps its digits.
            None if n.is_u64() => Any::StringValue(n.to_string()),
            None => Any::DoubleValue(n.as_f64().unwrap_or(f64::NAN)),
        }),
        Value::String(text) => Some(Any::StringValue(text)),
        Value::Array(values) => {
            Some(Any::ArrayValue(ArrayValue { values: values.into_iter().map(any).collect() }))
        }
        Value::Object(members) => Some(Any::KvlistValue(KeyValueList { values: pairs(members) })),
    };
    AnyValue { value }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(document: Value) -> Record {
        let Value::Object(document) = document else { panic!("an object") };
        of_document(document, 1_000_000)
    }

    fn attributes(of: &[KeyValue]) -> Vec<&str> {
        of.iter().map(|kv| kv.key.as_str()).collect()
    }

    #[test]
    fn an_event_of_the_catalogue() {
        let Record { resource, scope, record } = of(json!({
            "@timestamp": "2023-11-14T22:13:20.5Z", "level": "WARN", "message": "slow", "service": "cart", "host": 7,
            "trace_id": "0102030405060708090a0b0c0d0e0f10", "span_id": "short", "amount": 1.5, "n": 9007199254740993_i64,
            "big": u64::MAX, "tags": ["a", null], "payment": { "method": "card" },
        }));
        assert_eq!(record.time_unix_nano, 1_700_000_000_500_000_000);
        assert_eq!(record.observed_time_unix_nano, 1_000_000_000);
        assert_eq!((record.severity_number, record.severity_text.as_str()), (13, "WARN"));
        assert_eq!(record.body, Some(AnyValue { value: Some(Any::StringValue("slow".into())) }));
        assert_eq!(record.trace_id, (1..=16).collect::<Vec<u8>>());
        assert!(record.span_id.is_empty());
        assert_eq!(
            attributes(&record.attributes),
            ["host", "span_id", "amount", "n", "big", "tags", "payment"]
        );
        let value =
            |key: &str| record.attributes.iter().find(|kv| kv.key == key).unwrap().value.clone().unwrap();
        assert_eq!(value("n").value, Some(Any::IntValue(9_007_199_254_740_993)));
        assert_eq!(value("big").value, Some(Any::StringValue("18446744073709551615".into())));
        assert_eq!(attributes(&resource.attributes), ["service.name"]);
        assert_eq!(scope, InstrumentationScope::default());
    }

    #[test]
    fn what_the_source_makes_becomes_what_it_was() {
        let Record { resource, scope, record } = of(json!({
            "@timestamp": "2023-11-14T22:13:20Z", "signal": "log", "observed_timestamp": "2023-11-14T22:13:21Z",
            "level": "ERROR", "severity_number": 18, "severity_text": "err", "event_name": "e", "body": { "a": 1 },
            "flags": 1, "attributes": { "http.method": "GET" }, "dropped_attributes_count": 2, "service": "cart",
            "resource": { "attributes": { "service.name": "cart" } }, "scope": { "name": "lib", "version": "1" },
        }));
        assert_eq!(record.observed_time_unix_nano, 1_700_000_001_000_000_000);
        assert_eq!((record.severity_number, record.severity_text.as_str()), (18, "err"));
        assert_eq!((record.flags, record.dropped_attributes_count, record.event_name.as_str()), (1, 2, "e"));
        assert!(matches!(record.body, Some(AnyValue { value: Some(Any::KvlistValue(_)) })));
        assert_eq!(attributes(&record.attributes), ["http.method"]);
        assert_eq!(attributes(&resource.attributes), ["service.name"]);
        assert_eq!((scope.name.as_str(), scope.version.as_str()), ("lib", "1"));
    }
}
