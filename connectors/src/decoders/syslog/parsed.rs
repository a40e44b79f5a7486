//! What both dialects have in common: the priority, and the parts of a message.

/// The parts of a message; what it has not, or has as the NILVALUE `-`, is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    /// Facility times eight plus severity, below 192.
    pub(super) priority: u8,
    /// Of RFC 5424.
    pub(super) version: Option<&'a str>,
    /// Microseconds since the Unix epoch.
    pub(super) time: Option<i64>,
    pub(super) hostname: Option<&'a str>,
    pub(super) appname: Option<&'a str>,
    pub(super) procid: Option<&'a str>,
    pub(super) msgid: Option<&'a str>,
    /// What follows MSGID, with the structured data first.
    pub(super) structured: Option<&'a str>,
    pub(super) message: Option<&'a str>,
}

/// The largest priority: local7.debug.
pub(super) const PRIORITY_MAX: u8 = 191;
/// user.notice: what a message without a priority has.
pub(super) const PRIORITY_DEFAULT: u8 = 13;

/// The names of the facilities by their code, as syslog daemons have them.
pub(super) const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];

/// The names of the severities by their code.
pub(super) const SEVERITIES: [&str; 8] =
    ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

/// The priority at the start of a message, such as `<34>`, and how many bytes it takes; `None` if there is none that
/// means anything.
#[inline]
pub(super) fn priority(text: &[u8]) -> Option<(u8, usize)> {
    let digit = |byte: u8| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then_some(u32::from(digit))
    };
    let (value, len) = match *text {
        [b'<', a, b, b'>', ..] => (digit(a)? * 10 + digit(b)?, 4),
        [b'<', a, b, c, b'>', ..] => (digit(a)? * 100 + digit(b)? * 10 + digit(c)?, 5),
        [b'<', a, b'>', ..] => (digit(a)?, 3),
        _ => return None,
    };
    u8::try_from(value).ok().filter(|value| *value <= PRIORITY_MAX).map(|value| (value, len))
}

/// Where the run of printable ASCII characters (no space) that starts at `pos` ends.
#[inline]
pub(super) fn token_end(text: &[u8], mut pos: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    while let Some(word) = text[pos..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // A byte below 33 borrows, 127 overflows into the high bit, and above it is set: the lowest hit is exact,
        // since borrows and carries only come from hits.
        let hits = ((word.wrapping_sub(ONES * 33) & !word) | word | word.wrapping_add(ONES)) & HIGH;
        if hits != 0 {
            return pos + (hits.trailing_zeros() / 8) as usize;
        }
        pos += 8;
    }
    pos + text[pos..].iter().take_while(|b| (33..=126).contains(*b)).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn priorities() {
        for (text, expect) in [
            ("<0>", Some((0, 3))),
            ("<34>1", Some((34, 4))),
            ("<191>x", Some((191, 5))),
            ("<192>x", None),
            ("<999>x", None),
            ("<>x", None),
            ("<1234>", None),
            ("<-1>", None),
            ("<1", None),
            ("34>", None),
            ("", None),
        ] {
            assert_eq!(priority(text.as_bytes()), expect, "{text}");
        }
    }

    #[test]
    fn names_are_short() {
        assert!(FACILITIES.iter().chain(&SEVERITIES).all(|name| name.len() <= 12));
    }

    proptest! {
        #[test]
        fn tokens_end_where_they_end(text in prop::collection::vec(any::<u8>(), 0..40), run in "[!-~]{0,40}", pos in 0_usize..8) {
            let text = [run.as_bytes(), &text].concat();
            let pos = pos.min(text.len());
            let expect = pos + text[pos..].iter().take_while(|b| (33..=126).contains(*b)).count();
            prop_assert_eq!(token_end(&text, pos), expect);
        }
    }
}
