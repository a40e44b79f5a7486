//! `prometheus_remote_write`: the sink and the source with the real Prometheus (version 1 of the protocol), the source
//! with the Prometheus project's own client (version 2).

use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use jiff::Timestamp;
use logdrive_schemas::Batch;
use tokio_util::sync::CancellationToken;

use crate::components::Component;
use crate::listening::listen;
use crate::shippers::{Running, survives};
use crate::storm::{Tally, settle, sink_survives, storm, write_on};
use crate::support::proxy::{FAULTS, Proxy};
use crate::support::{batch, sink};
use crate::{at_hand, lumber};

const PORT: u16 = 21_440;
/// Bodies come in pieces when the way is bad: some take longer.
const SOURCE: &str = "{type: prometheus_remote_write, listen: \"127.0.0.1:PORT\", body_timeout: 50ms}";

/// Samples of ten series; the value is the number.
fn samples(name: &str, begin: i64, numbers: Range<usize>) -> Batch {
    let first = numbers.start as u64;
    let document = |n: usize| {
        let at = Timestamp::from_millisecond(begin + n as i64).unwrap();
        format!(
            "{{\"@timestamp\":\"{at}\",\"type\":\"metric\",\"name\":\"{name}\",\"value\":{n},\"labels\":{{\"series\":\"s{}\"}}}}",
            n % 10
        )
    };
    let documents: Vec<_> = numbers.map(document).collect();
    batch(1, first, &documents, &[])
}

/// What Prometheus has.
async fn found(name: &str) -> Tally {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut url = url::Url::parse(&format!("http://127.0.0.1:{PORT}/api/v1/query")).unwrap();
    let soon = (Timestamp::now().as_second() + 300).to_string();
    url.query_pairs_mut().append_pair("query", &format!("{name}[20m]")).append_pair("time", &soon);
    let answer = client.get(url).send().await.unwrap().text().await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let series = answer["data"]["result"].as_array().unwrap();
    let values = series.iter().flat_map(|series| series["values"].as_array().unwrap());
    Tally::of(values.map(|value| value[1].as_str().unwrap().parse().unwrap()))
}

/// Where the script keeps what it runs with.
fn run_folder() -> PathBuf {
    let home = std::env::var_os("COMPONENTS_HOME").map(PathBuf::from);
    let home =
        home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/components"));
    home.join("run").join(format!("prometheus-{PORT}"))
}

async fn to_prometheus(begin: i64) {
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml = format!("{{endpoint: \"http://{}/api/v1/write\", request_timeout: 1s}}", proxy.address);
    let rows = |numbers| samples("through_faults", begin, numbers);
    let (out, cx) = sink("prometheus_remote_write", &yaml);
    let what = "prometheus_remote_write sink";
    sink_survives(what, &proxy, &FAULTS, out, (20, rows), async || found("through_faults").await).await;
    let n_rejected = cx.metrics.sink_errors.with_label_values(&["out", "rejected"]).get();
    println!("{what}: Prometheus refused {n_rejected} requests, as it had their samples");
}

async fn from_prometheus() {
    let dir = tempfile::tempdir().unwrap();
    let source = listen(dir.path(), SOURCE, 40, "\"name\":\"direct\",\"value\":").await;
    let proxy = Proxy::start(source.address, None).await;
    let config = run_folder().join("prometheus.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    let write = format!(
        "\nremote_write:\n- url: \"http://{}/api/v1/write\"\n  remote_timeout: 1s\n  \
         queue_config: {{ min_backoff: 50ms, max_backoff: 300ms, batch_send_deadline: 200ms }}\n",
        proxy.address
    );
    std::fs::write(&config, text + &write).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let reloaded = client.post(format!("http://127.0.0.1:{PORT}/-/reload")).send().await.unwrap();
    assert_eq!(reloaded.status(), 200);
    let yaml = format!("{{endpoint: \"http://127.0.0.1:{PORT}/api/v1/write\"}}");
    let (mut out, _) = sink("prometheus_remote_write", &yaml);
    let (taken, stop) = (Tally::default(), CancellationToken::new());
    let what = "prometheus_remote_write source, Prometheus";
    let storming = async {
        storm(what, &proxy, &FAULTS, false, || source.delivered.n_all()).await;
        stop.cancel();
    };
    // It passes on what is younger than its configuration.
    let begin = Timestamp::now().as_millisecond() + 2000;
    let rows = |numbers| samples("direct", begin, numbers);
    let (n_sent, ()) = tokio::join!(write_on(&mut *out, 20, rows, &taken, &stop), storming);
    // It forgets nothing that was not answered.
    settle(what, &proxy, n_sent, &taken, async || source.delivered.clone()).await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sample_gets_to_prometheus_and_from_it() {
    // What an earlier run stored would be found, too.
    std::fs::remove_dir_all(run_folder().join("data")).ok();
    let started = Component::start("prometheus.sh", PORT, &[]);
    let _prometheus = at_hand!("every_sample_gets_to_prometheus_and_from_it", started);
    let begin = Timestamp::now().as_millisecond() - 60_000;
    tokio::join!(to_prometheus(begin), from_prometheus());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_prometheus_client_of_version_2_was_told_is_there() {
    let program =
        at_hand!("what_prometheus_client_of_version_2_was_told_is_there", lumber::program("remote_write"));
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let source = listen(dir.path(), SOURCE, 40, "\"name\":\"numbered_bytes\",\"value\":").await;
    let proxy = Proxy::start(source.address, None).await;
    let mut command = Command::new(program);
    let sender = Running::start(command.args(["-c", &format!("http://{}", proxy.address)]), &said);
    let acknowledged = |said: &str| Tally::of(0..lumber::acked(said).map_or(0, |last| last + 1));
    let what = "prometheus_remote_write source, client of version 2";
    survives(what, source, &proxy, sender, &said, acknowledged).await;
}
