//! Delivered positions of sources that do not keep their own, over restarts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use logdrive_connectors::ConnectorError;
use logdrive_schemas::{Partition, Position};

use logdrive_connectors::storage;

/// How often positions are written while they change. A crash in between replays that much more, which is safe.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);

/// The first offset of each partition that is not delivered.
#[derive(Debug)]
pub(super) struct Positions {
    /// `None` if the source keeps its own.
    path: Option<PathBuf>,
    offsets: BTreeMap<u64, u64>,
    written: Option<Instant>,
    dirty: bool,
}

impl Positions {
    /// Reads what an earlier process left; where it left nothing, on another disk perhaps, those that the checkpoint
    /// has serve.
    ///
    /// # Errors
    /// If the file is there and cannot be read: starting without it would read everything again.
    pub(super) fn open(
        path: Option<PathBuf>,
        in_checkpoint: impl FnOnce() -> BTreeMap<u64, u64>,
    ) -> Result<Self, ConnectorError> {
        let offsets = match &path {
            Some(path) => match std::fs::read(path) {
                Ok(bytes) => {
                    serde_json::from_slice(&bytes).map_err(|e| ConnectorError::storage(path, e.into()))?
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => in_checkpoint(),
                Err(e) => return Err(ConnectorError::storage(path, e)),
            },
            None => BTreeMap::new(),
        };
        Ok(Self { path, offsets, written: None, dirty: false })
    }

    pub(super) fn all(&self) -> Vec<Position> {
        let position = |(partition, offset): (&u64, &u64)| Position {
            partition: Partition(*partition),
            offset: *offset,
        };
        self.offsets.iter().map(position).collect()
    }

    pub(super) fn set(&mut self, position: Position) -> Result<(), ConnectorError> {
        self.offsets.insert(position.partition.0, position.offset);
        self.dirty = true;
        if self.written.is_none_or(|at| at.elapsed() >= WRITE_INTERVAL) { self.write() } else { Ok(()) }
    }

    /// Makes the positions durable.
    pub(super) fn write(&mut self) -> Result<(), ConnectorError> {
        let Some(path) = self.path.as_ref().filter(|_| self.dirty) else { return Ok(()) };
        let bytes = serde_json::to_vec(&self.offsets).map_err(|e| ConnectorError::storage(path, e.into()))?;
        storage::replace(path, &bytes).map_err(|e| ConnectorError::storage(path, e))?;
        self.written = Some(Instant::now());
        self.dirty = false;
        Ok(())
    }
}
