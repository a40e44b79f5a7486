//! Lumberjack's frames, versions 1 and 2: `VERSION KIND …`, numbers in 32 bits, big-endian.
//!
//! ```text
//! W count                                    so many events follow
//! D sequence n_pairs (len key len value)*    an event: a JSON object of strings
//! J sequence len JSON                        an event
//! C len zlib(frames)                         none of these is compressed again
//! ```
//!
//! Nothing is kept but the event that has begun, whatever lengths are announced.

use std::mem;

use crate::sources::net::collect::Collect;
use crate::sources::net::expand::{ExpandError, Expander};

/// No honest sender has a larger event, or compresses more at once.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// How much is expanded at a time.
const EXPAND_BYTES: usize = 32 << 10;

/// Bounds on frames.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// Events of one window.
    pub window_max: u32,
    /// Bytes that one compressed frame expands to.
    pub expanded_bytes_max: u64,
}

/// Why nothing that follows can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// What was compressed is not as it must be; says how.
    Compression(&'static str),
    /// Not a frame.
    Malformed,
    /// A compressed frame within another.
    Nested,
    /// It announces more than anybody sends.
    TooLong,
    /// It expands to more than is allowed.
    Expansion,
    /// A window larger than is allowed, or of none.
    Window,
}

impl FrameError {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Compression(reason) => reason,
            Self::Malformed => "malformed_frame",
            Self::Nested => "nested_compression",
            Self::TooLong => "frame_too_long",
            Self::Expansion => "expansion",
            Self::Window => "window_size",
        }
    }
}

impl From<ExpandError> for FrameError {
    fn from(error: ExpandError) -> Self {
        Self::Compression(error.reason())
    }
}

/// A frame that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// So many events follow, then the peer waits for an answer.
    Window {
        /// 1 or 2.
        version: u8,
        /// Events.
        count: u32,
    },
    /// An event, which is with the others.
    Event {
        /// 1 or 2.
        version: u8,
        /// How the peer counts it.
        sequence: u32,
    },
}

/// Reads frames, however they were cut into reads.
pub struct Frames {
    outer: Layer,
    compressed: Option<Compressed>,
    limits: FrameLimits,
}

/// A compressed frame that has begun.
struct Compressed {
    expander: Expander,
    inner: Layer,
    /// Bytes of the frame that have not come.
    left: usize,
    n_expanded: u64,
    expanded: Box<[u8]>,
    /// What of `expanded` has not been read.
    unread: std::ops::Range<usize>,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("outer", &self.outer).finish_non_exhaustive()
    }
}

impl Frames {
    /// Reads within these limits.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self { outer: Layer::default(), compressed: None, limits }
    }

    /// What it occupies, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.compressed.as_ref().map_or(0, |c| c.expander.memory() + c.expanded.len())
    }

    /// Takes some of `input`; returns how much, and a frame if one is complete. Events go to `into` as they come. To be
    /// called until it takes nothing and finds nothing.
    ///
    /// # Errors
    /// If it is no frame, or over a limit.
    pub fn step(&mut self, input: &[u8], into: &mut Collect) -> Result<(usize, Option<Frame>), FrameError> {
        loop {
            let Some(compressed) = &mut self.compressed else {
                let (n, found) = self.outer.step(input, into)?;
                return match found {
                    None => Ok((n, None)),
                    Some(Found::Frame(frame)) => Ok((n, Some(self.checked(frame)?))),
                    Some(Found::Compressed { len }) => {
                        self.compressed = Some(Compressed::new(len));
                        Ok((n, None))
                    }
                };
            };
            if !compressed.unread.is_empty() {
                let (n, found) =
                    compressed.inner.step(&compressed.expanded[compressed.unread.clone()], into)?;
                compressed.unread.start += n;
                match found {
                    None => continue,
                    Some(Found::Frame(frame)) => return Ok((0, Some(self.checked(frame)?))),
                    Some(Found::Compressed { .. }) => return Err(FrameError::Nested),
                }
            }
            let now = compressed.left.min(input.len());
            let step = compressed.expander.step(&input[..now], &mut compressed.expanded)?;
            compressed.left -= step.consumed;
            compressed.unread = 0..step.produced;
            compressed.n_expanded += step.produced as u64;
            if compressed.n_expanded > self.limits.expanded_bytes_max {
                return Err(FrameError::Expansion);
            }
            if step.consumed > 0 {
                return Ok((step.consumed, None));
            }
            if step.produced == 0 {
                if compressed.left > 0 {
                    return Ok((0, None));
                }
                compressed.expander.finish()?;
                if !compressed.inner.is_between() {
                    return Err(FrameError::Malformed);
                }
                self.compressed = None;
            }
        }
    }

    fn checked(&self, frame: Frame) -> Result<Frame, FrameError> {
        match frame {
            Frame::Window { count, .. } if count == 0 || count > self.limits.window_max => {
                Err(FrameError::Window)
            }
            frame => Ok(frame),
        }
    }
}

impl Compressed {
    fn new(len: usize) -> Self {
        Self {
            expander: Expander::zlib(),
            inner: Layer::default(),
            left: len,
            n_expanded: 0,
            expanded: vec![0; EXPAND_BYTES].into(),
            unread: 0..0,
        }
    }
}

/// What was found in a layer.
enum Found {
    Frame(Frame),
    Compressed { len: usize },
}

/// Where in a frame the next byte belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Version,
    Kind,
    Number(Number),
    Json,
    Key,
    Value,
}

/// Which number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Count,
    Compressed,
    /// Of an event with pairs or JSON.
    Sequence {
        pairs: bool,
    },
    Pairs,
    Json,
    Key,
    Value,
}

/// Frames, compressed or not.
#[derive(Debug, Default)]
struct Layer {
    part: Part,
    version: u8,
    sequence: u32,
    number: u32,
    n_digits: u8,
    /// What is left of a text.
    left: usize,
    pairs_left: u32,
    /// The event's bytes so far, pairs alone.
    n_bytes: usize,
    /// No pair has been written yet.
    first: bool,
}

impl Layer {
    fn is_between(&self) -> bool {
        self.part == Part::Version
    }

    fn step(&mut self, input: &[u8], into: &mut Collect) -> Result<(usize, Option<Found>), FrameError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if matches!(self.part, Part::Json | Part::Key | Part::Value) {
                let now = self.left.min(input.len() - at);
                let text = &input[at..at + now];
                match self.part {
                    Part::Json => into.put(text),
                    _ => put_escaped(text, into),
                }
                at += now;
                self.left -= now;
                if self.left == 0
                    && let Some(frame) = self.end_text(into)
                {
                    return Ok((at, Some(frame)));
                }
                continue;
            }
            at += 1;
            if let Some(found) = self.head(byte, into)? {
                return Ok((at, Some(found)));
            }
        }
        Ok((at, None))
    }

    fn head(&mut self, byte: u8, into: &mut Collect) -> Result<Option<Found>, FrameError> {
        match self.part {
            Part::Version => {
                self.version = match byte {
                    b'1' => 1,
                    b'2' => 2,
                    _ => return Err(FrameError::Malformed),
                };
                self.part = Part::Kind;
            }
            Part::Kind => {
                self.expect(match byte {
                    b'W' => Number::Count,
                    b'C' => Number::Compressed,
                    b'D' => Number::Sequence { pairs: true },
                    b'J' => Number::Sequence { pairs: false },
                    _ => return Err(FrameError::Malformed),
                });
            }
            Part::Number(number) => {
                self.number = self.number << 8 | u32::from(byte);
                self.n_digits += 1;
                if self.n_digits == 4 {
                    return self.end_number(number, into);
                }
            }
            Part::Json | Part::Key | Part::Value => {}
        }
        Ok(None)
    }

    fn expect(&mut self, number: Number) {
        self.part = Part::Number(number);
        self.number = 0;
        self.n_digits = 0;
    }

    fn end_number(&mut self, which: Number, into: &mut Collect) -> Result<Option<Found>, FrameError> {
        let number = self.number;
        let text = |part| if number as usize > FRAME_BYTES_MAX { Err(FrameError::TooLong) } else { Ok(part) };
        match which {
            Number::Count => {
                self.part = Part::Version;
                return Ok(Some(Found::Frame(Frame::Window { version: self.version, count: number })));
            }
            Number::Compressed => {
                self.part = text(Part::Version)?;
                return Ok(Some(Found::Compressed { len: number as usize }));
            }
            Number::Sequence { pairs } => {
                self.sequence = number;
                self.expect(if pairs { Number::Pairs } else { Number::Json });
                return Ok(None);
            }
            Number::Pairs => {
                self.pairs_left = number;
                self.n_bytes = 0;
                self.first = true;
                into.put(b"{");
                return Ok(self.next_pair(into));
            }
            Number::Json => self.part = text(Part::Json)?,
            Number::Key => {
                self.part = text(Part::Key)?;
                into.put(if mem::take(&mut self.first) { b"\"" } else { b",\"" });
            }
            Number::Value => {
                self.part = text(Part::Value)?;
                into.put(b"\":\"");
            }
        }
        self.left = number as usize;
        self.n_bytes = self.n_bytes.saturating_add(8 + self.left);
        if matches!(which, Number::Key | Number::Value) && self.n_bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        Ok(if self.left == 0 { self.end_text(into) } else { None })
    }

    fn end_text(&mut self, into: &mut Collect) -> Option<Found> {
        match self.part {
            Part::Json => Some(self.end_event(into)),
            Part::Key => {
                self.expect(Number::Value);
                None
            }
            _ => {
                into.put(b"\"");
                self.pairs_left -= 1;
                self.next_pair(into)
            }
        }
    }

    fn next_pair(&mut self, into: &mut Collect) -> Option<Found> {
        if self.pairs_left > 0 {
            self.expect(Number::Key);
            return None;
        }
        into.put(b"}");
        Some(self.end_event(into))
    }

    fn end_event(&mut self, into: &mut Collect) -> Found {
        into.end_message();
        self.part = Part::Version;
        Found::Frame(Frame::Event { version: self.version, sequence: self.sequence })
    }
}

/// Text within a JSON string. What is not UTF-8 stays so: the message becomes a reject that shows it.
fn put_escaped(text: &[u8], into: &mut Collect) {
    let mut start = 0;
    for (at, byte) in text.iter().enumerate() {
        if *byte >= b' ' && !matches!(byte, b'"' | b'\\') {
            continue;
        }
        into.put(&text[start..at]);
        start = at + 1;
        match byte {
            b'"' => into.put(b"\\\""),
            b'\\' => into.put(b"\\\\"),
            b'\n' => into.put(b"\\n"),
            b'\r' => into.put(b"\\r"),
            b'\t' => into.put(b"\\t"),
            _ => into.put(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    into.put(&text[start..]);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: FrameLimits = FrameLimits { window_max: 1000, expanded_bytes_max: 1 << 20 };

    fn frame(head: &[u8], numbers: &[u32], rest: &[u8]) -> Vec<u8> {
        let numbers = numbers.iter().flat_map(|n| n.to_be_bytes());
        head.iter().copied().chain(numbers).chain(rest.iter().copied()).collect()
    }

    fn json(sequence: u32, text: &str) -> Vec<u8> {
        frame(b"2J", &[sequence, text.len() as u32], text.as_bytes())
    }

    fn pairs(sequence: u32, pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let texts = pairs.iter().flat_map(|(key, value)| [*key, *value]);
        let texts: Vec<u8> = texts.flat_map(|text| frame(b"", &[text.len() as u32], text)).collect();
        frame(b"1D", &[sequence, pairs.len() as u32], &texts)
    }

    fn compressed(frames: &[u8]) -> Vec<u8> {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(frames).unwrap();
        let zlib = zlib.finish().unwrap();
        frame(b"2C", &[zlib.len() as u32], &zlib)
    }

    fn read(stream: &[u8], cuts: &[usize]) -> (Vec<Frame>, Vec<Vec<u8>>, Option<FrameError>) {
        let (mut frames, mut into) = (Frames::new(LIMITS), Collect::new(100));
        let (mut found, mut at, mut failed) = (Vec::new(), 0, None);
        'all: for cut in cuts.iter().copied().chain([stream.len()]) {
            loop {
                match frames.step(&stream[at..cut], &mut into) {
                    Ok((0, None)) => break,
                    Ok((n, frame)) => {
                        at += n;
                        found.extend(frame);
                    }
                    Err(error) => {
                        failed = Some(error);
                        break 'all;
                    }
                }
            }
            assert!(at == cut && frames.memory() < 256 << 10);
        }
        let group = into.take();
        let of = |m: &logdrive_schemas::MessageRange| {
            group.data[m.start as usize..(m.start + m.len) as usize].to_vec()
        };
        (found, group.messages.iter().map(of).collect(), failed)
    }

    fn window(version: u8, count: u32) -> Frame {
        Frame::Window { version, count }
    }

    fn event(version: u8, sequence: u32) -> Frame {
        Frame::Event { version, sequence }
    }

    #[test]
    fn json_compressed_or_not() {
        let events = [json(1, "{\"a\":1}"), json(2, ""), json(3, "{}")].concat();
        for events in [events.clone(), compressed(&events)] {
            let (frames, messages, failed) = read(&[frame(b"2W", &[3], b""), events].concat(), &[]);
            assert_eq!(failed, None);
            assert_eq!(frames, [window(2, 3), event(2, 1), event(2, 2), event(2, 3)]);
            assert_eq!(messages, [b"{\"a\":1}".to_vec(), b"{}".to_vec()]);
        }
    }

    #[test]
    fn pairs_become_an_object() {
        let odd = &b"line \"1\"\\\n\r\t\x01 \xC3\xA9"[..];
        let stream =
            [pairs(7, &[(b"line", odd), (b"", b"")]), pairs(8, &[]), pairs(9, &[(b"a", b"\xFF")])].concat();
        let (frames, messages, failed) = read(&stream, &[]);
        assert_eq!(failed, None);
        assert_eq!(frames, [event(1, 7), event(1, 8), event(1, 9)]);
        let object: serde_json::Value = serde_json::from_slice(&messages[0]).unwrap();
        assert_eq!(object, serde_json::json!({"line": std::str::from_utf8(odd).unwrap(), "": ""}));
        assert_eq!(messages[1..], [b"{}".to_vec(), b"{\"a\":\"\xFF\"}".to_vec()]);
    }

    #[test]
    fn an_event_over_the_limit_is_its_prefix() {
        let long = format!("\"{}\"", "x".repeat(200));
        let (frames, messages, failed) = read(&[json(1, &long), json(2, "{}")].concat(), &[]);
        assert_eq!((frames, failed), (vec![event(2, 1), event(2, 2)], None));
        assert_eq!(messages[0].len(), 101);
        assert_eq!((messages[0][100], &messages[1]), (0xFF, &b"{}".to_vec()));
    }

    #[test]
    fn hostile_frames_are_errors() {
        let huge = u32::MAX;
        let bomb = compressed(&json(1, &"x".repeat(2 << 20)));
        let mut cut = compressed(&json(1, "{}"));
        let shorter = cut.len() as u32 - 7;
        cut[2..6].copy_from_slice(&shorter.to_be_bytes());
        for (stream, error) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), FrameError::Malformed),
            (b"3W".to_vec(), FrameError::Malformed),
            (b"2A".to_vec(), FrameError::Malformed),
            (b"\x16\x03\x01".to_vec(), FrameError::Malformed),
            (frame(b"2W", &[0], b""), FrameError::Window),
            (frame(b"2W", &[1001], b""), FrameError::Window),
            (frame(b"2W", &[huge], b""), FrameError::Window),
            (frame(b"2J", &[1, huge], b""), FrameError::TooLong),
            (frame(b"2C", &[huge], b""), FrameError::TooLong),
            (frame(b"1D", &[1, huge, huge], b""), FrameError::TooLong),
            (frame(b"1D", &[1, 1, 0, huge], b""), FrameError::TooLong),
            (compressed(&compressed(&json(1, "{}"))), FrameError::Nested),
            (compressed(&json(1, "{}")[..8]), FrameError::Malformed),
            (compressed(&frame(b"2W", &[huge], b"")), FrameError::Window),
            (bomb, FrameError::Expansion),
            (frame(b"2C", &[5], b"hello"), FrameError::Compression("corrupt_compression")),
            (cut, FrameError::Compression("truncated_compression")),
        ] {
            assert_eq!(
                read(&stream, &[]).2,
                Some(error),
                "{}",
                stream[..stream.len().min(40)].escape_ascii()
            );
        }
    }

    #[test]
    fn announced_lengths_take_no_memory() {
        let mut frames = Frames::new(LIMITS);
        let mut into = Collect::new(100);
        let announced = frame(b"2J", &[1, 60 << 20], &[b'x'; 1000]);
        assert_eq!(frames.step(&announced, &mut into), Ok((announced.len(), None)));
        for _ in 0..1000 {
            assert_eq!(frames.step(&[b'x'; 1000], &mut into), Ok((1000, None)));
        }
        assert!(into.memory() < 1024);
    }

    proptest! {
        #[test]
        fn any_splitting_gives_the_same_frames(
            parts in proptest::collection::vec(prop_oneof![
                (1u32..2000).prop_map(|n| frame(b"2W", &[n], b"")),
                ("[a-z]{0,150}", 1u32..9).prop_map(|(text, n)| json(n, &text)),
                ("[a-z\"\n]{0,80}", "[a-z]{0,9}").prop_map(|(value, key)| pairs(1, &[(key.as_bytes(), value.as_bytes())])),
                proptest::collection::vec("[a-z]{0,50}", 0..30)
                    .prop_map(|texts| compressed(&texts.iter().flat_map(|text| json(1, text)).collect::<Vec<_>>())),
                Just(b"2".to_vec()),
            ], 0..10),
            cuts in proptest::collection::vec(0usize..1000, 0..20),
        ) {
            let stream = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(read(&stream, &[]), read(&stream, &cuts));
        }

        #[test]
        fn nothing_panics(stream in proptest::collection::vec(any::<u8>(), 0..300), kind in prop_oneof![Just(b"2J"), Just(b"1D"), Just(b"2C")]) {
            read(&[&kind[..], &stream].concat(), &[]);
        }
    }
}
