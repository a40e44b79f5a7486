//! Messages as the buffer holds them, and how they lie in a frame's body.
//!
//! ```text
//! received_at 8 | peer length 2 | peer | per message: gap, length (LEB128) | attributes | data
//! ```
//!
//! There are attributes only if the highest bit of the peer's length is set: their length (4 bytes), then an Arrow IPC
//! stream.

use std::sync::Arc;

use arrow::array::{Array, StructArray};
use bytes::Bytes;
use logdrive_schemas::MessageRange;

use super::codec;
use super::frame::{self, BODY_MAX, Frame};
use crate::source::Received;

/// Set in the length of the peer's name where attributes follow.
const HAS_ATTRIBUTES: u16 = 0x8000;

/// Messages that arrived together, numbered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// The number of the first message; the others follow without gaps.
    pub(super) first: u64,
    /// Microseconds since the Unix epoch.
    pub(super) received_at: i64,
    /// Who sent them.
    pub(super) peer: Option<Arc<str>>,
    /// Where each message lies in `data`. Never empty.
    pub(super) messages: Vec<MessageRange>,
    /// What else is known of each message.
    pub(super) attributes: Option<StructArray>,
    /// The bytes.
    pub(super) data: Bytes,
}

impl Record {
    /// The number after the last message.
    pub(super) fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    /// The bytes of its messages and attributes.
    pub(super) fn payload(&self) -> usize {
        self.data.len() + self.attributes.as_ref().map_or(0, Array::get_array_memory_size)
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.payload() + self.messages.len() * size_of::<MessageRange>() + 64
    }

    /// Numbers what was received. Messages must be ascending and inside the data.
    pub(super) fn new(received: &Received, first: u64, received_at: i64) -> Result<Self, &'static str> {
        let mut at = 0;
        for m in &received.messages {
            if m.start < at {
                return Err("the messages are not ascending");
            }
            at = m.start.checked_add(m.len).ok_or("a message lies outside of the data")?;
        }
        let worst = received.data.len() + received.messages.len() * 10 + (1 << 17);
        if received.data.len() < at as usize {
            return Err("a message lies outside of the data");
        }
        if received.attributes.as_ref().is_some_and(|a| a.len() != received.messages.len()) {
            return Err("there is not one row of attributes for each message");
        }
        if BODY_MAX < worst || u32::try_from(received.messages.len()).is_err() {
            return Err("too much at once");
        }
        Ok(Self {
            first,
            received_at,
            peer: received.peer.clone(),
            messages: received.messages.clone(),
            attributes: received.attributes.clone(),
            data: received.data.clone(),
        })
    }

    /// Appends it to `out` as a frame of the group commit that began at number `group`.
    ///
    /// # Errors
    /// If the attributes cannot be written or are too large; nothing was appended.
    pub(super) fn write(&self, key: u64, group: u64, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let attributes = self.attributes.as_ref().map(codec::encode_struct).transpose();
        let attributes = attributes.map_err(|_| "the attributes have a type that cannot be kept")?;
        let n_attributes = attributes.as_ref().map_or(0, Vec::len);
        let worst = self.data.len() + self.messages.len() * 10 + (1 << 17);
        if BODY_MAX < worst + n_attributes {
            return Err("too much at once");
        }
        let count = u32::try_from(self.messages.len()).expect("`new` and `read` check it");
        frame::write(out, key, (self.first, group, count), |out| {
            let peer = self.peer.as_deref().unwrap_or("");
            let peer_len = u16::try_from(peer.len()).ok().filter(|len| *len < HAS_ATTRIBUTES).unwrap_or(0);
            let flag = if attributes.is_some() { HAS_ATTRIBUTES } else { 0 };
            out.extend_from_slice(&self.received_at.to_le_bytes());
            out.extend_from_slice(&(peer_len | flag).to_le_bytes());
            out.extend_from_slice(&peer.as_bytes()[..usize::from(peer_len)]);
            let mut at = 0;
            for m in &self.messages {
                write_varint(out, m.start - at);
                write_varint(out, m.len);
                at = m.start + m.len;
            }
            if let Some(attributes) = attributes {
                let len = u32::try_from(attributes.len()).expect("checked against BODY_MAX");
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(&attributes);
            }
            out.extend_from_slice(&self.data);
        });
        Ok(())
    }

    /// Reads the record of a verified frame of `bytes`, as a view. `None` if the body makes no sense.
    pub(super) fn read(frame: &Frame, bytes: &Bytes) -> Option<Self> {
        let body = bytes.slice(frame.body.clone());
        let received_at = i64::from_le_bytes(*body.first_chunk()?);
        let peer_len = u16::from_le_bytes(*body.get(8..)?.first_chunk()?);
        let has_attributes = peer_len & HAS_ATTRIBUTES != 0;
        let peer_len = usize::from(peer_len & !HAS_ATTRIBUTES);
        let peer = std::str::from_utf8(body.get(10..10 + peer_len)?).ok()?;
        let mut at = 10 + peer_len;
        // Each message takes two bytes at least: a wrong count cannot ask for memory.
        if (body.len() - at) / 2 < frame.count as usize {
            return None;
        }
        let mut messages = Vec::with_capacity(frame.count as usize);
        let mut end = 0_u32;
        for _ in 0..frame.count {
            let start = end.checked_add(read_varint(&body, &mut at)?)?;
            let len = read_varint(&body, &mut at)?;
            end = start.checked_add(len)?;
            messages.push(MessageRange { start, len });
        }
        let mut attributes = None;
        if has_attributes {
            let len = u32::from_le_bytes(*body.get(at..)?.first_chunk()?) as usize;
            at += 4;
            let stream = body.get(at..at.checked_add(len)?)?;
            let decoded = codec::decode_struct(body.slice_ref(stream)).ok()?;
            attributes = Some(decoded).filter(|a| a.len() == messages.len());
            attributes.as_ref()?;
            at += len;
        }
        let data = body.slice(at..);
        let peer = (!peer.is_empty()).then(|| Arc::from(peer));
        (end as usize <= data.len() && !messages.is_empty()).then_some(Self {
            first: frame.first,
            received_at,
            peer,
            messages,
            attributes,
            data,
        })
    }
}

fn write_varint(out: &mut Vec<u8>, mut n: u32) {
    while 0x7f < n {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn read_varint(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut n = 0_u64;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(n).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringViewArray};
    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn records_survive_the_disk() {
        let received = Received {
            data: Bytes::from(vec![b'x'; 70_000]),
            messages: vec![
                MessageRange { start: 0, len: 0 },
                MessageRange { start: 3, len: 200 },
                MessageRange { start: 300, len: 69_700 },
            ],
            peer: Some("10.0.0.1:9".into()),
            attributes: None,
            ack: None,
        };
        let there_and_back = |received: &Received| {
            let record = Record::new(received, 9, -5).unwrap();
            let mut out = Vec::new();
            record.write(1, 7, &mut out).unwrap();
            let bytes = Bytes::from(out);
            let frame = frame::read(&bytes, 0, Some(1)).unwrap();
            assert_eq!(Record::read(&frame, &bytes), Some(record));
            bytes[frame.body].to_vec()
        };
        let without = there_and_back(&received);
        assert_eq!(without[8..10], 10_u16.to_le_bytes(), "as it always was: what is on disk stays readable");
        let topics = StringViewArray::from(vec![Some("a"), None, Some("a topic of more than twelve bytes")]);
        let topic = Arc::new(Field::new("topic", DataType::Utf8View, true));
        let attributes = StructArray::from(vec![(topic, Arc::new(topics) as ArrayRef)]);
        let received = Received { attributes: Some(attributes.clone()), ..received };
        let with = there_and_back(&received);
        assert!(with.len() < without.len() + 1_000, "{} bytes more", with.len() - without.len());
        let received = Received { attributes: Some(attributes.slice(0, 2)), ..received };
        assert!(Record::new(&received, 0, 0).is_err(), "a row is missing");
    }

    #[test]
    fn ranges_outside_of_the_data_are_refused() {
        for ranges in [[(0, 4), (0, 1)], [(0, 1), (4, 2)], [(0, 1), (u32::MAX, 2)]] {
            let messages = ranges.map(|(start, len)| MessageRange { start, len }).to_vec();
            let received = Received {
                data: Bytes::from_static(b"12345"),
                messages,
                peer: None,
                attributes: None,
                ack: None,
            };
            assert!(Record::new(&received, 0, 0).is_err(), "{ranges:?}");
        }
    }
}
