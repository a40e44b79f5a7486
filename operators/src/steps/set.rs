//! `set`: computes columns.

use std::sync::Arc;

use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, SchemaRef};
use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Batch, Layout, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::{Entries, column_type, compile, entry, put, put_column};
use crate::expression::Expression;
use crate::rows;
use crate::step::{Emit, Stage, Step, StepConfig, StepContext, StepPlan};

/// Sets fields to the values of SQL expressions, from top to bottom: a later one sees what an earlier one set.
/// A field of that name is replaced, otherwise it is added; a `NULL` removes it from the document. A row that an
/// expression fails on (a division by zero) is a reject.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Set(
    /// Field name to SQL.
    pub Entries<String>,
);

impl Component for Set {
    const NAME: &'static str = "set";
    const EXAMPLE: &'static str = "set: { latency_s: latency_ms / 1000.0 }";
}

impl StepConfig for Set {
    fn plan(self, node: &Node, input: &Stage, cx: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut stage = input.clone();
        let (mut reads, mut writes) = (Vec::new(), Vec::<String>::new());
        let mut assignments = Vec::new();
        let mut errors = Vec::new();
        for (name, sql) in self.0.0 {
            let expr = match compile(&sql, entry(node, &name), &stage.schema, &*cx.compiler) {
                Ok(expr) => expr,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            reads.extend(expr.columns().iter().filter(|c| !writes.contains(c)).cloned());
            let data_type = column_type(expr.data_type());
            // A field that is another one as it is keeps what only the schema knows of it (`ip`, `geo_point`).
            let field = match stage.schema.field_with_name(sql.trim()) {
                Ok(same) if *same.data_type() == data_type => same.clone().with_name(&name),
                _ => Field::new(&name, data_type.clone(), true),
            };
            let (next, idx) = put(&stage, field);
            stage = next;
            let schema = Arc::clone(&stage.schema);
            let convert = (data_type != *expr.data_type()).then_some(data_type);
            assignments.push(Assignment { expr, idx, schema, convert });
            writes.push(name);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let layout = Arc::clone(&stage.layout);
        Ok(StepPlan {
            output: stage,
            reads,
            writes,
            renames: Vec::new(),
            reloads: Vec::new(),
            build: Box::new(move || {
                Box::new(Assign { assignments: assignments.clone(), layout: Arc::clone(&layout) })
            }),
        })
    }
}

#[derive(Clone, Debug)]
struct Assignment {
    expr: Arc<dyn Expression>,
    /// Where the column goes.
    idx: usize,
    /// The columns behind this assignment.
    schema: SchemaRef,
    /// The column's type, if it is not the expression's.
    convert: Option<DataType>,
}

#[derive(Debug)]
struct Assign {
    assignments: Vec<Assignment>,
    layout: Arc<Layout>,
}

impl Step for Assign {
    fn apply(&mut self, mut batch: Batch, out: &mut Emit) {
        for Assignment { expr, idx, schema, convert } in &self.assignments {
            let (good, values, rejects) = rows::evaluate(&**expr, &batch);
            out.rejects.extend(reject::of_batch(&batch, &rejects));
            let (Some(good), Some(mut values)) = (good, values) else { return };
            if let Some(data_type) = convert {
                values = cast(&values, data_type).expect("text becomes a view whatever it holds");
            }
            let rows = put_column(good.rows(), *idx, values, schema);
            batch = good.with_rows(rows, Arc::clone(&self.layout));
        }
        out.rows.push(batch);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use logdrive_schemas::Edit;

    use super::super::testing::*;

    #[test]
    fn later_ones_read_earlier_ones_in_file_order() {
        let input = batch(&[("z", int(&[Some(8), Some(9)])), ("n", int(&[Some(2), Some(3)]))]);
        let (plan, out) = run_plan("set: { q: z / n, a: q / n, z: a }", &input);
        assert_eq!(names(&plan.output), ["z", "n", "q", "a"]);
        let rows = out.rows[0].rows();
        assert_eq!(rows.column(3).as_primitive::<Int64Type>().values()[..], [2, 1]);
        assert_eq!(rows.column(0), rows.column(3));
        assert_eq!(plan.reads, ["z", "n", "n"]);
        assert_eq!(plan.writes, ["q", "a", "z"]);
        let set = |key: &str| Edit::Set { key: key.into() };
        assert_eq!(edits(&plan.output), [set("q"), set("a"), set("z")]);
    }

    #[test]
    fn one_bad_row_does_not_poison_its_batch() {
        let divisors: Vec<Option<i64>> = (0..1000).map(|n| Some(i64::from(n != 17 && n != 500))).collect();
        let input = batch(&[("n", int(&vec![Some(7); 1000])), ("d", int(&divisors))]);
        let out = run("set: { q: n / d }", &input);
        let expected: Vec<u64> = (0..1000).filter(|n| *n != 17 && *n != 500).collect();
        assert_eq!(ids(&out.rows), expected);
        assert_eq!(ids(&out.rejects), [17, 500]);
        assert!(reason(&out.rejects[0], 0).starts_with("expression_failed: division by zero"));
        assert_eq!(out.rows[0].rows().column(2).as_primitive::<Int64Type>().values()[..], [7; 998]);
    }

    #[test]
    fn a_batch_of_bad_rows_only_leaves_nothing() {
        let input = batch(&[("n", int(&[Some(1), Some(2), Some(3)])), ("d", int(&[Some(0); 3]))]);
        let out = run("set: { q: n / d, r: n }", &input);
        assert_eq!((out.rows.len(), ids(&out.rejects).len()), (0, 3));
    }

    #[test]
    fn text_becomes_a_view() {
        let (plan, out) = run_plan("set: { s: \"'x'\" }", &batch(&[("n", int(&[Some(1)]))]));
        assert_eq!(plan.output.schema.field(1).data_type(), &arrow::datatypes::DataType::Utf8View);
        assert_eq!(out.rows[0].rows().column(1).as_string_view().value(0), "x");
    }

    #[test]
    fn every_error_is_told() {
        let errors = plan_errors("set: { a: nope, b: nix }", &batch(&[("n", int(&[Some(1)]))]));
        let places: Vec<&str> = errors.iter().map(|(_, at)| at.as_str()).collect();
        assert_eq!(places, ["nope", "nix"]);
    }
}
