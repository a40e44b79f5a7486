//! The `http` sink and source with each other, and the source with a client that knows nothing of us.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::listening::listen;
use crate::storm::{Tally, lines, numbered, settle, sink_survives, storm};
use crate::support::proxy::{FAULTS, Proxy};
use crate::support::sink;

/// Bodies come in pieces when the way is bad: some take longer.
const SOURCE: &str = "{type: http, listen: \"127.0.0.1:PORT\", body_timeout: 50ms}";
const MARK: &str = "\"n\":";

async fn between_us() {
    let dir = tempfile::tempdir().unwrap();
    let source = listen(dir.path(), SOURCE, 40, MARK).await;
    let proxy = Proxy::start(source.address, None).await;
    let (out, _) = sink("http", &format!("{{endpoint: \"http://{}/\", request_timeout: 1s}}", proxy.address));
    let stored = async || source.delivered.clone();
    sink_survives("http sink and source", &proxy, &FAULTS, out, (20, numbered), stored).await;
    source.stop().await;
}

/// Sends each body until it is answered with 200.
async fn send_on(to: &str, acknowledged: &Tally, stop: &CancellationToken) -> usize {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build().unwrap();
    let (mut n, mut n_sent) = (0, 0);
    while !stop.is_cancelled() {
        let numbers = n..n + 100;
        n_sent = numbers.end;
        let sent = client.post(to).body(lines(numbers.clone())).send().await;
        if sent.is_ok_and(|answer| answer.status() == 200) {
            acknowledged.add(numbers.clone());
            n = numbers.end;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    n_sent
}

async fn from_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let source = listen(dir.path(), SOURCE, 40, MARK).await;
    let proxy = Proxy::start(source.address, None).await;
    let (what, stop) = ("http source, reqwest", CancellationToken::new());
    let (to, acknowledged) = (format!("http://{}/", proxy.address), Tally::default());
    let storming = async {
        storm(what, &proxy, &FAULTS, true, || acknowledged.n_all()).await;
        stop.cancel();
    };
    let (n_sent, ()) = tokio::join!(send_on(&to, &acknowledged, &stop), storming);
    settle(what, &proxy, n_sent, &acknowledged, async || source.delivered.clone()).await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there() {
    tokio::join!(between_us(), from_a_client());
}
