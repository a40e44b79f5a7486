//! The rows of tables as streams: in random order, on several partitions, cut into random epochs, with a crash.

use arrow::array::{ArrayRef, StringViewArray, UInt32Array};
use arrow::compute::concat_batches;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::*;
use crate::views::{CHANGE, spec::take_rows};

/// Numbers that a seed decides.
#[derive(Debug)]
pub(super) struct Seeded {
    seed: u64,
    n_taken: u64,
}

impl Seeded {
    pub(super) const fn new(seed: u64) -> Self {
        Self { seed, n_taken: 0 }
    }

    /// A number below `n`, which is not zero.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.n_taken += 1;
        (xxh3_64_with_seed(&self.n_taken.to_le_bytes(), self.seed) % n as u64) as usize
    }

    fn order(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        (1..n).rev().for_each(|idx| order.swap(idx, self.below(idx + 1)));
        order
    }
}

/// What a table has, and what it had.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) name: String,
    pub(super) rows: RecordBatch,
    /// Rows that came and were taken back.
    pub(super) gone: Vec<RecordBatch>,
}

impl Content {
    /// The same rows in another order.
    pub(super) fn shuffled(&self, seeded: &mut Seeded) -> RecordBatch {
        let order = UInt32Array::from(seeded.order(self.rows.num_rows()));
        take_rows(&self.rows, &order).unwrap()
    }

    /// Rows whose values each are one of the table's: as many keys as there are, in new combinations.
    fn mixed(&self, seeded: &mut Seeded) -> RecordBatch {
        let shuffled = self.rows.columns().iter().map(|column| {
            let order = UInt32Array::from(seeded.order(column.len()));
            arrow::compute::take(column, &order, None).unwrap()
        });
        let columns: Vec<ArrayRef> = shuffled.collect();
        if columns.is_empty() {
            return self.rows.clone();
        }
        let mixed = RecordBatch::try_new(self.rows.schema(), columns).unwrap();
        mixed.slice(0, mixed.num_rows().min(20))
    }
}

/// How the rows of tables reach a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// As those of streams: what is there, and nothing else.
    Streams,
    /// As those of views: also rows that come and are taken back.
    Views,
}

/// A partition of a table's rows, in the order in which they come.
#[derive(Debug)]
pub(super) struct Log {
    input: usize,
    partition: u64,
    rows: RecordBatch,
}

pub(super) fn logs(contents: &[Content], feed: Feed, seeded: &mut Seeded) -> Vec<Log> {
    contents.iter().enumerate().flat_map(|(input, content)| logs_of(input, content, feed, seeded)).collect()
}

fn logs_of(input: usize, content: &Content, feed: Feed, seeded: &mut Seeded) -> Vec<Log> {
    let mut parts = vec![content.rows.clone()];
    if feed == Feed::Views {
        parts.push(content.mixed(seeded));
        parts.extend(content.gone.iter().cloned());
    }
    let all = concat_batches(&content.rows.schema(), &parts).unwrap();
    let n_partitions = 1 + seeded.below(3);
    let mut partitions = vec![Vec::new(); n_partitions];
    for row in 0..all.num_rows() {
        let events = &mut partitions[seeded.below(n_partitions)];
        let comes = seeded.below(1 << 20);
        events.push((comes, row as u32, "insert"));
        if row >= content.rows.num_rows() {
            events.push((comes + 1 + seeded.below(1 << 20), row as u32, "delete"));
        }
    }
    let log = |(partition, mut events): (usize, Vec<(usize, u32, &str)>)| {
        events.sort_unstable();
        let indices: UInt32Array = events.iter().map(|(_, row, _)| *row).collect();
        let mut rows = take_rows(&all, &indices).unwrap();
        if feed == Feed::Views {
            let changes: StringViewArray = events.iter().map(|(.., change)| Some(*change)).collect();
            let mut fields = rows.schema().fields().to_vec();
            fields.push(Arc::new(Field::new(CHANGE, DataType::Utf8View, false)));
            let mut columns = rows.columns().to_vec();
            columns.push(Arc::new(changes));
            rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        }
        Log { input, partition: partition as u64, rows }
    };
    partitions.into_iter().enumerate().map(log).collect()
}

/// Cuts what comes after `from` into epochs after `start`.
fn epochs(logs: &[Log], from: &[usize], start: u64, seeded: &mut Seeded) -> Epochs {
    let mut at = from.to_vec();
    let (mut epochs, mut epoch) = (Epochs::new(), start);
    while at.iter().zip(logs).any(|(at, log)| *at < log.rows.num_rows()) {
        epoch += 1 + 40 * seeded.below(20) as u64;
        let batches = epochs.entry(epoch).or_default();
        for (at, log) in at.iter_mut().zip(logs) {
            let n_rows = log.rows.num_rows();
            let end = n_rows.min(*at + seeded.below(3 + n_rows / 6));
            if *at < end {
                batches.push(log.batch(*at, end - *at));
            }
            *at = end;
        }
    }
    // Whole seconds, so that there are cuts in between and behind.
    epochs.entry(epoch + 3 * CUT_EVERY).or_default();
    epochs
}

impl Log {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.num_rows() == 0
    }

    fn batch(&self, first: usize, n_rows: usize) -> Batch {
        let origin = Origin {
            source: harness::source_of(self.input).into(),
            partition: Partition(self.partition),
            ordered: true,
            received_at: 0,
            peer: None,
        };
        let original = BinaryViewArray::from_iter_values((0..n_rows).map(|_| b"{}"));
        let offsets = UInt64Array::from_iter_values(first as u64..(first + n_rows) as u64);
        let rows = self.rows.slice(first, n_rows);
        Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Columns)).unwrap()
    }
}

/// Runs a view over the logs: it crashes at some epoch, goes on from the newest cut before it on another number of
/// workers, and gets a few rows again.
pub(super) fn run(view: &Arc<dyn View>, logs: &[Log], seeded: &mut Seeded) -> Outcome {
    let all = epochs(logs, &vec![0; logs.len()], START, seeded);
    let crash_at = *all.keys().nth(seeded.below(all.len())).unwrap();
    let until: Epochs = all.range(..=crash_at).map(|(epoch, batches)| (*epoch, batches.clone())).collect();
    let workers = 1 + seeded.below(3);
    let first = Run { view, workers, crashes: true, restored: None, read_at: None }.go(&until);
    let n_parts = view.operators().len() * workers;
    let workers = 1 + seeded.below(3);
    let Some(cut) = first.cut_before(crash_at, n_parts).filter(|_| n_parts > 0) else {
        return Run { view, workers, crashes: false, restored: None, read_at: None }.go(&all);
    };
    let mut at = vec![0usize; logs.len()];
    for batch in all.range(..cut).flat_map(|(_, batches)| batches) {
        let is_its = |log: &Log| {
            *batch.origin().source == *harness::source_of(log.input)
                && batch.origin().partition.0 == log.partition
        };
        at[logs.iter().position(is_its).unwrap()] += batch.num_rows();
    }
    at.iter_mut().for_each(|at| *at = at.saturating_sub(3));
    let rest = epochs(logs, &at, cut, seeded);
    let restored = Some((&first, cut));
    let second = Run { view, workers, crashes: false, restored, read_at: None }.go(&rest);
    let mut rows: Vec<_> = first.rows.into_iter().filter(|(epoch, _)| *epoch < cut).collect();
    rows.extend(second.rows);
    Outcome {
        rows,
        stopped: first.stopped.or(second.stopped),
        n_rejects: first.n_rejects.max(second.n_rejects),
        ..Outcome::default()
    }
}
