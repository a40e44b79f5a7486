//! Every sink, one file or folder each.

pub mod blackhole;
pub mod file;
mod file_set;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod parquet;
pub mod stdout;
pub mod template;
pub mod elasticsearch;
pub mod http;
mod http_auth;
mod http_rejects;
pub mod tcp;
mod tcp_unsent;

pub use http_auth::{Auth, Basic, Secret, Tls};
pub mod audit;

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[
    SinkEntry::of::<blackhole::Blackhole>(),
    SinkEntry::of::<file::File>(),
    SinkEntry::of::<parquet::Parquet>(),
    SinkEntry::of::<stdout::Stdout>(),
    SinkEntry::of::<elasticsearch::Elasticsearch>(),
    SinkEntry::of::<http::Http>(),
    SinkEntry::of::<tcp::Tcp>(),
];
pub const SINKS: &[SinkEntry] = &[SinkEntry::of::<audit::Audit>()];
