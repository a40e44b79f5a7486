//! Streams and channels as sources.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray as _;
use logdrive_connectors::source::Budget;
use logdrive_connectors::{ConnectorContext, Intake, Metrics, SOURCES, Source, SourceKind};
use logdrive_schemas::Chunk;
use logdrive_schemas::component::{Limits, Node};
use redis::{Connection, cmd};
use tokio_util::sync::CancellationToken;

use crate::server::Server;

/// A source called `in`, as a pipeline would build it.
fn build(dir: &Path, yaml: &str) -> (SourceKind, CancellationToken) {
    let shutdown = CancellationToken::new();
    let cx = ConnectorContext {
        name: "in".into(),
        state_dir: dir.join("in"),
        metrics: Arc::new(Metrics::new()),
        shutdown: shutdown.clone(),
    };
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let entry = SOURCES.iter().find(|entry| entry.name == "redis").unwrap();
    match (entry.build)(&node, &cx) {
        Ok(kind) => (kind, shutdown),
        Err(errors) => panic!("{errors:?}"),
    }
}

async fn stream(dir: &Path, server: &Server, key: &str, more: &str) -> Box<dyn Source> {
    let yaml =
        format!("endpoint: \"{}\"\nkeys: [\"{key}\"]\nfield: message\nmetadata: redis\n{more}", server.url());
    let (SourceKind::Log(mut source), _) = build(dir, &yaml) else { panic!("no log") };
    source.connect(&[]).await.unwrap();
    source
}

fn add(connection: &mut Connection, key: &str, numbers: std::ops::Range<usize>) {
    for n in numbers {
        cmd("XADD").arg(key).arg("*").arg("message").arg(n).arg("other").arg("x").exec(connection).unwrap();
    }
}

fn n_pending(connection: &mut Connection, key: &str) -> i64 {
    let summary: Vec<redis::Value> = cmd("XPENDING").arg(key).arg("logdrive").query(connection).unwrap();
    let redis::Value::Int(n) = summary[0] else { panic!("{summary:?}") };
    n
}

fn texts(chunk: &Chunk) -> Vec<usize> {
    (0..chunk.messages.len())
        .map(|n| std::str::from_utf8(chunk.message(n)).unwrap().parse().unwrap())
        .collect()
}

async fn next(source: &mut Box<dyn Source>, messages: usize) -> Chunk {
    let budget = Budget { messages, ..Budget::default() };
    tokio::time::timeout(Duration::from_secs(20), source.recv(budget)).await.expect("nothing comes").unwrap()
}

/// Receives until `n` messages are there.
async fn all(source: &mut Box<dyn Source>, n: usize) -> (Vec<usize>, Vec<Chunk>) {
    let (mut found, mut chunks) = (Vec::new(), Vec::new());
    while found.len() < n {
        let chunk = next(source, 700).await;
        found.extend(texts(&chunk));
        chunks.push(chunk);
    }
    (found, chunks)
}

async fn nothing_comes(source: &mut Box<dyn Source>, how_long: Duration) {
    let came = tokio::time::timeout(how_long, source.recv(Budget::default())).await;
    assert!(came.is_err(), "{:?}", came.map(|chunk| chunk.map(|chunk| texts(&chunk))));
}

pub(crate) async fn what_is_delivered_is_acknowledged_and_what_is_not_comes_again(server: &Server) {
    let (dir, mut connection) = (tempfile::tempdir().unwrap(), server.connection());
    add(&mut connection, "plain", 0..2500);
    let mut source = stream(dir.path(), server, "plain", "").await;
    let (found, chunks) = all(&mut source, 2500).await;
    assert_eq!(found, (0..2500).collect::<Vec<_>>());
    let known = chunks[0].attributes.as_ref().unwrap();
    assert_eq!(known.column(0).as_string_view().value(0), "plain");
    assert!(known.column(1).as_string_view().value(0).contains('-'));
    assert_eq!(n_pending(&mut connection, "plain"), 2500);
    source.commit(chunks[0].end()).await.unwrap();
    assert_eq!(n_pending(&mut connection, "plain"), 2500 - chunks[0].messages.len() as i64);
    drop(source);
    // As after a crash: the same consumer gets the rest, known by the same offsets.
    let mut source = stream(dir.path(), server, "plain", "").await;
    let first = chunks[0].messages.len();
    let (again, repeated) = all(&mut source, 2500 - first).await;
    assert_eq!(again, (first..2500).collect::<Vec<_>>());
    assert_eq!((repeated[0].partition, repeated[0].offsets[0]), (chunks[1].partition, chunks[1].offsets[0]));
    add(&mut connection, "plain", 2500..2510);
    let (more, chunks) = all(&mut source, 10).await;
    assert_eq!(more, (2500..2510).collect::<Vec<_>>());
    source.commit(chunks.last().unwrap().end()).await.unwrap();
    assert_eq!(n_pending(&mut connection, "plain"), 0);
}

pub(crate) async fn a_lost_connection_repeats_nothing(server: &Server) {
    let (dir, mut connection) = (tempfile::tempdir().unwrap(), server.connection());
    add(&mut connection, "lost", 0..3000);
    let mut source = stream(dir.path(), server, "lost", "").await;
    let mut found = texts(&next(&mut source, 500).await);
    let mut last = None;
    for _ in 0..3 {
        cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut connection).unwrap();
        loop {
            let received = tokio::time::timeout(Duration::from_secs(5), source.recv(Budget::default())).await;
            match received.expect("an error") {
                Ok(chunk) => found.extend(texts(&chunk)),
                Err(_) => break,
            }
        }
        source.connect(&[]).await.unwrap();
        let start = found.len();
        add(&mut connection, "lost", 3000.max(start)..3000.max(start) + 10);
        while found.len() < 3010.max(start + 10) {
            let chunk = next(&mut source, 10_000).await;
            found.extend(texts(&chunk));
            last = Some(chunk.end());
        }
    }
    assert_eq!(found, (0..found.len()).collect::<Vec<_>>());
    source.commit(last.unwrap()).await.unwrap();
    assert_eq!(n_pending(&mut connection, "lost"), 0);
}

pub(crate) async fn what_a_consumer_that_is_gone_had_pending_is_taken_over(server: &Server) {
    let (one, other, mut connection) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), server.connection());
    add(&mut connection, "gone", 0..1500);
    let mut source = stream(one.path(), server, "gone", "").await;
    let (found, chunks) = all(&mut source, 1500).await;
    assert_eq!(found.len(), 1500);
    source.commit(chunks[0].end()).await.unwrap();
    drop(source);
    let left: BTreeSet<_> = (chunks[0].messages.len()..1500).collect();
    let mut source = stream(other.path(), server, "gone", "claim_idle: 1s\n").await;
    let (taken, chunks) = all(&mut source, left.len()).await;
    assert_eq!(taken.iter().copied().collect::<BTreeSet<_>>(), left);
    assert_eq!(taken.len(), left.len());
    let ends: std::collections::BTreeMap<_, _> =
        chunks.iter().map(|chunk| (chunk.partition, chunk.end())).collect();
    for end in ends.into_values() {
        source.commit(end).await.unwrap();
    }
    assert_eq!(n_pending(&mut connection, "gone"), 0);
    // New entries are the source's own again.
    add(&mut connection, "gone", 1500..1501);
    assert_eq!(all(&mut source, 1).await.0, [1500]);
}

pub(crate) async fn what_lives_is_left_alone(server: &Server) {
    let (one, other, mut connection) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), server.connection());
    add(&mut connection, "lives", 0..5000);
    // It has received some, and its sinks take nothing more: nobody asks it for a while.
    let mut slow = stream(one.path(), server, "lives", "claim_idle: 1s\n").await;
    let chunk = next(&mut slow, 100).await;
    let mut quick = stream(other.path(), server, "lives", "claim_idle: 1s\n").await;
    let started = Instant::now();
    let mut found = BTreeSet::new();
    while started.elapsed() < Duration::from_secs(4) {
        let received = tokio::time::timeout(Duration::from_millis(500), quick.recv(Budget::default())).await;
        found.extend(received.iter().flatten().flat_map(texts));
    }
    assert!(texts(&chunk).iter().all(|n| !found.contains(n)), "entries of a consumer that lives were taken");
    nothing_comes(&mut quick, Duration::from_millis(500)).await;
    let mut rest: BTreeSet<_> = texts(&chunk).into_iter().collect();
    while rest.len() + found.len() < 5000 {
        rest.extend(texts(&next(&mut slow, 10_000).await));
    }
    assert!(rest.is_disjoint(&found));
}

pub(crate) async fn identifiers_that_are_no_offsets_arrive_too(server: &Server) {
    let (dir, mut connection) = (tempfile::tempdir().unwrap(), server.connection());
    for (n, id) in ["1-1", "1-99999999999", "2-1", "18446744073709551615-1"].iter().enumerate() {
        cmd("XADD").arg("odd").arg(id).arg("message").arg(n).exec(&mut connection).unwrap();
    }
    cmd("XADD").arg("odd-too").arg("5-5").arg("message").arg(0).exec(&mut connection).unwrap();
    let mut source = stream(dir.path(), server, "odd", "").await;
    let (found, chunks) = all(&mut source, 4).await;
    assert_eq!(found, [0, 1, 2, 3]);
    for chunk in &chunks {
        source.commit(chunk.end()).await.unwrap();
    }
    assert_eq!(n_pending(&mut connection, "odd"), 0);
}

pub(crate) async fn channels_are_listened_to(server: &Server) {
    let (dir, mut connection) = (tempfile::tempdir().unwrap(), server.connection());
    let yaml = format!(
        "endpoint: \"{}\"\ndata_type: pattern_channel\nkeys: [\"news.*\"]\nmetadata: redis\n",
        server.url()
    );
    let (SourceKind::Listener(mut listener), shutdown) = build(dir.path(), &yaml) else { panic!("a log") };
    listener.bind().await.unwrap();
    let (intake, mut buffer) = Intake::channel(100);
    let running = tokio::spawn(listener.run(intake));
    let deadline = Instant::now() + Duration::from_secs(10);
    while cmd("PUBLISH").arg("news.first").arg("").query::<i64>(&mut connection).unwrap() == 0 {
        assert!(Instant::now() < deadline, "nobody listens");
    }
    for n in 0..1000 {
        cmd("PUBLISH").arg("news.sport").arg(n).exec(&mut connection).unwrap();
    }
    let mut found = Vec::new();
    while found.len() < 1000 {
        let received = tokio::time::timeout(Duration::from_secs(10), buffer.recv()).await.unwrap().unwrap();
        let keys = received.attributes.as_ref().unwrap().column(0).as_string_view().clone();
        for (range, key) in received.messages.iter().zip(keys.iter()) {
            if key == Some("news.sport") {
                let bytes = &received.data[range.start as usize..(range.start + range.len) as usize];
                found.push(std::str::from_utf8(bytes).unwrap().parse::<usize>().unwrap());
            }
        }
    }
    assert_eq!(found, (0..1000).collect::<Vec<_>>());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
