//! JSON by RFC 8259, strictly: where a value ends, and what a number says.
//!
//! Every function gets the position at which something begins and answers with the position behind it; `None` is
//! "not understood here", which may be an error or just something for the general path. Positions only grow, so a
//! caller that knows where the message ends need compare once.

use super::lanes::{self, StopBits};
use crate::document::scan::skip_space;

/// How deep values are followed; beyond, the general path decides.
pub(super) const DEPTH_MAX: u32 = 48;

/// A message. Positions are in the whole chunk: looking past the end of a message is harmless, and its end is compared
/// with the position reached.
pub(super) struct Text<'a> {
    /// The chunk.
    pub(super) bytes: &'a [u8],
    /// Where its strings stop.
    pub(super) stops: StopBits<'a>,
    /// The end of the message.
    pub(super) end: usize,
}

impl<'a> Text<'a> {
    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> Option<&'a u8> {
        self.bytes.get(at)
    }
}

/// A number as its text says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    /// Whether it begins with a minus.
    pub(super) negative: bool,
    /// All digits, without the point; only if `plain`.
    pub(super) digits: u64,
    /// How many of the digits stand behind the point; only if `plain`.
    pub(super) n_fraction: usize,
    /// Whether it has no exponent and so few digits (18 at most) that they were read.
    pub(super) plain: bool,
    /// The position behind it.
    pub(super) end: usize,
}

/// The number at `at`.
#[inline(always)]
pub(super) fn number(text: &Text<'_>, at: usize) -> Option<Number> {
    let negative = *text.get(at)? == b'-';
    let begin = at + usize::from(negative);
    let (whole, n_whole) = digits(text, begin);
    if n_whole > DIGITS_MAX {
        return long_number(text, begin, negative);
    }
    let mut end = begin + n_whole;
    // Without a branch on the number of digits, which varies.
    if (n_whole == 0) | ((n_whole > 1) & (text.get(begin) == Some(&b'0'))) {
        return None;
    }
    let (mut value, mut n_fraction) = (whole, 0);
    if text.get(end) == Some(&b'.') {
        let (fraction, n) = digits(text, end + 1);
        if n == 0 {
            return None;
        }
        if n_whole + n > DIGITS_MAX {
            return long_number(text, begin, negative);
        }
        value = whole * POWERS_OF_TEN[n] + fraction;
        n_fraction = n;
        end += 1 + n;
    }
    if let Some(b'e' | b'E') = text.get(end) {
        return long_number(text, begin, negative);
    }
    Some(Number { negative, digits: value, n_fraction, plain: true, end })
}

/// The number that the digits at `at` make, and how many they are, if they are fewer than 16.
#[inline(always)]
fn digits(text: &Text<'_>, at: usize) -> (u64, usize) {
    let (first, n) = lanes::digits(text.bytes, at);
    if n < 8 {
        return (first, n);
    }
    let (second, n) = lanes::digits(text.bytes, at + 8);
    if n < 8 {
        return (first * POWERS_OF_TEN[n] + second, 8 + n);
    }
    (0, usize::from(u8::MAX))
}

/// So many digits fit into an `i64`, whatever they are.
const DIGITS_MAX: usize = 18;

/// The powers of ten that fit.
const POWERS_OF_TEN: [u64; 19] = {
    let mut powers = [1; 19];
    let mut idx = 1;
    while idx < powers.len() {
        powers[idx] = powers[idx - 1] * 10;
        idx += 1;
    }
    powers
};

/// The number whose first digit is at `begin`, digit by digit.
#[inline(never)]
fn long_number(text: &Text<'_>, begin: usize, negative: bool) -> Option<Number> {
    let mut digits = 0_u64;
    let mut run = |from: usize| {
        let rest = text.bytes.get(from..).unwrap_or_default();
        let n = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        for digit in &rest[..n] {
            digits = digits.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        }
        n
    };
    let n_whole = run(begin);
    if n_whole == 0 || (n_whole > 1 && text.get(begin) == Some(&b'0')) {
        return None;
    }
    let mut end = begin + n_whole;
    let mut n_fraction = 0;
    if text.get(end) == Some(&b'.') {
        n_fraction = run(end + 1);
        if n_fraction == 0 {
            return None;
        }
        end += 1 + n_fraction;
    }
    let mut plain = n_whole + n_fraction <= DIGITS_MAX;
    if let Some(b'e' | b'E') = text.get(end) {
        end += 1 + usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        let n = run(end);
        if n == 0 {
            return None;
        }
        end += n;
        plain = false;
    }
    Some(Number { negative, digits, n_fraction, plain, end })
}

impl Number {
    /// The nearest float, if it is exact to say.
    #[inline(always)]
    pub(super) fn float(&self) -> Option<f64> {
        // Both are floats without rounding, so that dividing rounds once.
        if !self.plain || self.digits >= 1 << 53 {
            return None;
        }
        let value = if self.n_fraction == 0 {
            self.digits as f64
        } else {
            self.digits as f64 / POWERS_OF_TEN[self.n_fraction] as f64
        };
        Some(if self.negative { -value } else { value })
    }

    /// The integer.
    #[inline(always)]
    pub(super) fn integer(&self) -> Option<i64> {
        if !self.plain || self.n_fraction > 0 {
            return None;
        }
        // 18 digits fit.
        let value = self.digits as i64;
        Some(if self.negative { -value } else { value })
    }

    /// The integer of `10^-scale`, if it has at most `precision` digits and nothing need be cut off.
    #[inline(always)]
    pub(super) fn decimal(&self, precision: u8, scale: i8) -> Option<i128> {
        if !self.plain {
            return None;
        }
        let shift = usize::try_from(scale).ok()?.checked_sub(self.n_fraction)?;
        let value = self.digits.checked_mul(*POWERS_OF_TEN.get(shift)?)?;
        let fits = POWERS_OF_TEN.get(usize::from(precision)).is_none_or(|limit| value < *limit);
        // From 19 digits on the precision is not in the table; a value of 64 bits may have 20.
        let fits = fits && (precision != 19 || value < 10_000_000_000_000_000_000);
        let value = i128::from(value);
        fits.then_some(if self.negative { -value } else { value })
    }
}

/// The position behind `literal`, if it stands there.
#[inline(always)]
pub(super) fn literal<const N: usize>(text: &Text<'_>, at: usize, literal: &[u8; N]) -> Option<usize> {
    (text.bytes.get(at..)?.first_chunk::<N>()? == literal).then_some(at + N)
}

/// The position of the closing quote of the string whose first character is at `begin`.
#[inline(always)]
pub(super) fn string(text: &Text<'_>, begin: usize) -> Option<usize> {
    let stop = text.stops.next(begin);
    if *text.get(stop)? == b'"' {
        return Some(stop);
    }
    escapes(text, stop, |_| ())
}

/// A part of a string with escapes.
pub(super) enum Part<'a> {
    /// Text as it stands there.
    Plain(&'a [u8]),
    /// The character of an escape.
    Escaped(char),
}

/// Goes through a string from its first escape, at `at`, to its closing quote, the position of which is returned.
#[inline(never)]
pub(super) fn escapes<'a>(text: &Text<'a>, mut at: usize, mut part: impl FnMut(Part<'a>)) -> Option<usize> {
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => {}
            // A control character.
            _ => return None,
        }
        let plain = |character: char| Some((character, at + 2));
        let (character, end) = match text.get(at + 1)? {
            b'"' => plain('"'),
            b'\\' => plain('\\'),
            b'/' => plain('/'),
            b'b' => plain('\u{8}'),
            b'f' => plain('\u{c}'),
            b'n' => plain('\n'),
            b'r' => plain('\r'),
            b't' => plain('\t'),
            b'u' => code_point(text, at),
            _ => None,
        }?;
        part(Part::Escaped(character));
        at = text.stops.next(end);
        part(Part::Plain(text.bytes.get(end..at)?));
    }
}

/// The character of the `\u` escape at `at`, which may be two: a surrogate pair.
fn code_point(text: &Text<'_>, at: usize) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let [b'\\', b'u', digits @ ..] = text.bytes.get(at..)?.first_chunk::<6>()? else { return None };
        digits.iter().try_fold(0, |value, digit| Some(value * 16 + char::from(*digit).to_digit(16)?))
    };
    let first = unit(at)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, at + 6));
    }
    let second = unit(at + 6).filter(|second| (0xdc00..0xe000).contains(second))?;
    // Half a pair is above 0x10ffff or a surrogate itself, so that it is no character.
    let code = 0x1_0000 + (first.checked_sub(0xd800)? << 10) + (second - 0xdc00);
    char::from_u32(code).filter(|_| first < 0xdc00).map(|character| (character, at + 12))
}

/// The position behind the value at `at`, whatever it is.
#[inline(always)]
pub(super) fn value(text: &Text<'_>, at: usize, depth: u32) -> Option<usize> {
    match *text.get(at)? {
        b'"' => Some(string(text, at + 1)? + 1),
        b'-' | b'0'..=b'9' => Some(number(text, at)?.end),
        b't' => literal(text, at, b"true"),
        b'f' => literal(text, at, b"false"),
        b'n' => literal(text, at, b"null"),
        b'{' => object(text, at, depth),
        b'[' => array(text, at, depth),
        _ => None,
    }
}

#[inline(never)]
fn object(text: &Text<'_>, at: usize, depth: u32) -> Option<usize> {
    if depth >= DEPTH_MAX {
        return None;
    }
    let mut at = skip_space(text.bytes, at + 1);
    if *text.get(at)? == b'}' {
        return Some(at + 1);
    }
    loop {
        if *text.get(at)? != b'"' {
            return None;
        }
        at = skip_space(text.bytes, string(text, at + 1)? + 1);
        if *text.get(at)? != b':' {
            return None;
        }
        at = skip_space(text.bytes, value(text, skip_space(text.bytes, at + 1), depth + 1)?);
        match *text.get(at)? {
            b',' => at = skip_space(text.bytes, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

#[inline(never)]
fn array(text: &Text<'_>, at: usize, depth: u32) -> Option<usize> {
    if depth >= DEPTH_MAX {
        return None;
    }
    let mut at = skip_space(text.bytes, at + 1);
    if *text.get(at)? == b']' {
        return Some(at + 1);
    }
    loop {
        at = skip_space(text.bytes, value(text, at, depth + 1)?);
        match *text.get(at)? {
            b',' => at = skip_space(text.bytes, at + 1),
            b']' => return Some(at + 1),
            _ => return None,
        }
    }
}
