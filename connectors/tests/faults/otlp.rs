//! `otlp` and the OpenTelemetry Collector, which has no queue here: it acknowledges what was acknowledged to it.
//!
//! `telemetrygen` ends when a request fails, so that there is nothing to be seen with it.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use logdrive_schemas::Batch;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::at_hand;
use crate::components::Component;
use crate::listening::{Listening, listen};
use crate::storm::{Tally, numbers_behind, read_lines, settle, sink_survives, storm};
use crate::support::proxy::{FAULTS, Proxy};
use crate::support::{batch, sink};

/// And the three behind it.
const PORT: u16 = 21_430;
/// Log records of one request.
const N_RECORDS: usize = 100;
/// Bodies come in pieces when the way is bad: some take longer.
const SOURCE: &str = "{type: otlp, listen: \"127.0.0.1:PORT\", body_timeout: 50ms}";

/// Text that does not get shorter by compression.
fn filler(n: usize) -> String {
    let mut state = n as u64 | 1;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ (state >> 29))
    };
    (0..16).map(|_| word()).collect()
}

/// Sends each request to the Collector until it is taken.
async fn send_on(port: u16, acknowledged: &Tally, stop: &CancellationToken) -> usize {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let mut n = 0;
    while !stop.is_cancelled() {
        let record = |n: usize| {
            json!({
                "timeUnixNano": "1700000000000000000",
                "body": { "stringValue": filler(n) },
                "attributes": [{ "key": "n", "value": { "intValue": n.to_string() } }],
            })
        };
        let records: Vec<_> = (n..n + N_RECORDS).map(record).collect();
        let body = json!({ "resourceLogs": [{ "scopeLogs": [{ "logRecords": records }] }] }).to_string();
        let url = format!("http://127.0.0.1:{port}/v1/logs");
        let sent = client.post(url).header("content-type", "application/json").body(body).send().await;
        let answer = sent.unwrap();
        assert_eq!(answer.status(), 200, "the Collector gave up: {}", answer.text().await.unwrap());
        acknowledged.add(n..n + N_RECORDS);
        n += N_RECORDS;
    }
    n
}

async fn source_survives(what: &str, port: u16, source: Listening, proxy: Proxy) {
    let (acknowledged, stop) = (Tally::default(), CancellationToken::new());
    let storming = async {
        storm(what, &proxy, &FAULTS, false, || source.delivered.n_all()).await;
        stop.cancel();
    };
    let (n_sent, ()) = tokio::join!(send_on(port, &acknowledged, &stop), storming);
    settle(what, &proxy, n_sent, &acknowledged, async || source.delivered.clone()).await;
    source.stop().await;
}

async fn sink_of(protocol: &str, port: u16, out: &Path) {
    let proxy = Proxy::start(([127, 0, 0, 1], port).into(), None).await;
    let yaml = format!(
        "{{endpoint: \"http://{}\", protocol: {protocol}, gzip: true, request_timeout: 1s}}",
        proxy.address
    );
    let rows = |numbers: Range<usize>| -> Batch {
        let first = numbers.start as u64;
        let documents: Vec<_> =
            numbers.map(|n| format!("{{\"message\":\"{protocol} {n}\",\"n\":{n}}}")).collect();
        batch(1, first, &documents, &[])
    };
    let mark = format!("\"{protocol} ");
    let stored = async || Tally::of(numbers_behind(&read_lines(out), &mark));
    let what = format!("otlp sink, {protocol}");
    sink_survives(&what, &proxy, &FAULTS, sink("otlp", &yaml).0, (20, rows), stored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_collector_and_we_acknowledge_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let (grpc, http) = (listen(&one, SOURCE, 40, "\"n\":").await, listen(&other, SOURCE, 40, "\"n\":").await);
    let to_grpc = Proxy::start(grpc.address, None).await;
    let to_http = Proxy::start(http.address, None).await;
    let out = dir.path().join("out");
    let sending = "sending_queue: {enabled: false}, timeout: 1s, \
                   retry_on_failure: {initial_interval: 50ms, max_interval: 300ms, max_elapsed_time: 60s}";
    let config = format!(
        "receivers:\n  \
         otlp/one: {{protocols: {{http: {{endpoint: \"127.0.0.1:{}\"}}}}}}\n  \
         otlp/other: {{protocols: {{http: {{endpoint: \"127.0.0.1:{}\"}}}}}}\n  \
         otlp/sinks: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{PORT}\"}}, http: {{endpoint: \"127.0.0.1:{}\"}}}}}}\n\
         exporters:\n  \
         otlp/one: {{endpoint: \"{}\", tls: {{insecure: true}}, {sending}}}\n  \
         otlphttp/other: {{endpoint: \"http://{}\", {sending}}}\n  \
         file: {{path: \"{}\", append: true}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
         logs/one: {{receivers: [otlp/one], exporters: [otlp/one]}}\n    \
         logs/other: {{receivers: [otlp/other], exporters: [otlphttp/other]}}\n    \
         logs/sinks: {{receivers: [otlp/sinks], exporters: [file]}}\n",
        PORT + 2,
        PORT + 3,
        PORT + 1,
        to_grpc.address,
        to_http.address,
        out.display()
    );
    let path = dir.path().join("otelcol.yaml");
    std::fs::write(&path, config).unwrap();
    let env = [("OTELCOL_CONFIG", path.to_str().unwrap())];
    let started = Component::start("otelcol.sh", PORT, &env);
    let _collector = at_hand!("what_the_collector_and_we_acknowledge_is_there", started);
    tokio::join!(
        source_survives("otlp source, gRPC", PORT + 2, grpc, to_grpc),
        source_survives("otlp source, HTTP", PORT + 3, http, to_http),
        sink_of("grpc", PORT, &out),
        sink_of("http", PORT + 1, &out),
    );
}
