//! `redact`: personal and secret data replaced by what it was.
//!
//! One pass over the text, no backtracking: each finder looks at a bounded stretch, or at a run of characters that
//! it looks at only once, so time is linear whatever the text is. The finders are in `find`.

mod find;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::Result;

use self::find::{Finder, KINDS};
use super::function::{Arguments, Constants, Function, Kind, Parameters, failed};

/// `redact(text [, kinds])`.
pub(super) static REDACT: Function = Function {
    name: "redact",
    signature: "redact(text [, kinds text]) → text",
    doc: "The text with personal and secret data replaced by its kind: `[bearer]` (the token after `Bearer`), \
          `[card]` (known issuer, length and check digit), `[email]`, `[iban]` (check digits), `[ipv4]`, `[ipv6]`, \
          `[jwt]`. `kinds` names those wanted, with commas between: `'card,iban'`; all by default.",
    example: (
        "redact('ann@example.com paid with 4111-1111-1111-1111 from 10.0.0.7')",
        "[email] paid with [card] from [ipv4]",
    ),
    parameters: Parameters { required: &[Kind::Text], optional: &[Kind::Text], more: None },
    returns: |_| DataType::Utf8View,
    check: |constants: &Constants<'_>| {
        constants.require(1, "the list of kinds")?;
        constants.text(1).map_or(Ok(()), |kinds| parse_kinds(kinds).map(drop))
    },
    evaluate: redact,
};

fn parse_kinds(kinds: &str) -> Result<Vec<&'static Finder>, String> {
    let find = |name: &str| {
        let known = || KINDS.iter().map(|finder| finder.kind).collect::<Vec<_>>().join(", ");
        KINDS
            .iter()
            .find(|finder| finder.kind == name)
            .ok_or_else(|| format!("`{name}` is not a kind of data: {}", known()))
    };
    kinds.split(',').map(|name| find(name.trim())).collect()
}

fn redact(arguments: &Arguments<'_>) -> Result<ArrayRef> {
    let texts = arguments.text(0)?;
    let finders = match arguments.len() {
        1 => Some(KINDS.iter().collect()),
        _ => arguments.text(1)?.get(0).map(|kinds| parse_kinds(kinds).map_err(failed)).transpose()?,
    };
    let mut column = StringViewBuilder::with_capacity(arguments.rows);
    let mut changed = false;
    for row in 0..arguments.rows {
        match (texts.get(row), &finders) {
            (Some(text), Some(finders)) => match redacted(text, finders) {
                Some(redacted) => {
                    changed = true;
                    column.append_value(redacted);
                }
                None => column.append_value(text),
            },
            _ => {
                changed = true;
                column.append_null();
            }
        }
    }
    // Most batches hold nothing to hide: the column goes on as it came.
    match arguments.column(0) {
        Some(original) if !changed && original.len() == arguments.rows => Ok(Arc::clone(original)),
        _ => Ok(Arc::new(column.finish())),
    }
}

/// The text without what the finders find; `None` if they find nothing.
fn redacted(text: &str, finders: &[&Finder]) -> Option<String> {
    let bytes = text.as_bytes();
    let mut output = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        let found = finders.iter().find_map(|finder| {
            let span = (finder.find)(bytes, at)?;
            Some((finder.kind, span))
        });
        let Some((kind, span)) = found else {
            at += 1;
            continue;
        };
        // Finders match ASCII only, so these cuts are between characters.
        output.push_str(text.get(copied..span.start)?);
        output.push('[');
        output.push_str(kind);
        output.push(']');
        copied = span.end;
        at = span.end;
    }
    if copied == 0 {
        return None;
    }
    output.push_str(text.get(copied..)?);
    Some(output)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::KINDS;
    use crate::functions::testing::{compile_error, eval, eval_texts};

    fn redact(text: &str) -> String {
        eval_texts("redact(text)", &[text]).remove(0)
    }

    #[test]
    fn each_kind() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
        for (text, expected) in [
            ("pan=4111111111111111;", "pan=[card];"),
            ("PAN4111111111111111", "PAN[card]"),
            ("card 4111 1111 1111 1111 ok", "card [card] ok"),
            ("3782-822463-10005", "[card]"),
            ("1 4111 1111 1111 1111 2", "1 [card] 2"),
            ("2221000000000009, 6304000000000000", "[card], [card]"),
            ("ann.b+tag@mail.example.co.uk, x", "[email], x"),
            ("<ann@example.com>", "<[email]>"),
            ("mailto:ann@example.com.", "mailto:[email]."),
            ("from 10.0.0.7:443", "from [ipv4]:443"),
            ("from 10.0.0.7.", "from [ipv4]."),
            ("[2001:db8::1]:443", "[[ipv6]]:443"),
            ("peer ::ffff:10.0.0.1 x", "peer [ipv6] x"),
            ("fe80::1%eth0", "[ipv6]%eth0"),
            ("IBAN DE89370400440532013000", "IBAN [iban]"),
            ("GB82 WEST 1234 5698 7654 32 now", "[iban] now"),
            ("Authorization: Bearer abc.DEF-123_~+/==", "Authorization: Bearer [bearer]"),
            ("authorization: bearer  abcdefghijk", "authorization: bearer  [bearer]"),
            ("é ann@example.com ü", "é [email] ü"),
        ] {
            assert_eq!(redact(text), expected, "{text}");
        }
        assert_eq!(redact(&format!("token={jwt}&x")), "token=[jwt]&x");
        assert_eq!(redact(&format!("Bearer {jwt}")), "Bearer [bearer]");
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        for text in [
            "4111111111111112",
            "41111111111111111111111",
            "1700000000000000",
            "order 9999999999999995",
            "0.4111111111111111",
            "a@b",
            "@example.com",
            "ann@",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "12:34:56",
            "std::vec::Vec",
            "abc::def",
            "::",
            "00:1a:2b:3c:4d:5e",
            "DE89370400440532013001",
            "DE8937040044",
            "bearer of bad news",
            "eyJ.a.b",
            "é1.2.3.é",
            "",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    #[test]
    fn only_the_kinds_that_are_asked_for() {
        let text = "ann@example.com 10.0.0.7 4111111111111111";
        assert_eq!(eval(&format!("redact('{text}', 'card, ipv4')")), "ann@example.com [ipv4] [card]");
        assert_eq!(eval("redact('x', NULL)"), "null");
        assert!(compile_error("redact(text, 'cards')").message.contains("`cards` is not a kind of data"));
        assert!(KINDS.is_sorted_by_key(|finder| finder.kind));
    }

    #[test]
    fn redacting_twice_changes_nothing_more() {
        let once =
            redact("a@b.example, 4111111111111111, 1.2.3.4, ::1, DE89370400440532013000, Bearer abcdefghi");
        assert_eq!(redact(&once), once);
    }

    #[test]
    fn time_is_linear_in_hostile_text() {
        for piece in [
            "a", "@", "a@", "a.", "1", "1 ", "1-", "1.", ":", "1:", "f:", "eyJ", "eyJ.", "Bearer ", "DE89",
            "DE", "A1 ",
        ] {
            let text = piece.repeat(200_000 / piece.len());
            let started = Instant::now();
            redact(&text);
            assert!(started.elapsed() < Duration::from_secs(10), "{piece}: {:?}", started.elapsed());
        }
    }
}
