//! The fields of a Protobuf message where they lie: for requests that must not be decoded as a whole.

/// A field that is cut, or of a wire type that nobody uses any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: a field that is cut, or of an unknown wire type")]
pub struct Malformed;

/// The fields of a Protobuf message, in the order in which they lie. Ends after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer of variable length.
    Number(u64),
    /// A message, text, bytes, or packed numbers.
    Bytes(&'a [u8]),
    /// Of four or eight bytes, which are not looked at.
    Fixed,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).ok().filter(|tag| *tag > 0)?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((tag, value))
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (idx, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * idx);
            if byte & 0x80 == 0 {
                self.0 = &self.0[idx + 1..];
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_cut_or_strange_are_errors() {
        let first = |bytes: &'static [u8]| Fields(bytes).next().expect("something").is_ok();
        assert!(first(&[0x08, 0x01]));
        assert!(first(&[0x0A, 0x01, 0x41]));
        assert!(first(&[0x09, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(first(&[0x0D, 0, 0, 0, 0]));
        for bad in [
            &[0x0A_u8, 0x02, 0x41][..],
            &[0x08],
            &[0x00, 0x01],
            &[0x0B],
            &[0x09, 0, 0],
            &[0xFF; 11],
            &[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
        ] {
            let fields: Vec<_> = Fields(bad).collect();
            assert!(fields.last().expect("one").is_err(), "{bad:?}");
        }
    }
}
