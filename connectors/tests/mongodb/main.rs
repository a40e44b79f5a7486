//! The `mongodb` sink against a stand-in that speaks MongoDB's protocol: what arrives and as what, what comes again, what
//! is refused, and what goes wrong on the way. No real server was had.
#![cfg(feature = "mongodb")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../sources_net/certificates.rs"]
mod certificates;
mod standin;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Write as _, stdout};
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, TimestampMicrosecondArray};
use logdrive_connectors::ConnectorError;
use logdrive_schemas::Batch;
use mongodb::bson::doc;
use standin::{Reaction, Standin};
use support::proxy::Proxy;
use support::weather::bring_in_every_weather;
use support::{RECEIVED_AT, batch, count, deliver, deliver_at_last, sink, texts};

fn yaml(address: std::net::SocketAddr, rest: &str) -> String {
    format!("endpoint: \"mongodb://{address}/?replicaSet=r\"\ndatabase: d\ncollection: c\n{rest}")
}

fn numbered(first: u64, n_rows: u64) -> Batch {
    let documents: Vec<String> = (first..first + n_rows).map(|n| format!("{{\"n\":{n}}}")).collect();
    batch(1, first, &documents, &[])
}

#[tokio::test]
async fn documents_arrive_with_their_types_and_come_again_in_vain() {
    let server = Standin::start("r").await;
    let time = TimestampMicrosecondArray::from(vec![Some(1_700_000_000_123_456), None]).with_timezone("UTC");
    let amount = Decimal128Array::from(vec![Some(1234), None]).with_precision_and_scale(10, 2).unwrap();
    let documents =
        [r#"{"at":"2023-11-14T22:13:20.123456Z","amount":12.34,"more":{"x":[1]}}"#, r#"{"n":2,"at":null}"#];
    let columns: [(&str, ArrayRef); 2] = [("at", Arc::new(time)), ("amount", Arc::new(amount))];
    let rows = batch(1, 0, &documents.map(String::from), &columns);
    let (mut out, cx) = sink("mongodb", &yaml(server.address, ""));
    out.connect().await.unwrap();
    assert!(deliver(&mut *out, std::slice::from_ref(&rows)).await.unwrap().is_empty());
    assert_eq!(count(&cx.metrics.sink_rows), 2);
    let first = server.state().documents[&rows.id(0)].clone();
    assert_eq!(first.get_datetime("at").unwrap().timestamp_millis(), 1_700_000_000_123);
    assert_eq!(first.get("amount").unwrap().to_string(), "12.34");
    assert_eq!(first.get_document("more").unwrap(), &doc! { "x": [1_i64] });

    // Another process, after a crash.
    let (mut again, cx) = sink("mongodb", &yaml(server.address, ""));
    again.connect().await.unwrap();
    deliver(&mut *again, &[rows, numbered(2, 3)]).await.unwrap();
    assert_eq!((count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates)), (3, 2));
    assert_eq!(server.state().documents.len(), 5);
    again.close().await.unwrap();
}

#[tokio::test]
async fn what_is_refused_is_a_reject_and_nothing_else_is() {
    let server = Standin::start("r").await;
    let mut documents: Vec<String> = (0..1000).map(|n| format!("{{\"n\":{n}}}")).collect();
    documents[3] = r#"{"bad":1}"#.into();
    documents[4] = r#"{"same":1}"#.into();
    documents[500] = r#"{"_id":"mine"}"#.into();
    documents[501] = r#"{"a\u0000b":1}"#.into();
    documents[999] = "[]".into();
    let (mut out, cx) = sink("mongodb", &yaml(server.address, "batch: { max_bytes: 4KiB }\n"));
    out.connect().await.unwrap();
    // A request that is too large is halved until it is not.
    server.state().too_many = Some(50);
    let rejects = deliver(&mut *out, &[batch(1, 0, &documents, &[])]).await.unwrap();
    let mut reasons = texts(&rejects, "reason");
    reasons.sort();
    let codes: Vec<&str> = reasons.iter().map(|reason| &reason[..reason.find(':').unwrap()]).collect();
    assert_eq!(codes, ["mongodb_11000", "mongodb_121", "mongodb_id", "mongodb_key", "mongodb_no_object"]);
    let mut originals = texts(&rejects, "original");
    originals.sort();
    assert_eq!(originals, ["[]", r#"{"_id":"mine"}"#, r#"{"a\u0000b":1}"#, r#"{"bad":1}"#, r#"{"same":1}"#]);
    assert_eq!((server.state().documents.len() as u64, count(&cx.metrics.sink_rows)), (995, 995));
    // One that is too large alone is a reject, too.
    server.state().too_many = Some(1);
    let rejects = deliver(&mut *out, &[numbered(2000, 3)]).await.unwrap();
    assert_eq!(texts(&rejects, "reason").len(), 3);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_nothing_is_lost_or_doubled() {
    let server = Standin::start("r").await;
    let (mut out, cx) = sink("mongodb", &yaml(server.address, "timeout: 2s\n"));
    out.connect().await.unwrap();
    let mut first = 0;
    for (reaction, n_errors_min) in [
        // The driver itself asks once more.
        (vec![Reaction::NoAnswer], 0),
        (vec![Reaction::NoAnswer, Reaction::NoAnswer], 1),
        (vec![Reaction::NotReplicated], 1),
        (vec![Reaction::StepsDown], 1),
        (vec![Reaction::Error(16_500, "TooManyRequests")], 1),
        (vec![Reaction::Error(2, "BadValue")], 1),
    ] {
        let name = format!("{reaction:?}");
        server.state().reactions = reaction.into();
        let rows = [numbered(first, 100)];
        first += 100;
        let once = deliver(&mut *out, &rows).await;
        let n_errors = match once {
            Ok(rejects) => {
                assert!(rejects.is_empty());
                0
            }
            Err(_) => {
                let (rejects, n_errors) = deliver_at_last(&mut *out, &rows).await;
                assert!(rejects.is_empty());
                n_errors + 1
            }
        };
        assert!(n_errors_min <= n_errors, "{name}");
        assert_eq!(server.state().documents.len() as u64, first, "{name}");
    }
    assert!(count(&cx.metrics.sink_duplicates) > 0);
    // Who may not write says so at once.
    server.state().reactions = [Reaction::Error(13, "not authorized")].into();
    assert!(matches!(
        deliver(&mut *out, &[numbered(first, 1)]).await,
        Err(ConnectorError::Disconnected { .. })
    ));
}

#[tokio::test]
async fn collections_and_indices_are_made_as_documented() {
    let server = Standin::start("r").await;
    let (mut series, cx) = sink(
        "mongodb",
        &yaml(
            server.address,
            "time_series: { meta_field: host, granularity: minutes }\nexpire_after: 30d\ntime_field: at\n",
        ),
    );
    series.connect().await.unwrap();
    series.connect().await.unwrap();
    deliver(&mut *series, &[numbered(0, 2)]).await.unwrap();
    assert_eq!(count(&cx.metrics.sink_rows), 2);
    let (mut plain, _) = sink("mongodb", &yaml(server.address, "expire_after: 90s\n"));
    plain.connect().await.unwrap();
    let state = server.state();
    let arrival = state.documents.values().next().unwrap().get_datetime("at").unwrap().timestamp_millis();
    assert_eq!(arrival, RECEIVED_AT / 1000);
    let [create, index] = &state.commands[..] else { panic!("{:?}", state.commands) };
    assert_eq!(create.get_str("create").unwrap(), "c");
    let of_series = create.get_document("timeseries").unwrap();
    let of_key = |key: &str| of_series.get_str(key).unwrap();
    assert_eq!(["timeField", "metaField", "granularity"].map(of_key), ["at", "host", "minutes"]);
    assert_eq!(create.get("expireAfterSeconds").unwrap().to_string(), (30 * 86_400).to_string());
    let index = index.get_array("indexes").unwrap()[0].as_document().unwrap();
    assert_eq!(index.get("expireAfterSeconds").unwrap().to_string(), "90");
    assert_eq!(index.get_document("key").unwrap().keys().collect::<Vec<_>>(), ["@timestamp"]);
}

/// Whoever the driver finds behind the proxy says that it is the proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_connections_every_document_is_there_once() {
    const N_EACH: u64 = 100;
    let server = Standin::start("r").await;
    let certificates = certificates::Certificates::new();
    let tls = support::proxy::tls(&certificates.path("server.pem"), &certificates.path("server.key"));
    let proxy = Proxy::start(server.address, Some(tls)).await;
    let ca = certificates.path("ca.pem");
    let direct = |name: &str, ca: &std::path::Path| {
        format!(
            "endpoint: \"mongodb://{name}:{}/?directConnection=true&heartbeatFrequencyMS=500\"\ndatabase: d\n\
             collection: c\ntimeout: 2s\ntls: {{ ca: \"{}\" }}\n",
            proxy.address.port(),
            ca.display()
        )
    };
    let (mut stranger, _) = sink("mongodb", &direct("localhost", &certificates.path("stranger.pem")));
    assert!(stranger.connect().await.is_err());
    let (mut out, cx) = sink("mongodb", &direct("localhost", &ca));
    out.connect().await.unwrap();
    let mut n_sent = 0;
    let n_errors = bring_in_every_weather(&mut *out, &proxy, || {
        n_sent += N_EACH;
        numbered(n_sent - N_EACH, N_EACH)
    })
    .await;
    assert_eq!(server.state().documents.len() as u64, n_sent);
    writeln!(
        &mut stdout(),
        "mongodb (stand-in): {n_sent} sent through faults, each there once; {} known, {n_errors} errors",
        count(&cx.metrics.sink_duplicates)
    )
    .unwrap();
}
