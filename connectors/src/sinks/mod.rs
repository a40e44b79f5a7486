//! Every sink, one file or folder each.

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[];
