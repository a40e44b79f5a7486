//! String columns that are views into the received chunk: nothing is copied unless it was escaped.
//!
//! Arrow's checked constructor validates every string once more. Here each view is checked when it is made (the
//! bytes it points to are compared with a `&str`), so that the column can be put together without that pass.

#![allow(unsafe_code, reason = "string view arrays are built from views that were checked one by one")]

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
}

/// One string of a column, made by [`Arena::view`]. Only meaningful with the arena that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View(u128);

impl View {
    /// The empty string, which every arena contains; stands for null, too.
    pub(crate) const EMPTY: Self = Self(0);
}

impl Arena {
    /// An arena over a chunk's bytes.
    pub(crate) fn new(chunk: Buffer) -> Self {
        Self { chunk, side: Vec::new() }
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
        let views: ScalarBuffer<u128> = views.into_iter().map(|view| view.0).collect::<Vec<_>>().into();
        // SAFETY: every view is EMPTY or was made by `Arena::view` or `Arena::copy` of the arena with these buffers.
        // Up to 12 bytes it holds the text itself; above, `view` compared the range of the chunk with a `&str`, and
        // `copy` has just written the range of the side buffer from one. Both ranges are in bounds, valid UTF-8,
        // agree with the prefix, and never changed since: exactly what `try_new` would check. The lengths of views
        // and nulls were compared above.
        unsafe { StringViewArray::new_unchecked(views, self.0.to_vec(), nulls) }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;

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
