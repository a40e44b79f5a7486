//! Window functions and first rows.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, FetchType, Limit, LogicalPlan, Operator, SkipType, Window, WindowFunctionDefinition,
};
use datafusion::physical_expr::{PhysicalSortExpr, create_physical_sort_expr};
use datafusion::physical_planner::create_window_expr;
use logdrive_operators::CompileError;

use super::super::super::lower::{failed, nullable, refuse, unaliased};
use super::super::super::sql::internal;
use super::super::plan::{First, Kind, Node, Order, Rank};
use super::{Lowering, address};

impl Lowering<'_> {
    pub(super) fn window(&mut self, window: &Window) -> Result<Node, CompileError> {
        let limit = self.limits.iter().find(|(node, _)| *node == address(window)).map(|(_, limit)| *limit);
        let input = self.node(&window.input)?;
        let functions = window.window_expr.iter().map(|expr| {
            create_window_expr(
                expr,
                window.input.schema(),
                self.state.execution_props(),
                &PhysicalPlanningContext::default(),
            )
        });
        let functions: Vec<_> = functions.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        let Some(first) = functions.first() else { return Err(internal("no window function".into())) };
        let (partition, order) = (first.partition_by().to_vec(), orders(first.order_by()));
        Ok(Node {
            schema: nullable(window.schema.as_arrow()),
            kind: Kind::Rank(Box::new(Rank { input, partition, order, functions, limit })),
        })
    }

    /// Whether a condition wants only the first rows of each partition: `row_number() … <= k`.
    pub(super) fn find_limit(&mut self, predicate: &Expr, input: &LogicalPlan) {
        for condition in split_conjunction(predicate) {
            let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { continue };
            let (Expr::Column(column), Expr::Literal(value, _)) = (&**left, &**right) else { continue };
            let limit = match op {
                Operator::LtEq | Operator::Eq => count(value),
                Operator::Lt => count(value).and_then(|count| count.checked_sub(1)),
                _ => None,
            };
            if let (Some(limit), Some(window)) = (limit, row_number(column, input)) {
                self.limits.push((address(window), limit));
            }
        }
    }

    pub(super) fn limit(&mut self, limit: &Limit) -> Result<Node, CompileError> {
        let (fetch, skip) = (limit.get_fetch_type(), limit.get_skip_type());
        let (Ok(FetchType::Literal(fetch)), Ok(SkipType::Literal(skip))) = (fetch, skip) else {
            return Err(refuse("LIMIT and OFFSET that are no numbers", "write them as numbers"));
        };
        match fetch {
            Some(fetch) => self.first(&limit.input, skip, fetch),
            None => Err(refuse("OFFSET without LIMIT", "an endless stream has no rest; add LIMIT")),
        }
    }

    fn first(&mut self, plan: &LogicalPlan, skip: usize, fetch: usize) -> Result<Node, CompileError> {
        let (input, order) = match plan {
            LogicalPlan::SubqueryAlias(alias) => return self.first(&alias.input, skip, fetch),
            LogicalPlan::Projection(projection) => {
                let input = self.first(&projection.input, skip, fetch)?;
                return self.project(input, projection);
            }
            LogicalPlan::Sort(sort) => {
                let schema = sort.input.schema();
                let order = sort.expr.iter().map(|expr| {
                    create_physical_sort_expr(
                        expr,
                        schema,
                        self.state.execution_props(),
                        &PhysicalPlanningContext::default(),
                    )
                });
                let order: Vec<_> = order.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
                (self.node(&sort.input)?, orders(&order))
            }
            other => (self.node(other)?, Vec::new()),
        };
        let schema = Arc::clone(&input.schema);
        Ok(Node { schema, kind: Kind::First(Box::new(First { input, order, skip, fetch })) })
    }
}

fn orders(order: &[PhysicalSortExpr]) -> Vec<Order> {
    order.iter().map(|order| Order { by: Arc::clone(&order.expr), options: order.options }).collect()
}

/// The number that a literal is, if it is one to count with.
fn count(literal: &ScalarValue) -> Option<usize> {
    match literal.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(Some(count))) => usize::try_from(count).ok(),
        _ => None,
    }
}

/// The window whose `row_number()` a column is.
fn row_number<'p>(column: &Column, mut plan: &'p LogicalPlan) -> Option<&'p Window> {
    let mut column = column.clone();
    loop {
        let idx = plan.schema().index_of_column(&column).ok()?;
        plan = match plan {
            LogicalPlan::SubqueryAlias(alias) => {
                column = Column::from(alias.input.schema().qualified_field(idx));
                &alias.input
            }
            LogicalPlan::Projection(projection) => {
                let Expr::Column(inner) = unaliased(&projection.expr[idx]) else { return None };
                column = inner.clone();
                &projection.input
            }
            LogicalPlan::Window(window) => {
                let n_before = window.input.schema().fields().len();
                let function = window.window_expr.get(idx.checked_sub(n_before)?)?;
                let Expr::WindowFunction(function) = unaliased(function) else { return None };
                let WindowFunctionDefinition::WindowUDF(udf) = &function.fun else { return None };
                let only = window.window_expr.len() == 1;
                return (udf.name() == "row_number" && only).then_some(window);
            }
            _ => return None,
        };
    }
}
