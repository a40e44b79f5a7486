//! The names in an expression, checked before it is planned: only here do errors know where a name is written and
//! which one was meant.

use std::ops::ControlFlow;

use arrow::datatypes::{DataType, Fields};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Volatility;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, Expr, Function, Ident, ObjectNamePart, Spanned, Subscript, Value, visit_expressions,
};
use datafusion::sql::sqlparser::tokenizer::Span;
use logdrive_operators::CompileError;
use logdrive_schemas::component::nearest;

use super::text::{Positions, syntax};

/// Checks every name and refuses what is not a scalar expression.
pub(super) fn check(
    expression: &Expr,
    columns: &Fields,
    state: &SessionState,
    positions: &Positions<'_>,
) -> Result<(), CompileError> {
    let checker = Checker { columns, state, positions, parameters: lambda_parameters(expression) };
    match visit_expressions(expression, |node| match checker.node(node) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// The names that lambdas bind (`x -> x + 1`); they are not columns.
fn lambda_parameters(expression: &Expr) -> Vec<String> {
    let mut names = Vec::new();
    let walk: ControlFlow<()> = visit_expressions(expression, |node| {
        if let Expr::Lambda(lambda) = node {
            names.extend(lambda.params.iter().map(|parameter| parameter.name.value.clone()));
        }
        ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
    names
}

struct Checker<'a> {
    columns: &'a Fields,
    state: &'a SessionState,
    positions: &'a Positions<'a>,
    parameters: Vec<String>,
}

impl Checker<'_> {
    fn node(&self, node: &Expr) -> Result<(), CompileError> {
        match node {
            Expr::Identifier(name) => self.path(&[name]),
            Expr::CompoundIdentifier(names) => self.path(&names.iter().collect::<Vec<_>>()),
            Expr::CompoundFieldAccess { root, access_chain } => self.access(root, access_chain),
            Expr::Function(function) => self.function(function, node.span()),
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::AnyOp { .. }
                if contains_query(node) =>
            {
                let help = "to join with other data use a `lookup` step".to_owned();
                Err(self.refuse("an expression cannot contain a query", Some(help), node.span()))
            }
            Expr::Value(value) if matches!(value.value, Value::Placeholder(_)) => {
                Err(self.refuse("an expression has no parameters", None, value.span))
            }
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => {
                Err(self.refuse("`*` is not an expression", None, node.span()))
            }
            _ => Ok(()),
        }
    }

    fn refuse(&self, message: &str, help: Option<String>, span: Span) -> CompileError {
        syntax(message, help, self.positions.range(span))
    }

    /// `a`, or `a.b.c` into structs.
    fn path(&self, names: &[&Ident]) -> Result<(), CompileError> {
        if self.parameters.contains(&names[0].value) {
            return Ok(());
        }
        let mut fields = self.columns;
        for (depth, name) in names.iter().enumerate() {
            let Some((_, field)) = fields.find(&name.value) else {
                return Err(
                    self.unknown(&names[..=depth], Span::union_iter(names[..=depth].iter().map(|n| n.span)))
                );
            };
            match field.data_type() {
                DataType::Struct(nested) => fields = nested,
                _ if depth + 1 < names.len() => {
                    let message =
                        format!("`{}` has no fields: it is {}", dotted(&names[..=depth]), field.data_type());
                    let at = self.positions.range(names[depth + 1].span);
                    return Err(CompileError { code: "sql::unknown_column", message, help: None, at });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `a['b'].c`, as far as names are constant. The root is checked by itself.
    fn access(&self, root: &Expr, chain: &[AccessExpr]) -> Result<(), CompileError> {
        let mut names: Vec<&Ident> = match root {
            Expr::Identifier(name) => vec![name],
            Expr::CompoundIdentifier(names) => names.iter().collect(),
            _ => return Ok(()),
        };
        let mut owned = Vec::new();
        for step in chain {
            match step {
                AccessExpr::Subscript(Subscript::Index { index: Expr::Value(value) }) => match &value.value {
                    Value::SingleQuotedString(name) => {
                        owned.push(Ident { value: name.clone(), quote_style: None, span: value.span });
                    }
                    _ => break,
                },
                _ => break,
            }
        }
        let mut columns = self.columns;
        let mut inside = true;
        for name in &names {
            match columns.find(&name.value).map(|(_, field)| field.data_type()) {
                Some(DataType::Struct(nested)) => columns = nested,
                _ => inside = false,
            }
        }
        // A subscript of a list or a map is a key, not a field.
        for name in &owned {
            if !inside {
                break;
            }
            names.push(name);
            match columns.find(&name.value).map(|(_, field)| field.data_type()) {
                Some(DataType::Struct(nested)) => columns = nested,
                _ => inside = false,
            }
        }
        self.path(&names)
    }

    fn unknown(&self, names: &[&Ident], span: Span) -> CompileError {
        let name = dotted(names);
        let valid = paths(self.columns, "");
        let valid: Vec<&str> = valid.iter().map(String::as_str).collect();
        let last = names[names.len() - 1].value.as_str();
        let help = match nearest_name(&name, &valid) {
            Some(meant) => format!("did you mean `{}`?", quoted(meant)),
            // A field named without the object that it is in.
            None => {
                match valid.iter().find(|path| path.rsplit_once('.').is_some_and(|(_, leaf)| leaf == last)) {
                    Some(path) => format!("did you mean `{path}`?"),
                    None => "declare it in the source's schema (`logdrive infer` prints one)".into(),
                }
            }
        };
        CompileError {
            code: "sql::unknown_column",
            message: format!("unknown field `{name}`"),
            help: Some(help),
            at: self.positions.range(span),
        }
    }

    fn function(&self, function: &Function, span: Span) -> Result<(), CompileError> {
        let [ObjectNamePart::Identifier(ident)] = function.name.0.as_slice() else {
            return Err(self.unknown_function(&function.name.to_string(), span));
        };
        let name = ident.value.to_ascii_lowercase();
        if function.over.is_some() {
            let help = "windows belong into a view or a detector".to_owned();
            return Err(self.refuse(
                "an expression sees one row, not a window of rows",
                Some(help),
                ident.span,
            ));
        }
        if let Some(known) = self.state.scalar_functions().get(&name) {
            if known.signature().volatility == Volatility::Immutable {
                return Ok(());
            }
            return Err(CompileError {
                code: "sql::volatile",
                message: format!("`{name}` gives another value each time, so a replay would not repeat it"),
                help: Some("use the time in the row, such as \"@timestamp\"".into()),
                at: self.positions.range(ident.span),
            });
        }
        // The parser has its own nodes for these, and the planner its own functions.
        if self.state.higher_order_functions().contains_key(&name) || name == "map" || name == "struct" {
            return Ok(());
        }
        if self.state.aggregate_functions().contains_key(&name)
            || self.state.window_functions().contains_key(&name)
        {
            let help = "aggregates belong into a view, or use a `velocity` detector".to_owned();
            let message = format!("`{name}` needs many rows, and an expression sees one");
            return Err(self.refuse(&message, Some(help), ident.span));
        }
        Err(self.unknown_function(&ident.value, ident.span))
    }

    fn unknown_function(&self, name: &str, span: Span) -> CompileError {
        let mut known: Vec<&str> = self.state.scalar_functions().keys().map(String::as_str).collect();
        known.sort_unstable();
        CompileError {
            code: "sql::unknown_function",
            message: format!("unknown function `{name}`"),
            help: nearest_name(name, &known).map(|meant| format!("did you mean `{meant}`?")),
            at: self.positions.range(span),
        }
    }
}

/// Whether the node is itself a query in brackets, or compares with one.
fn contains_query(node: &Expr) -> bool {
    match node {
        Expr::AnyOp { right, .. } => matches!(**right, Expr::Subquery(_)),
        _ => true,
    }
}

/// The most similar name; one that differs in case only comes first.
pub(crate) fn nearest_name<'a>(name: &str, valid: &[&'a str]) -> Option<&'a str> {
    valid
        .iter()
        .find(|candidate| candidate.eq_ignore_ascii_case(name))
        .copied()
        .or_else(|| nearest(name, valid))
}

fn dotted(names: &[&Ident]) -> String {
    names.iter().map(|name| name.value.as_str()).collect::<Vec<_>>().join(".")
}

/// All fields with those inside structs, as `a.b`.
fn paths(fields: &Fields, prefix: &str) -> Vec<String> {
    let mut all = Vec::new();
    for field in fields {
        let path = format!("{prefix}{}", field.name());
        if let DataType::Struct(nested) = field.data_type() {
            all.extend(paths(nested, &format!("{path}.")));
        }
        all.push(path);
    }
    all
}

/// A name as SQL needs it written.
pub(crate) fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    if path.chars().all(plain) { path.into() } else { format!("\"{path}\"") }
}
