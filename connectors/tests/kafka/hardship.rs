//! Strangers, and a network that is bad.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::time::{Duration, Instant};

use logdrive_connectors::ConnectorError;
use logdrive_schemas::Epoch;

use crate::broker::{
    Broker, PASSWORD, PATIENCE, USER, connect, numbered, recv, recv_messages, source, texts,
};
use crate::sink::from_kafka;
use crate::support::proxy::{FAULTS, Fault};
use crate::support::{count, deliver_at_last, sink};

pub(crate) async fn tls_and_passwords_are_checked_on_both_sides(broker: &Broker) {
    broker.topic("secure", 1, &[]).await;
    let yaml = |ca: &str, mechanism: &str, password: &str, rest: &str| {
        format!(
            "endpoint: [\"{}\"]\n{ca}\nsasl: {{ mechanism: {mechanism}, username: {USER}, password: {password} }}\n{rest}",
            broker.secure()
        )
    };
    let ca = format!("tls: {{ ca: \"{}\" }}", broker.certificates.path("ca.pem").display());
    let mut n_sent = 0;
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        assert!(mechanism == "PLAIN" || broker.add_user(mechanism), "{mechanism}");
        let to = "topic: secure";
        let (mut out, _) = sink("kafka", &yaml(&ca, mechanism, PASSWORD, to));
        let rows = from_kafka(n_sent, &numbered(n_sent..n_sent + 10));
        assert_eq!(deliver_at_last(&mut *out, &[rows]).await.1, 0, "{mechanism}");
        out.close().await.unwrap();
        n_sent += 10;
        let from = format!("topics: [secure]\ngroup: {mechanism}");
        let (mut back, _) = source(&yaml(&ca, mechanism, PASSWORD, &from));
        connect(&mut *back).await;
        assert_eq!(texts(&recv_messages(&mut *back, n_sent).await), numbered(0..n_sent), "{mechanism}");

        let (mut wrong, _) = sink("kafka", &yaml(&ca, mechanism, "wrong", to));
        let error = wrong.connect().await.unwrap_err();
        assert!(matches!(error, ConnectorError::Refused { .. }), "{mechanism}: {error:?}");
        assert!(!format!("{error:?}").contains(PASSWORD));
    }
    // A broker that nobody we trust vouches for gets no password and no data.
    let stranger = format!("tls: {{ ca: \"{}\" }}", broker.certificates.path("stranger.pem").display());
    let (mut out, _) = sink("kafka", &yaml(&stranger, "PLAIN", PASSWORD, "topic: secure"));
    assert!(out.connect().await.is_err());
}

/// A sink with transactions and a source, both through the same bad network.
pub(crate) async fn whatever_happens_to_connections_every_row_arrives_once(broker: &Broker) {
    const N_EACH: usize = 40;
    broker.topic("faults", 3, &[]).await;
    let proxy = broker.proxy().await;
    let patience = "options: { socket.timeout.ms: 3000, reconnect.backoff.max.ms: 500 }";
    let endpoint = format!("endpoint: [\"{}\"]\n{patience}", proxy.address);
    let (mut out, cx) = sink(
        "kafka",
        &format!(
            "{endpoint}\ntopic: faults\ntransactional_id: faults\ndelivery_timeout: 15s\nbatch: {{ timeout: 50ms }}"
        ),
    );
    let (mut back, _) = source(&format!("{endpoint}\ntopics: [faults]\ngroup: faults"));
    connect(&mut *back).await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let (mut n_sent, mut n_errors) = (0, 0);
    out.connect().await.unwrap();
    for fault in FAULTS {
        let began = Instant::now();
        // Some before it, many while it lasts, some after; the fault ends also if everybody waits for that.
        let weather = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            proxy.set(fault);
            tokio::time::sleep(Duration::from_secs(3)).await;
            proxy.set(Fault::None);
        };
        let traffic = async {
            while began.elapsed() < Duration::from_secs(6) {
                let rows = [from_kafka(n_sent, &numbered(n_sent..n_sent + N_EACH))];
                n_sent += N_EACH;
                let once = match out.write(&rows[0]).await {
                    Ok(_) => out.flush(Epoch(1)).await.map(drop),
                    Err(error) => Err(error),
                };
                if once.is_err() {
                    let (rejects, n) = deliver_at_last(&mut *out, &rows).await;
                    assert!(rejects.is_empty());
                    n_errors += n + 1;
                }
                while let Some(chunk) = recv(&mut *back, Duration::from_millis(1)).await {
                    texts(&[chunk]).into_iter().for_each(|text| *seen.entry(text).or_default() += 1);
                }
            }
        };
        tokio::join!(weather, traffic);
        assert!(proxy.harmed(fault) > 0, "{fault:?} met nobody");
    }
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < n_sent {
        assert!(Instant::now() < deadline, "{} of {n_sent}", seen.len());
        if let Some(chunk) = recv(&mut *back, Duration::from_millis(200)).await {
            texts(&[chunk]).into_iter().for_each(|text| *seen.entry(text).or_default() += 1);
        }
    }
    assert_eq!(seen.len(), n_sent);
    let n_twice: usize = seen.values().map(|n| n - 1).sum();
    assert_eq!(n_twice, 0, "nothing was read again, and nothing was in the topic twice");
    writeln!(
        &mut stdout(),
        "kafka: {n_sent} sent through faults, {} read, {n_twice} twice, {} skipped as sent before, {n_errors} new connections",
        seen.len(),
        count(&cx.metrics.sink_duplicates)
    )
    .unwrap();
}
