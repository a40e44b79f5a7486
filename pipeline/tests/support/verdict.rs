//! The comparison of what was sent with what arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::found::Found;
use super::message::{is_malformed, line, seq_of};
use super::oracle::Books;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Acknowledged, and not there.
    Lost { sink: &'static str, seq: u64 },
    /// There more than once.
    Twice { sink: &'static str, seq: u64 },
    /// There, and not as it was sent.
    Altered { sink: &'static str, what: String },
    /// There, and never sent, or sent to be somewhere else.
    Invented { sink: &'static str, seq: u64 },
    /// More half lines than kills can leave.
    Torn { n_lines: usize },
}

/// What was counted, and what is wrong.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) n_sent: u64,
    pub(crate) n_acknowledged: usize,
    pub(crate) delivered: BTreeMap<&'static str, usize>,
    pub(crate) n_rejects: usize,
    pub(crate) n_rejects_repeated: usize,
    pub(crate) faults: BTreeSet<Fault>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sent {}, acknowledged {}, delivered", self.n_sent, self.n_acknowledged)?;
        for (sink, n) in &self.delivered {
            write!(f, " {sink}={n}")?;
        }
        let n_twice = self.faults.iter().filter(|fault| matches!(fault, Fault::Twice { .. })).count();
        let n_lost = self.faults.iter().filter(|fault| matches!(fault, Fault::Lost { .. })).count();
        write!(f, ", duplicates {n_twice}, lost {n_lost}, rejects {}", self.n_rejects)?;
        write!(f, " (and {} repeated)", self.n_rejects_repeated)
    }
}

/// A document without what the pipeline has added to it.
fn without_env(mut document: Value) -> Option<Value> {
    let env = document.as_object_mut()?.remove("env")?;
    (env == "kill").then_some(document)
}

/// Compares. With `n_kills` kills at most as many lines of rejects may be cut short.
pub(crate) fn judge(books: &Books, found: &Found, n_kills: usize) -> Verdict {
    let mut faults = BTreeSet::new();
    let same = |seq: u64, document: Value| {
        let sent: Option<Value> = serde_json::from_str(&line(books.seed, seq)).ok();
        sent.is_some() && without_env(document) == sent
    };
    let search = found.search.iter().map(|text| {
        let seq = seq_of(text);
        let document = serde_json::from_str(text).unwrap_or_default();
        (seq.filter(|seq| same(*seq, document)), text.clone())
    });
    let lake = found.lake.iter().map(|(seq, text)| {
        let is_same = line(books.seed, *seq) == *text && !is_malformed(*seq);
        (is_same.then_some(*seq), text.clone())
    });
    let ledger = found.ledger.iter().map(|body| {
        let seq = body["seq"].as_u64();
        (seq.filter(|seq| same(*seq, body.clone())), body.to_string())
    });
    let rejects = found.rejects.iter().map(|text| {
        let seq = seq_of(text);
        (seq.filter(|seq| line(books.seed, *seq) == *text && is_malformed(*seq)), text.clone())
    });
    let mut sinks: BTreeMap<&'static str, BTreeMap<u64, usize>> = BTreeMap::new();
    let mut enter = |sink: &'static str, rows: &mut dyn Iterator<Item = (Option<u64>, String)>| {
        let counts = sinks.entry(sink).or_default();
        for (seq, what) in rows {
            match seq {
                Some(seq) if books.is_issued(seq) => *counts.entry(seq).or_default() += 1,
                Some(seq) => drop(faults.insert(Fault::Invented { sink, seq })),
                None => drop(faults.insert(Fault::Altered { sink, what })),
            }
        }
    };
    enter("search", &mut { search });
    enter("lake", &mut { lake });
    enter("ledger", &mut { ledger });
    enter("rejects", &mut { rejects });

    let rejects = sinks.remove("rejects").unwrap_or_default();
    for (sink, counts) in &sinks {
        faults
            .extend(counts.iter().filter(|(_, n)| 1 < **n).map(|(seq, _)| Fault::Twice { sink, seq: *seq }));
    }
    let acknowledged = books.acknowledged();
    for seq in acknowledged.iter().copied() {
        if is_malformed(seq) {
            if !rejects.contains_key(&seq) {
                faults.insert(Fault::Lost { sink: "rejects", seq });
            }
            continue;
        }
        for (sink, counts) in &sinks {
            if !counts.contains_key(&seq) {
                faults.insert(Fault::Lost { sink, seq });
            }
        }
    }
    if n_kills < found.n_torn {
        faults.insert(Fault::Torn { n_lines: found.n_torn });
    }
    Verdict {
        n_sent: books.n_issued(),
        n_acknowledged: acknowledged.len(),
        delivered: sinks.iter().map(|(sink, counts)| (*sink, counts.len())).collect(),
        n_rejects: rejects.len(),
        n_rejects_repeated: rejects.values().map(|n| n - 1).sum(),
        faults,
    }
}
