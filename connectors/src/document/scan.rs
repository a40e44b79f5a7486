//! Finds where values of a JSON text begin and end, without reading them.
//!
//! For text that a decoder has already accepted. On other bytes the answers mean nothing, but they stay within the
//! text and nothing panics.

use std::borrow::Cow;
use std::ops::Range;

/// The first position from `pos` on that is no JSON white space.
#[inline]
pub(crate) fn skip_space(text: &[u8], mut pos: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\r' | b'\n') = text.get(pos) {
        pos += 1;
    }
    pos
}

/// The position behind the string whose opening quote is at `pos`. Most strings are short, so eight bytes are looked at
/// at once, without a call.
#[inline]
pub(crate) fn string_end(text: &[u8], pos: usize) -> usize {
    let mut at = pos + 1;
    while let Some(word) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*word);
        let stops = zeros(word ^ (LOW * b'"' as u64)) | zeros(word ^ (LOW * b'\\' as u64));
        if stops == 0 {
            at += 8;
            continue;
        }
        at += (stops.trailing_zeros() / 8) as usize;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

const LOW: u64 = 0x0101_0101_0101_0101;

/// The high bit of each byte that is zero, exact up to the first such byte.
#[inline]
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(LOW) & !word & (LOW << 7)
}

/// The position behind the value that starts at `pos`.
#[inline]
pub(crate) fn value_end(text: &[u8], pos: usize) -> usize {
    match text.get(pos) {
        None => text.len(),
        Some(b'"') => string_end(text, pos),
        Some(b'{' | b'[') => container_end(text, pos),
        Some(_) => text[pos..]
            .iter()
            .position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'))
            .map_or(text.len(), |n| pos + n),
    }
}

fn container_end(text: &[u8], pos: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = pos;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// Where the value of a member begins, given the opening quote of its key.
#[inline]
pub(crate) fn value_of_key(text: &[u8], key: usize) -> usize {
    let colon = skip_space(text, string_end(text, key));
    skip_space(text, (colon + 1).min(text.len()))
}

/// The value behind the key that ends at `key_end`.
#[inline]
pub(crate) fn value_behind_key(text: &[u8], key_end: usize) -> Range<usize> {
    let colon = skip_space(text, key_end);
    let value = skip_space(text, (colon + 1).min(text.len()));
    value..value_end(text, value)
}

/// The position behind the comma that follows a value, if one does.
#[inline]
pub(crate) fn behind_comma(text: &[u8], value_end: usize) -> usize {
    let comma = skip_space(text, value_end);
    comma + usize::from(text.get(comma) == Some(&b','))
}

/// The positions at which the elements of the array that starts at `pos` begin.
pub(crate) fn elements(text: &[u8], pos: usize) -> impl Iterator<Item = usize> {
    let mut at = if text.get(pos) == Some(&b'[') { pos + 1 } else { text.len() };
    std::iter::from_fn(move || {
        let element = skip_space(text, at);
        if matches!(text.get(element), None | Some(b']' | b'}')) {
            return None;
        }
        at = behind_comma(text, value_end(text, element));
        Some(element)
    })
}

/// What a key (with its quotes) means: the text with its escapes resolved.
pub(crate) fn key_text(quoted: &[u8]) -> Cow<'_, [u8]> {
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    if memchr::memchr(b'\\', inner).is_none() {
        return Cow::Borrowed(inner);
    }
    match serde_json::from_slice::<String>(quoted) {
        Ok(key) => Cow::Owned(key.into_bytes()),
        Err(_) => Cow::Borrowed(inner),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keys and values of the object at the start of the text.
    fn members(text: &[u8]) -> Vec<(Range<usize>, Range<usize>)> {
        let mut found = Vec::new();
        let mut key = if text.first() == Some(&b'{') { skip_space(text, 1) } else { text.len() };
        while text.get(key) == Some(&b'"') {
            let key_end = string_end(text, key);
            let value = value_behind_key(text, key_end);
            let behind = skip_space(text, behind_comma(text, value.end));
            found.push((key..key_end, value));
            key = behind;
        }
        found
    }

    fn check(text: &str, expect: &[(&str, &str)]) {
        let found: Vec<_> =
            members(text.as_bytes()).into_iter().map(|(key, value)| (&text[key], &text[value])).collect();
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn members_are_found() {
        check("{}", &[]);
        check(" {}", &[]);
        check(r#"{"a":1}"#, &[(r#""a""#, "1")]);
        check(
            "{ \"a\" : [1, \"]\"] ,\n\"b\\\"\":{\"c\":\"\\\\\"} , \"d\":null }",
            &[("\"a\"", "[1, \"]\"]"), ("\"b\\\"\"", "{\"c\":\"\\\\\"}"), ("\"d\"", "null")],
        );
    }

    #[test]
    fn strings_end_at_their_quote_whatever_their_length_and_escapes() {
        for n in 0..40 {
            for escape in ["", "\\\"", "\\\\", "\\u0041"] {
                let text = format!("\"{}{escape}{}\",1", "a".repeat(n), "\u{e9}".repeat(n % 7));
                assert_eq!(string_end(text.as_bytes(), 0), text.len() - 2, "{text}");
            }
        }
    }

    #[test]
    fn elements_are_found() {
        let text = br#"[1, "a,]" ,[2,3],{"x":[]}]"#;
        assert_eq!(elements(text, 0).collect::<Vec<_>>(), [1, 4, 11, 17]);
        assert_eq!(elements(b"[ ]", 0).count(), 0);
    }

    #[test]
    fn keys_mean_what_their_escapes_say() {
        assert_eq!(key_text(br#""le\u0076el""#).as_ref(), b"level");
        assert_eq!(key_text(br#""level""#).as_ref(), b"level");
        assert_eq!(key_text(br#"""#).as_ref(), b"");
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(text in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ a1\n".to_vec()), 0..64), pos in 0_usize..70) {
            prop_assert!(value_end(&text, pos) <= text.len());
            prop_assert!(value_of_key(&text, pos) <= text.len().max(pos));
            prop_assert!(members(&text).iter().all(|(_, value)| value.end <= text.len() && value.start <= value.end));
            prop_assert!(elements(&text, pos).all(|p| p < text.len()));
        }
    }
}
