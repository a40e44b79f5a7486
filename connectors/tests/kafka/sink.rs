//! The sink; what it sends is read back with the source.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, StringViewArray};
use arrow::datatypes::Int64Type;
use logdrive_connectors::{ConnectorError, Sink, partition_of};
use logdrive_schemas::{Batch, Epoch, Origin};

use crate::broker::{Broker, connect, numbered, recv_messages, source, texts};
use crate::support::{batch, count, deliver_at_last, sink, texts as column};

fn yaml(broker: &Broker, rest: &str) -> String {
    format!("endpoint: [\"{}\"]\n{rest}", broker.address())
}

fn rows(first: usize, documents: &[String], tenants: &[Option<&str>]) -> Batch {
    let tenants: ArrayRef = Arc::new(StringViewArray::from(tenants.to_vec()));
    batch(9, first as u64, documents, &[("tenant", tenants)])
}

pub(crate) async fn documents_arrive_with_topic_key_and_headers(broker: &Broker) {
    broker.topic("to-a", 3, &[]).await;
    broker.topic("to-b_c", 3, &[]).await;
    let documents = numbered(0..300);
    let tenants: Vec<_> = (0..300).map(|n| [Some("a"), Some("b/c"), Some("a")][n % 3]).collect();
    let rest = "topic: \"to-{tenant}\"\nkey: \"key-{tenant}\"\nheaders: { tenant: \"{tenant}\", env: prod }";
    let (mut out, cx) = sink("kafka", &yaml(broker, rest));
    let (rejects, n_errors) = deliver_at_last(&mut *out, &[rows(0, &documents, &tenants)]).await;
    assert!(rejects.is_empty() && n_errors == 0);
    assert_eq!(count(&cx.metrics.sink_rows), 300);
    out.close().await.unwrap();

    let rest = "metadata: kafka\nheaders: [tenant, env, none]";
    let address = broker.address();
    let (mut back, _) =
        source(&format!("endpoint: [\"{address}\"]\ntopics: [\"^to-.*\"]\ngroup: back\n{rest}"));
    connect(&mut *back).await;
    let chunks = recv_messages(&mut *back, 300).await;
    assert_eq!(BTreeSet::from_iter(texts(&chunks)), BTreeSet::from_iter(documents));
    let mut partitions = BTreeMap::new();
    for chunk in &chunks {
        let known = chunk.attributes.as_ref().unwrap();
        let text = |name: &str| known.column_by_name(name).unwrap().as_string_view();
        let headers = known.column_by_name("headers").unwrap().as_struct();
        let header = |name: &str| headers.column_by_name(name).unwrap().as_string_view();
        let offsets = known.column_by_name("offset").unwrap().as_primitive::<Int64Type>();
        let partition = known.column_by_name("partition").unwrap().as_primitive::<Int64Type>();
        for row in 0..chunk.messages.len() {
            let n: usize =
                texts(std::slice::from_ref(chunk))[row][5..].trim_end_matches('}').parse().unwrap();
            let tenant = tenants[n].unwrap();
            assert_eq!(text("topic").value(row), format!("to-{}", tenant.replace('/', "_")));
            assert_eq!(text("key").value(row), format!("key-{tenant}"));
            assert_eq!((header("tenant").value(row), header("env").value(row)), (tenant, "prod"));
            assert!(arrow::array::Array::is_null(header("none"), row));
            assert_eq!(offsets.value(row) as u64, chunk.offsets[row]);
            partitions.entry(tenant).or_insert_with(BTreeSet::new).insert(partition.value(row));
        }
    }
    assert!(partitions.values().all(|of_key| of_key.len() == 1), "a key has one partition: {partitions:?}");
}

pub(crate) async fn what_is_refused_for_good_is_a_reject_and_nothing_else_is(broker: &Broker) {
    broker.topic("small", 1, &[("max.message.bytes", "20000")]).await;
    // Each fits, but not the batch that the library makes of them; one does not fit, one not even the library.
    let mut documents: Vec<String> =
        (0..100).map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000))).collect();
    documents[50] = format!("{{\"n\":50,\"x\":\"{}\"}}", "x".repeat(30_000));
    documents[60] = format!("{{\"n\":60,\"x\":\"{}\"}}", "x".repeat(2_000_000));
    let (mut out, cx) = sink("kafka", &yaml(broker, "topic: small\ncompression: none"));
    let sent = rows(0, &documents, &[None; 100]);
    let (rejects, n_errors) = deliver_at_last(&mut *out, &[sent]).await;
    assert_eq!(n_errors, 0);
    let originals = column(&rejects, "original");
    assert_eq!(originals, [documents[50].clone(), documents[60].clone()]);
    let reasons = column(&rejects, "reason");
    assert!(reasons.iter().all(|reason| reason.starts_with("kafka_message: ")), "{reasons:?}");
    assert_eq!(count(&cx.metrics.sink_rows), 98);
    let (mut back, _) =
        source(&format!("endpoint: [\"{}\"]\ntopics: [small]\ngroup: small", broker.address()));
    connect(&mut *back).await;
    let received = texts(&recv_messages(&mut *back, 98).await);
    assert_eq!(received, documents.iter().filter(|d| d.len() < 20_000).cloned().collect::<Vec<_>>());
}

pub(crate) async fn a_broker_that_goes_and_comes_back_has_everything(broker: &Broker) {
    broker.topic("outage", 1, &[]).await;
    let rest = "topic: outage\nkey: \"{tenant}\"\ndelivery_timeout: 3s";
    let (mut out, _) = sink("kafka", &yaml(broker, rest));
    let write = async |out: &mut dyn Sink, n: usize| {
        out.write(&rows(n, &numbered(n..n + 10), &[None; 10])).await?;
        out.flush(Epoch(1)).await
    };
    out.connect().await.unwrap();
    write(&mut *out, 0).await.unwrap();
    broker.pause();
    assert!(matches!(write(&mut *out, 10).await, Err(ConnectorError::Disconnected { .. })));
    assert!(matches!(out.connect().await, Err(ConnectorError::Disconnected { .. })));
    broker.resume();
    let (rejects, _) = deliver_at_last(&mut *out, &[rows(10, &numbered(10..20), &[None; 10])]).await;
    assert!(rejects.is_empty());
    let (mut back, _) = source(&format!(
        "endpoint: [\"{}\"]\ntopics: [outage]\ngroup: outage\nmetadata: k",
        broker.address()
    ));
    connect(&mut *back).await;
    let chunks = recv_messages(&mut *back, 20).await;
    assert_eq!(texts(&chunks), numbered(0..20));
    let keys = chunks[0].attributes.as_ref().unwrap().column_by_name("key").unwrap();
    assert_eq!(arrow::array::Array::null_count(keys), chunks[0].messages.len(), "a null is no key");
}

/// Rows as the source makes them of `numbers/0`.
pub(crate) fn from_kafka(first: usize, documents: &[String]) -> Batch {
    let rows = rows(first, documents, &vec![None; documents.len()]);
    let origin = Origin {
        source: "in".into(),
        partition: partition_of("numbers/0"),
        peer: Some("numbers/0".into()),
        ..Origin::clone(rows.origin())
    };
    let (columns, original, offsets) = (rows.rows().clone(), rows.original().clone(), rows.offsets().clone());
    Batch::new(columns, original, offsets, Arc::new(origin), Arc::clone(rows.layout())).unwrap()
}

pub(crate) async fn transactions_bring_what_a_source_repeats_once(broker: &Broker) {
    broker.topic("numbers", 1, &[]).await;
    broker.topic("exact", 2, &[("max.message.bytes", "20000")]).await;
    let yaml = yaml(broker, "topic: exact\ntransactional_id: one\ncompression: none");
    let mut documents = numbered(0..300);
    documents[250] = format!("{{\"n\":250,\"x\":\"{}\"}}", "x".repeat(30_000));

    let (mut first, cx) = sink("kafka", &yaml);
    first.connect().await.unwrap();
    first.write(&from_kafka(0, &documents[..100])).await.unwrap();
    first.flush(Epoch(1)).await.unwrap();
    assert_eq!(count(&cx.metrics.sink_rows), 100);
    // Sent, and never committed.
    first.write(&from_kafka(100, &documents[100..150])).await.unwrap();
    // Another process, with the same id, and a source that begins where its group is.
    let (mut second, cx) = sink("kafka", &yaml);
    let again = [from_kafka(40, &documents[40..120]), from_kafka(120, &documents[120..300])];
    let (rejects, n_errors) = deliver_at_last(&mut *second, &again).await;
    assert_eq!((column(&rejects, "original"), n_errors), (vec![documents[250].clone()], 0));
    assert_eq!((count(&cx.metrics.sink_rows), count(&cx.metrics.sink_duplicates)), (199, 60));
    let error = first.flush(Epoch(1)).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Refused { .. }), "the older one is fenced: {error:?}");
    // In a process that goes on, too.
    let (_, n_errors) = deliver_at_last(&mut *second, &again).await;
    assert_eq!((n_errors, count(&cx.metrics.sink_duplicates)), (0, 60 + 260));
    second.close().await.unwrap();

    let (mut back, _) =
        source(&format!("endpoint: [\"{}\"]\ntopics: [exact]\ngroup: exact", broker.address()));
    connect(&mut *back).await;
    let received = texts(&recv_messages(&mut *back, 299).await);
    documents.remove(250);
    assert_eq!(BTreeSet::from_iter(received), BTreeSet::from_iter(documents), "each once");
}
