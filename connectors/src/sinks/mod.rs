//! Every sink, one file or folder each.

pub mod elasticsearch;
pub mod http;
mod http_auth;
mod http_rejects;
pub mod tcp;
mod tcp_unsent;

pub use http_auth::{Auth, Basic, Secret, Tls};

use crate::sink::SinkEntry;

/// Every sink, in the order of the reference.
pub const SINKS: &[SinkEntry] = &[
    SinkEntry::of::<elasticsearch::Elasticsearch>(),
    SinkEntry::of::<http::Http>(),
    SinkEntry::of::<tcp::Tcp>(),
];
