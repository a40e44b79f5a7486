//! Where a message ends in a stream of bytes.

use bytes::BytesMut;
use schemars::JsonSchema;
use serde::Deserialize;

use super::frames::Frames;
use super::lines::{Group, Lines};

/// How a stream of bytes is cut into messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// One message per line, ended by LF or CRLF.
    #[default]
    Newline,
    /// Each message is preceded by its length in bytes, in decimal, and a space (RFC 6587). A peer that sends anything
    /// else is let go.
    OctetCounting,
    /// As senders of syslog do it: each frame is recognised by how it begins.
    #[serde(skip)]
    Syslog,
}

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub(crate) enum Framer {
    Lines(Lines),
    Frames(Frames),
}

macro_rules! either {
    ($self:expr, $framer:ident => $do:expr) => {
        match $self {
            Framer::Lines($framer) => $do,
            Framer::Frames($framer) => $do,
        }
    };
}

impl Framer {
    pub(crate) fn new(framing: Framing, message_bytes_max: usize) -> Self {
        match framing {
            Framing::Newline => Self::Lines(Lines::new(message_bytes_max)),
            Framing::OctetCounting => Self::Frames(Frames::counted(message_bytes_max)),
            Framing::Syslog => Self::Frames(Frames::syslog(message_bytes_max)),
        }
    }

    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        either!(self, framer => framer.buffer())
    }

    pub(crate) fn pending(&self) -> usize {
        either!(self, framer => framer.pending())
    }

    pub(crate) fn capacity(&self) -> usize {
        either!(self, framer => framer.capacity())
    }

    pub(crate) fn make_room(&mut self, want: usize) {
        either!(self, framer => framer.make_room(want));
    }

    pub(crate) fn room_for(&self, want: usize) -> usize {
        either!(self, framer => framer.room_for(want))
    }

    pub(crate) fn release(&mut self) {
        either!(self, framer => framer.release());
    }

    pub(crate) fn take(&mut self) -> Option<Group> {
        either!(self, framer => framer.take())
    }

    /// What the end of the stream makes whole.
    pub(crate) fn finish(&mut self) -> Option<Group> {
        either!(self, framer => framer.finish())
    }

    /// Gives up on the message that has begun.
    pub(crate) fn cut(&mut self) -> Option<Group> {
        either!(self, framer => framer.cut())
    }

    /// Nothing that follows can be understood.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Lines(_) => false,
            Self::Frames(frames) => frames.is_lost(),
        }
    }
}
