//! Every sink, one file or folder each.

pub mod audit;
pub mod blackhole;
pub mod elasticsearch;
pub mod file;
mod file_set;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod http;
mod http_auth;
mod http_rejects;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod parquet;
pub mod stdout;
pub mod tcp;
mod tcp_unsent;
pub mod template;

pub use http_auth::{Auth, Basic, Secret, Tls};

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[
    SinkEntry::of::<audit::Audit>(),
    SinkEntry::of::<blackhole::Blackhole>(),
    SinkEntry::of::<elasticsearch::Elasticsearch>(),
    SinkEntry::of::<file::File>(),
    SinkEntry::of::<http::Http>(),
    #[cfg(feature = "kafka")]
    SinkEntry::of::<kafka::Kafka>(),
    #[cfg(feature = "mqtt")]
    SinkEntry::of::<mqtt::Mqtt>(),
    SinkEntry::of::<parquet::Parquet>(),
    SinkEntry::of::<stdout::Stdout>(),
    SinkEntry::of::<tcp::Tcp>(),
];
