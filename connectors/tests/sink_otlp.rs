//! The `otlp` sink against the real OpenTelemetry Collector, and against a server that refuses in part.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod components;
mod support;

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use components::Component;
use logdrive_connectors::ConnectorError;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use prost::Message as _;
use serde_json::Value;
use support::server::{Reaction, Server};
use support::{batch, deliver, deliver_at_last, errors, sink, texts};

const N_ROWS: usize = 5000;

fn documents(from: usize, to: usize) -> Vec<String> {
    (from..to)
        .map(|n| {
            format!(
                "{{\"@timestamp\":\"2026-11-21T11:00:00.{:06}Z\",\"level\":\"INFO\",\"message\":\"row {n}\",\"service\":\"cart\",\"n\":{n}}}",
                n % 1_000_000
            )
        })
        .collect()
}

/// How often each row is in the file that the Collector writes.
fn found(path: &Path) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may not be whole yet.
    let requests = text.split_inclusive('\n').filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for request in requests {
        for resource in request["resourceLogs"].as_array().unwrap() {
            assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "cart");
            for record in resource["scopeLogs"][0]["logRecords"].as_array().unwrap() {
                let body = record["body"]["stringValue"].as_str().unwrap();
                let n: usize = body.strip_prefix("row ").unwrap().parse().unwrap();
                assert_eq!(record["severityNumber"], 9);
                assert_eq!(record["attributes"][0]["value"]["intValue"], n.to_string());
                assert!(record["timeUnixNano"].as_str().unwrap().starts_with("17952588000"));
                *found.entry(n).or_default() += 1;
            }
        }
    }
    found
}

#[tokio::test]
async fn the_collector_gets_every_row_although_it_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let port = 21_150;
    for (protocol, port, http_port) in [("grpc", port, port + 1), ("http", port + 2, port + 3)] {
        let out = dir.path().join(format!("{protocol}.json"));
        let config = dir.path().join(format!("{protocol}.yaml"));
        let yaml = format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{port}\"}}, \
             http: {{endpoint: \"127.0.0.1:{http_port}\"}}}}}}}}\n\
             exporters: {{file: {{path: \"{}\", append: true}}}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
             logs: {{receivers: [otlp], exporters: [file]}}\n",
            out.display()
        );
        std::fs::write(&config, yaml).unwrap();
        let start = || {
            let config = config.to_str().unwrap().to_owned();
            tokio::task::spawn_blocking(move || {
                Component::start("otelcol.sh", port, &[("OTELCOL_CONFIG", config.as_str())])
            })
        };
        let collector = match start().await.unwrap() {
            Ok(collector) => collector,
            Err(why) => {
                return writeln!(
                    &mut stdout(),
                    "skipped: the_collector_gets_every_row_although_it_is_restarted: {why}"
                )
                .unwrap();
            }
        };
        let to = if protocol == "grpc" { port } else { http_port };
        let yaml = format!(
            "{{endpoint: \"http://127.0.0.1:{to}\", protocol: {protocol}, gzip: true, batch: {{max_bytes: 64KiB}}}}"
        );
        let (mut sink, cx) = sink("otlp", &yaml);
        sink.connect().await.unwrap();
        let half = [batch(1, 0, &documents(0, N_ROWS / 2), &[])];
        assert!(deliver(&mut *sink, &half).await.unwrap().is_empty());
        drop(collector);
        let rest = [batch(1, N_ROWS as u64 / 2, &documents(N_ROWS / 2, N_ROWS), &[])];
        let away = deliver(&mut *sink, &rest).await.err().unwrap();
        assert!(matches!(away, ConnectorError::Disconnected { .. } | ConnectorError::Busy { .. }), "{away}");
        assert!(errors(&cx, "unreachable") + errors(&cx, "broken") + errors(&cx, "timeout") > 0, "{away}");
        let collector = start().await.unwrap().unwrap();
        let (rejects, _) = deliver_at_last(&mut *sink, &rest).await;
        assert!(rejects.is_empty());
        let deadline = Instant::now() + Duration::from_secs(20);
        while found(&out).len() < N_ROWS && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(collector);
        let found = found(&out);
        let repeated = found.values().filter(|n| **n > 1).count();
        writeln!(&mut stdout(), "{protocol}: {N_ROWS} sent, {} arrived, {repeated} repeated", found.len())
            .unwrap();
        assert_eq!(found.len(), N_ROWS);
        assert_eq!(cx.metrics.sink_rows.with_label_values(&["out"]).get(), N_ROWS as u64);
    }
}

/// A server that takes no record whose number ends with 7.
async fn picky(taken: &Arc<Mutex<Vec<String>>>) -> Server {
    let taken = Arc::clone(taken);
    Server::start(move |request| {
        let all = ExportLogsServiceRequest::decode(&request.body[..]).unwrap();
        let mut rejected = 0;
        let records = all.resource_logs.iter().flat_map(|r| &r.scope_logs).flat_map(|s| &s.log_records);
        for record in records {
            match record.body.clone().unwrap().value {
                Some(Any::StringValue(body)) if !body.ends_with('7') => taken.lock().unwrap().push(body),
                _ => rejected += 1,
            }
        }
        let partial =
            ExportLogsPartialSuccess { rejected_log_records: rejected, error_message: "no sevens".into() };
        let answer = ExportLogsServiceResponse { partial_success: (rejected > 0).then_some(partial) };
        Reaction::Answer { status: 200, headers: Vec::new(), body: answer.encode_to_vec() }
    })
    .await
}

#[tokio::test]
async fn rows_that_are_refused_become_rejects_and_no_others() {
    let taken = Arc::default();
    let server = picky(&taken).await;
    let yaml = format!("{{endpoint: \"http://{}\", protocol: http}}", server.address);
    let (mut sink, cx) = sink("otlp", &yaml);
    sink.connect().await.unwrap();
    let rejects = deliver(&mut *sink, &[batch(1, 0, &documents(0, 30), &[])]).await.unwrap();
    let reasons = texts(&rejects, "reason");
    assert_eq!(reasons, ["otlp_rejected: no sevens"; 3]);
    assert!(texts(&rejects, "original")[0].contains("\"n\":7"));
    let mut found = taken.lock().unwrap().clone();
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 27);
    assert_eq!(cx.metrics.sink_rows.with_label_values(&["out"]).get(), 27);
}

async fn outcome(status: u16) -> Result<usize, ConnectorError> {
    let server = Server::start(move |_| Reaction::status(status)).await;
    let yaml = format!("{{endpoint: \"http://{}\", protocol: http}}", server.address);
    let (mut sink, _) = sink("otlp", &yaml);
    sink.connect().await.unwrap();
    let rejects = deliver(&mut *sink, &[batch(1, 0, &documents(0, 3), &[])]).await?;
    Ok(rejects.iter().map(logdrive_schemas::Batch::num_rows).sum())
}

#[tokio::test]
async fn what_answers_mean() {
    assert_eq!(outcome(200).await.unwrap(), 0);
    assert_eq!(outcome(400).await.unwrap(), 3);
    for status in [429, 500, 503] {
        assert!(matches!(outcome(status).await, Err(ConnectorError::Busy { .. })), "{status}");
    }
    for status in [401, 404, 302] {
        assert!(matches!(outcome(status).await, Err(ConnectorError::Disconnected { .. })), "{status}");
    }
}
