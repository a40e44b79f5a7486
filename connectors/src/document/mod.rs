//! Rows as JSON documents: what every serialising sink writes.
//!
//! Two ways, chosen by the batch's [`Layout`]: `value` writes columns by their Arrow type; `splice` passes the original
//! on and changes only the members that the pipeline changed. `scan` finds the members.

pub(crate) mod object;
pub(crate) mod scalar;
pub(crate) mod scan;
mod splice;
mod value;

use std::cell::RefCell;

use logdrive_schemas::{Batch, Layout};

use self::splice::{Scratch, Splicer};
use self::value::MemberWriter;
pub(crate) use self::value::ValueWriter;

/// The value of [`TYPE_KEY`](logdrive_schemas::schema::TYPE_KEY) by which a decoder marks a text column that holds one
/// line of valid JSON in every row: its text is written as it is.
pub(crate) const JSON_TEXT: &str = "json";

/// Writes the rows of one batch as JSON documents, as the batch's [`Layout`] says. Each document is one line.
///
/// # Original
/// Without edits a document is the bytes of the message as received; only line breaks between its tokens (JSON allows
/// them there, and nowhere else) become spaces, so that one document stays one line. With edits the members that no
/// edit concerns keep their bytes, escapes and order; white space around commas may go.
///
/// # Columns
/// An object of the columns in their order. Null members are left out at every level, null list items stay. Timestamps
/// are RFC 3339 in UTC with as many digits as needed (`2024-01-02T03:04:05.25Z`), decimals are numbers with all digits
/// of their scale, binary values are base64, floats that are no number are `null`.
pub struct Documents<'a> {
    batch: &'a Batch,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Columns(Vec<MemberWriter<'a>>),
    Original,
    Spliced(Splicer<'a>, RefCell<Scratch>),
}

impl<'a> Documents<'a> {
    /// Prepares the columns of `batch`.
    #[must_use]
    pub fn new(batch: &'a Batch) -> Self {
        let kind = match &**batch.layout() {
            Layout::Columns => Kind::Columns(
                batch
                    .schema()
                    .fields()
                    .iter()
                    .zip(batch.rows().columns())
                    .map(|(field, column)| MemberWriter::new(field, column.as_ref()))
                    .collect(),
            ),
            Layout::Original(edits) if edits.is_empty() => Kind::Original,
            Layout::Original(edits) => {
                Kind::Spliced(Splicer::new(batch.rows(), edits), RefCell::new(Scratch::default()))
            }
        };
        Self { batch, kind }
    }

    /// Appends the document of row `idx` to `out`, without a line break behind it and without any inside.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn write(&self, idx: usize, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Columns(columns) => value::write_object(columns, idx, out),
            Kind::Original => write_line(self.batch.original().value(idx), out),
            Kind::Spliced(splicer, scratch) => {
                splicer.write(self.batch.original().value(idx), idx, &mut scratch.borrow_mut(), out);
            }
        }
    }
}

/// Appends `text` as one line: line breaks, which JSON allows between tokens only, become spaces.
fn write_line(text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(text);
    for at in memchr::memchr2_iter(b'\r', b'\n', text) {
        out[start + at] = b' ';
    }
}

#[cfg(test)]
mod tests;
