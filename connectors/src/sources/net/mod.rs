//! What the network sources share: framing, limits on connections and memory, decompression, counting.
//!
//! Everything here assumes that the peer is hostile: each buffer has a bound, each wait a deadline, and each bound
//! a metric.

pub(crate) mod accept;
pub(crate) mod answers;
pub mod auth;
pub(crate) mod body;
pub(crate) mod budget;
pub mod collect;
pub(crate) mod counts;
pub(crate) mod datagram;
pub(crate) mod delivery;
pub(crate) mod expand;
pub mod frames;
pub(crate) mod framing;
pub(crate) mod inlet;
pub mod lines;
pub(crate) mod listen;
pub mod protobuf;
pub(crate) mod room;
pub(crate) mod server;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod web;

/// The deadline of every wait that could otherwise be endless while the pipeline stops.
pub(crate) const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(5);
