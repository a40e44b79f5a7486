//! Channels that are down, and processes that end: nothing is lost, and little is told twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::lab::{FarEnd, finding, give, sink, until};

const N: usize = 200;

/// How often a channel was told of the beginning of each alert.
fn begun(far: &FarEnd, target: &str) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for body in far.bodies(target).iter().filter(|body| body["status"] == "firing") {
        *told.entry(body["labels"]["entity"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    told
}

fn yaml(url: &str) -> String {
    format!(
        r#"
channels:
  well: {{ webhook: {{ url: "{url}/well" }} }}
  ill: {{ webhook: {{ url: "{url}/ill" }} }}
group_wait: 50ms
drain_timeout: 100ms
"#
    )
}

#[tokio::test]
async fn a_channel_that_is_down_holds_nothing_up_and_misses_nothing() {
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let far =
        FarEnd::start(move |r| if r.target == "/ill" && is_down.load(Ordering::Relaxed) { 503 } else { 200 });
    let far = far.await;
    let dir = tempfile::tempdir().unwrap();
    let (mut sink, metrics) = sink(dir.path(), &yaml(&far.url()));
    sink.connect().await.unwrap();
    for n in 0..N {
        give(&mut *sink, &[finding(&n.to_string(), &format!("card {n}"), "P2")]).await;
    }
    until("the other channel is told", || begun(&far, "/well").len() == N).await;
    let waiting = || metrics.alert_queue.with_label_values(&["alerts", "ill"]).get();
    until("the queue shows", || waiting() == N as i64).await;
    assert!(begun(&far, "/ill").is_empty());
    down.store(false, Ordering::Relaxed);
    until("it is told, too", || begun(&far, "/ill").len() == N).await;
    until("nothing waits", || waiting() == 0).await;
    for target in ["/well", "/ill"] {
        assert!(begun(&far, target).values().all(|n| *n == 1), "{target}");
    }
}

#[tokio::test]
async fn what_was_flushed_is_told_although_the_process_is_gone() {
    let n_requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&n_requests);
    // Some requests fail, each in its own way.
    let far = FarEnd::start(move |_| match counted.fetch_add(1, Ordering::Relaxed) % 60 {
        20 => 500,
        40 => 429,
        59 => 401,
        _ => 200,
    });
    let far = far.await;
    let dir = tempfile::tempdir().unwrap();
    let n_lives = 10;
    for life in 0..n_lives {
        let (mut sink, _) = sink(dir.path(), &yaml(&far.url()));
        sink.connect().await.unwrap();
        for n in 0..N / n_lives {
            let n = life * (N / n_lives) + n;
            give(&mut *sink, &[finding(&n.to_string(), &format!("card {n}"), "P2")]).await;
        }
        // As after a crash: nothing is said good-bye to.
        drop(sink);
    }
    let (mut sink, _) = sink(dir.path(), &yaml(&far.url()));
    sink.connect().await.unwrap();
    // The source is read again.
    let all: Vec<_> = (0..N).map(|n| finding(&n.to_string(), &format!("card {n}"), "P2")).collect();
    give(&mut *sink, &all).await;
    until("all are told", || ["/well", "/ill"].iter().all(|target| begun(&far, target).len() == N)).await;
    let n_told: usize = ["/well", "/ill"].iter().flat_map(|target| begun(&far, target).into_values()).sum();
    println!("{n_lives} crashes: {} notifications due, {} repeated", 2 * N, n_told - 2 * N);
    assert!(n_told - 2 * N <= 2 * n_lives, "one for each channel and crash at most: {n_told}");
    sink.close().await.unwrap();
}

#[tokio::test]
async fn what_is_refused_for_good_is_kept() {
    let far = FarEnd::start(|request| if request.target == "/ill" { 400 } else { 200 }).await;
    let dir = tempfile::tempdir().unwrap();
    let (mut sink, metrics) = sink(dir.path(), &yaml(&far.url()));
    sink.connect().await.unwrap();
    give(&mut *sink, &[finding("a", "card 1", "P0"), finding("b", "card 2", "P0")]).await;
    let refused = || metrics.alert_deliveries.with_label_values(&["alerts", "ill", "refused"]).get();
    until("both are refused", || refused() == 2 && begun(&far, "/well").len() == 2).await;
    let path = dir.path().join("alerts/refused.ndjson");
    let kept = || std::fs::read_to_string(&path).unwrap_or_default();
    until("both are kept", || kept().lines().count() == 2).await;
    assert!(kept().contains("card 1") && kept().contains("status 400"), "{}", kept());
}

#[tokio::test]
async fn an_alert_that_waits_for_more_is_sent_when_the_pipeline_stops() {
    let far = FarEnd::start(|_| 200).await;
    let dir = tempfile::tempdir().unwrap();
    let yaml =
        format!("channels: {{ well: {{ webhook: {{ url: \"{}/well\" }} }} }}\ngroup_wait: 5m\n", far.url());
    let (mut sink, _) = sink(dir.path(), &yaml);
    sink.connect().await.unwrap();
    give(&mut *sink, &[finding("a", "card 1", "P0")]).await;
    assert!(far.taken().is_empty());
    sink.close().await.unwrap();
    assert_eq!(begun(&far, "/well").len(), 1);
}

#[tokio::test]
async fn too_many_alerts_are_too_busy() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "channels: { gone: { webhook: { url: \"http://127.0.0.1:9/\" } } }\nmax_alerts: 2\n";
    let (mut sink, _) = sink(dir.path(), yaml);
    sink.connect().await.unwrap();
    give(&mut *sink, &[finding("a", "1", "P0"), finding("b", "2", "P0")]).await;
    let more = crate::lab::batch(&[finding("c", "3", "P0")]);
    sink.write(&more).await.unwrap();
    assert!(sink.flush(logdrive_schemas::Epoch(2)).await.is_err());
    // What is known already needs no room.
    sink.connect().await.unwrap();
    give(&mut *sink, &[finding("a", "1", "P0")]).await;
}
