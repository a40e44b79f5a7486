//! The `audit` sink: each row becomes an entry of a log that shows whether it was changed.
//!
//! An entry's `body` is the row's document in canonical form: members sorted, no spaces, numbers digit for digit as
//! they were written. A row whose document has no such form (it is no JSON, or has a lone surrogate) is a reject.
//!
//! Exactly once: with each commit the log keeps, for every source and partition, the highest offset that it holds; a
//! row at or below it is a duplicate. What a detector derives has no such order: its identities are compared with
//! those of the last 100,000 entries, so a finding that is repeated later than that is written again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logdrive_audit::{AuditError, Log};
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Batch, Epoch, Partition, Reject, Rejects, reject};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::context::ConnectorContext;
use crate::document::Documents;
use crate::error::ConnectorError;
use crate::sink::{FlushPolicy, Guarantee, Reads, Sink, SinkConfig};

/// How many identities without order are remembered.
const IDS_MAX: usize = 100_000;

/// Writes a hash-chained, Merkle-tree audit log, which `logdrive audit verify` checks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The folder of the log. No other process may write it.
    path: PathBuf,
    /// The name of the log, in every entry and checkpoint; it cannot change later. By default `logdrive/` and the
    /// name of the sink.
    #[serde(default)]
    origin: Option<String>,
}

impl Component for Audit {
    const NAME: &'static str = "audit";
    const EXAMPLE: &'static str = "{ type: audit, from: [card_testing], path: data/audit }";
}

impl SinkConfig for Audit {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn reads(&self) -> Reads {
        Reads::Document(Vec::new())
    }

    fn build(self, cx: &ConnectorContext) -> Result<Box<dyn Sink>, ConfigError> {
        Ok(Box::new(AuditSink {
            origin: self.origin.unwrap_or_else(|| format!("logdrive/{}", cx.name)),
            path: self.path,
            cx: cx.clone(),
            log: None,
            highest: HashMap::new(),
            ids: Ids::new(IDS_MAX),
            document: Vec::new(),
            rows: 0,
            bytes: 0,
        }))
    }
}

/// A source and a partition of it.
type Sequence = (Arc<str>, Partition);

struct AuditSink {
    path: PathBuf,
    origin: String,
    cx: ConnectorContext,
    log: Option<Log>,
    /// The highest offset of each sequence so far.
    highest: HashMap<Sequence, u64>,
    ids: Ids,
    document: Vec<u8>,
    rows: u64,
    bytes: u64,
}

/// The last identities that were written.
struct Ids {
    max: usize,
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl Ids {
    fn new(max: usize) -> Self {
        Self { max, known: HashSet::new(), order: VecDeque::new() }
    }

    fn contains(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    fn insert(&mut self, id: String) {
        if self.known.insert(id.clone()) {
            self.order.push_back(id);
        }
        while self.max < self.order.len()
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn mark_name((source, partition): &Sequence) -> String {
    format!("{source}/{partition}")
}

fn as_connector_error(path: &std::path::Path, error: AuditError) -> ConnectorError {
    match error {
        AuditError::Storage { path, source } => ConnectorError::storage(path, source),
        error => ConnectorError::refused(path.display().to_string(), error.to_string()),
    }
}

impl AuditSink {
    fn broken(&self, error: impl Into<crate::error::BoxError>) -> ConnectorError {
        ConnectorError::storage(&self.path, std::io::Error::other(error))
    }

    /// What came of an entry; the reason if it can never be one.
    fn refusal(result: Result<(), AuditError>) -> Result<Option<String>, AuditError> {
        match result {
            Ok(()) => Ok(None),
            Err(AuditError::Body(error)) => Ok(Some(format!("audit_body: {error}"))),
            Err(AuditError::Large(bytes)) => Ok(Some(format!("audit_size: {bytes} bytes are too large"))),
            Err(error) => Err(error),
        }
    }

    fn write_rows(&mut self, log: &mut Log, batch: &Batch) -> Result<Rejects, AuditError> {
        let origin = batch.origin();
        let kind = if batch.schema().column_with_name("detector").is_some() { "finding" } else { "event" };
        let sequence = (Arc::clone(&origin.source), origin.partition);
        // Marks move at a flush, which ends an epoch: what comes behind it at or below them was written before.
        let written = if origin.ordered { log.marks().get(&mark_name(&sequence)).copied() } else { None };
        let documents = Documents::new(batch);
        let (mut rejects, mut duplicates, mut highest) = (Vec::new(), 0, None);
        for idx in 0..batch.num_rows() {
            let offset = batch.offsets().value(idx);
            let id = batch.id(idx);
            if !origin.ordered && self.ids.contains(&id) {
                duplicates += 1;
                continue;
            }
            self.document.clear();
            documents.write(idx, &mut self.document);
            let was_written = written.is_some_and(|written| offset <= written);
            let result = match was_written {
                true => Log::check(kind, &id, &self.document),
                false => log.append(kind, &id, &self.document).map(drop),
            };
            if let Some(reason) = Self::refusal(result)? {
                rejects.push(Reject { idx, reason });
            } else if was_written {
                duplicates += 1;
            } else {
                self.rows += 1;
                self.bytes += self.document.len() as u64;
                if !origin.ordered {
                    self.ids.insert(id);
                }
            }
            highest = highest.max(Some(offset));
        }
        if let Some(highest) = highest.filter(|_| origin.ordered) {
            let mark = self.highest.entry(sequence).or_insert(highest);
            *mark = highest.max(*mark);
        }
        let counter = self.cx.metrics.sink_duplicates.with_label_values(&[&self.cx.name]);
        counter.inc_by(duplicates);
        Ok(rejects)
    }
}

#[async_trait]
impl Sink for AuditSink {
    async fn connect(&mut self) -> Result<(), ConnectorError> {
        // An open log is closed first: it is locked, and its uncommitted rows will be written again.
        self.log = None;
        let (path, origin) = (self.path.clone(), self.origin.clone());
        let opened = spawn_blocking(move || {
            let log = Log::open(&path, &origin)?;
            let recent = log.recent(IDS_MAX as u64)?;
            Ok((log, recent))
        });
        let opened = opened.await.map_err(|e| self.broken(e))?;
        let (log, recent) = opened.map_err(|e| as_connector_error(&self.path, e))?;
        if 0 < log.cut_bytes() {
            let path = self.path.display();
            warn!(%path, bytes = log.cut_bytes(), "Cut off entries that were not committed, as a crash leaves them.");
        }
        self.ids = Ids::new(IDS_MAX);
        for entry in recent {
            self.ids.insert(entry.id);
        }
        self.highest.clear();
        (self.rows, self.bytes) = (0, 0);
        self.log = Some(log);
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<Option<Batch>, ConnectorError> {
        let Some(mut log) = self.log.take() else { return Err(self.broken("it is not open")) };
        let rejects = self.write_rows(&mut log, batch).map_err(|e| as_connector_error(&self.path, e))?;
        self.log = Some(log);
        Ok(reject::of_batch(batch, &rejects))
    }

    async fn flush(&mut self, _upto: Epoch) -> Result<Option<Batch>, ConnectorError> {
        let Some(mut log) = self.log.take() else { return Err(self.broken("it is not open")) };
        for (sequence, offset) in self.highest.drain() {
            let name = mark_name(&sequence);
            let offset = log.marks().get(&name).map_or(offset, |mark| offset.max(*mark));
            log.set_mark(&name, offset);
        }
        let committed = spawn_blocking(move || log.commit().map(|()| log));
        let committed = committed.await.map_err(|e| self.broken(e))?;
        self.log = Some(committed.map_err(|e| as_connector_error(&self.path, e))?);
        let labels = [&*self.cx.name];
        self.cx.metrics.sink_rows.with_label_values(&labels).inc_by(std::mem::take(&mut self.rows));
        self.cx.metrics.sink_bytes.with_label_values(&labels).inc_by(std::mem::take(&mut self.bytes));
        Ok(None)
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes_max: 1 << 20, age_max: Duration::from_millis(200) }
    }

    async fn close(&mut self) -> Result<(), ConnectorError> {
        self.log = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use logdrive_audit::{export, verify};
    use logdrive_schemas::{Layout, Origin};
    use serde_json::Value;
    use tokio_util::sync::CancellationToken;

    use arrow::array::{BinaryViewArray, RecordBatch, RecordBatchOptions, StringViewArray, UInt64Array};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::metrics::Metrics;

    fn sink(dir: &Path) -> Box<dyn Sink> {
        let cx = ConnectorContext {
            name: "ledger".into(),
            state_dir: dir.join("state"),
            metrics: Arc::new(Metrics::new()),
            shutdown: CancellationToken::new(),
        };
        Audit { path: dir.join("audit"), origin: None }.build(&cx).unwrap()
    }

    fn batch(ordered: bool, partition: u64, offsets: &[u64], text: impl Fn(u64) -> String) -> Batch {
        let original: BinaryViewArray = offsets.iter().map(|o| Some(text(*o).into_bytes())).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(offsets.len()));
        let rows = if ordered {
            RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)
        } else {
            let names: StringViewArray = offsets.iter().map(|_| Some("velocity")).collect();
            let schema = Schema::new(vec![Field::new("detector", DataType::Utf8View, false)]);
            RecordBatch::try_new(Arc::new(schema), vec![Arc::new(names)])
        };
        let origin = Origin {
            source: if ordered { "shop" } else { "card_testing" }.into(),
            partition: Partition(partition),
            ordered,
            received_at: 0,
            peer: None,
        };
        let offsets = UInt64Array::from(offsets.to_vec());
        let layout = Arc::new(Layout::Original(vec![]));
        Batch::new(rows.unwrap(), original, offsets, Arc::new(origin), layout).unwrap()
    }

    fn json(n: u64) -> String {
        format!("{{\"b\": {n}.50, \"a\": \"x\"}}")
    }

    fn entries(dir: &Path) -> Vec<Value> {
        let mut out = Vec::new();
        export(&dir.join("audit"), 0..u64::MAX, &mut out).unwrap();
        serde_json::Deserializer::from_slice(&out).into_iter().map(Result::unwrap).collect()
    }

    fn ids(dir: &Path) -> Vec<String> {
        entries(dir).iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn rows_become_entries_and_bad_ones_rejects() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(dir.path());
        sink.connect().await.unwrap();
        let bad = batch(true, 7, &[1, 2, 3], |n| if n == 2 { "{\"a\":".into() } else { json(n) });
        let rejected = sink.write(&bad).await.unwrap().unwrap();
        assert_eq!((rejected.num_rows(), rejected.offsets().value(0)), (1, 2));
        assert!(sink.write(&batch(false, 9, &[77], json)).await.unwrap().is_none());
        sink.flush(Epoch(1)).await.unwrap();
        let entries = entries(dir.path());
        assert_eq!(entries.len(), 3);
        // Again: what is there is known, what was refused is refused, since its reject may not have arrived.
        assert_eq!(sink.write(&bad).await.unwrap().unwrap().offsets().values(), &[2]);
        sink.flush(Epoch(1)).await.unwrap();
        assert_eq!(entries[0]["id"], bad.id(0));
        let kinds: Vec<_> = entries.iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["event", "event", "finding"]);
        assert_eq!(entries[0]["log"], "logdrive/ledger");
        let mut text = Vec::new();
        export(&dir.path().join("audit"), 0..1, &mut text).unwrap();
        assert!(text.starts_with(br#"{"body":{"a":"x","b":1.50},"#), "{}", String::from_utf8_lossy(&text));
        assert_eq!(verify(&dir.path().join("audit")).unwrap().size, 3);
    }

    /// Writes partition 1 from `from` on and partition 2 all at once, in batches of `cut` rows, flushing every
    /// `flush` batches, until `crash` batches are written.
    async fn run(dir: &Path, from: u64, (cut, flush, crash): (usize, usize, usize)) {
        let mut sink = sink(dir);
        sink.connect().await.unwrap();
        let offsets: Vec<u64> = (from..60).collect();
        for (n, offsets) in offsets.chunks(cut).enumerate() {
            if n == crash {
                return;
            }
            let other: Vec<u64> = offsets.iter().map(|o| o * 3).collect();
            // Two streams of one source bring the same partition, one after the other.
            let (first, second) = offsets.split_at(offsets.len() / 2);
            for part in [second, first] {
                if !part.is_empty() {
                    sink.write(&batch(true, 1, part, json)).await.unwrap();
                }
            }
            sink.write(&batch(true, 2, &other, json)).await.unwrap();
            sink.write(&batch(false, 5, &other, json)).await.unwrap();
            if n % flush == flush - 1 {
                sink.flush(Epoch(n as u64)).await.unwrap();
            }
        }
        sink.flush(Epoch(100)).await.unwrap();
        sink.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_replay_that_is_cut_otherwise_repeats_nothing() {
        for crashes in [
            vec![(7, 1, 3), (5, 2, 4), (11, 1, 2)],
            vec![(1, 3, 20), (60, 1, 0), (2, 2, 7)],
            vec![(60, 1, 1), (60, 1, 1)],
        ] {
            let dir = tempfile::tempdir().unwrap();
            for crash in crashes {
                run(dir.path(), 0, crash).await;
            }
            run(dir.path(), 0, (13, 1, usize::MAX)).await;
            let ids = ids(dir.path());
            let distinct: HashSet<&String> = ids.iter().collect();
            assert_eq!((ids.len(), distinct.len()), (180, 180));
            assert_eq!(verify(&dir.path().join("audit")).unwrap().size, 180);
        }
    }

    #[tokio::test]
    async fn after_an_error_the_same_sink_writes_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(dir.path());
        sink.connect().await.unwrap();
        sink.write(&batch(true, 1, &[1, 2], json)).await.unwrap();
        sink.flush(Epoch(1)).await.unwrap();
        sink.write(&batch(true, 1, &[3], json)).await.unwrap();
        sink.write(&batch(false, 1, &[3], json)).await.unwrap();
        // The runtime connects anew and writes what it had not flushed.
        sink.connect().await.unwrap();
        sink.write(&batch(false, 1, &[3], json)).await.unwrap();
        sink.write(&batch(true, 1, &[2, 3, 4], json)).await.unwrap();
        sink.flush(Epoch(2)).await.unwrap();
        assert_eq!(ids(dir.path()).len(), 5);
    }

    #[tokio::test]
    async fn a_log_that_was_changed_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 0, (13, 1, usize::MAX)).await;
        let segment = dir.path().join("audit").join(format!("{:020}.log", 0));
        let mut bytes = std::fs::read(&segment).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        let error = sink(dir.path()).connect().await.unwrap_err();
        let ConnectorError::Refused { reason, .. } = error else { panic!("{error}") };
        assert!(reason.contains("logdrive audit verify"), "{reason}");
    }

    #[test]
    fn old_identities_are_forgotten() {
        let mut ids = Ids::new(2);
        for id in ["a", "b", "b", "c"] {
            ids.insert(id.into());
        }
        assert!(!ids.contains("a") && ids.contains("b") && ids.contains("c"));
    }
}
