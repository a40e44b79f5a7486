//! Joins, and how long their rows are needed.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, JoinType, NullEquality};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Join as LogicalJoin, LogicalPlan, Operator};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use logdrive_operators::CompileError;

use super::super::super::asof;
use super::super::super::lower::{failed, nullable, physical, refuse};
use super::super::super::spec::Stage;
use super::super::interval::{self, Interval};
use super::super::plan::{AsOf, Bound, Clock, Join, Kind, Node, Side};
use super::{Lowering, address};

impl Lowering<'_> {
    pub(super) fn join(&mut self, join: &LogicalJoin) -> Result<Node, CompileError> {
        if join.null_aware {
            return Err(refuse(
                "NOT IN over a subquery, which no row passes once it has a NULL",
                "write NOT EXISTS (SELECT … WHERE …)",
            ));
        }
        if matches!(join.join_type, JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark) {
            return self.join(&swapped(join));
        }
        let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
        let as_of = join.filter.as_ref().and_then(|condition| asof::find(condition, left_schema));
        let (left, right) = (self.node(&join.left)?, self.node(&join.right)?);
        let keys = |side: fn(&(Expr, Expr)) -> &Expr, schema: &DFSchema| {
            join.on.iter().map(|pair| physical(side(pair), schema, self.state)).collect::<Result<Vec<_>, _>>()
        };
        let left_keys = keys(|pair| &pair.0, left_schema)?;
        let right_keys = keys(|pair| &pair.1, right_schema)?;
        if let Some(as_of) = as_of {
            let left =
                Side { input: left, keys: left_keys, time: physical(&as_of.left, left_schema, self.state)? };
            let time = physical(&as_of.right, right_schema, self.state)?;
            return self.as_of(join, left, Side { input: right, keys: right_keys, time }, &as_of);
        }
        let both = left_schema.join(right_schema).map_err(|error| failed(&error))?;
        let interval = self.interval(join, &both, left.schema.fields().len());
        self.let_go(join.join_type, interval, [&left, &right]);
        let filter = join.filter.as_ref().map(|expr| physical(expr, &both, self.state)).transpose()?;
        Ok(Node {
            schema: nullable(join.schema.as_arrow()),
            kind: Kind::Join(Box::new(Join {
                left,
                right,
                left_keys,
                right_keys,
                nulls_match: join.null_equality == NullEquality::NullEqualsNull,
                filter,
                both: nullable(both.as_arrow()),
                join_type: join.join_type,
                interval,
            })),
        })
    }

    /// How far apart times of both sides are, if the condition bounds it.
    fn interval(&self, join: &LogicalJoin, both: &DFSchema, n_left: usize) -> Option<Interval> {
        let equal = join.on.iter().map(|(left, right)| left.clone().eq(right.clone()));
        let above = self.conditions.iter().filter(|(node, _)| *node == address(join));
        let above = above.map(|(_, condition)| condition.clone());
        interval::find(&conjunction(equal.chain(join.filter.clone()).chain(above))?, both, n_left)
    }

    /// Has the rows of two streams leave once none can come that would match them.
    fn let_go(&mut self, join_type: JoinType, interval: Option<Interval>, sides: [&Node; 2]) {
        let retain = i64::try_from(self.options.retain.as_micros()).unwrap_or(i64::MAX);
        let Some(interval) = interval else { return };
        let Some(keep) = interval.keep(join_type, retain) else { return };
        let columns = [(interval.left, keep.left), (interval.right, keep.right)];
        let times = [0, 1].map(|side| self.time_of(sides[side], columns[side].0));
        let [Some(left), Some(right)] = times else { return };
        for ((leaf, clock), (column, keep)) in [left, right].into_iter().zip(columns) {
            let clock = self.clocks.iter().position(|known| *known == clock).unwrap_or_else(|| {
                self.clocks.push(clock);
                self.clocks.len() - 1
            });
            let leaf = &mut self.leaves[leaf];
            let at = PhysicalColumn::new(leaf.schema.field(column).name(), column);
            leaf.clock = Some(clock);
            leaf.lifetime.behind = Some(Bound { at: Arc::new(at), plus: keep.saturating_add(1) });
        }
    }

    /// The leaf that a node is, and which column of its input a column of it is; if it is rows of a stream that never
    /// leave.
    fn time_of(&self, node: &Node, column: usize) -> Option<(usize, Clock)> {
        let Kind::Leaf(idx) = node.kind else { return None };
        let leaf = &self.leaves[idx];
        if leaf.pane.is_some() || leaf.changes || !leaf.lifetime.is_none() {
            return None;
        }
        let column = leaf.before.iter().rev().try_fold(column, |column, stage| match stage {
            Stage::Filter(_) => Some(column),
            Stage::Project(columns, _) => Some(columns[column].downcast_ref::<PhysicalColumn>()?.index()),
        })?;
        Some((idx, Clock { input: leaf.input, column: leaf.reads[column].clone() }))
    }

    fn as_of(
        &self,
        join: &LogicalJoin,
        left: Side,
        right: Side,
        as_of: &asof::Match,
    ) -> Result<Node, CompileError> {
        if !as_of.is_all {
            return Err(refuse(
                "an ASOF JOIN with other conditions than equalities",
                "put conditions on one side into a subquery: ASOF JOIN (SELECT … WHERE …)",
            ));
        }
        if self.found.is_some() {
            return Err(refuse("an ASOF JOIN in a recursion", "write a view for it, and read that here"));
        }
        let type_of = |side: &Side| side.time.data_type(&side.input.schema).map_err(|error| failed(&error));
        let (of_left, of_right) = (type_of(&left)?, type_of(&right)?);
        let is_time = matches!(of_left, DataType::Timestamp(..) | DataType::Int64);
        if of_left != of_right || !is_time {
            let message = format!("MATCH_CONDITION with {of_left} and {of_right}");
            return Err(refuse(message, "compare two timestamps, or two integers"));
        }
        Ok(Node {
            schema: nullable(join.schema.as_arrow()),
            kind: Kind::AsOf(Box::new(AsOf {
                left,
                right,
                is_next: matches!(as_of.op, Operator::LtEq | Operator::Lt),
                is_strict: matches!(as_of.op, Operator::Gt | Operator::Lt),
            })),
        })
    }

    /// Keeps what is asked of the rows of a join, if it is right below: the optimiser may have put it there.
    pub(super) fn find_condition(&mut self, predicate: &Expr, mut input: &LogicalPlan) {
        while let LogicalPlan::Projection(projection) = input
            && projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_)))
        {
            input = &projection.input;
        }
        if let LogicalPlan::Join(join) = input
            && join.join_type == JoinType::Inner
        {
            self.conditions.push((address(join), predicate.clone()));
        }
    }
}

/// The same join, said from the other side.
fn swapped(join: &LogicalJoin) -> LogicalJoin {
    LogicalJoin {
        left: Arc::clone(&join.right),
        right: Arc::clone(&join.left),
        on: join.on.iter().map(|(left, right)| (right.clone(), left.clone())).collect(),
        join_type: join.join_type.swap(),
        ..join.clone()
    }
}
