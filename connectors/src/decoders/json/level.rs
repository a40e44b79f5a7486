//! One object of the schema: its members to its columns.

use std::collections::HashMap;

use arrow::array::ArrayRef;
use arrow::datatypes::Fields;
use logdrive_schemas::FieldType;
use simd_json::Node;

use super::column::Column;
use super::grammar::Text;
use super::keys::{self, Keys, Next};
use super::parse::Parsed;
use super::scan::Strings;
use super::{Failure, grammar};
use crate::decoders::views::{Arena, ArenaBuffers};
use crate::document::scan;

/// Members of a remembered shape; longer objects look up the rest of their keys one by one.
const SHAPE_MEMBERS_MAX: usize = 256;
/// The longest key that a shape remembers, in bytes.
const SHAPE_KEY_BYTES_MAX: usize = 128;

/// One message while it becomes a row.
pub(super) struct Row<'a> {
    nodes: &'a [Node<'a>],
    base: usize,
    start: usize,
    /// Whether numbers of the tape mean nothing: read them from the message.
    pub(super) numbers_lost: bool,
    /// Where strings go.
    pub(super) arena: &'a mut Arena,
}

/// A value of a message.
#[derive(Clone, Copy)]
pub(super) struct Value {
    /// Its index in the tape.
    pub(super) node: usize,
    place: Place,
}

/// Where a value's text is. The tape does not say; it is looked for when somebody asks.
#[derive(Clone, Copy)]
enum Place {
    /// Behind the key whose opening quote is here.
    AfterKey(usize),
    /// Here.
    At(usize),
}

impl<'a> Row<'a> {
    /// The row of the message that begins at `start` in the arena's chunk.
    pub(super) fn new(parsed: &Parsed<'a>, start: usize, arena: &'a mut Arena) -> Self {
        Self { nodes: parsed.nodes, base: parsed.base, start, numbers_lost: parsed.numbers_lost, arena }
    }

    /// The node of a value.
    pub(super) fn node(&self, value: Value) -> Node<'a> {
        self.nodes[value.node]
    }

    /// Where a string of the tape begins in the chunk.
    pub(super) fn offset(&self, text: &str) -> usize {
        text.as_ptr().addr() - self.base + self.start
    }

    /// The node behind the value at `node`.
    pub(super) fn next(&self, node: usize) -> usize {
        match self.nodes[node] {
            Node::Array { count, .. } | Node::Object { count, .. } => node + 1 + count,
            Node::Static(_) | Node::String(_) => node + 1,
        }
    }

    /// The text of a value as received, and where it begins in the chunk.
    pub(super) fn text(&self, value: Value) -> (&[u8], usize) {
        let chunk = self.arena.chunk();
        let begin = match value.place {
            Place::AfterKey(key) => scan::value_of_key(chunk, key),
            Place::At(begin) => begin,
        };
        (&chunk[begin..scan::value_end(chunk, begin)], begin)
    }

    /// The members of the object at `node`: key and value.
    pub(super) fn members(&self, node: usize, len: usize) -> Vec<(&'a str, Value)> {
        let mut at = node + 1;
        (0..len)
            .map_while(|_| {
                let Node::String(key) = self.nodes[at] else { return None };
                let value = Value { node: at + 1, place: Place::AfterKey(self.offset(key) - 1) };
                at = self.next(at + 1);
                Some((key, value))
            })
            .collect()
    }

    /// The elements of an array.
    pub(super) fn elements(&self, array: Value) -> Vec<Value> {
        let (_, begin) = self.text(array);
        let mut node = array.node + 1;
        let end = self.next(array.node);
        scan::elements(self.arena.chunk(), begin)
            .map_while(|begin| {
                let value = (node < end).then_some(Value { node, place: Place::At(begin) })?;
                node = self.next(node);
                Some(value)
            })
            .collect()
    }
}

/// The columns of one object of the schema.
pub(super) struct Level {
    fields: Vec<(Box<str>, Column)>,
    names: HashMap<Box<str>, usize>,
    /// The keys of the previous object in their order, each with its column, if it has one: lines of one source nearly
    /// always have the same keys in the same order.
    shape: Vec<(Box<str>, Option<usize>)>,
    /// The value of each column in the object at hand.
    values: Vec<Option<Value>>,
    /// What [`scan`](super::scan) has learnt of the keys.
    keys: Keys,
    len: usize,
}

impl Level {
    pub(super) fn new(fields: &[(String, FieldType)]) -> Self {
        Self {
            fields: fields.iter().map(|(name, t)| (name.as_str().into(), Column::new(t))).collect(),
            names: fields.iter().enumerate().map(|(idx, (name, _))| (name.as_str().into(), idx)).collect(),
            shape: Vec::new(),
            values: vec![None; fields.len()],
            keys: Keys::new(),
            len: 0,
        }
    }

    /// The number of objects and nulls.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `n_rows` more.
    pub(super) fn reserve(&mut self, n_rows: usize) {
        for (_, column) in &mut self.fields {
            column.reserve(n_rows);
        }
    }

    /// Appends the object of which the scan expects the brace, or white space and the brace, at `at`; the position
    /// behind it. `None` if the scan does not like it; then some columns may be longer than others: truncate.
    pub(super) fn scan(
        &mut self,
        text: &Text<'_>,
        strings: &mut Strings<'_>,
        mut at: usize,
        depth: u32,
    ) -> Option<usize> {
        let (mut joint, mut n_found) = (keys::START, 0);
        let end = loop {
            match self.keys.next(text, at, joint, &self.names)? {
                Next::End(end) => break end,
                Next::Member { value, .. } if value >= text.end => return None,
                Next::Member { joint: found, field, value } => {
                    joint = found;
                    at = match self.fields.get_mut(field as usize) {
                        Some((_, column)) => {
                            n_found += 1;
                            // A column that has its value already fails.
                            column.scan(text, strings, value, self.len, depth)?
                        }
                        None => grammar::value(text, value, depth)?,
                    };
                }
            }
        };
        if n_found < self.fields.len() {
            for (_, column) in &mut self.fields {
                if column.len() == self.len {
                    column.append_null();
                }
            }
        }
        self.len += 1;
        Some(end)
    }

    /// Appends a message, which must be an object.
    pub(super) fn append_message(&mut self, row: &mut Row<'_>) -> Result<(), Failure> {
        let found = match row.nodes.first() {
            Some(Node::Object { len, .. }) => return self.append(row, 0, *len),
            Some(Node::Array { .. }) => "an array",
            Some(Node::String(_)) => "a string",
            _ => "a number or a literal",
        };
        Err(Failure::new("not_an_object", format!("the message is {found}")))
    }

    /// Appends the object of `len` members at `node`.
    pub(super) fn append(&mut self, row: &mut Row<'_>, node: usize, len: usize) -> Result<(), Failure> {
        self.values.fill(None);
        let mut at = node + 1;
        for ordinal in 0..len {
            let Node::String(key) = row.nodes[at] else { break };
            if let Some(field) = self.field(ordinal, key) {
                let value = Value { node: at + 1, place: Place::AfterKey(row.offset(key) - 1) };
                if self.values[field].replace(value).is_some() {
                    return Err(Failure::new("duplicate_key", "is there twice").within(key));
                }
            }
            at = row.next(at + 1);
        }
        for ((name, column), value) in self.fields.iter_mut().zip(&self.values) {
            column.append(row, *value).map_err(|failure| failure.within(name))?;
        }
        self.len += 1;
        Ok(())
    }

    pub(super) fn append_null(&mut self) {
        for (_, column) in &mut self.fields {
            column.append_null();
        }
        self.len += 1;
    }

    pub(super) fn truncate(&mut self, len: usize) {
        for (_, column) in &mut self.fields {
            column.truncate(len);
        }
        self.len = self.len.min(len);
    }

    pub(super) fn finish(&mut self, fields: &Fields, buffers: &ArenaBuffers) -> Vec<ArrayRef> {
        self.len = 0;
        self.fields.iter_mut().zip(fields).map(|((_, column), field)| column.finish(field, buffers)).collect()
    }

    /// The column of the member `key`, which is the object's member number `ordinal`.
    #[inline]
    fn field(&mut self, ordinal: usize, key: &str) -> Option<usize> {
        match self.shape.get(ordinal) {
            Some((expected, field)) if **expected == *key => *field,
            _ => self.look_up(ordinal, key),
        }
    }

    #[cold]
    fn look_up(&mut self, ordinal: usize, key: &str) -> Option<usize> {
        let field = self.names.get(key).copied();
        if ordinal < SHAPE_MEMBERS_MAX && key.len() <= SHAPE_KEY_BYTES_MAX {
            if let Some(slot) = self.shape.get_mut(ordinal) {
                *slot = (key.into(), field);
            } else if self.shape.len() == ordinal {
                // Otherwise there is a gap, behind a key that was too long to remember.
                self.shape.push((key.into(), field));
            }
        }
        field
    }
}
