//! How one record lies on disk: a header with length and checksum, then the body.
//!
//! ```text
//! magic 4 | body length 4 | crc32 4 | first 8 | group 8 | count 4 | body
//! ```
//!
//! All numbers are little-endian; the checksum covers everything but the magic and itself, and a secret key of the
//! folder: a peer that sends bytes shaped like a frame cannot make a torn tail look like damage. `first` is the number of
//! the record's first item and `count` how many it has; a frame without items is a *skip*: the numbers before its
//! `first` are not used. `group` is the number at which the group commit began that wrote the frame. It tells a torn
//! tail from damage: a frame of a later group can only exist if everything before it was synced.

use std::ops::Range;

const MAGIC: [u8; 4] = *b"LdF1";

/// The length of a frame without its body, in bytes.
pub(super) const HEADER: usize = 32;

/// The largest body, in bytes. What claims to be larger is damaged.
pub(super) const BODY_MAX: usize = 256 << 20;

/// What a frame says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The number of the first item.
    pub(super) first: u64,
    /// The number of the first item of its group commit.
    pub(super) group: u64,
    /// How many items.
    pub(super) count: u32,
    /// Where the body lies in the bytes that were read.
    pub(super) body: Range<usize>,
}

impl Frame {
    /// The number after the last item.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// Appends a frame to `out`, with a body that `write_body` appends.
pub(super) fn write(
    out: &mut Vec<u8>,
    key: u64,
    (first, group, count): (u64, u64, u32),
    write_body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&group.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    write_body(out);
    let len = u32::try_from(out.len() - start - HEADER).expect("callers keep bodies below BODY_MAX");
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(key, len, &out[start + 12..]);
    out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(key: u64, len: u32, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&key.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

/// Why there is no whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// The bytes end before the frame does; it would need this many.
    Short(usize),
    /// The bytes are not a frame.
    Damaged(&'static str),
}

impl FrameError {
    /// Why, in words.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Short(_) => "the record is cut off",
            Self::Damaged(what) => what,
        }
    }
}

/// Reads the frame at `at`; with a `key`, also checks it.
pub(super) fn read(bytes: &[u8], at: usize, key: Option<u64>) -> Result<Frame, FrameError> {
    let rest = &bytes[at.min(bytes.len())..];
    let Some(header) = rest.first_chunk::<HEADER>() else {
        return Err(FrameError::Short(HEADER));
    };
    if header[..4] != MAGIC {
        return Err(FrameError::Damaged("there is no record"));
    }
    let len = u32::from_le_bytes(array(&header[4..]));
    if BODY_MAX < len as usize {
        return Err(FrameError::Damaged("the record has an impossible length"));
    }
    let total = HEADER + len as usize;
    if rest.len() < total {
        return Err(FrameError::Short(total));
    }
    let crc = u32::from_le_bytes(array(&header[8..]));
    if key.is_some_and(|key| checksum(key, len, &rest[12..total]) != crc) {
        return Err(FrameError::Damaged("the checksum does not match"));
    }
    let frame = Frame {
        first: u64::from_le_bytes(array(&header[12..])),
        group: u64::from_le_bytes(array(&header[20..])),
        count: u32::from_le_bytes(array(&header[28..])),
        body: at + HEADER..at + total,
    };
    if frame.first.checked_add(u64::from(frame.count)).is_none() {
        return Err(FrameError::Damaged("the record has impossible numbers"));
    }
    Ok(frame)
}

/// Whole, valid frames at any place from `from` on: what a damaged frame may hide.
pub(super) fn resync(bytes: &[u8], from: usize, key: u64) -> impl Iterator<Item = Frame> + '_ {
    let rest = &bytes[from.min(bytes.len())..];
    memchr::memmem::find_iter(rest, &MAGIC).filter_map(move |at| read(bytes, from + at, Some(key)).ok())
}

/// The first `N` bytes of `bytes`, which has them.
pub(super) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the caller checked the length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back_and_every_flipped_bit_is_seen() {
        let mut bytes = vec![7; 5];
        write(&mut bytes, 8, (41, 40, 2), |out| out.extend_from_slice(b"body"));
        let frame = read(&bytes, 5, Some(8)).unwrap();
        assert_eq!((frame.first, frame.group, frame.count, frame.end()), (41, 40, 2, 43));
        assert_eq!(&bytes[frame.body.clone()], b"body");
        for bit in 5 * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped, 5, Some(8)).is_err(), "bit {bit}");
        }
        for len in 5..bytes.len() {
            assert!(matches!(read(&bytes[..len], 5, Some(8)), Err(FrameError::Short(_))), "length {len}");
        }
        assert!(read(&bytes, 5, Some(9)).is_err());
        assert_eq!(resync(&bytes, 0, 8).collect::<Vec<_>>(), [frame]);
    }
}
