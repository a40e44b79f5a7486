//! `where`: keeps the rows that a condition is true for.

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::datatypes::DataType;
use logdrive_schemas::component::{Component, ConfigError, Node};
use logdrive_schemas::{Batch, reject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::compile;
use crate::expression::Expression;
use crate::rows;
use crate::step::{Emit, Stage, Step, StepConfig, StepContext, StepPlan};

/// Keeps the rows for which the SQL condition is true; rows for which it is false or `NULL` are filtered out, and
/// counted. A row that the condition fails on (a division by zero) is a reject.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Where(
    /// The condition, in SQL.
    pub String,
);

impl Component for Where {
    const NAME: &'static str = "where";
    const EXAMPLE: &'static str = "where: level <> 'DEBUG'";
}

impl StepConfig for Where {
    fn plan(self, node: &Node, input: &Stage, cx: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let condition = condition(&self.0, node, input, cx).map_err(|error| vec![error])?;
        Ok(StepPlan {
            output: input.clone(),
            reads: condition.columns().to_vec(),
            writes: Vec::new(),
            renames: Vec::new(),
            reloads: Vec::new(),
            build: Box::new(move || Box::new(Filter { condition: Arc::clone(&condition) })),
        })
    }
}

fn condition(
    sql: &str,
    node: &Node,
    input: &Stage,
    cx: &StepContext,
) -> Result<Arc<dyn Expression>, ConfigError> {
    let condition = compile(sql, node, &input.schema, &*cx.compiler)?;
    must_be_boolean(&*condition, node)?;
    Ok(condition)
}

/// A condition is true or false.
pub(crate) fn must_be_boolean(condition: &dyn Expression, node: &Node) -> Result<(), ConfigError> {
    match condition.data_type() {
        DataType::Boolean => Ok(()),
        other => {
            let message = format!("a condition must be true or false, this is of type {other}");
            Err(ConfigError::new("sql::type", node.span, message)
                .with_help("compare it with something, such as `status >= 500`"))
        }
    }
}

/// The rows of `batch` for which `condition` is true, rejects for those it fails on, and how many it is not true for.
pub(crate) fn filter(condition: &dyn Expression, batch: &Batch) -> (Option<Batch>, Option<Batch>, usize) {
    let (good, values, rejects) = rows::evaluate(condition, batch);
    let rejects = reject::of_batch(batch, &rejects);
    let (Some(good), Some(values)) = (good, values) else { return (None, rejects, 0) };
    let mask = values.as_any().downcast_ref::<BooleanArray>().expect("planned to be boolean");
    let kept = good.filter(mask).expect("Arrow filters columns of every type that a schema has");
    let n_filtered = good.num_rows() - kept.as_ref().map_or(0, Batch::num_rows);
    (kept, rejects, n_filtered)
}

#[derive(Debug)]
struct Filter {
    condition: Arc<dyn Expression>,
}

impl Step for Filter {
    fn apply(&mut self, batch: Batch, out: &mut Emit) {
        let (kept, rejects, n_filtered) = filter(&*self.condition, &batch);
        out.rows.extend(kept);
        out.rejects.extend(rejects);
        out.n_filtered += n_filtered;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[test]
    fn null_counts_as_false_and_what_is_removed_is_counted() {
        let out = run("where: level = 'a'", &batch(&[("level", text(&[Some("a"), None, Some("b")]))]));
        assert_eq!(ids(&out.rows), [0]);
        assert_eq!((out.n_filtered, out.rejects.len()), (2, 0));
    }

    #[test]
    fn a_condition_must_be_boolean() {
        let errors = plan_errors("where: level", &batch(&[("level", text(&[None]))]));
        assert_eq!(errors[0].0, "sql::type");
    }

    #[test]
    fn an_error_points_into_the_sql() {
        let errors = plan_errors("where: levle = 'a'", &batch(&[("level", text(&[None]))]));
        assert_eq!(errors, [("sql::unknown_column", "levle".to_owned())]);
    }
}
