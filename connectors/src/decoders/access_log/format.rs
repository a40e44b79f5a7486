//! A log format, compiled: literal text and variables in turn.
//!
//! ```text
//! $remote_addr - $remote_user [$time_local] "$request" …
//! └ field ───┘└┬┘└ field ───┘└┬┘
//!          text behind it  text behind it
//! ```
//!
//! A field ends where the text behind it first stands. If that begins with a quote, one behind a backslash does not
//! count: so nginx (`escape=json`) and Apache write a quote inside a field.

use logdrive_schemas::component::nearest;

/// Apache's and nginx's `combined`; the second field is Apache's `%l`, a plain `-` with nginx.
const COMBINED: &str = concat!(
    "$remote_addr $identity $remote_user [$time_local] \"$request\" $status $body_bytes_sent ",
    "\"$http_referer\" \"$http_user_agent\""
);
const COMMON: &str =
    "$remote_addr $identity $remote_user [$time_local] \"$request\" $status $body_bytes_sent";

/// The formats that have a name.
const NAMED: &[(&str, &str)] = &[("combined", COMBINED), ("common", COMMON)];

/// More fields than anybody logs.
const FIELDS_MAX: usize = 256;

/// A log format.
#[derive(Clone, Debug)]
pub(super) struct Format {
    /// The text in front of the first field.
    pub(super) head: Literal,
    /// The fields in the order of the line; at least one.
    pub(super) fields: Vec<FormatField>,
}

/// A variable, and the text behind it.
#[derive(Clone, Debug)]
pub(super) struct FormatField {
    /// Its name without the `$`.
    pub(super) variable: String,
    /// The text behind it; empty only at the end of the format.
    pub(super) until: Literal,
}

/// Text that stands in every line.
#[derive(Clone, Debug, Default)]
pub(super) struct Literal {
    text: Box<[u8]>,
    /// The first eight bytes, and which bits of them count.
    word: u64,
    mask: u64,
}

impl Format {
    /// Reads the name of a format, or the text of nginx's `log_format`.
    ///
    /// # Errors
    /// What is wrong with it, for a human.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, format)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Self::compile(format);
        }
        if !text.contains('$') {
            let names: Vec<_> = NAMED.iter().map(|(name, _)| *name).collect();
            let near =
                nearest(text, &names).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(format!(
                "`{text}` is no log format: write `combined`, `common`, or the text of nginx's `log_format` with its \
                 variables, such as `$remote_addr [$time_local] \"$request\" $status`{near}"
            ));
        }
        Self::compile(text)
    }

    fn compile(text: &str) -> Result<Self, String> {
        let (head, mut rest) = text.split_once('$').unwrap_or((text, ""));
        let mut fields: Vec<FormatField> = Vec::new();
        loop {
            let (variable, behind) = variable(rest)?;
            let (until, next) = match behind.split_once('$') {
                Some((until, next)) => (until, Some(next)),
                None => (behind, None),
            };
            if let (Some(next), true) = (next, until.is_empty()) {
                let next = next.trim_start_matches('{');
                let next: String = next.chars().take_while(|c| is_name(*c)).collect();
                return Err(format!(
                    "nothing stands between `${variable}` and `${next}`, so nobody can say where the first one ends"
                ));
            }
            fields.push(FormatField { variable: variable.into(), until: Literal::new(until) });
            match next {
                Some(next) if fields.len() < FIELDS_MAX => rest = next,
                Some(_) => return Err(format!("a log format has at most {FIELDS_MAX} variables")),
                None => return Ok(Self { head: Literal::new(head), fields }),
            }
        }
    }
}

fn is_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// Splits `name…` or `{name}…`, behind the `$`, into the name and the rest.
fn variable(text: &str) -> Result<(&str, &str), String> {
    let (name, rest) = match text.strip_prefix('{') {
        Some(braced) => {
            braced.split_once('}').ok_or_else(|| format!("`${{` without `}}` before `{braced}`"))?
        }
        None => text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len())),
    };
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(format!("`$` is followed by no name of a variable, before `{text}`"));
    }
    Ok((name, rest))
}

impl Literal {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let n_bytes = bytes.len().min(8);
        let mut word = [0; 8];
        word[..n_bytes].copy_from_slice(&bytes[..n_bytes]);
        let mask = if n_bytes == 8 { u64::MAX } else { (1 << (8 * n_bytes)) - 1 };
        Self { text: bytes.into(), word: u64::from_le_bytes(word), mask }
    }

    /// As written.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether it stands in `line` at `pos`.
    #[inline]
    pub(super) fn is_at(&self, line: &[u8], pos: usize) -> bool {
        let rest = &line[pos..];
        match rest.first_chunk::<8>() {
            Some(word) if (u64::from_le_bytes(*word) ^ self.word) & self.mask != 0 => false,
            Some(_) if self.text.len() <= 8 => true,
            _ => rest.starts_with(&self.text),
        }
    }

    /// Where it first stands in `line` from `pos` on; its end if the literal is empty.
    #[inline]
    pub(super) fn find(&self, line: &[u8], pos: usize, escapes: bool) -> Option<usize> {
        let Some(first) = self.text.first() else { return Some(line.len()) };
        if escapes && *first == b'"' {
            return self.find_unescaped(line, pos);
        }
        let mut at = pos;
        loop {
            at += memchr::memchr(*first, &line[at..])?;
            if self.is_at(line, at) {
                return Some(at);
            }
            at += 1;
        }
    }

    #[cold]
    fn find_unescaped(&self, line: &[u8], pos: usize) -> Option<usize> {
        let mut at = pos;
        loop {
            at += memchr::memchr2(b'"', b'\\', line.get(at..)?)?;
            if line[at] == b'\\' {
                at += 2;
            } else if self.is_at(line, at) {
                return Some(at);
            } else {
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Vec<(String, String)>) {
        let format = Format::parse(text).unwrap();
        let fields = format.fields.iter().map(|f| (f.variable.clone(), f.until.as_str().to_owned()));
        (format.head.as_str().to_owned(), fields.collect())
    }

    #[test]
    fn formats_are_cut_into_literals_and_variables() {
        let (head, fields) = parts("<${host}>$status \"$a_1\"");
        assert_eq!(head, "<");
        let expect = [("host", ">"), ("status", " \""), ("a_1", "\"")];
        assert_eq!(fields, expect.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(parts("combined").1.len(), 9);
        assert_eq!(parts("common").1.last().unwrap().0, "body_bytes_sent");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for (text, expect) in [
            ("combned", "did you mean `combined`?"),
            ("", "is no log format"),
            ("$a$b", "nothing stands between `$a` and `$b`"),
            ("$a${b}", "nothing stands between `$a` and `$b`"),
            ("$a $", "no name of a variable"),
            ("$a ${b", "`${` without `}`"),
            ("$a ${b c}", "no name of a variable"),
        ] {
            let error = Format::parse(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
        assert!(Format::parse(&"$a ".repeat(257)).unwrap_err().contains("256"));
    }

    #[test]
    fn literals_are_found_where_they_first_stand() {
        let literal = Literal::new("\" \"");
        let line = br#"a "b" x\" " "c" "d"#;
        assert_eq!(literal.find(line, 0, false), Some(8));
        assert_eq!(literal.find(line, 0, true), Some(10));
        assert_eq!(literal.find(br#"abc\" "x\"#, 0, true), None);
        assert_eq!(literal.find(br#"abc\"#, 0, true), None);
        let long = Literal::new("a literal of some length");
        assert_eq!(long.find(b"..a literal of some lengths", 0, false), Some(2));
        assert_eq!(long.find(b"a literal of some lengtX", 0, false), None);
        assert_eq!(Literal::new("").find(b"abc", 1, false), Some(3));
    }
}
