//! String columns that are views into the received chunk: nothing is copied unless it was escaped.
//!
//! Arrow's checked constructor validates every string once more. Here each view is checked when it is made (the
//! bytes it points to are compared with a `&str`, or lie between characters of a range that was found to be UTF-8), so
//! that the column can be put together without that pass.

#![allow(unsafe_code, reason = "string view arrays are built from views that were checked one by one")]

use std::mem::ManuallyDrop;
use std::ops::Range;

use arrow::array::{StringViewArray, make_view};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};

/// Which buffer of the column a view points into.
const CHUNK: u32 = 0;
const SIDE: u32 = 1;

/// The bytes that the string columns of one batch share: the chunk, and a side buffer for text that is not in it
/// as it is.
///
/// Invariant: within `chunk` and within the first `side.len()` bytes of the side buffer nothing ever changes, so a
/// [`View`] stays right until [`Self::finish`] and afterwards.
#[derive(Debug)]
pub(crate) struct Arena {
    chunk: Buffer,
    side: Vec<u8>,
    /// The part of the chunk that was last found to be UTF-8.
    utf8: Range<usize>,
}

/// One string of a column, made by an [`Arena`]. Only meaningful with the arena that made it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(crate) struct View(u128);

impl View {
    /// The empty string, which every arena contains; stands for null, too.
    pub(crate) const EMPTY: Self = Self(0);

    /// A view that holds its text itself, for any arena; `None` for more than 12 bytes.
    pub(crate) fn short(text: &str) -> Option<Self> {
        (text.len() <= 12).then(|| Self(make_view(text.as_bytes(), SIDE, 0)))
    }
}

impl Arena {
    /// An arena over a chunk's bytes.
    pub(crate) fn new(chunk: Buffer) -> Self {
        Self { chunk, side: Vec::new(), utf8: 0..0 }
    }

    /// The bytes of the chunk.
    pub(crate) fn chunk(&self) -> &[u8] {
        self.chunk.as_slice()
    }

    /// A view of `text`: of the chunk if that is what stands there at `offset`, else of a copy in the side buffer.
    #[inline]
    pub(crate) fn view(&mut self, text: &str, offset: usize) -> View {
        let bytes = text.as_bytes();
        let in_chunk =
            offset.checked_add(bytes.len()).and_then(|end| self.chunk.get(offset..end)) == Some(bytes);
        match u32::try_from(offset) {
            Ok(offset) if in_chunk => View(make_view(bytes, CHUNK, offset)),
            _ => self.copy(text),
        }
    }

    /// Whether this range of the chunk is UTF-8. If so, [`Self::span`] makes views of it from now on, and of what it
    /// was asked about before no longer.
    pub(crate) fn check_utf8(&mut self, range: Range<usize>) -> bool {
        let valid =
            self.chunk.get(range.clone()).is_some_and(|text| simdutf8::basic::from_utf8(text).is_ok());
        if valid {
            self.utf8 = range;
        }
        valid
    }

    /// Whether this range lies in what [`Self::check_utf8`] last found to be UTF-8.
    #[inline]
    pub(crate) fn is_checked(&self, range: Range<usize>) -> bool {
        self.utf8.start <= range.start && range.end <= self.utf8.end
    }

    /// A view of this range of the chunk, if it is known to be UTF-8: it must lie in what [`Self::check_utf8`] last
    /// found to be, and begin and end between characters.
    #[inline(always)]
    pub(crate) fn span(&self, begin: usize, end: usize) -> Option<View> {
        let chunk = self.chunk.as_slice();
        let checked = self.utf8.start <= begin && begin <= end && end <= self.utf8.end;
        if !checked || !is_boundary(chunk, begin) || !is_boundary(chunk, end) {
            return None;
        }
        let len = end - begin;
        let Some(block) = chunk.get(begin..).and_then(<[u8]>::first_chunk::<16>) else {
            return span_at_end(chunk, begin, end);
        };
        let text = u128::from_le_bytes(*block);
        let (n_bytes, begin) = (u32::try_from(len).ok()?, u32::try_from(begin).ok()?);
        // Both kinds are made and one is chosen, without a branch that texts around 12 bytes would make go wrong. In a
        // short one the text moves in behind the length; the bits of what follows it in the chunk are cut off.
        let inline = (text & ((1 << (8 * len.min(INLINE_BYTES_MAX))) - 1)) << 32;
        let reference = (text & 0xffff_ffff) << 32 | u128::from(CHUNK) << 64 | u128::from(begin) << 96;
        let choice = u128::from(len <= INLINE_BYTES_MAX).wrapping_neg();
        Some(View(u128::from(n_bytes) | inline & choice | reference & !choice))
    }

    /// A view of `text`: of the chunk if `text` is a part of it, else of a copy in the side buffer. Looks at where
    /// `text` lies instead of comparing it.
    #[inline]
    pub(crate) fn view_of(&mut self, text: &str) -> View {
        let offset = text.as_ptr().addr().wrapping_sub(self.chunk.as_ptr().addr());
        let inside = offset < self.chunk.len() && text.len() <= self.chunk.len() - offset;
        match u32::try_from(offset) {
            Ok(offset) if inside => View(self.view_at(text.as_bytes(), offset)),
            _ => self.copy(text),
        }
    }

    /// `make_view` of bytes that stand in the chunk at `offset`, without a branch on the length of short ones.
    #[inline]
    fn view_at(&self, bytes: &[u8], offset: u32) -> u128 {
        let window = self.chunk.as_slice()[offset as usize..].first_chunk::<16>();
        match window {
            Some(window) if bytes.len() <= 12 => {
                let text = u128::from_le_bytes(*window) & ((1 << (8 * bytes.len())) - 1);
                text << 32 | bytes.len() as u128
            }
            _ => make_view(bytes, CHUNK, offset),
        }
    }

    /// How much text was copied, in bytes.
    pub(crate) fn copied(&self) -> usize {
        self.side.len()
    }

    /// A view of a copy of `text` in the side buffer.
    ///
    /// # Panics
    /// If the side buffer would exceed 4 GiB; a chunk is at most half of that and escapes only shrink.
    pub(crate) fn copy(&mut self, text: &str) -> View {
        let offset = u32::try_from(self.side.len() + text.len()).expect("the side buffer is below 4 GiB")
            - u32::try_from(text.len()).expect("shorter than the side buffer");
        if text.len() > 12 {
            self.side.extend_from_slice(text.as_bytes());
        }
        View(make_view(text.as_bytes(), SIDE, offset))
    }

    /// No more views: the buffers for [`string_view_array`].
    pub(crate) fn finish(self) -> ArenaBuffers {
        ArenaBuffers([self.chunk, Buffer::from_vec(self.side)])
    }
}

/// Text up to this length is in the view itself.
const INLINE_BYTES_MAX: usize = 12;

/// Whether no character goes on at `at`.
#[inline(always)]
fn is_boundary(text: &[u8], at: usize) -> bool {
    text.get(at).is_none_or(|byte| !(0x80..0xc0).contains(byte))
}

#[cold]
fn span_at_end(chunk: &[u8], begin: usize, end: usize) -> Option<View> {
    Some(View(make_view(chunk.get(begin..end)?, CHUNK, u32::try_from(begin).ok()?)))
}

/// The buffers of a finished [`Arena`].
#[derive(Clone, Debug)]
pub(crate) struct ArenaBuffers([Buffer; 2]);

impl ArenaBuffers {
    /// The column of `views`, all made by the arena that became these buffers.
    ///
    /// # Panics
    /// If `nulls` has another length than `views`.
    pub(crate) fn string_view_array(&self, views: Vec<View>, nulls: Option<NullBuffer>) -> StringViewArray {
        assert!(nulls.as_ref().is_none_or(|n| n.len() == views.len()), "one null bit per view");
        let mut views = ManuallyDrop::new(views);
        let (begin, len, capacity) = (views.as_mut_ptr(), views.len(), views.capacity());
        // SAFETY: a view is a `u128` and nothing else (`repr(transparent)`), and the vector is not used again.
        let views: ScalarBuffer<u128> =
            unsafe { Vec::from_raw_parts(begin.cast::<u128>(), len, capacity) }.into();
        // SAFETY: every view is EMPTY, short, or was made by `view`, `view_of`, `span` or `copy` of the arena with these
        // buffers. Up to 12 bytes it holds the text itself and zeros; above, `view` compared the range of the chunk with a `&str`,
        // `view_of` was given a `&str` that lies in the chunk, which nothing else can share memory with,
        // `span` was given one between characters of a range that `from_utf8` accepted, and `copy` has just written
        // the range of the side buffer from a `&str`. All ranges are in bounds, valid UTF-8, agree with the prefix,
        // and never changed since: exactly what `try_new` would check. The lengths of views and nulls were compared
        // above.
        unsafe { StringViewArray::new_unchecked(views, self.0.to_vec(), nulls) }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_what_arrow_would_make(text in "[a-z\u{e9}\u{20ac}]{0,40}", begin in 0_usize..50, len in 0_usize..50) {
            let chunk = Buffer::from(text.as_bytes());
            let mut arena = Arena::new(chunk);
            prop_assert!(arena.span(begin, begin + len).is_none() || begin + len == 0);
            prop_assert!(arena.check_utf8(0..text.len()));
            let found = arena.span(begin, begin + len).map(|view| view.0);
            let expect = text.get(begin..begin + len).map(|part| make_view(part.as_bytes(), CHUNK, begin as u32));
            prop_assert_eq!(found, expect);
        }
    }

    #[test]
    fn spans_are_of_checked_ranges_only() {
        let mut arena = Arena::new(Buffer::from(b"good\xff text of some more length".as_slice()));
        assert!(!arena.check_utf8(0..8));
        assert!(arena.span(0, 4).is_none());
        assert!(arena.check_utf8(5..20));
        assert!(arena.is_checked(6..20) && !arena.is_checked(4..20) && !arena.is_checked(6..21));
        assert!(arena.span(0, 4).is_none() && arena.span(5, 21).is_none() && arena.span(5, 20).is_some());
        assert!(!arena.check_utf8(0..usize::MAX));
    }

    #[test]
    fn a_part_of_the_chunk_is_viewed_where_it_lies() {
        let text = "..some parts of a text, the last one at its end";
        let chunk = Buffer::from(text.as_bytes());
        let inside = std::str::from_utf8(chunk.as_slice()).unwrap();
        let mut arena = Arena::new(chunk.clone());
        let ranges = [0..0, 2..6, 2..14, 2..15, 7..40, 40..47, 46..47, 47..47];
        let mut views: Vec<_> = ranges.iter().map(|range| arena.view_of(&inside[range.clone()])).collect();
        let elsewhere = String::from("a text of its own");
        views.push(arena.view_of(&elsewhere));
        let array = arena.finish().string_view_array(views, None);
        for (range, found) in ranges.iter().zip(array.iter().flatten()) {
            assert_eq!(found, &text[range.clone()]);
        }
        assert_eq!(array.value(4).as_ptr(), inside[7..].as_ptr());
        assert_eq!(array.value(8), elsewhere);
        array.to_data().validate_full().unwrap();
    }

    #[test]
    fn views_point_into_the_chunk_only_where_the_text_stands() {
        let chunk = Buffer::from(b"..a text longer than twelve bytes..".as_slice());
        let mut arena = Arena::new(chunk.clone());
        let views = vec![
            arena.view("a text longer than twelve bytes", 2),
            arena.view("a text longer than twelve bytes", 3),
            arena.view("past the end of the chunk", 20),
            arena.view("far past the end", usize::MAX),
            arena.view("short", 0),
            View::EMPTY,
        ];
        let array = arena.finish().string_view_array(views, None);
        let expect = [
            "a text longer than twelve bytes",
            "a text longer than twelve bytes",
            "past the end of the chunk",
            "far past the end",
            "short",
            "",
        ];
        assert_eq!(array.iter().flatten().collect::<Vec<_>>(), expect);
        assert_eq!(array.data_buffers()[0].as_ptr(), chunk.as_ptr());
        assert_eq!(array.views()[0] >> 64 & 0xffff_ffff, u128::from(CHUNK));
        assert_eq!(array.views()[1] >> 64 & 0xffff_ffff, u128::from(SIDE));
        array.to_data().validate_full().unwrap();
    }
}
