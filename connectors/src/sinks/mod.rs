//! Every sink, one file or folder each.

pub mod blackhole;
pub mod file;
mod file_set;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod parquet;
pub mod stdout;
pub mod template;

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[
    SinkEntry::of::<blackhole::Blackhole>(),
    SinkEntry::of::<file::File>(),
    SinkEntry::of::<parquet::Parquet>(),
    SinkEntry::of::<stdout::Stdout>(),
];
