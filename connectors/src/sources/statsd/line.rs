//! One line of StatsD or DogStatsD: `name:1|c|@0.1|#env:prod,role:a`.

/// Values of one metric, as a line has them.
#[derive(Debug, PartialEq)]
pub struct Line<'a> {
    /// The metric.
    pub name: &'a str,
    /// What is measured.
    pub kind: Kind,
    /// The values, at least one.
    pub values: Vec<Value<'a>>,
    /// Which share of the measurements was sent, above 0 and at most 1.
    pub rate: f64,
    /// Tags, with an empty value if they have none.
    pub tags: Vec<(&'a str, &'a str)>,
    /// When it was measured, in seconds since the Unix epoch, if the line says so.
    pub at: Option<u64>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `c`.
    Counter,
    /// `d`.
    Distribution,
    /// `g`.
    Gauge,
    /// `h`.
    Histogram,
    /// `s`.
    Set,
    /// `ms`.
    Timer,
}

impl Kind {
    /// Its name in documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Distribution => "distribution",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Set => "set",
            Self::Timer => "timer",
        }
    }
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A number; for a gauge, its new value.
    Number(f64),
    /// How much a gauge changes: it had a sign.
    Change(f64),
    /// A member of a set.
    Member(&'a str),
}

/// Reads a line without its delimiter; `None` if it is no metric (events and service checks of DogStatsD included).
#[must_use]
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = std::str::from_utf8(line).ok()?;
    let (head, rest) = line.split_once('|')?;
    let (name, values) = head.split_once(':')?;
    if name.is_empty() || name.starts_with("_e{") || name == "_sc" {
        return None;
    }
    let mut fields = rest.split('|');
    let kind = match fields.next()? {
        "c" => Kind::Counter,
        "d" => Kind::Distribution,
        "g" => Kind::Gauge,
        "h" => Kind::Histogram,
        "ms" => Kind::Timer,
        "s" => Kind::Set,
        _ => return None,
    };
    let mut found = Line { name, kind, values: Vec::new(), rate: 1.0, tags: Vec::new(), at: None };
    if kind == Kind::Set {
        // A member may have colons in it.
        found.values.push(Value::Member(values));
    } else {
        for text in values.split(':') {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
            let is_change = kind == Kind::Gauge && text.starts_with(['+', '-']);
            found.values.push(if is_change { Value::Change(number) } else { Value::Number(number) });
        }
    }
    for field in fields {
        match field.as_bytes().first() {
            Some(b'@') => found.rate = field[1..].parse().ok().filter(|rate| *rate > 0.0 && *rate <= 1.0)?,
            Some(b'#') => {
                let tags = field[1..].split(',').filter(|tag| !tag.is_empty());
                found.tags.extend(tags.map(|tag| tag.split_once(':').unwrap_or((tag, ""))));
            }
            Some(b'T') => found.at = Some(field[1..].parse().ok()?),
            // The sender's container, and what later versions add.
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: Kind, values: Vec<Value<'static>>) -> Line<'static> {
        Line { name: "a.b", kind, values, rate: 1.0, tags: Vec::new(), at: None }
    }

    #[test]
    fn lines_of_every_kind() {
        use Value::{Change, Member, Number};
        for (text, expect) in [
            ("a.b:1|c", line(Kind::Counter, vec![Number(1.0)])),
            ("a.b:-1.5|c", line(Kind::Counter, vec![Number(-1.5)])),
            ("a.b:320|ms", line(Kind::Timer, vec![Number(320.0)])),
            ("a.b:1:2:3|h", line(Kind::Histogram, vec![Number(1.0), Number(2.0), Number(3.0)])),
            ("a.b:0.5|d", line(Kind::Distribution, vec![Number(0.5)])),
            ("a.b:7|g", line(Kind::Gauge, vec![Number(7.0)])),
            ("a.b:-7|g", line(Kind::Gauge, vec![Change(-7.0)])),
            ("a.b:+7|g", line(Kind::Gauge, vec![Change(7.0)])),
            ("a.b:u:17|s", line(Kind::Set, vec![Member("u:17")])),
            ("a.b:1|c|c:83c0a99c", line(Kind::Counter, vec![Number(1.0)])),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expect), "{text}");
        }
        let all =
            parse(b"a.b:1|c|@0.25|#env:prod,canary,url:http://x|T1700000000|e:it-false").expect("a metric");
        assert_eq!(all.tags, [("env", "prod"), ("canary", ""), ("url", "http://x")]);
        assert_eq!((all.rate, all.at), (0.25, Some(1_700_000_000)));
    }

    #[test]
    fn what_is_no_metric() {
        for text in [
            "",
            "a",
            "a:1",
            "a|c",
            ":1|c",
            "a:|c",
            "a:x|c",
            "a:1|x",
            "a:NaN|g",
            "a:inf|c",
            "a:1|c|@0",
            "a:1|c|@2",
            "a:1|c|@x",
            "a:1|c|Tx",
            "a:1:|h",
            "_e{5,4}:title|text|#a",
            "_sc|name|0",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"a\xFF:1|c"), None);
    }
}
