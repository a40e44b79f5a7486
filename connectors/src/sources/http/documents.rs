//! A body of JSON documents: a JSON array of them, or one per line.

use bytes::{Bytes, BytesMut};
use logdrive_schemas::MessageRange;

use crate::sources::net::lines::{BROKEN, LineRanges};

/// The most messages that one request may have.
const MESSAGES_MAX: usize = 1_000_000;
/// Brackets are matched by kind down to this depth; what lies deeper is the decoder's to check.
const CHECKED_DEPTH: u32 = 128;

/// The messages of a body.
#[derive(Debug, Default)]
pub struct Documents {
    /// The body.
    pub data: Bytes,
    /// Where each message lies in `data`.
    pub messages: Vec<MessageRange>,
    /// How many of the messages are prefixes of messages over the limit.
    pub n_too_long: u64,
}

/// A body that is neither an array nor lines, or holds too many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentsError {
    /// The array's own syntax is broken: nothing can be said about where its elements end.
    #[error("malformed JSON array at byte {at}")]
    Malformed {
        /// Where.
        at: usize,
    },
    /// Too many messages for one request.
    #[error("the request has more than {MESSAGES_MAX} messages")]
    TooMany,
}

/// Finds the messages of a body, by its first byte that is not white space: `[` begins an array, whose elements are
/// messages; otherwise each line is one. One that is longer than `bytes_max` is cut and marked as broken.
///
/// # Errors
/// If an array is malformed outside of its elements, or there are too many messages. Nothing is taken then.
pub fn split(mut body: BytesMut, bytes_max: usize) -> Result<Documents, DocumentsError> {
    let start = body.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(body.len());
    let (messages, cuts) = if body.get(start) == Some(&b'[') {
        let mut messages = Elements { text: &body, at: start + 1 }.read()?;
        let mut cuts = Vec::new();
        for message in messages.iter_mut().filter(|m| m.len as usize > bytes_max) {
            cuts.push(message.start as usize + bytes_max);
            message.len = bytes_max as u32 + 1;
        }
        (messages, cuts)
    } else {
        let lines = LineRanges::of(&body, bytes_max, MESSAGES_MAX);
        (lines.messages, lines.cuts)
    };
    if messages.len() > MESSAGES_MAX {
        return Err(DocumentsError::TooMany);
    }
    for at in &cuts {
        body[*at] = BROKEN;
    }
    Ok(Documents { data: body.freeze(), messages, n_too_long: cuts.len() as u64 })
}

/// Scans an array for where its elements begin and end, without recursion and without reading numbers or escapes.
struct Elements<'a> {
    text: &'a [u8],
    at: usize,
}

impl Elements<'_> {
    fn read(mut self) -> Result<Vec<MessageRange>, DocumentsError> {
        let mut messages = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return self.end(messages);
        }
        loop {
            self.skip_space();
            let start = self.at;
            self.skip_element()?;
            messages.push(MessageRange { start: start as u32, len: (self.at - start) as u32 });
            if messages.len() > MESSAGES_MAX {
                return Err(DocumentsError::TooMany);
            }
            self.skip_space();
            let next = self.peek();
            match next {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return self.end(messages);
                }
                _ => return Err(self.malformed()),
            }
        }
    }

    fn end(mut self, messages: Vec<MessageRange>) -> Result<Vec<MessageRange>, DocumentsError> {
        self.skip_space();
        if self.at == self.text.len() { Ok(messages) } else { Err(self.malformed()) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn malformed(&self) -> DocumentsError {
        DocumentsError::Malformed { at: self.at }
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn skip_element(&mut self) -> Result<(), DocumentsError> {
        match self.peek() {
            Some(b'{' | b'[') => self.skip_nested(),
            Some(b'"') => self.skip_string(),
            _ => {
                let start = self.at;
                while matches!(
                    self.peek(),
                    Some(b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
                ) {
                    self.at += 1;
                }
                if self.at > start { Ok(()) } else { Err(self.malformed()) }
            }
        }
    }

    /// From an opening bracket to its closing one.
    fn skip_nested(&mut self) -> Result<(), DocumentsError> {
        // One bit per open bracket, set for braces.
        let mut kinds = 0u128;
        let mut depth = 0u32;
        loop {
            let found = memchr_structure(&self.text[self.at..])
                .ok_or(DocumentsError::Malformed { at: self.text.len() })?;
            self.at += found;
            match self.text[self.at] {
                b'"' => {
                    self.skip_string()?;
                    continue;
                }
                open @ (b'{' | b'[') => {
                    if depth < CHECKED_DEPTH {
                        kinds = kinds & !(1 << depth) | u128::from(open == b'{') << depth;
                    }
                    depth += 1;
                }
                close => {
                    depth -= 1;
                    if depth < CHECKED_DEPTH && (kinds >> depth & 1 == 1) != (close == b'}') {
                        return Err(self.malformed());
                    }
                }
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// From a quote to its closing one.
    fn skip_string(&mut self) -> Result<(), DocumentsError> {
        self.at += 1;
        loop {
            let rest = &self.text[self.at..];
            let found = memchr::memchr2(b'"', b'\\', rest)
                .ok_or(DocumentsError::Malformed { at: self.text.len() })?;
            if rest[found] == b'"' {
                self.at += found + 1;
                return Ok(());
            }
            // Whatever is escaped is not the end. Behind the last byte there is nothing to skip.
            self.at = (self.at + found + 2).min(self.text.len());
        }
    }
}

/// The next bracket or quote.
fn memchr_structure(text: &[u8]) -> Option<usize> {
    text.iter().position(|b| matches!(b, b'"' | b'{' | b'[' | b'}' | b']'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(body: &str, bytes_max: usize) -> Result<Vec<Vec<u8>>, DocumentsError> {
        let documents = split(BytesMut::from(body), bytes_max)?;
        let of = |m: &MessageRange| documents.data[m.start as usize..(m.start + m.len) as usize].to_vec();
        Ok(documents.messages.iter().map(of).collect())
    }

    #[test]
    fn lines_or_an_array_by_the_first_byte() {
        assert_eq!(run("{\"a\":1}\n\r\n{\"b\":2}", 99).unwrap(), [b"{\"a\":1}", b"{\"b\":2}"]);
        assert_eq!(run(" \n[ {\"a\": [1,\"]\"]} ,{}]\n", 99).unwrap(), [&b"{\"a\": [1,\"]\"]}"[..], b"{}"]);
        assert_eq!(
            run("[1,\"a\\\"]\",null, -2e5]", 99).unwrap(),
            [&b"1"[..], b"\"a\\\"]\"", b"null", b"-2e5"]
        );
        assert!(run("", 99).unwrap().is_empty());
        assert!(run("[ ]", 99).unwrap().is_empty());
    }

    #[test]
    fn a_malformed_array_is_refused() {
        for body in [
            "[", "[1", "[1,", "[,1]", "[1,]", "[1 2]", "[1]x", "[1]]", "[{]", "[{]}]", "[[}]", "[\"a]",
            "[\"a\\", "[}", "[\u{7f}]",
        ] {
            assert!(matches!(run(body, 99), Err(DocumentsError::Malformed { .. })), "{body}");
        }
    }

    #[test]
    fn a_long_message_is_broken_in_its_place() {
        assert_eq!(run("[\"123456\",1]", 3).unwrap(), [&b"\"12\xFF"[..], b"1"]);
        assert_eq!(run("[\"12\",1]", 3).unwrap(), [&b"\"12\xFF"[..], b"1"]);
        assert_eq!(run("[\"1\",1]", 3).unwrap(), [&b"\"1\""[..], b"1"]);
        assert_eq!(run("123456\n1234\n123\n1", 3).unwrap(), [&b"123\xFF"[..], b"123\xFF", b"123", b"1"]);
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("[{}{}]", "[".repeat(1 << 20), "]".repeat(1 << 20));
        assert_eq!(run(&deep, 4 << 20).unwrap().len(), 1);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<i32>().prop_map(Into::into),
            "[\\[\\]{}\"\\\\a,:\n]{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::hash_map("[\\[\\]{}\"\\\\a]{0,4}", inner, 0..4)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn elements_are_the_array(elements in proptest::collection::vec(json(), 0..8), pretty in any::<bool>()) {
            let array = serde_json::Value::from(elements.clone());
            let body = if pretty { format!("{array:#}") } else { array.to_string() };
            let found = run(&body, 1 << 20).unwrap();
            let read: Vec<serde_json::Value> = found.iter().map(|f| serde_json::from_slice(f).unwrap()).collect();
            prop_assert_eq!(read, elements);
        }

        #[test]
        fn agrees_with_a_parser_or_refuses(body in "\\[[\\[\\]{}\"\\\\a1,: ]{0,12}") {
            if serde_json::from_str::<Vec<serde_json::Value>>(&body).is_ok() {
                prop_assert!(run(&body, 99).is_ok());
            }
        }
    }
}
