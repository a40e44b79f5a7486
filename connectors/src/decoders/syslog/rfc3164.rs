//! RFC 3164 and what is sent in its name: whatever is there is taken, and what is not understood is the message.
//!
//! ```text
//! <34>Oct 11 22:14:15 mymachine su[42]: 'su root' failed
//! PRI TIMESTAMP       HOSTNAME  └tag└pid └message
//! ```

use super::parsed::{PRIORITY_DEFAULT, Parsed, priority};
use crate::decoders::clock::{self, DAY, SECOND};

/// The longest tag.
const TAG_BYTES_MAX: usize = 64;
/// The longest host name.
const HOSTNAME_BYTES_MAX: usize = 255;
/// How far in the future a time without a year may be: clocks differ, and so do zones.
const FUTURE_MAX: i64 = DAY;
/// How many years back a day is looked for: 29 February may be eight years ago.
const YEARS_BACK: i64 = 8;

/// When and where a message was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receipt {
    /// Microseconds since the Unix epoch.
    pub(super) received_at: i64,
    /// Seconds east of UTC of the senders' clocks.
    pub(super) offset: i64,
}

/// Reads a message. Everything but the priority may be missing, and that, too.
pub(super) fn parse(text: &str, receipt: Receipt) -> Parsed<'_> {
    let text = text.trim_end_matches(['\n', '\r', '\0']);
    let found = priority(text.as_bytes());
    let (priority, len) = found.unwrap_or((PRIORITY_DEFAULT, 0));
    let mut parsed = Parsed {
        priority,
        version: None,
        time: None,
        hostname: None,
        appname: None,
        procid: None,
        msgid: None,
        structured: None,
        message: None,
    };
    let rest = &text[len..];
    let rest = match timestamp(rest.as_bytes(), receipt) {
        Some((time, len)) => {
            parsed.time = Some(time);
            let rest = &rest[len..];
            // Cisco writes a colon behind the time, with or without a host name in between.
            match rest.strip_prefix(": ") {
                Some(rest) => rest,
                None => {
                    let rest = rest.strip_prefix(' ').unwrap_or(rest);
                    let (hostname, rest) = hostname(rest);
                    parsed.hostname = hostname;
                    rest.strip_prefix(": ").unwrap_or(rest)
                }
            }
        }
        // Without priority and time there is nothing that says that this is syslog at all.
        None if found.is_none() => {
            parsed.message = Some(text).filter(|text| !text.is_empty());
            return parsed;
        }
        None => rest,
    };
    let message = match tag(rest) {
        Some((appname, procid, message)) => {
            parsed.appname = Some(appname);
            parsed.procid = procid;
            message
        }
        None => rest,
    };
    parsed.message = Some(message).filter(|message| !message.is_empty());
    parsed
}

/// The time at the start of `text` and how many bytes it takes, if a space, a colon or nothing follows.
fn timestamp(text: &[u8], receipt: Receipt) -> Option<(i64, usize)> {
    // Cisco marks clocks that are not synchronised.
    let mark = usize::from(matches!(text, [b'*' | b'.', ..]));
    let (time, len) = clock::rfc3339(text).or_else(|| {
        let (time, len) = without_year(&text[mark..], receipt)?;
        Some((time, len + mark))
    })?;
    matches!(text.get(len), None | Some(b' ' | b':')).then_some((time, len))
}

/// `Oct 11 22:14:15`, `Oct  1 22:14:15`, `Oct 1 22:14:15`, each with or without a year before and a fraction behind
/// the time of day.
fn without_year(text: &[u8], receipt: Receipt) -> Option<(i64, usize)> {
    let (&[m1, m2, m3, b' '], rest) = text.split_first_chunk::<4>()? else { return None };
    let month = clock::month([m1, m2, m3])?;
    let (day, rest) = match *rest {
        [b' ', d, b' ', ref rest @ ..] | [d, b' ', ref rest @ ..] => (clock::two(b'0', d)?, rest),
        [d1, d2, b' ', ref rest @ ..] => (clock::two(d1, d2)?, rest),
        _ => return None,
    };
    let (year, rest) = match *rest {
        [y1, y2, y3, y4, b' ', ref rest @ ..] if [y1, y2, y3, y4].iter().all(u8::is_ascii_digit) => {
            (Some(clock::two(y1, y2)? * 100 + clock::two(y3, y4)?), rest)
        }
        _ => (None, rest),
    };
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let time = clock::time_of_day(*time)?;
    let (micros, rest) = fraction(rest);
    let seconds = match year {
        Some(year) => clock::days_since_epoch(year, month, day)? * DAY + time - receipt.offset,
        None => nearest_year(month, day, time, receipt)?,
    };
    Some((seconds * SECOND + micros, text.len() - rest.len()))
}

/// The fraction of a second at the start of `text` in microseconds, and what follows it.
fn fraction(text: &[u8]) -> (i64, &[u8]) {
    let [b'.', digits @ ..] = text else { return (0, text) };
    let n_digits = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if n_digits == 0 {
        return (0, text);
    }
    let digit = |idx: usize| digits.get(idx).filter(|_| idx < n_digits).map_or(0, |b| i64::from(b - b'0'));
    ((0..6).fold(0, |micros, idx| micros * 10 + digit(idx)), &digits[n_digits..])
}

/// The latest such time that is not in the future, seconds since the Unix epoch: what is received on New Year's Day
/// with a date of December is a day old, not a year ahead.
fn nearest_year(month: i64, day: i64, time: i64, receipt: Receipt) -> Option<i64> {
    let received = receipt.received_at.div_euclid(SECOND);
    let year = clock::year_of((received + FUTURE_MAX + receipt.offset).div_euclid(DAY));
    (year - YEARS_BACK..=year).rev().find_map(|year| {
        let seconds = clock::days_since_epoch(year, month, day)? * DAY + time - receipt.offset;
        (seconds <= received + FUTURE_MAX).then_some(seconds)
    })
}

/// The host name at the start of `text`, unless that is a tag or a message already, and what follows its space.
fn hostname(text: &str) -> (Option<&str>, &str) {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    let is_name = !name.is_empty()
        && name.len() <= HOSTNAME_BYTES_MAX
        && !name.ends_with(':')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/%".contains(&b) || !b.is_ascii())
        && !name.starts_with(['%', '/', ':', '-']);
    if is_name { (Some(name), rest) } else { (None, text) }
}

/// A tag, perhaps with a process ID, and the message behind it.
fn tag(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let bytes = text.as_bytes();
    let len = bytes.iter().take(TAG_BYTES_MAX + 1).position(|b| matches!(b, b':' | b'[' | b' '))?;
    let (tag, rest) = text.split_at(len);
    if tag.is_empty() || tag.starts_with('%') || !tag.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let (procid, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (procid, rest) = rest.split_once(']')?;
            if procid.is_empty() || procid.len() > TAG_BYTES_MAX || procid.contains([' ', '[']) {
                return None;
            }
            (Some(procid), rest)
        }
        None => (None, rest),
    };
    match (rest.strip_prefix(':'), procid) {
        (Some(rest), _) if rest.is_empty() || rest.starts_with(' ') || procid.is_some() => {
            Some((tag, procid, rest.strip_prefix(' ').unwrap_or(rest)))
        }
        (None, Some(_)) => Some((tag, procid, rest.strip_prefix(' ')?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> i64 {
        text.parse::<jiff::Timestamp>().unwrap().as_microsecond()
    }

    fn time(text: &str, received_at: &str, offset: i64) -> Option<String> {
        let receipt = Receipt { received_at: micros(received_at), offset };
        let (time, _) = timestamp(text.as_bytes(), receipt)?;
        Some(jiff::Timestamp::from_microsecond(time).unwrap().to_string())
    }

    #[test]
    fn the_year_is_that_which_makes_sense() {
        for (text, received_at, expect) in [
            ("Oct 11 22:14:15", "2003-10-12T00:00:00Z", Some("2003-10-11T22:14:15Z")),
            ("Dec 31 23:59:59", "2024-01-01T00:00:01Z", Some("2023-12-31T23:59:59Z")),
            ("Jan  1 00:30:00", "2023-12-31T23:59:59Z", Some("2024-01-01T00:30:00Z")),
            ("Jan  2 00:30:00", "2023-12-31T23:59:59Z", Some("2023-01-02T00:30:00Z")),
            ("Feb 29 12:00:00", "2024-02-29T12:00:01Z", Some("2024-02-29T12:00:00Z")),
            ("Feb 29 12:00:00", "2023-03-01T12:00:01Z", Some("2020-02-29T12:00:00Z")),
            ("Feb 29 12:00:00", "1903-03-01T12:00:01Z", Some("1896-02-29T12:00:00Z")),
            ("Feb 30 12:00:00", "2024-03-01T12:00:01Z", None),
            ("Oct 11 2001 22:14:15", "2024-03-01T12:00:01Z", Some("2001-10-11T22:14:15Z")),
        ] {
            assert_eq!(time(text, received_at, 0).as_deref(), expect, "{text} at {received_at}");
        }
    }

    #[test]
    fn times_are_those_of_the_zone() {
        let expect = Some("2003-10-11T20:14:15Z".to_owned());
        assert_eq!(time("Oct 11 22:14:15", "2003-10-11T20:14:16Z", 7200), expect);
        assert_eq!(time("Oct 11 2003 22:14:15", "2024-10-11T20:14:16Z", 7200), expect);
        // What has a zone of its own needs none.
        assert_eq!(time("2003-10-11T22:14:15+02:00", "2024-10-11T20:14:16Z", 3600), expect);
        let new_year = time("Jan  1 00:00:10", "2023-12-31T22:00:12Z", 7200);
        assert_eq!(new_year.as_deref(), Some("2023-12-31T22:00:10Z"));
    }

    #[test]
    fn times_in_every_form() {
        let at = "2024-10-11T23:00:00Z";
        for (text, expect) in [
            ("Oct 1 22:14:15", Some("2024-10-01T22:14:15Z")),
            ("Oct  1 22:14:15", Some("2024-10-01T22:14:15Z")),
            ("Oct 01 22:14:15", Some("2024-10-01T22:14:15Z")),
            ("Oct 11 22:14:15.5", Some("2024-10-11T22:14:15.5Z")),
            ("*Oct 11 22:14:15.123456789: %SYS", Some("2024-10-11T22:14:15.123456Z")),
            ("Oct 11 24:14:15", None),
            ("Oct 11 22:14", None),
            ("Oct 11 22:14:15x", None),
            ("Oct 32 22:14:15", None),
            ("October 11 22:14:15", None),
            ("Oct", None),
            ("", None),
        ] {
            assert_eq!(time(text, at, 0).as_deref(), expect, "{text}");
        }
    }
}
