//! Joins rows with a table from a file: this is how tenant data comes in.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StructArray, UInt32Array};
use arrow::compute::{cast, filter, take};
use arrow::datatypes::{DataType, Field, Schema};
use logdrive_schemas::component::{Component, ConfigError, Node, NodeKind, Span, bytes, nearest};
use logdrive_schemas::{Batch, Reject, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::table::Table;
use super::table_columns::{column_names, replace_columns, with_column};
use super::table_file;
use crate::step::{Emit, Reloadable, Stage, Step, StepConfig, StepContext, StepPlan};

/// Adds columns of a table to each row, found by a key. The table is read again when its file changes (replace it by
/// renaming); a version that is broken, or whose columns have other types, is not used.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// The file: `.csv` with a header, `.json` or `.ndjson` (an array or a sequence of objects), or `.parquet`.
    pub table: String,
    /// The field whose value is looked up, compared as text.
    pub on: String,
    /// The columns of the table to add; a field of the same name is replaced.
    pub add: Vec<String>,
    /// Adds the columns as members of this one object, instead of each by itself.
    #[serde(default)]
    pub into: Option<String>,
    /// The column of the table that `on` is looked for in; default: the one of the same name. Its values must differ.
    #[serde(default)]
    pub key: Option<String>,
    /// What becomes of a row whose key is not in the table.
    #[serde(default)]
    pub missing: Missing,
    /// The most memory that the table may take.
    #[serde(default = "max_bytes_default", deserialize_with = "bytes")]
    #[schemars(with = "String")]
    pub max_bytes: u64,
}

/// What becomes of a row whose key is not in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// It goes on, with nulls.
    #[default]
    Null,
    /// It goes to the `rejects` stream.
    Reject,
}

fn max_bytes_default() -> u64 {
    256 << 20
}

impl Component for Lookup {
    const NAME: &'static str = "lookup";
    const EXAMPLE: &'static str =
        "lookup: { table: examples/tenants.csv, on: tenant, add: [plan, region] }\n";
}

/// A table in memory.
#[derive(Debug)]
struct Rows {
    columns: RecordBatch,
    row_of_key: HashMap<Box<str>, u32>,
}

impl Rows {
    /// Reads the file. The next version of a table keeps the types of the one before.
    fn read(path: &Path, key: &str, max_bytes: u64, before: Option<&Self>) -> Result<Self, String> {
        let types = before.map(|rows| rows.columns.schema());
        let columns = table_file::read(path, key, max_bytes, types.as_ref())?;
        let n_bytes = columns.get_array_memory_size() as u64;
        if n_bytes > max_bytes {
            return Err(format!("it takes {n_bytes} bytes of memory, `max_bytes` is {max_bytes}"));
        }
        let Some(keys) = columns.column_by_name(key) else {
            return Ok(Self { columns, row_of_key: HashMap::new() });
        };
        let keys = cast(keys, &DataType::Utf8View).map_err(|_| format!("`{key}` cannot be a key"))?;
        let mut row_of_key = HashMap::with_capacity(keys.len());
        for (idx, key) in keys.as_string_view().iter().enumerate() {
            let Some(key) = key else { continue };
            if row_of_key.insert(Box::from(key), idx as u32).is_some() {
                return Err(format!("the key `{key}` is listed twice"));
            }
        }
        Ok(Self { columns, row_of_key })
    }

    fn has_types_of(&self, other: &Self, names: &[String]) -> bool {
        names.iter().all(|name| {
            let type_in = |rows: &Self| rows.columns.column_by_name(name).map(|c| c.data_type().clone());
            type_in(self) == type_in(other)
        })
    }
}

impl StepConfig for Lookup {
    fn plan(self, node: &Node, input: &Stage, cx: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let span = |key: &str| node.get(key).map_or(node.span, |value| value.span);
        if input.schema.field_with_name(&self.on).is_err() {
            let (what, valid) = (format!("stream `{}`", cx.stream), column_names(input));
            let code = "config::unknown_field";
            errors.push(ConfigError::unknown_name(code, span("on"), "field", &self.on, &what, &valid));
        }
        if self.add.is_empty() {
            let message = "`add` names no column, so the lookup does nothing";
            errors.push(ConfigError::new("config::invalid_value", span("add"), message));
        }
        let key = self.key.clone().unwrap_or_else(|| self.on.clone());
        let (wanted, key_of_load, max_bytes) = (self.add.clone(), key.clone(), self.max_bytes);
        let table = Table::open(cx.working_dir.join(&self.table), move |path, before: Option<&Rows>| {
            let rows = Rows::read(path, &key_of_load, max_bytes, before)?;
            match before {
                Some(before) if !rows.has_types_of(before, &wanted) => {
                    Err("its columns have other types than before, or are missing".into())
                }
                _ => Ok(rows),
            }
        });
        let table = match table {
            Ok(table) => table,
            Err(reason) => {
                let message = format!("cannot use table `{}`: {reason}", self.table);
                let error = ConfigError::new("config::bad_file", span("table"), message);
                errors.push(match near_file(&cx.working_dir, &self.table) {
                    Some(near) => error.with_help(format!("did you mean `{near}`?")),
                    None => error,
                });
                return Err(errors);
            }
        };
        self.check_columns(node, &key, &table.current().columns.schema(), &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(self.plan_with(table, input))
    }
}

impl Lookup {
    fn check_columns(&self, node: &Node, key: &str, schema: &Schema, errors: &mut Vec<ConfigError>) {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut check = |name: &str, span: Span| {
            if !names.contains(&name) {
                let what = format!("table `{}`", self.table);
                let code = "config::unknown_column";
                errors.push(ConfigError::unknown_name(code, span, "column", name, &what, &names));
            }
        };
        let of_key = node.get("key").or_else(|| node.get("on"));
        check(key, of_key.map_or(node.span, |value| value.span));
        let items = match node.get("add") {
            Some(Node { kind: NodeKind::Seq(items), .. }) => &items[..],
            _ => &[],
        };
        for (idx, name) in self.add.iter().enumerate() {
            check(name, items.get(idx).map_or(node.span, |item| item.span));
        }
    }

    /// The plan, once everything is known to be there.
    fn plan_with(self, table: Arc<Table<Rows>>, input: &Stage) -> StepPlan {
        let added = added_fields(&table.current().columns.schema(), &self.add);
        let mut stage = input.clone();
        match &self.into {
            Some(into) => {
                let members = DataType::Struct(added.into_iter().collect());
                stage = with_column(&stage, into, Field::new(into, members, true));
            }
            None => {
                for field in &added {
                    stage = with_column(&stage, field.name(), field.as_ref().clone());
                }
            }
        }
        let writes = self.into.as_ref().map_or_else(|| self.add.clone(), |into| vec![into.clone()]);
        let (config, output, instance_of) = (Arc::new(self), stage.clone(), Arc::clone(&table));
        StepPlan {
            output: stage,
            reads: vec![config.on.clone()],
            writes,
            renames: Vec::new(),
            build: Box::new(move || {
                Box::new(LookupStep {
                    config: Arc::clone(&config),
                    stage: output.clone(),
                    table: Arc::clone(&instance_of),
                })
            }),
            reloads: vec![table as Arc<dyn Reloadable>],
        }
    }
}

fn added_fields(schema: &Schema, names: &[String]) -> Vec<Arc<Field>> {
    let field = |name: &String| {
        let field = schema.field_with_name(name).ok()?;
        Some(Arc::new(field.clone().with_nullable(true)))
    };
    names.iter().filter_map(field).collect()
}

struct LookupStep {
    config: Arc<Lookup>,
    stage: Stage,
    table: Arc<Table<Rows>>,
}

impl Step for LookupStep {
    fn apply(&mut self, batch: Batch, out: &mut Emit) {
        let rows = self.table.current();
        let mut indices = self.find(&batch, &rows);
        let mut batch = batch;
        if self.config.missing == Missing::Reject && indices.null_count() > 0 {
            out.rejects.extend(self.reject_missing(&batch, &indices));
            let found: BooleanArray = indices.iter().map(|idx| Some(idx.is_some())).collect();
            let kept = batch.filter(&found).expect("the mask is as long as the batch");
            let Some(kept) = kept else { return };
            batch = kept;
            let found = filter(&indices, &found).expect("both were made for the same rows");
            indices = found.as_primitive().clone();
        }
        let column = |name: &String| -> Option<ArrayRef> {
            let column = rows.columns.column_by_name(name)?;
            Some(take(column, &indices, None).expect("indices are rows of this table"))
        };
        let columns: Vec<ArrayRef> = self.config.add.iter().filter_map(column).collect();
        if let Some(into) = &self.config.into {
            let fields = added_fields(&rows.columns.schema(), &self.config.add);
            let all = StructArray::new(fields.into_iter().collect(), columns, indices.nulls().cloned());
            batch = replace_columns(batch, vec![(into, Arc::new(all))], &self.stage);
        } else {
            let named = self.config.add.iter().map(String::as_str).zip(columns);
            batch = replace_columns(batch, named.collect(), &self.stage);
        }
        out.rows.push(batch);
    }
}

impl LookupStep {
    /// The row of the table for each row of the batch.
    fn find(&self, batch: &Batch, rows: &Rows) -> UInt32Array {
        let keys = batch.rows().column_by_name(&self.config.on);
        let Some(keys) = keys.and_then(|keys| cast(keys, &DataType::Utf8View).ok()) else {
            return UInt32Array::new_null(batch.num_rows());
        };
        let keys = keys.as_string_view();
        // Neighbours often have the same key.
        let mut last: (Option<&str>, Option<u32>) = (None, None);
        let mut indices = Vec::with_capacity(keys.len());
        for key in keys {
            if key != last.0 {
                last = (key, key.and_then(|key| rows.row_of_key.get(key).copied()));
            }
            indices.push(last.1);
        }
        indices.into()
    }

    fn reject_missing(&self, batch: &Batch, indices: &UInt32Array) -> Option<Batch> {
        let Lookup { table, on, .. } = &*self.config;
        let reason = format!("lookup_missing: the value of `{on}` is not in `{table}`");
        let missing = (0..batch.num_rows()).filter(|idx| indices.is_null(*idx));
        let rejects: Vec<Reject> = missing.map(|idx| Reject { idx, reason: reason.clone() }).collect();
        reject::of_batch(batch, &rejects)
    }
}

/// The file in the same folder whose name is most like the one that is missing.
fn near_file(working_dir: &Path, name: &str) -> Option<String> {
    let path = working_dir.join(name);
    if path.exists() {
        return None;
    }
    let entries = std::fs::read_dir(path.parent()?).ok()?;
    let names: Vec<String> =
        entries.take(1_000).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    nearest(path.file_name()?.to_str()?, &names).map(str::to_owned)
}

#[cfg(test)]
pub(in crate::steps) mod tests;
