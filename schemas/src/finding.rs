//! What detectors say.

use std::fmt;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How urgent a finding is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Severity {
    /// Service down, or money being lost now: wake somebody.
    P0,
    /// Urgent: within the hour.
    P1,
    /// Within the day.
    #[default]
    P2,
    /// Information.
    P3,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a detector says about one entity, with its evidence. All detectors share this layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Identity: the same cause gives the same id, also after a crash and replay. 32 hexadecimal digits.
    pub id: String,
    /// The detector's name in the pipeline.
    pub detector: String,
    /// The version of the detector's algorithm.
    pub detector_version: u32,
    /// What it is about: the key's values joined by `|`, such as a card.
    pub entity: String,
    /// Whose it is, if the rows say.
    pub tenant: Option<String>,
    /// How urgent.
    pub severity: Severity,
    /// How sure or how large; detectors say what it means. For `velocity` the value divided by the threshold.
    pub score: f64,
    /// Start of the window, microseconds since the Unix epoch.
    pub window_start: i64,
    /// End of the window: the event time of the row that crossed the threshold, microseconds.
    pub window_end: i64,
    /// Contributing features: name and value.
    pub features: Vec<(String, f64)>,
    /// Identities of the messages that prove it, oldest first, at most [`Finding::EVIDENCE_MAX`].
    pub evidence: Vec<String>,
}

impl Finding {
    /// The most message identities that one finding lists.
    pub const EVIDENCE_MAX: usize = 20;

    /// The schema of a detector's stream. Columns are only ever added, nullable and at the end.
    #[must_use]
    pub fn schema() -> SchemaRef {
        let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let feature = Fields::from(vec![
            Field::new("name", DataType::Utf8View, true),
            Field::new("value", DataType::Float64, true),
        ]);
        let list = |t| DataType::List(Arc::new(Field::new("item", t, true)));
        Arc::new(Schema::new(vec![
            Field::new("@timestamp", time(), false),
            Field::new("id", DataType::Utf8View, false),
            Field::new("detector", DataType::Utf8View, false),
            Field::new("detector_version", DataType::Int64, false),
            Field::new("entity", DataType::Utf8View, false),
            Field::new("tenant", DataType::Utf8View, true),
            Field::new("severity", DataType::Utf8View, false),
            Field::new("score", DataType::Float64, false),
            Field::new("window_start", time(), false),
            Field::new("window_end", time(), false),
            Field::new("features", list(DataType::Struct(feature)), true),
            Field::new("evidence", list(DataType::Utf8View), true),
        ]))
    }
}
