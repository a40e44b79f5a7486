//! SQL over Parquet by path, also while a pipeline writes it.
//!
//! `FROM 'data/lake'` is a folder that a `parquet` sink writes, any other folder or file of Parquet, or a CSV or
//! NDJSON file. A query sees the files that were complete when it began; files written by other versions of a
//! pipeline are merged by column name. Statements that would write anything are refused.

mod error;
mod files;
mod schema;
mod table;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{TableReference, plan_err};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::datasource::{MemTable, TableProvider};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::object_store::ObjectStore;
use datafusion::prelude::{CsvReadOptions, DataFrame, JsonReadOptions, SQLOptions, SessionContext};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast;
use futures::TryStreamExt;
use url::Url;

use self::error::Failure;
pub use self::error::SqlError;
pub(crate) use self::error::describe;
use self::table::LakeTable;
use crate::compiler::{Positions, depth, nearest_name, tokens};
use crate::session;

/// How a query is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names that stand for paths, such as those of a pipeline's sinks and streams.
    pub tables: Vec<(String, String)>,
    /// Tables in memory, such as live views.
    pub memory_tables: Vec<(String, SchemaRef, Vec<RecordBatch>)>,
    /// Whether a query may name any path. Otherwise there are only `tables` and `memory_tables`.
    pub any_path: bool,
    /// Object stores by URL (`s3://bucket`), for paths that start with it. Local paths need none.
    pub stores: Vec<(Url, Arc<dyn ObjectStore>)>,
    /// The memory that sorting, grouping and joining may take, and the size that an answer may have, in bytes each.
    /// What sorts and groups beyond it spills to the disk.
    pub memory: usize,
    /// The space that spilling may take, in bytes.
    pub spill: u64,
    /// How long a query may run.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            memory_tables: Vec::new(),
            any_path: true,
            stores: Vec::new(),
            memory: 1 << 30,
            spill: 16 << 30,
            timeout: Duration::from_secs(300),
        }
    }
}

/// What a query gives.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows, in order.
    pub batches: Vec<RecordBatch>,
}

impl Answer {
    /// The number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// The stack of the thread that plans a query, in bytes; planning recurses with large frames.
const STACK: usize = 128 << 20;

/// The deepest expression that a query may have; tokio's threads evaluate it recursively, on stacks of 2 MiB.
const DEPTH_LIMIT: usize = 200;

/// Answers one `SELECT`, `EXPLAIN`, `DESCRIBE` or `SHOW`. Must be called within a tokio runtime; reading and
/// computing use its threads. Dropping the future stops the query.
///
/// # Errors
/// If the statement does not parse, would write something, names what does not exist, fails, or exceeds the limits
/// of `options`.
pub async fn query(sql: &str, options: &Options) -> Result<Answer, SqlError> {
    let (mut sender, receiver) = tokio::sync::oneshot::channel();
    let timeout = options.timeout;
    let (runtime, sql, options) = (tokio::runtime::Handle::current(), sql.to_owned(), options.clone());
    let work = move || {
        runtime.block_on(async {
            tokio::select! {
                answer = query_here(&sql, &options) => drop(sender.send(answer)),
                // Nobody waits for the answer any more.
                () = sender.closed() => {}
            }
        });
    };
    std::thread::Builder::new()
        .name("sql-query".into())
        .stack_size(STACK)
        .spawn(work)
        .map_err(|error| SqlError::new("sql::failed", format!("cannot start a thread: {error}")))?;
    // The clock is watched here and not in the query's own thread: an operator may compute for long before it
    // lets anything else run.
    match tokio::time::timeout(timeout, receiver).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(SqlError::new("sql::failed", "the query failed unexpectedly")
            .help("this is a bug of Logdrive: please report the query")),
        Err(_) => Err(SqlError::new("sql::timeout", format!("no answer within {} s", timeout.as_secs_f64()))
            .help("restrict the rows, for instance by a partition column")),
    }
}

async fn query_here(sql: &str, options: &Options) -> Result<Answer, SqlError> {
    let positions = Positions::new(sql);
    let statement = parse(sql, &positions)?;
    // A sink may replace files (compaction, retention) between our listing and our reading.
    match attempt(statement.clone(), options, &positions).await {
        Err(Failure::Vanished(_)) => attempt(statement, options, &positions).await,
        result => result,
    }
    .map_err(Failure::into_error)
}

/// Parses, and refuses what does more than read.
fn parse(sql: &str, positions: &Positions<'_>) -> Result<Statement, SqlError> {
    // The limits on depth hold for queries as for expressions.
    tokens(sql, positions)?;
    let failed = |error| Failure::of(&error, positions).into_error();
    let mut parser = DFParserBuilder::new(sql).build().map_err(failed)?;
    let mut statements = parser.parse_statements().map_err(failed)?;
    let (Some(statement), None) = (statements.pop_front(), statements.pop_front()) else {
        return Err(SqlError::new("sql::syntax", "exactly one statement is needed"));
    };
    if reads_only(&statement) {
        return Ok(statement);
    }
    Err(SqlError::new("sql::read_only", "only SELECT, EXPLAIN, DESCRIBE and SHOW are answered")
        .help("the lake is written by pipelines"))
}

fn reads_only(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(
            statement.as_ref(),
            ast::Statement::Query(_)
                | ast::Statement::ExplainTable { .. }
                | ast::Statement::ShowColumns { .. }
                | ast::Statement::ShowFunctions { .. }
                | ast::Statement::ShowTables { .. }
        ),
        Statement::Explain(explain) => reads_only(&explain.statement),
        _ => false,
    }
}

async fn attempt(
    statement: Statement,
    options: &Options,
    positions: &Positions<'_>,
) -> Result<Answer, Failure> {
    let failed = |error| Failure::of(&error, positions);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(options.memory)))
        .with_max_temp_directory_size(options.spill)
        .build_arc()
        .map_err(failed)?;
    for (url, store) in &options.stores {
        runtime.register_object_store(url, Arc::clone(store));
    }
    let context = SessionContext::new_with_state(session::builder().with_runtime_env(runtime).build());
    let state = context.state();
    for reference in state.resolve_table_references(&statement).map_err(failed)? {
        let TableReference::Bare { table: name } = &reference else {
            if reference.schema() == Some("information_schema") {
                continue;
            }
            return Err(unknown_table(&reference.to_string(), options).into());
        };
        if state.table_functions().contains_key(name.as_ref()) {
            continue;
        }
        let table = open(name, &context, options, positions).await?;
        context.register_table(reference, table).map_err(failed)?;
    }
    // What SHOW TABLES shows; a sink that has written nothing yet is left out.
    if matches!(&statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::ShowTables { .. }))
    {
        let in_memory = options.memory_tables.iter().map(|(name, ..)| name);
        for name in options.tables.iter().map(|(name, _)| name).chain(in_memory) {
            if let Ok(table) = open(name, &context, options, positions).await {
                context.register_table(TableReference::bare(name.as_str()), table).map_err(failed)?;
            }
        }
    }
    // The state is taken again: `state` was a copy from before the tables.
    let plan = context.state().statement_to_plan(statement).await.map_err(failed)?;
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)
        .map_err(|_| SqlError::new("sql::read_only", "only statements that read are answered"))?;
    check_depth(&plan).map_err(failed)?;
    let rows = DataFrame::new(context.state(), plan).execute_stream().await.map_err(failed)?;
    collect(rows, options.memory, positions).await
}

fn check_depth(plan: &LogicalPlan) -> datafusion::common::Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            if depth(expression) > DEPTH_LIMIT {
                return plan_err!(
                    "an expression has more than {DEPTH_LIMIT} operators or calls inside each other"
                );
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .map(drop)
}

async fn collect(
    mut rows: datafusion::execution::SendableRecordBatchStream,
    limit: usize,
    positions: &Positions<'_>,
) -> Result<Answer, Failure> {
    let schema = rows.schema();
    let (mut batches, mut size) = (Vec::new(), 0);
    while let Some(batch) = rows.try_next().await.map_err(|error| Failure::of(&error, positions))? {
        size += batch.get_array_memory_size();
        if size > limit {
            return Err(SqlError::new("sql::memory", format!("the answer is larger than {limit} bytes"))
                .help("add LIMIT, select fewer columns, or aggregate")
                .into());
        }
        if batch.num_rows() > 0 {
            batches.push(batch);
        }
    }
    Ok(Answer { schema, batches })
}

/// The table that a name or path stands for.
async fn open(
    name: &str,
    context: &SessionContext,
    options: &Options,
    positions: &Positions<'_>,
) -> Result<Arc<dyn TableProvider>, Failure> {
    let failed = |error| Failure::of(&error, positions);
    if let Some((_, schema, rows)) = options.memory_tables.iter().find(|(table, ..)| table == name) {
        let table = MemTable::try_new(Arc::clone(schema), vec![rows.clone()]).map_err(failed)?;
        return Ok(Arc::new(table));
    }
    if !options.any_path && !options.tables.iter().any(|(table, _)| table == name) {
        return Err(unknown_table(name, options).into());
    }
    let path = options.tables.iter().find(|(table, _)| table == name).map_or(name, |(_, path)| path);
    let remote = path.contains("://");
    let glob = path.contains(['*', '?', '[']);
    if !remote && !glob && !Path::new(path).exists() {
        return Err(if path == name {
            unknown_table(name, options).into()
        } else {
            no_data(name, path).into()
        });
    }
    match Path::new(path).extension().and_then(|extension| extension.to_str()) {
        Some("csv") => {
            let rows = context.read_csv(path, CsvReadOptions::new()).await.map_err(failed)?;
            return Ok(rows.into_view());
        }
        Some(extension @ ("json" | "jsonl" | "ndjson")) => {
            let format = JsonReadOptions::default().file_extension(extension);
            let rows = context.read_json(path, format).await.map_err(failed)?;
            return Ok(rows.into_view());
        }
        _ => {}
    }
    let url = ListingTableUrl::parse(path).map_err(failed)?;
    let state = context.state();
    let store = state
        .runtime_env()
        .object_store(&url)
        .map_err(|_| SqlError::new("sql::unknown_table", format!("there is no access to `{path}`")))?;
    let files = files::list(store.as_ref(), &url).await.map_err(|error| failed(error.into()))?;
    if files.is_empty() {
        return Err(no_data(name, path).into());
    }
    Ok(Arc::new(LakeTable::open(&url, files, &store, &state).await.map_err(failed)?))
}

fn no_data(name: &str, path: &str) -> SqlError {
    SqlError::new("sql::no_data", format!("`{name}` has no data files yet"))
        .help(format!("Parquet files appear under `{path}` when a sink first closes one"))
}

fn unknown_table(name: &str, options: &Options) -> SqlError {
    let error = SqlError::new("sql::unknown_table", format!("there is no table, file or folder `{name}`"));
    let in_memory = options.memory_tables.iter().map(|(table, ..)| table.clone());
    let tables: Vec<String> =
        options.tables.iter().map(|(table, _)| table.clone()).chain(in_memory).collect();
    let siblings = if options.any_path { siblings(name) } else { Vec::new() };
    let known: Vec<String> = tables.iter().cloned().chain(siblings).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    match nearest_name(name, &known) {
        Some(meant) => error.help(format!("did you mean `{meant}`?")),
        None if !options.any_path => error.help(format!("tables: {}", tables.join(", "))),
        None if tables.is_empty() => error.help("quote a path: FROM 'data/lake'"),
        None => error.help(format!("tables: {}; or quote a path: FROM 'data/lake'", tables.join(", "))),
    }
}

/// What lies beside a path, written as the path is; the first 1000.
fn siblings(path: &str) -> Vec<String> {
    let parent = Path::new(path).parent().unwrap_or(Path::new(""));
    let folder = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .take(1000)
        .flatten()
        .filter_map(|entry| parent.join(entry.file_name()).to_str().map(str::to_owned))
        .collect()
}
