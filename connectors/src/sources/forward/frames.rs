//! The protocol's frames, each one MessagePack array:
//!
//! ```text
//! [tag, time, record, option]                   Message
//! [tag, [[time, record]*], option]              Forward
//! [tag, bytes of (time, record)*, option]       PackedForward, and CompressedPackedForward
//! ```
//!
//! `option` may ask for an answer (`chunk`) and say how the bytes are compressed.

use super::msgpack::{Head, Malformed, Reader, event_time, write_members, write_text};
use crate::sources::net::collect::Collect;
use crate::sources::net::expand::Expander;
use crate::sources::net::lines::BROKEN;

/// How much is expanded at a time.
const EXPAND_BYTES: usize = 64 << 10;

/// How records become messages.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The member that the tag becomes; none if empty.
    pub tag_key: String,
    /// The member that the time becomes; none if empty.
    pub time_key: String,
    /// What compressed bytes may expand to.
    pub expanded_bytes_max: usize,
}

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// What was compressed is not as it must be; says how.
    Compression(&'static str),
    /// It is none.
    Malformed,
}

impl FrameError {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Compression(reason) => reason,
            Self::Malformed => "malformed_frame",
        }
    }
}

impl From<Malformed> for FrameError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Events, one after the other.
#[derive(Debug)]
enum Events<'a> {
    /// One: time and record.
    One(Reader<'a>),
    /// So many arrays.
    Listed(usize, Reader<'a>),
    /// Arrays until the end.
    Packed(Reader<'a>),
    /// The same, expanded.
    Expanded(Vec<u8>, usize),
}

/// A frame that was taken apart. Its events are read one at a time.
#[derive(Debug)]
pub struct Frame<'a> {
    tag: &'a [u8],
    events: Events<'a>,
    chunk: Option<&'a [u8]>,
    /// Events that were none.
    n_malformed: u64,
}

/// What `option` says.
#[derive(Default)]
struct Options<'a> {
    chunk: Option<&'a [u8]>,
    compressed: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let mut options = Self::default();
        match reader.head()? {
            Head::Nil => {}
            Head::Map(n) => {
                for _ in 0..n {
                    let mut key = Reader(reader.value()?);
                    let mut value = Reader(reader.value()?);
                    match key.text() {
                        Ok(b"chunk") => options.chunk = Some(value.text()?),
                        Ok(b"compressed") => options.compressed = Some(value.text()?),
                        _ => {}
                    }
                }
            }
            _ => return Err(Malformed::Broken),
        }
        Ok(options)
    }
}

impl<'a> Frame<'a> {
    /// Takes a whole frame apart; `None` for `nil`, by which a peer shows that it lives.
    ///
    /// # Errors
    /// If it is no frame, or what it holds does not expand.
    pub fn read(bytes: &'a [u8], shape: &Shape) -> Result<Option<Self>, FrameError> {
        let mut reader = Reader(bytes);
        let n = match reader.head()? {
            Head::Nil => return Ok(None),
            Head::Array(n @ 2..=4) => n,
            _ => return Err(FrameError::Malformed),
        };
        let tag = reader.text()?;
        let entries = Reader(reader.value()?);
        let mut after = entries;
        let (events, n_taken) = match after.head()? {
            Head::Array(n) => (Events::Listed(n, after), 2),
            Head::Text(_) => (Events::Packed(Reader(Reader(entries.0).text()?)), 2),
            _ => {
                let start = bytes.len() - reader.0.len() - entries.0.len();
                reader.value()?;
                (Events::One(Reader(&bytes[start..])), 3)
            }
        };
        let options = match n - n_taken.min(n) {
            0 if n_taken <= n => Options::default(),
            1 => Options::read(&mut reader)?,
            _ => return Err(FrameError::Malformed),
        };
        let events = match (events, options.compressed) {
            (Events::Packed(packed), Some(how)) if how != b"text" => {
                let expander = match how {
                    b"gzip" => Expander::gzip(),
                    b"zstd" => Expander::zstd(),
                    _ => return Err(FrameError::Compression("unknown_compression")),
                };
                Events::Expanded(expanded(expander, packed.0, shape.expanded_bytes_max)?, 0)
            }
            (events, _) => events,
        };
        Ok(Some(Self { tag, events, chunk: options.chunk, n_malformed: 0 }))
    }

    /// What the peer waits to be told, if it does.
    #[must_use]
    pub fn chunk(&self) -> Option<&'a [u8]> {
        self.chunk
    }

    /// Events that were none, and became what every decoder rejects.
    #[must_use]
    pub fn n_malformed(&self) -> u64 {
        self.n_malformed
    }

    /// What it occupies besides its bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        if let Events::Expanded(bytes, _) = &self.events { bytes.capacity() } else { 0 }
    }

    /// Adds the next event as a message; false if there is none.
    pub fn next(&mut self, shape: &Shape, scratch: &mut Vec<u8>, into: &mut Collect) -> bool {
        scratch.clear();
        let (before, written) = match &mut self.events {
            Events::One(Reader(b"")) | Events::Listed(0, _) | Events::Packed(Reader(b"")) => return false,
            Events::Expanded(bytes, at) if *at == bytes.len() => return false,
            Events::One(reader) => {
                let before = reader.0;
                let written = write_event(self.tag, reader, shape, scratch);
                reader.0 = b"";
                (before, written)
            }
            Events::Listed(n, reader) => {
                *n -= 1;
                let before = reader.0;
                let written = write_entry(self.tag, reader, shape, scratch);
                if written.is_err() {
                    *n = 0;
                }
                (before, written)
            }
            Events::Packed(reader) => {
                let before = reader.0;
                let written = write_entry(self.tag, reader, shape, scratch);
                if written.is_err() {
                    reader.0 = b"";
                }
                (before, written)
            }
            Events::Expanded(bytes, at) => {
                let before = &bytes[*at..];
                let mut reader = Reader(before);
                let written = write_entry(self.tag, &mut reader, shape, scratch);
                *at = if written.is_err() { bytes.len() } else { bytes.len() - reader.0.len() };
                (before, written)
            }
        };
        if written.is_err() {
            // Where the next one begins cannot be known: all that is left is shown as one message that is not whole.
            self.n_malformed += 1;
            scratch.clear();
            scratch.extend_from_slice(before);
            scratch.push(BROKEN);
        }
        into.put(scratch);
        into.end_message();
        true
    }
}

fn expanded(mut expander: Expander, input: &[u8], max: usize) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::new();
    let mut piece = vec![0; EXPAND_BYTES];
    let mut at = 0;
    loop {
        let step =
            expander.step(&input[at..], &mut piece).map_err(|e| FrameError::Compression(e.reason()))?;
        at += step.consumed;
        if out.len() + step.produced > max {
            return Err(FrameError::Compression("expansion"));
        }
        out.extend_from_slice(&piece[..step.produced]);
        if step.consumed == 0 && step.produced == 0 {
            expander.finish().map_err(|e| FrameError::Compression(e.reason()))?;
            return Ok(out);
        }
    }
}

/// Whether a record has a member of this name already.
fn has_member(mut reader: Reader<'_>, n: usize, key: &[u8]) -> bool {
    for _ in 0..n {
        // What says that it has billions of members may have few: nothing is looked for behind the last.
        let (Ok(name), Ok(_)) = (reader.value(), reader.value()) else { return false };
        if Reader(name).text() == Ok(key) {
            return true;
        }
    }
    false
}

/// `[time, record]`, in which newer senders put metadata beside the time.
fn write_entry(
    tag: &[u8],
    reader: &mut Reader<'_>,
    shape: &Shape,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    if reader.array()? != 2 {
        return Err(Malformed::Broken);
    }
    write_event(tag, reader, shape, out)
}

fn write_event(
    tag: &[u8],
    reader: &mut Reader<'_>,
    shape: &Shape,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let mut time = Reader(reader.value()?);
    let mut stamp = time.head()?;
    if let Head::Array(2) = stamp {
        // `[[time, metadata], record]`, as Fluent Bit 2.1 and later keep it.
        stamp = time.head()?;
    }
    let time = match stamp {
        Head::UInt(seconds) => i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok()),
        Head::Int(seconds) => jiff::Timestamp::from_second(seconds).ok(),
        Head::Float(seconds) => jiff::Timestamp::from_microsecond((seconds * 1e6) as i64).ok(),
        Head::Ext(kind, len) => event_time(kind, time.bytes(len)?),
        _ => None,
    };
    let Head::Map(n) = reader.head()? else { return Err(Malformed::Broken) };
    out.push(b'{');
    let mut follows = false;
    for (key, value) in [
        (&shape.time_key, time.map(|time| time.to_string().into_bytes())),
        (&shape.tag_key, Some(tag.to_vec())),
    ] {
        let has_it = || has_member(*reader, n, key.as_bytes());
        let Some(value) = value.filter(|_| !key.is_empty() && !has_it()) else { continue };
        if std::mem::replace(&mut follows, true) {
            out.push(b',');
        }
        write_text(key.as_bytes(), out);
        out.push(b':');
        write_text(&value, out);
    }
    write_members(reader, n, out, 0, follows)?;
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rmpv::Value;

    use super::*;

    fn shape() -> Shape {
        Shape { tag_key: "tag".into(), time_key: "@timestamp".into(), expanded_bytes_max: 1 << 20 }
    }

    fn packed(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    fn map(members: &[(&str, Value)]) -> Value {
        Value::Map(members.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect())
    }

    fn entry(n: u64) -> Value {
        Value::Array(vec![Value::from(1_795_258_800 + n), map(&[("n", n.into())])])
    }

    fn messages(bytes: &[u8]) -> Result<(Vec<String>, Option<Vec<u8>>, u64), FrameError> {
        let Some(mut frame) = Frame::read(bytes, &shape())? else { return Ok((vec![], None, 0)) };
        let (mut into, mut scratch) = (Collect::new(1000), Vec::new());
        while frame.next(&shape(), &mut scratch, &mut into) {}
        let (chunk, n_malformed) = (frame.chunk().map(<[u8]>::to_vec), frame.n_malformed());
        let group = into.take();
        let text = |m: &logdrive_schemas::MessageRange| {
            String::from_utf8_lossy(&group.data[m.start as usize..(m.start + m.len) as usize]).into_owned()
        };
        Ok((group.messages.iter().map(text).collect(), chunk, n_malformed))
    }

    fn expected(n: u64) -> String {
        format!(r#"{{"@timestamp":"2026-11-21T11:00:0{n}Z","tag":"app.x","n":{n}}}"#)
    }

    #[test]
    fn every_mode_is_the_same_events() {
        let tag = Value::from("app.x");
        let options =
            |more: &[(&str, Value)]| map(&[&[("size", 3.into()), ("chunk", "cGxl".into())], more].concat());
        let all: Vec<u8> = (0..3).flat_map(|n| packed(&entry(n))).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&all).unwrap();
        let gzip = gzip.finish().unwrap();
        // Fluentd appends compressed chunks to each other.
        let listed = Value::Array((0..3).map(entry).collect());
        let compressed = options(&[("compressed", "gzip".into())]);
        let frames = [
            Value::Array(vec![tag.clone(), listed, options(&[])]),
            Value::Array(vec![
                tag.clone(),
                Value::Binary(all.clone()),
                options(&[("compressed", "text".into())]),
            ]),
            Value::Array(vec![tag.clone(), Value::Binary(gzip), compressed]),
        ];
        for frame in frames {
            let (found, chunk, n_malformed) = messages(&packed(&frame)).unwrap();
            assert_eq!(found, [expected(0), expected(1), expected(2)]);
            assert_eq!((chunk.as_deref(), n_malformed), (Some(&b"cGxl"[..]), 0));
        }
        let Value::Array(parts) = entry(2) else { unreachable!() };
        let message = Value::Array(vec![tag.clone(), parts[0].clone(), parts[1].clone()]);
        assert_eq!(messages(&packed(&message)).unwrap(), (vec![expected(2)], None, 0));
        let message = Value::Array(vec![tag, parts[0].clone(), parts[1].clone(), options(&[])]);
        assert_eq!(messages(&packed(&message)).unwrap().1.as_deref(), Some(&b"cGxl"[..]));
        assert_eq!(messages(b"\xC0").unwrap().0, [""; 0]);
    }

    #[test]
    fn what_a_record_has_stays() {
        let record = map(&[("tag", "mine".into()), ("@timestamp", "then".into())]);
        let message = Value::Array(vec!["app".into(), 0.into(), record]);
        assert_eq!(messages(&packed(&message)).unwrap().0, [r#"{"tag":"mine","@timestamp":"then"}"#]);
    }

    #[test]
    fn what_follows_a_broken_event_is_shown() {
        let bytes = [packed(&entry(1)), packed(&Value::from("no event")), packed(&entry(2))].concat();
        let frame = Value::Array(vec!["app.x".into(), Value::Binary(bytes)]);
        let (found, _, n_malformed) = messages(&packed(&frame)).unwrap();
        assert_eq!((found.len(), n_malformed), (2, 1));
        assert!(found[0] == expected(1) && found[1].contains("no event") && found[1].ends_with('\u{FFFD}'));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for wrong in
            [&b"\x01"[..], b"\x90", b"\x91\xA1a", b"\x92\x01\x02", b"\x93\xA1a\x90\x01", b"\x81\xA1a\x01"]
        {
            assert!(messages(wrong).is_err(), "{wrong:?}");
        }
        let bomb = {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            gzip.write_all(&vec![0xC0; 2 << 20]).unwrap();
            let options = map(&[("compressed", "gzip".into())]);
            packed(&Value::Array(vec!["a".into(), Value::Binary(gzip.finish().unwrap()), options]))
        };
        assert_eq!(messages(&bomb).err(), Some(FrameError::Compression("expansion")));
    }
}
