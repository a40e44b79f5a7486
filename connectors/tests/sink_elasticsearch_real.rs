//! The `elasticsearch` sink against real servers: types in place, documents found again, nothing twice.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "sources_net/certificates.rs"]
mod certificates;
mod support;

use std::io::{Write as _, stdout};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, TimestampMicrosecondArray};
use certificates::Certificates;
use logdrive_schemas::Batch;
use serde_json::{Value, json};
use support::component::Component;
use support::proxy::{FAULTS, Fault, Proxy};
use support::{RECEIVED_AT, batch, count, deliver, deliver_at_last, sink, texts};

const N_ROWS: usize = 2000;

/// Otherwise the server makes no index on a disk that is nearly full, and everybody waits for ever.
async fn use_a_full_disk(server: &Component) {
    let settings = r#"{"persistent":{"cluster.routing.allocation.disk.threshold_enabled":false}}"#;
    let request = reqwest::Client::new().put(server.url("_cluster/settings"));
    let request = request.header("content-type", "application/json").body(settings);
    assert!(request.send().await.unwrap().status().is_success());
}

fn rows() -> Vec<Batch> {
    let at = |n: usize| RECEIVED_AT - (n % 3) as i64 * 24 * 3_600_000_000;
    let document = |n: usize| {
        let time = jiff::Timestamp::from_microsecond(at(n)).unwrap();
        // Every 500th has an address that is none: the index refuses it.
        let ip =
            if n % 500 == 499 { "not an address".into() } else { format!("10.0.{}.{}", n / 250, n % 250) };
        let place = json!({ "location": { "lat": 48.2, "lon": 16.4 }, "city_name": "Wien" });
        json!({ "@timestamp": time.to_string(), "ip": ip, "geo": place, "level": "INFO", "n": n,
                "message": format!("line one\nline two of {n} \u{2028} \"quoted\"") })
        .to_string()
    };
    let numbers: Vec<usize> = (0..N_ROWS).collect();
    let batches = numbers.chunks(300).map(|chunk| {
        let documents: Vec<String> = chunk.iter().map(|n| document(*n)).collect();
        let times = TimestampMicrosecondArray::from_iter_values(chunk.iter().map(|n| at(*n)));
        let times: ArrayRef = Arc::new(times.with_timezone("UTC"));
        batch(9, chunk[0] as u64, &documents, &[("@timestamp", times)])
    });
    batches.collect()
}

/// One at a time: they are large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_indexed_with_their_types_found_again_and_never_twice() {
    for (name, port) in [("opensearch", 21_310), ("elasticsearch", 21_312)] {
        match Component::start(name, port) {
            Some(component) => {
                use_a_full_disk(&component).await;
                check(&component, name).await;
                check_data_stream(&component, name).await;
                check_faults(&component, name).await;
                check_tls(&component, name).await;
            }
            None => writeln!(&mut stdout(), "skipped: sink_elasticsearch_real: {name} not at hand").unwrap(),
        }
    }
}

async fn check(server: &Component, name: &str) {
    let yaml = format!(
        "endpoint: [\"{}\"]\nindex: \"shop-logs-%Y.%m.%d\"\nbatch: {{ max_bytes: 50KB }}",
        server.url("")
    );
    let sent = rows();
    for replay in 0..3 {
        let (mut out, cx) = sink("elasticsearch", &yaml);
        let (rejects, n_errors) = deliver_at_last(&mut *out, &sent).await;
        assert_eq!(n_errors, 0, "{name}");
        let reasons = texts(&rejects, "reason");
        assert_eq!(reasons.len(), 4, "{name}: {reasons:?}");
        assert!(
            reasons.iter().all(|r| r.starts_with("es_400: ") && r.contains("parsing_exception")),
            "{reasons:?}"
        );
        assert!(texts(&rejects, "original").iter().all(|text| text.contains("not an address")));
        let counted = (count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates));
        assert_eq!(counted, if replay == 0 { (1996, 0) } else { (0, 1996) }, "{name}");

        server.ask("shop-logs-*/_refresh").await;
        assert_eq!(server.ask("shop-logs-*/_count").await["count"], 1996, "{name}, replay {replay}");
    }
    let mapping = server.ask("shop-logs-2026.11.21/_mapping").await;
    let properties = &mapping["shop-logs-2026.11.21"]["mappings"]["properties"];
    let of = |pointer: &str| properties.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    assert_eq!(of("/ip/type"), "ip", "{name}: {properties}");
    assert_eq!(of("/@timestamp/type"), "date", "{name}");
    assert_eq!(of("/geo/properties/location/type"), "geo_point", "{name}");
    assert_eq!(of("/level/type"), "keyword", "{name}");
    assert_eq!(of("/message/type"), "text", "{name}");

    let found = server.ask("shop-logs-*/_search?q=ip:%2210.0.0.0/29%22&size=100").await;
    assert_eq!(found["hits"]["total"]["value"], 8, "{name}: {found}");
    let found = server.ask("shop-logs-*/_search?q=n:7").await;
    let hit = &found["hits"]["hits"][0];
    assert_eq!(hit["_id"], "shop-0000000000000009-7", "{name}");
    assert_eq!(hit["_source"]["message"], "line one\nline two of 7 \u{2028} \"quoted\"", "{name}");
    let day = server.ask("shop-logs-2026.11.20/_count").await;
    assert!(day["count"].as_u64().is_some_and(|n| (660..=667).contains(&n)), "{name}: {day}");
}

/// A server of either kind without lifecycle policies takes everything else.
async fn check_data_stream(server: &Component, name: &str) {
    let yaml = format!(
        "endpoint: [\"{}\"]\nindex: shop-stream\ndata_stream: true\nlifecycle: {{}}\ngzip: true",
        server.url("")
    );
    let mut documents: Vec<String> =
        (0..100).map(|n| json!({ "@timestamp": "2026-11-21T10:00:00Z", "n": n }).to_string()).collect();
    documents.push("{\"n\":\"no time\"}".into());
    for replay in 0..2 {
        let (mut out, cx) = sink("elasticsearch", &yaml);
        let (rejects, n_errors) = deliver_at_last(&mut *out, &[batch(3, 0, &documents, &[])]).await;
        assert_eq!((texts(&rejects, "original").join(""), n_errors), (documents[100].clone(), 0), "{name}");
        let counted = (count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates));
        assert_eq!(counted, if replay == 0 { (100, 0) } else { (0, 100) }, "{name}");
    }
    server.ask("shop-stream/_refresh").await;
    assert_eq!(server.ask("shop-stream/_count").await["count"], 100, "{name}");
    let mapping = server.ask("shop-stream/_mapping").await;
    let indices: Vec<&String> = mapping.as_object().unwrap().keys().collect();
    assert!(indices[0].starts_with(".ds-shop-stream-"), "{name}: {indices:?}");
}

/// While rows are delivered the way to the server is bad for a while, in every way there is.
async fn check_faults(server: &Component, name: &str) {
    const N_BATCHES: usize = 60;
    const N_EACH: usize = 50;
    let proxy = Proxy::start(server.address(), None).await;
    let yaml = format!(
        "endpoint: [\"http://{}\"]\nindex: faults\nbatch: {{ max_bytes: 4KB }}\nconcurrency: 3\n\
         request_timeout: 1s\nretry: {{ first: 10ms, max: 100ms }}",
        proxy.address
    );
    let (mut out, cx) = sink("elasticsearch", &yaml);
    let (mut n_sent, mut n_errors) = (0, 0);
    for fault in FAULTS {
        out.connect().await.unwrap();
        let sent: Vec<Batch> = (0..N_BATCHES)
            .map(|n| {
                let first = n_sent + n * N_EACH;
                let documents: Vec<String> = (first..first + N_EACH)
                    .map(|n| json!({ "n": n, "x": "y".repeat(200) }).to_string())
                    .collect();
                batch(5, first as u64, &documents, &[])
            })
            .collect();
        n_sent += N_BATCHES * N_EACH;
        let faulty = async {
            // In the midst of it.
            let before = count(&cx.metrics.sink_rows);
            while count(&cx.metrics.sink_rows) < before + 300 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            proxy.set(fault);
            tokio::time::sleep(Duration::from_millis(2500)).await;
            proxy.set(Fault::None);
        };
        let first = async {
            match deliver(&mut *out, &sent).await {
                Ok(rejects) => (rejects, 0),
                Err(_) => {
                    let (rejects, n_errors) = deliver_at_last(&mut *out, &sent).await;
                    (rejects, n_errors + 1)
                }
            }
        };
        let ((rejects, n), ()) = tokio::join!(first, faulty);
        assert!(rejects.is_empty(), "{name}, {fault:?}");
        assert!(proxy.harmed(fault) > 0, "{name}, {fault:?} met nobody");
        n_errors += n;
        server.ask("faults/_refresh").await;
        assert_eq!(server.ask("faults/_count").await["count"], n_sent, "{name}, after {fault:?}");
    }
    let twice = count(&cx.metrics.sink_duplicates);
    assert!(count(&cx.metrics.sink_rows) as usize <= n_sent, "{name}");
    writeln!(
        &mut stdout(),
        "{name}: {n_sent} sent through faults, {n_sent} stored, {twice} sent twice and stored once, {} sent again, \
         {n_errors} pauses of the sink",
        count(&cx.metrics.sink_retried_rows)
    )
    .unwrap();
}

/// The server speaks no TLS without its security plugin; what stands in front of it does, as in many clusters.
async fn check_tls(server: &Component, name: &str) {
    let certificates = Certificates::new();
    let tls = support::proxy::tls(&certificates.path("server.pem"), &certificates.path("server.key"));
    let proxy = Proxy::start(server.address(), Some(tls)).await;
    let yaml = |more: &str| {
        format!("endpoint: [\"https://localhost:{}\"]\nindex: tls\n{more}", proxy.address.port())
    };
    let rows = batch(7, 0, &["{\"n\":1}".to_owned()], &[]);
    let (mut stranger, _) = sink("elasticsearch", &yaml(""));
    let error = stranger.connect().await.unwrap_err();
    assert!(format!("{error:?}").to_lowercase().contains("certificate"), "{name}: {error:?}");
    let trusting = format!("tls: {{ ca: \"{}\" }}", certificates.path("ca.pem").display());
    for (more, counted) in [(&*trusting, (1, 0)), ("tls: { verify: false }", (0, 1))] {
        let (mut out, cx) = sink("elasticsearch", &yaml(more));
        assert_eq!(deliver_at_last(&mut *out, std::slice::from_ref(&rows)).await.1, 0, "{name}");
        assert_eq!((count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates)), counted, "{name}");
    }
}
