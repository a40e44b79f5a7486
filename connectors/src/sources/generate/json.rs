//! Writes JSON by hand: no value of the simulator needs escaping, and nothing is allocated per event.

/// An object being written.
pub(super) struct Object<'a>(pub(super) &'a mut Vec<u8>);

impl Object<'_> {
    /// Writes `,"key":`; `key` comes with these signs, as it is a literal everywhere.
    pub(super) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key).raw("\"").raw(value).raw("\"")
    }

    /// A string of a prefix and a number.
    pub(super) fn numbered(&mut self, key: &str, prefix: &str, number: u64) -> &mut Self {
        self.raw(key).raw("\"").raw(prefix);
        self.digits(number).raw("\"")
    }

    /// A string of a prefix and 16 hexadecimal digits for each number.
    pub(super) fn hex(&mut self, key: &str, prefix: &str, numbers: &[u64]) -> &mut Self {
        self.raw(key).raw("\"").raw(prefix);
        for number in numbers {
            let mut digits = [0; 16];
            for (idx, digit) in digits.iter_mut().enumerate() {
                *digit = b"0123456789abcdef"[(number >> (60 - 4 * idx)) as usize & 15];
            }
            self.0.extend_from_slice(&digits);
        }
        self.raw("\"")
    }

    /// A whole number.
    pub(super) fn integer(&mut self, key: &str, value: u64) -> &mut Self {
        self.raw(key).digits(value)
    }

    /// `value` / 10 with one digit behind the point.
    pub(super) fn tenths(&mut self, key: &str, value: u64) -> &mut Self {
        self.raw(key).digits(value / 10);
        self.0.extend_from_slice(&[b'.', b'0' + (value % 10) as u8]);
        self
    }

    /// `value` / 100 with two digits behind the point.
    pub(super) fn hundredths(&mut self, key: &str, value: u64) -> &mut Self {
        self.raw(key).digits(value / 100).raw(".").padded(value % 100, 2)
    }

    /// Bytes as they are.
    pub(super) fn raw(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// A number with at least `width` digits, at most 20.
    pub(super) fn padded(&mut self, mut value: u64, width: usize) -> &mut Self {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        while value > 0 {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
        }
        let first = at.min(digits.len() - width.min(20));
        self.0.extend_from_slice(&digits[first..]);
        self
    }

    fn digits(&mut self, value: u64) -> &mut Self {
        self.padded(value, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_should() {
        let mut out = Vec::new();
        let mut object = Object(&mut out);
        object.integer("a", 0).integer(" b", 907).hundredths(" c", 5).hundredths(" d", 12_345);
        object.tenths(" e", 100).padded(7, 3).hex(" f", "x", &[255]).integer(" g", u64::MAX);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "a0 b907 c0.05 d123.45 e10.0007 f\"x00000000000000ff\" g18446744073709551615"
        );
    }
}
