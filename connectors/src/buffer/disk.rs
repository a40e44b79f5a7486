//! `mode: disk`: messages are appended and synced in groups before their senders are answered.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use logdrive_schemas::{Chunk, Partition, Position};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tracing::warn;

use super::reader::Reader;
use super::record::Record;
use super::state::{Next, Shared};
use super::store::{Disk, RealDisk, Store, Trimmer};
use super::writer::{Group, write_groups};
use crate::context::ConnectorContext;
use crate::error::ConnectorError;
use crate::source::{Budget, Intake, Listener, Source};

/// How large things may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// A segment file, in bytes.
    pub(super) segment: u64,
    /// Messages kept in memory for the reader, in bytes; older ones are read back from disk.
    pub(super) memory: usize,
    /// One group commit, in bytes: no further group of messages is added beyond.
    pub(super) group: usize,
    /// How much is read back from disk at once, in bytes.
    pub(super) refill: usize,
    /// Undelivered messages, in bytes: at the bound the intake is not read.
    pub(super) undelivered: u64,
    /// Whether to write past the page cache.
    pub(super) direct: bool,
}

impl Sizes {
    pub(super) fn new(undelivered: u64) -> Self {
        let memory = 32 << 20;
        // A group is taken whole, so it must not be larger than what the buffer may hold.
        let group = usize::try_from(undelivered).unwrap_or(usize::MAX).min(16 << 20);
        Self { segment: 64 << 20, memory, group, refill: 4 << 20, undelivered, direct: true }
    }
}

/// A listener with a folder behind it.
pub(super) struct DiskBuffer {
    cx: ConnectorContext,
    dir: PathBuf,
    sizes: Sizes,
    disk: Option<Box<dyn Disk>>,
    listener: Option<Box<dyn Listener>>,
    open: Option<Open>,
}

/// What there is once it is connected.
struct Open {
    shared: Arc<Shared>,
    partition: Partition,
    trimmer: Arc<Trimmer>,
    listener: tokio::task::AbortHandle,
    reader: Option<Reader>,
    refill: Option<JoinHandle<Refilled>>,
    trim: Option<JoinHandle<std::io::Result<()>>>,
    /// The position that the cursor file has, or will have once `trim` is through.
    trimmed: u64,
    delivered: u64,
}

/// A reader that is given back, and what it read.
type Refilled = (Reader, Result<Vec<Record>, ConnectorError>);

impl DiskBuffer {
    pub(super) fn new(listener: Box<dyn Listener>, sizes: Sizes, cx: &ConnectorContext) -> Self {
        Self::with_disk(listener, sizes, cx, Box::new(RealDisk))
    }

    pub(super) fn with_disk(
        listener: Box<dyn Listener>,
        sizes: Sizes,
        cx: &ConnectorContext,
        disk: Box<dyn Disk>,
    ) -> Self {
        Self {
            cx: cx.clone(),
            dir: cx.state_dir.join("buffer"),
            sizes,
            disk: Some(disk),
            listener: Some(listener),
            open: None,
        }
    }

    /// Opens the folder and counts what it holds.
    async fn open_store(&mut self) -> Result<(Store, Shared, u64), ConnectorError> {
        let (dir, sizes, cx) = (self.dir.clone(), self.sizes, self.cx.clone());
        let disk = self.disk.take().unwrap_or_else(|| Box::new(RealDisk));
        spawn_blocking(move || {
            let mut found: Vec<(u64, u64, u64)> = Vec::new();
            let opened = Store::open(&dir, sizes.segment, disk, &mut |frame, bytes| {
                let Some(record) = Record::read(frame, bytes) else { return false };
                let (size, n) = (record.payload() as u64, record.messages.len() as u64);
                match found.last_mut().filter(|(_, bytes, _)| *bytes < sizes.undelivered.min(2 << 20) / 8) {
                    Some(span) => *span = (record.end(), span.1 + size, span.2 + n),
                    None => found.push((record.end(), size, n)),
                }
                true
            });
            let (mut store, opened) = opened?;
            if sizes.direct {
                store.write_directly();
            }
            if 0 < opened.truncated {
                warn!(dir = %dir.display(), bytes = opened.truncated, "Cut off a torn tail, as a crash leaves it.");
                let counter = cx.metrics.buffer_truncated_bytes.with_label_values(&[&cx.name]);
                counter.inc_by(opened.truncated);
            }
            let end = found.last().map_or(opened.delivered, |span| span.0.max(opened.delivered));
            let shared = Shared::new(&cx, sizes.undelivered, opened.delivered, end);
            for (end, bytes, messages) in found {
                shared.found(end, bytes, messages);
            }
            Ok((store, shared, opened.delivered))
        })
        .await
        .map_err(|e| self.broken(e))?
    }

    /// Where it counts.
    #[cfg(test)]
    pub(super) fn metrics(&self) -> &crate::metrics::Metrics {
        &self.cx.metrics
    }

    fn broken(&self, error: JoinError) -> ConnectorError {
        ConnectorError::storage(&self.dir, std::io::Error::other(error))
    }
}

#[async_trait]
impl Source for DiskBuffer {
    async fn connect(&mut self, _delivered: &[Position]) -> Result<(), ConnectorError> {
        if self.open.is_some() || self.listener.is_none() {
            let reason = "its buffer failed and is not opened twice".to_owned();
            return Err(ConnectorError::Refused { endpoint: self.cx.name.to_string(), reason });
        }
        let (store, shared, delivered) = self.open_store().await?;
        let Some(mut listener) = self.listener.take() else { return Err(ConnectorError::End) };
        if let Err(error) = listener.bind().await {
            self.listener = Some(listener);
            return Err(error);
        }
        let shared = Arc::new(shared);
        let (intake, messages, released) = Intake::bounded(&self.cx, self.sizes.undelivered);
        let listening = tokio::spawn(listener.run(intake));
        let identity = store.identity();
        let (trimmer, reader) = (Arc::clone(store.trimmer()), Reader::new(&self.dir, identity.key));
        let abort = listening.abort_handle();
        let group = Group::new(store, &self.cx);
        tokio::spawn(write_groups(Arc::clone(&shared), messages, released, group, self.sizes, listening));
        self.open = Some(Open {
            shared,
            partition: Partition(identity.partition),
            trimmer,
            listener: abort,
            reader: Some(reader),
            refill: None,
            trim: None,
            trimmed: delivered,
            delivered,
        });
        Ok(())
    }

    async fn recv(&mut self, budget: Budget) -> Result<Chunk, ConnectorError> {
        let Some(open) = &mut self.open else { return Err(ConnectorError::End) };
        loop {
            let next = {
                let mut state = open.shared.lock();
                if state.has_failed() { Some(state.next()) } else { None }
            };
            if let Some(Next::Stop(error)) = next {
                return Err(error);
            }
            if let Some(chunk) = open.shared.take(open.partition, budget) {
                return Ok(chunk);
            }
            let next = open.shared.lock().next();
            match next {
                Next::Disk(from, to) => open.refill(from, to, self.sizes.refill).await?,
                Next::Stop(error) => return Err(error),
                Next::Wait => open.shared.data.notified().await,
            }
        }
    }

    async fn commit(&mut self, upto: Position) -> Result<(), ConnectorError> {
        let dir = &self.dir;
        let Some(open) = &mut self.open else { return Ok(()) };
        let (delivered, drained) = open.shared.delivered(upto.offset);
        open.delivered = delivered;
        // While data flows the cursor follows in the background; the last one is on disk when this returns.
        let running = open.trim.as_ref().is_some_and(|trim| !trim.is_finished());
        if running && !drained {
            return Ok(());
        }
        loop {
            if let Some(trim) = &mut open.trim {
                let result = trim.await;
                open.trim = None;
                result
                    .unwrap_or_else(|e| Err(std::io::Error::other(e)))
                    .map_err(|e| ConnectorError::storage(dir, e))?;
            }
            if open.trimmed == open.delivered {
                return Ok(());
            }
            let (trimmer, delivered) = (Arc::clone(&open.trimmer), open.delivered);
            open.trimmed = delivered;
            open.trim = Some(spawn_blocking(move || trimmer.trim(delivered)));
            if !drained {
                return Ok(());
            }
        }
    }

    fn wants_positions_kept(&self) -> bool {
        false
    }
}

impl Open {
    /// Reads records from disk into memory. Cancel-safe: a read that nobody waits for is waited for next time.
    async fn refill(&mut self, from: u64, to: u64, bytes_max: usize) -> Result<(), ConnectorError> {
        let Some(refill) = &mut self.refill else {
            if let Some(mut reader) = self.reader.take() {
                self.refill = Some(spawn_blocking(move || {
                    let records = read_records(&mut reader, from, to, bytes_max);
                    (reader, records)
                }));
            }
            return Ok(());
        };
        let result = refill.await;
        self.refill = None;
        match result {
            Ok((reader, records)) => {
                self.reader = Some(reader);
                self.shared.lock().refill(records?);
                Ok(())
            }
            Err(error) => Err(ConnectorError::storage("buffer", std::io::Error::other(error))),
        }
    }
}

fn read_records(
    reader: &mut Reader,
    mut from: u64,
    to: u64,
    bytes_max: usize,
) -> Result<Vec<Record>, ConnectorError> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    while from < to && bytes < bytes_max {
        let (frame, data) = reader.frame_of(from)?;
        let record =
            Record::read(&frame, &data).ok_or_else(|| reader.damaged("the record makes no sense"))?;
        from = record.end();
        bytes += record.bytes();
        records.push(record);
    }
    Ok(records)
}

impl Drop for DiskBuffer {
    fn drop(&mut self) {
        let Some(open) = &self.open else { return };
        open.shared.closed.cancel();
        open.listener.abort();
        if let Err(error) = open.trimmer.trim(open.delivered) {
            warn!(%error, dir = %self.dir.display(), "The last position was not kept: some messages will be repeated.");
        }
    }
}
