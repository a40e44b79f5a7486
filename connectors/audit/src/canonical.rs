//! Canonical JSON: one spelling for each value, so that its bytes can be hashed.
//!
//! Members are sorted (by UTF-16 code units, as RFC 8785 has it), there is no space, strings escape only what they
//! must. Unlike RFC 8785 a number stays as it is written, digit for digit: an amount of `10.50` or an identifier of
//! thirty digits must not change because somebody's parser has floats. Of a member that comes twice the last one
//! counts, as in every parser that builds a map.

use std::fmt::Write as _;

/// How deep lists and objects may nest.
const DEPTH_MAX: usize = 128;

/// The text is not JSON, or not in a form that has a canonical spelling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct CanonicalError {
    /// Where.
    pub at: usize,
    /// What.
    pub what: &'static str,
}

/// The canonical spelling of one JSON value.
///
/// # Errors
/// If it is not one JSON value, nests deeper than 128, or has a string that is no Unicode (a lone surrogate).
pub fn canonicalise(json: &[u8]) -> Result<String, CanonicalError> {
    let value = parse(json)?;
    let mut out = String::with_capacity(json.len());
    write(&value, &mut out);
    Ok(out)
}

/// A parsed value; numbers and literals are kept as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number, `true`, `false` or `null`.
    Atom(&'a str),
    String(String),
    Array(Vec<Self>),
    /// Sorted, without duplicates.
    Object(Vec<(String, Self)>),
}

pub(crate) fn parse(json: &[u8]) -> Result<Value<'_>, CanonicalError> {
    let text = match std::str::from_utf8(json) {
        Ok(text) => text,
        Err(error) => return Err(CanonicalError { at: error.valid_up_to(), what: "it is not UTF-8" }),
    };
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at < text.len() { Err(parser.error("there is more behind the value")) } else { Ok(value) }
}

pub(crate) fn write(value: &Value<'_>, out: &mut String) {
    match value {
        Value::Atom(text) => out.push_str(text),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (idx, item) in items.iter().enumerate() {
                if 0 < idx {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (idx, (name, value)) in members.iter().enumerate() {
                if 0 < idx {
                    out.push(',');
                }
                write_string(name, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
    }
}

pub(crate) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes everything"),
            c => out.push(c),
        }
    }
    out.push('"');
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, what: &'static str) -> CanonicalError {
        CanonicalError { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, CanonicalError> {
        if DEPTH_MAX < depth {
            return Err(self.error("it nests too deep"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                let rest = &self.text[self.at..];
                let literal = ["true", "false", "null"].into_iter().find(|word| rest.starts_with(word));
                let literal = literal.ok_or_else(|| self.error("there is no value"))?;
                self.at += literal.len();
                Ok(Value::Atom(literal))
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value<'a>, CanonicalError> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.eat(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.eat(b']') {
                return Ok(Value::Array(items));
            }
            if !self.eat(b',') {
                return Err(self.error("a list goes on without a comma"));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value<'a>, CanonicalError> {
        self.at += 1;
        let mut members: Vec<(String, Value<'a>)> = Vec::new();
        self.space();
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error("a member has no name"));
            }
            let name = self.string()?;
            self.space();
            if !self.eat(b':') {
                return Err(self.error("a member has no colon"));
            }
            members.push((name, self.value(depth + 1)?));
            self.space();
            if self.eat(b'}') {
                break;
            }
            if !self.eat(b',') {
                return Err(self.error("an object goes on without a comma"));
            }
        }
        // The sort is stable: of equal names the last in the text is the last here, and stays.
        members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        members.reverse();
        members.dedup_by(|(a, _), (b, _)| a == b);
        members.reverse();
        Ok(Value::Object(members))
    }

    fn number(&mut self) -> Result<Value<'a>, CanonicalError> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(Value::Atom(&self.text[start..self.at]))
    }

    fn digits(&mut self) -> Result<(), CanonicalError> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if start == self.at { Err(self.error("a number lacks digits")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<String, CanonicalError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            while self.peek().is_some_and(|b| b != b'"' && b != b'\\' && b' ' <= b) {
                self.at += 1;
            }
            out.push_str(&self.text[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                Some(_) => return Err(self.error("a string has a control character")),
                None => return Err(self.error("a string has no end")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, CanonicalError> {
        let byte = self.peek().ok_or_else(|| self.error("a string has no end"))?;
        self.at += 1;
        Ok(match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut code = self.hex()?;
                if (0xd800..0xdc00).contains(&code) && self.eat(b'\\') && self.eat(b'u') {
                    let low = self.hex()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.error("a string has a lone surrogate"));
                    }
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                }
                char::from_u32(code).ok_or_else(|| self.error("a string has a lone surrogate"))?
            }
            _ => return Err(self.error("a string has an unknown escape")),
        })
    }

    fn hex(&mut self) -> Result<u32, CanonicalError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let mut code = 0;
        for digit in digits {
            let value = char::from(*digit).to_digit(16);
            code = code * 16 + value.ok_or_else(|| self.error("an escape lacks digits"))?;
        }
        if digits.len() < 4 {
            return Err(self.error("an escape lacks digits"));
        }
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_for_each_value() {
        let cases = [
            (r#" { "b" : [ 1 , 2.50 ] , "a" : "x" } "#, r#"{"a":"x","b":[1,2.50]}"#),
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#),
            (r#""\u0041\u00e9\/\n\u0007\ud83d\ude00""#, "\"Aé/\\n\\u0007😀\""),
            ("123456789012345678901234567890.10E+5", "123456789012345678901234567890.10E+5"),
            (r#"{"\ufb33":1,"\ud83d\ude00":2,"\u20ac":3}"#, "{\"€\":3,\"😀\":2,\"\u{fb33}\":1}"),
            ("[ ]", "[]"),
            ("{ }", "{}"),
        ];
        for (json, canonical) in cases {
            assert_eq!(canonicalise(json.as_bytes()).as_deref(), Ok(canonical), "{json}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        for json in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "1.",
            "-",
            "1e",
            ".5",
            "+1",
            "nul",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"\\u00g0\"",
            "\"\\u12",
            "\"\t\"",
            "\"\\x\"",
            "\"",
            "1 2",
            "{1:2}",
            "{\"a\" 1}",
            "[1 2]",
            "NaN",
            &deep,
        ] {
            assert!(canonicalise(json.as_bytes()).is_err(), "{json:.20}");
        }
        assert!(canonicalise(b"\"\xff\"").is_err());
    }

    proptest! {
        #[test]
        fn it_never_panics_and_is_stable(json in "[\\[\\]{}\",:0-9eE+.tfnu\\\\a-d -]{0,40}") {
            if let Ok(once) = canonicalise(json.as_bytes()) {
                prop_assert_eq!(canonicalise(once.as_bytes()), Ok(once.clone()));
                // What an independent parser makes of both is the same.
                let ours: Result<serde_json::Value, _> = serde_json::from_str(&once);
                let theirs: Result<serde_json::Value, _> = serde_json::from_str(&json);
                prop_assert_eq!(ours.ok(), theirs.ok());
            } else {
                let value: Result<serde_json::Value, _> = serde_json::from_str(&json);
                prop_assert!(value.is_err());
            }
        }
    }
}
