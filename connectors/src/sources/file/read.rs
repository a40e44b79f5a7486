//! Cuts a file's new bytes into lines: large reads, no copy per line.

use std::io;

use arrow::buffer::Buffer;
use logdrive_schemas::MessageRange;

use super::reader::Reader;
use super::registry::Fingerprint;
use super::tailer::Tailed;
use crate::source::Budget;

/// How much one read asks for.
const READ_BYTES: usize = 1 << 20;
/// How much of a line that is too long is searched for its end before other files get their turn.
const SCAN_BYTES: usize = 16 << 20;
/// How many bytes before the offset are compared on every read, besides the file's first ones, to notice that it was
/// truncated and has grown again. Covers the end of a line, where numbers and identifiers differ.
pub(super) const TAIL_BYTES: usize = 128;
/// Ends the kept beginning of a line that is too long: invalid in UTF-8, so that every decoder rejects it.
const CUT: u8 = 0xFF;

/// What a read found.
pub(super) enum Found {
    /// Complete lines.
    Lines(Lines),
    /// No complete line. `more`: reading again now makes sense.
    Nothing {
        /// Whether reading again now makes sense.
        more: bool,
    },
    /// The bytes read before are no longer there.
    Truncated,
}

/// Complete lines of one file.
pub(super) struct Lines {
    pub(super) data: Buffer,
    pub(super) messages: Vec<MessageRange>,
    pub(super) offsets: Vec<u64>,
    pub(super) n_too_long: u64,
    /// Whether there is more to be read now.
    pub(super) more: bool,
}

/// What one call may return.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) budget: Budget,
    pub(super) max_line: usize,
    /// What the content is known to begin with.
    pub(super) fingerprint: Fingerprint,
    /// How long a fingerprint may become.
    pub(super) fingerprint_max: u64,
}

impl Tailed {
    /// Reads lines from the current offset and moves the offset behind them.
    pub(super) fn read_lines(&mut self, limits: Limits) -> io::Result<Found> {
        self.grown = None;
        if self.scanned > self.offset {
            return self.scan_long_line(limits);
        }
        let mut len = READ_BYTES.min(limits.budget.bytes.max(1));
        loop {
            let Some((buf, tail_len)) = self.read_verified(len, limits)? else { return Ok(Found::Truncated) };
            let n_new = buf.len() - tail_len;
            let at_end = n_new < len;
            let is_line = memchr::memchr(b'\n', &buf[tail_len..]).is_some();
            if is_line || (at_end && self.is_final() && 0 < n_new) {
                return Ok(self.cut(buf, tail_len, at_end, limits));
            }
            if limits.max_line < n_new {
                self.scanned = self.offset + n_new as u64;
                return self.scan_long_line(limits);
            }
            if at_end {
                return Ok(Found::Nothing { more: false });
            }
            len = len.saturating_mul(4).min(limits.max_line + 1).max(len + 1);
        }
    }

    /// Whether the bytes behind the last newline are a message too, since no more will come.
    fn is_final(&self) -> bool {
        self.finalise || self.reader.as_ref().is_some_and(Reader::is_whole)
    }

    /// Reads up to `len` new bytes behind the last ones before them; `None` if those are no longer the same, or the
    /// file's first ones are not: either alone may be a line that many files have, such as a header.
    fn read_verified(&mut self, len: usize, limits: Limits) -> io::Result<Option<(Vec<u8>, usize)>> {
        let Some(reader) = &mut self.reader else { return Err(io::ErrorKind::NotFound.into()) };
        let tail_len = if reader.is_compressed() { 0 } else { self.tail.len() };
        let from = self.offset - tail_len as u64;
        let len_now = if reader.is_compressed() {
            len
        } else {
            len.min(usize::try_from(reader.metadata()?.len().saturating_sub(self.offset)).unwrap_or(len))
        };
        let mut buf = Vec::with_capacity(tail_len + len_now);
        reader.read_at(from, tail_len + len_now, &mut buf)?;
        if buf.get(..tail_len) != Some(&self.tail[..tail_len]) {
            return Ok(None);
        }
        if reader.is_compressed() {
            return Ok(Some((buf, tail_len)));
        }
        // Truncated while it was read: nobody knows which part of it is old.
        if reader.metadata()?.len() < from + buf.len() as u64 {
            return Ok(None);
        }
        // Looked at last: if the first bytes are still the same now, they were when the others were read.
        let known = limits.fingerprint.len;
        let len = known.max(limits.fingerprint_max.min(from + buf.len() as u64)) as usize;
        let head = reader.head(len)?;
        let overlap = usize::try_from(from).ok().and_then(|from| head.get(from..)).unwrap_or(&[]);
        let n_both = overlap.len().min(buf.len());
        if head.len() < len || !limits.fingerprint.begins(&head) || overlap[..n_both] != buf[..n_both] {
            return Ok(None);
        }
        self.grown = (known < len as u64).then(|| Fingerprint::of(&head));
        Ok(Some((buf, tail_len)))
    }

    fn cut(&mut self, mut buf: Vec<u8>, tail_len: usize, at_end: bool, limits: Limits) -> Found {
        let (mut messages, mut offsets, mut n_too_long) = (Vec::new(), Vec::new(), 0);
        let mut start = tail_len;
        let mut more = !at_end;
        while start < buf.len() {
            if messages.len() == limits.budget.messages.max(1) {
                more = true;
                break;
            }
            let (end, next) = match memchr::memchr(b'\n', &buf[start..]) {
                Some(len) => (start + len, start + len + 1),
                None if at_end && self.is_final() => (buf.len(), buf.len()),
                None => break,
            };
            // The buffer is larger than the budget where it was enlarged for one long line.
            if !messages.is_empty() && limits.budget.bytes < next - tail_len {
                more = true;
                break;
            }
            let mut len = end - start;
            if 0 < len && buf[end - 1] == b'\r' {
                len -= 1;
            }
            if limits.max_line < len {
                buf[start + limits.max_line] = CUT;
                len = limits.max_line + 1;
                n_too_long += 1;
            }
            if 0 < len {
                // A read is far below 4 GiB.
                messages.push(MessageRange { start: (start - tail_len) as u32, len: len as u32 });
                offsets.push(self.offset + (start - tail_len) as u64);
            }
            start = next;
        }
        self.remember_tail(&buf[..start]);
        self.offset += (start - tail_len) as u64;
        buf.truncate(start);
        if messages.is_empty() {
            return Found::Nothing { more };
        }
        let data = Buffer::from_vec(buf).slice(tail_len);
        Found::Lines(Lines { data, messages, offsets, n_too_long, more })
    }

    /// `consumed` ends where the offset now is.
    fn remember_tail(&mut self, consumed: &[u8]) {
        let tail = &consumed[consumed.len().saturating_sub(TAIL_BYTES)..];
        self.tail.clear();
        self.tail.extend_from_slice(tail);
    }

    /// Looks for the end of a line that is known to be too long, without keeping what it passes.
    fn scan_long_line(&mut self, limits: Limits) -> io::Result<Found> {
        let mut block = Vec::new();
        for _ in 0..SCAN_BYTES / READ_BYTES {
            let Some(reader) = &mut self.reader else { return Err(io::ErrorKind::NotFound.into()) };
            if !reader.is_compressed() && reader.metadata()?.len() < self.scanned {
                return Ok(Found::Truncated);
            }
            block.clear();
            reader.read_at(self.scanned, READ_BYTES, &mut block)?;
            let at_end = block.len() < READ_BYTES;
            let is_final = self.finalise || reader.is_whole();
            let newline = memchr::memchr(b'\n', &block);
            let next = match newline {
                Some(idx) => self.scanned + idx as u64 + 1,
                None if at_end && is_final => self.scanned + block.len() as u64,
                None => {
                    self.scanned += block.len() as u64;
                    if at_end {
                        return Ok(Found::Nothing { more: false });
                    }
                    continue;
                }
            };
            return self.cut_long_line(next, limits);
        }
        Ok(Found::Nothing { more: true })
    }

    fn cut_long_line(&mut self, next: u64, limits: Limits) -> io::Result<Found> {
        let Some((mut buf, tail_len)) = self.read_verified(limits.max_line, limits)? else {
            return Ok(Found::Truncated);
        };
        buf.drain(..tail_len);
        let (offset, mut tail) = (self.offset, Vec::new());
        let Some(reader) = &mut self.reader else { return Err(io::ErrorKind::NotFound.into()) };
        if !reader.is_compressed() {
            let tail_len = next.min(TAIL_BYTES as u64);
            reader.read_at(next - tail_len, tail_len as usize, &mut tail)?;
        }
        buf.push(CUT);
        let message = MessageRange { start: 0, len: buf.len() as u32 };
        (self.offset, self.scanned, self.tail) = (next, 0, tail);
        Ok(Found::Lines(Lines {
            data: Buffer::from_vec(buf),
            messages: vec![message],
            offsets: vec![offset],
            n_too_long: 1,
            more: true,
        }))
    }
}
