//! Checkpoints: the state of detectors and views, cut at an epoch, on disk together or not at all.
//!
//! Operators hand in what changed at every cut. When all instances of all operators have, it is written, and then a
//! manifest that names all that belongs to the checkpoint. Sources commit positions of epochs before a cut only when
//! a later one is on disk, too: two are kept, and if the newest is damaged the other one serves, and nothing that it
//! lacks was acknowledged away. What is on disk and why is in `docs/checkpoints.md`.

mod folder;
pub mod inspect;
mod manifest;
mod merge;
mod remote;
mod run;
mod runs;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use logdrive_connectors::{ConnectorError, Metrics};
use logdrive_operators::Checkpoint;
use logdrive_operators::flow::{Changes, SHARDS, fingerprint_of};
use logdrive_schemas::{Epoch, Position};
use prometheus::IntCounter;
use tokio::sync::mpsc;
use tracing::info;

use self::folder::Folder;
pub use self::manifest::{Blob, Damage, Dropped, FileRef, Manifest, OperatorState, Run, Span, TableState};
use self::merge::{Layer, merge};
use self::store::{Cut, Found, Part, Store};
pub use self::writer::CheckpointWriter;

/// Where checkpoints lie.
#[derive(Clone, Debug)]
pub enum Place {
    /// A local folder.
    Folder(PathBuf),
    /// An object store.
    Store {
        /// `s3://bucket/prefix`.
        url: String,
        /// As those of the Parquet sink.
        options: BTreeMap<String, String>,
        /// A local folder for what is read often; it may be empty, or go.
        copies: PathBuf,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Store { url, .. } => f.write_str(url),
        }
    }
}

/// Between two cuts, in the unit of epochs: one second.
const CUT_EVERY: u64 = 1_000_000 / Epoch::UNIT_US as u64;
/// How much may wait to be written before cuts are skipped.
const WAITING_MAX_BYTES: usize = 64 << 20;

/// Gathers state and gives back what was restored.
#[derive(Debug)]
pub struct Checkpoints {
    folder: Arc<Folder>,
    restored: Manifest,
    newest: u64,
    n_parts: usize,
    skipped: IntCounter,
    gathering: Mutex<Gathering>,
    pressure: Arc<Pressure>,
    complete: mpsc::UnboundedSender<Cut>,
}

/// How far the writer is.
#[derive(Debug, Default)]
struct Pressure {
    /// The newest cut that is on disk.
    written: AtomicU64,
    /// Of complete cuts that are not on disk.
    n_bytes: AtomicUsize,
    is_behind: AtomicBool,
}

#[derive(Debug, Default)]
struct Gathering {
    parts: BTreeMap<u64, Vec<Part>>,
    /// Whether state was asked for at a cut, so that all instances get the same answer; and how many have asked.
    wanted: BTreeMap<u64, (bool, usize)>,
    /// Behind the last message of each partition, by the first cut behind its epoch.
    sent: BTreeMap<u64, Vec<(Arc<str>, Position)>>,
    positions: BTreeMap<String, BTreeMap<u64, u64>>,
}

impl Checkpoints {
    /// Opens the place and reads the newest checkpoint that is whole. `n_operators` hand in state on each of `workers`.
    ///
    /// # Errors
    /// If there are checkpoints and none can be read: starting empty would forget what was counted.
    pub fn open(
        place: &Place,
        n_operators: usize,
        workers: usize,
        metrics: &Arc<Metrics>,
    ) -> Result<(Arc<Self>, CheckpointWriter), ConnectorError> {
        let failed = |error| ConnectorError::storage(place.to_string(), error);
        let folder = Folder::open(place).map_err(failed)?;
        folder.take_over().map_err(failed)?;
        folder.be_patient(Some(&metrics.checkpoint_store_failures));
        let found = Store::open(&folder, workers).map_err(failed)?;
        let Found { store, restored, newest, damages } = found;
        metrics.checkpoint_damaged.inc_by(damages.len() as u64);
        if restored.cut > 0 {
            let (cut, workers) = (restored.cut, restored.workers);
            info!(cut, workers, operators = restored.operators.len(), "Checkpoint restored.");
        }
        let (complete, receiver) = mpsc::unbounded_channel();
        let pressure = Arc::<Pressure>::default();
        pressure.written.store(restored.cut, Ordering::Release);
        let gathering = Gathering { positions: restored.positions.clone(), ..Gathering::default() };
        let this = Self {
            folder: Arc::clone(&folder),
            restored,
            newest,
            n_parts: n_operators * workers,
            skipped: metrics.checkpoint_skipped.clone(),
            gathering: Mutex::new(gathering),
            pressure: Arc::clone(&pressure),
            complete,
        };
        let writer = CheckpointWriter::new(store, folder, receiver, pressure, Arc::clone(metrics));
        Ok((Arc::new(this), writer))
    }

    /// The newest epoch that an earlier process has cut at, 0 if there was none. New epochs are behind it.
    #[must_use]
    pub fn newest_cut(&self) -> u64 {
        self.newest
    }

    /// Where a source goes on, by the checkpoint that was restored.
    #[must_use]
    pub fn restored_positions(&self, source: &str) -> BTreeMap<u64, u64> {
        self.restored.positions.get(source).cloned().unwrap_or_default()
    }

    /// Notes that what is before `position` went into the dataflow at `epoch`, or before.
    pub fn sent(&self, source: &Arc<str>, position: Position, epoch: u64) {
        if self.n_parts == 0 {
            return;
        }
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = gathering.sent.entry(self.next_cut(epoch + 1)).or_default();
        match sent.iter_mut().find(|(of, at)| of == source && at.partition == position.partition) {
            Some((_, at)) => at.offset = at.offset.max(position.offset),
            None => sent.push((Arc::clone(source), position)),
        }
    }
}

impl Gathering {
    /// Everything that was handed in up to a cut that is complete. An instance that began before others may have
    /// handed in something at cuts that never will be.
    fn complete(&mut self, cut: u64) -> Cut {
        let later = self.parts.split_off(&(cut + 1));
        let parts = std::mem::replace(&mut self.parts, later).into_values().flatten().collect();
        self.wanted = self.wanted.split_off(&(cut + 1));
        let later = self.sent.split_off(&(cut + 1));
        for (source, position) in std::mem::replace(&mut self.sent, later).into_values().flatten() {
            let partitions = self.positions.entry(source.to_string()).or_default();
            let offset = partitions.entry(position.partition.0).or_default();
            *offset = position.offset.max(*offset);
        }
        Cut { cut, parts, positions: self.positions.clone() }
    }
}

impl Checkpoint for Checkpoints {
    fn next_cut(&self, epoch: u64) -> u64 {
        epoch.div_ceil(CUT_EVERY) * CUT_EVERY
    }

    fn wants(&self, cut: u64, reached: u64) -> bool {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        let decide = || {
            // Of cuts that are passed at once the last is enough.
            let is_last = reached < self.next_cut(cut + 1);
            let waiting = self.pressure.n_bytes.load(Ordering::Acquire);
            let is_behind = self.pressure.is_behind.load(Ordering::Acquire);
            let is_late = waiting >= WAITING_MAX_BYTES || is_behind;
            self.skipped.inc_by(u64::from(is_last && is_late));
            (is_last && !is_late, 0)
        };
        let (is_wanted, n_asked) = gathering.wanted.entry(cut).or_insert_with(decide);
        *n_asked += 1;
        let (is_wanted, all_asked) = (*is_wanted, *n_asked == self.n_parts);
        if all_asked && !is_wanted {
            gathering.wanted.remove(&cut);
        }
        is_wanted
    }

    fn put(&self, operator: &str, worker: usize, cut: u64, state: Vec<u8>) {
        let fingerprint = fingerprint_of(&state).unwrap_or(0);
        let changes = Changes { fingerprint, shards: 0..0, state, tables: Vec::new() };
        self.put_changes(operator, worker, cut, changes);
    }

    fn put_changes(&self, operator: &str, worker: usize, cut: u64, changes: Changes) {
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = gathering.parts.entry(cut).or_default();
        parts.push(Part { operator: operator.to_owned(), worker, changes });
        if parts.len() == self.n_parts {
            let cut = gathering.complete(cut);
            let n_bytes: usize = cut.parts.iter().map(|part| part.changes.n_bytes()).sum();
            self.pressure.n_bytes.fetch_add(n_bytes, Ordering::AcqRel);
            // If the writer is gone the process is ending.
            self.complete.send(cut).ok();
        }
    }

    fn restored_rows(
        &self,
        operator: &str,
        fingerprint: u64,
        table: &str,
        shards: Range<u16>,
    ) -> Box<dyn Iterator<Item = RecordBatch> + '_> {
        let state = self.restored.operators.get(operator);
        let state = state.filter(|state| state.fingerprint == manifest::hex(fingerprint));
        match state.and_then(|state| state.tables.get(table)) {
            Some(table) => Box::new(rows(&self.folder, table, &shards)),
            None => Box::new(std::iter::empty()),
        }
    }

    fn written(&self) -> u64 {
        self.pressure.written.load(Ordering::Acquire)
    }

    fn restored(&self, operator: &str) -> Vec<Vec<u8>> {
        let Some(state) = self.restored.operators.get(operator) else { return Vec::new() };
        state.state.parts(&self.folder).unwrap_or_else(|damage| lost(&damage.to_string()))
    }
}

/// The rows that a table has.
fn rows(
    folder: &Folder,
    table: &TableState,
    shards: &Range<u16>,
) -> impl Iterator<Item = RecordBatch> + use<> {
    let n_keys = table.keys;
    let layers = table.runs.iter().map(Layer::from).collect();
    let merged = merge(folder.path(), n_keys, layers, shards, false);
    let merged = merged.unwrap_or_else(|error| lost(&error.to_string()));
    merged.map(move |rows| {
        let rows = rows.unwrap_or_else(|error| lost(&error.to_string()));
        let n_columns = rows.num_columns() - usize::from(n_keys > 0);
        rows.project(&(0..n_columns).collect::<Vec<_>>()).expect("there are so many columns")
    })
}

/// All files were whole when the checkpoint was opened. Going on without one would forget what was counted.
fn lost(why: &str) -> ! {
    panic!("a checkpoint that was whole cannot be read: {why}")
}

/// The shards of all workers.
fn all_shards() -> Range<u16> {
    0..SHARDS
}
