//! Frames that may go to the disk without passing the page cache: in memory they begin at a block, and with padding
//! they end at one in the file.
//!
//! The buffer's messages are handed on from memory, so a copy of them in the page cache helps nobody; making and
//! dropping that copy costs more than the checksum and the framing together.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::frame;

/// What direct writes are a multiple of, in the file and in memory, in bytes.
pub(super) const BLOCK: usize = 4096;

/// Frames of one group commit.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Where they begin in `buffer`: at a block, unless it had to grow.
    start: usize,
}

impl Frames {
    /// Forgets what is there; `capacity` is about how many bytes will come.
    pub(super) fn begin(&mut self, capacity: usize) {
        self.buffer.clear();
        // One large group must not keep its memory for ever.
        self.buffer.shrink_to(capacity.max(1 << 20) + 2 * BLOCK);
        self.buffer.reserve(capacity + 2 * BLOCK);
        self.start = self.buffer.as_ptr().align_offset(BLOCK);
        self.buffer.resize(self.start, 0);
    }

    /// Where to append frames.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The frames.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Appends a frame without items, so that what is written at `at` ends at a block. `next` is the number of the next
    /// item, `group` that of the group's first.
    pub(super) fn pad(&mut self, key: u64, (next, group): (u64, u64), at: u64) {
        let end = at + (self.as_slice().len() + frame::HEADER) as u64;
        let n_padding = (end.next_multiple_of(BLOCK as u64) - end) as usize;
        frame::write(&mut self.buffer, key, (next, group, 0), |out| out.resize(out.len() + n_padding, 0));
    }

    /// Whether they may be written directly at this place in the file.
    pub(super) fn fit_directly(&self, at: u64) -> bool {
        let frames = self.as_slice();
        at.is_multiple_of(BLOCK as u64)
            && frames.len().is_multiple_of(BLOCK)
            && frames.as_ptr().align_offset(BLOCK) == 0
    }
}

/// Opens a segment for direct writes at its end; `None` where the file system has none.
pub(super) fn open_direct(path: &Path) -> Option<File> {
    OpenOptions::new().append(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_frames_end_at_a_block_wherever_they_begin() {
        for at in [0, 40, 4064, 4065, 4096, 12_345] {
            for body in [0, 1, 3991, 3992, 4000, 10_000] {
                let mut frames = Frames::default();
                frames.begin(body + 100);
                frame::write(frames.buffer(), 9, (5, 5, 1), |out| out.resize(out.len() + body, 1));
                frames.pad(9, (6, 5), at);
                assert_eq!((at + frames.as_slice().len() as u64) % BLOCK as u64, 0);
                assert_eq!(frames.fit_directly(at), at.is_multiple_of(BLOCK as u64));
                let first = frame::read(frames.as_slice(), 0, Some(9)).unwrap();
                let padding = frame::read(frames.as_slice(), first.body.end, Some(9)).unwrap();
                assert_eq!((padding.first, padding.group, padding.count), (6, 5, 0));
                assert_eq!(padding.body.end, frames.as_slice().len());
            }
        }
    }
}
