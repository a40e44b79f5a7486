//! The fast path: one pass over a message, straight into the columns.
//!
//! ```text
//! message ─► keys: the joint that is expected ─► column, or grammar: skip ─► … ─► row
//!              └─► anything else ─► general path, for this row
//! ```
//!
//! As strict as the general path, but it may give up on whatever is rare: escapes in keys, a field that is there
//! twice, deep nesting, values that do not fit their field. Then the general path decides, and says why. What both
//! accept they read alike.

use super::column::{Column, Values};
use super::grammar::Text;
use super::{grammar, scalar};
use crate::decoders::scalars;
use crate::decoders::views::{Arena, View};
use crate::document::scan::skip_space;

/// Where strings go.
pub(super) struct Strings<'a> {
    pub(super) arena: &'a mut Arena,
    /// Memory for strings without their escapes.
    pub(super) scratch: &'a mut String,
}

impl Strings<'_> {
    /// The string whose opening quote is at `quote`, and the position behind it.
    #[inline(always)]
    fn string(&mut self, text: &Text<'_>, quote: usize) -> Option<(View, usize)> {
        let stop = text.stops.next(quote + 1);
        if *text.get(stop)? == b'"' {
            return Some((self.arena.span(quote + 1, stop)?, stop + 1));
        }
        self.string_with_escapes(text, quote + 1, stop)
    }

    #[inline(never)]
    fn string_with_escapes(&mut self, text: &Text<'_>, begin: usize, stop: usize) -> Option<(View, usize)> {
        self.scratch.clear();
        self.scratch.push_str(std::str::from_utf8(text.bytes.get(begin..stop)?).ok()?);
        let scratch = &mut *self.scratch;
        let mut valid = true;
        let end = grammar::escapes(text, stop, |part| match part {
            grammar::Part::Escaped(character) => scratch.push(character),
            grammar::Part::Plain(part) => match simdutf8::basic::from_utf8(part) {
                Ok(part) => scratch.push_str(part),
                Err(_) => valid = false,
            },
        })?;
        valid.then(|| (self.arena.copy(self.scratch), end + 1))
    }
}

/// The string whose opening quote is at `quote`, if it has no escapes: where its text begins and ends.
#[inline(always)]
fn plain_string(text: &Text<'_>, quote: usize) -> Option<(usize, usize)> {
    let stop = text.stops.next(quote + 1);
    (*text.get(stop)? == b'"').then_some((quote + 1, stop))
}

impl Column {
    /// Appends the value at `at` as number `row`; the position behind it. `None` if the scan does not like it, or the
    /// column has that value already; then the column may hold part of it: truncate it.
    #[inline(always)]
    pub(super) fn scan(
        &mut self,
        text: &Text<'_>,
        strings: &mut Strings<'_>,
        at: usize,
        row: usize,
        depth: u32,
    ) -> Option<usize> {
        let first = *text.get(at)?;
        match &mut self.values {
            Values::String(values) if first == b'"' => {
                let (view, end) = strings.string(text, at)?;
                if values.len() != row {
                    return None;
                }
                values.push(view);
                Some(end)
            }
            _ if first == b'n' => {
                let end = grammar::literal(text, at, b"null")?;
                if self.len() != row {
                    return None;
                }
                self.append_null();
                Some(end)
            }
            Values::String(values) => {
                let end = grammar::value(text, at, depth)?;
                if values.len() != row {
                    return None;
                }
                values.push(strings.arena.span(at, end)?);
                Some(end)
            }
            Values::Int64(values) => {
                let number = grammar::number(text, at)?;
                let value = match number.integer() {
                    Some(value) => value,
                    None => scalar::integer(text.bytes.get(at..number.end)?).ok()?,
                };
                if values.len() != row {
                    return None;
                }
                values.push(value);
                Some(number.end)
            }
            Values::Float64(values) => {
                let (value, end) = float(text, at)?;
                if values.len() != row {
                    return None;
                }
                values.push(value);
                Some(end)
            }
            Values::Decimal { values, precision, scale } => {
                let (value, end) = if first == b'"' {
                    let (begin, stop) = plain_string(text, at)?;
                    (scalar::decimal(text.bytes.get(begin..stop)?, *precision, *scale).ok()?, stop + 1)
                } else {
                    let number = grammar::number(text, at)?;
                    let value = match number.decimal(*precision, *scale) {
                        Some(value) => value,
                        None => scalar::decimal(text.bytes.get(at..number.end)?, *precision, *scale).ok()?,
                    };
                    (value, number.end)
                };
                if values.len() != row {
                    return None;
                }
                values.push(value);
                Some(end)
            }
            Values::Timestamp { values, minute } => {
                let (value, end) = if first == b'"' {
                    let (begin, stop) = plain_string(text, at)?;
                    (minute.timestamp(text.bytes.get(begin..stop)?)?, stop + 1)
                } else {
                    let number = grammar::number(text, at)?;
                    (number.integer()?.checked_mul(1_000)?, number.end)
                };
                if values.len() != row {
                    return None;
                }
                values.push(value);
                Some(end)
            }
            Values::Boolean(values) => {
                let (value, end) = match grammar::literal(text, at, b"true") {
                    Some(end) => (true, end),
                    None => (false, grammar::literal(text, at, b"false")?),
                };
                if values.len() != row {
                    return None;
                }
                values.push(value);
                Some(end)
            }
            Values::Ip(values) if first == b'"' => {
                let (begin, stop) = plain_string(text, at)?;
                let is_ip = scalar::is_ipv4(text.bytes, begin, stop) || is_ip(text.bytes.get(begin..stop)?);
                if !is_ip || values.len() != row {
                    return None;
                }
                values.push(strings.arena.span(begin, stop)?);
                Some(stop + 1)
            }
            Values::Object(level) if first == b'{' => {
                if level.len() != row || depth >= grammar::DEPTH_MAX {
                    return None;
                }
                level.scan(text, strings, at, depth + 1)
            }
            Values::List { offsets, items } => {
                if offsets.len() != row + 1 || depth >= grammar::DEPTH_MAX {
                    return None;
                }
                let end = if first == b'[' {
                    scan_items(items, text, strings, at, depth + 1)?
                } else {
                    items.scan_item(text, strings, at, depth + 1)?
                };
                offsets.push(i32::try_from(items.len()).ok()?);
                Some(end)
            }
            Values::GeoPoint { .. } | Values::Ip(_) | Values::Object(_) => None,
        }
    }

    /// The same for an item of a list.
    #[inline(never)]
    fn scan_item(
        &mut self,
        text: &Text<'_>,
        strings: &mut Strings<'_>,
        at: usize,
        depth: u32,
    ) -> Option<usize> {
        let row = self.len();
        self.scan(text, strings, at, row, depth)
    }
}

fn scan_items(
    items: &mut Column,
    text: &Text<'_>,
    strings: &mut Strings<'_>,
    at: usize,
    depth: u32,
) -> Option<usize> {
    let mut at = skip_space(text.bytes, at + 1);
    if *text.get(at)? == b']' {
        return Some(at + 1);
    }
    loop {
        if at >= text.end {
            return None;
        }
        at = skip_space(text.bytes, items.scan_item(text, strings, at, depth)?);
        match *text.get(at)? {
            b',' => at = skip_space(text.bytes, at + 1),
            b']' => return Some(at + 1),
            _ => return None,
        }
    }
}

#[inline(never)]
fn is_ip(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(scalars::is_ip)
}

/// The nearest float of the number at `at`, and the position behind it.
#[inline(always)]
fn float(text: &Text<'_>, at: usize) -> Option<(f64, usize)> {
    let number = grammar::number(text, at)?;
    let value = match number.float() {
        Some(value) => value,
        None => scalar::float(text.bytes.get(at..number.end)?).ok()?,
    };
    Some((value, number.end))
}
