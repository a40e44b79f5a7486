//! The `prometheus_remote_write` sink against the real Prometheus with its receiver on.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod components;
mod support;

use std::io::{Write as _, stdout};

use components::Component;
use jiff::Timestamp;
use logdrive_connectors::ConnectorError;
use serde_json::Value;
use support::server::{Reaction, Server};
use support::{batch, deliver, deliver_at_last, sink, texts};

const PORT: u16 = 21_160;
const N_SERIES: i64 = 50;
const N_SAMPLES: i64 = 40;

fn document(name: &str, series: i64, at: i64, value: i64) -> String {
    let at = Timestamp::from_millisecond(at).unwrap();
    format!(
        "{{\"@timestamp\":\"{at}\",\"type\":\"metric\",\"name\":\"{name}\",\"value\":{value},\"service\":\"shop\",\
         \"labels\":{{\"series\":\"s{series}\"}}}}"
    )
}

async fn query(query: &str) -> Value {
    let url = format!("http://127.0.0.1:{PORT}/api/v1/query");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut url = url::Url::parse(&url).unwrap();
    url.query_pairs_mut().append_pair("query", query);
    let answer = client.get(url).send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    answer["data"]["result"].clone()
}

#[tokio::test]
async fn prometheus_gets_every_sample_although_it_is_restarted() {
    // What an earlier run stored is older; names of its own keep this one apart.
    let name = format!("logdrive_test_{}", Timestamp::now().as_second());
    let start = || tokio::task::spawn_blocking(|| Component::start("prometheus.sh", PORT, &[]));
    let prometheus = match start().await.unwrap() {
        Ok(prometheus) => prometheus,
        Err(why) => {
            return writeln!(
                &mut stdout(),
                "skipped: prometheus_gets_every_sample_although_it_is_restarted: {why}"
            )
            .unwrap();
        }
    };
    let begin = Timestamp::now().as_millisecond() - 60_000;
    let rows = |from: i64, to: i64| -> Vec<String> {
        let each = |n: i64| (0..N_SERIES).map(move |series| (series, n));
        (from..to).flat_map(each).map(|(series, n)| document(&name, series, begin + n * 1000, n)).collect()
    };
    let yaml = format!("{{endpoint: \"http://127.0.0.1:{PORT}/api/v1/write\", batch: {{max_bytes: 16KiB}}}}");
    let (mut sink, cx) = sink("prometheus_remote_write", &yaml);
    sink.connect().await.unwrap();
    let half = [batch(1, 0, &rows(0, N_SAMPLES / 2), &[])];
    assert!(deliver(&mut *sink, &half).await.unwrap().is_empty());
    drop(prometheus);
    let rest = [batch(1, 10_000, &rows(N_SAMPLES / 2, N_SAMPLES), &[])];
    let away = deliver(&mut *sink, &rest).await.err().unwrap();
    assert!(matches!(away, ConnectorError::Disconnected { .. }), "{away}");
    let prometheus = start().await.unwrap().unwrap();
    let (rejects, _) = deliver_at_last(&mut *sink, &rest).await;
    assert!(rejects.is_empty(), "{:?}", texts(&rejects, "reason"));
    // What another process sends again is refused, but for the newest; nothing gets lost or doubled by it.
    let again = [batch(1, 10_000, &rows(N_SAMPLES - 2, N_SAMPLES), &[])];
    let reasons = texts(&deliver(&mut *sink, &again).await.unwrap(), "reason");
    assert_eq!(reasons.len() as i64, N_SERIES);
    assert!(reasons.iter().all(|reason| reason.contains("out of order sample")), "{reasons:?}");
    // One that is older than what is there is refused alone.
    let mut late = vec![document(&name, 0, begin - 600_000, 1), "{\"name\":\"no_value\"}".to_owned()];
    late.extend(rows(N_SAMPLES, N_SAMPLES + 1));
    let rejects = deliver(&mut *sink, &[batch(1, 20_000, &late, &[])]).await.unwrap();
    let mut reasons = texts(&rejects, "reason");
    reasons.sort();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].starts_with("http_400: out of order sample"), "{reasons:?}");
    assert!(reasons[1].starts_with("metric_without_value"), "{reasons:?}");
    let counts = query(&format!("count_over_time({name}[10m])")).await;
    let counts = counts.as_array().unwrap();
    assert_eq!(counts.len() as i64, N_SERIES);
    for series in counts {
        assert_eq!(series["value"][1], (N_SAMPLES + 1).to_string(), "{series}");
        assert_eq!(series["metric"]["job"], "shop");
    }
    let sums = query(&format!("sum(sum_over_time({name}[10m]))")).await;
    assert_eq!(sums[0]["value"][1], (N_SERIES * N_SAMPLES * (N_SAMPLES + 1) / 2).to_string());
    writeln!(
        &mut stdout(),
        "{} samples sent, {} there, none missing",
        cx.metrics.sink_rows.with_label_values(&["out"]).get(),
        N_SERIES * (N_SAMPLES + 1)
    )
    .unwrap();
    drop(prometheus);
}

async fn outcome(status: u16) -> Result<usize, ConnectorError> {
    let server = Server::start(move |_| Reaction::status(status)).await;
    let (mut sink, _) =
        sink("prometheus_remote_write", &format!("{{endpoint: \"http://{}/w\"}}", server.address));
    sink.connect().await.unwrap();
    let rows: Vec<_> = (0..3).map(|n| document("a", n, 1000, 1)).collect();
    let rejects = deliver(&mut *sink, &[batch(1, 0, &rows, &[])]).await?;
    Ok(rejects.iter().map(logdrive_schemas::Batch::num_rows).sum())
}

#[tokio::test]
async fn what_answers_mean() {
    assert_eq!(outcome(204).await.unwrap(), 0);
    assert_eq!(outcome(400).await.unwrap(), 3);
    for status in [429, 500, 503] {
        assert!(matches!(outcome(status).await, Err(ConnectorError::Busy { .. })), "{status}");
    }
    for status in [401, 404] {
        assert!(matches!(outcome(status).await, Err(ConnectorError::Disconnected { .. })), "{status}");
    }
}
