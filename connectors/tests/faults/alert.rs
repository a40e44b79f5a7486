//! `alert` and Alertmanager.

use tokio_util::sync::CancellationToken;

use crate::at_hand;
use crate::components::Component;
use crate::lab::{batch, finding, sink};
use crate::storm::{Tally, numbers_behind, settle, storm, write_on};
use crate::support::proxy::{FAULTS, Proxy};

const PORT: u16 = 21_420;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_alert_gets_to_alertmanager() {
    let _server =
        at_hand!("every_alert_gets_to_alertmanager", Component::start("alertmanager.sh", PORT, &[]));
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], PORT).into(), None).await;
    let yaml = format!(
        "{{channels: {{am: {{alertmanager: {{endpoint: [\"http://{}\"]}}}}}}, group_wait: 20ms, request_timeout: 1s, \
         max_alerts: 100000}}",
        proxy.address
    );
    let (mut out, metrics) = sink(dir.path(), &yaml);
    let mark = format!("card {} ", std::process::id());
    let rows = |numbers: std::ops::Range<usize>| {
        let found: Vec<_> = numbers.map(|n| finding(&n.to_string(), &format!("{mark}{n}"), "P2")).collect();
        batch(&found)
    };
    let what = "alert, Alertmanager";
    let (acknowledged, stop) = (Tally::default(), CancellationToken::new());
    // A flush waits for no channel: what counts is what the channel says that it has told.
    let told = || metrics.alert_deliveries.with_label_values(&["alerts", "am", "delivered"]).get() as usize;
    let storming = async {
        storm(what, &proxy, &FAULTS, true, told).await;
        stop.cancel();
    };
    let (n_sent, ()) = tokio::join!(write_on(&mut *out, 1, rows, &acknowledged, &stop), storming);
    let stored = async || {
        let url = format!("http://127.0.0.1:{PORT}/api/v2/alerts");
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        Tally::of(numbers_behind(&text, &format!("\"entity\":\"{mark}")))
    };
    settle(what, &proxy, n_sent, &acknowledged, stored).await;
}
