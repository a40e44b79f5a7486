//! Where data enters and leaves: sources, decoders, sinks, and the write-ahead buffer between.
//!
//! **Architecture invariant:** nothing here knows timely. A connector is tested without a dataflow.

pub mod buffer;
pub mod client_tls;
pub mod context;
pub mod decoder;
pub mod decoders;
pub mod document;
pub mod error;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
pub mod metrics;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod object_stores;
pub mod prometheus;
pub mod redis;
pub mod server_tls;
pub mod sink;
pub mod sinks;
pub mod source;
pub mod sources;
pub mod storage;

pub use context::ConnectorContext;
pub use decoder::{Decoded, Decoder, DecoderConfig, DecoderEntry, Demand};
pub use decoders::DECODERS;
pub use error::ConnectorError;
pub use metrics::Metrics;
pub use sink::{Guarantee, Sink, SinkConfig, SinkEntry};
pub use sinks::SINKS;
pub use source::{
    Ack, Budget, Intake, Listener, NotDurable, Received, Source, SourceConfig, SourceEntry, SourceKind,
    partition_of,
};
pub use sources::SOURCES;
