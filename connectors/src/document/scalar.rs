//! Scalars as JSON text, appended in as few pieces as possible.
//!
//! Text is looked through in blocks that the compiler turns into SIMD; only text with something to escape is written
//! byte by byte. What is written is byte for byte what serde_json writes.

use std::cell::Cell;

use arrow::array::{MAX_INLINE_VIEW_LEN, StringViewArray};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

pub(super) const SECONDS_PER_DAY: i64 = 86_400;

/// A piece of text that is appended often: short ones as one block of fixed size.
pub(super) struct Piece {
    text: Box<[u8]>,
    block: [u8; BLOCK],
}

const BLOCK: usize = 32;

impl Piece {
    pub(super) fn new(text: Vec<u8>) -> Self {
        let mut block = [0; BLOCK];
        let n = text.len().min(BLOCK);
        block[..n].copy_from_slice(&text[..n]);
        Self { text: text.into(), block }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.text
    }

    /// Appends it to `out`.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if self.text.len() <= BLOCK {
            // A copy whose size the compiler knows is a few instructions; what is too much is cut off again.
            let end = out.len() + self.text.len();
            out.extend_from_slice(&self.block);
            out.truncate(end);
        } else {
            out.extend_from_slice(&self.text);
        }
    }
}

/// `00` to `99`.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut n = 0;
    while n < 100 {
        pairs[n] = [b'0' + n as u8 / 10, b'0' + n as u8 % 10];
        n += 1;
    }
    pairs
};

#[inline]
fn pair(n: i64) -> [u8; 2] {
    PAIRS[n as usize % 100]
}

/// Appends what serde makes of `value`.
pub(crate) fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("scalars serialise, and writing to memory cannot fail");
}

/// Appends an integer.
#[inline]
pub(crate) fn write_signed(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_unsigned(value.unsigned_abs(), out);
}

/// Appends an integer that is not negative.
#[inline]
pub(crate) fn write_unsigned(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut begin = digits.len();
    let mut rest = value;
    while rest >= 10 {
        begin -= 2;
        digits[begin..begin + 2].copy_from_slice(&PAIRS[(rest % 100) as usize]);
        rest /= 100;
    }
    if rest > 0 || value == 0 {
        begin -= 1;
        digits[begin] = b'0' + rest as u8;
    }
    out.extend_from_slice(&digits[begin..]);
}

/// Appends text with quotes around it.
#[inline]
pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if is_plain(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
    } else {
        write_escaped(text.as_bytes(), out);
    }
    out.push(b'"');
}

/// Appends text of a column with quotes around it.
#[inline]
pub(super) fn write_view(texts: &StringViewArray, idx: usize, out: &mut Vec<u8>) {
    let view = texts.views()[idx];
    let len = view as u32;
    if len <= MAX_INLINE_VIEW_LEN {
        // The text is in the view, with zeros behind it.
        let text = view >> 32;
        let spaces = u128::from_le_bytes([b' '; 16]) & (u128::MAX << (8 * len));
        let [low, high] = [text | spaces, (text | spaces) >> 64].map(|word| (word as u64).to_le_bytes());
        if word_is_plain(low) && word_is_plain(high) {
            let quote = u128::from(b'"');
            let quoted = quote | text << 8 | quote << (8 * (len + 1));
            let end = out.len() + len as usize + 2;
            // As with a [`Piece`].
            out.extend_from_slice(&quoted.to_le_bytes());
            out.truncate(end);
            return;
        }
    }
    write_text(texts.value(idx), out);
}

/// Whether a byte stands in a JSON string as it is.
#[inline]
fn plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Whether all of `text` does.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    const BYTES: usize = 16;
    let (blocks, rest) = text.as_chunks::<BYTES>();
    let block_is_plain = |block: &[u8; BYTES]| block.iter().fold(true, |all, byte| all & plain(*byte));
    if !blocks.iter().all(block_is_plain) {
        return false;
    }
    match text.last_chunk::<BYTES>() {
        // Looking at some bytes twice is cheaper than at each by itself.
        Some(last) => block_is_plain(last),
        None => word_by_word(rest),
    }
}

/// [`is_plain`] for less than a block.
#[inline]
fn word_by_word(text: &[u8]) -> bool {
    match (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        (Some(first), Some(last)) => word_is_plain(*first) && word_is_plain(*last),
        _ => text.iter().all(|byte| plain(*byte)),
    }
}

#[inline]
fn word_is_plain(word: [u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(word);
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let quotes = is_zero(word ^ (ONES * 0x22)) | is_zero(word ^ (ONES * 0x5c));
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    (quotes | controls) & HIGH == 0
}

#[cold]
fn write_escaped(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| !plain(*byte)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            control => {
                let digit = |n: u8| b"0123456789abcdef"[usize::from(n)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(control >> 4), digit(control & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Appends base64 with quotes around it.
pub(crate) fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let n = STANDARD.encode_slice(bytes, &mut out[start..]).expect("four bytes for every three");
    out.truncate(start + n);
    out.push(b'"');
}

/// Appends `value × 10^-scale` with all digits of the scale.
pub(super) fn write_decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    let mut digits = [b'0'; 40];
    let mut begin = digits.len();
    let mut rest = value.unsigned_abs();
    while rest > 0 {
        begin -= 1;
        digits[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let digits = &digits[begin..];
    let n_fraction = usize::try_from(scale).unwrap_or(0);
    let n_whole = digits.len().saturating_sub(n_fraction);
    out.extend_from_slice(if n_whole == 0 { b"0" } else { &digits[..n_whole] });
    if n_fraction > 0 {
        out.push(b'.');
        out.extend(std::iter::repeat_n(b'0', n_fraction - (digits.len() - n_whole)));
        out.extend_from_slice(&digits[n_whole..]);
    } else if value != 0 {
        out.extend(std::iter::repeat_n(b'0', usize::from(scale.unsigned_abs())));
    }
}

/// Writes timestamps. Those of the same second, as most rows of a batch are, have the same text but for its end.
pub(super) struct TimestampWriter<'a> {
    ticks: &'a [i64],
    per_second: i64,
    /// The second that was written last.
    last: Cell<(i64, [u8; SECOND_BYTES])>,
}

/// `"2024-01-02T03:04:05`
const SECOND_BYTES: usize = 20;

impl<'a> TimestampWriter<'a> {
    pub(super) fn new(ticks: &'a [i64], per_second: i64) -> Self {
        Self { ticks, per_second, last: Cell::new((0, *b"\"1970-01-01T00:00:00")) }
    }

    /// Appends `"2024-01-02T03:04:05.25Z"`.
    #[inline]
    pub(super) fn write(&self, idx: usize, out: &mut Vec<u8>) {
        let (second, nanos) = split(self.ticks[idx], self.per_second);
        let (last, text) = self.last.get();
        if second == last {
            out.extend_from_slice(&text);
        } else {
            let start = out.len();
            write_second(second, out);
            if let Ok(text) = out[start..].try_into() {
                self.last.set((second, text));
            }
        }
        write_fraction(nanos, out);
    }
}

/// Appends `"2024-01-02T03:04:05.25Z"`.
pub(super) fn write_timestamp(ticks: i64, per_second: i64, out: &mut Vec<u8>) {
    let (second, nanos) = split(ticks, per_second);
    write_second(second, out);
    write_fraction(nanos, out);
}

/// The seconds, and the nanoseconds behind them.
#[inline]
fn split(ticks: i64, per_second: i64) -> (i64, u32) {
    // A divisor that the compiler knows is a multiplication.
    fn by<const PER_SECOND: i64>(ticks: i64) -> (i64, u32) {
        let nanos = ticks.rem_euclid(PER_SECOND) * (1_000_000_000 / PER_SECOND);
        (ticks.div_euclid(PER_SECOND), nanos as u32)
    }
    match per_second {
        1 => (ticks, 0),
        1_000 => by::<1_000>(ticks),
        1_000_000 => by::<1_000_000>(ticks),
        _ => by::<1_000_000_000>(ticks),
    }
}

/// Appends `"2024-01-02T03:04:05`.
fn write_second(seconds: i64, out: &mut Vec<u8>) {
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = civil(days);
    out.push(b'"');
    write_date_of(year, month, day, out);
    let [h1, h2] = pair(second / 3600);
    let [m1, m2] = pair(second / 60 % 60);
    let [s1, s2] = pair(second % 60);
    out.extend_from_slice(&[b'T', h1, h2, b':', m1, m2, b':', s1, s2]);
}

/// Appends `.25Z"`, with no more digits than are needed.
#[inline]
fn write_fraction(nanos: u32, out: &mut Vec<u8>) {
    if nanos > 0 {
        let (micros, nanos) = (i64::from(nanos / 1_000), nanos % 1_000);
        let [a, b] = pair(micros / 10_000);
        let [c, d] = pair(micros / 100);
        let [e, f] = pair(micros);
        let [g, h] = pair(i64::from(nanos / 10));
        let block = [b'.', a, b, c, d, e, f, g, h, b'0' + (nanos % 10) as u8];
        let mut len = if nanos == 0 { 7 } else { block.len() };
        while block[len - 1] == b'0' {
            len -= 1;
        }
        let end = out.len() + len;
        out.extend_from_slice(&block);
        out.truncate(end);
    }
    out.extend_from_slice(b"Z\"");
}

/// Appends `"2024-01-02"`.
pub(super) fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil(days);
    out.push(b'"');
    write_date_of(year, month, day, out);
    out.push(b'"');
}

/// Year, month and day of the proleptic Gregorian calendar.
#[inline]
fn civil(days: i64) -> (i64, i64, i64) {
    // Years begin in March, so that the leap day is a year's last; an era is 400 of them.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Years outside 0 to 9999 have a sign and at least six digits, as ISO 8601 wants it.
fn write_date_of(year: i64, month: i64, day: i64, out: &mut Vec<u8>) {
    if (0..=9999).contains(&year) {
        write_digits(year, 4, out);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        write_digits(year.abs(), 6, out);
    }
    out.push(b'-');
    out.extend_from_slice(&pair(month));
    out.push(b'-');
    out.extend_from_slice(&pair(day));
}

/// Appends a number that is not negative with at least `n_digits` digits.
fn write_digits(value: i64, n_digits: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut begin = digits.len();
    let mut rest = value;
    while rest > 0 || digits.len() - begin < n_digits {
        begin -= 1;
        digits[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits[begin..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_is_escaped_as_serde_json_does_wherever_it_stands() {
        for char in (0..0x100).filter_map(char::from_u32) {
            for len in [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 40] {
                for at in 0..=len {
                    let text: String = "x".repeat(at) + &char.to_string() + &"y".repeat(len - at);
                    let expect = serde_json::to_string(&text).unwrap();
                    assert_eq!(written(|out| write_text(&text, out)), expect);
                }
            }
        }
    }

    #[test]
    fn pieces_of_any_length() {
        for len in [0, 1, 31, 32, 33, 100] {
            let text = "p".repeat(len);
            assert_eq!(written(|out| Piece::new(text.clone().into_bytes()).write(out)), text);
        }
    }

    #[test]
    fn texts_of_columns_are_written_as_texts() {
        let texts = [
            "",
            "x",
            "é",
            "a\"b",
            "\\",
            "tab\t",
            "\u{0}",
            "exactly 12 b",
            "13 bytes long",
            "12 bytes, \u{7f}\u{1f}",
        ];
        let column = StringViewArray::from_iter_values(texts);
        for (idx, text) in texts.into_iter().enumerate() {
            let expect = serde_json::to_string(text).unwrap();
            assert_eq!(written(|out| write_view(&column, idx, out)), expect);
        }
    }

    #[test]
    fn timestamps_of_a_column_are_written_one_by_one() {
        let far = 253_402_300_800_000;
        for per_second in [1, 1_000, 1_000_000, 1_000_000_000] {
            let ticks = [0, 1, 999, 1_000, 1_001, 1_010, -1, 1_700_000_000_123, far, far + 1, far];
            let writer = TimestampWriter::new(&ticks, per_second);
            for (idx, ticks) in ticks.into_iter().enumerate() {
                let expect = written(|out| write_timestamp(ticks, per_second, out));
                assert_eq!(written(|out| writer.write(idx, out)), expect);
            }
        }
    }

    proptest! {
        #[test]
        fn scalars_are_written_as_serde_json_does(text in ".*|[ -~\"\\\\\n]{0,80}", signed in any::<i64>(), unsigned in any::<u64>(), small in 0_u64..1000) {
            prop_assert_eq!(written(|out| write_text(&text, out)), serde_json::to_string(&text).unwrap());
            let column = StringViewArray::from_iter_values([&text]);
            prop_assert_eq!(written(|out| write_view(&column, 0, out)), serde_json::to_string(&text).unwrap());
            prop_assert_eq!(written(|out| write_signed(signed, out)), signed.to_string());
            prop_assert_eq!(written(|out| write_unsigned(unsigned, out)), unsigned.to_string());
            prop_assert_eq!(written(|out| write_unsigned(small, out)), small.to_string());
        }

        #[test]
        fn times_are_jiffs(micros in -62_135_596_800_000_000_i64..253_402_207_200_000_000) {
            let expect = format!("\"{}\"", jiff::Timestamp::from_microsecond(micros).unwrap());
            prop_assert_eq!(written(|out| write_timestamp(micros, 1_000_000, out)), expect);
            let nanos = micros % 1_000_000_000_000_000 * 1_000 + micros.rem_euclid(999);
            let expect = format!("\"{}\"", jiff::Timestamp::from_nanosecond(nanos.into()).unwrap());
            prop_assert_eq!(written(|out| write_timestamp(nanos, 1_000_000_000, out)), expect);
        }
    }
}
