//! From a document of the schema `metric` to samples.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::prometheus::{NAME, STALE};

/// A sample, and the series it is of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// Sorted by name; the name of the metric among them.
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: f64,
    /// In milliseconds since the Unix epoch.
    pub(super) at: i64,
}

/// The samples of a document that was received at `received_at` (microseconds since the Unix epoch); or why there are
/// none.
pub(super) fn points(document: &Map<String, Value>, received_at: i64) -> Result<Vec<Point>, &'static str> {
    let name = document.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = name_of(name.ok_or("metric_without_name: `name` is missing")?, true);
    let time =
        document.get("@timestamp").and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    let at = time.map_or(received_at / 1000, Timestamp::as_millisecond);
    let labels = labels(document);
    let mut points = Vec::new();
    let mut add = |suffix: &str, more: Option<(&str, String)>, value: f64| {
        let mut labels = labels.clone();
        labels.push((NAME.into(), format!("{name}{suffix}")));
        labels.extend(more.map(|(key, value)| (key.to_owned(), value)));
        labels.sort_unstable();
        points.push(Point { labels, value, at });
    };
    let value = value(document, "value");
    if let (Some(count), true) = (number(document, "count"), is_distribution(document)) {
        distribution(document, count, &mut add);
        add("_count", None, count);
        if let Some(sum) = value {
            add("_sum", None, sum);
        }

        return Ok(points);
    }
    match value {
        Some(value) => add("", None, value),
        None if document.get("stale").and_then(Value::as_bool) == Some(true) => {
            add("", None, f64::from_bits(STALE))
        }
        None => return Err("metric_without_value: `value` is missing or no number"),
    }
    Ok(points)
}

fn is_distribution(document: &Map<String, Value>) -> bool {
    document.get("histogram").is_some_and(Value::is_object)
        || document.get("quantiles").is_some_and(Value::is_array)
}

/// The buckets and quantiles of a document.
fn distribution(
    document: &Map<String, Value>,
    count: f64,
    add: &mut impl FnMut(&str, Option<(&str, String)>, f64),
) {
    let list = |key: &str| {
        let histogram = document.get("histogram")?.as_object()?;
        let values = histogram.get(key)?.as_array()?;
        values.iter().map(number_of).collect::<Option<Vec<f64>>>()
    };
    if let (Some(bounds), Some(counts)) = (list("bounds"), list("counts")) {
        let mut below = 0.0;
        for (bound, n) in bounds.iter().zip(&counts) {
            below += n;
            add("_bucket", Some(("le", bound.to_string())), below);
        }
        add("_bucket", Some(("le", "+Inf".into())), count);
    }
    for quantile in document.get("quantiles").and_then(Value::as_array).into_iter().flatten() {
        let Some(quantile) = quantile.as_object() else { continue };
        if let (Some(at), Some(value)) = (number(quantile, "quantile"), value(quantile, "value")) {
            add("", Some(("quantile", at.to_string())), value);
        }
    }
}

/// The labels of a document; `service` and `host` are `job` and `instance` if there are none.
fn labels(document: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut labels: Vec<(String, String)> = Vec::new();
    let mut add = |key: &str, value: Option<String>| {
        let key = name_of(key, false);
        // An empty label is none.
        let value = value.filter(|value| !value.is_empty());
        if let Some(value) = value.filter(|_| key != NAME && !labels.iter().any(|(known, _)| *known == key)) {
            labels.push((key, value));
        }
    };
    for (key, value) in document.get("labels").and_then(Value::as_object).into_iter().flatten() {
        add(key, text(value));
    }
    for (name, key) in [("service", "job"), ("host", "instance")] {
        add(key, document.get(name).and_then(text));
    }
    labels
}

/// A name as Prometheus takes it: whatever else is in it becomes `_`.
fn name_of(name: &str, colons: bool) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    let mut out: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

fn number(of: &Map<String, Value>, key: &str) -> Option<f64> {
    of.get(key).and_then(number_of)
}

fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// A value, also one that JSON has not and that stands under a key of its own.
fn value(of: &Map<String, Value>, key: &str) -> Option<f64> {
    number(of, key).or_else(|| number(of, &format!("{key}_text")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(document: Value) -> Result<Vec<(String, f64, i64)>, &'static str> {
        let found = points(document.as_object().unwrap(), 5_000_000)?;
        let text = |labels: &[(String, String)]| {
            let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            pairs.join(",")
        };
        Ok(found.iter().map(|point| (text(&point.labels), point.value, point.at)).collect())
    }

    #[test]
    fn a_metric_of_the_catalogue() {
        let found = of(json!({
            "@timestamp": "1970-01-01T00:00:01.5Z", "name": "http.requests", "value": 3, "service": "cart", "host": "web-1",
            "labels": { "code": 200, "shop-id": "a", "none": null, "job": "own", "empty": "" },
        }));
        let labels = "__name__=http_requests,code=200,instance=web-1,job=own,shop_id=a";
        assert_eq!(found.unwrap(), [(labels.to_owned(), 3.0, 1500)]);
        assert_eq!(
            of(json!({ "name": "1st", "value": 0.5 })).unwrap(),
            [("__name__=_1st".to_owned(), 0.5, 5000)]
        );
        assert!(of(json!({ "name": "a", "value_text": "NaN" })).unwrap()[0].1.is_nan());
        assert_eq!(of(json!({ "name": "a", "stale": true })).unwrap()[0].1.to_bits(), STALE);
        assert!(of(json!({ "name": "a", "value": "x" })).is_err());
        assert!(of(json!({ "value": 1 })).is_err());
    }

    #[test]
    fn distributions_become_several_series() {
        let found = of(json!({
            "name": "took", "value": 21.5, "count": 6,
            "histogram": { "bounds": [1.0, 5.0], "counts": [1, 2, 3] },
        }));
        let expect = [
            ("__name__=took_bucket,le=1", 1.0),
            ("__name__=took_bucket,le=5", 3.0),
            ("__name__=took_bucket,le=+Inf", 6.0),
            ("__name__=took_count", 6.0),
            ("__name__=took_sum", 21.5),
        ];
        let found: Vec<_> = found.unwrap().into_iter().map(|(labels, value, _)| (labels, value)).collect();
        assert_eq!(found, expect.map(|(labels, value)| (labels.to_owned(), value)));
        let found = of(json!({
            "name": "took", "value": 55.0, "count": 10, "quantiles": [{ "quantile": 0.5, "value": 5.0 }],
        }));
        assert_eq!(found.unwrap()[0], ("__name__=took,quantile=0.5".to_owned(), 5.0, 5000));
        let found = of(json!({ "name": "hits", "value": 21.0, "count": 3 }));
        assert_eq!(found.unwrap(), [("__name__=hits".to_owned(), 21.0, 5000)], "a counter has a count, too");
    }
}
