//! The sources of metrics: `statsd`, `prometheus_remote_write` and `prometheus_scrape`, the latter two against the real
//! Prometheus.

use std::collections::BTreeSet;
use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::time::Duration;

use logdrive_connectors::Intake;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};

use crate::components::Component;
use crate::support::{Collected, eventually, exchange, next, request, start, start_on_port};

fn documents(messages: &[Vec<u8>]) -> Vec<Value> {
    messages.iter().filter_map(|m| serde_json::from_slice(m).ok()).collect()
}

fn named<'a>(all: &'a [Value], name: &str) -> Vec<&'a Value> {
    all.iter().filter(|document| document["name"] == name).collect()
}

#[tokio::test]
async fn statsd_is_aggregated_and_nothing_that_came_is_missing() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: statsd, listen: \"127.0.0.1:PORT\", flush_interval: 50ms, quantiles: [0.5]}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(addr).await.unwrap();
    for n in 0..2000 {
        let lines =
            format!("hits:1|c|#shop:a\nhits:2|c|@0.5|#shop:b\ntook:{n}|ms\nusers:u{}|s\nno metric", n % 7);
        socket.send(lines.as_bytes()).await.unwrap();
        if n % 100 == 99 {
            // So that the kernel drops nothing.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    socket.send(b"level:5|g\nlevel:-2|g\n").await.unwrap();
    eventually(|| {
        let all = documents(&collected.now());
        named(&all, "level").iter().any(|document| document["value"] == 3.0)
    })
    .await;
    let refused = running.cx.metrics.source_errors.with_label_values(&["in", "no_metric"]).get();
    assert_eq!(running.dropped(), 0);
    running.stop().await;
    let all = documents(&collected.now());
    let sum = |shop: &str| -> f64 {
        let hits = named(&all, "hits").into_iter().filter(|document| document["labels"]["shop"] == shop);
        hits.map(|document| document["value"].as_f64().unwrap()).sum()
    };
    assert_eq!((sum("a"), sum("b")), (2000.0, 8000.0));
    let count: u64 = named(&all, "took").iter().map(|document| document["count"].as_u64().unwrap()).sum();
    assert_eq!(count, 2000);
    assert!(named(&all, "took").iter().all(|document| document["quantiles"][0]["value"].is_number()));
    assert!(named(&all, "users").iter().all(|document| document["value"].as_u64().unwrap() <= 7));
    let lines = collected.now().iter().filter(|message| *message == b"no metric").count();
    assert_eq!((lines, refused), (2000, 2000), "what is no metric becomes a reject");
    assert!(named(&all, "hits").len() > 2, "it was written several times");
}

#[tokio::test]
async fn statsd_hands_over_what_it_has_when_it_stops() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: statsd, listen: \"127.0.0.1:PORT\", flush_interval: 1h}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"a:1|c\na:2|c", addr).await.unwrap();
    running.stop().await;
    let all = documents(&collected.until(1).await);
    assert_eq!((all.len(), &all[0]["value"], &all[0]["type"]), (1, &json!(3.0), &json!("metric")));
    let (collected, intake) = Collected::all();
    let yaml = "{type: statsd, listen: \"127.0.0.1:PORT\", aggregate: false}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    socket.send_to(b"a:1:2|h|#k:v\nb:1|c|T1700000000", addr).await.unwrap();
    let all = documents(&collected.until(3).await);
    assert_eq!((&all[1]["value"], &all[1]["labels"]), (&json!(2.0), &json!({ "k": "v" })));
    assert_eq!(all[2]["@timestamp"], "2023-11-14T22:13:20Z");
    running.stop().await;
}

#[tokio::test]
async fn statsd_over_tcp_counts_every_line_however_it_is_cut() {
    const CONNECTIONS: usize = 8;
    let (collected, intake) = Collected::all();
    let yaml =
        "{type: statsd, listen: \"127.0.0.1:PORT\", protocol: tcp, flush_interval: 50ms, quantiles: [0.5]}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..CONNECTIONS {
        senders.spawn(async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let text: String =
                (0..2000).map(|n| format!("hits:1|c|#from:{sender}\r\ntook:{n}|ms\n")).collect();
            // Lines are cut anywhere, and the last one lacks its end.
            for piece in text.as_bytes().chunks(1000 + sender) {
                stream.write_all(piece).await.unwrap();
            }
            stream.write_all(b"no metric\n\nlast:1|c").await.unwrap();
            stream.shutdown().await.unwrap();
        });
    }
    while let Some(done) = senders.join_next().await {
        done.unwrap();
    }
    let sum = |name: &str| -> f64 {
        let all = documents(&collected.now());
        named(&all, name).into_iter().map(|document| document["value"].as_f64().unwrap()).sum()
    };
    eventually(|| sum("last") == CONNECTIONS as f64).await;
    assert_eq!(sum("hits"), 2000.0 * CONNECTIONS as f64);
    // One that is still open when the pipeline stops has sent what it has sent; a line without its end is none.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"hits:1|c\nhalf:1|c").await.unwrap();
    eventually(|| running.connections() == 1).await;
    let cx = running.cx.clone();
    running.stop().await;
    assert_eq!(sum("hits"), 2000.0 * CONNECTIONS as f64 + 1.0);
    let all = documents(&collected.now());
    let count: u64 = named(&all, "took").iter().map(|document| document["count"].as_u64().unwrap()).sum();
    assert_eq!((count, named(&all, "half").len()), (2000 * CONNECTIONS as u64, 0));
    let others = collected.now().len() - all.len();
    assert_eq!(others, CONNECTIONS + 1, "what is no metric, or was cut off, becomes a reject");
    assert_eq!(cx.metrics.source_messages.with_label_values(&["in"]).get(), collected.len() as u64);
    assert_eq!(cx.metrics.source_rejects.with_label_values(&["in", "line_cut_off"]).get(), 1);
}

/// A request of remote write, field by field.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2];
    let mut len = bytes.len();
    while len > 127 {
        out.push(len as u8 | 128);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
    out
}

fn label(name: &str, value: &str) -> Vec<u8> {
    field(1, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
}

fn sample(value: f64, millis: u8) -> Vec<u8> {
    field(2, &[&[0x09][..], &value.to_le_bytes(), &[0x10, millis]].concat())
}

fn snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}

const HEADERS: &str = "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n";

#[tokio::test]
async fn remote_write_of_both_versions() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: prometheus_remote_write, listen: \"127.0.0.1:PORT\"}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let series = [
        label("job", "shop"),
        label("__name__", "hits"),
        sample(1.5, 1),
        sample(f64::from_bits(0x7FF0_0000_0000_0002), 2),
        sample(f64::NAN, 3),
    ];
    // A native histogram: count 6, sum 9, schema 1, one span of two buckets with 2 and 4 in them.
    let histogram = [
        &[0x08, 6, 0x19][..],
        &9.0_f64.to_le_bytes(),
        &[0x20, 2],
        &field(11, &[0x08, 1, 0x10, 2]),
        &field(12, &[4, 4]),
        &[0x78, 5],
    ]
    .concat();
    let native = [label("__name__", "took"), field(4, &histogram)].concat();
    let body = [field(1, &series.concat()), field(1, &native)].concat();
    let answer = request(addr, "POST /api/v1/write", HEADERS, &snappy(&body)).await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert!(answer.head.contains("x-prometheus-remote-write-samples-written: 3"), "{}", answer.head);
    let all = documents(&collected.until(4).await);
    let expect = json!({
        "@timestamp": "1970-01-01T00:00:00.001Z", "signal": "metric", "type": "metric", "name": "hits", "value": 1.5,
        "service": "shop", "labels": { "job": "shop" }
    });
    assert_eq!(all[0], expect);
    assert_eq!((&all[1]["stale"], &all[1]["value"]), (&json!(true), &Value::Null));
    assert_eq!((&all[2]["value_text"], &all[2]["value"]), (&json!("NaN"), &Value::Null));
    assert_eq!((&all[3]["value"], &all[3]["count"]), (&json!(9.0), &json!(6)));
    let positive = json!({ "spans": [{ "offset": -1, "length": 2 }], "counts": [2, 4] });
    assert_eq!(all[3]["histogram"]["positive"], positive);
    // Version 2: texts once, numbers that refer to them.
    let symbols = ["", "__name__", "bytes_sent", "job", "shop", "bytes"];
    let symbols: Vec<u8> = symbols.iter().flat_map(|text| field(4, text.as_bytes())).collect();
    let series = [field(1, &[1, 2, 3, 4]), sample(7.0, 4), field(5, &[0x08, 1, 0x20, 5])].concat();
    let body = [symbols, field(5, &series)].concat();
    let v2 = HEADERS.replace("x-protobuf", "x-protobuf;proto=io.prometheus.write.v2.Request");
    assert_eq!(request(addr, "POST /api/v1/write", &v2, &snappy(&body)).await.status, 204);
    let all = documents(&collected.until(5).await);
    let expect = json!({
        "@timestamp": "1970-01-01T00:00:00.004Z", "signal": "metric", "type": "metric", "name": "bytes_sent", "value": 7.0,
        "unit": "bytes", "service": "shop", "metric": { "kind": "counter" }, "labels": { "job": "shop" }
    });
    assert_eq!(all[4], expect);
    running.stop().await;
}

#[tokio::test]
async fn remote_write_that_cannot_be_taken() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: prometheus_remote_write, listen: \"127.0.0.1:PORT\", max_expanded_bytes: 1MiB}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let unnamed = field(1, &[label("a", "b"), sample(1.0, 1)].concat());
    let twice =
        field(1, &[label("__name__", "a"), label("x", "1"), label("x", "2"), sample(1.0, 1)].concat());
    let long = field(1, &[label("__name__", "a"), label("x", &"y".repeat(70_000)), sample(1.0, 1)].concat());
    for (target, headers, body, status) in [
        ("POST /api/v1/write", HEADERS, b"no snappy".to_vec(), 400),
        ("POST /api/v1/write", HEADERS, snappy(b"\x0A\x05abc"), 400),
        ("POST /api/v1/write", HEADERS, snappy(&unnamed), 400),
        ("POST /api/v1/write", HEADERS, snappy(&twice), 400),
        ("POST /api/v1/write", HEADERS, snappy(&long), 400),
        ("POST /api/v1/write", HEADERS, snappy(&vec![0; 2 << 20]), 413),
        ("POST /api/v1/write", "Content-Type: application/json\r\n", b"{}".to_vec(), 415),
        ("POST /api/v1/write", "Content-Encoding: gzip\r\n", b"{}".to_vec(), 415),
        ("GET /api/v1/write", HEADERS, Vec::new(), 405),
        ("POST /write", HEADERS, Vec::new(), 404),
    ] {
        let answer = request(addr, target, headers, &body).await;
        assert_eq!(answer.status, status, "{target} {headers} {}", answer.body);
    }
    assert_eq!(collected.len(), 0);
    running.stop().await;
    let (intake, mut received) = Intake::channel(1);
    let yaml =
        "{type: prometheus_remote_write, listen: \"127.0.0.1:PORT\", full_timeout: 50ms, ack_timeout: 100ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let good = snappy(&field(1, &[label("__name__", "a"), sample(1.0, 1)].concat()));
    for _ in 0..2 {
        let answer = request(addr, "POST /api/v1/write", HEADERS, &good).await;
        assert_eq!(answer.status, 503);
        assert!(answer.head.contains("retry-after"));
    }
    assert_eq!(running.refused("buffer_full"), 1);
    next(&mut received).await;
    drop(received);
    running.stop().await;
}

/// What Prometheus is answered with 408 it forgets.
#[tokio::test]
async fn remote_write_that_comes_too_slowly_may_come_again() {
    let (collected, intake) = Collected::all();
    let yaml = "{type: prometheus_remote_write, listen: \"127.0.0.1:PORT\", body_timeout: 50ms}";
    let (running, addr) = start_on_port(yaml, &intake).await;
    let begun = format!(
        "POST /api/v1/write HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n{HEADERS}\r\nbegun"
    );
    let answer = exchange(addr, begun.as_bytes()).await;
    assert_eq!((answer.status, answer.head.contains("retry-after: 1")), (503, true), "{}", answer.head);
    assert_eq!(running.refused("body_timeout"), 1);
    assert_eq!(collected.len(), 0);
    running.stop().await;
}

/// Where the script keeps what it runs with.
fn run_folder(port: u16) -> PathBuf {
    let home = std::env::var_os("COMPONENTS_HOME").map(PathBuf::from);
    let home =
        home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/components"));
    home.join("run").join(format!("prometheus-{port}"))
}

#[tokio::test]
async fn prometheus_sends_and_is_scraped() {
    let (collected, intake) = Collected::all();
    let (running, addr) =
        start_on_port("{type: prometheus_remote_write, listen: \"127.0.0.1:PORT\"}", &intake).await;
    let port = 21_130;
    let started = tokio::task::spawn_blocking(move || Component::start("prometheus.sh", port, &[]));
    let prometheus = match started.await.unwrap() {
        Ok(prometheus) => prometheus,
        Err(why) => {
            return writeln!(&mut stdout(), "skipped: prometheus_sends_and_is_scraped: {why}").unwrap();
        }
    };
    let config = run_folder(port).join("prometheus.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    let write = format!("\nremote_write:\n- url: \"http://{addr}/api/v1/write\"\n  send_exemplars: true\n");
    std::fs::write(&config, text + &write).unwrap();
    let reloaded = request(([127, 0, 0, 1], port).into(), "POST /-/reload", "", b"").await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.body);
    eventually(|| named(&documents(&collected.now()), "up").len() >= 3).await;
    let sent = documents(&collected.now());
    let up = named(&sent, "up")[0];
    assert_eq!((&up["value"], &up["service"]), (&json!(1.0), &json!("app")));
    assert_eq!(up["labels"], json!({ "job": "app", "instance": format!("127.0.0.1:{port}") }));
    running.stop().await;

    let (collected, intake) = Collected::all();
    let yaml = format!(
        "{{type: prometheus_scrape, endpoint: [\"http://127.0.0.1:{port}/metrics\", \"http://127.0.0.1:1/metrics\"], \
         scrape_interval: 200ms, scrape_timeout: 200ms, job: app}}"
    );
    let running = start(&yaml, intake).await.unwrap();
    let of = |up: f64| move |document: &&Value| document["name"] == "up" && document["value"] == up;
    eventually(|| {
        let all = documents(&collected.now());
        all.iter().filter(of(1.0)).count() >= 3 && all.iter().filter(of(0.0)).count() >= 3
    })
    .await;
    let rejects = running.rejects("malformed_line");
    running.stop().await;
    assert_eq!(rejects, 0);
    let scraped = documents(&collected.now());
    assert_eq!(scraped.len(), collected.len(), "every line of the real one is read");
    let kinds = |name: &str| named(&scraped, name)[0]["metric"]["kind"].clone();
    assert_eq!(kinds("prometheus_http_requests_total"), "counter");
    assert_eq!(kinds("go_goroutines"), "gauge");
    assert_eq!(kinds("prometheus_http_request_duration_seconds_bucket"), "histogram");
    // What Prometheus finds at itself, and what is found there by us, is the same.
    let series = |all: &[Value]| -> BTreeSet<String> {
        let stable = |document: &&Value| document["name"].as_str().unwrap().starts_with("go_");
        all.iter()
            .filter(stable)
            .map(|document| format!("{}{}", document["name"], document["labels"]))
            .collect()
    };
    assert!(series(&sent).len() > 20);
    assert_eq!(series(&sent), series(&scraped));
    writeln!(&mut stdout(), "Prometheus sent {} samples, {} were scraped", sent.len(), scraped.len())
        .unwrap();
    drop(prometheus);
}
