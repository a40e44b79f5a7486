//! Messages of one partition that become a chunk: each is copied once, from the client library's memory to here.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::Array;
use arrow::buffer::Buffer;
use logdrive_schemas::{Chunk, MessageRange, Partition};

use rdkafka::Message;

use super::attributes::{Attributes, Columns};
use crate::source::Budget;

/// Messages of one partition, in the order of their offsets.
pub(super) struct Pending {
    source: Arc<str>,
    peer: Arc<str>,
    partition: Partition,
    data: Vec<u8>,
    messages: Vec<MessageRange>,
    offsets: Vec<u64>,
    attributes: Option<Attributes>,
    /// What the attributes take.
    attribute_bytes: usize,
}

impl Pending {
    pub(super) fn new(
        source: &Arc<str>,
        peer: &Arc<str>,
        partition: Partition,
        columns: Option<&Arc<Columns>>,
    ) -> Self {
        Self {
            source: Arc::clone(source),
            peer: Arc::clone(peer),
            partition,
            data: Vec::new(),
            messages: Vec::new(),
            offsets: Vec::new(),
            attributes: columns.map(Attributes::new),
            attribute_bytes: 0,
        }
    }

    /// Whether a chunk with this message more would be larger than `budget`.
    pub(super) fn is_full(&self, n_bytes: usize, budget: Budget) -> bool {
        let is_too_large = budget.bytes < self.data.len() + self.attribute_bytes + n_bytes
            || budget.messages <= self.messages.len();
        is_too_large && !self.messages.is_empty()
    }

    /// Appends a message. A tombstone, which has no value, is an empty one.
    pub(super) fn push(&mut self, message: &impl Message, offset: u64) {
        let payload = message.payload().unwrap_or_default();
        // A message is at most 1 GB on the wire, and a chunk of more than one is bounded by the budget.
        let start = u32::try_from(self.data.len()).expect("chunks are bounded");
        let len = u32::try_from(payload.len()).expect("messages are bounded by the protocol");
        self.data.extend_from_slice(payload);
        self.messages.push(MessageRange { start, len });
        self.offsets.push(offset);
        if let Some(attributes) = &mut self.attributes {
            self.attribute_bytes += attributes.push(message);
        }
    }

    /// The chunk; `None` if there is no message.
    pub(super) fn finish(self) -> Option<Chunk> {
        let next_offset = self.offsets.last()? + 1;
        let attributes = self.attributes.map(|attributes| attributes.finish(&self.peer, &self.offsets));
        Some(Chunk {
            source: self.source,
            partition: self.partition,
            data: Buffer::from(self.data),
            messages: self.messages,
            offsets: self.offsets,
            received_at: now_micros(),
            peer: Some(self.peer),
            attributes,
            next_offset,
        })
    }
}

/// How much memory a chunk takes, but for the positions of its messages.
pub(super) fn size(chunk: &Chunk) -> usize {
    chunk.data.len() + chunk.attributes.as_ref().map_or(0, Array::get_array_memory_size)
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Cuts off what is beyond `budget`; `None` if nothing is. One message may exceed it alone.
pub(super) fn split(chunk: &mut Chunk, budget: Budget) -> Option<Chunk> {
    let end = |idx: usize| (chunk.messages[idx].start + chunk.messages[idx].len) as usize;
    let fits =
        (0..chunk.messages.len()).take_while(|idx| *idx < budget.messages && end(*idx) <= budget.bytes);
    let n_fit = fits.count().max(1);
    if n_fit == chunk.messages.len() {
        return None;
    }
    let cut = end(n_fit - 1);
    let mut rest = chunk.clone();
    rest.data = chunk.data.slice(cut);
    rest.messages = chunk.messages.split_off(n_fit);
    rest.messages.iter_mut().for_each(|message| message.start -= u32::try_from(cut).expect("it was one"));
    rest.offsets = chunk.offsets.split_off(n_fit);
    if let Some(attributes) = &chunk.attributes {
        rest.attributes = Some(attributes.slice(n_fit, rest.messages.len()));
        chunk.attributes = Some(attributes.slice(0, n_fit));
    }
    chunk.data = chunk.data.slice_with_length(0, cut);
    chunk.next_offset = chunk.offsets[n_fit - 1] + 1;
    Some(rest)
}

#[cfg(test)]
pub(super) mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;

    pub(in super::super) fn message(text: &str) -> OwnedMessage {
        let payload = Some(text.as_bytes().to_vec());
        OwnedMessage::new(payload, None, "t".into(), Timestamp::NotAvailable, 0, 0, None)
    }

    fn chunk(messages: &[&str]) -> Chunk {
        let mut pending = Pending::new(&"in".into(), &"t/0".into(), Partition(1), Some(&Columns::new(&[])));
        for (idx, text) in messages.iter().enumerate() {
            pending.push(&message(text), 10 + 2 * idx as u64);
        }
        pending.finish().unwrap()
    }

    #[test]
    fn a_chunk_is_cut_where_the_budget_ends_and_loses_nothing() {
        let mut rest = Some(chunk(&["", "abc", "de", "longer than all", "f"]));
        let (mut messages, mut next) = (Vec::new(), Vec::new());
        while let Some(mut first) = rest {
            rest = split(&mut first, Budget { messages: 2, bytes: 5 });
            assert_eq!(first.attributes.as_ref().map(Array::len), Some(first.messages.len()));
            assert!(first.data.len() <= 5 || first.messages.len() == 1);
            let texts =
                (0..first.messages.len()).map(|idx| String::from_utf8(first.message(idx).into()).unwrap());
            messages.push(texts.collect::<Vec<_>>());
            next.push((first.offsets.clone(), first.next_offset));
        }
        assert_eq!(messages, [vec!["", "abc"], vec!["de"], vec!["longer than all"], vec!["f"]]);
        assert_eq!(next, [(vec![10, 12], 13), (vec![14], 15), (vec![16], 17), (vec![18], 19)]);
    }

    #[test]
    fn a_chunk_is_full_by_messages_or_bytes_but_never_empty() {
        let budget = Budget { messages: 2, bytes: 4 };
        let mut pending = Pending::new(&"in".into(), &"t/0".into(), Partition(1), None);
        assert!(!pending.is_full(100, budget));
        pending.push(&message("abc"), 0);
        assert!(pending.is_full(2, budget) && !pending.is_full(1, budget));
        pending.push(&message(""), 1);
        assert!(pending.is_full(0, budget));
    }
}
