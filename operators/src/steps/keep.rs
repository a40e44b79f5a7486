//! `keep`: drops all other fields.

use logdrive_schemas::component::{Component, ConfigError, Node};
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::{Selection, keep};
use super::remove::select;
use crate::step::{Stage, StepConfig, StepContext, StepPlan};

/// Keeps only these fields, declared or not; all others leave the document.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Keep(
    /// The names of the fields, at top level.
    pub Vec<String>,
);

impl Component for Keep {
    const NAME: &'static str = "keep";
    const EXAMPLE: &'static str = "keep: ['@timestamp', message]";
}

impl StepConfig for Keep {
    fn plan(self, _: &Node, input: &Stage, _: &StepContext) -> Result<StepPlan, Vec<ConfigError>> {
        let kept = |name: &str| self.0.iter().any(|other| other == name);
        Ok(select(Selection::of(input, kept, |edits| keep(edits, &self.0)), Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use logdrive_schemas::Edit;

    use super::super::testing::*;

    #[test]
    fn only_these_stay() {
        let input = batch(&[("a", int(&[Some(1)])), ("b", int(&[Some(2)]))]);
        let stage = chain(&["set: { x: a, y: b }", "keep: [y, b, other]"], &input);
        assert_eq!(names(&stage), ["b", "y"]);
        let keep = Edit::Keep { keys: vec!["y".into(), "b".into(), "other".into()] };
        assert_eq!(edits(&stage), [Edit::Set { key: "y".into() }, keep]);
    }
}
