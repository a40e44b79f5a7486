//! The state of a running pipeline in one document, read from the metrics: what the status line and `top` show.

use std::collections::BTreeMap;

use logdrive_connectors::Metrics;
use prometheus::proto::MetricFamily;
use serde::{Deserialize, Serialize};

/// One node of the pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// `source`, `stream`, `detector`, `view` or `sink`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Messages received, rows that left, findings, or rows confirmed; since the start.
    pub rows: u64,
    /// Bytes received or sent, where known.
    pub bytes: u64,
    /// Rows that failed here.
    pub rejects: u64,
    /// Bytes that wait: in flight for a source, in the disk queue for a sink.
    pub waiting_bytes: u64,
    /// Bytes in the write-ahead buffer of a source.
    pub buffer_bytes: u64,
    /// Seconds behind, for a source.
    pub lag_seconds: f64,
    /// Whether the far end of a sink answers.
    pub up: bool,
}

/// The whole pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Milliseconds since the Unix epoch when this was read.
    pub at_ms: u64,
    /// Every node in pipeline order.
    pub nodes: Vec<Node>,
    /// Everything that failed.
    pub rejects: u64,
    /// Findings by severity.
    pub findings: BTreeMap<String, u64>,
}

/// The nodes of a pipeline by kind, in order.
#[derive(Clone, Debug, Default)]
pub struct NodeNames(pub Vec<(&'static str, String)>);

impl Status {
    /// Reads the metrics.
    #[must_use]
    pub fn read(metrics: &Metrics, names: &NodeNames) -> Self {
        let values = Values::gather(metrics);
        let node = |(kind, name): &(&'static str, String)| {
            let of = |family: &str| values.sum(family, kind, name);
            let (rows, bytes, waiting) = match *kind {
                "detector" => (of("logdrive_findings_total"), 0.0, 0.0),
                "view" => {
                    (values.sum_of("logdrive_view_rows_total", &[(kind, name), ("outcome", "in")]), 0.0, 0.0)
                }
                "sink" => (
                    of("logdrive_sink_rows_total"),
                    of("logdrive_sink_bytes_total"),
                    of("logdrive_sink_queue_bytes"),
                ),
                "source" => (
                    of("logdrive_source_messages_total"),
                    of("logdrive_source_bytes_total"),
                    of("logdrive_in_flight_bytes"),
                ),
                _ => (of("logdrive_stream_rows_total"), 0.0, 0.0),
            };
            Node {
                kind: (*kind).into(),
                name: name.clone(),
                rows: rows as u64,
                bytes: bytes as u64,
                rejects: values.sum("logdrive_rejects_total", "component", name) as u64,
                waiting_bytes: waiting as u64,
                buffer_bytes: of("logdrive_buffer_bytes") as u64,
                lag_seconds: of("logdrive_lag_seconds"),
                up: *kind != "sink" || of("logdrive_sink_up") > 0.0,
            }
        };
        Self {
            at_ms: u64::try_from(crate::topology::now_micros() / 1000).unwrap_or(0),
            nodes: names.0.iter().map(node).collect(),
            rejects: values.total("logdrive_rejects_total") as u64,
            findings: values.by_label("logdrive_findings_total", "severity"),
        }
    }
}

struct Values(Vec<MetricFamily>);

impl Values {
    fn gather(metrics: &Metrics) -> Self {
        Self(metrics.registry.gather())
    }

    fn samples(&self, family: &str) -> impl Iterator<Item = (&[prometheus::proto::LabelPair], f64)> {
        let family = self.0.iter().find(|f| f.name() == family);
        family.into_iter().flat_map(|f| f.get_metric()).map(|m| {
            // A sample is a counter or a gauge; the other of the two reads as zero.
            (m.get_label(), m.get_counter().get_value() + m.get_gauge().get_value())
        })
    }

    fn sum(&self, family: &str, label: &str, value: &str) -> f64 {
        self.sum_of(family, &[(label, value)])
    }

    fn sum_of(&self, family: &str, wanted: &[(&str, &str)]) -> f64 {
        let has = |labels: &[prometheus::proto::LabelPair], (label, value): &(&str, &str)| {
            labels.iter().any(|l| l.name() == *label && l.value() == *value)
        };
        self.samples(family)
            .filter(|(labels, _)| wanted.iter().all(|wanted| has(labels, wanted)))
            .map(|(_, v)| v)
            .sum()
    }

    fn total(&self, family: &str) -> f64 {
        self.samples(family).map(|(_, v)| v).sum()
    }

    fn by_label(&self, family: &str, label: &str) -> BTreeMap<String, u64> {
        let mut values = BTreeMap::new();
        for (labels, value) in self.samples(family) {
            if let Some(label) = labels.iter().find(|l| l.name() == label) {
                *values.entry(label.value().to_owned()).or_default() += value as u64;
            }
        }
        values
    }
}
