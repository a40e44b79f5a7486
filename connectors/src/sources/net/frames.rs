//! Framing as senders of syslog do it (RFC 6587): a message's length before it, or an end behind it.
//!
//! Without copying, and with the same mark for messages that are not whole as in [`super::lines`].

use bytes::{BufMut, BytesMut};
use logdrive_schemas::MessageRange;

use super::lines::{BROKEN, Group};
use super::room;

/// A longer number is no length.
const DIGITS_MAX: usize = 8;

/// Cuts a stream of bytes into frames. How the stream was cut into reads makes no difference.
///
/// A frame that begins with a number of up to eight digits, a space and `<` has its length before it. Any other one
/// ends with LF, CRLF or NUL; that is what lets messages that begin with a year pass. On a connection whose first
/// frame was counted, `<` is not asked for. What lies between frames (LF, CR, NUL), and what a counted frame ends with of
/// it, is left out.
#[derive(Debug)]
pub struct Frames {
    /// Received and not yet handed over: the beginning of a frame.
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no end of a line.
    n_scanned: usize,
    /// The rest of a frame of which a prefix was handed over.
    skip: Skip,
    /// Whether frames without a length are errors.
    counted_only: bool,
    /// Whether the first frame was counted, once it is known.
    first_counted: Option<bool>,
    lost: bool,
    message_bytes_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    Nothing,
    Bytes(usize),
    Line,
}

/// How a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// Too little is there to tell.
    Open,
    Counted {
        head_len: usize,
        len: usize,
    },
    Line,
    Malformed,
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0)
}

impl Frames {
    /// Counted frames and lines, of at most `message_bytes_max` bytes.
    #[must_use]
    pub fn syslog(message_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            n_scanned: 0,
            skip: Skip::Nothing,
            counted_only: false,
            first_counted: None,
            lost: false,
            message_bytes_max,
        }
    }

    /// Counted frames alone.
    #[must_use]
    pub fn counted(message_bytes_max: usize) -> Self {
        Self { counted_only: true, ..Self::syslog(message_bytes_max) }
    }

    /// Where to append what was received; then call [`Self::take`].
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes wait for the rest of their frame.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// What the buffer occupies.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    pub(crate) fn make_room(&mut self, want: usize) {
        room::make_room(&mut self.buffer, want, self.message_bytes_max);
    }

    pub(crate) fn room_for(&self, want: usize) -> usize {
        room::room_for(&self.buffer, want, self.message_bytes_max)
    }

    pub(crate) fn release(&mut self) {
        room::release(&mut self.buffer);
    }

    /// Nothing that follows can be understood: a frame began with no length where one must be.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The messages that are complete, if any.
    pub fn take(&mut self) -> Option<Group> {
        let mut found = Found::default();
        let mut at = 0;
        let mut in_line = false;
        loop {
            at = self.skipped(at);
            at += self.buffer[at..].iter().take_while(|byte| is_separator(**byte)).count();
            if self.buffer.len() == at || self.lost {
                break;
            }
            let max = self.message_bytes_max;
            let n_there = self.buffer.len() - at;
            match self.head(&self.buffer[at..]) {
                Head::Open => break,
                Head::Malformed => self.lost = true,
                Head::Counted { head_len, len } => {
                    let start = at + head_len;
                    if len > max && n_there - head_len > max {
                        found.cut(start, max);
                        at = start + max + 1;
                        self.skip = Skip::Bytes(len - max - 1);
                    } else if len <= max && n_there - head_len >= len {
                        found.push(&self.buffer, start, start + len);
                        at = start + len;
                    } else {
                        break;
                    }
                    self.first_counted.get_or_insert(true);
                }
                Head::Line => {
                    let from = if at == 0 { self.n_scanned } else { at };
                    if let Some(n) = memchr::memchr2(b'\n', 0, &self.buffer[from..]) {
                        let line = &self.buffer[at..from + n];
                        let line = line.strip_suffix(b"\r").unwrap_or(line);
                        if line.len() > max {
                            found.cut(at, max);
                        } else {
                            found.push(&self.buffer, at, at + line.len());
                        }
                        at = from + n + 1;
                    } else if n_there >= max + 2 {
                        // One more byte may be a carriage return; two more are too many whatever they are.
                        found.cut(at, max);
                        at = self.buffer.len();
                        self.skip = Skip::Line;
                    } else {
                        in_line = true;
                        break;
                    }
                    self.first_counted.get_or_insert(false);
                }
            }
        }
        let group = room::hand_out(&mut self.buffer, at, found.messages, &found.cuts);
        self.n_scanned = if in_line { self.buffer.len() } else { 0 };
        group
    }

    /// The last frame, at the end of the stream, is whole without an end if none was due. Otherwise it is left to
    /// [`Self::cut`].
    pub fn finish(&mut self) -> Option<Group> {
        if self.lost || self.counted_only || self.skip != Skip::Nothing || self.buffer.is_empty() {
            return None;
        }
        if let Head::Counted { .. } = self.head(&self.buffer) {
            return None;
        }
        let end = self.buffer.len();
        let line = self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer).len();
        let mut found = Found::default();
        if line > self.message_bytes_max {
            found.cut(0, self.message_bytes_max);
        } else {
            found.push(&self.buffer, 0, line);
        }
        self.n_scanned = 0;
        room::hand_out(&mut self.buffer, end, found.messages, &found.cuts)
    }

    /// Gives up on the frame that has begun: hands over its prefix, marked as broken, and skips its rest.
    pub fn cut(&mut self) -> Option<Group> {
        if self.skip != Skip::Nothing || self.buffer.is_empty() {
            return None;
        }
        let start = match self.head(&self.buffer) {
            Head::Counted { head_len, len } => {
                self.skip = Skip::Bytes(len - (self.buffer.len() - head_len));
                self.first_counted.get_or_insert(true);
                head_len
            }
            _ => {
                self.skip = Skip::Line;
                0
            }
        };
        self.n_scanned = 0;
        self.buffer.truncate(start + self.message_bytes_max);
        self.buffer.put_u8(BROKEN);
        let data = self.buffer.split().freeze();
        let messages = vec![MessageRange { start: start as u32, len: (data.len() - start) as u32 }];
        Some(Group { data, messages, n_too_long: 0 })
    }

    /// Where the frame after the one that is skipped begins, or the end of what is there.
    fn skipped(&mut self, at: usize) -> usize {
        let rest = &self.buffer[at..];
        match self.skip {
            Skip::Nothing => at,
            Skip::Bytes(n) => {
                let now = n.min(rest.len());
                self.skip = if now < n { Skip::Bytes(n - now) } else { Skip::Nothing };
                at + now
            }
            Skip::Line => match memchr::memchr2(b'\n', 0, rest) {
                Some(end) => {
                    self.skip = Skip::Nothing;
                    at + end + 1
                }
                None => self.buffer.len(),
            },
        }
    }

    fn head(&self, text: &[u8]) -> Head {
        let otherwise = if self.counted_only { Head::Malformed } else { Head::Line };
        let n_digits = text.iter().take(DIGITS_MAX + 1).take_while(|byte| byte.is_ascii_digit()).count();
        if n_digits == 0 || n_digits > DIGITS_MAX || text[0] == b'0' {
            return otherwise;
        }
        match text.get(n_digits) {
            None => return Head::Open,
            Some(b' ') => {}
            Some(_) => return otherwise,
        }
        if !self.counted_only && self.first_counted != Some(true) {
            match text.get(n_digits + 1) {
                None => return Head::Open,
                Some(b'<') => {}
                Some(_) => return Head::Line,
            }
        }
        let len = text[..n_digits].iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
        Head::Counted { head_len: n_digits + 1, len }
    }
}

/// The messages found in a buffer.
#[derive(Default)]
struct Found {
    messages: Vec<MessageRange>,
    cuts: Vec<usize>,
}

impl Found {
    /// A message without what it ends with; none if nothing is left.
    fn push(&mut self, buffer: &[u8], start: usize, end: usize) {
        let n_trailing = buffer[start..end].iter().rev().take_while(|byte| is_separator(**byte)).count();
        let len = end - start - n_trailing;
        if len > 0 {
            self.messages.push(MessageRange { start: start as u32, len: len as u32 });
        }
    }

    /// The message at `start` is longer than `max`.
    fn cut(&mut self, start: usize, max: usize) {
        self.cuts.push(start + max);
        self.messages.push(MessageRange { start: start as u32, len: max as u32 + 1 });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(group: Option<Group>) -> Vec<Vec<u8>> {
        let Some(group) = group else { return Vec::new() };
        let of = |m: &MessageRange| group.data[m.start as usize..(m.start + m.len) as usize].to_vec();
        group.messages.iter().map(of).collect()
    }

    fn frame_with(mut frames: Frames, stream: &[u8], cuts: &[usize]) -> (Vec<Vec<u8>>, bool) {
        let mut out = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain([stream.len()]) {
            frames.make_room(cut - at);
            frames.buffer().extend_from_slice(&stream[at..cut]);
            out.extend(texts(frames.take()));
            frames.release();
            at = cut;
        }
        out.extend(texts(frames.finish()));
        out.extend(texts(frames.cut()));
        (out, frames.is_lost())
    }

    fn strings(messages: Vec<Vec<u8>>) -> Vec<String> {
        messages.into_iter().map(|m| String::from_utf8(m).expect("whole")).collect()
    }

    fn syslog(stream: &[u8]) -> Vec<String> {
        strings(frame_with(Frames::syslog(100), stream, &[]).0)
    }

    #[test]
    fn counted_frames_may_hold_line_ends() {
        assert_eq!(syslog(b"7 <1>a\nbc8 <2>defgh9 <3>xyz\r\n\0"), ["<1>a\nbc", "<2>defgh", "<3>xyz"]);
    }

    #[test]
    fn lines_end_with_lf_crlf_or_nul_and_need_no_priority() {
        let stream = b"<1>a\r\n\n\0<2>b\0<3>c\n2026-11-21 no priority\n2026 Nov 21 10:00:00 h t: x\nlast";
        let lines = ["<1>a", "<2>b", "<3>c", "2026-11-21 no priority", "2026 Nov 21 10:00:00 h t: x", "last"];
        assert_eq!(syslog(stream), lines);
    }

    #[test]
    fn both_ways_may_alternate_and_a_counted_connection_needs_no_priority() {
        assert_eq!(syslog(b"4 <1>a<2>line\n5 <3>bc\n"), ["<1>a", "<2>line", "<3>bc"]);
        assert_eq!(syslog(b"4 <1>a5 hello3 abc"), ["<1>a", "hello", "abc"]);
    }

    #[test]
    fn a_number_too_long_is_no_length() {
        assert_eq!(syslog(b"999999999 <1>a\nb\n"), ["999999999 <1>a", "b"]);
        for hostile in
            [&b"999999999 a"[..], b"99999999999999999999 a", b"-1 a", b"0 a", b"01 a", b"<1>a\n", b"1x"]
        {
            let (messages, lost) = frame_with(Frames::counted(100), &[b"2 ok", hostile].concat(), &[]);
            assert!(lost, "{hostile:?}");
            assert_eq!(messages[0], b"ok");
            assert!(messages[1].ends_with(b"\xFF") && messages.len() == 2);
        }
    }

    #[test]
    fn a_message_over_the_limit_is_its_prefix_and_its_rest_is_skipped() {
        let (messages, _) = frame_with(Frames::syslog(10), b"15 <1>345678901234<2>ok\n13 <3>", &[]);
        assert_eq!(messages, [b"<1>3456789\xFF".to_vec(), b"<2>ok".to_vec(), b"<3>\xFF".to_vec()]);
    }

    #[test]
    fn a_hostile_length_takes_no_memory() {
        let mut frames = Frames::syslog(1000);
        frames.buffer().extend_from_slice(b"99999999 <1>");
        let mut n_messages = 0;
        for _ in 0..10_000 {
            frames.make_room(room::READ_MIN);
            frames.buffer().extend_from_slice(&[b'x'; 500]);
            n_messages += texts(frames.take()).len();
            assert!(frames.pending() <= 1600 && frames.capacity() < 64 << 10);
        }
        assert_eq!(n_messages, 1);
    }

    #[test]
    fn what_is_cut_off_is_broken() {
        let mut frames = Frames::syslog(100);
        frames.buffer().extend_from_slice(b"10 <1>a");
        assert!(frames.take().is_none() && frames.finish().is_none());
        assert_eq!(texts(frames.cut()), [b"<1>a\xFF".to_vec()]);
        frames.buffer().extend_from_slice(b"567890<2>next\n");
        assert_eq!(texts(frames.take()), [b"<2>next".to_vec()]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_splitting_gives_the_same_messages(
            stream in proptest::collection::vec(prop_oneof![
                Just("a"), Just("\n"), Just("\r\n"), Just("\0"), Just("1"), Just("12 <"), Just("3 "), Just("<1>"), Just("5 <1>ab"), Just("20 <1>"), Just("999999999 "),
            ], 0..60),
            cuts in proptest::collection::vec(0usize..200, 0..20),
            message_bytes_max in 1usize..16,
            counted_only in any::<bool>(),
        ) {
            let stream = stream.concat().into_bytes();
            let frames = || if counted_only { Frames::counted(message_bytes_max) } else { Frames::syslog(message_bytes_max) };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.sort_unstable();
            let (mut whole, whole_lost) = frame_with(frames(), &stream, &[]);
            let (mut pieces, lost) = frame_with(frames(), &stream, &cuts);
            prop_assert_eq!(whole_lost, lost);
            if lost {
                // How much of what cannot be understood was there, is a matter of chance.
                whole.pop();
                pieces.pop();
            }
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn counted_messages_come_out_as_they_went_in(
            messages in proptest::collection::vec("<1>[a-z\n]{0,20}[a-z]", 1..20),
            trailer in prop_oneof![Just(""), Just("\n"), Just("\0")],
        ) {
            let stream: String = messages.iter().map(|m| format!("{} {m}{trailer}", m.len())).collect();
            prop_assert_eq!(syslog(stream.as_bytes()), messages);
        }
    }
}
