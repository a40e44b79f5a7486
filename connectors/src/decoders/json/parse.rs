//! One message to a simd-json tape, or the reason why not.
//!
//! simd-json rejects numbers that do not fit into 64 bits, although they are valid JSON and the pipeline may not even
//! read them. Then every long number of the message is replaced by `0` and spaces, in the copy that simd-json parses:
//! all positions stay, and the column reads the number from the message itself.

use std::mem;

use serde::de::IgnoredAny;
use simd_json::{Buffers, ErrorType, INPUT_PADDING, Node, Tape, fill_tape_padded};

use super::Failure;
use crate::document::scan;

/// How deep objects and arrays may be nested in a message, the message itself included.
pub(super) const DEPTH_MAX: usize = 64;

/// Working memory above this is given back after the chunk that needed it.
const RETAINED_BYTES_MAX: usize = 1 << 20;

/// Parses messages one by one, with the same memory.
pub(super) struct Parser {
    buffers: Buffers,
    scratch: Vec<u8>,
    tape: Tape<'static>,
}

/// A message that is valid JSON.
pub(super) struct Parsed<'a> {
    /// simd-json's tape; its strings lie in the parser's copy of the message.
    pub(super) nodes: &'a [Node<'a>],
    /// The address at which the copy of the message begins.
    pub(super) base: usize,
    /// Whether the tape's numbers mean nothing: read them from the message.
    pub(super) numbers_lost: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self { buffers: Buffers::with_max_depth(0, DEPTH_MAX), scratch: Vec::new(), tape: Tape(Vec::new()) }
    }
}

impl Parser {
    /// Parses `message` and hands the tape to `read`.
    pub(super) fn parse<T>(
        &mut self,
        message: &[u8],
        mut read: impl FnMut(Parsed<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.copy(message);
        match self.parse_copy(message.len(), false, &mut read) {
            Ok(result) => return result,
            Err(error) if matches!(error.error(), ErrorType::InvalidNumber) => {}
            Err(error) => return Err(explain(message, &error)),
        }
        self.copy(message);
        blank_long_numbers(&mut self.scratch[..message.len()]);
        self.parse_copy(message.len(), true, &mut read).unwrap_or_else(|error| Err(explain(message, &error)))
    }

    /// Gives back memory that an unusually large message needed.
    pub(super) fn shrink(&mut self) {
        if self.scratch.capacity() > RETAINED_BYTES_MAX {
            *self = Self::default();
        }
    }

    fn copy(&mut self, message: &[u8]) {
        self.scratch.clear();
        self.scratch.reserve(message.len() + INPUT_PADDING);
        self.scratch.extend_from_slice(message);
        self.scratch.extend_from_slice(&[b' '; INPUT_PADDING]);
    }

    fn parse_copy<T>(
        &mut self,
        len: usize,
        numbers_lost: bool,
        read: &mut impl FnMut(Parsed<'_>) -> Result<T, Failure>,
    ) -> Result<Result<T, Failure>, simd_json::Error> {
        let base = self.scratch.as_ptr().addr();
        let mut tape = mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let filled = fill_tape_padded(&mut self.scratch, len, &mut self.buffers, &mut tape);
        let result = filled.map(|()| read(Parsed { nodes: &tape.0, base, numbers_lost }));
        self.tape = tape.reset();
        result
    }
}

/// Replaces numbers that might not fit into 64 bits by `0` and spaces. Numbers that JSON does not allow stay, so that
/// they are still found wrong.
fn blank_long_numbers(text: &mut [u8]) {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = scan::string_end(text, at),
            b'-' | b'0'..=b'9' => {
                let end = scan::value_end(text, at);
                let number = &mut text[at..end];
                let long = number.len() > 18 || number.iter().any(|b| matches!(b, b'e' | b'E'));
                if long && is_json_number(number) {
                    number.fill(b' ');
                    number[0] = b'0';
                }
                at = end;
            }
            _ => at += 1,
        }
    }
}

/// Whether `text` is a number by JSON's grammar.
fn is_json_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let rest = match text {
        [b'0', rest @ ..] => rest,
        [b'1'..=b'9', ..] => &text[digits(text)..],
        _ => return false,
    };
    let rest = match rest {
        [b'.', rest @ ..] if digits(rest) > 0 => &rest[digits(rest)..],
        _ => rest,
    };
    match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] => {
            !rest.is_empty() && digits(rest) == rest.len()
        }
        _ => false,
    }
}

/// Why `message` is no JSON, in words for a human.
#[cold]
fn explain(message: &[u8], error: &simd_json::Error) -> Failure {
    if let Err(error) = std::str::from_utf8(message) {
        return Failure::new("invalid_utf8", format!("no UTF-8 at byte {}", error.valid_up_to()));
    }
    match error.error() {
        ErrorType::DepthLimitExceeded => {
            Failure::new("too_deep", format!("nested more than {DEPTH_MAX} deep at byte {}", error.index()))
        }
        ErrorType::InvalidUnicodeCodepoint => Failure::new(
            "invalid_json",
            format!("escape without a character, such as half a surrogate pair, at byte {}", error.index()),
        ),
        // serde_json explains better, but allows a little more.
        _ => match serde_json::from_slice::<IgnoredAny>(message) {
            Err(better) => Failure::new("invalid_json", better.to_string()),
            Ok(_) => Failure::new("invalid_json", error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_numbers_outside_strings_are_blanked() {
        let mut text = br#"{"a1e5":"-1e9",  "b":[1e999,-12345678901234567890, 12],"c":01e5}"#.to_vec();
        blank_long_numbers(&mut text);
        let expect = br#"{"a1e5":"-1e9",  "b":[0    ,0                    , 12],"c":01e5}"#;
        assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(expect));
    }

    #[test]
    fn the_grammar_of_numbers() {
        for text in ["0", "-0", "10", "0.5", "1e5", "1E+5", "-1.25e-7", "123456789012345678901234567890"] {
            assert!(is_json_number(text.as_bytes()), "{text}");
        }
        for text in ["", "-", "01", "1.", ".5", "1e", "1e+", "+1", "1.e5", "0x1", "1-2", "1e5.5"] {
            assert!(!is_json_number(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn memory_for_a_huge_message_is_given_back() {
        let mut parser = Parser::default();
        let message = format!("[\"{}\"]", "x".repeat(2 << 20));
        assert!(parser.parse(message.as_bytes(), |_| Ok(())).is_ok());
        parser.shrink();
        assert_eq!(parser.scratch.capacity(), 0);
    }

    #[test]
    fn depth_counts_the_message() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let mut parser = Parser::default();
        assert!(parser.parse(nested(DEPTH_MAX).as_bytes(), |_| Ok(())).is_ok());
        let failure = parser.parse(nested(DEPTH_MAX + 1).as_bytes(), |_| Ok(())).unwrap_err();
        assert_eq!(failure.code, "too_deep");
    }
}
