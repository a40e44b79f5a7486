//! Rows as messages of RFC 5424.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use logdrive_schemas::Batch;

use super::Syslog;
use crate::document::Documents;
use crate::sink::{Computed, without_computed};
use crate::sinks::template::{EventTimes, value_text};

/// What the names of all computed columns begin with.
const PREFIX: &str = "_syslog_";

/// The names of the facilities by their code, as syslog daemons have them.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];
const USER: u8 = 1;
const INFORMATIONAL: u8 = 6;

/// The parts that a user may describe, with the longest that the standard allows, in bytes.
const TOKENS: [(&str, usize); 4] = [("hostname", 255), ("app_name", 48), ("procid", 128), ("msgid", 32)];

/// The columns that are needed of every input.
pub(super) fn computed(config: &Syslog) -> Vec<Computed> {
    let column = |name: String, sql: &String| Computed { column: name, sql: sql.clone(), condition: false };
    let parts = [
        ("facility", &config.facility),
        ("severity", &config.severity),
        ("hostname", &config.hostname),
        ("app_name", &config.app_name),
        ("procid", &config.procid),
        ("msgid", &config.msgid),
        ("message", &config.message),
    ];
    let parts = parts.into_iter().filter_map(|(name, sql)| Some((name, sql.as_ref()?)));
    let mut all: Vec<_> = parts.map(|(name, sql)| column(format!("{PREFIX}{name}"), sql)).collect();
    for (element, params) in config.structured_data.values().enumerate() {
        let params = params.values().enumerate();
        all.extend(params.map(|(idx, sql)| column(format!("{PREFIX}sd_{element}_{idx}"), sql)));
    }
    all
}

/// The messages of a batch's rows, in order.
pub(super) fn messages(config: &Syslog, batch: &Batch, mut each: impl FnMut(usize, &[u8])) {
    let plain = without_computed(batch, PREFIX);
    let (documents, times) = (Documents::new(&plain), EventTimes::of(batch));
    let (mut text, mut document) = (String::new(), Vec::new());
    for row in 0..batch.num_rows() {
        let value = |name: &str| {
            let column = batch.rows().column_by_name(&format!("{PREFIX}{name}"))?;
            value_text(column, row).map(|value| value.into_owned())
        };
        text.clear();
        let facility = value("facility").and_then(|text| facility(&text)).unwrap_or(USER);
        let severity = value("severity").and_then(|text| severity(&text)).unwrap_or(INFORMATIONAL);
        let time = Timestamp::from_microsecond(times.get(row)).unwrap_or(Timestamp::UNIX_EPOCH);
        write!(text, "<{}>1 {time:.6}", u16::from(facility) * 8 + u16::from(severity))
            .expect("writing to a string cannot fail");
        for (name, len_max) in TOKENS {
            let given = value(name);
            let own = if name == "app_name" && config.app_name.is_none() { Some("logdrive") } else { None };
            text.push(' ');
            push_token(given.as_deref().or(own).unwrap_or_default(), len_max, &mut text);
        }
        text.push(' ');
        push_structured(
            &config.structured_data,
            |element, idx| value(&format!("sd_{element}_{idx}")),
            &mut text,
        );
        document.clear();
        document.extend_from_slice(text.as_bytes());
        document.push(b' ');
        let start = document.len();
        match value("message") {
            Some(message) => document.extend_from_slice(message.as_bytes()),
            None if config.message.is_none() => documents.write(row, &mut document),
            None => {}
        }
        // A message is one line: some receivers know no other end.
        for byte in &mut document[start..] {
            if matches!(byte, b'\n' | b'\r' | 0) {
                *byte = b' ';
            }
        }
        each(row, &document);
    }
}

/// A code from 0 to 23, or its name.
fn facility(text: &str) -> Option<u8> {
    let code = text.parse().ok().filter(|code| *code < 24);
    code.or_else(|| {
        let text = text.to_ascii_lowercase();
        FACILITIES.iter().position(|name| *name == text).and_then(|code| u8::try_from(code).ok())
    })
}

/// A code from 0 to 7, or what severities and levels are called.
fn severity(text: &str) -> Option<u8> {
    if let Ok(code) = text.parse() {
        return Some(code).filter(|code| *code < 8);
    }
    Some(match &*text.to_ascii_lowercase() {
        "emerg" | "emergency" | "panic" => 0,
        "alert" => 1,
        "crit" | "critical" | "fatal" | "p0" => 2,
        "err" | "error" | "p1" => 3,
        "warn" | "warning" | "p2" => 4,
        "notice" | "p3" => 5,
        "info" | "information" | "informational" => 6,
        "debug" | "trace" => 7,
        _ => return None,
    })
}

/// What stands between two spaces: printable ASCII, `-` if there is nothing.
fn push_token(value: &str, len_max: usize, out: &mut String) {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let start = out.len();
    out.extend(value.chars().take(len_max).map(printable));
    if out.len() == start {
        out.push('-');
    }
}

/// Elements of structured data. Parameters that are null are left out, and so are elements without any.
fn push_structured(
    elements: &BTreeMap<String, BTreeMap<String, String>>,
    value: impl Fn(usize, usize) -> Option<String>,
    out: &mut String,
) {
    let start = out.len();
    for (element, (id, params)) in elements.iter().enumerate() {
        let values = params.keys().enumerate().filter_map(|(idx, name)| Some((name, value(element, idx)?)));
        let mut open = false;
        for (name, value) in values {
            if !std::mem::replace(&mut open, true) {
                out.push('[');
                out.push_str(id);
            }
            write!(out, " {name}=\"").expect("writing to a string cannot fail");
            for c in value.chars() {
                if matches!(c, '"' | '\\' | ']') {
                    out.push('\\');
                }
                out.push(if c.is_control() { ' ' } else { c });
            }
            out.push('"');
        }
        if open {
            out.push(']');
        }
    }
    if out.len() == start {
        out.push('-');
    }
}

/// Whether a name may stand in structured data.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"');
    (1..=32).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::fixtures::events;

    fn config(more: &str) -> Syslog {
        let yaml = format!("endpoint: \"localhost:514\"\n{more}");
        let node = logdrive_schemas::component::Node::parse(yaml.as_bytes(), Default::default()).unwrap();
        logdrive_schemas::component::parse::<Syslog>(&node, &mut Vec::new()).unwrap()
    }

    #[test]
    fn a_row_without_anything_has_all_parts() {
        let batch = events(&[(1, Some("acme"), "{\"a\":\n1}")]);
        let mut found = Vec::new();
        messages(&config(""), &batch, |_, message| found.push(String::from_utf8_lossy(message).into_owned()));
        assert_eq!(found, ["<14>1 1970-01-01T00:00:01.000000Z - logdrive - - - {\"a\": 1}"]);
    }

    #[test]
    fn values_cannot_change_the_form() {
        let mut out = String::new();
        push_token("a b\nü", 4, &mut out);
        assert_eq!(out, "a_b_");
        out.clear();
        push_token("", 4, &mut out);
        assert_eq!(out, "-");
        let elements = [("x@1".to_owned(), [("k".to_owned(), String::new())].into())].into();
        for (value, expected) in
            [(Some("a\"]\\\n"), r#"[x@1 k="a\"\]\\ "]"#), (Some(""), r#"[x@1 k=""]"#), (None, "-")]
        {
            out.clear();
            push_structured(&elements, |_, _| value.map(str::to_owned), &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn names_and_codes_are_understood() {
        assert_eq!(
            (facility("local3"), facility("23"), facility("24"), facility("x")),
            (Some(19), Some(23), None, None)
        );
        assert_eq!(
            (severity("ERROR"), severity("7"), severity("8"), severity("P0")),
            (Some(3), Some(7), None, Some(2))
        );
    }
}
