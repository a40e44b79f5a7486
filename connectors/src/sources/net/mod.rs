//! What the network sources share: framing, limits on connections and memory, decompression, counting.
//!
//! Everything here assumes that the peer is hostile: each buffer has a bound, each wait a deadline, and each bound
//! a metric.

pub(crate) mod accept;
pub(crate) mod budget;
pub(crate) mod counts;
pub(crate) mod datagram;
pub(crate) mod expand;
pub mod lines;
pub(crate) mod listen;
pub(crate) mod stream;

/// The deadline of every wait that could otherwise be endless while the pipeline stops.
pub(crate) const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(5);
