//! Edits of an original object, without reading or writing the members that they do not concern.
//!
//! ```text
//! original  {"a":1, "b":"x\n", "c":[1,2]}      edits: Set c (column: 7), Rename a to z, Set d (column: true)
//! members    [a]    [b]        [c]
//! document  {"z":1,"b":"x\n","c":7,"d":true}   b: bytes as they were
//! ```

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::RecordBatch;
use logdrive_schemas::Edit;

use super::scan;
use super::value::{ValueWriter, member_prefix};
use super::write_line;

/// Members of a remembered shape, as in the `json` decoder.
const SHAPE_MEMBERS_MAX: usize = 256;
/// The longest key that a shape remembers, in bytes.
const SHAPE_KEY_BYTES_MAX: usize = 128;

/// A key that some edit names.
type NameIdx = u16;

/// The edits of a layout, prepared for one batch.
pub(super) struct Splicer<'a> {
    ops: Vec<Op>,
    names: HashMap<&'a str, NameIdx>,
    /// By [`NameIdx`]: `"name":`.
    prefixes: Vec<Vec<u8>>,
    /// The columns that edits set.
    writers: Vec<ValueWriter<'a>>,
}

enum Op {
    Keep(Vec<NameIdx>),
    Remove(NameIdx),
    Rename {
        from: NameIdx,
        to: NameIdx,
    },
    /// The member becomes the value of `writers[column]`.
    Set {
        name: NameIdx,
        column: usize,
    },
}

/// Working memory of [`Splicer::write`], kept from row to row.
#[derive(Default)]
pub(super) struct Scratch {
    entries: Vec<Entry>,
    /// The keys of the previous original, as they stand there, each with its name if an edit names it.
    shape: Vec<(Box<[u8]>, Option<NameIdx>)>,
}

/// A member of the document while edits are applied.
#[derive(Clone, Debug)]
struct Entry {
    /// Its key, if an edit names it.
    name: Option<NameIdx>,
    value: Value,
    /// Whether the key stands before the value in the original.
    own_key: bool,
    /// The whole member in the original.
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Value {
    Column(usize),
    Original(Range<usize>),
}

impl<'a> Splicer<'a> {
    /// Prepares `edits` for the columns of `rows`.
    pub(super) fn new(rows: &'a RecordBatch, edits: &'a [Edit]) -> Self {
        let mut this = Self {
            ops: Vec::with_capacity(edits.len()),
            names: HashMap::new(),
            prefixes: Vec::new(),
            writers: Vec::new(),
        };
        for (idx, edit) in edits.iter().enumerate() {
            let op = match edit {
                Edit::Keep { keys } => Op::Keep(keys.iter().map(|key| this.name(key)).collect()),
                Edit::Remove { key } => Op::Remove(this.name(key)),
                Edit::Rename { from, to } if from == to => continue,
                Edit::Rename { from, to } => Op::Rename { from: this.name(from), to: this.name(to) },
                Edit::Set { key } => {
                    let column = final_name(key, &edits[idx + 1..])
                        .and_then(|name| rows.schema_ref().column_with_name(name));
                    // Without a column the value is gone by the end, so it never matters.
                    let Some((at, field)) = column else { continue };
                    this.writers.push(ValueWriter::of_field(field, rows.column(at).as_ref()));
                    Op::Set { name: this.name(key), column: this.writers.len() - 1 }
                }
            };
            this.ops.push(op);
        }
        this
    }

    fn name(&mut self, name: &'a str) -> NameIdx {
        let next =
            NameIdx::try_from(self.prefixes.len()).expect("a configuration names fewer than 65,536 fields");
        let prefixes = &mut self.prefixes;
        *self.names.entry(name).or_insert_with(|| {
            prefixes.push(member_prefix(name));
            next
        })
    }

    /// Appends the document of row `idx` with this original.
    pub(super) fn write(&self, original: &[u8], idx: usize, scratch: &mut Scratch, out: &mut Vec<u8>) {
        let open = scan::skip_space(original, 0);
        if original.get(open) != Some(&b'{') {
            // Not an object: no decoder of ours lets it through, and there is nothing to edit.
            return write_line(original, out);
        }
        scratch.entries.clear();
        let mut key = scan::skip_space(original, open + 1);
        while original.get(key) == Some(&b'"') {
            let (key_end, name) = self.key_at(original, key, scratch.entries.len(), &mut scratch.shape);
            let value = scan::value_behind_key(original, key_end);
            let range = key..value.end;
            key = scan::skip_space(original, scan::behind_comma(original, value.end));
            scratch.entries.push(Entry { name, value: Value::Original(value), own_key: true, range });
        }
        let mut changed = false;
        for op in &self.ops {
            changed |= self.apply(op, idx, &mut scratch.entries);
        }
        if changed {
            self.write_entries(original, idx, &scratch.entries, out);
        } else {
            write_line(original, out);
        }
    }

    /// The end of the key of the original that begins at `at`, and its name if an edit names it. It is most often that
    /// of the previous original.
    #[inline]
    fn key_at(
        &self,
        original: &[u8],
        at: usize,
        ordinal: usize,
        shape: &mut Vec<(Box<[u8]>, Option<NameIdx>)>,
    ) -> (usize, Option<NameIdx>) {
        if let Some((expected, name)) = shape.get(ordinal)
            && original[at..].starts_with(expected)
        {
            return (at + expected.len(), *name);
        }
        let end = scan::string_end(original, at);
        (end, self.learn_name(&original[at..end], ordinal, shape))
    }

    #[inline(never)]
    fn learn_name(
        &self,
        key: &[u8],
        ordinal: usize,
        shape: &mut Vec<(Box<[u8]>, Option<NameIdx>)>,
    ) -> Option<NameIdx> {
        let text = scan::key_text(key);
        let name = std::str::from_utf8(&text).ok().and_then(|text| self.names.get(text)).copied();
        if ordinal < SHAPE_MEMBERS_MAX && key.len() <= SHAPE_KEY_BYTES_MAX {
            if let Some(slot) = shape.get_mut(ordinal) {
                *slot = (key.into(), name);
            } else if shape.len() == ordinal {
                shape.push((key.into(), name));
            }
        }
        name
    }

    /// Applies one edit; false if nothing changed.
    fn apply(&self, op: &Op, idx: usize, entries: &mut Vec<Entry>) -> bool {
        let n_before = entries.len();
        match op {
            Op::Keep(names) => {
                entries.retain(|entry| entry.name.is_some_and(|name| names.contains(&name)));
                entries.len() < n_before
            }
            Op::Remove(name) => {
                entries.retain(|entry| entry.name != Some(*name));
                entries.len() < n_before
            }
            Op::Rename { from, to } => {
                // Of members with the same key the last one counts, as everywhere.
                let Some(last) = entries.iter().rposition(|entry| entry.name == Some(*from)) else {
                    return false;
                };
                entries[last].name = Some(*to);
                entries[last].own_key = false;
                keep_one(entries, last, [*from, *to]);
                true
            }
            Op::Set { name, column } => {
                if self.writers[*column].is_null(idx) {
                    return self.apply(&Op::Remove(*name), idx, entries);
                }
                let value = Value::Column(*column);
                match entries.iter().position(|entry| entry.name == Some(*name)) {
                    Some(first) => {
                        entries[first].value = value;
                        keep_one(entries, first, [*name, *name]);
                    }
                    None => {
                        entries.push(Entry { name: Some(*name), value, own_key: false, range: 0..0 });
                    }
                }
                true
            }
        }
    }

    fn write_entries(&self, original: &[u8], idx: usize, entries: &[Entry], out: &mut Vec<u8>) {
        out.push(b'{');
        let mut rest = entries;
        while let Some((first, mut behind)) = rest.split_first() {
            if rest.len() < entries.len() {
                out.push(b',');
            }
            if first.untouched() {
                // Neighbours that are still neighbours go in one piece, with what lies between them.
                let mut end = first.range.end;
                while let Some((next, after)) = behind.split_first()
                    && next.untouched()
                    && is_comma(&original[end..next.range.start.max(end)])
                {
                    end = next.range.end;
                    behind = after;
                }
                write_line(&original[first.range.start..end], out);
            } else {
                self.write_entry(original, idx, first, out);
            }
            rest = behind;
        }
        out.push(b'}');
    }

    fn write_entry(&self, original: &[u8], idx: usize, entry: &Entry, out: &mut Vec<u8>) {
        match (&entry.value, entry.name) {
            (Value::Original(value), Some(name)) if !entry.own_key => {
                out.extend_from_slice(&self.prefixes[usize::from(name)]);
                write_line(&original[value.clone()], out);
            }
            (Value::Original(_), _) => write_line(&original[entry.range.clone()], out),
            (Value::Column(column), name) => {
                let name = name.expect("only an edit, which has a name, puts a column in");
                out.extend_from_slice(&self.prefixes[usize::from(name)]);
                self.writers[*column].write(idx, out);
            }
        }
    }
}

impl Entry {
    fn untouched(&self) -> bool {
        self.own_key && matches!(self.value, Value::Original(_))
    }
}

/// Removes the entries with one of the names, except the one at `kept`.
fn keep_one(entries: &mut Vec<Entry>, kept: usize, names: [NameIdx; 2]) {
    let mut at = 0;
    entries.retain(|entry| {
        at += 1;
        at - 1 == kept || !entry.name.is_some_and(|name| names.contains(&name))
    });
}

/// Whether nothing but a comma and white space lies between two members, so that no member does.
fn is_comma(between: &[u8]) -> bool {
    let comma = scan::skip_space(between, 0);
    between.get(comma) == Some(&b',') && scan::skip_space(between, comma + 1) == between.len()
}

/// What the column that `Set { key }` put in is called after `later` edits; `None` if it is gone.
fn final_name<'a>(key: &'a str, later: &'a [Edit]) -> Option<&'a str> {
    let mut name = key;
    for edit in later {
        match edit {
            Edit::Keep { keys } if !keys.iter().any(|key| key == name) => return None,
            Edit::Remove { key } if key == name => return None,
            Edit::Rename { from, to } if from == name => name = to,
            Edit::Rename { to, .. } if to == name => return None,
            _ => {}
        }
    }
    Some(name)
}
