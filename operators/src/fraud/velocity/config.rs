//! The YAML of `velocity`, and its check against the input.

use std::sync::Arc;
use std::time::Duration;

use arrow::compute::can_cast_types;
use arrow::datatypes::DataType;
use logdrive_schemas::Severity;
use logdrive_schemas::component::{Component, ConfigError, Node, NodeKind, duration};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use xxhash_rust::xxh3::xxh3_64;

use super::events::Reader;
use super::windows::units;
use super::{Measure, Rules, VelocityDetector};
use crate::detector::{Detector, DetectorConfig, DetectorContext};
use crate::expression::Expression;
use crate::steps::edit::{compile, unknown_field};
use crate::steps::r#where::must_be_boolean;

/// Finds keys with too many events, too large a sum, or too many distinct values in a sliding window of event time.
///
/// A finding is said as soon as a row takes its key's window to the threshold: with `threshold: 8` by the eighth
/// event. The window of a row is the time up to and including the row's, and longer ago than `window` is outside.
/// Rows may come in any order within the schema's lateness, judged against the newest event time that a worker has
/// seen; what comes later is counted as late and not looked at. So are rows without event time, and rows more than an
/// hour and the lateness ahead of the clock, which must not move time on. Rows whose key (or value) is null are not
/// counted. Sums are exact to six decimals.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Velocity {
    /// Only rows for which this SQL condition is true count.
    #[serde(default, rename = "where")]
    pub condition: Option<String>,
    /// The fields that make up the key, such as `[card_id]`; SQL expressions are allowed.
    pub by: Vec<String>,
    /// The length of the window, such as `5m`.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub window: Duration,
    /// The value that is too much; above zero.
    pub threshold: f64,
    /// A field or SQL expression: its sum is compared with the threshold, not the number of events.
    #[serde(default)]
    pub sum: Option<String>,
    /// A field or SQL expression: the number of its different values is compared with the threshold.
    #[serde(default)]
    pub distinct: Option<String>,
    /// How urgent the findings are.
    #[serde(default)]
    pub severity: Severity,
    /// After a finding there is none for the same key before this much event time has passed. The length of the
    /// window unless given. A key that stays above the threshold is found again after the cool-down, to a sixteenth
    /// of it.
    #[serde(default, deserialize_with = "some_duration")]
    #[schemars(with = "Option<String>")]
    pub cooldown: Option<Duration>,
    /// The field that says whose the key is; `tenant` if there is such a field.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The most rows that are kept for one key, and so the largest value a finding can name; the oldest go first.
    /// Never less than a threshold on the number of events or values.
    #[serde(default = "default_max_rows_per_key")]
    pub max_rows_per_key: usize,
    /// The most rows that one worker keeps; beyond them the oldest go first.
    #[serde(default = "default_max_rows")]
    pub max_rows: usize,
}

fn some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

fn default_max_rows_per_key() -> usize {
    10_000
}

fn default_max_rows() -> usize {
    5_000_000
}

impl Component for Velocity {
    const NAME: &'static str = "velocity";
    const EXAMPLE: &'static str = "\
type: velocity
from: events
where: type = 'transaction'
by: [card_id]
window: 5m
threshold: 8
severity: P1
";
}

impl DetectorConfig for Velocity {
    fn plan(self, node: &Node, cx: &DetectorContext) -> Result<Arc<dyn Detector>, Vec<ConfigError>> {
        let mut planner = Planner { cx, node, computed: Vec::new(), reads: Vec::new(), errors: Vec::new() };
        let condition = self.condition.as_ref().and_then(|sql| planner.condition(sql));
        let by: Vec<usize> =
            (0..self.by.len()).filter_map(|idx| planner.text(&self.by[idx], "by", Some(idx))).collect();
        let measure = match (&self.sum, &self.distinct) {
            (None, None) => Some((Measure::Count, None)),
            (Some(sql), None) => planner.number(sql, "sum").map(|idx| (Measure::Sum, Some(idx))),
            (None, Some(sql)) => {
                planner.text(sql, "distinct", None).map(|idx| (Measure::Distinct, Some(idx)))
            }
            (Some(_), Some(_)) => planner.invalid("distinct", "either `sum` or `distinct`, not both"),
        };
        let event_time = planner.event_time();
        let tenant = planner.tenant(self.tenant.as_deref());
        let window = micros(self.window);
        let cooldown = self.cooldown.map_or(window, micros);
        if self.by.is_empty() {
            planner.invalid::<()>("by", "`by` names no field");
        }
        for (key, value) in [("window", window), ("cooldown", cooldown)] {
            if value == 0 {
                planner.invalid::<()>(key, &format!("`{key}` must be longer than nothing"));
            }
        }
        // Not `<= 0.0`: neither is NaN a threshold.
        let sane = self.threshold > 0.0 && self.threshold <= 1e18;
        if !sane {
            planner.invalid::<()>("threshold", "`threshold` must be above zero and at most 1e18");
        }
        if self.max_rows_per_key == 0 || self.max_rows == 0 {
            planner.invalid::<()>("max_rows", "a limit must be above zero");
        }
        let Planner { computed, mut reads, errors, .. } = planner;
        if !errors.is_empty() {
            return Err(errors);
        }
        let (Some((measure, value)), Some(event_time)) = (measure, event_time) else { return Err(errors) };
        reads.sort();
        reads.dedup();
        let enough = match measure {
            Measure::Count | Measure::Distinct => self.threshold.ceil() as usize,
            Measure::Sum => 1,
        };
        let shape = format!("{:?}|{:?}|{:?}|{:?}", self.condition, self.by, self.sum, self.distinct);
        let rules = Rules {
            name: Arc::clone(&cx.name),
            reader: Reader { condition, computed, by, value, event_time, tenant },
            measure,
            threshold: units(self.threshold).unwrap_or(i128::MAX),
            window,
            lateness: micros(cx.lateness),
            cooldown,
            severity: self.severity,
            max_rows_per_key: self.max_rows_per_key.max(enough),
            max_rows: self.max_rows,
            fingerprint: xxh3_64(shape.as_bytes()),
        };
        Ok(Arc::new(VelocityDetector { rules: Arc::new(rules), reads }))
    }
}

/// At most about thirty years, so that adding a few of them to a time does not overflow.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(1 << 50)
}

struct Planner<'a> {
    cx: &'a DetectorContext,
    node: &'a Node,
    computed: Vec<Arc<dyn Expression>>,
    reads: Vec<String>,
    errors: Vec<ConfigError>,
}

impl<'a> Planner<'a> {
    /// The node of `key`, or the whole if it is not there.
    fn place(&self, key: &str, item: Option<usize>) -> &'a Node {
        let value = self.node.get(key).unwrap_or(self.node);
        match (&value.kind, item) {
            (NodeKind::Seq(items), Some(idx)) => items.get(idx).unwrap_or(value),
            _ => value,
        }
    }

    fn invalid<T>(&mut self, key: &str, message: &str) -> Option<T> {
        let span = self.place(key, None).span;
        self.errors.push(ConfigError::new("config::invalid_value", span, message));
        None
    }

    fn compile(&mut self, sql: &str, place: &Node) -> Option<Arc<dyn Expression>> {
        match compile(sql, place, &self.cx.input, &*self.cx.compiler) {
            Ok(expr) => {
                self.reads.extend(expr.columns().iter().cloned());
                Some(expr)
            }
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    fn condition(&mut self, sql: &str) -> Option<Arc<dyn Expression>> {
        let place = self.place("where", None);
        let condition = self.compile(sql, place)?;
        must_be_boolean(&*condition, place).map_err(|error| self.errors.push(error)).ok()?;
        Some(condition)
    }

    /// The column of a field, or the one that an SQL expression will be computed into, behind those of the input.
    fn operand(&mut self, text: &str, place: &Node) -> Option<(usize, DataType)> {
        let input = &self.cx.input;
        if let Ok(idx) = input.index_of(text.trim()) {
            self.reads.push(text.trim().into());
            return Some((idx, input.field(idx).data_type().clone()));
        }
        let expr = self.compile(text, place)?;
        let data_type = expr.data_type().clone();
        self.computed.push(expr);
        Some((self.cx.input.fields().len() + self.computed.len() - 1, data_type))
    }

    /// An operand of which there is a text.
    fn text(&mut self, text: &str, key: &str, item: Option<usize>) -> Option<usize> {
        let place = self.place(key, item);
        let (idx, data_type) = self.operand(text, place)?;
        if can_cast_types(&data_type, &DataType::Utf8View) && !data_type.is_nested() {
            return Some(idx);
        }
        let message = format!("`{key}` needs plain values, this is of type {data_type}");
        self.errors.push(ConfigError::new("sql::type", place.span, message));
        None
    }

    /// An operand that is a number.
    fn number(&mut self, text: &str, key: &str) -> Option<usize> {
        let place = self.place(key, None);
        let (idx, data_type) = self.operand(text, place)?;
        if data_type.is_numeric() {
            return Some(idx);
        }
        let message = format!("`{key}` needs a number, this is of type {data_type}");
        self.errors.push(ConfigError::new("sql::type", place.span, message));
        None
    }

    fn event_time(&mut self) -> Option<usize> {
        let (input, name) = (&self.cx.input, &self.cx.event_time);
        let Ok(idx) = input.index_of(name) else {
            self.errors.push(unknown_field(name, self.node.span, input));
            return None;
        };
        self.reads.push(name.clone());
        match input.field(idx).data_type() {
            DataType::Timestamp(_, _) => Some(idx),
            other => {
                let message = format!("the event time `{name}` must be a timestamp, it is of type {other}");
                self.errors.push(ConfigError::new("sql::type", self.node.span, message));
                None
            }
        }
    }

    fn tenant(&mut self, name: Option<&str>) -> Option<usize> {
        let input = &self.cx.input;
        match (name, input.index_of(name.unwrap_or("tenant"))) {
            (Some(name), _) => self.text(name, "tenant", None),
            (None, Ok(idx)) if can_cast_types(input.field(idx).data_type(), &DataType::Utf8View) => {
                self.reads.push("tenant".into());
                Some(idx)
            }
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema, TimeUnit};
    use logdrive_schemas::component::Limits;

    use super::super::super::DETECTORS;
    use super::*;
    use crate::stub::StubCompiler;

    fn plan(yaml: &str) -> Result<Arc<dyn Detector>, Vec<(&'static str, String)>> {
        let mut node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
        node.take("type");
        node.take("from");
        let input = Schema::new(vec![
            Field::new("@timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("card_id", DataType::Utf8View, true),
            Field::new("type", DataType::Utf8View, true),
            Field::new("amount", DataType::Float64, true),
            Field::new("tenant", DataType::Utf8View, true),
        ]);
        let cx = DetectorContext {
            name: "cards".into(),
            compiler: Arc::new(StubCompiler),
            input: Arc::new(input),
            event_time: "@timestamp".into(),
            lateness: Duration::from_secs(10),
        };
        let place = |e: ConfigError| (e.code, yaml[e.span.start..e.span.start + e.span.len].to_owned());
        (DETECTORS[0].plan)(&node, &cx).map_err(|errors| errors.into_iter().map(place).collect())
    }

    #[test]
    fn the_example_is_planned_and_knows_what_it_reads() {
        let detector = plan(Velocity::EXAMPLE).unwrap();
        assert_eq!(detector.reads(), ["@timestamp", "card_id", "tenant", "type"]);
        assert_eq!(detector.operators(), ["cards.input", "cards.rows", "cards.alerts"]);
    }

    #[test]
    fn every_error_is_told_with_its_place() {
        let yaml = "{by: [card_di], window: 0s, threshold: -1, sum: type, tenant: nope, where: amount}";
        let errors = plan(yaml).unwrap_err();
        let expected = [
            ("sql::type", "amount"),
            ("sql::unknown_column", "card_di"),
            ("sql::type", "type"),
            ("sql::unknown_column", "nope"),
            ("config::invalid_value", "0s"),
            ("config::invalid_value", "{by"),
            ("config::invalid_value", "-1"),
        ];
        for ((code, at), (expected_code, expected_at)) in errors.iter().zip(expected) {
            assert_eq!(*code, expected_code);
            assert!(at.starts_with(expected_at), "{at}");
        }
        assert_eq!(errors.len(), expected.len());
    }
}
