//! The `elasticsearch` sink against real servers: types in place, documents found again, nothing twice.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use arrow::array::{ArrayRef, TimestampMicrosecondArray};
use logdrive_schemas::Batch;
use serde_json::{Value, json};
use support::{RECEIVED_AT, batch, count, deliver_at_last, sink, texts};

const N_ROWS: usize = 2000;

/// A real server on a port of its own, stopped and wiped when dropped.
struct Component {
    script: PathBuf,
    port: u16,
}

impl Component {
    /// `None` if it cannot be had here.
    fn start(name: &str, port: u16) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let shared = std::env::var_os("LOGDRIVE_SHARED").map_or(root, PathBuf::from);
        let component = Self { script: shared.join(format!("components/{name}.sh")), port };
        let ready = component.script.exists()
            && component.run("install")
            && component.run("wipe")
            && component.run("start");
        ready.then_some(component)
    }

    fn run(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.script);
        command.arg(verb).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if verb != "install" {
            command.arg(self.port.to_string());
        }
        command.status().is_ok_and(|status| status.success())
    }

    /// Otherwise the server makes no index on a disk that is nearly full, and everybody waits for ever.
    async fn use_a_full_disk(&self) {
        let url = format!("http://127.0.0.1:{}/_cluster/settings", self.port);
        let settings = r#"{"persistent":{"cluster.routing.allocation.disk.threshold_enabled":false}}"#;
        let request = reqwest::Client::new().put(url).header("content-type", "application/json");
        assert!(request.body(settings).send().await.unwrap().status().is_success());
    }

    async fn ask(&self, path: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.run("stop");
        self.run("wipe");
    }
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
    for (name, port) in [("opensearch", 19_341), ("elasticsearch", 19_343)] {
        match Component::start(name, port) {
            Some(component) => check(&component, name).await,
            None => writeln!(&mut stdout(), "skipped: sink_elasticsearch_real: {name} not at hand").unwrap(),
        }
    }
}

async fn check(server: &Component, name: &str) {
    server.use_a_full_disk().await;
    let yaml = format!(
        "endpoint: [\"http://127.0.0.1:{}\"]\nindex: \"shop-logs-%Y.%m.%d\"\nbatch: {{ max_bytes: 50KB }}",
        server.port
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
