//! Every sink, one file or folder each.

pub mod alert;
pub mod audit;
pub mod blackhole;
pub mod elasticsearch;
pub mod file;
mod file_set;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod http;
pub(crate) mod http_auth;
mod http_rejects;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "mongodb")]
pub mod mongodb;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod otlp;
pub mod parquet;
mod pending;
pub mod postgres;
pub mod prometheus_remote_write;
pub mod redis;
pub mod stdout;
pub mod syslog;
pub mod tcp;
mod tcp_unsent;
pub mod template;
mod text;

pub use http_auth::{Auth, Basic, Secret, Tls};

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[
    SinkEntry::of::<alert::Alert>(),
    SinkEntry::of::<audit::Audit>(),
    SinkEntry::of::<blackhole::Blackhole>(),
    SinkEntry::of::<elasticsearch::Elasticsearch>(),
    SinkEntry::of::<file::File>(),
    SinkEntry::of::<http::Http>(),
    #[cfg(feature = "kafka")]
    SinkEntry::of::<kafka::Kafka>(),
    #[cfg(feature = "mongodb")]
    SinkEntry::of::<mongodb::Mongodb>(),
    #[cfg(feature = "mqtt")]
    SinkEntry::of::<mqtt::Mqtt>(),
    SinkEntry::of::<otlp::Otlp>(),
    SinkEntry::of::<parquet::Parquet>(),
    SinkEntry::of::<postgres::Postgres>(),
    SinkEntry::of::<prometheus_remote_write::PrometheusRemoteWrite>(),
    SinkEntry::of::<redis::Redis>(),
    SinkEntry::of::<stdout::Stdout>(),
    SinkEntry::of::<syslog::Syslog>(),
    SinkEntry::of::<tcp::Tcp>(),
];
