//! Index names: fixed text, the day of the event, and values of columns.
//!
//! Values and event times come from events, so an attacker chooses them: a value is reduced to characters that are
//! harmless in a name, and a time that cannot be true is replaced by the time of receipt, so that nobody can make an
//! index per day from the year 1 to the year 9999.

use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray as _, StringViewArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use jiff::Timestamp;
use logdrive_schemas::{Batch, RowSchema};

const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 100;
const HOUR: i64 = 3_600_000_000;
/// How far ahead of our clock an event time may be.
const AHEAD_MAX: i64 = 24 * HOUR;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Column(String),
    Text(String),
    Time(String),
}

/// `index:`, taken apart.
#[derive(Clone, Debug)]
pub(super) struct IndexPattern {
    parts: Vec<Part>,
    value_max: usize,
    age_max: i64,
}

impl IndexPattern {
    /// Takes `text` apart; events older than `age_max` go to the index of the day they were received.
    pub(super) fn parse(text: &str, age_max: Duration) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let (part, len) = match c {
                '%' => {
                    let specifier = rest[1..].chars().next().unwrap_or(' ');
                    if !"YmdHjGV".contains(specifier) {
                        return Err(format!("`%{specifier}` in `index`: valid are %Y %m %d %H %j %G %V"));
                    }
                    (Part::Time(rest[..2].into()), 2)
                }
                '{' => {
                    let end = rest.find('}').ok_or("`index` has a `{` without a `}`")?;
                    if end == 1 {
                        return Err("`index` has an empty `{}`".into());
                    }
                    (Part::Column(rest[1..end].into()), end + 1)
                }
                _ => {
                    let end = rest.find(['%', '{']).unwrap_or(rest.len());
                    if let Some(bad) = rest[..end].chars().find(|c| !valid(*c)) {
                        return Err(format!(
                            "`{bad}` in `index`: names are made of a-z, 0-9 and any of - _ . + = @ ~"
                        ));
                    }
                    (Part::Text(rest[..end].into()), end)
                }
            };
            parts.push(part);
            rest = &rest[len..];
        }
        let fixed: usize = parts
            .iter()
            .map(|part| match part {
                Part::Column(_) => 0,
                Part::Text(text) => text.len(),
                Part::Time(_) => 4,
            })
            .sum();
        let n_columns = parts.iter().filter(|p| matches!(p, Part::Column(_))).count().max(1);
        let value_max = VALUE_MAX.min(NAME_MAX.saturating_sub(fixed) / n_columns);
        if parts.is_empty() || fixed > NAME_MAX || value_max < 8 {
            return Err("`index` must be a name of 1 to 255 bytes with room for its values".into());
        }
        if matches!(&parts[0], Part::Text(text) if text.starts_with(['-', '_', '+'])) {
            return Err("`index` must not begin with `-`, `_` or `+`".into());
        }
        let age_max = i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX);
        Ok(Self { parts, value_max, age_max })
    }

    /// Whether names have a date in them.
    pub(super) fn is_timed(&self) -> bool {
        self.parts.iter().any(|p| matches!(p, Part::Time(_)))
    }

    /// The columns that names are made of.
    pub(super) fn columns(&self) -> Vec<String> {
        let timed = self.is_timed();
        let named = self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.clone()),
            _ => None,
        });
        timed.then(|| RowSchema::EVENT_TIME.to_owned()).into_iter().chain(named).collect()
    }

    /// The names as a wildcard, for the index template.
    pub(super) fn wildcard(&self) -> String {
        let mut wildcard = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => wildcard.push_str(text),
                _ if wildcard.ends_with('*') => {}
                _ => wildcard.push('*'),
            }
        }
        // `logs-*.*.*` says no more than `logs-*`.
        match wildcard.find('*') {
            Some(at) if wildcard[at..].chars().all(|c| "*.-_".contains(c)) => wildcard[..=at].into(),
            _ => wildcard,
        }
    }

    /// The text that every name begins with.
    pub(super) fn prefix(&self) -> &str {
        match &self.parts[0] {
            Part::Text(text) => text.trim_end_matches(['-', '_', '.']),
            _ => "",
        }
    }

    /// Names for the rows of `batch`.
    pub(super) fn names<'a>(&'a self, batch: &'a Batch) -> Names<'a> {
        let column = |part: &'a Part| match part {
            Part::Column(name) => Text::of(batch, name),
            _ => Text::Missing,
        };
        let time = batch.rows().column_by_name(RowSchema::EVENT_TIME);
        let is_time = |c: &&ArrayRef| matches!(c.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _));
        Names {
            pattern: self,
            time: time.filter(is_time),
            received_at: batch.origin().received_at,
            columns: self.parts.iter().map(column).collect(),
            hour: None,
            times: vec![String::new(); self.parts.len()],
            value: String::new(),
        }
    }
}

fn valid(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.+=@~".contains(c)
}

/// Makes the names of one batch's rows.
pub(super) struct Names<'a> {
    pattern: &'a IndexPattern,
    time: Option<&'a ArrayRef>,
    received_at: i64,
    columns: Vec<Text<'a>>,
    hour: Option<i64>,
    times: Vec<String>,
    value: String,
}

impl Names<'_> {
    /// Appends the index name of row `idx`.
    pub(super) fn write(&mut self, idx: usize, out: &mut String) {
        self.tell_time(idx);
        let start = out.len();
        for (at, part) in self.pattern.parts.iter().enumerate() {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Time(_) => out.push_str(&self.times[at]),
                Part::Column(_) => {
                    self.value.clear();
                    self.columns[at].write(idx, &mut self.value);
                    sanitise(&self.value, self.pattern.value_max, out.len() == start, out);
                }
            }
        }
    }

    /// Renders the time of row `idx`, if it is in another hour than the row before.
    fn tell_time(&mut self, idx: usize) {
        let event_time = self
            .time
            .filter(|column| column.is_valid(idx))
            .map(|column| column.as_primitive::<TimestampMicrosecondType>().value(idx));
        let earliest = self.received_at.saturating_sub(self.pattern.age_max);
        let latest = self.received_at.saturating_add(AHEAD_MAX);
        let at = event_time.filter(|t| (earliest..=latest).contains(t)).unwrap_or(self.received_at);
        let hour = at.div_euclid(HOUR);
        if self.hour.replace(hour) == Some(hour) {
            return;
        }
        let timestamp = Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        for (part, text) in self.pattern.parts.iter().zip(&mut self.times) {
            if let Part::Time(format) = part {
                *text = timestamp.strftime(format).to_string();
            }
        }
    }
}

/// Appends `value` as a part of an index name. At the start of a name it must not begin like an option, a system
/// index (`.`) or a hidden one (`_`).
fn sanitise(value: &str, max: usize, at_start: bool, out: &mut String) {
    let value = if at_start { value.trim_start_matches(|c| !char::is_alphanumeric(c)) } else { value };
    let before = out.len();
    let harmless = value.chars().map(|c| c.to_ascii_lowercase()).map(|c| if valid(c) { c } else { '_' });
    out.extend(harmless.take(max));
    if at_start && out[before..].starts_with(['-', '_', '+', '.']) {
        out.replace_range(before..=before, "x");
    }
    if out.len() == before {
        out.push_str("none");
    }
}

/// A column as text.
pub(super) enum Text<'a> {
    Formatted(&'a ArrayRef, ArrayFormatter<'a>),
    Missing,
    View(&'a StringViewArray),
}

impl<'a> Text<'a> {
    /// The column of that name, if the batch has it.
    pub(super) fn of(batch: &'a Batch, name: &str) -> Self {
        const OPTIONS: FormatOptions<'static> = FormatOptions::new();
        let Some(column) = batch.rows().column_by_name(name) else { return Self::Missing };
        match column.as_string_view_opt() {
            Some(view) => Self::View(view),
            None => ArrayFormatter::try_new(column, &OPTIONS)
                .map_or(Self::Missing, |formatter| Self::Formatted(column, formatter)),
        }
    }

    /// Appends the value of row `idx`; nothing for a null.
    pub(super) fn write(&self, idx: usize, out: &mut String) {
        match self {
            Self::Formatted(column, formatter) if column.is_valid(idx) => {
                out.push_str(&formatter.value(idx).to_string());
            }
            Self::View(view) if view.is_valid(idx) => out.push_str(view.value(idx)),
            _ => {}
        }
    }
}
