//! The text that a target exposes: Prometheus' own format and OpenMetrics.

use std::borrow::Cow;

/// Which of the two formats a text has; they differ in the unit of timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Timestamps in seconds.
    OpenMetrics,
    /// Timestamps in milliseconds.
    Prometheus,
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The name as it stands on the line.
    pub name: Cow<'a, str>,
    /// Names and values, in order.
    pub labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The value.
    pub value: f64,
    /// In milliseconds since the Unix epoch, if the line says so.
    pub timestamp: Option<i64>,
}

/// What a line is.
#[derive(Clone, Debug, PartialEq)]
pub enum Line<'a> {
    /// Nothing that matters.
    Comment,
    /// The kind of a family.
    Type(&'a str, &'a str),
    /// The unit of a family.
    Unit(&'a str, &'a str),
    /// A sample.
    Sample(Sample<'a>),
    /// It cannot be read.
    Malformed,
}

/// What belongs to a family that was declared last.
const SUFFIXES: &[&str] = &["_bucket", "_count", "_sum", "_total", "_created", "_info", "_gcount", "_gsum"];

/// The family that lines belong to, as the lines before them say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    unit: &'a str,
}

impl<'a> Family<'a> {
    /// Takes notice of a line.
    pub fn read(&mut self, line: &Line<'a>) {
        let (Line::Type(name, _) | Line::Unit(name, _)) = line else { return };
        if self.name != *name {
            *self = Self { name, ..Self::default() };
        }
        match line {
            Line::Type(_, kind) => self.kind = kind,
            Line::Unit(_, unit) => self.unit = unit,
            _ => {}
        }
    }

    /// The kind and the unit of a sample of this name; empty if they are not known.
    #[must_use]
    pub fn of(&self, name: &str) -> (&'a str, &'a str) {
        let suffix = name.strip_prefix(self.name).filter(|_| !self.name.is_empty());
        match suffix {
            Some(suffix) if suffix.is_empty() || SUFFIXES.contains(&suffix) => (self.kind, self.unit),
            _ => ("", ""),
        }
    }
}

/// Reads a line, without its line break.
#[must_use]
pub fn line(text: &str, format: Format) -> Line<'_> {
    let text = text.trim_matches([' ', '\t', '\r']);
    if text.is_empty() {
        return Line::Comment;
    }
    let Some(comment) = text.strip_prefix('#') else {
        return sample(text, format).map_or(Line::Malformed, Line::Sample);
    };
    let mut words = comment.split([' ', '\t']).filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some("TYPE"), Some(name), Some(kind)) => Line::Type(name, kind),
        (Some("UNIT"), Some(name), Some(unit)) => Line::Unit(name, unit),
        _ => Line::Comment,
    }
}

fn sample(text: &str, format: Format) -> Option<Sample<'_>> {
    let end = text.find(['{', ' ', '\t']).unwrap_or(text.len());
    let (mut name, mut rest) = (Cow::Borrowed(&text[..end]), text[end..].trim_start_matches([' ', '\t']));
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = self::labels(inside, &mut name, &mut labels)?;
    }
    if name.is_empty() {
        return None;
    }
    // An exemplar stands behind a `#`.
    let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty()).take_while(|word| *word != "#");
    let value = number(words.next()?)?;
    let timestamp = match (words.next(), format) {
        (None, _) => None,
        (Some(word), Format::Prometheus) => Some(word.parse().ok()?),
        (Some(word), Format::OpenMetrics) => {
            let seconds = word.parse::<f64>().ok().filter(|seconds| seconds.is_finite())?;
            Some((seconds * 1000.0).round() as i64)
        }
    };
    words.next().is_none().then_some(Sample { name, labels, value, timestamp })
}

/// A number as Go writes it.
fn number(word: &str) -> Option<f64> {
    // Rust would take more words than these.
    let plain = word.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let special = word.trim_start_matches(['+', '-']);
    let is_special = ["inf", "infinity", "nan"].iter().any(|name| special.eq_ignore_ascii_case(name));
    if plain || is_special { word.parse().ok() } else { None }
}

/// Reads labels and the brace behind them; returns what follows. A quoted word without a value is the name.
fn labels<'a>(
    mut rest: &'a str,
    name: &mut Cow<'a, str>,
    into: &mut Vec<(Cow<'a, str>, Cow<'a, str>)>,
) -> Option<&'a str> {
    const SPACE: [char; 2] = [' ', '\t'];
    loop {
        rest = rest.trim_start_matches(SPACE);
        if let Some(behind) = rest.strip_prefix('}') {
            return Some(behind);
        }
        let key;
        if let Some(inside) = rest.strip_prefix('"') {
            (key, rest) = quoted(inside)?;
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | ':' | '.'))?;
            (key, rest) = (Cow::Borrowed(&rest[..end]), &rest[end..]);
            if key.is_empty() {
                return None;
            }
        }
        rest = rest.trim_start_matches(SPACE);
        match rest.strip_prefix('=') {
            Some(behind) => {
                let inside = behind.trim_start_matches(SPACE).strip_prefix('"')?;
                let (value, behind) = quoted(inside)?;
                into.push((key, value));
                rest = behind;
            }
            None if name.is_empty() && into.is_empty() => *name = key,
            None => return None,
        }
        rest = rest.trim_start_matches(SPACE);
        match rest.as_bytes().first()? {
            b',' => rest = &rest[1..],
            b'}' => {}
            _ => return None,
        }
    }
}

/// Text up to the quote that ends it, without its escapes, and what follows.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut plain = String::new();
    let mut from = 0;
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'"' => break,
            b'\\' => {
                plain.push_str(&text[from..at]);
                match bytes.get(at + 1)? {
                    b'n' => plain.push('\n'),
                    b'"' => plain.push('"'),
                    b'\\' => plain.push('\\'),
                    // As it stands: Prometheus does so.
                    _ => {
                        plain.push('\\');
                        from = at + 1;
                        at += 1;
                        continue;
                    }
                }
                at += 2;
                from = at;
            }
            _ => at += 1,
        }
    }
    let value = if plain.is_empty() {
        // Nothing was escaped.
        Cow::Borrowed(&text[from..at])
    } else {
        plain.push_str(&text[from..at]);
        Cow::Owned(plain)
    };
    Some((value, &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, Vec<(String, String)>, f64, Option<i64>)> {
        match line(text, Format::Prometheus) {
            Line::Sample(Sample { name, labels, value, timestamp }) => {
                let labels = labels.into_iter().map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
                Some((name.into_owned(), labels, value, timestamp))
            }
            _ => None,
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_example_of_the_documentation() {
        for (text, expect) in [
            (
                "http_requests_total{method=\"post\",code=\"200\"} 1027 1395066363000",
                (
                    "http_requests_total",
                    labels(&[("method", "post"), ("code", "200")]),
                    1027.0,
                    Some(1_395_066_363_000),
                ),
            ),
            (
                "msdos_file_access_time_seconds{path=\"C:\\\\DIR\\\\FILE.TXT\",error=\"Cannot find file:\\n\\\"FILE.TXT\\\"\"} 1.458255915e9",
                (
                    "msdos_file_access_time_seconds",
                    labels(&[("path", "C:\\DIR\\FILE.TXT"), ("error", "Cannot find file:\n\"FILE.TXT\"")]),
                    1.458255915e9,
                    None,
                ),
            ),
            (
                "metric_without_timestamp_and_labels 12.47",
                ("metric_without_timestamp_and_labels", vec![], 12.47, None),
            ),
            (
                "something_weird{problem=\"division by zero\"} +Inf -3982045",
                (
                    "something_weird",
                    labels(&[("problem", "division by zero")]),
                    f64::INFINITY,
                    Some(-3_982_045),
                ),
            ),
            ("a { b = \"c\" , } 1", ("a", labels(&[("b", "c")]), 1.0, None)),
            ("a{} 1", ("a", vec![], 1.0, None)),
            (
                "{\"name.with.dots\",\"label 1\"=\"x\"} 1",
                ("name.with.dots", labels(&[("label 1", "x")]), 1.0, None),
            ),
            ("a{b=\"\\q\"} 1", ("a", labels(&[("b", "\\q")]), 1.0, None)),
            ("a{b=\"\\\\\"} 1", ("a", labels(&[("b", "\\")]), 1.0, None)),
        ] {
            let (name, labels, value, timestamp) = expect;
            assert_eq!(read(text), Some((name.to_owned(), labels, value, timestamp)), "{text}");
        }
        assert!(read("a NaN").is_some_and(|(_, _, value, _)| value.is_nan()));
    }

    #[test]
    fn open_metrics() {
        let text = "foo_bucket{le=\"1\"} 11 1520879607.789 # {trace_id=\"KOO5\"} 0.67 1520879607.2";
        let Line::Sample(sample) = line(text, Format::OpenMetrics) else { panic!("a sample") };
        assert_eq!((sample.value, sample.timestamp), (11.0, Some(1_520_879_607_789)));
        let mut family = Family::default();
        for text in ["# TYPE foo histogram", "# UNIT foo seconds", "# HELP foo what it is", "# EOF"] {
            family.read(&line(text, Format::OpenMetrics));
        }
        assert_eq!(family.of("foo_bucket"), ("histogram", "seconds"));
        assert_eq!(family.of("foo"), ("histogram", "seconds"));
        assert_eq!(family.of("foobar"), ("", ""));
        family.read(&line("# TYPE bar counter", Format::OpenMetrics));
        assert_eq!((family.of("foo"), family.of("bar_total")), (("", ""), ("counter", "")));
    }

    #[test]
    fn what_cannot_be_read() {
        for text in [
            "a",
            "a x",
            "a 1 x",
            "a 1 2 3",
            "a{ 1",
            "a{b} 1",
            "a{b=1} 1",
            "a{b=\"c} 1",
            "a{b=\"c\" d=\"e\"} 1",
            "{} 1",
            "{b=\"c\"} 1",
            "a{b=\"c\"}",
            "a{=\"c\"} 1",
            "a 1_000",
            "a 0x10",
            "a{\"b\"} 1",
        ] {
            assert_eq!(line(text, Format::Prometheus), Line::Malformed, "{text}");
        }
        for text in ["", "   ", "#", "# comment", "#TYPE"] {
            assert_eq!(line(text, Format::Prometheus), Line::Comment, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "[a-z{}=\",\\\\ #0-9.\u{e9}]{0,40}") {
            for format in [Format::Prometheus, Format::OpenMetrics] {
                std::hint::black_box(line(&text, format));
            }
        }

        #[test]
        fn what_is_escaped_is_read_again(value in ".{0,20}") {
            let escaped = value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
            let text = format!("a{{b=\"{escaped}\"}} 1");
            let found = read(&text).map(|(_, labels, _, _)| labels);
            proptest::prop_assert_eq!(found, Some(vec![("b".to_owned(), value)]));
        }
    }
}
