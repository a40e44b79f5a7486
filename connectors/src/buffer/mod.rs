//! The write-ahead buffer: what makes a source of a listener; and the disk queue of a sink, which is made alike.

mod blocks;
pub mod codec;
mod cursor;
mod disk;
mod frame;
pub mod inspect;
mod memory;
pub mod queue;
mod reader;
mod record;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use logdrive_schemas::component::bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::ConnectorContext;
use crate::source::{Listener, Released, Source};

use self::disk::{DiskBuffer, Sizes};
use self::memory::MemoryBuffer;

/// Where a source without a log of its own keeps messages until they are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BufferMode {
    /// On disk, synced before a peer is answered: survives `kill -9` and power loss.
    #[default]
    Disk,
    /// In memory: a peer is answered when its data is delivered; what is in memory is lost with the process.
    Memory,
}

/// `buffer:` of a source.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// `disk` or `memory`.
    #[serde(default)]
    pub mode: BufferMode,
    /// How much may wait for delivery. When it is full the source is not read.
    #[serde(default = "BufferConfig::max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
}

impl BufferConfig {
    fn max_bytes_default() -> u64 {
        1 << 30
    }
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self { mode: BufferMode::default(), max_bytes: Self::max_bytes_default() }
    }
}

/// Puts the buffer behind a listener. On disk it lies in `buffer/` of the component's folder.
///
/// The source keeps its own position: what `connect` is given is not used.
#[must_use]
pub fn wrap(listener: Box<dyn Listener>, config: &BufferConfig, cx: &ConnectorContext) -> Box<dyn Source> {
    match config.mode {
        BufferMode::Disk => Box::new(DiskBuffer::new(listener, Sizes::new(config.max_bytes), cx)),
        BufferMode::Memory => Box::new(MemoryBuffer::new(listener, config.max_bytes, cx)),
    }
}
