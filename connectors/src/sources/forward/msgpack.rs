//! As much of MessagePack as the protocol needs, without an object in between: where a value ends, what its parts are, and
//! how it reads as JSON.
//!
//! Lengths are believed only as far as bytes are there.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

/// Values are not nested deeper.
const DEPTH_MAX: usize = 64;

/// Why something is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends too early, or holds what no value begins with.
    Broken,
    /// It is nested too deeply.
    Deep,
    /// It is, or says that it is, longer than is allowed.
    Long,
}

/// How the next value begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Head {
    Nil,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    /// Text or bytes of this length.
    Text(usize),
    Array(usize),
    Map(usize),
    /// Kind and length.
    Ext(i8, usize),
}

/// Reads the head of a value; `None` if it is not complete. Returns its length, too.
pub(super) fn head(input: &[u8]) -> Result<Option<(Head, usize)>, Malformed> {
    let Some(&first) = input.first() else { return Ok(None) };
    let number = |n: usize| -> Option<u64> {
        Some(input.get(1..=n)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let size = |n| number(n).map(|number| number as usize);
    let signed = |n: usize| number(n).map(|number| ((number << (64 - 8 * n)) as i64) >> (64 - 8 * n));
    let ext = |at: usize, len: Option<usize>| Some(Head::Ext(*input.get(at)? as i8, len?));
    let (head, len) = match first {
        0x00..=0x7F => (Some(Head::UInt(u64::from(first))), 1),
        0x80..=0x8F => (Some(Head::Map(usize::from(first & 0x0F))), 1),
        0x90..=0x9F => (Some(Head::Array(usize::from(first & 0x0F))), 1),
        0xA0..=0xBF => (Some(Head::Text(usize::from(first & 0x1F))), 1),
        0xC0 => (Some(Head::Nil), 1),
        0xC1 => return Err(Malformed::Broken),
        0xC2 | 0xC3 => (Some(Head::Bool(first == 0xC3)), 1),
        0xC4 | 0xD9 => (size(1).map(Head::Text), 2),
        0xC5 | 0xDA => (size(2).map(Head::Text), 3),
        0xC6 | 0xDB => (size(4).map(Head::Text), 5),
        0xC7 => (ext(2, size(1)), 3),
        0xC8 => (ext(3, size(2)), 4),
        0xC9 => (ext(5, size(4)), 6),
        0xCA => (number(4).map(|n| Head::Float(f64::from(f32::from_bits(n as u32)))), 5),
        0xCB => (number(8).map(|n| Head::Float(f64::from_bits(n))), 9),
        0xCC => (number(1).map(Head::UInt), 2),
        0xCD => (number(2).map(Head::UInt), 3),
        0xCE => (number(4).map(Head::UInt), 5),
        0xCF => (number(8).map(Head::UInt), 9),
        0xD0 => (signed(1).map(Head::Int), 2),
        0xD1 => (signed(2).map(Head::Int), 3),
        0xD2 => (signed(4).map(Head::Int), 5),
        0xD3 => (signed(8).map(Head::Int), 9),
        0xD4..=0xD8 => (ext(1, Some(1 << (first - 0xD4))), 2),
        0xDC => (size(2).map(Head::Array), 3),
        0xDD => (size(4).map(Head::Array), 5),
        0xDE => (size(2).map(Head::Map), 3),
        0xDF => (size(4).map(Head::Map), 5),
        0xE0..=0xFF => (Some(Head::Int(i64::from(first as i8))), 1),
    };
    Ok(head.map(|head| (head, len)))
}

/// Finds the end of a value whose bytes come in pieces, looking at each head once.
#[derive(Debug, Default)]
pub struct Scan {
    /// Where the next head begins, perhaps behind what is there.
    at: usize,
    /// Values that are to come, besides the first.
    to_come: u64,
    begun: bool,
}

impl Scan {
    /// Looks on; `input` is the value from its beginning. Returns the length of the value once it is complete.
    ///
    /// # Errors
    /// If it is none, or must be longer than `max`.
    pub fn end(&mut self, input: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
        while !self.begun || self.to_come > 0 {
            let Some(rest) = input.get(self.at..).filter(|rest| !rest.is_empty()) else { break };
            let Some((head, len)) = head(rest)? else { break };
            let (body, values) = match head {
                Head::Text(len) => (len, 0),
                Head::Ext(_, len) => (len, 0),
                Head::Array(n) => (0, n as u64),
                Head::Map(n) => (0, 2 * n as u64),
                _ => (0, 0),
            };
            self.at += len + body;
            self.to_come = if self.begun { self.to_come - 1 } else { 0 } + values;
            self.begun = true;
            // No value is shorter than a byte.
            if (self.at as u64).saturating_add(self.to_come) > max as u64 {
                return Err(Malformed::Long);
            }
        }
        Ok((self.begun && self.to_come == 0 && self.at <= input.len()).then_some(self.at))
    }

    /// How long the value is at least.
    #[must_use]
    pub fn at_least(&self) -> usize {
        self.at.saturating_add(usize::try_from(self.to_come).unwrap_or(usize::MAX))
    }
}

/// Takes values off the front of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn head(&mut self) -> Result<Head, Malformed> {
        let (head, len) = head(self.0)?.ok_or(Malformed::Broken)?;
        self.0 = &self.0[len..];
        Ok(head)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed::Broken)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Text or bytes.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Malformed> {
        match self.head()? {
            Head::Text(len) => self.bytes(len),
            _ => Err(Malformed::Broken),
        }
    }

    pub(super) fn array(&mut self) -> Result<usize, Malformed> {
        match self.head()? {
            Head::Array(n) => Ok(n),
            _ => Err(Malformed::Broken),
        }
    }

    /// The bytes of one value.
    pub(super) fn value(&mut self) -> Result<&'a [u8], Malformed> {
        let len = Scan::default().end(self.0, self.0.len())?.ok_or(Malformed::Broken)?;
        self.bytes(len)
    }
}

/// Writes a value as JSON. Bytes are taken for text; what is not UTF-8 stays so, and the decoder shows it. Numbers that
/// JSON has not are `null`, extensions base64, and keys that are no text become some.
pub(super) fn write_json(reader: &mut Reader<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed::Deep);
    }
    match reader.head()? {
        Head::Nil => out.extend_from_slice(b"null"),
        Head::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Head::Int(n) => out.extend_from_slice(n.to_string().as_bytes()),
        Head::UInt(n) => out.extend_from_slice(n.to_string().as_bytes()),
        Head::Float(x) => write_float(x, out),
        Head::Text(len) => write_text(reader.bytes(len)?, out),
        Head::Array(n) => {
            out.push(b'[');
            for idx in 0..n {
                if idx > 0 {
                    out.push(b',');
                }
                write_json(reader, out, depth + 1)?;
            }
            out.push(b']');
        }
        Head::Map(n) => {
            out.push(b'{');
            write_members(reader, n, out, depth, false)?;
            out.push(b'}');
        }
        Head::Ext(kind, len) => {
            let bytes = reader.bytes(len)?;
            match event_time(kind, bytes) {
                Some(time) => write_text(time.to_string().as_bytes(), out),
                None => write_text(STANDARD.encode(bytes).as_bytes(), out),
            }
        }
    }
    Ok(())
}

/// Writes the members of an object, without its braces; behind others if `follows`.
pub(super) fn write_members(
    reader: &mut Reader<'_>,
    n: usize,
    out: &mut Vec<u8>,
    depth: usize,
    mut follows: bool,
) -> Result<(), Malformed> {
    for _ in 0..n {
        if std::mem::replace(&mut follows, true) {
            out.push(b',');
        }
        let start = out.len();
        write_json(reader, out, depth + 1)?;
        if out.get(start) != Some(&b'"') {
            let key = out.split_off(start);
            write_text(&key, out);
        }
        out.push(b':');
        write_json(reader, out, depth + 1)?;
    }
    Ok(())
}

/// `EventTime`, or `None` for other extensions.
pub(super) fn event_time(kind: i8, bytes: &[u8]) -> Option<Timestamp> {
    let (0, Ok(bytes)) = (kind, <[u8; 8]>::try_from(bytes)) else { return None };
    let [seconds, nanos] = [&bytes[..4], &bytes[4..]]
        .map(|half| half.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)));
    Timestamp::new(i64::from(seconds), i32::try_from(nanos).ok()?).ok()
}

fn write_float(x: f64, out: &mut Vec<u8>) {
    if x.is_finite() {
        let mut text = String::new();
        write!(text, "{x:?}").expect("writing to a string cannot fail");
        out.extend_from_slice(text.as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Writes a JSON string.
pub(super) fn write_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut start = 0;
    for (at, byte) in text.iter().enumerate() {
        if *byte >= b' ' && !matches!(byte, b'"' | b'\\') {
            continue;
        }
        out.extend_from_slice(&text[start..at]);
        start = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&text[start..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use super::*;

    fn json(bytes: &[u8]) -> Result<String, Malformed> {
        let mut out = Vec::new();
        write_json(&mut Reader(bytes), &mut out, 0)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn packed(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Boolean),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            "\\PC{0,40}".prop_map(Value::from),
            "[ -~\n\t\"]{0,300}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
                prop::collection::btree_map("[a-z]{1,40}", inner, 0..20).prop_map(|map| {
                    Value::Map(map.into_iter().map(|(key, value)| (key.into(), value)).collect())
                }),
            ]
        })
    }

    fn as_json(value: &Value) -> serde_json::Value {
        match value {
            Value::Boolean(b) => (*b).into(),
            Value::Integer(n) => n.as_i64().map_or_else(|| n.as_u64().into(), Into::into),
            Value::F64(x) => (*x).into(),
            Value::String(text) => text.as_str().into(),
            Value::Array(items) => items.iter().map(as_json).collect(),
            Value::Map(members) => {
                let members =
                    members.iter().map(|(key, value)| (key.as_str().unwrap().into(), as_json(value)));
                serde_json::Value::Object(members.collect())
            }
            _ => serde_json::Value::Null,
        }
    }

    proptest! {
        #[test]
        fn values_are_what_another_library_wrote(value in value()) {
            let bytes = packed(&value);
            let read: serde_json::Value = serde_json::from_str(&json(&bytes).unwrap()).unwrap();
            prop_assert_eq!(read, as_json(&value));
            // However it is cut.
            let mut scan = Scan::default();
            for cut in 0..bytes.len() {
                prop_assert_eq!(scan.end(&bytes[..cut], 1 << 20), Ok(None));
            }
            prop_assert_eq!(scan.end(&bytes, 1 << 20), Ok(Some(bytes.len())));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let whole = Scan::default().end(&bytes, bytes.len());
            if let Ok(Some(len)) = whole {
                let mut out = Vec::new();
                let mut reader = Reader(&bytes);
                if write_json(&mut reader, &mut out, 0).is_ok() {
                    prop_assert_eq!(reader.0.len(), bytes.len() - len);
                }
            }
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        assert_eq!(Scan::default().end(b"\xDD\xFF\xFF\xFF\xFF", 1 << 20), Err(Malformed::Long));
        assert_eq!(Scan::default().end(b"\xDF\xFF\xFF\xFF\xFF", 1 << 20), Err(Malformed::Long));
        assert_eq!(Scan::default().end(b"\xDB\xFF\xFF\xFF\xFF", 1 << 20), Err(Malformed::Long));
        assert_eq!(Scan::default().end(b"\xC1", 1 << 20), Err(Malformed::Broken));
        assert_eq!(json(&[&[0x91; 100][..], &[0xC0]].concat()), Err(Malformed::Deep));
        assert_eq!(json(b"\xDB\xFF\xFF\xFF\xFF"), Err(Malformed::Broken));
    }

    #[test]
    fn what_json_has_not_becomes_something() {
        assert_eq!(json(b"\x82\x01\xC0\xC2\xCB\x7F\xF8\0\0\0\0\0\0").unwrap(), r#"{"1":null,"false":null}"#);
        assert_eq!(json(b"\xD7\x00\x6A\xEB\xFF\x80\x1D\xCD\x65\x00").unwrap(), r#""2026-11-05T04:01:04.5Z""#);
        assert_eq!(json(b"\xD4\x05\x61").unwrap(), r#""YQ==""#);
    }
}
