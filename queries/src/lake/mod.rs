//! SQL over Parquet by path, also while a pipeline writes it.
//!
//! `FROM 'data/lake'` is a folder that a `parquet` sink writes, any other folder or file of Parquet, or a CSV or
//! NDJSON file. A query sees the files that were complete when it began; files written by other versions of a
//! pipeline are merged by column name. Statements that would write anything are refused.

mod error;
mod files;
mod rows;
mod schema;
mod table;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ParamValues, ScalarValue, TableReference, plan_err};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::datasource::{MemTable, TableProvider};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::object_store::ObjectStore;
use datafusion::prelude::{CsvReadOptions, DataFrame, JsonReadOptions, SQLOptions, SessionContext};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::Dialect;
use futures::TryStreamExt;
use url::Url;

use self::error::Failure;
pub use self::error::SqlError;
pub(crate) use self::error::describe;
pub use self::rows::{Rows, Shape, shape, stream};
use self::table::LakeTable;
use crate::compiler::{DIALECT, Positions, depth, nearest_name, tokens};
use crate::functions::Functions;
use crate::postgres::{self, Relation, Rewritten};
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
    /// The values of `$1`, `$2` and so on, of one row each.
    pub parameters: Vec<ArrayRef>,
    /// Functions that users define.
    pub functions: Functions,
    /// The session of a client of PostgreSQL: with its dialect, functions and catalog.
    pub postgres: Option<Arc<postgres::Session>>,
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
            parameters: Vec::new(),
            functions: Functions::default(),
            postgres: None,
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
    let (sql, owned) = (sql.to_owned(), options.clone());
    apart(options.timeout, async move || query_here(&sql, &owned).await).await
}

/// Does `work` on a thread with a large stack, as long as somebody waits for it.
async fn apart<T: Send + 'static>(
    timeout: Duration,
    work: impl AsyncFnOnce() -> Result<T, SqlError> + Send + 'static,
) -> Result<T, SqlError> {
    let (mut sender, receiver) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    on_thread(move || {
        runtime.block_on(async {
            tokio::select! {
                answer = work() => drop(sender.send(answer)),
                // Nobody waits for the answer any more.
                () = sender.closed() => {}
            }
        });
    })?;
    // The clock is watched here and not in the query's own thread: an operator may compute for long before it
    // lets anything else run.
    match tokio::time::timeout(timeout, receiver).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(broken()),
        Err(_) => Err(too_slow(timeout)),
    }
}

fn on_thread(work: impl FnOnce() + Send + 'static) -> Result<(), SqlError> {
    std::thread::Builder::new()
        .name("sql-query".into())
        .stack_size(STACK)
        .spawn(work)
        .map(drop)
        .map_err(|error| SqlError::new("sql::failed", format!("cannot start a thread: {error}")))
}

fn broken() -> SqlError {
    SqlError::new("sql::failed", "the query failed unexpectedly")
        .help("this is a bug of Logdrive: please report the query")
}

fn too_slow(timeout: Duration) -> SqlError {
    SqlError::new("sql::timeout", format!("no answer within {} s", timeout.as_secs_f64()))
        .help("restrict the rows, for instance by a partition column")
}

async fn query_here(sql: &str, options: &Options) -> Result<Answer, SqlError> {
    let positions = Positions::new(sql);
    let statement = Prepared::parse(sql, options, &positions)?;
    // A sink may replace files (compaction, retention) between our listing and our reading.
    match attempt(&statement, options, &positions).await {
        Err(Failure::Vanished(_)) => attempt(&statement, options, &positions).await,
        result => result,
    }
    .map_err(Failure::into_error)
}

/// A statement that reads.
struct Prepared {
    statement: Statement,
    /// What was rewritten, for a client of PostgreSQL.
    rewritten: Rewritten,
}

impl Prepared {
    fn parse(sql: &str, options: &Options, positions: &Positions<'_>) -> Result<Self, SqlError> {
        if options.postgres.is_none() {
            let statement = parse(sql, positions, &DIALECT)?;
            return Ok(Self { statement, rewritten: Rewritten::default() });
        }
        let mut statement = parse(sql, positions, &postgres::DIALECT)?;
        let rewritten = postgres::rewrite(&mut statement);
        Ok(Self { statement, rewritten })
    }

    /// The columns by the names that the client knows.
    fn named(&self, schema: SchemaRef) -> SchemaRef {
        let columns = &self.rewritten.columns;
        if columns.len() != schema.fields().len() {
            return schema;
        }
        let fields = schema.fields().iter().zip(columns).map(|(field, name)| match name {
            Some(name) => field.as_ref().clone().with_name(name),
            None => field.as_ref().clone(),
        });
        Arc::new(Schema::new(fields.collect::<Vec<Field>>()))
    }
}

/// Parses, and refuses what does more than read.
pub(crate) fn parse(
    sql: &str,
    positions: &Positions<'_>,
    dialect: &'static dyn Dialect,
) -> Result<Statement, SqlError> {
    // The limits on depth hold for queries as for expressions.
    tokens(sql, positions)?;
    let failed = |error| Failure::of(&error, positions).into_error();
    let mut parser = DFParserBuilder::new(sql).with_dialect(dialect).build().map_err(failed)?;
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
    prepared: &Prepared,
    options: &Options,
    positions: &Positions<'_>,
) -> Result<Answer, Failure> {
    let rows = execute(prepared, options, positions).await?;
    collect(rows, options.memory, positions).await
}

async fn execute(
    prepared: &Prepared,
    options: &Options,
    positions: &Positions<'_>,
) -> Result<datafusion::execution::SendableRecordBatchStream, Failure> {
    let failed = |error| Failure::of(&error, positions);
    let (context, plan) = planned(prepared, options, positions).await?;
    let plan = with_values(plan, options).map_err(failed)?;
    DataFrame::new(context.state(), plan).execute_stream().await.map_err(failed)
}

/// A plan with the values of its parameters.
fn with_values(plan: LogicalPlan, options: &Options) -> datafusion::common::Result<LogicalPlan> {
    if options.parameters.is_empty() {
        return Ok(plan);
    }
    let values = options.parameters.iter().map(|value| ScalarValue::try_from_array(value, 0));
    let values: Vec<ScalarValue> = values.collect::<Result<_, _>>()?;
    plan.with_param_values(ParamValues::from(values))
}

/// A statement's plan, and the session that it was planned in.
async fn planned(
    prepared: &Prepared,
    options: &Options,
    positions: &Positions<'_>,
) -> Result<(SessionContext, LogicalPlan), Failure> {
    let failed = |error| Failure::of(&error, positions);
    let statement = &prepared.statement;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(options.memory)))
        .with_max_temp_directory_size(options.spill)
        .build_arc()
        .map_err(failed)?;
    for (url, store) in &options.stores {
        runtime.register_object_store(url, Arc::clone(store));
    }
    let mut builder = session::with(&options.functions).with_runtime_env(runtime);
    let is_shown = matches!(statement, Statement::Statement(inner) if matches!(**inner,
        ast::Statement::ShowTables { .. } | ast::Statement::ShowColumns { .. } | ast::Statement::ShowFunctions { .. }));
    if options.postgres.is_some() && !is_shown {
        // Clients know another `information_schema`, which takes its place.
        builder = builder.with_config(session::config().with_information_schema(false));
    }
    let context = SessionContext::new_with_state(builder.build());
    if let Some(session) = &options.postgres {
        let relations =
            if prepared.rewritten.catalog { Some(relations(&context, options).await) } else { None };
        postgres::prepare(&context, session, relations.as_deref()).map_err(failed)?;
    }
    let state = context.state();
    for reference in state.resolve_table_references(statement).map_err(failed)? {
        let TableReference::Bare { table: name } = &reference else {
            let schema = reference.schema();
            if schema == Some("information_schema")
                || (options.postgres.is_some() && schema == Some("pg_catalog"))
            {
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
    if matches!(statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::ShowTables { .. }))
    {
        let in_memory = options.memory_tables.iter().map(|(name, ..)| name);
        for name in options.tables.iter().map(|(name, _)| name).chain(in_memory) {
            if let Ok(table) = open(name, &context, options, positions).await {
                context.register_table(TableReference::bare(name.as_str()), table).map_err(failed)?;
            }
        }
    }
    // The state is taken again: `state` was a copy from before the tables.
    let plan = context.state().statement_to_plan(statement.clone()).await.map_err(failed)?;
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)
        .map_err(|_| SqlError::new("sql::read_only", "only statements that read are answered"))?;
    check_depth(&plan).map_err(failed)?;
    Ok((context, plan))
}

/// How many of the newest files of a lake say what columns it has.
const NEWEST: usize = 8;

/// Everything that can be read, with its columns.
async fn relations(context: &SessionContext, options: &Options) -> Vec<(String, SchemaRef, Relation)> {
    let in_memory = options.memory_tables.iter();
    let mut relations: Vec<(String, SchemaRef, Relation)> =
        in_memory.map(|(name, schema, _)| (name.clone(), Arc::clone(schema), Relation::View)).collect();
    for (name, path) in &options.tables {
        if relations.iter().any(|(known, ..)| known == name) {
            continue;
        }
        // A sink that has written nothing yet is left out.
        let Ok((url, store, mut files)) = listed(path, context).await else { continue };
        files.drain(..files.len().saturating_sub(NEWEST));
        if let Ok(table) = LakeTable::open(&url, files, &store, &context.state()).await {
            relations.push((name.clone(), table.schema(), Relation::Table));
        }
    }
    relations.sort_by(|a, b| a.0.cmp(&b.0));
    relations
}

/// The data files at a path.
async fn listed(
    path: &str,
    context: &SessionContext,
) -> datafusion::common::Result<(ListingTableUrl, Arc<dyn ObjectStore>, Vec<files::DataFile>)> {
    let url = ListingTableUrl::parse(path)?;
    let store = context.state().runtime_env().object_store(&url)?;
    let files = files::list(store.as_ref(), &url).await?;
    Ok((url, store, files))
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
