//! The workloads: what goes in, what must come out.

use crate::data::Format;
use crate::expect::Shape;

/// A pipeline that every product is given in its own notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// JSON over TCP, parsed, discarded.
    W1,
    /// JSON over TCP, parsed, JSON over TCP.
    W2,
    /// W2 with a place looked up, one field renamed, three added, `debug` filtered out.
    W3,
    /// Access logs of nginx over TCP, parsed, JSON over TCP.
    W4,
    /// JSON over TCP, parsed, into Elasticsearch.
    W5,
    /// JSON from a file, parsed, JSON over TCP.
    W6,
    /// Syslog (RFC 5424) over TCP, parsed, JSON over TCP.
    W7,
}

impl Workload {
    /// All, in order.
    pub const ALL: &'static [Self] = &[Self::W1, Self::W2, Self::W3, Self::W4, Self::W5, Self::W6, Self::W7];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::W1 => "W1",
            Self::W2 => "W2",
            Self::W3 => "W3",
            Self::W4 => "W4",
            Self::W5 => "W5",
            Self::W6 => "W6",
            Self::W7 => "W7",
        }
    }

    /// What it does, in a line.
    pub fn title(self) -> &'static str {
        match self {
            Self::W1 => "JSON over TCP → parse → discard",
            Self::W2 => "JSON over TCP → parse → JSON over TCP",
            Self::W3 => "JSON over TCP → filter, geoip, rename 1, add 3 → JSON over TCP",
            Self::W4 => "nginx `combined` over TCP → parse → JSON over TCP",
            Self::W5 => "JSON over TCP → parse → Elasticsearch `_bulk`",
            Self::W6 => "JSON file → parse → JSON over TCP, start-up included",
            Self::W7 => "syslog RFC 5424 over TCP → parse → JSON over TCP",
        }
    }

    /// The lines it reads.
    pub fn format(self) -> Format {
        match self {
            Self::W4 => Format::Nginx,
            Self::W7 => Format::Syslog,
            Self::W1 | Self::W2 | Self::W3 | Self::W5 | Self::W6 => Format::Json,
        }
    }

    /// What happens to a line, if the product does it in this way.
    pub fn shape(self, way: &Way) -> Shape {
        match self {
            Self::W3 => Shape::Enriched { geo: way.geo },
            Self::W4 | Self::W7 => Shape::Fields,
            Self::W1 | Self::W2 | Self::W5 | Self::W6 => Shape::Same,
        }
    }

    /// CPU-seconds per million events that were measured elsewhere, beside a simd-json tape of
    /// [`crate::report::REFERENCE_TAPE`], for Fluent Bit 5.1.1 and Vector 0.57.0.
    pub fn reference(self) -> [(&'static str, f64); 2] {
        let (fluent_bit, vector) = match self {
            Self::W1 => (2.6, 5.8),
            Self::W2 => (5.2, 8.8),
            Self::W3 => (12.6, 15.1),
            Self::W4 => (4.6, 7.4),
            Self::W5 => (6.4, 10.9),
            Self::W6 => (5.0, 13.0),
            Self::W7 => (4.0, 7.1),
        };
        [("Fluent Bit 5.1.1", fluent_bit), ("Vector 0.57.0", vector)]
    }
}

/// Where a product's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Nowhere.
    None,
    /// Lines over TCP.
    Tcp,
    /// The stand-in for Elasticsearch.
    Http,
}

/// How a product does a workload.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Where its output goes.
    pub output: Output,
    /// Whether it looks places up in W3.
    pub geo: bool,
    /// How it differs from what the workload says; empty if it does not.
    pub note: &'static str,
}

impl Way {
    /// As the workload says.
    pub fn plain(workload: Workload) -> Self {
        let output = match workload {
            Workload::W1 => Output::None,
            Workload::W5 => Output::Http,
            _ => Output::Tcp,
        };
        Self { output, geo: true, note: "" }
    }
}
