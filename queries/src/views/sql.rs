//! The text of a view to a logical plan, by DataFusion: parsed, analysed, optimised with a list of rules of ours.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, Volatility};
use datafusion::optimizer::OptimizerRule;
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimizer::Optimizer;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;
use logdrive_operators::CompileError;

use super::asof;
use super::windows::{self, END, Kind, NOW, START};
use crate::compiler::{DIALECT, NESTING_LIMIT, Positions, quote_columns, syntax, tokens};
use crate::functions::Functions;
use crate::lake::describe;
use crate::session;

/// What a query can name.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns; of a view those of its rows, without what says how they change.
    pub schema: SchemaRef,
    /// Whether its rows say what they change, as those of a view do.
    pub changes: bool,
    /// Of what computes it, if it keeps its result: another one is another result, and views over it begin anew.
    pub fingerprint: u64,
}

/// A query as DataFusion understands it, before it is optimised.
pub(super) struct Planned<'s> {
    plan: LogicalPlan,
    pub(super) state: SessionState,
    positions: Positions<'s>,
}

impl Planned<'_> {
    /// Whether nothing has to be taken back: no more than one aggregation over the rows of one stream.
    pub(super) fn is_plain(&self, tables: &[Table]) -> bool {
        let is_of_one = tables.len() == 1 && !tables[0].changes && !plan_mentions_now(&self.plan);
        is_of_one && !has_subqueries(&self.plan) && is_simple(&self.plan)
    }

    /// The optimised plan of a plain query.
    pub(super) fn plain(self) -> Result<(LogicalPlan, SessionState), CompileError> {
        let plan = self.optimised(rules())?;
        Ok((plan, self.state))
    }

    /// The optimised plan of any other.
    pub(super) fn any(self) -> Result<(LogicalPlan, SessionState), CompileError> {
        let rules = rules_of_joins(!has_windows(&self.plan));
        let plan = self.optimised(rules)?;
        Ok((plan, self.state))
    }

    fn optimised(
        &self,
        rules: Vec<Arc<dyn OptimizerRule + Send + Sync>>,
    ) -> Result<LogicalPlan, CompileError> {
        let plan = self.plan.clone();
        self.state
            .analyzer()
            .execute_and_check(plan, self.state.config_options(), |_, _| {})
            .and_then(|plan| Optimizer::with_rules(rules).optimize(plan, &self.state, |_, _| {}))
            .map_err(|error| CompileError::from(describe(&error, &self.positions)))
    }
}

/// A query over `inputs`, with the session that knows its functions, also those that users define.
pub(super) fn plan<'s>(
    sql: &'s str,
    inputs: &[Table],
    functions: &Functions,
) -> Result<Planned<'s>, CompileError> {
    let positions = Positions::new(sql);
    let mut query = parse(sql, inputs, &positions)?;
    name_windows(&mut query);
    asof::rewrite(&mut query);
    bare_names(&mut query, inputs);
    let failed = |error: DataFusionError| CompileError::from(describe(&error, &positions));

    let mut config = session::config();
    // A subquery whose value changes is a join.
    config.options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    let context = SessionContext::new_with_state(session::with(functions).with_config(config).build());
    windows::udfs().for_each(|udf| context.register_udf(udf));
    context.register_udf(windows::now());
    context.register_udf(asof::udf());
    for Table { name, schema, .. } in inputs {
        let table = Arc::new(EmptyTable::new(Arc::clone(schema)));
        context.register_table(TableReference::bare(name.as_str()), table).map_err(failed)?;
    }
    let state = context.state();
    let statement = Statement::Statement(Box::new(ast::Statement::Query(Box::new(query))));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| internal(format!("cannot start a runtime to plan: {error}")))?;
    let plan = runtime.block_on(state.statement_to_plan(statement)).map_err(failed)?;
    refuse_volatile(&plan)?;
    refuse_distinct_on(&plan)?;
    Ok(Planned { plan, state, positions })
}

/// Whether an expression depends on the time at which it is evaluated.
pub(super) fn mentions_now(expr: &Expr) -> bool {
    let is_now = |node: &Expr| matches!(node, Expr::ScalarFunction(f) if f.func.name() == NOW);
    !matches!(expr.exists(|node| Ok(is_now(node))), Ok(false))
}

/// Whether a part of a plan does.
pub(super) fn plan_mentions_now(plan: &LogicalPlan) -> bool {
    any_expression(plan, mentions_now)
}

fn has_subqueries(plan: &LogicalPlan) -> bool {
    let is_one = |node: &Expr| {
        matches!(
            node,
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
        )
    };
    any_expression(plan, |expr| !matches!(expr.exists(|node| Ok(is_one(node))), Ok(false)))
}

fn has_windows(plan: &LogicalPlan) -> bool {
    let is_one = |node: &Expr| {
        let is_name = |name: &str| Kind::ALL.into_iter().any(|kind| kind.name() == name);
        matches!(node, Expr::ScalarFunction(f) if is_name(f.func.name()))
    };
    any_expression(plan, |expr| !matches!(expr.exists(|node| Ok(is_one(node))), Ok(false)))
}

fn any_expression(plan: &LogicalPlan, is_one: impl Fn(&Expr) -> bool) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |= is_one(expr);
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    });
    found || walked.is_err()
}

/// Whether there is at most one aggregation, and nothing else that looks beyond a row.
fn is_simple(mut plan: &LogicalPlan) -> bool {
    let mut aggregations = 0;
    loop {
        plan = match plan {
            LogicalPlan::TableScan(_) => return true,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::Distinct(Distinct::All(input)) if aggregations == 0 => {
                aggregations += 1;
                input
            }
            LogicalPlan::Aggregate(aggregate) if aggregations == 0 => {
                aggregations += 1;
                &aggregate.input
            }
            // What else cannot be done is said there.
            LogicalPlan::Sort(_) | LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => return true,
            _ => return false,
        };
    }
}

/// The names of the tables that a query reads; empty if it does not parse.
pub(super) fn tables(sql: &str) -> Vec<String> {
    let Ok(query) = parse(sql, &[], &Positions::new(sql)) else { return Vec::new() };
    let mut tables = Vec::new();
    // What the query itself defines is no table.
    let own = query.with.iter().flat_map(|with| &with.cte_tables).map(|cte| cte.alias.name.value.clone());
    let own: Vec<String> = own.collect();
    let walk: ControlFlow<()> = ast::visit_relations(&query, |name| {
        let parts: Vec<&str> =
            name.0.iter().filter_map(|part| Some(part.as_ident()?.value.as_str())).collect();
        let name = parts.join(".");
        if !tables.contains(&name) && !own.contains(&name) {
            tables.push(name);
        }
        ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
    tables
}

/// The rules that help a plan that runs for ever. Not among them: what pushes a condition on a window below the
/// aggregation, and what makes two aggregations of one.
fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    vec![
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(EliminateFilter::new()),
        Arc::new(OptimizeProjections::new()),
    ]
}

/// The rules for everything else: also what makes joins of subqueries and of conditions. Conditions go down to where
/// rows come from, unless there are windows, which conditions must not get below.
fn rules_of_joins(pushes_down: bool) -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(DecorrelateLateralJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(EliminateFilter::new()),
        Arc::new(EliminateCrossJoin::new()),
    ];
    if pushes_down {
        rules.push(Arc::new(PushDownFilter::new()));
    }
    rules.push(Arc::new(OptimizeProjections::new()));
    rules
}

pub(super) fn internal(message: String) -> CompileError {
    CompileError { code: "sql::internal", message, help: None, at: None }
}

pub(super) fn parse(
    sql: &str,
    inputs: &[Table],
    positions: &Positions<'_>,
) -> Result<ast::Query, CompileError> {
    let mut tokens = tokens(sql, positions)?;
    let is_column = |name: &str| inputs.iter().any(|table| table.schema.column_with_name(name).is_some());
    quote_columns(&mut tokens, is_column);
    if tokens.iter().all(|token| matches!(token.token, Token::Whitespace(_) | Token::EOF)) {
        return Err(syntax("the query is empty", None, None));
    }
    let mut parser =
        Parser::new(&DIALECT).with_recursion_limit(4 * NESTING_LIMIT).with_tokens_with_locations(tokens);
    let query = parser.parse_query().map_err(|error| match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => {
            let (message, at) = positions.of_message(&message);
            syntax(message, None, at)
        }
        ParserError::RecursionLimitExceeded => syntax("the query is nested too deeply", None, None),
    })?;
    while parser.consume_token(&Token::SemiColon) {}
    let next = parser.peek_token();
    match &next.token {
        Token::EOF => Ok(*query),
        token => Err(syntax(format!("the query ends before `{token}`"), None, positions.range(next.span))),
    }
}

/// Writes `tumble_start(…)` as the field `start` of `tumble(…)`, which GROUP BY names; and function names in lower case.
pub(super) fn name_windows(query: &mut ast::Query) {
    let walk: ControlFlow<()> = ast::visit_expressions_mut(query, |node| {
        if let ast::Expr::Function(function) = node
            && let [ast::ObjectNamePart::Identifier(name)] = function.name.0.as_mut_slice()
        {
            name.value.make_ascii_lowercase();
            let found = Kind::ALL.into_iter().find_map(|kind| {
                let edge = name.value.strip_prefix(kind.name())?;
                match edge {
                    "_start" => Some((kind, START)),
                    "_end" => Some((kind, END)),
                    _ => None,
                }
            });
            if let Some((kind, field)) = found {
                let span = name.span;
                name.value = kind.name().into();
                let value = ast::Value::SingleQuotedString(field.into()).with_span(span);
                let index = ast::Subscript::Index { index: ast::Expr::Value(value) };
                *node = ast::Expr::CompoundFieldAccess {
                    root: Box::new(node.clone()),
                    access_chain: vec![ast::AccessExpr::Subscript(index)],
                };
            }
        }
        ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
}

/// Writes `events.errors`, the route of a stream, as one name.
fn bare_names(query: &mut ast::Query, inputs: &[Table]) {
    let walk: ControlFlow<()> = ast::visit_relations_mut(query, |name| {
        let parts: Vec<&str> =
            name.0.iter().filter_map(|part| Some(part.as_ident()?.value.as_str())).collect();
        let joined = parts.join(".");
        if parts.len() > 1 && inputs.iter().any(|table| table.name == joined) {
            *name = ast::ObjectName::from(vec![ast::Ident::with_quote('"', joined)]);
        }
        ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
}

/// Refuses DISTINCT ON: which row it takes is said by an ORDER BY that would look like that of the answer.
fn refuse_distinct_on(plan: &LogicalPlan) -> Result<(), CompileError> {
    let is_one = |node: &LogicalPlan| matches!(node, LogicalPlan::Distinct(Distinct::On(_)));
    match plan.exists(|node| Ok(is_one(node))) {
        Ok(false) => Ok(()),
        Ok(true) => Err(CompileError {
            code: "sql::unsupported",
            message: "a view cannot use DISTINCT ON".into(),
            help: Some(
                "write SELECT … FROM (SELECT *, row_number() OVER (PARTITION BY … ORDER BY …) AS k FROM …) WHERE k = 1"
                    .into(),
            ),
            at: None,
        }),
        Err(error) => Err(internal(error.to_string())),
    }
}

/// Refuses what gives another value each time: a replay would not repeat it, and DataFusion would fold `now()` to the
/// moment of planning.
fn refuse_volatile(plan: &LogicalPlan) -> Result<(), CompileError> {
    let mut volatile = None;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|node| {
                if let Expr::ScalarFunction(function) = node
                    && function.func.signature().volatility != Volatility::Immutable
                    && function.func.name() != NOW
                {
                    volatile = Some(function.func.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    if let Err(error) = walked {
        return Err(internal(error.to_string()));
    }
    match volatile {
        None => Ok(()),
        Some(name) => Err(CompileError {
            code: "sql::volatile",
            message: format!("`{name}` gives another value each time, so a replay would not repeat it"),
            help: Some("use the time in the row, such as \"@timestamp\", or a window".into()),
            at: None,
        }),
    }
}
