//! Ingest ticks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A global ingest tick, and the timestamp of every stream in the dataflow.
///
/// Epochs order *progress*; when an event happened is its event-time column. The newtype keeps an epoch from being
/// added to a row count. Epochs grow over restarts: the runtime derives them from the clock, in milliseconds since the
/// Unix epoch, and never goes back. Not every number is used: one epoch lasts until the next tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// What the number counts, in microseconds.
    pub const UNIT_US: i64 = 1_000;

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
