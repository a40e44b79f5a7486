//! What `redact` looks for.
//!
//! A finder is asked at every byte whether its kind of data starts there (or, for a bearer token, whether the word
//! that announces it does). It answers `None` at once unless the byte can start it and the byte before cannot belong
//! to it; this is what bounds its work.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::functions::luhn;

/// A kind of data and how to find it.
pub(super) struct Finder {
    pub(super) kind: &'static str,
    /// The data that starts at a byte, or is announced there.
    pub(super) find: fn(&[u8], usize) -> Option<Range<usize>>,
}

/// All kinds, in the order in which they are tried.
pub(super) const KINDS: &[Finder] = &[
    Finder { kind: "bearer", find: bearer },
    Finder { kind: "card", find: card },
    Finder { kind: "email", find: email },
    Finder { kind: "iban", find: iban },
    Finder { kind: "ipv4", find: ipv4 },
    Finder { kind: "ipv6", find: ipv6 },
    Finder { kind: "jwt", find: jwt },
];

/// The end of the run of bytes from `at` that satisfy `class`, at most `limit` long.
fn run(text: &[u8], at: usize, limit: usize, class: impl Fn(u8) -> bool) -> usize {
    let end = text.len().min(at.saturating_add(limit));
    text[at..end].iter().position(|&byte| !class(byte)).map_or(end, |length| at + length)
}

fn before(text: &[u8], at: usize) -> u8 {
    if at == 0 { b' ' } else { text[at - 1] }
}

fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(b' ')
}

/// `Bearer`, white space, and a token of at least eight characters.
fn bearer(text: &[u8], at: usize) -> Option<Range<usize>> {
    let word = text.get(at..at + 6)?;
    if !word.eq_ignore_ascii_case(b"bearer") || before(text, at).is_ascii_alphanumeric() {
        return None;
    }
    let start = run(text, at + 6, 8, |byte| byte == b' ' || byte == b'\t');
    let end = run(text, start, usize::MAX, |byte| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
    });
    (start > at + 6 && end - start >= 8).then_some(start..end)
}

/// A payment card number: digits, with single spaces or dashes between groups.
fn card(text: &[u8], at: usize) -> Option<Range<usize>> {
    let previous = before(text, at);
    if !text[at].is_ascii_digit() || previous.is_ascii_digit() {
        return None;
    }
    // The fraction of a number is not a card number.
    if previous == b'.' && at > 1 && text[at - 2].is_ascii_digit() {
        return None;
    }
    let mut digits = [0u8; 19];
    let mut count = 0;
    let mut end = at;
    let mut longest = None;
    while byte(text, end).is_ascii_digit() {
        if count == digits.len() {
            break;
        }
        digits[count] = text[end] - b'0';
        count += 1;
        end += 1;
        if byte(text, end).is_ascii_digit() {
            continue;
        }
        if is_card(&digits[..count]) {
            longest = Some(at..end);
        }
        if matches!(byte(text, end), b' ' | b'-') && byte(text, end + 1).is_ascii_digit() {
            end += 1;
        }
    }
    longest
}

/// Whether an issuer gives out numbers that begin so and are so long, and the check digit is right.
fn is_card(digits: &[u8]) -> bool {
    let count = digits.len();
    if count < 12 {
        return false;
    }
    let head = digits[..4].iter().fold(0u32, |number, &digit| number * 10 + u32::from(digit));
    let known = match head {
        // Visa.
        4000..=4999 => matches!(count, 13 | 16 | 19),
        // American Express.
        3400..=3499 | 3700..=3799 => count == 15,
        // Diners Club.
        3000..=3059 | 3095 | 3600..=3699 | 3800..=3999 => (14..=19).contains(&count),
        // JCB.
        3528..=3589 => (16..=19).contains(&count),
        // Mastercard.
        2221..=2720 | 5100..=5599 => count == 16,
        // Mir.
        2200..=2204 => (16..=19).contains(&count),
        // Discover and UnionPay; also Maestro, which has the rest of 50 and 56 to 69.
        6000..=6999 | 5000..=5099 | 5600..=5999 => (12..=19).contains(&count),
        // RuPay and others.
        8100..=8199 => (16..=19).contains(&count),
        _ => false,
    };
    known && luhn::checksum(digits)
}

fn email(text: &[u8], at: usize) -> Option<Range<usize>> {
    let is_local =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-');
    // Each run of local characters is read once, from its start.
    if !is_local(text[at]) || is_local(before(text, at)) {
        return None;
    }
    let sign = run(text, at, usize::MAX, is_local);
    if byte(text, sign) != b'@' {
        return None;
    }
    let mut end =
        run(text, sign + 1, 255, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    while end > sign + 1 && matches!(text[end - 1], b'.' | b'-') {
        end -= 1;
    }
    let domain = &text[sign + 1..end];
    let dot = domain.iter().rposition(|&byte| byte == b'.')?;
    let top = &domain[dot + 1..];
    (dot > 0 && top.len() >= 2 && top[0].is_ascii_alphabetic()).then_some(at..end)
}

/// Lengths of account numbers by country, from the IBAN registry.
const IBAN_LENGTHS: &[(&[u8; 2], usize)] = &[
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BH", 22),
    (b"BR", 29),
    (b"BY", 28),
    (b"CH", 21),
    (b"CR", 22),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DK", 18),
    (b"DO", 28),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GR", 27),
    (b"GT", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MK", 19),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"NL", 18),
    (b"NO", 15),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"SA", 24),
    (b"SC", 31),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"ST", 25),
    (b"SV", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
    (b"VG", 24),
    (b"XK", 20),
];

/// An international bank account number, together or in groups with single spaces.
fn iban(text: &[u8], at: usize) -> Option<Range<usize>> {
    let country: &[u8; 2] = text.get(at..at + 2)?.try_into().ok()?;
    if before(text, at).is_ascii_alphanumeric() || !byte(text, at + 2).is_ascii_digit() {
        return None;
    }
    let index = IBAN_LENGTHS.binary_search_by_key(&country, |(code, _)| *code).ok()?;
    let length = IBAN_LENGTHS[index].1;
    let mut account = Vec::with_capacity(length);
    let mut end = at;
    while account.len() < length {
        match byte(text, end) {
            found if found.is_ascii_digit() || found.is_ascii_uppercase() => account.push(found),
            b' ' if byte(text, end + 1).is_ascii_alphanumeric() => {}
            _ => return None,
        }
        end += 1;
    }
    // ISO 7064: the number with its first four characters moved to the end, letters as 10 to 35, leaves 1.
    account.rotate_left(4);
    let remainder = account.iter().fold(0u32, |remainder, &found| match found {
        b'0'..=b'9' => (remainder * 10 + u32::from(found - b'0')) % 97,
        _ => (remainder * 100 + u32::from(found - b'A') + 10) % 97,
    });
    (remainder == 1 && !byte(text, end).is_ascii_alphanumeric()).then_some(at..end)
}

fn ipv4(text: &[u8], at: usize) -> Option<Range<usize>> {
    let previous = before(text, at);
    if !text[at].is_ascii_digit() || previous.is_ascii_alphanumeric() || previous == b'.' {
        return None;
    }
    let mut end = run(text, at, 16, |byte| byte.is_ascii_digit() || byte == b'.');
    if text[end - 1] == b'.' {
        end -= 1;
    }
    if byte(text, end).is_ascii_alphanumeric() {
        return None;
    }
    std::str::from_utf8(&text[at..end]).ok()?.parse::<Ipv4Addr>().ok()?;
    Some(at..end)
}

fn ipv6(text: &[u8], at: usize) -> Option<Range<usize>> {
    let is_part = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let previous = before(text, at);
    if !(text[at].is_ascii_hexdigit() || text[at] == b':')
        || previous.is_ascii_alphanumeric()
        || matches!(previous, b':' | b'.' | b'_')
    {
        return None;
    }
    let mut end = run(text, at, 46, is_part);
    // `2001:db8::1.` at the end of a sentence, `2001:db8::1:` before what it says.
    if text[end - 1] == b'.' || (text[end - 1] == b':' && byte(text, end.wrapping_sub(2)) != b':') {
        end -= 1;
    }
    let found = text.get(at..end)?;
    // `abc::def` is more likely a path in some program than an address.
    let colons = found.iter().filter(|&&byte| byte == b':').count();
    if byte(text, end).is_ascii_alphanumeric() || colons < 2 || !found.iter().any(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(found).ok()?.parse::<Ipv6Addr>().ok()?;
    Some(at..end)
}

/// Three base64url parts with dots between; the first begins as every JSON object does (`eyJ` is `{"`).
fn jwt(text: &[u8], at: usize) -> Option<Range<usize>> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !text[at..].starts_with(b"eyJ") || is_part(before(text, at)) {
        return None;
    }
    let header = run(text, at, usize::MAX, is_part);
    if header - at < 10 || byte(text, header) != b'.' {
        return None;
    }
    let claims = run(text, header + 1, usize::MAX, is_part);
    if claims - header < 3 || byte(text, claims) != b'.' {
        return None;
    }
    Some(at..run(text, claims + 1, usize::MAX, is_part))
}
