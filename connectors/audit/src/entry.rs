//! One entry: how it is written, and what must be true of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::canonical::{self, Value};
use crate::merkle::Hash;

/// What makes up an entry.
pub(crate) struct Entry<'a> {
    pub(crate) log: &'a str,
    pub(crate) n: u64,
    /// Microseconds since the Unix epoch.
    pub(crate) time: i64,
    /// The leaf hash of the entry before; `None` for the first.
    pub(crate) prev: Option<&'a Hash>,
    pub(crate) kind: &'a str,
    pub(crate) id: &'a str,
    /// Canonical JSON.
    pub(crate) body: &'a str,
}

impl Entry<'_> {
    /// The entry as canonical JSON.
    pub(crate) fn write(&self) -> String {
        let mut out = String::with_capacity(self.body.len() + self.id.len() + 192);
        out.push_str("{\"body\":");
        out.push_str(self.body);
        out.push_str(",\"id\":");
        canonical::write_string(self.id, &mut out);
        out.push_str(",\"log\":");
        canonical::write_string(self.log, &mut out);
        out.push_str(",\"n\":");
        out.push_str(&self.n.to_string());
        out.push_str(",\"prev\":\"");
        out.push_str(&prev_text(self.prev));
        out.push_str("\",\"t\":\"");
        out.push_str(&rfc3339(self.time));
        out.push_str("\",\"type\":");
        canonical::write_string(self.kind, &mut out);
        out.push_str(",\"v\":1}");
        out
    }
}

fn prev_text(prev: Option<&Hash>) -> String {
    prev.map(|hash| STANDARD.encode(hash)).unwrap_or_default()
}

/// An entry that was read.
pub(crate) struct Parsed {
    pub(crate) kind: String,
    pub(crate) id: String,
}

/// What is wrong with an entry.
pub(crate) enum EntryFault {
    /// With the entry itself.
    Here(String),
    /// It does not name its predecessor as it is: one of the two was changed.
    Chain,
}

/// Checks everything about an entry that can be known from it and its predecessor.
pub(crate) fn check(entry: &[u8], log: &str, n: u64, prev: Option<&Hash>) -> Result<Parsed, EntryFault> {
    let here = |what: &str| EntryFault::Here(what.to_owned());
    let value = canonical::parse(entry).map_err(|e| EntryFault::Here(format!("it is no JSON: {e}")))?;
    let mut spelled = String::with_capacity(entry.len());
    canonical::write(&value, &mut spelled);
    if spelled.as_bytes() != entry {
        return Err(here("it is not canonical JSON"));
    }
    let Value::Object(members) = value else { return Err(here("it is no object")) };
    let names = ["body", "id", "log", "n", "prev", "t", "type", "v"];
    if !members.iter().map(|(name, _)| name.as_str()).eq(names) {
        return Err(here("it has other members than an entry"));
    }
    let mut values = members.into_iter().map(|(_, value)| value);
    let mut next = || values.next();
    let (Some(_), Some(Value::String(id))) = (next(), next()) else { return Err(here("`id` is no string")) };
    if next() != Some(Value::String(log.to_owned())) {
        return Err(here("it belongs to another log"));
    }
    if next() != Some(Value::Atom(&n.to_string())) {
        return Err(here("it has another number"));
    }
    let linked = next() == Some(Value::String(prev_text(prev)));
    if !matches!(next(), Some(Value::String(time)) if is_time(&time)) {
        return Err(here("`t` is no time"));
    }
    let Some(Value::String(kind)) = next() else { return Err(here("`type` is no string")) };
    if next() != Some(Value::Atom("1")) {
        return Err(here("it has another version"));
    }
    if linked { Ok(Parsed { kind, id }) } else { Err(EntryFault::Chain) }
}

/// `id` and `type` of an entry that was checked before.
pub(crate) fn identity(entry: &[u8]) -> Option<Parsed> {
    let Value::Object(members) = canonical::parse(entry).ok()? else { return None };
    let text = |name: &str| {
        members.iter().find_map(|(n, value)| match value {
            Value::String(text) if n == name => Some(text.clone()),
            _ => None,
        })
    };
    Some(Parsed { kind: text("type")?, id: text("id")? })
}

/// A time as RFC 3339 in UTC, with microseconds.
pub(crate) fn rfc3339(micros: i64) -> String {
    let (days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

fn is_time(text: &str) -> bool {
    let pattern = b"dddd-dd-ddTdd:dd:dd.ddddddZ";
    text.len() == pattern.len()
        && text.bytes().zip(pattern).all(|(b, p)| if *p == b'd' { b.is_ascii_digit() } else { b == *p })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199_123_456, "2024-02-29T23:59:59.123456Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(micros), text);
            assert!(is_time(text));
        }
    }

    #[test]
    fn an_entry_is_canonical_and_checked() {
        let entry = Entry {
            log: "logdrive/\"x\"",
            n: 7,
            time: 1,
            prev: Some(&[3; 32]),
            kind: "event",
            id: "s-1-2",
            body: r#"{"a":1.50}"#,
        };
        let text = entry.write();
        assert_eq!(canonical::canonicalise(text.as_bytes()).as_deref(), Ok(text.as_str()));
        let check = |log, n, prev| check(text.as_bytes(), log, n, prev);
        assert_eq!(check("logdrive/\"x\"", 7, Some(&[3; 32])).ok().map(|p| p.id).as_deref(), Some("s-1-2"));
        assert!(matches!(check("other", 7, Some(&[3; 32])), Err(EntryFault::Here(_))));
        assert!(matches!(check("logdrive/\"x\"", 8, Some(&[3; 32])), Err(EntryFault::Here(_))));
        assert!(matches!(check("logdrive/\"x\"", 7, Some(&[4; 32])), Err(EntryFault::Chain)));
    }
}
