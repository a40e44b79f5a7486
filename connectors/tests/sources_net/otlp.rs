//! The `otlp` source: every transport and encoding, values that are easily lost, hostile requests, and the real
//! OpenTelemetry Collector and `telemetrygen` as senders.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use logdrive_connectors::{Intake, NotDurable};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint,
    exponential_histogram_data_point::Buckets, number_data_point, summary_data_point::ValueAtQuantile,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::certificates::Certificates;
use crate::components::{self, Component};
use crate::support::{Collected, eventually, exchange, gzip, next, request, start_on_port};

const OTLP: &str = "{type: otlp, listen: \"127.0.0.1:PORT\"}";
const PROTO: &str = "Content-Type: application/x-protobuf\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

fn any(value: Any) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.into(), value: any(value), ..KeyValue::default() }
}

fn text(text: &str) -> Any {
    Any::StringValue(text.into())
}

fn resource() -> Option<Resource> {
    let attributes = vec![
        pair("service.name", text("cart")),
        pair("host.name", text("web-1")),
        pair("deployment.environment.name", text("prod")),
        pair("process.pid", Any::IntValue(17)),
    ];
    Some(Resource { attributes, ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: "lib".into(),
        version: "1.2".into(),
        ..InstrumentationScope::default()
    })
}

fn logs(records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let scope_logs = vec![ScopeLogs { scope: scope(), log_records: records, schema_url: "s".into() }];
    let resource_logs = vec![ResourceLogs { resource: resource(), scope_logs, schema_url: "r".into() }];
    ExportLogsServiceRequest { resource_logs }
}

fn log(body: &str) -> LogRecord {
    LogRecord { time_unix_nano: 1, body: any(text(body)), ..LogRecord::default() }
}

fn numbered(n: usize) -> ExportLogsServiceRequest {
    logs((0..n).map(|i| log(&i.to_string())).collect())
}

fn documents(messages: &[Vec<u8>]) -> Vec<Value> {
    let parse = |m: &Vec<u8>| {
        serde_json::from_slice(m).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(m)))
    };
    messages.iter().map(parse).collect()
}

async fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

/// A record with every kind of value that is easily lost.
fn rich() -> LogRecord {
    let list = KeyValueList {
        values: vec![
            pair("deep", Any::ArrayValue(ArrayValue { values: vec![any(Any::BoolValue(true)).unwrap()] })),
            pair("none", text("")),
        ],
    };
    LogRecord {
        time_unix_nano: 1_700_000_000_123_456_789,
        observed_time_unix_nano: 1_700_000_001_000_000_000,
        severity_number: 17,
        severity_text: "Err\u{fc}r".into(),
        body: any(text("line one\nline \"two\"\u{0}")),
        attributes: vec![
            pair("int", Any::IntValue(i64::MAX)),
            pair("negative", Any::IntValue(-9_007_199_254_740_993)),
            pair("double", Any::DoubleValue(0.1)),
            pair("nan", Any::DoubleValue(f64::NAN)),
            pair("bytes", Any::BytesValue(vec![0, 255, 16])),
            pair("nested", Any::KvlistValue(list)),
            pair("http.method", text("GET")),
            pair("twice", text("first")),
            pair("twice", text("last")),
            KeyValue { key: "empty".into(), ..KeyValue::default() },
            pair("exception.type", text("Timeout")),
            pair("exception.message", text("too slow")),
        ],
        dropped_attributes_count: 2,
        flags: 1,
        trace_id: (1..=16).collect(),
        span_id: vec![0xAB; 8],
        event_name: "checkout".into(),
    }
}

fn rich_document() -> Value {
    json!({
        "@timestamp": "2023-11-14T22:13:20.123456789Z",
        "signal": "log",
        "observed_timestamp": "2023-11-14T22:13:21Z",
        "level": "ERROR",
        "severity_number": 17,
        "severity_text": "Err\u{fc}r",
        "event_name": "checkout",
        "message": "line one\nline \"two\"\u{0}",
        "trace_id": "0102030405060708090a0b0c0d0e0f10",
        "span_id": "abababababababab",
        "flags": 1,
        "error": { "type": "Timeout", "message": "too slow" },
        "attributes": {
            "int": i64::MAX,
            "negative": -9_007_199_254_740_993_i64,
            "double": 0.1,
            "nan": "NaN",
            "bytes": "AP8Q",
            "nested": { "deep": [true], "none": "" },
            "http.method": "GET",
            "twice": "last",
            "empty": null,
            "exception.type": "Timeout",
            "exception.message": "too slow",
        },
        "dropped_attributes_count": 2,
        "service": "cart",
        "host": "web-1",
        "env": "prod",
        "resource": {
            "attributes": {
                "service.name": "cart",
                "host.name": "web-1",
                "deployment.environment.name": "prod",
                "process.pid": 17,
            },
            "schema_url": "r",
        },
        "scope": { "name": "lib", "version": "1.2", "schema_url": "s" },
    })
}

#[tokio::test]
async fn nothing_of_a_log_record_is_lost_over_any_transport() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let all = logs(vec![rich()]);
    let plain = LogsServiceClient::new(channel(addr).await);
    let zipped =
        plain.clone().send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    for mut client in [plain, zipped] {
        let answer = client.export(all.clone()).await.unwrap().into_inner();
        assert_eq!(answer, ExportLogsServiceResponse::default());
    }
    let proto = all.encode_to_vec();
    let answer = request(addr, "POST /v1/logs", PROTO, &proto).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(answer.head.contains("content-type: application/x-protobuf"));
    let zip = format!("{PROTO}Content-Encoding: gzip\r\n");
    assert_eq!(request(addr, "POST /v1/logs", &zip, &gzip(&proto)).await.status, 200);
    // NaN is a string in JSON, which what writes it here does not know.
    let mut in_json = serde_json::to_value(&all).unwrap();
    let attributes = &mut in_json["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["attributes"];
    let nan = attributes.as_array_mut().unwrap().iter_mut().find(|kv| kv["key"] == "nan").unwrap();
    nan["value"] = json!({ "doubleValue": "NaN" });
    let answer = request(addr, "POST /v1/logs", JSON, in_json.to_string().as_bytes()).await;
    assert_eq!((answer.status, answer.json()), (200, json!({})));
    for document in documents(&collected.until(5).await) {
        assert_eq!(document, rich_document());
    }
    assert_eq!(running.messages(), 5);
    running.stop().await;
}

/// As the specification's own example has it, with what it allows: numbers as strings, fields that nobody knows.
#[tokio::test]
async fn json_as_the_specification_writes_it() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let body = json!({ "resourceLogs": [{
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": "my.service" } }] },
        "scopeLogs": [{
            "scope": { "name": "my.library", "version": "1.0.0" },
            "noSuchField": { "a": [1, 2] },
            "logRecords": [
                {
                    "timeUnixNano": "1544712660300000000",
                    "severityNumber": 10,
                    "severityText": "Information",
                    "traceId": "5B8EFFF798038103D269B633813FC60C",
                    "spanId": "EEE19B7EC3C1B174",
                    "body": { "stringValue": "Example log record" },
                    "attributes": [
                        { "key": "int", "value": { "intValue": "9223372036854775807" } },
                        { "key": "number", "value": { "intValue": 5 } },
                        { "key": "bytes", "value": { "bytesValue": "AP8Q" } },
                        { "key": "array", "value": { "arrayValue": { "values": [{ "doubleValue": 1.5 }] } } },
                        { "key": "map", "value": { "kvlistValue": { "values": [
                            { "key": "k", "value": { "boolValue": false } }] } } },
                    ],
                },
                { "body": { "kvlistValue": { "values": [{ "key": "a", "value": { "intValue": "1" } }] } } },
            ],
        }],
    }]});
    let answer = request(addr, "POST /v1/logs", JSON, body.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let found = documents(&collected.until(2).await);
    assert_eq!(found[0]["@timestamp"], "2018-12-13T14:51:00.3Z");
    assert_eq!(found[0]["level"], "INFO");
    assert_eq!(found[0]["trace_id"], "5b8efff798038103d269b633813fc60c");
    assert_eq!(found[0]["service"], "my.service");
    let attributes = json!({
        "int": i64::MAX, "number": 5, "bytes": "AP8Q", "array": [1.5], "map": { "k": false }
    });
    assert_eq!(found[0]["attributes"], attributes);
    assert_eq!(found[1]["body"], json!({ "a": 1 }));
    assert!(found[1]["@timestamp"].is_string(), "when it came");
    running.stop().await;
}

fn point(value: number_data_point::Value) -> NumberDataPoint {
    NumberDataPoint {
        attributes: vec![pair("code", Any::IntValue(200))],
        start_time_unix_nano: 1_600_000_000_000_000_000,
        time_unix_nano: 1_700_000_000_000_000_000,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn every_metric() -> ExportMetricsServiceRequest {
    let metric = |name: &str, data| Metric {
        name: name.into(),
        description: "what it is".into(),
        unit: "ms".into(),
        data: Some(data),
        ..Metric::default()
    };
    let histogram = HistogramDataPoint {
        count: 6,
        sum: Some(21.5),
        bucket_counts: vec![1, 2, 3],
        explicit_bounds: vec![1.0, 5.0],
        min: Some(0.5),
        max: Some(9.0),
        ..HistogramDataPoint::default()
    };
    let exponential = ExponentialHistogramDataPoint {
        count: 4,
        sum: Some(8.0),
        scale: -2,
        zero_count: 1,
        positive: Some(Buckets { offset: -3, bucket_counts: vec![1, 2] }),
        ..ExponentialHistogramDataPoint::default()
    };
    let summary = SummaryDataPoint {
        count: 10,
        sum: 55.0,
        quantile_values: vec![
            ValueAtQuantile { quantile: 0.0, value: 1.0 },
            ValueAtQuantile { quantile: 0.5, value: 5.0 },
            ValueAtQuantile { quantile: 1.0, value: f64::INFINITY },
        ],
        ..SummaryDataPoint::default()
    };
    let metrics = vec![
        metric(
            "gauge",
            Data::Gauge(Gauge {
                data_points: vec![
                    point(number_data_point::Value::AsDouble(0.25)),
                    point(number_data_point::Value::AsDouble(f64::NAN)),
                ],
            }),
        ),
        metric(
            "sum",
            Data::Sum(Sum {
                data_points: vec![point(number_data_point::Value::AsInt(9_007_199_254_740_993))],
                aggregation_temporality: 2,
                is_monotonic: true,
            }),
        ),
        metric(
            "histogram",
            Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality: 1 }),
        ),
        metric(
            "exponential",
            Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![exponential],
                aggregation_temporality: 2,
            }),
        ),
        metric("summary", Data::Summary(Summary { data_points: vec![summary] })),
    ];
    let scope_metrics = vec![ScopeMetrics { scope: scope(), metrics, ..ScopeMetrics::default() }];
    let resource_metrics =
        vec![ResourceMetrics { resource: resource(), scope_metrics, ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn check_metrics(found: &[Value]) {
    let of = |idx: usize, key: &str| found[idx][key].clone();
    assert_eq!(found.len(), 6);
    for document in found {
        assert_eq!((&document["type"], &document["signal"]), (&json!("metric"), &json!("metric")));
        assert_eq!((&document["service"], &document["unit"]), (&json!("cart"), &json!("ms")));
    }
    assert_eq!((of(0, "name"), of(0, "value")), (json!("gauge"), json!(0.25)));
    assert_eq!(of(0, "labels"), json!({ "code": 200 }));
    assert_eq!(of(0, "@timestamp"), "2023-11-14T22:13:20Z");
    assert_eq!((of(1, "value"), of(1, "value_text")), (Value::Null, json!("NaN")));
    assert_eq!(of(2, "value"), json!(9_007_199_254_740_993_i64));
    let metric = json!({
        "kind": "sum", "temporality": "cumulative", "monotonic": true, "description": "what it is",
        "start": "2020-09-13T12:26:40Z"
    });
    assert_eq!(of(2, "metric"), metric);
    assert_eq!((of(3, "value"), of(3, "count")), (json!(21.5), json!(6)));
    assert_eq!((of(3, "min"), of(3, "max")), (json!(0.5), json!(9.0)));
    assert_eq!(of(3, "histogram"), json!({ "bounds": [1.0, 5.0], "counts": [1, 2, 3] }));
    assert_eq!(found[3]["metric"]["temporality"], "delta");
    let buckets = json!({
        "scale": -2, "zero_count": 1, "zero_threshold": 0.0, "positive": { "offset": -3, "counts": [1, 2] }
    });
    assert_eq!(of(4, "histogram"), buckets);
    assert_eq!(
        (of(5, "value"), of(5, "min"), of(5, "max_text")),
        (json!(55.0), json!(1.0), json!("Infinity"))
    );
    assert_eq!(found[5]["quantiles"][1], json!({ "quantile": 0.5, "value": 5.0 }));
}

#[tokio::test]
async fn data_points_of_every_kind() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let mut client = MetricsServiceClient::new(channel(addr).await);
    client.export(every_metric()).await.unwrap();
    check_metrics(&documents(&collected.until(6).await));
    running.stop().await;
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let mut body = serde_json::to_value(every_metric()).unwrap();
    let points = &mut body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"];
    points[0]["gauge"]["dataPoints"][1]["asDouble"] = json!("NaN");
    points[4]["summary"]["dataPoints"][0]["quantileValues"][2]["value"] = json!("Infinity");
    let body = body.to_string().into_bytes();
    let answer = request(addr, "POST /v1/metrics", JSON, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    check_metrics(&documents(&collected.until(6).await));
    running.stop().await;
}

#[tokio::test]
async fn spans_and_their_events() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let event = |name: &str, attributes| Event {
        time_unix_nano: 1_700_000_000_500_000_000,
        name: name.into(),
        attributes,
        ..Event::default()
    };
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        parent_span_id: vec![3; 8],
        trace_state: "a=b".into(),
        name: "GET /cart".into(),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_012_500_000,
        attributes: vec![pair("http.route", text("/cart"))],
        events: vec![
            event("retry", vec![]),
            event("exception", vec![pair("exception.type", text("E")), pair("exception.message", text("m"))]),
        ],
        links: vec![Link { trace_id: vec![9; 16], span_id: vec![8; 8], ..Link::default() }],
        status: Some(Status { message: "failed".into(), code: 2 }),
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { scope: scope(), spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans =
        vec![ResourceSpans { resource: resource(), scope_spans, ..ResourceSpans::default() }];
    let all = ExportTraceServiceRequest { resource_spans };
    TraceServiceClient::new(channel(addr).await).export(all).await.unwrap();
    let found = documents(&collected.until(3).await);
    let span = json!({
        "name": "GET /cart", "kind": "server", "parent_id": "0303030303030303", "trace_state": "a=b",
        "end": "2023-11-14T22:13:20.0125Z", "status_message": "failed", "events_count": 2,
        "links": [{ "trace_id": "09".repeat(16), "span_id": "08".repeat(8) }]
    });
    assert_eq!(found[0]["span"], span);
    assert_eq!((&found[0]["duration_ms"], &found[0]["outcome"]), (&json!(12.5), &json!("failure")));
    assert_eq!((&found[1]["signal"], &found[1]["message"]), (&json!("span_event"), &json!("retry")));
    assert_eq!(found[2]["error"], json!({ "type": "E", "message": "m" }));
    for document in &found {
        assert_eq!(document["trace_id"], "01".repeat(16));
        assert_eq!(document["service"], "cart");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_taken_is_counted_and_the_rest_is_taken() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: otlp, listen: \"127.0.0.1:PORT\", max_record_bytes: 1KiB}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let long = "x".repeat(2000);
    let all = logs(vec![log("a"), log(&long), log("b")]);
    let mut client = LogsServiceClient::new(channel(addr).await);
    let partial = client.export(all.clone()).await.unwrap().into_inner().partial_success.unwrap();
    assert_eq!(partial.rejected_log_records, 1);
    assert!(partial.error_message.contains("max_record_bytes"), "{}", partial.error_message);
    let answer = request(addr, "POST /v1/logs", PROTO, &all.encode_to_vec()).await;
    assert!(answer.status == 200 && answer.body.contains(&partial.error_message), "{}", answer.body);
    let answer = request(addr, "POST /v1/logs", JSON, &serde_json::to_vec(&all).unwrap()).await;
    assert_eq!(answer.json()["partialSuccess"]["rejectedLogRecords"], "1");
    // A record whose text is not UTF-8 is refused alone.
    let mut broken = logs(vec![log("a"), log("?!?!"), log("b")]).encode_to_vec();
    let at = broken.windows(4).position(|window| window == b"?!?!").unwrap();
    broken[at] = 0xFF;
    let answer = request(addr, "POST /v1/logs", PROTO, &broken).await;
    assert!(answer.status == 200 && answer.body.contains("malformed"), "{}", answer.body);
    // A resource that is too long takes its records with it.
    let mut heavy = logs(vec![log("a"), log("b")]);
    heavy.resource_logs[0].resource.as_mut().unwrap().attributes.push(pair("long", text(&long)));
    heavy.resource_logs.extend(logs(vec![log("c")]).resource_logs);
    let partial = client.export(heavy).await.unwrap().into_inner().partial_success.unwrap();
    assert_eq!(partial.rejected_log_records, 2);
    let found = documents(&collected.until(9).await);
    let bodies: Vec<_> = found.iter().map(|document| document["message"].as_str().unwrap()).collect();
    assert_eq!(bodies, ["a", "b", "a", "b", "a", "b", "a", "b", "c"]);
    let refused = running.cx.metrics.source_errors.with_label_values(&["in", "records_refused"]).get();
    assert_eq!(refused, 6);
    running.stop().await;
}

#[tokio::test]
async fn requests_that_are_wrong() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let cut = &numbered(3).encode_to_vec()[..40];
    for (target, headers, body, status) in [
        ("POST /v1/logs", PROTO, cut, 400),
        ("POST /v1/logs", JSON, b"{\"resourceLogs\":[{}", 400),
        ("POST /v1/logs", JSON, b"[]", 400),
        ("POST /v1/logs", "", b"{}", 415),
        ("POST /v1/logs", "Content-Type: text/plain\r\n", b"{}", 415),
        ("GET /v1/logs", JSON, b"", 405),
        ("POST /v1/nothing", JSON, b"{}", 404),
        ("POST /v1/logs", "Content-Type: application/json\r\nContent-Encoding: br\r\n", b"{}", 415),
    ] {
        let answer = request(addr, target, headers, body).await;
        assert_eq!(answer.status, status, "{target} {headers} {}", answer.body);
    }
    // None of these is worth a second try.
    let answer = request(addr, "POST /v1/logs", JSON, b"[]").await;
    assert!(answer.json()["message"].is_string() && !answer.head.contains("retry-after"), "{}", answer.head);
    assert_eq!(request(addr, "POST /v1/logs", JSON, b"{}").await.status, 200, "nothing at all is fine");
    assert_eq!(collected.len(), 0);
    running.stop().await;
}

#[tokio::test]
async fn bombs_are_refused_or_bounded() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: otlp, listen: \"127.0.0.1:PORT\", max_body_bytes: 4MiB, max_expanded_bytes: 8MiB}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let zip = format!("{PROTO}Content-Encoding: gzip\r\n");
    let answer = request(addr, "POST /v1/logs", &zip, &gzip(&vec![0; 64 << 20])).await;
    assert_eq!(answer.status, 413);
    let mut client = LogsServiceClient::new(channel(addr).await).send_compressed(CompressionEncoding::Gzip);
    let bomb = client.export(logs(vec![log(&"a".repeat(32 << 20))])).await.unwrap_err();
    assert_eq!(bomb.code(), Code::ResourceExhausted);
    assert!(bomb.details().is_empty(), "it is not to be sent again");
    let mut plain = LogsServiceClient::new(channel(addr).await);
    assert_eq!(
        plain.export(logs(vec![log(&"a".repeat(5 << 20))])).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    // Records of two bytes each, below a resource that is copied into every one of them.
    let mut resource = resource().unwrap();
    resource.attributes.push(pair("long", text(&"x".repeat(100_000))));
    let scope_logs =
        vec![ScopeLogs { log_records: vec![LogRecord::default(); 10_000], ..ScopeLogs::default() }];
    let resource_logs =
        vec![ResourceLogs { resource: Some(resource), scope_logs, ..ResourceLogs::default() }];
    let peak = crate::support::reset_peak();
    let answer = plain.export(ExportLogsServiceRequest { resource_logs }).await.unwrap().into_inner();
    assert!(crate::support::peak() - peak < 300 << 20, "{} MiB", (crate::support::peak() - peak) >> 20);
    let partial = answer.partial_success.unwrap();
    assert_eq!(partial.rejected_log_records as usize + collected.len(), 10_000);
    assert!(partial.error_message.contains("hundredfold"), "{}", partial.error_message);
    // Values that are nested deeper than anybody means.
    let mut deep = Any::BoolValue(true);
    for _ in 0..90 {
        deep = Any::ArrayValue(ArrayValue { values: vec![any(deep).unwrap()] });
    }
    let mut record = log("deep");
    record.attributes.push(pair("deep", deep));
    let refused = plain.export(logs(vec![record])).await.unwrap().into_inner().partial_success.unwrap();
    assert_eq!(refused.rejected_log_records, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_full_buffer_asks_to_come_again() {
    let (intake, mut received) = Intake::channel(1);
    let yaml = "{type: otlp, listen: \"127.0.0.1:PORT\", full_timeout: 50ms, ack_timeout: 100ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let mut client = LogsServiceClient::new(channel(addr).await);
    let status = client.export(numbered(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "taken, but nobody confirms");
    let status = client.export(numbered(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(details.contains("type.googleapis.com/google.rpc.RetryInfo"), "{details}");
    let answer = request(addr, "POST /v1/logs", PROTO, &numbered(1).encode_to_vec()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 1"));
    assert_eq!(running.refused("buffer_full"), 2);
    next(&mut received).await;
    drop(received);
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_durable_is_not_confirmed() {
    let (_, intake) = Collected::answering(|| Err(NotDurable("the disk is full".into())));
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let status = LogsServiceClient::new(channel(addr).await).export(numbered(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("the disk is full"));
    running.stop().await;
}

#[tokio::test]
async fn only_those_with_credentials_are_let_in_over_grpc_too() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: otlp, listen: \"127.0.0.1:PORT\", auth: {bearer: s3cret}}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let channel = channel(addr).await;
    let status = LogsServiceClient::new(channel.clone()).export(numbered(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut known = tonic::Request::new(numbered(1));
    known.metadata_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    LogsServiceClient::new(channel).export(known).await.unwrap();
    assert_eq!(request(addr, "POST /v1/logs", JSON, b"{}").await.status, 401);
    assert_eq!(collected.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let certificates = Certificates::new();
    let (collected, intake) = Collected::all();
    let yaml = format!("{{type: otlp, listen: \"127.0.0.1:PORT\", {}}}", certificates.mutual());
    let (running, addr) = start_on_port(&yaml, &intake).await;
    let read = |name: &str| std::fs::read(certificates.path(name)).unwrap();
    let connect = |identity: Option<&str>| {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .domain_name("localhost");
        if let Some(name) = identity {
            let (certificate, key) = (read(&format!("{name}.pem")), read(&format!("{name}.key")));
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Endpoint::from_shared(format!("https://{addr}")).unwrap().tls_config(tls).unwrap()
    };
    let channel = connect(Some("client")).connect().await.unwrap();
    LogsServiceClient::new(channel).export(numbered(3)).await.unwrap();
    for stranger in [None, Some("stranger")] {
        let refused = match connect(stranger).connect().await {
            Err(_) => true,
            Ok(channel) => LogsServiceClient::new(channel).export(numbered(1)).await.is_err(),
        };
        assert!(refused, "{stranger:?}");
    }
    assert_eq!(collected.len(), 3);
    running.stop().await;
}

/// A sender forgets what is answered with 408.
#[tokio::test]
async fn what_comes_too_slowly_may_come_again() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: otlp, listen: \"127.0.0.1:PORT\", body_timeout: 50ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let head = "POST /v1/logs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n";
    let answer = exchange(addr, format!("{head}{JSON}\r\n{{").as_bytes()).await;
    assert_eq!((answer.status, answer.head.contains("retry-after: 1")), (503, true), "{}", answer.head);
    assert_eq!(running.refused("body_timeout"), 1);
    assert_eq!(collected.len(), 0);
    running.stop().await;
}

/// A connection that says nothing is closed, although nobody knows yet which protocol it would have spoken.
#[tokio::test]
async fn silence_has_an_end() {
    let (_collected, intake) = Collected::all();
    let yaml = "{type: otlp, listen: \"127.0.0.1:PORT\", header_timeout: 100ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    for said in [&b""[..], b"PRI * HT"] {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, said).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an end").ok();
    }
    eventually(|| running.connections() == 0).await;
    assert_eq!(running.refused("header_timeout"), 2);
    running.stop().await;
}

/// What `telemetrygen` sends, by kind.
async fn telemetrygen(addr: SocketAddr, signal: &str, args: &[&str]) -> Result<(), String> {
    let script = tokio::task::spawn_blocking(|| components::script("otelcol.sh")).await.unwrap()?;
    let mut command = Command::new(script);
    command.args(["telemetrygen", signal, "--otlp-insecure", "--rate", "0"]).args(args);
    command.args(["--otlp-endpoint", &addr.to_string()]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.map_err(|e| e.to_string())?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn telemetrygen_sends() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    for (signal, args) in [
        ("logs", &["--logs", "2000", "--workers", "2"][..]),
        ("logs", &["--logs", "2000", "--workers", "2", "--otlp-http"]),
        ("metrics", &["--metrics", "500", "--metric-type", "Sum"]),
        ("metrics", &["--metrics", "500", "--metric-type", "Histogram", "--otlp-http"]),
        ("traces", &["--traces", "500"]),
        ("traces", &["--traces", "500", "--otlp-http"]),
    ] {
        if let Err(why) = telemetrygen(addr, signal, args).await {
            return writeln!(&mut stdout(), "skipped: telemetrygen_sends: {why}").unwrap();
        }
    }
    let mut found = BTreeMap::new();
    for document in documents(&collected.now()) {
        *found.entry(document["signal"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    writeln!(&mut stdout(), "telemetrygen: {found:?}").unwrap();
    // A trace of telemetrygen is two spans.
    assert_eq!((found["log"], found["metric"], found["span"]), (8000, 1000, 2000));
    running.stop().await;
}

/// Through the real Collector, which sends what it got by gRPC and, once more, as JSON over HTTP.
#[tokio::test]
async fn the_collector_sends() {
    let (collected, intake) = Collected::all();
    let (running, addr) = start_on_port(OTLP, &intake).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("otelcol.yaml");
    let port = 21_110;
    let yaml = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{port}\"}}}}}}}}\n\
         exporters:\n  otlp: {{endpoint: \"{addr}\", tls: {{insecure: true}}, compression: gzip}}\n  \
         otlphttp: {{endpoint: \"http://{addr}\", encoding: json, compression: zstd}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
         logs: {{receivers: [otlp], exporters: [otlp, otlphttp]}}\n    \
         metrics: {{receivers: [otlp], exporters: [otlp, otlphttp]}}\n    \
         traces: {{receivers: [otlp], exporters: [otlp, otlphttp]}}\n"
    );
    std::fs::write(&config, yaml).unwrap();
    let path = config.to_str().unwrap().to_owned();
    let started = tokio::task::spawn_blocking(move || {
        Component::start("otelcol.sh", port, &[("OTELCOL_CONFIG", path.as_str())])
    });
    let collector = match started.await.unwrap() {
        Ok(collector) => collector,
        Err(why) => return writeln!(&mut stdout(), "skipped: the_collector_sends: {why}").unwrap(),
    };
    let through = SocketAddr::from(([127, 0, 0, 1], port));
    let channel = channel(through).await;
    LogsServiceClient::new(channel.clone()).export(logs(vec![rich()])).await.unwrap();
    MetricsServiceClient::new(channel).export(every_metric()).await.unwrap();
    telemetrygen(through, "logs", &["--logs", "3000"]).await.unwrap();
    telemetrygen(through, "traces", &["--traces", "1000"]).await.unwrap();
    collected.until(2 * (1 + 6 + 3000 + 2000)).await;
    drop(collector);
    let found = documents(&collected.now());
    assert_eq!(found.len(), 2 * (1 + 6 + 3000 + 2000));
    let rich: Vec<_> = found.iter().filter(|document| document["event_name"] == "checkout").collect();
    assert_eq!(rich.len(), 2);
    for document in rich {
        // The Collector keeps the first of two attributes with one key, or both; all else is as it was sent.
        let mut document = document.clone();
        document["attributes"]["twice"] = json!("last");
        assert_eq!(document, rich_document());
    }
    for kind in ["gauge", "sum", "histogram", "exponential_histogram", "summary"] {
        let of = |document: &&Value| document["metric"]["kind"] == kind && document["service"] == "cart";
        assert_eq!(found.iter().filter(of).count(), if kind == "gauge" { 4 } else { 2 }, "{kind}");
    }
    running.stop().await;
}
