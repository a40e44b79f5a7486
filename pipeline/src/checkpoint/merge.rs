//! Many runs as one: of each key the newest row, unless a later run removed, dropped or cleared it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::{Int64Type, UInt16Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows};

use super::manifest::{Dropped, FileRef, Run, Span};
use super::run::{self, BATCH_ROWS, Batches};

/// A run that is merged.
pub(super) struct Layer {
    pub(super) rows: Source,
    pub(super) cleared: Vec<Span>,
    pub(super) dropped: Vec<Dropped>,
}

/// Where rows are, in the form of files.
pub(super) enum Source {
    File(FileRef),
    Memory(Option<RecordBatch>),
}

impl From<&Run> for Layer {
    fn from(run: &Run) -> Self {
        let rows = run.file.clone().map_or(Source::Memory(None), Source::File);
        Self { rows, cleared: run.cleared.clone(), dropped: run.dropped.clone() }
    }
}

/// What later runs made of the rows of a run.
#[derive(Debug, Default)]
struct Fate {
    cleared: Vec<Span>,
    dropped: HashMap<i64, Vec<Span>>,
}

impl Fate {
    /// By run.
    fn of(layers: &[Layer]) -> Vec<Self> {
        let of = |idx: usize| {
            let mut fate = Self::default();
            for later in &layers[idx + 1..] {
                fate.cleared.extend(&later.cleared);
                for Dropped(partition, span) in &later.dropped {
                    fate.dropped.entry(*partition).or_default().push(*span);
                }
            }
            fate
        };
        (0..layers.len()).map(of).collect()
    }

    fn spares_all(&self) -> bool {
        self.cleared.is_empty() && self.dropped.is_empty()
    }

    fn spares(&self, shard: u16, partition: i64) -> bool {
        let is_in = |spans: &[Span]| spans.iter().any(|span| span.contains(shard));
        !is_in(&self.cleared) && !self.dropped.get(&partition).is_some_and(|spans| is_in(spans))
    }
}

/// Merges layers, the oldest first. Rows that remove their keys stay only if `keeps_removed`: there are older runs.
pub(super) fn merge(
    folder: &Path,
    n_keys: usize,
    layers: Vec<Layer>,
    shards: &Range<u16>,
    keeps_removed: bool,
) -> Result<Batches, ArrowError> {
    let fates = Fate::of(&layers);
    let open = |layer: Layer| -> Result<Batches, ArrowError> {
        match layer.rows {
            Source::File(file) => run::read(folder, &file, shards.clone()),
            Source::Memory(rows) => Ok(Box::new(rows.into_iter().map(Ok))),
        }
    };
    let inputs = layers.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
    if n_keys == 0 {
        let spared = |(rows, fate): (Batches, Fate)| rows.map(move |rows| spared(rows?, &fate));
        return Ok(Box::new(inputs.into_iter().zip(fates).flat_map(spared)));
    }
    let mut merged = Keyed { n_keys, keeps_removed, converter: None, cursors: Vec::new(), seen: Vec::new() };
    for (batches, fate) in inputs.into_iter().zip(fates) {
        merged.cursors.push(Cursor { batches, fate, batch: None, row: 0 });
    }
    for idx in 0..merged.cursors.len() {
        merged.load(idx)?;
    }
    Ok(Box::new(std::iter::from_fn(move || merged.next_batch().transpose())))
}

fn spared(rows: RecordBatch, fate: &Fate) -> Result<RecordBatch, ArrowError> {
    if fate.spares_all() {
        return Ok(rows);
    }
    let shards = rows.column(0).as_primitive::<UInt16Type>().values();
    let partitions = rows.column(1).as_primitive::<Int64Type>().values();
    let places = shards.iter().zip(partitions);
    let mask: BooleanArray = places.map(|(shard, at)| Some(fate.spares(*shard, *at))).collect();
    filter_record_batch(&rows, &mask)
}

/// Where the merge is in a run.
struct Cursor {
    batches: Batches,
    fate: Fate,
    /// The batch's place in [`Keyed::seen`], and its keys; nothing at the end.
    batch: Option<(usize, Rows)>,
    row: usize,
}

struct Keyed {
    n_keys: usize,
    keeps_removed: bool,
    converter: Option<RowConverter>,
    /// By run, the oldest first.
    cursors: Vec<Cursor>,
    /// The batches that rows of the next batch are in.
    seen: Vec<RecordBatch>,
}

impl Keyed {
    /// Goes to the next batch of a run that has rows.
    fn load(&mut self, idx: usize) -> Result<(), ArrowError> {
        let cursor = &mut self.cursors[idx];
        cursor.batch = None;
        for rows in cursor.batches.by_ref() {
            let rows = rows?;
            if rows.num_rows() == 0 {
                continue;
            }
            if self.converter.is_none() {
                self.converter = Some(run::key_converter(&rows.schema(), self.n_keys)?);
            }
            if let Some(converter) = &self.converter {
                let keys = converter.convert_columns(&rows.columns()[..self.n_keys])?;
                cursor.batch = Some((self.seen.len(), keys));
                cursor.row = 0;
                self.seen.push(rows);
            }
            break;
        }
        Ok(())
    }

    /// The newest run among those with the least key, and the others with that key.
    fn least(&self, equal: &mut Vec<usize>) -> Option<usize> {
        equal.clear();
        let mut least: Option<usize> = None;
        for (idx, cursor) in self.cursors.iter().enumerate() {
            let Some((_, keys)) = &cursor.batch else { continue };
            let key = keys.row(cursor.row);
            let order = least.and_then(|least| {
                let other = &self.cursors[least];
                other.batch.as_ref().map(|(_, keys)| key.cmp(&keys.row(other.row)))
            });
            match order {
                Some(std::cmp::Ordering::Greater) => {}
                Some(std::cmp::Ordering::Equal) => {
                    equal.extend(least);
                    least = Some(idx);
                }
                Some(std::cmp::Ordering::Less) | None => {
                    equal.clear();
                    least = Some(idx);
                }
            }
        }
        least
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let (mut picked, mut equal) = (Vec::with_capacity(BATCH_ROWS), Vec::new());
        loop {
            self.forget();
            let most = 2 * self.cursors.len() + 8;
            while picked.len() < BATCH_ROWS && self.seen.len() < most {
                let Some(newest) = self.least(&mut equal) else { break };
                picked.extend(self.pick(newest));
                equal.push(newest);
                for idx in equal.drain(..) {
                    self.advance(idx)?;
                }
            }
            if !picked.is_empty() {
                let batches: Vec<&RecordBatch> = self.seen.iter().collect();
                return interleave_record_batch(&batches, &picked).map(Some);
            }
            if self.cursors.iter().all(|cursor| cursor.batch.is_none()) {
                return Ok(None);
            }
        }
    }

    /// Only the batches that cursors are in are still needed.
    fn forget(&mut self) {
        let mut kept = Vec::new();
        for cursor in &mut self.cursors {
            if let Some((at, _)) = &mut cursor.batch {
                kept.push(self.seen[*at].clone());
                *at = kept.len() - 1;
            }
        }
        self.seen = kept;
    }

    /// Where the row is that a cursor is at, if it counts.
    fn pick(&self, idx: usize) -> Option<(usize, usize)> {
        let Cursor { batch, row, fate, .. } = &self.cursors[idx];
        let (at, _) = batch.as_ref()?;
        let rows = &self.seen[*at];
        let shard = rows.column(0).as_primitive::<UInt16Type>().value(*row);
        let partition = rows.column(1).as_primitive::<Int64Type>().value(*row);
        let is_removed = run::removed(rows, self.n_keys).is_some_and(|removed| removed.value(*row));
        ((!is_removed || self.keeps_removed) && fate.spares(shard, partition)).then_some((*at, *row))
    }

    fn advance(&mut self, idx: usize) -> Result<(), ArrowError> {
        let cursor = &mut self.cursors[idx];
        cursor.row += 1;
        let is_over = cursor.batch.as_ref().is_some_and(|(_, keys)| cursor.row == keys.num_rows());
        if is_over { self.load(idx) } else { Ok(()) }
    }
}
