//! What cutting a stream of bytes into messages needs of a buffer, whatever the framing.

use bytes::{Buf, Bytes, BytesMut};
use logdrive_schemas::MessageRange;

use super::lines::{BROKEN, Group};

/// A group smaller than this is copied, so that it does not pin the larger buffer that it was read into.
const COPY_MAX: usize = 16 << 10;
/// No read has less room than this.
pub(crate) const READ_MIN: usize = 8 << 10;

/// Makes sure that at least [`READ_MIN`] bytes can be read; allocates room for `want` if it must allocate.
pub(crate) fn make_room(buffer: &mut BytesMut, want: usize, message_bytes_max: usize) {
    if buffer.capacity() - buffer.len() >= READ_MIN || (buffer.is_empty() && buffer.try_reclaim(want)) {
        return;
    }
    let mut larger = BytesMut::with_capacity(room_for(buffer, want, message_bytes_max));
    larger.extend_from_slice(buffer);
    *buffer = larger;
}

/// The capacity after [`make_room`]. At least doubles a long message, so that one that arrives in small pieces costs no
/// more than twice its length in copies.
pub(crate) fn room_for(buffer: &BytesMut, want: usize, message_bytes_max: usize) -> usize {
    buffer.len() + want.max(READ_MIN).max(buffer.len().min(message_bytes_max))
}

/// Gives memory back before a wait that can be long.
pub(crate) fn release(buffer: &mut BytesMut) {
    if buffer.is_empty() {
        *buffer = BytesMut::new();
        return;
    }
    let spare = buffer.capacity() - buffer.len();
    if spare > buffer.len().max(READ_MIN) {
        let mut smaller = BytesMut::with_capacity(buffer.len() + READ_MIN);
        smaller.extend_from_slice(buffer);
        *buffer = smaller;
    }
}

/// Hands out the first `end` bytes with the messages in them. [`BROKEN`] is written at `cuts`: inside messages over the
/// limit, behind their prefix.
pub(crate) fn hand_out(
    buffer: &mut BytesMut,
    end: usize,
    messages: Vec<MessageRange>,
    cuts: &[usize],
) -> Option<Group> {
    for at in cuts {
        buffer[*at] = BROKEN;
    }
    if messages.is_empty() {
        buffer.advance(end);
        return None;
    }
    let data = if end < COPY_MAX {
        let copy = Bytes::copy_from_slice(&buffer[..end]);
        buffer.advance(end);
        copy
    } else {
        buffer.split_to(end).freeze()
    };
    Some(Group { data, messages, n_too_long: cuts.len() as u64 })
}
