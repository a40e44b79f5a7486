//! Names, keys and header values made of constants, time and column values.

use arrow::array::ArrayRef;
use logdrive_schemas::{Batch, RowSchema};

use super::template::{EventTimes, Part, format_time, parse_parts, value_text};

/// Text with placeholders: `%…` is strftime (UTC) of the event time, `{column}` a value.
#[derive(Clone, Debug)]
pub(super) struct Text(Vec<Part>);

impl Text {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        parse_parts(text).map(Self)
    }

    /// The text, if it is the same for every row.
    #[cfg(feature = "kafka")]
    pub(super) fn constant(&self) -> Option<String> {
        let text = |part: &Part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Column(_) | Part::Time(_) => None,
        };
        self.0.iter().map(text).collect()
    }

    /// The columns that it reads.
    pub(super) fn columns(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.clone()),
            Part::Time(_) => Some(RowSchema::EVENT_TIME.to_owned()),
            Part::Text(_) => None,
        })
    }

    pub(super) fn bind<'a>(&'a self, batch: &'a Batch) -> Bound<'a> {
        let column = |part: &Part| match part {
            Part::Column(name) => batch.rows().column_by_name(name),
            Part::Text(_) | Part::Time(_) => None,
        };
        let has_time = self.0.iter().any(|part| matches!(part, Part::Time(_)));
        Bound {
            parts: &self.0,
            columns: self.0.iter().map(column).collect(),
            times: has_time.then(|| EventTimes::of(batch)),
        }
    }
}

/// Text with placeholders, and the columns of a batch.
pub(super) struct Bound<'a> {
    parts: &'a [Part],
    columns: Vec<Option<&'a ArrayRef>>,
    times: Option<EventTimes>,
}

impl Bound<'_> {
    /// Writes the text of row `idx` over `out`. False if it names columns and all of them are null.
    pub(super) fn write(&self, idx: usize, out: &mut String) -> bool {
        out.clear();
        let (mut names_columns, mut has_value) = (false, false);
        for (part, column) in self.parts.iter().zip(&self.columns) {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Time(format) => {
                    out.push_str(&format_time(format, self.times.as_ref().map_or(0, |times| times.get(idx))));
                }
                Part::Column(_) => {
                    names_columns = true;
                    if let Some(value) = column.and_then(|column| value_text(column, idx)) {
                        has_value = true;
                        out.push_str(&value);
                    }
                }
            }
        }
        has_value || !names_columns
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::events;
    use super::*;

    #[test]
    fn a_text_without_any_value_is_none() {
        let batch = events(&[(0, Some("a/ä"), "{}"), (1, None, "{}")]);
        let text = Text::parse("%Y-{tenant}").unwrap();
        assert_eq!(text.columns().collect::<Vec<_>>(), ["@timestamp", "tenant"]);
        let (bound, mut out) = (text.bind(&batch), String::new());
        assert!(bound.write(0, &mut out));
        assert_eq!(out, "1970-a/ä");
        assert!(!bound.write(1, &mut out));
        let constant = Text::parse("logs").unwrap();
        #[cfg(feature = "kafka")]
        assert_eq!(constant.constant().as_deref(), Some("logs"));
        assert!(constant.bind(&batch).write(1, &mut out));
        assert_eq!(out, "logs");
    }
}
