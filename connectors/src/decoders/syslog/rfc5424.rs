//! RFC 5424, strictly.
//!
//! ```text
//! <34>1 2003-10-11T22:14:15.003Z mymachine su - ID47 [a@1 x="1"][b@1] ␣BOM'su root' failed
//! PRI └VERSION └TIMESTAMP        └HOSTNAME │  │ └MSGID └STRUCTURED-DATA └MSG
//!                                   APP-NAME  └PROCID
//! ```

use super::parsed::{Parsed, priority, token_end};
use crate::decoders::clock;
use crate::decoders::texts::Failure;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads a message up to its structured data; `message` is left to [`message`], once it is known where that ends.
#[inline]
pub(super) fn header(text: &str) -> Result<Parsed<'_>, Failure> {
    let bytes = text.as_bytes();
    let (priority, len) = priority(bytes)
        .filter(|(_, len)| *len == 3 || bytes[1] != b'0')
        .ok_or_else(|| Failure::new("invalid_priority", "no `<0>` to `<191>` at the start"))?;
    if bytes.get(len..len + 2) != Some(b"1 ") {
        return Err(wrong_version(text, len));
    }
    let mut pos = len + 2;
    let time = if bytes[pos..].starts_with(b"-") {
        pos += 1;
        None
    } else {
        let (time, len) = clock::rfc3339(&bytes[pos..]).ok_or_else(|| invalid("timestamp", pos))?;
        pos += len;
        Some(time)
    };
    if bytes.get(pos) != Some(&b' ') {
        return Err(invalid("timestamp", pos));
    }
    let mut parts = [None; 4];
    for (part, (name, len_max)) in parts.iter_mut().zip(PARTS) {
        let start = pos + 1;
        pos = token_end(bytes, start);
        if pos == start || pos - start > len_max || bytes.get(pos) != Some(&b' ') {
            return Err(invalid(name, start));
        }
        *part = Some(&text[start..pos]).filter(|part| *part != "-");
    }
    let [hostname, appname, procid, msgid] = parts;
    Ok(Parsed {
        priority,
        version: Some(&text[len..=len]),
        time,
        hostname,
        appname,
        procid,
        msgid,
        structured: Some(&text[pos + 1..]),
        message: None,
    })
}

/// The parts between time and structured data, and how long they may be.
const PARTS: [(&str, usize); 4] = [("hostname", 255), ("appname", 48), ("procid", 128), ("msgid", 32)];

/// The message, from what follows the structured data.
#[inline]
pub(super) fn message(rest: &str) -> Result<Option<&str>, Failure> {
    if rest.is_empty() {
        return Ok(None);
    }
    let Some(message) = rest.strip_prefix(' ') else {
        return Err(Failure::new("invalid_structured_data", "no space between it and the message"));
    };
    Ok(Some(message.strip_prefix(BYTE_ORDER_MARK).unwrap_or(message)).filter(|message| !message.is_empty()))
}

#[cold]
fn invalid(part: &str, pos: usize) -> Failure {
    Failure::new(&format!("invalid_{part}"), format!("not as RFC 5424 has it, at byte {pos}"))
}

#[cold]
fn wrong_version(text: &str, pos: usize) -> Failure {
    let version: String = text[pos..].chars().take_while(char::is_ascii_digit).take(3).collect();
    if version.is_empty() || version == "1" {
        return Failure::new("invalid_version", format!("no `1` and space at byte {pos}"));
    }
    Failure::new("unsupported_version", format!("version {version} of the protocol"))
}
