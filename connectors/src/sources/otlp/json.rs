//! OTLP's JSON: Protobuf's, but for identifiers in hexadecimal digits and enumerations as numbers.
//!
//! What Protobuf's JSON allows is taken: integers as strings or numbers, numbers that JSON has not (`"NaN"`) as strings,
//! `null` for what is not there, members that nobody knows.

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, SummaryDataPoint, exemplar,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::{Map, Value};

use super::wire::Malformed;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

type Read<T> = Result<T, Malformed>;

/// What can be read from a JSON object.
pub(super) trait FromJson: Sized {
    fn from_json(of: Members<'_>) -> Read<Self>;
}

/// Reads a message.
pub(super) fn decode<M: FromJson>(bytes: &[u8]) -> Read<M> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| Malformed(error.to_string()))?;
    M::from_json(Members::of(&value)?)
}

/// Reads a list of messages.
pub(super) fn decode_all<M: FromJson>(bytes: &[u8]) -> Read<Vec<M>> {
    let values: Vec<Value> = serde_json::from_slice(bytes).map_err(|error| Malformed(error.to_string()))?;
    values.iter().map(|value| M::from_json(Members::of(value)?)).collect()
}

/// The members of an object.
#[derive(Clone, Copy)]
pub(super) struct Members<'a>(&'a Map<String, Value>);

impl<'a> Members<'a> {
    fn of(value: &'a Value) -> Read<Self> {
        value
            .as_object()
            .map(Self)
            .ok_or_else(|| Malformed("something else where an object should be".into()))
    }

    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(self, key: &str) -> Read<String> {
        match self.get(key) {
            None => Ok(String::new()),
            Some(value) => value.as_str().map(str::to_owned).ok_or_else(|| wrong(key)),
        }
    }

    fn number<T: TryFrom<i128> + Default>(self, key: &str) -> Read<T> {
        self.get(key).map_or_else(|| Ok(T::default()), |value| integer(key, value))
    }

    fn float(self, key: &str) -> Read<Option<f64>> {
        self.get(key).map(|value| float(key, value)).transpose()
    }

    fn hex(self, key: &str) -> Read<Vec<u8>> {
        let text = self.text(key)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let pairs = text.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> =
            pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect();
        bytes.ok_or_else(|| wrong(key))
    }

    fn list(self, key: &str) -> Read<&'a [Value]> {
        match self.get(key) {
            None => Ok(&[]),
            Some(value) => value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key)),
        }
    }

    fn each<T>(self, key: &str, read: impl Fn(&str, &Value) -> Read<T>) -> Read<Vec<T>> {
        self.list(key)?.iter().map(|value| read(key, value)).collect()
    }

    fn all<M: FromJson>(self, key: &str) -> Read<Vec<M>> {
        self.each(key, |_, value| M::from_json(Members::of(value)?))
    }

    fn one<M: FromJson>(self, key: &str) -> Read<Option<M>> {
        self.get(key).map(|value| M::from_json(Members::of(value)?)).transpose()
    }
}

fn wrong(key: &str) -> Malformed {
    Malformed(format!("`{key}` is of another type"))
}

fn integer<T: TryFrom<i128>>(key: &str, value: &Value) -> Read<T> {
    let found = match value {
        Value::Number(n) => n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    found.and_then(|n| T::try_from(n).ok()).ok_or_else(|| wrong(key))
}

fn float(key: &str, value: &Value) -> Read<f64> {
    let found = match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => text.parse().ok().filter(|n: &f64| n.is_finite()),
        },
        _ => None,
    };
    found.ok_or_else(|| wrong(key))
}

fn base64(text: &str) -> Read<Vec<u8>> {
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    GeneralPurpose::new(alphabet, LENIENT).decode(text).map_err(|_| wrong("bytesValue"))
}

impl FromJson for AnyValue {
    fn from_json(of: Members<'_>) -> Read<Self> {
        let mut value = None;
        for (key, found) in of.0 {
            if found.is_null() {
                continue;
            }
            let text = || found.as_str().ok_or_else(|| wrong(key));
            value = Some(match key.as_str() {
                "stringValue" => Any::StringValue(text()?.to_owned()),
                "boolValue" => Any::BoolValue(found.as_bool().ok_or_else(|| wrong(key))?),
                "intValue" => Any::IntValue(integer(key, found)?),
                "doubleValue" => Any::DoubleValue(float(key, found)?),
                "bytesValue" => Any::BytesValue(base64(text()?)?),
                "arrayValue" => Any::ArrayValue(ArrayValue { values: Members::of(found)?.all("values")? }),
                "kvlistValue" => {
                    Any::KvlistValue(KeyValueList { values: Members::of(found)?.all("values")? })
                }
                _ => continue,
            });
        }
        Ok(Self { value })
    }
}

impl FromJson for KeyValue {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self { key: of.text("key")?, value: of.one("value")?, ..Self::default() })
    }
}

impl FromJson for Resource {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            attributes: of.all("attributes")?,
            dropped_attributes_count: of.number("droppedAttributesCount")?,
            ..Self::default()
        })
    }
}

impl FromJson for InstrumentationScope {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            name: of.text("name")?,
            version: of.text("version")?,
            attributes: of.all("attributes")?,
            dropped_attributes_count: of.number("droppedAttributesCount")?,
        })
    }
}

impl FromJson for LogRecord {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            time_unix_nano: of.number("timeUnixNano")?,
            observed_time_unix_nano: of.number("observedTimeUnixNano")?,
            severity_number: of.number("severityNumber")?,
            severity_text: of.text("severityText")?,
            body: of.one("body")?,
            attributes: of.all("attributes")?,
            dropped_attributes_count: of.number("droppedAttributesCount")?,
            flags: of.number("flags")?,
            trace_id: of.hex("traceId")?,
            span_id: of.hex("spanId")?,
            event_name: of.text("eventName")?,
        })
    }
}

impl FromJson for Span {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            trace_id: of.hex("traceId")?,
            span_id: of.hex("spanId")?,
            trace_state: of.text("traceState")?,
            parent_span_id: of.hex("parentSpanId")?,
            flags: of.number("flags")?,
            name: of.text("name")?,
            kind: of.number("kind")?,
            start_time_unix_nano: of.number("startTimeUnixNano")?,
            end_time_unix_nano: of.number("endTimeUnixNano")?,
            attributes: of.all("attributes")?,
            dropped_attributes_count: of.number("droppedAttributesCount")?,
            events: of.all("events")?,
            dropped_events_count: of.number("droppedEventsCount")?,
            links: of.all("links")?,
            dropped_links_count: of.number("droppedLinksCount")?,
            status: of.one("status")?,
        })
    }
}

impl FromJson for Event {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            time_unix_nano: of.number("timeUnixNano")?,
            name: of.text("name")?,
            attributes: of.all("attributes")?,
            dropped_attributes_count: of.number("droppedAttributesCount")?,
        })
    }
}

impl FromJson for Link {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            trace_id: of.hex("traceId")?,
            span_id: of.hex("spanId")?,
            trace_state: of.text("traceState")?,
            attributes: of.all("attributes")?,
            dropped_attributes_count: of.number("droppedAttributesCount")?,
            flags: of.number("flags")?,
        })
    }
}

impl FromJson for Status {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self { message: of.text("message")?, code: of.number("code")? })
    }
}

/// A number, which has one of two names.
fn measured<T>(of: Members<'_>, int: fn(i64) -> T, double: fn(f64) -> T) -> Read<Option<T>> {
    match of.get("asInt") {
        Some(value) => Ok(Some(int(integer("asInt", value)?))),
        None => Ok(of.float("asDouble")?.map(double)),
    }
}

impl FromJson for Exemplar {
    fn from_json(of: Members<'_>) -> Read<Self> {
        let value = measured(of, exemplar::Value::AsInt, exemplar::Value::AsDouble)?;
        Ok(Self {
            filtered_attributes: of.all("filteredAttributes")?,
            time_unix_nano: of.number("timeUnixNano")?,
            span_id: of.hex("spanId")?,
            trace_id: of.hex("traceId")?,
            value,
        })
    }
}

impl FromJson for NumberDataPoint {
    fn from_json(of: Members<'_>) -> Read<Self> {
        let value = measured(of, number_data_point::Value::AsInt, number_data_point::Value::AsDouble)?;
        Ok(Self {
            attributes: of.all("attributes")?,
            start_time_unix_nano: of.number("startTimeUnixNano")?,
            time_unix_nano: of.number("timeUnixNano")?,
            exemplars: of.all("exemplars")?,
            flags: of.number("flags")?,
            value,
        })
    }
}

impl FromJson for HistogramDataPoint {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            attributes: of.all("attributes")?,
            start_time_unix_nano: of.number("startTimeUnixNano")?,
            time_unix_nano: of.number("timeUnixNano")?,
            count: of.number("count")?,
            sum: of.float("sum")?,
            bucket_counts: of.each("bucketCounts", integer)?,
            explicit_bounds: of.each("explicitBounds", float)?,
            exemplars: of.all("exemplars")?,
            flags: of.number("flags")?,
            min: of.float("min")?,
            max: of.float("max")?,
        })
    }
}

impl FromJson for Buckets {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self { offset: of.number("offset")?, bucket_counts: of.each("bucketCounts", integer)? })
    }
}

impl FromJson for ExponentialHistogramDataPoint {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            attributes: of.all("attributes")?,
            start_time_unix_nano: of.number("startTimeUnixNano")?,
            time_unix_nano: of.number("timeUnixNano")?,
            count: of.number("count")?,
            sum: of.float("sum")?,
            scale: of.number("scale")?,
            zero_count: of.number("zeroCount")?,
            positive: of.one("positive")?,
            negative: of.one("negative")?,
            flags: of.number("flags")?,
            exemplars: of.all("exemplars")?,
            min: of.float("min")?,
            max: of.float("max")?,
            zero_threshold: of.float("zeroThreshold")?.unwrap_or_default(),
        })
    }
}

impl FromJson for ValueAtQuantile {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            quantile: of.float("quantile")?.unwrap_or_default(),
            value: of.float("value")?.unwrap_or_default(),
        })
    }
}

impl FromJson for SummaryDataPoint {
    fn from_json(of: Members<'_>) -> Read<Self> {
        Ok(Self {
            attributes: of.all("attributes")?,
            start_time_unix_nano: of.number("startTimeUnixNano")?,
            time_unix_nano: of.number("timeUnixNano")?,
            count: of.number("count")?,
            sum: of.float("sum")?.unwrap_or_default(),
            quantile_values: of.all("quantileValues")?,
            flags: of.number("flags")?,
        })
    }
}
