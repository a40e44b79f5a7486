//! The source.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use logdrive_connectors::ConnectorError;
use logdrive_schemas::Chunk;
use rdkafka::producer::{BaseRecord, Producer};

use crate::broker::{Broker, PATIENCE, connect, numbered, put, recv, recv_messages, source, texts};

fn yaml(broker: &Broker, topics: &str, group: &str, rest: &str) -> String {
    format!("endpoint: [\"{}\"]\ntopics: [{topics}]\ngroup: {group}\n{rest}", broker.address())
}

fn check_order(chunks: &[Chunk]) {
    let mut last = BTreeMap::new();
    for chunk in chunks {
        for offset in &chunk.offsets {
            let before = last.insert(chunk.partition, *offset);
            assert!(before.is_none_or(|before| before < *offset), "{before:?} {offset}");
        }
        assert_eq!(chunk.next_offset, chunk.offsets.last().unwrap() + 1);
    }
}

pub(crate) async fn messages_arrive_in_order_and_a_resume_goes_on_where_the_group_is(broker: &Broker) {
    broker.topic("resume", 3, &[]).await;
    for partition in 0..3 {
        let first = partition as usize * 1000;
        broker.send("resume", partition, &numbered(first..first + 1000));
    }
    let yaml = yaml(broker, "resume", "resume", "");
    let (mut first, cx) = source(&yaml);
    connect(&mut *first).await;
    let chunks = recv_messages(&mut *first, 3000).await;
    check_order(&chunks);
    assert_eq!(BTreeSet::from_iter(texts(&chunks)), BTreeSet::from_iter(numbered(0..3000)));
    assert_eq!(cx.metrics.source_messages.with_label_values(&["in"]).get(), 3000);
    // Delivered: all of partition 0, half of partition 1, nothing of partition 2.
    for (partition, upto) in [(0, 1000), (1, 500)] {
        let peer = format!("resume/{partition}");
        let of = chunks.iter().find(|chunk| chunk.peer.as_deref() == Some(&peer)).unwrap();
        first.commit(logdrive_schemas::Position { partition: of.partition, offset: upto }).await.unwrap();
    }
    // A message without a value, and one without anything in it.
    let producer = broker.producer(&[]);
    producer.send(BaseRecord::<str, str>::to("resume").partition(0).key("gone")).unwrap();
    producer.send(BaseRecord::<str, str>::to("resume").partition(0).payload("")).unwrap();
    producer.flush(PATIENCE).unwrap();
    drop(first);

    let (mut second, _) = source(&yaml);
    connect(&mut *second).await;
    let again = recv_messages(&mut *second, 2 + 500 + 1000).await;
    check_order(&again);
    let expected = numbered(1500..3000).into_iter().chain([String::new()]);
    assert_eq!(BTreeSet::from_iter(texts(&again)), expected.collect());
    let ids: BTreeSet<_> = chunks.iter().map(|chunk| chunk.partition).collect();
    assert_eq!(ids, again.iter().map(|chunk| chunk.partition).collect(), "a partition has one identity");
    // The stop is told by the end of input, and what was received may still be committed.
    let (mut third, cx) = source(&yaml);
    cx.shutdown.cancel();
    connect(&mut *third).await;
    assert!(matches!(third.recv(Default::default()).await, Err(ConnectorError::End)));
}

pub(crate) async fn where_to_begin_is_configured_and_then_stays(broker: &Broker) {
    broker.topic("start", 1, &[]).await;
    let producer = broker.producer(&[]);
    for n in 0..10 {
        let text = n.to_string();
        let record = BaseRecord::<str, str>::to("start").partition(0).payload(&text);
        producer.send(record.timestamp(1_700_000_000_000 + n * 1000)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let start = |text: &str| yaml(broker, "start", &text.replace([':', '.'], "-"), &format!("start: {text}"));
    for (text, first) in [("earliest", 0), ("2023-11-14T22:13:27Z", 7), ("2023-11-14T22:13:26.5Z", 7)] {
        let (mut source, _) = source(&start(text));
        connect(&mut *source).await;
        let chunks = recv_messages(&mut *source, 10 - first).await;
        assert_eq!(chunks[0].offsets[0], first as u64, "{text}");
    }
    // Behind the newest message; and there also for the next member, although the first one delivered nothing.
    for text in ["latest", "2033-11-14T22:13:27Z"] {
        let (mut first, _) = source(&start(text));
        connect(&mut *first).await;
        let n_before = if text == "latest" { 10 } else { 11 };
        let deadline = Instant::now() + PATIENCE;
        while broker.committed(&text.replace([':', '.'], "-"), "start") != Some(n_before as i64) {
            assert!(Instant::now() < deadline, "it does not begin");
        }
        drop(first);
        broker.send("start", 0, &numbered(n_before..n_before + 1));
        let (mut second, _) = source(&start(text));
        connect(&mut *second).await;
        let chunks = recv_messages(&mut *second, 1).await;
        assert_eq!(texts(&chunks), numbered(n_before..n_before + 1), "{text}");
    }
}

pub(crate) async fn aborted_transactions_are_not_read(broker: &Broker) {
    broker.topic("transactions", 1, &[]).await;
    let producer = broker.producer(&[("transactional.id", "test")]);
    producer.init_transactions(PATIENCE).unwrap();
    for (n, commit) in [(0, true), (10, false), (20, true)] {
        producer.begin_transaction().unwrap();
        put(&producer, "transactions", 0, &numbered(n..n + 10));
        if commit {
            producer.commit_transaction(PATIENCE).unwrap();
        } else {
            producer.flush(PATIENCE).unwrap();
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }
    let (mut committed, _) = source(&yaml(broker, "transactions", "rc", ""));
    connect(&mut *committed).await;
    let chunks = recv_messages(&mut *committed, 20).await;
    check_order(&chunks);
    assert_eq!(texts(&chunks), [numbered(0..10), numbered(20..30)].concat());
    let (mut all, _) = source(&yaml(broker, "transactions", "ru", "isolation_level: read_uncommitted"));
    connect(&mut *all).await;
    assert_eq!(texts(&recv_messages(&mut *all, 30).await), numbered(0..30));
}

pub(crate) async fn topics_are_found_by_pattern_and_lag_is_shown(broker: &Broker) {
    broker.topic("pattern-a", 1, &[]).await;
    broker.topic("pattern-b", 1, &[]).await;
    broker.topic("other", 1, &[]).await;
    for topic in ["pattern-a", "pattern-b", "other"] {
        broker.send(topic, 0, &numbered(0..5));
    }
    let rest = "options: { statistics.interval.ms: 200 }";
    let (mut source, cx) = source(&yaml(broker, "\"^pattern-.*\"", "pattern", rest));
    connect(&mut *source).await;
    let chunks = recv_messages(&mut *source, 10).await;
    let peers: BTreeSet<_> = chunks.iter().filter_map(|chunk| chunk.peer.as_deref()).collect();
    assert_eq!(peers, BTreeSet::from(["pattern-a/0", "pattern-b/0"]));
    let lag = |topic: &str| cx.metrics.kafka_lag.with_label_values(&["in", topic, "0"]).get();
    let deadline = Instant::now() + PATIENCE;
    while (lag("pattern-a"), lag("pattern-b")) != (5, 5) {
        assert!(Instant::now() < deadline, "lag {} {}", lag("pattern-a"), lag("pattern-b"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let of_a = chunks.iter().find(|chunk| chunk.peer.as_deref() == Some("pattern-a/0")).unwrap();
    source.commit(of_a.end()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while (lag("pattern-a"), lag("pattern-b")) != (0, 5) {
        assert!(Instant::now() < deadline, "lag {} {}", lag("pattern-a"), lag("pattern-b"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn partitions_are_held_until_what_was_received_is_delivered(broker: &Broker) {
    broker.topic("held", 4, &[]).await;
    for partition in 0..4 {
        let first = partition as usize * 100;
        broker.send("held", partition, &numbered(first..first + 100));
    }
    let yaml = yaml(broker, "held", "held", "options: { heartbeat.interval.ms: 300 }");
    let (mut first, _) = source(&yaml);
    connect(&mut *first).await;
    let mut of_first = recv_messages(&mut *first, 400).await;
    let (mut second, _) = source(&yaml);
    connect(&mut *second).await;
    // Nothing is delivered, so nothing is given up; the client library pauses the first member meanwhile.
    for round in 0..2 {
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert!(recv(&mut *second, Duration::from_millis(10)).await.is_none(), "given up too early");
            of_first.extend(recv(&mut *first, Duration::from_millis(10)).await);
        }
        for partition in (0..4).filter(|_| round == 0) {
            let first = 1000 + partition as usize * 100;
            broker.send("held", partition, &numbered(first..first + 100));
        }
    }
    assert_eq!(texts(&of_first).len(), 400);
    for chunk in &of_first {
        first.commit(chunk.end()).await.unwrap();
    }
    let mut of_second = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while texts(&of_first).len() + texts(&of_second).len() < 800 {
        assert!(Instant::now() < deadline, "not all of them");
        of_first.extend(recv(&mut *first, Duration::from_millis(10)).await);
        of_second.extend(recv(&mut *second, Duration::from_millis(10)).await);
    }
    assert_eq!(texts(&of_second).len(), 200, "half of the partitions");
    let all = [texts(&of_first), texts(&of_second)].concat();
    let expected = [numbered(0..400), numbered(1000..1400)].concat();
    assert_eq!((all.len(), BTreeSet::from_iter(all)), (800, BTreeSet::from_iter(expected)), "each once");
    for chunk in &of_first {
        first.commit(chunk.end()).await.unwrap();
    }
    // A member that leaves delivers and commits first; the other takes over behind it.
    drop(first);
    for chunk in &of_second {
        second.commit(chunk.end()).await.unwrap();
    }
    for partition in 0..4 {
        let first = 2000 + partition as usize * 10;
        broker.send("held", partition, &numbered(first..first + 10));
    }
    let rest = recv_messages(&mut *second, 40).await;
    assert_eq!(BTreeSet::from_iter(texts(&rest)), BTreeSet::from_iter(numbered(2000..2040)));
}

pub(crate) async fn nothing_is_lost_while_nobody_takes_anything(broker: &Broker) {
    broker.topic("slow", 2, &[]).await;
    let producer = broker.producer(&[]);
    let padding = " ".repeat(1000);
    let text =
        |range: std::ops::Range<usize>| -> Vec<String> { range.map(|n| format!("{n}{padding}")).collect() };
    put(&producer, "slow", 0, &text(0..20_000));
    put(&producer, "slow", 1, &text(20_000..40_000));
    producer.flush(PATIENCE).unwrap();
    let (mut source, _) = source(&yaml(broker, "slow", "slow", "prefetch_bytes: 2MiB"));
    connect(&mut *source).await;
    let mut chunks = vec![recv(&mut *source, PATIENCE).await.unwrap()];
    // Longer than it takes until the partitions are paused.
    tokio::time::sleep(Duration::from_secs(4)).await;
    chunks.extend(recv_messages(&mut *source, 40_000 - chunks[0].messages.len()).await);
    check_order(&chunks);
    let numbers: BTreeSet<usize> =
        texts(&chunks).iter().map(|text| text.trim_end().parse().unwrap()).collect();
    assert_eq!(numbers, (0..40_000).collect());
}

pub(crate) async fn a_broker_that_is_not_there_is_tried_again(broker: &Broker) {
    let gone = yaml(broker, "t", "g", "").replace(&broker.address(), "127.0.0.1:1");
    let (mut nobody, _) = source(&gone);
    assert!(matches!(nobody.connect(&[]).await, Err(ConnectorError::Disconnected { .. })));
}
