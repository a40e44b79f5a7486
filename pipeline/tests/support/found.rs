//! What arrived, read where the sinks have put it.

use std::path::Path;

use arrow::array::{Array as _, AsArray as _};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use logdrive_queries::{Options, query};
use serde_json::Value;

use super::message::seq_of;
use super::process::command;

/// What every sink holds, in no order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Documents of the search server.
    pub(crate) search: Vec<String>,
    /// Rows of the lake: the number in the column, and the message as it was received.
    pub(crate) lake: Vec<(u64, String)>,
    /// Bodies of the audit log's entries.
    pub(crate) ledger: Vec<Value>,
    /// The original messages of rejects.
    pub(crate) rejects: Vec<String>,
    /// Lines of the file of rejects that a kill cut short.
    pub(crate) n_torn: usize,
}

async fn rows(sql: &str) -> Vec<(u64, String)> {
    let answer = query(sql, &Options::default()).await.unwrap();
    let mut rows = Vec::new();
    for batch in answer.batches {
        let seqs = cast(batch.column(0), &DataType::Int64).unwrap();
        let texts = cast(batch.column(1), &DataType::Utf8).unwrap();
        let (seqs, texts) = (seqs.as_primitive::<Int64Type>(), texts.as_string::<i32>());
        assert_eq!((seqs.null_count(), texts.null_count()), (0, 0));
        rows.extend((0..seqs.len()).map(|n| (seqs.value(n) as u64, texts.value(n).to_owned())));
    }
    rows
}

/// Every row of the lake.
pub(crate) async fn lake(dir: &Path) -> Vec<(u64, String)> {
    rows(&format!("SELECT seq, _original FROM '{}'", dir.display())).await
}

/// The rows of some messages in the lake, while it is written.
pub(crate) async fn in_lake(dir: &Path, seqs: &[u64]) -> usize {
    let list: Vec<String> = seqs.iter().map(ToString::to_string).collect();
    let (dir, list) = (dir.display(), list.join(", "));
    rows(&format!("SELECT seq, _original FROM '{dir}' WHERE seq IN ({list})")).await.len()
}

/// The bodies of the audit log's entries. The log must pass its own verification.
pub(crate) fn ledger(dir: &Path) -> Vec<Value> {
    let dir = dir.to_str().unwrap();
    let verified = command(&["audit", "verify", dir]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let exported = command(&["audit", "export", dir]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let entries =
        serde_json::Deserializer::from_slice(&exported.stdout).into_iter::<Value>().map(Result::unwrap);
    entries.filter(|entry| entry["type"] == "event").map(|mut entry| entry["body"].take()).collect()
}

/// Whether the audit log's files hold some messages, while they are written.
pub(crate) fn in_ledger(dir: &Path, seqs: &[u64]) -> bool {
    // Files that are being replaced may be gone by the time they are read.
    let files = std::fs::read_dir(dir).unwrap().filter_map(|entry| std::fs::read(entry.ok()?.path()).ok());
    let text: String = files.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
    seqs.iter().all(|seq| text.contains(&format!("\"seq\":{seq},")))
}

/// The original messages in the file of rejects, and how many lines were cut short. That file is at-least-once: a
/// kill may leave half a line, which is then written again.
pub(crate) fn rejects(path: &Path) -> (Vec<String>, usize) {
    let text = std::fs::read(path).unwrap();
    let mut n_torn = 0;
    let mut originals = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let original = serde_json::from_slice::<Value>(line).ok();
        match original.as_ref().and_then(|reject| reject["original"].as_str()) {
            Some(original) if seq_of(original).is_some() => originals.push(original.to_owned()),
            _ => n_torn += 1,
        }
    }
    (originals, n_torn)
}
