//! Short hands for the tests of steps.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, Int64Array, RecordBatch, StringViewArray, UInt64Array,
};
use arrow::datatypes::{Field, Schema};
use logdrive_schemas::chunk::Partition;
use logdrive_schemas::component::{ConfigError, Limits, Node};
use logdrive_schemas::{Batch, Edit, Layout, Origin};

use super::STEPS;
use crate::step::{Emit, Stage, StepContext, StepPlan};
use crate::stub::StubCompiler;

pub(crate) fn int(values: &[Option<i64>]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

pub(crate) fn text(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(values.iter().collect::<StringViewArray>())
}

/// Rows with offsets 0, 1, 2 … and the document `{}`.
pub(crate) fn batch(columns: &[(&str, ArrayRef)]) -> Batch {
    let n_rows = columns[0].1.len();
    let fields: Vec<Field> =
        columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
    let arrays = columns.iter().map(|(_, c)| Arc::clone(c)).collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let origin =
        Origin { source: "test".into(), partition: Partition(1), ordered: true, received_at: 0, peer: None };
    let original: BinaryViewArray = (0..n_rows).map(|_| Some(b"{}")).collect();
    let offsets = UInt64Array::from_iter_values(0..n_rows as u64);
    Batch::new(rows, original, offsets, Arc::new(origin), Arc::new(Layout::Original(vec![]))).unwrap()
}

fn try_plan(yaml: &str, input: &Stage) -> Result<StepPlan, Vec<ConfigError>> {
    let node = Node::parse(yaml.as_bytes(), Limits::default()).unwrap();
    let (key, node) = &node.as_map().unwrap()[0];
    // Examples name the tables that lie in the workspace.
    let working_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/..").into();
    let cx = StepContext { stream: "s".into(), compiler: Arc::new(StubCompiler), working_dir };
    let entry = STEPS.iter().find(|step| step.name == key.name).unwrap();
    (entry.plan)(node, input, &cx)
}

fn stage_of(input: &Batch) -> Stage {
    Stage { schema: input.schema(), layout: Arc::clone(input.layout()) }
}

/// Code and place of each error.
pub(crate) fn plan_errors(yaml: &str, input: &Batch) -> Vec<(&'static str, String)> {
    let Err(errors) = try_plan(yaml, &stage_of(input)) else { panic!("{yaml} is planned") };
    errors.into_iter().map(|e| (e.code, yaml[e.span.start..e.span.start + e.span.len].to_owned())).collect()
}

pub(crate) fn run_plan(yaml: &str, input: &Batch) -> (StepPlan, Emit) {
    let plan = try_plan(yaml, &stage_of(input)).unwrap_or_else(|errors| panic!("{errors:?}"));
    let mut out = Emit::default();
    (plan.build)().apply(input.clone(), &mut out);
    for batch in &out.rows {
        assert_eq!(batch.schema(), plan.output.schema, "rows are what the plan says");
        assert_eq!(batch.layout(), &plan.output.layout);
    }
    let n_out: usize = out.rows.iter().chain(&out.rejects).map(Batch::num_rows).sum();
    assert_eq!(n_out + out.n_filtered, input.num_rows(), "every row is somewhere");
    (plan, out)
}

pub(crate) fn run(yaml: &str, input: &Batch) -> Emit {
    run_plan(yaml, input).1
}

/// What several steps make of the stage.
pub(crate) fn chain(steps: &[&str], input: &Batch) -> Stage {
    let plan = |stage, yaml: &&str| try_plan(yaml, &stage).unwrap_or_else(|e| panic!("{e:?}")).output;
    steps.iter().fold(stage_of(input), plan)
}

/// The offsets of all rows.
pub(crate) fn ids(batches: &[Batch]) -> Vec<u64> {
    batches.iter().flat_map(|batch| batch.offsets().values().to_vec()).collect()
}

pub(crate) fn names(stage: &Stage) -> Vec<String> {
    stage.schema.fields().iter().map(|f| f.name().clone()).collect()
}

pub(crate) fn edits(stage: &Stage) -> Vec<Edit> {
    match &*stage.layout {
        Layout::Columns => panic!("columns have no edits"),
        Layout::Original(edits) => edits.clone(),
    }
}

pub(crate) fn reason(rejects: &Batch, idx: usize) -> String {
    rejects.rows().column_by_name("reason").unwrap().as_string_view().value(idx).to_owned()
}

#[test]
fn every_example_is_planned() {
    let input = batch(&[
        ("level", text(&[None])),
        ("status", text(&[None])),
        ("latency_ms", int(&[None])),
        ("1000.0", int(&[None])),
        ("ip", text(&[None])),
        ("tenant", text(&[None])),
        ("message", text(&[None])),
    ]);
    for step in STEPS {
        if !step.example.contains("<>") {
            run(step.example, &input);
        }
    }
}
