//! Messages as received, and where they came from.

use std::fmt;
use std::sync::Arc;

use arrow_array::{Array, StructArray};
use arrow_buffer::Buffer;
use serde::{Deserialize, Serialize};

/// One ordered, replayable sequence of messages: a write-ahead buffer, a file (by fingerprint), a Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition(pub u64);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A place in a partition. As an acknowledgement it means "everything before `offset`".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Which sequence.
    pub partition: Partition,
    /// The message number, or the byte offset in a file. Grows strictly within a partition.
    pub offset: u64,
}

/// Where one message lies in [`Chunk::data`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRange {
    /// First byte.
    pub start: u32,
    /// Length in bytes, without any delimiter.
    pub len: u32,
}

/// Consecutive messages of one partition, not yet decoded. Never empty.
///
/// The bytes are shared, not copied, by every string column that is decoded from them.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The source's name in the pipeline.
    pub source: Arc<str>,
    /// Which sequence the messages belong to.
    pub partition: Partition,
    /// All messages, one behind the other, with whatever lay between them. At most `i32::MAX` bytes.
    pub data: Buffer,
    /// Where each message lies in `data`.
    pub messages: Vec<MessageRange>,
    /// The offset of each message, strictly increasing; as long as `messages`.
    pub offsets: Vec<u64>,
    /// When the chunk arrived, in microseconds since the Unix epoch.
    pub received_at: i64,
    /// Who sent it (`127.0.0.1:40112`, a path), if known.
    pub peer: Option<Arc<str>>,
    /// What the source knows of each message beside its bytes (topic, key, headers …), one row per message; only if
    /// the source was asked for it.
    pub attributes: Option<StructArray>,
    /// Where the source resumes once this chunk is delivered: the offset after the last message.
    pub next_offset: u64,
}

impl Chunk {
    /// The bytes of message `idx`.
    ///
    /// # Panics
    /// If `idx` is not below `self.messages.len()`.
    #[must_use]
    pub fn message(&self, idx: usize) -> &[u8] {
        let m = self.messages[idx];
        &self.data.as_slice()[m.start as usize..(m.start + m.len) as usize]
    }

    /// How many bytes of memory it takes, but for the positions of its messages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len() + self.attributes.as_ref().map_or(0, Array::get_array_memory_size)
    }

    /// The position to acknowledge once the chunk is delivered.
    #[must_use]
    pub fn end(&self) -> Position {
        Position { partition: self.partition, offset: self.next_offset }
    }
}
