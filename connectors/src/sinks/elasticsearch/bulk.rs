//! The body of a bulk request, and which row each of its items is.
//!
//! One item is two lines: the action, made here, and the document. That a row makes exactly one item of exactly one
//! kind is what keeps an event from speaking to the cluster in the sink's name: everything that an event can choose
//! goes through JSON escaping, and a document is one line that begins with `{`.

use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use logdrive_schemas::{Batch, Reject};
use xxhash_rust::xxh3::xxh3_128;

use super::index::{IndexPattern, Names, Text};
use crate::document::Documents;
use crate::sinks::http_auth::gzip;
use crate::sinks::http_rejects::Refused;

/// The longest `_id` that both servers take.
const ID_MAX: usize = 512;

/// What a body has room for from the start, in bytes, unless the limit is lower.
const RESERVED_MAX: usize = 16 << 20;

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

/// A bulk request while it is filled.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    body: Vec<u8>,
    items: Vec<Item>,
    batches: Vec<Batch>,
    /// Rows that never became an item.
    unfit: Vec<(usize, Reject)>,
}

/// A bulk request until its last item is confirmed.
#[derive(Debug)]
pub(super) struct Sealed {
    body: Bytes,
    items: Vec<Item>,
    batches: Vec<Batch>,
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
        let mut actions = Actions::new(batch, action);
        if self.body.is_empty() {
            // All at once rather than by doubling; pages that no item reaches are never touched.
            self.body.reserve(max.min(RESERVED_MAX));
        }
        self.batches.push(batch.clone());
        let batch_idx = self.batches.len() - 1;
        for row in from..batch.num_rows() {
            let start = self.body.len();
            actions.write(row, &mut names, &mut self.body);
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

    /// The rows that never became an item.
    pub(super) fn take_unfit(&mut self) -> Vec<(usize, Reject)> {
        std::mem::take(&mut self.unfit)
    }

    /// No more items: what is needed until the last one is confirmed.
    pub(super) fn seal(self) -> Sealed {
        Sealed { body: self.body.into(), items: self.items, batches: self.batches }
    }
}

impl Sealed {
    /// The number of items.
    pub(super) fn len(&self) -> usize {
        self.items.len()
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

    /// The request body of `items`, which are ascending. Neighbours only, as nearly always, are not copied.
    pub(super) fn encode(&self, items: &[usize], compress: bool) -> Bytes {
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return Bytes::new() };
        let size = self.bytes(items);
        let range = self.item(*first).start..self.item(*last).end;
        if !compress && range.len() == size {
            return self.body.slice(range);
        }
        let parts = items.iter().map(|idx| &self.body[self.item(*idx)]);
        if compress {
            return gzip(parts, size).into();
        }
        let mut body = Vec::with_capacity(size);
        parts.for_each(|part| body.extend_from_slice(part));
        body.into()
    }

    fn item(&self, idx: usize) -> Range<usize> {
        let start = if idx == 0 { 0 } else { self.items[idx - 1].end };
        start..self.items[idx].end
    }
}

/// Writes the action lines of one batch. Rows that follow each other nearly always go to one index, so all of the
/// line but the end of the id is remembered.
struct Actions<'a> {
    batch: &'a Batch,
    action: &'a Action,
    routing: Text<'a>,
    /// The index that `head` is for.
    index: String,
    /// `{"create":{"_index":"i"`, and with ids `,"_id":"s-p-`.
    head: Vec<u8>,
    /// What ids begin with; `None` if they might be too long, and each is hashed.
    id_prefix: Option<String>,
    /// Working memory.
    name: String,
    value: String,
}

impl<'a> Actions<'a> {
    fn new(batch: &'a Batch, action: &'a Action) -> Self {
        let mut id_prefix = String::new();
        batch.write_id_prefix(&mut id_prefix);
        Self {
            batch,
            action,
            routing: action.routing.as_ref().map_or(Text::Missing, |name| Text::of(batch, name)),
            index: String::new(),
            head: Vec::new(),
            id_prefix: Some(id_prefix).filter(|prefix| prefix.len() + 16 <= ID_MAX),
            name: String::new(),
            value: String::new(),
        }
    }

    fn write(&mut self, row: usize, names: &mut Names<'_>, out: &mut Vec<u8>) {
        self.name.clear();
        names.write(row, &mut self.name);
        if self.head.is_empty() || self.name != self.index {
            self.begin();
        }
        out.extend_from_slice(&self.head);
        match &self.id_prefix {
            _ if !self.action.with_id => {}
            Some(_) => {
                write_hex(self.batch.offsets().value(row), out);
                out.push(b'"');
            }
            None => {
                self.value.clear();
                self.batch.write_id(row, &mut self.value);
                write!(out, "{:032x}\"", xxh3_128(self.value.as_bytes())).expect("memory takes it");
            }
        }
        self.value.clear();
        self.routing.write(row, &mut self.value);
        if !self.value.is_empty() {
            out.extend_from_slice(b",\"routing\":");
            write_json(&self.value, out);
        }
        out.extend_from_slice(b"}}\n");
    }

    /// Makes the head for the index `name`.
    fn begin(&mut self) {
        std::mem::swap(&mut self.index, &mut self.name);
        let head = &mut self.head;
        head.clear();
        head.extend_from_slice(b"{\"");
        head.extend_from_slice(self.action.op.as_bytes());
        head.extend_from_slice(b"\":{\"_index\":");
        write_json(&self.index, head);
        if self.action.with_id {
            head.extend_from_slice(b",\"_id\":");
            write_json(self.id_prefix.as_deref().unwrap_or_default(), head);
            // The rest of the id and its closing quote follow.
            head.pop();
        }
    }
}

fn write_json(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string is JSON, and writing to memory cannot fail");
}

/// Appends `n` in lower-case hexadecimal digits.
fn write_hex(n: u64, out: &mut Vec<u8>) {
    let n_digits = (64 - n.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..n_digits).rev() {
        out.push(b"0123456789abcdef"[(n >> (4 * digit)) as usize & 15]);
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
