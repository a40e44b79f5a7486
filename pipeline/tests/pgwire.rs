//! Clients of PostgreSQL on a pipeline that runs, with the real binary: psql, and a driver that speaks the binary
//! formats.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests")]
mod e2e_support;

use std::io::{Read as _, Write as _, stdout};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use e2e_support::{Lab, Pipeline, free_port, http, until};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, NoTls};

const START: i64 = 1_700_000_000;

struct Served {
    lab: Lab,
    input: u16,
    postgres: u16,
}

impl Served {
    /// A pipeline with two views and a lake; `more` are further keys of `postgres`.
    fn new(more: &str) -> Self {
        let (input, postgres) = (free_port(), free_port());
        let lab = Lab::new(&format!(
            r#"
postgres: {{ listen: "127.0.0.1:{postgres}"{more} }}
sources:
  in:
    type: http
    listen: "127.0.0.1:{input}"
    schema: {{ fields: {{ tenant: string, amount: int64, "@timestamp": timestamp }}, lateness: 1s }}
views:
  totals:
    sql: SELECT tenant, count(*) AS n, sum(amount) AS total, max("@timestamp") AS newest FROM in GROUP BY tenant
    unbounded: true
  per_window:
    sql: >
      SELECT tenant, tumble_start("@timestamp", INTERVAL '10 seconds') AS "@timestamp", count(*) AS n
      FROM in WHERE 100 / amount >= 0 GROUP BY tenant, tumble("@timestamp", INTERVAL '10 seconds')
    emit: final
sinks:
  lake: {{ type: parquet, from: [in], path: lake, batch: {{ timeout: 200ms }} }}
  out:  {{ type: file, from: [totals, per_window], path: out.ndjson }}
"#
        ));
        Self { lab, input, postgres }
    }

    /// Runs it, with a hundred rows of three tenants in it.
    fn filled(&self) -> Pipeline {
        let pipeline = self.lab.run();
        self.post(1..101);
        let all = || http(self.lab.api, "POST", "/v1/sql", "", "SELECT sum(n) AS n FROM totals").1;
        until("all rows are counted", || all() == "{\"n\":100}\n");
        pipeline
    }

    fn post(&self, range: std::ops::Range<i64>) {
        let body: String = range
            .map(|n| {
                let tenant = ["a", "b", "c"][(n % 3) as usize];
                let at = START * 1_000 + n * 500;
                format!(r#"{{"@timestamp":{at},"tenant":"{tenant}","amount":{n}}}"#) + "\n"
            })
            .collect();
        let (status, answer) = http(self.input, "POST", "/", "application/x-ndjson", &body);
        assert_eq!(status, 200, "{answer}");
    }

    fn psql_as(&self, options: &str, env: &[(&str, &str)], args: &[&str]) -> Output {
        let target =
            format!("host=127.0.0.1 port={} dbname=logdrive connect_timeout=10 {options}", self.postgres);
        let mut command = Command::new("psql");
        command.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &target]).args(args).stdin(Stdio::null());
        command.env("PGPASSFILE", "/nonexistent").env("PGCLIENTENCODING", "UTF8").env_remove("PGPASSWORD");
        command.envs(env.iter().copied()).output().unwrap()
    }

    /// What psql says to a command that must succeed, unaligned.
    fn psql(&self, sql: &str) -> String {
        let output = self.psql_as("user=ada", &[], &["-At", "-c", sql]);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What psql says to a command that must fail, with its code.
    fn psql_fails(&self, sql: &str) -> String {
        let output = self.psql_as("user=ada", &[], &["-At", "-v", "VERBOSITY=verbose", "-c", sql]);
        assert!(!output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    async fn connect(&self) -> Client {
        let target = format!("host=127.0.0.1 port={} user=ada dbname=logdrive", self.postgres);
        let (client, connection) = tokio_postgres::connect(&target, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

/// Whether psql is there; says so if not.
fn has_psql(test: &str) -> bool {
    let found = Command::new("psql").arg("--version").output().is_ok();
    if !found {
        writeln!(&mut stdout(), "skipped: {test}: there is no psql").unwrap();
    }
    found
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// The bytes of a value as they came.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// `EXPLAIN` of a view: the same over every protocol.
#[test]
fn a_view_is_explained_alike_everywhere() {
    let served = Served::new("");
    let pipeline = served.filled();
    let api = format!("http://127.0.0.1:{}", served.lab.api);
    let over_http = |sql: &str| http(served.lab.api, "POST", "/v1/sql", "", sql);
    let by_command = |sql: &str| served.lab.succeed(&["sql", "--api", &api, "--format", "json", sql]);

    let (status, plan) = over_http("EXPLAIN VIEW per_window");
    assert_eq!(status, 200, "{plan}");
    for part in [
        "TableScan: in",
        "windows: 10 s every 10 s of `@timestamp`",
        "one row per open window and key",
        "[append]",
        "max_bytes",
    ] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    assert_eq!(by_command("EXPLAIN VIEW per_window"), plan);

    let (status, answer) = over_http("explain analyze view totals;");
    assert_eq!(status, 200, "{answer}");
    let rows: Vec<serde_json::Value> =
        answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let took_in: i64 = rows.iter().filter_map(|row| row["rows"].as_i64()).max().unwrap();
    assert!(took_in >= 100, "{answer}");
    assert!(rows.iter().any(|row| row["time_ms"].as_f64().is_some_and(|ms| ms > 0.0)), "{answer}");
    let kept = rows.last().unwrap();
    assert_eq!((&kept["operator"], &kept["kept_rows"]), (&"all state".into(), &3.into()), "{answer}");
    assert!(kept["kept_bytes"].as_i64().unwrap() > 0, "{answer}");

    let (status, watermark) = over_http("EXPLAIN WATERMARK per_window");
    assert_eq!(status, 200, "{watermark}");
    assert!(watermark.contains("\"held_back_by_source\":\"in\""), "{watermark}");
    assert_eq!(by_command("EXPLAIN WATERMARK per_window"), watermark);

    let (status, refusal) = over_http("EXPLAIN VIEW totls");
    assert_eq!(status, 400);
    assert!(refusal.contains("did you mean `totals`?"), "{refusal}");

    block_on(async {
        let client = served.connect().await;
        let lines = client.query("EXPLAIN VIEW per_window", &[]).await.unwrap();
        let told: Vec<String> = lines.iter().map(|row| row.get::<_, Option<String>>(0).unwrap()).collect();
        let by_http: Vec<String> = plan
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["plan"].as_str().unwrap().into()
            })
            .collect();
        assert_eq!(told, by_http);
        let operators = client.query("EXPLAIN ANALYZE VIEW public.totals", &[]).await.unwrap();
        assert_eq!(operators.len(), rows.len());
        // The last row is the sum of what the others keep.
        let kept = |column: &str| {
            let of_rows: Vec<i64> =
                operators.iter().filter_map(|row| row.get::<_, Option<i64>>(column)).collect();
            let (all, each) = of_rows.split_last().unwrap();
            assert_eq!(each.iter().sum::<i64>(), *all, "{column}");
            *all
        };
        assert!(kept("kept_rows") >= 3 && kept("kept_bytes") > 3 * 8);
        let simple = client.simple_query("EXPLAIN WATERMARK per_window").await.unwrap();
        assert!(simple.len() >= 2);
        let error = client.query("EXPLAIN VIEW totls", &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE));
    });
    // What DataFusion explains is as it was.
    assert_eq!(over_http("EXPLAIN SELECT * FROM totals").0, 200);
    pipeline.stop();
}

#[test]
fn psql_reads_live_views_and_looks_around() {
    if !has_psql("psql_reads_live_views_and_looks_around") {
        return;
    }
    let served = Served::new("");
    let pipeline = served.filled();
    assert_eq!(
        served.psql("SELECT tenant, n, total FROM totals ORDER BY tenant"),
        "a|33|1683\nb|34|1717\nc|33|1650\n"
    );
    assert_eq!(served.psql("select max(newest) from public.totals"), "2023-11-14 22:14:10+00\n");
    assert_eq!(served.psql(r#"SELECT count(*), COUNT(*) AS again FROM "public"."totals" t"#), "3|3\n");
    // Several statements, as one text.
    let all = "BEGIN; SET application_name = 'x;y'; SHOW application_name; SELECT 1 AS one, 1; COMMIT -- ;";
    assert_eq!(served.psql(all), "BEGIN\nSET\nx;y\n1|1\nCOMMIT\n");
    assert_eq!(
        served.psql("SELECT current_schema(), current_database(), current_user"),
        "public|logdrive|ada\n"
    );
    assert!(served.psql("SELECT version()").starts_with("PostgreSQL 15.0 (Logdrive "));
    assert_eq!(
        served.psql("SHOW server_version_num; SHOW TimeZone; SHOW transaction isolation level"),
        "150000\nUTC\nread committed\n"
    );
    assert_eq!(
        served
            .psql("SET statement_timeout TO '5s'; SHOW statement_timeout; RESET ALL; SHOW statement_timeout"),
        "SET\n5s\nRESET\n0\n"
    );
    assert_eq!(
        served.psql("COPY (SELECT tenant, n FROM totals ORDER BY n, tenant) TO STDOUT"),
        "a\t33\nc\t33\nb\t34\n"
    );
    assert_eq!(served.psql(";"), "");

    let aligned = |args: &[&str]| {
        let output = served.psql_as("user=ada", &[], args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && err.is_empty(), "{args:?}: {out}{err}");
        out.into_owned()
    };
    until("the lake has rows", || http(served.lab.api, "POST", "/v1/sql", "", "SELECT * FROM lake").0 == 200);
    let described = aligned(&["-c", "\\d"]);
    for line in [
        "public | lake       | table | ada",
        "public | per_window | view  | ada",
        "public | totals     | view  | ada",
    ] {
        assert!(described.contains(line), "{described}");
    }
    assert!(aligned(&["-c", "\\dt"]).contains("lake"), "tables");
    assert!(aligned(&["-c", "\\dv"]).contains("totals"), "views");
    assert!(aligned(&["-c", "\\l"]).contains("logdrive"), "databases");
    assert!(aligned(&["-c", "\\dn"]).contains("public"), "schemas");
    let roles = aligned(&["-c", "\\du"]);
    assert!(roles.contains("ada"), "{roles}");
    let columns = aligned(&["-c", "\\d totals"]);
    assert!(columns.contains("View \"public.totals\""), "{columns}");
    for (name, of) in [("tenant", "text"), ("n", "bigint"), ("newest", "timestamp with time zone")] {
        let found = columns.lines().any(|line| {
            let mut cells = line.split('|').map(str::trim);
            cells.next() == Some(name) && cells.next() == Some(of)
        });
        assert!(found, "{name}: {columns}");
    }
    let columns = aligned(&["-c", "\\d lake"]);
    assert!(columns.contains("Table \"public.lake\"") && columns.contains("amount"), "{columns}");
    let (statements, _) = (pipeline.metric("logdrive_reader_statements_total", "postgres").unwrap(), ());
    assert!(statements > 20.0, "{statements}");
    pipeline.stop();
}

#[test]
fn what_tools_ask_when_they_connect_is_answered() {
    if !has_psql("what_tools_ask_when_they_connect_is_answered") {
        return;
    }
    let served = Served::new("");
    let pipeline = served.filled();
    // Grafana.
    assert_eq!(served.psql("SELECT current_setting('server_version_num')::int/100 as version"), "1500\n");
    assert_eq!(served.psql("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"), "");
    let tables = r#"select quote_ident(table_name) as "table" from information_schema.tables
        where quote_ident(table_schema) not in ('information_schema', 'pg_catalog', '_timescaledb_cache')
          and quote_ident(table_schema) IN (
            SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
            FROM generate_series(
                array_lower(string_to_array(current_setting('search_path'),','),1),
                array_upper(string_to_array(current_setting('search_path'),','),1)) as i,
              string_to_array(current_setting('search_path'),',') s) order by 1"#;
    let found = served.psql(tables);
    assert!(found.contains("per_window\n") && found.contains("totals\n"), "{found}");
    let columns = r#"select quote_ident(column_name) as "column", data_type as "type"
        from information_schema.columns where quote_ident(table_name) = 'totals'"#;
    assert_eq!(
        served.psql(columns),
        "tenant|text\nn|bigint\ntotal|bigint\nnewest|timestamp with time zone\n"
    );
    let series = r#"SELECT floor(extract(epoch from "@timestamp")/60)*60 AS "time", sum(n) AS "n" FROM per_window
        WHERE "@timestamp" BETWEEN '2023-11-14T00:00:00Z' AND '2023-11-15T00:00:00Z' GROUP BY 1 ORDER BY 1"#;
    assert!(served.psql(series).starts_with("1700000000|") || served.psql(series).starts_with("1699999980|"));
    // JDBC: the tables, the columns, the types.
    let tables = "SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME, \
        CASE n.nspname ~ '^pg_' OR n.nspname = 'information_schema' WHEN true THEN 'SYSTEM' WHEN false THEN \
        CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE NULL END ELSE NULL END AS TABLE_TYPE, \
        d.description AS REMARKS, '' as TYPE_CAT, '' as TYPE_SCHEM, '' as TYPE_NAME, \
        '' AS SELF_REFERENCING_COL_NAME, '' AS REF_GENERATION \
        FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c \
        LEFT JOIN pg_catalog.pg_description d ON (c.oid = d.objoid AND d.objsubid = 0 and d.classoid = 'pg_class'::regclass) \
        WHERE c.relnamespace = n.oid AND c.relname LIKE 'tot%' ORDER BY TABLE_TYPE,TABLE_SCHEM,TABLE_NAME";
    assert!(served.psql(tables).starts_with("|public|totals|VIEW|"), "{}", served.psql(tables));
    let types = "SELECT t.oid, t.typname FROM pg_catalog.pg_type t WHERE t.typname = 'timestamptz'";
    assert_eq!(served.psql(types), "1184|timestamptz\n");
    // psycopg and SQLAlchemy.
    assert_eq!(served.psql("select pg_catalog.version() like 'PostgreSQL %'"), "t\n");
    assert_eq!(served.psql("show standard_conforming_strings"), "on\n");
    let exists = "SELECT pg_catalog.pg_class.relname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace \
        ON pg_catalog.pg_namespace.oid = pg_catalog.pg_class.relnamespace WHERE pg_catalog.pg_class.relname = 'totals' \
        AND pg_catalog.pg_class.relkind = ANY (ARRAY['r', 'p', 'f', 'v', 'm']) \
        AND pg_catalog.pg_table_is_visible(pg_catalog.pg_class.oid)";
    assert_eq!(served.psql(exists), "totals\n");
    assert_eq!(
        served.psql("SELECT 'totals'::regclass::oid = c.oid FROM pg_class c WHERE relname = 'totals'"),
        "t\n"
    );
    pipeline.stop();
}

#[test]
fn values_have_the_types_of_postgresql_in_text_and_binary() {
    let served = Served::new("");
    let pipeline = served.filled();
    block_on(async {
        let client = served.connect().await;
        let row = client
            .query_one(
                "SELECT tenant, n, total, newest, n / 2.0 AS half FROM totals WHERE tenant = $1",
                &[&"b"],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>("tenant"), "b");
        assert_eq!((row.get::<_, i64>("n"), row.get::<_, i64>("total")), (34, 1717));
        assert_eq!(row.get::<_, f64>("half"), 17.0);
        let newest = SystemTime::UNIX_EPOCH + Duration::from_millis(START as u64 * 1_000 + 100 * 500);
        assert_eq!(row.get::<_, SystemTime>("newest"), newest);

        let constants = "SELECT true AS b, CAST(7 AS SMALLINT) AS i2, CAST(-7 AS INT) AS i4, CAST(1.5 AS REAL) AS f4, \
            DATE '2000-01-03' AS d, CAST(12345.678 AS DECIMAL(10, 3)) AS dec, make_array(1, NULL, 3) AS list, \
            make_array('a b', 'c') AS texts, named_struct('x', 1, 'y', 'z') AS object, NULL AS nothing, \
            TIMESTAMP '2000-01-01 00:00:01' AS plain, INTERVAL '1 month 2 days 3 seconds' AS span, \
            CAST('abc' AS BYTEA) AS bytes";
        let statement = client.prepare(constants).await.unwrap();
        let types: Vec<&str> = statement.columns().iter().map(|column| column.type_().name()).collect();
        let expected = [
            "bool",
            "int2",
            "int4",
            "float4",
            "date",
            "numeric",
            "_int8",
            "_text",
            "jsonb",
            "text",
            "timestamp",
            "interval",
            "bytea",
        ];
        assert_eq!(types, expected);
        let row = client.query_one(&statement, &[]).await.unwrap();
        assert!(row.get::<_, bool>("b"));
        assert_eq!((row.get::<_, i16>("i2"), row.get::<_, i32>("i4"), row.get::<_, f32>("f4")), (7, -7, 1.5));
        assert_eq!(row.get::<_, Raw>("d").0, 2i32.to_be_bytes());
        let words: Vec<u8> =
            [3i16, 1, 0, 3, 1, 2345, 6780].iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(row.get::<_, Raw>("dec").0, words);
        assert_eq!(row.get::<_, Vec<Option<i64>>>("list"), [Some(1), None, Some(3)]);
        assert_eq!(row.get::<_, Vec<String>>("texts"), ["a b", "c"]);
        assert_eq!(row.get::<_, Raw>("object").0, b"\x01{\"x\":1,\"y\":\"z\"}");
        assert_eq!(row.get::<_, Option<String>>("nothing"), None);
        assert_eq!(row.get::<_, Raw>("plain").0, 1_000_000i64.to_be_bytes());
        let span = [&3_000_000i64.to_be_bytes()[..], &2i32.to_be_bytes(), &1i32.to_be_bytes()].concat();
        assert_eq!(row.get::<_, Raw>("span").0, span);
        assert_eq!(row.get::<_, &[u8]>("bytes"), b"abc");

        // The same as text.
        let texts = client.simple_query(constants).await.unwrap();
        let tokio_postgres::SimpleQueryMessage::Row(row) = &texts[1] else { panic!("{texts:?}") };
        let found: Vec<Option<&str>> = (0..row.len()).map(|idx| row.get(idx)).collect();
        let expected = [
            "t",
            "7",
            "-7",
            "1.5",
            "2000-01-03",
            "12345.678",
            "{1,NULL,3}",
            "{\"a b\",c}",
            "{\"x\":1,\"y\":\"z\"}",
            "",
            "2000-01-01 00:00:01",
            "1 mon 2 days 00:00:03",
            "\\x616263",
        ];
        for (idx, expected) in expected.into_iter().enumerate() {
            assert_eq!(found[idx], (idx != 9).then_some(expected));
        }

        // Parameters of every kind, in binary.
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(START as u64);
        let typed = client
            .prepare_typed(
                "SELECT $1 AS a, $2 AS b, $3 AS c, $4 AS d, $5 AS e, $6 = ANY($7) AS f",
                &[
                    Type::INT8,
                    Type::FLOAT8,
                    Type::BOOL,
                    Type::TIMESTAMPTZ,
                    Type::TEXT,
                    Type::TEXT,
                    Type::TEXT_ARRAY,
                ],
            )
            .await
            .unwrap();
        let values: [&(dyn ToSql + Sync); 7] =
            [&5i64, &0.25f64, &false, &at, &Option::<String>::None, &"b", &vec!["a", "b"]];
        let row = client.query_one(&typed, &values).await.unwrap();
        assert_eq!(
            (row.get::<_, i64>("a"), row.get::<_, f64>("b"), row.get::<_, bool>("c")),
            (5, 0.25, false)
        );
        assert_eq!(row.get::<_, SystemTime>("d"), at);
        assert_eq!((row.get::<_, Option<String>>("e"), row.get::<_, bool>("f")), (None, true));
        // Types that only the statement says.
        let inferred = client
            .prepare("SELECT n FROM totals WHERE n > $1 AND tenant = $2 AND newest > $3")
            .await
            .unwrap();
        assert_eq!(inferred.params(), [Type::INT8, Type::TEXT, Type::TIMESTAMPTZ]);
        assert_eq!(client.query(&inferred, &[&1i64, &"a", &at]).await.unwrap().len(), 1);

        // A portal that is read in parts.
        let mut client = client;
        let transaction = client.transaction().await.unwrap();
        let portal =
            transaction.bind("SELECT value FROM generate_series(1, 10) ORDER BY value", &[]).await.unwrap();
        let mut parts = Vec::new();
        loop {
            let rows = transaction.query_portal(&portal, 4).await.unwrap();
            if rows.is_empty() {
                break;
            }
            parts.push(rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>());
        }
        assert_eq!(parts, [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10]]);
        transaction.commit().await.unwrap();
    });
    pipeline.stop();
}

#[test]
fn errors_have_codes_and_places() {
    let served = Served::new("");
    let pipeline = served.filled();
    block_on(async {
        let client = served.connect().await;
        for (sql, code, position) in [
            ("SELECT tennant FROM totals", "42703", Some(8)),
            ("SELECT * FROM total", "42P01", None),
            ("SELECT nope(1)", "42883", None),
            ("SELECT tenant FRM totals", "42601", Some(19)),
            ("INSERT INTO totals VALUES (1)", "25006", None),
            ("DROP TABLE totals", "25006", None),
            ("SELECT * FROM '/etc/passwd'", "42P01", None),
            ("SELECT * FROM \"/etc/passwd\"", "42P01", None),
            ("SELECT 1 / 0", "22000", None),
            ("SHOW nonsense", "42704", None),
            ("DECLARE c CURSOR FOR SELECT 1", "0A000", None),
            ("SUBSCRIBE nothing", "42P01", None),
            ("SELECT 'open", "42601", None),
        ] {
            for extended in [false, true] {
                let error = match extended {
                    false => client.simple_query(sql).await.map(drop),
                    true => client.query(sql, &[]).await.map(drop),
                };
                let error = error.expect_err(sql);
                let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
                assert_eq!(error.code(), &SqlState::from_code(code), "{sql}: {error:?}");
                if let Some(position) = position {
                    let found = error.position();
                    assert_eq!(
                        found,
                        Some(&tokio_postgres::error::ErrorPosition::Original(position)),
                        "{sql}"
                    );
                }
            }
        }
        let error = client.simple_query("SELECT * FROM total").await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().hint(), Some("did you mean `totals`?"));
        // In the second of two statements, behind a character of two bytes.
        let error = client.simple_query("SELECT 'é'; SELECT tennant FROM totals").await.unwrap_err();
        let position = error.as_db_error().unwrap().position();
        assert_eq!(position, Some(&tokio_postgres::error::ErrorPosition::Original(20)));
        let error = client.query("SELECT n FROM totals WHERE n = $1", &[&"x"]).await.unwrap_err();
        assert!(error.to_string().contains("error serializing"), "{error:?}");
        // After all that it still answers.
        assert_eq!(client.query_one("SELECT 1::bigint", &[]).await.unwrap().get::<_, i64>(0), 1);
    });
    pipeline.stop();
}

#[test]
fn a_statement_that_takes_long_can_be_stopped() {
    let served = Served::new("");
    let pipeline = served.filled();
    let endless = "SELECT count(*) FROM generate_series(1, 100000000000) a";
    block_on(async {
        let client = served.connect().await;
        for sql in [endless, "SELECT value FROM generate_series(1, 100000000000)", "SUBSCRIBE totals"] {
            let token = client.cancel_token();
            let began = Instant::now();
            let (ended, ()) = tokio::join!(client.simple_query(sql), async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                token.cancel_query(NoTls).await.unwrap();
            });
            assert_eq!(ended.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED), "{sql}");
            assert!(began.elapsed() < Duration::from_secs(20), "{sql}");
        }
        client.batch_execute("SET statement_timeout = 200").await.unwrap();
        let error = client.query(endless, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
        client.batch_execute("RESET statement_timeout").await.unwrap();
        assert_eq!(client.query("SELECT * FROM totals", &[]).await.unwrap().len(), 3);
    });
    assert_eq!(pipeline.metric("logdrive_reader_statements_total", "cancelled"), Some(3.0));
    pipeline.stop();
}

#[test]
fn only_users_with_their_password_get_in() {
    if !has_psql("only_users_with_their_password_get_in") {
        return;
    }
    // What PostgreSQL keeps of the password `pencil`.
    let kept = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let served = Served::new(&format!(r#", users: {{ ada: "s3cret ü", eve: "{kept}" }}"#));
    let pipeline = served.lab.run();
    let ask = |options: &str, password: &[(&str, &str)]| {
        served.psql_as(options, password, &["-At", "-w", "-c", "SELECT current_user"])
    };
    let output = ask("user=ada", &[("PGPASSWORD", "s3cret ü")]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "ada\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = ask("user=eve", &[("PGPASSWORD", "pencil")]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "eve\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (user, password) in
        [("ada", "wrong"), ("ada", ""), ("eve", "s3cret ü"), ("mallory", "s3cret ü"), ("mallory", "x")]
    {
        let output = ask(&format!("user={user}"), &[("PGPASSWORD", password)]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = stderr.contains(&format!("Password authentication failed for user \"{user}\""))
            || password.is_empty() && stderr.contains("no password supplied");
        assert!(!output.status.success() && refused, "{user} {password}: {stderr}");
    }
    assert!(!pipeline.log().contains("s3cret"), "{}", pipeline.log());
    pipeline.stop();
}

#[test]
fn with_certificates_only_secured_connections_are_taken() {
    if !has_psql("with_certificates_only_secured_connections_are_taken") {
        return;
    }
    let served =
        Served::new(r#", tls: { certificate: server.pem, key: server.key }, users: { ada: pencil }"#);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    served.lab.write("server.pem", &certificate.self_signed(&key).unwrap().pem());
    served.lab.write("server.key", &key.serialize_pem());
    let pipeline = served.lab.run();
    let ask = |options: &str| {
        served.psql_as(options, &[("PGPASSWORD", "pencil")], &["-At", "-c", "SELECT 1", "-c", "\\conninfo"])
    };
    let root = served.lab.path("server.pem");
    let output = ask(&format!("user=ada sslmode=verify-full sslrootcert={}", root.display()));
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        answer.starts_with("1\n") && answer.contains("TLSv1.3"),
        "{answer}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = ask("user=ada sslmode=disable");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("connections must be secured"), "{error}");
    pipeline.stop();
}

#[test]
fn an_address_that_others_reach_needs_users_and_certificates() {
    let served = Served::new("");
    let yaml = std::fs::read_to_string(served.lab.path("pipeline.yaml")).unwrap();
    served
        .lab
        .write("pipeline.yaml", &yaml.replace(&format!("127.0.0.1:{}", served.postgres), "0.0.0.0:5433"));
    let output = served.lab.command(&["check", "pipeline.yaml"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("others can reach this address"), "{error}");
}

#[test]
fn many_connect_and_too_many_are_told() {
    let served = Served::new(", max_connections: 20");
    let pipeline = served.filled();
    block_on(async {
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(served.connect().await);
        }
        let all = clients.iter().map(|client| client.query_one("SELECT sum(n)::bigint FROM totals", &[]));
        for row in futures::future::join_all(all).await {
            assert_eq!(row.unwrap().get::<_, i64>(0), 100);
        }
        let target = format!("host=127.0.0.1 port={} user=ada", served.postgres);
        let Err(error) = tokio_postgres::connect(&target, NoTls).await else { panic!("there was room") };
        assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:?}");
        drop(clients);
        let deadline = Instant::now() + Duration::from_secs(20);
        while tokio_postgres::connect(&target, NoTls).await.is_err() {
            assert!(Instant::now() < deadline, "nobody makes room");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    pipeline.until_metric("logdrive_reader_connections", "postgres", 0.0);
    pipeline.stop();
}

#[test]
fn a_large_answer_takes_little_memory() {
    let served = Served::new("");
    let pipeline = served.filled();
    let before = pipeline.resident();
    block_on(async {
        let client = served.connect().await;
        // Larger than what an answer may take as a whole.
        let sql = "SELECT value, repeat('x', 1000) AS text FROM generate_series(1, 400000)";
        let rows = client.query_raw(sql, Vec::<String>::new()).await.unwrap();
        let (mut n_rows, mut most) = (0u64, 0);
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = futures::StreamExt::next(&mut rows).await {
            assert_eq!(row.unwrap().get::<_, &str>(1).len(), 1000);
            n_rows += 1;
            if n_rows.is_multiple_of(20_000) {
                most = most.max(pipeline.resident());
            }
        }
        assert_eq!(n_rows, 400_000);
        assert!(most.saturating_sub(before) < 150 << 20, "{} MiB more", (most - before) >> 20);
    });
    pipeline.stop();
}

#[test]
fn nonsense_ends_a_connection_and_nothing_else() {
    let served = Served::new("");
    let mut pipeline = served.filled();
    let startup = |body: &[u8]| [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat();
    let hello = startup(b"\x00\x03\x00\x00user\x00ada\x00\x00");
    let mut attempts: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        startup(b"\x00\x03\x00\x00user"),
        startup(b"\x00\x09\x00\x00user\x00ada\x00\x00"),
        startup(b"\x04\xd2\x16\x2e\x00\x00"),
        vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f],
        vec![0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0],
    ];
    let message = |kind: u8, body: &[u8]| [&[kind][..], &startup(body)].concat();
    for (kind, body) in [
        (b'Q', &b"SELECT 1"[..]),
        (b'Q', &b"\xff\xfe\x00"[..]),
        (b'P', &b"\x00SELECT $1\x00\x00\x09"[..]),
        (b'P', &b"x"[..]),
        (b'B', &b"\x00\x00\x00\x01"[..]),
        (b'B', &b"\x00\x00\xff\xff\xff\xff\xff\xff"[..]),
        (b'B', &b"\x00\x00\x00\x00\x00\x00\x00\x05\x00\x01"[..]),
        (b'D', &b""[..]),
        (b'E', &b"\x00"[..]),
        (b'E', &b"\x00\xff\xff\xff\xff"[..]),
        (b'C', &b""[..]),
        (b'p', &b"\x00\x00"[..]),
        (b'd', &b"x"[..]),
        (b'?', &b"x"[..]),
        (b'f', &b""[..]),
    ] {
        attempts.push([hello.clone(), message(kind, body), message(b'S', b"")].concat());
    }
    // A statement whose columns are asked for in formats that do not fit.
    let prepared = [
        message(b'P', b"\x00SELECT 1, 2\x00\x00\x00"),
        message(b'B', b"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01"),
    ];
    attempts.push(
        [
            hello.clone(),
            prepared.concat(),
            message(b'D', b"P\x00"),
            message(b'E', b"\x00\x00\x00\x00\x00"),
            message(b'S', b""),
        ]
        .concat(),
    );
    let formats = message(b'B', b"\x00\x00\x00\x00\x00\x00\x00\x03\x00\x01\x00\x01\x00\x01");
    attempts.push(
        [
            hello.clone(),
            message(b'P', b"\x00SELECT 1, 2\x00\x00\x00"),
            formats,
            message(b'D', b"P\x00"),
            message(b'S', b""),
        ]
        .concat(),
    );
    let mut seed = 42u64;
    for _ in 0..300 {
        let mut bytes = hello.clone();
        for _ in 0..40 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.push((seed >> 33) as u8);
        }
        attempts.push(bytes.clone());
        let at = hello.len();
        // Often the beginning of a message that there is, of a length that fits.
        bytes[at] = b"QPBDESCHXpdcf"[(seed % 13) as usize];
        bytes[at + 1..at + 5].copy_from_slice(&36u32.to_be_bytes());
        attempts.push(bytes);
    }
    for bytes in &attempts {
        let stream = TcpStream::connect(("127.0.0.1", served.postgres));
        let mut stream = stream.unwrap_or_else(|error| panic!("{error}: {}", pipeline.log()));
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        stream.write_all(bytes).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        stream.read_to_end(&mut Vec::new()).ok();
    }
    let alive = http(served.lab.api, "POST", "/v1/sql", "", "SELECT sum(n) AS n FROM totals").1;
    assert_eq!(alive, "{\"n\":100}\n", "{}", pipeline.log());
    block_on(async {
        assert_eq!(served.connect().await.query("SELECT * FROM totals", &[]).await.unwrap().len(), 3);
    });
    assert!(!pipeline.log().contains("panicked"), "{}", pipeline.log());
    pipeline.signal("-INT");
    assert!(pipeline.wait().success());
}

#[test]
fn one_statement_joins_live_views_with_what_sinks_wrote() {
    if !has_psql("one_statement_joins_live_views_with_what_sinks_wrote") {
        return;
    }
    let served = Served::new("");
    let pipeline = served.filled();
    let joined = "SELECT t.tenant, t.n, count(*) AS stored FROM totals t JOIN lake l ON l.tenant = t.tenant \
        GROUP BY t.tenant, t.n ORDER BY t.tenant";
    let api = format!("http://127.0.0.1:{}", served.lab.api);
    let expected = "{\"tenant\":\"a\",\"n\":33,\"stored\":33}\n{\"tenant\":\"b\",\"n\":34,\"stored\":34}\n{\"tenant\":\"c\",\"n\":33,\"stored\":33}\n";
    let ask = || http(served.lab.api, "POST", "/v1/sql", "", joined).1;
    until("all rows are in the lake", || ask() == expected);
    assert_eq!(served.lab.succeed(&["sql", "--api", &api, "--format", "json", joined]), expected);
    assert_eq!(served.psql(joined), "a|33|33\nb|34|34\nc|33|33\n");
    pipeline.stop();
}

#[test]
fn rows_that_failed_or_came_late_are_tables() {
    if !has_psql("rows_that_failed_or_came_late_are_tables") {
        return;
    }
    let served = Served::new("");
    let pipeline = served.filled();
    let lines = [
        r#"{"@timestamp":1700000200000,"tenant":"a","amount":0}"#,
        r#"{"@timestamp":1700000200000,"tenant":"a","amount":"many"}"#,
        r#"{"@timestamp":1700000200000,"tenant":"a","amount":1}"#,
    ];
    for line in lines {
        assert_eq!(http(served.input, "POST", "/", "application/x-ndjson", line).0, 200);
    }
    // Once the watermark is known, a row of long ago is late.
    let late = r#"{"@timestamp":1600000000000,"tenant":"old","amount":1}"#;
    until("a row is late", || {
        assert_eq!(http(served.input, "POST", "/", "application/x-ndjson", late).0, 200);
        served.psql("SELECT count(*) > 0 FROM _late") == "t\n"
    });
    assert_eq!(served.psql("SELECT DISTINCT component, code, source FROM _late"), "per_window|late|in\n");
    assert!(served.psql("SELECT row FROM _late LIMIT 1").contains("1600000000000"));
    let failed = "SELECT component, source, row FROM _errors ORDER BY component";
    let found = served.psql(failed);
    let of = |component: &str| found.lines().find(|line| line.starts_with(component)).map(str::to_owned);
    assert!(of("in|in").is_some_and(|line| line.contains("many")), "{found}");
    assert!(of("per_window|in").is_some_and(|line| line.contains("\"amount\":0")), "{found}");
    let (status, rows) = http(served.lab.api, "POST", "/v1/sql", "", "SELECT time, reason FROM _errors");
    assert!(status == 200 && rows.lines().count() >= 2, "{rows}");
    pipeline.stop();
}

#[test]
fn psql_fails_with_advice() {
    if !has_psql("psql_fails_with_advice") {
        return;
    }
    let served = Served::new("");
    let pipeline = served.filled();
    let message = served.psql_fails("SELECT tennant FROM totals");
    assert!(
        message.contains("42703") && message.contains("LINE 1") && message.contains("did you mean `tenant`"),
        "{message}"
    );
    pipeline.stop();
}
