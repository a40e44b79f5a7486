//! Messages that were received together.

use bytes::Bytes;
use logdrive_schemas::MessageRange;

use super::attributes::Attributes;
use super::topics::Topics;
use crate::mqtt::Qos;
use crate::mqtt::packet::Publish;
use crate::source::{Ack, Received};

/// No message is added to a group of so many bytes.
const BYTES_MAX: usize = 1 << 20;
/// Nor to one of so many messages.
const MESSAGES_MAX: usize = 4096;

/// What is handed to the intake at once.
#[derive(Default)]
pub(super) struct Group {
    data: Vec<u8>,
    ranges: Vec<MessageRange>,
    /// Without their payloads; only if their attributes are wanted.
    messages: Vec<Publish>,
    /// The messages that the broker waits to be told of.
    pub(super) receipts: Vec<(u16, Qos)>,
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        BYTES_MAX <= self.data.len() || MESSAGES_MAX <= self.ranges.len()
    }

    /// Adds a message, which is smaller than 256 MiB.
    pub(super) fn add(&mut self, mut message: Publish, with_attributes: bool) {
        let start = u32::try_from(self.data.len()).expect("a group is bounded");
        let len = u32::try_from(message.payload.len()).expect("a packet is smaller than 256 MiB");
        self.data.extend_from_slice(&message.payload);
        self.ranges.push(MessageRange { start, len });
        if message.qos != Qos::AtMostOnce {
            self.receipts.push((message.id, message.qos));
        }
        if with_attributes {
            message.payload = Bytes::new();
            self.messages.push(message);
        }
    }

    /// Where each message lies.
    pub(super) fn ranges(&self) -> &[MessageRange] {
        &self.ranges
    }

    /// The group as the intake takes it.
    pub(super) fn received(
        self,
        attributes: Option<&Attributes>,
        topics: &Topics,
        peer: &std::sync::Arc<str>,
        ack: Option<Ack>,
    ) -> Received {
        Received {
            attributes: attributes.map(|attributes| attributes.rows(&self.messages, topics)),
            data: self.data.into(),
            messages: self.ranges,
            peer: Some(std::sync::Arc::clone(peer)),
            ack,
        }
    }
}
