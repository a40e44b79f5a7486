//! Checkpoints on disk: each one writes what changed, and names what it shares with the one before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::thread::JoinHandle;

use arrow::error::ArrowError;
use logdrive_operators::flow::{Changes, SHARDS, TableChange};
use tracing::{debug, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::folder::Folder;
use super::manifest::{
    Blob, Damage, Dropped, FileRef, Manifest, OperatorState, Run, Span, TableState, hex, join,
};
use super::merge::{Layer, Source, merge};
use super::{run, runs};

/// How many checkpoints are kept.
const KEPT: usize = 2;
/// Smaller blobs are in the manifest.
const INLINE_BYTES: usize = 4096;
/// Runs whose files have no more bytes together are merged at once.
const AT_ONCE_BYTES: u64 = 8 << 20;
/// A table with so many runs takes no more until some are merged.
const MAX_RUNS: usize = 64;
/// What names of files with state begin with.
const PREFIX: &str = "state-";

/// What an instance of an operator handed in.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) operator: String,
    pub(super) worker: usize,
    pub(super) changes: Changes,
}

/// A complete cut.
#[derive(Debug, Default)]
pub(super) struct Cut {
    pub(super) cut: u64,
    /// Those of an instance in the order in which it handed them in.
    pub(super) parts: Vec<Part>,
    /// By source and partition.
    pub(super) positions: BTreeMap<String, BTreeMap<u64, u64>>,
}

/// The folder, and what is in it.
pub(super) struct Store {
    folder: Arc<Folder>,
    /// The newest one; its tables may have runs that were merged since.
    current: Manifest,
    /// Those on disk, the oldest first.
    kept: VecDeque<Manifest>,
    workers: usize,
    next_number: u64,
    merging: Option<Merging>,
    /// Larger runs are merged while the pipeline goes on.
    pub(super) at_once_bytes: u64,
}

/// Runs that become one while the pipeline goes on.
struct Merging {
    operator: String,
    table: String,
    numbers: Vec<u64>,
    stem: String,
    thread: JoinHandle<Result<Run, ArrowError>>,
}

/// What was found in a folder.
pub(super) struct Found {
    pub(super) store: Store,
    /// The newest checkpoint that is whole.
    pub(super) restored: Manifest,
    /// The newest cut of all, also of those that are damaged.
    pub(super) newest: u64,
    pub(super) damages: Vec<Damage>,
}

impl Store {
    /// Opens a folder, goes back to the newest checkpoint that is whole, and removes what none needs.
    ///
    /// # Errors
    /// If there are checkpoints and all are damaged: starting empty would forget what was counted.
    pub(super) fn open(folder: &Arc<Folder>, workers: usize) -> io::Result<Found> {
        let names = folder.names()?;
        let cuts = Manifest::cuts(&names);
        if cuts.is_empty() && names.iter().any(|name| name.ends_with(".ckpt")) {
            warn!(
                path = %folder.place().display(),
                "The checkpoints here were written by an older version, which this one cannot read: views and \
                 detectors start empty. Their files can be deleted."
            );
        }
        let (mut damages, mut damaged, mut whole) = (Vec::new(), Vec::new(), None);
        for cut in cuts.iter().rev() {
            let read = Manifest::read(folder, *cut).map_err(|damage| vec![damage]);
            match read.and_then(|manifest| manifest.check(folder).map(|()| manifest)) {
                Ok(manifest) => {
                    whole = Some(manifest);
                    break;
                }
                Err(found) => {
                    for damage in &found {
                        warn!(cut, %damage, "Checkpoint is damaged; falling back to the one before.");
                    }
                    damages.extend(found);
                    damaged.push(*cut);
                }
            }
        }
        if whole.is_none() && !cuts.is_empty() {
            let first = damages.first().map_or_else(String::new, ToString::to_string);
            return Err(io::Error::other(format!("every checkpoint is damaged: {first}")));
        }
        for cut in damaged {
            folder.rename(&Manifest::name(cut), &Manifest::damaged_name(cut))?;
        }
        let restored = whole.unwrap_or_else(|| Manifest::empty(workers));
        let older = cuts.iter().filter(|cut| **cut < restored.cut);
        let mut kept: VecDeque<Manifest> =
            older.filter_map(|cut| Manifest::read(folder, *cut).ok()).collect();
        if restored.cut > 0 {
            kept.push_back(restored.clone());
        }
        let newest =
            cuts.last().copied().into_iter().chain(Manifest::damaged_cuts(&names)).max().unwrap_or(0);
        let numbers = kept.iter().flat_map(|manifest| &manifest.operators);
        let numbers =
            numbers.flat_map(|(_, operator)| operator.tables.values()).flat_map(|table| &table.runs);
        let next_number = numbers.map(|run| run.number + 1).max().unwrap_or(0);
        let current = Manifest { workers, ..restored.clone() };
        let store = Self {
            folder: Arc::clone(folder),
            current,
            kept,
            workers,
            next_number,
            merging: None,
            at_once_bytes: AT_ONCE_BYTES,
        };
        store.sweep()?;
        folder.remove_old_copies()?;
        Ok(Found { store, restored, newest, damages })
    }

    /// Writes a cut. Returns the oldest that is still kept: what the newest could be replaced by.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn write(&mut self, cut: Cut) -> io::Result<u64> {
        self.take_merged()?;
        let Cut { cut, parts, positions } = cut;
        let mut by_operator: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        for part in parts {
            by_operator.entry(part.operator.clone()).or_default().push(part);
        }
        let mut operators = BTreeMap::new();
        for (name, parts) in by_operator {
            let fingerprint = hex(parts.last().map_or(0, |part| part.changes.fingerprint));
            // Of another query nothing is left.
            let before =
                self.current.operators.remove(&name).filter(|state| state.fingerprint == fingerprint);
            let mut state = before.unwrap_or_default();
            state.fingerprint = fingerprint;
            state.state = self.blob(cut, &name, &state.state, &parts)?;
            let mut tables: BTreeMap<&'static str, Vec<(Span, TableChange)>> = BTreeMap::new();
            for part in parts {
                let shards = Span(part.changes.shards.start, part.changes.shards.end);
                for change in part.changes.tables {
                    tables.entry(change.table).or_default().push((shards, change));
                }
            }
            for (table, changes) in tables {
                self.change(cut, &name, &mut state, table, &changes).map_err(io::Error::other)?;
            }
            operators.insert(name, state);
        }
        let parent = self.kept.back().map(|manifest| manifest.cut);
        self.current = Manifest { cut, parent, positions, operators, ..Manifest::empty(self.workers) };
        self.current.write(&self.folder)?;
        self.kept.push_back(self.current.clone());
        // What only an older one needs goes once it is certain that its manifest is gone: at the next cut.
        self.sweep()?;
        while self.kept.len() > KEPT {
            if let Some(oldest) = self.kept.pop_front() {
                self.folder.remove(&Manifest::name(oldest.cut))?;
            }
        }
        self.merge_in_background()?;
        let fallback = self.kept.front().filter(|_| self.kept.len() == KEPT);
        Ok(fallback.map_or(0, |manifest| manifest.cut))
    }

    /// Whether a table has so many runs that it is better to wait.
    pub(super) fn is_behind(&self) -> bool {
        self.tables().any(|(_, _, table)| table.runs.len() > MAX_RUNS)
    }

    /// The files of the newest checkpoint: how many, and their bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        self.current.files().fold((0, 0), |(n, bytes), file| (n + 1, bytes + file.bytes))
    }

    fn tables(&self) -> impl Iterator<Item = (&String, &String, &TableState)> {
        self.current.operators.iter().flat_map(|(operator, state)| {
            state.tables.iter().map(move |(name, table)| (operator, name, table))
        })
    }

    fn blob(&mut self, cut: u64, operator: &str, before: &Blob, parts: &[Part]) -> io::Result<Blob> {
        let newest: BTreeMap<usize, &Vec<u8>> =
            parts.iter().map(|part| (part.worker, &part.changes.state)).collect();
        let joined = join(&newest.into_values().cloned().collect::<Vec<_>>());
        if joined.len() <= INLINE_BYTES {
            return Ok(Blob::inline(&joined));
        }
        let hash = hex(xxh3_64(&joined));
        if let Blob::File(file) = before
            && file.xxh3 == hash
            && file.bytes == joined.len() as u64
        {
            return Ok(Blob::File(file.clone()));
        }
        let (stem, _) = self.stem(cut, operator, "state");
        let mut file = self.folder.create(&format!("{stem}.blob"))?;
        file.write_all(&joined)?;
        let name = file.name().to_owned();
        Ok(Blob::File(FileRef::new(&name, file.finish()?)))
    }

    /// A new file's name without its ending, and its number.
    fn stem(&mut self, cut: u64, operator: &str, table: &str) -> (String, u64) {
        let number = self.next_number;
        self.next_number += 1;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let operator: String = operator.chars().take(80).map(|c| if is_plain(c) { c } else { '_' }).collect();
        let tag = self.folder.tag();
        (format!("{PREFIX}{cut:020}-{tag}{number}-{operator}.{table}"), number)
    }

    /// How many runs of a table, from the first, are being merged.
    fn n_busy(&self, operator: &str, name: &str, table: &TableState) -> usize {
        let merging = self.merging.as_ref();
        let merging = merging.filter(|merging| merging.operator == operator && merging.table == name);
        let last = merging.and_then(|merging| merging.numbers.last());
        let at = last.and_then(|last| table.runs.iter().position(|run| run.number == *last));
        at.map_or(0, |at| at + 1)
    }

    /// Adds a run of what changed in a table; together with runs before it, if they are few and due.
    fn change(
        &mut self,
        cut: u64,
        operator: &str,
        state: &mut OperatorState,
        name: &str,
        changes: &[(Span, TableChange)],
    ) -> Result<(), ArrowError> {
        let Some((_, first)) = changes.first() else { return Ok(()) };
        let keys = first.n_keys;
        let table = state.tables.entry(name.to_owned());
        let table = table.or_insert_with(|| TableState { keys, runs: Vec::new() });
        let (mut layers, mut cleared, mut dropped, mut n_rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (shards, change) in changes {
            let layer = Layer {
                rows: Source::Memory(run::file_rows(change)?),
                cleared: if change.cleared { vec![*shards] } else { Vec::new() },
                dropped: change.dropped.iter().map(|partition| Dropped(*partition, *shards)).collect(),
            };
            cleared.extend(&layer.cleared);
            dropped.extend(&layer.dropped);
            n_rows += match &layer.rows {
                Source::Memory(Some(rows)) => rows.num_rows() as u64,
                _ => 0,
            };
            layers.push(layer);
        }
        let (cleared, dropped) = runs::joined(cleared, dropped);
        let n_busy = self.n_busy(operator, name, table);
        let (stem, number) = self.stem(cut, operator, name);
        table.runs.push(Run { number, rows: n_rows, cleared, dropped, ..Run::default() });
        runs::prune(&mut table.runs, n_busy);
        let last = table.runs.len().saturating_sub(1);
        if table.runs.get(last).is_none_or(|run| run.number != number) {
            // It only took away what is gone now.
            return Ok(());
        }
        let due = runs::due(&table.runs, n_busy);
        let range = due
            .filter(|due| bytes_of(&table.runs[due.clone()]) <= self.at_once_bytes)
            .unwrap_or(last..last + 1);
        let older = table.runs[range.start..last].iter().map(Layer::from);
        // With what runs that are gone now have dropped of older ones.
        let (cleared, dropped) = (table.runs[last].cleared.clone(), table.runs[last].dropped.clone());
        let gone = Layer { rows: Source::Memory(None), cleared, dropped };
        let layers = older.chain([gone]).chain(layers).collect();
        let rows = merge(self.folder.path(), keys, layers, &(0..SHARDS), range.start > 0)?;
        let written = run::write(&self.folder, &stem, number, keys, rows)?;
        replace(&mut table.runs, range, written);
        runs::prune(&mut table.runs, n_busy);
        Ok(())
    }

    /// Begins to merge large runs that are due, unless others are being merged.
    fn merge_in_background(&mut self) -> io::Result<()> {
        if self.merging.is_some() {
            return Ok(());
        }
        let due = self.tables().find_map(|(operator, name, table)| {
            let range = runs::due(&table.runs, 0)?;
            let runs = table.runs[range.clone()].to_vec();
            Some((operator.clone(), name.clone(), table.keys, range.start > 0, runs))
        });
        let Some((operator, table, keys, keeps_removed, runs)) = due else { return Ok(()) };
        let (stem, number) = self.stem(self.current.cut, &operator, &table);
        debug!(operator, table, runs = runs.len(), bytes = bytes_of(&runs), "Merging runs of a checkpoint.");
        let (folder, out) = (Arc::clone(&self.folder), stem.clone());
        let numbers = runs.iter().map(|run| run.number).collect();
        let work = move || {
            let layers = runs.iter().map(Layer::from).collect();
            let rows = merge(folder.path(), keys, layers, &(0..SHARDS), keeps_removed)?;
            run::write(&folder, &out, number, keys, rows)
        };
        let thread = std::thread::Builder::new().name("checkpoint-merge".into()).spawn(work)?;
        self.merging = Some(Merging { operator, table, numbers, stem, thread });
        Ok(())
    }

    /// Puts a run that was merged in the place of those that it was made of.
    fn take_merged(&mut self) -> io::Result<()> {
        let Some(merging) = self.merging.take_if(|merging| merging.thread.is_finished()) else {
            return Ok(());
        };
        let merged = merging.thread.join().map_err(|_| io::Error::other("merging runs failed inside"))?;
        let merged = merged.map_err(io::Error::other)?;
        let operator = self.current.operators.get_mut(&merging.operator);
        let Some(table) = operator.and_then(|operator| operator.tables.get_mut(&merging.table)) else {
            return Ok(());
        };
        let at = table.runs.iter().position(|run| Some(&run.number) == merging.numbers.first());
        let range = at.map(|at| at..at + merging.numbers.len());
        let are_those = |runs: &[Run]| runs.iter().map(|run| run.number).eq(merging.numbers.iter().copied());
        if let Some(range) = range.filter(|range| table.runs.get(range.clone()).is_some_and(are_those)) {
            replace(&mut table.runs, range, merged);
            runs::prune(&mut table.runs, 0);
        }
        Ok(())
    }

    /// Waits for runs that are being merged.
    #[cfg(test)]
    pub(super) fn finish_merging(&self) {
        while self.merging.as_ref().is_some_and(|merging| !merging.thread.is_finished()) {
            std::thread::yield_now();
        }
    }

    /// Removes the files that no checkpoint needs.
    fn sweep(&self) -> io::Result<()> {
        let of_kept = self.kept.iter().flat_map(Manifest::files);
        let needed: BTreeSet<&str> =
            of_kept.chain(self.current.files()).map(|file| file.name.as_str()).collect();
        let oldest = self.kept.front().map_or(0, |manifest| manifest.cut);
        for name in self.folder.names()? {
            let is_merging = self.merging.as_ref().is_some_and(|merging| name.starts_with(&merging.stem));
            let is_state = name.starts_with(PREFIX) && !needed.contains(name.as_str()) && !is_merging;
            let one = std::slice::from_ref(&name);
            let of = Manifest::cuts(one).into_iter().chain(Manifest::damaged_cuts(one)).next();
            if is_state || name.ends_with(".json.tmp") || of.is_some_and(|cut| cut < oldest) {
                self.folder.remove(&name)?;
            }
        }
        Ok(())
    }
}

fn bytes_of(runs: &[Run]) -> u64 {
    runs.iter().filter_map(|run| run.file.as_ref()).map(|file| file.bytes).sum()
}

/// Puts a run in the place of those that it was made of.
fn replace(table: &mut Vec<Run>, range: std::ops::Range<usize>, mut merged: Run) {
    if range.start > 0 {
        let old = &table[range.clone()];
        let cleared = old.iter().flat_map(|run| &run.cleared).copied().collect();
        let dropped = old.iter().flat_map(|run| &run.dropped).copied().collect();
        (merged.cleared, merged.dropped) = runs::joined(cleared, dropped);
    }
    table.splice(range, [merged]);
}
