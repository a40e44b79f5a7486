//! Paths made of constants, strftime and column values, such as `logs/%Y-%m-%d/{tenant}.ndjson`.
//!
//! Values come from outside, so none of them may choose a folder: each is percent-encoded until it is one harmless
//! part of a name, and names that would be too long end in a hash of the whole. Different values stay different.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use logdrive_schemas::{Batch, RowSchema};

/// What stands where a value is null or empty.
const NONE: &str = "_none";
/// The most bytes that one value contributes to a path.
const VALUE_BYTES_MAX: usize = 120;
/// The most bytes of one segment of a path; file systems allow 255, and rotation adds a number.
const SEGMENT_BYTES_MAX: usize = 240;

/// A path with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    root: PathBuf,
    parts: Vec<Part>,
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The value of a column.
    Column(String),
    /// Itself.
    Text(String),
    /// The event time, by a format.
    Time(String),
}

impl PathTemplate {
    /// Reads a template: `%…` is strftime (UTC) of the event time, or of the arrival for rows without one,
    /// `{column}` a value; `%%`, `{{` and `}}` are the characters themselves.
    ///
    /// # Errors
    /// What is wrong with the template, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = parse_parts(text)?;
        Self::split(parts, text)
    }

    /// Cuts off the constant folder in front; nothing is ever written outside of it.
    fn split(mut parts: Vec<Part>, text: &str) -> Result<Self, String> {
        let mut root = PathBuf::new();
        if let Some(Part::Text(first)) = parts.first_mut() {
            let end = first.rfind('/').map_or(0, |idx| idx + 1);
            root.push(&first[..end]);
            first.drain(..end);
        }
        parts.retain(|p| !matches!(p, Part::Text(text) if text.is_empty()));
        if parts.is_empty() {
            return Err(format!("`{text}` is a folder, not a file"));
        }
        let behind: String =
            parts.iter().filter_map(|p| if let Part::Text(t) = p { Some(&**t) } else { None }).collect();
        if behind.split('/').any(|segment| segment == "..") || text.contains('\0') || text.ends_with('/') {
            return Err(format!("`{text}` is no path of a file"));
        }
        if root.as_os_str().is_empty() {
            root.push(".");
        }
        Ok(Self { root, parts })
    }

    /// The folder that every rendered path lies in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether every row has the same path.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// Writes the path of every row of a constant template over `out`.
    pub fn render_constant(&self, out: &mut String) {
        let text = self.parts.iter().map(|part| if let Part::Text(text) = part { &**text } else { "" });
        normalise(&text.collect::<String>(), out);
    }

    /// The columns that the path depends on.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        let mut columns = Vec::new();
        for part in &self.parts {
            let name = match part {
                Part::Column(name) => name.as_str(),
                Part::Text(_) => continue,
                Part::Time(_) => RowSchema::EVENT_TIME,
            };
            if !columns.iter().any(|c| c == name) {
                columns.push(name.to_owned());
            }
        }
        columns
    }

    /// Prepares rendering the paths of one batch.
    #[must_use]
    pub fn bind<'a>(&'a self, batch: &'a Batch) -> BoundTemplate<'a> {
        let has_time = self.parts.iter().any(|part| matches!(part, Part::Time(_)));
        BoundTemplate {
            template: self,
            columns: self
                .parts
                .iter()
                .map(|part| match part {
                    Part::Column(name) => batch.rows().column_by_name(name),
                    Part::Text(_) | Part::Time(_) => None,
                })
                .collect(),
            times: has_time.then(|| EventTimes::of(batch)),
        }
    }
}

/// Reads the parts of a template.
pub(super) fn parse_parts(text: &str) -> Result<Vec<Part>, String> {
    let (mut parts, mut constant) = (Vec::new(), String::new());
    let mut rest = text;
    let flush = |constant: &mut String, parts: &mut Vec<Part>| {
        if !constant.is_empty() {
            parts.push(Part::Text(std::mem::take(constant)));
        }
    };
    while let Some(c) = rest.chars().next() {
        if let Some(escaped) = ["%%", "{{", "}}"].into_iter().find(|e| rest.starts_with(e)) {
            constant.push(c);
            rest = &rest[escaped.len()..];
        } else if c == '{' {
            let end = rest.find('}').ok_or_else(|| format!("`{rest}` lacks a closing brace"))?;
            if end == 1 {
                return Err("`{}` names no column".into());
            }
            flush(&mut constant, &mut parts);
            parts.push(Part::Column(rest[1..end].to_owned()));
            rest = &rest[end + 1..];
        } else if c == '%' {
            // Flags and widths (`%-d`, `%3f`) come before the letter that ends a directive.
            let end = rest[1..].find(|c: char| c.is_ascii_alphabetic());
            let end = end.ok_or_else(|| format!("`{rest}` is no time format"))? + 2;
            flush(&mut constant, &mut parts);
            parts.push(Part::Time(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            constant.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    flush(&mut constant, &mut parts);
    for part in &parts {
        if let Part::Time(format) = part {
            BrokenDownTime::from(Timestamp::UNIX_EPOCH)
                .to_string(format)
                .map_err(|e| format!("`{format}` is no time format: {e}"))?;
        }
    }
    Ok(parts)
}

/// A template and the columns that it reads.
pub struct BoundTemplate<'a> {
    template: &'a PathTemplate,
    columns: Vec<Option<&'a ArrayRef>>,
    times: Option<EventTimes>,
}

impl BoundTemplate<'_> {
    /// Writes the path of row `idx`, relative to [`PathTemplate::root`], over `out`. It has no `..`, no empty segment,
    /// no control character, and no segment that begins with a dot unless the template says so.
    pub fn render(&self, idx: usize, out: &mut String) {
        let mut path = String::with_capacity(64);
        for (part, column) in self.template.parts.iter().zip(&self.columns) {
            match part {
                Part::Column(_) => {
                    let value = column.and_then(|column| value_text(column, idx));
                    path.push_str(&encode(value.as_deref().unwrap_or_default(), NONE));
                }
                Part::Text(text) => path.push_str(text),
                Part::Time(format) => {
                    let micros = self.times.as_ref().map_or(0, |times| times.get(idx));
                    path.push_str(&encode(&format_time(format, micros), NONE));
                }
            }
        }
        normalise(&path, out);
    }
}

/// Writes `path` over `out`, without segments that mean another folder.
fn normalise(path: &str, out: &mut String) {
    out.clear();
    for segment in path.split('/').filter(|segment| !matches!(*segment, "" | "." | "..")) {
        if !out.is_empty() {
            out.push('/');
        }
        push_bounded(segment, SEGMENT_BYTES_MAX, out);
    }
}

/// Formats microseconds since the Unix epoch in UTC; times that no calendar has count as the epoch itself.
#[must_use]
pub fn format_time(format: &str, micros: i64) -> String {
    let time = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
    BrokenDownTime::from(time).to_string(format).unwrap_or_default()
}

/// One value as text; `None` if it is null.
#[must_use]
pub fn value_text(column: &ArrayRef, idx: usize) -> Option<Cow<'_, str>> {
    if column.is_null(idx) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(idx).into()),
        DataType::Utf8View => Some(column.as_string_view().value(idx).into()),
        // Arrow knows no time zone by name; the instant is the same.
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().value(idx);
            Timestamp::from_microsecond(micros).ok().map(|time| time.to_string().into())
        }
        _ => {
            let formatter = ArrayFormatter::try_new(column, &FormatOptions::default()).ok()?;
            formatter.value(idx).try_to_string().ok().map(Cow::Owned)
        }
    }
}

/// One value as one harmless part of a name, percent-encoded as Hive does it; `none` if it is empty. Injective but for
/// values longer than 120 bytes, which end in a hash.
#[must_use]
pub fn encode<'a>(value: &'a str, none: &'a str) -> Cow<'a, str> {
    if value.is_empty() {
        return Cow::Borrowed(none);
    }
    let harmless = |c: char| !c.is_control() && !r##""#%'*/:=?\{}[]^<>|`~"##.contains(c);
    if value.len() <= VALUE_BYTES_MAX && !value.starts_with('.') && value.chars().all(harmless) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 8);
    for (at, c) in value.char_indices() {
        if harmless(c) && (at > 0 || c != '.') {
            encoded.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail");
            }
        }
        if encoded.len() > 2 * VALUE_BYTES_MAX {
            break;
        }
    }
    if encoded.len() <= VALUE_BYTES_MAX {
        return Cow::Owned(encoded);
    }
    let mut bounded = String::with_capacity(VALUE_BYTES_MAX);
    push_cut(&encoded, VALUE_BYTES_MAX, value.as_bytes(), &mut bounded);
    Cow::Owned(bounded)
}

fn push_bounded(segment: &str, bytes_max: usize, out: &mut String) {
    if segment.len() <= bytes_max {
        out.push_str(segment);
    } else {
        push_cut(segment, bytes_max, segment.as_bytes(), out);
    }
}

/// Appends as much of `text` as fits beside a hash of `whole`.
fn push_cut(text: &str, bytes_max: usize, whole: &[u8], out: &mut String) {
    const HASH_BYTES: usize = 33;
    let end = text.floor_char_boundary(bytes_max - HASH_BYTES);
    out.push_str(&text[..end]);
    write!(out, "-{:032x}", xxhash_rust::xxh3::xxh3_128(whole)).expect("writing to a string cannot fail");
}

/// When the events of a batch happened, in microseconds since the Unix epoch.
#[derive(Debug)]
pub struct EventTimes {
    column: Option<TimestampMicrosecondArray>,
    received_at: i64,
}

impl EventTimes {
    /// The times in the event-time column; where there is none, or it is null, the arrival.
    #[must_use]
    pub fn of(batch: &Batch) -> Self {
        let column =
            batch.rows().column_by_name(RowSchema::EVENT_TIME).and_then(|column| match column.data_type() {
                DataType::Timestamp(TimeUnit::Microsecond, _) => Some(Arc::clone(column)),
                DataType::Timestamp(_, zone) => {
                    cast(column, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone())).ok()
                }
                _ => None,
            });
        let column = column.map(|column| column.as_primitive::<TimestampMicrosecondType>().clone());
        Self { column, received_at: batch.origin().received_at }
    }

    /// The time of row `idx`.
    #[must_use]
    pub fn get(&self, idx: usize) -> i64 {
        match &self.column {
            Some(column) if column.is_valid(idx) => column.value(idx),
            _ => self.received_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::fixtures::events;

    fn render(template: &str, tenant: Option<&str>) -> String {
        let batch = events(&[(1, tenant, "m")]);
        let template = PathTemplate::parse(template).unwrap();
        let mut out = String::new();
        template.bind(&batch).render(0, &mut out);
        out
    }

    #[test]
    fn constants_times_and_values() {
        assert_eq!(render("logs/%Y/%m-%d/{tenant}.ndjson", Some("acme")), "1970/01-01/acme.ndjson");
        assert_eq!(render("logs/100%%{{x}}", None), "100%{x}");
        assert_eq!(render("logs/{@timestamp}", None), "1970-01-01T00%3A00%3A01Z");
        let template = PathTemplate::parse("/var/log/x/{tenant}/%H").unwrap();
        assert_eq!(template.root(), Path::new("/var/log/x/"));
        assert_eq!(template.columns(), ["tenant", "@timestamp"]);
        assert_eq!(PathTemplate::parse("out.ndjson").unwrap().root(), Path::new("."));
    }

    #[test]
    fn values_cannot_leave_the_folder() {
        for hostile in
            ["../../etc/passwd", "..", ".", "/", "/etc", "a/../b", "a\0b", ".ssh", "", "..\\..", "a\nb"]
        {
            let path = render("logs/{tenant}/x", Some(hostile));
            assert_eq!(path.split('/').count(), 2, "{hostile:?} → {path:?}");
            assert!(!path.starts_with('.') && !path.contains(['\0', '\n', '\\']), "{hostile:?} → {path:?}");
        }
        assert_eq!(render("logs/{tenant}", None), "_none");
        assert_ne!(render("logs/{tenant}", Some("a/b")), render("logs/{tenant}", Some("a%2Fb")));
        let (one, other) = (format!("{}1", "ü".repeat(5_000)), format!("{}2", "ü".repeat(5_000)));
        assert!(render("logs/{tenant}", Some(&one)).len() <= VALUE_BYTES_MAX);
        assert_ne!(render("logs/{tenant}", Some(&one)), render("logs/{tenant}", Some(&other)));
        assert!(render("logs/{tenant}{tenant}{tenant}", Some(&one)).len() <= SEGMENT_BYTES_MAX);
    }

    #[test]
    fn bad_templates_are_refused() {
        for bad in ["logs/", "logs/{", "logs/{}", "logs/%", "logs/%!", "a/{x}/../b", ""] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad:?}");
        }
    }
}
