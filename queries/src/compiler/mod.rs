//! SQL text to compiled expressions, for steps and detectors.
//!
//! What DataFusion does: parse, plan, coerce types, fold constants, evaluate. What is ours: limits before parsing,
//! names checked where they are written, refusal of what is not a pure function of one row, and errors that a user
//! of a configuration file can act on.

mod evaluate;
mod names;
mod text;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Operator, binary_expr, cast};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;
use logdrive_operators::{CompileError, Compiler, Expression};

use self::evaluate::SqlExpression;
pub(crate) use self::names::{nearest_name, quoted};
pub(crate) use self::text::{DIALECT, NESTING_LIMIT, Positions, quote_columns, syntax, tokens};
use crate::functions::Functions;
use crate::session;

/// The deepest tree of operators and calls that is evaluated. Workers evaluate recursively, on stacks of 2 MiB.
const DEPTH_LIMIT: usize = 100;

/// The stack of the thread that compiles, in bytes; enough for text at every limit.
const STACK: usize = 128 << 20;

/// Compiles scalar SQL expressions.
///
/// Names of fields are case-sensitive, names of functions are not. An expression is a pure function of one row:
/// queries, aggregates, windows and functions such as `now()` do not compile.
#[derive(Clone)]
pub struct SqlCompiler {
    state: Arc<SessionState>,
}

impl SqlCompiler {
    /// A compiler with DataFusion's scalar functions and [`FUNCTIONS`](crate::FUNCTIONS). Cheap to clone, and not
    /// expensive to make.
    #[must_use]
    pub fn new() -> Self {
        Self::with(&Functions::default())
    }

    /// The same, with functions that users define.
    #[must_use]
    pub fn with(functions: &Functions) -> Self {
        Self { state: Arc::new(session::with(functions).build()) }
    }
}

impl Default for SqlCompiler {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SqlCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlCompiler")
    }
}

impl Compiler for SqlCompiler {
    fn compile(&self, sql: &str, input: &Schema) -> Result<Arc<dyn Expression>, CompileError> {
        on_large_stack(|| compile(&self.state, sql, input))
    }
}

/// Compiles on a thread of its own: parser and planner recurse with large frames, and the caller's stack may be small.
pub(crate) fn on_large_stack<T: Send>(
    compile: impl FnOnce() -> Result<T, CompileError> + Send,
) -> Result<T, CompileError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("sql-compiler".into()).stack_size(STACK);
        let handle = thread.spawn_scoped(scope, compile).map_err(|error| CompileError {
            code: "sql::internal",
            message: format!("cannot start a thread to compile: {error}"),
            help: None,
            at: None,
        })?;
        handle.join().unwrap_or_else(|_| {
            Err(CompileError {
                code: "sql::internal",
                message: "the compiler failed on this SQL".into(),
                help: Some("this is a bug of Logdrive: please report the SQL".into()),
                at: None,
            })
        })
    })
}

fn compile(state: &SessionState, sql: &str, input: &Schema) -> Result<Arc<dyn Expression>, CompileError> {
    let expression = logical(state, sql, input)?;
    let mut columns: Vec<String> =
        expression.column_refs().into_iter().map(|column| column.name.clone()).collect();
    columns.sort_unstable();
    columns.dedup();
    let read = input
        .project(&columns.iter().filter_map(|name| input.index_of(name).ok()).collect::<Vec<_>>())
        .map_err(|error| mistyped(&error.into()))?;
    let read = DFSchema::try_from(read).map_err(|error| mistyped(&error))?;
    let data_type = expression.get_type(&read).map_err(|error| mistyped(&error))?;
    let physical = state.create_physical_expr(expression, &read).map_err(|error| mistyped(&error))?;
    Ok(Arc::new(SqlExpression::new(sql, physical, data_type, columns)))
}

/// A checked, typed and simplified expression over the columns of `input`.
pub(crate) fn logical(state: &SessionState, sql: &str, input: &Schema) -> Result<Expr, CompileError> {
    let positions = Positions::new(sql);
    let mut parsed = parse(sql, input, &positions)?;
    subscripts(&mut parsed);
    names::check(&parsed, input.fields(), state, &positions)?;
    // DataFusion looks functions up by the name as written.
    lower_function_names(&mut parsed);

    let schema = DFSchema::try_from(input.clone()).map_err(|error| mistyped(&error))?;
    let aliased = ast::ExprWithAlias { expr: parsed, alias: None };
    let expression =
        state.create_logical_expr_from_sql_expr(aliased, &schema).map_err(|error| mistyped(&error))?;
    let expression = balance(expression);
    check_depth(&expression)?;
    let expression = simplify(state, expression, &schema)?;
    // Functions that users define are part of it now.
    check_depth(&expression)?;
    check_constants(state, &expression)?;
    as_view(expression, &schema)
}

fn check_depth(expression: &Expr) -> Result<(), CompileError> {
    if depth(expression) <= DEPTH_LIMIT {
        return Ok(());
    }
    let help = format!("operators and calls may be {DEPTH_LIMIT} deep");
    Err(syntax("the expression is nested too deeply", Some(help), None))
}

fn parse(sql: &str, input: &Schema, positions: &Positions<'_>) -> Result<ast::Expr, CompileError> {
    let mut tokens = tokens(sql, positions)?;
    quote_columns(&mut tokens, |name| input.column_with_name(name).is_some());
    if tokens.iter().all(|token| matches!(token.token, Token::Whitespace(_) | Token::EOF)) {
        return Err(syntax("the expression is empty", None, None));
    }
    let mut parser =
        Parser::new(&DIALECT).with_recursion_limit(4 * NESTING_LIMIT).with_tokens_with_locations(tokens);
    let expression = parser.parse_expr().map_err(|error| match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => {
            let (message, at) = positions.of_message(&message);
            syntax(message, None, at)
        }
        ParserError::RecursionLimitExceeded => syntax("the expression is nested too deeply", None, None),
    })?;
    let next = parser.peek_token();
    match &next.token {
        Token::EOF => Ok(expression),
        Token::SemiColon => Err(syntax("an expression has no `;`", None, positions.range(next.span))),
        token => Err(syntax(
            format!("the expression ends before `{token}`"),
            Some("join conditions with AND or OR; put text into single quotes".into()),
            positions.range(next.span),
        )),
    }
}

/// Writes `a['b'].c` as `a['b']['c']`, which the planner knows; and `c` no longer looks like a column.
fn subscripts(expression: &mut ast::Expr) {
    let walk: std::ops::ControlFlow<()> = ast::visit_expressions_mut(expression, |node| {
        if let ast::Expr::CompoundFieldAccess { access_chain, .. } = node {
            for step in access_chain {
                if let ast::AccessExpr::Dot(ast::Expr::Identifier(name)) = step {
                    let value = ast::Value::SingleQuotedString(name.value.clone()).with_span(name.span);
                    let index = ast::Expr::Value(value);
                    *step = ast::AccessExpr::Subscript(ast::Subscript::Index { index });
                }
            }
        }
        std::ops::ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
}

fn lower_function_names(expression: &mut ast::Expr) {
    let walk: std::ops::ControlFlow<()> = ast::visit_expressions_mut(expression, |node| {
        if let ast::Expr::Function(function) = node
            && let [ast::ObjectNamePart::Identifier(name)] = function.name.0.as_mut_slice()
        {
            name.value.make_ascii_lowercase();
        }
        std::ops::ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
}

/// Long chains of AND and OR as trees of logarithmic depth; their meaning does not depend on the grouping.
fn balance(expression: Expr) -> Expr {
    let operator = match &expression {
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::And | Operator::Or) => binary.op,
        _ => return expression,
    };
    let (mut pending, mut parts) = (vec![expression], Vec::new());
    while let Some(part) = pending.pop() {
        match part {
            Expr::BinaryExpr(binary) if binary.op == operator => {
                pending.push(*binary.right);
                pending.push(*binary.left);
            }
            other => parts.push(balance(other)),
        }
    }
    while parts.len() > 1 {
        let mut pairs = Vec::with_capacity(parts.len().div_ceil(2));
        let mut rest = parts.into_iter();
        while let Some(left) = rest.next() {
            pairs.push(match rest.next() {
                Some(right) => binary_expr(left, operator, right),
                None => left,
            });
        }
        parts = pairs;
    }
    parts.pop().expect("a chain has parts")
}

fn simplify(state: &SessionState, expression: Expr, schema: &DFSchema) -> Result<Expr, CompileError> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::clone(state.config_options()))
        .build();
    let simplifier = ExprSimplifier::new(context);
    simplifier
        .coerce(expression, schema)
        .and_then(|expression| simplifier.simplify(expression))
        .map_err(|error| mistyped(&error))
}

/// Refuses casts of constants that fail: folding leaves them in place, and every row would fail on them.
fn check_constants(state: &SessionState, expression: &Expr) -> Result<(), CompileError> {
    let mut failed = None;
    let walked = expression.apply(|node| {
        if let Expr::Cast(cast) = node
            && matches!(*cast.expr, Expr::Literal(..))
        {
            let evaluated = state
                .create_physical_expr(node.clone(), &DFSchema::empty())
                .and_then(|physical| evaluate::constant(&physical));
            if let Err(error) = evaluated {
                failed = Some(mistyped(&error));
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    match (failed, walked) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(mistyped(&error)),
        (None, Ok(_)) => Ok(()),
    }
}

/// Text leaves as views, the only string type that rows have.
fn as_view(expression: Expr, schema: &DFSchema) -> Result<Expr, CompileError> {
    match expression.get_type(schema).map_err(|error| mistyped(&error))? {
        DataType::Utf8 | DataType::LargeUtf8 => Ok(cast(expression, DataType::Utf8View)),
        _ => Ok(expression),
    }
}

/// How many operators and calls are inside each other.
pub(crate) fn depth(expression: &Expr) -> usize {
    let (mut pending, mut deepest) = (vec![(expression, 1)], 0);
    while let Some((node, level)) = pending.pop() {
        deepest = deepest.max(level);
        let visited = node.apply_children(|child| {
            pending.push((child, level + 1));
            Ok(TreeNodeRecursion::Continue)
        });
        debug_assert!(visited.is_ok(), "the closure never fails");
    }
    deepest
}

pub(crate) fn mistyped(error: &DataFusionError) -> CompileError {
    CompileError { code: "sql::type", message: readable(error), help: None, at: None }
}

/// DataFusion's message without its own categories, backtraces and advice on its own settings.
pub(crate) fn readable(error: &DataFusionError) -> String {
    let message = error.find_root().strip_backtrace();
    // A function with many signatures gives one reason for each; the first will do.
    if let Some((_, reasons)) = message.split_once("failed to match any signature, errors: ") {
        let reason = reasons.strip_prefix("Error during planning: ").unwrap_or(reasons);
        return reason.split(",Error during planning").next().unwrap_or_default().trim_end().into();
    }
    let mut text = message.as_str();
    for prefix in [
        "Error during planning: ",
        "Execution error: ",
        "Arrow error: ",
        "Schema error: ",
        "SQL error: ",
        "Optimizer rule 'simplify_expressions' failed",
        "type_coercion\ncaused by\n",
        "This feature is not implemented: ",
        "Invalid argument error: ",
        "Cast error: ",
        "Parser error: ",
    ] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    text.lines().next().unwrap_or_default().trim_end().into()
}
