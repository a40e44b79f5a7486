//! `add`: constant columns.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StringViewArray, StructArray,
    UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{concat, take};
use arrow::datatypes::{Field, Fields, SchemaRef};
use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Batch, Layout};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::edit::{Entries, entry, put, put_column};
use crate::step::{Emit, Stage, Step, StepConfig, StepContext, StepPlan};

/// Adds constants: text, numbers, booleans, lists of one kind of these, or nested maps. No SQL and no quoting; a
/// field of that name is replaced.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Add(
    /// Field name to value.
    pub Entries<Value>,
);

impl Component for Add {
    const NAME: &'static str = "add";
    const EXAMPLE: &'static str = "add: { env: prod }";
}

impl StepConfig for Add {
    fn plan(self, node: &Node, input: &Stage, _: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut stage = input.clone();
        let mut constants = Vec::new();
        let mut errors = Vec::new();
        let mut writes = Vec::new();
        for (name, value) in self.0.0 {
            match constant(&value) {
                Ok(value) => {
                    let (next, idx) = put(&stage, Field::new(&name, value.data_type().clone(), true));
                    stage = next;
                    constants.push((value, idx, Arc::clone(&stage.schema)));
                    writes.push(name);
                }
                Err(message) => {
                    let place = entry(node, &name);
                    let message = format!("{message}, found {}", place.describe());
                    errors.push(ConfigError::new("config::wrong_type", place.span, message));
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let layout = Arc::clone(&stage.layout);
        Ok(StepPlan {
            output: stage,
            reads: Vec::new(),
            writes,
            renames: Vec::new(),
            reloads: Vec::new(),
            build: Box::new(move || {
                Box::new(Constants { constants: constants.clone(), layout: Arc::clone(&layout) })
            }),
        })
    }
}

/// An array with the one value, or what would be one.
fn constant(value: &Value) -> Result<ArrayRef, &'static str> {
    Ok(match value {
        Value::Bool(b) => Arc::new(BooleanArray::from(vec![*b])),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Arc::new(Int64Array::from(vec![n])),
            (None, Some(n)) if n.is_finite() && !value.is_u64() => Arc::new(Float64Array::from(vec![n])),
            _ => return Err("expected a number of at most 64 bits, signed"),
        },
        Value::String(text) => Arc::new(StringViewArray::from(vec![text.as_str()])),
        Value::Array(items) => {
            let items = items.iter().map(constant).collect::<Result<Vec<_>, _>>()?;
            let Some(first) = items.first() else { return Err("expected a list that is not empty") };
            let parts: Vec<&dyn Array> = items.iter().map(AsRef::as_ref).collect();
            let all = concat(&parts).map_err(|_| "expected a list of values of one type")?;
            let field = Arc::new(Field::new("item", first.data_type().clone(), true));
            Arc::new(ListArray::new(field, OffsetBuffer::from_lengths([items.len()]), all, None))
        }
        Value::Object(members) => {
            if members.is_empty() {
                return Err("expected a map that is not empty");
            }
            let columns = members.values().map(constant).collect::<Result<Vec<_>, _>>()?;
            let field = |(name, column): (&String, &ArrayRef)| {
                Field::new(name.as_str(), column.data_type().clone(), true)
            };
            let fields: Fields = members.keys().zip(&columns).map(field).collect();
            Arc::new(StructArray::new(fields, columns, None))
        }
        Value::Null => return Err("expected a value (words such as `null`, `inf` and `nan` need quotes)"),
    })
}

#[derive(Debug)]
struct Constants {
    /// The value, where it goes, and the columns behind it.
    constants: Vec<(ArrayRef, usize, SchemaRef)>,
    layout: Arc<Layout>,
}

impl Step for Constants {
    fn apply(&mut self, batch: Batch, out: &mut Emit) {
        let mut rows = batch.rows().clone();
        let first = UInt32Array::from_value(0, rows.num_rows());
        for (value, idx, schema) in &self.constants {
            let column = take(value, &first, None).expect("the first of one value");
            rows = put_column(&rows, *idx, column, schema);
        }
        out.rows.push(batch.with_rows(rows, Arc::clone(&self.layout)));
    }
}

#[cfg(test)]
mod tests {
    use arrow::util::display::array_value_to_string;

    use super::super::testing::*;

    #[test]
    fn constants_of_every_kind() {
        let yaml = "add: { s: prod, q: '5', i: 5, f: 0.5, b: true, l: [1, 2], m: { x: y } }";
        let (plan, out) = run_plan(yaml, &batch(&[("n", int(&[Some(1), Some(2)])), ("s", int(&[None; 2]))]));
        assert_eq!(names(&plan.output), ["n", "s", "q", "i", "f", "b", "l", "m"]);
        let columns = out.rows[0].rows().columns();
        let row: Vec<String> = columns.iter().map(|c| array_value_to_string(c, 1).unwrap()).collect();
        assert_eq!(row, ["2", "prod", "5", "5", "0.5", "true", "[1, 2]", "{x: y}"]);
    }

    #[test]
    fn what_is_no_constant_is_an_error() {
        let input = batch(&[("n", int(&[Some(1)]))]);
        let errors = plan_errors("add: { a: null, b: [1, x], c: 18446744073709551615, d: [] }", &input);
        assert_eq!(errors.iter().map(|(code, _)| *code).collect::<Vec<_>>(), ["config::wrong_type"; 4]);
    }
}
