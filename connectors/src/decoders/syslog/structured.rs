//! Structured data of RFC 5424: as JSON text, and single parameters as columns.
//!
//! ```text
//! [exampleSDID@32473 iut="3" eventSource="a\"b"]  ─►  {"exampleSDID@32473":{"iut":"3","eventSource":"a\"b"}}
//! ```

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use serde_json::{Map, Value};

use super::Param;
use crate::decoders::texts::Failure;

/// The longest SD-ID or PARAM-NAME.
const NAME_BYTES_MAX: usize = 32;

/// Reads structured data, with memory that is used again.
#[derive(Default)]
pub(super) struct Reader {
    /// The JSON text of the last message.
    pub(super) json: String,
    ids: Vec<Range<usize>>,
    names: Vec<Range<usize>>,
    /// Where plain structured data is put together.
    plain: Option<Box<[u8; 3 * PLAIN_BYTES_MAX + 8]>>,
}

/// Longer structured data is not plain.
const PLAIN_BYTES_MAX: usize = 2048;
/// Nor is an element with more parameters, or a message with more elements.
const PLAIN_NAMES_MAX: usize = 8;

/// Bytes of plain names, and of plain values.
const NAME: u8 = 1;
const VALUE: u8 = 2;
const PLAIN: [u8; 256] = {
    let mut plain = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let is_value = !SPECIAL[byte];
        let is_name = is_value && byte > 32 && byte < 127 && byte != b'=' as usize;
        plain[byte] = if is_name {
            NAME | VALUE
        } else if is_value {
            VALUE
        } else {
            0
        };
        byte += 1;
    }
    plain
};

/// Copies bytes of a class from `start` on to `out` behind `n`; where they end.
#[inline]
fn copy_while(class: u8, bytes: &[u8], start: usize, out: &mut [u8], n: &mut usize) -> Option<usize> {
    let rest = bytes.get(start..)?;
    let to = out.get_mut(*n..*n + rest.len())?;
    let mut len = 0;
    for (byte, to) in rest.iter().zip(to) {
        if PLAIN[usize::from(*byte)] & class == 0 {
            break;
        }
        *to = *byte;
        len += 1;
    }
    *n += len;
    Some(start + len)
}

/// Adds a name to those that are there; `None` if it is none, or there already.
#[inline]
fn add_name(
    bytes: &[u8],
    (start, end): (usize, usize),
    names: &mut [(usize, usize); PLAIN_NAMES_MAX],
    n_names: &mut usize,
) -> Option<()> {
    let name = &bytes[start..end];
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    let known = names[..*n_names].iter().any(|(start, end)| bytes[*start..*end] == *name);
    *names.get_mut(*n_names).filter(|_| fits && !known)? = (start, end);
    *n_names += 1;
    Some(())
}

/// Bytes of a value that are not copied as they are: what ends it, escapes, and what JSON escapes.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        special[byte] = true;
        byte += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special[b']' as usize] = true;
    special
};

impl Reader {
    /// Reads the structured data at the start of `text` into [`Self::json`], and hands each value of one of `params`,
    /// without its escapes, to `put`. How many bytes it takes; `None` if it is the NILVALUE.
    pub(super) fn read(
        &mut self,
        text: &str,
        params: &[Param],
        mut put: impl FnMut(&Param, &str) -> Result<(), Failure>,
    ) -> Result<Option<usize>, Failure> {
        let bytes = text.as_bytes();
        if bytes.first() == Some(&b'-') {
            return Ok(None);
        }
        if params.is_empty()
            && let Some(len) = self.read_plain(bytes)
        {
            return Ok(Some(len));
        }
        self.json.clear();
        self.ids.clear();
        let mut duplicates = false;
        let mut pos = 0;
        while bytes.get(pos) == Some(&b'[') {
            self.json.push(if pos == 0 { '{' } else { ',' });
            let id = name(bytes, pos + 1)?;
            pos = id.end;
            if self.ids.iter().any(|known| bytes[known.clone()] == bytes[id.clone()]) {
                return Err(invalid("an SD-ID that is there twice", id.start));
            }
            self.member(&text[id.clone()]);
            self.names.clear();
            while bytes.get(pos) == Some(&b' ') {
                self.json.push(if self.names.is_empty() { '{' } else { ',' });
                let name = name(bytes, pos + 1)?;
                if bytes.get(name.end..name.end + 2) != Some(b"=\"") {
                    return Err(invalid("no `=\"` behind a name", name.end));
                }
                duplicates |= self.names.iter().any(|known| bytes[known.clone()] == bytes[name.clone()]);
                self.member(&text[name.clone()]);
                let start = name.end + 2;
                let end = self.value(text, start)?;
                for param in params {
                    if param.id == text[id.clone()] && param.name == text[name.clone()] {
                        put(param, &unescaped(&text[start..end]))?;
                    }
                }
                self.names.push(name);
                pos = end + 1;
            }
            self.json.push_str(if self.names.is_empty() { "{}" } else { "}" });
            if bytes.get(pos) != Some(&b']') {
                return Err(invalid("an element without its `]`", pos));
            }
            pos += 1;
            self.ids.push(id);
        }
        if pos == 0 {
            return Err(invalid("neither `-` nor `[`", 0));
        }
        self.json.push('}');
        if duplicates {
            self.with_lists(&text[..pos]);
        }
        Ok(Some(pos))
    }

    /// The same for what structured data nearly always is: short, without backslashes and control characters, each name
    /// there once. `None`, and nothing done, if it is anything else.
    #[inline]
    fn read_plain(&mut self, bytes: &[u8]) -> Option<usize> {
        let bytes = &bytes[..bytes.len().min(PLAIN_BYTES_MAX)];
        // An element grows by four bytes at most and has three at least; a parameter grows by less.
        let out = self.plain.get_or_insert_with(|| Box::new([0; 3 * PLAIN_BYTES_MAX + 8]));
        let mut ids = [(0, 0); PLAIN_NAMES_MAX];
        let (mut at, mut n, mut n_ids) = (0, 0, 0);
        while bytes.get(at) == Some(&b'[') {
            out[n..n + 2].copy_from_slice(if at == 0 { b"{\"" } else { b",\"" });
            n += 2;
            let id = copy_while(NAME, bytes, at + 1, &mut out[..], &mut n)?;
            add_name(bytes, (at + 1, id), &mut ids, &mut n_ids)?;
            out[n..n + 3].copy_from_slice(b"\":{");
            n += 3;
            at = id;
            let mut names = [(0, 0); PLAIN_NAMES_MAX];
            let mut n_names = 0;
            while bytes.get(at) == Some(&b' ') {
                if n_names > 0 {
                    out[n] = b',';
                    n += 1;
                }
                out[n] = b'"';
                n += 1;
                let end = copy_while(NAME, bytes, at + 1, &mut out[..], &mut n)?;
                add_name(bytes, (at + 1, end), &mut names, &mut n_names)?;
                if bytes.get(end..end + 2)? != b"=\"" {
                    return None;
                }
                out[n..n + 3].copy_from_slice(b"\":\"");
                n += 3;
                at = copy_while(VALUE, bytes, end + 2, &mut out[..], &mut n)?;
                if bytes.get(at) != Some(&b'"') {
                    return None;
                }
                out[n] = b'"';
                n += 1;
                at += 1;
            }
            if bytes.get(at) != Some(&b']') {
                return None;
            }
            out[n] = b'}';
            n += 1;
            at += 1;
        }
        // Cut short, it may not be the end.
        if at == 0 || at == PLAIN_BYTES_MAX {
            return None;
        }
        out[n] = b'}';
        let json = simdutf8::basic::from_utf8(&out[..=n]).ok()?;
        self.json.clear();
        self.json.push_str(json);
        Some(at)
    }

    /// Appends `"name":`; a name has nothing to escape but backslashes.
    #[inline]
    fn member(&mut self, name: &str) {
        self.json.push('"');
        if name.contains('\\') {
            self.json.push_str(&name.replace('\\', "\\\\"));
        } else {
            self.json.push_str(name);
        }
        self.json.push_str("\":");
    }

    /// Appends the value that starts at `start` with quotes around it; where its closing quote is.
    #[inline]
    fn value(&mut self, text: &str, start: usize) -> Result<usize, Failure> {
        let bytes = text.as_bytes();
        self.json.push('"');
        let (mut begin, mut at) = (start, start);
        loop {
            at += bytes[at..].iter().position(|b| SPECIAL[usize::from(*b)]).unwrap_or(bytes.len() - at);
            match bytes.get(at..).unwrap_or_default() {
                [b'"', ..] => {
                    self.json.push_str(&text[begin..at]);
                    self.json.push('"');
                    return Ok(at);
                }
                // These two are escaped alike in JSON.
                [b'\\', b'"' | b'\\', ..] => at += 2,
                [b'\\', b']', ..] => {
                    self.json.push_str(&text[begin..at]);
                    begin = at + 1;
                    at += 2;
                }
                // Any other backslash stands for itself.
                [b'\\', ..] => {
                    self.json.push_str(&text[begin..at]);
                    self.json.push('\\');
                    begin = at;
                    at += 1;
                }
                [b']', ..] => return Err(invalid("a `]` without a backslash in a value", at)),
                [control, ..] => {
                    self.json.push_str(&text[begin..at]);
                    write!(self.json, "\\u{control:04x}").expect("writing to memory cannot fail");
                    at += 1;
                    begin = at;
                }
                [] => return Err(invalid("a value without its quote", start)),
            }
        }
    }

    /// Writes the JSON of `text`, which is valid, once more: parameters with one name become a list.
    #[cold]
    fn with_lists(&mut self, text: &str) {
        let mut elements = Map::new();
        let bytes = text.as_bytes();
        let mut pos = 0;
        while let Ok(id) = name(bytes, pos + 1) {
            let mut params = Map::new();
            pos = id.end;
            while let (Some(b' '), Ok(name)) = (bytes.get(pos), name(bytes, pos + 1)) {
                let start = name.end + 2;
                let end = value_end(bytes, start);
                let value = Value::from(unescaped(&text[start..end]));
                match params.get_mut(&text[name.clone()]) {
                    Some(Value::Array(list)) => list.push(value),
                    Some(first) => *first = Value::Array(vec![first.take(), value]),
                    None => {
                        params.insert(text[name].into(), value);
                    }
                }
                pos = end + 1;
            }
            elements.insert(text[id].into(), params.into());
            pos += 1;
        }
        self.json = Value::from(elements).to_string();
    }
}

/// The SD-NAME that starts at `start`.
#[inline]
fn name(bytes: &[u8], start: usize) -> Result<Range<usize>, Failure> {
    let bytes = &bytes[..bytes.len().min(start + NAME_BYTES_MAX + 1)];
    let len = bytes[start.min(bytes.len())..]
        .iter()
        .position(|b| !(33..=126).contains(b) || matches!(b, b'=' | b']' | b'"'))
        .unwrap_or(bytes.len().saturating_sub(start));
    if len == 0 || len > NAME_BYTES_MAX {
        return Err(invalid("no name of 1 to 32 printable characters", start));
    }
    Ok(start..start + len)
}

/// Where the quote behind a valid value is.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    loop {
        match bytes.get(at..).unwrap_or_default() {
            [] | [b'"', ..] => return at.min(bytes.len()),
            [b'\\', b'"' | b'\\' | b']', ..] => at += 2,
            _ => at += 1,
        }
    }
}

/// A value without its escapes.
fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars().peekable();
    while let Some(char) = chars.next() {
        match chars.peek() {
            Some(next @ ('"' | '\\' | ']')) if char == '\\' => {
                text.push(*next);
                chars.next();
            }
            _ => text.push(char),
        }
    }
    Cow::Owned(text)
}

#[cold]
fn invalid(what: &str, pos: usize) -> Failure {
    Failure::new("invalid_structured_data", format!("{what}, at byte {pos} of it"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<(Value, usize), String> {
        let mut reader = Reader::default();
        let len = reader.read(text, &[], |_, _| Ok(())).map_err(|failure| failure.0);
        // With a parameter to look for the fast way is not taken.
        let param = Param { id: "?".into(), name: "?".into(), slot: crate::decoders::columns::Slot::Text(0) };
        let mut slow = Reader::default();
        assert_eq!(slow.read(text, &[param], |_, _| Ok(())).map_err(|failure| failure.0), len, "{text}");
        assert_eq!(slow.json, reader.json, "{text}");
        Ok(match len? {
            Some(len) => (serde_json::from_str(&reader.json).unwrap(), len),
            None => (Value::Null, 1),
        })
    }

    #[test]
    fn elements_and_their_escapes() {
        for (text, expect) in [
            ("[a]", json!({"a": {}})),
            (r#"[a@1 b="1" c=""][d e="é"]"#, json!({"a@1": {"b": "1", "c": ""}, "d": {"e": "é"}})),
            (r#"[a b="\"\\\]\n\x"]"#, json!({"a": {"b": "\"\\]\\n\\x"}})),
            ("[a b=\"line\nbreak\t\u{1}\"]", json!({"a": {"b": "line\nbreak\t\u{1}"}})),
            (r#"[o ip="1" ip="2" x="3" ip="\]"]"#, json!({"o": {"ip": ["1", "2", "]"], "x": "3"}})),
            (r#"[a\ b\c="1"]"#, json!({"a\\": {"b\\c": "1"}})),
        ] {
            assert_eq!(read(text), Ok((expect, text.len())), "{text}");
        }
        assert_eq!(read("- x"), Ok((Value::Null, 1)));
        assert_eq!(read("[a] x"), Ok((json!({"a": {}}), 3)));
    }

    #[test]
    fn what_the_grammar_has_not() {
        for text in [
            "",
            "x",
            "[]",
            "[ a]",
            "[a",
            "[a ",
            "[a b]",
            "[a b=]",
            "[a b=\"]",
            "[a b=\"1]",
            "[a b=\"1\"",
            "[a b=\"1\" ]",
            "[a b=\"x]y\"]",
            "[a  b=\"1\"]",
            "[a b=\"1\"c=\"2\"]",
            "[a=b c=\"1\"]",
            "[a][a]",
            "[é]",
            "[a b=\"\\\"]",
            "[abcdefghijklmnopqrstuvwxyz01234567 b=\"1\"]",
        ] {
            let reason = read(text).unwrap_err();
            assert!(reason.starts_with("invalid_structured_data: "), "{text}: {reason}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text in "(\\[[a-c]( [a-c]=\"[^\"\\]]{0,6}\")*\\])*|[-\\[\\]\"\\\\= a-cé\n]{0,30}") {
            // `read` checks that it becomes JSON.
            prop_assert!(!read(&text).is_ok_and(|(_, len)| len > text.len()));
        }

        #[test]
        fn values_come_back(values in prop::collection::vec(".{0,12}", 1..5)) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
            let params: String = values.iter().enumerate().map(|(i, v)| format!(" p{i}=\"{}\"", escape(v))).collect();
            let expect: Map<_, _> = values.iter().enumerate().map(|(i, v)| (format!("p{i}"), v.as_str().into())).collect();
            let text = format!("[id{params}]");
            prop_assert_eq!(read(&text), Ok((json!({"id": expect}), text.len())));
        }
    }
}
