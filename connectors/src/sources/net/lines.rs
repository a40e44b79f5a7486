//! Newline framing without copying: finds the messages in a buffer that is then given away.
//!
//! A line that is too long, or that was cut off by a broken connection, must never travel on as if it were whole.
//! It is handed over as its prefix followed by the byte 0xFF. That byte occurs in no UTF-8 text, so that every
//! decoder rejects the message and its prefix lands in `rejects`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use logdrive_schemas::MessageRange;

use super::room;

/// Ends a message that is not whole; never part of UTF-8.
pub const BROKEN: u8 = 0xFF;

/// Messages that became complete together.
#[derive(Debug, Default)]
pub struct Group {
    /// The bytes that were received, delimiters included.
    pub data: Bytes,
    /// Where each message lies in `data`.
    pub messages: Vec<MessageRange>,
    /// How many of the messages are prefixes of lines over the limit.
    pub n_too_long: u64,
}

/// Cuts a stream of bytes into lines. How the stream was cut into reads makes no difference.
#[derive(Debug)]
pub struct Lines {
    /// Received and not yet handed over: the beginning of a line.
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no newline.
    n_scanned: usize,
    /// Inside a line that was already handed over as a prefix.
    discarding: bool,
    line_bytes_max: usize,
}

impl Lines {
    /// Lines of at most `line_bytes_max` bytes without their delimiter.
    #[must_use]
    pub fn new(line_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), n_scanned: 0, discarding: false, line_bytes_max }
    }

    /// Where to append what was received; then call [`Self::take`].
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes wait for the end of their line.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// What the buffer occupies.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Makes sure that at least [`READ_MIN`] bytes can be read; allocates room for `want` if it must allocate.
    pub(crate) fn make_room(&mut self, want: usize) {
        room::make_room(&mut self.buffer, want, self.line_bytes_max);
    }

    /// The capacity after [`Self::make_room`].
    pub(crate) fn room_for(&self, want: usize) -> usize {
        room::room_for(&self.buffer, want, self.line_bytes_max)
    }

    /// Gives memory back before a wait that can be long.
    pub(crate) fn release(&mut self) {
        room::release(&mut self.buffer);
        self.n_scanned = self.n_scanned.min(self.buffer.len());
    }

    /// The lines that are complete, if any.
    pub fn take(&mut self) -> Option<Group> {
        if self.discarding {
            let Some(newline) = memchr::memchr(b'\n', &self.buffer) else {
                self.buffer.clear();
                self.n_scanned = 0;
                return None;
            };
            self.buffer.advance(newline + 1);
            self.n_scanned = 0;
            self.discarding = false;
        }
        let mut lines = LineRanges::new(self.line_bytes_max);
        for newline in memchr::memchr_iter(b'\n', &self.buffer[self.n_scanned..]) {
            lines.end_at(&self.buffer, self.n_scanned + newline);
        }
        let mut end = lines.start;
        // One more byte may be a carriage return; two more are too many whatever they are.
        if self.buffer.len() - lines.start >= self.line_bytes_max + 2 {
            end = lines.start + self.line_bytes_max + 1;
            lines.cut();
            self.discarding = true;
        }
        let group = self.split(end, lines);
        if self.discarding {
            self.buffer.clear();
        }
        self.n_scanned = self.buffer.len();
        group
    }

    /// The last line, at the end of the stream, is whole even without a newline.
    pub fn finish(&mut self) -> Option<Group> {
        if self.discarding || self.buffer.is_empty() {
            return None;
        }
        let mut lines = LineRanges::new(self.line_bytes_max);
        let end = self.buffer.len();
        lines.end_at(&self.buffer, end);
        self.n_scanned = 0;
        self.split(end, lines)
    }

    /// Gives up on the line that has begun: hands over its prefix, marked as broken, and skips to the next newline.
    pub fn cut(&mut self) -> Option<Group> {
        if self.discarding || self.buffer.is_empty() {
            return None;
        }
        self.discarding = true;
        self.n_scanned = 0;
        self.buffer.truncate(self.line_bytes_max);
        self.buffer.put_u8(BROKEN);
        let data = self.buffer.split().freeze();
        let len = data.len() as u32;
        Some(Group { data, messages: vec![MessageRange { start: 0, len }], n_too_long: 0 })
    }

    fn split(&mut self, end: usize, lines: LineRanges) -> Option<Group> {
        room::hand_out(&mut self.buffer, end, lines.messages, &lines.cuts)
    }
}

/// The lines of one buffer: empty ones left out, carriage returns stripped, long ones cut.
#[derive(Debug)]
pub(crate) struct LineRanges {
    pub(crate) messages: Vec<MessageRange>,
    /// Where [`BROKEN`] must be written: inside lines over the limit, behind their prefix.
    pub(crate) cuts: Vec<usize>,
    /// Where the next line begins.
    start: usize,
    line_bytes_max: usize,
}

impl LineRanges {
    fn new(line_bytes_max: usize) -> Self {
        Self { messages: Vec::new(), cuts: Vec::new(), start: 0, line_bytes_max }
    }

    /// All lines of a text that is complete, or one more than `messages_max` of them. Its length must fit 32 bits.
    pub(crate) fn of(text: &[u8], line_bytes_max: usize, messages_max: usize) -> Self {
        let mut lines = Self::new(line_bytes_max);
        for end in memchr::memchr_iter(b'\n', text).chain([text.len()]) {
            lines.end_at(text, end);
            if lines.messages.len() > messages_max {
                break;
            }
        }
        lines
    }

    fn end_at(&mut self, text: &[u8], newline: usize) {
        let line = &text[self.start..newline];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.line_bytes_max {
            self.cut();
        } else if !line.is_empty() {
            self.messages.push(MessageRange { start: self.start as u32, len: line.len() as u32 });
        }
        self.start = newline + 1;
    }

    /// The line at `start` is longer than the limit.
    fn cut(&mut self) {
        self.cuts.push(self.start + self.line_bytes_max);
        self.messages.push(MessageRange { start: self.start as u32, len: self.line_bytes_max as u32 + 1 });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::room::READ_MIN;
    use super::*;

    fn texts(group: Option<Group>) -> Vec<Vec<u8>> {
        let Some(group) = group else { return Vec::new() };
        let of = |m: &MessageRange| group.data[m.start as usize..(m.start + m.len) as usize].to_vec();
        group.messages.iter().map(of).collect()
    }

    fn frame(stream: &[u8], cuts: &[usize], line_bytes_max: usize) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(line_bytes_max);
        let mut out = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain([stream.len()]) {
            lines.make_room(cut - at);
            lines.buffer().extend_from_slice(&stream[at..cut]);
            out.extend(texts(lines.take()));
            lines.release();
            at = cut;
        }
        out.extend(texts(lines.finish()));
        out
    }

    fn one_at_a_time(stream: &[u8], line_bytes_max: usize) -> Vec<Vec<u8>> {
        let line = |line: &[u8]| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let mut line = line.to_vec();
            if line.len() > line_bytes_max {
                line.truncate(line_bytes_max);
                line.push(BROKEN);
            }
            line
        };
        stream.split(|b| *b == b'\n').map(line).filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn strips_delimiters_and_skips_empty_lines() {
        let got = frame(b"a\r\n\r\n\nbc\nd\r", &[], 10);
        assert_eq!(got, [b"a".to_vec(), b"bc".to_vec(), b"d".to_vec()]);
    }

    #[test]
    fn a_long_line_is_its_prefix_and_the_broken_byte() {
        let got = frame(b"0123456789X\nok\n", &[], 10);
        assert_eq!(got, [b"0123456789\xFF".to_vec(), b"ok".to_vec()]);
        assert!(std::str::from_utf8(&got[0]).is_err());
    }

    #[test]
    fn a_long_line_holds_no_more_than_its_limit() {
        let mut lines = Lines::new(1000);
        let mut n_messages = 0;
        for _ in 0..10_000 {
            lines.make_room(READ_MIN);
            lines.buffer().extend_from_slice(&[b'x'; 500]);
            n_messages += texts(lines.take()).len();
            assert!(lines.pending() <= 1500 && lines.capacity() < 64 << 10);
        }
        lines.buffer().extend_from_slice(b"\nok\n");
        assert_eq!(texts(lines.take()), [b"ok".to_vec()]);
        assert_eq!(n_messages, 1);
    }

    #[test]
    fn a_cut_line_is_broken_and_its_rest_is_skipped() {
        let mut lines = Lines::new(100);
        lines.buffer().extend_from_slice(b"whole\nhal");
        assert_eq!(texts(lines.take()), [b"whole".to_vec()]);
        assert_eq!(texts(lines.cut()), [b"hal\xFF".to_vec()]);
        lines.buffer().extend_from_slice(b"f\nnext\n");
        assert_eq!(texts(lines.take()), [b"next".to_vec()]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_splitting_gives_the_same_messages(
            stream in proptest::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..200),
            cuts in proptest::collection::vec(0usize..200, 0..20),
            line_bytes_max in 1usize..12,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.sort_unstable();
            let whole = frame(&stream, &[], line_bytes_max);
            prop_assert_eq!(&whole, &frame(&stream, &cuts, line_bytes_max));
            prop_assert_eq!(&whole, &one_at_a_time(&stream, line_bytes_max));
        }
    }
}
