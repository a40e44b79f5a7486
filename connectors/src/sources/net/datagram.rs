//! From datagrams to messages: what `udp` and `unix` in datagram mode have in common.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use logdrive_schemas::MessageRange;
use schemars::JsonSchema;
use serde::Deserialize;

use super::counts::Counts;
use super::lines::{BROKEN, LineRanges};
use crate::source::Received;

/// What one datagram holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Lines: one message each.
    #[default]
    Lines,
    /// One message, whatever is in it.
    None,
    /// One message, without the LF, CR and NUL behind it.
    #[serde(skip)]
    Trimmed,
}

/// Datagrams of one peer, copied together.
#[derive(Debug)]
pub(crate) struct Datagrams {
    split: Split,
    data: BytesMut,
    messages: Vec<MessageRange>,
    n_truncated: u64,
}

impl Datagrams {
    pub(crate) fn new(split: Split) -> Self {
        Self { split, data: BytesMut::new(), messages: Vec::new(), n_truncated: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// Adds a datagram. If it was `truncated`, its end is missing: its last message is marked as not whole.
    pub(crate) fn push(&mut self, payload: &[u8], truncated: bool) {
        let start = self.data.len();
        self.data.put_slice(payload);
        if truncated {
            self.data.put_u8(BROKEN);
            self.n_truncated += 1;
        }
        match self.split {
            Split::Lines => {
                let lines = LineRanges::of(&self.data[start..], usize::MAX, usize::MAX);
                let shifted = |m: MessageRange| MessageRange { start: m.start + start as u32, len: m.len };
                self.messages.extend(lines.messages.into_iter().map(shifted));
            }
            Split::Trimmed => {
                let payload = &self.data[start..];
                let trailing = |byte: &&u8| matches!(**byte, b'\n' | b'\r' | 0);
                let len = payload.len() - payload.iter().rev().take_while(trailing).count();
                if len > 0 {
                    self.messages.push(MessageRange { start: start as u32, len: len as u32 });
                }
            }
            Split::None if self.data.len() > start => {
                let len = (self.data.len() - start) as u32;
                self.messages.push(MessageRange { start: start as u32, len });
            }
            Split::None => {}
        }
    }

    /// What is handed over, counted; nothing if there is no message.
    pub(crate) fn into_received(self, peer: Option<Arc<str>>, counts: &Counts) -> Option<Received> {
        if self.messages.is_empty() {
            return None;
        }
        counts.rejected("datagram_truncated", self.n_truncated, peer.as_deref().unwrap_or_default());
        counts.received(&self.messages);
        Some(Received {
            data: self.data.freeze(),
            messages: self.messages,
            peer,
            attributes: None,
            ack: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(datagrams: &Datagrams) -> Vec<&[u8]> {
        let of = |m: &MessageRange| &datagrams.data[m.start as usize..(m.start + m.len) as usize];
        datagrams.messages.iter().map(of).collect()
    }

    #[test]
    fn splits_into_lines_or_not() {
        let mut lines = Datagrams::new(Split::Lines);
        lines.push(b"a\nb\r\n\n", false);
        lines.push(b"", false);
        lines.push(b"c", false);
        assert_eq!(texts(&lines), [b"a", b"b", b"c"]);
        let mut whole = Datagrams::new(Split::None);
        whole.push(b"a\nb\n", false);
        whole.push(b"", false);
        assert_eq!(texts(&whole), [b"a\nb\n"]);
        let mut trimmed = Datagrams::new(Split::Trimmed);
        trimmed.push(b"a\nb\r\n\0", false);
        trimmed.push(b"\n", false);
        trimmed.push(b"c", true);
        assert_eq!(texts(&trimmed), [&b"a\nb"[..], b"c\xFF"]);
    }

    #[test]
    fn a_truncated_datagram_is_broken_at_its_end() {
        let mut lines = Datagrams::new(Split::Lines);
        lines.push(b"whole\nhal", true);
        assert_eq!(texts(&lines), [&b"whole"[..], b"hal\xFF"]);
        assert_eq!(lines.n_truncated, 1);
    }
}
