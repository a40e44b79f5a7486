//! From a request of remote write to documents.
//!
//! A series is decoded at a time: one of a few bytes becomes a structure of hundreds.

use logdrive_schemas::MessageRange;
use prost::Message as _;

use crate::document::object::{Object, write_array, write_float};
use crate::document::scalar::write_signed;
use crate::prometheus::remote::{BucketSpan, Histogram, Sample, TimeSeries, TimeSeriesV2};
use crate::prometheus::{Head, MILLISECOND, NAME, sort_labels, write_row, write_value};
use crate::sources::net::protobuf::{Fields, Value};

/// No series of one request is longer, and neither are the labels of one.
const SERIES_BYTES_MAX: usize = 1 << 20;
const LABEL_BYTES_MAX: usize = 64 << 10;
/// What one series may become besides: a group of documents must stay below 64 MiB.
const DATA_BYTES_MAX: usize = 48 << 20;
/// Texts that a request of version 2 may refer to.
const SYMBOLS_MAX: usize = 1 << 20;
/// The documents of a request may be so many times its size, or [`DOCUMENTS_BYTES_MIN`]; more is no honest request.
const EXPANSION_MAX: usize = 100;
const DOCUMENTS_BYTES_MIN: usize = 64 << 20;
/// What metrics are, by the numbers of version 2.
const KINDS: [&str; 8] =
    ["", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"];

/// Which version of remote write a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Why a request cannot be taken, whenever it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the request is malformed")]
    Malformed,
    #[error("a label occurs twice, or there is no name")]
    Labels,
    #[error("a series is longer than 1 MiB, its labels than 64 KiB, or its documents than 48 MiB")]
    TooLong,
    #[error("the request expands more than a hundredfold")]
    Bomb,
}

impl From<crate::sources::net::protobuf::Malformed> for Refused {
    fn from(_: crate::sources::net::protobuf::Malformed) -> Self {
        Self::Malformed
    }
}

/// Documents as they are made.
pub(super) struct Rows {
    pub(super) data: Vec<u8>,
    pub(super) messages: Vec<MessageRange>,
    pub(super) n_samples: u64,
    pub(super) n_histograms: u64,
    /// Bytes of documents that may still be made.
    left: usize,
}

/// The series of a request, where they lie, and what they refer to.
pub(super) struct Request<'a> {
    version: Version,
    symbols: Vec<&'a str>,
    fields: Fields<'a>,
}

impl<'a> Request<'a> {
    /// Looks through a request: what is wrong with its outermost level is found before anything is handed over.
    pub(super) fn read(version: Version, bytes: &'a [u8]) -> Result<Self, Refused> {
        let mut symbols = Vec::new();
        for field in Fields(bytes) {
            if let (4, Value::Bytes(text), Version::V2) = (field?.0, field?.1, version) {
                if symbols.len() == SYMBOLS_MAX {
                    return Err(Refused::TooLong);
                }
                symbols.push(std::str::from_utf8(text).map_err(|_| Refused::Malformed)?);
            }
        }
        Ok(Self { version, symbols, fields: Fields(bytes) })
    }

    /// Makes documents of series until there are `group_bytes` of them; false once there is nothing left.
    pub(super) fn fill(&mut self, rows: &mut Rows, group_bytes: usize) -> Result<bool, Refused> {
        let tag = if self.version == Version::V1 { 1 } else { 5 };
        while rows.data.len() < group_bytes {
            let Some(field) = self.fields.next() else { return Ok(false) };
            match field? {
                (found, Value::Bytes(series)) if found == tag => {
                    if series.len() > SERIES_BYTES_MAX {
                        return Err(Refused::TooLong);
                    }
                    self.series(series, rows)?;
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn series(&self, bytes: &[u8], rows: &mut Rows) -> Result<(), Refused> {
        match self.version {
            Version::V1 => {
                let series = TimeSeries::decode(bytes).map_err(|_| Refused::Malformed)?;
                let labels =
                    series.labels.iter().map(|label| (label.name.as_str(), label.value.as_str())).collect();
                rows.series(labels, ("", ""), &series.samples, &series.histograms)
            }
            Version::V2 => {
                let series = TimeSeriesV2::decode(bytes).map_err(|_| Refused::Malformed)?;
                let symbol = |idx: &u32| self.symbols.get(*idx as usize).copied().ok_or(Refused::Malformed);
                let pairs = series.labels_refs.chunks(2);
                let labels = pairs.map(|pair| match pair {
                    [name, value] => Ok((symbol(name)?, symbol(value)?)),
                    _ => Err(Refused::Malformed),
                });
                let labels = labels.collect::<Result<Vec<_>, _>>()?;
                let metadata = series.metadata.unwrap_or_default();
                let kind = usize::try_from(metadata.kind).ok().and_then(|kind| KINDS.get(kind));
                let about =
                    (kind.copied().unwrap_or_default(), symbol(&metadata.unit_ref).unwrap_or_default());
                rows.series(labels, about, &series.samples, &series.histograms)
            }
        }
    }
}

impl Rows {
    pub(super) fn new(request_bytes: usize) -> Self {
        let left = DOCUMENTS_BYTES_MIN.max(EXPANSION_MAX * request_bytes);
        Self { data: Vec::new(), messages: Vec::new(), n_samples: 0, n_histograms: 0, left }
    }

    fn series(
        &mut self,
        mut labels: Vec<(&str, &str)>,
        (kind, unit): (&str, &str),
        samples: &[Sample],
        histograms: &[Histogram],
    ) -> Result<(), Refused> {
        let label_bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if label_bytes > LABEL_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        if !sort_labels(&mut labels) {
            return Err(Refused::Labels);
        }
        let at = labels.iter().position(|(key, _)| *key == NAME).ok_or(Refused::Labels)?;
        let (_, name) = labels.remove(at);
        let head = Head { name, labels: &labels, kind, unit };
        for sample in samples {
            self.row(head, sample.timestamp, |object| write_value(sample.value, object))?;
        }
        for histogram in histograms {
            let head = Head { kind: "histogram", ..head };
            self.row(head, histogram.timestamp, |object| write_histogram(histogram, object))?;
        }
        self.n_samples += samples.len() as u64;
        self.n_histograms += histograms.len() as u64;
        Ok(())
    }

    fn row(
        &mut self,
        head: Head<'_>,
        millis: i64,
        write: impl FnOnce(&mut Object<'_>),
    ) -> Result<(), Refused> {
        let start = self.data.len();
        let nanos = u64::try_from(millis).unwrap_or(0).saturating_mul(MILLISECOND);
        write_row(head, nanos, &mut self.data, write);
        let len = self.data.len() - start;
        if self.data.len() > DATA_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        self.left = self.left.checked_sub(len).ok_or(Refused::Bomb)?;
        self.messages.push(MessageRange { start: start as u32, len: len as u32 });
        Ok(())
    }
}

/// The value of a distribution is the sum of what was measured.
fn write_histogram(found: &Histogram, object: &mut Object<'_>) {
    write_value(found.sum, object);
    match (found.count_int, found.count_float) {
        (_, Some(count)) => object.measure("count", count),
        (count, None) => object.unsigned("count", count.unwrap_or_default()),
    }
    let mut inner = object.object("histogram");
    inner.signed("schema", found.schema.into());
    inner.float("zero_threshold", found.zero_threshold);
    match (found.zero_count_int, found.zero_count_float) {
        (_, Some(count)) => inner.float("zero_count", count),
        (count, None) => inner.unsigned("zero_count", count.unwrap_or_default()),
    }
    if !found.custom_values.is_empty() {
        write_array(&found.custom_values, inner.key("bounds"), |bound, out| write_float(*bound, out));
    }
    side("positive", &found.positive_spans, &found.positive_deltas, &found.positive_counts, &mut inner);
    side("negative", &found.negative_spans, &found.negative_deltas, &found.negative_counts, &mut inner);
    inner.end();
}

fn side(key: &str, spans: &[BucketSpan], deltas: &[i64], counts: &[f64], object: &mut Object<'_>) {
    if spans.is_empty() {
        return;
    }
    let mut inner = object.object(key);
    write_array(spans, inner.key("spans"), |span, out| {
        let mut object = Object::begin(out);
        object.signed("offset", span.offset.into());
        object.unsigned("length", span.length.into());
        object.end();
    });
    if counts.is_empty() {
        // Each count is given as what it is more than the one before.
        let mut count = 0_i64;
        write_array(deltas, inner.key("counts"), |delta, out| {
            count = count.saturating_add(*delta);
            write_signed(count, out);
        });
    } else {
        write_array(counts, inner.key("counts"), |count, out| write_float(*count, out));
    }
    inner.end();
}
