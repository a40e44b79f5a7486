//! Every sink, one file or folder each.

pub mod audit;

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[SinkEntry::of::<audit::Audit>()];
