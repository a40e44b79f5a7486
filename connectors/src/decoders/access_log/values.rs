//! Values from their text: times, request lines, sums, and text with escapes.

use std::borrow::Cow;

use crate::decoders::clock::{self, DAY, SECOND};
use crate::decoders::scalars::{float, integer};

/// The sum of numbers with `, ` or ` : ` between them, some of which may be `-`; `Ok(None)` if all are.
pub(super) fn total(text: &str) -> Result<Option<f64>, ()> {
    let mut sum = None;
    for part in text.split([',', ':']).map(str::trim_ascii) {
        if part != "-" {
            sum = Some(sum.unwrap_or(0.0) + float(part).ok_or(())?);
        }
    }
    Ok(sum)
}

/// Microseconds since the Unix epoch of `10/Oct/2000:13:55:36 -0700`.
#[inline]
pub(super) fn time_local(text: &str) -> Option<i64> {
    let text: &[u8; 26] = text.as_bytes().try_into().ok()?;
    let [d1, d2, b'/', m1, m2, m3, b'/', y1, y2, y3, y4, b':', time @ .., b' ', sign, z1, z2, z3, z4] = *text
    else {
        return None;
    };
    let year = clock::two(y1, y2)? * 100 + clock::two(y3, y4)?;
    let days = clock::days_since_epoch(year, clock::month([m1, m2, m3])?, clock::two(d1, d2)?)?;
    let offset = clock::offset(sign, [z1, z2], [z3, z4])?;
    Some((days * DAY + clock::time_of_day(time)? - offset) * SECOND)
}

/// Microseconds since the Unix epoch of `2000-10-10T13:55:36-07:00`.
pub(super) fn time_iso8601(text: &str) -> Option<i64> {
    clock::rfc3339(text.as_bytes()).filter(|(_, len)| *len == text.len()).map(|(micros, _)| micros)
}

/// Microseconds since the Unix epoch of seconds with at most six digits of fraction.
pub(super) fn time_seconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) || seconds.len() > 11 || fraction.len() > 6 {
        return None;
    }
    let micros = integer(fraction)? * 10_i64.pow(6 - fraction.len() as u32);
    Some(integer(seconds)? * SECOND + micros)
}

/// A request line: method, what was asked for, version. `None` if it is no such line: whatever a client sends is
/// logged.
#[inline]
pub(super) fn request(text: &str) -> Option<(&str, &str, &str)> {
    let bytes = text.as_bytes();
    let method_len = bytes.iter().position(|b| *b == b' ')?;
    let method = &bytes[..method_len];
    if method.is_empty() || !method.iter().all(|b| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_')) {
        return None;
    }
    let version_len = bytes.iter().rev().take(12).position(|b| *b == b' ')?;
    let version_start = bytes.len() - version_len;
    let version = text.get(version_start..)?.strip_prefix("HTTP/")?;
    let is_version = matches!(version.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'9', b'.', b'0'..=b'9']);
    let url = text.get(method_len + 1..version_start - 1)?;
    (is_version && !url.is_empty()).then_some((&text[..method_len], url, version))
}

/// The text without the escapes of nginx (`\x22`, and with `escape=json` those of JSON for ASCII) and Apache (`\"`,
/// `\\`, `\n`, `\t` …). As it is if what they stand for is not UTF-8, and where a backslash begins no escape.
#[cold]
pub(super) fn unescaped(text: &str) -> Cow<'_, str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some(at) = memchr::memchr(b'\\', rest) {
        bytes.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let (byte, len) = match *rest {
            [_, b'x', high, low, ..] if hex(high, low).is_some() => (hex(high, low), 4),
            [_, b'u', b'0', b'0', high, low, ..] if hex(high, low).is_some_and(|b| b.is_ascii()) => {
                (hex(high, low), 6)
            }
            [_, byte @ (b'"' | b'\\' | b'/'), ..] => (Some(byte), 2),
            [_, b'b', ..] => (Some(0x08), 2),
            [_, b'f', ..] => (Some(0x0c), 2),
            [_, b'n', ..] => (Some(b'\n'), 2),
            [_, b'r', ..] => (Some(b'\r'), 2),
            [_, b't', ..] => (Some(b'\t'), 2),
            [_, b'v', ..] => (Some(0x0b), 2),
            _ => (Some(b'\\'), 1),
        };
        bytes.extend(byte);
        rest = &rest[len..];
    }
    bytes.extend_from_slice(rest);
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn local_times() {
        let at = 971_211_336_000_000;
        assert_eq!(time_local("10/Oct/2000:13:55:36 -0700"), Some(at));
        assert_eq!(time_local("10/Oct/2000:20:55:36 +0000"), Some(at));
        assert_eq!(time_local("11/Oct/2000:02:25:36 +0530"), Some(at));
        assert_eq!(time_local("29/Feb/2024:00:00:00 +0000"), Some(1_709_164_800_000_000));
        for text in [
            "29/Feb/2023:00:00:00 +0000",
            "29/Feb/1900:00:00:00 +0000",
            "00/Oct/2000:13:55:36 -0700",
            "31/Sep/2000:13:55:36 -0700",
            "10/oct/2000:13:55:36 -0700",
            "10/Oct/2000:24:55:36 -0700",
            "10/Oct/2000:13:60:36 -0700",
            "10/Oct/2000:13:55:60 -0700",
            "10/Oct/2000:13:55:36 -2400",
            "10/Oct/2000:13:55:36 -0760",
            "10/Oct/2000:13:55:36  0700",
            "10/Oct/2000:13:55:36-07000",
            "10/Oct/200:13:55:36 -07000",
            "10/Oct/2000 13:55:36 -0700",
            "1/Oct/2000:13:55:36 -0700",
            "",
        ] {
            assert_eq!(time_local(text), None, "{text}");
        }
    }

    #[test]
    fn other_times() {
        assert_eq!(time_seconds("971211336.007"), Some(971_211_336_007_000));
        assert_eq!(time_seconds("971211336"), Some(971_211_336_000_000));
        for text in ["", ".5", "1.", "-1", "1.1234567", "1e3", "123456789012"] {
            assert_eq!(time_seconds(text), None, "{text}");
        }
        assert_eq!(time_iso8601("2000-10-10T13:55:36-07:00"), Some(971_211_336_000_000));
        assert_eq!(time_iso8601("2000-10-10T13:55:36-07:00 "), None);
    }

    #[test]
    fn request_lines() {
        assert_eq!(request("GET / HTTP/1.1"), Some(("GET", "/", "1.1")));
        assert_eq!(request("PRI * HTTP/2.0"), Some(("PRI", "*", "2.0")));
        assert_eq!(request("get /a b c HTTP/2"), Some(("get", "/a b c", "2")));
        assert_eq!(request("M-SEARCH /é HTTP/1.0"), Some(("M-SEARCH", "/é", "1.0")));
        for text in [
            "",
            " ",
            "GET",
            "GET /",
            "GET  HTTP/1.1",
            "GET HTTP/1.1",
            "/ HTTP/1.1",
            "GET / HTTP/11",
            "GET / HTTP/1.é",
            "\\x16\\x03\\x01 HTTP/1.1",
            "G\\x22T / HTTP/1.1",
            "GET / FTP/1.1",
            "GET /HTTP/1.1",
        ] {
            assert_eq!(request(text), None, "{text}");
        }
    }

    #[test]
    fn escapes_of_nginx_and_apache() {
        for (text, expect) in [
            (r"a\x22b\x5Cc\x5c", "a\"b\\c\\"),
            (r#"\"\\\/\b\f\n\r\t\v"#, "\"\\/\u{8}\u{c}\n\r\t\u{b}"),
            (r"\xC3\xA9t\xc3\xa9", "été"),
            (r"\u001b\u0000", "\u{1b}\u{0}"),
            // What is not UTF-8 stays as it was written.
            (r"\xFF\x22", r"\xFF\x22"),
            // What is no escape stays, too.
            (r"\q\x2\xZZ\u00ff\u1234\", r"\q\x2\xZZ\u00ff\u1234\"),
        ] {
            assert_eq!(unescaped(text), expect, "{text}");
        }
    }

    #[test]
    fn totals() {
        assert_eq!(total("0.125"), Ok(Some(0.125)));
        assert_eq!(total("0.125, 0.5 : 1"), Ok(Some(1.625)));
        assert_eq!(total("-"), Ok(None));
        assert_eq!(total("-, 0.5"), Ok(Some(0.5)));
        assert_eq!(total("0.1, "), Err(()));
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text in ".*|[\\\\xu0-9a-f\"]{0,20}") {
            prop_assert!(time_local(&text).is_none() || text.len() == 26);
            prop_assert!(time_seconds(&text).is_none_or(|time| time >= 0));
            prop_assert!(request(&text).is_none_or(|(method, url, version)| method.len() + url.len() + version.len() + 7 == text.len()));
            prop_assert!(total(&text) != Ok(None) || text.contains('-'));
            let nothing_escaped = !text.contains('\\');
            prop_assert!(!nothing_escaped || unescaped(&text) == text);
        }

        #[test]
        fn local_times_are_jiffs(second in 0_i64..253_402_207_200 - 86_400, offset in -12 * 60_i64..=14 * 60) {
            let zone = jiff::tz::Offset::from_seconds((offset * 60) as i32).unwrap();
            let time = jiff::Timestamp::from_second(second).unwrap();
            let text = zone.to_datetime(time).strftime("%d/%b/%Y:%H:%M:%S").to_string();
            let sign = if offset < 0 { '-' } else { '+' };
            let text = format!("{text} {sign}{:02}{:02}", offset.abs() / 60, offset.abs() % 60);
            prop_assert_eq!(time_local(&text), Some(second * SECOND));
        }
    }
}
