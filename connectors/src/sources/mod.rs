//! Every source, one file or folder each.

pub mod beats;
pub mod file;
pub mod forward;
pub mod generate;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod net;
pub mod otlp;
pub mod prometheus_remote_write;
pub mod prometheus_scrape;
pub mod redis;
pub mod statsd;
pub mod stdin;
pub mod syslog;
pub mod tcp;
pub mod udp;
pub mod unix;

use crate::source::SourceEntry;

/// Every source, in the order of the reference.
pub const SOURCES: &[SourceEntry] = &[
    SourceEntry::of::<beats::Beats>(),
    SourceEntry::of::<file::File>(),
    SourceEntry::of::<forward::Forward>(),
    SourceEntry::of::<generate::Generate>(),
    SourceEntry::of::<http::Http>(),
    #[cfg(feature = "kafka")]
    SourceEntry::of::<kafka::Kafka>(),
    #[cfg(feature = "mqtt")]
    SourceEntry::of::<mqtt::Mqtt>(),
    SourceEntry::of::<otlp::Otlp>(),
    SourceEntry::of::<prometheus_remote_write::PrometheusRemoteWrite>(),
    SourceEntry::of::<prometheus_scrape::PrometheusScrape>(),
    SourceEntry::of::<statsd::Statsd>(),
    SourceEntry::of::<redis::Redis>(),
    SourceEntry::of::<stdin::Stdin>(),
    SourceEntry::of::<syslog::Syslog>(),
    SourceEntry::of::<tcp::Tcp>(),
    SourceEntry::of::<udp::Udp>(),
    SourceEntry::of::<unix::Unix>(),
];
