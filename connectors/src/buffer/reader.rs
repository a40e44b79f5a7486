//! Reads frames back from the segment files, in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frame::{self, Frame, FrameError};
use super::store::{SEGMENT_HEADER, damaged_while_reading, list, segment_path};
use crate::error::ConnectorError;

/// How much is read at once, in bytes; a larger frame is read whole.
const WINDOW: usize = 1 << 20;

/// A place in the segment files of one folder. Runs beside the writer: it must not be asked for what is not synced.
pub(super) struct Reader {
    dir: PathBuf,
    key: u64,
    segment: Option<(PathBuf, File)>,
    /// Where in the segment the next frame begins.
    at: u64,
    /// The number of the next frame.
    next: u64,
    window: Bytes,
    /// Where in the segment the window begins.
    window_at: u64,
}

impl Reader {
    /// A reader of `dir`, which need not exist yet.
    pub(super) fn new(dir: &Path, key: u64) -> Self {
        Self { dir: dir.to_owned(), key, segment: None, at: 0, next: 0, window: Bytes::new(), window_at: 0 }
    }

    /// The frame that holds item `number`, or the next one if that number was left out, and the bytes that its body
    /// lies in. There must be one, and it must be durable.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read or is damaged.
    pub(super) fn frame_of(&mut self, number: u64) -> Result<(Frame, Bytes), ConnectorError> {
        if self.segment.is_none() || number != self.next {
            self.seek(number)?;
        }
        let mut wanted = number;
        loop {
            // Frames on the way are only stepped over; what is handed out is checked.
            let Some(frame) = self.peek(None)? else {
                self.open(self.next)?;
                continue;
            };
            if frame.end() <= wanted || frame.count == 0 {
                if frame.count == 0 {
                    wanted = wanted.max(frame.first);
                }
                self.step(&frame);
                continue;
            }
            if wanted < frame.first {
                return Err(self.damaged("a record is missing"));
            }
            let Some(frame) = self.peek(Some(self.key))? else {
                return Err(self.damaged("a record is missing"));
            };
            let bytes = self.window.clone();
            self.step(&frame);
            return Ok((frame, bytes));
        }
    }

    fn step(&mut self, frame: &Frame) {
        self.at = self.window_at + frame.body.end as u64;
        self.next = frame.end();
    }

    /// The frame at the current place; `None` at the end of the segment.
    fn peek(&mut self, key: Option<u64>) -> Result<Option<Frame>, ConnectorError> {
        loop {
            let in_window = usize::try_from(self.at - self.window_at).unwrap_or(usize::MAX);
            let total = match frame::read(&self.window, in_window, key) {
                Ok(frame) => return Ok(Some(frame)),
                Err(FrameError::Short(total)) => total,
                Err(error) => return Err(self.damaged(error.what())),
            };
            self.fill(total.max(WINDOW))?;
            if self.window.is_empty() {
                return Ok(None);
            }
            if self.window.len() < total {
                return Err(self.damaged("the record is cut off"));
            }
        }
    }

    /// Reads up to `wanted` bytes from the current place.
    fn fill(&mut self, wanted: usize) -> Result<(), ConnectorError> {
        let Some((path, file)) = &self.segment else { return Ok(()) };
        let mut window = vec![0; wanted];
        let mut len = 0;
        while len < window.len() {
            match file.read_at(&mut window[len..], self.at + len as u64) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ConnectorError::storage(path, e)),
            }
        }
        window.truncate(len);
        self.window = Bytes::from(window);
        self.window_at = self.at;
        Ok(())
    }

    /// Goes to the segment that holds `number`, at its start or wherever before `number` the reader is in it already.
    /// Segments in between may have been deleted since the last read: what they held was handed out from memory.
    fn seek(&mut self, number: u64) -> Result<(), ConnectorError> {
        let segments = list(&self.dir).map_err(|e| ConnectorError::storage(&self.dir, e))?;
        let first = segments.iter().rev().map(|(first, _)| *first).find(|first| *first <= number);
        let first = first.unwrap_or(number);
        let path = segment_path(&self.dir, first);
        if self.next <= number && self.segment.as_ref().is_some_and(|(current, _)| *current == path) {
            return Ok(());
        }
        self.segment = None;
        self.open(first)
    }

    fn open(&mut self, first: u64) -> Result<(), ConnectorError> {
        let path = segment_path(&self.dir, first);
        // The end of the last segment was reached before the item that the writer says is there.
        if self.segment.as_ref().is_some_and(|(current, _)| *current == path) && self.next == first {
            return Err(self.damaged("the segment ends too early"));
        }
        let file = File::open(&path).map_err(|e| ConnectorError::storage(&path, e))?;
        self.segment = Some((path, file));
        self.at = SEGMENT_HEADER as u64;
        self.next = first;
        self.window = Bytes::new();
        self.window_at = self.at;
        Ok(())
    }

    /// The record before the current place is damaged.
    pub(super) fn damaged(&self, what: &str) -> ConnectorError {
        let path = self.segment.as_ref().map_or(self.dir.as_path(), |(path, _)| path);
        damaged_while_reading(path, self.at, what)
    }
}
