//! Data points of metrics, one document each, in the catalogue's `metric` schema.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, SummaryDataPoint, exemplar,
    number_data_point,
};

use super::rows::{self, Rows};
use super::wire::{Kind, Malformed, MetricHead, Raw};
use crate::document::object::{Object, write_array, write_float};
use crate::document::scalar::write_unsigned;

/// What every kind of data point has.
struct Point<'a> {
    start: u64,
    at: u64,
    flags: u32,
    attributes: &'a [KeyValue],
    exemplars: &'a [Exemplar],
}

/// Adds the document of a data point of a metric.
pub(super) fn point(head: &MetricHead, kind: Kind, raw: Raw<'_>, rows: &mut Rows) -> Result<(), Malformed> {
    match kind {
        Kind::Gauge | Kind::Sum => number(head, kind, &raw.decode()?, rows),
        Kind::Histogram => histogram(head, &raw.decode()?, rows),
        Kind::ExponentialHistogram => exponential(head, &raw.decode()?, rows),
        Kind::Summary => summary(head, &raw.decode()?, rows),
    }
    Ok(())
}

fn number(head: &MetricHead, kind: Kind, found: &NumberDataPoint, rows: &mut Rows) {
    let point = Point {
        start: found.start_time_unix_nano,
        at: found.time_unix_nano,
        flags: found.flags,
        attributes: &found.attributes,
        exemplars: &found.exemplars,
    };
    row(head, kind, &point, rows, |object| match found.value {
        Some(number_data_point::Value::AsDouble(value)) => object.measure("value", value),
        Some(number_data_point::Value::AsInt(value)) => object.signed("value", value),
        None => {}
    });
}

fn histogram(head: &MetricHead, found: &HistogramDataPoint, rows: &mut Rows) {
    let point = Point {
        start: found.start_time_unix_nano,
        at: found.time_unix_nano,
        flags: found.flags,
        attributes: &found.attributes,
        exemplars: &found.exemplars,
    };
    row(head, Kind::Histogram, &point, rows, |object| {
        measured(object, found.count, found.sum, found.min, found.max);
        let mut inner = object.object("histogram");
        write_array(&found.explicit_bounds, inner.key("bounds"), |bound, out| write_float(*bound, out));
        write_array(&found.bucket_counts, inner.key("counts"), |n, out| write_unsigned(*n, out));
        inner.end();
    });
}

fn exponential(head: &MetricHead, found: &ExponentialHistogramDataPoint, rows: &mut Rows) {
    let point = Point {
        start: found.start_time_unix_nano,
        at: found.time_unix_nano,
        flags: found.flags,
        attributes: &found.attributes,
        exemplars: &found.exemplars,
    };
    row(head, Kind::ExponentialHistogram, &point, rows, |object| {
        measured(object, found.count, found.sum, found.min, found.max);
        let mut inner = object.object("histogram");
        inner.signed("scale", found.scale.into());
        inner.unsigned("zero_count", found.zero_count);
        inner.float("zero_threshold", found.zero_threshold);
        for (name, buckets) in [("positive", &found.positive), ("negative", &found.negative)] {
            if let Some(Buckets { offset, bucket_counts }) = buckets {
                let mut side = inner.object(name);
                side.signed("offset", (*offset).into());
                write_array(bucket_counts, side.key("counts"), |n, out| write_unsigned(*n, out));
                side.end();
            }
        }
        inner.end();
    });
}

fn summary(head: &MetricHead, found: &SummaryDataPoint, rows: &mut Rows) {
    let point = Point {
        start: found.start_time_unix_nano,
        at: found.time_unix_nano,
        flags: found.flags,
        attributes: &found.attributes,
        exemplars: &[],
    };
    row(head, Kind::Summary, &point, rows, |object| {
        let of = |wanted: f64| {
            found.quantile_values.iter().find(|at| at.quantile == wanted).map(|found| found.value)
        };
        measured(object, found.count, Some(found.sum), of(0.0), of(1.0));
        write_array(&found.quantile_values, object.key("quantiles"), |at, out| {
            let mut object = Object::begin(out);
            object.float("quantile", at.quantile);
            object.measure("value", at.value);
            object.end();
        });
    });
}

/// The value of a distribution is the sum of what was measured.
fn measured(object: &mut Object<'_>, count: u64, sum: Option<f64>, min: Option<f64>, max: Option<f64>) {
    object.unsigned("count", count);
    for (key, value) in [("value", sum), ("min", min), ("max", max)] {
        if let Some(value) = value {
            object.measure(key, value);
        }
    }
}

fn row(
    head: &MetricHead,
    kind: Kind,
    point: &Point<'_>,
    rows: &mut Rows,
    write_values: impl FnOnce(&mut Object<'_>),
) {
    rows.row("metric", point.at, |object| {
        object.text("type", "metric");
        object.text("name", &head.name);
        write_values(object);
        object.text("unit", &head.unit);
        let mut inner = object.object("metric");
        inner.text(
            "kind",
            match kind {
                Kind::Gauge => "gauge",
                Kind::Sum => "sum",
                Kind::Histogram => "histogram",
                Kind::ExponentialHistogram => "exponential_histogram",
                Kind::Summary => "summary",
            },
        );
        inner.text(
            "temporality",
            match head.temporality {
                1 => "delta",
                2 => "cumulative",
                _ => "",
            },
        );
        if kind == Kind::Sum {
            inner.boolean("monotonic", head.monotonic);
        }
        inner.text("description", &head.description);
        rows::attributes("metadata", &head.metadata, &mut inner);
        inner.time("start", point.start);
        inner.count("flags", point.flags.into());
        if !point.exemplars.is_empty() {
            write_array(point.exemplars, inner.key("exemplars"), write_exemplar);
        }
        inner.end();
        rows::attributes("labels", point.attributes, object);
    });
}

fn write_exemplar(exemplar: &Exemplar, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    match exemplar.value {
        Some(exemplar::Value::AsDouble(value)) => object.measure("value", value),
        Some(exemplar::Value::AsInt(value)) => object.signed("value", value),
        None => {}
    }
    object.time("at", exemplar.time_unix_nano);
    object.hex("trace_id", &exemplar.trace_id);
    object.hex("span_id", &exemplar.span_id);
    rows::attributes("attributes", &exemplar.filtered_attributes, &mut object);
    object.end();
}
