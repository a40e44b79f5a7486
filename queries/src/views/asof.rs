//! `ASOF JOIN … MATCH_CONDITION (…)`: each row of the left side with the row of the right side that was the latest, or will
//! be the first, at its time. DataFusion does not know it; so it is written as an outer join whose condition has a call
//! of [`AS_OF`], which is looked for in the plan.

use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    Ident, JoinConstraint, JoinOperator, ObjectName, VisitMut, VisitorMut,
};

/// Takes a time of each side, and how they compare.
pub(super) const AS_OF: &str = "as_of";

/// Writes the joins of a query as what DataFusion knows.
pub(super) fn rewrite(query: &mut ast::Query) {
    let walk = query.visit(&mut Rewriting);
    debug_assert!(walk.is_continue(), "nothing breaks it");
}

struct Rewriting;

impl VisitorMut for Rewriting {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<()> {
        select.from.iter_mut().flat_map(|tables| &mut tables.joins).for_each(rewrite_join);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut ast::TableFactor) -> ControlFlow<()> {
        if let ast::TableFactor::NestedJoin { table_with_joins, .. } = factor {
            table_with_joins.joins.iter_mut().for_each(rewrite_join);
        }
        ControlFlow::Continue(())
    }
}

/// What is no comparison, or has USING, stays, and DataFusion refuses it.
fn rewrite_join(join: &mut ast::Join) {
    let JoinOperator::AsOf { match_condition, constraint } = &join.join_operator else { return };
    let ast::Expr::BinaryOp { left, op, right } = match_condition else { return };
    let is_comparison =
        matches!(op, BinaryOperator::GtEq | BinaryOperator::Gt | BinaryOperator::LtEq | BinaryOperator::Lt);
    if !is_comparison {
        return;
    }
    let op = ast::Expr::value(ast::Value::SingleQuotedString(op.to_string()));
    let call = call(vec![(**left).clone(), (**right).clone(), op]);
    let on = match constraint {
        JoinConstraint::On(on) => ast::Expr::BinaryOp {
            left: Box::new(ast::Expr::Nested(Box::new(on.clone()))),
            op: BinaryOperator::And,
            right: Box::new(call),
        },
        JoinConstraint::None => call,
        JoinConstraint::Using(_) | JoinConstraint::Natural => return,
    };
    join.join_operator = JoinOperator::LeftOuter(JoinConstraint::On(on));
}

fn call(arguments: Vec<ast::Expr>) -> ast::Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)));
    ast::Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(AS_OF)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// The function that stands for MATCH_CONDITION.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AsOf {
    signature: Signature,
}

pub(super) fn udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(AsOf { signature: Signature::any(3, Volatility::Immutable) })
}

impl ScalarUDFImpl for AsOf {
    fn name(&self) -> &str {
        AS_OF
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("`{AS_OF}` is what ASOF JOIN … MATCH_CONDITION (…) is made of")
    }
}

/// How the times of both sides compare.
#[derive(Clone, Debug)]
pub(super) struct Match {
    pub(super) left: Expr,
    pub(super) right: Expr,
    /// Of the left to the right.
    pub(super) op: Operator,
    /// Whether nothing else is asked for.
    pub(super) is_all: bool,
}

/// The comparison of times in a join's condition, if it has one.
pub(super) fn find(condition: &Expr, left_schema: &DFSchema) -> Option<Match> {
    let conditions = split_conjunction(condition);
    let (left, right, op) = conditions.iter().find_map(|condition| match condition {
        Expr::ScalarFunction(function) if function.func.name() == AS_OF => match function.args.as_slice() {
            [left, right, Expr::Literal(op, _)] => {
                let op = match op.try_as_str().flatten()? {
                    ">=" => Operator::GtEq,
                    ">" => Operator::Gt,
                    "<=" => Operator::LtEq,
                    _ => Operator::Lt,
                };
                Some((left, right, op))
            }
            _ => None,
        },
        _ => None,
    })?;
    let is_left = |expr: &Expr| expr.column_refs().iter().all(|column| left_schema.has_column(column));
    let is_all = conditions.len() == 1;
    if is_left(left) {
        return Some(Match { left: left.clone(), right: right.clone(), op, is_all });
    }
    Some(Match { left: right.clone(), right: left.clone(), op: op.swap()?, is_all })
}
