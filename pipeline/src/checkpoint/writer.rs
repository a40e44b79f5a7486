//! Writes complete cuts, away from the workers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use logdrive_connectors::{ConnectorError, Metrics};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};

use super::Pressure;
use super::folder::Folder;
use super::store::{Cut, Store};

/// Writes complete cuts.
pub struct CheckpointWriter {
    /// Absent while it is writing.
    pub(super) store: Option<Store>,
    folder: Arc<Folder>,
    pub(super) receiver: mpsc::UnboundedReceiver<Cut>,
    pressure: Arc<Pressure>,
    metrics: Arc<Metrics>,
}

/// A cut that is being written.
struct Writing {
    cut: u64,
    /// What it takes in memory.
    n_bytes: usize,
    /// What had been written before it.
    n_written: u64,
    thread: JoinHandle<Written>,
}

/// The writer's, and the oldest cut that is kept.
type Written = (Store, io::Result<u64>);

impl Drop for CheckpointWriter {
    /// Nobody waits any longer for a store that is down.
    fn drop(&mut self) {
        self.folder.close();
    }
}

impl CheckpointWriter {
    pub(super) fn new(
        store: Store,
        folder: Arc<Folder>,
        receiver: mpsc::UnboundedReceiver<Cut>,
        pressure: Arc<Pressure>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { store: Some(store), folder, receiver, pressure, metrics }
    }

    /// Writes until the dataflow ends, telling `durable` the newest cut that can be relied on: there is a later one that
    /// is written, so that either may be damaged.
    ///
    /// A cut is written only once every sink has made the epochs before it durable (`sunk`): an operator restored
    /// from it does not count those rows again, so what it said about them must have arrived.
    ///
    /// # Errors
    /// If the disk fails: then nothing may be acknowledged any more.
    pub async fn run(
        mut self,
        mut sunk: watch::Receiver<u64>,
        durable: watch::Sender<u64>,
    ) -> Result<(), ConnectorError> {
        // While the sinks or the store lag, the oldest cut waits for them; those behind it become one.
        let mut waiting: VecDeque<Cut> = VecDeque::new();
        let mut writing: Option<Writing> = None;
        loop {
            let oldest = waiting.front().map(|cut| cut.cut);
            tokio::select! {
                received = self.receiver.recv() => match received {
                    Some(newest) => {
                        let behind = if waiting.len() > 1 { waiting.pop_back() } else { None };
                        waiting.push_back(self.one_of(behind, newest));
                    }
                    None => {
                        if let Some(mut writing) = writing {
                            let done = (&mut writing.thread).await;
                            durable.send_replace(self.written(&writing, done)?);
                        }
                        return Ok(());
                    }
                },
                reached = reach(&mut sunk, oldest.unwrap_or(0)), if oldest.is_some() && writing.is_none() => {
                    let Some(reached) = reached else { return Ok(()) };
                    let mut ready = None;
                    while let Some(cut) = waiting.pop_front_if(|cut| cut.cut <= reached) {
                        ready = Some(self.one_of(ready, cut));
                    }
                    writing = ready.map(|cut| self.write(cut)).transpose()?;
                }
                done = ended(&mut writing) => if let Some(writing) = writing.take() {
                    durable.send_replace(self.written(&writing, done)?);
                },
            }
        }
    }

    /// Two cuts as one, as of the later.
    fn one_of(&self, older: Option<Cut>, newer: Cut) -> Cut {
        let Some(older) = older else { return newer };
        let mut parts = older.parts;
        for part in &mut parts {
            // What is whole takes the place of what was.
            let state = std::mem::take(&mut part.changes.state);
            self.pressure.n_bytes.fetch_sub(state.len(), Ordering::AcqRel);
        }
        parts.retain(|part| !part.changes.tables.is_empty());
        parts.extend(newer.parts);
        Cut { parts, ..newer }
    }

    /// Begins to write a cut.
    fn write(&mut self, cut: Cut) -> Result<Writing, ConnectorError> {
        let Some(mut store) = self.store.take() else { return Err(self.failed("its writer is gone")) };
        let n_bytes: usize = cut.parts.iter().map(|part| part.changes.n_bytes()).sum();
        let (newest, n_written) = (cut.cut, self.folder.n_written());
        let thread = tokio::task::spawn_blocking(move || {
            let written = store.write(cut);
            (store, written)
        });
        Ok(Writing { cut: newest, n_bytes, n_written, thread })
    }

    /// Takes note of a cut that is written.
    fn written(
        &mut self,
        writing: &Writing,
        done: Result<Written, JoinError>,
    ) -> Result<u64, ConnectorError> {
        let (store, written) = done.map_err(|e| self.failed(e))?;
        let fallback = written.map_err(|e| self.failed(e))?;
        self.pressure.written.store(writing.cut, Ordering::Release);
        self.pressure.n_bytes.fetch_sub(writing.n_bytes, Ordering::AcqRel);
        self.pressure.is_behind.store(store.is_behind(), Ordering::Release);
        let (n_files, size) = store.size();
        self.store = Some(store);
        self.metrics.checkpoint_cuts.inc();
        self.metrics.checkpoint_bytes.inc_by(self.folder.n_written() - writing.n_written);
        self.metrics.checkpoint_files.set(i64::try_from(n_files).unwrap_or(i64::MAX));
        self.metrics.checkpoint_size.set(i64::try_from(size).unwrap_or(i64::MAX));
        Ok(fallback)
    }

    fn failed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectorError {
        ConnectorError::storage(self.folder.place(), io::Error::other(error))
    }
}

/// Waits until the sinks have reached `cut`; how far they are then. `None` if the dataflow is gone.
async fn reach(sunk: &mut watch::Receiver<u64>, cut: u64) -> Option<u64> {
    sunk.wait_for(|sunk| cut <= *sunk).await.ok().map(|sunk| *sunk)
}

/// Waits until the cut is written that is being written.
async fn ended(writing: &mut Option<Writing>) -> Result<Written, JoinError> {
    match writing {
        Some(writing) => (&mut writing.thread).await,
        None => std::future::pending().await,
    }
}
