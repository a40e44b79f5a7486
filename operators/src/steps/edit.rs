//! What several steps share: maps in file order, SQL in YAML, and edits of columns and of the document together.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use logdrive_schemas::component::{ConfigError, Node, Span, nearest};
use logdrive_schemas::{Edit, Layout};
use schemars::{JsonSchema, Schema as JsonSchemaOf, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::expression::{Compiler, Expression};
use crate::step::Stage;

/// A YAML map in the order of the file: steps apply their entries from top to bottom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        from.deserialize_map(InOrder(PhantomData))
    }
}

impl<V: JsonSchema> JsonSchema for Entries<V> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        BTreeMap::<String, V>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> JsonSchemaOf {
        BTreeMap::<String, V>::json_schema(generator)
    }
}

/// Compiles the SQL at `node`; an error names the place inside the SQL where the YAML shows it as it is.
pub(crate) fn compile(
    sql: &str,
    node: &Node,
    input: &Schema,
    compiler: &dyn Compiler,
) -> Result<Arc<dyn Expression>, ConfigError> {
    compiler.compile(sql, input).map_err(|error| error.in_configuration(node))
}

/// The node of entry `key`, or the whole if the configuration is not the map it is supposed to be.
pub(super) fn entry<'a>(node: &'a Node, key: &str) -> &'a Node {
    node.get(key).unwrap_or(node)
}

/// `name` is no column of `input`.
pub(crate) fn unknown_field(name: &str, span: Span, input: &Schema) -> ConfigError {
    let names: Vec<&str> = input.fields().iter().map(|f| f.name().as_str()).collect();
    let error = ConfigError::new("config::unknown_field", span, format!("unknown field `{name}`"));
    match nearest(name, &names) {
        Some(near) => error.with_help(format!("did you mean `{near}`?")),
        None => error.with_help(format!("declare it in the source's schema; declared: {}", names.join(", "))),
    }
}

/// The type that a computed column has in a batch: every kind of text is a view, and a bare `NULL` is text.
pub(super) fn column_type(computed: &DataType) -> DataType {
    match computed {
        DataType::Dictionary(_, value) => column_type(value),
        DataType::LargeUtf8 | DataType::Null | DataType::Utf8 => DataType::Utf8View,
        other => other.clone(),
    }
}

/// Puts `field` into `stage`, in the place of the column of that name or at the end; its index.
pub(super) fn put(stage: &Stage, field: Field) -> (Stage, usize) {
    let mut fields: Vec<Arc<Field>> = stage.schema.fields().iter().map(Arc::clone).collect();
    let layout = edited(&stage.layout, |edits| set(edits, field.name()));
    let idx = match stage.schema.index_of(field.name()) {
        Ok(idx) => {
            fields[idx] = Arc::new(field);
            idx
        }
        Err(_) => {
            fields.push(Arc::new(field));
            fields.len() - 1
        }
    };
    (Stage { schema: schema_of(stage, fields), layout }, idx)
}

/// `rows` with `column` at `idx` (at the end if that is where the columns end), as [`put`] planned.
pub(super) fn put_column(
    rows: &RecordBatch,
    idx: usize,
    column: ArrayRef,
    schema: &SchemaRef,
) -> RecordBatch {
    let mut columns = rows.columns().to_vec();
    match columns.get_mut(idx) {
        Some(place) => *place = column,
        None => columns.push(column),
    }
    build(rows.num_rows(), columns, schema)
}

/// A batch of columns that were made for `schema`.
pub(super) fn build(n_rows: usize, columns: Vec<ArrayRef>, schema: &SchemaRef) -> RecordBatch {
    let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .expect("the plan made the schema from the types of these columns")
}

/// A choice of the columns of the input, perhaps under other names.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Where each column of the output is in the input.
    pub(super) indices: Vec<usize>,
    /// The output.
    pub(super) stage: Stage,
}

impl Selection {
    /// The columns that `keep` wants, with the document edited alike.
    pub(super) fn of(stage: &Stage, keep: impl Fn(&str) -> bool, edit: impl FnOnce(&mut Vec<Edit>)) -> Self {
        let indices: Vec<usize> = stage
            .schema
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| keep(field.name()))
            .map(|(idx, _)| idx)
            .collect();
        let fields = indices.iter().map(|idx| Arc::clone(&stage.schema.fields()[*idx])).collect();
        let layout = edited(&stage.layout, edit);
        Self { indices, stage: Stage { schema: schema_of(stage, fields), layout } }
    }

    /// The chosen columns of `rows`.
    pub(super) fn apply(&self, rows: &RecordBatch) -> RecordBatch {
        let columns = self.indices.iter().map(|idx| Arc::clone(rows.column(*idx))).collect();
        build(rows.num_rows(), columns, &self.stage.schema)
    }
}

pub(super) fn schema_of(stage: &Stage, fields: Vec<Arc<Field>>) -> SchemaRef {
    Arc::new(Schema::new_with_metadata(fields, stage.schema.metadata().clone()))
}

/// The layout after `edit`; a document made of columns needs none.
fn edited(layout: &Arc<Layout>, edit: impl FnOnce(&mut Vec<Edit>)) -> Arc<Layout> {
    match &**layout {
        Layout::Columns => Arc::clone(layout),
        Layout::Original(edits) => {
            let mut edits = edits.clone();
            edit(&mut edits);
            Arc::new(Layout::Original(edits))
        }
    }
}

// `Edit::Set` reads the column of its name when the document is written, after the last step. So these keep the list
// true to the columns that there are then: a column that goes away takes its `Set` along, and a `Set` follows its
// column to a new name.

fn forget(edits: &mut Vec<Edit>, gone: impl Fn(&str) -> bool) -> bool {
    let n_before = edits.len();
    edits.retain(|edit| !matches!(edit, Edit::Set { key } if gone(key)));
    edits.len() < n_before
}

fn set(edits: &mut Vec<Edit>, name: &str) {
    forget(edits, |key| key == name);
    edits.push(Edit::Set { key: name.into() });
}

/// Removes members.
pub(super) fn remove(edits: &mut Vec<Edit>, names: &[String]) {
    forget(edits, |key| names.iter().any(|name| name == key));
    edits.extend(names.iter().map(|name| Edit::Remove { key: name.clone() }));
}

/// Keeps members.
pub(super) fn keep(edits: &mut Vec<Edit>, names: &[String]) {
    forget(edits, |key| !names.iter().any(|name| name == key));
    edits.push(Edit::Keep { keys: names.to_vec() });
}

/// Renames a member, over what was called `to` until now.
pub(super) fn rename(edits: &mut Vec<Edit>, from: &str, to: &str) {
    forget(edits, |key| key == to);
    let was_set = forget(edits, |key| key == from);
    edits.push(Edit::Rename { from: from.into(), to: to.into() });
    if was_set {
        edits.push(Edit::Set { key: to.into() });
    }
}
