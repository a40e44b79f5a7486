use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};

use super::*;
use crate::{Answer, Options, shape, stream, to_csv};

fn options() -> Options {
    let rows = RecordBatch::try_from_iter([
        ("tenant", Arc::new(StringArray::from(vec!["a", "b"])) as _),
        ("n", Arc::new(Int64Array::from(vec![1, 2])) as _),
    ])
    .unwrap();
    let session = Session {
        user: "ada".into(),
        database: "logs".into(),
        settings: BTreeMap::from([("search_path".to_owned(), "public".to_owned())]),
    };
    Options {
        memory_tables: vec![("totals".into(), rows.schema(), vec![rows])],
        any_path: false,
        postgres: Some(Arc::new(session)),
        ..Options::default()
    }
}

/// An answer as CSV.
async fn csv(sql: &str, options: &Options) -> Result<String, SqlError> {
    let mut rows = stream(sql, options).await?;
    let (schema, mut batches) = (Arc::clone(rows.schema()), Vec::new());
    while let Some(batch) = rows.next().await? {
        batches.push(batch);
    }
    Ok(to_csv(&Answer { schema, batches }).unwrap().replace("\r\n", "\n"))
}

async fn answer(sql: &str) -> String {
    csv(sql, &options()).await.unwrap_or_else(|error| format!("{}: {}", error.code, error.message))
}

#[test]
fn a_text_is_cut_into_statements() {
    let of = |sql| pieces(sql).unwrap();
    assert_eq!(of("SELECT 1"), [(0, "SELECT 1")]);
    assert_eq!(of(" BEGIN ;; SELECT ';' -- ;\n; /* ; */ "), [(1, "BEGIN"), (10, "SELECT ';'")]);
    assert_eq!(of("SELECT $$a;b$$;"), [(0, "SELECT $$a;b$$")]);
    assert_eq!(of(" ; "), []);
    let error = pieces("SELECT 1; SELECT 'é").unwrap_err();
    assert_eq!(error.code, "sql::syntax");
}

#[test]
fn commands_are_told_from_queries() {
    let set = |name: &str, value: &str| Command::Set { name: name.into(), value: value.into() };
    let explain = |what, view: &str| Command::Explain { what, view: view.into() };
    let subscribe = |query: Subscribed, token: Option<&str>| Command::Subscribe {
        query,
        token: token.map(str::to_owned),
    };
    for (sql, expected) in [
        ("", Command::Empty),
        ("-- nothing", Command::Empty),
        ("select 1", Command::Query),
        ("(SELECT 1)", Command::Query),
        ("WITH x AS (SELECT 1) SELECT * FROM x", Command::Query),
        ("BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED", Command::Begin),
        ("START TRANSACTION READ ONLY", Command::Begin),
        ("commit work", Command::Commit),
        ("ROLLBACK", Command::Rollback),
        ("ROLLBACK TO SAVEPOINT x", Command::Ignored("ROLLBACK")),
        ("SET extra_float_digits = 3", set("extra_float_digits", "3")),
        ("set session TimeZone to 'Europe/Berlin'", set("timezone", "Europe/Berlin")),
        ("SET LOCAL search_path = a, \"b\"", set("search_path", "a, \"b\"")),
        ("SET TIME ZONE 'UTC'", set("timezone", "UTC")),
        ("SET NAMES 'UTF8'", set("client_encoding", "UTF8")),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::Ignored("SET")),
        ("SET TRANSACTION READ ONLY", Command::Ignored("SET")),
        ("SHOW TRANSACTION ISOLATION LEVEL", Command::Show("transaction_isolation".into())),
        ("SHOW Server_Version", Command::Show("server_version".into())),
        ("SHOW TABLES", Command::Query),
        ("RESET ALL", Command::Reset(None)),
        ("DEALLOCATE ALL", Command::Deallocate(None)),
        ("DEALLOCATE PREPARE \"x\"", Command::Deallocate(Some("x".into()))),
        ("DISCARD ALL", Command::Ignored("DISCARD ALL")),
        ("EXPLAIN SELECT 1", Command::Query),
        ("EXPLAIN ANALYZE SELECT 1", Command::Query),
        ("EXPLAIN VIEW totals;", explain(Explained::Plan, "totals")),
        ("explain analyze view public.\"T\"", explain(Explained::Analyze, "T")),
        ("EXPLAIN WATERMARK totals", explain(Explained::Watermark, "totals")),
        ("SUBSCRIBE TO totals", subscribe(Subscribed::View("totals".into()), None)),
        ("subscribe public.\"T\" from 'a-1'", subscribe(Subscribed::View("T".into()), Some("a-1"))),
        ("SUBSCRIBE (SELECT (n) FROM x)", subscribe(Subscribed::Query("SELECT (n) FROM x".into()), None)),
        ("COPY (SELECT ')' ) TO STDOUT", Command::Copy("SELECT ')' ".into())),
        ("INSERT INTO x VALUES (1)", Command::Other("insert".into())),
    ] {
        assert_eq!(command(sql).unwrap(), expected, "{sql}");
    }
    for sql in [
        "SUBSCRIBE",
        "SUBSCRIBE x y",
        "SUBSCRIBE x FROM 3",
        "COPY x TO STDOUT",
        "COPY (SELECT 1) TO 'file'",
        "SUBSCRIBE (SELECT 1",
    ] {
        assert_eq!(command(sql).unwrap_err().code, "sql::syntax", "{sql}");
    }
}

#[tokio::test]
async fn names_and_functions_are_those_of_postgresql() {
    assert_eq!(
        answer("SELECT Count(*), pg_catalog.VERSION() LIKE 'PostgreSQL 15.0%' FROM public.totals").await,
        "count,?column?\n2,true\n"
    );
    assert_eq!(
        answer("SELECT current_user, CURRENT_DATABASE(), current_schema").await,
        "current_user,current_database,current_schema\nada,logs,public\n"
    );
    assert_eq!(
        answer("SELECT n, n, tenant || 'x', NULL, NULL FROM logs.public.totals WHERE n = 1").await,
        "n,n,?column?,?column?,?column?\n1,1,ax,,\n"
    );
    assert_eq!(
        answer("SELECT 'b' ~ '^[ab]', 'b' OPERATOR(pg_catalog.~) '^a' COLLATE pg_catalog.default").await,
        "?column?,?column?\ntrue,false\n"
    );
    assert_eq!(
        answer(
            "SELECT quote_ident('a'), quote_ident('A b'), format_type(20, -1), current_setting('search_path')"
        )
        .await,
        "quote_ident,quote_ident,format_type,current_setting\na,\"\"\"A b\"\"\",bigint,public\n"
    );
    assert_eq!(
        answer("SELECT * FROM pg_temp.totals").await,
        "sql::unknown_table: there is no table, file or folder `pg_temp.totals`"
    );
}

#[tokio::test]
async fn the_catalog_knows_the_tables() {
    let tables = "SELECT c.relname, n.nspname, c.relkind FROM pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";
    assert_eq!(answer(tables).await, "relname,nspname,relkind\ntotals,public,v\n");
    let columns = "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
        WHERE a.attrelid = 'public.totals'::regclass ORDER BY attnum";
    assert_eq!(answer(columns).await, "attname,typname\ntenant,text\nn,int8\n");
    let named = "SELECT attrelid::regclass FROM pg_attribute LIMIT 1";
    assert_eq!(answer(named).await, "attrelid\ntotals\n");
    let columns = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'totals' ORDER BY ordinal_position";
    assert_eq!(answer(columns).await, "column_name,data_type\ntenant,text\nn,bigint\n");
    assert_eq!(
        answer("SELECT schema_name FROM information_schema.schemata WHERE schema_name = 'public'").await,
        "schema_name\npublic\n"
    );
    assert_eq!(answer("SELECT conname FROM pg_constraint").await, "conname\n");
    // Every empty table can be read.
    for (table, _) in catalog::EMPTY {
        let schema = if table.starts_with("pg_") { CATALOG } else { INFORMATION };
        let answer = answer(&format!("SELECT count(*) FROM {schema}.{table}")).await;
        assert_eq!(answer, "count\n0\n", "{table}");
    }
}

#[tokio::test]
async fn what_cannot_be_planned_over_an_empty_table_is_nothing() {
    let sql = "SELECT x.no_such_column, 1 AS one FROM pg_catalog.pg_policy x";
    let mut rows = stream(sql, &options()).await.unwrap();
    let names: Vec<&str> = rows.schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["no_such_column", "one"]);
    assert!(rows.next().await.unwrap().is_none());
    assert!(stream("SELECT no_such_column FROM totals", &options()).await.is_err());
    assert!(stream("SELECT no_such_column FROM pg_class", &options()).await.is_err());
}

#[tokio::test]
async fn parameters_have_types_and_values() {
    let sql = "SELECT tenant, $2 FROM totals WHERE n = $1";
    let shape = shape(sql, &options()).await.unwrap();
    assert_eq!(shape.parameters, [Some(arrow::datatypes::DataType::Int64), None]);
    let values: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(Int64Array::from(vec![2])), Arc::new(StringArray::from(vec!["x"]))];
    let options = Options { parameters: values, ..options() };
    assert_eq!(csv(sql, &options).await.unwrap(), "tenant,?column?\nb,x\n");
}

#[tokio::test]
async fn rows_come_as_they_are_made() {
    let options = Options { memory: 1 << 20, ..options() };
    let mut rows = stream("SELECT value, repeat('x', 100) AS x FROM generate_series(1, 100000)", &options)
        .await
        .unwrap();
    let mut n_rows = 0;
    while let Some(batch) = rows.next().await.unwrap() {
        n_rows += batch.num_rows();
    }
    assert_eq!(n_rows, 100_000);
    let mut rows =
        stream("SELECT 1 / (value - 50000) FROM generate_series(1, 100000)", &options).await.unwrap();
    let error = loop {
        match rows.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it must fail"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, "sql::failed");
    let options = Options { timeout: std::time::Duration::from_millis(50), ..options };
    let mut rows = stream("SELECT count(*) FROM generate_series(1, 100000000000)", &options).await.unwrap();
    assert_eq!(rows.next().await.unwrap_err().code, "sql::timeout");
}
