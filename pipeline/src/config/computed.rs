//! Columns that a sink has computed for it: a `set` step in front of it, for each lane.
//!
//! Sinks know no SQL, and yet some let users write it (the routes of `alert`). So they say what they need, and the
//! plan compiles it where every other expression is compiled: with the same errors, before anything runs.

use logdrive_connectors::SinkEntry;
use logdrive_operators::{STEPS, Stage, StepContext, StepEntry, StepPlan};
use logdrive_schemas::component::{ConfigError, Key, Node, NodeKind, Scalar};

/// The step in front of a sink; `None` if it needs nothing, or what it needs is wrong.
pub(super) fn step(
    entry: &SinkEntry,
    node: &Node,
    stage: &Stage,
    cx: &StepContext,
    errors: &mut Vec<ConfigError>,
) -> Option<StepPlan> {
    let computed = (entry.computed)(node);
    if computed.is_empty() {
        return None;
    }
    let [set, condition] = ["set", "where"].map(step_called);
    let (set, condition) = (set?, condition?);
    let mut columns = Vec::with_capacity(computed.len());
    let mut wrong = false;
    for column in computed {
        let sql = written(node, &column.sql).cloned().unwrap_or_else(|| Node {
            kind: NodeKind::Scalar(Scalar { text: column.sql.clone(), quoted: true }),
            span: node.span,
        });
        if column.condition
            && let Err(more) = (condition.plan)(&sql, stage, cx)
        {
            errors.extend(more);
            wrong = true;
            continue;
        }
        columns.push((Key { name: column.column, span: sql.span }, sql));
    }
    let all = Node { kind: NodeKind::Map(columns), span: node.span };
    let plan = (set.plan)(&all, stage, cx).map_err(|more| errors.extend(more)).ok();
    plan.filter(|_| !wrong)
}

fn step_called(name: &str) -> Option<&'static StepEntry> {
    STEPS.iter().find(|entry| entry.name == name)
}

/// Where the user has written `text`.
fn written<'a>(node: &'a Node, text: &str) -> Option<&'a Node> {
    match &node.kind {
        NodeKind::Scalar(scalar) => (scalar.text == text).then_some(node),
        NodeKind::Map(entries) => entries.iter().find_map(|(_, value)| written(value, text)),
        NodeKind::Seq(items) => items.iter().find_map(|item| written(item, text)),
    }
}
