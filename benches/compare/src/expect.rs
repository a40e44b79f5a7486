//! What must arrive: which lines, and what each must say.
//!
//! Products name the fields of access logs and syslog differently and nest them differently, so there only the values
//! count; for JSON the names are given by the input.

use serde_json::{Map, Value, json};

use crate::data::{self, Access, Entry, Format};
use crate::geo;

/// What the pipeline of a workload does to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The fields of the JSON line as they came.
    Same,
    /// W3: `debug` is filtered out, one field renamed, three added and, if `geo`, a place looked up.
    Enriched {
        /// Whether country and city are looked up.
        geo: bool,
    },
    /// The parts of a text line, each in a field of its own.
    Fields,
}

/// Which lines are expected and how.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    /// What was sent.
    pub format: Format,
    /// What happens to it.
    pub shape: Shape,
    /// Lines 0 to `lines` are sent.
    pub lines: u64,
}

/// How well a line that is right keeps its types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// Numbers are numbers.
    Kept,
    /// At least one number became a text.
    NumbersAsText,
}

impl Expectation {
    /// Whether line `index` must arrive.
    pub fn wants(&self, index: u64) -> bool {
        !(matches!(self.shape, Shape::Enriched { .. }) && data::is_debug(index))
    }

    /// How many lines must arrive.
    pub fn total(&self) -> u64 {
        match self.shape {
            Shape::Enriched { .. } => (0..self.lines).filter(|index| self.wants(*index)).count() as u64,
            Shape::Same | Shape::Fields => self.lines,
        }
    }

    /// Compares what arrived for line `index` with what was sent.
    pub fn check(&self, index: u64, found: &Value) -> Result<Fidelity, String> {
        match (self.shape, self.format) {
            (Shape::Fields, Format::Nginx) => values(found, &nginx(index)),
            (Shape::Fields, Format::Syslog) => values(found, &syslog(index)),
            (shape, format) => {
                let mut text = Vec::new();
                data::line(format, index, &mut text);
                let mut wanted: Map<String, Value> = serde_json::from_slice(&text)
                    .map_err(|error| format!("line {index} is no JSON: {error}"))?;
                let mut fidelity = Fidelity::Kept;
                if let Shape::Enriched { geo } = shape {
                    fidelity = enriched(&mut wanted, found, geo)?;
                }
                for (name, value) in &wanted {
                    fidelity = worse(fidelity, same(name, found.get(name), value)?);
                }
                Ok(fidelity)
            }
        }
    }
}

fn worse(one: Fidelity, other: Fidelity) -> Fidelity {
    if other == Fidelity::NumbersAsText { other } else { one }
}

/// Makes of the line what W3 must make of it; the place is looked for by value.
fn enriched(wanted: &mut Map<String, Value>, found: &Value, geo: bool) -> Result<Fidelity, String> {
    if found.get("latency_ms").is_some() {
        return Err("`latency_ms` was not renamed".to_owned());
    }
    if let Some(latency) = wanted.remove("latency_ms") {
        wanted.insert("duration_ms".to_owned(), latency);
    }
    for (name, value) in [("env", "prod"), ("pipeline", "p1"), ("region", "eu-1")] {
        wanted.insert(name.to_owned(), json!(value));
    }
    if !geo {
        return Ok(Fidelity::Kept);
    }
    let ip = wanted.get("ip").and_then(Value::as_str).unwrap_or_default();
    let mut parts = ip.split('.').filter_map(|part| part.parse::<u32>().ok());
    let (Some(first), Some(second)) = (parts.next(), parts.next()) else {
        return Err(format!("no address: {ip:?}"));
    };
    let (code, city) = geo::place(first, second);
    values(found, &[("country code", json!(code)), ("city", json!(city))])
}

fn nginx(index: u64) -> Vec<(&'static str, Value)> {
    let access = Access::of(index);
    let mut wanted = vec![
        ("address", json!(access.ip)),
        ("method", json!(access.method)),
        ("path", json!(access.path)),
        ("status", json!(access.status)),
        ("bytes", json!(access.bytes)),
        ("referrer", json!(access.referrer)),
        ("agent", json!(access.agent)),
        ("time", json!(data::time_of_day(index))),
    ];
    if access.user != "-" {
        wanted.push(("user", json!(access.user)));
    }
    wanted
}

fn syslog(index: u64) -> Vec<(&'static str, Value)> {
    let entry = Entry::of(index);
    vec![
        ("host", json!(entry.host)),
        ("app", json!(entry.app)),
        ("pid", json!(entry.pid)),
        ("msgid", json!(entry.msgid)),
        ("tenant", json!(entry.tenant)),
        ("session", json!(entry.session)),
        ("ms", json!(entry.ms)),
        ("message", json!(entry.message)),
        ("time", json!(data::time_of_day(index))),
    ]
}

/// Each wanted value stands in some field.
fn values(found: &Value, wanted: &[(&'static str, Value)]) -> Result<Fidelity, String> {
    let mut leaves = Vec::new();
    collect(found, &mut leaves);
    let mut fidelity = Fidelity::Kept;
    for (name, value) in wanted {
        let fits = |leaf: &&Value| match (*name, value.as_str(), leaf.as_str()) {
            // A moment has many notations; all have the time of day in them.
            ("time", Some(time), Some(text)) => text.contains(time),
            _ => same(name, Some(leaf), value).is_ok(),
        };
        let leaf = leaves
            .iter()
            .copied()
            .find(|leaf| fits(leaf))
            .ok_or_else(|| format!("{name} {value} is missing"))?;
        // Syslog has neither process numbers nor numbers in structured data, only text.
        if value.is_number() && leaf.is_string() && !["pid", "ms"].contains(name) {
            fidelity = Fidelity::NumbersAsText;
        }
    }
    Ok(fidelity)
}

fn collect<'a>(value: &'a Value, leaves: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => fields.values().for_each(|field| collect(field, leaves)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, leaves)),
        leaf => leaves.push(leaf),
    }
}

fn same(name: &str, found: Option<&Value>, wanted: &Value) -> Result<Fidelity, String> {
    let Some(found) = found else { return Err(format!("`{name}` is missing")) };
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    match (found, wanted) {
        (Value::Number(a), Value::Number(b))
            if close(a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(0.0)) =>
        {
            Ok(Fidelity::Kept)
        }
        (Value::String(text), Value::Number(b))
            if text.parse().is_ok_and(|a: f64| close(a, b.as_f64().unwrap_or(f64::NAN))) =>
        {
            Ok(Fidelity::NumbersAsText)
        }
        (Value::String(a), Value::String(b)) if a == b => Ok(Fidelity::Kept),
        _ => Err(format!("`{name}` is {found}, not {wanted}")),
    }
}

/// A log record of OTLP as the object it stands for, `None` if `record` is none.
pub fn from_otlp(record: &Value) -> Option<Value> {
    let plain = |value: &Value| -> Option<Value> {
        let (kind, inner) = value.as_object()?.iter().next()?;
        Some(match (kind.as_str(), inner) {
            ("intValue", Value::String(text)) => json!(text.parse::<i64>().ok()?),
            _ => inner.clone(),
        })
    };
    let entries = record.pointer("/body/kvlistValue/values")?.as_array()?;
    let fields = entries
        .iter()
        .filter_map(|entry| Some((entry.get("key")?.as_str()?.to_owned(), plain(entry.get("value")?)?)));
    Some(Value::Object(fields.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(index: u64) -> Value {
        let mut text = Vec::new();
        data::line(Format::Json, index, &mut text);
        serde_json::from_slice(&text).expect("JSON")
    }

    #[test]
    fn a_line_that_came_as_it_was_sent_is_right_and_a_changed_one_is_not() {
        let all = Expectation { format: Format::Json, shape: Shape::Same, lines: 10 };
        assert_eq!(all.check(3, &sent(3)), Ok(Fidelity::Kept));
        assert!(all.check(4, &sent(3)).is_err());
        let mut changed = sent(3);
        changed["status"] = json!(418);
        assert!(all.check(3, &changed).is_err());
        let mut text = sent(3);
        text["amount"] = json!(format!("{}00", text["amount"]));
        assert_eq!(all.check(3, &text), Ok(Fidelity::NumbersAsText));
        let mut less = sent(3);
        assert!(less.as_object_mut().and_then(|fields| fields.remove("tenant")).is_some());
        assert!(all.check(3, &less).is_err());
    }

    #[test]
    fn the_enriched_line_needs_every_change() {
        let expectation =
            Expectation { format: Format::Json, shape: Shape::Enriched { geo: true }, lines: 1000 };
        assert!((700..900).contains(&expectation.total()));
        let index = (0..).find(|index| expectation.wants(*index)).expect("most are wanted");
        let mut found = sent(index);
        assert!(expectation.check(index, &found).is_err());
        let fields = found.as_object_mut().expect("an object");
        let latency = fields.remove("latency_ms").expect("there");
        fields.insert("duration_ms".to_owned(), latency);
        for (name, value) in [("env", "prod"), ("pipeline", "p1"), ("region", "eu-1")] {
            fields.insert(name.to_owned(), json!(value));
        }
        let without = Expectation { shape: Shape::Enriched { geo: false }, ..expectation };
        assert_eq!(without.check(index, &found), Ok(Fidelity::Kept));
        assert!(expectation.check(index, &found).is_err());
        let ip = found["ip"].as_str().expect("text").to_owned();
        let parts: Vec<u32> = ip.split('.').filter_map(|part| part.parse().ok()).collect();
        let (code, city) = geo::place(parts[0], parts[1]);
        found["geo"] = json!({ "country_iso_code": code, "city_name": city });
        assert_eq!(expectation.check(index, &found), Ok(Fidelity::Kept));
    }

    #[test]
    fn parts_of_text_lines_are_found_by_value() {
        let expectation = Expectation { format: Format::Syslog, shape: Shape::Fields, lines: 10 };
        let entry = Entry::of(5);
        let mut found = json!({
            "at": "2026-11-21T00:00:00.010Z", "h": entry.host, "a": entry.app, "p": entry.pid, "m": entry.msgid,
            "sd": { "tenant": entry.tenant, "session": entry.session, "ms": entry.ms.to_string() }, "t": entry.message,
        });
        assert_eq!(expectation.check(5, &found), Ok(Fidelity::Kept));
        found["t"] = json!("something else");
        assert!(expectation.check(5, &found).is_err());
    }

    #[test]
    fn a_record_of_otlp_is_an_object() {
        let record = json!({ "body": { "kvlistValue": { "values": [
            { "key": "a", "value": { "stringValue": "x" } }, { "key": "n", "value": { "intValue": "5" } },
            { "key": "d", "value": { "doubleValue": 1.5 } } ] } } });
        assert_eq!(from_otlp(&record), Some(json!({ "a": "x", "n": 5, "d": 1.5 })));
    }
}
