//! `rename`: other names for fields.

use std::sync::Arc;

use logdrive_schemas::component::{Component, ConfigError, Node};
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::{Entries, Selection, entry, rename, schema_of};
use super::remove::select;
use crate::step::{Stage, StepConfig, StepContext, StepPlan};

/// Renames fields, declared or not, from top to bottom. A field that had the new name until now is gone. A row that
/// does not have the field stays as it is.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Rename(
    /// The old name to the new name.
    pub Entries<String>,
);

impl Component for Rename {
    const NAME: &'static str = "rename";
    const EXAMPLE: &'static str = "rename: { msg: message }";
}

impl StepConfig for Rename {
    fn plan(self, node: &Node, input: &Stage, _: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut renames: Vec<(String, String)> = Vec::new();
        let mut selection = Selection::of(input, |_| true, |_| ());
        for (from, to) in self.0.0 {
            if to.is_empty() || renames.iter().any(|(_, other)| *other == to) {
                let message = format!("`{to}` is not a new name of its own");
                errors.push(ConfigError::new("config::invalid_value", entry(node, &from).span, message));
            } else if from != to {
                selection = renamed(&selection, &from, &to);
                renames.push((from, to));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(select(selection, renames))
    }
}

/// `selection` with one field renamed.
fn renamed(selection: &Selection, from: &str, to: &str) -> Selection {
    // What was called `to` goes, also if `from` is not a column: its document member is overwritten.
    let inner = Selection::of(&selection.stage, |name| name != to, |edits| rename(edits, from, to));
    let field = |field: &Arc<arrow::datatypes::Field>| {
        if field.name() == from { Arc::new(field.as_ref().clone().with_name(to)) } else { Arc::clone(field) }
    };
    let fields = inner.stage.schema.fields().iter().map(field).collect();
    Selection {
        indices: inner.indices.iter().map(|idx| selection.indices[*idx]).collect(),
        stage: Stage { schema: schema_of(&inner.stage, fields), layout: inner.stage.layout },
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use logdrive_schemas::Edit;

    use super::super::testing::*;

    #[test]
    fn names_move_over_others_in_order() {
        let input = batch(&[("a", int(&[Some(1)])), ("b", int(&[Some(2)])), ("c", int(&[Some(3)]))]);
        let (plan, out) = run_plan("rename: { a: b, c: a, x: c }", &input);
        assert_eq!(names(&plan.output), ["b", "a"]);
        let values = |idx| out.rows[0].rows().column(idx).as_primitive::<Int64Type>().value(0);
        assert_eq!((values(0), values(1)), (1, 3));
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(plan.renames, [pair("a", "b"), pair("c", "a"), pair("x", "c")]);
    }

    #[test]
    fn a_computed_field_keeps_its_value_under_the_new_name() {
        let input = batch(&[("a", int(&[Some(1)]))]);
        let stage = chain(&["set: { x: a, z: a }", "rename: { x: y }", "rename: { q: z }"], &input);
        assert_eq!(names(&stage), ["a", "y"]);
        let rename = |from: &str, to: &str| Edit::Rename { from: from.into(), to: to.into() };
        assert_eq!(edits(&stage), [rename("x", "y"), Edit::Set { key: "y".into() }, rename("q", "z")]);
    }

    #[test]
    fn two_fields_cannot_get_one_name() {
        let errors = plan_errors("rename: { a: c, b: c }", &batch(&[("a", int(&[Some(1)]))]));
        assert_eq!(errors, [("config::invalid_value", "c".to_owned())]);
    }
}
