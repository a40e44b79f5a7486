//! From YAML to a checked plan. All errors of all files are found at once, each with its place.

pub(crate) mod attributes;
mod checkpoints;
mod computed;
mod draft;
mod file;
mod function;
pub mod graph;
mod plan;
pub mod postgres;
pub mod reference;
pub mod report;
mod resolve;
mod testcase;
pub mod view;

use std::path::PathBuf;

use logdrive_schemas::component::ConfigError;

pub use file::{Files, Place};
pub use plan::{
    DetectorPlan, Input, Lane, LanePlan, Plan, QueueConfig, SinkPlan, SourcePlan, StreamPlan, TestCase,
    ViewPlan,
};
pub use resolve::PlanContext;

/// Reads, checks and plans configuration files. Opens tables and certificates, binds and connects nothing.
///
/// # Errors
/// Everything that is wrong; [`report::render`] shows it.
pub fn load(paths: &[PathBuf], cx: &PlanContext) -> (Files, Result<Plan, Vec<ConfigError>>) {
    let (files, root) = Files::read(paths);
    let result = root.and_then(|root| {
        let mut errors = Vec::new();
        let draft = draft::read(&root, &mut errors);
        let plan = resolve::resolve(draft, cx, &mut errors);
        errors.sort_by_key(|e| e.span.start);
        match plan {
            Some(plan) if errors.is_empty() => Ok(plan),
            _ => Err(errors),
        }
    });
    (files, result)
}
