//! The body of a bulk request, and which row each of its items is.
//!
//! One item is two lines: the action, made here, and the document. That a row makes exactly one item of exactly one
//! kind is what keeps an event from speaking to the cluster in the sink's name: everything that an event can choose
//! goes through JSON escaping, and a document is one line that begins with `{`.

use bytes::Bytes;
use logdrive_schemas::{Batch, Reject};
use xxhash_rust::xxh3::xxh3_128;

use super::index::{IndexPattern, Text};
use crate::document::Documents;
use crate::sinks::http_auth::gzip;
use crate::sinks::http_rejects::Refused;

/// The longest `_id` that both servers take.
const ID_MAX: usize = 512;

/// What an action line says beside the index.
#[derive(Clone, Debug)]
pub(super) struct Action {
    /// `create` or `index`.
    pub(super) op: &'static str,
    /// Whether the document's id is the row's identity.
    pub(super) with_id: bool,
    /// The column to route by.
    pub(super) routing: Option<String>,
}

/// A bulk request while it is filled, and until its last item is confirmed.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    body: Vec<u8>,
    items: Vec<Item>,
    batches: Vec<Batch>,
    /// Rows that never became an item.
    unfit: Vec<(usize, Reject)>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    /// Where its bytes end in `body`; they begin where the previous item's end.
    end: usize,
    /// Which of `batches`.
    batch: usize,
    /// Which row of it.
    row: usize,
}

impl Bulk {
    /// Appends rows of `batch` from `from` on until the body would exceed `max` bytes. Returns the first row that is
    /// not in it. The first item of an empty body is taken however large it is.
    pub(super) fn fill(
        &mut self,
        batch: &Batch,
        from: usize,
        max: usize,
        (index, action): (&IndexPattern, &Action),
    ) -> usize {
        let documents = Documents::new(batch);
        let mut names = index.names(batch);
        let routing = action.routing.as_ref().map_or(Text::Missing, |name| Text::of(batch, name));
        let mut line = ActionLine::default();
        self.batches.push(batch.clone());
        let batch_idx = self.batches.len() - 1;
        for row in from..batch.num_rows() {
            let start = self.body.len();
            line.clear();
            names.write(row, &mut line.index);
            routing.write(row, &mut line.routing);
            if action.with_id {
                write_id(batch, row, &mut line.id);
            }
            line.write(action.op, &mut self.body);
            let document = self.body.len();
            documents.write(row, &mut self.body);
            make_line(&mut self.body, document);
            if self.body.get(document) != Some(&b'{') {
                self.body.truncate(start);
                let reason = "es_not_an_object: the document is no JSON object".into();
                self.unfit.push((batch_idx, Reject { idx: row, reason }));
                continue;
            }
            self.body.push(b'\n');
            if self.body.len() > max && start > 0 {
                self.body.truncate(start);
                return row;
            }
            self.items.push(Item { end: self.body.len(), batch: batch_idx, row });
        }
        batch.num_rows()
    }

    /// Whether there is nothing to send and nothing to reject.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.unfit.is_empty()
    }

    /// The number of items.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The rows that never became an item.
    pub(super) fn take_unfit(&mut self) -> Vec<(usize, Reject)> {
        std::mem::take(&mut self.unfit)
    }

    /// Where item `idx` came from: the batch's number, and the reject of its row.
    pub(super) fn reject(&self, idx: usize, reason: String) -> (usize, Reject) {
        let item = self.items[idx];
        (item.batch, Reject { idx: item.row, reason })
    }

    /// Rejects by batch, in the order of rows.
    pub(super) fn group(&self, mut rejects: Vec<(usize, Reject)>) -> Refused {
        rejects.sort_by_key(|(batch, reject)| (*batch, reject.idx));
        let mut groups: Vec<(usize, Vec<Reject>)> = Vec::new();
        for (batch, reject) in rejects {
            match groups.last_mut() {
                Some((last, group)) if *last == batch => group.push(reject),
                _ => groups.push((batch, vec![reject])),
            }
        }
        groups.into_iter().map(|(batch, group)| (self.batches[batch].clone(), group)).collect()
    }

    /// The bytes of `items` without compression.
    pub(super) fn bytes(&self, items: &[usize]) -> usize {
        items.iter().map(|idx| self.item(*idx).len()).sum()
    }

    /// The request body of `items`, in their order.
    pub(super) fn encode(&self, items: &[usize], compress: bool) -> Bytes {
        let parts = items.iter().map(|idx| self.item(*idx));
        let size = self.bytes(items);
        if compress {
            return gzip(parts, size).into();
        }
        let mut body = Vec::with_capacity(size);
        parts.for_each(|part| body.extend_from_slice(part));
        body.into()
    }

    fn item(&self, idx: usize) -> &[u8] {
        let start = if idx == 0 { 0 } else { self.items[idx - 1].end };
        &self.body[start..self.items[idx].end]
    }
}

/// The values of one action line.
#[derive(Default)]
struct ActionLine {
    index: String,
    id: String,
    routing: String,
}

impl ActionLine {
    fn clear(&mut self) {
        self.index.clear();
        self.id.clear();
        self.routing.clear();
    }

    fn write(&self, op: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(op.as_bytes());
        out.extend_from_slice(b"\":{\"_index\":");
        write_json(&self.index, out);
        for (key, value) in [("_id", &self.id), ("routing", &self.routing)] {
            if !value.is_empty() {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(b"\":");
                write_json(value, out);
            }
        }
        out.extend_from_slice(b"}}\n");
    }
}

fn write_json(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string is JSON, and writing to memory cannot fail");
}

/// Appends the row's identity, hashed if it is longer than an id may be.
fn write_id(batch: &Batch, row: usize, out: &mut String) {
    batch.write_id(row, out);
    if out.len() > ID_MAX {
        *out = format!("{:032x}", xxh3_128(out.as_bytes()));
    }
}

/// Makes the bytes from `start` on one line of UTF-8. They are that already; if ever they are not, the request must
/// not fall apart: a line break between JSON tokens is a space, and one inside a string is an error at the server.
fn make_line(body: &mut Vec<u8>, start: usize) {
    if simdutf8::basic::from_utf8(&body[start..]).is_err() {
        let repaired = String::from_utf8_lossy(&body[start..]).into_owned();
        body.truncate(start);
        body.extend_from_slice(repaired.as_bytes());
    }
    let document = &mut body[start..];
    if memchr::memchr2(b'\n', b'\r', document).is_some() {
        document.iter_mut().filter(|b| matches!(b, b'\n' | b'\r')).for_each(|b| *b = b' ');
    }
    let n_blank = document.iter().take_while(|b| b.is_ascii_whitespace()).count();
    if n_blank > 0 {
        body.drain(start..start + n_blank);
    }
}
