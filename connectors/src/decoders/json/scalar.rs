//! Scalars from their text: exact numbers, points in time, addresses.

use crate::decoders::clock::{self, days_since_epoch, two};

/// Why text is not the number that it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberError {
    /// It is no number at all.
    NotANumber,
    /// It has a fraction, or more digits than the type holds.
    OutOfRange,
}

/// The parts of a decimal number: `±digits × 10^exponent`.
struct Parts<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

/// Splits `[+-]digits[.digits][e[+-]digits]`; a superset of JSON's numbers (leading zeros and `+`), since strings are
/// read with it, too.
fn split(text: &[u8]) -> Option<Parts<'_>> {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest {
        [b'.', rest @ ..] if digits(rest) > 0 => rest.split_at(digits(rest)),
        _ => (&rest[..0], rest),
    };
    let exponent = match rest {
        [] => 0,
        [b'e' | b'E', rest @ ..] => {
            let (negative, rest) = match rest {
                [b'-', rest @ ..] => (true, rest),
                [b'+', rest @ ..] => (false, rest),
                _ => (false, rest),
            };
            if rest.is_empty() || digits(rest) < rest.len() {
                return None;
            }
            let value = rest.iter().fold(0_i64, |n, b| (n * 10 + i64::from(b - b'0')).min(1 << 40));
            if negative { -value } else { value }
        }
        _ => return None,
    };
    (!whole.is_empty()).then_some(Parts { negative, whole, fraction, exponent })
}

/// The number as an integer of `10^-scale`, exactly, with at most `precision` digits.
pub(super) fn decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, NumberError> {
    let parts = split(text).ok_or(NumberError::NotANumber)?;
    let mut digits = parts.whole.iter().chain(parts.fraction).skip_while(|b| **b == b'0').peekable();
    if digits.peek().is_none() {
        return Ok(0);
    }
    // The value is `digits × 10^shift` in units of 10^-scale.
    let shift = parts.exponent - parts.fraction.len() as i64 + i64::from(scale);
    let n_digits = digits.clone().count() as i64;
    if n_digits + shift > i64::from(precision) {
        return Err(NumberError::OutOfRange);
    }
    let mut value = 0_i128;
    for (idx, digit) in digits.enumerate() {
        // Digits below the unit can only be zeros: nothing is rounded.
        if (idx as i64) < n_digits + shift {
            value = value * 10 + i128::from(digit - b'0');
        } else if *digit != b'0' {
            return Err(NumberError::OutOfRange);
        }
    }
    for _ in 0..shift {
        value *= 10;
    }
    Ok(if parts.negative { -value } else { value })
}

/// The number as an `i64`, if it is integral: `1`, `1.0` and `1e3` are, `1.5` is not.
pub(super) fn integer(text: &[u8]) -> Result<i64, NumberError> {
    decimal(text, 19, 0).and_then(|value| i64::try_from(value).map_err(|_| NumberError::OutOfRange))
}

/// The number as the nearest finite `f64`.
pub(super) fn float(text: &[u8]) -> Result<f64, NumberError> {
    split(text).ok_or(NumberError::NotANumber)?;
    let text = std::str::from_utf8(text).map_err(|_| NumberError::NotANumber)?;
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(NumberError::OutOfRange),
        Err(_) => Err(NumberError::NotANumber),
    }
}

/// Microseconds since the Unix epoch, of RFC 3339 and ISO 8601 text. Without a zone it is UTC; digits below the
/// microsecond are cut off.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    usual_timestamp(text.as_bytes()).or_else(|| unusual_timestamp(text))
}

/// The minute of the previous timestamp: those of neighbouring rows are mostly of the same one, and then only the
/// seconds need be read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Minute {
    /// `YYYY-MM-DDThh:mm`.
    text: [u8; 16],
    /// Microseconds since the Unix epoch.
    micros: i64,
}

impl Minute {
    /// The same as [`timestamp`].
    #[inline(always)]
    pub(super) fn timestamp(&mut self, text: &[u8]) -> Option<i64> {
        if let Some((minute, rest)) = text.split_first_chunk::<16>()
            && *minute == self.text
            && let Some(micros) = seconds(rest)
        {
            return Some(self.micros + micros);
        }
        self.other_timestamp(text)
    }

    #[inline(never)]
    fn other_timestamp(&mut self, text: &[u8]) -> Option<i64> {
        if let Some((minute, rest)) = text.split_first_chunk::<16>()
            && let (Some(micros), Some(_)) = (usual_timestamp(minute), seconds(rest))
        {
            *self = Self { text: *minute, micros };
        }
        timestamp(std::str::from_utf8(text).ok()?)
    }
}

/// Microseconds of `:ssZ`, `:ss.mmmZ` and `:ss.mmmuuuZ`.
#[inline(always)]
fn seconds(text: &[u8]) -> Option<i64> {
    let (second, micros) = match text {
        [b':', s1, s2, b'Z'] => (two(*s1, *s2)?, 0),
        [b':', s1, s2, b'.', m1, m2, m3, b'Z'] => {
            (two(*s1, *s2)?, (two(b'0', *m1)? * 100 + two(*m2, *m3)?) * 1_000)
        }
        [b':', s1, s2, b'.', m1, m2, m3, u1, u2, u3, b'Z'] => {
            (two(*s1, *s2)?, two(*m1, *m2)? * 10_000 + two(*m3, *u1)? * 100 + two(*u2, *u3)?)
        }
        _ => return None,
    };
    (second <= 59).then_some(second * 1_000_000 + micros)
}

/// `YYYY-MM-DD`, alone or with `T`, `t` or a space and `hh:mm[:ss[.f…]]`, then nothing, `Z`, `z`, `±hh:mm`, `±hhmm`
/// or `±hh`.
fn usual_timestamp(text: &[u8]) -> Option<i64> {
    let (&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2], rest) = text.split_first_chunk::<10>()? else {
        return None;
    };
    let year = two(y1, y2)? * 100 + two(y3, y4)?;
    let days = days_since_epoch(year, two(m1, m2)?, two(d1, d2)?)?;
    let [b'T' | b't' | b' ', h1, h2, b':', n1, n2, rest @ ..] = rest else {
        return rest.is_empty().then_some(days * 86_400_000_000);
    };
    let (hour, minute) = (two(*h1, *h2)?, two(*n1, *n2)?);
    let (second, micros, zone) = match rest {
        [b':', s1, s2, b'.' | b',', rest @ ..] => {
            let n_digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            if n_digits == 0 {
                return None;
            }
            let micros = (0..6).fold(0, |n, idx| match rest.get(idx) {
                Some(digit) if idx < n_digits => n * 10 + i64::from(digit - b'0'),
                _ => n * 10,
            });
            (two(*s1, *s2)?, micros, &rest[n_digits..])
        }
        [b':', s1, s2, rest @ ..] => (two(*s1, *s2)?, 0, rest),
        _ => (0, 0, rest),
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let offset = zone_offset(zone)?;
    Some((days * 86_400 + hour * 3_600 + minute * 60 + second - offset) * 1_000_000 + micros)
}

/// Seconds east of UTC.
fn zone_offset(zone: &[u8]) -> Option<i64> {
    match zone {
        [] | [b'Z' | b'z'] => Some(0),
        [sign, h1, h2] => clock::offset(*sign, [*h1, *h2], *b"00"),
        [sign, h1, h2, b':', m1, m2] | [sign, h1, h2, m1, m2] => clock::offset(*sign, [*h1, *h2], [*m1, *m2]),
        _ => None,
    }
}

#[cold]
fn unusual_timestamp(text: &str) -> Option<i64> {
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Some(timestamp.as_microsecond());
    }
    // A civil time is read as UTC; but one with a zone that did not parse must not lose it.
    let zoned = text.bytes().skip(10).any(|b| matches!(b, b'+' | b'-' | b'Z' | b'z' | b'['));
    let civil = text.parse::<jiff::civil::DateTime>().ok().filter(|_| !zoned)?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

/// Whether `text[begin..end]` is an IPv4 address, as nearly all addresses are: four numbers below 256 without leading
/// zeros. It may say no at the very end of the text. Without branches, because the lengths of the numbers cannot be
/// predicted.
#[inline(always)]
pub(super) fn is_ipv4(text: &[u8], begin: usize, end: usize) -> bool {
    let (mut at, mut valid) = (begin, true);
    for idx in 0..4 {
        let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk::<4>) else { return false };
        // As in `lanes::digits`: the value of each digit, and the first byte that is none.
        let values = u32::from_le_bytes(*block) ^ 0x3030_3030;
        let others = (values.wrapping_add(0x7676_7676) | values) & 0x8080_8080;
        let n = others.trailing_zeros() / 8;
        let aligned = (u64::from(values) << (32 - 8 * n)) as u32;
        let part = (aligned >> 8 & 0xff) * 100 + (aligned >> 16 & 0xff) * 10 + (aligned >> 24);
        let leading_zero = (values & 0xff == 0) & (n > 1);
        let behind = (u64::from(values) >> (8 * n)) as u8 ^ b'0';
        valid &= (n > 0) & (n < 4) & (part < 256) & !leading_zero & ((idx == 3) | (behind == b'.'));
        at += n as usize + 1;
    }
    valid & (at == end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::net::Ipv4Addr;

    use super::*;
    use crate::decoders::scalars::is_ip;

    #[test]
    fn decimals_are_exact() {
        let check = |text: &str, precision, scale, expect| {
            assert_eq!(decimal(text.as_bytes(), precision, scale), expect, "{text}");
        };
        check("12.34", 10, 2, Ok(1234));
        check("12.3", 10, 2, Ok(1230));
        check("-0.01", 10, 2, Ok(-1));
        check("1e2", 10, 2, Ok(10_000));
        check("1234e-2", 10, 2, Ok(1234));
        check("12.340", 10, 2, Ok(1234));
        check("0012.34", 4, 2, Ok(1234));
        check("0.000", 1, 0, Ok(0));
        check("0e99999999999999999999", 1, 0, Ok(0));
        check("12.345", 10, 2, Err(NumberError::OutOfRange));
        check("123.45", 4, 2, Err(NumberError::OutOfRange));
        check("1e99999999999999999999", 38, 0, Err(NumberError::OutOfRange));
        check("1e-99999999999999999999", 38, 0, Err(NumberError::OutOfRange));
        check("99999999999999999999999999999999999999", 38, 0, Ok(10_i128.pow(38) - 1));
        check("100000000000000000000000000000000000000", 38, 0, Err(NumberError::OutOfRange));
        for text in ["", "-", ".5", "1.", "1e", "1e+", "abc", "1 ", "0x1", "1.2.3", "１"] {
            check(text, 10, 2, Err(NumberError::NotANumber));
        }
    }

    #[test]
    fn integers_are_integral_and_in_range() {
        assert_eq!(integer(b"1.0"), Ok(1));
        assert_eq!(integer(b"1e3"), Ok(1000));
        assert_eq!(integer(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer(b"9223372036854775808"), Err(NumberError::OutOfRange));
        assert_eq!(integer(b"9007199254740993.0"), Ok(9_007_199_254_740_993));
        assert_eq!(integer(b"1.5"), Err(NumberError::OutOfRange));
    }

    #[test]
    fn floats_are_finite() {
        assert_eq!(float(b"1e308"), Ok(1e308));
        assert_eq!(float(b"1e999"), Err(NumberError::OutOfRange));
        assert_eq!(float(b"inf"), Err(NumberError::NotANumber));
    }

    #[test]
    fn timestamps_in_every_usual_form() {
        let check = |text: &str, expect: Option<i64>| assert_eq!(timestamp(text), expect, "{text}");
        let at = 1_704_164_645_000_000; // 2024-01-02T03:04:05Z
        check("2024-01-02T03:04:05Z", Some(at));
        check("2024-01-02t03:04:05z", Some(at));
        check("2024-01-02 03:04:05", Some(at));
        check("2024-01-02T03:04:05.123Z", Some(at + 123_000));
        check("2024-01-02T03:04:05,123456789Z", Some(at + 123_456));
        check("2024-01-02T05:04:05+02:00", Some(at));
        check("2024-01-02T05:04:05+0200", Some(at));
        check("2024-01-01T22:04:05-05", Some(at));
        check("2024-01-02T03:04Z", Some(at - 5_000_000));
        check("2024-01-02", Some(1_704_153_600_000_000));
        check("1970-01-01", Some(0));
        check("1969-12-31T23:59:59.999999Z", Some(-1));
        check("2000-02-29", Some(951_782_400_000_000));
        check("2024-01-02T03:04:05+01:00[Europe/Paris]", Some(at - 3_600_000_000));
        for text in [
            "",
            "2024",
            "2023-02-29",
            "1900-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-01-00",
            "2024-01-02T24:00:00Z",
            "2024-01-02T03:60:00Z",
            "2024-01-02T03:04:05+99:00",
            "2024-01-02T03:04:05.",
            "yesterday",
            "2024-01-02T",
            "1704164645",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn addresses() {
        for text in ["127.0.0.1", "::1", "2001:db8::1", "::ffff:1.2.3.4"] {
            assert!(is_ip(text), "{text}");
        }
        for text in ["", "1.2.3", "1.2.3.4:80", "10.0.0.0/8", "fe80::1%eth0", "01.2.3.4", "[::1]"] {
            assert!(!is_ip(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_memory_of_a_minute_changes_nothing(
            texts in prop::collection::vec("2024-0[12]-3[01][T ]23:5[89](:[0-6][0-9]([.,][0-9]{0,7})?)?(Z|[+]01)?", 1..10),
        ) {
            let mut minute = Minute::default();
            for text in texts {
                prop_assert_eq!(minute.timestamp(text.as_bytes()), timestamp(&text), "{}", text);
            }
        }

        #[test]
        fn ipv4_is_what_std_says(text in "([0-9]{0,3}[.]){2,4}[0-9a]{0,3}|([0-9]{1,2}[.]){3}[0-9]{1,2}|([12]?[0-9][0-9][.]){3}[0-9]{1,3}") {
            let padded = format!("\"{text}\"1.2");
            prop_assert_eq!(is_ipv4(padded.as_bytes(), 1, 1 + text.len()), text.parse::<Ipv4Addr>().is_ok(), "{}", text);
        }

        #[test]
        fn the_fast_path_agrees_with_jiff(second in -62_135_596_800_i64..253_402_207_200, micro in 0_i64..1_000_000) {
            let micros = second * 1_000_000 + micro;
            let text = jiff::Timestamp::from_microsecond(micros).unwrap().to_string();
            prop_assert_eq!(usual_timestamp(text.as_bytes()), Some(micros));
        }

        #[test]
        fn any_text_is_safe(text in "[-+0-9.,:eETZ \\[\\]]{0,40}") {
            // Whatever has an exact decimal value has a float next to it.
            if let Ok(value) = decimal(text.as_bytes(), 38, 10) {
                let float = float(text.as_bytes()).unwrap();
                prop_assert!((value as f64 / 1e10 - float).abs() <= float.abs() * 1e-9, "{} {}", value, float);
            }
            prop_assert!(timestamp(&text).is_none_or(|micros| micros.unsigned_abs() < 1 << 60));
        }
    }
}
