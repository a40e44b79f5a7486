//! A JSON object, written member by member: for sources whose messages are not JSON and become it.

use super::scalar::{write_base64, write_json, write_signed, write_text, write_timestamp, write_unsigned};

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// An object that has begun. Whoever begins it ends it.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { start: out.len(), out }
    }

    pub(crate) fn end(self) {
        self.out.push(b'}');
    }

    /// Where the value of `key` is to be written.
    pub(crate) fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.comma();
        write_text(key, self.out);
        self.out.push(b':');
        self.out
    }

    fn comma(&mut self) {
        if self.out.len() > self.start {
            self.out.push(b',');
        }
    }

    /// Members that are already written, with commas between them.
    pub(crate) fn members(&mut self, members: &[u8]) {
        if !members.is_empty() {
            self.comma();
            self.out.extend_from_slice(members);
        }
    }

    /// An object as a member.
    pub(crate) fn object(&mut self, key: &str) -> Object<'_> {
        Object::begin(self.key(key))
    }

    /// Text, unless it is empty.
    pub(crate) fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            write_text(text, self.key(key));
        }
    }

    pub(crate) fn boolean(&mut self, key: &str, value: bool) {
        self.key(key).extend_from_slice(if value { b"true" } else { b"false" });
    }

    pub(crate) fn signed(&mut self, key: &str, value: i64) {
        write_signed(value, self.key(key));
    }

    pub(crate) fn unsigned(&mut self, key: &str, value: u64) {
        write_unsigned(value, self.key(key));
    }

    /// A number, unless it is 0.
    pub(crate) fn count(&mut self, key: &str, n: u64) {
        if n > 0 {
            self.unsigned(key, n);
        }
    }

    /// A number as JSON has it; one that JSON has not (NaN, the infinities) as text.
    pub(crate) fn float(&mut self, key: &str, value: f64) {
        write_float(value, self.key(key));
    }

    /// The value of a metric: one that JSON has not as text, under a key of its own, so that the column stays a number.
    pub(crate) fn measure(&mut self, key: &str, value: f64) {
        if value.is_finite() {
            self.float(key, value);
        } else {
            self.float(&format!("{key}_text"), value);
        }
    }

    /// Nanoseconds since the Unix epoch, unless they are 0.
    pub(crate) fn time(&mut self, key: &str, nanos: u64) {
        if nanos > 0 {
            write_timestamp(i64::try_from(nanos).unwrap_or(i64::MAX), SECOND, self.key(key));
        }
    }

    /// Bytes as lower-case hexadecimal digits, unless there are none.
    pub(crate) fn hex(&mut self, key: &str, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if !bytes.is_empty() {
            let out = self.key(key);
            out.push(b'"');
            out.extend(bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]));
            out.push(b'"');
        }
    }
}

/// A number as JSON has it, else as text, as Protobuf's JSON does.
pub(crate) fn write_float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        write_json(&value, out);
    } else {
        let text = if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        write_text(text, out);
    }
}

/// Bytes as base64, in quotes.
pub(crate) fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_base64(bytes, out);
}

/// An array, each element written by `write`.
pub(crate) fn write_array<T>(values: &[T], out: &mut Vec<u8>, mut write: impl FnMut(&T, &mut Vec<u8>)) {
    out.push(b'[');
    for (idx, value) in values.iter().enumerate() {
        if idx > 0 {
            out.push(b',');
        }
        write(value, out);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_every_kind() {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        object.members(b"");
        object.text("left_out", "");
        object.text("text", "a\"b");
        object.members(b"\"x\":1,\"y\":2");
        object.time("at", 1_700_000_000_000_000_001);
        object.time("never", 0);
        object.hex("id", &[0, 0xAB]);
        object.signed("n", i64::MIN);
        object.unsigned("u", u64::MAX);
        object.float("f", f64::NAN);
        object.measure("m", f64::NEG_INFINITY);
        object.measure("v", 0.5);
        object.boolean("b", false);
        object.count("none", 0);
        let mut inner = object.object("o");
        inner.count("c", 3);
        inner.end();
        write_array(&[1, 2], object.key("a"), |n, out| write_signed(*n, out));
        object.end();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"text\":\"a\\\"b\",\"x\":1,\"y\":2,\"at\":\"2023-11-14T22:13:20.000000001Z\",\"id\":\"00ab\",\
             \"n\":-9223372036854775808,\"u\":18446744073709551615,\"f\":\"NaN\",\"m_text\":\"-Infinity\",\"v\":0.5,\
             \"b\":false,\"o\":{\"c\":3},\"a\":[1,2]}"
        );
    }
}
