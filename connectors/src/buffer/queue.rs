//! The disk queue of a sink: batches that its far end does not take now.
//!
//! Synchronous: every call may wait for the disk. The batches lie in segments like those of the write-ahead buffer,
//! under the same rules: a torn tail is cut, other damage is an error that says so.

use std::collections::VecDeque;
use std::path::Path;

use logdrive_schemas::{Batch, Epoch};
use tracing::warn;

use super::codec::{self, CodecError};
use super::frame::{self, array};
use super::reader::Reader;
use super::store::{RealDisk, Store};
use crate::error::ConnectorError;

const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The epoch of the record that ends what was pushed before a sync, with the number of its batches: without it a
/// crash could leave a part of an epoch, and a sink would take the rest for written.
const GROUP_END: Epoch = Epoch(u64::MAX);

/// Batches on disk, first in, first out; they survive a crash once they are synced.
///
/// To empty it, [`Self::read`] several, write them to the sink, and after its flush [`Self::pop_first`] as many
/// ([`Self::rewind`] instead if it failed).
pub struct DiskQueue {
    store: Store,
    reader: Reader,
    bytes_max: u64,
    bytes: u64,
    /// The batches that are not popped.
    waiting: VecDeque<Waiting>,
    /// How many of them were read.
    n_read: usize,
    /// How many were pushed since the last sync.
    n_unsynced: u64,
}

/// A batch on disk.
struct Waiting {
    /// The number after it.
    end: u64,
    /// Its bytes on disk.
    bytes: u64,
    epoch: Epoch,
}

impl DiskQueue {
    /// Opens or creates the queue in `dir`, which holds up to `bytes_max` bytes. No other process may have it open.
    ///
    /// # Errors
    /// `Refused` if another process uses it; `Storage` if it is damaged or the disk fails.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, ConnectorError> {
        let mut waiting = VecDeque::new();
        let mut open_group: Vec<Waiting> = Vec::new();
        let (store, opened) = Store::open(dir, SEGMENT_BYTES_MAX, Box::new(RealDisk), &mut |frame, data| {
            if frame.count != 1 || frame.body.len() < 8 {
                return false;
            }
            let bytes = (frame.body.len() + frame::HEADER) as u64;
            let body = &data[frame.body.clone()];
            let epoch = Epoch(u64::from_le_bytes(array(body)));
            if epoch != GROUP_END {
                open_group.push(Waiting { end: frame.end(), bytes, epoch });
                return true;
            }
            if body.len() != 16 {
                return false;
            }
            let n_batches = usize::try_from(u64::from_le_bytes(array(&body[8..]))).unwrap_or(usize::MAX);
            let unfinished = open_group.len().saturating_sub(n_batches);
            waiting.extend(open_group.drain(..).skip(unfinished));
            true
        })?;
        if 0 < opened.truncated {
            let bytes = opened.truncated;
            warn!(dir = %dir.display(), bytes, "Cut off a torn tail of the queue, as a crash leaves it.");
        }
        waiting.retain(|batch: &Waiting| opened.delivered < batch.end);
        let bytes = waiting.iter().map(|batch| batch.bytes).sum();
        let reader = Reader::new(dir, store.identity().key);
        Ok(Self { store, reader, bytes_max, bytes, waiting, n_read: 0, n_unsynced: 0 })
    }

    /// Appends a batch; durable after the next [`Self::sync`]. Takes it also if the queue is full: whoever fills it
    /// asks [`Self::is_full`] first.
    ///
    /// # Errors
    /// `Storage`; the queue must be opened anew.
    pub fn push(&mut self, epoch: Epoch, batch: &Batch) -> Result<(), ConnectorError> {
        let stream = codec::encode(batch).map_err(|e| self.invalid(e))?;
        if frame::BODY_MAX < stream.len() + 8 {
            return Err(self.invalid(CodecError::Foreign("it is too large")));
        }
        let number = self.store.next();
        let mut bytes = Vec::with_capacity(stream.len() + 8 + frame::HEADER);
        frame::write(&mut bytes, self.store.identity().key, (number, number, 1), |out| {
            out.extend_from_slice(&epoch.0.to_le_bytes());
            out.extend_from_slice(&stream);
        });
        self.store.append(&bytes, number + 1)?;
        self.waiting.push_back(Waiting { end: number + 1, bytes: bytes.len() as u64, epoch });
        self.n_unsynced += 1;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes every batch that was pushed survive a crash. Until then a crash loses all of them, never some.
    ///
    /// # Errors
    /// `Storage`; what was pushed since the last sync may be lost.
    pub fn sync(&mut self) -> Result<(), ConnectorError> {
        let n_batches = std::mem::take(&mut self.n_unsynced);
        if n_batches > 0 {
            let number = self.store.next();
            let mut bytes = Vec::with_capacity(16 + frame::HEADER);
            frame::write(&mut bytes, self.store.identity().key, (number, number, 1), |out| {
                out.extend_from_slice(&GROUP_END.0.to_le_bytes());
                out.extend_from_slice(&n_batches.to_le_bytes());
            });
            self.store.append(&bytes, number + 1)?;
        }
        self.store.sync()
    }

    /// The next batch that was not read since the last [`Self::rewind`].
    ///
    /// # Errors
    /// `Storage` if it cannot be read back.
    pub fn read(&mut self) -> Result<Option<(Epoch, Batch)>, ConnectorError> {
        let next = self.get(self.n_read)?;
        self.n_read += usize::from(next.is_some());
        Ok(next)
    }

    /// The epoch of the batch that [`Self::read`] gives next.
    #[must_use]
    pub fn next_epoch(&self) -> Option<Epoch> {
        self.waiting.get(self.n_read).map(|batch| batch.epoch)
    }

    /// Starts reading again at the oldest batch.
    pub fn rewind(&mut self) {
        self.n_read = 0;
    }

    /// Counts the next `n` batches as read: their reader has them already.
    pub fn skip(&mut self, n: usize) {
        self.n_read = (self.n_read + n).min(self.waiting.len());
    }

    /// The bytes on disk of what is not popped.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of batches that are not popped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the bound is reached.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes_max <= self.bytes
    }

    fn get(&mut self, idx: usize) -> Result<Option<(Epoch, Batch)>, ConnectorError> {
        let Some(waiting) = self.waiting.get(idx) else { return Ok(None) };
        let (frame, bytes) = self.reader.frame_of(waiting.end - 1)?;
        let body = &bytes[frame.body];
        if body.len() < 8 {
            return Err(self.reader.damaged("the record makes no sense"));
        }
        let batch = codec::decode(&body[8..]).map_err(|e| self.invalid(e))?;
        Ok(Some((Epoch(u64::from_le_bytes(array(body))), batch)))
    }

    /// Forgets the `n` oldest batches; durable on return.
    ///
    /// # Errors
    /// `Storage`; they may come again after a restart.
    pub fn pop_first(&mut self, n: usize) -> Result<(), ConnectorError> {
        let n = n.min(self.waiting.len());
        let mut delivered = None;
        for batch in self.waiting.drain(..n) {
            delivered = Some(batch.end);
            self.bytes -= batch.bytes;
        }
        self.n_read = self.n_read.saturating_sub(n);
        let Some(delivered) = delivered else { return Ok(()) };
        let trimmed = self.store.trimmer().trim(delivered);
        trimmed.map_err(|e| ConnectorError::storage(self.store.dir(), e))
    }

    fn invalid(&self, error: CodecError) -> ConnectorError {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        ConnectorError::storage(self.store.dir(), error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use logdrive_schemas::{Chunk, MessageRange, Partition, Reject, reject};

    use super::super::store;
    use super::*;

    fn batch(text: &str) -> Batch {
        let chunk = Chunk {
            source: Arc::from("s"),
            partition: Partition(1),
            data: text.as_bytes().to_vec().into(),
            messages: vec![MessageRange { start: 0, len: text.len() as u32 }],
            offsets: vec![4],
            received_at: 5,
            peer: None,
            attributes: None,
            next_offset: 5,
        };
        reject::of_chunk(&chunk, &[Reject { idx: 0, reason: "r".into() }]).unwrap()
    }

    fn text(item: Option<(Epoch, Batch)>) -> Option<(u64, String)> {
        item.map(|(e, b)| (e.0, String::from_utf8(b.original().value(0).to_vec()).unwrap()))
    }

    #[test]
    fn batches_come_back_in_order_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut queue = DiskQueue::open(dir.path(), 3_000).unwrap();
        assert!(queue.read().unwrap().is_none());
        for n in 0..4 {
            queue.push(Epoch(n), &batch(&format!("b{n}"))).unwrap();
        }
        queue.sync().unwrap();
        assert!(queue.is_full());
        assert!(DiskQueue::open(dir.path(), 1).is_err(), "it is locked");
        assert_eq!(text(queue.read().unwrap()), Some((0, "b0".into())));
        queue.pop_first(1).unwrap();
        assert_eq!(text(queue.read().unwrap()), Some((1, "b1".into())));
        assert_eq!(queue.next_epoch(), Some(Epoch(2)));
        assert_eq!(text(queue.read().unwrap()), Some((2, "b2".into())));
        queue.rewind();
        assert_eq!(text(queue.read().unwrap()), Some((1, "b1".into())));
        drop(queue);
        let mut queue = DiskQueue::open(dir.path(), 3_000).unwrap();
        assert_eq!(queue.len(), 3);
        assert_eq!(text(queue.read().unwrap()), Some((1, "b1".into())));
        assert_eq!(text(queue.read().unwrap()), Some((2, "b2".into())));
        queue.pop_first(2).unwrap();
        queue.push(Epoch(9), &batch("b9")).unwrap();
        queue.sync().unwrap();
        drop(queue);
        let mut queue = DiskQueue::open(dir.path(), 3_000).unwrap();
        assert_eq!(text(queue.read().unwrap()), Some((3, "b3".into())));
        assert_eq!(text(queue.read().unwrap()), Some((9, "b9".into())));
        assert_eq!(text(queue.read().unwrap()), None);
        queue.pop_first(2).unwrap();
        assert_eq!((queue.bytes(), queue.len()), (0, 0));
    }

    #[test]
    fn a_torn_tail_costs_the_last_group_whole_and_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut queue = DiskQueue::open(dir.path(), 1 << 30).unwrap();
        queue.push(Epoch(1), &batch("one")).unwrap();
        queue.sync().unwrap();
        let whole = queue.bytes();
        queue.push(Epoch(2), &batch("two")).unwrap();
        queue.push(Epoch(2), &batch("the rest of two")).unwrap();
        queue.sync().unwrap();
        drop(queue);
        let path = store::list(dir.path()).unwrap().remove(0).1;
        let bytes = fs::read(&path).unwrap();
        for cut in 1..40 {
            fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let queue = DiskQueue::open(dir.path(), 1 << 30).unwrap();
            assert_eq!((queue.len(), queue.bytes()), (1, whole), "{cut} bytes cut");
        }
        let mut queue = DiskQueue::open(dir.path(), 1 << 30).unwrap();
        queue.push(Epoch(3), &batch("three")).unwrap();
        queue.sync().unwrap();
        drop(queue);
        let mut queue = DiskQueue::open(dir.path(), 1 << 30).unwrap();
        assert_eq!(text(queue.read().unwrap()), Some((1, "one".into())));
        assert_eq!(text(queue.read().unwrap()), Some((3, "three".into())));
        assert_eq!(text(queue.read().unwrap()), None);
    }
}
