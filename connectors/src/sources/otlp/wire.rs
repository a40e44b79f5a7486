//! Walking through a request without decoding it as a whole.
//!
//! A record of two bytes becomes a structure of hundreds: a request that was decoded whole could take a hundred times
//! its size. So the levels that all three signals share (request, resource, scope, record) are walked through where they
//! lie, and one record is decoded at a time.

use std::borrow::Cow;

use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, FromJson};
use crate::sources::net::protobuf::{self, Fields, Value};

/// How a request is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// JSON as OTLP defines it.
    Json,
    /// Protobuf.
    Proto,
}

/// A request, or the part of it that was looked at, is not what its encoding says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub(super) struct Malformed(pub(super) String);

impl From<protobuf::Malformed> for Malformed {
    fn from(_: protobuf::Malformed) -> Self {
        Self("a field that is cut, or of an unknown wire type".into())
    }
}

impl Malformed {
    fn of(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// The encoded form of one message of the protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) encoding: Encoding,
}

impl Raw<'_> {
    pub(super) fn decode<M: Message + Default + FromJson>(&self) -> Result<M, Malformed> {
        match self.encoding {
            Encoding::Proto => M::decode(self.bytes).map_err(Malformed::of),
            Encoding::Json => json::decode(self.bytes),
        }
    }
}

/// What has a head (a resource, a scope) and parts. The three signals differ in the names of the parts alone, and only
/// in JSON.
pub(super) struct Group<'a> {
    pub(super) head: Option<Raw<'a>>,
    pub(super) schema_url: Cow<'a, str>,
    pub(super) parts: Parts<'a>,
}

/// The elements of a repeated field.
pub(super) enum Parts<'a> {
    Json(std::vec::IntoIter<&'a RawValue>),
    Proto { fields: Fields<'a>, tag: u32 },
}

impl<'a> Iterator for Parts<'a> {
    type Item = Raw<'a>;

    fn next(&mut self) -> Option<Raw<'a>> {
        match self {
            Self::Json(values) => {
                let bytes = values.next()?.get().as_bytes();
                Some(Raw { bytes, encoding: Encoding::Json })
            }
            Self::Proto { fields, tag } => loop {
                // It was checked before.
                match fields.next()?.ok()? {
                    (found, Value::Bytes(bytes)) if found == *tag => {
                        return Some(Raw { bytes, encoding: Encoding::Proto });
                    }
                    _ => {}
                }
            },
        }
    }
}

/// Reads the outer members of an object. An array would be taken for the members in order.
fn object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Malformed("something else where an object should be".into()));
    }
    serde_json::from_slice(bytes).map_err(Malformed::of)
}

/// The parts of a request.
pub(super) fn resources(raw: Raw<'_>) -> Result<Parts<'_>, Malformed> {
    #[derive(Deserialize)]
    struct Request<'a> {
        #[serde(
            borrow,
            default,
            alias = "resourceLogs",
            alias = "resourceMetrics",
            alias = "resourceSpans",
            rename = "resource_parts"
        )]
        resources: Vec<&'a RawValue>,
    }
    match raw.encoding {
        Encoding::Json => {
            let request: Request<'_> = object(raw.bytes)?;
            Ok(Parts::Json(request.resources.into_iter()))
        }
        Encoding::Proto => {
            check(raw.bytes, 3)?;
            Ok(Parts::Proto { fields: Fields(raw.bytes), tag: 1 })
        }
    }
}

/// What was logged by one resource, or by one scope of it.
pub(super) fn group(raw: Raw<'_>) -> Result<Group<'_>, Malformed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Json<'a> {
        #[serde(borrow, default, alias = "scope", rename = "resource")]
        head: Option<&'a RawValue>,
        #[serde(borrow, default)]
        schema_url: Cow<'a, str>,
        #[serde(
            borrow,
            default,
            alias = "scopeLogs",
            alias = "scopeMetrics",
            alias = "scopeSpans",
            alias = "logRecords",
            alias = "metrics",
            rename = "spans"
        )]
        parts: Vec<&'a RawValue>,
    }
    if raw.encoding == Encoding::Json {
        let Json { head, schema_url, parts } = object(raw.bytes)?;
        let head = head.map(|head| Raw { bytes: head.get().as_bytes(), encoding: Encoding::Json });
        return Ok(Group { head, schema_url, parts: Parts::Json(parts.into_iter()) });
    }
    let (mut head, mut schema_url) = (None, Cow::Borrowed(""));
    for field in Fields(raw.bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => head = Some(Raw { bytes, encoding: Encoding::Proto }),
            (3, Value::Bytes(bytes)) => schema_url = String::from_utf8_lossy(bytes),
            _ => {}
        }
    }
    Ok(Group { head, schema_url, parts: Parts::Proto { fields: Fields(raw.bytes), tag: 2 } })
}

/// A metric but for its data points.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MetricHead {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) unit: String,
    pub(super) metadata: Vec<opentelemetry_proto::tonic::common::v1::KeyValue>,
    pub(super) temporality: i32,
    pub(super) monotonic: bool,
}

/// Which kind of data points a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Sum,
    Histogram,
    ExponentialHistogram,
    Summary,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonPoints<'a> {
    #[serde(borrow, default)]
    data_points: Vec<&'a RawValue>,
    #[serde(default)]
    aggregation_temporality: i32,
    #[serde(default)]
    is_monotonic: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonMetric<'a> {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    unit: String,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    gauge: Option<JsonPoints<'a>>,
    #[serde(borrow, default)]
    sum: Option<JsonPoints<'a>>,
    #[serde(borrow, default)]
    histogram: Option<JsonPoints<'a>>,
    #[serde(borrow, default)]
    exponential_histogram: Option<JsonPoints<'a>>,
    #[serde(borrow, default)]
    summary: Option<JsonPoints<'a>>,
}

/// What a metric says of itself, and its data points. A metric without any has no kind; one with more than
/// `metadata_bytes_max` of metadata is refused.
pub(super) fn metric(
    raw: Raw<'_>,
    metadata_bytes_max: usize,
) -> Result<(MetricHead, Option<(Kind, Parts<'_>)>), Malformed> {
    match raw.encoding {
        Encoding::Json => json_metric(raw.bytes, metadata_bytes_max),
        Encoding::Proto => proto_metric(raw.bytes, metadata_bytes_max),
    }
}

fn too_much_metadata() -> Malformed {
    Malformed("a metric with too much metadata".into())
}

fn json_metric(
    bytes: &[u8],
    metadata_bytes_max: usize,
) -> Result<(MetricHead, Option<(Kind, Parts<'_>)>), Malformed> {
    let found: JsonMetric<'_> = object(bytes)?;
    let JsonMetric { name, description, unit, metadata, .. } = found;
    let metadata = match metadata {
        None => Vec::new(),
        Some(raw) if raw.get().len() > metadata_bytes_max => return Err(too_much_metadata()),
        Some(raw) => json::decode_all(raw.get().as_bytes())?,
    };
    let mut head = MetricHead { name, description, unit, metadata, ..MetricHead::default() };
    let kinds = [
        (Kind::Gauge, found.gauge),
        (Kind::Sum, found.sum),
        (Kind::Histogram, found.histogram),
        (Kind::ExponentialHistogram, found.exponential_histogram),
        (Kind::Summary, found.summary),
    ];
    let data = kinds.into_iter().find_map(|(kind, points)| Some((kind, points?)));
    let data = data.map(|(kind, points)| {
        (head.temporality, head.monotonic) = (points.aggregation_temporality, points.is_monotonic);
        (kind, Parts::Json(points.data_points.into_iter()))
    });
    Ok((head, data))
}

fn proto_metric(
    bytes: &[u8],
    metadata_bytes_max: usize,
) -> Result<(MetricHead, Option<(Kind, Parts<'_>)>), Malformed> {
    let mut metadata_bytes = 0;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(Malformed::of);
    let (mut head, mut data) = (MetricHead::default(), None);
    for field in Fields(bytes) {
        let (tag, Value::Bytes(bytes)) = field? else { continue };
        let kind = match tag {
            1 => {
                head.name = text(bytes)?;
                continue;
            }
            2 => {
                head.description = text(bytes)?;
                continue;
            }
            3 => {
                head.unit = text(bytes)?;
                continue;
            }
            12 => {
                // Its key and its length are two bytes at least.
                metadata_bytes += bytes.len() + 2;
                if metadata_bytes > metadata_bytes_max {
                    return Err(too_much_metadata());
                }
                head.metadata.push(Message::decode(bytes).map_err(Malformed::of)?);
                continue;
            }
            5 => Kind::Gauge,
            7 => Kind::Sum,
            9 => Kind::Histogram,
            10 => Kind::ExponentialHistogram,
            11 => Kind::Summary,
            _ => continue,
        };
        for field in Fields(bytes) {
            match field? {
                (2, Value::Number(n)) => head.temporality = i32::try_from(n).unwrap_or(0),
                (3, Value::Number(n)) => head.monotonic = n != 0,
                _ => {}
            }
        }
        data = Some((kind, Parts::Proto { fields: Fields(bytes), tag: 1 }));
    }
    Ok((head, data))
}

/// Whether the outer levels of a request can be walked through: what is wrong with them is found before anything is
/// handed over.
fn check(bytes: &[u8], n_levels: usize) -> Result<(), Malformed> {
    for field in Fields(bytes) {
        let (tag, value) = field?;
        // On the first level the parts are field 1, below it field 2.
        let is_part = tag == if n_levels == 3 { 1 } else { 2 };
        if let (true, Value::Bytes(bytes)) = (is_part && n_levels > 1, value) {
            check(bytes, n_levels - 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_on_any_level_is_found_at_once() {
        let raw = |bytes| Raw { bytes, encoding: Encoding::Proto };
        assert!(resources(raw(&[0x0A, 0x02, 0x12, 0x00])).is_ok());
        assert!(resources(raw(&[0x0A, 0x02, 0x12, 0x01])).is_err());
        assert!(resources(raw(&[0x0A, 0x04, 0x12, 0x02, 0x12, 0x05])).is_err());
        assert!(resources(Raw { bytes: b"{\"resourceLogs\":[{}", encoding: Encoding::Json }).is_err());
    }

    /// Walks through everything that there is, decoding what it can.
    fn walk(raw: Raw<'_>) -> usize {
        let Ok(parts) = resources(raw) else { return 0 };
        let scopes = parts.filter_map(|part| group(part).ok()).flat_map(|group| group.parts);
        let records = scopes.filter_map(|part| group(part).ok()).flat_map(|group| group.parts);
        let mut n = 0;
        for record in records {
            drop(record.decode::<opentelemetry_proto::tonic::logs::v1::LogRecord>());
            drop(record.decode::<opentelemetry_proto::tonic::trace::v1::Span>());
            n += metric(record, 1 << 20)
                .ok()
                .and_then(|(_, data)| data)
                .map_or(1, |(_, points)| points.count());
        }
        n
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_can_be_walked_through(mut bytes in proptest::collection::vec(0_u8..32, 0..80), wrap in 0..3) {
            for _ in 0..wrap {
                let tag = if bytes.is_empty() { 0x0A } else { 0x12 };
                bytes = [&[tag, bytes.len() as u8][..], &bytes].concat();
            }
            walk(Raw { bytes: &bytes, encoding: Encoding::Proto });
        }

        #[test]
        fn any_json_can_be_walked_through(
            text in "(\\{|\\}|\\[|\\]|,|:|null|1|\"resourceLogs\"|\"scopeLogs\"|\"logRecords\"|\"body\"|\"sum\"){0,30}"
        ) {
            walk(Raw { bytes: text.as_bytes(), encoding: Encoding::Json });
            let inner = format!("{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{text}]}}]}}]}}");
            walk(Raw { bytes: inner.as_bytes(), encoding: Encoding::Json });
        }
    }
}
