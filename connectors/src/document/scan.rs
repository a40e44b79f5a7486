//! Finds where values of a JSON text begin and end, without reading them.
//!
//! For text that a decoder has already accepted. On other bytes the answers mean nothing, but they stay within the
//! text and nothing panics.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

/// The first position from `pos` on that is no JSON white space.
#[inline]
pub(crate) fn skip_space(text: &[u8], mut pos: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\r' | b'\n') = text.get(pos) {
        pos += 1;
    }
    pos
}

/// The position behind the string whose opening quote is at `pos`.
#[inline]
pub(crate) fn string_end(text: &[u8], pos: usize) -> usize {
    let mut at = pos + 1;
    loop {
        match text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
            None => return text.len(),
            Some(n) if text[at + n] == b'"' => return at + n + 1,
            Some(n) => at += n + 2,
        }
    }
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

/// One member of an object, as positions in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The key with its quotes.
    pub(crate) key: Range<usize>,
    /// The value.
    pub(crate) value: Range<usize>,
}

/// The members of the object that starts at `pos`, in order.
pub(crate) fn members(text: &[u8], pos: usize) -> Members<'_> {
    Members { text, pos: if text.get(pos) == Some(&b'{') { pos + 1 } else { text.len() } }
}

/// See [`members`].
pub(crate) struct Members<'a> {
    text: &'a [u8],
    pos: usize,
}

impl Iterator for Members<'_> {
    type Item = Member;

    #[inline]
    fn next(&mut self) -> Option<Member> {
        let key = skip_space(self.text, self.pos);
        if self.text.get(key) != Some(&b'"') {
            return None;
        }
        let key_end = string_end(self.text, key);
        let colon = skip_space(self.text, key_end);
        let value = skip_space(self.text, (colon + 1).min(self.text.len()));
        let value_end = value_end(self.text, value);
        self.pos = skip_space(self.text, value_end);
        if self.text.get(self.pos) == Some(&b',') {
            self.pos += 1;
        }
        Some(Member { key: key..key_end, value: value..value_end })
    }
}

/// The positions at which the elements of the array that starts at `pos` begin.
pub(crate) fn elements(text: &[u8], pos: usize) -> impl Iterator<Item = usize> {
    let mut at = if text.get(pos) == Some(&b'[') { pos + 1 } else { text.len() };
    std::iter::from_fn(move || {
        let element = skip_space(text, at);
        if matches!(text.get(element), None | Some(b']' | b'}')) {
            return None;
        }
        at = skip_space(text, value_end(text, element));
        if text.get(at) == Some(&b',') {
            at += 1;
        }
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

    fn check(text: &str, expect: &[(&str, &str)]) {
        let found: Vec<_> =
            members(text.as_bytes(), 0).map(|m| (&text[m.key], &text[m.value])).collect::<Vec<_>>();
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
            prop_assert!(members(&text, pos).all(|m| m.value.end <= text.len() && m.value.start <= m.value.end));
            prop_assert!(elements(&text, pos).all(|p| p < text.len()));
        }
    }
}
