//! `remove`: drops fields.

use std::sync::Arc;

use logdrive_schemas::Batch;
use logdrive_schemas::component::{Component, ConfigError, Node};
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::{Selection, remove};
use crate::step::{Emit, Stage, Step, StepConfig, StepContext, StepPlan};

/// Removes fields. A field that is not declared is removed from the document, too.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Remove(
    /// The names of the fields, at top level.
    pub Vec<String>,
);

impl Component for Remove {
    const NAME: &'static str = "remove";
    const EXAMPLE: &'static str = "remove: [password, session]";
}

impl StepConfig for Remove {
    fn plan(self, _: &Node, input: &Stage, _: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let gone = |name: &str| self.0.iter().any(|other| other == name);
        let selection = Selection::of(input, |name| !gone(name), |edits| remove(edits, &self.0));
        Ok(select(selection, Vec::new()))
    }
}

/// The plan of a step that does nothing but choose columns.
pub(super) fn select(selection: Selection, renames: Vec<(String, String)>) -> StepPlan {
    StepPlan {
        output: selection.stage.clone(),
        reads: Vec::new(),
        writes: Vec::new(),
        renames,
        reloads: Vec::new(),
        build: Box::new(move || Box::new(Select { selection: selection.clone() })),
    }
}

#[derive(Debug)]
struct Select {
    selection: Selection,
}

impl Step for Select {
    fn apply(&mut self, batch: Batch, out: &mut Emit) {
        let rows = self.selection.apply(batch.rows());
        out.rows.push(batch.with_rows(rows, Arc::clone(&self.selection.stage.layout)));
    }
}

#[cfg(test)]
mod tests {
    use logdrive_schemas::Edit;

    use super::super::testing::*;

    #[test]
    fn columns_and_undeclared_members_go() {
        let input = batch(&[("a", int(&[Some(1)])), ("b", int(&[Some(2)]))]);
        let (plan, out) = run_plan("remove: [a, other]", &input);
        assert_eq!(names(&plan.output), ["b"]);
        assert_eq!(out.rows[0].rows().num_columns(), 1);
        let remove = |key: &str| Edit::Remove { key: key.into() };
        assert_eq!(edits(&plan.output), [remove("a"), remove("other")]);
    }

    #[test]
    fn the_last_column_may_go() {
        let out = run("remove: [a]", &batch(&[("a", int(&[Some(1), Some(2)]))]));
        assert_eq!(ids(&out.rows), [0, 1]);
    }

    #[test]
    fn what_was_set_before_is_not_looked_for_any_more() {
        let input = batch(&[("a", int(&[Some(1)]))]);
        let stage = chain(&["set: { x: a }", "remove: [x]"], &input);
        assert_eq!(edits(&stage), [Edit::Remove { key: "x".into() }]);
    }
}
