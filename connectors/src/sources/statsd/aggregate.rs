//! What came within one interval, by metric and tags.

use std::collections::{BTreeMap, HashMap, HashSet};

use hdrhistogram::Histogram;
use xxhash_rust::xxh3::xxh3_128;

use super::line::{Kind, Line, Value};
use crate::document::object::{Object, write_array};
use crate::document::scalar::write_text;

/// So many measurements are kept as they are; more go into a histogram.
const EXACT_MAX: usize = 64;
/// Histograms count whole numbers: a measurement is counted in millionths of its unit.
const SCALE: f64 = 1e6;
/// Quantiles are off by at most one part in a hundred.
const DIGITS: u8 = 2;
/// Roughly what a metric takes besides its name, tags and measurements.
const SERIES_BYTES: usize = 256;

/// What tells two metrics from each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series {
    name: Box<str>,
    kind: Kind,
    /// Sorted; the values of one tag in order.
    tags: Box<[(Box<str>, Box<str>)]>,
}

impl Series {
    fn of(line: &Line<'_>) -> Self {
        let mut tags: Vec<(Box<str>, Box<str>)> =
            line.tags.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        tags.sort_unstable();
        tags.dedup();
        Self { name: line.name.into(), kind: line.kind, tags: tags.into() }
    }

    fn bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(|(key, value)| key.len() + value.len() + 32).sum();
        self.name.len() + tags + SERIES_BYTES
    }
}

/// Measurements, each standing for several if only a share of them was sent.
#[derive(Debug)]
struct Measured {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    exact: Vec<(f64, u64)>,
    /// Once there are too many: those from 0 up, and those below it without their sign.
    counted: Option<Box<(Histogram<u64>, Histogram<u64>)>>,
}

impl Measured {
    fn new() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { count: 0, sum: 0.0, min, max, exact: Vec::new(), counted: None }
    }

    fn add(&mut self, value: f64, weight: u64) {
        self.count = self.count.saturating_add(weight);
        self.sum += value * weight as f64;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if let Some(counted) = &mut self.counted {
            return count(counted, value, weight);
        }
        self.exact.push((value, weight));
        if self.exact.len() > EXACT_MAX {
            let mut counted = Box::new((histogram(), histogram()));
            for (value, weight) in std::mem::take(&mut self.exact) {
                count(&mut counted, value, weight);
            }
            self.counted = Some(counted);
        }
    }

    fn bytes(&self) -> usize {
        let counted =
            self.counted.as_ref().map_or(0, |both| (both.0.distinct_values() + both.1.distinct_values()) * 8);
        self.exact.capacity() * 16 + counted
    }

    /// The measurement below which this share of all lies.
    fn quantile(&mut self, quantile: f64) -> f64 {
        let rank = ((quantile * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let Some((above, below)) = self.counted.as_deref() else {
            self.exact.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let mut n = 0;
            let at = self.exact.iter().find(|(_, weight)| {
                n += weight;
                n >= rank
            });
            return at.map_or(self.max, |(value, _)| *value);
        };
        let n_below = below.len();
        let found = if rank <= n_below {
            // The largest without its sign is the smallest.
            let share = 1.0 - (rank - 1) as f64 / n_below as f64;
            -(below.value_at_quantile(share) as f64)
        } else {
            above.value_at_quantile((rank - n_below) as f64 / above.len() as f64) as f64
        };
        (found / SCALE).clamp(self.min, self.max)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("two digits are allowed")
}

fn count(both: &mut (Histogram<u64>, Histogram<u64>), value: f64, weight: u64) {
    let side = if value < 0.0 { &mut both.1 } else { &mut both.0 };
    // The largest number that fits stands for all above it; a histogram that resizes itself takes any.
    let scaled = (value.abs() * SCALE).round() as u64;
    if side.record_n(scaled, weight).is_err() {
        side.saturating_record(scaled);
    }
}

#[derive(Debug)]
enum State {
    Counter { sum: f64, n: u64 },
    Gauge(f64),
    Set(HashSet<u128>),
    Measured(Measured),
}

impl State {
    fn bytes(&self) -> usize {
        match self {
            Self::Counter { .. } | Self::Gauge(_) => 0,
            Self::Set(members) => members.capacity() * 20,
            Self::Measured(measured) => measured.bytes(),
        }
    }
}

/// What came within one interval, and the gauges' values from before.
#[derive(Debug)]
pub(super) struct Aggregate {
    series: HashMap<Series, State>,
    /// Where gauges stand, for those that are told how much they change.
    gauges: HashMap<Series, f64>,
    quantiles: Vec<f64>,
    bytes: usize,
    bytes_max: usize,
    gauges_max: usize,
}

impl Aggregate {
    pub(super) fn new(quantiles: Vec<f64>, bytes_max: usize, gauges_max: usize) -> Self {
        Self { series: HashMap::new(), gauges: HashMap::new(), quantiles, bytes: 0, bytes_max, gauges_max }
    }

    /// As much is held as may be: it is time to write, whatever the clock says.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    pub(super) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    pub(super) fn add(&mut self, line: &Line<'_>) {
        let series = Series::of(line);
        let known = self.gauges.get(&series).copied();
        let bytes = series.bytes();
        let state = self.series.entry(series).or_insert_with_key(|series| {
            self.bytes += bytes;
            match series.kind {
                Kind::Counter => State::Counter { sum: 0.0, n: 0 },
                Kind::Gauge => State::Gauge(known.unwrap_or(0.0)),
                Kind::Set => State::Set(HashSet::new()),
                Kind::Distribution | Kind::Histogram | Kind::Timer => State::Measured(Measured::new()),
            }
        });
        let before = state.bytes();
        let weight = (1.0 / line.rate).round() as u64;
        for value in &line.values {
            match (&mut *state, value) {
                (State::Counter { sum, n }, Value::Number(value)) => {
                    *sum += value / line.rate;
                    *n += 1;
                }
                (State::Gauge(at), Value::Number(value)) => *at = *value,
                (State::Gauge(at), Value::Change(value)) => *at += value,
                (State::Set(members), Value::Member(member)) => {
                    members.insert(xxh3_128(member.as_bytes()));
                }
                (State::Measured(measured), Value::Number(value)) => measured.add(*value, weight),
                // The kind of a line decides which values it has.
                _ => {}
            }
        }
        self.bytes += state.bytes().saturating_sub(before);
    }

    /// Writes a document for every metric that came, each handed to `emit`, and begins anew.
    pub(super) fn write(&mut self, now: u64, mut emit: impl FnMut(&[u8])) {
        let mut out = Vec::new();
        for (series, mut state) in self.series.drain() {
            out.clear();
            write_row(&series, &mut state, &self.quantiles, now, &mut out);
            emit(&out);
            if let State::Gauge(at) = state
                && (self.gauges.len() < self.gauges_max || self.gauges.contains_key(&series))
            {
                self.gauges.insert(series, at);
            }
        }
        self.bytes = 0;
    }
}

fn write_row(series: &Series, state: &mut State, quantiles: &[f64], now: u64, out: &mut Vec<u8>) {
    let mut object = begin(&series.name, series.kind, now, out);
    match state {
        State::Counter { sum, n } => {
            object.measure("value", *sum);
            object.unsigned("count", *n);
        }
        State::Gauge(at) => object.measure("value", *at),
        State::Set(members) => object.unsigned("value", members.len() as u64),
        State::Measured(measured) => {
            object.measure("value", measured.sum);
            object.unsigned("count", measured.count);
            object.measure("min", measured.min);
            object.measure("max", measured.max);
            write_array(quantiles, object.key("quantiles"), |quantile, out| {
                let mut object = Object::begin(out);
                object.float("quantile", *quantile);
                object.measure("value", measured.quantile(*quantile));
                object.end();
            });
        }
    }
    let tags = series.tags.iter().map(|(key, value)| (&**key, &**value));
    finish(object, tags);
}

/// Writes one document for each value of a line, as it came.
pub(super) fn write_each(line: &Line<'_>, now: u64, mut emit: impl FnMut(&[u8])) {
    let at = line.at.map_or(now, |seconds| seconds.saturating_mul(1_000_000_000));
    let mut out = Vec::new();
    for value in &line.values {
        out.clear();
        let mut object = begin(line.name, line.kind, at, &mut out);
        match value {
            Value::Number(value) => object.measure("value", *value),
            Value::Change(value) => object.measure("change", *value),
            Value::Member(member) => object.text("member", member),
        }
        if line.rate < 1.0 {
            object.float("sample_rate", line.rate);
        }
        finish(object, line.tags.iter().copied());
        emit(&out);
    }
}

fn begin<'a>(name: &str, kind: Kind, at: u64, out: &'a mut Vec<u8>) -> Object<'a> {
    let mut object = Object::begin(out);
    object.time("@timestamp", at);
    object.text("signal", "metric");
    object.text("type", "metric");
    object.text("name", name);
    let mut inner = object.object("metric");
    inner.text("kind", kind.name());
    inner.end();
    if kind == Kind::Timer {
        object.text("unit", "ms");
    }
    object
}

/// A tag with several values has all of them.
fn finish<'a>(mut object: Object<'_>, tags: impl Iterator<Item = (&'a str, &'a str)>) {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, value) in tags {
        all.entry(key).or_default().push(value);
    }
    if !all.is_empty() {
        let mut labels = object.object("labels");
        for (key, values) in all {
            match values.as_slice() {
                [one] => write_text(one, labels.key(key)),
                many => write_array(many, labels.key(key), |value, out| write_text(value, out)),
            }
        }
        labels.end();
    }
    object.end();
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::super::line::parse;
    use super::*;

    fn aggregate() -> Aggregate {
        Aggregate::new(vec![0.5, 0.99], 1 << 20, 100)
    }

    fn written(aggregate: &mut Aggregate) -> Vec<Json> {
        let mut rows = Vec::new();
        aggregate.write(1_700_000_000_000_000_000, |row| rows.push(serde_json::from_slice(row).unwrap()));
        rows.sort_by_key(|row: &Json| row["name"].to_string() + &row["labels"].to_string());
        rows
    }

    #[test]
    fn every_kind_is_aggregated() {
        let mut aggregate = aggregate();
        for line in [
            "c:1|c",
            "c:2|c|@0.1",
            "c:1|c|#a:1",
            "c:1|c|#b:2,a:1",
            "c:1|c|#a:1,b:2",
            "g:5|g",
            "g:+2|g",
            "s:x|s",
            "s:x|s",
            "s:y|s",
            "t:10|ms",
            "t:30|ms|@0.5",
            "h:-5:5|h|#multi:x,multi:y",
        ] {
            aggregate.add(&parse(line.as_bytes()).expect(line));
        }
        let rows = written(&mut aggregate);
        assert_eq!(rows.len(), 7);
        let value =
            |idx: usize| (rows[idx]["name"].clone(), rows[idx]["value"].clone(), rows[idx]["labels"].clone());
        assert_eq!(value(0), (json!("c"), json!(21.0), Json::Null));
        assert_eq!(value(2), (json!("c"), json!(1.0), json!({ "a": "1" })));
        assert_eq!(value(1), (json!("c"), json!(2.0), json!({ "a": "1", "b": "2" })));
        assert_eq!(value(3), (json!("g"), json!(7.0), Json::Null));
        assert_eq!(value(4), (json!("h"), json!(0.0), json!({ "multi": ["x", "y"] })));
        assert_eq!(value(5), (json!("s"), json!(2), Json::Null));
        let expect = json!({
            "@timestamp": "2023-11-14T22:13:20Z", "signal": "metric", "type": "metric", "name": "t",
            "metric": { "kind": "timer" }, "unit": "ms", "value": 70.0, "count": 3, "min": 10.0, "max": 30.0,
            "quantiles": [{ "quantile": 0.5, "value": 30.0 }, { "quantile": 0.99, "value": 30.0 }],
        });
        assert_eq!(rows[6], expect);
        assert!(written(&mut aggregate).is_empty());
        aggregate.add(&parse(b"g:-3|g").unwrap());
        assert_eq!(written(&mut aggregate)[0]["value"], 4.0, "a gauge stays where it was");
    }

    #[test]
    fn quantiles_are_close_also_of_many_and_below_zero() {
        for (shift, scale) in [(0.0, 1.0), (-5000.0, 1.0), (0.0, 1e-4), (-10_000.0, 1e9)] {
            let mut measured = Measured::new();
            let mut all: Vec<f64> =
                (0..10_000).map(|n| (f64::from((n * 7919) % 10_000) + shift) * scale).collect();
            for value in &all {
                measured.add(*value, 1);
            }
            all.sort_by(f64::total_cmp);
            for quantile in [0.01, 0.25, 0.5, 0.9, 0.99, 1.0] {
                let exact = all[((quantile * 10_000.0_f64).ceil() as usize).max(1) - 1];
                let found = measured.quantile(quantile);
                let error = (found - exact).abs();
                assert!(
                    error <= exact.abs() * 0.011 + 2.0 * scale,
                    "{shift} {scale} {quantile}: {found} not {exact}"
                );
            }
            assert_eq!((measured.min, measured.max), (all[0], all[9999]));
        }
    }

    #[test]
    fn it_says_when_it_is_full() {
        let mut aggregate = Aggregate::new(vec![0.5], 10_000, 2);
        let mut n = 0;
        while !aggregate.is_full() {
            aggregate.add(&parse(format!("g{n}:1|g").as_bytes()).unwrap());
            n += 1;
        }
        assert!((20..60).contains(&n), "{n}");
        assert_eq!(written(&mut aggregate).len(), n);
        assert_eq!(aggregate.gauges.len(), 2, "no more are remembered");
        assert!(!aggregate.is_full());
    }

    #[test]
    fn a_value_as_it_came() {
        let mut rows: Vec<Json> = Vec::new();
        let mut emit = |row: &[u8]| rows.push(serde_json::from_slice(row).unwrap());
        write_each(&parse(b"a:1:2|ms|@0.5|#k:v|T1700000000").unwrap(), 1, &mut emit);
        write_each(&parse(b"g:-1|g").unwrap(), 1_000_000_000, &mut emit);
        assert_eq!(rows.len(), 3);
        assert_eq!((&rows[1]["value"], &rows[1]["sample_rate"]), (&json!(2.0), &json!(0.5)));
        assert_eq!(rows[1]["@timestamp"], "2023-11-14T22:13:20Z");
        assert_eq!((&rows[2]["change"], &rows[2]["value"]), (&json!(-1.0), &Json::Null));
    }
}
