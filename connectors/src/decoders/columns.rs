//! Columns of decoders that cut text into fields: flat while a chunk is decoded, nested objects when it is done.
//!
//! A decoder pushes what a message has and ends the row; what it did not push is null. An object all of whose members
//! are null is null itself, so that documents have no empty objects.

use std::mem;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBufferBuilder, Float64Array, Int64Array, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use logdrive_schemas::component::{ConfigError, Span, nearest};
use logdrive_schemas::{FieldType, RowSchema};

use super::views::{ArenaBuffers, View};

/// The columns of one decoder, by type: a [`Slot`] says which.
#[derive(Default)]
pub(crate) struct Columns {
    /// Text and addresses.
    pub(crate) texts: Vec<Column<View>>,
    /// Integers, and points in time as microseconds since the Unix epoch.
    pub(crate) integers: Vec<Column<i64>>,
    /// Floats.
    pub(crate) floats: Vec<Column<f64>>,
    tree: Vec<Tree>,
    n_rows: usize,
}

/// One column while it is filled.
#[derive(Default)]
pub(crate) struct Column<T> {
    values: Vec<T>,
    /// The rows without a value: a row that has one costs nothing more.
    nulls: Vec<u32>,
}

/// Where a field of the schema gets its values from.
enum Tree {
    Float(usize),
    Integer(usize),
    Object(Vec<Self>),
    /// When the message was received.
    Received,
    Text(usize),
    Time(usize),
}

/// Which column of [`Columns`] a field is, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Of `floats`.
    Float(usize),
    /// Of `integers`.
    Integer(usize),
    /// Of `texts`: an address.
    Ip(usize),
    /// Of `texts`.
    Text(usize),
    /// Of `integers`: a point in time.
    Time(usize),
}

/// A field of the declared schema that is no object.
pub(crate) struct Declared {
    /// The names from the top.
    pub(crate) path: Vec<String>,
    /// Its column.
    pub(crate) slot: Slot,
}

impl Declared {
    /// The names with dots between them, as people write it.
    pub(crate) fn name(&self) -> String {
        self.path.join(".")
    }

    /// The field cannot be filled, `because`.
    pub(crate) fn mismatch(&self, decoder: &str, because: &str) -> ConfigError {
        let message = format!("the `{decoder}` decoder cannot fill the field `{}`: {because}", self.name());
        ConfigError::new("config::schema_mismatch", Span::default(), message)
    }

    /// The field is none of those that the decoder has.
    pub(crate) fn unknown(&self, decoder: &str, valid: &[&str]) -> ConfigError {
        let error = self.mismatch(decoder, "it has no such field");
        match nearest(&self.name(), valid) {
            Some(near) => error.with_help(format!("did you mean `{near}`?")),
            None => error.with_help(format!("it has: {}", valid.join(", "))),
        }
    }
}

impl Slot {
    /// The type of the field as YAML has it.
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            Self::Float(_) => "float64",
            Self::Integer(_) => "int64",
            Self::Ip(_) => "ip",
            Self::Text(_) => "string",
            Self::Time(_) => "timestamp",
        }
    }
}

impl<T: Copy + Default> Column<T> {
    /// Appends the row's value. Of several for one row the first counts.
    #[inline]
    pub(crate) fn push(&mut self, value: T) {
        self.values.push(value);
    }

    #[inline]
    fn end_row(&mut self, n_rows: usize) {
        if self.values.len() < n_rows {
            self.nulls.push(self.values.len() as u32);
            self.values.push(T::default());
        } else if self.values.len() > n_rows {
            self.truncate(n_rows);
        }
    }

    /// Removes what was pushed since row `n_rows` began; nulls are only added when a row ends.
    fn truncate(&mut self, n_rows: usize) {
        self.values.truncate(n_rows);
    }

    fn reserve(&mut self, n_rows: usize) {
        self.values.reserve(n_rows);
    }

    fn finish(&mut self) -> (Vec<T>, Option<NullBuffer>) {
        let values = mem::take(&mut self.values);
        if self.nulls.is_empty() {
            return (values, None);
        }
        let mut valid = BooleanBufferBuilder::new(values.len());
        valid.append_n(values.len(), true);
        self.nulls.drain(..).for_each(|row| valid.set_bit(row as usize, false));
        (values, Some(NullBuffer::new(valid.finish())))
    }
}

impl Columns {
    /// Columns for every field of `schema`, and the fields.
    ///
    /// # Errors
    /// If a field has a type that text is not cut into.
    pub(crate) fn declare(schema: &RowSchema, decoder: &str) -> Result<(Self, Vec<Declared>), ConfigError> {
        let mut columns = Self::default();
        let mut declared = Vec::new();
        columns.tree = columns.declare_all(&schema.fields, &mut Vec::new(), &mut declared, decoder)?;
        Ok((columns, declared))
    }

    fn declare_all(
        &mut self,
        fields: &[(String, FieldType)],
        path: &mut Vec<String>,
        declared: &mut Vec<Declared>,
        decoder: &str,
    ) -> Result<Vec<Tree>, ConfigError> {
        let mut tree = Vec::with_capacity(fields.len());
        for (name, field_type) in fields {
            path.push(name.clone());
            let slot = match field_type {
                FieldType::Float64 => Slot::Float(added(&mut self.floats)),
                FieldType::Int64 => Slot::Integer(added(&mut self.integers)),
                FieldType::Ip => Slot::Ip(added(&mut self.texts)),
                FieldType::Object(members) => {
                    tree.push(Tree::Object(self.declare_all(members, path, declared, decoder)?));
                    path.pop();
                    continue;
                }
                FieldType::String => Slot::Text(added(&mut self.texts)),
                FieldType::Timestamp => Slot::Time(added(&mut self.integers)),
                FieldType::Boolean | FieldType::Decimal(..) | FieldType::GeoPoint | FieldType::List(_) => {
                    let message = format!("the `{decoder}` decoder has no `{}` of this type", path.join("."));
                    return Err(ConfigError::new("config::schema_mismatch", Span::default(), message)
                        .with_help("types: float64, int64, ip, string, timestamp, or a nested map"));
                }
            };
            tree.push(match slot {
                Slot::Float(idx) => Tree::Float(idx),
                Slot::Integer(idx) => Tree::Integer(idx),
                Slot::Ip(idx) | Slot::Text(idx) => Tree::Text(idx),
                Slot::Time(idx) => Tree::Time(idx),
            });
            declared.push(Declared { path: path.clone(), slot });
            path.pop();
        }
        Ok(tree)
    }

    /// Fills a top-level time column with when the messages were received.
    pub(crate) fn fill_with_received(&mut self, time: usize) {
        for tree in &mut self.tree {
            if matches!(tree, Tree::Time(idx) if *idx == time) {
                *tree = Tree::Received;
            }
        }
    }

    /// Makes room for this many rows.
    pub(crate) fn reserve(&mut self, n_rows: usize) {
        self.texts.iter_mut().for_each(|column| column.reserve(n_rows));
        self.integers.iter_mut().for_each(|column| column.reserve(n_rows));
        self.floats.iter_mut().for_each(|column| column.reserve(n_rows));
    }

    /// The row is complete.
    #[inline]
    pub(crate) fn end_row(&mut self) {
        self.n_rows += 1;
        let n_rows = self.n_rows;
        self.texts.iter_mut().for_each(|column| column.end_row(n_rows));
        self.integers.iter_mut().for_each(|column| column.end_row(n_rows));
        self.floats.iter_mut().for_each(|column| column.end_row(n_rows));
    }

    /// Removes what was pushed since the last row.
    #[cold]
    pub(crate) fn drop_row(&mut self) {
        let n_rows = self.n_rows;
        self.texts.iter_mut().for_each(|column| column.truncate(n_rows));
        self.integers.iter_mut().for_each(|column| column.truncate(n_rows));
        self.floats.iter_mut().for_each(|column| column.truncate(n_rows));
    }

    /// Makes arrays for `fields` of all rows and starts anew.
    pub(crate) fn finish(
        &mut self,
        fields: &Fields,
        buffers: &ArenaBuffers,
        received_at: i64,
    ) -> Vec<ArrayRef> {
        let tree = mem::take(&mut self.tree);
        let arrays = tree
            .iter()
            .zip(fields)
            .map(|(tree, field)| self.array(tree, field, buffers, received_at))
            .collect();
        self.tree = tree;
        self.n_rows = 0;
        arrays
    }

    fn array(&mut self, tree: &Tree, field: &Field, buffers: &ArenaBuffers, received_at: i64) -> ArrayRef {
        match tree {
            Tree::Float(idx) => {
                let (values, nulls) = self.floats[*idx].finish();
                Arc::new(Float64Array::new(values.into(), nulls))
            }
            Tree::Integer(idx) => {
                let (values, nulls) = self.integers[*idx].finish();
                Arc::new(Int64Array::new(values.into(), nulls))
            }
            Tree::Object(members) => {
                let DataType::Struct(fields) = field.data_type() else {
                    unreachable!("an object column has a struct field")
                };
                if members.is_empty() {
                    let nulls = NullBuffer::new_null(self.n_rows);
                    return Arc::new(StructArray::new_empty_fields(self.n_rows, Some(nulls)));
                }
                let arrays: Vec<_> = members
                    .iter()
                    .zip(fields)
                    .map(|(tree, field)| self.array(tree, field, buffers, received_at))
                    .collect();
                let nulls = all_null(&arrays);
                Arc::new(StructArray::new(fields.clone(), arrays, nulls))
            }
            Tree::Received => {
                let times = TimestampMicrosecondArray::from_value(received_at, self.n_rows);
                Arc::new(times.with_timezone("UTC"))
            }
            Tree::Text(idx) => {
                let (values, nulls) = self.texts[*idx].finish();
                Arc::new(buffers.string_view_array(values, nulls))
            }
            Tree::Time(idx) => {
                let (values, nulls) = self.integers[*idx].finish();
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
        }
    }
}

fn added<T: Default>(columns: &mut Vec<T>) -> usize {
    columns.push(T::default());
    columns.len() - 1
}

/// Where every one of `arrays` is null.
fn all_null(arrays: &[ArrayRef]) -> Option<NullBuffer> {
    let mut valid = arrays.first()?.nulls()?.inner().clone();
    for array in &arrays[1..] {
        valid = &valid | array.nulls()?.inner();
    }
    let nulls = NullBuffer::new(valid);
    (nulls.null_count() > 0).then_some(nulls)
}

/// Adds the field at `path` to a list of fields, with the objects around it.
pub(crate) fn add_field(fields: &mut Vec<(String, FieldType)>, path: &str, field_type: FieldType) {
    let Some((object, rest)) = path.split_once('.') else {
        if !fields.iter().any(|(name, _)| name == path) {
            fields.push((path.into(), field_type));
        }
        return;
    };
    if !fields.iter().any(|(name, _)| name == object) {
        fields.push((object.into(), FieldType::Object(Vec::new())));
    }
    if let Some((_, FieldType::Object(members))) = fields.iter_mut().find(|(name, _)| name == object) {
        add_field(members, rest, field_type);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::buffer::Buffer;
    use arrow::datatypes::Int64Type;

    use super::*;
    use crate::decoders::views::Arena;

    #[test]
    fn rows_have_nulls_where_nothing_was_pushed() {
        let mut fields = Vec::new();
        for (path, field_type) in
            [("a.b", FieldType::String), ("a.c", FieldType::Int64), ("t", FieldType::Timestamp)]
        {
            add_field(&mut fields, path, field_type);
        }
        let schema = RowSchema::of_fields(fields);
        let (mut columns, declared) = Columns::declare(&schema, "test").unwrap();
        let names: Vec<_> = declared.iter().map(Declared::name).collect();
        assert_eq!(names, ["a.b", "a.c", "t"]);
        columns.fill_with_received(1);
        let arena = Arena::new(Buffer::from(&b""[..]));
        columns.integers[0].push(1);
        columns.end_row();
        columns.end_row();
        columns.integers[0].push(3);
        columns.drop_row();
        columns.integers[0].push(4);
        columns.integers[0].push(5);
        columns.end_row();
        let arrays = columns.finish(schema.arrow().fields(), &arena.finish(), 7);
        let object = arrays[0].as_struct();
        assert_eq!((object.null_count(), object.is_null(1)), (1, true));
        let numbers: Vec<_> = object.column(1).as_primitive::<Int64Type>().iter().collect();
        assert_eq!(numbers, [Some(1), None, Some(4)]);
        assert_eq!(object.column(0).null_count(), 3);
        assert_eq!((arrays[1].len(), arrays[1].null_count()), (3, 0));
    }
}
