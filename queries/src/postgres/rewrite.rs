//! Statements of PostgreSQL's clients in the SQL that DataFusion plans.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Expr, Ident, ObjectName, ObjectNamePart, SelectItem, SetExpr,
};

use super::{CATALOG, INFORMATION, SCHEMA, catalog};

/// What became of a statement.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    /// The tables that it reads beside the catalog, each once.
    pub(crate) tables: Vec<String>,
    /// Whether it reads the catalog.
    pub(crate) catalog: bool,
    /// Whether it reads a table of the catalog that is always empty.
    pub(crate) empty: bool,
    /// What PostgreSQL calls the columns, where it calls them otherwise than DataFusion; none if they are not known by
    /// their place.
    pub(crate) columns: Vec<Option<String>>,
}

/// Brings a statement into shape.
pub(crate) fn rewrite(statement: &mut Statement) -> Rewritten {
    let mut rewritten = Rewritten::default();
    let statement = match statement {
        Statement::Statement(statement) => statement.as_mut(),
        Statement::Explain(explain) => {
            rewritten = rewrite(&mut explain.statement);
            rewritten.columns.clear();
            return rewritten;
        }
        _ => return rewritten,
    };
    // Before what the columns are computed from is something else.
    if let ast::Statement::Query(query) = statement {
        rewritten.columns = columns(&mut query.body);
    }
    let walk: ControlFlow<()> = ast::visit_expressions_mut(statement, |expression| {
        change(expression);
        ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
    let own = own_names(statement);
    let walk: ControlFlow<()> = ast::visit_relations_mut(statement, |name| {
        relation(name, &own, &mut rewritten);
        ControlFlow::Continue(())
    });
    debug_assert!(walk.is_continue(), "nothing breaks it");
    rewritten
}

/// The names that a query defines itself.
fn own_names(statement: &ast::Statement) -> Vec<String> {
    let ast::Statement::Query(query) = statement else { return Vec::new() };
    let tables = query.with.iter().flat_map(|with| &with.cte_tables);
    tables.map(|table| table.alias.name.value.clone()).collect()
}

fn relation(name: &mut ObjectName, own: &[String], rewritten: &mut Rewritten) {
    let parts: Vec<&Ident> = name.0.iter().filter_map(ObjectNamePart::as_ident).collect();
    // A database before the schema says nothing: there is one.
    let parts = if parts.len() == 3 { &parts[1..] } else { &parts[..] };
    let lower = |ident: &Ident| ident.value.to_ascii_lowercase();
    let (schema, table) = match parts {
        [schema, table] if [CATALOG, INFORMATION].contains(&lower(schema).as_str()) => {
            (Some(lower(schema)), lower(table))
        }
        [schema, table] if lower(schema) == SCHEMA => (None, table.value.clone()),
        [table] if own.contains(&table.value) => return,
        [table] if catalog::is_known(&lower(table)) => (Some(CATALOG.to_owned()), lower(table)),
        [table] => (None, table.value.clone()),
        // A route of a stream has a dot in its name.
        several => {
            let names: Vec<&str> = several.iter().map(|part| part.value.as_str()).collect();
            (None, names.join("."))
        }
    };
    let is_bare = name.0.len() == 1;
    match schema {
        Some(schema) => {
            rewritten.catalog = true;
            rewritten.empty |= super::is_empty(&table);
            *name = ObjectName::from(vec![Ident::new(schema), Ident::new(table)]);
        }
        None => {
            if !rewritten.tables.contains(&table) {
                rewritten.tables.push(table.clone());
            }
            // What stands alone may be a function, whose name is not quoted.
            if !is_bare {
                *name = ObjectName::from(vec![Ident::with_quote('"', table)]);
            }
        }
    }
}

/// Names without the schema of the catalog, in lower case.
fn own(name: &mut ObjectName) {
    if let [ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(_)] = name.0.as_slice()
        && [CATALOG, INFORMATION].contains(&schema.value.to_ascii_lowercase().as_str())
    {
        name.0.remove(0);
    }
    if let [ObjectNamePart::Identifier(name)] = name.0.as_mut_slice() {
        name.value.make_ascii_lowercase();
    }
}

fn change(expression: &mut Expr) {
    match expression {
        Expr::Function(function) => match &function.args {
            ast::FunctionArguments::Subquery(query) if reads_empty(query) => *expression = null(),
            _ => own(&mut function.name),
        },
        Expr::BinaryOp { op: op @ BinaryOperator::PGCustomBinaryOperator(_), .. } => {
            let BinaryOperator::PGCustomBinaryOperator(name) = op else { return };
            let known = match name.last().map(String::as_str) {
                Some("~") => BinaryOperator::PGRegexMatch,
                Some("~*") => BinaryOperator::PGRegexIMatch,
                Some("!~") => BinaryOperator::PGRegexNotMatch,
                Some("!~*") => BinaryOperator::PGRegexNotIMatch,
                Some("=") => BinaryOperator::Eq,
                Some("<>") => BinaryOperator::NotEq,
                Some("~~") => BinaryOperator::PGLikeMatch,
                _ => return,
            };
            *op = known;
        }
        // The one function of these that the parser takes for a name.
        Expr::Identifier(name)
            if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("current_schema") =>
        {
            *expression = call("current_schema", None);
        }
        Expr::Collate { expr, .. } => *expression = std::mem::replace(expr, null()),
        Expr::Cast { .. } => cast(expression),
        // A table that is empty gives nothing, and DataFusion cannot decorrelate what only looks for one row.
        Expr::Subquery(query) if reads_empty(query) => *expression = null(),
        // Whether a schema is searched: that of the views is.
        Expr::InSubquery { expr, subquery, negated } if subquery.to_string().contains("search_path") => {
            let schema = ast::Value::SingleQuotedString(SCHEMA.into()).into();
            *expression = Expr::BinaryOp {
                left: std::mem::replace(expr, Box::new(null())),
                op: if *negated { BinaryOperator::NotEq } else { BinaryOperator::Eq },
                right: Box::new(Expr::Value(schema)),
            };
        }
        _ => {}
    }
}

fn null() -> Expr {
    Expr::Value(ast::Value::Null.into())
}

fn reads_empty(query: &ast::Query) -> bool {
    let found = ast::visit_relations(query, |name| {
        let table = name.0.last().and_then(ObjectNamePart::as_ident);
        match table.is_some_and(|table| super::is_empty(&table.value.to_ascii_lowercase())) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    found.is_break()
}

/// A call of a function.
fn call(function: &str, argument: Option<Expr>) -> Expr {
    let argument = argument.map(|argument| ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(argument)));
    let arguments = ast::FunctionArgumentList {
        duplicate_treatment: None,
        args: argument.into_iter().collect(),
        clauses: Vec::new(),
    };
    Expr::Function(ast::Function {
        name: ObjectName::from(vec![Ident::new(function)]),
        uses_odbc_syntax: false,
        parameters: ast::FunctionArguments::None,
        args: ast::FunctionArguments::List(arguments),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Types that only PostgreSQL has.
fn cast(expression: &mut Expr) {
    let Expr::Cast { expr, data_type, .. } = expression else { return };
    let name = match data_type {
        ast::DataType::Regclass => "regclass".to_owned(),
        ast::DataType::Custom(name, _) => {
            let last = name.0.last().and_then(ObjectNamePart::as_ident);
            last.map(|ident| ident.value.to_ascii_lowercase()).unwrap_or_default()
        }
        ast::DataType::JSON | ast::DataType::JSONB => "text".to_owned(),
        _ => return,
    };
    let is_text =
        matches!(**expr, Expr::Value(ast::ValueWithSpan { value: ast::Value::SingleQuotedString(_), .. }));
    match name.as_str() {
        "regclass" if is_text => *expression = call("to_regclass", Some(std::mem::replace(expr, null()))),
        "regclass" => *expression = call("pg_relation_name", Some(std::mem::replace(expr, null()))),
        "regtype" if !is_text => *expression = call("format_type", Some(std::mem::replace(expr, null()))),
        "oid" | "xid" => *data_type = ast::DataType::BigInt(None),
        "bool" | "boolean" => *data_type = ast::DataType::Boolean,
        "int2" => *data_type = ast::DataType::SmallInt(None),
        "int4" | "int" => *data_type = ast::DataType::Int(None),
        "int8" => *data_type = ast::DataType::BigInt(None),
        "float8" => *data_type = ast::DataType::Double(ast::ExactNumberInfo::None),
        "timestamptz" => *data_type = ast::DataType::Timestamp(Some(6), ast::TimezoneInfo::WithTimeZone),
        "name" | "text" | "char" | "bpchar" | "varchar" | "regtype" | "regproc" | "regprocedure"
        | "regnamespace" | "regrole" | "cstring" | "unknown" | "json" | "jsonb" | "int2vector"
        | "oidvector" | "citext" => {
            *data_type = ast::DataType::Text;
        }
        _ => {}
    }
}

/// What PostgreSQL would call the columns. A column that stands there twice gets another name for DataFusion, which
/// wants each only once.
fn columns(body: &mut SetExpr) -> Vec<Option<String>> {
    let select = match body {
        SetExpr::Select(select) => select,
        SetExpr::Query(query) => return columns(&mut query.body),
        SetExpr::SetOperation { left, right, .. } => {
            columns(right);
            return columns(left);
        }
        _ => return Vec::new(),
    };
    let mut taken: Vec<String> = Vec::new();
    let mut names = Vec::with_capacity(select.projection.len());
    for (place, item) in select.projection.iter_mut().enumerate() {
        let (key, name) = match item {
            SelectItem::UnnamedExpr(expression) => (expression.to_string(), name_of(expression)),
            SelectItem::ExprWithAlias { alias, .. } => (alias.value.clone(), Some(alias.value.clone())),
            // How many columns a wildcard stands for is not known here.
            _ => return Vec::new(),
        };
        if taken.contains(&key) {
            let alias = Ident::with_quote('"', format!("{key}:{place}"));
            match item {
                SelectItem::UnnamedExpr(expression) => {
                    let expr = std::mem::replace(expression, null());
                    *item = SelectItem::ExprWithAlias { expr, alias };
                }
                SelectItem::ExprWithAlias { alias: old, .. } => *old = alias,
                _ => {}
            }
        }
        taken.push(key);
        names.push(Some(name.unwrap_or_else(|| "?column?".to_owned())));
    }
    names
}

fn name_of(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Identifier(name) => Some(name.value.clone()),
        Expr::CompoundIdentifier(names) => names.last().map(|name| name.value.clone()),
        Expr::Function(function) => {
            let last = function.name.0.last().and_then(ObjectNamePart::as_ident);
            last.map(|name| name.value.to_ascii_lowercase())
        }
        Expr::Cast { expr, data_type, .. } => {
            name_of(expr).or_else(|| Some(data_type.to_string().to_ascii_lowercase()))
        }
        Expr::Nested(inner) => name_of(inner),
        Expr::Case { .. } => Some("case".to_owned()),
        Expr::Extract { .. } => Some("extract".to_owned()),
        Expr::Value(value) if matches!(value.value, ast::Value::Boolean(_)) => Some("bool".to_owned()),
        _ => None,
    }
}
