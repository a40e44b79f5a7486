//! SQL over a lake, as the command line runs it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use logdrive_queries::{Answer, Options, SqlError, query, to_csv};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

fn ints(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .unwrap()
}

/// Writes a file as a sink does: hidden first, visible by rename.
fn commit(lake: &Path, name: &str, rows: &RecordBatch) {
    let target = lake.join(name);
    let staging = lake.join("_tmp");
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::create_dir_all(&staging).unwrap();
    let hidden = staging.join(name.replace('/', "-"));
    let mut writer = ArrowWriter::try_new(File::create(&hidden).unwrap(), rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
    fs::rename(hidden, target).unwrap();
}

/// Two tenants over two days, and everything that must not be taken for data.
fn lake() -> TempDir {
    let lake = TempDir::new().unwrap();
    let rows = |first: i64| batch(vec![("id", ints(first..first + 10)), ("userId", texts(&["u"; 10]))]);
    commit(lake.path(), "tenant=acme/date=2026-11-20/a.parquet", &rows(0));
    commit(lake.path(), "tenant=acme/date=2026-11-21/a.parquet", &rows(10));
    commit(lake.path(), "tenant=B%20%26%20Co/date=2026-11-21/b.parquet", &rows(20));
    for junk in [
        "_logdrive/state.parquet",
        "_tmp/half.parquet",
        "tenant=acme/_tmp/x.parquet",
        "tenant=acme/date=2026-11-20/.hidden.parquet",
        "tenant=acme/date=2026-11-20/_open.parquet",
        "tenant=acme/date=2026-11-20/a.parquet.tmp",
        "README.md",
    ] {
        fs::create_dir_all(lake.path().join(junk).parent().unwrap()).unwrap();
        fs::write(lake.path().join(junk), "not Parquet").unwrap();
    }
    lake
}

async fn run(lake: &TempDir, sql: &str) -> Result<Answer, SqlError> {
    let path = lake.path().to_str().unwrap();
    let options = Options { tables: vec![("events".into(), path.into())], ..Options::default() };
    query(&sql.replace("LAKE", path), &options).await
}

async fn csv(lake: &TempDir, sql: &str) -> Vec<String> {
    let answer = run(lake, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    to_csv(&answer).unwrap().lines().skip(1).map(str::to_owned).collect()
}

async fn error(lake: &TempDir, sql: &str) -> SqlError {
    run(lake, sql).await.map(|answer| panic!("{sql}: {answer:?}")).unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_committed_files_are_read_with_their_partitions() {
    let lake = lake();
    assert_eq!(csv(&lake, "SELECT count(*) FROM 'LAKE'").await, ["30"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM 'LAKE/'").await, ["30"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM events").await, ["30"]);
    assert_eq!(
        csv(&lake, "SELECT tenant, count(*), min(id), max(id) FROM events GROUP BY tenant ORDER BY tenant")
            .await,
        ["B & Co,10,20,29", "acme,20,0,19"]
    );
    assert_eq!(
        csv(&lake, "SELECT id FROM events WHERE date = '2026-11-20' AND id > 7 ORDER BY id").await,
        ["8", "9"]
    );
    assert_eq!(csv(&lake, "SELECT count(*) FROM 'LAKE/tenant=acme/date=2026-11-20/a.parquet'").await, ["10"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM 'LAKE/tenant=acme'").await, ["20"]);
    assert_eq!(csv(&lake, "SELECT count(DISTINCT userId) FROM events").await, ["1"]);
    assert_eq!(csv(&lake, "SELECT sha256(userId) = sha256('u') FROM events LIMIT 2").await, ["true", "true"]);
    assert_eq!(
        csv(&lake, "SELECT count(*) FROM events a JOIN 'LAKE' b ON a.id = b.id WHERE a.tenant = 'acme'")
            .await,
        ["20"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_and_statistics_leave_files_out() {
    let lake = lake();
    let plan = csv(&lake, "EXPLAIN SELECT id FROM events WHERE date = '2026-11-20'").await.join("\n");
    assert!(plan.contains("date=2026-11-20") && !plan.contains("date=2026-11-21"), "{plan}");
    let plan = csv(&lake, "EXPLAIN ANALYZE SELECT id FROM events WHERE id > 25").await.join("\n");
    assert!(plan.contains("files_ranges_pruned_statistics=3 total"), "{plan}");
    assert!(plan.contains("1 matched"), "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_different_versions_are_merged_by_name() {
    let lake = TempDir::new().unwrap();
    let object = |fields: Vec<(&str, ArrayRef)>| -> ArrayRef {
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, column)| (Arc::new(Field::new(name, column.data_type().clone(), true)), column))
            .collect();
        Arc::new(StructArray::from(fields))
    };
    commit(
        lake.path(),
        "tenant=a/1.parquet",
        &batch(vec![
            ("tenant", texts(&["inside"])),
            ("n", ints([1])),
            ("payment", object(vec![("method", texts(&["card"]))])),
        ]),
    );
    commit(
        lake.path(),
        "tenant=b/2.parquet",
        &batch(vec![
            ("level", texts(&["INFO"])),
            ("n", Arc::new(Float64Array::from(vec![2.5]))),
            ("tenant", texts(&["inside too"])),
            ("payment", object(vec![("amount", ints([7])), ("method", texts(&["paypal"]))])),
        ]),
    );
    assert_eq!(
        csv(&lake, "SELECT tenant, n, level, payment.method, payment.amount FROM events ORDER BY n").await,
        ["inside,1.0,,card,", "inside too,2.5,INFO,paypal,7"]
    );
    let answer = run(&lake, "SELECT * FROM events").await.unwrap();
    let names: Vec<_> = answer.schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["tenant", "n", "payment", "level"], "no column twice");
    assert_eq!(*answer.schema.field(1).data_type(), DataType::Float64);
    assert_eq!(csv(&lake, "SELECT count(*) FROM events WHERE n > 2").await, ["1"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM events WHERE level IS NULL").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_files_can_be_joined() {
    let lake = lake();
    fs::write(lake.path().join("plans.csv"), "tenant,plan\nacme,gold\n").unwrap();
    fs::write(lake.path().join("plans.ndjson"), "{\"tenant\":\"acme\",\"plan\":\"gold\"}\n").unwrap();
    for file in ["plans.csv", "plans.ndjson"] {
        let sql = format!(
            "SELECT p.plan, count(*) FROM events e JOIN 'LAKE/{file}' p ON e.tenant = p.tenant GROUP BY 1"
        );
        assert_eq!(csv(&lake, &sql).await, ["gold,20"], "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written() {
    let lake = lake();
    for sql in [
        "COPY events TO 'LAKE/out.parquet'",
        "INSERT INTO events VALUES (1)",
        "CREATE TABLE x AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION 'LAKE'",
        "SELECT 1 INTO x",
        "DROP TABLE events",
        "DELETE FROM events",
        "SET datafusion.execution.batch_size = 1",
        "EXPLAIN INSERT INTO events VALUES (1)",
        "EXPLAIN ANALYZE COPY events TO 'LAKE/out.parquet'",
        "PREPARE x AS SELECT 1",
        "BEGIN",
    ] {
        let error = error(&lake, sql).await;
        assert!(error.code == "sql::read_only" || error.code == "sql::syntax", "{sql}: {error:?}");
    }
    assert!(!lake.path().join("out.parquet").exists());
    for sql in [
        "SHOW TABLES",
        "DESCRIBE events",
        "DESCRIBE 'LAKE'",
        "EXPLAIN SELECT 1",
        "SELECT 1",
        "WITH a AS (SELECT id FROM events) SELECT * FROM a",
    ] {
        run(&lake, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert!(csv(&lake, "SHOW TABLES").await.join("\n").contains("events"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_what_was_meant() {
    let lake = lake();
    for (sql, code, help) in [
        ("SELECT userid FROM events", "sql::unknown_column", "did you mean `userId`?"),
        ("SELECT zzz FROM events", "sql::unknown_column", "columns: date, id, tenant, userId"),
        ("SELECT 1 FROM event", "sql::unknown_table", "did you mean `events`?"),
        ("SELECT 1 FROM 'LAKE/tenant=acm'", "sql::unknown_table", "did you mean `"),
        ("SELECT 1 FROM a.b", "sql::unknown_table", "tables: events"),
        ("SELECT 1 FROM 'LAKE/_tmp/nothing/'", "sql::unknown_table", ""),
        ("SELECT luhn_vald('1')", "sql::unknown_function", "did you mean `luhn_valid`?"),
        ("SELECT 1 FROM", "sql::syntax", ""),
        ("SELECT 1; SELECT 2", "sql::syntax", ""),
        ("", "sql::syntax", ""),
        ("SELECT 1 +", "sql::syntax", ""),
        ("SELECT cidr_match(userId, 'x') FROM events", "sql::type", ""),
    ] {
        let error = error(&lake, sql).await;
        assert_eq!(error.code, code, "{sql}: {error:?}");
        let found = error.help.clone().unwrap_or_default();
        assert!(found.starts_with(help), "{sql}: {error:?}");
        assert!(!error.message.contains('\n') && !error.message.contains("datafusion"), "{sql}: {error:?}");
    }
    let sql = "SELECT id,\n  userid FROM events";
    let (start, length) = error(&lake, sql).await.at.unwrap();
    assert_eq!(&sql[start..start + length], "userid");

    let empty = TempDir::new().unwrap();
    assert_eq!(error(&empty, "SELECT count(*) FROM events").await.code, "sql::no_data");
    fs::write(lake.path().join("broken.parquet"), "not Parquet").unwrap();
    let broken = error(&lake, "SELECT count(*) FROM events").await;
    assert!(broken.code == "sql::failed", "{broken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let lake = lake();
    let path = lake.path().to_str().unwrap().to_owned();
    let tables = vec![("events".to_owned(), path)];
    let small = Options { tables: tables.clone(), memory: 1 << 20, ..Options::default() };
    let sql = "SELECT a.value, b.value FROM range(2000) a CROSS JOIN range(2000) b";
    let large = query(sql, &small).await.unwrap_err();
    assert_eq!(large.code, "sql::memory", "{large:?}");
    let brief = Options { tables, timeout: Duration::from_millis(200), ..Options::default() };
    let sql = "SELECT count(*) FROM range(1000000000000) WHERE value % 7 = 3";
    assert_eq!(query(sql, &brief).await.unwrap_err().code, "sql::timeout");

    let deep = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(error(&lake, &deep).await.code, "sql::syntax");
    let deep = format!("SELECT 1 FROM {}events{}", "(SELECT * FROM ".repeat(150), ")".repeat(150));
    assert_eq!(error(&lake, &deep).await.code, "sql::syntax");
    let long = format!("SELECT id{} FROM events", " + id".repeat(1_400));
    assert_eq!(error(&lake, &long).await.code, "sql::type");
    let fine = format!("SELECT sum(id{}) FROM events", " + id".repeat(99));
    assert_eq!(csv(&lake, &fine).await, ["43500"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lake_is_read_while_it_is_written() {
    const FILES: usize = 60;
    let lake = TempDir::new().unwrap();
    let path = lake.path().to_owned();
    let (committed, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    commit(&path, "date=0/first.parquet", &batch(vec![("id", ints(0..10))]));
    let asked = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (committed, done, asked) = (Arc::clone(&committed), Arc::clone(&done), Arc::clone(&asked));
        std::thread::spawn(move || {
            for n in 1..=FILES {
                // Neither side runs away from the other.
                while asked.load(Ordering::SeqCst) < n / 6 {
                    std::thread::yield_now();
                }
                let rows = batch(vec![("id", ints(0..10))]);
                commit(&path, &format!("date={}/{n}.parquet", n % 5), &rows);
                // Compaction: two files become one, so that listed files vanish.
                if n % 7 == 0 {
                    let compacted = batch(vec![("id", ints((0..10).chain(0..10)))]);
                    commit(&path, &format!("date={}/{n}-both.parquet", n % 5), &compacted);
                    fs::remove_file(path.join(format!("date={}/{n}.parquet", n % 5))).unwrap();
                    fs::remove_file(path.join(format!("date={}/{}.parquet", (n - 1) % 5, n - 1))).unwrap();
                }
                committed.store(n, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        })
    };
    let mut answers = 0;
    loop {
        asked.fetch_add(1, Ordering::SeqCst);
        let finished = done.load(Ordering::SeqCst);
        let before = committed.load(Ordering::SeqCst);
        match run(&lake, "SELECT count(*), count(DISTINCT id), sum(id) FROM events").await {
            Ok(answer) => {
                let text = to_csv(&answer).unwrap();
                let row: Vec<i64> =
                    text.lines().nth(1).unwrap().split(',').map(|cell| cell.parse().unwrap()).collect();
                let after = committed.load(Ordering::SeqCst) + 1;
                // During a compaction both its input and its output may be seen, or one input be gone: at most 20 rows.
                let (low, high) = ((before as i64 + 1) * 10 - 20, (after as i64 + 1) * 10 + 20);
                assert!((low..=high).contains(&row[0]), "{row:?} not in {low}..={high}");
                assert_eq!((row[1], row[2]), (10, row[0] / 10 * 45), "whole files only");
                if finished {
                    assert_eq!(row[0], (FILES as i64 + 1) * 10);
                }
                answers += 1;
            }
            // A file that vanished twice in a row, between two listings: the error says so.
            Err(error) => assert!(!finished && error.code == "sql::failed", "{error:?}"),
        }
        if finished {
            break;
        }
    }
    writer.join().unwrap();
    assert!(answers > 5, "{answers} answers while writing");
}
