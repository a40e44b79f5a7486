//! A file of sqllogictest: its statements make tables in DataFusion, its queries are handed on.

use std::path::Path;

use datafusion::datasource::TableType;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::Token;
use sqllogictest::{Condition, DefaultColumnType, ExpectedError, QueryExpect, Record};

use super::super::*;
use super::stream::Content;
use crate::compiler::tokens;

/// What a file says of a query.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    Rows(Vec<String>),
    Error(ExpectedError),
}

/// A query of a file.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) sql: String,
    pub(super) expected: Expected,
    /// Whether DataFusion can be asked, too.
    pub(super) has_batch_answer: bool,
    /// What the file calls it.
    pub(super) label: Option<String>,
    /// The headline above it: `## …`.
    pub(super) feature: String,
}

/// The tables that the statements of a file made.
pub(super) struct Script {
    runtime: tokio::runtime::Runtime,
    context: SessionContext,
    /// Rows that were deleted or changed, by table.
    gone: BTreeMap<String, Vec<RecordBatch>>,
}

/// Statements that make tables, or change what is in them. No other is executed: files are neither read nor written.
const STATEMENTS: &[&str] = &[
    "create table",
    "create or replace table",
    "create view",
    "create or replace view",
    "create temporary view",
    "insert into",
    "insert overwrite",
    "delete from",
    "update",
    "truncate",
    "drop",
    "set datafusion",
    "reset",
];

impl Script {
    pub(super) fn new() -> Self {
        let context = SessionContext::new_with_state(session::builder().build());
        windows::udfs().for_each(|udf| context.register_udf(udf));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { runtime, context, gone: BTreeMap::new() }
    }

    /// Reads a file; `folds` says whether names without quotes are meant in lower case.
    pub(super) fn run(&mut self, path: &Path, folds: bool, mut asked: impl FnMut(&Self, Asked)) {
        let records = sqllogictest::parse_file::<DefaultColumnType>(path).unwrap();
        let text = |sql: &str| if folds { folded(sql) } else { sql.to_owned() };
        let mut feature = String::new();
        for record in records {
            match record {
                Record::Halt { .. } => return,
                Record::Comment(lines) => {
                    if let Some(headline) = lines.iter().rev().find_map(|line| line.strip_prefix("# ")) {
                        feature = headline.to_owned();
                    }
                }
                Record::Statement { conditions, sql, .. } if is_meant(&conditions) => {
                    self.execute(&text(&sql));
                }
                Record::Query { loc, conditions, sql, expected, .. } if is_meant(&conditions) => {
                    let (expected, label) = match expected {
                        QueryExpect::Results { results, label, .. } => (Expected::Rows(results), label),
                        QueryExpect::Error(error) => (Expected::Error(error), None),
                    };
                    let sql = text(&sql);
                    if is_statement(&sql) {
                        self.execute(&sql);
                        continue;
                    }
                    let only_views = Condition::OnlyIf { label: "views".into() };
                    let has_batch_answer = !conditions.contains(&only_views);
                    let file = Path::new(loc.file()).file_name().unwrap().to_string_lossy().into_owned();
                    let feature = feature.clone();
                    asked(
                        self,
                        Asked { file, line: loc.line(), sql, expected, has_batch_answer, label, feature },
                    );
                }
                _ => {}
            }
        }
    }

    fn execute(&mut self, sql: &str) {
        if !is_statement(sql) {
            return;
        }
        let changed = changed_table(sql);
        let before = changed.as_ref().and_then(|name| Some((name.clone(), self.rows(name)?)));
        let done = self.runtime.block_on(async { self.context.sql(sql).await?.collect().await });
        if let (Ok(_), Some((name, rows))) = (done, before) {
            self.gone.entry(name).or_default().push(rows);
        }
    }

    /// The rows of a table; `None` if the statements did not make it.
    fn rows(&self, name: &str) -> Option<RecordBatch> {
        self.runtime.block_on(async {
            let provider = self.context.table_provider(name).await.ok()?;
            if !matches!(provider.table_type(), TableType::Base | TableType::View) {
                return None;
            }
            let frame = self.context.table(name).await.ok()?;
            let schema = Arc::new(frame.schema().as_arrow().clone());
            arrow::compute::concat_batches(&schema, &frame.collect().await.ok()?).ok()
        })
    }

    /// The tables of a query, and what they have; an error if they cannot be had.
    pub(super) fn contents(&self, sql: &str) -> Result<Vec<Content>, &'static str> {
        let state = self.context.state();
        let statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect);
        let statement = statement.map_err(|_| "does not parse")?;
        let Statement::Statement(inner) = &statement else { return Err("is no query") };
        if !matches!(**inner, ast::Statement::Query(_)) {
            return Err("is no query");
        }
        let tables = state.resolve_table_references(&statement).map_err(|_| "does not parse")?;
        if tables.is_empty() {
            return Err("reads no table");
        }
        let content = |name: String| {
            let rows = self.rows(&name).ok_or("reads tables that no statement here made")?;
            let gone = self.gone.get(&name).cloned().unwrap_or_default();
            // A table of that name may have had other columns.
            let gone = gone.into_iter().filter(|gone| gone.schema() == rows.schema()).collect();
            Ok(Content { name, rows, gone })
        };
        tables.iter().map(|table| content(table.table().to_owned())).collect()
    }

    /// What DataFusion answers.
    pub(super) fn answer(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        answer(&self.runtime, &self.context, sql)
    }

    /// What DataFusion answers if the tables have other rows.
    pub(super) fn answer_over(
        &self,
        sql: &str,
        tables: &[(String, RecordBatch)],
    ) -> Result<Vec<RecordBatch>> {
        let context = SessionContext::new_with_state(session::builder().build());
        windows::udfs().for_each(|udf| context.register_udf(udf));
        for (name, rows) in tables {
            let table = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]])?;
            context.register_table(name.as_str(), Arc::new(table))?;
        }
        answer(&self.runtime, &context, sql)
    }
}

fn answer(
    runtime: &tokio::runtime::Runtime,
    context: &SessionContext,
    sql: &str,
) -> Result<Vec<RecordBatch>> {
    let mut named = sql.to_owned();
    if let Ok(mut query) = sql::parse(sql, &[], &Positions::new(sql))
        && (sql.contains("_start(") || sql.contains("_end("))
    {
        sql::name_windows(&mut query);
        named = query.to_string();
    }
    runtime.block_on(async { context.sql(&named).await?.collect().await })
}

fn is_meant(conditions: &[Condition]) -> bool {
    conditions.iter().all(|condition| match condition {
        Condition::OnlyIf { label } => label == "views",
        Condition::SkipIf { label } => label != "views" && !label.eq_ignore_ascii_case("datafusion"),
    })
}

fn words(sql: &str) -> impl Iterator<Item = &str> {
    let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
    lines.flat_map(str::split_whitespace)
}

fn is_statement(sql: &str) -> bool {
    let start = words(sql).take(4).collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    STATEMENTS.iter().any(|statement| start.starts_with(statement))
}

/// The table of which a statement takes rows away.
fn changed_table(sql: &str) -> Option<String> {
    let mut words = words(sql);
    let name = match words.next()?.to_ascii_lowercase().as_str() {
        "delete" => words.nth(1),
        "update" => words.next(),
        _ => None,
    };
    name.map(|name| name.trim_end_matches(';').to_owned())
}

/// Names without quotes in lower case, as most databases take them.
fn folded(sql: &str) -> String {
    let positions = Positions::new(sql);
    let Ok(tokens) = tokens(sql, &positions) else { return sql.to_owned() };
    let mut folded = sql.to_owned();
    for token in tokens {
        if let (Token::Word(word), Some((start, len))) = (&token.token, positions.range(token.span))
            && word.quote_style.is_none()
        {
            folded[start..start + len].make_ascii_lowercase();
        }
    }
    folded
}
