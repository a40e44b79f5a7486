//! What the Prometheus connectors share: the messages of remote write, rows of samples, and the text that targets expose.

pub mod exposition;
pub(crate) mod remote;

use crate::document::object::Object;

/// The label that holds a metric's name.
pub(crate) const NAME: &str = "__name__";

/// The value that says that a series has ended.
pub(crate) const STALE: u64 = 0x7FF0_0000_0000_0002;

/// Nanoseconds of a millisecond.
pub(crate) const MILLISECOND: u64 = 1_000_000;

/// What a sample is of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: &'a [(&'a str, &'a str)],
    /// As Prometheus calls it; empty if it is not known.
    pub(crate) kind: &'a str,
    pub(crate) unit: &'a str,
}

/// Appends the document of a sample, in the catalogue's `metric` schema: `write` adds its values.
pub(crate) fn write_row(head: Head<'_>, nanos: u64, out: &mut Vec<u8>, write: impl FnOnce(&mut Object<'_>)) {
    let mut object = Object::begin(out);
    object.time("@timestamp", nanos);
    object.text("signal", "metric");
    object.text("type", "metric");
    object.text("name", head.name);
    write(&mut object);
    object.text("unit", head.unit);
    let job = head.labels.iter().find(|(key, _)| *key == "job").map_or("", |(_, job)| job);
    object.text("service", job);
    if !matches!(head.kind, "" | "unknown" | "untyped") {
        let mut inner = object.object("metric");
        inner.text("kind", head.kind);
        inner.end();
    }
    if !head.labels.is_empty() {
        let mut labels = object.object("labels");
        for (key, value) in head.labels {
            crate::document::scalar::write_text(value, labels.key(key));
        }
        labels.end();
    }
    object.end();
}

/// Writes the value of a sample.
pub(crate) fn write_value(value: f64, object: &mut Object<'_>) {
    if value.to_bits() == STALE {
        object.boolean("stale", true);
    } else {
        object.measure("value", value);
    }
}

/// Sorts labels by name; false if one has two values.
pub(crate) fn sort_labels(labels: &mut [(&str, &str)]) -> bool {
    labels.sort_unstable_by_key(|(key, _)| *key);
    labels.windows(2).all(|pair| pair[0].0 != pair[1].0)
}
