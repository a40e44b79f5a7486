//! The buffer as a whole: what it promises to senders and to the pipeline, also when the disk does not.

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Array as _, ArrayRef, Int64Array, StringViewArray, StructArray};
use arrow::datatypes::Field;
use arrow::util::display::array_value_to_string;
use async_trait::async_trait;
use bytes::Bytes;
use logdrive_schemas::{Chunk, MessageRange, Position};
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::disk::{DiskBuffer, Sizes};
use super::memory::MemoryBuffer;
use super::store::{Disk, RealDisk};
use super::{inspect, store};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::metrics::Metrics;
use crate::source::{Budget, Intake, Listener, NotDurable, Received, Source};

/// A listener that hands over what a test sends.
struct Feed(mpsc::UnboundedReceiver<Received>);

#[async_trait]
impl Listener for Feed {
    async fn bind(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }

    async fn run(mut self: Box<Self>, intake: Intake) -> Result<(), ConnectorError> {
        while let Some(received) = self.0.recv().await {
            if intake.send(received).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

type Answer = oneshot::Receiver<Result<(), NotDurable>>;

/// The sender's side.
struct Sender(mpsc::UnboundedSender<Received>);

impl Sender {
    fn send(&self, messages: &[&str]) -> Answer {
        self.send_from("peer:1", messages)
    }

    fn send_from(&self, peer: &str, messages: &[&str]) -> Answer {
        let (ack, answer) = oneshot::channel();
        let mut data = Vec::new();
        let mut ranges = Vec::new();
        for message in messages {
            ranges.push(MessageRange { start: data.len() as u32, len: message.len() as u32 });
            data.extend_from_slice(message.as_bytes());
            data.push(b'\n');
        }
        let received = Received {
            data: data.into(),
            messages: ranges,
            peer: Some(peer.into()),
            attributes: None,
            ack: Some(ack),
        };
        self.0.send(received).expect("the listener runs");
        answer
    }
}

fn context(dir: &Path) -> ConnectorContext {
    ConnectorContext {
        name: "shop".into(),
        state_dir: dir.to_owned(),
        metrics: Arc::new(Metrics::new()),
        shutdown: CancellationToken::new(),
    }
}

fn small() -> Sizes {
    Sizes {
        segment: 4 << 10,
        memory: 2 << 10,
        group: 1 << 10,
        refill: 1 << 10,
        undelivered: 1 << 20,
        direct: false,
    }
}

/// As [`small`], past the page cache: a group commit takes whole blocks.
fn direct() -> Sizes {
    Sizes { segment: 32 << 10, direct: true, ..small() }
}

fn source(dir: &Path, sizes: Sizes, disk: impl Disk + 'static) -> (DiskBuffer, Sender, ConnectorContext) {
    let (sender, feed) = mpsc::unbounded_channel();
    let cx = context(dir);
    (DiskBuffer::with_disk(Box::new(Feed(feed)), sizes, &cx, Box::new(disk)), Sender(sender), cx)
}

async fn open(dir: &Path, sizes: Sizes) -> (DiskBuffer, Sender) {
    // The writer of a source dropped before lets go of the folder on its next turn.
    let mut refused = 0;
    loop {
        let (mut source, sender, _) = source(dir, sizes, RealDisk);
        match source.connect(&[]).await {
            Ok(()) => return (source, sender),
            Err(ConnectorError::Refused { .. }) if refused < 10_000 => refused += 1,
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the folder is let go.
async fn released(dir: &Path) {
    soon(async {
        while store::lock(&dir.join("buffer")).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), what).await.expect("within the deadline")
}

async fn recv(source: &mut DiskBuffer) -> Chunk {
    soon(source.recv(Budget::default())).await.unwrap()
}

fn texts(chunk: &Chunk) -> Vec<String> {
    (0..chunk.messages.len()).map(|i| String::from_utf8(chunk.message(i).to_vec()).unwrap()).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    store::list(&dir.join("buffer")).unwrap().into_iter().map(|(_, path)| path).collect()
}

#[tokio::test]
async fn messages_arrive_in_order_and_the_end_comes_after_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), Sizes::new(1 << 30)).await;
    for n in 0..100 {
        soon(sender.send(&[&format!("a{n}"), ""])).await.unwrap().unwrap();
    }
    drop(sender);
    let mut all = Vec::new();
    let mut offsets = Vec::new();
    let end = loop {
        match soon(source.recv(Budget { messages: 7, bytes: 1 << 20 })).await {
            Ok(chunk) => {
                assert!(chunk.messages.len() <= 7);
                assert_eq!(chunk.peer.as_deref(), Some("peer:1"));
                assert_eq!(chunk.next_offset, chunk.offsets.last().unwrap() + 1);
                offsets.extend_from_slice(&chunk.offsets);
                all.extend(texts(&chunk));
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(end, ConnectorError::End));
    assert_eq!(offsets, (0..200).collect::<Vec<_>>());
    let expected: Vec<_> = (0..100).flat_map(|n| [format!("a{n}"), String::new()]).collect();
    assert_eq!(all, expected);
    assert!(!source.wants_positions_kept());
}

/// Syncs only when a test lets it, and fails if the test says so.
struct GatedDisk {
    allowed: std::sync::mpsc::Receiver<Result<(), i32>>,
    begun: Arc<AtomicUsize>,
}

impl Disk for GatedDisk {
    fn sync(&mut self, file: &fs::File) -> io::Result<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        match self.allowed.recv() {
            Ok(Err(errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ => file.sync_data(),
        }
    }
}

fn gated(dir: &Path) -> (DiskBuffer, Sender, std::sync::mpsc::Sender<Result<(), i32>>, Arc<AtomicUsize>) {
    let (allow, allowed) = std::sync::mpsc::channel();
    let begun = Arc::new(AtomicUsize::new(0));
    // Creating the first segment and opening it sync once each.
    allow.send(Ok(())).unwrap();
    allow.send(Ok(())).unwrap();
    let (source, sender, _) = source(dir, small(), GatedDisk { allowed, begun: Arc::clone(&begun) });
    (source, sender, allow, begun)
}

#[tokio::test]
async fn nobody_is_answered_and_nothing_is_read_before_the_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender, allow, begun) = gated(dir.path());
    source.connect(&[]).await.unwrap();
    let mut first = sender.send(&["one"]);
    let wait_for = |n| {
        let begun = Arc::clone(&begun);
        soon(async move {
            while begun.load(Ordering::SeqCst) < n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    wait_for(3).await;
    let mut second = sender.send(&["two"]);
    let mut third = sender.send(&["three"]);
    assert!(timeout(Duration::from_millis(20), source.recv(Budget::default())).await.is_err());
    assert!(first.try_recv().is_err(), "answered before the sync");
    allow.send(Ok(())).unwrap();
    soon(&mut first).await.unwrap().unwrap();
    assert_eq!(texts(&recv(&mut source).await), ["one"]);
    wait_for(4).await;
    assert!(second.try_recv().is_err() && third.try_recv().is_err(), "answered before the sync");
    allow.send(Ok(())).unwrap();
    soon(second).await.unwrap().unwrap();
    soon(third).await.unwrap().unwrap();
    assert_eq!(begun.load(Ordering::SeqCst), 4, "what waited shares a sync");
    assert_eq!(texts(&recv(&mut source).await), ["two", "three"]);
}

#[tokio::test]
async fn a_failed_sync_is_told_to_everybody_and_stops_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender, allow, _) = gated(dir.path());
    source.connect(&[]).await.unwrap();
    allow.send(Ok(())).unwrap();
    soon(sender.send(&["kept"])).await.unwrap().unwrap();
    assert_eq!(texts(&recv(&mut source).await), ["kept"]);
    allow.send(Err(libc::EIO)).unwrap();
    assert!(soon(sender.send(&["lost"])).await.unwrap().is_err());
    for _ in 0..2 {
        let error = soon(source.recv(Budget::default())).await.unwrap_err();
        assert!(!matches!(error, ConnectorError::End), "{error}");
    }
    // A sender that comes later is not answered with a yes either.
    let (ack, answer) = oneshot::channel();
    let later =
        Received { data: Bytes::new(), messages: vec![], peer: None, attributes: None, ack: Some(ack) };
    if sender.0.send(later).is_ok() {
        assert!(!matches!(soon(answer).await, Ok(Ok(()))));
    }
}

/// Has room for so many bytes.
struct FullDisk(usize);

impl Disk for FullDisk {
    fn write(&mut self, file: &mut fs::File, bytes: &[u8]) -> io::Result<()> {
        let n = bytes.len().min(self.0);
        self.0 -= n;
        io::Write::write_all(file, &bytes[..n])?;
        if n < bytes.len() { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_answered() {
    for room in [300, 333, 400] {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, sender, _) = source(dir.path(), small(), FullDisk(room));
        source.connect(&[]).await.unwrap();
        let mut kept = Vec::new();
        for n in 0..20 {
            let text = format!("message {n}");
            match soon(sender.send(&[&text])).await {
                Ok(Ok(())) => kept.push(text),
                Ok(Err(error)) => {
                    assert!(error.to_string().contains("storage"), "{error}");
                    break;
                }
                Err(_) => panic!("no answer"),
            }
        }
        assert!(!kept.is_empty() && kept.len() < 20);
        let error = loop {
            if let Err(error) = soon(source.recv(Budget::default())).await {
                break error;
            }
        };
        let ConnectorError::Storage { source: cause, .. } = error else { panic!("{error}") };
        assert_eq!(cause.raw_os_error(), Some(libc::ENOSPC));
        drop(source);
        let (mut source, _sender) = open(dir.path(), small()).await;
        assert_eq!(texts(&recv(&mut source).await), kept);
    }
}

/// Sends messages numbered from `from`, `n` of them.
async fn send_numbered(sender: &Sender, from: usize, n: usize) {
    for number in from..from + n {
        soon(sender.send(&[&format!("message number {number}")])).await.unwrap().unwrap();
    }
}

/// Reads and commits messages numbered from `from`, `n` of them.
async fn deliver_numbered(source: &mut DiskBuffer, from: usize, n: usize) {
    let mut number = from;
    while number < from + n {
        let chunk = recv(source).await;
        for text in texts(&chunk) {
            assert_eq!(text, format!("message number {number}"));
            number += 1;
        }
        source.commit(Position { partition: chunk.partition, offset: chunk.next_offset }).await.unwrap();
    }
}

#[tokio::test]
async fn the_disk_is_read_again_after_segments_passed_through_memory_and_were_deleted() {
    memory_between_disk(small()).await;
    memory_between_disk(direct()).await;
}

async fn memory_between_disk(sizes: Sizes) {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), sizes).await;
    let mut n_sent = 0;
    for _ in 0..2 {
        // More than memory holds: read from disk.
        send_numbered(&sender, n_sent, 200).await;
        deliver_numbered(&mut source, n_sent, 200).await;
        n_sent += 200;
        // One by one: from memory, while the segments that the disk reader stands in and comes to are deleted.
        for _ in 0..300 {
            send_numbered(&sender, n_sent, 1).await;
            deliver_numbered(&mut source, n_sent, 1).await;
            n_sent += 1;
        }
        assert!(segments(dir.path()).len() <= 2);
    }
}

#[tokio::test]
async fn a_backlog_larger_than_memory_comes_from_disk_and_is_deleted_when_delivered() {
    backlog(small()).await;
    backlog(direct()).await;
}

async fn backlog(sizes: Sizes) {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), sizes).await;
    let mut n_sent = 0;
    let mut n_read = 0;
    let mut next_offset = 0;
    for round in 0..6 {
        for _ in 0..300 {
            soon(sender.send(&[&format!("message number {n_sent}")])).await.unwrap().unwrap();
            n_sent += 1;
        }
        // Rounds of reading a part, and of reading everything, so that memory and disk take turns.
        let until = if round % 2 == 0 { n_sent - 100 } else { n_sent };
        while n_read < until {
            // A read that is given up half-way loses nothing.
            let patience = Duration::from_micros(if n_read % 3 == 0 { 0 } else { 20_000_000 });
            let Ok(chunk) = timeout(patience, source.recv(Budget { messages: 13, bytes: 200 })).await else {
                continue;
            };
            let chunk = chunk.unwrap();
            assert_eq!(chunk.offsets[0], next_offset);
            for text in texts(&chunk) {
                assert_eq!(text, format!("message number {n_read}"));
                n_read += 1;
            }
            next_offset = chunk.next_offset;
            source.commit(chunk.end()).await.unwrap();
        }
    }
    assert_eq!(n_read, n_sent);
    assert_eq!(segments(dir.path()).len(), 1, "delivered segments are deleted");
    assert_eq!(source_gauge(&source), 0);
}

fn source_gauge(source: &DiskBuffer) -> i64 {
    source.metrics().buffer_bytes.with_label_values(&["shop"]).get()
}

#[tokio::test]
async fn a_restart_goes_on_in_the_middle_of_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), small()).await;
    soon(sender.send(&["a", "b", "c", "d"])).await.unwrap().unwrap();
    soon(sender.send(&["e"])).await.unwrap().unwrap();
    let chunk = soon(source.recv(Budget { messages: 3, bytes: 100 })).await.unwrap();
    let partition = chunk.partition;
    source.commit(Position { partition, offset: 2 }).await.unwrap();
    drop(source);
    let (mut source, sender) = open(dir.path(), small()).await;
    let chunk = recv(&mut source).await;
    assert_eq!((texts(&chunk), chunk.partition), (vec!["c".into(), "d".into(), "e".into()], partition));
    source.commit(chunk.end()).await.unwrap();
    drop((source, sender));
    for path in segments(dir.path()) {
        fs::remove_file(path).unwrap();
    }
    let (mut source, sender) = open(dir.path(), small()).await;
    soon(sender.send(&["f"])).await.unwrap().unwrap();
    let chunk = recv(&mut source).await;
    // Others than those that are known to be delivered may have been seen: no number comes twice.
    assert!(5 < chunk.offsets[0] && chunk.partition == partition);
}

#[tokio::test]
async fn two_processes_cannot_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (_first, _sender) = open(dir.path(), small()).await;
    let (mut second, _, _) = source(dir.path(), small(), RealDisk);
    let error = second.connect(&[]).await.unwrap_err();
    assert!(matches!(error, ConnectorError::Refused { .. }), "{error}");
    assert!(inspect::check(&dir.path().join("buffer")).is_err());
}

#[tokio::test]
async fn a_full_buffer_is_not_written_until_something_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), Sizes { undelivered: 100, ..small() }).await;
    soon(sender.send(&["x".repeat(200).as_str()])).await.unwrap().unwrap();
    let mut waiting = sender.send(&["later"]);
    assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err(), "taken although full");
    assert_eq!(source_gauge(&source), 201);
    let chunk = recv(&mut source).await;
    source.commit(chunk.end()).await.unwrap();
    soon(waiting).await.unwrap().unwrap();
    assert_eq!(texts(&recv(&mut source).await), ["later"]);
}

#[tokio::test]
async fn one_record_is_a_view_and_small_ones_are_combined() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), Sizes::new(1 << 30)).await;
    let data = Bytes::from(vec![b'x'; 300 << 10]);
    let address = data.as_ptr();
    let (ack, answer) = oneshot::channel();
    let messages = vec![MessageRange { start: 0, len: 300 << 10 }];
    sender.0.send(Received { data, messages, peer: None, attributes: None, ack: Some(ack) }).unwrap();
    soon(answer).await.unwrap().unwrap();
    soon(sender.send_from("a", &["1", "2"])).await.unwrap().unwrap();
    soon(sender.send_from("b", &["3"])).await.unwrap().unwrap();
    assert_eq!(recv(&mut source).await.data.as_ptr(), address);
    let chunk = recv(&mut source).await;
    assert_eq!((texts(&chunk), chunk.peer), (vec!["1".into(), "2".into(), "3".into()], None));
}

impl Sender {
    /// Sends messages that say which attribute they have: `topic` is of this type.
    fn send_with_topics(&self, messages: &[&str], topics: ArrayRef) -> Answer {
        let (ack, answer) = oneshot::channel();
        let mut ranges: Vec<MessageRange> = Vec::new();
        for message in messages {
            let start = ranges.last().map_or(0, |m| m.start + m.len);
            ranges.push(MessageRange { start, len: message.len() as u32 });
        }
        let field = Arc::new(Field::new("topic", topics.data_type().clone(), true));
        let received = Received {
            data: messages.concat().into(),
            messages: ranges,
            peer: None,
            attributes: Some(StructArray::from(vec![(field, topics)])),
            ack: Some(ack),
        };
        self.0.send(received).expect("the listener runs");
        answer
    }
}

/// The messages of a chunk, each with its topic.
fn topics(chunk: &Chunk) -> Vec<(String, String)> {
    let attributes = chunk.attributes.as_ref();
    let topic = |idx| match attributes.map(|a| a.column(0)) {
        None => "none".to_owned(),
        Some(topics) => array_value_to_string(topics, idx).unwrap(),
    };
    assert!(attributes.is_none_or(|a| a.len() == chunk.messages.len()));
    texts(chunk).into_iter().enumerate().map(|(idx, text)| (text, topic(idx))).collect()
}

fn of_text(topics: &[&str]) -> ArrayRef {
    Arc::new(StringViewArray::from(topics.to_vec()))
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[tokio::test]
async fn attributes_stay_with_their_messages_on_disk_and_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), Sizes::new(1 << 30)).await;
    soon(sender.send(&["old"])).await.unwrap().unwrap();
    let long = "a topic that is longer than twelve bytes";
    soon(sender.send_with_topics(&["a", "b", "c"], of_text(&["ta", long, "tc"]))).await.unwrap().unwrap();
    soon(sender.send_with_topics(&["d"], of_text(&["td"]))).await.unwrap().unwrap();
    let numbers = Arc::new(Int64Array::from(vec![7]));
    soon(sender.send_with_topics(&["e"], numbers)).await.unwrap().unwrap();
    let expected = [
        pairs(&[("old", "none")]),
        pairs(&[("a", "ta"), ("b", long), ("c", "tc"), ("d", "td")]),
        pairs(&[("e", "7")]),
    ];
    for expected in &expected {
        assert_eq!(topics(&recv(&mut source).await), *expected);
    }
    drop((source, sender));
    released(dir.path()).await;
    let (mut source, _sender) = open(dir.path(), Sizes::new(1 << 30)).await;
    assert_eq!(topics(&recv(&mut source).await), expected[0]);
    let first = soon(source.recv(Budget { messages: 2, bytes: 100 })).await.unwrap();
    assert_eq!(topics(&first), expected[1][..2], "a part of a record has its part of them");
    assert_eq!(topics(&recv(&mut source).await), expected[1][2..]);
    assert_eq!(topics(&recv(&mut source).await), expected[2]);

    let (sender, feed) = mpsc::unbounded_channel();
    let mut memory = MemoryBuffer::new(Box::new(Feed(feed)), 1 << 20, &context(dir.path()));
    memory.connect(&[]).await.unwrap();
    let _answer = Sender(sender).send_with_topics(&["a"], of_text(&["ta"]));
    assert_eq!(topics(&soon(memory.recv(Budget::default())).await.unwrap()), pairs(&[("a", "ta")]));
}

#[tokio::test]
async fn attributes_that_do_not_fit_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, sender) = open(dir.path(), small()).await;
    assert!(soon(sender.send_with_topics(&["a"], of_text(&["one", "two"]))).await.unwrap().is_err());
    soon(sender.send(&["b"])).await.unwrap().unwrap();
    assert_eq!(topics(&recv(&mut source).await), pairs(&[("b", "none")]));
}

#[tokio::test]
async fn memory_mode_answers_when_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, feed) = mpsc::unbounded_channel();
    let mut source = MemoryBuffer::new(Box::new(Feed(feed)), 1000, &context(dir.path()));
    let sender = Sender(sender);
    source.connect(&[]).await.unwrap();
    let mut first = sender.send(&["a", "b"]);
    let mut second = sender.send(&["c"]);
    let mut n = 0;
    let mut end = None;
    while n < 3 {
        let chunk = soon(source.recv(Budget::default())).await.unwrap();
        n += chunk.messages.len();
        end = Some(chunk.end());
    }
    let end = end.unwrap();
    source.commit(Position { offset: 1, ..end }).await.unwrap();
    assert!(first.try_recv().is_err());
    source.commit(Position { offset: 2, ..end }).await.unwrap();
    soon(&mut first).await.unwrap().unwrap();
    assert!(second.try_recv().is_err());
    source.commit(end).await.unwrap();
    soon(second).await.unwrap().unwrap();
    let unanswered = sender.send(&["d"]);
    drop(sender);
    soon(source.recv(Budget::default())).await.unwrap();
    assert!(matches!(soon(source.recv(Budget::default())).await, Err(ConnectorError::End)));
    drop(source);
    assert!(unanswered.await.is_err(), "what is not delivered is not answered");
}

/// A folder with three group commits of two messages each, and what its one segment looks like.
async fn folder() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (source, sender) = open(dir.path(), Sizes { direct: false, ..Sizes::new(1 << 30) }).await;
    for n in 0..3 {
        soon(sender.send(&[&format!("first {n}"), &format!("second {n}")])).await.unwrap().unwrap();
    }
    drop((source, sender));
    released(dir.path()).await;
    let path = segments(dir.path()).remove(0);
    let bytes = fs::read(&path).unwrap();
    (dir, path, bytes)
}

const ALL: [&str; 6] = ["first 0", "second 0", "first 1", "second 1", "first 2", "second 2"];

/// Opens a folder of its own with this segment: what can be read, or the error.
async fn reopen(original: &Path, bytes: &[u8]) -> Result<(Vec<String>, u64), ConnectorError> {
    let dir = tempfile::tempdir().unwrap();
    let buffer = dir.path().join("buffer");
    fs::create_dir(&buffer).unwrap();
    fs::copy(original.with_file_name("cursor"), buffer.join("cursor")).unwrap();
    fs::write(buffer.join(original.file_name().unwrap()), bytes).unwrap();
    let (mut source, sender, cx) = source(dir.path(), Sizes::new(1 << 30), RealDisk);
    source.connect(&[]).await?;
    soon(sender.send(&["new"])).await.unwrap().unwrap();
    let mut all = Vec::new();
    let mut offsets = Vec::new();
    while all.last().is_none_or(|text| text != "new") {
        let chunk = recv(&mut source).await;
        all.extend(texts(&chunk));
        offsets.extend_from_slice(&chunk.offsets);
    }
    all.pop();
    assert!(offsets.is_sorted());
    let truncated = cx.metrics.buffer_truncated_bytes.with_label_values(&["shop"]).get();
    // Whoever had seen what was cut off must not take the new message for it.
    let new = *offsets.last().unwrap();
    assert!(6 < new || truncated == 0 && new == all.len() as u64);
    Ok((all, truncated))
}

#[tokio::test]
async fn a_segment_cut_anywhere_loses_its_torn_tail_alone() {
    let (_dir, path, bytes) = folder().await;
    let mut n_before = 0;
    for len in 0..=bytes.len() {
        let (texts, truncated) = reopen(&path, &bytes[..len]).await.unwrap();
        assert_eq!(texts, ALL[..texts.len()], "cut at {len}");
        assert!(texts.len() % 2 == 0 && n_before <= texts.len());
        n_before = texts.len();
        assert!(truncated <= 80);
    }
    assert_eq!(n_before, 6);
}

#[tokio::test]
async fn a_group_written_directly_is_whole_or_torn_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (_source, sender) = open(dir.path(), direct()).await;
        for n in 0..3 {
            soon(sender.send(&[&format!("message number {n}")])).await.unwrap().unwrap();
        }
    }
    released(dir.path()).await;
    let path = segments(dir.path())[0].clone();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 3 * 4096, "each group ends at a block");
    for len in (1..=bytes.len()).rev().step_by(97) {
        fs::write(&path, &bytes[..len]).unwrap();
        // A group's padding may be lost, its message not.
        let expect = bytes[..len].windows(15).filter(|w| w == b"message number ").count();
        let report = inspect::check(&dir.path().join("buffer")).unwrap();
        assert!(report.damage.is_none(), "cut at {len}");
        assert!(report.undelivered_messages + 1 >= expect as u64, "cut at {len}");
    }
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let (mut source, sender) = open(dir.path(), direct()).await;
    soon(sender.send(&["after"])).await.unwrap().unwrap();
    let mut all = Vec::new();
    while all.len() < 4 {
        all.extend(texts(&recv(&mut source).await));
    }
    assert_eq!(all, ["message number 0", "message number 1", "message number 2", "after"]);
    assert_eq!(fs::metadata(&path).unwrap().len() % 4096, 0, "blocks again behind a torn tail");
}

#[tokio::test]
async fn a_flipped_byte_is_never_read_and_never_goes_unseen() {
    let (_dir, path, bytes) = folder().await;
    let (mut n_refused, mut n_cut) = (0, 0);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x41;
        match reopen(&path, &flipped).await {
            Ok((texts, truncated)) => {
                // Only the last group can be a torn tail.
                assert_eq!(texts, ALL[..4], "byte {at}");
                assert!(0 < truncated, "byte {at}");
                n_cut += 1;
            }
            Err(ConnectorError::Storage { path: named, source }) => {
                assert!(named.ends_with(".seg"));
                let text = source.to_string();
                assert!(text.contains("at byte") && text.contains("logdrive buffer repair"), "{text}");
                n_refused += 1;
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(0 < n_cut && n_cut * 2 <= n_refused + n_cut, "{n_cut} cut, {n_refused} refused");
}

#[tokio::test]
async fn a_peer_cannot_make_a_torn_tail_look_like_damage() {
    let (_dir, path, bytes) = folder().await;
    // The bytes of a later frame, as somebody who does not know the folder's key would make them.
    let mut forged = Vec::new();
    super::frame::write(&mut forged, 0, (900, 900, 1), |out| out.extend_from_slice(b"forged"));
    let mut tail = bytes.clone();
    tail.truncate(bytes.len() - 3);
    tail.extend_from_slice(&forged);
    let (texts, _) = reopen(&path, &tail).await.unwrap();
    assert_eq!(texts, ALL[..4]);
}

#[tokio::test]
async fn repair_cuts_at_the_damage_and_keeps_the_rest() {
    let (dir, path, mut bytes) = folder().await;
    let folder = dir.path().join("buffer");
    let report = inspect::check(&folder).unwrap();
    assert_eq!((report.undelivered_messages, report.delivered, &report.damage), (6, Some(0), &None));
    let at = bytes.windows(8).position(|w| w == b"second 1").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let damage = inspect::check(&folder).unwrap().damage.unwrap();
    assert!(damage.path == path && damage.offset < at as u64);
    let repaired = inspect::repair(&folder).unwrap();
    assert_eq!((repaired.damage, repaired.undelivered_messages), (None, 2));
    assert_eq!(repaired.damaged_files.len(), 1);
    let kept = fs::read(&repaired.damaged_files[0]).unwrap();
    assert_eq!(kept, &bytes[damage.offset as usize..]);
    let (mut source, sender) = open(dir.path(), small()).await;
    assert_eq!(texts(&recv(&mut source).await), ALL[..2]);
    soon(sender.send(&["new"])).await.unwrap().unwrap();
    let chunk = recv(&mut source).await;
    assert_eq!(texts(&chunk), ["new"]);
    assert!(6 < chunk.offsets[0]);
}

#[tokio::test]
async fn a_repaired_folder_opens_whatever_was_wrong() {
    let (_dir, path, bytes) = folder().await;
    let cursor = fs::read(path.with_file_name("cursor")).unwrap();
    for case in 0..bytes.len() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("buffer");
        fs::create_dir(&folder).unwrap();
        let (mut bytes, mut cursor) = (bytes.clone(), cursor.clone());
        bytes[case] ^= 0x10;
        let at = case % cursor.len();
        cursor[at] ^= 0x10;
        if case % 3 != 0 {
            fs::write(folder.join("cursor"), cursor).unwrap();
        }
        fs::write(folder.join(path.file_name().unwrap()), &bytes).unwrap();
        inspect::repair(&folder).unwrap();
        let report = inspect::check(&folder).unwrap();
        assert_eq!(report.damage, None, "byte {case}");
        let kept: u64 = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes.len() as u64 <= kept, "byte {case}: something was deleted");
        let (mut source, sender) = open(dir.path(), small()).await;
        soon(sender.send(&["new"])).await.unwrap().unwrap();
        let mut all = Vec::new();
        while all.last().is_none_or(|text| text != "new") {
            all.extend(texts(&recv(&mut source).await));
        }
        all.pop();
        assert_eq!(all, ALL[..all.len()], "byte {case}");
    }
}

#[tokio::test]
async fn repair_mends_damage_in_the_middle_of_several_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (source, sender) = open(dir.path(), small()).await;
    for n in 0..200 {
        soon(sender.send(&[&format!("message {n:0100}")])).await.unwrap().unwrap();
    }
    drop((source, sender));
    released(dir.path()).await;
    let paths = segments(dir.path());
    assert!(3 < paths.len());
    let mut bytes = fs::read(&paths[1]).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
    fs::write(&paths[1], bytes).unwrap();
    let (mut refused, _, _) = self::source(dir.path(), small(), RealDisk);
    assert!(matches!(refused.connect(&[]).await, Err(ConnectorError::Storage { .. })));
    let report = inspect::repair(&dir.path().join("buffer")).unwrap();
    assert_eq!((report.damage, report.undelivered_messages), (None, 199));
    let (mut source, _sender) = open(dir.path(), small()).await;
    let mut n = 0;
    while n < 199 {
        let chunk = recv(&mut source).await;
        n += chunk.messages.len();
        source.commit(chunk.end()).await.unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Recv(usize),
    Commit,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..40).prop_map(Step::Send),
        4 => (1_usize..60).prop_map(Step::Recv),
        2 => Just(Step::Commit),
        1 => Just(Step::Reopen),
    ]
}

async fn play(steps: Vec<Step>, sizes: Sizes) {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, mut sender) = open(dir.path(), sizes).await;
    let (mut n_sent, mut n_read, mut n_committed) = (0_u64, 0_u64, 0_u64);
    let mut end = None;
    for step in steps.into_iter().chain([Step::Reopen, Step::Recv(usize::MAX)]) {
        match step {
            Step::Send(n) => {
                let texts: Vec<String> = (0..n as u64).map(|i| format!("m{}", n_sent + i)).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                soon(sender.send(&texts)).await.unwrap().unwrap();
                n_sent += n as u64;
            }
            Step::Recv(n) => {
                let until = n_sent.min(n_read.saturating_add(n as u64));
                while n_read < until {
                    let messages = usize::try_from(until - n_read).unwrap();
                    let chunk = soon(source.recv(Budget { messages, bytes: 500 })).await.unwrap();
                    for (text, offset) in texts(&chunk).iter().zip(&chunk.offsets) {
                        assert_eq!((text, *offset), (&format!("m{n_read}"), n_read));
                        n_read += 1;
                    }
                    end = Some(chunk.end());
                }
            }
            Step::Commit => {
                if let Some(end) = end {
                    source.commit(end).await.unwrap();
                    n_committed = end.offset;
                }
            }
            Step::Reopen => {
                drop((source, sender));
                (source, sender) = open(dir.path(), sizes).await;
                n_read = n_committed;
                end = None;
            }
        }
    }
    assert_eq!(n_read, n_sent);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_message_comes_once_more_until_it_is_committed(
        steps in proptest::collection::vec(step(), 1..40),
        is_direct in any::<bool>(),
    ) {
        let sizes = if is_direct { direct() } else { small() };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(steps, sizes));
    }
}
