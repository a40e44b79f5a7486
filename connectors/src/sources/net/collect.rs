//! Collecting messages that arrive inside a protocol's frames, a piece at a time.

use bytes::{BufMut, BytesMut};
use logdrive_schemas::MessageRange;

use super::lines::{BROKEN, Group};

/// Messages one behind the other, the last of which may have only begun. One over the limit is kept as its prefix, marked
/// as in [`super::lines`].
#[derive(Debug)]
pub struct Collect {
    data: BytesMut,
    messages: Vec<MessageRange>,
    /// Where the message that has begun begins.
    start: usize,
    /// The message that has begun is over the limit.
    too_long: bool,
    n_too_long: u64,
    message_bytes_max: usize,
}

impl Collect {
    /// Collects messages of at most `message_bytes_max` bytes.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            data: BytesMut::new(),
            messages: Vec::new(),
            start: 0,
            too_long: false,
            n_too_long: 0,
            message_bytes_max,
        }
    }

    /// Adds to the message that has begun.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let left = self.message_bytes_max - (self.data.len() - self.start).min(self.message_bytes_max);
        self.data.put_slice(&bytes[..bytes.len().min(left)]);
        self.too_long |= bytes.len() > left;
    }

    /// The message that has begun is over. An empty one is left out.
    pub(crate) fn end_message(&mut self) {
        if std::mem::take(&mut self.too_long) {
            self.data.put_u8(BROKEN);
            self.n_too_long += 1;
        }
        let len = self.data.len() - self.start;
        if len > 0 {
            self.messages.push(MessageRange { start: self.start as u32, len: len as u32 });
        }
        self.start = self.data.len();
    }

    /// Leaves out LF, CR and NUL at the end of the message that has begun.
    pub(crate) fn trim(&mut self) {
        let trailing = |byte: &&u8| matches!(**byte, b'\n' | b'\r' | 0);
        if !self.too_long {
            let n_trailing = self.data[self.start..].iter().rev().take_while(trailing).count();
            self.data.truncate(self.data.len() - n_trailing);
        }
    }

    /// Bytes of messages that are complete.
    #[must_use]
    pub fn complete_bytes(&self) -> usize {
        self.start
    }

    /// What it occupies.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.data.capacity() + self.messages.capacity() * size_of::<MessageRange>()
    }

    /// The messages that are complete. The one that has begun stays.
    pub fn take(&mut self) -> Group {
        let data = self.data.split_to(self.start).freeze();
        self.start = 0;
        let n_too_long = std::mem::take(&mut self.n_too_long);
        if self.data.is_empty() {
            self.data = BytesMut::new();
        } else {
            // Else what has begun would keep all of what was given away.
            self.data = BytesMut::from(&self.data[..]);
        }
        Group { data, messages: std::mem::take(&mut self.messages), n_too_long }
    }
}
