//! OTLP while the binary is killed and started again: whatever was acknowledged, to a sender of ours or to the real
//! OpenTelemetry Collector, arrives. The Collector has no queue here, so that it acknowledges what it could pass on.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, helpers included")]
#![allow(dead_code, reason = "the helpers serve several tests")]

#[path = "../../connectors/tests/components/mod.rs"]
mod components;
mod e2e_support;

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use components::Component;
use e2e_support::{Lab, free_port, try_http, until, until_within};
use serde_json::json;

const KILLS: usize = 5;
/// Log records of one request.
const RECORDS: usize = 100;

/// What one sender knows.
#[derive(Default)]
struct Known {
    n_acked: AtomicUsize,
    stop: AtomicBool,
}

/// Sends numbered records as JSON over HTTP, each request until it is taken.
fn send(port: u16, known: &Known) {
    while !known.stop.load(Ordering::Relaxed) {
        let first = known.n_acked.load(Ordering::Relaxed);
        let records: Vec<_> = (first..first + RECORDS)
            .map(|n| {
                json!({
                    "timeUnixNano": "1700000000000000000",
                    "severityNumber": 9,
                    "body": { "stringValue": format!("record {n}") },
                    "attributes": [{ "key": "n", "value": { "intValue": n.to_string() } }],
                })
            })
            .collect();
        let resource =
            json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": "test" } }] });
        let body =
            json!({ "resourceLogs": [{ "resource": resource, "scopeLogs": [{ "logRecords": records }] }] });
        match try_http(port, "POST", "/v1/logs", "application/json", &body.to_string()) {
            Ok((200, answer)) => {
                assert!(!answer.contains("rejected"), "{answer}");
                known.n_acked.store(first + RECORDS, Ordering::Relaxed);
            }
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Kills the binary again and again while records are sent to `to`, which may be the binary or pass on to it.
fn survive(lab: &Lab, to: u16, way: &str) {
    let mut pipeline = lab.run();
    let known = Arc::new(Known::default());
    let sender = thread::spawn({
        let known = Arc::clone(&known);
        move || send(to, &known)
    });
    let acked = || known.n_acked.load(Ordering::Relaxed);
    for _ in 0..KILLS {
        let before = acked();
        until("records are acknowledged", || acked() > before + 2000);
        pipeline.kill();
        pipeline = lab.run();
    }
    let before = acked();
    until("the sender goes on", || acked() > before);
    known.stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    let n_acked = acked();
    let found = || {
        let mut found = BTreeMap::<u64, usize>::new();
        for document in lab.documents("out.ndjson") {
            let n = document["attributes"]["n"].as_u64().unwrap();
            assert_eq!(document["message"], format!("record {n}"));
            assert_eq!((&document["service"], &document["level"]), (&json!("test"), &json!("INFO")));
            *found.entry(n).or_default() += 1;
        }
        found
    };
    until_within(Duration::from_secs(60), "everything that was acknowledged arrives", || {
        let found = found();
        (0..n_acked as u64).all(|n| found.contains_key(&n))
    });
    pipeline.stop();
    let found = found();
    let n_repeated = found.values().filter(|n| **n > 1).count();
    println!(
        "{way}, {KILLS} kills: {n_acked} acknowledged, {} delivered, none missing, {n_repeated} repeated",
        found.len()
    );
}

fn lab(port: u16) -> Lab {
    Lab::new(&format!(
        "sources: {{ in: {{ type: otlp, listen: \"127.0.0.1:{port}\", schema: {{ fields: {{ \"@timestamp\": timestamp, \
         attributes: {{ n: int64 }} }} }} }} }}\n\
         streams: {{ all: {{ from: [in], steps: [{{ where: \"attributes.n >= 0 AND \\\"@timestamp\\\" IS NOT NULL\" }}] }} }}\n\
         sinks: {{ out: {{ type: file, from: [all], path: out.ndjson }} }}\n"
    ))
}

#[test]
fn what_was_acknowledged_arrives_although_the_binary_is_killed() {
    let port = free_port();
    survive(&lab(port), port, "OTLP/HTTP");
}

#[test]
fn what_the_collector_acknowledged_arrives_although_the_binary_is_killed() {
    let (port, through) = (free_port(), 21_120);
    let lab = lab(port);
    lab.write(
        "otelcol.yaml",
        &format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: \"127.0.0.1:{through}\"}}}}}}}}\n\
             exporters:\n  otlp:\n    endpoint: \"127.0.0.1:{port}\"\n    tls: {{insecure: true}}\n    \
             sending_queue: {{enabled: false}}\n    \
             retry_on_failure: {{initial_interval: 100ms, max_interval: 500ms, max_elapsed_time: 60s}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
             logs: {{receivers: [otlp], exporters: [otlp]}}\n"
        ),
    );
    let config = lab.path("otelcol.yaml");
    match Component::start("otelcol.sh", through, &[("OTELCOL_CONFIG", config.to_str().unwrap())]) {
        Ok(_collector) => survive(&lab, through, "OpenTelemetry Collector over gRPC"),
        Err(why) => writeln!(
            &mut stdout(),
            "skipped: what_the_collector_acknowledged_arrives_although_the_binary_is_killed: {why}"
        )
        .unwrap(),
    }
}
