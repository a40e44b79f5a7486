//! When rows of a query are final: from which watermark on no change can come to rows with such values in some columns.

use std::sync::Arc;

use datafusion::common::{JoinType, ScalarValue};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_plan::PhysicalExpr;

use super::super::SqlView;
use super::super::spec::{Output, Stage};
use super::super::windows::{END, Kind as WindowKind, START, Windowing, time_type};
use super::plan::{Group, Join, Kind, Leaf, Node, Rank};

/// What a column has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Time,
    /// Windows so long, in microseconds; what counts is their end.
    Window(i64),
}

/// Rows are final once the watermark has come to the time in a column and so much more, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Until {
    column: usize,
    form: Form,
    plus: i64,
}

/// Each of them is enough: they say the same of different columns, or one of them more than needed.
type Condition = Vec<Until>;

/// Until when rows of a node may change, by columns with times: all of them must have passed. `None` if for ever, or if
/// there are no columns that say it.
pub(super) fn of(root: &Node, leaves: &[Leaf]) -> Option<Vec<(usize, i64)>> {
    let is_time = |until: &&Until| {
        until.form == Form::Time && *root.schema.field(until.column).data_type() == time_type()
    };
    let said = |condition: Condition| condition.iter().find(is_time).map(|until| (until.column, until.plus));
    conditions(root, leaves)?.into_iter().map(said).collect()
}

/// By how much later than a row of a leaf what is computed of it may become final, in microseconds: for so long the row
/// has to stay. Never less than it is: a row and what it meets are as far apart as the join between them says, and a window
/// ends at most as much after what is in it as it is long.
pub(super) fn slack(node: &Node, leaves: &[Leaf]) -> i64 {
    let of_all =
        |inputs: &[&Node]| inputs.iter().map(|input| slack(input, leaves)).fold(0, i64::saturating_add);
    match &node.kind {
        Kind::Leaf(idx) => leaves[*idx].pane.as_ref().and_then(|pane| size(pane)).unwrap_or(0),
        Kind::Stages(input, stages) => stages.iter().fold(of_all(&[&**input]), |slack, stage| match stage {
            Stage::Filter(_) => slack,
            Stage::Project(columns, _) => slack.saturating_add(sizes(columns)),
        }),
        Kind::Join(join) => {
            let width =
                join.interval.map_or(0, |interval| interval.most.saturating_sub(interval.least).max(0));
            of_all(&[&join.left, &join.right]).saturating_add(width)
        }
        Kind::Group(group) => of_all(&[&group.input]).saturating_add(sizes(&group.keys)),
        Kind::Rank(rank) => of_all(&[&rank.input]),
        Kind::Union(inputs) => of_all(&inputs.iter().collect::<Vec<_>>()),
        Kind::AsOf(_) | Kind::First(_) | Kind::Fixpoint { .. } | Kind::Found => 0,
    }
}

/// How long the windows are that expressions name.
fn sizes(expressions: &[Arc<dyn PhysicalExpr>]) -> i64 {
    let size_of = |expr: &Arc<dyn PhysicalExpr>| match expr.downcast_ref::<ScalarFunctionExpr>() {
        Some(function) => tumble(function).unwrap_or_else(|| sizes(function.args())),
        None => 0,
    };
    expressions.iter().map(size_of).fold(0, i64::saturating_add)
}

/// How long the windows of a call of `tumble` are.
fn tumble(function: &ScalarFunctionExpr) -> Option<i64> {
    let lengths = function.args().get(1..)?;
    let lengths: Vec<Option<&ScalarValue>> =
        lengths.iter().map(|length| Some(length.downcast_ref::<Literal>()?.value())).collect();
    match WindowKind::Tumble.windowing(&lengths) {
        Ok(Windowing::Fixed(windows)) if function.fun().name() == WindowKind::Tumble.name() => {
            Some(windows.size)
        }
        _ => None,
    }
}

/// How long the windows of an aggregation are.
fn size(pane: &SqlView) -> Option<i64> {
    match pane.spec.aggregation.as_ref()?.windows?.0 {
        Windowing::Fixed(windows) => Some(windows.size),
        Windowing::Session { .. } => None,
    }
}

/// All of them must be met.
fn conditions(node: &Node, leaves: &[Leaf]) -> Option<Vec<Condition>> {
    match &node.kind {
        Kind::Leaf(idx) => of_leaf(&leaves[*idx]),
        Kind::Stages(input, stages) => behind(conditions(input, leaves)?, stages),
        Kind::Join(join) => of_join(join, leaves),
        Kind::Group(group) => of_group(group, leaves),
        Kind::Rank(rank) => of_rank(rank, leaves),
        Kind::Union(inputs) => of_union(inputs, leaves),
        Kind::AsOf(_) | Kind::First(_) | Kind::Fixpoint { .. } | Kind::Found => None,
    }
}

fn of_leaf(leaf: &Leaf) -> Option<Vec<Condition>> {
    if let Some(pane) = &leaf.pane {
        return behind(behind(of_pane(pane)?, &leaf.before)?, &leaf.after);
    }
    // A row that comes in time does not change.
    let time = column(&leaf.lifetime.behind.as_ref()?.at)?;
    behind(vec![vec![Until { column: time, form: Form::Time, plus: 1 }]], &leaf.after)
}

fn of_pane(pane: &SqlView) -> Option<Vec<Condition>> {
    let aggregation = pane.spec.aggregation.as_ref()?;
    let size = size(pane)?;
    let edge = |(column, output): (usize, &Output)| {
        let (form, plus) = match output {
            Output::Start => (Form::Time, size),
            Output::End => (Form::Time, 0),
            Output::Window => (Form::Window(size), 0),
            Output::Key(_) | Output::Aggregate(_) => return None,
        };
        Some(Until { column, form, plus })
    };
    behind(vec![aggregation.outputs.iter().enumerate().filter_map(edge).collect()], &pane.spec.after)
}

/// The conditions by the columns that stages make.
fn behind(conditions: Vec<Condition>, stages: &[Stage]) -> Option<Vec<Condition>> {
    let conditions = stages.iter().try_fold(conditions, |conditions, stage| match stage {
        Stage::Filter(_) => Some(conditions),
        Stage::Project(columns, _) => by_columns(conditions, columns),
    })?;
    Some(conditions).filter(|conditions| conditions.iter().all(|condition| !condition.is_empty()))
}

fn by_columns(conditions: Vec<Condition>, columns: &[Arc<dyn PhysicalExpr>]) -> Option<Vec<Condition>> {
    let images = |condition: Condition| {
        let images = |until: &Until| {
            let images = columns.iter().enumerate().filter_map(|(column, expr)| {
                let (form, plus) = image(expr, until)?;
                Some(Until { column, form, plus })
            });
            images.collect::<Vec<_>>()
        };
        Some(condition.iter().flat_map(images).collect::<Condition>()).filter(|images| !images.is_empty())
    };
    conditions.into_iter().map(images).collect()
}

/// What an expression makes of a condition's column, if it says as much.
fn image(expr: &Arc<dyn PhysicalExpr>, until: &Until) -> Option<(Form, i64)> {
    if let Some(column) = column(expr) {
        return (column == until.column).then_some((until.form, until.plus));
    }
    let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
    let (first, rest) = function.args().split_first()?;
    let (form, plus) = image(first, until)?;
    match form {
        Form::Window(size) if function.fun().name() == "get_field" => {
            match rest.first()?.downcast_ref::<Literal>()?.value().try_as_str()?? {
                END => Some((Form::Time, plus)),
                START => Some((Form::Time, plus.saturating_add(size))),
                _ => None,
            }
        }
        // Times in a window are before its end.
        Form::Time => Some((Form::Window(tumble(function)?), plus.saturating_sub(1))),
        Form::Window(_) => None,
    }
}

fn column(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    expr.downcast_ref::<Column>().map(Column::index)
}

fn of_join(join: &Join, leaves: &[Leaf]) -> Option<Vec<Condition>> {
    let n_left = join.left.schema.fields().len();
    let of_right = |mut conditions: Vec<Condition>| {
        conditions.iter_mut().flatten().for_each(|until| until.column += n_left);
        conditions
    };
    let mut left = conditions(&join.left, leaves)?;
    let mut right = of_right(conditions(&join.right, leaves)?);
    left.iter_mut().chain(&mut right).for_each(|condition| {
        let others: Vec<Until> =
            condition.iter().flat_map(|until| on_other_side(join, until, n_left)).collect();
        condition.extend(others);
    });
    // If rows that meet could be any time apart, one would leave before the other is final.
    let is_said_by = |is_left: bool| {
        let says = |condition: &Condition| condition.iter().any(|until| (until.column < n_left) == is_left);
        left.iter().chain(&right).all(says)
    };
    if !is_said_by(true) && !is_said_by(false) {
        return None;
    }
    // Rows without a match have none of the columns of one side.
    let is_there: fn(usize, usize) -> bool = match join.join_type {
        JoinType::Inner => |_, _| true,
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
            |column, n_left| column < n_left
        }
        JoinType::Right => |column, n_left| n_left <= column,
        _ => return None,
    };
    let all = left.into_iter().chain(right).map(|mut condition| {
        condition.retain(|until| is_there(until.column, n_left));
        Some(condition).filter(|condition| !condition.is_empty())
    });
    all.collect()
}

/// What a condition on a column of one side says by columns of the other, where rows match.
fn on_other_side(join: &Join, until: &Until, n_left: usize) -> Vec<Until> {
    let keys = join.left_keys.iter().zip(&join.right_keys);
    let equal = keys.filter_map(|(left, right)| {
        let (left, right) = (column(left)?, column(right)? + n_left);
        let column = match until.column {
            column if column == left => right,
            column if column == right => left,
            _ => return None,
        };
        Some(Until { column, ..*until })
    });
    let mut others: Vec<Until> = equal.collect();
    if let Some(interval) = join.interval.filter(|_| until.form == Form::Time) {
        if until.column == interval.left {
            let plus = until.plus.saturating_sub(interval.least);
            others.push(Until { column: n_left + interval.right, plus, ..*until });
        }
        if until.column == n_left + interval.right {
            let plus = until.plus.saturating_add(interval.most);
            others.push(Until { column: interval.left, plus, ..*until });
        }
    }
    others
}

/// A group changes with its rows, so all of these must have passed: the key has to say it.
fn of_group(group: &Group, leaves: &[Leaf]) -> Option<Vec<Condition>> {
    by_columns(conditions(&group.input, leaves)?, &group.keys)
}

/// A row changes with those of its partition.
fn of_rank(rank: &Rank, leaves: &[Leaf]) -> Option<Vec<Condition>> {
    let partition: Vec<usize> = rank.partition.iter().filter_map(column).collect();
    let by_partition = |mut condition: Condition| {
        condition.retain(|until| partition.contains(&until.column));
        Some(condition).filter(|condition| !condition.is_empty())
    };
    conditions(&rank.input, leaves)?.into_iter().map(by_partition).collect()
}

/// All inputs have to say it by the same column.
fn of_union(inputs: &[Node], leaves: &[Leaf]) -> Option<Vec<Condition>> {
    let of_inputs = inputs.iter().map(|input| match conditions(input, leaves)?.as_slice() {
        [condition] => Some(condition.clone()),
        _ => None,
    });
    let mut of_inputs = of_inputs.collect::<Option<Vec<_>>>()?.into_iter();
    let first = of_inputs.next()?;
    let common = of_inputs.fold(first, |common, condition| {
        let both = common.into_iter().filter_map(|until| {
            let same = |other: &&Until| other.column == until.column && other.form == until.form;
            condition.iter().find(same).map(|other| Until { plus: until.plus.max(other.plus), ..until })
        });
        both.collect()
    });
    (!common.is_empty()).then(|| vec![common])
}
